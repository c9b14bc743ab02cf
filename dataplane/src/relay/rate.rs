//! How many bytes of a port may pass in a time, in one direction.
//!
//! A port's parts run on several workers, so its rate is one number that they share: the moment at which all that has passed is paid for. Without a limit it costs
//! a load each burst; with one two additions that need no lock. A burst that may begin passes whole, and what it has too much is paid by a longer pause.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::worker::{ticks, ticks_in};

/// How far ahead of its rate a port may be: so long a quiet one may send as fast as it can.
const AHEAD: Duration = Duration::from_millis(50);
/// How long a direction that was held back pauses at least: its worker sleeps meanwhile. Short enough that a guest does not notice, and paid back by what it
/// may be ahead.
const PAUSE: Duration = Duration::from_millis(1);
/// Bits behind the point of [`Rate::per_byte`].
const FRACTION: u32 = 16;

/// A rate, which all relays of a port share.
#[derive(Debug, Default)]
pub struct Rate {
    /// Ticks that a byte costs; 0: nothing.
    per_byte: AtomicU64,
    /// When all that has passed is paid for, in ticks.
    paid: AtomicU64,
}

impl Rate {
    /// At most so many Mbit/s from here on; 0: no limit.
    pub fn limit(&self, mbit: u32) {
        let ticks = u128::from(ticks_in(Duration::from_secs(1))) << FRACTION;
        let per_byte = ticks.checked_div(u128::from(mbit) * 125_000).map_or(0, |ticks| ticks.max(1) as u64);
        self.per_byte.store(per_byte, Ordering::Relaxed);
        self.paid.store(0, Ordering::Relaxed);
    }

    /// Whether a burst may pass now.
    #[inline]
    pub fn allows(&self) -> bool {
        self.per_byte.load(Ordering::Relaxed) == 0 || self.allows_at(ticks())
    }

    fn allows_at(&self, now: u64) -> bool {
        self.paid.load(Ordering::Relaxed) <= now.saturating_add(ticks_in(AHEAD))
    }

    /// How many ticks it takes until one that was held back may go on; 0: it may now.
    #[inline]
    pub fn held_for(&self) -> u64 {
        if self.per_byte.load(Ordering::Relaxed) == 0 { 0 } else { self.held_at(ticks()) }
    }

    fn held_at(&self, now: u64) -> u64 {
        self.paid.load(Ordering::Relaxed).saturating_sub(now.saturating_add(ticks_in(AHEAD - PAUSE)))
    }

    /// So many bytes have passed.
    #[inline]
    pub fn charge(&self, bytes: u64) {
        let per_byte = self.per_byte.load(Ordering::Relaxed);
        if per_byte != 0 {
            self.charge_at(ticks(), bytes, per_byte);
        }
    }

    fn charge_at(&self, now: u64, bytes: u64, per_byte: u64) {
        let cost = (u128::from(bytes) * u128::from(per_byte)) >> FRACTION;
        // Time that nobody used is lost. Another worker's charge between the two loses nothing.
        self.paid.fetch_max(now, Ordering::Relaxed);
        self.paid.fetch_add(cost as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that pass in a second of a clock that is only counted, in bursts of this size.
    fn in_a_second(mbit: u32, burst: u64) -> u64 {
        let rate = Rate::default();
        rate.limit(mbit);
        let per_byte = rate.per_byte.load(Ordering::Relaxed);
        let (begun, second) = (ticks(), ticks_in(Duration::from_secs(1)));
        let mut bytes = 0;
        for turn in 0..20_000 {
            let now = begun + second / 20_000 * turn;
            while rate.allows_at(now) {
                rate.charge_at(now, burst, per_byte);
                bytes += burst;
            }
        }
        bytes
    }

    #[test]
    fn one_that_was_held_back_pauses_and_loses_nothing_of_its_rate() {
        let rate = Rate::default();
        rate.limit(1000);
        let per_byte = rate.per_byte.load(Ordering::Relaxed);
        let (mut now, mut bytes, mut pauses) = (1 << 40, 0_u64, 0);
        let (begun, end) = (now, now + ticks_in(Duration::from_secs(2)));
        while now < end {
            while rate.allows_at(now) {
                rate.charge_at(now, 64 * 64, per_byte);
                bytes += 64 * 64;
            }
            let pause = rate.held_at(now);
            assert!(pause >= ticks_in(PAUSE) / 2, "a pause of {pause} ticks");
            now += pause;
            pauses += 1;
        }
        let wanted = (now - begun) as f64 / ticks_in(Duration::from_secs(1)) as f64 * 125e6 + 0.05 * 125e6;
        assert!((0.98..1.02).contains(&(bytes as f64 / wanted)), "{bytes} bytes, not {wanted}");
        assert!((1500..=2100).contains(&pauses), "{pauses} pauses");
    }

    #[test]
    fn as_much_passes_as_the_rate_says_and_no_more() {
        for (mbit, burst) in [(1, 1500), (100, 60), (100, 96_000), (10_000, 256 << 10)] {
            let (bytes, wanted) = (in_a_second(mbit, burst), u64::from(mbit) * 125_000);
            // What it may be ahead, and one burst.
            let most = wanted + wanted / 20 + burst;
            assert!(
                (wanted..=most + wanted / 100).contains(&bytes),
                "{mbit} Mbit/s: {bytes} bytes, not {wanted} to {most}"
            );
        }
    }

    #[test]
    fn without_a_limit_everything_passes_and_a_limit_can_be_taken_away() {
        let rate = Rate::default();
        rate.charge(1 << 40);
        assert!(rate.allows());
        rate.limit(1);
        assert!(rate.allows());
        rate.charge(1 << 40);
        assert!(!rate.allows());
        rate.limit(0);
        assert!(rate.allows());
    }
}
