//! A daemon that is killed at any step of a change of the host, and the next one, which finishes it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringspan_protocol::PciAddress;

use super::eswitch::nic_of;
use super::kernel::FakeKernel;
use super::owned_by;
use super::tree::{CX5, IGB, Kind, Tree};
use crate::error::Error;
use crate::host::bind::{self, Memory, bind};
use crate::host::netlink::{DevlinkName, EncapMode, EswitchMode, EswitchState, InlineMode, VfLinkState, VfSettings};
use crate::host::sriov::{Count, enable};
use crate::host::work::{
    Begun, Change, Finished, Journal, Left, finish, give_back_all, without_driver as left_without,
};
use crate::host::{Host, eswitch, vf};

const PF: &str = "0000:0a:00.0";

/// What is written down, which outlives the daemon.
#[derive(Default)]
struct Paper {
    unbound: Mutex<BTreeMap<PciAddress, String>>,
    left: Mutex<Vec<Left>>,
    drivers: Mutex<BTreeMap<PciAddress, Option<String>>>,
}

impl Journal for Paper {
    fn unbinding(&self, functions: &[(PciAddress, String)]) -> Result<(), Error> {
        self.unbound.lock().unwrap().extend(functions.iter().cloned());
        Ok(())
    }

    fn leaving(&self, member: Left) -> Result<(), Error> {
        self.left.lock().unwrap().push(member);
        Ok(())
    }

    fn making(&self, _: u32) -> Result<(), Error> {
        unreachable!("no bond is made here")
    }
}

impl Memory for Paper {
    fn original(&self, function: PciAddress) -> Result<Option<Option<String>>, Error> {
        Ok(self.drivers.lock().unwrap().get(&function).cloned())
    }

    fn remember(&self, function: PciAddress, driver: Option<Option<String>>) -> Result<(), Error> {
        let mut drivers = self.drivers.lock().unwrap();
        match driver {
            Some(driver) => drivers.insert(function, driver),
            None => drivers.remove(&function),
        };
        Ok(())
    }
}

fn nobody(_: PciAddress) -> Option<String> {
    None
}

struct Rig {
    tree: Arc<Tree>,
    kernel: FakeKernel,
    host: Host,
    paper: Arc<Paper>,
}

impl Rig {
    /// What the killed daemon has left written down.
    fn begun(&self, change: &Change) -> Begun {
        let (unbound, left) = (self.paper.unbound.lock().unwrap().clone(), self.paper.left.lock().unwrap().clone());
        Begun { unbound, left, ..Begun::new(&self.host, change.clone()) }
    }

    /// How many VFs the PF has.
    fn vfs(&self) -> Option<String> {
        self.tree.sysfs().text(&format!("bus/pci/devices/{PF}/sriov_numvfs"))
    }
}

/// Kills the daemon at each step of `act`, and has the next one finish, which it is able to.
fn killed_everywhere(
    rig: impl Fn() -> (Arc<Tree>, FakeKernel),
    change: &Change,
    act: impl Fn(&Rig),
    look: impl Fn(&Rig, &str),
) {
    killed(true, rig, change, act, look);
}

fn killed(
    able: bool,
    rig: impl Fn() -> (Arc<Tree>, FakeKernel),
    change: &Change,
    act: impl Fn(&Rig),
    look: impl Fn(&Rig, &str),
) {
    let around = owned_by(&nobody);
    for point in 0.. {
        let (tree, kernel) = rig();
        let paper = Arc::new(Paper::default());
        let journal = Arc::clone(&paper) as Arc<dyn Journal>;
        let rig = Rig { host: Host { journal, ..tree.host(kernel.clone()) }, tree, kernel, paper };
        let fuse = rig.tree.fuse();
        rig.kernel.0.lock().unwrap().fuse = fuse.clone();
        fuse.set(Some(point));
        act(&rig);
        fuse.set(None);
        if !fuse.was_burnt() {
            assert!(point > 1, "only {point} points");
            return;
        }
        let begun = rig.begun(change);
        let error = finish(&rig.host, &*rig.paper, &around, &begun).error;
        assert_eq!(error.is_none(), able, "killed at {point}: {error:?}");
        look(&rig, &format!("killed at {point}"));
    }
}

fn with_vfs(kind: Kind, count: u16) -> (Arc<Tree>, FakeKernel) {
    let tree = Arc::new(Tree::new());
    tree.pf(PF, kind, "eth0", 2);
    tree.sysfs().write(&format!("bus/pci/devices/{PF}/sriov_numvfs"), &count.to_string()).unwrap();
    (tree, FakeKernel::default())
}

