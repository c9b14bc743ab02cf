//! The flows as they were last told, and what changed since.
//!
//! A flow is kept as the text that OVS printed, without its counters: a third of what its parsed form takes, and comparing it with the
//! next dump is comparing memory. Only what differs is parsed and compiled.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use ringspan_protocol::NicName;

use crate::ovs::compile::Cause;
use crate::ovs::flow::Stats;

/// Ufids are hashes themselves.
#[derive(Default)]
pub(super) struct UfidHasher(u64);

impl Hasher for UfidHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u128(&mut self, value: u128) {
        self.0 = (value >> 64) as u64 ^ value as u64;
    }
}

/// What became of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// Not told to the engine yet.
    Pending,
    /// This NIC has its rule.
    Offloaded(NicName),
    /// It stays with OVS.
    Not(Box<Cause>),
}

/// A flow.
#[derive(Debug)]
pub(super) struct Entry {
    /// Keys and actions, one behind the other.
    text: Box<str>,
    /// Where the actions begin.
    split: u32,
    /// The dump that it was last seen in.
    seen: u32,
    /// What OVS counted.
    pub stats: Stats,
    /// Whether it was told twice in one dump, and not alike.
    pub torn: bool,
    /// What became of it.
    pub state: State,
}

impl Entry {
    /// What it matches.
    pub(super) fn keys(&self) -> &str {
        &self.text[..self.split as usize]
    }

    /// What it does.
    pub(super) fn actions(&self) -> &str {
        &self.text[self.split as usize..]
    }

    fn is(&self, keys: &str, actions: &str) -> bool {
        self.keys() == keys && self.actions() == actions
    }
}

/// Counters of what could not be kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Misses {
    /// Lines that are no flows.
    pub unreadable: u64,
    /// The first of them.
    pub example: Option<String>,
    /// Flows beyond the limit.
    pub over_limit: u64,
}

/// What a dump changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// New, or not as before.
    pub changed: Vec<u128>,
    /// Gone, with the NIC that has the rule.
    pub gone: Vec<(u128, Option<NicName>)>,
}

/// All flows.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// By ufid.
    pub flows: HashMap<u128, Entry, BuildHasherDefault<UfidHasher>>,
    dump: u32,
    /// Of the last dump.
    pub misses: Misses,
}

/// One line, taken apart without looking at what it means.
struct Line<'a> {
    ufid: u128,
    keys: &'a str,
    stats: Stats,
    actions: &'a str,
}

impl Table {
    /// Takes the dumps of all datapaths, at most `limit` flows.
    pub(super) fn update(&mut self, dumps: &[String], limit: usize) -> Changes {
        self.dump = self.dump.wrapping_add(1);
        self.misses = Misses::default();
        let mut changes = Changes::default();
        for line in dumps.iter().flat_map(|dump| Lines(dump)) {
            if self.is_as_before(line) {
                continue;
            }
            match take_apart(line) {
                Some(line) => self.take(&line, limit, &mut changes),
                None if line.is_empty() || line.starts_with("flow-dump from ") => {}
                None => {
                    self.misses.unreadable += 1;
                    self.misses.example.get_or_insert_with(|| line.chars().take(200).collect());
                }
            }
        }
        let dump = self.dump;
        self.flows.retain(|ufid, entry| {
            if entry.seen != dump {
                changes.gone.push((*ufid, entry.state.nic().cloned()));
            }
            entry.seen == dump
        });
        changes
    }

