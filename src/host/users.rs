//! Who uses a function, so that it is not taken from under them.

use std::collections::BTreeMap;
use std::fs;

use super::Host;
use super::pci::{Function, attribute};

/// IFF_UP of linux/if.h.
const UP: u32 = 1;

impl Host {
    /// The process that has a function open by vfio or uio: a guest, or DPDK. The kernel would wait for it, for as long as it runs.
    pub(crate) fn vfio_user(&self, function: &Function) -> Option<u32> {
        let at = |name: &str| attribute(function.address, name);
        // By iommufd each function has a node of its own (Documentation/driver-api/vfio.rst); by uio too.
        let devices = self.sysfs.names(&at("vfio-dev")).into_iter().map(|name| format!("/dev/vfio/devices/{name}"));
        let uio = self.sysfs.names(&at("uio")).into_iter().map(|name| format!("/dev/{name}"));
        let mut nodes: Vec<String> = devices.chain(uio).collect();
        // Drivers of vfio are not vfio-pci alone: mlx5_vfio_pci, hisi_acc_vfio_pci, nvgrace_gpu_vfio_pci.
        let by_vfio = function.driver.as_deref().is_some_and(|driver| driver.contains("vfio"));
        if let Some(group) = function.iommu_group.filter(|_| by_vfio) {
            nodes.extend([format!("/dev/vfio/{group}"), format!("/dev/vfio/noiommu-{group}")]);
        }
        self.opened(&nodes)
    }

    /// A process that has one of these nodes open.
    pub(crate) fn opened(&self, nodes: &[String]) -> Option<u32> {
        if nodes.is_empty() {
            return None;
        }
        let entries = fs::read_dir(&self.proc).into_iter().flatten().flatten();
        let mut processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        processes.find(|process| {
            let files = fs::read_dir(self.proc.join(process.to_string()).join("fd")).into_iter().flatten().flatten();
            files
                .filter_map(|file| fs::read_link(file.path()).ok())
                .any(|to| nodes.iter().any(|node| to.as_os_str() == node.as_str()))
        })
    }

    /// An interface of the function's that is up or part of something, and how.
    pub(crate) fn busy_interface(&self, function: &Function) -> Option<String> {
        function.interfaces(&self.sysfs).into_iter().find_map(|interface| {
            let at = attribute(function.address, &format!("net/{interface}"));
            if let Some(master) = self.sysfs.link(&format!("{at}/master")) {
                return Some(format!("{interface} is part of {master}"));
            }
            let up = self.sysfs.hex(&format!("{at}/flags")).is_some_and(|flags| flags & UP != 0);
            up.then(|| format!("{interface} is up"))
        })
    }

    /// Who seems to have a function that nobody named: its interface has an address or is in a bridge of Open vSwitch's, or is in
    /// another network namespace. `bridges`: those by the interfaces in them.
    pub(crate) fn likely_user(&self, function: &Function, bridges: &BTreeMap<String, String>) -> Option<String> {
        let interfaces = function.interfaces(&self.sysfs);
        // Drivers that give a function to a process or a guest never have an interface; who has it open is told by `vfio_user`.
        let hands_over = |driver: &&str| driver.contains("vfio") || driver.contains("uio") || driver.contains("stub");
        let driver = function.driver.as_deref().filter(|driver| !hands_over(driver));
        if let Some(driver) = driver.filter(|_| interfaces.is_empty()) {
            return Some(format!("another network namespace ({driver} shows no interface here)"));
        }
        interfaces.into_iter().find_map(|interface| match bridges.get(&interface) {
            Some(bridge) => Some(format!("bridge {bridge}")),
            None => self.kernel.has_address(&interface).then(|| format!("{interface}, which has an IP address,")),
        })
    }
}
