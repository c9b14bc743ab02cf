//! Names that stay, on made-up hosts.

use std::fs;

use crate::host::udev::name;

use super::kernel::FakeKernel;
use super::tree::{CX5, IGB, Tree};

const FILE: &str = "udev/82-net-setup-link.rules";

#[test]
fn vfs_and_representors_are_named_before_they_exist_and_once_more_is_no_change() {
    let tree = Tree::new();
    tree.pf("0000:0a:00.0", IGB, "eth0", 2);
    let host = tree.host(FakeKernel::default());
    assert!(name(&host, "eth0", true).unwrap().done[0].starts_with("would write"));
    assert!(!tree.path(FILE).exists());
    let named = name(&host, "eth0", false).unwrap();
    assert_eq!((named.rules.len(), named.done.len(), named.conflicts.len()), (15, 1, 0));
    let text = fs::read_to_string(tree.path(FILE)).unwrap();
    assert!(text.contains(r#"KERNELS=="0000:0a:11.4", NAME="eth0v6""#), "{text}");
    assert!(
        text.contains(
            r#"KERNELS=="0000:0a:00.0", ATTR{phys_port_name}=="pf[0-9]vf6|pf[0-9][0-9]vf6|6", NAME="eth0_6""#
        ),
        "{text}"
    );
    assert!(name(&host, "eth0", false).unwrap().done.is_empty());
    // The addresses are those that the kernel gives.
    tree.sysfs().write("bus/pci/devices/0000:0a:00.0/sriov_numvfs", "7").unwrap();
    assert!(name(&host, "eth0", false).unwrap().done.is_empty());
}

#[test]
fn rules_of_others_stay_and_those_about_the_same_interfaces_are_conflicts() {
    let tree = Tree::new();
    tree.pf("0000:0a:00.0", CX5, "eth0", 2);
    tree.pf("0000:0b:00.0", CX5, "eth1", 3);
    tree.port("0000:0a:00.0", "eth0", 2, "0c42a1", "p0");
    tree.port("0000:0b:00.0", "eth1", 3, "0c42b2", "p0");
    let theirs = "# of the administrator\nSUBSYSTEM==\"net\", ACTION==\"add\", ATTR{phys_switch_id}==\"0c42b2\", \\\n  ATTR{phys_port_name}!=\"\", NAME=\"sw_$attr{phys_port_name}\"\n";
    tree.set(FILE, theirs.trim_end());
    tree.set("udev/70-other.rules", "KERNEL==\"eth9\", NAME==\"eth0_1\"");
    let host = tree.host(FakeKernel::default());
    let named = name(&host, "eth0", false).unwrap();
    assert!(named.conflicts.is_empty() && named.done.len() == 1, "{:?}", named.conflicts);
    let named = name(&host, "eth1", false).unwrap();
    assert_eq!((named.conflicts.len(), named.conflicts[0].line, named.rules.len()), (1, 2, 0));
    assert!(named.conflicts[0].why.contains("0c42b2"), "{:?}", named.conflicts);
    let text = fs::read_to_string(tree.path(FILE)).unwrap();
    assert!(
        text.starts_with(theirs) && text.contains("begin 0000:0a:00.0") && !text.contains("begin 0000:0b:00.0"),
        "{text}"
    );
    // A rule about every switch, and one that takes a name away: what was written for the PF goes.
    for rule in [
        "SUBSYSTEM==\"net\", ATTR{phys_port_name}!=\"\", NAME=\"$attr{phys_port_name}\"",
        "KERNEL==\"eth9\", NAME:=\"eth0_1\"",
        // As MLNX_OFED's, without a comma before the name (written from its documentation; not seen on hardware).
        "SUBSYSTEM==\"net\", ACTION==\"add\", ATTR{phys_switch_id}!=\"\", IMPORT{program}=\"/etc/infiniband/vf-net-link-name.sh $attr{phys_switch_id} $attr{phys_port_name}\" NAME=\"$env{NAME}\"",
    ] {
        tree.set("udev/70-other.rules", rule);
        let named = name(&host, "eth0", false).unwrap();
        assert!(named.conflicts.len() == 1 && named.rules.is_empty() && named.done.len() == 1, "{named:?}");
        assert_eq!(fs::read_to_string(tree.path(FILE)).unwrap(), theirs);
        fs::remove_file(tree.path("udev/70-other.rules")).unwrap();
        assert_eq!(name(&host, "eth0", false).unwrap().done.len(), 1);
    }
}

#[test]
fn a_file_of_the_systems_is_gone_on_from_and_not_masked() {
    const SYSTEMS: &str = "lib/82-net-setup-link.rules";
    let tree = Tree::new();
    tree.pf("0000:0a:00.0", CX5, "eth0", 2);
    tree.port("0000:0a:00.0", "eth0", 2, "0c42a1", "p0");
    let mut host = tree.host(FakeKernel::default());
    host.udev.push(tree.path("lib"));
    // One that names the same interfaces: nothing is written.
    tree.set(SYSTEMS, "SUBSYSTEM==\"net\", ATTR{phys_port_name}!=\"\", NAME=\"sw_$attr{phys_port_name}\"\n");
    let named = name(&host, "eth0", false).unwrap();
    assert!(named.conflicts.len() == 1 && named.done.is_empty() && !tree.path(FILE).exists(), "{named:?}");
    assert!(named.conflicts[0].file.ends_with(SYSTEMS), "{named:?}");
    // Others' rules in it count as before.
    let theirs = "KERNEL==\"eth7\", NAME=\"wan\"\n";
    tree.set(SYSTEMS, theirs.trim_end());
    assert_eq!(name(&host, "eth0", false).unwrap().done.len(), 1);
    let text = fs::read_to_string(tree.path(FILE)).unwrap();
    assert!(text.starts_with(theirs) && text.contains("begin 0000:0a:00.0"), "{text}");
    assert_eq!(fs::read_to_string(tree.path(SYSTEMS)).unwrap(), theirs);
    // From now on it is udev that does not read it.
    tree.set(SYSTEMS, "KERNEL==\"eth9\", NAME=\"eth0_1\"\n");
    let named = name(&host, "eth0", false).unwrap();
    assert!(named.conflicts.is_empty() && named.done.is_empty(), "{named:?}");
}
