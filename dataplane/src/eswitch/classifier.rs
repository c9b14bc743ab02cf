//! Which rule a frame gets: tuple space search (Srinivasan, Suri, Varghese 1999; OVS `lib/classifier.c`).
//!
//! Rules with the same mask share a hash table of their values. A frame's key is looked up in each table, those first that may have the
//! most important rule, until no table that is left can have a better one. Looking up is done by the burst, a table at a time:
//! first all hashes, then all slots, then all rules, each fetched into the cache while others are worked on. That is why the tables
//! are made here: a map that is asked key by key cannot do it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::Arc;

use ringspan_protocol::RuleId;

use super::key::{Key, WORDS};
use crate::BURST;

/// No rule.
pub const NONE: u32 = u32::MAX;

/// A slot that was never used, and one whose rule is gone: its tag is any.
const FREE: u64 = 0;
const GONE: u64 = 0xffff_ffff;
/// Slots of a table at first.
const LEAST: usize = 16;

/// What makes one rule more important than another: the priority, the bits of its mask, and the lower id.
type Rank = (u32, u32, Reverse<RuleId>);

/// Rules, with what is to be done by each.
#[derive(Debug)]
pub struct Classifier<T> {
    /// In the order in which they are asked: those of the highest priority, and of them the most exact ones, first.
    tables: Vec<Table>,
    entries: Vec<Option<Entry<T>>>,
    /// Places of `entries` that are free.
    free: Vec<u32>,
    by_id: BTreeMap<RuleId, u32>,
    /// So that no guest knows which keys collide.
    secret: u64,
}

/// The rules of one mask.
#[derive(Debug)]
struct Table {
    mask: Arc<Key>,
    /// Words of the mask that are not empty.
    words: Vec<u8>,
    bits: u32,
    /// Upper half: that of the hash. Lower half: place of the rule in `entries`, plus one. Half of them is free at least, so every
    /// search ends.
    slots: Vec<u64>,
    /// Slots that are not [`FREE`].
    used: usize,
    /// How many rules have which priority.
    priorities: BTreeMap<u32, usize>,
    highest: u32,
}

/// One rule. What a look-up needs is in its first cache lines.
#[derive(Debug)]
#[repr(C)]
struct Entry<T> {
    value: Key,
    body: T,
    /// The next less important rule of the same value and mask.
    next: u32,
    priority: u32,
    bits: u32,
    id: RuleId,
    hash: u64,
    mask: Arc<Key>,
}

impl<T> Entry<T> {
    fn rank(&self) -> Rank {
        (self.priority, self.bits, Reverse(self.id))
    }
}

impl<T> Default for Classifier<T> {
    fn default() -> Self {
        let secret = RandomState::new().hash_one(0x7269_6e67_u32);
        Self { tables: Vec::new(), entries: Vec::new(), free: Vec::new(), by_id: BTreeMap::new(), secret }
    }
}

impl<T> Classifier<T> {
    /// Rules in it.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Different masks.
    pub fn masks(&self) -> usize {
        self.tables.len()
    }

    /// Adds a rule. One of the same id goes, and its body is returned.
    pub fn insert(&mut self, id: RuleId, priority: u32, value: &Key, mask: &Key, body: T) -> Option<T> {
        let old = self.remove(id);
        let at = self.table(mask);
        let table = &mut self.tables[at];
        let (hash, bits) = (table.hash(value, self.secret), table.bits);
        let entry = Entry { value: *value, body, next: NONE, priority, bits, id, hash, mask: Arc::clone(&table.mask) };
        let place = self.free.pop().unwrap_or(self.entries.len() as u32);
        if place as usize == self.entries.len() {
            self.entries.push(Some(entry));
        } else {
            self.entries[place as usize] = Some(entry);
        }
        self.by_id.insert(id, place);
        match self.head(at, hash, value) {
            None => self.add_slot(at, hash, place),
            Some((slot, head)) => self.chain(at, slot, head, place),
        }
        self.tables[at].raise(priority);
        self.sort();
        old
    }

    /// Removes a rule. Returns its body.
    pub fn remove(&mut self, id: RuleId) -> Option<T> {
        let place = self.by_id.remove(&id)?;
        let entry = self.entries[place as usize].take()?;
        self.free.push(place);
        let at = self.tables.iter().position(|table| Arc::ptr_eq(&table.mask, &entry.mask))?;
        // The chain's head, which may be this one, has the slot.
        let (mut slot, mut found) = self.tables[at].first(entry.hash);
        loop {
            if found == place {
                self.tables[at].slots[slot] = if entry.next == NONE { GONE } else { slot_of(entry.hash, entry.next) };
                break;
            }
            match self.entry(found) {
                None => return Some(entry.body),
                Some(head) if head.value == entry.value => {
                    self.unchain(found, place, entry.next);
                    break;
                }
                Some(_) => (slot, found) = self.tables[at].candidate(entry.hash, slot + 1),
            }
        }
        self.tables[at].lower(entry.priority);
        if self.tables[at].priorities.is_empty() {
            self.tables.remove(at);
        }
        self.sort();
        Some(entry.body)
    }

