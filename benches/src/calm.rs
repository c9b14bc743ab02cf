//! Whether two cores run at the same time.
//!
//! The processors of a virtual machine are threads of its host, which may give their time to others, some milliseconds at once, and tells nobody: to the guest
//! they look busy. A generator and a back-end that take turns on one processor measure the host. So both cores are looked at before each measurement, which
//! waits for better times; and one in whose course they stood still is taken once more, as long as the run's [`Patience`] lasts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringspan_testkit::wait;

use crate::clock::{ticks, ticks_per_second};
use crate::load;

/// Largest share of the time, 0 to 1, for which a core may stand still in a measurement that counts like any other.
pub const MOST: f64 = 0.05;
/// A stretch of the load without any progress for which not the back-end is to blame: bursts take microseconds.
pub const STILL: Duration = Duration::from_millis(1);

/// How long the cores are looked at: longer than a slice of most schedulers.
const LOOK: Duration = Duration::from_millis(15);
/// A loop that does nothing else sees its core stand still when so much time passes in one turn.
const GAP: Duration = Duration::from_micros(50);
/// Until they are looked at again.
const PAUSE: Duration = Duration::from_millis(50);
/// Times that one measurement is taken.
const TRIES: u32 = 4;

/// Share of the time, 0 to 1, in which one of two cores did not run while both had work: that of the worse.
///
/// # Errors
/// A thread cannot be bound to one of the cores.
pub fn away(core: usize, other: usize) -> anyhow::Result<f64> {
    let ready = AtomicU32::new(0);
    let look = |core: usize| -> anyhow::Result<f64> {
        let bound = load::pin(&[core]);
        // Bound or not, or the other one would wait for ever.
        ready.fetch_add(1, Ordering::Relaxed);
        while ready.load(Ordering::Relaxed) < 2 {
            std::hint::spin_loop();
        }
        bound?;
        let ticks_of = |time: Duration| (time.as_secs_f64() * ticks_per_second()) as u64;
        let (gap, length, start) = (ticks_of(GAP), ticks_of(LOOK), ticks());
        let (mut last, mut lost) = (start, 0);
        while last - start < length {
            let now = ticks();
            if now - last > gap {
                lost += now - last;
            }
            last = now;
        }
        Ok(lost as f64 / (last - start) as f64)
    };
    // Before the threads: it takes a while the first time.
    ticks_per_second();
    std::thread::scope(|scope| {
        let threads = [core, other].map(|core| scope.spawn(move || look(core)));
        threads.into_iter().try_fold(0.0, |worst: f64, thread| {
            let away = thread.join().map_err(|_| anyhow::anyhow!("a thread that watches a core panicked"))??;
            Ok(worst.max(away))
        })
    })
}

/// The time that a run may spend on waiting for its cores, and on measuring again.
#[derive(Debug, Clone)]
pub struct Patience {
    /// Microseconds.
    left: Arc<AtomicU64>,
}

impl Patience {
    /// So many seconds, for this and all clones together.
    pub fn new(seconds: f64) -> Self {
        Self { left: Arc::new(AtomicU64::new((seconds * 1e6) as u64)) }
    }

    /// Takes some of it; false when there is not so much left.
    fn spend(&self, time: Duration) -> bool {
        let take = |left: u64| left.checked_sub((time.as_micros() as u64).max(1));
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Waits until both cores run. Returns the share of the time in which one did not when they were looked at last.
    ///
    /// # Errors
    /// As [`away`], or the run was stopped.
    pub fn wait(&self, core: usize, other: usize) -> anyhow::Result<f64> {
        loop {
            let away = away(core, other)?;
            if away <= MOST || !self.spend(LOOK + PAUSE) {
                return Ok(away);
            }
            wait::pause(PAUSE)?;
        }
    }

    /// Measures when both cores run, and again when they did not meanwhile, of which `still` tells the share of the time. Returns the largest share, before
    /// and meanwhile, of the measurement that counts.
    ///
    /// # Errors
    /// As [`Patience::wait`], and those of the measurement, which is not taken again then.
    pub fn measure<T>(
        &self,
        (core, other): (usize, usize),
        measure: impl FnMut() -> anyhow::Result<T>,
        still: impl Fn(&T) -> f64,
    ) -> anyhow::Result<(T, f64)> {
        self.repeat(|| self.wait(core, other), measure, still)
    }

    fn repeat<T>(
        &self,
        mut wait: impl FnMut() -> anyhow::Result<f64>,
        mut measure: impl FnMut() -> anyhow::Result<T>,
        still: impl Fn(&T) -> f64,
    ) -> anyhow::Result<(T, f64)> {
        let mut tries = 0;
        loop {
            tries += 1;
            let before = wait()?;
            let start = Instant::now();
            let found = measure()?;
            let away = still(&found).max(before);
            if away <= MOST || tries == TRIES || !self.spend(start.elapsed()) {
                return Ok((found, away));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sched::{CpuSet, sched_getaffinity};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn what_stood_still_is_measured_again_until_it_did_not_or_patience_is_over() {
        let run = |patience: &Patience, shares: &[f64]| {
            let mut given = shares.iter().copied();
            let (found, away) = patience.repeat(|| Ok(0.01), || Ok(given.next().unwrap()), |share| *share).unwrap();
            (found, away, given.count())
        };
        assert_eq!(run(&Patience::new(1000.0), &[0.5, 0.3, 0.0, 0.0]), (0.0, 0.01, 1), "the third is good");
        assert_eq!(run(&Patience::new(1000.0), &[0.5, 0.4, 0.3, 0.2, 0.1]), (0.2, 0.2, 1), "not for ever");
        assert_eq!(run(&Patience::new(0.0), &[0.5, 0.0]), (0.5, 0.5, 1), "no time left");
    }

    #[test]
    fn two_threads_on_one_core_are_seen_to_take_turns() {
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let core = (0..CpuSet::count()).find(|core| allowed.is_set(*core).unwrap()).unwrap();
        assert!(away(core, core).unwrap() > MOST);
    }
}
