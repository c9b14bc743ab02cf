//! What a port's session says, turned into calls on the worker, and into the phase and the events that people see.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ringspan_protocol::{Failure, LaneEventKind, MigrationStatus, PortName, PortPhase, PortSpec, PortStatus, Role};

use super::backing::{Backing, Look};
use super::relaying::Started;
use super::waiting_phase;
use crate::events::{EventLog, Pace};
use crate::memory::{DirtyLog, GuestMap};
use crate::ring::{RingConfig, RingLog};
use crate::vhost::RingSink;

/// A port's changing side.
pub struct PortState {
    name: PortName,
    role: Role,
    backing: Arc<Backing>,
    events: Arc<EventLog>,
    now: Mutex<Now>,
    pace: Mutex<Pace>,
    /// A thread is at [`Backing::attend`].
    attended: AtomicBool,
}

struct Now {
    phase: PortPhase,
    reason: Option<String>,
    features: u64,
    active_pairs: u16,
    map: Option<Arc<GuestMap>>,
    /// The front-end can migrate its guest; `None` before it has said so or not.
    can_log: Option<bool>,
    /// Where the pages that are written are noted while it does so.
    log: Option<Arc<DirtyLog>>,
}

impl PortState {
    pub(super) fn new(name: PortName, role: Role, backing: &Arc<Backing>, events: &Arc<EventLog>) -> Self {
        let now = Now {
            phase: waiting_phase(role),
            reason: None,
            features: 0,
            active_pairs: 0,
            map: None,
            can_log: None,
            log: None,
        };
        let (backing, events) = (Arc::clone(backing), Arc::clone(events));
        Self {
            name,
            role,
            backing,
            events,
            now: Mutex::new(now),
            pace: Mutex::default(),
            attended: AtomicBool::new(false),
        }
    }

    /// An event that the session made. Holds the session's thread back when there are too many.
    fn push(&self, kind: LaneEventKind) {
        self.events.push(&self.name, kind);
        self.hold_back();
    }

    /// Lets the session's thread wait when it has made too many events of late.
    fn hold_back(&self) {
        let wait = self.pace.lock().unwrap_or_else(PoisonError::into_inner).note(Instant::now());
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
    }

    /// The guest broke a ring: the relay has stopped already, this says so.
    pub fn broken(&self, ring: usize, reason: String) {
        let event = self.break_down(ring, reason);
        self.events.push(&self.name, event);
    }

    fn break_down(&self, ring: usize, reason: String) -> LaneEventKind {
        let mut now = self.lock();
        // What a relay reports may come after the front-end has gone, and the next one starts with whole rings.
        if now.phase != waiting_phase(self.role) {
            now.phase = PortPhase::Broken;
            now.reason = Some(format!("ring {ring}: {reason}"));
        }
        LaneEventKind::RingBroken { ring: ring as u16, reason }
    }

    /// An event of the port's device.
    pub fn device_event(&self, kind: LaneEventKind) {
        self.events.push(&self.name, kind);
    }

    /// Looks at the device; `None` while somebody is at it. What is to be done about it is done by a thread of its own, because that takes as long as the device likes.
    pub(super) fn look(self: &Arc<Self>) -> Option<Look> {
        let look = self.backing.look()?;
        if look.due && !self.attended.swap(true, Ordering::Relaxed) {
            let state = Arc::clone(self);
            let spawned = std::thread::Builder::new().name("attend".into()).spawn(move || {
                state.attend();
                state.attended.store(false, Ordering::Relaxed);
            });
            if let Err(error) = spawned {
                tracing::warn!(port = %self.name, %error, "no thread to attend to the device");
                self.attended.store(false, Ordering::Relaxed);
            }
        }
        Some(look)
    }

    fn attend(&self) {
        let before = self.backing.mode().0;
        self.backing.attend();
        if self.backing.mode().0 != before {
            self.rings_changed(self.backing.pairs(), false);
        }
        self.tell_of_backing();
    }

    /// Changes what can be changed while it runs.
    pub(super) fn set(&self, wanted: &PortSpec) -> Result<(), Failure> {
        let before = self.backing.mode().0;
        let outcome = self.backing.set(wanted);
        if self.backing.mode().0 != before {
            self.rings_changed(self.backing.pairs(), self.backing.is_broken());
        }
        self.tell_of_backing();
        outcome
    }

    /// Says what became of the port's device.
    fn tell_of_backing(&self) {
        self.backing.take_events().into_iter().for_each(|event| self.events.push(&self.name, event));
    }

    /// As [`PortState::tell_of_backing`], of what the session did: it is held back when there is too much of it.
    fn tell_of_session(&self) {
        self.backing.take_events().into_iter().for_each(|event| self.push(event));
    }

    pub(super) fn status(&self, spec: &PortSpec) -> PortStatus {
        let (shares, zero_copy, device) = self.backing.status();
        let (mode, mode_reason) = self.backing.mode();
        let now = self.lock();
        PortStatus {
            spec: spec.clone(),
            phase: now.phase,
            reason: now.reason.clone(),
            shares,
            features: now.features,
            active_pairs: now.active_pairs,
            memory_regions: now.map.as_ref().map_or(0, |map| map.regions().len() as u16),
            memory_bytes: now.map.as_ref().map_or(0, |map| map.bytes()),
            nodes: self.backing.nodes(),
            zero_copy,
            migration: now.migration(),
            mode,
            mode_reason,
            device,
        }
    }

