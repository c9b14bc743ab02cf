//! Why the kernel did not do what netlink asked.

use std::io;

use crate::error::{Error, ErrorKind};
use crate::ovs::kernel::DecodeError;

/// Why the kernel did not do what netlink asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetlinkError {
    /// A system call failed.
    #[error("netlink: {doing}: {source}")]
    Socket {
        /// What was being done.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel has no such family.
    #[error("this kernel has no {name}")]
    NoFamily {
        /// Its name.
        name: &'static str,
    },
    /// The kernel refused.
    #[error("{}{}", io::Error::from_raw_os_error(*errno), said.as_ref().map(|said| format!(" (the kernel says: {said})")).unwrap_or_default())]
    Refused {
        /// The error number.
        errno: i32,
        /// The extended ack: the kernel's own words.
        said: Option<String>,
    },
    /// Something changed during a dump, each time it was tried.
    #[error("it changed faster than it could be read")]
    Changed,
    /// The kernel answered without what was asked for.
    #[error("the kernel's answer has no {what}")]
    Missing {
        /// What.
        what: &'static str,
    },
    /// A message is not understood.
    #[error("the kernel's answer is not understood: {0}")]
    Decode(#[from] DecodeError),
}

impl NetlinkError {
    /// The error number, where there is one.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Socket { source, .. } => source.raw_os_error(),
            Self::NoFamily { .. } => Some(libc::ENOENT),
            _ => None,
        }
    }

    /// Whether the kernel, the driver or the device does not have what was asked for.
    pub(crate) fn is_unsupported(&self) -> bool {
        matches!(self.errno(), Some(libc::EOPNOTSUPP | libc::ENODEV | libc::ENOENT | libc::ENOSYS))
    }

    /// The refusal that the control socket answers with.
    pub(crate) fn tell(&self, what: impl std::fmt::Display) -> Error {
        let kind = match self.errno() {
            Some(libc::EPERM | libc::EACCES) => ErrorKind::Permission,
            Some(libc::EBUSY) => ErrorKind::Busy,
            Some(libc::EOPNOTSUPP | libc::ENOENT | libc::ENOSYS) => ErrorKind::Unsupported,
            Some(libc::ENODEV) => ErrorKind::NotFound,
            Some(libc::EINVAL | libc::ERANGE) => ErrorKind::Invalid,
            Some(libc::ENOSPC | libc::ENOMEM) => ErrorKind::NoRoom,
            _ => ErrorKind::Failed,
        };
        Error { errno: self.errno(), ..Error::new(kind, format!("{what}: {self}")) }
    }
}
