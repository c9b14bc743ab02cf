//! What the NICs' rules count is asked for from time to time, for rates, and so that it is known when a NIC loses it; and whenever somebody wants to see it.

use std::time::{Duration, Instant};

use super::engine::Engine;
use super::run::{Common, lock};

/// Time between looks, unless they take more than a hundredth of it.
const EVERY: Duration = Duration::from_secs(1);
const SHARE: u32 = 100;
/// Shortest time that a rate is taken over.
const RATE: Duration = Duration::from_millis(900);

/// When counters were looked at.
#[derive(Debug, Default)]
pub(super) struct Sampling {
    /// When the last look began.
    begun: Option<Instant>,
    /// When rates were last taken.
    rated: Option<Instant>,
    /// What the last look took.
    took: Duration,
}

/// Looks at counters until the mirror ends.
pub(super) fn run(common: &Common, engine: &dyn Engine) {
    while !lock(&common.shared).ending {
        take(common, engine);
        let took = lock(&common.sampling).took;
        common.sleep(EVERY.max(took * SHARE));
    }
}

/// Asks all NICs what their rules count. Who asked before the last look began gets what that one found.
pub(super) fn take(common: &Common, engine: &dyn Engine) {
    let asked = Instant::now();
    let mut sampling = lock(&common.sampling);
    if sampling.begun.is_some_and(|begun| begun >= asked) {
        return;
    }
    let begun = Instant::now();
    sampling.begun = Some(begun);
    for nic in engine.nics() {
        // One that cannot be asked counts nothing new.
        if let Ok(counters) = engine.counters(&nic.name) {
            lock(&common.shared).work.count(&nic.name, &counters);
        }
    }
    let passed = sampling.rated.map(|rated| begun - rated);
    if passed.is_none_or(|passed| passed >= RATE) {
        let mut shared = lock(&common.shared);
        for entry in shared.work.table.flows.values_mut() {
            entry.pass(passed.unwrap_or(RATE));
        }
        sampling.rated = Some(begun);
    }
    sampling.took = begun.elapsed();
}
