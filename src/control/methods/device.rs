//! Methods about the host's NICs: the inventory, and what is changed of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use ringspan_protocol::{DeviceSpec, NicOffload, PciAddress};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::host::PlanOf;
use super::{Call, Nothing};
use crate::attach::record::Target;
use crate::control::{Daemon, EventKind, locked};
use crate::error::{Error, ErrorKind};
use crate::host::Host;
use crate::host::bind::{self, Bound, Memory};
use crate::host::eswitch::{self, Eswitch};
use crate::host::firmware::{self, Firmware};
use crate::host::inventory::{self, Device, Inventory, Pf};
use crate::host::sriov::{self, Count, Enabled};
use crate::host::steps::wait;
use crate::host::sysfs::Sysfs;
use crate::host::udev::{self, Named};
use crate::host::vf::{self, Set, Wish};
use crate::host::work::{self, Begun, Change, Finished};
use crate::ovs::client::{Database, Place};
use crate::ovs::view::View;
use crate::state::{HostState, StateDir};

/// Which one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ByDevice {
    /// Its interface, its PCI address in either form, or its id.
    pub device: String,
}

/// Which PF.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ByPf {
    /// Its interface, or its PCI address in either form.
    pub pf: String,
}

impl Daemon {
    /// This host, as the configuration has it.
    pub(crate) fn host(&self) -> Host {
        let host = locked(&self.config).host.clone();
        let journal = Arc::clone(&self.state_dir);
        Host { journal, ..Host::real(&host.sysfs, host.pci_ids.as_deref(), host.id) }
    }
}

/// Open vSwitch's bridges by the interfaces on them. None without an Open vSwitch that answers.
fn bridges(call: &Call) -> BTreeMap<String, String> {
    let place = Place::new(locked(&call.daemon.config).ovs.run_dir.as_deref());
    bridges_of(&Database::connect(&place).and_then(|mut database| View::read(&mut database)).unwrap_or_default())
}

/// Bridges by the interfaces on them.
pub(super) fn bridges_of(view: &View) -> BTreeMap<String, String> {
    let view = view.clone();
    let of_bridge = |bridge: crate::ovs::view::Bridge| {
        let ports = bridge.ports.into_iter();
        ports.flat_map(|port| port.interfaces).map(move |interface| (interface.name, bridge.name.clone()))
    };
    view.bridges.into_iter().flat_map(of_bridge).collect()
}

/// Wires by PFs' interfaces, from the agent's files that were applied last; none where none were, or where they cannot be read now.
pub(super) fn wires(daemon: &Daemon) -> BTreeMap<String, String> {
    let files = daemon.state_dir.load_host().ok().and_then(|state| state.applied);
    let plan = files.and_then(|(file, common)| daemon.plan_of(&PlanOf { file, common }).ok()).unwrap_or_default();
    plan.items.into_iter().map(|item| (item.interface, item.wire)).filter(|(_, wire)| !wire.is_empty()).collect()
}

/// What the daemon knows beyond the host.
struct Around {
    bridges: BTreeMap<String, String>,
    /// By the interface of a PF.
    wires: BTreeMap<String, String>,
    owners: BTreeMap<String, String>,
    guests: BTreeMap<String, String>,
    sysfs: Sysfs,
}

impl Around {
    fn look(call: &Call) -> Self {
        let attached = call.daemon.attachments.all().into_iter();
        let guests = attached.filter_map(|record| match record.target {
            Target::Pci { address, .. } => Some((address.to_string(), record.wanted.guest)),
            Target::Soft { .. } => None,
        });
        Self {
            bridges: bridges(call),
            wires: wires(call.daemon),
            owners: owners(call.daemon),
            guests: guests.collect(),
            sysfs: call.daemon.host().sysfs,
        }
    }

    /// The bridge that an interface is on, itself or its bond.
    fn bridge(&self, interface: Option<&String>) -> Option<String> {
        let interface = interface?;
        let by_bond = || self.bridges.get(&self.sysfs.link(&format!("class/net/{interface}/master"))?);
        self.bridges.get(interface).or_else(by_bond).cloned()
    }

    fn device(&self, mut device: Device) -> Device {
        device.bridge = self.bridge(device.representor.as_ref().or(device.interface.as_ref()));
        let card = device.pf_interface.as_ref().or(device.interface.as_ref());
        device.wire = card.and_then(|interface| self.wires.get(interface).cloned());
        device.owner = self.owners.get(&device.address.to_string()).cloned();
        device.guest_id = self.guests.get(&device.address.to_string()).cloned();
        device
    }

