//! Methods about software NICs.

use std::sync::Mutex;

use ringspan_protocol::{
    LaneName, MacAddress, NicName, NicOffload, NicSpec, NicStatus, Reply, Request, VfChange, VfLink, VfSettings,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Call, Nothing};
use crate::control::{Daemon, locked};
use crate::desired::{DesiredNic, Origin, nic_lane};
use crate::error::{Error, ErrorKind};
use crate::nic_request::NicRequest;
use crate::ovs::client::Database;
use crate::ovs::owner::{self, Owning};
use crate::ovs::view::View;

/// A software NIC, as wanted and as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct NicEntry {
    /// Its name.
    pub name: NicName,
    /// The lane that has it.
    pub lane: LaneName,
    /// Who wants it.
    pub origin: Origin,
    /// Why it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is wanted.
    pub spec: NicSpec,
    /// What its lane says of it; absent while it is not there, or the lane cannot be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<NicStatus>,
}

/// Which NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ByName {
    /// Its name.
    pub name: NicName,
}

/// Which NIC goes, and with what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Remove {
    /// Its name.
    pub name: NicName,
    /// A NIC that is not there is a success.
    #[serde(default)]
    pub if_exists: bool,
    /// Leaves the network interfaces of its representors on the host.
    #[serde(default)]
    pub keep_representors: bool,
}

/// What changes at a VF of a NIC in legacy mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SetVf {
    /// The NIC.
    pub name: NicName,
    /// The VF.
    #[schemars(range(min = 0, max = 63))]
    pub vf: u16,
    /// Its address; 00:00:00:00:00:00: the one that its guest sends from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// VLAN that it is in, 1 to 4094; 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094))]
    pub vlan: Option<u16>,
    /// Priority in that VLAN's tags, 0 to 7.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 7))]
    pub qos: Option<u8>,
    /// Drops what it sends from another address than its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spoof_check: Option<bool>,
    /// Gives it what is for addresses that nobody has, and link-local protocols.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<bool>,
    /// Most that it may send, in Mbit/s; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_mbit: Option<u32>,
    /// Whether its link is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<VfLink>,
}

fn entry(daemon: &Daemon, name: &NicName, nic: DesiredNic) -> NicEntry {
    let lane = daemon.lane(&nic.lane);
    let (mut status, mut reason) = (None, None);
    match lane.as_ref().map_err(Clone::clone).and_then(|lane| lane.nics()) {
        Ok(mut nics) => status = nics.remove(name),
        Err(error) => reason = Some(error.message),
    }
    if status.is_none() {
        reason = lane.ok().and_then(|lane| lane.nic_refusal(name)).map(|error| error.message).or(reason);
    }
    NicEntry { name: name.clone(), lane: nic.lane, origin: nic.origin, reason, spec: nic.spec, status }
}

fn unknown(name: &NicName) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no NIC {name}: see ringspan nic list")).about(name)
}

pub(super) fn list(call: &mut Call, _: Nothing) -> Result<Vec<NicEntry>, Error> {
    let nics = locked(&call.daemon.desired).nics.clone();
    Ok(nics.into_iter().map(|(name, nic)| entry(call.daemon, &name, nic)).collect())
}

pub(super) fn show(call: &mut Call, ByName { name }: ByName) -> Result<NicEntry, Error> {
    let nic = locked(&call.daemon.desired).nics.get(&name).cloned().ok_or_else(|| unknown(&name))?;
    Ok(entry(call.daemon, &name, nic))
}

