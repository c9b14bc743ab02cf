//! Switches that change their mode, on made-up hosts. The ConnectX refuses a mode while a VF has a driver, and has its representors only in
//! switchdev mode (facts of its driver's sources; not seen on hardware).

use std::sync::Arc;

use ringspan_protocol::PciAddress;

use crate::error::ErrorKind;
use crate::host::Host;
use crate::host::eswitch::{Wish, get, set};
use crate::host::netlink::{DevlinkName, DevlinkPort, EncapMode, EswitchMode, EswitchState, Flavour, InlineMode};

use super::kernel::FakeKernel;
use super::tree::{CX5, IGB, Kind, Tree};

const PF: &str = "0000:0a:00.0";
const NUMVFS: &str = "bus/pci/devices/0000:0a:00.0/sriov_numvfs";

fn nobody(_: PciAddress) -> Option<String> {
    None
}

/// A NIC in legacy mode with two VFs, whose driver is `driver`.
fn nic(driver: &'static str) -> (Arc<Tree>, FakeKernel, Host) {
    nic_of(Kind { pf_driver: driver, ..CX5 }, "2")
}

/// A NIC in legacy mode of that kind with so many VFs, two at most.
pub(super) fn nic_of(kind: Kind, vfs: &str) -> (Arc<Tree>, FakeKernel, Host) {
    let driver = kind.pf_driver;
    let tree = Arc::new(Tree::new());
    tree.pf(PF, kind, "eth0", 2);
    tree.sysfs().write(NUMVFS, vfs).unwrap();
    let kernel = FakeKernel::default();
    let device = DevlinkName { bus: "pci".into(), device: PF.into() };
    let legacy = EswitchState {
        mode: EswitchMode::Legacy,
        inline_mode: Some(InlineMode::Link),
        encap_mode: Some(EncapMode::None),
    };
    let acting = Arc::clone(&tree);
    let act = move |mode| {
        if driver == "ice" && acting.sysfs().number::<u16>(NUMVFS) != Some(0) {
            return Err(libc::EOPNOTSUPP);
        }
        let bound = |vf: &str| acting.driver_of(vf).is_some();
        if driver == "mlx5_core" && (bound("0000:0a:00.2") || bound("0000:0a:00.3")) {
            return Err(libc::EBUSY);
        }
        if mode == EswitchMode::Switchdev {
            acting.port(PF, "eth0", 2, "0c42a1", "p0");
            acting.port(PF, "eth0_0", 20, "0c42a1", "pf0vf0");
            acting.port(PF, "eth0_1", 21, "0c42a1", "pf0vf1");
        } else {
            for interface in ["eth0_0", "eth0_1"] {
                let _ = std::fs::remove_file(acting.path(&format!("class/net/{interface}")));
                let _ = std::fs::remove_dir_all(acting.path(&format!("bus/pci/devices/{PF}/net/{interface}")));
            }
        }
        Ok(())
    };
    {
        let mut state = kernel.0.lock().unwrap();
        state.eswitches.insert(device.clone(), legacy);
        if driver == "mlx5_core" {
            state.steering.insert(device, "dmfs".into());
        }
        state.on_mode = Some(Box::new(act));
    }
    let host = tree.host(kernel.clone());
    (tree, kernel, host)
}

fn to_switchdev() -> Wish {
    Wish {
        pf: "eth0".into(),
        mode: Some(EswitchMode::Switchdev),
        inline_mode: Some(InlineMode::Transport),
        encap_mode: Some(EncapMode::Basic),
        steering_mode: Some("smfs".into()),
        hw_tc_offload: Some(true),
    }
}

