//! Which VF a guest gets.

use std::collections::BTreeMap;

use ringspan_protocol::{NicMode, NicName, NicPort, NicSpec};

use super::record::{Record, Target};
use super::request::Attach;
use crate::error::{Error, ErrorKind};
use crate::host::Host;
use crate::host::inventory::Device;

/// What a VF of a software NIC has for a model.
const SOFT_MODEL: &str = "ringspan software NIC";

/// A VF that a guest may get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Which.
    pub target: Target,
    /// What it may be named by.
    pub names: Vec<String>,
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

    fn hard(&self, host: &Host, device: &Device) -> Option<Candidate> {
        let (pf, vf) = (device.pf?, device.vf?);
        let uplink = device.pf_interface.clone();
        let master = uplink.as_ref().and_then(|name| host.sysfs.link(&format!("class/net/{name}/master")));
        let wire = uplink.as_ref().and_then(|name| self.wires.get(name)).cloned();
        let ports = [uplink, master];
        let bridge = ports.iter().flatten().find_map(|port| self.bridges.get(port)).cloned();
        let named = [Some(device.id.clone()), Some(device.address.to_string()), Some(device.addr.clone())];
        Some(Candidate {
            target: Target::Pci { address: device.address, pf, vf },
            names: named.into_iter().chain([device.interface.clone()]).flatten().collect(),
            model: device.model.clone(),
            wires: ports.into_iter().flatten().chain(bridge.clone()).chain(wire).collect(),
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

/// The VF for this guest: the one that is named, or a free one of the model and on the wire, near to the guest's memory when there is one.
/// `in_use` knows who else has a VF.
pub(crate) fn choose<'a>(
    candidates: &'a [Candidate],
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
            let message = format!("there is no VF {name:?} here: see ringspan device list, and ringspan nic list");
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
    let on = wanted.wire.as_ref().map_or_else(String::new, |wire| format!(" on wire {wire}"));
    if fit.is_empty() {
        return Err(about(ErrorKind::NotFound, format!("there is no VF{of}{on} here: see ringspan device list")));
    }
    let message = format!("no VF{of}{on} is free: all {} are used", fit.len());
    Err(about(ErrorKind::NoRoom, message))
}
