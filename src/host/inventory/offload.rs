//! Whether flows of Open vSwitch can be offloaded into a NIC, and why not.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LinkType, Upper};
use crate::host::netlink::EswitchMode;
use crate::host::pci::{Answer, Function};

/// Whether they can be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Offload {
    /// `yes`: in the mode that it is in now.
    pub possible: Answer,
    /// Why, and what to do.
    pub reason: String,
}

const MELLANOX: u16 = 0x15b3;

/// The generation of a Mellanox NIC by its device's number (pci.ids), physical functions.
fn generation(device: u16) -> Option<&'static str> {
    Some(match device {
        0x1003 => "ConnectX-3",
        0x1007 => "ConnectX-3 Pro",
        0x1011 => "Connect-IB",
        0x1013 => "ConnectX-4",
        0x1015 => "ConnectX-4 Lx",
        0x1017 => "ConnectX-5",
        0x1019 => "ConnectX-5 Ex",
        0x101b => "ConnectX-6",
        0x101d => "ConnectX-6 Dx",
        0x101f => "ConnectX-6 Lx",
        0x1021 => "ConnectX-7",
        0x1023 => "ConnectX-8",
        0xa2d2 => "BlueField",
        0xa2d6 => "BlueField-2",
        0xa2d9 | 0xa2dc => "BlueField-3",
        0xa2df => "BlueField-4",
        _ => return None,
    })
}

/// Drivers whose eswitch takes flows of TC.
const WITH_FLOWS: [&str; 6] = ["mlx5_core", "ice", "nfp", "bnxt_en", "sfc", "octeontx2"];
/// Drivers of NICs whose inner switch knows addresses and VLANs only.
const WITHOUT: [&str; 12] =
    ["igb", "igbvf", "ixgbe", "ixgbevf", "i40e", "e1000e", "igc", "virtio-pci", "mlx4_core", "r8169", "tg3", "bnx2x"];

/// Of a PF.
pub(super) fn of(pf: &Function, upper: &Upper) -> Offload {
    let (possible, reason) = judge(pf, upper);
    Offload { possible, reason }
}

fn judge(pf: &Function, upper: &Upper) -> (Answer, String) {
    let address = pf.address;
    let name = match generation(pf.device).filter(|_| pf.vendor == MELLANOX) {
        Some(generation) => format!("{generation}, "),
        None => String::new(),
    };
    let Some(driver) = pf.driver.as_deref() else {
        return (
            Answer::Unknown,
            format!("{name}no driver: bind the kernel's to {address} (ringspan device bind {address} --restore)"),
        );
    };
    if pf.vendor == MELLANOX && matches!(pf.device, 0x1003 | 0x1007) || WITHOUT.contains(&driver) {
        return (Answer::No, format!("{name}{driver}: the NIC's switch knows addresses and VLANs only"));
    }
    if upper.link_type == LinkType::Infiniband {
        let remedy = "its link type would have to be Ethernet (firmware setting LINK_TYPE)";
        return (Answer::No, format!("{name}{driver}: the link is InfiniBand; {remedy}"));
    }
    if driver == "vfio-pci" || driver == "uio_pci_generic" || driver == "igb_uio" {
        return (Answer::Unknown, format!("{name}{driver} has it: the kernel's driver would have to say"));
    }
    let known = WITH_FLOWS.iter().any(|with| driver.starts_with(with));
    match upper.eswitch.map(|eswitch| eswitch.mode) {
        Some(EswitchMode::Switchdev) if known => {
            // Decided as `ringspan ovs verify` does: these track few connections in hardware.
            let old = pf.vendor == MELLANOX && pf.device <= 0x101c;
            let but = if old { "; security groups (ct) are offloaded poorly: disable_security_group" } else { "" };
            (Answer::Yes, format!("{name}{driver}, switchdev mode{but}"))
        }
        Some(EswitchMode::Switchdev) => {
            (Answer::Unknown, format!("{driver}, switchdev mode: whether it takes flows is not known here"))
        }
        Some(EswitchMode::Legacy) if known => {
            (Answer::No, format!("{name}{driver}, legacy mode: ringspan eswitch set {address} --mode switchdev"))
        }
        _ if known => (Answer::Unknown, format!("{name}{driver}: devlink does not say the mode of its switch")),
        _ => (Answer::Unknown, format!("{driver} is not known to have a switch for flows")),
    }
}