#[test]
fn a_connectx_goes_to_switchdev_with_its_functions_unbound_and_back() {
    let (tree, kernel, host) = nic("mlx5_core");
    let set_to = set(&host, &to_switchdev(), nobody).unwrap();
    assert_eq!(set_to.mode, EswitchMode::Switchdev);
    assert_eq!((set_to.steering_mode.as_deref(), set_to.hw_tc_offload), (Some("smfs"), Some(true)));
    assert_eq!((set_to.inline_mode, set_to.encap_mode), (Some(InlineMode::Transport), Some(EncapMode::Basic)));
    let names: Vec<_> = set_to.representors.iter().map(|one| (one.vf, one.interface.as_deref())).collect();
    assert_eq!(names, [(0, Some("eth0_0")), (1, Some("eth0_1"))]);
    assert_eq!(tree.driver_of("0000:0a:00.2").as_deref(), Some("mlx5_core"));
    // hw-tc-offload and steering before the mode, the rest behind it.
    let changes = kernel.0.lock().unwrap().changes.clone();
    let order =
        ["tc true", "steering smfs", "eswitch Mode(Switchdev)", "eswitch Inline(Transport)", "eswitch Encap(Basic)"];
    assert_eq!(changes, order);
    assert!(set(&host, &to_switchdev(), nobody).unwrap().done.is_empty());
    let back = Wish { pf: PF.into(), mode: Some(EswitchMode::Legacy), ..Wish::default() };
    let back = set(&host, &back, nobody).unwrap();
    assert_eq!((back.mode, back.representors.len()), (EswitchMode::Legacy, 0));
    assert_eq!(tree.driver_of("0000:0a:00.3").as_deref(), Some("mlx5_core"));
}

#[test]
fn an_ice_has_no_functions_while_its_mode_changes() {
    let (tree, _, host) = nic("ice");
    let wish = Wish {
        pf: "eth0".into(),
        mode: Some(EswitchMode::Switchdev),
        steering_mode: Some("smfs".into()),
        ..Wish::default()
    };
    let set = set(&host, &wish, nobody).unwrap();
    assert_eq!(set.representors.len(), 2);
    let writes: Vec<_> = tree.writes().into_iter().filter(|write| write.starts_with(NUMVFS)).collect();
    assert_eq!(writes, [format!("{NUMVFS}=2"), format!("{NUMVFS}=0"), format!("{NUMVFS}=2")]);
    assert!(set.done.iter().any(|done| done.contains("no choice of steering modes")), "{:?}", set.done);
}

#[test]
fn a_device_that_steers_by_firmware_alone_goes_to_switchdev_all_the_same() {
    for errno in [libc::EOPNOTSUPP, libc::ENODEV, libc::EINVAL] {
        let (_, kernel, host) = nic("mlx5_core");
        let said = "Software managed steering is not supported by current device";
        kernel.0.lock().unwrap().refusals.push(("steering", 99, errno, said));
        let set_to = set(&host, &to_switchdev(), nobody).unwrap();
        assert_eq!((set_to.mode, set_to.steering_mode.as_deref()), (EswitchMode::Switchdev, Some("dmfs")));
        assert!(set_to.done.iter().any(|done| done.contains("stays dmfs") && done.contains(said)), "{:?}", set_to.done);
        // In switchdev mode no device changes it: who asks for it there is told.
        let wish = Wish { pf: "eth0".into(), steering_mode: Some("smfs".into()), ..Wish::default() };
        assert_eq!(set(&host, &wish, nobody).unwrap_err().errno, Some(errno));
    }
    // A word that no driver knows is a mistake.
    let (_, kernel, host) = nic("mlx5_core");
    kernel.0.lock().unwrap().refusals.push(("steering", 1, libc::EINVAL, "Bad parameter"));
    let wish = Wish { steering_mode: Some("sfms".into()), ..to_switchdev() };
    assert_eq!(set(&host, &wish, nobody).unwrap_err().kind, ErrorKind::Invalid);
}

#[test]
fn each_step_that_fails_takes_those_before_it_back() {
    for (step, errno, word) in [
        ("tc", libc::EOPNOTSUPP, "hw-tc-offload"),
        ("steering", libc::EIO, "steering mode"),
        ("eswitch Mode(Switchdev)", libc::EINVAL, "does not become switchdev"),
        ("eswitch Inline(Transport)", libc::EOPNOTSUPP, "inline mode"),
        ("eswitch Encap", libc::EOPNOTSUPP, "encap mode"),
    ] {
        let (tree, kernel, host) = nic("mlx5_core");
        let before = get(&host, "eth0").unwrap();
        kernel.0.lock().unwrap().refusals.push((step, 1, errno, "the driver's own words"));
        let error = set(&host, &to_switchdev(), nobody).unwrap_err();
        assert_eq!((error.errno, error.item.as_deref()), (Some(errno), Some("eth0")), "{error}");
        assert!(error.message.contains(word) && error.message.contains("the driver's own words"), "{error}");
        assert!(!error.message.contains("left:"), "{error}");
        let after = get(&host, "eth0").unwrap();
        assert_eq!(
            (after.mode, after.steering_mode, after.hw_tc_offload),
            (before.mode, before.steering_mode, before.hw_tc_offload)
        );
        assert_eq!(after.inline_mode, before.inline_mode, "{step}");
        for vf in ["0000:0a:00.2", "0000:0a:00.3"] {
            assert_eq!(tree.driver_of(vf).as_deref(), Some("mlx5_core"), "{step}");
        }
    }
}

