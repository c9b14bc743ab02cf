//! The daemon: what it holds, and what its parts do to one another.
//!
//! `socket` accepts and bounds connections, `connection` reads requests, `methods` answers them, `events` and `jobs` are what
//! they follow, `reload` applies the file again, `bonds` tells of failovers, `vdpa` makes ports' devices.

mod bonds;
mod connection;
#[cfg(test)]
mod docs;
mod engine;
mod events;
mod jobs;
mod methods;
mod nic_watch;
mod peer;
mod reload;
mod schema;
mod socket;
#[cfg(test)]
mod tests;
mod vdpa;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::Flock;
use ringspan_protocol::LaneName;

pub(crate) use events::{EventKind, EventLog};
pub(crate) use jobs::{Job, JobState, Jobs};
pub(crate) use methods::attach::{Attached, Entry as AttachmentEntry};
pub(crate) use methods::attach_stats::GuestStats;
pub(crate) use methods::host::{PlanOf, plan_of};
pub(crate) use methods::nic::NicEntry;
pub(crate) use methods::ovs::Shown;
pub(crate) use methods::port::{PortEntry, PortStats};
pub(crate) use methods::rule::RuleEntry;
pub(crate) use socket::Listener;

use crate::attach::Attachments;
use crate::config::{Config, HostCores, LogFormat};
use crate::desired::{Desired, Room};
use crate::error::Error;
use crate::lanes::{self, Lane, LanePhase, Order, Wanted};
use crate::ovs::client::Place;
use crate::ovs::mirror::{self, Mirror};
use crate::state::{StateDir, lock_folder};

/// Stack of the daemon's threads, in bytes: there may be a thousand, and none recurses deeply.
const STACK: usize = 512 << 10;

/// Starts a thread of the daemon. Running out of threads ends only what it was for.
pub(crate) fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> Option<JoinHandle<()>> {
    match std::thread::Builder::new().name(name.clone()).stack_size(STACK).spawn(work) {
        Ok(handle) => Some(handle),
        Err(error) => {
            tracing::error!("no thread for {name}: {error}");
            None
        }
    }
}

/// How the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Lanes go on.
    LeaveLanes,
    /// Lanes are shut down.
    StopLanes,
}

