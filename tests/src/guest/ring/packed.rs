//! The driver's side of a packed ring. Virtio 1.2, section 2.8.
//!
//! # Invariants
//! The descriptor ring and the two event areas are pieces of guest memory of the size that they need, aligned as the
//! specification wants (2.8.10: 16, 4 and 4), and stay mapped as long as the `Arc<Memory>` in the ring. Positions are below
//! the ring's size. The back-end reads and writes there at any time: flags and events are atomics, everything else is
//! volatile.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use anyhow::ensure;

use super::doorbell::Doorbell;
use super::order::{Chain, Order};
use super::{Format, NEXT, NOBODY, Span, Used};
use crate::guest::memory::{Memory, Piece};

/// In [`Descriptor::flags`]: the driver's wrap counter when it was made available.
pub const AVAIL: u16 = 1 << 7;
/// In [`Descriptor::flags`]: the device's wrap counter when it was used; the opposite of [`AVAIL`] until then.
pub const USED: u16 = 1 << 15;

/// Event flags: notify about every descriptor.
const EVENT_ENABLE: u16 = 0;
/// Event flags: do not notify.
const EVENT_DISABLE: u16 = 1;
/// Event flags: notify about one descriptor; only with EVENT_IDX.
const EVENT_DESCRIPTOR: u16 = 2;
/// The wrap counter in an event's or a base's 16 bits.
const WRAP: u16 = 1 << 15;

/// One descriptor, as it lies in memory: 2.8.14.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C, align(16))]
pub struct Descriptor {
    /// Guest-physical address of the buffer.
    pub address: u64,
    /// Its length in bytes; in a used one the bytes that the device wrote.
    pub length: u32,
    /// The buffer's name, in the last descriptor of a chain.
    pub id: u16,
    /// [`NEXT`], [`super::WRITE`], [`super::INDIRECT`], [`AVAIL`], [`USED`].
    pub flags: u16,
}

/// A place in the ring, with the wrap counter there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The descriptor's number.
    pub at: u16,
    /// Flips each time the ring's end is passed; 1 at first.
    pub wrap: bool,
}

impl Position {
    const START: Self = Self { at: 0, wrap: true };

    /// So many descriptors further, at most a ring's length.
    #[inline]
    pub fn after(self, count: u16, size: u16) -> Self {
        let at = u32::from(self.at) + u32::from(count);
        let (size, wrapped) = (u32::from(size), at >= u32::from(size));
        Self { at: (if wrapped { at - size } else { at }) as u16, wrap: self.wrap ^ wrapped }
    }

    /// As in events and in one half of a base.
    pub fn bits(self) -> u16 {
        self.at | if self.wrap { WRAP } else { 0 }
    }

    /// Flags of a descriptor that is made available here.
    #[inline]
    pub fn available(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }

    /// Flags of a descriptor that was used here.
    #[inline]
    pub fn used(self) -> u16 {
        if self.wrap { AVAIL | USED } else { 0 }
    }
}

/// A packed ring with its two event descriptors.
#[derive(Debug)]
pub struct PackedRing {
    memory: Arc<Memory>,
    size: u16,
    desc: NonNull<Descriptor>,
    driver: NonNull<u16>,
    device: NonNull<u32>,
    guest: [u64; 3],
    event_idx: bool,
    /// Where the next descriptor is made available.
    next_avail: Position,
    /// The first descriptor that is not shown yet, with its flags, and how many there are: its flags are written last.
    first: Option<(u16, u16)>,
    unshown: u16,
    /// Where the device writes the next used descriptor.
    next_used: Position,
    /// Descriptors of each chain that is with the back-end, by its buffer; 0 of the others.
    lengths: Box<[u16]>,
    order: Option<Order>,
    /// The device named a chain that it does not have: where it goes on is not known any more.
    lost: bool,
    bell: Doorbell,
}

// SAFETY: the pointers go into `memory`, which is Send and Sync and is held; the ring has one user at a time.
unsafe impl Send for PackedRing {}

impl PackedRing {
    /// An empty ring of `size` descriptors, 1 to 32768; it need not be a power of two.
    pub fn new(memory: &Arc<Memory>, size: u16, event_idx: bool) -> anyhow::Result<Self> {
        ensure!((1..=WRAP).contains(&size), "a packed ring of {size} descriptors: not in 1 to 32768");
        let desc = memory.allocate(16 * usize::from(size), 4096)?;
        // On cache lines of their own: each is read by one side only.
        let driver = memory.allocate(64, 64)?;
        let device = memory.allocate(64, 64)?;
        for piece in [desc, driver, device] {
            // SAFETY: the piece is that long.
            unsafe { piece.start.write_bytes(0, piece.size) };
        }
        Ok(Self {
            memory: Arc::clone(memory),
            size,
            desc: desc.start.cast(),
            driver: driver.start.cast(),
            device: device.start.cast(),
            guest: [desc.guest, driver.guest, device.guest],
            event_idx,
            next_avail: Position::START,
            first: None,
            unshown: 0,
            next_used: Position::START,
            lengths: vec![0; usize::from(size)].into(),
            order: None,
            lost: false,
            bell: Doorbell::new()?,
        })
    }

