//! Bytes and file descriptors over a unix stream socket, without ever blocking.
//!
//! Invariants that the `unsafe` here relies on: the control buffers are aligned for `cmsghdr` (they are arrays of u64)
//! and outlive the call; every descriptor that the kernel reports was just made for this process, is reported once, and
//! so has one owner, the [`OwnedFd`] it is put in at once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Most descriptors the kernel attaches to one message (SCM_MAX_FD).
const SCM_MAX_FD: usize = 253;
/// Space for them with their header: in 64-bit words.
const CONTROL_WORDS: usize = (16 + SCM_MAX_FD * 4).div_ceil(8) + 2;

/// What one read brought.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes read; 0 at the end of the stream.
    pub bytes: usize,
    /// Descriptors that came with them.
    pub fds: Vec<OwnedFd>,
    /// The kernel could not deliver all descriptors (this process has too many open).
    pub truncated: bool,
}

/// Reads what is there, up to the buffer's size.
///
/// A read ends where other descriptors begin, so that those of the next message are never taken.
///
/// # Errors
/// `WouldBlock` when nothing is there; others as recvmsg(2) has them.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = [0u64; CONTROL_WORDS];
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is plain data; all-zero is the empty message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the message points at `buffer` and `control`, both exclusively ours and alive, with their true sizes.
    let bytes = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    if bytes < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut received =
        Received { bytes: bytes as usize, fds: Vec::new(), truncated: message.msg_flags & libc::MSG_CTRUNC != 0 };
    // SAFETY: recvmsg filled `message`; the macros walk `control` within msg_controllen.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: not null, so it is a whole control header inside `control`.
        let (level, kind, length) = unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len as usize) };
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            // SAFETY: pure arithmetic.
            let prefix = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = length.saturating_sub(prefix) / size_of::<RawFd>();
            for at in 0..count {
                // SAFETY: the kernel wrote `count` descriptors after the header; they may be unaligned. Each is new and ours.
                let fd = unsafe {
                    let data = libc::CMSG_DATA(header).cast::<RawFd>();
                    OwnedFd::from_raw_fd(data.add(at).read_unaligned())
                };
                received.fds.push(fd);
            }
        }
        // SAFETY: `header` came from this message.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok(received)
}

/// Sends what fits, with the descriptors on its first byte. At most 253 of them.
///
/// # Errors
/// `WouldBlock` when nothing fits; others as sendmsg(2) has them.
pub fn send(socket: BorrowedFd<'_>, buffer: &[u8], fds: &[OwnedFd]) -> io::Result<usize> {
    if fds.len() > SCM_MAX_FD {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut control = [0u64; CONTROL_WORDS];
    let mut iov = libc::iovec { iov_base: buffer.as_ptr().cast_mut().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is plain data; all-zero is the empty message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        let length = size_of_val(fds) as u32;
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: pure arithmetic; CONTROL_WORDS is enough for SCM_MAX_FD descriptors.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(length) } as _;
        // SAFETY: msg_control holds at least one header, which the macro returns; its data has room for `fds`.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(length) as _;
            let data = libc::CMSG_DATA(header).cast::<RawFd>();
            for (at, fd) in fds.iter().enumerate() {
                data.add(at).write_unaligned(fd.as_raw_fd());
            }
        }
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the message points at `buffer`, which is only read, and `control`, with their true sizes.
    let bytes = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    if bytes < 0 { Err(io::Error::last_os_error()) } else { Ok(bytes as usize) }
}

/// A flag that can be waited for; once raised it stays raised.
#[derive(Debug)]
pub struct Stop(EventFd);

impl Stop {
    /// A flag that is not raised.
    ///
    /// # Errors
    /// As eventfd(2) has them.
    pub fn new() -> io::Result<Self> {
        Ok(Self(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
    }

    /// Raises it.
    pub fn raise(&self) {
        // Fails only when the counter is full, and then it is raised.
        let _ = self.0.write(1);
    }

    /// Whether it is raised.
    pub fn is_raised(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits until it is raised, for at most this long. Returns whether it is.
    pub fn wait(&self, longest: Duration) -> bool {
        matches!(wait_any([(self.as_fd(), PollFlags::POLLIN)], Some(longest)), Ok([found]) if !found.is_empty())
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of these is ready, for at most this long. Returns for each what it is ready for.
///
/// # Errors
/// As poll(2) has them, without EINTR: then nothing is ready.
pub fn wait_any<const N: usize>(
    wanted: [(BorrowedFd<'_>, PollFlags); N],
    longest: Option<Duration>,
) -> io::Result<[PollFlags; N]> {
    let mut fds = wanted.map(|(fd, flags)| PollFd::new(fd, flags));
    let timeout = match longest {
        None => PollTimeout::NONE,
        Some(longest) => PollTimeout::try_from(longest).unwrap_or(PollTimeout::MAX),
    };
    match poll(&mut fds, timeout) {
        Ok(_) => Ok(fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()))),
        Err(nix::errno::Errno::EINTR) => Ok([PollFlags::empty(); N]),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_travel_with_the_first_byte() {
        let (left, right) = UnixStream::pair().unwrap();
        let fds: Vec<OwnedFd> = (0..SCM_MAX_FD).map(|_| left.try_clone().unwrap().into()).collect();
        assert_eq!(send(left.as_fd(), b"hello", &fds).unwrap(), 5);
        assert_eq!(send(left.as_fd(), b"next", &fds[..2]).unwrap(), 4);
        let mut buffer = [0; 64];
        let first = receive(right.as_fd(), &mut buffer).unwrap();
        assert_eq!((first.bytes, first.fds.len(), first.truncated), (5, SCM_MAX_FD, false), "stops at the next ones");
        assert_eq!(receive(right.as_fd(), &mut buffer).unwrap().fds.len(), 2);
        assert_eq!(receive(right.as_fd(), &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(left);
        drop(fds);
        drop(first);
        assert_eq!(receive(right.as_fd(), &mut buffer).unwrap().bytes, 0, "the end of the stream");
    }

    #[test]
    fn a_raised_flag_stays_raised() {
        let stop = Stop::new().unwrap();
        assert!(!stop.is_raised());
        stop.raise();
        assert!(stop.is_raised() && stop.wait(Duration::from_secs(60)));
    }
}
