//! A packed virtqueue (VIRTIO 1.2 section 2.8), device side.
//!
//! Descriptors that are available and those that are used lie in the same table, and a flag of each says which it is. A burst
//! is given back from its last chain to its first: the driver, which looks at the first, sees all of it at once. Where to go
//! on after a crash is not in guest memory; a [`RingRecord`](super::record::RingRecord) has it.

mod layout;
mod recover;

use super::chain::MAX_CHAIN;
use super::copy;
use super::descriptor::{Chain, Descriptor};
use super::format::{Format, around, passed};
use super::record::{RecordHandle, RingRecord};
use super::{RingConfig, RingError};
use crate::memory::{GuestMap, RegionCache};
use layout::{LAP, Layout};

/// Event modes (VIRTIO 1.2 section 2.8.14), in the upper half of an event structure.
const ENABLE: u32 = 0;
const DISABLE: u32 = 1;
const DESC: u32 = 2;
/// A position in the lower half that means nothing: the device's structure is never zero once the ring runs.
const MARK: u32 = 0xffff;

/// Descriptors that are prefetched before they are read: two cache lines.
const AHEAD: u16 = 8;

/// What tells an indirect table in one slot from anything else; WRITE means nothing there (VIRTIO 1.2 section 2.8.7).
const TABLE: u16 = LAP | Descriptor::NEXT | Descriptor::INDIRECT;

/// Where a packed ring is, and how far.
pub struct Packed {
    layout: Layout,
    /// The next slot to be looked at.
    next: u16,
    /// The next slot to be given back.
    used: u16,
    /// Chains of this burst that are given back with a length, or have several descriptors: that length (or their number), the
    /// buffer id in bits 32-47, and in bits 48-63 how many slots behind `used` the chain is.
    given: Box<[u64]>,
    /// How many those are.
    count: u16,
    record: RecordHandle,
}

impl Packed {
    /// Finds the end of a chain of several descriptors, which begins `at` slots on: its length, and the buffer id in its last one.
    /// No chain leaves the ring: behind its end are the slots that this burst has begun with.
    #[cold]
    #[inline(never)]
    fn follow(&self, at: u16, chain: &mut Chain) -> Result<(), RingError> {
        let (head, limit) = (chain.head, MAX_CHAIN.min(self.layout.size() - at));
        while chain.slots < limit {
            let descriptor = self.layout.descriptor(head + chain.slots);
            chain.slots += 1;
            if descriptor.flags & Descriptor::NEXT == 0 {
                chain.first.next = descriptor.next;
                return Ok(());
            }
        }
        Err(RingError::ChainLength { head, limit })
    }
}

/// Asks for the indirect tables among these chains, and reads them.
#[inline(never)]
fn read_tables<const WRITE: bool>(map: &GuestMap, cache: &mut RegionCache, chains: &mut [Chain]) {
    let mut memory = map.reader(cache);
    for chain in &mut *chains {
        if chain.first.flags & Descriptor::INDIRECT != 0 {
            chain.ask_for_table(&mut memory);
        }
    }
    for chain in chains {
        if chain.first.flags & Descriptor::INDIRECT != 0 {
            chain.read_table::<WRITE, false>(&mut memory);
        }
    }
}

/// Where a ring that starts goes on as far as the guest's memory says it, in the terms of [`RingConfig::position`]: for a device that looks there not itself, and
/// when nothing was noted of the ring.
///
/// # Errors
/// [`RingError::Lost`] or [`RingError::Base`] where neither shows it; others where the front-end described no ring.
pub fn starts_at(map: &GuestMap, config: &RingConfig) -> Result<u16, RingError> {
    let layout = Layout::new(map, config)?;
    recover::position(&layout, config, &RingRecord::default()).map(|at| layout.pack(at))
}

impl Format for Packed {
    const LINKED: bool = false;

    fn new(map: &GuestMap, config: &RingConfig) -> Result<Self, RingError> {
        let layout = Layout::new(map, config)?;
        let record = config.record.clone().unwrap_or_else(RecordHandle::fleeting);
        let next = recover::position(&layout, config, record.get())?;
        record.get().begin(config, next);
        layout.set_device_event(ENABLE << 16 | MARK);
        let given = vec![0; config.size.into()].into();
        Ok(Self { layout, next, used: next, given, count: 0, record })
    }

