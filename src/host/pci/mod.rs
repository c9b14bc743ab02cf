//! PCI functions of NICs, as sysfs shows them.

mod config_space;

use std::collections::BTreeMap;

use ringspan_protocol::PciAddress;

pub(crate) use config_space::{Answer, Capabilities};

use super::sysfs::Sysfs;

/// Base class "network controller".
const NETWORK: u32 = 0x02;
/// Where functions are.
const DEVICES: &str = "bus/pci/devices";

/// A function of a NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Function {
    /// Where it is.
    pub address: PciAddress,
    /// Its maker.
    pub vendor: u16,
    /// What it is.
    pub device: u16,
    /// The driver that it is bound to.
    pub driver: Option<String>,
    /// The NUMA node that it is near to.
    pub numa_node: Option<u32>,
    /// Its group behind the IOMMU.
    pub iommu_group: Option<u32>,
    /// Of a virtual function: its physical one.
    pub pf: Option<PciAddress>,
    /// Of a physical function that can have virtual ones: how many at most, and how many there are.
    pub vf_counts: Option<(u16, u16)>,
    /// Of a physical function: its virtual ones by their numbers.
    pub vfs: BTreeMap<u16, PciAddress>,
}

/// An attribute of a function.
pub(crate) fn attribute(address: PciAddress, name: &str) -> String {
    format!("{DEVICES}/{address}/{name}")
}

impl Function {
    /// Reads one. None: there is no function at this address, or it is of no NIC.
    pub(crate) fn read(sysfs: &Sysfs, address: PciAddress) -> Option<Self> {
        let at = |name: &str| attribute(address, name);
        if sysfs.hex(&at("class"))? >> 16 != NETWORK {
            return None;
        }
        let count = |name: &str| sysfs.number::<u16>(&at(name));
        let vf_counts = count("sriov_totalvfs").filter(|total| *total > 0).zip(count("sriov_numvfs"));
        let vfs = match vf_counts {
            Some(_) => sysfs.names(&at("")).iter().filter_map(|name| vf(sysfs, address, name)).collect(),
            None => BTreeMap::new(),
        };
        Some(Self {
            address,
            vendor: sysfs.hex(&at("vendor"))? as u16,
            device: sysfs.hex(&at("device"))? as u16,
            driver: sysfs.link(&at("driver")),
            numa_node: sysfs.number(&at("numa_node")),
            iommu_group: sysfs.link(&at("iommu_group")).and_then(|group| group.parse().ok()),
            pf: sysfs.link(&at("physfn")).and_then(|name| name.parse().ok()),
            vf_counts,
            vfs,
        })
    }

    /// All of them, by address, in every domain.
    pub(crate) fn all(sysfs: &Sysfs) -> Vec<Self> {
        let addresses = sysfs.names(DEVICES).into_iter().filter_map(|name| name.parse().ok());
        let mut functions: Vec<Self> = addresses.filter_map(|address| Self::read(sysfs, address)).collect();
        functions.sort_by_key(|function| function.address);
        functions
    }

    /// What it can do.
    pub(crate) fn capabilities(&self, sysfs: &Sysfs) -> Capabilities {
        Capabilities::read(&sysfs.bytes(&attribute(self.address, "config")).unwrap_or_default())
    }

    /// Its interfaces: of a NIC in switchdev mode those of its representors too.
    pub(crate) fn interfaces(&self, sysfs: &Sysfs) -> Vec<String> {
        sysfs.names(&attribute(self.address, "net"))
    }

    /// The interface of a virtio card, which lies a folder deeper: that of the virtio device that its driver has made (drivers/virtio/virtio_pci_common.c).
    pub(crate) fn virtio_interface(&self, sysfs: &Sysfs) -> Option<String> {
        let below = sysfs.names(&attribute(self.address, "")).into_iter().filter(|name| name.starts_with("virtio"));
        below.flat_map(|device| sysfs.names(&attribute(self.address, &format!("{device}/net")))).next()
    }

    /// As a command line has it.
    pub(crate) fn vendor_device(&self) -> String {
        format!("{:04x}:{:04x}", self.vendor, self.device)
    }
}

/// `virtfn3`, and where it leads.
fn vf(sysfs: &Sysfs, pf: PciAddress, name: &str) -> Option<(u16, PciAddress)> {
    let number = name.strip_prefix("virtfn")?.parse().ok()?;
    Some((number, sysfs.link(&attribute(pf, name))?.parse().ok()?))
}

/// The form that the agent uses: without the domain where that is 0.
pub(crate) fn short(address: PciAddress) -> String {
    let full = address.to_string();
    if address.domain == 0 { full.trim_start_matches("0000:").to_owned() } else { full }
}
