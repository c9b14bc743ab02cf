//! A flow's text, kept small and exactly.
//!
//! The flows of a datapath are alike but for a few numbers: addresses, ports, MAC addresses. So the text of the first one of its kind is kept as an example, and of each other flow only where
//! it differs from that. Nothing is understood, nothing is lost, and nothing is hashed in place of being compared: a line of a dump is compared
//! with the pieces of example and difference that make up the flow's text ([`Packed::reader`]), without putting them together.
//!
//! What may differ are *values*: runs of digits, dots and colons behind `=`, `(` or `/`. All else is the kind.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use super::table::UfidHasher;

/// So many examples are kept before it is looked which of them no flow is like any more.
const LEAST: usize = 256;

/// The text of a flow: its keys, and behind them its actions. Cloned and compared at little cost.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    like: Arc<Example>,
    /// For each value that differs: how many values lie between it and the one before, how many letters of the example's it begins with,
    /// how many of its own follow, and those. Numbers are written as [`write_number`] does.
    differences: Box<[u8]>,
}

/// The first flow of its kind.
#[derive(Debug)]
struct Example {
    text: Box<str>,
    /// Where the actions begin.
    split: usize,
    /// Where its values begin and end.
    values: Box<[(u32, u32)]>,
    /// Whether all flows of its kind have a tunnel among their keys, take packets out of one, or have a meter.
    in_tunnel: bool,
    pops: bool,
    metered: bool,
}

/// The examples.
#[derive(Debug)]
pub(super) struct Kinds {
    by_hash: HashMap<u64, Arc<Example>, BuildHasherDefault<UfidHasher>>,
    /// When there are so many, those that no flow is like go.
    most: usize,
    /// Used again for each flow.
    text: String,
    values: Vec<(u32, u32)>,
    differences: Vec<u8>,
}

impl Default for Kinds {
    fn default() -> Self {
        let (text, values, differences) = (String::new(), Vec::new(), Vec::new());
        Self { by_hash: HashMap::default(), most: LEAST, text, values, differences }
    }
}

impl Kinds {
    /// Packs what a flow matches and does.
    pub(super) fn pack(&mut self, keys: &str, actions: &str) -> Packed {
        self.text.clear();
        self.text.push_str(keys);
        self.text.push_str(actions);
        self.values.clear();
        // Apart, so that no value lies in both.
        let hash = find_values(keys.as_bytes(), 0, 0, &mut self.values);
        let hash = find_values(actions.as_bytes(), keys.len(), mix(hash), &mut self.values);
        let known = self.by_hash.get(&hash).cloned();
        let is_known = known.is_some();
        if let Some(like) = known
            && self.differs(&like, keys.len())
        {
            return Packed { like, differences: self.differences.as_slice().into() };
        }
        let like = Arc::new(Example::new(keys, actions, &self.values));
        // Of two kinds of one hash the second one's flows share nothing.
        if !is_known {
            if self.by_hash.len() >= self.most {
                self.by_hash.retain(|_, example| Arc::strong_count(example) > 1);
                self.most = (2 * self.by_hash.len()).max(LEAST);
            }
            self.by_hash.insert(hash, Arc::clone(&like));
        }
        Packed { like, differences: Box::default() }
    }

    /// Whether the text is of the example's kind; then `differences` is what it differs in.
    fn differs(&mut self, example: &Example, split: usize) -> bool {
        let Self { text, values, differences, .. } = self;
        differences.clear();
        if values.len() != example.values.len() || split != keys_end(example, values) {
            return false;
        }
        let (mine, other) = (text.as_bytes(), example.text.as_bytes());
        let (mut at, mut other_at, mut between) = (0, 0, 0);
        for ((from, to), (other_from, other_to)) in values.iter().zip(&example.values) {
            let range = |from: u32, to: u32| from as usize..to as usize;
            if mine[at..*from as usize] != other[other_at..*other_from as usize] {
                return false;
            }
            (at, other_at) = (*to as usize, *other_to as usize);
            let (mine, other) = (&mine[range(*from, *to)], &other[range(*other_from, *other_to)]);
            if mine == other {
                between += 1;
                continue;
            }
            let same = mine.iter().zip(other).take_while(|(mine, other)| mine == other).count();
            for number in [between, same, mine.len() - same] {
                write_number(differences, number);
            }
            differences.extend_from_slice(&mine[same..]);
            between = 0;
        }
        mine[at..] == other[other_at..]
    }
}

