//! Chains that were taken and not given back, because a device still reads one of them: see docs/decisions/0010-zero-copy.md.

use super::descriptor::Chain;
use super::frames::Loan;

/// Chains in ring order, the first of which is the next that is given back. Those behind one that is lent wait for it, too.
pub struct Debts {
    /// A ring buffer of as many chains as the ring has descriptors, or of none where nothing is ever lent.
    entries: Box<[(Chain, Option<Loan>)]>,
    first: usize,
    len: usize,
    /// Slots of the ring that they take.
    slots: u16,
}

impl Debts {
    /// Without room.
    pub fn new() -> Self {
        Self { entries: Box::default(), first: 0, len: 0, slots: 0 }
    }

    /// Has room for a ring of `size` descriptors from here on. Only while there are none.
    pub fn reserve(&mut self, size: u16) {
        if self.entries.is_empty() {
            self.entries = vec![(Chain::NONE, None); size.into()].into();
        }
    }

    /// Chains in it.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Chains that have room behind them.
    #[inline(always)]
    pub fn room(&self) -> usize {
        self.entries.len() - self.len
    }

    /// Slots of the ring that its chains take.
    #[inline(always)]
    pub fn slots(&self) -> u16 {
        self.slots
    }

    /// Adds chains that take `slots`, each with its loan. What has no room is left out: see [`Debts::room`].
    pub fn push(&mut self, chains: &[Chain], loans: &[Option<Loan>], slots: u16) {
        let capacity = self.entries.len();
        for (chain, loan) in chains.iter().zip(loans).take(capacity - self.len) {
            let at = self.first + self.len;
            self.entries[if at < capacity { at } else { at - capacity }] = (*chain, *loan);
            self.len += 1;
        }
        self.slots += slots;
    }

    /// Removes the first chain, unless it is lent and `is_back` says that it is away.
    pub fn pop(&mut self, is_back: &mut impl FnMut(Loan) -> bool) -> Option<Chain> {
        if self.len == 0 {
            return None;
        }
        let (chain, loan) = self.entries[self.first];
        if loan.is_some_and(|loan| !is_back(loan)) {
            return None;
        }
        self.first = if self.first + 1 < self.entries.len() { self.first + 1 } else { 0 };
        self.len -= 1;
        Some(chain)
    }

    /// `slots` of those that were removed are given back.
    pub fn settled(&mut self, slots: u16) {
        self.slots -= slots;
    }
}
