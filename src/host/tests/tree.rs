//! A made-up `/sys`, which acts on what is written to it as the kernel does.
//!
//! Not seen on hardware. An 82576 is laid out as Linux 6.1 shows QEMU's: `cargo xtask lab` checks there what the tests here take for given.
//! As the kernel's sources and public documentation have them: a ConnectX
//! (drivers/net/ethernet/mellanox/mlx5/core/{sriov,esw/devlink_port}.c; Documentation/networking/representors.rst) and an I350.
//! SR-IOV: drivers/pci/iov.c, `sriov_numvfs_store`; binding: drivers/pci/pci-driver.c, drivers/base/bus.c.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::host::Host;
use crate::host::sysfs::Sysfs;

use super::kernel::{FakeKernel, Fuse};

/// A kind of NIC.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub pf: (u16, u16),
    pub vf: (u16, u16),
    pub pf_driver: &'static str,
    pub vf_driver: &'static str,
    pub total: u16,
    /// From the PF's routing id to the first VF's, and from one to the next.
    pub offset: u16,
    pub stride: u16,
}

pub(super) const IGB: Kind = Kind {
    pf: (0x8086, 0x10c9),
    vf: (0x8086, 0x10ca),
    pf_driver: "igb",
    vf_driver: "igbvf",
    total: 7,
    offset: 0x80,
    stride: 2,
};
pub(super) const I350: Kind = Kind { pf: (0x8086, 0x1521), vf: (0x8086, 0x1520), ..IGB };
pub(super) const CX5: Kind = Kind {
    pf: (0x15b3, 0x1017),
    vf: (0x15b3, 0x1018),
    pf_driver: "mlx5_core",
    vf_driver: "mlx5_core",
    total: 250,
    offset: 2,
    stride: 1,
};

/// The tree, and what of it is to fail.
pub(super) struct Tree {
    folder: tempfile::TempDir,
    acts: Arc<Acts>,
}

/// What the kernel does when something is written.
pub(super) struct Acts {
    root: PathBuf,
    kinds: Mutex<BTreeMap<String, Kind>>,
    /// By attribute, or by attribute=text.
    refusals: Mutex<BTreeMap<String, i32>>,
    failing_probes: Mutex<Vec<String>>,
    writes: Mutex<Vec<String>>,
    fuse: Fuse,
}

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

