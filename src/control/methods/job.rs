//! Methods about jobs.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::daemon::LONGEST_WAIT_MS;
use super::{Call, Nothing};
use crate::control::Job;
use crate::error::Error;

/// Which job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobId {
    /// Its number.
    pub id: u64,
}

/// Which job, and how long to wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobWait {
    /// Its number.
    pub id: u64,
    /// Longest wait in milliseconds, at most 600,000.
    #[serde(default = "longest")]
    pub timeout_ms: u64,
}

fn longest() -> u64 {
    LONGEST_WAIT_MS
}

pub(super) fn list(call: &mut Call, _: Nothing) -> Result<Vec<Job>, Error> {
    Ok(call.daemon.jobs.list())
}

pub(super) fn get(call: &mut Call, params: JobId) -> Result<Job, Error> {
    call.daemon.jobs.get(params.id)
}

pub(super) fn wait(call: &mut Call, params: JobWait) -> Result<Job, Error> {
    call.daemon.jobs.wait(params.id, Duration::from_millis(params.timeout_ms.min(LONGEST_WAIT_MS)))
}

pub(super) fn cancel(call: &mut Call, params: JobId) -> Result<Job, Error> {
    call.daemon.jobs.cancel(params.id)
}

/// The job, at once or when it has ended.
pub(super) fn waited(call: &mut Call, job: Job, wait: bool) -> Result<Job, Error> {
    if wait { call.daemon.jobs.wait(job.id, Duration::from_millis(LONGEST_WAIT_MS)) } else { Ok(job) }
}