    fn remap(&mut self, map: &GuestMap, config: &RingConfig) -> Result<(), RingError> {
        self.layout = Layout::new(map, config)?;
        Ok(())
    }

    #[inline(always)]
    fn size(&self) -> u16 {
        self.layout.size()
    }

    fn position(&self) -> u16 {
        self.layout.pack(self.used)
    }

    #[inline]
    fn pending(&self) -> bool {
        self.layout.is_available(self.next, self.layout.flags(self.next))
    }

    fn suppress_kicks(&self, _: bool) {
        self.layout.set_device_event(DISABLE << 16 | MARK);
    }

    fn request_kicks(&self, event_idx: bool) {
        let event = if event_idx { DESC << 16 | u32::from(self.layout.pack(self.next)) } else { ENABLE << 16 | MARK };
        self.layout.set_device_event(event);
    }

    #[inline(always)]
    fn slots(chain: &Chain) -> u16 {
        chain.slots
    }

    #[inline(always)]
    fn look<const WRITE: bool, const INDIRECT: bool>(
        &mut self,
        map: &GuestMap,
        cache: &mut RegionCache,
        window: &mut [Chain],
        from: u16,
    ) -> Result<(usize, u16), RingError> {
        let layout = self.layout;
        let mut memory = map.reader(cache);
        let room = usize::from(layout.size().saturating_sub(from)).min(window.len());
        let (mut at, mut count, mut tables) = (from, 0, false);
        while count < room && at < layout.size() {
            // Up to the end of the ring, all that is plain has the same flags.
            let position = self.next.wrapping_add(at);
            let slot = layout.slot(position);
            // Chains of several slots leave fewer than there is room for.
            let run = (room - count).min((layout.size() - slot).min(layout.size() - at).into());
            let plain = layout.available(position) | if WRITE { Descriptor::WRITE } else { 0 };
            let (mut found, mut odd) = (0, None);
            let mut region = memory.region();
            for (chain, (slot, first)) in window[count..count + run].iter_mut().zip(layout.run(slot, run)) {
                if slot.is_multiple_of(4) {
                    copy::prefetch(layout.at(slot + AHEAD));
                }
                chain.first = first;
                chain.head = slot;
                chain.slots = 1;
                if first.flags & (LAP | Descriptor::SHAPE) == plain {
                    if !chain.ready_in::<WRITE>(&region, first) {
                        region = chain.ready_elsewhere::<WRITE>(&mut memory);
                    }
                } else if INDIRECT && first.flags & TABLE == plain & LAP | Descriptor::INDIRECT {
                    tables = true;
                    chain.odd();
                } else {
                    odd = Some(first);
                    break;
                }
                found += 1;
            }
            count += usize::from(found);
            at += found;
            let Some(first) = odd else { continue };
            let chain = &mut window[count];
            chain.odd();
            if first.flags & LAP != plain & LAP {
                break;
            }
            if first.flags & Descriptor::SHAPE == plain & !LAP | Descriptor::NEXT && at + 1 < layout.size() {
                copy::prefetch(layout.at(chain.head + AHEAD));
                let second = layout.descriptor(chain.head + 1);
                if second.flags & Descriptor::SHAPE == plain & !LAP {
                    chain.slots = 2;
                    chain.first.next = second.next;
                    chain.pair::<WRITE>(&mut memory, first, second);
                    at += 2;
                    count += 1;
                    continue;
                }
            }
            if first.flags & Descriptor::NEXT != 0 {
                match self.follow(at, chain) {
                    Ok(()) => {}
                    Err(error) if count == 0 => return Err(error),
                    Err(_) => break,
                }
            }
            at += chain.slots;
            count += 1;
        }
        if tables {
            read_tables::<WRITE>(map, cache, &mut window[..count]);
        }
        Ok((count, at - from))
    }

