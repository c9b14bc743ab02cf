//! One control connection: a line in, a line out, every wait and every size bounded.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::engine::Lanes;
use super::events::{Event, Missed, Next};
use super::methods::flow::Watch;
use super::methods::{self, Call};
use super::peer::Peer;
use super::{Daemon, Ending, locked, spawn};
use crate::error::{Error, ErrorKind};

/// Longest request, in bytes with its newline.
pub(crate) const MAX_REQUEST: usize = 1 << 20;
/// How long a request may take from its first byte to its newline.
pub(crate) const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// How long a peer may take to read what it is sent.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// How long what follows a refused request is read and thrown away, so that the peer sees the refusal.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// What a connection may hold of an unfinished request before it counts against [`SHARED_BYTES`].
const OWN_BYTES: usize = 16 << 10;
/// What all connections together may hold beyond that.
const SHARED_BYTES: usize = 8 << 20;
/// How often one who watches flows is looked for.
const WATCH_STEP: Duration = Duration::from_millis(100);
/// Events that are written at once.
const EVENTS_AT_ONCE: usize = 64;

static SHARED_USED: AtomicUsize = AtomicUsize::new(0);

/// A connection.
pub(crate) struct Connection {
    stream: Arc<UnixStream>,
    /// Held for each line, so that answers and events do not mix.
    writing: Arc<Mutex<()>>,
    peer: Peer,
    own_uid: u32,
    buffer: Vec<u8>,
    scanned: usize,
    shared: usize,
    follows: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        SHARED_USED.fetch_sub(self.shared, Ordering::Relaxed);
        // Ends the thread that writes events, too.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// What follows an answer.
#[derive(Default)]
struct Then {
    /// The connection follows the events after this one.
    follow: Option<u64>,
    /// The connection is sent these flows.
    watch: Option<Watch>,
    /// The daemon ends.
    ending: Option<Ending>,
}

/// Why no further request is read.
enum Over {
    /// The peer is gone.
    Gone,
    /// The peer did something that ends the connection, and is told so.
    Refused(Error),
}

impl Connection {
    pub(crate) fn new(stream: Arc<UnixStream>, peer: Peer, own_uid: u32) -> Self {
        let (writing, buffer) = (Arc::default(), Vec::new());
        Self { stream, writing, peer, own_uid, buffer, scanned: 0, shared: 0, follows: false }
    }

    /// Answers requests in order until the peer is gone.
    pub(crate) fn serve(mut self, daemon: &Arc<Daemon>) {
        if self.stream.set_write_timeout(Some(WRITE_LIMIT)).is_err() {
            return;
        }
        loop {
            let line = match self.next_line() {
                Ok(line) => line,
                Err(Over::Gone) => return,
                Err(Over::Refused(error)) => {
                    tracing::warn!(uid = self.peer.uid, pid = self.peer.pid, "connection ended: {error}");
                    let _ = send(&self.stream, &self.writing, &error_line(Value::Null, &error));
                    return self.drain();
                }
            };
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let (answer, then) = self.answer(daemon, &line);
            let sent = answer.is_none_or(|answer| send(&self.stream, &self.writing, &answer).is_ok());
            if let Some(ending) = then.ending {
                (daemon.end)(ending);
            }
            if !sent {
                return;
            }
            if let Some(after) = then.follow {
                self.follow(daemon, after);
            }
            if let Some(watch) = then.watch {
                self.watch(daemon, watch);
            }
        }
    }

    /// The next line without its newline.
    fn next_line(&mut self) -> Result<Vec<u8>, Over> {
        let mut begun = (!self.buffer.is_empty()).then(Instant::now);
        loop {
            if let Some(at) = self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(self.scanned + at + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                self.scanned = 0;
                self.account();
                return Ok(line);
            }
            self.scanned = self.buffer.len();
            if self.buffer.len() >= MAX_REQUEST {
                let message = format!("the request is longer than {MAX_REQUEST} bytes: the connection is closed");
                return Err(Over::Refused(Error::new(ErrorKind::TooLong, message)));
            }
            if !self.account() {
                let message = "too many long requests are under way: try again later".to_owned();
                return Err(Over::Refused(Error::new(ErrorKind::NoRoom, message)));
            }
            let late = || {
                let seconds = REQUEST_LIMIT.as_secs();
                let message = format!("the request did not end within {seconds} s: end it with a newline");
                Over::Refused(Error::new(ErrorKind::TooLong, message))
            };
            let limit = match begun {
                Some(begun) => {
                    let left = REQUEST_LIMIT.saturating_sub(begun.elapsed());
                    if left.is_zero() {
                        return Err(late());
                    }
                    Some(left)
                }
                None => None,
            };
            self.stream.set_read_timeout(limit).map_err(|_| Over::Gone)?;
            let mut bytes = [0; 8192];
            match (&*self.stream).read(&mut bytes) {
                Ok(0) => return Err(Over::Gone),
                Ok(count) => {
                    self.buffer.extend_from_slice(&bytes[..count]);
                    begun.get_or_insert_with(Instant::now);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Err(late());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Over::Gone),
            }
        }
    }

