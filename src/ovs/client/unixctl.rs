//! ovs-vswitchd's control socket: what `ovs-appctl` speaks with.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Bounds, OvsError, Place, Rpc};

/// How the daemon is called in errors.
pub(super) const PEER: &str = "ovs-vswitchd";

/// A connection to ovs-vswitchd.
#[derive(Debug)]
pub(crate) struct Switch {
    rpc: Rpc,
    /// The process behind it.
    pub pid: u32,
}

impl Switch {
    /// Connects to the switch of this run directory.
    pub(crate) fn connect(place: &Place) -> Result<Self, OvsError> {
        let pid = place.switch_pid()?;
        Ok(Self { rpc: Rpc::connect(PEER, &place.switch()?)?, pid })
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
        const BOUNDS: Bounds = Bounds {
            time: Duration::from_secs(20),
            bytes: 128 << 20,
            remedy: "it has more flows than can be mirrored: lower other_config:flow-limit",
        };
        self.call_within("dpctl/dump-flows", &[&["-m", "--names", datapath], more].concat(), BOUNDS)
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
