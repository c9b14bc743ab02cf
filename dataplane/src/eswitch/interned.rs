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
    /// How often one was let go of since.
    released: usize,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), most: LEAST, released: 0 }
    }
}

impl<T: Clone + Eq + Hash> Interned<T> {
    /// The value, shared with all that are equal.
    pub fn get(&mut self, value: &T) -> Arc<T> {
        if let Some(same) = self.known.get(value) {
            return Arc::clone(same);
        }
        if self.known.len() >= self.most {
            self.sweep();
        }
        let value = Arc::new(value.clone());
        self.known.insert(Arc::clone(&value));
        value
    }

    /// So many that had a value let go of it. When half as often as there are values, it is looked which of them nothing has any more: they are
    /// never more than those that something has, and each look was paid for.
    pub fn released(&mut self, count: usize) {
        self.released = self.released.saturating_add(count);
        if self.known.len() > LEAST && self.released >= self.known.len() / 2 {
            self.sweep();
            self.known.shrink_to(self.most);
        }
    }

    fn sweep(&mut self) {
        self.known.retain(|known| Arc::strong_count(known) > 1);
        self.most = (2 * self.known.len()).max(LEAST);
        self.released = 0;
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

    #[test]
    fn what_is_let_go_of_goes_without_anything_new() {
        let mut all = Interned::default();
        let mut kept: Vec<Arc<u32>> = (0..100_000).map(|value| all.get(&value)).collect();
        let mut looks = 0;
        while kept.len() > 10 {
            kept.pop();
            let before = all.known.len();
            all.released(1);
            looks += usize::from(all.known.len() < before) * before;
            assert!(all.known.len() <= (2 * kept.len() + 1).max(LEAST), "{} of {}", all.known.len(), kept.len());
        }
        assert!(looks <= 300_000, "{looks} values were looked at");
        assert!(all.known.capacity() <= 4 * LEAST, "room for {}", all.known.capacity());
        assert!(kept.iter().all(|one| Arc::ptr_eq(one, &all.get(one))));
        drop(kept);
        (LEAST..100_000).for_each(|value| drop(all.get(&(value as u32))));
        all.released(usize::MAX);
        assert!(all.known.len() <= LEAST);
    }
}
