//! Headers that are matched: where their fields are, and what DPDK's test program calls them.

use crate::rule::Field;

/// A header that rte_flow has an item for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ItemKind {
    /// Ethernet.
    Eth,
    /// A VLAN tag, behind its type.
    Vlan,
    /// IPv4 without options.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP.
    Icmp,
    /// ICMPv6.
    Icmp6,
    /// ARP for IPv4 over Ethernet.
    Arp,
    /// VXLAN.
    Vxlan,
    /// GENEVE without options.
    Geneve,
}

impl ItemKind {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Eth,
        Self::Vlan,
        Self::Ipv4,
        Self::Ipv6,
        Self::Tcp,
        Self::Udp,
        Self::Sctp,
        Self::Icmp,
        Self::Icmp6,
        Self::Arp,
        Self::Vxlan,
        Self::Geneve,
    ];

    /// Its name in the test program.
    pub fn name(self) -> &'static str {
        match self {
            Self::Eth => "eth",
            Self::Vlan => "vlan",
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
            Self::Icmp6 => "icmp6",
            Self::Arp => "arp_eth_ipv4",
            Self::Vxlan => "vxlan",
            Self::Geneve => "geneve",
        }
    }

    /// Bytes of the header as far as it is matched.
    pub fn size(self) -> usize {
        match self {
            Self::Eth => 14,
            Self::Vlan | Self::Icmp6 => 4,
            Self::Ipv4 | Self::Tcp => 20,
            Self::Ipv6 => 40,
            Self::Udp | Self::Icmp | Self::Vxlan | Self::Geneve => 8,
            Self::Sctp => 12,
            Self::Arp => 28,
        }
    }

    /// The test program's name of the bit that stands beside the header: whether a VLAN tag, or a fragment header, comes next.
    pub fn next(self) -> Option<&'static str> {
        match self {
            Self::Eth => Some("has_vlan"),
            Self::Vlan => Some("has_more_vlan"),
            Self::Ipv6 => Some("has_frag_ext"),
            _ => None,
        }
    }
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Mac,
    Ipv4,
    Ipv6,
    Number,
}

/// A field of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Of which.
    pub kind: ItemKind,
    /// The field of a rule that it is, of the frame itself.
    pub field: Option<Field>,
    /// The field of a rule that it is, of a tunnel.
    pub tunnel: Option<Field>,
    /// What the test program calls it; nothing when it has no word for it.
    pub word: Option<&'static str>,
    /// Bits before it.
    pub at: usize,
    /// Its own bits.
    pub bits: usize,
    pub(super) form: Form,
}

macro_rules! headers {
    ($($kind:ident $word:tt $at:literal $bits:literal $form:ident $field:tt $tunnel:tt;)*) => {
        /// All fields that are matched.
        pub const HEADERS: &[Header] = &[$(Header {
            kind: ItemKind::$kind,
            field: headers!(@ $field),
            tunnel: headers!(@ $tunnel),
            word: headers!(@ $word),
            at: $at,
            bits: $bits,
            form: Form::$form,
        }),*];
    };
    (@ -) => { None };
    (@ $word:literal) => { Some($word) };
    (@ $field:ident) => { Some(Field::$field) };
}

