//! A connection: requests in order, each with bounds of time and size; what the peer asks or tells meanwhile is looked after.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde::Deserialize;
use serde_json::{Value, json};

use super::OvsError;
use super::frame::Frames;
use super::stream::{At, Lines, Stream};

/// How much is read at once.
const CHUNK: usize = 256 << 10;
/// Longest line that is put together.
const LONGEST_LINE: usize = 1 << 20;
/// Most notifications that wait to be looked at, and bytes of them.
const NOTES: usize = 4096;
const NOTE_BYTES: usize = 16 << 20;
/// Longest wait for a connection: a busy daemon lets a few wait.
const CONNECT: Duration = Duration::from_secs(5);

/// What an answer may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Longest wait, from the request to the last byte of its answer.
    pub time: Duration,
    /// Most bytes of it.
    pub bytes: usize,
    /// What to do when there are more.
    pub remedy: &'static str,
}

impl Bounds {
    /// For whatever is not long: OVS answers such things at once, unless it is just taking a new configuration.
    pub(crate) const USUAL: Self =
        Self { time: Duration::from_secs(10), bytes: 32 << 20, remedy: "no answer of OVS's is that long: see its log" };
}

/// Something that the peer told unasked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Note {
    /// What kind.
    pub method: String,
    /// What it has to say.
    pub params: Value,
}

/// A connection to one of OVS's daemons.
#[derive(Debug)]
pub(crate) struct Rpc {
    peer: &'static str,
    stream: UnixStream,
    frames: Frames,
    chunk: Box<[u8]>,
    next_id: u64,
    /// Each with the bytes that it came in.
    notes: VecDeque<(Note, usize)>,
}

/// Request, notification or answer: JSON-RPC 1.0 tells them apart by what is there.
#[derive(Debug, Deserialize)]
struct Message {
    #[serde(default)]
    id: Value,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    params: Value,
    #[serde(default)]
    result: Value,
    #[serde(default)]
    error: Value,
    /// Its bytes.
    #[serde(skip)]
    len: usize,
}

impl Rpc {
    /// Connects to the daemon that listens at `path`.
    pub(crate) fn connect(peer: &'static str, path: &Path) -> Result<Self, OvsError> {
        Self::connect_within(peer, path, CONNECT)
    }

