//! QEMU's machine protocol (QMP): to see that the monitor answers, to reset and to quit, and to do what somebody was told to do over it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::daemon::Daemon;

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

/// A connection to a monitor that is kept, so that events are seen which come between two commands. QEMU talks with one at a time: a monitor does
/// nothing else meanwhile.
pub struct Conversation {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    /// What was told while an answer was waited for.
    events: Vec<Value>,
}

impl Monitor {
    /// Begins a conversation, in which nothing may take longer than `limit`.
    pub fn converse(&self, limit: Duration) -> Result<Conversation> {
        let stream = UnixStream::connect(&self.path)
            .with_context(|| format!("cannot connect to QEMU's monitor at {}", self.path.display()))?;
        stream.set_read_timeout(Some(limit))?;
        let mut one = Conversation { reader: BufReader::new(stream.try_clone()?), stream, events: vec![] };
        one.line()?;
        one.execute(&json!({ "execute": "qmp_capabilities" }))?;
        Ok(one)
    }
}

impl Conversation {
    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line).context("QEMU's monitor says nothing")?;
        if read == 0 {
            bail!("QEMU closed its monitor");
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Has a whole command done (`{"execute": ..., "arguments": ...}`). Returns what it returns.
    pub fn execute(&mut self, command: &Value) -> Result<Value> {
        writeln!(&self.stream, "{command}")?;
        loop {
            let said = self.line().with_context(|| format!("after {command}"))?;
            if let Some(error) = said.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            if let Some(value) = said.get("return") {
                return Ok(value.clone());
            }
            self.events.push(said);
        }
    }

    /// Does a step as `port attach` says it (`plug`, `unplug`): a command, an event that is waited for, or a call of this daemon's.
    pub fn follow(&mut self, daemon: &Daemon, step: &Value) -> Result<()> {
        let Some((what, of)) = step.as_object().and_then(|step| step.iter().next()) else { bail!("no step: {step}") };
        match what.as_str() {
            "execute" => self.execute(of).map(drop),
            "wait" => self.wait(of),
            "call" => {
                let method = of["method"].as_str().with_context(|| format!("no method in {step}"))?;
                daemon.call(method, of["params"].clone()).map(drop)
            }
            _ => bail!("{step}"),
        }
    }

    /// Forgets what was told so far.
    pub fn forget(&mut self) {
        self.events.clear();
    }

    /// Whether an event like this was told so far: its name, and of its data what is given.
    pub fn was_told(&self, event: &Value) -> bool {
        self.events.iter().any(|told| is_like(told, event))
    }

    /// Waits until an event like this is told, unless it was already.
    pub fn wait(&mut self, event: &Value) -> Result<()> {
        while !self.was_told(event) {
            let said = self.line().with_context(|| format!("waiting for {event}; told were {:?}", self.events))?;
            self.events.push(said);
        }
        Ok(())
    }
}

/// Whether `told` has all that `wanted` has.
fn is_like(told: &Value, wanted: &Value) -> bool {
    match (told, wanted) {
        (Value::Object(told), Value::Object(wanted)) => {
            wanted.iter().all(|(name, value)| told.get(name).is_some_and(|told| is_like(told, value)))
        }
        _ => told == wanted,
    }
}
