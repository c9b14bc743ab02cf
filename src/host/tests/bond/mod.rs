//! Bonds on made-up hosts.

mod killed;
mod rig;

use std::fs;
use std::sync::atomic::Ordering;

use crate::error::ErrorKind;
use crate::host::bond::{Before, Wish, delete, get};
use crate::host::netlink::EswitchMode;

use super::tree::IGB;
use rig::{PF0, Rig, VF0, VF1, connectx, rig, wish, with_lag};

#[test]
fn modes_one_two_and_four_are_made_adopted_and_taken_away() {
    for (given, mode) in [("1", "active-backup"), ("balance-xor", "balance-xor"), ("4", "802.3ad")] {
        let rig = rig(IGB);
        let before = rig.picture();
        let made = rig.create(&wish(given)).unwrap();
        assert_eq!((made.mode.as_str(), made.miimon, made.up), (mode, 100, true));
        assert_eq!(made.members.iter().map(|one| one.interface.as_str()).collect::<Vec<_>>(), ["eth0", "eth1"]);
        assert_eq!(made.done.len(), 4, "{:?}", made.done);
        assert!(rig.create(&wish(given)).unwrap().done.is_empty());
        assert_eq!(rig.delete().unwrap(), ["bond0 is gone, its members eth0, eth1 are free, and down"]);
        assert_eq!(rig.picture(), before);
        assert!(rig.delete().unwrap().is_empty());
    }
}

#[test]
fn two_interfaces_of_one_function_are_two_members() {
    let rig = rig(IGB);
    rig.tree.second_interface(PF0, "eth2", 4);
    for name in ["eth0", "eth2"] {
        rig.tree.set(&format!("class/net/{name}/flags"), "0x1003");
    }
    let wish = Wish { members: vec!["eth0".into(), "eth2".into()], disturb: true, ..wish("1") };
    let were_up: Vec<_> = Before::look(&rig.host, &wish).were_up.into_iter().map(|one| one.interface).collect();
    assert_eq!(were_up, ["eth0", "eth2"]);
    let made = rig.create(&wish).unwrap();
    assert_eq!(made.members.iter().map(|one| one.interface.as_str()).collect::<Vec<_>>(), ["eth0", "eth2"]);
}

