//! What a flow matches, by OVS_KEY_ATTR_* of linux/openvswitch.h.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ringspan_protocol::MacAddress;
use serde::Serialize;

use super::flags::{CtState, TcpFlags};
use super::masked::{Bits, Masked};
use super::tunnel::Tunnel;

/// One attribute of a packet, with its masks. As an action's argument ([`super::Action::Set`]): what is written.
///
/// A mask is as wide as its field: [`Masked::is_exact`] serves for all fields but those whose doc says how many bits there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// How often the packet went round: 0 for one that just came in.
    RecircId(Masked<u32>),
    /// What the action `hash` computed.
    DpHash(Masked<u32>),
    /// Queueing priority.
    SkbPriority(Masked<u32>),
    /// The packet's mark in the host, pkt_mark in OpenFlow.
    SkbMark(Masked<u32>),
    /// State of its connection.
    CtState(Masked<CtState>),
    /// Zone of its connection.
    CtZone(Masked<u16>),
    /// Mark of its connection.
    CtMark(Masked<u32>),
    /// Label of its connection.
    #[serde(serialize_with = "hexadecimal")]
    CtLabel(Masked<u128>),
    /// Addresses and ports with which its connection began.
    CtTuple4(Box<CtTuple<Ipv4Addr>>),
    /// The same over IPv6.
    CtTuple6(Box<CtTuple<Ipv6Addr>>),
    /// The tunnel that it came through.
    Tunnel(Box<Tunnel>),
    /// Where it came in.
    InPort {
        /// The datapath's port. A name only where the mask is full.
        port: PortRef,
        /// Which bits of its number count.
        mask: u32,
    },
    /// Kind of packet: (0, 0) is Ethernet. Userspace datapath only.
    PacketType {
        /// Name space.
        ns: Masked<u16>,
        /// Type within it.
        id: Masked<u16>,
    },
    /// MAC addresses.
    Eth {
        /// Source.
        src: Masked<MacAddress>,
        /// Destination.
        dst: Masked<MacAddress>,
    },
    /// Ethertype; before a `vlan` the VLAN's TPID.
    EthType(Masked<u16>),
    /// The frame has no Ethertype (802.2), where these bits of it count.
    NoEthType {
        /// Which bits; all in practice.
        mask: u16,
    },
    /// A VLAN header. What is inside of it follows in an [`Key::Encap`].
    Vlan(Vlan),
    /// What is behind the VLAN header.
    Encap(Vec<Key>),
    /// Labels, the outermost first.
    Mpls(Vec<MplsLabel>),
    /// Network service header.
    Nsh(Box<Nsh>),
    /// IPv4.
    Ipv4(Ipv4),
    /// IPv6.
    Ipv6(Box<Ipv6>),
    /// TCP's ports.
    Tcp(L4Ports),
    /// TCP's flags, 12 bits.
    TcpFlags(Masked<TcpFlags>),
    /// UDP's ports.
    Udp(L4Ports),
    /// SCTP's ports.
    Sctp(L4Ports),
    /// ICMP.
    Icmp(Icmp),
    /// ICMPv6.
    Icmpv6(Icmp),
    /// ARP and RARP.
    Arp(Box<Arp>),
    /// Neighbour discovery.
    Nd(Box<Nd>),
    /// Neighbour discovery, more of it.
    NdExt {
        /// The reserved word. OVS prints it whether it counts or not.
        reserved: u32,
        /// Type of the first option.
        options_type: Masked<u8>,
    },
    /// An attribute that this OVS did not know either: its number and its bytes.
    Unknown(Box<UnknownKey>),
}

/// An attribute that OVS prints as bytes, `key40(01 02/ff ff)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnknownKey {
    /// OVS_KEY_ATTR_*, or the number within the attribute that it is in.
    pub attribute: u16,
    /// Its bytes.
    pub value: Vec<u8>,
    /// Which of their bits count; absent: all.
    pub mask: Option<Vec<u8>>,
}

/// A port of the datapath, as its source names it: by number, or by name where OVS was asked for names.
#[derive(Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum PortRef {
    /// The datapath's number (not OpenFlow's).
    Number(u32),
    /// Its name.
    Name(Box<str>),
}