#[test]
fn a_daemon_killed_while_a_switch_changes_its_mode_changes_it_and_vfs_have_their_drivers() {
    let rig = || {
        let (tree, kernel) = with_vfs(CX5, 2);
        let device = DevlinkName { bus: "pci".into(), device: PF.into() };
        let mut state = kernel.0.lock().unwrap();
        let legacy = EswitchState { mode: EswitchMode::Legacy, inline_mode: None, encap_mode: None };
        state.eswitches.insert(device, legacy);
        let own = Arc::clone(&tree);
        state.on_mode = Some(Box::new(move |_| {
            own.port(PF, "eth0", 2, "0c42a1", "p0");
            own.port(PF, "eth0_0", 30, "0c42a1", "pf0vf0");
            own.port(PF, "eth0_1", 31, "0c42a1", "pf0vf1");
            Ok(())
        }));
        drop(state);
        (tree, kernel)
    };
    let wish = eswitch::Wish {
        pf: PF.into(),
        mode: Some(EswitchMode::Switchdev),
        hw_tc_offload: Some(true),
        ..eswitch::Wish::default()
    };
    killed_everywhere(
        rig,
        &Change::SetEswitch { wish: wish.clone(), vfs: 0, before: None },
        |rig| drop(eswitch::set(&rig.host, &wish, |_| None)),
        |rig, at| {
            assert_eq!(eswitch::get(&rig.host, PF).unwrap().mode, EswitchMode::Switchdev, "{at}");
            for vf in ["0000:0a:00.2", "0000:0a:00.3"] {
                assert_eq!(rig.tree.driver_of(vf).as_deref(), Some("mlx5_core"), "{at}: {vf}");
            }
        },
    );
}

#[test]
fn a_daemon_killed_while_an_ice_changes_its_mode_changes_it_and_the_vfs_are_there_again() {
    let rig = || {
        let (tree, kernel, _) = nic_of(Kind { pf_driver: "ice", ..CX5 }, "2");
        (tree, kernel)
    };
    let wish = eswitch::Wish { pf: PF.into(), mode: Some(EswitchMode::Switchdev), ..eswitch::Wish::default() };
    let (tree, kernel) = rig();
    assert_eq!(eswitch::vfs_that_go(&tree.host(kernel), &wish), 2);
    let change = Change::SetEswitch { wish: wish.clone(), vfs: 2, before: None };
    killed_everywhere(
        rig,
        &change,
        |rig| drop(eswitch::set(&rig.host, &wish, |_| None)),
        |rig, at| {
            assert_eq!(eswitch::get(&rig.host, PF).unwrap().mode, EswitchMode::Switchdev, "{at}");
            assert_eq!(rig.vfs().as_deref(), Some("2"), "{at}");
        },
    );
    // One that an older daemon has written down.
    let mut old = serde_json::to_value(&change).unwrap();
    for later in ["vfs", "before"] {
        assert!(old.as_object_mut().unwrap().remove(later).is_some());
    }
    assert_eq!(serde_json::from_value::<Change>(old).unwrap(), Change::SetEswitch { wish, vfs: 0, before: None });
}

#[test]
fn a_switch_that_cannot_be_changed_to_its_end_is_as_it_was_after_the_daemon_was_killed() {
    let wish = eswitch::Wish {
        pf: "eth0".into(),
        mode: Some(EswitchMode::Switchdev),
        inline_mode: Some(InlineMode::Transport),
        encap_mode: Some(EncapMode::Basic),
        steering_mode: Some("smfs".into()),
        hw_tc_offload: Some(true),
    };
    for (pf_driver, refused) in [
        ("mlx5_core", "eswitch Mode(Switchdev)"),
        ("mlx5_core", "eswitch Inline(Transport)"),
        ("mlx5_core", "eswitch Encap(Basic)"),
        ("ice", "eswitch Encap(Basic)"),
    ] {
        let rig = || {
            let (tree, kernel, _) = nic_of(Kind { pf_driver, ..CX5 }, "2");
            kernel.0.lock().unwrap().refusals.push((refused, 99, libc::EOPNOTSUPP, ""));
            (tree, kernel)
        };
        let (tree, kernel) = rig();
        let host = tree.host(kernel);
        let before = eswitch::look(&host, &wish).unwrap();
        assert_eq!((before.mode, before.hw_tc_offload), (Some(EswitchMode::Legacy), Some(false)));
        let change = Change::SetEswitch {
            wish: wish.clone(),
            vfs: eswitch::vfs_that_go(&host, &wish),
            before: Some(before.clone()),
        };
        killed(
            false,
            rig,
            &change,
            |rig| drop(eswitch::set(&rig.host, &wish, |_| None)),
            |rig, at| {
                let at = format!("{pf_driver}, {refused} refused, {at}");
                assert_eq!(eswitch::look(&rig.host, &wish).as_ref(), Some(&before), "{at}");
                assert_eq!(rig.vfs().as_deref(), Some("2"), "{at}");
                for vf in ["0000:0a:00.2", "0000:0a:00.3"] {
                    assert_eq!(rig.tree.driver_of(vf).as_deref(), Some("mlx5_core"), "{at}: {vf}");
                }
            },
        );
    }
}