/// Where the keys of a text with these values end, if it is of the example's kind: as far behind the last value of the keys.
fn keys_end(example: &Example, values: &[(u32, u32)]) -> usize {
    let of_keys = example.values.partition_point(|(_, to)| *to as usize <= example.split);
    match of_keys.checked_sub(1) {
        Some(last) => example.split - example.values[last].1 as usize + values[last].1 as usize,
        None => example.split,
    }
}

impl Example {
    fn new(keys: &str, actions: &str, values: &[(u32, u32)]) -> Self {
        // No value has any of these letters, or is among them.
        let (in_tunnel, pops) = (keys.contains("tunnel("), actions.starts_with("tnl_pop("));
        let metered = actions.contains("meter(");
        let text = [keys, actions].concat().into();
        Self { text, split: keys.len(), values: values.into(), in_tunnel, pops, metered }
    }
}

impl PartialEq for Packed {
    fn eq(&self, other: &Self) -> bool {
        if Arc::ptr_eq(&self.like, &other.like) {
            return self.differences == other.differences;
        }
        // Packed by two sources, or as the second kind of one hash.
        self.keys() == other.keys() && self.actions() == other.actions()
    }
}

impl Packed {
    /// What it matches.
    pub(super) fn keys(&self) -> String {
        let mut reader = self.reader();
        let mut text = Vec::with_capacity(self.like.split + 32);
        reader.keys(|piece| push(&mut text, piece));
        String::from_utf8_lossy(&text).into_owned()
    }

    /// What it does.
    pub(super) fn actions(&self) -> String {
        let mut reader = self.reader();
        let mut text = Vec::with_capacity(self.like.text.len() - self.like.split + 32);
        reader.keys(|_| true);
        reader.actions(|piece| push(&mut text, piece));
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Whether it matches the same.
    pub(super) fn has_keys_of(&self, other: &Self) -> bool {
        self == other || self.keys() == other.keys()
    }

    /// Whether its packets come out of a tunnel.
    pub(super) fn is_in_tunnel(&self) -> bool {
        self.like.in_tunnel
    }

    /// Whether it takes packets out of a tunnel.
    pub(super) fn pops_tunnel(&self) -> bool {
        self.like.pops
    }

    /// Whether it has a meter.
    pub(super) fn is_metered(&self) -> bool {
        self.like.metered
    }

    /// Bytes that it takes, beside those of the example.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.differences.len()
    }

    /// Its text from the beginning.
    #[inline]
    pub(super) fn reader(&self) -> Reader<'_> {
        Reader { like: &self.like, rest: &self.differences, value: 0, at: 0 }
    }
}

/// Takes a text piece by piece: first the keys, then the actions.
pub(super) struct Reader<'a> {
    like: &'a Example,
    /// Differences that are left.
    rest: &'a [u8],
    /// The value from which on the next difference counts.
    value: usize,
    /// How far the example was read.
    at: usize,
}