    /// Whether the device uses buffers in the order in which they are made available.
    pub fn in_order(self, in_order: bool) -> Self {
        Self { order: in_order.then(Order::default), ..self }
    }

    /// Descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Guest-physical addresses of the descriptor ring and of the driver's and the device's event area.
    pub fn addresses(&self) -> [u64; 3] {
        self.guest
    }

    /// Addresses of the same three in this process, as SET_VRING_ADDR wants them.
    pub fn user_addresses(&self) -> [u64; 3] {
        [self.desc.as_ptr() as u64, self.driver.as_ptr() as u64, self.device.as_ptr() as u64]
    }

    /// Kick and call.
    pub fn bell(&self) -> &Doorbell {
        &self.bell
    }

    /// The memory that the ring lies in.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Where the next descriptor is made available.
    pub fn next_avail(&self) -> Position {
        self.next_avail
    }

    /// Where the device writes the next used descriptor.
    pub fn next_used(&self) -> Position {
        self.next_used
    }

    #[inline]
    fn slot(&self, at: u16) -> NonNull<Descriptor> {
        assert!(at < self.size, "descriptor {at} of {}", self.size);
        // SAFETY: inside of the table.
        unsafe { self.desc.add(usize::from(at)) }
    }

    #[inline]
    fn flags(&self, at: u16) -> &AtomicU16 {
        let slot = self.slot(at);
        // SAFETY: a field of a descriptor of the table; u16 aligned; atomics may be shared with another process.
        unsafe { AtomicU16::from_ptr(&raw mut (*slot.as_ptr()).flags) }
    }

    /// Writes a whole descriptor at once, in any place and with any flags. A hostile act, but for those behind a chain's first.
    #[inline]
    pub fn write(&mut self, at: u16, descriptor: Descriptor) {
        // SAFETY: a descriptor of the table.
        unsafe { self.slot(at).write_volatile(descriptor) };
    }

    /// Reads a descriptor as it is.
    pub fn read(&self, at: u16) -> Descriptor {
        // SAFETY: a descriptor of the table.
        unsafe { self.slot(at).read_volatile() }
    }

    /// Puts a descriptor behind those made available so far; its flags get the wrap counter's. The back-end sees it after
    /// [`Format::publish`].
    #[inline]
    pub fn push(&mut self, mut descriptor: Descriptor) {
        descriptor.flags |= self.next_avail.available();
        let at = self.next_avail.at;
        if self.first.is_none() {
            // Until its flags change the device looks no further.
            let slot = self.slot(at).as_ptr();
            // SAFETY: fields of a descriptor of the table.
            unsafe {
                (&raw mut (*slot).address).write_volatile(descriptor.address);
                (&raw mut (*slot).length).write_volatile(descriptor.length);
                (&raw mut (*slot).id).write_volatile(descriptor.id);
            }
            self.first = Some((at, descriptor.flags));
        } else {
            self.write(at, descriptor);
        }
        self.unshown += 1;
        self.next_avail = self.next_avail.after(1, self.size);
    }

    fn wants_kick(&self, shown: u16) -> bool {
        // SAFETY: the device's event area, four bytes, aligned to 64.
        let event = unsafe { AtomicU32::from_ptr(self.device.as_ptr()) }.load(Ordering::Relaxed);
        let (position, flags) = (event as u16, (event >> 16) as u16 & 3);
        match flags {
            EVENT_DISABLE => false,
            EVENT_DESCRIPTOR if self.event_idx => {
                let (new, mut event) = (self.next_avail.at, position & !WRAP);
                if (position & WRAP != 0) != self.next_avail.wrap {
                    event = event.wrapping_sub(self.size);
                }
                new.wrapping_sub(event).wrapping_sub(1) < shown
            }
            _ => true,
        }
    }

    /// Whether the device has used a descriptor here.
    #[inline]
    fn is_used(&self, position: Position) -> bool {
        self.flags(position.at).load(Ordering::Acquire) & (AVAIL | USED) == position.used()
    }

    /// Chains that were used and not taken yet.
    pub fn pending(&self) -> u16 {
        let (mut position, mut count) = (self.next_used, 0);
        if let Some(order) = &self.order {
            // Those behind are counted when they are read.
            let waiting = order.waiting() as u16;
            let seen = if !self.lost && self.is_used(position) { order.count(self.read(position.at).id) } else { None };
            return if waiting > 0 { waiting } else { seen.unwrap_or(0) as u16 };
        }
        while !self.lost && count < self.size && self.is_used(position) {
            let id = self.read(position.at).id;
            let Some(&length @ 1..) = self.lengths.get(usize::from(id)) else { break };
            position = position.after(length, self.size);
            count += 1;
        }
        count
    }

