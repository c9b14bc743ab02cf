//! The driver's side of a split ring. Virtio 1.2, section 2.7.
//!
//! # Invariants
//! The three tables are pieces of guest memory of the size that the ring's size asks for, aligned as the specification
//! wants, and stay mapped as long as the `Arc<Memory>` in the ring. Descriptor numbers are masked or asserted before they
//! become an address. The back-end reads and writes there at any time: indices and flags are atomics, everything else is
//! volatile.

use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::Duration;

use anyhow::ensure;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::memory::Memory;

/// The descriptor continues in another one.
pub const NEXT: u16 = 1;
/// The back-end writes to the buffer.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Set by the driver in `avail.flags`: no interrupts, please.
const NO_INTERRUPT: u16 = 1;
/// Set by the device in `used.flags`: no kicks, please.
const NO_NOTIFY: u16 = 1;

/// One descriptor, as it lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C, align(16))]
pub struct Descriptor {
    /// Guest-physical address of the buffer.
    pub address: u64,
    /// Its length in bytes.
    pub length: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// The descriptor after this one.
    pub next: u16,
}

/// A used element, as it lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C, align(4))]
pub struct Used {
    /// The chain's first descriptor.
    pub id: u32,
    /// Bytes that the device wrote.
    pub length: u32,
}

/// A split ring with its two event descriptors.
#[derive(Debug)]
pub struct SplitRing {
    memory: Arc<Memory>,
    size: u16,
    desc: NonNull<Descriptor>,
    avail: NonNull<u16>,
    used: NonNull<u16>,
    guest: [u64; 3],
    event_idx: bool,
    /// Next avail index that is written; what was published is `published`.
    next_avail: u16,
    published: u16,
    /// Used elements up to this index were taken.
    next_used: u16,
    kick: EventFd,
    call: EventFd,
}