    /// The rules of the keys, by their places; [`NONE`] where there is none. At most [`BURST`] keys.
    #[inline]
    pub fn look_up(&self, keys: &[Key], found: &mut [u32; BURST]) {
        let count = keys.len().min(BURST);
        found[..count].fill(NONE);
        let mut open = if count == BURST { u64::MAX } else { (1 << count) - 1 };
        let mut ranks = [(0, 0); BURST];
        for (order, table) in self.tables.iter().enumerate() {
            let (mut hashes, mut candidates) = ([0; BURST], [(0, NONE); BURST]);
            for_each(open, |at| {
                hashes[at] = table.hash(&keys[at], self.secret);
                prefetch(&raw const table.slots[table.home(hashes[at])]);
            });
            for_each(open, |at| {
                candidates[at] = table.first(hashes[at]);
                if let Some(entry) = self.entries.get(candidates[at].1 as usize) {
                    prefetch(&raw const *entry);
                    prefetch((&raw const *entry).wrapping_byte_add(64));
                }
            });
            for_each(open, |at| {
                if let Some((place, entry)) = self.confirm(table, &keys[at], hashes[at], candidates[at])
                    && (found[at] == NONE || self.is_better(entry, found[at]))
                {
                    (found[at], ranks[at]) = (place, (entry.priority, entry.bits));
                }
            });
            let Some(next) = self.tables.get(order + 1) else { break };
            for_each(open, |at| {
                if found[at] != NONE && ranks[at] > (next.highest, next.bits) {
                    open &= !(1 << at);
                }
            });
            if open == 0 {
                break;
            }
        }
    }

    /// The body of the rule at a place that [`Classifier::look_up`] has found.
    #[inline]
    pub fn body_mut(&mut self, place: u32) -> Option<&mut T> {
        self.entries.get_mut(place as usize)?.as_mut().map(|entry| &mut entry.body)
    }

    /// How important the rule at a place is; `None` is less than any.
    pub fn priority(&self, place: u32) -> Option<u32> {
        self.entry(place).map(|entry| entry.priority)
    }

    /// The body of a rule.
    pub fn get(&self, id: RuleId) -> Option<&T> {
        self.by_id.get(&id).and_then(|place| self.entry(*place)).map(|entry| &entry.body)
    }

    /// The rules behind an id, in order.
    pub fn after(&self, id: Option<RuleId>) -> impl Iterator<Item = (RuleId, &T)> {
        let from = id.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_id.range((from, Bound::Unbounded)).filter_map(|(id, place)| Some((*id, &self.entry(*place)?.body)))
    }

    #[inline]
    fn entry(&self, place: u32) -> Option<&Entry<T>> {
        self.entries.get(place as usize)?.as_ref()
    }

    /// The candidate, or one behind it, that is the key's.
    #[inline]
    fn confirm(&self, table: &Table, key: &Key, hash: u64, candidate: (usize, u32)) -> Option<(u32, &Entry<T>)> {
        let (mut slot, mut place) = candidate;
        loop {
            let entry = self.entry(place)?;
            if table.matches(key, &entry.value) {
                return Some((place, entry));
            }
            (slot, place) = table.candidate(hash, slot + 1);
        }
    }

    fn is_better(&self, entry: &Entry<T>, than: u32) -> bool {
        self.entry(than).is_none_or(|best| entry.rank() > best.rank())
    }

    /// The table of a mask, made if need be.
    fn table(&mut self, mask: &Key) -> usize {
        if let Some(at) = self.tables.iter().position(|table| *table.mask == *mask) {
            return at;
        }
        self.tables.push(Table::new(mask));
        self.tables.len() - 1
    }

    /// The slot and the most important rule of a value.
    fn head(&self, at: usize, hash: u64, value: &Key) -> Option<(usize, u32)> {
        let (mut slot, mut place) = self.tables[at].first(hash);
        loop {
            if self.entry(place)?.value == *value {
                return Some((slot, place));
            }
            (slot, place) = self.tables[at].candidate(hash, slot + 1);
        }
    }

