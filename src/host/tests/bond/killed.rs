//! A daemon that is killed at any step of a change of bonds, and the next one, which finishes it or takes it back.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use ringspan_protocol::PciAddress;

use crate::error::{Error, ErrorKind};
use crate::host::bind::Memory;
use crate::host::bond::{Before, Wish, get, index_of, lag_pair};
use crate::host::netlink::{BondOptions, EswitchMode, LinkChange};
use crate::host::work::{Begun, Change, Journal, Left, finish};

use super::rig::{PF0, PF1, Rig, VF0, VF1, connectx, rig, wish, with_lag};
use crate::host::tests::tree::IGB;

/// What the daemon has written down, which outlives it.
#[derive(Default)]
struct Paper {
    unbound: Mutex<BTreeMap<PciAddress, String>>,
    left: Mutex<Vec<Left>>,
    made: Mutex<Option<u32>>,
}

impl Paper {
    /// What the killed daemon has left written down.
    fn begun(&self, rig: &Rig, change: Change) -> Begun {
        let (unbound, left) = (self.unbound.lock().unwrap().clone(), self.left.lock().unwrap().clone());
        Begun { unbound, left, made: *self.made.lock().unwrap(), ..Begun::new(&rig.host, change) }
    }
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

    fn making(&self, index: u32) -> Result<(), Error> {
        *self.made.lock().unwrap() = Some(index);
        Ok(())
    }
}

/// Nothing is remembered of drivers here.
struct Forgetful;

impl Memory for Forgetful {
    fn original(&self, _: PciAddress) -> Result<Option<Option<String>>, Error> {
        Ok(None)
    }

    fn remember(&self, _: PciAddress, _: Option<Option<String>>) -> Result<(), Error> {
        Ok(())
    }
}

/// Kills the daemon at each change of the host that `act` makes, and has the next one finish, if the NIC is able to.
fn killed_everywhere(
    able: bool,
    prepare: impl Fn(&Rig),
    begin: impl Fn(&Rig) -> Change,
    act: impl Fn(&Rig),
    look: impl Fn(&Rig, &str, &[String]),
) {
    for point in 0.. {
        let mut rig = connectx(EswitchMode::Legacy);
        let paper = Arc::new(Paper::default());
        rig.host.journal = Arc::clone(&paper) as Arc<dyn Journal>;
        prepare(&rig);
        let before = rig.picture();
        let change = begin(&rig);
        let fuse = rig.tree.fuse();
        rig.kernel.0.lock().unwrap().fuse = fuse.clone();
        rig.fuse = fuse.clone();
        fuse.set(Some(point));
        act(&rig);
        fuse.set(None);
        if !fuse.was_burnt() {
            assert!(point > 5, "only {point} points");
            return;
        }
        rig.able.store(able, Ordering::Relaxed);
        let begun = paper.begun(&rig, change);
        let error = rig.around(|around| finish(&rig.host, &Forgetful, around, &begun)).error;
        assert_eq!(error.is_none(), able, "killed at {point}: {error:?}");
        look(&rig, &format!("killed at {point}"), &before);
        for vf in [VF0, VF1] {
            assert_eq!(rig.tree.driver_of(vf).as_deref(), Some("mlx5_core"), "killed at {point}: {vf}");
        }
    }
}

#[test]
fn a_daemon_killed_at_any_step_of_vf_lag_finishes_it_and_binds_vfs_again() {
    killed_everywhere(
        true,
        |_| (),
        |rig| Change::MakeBond { wish: with_lag(), before: Before::look(&rig.host, &with_lag()) },
        |rig| drop(rig.create(&with_lag())),
        |rig, at, _| {
            let bond = get(&rig.host, "bond0").unwrap();
            assert_eq!((bond.members.len(), bond.up), (2, true), "{at}");
            assert!(bond.vf_lag.is_some_and(|lag| lag.state == "active"), "{at}");
            assert_eq!(rig.bridge.borrow().as_ref().map(|port| port.bridge.as_str()), Some("br0"), "{at}");
        },
    );
}

#[test]
fn a_daemon_killed_while_a_bond_of_the_hosts_gets_vf_lag_leaves_it_with_its_members() {
    let lag = || Wish { disturb: true, ..with_lag() };
    killed_everywhere(
        true,
        |rig| drop(rig.create(&Wish { vf_lag: false, disturb: true, ..with_lag() }).unwrap()),
        // Of which the next daemon knows the files, and plans anew by what is there then.
        |_| Change::Apply,
        |rig| drop(rig.create(&lag())),
        |rig, at, _| {
            let bond = get(&rig.host, "bond0").unwrap();
            assert_eq!(bond.members.len(), 2, "{at}: {bond:#?}");
        },
    );
}

#[test]
fn what_cannot_be_finished_of_vf_lag_is_taken_back() {
    let wish = || Wish { timeout_ms: 200, disturb: true, ..with_lag() };
    killed_everywhere(
        false,
        |rig| {
            rig.tree.set("class/net/eth0/flags", "0x1003");
            rig.able.store(false, Ordering::Relaxed);
        },
        |rig| Change::MakeBond { wish: wish(), before: Before::look(&rig.host, &wish()) },
        // Also while it takes everything back, having waited in vain.
        |rig| drop(rig.create(&wish())),
        |rig, at, before| assert_eq!(rig.picture(), before, "{at}"),
    );
}

