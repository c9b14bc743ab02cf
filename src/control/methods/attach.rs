//! Methods about guests' NICs: attaching, detaching, and keeping the agent and the host of one mind.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ringspan_protocol::{
    DeviceSpec, LaneName, MacAddress, NicName, NicSpec, PciAddress, PortChange, PortName, PortSpec, VfSettings,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::port::{Phase, WaitFor, entry as port_entry};
use super::port_change::{self, Add, Set};
use super::{Call, Nothing, device, nic};
use crate::attach::Attach;
use crate::attach::choose::{self, Around, choose};
use crate::attach::guest::ForGuest;
use crate::attach::plan::{Facts, plan};
use crate::attach::record::{Key, Record, Stage, Step, Target};
use crate::attach::request::Mode;
use crate::attach::run::World;
use crate::attach::sync::{self, Finding, Guest, Synced};
use crate::attach::world::{Lanes, Real};
use crate::control::events::Next;
use crate::control::{Daemon, EventKind, locked};
use crate::desired::Desired;
use crate::error::{Error, ErrorKind};
use crate::host::inventory::Inventory;
use crate::host::{Host, pci_function};
use crate::ovs::client::{Database, Place};
use crate::ovs::view::View;
use crate::port_request::PortRequest;
use crate::qemu_args;

/// A guest's NIC, as wanted and as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Entry {
    /// The guest.
    pub guest: String,
    /// Which of its NICs.
    pub nic: u16,
    /// How the guest has it.
    pub mode: Mode,
    /// How far it has come.
    pub stage: Stage,
    /// The VF: `pci:0000:0a:00.2`, `soft:nic0/vf3`.
    pub device: String,
    /// The guest's MAC address.
    pub mac: MacAddress,
    /// Its VLAN; 0: none.
    pub vlan: u16,
    /// The port; absent for `passthrough`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortName>,
    /// The interface that stands for the VF on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub representor: Option<String>,
    /// The bridge that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Why it did not come further.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What was asked for.
    pub wanted: Attach,
}

impl Entry {
    fn of(record: Record) -> Self {
        let port = record.steps.contains(&Step::Port).then(|| record.key().port().ok()).flatten();
        Self {
            guest: record.wanted.guest.clone(),
            nic: record.wanted.nic,
            mode: record.wanted.mode,
            stage: record.stage,
            device: record.target.to_string(),
            mac: record.mac,
            vlan: record.wanted.vlan,
            port,
            representor: record.representor,
            bridge: record.bridge,
            problem: record.problem,
            wanted: record.wanted,
        }
    }
}

/// What came of `port.attach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Attached {
    /// The attachment.
    pub attachment: Entry,
    /// What QEMU and libvirt must be told.
    pub qemu: ForGuest,
    /// What was done; empty: it was so already.
    pub done: Vec<String>,
}

/// Which NIC is to be detached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Detach {
    /// The guest's id.
    pub guest: String,
    /// Which of its NICs.
    #[serde(default)]
    pub nic: u16,
    /// Also while its front-end is connected, or nobody knows whether it is: the guest loses its NIC. With mode `passthrough` it is refused all the same.
    #[serde(default)]
    pub disturb: bool,
}

/// What came of `port.detach`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Detached {
    /// Whether there was anything to detach.
    pub was_attached: bool,
}

/// What is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sync {
    /// All guests that the agent has, those without NICs here too.
    pub guests: Vec<Guest>,
    /// Detaches what is orphaned, makes what drifted as it should be, and attaches what is missing where it is said how (`attach`).
    #[serde(default)]
    pub mend: bool,
}

/// The attachment that a port is of.
pub(super) fn key_of(daemon: &Daemon, port: &PortName) -> Option<Key> {
    daemon.attachments.all().iter().map(Record::key).find(|key| key.to_string() == port.as_str())
}

/// Refuses a port on a VF that a guest has by another name.
pub(super) fn check_free(daemon: &Daemon, port: &PortSpec) -> Result<(), Error> {
    let has = |record: &Record| {
        port.device.parts().iter().any(|part| match (part, &record.target) {
            (DeviceSpec::Pci { address, .. }, Target::Pci { address: vf, .. }) => address == vf,
            (DeviceSpec::Soft { nic, vf }, Target::Soft { nic: other, vf: number }) => {
                *nic == other.as_str() && vf == number
            }
            _ => false,
        })
    };
    let all = daemon.attachments.all();
    match all.iter().find(|record| record.key().to_string() != port.name.as_str() && has(record)) {
        None => Ok(()),
        Some(record) => {
            let (device, key) = (&record.target, record.key());
            let message = format!("port {}: {device} is that of guest {} (NIC {})", port.name, key.guest, key.nic);
            Err(Error::new(ErrorKind::Busy, message).about(&port.name))
        }
    }
}

