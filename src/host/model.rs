//! The names of PCI devices, as lspci prints them: the database `pci.ids`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Names by vendor and device.
#[derive(Debug, Default)]
pub(super) struct Names {
    vendors: BTreeMap<u16, String>,
    devices: BTreeMap<(u16, u16), String>,
}

impl Names {
    /// Reads the names of these devices. A database that cannot be read has none.
    pub(super) fn read(file: &Path, wanted: &[(u16, u16)]) -> Self {
        // Some lines of the database are Latin-1.
        let bytes = fs::read(file).unwrap_or_default();
        Self::of(&String::from_utf8_lossy(&bytes), wanted)
    }

    fn of(database: &str, wanted: &[(u16, u16)]) -> Self {
        let (mut names, mut vendor) = (Self::default(), None);
        for line in database.lines() {
            if let Some((id, name)) = entry(line) {
                vendor = Some(id).filter(|id| wanted.iter().any(|(wanted, _)| wanted == id));
                if let Some(id) = vendor {
                    names.vendors.insert(id, name.to_owned());
                }
            } else if let Some((id, name)) = line.strip_prefix('\t').and_then(entry) {
                if let Some(vendor) = vendor.filter(|vendor| wanted.contains(&(*vendor, id))) {
                    names.devices.insert((vendor, id), name.to_owned());
                }
            } else if line.starts_with("C ") {
                // Behind the vendors there are the classes.
                break;
            }
        }
        names
    }

    /// What lspci prints behind the class: vendor and device.
    pub(super) fn lspci(&self, vendor: u16, device: u16) -> String {
        match (self.vendors.get(&vendor), self.devices.get(&(vendor, device))) {
            (Some(vendor), Some(device)) => format!("{vendor} {device}"),
            (Some(vendor), None) => format!("{vendor} Device {device:04x}"),
            (None, _) => format!("Device {vendor:04x}:{device:04x}"),
        }
    }

    /// The agent's name of a model: what lspci has in brackets, else the whole name of the device.
    pub(super) fn model(&self, vendor: u16, device: u16) -> String {
        let Some(name) = self.devices.get(&(vendor, device)) else { return format!("Device {device:04x}") };
        let inner = name.rfind('[').and_then(|at| name[at + 1..].split_once(']'));
        inner.map_or_else(|| name.clone(), |(inner, _)| inner.to_owned())
    }
}

/// `8086  Intel Corporation`: four digits, two spaces, the name.
fn entry(line: &str) -> Option<(u16, &str)> {
    let (id, name) = line.split_once("  ")?;
    let digits = id.len() == 4 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u16::from_str_radix(id, 16).ok().map(|id| (id, name.trim())))?
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATABASE: &str = "# comment\n15b3  Mellanox Technologies\n\t1017  MT27800 Family [ConnectX-5]\n\t\t15b3 0020  ConnectX-5 EN\n\t1018  MT27800 Family [ConnectX-5 Virtual Function]\n8086  Intel Corporation\n\t1520  I350 Ethernet Controller Virtual Function\n\t1018  another\nC 02  Network controller\n\t00  Ethernet controller\n";

    #[test]
    fn the_model_is_what_lspci_has_in_brackets_or_else_the_name() {
        let wanted = [(0x15b3, 0x1017), (0x15b3, 0x1018), (0x8086, 0x1520), (0x8086, 0xfff), (1, 2)];
        let names = Names::of(DATABASE, &wanted);
        assert_eq!(names.model(0x15b3, 0x1018), "ConnectX-5 Virtual Function");
        assert_eq!(names.model(0x8086, 0x1520), "I350 Ethernet Controller Virtual Function");
        assert_eq!(names.lspci(0x15b3, 0x1017), "Mellanox Technologies MT27800 Family [ConnectX-5]");
        assert_eq!(names.lspci(0x8086, 0xfff), "Intel Corporation Device 0fff");
        assert_eq!(names.lspci(1, 2), "Device 0001:0002");
        assert_eq!(names.model(1, 2), "Device 0002");
    }

    #[test]
    fn without_a_database_there_are_numbers() {
        assert_eq!(Names::read(Path::new("/nonexistent"), &[(1, 2)]).model(1, 2), "Device 0002");
    }
}
