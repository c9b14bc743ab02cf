//! The driver's side of a split ring. Virtio 1.2, section 2.7.
//!
//! # Invariants
//! The three tables are pieces of guest memory of the size that the ring's size asks for, aligned as the specification
//! wants, and stay mapped as long as the `Arc<Memory>` in the ring. Descriptor numbers are masked or asserted before they
//! become an address. The back-end reads and writes there at any time: indices and flags are atomics, everything else is
//! volatile.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use anyhow::ensure;

use super::doorbell::Doorbell;
use super::order::{Chain, Order};
use super::{Format, NEXT, NOBODY, Span, Used};
use crate::guest::memory::{Memory, Piece};

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
    /// [`NEXT`], [`super::WRITE`], [`super::INDIRECT`].
    pub flags: u16,
    /// The descriptor after this one.
    pub next: u16,
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
    /// Descriptors set apart for each buffer, as a power of two's logarithm. With IN_ORDER they are taken one after the other.
    stride: u32,
    next_descriptor: u16,
    order: Option<Order>,
    /// Next avail index that is written; what was published is `published`.
    next_avail: u16,
    published: u16,
    /// Used elements up to this index were taken.
    next_used: u16,
    bell: Doorbell,
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
        let ring = Self {
            memory: Arc::clone(memory),
            size,
            desc: desc.start.cast(),
            avail: avail.start.cast(),
            used: used.start.cast(),
            guest: [desc.guest, avail.guest, used.guest],
            event_idx,
            stride: 0,
            next_descriptor: 0,
            order: None,
            next_avail: 0,
            published: 0,
            next_used: 0,
            bell: Doorbell::new()?,
        };
        for piece in [desc, avail, used] {
            // SAFETY: the piece is that long.
            unsafe { piece.start.write_bytes(0, piece.size) };
        }
        Ok(ring)
    }

    /// Whether the device uses buffers in the order in which they are made available.
    pub fn in_order(self, in_order: bool) -> Self {
        Self { order: in_order.then(Order::default), ..self }
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

    /// Kick and call.
    pub fn bell(&self) -> &Doorbell {
        &self.bell
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

    /// Puts a chain's head behind those made available so far; the back-end sees it after [`Format::publish`].
    #[inline]
    pub fn push(&mut self, head: u16) {
        let slot = usize::from(self.next_avail & (self.size - 1));
        self.atomic(self.avail, 2 + slot).store(head, Ordering::Relaxed);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    fn wants_kick(&self, old: u16) -> bool {
        if self.event_idx {
            let event = self.atomic(self.used, 2 + 4 * usize::from(self.size)).load(Ordering::Relaxed);
            self.published.wrapping_sub(event).wrapping_sub(1) < self.published.wrapping_sub(old)
        } else {
            self.atomic(self.used, 0).load(Ordering::Relaxed) & NO_NOTIFY == 0
        }
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

    /// The used element `ahead` of the first that was not taken.
    #[inline]
    fn element(&self, ahead: u16) -> Used {
        let slot = usize::from(self.next_used.wrapping_add(ahead) & (self.size - 1));
        // SAFETY: slot < size; the elements start 4 bytes into the used ring and are aligned to 4.
        unsafe { self.used.add(2).cast::<Used>().add(slot).read_volatile() }
    }

    /// The buffer whose chain starts with this descriptor, if one can.
    #[inline]
    fn buffer(&self, head: u32) -> u32 {
        let buffer = head >> self.stride;
        if head < u32::from(self.size) && buffer << self.stride == head { buffer } else { NOBODY }
    }

    fn collect_in_order(&mut self, used: &mut [Used]) -> usize {
        let (mut pending, mut count) = (self.pending(), 0);
        while count < used.len() && pending > 0 {
            let element = self.element(0);
            let Some(order) = &mut self.order else { return count };
            let known = order.has_used() || order.read(element.id, element.length, usize::from(pending));
            used[count] = match order.take() {
                Some((chain, length)) if known => Used { id: chain.buffer.into(), length },
                _ => Used { id: NOBODY, length: 0 },
            };
            self.next_used = self.next_used.wrapping_add(1);
            (pending, count) = (pending - 1, count + 1);
        }
        count
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

    /// Where both sides stand.
    pub(super) fn state(&self) -> String {
        format!("avail {} used {}, taken {}", self.published, self.used_index(), self.next_used)
    }

    /// Sets the available index to any value, behind the ring's own back. A hostile act.
    pub fn forge_avail_index(&mut self, index: u16) {
        self.atomic(self.avail, 1).store(index, Ordering::Release);
        self.bell.ring();
    }
}

impl Format for SplitRing {
    fn reserve(&mut self, each: u16) -> u16 {
        if self.order.is_some() {
            return self.size / each;
        }
        self.stride = each.next_power_of_two().trailing_zeros();
        self.size >> self.stride
    }

    #[inline]
    fn offer(&mut self, buffer: u16, spans: &[Span], flags: u16) {
        let mask = self.size - 1;
        let head = if self.order.is_some() { self.next_descriptor } else { buffer << self.stride };
        for (i, span) in spans.iter().enumerate() {
            let at = head.wrapping_add(i as u16) & mask;
            let last = i + 1 == spans.len();
            let (flags, next) = if last { (flags, 0) } else { (flags | NEXT, at.wrapping_add(1) & mask) };
            self.describe(at, Descriptor { address: span.address, length: span.length, flags, next });
        }
        self.push(head);
        if let Some(order) = &mut self.order {
            let descriptors = spans.len() as u16;
            self.next_descriptor = head.wrapping_add(descriptors) & mask;
            let writable = if flags & super::WRITE != 0 { spans.iter().map(|span| span.length).sum() } else { 0 };
            order.push(Chain { name: head, buffer, descriptors, writable });
        }
    }

    fn offer_parts(&mut self, buffer: u16, parts: &[(Span, u16)]) {
        let (head, mask) = (buffer << self.stride, self.size - 1);
        for (i, (span, flags)) in parts.iter().enumerate() {
            let at = head.wrapping_add(i as u16) & mask;
            let next = if i + 1 == parts.len() { 0 } else { NEXT };
            let (address, length, flags) = (span.address, span.length, flags | next);
            self.describe(at, Descriptor { address, length, flags, next: at.wrapping_add(1) & mask });
        }
        self.push(head);
    }

    #[inline]
    fn publish(&mut self) {
        if self.next_avail == self.published {
            return;
        }
        let old = self.published;
        self.published = self.next_avail;
        self.atomic(self.avail, 1).store(self.next_avail, Ordering::Release);
        // The index must be visible before the device's wish is read: 2.7.13.4.
        fence(Ordering::SeqCst);
        if self.wants_kick(old) {
            self.bell.ring();
        }
    }

    #[inline]
    fn collect(&mut self, used: &mut [Used]) -> usize {
        if self.order.is_some() {
            return self.collect_in_order(used);
        }
        let count = used.len().min(usize::from(self.pending()));
        for (ahead, used) in used[..count].iter_mut().enumerate() {
            let element = self.element(ahead as u16);
            *used = Used { id: self.buffer(element.id), length: element.length };
        }
        self.next_used = self.next_used.wrapping_add(count as u16);
        count
    }

    #[inline]
    fn line(&self, buffer: u16, ahead: u16) -> *const u8 {
        let at = if self.order.is_some() { self.next_descriptor.wrapping_add(ahead) } else { buffer << self.stride };
        self.desc.as_ptr().wrapping_add(usize::from(at & (self.size - 1))).cast()
    }

    fn write_table(table: &Piece, spans: &[Span], flags: u16) {
        assert!(16 * spans.len() <= table.size, "a table of {} bytes for {} descriptors", table.size, spans.len());
        for (i, span) in spans.iter().enumerate() {
            let last = i + 1 == spans.len();
            let (flags, next) = if last { (flags, 0) } else { (flags | NEXT, i as u16 + 1) };
            let descriptor = Descriptor { address: span.address, length: span.length, flags, next };
            // SAFETY: the table has that many descriptors, and is aligned to 64.
            unsafe { table.start.cast::<Descriptor>().add(i).write_volatile(descriptor) };
        }
    }
}