    fn pf(&self, mut pf: Pf) -> Pf {
        pf.bridge = self.bridge(pf.interface.as_ref());
        pf.wire = pf.interface.as_ref().and_then(|interface| self.wires.get(interface).cloned());
        pf
    }
}

/// One change of the host at a time.
pub(super) static CHANGES: Mutex<()> = Mutex::new(());
/// Longest wait for another change to end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Takes the right to change the host. A write into the kernel may hang: who comes then is told so, and does not hang too.
pub(crate) fn one_at_a_time(changes: &Mutex<()>, patience: Duration) -> Result<MutexGuard<'_, ()>, Error> {
    let taken = wait(patience, || match changes.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    });
    taken.ok_or_else(|| {
        let message = "another change of this host's NICs is under way: try again when it has ended, and look into the kernel's log if it never does";
        Error::new(ErrorKind::Busy, message)
    })
}

/// Makes a change of the host, and writes it down before: a daemon that is killed amid it finishes it when it starts again.
pub(super) fn changing<T>(
    daemon: &Daemon,
    change: impl FnOnce(&Host) -> Result<Change, Error>,
    run: impl FnOnce(&Host) -> Result<T, Error>,
) -> Result<T, Error> {
    let (host, _one) = (daemon.host(), one_at_a_time(&CHANGES, PATIENCE)?);
    finish_begun(daemon, &host);
    let begun = Begun::new(&host, change(&host)?);
    daemon.state_dir.change_host(|state| state.begun = Some(begun))?;
    let outcome = run(&host);
    // Where one could not be given back it is tried again, as after a daemon that was killed.
    let unbound = daemon.state_dir.load_host().ok().and_then(|state| state.begun).map(|begun| begun.unbound);
    ended_without(daemon, &work::without_driver(&host, unbound.unwrap_or_default()));
    outcome
}

/// A change has ended, and these functions are left without their drivers.
fn ended_without(daemon: &Daemon, drivers: &BTreeMap<PciAddress, String>) {
    let written = daemon.state_dir.change_host(|state| {
        state.begun = None;
        state.without_driver.extend(drivers.clone());
    });
    // Done again by the next daemon, which changes nothing.
    if let Err(error) = written {
        tracing::warn!("that a change of the host has ended is not written down: {error}");
    }
}

/// Tries again to give functions back to the drivers that did not take them when a change was finished: a module may have come meanwhile.
pub(super) fn give_back_left(daemon: &Daemon) {
    let left = |state: HostState| state.without_driver;
    if daemon.state_dir.load_host().map_or(true, |state| left(state).is_empty()) {
        return;
    }
    let Ok(_one) = one_at_a_time(&CHANGES, PATIENCE) else { return };
    let Ok(functions) = daemon.state_dir.load_host().map(left) else { return };
    let Finished { done, without_driver, .. } = work::give_back_all(&daemon.host(), &functions);
    for done in &done {
        tracing::info!("{done}");
    }
    if without_driver != functions
        && let Err(error) = daemon.state_dir.change_host(|state| state.without_driver = without_driver)
    {
        tracing::warn!("which functions have their drivers again is not written down: {error}");
    }
    if !done.is_empty() {
        let what = "giving functions back to their drivers".to_owned();
        daemon.events.tell(None, None, EventKind::HostFinished { what, done, error: None });
    }
}

/// Finishes what an earlier daemon was killed amid. Whoever calls has the right to change the host.
fn finish_begun(daemon: &Daemon, host: &Host) {
    let Some(begun) = daemon.state_dir.load_host().ok().and_then(|state| state.begun) else { return };
    let memory = Drivers(&daemon.state_dir);
    let finished = super::bond::with_around(daemon, |around| Ok(work::finish(host, &memory, around, &begun)));
    let Finished { done, error, without_driver } = finished.unwrap_or_else(|error| Finished {
        done: vec![],
        error: Some(error),
        without_driver: begun.unbound.clone(),
    });
    ended_without(daemon, &without_driver);
    let what = begun.change.told();
    for done in &done {
        tracing::info!("{done}: {what} had been begun by an earlier daemon");
    }
    match &error {
        None => tracing::info!("{what}: what an earlier daemon had begun is finished"),
        Some(error) => tracing::warn!("{what}: what an earlier daemon had begun is not finished: {error}"),
    }
    daemon.events.tell(None, None, EventKind::HostFinished { what, done, error: error.map(|error| error.message) });
}

/// The same at the daemon's start.
pub(super) fn finish_left(daemon: &Daemon) {
    let left = daemon.state_dir.load_host().is_ok_and(|state| state.begun.is_some());
    if left && let Ok(_one) = one_at_a_time(&CHANGES, PATIENCE) {
        finish_begun(daemon, &daemon.host());
    }
}

