//! The chains that are known already: found, their descriptors read, their memory on its way to the cache.
//!
//! It reaches beyond the burst at hand: while what was taken is sent, the memory of what comes next is fetched from the guest's
//! core. The guest gave these chains away when it made them available and does not change them (VIRTIO 1.2 section 2.7.13);
//! one that does only fools itself, because each field was read once.

use super::descriptor::Chain;
use crate::BURST;

/// Chains in ring order, the first of which is the next that is used. Nothing of this is seen by the guest: a ring that stops
/// just forgets it.
pub struct Window {
    chains: Box<[Chain; BURST]>,
    /// Where those that are not used begin...
    first: usize,
    /// ... and end.
    end: usize,
    /// Slots of the ring that those take.
    slots: u16,
}

impl Window {
    /// Without a chain.
    pub fn new() -> Self {
        Self { chains: Box::new([Chain::NONE; BURST]), first: 0, end: 0, slots: 0 }
    }

    /// Chains in it.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.end - self.first
    }

    /// Slots of the ring that its chains take.
    #[inline(always)]
    pub fn slots(&self) -> u16 {
        self.slots
    }

    /// The first chains, `count` at most, to be changed.
    #[inline(always)]
    pub fn first(&mut self, count: usize) -> &mut [Chain] {
        let count = count.min(self.len());
        &mut self.chains[self.first..self.first + count]
    }

    /// Removes the first `count` chains, which took `slots` when they were found, or all if there are fewer.
    #[inline(always)]
    pub fn used(&mut self, count: usize, slots: u16) {
        if count < self.len() {
            self.first += count;
            self.slots -= slots;
        } else {
            self.clear();
        }
    }

    /// Forgets all.
    #[inline(always)]
    pub fn clear(&mut self) {
        (self.first, self.end, self.slots) = (0, 0, 0);
    }

    /// Room for chains behind those that are here; those that were put there are added by [`Window::add`].
    #[inline]
    pub fn room(&mut self) -> &mut [Chain] {
        if self.first > 0 {
            self.chains.copy_within(self.first..self.end, 0);
            self.end -= self.first;
            self.first = 0;
        }
        &mut self.chains[self.end..]
    }

    /// The first `count` chains of [`Window::room`] are there, and take `slots`.
    #[inline]
    pub fn add(&mut self, count: usize, slots: u16) {
        self.end = (self.end + count).min(BURST);
        self.slots += slots;
    }
}
