//! Numbered events: the catalogue, the last few thousand in memory, and numbers that never repeat over restarts.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use ringspan_protocol::{LaneEvent, LaneEventKind, LaneName, NicName, PortName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};
use crate::state::{EventMarks, StateDir};

/// How many events are kept for readers that come back.
pub(crate) const KEPT: usize = 4096;
/// Numbers are taken from the state folder in blocks of this size, so that few events cost a write.
const BLOCK: u64 = 1024;
/// The lanes' own numbers are written at most this often.
const MARK_EVERY: Duration = Duration::from_secs(1);

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Event {
    /// The daemon's number: it grows, and no number is used twice, also over restarts. A restart may leave a hole.
    pub sequence: u64,
    /// Milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The lane it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<LaneName>,
    /// The port it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortName>,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened: to a port, as its lane saw it, or to what the daemon looks after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum What {
    /// Seen by the daemon.
    Daemon(EventKind),
    /// Seen by a lane.
    Lane(LaneEventKind),
}

/// What the daemon itself tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum EventKind {
    /// The daemon serves.
    DaemonStarted {
        /// Its version.
        version: String,
    },
    /// The daemon ends; lanes go on unless they were asked to stop too.
    DaemonStopping,
    /// A lane was started.
    LaneStarted {
        /// Its process id.
        pid: i32,
        /// Version of its program.
        version: String,
    },
    /// A lane that was running before this daemon was found, and goes on.
    LaneAdopted {
        /// Its process id.
        pid: i32,
        /// Version of its program.
        version: String,
    },
    /// A lane was found that speaks another version: its packets flow; `lane.restart` replaces it.
    LaneOtherVersion {
        /// Its process id.
        pid: i32,
        /// Which version.
        reason: String,
    },
    /// A lane runs with other cores or memory than the file says; `lane.restart` puts it right.
    LaneDiffers {
        /// What differs.
        message: String,
    },
    /// A lane ended without having been asked to. It is started again.
    LaneDied {
        /// The process id it had.
        pid: i32,
        /// How it ended, and its last words.
        reason: String,
    },
    /// A lane could not be started. It is tried again.
    LaneStartFailed {
        /// Why.
        reason: String,
    },
    /// A lane was shut down, as was asked.
    LaneStopped,
    /// A lane had more events than it keeps before they were read.
    LaneEventsMissed {
        /// How many.
        count: u64,
    },
    /// A port was added.
    PortAdded,
    /// A port was changed.
    PortChanged,
    /// A port was removed.
    PortRemoved,
    /// The port's lane refuses it. It is tried again.
    PortRefused {
        /// Kind of the refusal.
        kind: ErrorKind,
        /// The lane's reason.
        message: String,
    },
    /// The port's lane took it at last.
    PortApplied,
    /// The link of a NIC's uplink is up again.
    NicUplinkUp {
        /// The NIC.
        nic: NicName,
        /// The uplink.
        device: String,
    },
    /// The link of a NIC's uplink is down.
    NicUplinkDown {
        /// The NIC.
        nic: NicName,
        /// The uplink.
        device: String,
    },
    /// An uplink of a NIC was unplugged. Nothing goes by it until the NIC is made anew.
    NicUplinkRemoved {
        /// The NIC.
        nic: NicName,
        /// The uplink.
        device: String,
    },
    /// Somebody removed a representor of a NIC. That of a software NIC is made anew; what was configured on it is lost.
    NicRepresentorRemoved {
        /// The NIC.
        nic: NicName,
        /// Its name.
        representor: String,
    },
    /// A representor of a NIC is there again.
    NicRepresentorBack {
        /// The NIC.
        nic: NicName,
        /// Its name.
        representor: String,
    },
    /// Another member of a bond of the kernel's sends now; by LACP: another aggregator does.
    BondFailover {
        /// The bond.
        bond: String,
        /// Who did before; absent: none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<String>,
        /// Who does now; absent: none has a link.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<String>,
    },
    /// The link of a bond's member went, or came back.
    BondLink {
        /// The bond.
        bond: String,
        /// Its member.
        member: String,
        /// Whether it has a link now.
        up: bool,
    },
    /// A guest has a NIC. Told when all of it is done, and also when it was attached anew by `attachment.sync`.
    Attached {
        /// The guest.
        guest: String,
        /// Which of its NICs.
        nic: u16,
        /// The VF.
        device: String,
    },
    /// A guest's NIC was taken from it, and its VF is free; also one that was being attached when a daemon was killed.
    Detached {
        /// The guest.
        guest: String,
        /// Which of its NICs.
        nic: u16,
        /// The VF.
        device: String,
    },
    /// `attachment.sync` found a NIC whose guest its caller does not have.
    Orphaned {
        /// The guest.
        guest: String,
        /// Which of its NICs.
        nic: u16,
        /// The VF.
        device: String,
    },
    /// A guest's NIC is not as it was left. It is looked for every minute; `attachment.sync` mends it.
    Drifted {
        /// The guest.
        guest: String,
        /// Which of its NICs.
        nic: u16,
        /// The VF.
        device: String,
        /// What differs.
        what: Vec<String>,
    },
    /// The configuration file was read again, and what differed was changed.
    ConfigReloaded {
        /// How many ports and lanes changed.
        changes: usize,
    },
    /// The configuration file was read again and refused: nothing was changed.
    ConfigRefused {
        /// What is wrong with it.
        message: String,
    },
    /// What `host.apply` was told last was done again, after a start of the daemon or of the machine.
    HostApplied {
        /// How many cards changed.
        changed: usize,
        /// How many are refused; the log says why.
        refused: usize,
    },
    /// A change of the host that an earlier daemon was killed amid was finished, or taken back.
    HostFinished {
        /// Which change.
        what: String,
        /// What was left to do.
        done: Vec<String>,
        /// Why it could not be finished.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// Somebody, most likely the host agent, bound VFs of a card that ringspan has to vfio-pci by `new_id`.
    HostTaken {
        /// Which card, and the remedy.
        message: String,
    },
    /// The configuration file and a port that was added at run time want different things: the file's wish is done.
    ConfigConflict {
        /// What they want, and the remedy.
        message: String,
    },
}

