//! The header fields that a rule may look at or change, with their values and masks as text.
//!
//! The meanings are Open vSwitch's (ovs-fields(7)), so that a flow of its datapath becomes a rule without a second interpretation.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::MacAddress;

/// How a field's value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Mac,
    Ipv4,
    Ipv6,
    Hex,
    Decimal,
}

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $bits:literal, $form:ident;)*) => {
        /// A header field.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Field {
            $($(#[$doc])* $name,)*
        }

        impl Field {
            /// All fields, in order.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name in text.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// How many bits it has, 1 to 128.
            pub fn bits(self) -> u32 {
                match self { $(Self::$name => $bits,)* }
            }

            fn form(self) -> Form {
                match self { $(Self::$name => Form::$form,)* }
            }
        }
    };
}

fields! {
    /// Source MAC address.
    EthSrc = "eth_src", 48, Mac;
    /// Destination MAC address.
    EthDst = "eth_dst", 48, Mac;
    /// Ethernet type behind up to two VLAN tags; 0x5ff for a frame that has a length instead.
    EthType = "eth_type", 16, Hex;
    /// Type of the outer VLAN tag (0x8100, 0x88a8), 0 without one.
    VlanTpid = "vlan_tpid", 16, Hex;
    /// Outer VLAN tag: priority (0xe000), presence (0x1000), id (0x0fff). All zero without a tag.
    VlanTci = "vlan_tci", 16, Hex;
    /// Type of the inner VLAN tag.
    InnerVlanTpid = "inner_vlan_tpid", 16, Hex;
    /// Inner VLAN tag, as [`Field::VlanTci`].
    InnerVlanTci = "inner_vlan_tci", 16, Hex;
    /// IPv4 source address.
    Ipv4Src = "ipv4_src", 32, Ipv4;
    /// IPv4 destination address.
    Ipv4Dst = "ipv4_dst", 32, Ipv4;
    /// IPv6 source address.
    Ipv6Src = "ipv6_src", 128, Ipv6;
    /// IPv6 destination address.
    Ipv6Dst = "ipv6_dst", 128, Ipv6;
    /// IPv6 flow label.
    Ipv6Label = "ipv6_label", 20, Hex;
    /// IP protocol; with IPv6 that behind the extension headers.
    IpProto = "ip_proto", 8, Decimal;
    /// IPv4 type of service, or IPv6 traffic class: DSCP and ECN.
    IpTos = "ip_tos", 8, Hex;
    /// IPv4 time to live, or IPv6 hop limit.
    IpTtl = "ip_ttl", 8, Decimal;
    /// Fragments: bit 0 in every fragment, bit 1 in all but the first. 0 in what is whole; bit 1 alone in an IPv6 packet that
    /// has a fragment header and is the only one (RFC 6946).
    IpFrag = "ip_frag", 2, Decimal;
    /// Source port of TCP, UDP or SCTP; 0 in later fragments.
    SrcPort = "tp_src", 16, Decimal;
    /// Destination port of TCP, UDP or SCTP; 0 in later fragments.
    DstPort = "tp_dst", 16, Decimal;
    /// TCP flags, the low 12 bits of the header's 13th and 14th byte.
    TcpFlags = "tcp_flags", 12, Hex;
    /// Type of ICMP or ICMPv6.
    IcmpType = "icmp_type", 8, Decimal;
    /// Code of ICMP or ICMPv6.
    IcmpCode = "icmp_code", 8, Decimal;
    /// ARP operation; 0 above 255.
    ArpOp = "arp_op", 8, Decimal;
    /// ARP sender's IPv4 address.
    ArpSpa = "arp_spa", 32, Ipv4;
    /// ARP target's IPv4 address.
    ArpTpa = "arp_tpa", 32, Ipv4;
    /// ARP sender's MAC address.
    ArpSha = "arp_sha", 48, Mac;
    /// ARP target's MAC address.
    ArpTha = "arp_tha", 48, Mac;
    /// Address that a neighbour solicitation or advertisement is about (RFC 4861).
    NdTarget = "nd_target", 128, Ipv6;
    /// Source link-layer address option of it; zero without one.
    NdSll = "nd_sll", 48, Mac;
    /// Target link-layer address option of it; zero without one.
    NdTll = "nd_tll", 48, Mac;
    /// What the frame came in: 0 nothing, 1 VXLAN, 2 GENEVE. A rule that matches 1 or 2 sees the frame inside the tunnel: all fields
    /// but those of the tunnel are the inner frame's.
    TunnelKind = "tunnel_kind", 2, Decimal;
    /// VXLAN or GENEVE network identifier.
    TunnelId = "tunnel_id", 24, Hex;
    /// IPv4 source address of the tunnel.
    TunnelIpv4Src = "tunnel_ipv4_src", 32, Ipv4;
    /// IPv4 destination address of the tunnel.
    TunnelIpv4Dst = "tunnel_ipv4_dst", 32, Ipv4;
    /// IPv6 source address of the tunnel.
    TunnelIpv6Src = "tunnel_ipv6_src", 128, Ipv6;
    /// IPv6 destination address of the tunnel.
    TunnelIpv6Dst = "tunnel_ipv6_dst", 128, Ipv6;
    /// Type of service or traffic class of the tunnel.
    TunnelTos = "tunnel_tos", 8, Hex;
    /// Time to live or hop limit of the tunnel.
    TunnelTtl = "tunnel_ttl", 8, Decimal;
    /// UDP source port of the tunnel.
    TunnelSrcPort = "tunnel_tp_src", 16, Decimal;
    /// UDP destination port of the tunnel.
    TunnelDstPort = "tunnel_tp_dst", 16, Decimal;
    /// Flags of the tunnel: 1 a UDP checksum, 2 do not fragment, 4 GENEVE's control bit (OAM).
    TunnelFlags = "tunnel_flags", 3, Hex;
    /// Source MAC address of the packet around.
    TunnelEthSrc = "tunnel_eth_src", 48, Mac;
    /// Destination MAC address of the packet around.
    TunnelEthDst = "tunnel_eth_dst", 48, Mac;
    /// The first option of a GENEVE packet: its class (0xffff00) and type (0x0000ff). All of it is matched, or the packet has
    /// no options.
    TunnelOption = "tunnel_option", 24, Hex;
    /// The first 4 bytes of that option's data.
    TunnelOptionData = "tunnel_option_data", 32, Hex;
    /// Which options there are: 0 one of 4 bytes, 1 one of 8, 2 one of 12, 3 two of 4 bytes each. All of it is matched, as 0 where it is not named.
    TunnelOptionShape = "tunnel_option_shape", 2, Decimal;
    /// What stands behind those 4 bytes, of a tunnel over IPv4: more data (8 bytes; of an option of 8 bytes its last 4 in the upper half), or the
    /// second option with its header.
    TunnelOptionMore = "tunnel_option_more", 64, Hex;
}