    fn chain(&mut self, at: u16) -> Result<Option<Chain>, RingError> {
        if at >= self.layout.size() {
            return Ok(None);
        }
        let position = self.next.wrapping_add(at);
        let first = self.layout.descriptor(position);
        if !self.layout.is_available(position, first.flags) {
            return Ok(None);
        }
        let mut chain = Chain { first, head: self.layout.slot(position), ..Chain::NONE };
        if first.flags & Descriptor::NEXT != 0 {
            self.follow(at, &mut chain)?;
        }
        Ok(Some(chain))
    }

    #[inline(always)]
    fn descriptor(&self, index: u16) -> Descriptor {
        self.layout.descriptor(index)
    }

    #[inline(always)]
    fn took(&mut self, slots: u16) {
        self.next = self.next.wrapping_add(slots);
    }

    fn taken(&self) -> u16 {
        self.next
    }

    fn ahead(&self, position: u16) -> u16 {
        position.wrapping_sub(self.used) & self.layout.double_mask()
    }

    /// Chains that were only read, of one descriptor each, need not be remembered.
    #[inline(always)]
    fn give_back<const WRITE: bool>(&mut self, at: u16, chains: &[Chain], slots: u16) {
        if !WRITE && usize::from(slots) == chains.len() {
            return;
        }
        // A chain has a slot at least, so that there are never more of them than slots.
        let Some(given) = self.given.get_mut(self.count.into()..) else { return };
        let mut at = at;
        let mut count = 0;
        for chain in chains {
            if (WRITE || chain.slots > 1)
                && let Some(given) = given.get_mut(count)
            {
                let len = if WRITE { chain.room } else { chain.slots.into() };
                *given = u64::from(len) | u64::from(chain.first.next) << 32 | u64::from(at) << 48;
                count += 1;
            }
            at += chain.slots;
        }
        self.count += count as u16;
    }

    /// A batch is one used descriptor: the buffer id of its last chain, in the place of its first (VIRTIO 1.2 section 2.8.9).
    #[inline(always)]
    fn publish<const WRITE: bool, const IN_ORDER: bool>(&mut self, last: &Chain, slots: u16) {
        let (layout, from) = (self.layout, self.used);
        let to = from.wrapping_add(slots);
        self.record.get().advance(from, to);
        let given = self.given[..usize::from(self.count)].iter().rev();
        let given = given.map(|&word| ((word >> 48) as u16, (word >> 32) as u16, word as u32));
        if WRITE {
            for (at, id, len) in given {
                layout.give_back::<true>(from.wrapping_add(at), id, len);
            }
        } else if IN_ORDER {
            layout.give_back::<false>(from, last.first.next, 0);
        } else {
            let mut end = slots;
            for (at, id, slots) in given {
                let singles = at + slots as u16;
                layout.give_back_in_place(from.wrapping_add(singles), end - singles);
                layout.give_back::<false>(from.wrapping_add(at), id, 0);
                end = at;
            }
            layout.give_back_in_place(from, end);
        }
        self.count = 0;
        self.used = to;
    }

    /// Descriptors, which may go around the ring's end. Where the log has the used ring of a split one, there is nothing of these.
    fn published(&self, config: &RingConfig, _: u64, slots: u16) -> impl Iterator<Item = (u64, usize)> {
        let desc = config.desc.0;
        let slots = around(self.used.wrapping_sub(slots), slots, self.layout.size());
        slots.map(move |(at, count)| {
            (desc + Descriptor::LEN as u64 * u64::from(at), Descriptor::LEN * usize::from(count))
        })
    }

    fn event(_: &RingConfig, used: u64) -> (u64, usize) {
        (used, 4)
    }

    fn writable(config: &RingConfig, used: u64) -> [(u64, usize); 2] {
        [(config.desc.0, Descriptor::LEN * usize::from(config.size)), Self::event(config, used)]
    }

    #[inline(always)]
    fn wants_interrupt(&self, event_idx: bool, first: bool, slots: u16) -> bool {
        let event = self.layout.driver_event();
        match event >> 16 & 3 {
            DISABLE => false,
            DESC if event_idx => {
                first || passed(self.layout.unpack(event as u16), self.used, slots, self.layout.double_mask())
            }
            _ => true,
        }
    }
}
