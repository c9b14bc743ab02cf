//! Tunnels: what one says of a packet that came through it, and what is set for one that goes into it.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use super::flags::TunnelFlags;
use super::key::UnknownKey;
use super::masked::Masked;

/// Outer headers, by OVS_TUNNEL_KEY_ATTR_*.
///
/// A field that is absent was not there. Beware: OVS leaves out `src`, `dst`, `tos`, `tp_src`, `tp_dst` and the options where they are
/// zero, whether they count or not (tun_key_to_attr in its lib/odp-util.c). A rule that takes an absent one as "zero" is
/// never too wide.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Tunnel {
    /// VNI or key, 64 bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Masked<u64>>,
    /// Outer IPv4 source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src: Option<Masked<Ipv4Addr>>,
    /// Outer IPv4 destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst: Option<Masked<Ipv4Addr>>,
    /// Outer IPv6 source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6_src: Option<Masked<Ipv6Addr>>,
    /// Outer IPv6 destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6_dst: Option<Masked<Ipv6Addr>>,
    /// Outer type of service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tos: Option<Masked<u8>>,
    /// Outer time to live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Masked<u8>>,
    /// Outer source port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tp_src: Option<Masked<u16>>,
    /// A `tos` that is absent is known to count for nothing. Only the kernel's masks say so: in text it may as well be zero.
    #[serde(skip)]
    pub any_tos: bool,
    /// The same of `tp_src`.
    #[serde(skip)]
    pub any_tp_src: bool,
    /// Outer destination port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tp_dst: Option<Masked<u16>>,
    /// VXLAN's group policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vxlan: Option<Vxlan>,
    /// GENEVE's options, in their order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub geneve: Option<Vec<GeneveOption>>,
    /// ERSPAN's header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub erspan: Option<Erspan>,
    /// GTP-U's header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gtpu: Option<Gtpu>,
    /// Flags, 4 bits.
    pub flags: Masked<TunnelFlags>,
    /// Attributes that this OVS did not know either.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<UnknownKey>,
}

impl Tunnel {
    /// Whether there is any option or extension of its kind of tunnel, whatever it is.
    pub(crate) fn has_any_option(&self) -> bool {
        let vxlan = self.vxlan.as_ref().is_some_and(|vxlan| vxlan.gbp.is_some() || !vxlan.unknown.is_empty());
        let geneve = self.geneve.as_ref().is_some_and(|options| !options.is_empty());
        vxlan || geneve || self.erspan.is_some() || self.gtpu.is_some() || !self.unknown.is_empty()
    }

    /// Says in so many words what is known to count for nothing, so that it is also in the text.
    pub(crate) fn spell_out(&mut self) {
        if std::mem::take(&mut self.any_tos) {
            self.tos.get_or_insert_default();
        }
        if std::mem::take(&mut self.any_tp_src) {
            self.tp_src.get_or_insert_default();
        }
    }
}

/// `vxlan(...)`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Vxlan {
    /// `gbp(...)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gbp: Option<Gbp>,
    /// Attributes that this OVS did not know either.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<UnknownKey>,
}

/// VXLAN's group policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Gbp {
    /// Group.
    pub id: Masked<u16>,
    /// Flags.
    pub flags: Masked<u8>,
}

/// An option of GENEVE (RFC 8926).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GeneveOption {
    /// Class.
    pub class: Masked<u16>,
    /// Type; its highest bit: critical.
    #[serde(rename = "type")]
    pub kind: Masked<u8>,
    /// Length of the data in bytes, 0 to 124, a multiple of 4. A full mask is 0xff.
    pub len: Masked<u8>,
    /// The data, `len` bytes.
    pub data: Box<[u8]>,
    /// Which bits of it count, as many.
    pub data_mask: Box<[u8]>,
}

/// ERSPAN's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Erspan {
    /// Version 1.
    V1 {
        /// Which bits of the version count.
        version_mask: u8,
        /// Index.
        index: Masked<u32>,
    },
    /// Version 2.
    V2 {
        /// Which bits of the version count.
        version_mask: u8,
        /// Direction.
        dir: Masked<u8>,
        /// Hardware.
        hwid: Masked<u8>,
    },
}

/// GTP-U's header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Gtpu {
    /// Flags.
    pub flags: Masked<u8>,
    /// Message type.
    pub msgtype: Masked<u8>,
}