    /// The same, without waiting longer than `limit`.
    pub(crate) fn connect_within(peer: &'static str, path: &Path, limit: Duration) -> Result<Self, OvsError> {
        let unreachable = |reason: String, errno| OvsError::Unreachable { peer, path: path.to_owned(), reason, errno };
        let socket = connected(path, limit).map_err(|errno| unreachable(errno.desc().into(), Some(errno as i32)))?;
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false).map_err(|error| unreachable(error.to_string(), error.raw_os_error()))?;
        let chunk = vec![0; CHUNK].into_boxed_slice();
        Ok(Self { peer, stream, frames: Frames::default(), chunk, next_id: 1, notes: VecDeque::new() })
    }

    /// The process that listens, in this host's numbers; nothing when it is in a place where it has none (unix(7), SO_PEERCRED).
    pub(crate) fn process(&self) -> Option<u32> {
        let peer = nix::sys::socket::getsockopt(&self.stream, nix::sys::socket::sockopt::PeerCredentials).ok()?;
        u32::try_from(peer.pid()).ok().filter(|pid| *pid != 0)
    }

    /// Asks, and returns the result.
    pub(crate) fn call(&mut self, method: &str, params: Value, bounds: Bounds) -> Result<Value, OvsError> {
        let until = Instant::now() + bounds.time;
        let id = self.next_id;
        self.next_id += 1;
        self.send(&json!({ "id": id, "method": method, "params": params }), method, bounds.time)?;
        loop {
            let message = self.message(method, bounds, until)?.ok_or_else(|| self.silent(method, bounds.time))?;
            if message.method.is_some() {
                self.unasked(message)?;
                continue;
            }
            return self.result(message, id, method);
        }
    }

    /// Asks for what is one long text, and gives it line by line. What was given is of no worth when this fails.
    pub(crate) fn call_lines(
        &mut self,
        method: &str,
        params: Value,
        bounds: Bounds,
        lines: &mut impl Lines,
    ) -> Result<(), OvsError> {
        // What is left of earlier answers would be taken for a part of this one: there is nothing left, unless the peer tells unasked.
        if self.frames.pending() > 0 {
            return Err(self.garbage(method, "the end of another answer".into()));
        }
        let until = Instant::now() + bounds.time;
        let id = self.next_id;
        self.next_id += 1;
        self.send(&json!({ "id": id, "method": method, "params": params }), method, bounds.time)?;
        let (mut stream, mut bytes) = (Stream::default(), 0);
        let around = loop {
            let Some(count) = self.read(method, until)? else { return Err(self.silent(method, bounds.time)) };
            bytes += count;
            if bytes > bounds.bytes || stream.held() > LONGEST_LINE {
                let Bounds { bytes: limit, remedy, .. } = bounds;
                return Err(OvsError::TooLong { peer: self.peer, method: method.into(), limit, remedy });
            }
            match stream.push(&self.chunk[..count], lines) {
                At::Inside => lines.pause(),
                At::End(around, used) if self.chunk[used..count].trim_ascii().is_empty() => break around,
                At::End(..) => return Err(self.garbage(method, "more behind the answer".into())),
                At::Other(so_far) => {
                    self.frames.push(&so_far);
                    let message =
                        self.message(method, bounds, until)?.ok_or_else(|| self.silent(method, bounds.time))?;
                    return self.result(message, id, method).and_then(|result| match result {
                        Value::Null => Ok(()),
                        _ => Err(self.garbage(method, "no text".into())),
                    });
                }
            }
        };
        let message = serde_json::from_slice(&around).map_err(|error| self.garbage(method, error.to_string()))?;
        self.result(message, id, method).map(drop)
    }

    fn result(&self, message: Message, id: u64, method: &str) -> Result<Value, OvsError> {
        if message.method.is_some() || message.id.as_u64() != Some(id) {
            return Err(self.garbage(method, format!("it has the id {} instead of {id}", message.id)));
        }
        match message.error {
            Value::Null => Ok(message.result),
            error => Err(OvsError::Refused { peer: self.peer, method: method.into(), reason: words(&error) }),
        }
    }

    /// Whether something that the peer told unasked is there already.
    pub(crate) fn has_notes(&self) -> bool {
        !self.notes.is_empty()
    }

    /// The next thing that the peer tells unasked; nothing when it told nothing within `wait`.
    pub(crate) fn note(&mut self, wait: Duration) -> Result<Option<Note>, OvsError> {
        const WAITING: &str = "waiting for changes";
        let until = Instant::now() + wait;
        loop {
            if let Some((note, _)) = self.notes.pop_front() {
                return Ok(Some(note));
            }
            match self.message(WAITING, Bounds { time: wait, ..Bounds::USUAL }, until)? {
                Some(message) if message.method.is_some() => self.unasked(message)?,
                Some(message) => {
                    return Err(self.garbage(WAITING, format!("an answer to {}, which was not asked", message.id)));
                }
                None => return Ok(None),
            }
        }
    }

    /// An echo is answered, as the database server ends connections that do not; what is told is kept.
    fn unasked(&mut self, message: Message) -> Result<(), OvsError> {
        let method = message.method.unwrap_or_default();
        match (method.as_str(), message.id) {
            (_, Value::Null) => {
                self.notes.push_back((Note { method, params: message.params }, message.len));
                if self.notes.len() <= NOTES && self.notes.iter().map(|(_, len)| len).sum::<usize>() <= NOTE_BYTES {
                    return Ok(());
                }
                let (notes, most) = (self.notes.len(), NOTE_BYTES >> 20);
                Err(self
                    .garbage("notifications", format!("{notes} of them during one request, or more than {most} MiB")))
            }
            ("echo", id) => {
                let answer = json!({ "id": id, "result": message.params, "error": null });
                self.send(&answer, "echo", Bounds::USUAL.time)
            }
            (_, id) => {
                let answer = json!({ "id": id, "result": null, "error": "unknown method" });
                self.send(&answer, &method, Bounds::USUAL.time)
            }
        }
    }

    fn send(&mut self, message: &Value, method: &str, limit: Duration) -> Result<(), OvsError> {
        let sent = self.stream.set_write_timeout(Some(limit.max(Duration::from_millis(1))));
        match sent.and_then(|()| self.stream.write_all(message.to_string().as_bytes())) {
            Ok(()) => Ok(()),
            Err(error) if is_timeout(&error) => Err(self.silent(method, limit)),
            Err(error) => Err(self.closed(method, error.to_string())),
        }
    }

    /// The next message; nothing when none came in time.
    fn message(&mut self, method: &str, bounds: Bounds, until: Instant) -> Result<Option<Message>, OvsError> {
        let peer = self.peer;
        let garbage = |what: String| OvsError::Garbage { peer, method: method.into(), what };
        loop {
            match self.frames.next() {
                Ok(Some(frame)) => {
                    let message = serde_json::from_slice(frame);
                    let of_len = |message: Message| Some(Message { len: frame.len(), ..message });
                    return message.map(of_len).map_err(|error| garbage(error.to_string()));
                }
                Ok(None) => {}
                Err(what) => return Err(garbage(what.to_string())),
            }
            if self.frames.pending() > bounds.bytes {
                let Bounds { bytes: limit, remedy, .. } = bounds;
                return Err(OvsError::TooLong { peer, method: method.into(), limit, remedy });
            }
            match self.read(method, until)? {
                Some(count) => self.frames.push(&self.chunk[..count]),
                None => return Ok(None),
            }
        }
    }

    /// Reads what is there, and waits for it; nothing when none came in time.
    fn read(&mut self, method: &str, until: Instant) -> Result<Option<usize>, OvsError> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let read = self.stream.set_read_timeout(Some(left)).and_then(|()| self.stream.read(&mut self.chunk));
            match read {
                Ok(0) => return Err(self.closed(method, "end of file".into())),
                Ok(count) => return Ok(Some(count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => return Ok(None),
                Err(error) => return Err(self.closed(method, error.to_string())),
            }
        }
    }

    fn silent(&self, method: &str, limit: Duration) -> OvsError {
        OvsError::Silent { peer: self.peer, method: method.into(), limit }
    }

    fn closed(&self, method: &str, reason: String) -> OvsError {
        OvsError::Closed { peer: self.peer, method: method.into(), bytes: self.frames.pending(), reason }
    }

    /// An answer that is not what the method gives.
    pub(super) fn garbage(&self, method: &str, what: String) -> OvsError {
        OvsError::Garbage { peer: self.peer, method: method.into(), what }
    }
}

impl AsFd for Rpc {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Connects without waiting longer than `limit`: a listener whose queue is full would hold a blocking connect for ever.
pub(super) fn connected(path: &Path, limit: Duration) -> nix::Result<OwnedFd> {
    let address = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let until = Instant::now() + limit;
    loop {
        match connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &address) {
            Ok(()) => return Ok(socket),
            // unix(7): no room in the listener's queue. There is nothing that could be waited for.
            Err(Errno::EAGAIN | Errno::EINTR) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            Err(errno) => return Err(errno),
        }
    }
}

/// Waits until there is something to read, or the other end is gone.
pub(super) fn readable(fd: BorrowedFd<'_>, limit: Duration) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    // Whatever it says, the read that follows tells.
    let _ = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout);
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// An error as a sentence: unixctl has a string, the database an object with `error` and `details`.
pub(super) fn words(error: &Value) -> String {
    let text = match (error.as_str(), error["error"].as_str(), error["details"].as_str()) {
        (Some(text), ..) => text.to_owned(),
        (_, Some(kind), Some(details)) => format!("{details} ({kind})"),
        (_, Some(kind), None) => kind.to_owned(),
        _ => error.to_string(),
    };
    text.trim().chars().take(500).collect()
}
