//! Which rule a frame gets: tuple space search (Srinivasan, Suri, Varghese 1999; OVS `lib/classifier.c`).
//!
//! Rules with the same mask share a hash table of their values. A frame's key is looked up in each table, those first that may have the
//! most important rule, until no table that is left can have a better one. Looking up is done by the burst, a table at a time:
//! first all hashes, then all slots, then all rules, each fetched into the cache while others are worked on. That is why the tables
//! are made here: a map that is asked key by key cannot do it.
//!
//! Before the tables there is a cache of what was found: by the hash of all bits that any rule looks at. Keys with the same bits have the same rule.
//! What the cache says is checked against the rule, so a collision of hashes never applies a rule that does not match. Any change of the
//! rules empties it.

mod fitting;
mod table;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::Arc;

use ringspan_protocol::RuleId;

use table::{Mask, Table, hash, port_bit, words_of};

use super::cache::Cache;
use super::key::{Key, WORDS};
use crate::BURST;

/// No rule.
pub const NONE: u32 = u32::MAX;

/// What makes one rule more important than another: the priority, the bits of its mask, and the lower id.
type Rank = (u32, u32, Reverse<RuleId>);

/// Rules, with what is to be done by each.
#[derive(Debug)]
pub struct Classifier<T> {
    /// In the order in which they are asked: those of the highest priority, and of them the most exact ones, first.
    tables: Vec<Table>,
    entries: Entries<T>,
    /// Places of `entries` that are free.
    free: Vec<u32>,
    by_id: BTreeMap<RuleId, u32>,
    /// So that no guest knows which keys collide.
    secret: u64,
    /// All bits that any table looks at, and their words.
    looked_at: Key,
    words: Vec<u8>,
    cache: Cache,
}

/// One rule. With a body of 32 bytes it is three cache lines, of which a NIC may have hundreds of thousands; its hash is made anew when it goes.
#[derive(Debug)]
#[repr(C)]
struct Entry<T> {
    value: Key,
    mask: Arc<Mask>,
    /// The next less important rule of the same value and mask.
    next: u32,
    priority: u32,
    id: RuleId,
    body: T,
}

const _: () = assert!(size_of::<Option<Entry<[u64; 4]>>>() == 3 * 64);

/// Rules by their places, in pieces: one array would have to be copied as a whole to grow, and frames would wait meanwhile.
#[derive(Debug)]
struct Entries<T> {
    pieces: Vec<Vec<Option<Entry<T>>>>,
    /// Places that were ever used.
    len: u32,
}

/// Places of a piece.
const PIECE: u32 = 512;

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self { pieces: Vec::new(), len: 0 }
    }
}

impl<T> Entries<T> {
    #[inline]
    fn at(&self, place: u32) -> Option<&Option<Entry<T>>> {
        self.pieces.get((place / PIECE) as usize)?.get((place % PIECE) as usize)
    }

    #[inline]
    fn at_mut(&mut self, place: u32) -> Option<&mut Option<Entry<T>>> {
        self.pieces.get_mut((place / PIECE) as usize)?.get_mut((place % PIECE) as usize)
    }

    /// Puts a rule at a place that was used before, or at the next one.
    fn put(&mut self, place: u32, entry: Entry<T>) {
        if let Some(at) = self.at_mut(place) {
            *at = Some(entry);
            return;
        }
        if self.len.is_multiple_of(PIECE) {
            self.pieces.push(Vec::with_capacity(PIECE as usize));
        }
        self.len += 1;
        if let Some(piece) = self.pieces.last_mut() {
            piece.push(Some(entry));
        }
    }
}

impl<T> Entry<T> {
    #[inline]
    fn matches(&self, key: &Key) -> bool {
        let mut differ = 0;
        for word in 0..WORDS {
            differ |= (key.0[word] & self.mask.key.0[word]) ^ self.value.0[word];
        }
        differ == 0
    }

    fn rank(&self) -> Rank {
        (self.priority, self.mask.bits, Reverse(self.id))
    }
}

impl<T> Default for Classifier<T> {
    fn default() -> Self {
        let secret = RandomState::new().hash_one(0x7269_6e67_u32);
        let (tables, entries, free, by_id) = (Vec::new(), Entries::default(), Vec::new(), BTreeMap::new());
        Self { tables, entries, free, by_id, secret, looked_at: Key::EMPTY, words: Vec::new(), cache: Cache::default() }
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
        let hash = table.hash(value, self.secret);
        let entry = Entry { value: *value, mask: Arc::clone(&table.mask), next: NONE, priority, id, body };
        let place = self.free.pop().unwrap_or(self.entries.len);
        self.entries.put(place, entry);
        self.by_id.insert(id, place);
        match self.head(at, hash, value) {
            None => self.tables[at].add(hash, place),
            Some((slot, head)) => self.chain((at, slot), hash, head, place),
        }
        self.tables[at].raise(priority, value);
        self.sort();
        old
    }

