//! The driver's side of a packed ring, lean. Virtio 1.2, section 2.8.
//!
//! A line of the ring goes from core to core twice for every four frames, so that is what counts: the lines of a burst are asked for, for
//! writing, before the first is looked at, are looked at all together, and the slot at the burst's end tells whether it is worth to begin. Who
//! was not kept waiting by the device asks for the lines of the burst that follows, too, before he works on the one he has.
//!
//! # Invariants
//! The descriptors and both event structures are as long as `size` asks for and stay mapped with `memory`; positions are masked before
//! they become an address. The second half of a descriptor (length, id, flags) is written at once, so flags never come before the rest.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};

use anyhow::ensure;
use ringspan_testkit::guest::Memory;

use super::{Chain, LINE, Ring, prefetch_read, prefetch_write};

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// Event flags: no notifications, please; or at a certain descriptor only.
const DISABLE: u16 = 1;
const AT_DESCRIPTOR: u16 = 2;
/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;
/// In a descriptor's second half: the flags that tell whose it is, and the id.
const STATE: u64 = ((AVAIL | USED) as u64) << 48 | 0xffff << 32;

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
    /// Positions count on; the bit above a slot's number says whether the lap is an odd one.
    offered: u16,
    taken: u16,
    /// Pending slots that were looked at.
    seen: u16,
    /// Bytes that were written to them.
    written: u64,
    /// One of them had another slot's id.
    wrong: bool,
    /// The last look found less than was wanted.
    waited: bool,
    batches: bool,
}

// SAFETY: the pointers go into `memory`, which is held; a ring has one user at a time.
unsafe impl Send for PackedRing {}

impl PackedRing {
    #[inline(always)]
    fn slot(&self, position: u16) -> u16 {
        position & (self.size - 1)
    }

    /// The wrap bit in a position's lap.
    #[inline(always)]
    fn wrap(&self, position: u16) -> bool {
        position & self.size == 0
    }

    #[inline(always)]
    fn descriptor(&self, slot: u16) -> *mut u64 {
        // SAFETY: callers mask the slot.
        unsafe { self.desc.as_ptr().add(2 * usize::from(slot)) }
    }

    #[inline(always)]
    fn tail(&self, slot: u16) -> &AtomicU64 {
        // SAFETY: as above; aligned to 8; atomics may be shared with another process.
        unsafe { AtomicU64::from_ptr(self.descriptor(slot).add(1)) }
    }

    /// Flags of a slot that the driver offers, or the device gives back, at that position.
    #[inline(always)]
    fn available(&self, position: u16) -> u64 {
        u64::from(if self.wrap(position) { AVAIL } else { USED }) << 48
    }

    #[inline(always)]
    fn used(&self, position: u16) -> u64 {
        u64::from(if self.wrap(position) { AVAIL | USED } else { 0 }) << 48
    }

    /// Whether the slot `ahead` of the first that was not taken came back.
    #[inline(always)]
    fn is_used(&self, ahead: u16) -> bool {
        let position = self.taken.wrapping_add(ahead);
        let state = self.tail(self.slot(position)).load(Ordering::Acquire) ^ self.used(position);
        state & u64::from(AVAIL | USED) << 48 == 0
    }

    /// The pieces of `count` slots from a position on that lie in one lap each: two at most.
    #[inline(always)]
    fn laps(&self, position: u16, count: u16) -> [(u16, u16); 2] {
        let here = count.min(self.size - self.slot(position));
        [(position, here), (position.wrapping_add(here), count - here)]
    }

    /// Asks for the lines of `count` slots, which the driver has or is about to have, to write them.
    #[inline(always)]
    fn ask(&self, position: u16, count: u16) {
        for (from, count) in self.laps(position, count) {
            let start = self.descriptor(self.slot(from)).cast::<u8>();
            for at in (0..usize::from(count) * DESCRIPTOR).step_by(LINE) {
                prefetch_write(start.wrapping_add(at));
            }
        }
    }

    /// Whether all of `count` slots, `ahead` of the first that was not taken, came back, each as itself.
    #[inline(always)]
    fn all_back(&mut self, ahead: u16, count: u16) -> bool {
        let (mut wrong, mut sum) = (0, 0_u64);
        for (from, count) in self.laps(self.taken.wrapping_add(ahead), count) {
            let slot = self.slot(from);
            let expected = self.used(from) | u64::from(slot) << 32;
            // SAFETY: a lap has so many slots from there on.
            let found = unsafe { tails(self.descriptor(slot), count.into(), expected) };
            (wrong, sum) = (wrong | found.0, sum.wrapping_add(found.1));
        }
        fence(Ordering::Acquire);
        let good = wrong & STATE == 0;
        // Lengths are in the lower halves, and their sum is, too: 16384 of 65535 bytes.
        self.written += if good { sum & 0xffff_ffff } else { 0 };
        good
    }

