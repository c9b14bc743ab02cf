//! Virtio rings, device side, written for bursts. Knows nothing of DPDK, so that it can be tested alone.
//!
//! A burst goes through the ring in phases, and each phase touches the memory of the whole burst: one load of the
//! guest's index, heads, descriptors, addresses, payloads (prefetched, then copied), one store that publishes what was
//! used, one decision to notify.
//!
//! - [`SplitRing`] is VIRTIO 1.2 section 2.7; `take` and `put` are its two halves and mirror each other.
//! - [`FrameSink`] and [`FrameSource`] are where frames go to and come from: packet buffers, whatever they are.
//! - [`RingError`] says what a guest did that stops its port; everything else that is wrong costs one frame.
//!
//! # What is unsafe here, and why it holds
//!
//! Guest memory is shared with a guest that writes there at any time, on purpose or not. So there is never a reference
//! to it, only raw pointers that [`GuestMap`](crate::memory::GuestMap) gave out for a range inside a mapping; the indices
//! and flags are accessed as atomics, everything else by volatile reads; each field is read once into a local, and
//! only the local is checked and used. Payload is copied as bytes; what it holds decides nothing here.

mod call;
mod chain;
mod copy;
mod error;
mod frames;
mod header;
mod layout;
mod put;
mod split;
mod take;
#[cfg(test)]
mod tests;

pub use error::RingError;
pub use frames::{FrameSink, FrameSource, Put, Taken};
pub use header::NetHeader;
pub use split::SplitRing;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vm_memory::GuestAddress;

/// What the front-end said of a ring by the time it is started.
#[derive(Debug, Clone)]
pub struct RingConfig {
    /// Descriptors, a power of two up to 32768.
    pub size: u16,
    /// Descriptor table.
    pub desc: GuestAddress,
    /// Available ring.
    pub avail: GuestAddress,
    /// Used ring.
    pub used: GuestAddress,
    /// Next available index, as SET_VRING_BASE said.
    pub base: u16,
    /// What was negotiated.
    pub features: RingFeatures,
    /// Signalled by the guest when buffers are available; absent when the front-end polls.
    pub kick: Option<Arc<OwnedFd>>,
    /// Signalled by us when buffers were used; absent when the guest polls.
    pub call: Option<Arc<OwnedFd>>,
}

/// Negotiated features that shape a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RingFeatures {
    /// VIRTIO_RING_F_EVENT_IDX.
    pub event_idx: bool,
    /// VIRTIO_RING_F_INDIRECT_DESC.
    pub indirect: bool,
    /// VIRTIO_NET_F_MRG_RXBUF.
    pub mergeable: bool,
    /// VIRTIO_F_VERSION_1: the virtio-net header has 12 bytes then, and 10 without it and without `mergeable`.
    pub version_1: bool,
}

impl RingFeatures {
    /// Bytes of the virtio-net header that goes before each frame (VIRTIO 1.2 section 5.1.6, and 5.1.6.1 for legacy).
    pub const fn header_len(self) -> usize {
        if self.mergeable || self.version_1 { NetHeader::LEN } else { NetHeader::LEGACY_LEN }
    }
}
