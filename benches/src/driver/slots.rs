//! The buffers of a ring: one for each slot, at addresses that never change.

use std::ptr::NonNull;
use std::sync::Arc;

use ringspan_testkit::guest::Memory;

use super::LINE;

/// Buffers of equal room, in scattered order: a guest's allocator does not hand out neighbours in a row, so the processor's
/// prefetcher must not be able to guess the next one.
#[derive(Debug, Clone)]
pub struct Slots {
    memory: Arc<Memory>,
    start: NonNull<u8>,
    guest: u64,
    stride: usize,
    scatter: usize,
    mask: usize,
}

// SAFETY: an address into memory that is held; who uses it keeps to the rules of `driver`.
unsafe impl Send for Slots {}

impl Slots {
    /// Buffers of at least `room` bytes for a ring of `size`, a power of two.
    pub fn new(memory: &Arc<Memory>, size: u16, room: usize) -> anyhow::Result<Self> {
        // An odd number of lines from one to the next spreads the buffers over all sets of the caches.
        let stride = Self::stride(room);
        let piece = memory.allocate(stride * usize::from(size), LINE)?;
        Ok(Self {
            memory: Arc::clone(memory),
            start: piece.start,
            guest: piece.guest,
            stride,
            // Odd, so it is a permutation; about the golden ratio of 1024, so neighbours are far from each other.
            scatter: 633,
            mask: usize::from(size) - 1,
        })
    }

    /// Bytes from one buffer to the next.
    pub fn stride(room: usize) -> usize {
        (room.div_ceil(LINE) | 1) * LINE
    }

    #[inline(always)]
    fn offset(&self, slot: usize) -> usize {
        (slot.wrapping_mul(self.scatter) & self.mask) * self.stride
    }

    /// First byte of a slot's buffer, on a cache line of its own.
    #[inline(always)]
    pub fn pointer(&self, slot: usize) -> *mut u8 {
        // SAFETY: the offset is below stride * size, the length of the piece.
        unsafe { self.start.as_ptr().add(self.offset(slot)) }
    }

    /// The same for the guest.
    pub fn guest(&self, slot: u16) -> u64 {
        self.guest + self.offset(usize::from(slot)) as u64
    }

    /// The memory that they are in.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }
}
