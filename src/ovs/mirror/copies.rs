//! What the threads of the userspace datapath counted of a flow that several of them have.
//!
//! A dump has all flows of one thread, then all of the next one: how much the copies of a flow counted together is known at its end. Until then it
//! is added up here, and what is shown stays as it was. Flows of which there never was a second copy are not here.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::counted::OfOvs;
use super::table::{Entry, Flows, UfidHasher};

/// A flow's copies in the dump on its way, or in the last one.
#[derive(Debug)]
struct Sum {
    /// What they counted together.
    now: OfOvs,
    /// How many they are.
    copies: u32,
}

/// Flows with several copies by ufid, and those of which it looks so in the dump on its way.
#[derive(Debug, Default)]
pub(super) struct Copies(HashMap<u128, Sum, BuildHasherDefault<UfidHasher>>);

impl Copies {
    /// A copy of the flow in a dump; its `first` one there or another one.
    #[inline]
    pub(super) fn count(&mut self, ufid: u128, entry: &mut Entry, copy: OfOvs, first: bool) {
        // Counted less than is shown: if it is not a flow that was made anew, it is the copy of a thread that was not there before.
        if first && !entry.several && !copy.count().is_behind(entry.ovs().count()) {
            entry.set_ovs(copy);
        } else {
            self.add(ufid, entry, copy, first);
        }
    }

    fn add(&mut self, ufid: u128, entry: &mut Entry, copy: OfOvs, first: bool) {
        let shown = entry.ovs();
        // What is shown of a flow that was not here is what its only copy counted: that of this dump, or of the last one.
        let sum = self.0.entry(ufid).or_insert(Sum { now: shown, copies: 1 });
        entry.several = true;
        (sum.now, sum.copies) = if first { (copy, 1) } else { (sum.now.plus(copy), sum.copies + 1) };
    }

    /// The flow is not here any more.
    pub(super) fn forget(&mut self, ufid: u128, entry: &mut Entry) {
        if std::mem::take(&mut entry.several) {
            self.0.remove(&ufid);
        }
    }

    /// No flow is.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// A dump is whole, and these are the flows that are in it.
    pub(super) fn settle(&mut self, flows: &mut Flows) {
        self.0.retain(|ufid, sum| {
            let Some(entry) = flows.get_mut(ufid).filter(|entry| entry.several) else { return false };
            entry.set_ovs(sum.now);
            entry.several = sum.copies > 1;
            entry.several
        });
    }
}