    /// Counts what is held beyond the connection's own share; false when there is no more.
    fn account(&mut self) -> bool {
        let now = self.buffer.len().saturating_sub(OWN_BYTES);
        let before = std::mem::replace(&mut self.shared, now);
        let used = SHARED_USED.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
        if now < before {
            self.buffer.shrink_to(OWN_BYTES);
        }
        now <= before || used.wrapping_add(now - before) <= SHARED_BYTES
    }

    /// Throws away what the peer still sends, so that closing does not hide the answer from it.
    fn drain(&mut self) {
        let until = Instant::now() + DRAIN_LIMIT;
        let _ = self.stream.shutdown(Shutdown::Write);
        let mut bytes = vec![0; 64 << 10];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stream.set_read_timeout(Some(left)).is_err() {
                return;
            }
            if !matches!((&*self.stream).read(&mut bytes), Ok(1..)) {
                return;
            }
        }
    }

    /// The answer to one line, if it wants one, and what is to be done when it is sent.
    fn answer(&self, daemon: &Arc<Daemon>, line: &[u8]) -> (Option<Vec<u8>>, Then) {
        let request = match Request::parse(line) {
            Ok(request) => request,
            Err((id, error)) => return (Some(error_line(id, &error)), Then::default()),
        };
        let role = {
            let config = locked(&daemon.config);
            self.peer.role(&config.control, self.own_uid)
        };
        let mut call =
            Call { daemon, peer: &self.peer, role, follows: self.follows, follow: None, watch: None, ending: None };
        let result = methods::dispatch(&mut call, &request.method, request.params);
        let then = Then { follow: call.follow, watch: call.watch, ending: call.ending };
        tracing::debug!(uid = self.peer.uid, method = request.method, ok = result.is_ok());
        let line = match (request.id, result) {
            (None, _) => None,
            (Some(id), Ok(result)) => Some(line_of(&json!({ "jsonrpc": "2.0", "id": id, "result": result }))),
            (Some(id), Err(error)) => Some(error_line(id, &error)),
        };
        (line, then)
    }

