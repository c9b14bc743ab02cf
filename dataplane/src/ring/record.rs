//! What must outlive the process so that a packed ring can go on: see docs/decisions/0006-packed-position.md.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::RingConfig;

/// How far a packed ring is, in memory that outlives the process. All zeroes is a valid record: of no ring.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct RingRecord {
    /// The burst that is being given back: its first position in bits 0-15, the one behind it in bits 16-31, and [`KNOWN`].
    progress: AtomicU64,
    /// Whose life it is: where the parts are, the base that the front-end named, and the size.
    parts: [AtomicU64; 3],
    named: AtomicU64,
    /// Where what was taken ends while chains of it are not given back, and [`KNOWN`]; of either kind of ring.
    taken: AtomicU64,
    /// In which file the parts are; zero: not known. Last, where records of before it was kept have zeros: what is new goes behind it, or the
    /// journal is of another layout.
    memory: AtomicU64,
}

const KNOWN: u64 = 1 << 63;

impl RingRecord {
    /// Whether this is the life of that ring: the same places in the same guest memory, and begun at the same base.
    pub(super) fn describes(&self, config: &RingConfig) -> bool {
        self.is_at(config) && self.named.load(Ordering::Relaxed) == life(config).1
    }

    /// Whether it is of a ring at the same places. Addresses and bases of a guest that was restored from an image are those of the one before:
    /// its memory is another file.
    fn is_at(&self, config: &RingConfig) -> bool {
        let (parts, _) = life(config);
        let memory = self.memory.load(Ordering::Relaxed);
        let same = memory == config.memory || memory == 0 || config.memory == 0;
        same && self.parts.iter().zip(parts).all(|(cell, part)| cell.load(Ordering::Relaxed) == part)
    }

    /// The last burst: where it begins, and where it ends. Nothing is known of what is behind.
    pub(super) fn progress(&self) -> Option<(u16, u16)> {
        let word = self.progress.load(Ordering::Acquire);
        (word & KNOWN != 0).then_some((word as u16, (word >> 16) as u16))
    }

    /// The ring runs from `position` on. Killed at any point of this, the record is of the ring before, or of none: then the
    /// front-end has just named the base.
    pub(super) fn begin(&self, config: &RingConfig, position: u16) {
        if !self.describes(config) {
            cut();
            self.progress.store(0, Ordering::Release);
            let (parts, named) = life(config);
            for (cell, part) in self.parts.iter().zip(parts) {
                cut();
                cell.store(part, Ordering::Release);
            }
            cut();
            self.memory.store(config.memory, Ordering::Release);
            cut();
            self.named.store(named, Ordering::Release);
        }
        self.advance(position, position);
    }

    /// The front-end was told where the ring stands: what it says next is newer than the record. (The guest may have been elsewhere
    /// meanwhile, by a migration there and back, and come back to the base that the record knows.)
    pub fn forget(&self) {
        self.progress.store(0, Ordering::Release);
    }

    /// Chains up to `position` were taken and are not all given back: what is sent of them may not be sent again.
    #[inline]
    pub(super) fn took(&self, position: u16) {
        self.taken.store(KNOWN | u64::from(position), Ordering::Release);
    }

    /// All that was taken is given back.
    #[inline]
    pub(super) fn settled(&self) {
        self.taken.store(0, Ordering::Release);
    }

    /// Where what was taken ends, if chains of the ring with these parts were not given back when a process was killed.
    pub(super) fn left_over(&self, config: &RingConfig) -> Option<u16> {
        let word = self.taken.load(Ordering::Acquire);
        (self.is_at(config) && word & KNOWN != 0).then_some(word as u16)
    }

    /// A ring with these parts may have chains that are not given back.
    pub(super) fn lends(&self, config: &RingConfig) {
        let (parts, _) = life(config);
        for (cell, part) in self.parts.iter().zip(parts) {
            cell.store(part, Ordering::Relaxed);
        }
        self.memory.store(config.memory, Ordering::Relaxed);
    }

    /// What is `from` there up to `to` is given back next.
    #[inline(always)]
    pub(super) fn advance(&self, from: u16, to: u16) {
        cut();
        self.progress.store(KNOWN | u64::from(from) | u64::from(to) << 16, Ordering::Release);
    }
}

fn life(config: &RingConfig) -> ([u64; 3], u64) {
    let parts = [config.desc.0, config.avail.0, config.used.0];
    (parts, u64::from(config.base) | u64::from(config.size) << 32)
}

/// Where a port's ring records are.
pub trait RingRecords: Send + Sync {
    /// The record of ring `index`.
    fn record(&self, index: usize) -> &RingRecord;
}

/// One record, and what keeps it.
#[derive(Clone)]
pub struct RecordHandle {
    of: Arc<dyn RingRecords>,
    index: usize,
}

impl RecordHandle {
    /// The record of ring `index`.
    pub fn new(of: Arc<dyn RingRecords>, index: usize) -> Self {
        Self { of, index }
    }

    /// A record that ends with the process.
    pub(super) fn fleeting() -> Self {
        Self::new(Arc::new(RingRecord::default()), 0)
    }

    /// See [`RingRecord::forget`].
    pub fn forget(&self) {
        self.get().forget();
    }

    #[inline]
    pub(super) fn get(&self) -> &RingRecord {
        self.of.record(self.index)
    }
}

impl RingRecords for RingRecord {
    fn record(&self, _: usize) -> &RingRecord {
        self
    }
}

impl fmt::Debug for RecordHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RecordHandle").field(&self.index).finish()
    }
}

/// Where a test may kill the process.
#[inline(always)]
fn cut() {
    #[cfg(test)]
    crate::ring::tests::cut();
}
