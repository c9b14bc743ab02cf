//! A port: a vhost-user session and a device, tied together by relays on workers.

mod backing;
mod borrower;
mod nearby;
mod relaying;
mod shares;
mod state;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam::channel::Sender;
use ringspan_protocol::{
    DeviceSpec, Failure, FailureKind, MAX_QUEUE_PAIRS, MAX_RATE, MTU_RANGE, Mode, PortChange, PortCounters, PortSpec,
    PortStatus, Role,
};

use crate::events::EventLog;
use crate::journal::Journal;
use crate::nic::{Device, DeviceConfig, DeviceError};
use crate::relay::Fault;
use crate::vhost::{Session, SessionConfig};
use crate::worker::Worker;
use backing::Backing;
pub use backing::Look;
use relaying::Maker;
pub use shares::Shares;
pub use state::PortState;

/// A port of this lane. Dropping it takes it down: first the session, then the relays, then the device.
pub struct Port {
    id: u64,
    /// Held for as long as a change takes; whoever only looks does not wait for it.
    changing: Mutex<()>,
    spec: Mutex<PortSpec>,
    session: Mutex<Option<Session>>,
    state: Arc<PortState>,
    backing: Arc<Backing>,
    journal: Arc<Journal>,
}

/// What all ports of a lane share.
pub struct Surroundings<'a> {
    /// The lane's workers, one at least.
    pub workers: &'a [Arc<Worker>],
    /// The folder of the journals.
    pub journals: &'a Path,
    /// A folder that only this lane may enter.
    pub private_dir: &'a Path,
    /// Where events go.
    pub events: &'a Arc<EventLog>,
    /// Where relays report what guests did.
    pub faults: &'a Sender<Fault>,
}

impl Port {
    /// Makes a port: opens the device, gives its queues to a worker and starts the session. When a step fails, those
    /// before it are undone.
    pub fn open(id: u64, spec: PortSpec, around: &Surroundings<'_>) -> Result<Self, Failure> {
        check(&spec)?;
        let journal = Journal::open(around.journals, &spec.name).map_err(|error| {
            let message =
                format!("port {}: cannot open its journal in {}: {error}", spec.name, around.journals.display());
            Failure { errno: error.raw_os_error(), ..Failure::new(FailureKind::Failed, message) }
        })?;
        let maker = Maker {
            id,
            journal: Arc::clone(&journal),
            workers: around.workers.to_vec(),
            faults: around.faults.clone(),
            private_dir: around.private_dir.into(),
        };
        let backing = Backing::open(Box::new(maker), &spec).map_err(|failure| named(&spec, failure))?;
        let backing = Arc::new(backing);
        let state = Arc::new(PortState::new(spec.name.clone(), spec.role, &backing, around.events));
        // From here on dropping the port undoes what was done.
        let config = session_config(&spec, around.private_dir);
        let (changing, session) = (Mutex::default(), Mutex::default());
        let port = Self { id, changing, spec: Mutex::new(spec.clone()), session, state, backing, journal };
        let session =
            Session::start(config, Arc::clone(&port.state) as _).map_err(|error| named(&spec, error.into()))?;
        *lock(&port.session) = Some(session);
        Ok(port)
    }

    /// What was asked for.
    pub fn spec(&self) -> PortSpec {
        lock(&self.spec).clone()
    }

    /// Its number in this lane.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its state, which events and faults reach.
    pub fn state(&self) -> &Arc<PortState> {
        &self.state
    }

    /// Its relays; none while the device moves the packets by itself.
    pub fn shares(&self) -> Option<Arc<Shares>> {
        self.backing.shares()
    }

    /// Looks at the device; `None` while somebody is at it. A vDPA device that is gone is let go of, and one that is back taken, by a thread of its own.
    pub fn look(&self) -> Option<Look> {
        self.state.look()
    }

    /// The port as it is now.
    pub fn status(&self) -> PortStatus {
        self.state.status(&self.spec())
    }

    /// Its counters, with the device's own when `extended`.
    pub fn counters(&self, extended: bool) -> PortCounters {
        let device = if extended { self.backing.extended_stats() } else { Vec::new() };
        PortCounters { device, ..self.journal.read() }
    }

