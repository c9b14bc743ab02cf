//! The flows as they were last told, and what changed since.
//!
//! A flow is kept as the text that OVS prints, without its counters and [packed](super::packed): comparing it with the
//! next dump is comparing memory. Only what differs is parsed and compiled. There are two sources: the text of dumps, and the kernel, which
//! tells of changes too. Each flow is that of the source that told of it first, until that one says that it is gone.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use ringspan_protocol::NicName;

use super::copies::{Copies, Thread};
use super::counted::{Counted, OfOvs};
use super::line::{ByOvs, EXTRA, HEADING, Line, UFID, counters, read_ufid, take_apart};
use super::packed::{Kinds, Packed, strip};
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

/// Who tells of flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// ovs-vswitchd, which is asked for all it has.
    Text,
    /// The kernel's datapath.
    Kernel,
}

/// What became of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// Not told to the engine yet.
    Pending,
    /// This NIC has its rule.
    Offloaded(Arc<NicName>),
    /// It stays with OVS.
    Not(Box<Cause>),
}

impl State {
    /// The NIC that has the rule.
    pub(super) fn nic(&self) -> Option<&NicName> {
        match self {
            Self::Offloaded(nic) => Some(nic.as_ref()),
            _ => None,
        }
    }
}

/// A flow as it is told.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Told {
    /// What it matches and does.
    text: Packed,
    /// What OVS counted.
    ovs: OfOvs,
    /// Whether Open vSwitch itself brought it into a NIC; the kernel does not tell.
    by_ovs: Option<ByOvs>,
    /// OVS's name of it.
    pub ufid: u128,
    /// Who counted.
    thread: Thread,
}

impl Told {
    /// A source has its own kinds.
    pub(super) fn new(kinds: &mut Kinds, ufid: u128, keys: &str, actions: &str, stats: &Stats) -> Self {
        Self { text: kinds.pack(keys, actions), ovs: OfOvs::from(stats), by_ovs: None, ufid, thread: Thread::NONE }
    }

    /// From a line of a dump; nothing when it is none of a flow.
    pub(super) fn from_line(kinds: &mut Kinds, line: &str) -> Option<Self> {
        let Line { ufid, keys, stats, by_ovs, actions } = take_apart(line)?;
        Some(Self { by_ovs: Some(by_ovs), ..Self::new(kinds, ufid, keys, actions, &stats) })
    }
}

/// Whether the rule of a flow is out although it could be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Paused {
    /// It is not.
    #[default]
    No,
    /// So that OVS sees a packet.
    ForAMoment,
    /// Until OVS counts other packets than these, modulo 2^32: it is idle.
    Idle(u32),
}

/// Seconds since this was first asked.
pub(super) fn seconds() -> u32 {
    static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
    FIRST.elapsed().as_secs() as u32
}

/// A flow. What each dump looks at comes first: what is told of all flows comes from all over the memory.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Entry {
    /// As it was last told.
    text: Packed,
    /// What OVS counted, field by field so that nothing lies idle between them ([`Entry::ovs`]).
    packets: u64,
    bytes: u64,
    used_ms: u32,
    /// The dump of its source that it was last seen in.
    seen: u32,
    /// What became of it.
    pub state: State,
    /// What both paths count.
    pub counted: Counted,
    /// Whether its rule is out for now.
    pub paused: Paused,
    /// When it came, or was last brought into a NIC; by [`seconds`].
    pub touched: u32,
    /// Who told.
    source: Source,
    /// Whether it was told twice in one dump, and not alike.
    pub torn: bool,
    /// Who counts it, if that is one thread: else it is among the [`Copies`].
    pub thread: Thread,
    /// Whether Open vSwitch itself brought it into a NIC, if that was told.
    by_ovs: Option<ByOvs>,
}

impl Entry {
    /// Its text: what it matches and what it does.
    pub(super) fn text(&self) -> &Packed {
        &self.text
    }

    /// What OVS counted.
    #[inline]
    pub(super) fn ovs(&self) -> OfOvs {
        OfOvs { packets: self.packets, bytes: self.bytes, used_ms: self.used_ms }
    }

    #[inline]
    pub(super) fn set_ovs(&mut self, ovs: OfOvs) {
        OfOvs { packets: self.packets, bytes: self.bytes, used_ms: self.used_ms } = ovs;
    }

    /// Whether Open vSwitch itself brought it into a NIC.
    pub(super) fn by_ovs(&self) -> ByOvs {
        self.by_ovs.unwrap_or_default()
    }

    /// A dump told whether Open vSwitch itself brought it into a NIC. It did if it did with the copies of all threads; what the kernel told of before
    /// (`None`) is no copy that it did not.
    #[inline]
    fn tell_by_ovs(&mut self, by_ovs: Option<ByOvs>, is_first: bool) {
        let others = self.by_ovs.filter(|_| !is_first);
        self.by_ovs = others.map_or(by_ovs, |others| by_ovs.map(|by_ovs| by_ovs.min(others)));
    }

