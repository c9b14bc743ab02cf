//! A queue's buffers in guest memory, and what a queue counts.
//!
//! # Invariants
//! Buffers stay mapped as long as the memory that they were taken from; queues hold it through their ring. While a buffer is
//! with the back-end the driver does not read or write it; the back-end may do as it likes at any time, so buffers are
//! copied from and to, never referred to.

use super::memory::{Memory, Piece};

/// Most used elements that are taken from a ring at once.
pub(super) const BATCH: usize = 256;
/// Step from one buffer to the next in use; a prime, so that it visits each of any number that it does not divide.
const SCATTER: usize = 397;

/// A queue's buffers, the free ones in the order in which they came back.
#[derive(Debug)]
pub(super) struct Buffers {
    pieces: Vec<Piece>,
    free: Box<[u16]>,
    first_free: usize,
    count_free: usize,
    with_device: Box<[bool]>,
}

impl Buffers {
    /// So many buffers of `room` bytes.
    pub fn new(memory: &Memory, count: u16, room: usize) -> anyhow::Result<Self> {
        // An odd number of cache lines from one buffer to the next, so that they do not all fall into the same sets.
        let stride = (room.div_ceil(64) | 1) * 64;
        let pieces = (0..count).map(|_| memory.allocate(stride, 64)).collect::<anyhow::Result<Vec<_>>>()?;
        // Used in scattered order, as a real driver's are. In order of their addresses, the back-end's processor would
        // fetch ahead into buffers that are just being written, and both sides would wait for these lines.
        let step = if pieces.len() % SCATTER == 0 { 1 } else { SCATTER };
        let pieces = (0..pieces.len()).map(|i| pieces[(i * step) % pieces.len()]).collect();
        let free = (0..count).collect();
        let with_device = vec![false; usize::from(count)].into();
        Ok(Self { pieces, free, first_free: 0, count_free: usize::from(count), with_device })
    }

    /// Buffers in all.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Buffers that are not with the back-end.
    pub fn free(&self) -> usize {
        self.count_free
    }

    /// Where a buffer is.
    #[inline]
    pub fn piece(&self, buffer: u16) -> Piece {
        self.pieces[usize::from(buffer)]
    }

    /// Those that are with the back-end.
    pub fn lent(&self) -> impl Iterator<Item = Piece> {
        self.pieces.iter().zip(&self.with_device).filter(|(_, lent)| **lent).map(|(piece, _)| *piece)
    }

    /// Takes a free buffer, of which there must be one, to be given to the back-end.
    #[inline]
    pub fn lend(&mut self) -> u16 {
        debug_assert!(self.count_free > 0);
        let buffer = self.free[self.first_free];
        self.first_free = if self.first_free + 1 == self.free.len() { 0 } else { self.first_free + 1 };
        self.count_free -= 1;
        self.with_device[usize::from(buffer)] = true;
        buffer
    }

    /// The buffer that is lent `ahead` of the next one.
    #[inline]
    pub fn next(&self, ahead: usize) -> u16 {
        let at = self.first_free + ahead;
        self.free[if at >= self.free.len() { at - self.free.len() } else { at }]
    }

    /// Takes back what a used element names; none when that was not lent.
    #[inline]
    pub fn give_back(&mut self, id: u32) -> Option<Piece> {
        let lent = self.with_device.get_mut(id as usize)?;
        if !std::mem::replace(lent, false) {
            return None;
        }
        let buffer = id as u16;
        let mut last = self.first_free + self.count_free;
        if last >= self.free.len() {
            last -= self.free.len();
        }
        self.free[last] = buffer;
        self.count_free += 1;
        Some(self.pieces[usize::from(buffer)])
    }
}

/// Fetches a cache line that will be written.
#[inline]
pub(super) fn prefetch_write(line: *const u8) {
    // SAFETY: a hint; it does not fault and changes nothing that a program can see.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Fetches a cache line that will be read.
#[inline]
pub(super) fn prefetch_read(line: *const u8) {
    // SAFETY: as above.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// What a queue counted, in frames of Ethernet without their check sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Frames given to the back-end, or taken from it.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Used elements that the back-end gave back.
    pub used: u64,
    /// Used elements that no correct back-end writes: unknown or not lent, a bad length, a header that was not agreed on, a
    /// frame in more buffers than were returned with it.
    pub wrong: u64,
    /// Used elements of length 0 in a receive ring: no frame, which a driver counts as short and passes over. A back-end that starts again
    /// after a crash gives buffers back like that.
    pub empty: u64,
    /// Frames whose `num_buffers` was not 1 although buffers are not mergeable. Virtio 1.2, 5.1.6.4.1 wants 1, drivers
    /// ignore it, and DPDK's vhost library leaves 0.
    pub uncounted: u64,
}
