//! What a port's backing is made of: the relays of a device of DPDK's, and the node of a vDPA device. Behind traits, so that tests can let each step fail.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam::channel::Sender;
use ringspan_protocol::{DeviceStatus, Failure, FailureKind, PortSpec};

use super::borrower::Borrower;
use super::{Shares, apply, device_config};
use crate::journal::Journal;
use crate::memory::GuestMap;
use crate::nic::{Device, DeviceConfig};
use crate::relay::{Common, Fault};
use crate::ring::{RecordHandle, Ring, RingConfig, RingLog};
use crate::vdpa::{Driver, Facts, Handover, Kernel, Node, Refusal};
use crate::worker::{Worker, WorkerError};

/// How long a vDPA device gets to send what it was given before it is taken from the relays: of the pause that a guest notices.
const SENT: Duration = Duration::from_millis(20);
/// Rounds in which relays take what is still in a device's rings: far more than there can be.
const ROUNDS: usize = 1024;

/// Opens what moves packets.
pub(super) trait Make: Send + Sync {
    /// Relays with the port's device; nothing is open on failure. With a vDPA device, of which the facts are, they are made ready, and move nothing before they
    /// are lent it.
    fn relays(&self, spec: &PortSpec, vdpa: Option<&Facts>) -> Result<Box<dyn Relays>, Failure>;
    /// The node of a vDPA device.
    fn node(&self, path: &Path, spec: &PortSpec) -> Result<Box<dyn Kernel>, Failure>;
    /// What outlives the lane of where a relay was in a ring is no longer so.
    fn forget(&self, ring: usize);
    /// Frames that relays gave a vDPA device were not sent by it when it was taken from them: they are counted.
    fn unsent(&self, frames: u64);
}

/// Relays that are open, and their device.
pub(super) trait Relays: Send {
    /// For those who look; `None` where tests stand in.
    fn shares(&self) -> Option<Arc<Shares>>;
    /// The device, for those who look.
    fn device(&self) -> &Arc<Open>;
    /// Starts a ring.
    fn start(&self, index: usize, config: RingConfig, map: Arc<GuestMap>) -> Started;
    /// Stops a ring. Where it stands, and how many pairs run; `None` when it did not run.
    fn stop(&self, index: usize) -> Option<(u16, u16)>;
    /// Running rings go on in another map of the same guest.
    fn remap(&self, map: Arc<GuestMap>);
    /// A running ring interrupts its guest by another descriptor.
    fn call(&self, index: usize, call: Option<Arc<OwnedFd>>);
    /// A running ring notes what it writes elsewhere, or nowhere.
    fn log(&self, index: usize, log: Option<RingLog>);
    /// Changes what can be changed while packets flow. On failure everything is as before.
    fn set(&self, wanted: &PortSpec, before: &PortSpec) -> Result<(), Failure>;
    /// Gives the relays the vDPA device that they were made for. What the device has of the guest's memory stays mapped.
    ///
    /// # Errors
    /// Why it does not take their rings, and the device.
    #[allow(clippy::result_large_err, reason = "not on the packet path")]
    fn lend(&self, device: Handover, guest: Option<Arc<GuestMap>>) -> Result<(), (Refusal, Handover)>;
    /// The vDPA device that they were lent is given the guest's memory, whose rings it is to have next, or keeps nothing of it.
    fn beside(&self, guest: Option<Arc<GuestMap>>);
    /// Takes the vDPA device from them, when it has sent what it was given: no ring of the guest's is drained any more. What it received has then gone to the guest.
    /// How many frames it had not sent is with it.
    fn take(&self) -> Option<(Handover, u64)>;
    /// Takes the relays from their workers and closes the device, whoever looks at it.
    fn close(self: Box<Self>);
}

/// What a ring's start led to.
pub(super) enum Started {
    /// So many pairs run.
    Pairs(u16),
    /// The ring is broken.
    Broken(String),
}

/// A device that others may look at while it is open. Held by nobody for longer than a call of the driver's takes, and by no session.
pub(super) struct Open {
    state: Mutex<State>,
    /// Where the driver's device is a vDPA device, of whose link it knows nothing.
    vdpa: Option<Arc<Driver>>,
}

enum State {
    Open(Box<Device>),
    /// As it was last.
    Closed(Box<DeviceStatus>),
}

impl Open {
    /// One that is closed.
    #[cfg(test)]
    pub fn closed(status: DeviceStatus, vdpa: Option<Arc<Driver>>) -> Self {
        Self { state: Mutex::new(State::Closed(Box::new(status))), vdpa }
    }

