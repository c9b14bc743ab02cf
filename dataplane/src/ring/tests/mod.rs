//! What a guest may rely on, and what a hostile one may not do.

mod chaos;
mod driver;
mod hostile;
mod lend;
mod log;
mod mock;
mod model;
mod notify;
mod pair;
mod put;
mod recover;
mod reference;
mod take;

thread_local! {
    /// Stores after which this thread is killed; negative: never.
    static LEFT: std::cell::Cell<i64> = const { std::cell::Cell::new(-1) };
}

thread_local! {
    /// Whether rings that this thread drains and fills know no chain by its shape.
    static SLOW: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    /// Chains of this thread that went that way.
    static WALKS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// A chain goes the way for any shape.
pub fn walked() {
    WALKS.set(WALKS.get() + 1);
}

/// Whether each chain goes the way for any shape.
pub fn is_slow() -> bool {
    SLOW.get()
}

/// Does `work` with each chain going that way.
fn slowly<R>(work: impl FnOnce() -> R) -> R {
    SLOW.set(true);
    let result = work();
    SLOW.set(false);
    result
}

/// Kills this thread after so many stores, by a panic; a negative number: never.
fn kill_after(stores: i64) {
    LEFT.set(stores);
}

/// Before each store by which a packed ring's position goes on: where a test may kill the process.
pub fn cut() {
    let left = LEFT.get();
    LEFT.set(left - 1);
    if left == 0 {
        std::panic::resume_unwind(Box::new("killed"));
    }
}
