//! The configuration file read again: only what differs is changed, and a refused file changes nothing.

use std::sync::Arc;

use super::jobs::{Cancel, Job};
use super::{Daemon, EventKind, locked};
use crate::config::{self, Config};
use crate::desired::{Desired, Origin};
use crate::error::{Error, ErrorKind};
use crate::lanes::{self, LanePhase, Order};

impl Daemon {
    /// Starts the job `config.reload`.
    pub(crate) fn start_reload(self: &Arc<Self>) -> Result<Job, Error> {
        let daemon = Arc::clone(self);
        self.jobs.start("config.reload", None, move |cancel| {
            daemon.reload(cancel).inspect_err(|error| {
                tracing::error!("the configuration was not changed: {error}");
                daemon.events.tell(None, None, EventKind::ConfigRefused { message: error.message.clone() });
            })
        })
    }

    fn reload(self: &Arc<Self>, cancel: &Cancel) -> Result<Vec<String>, Error> {
        let old = locked(&self.config).clone();
        let invalid = |error: config::ConfigError| Error::new(ErrorKind::Invalid, error.to_string());
        let new = config::load(&old.file, &self.cores).map_err(invalid)?;
        cancel.check()?;
        let fixed = fixed_keys(&old, &new);
        let mut outcome: Vec<_> = fixed
            .iter()
            .map(|key| format!("{key} differs: it takes effect when the daemon is started again"))
            .collect();
        // What cannot change while running stays as it is, in what we compare with next time too.
        let new = Config { control: old.control.clone(), ..new };

        self.check_reload(&new)?;
        self.set_lanes(&new)?;
        let (before, after) = self.replace_desired(&new)?;
        *locked(&self.config) = new.clone();
        if old.log.level != new.log.level {
            (self.set_log)(new.log.level);
            outcome.push(format!("log.level is now {:?}", new.log.level).to_lowercase());
        }
        let lanes_changed = describe_lanes(&old, &new);
        let mut ports_changed = describe_nics(&before, &after);
        ports_changed.extend(describe_ports(&before, &after));
        let changes = lanes_changed.len() + ports_changed.len();
        outcome.extend(lanes_changed);
        outcome.extend(ports_changed);
        self.apply(&before, &after);
        outcome.extend(self.refusals(&after));
        self.events.tell(None, None, EventKind::ConfigReloaded { changes });
        for aside in after.aside.iter().filter(|aside| !before.aside.contains(aside)) {
            let (lane, port) = (aside.lane.as_ref(), &aside.spec.name);
            let message = aside.reason.message.clone();
            outcome.push(message.clone());
            self.events.tell(lane, Some(port), EventKind::ConfigConflict { message });
        }
        tracing::info!(changes, "the configuration was read again");
        Ok(outcome)
    }

    /// The ports as the new file would have them, given those of now. Refused when a run-time port would have to go.
    fn rebuilt(&self, desired: &Desired, new: &Config) -> Result<Desired, Error> {
        let mut after = Desired::build(new, &desired.saved(), &self.room(new));
        // Ports that are being added right now are in no file and not saved, but have their claims.
        for (name, port) in desired.ports.iter().filter(|(_, port)| port.pending) {
            after.claim(&port.spec, &port.lane)?;
            after.ports.insert(name.clone(), port.clone());
        }
        let stays = |name| after.ports.contains_key(name);
        let runs = desired.ports.iter().filter(|(_, port)| port.origin == Origin::RunTime);
        for (name, port) in runs {
            let same = after.ports.get(name).is_some_and(|new| new.spec == port.spec);
            if !stays(name) || !same {
                let reason = after.aside.iter().find(|aside| aside.spec.name == *name);
                let reason =
                    reason.map_or_else(|| "it clashes with the file".into(), |aside| aside.reason.message.clone());
                let message = format!("the run-time port {name} would have to give way: {reason}");
                return Err(Error::new(ErrorKind::Conflict, message).about(name));
            }
        }
        Ok(after)
    }

    fn check_reload(&self, new: &Config) -> Result<(), Error> {
        self.rebuilt(&locked(&self.desired), new).map(drop)
    }

    fn replace_desired(&self, new: &Config) -> Result<(Desired, Desired), Error> {
        let mut desired = locked(&self.desired);
        let after = self.rebuilt(&desired, new)?;
        self.state_dir.save(&after.saved())?;
        let before = std::mem::replace(&mut *desired, after.clone());
        Ok((before, after))
    }

