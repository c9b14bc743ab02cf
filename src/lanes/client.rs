//! One connection to a lane: a request, then its reply, each with a time limit.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use ringspan_protocol::message::MAX_LINE;
use ringspan_protocol::{Envelope, Failure, FailureKind, LaneInfo, Reply, Request, VERSION};

use crate::error::{Error, ErrorKind};

/// Longest wait for an answer that needs no device.
pub(super) const QUICK: Duration = Duration::from_secs(5);
/// Longest wait for a device to be opened or closed.
pub(super) const SLOW: Duration = Duration::from_secs(60);

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The lane refused; the connection is good.
    #[error("{0}")]
    Refused(Failure),
    /// The connection is of no more use: the lane is gone, or answered something else.
    #[error("{0}")]
    Lost(String),
    /// The lane did not answer in time. The connection is of no more use: the answer may come yet.
    #[error("{0}")]
    Silent(String),
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(failure) => failure.into(),
            CallError::Lost(reason) | CallError::Silent(reason) => Error::new(ErrorKind::LaneDown, reason),
        }
    }
}

/// A connection on which [`Request::Hello`] was answered.
#[derive(Debug)]
pub(super) struct LaneClient {
    stream: BufReader<UnixStream>,
    next_id: u64,
}

/// What a lane said to the first request.
#[derive(Debug)]
pub(super) enum Greeting {
    /// It speaks our version.
    Fits(LaneInfo),
    /// It speaks another one; all it can be told is to shut down.
    OtherVersion(String),
}

/// A lane that answered.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) client: LaneClient,
    pub(super) greeting: Greeting,
    /// The process that listens, as the kernel knows it.
    pub(super) pid: i32,
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum NotConnected {
    /// Nobody listens.
    Nobody(String),
    /// This process listens, and does not answer as a lane does.
    Stuck(i32, String),
}

impl From<NotConnected> for Error {
    fn from(why: NotConnected) -> Self {
        let (NotConnected::Nobody(reason) | NotConnected::Stuck(_, reason)) = why;
        Error::new(ErrorKind::LaneDown, reason)
    }
}

impl LaneClient {
    /// Connects and shakes hands.
    pub(super) fn connect(path: &Path) -> Result<Connected, NotConnected> {
        let nobody = |error: std::io::Error| NotConnected::Nobody(format!("{}: {error}", path.display()));
        let stream = UnixStream::connect(path).map_err(nobody)?;
        let peer = getsockopt(&stream, PeerCredentials).map_err(|errno| nobody(errno.into()))?;
        // Somebody else's socket in our place is no lane of ours, and its process none of our business.
        if peer.uid() != nix::unistd::geteuid().as_raw() && peer.uid() != 0 {
            let reason = format!("{}: a process of user {} listens there", path.display(), peer.uid());
            return Err(NotConnected::Nobody(reason));
        }
        let pid = peer.pid();
        stream.set_write_timeout(Some(QUICK)).map_err(nobody)?;
        let mut client = Self { stream: BufReader::new(stream), next_id: 1 };
        match client.greet() {
            Ok(greeting) => Ok(Connected { client, greeting, pid }),
            Err(error) => Err(NotConnected::Stuck(pid, error.to_string())),
        }
    }

    fn greet(&mut self) -> Result<Greeting, CallError> {
        let greeting = match self.call(Request::Hello { version: VERSION }, QUICK) {
            Ok(Reply::Hello(info)) if info.protocol == VERSION => Greeting::Fits(info),
            Ok(Reply::Hello(info)) => Greeting::OtherVersion(format!(
                "it is ringspan-lane {} and speaks version {} of the lane protocol, this daemon version {VERSION}",
                info.version, info.protocol
            )),
            Err(CallError::Refused(failure)) if failure.kind == FailureKind::Version => {
                Greeting::OtherVersion(failure.message)
            }
            Ok(other) => return Err(CallError::Lost(format!("the lane answered Hello with {other:?}"))),
            Err(error) => return Err(error),
        };
        Ok(greeting)
    }

    /// A second handle, to end a wait from another thread.
    pub(super) fn handle(&self) -> std::io::Result<UnixStream> {
        self.stream.get_ref().try_clone()
    }

    /// Asks, and waits for the answer at most `limit`.
    pub(super) fn call(&mut self, request: Request, limit: Duration) -> Result<Reply, CallError> {
        let id = self.next_id;
        self.next_id += 1;
        let lost = |error: std::io::Error| CallError::Lost(format!("the connection to the lane ended: {error}"));
        let mut line = serde_json::to_vec(&Envelope { id, body: request }).map_err(|error| lost(error.into()))?;
        line.push(b'\n');
        self.stream.get_ref().set_read_timeout(Some(limit)).map_err(lost)?;
        self.stream.get_mut().write_all(&line).map_err(lost)?;
        let mut answer = Vec::new();
        let read = self.stream.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut answer);
        match read {
            Ok(_) if answer.ends_with(b"\n") => {}
            Ok(0) => return Err(CallError::Lost("the lane closed the connection".into())),
            Ok(read) => return Err(CallError::Lost(format!("the lane's answer broke off after {read} bytes"))),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                return Err(CallError::Silent(format!("it did not answer within {} s", limit.as_secs())));
            }
            Err(error) => return Err(lost(error)),
        }
        match serde_json::from_slice::<Envelope<Reply>>(&answer) {
            Ok(envelope) if envelope.id != id => {
                Err(CallError::Lost(format!("the lane answered request {} instead of {id}", envelope.id)))
            }
            Ok(Envelope { body: Reply::Failed(failure), .. }) => Err(CallError::Refused(failure)),
            Ok(envelope) => Ok(envelope.body),
            Err(error) => Err(CallError::Lost(format!("the lane's answer is garbled: {error}"))),
        }
    }
}
