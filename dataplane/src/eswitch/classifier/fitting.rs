//! Rules that ask more of a frame than its key says.

use std::iter::successors;

use super::{Classifier, Key, NONE};

impl<T> Classifier<T> {
    /// The place of the rule that a key gets of those whose body `fits`; [`NONE`] where there is none. For frames to which that of [`Classifier::look_up`] does
    /// not fit: the tables are asked one by one, and all rules of the same value and mask.
    pub fn look_up_fitting(&self, key: &Key, fits: impl Fn(&T) -> bool) -> u32 {
        let mut best = NONE;
        for table in &self.tables {
            if self.entry(best).is_some_and(|best| (best.priority, best.mask.bits) > table.importance()) {
                break;
            }
            let hash = table.hash(key, self.secret);
            let first = self.confirm(table, key, hash, table.first(hash));
            let mut chain = successors(first, |(_, entry)| Some((entry.next, self.entry(entry.next)?)));
            if let Some((place, entry)) = chain.find(|(_, entry)| fits(&entry.body))
                && self.is_better(entry, best)
            {
                best = place;
            }
        }
        best
    }
}