#[test]
fn a_switch_that_is_busy_for_a_moment_is_asked_again_and_one_that_stays_so_is_said() {
    let (_, kernel, host) = nic("mlx5_core");
    kernel.0.lock().unwrap().refusals.push(("eswitch Mode", 2, libc::EBUSY, ""));
    let wish = Wish { pf: "eth0".into(), mode: Some(EswitchMode::Switchdev), ..Wish::default() };
    set(&host, &wish, nobody).unwrap();
    let owned = |_| Some("vm1".to_owned());
    let back = Wish { mode: Some(EswitchMode::Legacy), ..wish };
    let error = set(&host, &back, owned).unwrap_err();
    assert!(error.kind == ErrorKind::Busy && error.message.contains("port vm1 has VF 0"), "{error}");
    {
        let mut state = kernel.0.lock().unwrap();
        state.refusals.push(("eswitch Mode", 99, libc::EBUSY, ""));
        state.qdiscs = vec![("eth0_1", "ingress"), ("eth0", "htb"), ("eth9", "clsact")];
    }
    let error = set(&host, &back, nobody).unwrap_err();
    assert!(error.kind == ErrorKind::Busy && error.message.contains("tc qdisc show"), "{error}");
    let left = "qdiscs are left: ingress on eth0_1 (tc qdisc del dev eth0_1 ingress), htb on eth0 (tc qdisc del dev eth0 root)";
    assert!(error.message.contains(left) && !error.message.contains("eth9"), "{error}");
}

#[test]
fn what_has_no_switch_is_refused_and_other_buses_than_pci_have_ports() {
    let tree = Tree::new();
    tree.pf(PF, IGB, "eth0", 2);
    tree.sysfs().write(NUMVFS, "1").unwrap();
    let kernel = FakeKernel::default();
    let host = tree.host(kernel.clone());
    let error = get(&host, "eth0").unwrap_err();
    assert!(error.errno == Some(libc::ENODEV) && error.message.contains("no switch"), "{error}");
    assert!(get(&host, "0a:10.0").unwrap_err().message.contains("name its physical one"));
    let device: DevlinkName = "netdevsim/netdevsim10".parse().unwrap();
    let state = EswitchState { mode: EswitchMode::Switchdev, inline_mode: None, encap_mode: None };
    let port = |index, flavour, interface: &str| DevlinkPort {
        device: device.clone(),
        index,
        flavour,
        interface: Some(interface.into()),
    };
    {
        let mut state_of = kernel.0.lock().unwrap();
        state_of.eswitches.insert(device.clone(), state);
        state_of.ports = vec![
            port(1, Flavour::Vf { controller: 0, pf: 0, vf: 1 }, "sim0v1"),
            port(2, Flavour::Vf { controller: 0, pf: 0, vf: 0 }, "sim0v0"),
            port(0, Flavour::Physical(Some(0)), "sim0"),
        ];
    }
    let seen = get(&host, "netdevsim/netdevsim10").unwrap();
    assert_eq!(seen.interface.as_deref(), Some("sim0"));
    assert_eq!(seen.representors.iter().map(|one| one.vf).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn an_infiniband_link_and_a_port_on_the_pf_are_refused_before_anything_is_done() {
    let (tree, kernel, host) = nic("mlx5_core");
    let owner = |address: PciAddress| (address.to_string() == PF).then(|| "vm7".to_owned());
    let wish = Wish { pf: "eth0".into(), mode: Some(EswitchMode::Switchdev), ..Wish::default() };
    let error = set(&host, &wish, owner).unwrap_err();
    assert!(error.kind == ErrorKind::Busy && error.message.contains("ringspan port remove vm7"), "{error}");
    tree.set("class/net/eth0/type", "32");
    let error = set(&host, &wish, nobody).unwrap_err();
    assert!(error.kind == ErrorKind::Unsupported && error.message.contains("--link-type ethernet"), "{error}");
    assert!(kernel.0.lock().unwrap().changes.is_empty());
}