headers! {
    Eth "dst" 0 48 Mac EthDst TunnelEthDst;
    Eth "src" 48 48 Mac EthSrc TunnelEthSrc;
    Eth "type" 96 16 Number - -;
    Vlan "tci" 0 16 Number - -;
    Vlan "inner_type" 16 16 Number - -;
    Ipv4 "tos" 8 8 Number IpTos TunnelTos;
    Ipv4 "fragment_offset" 48 16 Number - -;
    Ipv4 "ttl" 64 8 Number IpTtl TunnelTtl;
    Ipv4 "proto" 72 8 Number IpProto -;
    Ipv4 "src" 96 32 Ipv4 Ipv4Src TunnelIpv4Src;
    Ipv4 "dst" 128 32 Ipv4 Ipv4Dst TunnelIpv4Dst;
    Ipv6 "tc" 4 8 Number IpTos TunnelTos;
    Ipv6 "flow" 12 20 Number Ipv6Label -;
    Ipv6 "proto" 48 8 Number IpProto -;
    Ipv6 "hop" 56 8 Number IpTtl TunnelTtl;
    Ipv6 "src" 64 128 Ipv6 Ipv6Src TunnelIpv6Src;
    Ipv6 "dst" 192 128 Ipv6 Ipv6Dst TunnelIpv6Dst;
    Tcp "src" 0 16 Number SrcPort -;
    Tcp "dst" 16 16 Number DstPort -;
    Tcp "flags" 104 8 Number - -;
    Udp "src" 0 16 Number SrcPort TunnelSrcPort;
    Udp "dst" 16 16 Number DstPort TunnelDstPort;
    Udp - 48 16 Number - -;
    Sctp "src" 0 16 Number SrcPort -;
    Sctp "dst" 16 16 Number DstPort -;
    Icmp "type" 0 8 Number IcmpType -;
    Icmp "code" 8 8 Number IcmpCode -;
    Icmp6 "type" 0 8 Number IcmpType -;
    Icmp6 "code" 8 8 Number IcmpCode -;
    Arp "sha" 64 48 Mac ArpSha -;
    Arp "spa" 112 32 Ipv4 ArpSpa -;
    Arp "tha" 144 48 Mac ArpTha -;
    Arp "tpa" 192 32 Ipv4 ArpTpa -;
    Arp - 48 16 Number ArpOp -;
    Vxlan "vni" 32 24 Number - TunnelId;
    Geneve "vni" 32 24 Number - TunnelId;
    Geneve - 8 1 Number - -;
}

impl Header {
    /// The field of this kind that the test program calls so.
    pub(super) fn named(kind: ItemKind, word: &str) -> Option<&'static Self> {
        HEADERS.iter().find(|header| header.kind == kind && header.word == Some(word))
    }

    /// All of its bits.
    pub fn mask(&self) -> u128 {
        u128::MAX >> (128 - self.bits)
    }

    /// Reads it out of a header's bytes.
    pub fn get(&self, bytes: &[u8]) -> u128 {
        (self.at..self.at + self.bits).fold(0, |value, bit| {
            let byte = bytes.get(bit / 8).copied().unwrap_or_default();
            value << 1 | u128::from(byte >> (7 - bit % 8) & 1)
        })
    }

    /// Sets those of its bits in a header's bytes that are set in the value.
    pub fn put(&self, bytes: &mut [u8], value: u128) {
        for at in 0..self.bits {
            let bit = self.at + at;
            if let Some(byte) = bytes.get_mut(bit / 8).filter(|_| value >> (self.bits - 1 - at) & 1 != 0) {
                *byte |= 1 << (7 - bit % 8);
            }
        }
    }
}

/// A header that a frame must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Which.
    pub kind: ItemKind,
    /// Its bytes.
    pub spec: Vec<u8>,
    /// The greatest bytes where `spec` are the least.
    pub last: Option<Vec<u8>>,
    /// Which of its bits count.
    pub mask: Vec<u8>,
    /// Whether what [`ItemKind::next`] says must be so.
    pub next: Option<bool>,
}

impl Item {
    /// Any header of that kind.
    pub fn any(kind: ItemKind) -> Self {
        let zeroes = vec![0; kind.size()];
        Self { kind, spec: zeroes.clone(), last: None, mask: zeroes, next: None }
    }

    /// With a field that has this value in these bits.
    pub(super) fn put(&mut self, header: &Header, value: u128, mask: u128) {
        header.put(&mut self.spec, value & mask);
        header.put(&mut self.mask, mask);
    }

    /// The same, for a field the test program has a word for.
    pub(super) fn put_named(&mut self, word: &str, value: u128, mask: u128) {
        if let Some(header) = Header::named(self.kind, word) {
            self.put(header, value, mask);
        }
    }

    /// Value and mask of a field by its word.
    pub(super) fn named(&self, word: &str) -> (u128, u128) {
        let Some(header) = Header::named(self.kind, word) else { return (0, 0) };
        (header.get(&self.spec), header.get(&self.mask))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_read_as_it_was_put_and_leaves_the_others_alone() {
        for header in HEADERS {
            assert!(header.at + header.bits <= header.kind.size() * 8, "{header:?}");
            let mut bytes = vec![0; header.kind.size()];
            header.put(&mut bytes, header.mask());
            assert_eq!(header.get(&bytes), header.mask(), "{header:?}");
            assert_eq!(bytes.iter().map(|byte| byte.count_ones()).sum::<u32>() as usize, header.bits, "{header:?}");
        }
    }
}
