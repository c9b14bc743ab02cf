//! A clock for the loop of a worker: one instruction, no system call.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long the processor's counter is compared with the clock, once in a process.
const COMPARED: Duration = Duration::from_millis(5);

/// Ticks since some moment: of the processor's counter, which runs at one rate on all cores.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn ticks() -> u64 {
    // SAFETY: the instruction is there on every x86-64 processor, and has no effect but its result.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Ticks since some moment: nanoseconds.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub fn ticks() -> u64 {
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    BEGUN.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// Ticks in this time. The first call takes `COMPARED`.
pub fn ticks_in(time: Duration) -> u64 {
    (u128::from(ticks_per_second()) * time.as_nanos() / 1_000_000_000) as u64
}

/// Milliseconds since some moment, modulo 2^32 (49 days), and never 0: what a rule has room for. The first call takes `COMPARED`.
#[inline]
pub fn millis() -> u32 {
    // A multiplication instead of a division by ticks in a millisecond.
    static FACTOR: OnceLock<u64> = OnceLock::new();
    let factor = *FACTOR.get_or_init(|| {
        let factor = (1000u128 << 64) / u128::from(ticks_per_second());
        factor.min(u128::from(u64::MAX)) as u64
    });
    let millis = (u128::from(ticks()) * u128::from(factor)) >> 64;
    (millis as u32).max(1)
}

/// The time that so many ticks take.
pub fn time_of(ticks: u64) -> Duration {
    let nanos = u128::from(ticks) * 1_000_000_000 / u128::from(ticks_per_second());
    Duration::from_nanos(nanos.min(u128::from(u64::MAX)) as u64)
}

fn ticks_per_second() -> u64 {
    static RATE: OnceLock<u64> = OnceLock::new();
    *RATE.get_or_init(|| {
        let (start, begun) = (ticks(), Instant::now());
        std::thread::sleep(COMPARED);
        let (end, elapsed) = (ticks(), begun.elapsed());
        let rate = u128::from(end.saturating_sub(start)) * 1_000_000_000 / elapsed.as_nanos().max(1);
        (rate as u64).max(1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_as_long_as_the_clock_says() {
        let wanted = ticks_in(Duration::from_millis(50));
        let (start, begun) = (ticks(), Instant::now());
        while ticks() - start < wanted {
            std::hint::spin_loop();
        }
        let took = begun.elapsed();
        assert!((Duration::from_millis(45)..Duration::from_millis(500)).contains(&took), "{took:?}");
    }

    #[test]
    fn milliseconds_are_those_that_ticks_take() {
        // The ticks around each look at it: whatever else the machine does meanwhile, it was between them.
        let look = || (ticks(), millis(), ticks());
        let (from, begun, behind) = look();
        while ticks() - behind < ticks_in(Duration::from_millis(40)) {
            std::hint::spin_loop();
        }
        let (before, now, to) = look();
        let passed = u128::from(now.wrapping_sub(begun));
        let (least, most) = (time_of(before - behind).as_millis(), time_of(to - from).as_millis());
        assert!(passed + 1 >= least && passed <= most + 1, "{passed} ms of {least} to {most}");
        assert!(least >= 39);
    }
}