    /// Changes it while it runs. On failure everything is as before.
    pub fn set(&self, change: &PortChange) -> Result<(), Failure> {
        let _changing = lock(&self.changing);
        let wanted = change.apply(&self.spec());
        check(&wanted)?;
        self.state.set(&wanted).map_err(|failure| named(&wanted, failure))?;
        if let Some(session) = &*lock(&self.session) {
            session.set_offer(wanted.compat, wanted.offloads, wanted.mtu);
        }
        *lock(&self.spec) = wanted;
        Ok(())
    }

    /// Takes it down, whoever may still look at it.
    pub fn close(&self) {
        // The session stops its rings through the state while the relays are still there.
        let session = lock(&self.session).take();
        drop(session);
        self.backing.close();
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.close();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is replaced as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives a device that runs another address and other filters, as far as they differ.
fn apply(device: &mut Device, wanted: &DeviceConfig) -> Result<(), DeviceError> {
    if wanted.promiscuous != device.config().promiscuous {
        device.set_promiscuous(wanted.promiscuous)?;
    }
    if wanted.allmulti != device.config().allmulti {
        device.set_allmulti(wanted.allmulti)?;
    }
    match wanted.mac {
        Some(mac) if mac != device.status().mac => device.set_mac(mac),
        _ => Ok(()),
    }
}

fn device_config(spec: &PortSpec) -> DeviceConfig {
    DeviceConfig {
        queues: spec.queues,
        mtu: spec.mtu,
        mac: spec.mac,
        promiscuous: spec.promiscuous,
        allmulti: spec.allmulti,
        offloads: spec.offloads,
        zero_copy: spec.zero_copy,
        zero_copy_from: spec.zero_copy_from,
    }
}

fn session_config(spec: &PortSpec, private_dir: &Path) -> SessionConfig {
    SessionConfig {
        name: spec.name.to_string(),
        socket: spec.socket.clone(),
        role: spec.role,
        owner: spec.socket_owner,
        mode: spec.socket_mode,
        compat: spec.compat,
        offloads: spec.offloads,
        mtu: spec.mtu,
        private_dir: private_dir.into(),
    }
}

/// What can be wrong with a spec whatever the machine.
fn check(spec: &PortSpec) -> Result<(), Failure> {
    let invalid = |what: String| Err(Failure::new(FailureKind::Invalid, format!("port {}: {what}", spec.name)));
    if !(1..=MAX_QUEUE_PAIRS).contains(&spec.queues) {
        return invalid(format!("queues is {}: choose 1 to {MAX_QUEUE_PAIRS}", spec.queues));
    }
    if !MTU_RANGE.contains(&spec.mtu) {
        return invalid(format!("mtu is {}: choose {} to {}", spec.mtu, MTU_RANGE.start(), MTU_RANGE.end()));
    }
    if spec.max_rate > MAX_RATE {
        return invalid(format!("max_rate is {}: it is at most {MAX_RATE} Mbit/s", spec.max_rate));
    }
    if spec.mode == Mode::Vdpa && !matches!(spec.device, DeviceSpec::VhostVdpa { .. }) {
        return invalid(format!("mode is vdpa and the device {}: name a vhost-vdpa:/dev/vhost-vdpa-N", spec.device));
    }
    match spec.mac.map(|mac| mac.unicast()) {
        Some(Err(error)) => invalid(error.to_string()),
        _ => Ok(()),
    }
}

/// The failure with the port's name in front.
fn named(spec: &PortSpec, failure: Failure) -> Failure {
    let prefix = format!("port {}: ", spec.name);
    if failure.message.starts_with(&prefix) {
        return failure;
    }
    Failure { message: prefix + &failure.message, ..failure }
}

/// The phase of a port whose front-end is not there.
fn waiting_phase(role: Role) -> ringspan_protocol::PortPhase {
    match role {
        Role::Server => ringspan_protocol::PortPhase::Listening,
        Role::Client => ringspan_protocol::PortPhase::Connecting,
    }
}
