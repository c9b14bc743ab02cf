//! A lane: its workers, its ports, and what control may ask of it.

mod any_nic;
mod balancer;
mod nics;
mod server;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam::channel::{self, Receiver, Sender};
use ringspan_protocol::{
    DeviceSpec, Failure, FailureKind, LaneEventKind, LaneInfo, LaneLoad, PortChange, PortName, PortSpec, PortStatus,
    Reply, Request, VERSION,
};

use crate::events::EventLog;
use crate::journal::Journal;
use crate::nic::{device_count, sweep_loans, sweep_pools};
use crate::port::{Port, Surroundings};
use crate::relay::Fault;
use crate::worker::{Watchdog, Worker};
pub use balancer::Balancer;
pub use server::serve;

/// How often links are looked at. Drivers do not always say when one changes.
pub const MONITOR_PERIOD: Duration = Duration::from_millis(200);
/// Longest wait for events that a request may ask for.
const MAX_EVENT_WAIT: Duration = Duration::from_secs(10);

/// One lane.
pub struct Lane {
    info: LaneInfo,
    workers: Vec<Arc<Worker>>,
    /// Held while ports come or go, so that one change follows the other. Opening a device may take long; whoever only
    /// wants to look at the ports does not wait for it.
    changing: Mutex<()>,
    ports: Mutex<Ports>,
    /// A port that was leaving has gone.
    left: Condvar,
    events: Arc<EventLog>,
    faults: Sender<Fault>,
    journals: PathBuf,
    private_dir: PathBuf,
    load: Mutex<LaneLoad>,
    nics: Mutex<nics::Nics>,
    stop: Sender<()>,
}

#[derive(Default)]
struct Ports {
    by_name: BTreeMap<PortName, Arc<Port>>,
    /// Those that are being taken down: what they have is theirs until they are gone.
    leaving: Vec<PortSpec>,
    /// How many wait for some of those to be gone.
    waiting: usize,
    last_id: u64,
    stopping: bool,
}

/// The ends of a lane's channels that `main` keeps.
pub struct Ends {
    /// What guests did to their rings.
    pub faults: Receiver<Fault>,
    /// Gets a message when the lane was told to shut down.
    pub stop: Receiver<()>,
}

/// Whether a device's link is up, and whether the device is gone, by port.
pub type Links = BTreeMap<u64, (bool, bool)>;

impl Lane {
    /// A lane without ports.
    pub fn new(info: LaneInfo, workers: Vec<Worker>, journals: &Path, private_dir: &Path) -> (Arc<Self>, Ends) {
        let (faults, fault_end) = channel::unbounded();
        let (stop, stop_end) = channel::bounded(1);
        let lane = Self {
            info,
            workers: workers.into_iter().map(Arc::new).collect(),
            changing: Mutex::default(),
            ports: Mutex::default(),
            left: Condvar::new(),
            events: Arc::default(),
            faults,
            journals: journals.into(),
            private_dir: private_dir.into(),
            load: Mutex::default(),
            nics: Mutex::default(),
            stop,
        };
        (Arc::new(lane), Ends { faults: fault_end, stop: stop_end })
    }

    /// Answers one request.
    pub fn answer(&self, request: Request) -> Reply {
        let outcome = match request {
            Request::Hello { version } => self.hello(version),
            Request::PortAdd(spec) => self.add(*spec).map(|status| Reply::Port(Box::new(status))),
            Request::PortRemove { name, forget } => self.remove(&name, forget).map(|()| Reply::Done),
            Request::PortSet { name, change } => self.set(&name, &change).map(|status| Reply::Port(Box::new(status))),
            Request::PortList => Ok(Reply::Ports(self.all().iter().map(|port| port.status()).collect())),
            Request::PortStats { name, extended } => self.stats(name.as_ref(), extended),
            Request::Events { after, wait_ms } => {
                let wait = Duration::from_millis(wait_ms.into()).min(MAX_EVENT_WAIT);
                Ok(Reply::Events(self.events.after(after, wait)))
            }
            Request::LaneLoad => Ok(Reply::Load(self.load())),
            request @ (Request::NicAdd(_)
            | Request::NicRemove { .. }
            | Request::NicList
            | Request::NicSetVf { .. }
            | Request::NicRefresh { .. }
            | Request::MeterSet { .. }
            | Request::MeterRemove { .. }
            | Request::RuleInstall { .. }
            | Request::RuleValidate { .. }
            | Request::RuleRemove { .. }
            | Request::RuleCounters { .. }
            | Request::RuleList { .. }) => self.answer_nic(request),
            // Only after the answer was sent: see `shut_down`.
            Request::Shutdown => Ok(Reply::Done),
        };
        outcome.unwrap_or_else(Reply::Failed)
    }

