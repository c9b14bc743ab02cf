//! That links have changed, as the kernel tells it to RTNLGRP_LINK: a bond's failover and its members' links among it
//! (net/core/rtnetlink.c, `rtnetlink_event`).

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::NetlinkError;

const RTNLGRP_LINK: u32 = 1;

/// A listener. It says that something changed; what, is looked up by who waits: so nothing is missed when messages are lost.
pub(crate) struct LinkWatch {
    socket: Socket,
}

impl LinkWatch {
    /// Begins to listen.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            socket.add_membership(RTNLGRP_LINK)?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        open().map(|socket| Self { socket }).map_err(|source| NetlinkError::Socket { doing: "listening", source })
    }

    /// Whether something changed since the last question; waits for it, `limit` at most.
    pub(crate) fn changed(&self, limit: Duration) -> Result<bool, NetlinkError> {
        let failed = |source| NetlinkError::Socket { doing: "listening", source };
        let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        match poll(&mut ready, timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(failed(error.into())),
        }
        // Its content does not matter: each is cut to nothing, and taken from the queue so.
        loop {
            match self.socket.recv(&mut &mut [0; 0][..], 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                // Messages were lost: something changed.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
}
