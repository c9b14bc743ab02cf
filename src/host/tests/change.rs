//! VFs made and taken, set, and given to drivers, on made-up hosts.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use ringspan_protocol::PciAddress;

use crate::error::{Error, ErrorKind};
use crate::host::Host;
use crate::host::bind::{Bound, Memory, bind};
use crate::host::bond::{Around, BridgePort};
use crate::host::netlink::{DevlinkName, EswitchMode, EswitchState, Guid, VfLinkState, VfSettings};
use crate::host::sriov::{Count, Enabled, Max, enable};
use crate::host::vf::{Wish, set};

use super::kernel::FakeKernel;
use super::owned_by;
use super::tree::{CX5, IGB, Tree};

const PF: &str = "0000:0a:00.0";
const NUMVFS: &str = "bus/pci/devices/0000:0a:00.0/sriov_numvfs";
const LIMIT: Duration = Duration::from_secs(20);

#[derive(Default)]
pub(super) struct Remembered(Mutex<BTreeMap<PciAddress, Option<String>>>);

impl Memory for Remembered {
    fn original(&self, function: PciAddress) -> Result<Option<Option<String>>, Error> {
        Ok(self.0.lock().unwrap().get(&function).cloned())
    }

    fn remember(&self, function: PciAddress, driver: Option<Option<String>>) -> Result<(), Error> {
        match driver {
            Some(driver) => self.0.lock().unwrap().insert(function, driver),
            None => self.0.lock().unwrap().remove(&function),
        };
        Ok(())
    }
}

fn nobody(_: PciAddress) -> Option<String> {
    None
}

fn igb(vfs: u16) -> (Tree, Host) {
    let tree = Tree::new();
    tree.pf(PF, IGB, "eth0", 2);
    tree.sysfs().write(NUMVFS, &vfs.to_string()).unwrap();
    let host = tree.host(FakeKernel::default());
    (tree, host)
}

fn to(host: &Host, count: u16, disturb: bool) -> Result<Enabled, Error> {
    enable(host, "eth0", Count::Number(count), disturb, LIMIT, &owned_by(&nobody))
}

fn counted(tree: &Tree) -> u16 {
    tree.sysfs().number(NUMVFS).unwrap()
}

#[test]
fn so_many_functions_are_made_changed_and_taken_and_once_more_is_no_change() {
    let (tree, host) = igb(0);
    let made = to(&host, 2, false).unwrap();
    assert_eq!((made.before, made.enabled, made.total, made.done.len()), (0, 2, 7, 1));
    assert_eq!(made.vfs.iter().map(ToString::to_string).collect::<Vec<_>>(), ["0000:0a:10.0", "0000:0a:10.2"]);
    let writes = tree.writes().len();
    assert!(to(&host, 2, false).unwrap().done.is_empty());
    assert_eq!(tree.writes().len(), writes);
    let all = enable(&host, "0a:00.0", Count::Max(Max::Max), false, LIMIT, &owned_by(&nobody)).unwrap();
    assert_eq!((all.before, all.vfs.len()), (2, 7));
    assert!(to(&host, 0, false).unwrap().vfs.is_empty());
    assert_eq!(counted(&tree), 0);
}

#[test]
fn functions_in_use_are_not_taken_unless_told_and_a_ports_or_a_guests_never() {
    let (tree, host) = igb(3);
    let memory = Remembered::default();
    bind(&host, &memory, "0a:10.2", Some("vfio-pci"), false, nobody).unwrap();
    let error = to(&host, 2, false).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy);
    assert!(
        error.message.contains("VF 1 (0000:0a:10.2): bound to vfio-pci") && error.message.contains("--disturb"),
        "{error}"
    );
    let owned = |address: PciAddress| (address.to_string() == "0000:0a:10.4").then(|| "vm1".to_owned());
    let error = enable(&host, "eth0", Count::Number(2), true, LIMIT, &owned_by(&owned)).unwrap_err();
    assert!(error.kind == ErrorKind::Busy && error.message.contains("port vm1 has VF 2"), "{error}");
    // A guest that has it open: the kernel would wait for that guest.
    let group = tree.sysfs().link("bus/pci/devices/0000:0a:10.2/iommu_group").unwrap();
    std::fs::create_dir_all(tree.path("proc/4711/fd")).unwrap();
    std::os::unix::fs::symlink(format!("/dev/vfio/{group}"), tree.path("proc/4711/fd/9")).unwrap();
    let error = to(&host, 2, true).unwrap_err();
    assert!(error.kind == ErrorKind::Busy && error.message.contains("process 4711"), "{error}");
    let error = bind(&host, &memory, "0a:10.2", None, true, nobody).unwrap_err();
    assert!(error.message.contains("process 4711"), "{error}");
    assert_eq!(counted(&tree), 3);
    std::fs::remove_dir_all(tree.path("proc")).unwrap();
    assert_eq!(to(&host, 2, true).unwrap().enabled, 2);
}

