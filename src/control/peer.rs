//! Who is at the other end of a control connection, and what they may do.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::Control;
use crate::error::{Error, ErrorKind};

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    /// Nothing: they could open the socket, and are not among `control.readers`.
    Nobody,
    /// Look.
    Read,
    /// Look and change.
    Change,
}

/// The process at the other end, as the kernel knows it (SO_PEERCRED, SO_PEERGROUPS): nothing it says itself counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its user.
    pub(crate) uid: u32,
    /// Its group and supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// Its process id.
    pub(crate) pid: i32,
}

impl Peer {
    /// Asks the kernel.
    pub(crate) fn of(stream: &UnixStream) -> std::io::Result<Self> {
        let credentials = getsockopt(stream, PeerCredentials)?;
        let mut groups = peer_groups(stream)?;
        groups.push(credentials.gid());
        Ok(Self { uid: credentials.uid(), groups, pid: credentials.pid() })
    }

    /// What they may do under this configuration. `own` is the daemon's own user.
    pub(crate) fn role(&self, control: &Control, own: u32) -> Role {
        let in_group = |group: Option<u32>| group.is_some_and(|gid| self.groups.contains(&gid));
        if self.uid == 0 || self.uid == own || in_group(control.group) {
            Role::Change
        } else if control.readers.is_none() || in_group(control.readers) {
            Role::Read
        } else {
            Role::Nobody
        }
    }

    /// Refuses what is beyond their role, with the reason and the remedy.
    pub(crate) fn allow(&self, has: Role, needs: Role, method: &str) -> Result<(), Error> {
        if has >= needs {
            return Ok(());
        }
        let uid = self.uid;
        let message = match has {
            Role::Read => format!(
                "{method} changes things, and user {uid} may only read: be root, the daemon's user or in the group control.group names"
            ),
            _ => format!(
                "user {uid} may not use this socket: be in the group that control.readers or control.group names"
            ),
        };
        Err(Error::new(ErrorKind::Permission, message))
    }
}

/// The peer's supplementary groups as they were when it connected (socket(7), SO_PEERGROUPS).
fn peer_groups(stream: &UnixStream) -> std::io::Result<Vec<u32>> {
    let mut groups = vec![0u32; 64];
    loop {
        let mut length = (groups.len() * size_of::<u32>()) as libc::socklen_t;
        // SAFETY: the buffer has `length` bytes and stays alive over the call; the kernel writes at most that many, and
        // the number of bytes that it has (also when they did not fit) to `length`.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &mut length,
            )
        };
        let count = length as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = std::io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(group: Option<u32>, readers: Option<u32>) -> Control {
        Control {
            socket: "/run/x".into(),
            socket_mode: 0o660,
            state_dir: "/".into(),
            run_dir: "/".into(),
            group,
            readers,
            lane_program: None,
        }
    }

    #[test]
    fn root_the_daemons_user_and_the_group_change_and_others_read() {
        let peer = |uid, groups: &[u32]| Peer { uid, groups: groups.to_vec(), pid: 1 };
        let open = control(Some(50), None);
        assert_eq!(peer(0, &[0]).role(&open, 7), Role::Change);
        assert_eq!(peer(7, &[7]).role(&open, 7), Role::Change);
        assert_eq!(peer(9, &[9, 50]).role(&open, 7), Role::Change);
        assert_eq!(peer(9, &[9]).role(&open, 7), Role::Read);
        let closed = control(Some(50), Some(60));
        assert_eq!(peer(9, &[9, 60]).role(&closed, 7), Role::Read);
        assert_eq!(peer(9, &[9]).role(&closed, 7), Role::Nobody);
        assert_eq!(peer(9, &[9]).role(&control(None, None), 7), Role::Read);
    }

    #[test]
    fn the_kernel_says_who_the_peer_is() {
        let (a, _b) = UnixStream::pair().unwrap();
        let peer = Peer::of(&a).unwrap();
        assert_eq!(peer.uid, nix::unistd::getuid().as_raw());
        assert_eq!(peer.pid, std::process::id() as i32);
        assert!(peer.groups.contains(&nix::unistd::getgid().as_raw()));
    }
}
