//! What the inventory says of made-up hosts.

use crate::error::ErrorKind;
use crate::host::inventory::{Inventory, LinkType};
use crate::host::netlink::{DevlinkName, DevlinkPort, DriverInfo, EswitchMode, EswitchState, Flavour, VfSettings};
use crate::host::pci::Answer;

use super::kernel::FakeKernel;
use super::tree::{CX5, I350, IGB, Tree};

const PF0: &str = "0000:0a:00.0";
const PF1: &str = "0000:0a:00.1";

fn switch(mode: EswitchMode) -> EswitchState {
    EswitchState { mode, inline_mode: None, encap_mode: None }
}

fn vf_port(pf: &str, vf: u16, interface: &str) -> DevlinkPort {
    let device = DevlinkName { bus: "pci".into(), device: pf.into() };
    let flavour = Flavour::Vf { controller: 0, pf: 0, vf };
    DevlinkPort { device, index: vf.into(), flavour, interface: Some(interface.into()) }
}

#[test]
fn an_i350_and_its_functions_are_named_as_lspci_and_the_agent_name_them() {
    let tree = Tree::new();
    tree.pf("0000:01:00.0", I350, "eth1", 3);
    tree.sysfs().write("bus/pci/devices/0000:01:00.0/sriov_numvfs", "2").unwrap();
    let kernel = FakeKernel::default();
    let info = DriverInfo { version: Some("6.1.0".into()), firmware: Some("1.63, 0x800009fa".into()) };
    kernel.0.lock().unwrap().drivers.insert("eth1".into(), info);
    let host = tree.host(kernel);
    let inventory = Inventory::take(&host);
    let devices = inventory.devices();
    let seen: Vec<_> = devices.iter().map(|one| (one.addr.as_str(), one.model.as_str(), one.vf)).collect();
    assert_eq!(
        seen,
        [
            ("01:00.0", "I350 Gigabit Network Connection", None),
            ("01:10.0", "I350 Ethernet Controller Virtual Function", Some(0)),
            ("01:10.2", "I350 Ethernet Controller Virtual Function", Some(1)),
        ]
    );
    let vf = &devices[1];
    assert_eq!((vf.dev_type.as_str(), vf.sharing_mode.as_str(), vf.hot_pluggable), ("NIC", "SRIOV", true));
    assert_eq!((vf.vendor_device_id.as_str(), vf.driver.as_deref()), ("8086:1520", Some("igbvf")));
    assert_eq!((vf.host_id.as_deref(), vf.numa_node, vf.iommu_group), (Some("host-1"), None, Some(1)));
    assert_eq!(vf.ovs_offload.possible, Answer::No);
    let pf = inventory.pf_named("eth1").unwrap();
    assert_eq!(pf.firmware_version.as_deref(), Some("1.63, 0x800009fa"));
    assert_eq!((pf.sriov.unwrap().total, pf.sriov.unwrap().enabled, pf.vfs.len()), (7, 2, 2));
    let link = pf.pcie_info.unwrap();
    assert_eq!((link.transfer_rate_per_lane.as_str(), link.throughput.as_str()), ("8GT/s", "15.76 GB/s"));
}

#[test]
fn ids_and_order_stay_over_restarts_and_over_other_devices_coming() {
    let tree = Tree::new();
    tree.pf(PF0, IGB, "eth0", 2);
    let host = tree.host(FakeKernel::default());
    let before = Inventory::take(&host).devices();
    // Another domain, which the agent would not see, sorts behind; a lower bus before.
    tree.pf("10000:01:00.0", IGB, "eth9", 9);
    tree.pf("0000:02:00.0", IGB, "eth1", 3);
    let after = Inventory::take(&host).devices();
    let addresses: Vec<_> = after.iter().map(|one| one.addr.as_str()).collect();
    assert_eq!(addresses, ["02:00.0", "0a:00.0", "10000:01:00.0"]);
    assert_eq!(after[1], before[0]);
    let inventory = Inventory::take(&host);
    for name in ["eth0", PF0, "0A:00.0", &before[0].id] {
        assert_eq!(inventory.device_named(name).unwrap(), before[0], "{name}");
    }
}

