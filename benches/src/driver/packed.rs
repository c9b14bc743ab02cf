//! The driver's side of a packed ring, lean. Virtio 1.2, section 2.8.
//!
//! # Invariants
//! The descriptors and both event structures are as long as `size` asks for and stay mapped with `memory`; slots are masked before
//! they become an address. The second half of a descriptor (length, id, flags) is one atomic, so flags never come before the rest.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};

use anyhow::ensure;
use ringspan_testkit::guest::Memory;

use super::{Chain, Ring};

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// Event flags: no notifications, please; or at a certain descriptor only.
const DISABLE: u16 = 1;
const AT_DESCRIPTOR: u16 = 2;

/// A packed ring whose descriptor and buffer have the same number, which is its id.
#[derive(Debug)]
pub struct PackedRing {
    _memory: Arc<Memory>,
    size: u16,
    /// Two words each: address; length, id and flags.
    desc: NonNull<u64>,
    /// Offset and wrap, then flags: what the driver wants, and what the device wants.
    driver: NonNull<u16>,
    device: NonNull<u16>,
    /// What each slot says, with the wrap bits left out.
    chains: Box<[[u64; 2]]>,
    offered: u16,
    taken: u16,
    /// Pending slots that were looked at.
    seen: u16,
    /// Bit 16 and up of the positions above would be laps: whether the lap is an odd one.
    offered_wrap: bool,
    taken_wrap: bool,
    batches: bool,
}

// SAFETY: the pointers go into `memory`, which is held; a ring has one user at a time.
unsafe impl Send for PackedRing {}

/// A descriptor's flags in a lap: as the driver offers it.
#[inline(always)]
fn available(wrap: bool) -> u64 {
    u64::from(if wrap { AVAIL } else { USED }) << 48
}

impl PackedRing {
    #[inline(always)]
    fn tail(&self, slot: u16) -> &AtomicU64 {
        // SAFETY: callers mask the slot; aligned to 8; atomics may be shared with another process.
        unsafe { AtomicU64::from_ptr(self.desc.as_ptr().add(2 * usize::from(slot) + 1)) }
    }

    /// The slot `ahead` of the first that was not taken, and the wrap bit of its lap.
    #[inline(always)]
    fn ahead(&self, ahead: u16) -> (u16, bool) {
        let at = self.taken + ahead;
        if at >= self.size { (at - self.size, !self.taken_wrap) } else { (at, self.taken_wrap) }
    }

    #[inline(always)]
    fn is_used(&self, ahead: u16) -> bool {
        let (slot, wrap) = self.ahead(ahead);
        let flags = (self.tail(slot).load(Ordering::Acquire) >> 48) as u16 & (AVAIL | USED);
        flags == if wrap { AVAIL | USED } else { 0 }
    }
}

impl Ring for PackedRing {
    const PACKED: bool = true;

    fn new(memory: &Arc<Memory>, size: u16, event_idx: bool, chain: impl Fn(u16) -> Chain) -> anyhow::Result<Self> {
        ensure!(size.is_power_of_two(), "a ring of {size} descriptors: not a power of two");
        let _ = event_idx; // What the device wants is told by its flags.
        let desc = memory.allocate(16 * usize::from(size), 4096)?;
        let driver = memory.allocate(4, 4096)?;
        let device = memory.allocate(4, 4096)?;
        for piece in [desc, driver, device] {
            // SAFETY: the piece is that long.
            unsafe { piece.start.write_bytes(0, piece.size) };
        }
        let chains = (0..size).map(|slot| {
            let Chain { address, length, flags } = chain(slot);
            [address, u64::from(length) | u64::from(slot) << 32 | u64::from(flags) << 48]
        });
        let (desc, driver, device) = (desc.start.cast(), driver.start.cast::<u16>(), device.start.cast());
        // SAFETY: the second half-word of the driver's event structure.
        unsafe { AtomicU16::from_ptr(driver.as_ptr().add(1)) }.store(DISABLE, Ordering::Relaxed);
        let chains = chains.collect();
        let _memory = Arc::clone(memory);
        let (offered, taken, seen, offered_wrap, taken_wrap) = (0, 0, 0, true, true);
        let batches = false;
        Ok(Self {
            _memory,
            size,
            desc,
            driver,
            device,
            chains,
            offered,
            taken,
            seen,
            offered_wrap,
            taken_wrap,
            batches,
        })
    }

