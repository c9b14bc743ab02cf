//! The vhost-user socket's file: made without a moment in which others could connect, never taken from a live owner,
//! and removed only while it is still ours.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen, socket};
use nix::unistd::{Gid, Uid};
use ringspan_protocol::{Failure, FailureKind};

/// Longest path of a unix socket in bytes (sun_path without its final zero).
pub const MAX_PATH: usize = 107;
/// Permission bits of a listening socket when none are asked for: owner and group.
pub const DEFAULT_MODE: u32 = 0o660;

/// Why a socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path does not fit into a socket address.
    #[error("socket {path}: the path has {length} bytes, a unix socket's at most 107: choose a shorter one")]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its bytes.
        length: usize,
    },
    /// Something that is no socket is there.
    #[error("socket {path}: a {kind} is there already: remove it or choose another path")]
    NotASocket {
        /// The path.
        path: PathBuf,
        /// What is there.
        kind: &'static str,
    },
    /// Somebody listens there.
    #[error("socket {path}: another process listens on it: stop that one or choose another path")]
    Live {
        /// The path.
        path: PathBuf,
    },
    /// The folder is not there.
    #[error("socket {path}: its folder is not there: make it first (mkdir -p {folder})")]
    NoFolder {
        /// The path.
        path: PathBuf,
        /// The missing folder.
        folder: PathBuf,
    },
    /// Not allowed to.
    #[error("socket {path}: {what} is not permitted: {remedy}")]
    Permission {
        /// The path.
        path: PathBuf,
        /// What was tried.
        what: String,
        /// What helps.
        remedy: &'static str,
        /// The operating system's error number.
        errno: i32,
    },
    /// Anything else.
    #[error("socket {path}: cannot {what}: {source}")]
    Failed {
        /// The path.
        path: PathBuf,
        /// What was tried.
        what: String,
        /// What the operating system said.
        source: io::Error,
    },
}

impl SocketError {
    fn of(path: &Path, what: impl Into<String>, errno: Errno) -> Self {
        let (path, what) = (path.to_owned(), what.into());
        match errno {
            Errno::EACCES | Errno::EPERM | Errno::EROFS => {
                let remedy = if what.starts_with("giving") {
                    "changing the owner needs CAP_CHOWN"
                } else {
                    "let the lane's user write to its folder, or choose another path"
                };
                Self::Permission { path, what, remedy, errno: errno as i32 }
            }
            Errno::ENOENT | Errno::ENOTDIR => {
                let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
                Self::NoFolder { path, folder }
            }
            Errno::EADDRINUSE => Self::Live { path },
            other => Self::Failed { path, what, source: other.into() },
        }
    }
}

impl From<SocketError> for Failure {
    fn from(error: SocketError) -> Self {
        let (kind, errno) = match &error {
            SocketError::TooLong { .. } | SocketError::NotASocket { .. } => (FailureKind::Invalid, None),
            SocketError::Live { .. } => (FailureKind::Busy, Some(libc::EADDRINUSE)),
            SocketError::NoFolder { .. } => (FailureKind::NotFound, Some(libc::ENOENT)),
            SocketError::Permission { errno, .. } => (FailureKind::Permission, Some(*errno)),
            SocketError::Failed { source, .. } => (FailureKind::Failed, source.raw_os_error()),
        };
        Failure { errno, ..Failure::new(kind, error.to_string()) }
    }
}

/// A listening socket and its file, which goes with it.
#[derive(Debug)]
pub struct ServerSocket {
    listener: OwnedFd,
    path: PathBuf,
    /// Device and inode of our file: what is removed at the end must still be it.
    identity: (u64, u64),
}