/// This daemon's lanes, for the steps of attachments.
struct Own<'a>(&'a Daemon);

impl Lanes for Own<'_> {
    fn add_port(&self, request: &PortRequest) -> Result<Vec<String>, Error> {
        let daemon = self.0;
        let name = &request.name;
        let there = locked(&daemon.desired).ports.get(name).filter(|port| !port.pending).cloned();
        let Some(there) = there else {
            let added = port_change::add_to(daemon, Add { port: request.clone(), may_exist: true })?;
            return Ok(vec![format!("port {name} is on {}", added.spec.device)]);
        };
        let wanted = request.spec(Some(there.spec.compat))?;
        let change = PortChange {
            mtu: (wanted.mtu != there.spec.mtu).then_some(wanted.mtu),
            mac: wanted.mac.filter(|mac| Some(*mac) != there.spec.mac),
            max_rate: (wanted.max_rate != there.spec.max_rate).then_some(wanted.max_rate),
            ..PortChange::default()
        };
        if change.apply(&there.spec) != wanted {
            let message = format!("port {name} is there and is another one: remove it first");
            return Err(Error::new(ErrorKind::Conflict, message).about(name));
        }
        if change == PortChange::default() {
            return Ok(vec![]);
        }
        let PortChange { mtu, mac, max_rate, .. } = change;
        port_change::set_on(daemon, Set { mtu, mac, max_rate, ..Set::nothing(name.clone()) })?;
        Ok(vec![format!("port {name} was changed")])
    }

    fn remove_port(&self, name: &PortName) -> Result<(), Error> {
        let remove = port_change::Remove { name: name.clone(), if_exists: true };
        port_change::remove_from(self.0, remove).map(drop)
    }

    fn front_end(&self, name: &PortName) -> Result<Option<String>, Error> {
        // What is not wanted, or stands aside, no lane keeps.
        let lane = locked(&self.0.desired).ports.get(name).map(|port| port.lane.clone());
        let Some(lane) = lane else { return Ok(None) };
        let lane = self.0.lane(&lane)?;
        match lane.ports()?.remove(name).map(|port| Phase::from(port.phase)) {
            Some(phase) => Ok(WaitFor::Connected.is_met(phase).then(|| phase.word())),
            None if lane.refusal(name).is_some() => Ok(None),
            // Its lane was just started, and its guest comes back when the port is there.
            None => {
                let message = format!("port {name} is being given to lane {} at this moment", lane.name);
                Err(Error::new(ErrorKind::LaneDown, message).about(name))
            }
        }
    }

    fn port_differs(&self, request: &PortRequest) -> Result<Option<String>, Error> {
        let name = &request.name;
        let Ok(port) = port_entry(self.0, name) else { return Ok(Some(format!("port {name} is gone"))) };
        if matches!(port.phase, Phase::Refused | Phase::Aside | Phase::LaneDown) {
            let reason = port.reason.map_or_else(String::new, |reason| format!(": {reason}"));
            return Ok(Some(format!("port {name} is not made{reason}")));
        }
        let wanted = request.spec(Some(port.spec.compat))?;
        Ok((port.spec != wanted).then(|| format!("port {name} is not as it was made")))
    }

    fn set_soft_vf(&self, name: &NicName, settings: VfSettings) -> Result<(), Error> {
        nic::set_vf_of(self.0, soft_settings(name, settings), nic::WithoutLane::Refused).map(drop)
    }

    fn restore_soft_vf(&self, name: &NicName, settings: VfSettings) -> Result<(), Error> {
        nic::set_vf_of(self.0, soft_settings(name, settings), nic::WithoutLane::Kept).map(drop)
    }

    fn soft_vf(&self, name: &NicName, vf: u16) -> Option<VfSettings> {
        let desired = locked(&self.0.desired);
        desired.nics.get(name).filter(|nic| vf < nic.spec.vfs).map(|nic| nic.spec.vf_settings(vf))
    }

    fn owner(&self, target: &Target) -> Option<String> {
        match target {
            Target::Pci { address, .. } => device::owners_of(self.0).remove(&address.to_string()),
            Target::Soft { .. } => soft_owners(&locked(&self.0.desired)).remove(&target.to_string()),
        }
    }
}