    /// Ends the lane, after [`Request::Shutdown`] was answered.
    fn shut_down(&self) {
        // The channel holds one message; a second shutdown changes nothing.
        let _ = self.stop.try_send(());
    }

    fn hello(&self, version: u32) -> Result<Reply, Failure> {
        if version == VERSION {
            return Ok(Reply::Hello(self.info.clone()));
        }
        let message = format!(
            "lane {} speaks version {VERSION} of the lane protocol, not {version}: restart the lane to replace it",
            self.info.name
        );
        Err(Failure::new(FailureKind::Version, message))
    }

    fn add(&self, spec: PortSpec) -> Result<PortStatus, Failure> {
        let full = || self.is_full_with(spec.device.dpdk_ports());
        let (_changing, mut ports) = self.change_without(|leaving| shares(leaving, &spec) || full());
        if ports.stopping {
            return Err(Failure::new(FailureKind::Failed, format!("lane {} is stopping", self.info.name)));
        }
        if let Some(port) = ports.by_name.get(&spec.name).cloned() {
            if port.spec() == spec {
                drop(ports);
                return Ok(port.status());
            }
            let message =
                format!("port {} exists with other properties: remove it first, or change it with port set", spec.name);
            return Err(Failure::new(FailureKind::Exists, message));
        }
        for other in ports.by_name.values().map(|port| port.spec()) {
            let Some(shared) = shared(&other, &spec) else { continue };
            let message = format!(
                "port {}: {shared} is used by port {}: name another, or remove that port",
                spec.name, other.name
            );
            return Err(Failure::new(FailureKind::Busy, message));
        }
        if self.workers.is_empty() {
            return Err(Failure::new(FailureKind::NoRoom, "the lane has no worker: give it a core"));
        }
        ports.last_id += 1;
        let id = ports.last_id;
        drop(ports);
        let around = Surroundings {
            workers: &self.workers,
            journals: &self.journals,
            private_dir: &self.private_dir,
            events: &self.events,
            faults: &self.faults,
        };
        let known = Journal::exists(&self.journals, &spec.name);
        let name = spec.name.clone();
        let port = Port::open(id, spec, &around).inspect_err(|_| {
            if !known {
                Journal::forget(&self.journals, &name);
            }
        })?;
        let status = port.status();
        self.lock().by_name.insert(name, Arc::new(port));
        Ok(status)
    }

    fn remove(&self, name: &PortName, forget: bool) -> Result<(), Failure> {
        let (changing, mut ports) = self.change_without(|leaving| leaving.name == *name);
        let Some(port) = ports.by_name.remove(name) else {
            drop(ports);
            if forget {
                Journal::forget(&self.journals, name);
            }
            return Err(self.not_found(name));
        };
        ports.leaving.push(port.spec());
        drop((ports, changing));
        // It may be amid a change of its own, which lasts as long as its device takes: who wants nothing of what it has does not wait for that.
        port.close();
        if forget {
            Journal::forget(&self.journals, name);
        }
        self.lock().leaving.retain(|leaving| leaving.name != *name);
        self.left.notify_all();
        Ok(())
    }

    /// The right to change which ports there are, and those, when no port is leaving that `concerns` whoever asks.
    fn change_without(&self, concerns: impl Fn(&PortSpec) -> bool) -> (MutexGuard<'_, ()>, MutexGuard<'_, Ports>) {
        loop {
            let mut ports = self.lock();
            ports.waiting += 1;
            let waits = |ports: &mut Ports| ports.leaving.iter().any(&concerns);
            ports = self.left.wait_while(ports, waits).unwrap_or_else(PoisonError::into_inner);
            ports.waiting -= 1;
            drop(ports);
            let (changing, ports) = (self.change(), self.lock());
            // Another may have begun to leave meanwhile.
            if !ports.leaving.iter().any(&concerns) {
                return (changing, ports);
            }
        }
    }

