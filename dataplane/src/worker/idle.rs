//! What a worker does when there is nothing to do: it spins a while, then sleeps, and a kick, a call or a frame wakes it.
//!
//! While the worker spins the guests are told not to kick, and devices not to interrupt. Before it sleeps they are asked to, and all is
//! looked at once more. Where a device has no interrupt, or a guest no kick, the sleep is short: a sixteenth of the time in which
//! nothing came, 50 us at least and 2 ms at most. So what comes a moment after other packets is found soon, and a queue of 512
//! descriptors overflows only when more than 250,000 packets a second come after more than 30 ms without any.
//!
//! What is held back to a rate is no work: the sleep ends when it may go on.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::clock::time_of;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use ringspan_protocol::ReceiveWake;

/// How long a worker spins without a packet before its first nap.
const SPIN: Duration = Duration::from_micros(100);
/// Sleep where not everything can wake the worker: bounds, and how often it fits into the time without a packet.
const NAP: std::ops::RangeInclusive<Duration> = Duration::from_micros(50)..=ReceiveWake::LONGEST_TIMER;
const NAPS: u32 = 16;
/// Sleep where everything can. Half of what DPDK's bonding allows between two looks (LACP), and of the watchdog's period.
const LONGEST: Duration = Duration::from_millis(50);
/// Empty rounds between two looks at the clock.
const ROUNDS: u32 = 16;

/// What can be asked to end the sleep.
pub trait Signalled {
    /// Asks to be signalled. True when something waits already.
    fn listen(&mut self) -> bool;

    /// Whether everything that may come is signalled.
    fn can_wake(&self) -> bool;

    /// In how many ticks what is held back to a rate may go on, which nothing signals; none where nothing is.
    fn held_for(&self) -> Option<u64> {
        None
    }

    /// Something was signalled during the sleep: looks whether it was this.
    fn look_for_signals(&mut self);

    /// No signals are needed any more.
    fn ignore_signals(&mut self);

    /// Signals of devices are not needed.
    fn ignore_frames(&mut self);
}

impl<T: Signalled> Signalled for [T] {
    fn listen(&mut self) -> bool {
        self.iter_mut().fold(false, |pending, one| one.listen() | pending)
    }

    fn can_wake(&self) -> bool {
        self.iter().all(T::can_wake)
    }

    fn held_for(&self) -> Option<u64> {
        self.iter().filter_map(T::held_for).min()
    }

    fn look_for_signals(&mut self) {
        self.iter_mut().for_each(T::look_for_signals);
    }

    fn ignore_signals(&mut self) {
        self.iter_mut().for_each(T::ignore_signals);
    }

    fn ignore_frames(&mut self) {
        self.iter_mut().for_each(T::ignore_frames);
    }
}

/// What came of a round without a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// The next round follows at once.
    Spun,
    /// Everybody was asked to signal: the next round must look at all.
    Asked,
    /// The worker has slept.
    Slept,
}

/// Ends a worker's nap.
#[derive(Clone)]
pub struct Wake(Arc<EventFd>);

impl Wake {
    /// Wakes the worker, or keeps it from falling asleep.
    pub fn wake(&self) {
        if let Err(errno) = self.0.write(1) {
            tracing::warn!(%errno, "cannot wake a worker; it wakes by itself within 50 ms");
        }
    }
}

/// The kicks and interrupts that end a worker's sleep.
#[derive(Clone)]
pub struct Watch(Arc<Epoll>);

impl Watch {
    /// Lets a guest's kick, or a device's interrupt, end the sleep. Edge triggered and never read: what a front-end hands us
    /// as a kick may be anything, and a read could block. False when it cannot be waited for.
    pub fn add(&self, signal: impl AsFd) -> bool {
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
        let added = self.0.add(signal, event);
        if let Err(errno) = added {
            tracing::debug!(%errno, "a descriptor cannot be waited for; the worker looks for itself");
        }
        added.is_ok()
    }

    /// Forgets a kick or an interrupt. Needed even when the descriptor is closed afterwards: others may have a copy.
    pub fn remove(&self, signal: impl AsFd) {
        if let Err(errno) = self.0.delete(signal) {
            tracing::debug!(%errno, "a descriptor was not waited for");
        }
    }
}

