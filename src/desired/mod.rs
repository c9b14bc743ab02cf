//! What ports should be: those of the configuration file and those added at run time, and which of them stand aside.
//!
//! The two never fight silently. The file comes first; a run-time port that clashes with it stands aside with a reason that is
//! listed and told as an event, and comes back when the file no longer clashes.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use ringspan_protocol::{DeviceSpec, LaneName, NicName, NicSpec, PortName, PortSpec, VfSettings};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{Config, MAIN_LANE, device_keys};
use crate::error::{Error, ErrorKind};
use crate::lanes::Wanted;
use crate::state::{Pin, Saved, SavedNic, SavedPort};

/// Who wants a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Origin {
    /// The configuration file.
    Config,
    /// Somebody who added it over the control socket.
    RunTime,
}

/// A port that should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DesiredPort {
    /// What it is.
    pub spec: PortSpec,
    /// The lane that carries it.
    pub lane: LaneName,
    /// Who wants it.
    pub origin: Origin,
    /// Whether its lane is being asked at this moment: its name, socket and device are taken, but it is not saved yet.
    pub pending: bool,
}

/// A software NIC that should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DesiredNic {
    /// What it is.
    pub spec: NicSpec,
    /// The lane that has it.
    pub lane: LaneName,
    /// Who wants it.
    pub origin: Origin,
}

/// A port that cannot be, because something else is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Aside {
    /// What it would be.
    pub spec: PortSpec,
    /// The lane it would be on.
    pub lane: Option<LaneName>,
    /// Who wants it.
    pub origin: Origin,
    /// What it clashes with, and the remedy.
    pub reason: Error,
}

/// Lanes that take ports, in the file's order, each with the most ports it can have.
pub(crate) type Room = Vec<(LaneName, usize)>;

/// All ports that should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Desired {
    /// Those that are to be made.
    pub ports: BTreeMap<PortName, DesiredPort>,
    /// Software NICs.
    pub nics: BTreeMap<NicName, DesiredNic>,
    /// What guests' attachments have set for VFs of the file's NICs; part of their `spec` above.
    pub config_vfs: BTreeMap<NicName, Vec<VfSettings>>,
    /// Those that stand aside. A run-time port may have the name of one that is made.
    pub aside: Vec<Aside>,
}

impl Desired {
    /// The file's ports, then the saved ones that do not clash with them.
    pub(crate) fn build(config: &Config, saved: &Saved, room: &Room) -> Self {
        let mut desired = Self::default();
        // Run-time ports keep the lane they have, so they count where there is room, whatever their turn.
        let lanes = |lane: &LaneName| saved.ports.values().filter(|port| port.lane == *lane).count();
        for (name, SavedNic { lane, spec }) in saved.nics.clone() {
            desired.nics.insert(name, DesiredNic { spec, lane, origin: Origin::RunTime });
        }
        // The file's take the place of those that were added with the same name.
        for nic in &config.nics {
            match (nic.request.spec(), nic_lane(nic.request.lane.as_ref())) {
                (Ok(mut spec), Ok(lane)) => {
                    let set = saved.config_vfs.get(&spec.name).into_iter().flatten();
                    let set: Vec<VfSettings> = set.filter(|one| one.vf < spec.vfs).copied().collect();
                    let mut with = spec.clone();
                    set.iter().for_each(|settings| with.set_vf(*settings));
                    // Not where the file has left legacy mode.
                    if !set.is_empty() && with.check_vfs().is_ok() {
                        desired.config_vfs.insert(spec.name.clone(), set);
                        spec = with;
                    }
                    desired.nics.insert(spec.name.clone(), DesiredNic { spec, lane, origin: Origin::Config });
                }
                (Err(reason), _) | (_, Err(reason)) => {
                    tracing::error!("{}:{}: {reason}", config.file.display(), nic.line);
                }
            }
        }
        let reserved: BTreeMap<_, _> = room.iter().map(|(lane, _)| (lane.clone(), lanes(lane))).collect();
        for port in &config.ports {
            let request = &port.request;
            let pin = saved.config_ports.get(&request.name);
            let pin = pin.cloned().or_else(|| {
                let taken_over = saved.ports.get(&request.name)?;
                Some(Pin { lane: taken_over.lane.clone(), compat: taken_over.spec.compat })
            });
            let spec = match request.spec(pin.as_ref().map(|pin| pin.compat)) {
                Ok(spec) => spec,
                Err(reason) => {
                    tracing::error!("{}:{}: {reason}", config.file.display(), port.line);
                    continue;
                }
            };
            let kept = pin.map(|pin| pin.lane).filter(|lane| config.lane(lane).is_some());
            let lane = request.lane.clone().or(kept);
            desired.place(spec, lane, Origin::Config, room, &reserved);
        }
        for (name, port) in &saved.ports {
            let SavedPort { lane, spec } = port.clone();
            match desired.ports.get(name) {
                // The file says the same by now: it has taken the port over.
                Some(ours) if ours.spec == spec => {}
                Some(_) => {
                    let message = format!(
                        "port {name} was added at run time and is also in {}, with other values: the file's is made; run ringspan port remove {name} to forget the other, or take it out of the file",
                        config.file.display()
                    );
                    let reason = Error::new(ErrorKind::Conflict, message).about(name);
                    desired.aside.push(Aside { spec, lane: Some(lane), origin: Origin::RunTime, reason });
                }
                None => desired.place(spec, Some(lane), Origin::RunTime, room, &reserved),
            }
        }
        desired
    }