    /// Sends flows from here on, in a thread of its own, until the connection ends.
    fn watch(&mut self, daemon: &Arc<Daemon>, wish: Watch) {
        self.follows = true;
        let (daemon, stream, writing) = (Arc::clone(daemon), Arc::clone(&self.stream), Arc::clone(&self.writing));
        spawn("control-flows".into(), move || {
            if watch(&daemon, &stream, &writing, &wish).is_err() {
                // Gone, or too slow.
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
    }

    /// Sends events from here on, in a thread of its own, until the connection ends.
    fn follow(&mut self, daemon: &Arc<Daemon>, after: u64) {
        self.follows = true;
        let (daemon, stream, writing) = (Arc::clone(daemon), Arc::clone(&self.stream), Arc::clone(&self.writing));
        spawn("control-events".into(), move || {
            if follow(&daemon, &stream, &writing, after).is_err() {
                // Gone, or too slow: it can come back and name the last number it has.
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
    }
}

/// Sends flows until the connection ends, or the daemon.
fn watch(daemon: &Arc<Daemon>, stream: &UnixStream, writing: &Mutex<()>, watch: &Watch) -> io::Result<()> {
    let engine = Lanes::new(daemon);
    let mut next = Instant::now();
    loop {
        let params = json!({
            "time_ms": super::events::now_ms(),
            "stats": daemon.mirror.stats(&engine),
            "list": daemon.mirror.list(&watch.filter, &engine),
        });
        send(stream, writing, &line_of(&json!({ "jsonrpc": "2.0", "method": "flows", "params": params })))?;
        next = (next + Duration::from_millis(watch.interval_ms)).max(Instant::now());
        while Instant::now() < next {
            if peer_is_gone(stream) || daemon.events.is_closed() {
                return Ok(());
            }
            std::thread::sleep(next.saturating_duration_since(Instant::now()).min(WATCH_STEP));
        }
    }
}

fn follow(daemon: &Daemon, stream: &UnixStream, writing: &Mutex<()>, mut after: u64) -> io::Result<()> {
    loop {
        match daemon.events.next(after, EVENTS_AT_ONCE, Duration::from_secs(1)) {
            Next::Events(events) => {
                let mut lines = Vec::new();
                for event in &events {
                    lines.extend(event_line(event));
                    after = event.sequence;
                }
                send(stream, writing, &lines)?;
            }
            Next::Missed(missed) => {
                send(stream, writing, &missed_line(missed))?;
                after = missed.to;
            }
            Next::Nothing if peer_is_gone(stream) => return Ok(()),
            Next::Nothing => {}
            Next::Closed => return Ok(()),
        }
    }
}

/// Whether the connection was ended, by the peer or by us.
fn peer_is_gone(stream: &UnixStream) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
}

fn event_line(event: &Event) -> Vec<u8> {
    line_of(&json!({ "jsonrpc": "2.0", "method": "event", "params": event }))
}

fn missed_line(missed: Missed) -> Vec<u8> {
    line_of(&json!({ "jsonrpc": "2.0", "method": "missed", "params": missed }))
}

fn send(mut stream: &UnixStream, writing: &Mutex<()>, bytes: &[u8]) -> io::Result<()> {
    let _writing = locked(writing);
    stream.write_all(bytes)
}

fn line_of(value: &Value) -> Vec<u8> {
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// An error as JSON-RPC has it.
pub(super) fn error_line(id: Value, error: &Error) -> Vec<u8> {
    let mut data = json!({ "kind": error.kind });
    if let Some(errno) = error.errno {
        data["errno"] = errno.into();
    }
    if let Some(item) = &error.item {
        data["item"] = item.clone().into();
    }
    let error = json!({ "code": error.kind.code(), "message": error.message, "data": data });
    line_of(&json!({ "jsonrpc": "2.0", "id": id, "error": error }))
}

/// A request as JSON-RPC has it.
struct Request {
    /// Absent in a notification, which gets no answer.
    id: Option<Value>,
    method: String,
    params: Value,
}

impl Request {
    fn parse(line: &[u8]) -> Result<Self, (Value, Error)> {
        let bad = |kind, message: String| Error::new(kind, message);
        let value: Value = serde_json::from_slice(line).map_err(|error| {
            (Value::Null, bad(ErrorKind::Malformed, format!("the line is not JSON ({error}): send one object a line")))
        })?;
        let mut object = match value {
            Value::Object(object) => object,
            Value::Array(_) => {
                let message = "batches are not supported: send one request a line; they are answered in order";
                return Err((Value::Null, bad(ErrorKind::InvalidRequest, message.into())));
            }
            other => {
                let message = format!("a request is an object, not {other}");
                return Err((Value::Null, bad(ErrorKind::InvalidRequest, message.chars().take(200).collect())));
            }
        };
        let id = object.remove("id");
        let answer_to = match &id {
            Some(Value::String(_) | Value::Number(_) | Value::Null) | None => id.clone().unwrap_or(Value::Null),
            Some(_) => {
                let message = "id must be a number, a text or null";
                return Err((Value::Null, bad(ErrorKind::InvalidRequest, message.into())));
            }
        };
        let refuse = |message: &str| Err((answer_to.clone(), bad(ErrorKind::InvalidRequest, message.into())));
        if object.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
            return refuse("\"jsonrpc\": \"2.0\" is missing");
        }
        let Some(Value::String(method)) = object.remove("method") else {
            return refuse("\"method\" is missing, or no text");
        };
        let params = object.remove("params").unwrap_or_else(|| json!({}));
        if !params.is_object() {
            let message = format!("{method}: params must be an object: name each parameter");
            return Err((answer_to, bad(ErrorKind::Usage, message)));
        }
        Ok(Self { id, method, params })
    }
}