#[test]
fn other_modes_and_options_that_do_not_fit_are_refused_with_the_reason() {
    let rig = rig(IGB);
    for (mode, why) in
        [("0", "out of order"), ("broadcast", "every member"), ("5", "own address"), ("balance-alb", "ARP")]
    {
        let error = rig.create(&wish(mode)).unwrap_err();
        assert!(error.kind == ErrorKind::Unsupported && error.message.contains(why), "{error}");
        assert!(error.message.contains("active-backup, balance-xor or 802.3ad"), "{error}");
    }
    let of = |members: &[&str]| Wish { members: members.iter().map(|one| one.to_string()).collect(), ..wish("1") };
    let rate = serde_json::from_str(r#""fast""#).unwrap();
    let policy = serde_json::from_str(r#""layer3+4""#).unwrap();
    for (wish, kind, why) in [
        (wish("7"), ErrorKind::Invalid, "no mode"),
        (Wish { lacp_rate: Some(rate), ..wish("2") }, ErrorKind::Invalid, "speaks no LACP"),
        (Wish { hash_policy: Some(policy), ..wish("1") }, ErrorKind::Invalid, "nothing to hash"),
        (Wish { miimon: Some(0), ..wish("1") }, ErrorKind::Invalid, "dead link"),
        (Wish { name: "../lo".into(), ..wish("1") }, ErrorKind::Invalid, "no name for a bond"),
        (Wish { name: "eth1".into(), ..of(&["eth0"]) }, ErrorKind::Exists, "no bond"),
        (of(&[]), ErrorKind::Invalid, "a member at least"),
        (of(&["eth0", "0000:0a:00.0"]), ErrorKind::Invalid, "twice"),
        (of(&["eth7"]), ErrorKind::NotFound, "eth7"),
        (of(&["0000:0a:05.0"]), ErrorKind::NotFound, "0000:0a:05.0"),
        (Wish { vf_lag: true, ..wish("1") }, ErrorKind::Unsupported, "has no VF LAG"),
    ] {
        let error = rig.create(&wish).unwrap_err();
        assert!(error.kind == kind && error.message.contains(why), "{error}");
    }
    rig.tree.set("class/net/eth1/flags", "0x1003");
    let error = rig.create(&wish("1")).unwrap_err();
    assert!(error.kind == ErrorKind::Busy && error.message.contains("--disturb"), "{error}");
    assert!(rig.kernel.0.lock().unwrap().changes.is_empty());
    assert!(get(&rig.host, "eth0").unwrap_err().message.contains("no bond"));
    assert!(rig.around(|around| delete(&rig.host, "eth0", false, around)).unwrap_err().message.contains("left alone"));
}

#[test]
fn what_of_an_adopted_bond_differs_is_changed_and_no_more() {
    let rig = rig(IGB);
    rig.create(&Wish { members: vec!["eth0".into()], ..wish("4") }).unwrap();
    let fast = serde_json::from_str(r#""fast""#).unwrap();
    let policy = serde_json::from_str(r#""layer3+4""#).unwrap();
    let more = Wish { mode: None, miimon: Some(50), hash_policy: Some(policy), lacp_rate: Some(fast), ..wish("4") };
    let error = rig.create(&more).unwrap_err();
    assert!(error.kind == ErrorKind::Busy && error.message.contains("--disturb"), "{error}");
    let adopted = rig.create(&Wish { disturb: true, ..more.clone() }).unwrap();
    assert_eq!((adopted.miimon, adopted.hash_policy.as_deref(), adopted.lacp_rate), (50, Some("layer3+4"), Some(fast)));
    assert_eq!((adopted.members.len(), adopted.up), (2, true));
    assert!(rig.create(&more).unwrap().done.is_empty());
    let error = rig.create(&wish("1")).unwrap_err();
    assert!(error.kind == ErrorKind::Exists && error.message.contains("bond delete bond0"), "{error}");
    let error = rig.create(&Wish { members: vec!["eth1".into()], ..wish("4") }).unwrap_err();
    assert!(error.message.contains("has the member eth0 besides"), "{error}");
}

#[test]
fn a_member_that_is_refused_leaves_nothing_and_one_that_was_up_is_up_again() {
    let rig = rig(IGB);
    rig.tree.set("class/net/eth0/flags", "0x1003");
    let before = rig.picture();
    rig.kernel.0.lock().unwrap().refusals.push(("link Master(3, ", 1, libc::EOPNOTSUPP, "the driver's own words"));
    let error = rig.create(&Wish { disturb: true, ..wish("2") }).unwrap_err();
    assert!(error.errno == Some(libc::EOPNOTSUPP) && error.message.contains("the driver's own words"), "{error}");
    assert!(error.message.contains("undone: eth0 is a member of bond0") && !error.message.contains("left:"), "{error}");
    assert_eq!(rig.picture(), before);
}

#[test]
fn vf_lag_is_made_with_functions_unbound_and_waited_for_and_ended_the_same_way() {
    for first in [EswitchMode::Legacy, EswitchMode::Switchdev] {
        let rig = connectx(first);
        let made = rig.create(&with_lag()).unwrap();
        let lag = made.vf_lag.clone().unwrap();
        assert_eq!(
            (lag.state.as_str(), lag.kind.as_deref(), lag.port_select.as_deref()),
            ("active", Some("switchdev"), Some("hash"))
        );
        assert_eq!((lag.mapping, lag.members.len()), (vec!["1:1".to_owned(), "2:2".into()], 2));
        assert_eq!(rig.tree.driver_of(VF0).as_deref(), Some("mlx5_core"));
        assert_eq!(rig.tree.driver_of(VF1).as_deref(), Some("mlx5_core"));
        let place = |words: &str| {
            made.done
                .iter()
                .position(|done| done.contains(words))
                .unwrap_or_else(|| panic!("no {words}: {:?}", made.done))
        };
        let order = [
            "let go of 0000:0a:01.1",
            "is made",
            "eth1 is a member",
            "VF LAG of bond0 is active",
            "on bridge br0",
            "has 0000:0a:00.2 again",
        ];
        assert!(order.map(place).is_sorted(), "{:?}", made.done);
        assert_eq!(rig.attached.take(), ["bond0 on br0, VF bound: false"]);
        assert!(rig.create(&with_lag()).unwrap().done.is_empty());
        let done = rig.delete().unwrap();
        let place = |words: &str| {
            done.iter().position(|done| done.contains(words)).unwrap_or_else(|| panic!("no {words}: {done:?}"))
        };
        let order =
            ["off bridge br0", "let go of 0000:0a:00.2", "bond0 is gone", "has ended", "has 0000:0a:01.1 again"];
        assert!(order.map(place).is_sorted(), "{done:?}");
        assert_eq!(rig.tree.driver_of(VF1).as_deref(), Some("mlx5_core"));
    }
}

#[test]
fn each_step_of_vf_lag_that_fails_takes_those_before_it_back() {
    for (step, word) in [
        ("eswitch Mode", "does not become switchdev"),
        ("link MakeBond", "does not make it"),
        ("link Master(3, ", "eth1 does not become a member"),
        ("link Up(", "does not go up"),
        ("bridge", "no bridge br-broken"),
        ("lag", "VF LAG is not active after 300 ms: 0000:0a:00.0 is disabled"),
        ("bind", "mlx5_core does not take 0000:0a:01.1"),
    ] {
        let rig = connectx(EswitchMode::Legacy);
        let before = rig.picture();
        let mut wish = Wish { timeout_ms: 2000, ..with_lag() };
        match step {
            "bridge" => wish.bridge = Some("br-broken".into()),
            "lag" => {
                rig.able.store(false, Ordering::Relaxed);
                wish.timeout_ms = 300;
            }
            "bind" => rig.tree.refuse_text("bus/pci/drivers/mlx5_core/bind", VF1, libc::EIO),
            step => rig.kernel.0.lock().unwrap().refusals.push((step, 1, libc::EINVAL, "the driver's own words")),
        }
        let error = rig.create(&wish).unwrap_err();
        assert!(error.message.contains(word), "{step}: {error}");
        if step == "bind" {
            // What cannot be undone is said.
            assert!(error.message.contains("left: mlx5_core has let go of 0000:0a:01.1"), "{error}");
            continue;
        }
        assert!(!error.message.contains("left:"), "{step}: {error}");
        assert_eq!(rig.picture(), before, "{step}: {error}");
    }
}

#[test]
fn vf_lag_is_refused_before_anything_is_touched_where_it_cannot_be() {
    let rig = connectx(EswitchMode::Switchdev);
    let owned = Rig { port_has: Some(VF1.parse().unwrap()), ..rig };
    let error = owned.create(&with_lag()).unwrap_err();
    assert!(error.kind == ErrorKind::Busy && error.message.contains("ringspan port remove vm1"), "{error}");
    let rig = Rig { port_has: None, ..owned };
    let error = rig.create(&Wish { members: vec!["eth0".into()], ..with_lag() }).unwrap_err();
    assert!(error.kind == ErrorKind::Unsupported && error.message.contains("exactly the two PFs"), "{error}");
    fs::remove_dir_all(rig.tree.path("kernel/debug")).unwrap();
    let error = rig.create(&with_lag()).unwrap_err();
    assert!(error.message.contains("mount -t debugfs"), "{error}");
    assert!(rig.kernel.0.lock().unwrap().changes.is_empty());
    // Without vf_lag it is a bond as any other.
    let made = rig.create(&wish("1")).unwrap();
    assert_eq!(made.vf_lag.unwrap().state, "unknown");
}

#[test]
fn an_adopted_bond_whose_vf_lag_never_began_has_its_members_join_again() {
    let rig = connectx(EswitchMode::Switchdev);
    rig.able.store(false, Ordering::Relaxed);
    rig.create(&wish("4")).unwrap();
    let error = rig.create(&with_lag()).unwrap_err();
    assert!(error.kind == ErrorKind::Busy && error.message.contains("leave for a moment"), "{error}");
    rig.able.store(true, Ordering::Relaxed);
    let made = rig.create(&Wish { disturb: true, ..with_lag() }).unwrap();
    assert!(made.vf_lag.is_some_and(|lag| lag.state == "active"), "{:?}", made.done);
    assert_eq!(made.members.len(), 2);
    assert!(made.done.iter().any(|done| done == "eth0 has left bond0 for a moment"), "{:?}", made.done);
}

#[test]
fn what_stands_on_a_bond_keeps_it() {
    let rig = rig(IGB);
    rig.create(&wish("1")).unwrap();
    rig.tree.set("class/net/bond0/upper_vlan7", "");
    let error = rig.delete().unwrap_err();
    assert!(error.kind == ErrorKind::Busy && error.message.contains("vlan7 stands on it"), "{error}");
    assert!(rig.tree.path("class/net/bond0").exists());
}

#[test]
fn a_bond_that_the_host_is_reached_by_is_taken_away_only_on_demand() {
    let rig = rig(IGB);
    rig.create(&wish("1")).unwrap();
    rig.kernel.0.lock().unwrap().addressed.insert("bond0".into());
    let error = rig.delete().unwrap_err();
    assert!(error.kind == ErrorKind::Busy && error.message.contains("--disturb"), "{error}");
    assert!(rig.tree.path("class/net/bond0").exists());
    rig.around(|around| delete(&rig.host, "bond0", true, around)).unwrap();
    assert!(!rig.tree.path("class/net/bond0").exists());
}

#[test]
fn a_bond_that_asks_by_arp_goes_on_doing_so_when_it_is_adopted() {
    let rig = rig(IGB);
    rig.create(&wish("1")).unwrap();
    rig.tree.set("class/net/bond0/bonding/miimon", "0");
    rig.tree.set("class/net/bond0/bonding/arp_interval", "250");
    assert_eq!(rig.create(&wish("1")).unwrap().done, Vec::<String>::new());
    rig.tree.set("class/net/bond0/bonding/arp_interval", "0");
    assert_eq!(rig.create(&wish("1")).unwrap().miimon, 100);
}