#[test]
fn whoever_has_a_function_open_by_another_node_of_vfio_or_by_uio_is_seen_too() {
    let (tree, host) = igb(1);
    let memory = Remembered::default();
    for driver in ["mlx5_vfio_pci", "uio_pci_generic"] {
        tree.driver(driver);
    }
    let group = tree.sysfs().link("bus/pci/devices/0000:0a:10.0/iommu_group").unwrap();
    std::fs::create_dir_all(tree.path("proc/4712/fd")).unwrap();
    for (driver, folder, node) in [
        ("vfio-pci", "vfio-dev/vfio3", "/dev/vfio/devices/vfio3".to_owned()),
        ("mlx5_vfio_pci", "driver", format!("/dev/vfio/{group}")),
        ("vfio-pci", "driver", format!("/dev/vfio/noiommu-{group}")),
        ("uio_pci_generic", "uio/uio1", "/dev/uio1".to_owned()),
    ] {
        bind(&host, &memory, "0a:10.0", Some(driver), false, nobody).unwrap();
        let folder = tree.path("bus/pci/devices/0000:0a:10.0").join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let link = tree.path("proc/4712/fd/9");
        std::os::unix::fs::symlink(&node, &link).unwrap();
        let error = bind(&host, &memory, "0a:10.0", None, true, nobody).unwrap_err();
        assert!(error.kind == ErrorKind::Busy && error.message.contains("process 4712"), "{node}: {error}");
        std::fs::remove_file(link).unwrap();
    }
}

#[test]
fn a_function_whose_interface_is_up_is_not_bound_and_a_roll_back_that_fails_is_told() {
    let (tree, host) = igb(1);
    let memory = Remembered::default();
    tree.set("bus/pci/devices/0000:0a:10.0/net/eth5/flags", "0x1003");
    let error = driven(&host, &memory, "0a:10.0", Some("vfio-pci")).unwrap_err();
    assert!(error.kind == ErrorKind::Busy && error.message.contains("eth5 is up"), "{error}");
    tree.set("bus/pci/devices/0000:0a:10.0/net/eth5/flags", "0x1002");
    // Neither the new driver takes it nor the old one takes it back.
    tree.fail_probe("vfio-pci");
    tree.refuse("bus/pci/drivers/igbvf/bind", libc::EINVAL);
    let error = driven(&host, &memory, "0a:10.0", Some("vfio-pci")).unwrap_err();
    assert!(error.message.contains("left: igbvf has let go of 0000:0a:10.0 (it cannot be undone"), "{error}");
    assert!(!error.message.contains("undone: igbvf has let go"), "{error}");
    // What it had at first is still known, and is given back when that is possible again.
    assert_eq!(memory.0.lock().unwrap().values().next(), Some(&Some("igbvf".to_owned())));
    // A driver that does not let go has it as before.
    tree.allow("bus/pci/drivers/igbvf/bind");
    driven(&host, &memory, "0a:10.0", None).unwrap();
    tree.refuse("bus/pci/drivers/igbvf/unbind", libc::EBUSY);
    let error = driven(&host, &memory, "0a:10.0", Some("vfio-pci")).unwrap_err();
    assert!(!error.message.contains("has let go"), "{error}");
    assert_eq!(tree.sysfs().text("bus/pci/devices/0000:0a:10.0/driver_override").as_deref(), Some("(null)"));
}

#[test]
fn what_functions_lose_with_their_number_is_told_when_the_number_is_restored() {
    let (tree, kernel) = settings(None);
    let host = tree.host(kernel);
    set(&host, &Wish { vlan: Some(7), mac: Some("52:54:00:00:00:01".parse().unwrap()), ..wish() }).unwrap();
    bind(&host, &Remembered::default(), "0a:00.2", Some("vfio-pci"), false, nobody).unwrap();
    tree.refuse_text(NUMVFS, "5", libc::ENOMEM);
    let error = to(&host, 5, true).unwrap_err();
    assert!(error.message.contains("undone: eth0 had 2 virtual functions"), "{error}");
    for lost in
        ["VF 0 (0000:0a:00.2) has lost its binding to vfio-pci", "has lost its MAC address 52:54:00:00:00:01, VLAN 7"]
    {
        let left = error.message.split("left: ").nth(1).unwrap();
        assert!(left.contains(lost), "{error}");
    }
}