/// Two PFs of one NIC, bonded: one switch, told apart by their devices.
fn bonded() -> (Tree, FakeKernel) {
    let tree = Tree::new();
    let kernel = FakeKernel::default();
    for (pf, interface, index) in [(PF0, "eth0", 2), (PF1, "eth1", 3)] {
        let kind = crate::host::tests::tree::Kind { offset: if pf == PF0 { 2 } else { 9 }, ..CX5 };
        tree.pf(pf, kind, interface, index);
        tree.sysfs().write(&format!("bus/pci/devices/{pf}/sriov_numvfs"), "2").unwrap();
        let number = index - 2;
        tree.port(pf, interface, index, "0c42a1fffe112233", &format!("p{number}"));
        for vf in 0..2 {
            let representor = format!("{interface}_{vf}");
            tree.port(pf, &representor, 10 * index + vf, "0c42a1fffe112233", &format!("pf{number}vf{vf}"));
        }
        let name = DevlinkName { bus: "pci".into(), device: pf.into() };
        kernel.0.lock().unwrap().eswitches.insert(name, switch(EswitchMode::Switchdev));
    }
    (tree, kernel)
}

#[test]
fn representors_of_two_bonded_pfs_are_told_apart_with_devlink_and_without() {
    let (tree, kernel) = bonded();
    let representors = |kernel: &FakeKernel| {
        let host = tree.host(kernel.clone());
        let devices = Inventory::take(&host).devices();
        let named = devices.into_iter().map(|one| (one.interface, one.representor));
        named.collect::<Vec<_>>()
    };
    let by_sysfs = representors(&kernel);
    let name = |text: &str| Some(text.to_owned());
    let wanted = [
        (name("eth0"), None),
        (name("eth1"), None),
        (None, name("eth0_0")),
        (None, name("eth0_1")),
        (None, name("eth1_0")),
        (None, name("eth1_1")),
    ];
    assert_eq!(by_sysfs, wanted);
    // devlink says so of its own accord, and is asked first.
    kernel.0.lock().unwrap().ports.push(vf_port(PF1, 1, "other"));
    assert_eq!(representors(&kernel)[5].1, name("other"));
    // Older kernels: the interface's device is not said, the name of its port is.
    for interface in ["eth0_0", "eth0_1", "eth1_0", "eth1_1"] {
        std::fs::remove_file(tree.path(&format!("class/net/{interface}/device"))).unwrap();
    }
    kernel.0.lock().unwrap().ports.clear();
    assert_eq!(representors(&kernel), wanted);
    // Still older: a plain number, which could be of either.
    for interface in ["eth0_0", "eth1_0"] {
        tree.set(&format!("class/net/{interface}/phys_port_name"), "0");
    }
    assert_eq!(representors(&kernel)[2].1, None);
}

#[test]
fn whether_ovs_can_offload_is_said_with_the_reason() {
    let (tree, kernel) = bonded();
    let say = |kernel: &FakeKernel| {
        let host = tree.host(kernel.clone());
        let offload = Inventory::take(&host).pf_named(PF0).unwrap().ovs_offload;
        (offload.possible, offload.reason)
    };
    let (possible, reason) = say(&kernel);
    assert_eq!(possible, Answer::Yes);
    assert!(reason.contains("ConnectX-5") && reason.contains("disable_security_group"), "{reason}");
    let device = DevlinkName { bus: "pci".into(), device: PF0.into() };
    kernel.0.lock().unwrap().eswitches.insert(device.clone(), switch(EswitchMode::Legacy));
    let (possible, reason) = say(&kernel);
    assert_eq!(possible, Answer::No);
    assert!(reason.contains("ringspan eswitch set 0000:0a:00.0 --mode switchdev"), "{reason}");
    kernel.0.lock().unwrap().eswitches.remove(&device);
    assert_eq!(say(&kernel).0, Answer::Unknown);
    tree.set("class/net/eth0/type", "32");
    let (possible, reason) = say(&kernel);
    assert!(possible == Answer::No && reason.contains("InfiniBand"), "{reason}");
    let host = tree.host(kernel);
    assert_eq!(Inventory::take(&host).pf_named(PF0).unwrap().link_type, LinkType::Infiniband);
}

#[test]
fn two_hundred_and_fifty_functions_are_listed_without_asking_for_lists_of_them() {
    let tree = Tree::new();
    tree.pf(PF0, CX5, "eth0", 2);
    tree.sysfs().write(&format!("bus/pci/devices/{PF0}/sriov_numvfs"), "250").unwrap();
    let kernel = FakeKernel::default();
    let settings = (0..250).map(|vf| VfSettings { vf, vlan: 7, ..VfSettings::default() }).collect();
    kernel.0.lock().unwrap().vfs.insert(2, settings);
    let host = tree.host(kernel.clone());
    let inventory = Inventory::take(&host);
    let devices = inventory.devices();
    assert_eq!(devices.len(), 251);
    assert_eq!((devices[250].vf, devices[250].addr.as_str()), (Some(249), "0a:1f.3"));
    let ids: std::collections::BTreeSet<_> = devices.iter().map(|device| &device.id).collect();
    assert_eq!(ids.len(), 251);
    assert_eq!(kernel.0.lock().unwrap().vf_lists, 0);
    // One VF's settings ask for its PF's, and a kernel that cannot tell them takes nothing else away.
    assert_eq!(inventory.settings(&devices[8]).unwrap().vlan, 7);
    kernel.0.lock().unwrap().refusals.push(("vfs", 1, libc::EMSGSIZE, "Buffer too small for object"));
    assert_eq!(inventory.settings(&devices[8]), None);
    assert_eq!(kernel.0.lock().unwrap().vf_lists, 2);
}