/// The daemon.
pub(crate) struct Daemon {
    /// What happened.
    pub(crate) events: EventLog,
    /// Slow work.
    pub(crate) jobs: Arc<Jobs>,
    state_dir: Arc<StateDir>,
    run_lock: Mutex<Option<Flock<File>>>,
    config: Mutex<Config>,
    desired: Mutex<Desired>,
    lanes: RwLock<BTreeMap<LaneName, Arc<Lane>>>,
    keepers: Mutex<Vec<JoinHandle<()>>>,
    /// OVS's flows, as they are and as NICs have them.
    mirror: Mirror,
    /// Guests' NICs.
    pub(crate) attachments: Attachments,
    /// The vDPA devices of ports.
    vdpa: Arc<vdpa::Devices>,
    /// Set when it ends.
    ending: AtomicBool,
    cores: HostCores,
    set_log: Box<dyn Fn(crate::config::LogLevel) + Send + Sync>,
    end: Box<dyn Fn(Ending) + Send + Sync>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Daemon {
    /// Reads the state and works out what should be. Nothing runs yet.
    pub(crate) fn new(
        config: Config,
        cores: HostCores,
        set_log: impl Fn(crate::config::LogLevel) + Send + Sync + 'static,
        end: impl Fn(Ending) + Send + Sync + 'static,
    ) -> Result<Arc<Self>, Error> {
        let state_dir = Arc::new(StateDir::open(&config.control.state_dir)?);
        let saved = state_dir.load()?;
        let attachments = Attachments::load(Arc::clone(&state_dir))?;
        let run_dir = &config.control.run_dir;
        std::fs::create_dir_all(run_dir).map_err(|error| Error::io(run_dir.display(), &error))?;
        // Two daemons would adopt the same lanes, and each take away the ports that the other wants.
        let run_lock = lock_folder(run_dir, "daemon.lock", "control.run_dir")?;
        let mut lanes = BTreeMap::new();
        for settings in &config.lanes {
            lanes.insert(settings.name.clone(), Lane::new(settings.name.clone(), run_dir, Some(settings.clone()))?);
        }
        for name in lanes::found_in(run_dir) {
            if !lanes.contains_key(&name) {
                lanes.insert(name.clone(), Lane::new(name, run_dir, None)?);
            }
        }
        let mirror = mirror::Settings {
            place: Place::new(config.ovs.run_dir.as_deref()),
            max_flows: config.ovs.max_flows,
            grace: config.ovs.grace,
            kernel_tunnels: config.ovs.kernel_tunnels,
            raised: crate::ovs::max_idle::RAISED,
        };
        let daemon = Self {
            events: EventLog::new(Arc::clone(&state_dir)),
            jobs: Arc::default(),
            state_dir,
            run_lock: Mutex::new(Some(run_lock)),
            config: Mutex::new(config.clone()),
            desired: Mutex::default(),
            lanes: RwLock::new(lanes),
            keepers: Mutex::default(),
            mirror: Mirror::new(mirror),
            attachments,
            vdpa: Arc::default(),
            ending: AtomicBool::new(false),
            cores,
            set_log: Box::new(set_log),
            end: Box::new(end),
        };
        let desired = Desired::build(&config, &saved, &daemon.room(&config));
        for aside in &desired.aside {
            tracing::warn!(port = %aside.spec.name, "{}", aside.reason);
        }
        if desired.saved() != saved {
            daemon.state_dir.save(&desired.saved())?;
        }
        *locked(&daemon.desired) = desired;
        Ok(Arc::new(daemon))
    }

    /// Sets the lanes going.
    pub(crate) fn start(self: &Arc<Self>) {
        self.events.tell(None, None, EventKind::DaemonStarted { version: env!("CARGO_PKG_VERSION").into() });
        let aside = locked(&self.desired).aside.clone();
        for port in aside {
            self.events.tell(
                port.lane.as_ref(),
                Some(&port.spec.name),
                EventKind::ConfigConflict { message: port.reason.message },
            );
        }
        for lane in self.all_lanes() {
            self.retire(&lane);
            self.keep(lane);
        }
        bonds::watch(self);
        vdpa::watch(self);
        let weak = Arc::downgrade(self);
        // Nobody waits for its end: it sees by itself that the daemon ends.
        spawn("host".into(), move || methods::host::keep_applied(&weak));
        let mirror = self.mirror.start(engine::Lanes::watching(self));
        locked(&self.keepers).extend(mirror);
        let weak = Arc::downgrade(self);
        let keeping = spawn("attachments".into(), move || methods::attach_keep::keep(&weak));
        locked(&self.keepers).extend(keeping);
    }

    fn keep(self: &Arc<Self>, lane: Arc<Lane>) {
        let daemon = Arc::clone(self);
        let keeper = spawn(format!("lane-{}", lane.name), move || lanes::keep(lane, daemon));
        locked(&self.keepers).extend(keeper);
    }

    /// Whether anything is wanted on a lane, or somebody is adding it at this moment.
    pub(crate) fn needs(&self, lane: &LaneName) -> bool {
        locked(&self.desired).needs(lane)
    }

    /// A lane that the file does not have and no port needs is shut down.
    fn retire(&self, lane: &Lane) {
        if lane.settings().is_none() && !self.needs(&lane.name) {
            lane.order(Order::Stop);
        }
    }

    /// Ends what [`Daemon::start`] set going, and waits for it.
    pub(crate) fn stop(&self, ending: Ending) {
        // Who waits for events looks at this first.
        self.ending.store(true, Ordering::Relaxed);
        self.events.tell(None, None, EventKind::DaemonStopping);
        // A keeper may be waiting for a device; that the daemon ends must not wait for it.
        let (order, limit) = match ending {
            Ending::LeaveLanes => (Order::Leave, Duration::from_secs(2)),
            Ending::StopLanes => (Order::Stop, Duration::from_secs(25)),
        };
        self.mirror.end();
        for lane in self.all_lanes() {
            lane.order(order);
        }
        let keepers = std::mem::take(&mut *locked(&self.keepers));
        let until = Instant::now() + limit;
        while keepers.iter().any(|keeper| !keeper.is_finished()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.events.close();
        self.state_dir.release();
        locked(&self.run_lock).take();
    }

    /// Whether it ends.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// What a lane should have.
    pub(crate) fn wanted_on(&self, lane: &LaneName) -> Wanted {
        locked(&self.desired).wanted_on(lane)
    }

    /// Removes the journals of ports that are wanted nowhere. Held meanwhile: nobody begins to want one of them.
    pub(crate) fn forget_journals(&self) {
        let run_dir = locked(&self.config).control.run_dir.clone();
        let desired = locked(&self.desired);
        let is_aside = |name: &_| desired.aside.iter().any(|port| port.spec.name == *name);
        lanes::forget_journals(&run_dir, |name| desired.ports.contains_key(name) || is_aside(name));
    }

    /// The configured lane program, and the lanes' log format.
    pub(crate) fn lane_program(&self) -> (Option<PathBuf>, LogFormat) {
        let config = locked(&self.config);
        (config.control.lane_program.clone(), config.log.format)
    }

    fn all_lanes(&self) -> Vec<Arc<Lane>> {
        let lanes = self.lanes.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        lanes.values().cloned().collect()
    }

    fn lane(&self, name: &LaneName) -> Result<Arc<Lane>, Error> {
        let lanes = self.lanes.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        lanes.get(name).cloned().ok_or_else(|| {
            let known = lanes.keys().map(LaneName::as_str).collect::<Vec<_>>().join(", ");
            let message = format!("there is no lane {name}: there are {known}");
            Error::new(crate::error::ErrorKind::NotFound, message).about(name)
        })
    }

    /// The configured lanes, and how many ports each can have.
    fn room(&self, config: &Config) -> Room {
        let most = |name: &LaneName| self.lane(name).map_or(32, |lane| lane.max_ports());
        config.lanes.iter().map(|lane| (lane.name.clone(), most(&lane.name))).collect()
    }

    /// Replaces the lanes: adds what is new, forgets what has stopped and is in no file.
    fn set_lanes(self: &Arc<Self>, config: &Config) -> Result<(), Error> {
        let mut started = Vec::new();
        {
            let mut lanes = self.lanes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            lanes.retain(|name, lane| config.lane(name).is_some() || lane.phase() != LanePhase::Stopped);
            for settings in &config.lanes {
                match lanes.get(&settings.name) {
                    Some(lane) if lane.phase() != LanePhase::Stopped => lane.set_settings(Some(settings.clone())),
                    _ => {
                        let run_dir = &config.control.run_dir;
                        let lane = Lane::new(settings.name.clone(), run_dir, Some(settings.clone()))?;
                        lanes.insert(settings.name.clone(), Arc::clone(&lane));
                        started.push(lane);
                    }
                }
            }
            for (name, lane) in lanes.iter() {
                if config.lane(name).is_none() {
                    lane.set_settings(None);
                }
            }
        }
        for lane in started {
            self.keep(lane);
        }
        Ok(())
    }
}