impl Field {
    /// All of its bits.
    pub fn mask(self) -> u128 {
        u128::MAX >> (128 - self.bits())
    }

    /// Whether it is a field of the tunnel, and not of the frame.
    pub fn is_tunnel(self) -> bool {
        self >= Self::TunnelKind
    }
}

impl FromStr for Field {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let known = Self::ALL.iter().find(|field| field.name() == text);
        known.copied().ok_or_else(|| FieldError::Unknown(text.into()))
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why a field's value was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// No field of that name.
    #[error("{0:?} is not a header field: write eth_dst, ipv4_src, tp_dst and the like")]
    Unknown(String),
    /// Not `field=value` or `field=value/mask`.
    #[error("{0:?} is not field=value or field=value/mask")]
    Form(String),
    /// The text after `=` or `/` is no value of the field.
    #[error("{field}: {text:?} is not a value of this field")]
    Value {
        /// Which.
        field: Field,
        /// What was written.
        text: String,
    },
    /// Bits that the field does not have.
    #[error("{field}: {value:#x} has more than the field's {bits} bits", bits = field.bits())]
    Wide {
        /// Which.
        field: Field,
        /// Value or mask.
        value: u128,
    },
    /// Bits of the value that the mask leaves out: the rule would never match.
    #[error("{field}: the value {value:#x} has bits outside its mask {mask:#x}")]
    OutsideMask {
        /// Which.
        field: Field,
        /// The value.
        value: u128,
        /// The mask.
        mask: u128,
    },
}

/// A field with the value that it must have, or gets, in the bits of a mask. Written `ipv4_dst=10.0.0.0/255.0.0.0`; without a mask all
/// bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FieldMatch {
    field: Field,
    value: u128,
    mask: u128,
}

impl FieldMatch {
    /// A field with some of its bits.
    ///
    /// # Errors
    /// [`FieldError`]: bits that the field does not have, or of the value outside the mask.
    pub fn new(field: Field, value: u128, mask: u128) -> Result<Self, FieldError> {
        for bits in [value, mask] {
            if bits & !field.mask() != 0 {
                return Err(FieldError::Wide { field, value: bits });
            }
        }
        if value & !mask != 0 {
            Err(FieldError::OutsideMask { field, value, mask })
        } else {
            Ok(Self { field, value, mask })
        }
    }

    /// A field with all of its bits. What the field has no room for is an error.
    ///
    /// # Errors
    /// [`FieldError::Wide`].
    pub fn exact(field: Field, value: u128) -> Result<Self, FieldError> {
        Self::new(field, value, field.mask())
    }

    /// Which field.
    pub fn field(&self) -> Field {
        self.field
    }

    /// Its value; the bits outside the mask are 0.
    pub fn value(&self) -> u128 {
        self.value
    }

