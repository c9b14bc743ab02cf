//! What a rule does with a frame.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::field::FieldMatch;
use crate::{MacAddress, NicPort};

/// One step of what a rule does. The steps are done in order; an output sends the frame as it is by then.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Sends it out of a port of the NIC: into the VF, or to the wire.
    Output(NicPort),
    /// Drops it; the only action then.
    Drop,
    /// Puts a VLAN tag in front of those it has.
    PushVlan {
        /// 0x8100 or 0x88a8.
        tpid: u16,
        /// Priority and id; the presence bit (0x1000) does not matter.
        tci: u16,
    },
    /// Takes the outer VLAN tag off.
    PopVlan,
    /// Sets the bits of the mask in a header field, and makes the checksums right.
    Set(FieldMatch),
    /// Takes one off the time to live. A frame whose time is over goes to the representor instead, for the slow path to answer.
    DecTtl,
    /// Puts the frame into a tunnel; only outputs may follow.
    TunnelPush(Box<TunnelPush>),
    /// Takes the frame out of its tunnel; the first action of a rule that matches a tunnel.
    TunnelPop,
    /// Drops it when the meter says that there are too many.
    Meter(u32),
}

/// What a tunnel is made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TunnelKind {
    /// RFC 7348.
    Vxlan,
    /// RFC 8926.
    Geneve,
}

impl TunnelKind {
    /// Its value in [`super::Field::TunnelKind`].
    pub fn number(self) -> u8 {
        match self {
            Self::Vxlan => 1,
            Self::Geneve => 2,
        }
    }

    /// The UDP port that is assigned to it.
    pub fn port(self) -> u16 {
        match self {
            Self::Vxlan => 4789,
            Self::Geneve => 6081,
        }
    }
}

/// The headers that a tunnel puts in front of a frame.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TunnelPush {
    /// What kind.
    pub kind: TunnelKind,
    /// Network identifier, 24 bits.
    pub id: u32,
    /// Source MAC address.
    pub eth_src: MacAddress,
    /// Destination MAC address.
    pub eth_dst: MacAddress,
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// Type of service or traffic class.
    #[serde(default)]
    pub tos: u8,
    /// Time to live or hop limit.
    #[serde(default = "sixty_four")]
    pub ttl: u8,
    /// Sets IPv4's "do not fragment".
    #[serde(default)]
    pub dont_fragment: bool,
    /// UDP source port; made of the inner frame's flow when absent, 32768 to 65535, so that paths are spread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src_port: Option<u16>,
    /// UDP destination port.
    pub dst_port: u16,
    /// Fills in UDP's checksum; without it the checksum is 0, with IPv6 too (RFC 6935).
    #[serde(default)]
    pub checksum: bool,
    /// GENEVE's options as they stand in the header, in hexadecimal: a multiple of 4 bytes, 252 at most.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub options: String,
}

fn sixty_four() -> u8 {
    64
}

/// Whether one of GENEVE's options must be understood by who receives it: the highest bit of its type (RFC 8926, section 3.5). Nothing where
/// the options do not fill their bytes.
pub fn has_critical(options: &[u8]) -> Option<bool> {
    let (mut rest, mut critical) = (options, false);
    while !rest.is_empty() {
        let [_, _, kind, words, behind @ ..] = rest else { return None };
        critical |= kind & 0x80 != 0;
        rest = behind.get(usize::from(words & 0x1f) * 4..)?;
    }
    Some(critical)
}

impl TunnelPush {
    /// The options as bytes; `None` when they are not hexadecimal.
    pub fn option_bytes(&self) -> Option<Vec<u8>> {
        let text = self.options.as_bytes();
        if !text.len().is_multiple_of(2) {
            return None;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        text.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
    }
}
