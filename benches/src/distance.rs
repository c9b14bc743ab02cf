//! How far two cores are from each other: what it takes to hand a cache line from one to the other.
//!
//! On a virtual machine that is not a constant: its processors may be threads of one core at one moment and cores of different
//! complexes at the next, and everything that two processors share is then several times slower.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::load;

/// Handed over so often.
const TURNS: u32 = 8000;

/// Two distances are alike when neither is more than so many times the other.
const ALIKE: f64 = 1.5;

/// Alone in its cache line, and in the one that is fetched with it.
#[repr(align(128))]
struct Line(AtomicU32);

/// Nanoseconds that a cache line takes from one core to another, the mean of some thousand hand-overs, within about a millisecond.
///
/// # Errors
/// A thread cannot be bound to one of the cores.
pub fn nanoseconds(core: usize, other: usize) -> anyhow::Result<f64> {
    let line = Line(AtomicU32::new(0));
    let pass = |turns: Range<u32>| {
        for turn in turns.step_by(2) {
            while line.0.load(Ordering::Acquire) != turn {
                std::hint::spin_loop();
            }
            line.0.store(turn + 1, Ordering::Release);
        }
    };
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| {
            let bound = load::pin(&[other]);
            // Bound or not, or the first one would wait for ever.
            pass(1..TURNS);
            bound
        });
        let asking = scope.spawn(|| {
            let bound = load::pin(&[core]);
            pass(0..2);
            let start = Instant::now();
            pass(2..TURNS);
            bound.map(|()| start.elapsed())
        });
        let (answering, asking) = (answering.join(), asking.join());
        let panicked = |_| anyhow::anyhow!("a thread that measures the cores' distance panicked");
        answering.map_err(panicked)??;
        Ok(asking.map_err(panicked)??.as_secs_f64() * 1e9 / f64::from(TURNS))
    })
}

/// Whether cores were about as far from each other both times.
pub fn alike(one: f64, other: f64) -> bool {
    one <= ALIKE * other && other <= ALIKE * one
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_compared_both_ways() {
        assert!(alike(20.0, 25.0) && alike(25.0, 20.0));
        assert!(!alike(20.0, 80.0) && !alike(80.0, 20.0));
    }

    #[test]
    fn a_line_that_is_handed_over_takes_some_time_and_both_threads_end() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if cores > 1 {
            let found = nanoseconds(0, 1).unwrap();
            assert!(found > 1.0, "{found} ns");
        }
    }
}
