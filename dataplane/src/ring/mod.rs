//! Virtio rings, device side, written for bursts. Knows nothing of DPDK, so that it can be tested alone.

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
