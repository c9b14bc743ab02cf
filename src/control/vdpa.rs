//! The vDPA devices of ports: made before a lane is given the port, taken away when the port is wanted no more.
//!
//! A lane knows a port by its node (`vhost-vdpa:/dev/vhost-vdpa-0`), the daemon by its management device (`vdpa:0000:0a:00.2`). The kernel may take a
//! minute to make a device, and answers nobody else about vDPA meanwhile: only who asks for such a port waits for that, and a thread of its own. A lane's
//! keeper takes what that thread has found out ([`Daemon::known_for_lane`]) and is told when there is more, so that no other port waits. Whoever holds
//! [`Devices::book`] takes no lane's `change`, and may take the desired ports.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ringspan_protocol::{DeviceSpec, LaneName, PortName, PortSpec};

use super::methods::device::{PATIENCE, one_at_a_time};
use super::{Daemon, locked, spawn};
use crate::error::Error;
use crate::host::vdpa::{self, Book, ForPort};

/// How often ports' devices are looked for, in sysfs and only while there are such ports. A device that was refused is not asked for again sooner.
const LOOK: Duration = Duration::from_millis(500);
/// After how long what could not be taken away is tried again.
const SWEEP: Duration = Duration::from_secs(10);

/// What is known of ports' devices, and what is to be done about them.
#[derive(Default)]
pub(super) struct Devices {
    /// Held while devices are made or taken away, with what is written down of them. Each question to the kernel has a limit, so it is given back.
    pub(super) book: Mutex<()>,
    /// Held for no question to the kernel.
    work: Mutex<Work>,
    /// There is something to do.
    asked: Condvar,
}

#[derive(Default)]
struct Work {
    known: BTreeMap<PortName, Known>,
    /// Ports whose devices are to be made, with their lanes.
    make: BTreeMap<PortName, LaneName>,
    /// Whether devices are to be taken away.
    sweep: bool,
}

/// What came of making a port's device.
struct Known {
    of: ForPort,
    /// Its node.
    made: Result<String, Error>,
    at: Instant,
}

impl Devices {
    fn learn(&self, of: ForPort, made: Result<String, Error>) {
        let known = Known { of, made, at: Instant::now() };
        locked(&self.work).known.insert(known.of.port.clone(), known);
    }

    /// Waits until there is something to do, at most so long.
    fn wait(&self, limit: Duration) {
        let work = locked(&self.work);
        let idle = |work: &mut Work| work.make.is_empty() && !work.sweep;
        drop(self.asked.wait_timeout_while(work, limit, idle));
    }
}

/// What a port wants of its device; none: it is on no such device.
fn wanted_by(spec: &PortSpec) -> Option<ForPort> {
    let DeviceSpec::Vdpa { management } = &spec.device else { return None };
    Some(ForPort {
        port: spec.name.clone(),
        management: management.clone(),
        mac: spec.mac,
        mtu: spec.mtu,
        queues: spec.queues,
    })
}

fn on_node(spec: &PortSpec, node: &str) -> PortSpec {
    PortSpec { device: DeviceSpec::VhostVdpa { path: node.into() }, ..spec.clone() }
}

impl Daemon {
    /// A port as its lane is told: its vDPA device is made, and named by its node. Waits for the kernel where the port is on such a device.
    pub(crate) fn for_lane(&self, spec: &PortSpec) -> Result<PortSpec, Error> {
        let Some(wanted) = wanted_by(spec) else { return Ok(spec.clone()) };
        let book = one_at_a_time(&self.vdpa.book, PATIENCE)?;
        let node = self.make_vdpa(&wanted, &book)?;
        let told = on_node(spec, &node);
        self.vdpa.learn(wanted, Ok(node));
        Ok(told)
    }

    fn make_vdpa(&self, wanted: &ForPort, _book: &MutexGuard<'_, ()>) -> Result<String, Error> {
        let made = vdpa::ensure(&self.host(), &*self.state_dir, wanted)?;
        for done in &made.done {
            tracing::info!(port = %wanted.port, "{done}");
        }
        Ok(made.node)
    }

    /// The same from what is known, and without waiting for the kernel. None: it is not known; [`Daemon::ask_for_vdpa`] has it found out.
    pub(crate) fn known_for_lane(&self, spec: &PortSpec) -> Option<Result<PortSpec, Error>> {
        let Some(wanted) = wanted_by(spec) else { return Some(Ok(spec.clone())) };
        let made = {
            let work = locked(&self.vdpa.work);
            work.known.get(&spec.name).filter(|known| known.of == wanted)?.made.clone()
        };
        match made {
            // Another device may have that number by now.
            Ok(node) if vdpa::node_of(&self.host(), &spec.name).as_ref() != Some(&node) => None,
            made => Some(made.map(|node| on_node(spec, &node))),
        }
    }