#[test]
fn what_the_kernel_refuses_is_explained_and_the_old_number_restored() {
    let (tree, host) = igb(0);
    for (errno, kind, word) in [
        (libc::ENOMEM, ErrorKind::NoRoom, "pci=realloc"),
        (libc::ENOSPC, ErrorKind::NoRoom, "NUM_OF_VFS"),
        (libc::EBUSY, ErrorKind::Busy, "meanwhile"),
        (libc::ENOENT, ErrorKind::Unsupported, "device bind"),
        (libc::EACCES, ErrorKind::Permission, "root"),
        (libc::EPERM, ErrorKind::Busy, "assigned"),
        (libc::EINVAL, ErrorKind::Invalid, "max_vfs"),
    ] {
        tree.refuse(NUMVFS, errno);
        let error = to(&host, 2, false).unwrap_err();
        assert_eq!((error.kind, error.errno, error.item.as_deref()), (kind, Some(errno), Some("eth0")), "{error}");
        assert!(error.message.contains(word), "{error}");
    }
    tree.allow(NUMVFS);
    to(&host, 2, false).unwrap();
    tree.refuse_text(NUMVFS, "5", libc::ENOMEM);
    let error = to(&host, 5, false).unwrap_err();
    assert!(error.message.contains("undone: eth0 had 2 virtual functions, and has none"), "{error}");
    assert_eq!(counted(&tree), 2);
    let error = to(&host, 8, false).unwrap_err();
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("at most 7"), "{error}");
    for (name, kind) in
        [("0a:10.0", ErrorKind::Invalid), ("eth9", ErrorKind::NotFound), ("0b:00.0", ErrorKind::NotFound)]
    {
        assert_eq!(
            enable(&host, name, Count::Number(1), false, LIMIT, &owned_by(&nobody)).unwrap_err().kind,
            kind,
            "{name}"
        );
    }
    std::fs::remove_file(tree.path("bus/pci/devices/0000:0a:00.0/sriov_totalvfs")).unwrap();
    assert_eq!(to(&host, 1, false).unwrap_err().kind, ErrorKind::Unsupported);
}

#[test]
fn the_answer_comes_when_the_last_function_is_there_or_says_how_many_are_missing() {
    let (tree, host) = igb(0);
    to(&host, 2, false).unwrap();
    let link = tree.path("bus/pci/devices/0000:0a:00.0/virtfn1");
    let to_there = std::fs::read_link(&link).unwrap();
    std::fs::remove_file(&link).unwrap();
    let short =
        enable(&host, "eth0", Count::Number(2), false, Duration::from_millis(30), &owned_by(&nobody)).unwrap_err();
    assert!(short.kind == ErrorKind::Timeout && short.message.contains("1 of 2"), "{short}");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // It comes late, while it is waited for; nothing tells from outside that this has begun.
            std::thread::sleep(Duration::from_millis(50));
            std::os::unix::fs::symlink(to_there, &link).unwrap();
        });
        assert_eq!(to(&host, 2, false).unwrap().vfs.len(), 2);
    });
}

fn driven(host: &Host, memory: &Remembered, name: &str, driver: Option<&str>) -> Result<Bound, Error> {
    bind(host, memory, name, driver, false, nobody)
}

#[test]
fn a_function_goes_to_a_driver_and_back_alone_and_the_first_driver_is_remembered() {
    let (tree, host) = igb(2);
    tree.driver("uio_pci_generic");
    let memory = Remembered::default();
    let bound = driven(&host, &memory, "0a:10.0", Some("vfio-pci")).unwrap();
    assert_eq!((bound.before.as_deref(), bound.original.as_deref()), (Some("igbvf"), Some("igbvf")));
    assert_eq!(tree.driver_of("0000:0a:10.0").as_deref(), Some("vfio-pci"));
    assert_eq!(tree.driver_of("0000:0a:10.2").as_deref(), Some("igbvf"));
    assert!(tree.writes().iter().all(|write| !write.contains("new_id")));
    assert!(driven(&host, &memory, "0a:10.0", Some("vfio-pci")).unwrap().done.is_empty());
    // From one to the next: the first is still the original.
    driven(&host, &memory, "0a:10.0", Some("uio_pci_generic")).unwrap();
    let back = driven(&host, &memory, "0a:10.0", None).unwrap();
    assert_eq!(back.driver.as_deref(), Some("igbvf"));
    assert!(memory.0.lock().unwrap().is_empty());
    assert_eq!(tree.sysfs().text("bus/pci/devices/0000:0a:10.0/driver_override").as_deref(), Some("(null)"));
    assert!(driven(&host, &memory, "0a:10.0", None).unwrap().done.is_empty());
}

