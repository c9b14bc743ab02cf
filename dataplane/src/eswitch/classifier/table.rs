//! The rules of one mask: a hash table of their values.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Key, NONE, WORDS, prefetch};

/// A slot that was never used, and one whose rule is gone: its tag is any.
const FREE: u64 = 0;
const GONE: u64 = 0xffff_ffff;
/// Slots of a table at first.
const LEAST: usize = 16;

/// A mask, which all rules of its table share.
#[derive(Debug)]
pub(super) struct Mask {
    pub key: Key,
    /// How many bits it has.
    pub bits: u32,
}

/// The rules of one mask.
#[derive(Debug)]
pub(super) struct Table {
    pub mask: Arc<Mask>,
    /// Words of the mask that are not empty.
    pub words: Vec<u8>,
    /// Upper half: that of the hash. Lower half: place of the rule in `entries`, plus one. Half of them is free at least, so every
    /// search ends.
    slots: Vec<u64>,
    /// Slots that are not [`FREE`].
    used: usize,
    /// How many rules have which priority.
    priorities: BTreeMap<u32, usize>,
    highest: u32,
    /// Ports that its rules are for, as bits by [`port_bit`], ...
    pub ports: u64,
    /// ... and how many rules have each of them; nothing where the mask leaves the port open.
    by_port: BTreeMap<u64, usize>,
}

impl Table {
    /// One without rules.
    pub fn new(mask: &Key) -> Self {
        let words = words_of(mask);
        let bits = mask.0.iter().map(|word| word.count_ones()).sum();
        let (slots, priorities, by_port) = (vec![FREE; LEAST], BTreeMap::new(), BTreeMap::new());
        let mask = Arc::new(Mask { key: *mask, bits });
        Self { mask, words, slots, used: 0, priorities, highest: 0, ports: 0, by_port }
    }

    /// Whether each of its rules is for one port.
    fn is_of_port(&self) -> bool {
        self.mask.key.0[0] & PORT == PORT
    }

    /// How important its rules may be.
    pub fn importance(&self) -> (u32, u32) {
        (self.highest, self.mask.bits)
    }

    /// That of the bits of a key that it looks at.
    #[inline]
    pub fn hash(&self, key: &Key, secret: u64) -> u64 {
        hash(&self.words, &self.mask.key, key, secret)
    }

    /// Whether a key has the value, which is one of its rules'.
    #[inline]
    pub fn matches(&self, key: &Key, value: &Key) -> bool {
        let mut differ = 0;
        for word in &self.words {
            let word = usize::from(*word) % WORDS;
            differ |= (key.0[word] & self.mask.key.0[word]) ^ value.0[word];
        }
        differ == 0
    }

    /// Whether it has no rules.
    pub fn is_empty(&self) -> bool {
        self.priorities.is_empty()
    }

    /// Fetches the slot at which looking for a hash begins.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        prefetch(&raw const self.slots[self.home(hash)]);
    }

    /// The first slot that a hash may be in: by the half of it that slots keep.
    #[inline]
    fn home(&self, hash: u64) -> usize {
        (hash >> 32) as usize & (self.slots.len() - 1)
    }

    /// The first slot with a hash like this one, and the rule in it.
    #[inline]
    pub fn first(&self, hash: u64) -> (usize, u32) {
        self.candidate(hash, self.home(hash))
    }

    /// The first slot from `at` on with a hash like this one, and the rule in it; [`NONE`] when there is none.
    #[inline]
    pub fn candidate(&self, hash: u64, mut at: usize) -> (usize, u32) {
        let last = self.slots.len() - 1;
        loop {
            at &= last;
            match self.slots[at] {
                FREE => return (at, NONE),
                slot if slot >> 32 == hash >> 32 && is_live(slot) => return (at, slot as u32 - 1),
                _ => at += 1,
            }
        }
    }

    /// Puts the rule at a place into a slot that is another's; [`NONE`] leaves it empty.
    pub fn set(&mut self, slot: usize, hash: u64, place: u32) {
        self.slots[slot] = if place == NONE { GONE } else { slot_of(hash, place) };
    }

    /// Puts the rule at a place into a slot of its own.
    pub fn add(&mut self, hash: u64, place: u32) {
        if (self.used + 1) * 2 > self.slots.len() {
            // All that is needed is in the slots: the rules themselves would come from all over the memory, and frames wait meanwhile.
            let old: Vec<u64> = self.slots.iter().copied().filter(|slot| is_live(*slot)).collect();
            // A third of them is used at most: a sixth of them come before this is done again, or more.
            self.slots = vec![FREE; ((old.len() + 1) * 3).next_power_of_two().max(LEAST)];
            self.used = 0;
            old.into_iter().for_each(|slot| self.fill(slot));
        }
        self.fill(slot_of(hash, place));
    }

    fn fill(&mut self, slot: u64) {
        let last = self.slots.len() - 1;
        let mut at = self.home(slot);
        while is_live(self.slots[at]) {
            at = (at + 1) & last;
        }
        self.used += usize::from(self.slots[at] == FREE);
        self.slots[at] = slot;
    }

    /// A rule came, ...
    pub fn raise(&mut self, priority: u32, value: &Key) {
        if self.is_of_port() {
            *self.by_port.entry(port_bit(value)).or_default() += 1;
            self.ports |= port_bit(value);
        } else {
            self.ports = u64::MAX;
        }
        *self.priorities.entry(priority).or_default() += 1;
        self.highest = self.highest.max(priority);
    }

    /// ... and one went.
    pub fn lower(&mut self, priority: u32, value: &Key) {
        if let Some(count) = self.by_port.get_mut(&port_bit(value)) {
            *count -= 1;
            if *count == 0 {
                self.by_port.remove(&port_bit(value));
                self.ports &= !port_bit(value);
            }
        }
        if let Some(count) = self.priorities.get_mut(&priority) {
            *count -= 1;
            if *count == 0 {
                self.priorities.remove(&priority);
            }
        }
        self.highest = self.priorities.last_key_value().map_or(0, |(highest, _)| *highest);
    }
}

/// The hash of the bits of a mask, which are in these words.
#[inline]
pub(super) fn hash(words: &[u8], mask: &Key, key: &Key, secret: u64) -> u64 {
    let mut hash = secret;
    for word in words {
        let word = usize::from(*word) % WORDS;
        hash = mix(hash ^ (key.0[word] & mask.0[word]));
    }
    mix(hash)
}

/// The words of a mask that are not empty.
pub(super) fn words_of(mask: &Key) -> Vec<u8> {
    (0..WORDS as u8).filter(|word| mask.0[usize::from(*word)] != 0).collect()
}

/// Bits of the first word that are the port.
pub(super) const PORT: u64 = 0xffff << 48;

/// The bit of a key's port. Some ports share one.
#[inline]
pub(super) fn port_bit(key: &Key) -> u64 {
    1 << (key.0[0] >> 48 & 63)
}

fn is_live(slot: u64) -> bool {
    slot != FREE && slot as u32 != GONE as u32
}

fn slot_of(hash: u64, place: u32) -> u64 {
    hash >> 32 << 32 | u64::from(place + 1)
}

/// Folds the product of two words, as wyhash does.
#[inline]
fn mix(word: u64) -> u64 {
    let product = u128::from(word ^ 0xf39c_c060_5ced_c835) * 0x9e37_79b9_7f4a_7c15_u128;
    (product >> 64) as u64 ^ product as u64
}
