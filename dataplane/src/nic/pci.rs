//! Whether a PCI function is in a state that DPDK can use: which kernel driver owns it.
//!
//! Mellanox functions stay on their kernel driver, which DPDK's shares them with; functions of other vendors must be given
//! to vfio-pci ([Linux drivers](https://doc.dpdk.org/guides-22.11/linux_gsg/linux_drivers.html)).

use std::fs;
use std::path::Path;

use ringspan_protocol::PciAddress;

use super::error::DeviceError;

/// Where the kernel lists PCI functions.
pub(super) const SYSFS: &str = "/sys/bus/pci/devices";

/// Vendors whose DPDK drivers work beside the kernel's, and the kernel drivers.
const BESIDE_THE_KERNEL: [(u16, &[&str]); 2] = [(0x15b3, &["mlx5_core", "mlx4_core"]), (0x1414, &["mana"])];
/// Kernel drivers that give a function to user space.
const FOR_USER_SPACE: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

/// Checks the kernel driver of a function, before DPDK is asked to probe it.
pub(super) fn check(sysfs: &Path, address: PciAddress, device: &str) -> Result<(), DeviceError> {
    let function = sysfs.join(address.to_string());
    let vendor = fs::read_to_string(function.join("vendor")).ok();
    let vendor = vendor.and_then(|text| u16::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok());
    let Some(vendor) = vendor else {
        let remedy = format!(
            ": this machine has no PCI function {address}; look at `lspci -D`, and create virtual functions before they are named"
        );
        return Err(DeviceError::NotFound { device: device.into(), remedy, said: String::new() });
    };
    let bound = fs::read_link(function.join("driver")).ok();
    let bound = bound.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    let beside = BESIDE_THE_KERNEL.iter().find(|(of, _)| *of == vendor).map(|(_, drivers)| *drivers);
    let (fits, needed) = match (bound, beside) {
        (Some(bound), Some(drivers)) => (drivers.contains(&bound), drivers[0]),
        (None, Some(drivers)) => (false, drivers[0]),
        (Some(bound), None) => (FOR_USER_SPACE.contains(&bound), FOR_USER_SPACE[0]),
        (None, None) => (false, FOR_USER_SPACE[0]),
    };
    if fits {
        return Ok(());
    }
    let unbind =
        if bound.is_some() { format!("echo {address} > {SYSFS}/{address}/driver/unbind; ") } else { String::new() };
    let remedy = format!(
        "bind it with `modprobe {needed}; {unbind}echo {needed} > {SYSFS}/{address}/driver_override; \
         echo {address} > /sys/bus/pci/drivers_probe`"
    );
    let bound = bound.unwrap_or("no kernel driver").into();
    Err(DeviceError::KernelDriver { device: device.into(), bound, needed: needed.into(), remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(vendor: &str, driver: Option<&str>) -> Result<(), DeviceError> {
        let sysfs = tempfile::tempdir().unwrap();
        let function = sysfs.path().join("0000:0a:00.2");
        fs::create_dir(&function).unwrap();
        fs::write(function.join("vendor"), format!("{vendor}\n")).unwrap();
        if let Some(driver) = driver {
            std::os::unix::fs::symlink(format!("../../bus/pci/drivers/{driver}"), function.join("driver")).unwrap();
        }
        check(sysfs.path(), "0a:00.2".parse().unwrap(), "pci:0000:0a:00.2")
    }

    #[test]
    fn mellanox_stays_on_its_kernel_driver() {
        machine("0x15b3", Some("mlx5_core")).unwrap();
        let error = machine("0x15b3", Some("vfio-pci")).unwrap_err().to_string();
        assert!(
            error.starts_with("device pci:0000:0a:00.2 is bound to vfio-pci, and DPDK needs mlx5_core: "),
            "{error}"
        );
        assert!(error.contains("echo mlx5_core > /sys/bus/pci/devices/0000:0a:00.2/driver_override"), "{error}");
    }

    #[test]
    fn other_vendors_need_vfio() {
        machine("0x8086", Some("vfio-pci")).unwrap();
        let error = machine("0x8086", Some("igbvf")).unwrap_err().to_string();
        assert!(error.contains("bound to igbvf, and DPDK needs vfio-pci"), "{error}");
        let error = machine("0x8086", None).unwrap_err().to_string();
        assert!(error.contains("bound to no kernel driver") && !error.contains("unbind"), "{error}");
    }

    #[test]
    fn absent_function_is_named() {
        let sysfs = tempfile::tempdir().unwrap();
        let error = check(sysfs.path(), "0a:00.2".parse().unwrap(), "pci:0000:0a:00.2").unwrap_err();
        assert!(matches!(error, DeviceError::NotFound { .. }), "{error}");
    }
}
