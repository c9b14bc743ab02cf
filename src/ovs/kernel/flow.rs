//! OVS_FLOW_ATTR_* of linux/openvswitch.h: one flow.

use nix::time::{ClockId, clock_gettime};

use super::DecodeError;
use super::action::actions;
use super::attribute::{Attribute, attributes, find};
use super::key::keys;
use crate::ovs::flow::flags::TcpFlags;
use crate::ovs::flow::{Flow, Stats, Ufid};

const KEY: u16 = 1;
const ACTIONS: u16 = 2;
const STATS: u16 = 3;
const TCP_FLAGS: u16 = 4;
const USED: u16 = 5;
const MASK: u16 = 7;
const UFID: u16 = 9;

/// A flow that the kernel told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It is understood, all of it.
    Flow(Box<Flow>),
    /// It is not.
    Unreadable(Unreadable),
}

impl Told {
    /// OVS's name of it.
    pub fn ufid(&self) -> Option<Ufid> {
        match self {
            Self::Flow(flow) => flow.ufid,
            Self::Unreadable(unreadable) => unreadable.ufid,
        }
    }
}

/// A flow of which a part is not understood: it is there, and nothing may be concluded from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// OVS's name of it; one that another tool made has none.
    pub ufid: Option<Ufid>,
    /// What is not understood.
    pub reason: DecodeError,
}

/// The name of the flow that a message is about. OVS gives one to each; the kernel knows others by what they match.
///
/// # Errors
/// It is no name that OVS gives.
pub fn ufid(body: &[u8]) -> Result<Option<Ufid>, DecodeError> {
    let name = |value| Ok(Ufid::from_netlink(Attribute { kind: UFID, value }.array("ufid")?));
    find(body, UFID)?.map(name).transpose()
}

/// The flow that a message is about.
///
/// # Errors
/// Its name is none that OVS gives.
pub fn told(body: &[u8]) -> Result<Told, DecodeError> {
    let ufid = ufid(body)?;
    Ok(match flow(body, ufid) {
        Ok(flow) => Told::Flow(Box::new(flow)),
        Err(reason) => Told::Unreadable(Unreadable { ufid, reason }),
    })
}

fn flow(body: &[u8], ufid: Option<Ufid>) -> Result<Flow, DecodeError> {
    let (mut key, mut mask, mut does) = (None, None, None);
    let mut stats = Stats::default();
    for attribute in attributes(body) {
        let attribute = attribute?;
        match attribute.kind {
            KEY => key = Some(attribute.value),
            MASK => mask = Some(attribute.value),
            ACTIONS => does = Some(attribute.value),
            STATS => {
                let [packets, bytes] = halves(attribute.array("a flow's counters")?);
                (stats.packets, stats.bytes) = (packets, bytes);
            }
            TCP_FLAGS => {
                let [flags] = attribute.array("a flow's TCP flags")?;
                stats.flags = TcpFlags(flags.into());
            }
            USED => {
                let used = i64::from_ne_bytes(attribute.array("when a flow was used")?);
                stats.used = Some(now() - used);
            }
            _ => {}
        }
    }
    Ok(Flow {
        ufid,
        keys: keys(key.ok_or(DecodeError::Missing { what: "key" })?, mask)?,
        stats,
        offloaded: None,
        // As OVS says of what it has from its kernel module.
        layer: Some("ovs".into()),
        actions: actions(does.ok_or(DecodeError::Missing { what: "list of actions" })?)?,
        extra: None,
    })
}

/// Two numbers in the machine's order.
fn halves(bytes: [u8; 16]) -> [u64; 2] {
    let both = u128::from_le_bytes(bytes);
    [both as u64, (both >> 64) as u64].map(u64::from_le)
}

/// The clock that the kernel tells by, in ms.
fn now() -> i64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| now.tv_sec() * 1000 + now.tv_nsec() / 1_000_000)
}
