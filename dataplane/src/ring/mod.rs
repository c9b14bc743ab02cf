//! Virtio rings, device side, written for bursts. Knows nothing of DPDK, so that it can be tested alone.
//!
//! A burst goes through the ring in phases, and each phase touches the memory of the whole burst: one load of the
//! guest's index, heads, descriptors, addresses, payloads (prefetched, then copied), one store that publishes what was
//! used, one decision to notify.
//!
//! - [`Ring`] is what others use: a ring of the kind that was negotiated, told apart once a burst.
//! - `queue` is a ring of either kind; `take` and `put` are its two halves and mirror each other. What differs between the kinds
//!   is behind `format`, and the loops are made anew for each kind and each combination of features.
//! - [`SplitRing`] is VIRTIO 1.2 section 2.7, [`PackedRing`] is section 2.8.
//! - [`FrameSink`] and [`FrameSource`] are where frames go to and come from: packet buffers, whatever they are.
//! - [`RingError`] says what a guest did that stops its port; everything else that is wrong costs one frame.
//!
//! # What is unsafe here, and why it holds
//!
//! Guest memory is shared with a guest that writes there at any time, on purpose or not. So there is never a reference
//! to it, only raw pointers that [`GuestMap`](crate::memory::GuestMap) gave out for a range inside a mapping; the indices
//! and flags are accessed as atomics, everything else by volatile reads; each field is read once into a local, and
//! only the local is checked and used. Payload is copied as bytes; what it holds decides nothing here.

mod ahead;
mod call;
mod chain;
mod copy;
mod debts;
mod descriptor;
mod dispatch;
mod error;
mod format;
mod frames;
mod header;
mod log;
mod packed;
mod pair;
mod put;
mod queue;
mod record;
mod split;
mod take;
#[cfg(test)]
mod tests;
mod window;

pub use dispatch::Ring;
pub use error::RingError;
pub use frames::{FrameSink, FrameSource, LargeFrame, Loan, Put, Taken};
pub use header::NetHeader;
pub use log::RingLog;
pub use packed::starts_at as packed_starts_at;
pub use record::{RecordHandle, RingRecord, RingRecords};

/// A split virtqueue (VIRTIO 1.2 section 2.7).
pub type SplitRing = queue::Queue<split::Split>;
/// A packed virtqueue (VIRTIO 1.2 section 2.8).
pub type PackedRing = queue::Queue<packed::Packed>;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vm_memory::GuestAddress;

use crate::offload::Offloads;

/// What the front-end said of a ring by the time it is started.
#[derive(Debug, Clone)]
pub struct RingConfig {
    /// Descriptors, a power of two up to 32768.
    pub size: u16,
    /// Descriptor table; the descriptor ring of a packed one.
    pub desc: GuestAddress,
    /// Available ring; the driver's event suppression structure of a packed one.
    pub avail: GuestAddress,
    /// Used ring; the device's event suppression structure of a packed one.
    pub used: GuestAddress,
    /// Where to go on, as SET_VRING_BASE said. Of a split ring, the next available index. Of a packed ring, the next slot in
    /// bits 0-14 and the wrap counter in bit 15, of what is available and (bits 16-31, where the front-end knows it) of what is
    /// used.
    pub base: u32,
    /// Where the ring stood when it was stopped on this connection, in the lower half's terms; or the lower half itself, when the
    /// front-end has named another base since. `None` when the ring starts for the first time: what the front-end knows may
    /// then be from before a crash of ours.
    pub resume: Option<u16>,
    /// Where a packed ring's position outlives the process; `None`: nowhere.
    pub record: Option<RecordHandle>,
    /// Which file the ring lies in ([`crate::memory::GuestMap::file_at`]); 0 where that is not known. A guest that was restored from an image is
    /// another one with the same addresses.
    pub memory: u64,
    /// What was negotiated.
    pub features: RingFeatures,
    /// Signalled by the guest when buffers are available; absent when the front-end polls.
    pub kick: Option<Arc<OwnedFd>>,
    /// Signalled by us when buffers were used; absent when the guest polls.
    pub call: Option<Arc<OwnedFd>>,
    /// Where what is written is noted, while the guest is migrated. The ring then notes first that all of its own parts that a device
    /// writes are dirty: a process before us may have died between a write and its mark.
    pub log: Option<RingLog>,
}

impl RingConfig {
    /// Where a packed ring stands of which nobody knows that: a slot that no ring of up to 16384 descriptors has. A front-end that was told it and names it
    /// again (a guest that was paused, or migrated) is refused, and one whose driver has started anew names the first place.
    pub const NOWHERE: u16 = 0x7fff;

    /// Whether nobody knows where the ring stands. A split ring says so itself.
    pub fn is_lost(&self) -> bool {
        self.features.packed && self.position() == Self::NOWHERE
    }

    /// Where the ring goes on by what was said, in the terms of the lower half of [`RingConfig::base`].
    pub fn position(&self) -> u16 {
        self.resume.unwrap_or(self.base as u16)
    }
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
    /// VIRTIO_F_RING_PACKED.
    pub packed: bool,
    /// VIRTIO_F_IN_ORDER.
    pub in_order: bool,
    /// VIRTIO_F_VERSION_1: the virtio-net header has 12 bytes then, and 10 without it and without `mergeable`.
    pub version_1: bool,
    /// What guest and device leave to each other. The ring does not look at it; who fills and drains it does.
    pub offloads: Offloads,
}

impl RingFeatures {
    /// Bytes of the virtio-net header that goes before each frame (VIRTIO 1.2 section 5.1.6, and 5.1.6.1 for legacy).
    pub const fn header_len(self) -> usize {
        if self.mergeable || self.version_1 { NetHeader::LEN } else { NetHeader::LEGACY_LEN }
    }
}
