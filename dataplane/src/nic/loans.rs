//! Frames that a device reads where the guest wrote them: see docs/decisions/0010-zero-copy.md.
//!
//! A loan is a record at a fixed place that the frame's buffer points to; whoever frees the buffer, in whatever thread, clears
//! its flag there. So the records of a ring, and the guest memory that their frames lie in, stay until all flags are clear: when
//! their owner goes before, they are kept aside until then.

use std::cell::UnsafeCell;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dpdk_sys as sys;

use super::blanks::Blanks;
use super::lending::Mapping;
use crate::memory::GuestMap;

/// Guest memory that devices may read. While it lives, the memory is mapped, for the device's DMA too.
pub struct LentMemory {
    /// Dropped first: nothing is read by DMA afterwards.
    _dma: Option<Mapping>,
    _map: Arc<GuestMap>,
}

/// A ring's loans.
pub struct Loans {
    records: Box<[UnsafeCell<sys::shim_loan>]>,
    /// Those that are not away.
    free: Vec<u16>,
    /// What the frames lie in.
    memory: Arc<LentMemory>,
}

// SAFETY: the records are reached by the owner, and their flags by whoever frees a frame, as atomics.
unsafe impl Send for Loans {}

impl LentMemory {
    /// `map`, with what makes it readable by DMA where that is needed.
    pub(super) fn new(map: Arc<GuestMap>, dma: Option<Mapping>) -> Arc<Self> {
        Arc::new(Self { _dma: dma, _map: map })
    }
}

impl fmt::Debug for LentMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LentMemory")
    }
}

impl Loans {
    /// Room for `count` frames of `memory` at once.
    pub fn new(memory: Arc<LentMemory>, count: u16) -> Self {
        // SAFETY: a plain C structure, for which all zeroes are a valid value.
        let record = || UnsafeCell::new(unsafe { std::mem::zeroed() });
        let records = std::iter::repeat_with(record).take(count.into()).collect();
        Self { records, free: (0..count).rev().collect(), memory }
    }

    /// The memory that frames are lent of.
    pub fn memory(&self) -> &Arc<LentMemory> {
        &self.memory
    }

    /// Frames that are away.
    pub fn away(&self) -> usize {
        self.records.len() - self.free.len()
    }

    /// Makes the next of `blanks` the frame of `len` bytes at `start`. Returns its number, or `None` when there is no buffer, or
    /// the frame is too long, or too many are away.
    ///
    /// # Safety
    /// The bytes are inside [`Loans::memory`].
    #[inline]
    pub unsafe fn lend(&mut self, blanks: &mut Blanks, start: NonNull<u8>, len: usize) -> Option<u16> {
        let (&number, len) = (self.free.last()?, u16::try_from(len).ok()?);
        let record = self.records.get(usize::from(number))?.get();
        // SAFETY: the bytes are in memory that stays, with the records, until this loan is back: see `drop`.
        if !unsafe { blanks.lend(start, len, record) } {
            return None;
        }
        self.free.pop();
        Some(number)
    }

    /// Whether nobody reads that frame any more. Once it was true the number is free.
    #[inline]
    pub fn is_back(&mut self, number: u16) -> bool {
        let Some(record) = self.records.get(usize::from(number)) else { return true };
        if is_away(record) {
            return false;
        }
        self.free.push(number);
        true
    }
}

/// What the frame's last reader did is done when this says no.
fn is_away(record: &UnsafeCell<sys::shim_loan>) -> bool {
    // SAFETY: inside a record that lives; while others may reach it, it is written as an atomic only.
    unsafe { AtomicU32::from_ptr(&raw mut (*record.get()).away) }.load(Ordering::Acquire) != 0
}

/// Loans whose ring is gone, of which a device still holds some.
static LEFT: Mutex<Vec<Loans>> = Mutex::new(Vec::new());
/// Whether there are such. Written under the lock.
static ANY_LEFT: AtomicBool = AtomicBool::new(false);

/// Whether a device may still have frames of a ring that is gone, whose memory waits for them.
#[inline]
pub fn some_left() -> bool {
    ANY_LEFT.load(Ordering::Relaxed)
}

/// Lets go of the memory of which nothing is away any more. Unmapping takes long: not for workers.
pub fn sweep() {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    let done: Vec<_> = left.extract_if(.., |loans| !loans.records.iter().any(is_away)).collect();
    ANY_LEFT.store(!left.is_empty(), Ordering::Relaxed);
    drop(left);
    drop(done);
}

impl Drop for Loans {
    fn drop(&mut self) {
        if self.records.iter().any(is_away) {
            let memory = Arc::clone(&self.memory);
            let (records, free) = (std::mem::take(&mut self.records), std::mem::take(&mut self.free));
            let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
            left.push(Self { records, free, memory });
            ANY_LEFT.store(true, Ordering::Relaxed);
        }
    }
}
