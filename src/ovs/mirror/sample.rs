//! What the NICs' rules count is asked for from time to time, for rates, and so that it is known when a NIC loses it; and whenever somebody wants to see it.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::engine::Engine;
use super::run::{Common, lock};

/// Time between looks, unless they take more than a hundredth of it; and the longest time, so that one NIC that does not answer does not leave what
/// is shown of all the others as it was.
const EVERY: Duration = Duration::from_secs(1);
const SHARE: u32 = 100;
const LONGEST: Duration = Duration::from_secs(10);
/// Shortest time that a rate is taken over.
const RATE: Duration = Duration::from_millis(900);
/// How long who wants to see counters waits for a look that another one has begun.
const OTHERS: Duration = Duration::from_secs(2);

/// When counters were looked at.
#[derive(Debug, Default)]
pub(super) struct Sampling {
    times: Mutex<Times>,
    /// Told when a look is over.
    over: Condvar,
}

#[derive(Debug, Default)]
struct Times {
    /// When the last look began.
    begun: Option<Instant>,
    /// It is not over yet.
    is_looking: bool,
    /// When rates were last taken.
    rated: Option<Instant>,
    /// What the last look took.
    took: Duration,
}

/// Looks at counters until the mirror ends.
pub(super) fn run(common: &Common, engine: &dyn Engine) {
    while !lock(&common.shared).ending {
        take(common, engine);
        let took = lock(&common.sampling.times).took;
        common.sleep(pause(took));
    }
}

fn pause(took: Duration) -> Duration {
    (took * SHARE).clamp(EVERY, LONGEST)
}

/// Asks all NICs what their rules count; no lock is held meanwhile. Who asked before the last look began gets what that one found, and what
/// there is when it takes long.
pub(super) fn take(common: &Common, engine: &dyn Engine) {
    let asked = Instant::now();
    let Sampling { times, over } = &common.sampling;
    {
        let waited = over.wait_timeout_while(lock(times), OTHERS, |times| times.is_looking);
        let (mut times, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if times.is_looking || times.begun.is_some_and(|begun| begun >= asked) {
            return;
        }
        (times.begun, times.is_looking) = (Some(Instant::now()), true);
    }
    let begun = Instant::now();
    for nic in engine.nics() {
        // One that cannot be asked counts nothing new.
        if let Ok(counters) = engine.counters(&nic.name) {
            lock(&common.shared).work.count(&nic.name, &counters);
        }
    }
    let mut times = lock(times);
    let passed = times.rated.map(|rated| begun - rated);
    if passed.is_none_or(|passed| passed >= RATE) {
        let mut shared = lock(&common.shared);
        for entry in shared.work.table.flows.values_mut() {
            entry.pass(passed.unwrap_or(RATE));
        }
        times.rated = Some(begun);
    }
    (times.took, times.is_looking) = (begun.elapsed(), false);
    over.notify_all();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nic_that_does_not_answer_does_not_end_the_counting_of_others() {
        assert_eq!(pause(Duration::from_millis(1)), EVERY);
        assert_eq!(pause(Duration::from_millis(50)), 50 * SHARE * Duration::from_millis(1));
        assert_eq!(pause(Duration::from_secs(5)), LONGEST);
    }
}