impl ServerSocket {
    /// Makes the file, gives it its owner and permission bits, and listens.
    ///
    /// Until it listens every connection is refused, so that nobody gets in before owner and bits are right. A socket
    /// that is there already and that nobody listens on is replaced.
    ///
    /// # Errors
    /// See [`SocketError`]. Nothing is left behind.
    pub fn bind(path: &Path, owner: Option<(u32, u32)>, mode: Option<u32>) -> Result<Self, SocketError> {
        let address = address(path)?;
        let listener = stream_socket().map_err(|errno| SocketError::of(path, "make a socket", errno))?;
        match bind(listener.as_raw_fd(), &address) {
            Err(Errno::EADDRINUSE) => {
                remove_stale(path, &address)?;
                bind(listener.as_raw_fd(), &address)
            }
            other => other,
        }
        .map_err(|errno| SocketError::of(path, "making it there", errno))?;
        // From here on all goes through the inode, so that nobody can put another file under our hands.
        let open = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path);
        let file =
            open.map_err(|source| SocketError::Failed { path: path.into(), what: "find it again".into(), source })?;
        let metadata = file.metadata().map_err(|source| SocketError::Failed {
            path: path.into(),
            what: "look at it".into(),
            source,
        })?;
        let server = Self { listener, path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) };
        let through = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        if let Some((user, group)) = owner {
            let owner = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
            nix::unistd::chown(&through, owner.0, owner.1)
                .map_err(|errno| SocketError::of(path, format!("giving it to user {user}, group {group}"), errno))?;
        }
        let mode = mode.unwrap_or(DEFAULT_MODE);
        fs::set_permissions(&through, fs::Permissions::from_mode(mode)).map_err(|source| SocketError::Failed {
            path: path.into(),
            what: format!("set its mode to {mode:#o}"),
            source,
        })?;
        let backlog = Backlog::new(64).unwrap_or(Backlog::MAXCONN);
        listen(&server.listener, backlog).map_err(|errno| SocketError::of(path, "listen on it", errno))?;
        Ok(server)
    }

    /// Takes the next connection, `None` when none waits. Neither this nor the connection's own calls block.
    ///
    /// # Errors
    /// As accept(2) has them.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
            Ok(fd) => Ok(Some(UnixStream::from(owned(fd)))),
            Err(Errno::EAGAIN | Errno::ECONNABORTED | Errno::EINTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for ServerSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl ServerSocket {
    /// Removes the file, so that nobody finds the socket any more, unless it is no longer ours.
    pub fn remove(&self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours {
            // Already gone is as good.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for ServerSocket {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Connects to a front-end that listens. Does not block: a full queue is `EAGAIN`.
///
/// # Errors
/// [`SocketError::TooLong`]; [`SocketError::Failed`] with what connect(2) said, which may be retried.
pub fn connect_to(path: &Path) -> Result<UnixStream, SocketError> {
    let address = address(path)?;
    let failed =
        |errno: Errno| SocketError::Failed { path: path.into(), what: "connect to it".into(), source: errno.into() };
    let stream = stream_socket().map_err(failed)?;
    connect(stream.as_raw_fd(), &address).map_err(failed)?;
    Ok(UnixStream::from(stream))
}

/// Refuses a path that no socket can have.
///
/// # Errors
/// [`SocketError::TooLong`].
pub fn check_path(path: &Path) -> Result<(), SocketError> {
    let length = path.as_os_str().len();
    if length > MAX_PATH { Err(SocketError::TooLong { path: path.into(), length }) } else { Ok(()) }
}

fn address(path: &Path) -> Result<UnixAddr, SocketError> {
    check_path(path)?;
    UnixAddr::new(path).map_err(|errno| SocketError::of(path, "use that path", errno))
}

fn stream_socket() -> Result<OwnedFd, Errno> {
    socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}

fn owned(fd: std::os::fd::RawFd) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: accept4 just made this descriptor and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Removes a socket's file that nobody listens on; anything else there is refused.
fn remove_stale(path: &Path, address: &UnixAddr) -> Result<(), SocketError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(SocketError::Failed { path: path.into(), what: "look at it".into(), source }),
    };
    if !found.is_socket() {
        let kind = if found.is_dir() {
            "folder"
        } else if found.is_symlink() {
            "symbolic link"
        } else {
            "file"
        };
        return Err(SocketError::NotASocket { path: path.into(), kind });
    }
    let probe = stream_socket().map_err(|errno| SocketError::of(path, "make a socket", errno))?;
    match connect(probe.as_raw_fd(), address) {
        // Nobody listens. The only answer after which the file may go.
        Err(Errno::ECONNREFUSED) => fs::remove_file(path).map_err(|error| {
            SocketError::of(path, "replacing it", Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
        }),
        Err(Errno::ENOENT) => Ok(()),
        Err(errno @ (Errno::EACCES | Errno::EPERM)) => Err(SocketError::of(path, "asking whether it is live", errno)),
        // Connected, or its queue is full, or it is of another kind: somebody is there.
        _ => Err(SocketError::Live { path: path.into() }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn bits_are_set_and_the_file_goes_with_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm1.sock");
        let server = ServerSocket::bind(&path, None, Some(0o640)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        let _client = connect_to(&path).unwrap();
        assert!(server.accept().unwrap().is_some());
        assert!(server.accept().unwrap().is_none(), "accept never blocks");
        drop(server);
        assert!(!path.exists());
        let server = ServerSocket::bind(&path, None, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, DEFAULT_MODE);
        drop(server);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm1.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "left behind by its owner");
        let live = ServerSocket::bind(&path, None, None).unwrap();
        let before = fs::metadata(&path).unwrap().ino();
        let error = ServerSocket::bind(&path, None, None).unwrap_err();
        assert!(matches!(error, SocketError::Live { .. }), "{error}");
        assert_eq!(Failure::from(error).kind, FailureKind::Busy);
        assert_eq!(fs::metadata(&path).unwrap().ino(), before);
        assert!(connect_to(&path).is_ok());
        drop(live);
    }

    #[test]
    fn a_live_socket_of_another_kind_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.sock");
        let _datagram = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        assert!(matches!(ServerSocket::bind(&path, None, None), Err(SocketError::Live { .. })));
        assert!(path.exists());
    }

    #[test]
    fn what_is_no_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "data").unwrap();
        let error = ServerSocket::bind(&path, None, None).unwrap_err();
        assert!(error.to_string().contains("a file is there already"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"data");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("nowhere"), &link).unwrap();
        assert!(ServerSocket::bind(&link, None, None).is_err());
        assert!(fs::symlink_metadata(&link).is_ok());
    }

    #[test]
    fn a_file_that_is_no_longer_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm1.sock");
        let server = ServerSocket::bind(&path, None, None).unwrap();
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(server);
        assert!(UnixStream::connect(&path).is_ok(), "the new owner's socket was removed");
        drop(other);
    }

    #[test]
    fn errors_say_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(120));
        let error = ServerSocket::bind(&long, None, None).unwrap_err();
        assert!(error.to_string().contains("at most 107"), "{error}");
        let missing = folder.path().join("no/such/folder.sock");
        let error = ServerSocket::bind(&missing, None, None).unwrap_err();
        assert!(error.to_string().contains("mkdir -p"), "{error}");
        assert_eq!(Failure::from(error).kind, FailureKind::NotFound);
    }
}
