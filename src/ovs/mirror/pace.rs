//! When to look again: a dump is made by the thread of ovs-vswitchd that does everything else, too.

use std::time::{Duration, Instant};

/// Shortest time between dumps, while nothing says that something changed.
const SHORTEST: Duration = Duration::from_millis(100);
/// Of the thread's time one part in this many: 5%.
const SHARE: u32 = 20;
/// How far a word of a change may get ahead of that share.
const CREDIT: Duration = Duration::from_secs(2);
/// Shortest time between dumps for such a word.
const AT_ONCE: Duration = Duration::from_millis(20);

/// What dumps cost, and when the next may be.
#[derive(Debug)]
pub(super) struct Pace {
    /// When the last one was there.
    pub last: Instant,
    /// Until then the share is used up.
    paid: Instant,
    /// What the last one took.
    pub cost: Duration,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { last: now, paid: now, cost: Duration::ZERO }
    }

    /// A dump was made that took so long.
    pub(super) fn dumped(&mut self, now: Instant, cost: Duration) {
        (self.last, self.cost) = (now, cost);
        self.paid = self.paid.max(now - cost) + cost * SHARE;
    }

    /// How long to wait for a change, and then for the next dump anyway.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.paid.max(self.last + SHORTEST).saturating_duration_since(now)
    }

    /// Longest time until a change is seen that nothing tells of: one dump that just missed it, the time until the next, and that one.
    pub(super) fn stale(&self) -> Duration {
        self.cost * 2 + (self.cost * (SHARE - 1)).max(SHORTEST)
    }

    /// How long to wait when something is said to have changed.
    pub(super) fn wait_for_change(&self, now: Instant) -> Duration {
        (self.last + AT_ONCE).max(self.paid.checked_sub(CREDIT).unwrap_or(self.last)).saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn few_flows_are_looked_at_ten_times_a_second_and_many_at_a_twentieth_of_the_time() {
        let start = Instant::now();
        for (cost, wait) in [(MS, 100 * MS), (5 * MS, 100 * MS), (30 * MS, 570 * MS), (1500 * MS, 28_500 * MS)] {
            let mut pace = Pace::new(start);
            let now = start + cost;
            pace.dumped(now, cost);
            assert_eq!(pace.wait(now), wait, "{cost:?}");
        }
    }

    #[test]
    fn how_old_what_the_nic_has_may_be_is_what_the_documents_say() {
        let operations = include_str!("../../../docs/operations.md");
        for (flows, seconds, text) in [
            (100, 0.1, "0.1 s with 100 flows"),
            (1000, 0.7, "0.7 s with 1,000"),
            (10_000, 6.0, "6 s with 10,000"),
            (50_000, 30.0, "30 s with 50,000"),
            (100_000, 60.0, "60 s with 100,000"),
        ] {
            let mut pace = Pace::new(Instant::now());
            // 25 to 35 us of ovs-vswitchd's main thread for each.
            let cost = Duration::from_micros(30) * flows;
            pace.dumped(Instant::now() + cost, cost);
            let stale = pace.stale().as_secs_f64();
            assert!((0.85..1.15).contains(&(stale / seconds)), "{flows} flows: {stale} s");
            assert!(operations.contains(text), "{text}");
            // Of its time, over many dumps, a twentieth.
            let every = cost + pace.wait(pace.last);
            assert!(cost.as_secs_f64() / every.as_secs_f64() <= 0.0501, "{flows} flows: {every:?} from dump to dump");
        }
    }

    #[test]
    fn a_change_is_looked_at_at_once_until_the_share_is_overdrawn_by_two_seconds() {
        let mut now = Instant::now();
        let begin = now;
        let mut pace = Pace::new(now);
        for _ in 0..1000 {
            now += pace.wait_for_change(now) + 10 * MS;
            pace.dumped(now, 10 * MS);
        }
        // 10 s of dumps: at a twentieth 200 s, less what may be ahead.
        let took = now - begin;
        assert!((195..=201).contains(&took.as_secs()), "{took:?}");
        assert!(pace.wait(now) >= 2 * CREDIT / 3);
    }
}
