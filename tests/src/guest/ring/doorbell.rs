//! A ring's two event descriptors.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Kick and call.
#[derive(Debug)]
pub struct Doorbell {
    kick: EventFd,
    call: EventFd,
}

impl Doorbell {
    pub(super) fn new() -> nix::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Self { kick: EventFd::from_flags(flags)?, call: EventFd::from_flags(flags)? })
    }

    /// What the driver writes to when there are buffers.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// What the back-end writes to when it used some.
    pub fn call(&self) -> &EventFd {
        &self.call
    }

    /// Kicks. A counter that is full is a kick that was not heard yet.
    pub fn ring(&self) {
        let _ = self.kick.write(1);
    }

    /// Sleeps until the back-end interrupts.
    pub(super) fn wait_call(&self, timeout: Duration) -> io::Result<()> {
        let mut fds = [PollFd::new(self.call.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX))?;
        Ok(())
    }
}
