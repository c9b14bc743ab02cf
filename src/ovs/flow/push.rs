//! The headers that `tnl_push` puts in front of a packet.

use std::net::{Ipv4Addr, Ipv6Addr};

use ringspan_protocol::MacAddress;
use serde::Serialize;

use super::key::PortRef;
use super::tunnel::GeneveOption;

/// `tnl_push(tnl_port(...),header(...),out_port(...))`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TunnelPush {
    /// The tunnel's port.
    pub tunnel_port: PortRef,
    /// Length of all headers in bytes.
    pub size: u32,
    /// OVS_VPORT_TYPE_* as a number.
    #[serde(rename = "type")]
    pub kind: u32,
    /// Outer destination MAC address.
    pub eth_dst: MacAddress,
    /// Outer source MAC address.
    pub eth_src: MacAddress,
    /// Outer Ethertype.
    pub eth_type: u16,
    /// Outer IP header.
    pub ip: OuterIp,
    /// The rest.
    pub header: TunnelHeader,
    /// The port that it leaves through.
    pub out_port: PortRef,
}

/// Outer IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OuterIp {
    /// IPv4.
    V4 {
        /// Source.
        src: Ipv4Addr,
        /// Destination.
        dst: Ipv4Addr,
        /// Protocol.
        proto: u8,
        /// Type of service.
        tos: u8,
        /// Time to live.
        ttl: u8,
        /// Flags and fragment offset: 0x4000 is "do not fragment".
        frag: u16,
    },
    /// IPv6.
    V6 {
        /// Source.
        src: Ipv6Addr,
        /// Destination.
        dst: Ipv6Addr,
        /// Flow label.
        label: u32,
        /// Next header.
        proto: u8,
        /// Traffic class.
        tclass: u8,
        /// Hop limit.
        hlimit: u8,
    },
}

/// Outer UDP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OuterUdp {
    /// Source port; 0: chosen for each packet by its hash.
    pub src: u16,
    /// Destination port.
    pub dst: u16,
    /// Checksum; not 0: it is to be computed.
    pub csum: u16,
}

/// What is behind the outer IP header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TunnelHeader {
    /// VXLAN.
    Vxlan {
        /// UDP.
        udp: OuterUdp,
        /// Flags, 32 bits.
        flags: u32,
        /// VNI, 24 bits.
        vni: u32,
    },
    /// GENEVE.
    Geneve {
        /// UDP.
        udp: OuterUdp,
        /// A control packet.
        oam: bool,
        /// There are critical options.
        critical: bool,
        /// VNI, 24 bits.
        vni: u32,
        /// Options.
        options: Option<Vec<GeneveOption>>,
    },
    /// GRE.
    Gre {
        /// Flags.
        flags: u16,
        /// Protocol.
        proto: u16,
        /// Checksum.
        csum: Option<u16>,
        /// Key.
        key: Option<u32>,
        /// Sequence number.
        seq: Option<u32>,
    },
    /// ERSPAN version 1.
    Erspan1 {
        /// Session.
        sid: u16,
        /// Index.
        index: u32,
    },
    /// ERSPAN version 2.
    Erspan2 {
        /// Session.
        sid: u16,
        /// Direction.
        dir: u8,
        /// Hardware.
        hwid: u8,
    },
    /// GTP-U.
    Gtpu {
        /// UDP.
        udp: OuterUdp,
        /// Flags.
        flags: u8,
        /// Message type.
        msgtype: u8,
        /// Tunnel.
        teid: u32,
    },
    /// Segment routing over IPv6.
    Srv6 {
        /// Segments left.
        segments_left: u8,
        /// Segments, the first one first.
        segments: Vec<Ipv6Addr>,
    },
}
