//! Whether an aim is held, in plain words at the end of a benchmark.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Processor time that is spent on it at least.
const SPENT: Duration = Duration::from_secs(5);

/// Does `round`, which is so many of `things`, again and again, and says how many a second that makes of one core's processor time: over all of it, and in the
/// slowest round. What other work takes of the machine is not counted.
pub fn tell(what: &str, things: &str, wanted: u32, count: usize, mut round: impl FnMut()) {
    // Once for the caches.
    round();
    let (begun, mut rounds, mut slowest) = (used(), 0, Duration::ZERO);
    let spent = loop {
        let before = used();
        round();
        let now = used();
        (rounds, slowest) = (rounds + 1, slowest.max(now - before));
        if now - begun >= SPENT {
            break now - begun;
        }
    };
    let rate = |count: usize, time: Duration| count as f64 / time.as_secs_f64();
    let (all, worst) = (rate(count * rounds, spent), rate(count, slowest));
    let held = if all >= f64::from(wanted) { "held" } else { "MISSED" };
    println!(
        "aim {held}: {what}: {all:.0} {things} a second of one core for {:.1} s, {worst:.0} in the slowest of {rounds} rounds; wanted {wanted}",
        spent.as_secs_f64()
    );
}

/// Processor time of this thread.
fn used() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has this clock").into()
}