    /// Whether the line is a flow of the dump before with nothing but its counters changed, which are taken then. Nothing is searched
    /// for: what should be there is compared with what is.
    fn is_as_before(&mut self, line: &str) -> bool {
        let Some((ufid, rest)) = line.strip_prefix("ufid:").and_then(|rest| rest.split_at_checked(36)) else {
            return false;
        };
        let Some(entry) = read_ufid(ufid).and_then(|ufid| self.flows.get_mut(&ufid)) else { return false };
        if entry.seen == self.dump || entry.torn {
            return false;
        }
        let Some(rest) = rest.strip_prefix(", ").and_then(|rest| rest.strip_prefix(entry.keys())) else { return false };
        let Some((stats, actions)) = rest.strip_prefix(", packets:").and_then(counters) else { return false };
        let rest = actions.strip_prefix(entry.actions());
        if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(EXTRA)) {
            return false;
        }
        (entry.seen, entry.stats) = (self.dump, stats);
        true
    }

    fn take(&mut self, line: &Line<'_>, limit: usize, changes: &mut Changes) {
        let Line { ufid, keys, stats, actions } = *line;
        let full = self.flows.len() >= limit;
        match self.flows.get_mut(&ufid) {
            Some(entry) if entry.seen == self.dump => {
                // Each thread of the userspace datapath has its own copy of a flow.
                entry.stats.packets += stats.packets;
                entry.stats.bytes += stats.bytes;
                entry.stats.used = [entry.stats.used, stats.used].into_iter().flatten().min();
                if !entry.is(keys, actions) && !std::mem::replace(&mut entry.torn, true) {
                    changes.changed.push(ufid);
                }
            }
            Some(entry) => {
                entry.seen = self.dump;
                entry.stats = stats;
                if !entry.is(keys, actions) || entry.torn {
                    (entry.text, entry.split) = (join(keys, actions), keys.len() as u32);
                    entry.torn = false;
                    changes.changed.push(ufid);
                }
            }
            None if full => self.misses.over_limit += 1,
            None => {
                let (text, split) = (join(keys, actions), keys.len() as u32);
                let seen = self.dump;
                self.flows.insert(ufid, Entry { text, split, seen, stats, torn: false, state: State::Pending });
                changes.changed.push(ufid);
            }
        }
    }
}

impl State {
    /// The NIC that has the rule.
    pub(super) fn nic(&self) -> Option<&NicName> {
        match self {
            Self::Offloaded(nic) => Some(nic),
            _ => None,
        }
    }
}

fn join(keys: &str, actions: &str) -> Box<str> {
    let mut text = String::with_capacity(keys.len() + actions.len());
    text.push_str(keys);
    text.push_str(actions);
    text.into_boxed_str()
}

/// Lines, found quickly.
struct Lines<'a>(&'a str);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.0.is_empty() {
            return None;
        }
        let end = memchr::memchr(b'\n', self.0.as_bytes()).unwrap_or(self.0.len());
        let line = &self.0[..end];
        self.0 = self.0.get(end + 1..).unwrap_or_default();
        Some(line)
    }
}

/// What may stand behind the actions; nothing that a flow does.
const EXTRA: &str = ", dp-extra-info:";

/// `ufid:U, KEYS, packets:N, bytes:N, used:T[, flags:F][, offloaded:..], dp:D, actions:A[, dp-extra-info:..]`. The keys have no
/// ", " in them, and what stands between them and the actions begins with the counters.
fn take_apart(line: &str) -> Option<Line<'_>> {
    let rest = line.strip_prefix("ufid:")?;
    let (ufid, rest) = rest.split_at_checked(36)?;
    let rest = rest.strip_prefix(", ")?;
    let (keys, rest) = split(rest, ", packets:")?;
    let (stats, actions) = counters(rest)?;
    let actions = split(actions, EXTRA).map_or(actions, |(actions, _)| actions);
    Some(Line { ufid: read_ufid(ufid)?, keys, stats, actions })
}

/// From behind `packets:` to the actions.
fn counters(text: &str) -> Option<(Stats, &str)> {
    let (packets, rest) = number(text)?;
    let (bytes, rest) = number(rest.strip_prefix(", bytes:")?)?;
    let (middle, actions) = split(rest, "actions:")?;
    let used = middle.strip_prefix(", used:").and_then(used_ms);
    Some((Stats { packets, bytes, used, ..Stats::default() }, actions))
}

fn split<'a>(text: &'a str, at: &str) -> Option<(&'a str, &'a str)> {
    let found = memchr::memmem::find(text.as_bytes(), at.as_bytes())?;
    Some((&text[..found], &text[found + at.len()..]))
}

fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

/// `1.234s`; nothing for `never`.
fn used_ms(text: &str) -> Option<i64> {
    let (whole, rest) = number(text)?;
    let mut digits = rest.strip_prefix('.').unwrap_or_default().bytes().take_while(u8::is_ascii_digit);
    let part = (0..3).fold(0, |part, _| part * 10 + u64::from(digits.next().map_or(0, |digit| digit - b'0')));
    i64::try_from(whole.checked_mul(1000)?.checked_add(part)?).ok()
}

