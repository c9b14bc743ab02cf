//! ovs-vswitchd's control socket: what `ovs-appctl` speaks with.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Bounds, Lines, OvsError, Place, Rpc};

/// How the daemon is called in errors.
pub(super) const PEER: &str = "ovs-vswitchd";

/// What a dump may cost.
const DUMP: Bounds = Bounds {
    time: Duration::from_secs(20),
    bytes: 256 << 20,
    remedy: "it has more flows than can be mirrored: lower other_config:flow-limit",
};

/// A connection to ovs-vswitchd.
#[derive(Debug)]
pub(crate) struct Switch {
    rpc: Rpc,
    /// The process behind it.
    pub process: Process,
}

/// A process, told apart from others that have its number later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its number: this host's, or that of its pid file when it has none here.
    pub pid: u32,
    /// When it started, in clock ticks since the boot (proc(5)); nothing when it is no process of this host's that is ovs-vswitchd.
    pub started: Option<u64>,
}

impl Process {
    /// The process `here` of this host, if it is ovs-vswitchd; else one that is only known by its pid file.
    fn new(here: Option<u32>, by_file: u32) -> Self {
        let read = |pid: u32, file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
        // A name is cut off at 15 letters, and builds with DPDK have a longer one.
        let is_switch = |pid: u32| read(pid, "comm").is_some_and(|name| name.starts_with(PEER));
        let started = |pid: u32| read(pid, "stat")?.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok();
        match here.filter(|pid| is_switch(*pid)) {
            Some(pid) => Self { pid, started: started(pid) },
            None => Self { pid: by_file, started: None },
        }
    }

    /// What tells it from all others, for the database.
    pub(crate) fn life(&self) -> String {
        match self.started {
            Some(started) => format!("{} {started}", self.pid),
            None => self.pid.to_string(),
        }
    }
}

impl Switch {
    /// Connects to the switch of this run directory.
    pub(crate) fn connect(place: &Place) -> Result<Self, OvsError> {
        let pid = place.switch_pid()?;
        let rpc = Rpc::connect(PEER, &place.switch(pid))?;
        Ok(Self { process: Process::new(rpc.process(), pid), rpc })
    }

    /// Runs a command, which has strings in and one out.
    pub(crate) fn call(&mut self, command: &str, words: &[&str]) -> Result<String, OvsError> {
        self.call_within(command, words, Bounds::USUAL)
    }

    /// The same, within other bounds.
    pub(crate) fn call_within(&mut self, command: &str, words: &[&str], bounds: Bounds) -> Result<String, OvsError> {
        match self.rpc.call(command, json!(words), bounds)? {
            Value::String(text) => Ok(text),
            Value::Null => Ok(String::new()),
            other => Err(self.rpc.garbage(command, format!("{} instead of text", kind(&other)))),
        }
    }

    /// Its flows on one datapath, as `dpctl/dump-flows -m --names` prints them.
    pub(crate) fn dump_flows(&mut self, datapath: &str, more: &[&str]) -> Result<String, OvsError> {
        self.call_within("dpctl/dump-flows", &[&["-m", "--names", datapath], more].concat(), DUMP)
    }

    /// The same, line by line while it comes.
    pub(crate) fn dump_lines(&mut self, datapath: &str, lines: &mut impl Lines) -> Result<(), OvsError> {
        self.rpc.call_lines("dpctl/dump-flows", json!(["-m", "--names", datapath]), DUMP, lines)
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
