//! What the threads of the userspace datapath counted of a flow that several of them have, or had.
//!
//! A dump has all flows of one thread under its heading, then all of the next one. A thread may stand there twice, and a dump may miss a flow or tell of it twice, while
//! a thread's table grows. So each thread's count is kept on its own: a second word of it takes the place of the first, and no word of it changes nothing. What they
//! counted together is shown when a dump is whole; until then what is shown stays as it was. Flows that only one thread ever had are not here: the
//! table keeps what that one counted, and which it is.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::counted::{Count, NEVER, OfOvs};
use super::table::{Entry, Flows, UfidHasher};

/// In so many whole dumps a copy was not told of: it is gone, and is another one when it comes again. Until then it may only have been missed.
const GONE: u8 = 32;

/// So many threads are told apart.
const MOST: u16 = 10_000;

/// A thread of a datapath, as a number that it keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Thread(u16);

impl Thread {
    /// Of flows of which no thread is told: the kernel's.
    pub(super) const NONE: Self = Self(0);
    /// In an entry: the flow is among the [`Copies`].
    const SEVERAL: Self = Self(u16::MAX);

    /// Whether what is told last is what was counted, also when it is less: no other thread has a copy that comes and goes.
    fn has_no_copies(self) -> bool {
        self == Self::NONE
    }
}

/// What a thread counted of a flow.
#[derive(Debug)]
struct Copy {
    count: Count,
    /// The dump that it was last told in.
    seen: u32,
    thread: Thread,
    /// How many whole dumps did not tell of it since.
    missed: u8,
}

/// A flow's copies.
#[derive(Debug)]
struct Sum {
    /// What those counted that are gone, or were made anew.
    gone: Count,
    copies: Vec<Copy>,
    /// When the last packet was by the copies of this dump.
    used_ms: u32,
    dump: u32,
}

/// Flows with several copies by ufid.
#[derive(Debug, Default)]
pub(super) struct Copies {
    flows: HashMap<u128, Sum, BuildHasherDefault<UfidHasher>>,
    /// Datapaths and headings, by the numbers of their threads from 1 on.
    threads: Vec<(Box<str>, Box<[u8]>)>,
    /// Whose flows are read, and what their thread is.
    datapath: Box<str>,
    pub(super) thread: Thread,
}

impl Copies {
    /// The flows that are read from here on are those of this datapath.
    pub(super) fn datapath(&mut self, name: &str) {
        (self.datapath, self.thread) = (name.into(), Thread::NONE);
    }

    /// They are those of the thread that has this heading.
    pub(super) fn heading(&mut self, heading: &[u8]) {
        let known = self.threads.iter().position(|(datapath, of)| *datapath == self.datapath && **of == *heading);
        self.thread = Thread(match known {
            Some(at) => at as u16 + 1,
            None => {
                // No machine has more; if one had, they would all be the last one.
                self.threads.truncate(usize::from(MOST - 1));
                self.threads.push((self.datapath.clone(), heading.into()));
                self.threads.len() as u16
            }
        });
    }

    /// What a thread counted of the flow, in this dump; whether it is the `first` word of the flow there.
    #[inline]
    pub(super) fn count(
        &mut self,
        ufid: u128,
        entry: &mut Entry,
        (thread, copy): (Thread, OfOvs),
        (dump, first): (u32, bool),
    ) {
        let is_behind = copy.count().is_behind(entry.ovs().count());
        if entry.thread == thread && (!is_behind || thread.has_no_copies() && first) {
            entry.set_ovs(copy);
        } else if entry.thread != thread || !thread.has_no_copies() {
            self.add(ufid, entry, (thread, copy), (dump, first));
        }
        // Else it is what was told before the word that is known of this dump.
    }

    fn add(&mut self, ufid: u128, entry: &mut Entry, (thread, copy): (Thread, OfOvs), (dump, first): (u32, bool)) {
        let sum = self.flows.entry(ufid).or_insert_with(|| {
            // What is shown of a flow that was not here is what its only copy counted: in this dump, or in the last one.
            let shown = entry.ovs();
            let (seen, used_ms) = if first { (dump.wrapping_sub(1), NEVER) } else { (dump, shown.used_ms) };
            let only = Copy { count: shown.count(), seen, thread: entry.thread, missed: 0 };
            Sum { gone: Count::default(), copies: vec![only], used_ms, dump }
        });
        entry.thread = Thread::SEVERAL;
        sum.count(thread, copy, dump);
    }

    /// The flow is not one of the userspace datapath any more, or never was.
    pub(super) fn forget(&mut self, ufid: u128, entry: &mut Entry) {
        if std::mem::replace(&mut entry.thread, Thread::NONE) == Thread::SEVERAL {
            self.flows.remove(&ufid);
        }
    }

    /// No flow is.
    pub(super) fn clear(&mut self) {
        self.flows.clear();
    }

    /// A dump is whole, and these are the flows that are in it.
    pub(super) fn settle(&mut self, flows: &mut Flows, dump: u32) {
        self.flows.retain(|ufid, sum| {
            let entry = flows.get_mut(ufid).filter(|entry| entry.thread == Thread::SEVERAL);
            entry.is_some_and(|entry| {
                entry.set_ovs(sum.settle(dump));
                true
            })
        });
    }
}

impl Sum {
    fn count(&mut self, thread: Thread, copy: OfOvs, dump: u32) {
        self.used_ms = if self.dump == dump { self.used_ms.min(copy.used_ms) } else { copy.used_ms };
        self.dump = dump;
        let now = copy.count();
        let Some(known) = self.copies.iter_mut().find(|copy| copy.thread == thread) else {
            self.copies.reserve_exact(1);
            self.copies.push(Copy { count: now, seen: dump, thread, missed: 0 });
            return;
        };
        if !now.is_behind(known.count) {
            known.count = now;
        } else if known.seen != dump {
            if !thread.has_no_copies() {
                // Made anew.
                self.gone = self.gone.plus(known.count);
            }
            known.count = now;
        }
        (known.seen, known.missed) = (dump, 0);
    }

    /// What all copies counted together since the flow is there.
    fn settle(&mut self, dump: u32) -> OfOvs {
        let Self { gone, copies, .. } = self;
        copies.retain_mut(|copy| {
            copy.missed += u8::from(copy.seen != dump);
            let stays = copy.missed < GONE;
            if !stays {
                *gone = gone.plus(copy.count);
            }
            stays
        });
        let Count { packets, bytes } = copies.iter().fold(*gone, |sum, copy| sum.plus(copy.count));
        OfOvs { packets, bytes, used_ms: self.used_ms }
    }
}
