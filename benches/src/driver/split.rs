//! The driver's side of a split ring, lean. Virtio 1.2, section 2.7.
//!
//! # Invariants
//! The three tables are as long as `size` asks for and stay mapped with `memory`; slots are masked before they become an address.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::ensure;
use ringspan_testkit::guest::Memory;
use ringspan_testkit::guest::ring::{Descriptor, Used};

use super::{Chain, Ring};

/// In `avail.flags`: no interrupts, please.
const NO_INTERRUPT: u16 = 1;
/// In `used.flags`: no kicks, please.
const NO_NOTIFY: u16 = 1;

/// A split ring whose avail entry, descriptor and buffer have the same number.
#[derive(Debug)]
pub struct SplitRing {
    _memory: Arc<Memory>,
    size: u16,
    event_idx: bool,
    desc: NonNull<Descriptor>,
    avail: NonNull<u16>,
    used: NonNull<u16>,
    offered: u16,
    taken: u16,
    /// Pending slots, as of the last look.
    seen: u16,
    batches: bool,
}

// SAFETY: the pointers go into `memory`, which is held; a ring has one user at a time.
unsafe impl Send for SplitRing {}

impl SplitRing {
    #[inline(always)]
    fn atomic(&self, table: NonNull<u16>, at: usize) -> &AtomicU16 {
        // SAFETY: callers stay inside of the table; u16 aligned; atomics may be shared with another process.
        unsafe { AtomicU16::from_ptr(table.as_ptr().add(at)) }
    }

    #[inline(always)]
    fn slot(&self, counter: u16) -> usize {
        usize::from(counter & (self.size - 1))
    }

    /// The pieces of `count` slots from a position on that lie in one lap each: first slot, and number.
    #[inline(always)]
    fn laps(&self, position: u16, count: u16) -> [(usize, usize); 2] {
        let (slot, count) = (self.slot(position), usize::from(count));
        let here = count.min(usize::from(self.size) - slot);
        [(slot, here), (0, count - here)]
    }

    #[inline(always)]
    fn element(&self, ahead: u16) -> Used {
        self.element_of(self.slot(self.taken.wrapping_add(ahead)))
    }

    #[inline(always)]
    fn element_of(&self, slot: usize) -> Used {
        // SAFETY: slot < size, elements start 4 bytes into the ring. The device wrote this one before the index that was loaded
        // with Acquire, and does not write it again before its slot is offered again.
        unsafe { self.used.add(2).cast::<Used>().add(slot).read() }
    }
}

impl Ring for SplitRing {
    const PACKED: bool = false;

    fn new(memory: &Arc<Memory>, size: u16, event_idx: bool, chain: impl Fn(u16) -> Chain) -> anyhow::Result<Self> {
        ensure!(size.is_power_of_two(), "a ring of {size} descriptors: not a power of two");
        let n = usize::from(size);
        let desc = memory.allocate(16 * n, 4096)?;
        let avail = memory.allocate(6 + 2 * n, 4096)?;
        let used = memory.allocate(6 + 8 * n, 4096)?;
        for piece in [desc, avail, used] {
            // SAFETY: the piece is that long.
            unsafe { piece.start.write_bytes(0, piece.size) };
        }
        let (desc, avail, used) = (desc.start.cast::<Descriptor>(), avail.start.cast(), used.start.cast());
        for slot in 0..size {
            let Chain { address, length, flags } = chain(slot);
            // SAFETY: slot < size.
            unsafe { desc.add(usize::from(slot)).write_volatile(Descriptor { address, length, flags, next: 0 }) };
        }
        let ring = Self {
            _memory: Arc::clone(memory),
            size,
            event_idx,
            desc,
            avail,
            used,
            offered: 0,
            taken: 0,
            seen: 0,
            batches: false,
        };
        if event_idx {
            // An index that is reached once in 65536 elements; there is no call descriptor to be signalled anyway.
            ring.atomic(avail, 2 + n).store(u16::MAX, Ordering::Relaxed);
        } else {
            ring.atomic(avail, 0).store(NO_INTERRUPT, Ordering::Relaxed);
        }
        Ok(ring)
    }

    fn user_addresses(&self) -> [u64; 3] {
        [self.desc.as_ptr() as u64, self.avail.as_ptr() as u64, self.used.as_ptr() as u64]
    }

    fn base() -> u32 {
        0
    }

    fn take_batches(&mut self) {
        self.batches = true;
    }

    fn size(&self) -> u16 {
        self.size
    }

    #[inline(always)]
    fn pending(&mut self, _least: u16, _most: u16) -> u16 {
        self.seen = self.atomic(self.used, 1).load(Ordering::Acquire).wrapping_sub(self.taken);
        self.seen
    }

    #[inline(always)]
    fn peek(&mut self, from: u16, count: u16) -> bool {
        // One index tells of all of them, and was looked at just before.
        self.seen >= from.saturating_add(count)
    }

    #[inline(always)]
    fn in_order(&self, count: u16) -> bool {
        if self.batches {
            // From one batch to the next: those in between have no elements.
            let mut ahead = 0;
            while ahead < count {
                let slot = self.slot(self.taken.wrapping_add(ahead)) as u32;
                let more = self.element(ahead).id.wrapping_sub(slot) & u32::from(self.size - 1);
                ahead = ahead.saturating_add(more as u16 + 1);
            }
            return ahead == count;
        }
        let mut wrong = 0;
        for (first, count) in self.laps(self.taken, count) {
            for slot in first..first + count {
                wrong |= self.element_of(slot).id ^ slot as u32;
            }
        }
        wrong == 0
    }

    #[inline(always)]
    fn written(&self, count: u16) -> u64 {
        let mut sum = 0;
        for (first, count) in self.laps(self.taken, count) {
            sum += (first..first + count).map(|slot| u64::from(self.element_of(slot).length)).sum::<u64>();
        }
        sum
    }

    #[inline(always)]
    fn take(&mut self, count: u16) {
        self.taken = self.taken.wrapping_add(count);
        self.seen -= count;
    }

    #[inline(always)]
    fn prepare(&self, _count: u16) {
        // A line of the available ring has 32 entries: three lines at most, which are written one after another.
    }

    #[inline(always)]
    fn offer(&mut self, count: u16) -> bool {
        let old = self.offered;
        for (first, count) in self.laps(old, count) {
            for slot in first..first + count {
                // SAFETY: slot < size; the device does not read this entry before it sees the index below.
                unsafe { self.avail.add(2 + slot).write(slot as u16) };
            }
        }
        self.offered = old.wrapping_add(count);
        self.atomic(self.avail, 1).store(self.offered, Ordering::Release);
        // The index must be visible before the device's wish is read: 2.7.13.4.
        super::full_fence();
        if self.event_idx {
            let event = self.atomic(self.used, 2 + 4 * usize::from(self.size)).load(Ordering::Relaxed);
            self.offered.wrapping_sub(event).wrapping_sub(1) < count
        } else {
            self.atomic(self.used, 0).load(Ordering::Relaxed) & NO_NOTIFY == 0
        }
    }

    #[inline(always)]
    fn first_pending(&self) -> u16 {
        self.taken & (self.size - 1)
    }
}
