//! What the kernel refuses, with what to do about it.

use super::super::Host;
use super::super::netlink::{NetlinkError, VdpaParent};
use super::super::pci::Function;
use crate::error::{Error, ErrorKind};

/// `modprobe` of what a management device needs.
pub(super) fn no_bus() -> Error {
    let message = "this kernel has no vDPA bus: load its module (modprobe vdpa), vhost_vdpa, and the driver's (modprobe mlx5_vdpa for a ConnectX, vp_vdpa for a virtio card)";
    Error { errno: Some(libc::ENOENT), ..Error::new(ErrorKind::Unsupported, message) }
}

/// The bus cannot be asked, or told.
pub(super) fn explain(name: &str, what: &str, error: &NetlinkError) -> Error {
    if matches!(error, NetlinkError::NoFamily { .. }) {
        return no_bus().about(name);
    }
    let told = error.tell(format!("{name}: {what}")).about(name);
    let remedy = match error.errno() {
        Some(libc::EPERM | libc::EACCES) => "run the daemon as root, with CAP_NET_ADMIN",
        Some(libc::ENODEV) => "there is no such device: see ringspan vdpa list",
        Some(libc::EOPNOTSUPP) => {
            "the driver of the management device lets not all of that be chosen (MAC address, MTU, queue pairs, features): leave it out, and see what the device has (ringspan vdpa list)"
        }
        Some(libc::ENOSPC) => "the management device has as many as it can: remove one (ringspan vdpa remove NAME)",
        Some(libc::EEXIST) => {
            "there is one of that name, or the management device has one already: see ringspan vdpa list"
        }
        Some(libc::ETIMEDOUT | libc::EIO) => "the device does not answer: the kernel's log says why",
        _ => return told,
    };
    let kind = if error.errno() == Some(libc::EEXIST) { ErrorKind::Exists } else { told.kind };
    Error { kind, message: format!("{}: {remedy}", told.message), ..told }
}

/// There is no such management device: what makes it one.
pub(super) fn no_management(host: &Host, name: &str, parent: &VdpaParent, known: &[String]) -> Error {
    let function = parent.function().and_then(|address| Function::read(&host.sysfs, address));
    let remedy = match (&function, parent.function()) {
        (Some(function), Some(address)) => match function.driver.as_deref() {
            Some("mlx5_core") => {
                let pf = function.pf.unwrap_or(address);
                format!(
                    "load its module (modprobe mlx5_vdpa), put the switch of {pf} into switchdev mode (ringspan eswitch set {pf} --mode switchdev), and let the function have a virtio part (devlink dev param set pci/{address} name enable_vnet value true cmode driverinit; devlink dev reload pci/{address})"
                )
            }
            Some("virtio-pci") => format!(
                "it is a virtio card, which its own driver has: load vp_vdpa (modprobe vp_vdpa) and give it that (ringspan device bind {address} vp-vdpa)"
            ),
            Some(driver) => format!("{driver} has it, which makes no vDPA devices, or not without a module of its own"),
            None => "it has no driver: give it the one that makes vDPA devices (ringspan device bind), and load that one's module".into(),
        },
        (None, Some(address)) => format!("there is no function of a NIC at {address}: see ringspan device list"),
        _ => match parent.device.starts_with("vdpasim") {
            true => format!("load the simulator's module (modprobe {})", parent.device.replace("vdpasim", "vdpa_sim")),
            false => "see ringspan vdpa list".into(),
        },
    };
    let there =
        if known.is_empty() { "there is none at all".into() } else { format!("there are {}", known.join(", ")) };
    let message = format!("{name}: {parent} is no vDPA management device ({there}): {remedy}");
    Error { errno: Some(libc::ENODEV), ..Error::new(ErrorKind::NotFound, message) }.about(name)
}