impl PortRef {
    /// The number, where there is one.
    pub fn number(&self) -> Option<u32> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Name(_) => None,
        }
    }
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Debug for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {self}")
    }
}

/// A connection's first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CtTuple<A> {
    /// Source address.
    pub src: Masked<A>,
    /// Destination address.
    pub dst: Masked<A>,
    /// IP protocol.
    pub proto: Masked<u8>,
    /// Source port, or ICMP's type.
    pub src_port: Masked<u16>,
    /// Destination port, or ICMP's code.
    pub dst_port: Masked<u16>,
}

/// A VLAN's TCI in its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Vlan {
    /// VLAN, 12 bits ([`Vlan::VID_MASK`]).
    pub vid: Masked<u16>,
    /// Priority, 3 bits ([`Vlan::PCP_MASK`]).
    pub pcp: Masked<u8>,
    /// OVS's sign that there is a VLAN header at all: `cfi=0` is a match on frames without one, or with a truncated one.
    pub cfi: bool,
}

impl Vlan {
    /// Full mask of `vid`.
    pub const VID_MASK: u16 = 0xfff;
    /// Full mask of `pcp`.
    pub const PCP_MASK: u8 = 0x7;
}

/// A label stack entry of MPLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MplsLabel {
    /// 20 bits ([`MplsLabel::LABEL_MASK`]).
    pub label: Masked<u32>,
    /// Traffic class, 3 bits ([`MplsLabel::TC_MASK`]).
    pub tc: Masked<u8>,
    /// Time to live.
    pub ttl: Masked<u8>,
    /// Bottom of stack, 1 bit ([`MplsLabel::BOS_MASK`]).
    pub bos: Masked<u8>,
}

impl MplsLabel {
    /// Full mask of `label`.
    pub const LABEL_MASK: u32 = 0xf_ffff;
    /// Full mask of `tc`.
    pub const TC_MASK: u8 = 0x7;
    /// Full mask of `bos`.
    pub const BOS_MASK: u8 = 0x1;
}

/// Network service header (RFC 8300).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Nsh {
    /// Flags.
    pub flags: Masked<u8>,
    /// Time to live.
    pub ttl: Masked<u8>,
    /// Kind of metadata.
    pub mdtype: Masked<u8>,
    /// Next protocol.
    pub np: Masked<u8>,
    /// Service path. 24 bits, but a full mask is 32 ones here, as OVS prints it.
    pub spi: Masked<u32>,
    /// Service index.
    pub si: Masked<u8>,
    /// Context of metadata of kind 1.
    pub context: [Masked<u32>; 4],
}

/// Whether a packet is a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fragment {
    /// It is whole.
    No,
    /// The first of them.
    First,
    /// A later one.
    Later,
}

/// IPv4's header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Ipv4 {
    /// Source address.
    pub src: Masked<Ipv4Addr>,
    /// Destination address.
    pub dst: Masked<Ipv4Addr>,
    /// Protocol.
    pub proto: Masked<u8>,
    /// Type of service, all 8 bits.
    pub tos: Masked<u8>,
    /// Time to live.
    pub ttl: Masked<u8>,
    /// Whether it is a fragment, all or nothing; absent: whatever it is.
    pub frag: Option<Fragment>,
}

/// IPv6's header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Ipv6 {
    /// Source address.
    pub src: Masked<Ipv6Addr>,
    /// Destination address.
    pub dst: Masked<Ipv6Addr>,
    /// Flow label, 20 bits ([`Ipv6::LABEL_MASK`]).
    pub label: Masked<u32>,
    /// Protocol.
    pub proto: Masked<u8>,
    /// Traffic class, all 8 bits.
    pub tclass: Masked<u8>,
    /// Hop limit.
    pub hlimit: Masked<u8>,
    /// Whether it is a fragment, all or nothing; absent: whatever it is.
    pub frag: Option<Fragment>,
}

impl Ipv6 {
    /// Full mask of `label`.
    pub const LABEL_MASK: u32 = 0xf_ffff;
}

/// Ports of TCP, UDP or SCTP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct L4Ports {
    /// Source.
    pub src: Masked<u16>,
    /// Destination.
    pub dst: Masked<u16>,
}

