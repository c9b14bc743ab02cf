//! The eventfd that interrupts the guest.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::RingError;

/// Interrupts the guest, and never waits for it. The descriptor comes from the front-end, who may have sent anything: a
/// file whose writes hang (FUSE, a full pipe) would stop a worker with all its ports.
#[derive(Debug)]
pub(super) struct Call {
    fd: Option<Arc<OwnedFd>>,
}

impl Call {
    /// Takes an eventfd, and makes it non-blocking; or nothing, when the guest polls.
    pub fn new(fd: Option<Arc<OwnedFd>>) -> Result<Self, RingError> {
        if let Some(fd) = &fd {
            let raw = fd.as_raw_fd();
            if !is_eventfd(raw) || make_non_blocking(raw).is_err() {
                return Err(RingError::Call);
            }
        }
        Ok(Self { fd })
    }

    /// One interrupt. A counter that is full (EAGAIN) is as good as one that was just written.
    ///
    /// # Errors
    ///
    /// [`RingError::CallHangs`]: the write waited until a signal ended it, because the front-end made the descriptor
    /// blocking again and filled its counter.
    pub fn signal(&self) -> Result<(), RingError> {
        let Some(fd) = &self.fd else { return Ok(()) };
        let one = 1u64;
        // SAFETY: an open descriptor, and eight readable bytes.
        let written = unsafe { libc::write(fd.as_raw_fd(), (&raw const one).cast(), size_of_val(&one)) };
        let hung = written == -1 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted;
        if hung { Err(RingError::CallHangs) } else { Ok(()) }
    }
}

/// Whether a descriptor is an eventfd. Without /proc it is believed.
fn is_eventfd(fd: RawFd) -> bool {
    match std::fs::read_link(format!("/proc/self/fd/{fd}")) {
        Ok(target) => target.as_os_str() == "anon_inode:[eventfd]",
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn make_non_blocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: an open descriptor; both calls only read and write its flags.
    let result = unsafe {
        match libc::fcntl(fd, libc::F_GETFL) {
            -1 => -1,
            flags => libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK),
        }
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::FromRawFd;

    #[test]
    fn a_full_counter_does_not_block() {
        // SAFETY: no preconditions; a blocking eventfd, one below full.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: just opened, owned by nobody else.
        let fd = Arc::new(unsafe { OwnedFd::from_raw_fd(fd) });
        let full = u64::MAX - 1;
        // SAFETY: eight readable bytes.
        assert_eq!(unsafe { libc::write(fd.as_raw_fd(), (&raw const full).cast(), 8) }, 8);
        Call::new(Some(fd)).unwrap().signal().unwrap();
    }

    #[test]
    fn what_is_no_eventfd_is_refused() {
        let (_reader, writer) = io::pipe().unwrap();
        assert_eq!(Call::new(Some(Arc::new(writer.into()))).unwrap_err(), RingError::Call);
        let file = tempfile::tempfile().unwrap();
        assert_eq!(Call::new(Some(Arc::new(file.into()))).unwrap_err(), RingError::Call);
    }
}
