//! The other end of the control socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::Failure;

/// Longest wait for an answer: a request may ask the daemon to wait for 10 minutes.
const ANSWER_LIMIT: Duration = Duration::from_secs(630);

/// A connection to the daemon.
pub(super) struct Client {
    stream: BufReader<UnixStream>,
    next_id: u64,
}

impl Client {
    pub(super) fn connect(path: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(path).map_err(|error| {
            let advice = match error.kind() {
                std::io::ErrorKind::PermissionDenied => "be in the group that may open it, or use sudo",
                _ => "is ringspan serve running? name its socket with --control or RINGSPAN_CONTROL",
            };
            Failure::Unreachable(format!("the daemon cannot be reached at {}: {error}: {advice}", path.display()))
        })?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        Ok(Self { stream: BufReader::new(stream), next_id: 1 })
    }

    /// Asks, and returns the result.
    pub(super) fn call(&mut self, method: &str, params: Value) -> Result<Value, Failure> {
        let id = self.next_id;
        self.next_id += 1;
        let line = format!("{}\n", json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }));
        // A daemon that refuses the connection says why before it closes; the answer below has it.
        let sent = self.stream.get_mut().write_all(line.as_bytes());
        let mut answer = match (self.next_message(), sent) {
            (Ok(Some(answer)), _) => answer,
            (Ok(None), _) => return Err(Failure::Unreachable("the daemon closed the connection".into())),
            (Err(error), Ok(())) | (Err(_), Err(error)) => {
                return Err(Failure::Unreachable(format!("the daemon does not answer: {error}")));
            }
        };
        match answer.get("error") {
            Some(error) => Err(Failure::Failed(error["message"].as_str().unwrap_or("failed").to_owned())),
            None => Ok(answer["result"].take()),
        }
    }

    /// The next line; nothing when the daemon closed the connection.
    pub(super) fn next_message(&mut self) -> std::io::Result<Option<Value>> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        Ok(Some(serde_json::from_slice(&line)?))
    }

    /// Events may come at any time.
    pub(super) fn wait_without_limit(&self) -> std::io::Result<()> {
        self.stream.get_ref().set_read_timeout(None)
    }

    /// Returns when the daemon closes the connection.
    pub(super) fn wait_for_end(&mut self) {
        let mut rest = Vec::new();
        let _ = self.stream.read_to_end(&mut rest);
    }
}