/// All settings of a VF, as a change of it.
fn soft_settings(name: &NicName, settings: VfSettings) -> nic::SetVf {
    let VfSettings { vf, mac, vlan, qos, spoof_check, trust, max_mbit, link } = settings;
    nic::SetVf {
        name: name.clone(),
        vf,
        mac: Some(mac.unwrap_or(MacAddress([0; 6]))),
        vlan: Some(vlan),
        qos: Some(qos),
        spoof_check: Some(spoof_check),
        trust: Some(trust),
        max_mbit: Some(max_mbit),
        link: Some(link),
    }
}

/// Ports by the VFs of software NICs that they have.
fn soft_owners(desired: &Desired) -> BTreeMap<String, String> {
    let soft = desired.ports.iter().filter(|(_, port)| matches!(port.spec.device, DeviceSpec::Soft { .. }));
    soft.map(|(name, port)| (port.spec.device.to_string(), format!("port {name}"))).collect()
}

/// The host, changed by one at a time.
pub(super) struct Guarded<'a>(Real<'a>);

impl World for Guarded<'_> {
    fn apply(&self, step: Step, record: &mut Record) -> Result<Vec<String>, Error> {
        let _one = of_host(step, record)?;
        let done = self.0.apply(step, record)?;
        for done in &done {
            tracing::info!("{done}, for {}", record.key());
        }
        Ok(done)
    }

    fn undo(&self, step: Step, record: &Record) -> Result<(), Error> {
        let _one = of_host(step, record)?;
        self.0.undo(step, record)
    }

    fn drift(&self, step: Step, record: &Record) -> Result<Option<String>, Error> {
        self.0.drift(step, record)
    }

    fn user(&self, record: &Record) -> Result<Option<String>, Error> {
        self.0.user(record)
    }

    fn claimed(&self, record: &Record) -> Option<String> {
        self.0.claimed(record)
    }
}

/// Longest wait for another change of the host: longer than those take.
const PATIENCE: Duration = Duration::from_secs(80);

fn of_host(step: Step, record: &Record) -> Result<Option<std::sync::MutexGuard<'static, ()>>, Error> {
    let changes = matches!(record.target, Target::Pci { .. }) && matches!(step, Step::Settings | Step::Driver);
    // Another change may take long, a vf.enable for instance. What is taken back for want of patience would be left.
    changes.then(|| device::one_at_a_time(&device::CHANGES, PATIENCE)).transpose()
}

/// Longest wait for who is just letting go of a guest's NIC.
const LETTING_GO: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 5000 });
/// How long a QEMU may take to come back after its lane was started anew: the second of its `reconnect=1`, and some.
const COMING_BACK: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 1500 });

