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
mod runs;
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
    /// Bursts of this thread that were drained by AVX2.
    static WIDE: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// A chain goes the way for any shape.
pub fn walked() {
    WALKS.set(WALKS.get() + 1);
}

/// In its environment, so that a process drains rings as on a processor without AVX2.
const PLAIN: &str = "RINGSPAN_TEST_PLAIN";

/// Whether this process does.
pub fn is_plain() -> bool {
    static IS_PLAIN: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| std::env::var_os(PLAIN).is_some());
    *IS_PLAIN
}

/// How many cases a property is tried with: fewer under Miri, and where they were all tried once already.
fn cases(miri: u32, all: u32) -> u32 {
    if cfg!(miri) {
        miri
    } else if is_plain() {
        all / 4
    } else {
        all
    }
}

/// A burst is drained by AVX2.
pub fn goes_wide() {
    WIDE.set(WIDE.get() + 1);
}

/// Bursts that this thread has drained so.
fn went_wide() -> u64 {
    WIDE.get()
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
