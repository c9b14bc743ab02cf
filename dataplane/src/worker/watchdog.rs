//! Frees a worker that hangs in a system call.
//!
//! A worker makes one system call that a front-end has a hand in: the write to a call eventfd. The descriptor is made
//! non-blocking, but its flags are shared with the front-end, who may take that back and fill the counter. A worker whose
//! rounds stand still therefore gets a signal, which ends a write that waits with EINTR; the ring that it was for is broken
//! then, and its port stops.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;

/// How often a watchdog should look. A worker that moves nothing sleeps for 50 ms at most, so a round takes less.
pub const PERIOD: Duration = Duration::from_millis(100);

/// Ends a system call that waits. Nothing else in the process uses it.
const SIGNAL: Signal = Signal::SIGUSR2;

/// Makes the signal one that only ends system calls.
fn install() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    // Without SA_RESTART, or the call would go on waiting.
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, and nobody else in the process handles this signal.
    unsafe { sigaction(SIGNAL, &action) }?;
    Ok(())
}

/// Runs `call`, which may wait in a system call for ever: that ends with EINTR then, after [`PERIOD`] or two. For threads without a pulse.
///
/// # Errors
/// As sigaction(2) and timer_create(2) have them; nothing was run then.
pub fn interruptibly<T>(call: impl FnOnce() -> T) -> io::Result<T> {
    install()?;
    let thread = nix::unistd::gettid().as_raw();
    let notify = SigevNotify::SigevThreadId { signal: SIGNAL, thread_id: thread, si_value: 0 };
    let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify))?;
    // Again and again: one may come before the call waits.
    timer.set(Expiration::Interval(TimeSpec::from_duration(PERIOD)), TimerSetTimeFlags::empty())?;
    // It goes with the timer's end.
    Ok(call())
}

/// What a worker shows of its progress.
#[derive(Debug, Default)]
pub struct Pulse {
    beats: AtomicU64,
    thread: AtomicI32,
}

impl Pulse {
    /// From here on the pulse is that of the calling thread.
    pub fn take(&self) {
        self.thread.store(nix::unistd::gettid().as_raw(), Ordering::Release);
    }

    /// A round is done. Only the thread itself calls this.
    #[inline]
    pub fn beat(&self) {
        self.beats.store(self.beats.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Rounds that were done.
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// The thread ends: nothing is sent to it any more.
    pub fn end(&self) {
        self.thread.store(0, Ordering::Release);
    }
}

/// Looks at pulses, and signals a thread whose pulse has not moved between two looks.
#[derive(Debug)]
pub struct Watchdog {
    pulses: Vec<(Arc<Pulse>, u64)>,
}

impl Watchdog {
    /// A watchdog over these threads.
    ///
    /// # Errors
    /// As sigaction(2) has them.
    pub fn new(pulses: impl IntoIterator<Item = Arc<Pulse>>) -> io::Result<Self> {
        install()?;
        Ok(Self { pulses: pulses.into_iter().map(|pulse| (pulse, u64::MAX)).collect() })
    }

    /// One look. A thread that only was not scheduled meanwhile is not hurt by the signal.
    pub fn look(&mut self) {
        for (pulse, before) in &mut self.pulses {
            let now = pulse.beats.load(Ordering::Relaxed);
            let thread = pulse.thread.load(Ordering::Acquire);
            if now == *before && thread != 0 {
                // SAFETY: plain system call; at worst the thread has just ended, and it fails.
                unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, SIGNAL as libc::c_int) };
            }
            *before = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::eventfd::{EfdFlags, EventFd};
    use std::sync::atomic::AtomicBool;

    #[test]
    fn a_write_that_waits_for_ever_ends() {
        let full = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC).unwrap();
        full.write(u64::MAX - 1).unwrap();
        assert_eq!(interruptibly(|| full.write(1)).unwrap(), Err(nix::Error::EINTR));
    }

    #[test]
    fn a_thread_that_hangs_in_a_write_is_freed_and_one_that_goes_on_is_left_alone() {
        let stuck = Arc::new(Pulse::default());
        let well = Arc::new(Pulse::default());
        let mut watchdog = Watchdog::new([Arc::clone(&stuck), Arc::clone(&well)]).unwrap();
        let full = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC).unwrap();
        full.write(u64::MAX - 1).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let hangs = scope.spawn(|| {
                stuck.take();
                let outcome = full.write(1);
                stuck.end();
                outcome
            });
            let works = scope.spawn(|| {
                well.take();
                while !done.load(Ordering::Relaxed) {
                    well.beat();
                    std::hint::spin_loop();
                }
                well.end();
            });
            while !hangs.is_finished() {
                watchdog.look();
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(hangs.join().unwrap(), Err(nix::Error::EINTR));
            done.store(true, Ordering::Relaxed);
            works.join().unwrap();
        });
    }
}
