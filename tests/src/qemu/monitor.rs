//! QEMU's machine protocol (QMP): to see that the monitor answers, to reset and to quit.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Where a QEMU's monitor listens.
pub struct Monitor {
    path: PathBuf,
}

impl Monitor {
    /// The monitor behind this socket; connected to only while a command runs.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf() }
    }

    /// Runs one command on a connection of its own and returns what it returns, all within `limit`.
    pub fn execute(&self, command: &str, limit: Duration) -> Result<Value> {
        self.execute_with(command, &json!({}), limit)
    }

    /// As [`Monitor::execute`], with arguments.
    pub fn execute_with(&self, command: &str, arguments: &Value, limit: Duration) -> Result<Value> {
        let start = Instant::now();
        let stream = UnixStream::connect(&self.path)
            .with_context(|| format!("cannot connect to QEMU's monitor at {}", self.path.display()))?;
        stream.set_read_timeout(Some(limit))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut next = |wanted: &str| -> Result<Value> {
            loop {
                let mut line = String::new();
                let read = reader.read_line(&mut line);
                let read = read.with_context(|| format!("QEMU's monitor did not answer {command} within {limit:?}"))?;
                if read == 0 || start.elapsed() > limit {
                    bail!("QEMU's monitor did not answer {command} within {limit:?}");
                }
                let answer: Value = serde_json::from_str(&line)?;
                if let Some(error) = answer.get("error") {
                    bail!("QEMU refused {command}: {error}");
                }
                if let Some(value) = answer.get(wanted) {
                    return Ok(value.clone());
                }
            }
        };
        next("QMP")?;
        writeln!(&stream, "{}", json!({"execute": "qmp_capabilities"}))?;
        next("return")?;
        writeln!(&stream, "{}", json!({ "execute": command, "arguments": arguments }))?;
        next("return")
    }
}
