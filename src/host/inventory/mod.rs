//! The inventory: every NIC's physical and virtual functions, in every PCI domain.
//!
//! A list asks netlink for devlink's ports, and for each PF's switch and driver; it never asks for lists of VFs. For vDPA devices it asks only where they
//! are to be told of ([`Inventory::with_vdpa`]): who adds one holds the kernel's lock for seconds.

mod entry;
mod offload;
mod pcie;

use std::collections::BTreeMap;

use ringspan_protocol::PciAddress;

pub(crate) use entry::{Device, LinkType, Pf, Sriov, VdpaManagement};
pub(crate) use offload::Offload;
pub(crate) use pcie::PcieInfo;

use super::Host;
use super::model::Names;
use super::netlink::{DevlinkName, DevlinkPort, DriverInfo, EswitchState};
use super::pci::{Function, short};
use super::representor::{Representors, function_of, index};
use super::vdpa::on_function;
use crate::error::{Error, ErrorKind};

/// What was found of a PF beyond its function.
#[derive(Debug, Clone, Default)]
pub(super) struct Upper {
    pub(super) interface: Option<String>,
    pub(super) index: Option<u32>,
    pub(super) link_type: LinkType,
    pub(super) switch_id: Option<String>,
    /// None: the driver has no eswitch, or devlink cannot be asked.
    pub(super) eswitch: Option<EswitchState>,
    pub(super) driver: DriverInfo,
}

/// The functions of a host at one moment.
pub(crate) struct Inventory<'a> {
    host: &'a Host,
    functions: Vec<Function>,
    names: Names,
    ports: Vec<DevlinkPort>,
    uppers: BTreeMap<PciAddress, Upper>,
    /// vDPA devices by the function that they were made on, where they were asked for.
    vdpa: BTreeMap<PciAddress, Vec<String>>,
}

impl<'a> Inventory<'a> {
    /// Looks at everything but vDPA devices.
    pub(crate) fn take(host: &'a Host) -> Self {
        Self::of(host, Function::all(&host.sysfs), |_| true)
    }

    /// With the vDPA devices on functions.
    pub(crate) fn with_vdpa(self) -> Self {
        Self { vdpa: on_function(self.host), ..self }
    }

    fn of(host: &'a Host, functions: Vec<Function>, wanted: impl Fn(&Function) -> bool) -> Self {
        let ids: Vec<(u16, u16)> = functions.iter().map(|function| (function.vendor, function.device)).collect();
        let names = Names::read(&host.names, &ids);
        // Where the kernel has no devlink, sysfs says what it can.
        let ports = host.kernel.ports().unwrap_or_default();
        let mut inventory = Self { host, functions, names, ports, uppers: BTreeMap::new(), vdpa: BTreeMap::new() };
        let pfs = inventory.functions.iter().filter(|function| function.pf.is_none() && wanted(function));
        inventory.uppers = pfs.map(|pf| (pf.address, inventory.look_up(pf))).collect();
        inventory
    }

