//! A split virtqueue (VIRTIO 1.2 section 2.7), device side.
//!
//! Guest memory itself says where to go on: the used index.

mod layout;

use super::copy;
use super::descriptor::{Chain, Descriptor};
use super::format::{Format, around, passed};
use super::{RingConfig, RingError};
use crate::memory::{GuestMap, RegionCache};
use layout::Layout;

/// Where a split ring is, and how far.
pub struct Split {
    layout: Layout,
    /// The next chain to be found.
    next: u16,
    /// The next chain to be given back.
    used: u16,
    /// The guest's available index when it was last looked at.
    avail_seen: u16,
}

impl Split {
    /// Chains that may be taken: `wanted` at least, if there are as many. Every field that the guest wrote before it
    /// made them available is visible.
    #[inline(always)]
    fn available(&mut self, wanted: u16) -> Result<u16, RingError> {
        let seen = self.avail_seen.wrapping_sub(self.next);
        if seen >= wanted {
            return Ok(seen);
        }
        let found = self.layout.avail_index();
        let (next, size) = (self.next, self.layout.size());
        let available = found.wrapping_sub(next);
        // Nor may it go back: what was seen may be in use.
        if available > size || available < seen {
            return Err(RingError::AvailIndex { found, next, size });
        }
        self.avail_seen = found;
        Ok(available)
    }

    /// Looks at what is behind the first descriptors of chains that are no plain buffer.
    #[inline(never)]
    fn follow<const WRITE: bool, const INDIRECT: bool>(
        &self,
        map: &GuestMap,
        cache: &mut RegionCache,
        chains: &mut [Chain],
    ) {
        let layout = self.layout;
        let plain = if WRITE { Descriptor::WRITE } else { 0 };
        let mut memory = map.reader(cache);
        for chain in &mut *chains {
            let first = chain.first;
            if INDIRECT && first.flags & Descriptor::INDIRECT != 0 {
                chain.ask_for_table(&mut memory);
            } else if first.flags & Descriptor::SHAPE == plain | Descriptor::NEXT {
                copy::prefetch(layout.descriptor_at(first.next & (layout.size() - 1)));
            }
        }
        for chain in chains {
            let first = chain.first;
            if INDIRECT && first.flags & Descriptor::INDIRECT != 0 {
                chain.read_table::<WRITE, true>(&mut memory);
            } else if first.flags & Descriptor::SHAPE == plain | Descriptor::NEXT && first.next < layout.size() {
                let second = layout.descriptor(first.next);
                if second.flags & Descriptor::SHAPE == plain {
                    chain.pair::<WRITE>(&mut memory, first, second);
                }
            }
        }
    }

    /// The head of the chain at `position` of the available ring.
    #[inline(always)]
    fn head(&self, position: u16) -> Result<u16, RingError> {
        let head = self.layout.avail_head(position);
        let size = self.layout.size();
        if head < size { Ok(head) } else { Err(RingError::Head { head, size }) }
    }
}

impl Format for Split {
    const LINKED: bool = true;

    /// It goes on at the used index in guest memory (the driver itself starts there), whatever the front-end's base says: after
    /// a crash of ours that may be older.
    fn new(map: &GuestMap, config: &RingConfig) -> Result<Self, RingError> {
        let layout = Layout::new(map, config)?;
        let next = layout.used_index();
        Ok(Self { layout, next, used: next, avail_seen: next })
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
        self.used
    }

    #[inline]
    fn pending(&self) -> bool {
        self.layout.avail_index() != self.next
    }

    fn suppress_kicks(&self, event_idx: bool) {
        if event_idx {
            // The furthest index there is. The flag must stay clear (VIRTIO 1.2 section 2.7.10.1).
            self.layout.set_avail_event(self.next.wrapping_sub(1));
        } else {
            self.layout.set_no_notify(true);
        }
    }

    fn request_kicks(&self, event_idx: bool) {
        if event_idx {
            self.layout.set_avail_event(self.next);
        } else {
            self.layout.set_no_notify(false);
        }
    }