    /// The bits that count.
    pub fn mask(&self) -> u128 {
        self.mask
    }

    /// Whether all bits of the field count.
    pub fn is_exact(&self) -> bool {
        self.mask == self.field.mask()
    }
}

impl fmt::Display for FieldMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.field)?;
        write_value(f, self.field, self.value)?;
        if self.is_exact() {
            return Ok(());
        }
        f.write_str("/")?;
        match self.field.form() {
            Form::Decimal => write!(f, "{:#x}", self.mask),
            _ => write_value(f, self.field, self.mask),
        }
    }
}

fn write_value(f: &mut fmt::Formatter<'_>, field: Field, value: u128) -> fmt::Result {
    match field.form() {
        Form::Mac => {
            let [.., a, b, c, d, e, g] = value.to_be_bytes();
            write!(f, "{}", MacAddress([a, b, c, d, e, g]))
        }
        Form::Ipv4 => write!(f, "{}", Ipv4Addr::from(value as u32)),
        Form::Ipv6 => write!(f, "{}", Ipv6Addr::from(value)),
        Form::Hex => write!(f, "{value:#x}"),
        Form::Decimal => write!(f, "{value}"),
    }
}

fn read_value(field: Field, text: &str) -> Option<u128> {
    let number = || match text.strip_prefix("0x") {
        Some(hex) if !hex.starts_with('+') => u128::from_str_radix(hex, 16).ok(),
        None if !text.starts_with('+') => text.parse().ok(),
        _ => None,
    };
    match field.form() {
        Form::Mac => {
            let MacAddress([a, b, c, d, e, g]) = text.parse().ok()?;
            Some(u64::from_be_bytes([0, 0, a, b, c, d, e, g]).into())
        }
        Form::Ipv4 => text.parse::<Ipv4Addr>().ok().map(|address| u32::from(address).into()),
        Form::Ipv6 => text.parse::<Ipv6Addr>().ok().map(u128::from),
        Form::Hex | Form::Decimal => number(),
    }
}

impl FromStr for FieldMatch {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let (field, rest) = text.split_once('=').ok_or_else(|| FieldError::Form(text.into()))?;
        let field: Field = field.parse()?;
        let read = |text: &str| read_value(field, text).ok_or(FieldError::Value { field, text: text.into() });
        match rest.split_once('/') {
            Some((value, mask)) => Self::new(field, read(value)?, read(mask)?),
            None => Self::exact(field, read(rest)?),
        }
    }
}

impl TryFrom<String> for FieldMatch {
    type Error = FieldError;
    fn try_from(text: String) -> Result<Self, FieldError> {
        text.parse()
    }
}

impl From<FieldMatch> for String {
    fn from(field: FieldMatch) -> String {
        field.to_string()
    }
}

impl schemars::JsonSchema for FieldMatch {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "FieldMatch".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A header field with its value and, where not all bits count, its mask: ipv4_dst=10.0.0.0/255.0.0.0.",
            "pattern": "^[a-z0-9_]+=[^/]+(/.+)?$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_reads_back_as_it_is_written_with_and_without_a_mask() {
        for &field in Field::ALL {
            let all = field.mask();
            for (value, mask) in [(0, all), (all, all), (all & 0x5a5a_5a5a, all), (all & 1, 1), (0, all & !1), (0, 0)] {
                let one = FieldMatch::new(field, value, mask).unwrap();
                assert_eq!(one.to_string().parse(), Ok(one), "{one}");
                let json = serde_json::to_string(&one).unwrap();
                assert_eq!(serde_json::from_str::<FieldMatch>(&json).unwrap(), one);
            }
            if field.bits() < 128 {
                assert!(FieldMatch::exact(field, all + 1).is_err(), "{field}");
            }
        }
    }

    #[test]
    fn values_are_written_as_people_write_them() {
        for text in [
            "eth_dst=52:54:00:00:00:01/ff:ff:ff:00:00:00",
            "ipv4_dst=10.0.0.0/255.0.0.0",
            "ipv6_src=fe80::/ffc0::",
            "vlan_tci=0x1005/0x1fff",
            "tp_dst=80",
            "tp_dst=0/0xff00",
        ] {
            let bad_value = text.replace("52:54:00:00:00:01", "52:54:00:00:00:00");
            assert_eq!(bad_value.parse::<FieldMatch>().unwrap().to_string(), bad_value);
        }
        for bad in [
            "",
            "eth_dst",
            "eth_dst=",
            "eth_dst=1",
            "ipv4_dst=10.0.0.1/255.0.0.0",
            "tp_dst=65536",
            "tp_dst=+1",
            "x=1",
            "tp_dst=1/",
        ] {
            assert!(bad.parse::<FieldMatch>().is_err(), "{bad:?} was accepted");
        }
    }
}