    fn representors(&self) -> Representors<'_> {
        Representors::new(&self.host.sysfs, &self.ports)
    }

    fn look_up(&self, pf: &Function) -> Upper {
        let sysfs = &self.host.sysfs;
        let interface = self.representors().own(pf).or_else(|| pf.virtio_interface(sysfs));
        let eswitch = match pf.driver {
            Some(_) => self.host.kernel.eswitch(&DevlinkName::from(pf.address)).ok(),
            None => None,
        };
        Upper {
            index: interface.as_ref().and_then(|interface| index(sysfs, interface)),
            link_type: self.link_type(interface.as_deref()),
            switch_id: interface.as_ref().and_then(|interface| self.representors().switch_id(interface)),
            eswitch,
            driver: interface
                .as_ref()
                .and_then(|interface| self.host.kernel.driver(interface).ok())
                .unwrap_or_default(),
            interface,
        }
    }

    /// ARPHRD_ETHER and ARPHRD_INFINIBAND of linux/if_arp.h.
    fn link_type(&self, interface: Option<&str>) -> LinkType {
        let number = |interface| self.host.sysfs.number::<u32>(&format!("class/net/{interface}/type"));
        match interface.and_then(number) {
            Some(1) => LinkType::Ethernet,
            Some(32) => LinkType::Infiniband,
            _ => LinkType::Unknown,
        }
    }

    fn pf_functions(&self) -> impl Iterator<Item = &Function> {
        self.functions.iter().filter(|function| function.pf.is_none())
    }

    /// All PFs, by address.
    pub(crate) fn pfs(&self) -> Vec<Pf> {
        self.pf_functions().map(|function| self.pf(function)).collect()
    }

    /// All PFs and VFs, by address.
    pub(crate) fn devices(&self) -> Vec<Device> {
        self.functions.iter().map(|function| self.device(function)).collect()
    }

    /// The PF that is named by its interface or its address.
    pub(crate) fn pf_named(&self, name: &str) -> Result<Pf, Error> {
        let function = self.function(find(self.host, name)?, name)?;
        match function.pf {
            None => Ok(self.pf(function)),
            Some(pf) => Err(Error::new(
                ErrorKind::Invalid,
                format!("{name} is a virtual function: name its physical one, {pf}"),
            )
            .about(name)),
        }
    }

    /// The device that is named by its interface, its address or its id.
    pub(crate) fn device_named(&self, name: &str) -> Result<Device, Error> {
        if let Some(function) = self.functions.iter().find(|function| self.id(function) == name) {
            return Ok(self.device(function));
        }
        Ok(self.device(self.function(find(self.host, name)?, name)?))
    }

    fn function(&self, address: PciAddress, name: &str) -> Result<&Function, Error> {
        self.functions.iter().find(|function| function.address == address).ok_or_else(|| not_a_nic(name, address))
    }

    fn id(&self, function: &Function) -> String {
        entry::id(self.host.id.as_deref(), &function.vendor_device(), function.address)
    }

    fn pf(&self, function: &Function) -> Pf {
        let upper = self.uppers.get(&function.address).cloned().unwrap_or_default();
        Pf {
            address: function.address,
            addr: short(function.address),
            vendor_device_id: function.vendor_device(),
            model: self.names.model(function.vendor, function.device),
            lspci_name: self.names.lspci(function.vendor, function.device),
            interface: upper.interface.clone(),
            link_type: upper.link_type,
            driver: function.driver.clone(),
            driver_version: upper.driver.version.clone(),
            firmware_version: upper.driver.firmware.clone(),
            numa_node: function.numa_node,
            iommu_group: function.iommu_group,
            sriov: function.vf_counts.map(|(total, enabled)| Sriov { total, enabled }),
            capabilities: function.capabilities(&self.host.sysfs),
            eswitch_mode: upper.eswitch.map(|eswitch| eswitch.mode),
            switch_id: upper.switch_id.clone(),
            bridge: None,
            wire: None,
            ovs_offload: offload::of(function, &upper),
            pcie_info: pcie::read(&self.host.sysfs, function.address),
            vfs: function.vfs.values().copied().collect(),
        }
    }

    fn device(&self, function: &Function) -> Device {
        let pf = function.pf.and_then(|pf| self.functions.iter().find(|function| function.address == pf));
        let upper = self.uppers.get(&pf.unwrap_or(function).address).cloned().unwrap_or_default();
        let vf = pf.and_then(|pf| {
            let number = pf.vfs.iter().find(|(_, address)| **address == function.address);
            number.map(|(number, _)| *number)
        });
        let representor = pf.zip(vf).and_then(|(pf, vf)| self.representors().of_vf(pf, vf));
        let interface = match function.pf {
            None => upper.interface.clone(),
            Some(_) => function.interfaces(&self.host.sysfs).into_iter().next(),
        };
        let pcie = pcie::read(&self.host.sysfs, function.address);
        Device {
            id: self.id(function),
            dev_type: "NIC".into(),
            sharing_mode: if function.pf.is_some() { "SRIOV".into() } else { String::new() },
            model: self.names.model(function.vendor, function.device),
            lspci_name: self.names.lspci(function.vendor, function.device),
            address: function.address,
            addr: short(function.address),
            vendor_device_id: function.vendor_device(),
            pf: function.pf,
            pf_interface: function.pf.and(upper.interface.clone()),
            vf,
            driver: function.driver.clone(),
            numa_node: function.numa_node,
            iommu_group: function.iommu_group,
            interface,
            link_type: upper.link_type,
            is_infiniband_nic: upper.link_type == LinkType::Infiniband,
            switch_id: upper.switch_id.clone(),
            ovs_offload_interface: representor.clone(),
            representor,
            bridge: None,
            wire: None,
            vdpa: self.vdpa.get(&function.address).map(|devices| VdpaManagement { devices: devices.clone() }),
            owner: None,
            settings: None,
            capabilities: function.capabilities(&self.host.sysfs),
            ovs_offload: offload::of(pf.unwrap_or(function), &upper),
            // A VF's own link is its PF's.
            pcie_info: pcie.or_else(|| pcie::read(&self.host.sysfs, function.pf?)),
            virtual_num: 0,
            hot_pluggable: function.pf.is_some(),
            detected_on_host: true,
            host_id: self.host.id.clone(),
            guest_id: None,
        }
    }

    /// What the PF has set for this VF; nothing where it cannot be asked. One link is asked for, and none else.
    pub(crate) fn settings(&self, device: &Device) -> Option<super::netlink::VfSettings> {
        let index = self.uppers.get(&device.pf?)?.index?;
        let vf = u32::from(device.vf?);
        self.host.kernel.vfs(index).ok()?.into_iter().find(|settings| settings.vf == vf)
    }
}

fn not_a_nic(name: &str, address: PciAddress) -> Error {
    let message = format!("{name}: {address} is no function of a NIC: see ringspan device list");
    Error::new(ErrorKind::NotFound, message).about(name)
}

/// The address of what is named by its interface or its address.
pub(crate) fn find(host: &Host, name: &str) -> Result<PciAddress, Error> {
    if let Ok(address) = name.parse::<PciAddress>() {
        let there = host.sysfs.has(&super::pci::attribute(address, ""));
        let message = || format!("there is no PCI function {address}: see ringspan device list");
        return if there { Ok(address) } else { Err(Error::new(ErrorKind::NotFound, message()).about(name)) };
    }
    let known = !name.is_empty() && !name.contains('/') && host.sysfs.has(&format!("class/net/{name}"));
    if !known {
        let message =
            format!("{name:?} is neither a network interface of this host nor a PCI address: see ringspan device list");
        return Err(Error::new(ErrorKind::NotFound, message).about(name));
    }
    function_of(&host.sysfs, name).ok_or_else(|| {
        let message = format!("{name} is an interface without a PCI device behind it: name the NIC's own interface");
        Error::new(ErrorKind::Invalid, message).about(name)
    })
}