/// The state of a worker's rest.
pub struct Idle {
    kicks: Arc<Epoll>,
    wake: Wake,
    /// Never rests.
    busy_poll: bool,
    empty_rounds: u32,
    since: Option<Instant>,
    /// Whether guests and devices were asked to signal, since the last packet.
    asked: bool,
    /// Whether they signal now, so that a round without a packet may be followed by sleep.
    listening: bool,
    /// Whether everything can wake the worker.
    all_wake: bool,
    /// Whether a signal has ended the last sleep, and was not forgotten yet.
    signalled: bool,
}

impl Idle {
    pub(super) fn new(busy_poll: bool) -> nix::Result<(Self, Wake)> {
        let kicks = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        let wake = Wake(Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?));
        kicks.add(wake.0.as_ref(), EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0))?;
        let idle = Self {
            kicks,
            wake: wake.clone(),
            busy_poll,
            empty_rounds: 0,
            since: None,
            asked: false,
            listening: false,
            all_wake: false,
            signalled: false,
        };
        Ok((idle, wake))
    }

    pub(super) fn watch(&self) -> Watch {
        Watch(Arc::clone(&self.kicks))
    }

    /// A round moved packets: back to spinning.
    #[inline]
    pub(super) fn busy(&mut self, members: &mut (impl Signalled + ?Sized)) {
        self.empty_rounds = 0;
        self.since = None;
        if self.asked {
            (self.asked, self.listening) = (false, false);
            members.ignore_signals();
        }
    }

    /// The relays are others by now: whoever came was not asked to signal yet.
    pub(super) fn changed(&mut self) {
        self.listening = false;
    }

    /// A round moved nothing: spin on, or sleep.
    pub(super) fn empty(&mut self, members: &mut (impl Signalled + ?Sized), call: &AtomicBool) -> Rest {
        if self.busy_poll {
            std::hint::spin_loop();
            return Rest::Spun;
        }
        self.empty_rounds += 1;
        if self.empty_rounds < ROUNDS && !self.asked {
            std::hint::spin_loop();
            return Rest::Spun;
        }
        self.empty_rounds = 0;
        let now = Instant::now();
        let quiet = now.duration_since(*self.since.get_or_insert(now));
        if quiet < SPIN {
            return Rest::Spun;
        }
        if !self.listening {
            self.forget_signals();
            // A ring that started since the last sleep has to be asked too, so ask each time; asking twice is harmless.
            self.asked = true;
            self.listening = !members.listen();
            self.all_wake = members.can_wake();
            return Rest::Asked;
        }
        // All were looked at since they signal.
        self.listening = false;
        if !call.load(Ordering::Relaxed) && self.sleep(quiet, members.held_for()) {
            members.look_for_signals();
            // A TAP's descriptor is readable a moment before its driver gives the frame out: DPDK's net_tap reads only after a
            // signal of its own.
            self.since = None;
            // What came goes first; then `busy` tells all that signals are not needed.
        } else {
            members.ignore_frames();
        }
        Rest::Slept
    }

    /// Sleeps. True when something ended it before its time.
    fn sleep(&mut self, quiet: Duration, held_for: Option<u64>) -> bool {
        let longest = if self.all_wake { LONGEST } else { (quiet / NAPS).clamp(*NAP.start(), *NAP.end()) };
        let longest = held_for.map_or(longest, |ticks| longest.min(time_of(ticks).max(*NAP.start())));
        let mut set = [PollFd::new(epoll_fd(&self.kicks), PollFlags::POLLIN)];
        // A TAP's signal comes a moment before its descriptor is readable.
        let ended = ppoll(&mut set, Some(TimeSpec::from_duration(longest)), None);
        self.signalled = matches!(ended, Ok(1..) | Err(Errno::EINTR));
        self.signalled
    }

    /// Makes the set of signals quiet again, after one has ended the sleep. Not at once, because then there is work; but before all are asked
    /// to signal and looked at, so that nothing is forgotten that was not seen.
    fn forget_signals(&mut self) {
        if std::mem::take(&mut self.signalled) {
            // Edge triggered: taking the events is enough. Which they were does not matter.
            let mut events = [EpollEvent::empty(); 64];
            let _ = self.kicks.wait(&mut events, EpollTimeout::ZERO);
            let _ = self.wake.0.read();
        }
    }
}

fn epoll_fd(epoll: &Epoll) -> BorrowedFd<'_> {
    epoll.0.as_fd()
}
