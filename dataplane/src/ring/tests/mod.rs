//! What a guest may rely on, and what a hostile one may not do.

mod chaos;
mod driver;
mod hostile;
mod lend;
mod mock;
mod model;
mod notify;
mod put;
mod recover;
mod reference;
mod take;

thread_local! {
    /// Stores after which this thread is killed; negative: never.
    static LEFT: std::cell::Cell<i64> = const { std::cell::Cell::new(-1) };
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