impl<'a> Reader<'a> {
    /// The pieces of the keys, until `piece` says that it is enough. Whether it never did.
    #[inline]
    pub(super) fn keys(&mut self, piece: impl FnMut(&'a [u8]) -> bool) -> bool {
        self.until(self.like.split, piece)
    }

    /// The same of the actions, when the keys were read.
    #[inline]
    pub(super) fn actions(&mut self, piece: impl FnMut(&'a [u8]) -> bool) -> bool {
        self.until(self.like.text.len(), piece)
    }

    #[inline]
    fn until(&mut self, end: usize, mut piece: impl FnMut(&'a [u8]) -> bool) -> bool {
        let text = self.like.text.as_bytes();
        while let Some((between, rest)) = read_number(self.rest)
            && let Some((from, to)) = self.like.values.get(self.value + between)
            && (*from as usize) < end
            && let Some((same, rest)) = read_number(rest)
            && let Some((len, rest)) = read_number(rest)
            && let Some((own, rest)) = rest.split_at_checked(len)
        {
            let like = text.get(self.at..*from as usize + same).unwrap_or_default();
            (self.at, self.value, self.rest) = (*to as usize, self.value + between + 1, rest);
            if !piece(like) || !piece(own) {
                return false;
            }
        }
        let like = text.get(self.at..end).unwrap_or_default();
        self.at = end;
        piece(like)
    }
}

/// Takes a piece off the front of a text, if it begins with it.
#[inline]
pub(super) fn strip(text: &mut &[u8], piece: &[u8]) -> bool {
    match text.strip_prefix(piece) {
        Some(rest) => {
            *text = rest;
            true
        }
        None => false,
    }
}

fn push(text: &mut Vec<u8>, piece: &[u8]) -> bool {
    text.extend_from_slice(piece);
    true
}

/// Finds the values of a text that begins at `offset`, and makes a hash of all else.
fn find_values(text: &[u8], offset: usize, hash: u64, values: &mut Vec<(u32, u32)>) -> u64 {
    let (mut hash, mut at, mut from) = (hash, 0, 0);
    while at < text.len() {
        let opens = matches!(text[at], b'=' | b'(' | b'/');
        at += 1;
        if !opens {
            continue;
        }
        let end = at + text[at..].iter().take_while(|byte| IS_OF_VALUE[usize::from(**byte)]).count();
        if end > at {
            hash = hash_of(hash, &text[from..at]);
            values.push(((offset + at) as u32, (offset + end) as u32));
            (at, from) = (end, end);
        }
    }
    hash_of(hash, &text[from..])
}

/// Hexadecimal digits, and what stands between them in addresses.
const IS_OF_VALUE: [bool; 256] = {
    let mut is = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        is[byte] = matches!(byte as u8, b'0'..=b'9' | b'a'..=b'f' | b'x' | b'.' | b':');
        byte += 1;
    }
    is
};

/// Only says where to look: the texts are compared.
fn hash_of(hash: u64, text: &[u8]) -> u64 {
    let (words, rest) = text.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let hash = words.iter().fold(hash, |hash, word| mix(hash ^ u64::from_le_bytes(*word)));
    mix(hash ^ u64::from_le_bytes(last) ^ (text.len() as u64) << 56)
}

fn mix(word: u64) -> u64 {
    let product = u128::from(word ^ 0x9e37_79b9_7f4a_7c15) * 0xf39c_c060_5ced_c835_u128;
    (product >> 64) as u64 ^ product as u64
}

/// Seven bits in a byte, the lowest first; the highest bit says that more follow.
fn write_number(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

#[inline]
fn read_number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    match bytes {
        [byte @ 0..0x80, rest @ ..] => Some((usize::from(*byte), rest)),
        _ => read_long_number(bytes),
    }
}

#[cold]
fn read_long_number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let len = bytes.iter().position(|byte| *byte < 0x80)? + 1;
    let number = bytes[..len].iter().rev().fold(0, |number, byte| number << 7 | usize::from(byte & 0x7f));
    Some((number, &bytes[len..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(kinds: &mut Kinds, keys: &str, actions: &str) -> Packed {
        let packed = kinds.pack(keys, actions);
        assert_eq!((packed.keys().as_str(), packed.actions().as_str()), (keys, actions));
        assert!(reads_as(&packed, keys, actions));
        assert!(!reads_as(&packed, keys, &format!("{actions}1")) && !reads_as(&packed, &format!("1{keys}"), actions));
        assert_eq!(packed.is_in_tunnel(), keys.contains("tunnel("), "{keys}");
        assert_eq!(packed.pops_tunnel(), actions.starts_with("tnl_pop("), "{actions}");
        assert_eq!(packed.is_metered(), actions.contains("meter("), "{actions}");
        packed
    }

    /// As the lines of dumps are compared.
    fn reads_as(packed: &Packed, keys: &str, actions: &str) -> bool {
        let (mut keys, mut actions) = (keys.as_bytes(), actions.as_bytes());
        let mut reader = packed.reader();
        reader.keys(|piece| strip(&mut keys, piece))
            && keys.is_empty()
            && reader.actions(|piece| strip(&mut actions, piece))
            && actions.is_empty()
    }

    #[test]
    fn a_flow_like_another_one_takes_what_it_differs_in() {
        let mut kinds = Kinds::default();
        let keys = |at: u32| {
            format!(
                "recirc_id(0),in_port(nic0_vf0),eth(src=02:00:00:00:00:01,dst=02:00:00:00:{:02x}:{:02x}),ipv4(src=10.0.{}.{}/0.0.0.0,proto=17/0,frag=no),udp(src={at}/0,dst=53)",
                at >> 8,
                at as u8,
                at >> 8,
                at as u8
            )
        };
        let sizes: Vec<usize> =
            (1..5000).map(|at| check(&mut kinds, &keys(at), "set(ipv4(ttl=63)),nic0_vf1").size()).collect();
        assert_eq!(kinds.by_hash.len(), 1);
        assert!(sizes[0] == 0 && sizes.iter().all(|size| *size <= 32), "{:?}", sizes.iter().max());
        // Other ports, other fields and other actions are other kinds.
        check(&mut kinds, &keys(1).replace("vf0", "vf1"), "set(ipv4(ttl=63)),nic0_vf1");
        check(&mut kinds, &keys(1).replace("udp", "tcp"), "set(ipv4(ttl=63)),nic0_vf1");
        check(&mut kinds, &keys(1), "set(ipv4(ttl=63)),nic0_vf2");
        assert_eq!(kinds.by_hash.len(), 4);
    }

    #[test]
    fn a_number_that_moves_from_keys_to_actions_is_another_flow() {
        let mut kinds = Kinds::default();
        for (keys, actions) in
            [("in_port(1)", "2"), ("in_port(12", ")2"), ("in_port(", "1)2"), ("in_port(1)2", ""), ("", "in_port(1)2")]
        {
            check(&mut kinds, keys, actions);
        }
        // Of one kind, and cut elsewhere.
        check(&mut kinds, "a(1,b(2", "c(3)");
        check(&mut kinds, "a(1234,b(5", "c(6)");
    }

    #[test]
    fn examples_that_no_flow_is_like_do_not_pile_up() {
        let mut kinds = Kinds::default();
        let kept = check(&mut kinds, "in_port(kept)", "x=1");
        for name in 0..20_000 {
            let name: String = format!("{name}").bytes().map(|digit| char::from(digit - b'0' + b'g')).collect();
            check(&mut kinds, &format!("in_port({name})"), "drop");
        }
        assert!(kinds.by_hash.len() <= LEAST);
        let again = check(&mut kinds, "in_port(kept)", "x=2");
        assert!(Arc::ptr_eq(&kept.like, &again.like));
    }

    fn texts() -> impl Strategy<Value = Vec<(String, String)>> {
        // Few letters, so that many are alike and values lie side by side.
        let part = "[=(/a0:,gü]{0,12}|tunnel\\([0-3]{1,200}\\)|tnl_pop\\(4\\)|meter\\([0-9]\\)";
        prop::collection::vec((part, part), 1..40)
    }

    proptest! {
        #[test]
        fn any_text_is_given_back_as_it_was(texts in texts()) {
            let mut kinds = Kinds::default();
            let packed: Vec<Packed> = texts.iter().map(|(keys, actions)| kinds.pack(keys, actions)).collect();
            // Another source's.
            let mut other = Kinds::default();
            let others: Vec<Packed> = texts.iter().rev().map(|(keys, actions)| other.pack(keys, actions)).collect();
            for (packed, (keys, actions)) in packed.iter().zip(&texts) {
                prop_assert_eq!((&packed.keys(), &packed.actions()), (keys, actions));
                prop_assert_eq!(packed.is_in_tunnel(), keys.contains("tunnel("));
                prop_assert_eq!(packed.pops_tunnel(), actions.starts_with("tnl_pop("));
                prop_assert_eq!(packed.is_metered(), actions.contains("meter("));
                for (at, (other_keys, other_actions)) in texts.iter().enumerate() {
                    let same = (keys, actions) == (other_keys, other_actions);
                    prop_assert_eq!(reads_as(packed, other_keys, other_actions), same);
                    let other = &others[texts.len() - 1 - at];
                    prop_assert_eq!((packed == other, packed.has_keys_of(other)), (same, keys == other_keys));
                }
            }
        }
    }
}