    fn add_slot(&mut self, at: usize, hash: u64, place: u32) {
        let table = &mut self.tables[at];
        if (table.used + 1) * 2 > table.slots.len() {
            let places: Vec<_> =
                table.slots.iter().filter(|slot| is_live(**slot)).map(|slot| *slot as u32 - 1).collect();
            table.slots = vec![FREE; ((places.len() + 1) * 4).next_power_of_two().max(LEAST)];
            table.used = 0;
            for old in places {
                if let Some(Some(entry)) = self.entries.get(old as usize) {
                    table.fill(entry.hash, old);
                }
            }
        }
        table.fill(hash, place);
    }

    /// Puts a rule where it belongs among those of the same value.
    fn chain(&mut self, at: usize, slot: usize, head: u32, place: u32) {
        let rank = self.entry(place).map(Entry::rank);
        let (mut before, mut behind) = (NONE, head);
        while let Some(entry) = self.entry(behind)
            && Some(entry.rank()) > rank
        {
            (before, behind) = (behind, entry.next);
        }
        self.set_next(place, behind);
        match self.entry(place).map(|entry| entry.hash) {
            Some(hash) if before == NONE => self.tables[at].slots[slot] = slot_of(hash, place),
            _ => self.set_next(before, place),
        }
    }

    /// Takes a rule out of the chain that begins at `head`, which is another.
    fn unchain(&mut self, head: u32, gone: u32, next: u32) {
        let mut at = head;
        while let Some(entry) = self.entry(at) {
            if entry.next == gone {
                self.set_next(at, next);
                return;
            }
            at = entry.next;
        }
    }

    fn set_next(&mut self, place: u32, next: u32) {
        if let Some(Some(entry)) = self.entries.get_mut(place as usize) {
            entry.next = next;
        }
    }

    fn sort(&mut self) {
        let in_order = self.tables.windows(2).all(|pair| pair[0].importance() >= pair[1].importance());
        if !in_order {
            self.tables.sort_by_key(|table| Reverse(table.importance()));
        }
    }
}

impl Table {
    fn new(mask: &Key) -> Self {
        let words = (0..WORDS as u8).filter(|word| mask.0[usize::from(*word)] != 0).collect();
        let bits = mask.0.iter().map(|word| word.count_ones()).sum();
        let (slots, priorities) = (vec![FREE; LEAST], BTreeMap::new());
        Self { mask: Arc::new(*mask), words, bits, slots, used: 0, priorities, highest: 0 }
    }

    fn importance(&self) -> (u32, u32) {
        (self.highest, self.bits)
    }

    #[inline]
    fn hash(&self, key: &Key, secret: u64) -> u64 {
        let mut hash = secret;
        for word in &self.words {
            let word = usize::from(*word) % WORDS;
            hash = mix(hash ^ (key.0[word] & self.mask.0[word]));
        }
        mix(hash)
    }

    #[inline]
    fn matches(&self, key: &Key, value: &Key) -> bool {
        let mut differ = 0;
        for word in &self.words {
            let word = usize::from(*word) % WORDS;
            differ |= (key.0[word] & self.mask.0[word]) ^ value.0[word];
        }
        differ == 0
    }

    /// The first slot that a hash may be in.
    #[inline]
    fn home(&self, hash: u64) -> usize {
        hash as usize & (self.slots.len() - 1)
    }

    /// The first slot with a hash like this one, and the rule in it.
    #[inline]
    fn first(&self, hash: u64) -> (usize, u32) {
        self.candidate(hash, self.home(hash))
    }

