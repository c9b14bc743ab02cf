//! JSON-RPC 1.0 over unix sockets, as ovsdb-server (RFC 7047) and every daemon of OVS's (`unixctl`) speak it.
//!
//! `frame` cuts the stream into objects, `stream` gives one long text line by line, `rpc` is a connection, `database` and `unixctl` are the two kinds of peers, `openflow` tells of changes
//! in a bridge's tables, `meters` has the limits of its meters, `place` says where they listen.

pub(crate) mod database;
mod frame;
pub(crate) mod meters;
mod openflow;
mod place;
mod rpc;
mod stream;
#[cfg(test)]
mod tests;
pub(crate) mod unixctl;

use std::path::PathBuf;
use std::time::Duration;

pub(crate) use database::Database;
pub(crate) use openflow::FlowMonitor;
pub(crate) use place::Place;
pub(crate) use rpc::{Bounds, Rpc};
pub(crate) use stream::Lines;
pub(crate) use unixctl::{Process, Switch};

use crate::error::{Error, ErrorKind};

/// Why one of OVS's daemons gave no good answer. Each names the peer, what it was asked, and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OvsError {
    /// Nobody listens, or not for us.
    #[error(
        "{peer} at {path}: {reason}: is Open vSwitch running? its run directory is ovs.run_dir of the configuration file"
    )]
    Unreachable {
        /// Which daemon.
        peer: &'static str,
        /// Its socket, or the file that would lead there.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
        /// Its number of that.
        errno: Option<i32>,
    },
    /// No answer in time. The connection is of no more use.
    #[error("{peer} did not answer {method} within {limit:?}: it may be busy or hang: see its log, and try again")]
    Silent {
        /// Which daemon.
        peer: &'static str,
        /// What it was asked.
        method: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The connection ended. It is of no more use.
    #[error(
        "{peer} closed the connection in {method}, after {bytes} bytes of an answer ({reason}): it may have been restarted: try again"
    )]
    Closed {
        /// Which daemon.
        peer: &'static str,
        /// What it was asked.
        method: String,
        /// How much of an answer had come.
        bytes: usize,
        /// What the operating system said.
        reason: String,
    },
    /// Something that is no JSON-RPC, or not what the method gives. The connection is of no more use.
    #[error("{peer} answered {method} with what is no answer ({what}): is another program behind its socket?")]
    Garbage {
        /// Which daemon.
        peer: &'static str,
        /// What it was asked.
        method: String,
        /// What came.
        what: String,
    },
    /// An answer beyond what is taken. The connection is of no more use.
    #[error("{peer} answered {method} with more than {limit} bytes: {remedy}")]
    TooLong {
        /// Which daemon.
        peer: &'static str,
        /// What it was asked.
        method: String,
        /// How many are taken.
        limit: usize,
        /// What to do.
        remedy: &'static str,
    },
    /// It has no flows because it waits for those of its bridges; the connection is good.
    #[error(
        "Open vSwitch waits until the OpenFlow tables of its bridges are restored, and forwards nothing (other_config:flow-restore-wait): \
         ovs-ctl takes that back by itself; if it was stopped before: ovs-vsctl remove Open_vSwitch . other_config flow-restore-wait"
    )]
    Restoring,
    /// It understood and refused; the connection is good.
    #[error("{peer} refused {method}: {reason}")]
    Refused {
        /// Which daemon.
        peer: &'static str,
        /// What it was asked.
        method: String,
        /// Its own words.
        reason: String,
    },
}

impl OvsError {
    /// Whether the connection can be used again.
    pub(crate) fn connection_is_good(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Restoring)
    }
}

impl From<OvsError> for Error {
    fn from(error: OvsError) -> Self {
        let kind = match error {
            OvsError::Refused { .. } | OvsError::Garbage { .. } | OvsError::TooLong { .. } => ErrorKind::Failed,
            OvsError::Silent { .. } => ErrorKind::Timeout,
            OvsError::Unreachable { .. } | OvsError::Closed { .. } | OvsError::Restoring => ErrorKind::OvsDown,
        };
        let errno = match error {
            OvsError::Unreachable { errno, .. } => errno,
            _ => None,
        };
        Error { errno, ..Error::new(kind, error.to_string()) }
    }
}