#[test]
fn a_daemon_killed_while_the_number_of_vfs_changes_makes_them_all() {
    let change =
        Change::EnableVfs { pf: PF.into(), count: Count::Number(4), disturb: true, timeout_ms: 5000, before: 2 };
    killed_everywhere(
        || with_vfs(IGB, 2),
        &change,
        |rig| drop(enable(&rig.host, PF, Count::Number(4), true, Duration::from_secs(5), &owned_by(&nobody))),
        |rig, at| {
            assert_eq!(rig.vfs().as_deref(), Some("4"), "{at}");
        },
    );
}

#[test]
fn vfs_that_cannot_be_made_leave_those_that_there_were() {
    let change =
        Change::EnableVfs { pf: PF.into(), count: Count::Number(7), disturb: true, timeout_ms: 5000, before: 2 };
    killed(
        false,
        || {
            let (tree, kernel) = with_vfs(IGB, 2);
            tree.refuse_text(&format!("bus/pci/devices/{PF}/sriov_numvfs"), "7", libc::ENOSPC);
            (tree, kernel)
        },
        &change,
        // Also while it takes everything back.
        |rig| drop(enable(&rig.host, PF, Count::Number(7), true, Duration::from_secs(5), &owned_by(&nobody))),
        |rig, at| assert_eq!(rig.vfs().as_deref(), Some("2"), "{at}"),
    );
}

#[test]
fn a_daemon_killed_while_a_vf_is_set_sets_all_of_it_or_leaves_what_there_was() {
    let old = VfSettings {
        mac: "52:54:00:00:00:01".parse().ok(),
        vlan: 5,
        max_rate: 100,
        spoof_check: Some(true),
        trust: Some(false),
        link_state: Some(VfLinkState::Auto),
        ..VfSettings::default()
    };
    let wish = vf::Wish {
        pf: PF.into(),
        mac: "52:54:00:00:00:02".parse().ok(),
        vlan: Some(7),
        max_rate: Some(200),
        spoof_check: Some(false),
        trust: Some(true),
        link_state: Some(VfLinkState::Enable),
        ..vf::Wish::default()
    };
    let new = VfSettings {
        mac: wish.mac,
        vlan: 7,
        max_rate: 200,
        spoof_check: Some(false),
        trust: Some(true),
        link_state: Some(VfLinkState::Enable),
        ..old.clone()
    };
    for (able, after) in [(true, &new), (false, &old)] {
        let rig = || {
            let (tree, kernel) = with_vfs(IGB, 1);
            let mut state = kernel.0.lock().unwrap();
            state.vfs.insert(2, vec![old.clone()]);
            if !able {
                state.refusals.push(("set_vf 0 Trust(true)", 99, libc::EOPNOTSUPP, ""));
            }
            drop(state);
            (tree, kernel)
        };
        let change = Change::SetVf { wish: wish.clone(), before: Some(old.clone()) };
        let act = |rig: &Rig| {
            assert_eq!(vf::look(&rig.host, &wish).as_ref(), Some(&old));
            drop(vf::set(&rig.host, &wish));
        };
        killed(able, rig, &change, act, |rig, at| assert_eq!(&rig.kernel.0.lock().unwrap().vfs[&2][0], after, "{at}"));
    }
}

