//! Which VF a guest gets.

use std::collections::{BTreeMap, BTreeSet};

use ringspan_protocol::{NicMode, NicName, NicPort, NicSpec};

use super::record::{Record, Target};
use super::request::Attach;
use crate::error::{Error, ErrorKind};
use crate::host::inventory::Device;
use crate::host::{Host, pci_function, sriov};

/// What a VF of a software NIC has for a model.
const SOFT_MODEL: &str = "ringspan software NIC";

/// A VF that a guest may get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Which.
    pub target: Target,
    /// What it may be named by.
    pub names: Vec<String>,
    /// What it is of: [`Uplink::name`].
    pub uplink: String,
    /// Its model.
    pub model: String,
    /// The wires that it is on, by all their names.
    pub wires: Vec<String>,
    /// The NUMA node that it is near to.
    pub numa: Option<u32>,
    /// The port, or NIC, of ringspan's that has it.
    pub owner: Option<String>,
    /// The bridge that its uplink is in.
    pub bridge: Option<String>,
    /// The interface that stands for it.
    pub representor: Option<String>,
    /// The inventory's entry.
    pub device: Option<Device>,
}

/// What has VFs, or could have: a PF, or a software NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Uplink {
    /// What messages call it: `PF eth0 (0000:03:00.0)`, or `NIC nic0`.
    pub name: String,
    /// What else it may be called.
    pub names: Vec<String>,
    /// What `ringspan vf enable` takes for it; a software NIC has the VFs that it was made with.
    pub pf: Option<String>,
    /// Why it can have no VF, where that is so.
    pub why_none: Option<String>,
    /// The wires that it is on, by all their names.
    pub wires: Vec<String>,
}

/// What the VFs are found by.
pub(crate) struct Around<'a> {
    /// The functions of this host's NICs.
    pub devices: Vec<Device>,
    /// Open vSwitch's bridges by the interfaces in them.
    pub bridges: &'a BTreeMap<String, String>,
    /// The agent's wires by the interfaces of PFs.
    pub wires: &'a BTreeMap<String, String>,
    /// Ports and NICs by the addresses that they have.
    pub owners: &'a BTreeMap<String, String>,
    /// Software NICs.
    pub nics: &'a BTreeMap<NicName, NicSpec>,
    /// Ports by the VFs of software NICs that they have.
    pub soft_owners: &'a BTreeMap<String, String>,
}

