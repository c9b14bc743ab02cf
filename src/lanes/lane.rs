//! A lane as the rest of the daemon sees it: what it is, how it is, and the two connections over which it is asked.
//!
//! Locks are taken in this order: `change`, then the desired ports, then `state`. Whoever changes ports holds `change` for the
//! request and for its entry in the desired ports, so that reconciling never sees one without the other.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use ringspan_protocol::{
    LaneInfo, LaneLoad, LaneName, NicName, NicStatus, PortCounters, PortName, PortStatus, Reply, Request,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::client::{CallError, LaneClient, NotConnected, QUICK, SLOW};
use crate::config::LaneSettings;
use crate::error::{Error, ErrorKind};

/// How long a request waits for a lane that is starting: zeroing hugepages takes its time.
const UP_LIMIT: Duration = Duration::from_secs(60);

/// How a lane is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LanePhase {
    /// Being looked for, or started.
    Starting,
    /// Not running, because no port and no NIC needs it: the first one starts it.
    Idle,
    /// Running, and its ports were applied.
    Up,
    /// Running, but of another version of the lane protocol: its packets flow, and nothing can be changed
    /// until `lane.restart`.
    OtherVersion,
    /// It died, or did not start; the next attempt waits.
    Waiting,
    /// Shut down, as was asked.
    Stopped,
}

/// What its keeper is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Keep it running.
    Keep,
    /// Shut it down and start it again.
    Restart,
    /// Shut it down.
    Stop,
    /// Leave it as it is: the daemon ends.
    Leave,
}

/// A lane's state, guarded by one lock.
#[derive(Debug)]
pub(super) struct LaneState {
    pub(super) phase: LanePhase,
    pub(super) order: Order,
    pub(super) pid: i32,
    pub(super) info: Option<LaneInfo>,
    pub(super) adopted: bool,
    /// Times it was started or adopted by this daemon.
    pub(super) lives: u64,
    /// Times it died without having been asked to.
    pub(super) deaths: u64,
    pub(super) reason: Option<String>,
    /// Ports that it refused, and why.
    pub(super) refused: BTreeMap<PortName, Error>,
    /// NICs that it refused, and why.
    pub(super) refused_nics: BTreeMap<NicName, Error>,
    /// Set when somebody asked for it to run, whether or not anything is wanted on it.
    pub(super) asked: bool,
    /// Set when the keeper should look at the ports again.
    pub(super) look_again: bool,
    /// When it was seen to leave the last request unanswered.
    pub(super) silent: Option<Instant>,
    /// Ends the wait of the events thread.
    pub(super) events: Option<UnixStream>,
}

impl LaneState {
    /// Whether this life of the lane goes on, as far as is known.
    pub(super) fn is_life(&self, life: u64) -> bool {
        self.lives == life && self.phase == LanePhase::Up && !matches!(self.order, Order::Stop | Order::Leave)
    }
}

/// One lane.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) name: LaneName,
    pub(super) run_dir: PathBuf,
    settings: Mutex<Option<LaneSettings>>,
    pub(super) state: Mutex<LaneState>,
    pub(super) changed: Condvar,
    change: Mutex<Option<LaneClient>>,
    read: Mutex<Option<LaneClient>>,
    /// Counters as last known; told while the lane cannot be asked.
    last: Mutex<BTreeMap<PortName, PortCounters>>,
    pub(super) wake: EventFd,
}

