//! What a port of DPDK's net_ring is the end of.

use std::sync::Arc;

use super::wake::Bell;
use super::{patch, soft};

/// The rings under a port, and what wakes who receives from them.
#[derive(Debug)]
pub(super) enum RingEnd {
    /// One end of a cable.
    Patch(patch::End),
    /// A VF of a software NIC.
    Soft(soft::End),
}

impl RingEnd {
    /// What wakes who receives on this end.
    pub fn hears(&self, queue: u16) -> Option<&Arc<Bell>> {
        match self {
            Self::Patch(end) => end.hears(queue),
            Self::Soft(end) => end.hears(queue),
        }
    }

    /// What wakes who receives on the other end.
    pub fn rings(&self, queue: u16) -> Option<&Arc<Bell>> {
        match self {
            Self::Patch(end) => end.rings(queue),
            Self::Soft(end) => Some(end.rings()),
        }
    }
}