#[test]
fn a_daemon_killed_at_any_step_of_the_end_of_vf_lag_ends_it_and_binds_vfs_again() {
    killed_everywhere(
        true,
        |rig| drop(rig.create(&with_lag()).unwrap()),
        |rig| Change::DeleteBond {
            name: "bond0".into(),
            disturb: false,
            pair: lag_pair(&rig.host, "bond0"),
            index: index_of(&rig.host, "bond0"),
        },
        |rig| drop(rig.delete()),
        |rig, at, _| {
            assert!(!rig.tree.path("class/net/bond0").exists(), "{at}");
            assert!(rig.bridge.borrow().is_none(), "{at}");
        },
    );
}

#[test]
fn members_that_were_named_by_their_addresses_are_up_again_when_a_bond_is_taken_back() {
    let wish = || Wish { members: vec![PF0.into(), PF1.into()], timeout_ms: 200, disturb: true, ..with_lag() };
    killed_everywhere(
        false,
        |rig| {
            rig.tree.set("class/net/eth0/flags", "0x1003");
            rig.able.store(false, Ordering::Relaxed);
        },
        |rig| Change::MakeBond { wish: wish(), before: Before::look(&rig.host, &wish()) },
        |rig| drop(rig.create(&wish())),
        |rig, at, before| assert_eq!(rig.picture(), before, "{at}"),
    );
}

/// Somebody else makes a bond of that name, while no daemon runs.
fn made_by_another(rig: &Rig) {
    let mut state = rig.kernel.0.lock().unwrap();
    let act = state.on_link.as_mut().unwrap();
    act(&LinkChange::MakeBond("bond0", 7, BondOptions::default())).unwrap();
    act(&LinkChange::Master(2, 7)).unwrap();
}

#[test]
fn a_bond_that_somebody_else_has_made_meanwhile_is_left_alone() {
    // Killed before the kernel was asked to make it, and just after it was written down with which index.
    for points in 0..2 {
        let mut rig = rig(IGB);
        let paper = Arc::new(Paper::default());
        rig.host.journal = Arc::clone(&paper) as Arc<dyn Journal>;
        let change = Change::MakeBond { wish: wish("4"), before: Before::look(&rig.host, &wish("4")) };
        if points == 1 {
            let fuse = rig.tree.fuse();
            rig.kernel.0.lock().unwrap().fuse = fuse.clone();
            fuse.set(Some(0));
            rig.create(&wish("4")).unwrap_err();
            fuse.set(None);
            assert!(paper.made.lock().unwrap().is_some());
        }
        made_by_another(&rig);
        let before = rig.picture();
        let begun = paper.begun(&rig, change);
        let error = rig.around(|around| finish(&rig.host, &Forgetful, around, &begun)).error.unwrap();
        assert!(error.kind == ErrorKind::Exists && error.message.contains("somebody else"), "{error}");
        assert_eq!(rig.picture(), before);
    }
}

#[test]
fn members_are_as_they_were_where_somebody_else_has_made_a_bond_of_that_name_meanwhile() {
    let wish = || Wish { timeout_ms: 200, disturb: true, ..with_lag() };
    for point in 0.. {
        let mut rig = connectx(EswitchMode::Legacy);
        let paper = Arc::new(Paper::default());
        rig.host.journal = Arc::clone(&paper) as Arc<dyn Journal>;
        rig.tree.set("class/net/eth0/flags", "0x1003");
        let (up, drivers) = (rig.picture()[0].clone(), rig.picture()[1].clone());
        let change = Change::MakeBond { wish: wish(), before: Before::look(&rig.host, &wish()) };
        let fuse = rig.tree.fuse();
        rig.kernel.0.lock().unwrap().fuse = fuse.clone();
        rig.fuse = fuse.clone();
        fuse.set(Some(point));
        drop(rig.create(&wish()));
        fuse.set(None);
        if !fuse.was_burnt() {
            assert!(point > 5, "only {point} points");
            return;
        }
        {
            let mut state = rig.kernel.0.lock().unwrap();
            let act = state.on_link.as_mut().unwrap();
            if let Some(ours) = index_of(&rig.host, "bond0") {
                act(&LinkChange::Remove(ours)).unwrap();
            }
            act(&LinkChange::MakeBond("bond0", 7, BondOptions::default())).unwrap();
        }
        *rig.bridge.borrow_mut() = None;
        let begun = paper.begun(&rig, change);
        let error = rig.around(|around| finish(&rig.host, &Forgetful, around, &begun)).error.unwrap();
        assert!(error.kind == ErrorKind::Exists && !error.message.contains("left:"), "killed at {point}: {error}");
        assert_eq!(rig.picture()[0], up, "killed at {point}");
        assert_eq!(rig.picture()[1], drivers, "killed at {point}");
        let modes: Vec<_> = rig.kernel.0.lock().unwrap().eswitches.values().map(|one| one.mode).collect();
        assert_eq!(modes, [EswitchMode::Legacy, EswitchMode::Switchdev], "killed at {point}");
        assert_eq!(index_of(&rig.host, "bond0"), Some(7), "killed at {point}");
    }
}

#[test]
fn a_bond_that_somebody_else_has_made_meanwhile_is_not_taken_away() {
    let rig = rig(IGB);
    rig.create(&wish("4")).unwrap();
    let index = index_of(&rig.host, "bond0");
    let begun =
        Paper::default().begun(&rig, Change::DeleteBond { name: "bond0".into(), disturb: false, pair: None, index });
    rig.delete().unwrap();
    made_by_another(&rig);
    let before = rig.picture();
    let error = rig.around(|around| finish(&rig.host, &Forgetful, around, &begun)).error.unwrap();
    assert!(error.kind == ErrorKind::Exists && error.message.contains("left alone"), "{error}");
    assert_eq!(rig.picture(), before);
}