pub(super) fn add(call: &mut Call, request: NicRequest) -> Result<NicEntry, Error> {
    let daemon = call.daemon;
    let (spec, lane) = (request.spec()?, nic_lane(request.lane.as_ref())?);
    let name = spec.name.clone();
    if spec.pci.as_ref().is_some_and(|pci| pci.offload == NicOffload::Ringspan) {
        only_owner(call, &name)?;
    }
    let home = daemon.lane(&lane)?;
    let nic = DesiredNic { spec: spec.clone(), lane, origin: Origin::RunTime };
    {
        let mut desired = locked(&daemon.desired);
        if let Some(there) = desired.nics.get(&name) {
            if there.spec == spec && request.lane.is_none_or(|lane| lane == there.lane) {
                let there = there.clone();
                drop(desired);
                return Ok(entry(daemon, &name, there));
            }
            let message = format!("NIC {name} exists already and is not the same: remove it first");
            return Err(Error::new(ErrorKind::Exists, message).about(&name));
        }
        desired.nics.insert(name.clone(), nic.clone());
    }
    let made = home.change(Request::NicAdd(Box::new(spec)), |answer| match answer {
        Ok(Reply::Nic(_)) => {
            let saved = locked(&daemon.desired).saved();
            daemon.state_dir.save(&saved)
        }
        Ok(_) => Err(Error::new(ErrorKind::Version, format!("lane {} answered something else", home.name))),
        Err(error) => Err(error.about(&name)),
    });
    if let Err(error) = made {
        locked(&daemon.desired).nics.remove(&name);
        home.look_again();
        return Err(error);
    }
    Ok(entry(daemon, &name, nic))
}

/// One change of a NIC's VFs at a time.
static CHANGES: Mutex<()> = Mutex::new(());

pub(super) fn set_vf(call: &mut Call, request: SetVf) -> Result<NicEntry, Error> {
    let in_the_file =
        locked(&call.daemon.desired).nics.get(&request.name).is_some_and(|nic| nic.origin == Origin::Config);
    if in_the_file {
        return Err(in_file(call.daemon, &request.name, "change it there"));
    }
    set_vf_of(call.daemon, request, WithoutLane::Refused)
}

/// What becomes of a change whose lane does not run, or does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WithoutLane {
    /// It is refused.
    Refused,
    /// It is wanted all the same, and the lane gets it as soon as it can be asked.
    Kept,
}

/// Also for VFs of the file's NICs, for guests' attachments: what those have set counts until they are gone.
pub(super) fn set_vf_of(daemon: &Daemon, request: SetVf, without_lane: WithoutLane) -> Result<NicEntry, Error> {
    let SetVf { name, vf, mac, vlan, qos, spoof_check, trust, max_mbit, link } = request;
    let change = VfChange { mac, vlan, qos, spoof_check, trust, max_mbit, link };
    // From here to where it is saved: of two changes of one VF, the later one is to know of the earlier one.
    let _one = locked(&CHANGES);
    let nic = locked(&daemon.desired).nics.get(&name).cloned().ok_or_else(|| unknown(&name))?;
    let settings = change.apply(nic.spec.vf_settings(vf));
    let mut spec = nic.spec.clone();
    spec.set_vf(settings);
    let invalid = |what: String| Error::new(ErrorKind::Invalid, format!("NIC {name}: {what}")).about(&name);
    if vf >= spec.vfs {
        return Err(invalid(format!("there is no vf {vf}: it has {}", spec.vfs)));
    }
    spec.check_vfs().map_err(invalid)?;
    if spec == nic.spec {
        return Ok(entry(daemon, &name, nic));
    }
    daemon.lane(&nic.lane)?.change(Request::NicSetVf { name: name.clone(), settings }, |answer| match answer {
        Err(error) if error.kind != ErrorKind::LaneDown || without_lane == WithoutLane::Refused => {
            Err(error.about(&name))
        }
        Ok(Reply::Nic(_)) | Err(_) => {
            let as_in_file = as_in_file(daemon, &name, vf);
            let mut desired = locked(&daemon.desired);
            if let Some(nic) = desired.nics.get_mut(&name) {
                // Another VF may have been changed meanwhile.
                nic.spec.set_vf(settings);
            }
            if nic.origin == Origin::Config {
                let set = desired.config_vfs.entry(name.clone()).or_default();
                set.retain(|one| one.vf != vf);
                if as_in_file != Some(settings) {
                    set.push(settings);
                }
                desired.config_vfs.retain(|_, set| !set.is_empty());
            }
            daemon.state_dir.save(&desired.saved())
        }
        Ok(_) => Err(Error::new(ErrorKind::Version, format!("lane {} answered something else", nic.lane))),
    })?;
    let nic = locked(&daemon.desired).nics.get(&name).cloned().ok_or_else(|| unknown(&name))?;
    Ok(entry(daemon, &name, nic))
}

