//! A split ring's three parts in our memory (VIRTIO 1.2 section 2.7), checked once and then behind raw pointers.
//!
//! Invariant: `desc` points to `size` descriptors, `avail` to 3 + `size` half-words, `used` to 6 + 8 x `size` bytes and
//! those of the event index, each inside one mapping of the map that the ring holds, and each aligned. Accessors take any
//! index and mask it, so that no caller can leave the ring.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::memory::GuestMap;
use crate::ring::descriptor::{Descriptor, place};
use crate::ring::error::RingPart;
use crate::ring::{RingConfig, RingError};

const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// Raw pointers to the parts of a ring.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    desc: NonNull<u8>,
    avail: NonNull<u16>,
    used: NonNull<u16>,
    mask: u16,
}

impl Layout {
    /// Finds the parts in `map` and checks them.
    pub fn new(map: &GuestMap, config: &RingConfig) -> Result<Self, RingError> {
        let size = config.size;
        if !size.is_power_of_two() {
            return Err(RingError::Size(size));
        }
        let event = if config.features.event_idx { 2 } else { 0 };
        let entries = usize::from(size);
        let desc = place(map, RingPart::Descriptors, config.desc, Descriptor::LEN * entries, 16)?;
        let avail = place(map, RingPart::Available, config.avail, 4 + 2 * entries + event, 2)?;
        let used = place(map, RingPart::Used, config.used, 4 + 8 * entries + event, 4)?;
        Ok(Self { desc, avail: avail.cast(), used: used.cast(), mask: size - 1 })
    }

    /// Descriptors in the ring.
    #[inline(always)]
    pub fn size(&self) -> u16 {
        self.mask + 1
    }

    /// Descriptor `index & mask`.
    #[inline(always)]
    pub fn descriptor(&self, index: u16) -> Descriptor {
        // SAFETY: masked, so inside the table, which is aligned.
        unsafe { Descriptor::read::<true>(self.desc.as_ptr(), usize::from(index & self.mask)) }
    }

    /// Where descriptor `index` is, for prefetching. Of an index beyond the ring's size, somewhere else.
    #[inline(always)]
    pub fn descriptor_at(&self, index: u16) -> *const u8 {
        self.desc.as_ptr().wrapping_add(usize::from(index) * Descriptor::LEN)
    }

    /// The guest's available index; everything that it published before is visible afterwards.
    #[inline(always)]
    pub fn avail_index(&self) -> u16 {
        self.half_word(self.avail, 1).load(Ordering::Acquire)
    }

    /// The head that the guest put at position `index` of the available ring.
    #[inline(always)]
    pub fn avail_head(&self, index: u16) -> u16 {
        // SAFETY: masked, so inside the ring, which is aligned.
        unsafe { self.avail.add(2 + usize::from(index & self.mask)).read_volatile() }
    }

    /// The heads from position `index` of the available ring on, around its end, each read when it is asked for.
    #[inline(always)]
    pub fn avail_heads(&self, index: u16) -> impl Iterator<Item = u16> {
        // SAFETY: masked, so inside the ring; its end is behind `size` half-words.
        let (first, mut at, end) = unsafe {
            let first = self.avail.as_ptr().cast_const().add(2);
            (first, first.add((index & self.mask).into()), first.add(self.size().into()))
        };
        std::iter::from_fn(move || {
            // SAFETY: before the ring's end, which is aligned.
            let head = unsafe { at.read_volatile() };
            at = at.wrapping_add(1);
            if at == end {
                at = first;
            }
            Some(head)
        })
    }

    /// Whether the guest asked for no interrupts (without EVENT_IDX).
    #[inline(always)]
    pub fn no_interrupt(&self) -> bool {
        self.half_word(self.avail, 0).load(Ordering::Relaxed) & NO_INTERRUPT != 0
    }

    /// The used index behind which the guest wants an interrupt. Only with EVENT_IDX.
    #[inline(always)]
    pub fn used_event(&self) -> u16 {
        self.half_word(self.avail, 2 + usize::from(self.size())).load(Ordering::Relaxed)
    }

    /// The used index as it is in guest memory.
    #[inline(always)]
    pub fn used_index(&self) -> u16 {
        self.half_word(self.used, 1).load(Ordering::Acquire)
    }

    /// Writes chains to the used ring from position `index` on: the head of each, and how many bytes were written there. Not seen by the guest before
    /// [`Layout::publish_used`].
    #[inline(always)]
    pub fn write_used(&self, index: u16, chains: impl ExactSizeIterator<Item = (u16, u32)>) {
        let mut chains = chains;
        let mut at = usize::from(index & self.mask);
        // Up to the ring's end, and from its beginning.
        while chains.len() > 0 {
            let here = chains.len().min(usize::from(self.size()) - at);
            // SAFETY: masked, so inside the ring.
            let elements = unsafe { self.used.as_ptr().add(2).cast::<u64>().add(at) };
            for (i, (head, len)) in (0..here).zip(&mut chains) {
                // SAFETY: before the ring's end; elements are aligned to 4 bytes only.
                unsafe { elements.add(i).write_unaligned(u64::from(head) | u64::from(len) << 32) };
            }
            at = 0;
        }
    }

    /// Shows the guest everything up to `index`: what was written to its buffers and the used ring is visible before.
    #[inline(always)]
    pub fn publish_used(&self, index: u16) {
        self.half_word(self.used, 1).store(index, Ordering::Release);
    }

    /// Tells the guest whether to kick (without EVENT_IDX).
    pub fn set_no_notify(&self, quiet: bool) {
        self.half_word(self.used, 0).store(if quiet { NO_NOTIFY } else { 0 }, Ordering::Relaxed);
    }

    /// Tells the guest behind which available index to kick. Only with EVENT_IDX.
    pub fn set_avail_event(&self, index: u16) {
        self.half_word(self.used, 2 + 4 * usize::from(self.size())).store(index, Ordering::Relaxed);
    }

    /// A half-word of the available or the used ring, as an atomic.
    #[inline(always)]
    fn half_word(&self, part: NonNull<u16>, offset: usize) -> &AtomicU16 {
        // SAFETY: every caller names a half-word inside the part, which is aligned to 2 bytes and mapped while the ring
        // holds its map. An atomic may be changed by others behind a shared reference.
        unsafe { AtomicU16::from_ptr(part.add(offset).as_ptr()) }
    }
}
