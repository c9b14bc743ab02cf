//! What the control socket answers when it refuses: a stable kind, a sentence with the remedy, errno where there is one.

use ringspan_protocol::{Failure, FailureKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Kinds of error. Part of the control API: a kind never changes its meaning; new ones may be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ErrorKind {
    /// The line is not JSON.
    Malformed,
    /// The line is JSON, but no JSON-RPC 2.0 request.
    InvalidRequest,
    /// There is no such method.
    UnknownMethod,
    /// A parameter is missing, unknown or of the wrong type.
    Usage,
    /// The request is longer than 1 MiB, or did not end within 10 seconds.
    TooLong,
    /// Not reached within the time that was given.
    Timeout,
    /// The lane is not running, or died during the request.
    LaneDown,
    /// Open vSwitch is not running, or ended during the request.
    OvsDown,
    /// The job was cancelled.
    Cancelled,
    /// A value that can never be right.
    Invalid,
    /// No such port, lane, job or device.
    NotFound,
    /// The name is taken by something else.
    Exists,
    /// The device or the socket is used by somebody else.
    Busy,
    /// Not allowed to.
    Permission,
    /// The device, driver or peer cannot do that.
    Unsupported,
    /// Memory, ports, cores, queues or connections are used up.
    NoRoom,
    /// Versions do not fit.
    Version,
    /// The configuration file and the ports added at run time want different things.
    Conflict,
    /// Anything else; the message says what.
    Failed,
}

impl ErrorKind {
    /// JSON-RPC's own codes where it has one; -32000 for everything that is ours, told apart by the kind.
    pub(crate) fn code(self) -> i64 {
        match self {
            Self::Malformed => -32700,
            Self::InvalidRequest | Self::TooLong => -32600,
            Self::UnknownMethod => -32601,
            Self::Usage => -32602,
            _ => -32000,
        }
    }
}

impl From<FailureKind> for ErrorKind {
    fn from(kind: FailureKind) -> Self {
        match kind {
            FailureKind::Invalid => Self::Invalid,
            FailureKind::NotFound => Self::NotFound,
            FailureKind::Exists => Self::Exists,
            FailureKind::Busy => Self::Busy,
            FailureKind::Permission => Self::Permission,
            FailureKind::Unsupported => Self::Unsupported,
            FailureKind::NoRoom => Self::NoRoom,
            FailureKind::Version => Self::Version,
            FailureKind::Failed => Self::Failed,
        }
    }
}

/// A refusal, as it goes over the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Error {
    /// Stable word for programs.
    pub kind: ErrorKind,
    /// What is wrong, with the value, and what to do.
    pub message: String,
    /// The operating system's error number where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
    /// The port, lane or job it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), errno: None, item: None }
    }

    /// The same, about this port, lane or job.
    pub(crate) fn about(self, item: impl ToString) -> Self {
        Self { item: Some(item.to_string()), ..self }
    }

    /// An operating system's error with what was tried.
    pub(crate) fn io(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::PermissionDenied => ErrorKind::Permission,
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Failed,
        };
        Self { errno: error.raw_os_error(), ..Self::new(kind, format!("{what}: {error}")) }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self { errno: failure.errno, ..Self::new(failure.kind.into(), failure.message) }
    }
}