    /// So much time passed since this was last called for all flows.
    pub(super) fn pass(&mut self, time: Duration) {
        self.counted.pass(&self.ovs(), time);
    }

    fn is(&self, told: &Told) -> bool {
        self.text == told.text
    }
}

const _: () = assert!(size_of::<Entry>() <= 152);

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

impl Misses {
    /// One more.
    pub(super) fn unreadable(&mut self, line: &str) {
        self.unreadable += 1;
        self.example.get_or_insert_with(|| line.chars().take(200).collect());
    }
}

/// What changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// New, or not as before.
    pub changed: Vec<u128>,
    /// Gone, with the NIC that has the rule.
    pub gone: Vec<(u128, Option<NicName>)>,
}

/// Flows by ufid.
pub(super) type Flows = HashMap<u128, Entry, BuildHasherDefault<UfidHasher>>;

/// All flows.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// By ufid.
    pub flows: Flows,
    /// What several threads of the userspace datapath counted.
    copies: Copies,
    /// Numbers of the last dumps, by source.
    dumps: [u32; 2],
    /// Of the last dumps, by source.
    misses: [Misses; 2],
    /// What the kernel said is gone since its dump began, while one is on its way.
    gone_meanwhile: Option<HashSet<u128>>,
    /// Flows that the dump of text on its way has as they were; nothing when anything else came meanwhile.
    as_before: Option<usize>,
}

impl Table {
    /// A dump begins. What the kernel tells from here on is newer than what is in its dump.
    pub(super) fn begin(&mut self, source: Source) {
        self.dumps[source as usize] = self.dumps[source as usize].wrapping_add(1);
        self.as_before = (source == Source::Text).then_some(0);
        if source == Source::Text {
            self.copies.datapath("");
        }
        if source == Source::Kernel {
            self.gone_meanwhile = Some(HashSet::new());
        }
    }

    /// The lines that follow are of this datapath's dump.
    pub(super) fn datapath(&mut self, name: &str) {
        self.copies.datapath(name);
    }

    /// A line that [`Table::is_as_before`] does not know: the flow that is told; nothing when it is the heading of a thread's flows.
    pub(super) fn told(&mut self, kinds: &mut Kinds, line: &[u8], misses: &mut Misses) -> Option<Told> {
        if line.starts_with(HEADING) {
            self.copies.heading(line);
            return None;
        }
        let line = String::from_utf8_lossy(line);
        let told = Told::from_line(kinds, &line).map(|told| Told { thread: self.copies.thread, ..told });
        if told.is_none() && !line.is_empty() {
            misses.unreadable(&line);
        }
        told
    }

    /// Whether the line is a flow of the dump before with nothing but its counters changed, which are taken then. Nothing is searched
    /// for: what should be there is compared with what is.
    pub(super) fn is_as_before(&mut self, line: &[u8]) -> bool {
        let Some((ufid, rest)) = line.strip_prefix(b"ufid:").and_then(|rest| rest.split_at_checked(UFID)) else {
            return false;
        };
        let Some(ufid) = read_ufid(ufid) else { return false };
        let Some(entry) = self.flows.get_mut(&ufid) else { return false };
        let dump = self.dumps[Source::Text as usize];
        if entry.torn || entry.source != Source::Text {
            return false;
        }
        let Some(mut rest) = rest.strip_prefix(b", ") else { return false };
        let mut text = entry.text.reader();
        if !text.keys(|piece| strip(&mut rest, piece)) || !strip(&mut rest, b", packets:") {
            return false;
        }
        let Some((stats, by_ovs, at)) = counters(rest) else { return false };
        rest = &rest[at..];
        if !text.actions(|piece| strip(&mut rest, piece)) || !(rest.is_empty() || rest.starts_with(EXTRA.as_bytes())) {
            return false;
        }
        let is_first = std::mem::replace(&mut entry.seen, dump) != dump;
        if is_first {
            self.as_before = self.as_before.map(|flows| flows + 1);
        }
        entry.tell_by_ovs(Some(by_ovs), is_first);
        self.copies.count(ufid, entry, (self.copies.thread, OfOvs::from(&stats)), (dump, is_first));
        true
    }