    fn place(
        &mut self,
        spec: PortSpec,
        lane: Option<LaneName>,
        origin: Origin,
        room: &Room,
        reserved: &BTreeMap<LaneName, usize>,
    ) {
        let chosen = match lane.as_ref().or(self.lane_of_nic(&spec.device)) {
            Some(lane) => Ok(lane.clone()),
            None => self.choose_lane(&spec, room, reserved),
        };
        match chosen.and_then(|lane| self.claim(&spec, &lane).map(|()| lane)) {
            Ok(lane) => {
                self.ports.insert(spec.name.clone(), DesiredPort { spec, lane, origin, pending: false });
            }
            Err(reason) => self.aside.push(Aside { spec, lane, origin, reason }),
        }
    }

    /// The lane of the software NIC that the device is a VF of.
    pub(crate) fn lane_of_nic(&self, device: &DeviceSpec) -> Option<&LaneName> {
        let DeviceSpec::Soft { nic, .. } = device else { return None };
        self.nics.iter().find(|(name, _)| name.as_str() == nic).map(|(_, nic)| &nic.lane)
    }

    /// The lane with the fewest ports that has room, and not the device already.
    pub(crate) fn choose_lane(
        &self,
        spec: &PortSpec,
        room: &Room,
        reserved: &BTreeMap<LaneName, usize>,
    ) -> Result<LaneName, Error> {
        let ports = |lane: &LaneName| {
            // A bond takes as many of DPDK's ports as it has devices, and one.
            let placed = self.ports.values().filter(|port| port.lane == *lane);
            placed.map(|port| port.spec.device.dpdk_ports()).sum::<usize>() + reserved.get(lane).copied().unwrap_or(0)
        };
        let free = room.iter().filter(|(lane, most)| ports(lane) + spec.device.dpdk_ports() <= *most);
        let fits = free.clone().filter(|(lane, _)| self.claim(spec, lane).is_ok());
        if let Some((lane, _)) = fits.min_by_key(|(lane, _)| ports(lane)) {
            return Ok(lane.clone());
        }
        if let Some((lane, _)) = free.clone().next() {
            return Err(self.claim(spec, lane).err().unwrap_or_else(|| Error::new(ErrorKind::NoRoom, "no lane")));
        }
        let full = room.iter().map(|(lane, most)| format!("{lane} has {most}")).collect::<Vec<_>>().join(", ");
        let message = format!("port {}: no lane has room for one more port ({full}): add a [[lane]]", spec.name);
        Err(Error::new(ErrorKind::NoRoom, message).about(&spec.name))
    }