    /// Whether as many devices more are too many for DPDK, which those of a port that is leaving count for, too.
    fn is_full_with(&self, more: usize) -> bool {
        device_count() + more > self.info.max_ports.into()
    }

    fn set(&self, name: &PortName, change: &PortChange) -> Result<PortStatus, Failure> {
        let port = self.port(name)?;
        port.set(change)?;
        Ok(port.status())
    }

    fn stats(&self, name: Option<&PortName>, extended: bool) -> Result<Reply, Failure> {
        let of = |port: &Arc<Port>| (port.spec().name, port.counters(extended));
        let stats = match name {
            Some(name) => vec![of(&self.port(name)?)],
            None => self.all().iter().map(of).collect(),
        };
        Ok(Reply::Stats(stats))
    }

    fn not_found(&self, name: &PortName) -> Failure {
        Failure::new(FailureKind::NotFound, format!("lane {} has no port {name}: see port list", self.info.name))
    }

    /// Says what a guest did. Its relays have stopped by themselves.
    pub fn report(&self, fault: &Fault) {
        // A port that is being made is not in the list yet, and its guest may be faster.
        let _changing = self.change();
        let state =
            self.lock().by_name.values().find(|port| port.id() == fault.port).map(|port| Arc::clone(port.state()));
        if let Some(state) = state {
            state.broken(fault.ring, fault.offence.to_string());
        }
    }

    /// A watchdog over the workers.
    ///
    /// # Errors
    /// As sigaction(2) has them.
    pub fn watchdog(&self) -> io::Result<Watchdog> {
        Watchdog::new(self.workers.iter().map(|worker| Arc::clone(worker.pulse())))
    }

    /// Looks at every device once and says what changed since the last look. Frees what devices that are gone have left, and
    /// memory of guests that are gone which devices have let go of.
    pub fn monitor(&self, links: &mut Links) {
        sweep_pools();
        sweep_loans();
        let ports = self.all();
        links.retain(|id, _| ports.iter().any(|port| port.id() == *id));
        for port in ports {
            // Somebody is at the device: another time.
            let Some(look) = port.look() else { continue };
            let now = (look.up, look.gone);
            let before = links.insert(port.id(), now).unwrap_or((now.0, false));
            if before.0 != now.0 {
                port.state().device_event(LaneEventKind::LinkChanged { up: now.0 });
            }
            if now.1 && !before.1 {
                port.state().device_event(LaneEventKind::DeviceRemoved);
            }
        }
    }

    /// Takes all ports down, in order, and takes no new ones.
    pub fn close(&self) {
        let (_changing, mut ports) = self.change_without(|_| true);
        ports.stopping = true;
        let all = std::mem::take(&mut ports.by_name);
        drop(ports);
        for (name, port) in all {
            tracing::info!(port = %name, "closing");
            port.close();
        }
        self.close_nics();
    }

    /// The ports as they are now. Nothing that a port may be long about is asked while they are locked.
    fn all(&self) -> Vec<Arc<Port>> {
        self.lock().by_name.values().cloned().collect()
    }

    fn port(&self, name: &PortName) -> Result<Arc<Port>, Failure> {
        self.lock().by_name.get(name).cloned().ok_or_else(|| self.not_found(name))
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Ports> {
        // A port is inserted only when it is whole, and removed before it is taken down.
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a port has what another one wants: its name, a device or its socket.
fn shares(has: &PortSpec, wants: &PortSpec) -> bool {
    has.name == wants.name || shared(has, wants).is_some()
}

/// What both of two ports want.
fn shared(one: &PortSpec, other: &PortSpec) -> Option<String> {
    if let Some(identity) = same_part(&one.device, &other.device) {
        Some(format!("device {identity}"))
    } else {
        (one.socket == other.socket).then(|| format!("socket {}", other.socket.display()))
    }
}

/// A device that is opened for both: one of a bond's is nobody else's.
fn same_part(one: &DeviceSpec, other: &DeviceSpec) -> Option<String> {
    let has: Vec<String> = one.parts().iter().map(DeviceSpec::identity).collect();
    other.parts().iter().map(DeviceSpec::identity).find(|identity| has.contains(identity))
}