impl Around<'_> {
    /// All VFs, those of NICs first, by their addresses.
    pub(crate) fn candidates(&self, host: &Host) -> Vec<Candidate> {
        let hard = self.devices.iter().filter_map(|device| self.hard(host, device));
        let soft = self.nics.iter().filter(|(_, spec)| spec.pci.is_none());
        let soft = soft.flat_map(|(name, spec)| (0..spec.vfs).map(move |vf| (name, spec, vf)));
        hard.chain(soft.map(|(name, spec, vf)| self.soft(name, spec, vf))).collect()
    }

    /// What the VFs are of, or could be of: those without VFs, too.
    pub(crate) fn uplinks(&self, host: &Host) -> Vec<Uplink> {
        let hard = self.devices.iter().filter(|device| device.pf.is_none() && device.vf.is_none()).map(|device| {
            let (interface, address) = (device.interface.clone(), device.address.to_string());
            let (wires, _) = self.wires_of(host, interface.clone());
            let names = [device.id.clone(), address.clone(), device.addr.clone()];
            let function = pci_function(host, device.address).filter(|one| one.vf_counts.is_none());
            Uplink {
                name: pf_name(interface.as_deref(), &address),
                names: names.into_iter().chain(interface.clone()).collect(),
                pf: Some(interface.unwrap_or(address)),
                why_none: function.map(|function| sriov::why_none(host, &function)),
                wires,
            }
        });
        let soft = self.nics.iter().filter(|(_, spec)| spec.pci.is_none()).map(|(name, _)| Uplink {
            name: format!("NIC {name}"),
            names: vec![name.to_string()],
            pf: None,
            why_none: None,
            wires: [name.to_string()].into_iter().chain(self.bridges.get(name.as_str()).cloned()).collect(),
        });
        hard.chain(soft).collect()
    }

    /// The wires that this interface of a PF is on, and the bridge.
    fn wires_of(&self, host: &Host, uplink: Option<String>) -> (Vec<String>, Option<String>) {
        let master = uplink.as_ref().and_then(|name| host.sysfs.link(&format!("class/net/{name}/master")));
        let wire = uplink.as_ref().and_then(|name| self.wires.get(name)).cloned();
        let ports = [uplink, master];
        let bridge = ports.iter().flatten().find_map(|port| self.bridges.get(port)).cloned();
        (ports.into_iter().flatten().chain(bridge.clone()).chain(wire).collect(), bridge)
    }

    fn hard(&self, host: &Host, device: &Device) -> Option<Candidate> {
        let (pf, vf) = (device.pf?, device.vf?);
        let (wires, bridge) = self.wires_of(host, device.pf_interface.clone());
        let named = [Some(device.id.clone()), Some(device.address.to_string()), Some(device.addr.clone())];
        Some(Candidate {
            target: Target::Pci { address: device.address, pf, vf },
            names: named.into_iter().chain([device.interface.clone()]).flatten().collect(),
            uplink: pf_name(device.pf_interface.as_deref(), &pf.to_string()),
            model: device.model.clone(),
            wires,
            numa: device.numa_node,
            owner: self.owners.get(&device.address.to_string()).cloned(),
            bridge,
            representor: device.representor.clone(),
            device: Some(device.clone()),
        })
    }

    fn soft(&self, name: &NicName, spec: &NicSpec, vf: u16) -> Candidate {
        let target = Target::Soft { nic: name.clone(), vf };
        let bridge = self.bridges.get(name.as_str()).cloned();
        let switchdev = spec.mode == NicMode::Switchdev;
        Candidate {
            names: vec![target.to_string()],
            uplink: format!("NIC {name}"),
            model: SOFT_MODEL.into(),
            wires: [name.to_string()].into_iter().chain(bridge.clone()).collect(),
            numa: None,
            owner: self.soft_owners.get(&target.to_string()).cloned(),
            bridge,
            representor: switchdev.then(|| NicPort::Vf(vf).representor(name)),
            device: None,
            target,
        }
    }
}

fn pf_name(interface: Option<&str>, address: &str) -> String {
    interface.map_or_else(|| format!("PF {address}"), |interface| format!("PF {interface} ({address})"))
}

/// Each of them once, in order, for a message.
fn listed<'a>(texts: impl IntoIterator<Item = &'a String>) -> String {
    let texts: BTreeSet<&str> = texts.into_iter().map(String::as_str).collect();
    if texts.is_empty() { "none".into() } else { texts.into_iter().collect::<Vec<_>>().join(", ") }
}

/// Why no VF is on the wire and of the model, free or not.
fn nothing_fits(wanted: &Attach, candidates: &[Candidate], uplinks: &[Uplink]) -> String {
    const SEE: &str = "see ringspan device list, and ringspan nic list";
    let model = wanted.model.as_deref().unwrap_or_default();
    let Some(wire) = &wanted.wire else {
        let models = listed(candidates.iter().map(|one| &one.model));
        return format!("there is no VF of model {model:?} here; models of VFs: {models}: {SEE}");
    };
    let there: Vec<&Candidate> = candidates.iter().filter(|one| one.wires.contains(wire)).collect();
    if !there.is_empty() {
        let (names, models) = (listed(there.iter().map(|one| &one.uplink)), listed(there.iter().map(|one| &one.model)));
        return format!("no VF of {names}, on wire {wire:?}, is of model {model:?}; their models: {models}");
    }
    let on: Vec<&Uplink> = uplinks.iter().filter(|one| one.wires.contains(wire)).collect();
    let names = listed(on.iter().map(|one| &one.name));
    if on.is_empty() {
        let wires = listed(uplinks.iter().flat_map(|one| &one.wires));
        return format!("there is no wire {wire:?} here; wires: {wires}: {SEE}");
    }
    let none = format!("{names}, on wire {wire:?}, has no VF");
    if let Some(pf) = on.iter().find_map(|one| one.pf.as_ref().filter(|_| one.why_none.is_none())) {
        return format!("{none}: make some with ringspan vf enable {pf} COUNT");
    }
    match on.iter().find_map(|one| one.why_none.as_ref()) {
        Some(why) => format!("{none}, and cannot have any: {why}: name another wire: {SEE}"),
        None => format!("{none}: {SEE}"),
    }
}

