//! What wakes a worker that sleeps when a frame comes in.
//!
//! A NIC and a TAP have an interrupt for each receive queue; the end of a patch has a [`Bell`], which its sender rings. Other devices
//! have neither, and are looked at again when a timer ends.

use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use dpdk_sys as sys;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use ringspan_protocol::ReceiveWake;

use super::log;

/// An eventfd that a sender signals when its receiver sleeps, and a flag that says so: while the receiver is awake a burst costs the
/// sender a look at the flag.
#[derive(Debug)]
pub struct Bell {
    asleep: AtomicBool,
    event: EventFd,
}

impl Bell {
    /// A bell that nobody listens to yet.
    ///
    /// # Errors
    /// As eventfd(2) has them.
    pub fn new() -> nix::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { asleep: AtomicBool::new(false), event })
    }

    /// The sender has sent something.
    #[inline]
    pub fn ring(&self) {
        // What was sent is seen before the flag is read, as the receiver sets the flag before it looks once more: one of the two notices.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        if self.asleep.swap(false, Ordering::Relaxed) {
            // Only a full counter refuses, and that wakes as well.
            let _ = self.event.write(1);
        }
    }

    /// The receiver is about to sleep: it has to look once more after this.
    pub fn listen(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The receiver is awake.
    pub fn ignore(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Becomes readable when the bell is rung while its receiver sleeps. Edges count.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Makes [`Bell::fd`] quiet again, for who waits for its level.
    pub fn hush(&self) {
        // Nothing to read is all right: nobody rang.
        let _ = self.event.read();
    }
}

/// How a receive queue wakes its worker.
#[derive(Debug, Clone)]
pub(super) enum Waker {
    /// The driver signals this descriptor, which is the driver's own and lives while the port runs. Some drivers hand one out and
    /// never signal it (net_e1000_em on an e1000e), so it is relied upon only when it was seen to be signalled.
    Interrupt { fd: RawFd, seen: Arc<AtomicBool> },
    /// The sender rings.
    Bell(Arc<Bell>),
    /// Not at all.
    Timer,
}

impl Waker {
    /// That of a queue of a port that runs and was configured to have interrupts.
    pub fn of_interrupt(port: u16, queue: u16) -> Self {
        // SAFETY: the port is ours, and the queue set up.
        let (fd, _) = log::listen(|| unsafe { sys::rte_eth_dev_rx_intr_ctl_q_get_fd(port, queue) });
        match fd {
            // A driver without interrupts may answer 0, of a table that it never filled.
            fd if fd > 0 => Self::Interrupt { fd, seen: Arc::default() },
            _ => Self::Timer,
        }
    }

    /// What a person is told.
    pub fn status(&self) -> ReceiveWake {
        match self {
            Self::Interrupt { seen, .. } if seen.load(Ordering::Relaxed) => ReceiveWake::Interrupt,
            Self::Bell(_) => ReceiveWake::Event,
            _ => ReceiveWake::Timer,
        }
    }

    /// Becomes readable when a frame comes, after [`Waker::listen`].
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            // SAFETY: the driver keeps it open while the port runs, and the queue's handle is taken back before it is stopped.
            Self::Interrupt { fd, .. } => Some(unsafe { BorrowedFd::borrow_raw(*fd) }),
            Self::Bell(bell) => Some(bell.event.as_fd()),
            Self::Timer => None,
        }
    }

    /// Whether it can be relied upon.
    pub fn is_reliable(&self) -> bool {
        match self {
            Self::Interrupt { seen, .. } => seen.load(Ordering::Relaxed),
            Self::Bell(_) => true,
            Self::Timer => false,
        }
    }

    /// Looks whether it was signalled, if that was never seen. It is not read, so what was signalled stays so.
    pub fn look(&self) {
        if let Self::Interrupt { seen, .. } = self
            && let Some(fd) = self.fd()
            && !seen.load(Ordering::Relaxed)
        {
            let mut set = [PollFd::new(fd, PollFlags::POLLIN)];
            // A descriptor that is closed, or broken, is reported too.
            if poll(&mut set, PollTimeout::ZERO).is_ok()
                && set[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN))
            {
                seen.store(true, Ordering::Relaxed);
            }
        }
    }

    /// From here on a frame is signalled. One that came before may not be: look once more. False when the driver says that it will
    /// not.
    pub fn listen(&self, port: u16, queue: u16) -> bool {
        match self {
            Self::Interrupt { .. } => {
                // SAFETY: the port is ours, and the queue is polled by the caller alone.
                let status = unsafe { sys::rte_eth_dev_rx_intr_enable(port, queue) };
                // A driver that always signals has no such function (net_tap).
                status == 0 || status == -libc::ENOTSUP
            }
            Self::Bell(bell) => {
                bell.listen();
                true
            }
            Self::Timer => false,
        }
    }

    /// Signals are not needed any more.
    pub fn ignore(&self, port: u16, queue: u16) {
        match self {
            // SAFETY: as above.
            Self::Interrupt { .. } => drop(unsafe { sys::rte_eth_dev_rx_intr_disable(port, queue) }),
            Self::Bell(bell) => bell.ignore(),
            Self::Timer => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_bell_is_heard_once_by_who_sleeps_and_costs_nothing_while_he_is_awake() {
        let bell = Bell::new().unwrap();
        bell.ring();
        assert!(bell.event.read().is_err(), "nobody sleeps");
        bell.listen();
        bell.ring();
        bell.ring();
        assert_eq!(bell.event.read(), Ok(1));
        bell.listen();
        bell.ignore();
        bell.ring();
        assert!(bell.event.read().is_err());
    }

    #[test]
    fn a_descriptor_counts_as_signalled_only_when_it_can_be_read() {
        let seen = |fd: RawFd| {
            let waker = Waker::Interrupt { fd, seen: Arc::default() };
            waker.look();
            waker.is_reliable()
        };
        let event = EventFd::new().unwrap();
        assert!(!seen(event.as_fd().as_raw_fd()));
        event.write(1).unwrap();
        assert!(seen(event.as_fd().as_raw_fd()));
        // What a driver has closed: poll reports it, too. No process has so many descriptors.
        assert!(!seen(RawFd::MAX));
    }
}