#[test]
fn a_function_that_had_no_driver_has_none_again() {
    let (tree, host) = igb(1);
    let memory = Remembered::default();
    std::fs::remove_file(tree.path("bus/pci/devices/0000:0a:10.0/driver")).unwrap();
    driven(&host, &memory, "0a:10.0", Some("vfio-pci")).unwrap();
    assert_eq!(driven(&host, &memory, "0a:10.0", None).unwrap().driver, None);
    assert_eq!(tree.driver_of("0000:0a:10.0"), None);
}

#[test]
fn a_driver_that_does_not_take_a_function_leaves_it_to_the_old_one() {
    let (tree, host) = igb(1);
    let memory = Remembered::default();
    let refused = |driver| driven(&host, &memory, "0a:10.0", Some(driver)).unwrap_err();
    assert!(refused("no-such").message.contains("modprobe no-such"));
    assert_eq!(refused("../evil").kind, ErrorKind::NotFound);
    // The driver is there and its probe fails: nobody has the function.
    tree.fail_probe("vfio-pci");
    let error = refused("vfio-pci");
    assert!(error.kind == ErrorKind::Failed && error.message.contains("undone: igbvf has let go"), "{error}");
    assert_eq!(tree.driver_of("0000:0a:10.0").as_deref(), Some("igbvf"));
    assert_eq!(tree.sysfs().text("bus/pci/devices/0000:0a:10.0/driver_override").as_deref(), Some("(null)"));
    assert!(memory.0.lock().unwrap().is_empty());
    std::fs::remove_file(tree.path("bus/pci/devices/0000:0a:10.0/iommu_group")).unwrap();
    assert!(refused("vfio-pci").message.contains("intel_iommu=on"));
}

#[test]
fn a_pf_with_functions_or_with_its_interface_up_stays_unless_told() {
    let (tree, host) = igb(1);
    let memory = Remembered::default();
    let error = driven(&host, &memory, "eth0", Some("vfio-pci")).unwrap_err();
    assert!(error.kind == ErrorKind::Busy && error.message.contains("vf enable eth0 0"), "{error}");
    to(&host, 0, false).unwrap();
    tree.set("class/net/eth0/flags", "0x1003");
    let error = driven(&host, &memory, "eth0", Some("vfio-pci")).unwrap_err();
    assert!(error.kind == ErrorKind::Busy && error.message.contains("eth0 is up"), "{error}");
    bind(&host, &memory, "eth0", Some("vfio-pci"), true, nobody).unwrap();
    assert_eq!(tree.driver_of(PF).as_deref(), Some("vfio-pci"));
}

/// Two VFs with settings, and the kernel that has them.
fn settings(mode: Option<EswitchMode>) -> (Tree, FakeKernel) {
    let tree = Tree::new();
    tree.pf(PF, CX5, "eth0", 2);
    tree.sysfs().write(NUMVFS, "2").unwrap();
    let kernel = FakeKernel::default();
    {
        let mut state = kernel.0.lock().unwrap();
        let vf = |vf| VfSettings { vf, spoof_check: Some(false), trust: Some(false), ..VfSettings::default() };
        state.vfs.insert(2, vec![vf(0), vf(1)]);
        if let Some(mode) = mode {
            let device = DevlinkName { bus: "pci".into(), device: PF.into() };
            state.eswitches.insert(device, EswitchState { mode, inline_mode: None, encap_mode: None });
        }
    }
    (tree, kernel)
}

fn wish() -> Wish {
    Wish { pf: "eth0".into(), vf: 1, ..Wish::default() }
}

