//! Methods about the daemon itself: version, schema, configuration, events, its end.

use serde_json::Value;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Call, Nothing};
use crate::control::{Ending, Job, schema};
use crate::error::{Error, ErrorKind};

/// Longest wait for a job that a request may ask for, in milliseconds.
pub(super) const LONGEST_WAIT_MS: u64 = 600_000;

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Version {
    /// Version of ringspan.
    pub version: String,
    /// Version of the control API; grows only when something that was there changes.
    pub api: u32,
    /// Version of the lane protocol.
    pub lane_protocol: u32,
    /// The daemon's process id.
    pub pid: u32,
}

pub(super) fn version(_: &mut Call, _: Nothing) -> Result<Version, Error> {
    Ok(Version {
        version: env!("CARGO_PKG_VERSION").into(),
        api: 1,
        lane_protocol: ringspan_protocol::VERSION,
        pid: std::process::id(),
    })
}

pub(super) fn schema(_: &mut Call, _: Nothing) -> Result<Value, Error> {
    Ok(schema::document())
}

/// Whether to wait for a job's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reload {
    /// Answer when the job has ended, instead of at once.
    #[serde(default)]
    pub wait: bool,
}

pub(super) fn reload(call: &mut Call, params: Reload) -> Result<Job, Error> {
    let job = call.daemon.start_reload()?;
    super::job::waited(call, job, params.wait)
}

/// From where to follow the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Subscribe {
    /// Number of the last event that was received: what came after it is sent first. Absent: only what happens from now on.
    /// 0: all that are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}

/// Where the events stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Subscribed {
    /// Number of the last event so far.
    pub last: u64,
}

pub(super) fn subscribe(call: &mut Call, params: Subscribe) -> Result<Subscribed, Error> {
    if call.follows {
        let message = "this connection follows the events already: open another for a second subscription";
        return Err(Error::new(ErrorKind::Exists, message));
    }
    let last = call.daemon.events.last();
    let after = params.after.unwrap_or(last);
    call.daemon.events.check_after(after)?;
    call.follow = Some(after);
    Ok(Subscribed { last })
}

/// How the daemon should end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stop {
    /// Shut the lanes down too. Without it guests go on, and the next daemon finds them.
    #[serde(default)]
    pub lanes: bool,
}

pub(super) fn stop(call: &mut Call, params: Stop) -> Result<Nothing, Error> {
    call.ending = Some(if params.lanes { Ending::StopLanes } else { Ending::LeaveLanes });
    Ok(Nothing {})
}
