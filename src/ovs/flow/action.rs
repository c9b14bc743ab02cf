//! What a flow does, by OVS_ACTION_ATTR_* of linux/openvswitch.h.

use std::net::IpAddr;

use ringspan_protocol::MacAddress;
use serde::Serialize;

use super::flags::SlowPath;
use super::key::{Key, PortRef};
use super::masked::Masked;
use super::push::TunnelPush;

/// Actions in their order.
///
/// An empty list drops the packet, as `[Drop]` does. OVS prints `drop` for both, and it is read as `[Drop]`.
pub type Actions = Vec<Action>;

/// One action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Sends the packet, as it is at this point, out of a port.
    Output(PortRef),
    /// Drops it; what follows is not done.
    Drop,
    /// Sends it to ovs-vswitchd.
    Userspace(Box<Userspace>),
    /// Writes into its header, or sets what goes with it: exactly one key, of which the bits in the masks are written. A tunnel replaces
    /// the one that was set before, wholly.
    Set(Box<Key>),
    /// Puts a VLAN header in front.
    PushVlan(PushVlan),
    /// Takes the outermost VLAN header away.
    PopVlan,
    /// Puts a label on top, behind the Ethernet header.
    PushMpls(PushMpls),
    /// Takes a label away; the Ethertype becomes this.
    PopMpls {
        /// Ethertype of what is then there.
        eth_type: u16,
    },
    /// Puts a label in front of everything or behind the Ethernet header.
    AddMpls(PushMpls),
    /// Looks the packet up again, with this recirc_id.
    Recirc(u32),
    /// Computes dp_hash.
    Hash {
        /// How.
        algorithm: HashAlgorithm,
        /// With which seed.
        basis: u32,
    },
    /// Connection tracking.
    Ct(Box<Conntrack>),
    /// Forgets its connection.
    CtClear,
    /// Does the actions with some of the packets, on a copy.
    Sample {
        /// Share of the packets, of `u32::MAX`. The text has tenths of a percent.
        probability: u32,
        /// What is done.
        actions: Actions,
    },
    /// Does the actions on a copy.
    Clone(Actions),
    /// Goes on by length.
    CheckPktLen {
        /// Length in bytes with the Ethernet header.
        size: u16,
        /// For longer packets.
        greater: Actions,
        /// For the others.
        less_or_equal: Actions,
    },
    /// Meters it: it may end here.
    Meter(u32),
    /// The next output sends no more than this many bytes.
    Trunc(u32),
    /// Puts the headers of a tunnel in front. Userspace datapath only.
    TunnelPush(Box<TunnelPush>),
    /// Takes them away and looks it up again as coming in from that port. Userspace datapath only.
    TunnelPop(PortRef),
    /// Puts a network service header in front.
    PushNsh(Box<PushNsh>),
    /// Takes it away.
    PopNsh,
    /// Puts an Ethernet header in front.
    PushEth {
        /// Source.
        src: MacAddress,
        /// Destination.
        dst: MacAddress,
    },
    /// Takes it away.
    PopEth,
    /// Takes 1 from the TTL, or does the actions where it is 1 or 0.
    DecTtl(Actions),
    /// Sends it out of a bond's member, chosen by dp_hash. Userspace datapath only.
    LbOutput(u32),
    /// Hands it to the kernel's psample.
    Psample {
        /// Group.
        group: Option<u32>,
        /// Goes along: the bytes of the number that OVS prints; its leading zeros are lost.
        cookie: Option<Box<[u8]>>,
    },
    /// An action that this OVS did not know either: its number and its bytes.
    Unknown {
        /// OVS_ACTION_ATTR_*.
        attribute: u16,
        /// Its argument.
        data: Vec<u8>,
    },
}

/// What `push_vlan` puts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PushVlan {
    /// Ethertype: 0x8100 or 0x88a8.
    pub tpid: u16,
    /// VLAN, 0 to 4095.
    pub vid: u16,
    /// Priority, 0 to 7.
    pub pcp: u8,
    /// Must be set for the kernel to take it.
    pub cfi: bool,
}

/// What `push_mpls` and `add_mpls` put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PushMpls {
    /// Label, 20 bits.
    pub label: u32,
    /// Traffic class, 0 to 7.
    pub tc: u8,
    /// Time to live.
    pub ttl: u8,
    /// Bottom of stack, 0 or 1.
    pub bos: u8,
    /// Ethertype in front of it.
    pub eth_type: u16,
}

