//! Methods about the host's NICs: the inventory.

use std::collections::BTreeMap;

use ringspan_protocol::DeviceSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Call, Nothing};
use crate::control::{Daemon, locked};
use crate::error::Error;
use crate::host::Host;
use crate::host::inventory::{Device, Inventory, Pf};
use crate::ovs::client::{Database, Place};
use crate::ovs::view::View;

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
        Host::real(&host.sysfs, host.pci_ids.as_deref(), host.id)
    }
}

/// Open vSwitch's bridges by the interfaces on them. None without an Open vSwitch that answers.
fn bridges(call: &Call) -> BTreeMap<String, String> {
    let place = Place::new(locked(&call.daemon.config).ovs.run_dir.as_deref());
    let view = Database::connect(&place).and_then(|mut database| View::read(&mut database)).unwrap_or_default();
    let of_bridge = |bridge: crate::ovs::view::Bridge| {
        let ports = bridge.ports.into_iter();
        ports.flat_map(|port| port.interfaces).map(move |interface| (interface.name, bridge.name.clone()))
    };
    view.bridges.into_iter().flat_map(of_bridge).collect()
}

/// What the daemon knows beyond the host.
struct Around {
    bridges: BTreeMap<String, String>,
    owners: BTreeMap<String, String>,
}

impl Around {
    fn look(call: &Call) -> Self {
        let desired = locked(&call.daemon.desired);
        let owner = |(name, port): (&ringspan_protocol::PortName, &crate::desired::DesiredPort)| match &port.spec.device
        {
            // A representor's port has the PF's address, and does not own the PF.
            DeviceSpec::Pci { address, args } if !args.contains("representor=") => {
                Some((address.to_string(), name.to_string()))
            }
            _ => None,
        };
        let owners = desired.ports.iter().filter_map(owner).collect();
        drop(desired);
        Self { bridges: bridges(call), owners }
    }

    fn bridge(&self, interface: Option<&String>) -> Option<String> {
        self.bridges.get(interface?).cloned()
    }

    fn device(&self, mut device: Device) -> Device {
        device.bridge = self.bridge(device.representor.as_ref().or(device.interface.as_ref()));
        device.owner = self.owners.get(&device.address.to_string()).cloned();
        device
    }

    fn pf(&self, mut pf: Pf) -> Pf {
        pf.bridge = self.bridge(pf.interface.as_ref());
        pf
    }
}

pub(super) fn list(call: &mut Call, _: Nothing) -> Result<Vec<Device>, Error> {
    let (host, around) = (call.daemon.host(), Around::look(call));
    Ok(Inventory::take(&host).devices().into_iter().map(|device| around.device(device)).collect())
}

pub(super) fn get(call: &mut Call, ByDevice { device }: ByDevice) -> Result<Device, Error> {
    let host = call.daemon.host();
    let inventory = Inventory::take(&host);
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