    fn collect_in_order(&mut self, used: &mut [Used]) -> usize {
        let mut count = 0;
        while count < used.len() && !self.lost {
            let Some(order) = &mut self.order else { break };
            if !order.has_used() {
                if !self.is_used(self.next_used) {
                    break;
                }
                let descriptor = self.read(self.next_used.at);
                let Some(order) = &mut self.order else { break };
                self.lost = !order.read(descriptor.id.into(), descriptor.length, usize::from(self.size));
            }
            used[count] = match self.order.as_mut().and_then(Order::take) {
                Some((chain, length)) => {
                    self.next_used = self.next_used.after(chain.descriptors, self.size);
                    Used { id: chain.buffer.into(), length }
                }
                None => Used { id: NOBODY, length: 0 },
            };
            count += 1;
        }
        count
    }

    /// Asks for an interrupt at the next used descriptor, or for none at all.
    pub fn want_call(&mut self, wanted: bool) {
        // SAFETY: the driver's event area, two times two bytes, aligned to 64.
        let (position, flags) =
            unsafe { (AtomicU16::from_ptr(self.driver.as_ptr()), AtomicU16::from_ptr(self.driver.as_ptr().add(1))) };
        let flag = match (wanted, self.event_idx) {
            (false, _) => EVENT_DISABLE,
            (true, false) => EVENT_ENABLE,
            (true, true) => EVENT_DESCRIPTOR,
        };
        if flag == EVENT_DESCRIPTOR {
            position.store(self.next_used.bits(), Ordering::Relaxed);
        }
        flags.store(flag, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Where both sides stand.
    pub(super) fn state(&self) -> String {
        let place = |position: Position| format!("{}, wrap {}", position.at, u8::from(position.wrap));
        format!(
            "next avail {}; next used {}, there {:x?}; {} used",
            place(self.next_avail),
            place(self.next_used),
            self.read(self.next_used.at),
            self.pending()
        )
    }
}

impl Format for PackedRing {
    fn reserve(&mut self, each: u16) -> u16 {
        self.size / each
    }

    #[inline]
    fn offer(&mut self, buffer: u16, spans: &[Span], flags: u16) {
        for (i, span) in spans.iter().enumerate() {
            let last = i + 1 == spans.len();
            // The name belongs to the last descriptor (2.8.6); in the others it must not matter.
            let (id, flags) = if last { (buffer, flags) } else { (!buffer, flags | NEXT) };
            self.push(Descriptor { address: span.address, length: span.length, id, flags });
        }
        let descriptors = spans.len() as u16;
        if let Some(order) = &mut self.order {
            let writable = if flags & super::WRITE != 0 { spans.iter().map(|span| span.length).sum() } else { 0 };
            order.push(Chain { name: buffer, buffer, descriptors, writable });
        }
        self.lengths[usize::from(buffer)] = descriptors;
    }

    fn offer_parts(&mut self, buffer: u16, parts: &[(Span, u16)]) {
        for (i, (span, flags)) in parts.iter().enumerate() {
            let next = if i + 1 == parts.len() { 0 } else { NEXT };
            self.push(Descriptor { address: span.address, length: span.length, id: buffer, flags: flags | next });
        }
        self.lengths[usize::from(buffer)] = parts.len() as u16;
    }

    #[inline]
    fn publish(&mut self) {
        let Some((at, flags)) = self.first.take() else { return };
        let shown = std::mem::take(&mut self.unshown);
        self.flags(at).store(flags, Ordering::Release);
        // The flags must be visible before the device's wish is read: 2.8.21.3.1.
        fence(Ordering::SeqCst);
        if self.wants_kick(shown) {
            self.bell.ring();
        }
    }

    #[inline]
    fn collect(&mut self, used: &mut [Used]) -> usize {
        if self.order.is_some() {
            return self.collect_in_order(used);
        }
        let mut count = 0;
        while count < used.len() && !self.lost && self.is_used(self.next_used) {
            let descriptor = self.read(self.next_used.at);
            let length = self.lengths.get_mut(usize::from(descriptor.id)).map_or(0, std::mem::take);
            self.lost = length == 0;
            let id = if self.lost { NOBODY } else { descriptor.id.into() };
            used[count] = Used { id, length: descriptor.length };
            self.next_used = self.next_used.after(length, self.size);
            count += 1;
        }
        count
    }

    #[inline]
    fn line(&self, _: u16, ahead: u16) -> *const u8 {
        let at = self.next_avail.after(ahead.min(self.size), self.size).at;
        self.desc.as_ptr().wrapping_add(usize::from(at)).cast()
    }

    fn write_table(table: &Piece, spans: &[Span], flags: u16) {
        assert!(16 * spans.len() <= table.size, "a table of {} bytes for {} descriptors", table.size, spans.len());
        for (i, span) in spans.iter().enumerate() {
            // One after the other, without NEXT: 2.8.7. Names and the two counters' flags are reserved there.
            let descriptor = Descriptor { address: span.address, length: span.length, id: 0, flags };
            // SAFETY: the table has that many descriptors, and is aligned to 64.
            unsafe { table.start.cast::<Descriptor>().add(i).write_volatile(descriptor) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::memory::Layout;

    fn ring(size: u16, event_idx: bool) -> PackedRing {
        let layout = Layout { size: 1 << 16, regions: 1, start: 0, gap: 0, huge_pages: false };
        PackedRing::new(&Arc::new(Memory::new(layout).unwrap()), size, event_idx).unwrap()
    }

    fn offer(ring: &mut PackedRing, buffer: u16, spans: usize) {
        ring.offer(buffer, &vec![Span { address: 0x1000, length: 10 }; spans], 0);
    }

    #[test]
    fn flags_follow_the_wrap_counter() {
        let mut ring = ring(4, false);
        offer(&mut ring, 0, 3);
        let flags = |ring: &PackedRing| [0, 1, 2, 3].map(|at| ring.read(at).flags);
        assert_eq!(flags(&ring), [0, AVAIL | NEXT, AVAIL, 0], "the first one is shown last");
        ring.publish();
        assert_eq!(flags(&ring), [AVAIL | NEXT, AVAIL | NEXT, AVAIL, 0]);
        assert_eq!((ring.read(0).id, ring.read(2).id), (!0, 0));

        ring.write(0, Descriptor { length: 7, id: 0, flags: AVAIL | USED, ..Descriptor::default() });
        let mut used = [Used::default(); 4];
        assert_eq!((ring.pending(), ring.collect(&mut used)), (1, 1));
        assert_eq!((used[0], ring.next_used()), (Used { id: 0, length: 7 }, Position { at: 3, wrap: true }));

        offer(&mut ring, 2, 2);
        ring.publish();
        assert_eq!(flags(&ring), [USED, AVAIL | NEXT, AVAIL, AVAIL | NEXT], "the second one is behind the ring's end");
        ring.write(3, Descriptor { id: 2, flags: AVAIL | USED, ..Descriptor::default() });
        assert_eq!((ring.collect(&mut used), ring.next_used()), (1, Position { at: 1, wrap: false }));
        assert_eq!(ring.collect(&mut used), 0, "what the device wrote in the last round");
    }

    #[test]
    fn a_name_that_nobody_has_is_seen_once() {
        let mut ring = ring(4, false);
        offer(&mut ring, 1, 1);
        ring.publish();
        ring.write(0, Descriptor { id: 3, flags: AVAIL | USED, ..Descriptor::default() });
        let mut used = [Used::default(); 4];
        assert_eq!((ring.collect(&mut used), used[0].id), (1, NOBODY));
        assert_eq!(ring.collect(&mut used), 0);
    }

    #[test]
    fn kicks_are_as_the_device_wants_them() {
        let mut ring = ring(8, true);
        let wish = |ring: &PackedRing, position: u16, flags: u16| {
            let wish = u32::from(position) | u32::from(flags) << 16;
            // SAFETY: the device's event area.
            unsafe { AtomicU32::from_ptr(ring.device.as_ptr()) }.store(wish, Ordering::Relaxed);
        };
        let kicked = |ring: &PackedRing| ring.bell.kick().read().is_ok();
        wish(&ring, 0, EVENT_DISABLE);
        offer(&mut ring, 0, 3);
        ring.publish();
        assert!(!kicked(&ring));
        // Position 5 in the first round: passed by the second of these.
        wish(&ring, 5 | WRAP, EVENT_DESCRIPTOR);
        offer(&mut ring, 1, 2);
        ring.publish();
        assert!(!kicked(&ring), "3 and 4");
        offer(&mut ring, 2, 1);
        ring.publish();
        assert!(kicked(&ring), "5");
        // Position 0 in the second round.
        wish(&ring, 0, EVENT_DESCRIPTOR);
        offer(&mut ring, 3, 2);
        ring.publish();
        assert!(!kicked(&ring), "6 and 7");
        offer(&mut ring, 4, 1);
        ring.publish();
        assert!(kicked(&ring), "0 again");
        // The whole ring at once, over its end.
        wish(&ring, 7, EVENT_DESCRIPTOR);
        offer(&mut ring, 5, 8);
        ring.publish();
        assert!(kicked(&ring), "1 to 0");
    }
}