/// How dp_hash is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HashAlgorithm {
    /// Over the 5-tuple.
    L4,
    /// The same in both directions.
    SymL4,
}

/// `userspace(...)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Userspace {
    /// Netlink port of the handler.
    pub pid: u32,
    /// What goes along.
    pub cookie: Option<Cookie>,
    /// The actions go along too.
    pub actions: bool,
    /// The tunnel port that the packet would leave through, for sFlow and IPFIX.
    pub tunnel_out_port: Option<PortRef>,
}

/// What goes to ovs-vswitchd with a packet (user_action_cookie of OVS's lib/odp-util.h).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cookie {
    /// A sample for sFlow.
    Sflow {
        /// VLAN that it leaves with.
        vid: u16,
        /// Its priority.
        pcp: u8,
        /// sFlow's own encoding of where it leaves.
        output: u32,
    },
    /// OVS does this packet itself.
    SlowPath(SlowPath),
    /// A sample by an OpenFlow action.
    FlowSample {
        /// Of 65535.
        probability: u16,
        /// IPFIX collectors.
        collector_set_id: u32,
        /// IPFIX observation domain.
        obs_domain_id: u32,
        /// IPFIX observation point.
        obs_point_id: u32,
        /// Where it leaves.
        output_port: PortRef,
        /// Which way it was going.
        direction: Option<Direction>,
    },
    /// A sample for IPFIX.
    Ipfix {
        /// Where it leaves.
        output_port: PortRef,
    },
    /// For the OpenFlow controller.
    Controller {
        /// OpenFlow's reason.
        reason: u16,
        /// Not sent after all.
        dont_send: bool,
        /// The controller may let it go on.
        continuation: bool,
        /// Where its state is.
        recirc_id: u32,
        /// Cookie of the OpenFlow flow.
        rule_cookie: u64,
        /// Which controller.
        controller_id: u16,
        /// How much of the packet, in bytes.
        max_len: u16,
    },
    /// Something else: bytes.
    Data(Vec<u8>),
}

/// Which way a sampled packet was going.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Into the switch.
    Ingress,
    /// Out of it.
    Egress,
}

/// `ct(...)`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Conntrack {
    /// Keeps the connection.
    pub commit: bool,
    /// Keeps it, and in this direction, whatever it was.
    pub force_commit: bool,
    /// Zone; 0 is not printed.
    pub zone: u16,
    /// Sets the mark.
    pub mark: Option<Masked<u32>>,
    /// Sets the label.
    #[serde(serialize_with = "optional_hexadecimal")]
    pub label: Option<Masked<u128>>,
    /// Helper for a protocol with connections of its own, such as `ftp`.
    pub helper: Option<Box<str>>,
    /// Timeout policy.
    pub timeout: Option<Box<str>>,
    /// Translates addresses.
    pub nat: Option<Nat>,
}

/// `nat(...)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Nat {
    /// `nat`: what the connection already has.
    Existing,
    /// `nat(src=...)`
    Src(NatRange),
    /// `nat(dst=...)`
    Dst(NatRange),
}

/// What it is translated to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NatRange {
    /// First address.
    pub address_min: Option<IpAddr>,
    /// Last address, where there is more than one; of the same family.
    pub address_max: Option<IpAddr>,
    /// First port; not 0.
    pub port_min: Option<u16>,
    /// Last port, where there is more than one.
    pub port_max: Option<u16>,
    /// The same over restarts.
    pub persistent: bool,
    /// Ports by hash.
    pub hash: bool,
    /// Ports at random.
    pub random: bool,
}

/// What `push_nsh` puts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PushNsh {
    /// Flags.
    pub flags: u8,
    /// Time to live.
    pub ttl: u8,
    /// Next protocol.
    pub np: u8,
    /// Service path, 24 bits.
    pub spi: u32,
    /// Service index.
    pub si: u8,
    /// Metadata.
    pub metadata: NshMetadata,
}

/// Metadata of a network service header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NshMetadata {
    /// Kind 1.
    Md1([u32; 4]),
    /// Kind 2: the bytes of the number that OVS prints; its leading zeros are lost.
    Md2(Box<[u8]>),
}

fn optional_hexadecimal<S: serde::Serializer>(label: &Option<Masked<u128>>, serializer: S) -> Result<S::Ok, S::Error> {
    match label {
        Some(label) => super::key::hexadecimal(label, serializer),
        None => serializer.serialize_none(),
    }
}