    #[inline(always)]
    fn slots(_: &Chain) -> u16 {
        1
    }

    #[inline(always)]
    fn look<const WRITE: bool, const INDIRECT: bool>(
        &mut self,
        map: &GuestMap,
        cache: &mut RegionCache,
        window: &mut [Chain],
        from: u16,
    ) -> Result<(usize, u16), RingError> {
        let wanted = window.len() as u16;
        // What was found already is not less than `from`.
        let available = self.available(from + wanted)?.saturating_sub(from);
        let first = self.next.wrapping_add(from);
        let mut count = usize::from(available.min(wanted));
        let layout = self.layout;
        for (i, (chain, head)) in window[..count].iter_mut().zip(layout.avail_heads(first)).enumerate() {
            if head >= layout.size() {
                if i == 0 {
                    return Err(RingError::Head { head, size: layout.size() });
                }
                count = i;
                break;
            }
            chain.head = head;
            copy::prefetch(layout.descriptor_at(head));
        }
        let plain = if WRITE { Descriptor::WRITE } else { 0 };
        let mut memory = map.reader(cache);
        // Flags that are not those of plain buffers, of any of them.
        let mut odd = 0;
        let mut region = memory.region();
        for chain in &mut window[..count] {
            let first = layout.descriptor(chain.head);
            chain.first = first;
            let other = (first.flags ^ plain) & Descriptor::SHAPE;
            odd |= other;
            if other != 0 {
                chain.odd();
            } else if !chain.ready_in::<WRITE>(&region, first) {
                region = chain.ready_elsewhere::<WRITE>(&mut memory);
            }
        }
        if odd != 0 {
            self.follow::<WRITE, INDIRECT>(map, cache, &mut window[..count]);
        }
        Ok((count, count as u16))
    }

    fn chain(&mut self, at: u16) -> Result<Option<Chain>, RingError> {
        if self.available(at + 1)? <= at {
            return Ok(None);
        }
        let head = self.head(self.next.wrapping_add(at))?;
        Ok(Some(Chain { first: self.layout.descriptor(head), head, ..Chain::NONE }))
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
        position.wrapping_sub(self.used)
    }

    #[inline(always)]
    fn give_back<const WRITE: bool>(&mut self, at: u16, chains: &[Chain], _slots: u16) {
        let from = self.used.wrapping_add(at);
        self.layout.write_used(from, chains.iter().map(|chain| (chain.head, if WRITE { chain.room } else { 0 })));
    }

    /// A batch is one element: the head of its last chain, where the batch begins (VIRTIO 1.2 section 2.7.9).
    #[inline(always)]
    fn publish<const WRITE: bool, const IN_ORDER: bool>(&mut self, last: &Chain, slots: u16) {
        if IN_ORDER {
            self.layout.write_used(self.used, std::iter::once((last.head, 0)));
        }
        self.used = self.used.wrapping_add(slots);
        self.layout.publish_used(self.used);
    }

    /// The index, and the elements in front of it, which may go around the ring's end.
    fn published(&self, _: &RingConfig, used: u64, slots: u16) -> impl Iterator<Item = (u64, usize)> {
        let elements = around(self.used.wrapping_sub(slots), slots, self.layout.size());
        let elements = elements.map(move |(at, count)| (used + 4 + 8 * u64::from(at), 8 * usize::from(count)));
        std::iter::once((used, 4)).chain(elements)
    }

    fn event(config: &RingConfig, used: u64) -> (u64, usize) {
        if config.features.event_idx { (used + 4 + 8 * u64::from(config.size), 2) } else { (used, 2) }
    }

    fn writable(config: &RingConfig, used: u64) -> [(u64, usize); 2] {
        [(used, 4 + 8 * usize::from(config.size)), Self::event(config, used)]
    }

    #[inline(always)]
    fn wants_interrupt(&self, event_idx: bool, first: bool, slots: u16) -> bool {
        if event_idx {
            first || passed(self.layout.used_event(), self.used, slots, u16::MAX)
        } else {
            !self.layout.no_interrupt()
        }
    }
}