    /// A dump is whole: here is what [`Table::is_as_before`] did not know of it, or all. At most `limit` flows are kept.
    pub(super) fn finish(&mut self, source: Source, told: Vec<Told>, misses: Misses, limit: usize) -> Changes {
        let dump = self.dumps[source as usize];
        self.misses[source as usize] = misses;
        let gone_meanwhile = if source == Source::Kernel { self.gone_meanwhile.take() } else { None };
        let mut changes = Changes::default();
        // All are there as they were: there is nothing to look for.
        if told.is_empty() && source == Source::Text && self.as_before.take() == Some(self.flows.len()) {
            self.copies.settle(&mut self.flows, dump);
            return changes;
        }
        self.as_before = None;
        for told in told {
            // What was told of one by one meanwhile is newer.
            let is_older = source == Source::Kernel
                && (gone_meanwhile.as_ref().is_some_and(|gone| gone.contains(&told.ufid))
                    || self
                        .flows
                        .get(&told.ufid)
                        .is_some_and(|entry| entry.seen == dump && entry.source == Source::Kernel));
            if !is_older {
                changes.changed.extend(self.take(source, told, limit));
            }
        }
        self.flows.retain(|ufid, entry| {
            let stays = entry.source != source || entry.seen == dump;
            if !stays {
                changes.gone.push((*ufid, entry.state.nic().cloned()));
            }
            stays
        });
        if source == Source::Text {
            self.copies.settle(&mut self.flows, dump);
        }
        changes
    }

    /// The kernel told of a flow: whether it changed.
    pub(super) fn put(&mut self, told: Told, limit: usize) -> Option<u128> {
        let ufid = told.ufid;
        self.as_before = None;
        if let Some(gone) = &mut self.gone_meanwhile {
            gone.remove(&ufid);
        }
        // A second word of it is no copy of another thread's.
        if let Some(entry) = self.flows.get_mut(&ufid).filter(|entry| entry.source == Source::Kernel) {
            entry.seen = self.dumps[Source::Kernel as usize];
            if entry.is(&told) {
                // Told when it is made or changed, so with counters that may be older than those of a dump.
                let (now, before) = (told.ovs, entry.ovs());
                let (packets, bytes) = (now.packets.max(before.packets), now.bytes.max(before.bytes));
                entry.set_ovs(OfOvs { packets, bytes, ..now });
                return None;
            }
            entry.set_ovs(told.ovs);
            entry.text = told.text;
            return Some(ufid);
        }
        self.take(Source::Kernel, told, limit)
    }

    /// The kernel told that a flow is gone: whether there was one, and the NIC that has its rule.
    pub(super) fn delete(&mut self, ufid: u128) -> Option<(u128, Option<NicName>)> {
        self.as_before = None;
        if let Some(gone) = &mut self.gone_meanwhile {
            gone.insert(ufid);
        }
        self.flows.get(&ufid).filter(|entry| entry.source == Source::Kernel)?;
        self.flows.remove(&ufid).map(|entry| (ufid, entry.state.nic().cloned()))
    }

    /// The kernel is not listened to any more: what it told is as if it came from the last dump of text, and goes with the next one unless it is there.
    pub(super) fn hand_over(&mut self) {
        (self.gone_meanwhile, self.as_before) = (None, None);
        self.misses[Source::Kernel as usize] = Misses::default();
        let seen = self.dumps[Source::Text as usize];
        for entry in self.flows.values_mut().filter(|entry| entry.source == Source::Kernel) {
            (entry.source, entry.seen) = (Source::Text, seen);
        }
    }

    /// All goes.
    pub(super) fn clear(&mut self) -> Changes {
        self.misses = Default::default();
        self.copies.clear();
        (self.gone_meanwhile, self.as_before) = (None, None);
        let gone = self.flows.drain().map(|(ufid, entry)| (ufid, entry.state.nic().cloned())).collect();
        Changes { changed: Vec::new(), gone }
    }

    /// What both sources could not tell.
    pub(super) fn misses(&self) -> Misses {
        let [text, kernel] = &self.misses;
        Misses {
            unreadable: text.unreadable + kernel.unreadable,
            example: text.example.clone().or_else(|| kernel.example.clone()),
            over_limit: text.over_limit + kernel.over_limit,
        }
    }

