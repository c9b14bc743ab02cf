//! Frames on their way from a device queue to a guest's ring.

use crate::nic::Burst;
use crate::ring::FrameSource;

/// A burst as the ring wants to see it.
pub struct Frames<'a>(pub(super) &'a Burst);

impl Frames<'_> {
    /// Bytes of all frames together.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|frame| frame.len() as u64).sum()
    }
}

// SAFETY: the burst owns its frames and does not change while it is borrowed; DPDK keeps a frame's length equal to the sum
// of its segments' (rte_mbuf, Programmer's Guide), and a buffer of a pool is never guest memory.
unsafe impl FrameSource for Frames<'_> {
    #[inline]
    fn count(&self) -> usize {
        self.0.len()
    }

    #[inline]
    fn frame_len(&self, index: usize) -> usize {
        self.0.frame(index).len()
    }

    #[inline]
    fn segments(&self, index: usize) -> impl Iterator<Item = (*const u8, usize)> {
        self.0.frame(index).segments().map(|segment| (segment.as_ptr(), segment.len()))
    }
}