#[test]
fn a_daemon_killed_while_a_function_changes_its_driver_gives_it_to_the_one_that_was_asked_for() {
    let vf = "0000:0a:10.0";
    let change = |driver: Option<&str>| Change::Bind {
        device: vf.parse().unwrap(),
        driver: driver.map(str::to_owned),
        disturb: true,
        before: None,
    };
    let give = |rig: &Rig, driver: Option<&str>| drop(bind(&rig.host, &*rig.paper, vf, driver, true, |_| None));
    killed_everywhere(
        || with_vfs(IGB, 1),
        &change(Some("vfio-pci")),
        |rig| give(rig, Some("vfio-pci")),
        |rig, at| {
            assert_eq!(rig.tree.driver_of(vf).as_deref(), Some("vfio-pci"), "{at}");
            // What it had at first is not forgotten.
            give(rig, None);
            assert_eq!(rig.tree.driver_of(vf).as_deref(), Some("igbvf"), "{at}");
        },
    );
}

#[test]
fn a_function_that_no_driver_takes_is_back_at_its_own_after_the_daemon_was_killed() {
    let vf = "0000:0a:10.0";
    let before = bind::Had { driver: Some("igbvf".into()), overridden: None };
    let change = Change::Bind {
        device: vf.parse().unwrap(),
        driver: Some("vfio-pci".into()),
        disturb: true,
        before: Some(before.clone()),
    };
    killed(
        false,
        || {
            let (tree, kernel) = with_vfs(IGB, 1);
            tree.refuse("bus/pci/drivers_probe", libc::EIO);
            (tree, kernel)
        },
        &change,
        |rig| {
            let vf = vf.parse().unwrap();
            assert_eq!(bind::Had::look(&rig.host, vf), before);
            drop(bind(&rig.host, &*rig.paper, &vf.to_string(), Some("vfio-pci"), true, |_| None));
        },
        |rig, at| {
            assert_eq!(bind::Had::look(&rig.host, vf.parse().unwrap()), before, "{at}");
            assert!(rig.paper.drivers.lock().unwrap().is_empty(), "{at}");
        },
    );
}

#[test]
fn what_was_begun_before_the_machine_was_started_anew_is_not_done_again() {
    let (tree, kernel) = with_vfs(IGB, 2);
    let paper = Arc::new(Paper::default());
    let rig = Rig { host: tree.host(kernel.clone()), tree, kernel, paper };
    // Its VFs are those that the boot has made.
    let change =
        Change::EnableVfs { pf: PF.into(), count: Count::Number(4), disturb: true, timeout_ms: 5000, before: 2 };
    let begun = Begun { boot: "another".into(), ..rig.begun(&change) };
    let around = owned_by(&nobody);
    let Finished { done, error, .. } = finish(&rig.host, &*rig.paper, &around, &begun);
    assert_eq!(done, Vec::<String>::new());
    assert!(error.is_some_and(|error| error.message.contains("started anew amid changing the number of VFs")));
    assert_eq!(rig.vfs().as_deref(), Some("2"));
}

#[test]
fn a_function_that_its_driver_does_not_take_back_at_first_is_tried_again() {
    let (tree, kernel) = with_vfs(IGB, 1);
    let paper = Arc::new(Paper::default());
    let rig = Rig { host: tree.host(kernel.clone()), tree, kernel, paper };
    let vf: PciAddress = "0000:0a:10.0".parse().unwrap();
    rig.tree.sysfs().write("bus/pci/drivers/igbvf/unbind", &vf.to_string()).unwrap();
    rig.paper.unbinding(&[(vf, "igbvf".to_owned())]).unwrap();
    let unbound = rig.begun(&Change::Apply).unbound;
    assert_eq!(left_without(&rig.host, unbound.clone()), unbound);
    // Its module is being loaded.
    rig.tree.refuse_text("bus/pci/drivers/igbvf/bind", &vf.to_string(), libc::EIO);
    let Finished { done, error, without_driver } =
        finish(&rig.host, &*rig.paper, &owned_by(&nobody), &rig.begun(&Change::Apply));
    assert_eq!(done, Vec::<String>::new());
    assert!(error.is_some_and(|error| error.message.contains("igbvf does not take 0000:0a:10.0")));
    assert_eq!(without_driver.iter().collect::<Vec<_>>(), [(&vf, &"igbvf".to_owned())]);
    assert_eq!(give_back_all(&rig.host, &without_driver).without_driver, without_driver);
    rig.tree.allow(&format!("bus/pci/drivers/igbvf/bind={vf}"));
    let again = give_back_all(&rig.host, &without_driver);
    assert_eq!((again.done, again.without_driver.len()), (vec!["igbvf has 0000:0a:10.0 again".to_owned()], 0));
    assert_eq!(rig.tree.driver_of(&vf.to_string()).as_deref(), Some("igbvf"));
    assert!(left_without(&rig.host, unbound).is_empty());
}
