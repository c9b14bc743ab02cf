//! Rules that ask more of a frame than its key says.

use std::iter::successors;

use super::table::port_bit;
use super::{Classifier, Key, NONE};

impl<T> Classifier<T> {
    /// The place of the rule of a priority `above` this one that a key gets of those whose body `fits`; [`NONE`] where there is none. For frames to which
    /// that of [`Classifier::look_up`] does not fit: the tables that may have one are asked one by one, and all rules of the same value and mask.
    pub fn look_up_fitting(&self, key: &Key, above: Option<u32>, fits: impl Fn(&T) -> bool) -> u32 {
        let (mut best, port) = (NONE, port_bit(key));
        for table in &self.tables {
            let (highest, _) = table.importance();
            if Some(highest) <= above
                || self.entry(best).is_some_and(|best| (best.priority, best.mask.bits) > table.importance())
            {
                break;
            }
            // Neither do one guest's masks cost the others here.
            if table.ports & port == 0 {
                continue;
            }
            let hash = table.hash(key, self.secret);
            let first = self.confirm(table, key, hash, table.first(hash));
            let chain = successors(first, |(_, entry)| Some((entry.next, self.entry(entry.next)?)));
            let mut chain = chain.take_while(|(_, entry)| Some(entry.priority) > above);
            if let Some((place, entry)) = chain.find(|(_, entry)| fits(&entry.body))
                && self.is_better(entry, best)
            {
                best = place;
            }
        }
        best
    }
}
