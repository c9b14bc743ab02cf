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
    /// First byte of each slot's buffer.
    pointers: Box<[NonNull<u8>]>,
    guest: u64,
    stride: usize,
}

// SAFETY: addresses into memory that is held; who uses it keeps to the rules of `driver`.
unsafe impl Send for Slots {}

impl Slots {
    /// Buffers of at least `room` bytes for a ring of `size`, a power of two.
    pub fn new(memory: &Arc<Memory>, size: u16, room: usize) -> anyhow::Result<Self> {
        // An odd number of lines from one to the next spreads the buffers over all sets of the caches.
        let stride = Self::stride(room);
        let piece = memory.allocate(stride * usize::from(size), LINE)?;
        let offset = |slot| Self::offset(slot, size, stride);
        // SAFETY: each offset is below stride * size, the length of the piece.
        let pointers = (0..size).map(|slot| unsafe { piece.start.add(offset(slot)) }).collect();
        Ok(Self { memory: Arc::clone(memory), pointers, guest: piece.guest, stride })
    }

    /// Bytes from one buffer to the next.
    pub fn stride(room: usize) -> usize {
        (room.div_ceil(LINE) | 1) * LINE
    }

    fn offset(slot: u16, size: u16, stride: usize) -> usize {
        // Odd, so it is a permutation; about the golden ratio of 1024, so neighbours are far from each other.
        const SCATTER: usize = 633;
        (usize::from(slot).wrapping_mul(SCATTER) & (usize::from(size) - 1)) * stride
    }

    /// First bytes of the buffers of `count` slots from `first` on, no more than there are, each on a cache line of its own: up to the last
    /// slot, and from slot 0 on.
    #[inline(always)]
    pub fn pieces(&self, first: u16, count: u16) -> [&[NonNull<u8>]; 2] {
        let (before, after) = self.pointers.split_at(usize::from(first));
        let (count, here) = (usize::from(count), after.len().min(count.into()));
        [&after[..here], &before[..count - here]]
    }

    /// First byte of a slot's buffer.
    #[inline(always)]
    pub fn pointer(&self, slot: u16) -> *mut u8 {
        self.pointers[usize::from(slot)].as_ptr()
    }

    /// The same for the guest.
    pub fn guest(&self, slot: u16) -> u64 {
        self.guest + Self::offset(slot, self.pointers.len() as u16, self.stride) as u64
    }

    /// The memory that they are in.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }
}
