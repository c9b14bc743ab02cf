//! A flow of an OVS datapath, whoever told of it, and the text in which OVS prints it.
//!
//! The model is one for both sources: the text of `ovs-appctl dpctl/dump-flows -m` (userspace and kernel datapath, with
//! and without `--names`, OVS 2.17 to 3.5), and the kernel's ovs_flow attributes. A flow's keys stand in the order in
//! which they came: the two datapaths differ in it, and printing gives back what was read.
//!
//! The format is OVS's lib/odp-util.c (odp_flow_format, format_odp_actions) and lib/dpctl.c (format_dpif_flow).

pub mod action;
pub mod flags;
pub mod key;
pub mod masked;
pub mod obstacle;
pub mod parse;
pub mod print;
pub mod push;
pub mod tunnel;

use std::fmt;

use serde::Serialize;

pub use action::{Action, Actions};
pub use key::{Key, PortRef};
pub use masked::Masked;
pub use obstacle::{Obstacle, Reason};
pub use parse::{Line, Names, ParseError};
pub use print::Style;

/// One flow: what it matches, what it did, and what it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Flow {
    /// OVS's name of the flow; `-m` prints it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ufid: Option<Ufid>,
    /// What a packet must be, each field with its mask. A field that is not here is not matched.
    pub keys: Vec<Key>,
    /// What it did so far.
    pub stats: Stats,
    /// Whether a datapath below OVS has it: `offloaded:`, printed only where it is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offloaded: Option<Offloaded>,
    /// Who has it: `ovs`, `tc`, `dpdk`. `dp:` with `-m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<Box<str>>,
    /// What is done with a packet. Never empty when it was read from text: no action prints as `drop`, and is read as that.
    pub actions: Actions,
    /// `dp-extra-info:`, to the end of the line; text of the datapath's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extra: Option<Box<str>>,
}

impl Flow {
    /// The same flow without keys that match everything, such as the `skb_mark(0/0)` of `-m`.
    ///
    /// For whoever keeps many: it has the same meaning, but no longer prints as OVS does.
    pub fn without_wildcards(mut self) -> Self {
        self.keys.retain(|key| !key.is_wildcard());
        self.keys.shrink_to_fit();
        self.actions.shrink_to_fit();
        self
    }
}

/// 128 bits that name a flow.
///
/// Written as OVS does, `6fc87ad1-...`: 32 bits first in the text are the highest here. The kernel's OVS_FLOW_ATTR_UFID is four
/// numbers of 32 bits in the machine's own order ([`Ufid::from_netlink`]).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ufid(pub u128);

impl Ufid {
    /// From the bytes of OVS_FLOW_ATTR_UFID.
    pub fn from_netlink(bytes: [u8; 16]) -> Self {
        let words = bytes.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        Self(words.fold(0, |high, word| high << 32 | u128::from(word)))
    }
}

impl fmt::Display for Ufid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (a, b) = ((self.0 >> 96) as u32, (self.0 >> 64) as u32);
        let c = self.0 as u64;
        write!(f, "{a:08x}-{:04x}-{:04x}-{:04x}-{:012x}", b >> 16, b as u16, c >> 48, c & 0xffff_ffff_ffff)
    }
}

impl fmt::Debug for Ufid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Ufid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a flow did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Packets that it saw.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Time since the last of them, in ms; absent: never. OVS may print a clock that ran backwards as less than 0.
    #[serde(rename = "used_ms")]
    pub used: Option<i64>,
    /// All TCP flags that were seen.
    #[serde(rename = "tcp_flags")]
    pub flags: flags::TcpFlags,
}

/// What `offloaded:` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Offloaded {
    /// All of it.
    Yes,
    /// The match alone: actions are done by OVS.
    Partial,
}