    fn user_addresses(&self) -> [u64; 3] {
        [self.desc.as_ptr() as u64, self.driver.as_ptr() as u64, self.device.as_ptr() as u64]
    }

    fn base() -> u32 {
        // Both positions at 0, in the first lap, whose wrap bit is 1.
        0x8000_8000
    }

    fn take_batches(&mut self) {
        self.batches = true;
    }

    fn size(&self) -> u16 {
        self.size
    }

    #[inline(always)]
    fn pending(&mut self, wanted: u16) -> u16 {
        if self.batches {
            // From one batch to the next: those in between stay as they were offered. More than the ring's size is an error of the device's,
            // which the caller sees.
            while self.seen < self.size && self.is_used(self.seen) {
                let slot = self.ahead(self.seen).0;
                let id = (self.tail(slot).load(Ordering::Relaxed) >> 32) as u16;
                self.seen += (id.wrapping_sub(slot) & (self.size - 1)) + 1;
            }
            return self.seen;
        }
        // Where `wanted` are needed, the last of them is looked at first: slots come back in their order, and this does not take the
        // line away on which the device is writing.
        if self.seen < wanted && !self.is_used(wanted - 1) {
            return 0;
        }
        while self.seen < self.size && self.is_used(self.seen) {
            self.seen += 1;
        }
        self.seen
    }

    #[inline(always)]
    fn in_order(&self, count: u16) -> bool {
        if self.batches {
            // Each batch was found at the end of the one before it.
            return true;
        }
        let mut wrong = 0;
        for ahead in 0..count {
            let (slot, _) = self.ahead(ahead);
            wrong |= (self.tail(slot).load(Ordering::Relaxed) >> 32) as u16 ^ slot;
        }
        wrong == 0
    }

    #[inline(always)]
    fn written(&self, ahead: u16) -> u32 {
        self.tail(self.ahead(ahead).0).load(Ordering::Relaxed) as u32
    }

    #[inline(always)]
    fn take(&mut self, count: u16) {
        (self.taken, self.taken_wrap) = self.ahead(count);
        self.seen -= count;
    }

    #[inline(always)]
    fn offer(&mut self, count: u16) -> bool {
        let (first, first_wrap) = (self.offered, self.offered_wrap);
        let (mut slot, mut wrap) = (first, first_wrap);
        for i in 0..count {
            let [address, tail] = self.chains[usize::from(slot)];
            // SAFETY: slot < size. The descriptor is the driver's until its flags are written.
            unsafe { self.desc.add(2 * usize::from(slot)).write(address) };
            if i > 0 {
                self.tail(slot).store(tail | available(wrap), Ordering::Release);
            }
            slot += 1;
            if slot == self.size {
                (slot, wrap) = (0, !wrap);
            }
        }
        (self.offered, self.offered_wrap) = (slot, wrap);
        // The first comes last, and with it the burst: the device looks at no other before.
        if count > 0 {
            let tail = self.chains[usize::from(first)][1] | available(first_wrap);
            self.tail(first).store(tail, Ordering::Release);
        }
        // The descriptors must be visible before the device's wish is read: 2.8.21.3.
        fence(Ordering::SeqCst);
        // SAFETY: the second half-word of the device's event structure.
        let flags = unsafe { AtomicU16::from_ptr(self.device.as_ptr().add(1)) }.load(Ordering::Acquire) & 3;
        if flags != AT_DESCRIPTOR {
            return flags != DISABLE;
        }
        // SAFETY: the first half-word.
        let event = unsafe { AtomicU16::from_ptr(self.device.as_ptr()) }.load(Ordering::Relaxed);
        let (mut at, lap) = (event & 0x7fff, event & 0x8000 != 0);
        if lap != wrap {
            at = at.wrapping_sub(self.size);
        }
        slot.wrapping_sub(at).wrapping_sub(1) < count
    }

    #[inline(always)]
    fn first_pending(&self) -> u16 {
        self.taken
    }
}