    /// Looks at all up to `wanted` when the last of them came back; whether they have.
    #[inline(always)]
    fn look_at_once(&mut self, wanted: u16) -> bool {
        if !self.is_used(wanted - 1) {
            return false;
        }
        let (seen, count) = (self.seen, wanted - self.seen);
        self.ask(self.taken.wrapping_add(seen), count);
        if self.all_back(seen, count) {
            self.seen = wanted;
        } else {
            self.look_singly(wanted);
        }
        self.seen == wanted
    }

    /// One after another.
    #[inline(never)]
    fn look_singly(&mut self, most: u16) {
        while self.seen < most && self.is_used(self.seen) {
            let slot = self.slot(self.taken.wrapping_add(self.seen));
            let tail = self.tail(slot).load(Ordering::Relaxed);
            self.wrong |= (tail >> 32) as u16 != slot;
            self.written += tail & 0xffff_ffff;
            self.seen += 1;
        }
    }

    /// Bytes that were written to the first `count` slots that were not taken.
    fn lengths(&self, count: u16) -> u64 {
        let length = |ahead| self.tail(self.slot(self.taken.wrapping_add(ahead))).load(Ordering::Relaxed) & 0xffff_ffff;
        (0..count).map(length).sum()
    }

    /// From one batch to the next: those in between stay as they were offered. More than the ring's size is an error of the device's,
    /// which the caller sees.
    fn look_at_batches(&mut self) {
        while self.seen < self.size && self.is_used(self.seen) {
            let slot = self.slot(self.taken.wrapping_add(self.seen));
            let id = (self.tail(slot).load(Ordering::Relaxed) >> 32) as u16;
            self.seen += (id.wrapping_sub(slot) & (self.size - 1)) + 1;
        }
    }
}

/// Writes both halves of a descriptor, and flags with the second one.
///
/// # Safety
/// It is there, aligned as descriptors are, and the caller's to write.
#[inline(always)]
unsafe fn write_descriptor(descriptor: *mut u64, chain: &[u64; 2], flags: u64) {
    // SAFETY: the caller's. Aligned to 16 bytes, as a descriptor is.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_mm_loadu_si128, _mm_or_si128, _mm_set_epi64x, _mm_store_si128};
        let chain = _mm_loadu_si128(chain.as_ptr().cast());
        _mm_store_si128(descriptor.cast(), _mm_or_si128(chain, _mm_set_epi64x(flags as i64, 0)));
    }
    // SAFETY: the caller's.
    #[cfg(not(target_arch = "x86_64"))]
    unsafe {
        descriptor.write(chain[0]);
        AtomicU64::from_ptr(descriptor.add(1)).store(chain[1] | flags, Ordering::Relaxed);
    }
}

/// In what the second halves of `count` descriptors differ from what is expected, which has a higher id for each that follows; and their sum. Two
/// at a time, where the processor can.
///
/// # Safety
/// They are there, aligned as descriptors are.
#[inline(always)]
unsafe fn tails(first: *mut u64, count: usize, expected: u64) -> (u64, u64) {
    const NEXT: u64 = 1 << 32;
    let (mut wrong, mut sum, mut done) = (0_u64, 0_u64, 0);
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            __m128i, _mm_add_epi64, _mm_or_si128, _mm_set_epi64x, _mm_set1_epi64x, _mm_setzero_si128,
            _mm_unpackhi_epi64, _mm_xor_si128,
        };
        // SAFETY: numbers in registers, whose two halves are looked at in the end.
        let halves = |pair: __m128i| unsafe { std::mem::transmute::<__m128i, [u64; 2]>(pair) };
        // SAFETY: SSE2 is part of x86-64. `at + 1` is below `count`; who else writes there may do so meanwhile, which a volatile read stands.
        unsafe {
            let mut expected = _mm_set_epi64x((expected + NEXT) as i64, expected as i64);
            let (mut differences, mut sums) = (_mm_setzero_si128(), _mm_setzero_si128());
            let mut at = first.cast::<__m128i>();
            while done + 2 <= count {
                let pair = _mm_unpackhi_epi64(at.read_volatile(), at.add(1).read_volatile());
                differences = _mm_or_si128(differences, _mm_xor_si128(pair, expected));
                sums = _mm_add_epi64(sums, pair);
                expected = _mm_add_epi64(expected, _mm_set1_epi64x(2 * NEXT as i64));
                (at, done) = (at.add(2), done + 2);
            }
            let ([a, b], [c, d]) = (halves(differences), halves(sums));
            wrong |= a | b;
            sum = sum.wrapping_add(c).wrapping_add(d);
        }
    }
    while done < count {
        // SAFETY: `done` is below `count`; aligned to 8.
        let tail = unsafe { AtomicU64::from_ptr(first.add(2 * done + 1)) }.load(Ordering::Relaxed);
        wrong |= tail ^ (expected + NEXT * done as u64);
        sum = sum.wrapping_add(tail);
        done += 1;
    }
    (wrong, sum)
}