    /// Removes a rule. Returns its body.
    pub fn remove(&mut self, id: RuleId) -> Option<T> {
        let place = self.by_id.remove(&id)?;
        let entry = self.entries.at_mut(place)?.take()?;
        self.free.push(place);
        let at = self.tables.iter().position(|table| Arc::ptr_eq(&table.mask, &entry.mask))?;
        let hash = self.tables[at].hash(&entry.value, self.secret);
        // The chain's head, which may be this one, has the slot.
        let (mut slot, mut found) = self.tables[at].first(hash);
        loop {
            if found == place {
                self.tables[at].set(slot, hash, entry.next);
                break;
            }
            match self.entry(found) {
                None => return Some(entry.body),
                Some(head) if head.value == entry.value => {
                    self.unchain(found, place, entry.next);
                    break;
                }
                Some(_) => (slot, found) = self.tables[at].candidate(hash, slot + 1),
            }
        }
        self.tables[at].lower(entry.priority, &entry.value);
        if self.tables[at].is_empty() {
            self.tables.remove(at);
            self.look_at_masks();
        }
        self.sort();
        Some(entry.body)
    }

    /// The rules of the keys, by their places; [`NONE`] where there is none. At most [`BURST`] keys.
    #[inline]
    pub fn look_up(&mut self, keys: &[Key], found: &mut [u32; BURST]) {
        let count = keys.len().min(BURST);
        found[..count].fill(NONE);
        let all = if count == BURST { u64::MAX } else { (1 << count) - 1 };
        if self.tables.len() < 2 {
            return self.search(keys, found, all);
        }
        let (mut hashes, mut known) = ([0; BURST], 0u64);
        for_each(all, |at| {
            hashes[at] = hash(&self.words, &self.looked_at, &keys[at], self.secret);
            self.cache.prefetch(hashes[at]);
        });
        for_each(all, |at| {
            if let Some(place) = self.cache.get(hashes[at]) {
                (found[at], known) = (place, known | 1 << at);
                self.fetch(place);
            }
        });
        let mut open = all & !known;
        for_each(known, |at| {
            if found[at] != NONE && !self.entry(found[at]).is_some_and(|entry| entry.matches(&keys[at])) {
                (found[at], open) = (NONE, open | 1 << at);
            }
        });
        if open != 0 {
            self.search(keys, found, open);
            for_each(open, |at| self.cache.put(hashes[at], found[at]));
        }
    }

    /// Fetches a rule into the processor's cache: its value, its mask's address, and what is done by it.
    #[inline]
    fn fetch(&self, place: u32) {
        if let Some(entry) = self.entries.at(place) {
            let entry = &raw const *entry;
            (0..3).for_each(|line| prefetch(entry.wrapping_byte_add(64 * line)));
        }
    }

    /// Asks the tables for the keys whose bits are set.
    fn search(&self, keys: &[Key], found: &mut [u32; BURST], mut open: u64) {
        let mut ranks = [(0, 0); BURST];
        let mut ports = 0;
        for_each(open, |at| ports |= port_bit(&keys[at]));
        for (order, table) in self.tables.iter().enumerate() {
            // One guest's masks do not cost the others.
            if table.ports & ports == 0 {
                continue;
            }
            let (mut hashes, mut candidates) = ([0; BURST], [(0, NONE); BURST]);
            for_each(open, |at| {
                hashes[at] = table.hash(&keys[at], self.secret);
                table.prefetch(hashes[at]);
            });
            for_each(open, |at| {
                candidates[at] = table.first(hashes[at]);
                self.fetch(candidates[at].1);
            });
            for_each(open, |at| {
                if let Some((place, entry)) = self.confirm(table, &keys[at], hashes[at], candidates[at])
                    && (found[at] == NONE || self.is_better(entry, found[at]))
                {
                    (found[at], ranks[at]) = (place, (entry.priority, entry.mask.bits));
                }
            });
            let Some(next) = self.tables.get(order + 1) else { break };
            for_each(open, |at| {
                if found[at] != NONE && ranks[at] > next.importance() {
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
        self.entries.at_mut(place)?.as_mut().map(|entry| &mut entry.body)
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
        self.entries.at(place)?.as_ref()
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
        if let Some(at) = self.tables.iter().position(|table| table.mask.key == *mask) {
            return at;
        }
        self.tables.push(Table::new(mask));
        self.look_at_masks();
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

    /// Which bits any table looks at.
    fn look_at_masks(&mut self) {
        self.looked_at = Key::EMPTY;
        for table in &self.tables {
            (0..WORDS).for_each(|word| self.looked_at.0[word] |= table.mask.key.0[word]);
        }
        self.words = words_of(&self.looked_at);
    }

    /// Puts a rule where it belongs among those of the same value, of which the first one is in a slot of a table.
    fn chain(&mut self, (at, slot): (usize, usize), hash: u64, head: u32, place: u32) {
        let rank = self.entry(place).map(Entry::rank);
        let (mut before, mut behind) = (NONE, head);
        while let Some(entry) = self.entry(behind)
            && Some(entry.rank()) > rank
        {
            (before, behind) = (behind, entry.next);
        }
        self.set_next(place, behind);
        if before == NONE {
            self.tables[at].set(slot, hash, place);
        } else {
            self.set_next(before, place);
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
        if let Some(Some(entry)) = self.entries.at_mut(place) {
            entry.next = next;
        }
    }

    /// After a change: the tables are in order, and nothing of before is in the cache.
    fn sort(&mut self) {
        self.cache.clear();
        let in_order = self.tables.windows(2).all(|pair| pair[0].importance() >= pair[1].importance());
        if !in_order {
            self.tables.sort_by_key(|table| Reverse(table.importance()));
        }
    }
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
pub(super) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect but on the cache, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
}