/// Events `from` to `to` are not kept any more, or were lost in a restart of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Missed {
    /// The first that is missing.
    pub from: u64,
    /// The last that is missing.
    pub to: u64,
}

/// What a reader gets next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// Some events are gone.
    Missed(Missed),
    /// The following events, at least one.
    Events(Vec<Event>),
    /// Nothing within the time given.
    Nothing,
    /// The daemon ends.
    Closed,
}

#[derive(Debug)]
struct Inner {
    kept: VecDeque<Event>,
    last: u64,
    marks: EventMarks,
    marked_at: Instant,
    closed: bool,
}

/// All events.
#[derive(Debug)]
pub(crate) struct EventLog {
    state: Arc<StateDir>,
    inner: Mutex<Inner>,
    grown: Condvar,
}

impl EventLog {
    /// Goes on where the last daemon may have been.
    pub(crate) fn new(state: Arc<StateDir>) -> Self {
        let marks = state.load_marks();
        let inner =
            Inner { kept: VecDeque::new(), last: marks.highest, marks, marked_at: Instant::now(), closed: false };
        Self { state, inner: Mutex::new(inner), grown: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether the daemon ends.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Number of the last event.
    pub(crate) fn last(&self) -> u64 {
        self.lock().last
    }

    fn push(&self, time_ms: u64, lane: Option<LaneName>, port: Option<PortName>, what: What, mark: Option<(u64, u64)>) {
        let mut inner = self.lock();
        inner.last += 1;
        let mut write = false;
        if inner.last > inner.marks.highest {
            inner.marks.highest = inner.last + BLOCK;
            write = true;
        }
        if let (Some(lane), Some(mark)) = (&lane, mark) {
            inner.marks.lanes.insert(lane.clone(), mark);
            write |= inner.marked_at.elapsed() > MARK_EVERY;
        }
        if write {
            inner.marked_at = Instant::now();
            if let Err(error) = self.state.save_marks(&inner.marks) {
                tracing::warn!("event numbers may repeat after a restart: {error}");
            }
        }
        let sequence = inner.last;
        inner.kept.push_back(Event { sequence, time_ms, lane, port, what });
        if inner.kept.len() > KEPT {
            inner.kept.pop_front();
        }
        drop(inner);
        self.grown.notify_all();
    }

    /// Tells of something the daemon saw.
    pub(crate) fn tell(&self, lane: Option<&LaneName>, port: Option<&PortName>, kind: EventKind) {
        self.push(now_ms(), lane.cloned(), port.cloned(), What::Daemon(kind), None);
    }

    /// Passes a lane's event on.
    pub(crate) fn pass_on(&self, lane: &LaneName, started_ms: u64, event: LaneEvent) {
        let mark = Some((started_ms, event.sequence));
        self.push(event.time_ms, Some(lane.clone()), Some(event.port), What::Lane(event.kind), mark);
    }

    /// The last event of this life of a lane that was passed on by this daemon or the one before.
    pub(crate) fn lane_mark(&self, lane: &LaneName, started_ms: u64) -> u64 {
        match self.lock().marks.lanes.get(lane) {
            Some((start, sequence)) if *start == started_ms => *sequence,
            _ => 0,
        }
    }

    /// Writes down exactly where the numbers stand, and ends every reader's wait.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.marks.highest = inner.last;
        if let Err(error) = self.state.save_marks(&inner.marks) {
            tracing::warn!("{error}");
        }
        drop(inner);
        self.grown.notify_all();
    }

    /// What comes after `after`; waits at most `limit` for it. At most `most` events at once.
    pub(crate) fn next(&self, after: u64, most: usize, limit: Duration) -> Next {
        let until = Instant::now() + limit;
        let mut inner = self.lock();
        loop {
            if inner.last > after {
                let first = inner.kept.front().map_or(inner.last + 1, |event| event.sequence);
                if first > after + 1 {
                    return Next::Missed(Missed { from: after + 1, to: first - 1 });
                }
                let skip = (after + 1 - first) as usize;
                return Next::Events(inner.kept.iter().skip(skip).take(most).cloned().collect());
            }
            let left = until.saturating_duration_since(Instant::now());
            if inner.closed {
                return Next::Closed;
            }
            if left.is_zero() {
                return Next::Nothing;
            }
            inner = match self.grown.wait_timeout(inner, left) {
                Ok((inner, _)) => inner,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Refuses a number that no event has had yet.
    pub(crate) fn check_after(&self, after: u64) -> Result<(), Error> {
        let last = self.last();
        if after <= last {
            return Ok(());
        }
        let message = format!("after is {after}, but the last event is {last}: name a number that was received");
        Err(Error::new(ErrorKind::Invalid, message))
    }
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