/// ICMP's and ICMPv6's header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Icmp {
    /// Type.
    #[serde(rename = "type")]
    pub kind: Masked<u8>,
    /// Code.
    pub code: Masked<u8>,
}

/// ARP's and RARP's header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Arp {
    /// Sender's IP address.
    pub sip: Masked<Ipv4Addr>,
    /// Target's IP address.
    pub tip: Masked<Ipv4Addr>,
    /// Operation.
    pub op: Masked<u16>,
    /// Sender's MAC address.
    pub sha: Masked<MacAddress>,
    /// Target's MAC address.
    pub tha: Masked<MacAddress>,
}

/// Neighbour solicitation and advertisement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Nd {
    /// Address that is asked for.
    pub target: Masked<Ipv6Addr>,
    /// Source link-layer address option.
    pub sll: Masked<MacAddress>,
    /// Target link-layer address option.
    pub tll: Masked<MacAddress>,
}

impl Key {
    /// Whether it matches everything: no bit counts.
    ///
    /// `eth` never is one, nor are `vlan` and `encap`, because that they are there says something about the packet.
    pub fn is_wildcard(&self) -> bool {
        match self {
            Self::RecircId(m) | Self::DpHash(m) | Self::SkbPriority(m) | Self::SkbMark(m) | Self::CtMark(m) => {
                m.is_wildcard()
            }
            Self::CtState(m) => m.is_wildcard(),
            Self::CtZone(m) => m.is_wildcard(),
            Self::CtLabel(m) => m.is_wildcard(),
            Self::CtTuple4(tuple) => tuple.is_wildcard(),
            Self::CtTuple6(tuple) => tuple.is_wildcard(),
            Self::InPort { mask, .. } => *mask == 0,
            Self::PacketType { ns, id } => ns.is_wildcard() && id.is_wildcard(),
            Self::EthType(m) => m.is_wildcard(),
            Self::NoEthType { mask } => *mask == 0,
            Self::Ipv4(ip) => {
                ip.src.is_wildcard()
                    && ip.dst.is_wildcard()
                    && [ip.proto, ip.tos, ip.ttl].iter().all(Masked::is_wildcard)
                    && ip.frag.is_none()
            }
            Self::Ipv6(ip) => {
                ip.src.is_wildcard()
                    && ip.dst.is_wildcard()
                    && ip.label.is_wildcard()
                    && [ip.proto, ip.tclass, ip.hlimit].iter().all(Masked::is_wildcard)
                    && ip.frag.is_none()
            }
            Self::Tcp(ports) | Self::Udp(ports) | Self::Sctp(ports) => {
                ports.src.is_wildcard() && ports.dst.is_wildcard()
            }
            Self::TcpFlags(m) => m.is_wildcard(),
            Self::Icmp(icmp) | Self::Icmpv6(icmp) => icmp.kind.is_wildcard() && icmp.code.is_wildcard(),
            Self::Arp(arp) => {
                arp.sip.is_wildcard()
                    && arp.tip.is_wildcard()
                    && arp.op.is_wildcard()
                    && arp.sha.is_wildcard()
                    && arp.tha.is_wildcard()
            }
            Self::Nd(nd) => nd.target.is_wildcard() && nd.sll.is_wildcard() && nd.tll.is_wildcard(),
            Self::Eth { .. }
            | Self::Tunnel(_)
            | Self::Vlan(_)
            | Self::Encap(_)
            | Self::Mpls(_)
            | Self::Nsh(_)
            | Self::NdExt { .. }
            | Self::Unknown(_) => false,
        }
    }
}

impl<A: Bits> CtTuple<A> {
    fn is_wildcard(&self) -> bool {
        self.src.is_wildcard()
            && self.dst.is_wildcard()
            && self.proto.is_wildcard()
            && self.src_port.is_wildcard()
            && self.dst_port.is_wildcard()
    }
}

/// 128 bits as text: JSON's numbers do not reach so far.
pub(super) fn hexadecimal<S: serde::Serializer>(label: &Masked<u128>, serializer: S) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeStruct;
    let mut map = serializer.serialize_struct("Masked", 2)?;
    map.serialize_field("value", &format_args!("{:#x}", label.value))?;
    map.serialize_field("mask", &format_args!("{:#x}", label.mask))?;
    map.end()
}
