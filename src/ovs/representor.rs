//! Representors of NICs' functions, as the kernel shows them in sysfs.

use std::fs;
use std::path::Path;

/// A network interface that stands for a VF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Representor {
    /// Its name.
    pub name: String,
    /// What the driver calls the port: `pf0vf3`, or a plain number on old kernels.
    pub port: String,
    /// Vendor and device id of the NIC, where they can be read.
    pub nic: Option<(u16, u16)>,
}

/// Mellanox in PCI.
const MELLANOX: u16 = 0x15b3;

impl Representor {
    /// Whether its NIC is a ConnectX-6 or older, which track few connections in hardware. (ConnectX-6 Dx, 0x101d, is another chip.)
    pub(super) fn tracks_badly(&self) -> bool {
        self.nic.is_some_and(|(vendor, device)| vendor == MELLANOX && (0x1003..=0x101c).contains(&device))
    }
}

/// All VF representors below `sysfs`, which is `/sys` outside of tests, by name.
pub(super) fn list(sysfs: &Path) -> Vec<Representor> {
    let entries = fs::read_dir(sysfs.join("class/net")).into_iter().flatten().flatten();
    let mut found: Vec<Representor> = entries.filter_map(|entry| representor(&entry.path())).collect();
    found.sort_by(|one, other| one.name.cmp(&other.name));
    found
}

fn representor(folder: &Path) -> Option<Representor> {
    // Both are files of every interface, and reading them is an error for most: EOPNOTSUPP.
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok().map(|text| text.trim().to_owned());
    read("phys_switch_id").filter(|id| !id.is_empty())?;
    let port = read("phys_port_name").filter(|name| is_vf(name))?;
    let id = |name: &str| u16::from_str_radix(read(name)?.trim_start_matches("0x"), 16).ok();
    let nic = id("device/vendor").zip(id("device/device"));
    Some(Representor { name: folder.file_name()?.to_str()?.to_owned(), port, nic })
}

/// `pf0vf3`, `c1pf0vf3`, or a number; not `p0`, which is the uplink, nor `pf0sf1`.
fn is_vf(port: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let function = port.rsplit_once("vf").is_some_and(|(pf, vf)| {
        digits(vf)
            && pf.rsplit_once("pf").is_some_and(|(controller, pf)| {
                digits(pf) && (controller.is_empty() || controller.strip_prefix('c').is_some_and(digits))
            })
    });
    function || digits(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vf_representors_are_told_from_uplinks_and_from_plain_interfaces() {
        let sysfs = tempfile::tempdir().unwrap();
        let make = |name: &str, switch: &str, port: &str, device: &str| {
            let folder = sysfs.path().join("class/net").join(name);
            fs::create_dir_all(folder.join("device")).unwrap();
            for (file, text) in [
                ("phys_switch_id", switch),
                ("phys_port_name", port),
                ("device/vendor", "0x15b3"),
                ("device/device", device),
            ] {
                fs::write(folder.join(file), format!("{text}\n")).unwrap();
            }
        };
        make("eth0", "", "", "0x1017");
        make("up0", "0c42a1", "p0", "0x1017");
        make("sf0", "0c42a1", "pf0sf1", "0x1017");
        make("rep3", "0c42a1", "pf0vf3", "0x1017");
        make("rep4", "0c42a1", "c1pf0vf4", "0x101d");
        make("rep5", "0c42a1", "5", "0x101b");
        fs::create_dir_all(sysfs.path().join("class/net/lo")).unwrap();
        let found = list(sysfs.path());
        let names: Vec<_> = found.iter().map(|one| (one.name.as_str(), one.tracks_badly())).collect();
        assert_eq!(names, [("rep3", true), ("rep4", false), ("rep5", true)]);
    }
}