/// Runs something with the world of this daemon.
pub(super) fn with_world<T>(daemon: &Daemon, run: impl FnOnce(&Guarded<'_>) -> T) -> T {
    let (host, lanes, memory) = (daemon.host(), Own(daemon), device::Drivers(&daemon.state_dir));
    let (ovs, run_dir) = {
        let config = locked(&daemon.config);
        (Place::new(config.ovs.run_dir.as_deref()), config.control.run_dir.clone())
    };
    run(&Guarded(Real { host: &host, memory: &memory, ovs, lanes: &lanes, run_dir }))
}

/// Open vSwitch, where it answers.
pub(super) fn look_at_ovs(daemon: &Daemon) -> Option<View> {
    let place = Place::new(locked(&daemon.config).ovs.run_dir.as_deref());
    Database::connect(&place).and_then(|mut database| View::read(&mut database)).ok()
}

/// Chooses a VF among those that nobody has, and plans its steps.
fn choose_and_plan(
    daemon: &Daemon,
    host: &Host,
    view: Option<&View>,
    wanted: &Attach,
    records: &[Record],
) -> Result<Record, Error> {
    let name = wanted.port()?;
    if locked(&daemon.desired).ports.contains_key(&name) {
        let message = format!("there is a port {name} already, which is no attachment's: remove it first");
        return Err(Error::new(ErrorKind::Exists, message).about(&name));
    }
    let bridges = view.map(device::bridges_of).unwrap_or_default();
    let (nics, soft_owners): (BTreeMap<NicName, NicSpec>, BTreeMap<String, String>) = {
        let desired = locked(&daemon.desired);
        (desired.nics.iter().map(|(name, nic)| (name.clone(), nic.spec.clone())).collect(), soft_owners(&desired))
    };
    let inventory = Inventory::take(host);
    let around = Around {
        devices: inventory.devices(),
        bridges: &bridges,
        wires: &device::wires(daemon),
        owners: &device::owners_of(daemon),
        nics: &nics,
        soft_owners: &soft_owners,
    };
    let candidates = around.candidates(host);
    let named = wanted.device.is_some();
    let chosen = choose(&candidates, &around.uplinks(host), wanted, records, |one| {
        let bridges = (!named).then_some(&bridges);
        in_use(host, one, bridges)
    })?;
    let settings = chosen.device.as_ref().and_then(|device| inventory.settings(device));
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let mac = wanted.mac.unwrap_or_else(|| qemu_args::made_mac(&name, machine.trim()));
    plan(wanted, chosen, &Facts { mac, view, nics: &nics, settings })
}

/// Who has a VF. With `bridges` also who only seems to: nobody named that VF.
fn in_use(host: &Host, one: &choose::Candidate, bridges: Option<&BTreeMap<String, String>>) -> Option<String> {
    let Target::Pci { address, .. } = one.target else { return None };
    seems_used(host, address, bridges)
}

/// The same of a function.
pub(super) fn seems_used(
    host: &Host,
    address: PciAddress,
    bridges: Option<&BTreeMap<String, String>>,
) -> Option<String> {
    let function = pci_function(host, address)?;
    let process = host.vfio_user(&function).map(|process| format!("process {process}"));
    // An interface that is merely up is the kernel's doing.
    let part = || host.busy_interface(&function).filter(|how| how.contains("is part of"));
    process.or_else(part).or_else(|| host.likely_user(&function, bridges?))
}

pub(super) fn attach(call: &mut Call, wanted: Attach) -> Result<Attached, Error> {
    attach_to(call.daemon, wanted)
}

fn attach_to(daemon: &Daemon, mut wanted: Attach) -> Result<Attached, Error> {
    let shape = std::mem::take(&mut wanted.qemu);
    wanted.check()?;
    let host = daemon.host();
    shape.check(&host.proc, wanted.mode).map_err(|error| error.about(&wanted.guest))?;
    let run_dir = locked(&daemon.config).control.run_dir.clone();
    let name = wanted.port()?;
    // What the port would be refused for, before anything is touched.
    if wanted.mode == Mode::Vhost {
        let trial = PortRequest {
            lane: wanted.lane.clone(),
            ..crate::attach::world::request(&wanted, None, DeviceSpec::Soft { nic: "nic0".into(), vf: 0 }, &run_dir)?
        };
        trial.spec(None)?;
        if let Some(lane) = wanted.lane.as_ref().filter(|lane| !has_lane(daemon, lane)) {
            return Err(Error::new(ErrorKind::NotFound, format!("{name}: there is no lane {lane}")).about(&name));
        }
    }
    let key = Key { guest: wanted.guest.clone(), nic: wanted.nic };
    let attached = daemon.attachments.get(&key).is_some_and(|record| record.stage == Stage::Attached);
    let view = if attached { None } else { look_at_ovs(daemon) };
    let (record, done) = with_world(daemon, |world| {
        daemon
            .attachments
            .attach(world, &wanted, |records| choose_and_plan(daemon, &host, view.as_ref(), &wanted, records))
    })?;
    if !attached {
        tell(daemon, &key, |guest, nic| EventKind::Attached { guest, nic, device: record.target.to_string() });
    }
    let qemu = ForGuest::new(&record, &shape, &run_dir)?;
    Ok(Attached { attachment: Entry::of(record), qemu, done })
}

fn has_lane(daemon: &Daemon, lane: &LaneName) -> bool {
    locked(&daemon.config).lane(lane).is_some()
}

pub(super) fn detach(call: &mut Call, Detach { guest, nic, disturb }: Detach) -> Result<Detached, Error> {
    let (daemon, key) = (call.daemon, Key { guest, nic });
    key.port()?;
    if !disturb {
        wait_for_the_end_of(daemon, &key);
    }
    let was_attached = with_world(daemon, |world| detach_told(daemon, world, &key, disturb))?;
    Ok(Detached { was_attached })
}

/// A front-end that has gone is connected until its lane has seen that, and a QEMU that ends has a VF open until its memory is given back. A lane that cannot
/// be asked may be starting, or about to be adopted: its guest is waited for, too.
fn wait_for_the_end_of(daemon: &Daemon, key: &Key) {
    let mut until = Instant::now() + LETTING_GO;
    let (mut unknown, mut back) = (false, false);
    loop {
        let (seen, left) = (daemon.events.last(), until.saturating_duration_since(Instant::now()));
        let Some(record) = daemon.attachments.get(key) else { return };
        if left.is_zero() {
            return;
        }
        match with_world(daemon, |world| world.user(&record)) {
            Ok(None) if !unknown => return,
            // The lane is there again, and the guest that it had may come.
            Ok(None) if !back => (until, back) = (Instant::now() + COMING_BACK, true),
            Ok(_) => {}
            Err(_) => unknown = true,
        }
        // Looked at again without an event, in case the lane lost some.
        if daemon.events.next(seen, 1, left.min(Duration::from_millis(250))) == Next::Closed {
            return;
        }
    }
}

fn detach_told(daemon: &Daemon, world: &Guarded<'_>, key: &Key, disturb: bool) -> Result<bool, Error> {
    let device = daemon.attachments.get(key).map(|record| record.target.to_string());
    let was_attached = daemon.attachments.detach(world, key, disturb)?;
    if let Some(device) = device.filter(|_| was_attached) {
        tell(daemon, key, |guest, nic| EventKind::Detached { guest, nic, device });
    }
    Ok(was_attached)
}

/// Tells of a guest's NIC.
pub(super) fn tell(daemon: &Daemon, key: &Key, kind: impl FnOnce(String, u16) -> EventKind) {
    daemon.events.tell(None, key.port().ok().as_ref(), kind(key.guest.clone(), key.nic));
}

pub(super) fn list(call: &mut Call, _: Nothing) -> Result<Vec<Entry>, Error> {
    Ok(call.daemon.attachments.all().into_iter().map(Entry::of).collect())
}

pub(super) fn sync(call: &mut Call, params: Sync) -> Result<Synced, Error> {
    let daemon = call.daemon;
    sync::check(&params.guests)?;
    let before = daemon.attachments.all();
    let attach = |wanted: &Attach| attach_to(daemon, wanted.clone()).map(|attached| attached.attachment.device);
    let synced =
        with_world(daemon, |world| sync::sync(&daemon.attachments, world, &params.guests, params.mend, attach));
    let found = |one: &Finding, kind: fn(String, u16, String, Vec<String>) -> EventKind| {
        let key = Key { guest: one.guest.clone(), nic: one.nic };
        let device = one.target.clone().unwrap_or_default();
        tell(daemon, &key, |guest, nic| kind(guest, nic, device, one.what.clone()));
    };
    for one in &synced.orphaned {
        found(one, |guest, nic, device, _| EventKind::Orphaned { guest, nic, device });
        if one.mended && before.iter().any(|record| (&record.wanted.guest, record.wanted.nic) == (&one.guest, one.nic))
        {
            found(one, |guest, nic, device, _| EventKind::Detached { guest, nic, device });
        }
    }
    for one in &synced.drifted {
        found(one, |guest, nic, device, what| EventKind::Drifted { guest, nic, device, what });
    }
    Ok(synced)
}

/// Changes what of a port is its attachment's. Returns what is left to be changed of the port itself.
pub(super) fn set(daemon: &Daemon, key: &Key, change: &Set) -> Result<Set, Error> {
    let mut rest = change.clone();
    let Set { mtu, mac, vlan, min_rate, max_rate, .. } = change.clone();
    (rest.mtu, rest.mac, rest.vlan, rest.min_rate, rest.max_rate) = (None, None, None, None, None);
    if (mtu, mac, vlan, min_rate, max_rate) == (None, None, None, None, None) {
        return Ok(rest);
    }
    with_world(daemon, |world| {
        daemon.attachments.change(world, key, |record| {
            let has = record.wanted.clone();
            record.rated |= min_rate.is_some() || max_rate.is_some();
            record.want(Attach {
                mtu: mtu.unwrap_or(has.mtu),
                mac: mac.or(has.mac),
                vlan: vlan.unwrap_or(has.vlan),
                min_rate: min_rate.unwrap_or(has.min_rate),
                max_rate: max_rate.unwrap_or(has.max_rate),
                ..has
            })
        })
    })?;
    Ok(rest)
}

/// The same of a NIC that was handed over whole, which has no port. None: it has one.
pub(super) fn set_handed_over(daemon: &Daemon, key: &Key, change: &Set) -> Result<Option<Entry>, Error> {
    let handed_over = |record: &Record| record.wanted.mode == Mode::Passthrough;
    if !daemon.attachments.get(key).is_some_and(|record| handed_over(&record)) {
        return Ok(None);
    }
    let Set { mtu, promiscuous, allmulti, compat, .. } = change;
    if mtu.is_some() || promiscuous.is_some() || allmulti.is_some() || compat.is_some() {
        let message = format!("{key}: its VF is the guest's own, which sets all but mac, vlan and rates by itself");
        return Err(Error::new(ErrorKind::Unsupported, message).about(key));
    }
    set(daemon, key, change)?;
    Ok(daemon.attachments.get(key).map(Entry::of))
}