    /// Whether name, socket and device are free for this port on this lane.
    pub(crate) fn claim(&self, spec: &PortSpec, lane: &LaneName) -> Result<(), Error> {
        let name = &spec.name;
        if self.ports.contains_key(name) {
            return Err(Error::new(ErrorKind::Exists, format!("port {name} exists already")).about(name));
        }
        if let Some(home) = self.lane_of_nic(&spec.device).filter(|home| *home != lane) {
            let message = format!("port {name}: {} is on lane {home}, this port would be on {lane}", spec.device);
            return Err(Error::new(ErrorKind::Invalid, message).about(name));
        }
        let keys = device_keys(&spec.device, Some(lane));
        for (other, port) in &self.ports {
            if port.spec.socket == spec.socket {
                let message = format!("port {name}: the port {other} has the socket {:?} already", spec.socket);
                return Err(Error::new(ErrorKind::Busy, message).about(name));
            }
            let theirs: Vec<&str> = port.spec.device.parts().iter().filter_map(DeviceSpec::interface).collect();
            let shared = spec.device.parts().iter().filter_map(DeviceSpec::interface).find(|one| theirs.contains(one));
            if let Some(interface) = shared {
                let message = format!("port {name}: the port {other} has the interface {interface} already");
                return Err(Error::new(ErrorKind::Busy, message).about(name));
            }
            if spec.device.other_end().is_some_and(|end| end == port.spec.device) {
                let (ours, theirs) = (spec.queues, port.spec.queues);
                let wrong = if port.lane != *lane {
                    format!("is on lane {}, this one would be on {lane}: a patch lies in one lane", port.lane)
                } else if ours != theirs {
                    format!("has {theirs} queues, this one would have {ours}: give both ends of a patch the same")
                } else {
                    continue;
                };
                let message = format!("port {name}: the port {other} at the other end of {} {wrong}", spec.device);
                return Err(Error::new(ErrorKind::Invalid, message).about(name));
            }
            let theirs = device_keys(&port.spec.device, Some(&port.lane));
            if let Some((lane, device)) = keys.iter().find(|key| theirs.contains(key)) {
                let scope = if lane.is_some() && device.starts_with("vdev:") { " on this lane" } else { "" };
                let message = format!("port {name}: the port {other} has the device {device}{scope} already");
                return Err(Error::new(ErrorKind::Busy, message).about(name));
            }
        }
        Ok(())
    }

    /// What is to be written down.
    pub(crate) fn saved(&self) -> Saved {
        let mut saved = Saved { config_vfs: self.config_vfs.clone(), ..Saved::default() };
        for (name, port) in self.ports.iter().filter(|(_, port)| !port.pending) {
            let (lane, spec) = (port.lane.clone(), port.spec.clone());
            match port.origin {
                Origin::Config => {
                    saved.config_ports.insert(name.clone(), Pin { lane, compat: spec.compat });
                }
                Origin::RunTime => {
                    saved.ports.insert(name.clone(), SavedPort { lane, spec });
                }
            }
        }
        for (name, nic) in self.nics.iter().filter(|(_, nic)| nic.origin == Origin::RunTime) {
            saved.nics.insert(name.clone(), SavedNic { lane: nic.lane.clone(), spec: nic.spec.clone() });
        }
        for port in self.aside.iter().filter(|port| port.origin == Origin::RunTime) {
            if let Some(lane) = port.lane.clone() {
                saved.ports.insert(port.spec.name.clone(), SavedPort { lane, spec: port.spec.clone() });
            }
        }
        saved
    }

    /// What a lane should have.
    pub(crate) fn wanted_on(&self, lane: &LaneName) -> Wanted {
        let mut wanted = Wanted::default();
        for (name, nic) in self.nics.iter().filter(|(_, nic)| nic.lane == *lane) {
            wanted.nics.insert(name.clone(), nic.spec.clone());
        }
        for (name, port) in &self.ports {
            if port.lane != *lane {
                wanted.elsewhere.insert(name.clone());
            } else if port.pending {
                wanted.pending.insert(name.clone());
            } else {
                wanted.ports.insert(name.clone(), port.spec.clone());
            }
        }
        wanted
    }

    /// How many ports a lane has to carry.
    pub(crate) fn count_on(&self, lane: &LaneName) -> usize {
        self.ports.values().filter(|port| port.lane == *lane).count()
    }

    /// Whether anything is wanted on a lane.
    pub(crate) fn needs(&self, lane: &LaneName) -> bool {
        self.count_on(lane) > 0 || self.nics.values().any(|nic| nic.lane == *lane)
    }
}

/// The lane of a NIC that asks for this one, or for none.
pub(crate) fn nic_lane(asked: Option<&LaneName>) -> Result<LaneName, Error> {
    match asked {
        Some(lane) => Ok(lane.clone()),
        None => MAIN_LANE.parse().map_err(|error| Error::new(ErrorKind::Invalid, format!("{error}"))),
    }
}