    /// What the lanes refused of it; it is tried again.
    fn refusals(&self, after: &Desired) -> Vec<String> {
        let refused = after.ports.iter().filter_map(|(name, port)| {
            let error = self.lane(&port.lane).ok()?.refusal(name)?;
            Some(format!("port {name} was refused: {error}"))
        });
        refused.collect()
    }

    /// Lanes that lose ports come first, so that sockets and devices are free where they go.
    fn apply(&self, before: &Desired, after: &Desired) {
        let loses = |lane: &lanes::Lane| {
            before.ports.iter().any(|(name, port)| {
                port.lane == lane.name && after.ports.get(name).is_none_or(|now| now.lane != port.lane)
            })
        };
        let mut lanes = self.all_lanes();
        lanes.sort_by_key(|lane| !loses(lane));
        for lane in lanes {
            let (was, is) = (before.wanted_on(&lane.name), after.wanted_on(&lane.name));
            let differs = was.ports != is.ports || was.nics != is.nics;
            if after.needs(&lane.name) && lane.phase() == LanePhase::Idle {
                lane.bring_up();
            } else if differs && lane.phase() == LanePhase::Up {
                lanes::apply(&lane, self);
                lane.look_again();
            }
            if lane.settings().is_none() && !after.needs(&lane.name) {
                lane.order(Order::Stop);
            }
        }
    }
}

/// Keys of `[control]`, `[log]` and `[ovs]` that only a start of the daemon reads.
fn fixed_keys(old: &Config, new: &Config) -> Vec<&'static str> {
    let (a, b) = (&old.control, &new.control);
    let same = [
        ("control.socket", a.socket == b.socket),
        ("control.socket_mode", a.socket_mode == b.socket_mode),
        ("control.state_dir", a.state_dir == b.state_dir),
        ("control.run_dir", a.run_dir == b.run_dir),
        ("control.group", a.group == b.group),
        ("control.readers", a.readers == b.readers),
        ("control.lane_program", a.lane_program == b.lane_program),
        ("log.format", old.log.format == new.log.format),
        ("ovs.run_dir", old.ovs.run_dir == new.ovs.run_dir),
        ("ovs.max_flows", old.ovs.max_flows == new.ovs.max_flows),
        ("ovs.grace_ms", old.ovs.grace == new.ovs.grace),
        ("ovs.kernel_tunnels", old.ovs.kernel_tunnels == new.ovs.kernel_tunnels),
    ];
    same.into_iter().filter(|(_, same)| !same).map(|(key, _)| key).collect()
}

fn describe_lanes(old: &Config, new: &Config) -> Vec<String> {
    let mut changes = Vec::new();
    for lane in &new.lanes {
        match old.lane(&lane.name) {
            None => changes.push(format!("lane {} added", lane.name)),
            Some(before) if before != lane => {
                changes
                    .push(format!("lane {0} differs: run ringspan lane restart {0} when its guests allow", lane.name));
            }
            Some(_) => {}
        }
    }
    let gone = old.lanes.iter().filter(|lane| new.lane(&lane.name).is_none());
    changes.extend(gone.map(|lane| format!("lane {} removed: it is shut down when it has no port", lane.name)));
    changes
}

fn describe_nics(before: &Desired, after: &Desired) -> Vec<String> {
    let mut changes = Vec::new();
    for (name, nic) in &after.nics {
        match before.nics.get(name) {
            None => changes.push(format!("NIC {name} added")),
            Some(old) if old.spec != nic.spec || old.lane != nic.lane => changes.push(format!("NIC {name} changed")),
            Some(_) => {}
        }
    }
    let gone = before.nics.keys().filter(|name| !after.nics.contains_key(*name));
    changes.extend(gone.map(|name| format!("NIC {name} removed: its representors stay")));
    changes
}

fn describe_ports(before: &Desired, after: &Desired) -> Vec<String> {
    let mut changes = Vec::new();
    for (name, port) in &after.ports {
        match before.ports.get(name) {
            None => changes.push(format!("port {name} added")),
            Some(old) if old.spec != port.spec || old.lane != port.lane => changes.push(format!("port {name} changed")),
            Some(old) if old.origin == Origin::RunTime && port.origin == Origin::Config => {
                changes.push(format!("port {name} is the file's from now on: it goes when it is taken out there"));
            }
            Some(_) => {}
        }
    }
    let gone = before.ports.keys().filter(|name| !after.ports.contains_key(*name));
    changes.extend(gone.map(|name| format!("port {name} removed")));
    changes
}
