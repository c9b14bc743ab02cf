//! What a worker does when there is nothing to do: it spins a while, then naps, and a kick or a call wakes it.
//!
//! A device may have no receive interrupt, so a nap is bounded: it doubles from 50 us to 2 ms while nothing comes. While
//! the worker spins the guests are told not to kick; before it naps they are asked to, and looked at once more.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;

use crate::relay::Relay;

/// How long a worker spins without a packet before its first nap.
const SPIN: Duration = Duration::from_micros(100);
/// The first nap, and the longest.
const NAP: std::ops::RangeInclusive<Duration> = Duration::from_micros(50)..=Duration::from_millis(2);
/// Empty rounds between two looks at the clock.
const ROUNDS: u32 = 16;

/// Ends a worker's nap.
#[derive(Clone)]
pub struct Wake(Arc<EventFd>);

impl Wake {
    /// Wakes the worker, or keeps it from falling asleep.
    pub fn wake(&self) {
        if let Err(errno) = self.0.write(1) {
            tracing::warn!(%errno, "cannot wake a worker; it wakes by itself within 2 ms");
        }
    }
}

/// The kicks that end a worker's nap.
#[derive(Clone)]
pub struct Watch(Arc<Epoll>);

impl Watch {
    /// Lets a guest's kick end the nap. Edge triggered and never read: what a front-end hands us as a kick may be
    /// anything, and a read could block.
    pub fn add(&self, kick: &OwnedFd) {
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
        if let Err(errno) = self.0.add(kick, event) {
            tracing::debug!(%errno, "a kick descriptor cannot be waited for; its ring is polled each 2 ms");
        }
    }

    /// Forgets a kick. Needed even when the descriptor is closed afterwards: the front-end has a copy.
    pub fn remove(&self, kick: &OwnedFd) {
        if let Err(errno) = self.0.delete(kick) {
            tracing::debug!(%errno, "a kick descriptor was not waited for");
        }
    }
}

/// The state of a worker's rest.
pub struct Idle {
    kicks: Arc<Epoll>,
    wake: Wake,
    empty_rounds: u32,
    since: Option<Instant>,
    nap: Duration,
    /// Whether the guests were asked to kick.
    armed: bool,
}

impl Idle {
    pub(super) fn new() -> nix::Result<(Self, Wake)> {
        let kicks = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        let wake = Wake(Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?));
        kicks.add(wake.0.as_ref(), EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0))?;
        let idle = Self { kicks, wake: wake.clone(), empty_rounds: 0, since: None, nap: *NAP.start(), armed: false };
        Ok((idle, wake))
    }

    pub(super) fn watch(&self) -> Watch {
        Watch(Arc::clone(&self.kicks))
    }

    /// A round moved packets: back to spinning.
    pub(super) fn busy(&mut self, relays: &mut [Relay]) {
        self.empty_rounds = 0;
        self.since = None;
        if self.armed {
            self.armed = false;
            self.nap = *NAP.start();
            relays.iter_mut().for_each(Relay::suppress_kicks);
        }
    }

    /// A round moved nothing: spin on, or take a nap.
    pub(super) fn empty(&mut self, relays: &mut [Relay], call: &AtomicBool) {
        self.empty_rounds += 1;
        if self.empty_rounds < ROUNDS && !self.armed {
            return std::hint::spin_loop();
        }
        self.empty_rounds = 0;
        let now = Instant::now();
        if now.duration_since(*self.since.get_or_insert(now)) < SPIN {
            return;
        }
        // A ring that started since the last nap has to be asked too, so ask each time; asking twice is harmless.
        self.armed = true;
        let mut pending = false;
        for relay in relays {
            pending |= relay.request_kicks();
        }
        if !pending && !call.load(Ordering::Relaxed) {
            self.sleep();
        }
    }

    fn sleep(&mut self) {
        let nap = TimeSpec::from_duration(self.nap);
        self.nap = (self.nap * 2).min(*NAP.end());
        let mut set = [PollFd::new(epoll_fd(&self.kicks), PollFlags::POLLIN)];
        if let Ok(1..) = ppoll(&mut set, Some(nap), None) {
            // Edge triggered: taking the events makes the set quiet again. Which they were does not matter.
            let mut events = [EpollEvent::empty(); 64];
            let _ = self.kicks.wait(&mut events, EpollTimeout::ZERO);
            let _ = self.wake.0.read();
        }
    }
}

fn epoll_fd(epoll: &Epoll) -> BorrowedFd<'_> {
    epoll.0.as_fd()
}
