//! Firmware settings, by a made-up tool that keeps a state as a NIC does: what is next is in force after a reboot.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::error::ErrorKind;
use crate::host::Host;
use crate::host::firmware::{Firmware, FirmwareLink, Wish, get, set};

use super::kernel::FakeKernel;
use super::tree::{CX5, IGB, Tree};

const TOOL: &str = include_str!("mstconfig.sh");
const MST: &str = "#!/bin/sh\necho 'ConnectX5(rev:0)  /dev/mst/mt4119_pciconf0.1  0a:00.1  mlx5_1  net-eth1  0'\necho 'ConnectX5(rev:0)  /dev/mst/mt4119_pciconf0  0a:00.0  mlx5_0  net-eth0  0'\n";

struct Board {
    tree: Tree,
    host: Host,
}

impl Board {
    fn new() -> Self {
        let tree = Tree::new();
        tree.pf("0000:0a:00.0", CX5, "eth0", 2);
        tree.pf("0000:0a:00.1", CX5, "eth1", 3);
        tree.pf("0000:0b:00.0", IGB, "eth2", 4);
        for (setting, values) in [
            ("MEMIC_BAR_SIZE", "0 0 0"),
            ("SRIOV_EN", "False(0) False(0) False(0)"),
            ("NUM_OF_VFS", "0 0 0"),
            ("LINK_TYPE_P1", "IB(1) ETH(2) ETH(2)"),
            ("LINK_TYPE_P2", "IB(1) ETH(2) ETH(2)"),
        ] {
            tree.set(&format!("programs/state/{setting}"), values);
        }
        let board = Self { host: tree.host(FakeKernel::default()), tree };
        board.install("mstconfig", TOOL);
        board
    }

    fn install(&self, name: &str, text: &str) {
        let path = self.tree.path(&format!("programs/{name}"));
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// What is next is in force.
    fn reboot(&self) {
        for entry in fs::read_dir(self.tree.path("programs/state")).unwrap() {
            let path = entry.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            let words: Vec<&str> = text.split_whitespace().collect();
            fs::write(&path, format!("{} {} {}\n", words[0], words[2], words[2])).unwrap();
        }
    }

    fn set(&self, wish: Wish) -> Result<Firmware, crate::error::Error> {
        set(&self.host, &Wish { pf: "eth0".into(), ..wish })
    }
}

fn values<'a>(firmware: &'a Firmware, name: &str) -> (&'a str, &'a str, &'a str) {
    let found = firmware.settings.iter().find(|one| one.name == name).unwrap();
    (found.default.as_deref().unwrap(), found.current.as_deref().unwrap(), &found.next)
}

#[test]
fn what_is_set_waits_for_the_reboot_and_is_in_force_after_it() {
    let board = Board::new();
    let before = get(&board.host, "eth0").unwrap();
    assert_eq!((before.reboot_needed, before.tool.as_str(), before.settings.len()), (Some(false), "mstconfig", 4));
    assert_eq!(before.shared_with, ["eth1"]);
    let wish = Wish { sriov_en: Some(true), num_of_vfs: Some(16), ..Wish::default() };
    let set = board.set(wish.clone()).unwrap();
    assert_eq!((set.reboot_needed, set.done.len()), (Some(true), 2), "{:?}", set.done);
    assert_eq!(values(&set, "NUM_OF_VFS"), ("0", "0", "16"));
    // Once more is no change, and still waits.
    let again = board.set(wish.clone()).unwrap();
    assert!(again.done.is_empty() && again.reboot_needed == Some(true));
    board.reboot();
    let after = board.set(wish).unwrap();
    assert!(after.done.is_empty() && after.reboot_needed == Some(false));
    assert_eq!(values(&after, "SRIOV_EN"), ("False(0)", "True(1)", "True(1)"));
}

#[test]
fn a_link_type_is_that_of_the_functions_own_port() {
    let board = Board::new();
    let wish = Wish { pf: "0a:00.1".into(), link_type: Some(FirmwareLink::Infiniband), ..Wish::default() };
    let set = set(&board.host, &wish).unwrap();
    assert_eq!((values(&set, "LINK_TYPE_P1").2, values(&set, "LINK_TYPE_P2").2), ("ETH(2)", "IB(1)"));
    // A card that carries Ethernet only.
    fs::remove_file(board.tree.path("programs/state/LINK_TYPE_P2")).unwrap();
    let error = super::super::firmware::set(&board.host, &wish).unwrap_err();
    assert!(error.kind == ErrorKind::Unsupported && error.message.contains("no LINK_TYPE_P2"), "{error}");
}

#[test]
fn interface_address_and_mst_device_are_one() {
    let board = Board::new();
    board.install("mst", MST);
    for name in ["eth1", "0a:00.1", "0000:0a:00.1", "/dev/mst/mt4119_pciconf0.1"] {
        let firmware = get(&board.host, name).unwrap();
        assert_eq!(firmware.pf.to_string(), "0000:0a:00.1", "{name}");
        assert_eq!(firmware.interface.as_deref(), Some("eth1"));
        assert_eq!(firmware.mst_device.as_deref(), Some("/dev/mst/mt4119_pciconf0.1"));
    }
    let error = get(&board.host, "/dev/mst/mt4119_pciconf7").unwrap_err();
    assert!(error.kind == ErrorKind::NotFound && error.message.contains("mt4119_pciconf0.1"), "{error}");
}

#[test]
fn what_cannot_be_is_refused_with_the_tools_own_words() {
    let board = Board::new();
    let many = Wish { num_of_vfs: Some(200), ..Wish::default() };
    assert!(board.set(many.clone()).unwrap_err().message.contains("out of range"));
    let error = board.set(Wish { num_of_vfs: Some(0), ..Wish::default() }).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    let error = get(&board.host, "eth2").unwrap_err();
    assert!(error.kind == ErrorKind::Unsupported && error.message.contains("8086:10c9"), "{error}");
    // The other port of the board has more.
    board.tree.sysfs().write("bus/pci/devices/0000:0a:00.1/sriov_numvfs", "5").unwrap();
    let error = board.set(Wish { num_of_vfs: Some(4), ..Wish::default() }).unwrap_err();
    assert!(error.kind == ErrorKind::Busy && error.message.contains("0000:0a:00.1, which has 5"), "{error}");
    board.tree.set("programs/state/deaf", "");
    let error = board.set(Wish { num_of_vfs: Some(8), ..Wish::default() }).unwrap_err();
    assert!(error.kind == ErrorKind::Failed && error.message.contains("took NUM_OF_VFS=8"), "{error}");
    board.tree.set("programs/state/denied", "");
    assert_eq!(get(&board.host, "eth0").unwrap_err().kind, ErrorKind::Permission);
    fs::remove_file(board.tree.path("programs/mstconfig")).unwrap();
    let error = get(&board.host, "eth0").unwrap_err();
    assert!(error.kind == ErrorKind::Unsupported && error.message.contains("install mstflint"), "{error}");
}
