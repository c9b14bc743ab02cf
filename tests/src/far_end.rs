//! The kernel's end of a TAP or a wire, frame by frame: what a device sent out is read, and what it shall get is written.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use crate::netns::Netns;

/// Bytes that may wait to be read: more than any test has on its way.
const BUFFER: libc::c_int = 32 << 20;

/// A socket for whole frames of one ethertype at an interface.
#[derive(Debug)]
pub struct FarEnd {
    socket: OwnedFd,
}

impl FarEnd {
    /// Frames of `ethertype` at `interface`, which is in that namespace. Nothing else is seen.
    pub fn open(net: &Netns, interface: &str, ethertype: [u8; 2]) -> Result<Self> {
        let path = format!("/run/netns/{}", net.name());
        let namespace = std::fs::File::open(&path).with_context(|| format!("opening {path}"))?;
        // A socket stays in the namespace that its thread was in when it was made.
        let inside = std::thread::scope(|scope| {
            let open = scope.spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
                Self::open_here(interface, ethertype).with_context(|| format!("a socket at {interface}"))
            });
            open.join().map_err(|_| anyhow::anyhow!("the thread panicked"))
        });
        inside?
    }

    fn open_here(interface: &str, ethertype: [u8; 2]) -> Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: plain calls; the descriptor is new and nobody else's. Bound below; until then protocol 0 hears nothing.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_PACKET, kind, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error().into());
            }
            OwnedFd::from_raw_fd(fd)
        };
        let size = BUFFER;
        // SAFETY: the option is an int, and lives through the call.
        let done = unsafe {
            let (value, length) = ((&raw const size).cast(), size_of_val(&size) as u32);
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value, length)
        };
        if done < 0 {
            return Err(io::Error::last_os_error().into());
        }
        // SAFETY: all zeros is a valid address of this kind.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = u16::from_ne_bytes(ethertype);
        address.sll_ifindex = nix::net::if_::if_nametoindex(interface)? as i32;
        // SAFETY: the address and its length belong together.
        let bound = unsafe {
            let length = size_of_val(&address) as u32;
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length)
        };
        if bound < 0 {
            return Err(io::Error::last_os_error().into());
        }
        Ok(Self { socket })
    }

    /// Sends one frame; whether there was room for it.
    pub fn send(&self, frame: &[u8]) -> io::Result<bool> {
        // SAFETY: the frame is that long.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        would_block(sent).map(|sent| sent.is_some())
    }

    /// The next frame, copied to the front of `frame`: its length, if there is one.
    pub fn receive(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        // SAFETY: the buffer is that long.
        let received =
            unsafe { libc::recv(self.socket.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), libc::MSG_TRUNC) };
        would_block(received)
    }
}

fn would_block(result: isize) -> io::Result<Option<usize>> {
    if result >= 0 {
        return Ok(Some(result as usize));
    }
    let error = io::Error::last_os_error();
    let later = [Some(libc::EAGAIN), Some(libc::ENOBUFS)].contains(&error.raw_os_error());
    if later { Ok(None) } else { Err(error) }
}