#[test]
fn what_is_no_nic_or_not_there_is_refused_with_the_remedy() {
    let tree = Tree::new();
    tree.pf(PF0, IGB, "eth0", 2);
    tree.sysfs().write(&format!("bus/pci/devices/{PF0}/sriov_numvfs"), "1").unwrap();
    tree.set("class/net/br0/ifindex", "7");
    tree.set("bus/pci/devices/0000:00:02.0/class", "0x018000");
    let host = tree.host(FakeKernel::default());
    let inventory = Inventory::take(&host);
    for (name, kind) in [
        ("eth7", ErrorKind::NotFound),
        ("../../etc", ErrorKind::NotFound),
        ("", ErrorKind::NotFound),
        ("0b:00.0", ErrorKind::NotFound),
        ("0000:00:02.0", ErrorKind::NotFound),
        ("br0", ErrorKind::Invalid),
        ("0a:10.0", ErrorKind::Invalid),
    ] {
        let error = inventory.pf_named(name).unwrap_err();
        assert_eq!((error.kind, error.item.as_deref()), (kind, Some(name)), "{error}");
    }
    let error = inventory.pf_named("0a:10.0").unwrap_err();
    assert!(error.message.contains("name its physical one, 0000:0a:00.0"), "{error}");
}

#[test]
fn a_host_without_nics_devlink_or_sysfs_has_an_empty_inventory() {
    let tree = Tree::new();
    let kernel = FakeKernel::default();
    kernel.0.lock().unwrap().refusals.push(("ports", 9, libc::ENOENT, ""));
    assert!(Inventory::take(&tree.host(kernel.clone())).devices().is_empty());
    std::fs::remove_dir_all(tree.path("bus")).unwrap();
    assert!(Inventory::take(&tree.host(kernel)).pfs().is_empty());
}

#[test]
fn attributes_that_are_missing_take_only_themselves_away() {
    let tree = Tree::new();
    tree.pf(PF0, IGB, "eth0", 2);
    for name in ["numa_node", "max_link_speed", "sriov_numvfs", "iommu_group", "driver"] {
        std::fs::remove_file(tree.path(&format!("bus/pci/devices/{PF0}/{name}"))).unwrap();
    }
    let host = tree.host(FakeKernel::default());
    let pf = Inventory::take(&host).pf_named("eth0").unwrap();
    assert_eq!((pf.sriov, pf.pcie_info, pf.driver, pf.iommu_group), (None, None, None, None));
    assert_eq!((pf.capabilities.sriov, pf.ovs_offload.possible), (Answer::Unknown, Answer::Unknown));
}

#[test]
fn the_interface_of_a_virtio_card_lies_below_its_virtio_device() {
    let tree = Tree::new();
    let at = |name: &str| tree.path(&format!("bus/pci/devices/0000:00:03.0/{name}"));
    for (name, text) in [("vendor", "0x1af4"), ("device", "0x1041"), ("class", "0x020000")] {
        tree.set(&format!("bus/pci/devices/0000:00:03.0/{name}"), text);
    }
    let host = tree.host(FakeKernel::default());
    let listed = || Inventory::take(&host).devices().into_iter().map(|one| (one.interface, one.link_type)).next();
    assert_eq!(listed(), Some((None, LinkType::Unknown)));
    // Its driver makes a virtio device, whose driver makes the interface.
    std::fs::create_dir_all(at("virtio1")).unwrap();
    assert_eq!(listed(), Some((None, LinkType::Unknown)));
    std::fs::create_dir_all(at("virtio1/net/eth7")).unwrap();
    tree.set("class/net/eth7/type", "1");
    assert_eq!(listed(), Some((Some("eth7".into()), LinkType::Ethernet)));
    // By the name that is listed it is found.
    std::os::unix::fs::symlink(at("virtio1"), tree.path("class/net/eth7/device")).unwrap();
    let named = Inventory::take(&host).pf_named("eth7").unwrap();
    assert_eq!((named.address, named.interface), ("0000:00:03.0".parse().unwrap(), Some("eth7".into())));
    assert!(Inventory::take(&host).pf_named("eth8").is_err());
}