#[test]
fn settings_are_made_each_once_and_read_back() {
    let (tree, kernel) = settings(None);
    let host = tree.host(kernel.clone());
    let wanted = Wish {
        mac: Some("52:54:00:00:00:01".parse().unwrap()),
        vlan: Some(100),
        max_rate: Some(1000),
        spoof_check: Some(true),
        trust: Some(false),
        link_state: Some(VfLinkState::Enable),
        ..wish()
    };
    let made = set(&host, &wanted).unwrap();
    assert_eq!((made.settings.vlan, made.settings.max_rate, made.settings.spoof_check), (100, 1000, Some(true)));
    assert_eq!(made.done.len(), 5, "{:?}", made.done);
    // The address is given again: what the kernel reports need not be what it was told.
    assert_eq!(set(&host, &wanted).unwrap().done, ["eth0 VF 1: MAC address 52:54:00:00:00:01"]);
    let only = set(&host, &Wish { min_rate: Some(10), ..wish() }).unwrap();
    assert_eq!((only.settings.min_rate, only.settings.max_rate, only.settings.vlan), (10, 1000, 100));
    assert_eq!(set(&host, &Wish { vlan: Some(0), ..wish() }).unwrap().settings.vlan, 0);
    assert_eq!(kernel.0.lock().unwrap().vfs[&2][0].vlan, 0);
}

#[test]
fn a_setting_that_is_refused_takes_those_before_it_back() {
    let (tree, kernel) = settings(None);
    let host = tree.host(kernel.clone());
    let wanted = Wish { mac: Some("52:54:00:00:00:01".parse().unwrap()), vlan: Some(7), max_rate: Some(99), ..wish() };
    let before = kernel.0.lock().unwrap().vfs[&2][1].clone();
    for (errno, kind, word) in [
        (libc::EINVAL, ErrorKind::Invalid, "link must be up"),
        (libc::EOPNOTSUPP, ErrorKind::Unsupported, "no such setting"),
        (libc::EPERM, ErrorKind::Permission, "root"),
    ] {
        kernel.0.lock().unwrap().refusals.push(("set_vf 1 Rate", 1, errno, "mlx5: rate limiting is not there"));
        let error = set(&host, &wanted).unwrap_err();
        assert_eq!((error.kind, error.errno), (kind, Some(errno)), "{error}");
        assert!(error.message.contains(word) && error.message.contains("the kernel says: mlx5: rate"), "{error}");
        assert!(error.message.contains("undone: eth0 VF 1: VLAN 7"), "{error}");
        let mut after = kernel.0.lock().unwrap().vfs[&2][1].clone();
        // It had none, and the kernel says so of all zeroes.
        after.mac = after.mac.filter(|mac| mac.0 != [0; 6]);
        assert_eq!(after, before);
    }
}

#[test]
fn what_can_never_be_right_is_refused_before_anything_is_changed() {
    let (tree, kernel) = settings(None);
    let host = tree.host(kernel.clone());
    for (wrong, kind) in [
        (Wish { vlan: Some(4095), ..wish() }, ErrorKind::Invalid),
        (Wish { qos: Some(8), ..wish() }, ErrorKind::Invalid),
        (Wish { mac: Some("ff:ff:ff:ff:ff:ff".parse().unwrap()), ..wish() }, ErrorKind::Invalid),
        (Wish { min_rate: Some(9), max_rate: Some(8), ..wish() }, ErrorKind::Invalid),
        (Wish { vf: 2, ..wish() }, ErrorKind::NotFound),
        (Wish { pf: "eth5".into(), ..wish() }, ErrorKind::NotFound),
    ] {
        assert_eq!(set(&host, &wrong).unwrap_err().kind, kind, "{wrong:?}");
    }
    tree.set("class/net/eth0/type", "32");
    let error = set(&host, &Wish { vlan: Some(5), ..wish() }).unwrap_err();
    assert!(error.message.contains("InfiniBand"), "{error}");
    assert!(kernel.0.lock().unwrap().changes.is_empty());
}

#[test]
fn what_switchdev_forbids_is_refused_with_what_ovs_does_instead() {
    let (tree, kernel) = settings(Some(EswitchMode::Switchdev));
    tree.port(PF, "eth0", 2, "0c42a1", "p0");
    tree.port(PF, "eth0_1", 21, "0c42a1", "pf0vf1");
    let host = tree.host(kernel.clone());
    let error = set(&host, &Wish { vlan: Some(5), ..wish() }).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.message.contains("ringspan ovs configure --bridge BRIDGE --port eth0_1 --tag 5"), "{error}");
    let error = set(&host, &Wish { spoof_check: Some(true), ..wish() }).unwrap_err();
    assert!(error.message.contains("eth0_1"), "{error}");
    assert!(kernel.0.lock().unwrap().changes.is_empty());
    // Addresses and rates are the PF's in either mode.
    assert_eq!(set(&host, &Wish { max_rate: Some(5), ..wish() }).unwrap().settings.max_rate, 5);
}