    /// The first slot from `at` on with a hash like this one, and the rule in it; [`NONE`] when there is none.
    #[inline]
    fn candidate(&self, hash: u64, mut at: usize) -> (usize, u32) {
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

    fn fill(&mut self, hash: u64, place: u32) {
        let last = self.slots.len() - 1;
        let mut at = self.home(hash);
        while is_live(self.slots[at]) {
            at = (at + 1) & last;
        }
        self.used += usize::from(self.slots[at] == FREE);
        self.slots[at] = slot_of(hash, place);
    }

    fn raise(&mut self, priority: u32) {
        *self.priorities.entry(priority).or_default() += 1;
        self.highest = self.highest.max(priority);
    }

    fn lower(&mut self, priority: u32) {
        if let Some(count) = self.priorities.get_mut(&priority) {
            *count -= 1;
            if *count == 0 {
                self.priorities.remove(&priority);
            }
        }
        self.highest = self.priorities.last_key_value().map_or(0, |(highest, _)| *highest);
    }
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

/// Each place whose bit is set.
#[inline(always)]
fn for_each(mut bits: u64, mut visit: impl FnMut(usize)) {
    while bits != 0 {
        visit(bits.trailing_zeros() as usize);
        bits &= bits - 1;
    }
}

#[inline(always)]
fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect but on the cache, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the classifier must give, by looking at every rule.
    fn reference(rules: &[(RuleId, u32, Key, Key)], key: &Key) -> Option<RuleId> {
        let bits = |mask: &Key| mask.0.iter().map(|word| word.count_ones()).sum::<u32>();
        let matches = |value: &Key, mask: &Key| (0..WORDS).all(|word| key.0[word] & mask.0[word] == value.0[word]);
        let fits = rules.iter().filter(|(_, _, value, mask)| matches(value, mask));
        fits.max_by_key(|(id, priority, _, mask)| (*priority, bits(mask), Reverse(*id))).map(|(id, ..)| *id)
    }

    fn found(classifier: &Classifier<RuleId>, keys: &[Key]) -> Vec<Option<RuleId>> {
        let mut places = [0; BURST];
        classifier.look_up(keys, &mut places);
        places[..keys.len()].iter().map(|place| classifier.entry(*place).map(|entry| entry.body)).collect()
    }

    /// Few values and masks, so that rules overlap, and are equal.
    fn word() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0u64), Just(1), Just(3), Just(0xff00), Just(u64::MAX)]
    }

    fn key() -> impl Strategy<Value = Key> {
        (word(), word(), word()).prop_map(|(a, b, c)| {
            let mut key = Key::EMPTY;
            (key.0[0], key.0[3], key.0[15]) = (a, b, c);
            key
        })
    }

    #[derive(Debug, Clone)]
    enum Change {
        Insert(u128, u32, Box<(Key, Key)>),
        Remove(u128),
        LookUp(Vec<Key>),
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            5 => (0..40u128, 0..3u32, key(), key()).prop_map(|(id, priority, value, mask)| {
                let mut masked = value;
                (0..WORDS).for_each(|word| masked.0[word] &= mask.0[word]);
                Change::Insert(id, priority, Box::new((masked, mask)))
            }),
            2 => (0..40u128).prop_map(Change::Remove),
            3 => prop::collection::vec(key(), 0..=BURST).prop_map(Change::LookUp),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_frame_gets_the_rule_that_a_look_at_all_rules_finds(changes in prop::collection::vec(change(), 1..120)) {
            let mut classifier = Classifier::default();
            let mut rules: Vec<(RuleId, u32, Key, Key)> = Vec::new();
            for change in changes {
                match change {
                    Change::Insert(id, priority, pair) => {
                        let (value, mask) = *pair;
                        let known = rules.iter().any(|rule| rule.0 == RuleId(id));
                        rules.retain(|rule| rule.0 != RuleId(id));
                        rules.push((RuleId(id), priority, value, mask));
                        let old = classifier.insert(RuleId(id), priority, &value, &mask, RuleId(id));
                        prop_assert_eq!(old.is_some(), known);
                    }
                    Change::Remove(id) => {
                        let known = rules.iter().any(|rule| rule.0 == RuleId(id));
                        rules.retain(|rule| rule.0 != RuleId(id));
                        prop_assert_eq!(classifier.remove(RuleId(id)).is_some(), known);
                    }
                    Change::LookUp(keys) => {
                        let wanted: Vec<_> = keys.iter().map(|key| reference(&rules, key)).collect();
                        prop_assert_eq!(found(&classifier, &keys), wanted);
                    }
                }
                prop_assert_eq!(classifier.len(), rules.len());
                let listed: Vec<_> = classifier.after(None).map(|(id, _)| id).collect();
                let mut ids: Vec<_> = rules.iter().map(|rule| rule.0).collect();
                ids.sort_unstable();
                prop_assert_eq!(listed, ids);
            }
        }
    }

    #[test]
    fn many_rules_come_and_go_and_tables_of_no_rule_cost_nothing() {
        let mut classifier = Classifier::default();
        let mask = Key([u64::MAX; WORDS]);
        let value = |number: u64| Key([number; WORDS]);
        for round in 0..3 {
            for number in 0..20_000 {
                let id = RuleId(number.into());
                assert_eq!(
                    classifier.insert(id, round, &value(number), &mask, id).is_some(),
                    round > 0 && number < 10_000
                );
            }
            for number in 10_000..20_000u64 {
                assert!(classifier.remove(RuleId(number.into())).is_some());
            }
            let keys: Vec<_> = (9_990..10_010).map(value).collect();
            let wanted: Vec<_> =
                (9_990..10_010u128).map(|number| (number < 10_000).then_some(RuleId(number))).collect();
            assert_eq!(found(&classifier, &keys), wanted);
        }
        assert_eq!((classifier.len(), classifier.masks()), (10_000, 1));
        assert!((0..10_000u128).all(|number| classifier.remove(RuleId(number)).is_some()));
        assert_eq!((classifier.len(), classifier.masks()), (0, 0));
    }
}
