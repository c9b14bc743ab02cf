//! A packed ring's three parts in our memory (VIRTIO 1.2 section 2.8), checked once and then behind raw pointers.
//!
//! Invariant: `desc` points to `size` descriptors, `driver` and `device` to 4 bytes each, each inside one mapping of the map
//! that the ring holds, and each aligned. Accessors take any position and mask it, so that no caller can leave the ring.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::memory::GuestMap;
use crate::ring::descriptor::{Descriptor, place};
use crate::ring::error::RingPart;
use crate::ring::{RingConfig, RingError};

/// The descriptor was made available in a lap with this wrap counter.
const AVAIL: u16 = 1 << 7;
/// The descriptor was used in a lap with this wrap counter.
const USED: u16 = 1 << 15;
/// The two of them, which change their meaning with each lap.
pub const LAP: u16 = AVAIL | USED;

/// Raw pointers to the parts of a ring.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    desc: NonNull<u8>,
    driver: NonNull<u32>,
    device: NonNull<u32>,
    mask: u16,
}

impl Layout {
    /// Finds the parts in `map` and checks them. The specification allows sizes that are no powers of two; no driver uses them,
    /// vhost-user's front-ends cannot set them, and they would cost every packet a branch.
    pub fn new(map: &GuestMap, config: &RingConfig) -> Result<Self, RingError> {
        let size = config.size;
        if !size.is_power_of_two() {
            return Err(RingError::Size(size));
        }
        let desc = place(map, RingPart::Descriptors, config.desc, Descriptor::LEN * usize::from(size), 16)?;
        let driver = place(map, RingPart::DriverEvents, config.avail, 4, 4)?;
        let device = place(map, RingPart::DeviceEvents, config.used, 4, 4)?;
        Ok(Self { desc, driver: driver.cast(), device: device.cast(), mask: size - 1 })
    }

    /// Descriptors in the ring.
    #[inline(always)]
    pub fn size(&self) -> u16 {
        self.mask + 1
    }

    /// The bits of a position that count: the place, and the parity of the lap.
    #[inline(always)]
    pub fn double_mask(&self) -> u16 {
        self.mask | self.size()
    }

    /// Place of a position in the ring.
    #[inline(always)]
    pub fn slot(&self, position: u16) -> u16 {
        position & self.mask
    }

    /// The wrap counter in the lap of a position. It starts with 1.
    #[inline(always)]
    fn wrap(&self, position: u16) -> bool {
        position & self.size() == 0
    }

    /// A position as vhost-user and the event structures have it: the place, and the wrap counter in bit 15.
    #[inline(always)]
    pub fn pack(&self, position: u16) -> u16 {
        self.slot(position) | u16::from(self.wrap(position)) << 15
    }

    /// The reverse of [`Layout::pack`]. A place beyond the ring is masked.
    #[inline(always)]
    pub fn unpack(&self, packed: u16) -> u16 {
        (packed & self.mask) | if packed >> 15 == 0 { self.size() } else { 0 }
    }

    /// Whether flags say that the driver has made the descriptor at `position` available and has not got it back.
    #[inline(always)]
    pub fn is_available(&self, position: u16, flags: u16) -> bool {
        flags & LAP == self.available(position)
    }

    /// The bits [`LAP`] of a descriptor at `position` that is available.
    #[inline(always)]
    pub fn available(&self, position: u16) -> u16 {
        if self.wrap(position) { AVAIL } else { USED }
    }

    /// Whether flags say that the descriptor at `position` was given back: the driver may have made it available again, for the
    /// next lap.
    pub fn is_given_back(&self, position: u16, flags: u16) -> bool {
        (flags & USED != 0) == self.wrap(position)
    }

    /// Whether flags say that the descriptor at `position` was given back, and is the driver's now.
    pub fn is_used(&self, position: u16, flags: u16) -> bool {
        flags & LAP == self.used(position)
    }

    /// Flags that give the descriptor at `position` back.
    #[inline(always)]
    fn used(&self, position: u16) -> u16 {
        if self.wrap(position) { LAP } else { 0 }
    }

    /// The descriptor at `position`. When its flags say that it is available, everything that the driver wrote before it
    /// said so is visible.
    #[inline(always)]
    pub fn descriptor(&self, position: u16) -> Descriptor {
        // Length, id and flags are one word, so that the first two are as new as the flags are.
        let rest = self.rest(position).load(Ordering::Acquire);
        // SAFETY: as in `rest`; the address comes before it.
        let addr = unsafe { self.at(position).cast::<u64>().read_volatile() };
        Descriptor { addr, len: rest as u32, flags: (rest >> 48) as u16, next: (rest >> 32) as u16 }
    }

