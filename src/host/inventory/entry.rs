//! What the inventory says of a function, with the names that the agent's records have.

use ringspan_protocol::PciAddress;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Offload, PcieInfo};
use crate::host::netlink::{EswitchMode, VfSettings};
use crate::host::pci::Capabilities;

/// What a NIC's wire carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LinkType {
    /// Ethernet.
    Ethernet,
    /// InfiniBand.
    Infiniband,
    /// The NIC has no interface on this host that says so.
    #[default]
    Unknown,
}

/// How many virtual functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Sriov {
    /// At most.
    pub total: u16,
    /// Now.
    pub enabled: u16,
}

/// That a function is a vDPA management device.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct VdpaManagement {
    /// The vDPA devices that were made on it.
    pub devices: Vec<String>,
}

/// A physical function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Pf {
    /// Its address.
    pub address: PciAddress,
    /// The same, without the domain where that is 0.
    pub addr: String,
    /// Maker and device in hexadecimal: `15b3:1017`.
    pub vendor_device_id: String,
    /// What lspci has in brackets, else its name of the device.
    pub model: String,
    /// What lspci prints: maker and device.
    pub lspci_name: String,
    /// Its interface; in switchdev mode the uplink's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// What its wire carries.
    pub link_type: LinkType,
    /// The driver that it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// That driver's version; the kernel's for drivers that came with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
    /// The firmware's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware_version: Option<String>,
    /// The NUMA node that it is near to; absent: there is only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
    /// Its group behind the IOMMU; absent: there is none, and vfio-pci cannot have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iommu_group: Option<u32>,
    /// Its virtual functions; absent: it can have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sriov: Option<Sriov>,
    /// What it can do, from its configuration space.
    pub capabilities: Capabilities,
    /// How its switch forwards; absent: its driver has none, or cannot be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eswitch_mode: Option<EswitchMode>,
    /// The identity of its switch, in switchdev mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch_id: Option<String>,
    /// Open vSwitch's bridge that its interface, or that interface's bond, is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// The wire of the network that its interface, or that interface's bond, is in by the agent's files that were applied last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wire: Option<String>,
    /// Whether flows of Open vSwitch can be offloaded into it.
    pub ovs_offload: Offload,
    /// Its link to the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcie_info: Option<PcieInfo>,
    /// Its virtual functions' addresses, by their numbers.
    pub vfs: Vec<PciAddress>,
}

/// A physical or virtual function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Device {
    /// A name of 36 characters, made from host_id, vendor_device_id and address: the same after every restart.
    pub id: String,
    /// `NIC`.
    pub dev_type: String,
    /// `SRIOV` for virtual functions, empty for physical ones.
    pub sharing_mode: String,
    /// What lspci has in brackets, else its name of the device.
    pub model: String,
    /// What lspci prints: maker and device.
    pub lspci_name: String,
    /// Its address.
    pub address: PciAddress,
    /// The same, without the domain where that is 0.
    pub addr: String,
    /// Maker and device in hexadecimal: `15b3:1018`.
    pub vendor_device_id: String,
    /// Of a virtual function: its physical one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pf: Option<PciAddress>,
    /// Of a virtual function: the interface of its physical one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pf_interface: Option<String>,
    /// Of a virtual function: its number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vf: Option<u16>,
    /// The driver that it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The NUMA node that it is near to; absent: there is only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
    /// Its group behind the IOMMU; absent: there is none, and vfio-pci cannot have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iommu_group: Option<u32>,
    /// Its interface on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// What its wire carries.
    pub link_type: LinkType,
    /// The same, as the agent asks for it.
    pub is_infiniband_nic: bool,
    /// The identity of the switch that it is on, in switchdev mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch_id: Option<String>,
    /// The interface that stands for it on the host, in switchdev mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub representor: Option<String>,
    /// The same, under the agent's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ovs_offload_interface: Option<String>,
    /// Open vSwitch's bridge that its representor is on, or its own interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// The wire of the network that its PF's interface, or that interface's bond, is in by the agent's files that were applied last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wire: Option<String>,
    /// The port of ringspan's that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// That vDPA devices can be made on it, and which there are; absent: its driver makes none, or that part of it is not loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vdpa: Option<VdpaManagement>,
    /// Of a virtual function: what its physical one has set for it. Only with `device.get`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<VfSettings>,
    /// What it can do, from its configuration space.
    pub capabilities: Capabilities,
    /// Whether flows of Open vSwitch can be offloaded into its NIC.
    pub ovs_offload: Offload,
    /// Its link to the host; of a virtual function without one that of its physical one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcie_info: Option<PcieInfo>,
    /// 0: nothing is made of it by software.
    pub virtual_num: u32,
    /// Whether it can be given to a running guest.
    pub hot_pluggable: bool,
    /// True: what is not there is not listed.
    pub detected_on_host: bool,
    /// What the agent calls this host (`host.id` in the configuration).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_id: Option<String>,
    /// The guest that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_id: Option<String>,
}

/// The id of a device: a hash (FNV-1a, 128 bits) in the form of a UUID of version 8 (RFC 9562).
pub(super) fn id(host: Option<&str>, vendor_device: &str, address: PciAddress) -> String {
    let text = format!("{}\0{vendor_device}\0{address}", host.unwrap_or_default());
    let hash = text.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    let number = hash & !(0xf << 76) & !(0x3 << 62) | 0x8 << 76 | 0x2 << 62;
    let hex = format!("{number:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_uuid_that_stays_and_differs_by_host_device_and_address() {
        let (a, b) = ("0000:0a:00.2".parse().unwrap(), "0001:0a:00.2".parse().unwrap());
        let first = id(Some("host-1"), "15b3:1018", a);
        // Written down: a new version of ringspan must not know devices by other names.
        assert_eq!(first, "eb154da3-c127-83ce-b362-b1f64bfd8cd5");
        let others = [
            id(Some("host-2"), "15b3:1018", a),
            id(None, "15b3:1018", a),
            id(Some("host-1"), "15b3:1016", a),
            id(Some("host-1"), "15b3:1018", b),
        ];
        assert!(others.iter().all(|other| *other != first && other.len() == 36 && other.as_bytes()[14] == b'8'));
    }
}