/// What `lane.list` says of a lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct LaneView {
    /// Its name.
    pub name: LaneName,
    /// How it is.
    pub phase: LanePhase,
    /// Why it waits, or what about it is not as configured.
    pub reason: Option<String>,
    /// Whether the configuration file has it. A lane that is not there any more is shut down when its last port is removed.
    pub configured: bool,
    /// Whether it runs with other cores or memory than the file says; `lane.restart` puts it right.
    pub differs: bool,
    /// Whether it was running before this daemon.
    pub adopted: bool,
    /// Its process id; 0 when it does not run.
    pub pid: i32,
    /// Times it died without having been asked to, since this daemon started.
    pub deaths: u64,
    /// Ports that are wanted on it.
    pub ports: usize,
    /// What it said of itself.
    pub info: Option<LaneInfo>,
    /// How busy its workers are; absent when it cannot be asked.
    pub load: Option<LaneLoad>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Lane {
    /// A lane that nobody has looked for yet.
    pub(crate) fn new(name: LaneName, run_dir: &Path, settings: Option<LaneSettings>) -> Result<Arc<Self>, Error> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::io("eventfd", &errno.into()))?;
        Ok(Arc::new(Self {
            name,
            run_dir: run_dir.to_owned(),
            settings: Mutex::new(settings),
            state: Mutex::new(LaneState {
                phase: LanePhase::Starting,
                order: Order::Keep,
                pid: 0,
                info: None,
                adopted: false,
                lives: 0,
                deaths: 0,
                reason: None,
                refused: BTreeMap::new(),
                refused_nics: BTreeMap::new(),
                asked: false,
                look_again: false,
                silent: None,
                events: None,
            }),
            changed: Condvar::new(),
            change: Mutex::new(None),
            read: Mutex::new(None),
            last: Mutex::new(BTreeMap::new()),
            wake,
        }))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        super::socket_path(&self.run_dir, &self.name)
    }

    /// What the file says of it; nothing when it is not there.
    pub(crate) fn settings(&self) -> Option<LaneSettings> {
        lock(&self.settings).clone()
    }

    /// The file says something else of it now; seen at its next start.
    pub(crate) fn set_settings(&self, settings: Option<LaneSettings>) {
        *lock(&self.settings) = settings;
    }

    /// Tells the keeper what to do.
    pub(crate) fn order(&self, order: Order) {
        {
            let mut state = lock(&self.state);
            state.order = order;
            if order == Order::Restart && matches!(state.phase, LanePhase::Waiting | LanePhase::Idle) {
                state.phase = LanePhase::Starting;
            }
        }
        self.nudge();
    }

    /// Has the keeper start it, where it was left alone because nothing needed it.
    pub(crate) fn need(&self) {
        {
            let mut state = lock(&self.state);
            if state.phase != LanePhase::Idle || state.order != Order::Keep {
                return;
            }
            state.phase = LanePhase::Starting;
            state.asked = true;
        }
        self.nudge();
    }

    /// Waits until it runs, or cannot; with `wanted` it is started where it does not run.
    fn settle_start(&self, wanted: bool) {
        let until = Instant::now() + UP_LIMIT;
        loop {
            if wanted {
                self.need();
            }
            let left = until.saturating_duration_since(Instant::now());
            let settled = self.wait_for(left, |state| state.phase != LanePhase::Starting);
            // The keeper may have left it alone just before it was asked.
            if !settled || !wanted || self.phase() != LanePhase::Idle {
                return;
            }
        }
    }

    /// Starts it where it does not run, and returns when it has what is wanted on it, or cannot.
    pub(crate) fn bring_up(&self) {
        self.settle_start(true);
        self.settle();
    }

    /// Tells the keeper to compare the lane's ports with what is wanted.
    pub(crate) fn look_again(&self) {
        lock(&self.state).look_again = true;
        self.nudge();
    }

    pub(super) fn nudge(&self) {
        // Fails only when the counter is full, and then the keeper is woken anyway.
        let _ = self.wake.write(1);
        self.changed.notify_all();
    }

    pub(crate) fn phase(&self) -> LanePhase {
        lock(&self.state).phase
    }

    /// Most devices its process may have; DPDK's default where it has not said yet.
    pub(crate) fn max_ports(&self) -> usize {
        lock(&self.state).info.as_ref().map_or(32, |info| usize::from(info.max_ports))
    }

    /// How often it was started or adopted.
    pub(crate) fn lives(&self) -> u64 {
        lock(&self.state).lives
    }

    pub(super) fn is_in_life(&self, life: u64) -> bool {
        lock(&self.state).is_life(life)
    }

    /// Why it refused a port, when it did.
    pub(crate) fn refusal(&self, port: &PortName) -> Option<Error> {
        lock(&self.state).refused.get(port).cloned()
    }

    /// Why it refused a NIC, when it did.
    pub(crate) fn nic_refusal(&self, nic: &NicName) -> Option<Error> {
        lock(&self.state).refused_nics.get(nic).cloned()
    }

    /// Its software NICs as they are now; an error when it cannot be asked.
    pub(crate) fn nics(&self) -> Result<BTreeMap<NicName, NicStatus>, Error> {
        let Reply::Nics(nics) = self.ask(Request::NicList)? else {
            return Err(Error::new(ErrorKind::Version, format!("lane {} answered something else", self.name)));
        };
        Ok(nics.into_iter().map(|nic| (nic.spec.name.clone(), nic)).collect())
    }

    pub(crate) fn forget_refusal(&self, port: &PortName) {
        lock(&self.state).refused.remove(port);
    }

    pub(crate) fn view(&self, ports: usize) -> LaneView {
        let settings = self.settings();
        let state = lock(&self.state);
        let differs = match (&settings, &state.info) {
            (Some(settings), Some(info)) if state.pid != 0 => settings.differences(info),
            _ => None,
        };
        LaneView {
            name: self.name.clone(),
            phase: state.phase,
            reason: state
                .silent
                .map(|_| self.advice_when_silent())
                .or_else(|| state.reason.clone())
                .or(differs.clone()),
            configured: settings.is_some(),
            differs: differs.is_some(),
            adopted: state.adopted,
            pid: state.pid,
            deaths: state.deaths,
            ports,
            info: state.info.clone().filter(|_| state.pid != 0),
            load: None,
        }
    }

    /// Waits until `done` says so of the state, at most `limit`.
    pub(super) fn wait_for(&self, limit: Duration, mut done: impl FnMut(&LaneState) -> bool) -> bool {
        let until = Instant::now() + limit;
        let mut state = lock(&self.state);
        while !done(&state) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = match self.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        true
    }

    /// Waits until its next life (after `lives`) is up or has failed to start.
    pub(crate) fn wait_for_life(&self, lives: u64, limit: Duration) -> Result<(), Error> {
        let up = |state: &LaneState| {
            state.lives > lives && state.phase == LanePhase::Up || state.phase == LanePhase::Waiting
        };
        self.wait_for(limit, up);
        let state = lock(&self.state);
        if state.lives > lives && state.phase == LanePhase::Up {
            return Ok(());
        }
        Err(self.down(&state))
    }

    /// Returns when what the keeper is applying at this moment is applied.
    pub(crate) fn settle(&self) {
        drop(lock(&self.change));
    }

    fn advice_when_silent(&self) -> String {
        format!("lane {0} does not answer; if that lasts, run ringspan lane restart {0}", self.name)
    }

    fn down(&self, state: &LaneState) -> Error {
        let name = &self.name;
        let message = match (state.phase, &state.reason) {
            (LanePhase::OtherVersion, reason) => {
                let reason = reason.as_deref().unwrap_or_default();
                let message = format!("lane {name} cannot be asked: {reason}: run ringspan lane restart {name}");
                return Error::new(ErrorKind::Version, message).about(name);
            }
            (_, Some(reason)) => format!("lane {name} is not running: {reason}"),
            (LanePhase::Idle, None) => format!("lane {name} does not run: no port or NIC has needed it so far"),
            (_, None) => format!("lane {name} is not running yet: try again, or see ringspan lane list"),
        };
        Error::new(ErrorKind::LaneDown, message).about(name)
    }

    /// Asks for a change. `then` runs with the answer while no other change, and no reconciling, can come between.
    pub(crate) fn change<T>(
        &self,
        request: Request,
        then: impl FnOnce(Result<Reply, Error>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.settle_start(matches!(request, Request::PortAdd(_) | Request::NicAdd(_)));
        let mut change = lock(&self.change);
        let Some(client) = change.as_mut() else {
            return then(Err(self.down(&lock(&self.state))));
        };
        match client.call(request, SLOW) {
            Ok(reply) => then(Ok(reply)),
            Err(CallError::Refused(failure)) => then(Err(failure.into())),
            Err(CallError::Lost(reason) | CallError::Silent(reason)) => {
                *change = None;
                self.nudge();
                let message = format!("lane {}: {reason}: try again, or see ringspan lane list", self.name);
                then(Err(Error::new(ErrorKind::LaneDown, message).about(&self.name)))
            }
        }
    }

    /// The change connection, held: for the keeper, while it compares and applies.
    pub(super) fn hold_change(&self) -> MutexGuard<'_, Option<LaneClient>> {
        lock(&self.change)
    }

    /// Whether the change connection is there, as far as can be seen without waiting for a change that is under way.
    pub(super) fn is_connected(&self) -> bool {
        match self.change.try_lock() {
            Ok(change) => change.is_some(),
            Err(TryLockError::Poisoned(change)) => change.into_inner().is_some(),
            Err(TryLockError::WouldBlock) => true,
        }
    }

    /// Takes the change connection away, unless a change is under way on it.
    pub(super) fn take_change(&self) -> Option<LaneClient> {
        match self.change.try_lock() {
            Ok(mut change) => change.take(),
            Err(TryLockError::Poisoned(change)) => change.into_inner().take(),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Asks something that changes nothing; on a connection of its own, so that it does not wait for a device.
    pub(crate) fn ask(&self, request: Request) -> Result<Reply, Error> {
        {
            let state = lock(&self.state);
            if state.phase != LanePhase::Up {
                return Err(self.down(&state));
            }
        }
        let asked = Instant::now();
        let mut read = lock(&self.read);
        // Who queued behind a request that stayed unanswered would wait as long again, one after the other.
        if lock(&self.state).silent.is_some_and(|seen| seen > asked) {
            return Err(Error::new(ErrorKind::LaneDown, self.advice_when_silent()));
        }
        // A connection from an earlier life of the lane fails at once; the second attempt has a new one.
        for fresh in [false, true] {
            if fresh || read.is_none() {
                let connected = LaneClient::connect(&self.socket());
                lock(&self.state).silent = matches!(connected, Err(NotConnected::Stuck(..))).then(Instant::now);
                *read = Some(connected?.client);
            }
            let Some(client) = read.as_mut() else { continue };
            let answer = client.call(request.clone(), QUICK);
            lock(&self.state).silent = matches!(answer, Err(CallError::Silent(_))).then(Instant::now);
            match answer {
                Ok(reply) => return Ok(reply),
                Err(CallError::Refused(failure)) => return Err(failure.into()),
                Err(CallError::Silent(_)) => {
                    *read = None;
                    return Err(Error::new(ErrorKind::LaneDown, self.advice_when_silent()));
                }
                Err(CallError::Lost(reason)) => {
                    *read = None;
                    if fresh {
                        return Err(Error::new(ErrorKind::LaneDown, format!("lane {}: {reason}", self.name)));
                    }
                }
            }
        }
        Err(Error::new(ErrorKind::LaneDown, format!("lane {} does not answer", self.name)))
    }

    /// Its ports as they are now; an error when it cannot be asked.
    pub(crate) fn ports(&self) -> Result<BTreeMap<PortName, PortStatus>, Error> {
        let Reply::Ports(ports) = self.ask(Request::PortList)? else {
            return Err(Error::new(ErrorKind::Version, format!("lane {} answered something else", self.name)));
        };
        Ok(ports.into_iter().map(|port| (port.spec.name.clone(), port)).collect())
    }

    /// How busy its workers are, when it can be asked.
    pub(crate) fn load(&self) -> Option<LaneLoad> {
        match self.ask(Request::LaneLoad) {
            Ok(Reply::Load(load)) => Some(load),
            _ => None,
        }
    }

    /// Counters of a port or of all, each with whether they are of now; else they are the last known. A port that the
    /// lane does not have again yet has its last known ones, too: they must not go back.
    pub(crate) fn counters(&self, name: Option<&PortName>, extended: bool) -> BTreeMap<PortName, (PortCounters, bool)> {
        let fresh = match self.ask(Request::PortStats { name: name.cloned(), extended }) {
            Ok(Reply::Stats(stats)) => Some(stats),
            _ => None,
        };
        let mut last = lock(&self.last);
        let mut all: BTreeMap<_, _> =
            last.iter().map(|(port, counters)| (port.clone(), (counters.clone(), false))).collect();
        for (port, counters) in fresh.into_iter().flatten() {
            last.insert(port.clone(), PortCounters { device: Vec::new(), ..counters.clone() });
            all.insert(port, (counters, true));
        }
        all
    }

    pub(crate) fn forget_port(&self, port: &PortName) {
        lock(&self.last).remove(port);
    }

    /// The lane is gone, or is about to be.
    pub(super) fn disconnected(&self) {
        if let Some(events) = lock(&self.state).events.take() {
            let _ = events.shutdown(std::net::Shutdown::Both);
        }
        *lock(&self.change) = None;
        *lock(&self.read) = None;
    }
}
