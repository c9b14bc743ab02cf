//! What many rules have in common, kept once.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// So many are kept before it is looked which of them nothing has any more.
const LEAST: usize = 64;

/// Values, each once.
#[derive(Debug)]
pub struct Interned<T> {
    known: HashSet<Arc<T>>,
    /// When there are so many, those that nothing has any more go.
    most: usize,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), most: LEAST }
    }
}

impl<T: Clone + Eq + Hash> Interned<T> {
    /// The value, shared with all that are equal.
    pub fn get(&mut self, value: &T) -> Arc<T> {
        if let Some(same) = self.known.get(value) {
            return Arc::clone(same);
        }
        if self.known.len() >= self.most {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.most = (2 * self.known.len()).max(LEAST);
        }
        let value = Arc::new(value.clone());
        self.known.insert(Arc::clone(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_what_nothing_has_does_not_pile_up() {
        let mut all = Interned::default();
        let kept: Vec<Arc<u32>> = (0..1000).map(|value| all.get(&value)).collect();
        assert!(kept.iter().all(|one| Arc::ptr_eq(one, &all.get(one))));
        drop(kept);
        (0..100_000).for_each(|value| drop(all.get(&value)));
        assert!(all.known.len() <= 2000, "{}", all.known.len());
    }
}
