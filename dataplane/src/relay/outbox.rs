//! Frames on their way from a guest's ring to a device queue.

use std::ptr::NonNull;
use std::time::{Duration, Instant};

use ringspan_protocol::Drops;

use super::finish::{Asks, Unfinished};
use crate::BURST;
use crate::nic::{Blanks, Burst, Pool, TxQueue};
use crate::offload::{LONGEST, NEEDS_CSUM, Offloads};
use crate::ring::{FrameSink, LargeFrame, NetHeader};
use crate::stats::QueueCells;

/// How long a frame waits for a device that takes nothing before it is dropped.
const PATIENCE: Duration = Duration::from_millis(1);
/// How long the last frames are offered when their ring or queue goes away. The worker's other ports wait meanwhile, and a
/// guest may stop rings as often as it likes.
pub(super) const FAREWELL: Duration = Duration::from_micros(100);

/// A burst of free buffers to copy into: one for all pairs of a port, or a guest that sent from many of them would leave so
/// many buffers lying about that a device of few queues has none left.
pub struct Spare {
    pub(super) blanks: Blanks,
    /// What frames ask for, when they may ask.
    asks: Asks,
    /// Bytes of large frames.
    large: usize,
}

/// A [`Spare`] whose frames may ask for checksums and segments.
pub(super) struct Asking<'a>(pub(super) &'a mut Spare);

/// Most bytes of large frames that are taken from a ring in one go; a single frame may have more.
const MOST_LARGE: usize = 256 << 10;

impl Spare {
    pub(super) fn new() -> Self {
        Self { blanks: Blanks::new(), asks: Asks::with_capacity(BURST), large: 0 }
    }

    /// Sees to a burst of free buffers. With fewer, frames are dropped and counted when there is no buffer for them.
    #[inline]
    pub(super) fn refill(&mut self, pool: &Pool) {
        self.blanks.refill(pool);
        self.large = 0;
        // Empty, unless a ring was found broken.
        self.asks.clear();
    }
}

/// The frames that the device has not taken yet.
pub struct Outbox {
    ready: Burst,
    /// Bytes in `ready`.
    bytes: u64,
    stuck: Option<Instant>,
    /// What comes behind `ready`.
    unfinished: Unfinished,
    /// Which frames in `ready` are the last of what the guest sent as one, by their bits; `None`: all.
    ends: Option<u64>,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self { ready: Burst::new(), bytes: 0, stuck: None, unfinished: Unfinished::new(), ends: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.unfinished.is_empty()
    }

    /// What a ring was drained into is ready to be sent. Only when the outbox is empty.
    pub(super) fn close(&mut self, spare: &mut Spare, frames: usize, bytes: u64) {
        debug_assert_eq!(frames, spare.blanks.frames());
        spare.blanks.take(&mut self.ready);
        self.bytes += bytes;
    }

    /// Does what the guest left to be done to the frames, after [`Outbox::close`]: of it, `allowed` was negotiated, and no frame that
    /// is sent may be longer than `max_frame`.
    #[inline]
    pub(super) fn complete(&mut self, spare: &mut Spare, allowed: Offloads, max_frame: usize, queue: &mut TxQueue) {
        if !spare.asks.is_empty() {
            self.unfinished.begin(&mut self.ready, &mut spare.asks, (allowed, max_frame), queue);
            if !self.unfinished.is_empty() {
                self.bytes = 0;
            }
        }
    }

    /// Makes the next frames ready. Returns how many of the guest's were dropped.
    #[cold]
    fn advance(&mut self, queue: &TxQueue, counters: &QueueCells) -> usize {
        let (ends, dropped) = self.unfinished.next(&mut self.ready, queue.pool(), counters);
        // With all of them dropped nothing is left to count by.
        self.ends = (!self.is_empty()).then_some(ends);
        self.bytes = self.ready.iter().map(|frame| frame.len() as u64).sum();
        dropped
    }

    /// Offers the frames to the device. What it does not take stays, for [`PATIENCE`] at most. Returns how many are gone.
    pub(super) fn flush(&mut self, queue: &mut TxQueue, counters: &QueueCells) -> usize {
        let mut gone = 0;
        if self.ready.is_empty() {
            if self.unfinished.is_empty() {
                return 0;
            }
            gone = self.advance(queue, counters);
            if self.is_empty() {
                return gone;
            }
        }
        let sent = self.offer(queue, counters);
        if sent + gone > 0 {
            self.stuck = None;
            return sent + gone;
        }
        let now = Instant::now();
        if now.duration_since(*self.stuck.get_or_insert(now)) < PATIENCE {
            return 0;
        }
        if self.ready.is_empty() {
            // There are no buffers to cut the next frame into.
            counters.dropped(&Drops { no_buffers: 1, ..Drops::default() });
            self.unfinished.drop_first();
            self.stuck = None;
            return 1;
        }
        self.abandon(counters)
    }

