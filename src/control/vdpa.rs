//! The vDPA devices of ports: made before a lane is given the port, taken away when the port is wanted no more.
//!
//! A lane knows a port by its node (`vhost-vdpa:/dev/vhost-vdpa-0`), the daemon by its management device (`vdpa:0000:0a:00.2`). Whoever holds
//! [`Daemon::vdpa`] takes no lane's `change`, and may take the desired ports.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ringspan_protocol::{DeviceSpec, LaneName, PortName, PortSpec};

use super::methods::device::{PATIENCE, one_at_a_time};
use super::{Daemon, locked, spawn};
use crate::error::Error;
use crate::host::vdpa::{self, Book, ForPort};

/// How often ports' devices are looked for, in sysfs and only while there are such ports.
const LOOK: Duration = Duration::from_millis(500);
/// After how many looks what could not be taken away is tried again.
const SWEEP: u32 = 20;

impl Daemon {
    /// A port as its lane is told: its vDPA device is there, and named by its node.
    pub(crate) fn for_lane(&self, spec: &PortSpec) -> Result<PortSpec, Error> {
        let DeviceSpec::Vdpa { management } = &spec.device else { return Ok(spec.clone()) };
        let _book = one_at_a_time(&self.vdpa, PATIENCE)?;
        let wanted = ForPort {
            port: spec.name.clone(),
            management: management.clone(),
            mac: spec.mac,
            mtu: spec.mtu,
            queues: spec.queues,
        };
        let made = vdpa::ensure(&self.host(), &*self.state_dir, &wanted)?;
        for done in &made.done {
            tracing::info!(port = %spec.name, "{done}");
        }
        Ok(PortSpec { device: DeviceSpec::VhostVdpa { path: made.node.into() }, ..spec.clone() })
    }

    /// Takes vDPA devices away that were made for ports which are not wanted any more. What is used stays until the next time.
    pub(crate) fn sweep_vdpa(&self) {
        let swept = self.try_sweep_vdpa();
        let (done, failed): (Vec<_>, Vec<_>) = match swept {
            Ok(each) => each.into_iter().partition(Result::is_ok),
            Err(error) => (vec![], vec![Err(error)]),
        };
        done.into_iter().flatten().for_each(|line| tracing::info!("{line}"));
        failed.into_iter().filter_map(Result::err).for_each(|error| tracing::warn!("a vDPA device stays: {error}"));
    }

    fn try_sweep_vdpa(&self) -> Result<Vec<Result<String, Error>>, Error> {
        if Book::load(&*self.state_dir)?.is_empty() {
            return Ok(vec![]);
        }
        let _book = one_at_a_time(&self.vdpa, PATIENCE)?;
        // Looked at while nobody makes one: who has begun to want one comes after this, and finds none.
        let wants = |name: &PortName| {
            let desired = locked(&self.desired);
            desired.ports.get(name).is_some_and(|port| matches!(port.spec.device, DeviceSpec::Vdpa { .. }))
        };
        vdpa::sweep(&self.host(), &*self.state_dir, wants)
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

/// Takes away what a daemon that was killed has left, and has devices made anew that others took away (a driver that was unbound, say). Nobody waits for
/// the end of it.
pub(super) fn watch(daemon: &Arc<Daemon>) {
    let daemon = Arc::downgrade(daemon);
    spawn("vdpa".into(), move || {
        let mut missing = BTreeMap::new();
        for round in 0u32.. {
            let Some(daemon) = daemon.upgrade().filter(|daemon| !daemon.is_ending()) else { return };
            if round % SWEEP == 0 {
                daemon.sweep_vdpa();
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
            std::thread::sleep(LOOK);
        }
    });
}