/// Default of `timeout_ms` of `vf.enable`.
const ENABLE_MS: u64 = 60_000;

fn enable_ms() -> u64 {
    ENABLE_MS
}

/// How many VFs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EnableVfs {
    /// The PF: its interface or its PCI address.
    pub pf: String,
    /// How many, 0 for none, or `max`.
    pub count: Count,
    /// Takes VFs away that are bound to vfio-pci, or whose interfaces are up. What a port of ringspan's or a process has stays all the same.
    #[serde(default)]
    pub disturb: bool,
    /// Longest wait for all of them to be there, in milliseconds, 10 minutes at most.
    #[serde(default = "enable_ms")]
    pub timeout_ms: u64,
}

/// Which PF's firmware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FirmwareOf {
    /// The PF: its interface, its PCI address in either form, or its mst device.
    pub pf: String,
}

/// Whose interfaces are named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NameInterfaces {
    /// The PF: its interface, or its PCI address in either form.
    pub pf: String,
    /// Changes nothing, and says what would be written.
    #[serde(default)]
    pub dry_run: bool,
}

/// Which driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BindDevice {
    /// Its interface, its PCI address in either form.
    pub device: String,
    /// The driver, `vfio-pci` for instance. Its module is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Gives it back to the driver that it had at first, instead.
    #[serde(default)]
    pub restore: bool,
    /// Also when it is a PF with VFs, or its interface is up.
    #[serde(default)]
    pub disturb: bool,
}

/// The original drivers, in the daemon's state.
pub(super) struct Drivers<'a>(pub(super) &'a StateDir);

impl Memory for Drivers<'_> {
    fn original(&self, function: PciAddress) -> Result<Option<Option<String>>, Error> {
        Ok(self.0.load_host()?.original_drivers.get(&function).cloned())
    }

    fn remember(&self, function: PciAddress, driver: Option<Option<String>>) -> Result<(), Error> {
        self.0.change_host(|host| {
            match driver {
                Some(driver) => host.original_drivers.insert(function, driver),
                None => host.original_drivers.remove(&function),
            };
        })
    }
}

/// The ports, and the NICs in software, by the functions that they have.
pub(super) fn owners(daemon: &Daemon) -> BTreeMap<String, String> {
    let mut owners = owners_of(daemon);
    for record in daemon.attachments.all() {
        if let Target::Pci { address, .. } = record.target {
            owners.insert(address.to_string(), record.key().to_string());
        }
    }
    owners
}

/// Those, without what guests have that have no port.
pub(super) fn owners_of(daemon: &Daemon) -> BTreeMap<String, String> {
    let desired = locked(&daemon.desired);
    let mut owners = BTreeMap::new();
    for (name, nic) in &desired.nics {
        // A NIC of its own, where ringspan and not TC brings flows into its switch.
        let own = nic.spec.pci.as_ref().filter(|pci| pci.offload == NicOffload::Ringspan).map(|pci| &pci.pf);
        for uplink in nic.spec.uplinks.iter().chain(own) {
            if let DeviceSpec::Pci { address, .. } = uplink {
                owners.insert(address.to_string(), name.to_string());
            }
        }
    }
    for (name, port) in &desired.ports {
        // A representor's port has the PF open too.
        for part in port.spec.device.parts() {
            if let Some(address) = part.function() {
                owners.insert(address.to_string(), name.to_string());
            }
        }
    }
    owners
}

pub(super) fn enable_vfs(call: &mut Call, request: EnableVfs) -> Result<Enabled, Error> {
    let limit = Duration::from_millis(request.timeout_ms.min(600_000));
    let EnableVfs { pf, count, disturb, timeout_ms } = request.clone();
    let change = |host: &Host| {
        let before = sriov::pf(host, &pf).map_or(0, |(_, _, now)| now);
        Ok(Change::EnableVfs { pf, count, disturb, timeout_ms, before })
    };
    let enabled = changing(call.daemon, change, |host| {
        super::bond::with_around(call.daemon, |around| {
            sriov::enable(host, &request.pf, request.count, request.disturb, limit, around)
        })
    })?;
    for done in &enabled.done {
        tracing::info!("{done}, as process {} asked", call.peer.pid);
    }
    Ok(enabled)
}

pub(super) fn set_vf(call: &mut Call, wish: Wish) -> Result<Set, Error> {
    let change = |host: &Host| Ok(Change::SetVf { before: vf::look(host, &wish), wish: wish.clone() });
    let set = changing(call.daemon, change, |host| vf::set(host, &wish))?;
    for done in &set.done {
        tracing::info!("{done}, as process {} asked", call.peer.pid);
    }
    Ok(set)
}