/// What the configuration file says of a VF.
fn as_in_file(daemon: &Daemon, name: &NicName, vf: u16) -> Option<VfSettings> {
    let config = locked(&daemon.config);
    Some(config.nic(name)?.request.spec().ok()?.vf_settings(vf))
}

/// The refusal to change a NIC of the configuration file.
fn in_file(daemon: &Daemon, name: &NicName, remedy: &str) -> Error {
    let config = locked(&daemon.config);
    let line = config.nic(name).map_or_else(String::new, |nic| format!(":{}", nic.line));
    let message = format!("NIC {name} is in {}{line}: {remedy} and run ringspan reload", config.file.display());
    Error::new(ErrorKind::Conflict, message).about(name)
}

/// Two that bring flows into one switch take each other's packets. Without a database to ask there is no second one.
fn only_owner(call: &Call, name: &NicName) -> Result<(), Error> {
    let place = super::ovs::place(call);
    let database = Database::connect(&place);
    let view = database.and_then(|mut database| View::read(&mut database));
    let owning = view.ok().and_then(|view| owner::open_vswitch(&view, &place));
    // While it is not known, the NIC is only given no rules.
    let Some(owning) = owning.filter(|owning| *owning != Owning::Unknown) else { return Ok(()) };
    let message = format!(
        "NIC {name}: Open vSwitch brings flows into NICs by itself ({owning}), and offload is ringspan: take offload = \"tc\", or run \
         ringspan ovs configure --hw-offload false --restart first"
    );
    Err(Error::new(ErrorKind::Conflict, message).about(name))
}

pub(super) fn remove(call: &mut Call, request: Remove) -> Result<Nothing, Error> {
    let daemon = call.daemon;
    let Remove { name, if_exists, keep_representors } = request;
    let Some(nic) = locked(&daemon.desired).nics.get(&name).cloned() else {
        return if if_exists { Ok(Nothing {}) } else { Err(unknown(&name)) };
    };
    if nic.origin == Origin::Config {
        return Err(in_file(daemon, &name, "take it out there"));
    }
    let user = {
        let desired = locked(&daemon.desired);
        let on_it = |device: &ringspan_protocol::DeviceSpec| matches!(device, ringspan_protocol::DeviceSpec::Soft { nic, .. } if nic == name.as_str());
        desired.ports.iter().find(|(_, port)| on_it(&port.spec.device)).map(|(port, _)| port.clone())
    };
    if let Some(port) = user {
        let message = format!("NIC {name}: the port {port} has one of its VFs: remove that port first");
        return Err(Error::new(ErrorKind::Busy, message).about(&name));
    }
    let gone = Request::NicRemove { name: name.clone(), representors: !keep_representors };
    daemon.lane(&nic.lane)?.change(gone, |answer| match answer {
        Ok(_) => forget(daemon, &name),
        // It never was there, or its lane has lost it.
        Err(error) if error.kind == ErrorKind::NotFound => forget(daemon, &name),
        Err(error) => Err(error.about(&name)),
    })?;
    Ok(Nothing {})
}

fn forget(daemon: &Daemon, name: &NicName) -> Result<(), Error> {
    let mut desired = locked(&daemon.desired);
    desired.nics.remove(name);
    daemon.state_dir.save(&desired.saved())
}
