//! A sequence of changes that is taken back, last first, when one of them fails.

use std::time::{Duration, Instant};

use crate::error::Error;

/// How often something that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(10);

type Undo<'a> = Box<dyn FnOnce() -> Result<(), Error> + 'a>;

/// What was done so far.
#[derive(Default)]
pub(crate) struct Steps<'a> {
    done: Vec<(String, Option<Undo<'a>>)>,
}

impl<'a> Steps<'a> {
    /// Something was done that stays when a later step fails.
    pub(crate) fn note(&mut self, what: impl Into<String>) {
        self.done.push((what.into(), None));
    }

    /// Something was done, and this takes it back.
    pub(crate) fn did(&mut self, what: impl Into<String>, undo: impl FnOnce() -> Result<(), Error> + 'a) {
        self.done.push((what.into(), Some(Box::new(undo))));
    }

    /// Whether nothing was done so far.
    pub(crate) fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    /// What was done, in its order.
    pub(crate) fn finish(self) -> Vec<String> {
        self.done.into_iter().map(|(what, _)| what).collect()
    }

    /// Takes everything back, and says in the error what was undone and what is left.
    pub(crate) fn fail(self, error: Error) -> Error {
        let (mut undone, mut left) = (vec![], vec![]);
        for (what, undo) in self.done.into_iter().rev() {
            match undo.map(|undo| undo()) {
                None => left.push(what),
                Some(Ok(())) => undone.push(what),
                Some(Err(why)) => left.push(format!("{what} (it cannot be undone: {})", why.message)),
            }
        }
        let mut message = error.message;
        for (word, list) in [("undone", undone), ("left", left)] {
            if !list.is_empty() {
                message = format!("{message}; {word}: {}", list.join(", "));
            }
        }
        Error { message, ..error }
    }
}

/// Looks until something is so, `limit` at most.
pub(crate) fn wait<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if begun.elapsed() >= limit {
            return None;
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn what_was_done_is_undone_last_first_and_the_error_says_what_is_left() {
        let order = RefCell::new(vec![]);
        let mut steps = Steps::default();
        steps.did("a is 1", || {
            order.borrow_mut().push("a");
            Ok(())
        });
        steps.note("b exists");
        steps.did("c is 1", || Err(Error::new(ErrorKind::Busy, "c is busy")));
        steps.did("d is 1", || {
            order.borrow_mut().push("d");
            Ok(())
        });
        let error = steps.fail(Error::new(ErrorKind::NoRoom, "e: no room"));
        assert_eq!(order.take(), ["d", "a"]);
        assert_eq!(
            error.message,
            "e: no room; undone: d is 1, a is 1; left: c is 1 (it cannot be undone: c is busy), b exists"
        );
        assert_eq!(error.kind, ErrorKind::NoRoom);
    }
}