impl Tree {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        for place in ["bus/pci/devices", "bus/pci/drivers", "class/net", "kernel/iommu_groups"] {
            fs::create_dir_all(root.join(place)).unwrap();
        }
        fs::write(root.join("bus/pci/drivers_probe"), "").unwrap();
        let acts = Acts {
            root,
            kinds: Mutex::default(),
            refusals: Mutex::default(),
            failing_probes: Mutex::default(),
            writes: Mutex::default(),
            fuse: Fuse::default(),
        };
        let tree = Self { folder, acts: Arc::new(acts) };
        tree.driver("vfio-pci");
        tree
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn set(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    /// What ends the daemon after so many writes.
    pub(super) fn fuse(&self) -> Fuse {
        self.acts.fuse.clone()
    }

    /// A driver whose module is loaded.
    pub(super) fn driver(&self, name: &str) {
        self.set(&format!("bus/pci/drivers/{name}/unbind"), "");
        self.set(&format!("bus/pci/drivers/{name}/bind"), "");
    }

    /// Everything that was written, in its order: `path=text`.
    pub(super) fn writes(&self) -> Vec<String> {
        self.acts.writes.lock().unwrap().clone()
    }

    /// Writing this attribute is refused.
    pub(super) fn refuse(&self, attribute: &str, errno: i32) {
        self.acts.refusals.lock().unwrap().insert(attribute.into(), errno);
    }

    /// Writing this text there is refused.
    pub(super) fn refuse_text(&self, attribute: &str, text: &str, errno: i32) {
        self.refuse(&format!("{attribute}={text}"), errno);
    }

    /// This driver takes no function.
    pub(super) fn fail_probe(&self, driver: &str) {
        self.acts.failing_probes.lock().unwrap().push(driver.into());
    }

    /// And is not any more.
    pub(super) fn allow(&self, attribute: &str) {
        self.acts.refusals.lock().unwrap().remove(attribute);
    }

    /// A PF with its interface.
    pub(super) fn pf(&self, address: &str, kind: Kind, interface: &str, index: u32) {
        self.driver(kind.pf_driver);
        self.driver(kind.vf_driver);
        self.acts.function(address, kind.pf, kind.pf_driver);
        self.acts.kinds.lock().unwrap().insert(address.into(), kind);
        let at = |name: &str| format!("bus/pci/devices/{address}/{name}");
        self.set(&at("sriov_totalvfs"), &kind.total.to_string());
        self.set(&at("sriov_numvfs"), "0");
        self.set(&at("sriov_offset"), &kind.offset.to_string());
        self.set(&at("sriov_stride"), &kind.stride.to_string());
        self.set(&at("sriov_drivers_autoprobe"), "1");
        self.set(&at("max_link_speed"), "8.0 GT/s PCIe");
        self.set(&at("max_link_width"), "16");
        self.acts.interface(address, interface, index);
    }

    /// One more interface of a function: NICs with several ports on one have several.
    pub(super) fn second_interface(&self, address: &str, interface: &str, index: u32) {
        self.acts.interface(address, interface, index);
    }

    /// A representor of a PF's, or its uplink, whose interface is there already.
    pub(super) fn port(&self, pf: &str, interface: &str, index: u32, switch: &str, port: &str) {
        if !self.path(&format!("class/net/{interface}")).exists() {
            self.acts.interface(pf, interface, index);
        }
        let at = |name: &str| format!("class/net/{interface}/{name}");
        self.set(&at("phys_switch_id"), switch);
        self.set(&at("phys_port_name"), port);
    }

    pub(super) fn sysfs(&self) -> Sysfs {
        let acts = Arc::clone(&self.acts);
        Sysfs::made_up(self.folder.path(), move |path, text| acts.write(path, text))
    }

    /// The host with this tree and that kernel.
    pub(super) fn host(&self, kernel: FakeKernel) -> Host {
        let names = self.path("pci.ids");
        if !names.exists() {
            fs::write(&names, PCI_IDS).unwrap();
        }
        Host {
            sysfs: self.sysfs(),
            kernel: Box::new(kernel),
            proc: self.path("proc"),
            names,
            id: Some("host-1".into()),
            udev: vec![self.path("udev")],
            programs: self.path("programs").display().to_string(),
            journal: Arc::new(crate::host::work::Nowhere),
        }
    }

    pub(super) fn driver_of(&self, address: &str) -> Option<String> {
        self.sysfs().link(&format!("bus/pci/devices/{address}/driver"))
    }
}

/// Lines of the database of PCI ids.
const PCI_IDS: &str = "15b3  Mellanox Technologies\n\t1017  MT27800 Family [ConnectX-5]\n\t1018  MT27800 Family [ConnectX-5 Virtual Function]\n8086  Intel Corporation\n\t10c9  82576 Gigabit Network Connection\n\t10ca  82576 Virtual Function\n\t1520  I350 Ethernet Controller Virtual Function\n\t1521  I350 Gigabit Network Connection\n";

/// A vDPA device's folder gets a driver, with what that one makes there, or loses it.
pub(super) fn vdpa_driver(root: &Path, name: &str, driver: Option<&str>) {
    let device = root.join("bus/vdpa/devices").join(name);
    for below in ["vhost-vdpa-0", "virtio0"] {
        let _ = fs::remove_dir_all(device.join(below));
    }
    let _ = fs::remove_file(device.join("driver"));
    let Some(driver) = driver else { return };
    symlink(root.join("bus/vdpa/drivers").join(driver), device.join("driver")).unwrap();
    match driver {
        "vhost_vdpa" => fs::create_dir_all(device.join("vhost-vdpa-0")).unwrap(),
        _ => fs::create_dir_all(device.join("virtio0/net/vd-if")).unwrap(),
    }
}

impl Acts {
    fn at(&self, address: &str, name: &str) -> PathBuf {
        self.root.join("bus/pci/devices").join(address).join(name)
    }

    fn function(&self, address: &str, (vendor, device): (u16, u16), driver: &str) {
        fs::create_dir_all(self.at(address, "net")).unwrap();
        let put = |name: &str, text: String| fs::write(self.at(address, name), text).unwrap();
        put("vendor", format!("{vendor:#06x}\n"));
        put("device", format!("{device:#06x}\n"));
        put("class", "0x020000\n".into());
        put("numa_node", "-1\n".into());
        put("driver_override", "(null)\n".into());
        put(".native", driver.into());
        let group = fs::read_dir(self.root.join("kernel/iommu_groups")).unwrap().count();
        let group = self.root.join(format!("kernel/iommu_groups/{group}"));
        fs::create_dir_all(&group).unwrap();
        symlink(group, self.at(address, "iommu_group")).unwrap();
        self.bind(address, driver);
    }