    /// What it is like.
    pub fn status(&self) -> DeviceStatus {
        match &*self.lock() {
            State::Open(device) => match self.vdpa.as_ref().map(|driver| driver.link()) {
                Some(link) => {
                    let (link_up, speed_mbps) = link.unwrap_or_default();
                    DeviceStatus { link_up, speed_mbps, ..device.status() }
                }
                None => device.status(),
            },
            State::Closed(status) => (**status).clone(),
        }
    }

    /// The driver's own counters.
    pub fn extended_stats(&self) -> Vec<(String, u64)> {
        match &*self.lock() {
            State::Open(device) => device.extended_stats(),
            State::Closed(_) => Vec::new(),
        }
    }

    /// Whether the link is up and whether the device, or one of a bond's, is gone; `None` while somebody is at it.
    pub fn look(&self) -> Option<(bool, bool)> {
        match (&*self.state.try_lock().ok()?, &self.vdpa) {
            (State::Open(_), Some(driver)) => Some((driver.link().unwrap_or_default().0, driver.gone())),
            (State::Open(device), None) => {
                // Of a bond the others go on, but the kernel waits until this one is let go of, too.
                let gone = device.removed() || device.members().iter().any(|member| member.removed);
                Some((device.link().up, gone))
            }
            (State::Closed(_), _) => None,
        }
    }

    /// Why a vDPA device moves nothing although these relays have it; asks nobody.
    pub fn failed(&self) -> Option<String> {
        self.vdpa.as_ref().and_then(|driver| driver.failed())
    }