/// The VF for this guest: the one that is named, or a free one of the model and on the wire, near to the guest's memory when there is one.
/// `in_use` knows who else has a VF.
pub(crate) fn choose<'a>(
    candidates: &'a [Candidate],
    uplinks: &[Uplink],
    wanted: &Attach,
    records: &[Record],
    in_use: impl Fn(&Candidate) -> Option<String>,
) -> Result<&'a Candidate, Error> {
    let (guest, nic) = (&wanted.guest, wanted.nic);
    let about = |kind, message: String| Error::new(kind, message).about(format!("{guest}-nic{nic}"));
    let user = |one: &Candidate| {
        let attached = records.iter().find(|record| record.target == one.target);
        let by_guest = attached.map(|record| format!("guest {} (NIC {})", record.wanted.guest, record.wanted.nic));
        by_guest.or_else(|| one.owner.clone()).or_else(|| in_use(one))
    };
    if let Some(name) = &wanted.device {
        let Some(found) = candidates.iter().find(|one| one.names.iter().any(|known| known == name)) else {
            let whole = uplinks.iter().find(|one| one.names.iter().any(|known| known == name));
            let message = match whole {
                Some(one) => {
                    format!("{name:?} is {}, and a guest gets a VF: name one of its VFs, or it as the wire", one.name)
                }
                None => format!("there is no VF {name:?} here: see ringspan device list, and ringspan nic list"),
            };
            return Err(about(ErrorKind::NotFound, message));
        };
        return match user(found) {
            None => Ok(found),
            Some(user) => Err(about(ErrorKind::Busy, format!("{name} is not free: {user} has it"))),
        };
    }
    if wanted.model.is_none() && wanted.wire.is_none() {
        return Err(about(ErrorKind::Usage, "say which VF: a device, a model or a wire".into()));
    }
    let on_wire = |one: &&Candidate| wanted.wire.as_ref().is_none_or(|wire| one.wires.contains(wire));
    let model = wanted.model.as_deref().unwrap_or_default();
    // Not the model as it is written: any that has the text in it.
    let rank = |one: &Candidate| match one.model == model {
        true => Some(0),
        false => one.model.contains(model).then_some(1),
    };
    let far = |one: &Candidate| wanted.numa_node.is_some() && one.numa != wanted.numa_node;
    let mut fit: Vec<(u8, bool, &Candidate)> =
        candidates.iter().filter(on_wire).filter_map(|one| Some((rank(one)?, far(one), one))).collect();
    fit.sort_by_key(|(rank, far, _)| (*rank, *far));
    if let Some((_, _, found)) = fit.iter().find(|(_, _, one)| user(one).is_none()) {
        return Ok(found);
    }
    let of = wanted.model.as_ref().map_or_else(String::new, |model| format!(" of model {model:?}"));
    let on = wanted.wire.as_ref().map_or_else(String::new, |wire| format!(" on wire {wire:?}"));
    if fit.is_empty() {
        return Err(about(ErrorKind::NotFound, nothing_fits(wanted, candidates, uplinks)));
    }
    let names = listed(fit.iter().map(|(_, _, one)| &one.uplink));
    let used = match fit.len() {
        1 => "the only one is used".to_owned(),
        all => format!("all {all} are used"),
    };
    let message =
        format!("no VF{of}{on} of {names} is free: {used}: see ringspan attachment list, and ringspan port list");
    Err(about(ErrorKind::NoRoom, message))
}
