//! Network cards on the PCI bus, as sysfs has them.

use super::config_space::Capabilities;
use super::host::Host;
use super::lspci::{self, Listed};

/// Mellanox (NVIDIA) in PCI.
pub(crate) const MELLANOX: u16 = 0x15b3;
/// Intel in PCI.
pub(crate) const INTEL: u16 = 0x8086;
/// Red Hat's virtio in PCI.
pub(crate) const VIRTIO: u16 = 0x1af4;

/// A function of a network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nic {
    /// Its address, such as `0000:03:00.0`.
    pub address: String,
    pub vendor: u16,
    pub device: u16,
    /// Its interfaces.
    pub interfaces: Vec<String>,
    pub driver: Option<String>,
    /// The physical function's address, where this is a virtual one.
    pub parent: Option<String>,
    /// VFs that it can have, where the kernel knows.
    pub total_vfs: Option<u64>,
    /// VFs that it has.
    pub vfs: u64,
    /// NUMA node; absent: none, or not known.
    pub node: Option<u64>,
    /// The IOMMU group.
    pub group: Option<String>,
    pub capabilities: Capabilities,
    /// What `lspci` says, where the config space is not shown.
    pub listed: Option<Listed>,
}

impl Nic {
    /// What a person calls it: its interface and its address.
    pub(crate) fn name(&self) -> String {
        match self.interfaces.first() {
            Some(interface) => format!("{interface} ({})", self.address),
            None => self.address.clone(),
        }
    }

    /// Its folder in sysfs.
    pub(crate) fn folder(&self) -> String {
        format!("/sys/bus/pci/devices/{}", self.address)
    }

    /// Whether it has the SR-IOV capability; absent: nobody says.
    pub(crate) fn has_sriov(&self) -> Option<bool> {
        // The kernel makes the attribute for each function with the capability.
        if self.total_vfs.is_some() || self.capabilities.sriov.is_some() {
            return Some(true);
        }
        if self.capabilities.complete {
            return Some(false);
        }
        self.listed.as_ref().filter(|listed| listed.complete || listed.sriov).map(|listed| listed.sriov)
    }
}

/// Class "network controller", whichever kind: 0200 Ethernet, 0207 InfiniBand.
const NETWORK: u64 = 0x02;

pub(super) fn list(host: &Host) -> Vec<Nic> {
    let addresses = host.names("/sys/bus/pci/devices").unwrap_or_default();
    let mut nics: Vec<Nic> = addresses.into_iter().filter_map(|address| nic(host, address)).collect();
    // Asked only where it may tell more than sysfs does.
    if nics.iter().any(|nic| nic.parent.is_none() && nic.has_sriov().is_none()) {
        let text = host.run("lspci", &["-D", "-v"]).map(|ran| ran.stdout).unwrap_or_default();
        for listed in lspci::parse(&text) {
            if let Some(nic) = nics.iter_mut().find(|nic| nic.address == listed.address) {
                nic.listed = Some(listed);
            }
        }
    }
    nics
}

fn nic(host: &Host, address: String) -> Option<Nic> {
    let folder = format!("/sys/bus/pci/devices/{address}");
    let number = |name: &str| host.number(&format!("{folder}/{name}")).ok();
    number("class").filter(|class| class >> 16 == NETWORK)?;
    let config = host.bytes(&format!("{folder}/config")).unwrap_or_default();
    Some(Nic {
        vendor: number("vendor")? as u16,
        device: number("device")? as u16,
        interfaces: host.names(&format!("{folder}/net")).unwrap_or_default(),
        driver: host.link(&format!("{folder}/driver")),
        parent: host.link(&format!("{folder}/physfn")),
        total_vfs: number("sriov_totalvfs"),
        vfs: number("sriov_numvfs").unwrap_or(0),
        // -1 where the machine has no nodes.
        node: number("numa_node"),
        group: host.link(&format!("{folder}/iommu_group")),
        capabilities: Capabilities::read(&config),
        listed: None,
        address,
    })
}