/// 32 digits in groups of 8, 4, 4, 4 and 12.
fn read_ufid(text: &str) -> Option<u128> {
    let mut ufid = 0;
    for (at, byte) in text.bytes().enumerate() {
        match (byte, at) {
            (b'-', 8 | 13 | 18 | 23) => {}
            (_, 8 | 13 | 18 | 23) => return None,
            _ => ufid = ufid << 4 | u128::from(digit(byte)?),
        }
    }
    Some(ufid)
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(ufid: u128, packets: u64, keys: &str, actions: &str) -> String {
        let ufid = crate::ovs::flow::Ufid(ufid);
        format!(
            "ufid:{ufid}, recirc_id(0),{keys}, packets:{packets}, bytes:9, used:1.500s, flags:S, dp:ovs, actions:{actions}, dp-extra-info:miniflow_bits(4,0)\n"
        )
    }

    fn update(table: &mut Table, lines: &[String]) -> (Vec<u128>, Vec<u128>) {
        let dump = format!("flow-dump from the main thread:\n{}", lines.concat());
        let mut changes = table.update(&[dump], 3);
        changes.changed.sort_unstable();
        (changes.changed, changes.gone.into_iter().map(|(ufid, _)| ufid).collect())
    }

    #[test]
    fn only_what_differs_is_told_and_counters_are_no_difference() {
        let mut table = Table::default();
        let (one, two) = (line(1, 0, "in_port(a)", "b"), line(u128::MAX, 0, "in_port(b)", "a"));
        assert_eq!(update(&mut table, &[one.clone(), two.clone()]), (vec![1, u128::MAX], vec![]));
        assert_eq!(update(&mut table, &[line(1, 7, "in_port(a)", "b"), two.clone()]), (vec![], vec![]));
        let entry = &table.flows[&1];
        assert_eq!((entry.stats.packets, entry.stats.bytes, entry.stats.used), (7, 9, Some(1500)));
        assert_eq!((entry.keys(), entry.actions()), ("recirc_id(0),in_port(a)", "b"));
        assert_eq!(update(&mut table, &[line(1, 7, "in_port(a)", "c")]), (vec![1], vec![u128::MAX]));
        assert_eq!(update(&mut table, &[]), (vec![], vec![1]));
    }

    #[test]
    fn times_are_read_to_the_millisecond() {
        for (text, ms) in [("0.001s", 1), ("1.5s", 1500), ("12s", 12_000), ("3.1234s", 3123), ("0.s", 0)] {
            assert_eq!(used_ms(text), Some(ms), "{text}");
        }
        assert_eq!((used_ms("never"), used_ms("99999999999999999999s"), used_ms("")), (None, None, None));
    }

    #[test]
    fn copies_of_threads_are_added_up_and_two_flows_of_one_name_are_torn() {
        let mut table = Table::default();
        let copies = [line(1, 3, "in_port(a)", "b"), line(1, 4, "in_port(a)", "b")];
        assert_eq!(update(&mut table, &copies), (vec![1], vec![]));
        assert_eq!((table.flows[&1].stats.packets, table.flows[&1].torn), (7, false));
        let apart = [line(1, 3, "in_port(a)", "b"), line(1, 4, "in_port(c)", "b"), line(1, 4, "in_port(d)", "b")];
        assert_eq!(update(&mut table, &apart), (vec![1], vec![]));
        assert!(table.flows[&1].torn);
        // Whole again: to be looked at anew.
        assert_eq!(update(&mut table, &copies), (vec![1], vec![]));
        assert!(!table.flows[&1].torn);
    }

    #[test]
    fn what_is_no_flow_and_what_is_too_much_is_counted() {
        let mut table = Table::default();
        let lines: Vec<String> = (1..=5).map(|ufid| line(ufid, 0, "in_port(a)", "b")).collect();
        let whole = lines[0].clone();
        update(&mut table, &lines);
        assert_eq!((table.flows.len(), table.misses.over_limit), (3, 2));
        for cut in 0..whole.find("actions:").unwrap() {
            let mut table = Table::default();
            assert_eq!(update(&mut table, &[whole[..cut].to_owned()]), (vec![], vec![]), "{cut}");
            assert_eq!(table.misses.unreadable, u64::from(cut > 0), "{cut}");
        }
    }
}