pub(super) fn eswitch(call: &mut Call, ByPf { pf }: ByPf) -> Result<Eswitch, Error> {
    eswitch::get(&call.daemon.host(), &pf)
}

pub(super) fn set_eswitch(call: &mut Call, wish: eswitch::Wish) -> Result<Eswitch, Error> {
    let change = |host: &Host| {
        let (vfs, before) = (eswitch::vfs_that_go(host, &wish), eswitch::look(host, &wish));
        Ok(Change::SetEswitch { wish: wish.clone(), vfs, before })
    };
    let set = changing(call.daemon, change, |host| {
        eswitch::set(host, &wish, |address| owners(call.daemon).remove(&address.to_string()))
    })?;
    for done in &set.done {
        tracing::info!("{done}, as process {} asked", call.peer.pid);
    }
    Ok(set)
}

pub(super) fn firmware(call: &mut Call, FirmwareOf { pf }: FirmwareOf) -> Result<Firmware, Error> {
    firmware::get(&call.daemon.host(), &pf)
}

pub(super) fn set_firmware(call: &mut Call, wish: firmware::Wish) -> Result<Firmware, Error> {
    let (host, _one) = (call.daemon.host(), one_at_a_time(&CHANGES, PATIENCE)?);
    let set = firmware::set(&host, &wish)?;
    for done in &set.done {
        tracing::info!("{done}, as process {} asked", call.peer.pid);
    }
    Ok(set)
}

pub(super) fn name_interfaces(call: &mut Call, NameInterfaces { pf, dry_run }: NameInterfaces) -> Result<Named, Error> {
    let (host, _one) = (call.daemon.host(), one_at_a_time(&CHANGES, PATIENCE)?);
    let named = udev::name(&host, &pf, dry_run)?;
    for done in &named.done {
        tracing::info!("{done}, as process {} asked", call.peer.pid);
    }
    Ok(named)
}

pub(super) fn bind(call: &mut Call, request: BindDevice) -> Result<Bound, Error> {
    let BindDevice { device, driver, restore, disturb } = request;
    if driver.is_some() == restore {
        return Err(Error::new(ErrorKind::Usage, "device.bind: give either driver or restore: see schema.get"));
    }
    let (owner, memory) =
        (|address: PciAddress| owners(call.daemon).remove(&address.to_string()), Drivers(&call.daemon.state_dir));
    // By its address: its interface is gone when it has no driver.
    let change = |host: &Host| {
        let device = inventory::find(host, &device)?;
        Ok(Change::Bind { device, driver: driver.clone(), disturb, before: Some(bind::Had::look(host, device)) })
    };
    let bound =
        changing(call.daemon, change, |host| bind::bind(host, &memory, &device, driver.as_deref(), disturb, owner))?;
    // Somebody has decided on it.
    call.daemon.state_dir.change_host(|state| drop(state.without_driver.remove(&bound.address)))?;
    for done in &bound.done {
        tracing::info!("{done}, as process {} asked", call.peer.pid);
    }
    Ok(bound)
}

pub(super) fn list(call: &mut Call, _: Nothing) -> Result<Vec<Device>, Error> {
    let (host, around) = (call.daemon.host(), Around::look(call));
    Ok(Inventory::take(&host).with_vdpa().devices().into_iter().map(|device| around.device(device)).collect())
}

pub(super) fn get(call: &mut Call, ByDevice { device }: ByDevice) -> Result<Device, Error> {
    let host = call.daemon.host();
    let inventory = Inventory::take(&host).with_vdpa();
    let mut found = inventory.device_named(&device)?;
    found.settings = inventory.settings(&found);
    Ok(Around::look(call).device(found))
}

pub(super) fn pf_list(call: &mut Call, _: Nothing) -> Result<Vec<Pf>, Error> {
    let (host, around) = (call.daemon.host(), Around::look(call));
    Ok(Inventory::take(&host).pfs().into_iter().map(|pf| around.pf(pf)).collect())
}

pub(super) fn pf_get(call: &mut Call, ByPf { pf }: ByPf) -> Result<Pf, Error> {
    let host = call.daemon.host();
    Ok(Around::look(call).pf(Inventory::take(&host).pf_named(&pf)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_while_a_change_hangs_is_told_so() {
        let changes = Mutex::new(());
        let held = one_at_a_time(&changes, PATIENCE).unwrap();
        assert_eq!(one_at_a_time(&changes, Duration::from_millis(20)).unwrap_err().kind, ErrorKind::Busy);
        drop(held);
        assert!(one_at_a_time(&changes, PATIENCE).is_ok());
    }
}