    fn close(&self) {
        let mut state = self.lock();
        if let State::Open(device) = &*state {
            let status = DeviceStatus { link_up: false, ..device.status() };
            *state = State::Closed(Box::new(status));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in here ends the lane.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes relays on this lane's workers.
pub(super) struct Maker {
    pub id: u64,
    pub journal: Arc<Journal>,
    pub workers: Vec<Arc<Worker>>,
    pub faults: Sender<Fault>,
    /// A folder that only this lane may enter.
    pub private_dir: PathBuf,
}

impl Make for Maker {
    fn relays(&self, spec: &PortSpec, vdpa: Option<&Facts>) -> Result<Box<dyn Relays>, Failure> {
        let (borrower, (device, queues)) = match vdpa {
            Some(facts) => {
                let borrower = Borrower::start(self.id, &self.private_dir, spec, facts)?;
                let opened = borrower.open(spec)?;
                (Some(borrower), opened)
            }
            None => (None, Device::open(&spec.device, &device_config(spec))?),
        };
        let common = Common::new(self.id, Arc::clone(&self.journal), self.faults.clone());
        common.limit(spec.max_rate);
        let limits = Arc::clone(&common);
        let pool = device.pool().clone();
        let (node, lending) = (device.node(), device.lending().clone());
        let shares = Shares::new(common, self.workers.clone(), queues, pool, spec.mtu, node, lending)?;
        let vdpa = borrower.as_ref().map(|borrower| Arc::clone(borrower.driver()));
        let device = Arc::new(Open { state: Mutex::new(State::Open(Box::new(device))), vdpa });
        Ok(Box::new(Relaying { shares: Arc::new(shares), device, limits, port: spec.name.to_string(), borrower }))
    }

    fn node(&self, path: &Path, spec: &PortSpec) -> Result<Box<dyn Kernel>, Failure> {
        let node = Node::open(path).map_err(|error| Failure {
            errno: error.errno(),
            ..Failure::new(error.kind(), format!("device {}: {error}", spec.device))
        })?;
        Ok(Box::new(node))
    }

    fn forget(&self, ring: usize) {
        RecordHandle::new(Arc::clone(&self.journal) as _, ring).forget();
    }

    fn unsent(&self, frames: u64) {
        self.journal.unsent(frames);
    }
}

struct Relaying {
    shares: Arc<Shares>,
    device: Arc<Open>,
    /// Where its relays look for its rates.
    limits: Arc<Common>,
    port: String,
    /// Of a vDPA device; ends after the device is closed, which tells it so.
    borrower: Option<Borrower>,
}

// An error of the shares means that the lane is stopping, and its rings with it.
impl Relays for Relaying {
    fn shares(&self) -> Option<Arc<Shares>> {
        Some(Arc::clone(&self.shares))
    }

    fn device(&self) -> &Arc<Open> {
        &self.device
    }

    fn start(&self, index: usize, mut config: RingConfig, map: Arc<GuestMap>) -> Started {
        config.record = Some(self.shares.record(index));
        config.memory = map.file_at(config.desc.0);
        match Ring::new(map, &config) {
            Ok(ring) => {
                let parts = [config.desc.0, config.avail.0, config.used.0];
                Started::Pairs(self.shares.start(index, ring, parts).unwrap_or(0))
            }
            Err(error) => Started::Broken(error.to_string()),
        }
    }

    fn stop(&self, index: usize) -> Option<(u16, u16)> {
        self.shares.stop(index).ok().flatten()
    }

    fn remap(&self, map: Arc<GuestMap>) {
        if let Some(borrower) = &self.borrower {
            borrower.driver().guest_memory(Arc::clone(&map));
        }
        drop(self.shares.remap(map));
    }

    fn call(&self, index: usize, call: Option<Arc<OwnedFd>>) {
        drop(self.shares.set_call(index, call));
    }

    fn log(&self, index: usize, log: Option<RingLog>) {
        drop(self.shares.set_log(index, log));
    }

    fn set(&self, wanted: &PortSpec, before: &PortSpec) -> Result<(), Failure> {
        let mut state = self.device.lock();
        let State::Open(device) = &mut *state else { return Ok(()) };
        let config = match &self.borrower {
            Some(borrower) => borrower.config(wanted)?,
            None => device_config(wanted),
        };
        let changed = if wanted.mtu != device.config().mtu {
            self.reconfigure(device, &config)
        } else {
            adjust(device, &config, &self.port)
        };
        changed.map_err(|failure| match &self.borrower {
            Some(borrower) => borrower.of_device(failure),
            None => failure,
        })?;
        drop(state);
        if wanted.max_rate != before.max_rate {
            self.limits.limit(wanted.max_rate);
        }
        Ok(())
    }

    #[allow(clippy::result_large_err, reason = "not on the packet path")]
    fn lend(&self, device: Handover, guest: Option<Arc<GuestMap>>) -> Result<(), (Refusal, Handover)> {
        match &self.borrower {
            Some(borrower) => borrower.driver().lend(device, guest),
            None => Err((Refusal::Queues { ring: 0, pairs: 0 }, device)),
        }
    }

    fn beside(&self, guest: Option<Arc<GuestMap>>) {
        let Some(borrower) = &self.borrower else { return };
        match guest {
            Some(guest) => borrower.driver().keep_guest(guest),
            None => borrower.driver().drop_guest(),
        }
    }

    fn take(&self) -> Option<(Handover, u64)> {
        let driver = self.borrower.as_ref()?.driver();
        let waiting = driver.sent(SENT);
        let device = driver.take()?;
        // What it has sent by the time that it was stopped.
        let left = if waiting > 0 { driver.sent(Duration::ZERO) } else { 0 };
        drop(self.shares.run_dry(ROUNDS));
        Some((device, left))
    }

    fn close(self: Box<Self>) {
        if let Err(error) = self.shares.close() {
            tracing::warn!(port = self.port, %error, "the relays were not taken back");
        }
        self.device.close();
    }
}

impl Relaying {
    /// The device is stopped for it, so its queues come back from the workers first, and go there again whatever happens.
    fn reconfigure(&self, device: &mut Device, wanted: &DeviceConfig) -> Result<(), Failure> {
        let before = device.config().mtu;
        let queues = self.shares.take_queues()?;
        let (queues, mtu, outcome) = match device.reconfigure(queues, wanted) {
            Ok(queues) => (queues, wanted.mtu, Ok(())),
            Err((error, queues)) => (queues, before, Err(error.into())),
        };
        self.shares.give_queues(queues, device.pool().clone(), mtu, device.lending().clone())?;
        outcome
    }
}

/// Changes the address and the filters while packets flow.
fn adjust(device: &mut Device, wanted: &DeviceConfig, port: &str) -> Result<(), Failure> {
    let before = *device.config();
    let address = device.status().mac;
    apply(device, wanted).inspect_err(|_| {
        let before = DeviceConfig { mac: Some(address), ..before };
        if let Err(error) = apply(device, &before) {
            tracing::warn!(port, %error, "a refused change could not be taken back");
        }
    })?;
    Ok(())
}

impl From<WorkerError> for Failure {
    fn from(error: WorkerError) -> Self {
        Failure::new(FailureKind::Failed, error.to_string())
    }
}