impl Ring for PackedRing {
    const PACKED: bool = true;

    fn new(memory: &Arc<Memory>, size: u16, event_idx: bool, chain: impl Fn(u16) -> Chain) -> anyhow::Result<Self> {
        ensure!(
            size.is_power_of_two() && size <= 1 << 14,
            "a ring of {size} descriptors: not a power of two up to 16384"
        );
        let _ = event_idx; // What the device wants is told by its flags.
        let desc = memory.allocate(DESCRIPTOR * usize::from(size), 4096)?;
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
        let (offered, taken, seen, written) = (0, 0, 0, 0);
        let (wrong, waited, batches) = (false, false, false);
        Ok(Self { _memory, size, desc, driver, device, chains, offered, taken, seen, written, wrong, waited, batches })
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
    fn pending(&mut self, least: u16, most: u16) -> u16 {
        if self.batches {
            self.look_at_batches();
            return self.seen;
        }
        // The last of those that are needed is looked at first: slots come back in their order, and this does not take the line away on
        // which the device is writing.
        if self.seen < least && !self.look_at_once(least.min(self.size)) {
            self.waited = true;
            return self.seen;
        }
        let most = most.min(self.size);
        if self.seen < most && !self.look_at_once(most) {
            self.look_singly(most);
        }
        self.seen
    }

    #[inline(always)]
    fn in_order(&self, _count: u16) -> bool {
        // Looked at with the rest. Each batch was found at the end of the one before it.
        !self.wrong
    }

    #[inline(always)]
    fn peek(&mut self, from: u16, count: u16) -> bool {
        // Who was kept waiting would only take away the line that the device is about to write.
        if std::mem::take(&mut self.waited) || self.batches || from + count > self.size || count == 0 {
            return false;
        }
        if !self.is_used(from + count - 1) {
            return false;
        }
        self.ask(self.taken.wrapping_add(from), count);
        // The slot that tells of the burst behind that one.
        let behind = self.slot(self.taken.wrapping_add(from + 2 * count - 1));
        prefetch_read(self.descriptor(behind).cast());
        true
    }

    #[inline(always)]
    fn written(&self, count: u16) -> u64 {
        if count == self.seen { self.written } else { self.lengths(count) }
    }

    #[inline(always)]
    fn take(&mut self, count: u16) {
        self.written = if count == self.seen { 0 } else { self.written.wrapping_sub(self.lengths(count)) };
        self.taken = self.taken.wrapping_add(count);
        self.seen -= count;
    }

    #[inline(always)]
    fn prepare(&self, count: u16) {
        self.ask(self.offered, count);
    }

    #[inline(always)]
    fn offer(&mut self, count: u16) -> bool {
        let first = self.offered;
        let Some(others) = count.checked_sub(1) else { return false };
        for (from, count) in self.laps(first.wrapping_add(1), others) {
            let (slot, flags) = (self.slot(from), self.available(from));
            let chains = &self.chains[usize::from(slot)..][..usize::from(count)];
            let mut descriptor = self.descriptor(slot);
            for chain in chains {
                // SAFETY: a lap has so many slots from there on. They are the driver's until the first of the burst is shown.
                unsafe {
                    write_descriptor(descriptor, chain, flags);
                    descriptor = descriptor.add(2);
                }
            }
        }
        // The first comes last, and with it the burst: the device looks at no other before.
        let slot = self.slot(first);
        let [address, tail] = self.chains[usize::from(slot)];
        // SAFETY: as above.
        unsafe { self.descriptor(slot).write(address) };
        self.tail(slot).store(tail | self.available(first), Ordering::Release);
        self.offered = first.wrapping_add(count);
        // The descriptors must be visible before the device's wish is read: 2.8.21.3.
        super::full_fence();
        // SAFETY: the second half-word of the device's event structure.
        let flags = unsafe { AtomicU16::from_ptr(self.device.as_ptr().add(1)) }.load(Ordering::Acquire) & 3;
        if flags != AT_DESCRIPTOR {
            return flags != DISABLE;
        }
        // SAFETY: the first half-word.
        let event = unsafe { AtomicU16::from_ptr(self.device.as_ptr()) }.load(Ordering::Relaxed);
        let (slot, wrap) = (self.slot(self.offered), self.wrap(self.offered));
        let (mut at, lap) = (event & 0x7fff, event & 0x8000 != 0);
        if lap != wrap {
            at = at.wrapping_sub(self.size);
        }
        slot.wrapping_sub(at).wrapping_sub(1) < count
    }

    #[inline(always)]
    fn first_pending(&self) -> u16 {
        self.slot(self.taken)
    }
}