    /// After a ring came or went: how many pairs run, and what that means.
    fn rings_changed(&self, active_pairs: u16, broken: bool) {
        let mut now = self.lock();
        let before = std::mem::replace(&mut now.active_pairs, active_pairs);
        if broken {
            return;
        }
        let event = match (before, active_pairs) {
            (0, 1..) => Some(LaneEventKind::DriverReady { features: now.features, pairs: active_pairs }),
            (1.., 0) => Some(LaneEventKind::DriverStopped),
            _ => None,
        };
        if active_pairs > 0 {
            now.phase = PortPhase::DriverReady;
            now.reason = None;
        } else if matches!(now.phase, PortPhase::DriverReady | PortPhase::Broken) {
            now.phase = PortPhase::Connected;
            now.reason = None;
        }
        drop(now);
        if let Some(event) = event {
            self.push(event);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        // Nothing that can panic runs under this lock.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Now {
    /// Whether the guest can be migrated, as far as can be seen from here.
    fn migration(&self) -> MigrationStatus {
        let reason = match self.can_log {
            Some(true) => None,
            Some(false) => {
                Some("the front-end did not take the protocol feature LOG_SHMFD, without which no page can be logged")
            }
            None => Some("no front-end is connected"),
        };
        MigrationStatus {
            migratable: reason.is_none(),
            reason: reason.map(str::to_owned),
            logging: self.log.is_some(),
            pages: self.log.as_ref().map_or(0, |log| log.marked()),
        }
    }
}

impl RingSink for PortState {
    fn allowed(&self) -> u64 {
        self.backing.allowed()
    }

    fn negotiated(&self, features: u64) {
        self.lock().features = features;
        self.backing.negotiated(features);
    }

    fn memory(&self, map: Arc<GuestMap>) {
        let _old = self.lock().map.replace(Arc::clone(&map));
        self.backing.memory(map);
        self.tell_of_session();
    }

    fn start(&self, index: usize, config: RingConfig) {
        let started = self.backing.start(index, config);
        self.tell_of_session();
        match started {
            Started::Pairs(pairs) => self.rings_changed(pairs, self.backing.is_broken()),
            Started::Broken(reason) => self.push(self.break_down(index, reason)),
        }
    }

    fn stop(&self, index: usize) -> Option<u16> {
        let (next, pairs) = self.backing.stop(index)?;
        self.rings_changed(pairs, self.backing.is_broken());
        self.tell_of_session();
        Some(next)
    }

    fn call(&self, index: usize, call: Option<Arc<OwnedFd>>) {
        self.backing.call(index, call);
    }

    fn can_log(&self, taken: bool) {
        self.lock().can_log = Some(taken);
    }

    fn logging(&self, log: Option<&Arc<DirtyLog>>) {
        let mut now = self.lock();
        let before = std::mem::replace(&mut now.log, log.cloned());
        let running = now.active_pairs > 0;
        drop(now);
        match (before, log) {
            (None, Some(_)) => self.push(LaneEventKind::MigrationStarted),
            (Some(before), None) => self.push(LaneEventKind::MigrationEnded { pages: before.marked(), left: !running }),
            // The log was replaced by a larger or smaller one.
            _ => {}
        }
    }

    fn log(&self, index: usize, log: Option<RingLog>) {
        self.backing.log(index, log);
        self.tell_of_session();
    }

    fn told(&self, index: usize) {
        if let Some(shares) = self.backing.shares() {
            shares.record(index).forget();
        }
    }

    fn announce(&self, mac: [u8; 6]) -> Result<(), String> {
        // Each makes a frame and holds the workers up: a front-end may have as many as it may have events.
        self.hold_back();
        if let Some(shares) = self.backing.shares() {
            // An error means that the lane is stopping.
            let _ = shares.announce(mac);
            return Ok(());
        }
        Err(format!(
            "port {}: no worker has the guest's rings, and a vDPA device sends no frame of ours: the network learns the guest's place by its own frames",
            self.name
        ))
    }

    fn event(&self, event: LaneEventKind) {
        {
            let mut now = self.lock();
            match &event {
                LaneEventKind::PortListening => now.phase = PortPhase::Listening,
                LaneEventKind::FrontendConnected { .. } => {
                    now.phase = PortPhase::Connected;
                    now.reason = None;
                    // A front-end that never sends SET_PROTOCOL_FEATURES takes none.
                    now.can_log = Some(false);
                }
                LaneEventKind::FrontendDisconnected { .. } | LaneEventKind::HandshakeFailed { .. } => {
                    now.phase = waiting_phase(self.role);
                    now.active_pairs = 0;
                    now.features = 0;
                    now.map = None;
                    now.can_log = None;
                    now.reason = match &event {
                        LaneEventKind::HandshakeFailed { reason } => Some(reason.clone()),
                        _ => None,
                    };
                }
                _ => {}
            }
        }
        self.push(event);
    }
}
