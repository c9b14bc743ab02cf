//! Frames on their way from a guest's ring to a device queue.

use std::ptr::NonNull;
use std::time::{Duration, Instant};

use ringspan_protocol::Drops;

use crate::nic::{Blanks, Burst, Pool, TxQueue};
use crate::ring::{FrameSink, NetHeader};
use crate::stats::QueueCells;

/// How long a frame waits for a device that takes nothing before it is dropped.
const PATIENCE: Duration = Duration::from_millis(1);
/// How long the last frames are offered when their ring or queue goes away. The worker's other ports wait meanwhile, and a
/// guest may stop rings as often as it likes.
pub(super) const FAREWELL: Duration = Duration::from_micros(100);

/// A burst of free buffers to copy into: one for all pairs of a port, or a guest that sent from many of them would leave so
/// many buffers lying about that a device of few queues has none left.
pub struct Spare(Blanks);

impl Spare {
    pub(super) fn new() -> Self {
        Self(Blanks::new())
    }

    /// Sees to a burst of free buffers. With fewer, frames are dropped and counted when there is no buffer for them.
    #[inline]
    pub(super) fn refill(&mut self, pool: &Pool) {
        self.0.refill(pool);
    }
}

/// The frames that the device has not taken yet.
pub struct Outbox {
    ready: Burst,
    /// Bytes in `ready`.
    bytes: u64,
    stuck: Option<Instant>,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self { ready: Burst::new(), bytes: 0, stuck: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    /// What a ring was drained into is ready to be sent. Only when the outbox is empty.
    pub(super) fn close(&mut self, spare: &mut Spare, frames: usize, bytes: u64) {
        debug_assert_eq!(frames, spare.0.frames());
        spare.0.take(&mut self.ready);
        self.bytes += bytes;
    }

    /// Offers the frames to the device. What it does not take stays, for [`PATIENCE`] at most. Returns how many are gone.
    pub(super) fn flush(&mut self, queue: &mut TxQueue, counters: &QueueCells) -> usize {
        if self.ready.is_empty() {
            return 0;
        }
        let sent = self.offer(queue, counters);
        if sent > 0 {
            self.stuck = None;
            return sent;
        }
        let now = Instant::now();
        if now.duration_since(*self.stuck.get_or_insert(now)) < PATIENCE {
            return 0;
        }
        self.abandon(counters)
    }

    fn offer(&mut self, queue: &mut TxQueue, counters: &QueueCells) -> usize {
        let sent = queue.send(&mut self.ready);
        let left = self.ready.iter().map(|frame| frame.len() as u64).sum();
        counters.sent(sent as u64, self.bytes - left);
        self.bytes = left;
        sent
    }

    /// Offers the frames until then and drops what is not taken: the queue or the ring goes away.
    pub(super) fn finish(&mut self, queue: &mut TxQueue, counters: &QueueCells, until: Instant) {
        while !self.ready.is_empty() {
            if self.offer(queue, counters) == 0 && Instant::now() >= until {
                break;
            }
        }
        self.abandon(counters);
    }

    /// Drops what the device did not take. Returns how many that were.
    pub(super) fn abandon(&mut self, counters: &QueueCells) -> usize {
        let dropped = self.ready.len();
        counters.dropped(&Drops { nic_full: dropped as u64, ..Drops::default() });
        self.ready.clear();
        self.bytes = 0;
        self.stuck = None;
        dropped
    }

    /// Lets go of the pool, which is about to go. Only when the outbox is empty.
    pub(super) fn release(&mut self) {
        self.ready = Burst::new();
    }
}

// SAFETY: each call hands out the buffer of another frame, which has room for `len` bytes, belongs to the port until it is
// sent, and is packet memory, never guest memory.
unsafe impl FrameSink for Spare {
    const HEADERS: bool = false;

    #[inline(always)]
    fn frame(&mut self, _header: &NetHeader, len: usize) -> Option<NonNull<u8>> {
        self.0.frame(len)
    }
}