#[test]
fn functions_whose_representor_is_on_a_bridge_in_userspace_are_in_use() {
    let (tree, kernel) = settings(Some(EswitchMode::Switchdev));
    tree.port(PF, "eth0", 2, "0c42a1", "p0");
    tree.port(PF, "eth0_1", 21, "0c42a1", "pf0vf1");
    let host = tree.host(kernel);
    let port_of = |name: &str| Ok((name == "eth0_1").then(|| BridgePort { bridge: "br-int".into(), tag: None }));
    let around = Around { port_of: &port_of, ..owned_by(&nobody) };
    let before = counted(&tree);
    let error = enable(&host, "eth0", Count::Number(4), false, LIMIT, &around).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy);
    assert!(error.message.contains("its representor eth0_1 is on bridge br-int"), "{error}");
    assert_eq!(counted(&tree), before);
    // Nor while nobody knows.
    let port_of = |_: &str| Err(Error::new(ErrorKind::OvsDown, "it does not answer"));
    let around = Around { port_of: &port_of, ..owned_by(&nobody) };
    let error = enable(&host, "eth0", Count::Number(4), false, LIMIT, &around).unwrap_err();
    assert!(error.kind == ErrorKind::OvsDown && error.message.contains("or say --disturb"), "{error}");
    assert_eq!(counted(&tree), before);
    enable(&host, "eth0", Count::Number(4), true, LIMIT, &around).unwrap();
}

#[test]
fn functions_are_not_taken_while_a_port_is_on_a_representor() {
    let (tree, host) = igb(2);
    let on_representor = |address: PciAddress| (address.to_string() == PF).then(|| "vm7".to_owned());
    let error = enable(&host, "eth0", Count::Number(4), true, LIMIT, &owned_by(&on_representor)).unwrap_err();
    assert!(error.kind == ErrorKind::Busy && error.message.contains("ringspan port remove vm7"), "{error}");
    assert_eq!(counted(&tree), 2);
}

#[test]
fn an_infiniband_function_has_guids_and_a_policy_and_no_mac_address() {
    let (tree, kernel) = settings(None);
    let host = tree.host(kernel.clone());
    let guids = Wish {
        node_guid: Some("00:01:52:54:00:12:34:56".parse().unwrap()),
        port_guid: Some("00:10:52:54:00:12:34:56".parse().unwrap()),
        link_state: Some(VfLinkState::Auto),
        ..wish()
    };
    tree.set("class/net/eth0/type", "1");
    assert!(set(&host, &guids).unwrap_err().message.contains("the link is Ethernet, which has no GUIDs"));
    tree.set("class/net/eth0/type", "32");
    let done = set(&host, &guids).unwrap();
    assert_eq!(done.settings.port_guid, guids.port_guid);
    assert!(done.done.iter().any(|one| one.contains("node GUID 00:01:52:54:00:12:34:56")), "{:?}", done.done);
    assert!(set(&host, &guids).unwrap().done.is_empty());
    let mac = Wish { mac: Some("52:54:00:12:34:56".parse().unwrap()), ..wish() };
    let error = set(&host, &mac).unwrap_err();
    assert!(error.message.contains("--node-guid 00:01:52:54:00:12:34:56"), "{error}");
    // One that is refused takes the one before it back.
    kernel.0.lock().unwrap().refusals.push(("set_vf 1 PortGuid", 1, libc::EIO, ""));
    let others = Wish { node_guid: Some(Guid(7)), port_guid: Some(Guid(8)), ..wish() };
    assert!(set(&host, &others).unwrap_err().message.contains("undone: eth0 VF 1: node GUID"));
}

#[test]
fn functions_are_not_taken_while_a_representor_is_in_a_bridge_unless_told() {
    let tree = Tree::new();
    tree.pf("0000:0a:00.0", CX5, "eth0", 2);
    tree.sysfs().write(NUMVFS, "1").unwrap();
    tree.port("0000:0a:00.0", "eth0", 2, "0c42a1", "p0");
    tree.port("0000:0a:00.0", "eth0_0", 30, "0c42a1", "pf0vf0");
    std::os::unix::fs::symlink("../ovs-system", tree.path("class/net/eth0_0/master")).unwrap();
    let host = tree.host(FakeKernel::default());
    let error = to(&host, 2, false).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy);
    assert!(error.message.contains("its representor eth0_0 is part of ovs-system"), "{error}");
    to(&host, 2, true).unwrap();
}
