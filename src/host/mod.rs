//! The host: its NICs, their virtual functions, switches and drivers; and what is wrong with it ([`doctor`]).
//!
//! Everything that is read from sysfs goes through a [`sysfs::Sysfs`], and everything that is asked of the kernel by netlink through a
//! [`netlink::Kernel`]; a made-up tree and a made-up kernel stand for hosts that are not here. Programs are run only where nothing else knows (the doctor, and firmware settings).

pub(crate) mod bind;
pub(crate) mod bond;
pub(crate) mod conf;
pub(crate) mod doctor;
pub(crate) mod eswitch;
pub(crate) mod firmware;
pub(crate) mod inventory;
mod model;
pub(crate) mod netlink;
mod pci;
pub(crate) mod program;
pub(crate) mod representor;
pub(crate) mod sriov;
pub(crate) mod steps;
pub(crate) mod sysfs;
#[cfg(test)]
mod tests;
pub(crate) mod udev;
mod users;
pub(crate) mod vdpa;
pub(crate) mod vf;
pub(crate) mod work;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use netlink::Kernel;
use sysfs::Sysfs;

/// Where distributions keep the names of PCI devices, which lspci prints.
const PCI_IDS: [&str; 2] = ["/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids"];

/// A function of a NIC, if there is one at this address.
pub(crate) fn pci_function(host: &Host, address: ringspan_protocol::PciAddress) -> Option<pci::Function> {
    pci::Function::read(&host.sysfs, address)
}

/// A host.
pub(crate) struct Host {
    /// Its devices.
    pub sysfs: Sysfs,
    /// Its kernel.
    pub kernel: Box<dyn Kernel>,
    /// Its processes: /proc.
    pub proc: PathBuf,
    /// The names of its devices.
    pub names: PathBuf,
    /// What the agent calls it.
    pub id: Option<String>,
    /// The folders of programs, as in PATH.
    pub programs: String,
    /// The folders of udev's rules: the first is written to, all are looked at. A file is read in the first of them that has it.
    pub udev: Vec<PathBuf>,
    /// Where it is written down what is being changed.
    pub journal: Arc<dyn work::Journal>,
}

impl Host {
    /// This machine, with sysfs there and the names of PCI devices there.
    pub(crate) fn real(sysfs: &Path, names: Option<&Path>, id: Option<String>) -> Self {
        let usual = || PCI_IDS.iter().map(PathBuf::from).find(|path| path.exists());
        let names = names.map(Path::to_owned).or_else(usual).unwrap_or_else(|| PCI_IDS[0].into());
        Self {
            sysfs: Sysfs::at(sysfs),
            kernel: Box::new(netlink::Real),
            proc: "/proc".into(),
            names,
            id,
            programs: program::PATH.into(),
            udev: udev_folders(sysfs),
            journal: Arc::new(work::Nowhere),
        }
    }

    /// This boot of the machine (Documentation/admin-guide/sysctl/kernel.rst, random); empty where the kernel does not tell.
    pub(crate) fn boot(&self) -> String {
        let text = std::fs::read_to_string(self.proc.join("sys/kernel/random/boot_id"));
        text.map(|text| text.trim().to_owned()).unwrap_or_default()
    }
}

/// Where udev's rules of this machine are; a made-up host has its own beside its sysfs.
fn udev_folders(sysfs: &Path) -> Vec<PathBuf> {
    if sysfs == Path::new("/sys") {
        ["/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib"].map(|root| Path::new(root).join("udev/rules.d")).into()
    } else {
        vec![sysfs.with_file_name("udev-rules")]
    }
}
