//! The buffers of a ring: one for each slot, at addresses that never change.

use std::ptr::NonNull;
use std::sync::Arc;

use ringspan_testkit::guest::Memory;

use super::LINE;

/// Bytes from one packet buffer of a DPDK guest to the next: 64 of the pool's object, 128 of `rte_mbuf`, 128 of headroom and 2048 for the frame
/// (`RTE_MBUF_DEFAULT_BUF_SIZE`).
const APART: usize = 64 + 128 + 128 + 2048;

/// Buffers of equal room, in an order without a pattern: the allocator of a guest that has run for a while does not hand out neighbours in a row, so the
/// processor's prefetcher must not be able to guess the next one. With equal steps a sixth of the lines that a back-end had asked for was gone when it copied
/// them, always at the same places of a page: the prefetcher of the generator, which writes right behind it, is the likely reason.
#[derive(Debug, Clone)]
pub struct Slots {
    memory: Arc<Memory>,
    /// First byte of each slot's buffer.
    pointers: Box<[NonNull<u8>]>,
    /// First byte of all.
    start: NonNull<u8>,
    /// The same for the guest.
    guest: u64,
}

// SAFETY: addresses into memory that is held; who uses it keeps to the rules of `driver`.
unsafe impl Send for Slots {}

impl Slots {
    /// Buffers of at least `room` bytes for a ring of `size`, a power of two.
    pub fn new(memory: &Arc<Memory>, size: u16, room: usize) -> anyhow::Result<Self> {
        let stride = Self::stride(room);
        let piece = memory.allocate(stride * usize::from(size), LINE)?;
        // SAFETY: each place is below `size`, and the piece has that many strides.
        let pointers = order(size).into_iter().map(|place| unsafe { piece.start.add(place * stride) }).collect();
        Ok(Self { memory: Arc::clone(memory), pointers, start: piece.start, guest: piece.guest })
    }

    /// Bytes from one buffer to the next: an odd number of lines spreads the buffers over all sets of the caches.
    pub fn stride(room: usize) -> usize {
        (room.max(APART).div_ceil(LINE) | 1) * LINE
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
        self.guest + (self.pointers[usize::from(slot)].addr().get() - self.start.addr().get()) as u64
    }

    /// The memory that they are in.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }
}

/// Each place below `size` once, shuffled, the same in every run: by Fisher and Yates, with the numbers of xorshift64.
fn order(size: u16) -> Vec<usize> {
    let mut order: Vec<usize> = (0..size.into()).collect();
    let mut number = 0x9e37_79b9_7f4a_7c15_u64;
    for at in (1..order.len()).rev() {
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        order.swap(at, (number % (at as u64 + 1)) as usize);
    }
    order
}