    /// The descriptors from `slot` on, `count` or up to the ring's end, each with its slot: as [`Layout::descriptor`], read when it is asked for.
    #[inline(always)]
    pub fn run(&self, slot: u16, count: usize) -> impl Iterator<Item = (u16, Descriptor)> {
        let slot = self.slot(slot);
        let first = self.at(slot);
        let count = count.min((self.size() - slot).into()) as u16;
        (0..count).map(move |i| {
            let at = first.wrapping_add(usize::from(i) * Descriptor::LEN);
            // SAFETY: inside the table, by `count`; the rest as in `rest` and `descriptor`.
            let (rest, addr) = unsafe {
                let rest = AtomicU64::from_ptr(at.wrapping_add(8).cast_mut().cast()).load(Ordering::Acquire);
                (rest, at.cast::<u64>().read_volatile())
            };
            (slot + i, Descriptor { addr, len: rest as u32, flags: (rest >> 48) as u16, next: (rest >> 32) as u16 })
        })
    }

    /// Flags of the descriptor at `position`, and visible what was written before.
    #[inline(always)]
    pub fn flags(&self, position: u16) -> u16 {
        (self.rest(position).load(Ordering::Acquire) >> 48) as u16
    }

    /// Where the descriptor at `position` is, for prefetching.
    #[inline(always)]
    pub fn at(&self, position: u16) -> *const u8 {
        self.desc.as_ptr().wrapping_add(usize::from(self.slot(position)) * Descriptor::LEN)
    }

    /// Gives back the chain whose first descriptor is at `position`, with its buffer id, and the length where the device wrote.
    /// What was written before is visible to a driver that sees it.
    #[inline(always)]
    pub fn give_back<const WRITE: bool>(&self, position: u16, id: u16, len: u32) {
        cut();
        let flags = self.used(position) | if WRITE { Descriptor::WRITE } else { 0 };
        let word = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
        self.rest(position).store(word, Ordering::Release);
    }

    /// Gives back the `count` chains of one descriptor each from `position` on, the last one first, which the device has read: their
    /// ids are in place, and their lengths mean nothing (VIRTIO 1.2 section 2.8.6).
    #[inline(always)]
    pub fn give_back_in_place(&self, position: u16, count: u16) {
        let count = count.min(self.size());
        // Up to the end of the ring it is one lap, and behind it the next.
        let here = count.min(self.size() - self.slot(position));
        for (from, count) in [(position.wrapping_add(here), count - here), (position, here)] {
            let (flags, first) = (self.used(from), self.at(from).wrapping_add(14).cast_mut());
            let give_back = |i: u16| {
                cut();
                let at = first.wrapping_add(usize::from(i) * Descriptor::LEN);
                // SAFETY: the last half-word of a descriptor inside the ring, whose end is not reached; an atomic may be changed by others.
                unsafe { AtomicU16::from_ptr(at.cast()) }.store(flags, Ordering::Release);
            };
            // By the line, and those before it.
            let mut left = count;
            while left >= 4 {
                (1..=4).for_each(|i| give_back(left - i));
                left -= 4;
            }
            (0..left).rev().for_each(give_back);
        }
    }

    /// When the driver wants interrupts: a packed position in the lower half, and a mode in the upper.
    #[inline(always)]
    pub fn driver_event(&self) -> u32 {
        // SAFETY: aligned, mapped while the ring holds its map; an atomic may be changed by others.
        unsafe { AtomicU32::from_ptr(self.driver.as_ptr()) }.load(Ordering::Relaxed)
    }

    /// Tells the driver when to kick: `event` is not zero.
    pub fn set_device_event(&self, event: u32) {
        debug_assert_ne!(event, 0);
        self.device_event().store(event, Ordering::Relaxed);
    }

    /// Whether a device has run this ring since the driver has set it up: drivers begin with zeros there.
    pub fn is_marked(&self) -> bool {
        self.device_event().load(Ordering::Relaxed) != 0
    }

    fn device_event(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(self.device.as_ptr()) }
    }

    /// Length, id and flags of the descriptor at `position`.
    #[inline(always)]
    fn rest(&self, position: u16) -> &AtomicU64 {
        // SAFETY: masked, so inside the table, which is aligned; an atomic may be changed by others behind a shared reference.
        unsafe { AtomicU64::from_ptr(self.at(position).add(8).cast_mut().cast()) }
    }
}

/// Where a test may kill the process.
#[inline(always)]
fn cut() {
    #[cfg(test)]
    crate::ring::tests::cut();
}
