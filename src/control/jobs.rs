//! Slow work: started, followed, waited for, cancelled where it can be.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::events::now_ms;
use super::spawn;
use crate::error::{Error, ErrorKind};

/// Most jobs that run at once.
const RUNNING: usize = 16;
/// How many ended jobs are remembered.
const REMEMBERED: usize = 64;

/// How a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum JobState {
    /// Not ended yet.
    Running,
    /// Ended well.
    Done,
    /// Ended with an error.
    Failed,
    /// Ended because somebody asked for that.
    Cancelled,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Job {
    /// Its number; numbers begin at 1 with each start of the daemon.
    pub id: u64,
    /// The method that started it.
    pub method: String,
    /// What it is about, a lane for instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// How it is.
    pub state: JobState,
    /// Milliseconds since the Unix epoch at its start.
    pub started_ms: u64,
    /// The same at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// What came of it, sentence by sentence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outcome: Vec<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

/// What a running job looks at to see whether it should end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// An error once somebody asked for the end.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(Error::new(ErrorKind::Cancelled, "the job was cancelled")),
            false => Ok(()),
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    jobs: BTreeMap<u64, (Job, Cancel)>,
}

/// All jobs of this daemon.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    inner: Mutex<Inner>,
    ended: Condvar,
}

impl Jobs {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Starts one. Refused when one of the same method and item runs, or when too many do.
    pub(crate) fn start(
        self: &Arc<Self>,
        method: &str,
        item: Option<String>,
        work: impl FnOnce(&Cancel) -> Result<Vec<String>, Error> + Send + 'static,
    ) -> Result<Job, Error> {
        let mut inner = self.lock();
        let running = || inner.jobs.values().map(|(job, _)| job).filter(|job| job.state == JobState::Running);
        if let Some(other) = running().find(|job| job.method == method && job.item == item) {
            let message = format!("{method} is running already: wait for job {} (ringspan job wait {0})", other.id);
            return Err(Error::new(ErrorKind::Busy, message).about(other.id));
        }
        if running().count() >= RUNNING {
            let message = format!("{RUNNING} jobs are running: wait for one of them (ringspan job list)");
            return Err(Error::new(ErrorKind::NoRoom, message));
        }
        inner.last += 1;
        let id = inner.last;
        let job = Job {
            id,
            method: method.into(),
            item,
            state: JobState::Running,
            started_ms: now_ms(),
            ended_ms: None,
            outcome: Vec::new(),
            error: None,
        };
        let cancel = Cancel::default();
        inner.jobs.insert(id, (job.clone(), cancel.clone()));
        let ended = inner.jobs.iter().filter(|(_, (job, _))| job.state != JobState::Running).map(|(id, _)| *id);
        let ended: Vec<u64> = ended.collect();
        for old in ended.iter().take(ended.len().saturating_sub(REMEMBERED)) {
            inner.jobs.remove(old);
        }
        drop(inner);
        let jobs = Arc::clone(self);
        let thread = spawn(format!("job-{id}"), move || {
            let result = work(&cancel);
            jobs.end(id, result);
        });
        if thread.is_none() {
            self.end(
                id,
                Err(Error::new(ErrorKind::NoRoom, "there is no thread for it: the system's limit is reached")),
            );
        }
        Ok(job)
    }

    fn end(&self, id: u64, result: Result<Vec<String>, Error>) {
        if let Some((job, _)) = self.lock().jobs.get_mut(&id) {
            job.ended_ms = Some(now_ms());
            match result {
                Ok(outcome) => (job.state, job.outcome) = (JobState::Done, outcome),
                Err(error) if error.kind == ErrorKind::Cancelled => job.state = JobState::Cancelled,
                Err(error) => (job.state, job.error) = (JobState::Failed, Some(error)),
            }
        }
        self.ended.notify_all();
    }

    /// All that are remembered, by number.
    pub(crate) fn list(&self) -> Vec<Job> {
        self.lock().jobs.values().map(|(job, _)| job.clone()).collect()
    }

    /// One of them.
    pub(crate) fn get(&self, id: u64) -> Result<Job, Error> {
        let unknown = || Error::new(ErrorKind::NotFound, format!("there is no job {id}: see job.list")).about(id);
        self.lock().jobs.get(&id).map(|(job, _)| job.clone()).ok_or_else(unknown)
    }

    /// Waits for its end, at most `limit`; the job as it is then.
    pub(crate) fn wait(&self, id: u64, limit: Duration) -> Result<Job, Error> {
        let until = Instant::now() + limit;
        loop {
            let job = self.get(id)?;
            let left = until.saturating_duration_since(Instant::now());
            if job.state != JobState::Running || left.is_zero() {
                return Ok(job);
            }
            let inner = self.lock();
            if inner.jobs.get(&id).is_some_and(|(job, _)| job.state == JobState::Running) {
                drop(self.ended.wait_timeout(inner, left));
            }
        }
    }

    /// Asks it to end; it does at its next step.
    pub(crate) fn cancel(&self, id: u64) -> Result<Job, Error> {
        let job = self.get(id)?;
        if let Some((_, cancel)) = self.lock().jobs.get(&id) {
            cancel.0.store(true, Ordering::Relaxed);
        }
        Ok(job)
    }
}