    fn offer(&mut self, queue: &mut TxQueue, counters: &QueueCells) -> usize {
        let sent = queue.send(&mut self.ready);
        let left = self.ready.iter().map(|frame| frame.len() as u64).sum();
        let whole = self.whole(sent);
        counters.sent(whole as u64, self.bytes - left);
        self.bytes = left;
        sent
    }

    /// How many of the guest's frames end in the first `count` of `ready`, which are gone.
    #[inline]
    fn whole(&mut self, count: usize) -> usize {
        let Some(ends) = &mut self.ends else { return count };
        let gone = *ends & 1u64.checked_shl(count as u32).unwrap_or(0).wrapping_sub(1);
        *ends = ends.checked_shr(count as u32).unwrap_or(0);
        if self.ready.is_empty() && self.unfinished.is_empty() {
            self.ends = None;
        }
        gone.count_ones() as usize
    }

    /// Offers the frames until then and drops what is not taken: the queue or the ring goes away. A guest may have left much to be
    /// cut, of which the device takes every bit: so each pass, of a burst at most, looks at the clock.
    pub(super) fn finish(&mut self, queue: &mut TxQueue, counters: &QueueCells, until: Instant) {
        self.finish_while(queue, counters, || Instant::now() < until);
    }

    fn finish_while(&mut self, queue: &mut TxQueue, counters: &QueueCells, mut there_is_time: impl FnMut() -> bool) {
        while !self.is_empty() {
            if self.ready.is_empty() {
                self.advance(queue, counters);
            }
            self.offer(queue, counters);
            if !there_is_time() {
                break;
            }
        }
        self.abandon(counters);
    }

    /// Drops what the device did not take. Returns how many that were.
    pub(super) fn abandon(&mut self, counters: &QueueCells) -> usize {
        let count = self.ready.len();
        self.ready.clear();
        let dropped = self.whole(count) + self.unfinished.abandon();
        self.ends = None;
        counters.dropped(&Drops { nic_full: dropped as u64, ..Drops::default() });
        self.bytes = 0;
        self.stuck = None;
        dropped
    }

    /// Lets go of the pool, which is about to go. Only when the outbox is empty.
    pub(super) fn release(&mut self) {
        self.ready = Burst::new();
        self.unfinished.release();
    }
}

// SAFETY: each call hands out the buffer of another frame, which has room for `len` bytes, belongs to the port until it is
// sent, and is packet memory, never guest memory.
unsafe impl FrameSink for Spare {
    const HEADERS: bool = false;

    #[inline(always)]
    fn frame(&mut self, _header: &NetHeader, len: usize) -> Option<NonNull<u8>> {
        self.blanks.frame(len)
    }

    #[inline(always)]
    unsafe fn several<P>(
        &mut self,
        frames: impl Iterator<Item = (NetHeader, usize, P)>,
        put: impl FnMut(P, usize, NonNull<u8>),
    ) -> usize {
        // SAFETY: the caller's.
        unsafe { self.blanks.several(frames.map(|(_, len, piece)| (len, piece)), put) }
    }
}

#[inline(always)]
fn asks_for_something(header: &NetHeader) -> bool {
    header.flags & NEEDS_CSUM != 0 || header.gso_type != 0
}

impl Asking<'_> {
    #[inline(always)]
    fn note(&mut self, header: &NetHeader) {
        if asks_for_something(header) {
            self.0.asks.push((self.0.blanks.frames() - 1, *header));
        }
    }
}

// SAFETY: as for `Spare`; a large frame gets whole buffers of its own, and the last as far as it needs it.
unsafe impl FrameSink for Asking<'_> {
    #[inline(always)]
    fn frame(&mut self, header: &NetHeader, len: usize) -> Option<NonNull<u8>> {
        let start = self.0.blanks.frame(len)?;
        self.note(header);
        Some(start)
    }

    #[inline(always)]
    unsafe fn several<P>(
        &mut self,
        frames: impl Iterator<Item = (NetHeader, usize, P)>,
        mut put: impl FnMut(P, usize, NonNull<u8>),
    ) -> usize {
        let Spare { blanks, asks, .. } = &mut *self.0;
        let mut place = blanks.frames();
        let put = |(header, piece), len, to| {
            put(piece, len, to);
            if asks_for_something(&header) {
                asks.push((place, header));
            }
            place += 1;
        };
        // SAFETY: the caller's.
        unsafe { blanks.several(frames.map(|(header, len, piece)| (len, (header, piece))), put) }
    }

    fn longest(&self, _max_frame: usize) -> usize {
        LONGEST
    }

    fn large_frame(&mut self, header: &NetHeader, len: usize, pieces: &mut Vec<(NonNull<u8>, usize)>) -> LargeFrame {
        if header.gso_type == 0 {
            return LargeFrame::TooLong;
        }
        if self.0.large > 0 && self.0.large + len > MOST_LARGE {
            return LargeFrame::Later;
        }
        if !self.0.blanks.long_frame(len, pieces) {
            return LargeFrame::NoBuffers;
        }
        self.0.large += len;
        self.note(header);
        LargeFrame::Room
    }
}