    /// Has devices of a lane's ports made, or tried again; the lane is told to look again when something comes of it. And has those taken away that are
    /// wanted no more. Waits for nothing.
    pub(crate) fn ask_for_vdpa(&self, lane: &LaneName, ports: impl IntoIterator<Item = PortName>) {
        let mut work = locked(&self.vdpa.work);
        work.sweep = true;
        for port in ports {
            let fresh = work.known.get(&port).is_some_and(|known| known.made.is_err() && known.at.elapsed() < LOOK);
            if !fresh {
                work.make.insert(port, lane.clone());
            }
        }
        self.vdpa.asked.notify_all();
    }

    /// Makes the device of a port that is wanted still. A refusal that is known already is no news for its lane.
    fn find_out(&self, port: &PortName, lane: &LaneName) {
        let news = {
            let book = locked(&self.vdpa.book);
            let wanted = locked(&self.desired).ports.get(port).and_then(|port| wanted_by(&port.spec));
            let Some(wanted) = wanted else { return };
            let made = self.make_vdpa(&wanted, &book);
            let told = |known: &Known| known.of == wanted && made.is_err() && known.made == made;
            let told = locked(&self.vdpa.work).known.get(port).is_some_and(told);
            self.vdpa.learn(wanted, made);
            !told
        };
        if news && let Ok(lane) = self.lane(lane) {
            lane.look_again();
        }
    }

    /// Takes vDPA devices away that were made for ports which are not wanted any more. What is used stays until the next time.
    pub(crate) fn sweep_vdpa(&self) {
        tell(one_at_a_time(&self.vdpa.book, PATIENCE).and_then(|book| self.swept(&book)));
    }

    fn swept(&self, _book: &MutexGuard<'_, ()>) -> Result<Vec<Result<String, Error>>, Error> {
        if Book::load(&*self.state_dir)?.is_empty() {
            return Ok(vec![]);
        }
        // Looked at while nobody makes one: who has begun to want one comes after this, and finds none.
        let wants = |name: &PortName| {
            let desired = locked(&self.desired);
            desired.ports.get(name).is_some_and(|port| matches!(port.spec.device, DeviceSpec::Vdpa { .. }))
        };
        let swept = vdpa::sweep(&self.host(), &*self.state_dir, wants);
        locked(&self.vdpa.work).known.retain(|name, _| wants(name));
        swept
    }

    /// The ports whose vDPA device is not there, although it was made.
    fn without_vdpa(&self) -> BTreeMap<PortName, LaneName> {
        let ports = locked(&self.desired).ports.clone();
        let wants = ports.into_iter().filter(|(_, port)| matches!(port.spec.device, DeviceSpec::Vdpa { .. }));
        let wants: Vec<_> = wants.filter(|(_, port)| !port.pending).collect();
        if wants.is_empty() {
            return BTreeMap::new();
        }
        let host = self.host();
        let gone = wants.into_iter().filter(|(name, _)| !vdpa::is_made(&host, name));
        gone.map(|(name, port)| (name, port.lane)).collect()
    }
}

/// Tells what came of taking devices away.
fn tell(swept: Result<Vec<Result<String, Error>>, Error>) {
    for one in swept.unwrap_or_else(|error| vec![Err(error)]) {
        match one {
            Ok(line) => tracing::info!("{line}"),
            Err(error) => tracing::warn!("a vDPA device stays: {error}"),
        }
    }
}

/// Makes what lanes ask for, takes away what a daemon that was killed has left, and has devices made anew that others took away (a driver that was unbound,
/// say). Nobody waits for the end of it.
pub(super) fn watch(daemon: &Arc<Daemon>) {
    let (devices, daemon) = (Arc::clone(&daemon.vdpa), Arc::downgrade(daemon));
    spawn("vdpa".into(), move || {
        let (mut missing, mut swept) = (BTreeMap::new(), None::<Instant>);
        loop {
            let Some(daemon) = daemon.upgrade().filter(|daemon| !daemon.is_ending()) else { return };
            let (make, sweep) = {
                let mut work = locked(&devices.work);
                (std::mem::take(&mut work.make), std::mem::take(&mut work.sweep))
            };
            // First: one device may have to go before another is made.
            if sweep || swept.is_none_or(|at| at.elapsed() >= SWEEP) {
                tell(daemon.swept(&locked(&devices.book)));
                swept = Some(Instant::now());
            }
            for (port, lane) in &make {
                daemon.find_out(port, lane);
            }
            let now = daemon.without_vdpa();
            for (port, lane) in now.iter().filter(|(port, _)| !missing.contains_key(*port)) {
                tracing::debug!(%port, "its vDPA device is not there");
                if let Ok(lane) = daemon.lane(lane) {
                    lane.look_again();
                }
            }
            missing = now;
            drop(daemon);
            devices.wait(LOOK);
        }
    });
}