// SAFETY: the pointers go into `memory`, which is Send and Sync and is held; the ring has one user at a time.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// An empty ring of `size` descriptors, a power of two.
    pub fn new(memory: &Arc<Memory>, size: u16, event_idx: bool) -> anyhow::Result<Self> {
        ensure!(size.is_power_of_two(), "a ring of {size} descriptors: not a power of two");
        let n = usize::from(size);
        // Each on cache lines of its own, as Linux allocates them; 8 bytes per used element and two bytes per avail entry,
        // and flags, index and event of two bytes each.
        let desc = memory.allocate(16 * n, 4096)?;
        let avail = memory.allocate(6 + 2 * n, 128)?;
        let used = memory.allocate(6 + 8 * n, 4096)?;
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let ring = Self {
            memory: Arc::clone(memory),
            size,
            desc: desc.start.cast(),
            avail: avail.start.cast(),
            used: used.start.cast(),
            guest: [desc.guest, avail.guest, used.guest],
            event_idx,
            next_avail: 0,
            published: 0,
            next_used: 0,
            kick: EventFd::from_flags(flags)?,
            call: EventFd::from_flags(flags)?,
        };
        for piece in [desc, avail, used] {
            // SAFETY: the piece is that long.
            unsafe { piece.start.write_bytes(0, piece.size) };
        }
        Ok(ring)
    }

    /// Descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Guest-physical addresses of the descriptor table, the available ring and the used ring.
    pub fn addresses(&self) -> [u64; 3] {
        self.guest
    }

    /// Addresses of the same three in this process, as SET_VRING_ADDR wants them.
    pub fn user_addresses(&self) -> [u64; 3] {
        [self.desc.as_ptr() as u64, self.avail.as_ptr() as u64, self.used.as_ptr() as u64]
    }

    /// What the driver writes to when there are buffers.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// What the back-end writes to when it used some.
    pub fn call(&self) -> &EventFd {
        &self.call
    }

    /// The memory that the ring lies in.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    fn atomic(&self, base: NonNull<u16>, at: usize) -> &AtomicU16 {
        // SAFETY: callers stay within the table; u16 aligned; atomics may be shared with another process.
        unsafe { AtomicU16::from_ptr(base.as_ptr().add(at)) }
    }

    /// Writes a descriptor of the table.
    #[inline]
    pub fn describe(&mut self, index: u16, descriptor: Descriptor) {
        let index = usize::from(index & (self.size - 1));
        // SAFETY: index < size; 16 bytes, aligned to 16, as the table is.
        unsafe { self.desc.add(index).write_volatile(descriptor) };
    }

    /// Where a descriptor of the table is, to be fetched ahead.
    #[inline]
    pub(super) fn descriptor_line(&self, index: u16) -> *const u8 {
        self.desc.as_ptr().wrapping_add(usize::from(index & (self.size - 1))).cast()
    }

    /// Puts a chain's head behind those made available so far; the back-end sees it after [`Self::publish`].
    #[inline]
    pub fn push(&mut self, head: u16) {
        let slot = usize::from(self.next_avail & (self.size - 1));
        self.atomic(self.avail, 2 + slot).store(head, Ordering::Relaxed);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Shows the back-end everything that was pushed, and kicks it when it asked for that.
    #[inline]
    pub fn publish(&mut self) {
        if self.next_avail == self.published {
            return;
        }
        let old = self.published;
        self.published = self.next_avail;
        self.atomic(self.avail, 1).store(self.next_avail, Ordering::Release);
        // The index must be visible before the device's wish is read: 2.7.13.4.
        fence(Ordering::SeqCst);
        if self.wants_kick(old) {
            let _ = self.kick.write(1);
        }
    }

    fn wants_kick(&self, old: u16) -> bool {
        if self.event_idx {
            let event = self.atomic(self.used, 2 + 4 * usize::from(self.size)).load(Ordering::Relaxed);
            self.published.wrapping_sub(event).wrapping_sub(1) < self.published.wrapping_sub(old)
        } else {
            self.atomic(self.used, 0).load(Ordering::Relaxed) & NO_NOTIFY == 0
        }
    }

    /// Kicks whether the back-end asked for it or not, as QEMU does when a ring is started.
    pub fn kick_now(&self) {
        let _ = self.kick.write(1);
    }

    /// The used index that the back-end shows.
    pub fn used_index(&self) -> u16 {
        self.atomic(self.used, 1).load(Ordering::Acquire)
    }

    /// The available index that the back-end sees.
    pub fn avail_index(&self) -> u16 {
        self.published
    }

    /// Used elements that were not taken yet.
    #[inline]
    pub fn pending(&self) -> u16 {
        self.used_index().wrapping_sub(self.next_used)
    }

    /// The used element `ahead` of the first that was not taken; valid below [`Self::pending`].
    #[inline]
    pub fn peek(&self, ahead: u16) -> Used {
        let slot = usize::from(self.next_used.wrapping_add(ahead) & (self.size - 1));
        // SAFETY: slot < size; the elements start 4 bytes into the used ring and are aligned to 4.
        unsafe { self.used.add(2).cast::<Used>().add(slot).read_volatile() }
    }

    /// Takes `count` used elements.
    #[inline]
    pub fn take(&mut self, count: u16) {
        self.next_used = self.next_used.wrapping_add(count);
    }

    /// Chains that are with the back-end, or used and not taken yet.
    pub fn outstanding(&self) -> u16 {
        self.next_avail.wrapping_sub(self.next_used)
    }

    /// Asks for an interrupt at the next used element, or for none at all.
    pub fn want_call(&mut self, wanted: bool) {
        let flags = if wanted || self.event_idx { 0 } else { NO_INTERRUPT };
        self.atomic(self.avail, 0).store(flags, Ordering::Relaxed);
        if self.event_idx {
            // An index that the device has passed already is not reached again for 65535 elements: renewed by who polls.
            let event = if wanted { self.next_used } else { self.next_used.wrapping_sub(1) };
            self.atomic(self.avail, 2 + usize::from(self.size)).store(event, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    /// Sleeps until the back-end interrupts or has used something; whether it has.
    pub fn wait(&mut self, timeout: Duration) -> std::io::Result<bool> {
        self.want_call(true);
        if self.pending() == 0 {
            let mut fds = [PollFd::new(self.call.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX))?;
        }
        let _ = self.call.read();
        Ok(self.pending() > 0)
    }

    /// Sets the available index to any value, behind the ring's own back. A hostile act.
    pub fn forge_avail_index(&mut self, index: u16) {
        self.atomic(self.avail, 1).store(index, Ordering::Release);
        let _ = self.kick.write(1);
    }
}
