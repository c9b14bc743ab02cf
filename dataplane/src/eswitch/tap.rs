//! A representor: a persistent TAP on the host, by whose name OVS, tcpdump and ip know a port of the NIC. It outlives the lane.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Longest name of a network interface, without its end.
const MOST_NAME: usize = libc::IFNAMSIZ - 1;

/// An open TAP. Reading and writing moves a frame each, without waiting.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
}

impl Tap {
    /// Opens the TAP, making it if it is not there, and brings it up with this MTU.
    ///
    /// # Errors
    /// As the kernel has them: EBUSY when somebody else has it open, EINVAL when there is another interface of that name, EPERM
    /// without CAP_NET_ADMIN.
    pub fn open(name: &str, mtu: u16) -> io::Result<Self> {
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/net/tun")?;
        let mut request = named(name)?;
        // Frames are plain: what a guest left to its device is done before they come here, and the kernel does the rest of what it sends.
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: the kernel reads and writes a request of this size.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
        let tap = Self { file, name: name.into() };
        // SAFETY: takes a number.
        check(unsafe { libc::ioctl(tap.file.as_raw_fd(), libc::TUNSETPERSIST, 1) })?;
        tap.bring_up(mtu)?;
        Ok(tap)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface goes when this is dropped.
    ///
    /// # Errors
    /// As the kernel has them.
    pub fn end_with_lane(&self) -> io::Result<()> {
        // SAFETY: takes a number.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETPERSIST, 0) })
    }

    /// Reads a frame; `None` when there is none.
    #[inline]
    pub fn read(&self, frame: &mut [u8]) -> Option<usize> {
        // SAFETY: the kernel writes as many bytes as there is room for, at most.
        let read = unsafe { libc::read(self.file.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len()) };
        usize::try_from(read).ok()
    }

    /// Writes a frame that is in these pieces. False when the kernel did not take it.
    #[inline]
    pub fn write(&self, pieces: &[io::IoSlice<'_>]) -> bool {
        // SAFETY: an `IoSlice` is an iovec (its documentation says so), and the bytes are read during the call.
        unsafe { libc::writev(self.file.as_raw_fd(), pieces.as_ptr().cast(), pieces.len() as i32) > 0 }
    }

    fn bring_up(&self, mtu: u16) -> io::Result<()> {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let mut request = named(&self.name)?;
        request.ifr_ifru.ifru_mtu = mtu.into();
        // SAFETY: the kernel reads a request of this size.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU, &raw const request) })?;
        // SAFETY: the kernel writes the flags into a request of this size, and reads them.
        unsafe {
            check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request))?;
            request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
            check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request))
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn named(name: &str) -> io::Result<libc::ifreq> {
    if name.is_empty() || name.len() > MOST_NAME {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: a plain C structure, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