    fn interface(&self, address: &str, name: &str, index: u32) {
        let folder = self.at(address, &format!("net/{name}"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("ifindex"), format!("{index}\n")).unwrap();
        fs::write(folder.join("type"), "1\n").unwrap();
        symlink(format!("../../../{address}"), folder.join("device")).unwrap();
        symlink(folder, self.root.join("class/net").join(name)).unwrap();
    }

    fn bind(&self, address: &str, driver: &str) {
        let folder = self.root.join("bus/pci/drivers").join(driver);
        if folder.exists() {
            symlink(folder, self.at(address, "driver")).unwrap();
        }
    }

    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let name = path.to_str().unwrap().to_owned();
        if self.fuse.is_burnt() {
            return Err(error(libc::EOWNERDEAD));
        }
        self.writes.lock().unwrap().push(format!("{name}={text}"));
        let refusals = self.refusals.lock().unwrap();
        if let Some(errno) = refusals.get(&name).or_else(|| refusals.get(&format!("{name}={text}"))) {
            return Err(error(*errno));
        }
        drop(refusals);
        if !self.root.join(path).exists() {
            return Err(error(libc::ENOENT));
        }
        let parts: Vec<&str> = name.split('/').collect();
        match parts[..] {
            ["bus", "pci", "devices", address, "sriov_numvfs"] => self.set_vfs(address, text),
            ["bus", "pci", "devices", _, "driver_override"] => {
                let text = if text.trim().is_empty() { "(null)" } else { text.trim() };
                fs::write(self.root.join(path), format!("{text}\n"))
            }
            ["bus", "pci", "drivers_probe"] => self.probe(text.trim()),
            ["bus", "pci", "drivers", driver, "unbind"] => self.unbind(text.trim(), driver),
            ["bus", "pci", "drivers", driver, "bind"] => {
                if self.at(text.trim(), "driver").exists() {
                    return Err(error(libc::EBUSY));
                }
                self.bind(text.trim(), driver);
                Ok(())
            }
            ["bus", "vdpa", "drivers", driver, "unbind"] => {
                let link = self.root.join("bus/vdpa/devices").join(text).join("driver");
                let bound = fs::read_link(&link).ok().and_then(|to| Some(to.file_name()?.to_str()?.to_owned()));
                if bound.as_deref() != Some(driver) {
                    return Err(error(libc::ENODEV));
                }
                vdpa_driver(&self.root, text, None);
                Ok(())
            }
            ["bus", "vdpa", "drivers", driver, "bind"] => {
                let device = self.root.join("bus/vdpa/devices").join(text);
                let wanted = fs::read_to_string(device.join("driver_override")).unwrap_or_default();
                if !["", "(null)", driver].contains(&wanted.trim()) || device.join("driver").exists() {
                    return Err(error(libc::ENODEV));
                }
                vdpa_driver(&self.root, text, Some(driver));
                Ok(())
            }
            _ => fs::write(self.root.join(path), text),
        }
    }

    fn set_vfs(&self, pf: &str, text: &str) -> io::Result<()> {
        let kind = *self.kinds.lock().unwrap().get(pf).ok_or_else(|| error(libc::ENOENT))?;
        let wanted: u16 = text.trim().parse().map_err(|_| error(libc::EINVAL))?;
        let now: u16 = fs::read_to_string(self.at(pf, "sriov_numvfs"))?.trim().parse().unwrap();
        if wanted > kind.total {
            return Err(error(libc::ERANGE));
        }
        if wanted == now {
            return Ok(());
        }
        if now != 0 && wanted != 0 {
            return Err(error(libc::EBUSY));
        }
        let address: ringspan_protocol::PciAddress = pf.parse().unwrap();
        let id = u32::from(address.bus) << 8 | u32::from(address.device) << 3 | u32::from(address.function);
        for number in 0..now.max(wanted) {
            let id = id + u32::from(kind.offset) + u32::from(number) * u32::from(kind.stride);
            let vf = format!("{:04x}:{:02x}:{:02x}.{}", address.domain, id >> 8, id >> 3 & 31, id & 7);
            let link = self.at(pf, &format!("virtfn{number}"));
            if wanted == 0 {
                fs::remove_file(link)?;
                fs::remove_dir_all(self.at(&vf, ""))?;
                continue;
            }
            let autoprobe = fs::read_to_string(self.at(pf, "sriov_drivers_autoprobe"))?.trim() == "1";
            self.function(&vf, kind.vf, kind.vf_driver);
            if !autoprobe {
                fs::remove_file(self.at(&vf, "driver"))?;
            }
            symlink(format!("../{pf}"), self.at(&vf, "physfn"))?;
            symlink(format!("../{vf}"), link)?;
        }
        fs::write(self.at(pf, "sriov_numvfs"), format!("{wanted}\n"))
    }

    fn probe(&self, address: &str) -> io::Result<()> {
        if !self.at(address, "").exists() {
            return Err(error(libc::ENODEV));
        }
        if self.at(address, "driver").exists() {
            return Ok(());
        }
        let wanted = fs::read_to_string(self.at(address, "driver_override"))?;
        let native = fs::read_to_string(self.at(address, ".native"))?;
        let driver = if wanted.trim() == "(null)" { native } else { wanted.trim().to_owned() };
        if !self.failing_probes.lock().unwrap().contains(&driver) {
            self.bind(address, &driver);
        }
        Ok(())
    }

    fn unbind(&self, address: &str, driver: &str) -> io::Result<()> {
        let link = self.at(address, "driver");
        let bound = fs::read_link(&link).ok().and_then(|to| Some(to.file_name()?.to_str()?.to_owned()));
        if bound.as_deref() != Some(driver) {
            return Err(error(libc::ENODEV));
        }
        fs::remove_file(link)
    }
}
