//! Attachments that are kept: what was left half-done is finished or taken back, and drifts are told.

use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::{Duration, Instant};

use super::attach::{tell, with_world};
use crate::attach::record::{Key, Record, Stage};
use crate::attach::sync;
use crate::control::events::Next;
use crate::control::{Daemon, EventKind};

/// Pauses before what was left half-done is tried again, and how often it is looked whether there is any.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 5000 });

/// False: the daemon ends, which it tells as an event.
fn wait_unless_ended(daemon: &Daemon, pause: Duration) -> bool {
    let until = Instant::now() + pause;
    loop {
        let last = daemon.events.last();
        let left = until.saturating_duration_since(Instant::now());
        if daemon.is_ending() || left.is_zero() {
            return !daemon.is_ending();
        }
        if daemon.events.next(last, 1, left) == Next::Closed {
            return false;
        }
    }
}

/// Finishes or takes back what an earlier daemon, or a request that failed, left half-done, and tries again until it is. Tells of what drifts.
pub(crate) fn keep(daemon: &Weak<Daemon>) {
    let mut pause = SHORTEST_PAUSE;
    let mut drifts = Drifts::default();
    loop {
        let Some(daemon) = daemon.upgrade().filter(|daemon| !daemon.is_ending()) else { return };
        let left = daemon.attachments.unfinished();
        for key in &left {
            let device = daemon.attachments.get(key).map(|record| record.target.to_string()).unwrap_or_default();
            match with_world(&daemon, |world| daemon.attachments.recover(world, key)) {
                Ok(()) => {
                    tracing::info!("{key}: what was left half-done is put right");
                    if daemon.attachments.get(key).is_none() {
                        tell(&daemon, key, |guest, nic| EventKind::Detached { guest, nic, device });
                    }
                }
                Err(error) => tracing::warn!("{key}: what was left half-done stays: {error}"),
            }
        }
        drifts.look(&daemon);
        let again = daemon.attachments.unfinished().iter().any(|key| left.contains(key));
        if !wait_unless_ended(&daemon, if again { pause } else { LOOK }) {
            return;
        }
        pause = if again { (pause * 2).min(LONGEST_PAUSE) } else { SHORTEST_PAUSE };
    }
}

/// Some of the attachments are looked at in each round, so that all have been within a minute.
const ROUNDS: usize = 12;

/// What is known to have drifted.
#[derive(Default)]
struct Drifts {
    /// What differed when it was last looked at, and whether that was told.
    known: BTreeMap<Key, (Vec<String>, bool)>,
    /// Whose turn was last.
    last: Option<Key>,
}

impl Drifts {
    /// Looks at the next ones, and tells of each that drifts otherwise than it was known to. What is seen for the first time is looked at again in the next
    /// round: lanes and ports that are just being made differ for a moment.
    fn look(&mut self, daemon: &Daemon) {
        let all = daemon.attachments.all();
        self.known.retain(|key, _| all.iter().any(|record| record.key() == *key));
        let at = self.last.as_ref().map_or(0, |last| all.partition_point(|record| record.key() <= *last));
        let turn: Vec<Key> =
            all[at..].iter().chain(&all[..at]).take(all.len().div_ceil(ROUNDS)).map(Record::key).collect();
        self.last = turn.last().cloned().or_else(|| self.last.take());
        let suspected = |key: &Key| self.known.get(key).is_some_and(|(what, told)| !what.is_empty() && !told);
        let looked_at = |record: &&Record| turn.contains(&record.key()) || suspected(&record.key());
        let looked_at: Vec<&Record> =
            all.iter().filter(|record| record.stage == Stage::Attached).filter(looked_at).collect();
        for record in looked_at {
            let key = record.key();
            let what = with_world(daemon, |world| sync::drift(world, record));
            // What changed meanwhile was looked at half-way.
            if daemon.attachments.get(&key).as_ref() != Some(record) {
                continue;
            }
            let (before, mut told) = self.known.remove(&key).unwrap_or_default();
            if before != what {
                told = false;
            } else if !what.is_empty() && !told {
                tracing::warn!("{key} is not as it was left: {}", what.join("; "));
                let (device, what) = (record.target.to_string(), what.clone());
                tell(daemon, &key, |guest, nic| EventKind::Drifted { guest, nic, device, what });
                told = true;
            }
            self.known.insert(key, (what, told));
        }
    }
}