    /// One flow of a dump, or a new one: its ufid if it has to be compiled.
    fn take(&mut self, source: Source, told: Told, limit: usize) -> Option<u128> {
        let ufid = told.ufid;
        let full = self.flows.len() >= limit;
        let dump = self.dumps[source as usize];
        match self.flows.get_mut(&ufid) {
            Some(entry) if entry.source != source => {
                // Both tell of the kernel's flows while one source takes over from the other: the kernel knows better. Two flows
                // of one ufid in different datapaths: the second one stays with OVS while there is the first.
                if !entry.text.has_keys_of(&told.text) {
                    self.misses[source as usize]
                        .unreadable(&format!("{ufid:#x}: a flow of another datapath has that ufid"));
                    return None;
                }
                if source == Source::Text {
                    return None;
                }
                let changed = !entry.is(&told);
                (entry.source, entry.seen, entry.by_ovs) = (source, dump, told.by_ovs);
                self.copies.forget(ufid, entry);
                entry.set_ovs(told.ovs);
                entry.text = told.text;
                changed.then_some(ufid)
            }
            Some(entry) if entry.seen == dump => {
                // Each thread of the userspace datapath has its own copy of a flow.
                entry.tell_by_ovs(told.by_ovs, false);
                self.copies.count(ufid, entry, (told.thread, told.ovs), (dump, false));
                (!entry.is(&told) && !std::mem::replace(&mut entry.torn, true)).then_some(ufid)
            }
            Some(entry) => {
                entry.seen = dump;
                entry.tell_by_ovs(told.by_ovs, true);
                let changed = !entry.is(&told) || entry.torn;
                match source {
                    Source::Text => self.copies.count(ufid, entry, (told.thread, told.ovs), (dump, true)),
                    Source::Kernel => entry.set_ovs(told.ovs),
                }
                (entry.text, entry.torn) = (told.text, false);
                changed.then_some(ufid)
            }
            None if full => {
                self.misses[source as usize].over_limit += 1;
                None
            }
            None => {
                let Told { text, ovs: OfOvs { packets, bytes, used_ms }, by_ovs, thread, .. } = told;
                let entry = Entry {
                    text,
                    packets,
                    bytes,
                    used_ms,
                    source,
                    seen: dump,
                    torn: false,
                    thread,
                    by_ovs,
                    state: State::Pending,
                    paused: Paused::No,
                    touched: seconds(),
                    counted: Counted::default(),
                };
                self.flows.insert(ufid, entry);
                Some(ufid)
            }
        }
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

    /// As the source of text does it.
    fn dump(table: &mut Table, text: &str, limit: usize) -> Changes {
        table.begin(Source::Text);
        let (mut told, mut misses) = (Vec::new(), Misses::default());
        for line in text.lines().map(str::as_bytes) {
            if !table.is_as_before(line) {
                told.extend(table.told(&mut Kinds::default(), line, &mut misses));
            }
        }
        table.finish(Source::Text, told, misses, limit)
    }

    fn update(table: &mut Table, lines: &[String]) -> (Vec<u128>, Vec<u128>) {
        let mut changes = dump(table, &lines.concat(), 3);
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
        assert_eq!((entry.ovs().packets, entry.ovs().bytes, entry.ovs().used()), (7, 9, Some(1500)));
        assert_eq!((entry.text().keys().as_str(), entry.text().actions().as_str()), ("recirc_id(0),in_port(a)", "b"));
        assert_eq!(update(&mut table, &[line(1, 7, "in_port(a)", "c")]), (vec![1], vec![u128::MAX]));
        assert_eq!(update(&mut table, &[]), (vec![], vec![1]));
    }

    #[test]
    fn a_dump_of_flows_that_are_all_as_before_lets_go_those_that_are_not_in_it() {
        let mut table = Table::default();
        let lines: Vec<String> = (1..=3).map(|ufid| line(ufid, 0, "in_port(a)", "b")).collect();
        assert_eq!(update(&mut table, &lines).0, [1, 2, 3]);
        assert_eq!(update(&mut table, &lines), (vec![], vec![]));
        // As many lines as there are flows, of which one stands there twice.
        let twice = [lines[0].clone(), lines[1].clone(), lines[1].clone()];
        assert_eq!(update(&mut table, &twice), (vec![], vec![3]));
        // The kernel takes one over and lets go of it while the dump comes.
        table.begin(Source::Text);
        assert!(lines[..2].iter().all(|line| table.is_as_before(line.trim_end().as_bytes())));
        table.begin(Source::Kernel);
        assert_eq!(table.put(Told::from_line(&mut Kinds::default(), &lines[0]).unwrap(), 3), None);
        assert!(table.delete(1).is_some());
        assert_eq!(table.finish(Source::Text, Vec::new(), Misses::default(), 3).gone, []);
        assert_eq!(update(&mut table, &[]), (vec![], vec![2]));
    }

    #[test]
    fn copies_of_threads_are_added_up_and_two_flows_of_one_name_are_torn() {
        let mut table = Table::default();
        let heading = |core: u32| format!("flow-dump from pmd on cpu core: {core}\n");
        let copies = [heading(0), line(1, 3, "in_port(a)", "b"), heading(1), line(1, 4, "in_port(a)", "b")];
        assert_eq!(update(&mut table, &copies), (vec![1], vec![]));
        assert_eq!((table.flows[&1].ovs().packets, table.flows[&1].torn), (7, false));
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
        assert_eq!((table.flows.len(), table.misses().over_limit), (3, 2));
        for cut in 0..whole.find("actions:").unwrap() {
            let mut table = Table::default();
            assert_eq!(update(&mut table, &[whole[..cut].to_owned()]), (vec![], vec![]), "{cut}");
            assert_eq!(table.misses().unreadable, u64::from(cut > 0), "{cut}");
        }
    }
}
