//! Bonds on made-up hosts: a kernel that refuses as bond_main.c does, and a ConnectX whose VF LAG becomes active only a while after both ports are
//! members, and only while none of their VFs has a driver (mlx5/core/lag/lag.c; not seen on hardware).

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ringspan_protocol::PciAddress;

use crate::error::{Error, ErrorKind};
use crate::host::Host;
use crate::host::bind::Memory;
use crate::host::bond::{Around, Before, BridgePort, Wish, create, delete, get};
use crate::host::netlink::{BondOptions, DevlinkName, EswitchMode, EswitchState, LinkChange};
use crate::host::work::{Begun, Change, Journal, Left, finish};

use super::kernel::{FakeKernel, Fuse};
use super::tree::{CX5, IGB, Kind, Tree};

const PF0: &str = "0000:0a:00.0";
const PF1: &str = "0000:0a:00.1";
const VF0: &str = "0000:0a:00.2";
const VF1: &str = "0000:0a:01.1";

/// A host with a NIC of two ports, eth0 and eth1.
struct Rig {
    tree: Arc<Tree>,
    kernel: FakeKernel,
    host: Host,
    /// Whether the NIC does VF LAG when it may.
    able: Arc<AtomicBool>,
    port_has: Option<PciAddress>,
    bridge: RefCell<Option<BridgePort>>,
    /// What was done of what matters in order, besides links.
    attached: RefCell<Vec<String>>,
    fuse: Fuse,
}

/// What the kernel does to a tree.
struct Links {
    tree: Arc<Tree>,
    able: Arc<AtomicBool>,
    /// How often it was begun or ended: the driver's work looks at what is so by then, and only the last one counts.
    asked: Arc<AtomicUsize>,
}

impl Links {
    fn name(&self, index: u32) -> Result<String, (i32, &'static str)> {
        let sysfs = self.tree.sysfs();
        let names = sysfs.names("class/net").into_iter();
        let mut found = names.filter(|name| sysfs.number(&format!("class/net/{name}/ifindex")) == Some(index));
        found.next().ok_or((libc::ENODEV, ""))
    }

    fn up(&self, name: &str) -> bool {
        self.tree.sysfs().hex(&format!("class/net/{name}/flags")).is_some_and(|flags| flags & 1 != 0)
    }

    fn options(&self, bond: &str, options: BondOptions) -> Result<(), (i32, &'static str)> {
        let at = |name: &str| format!("class/net/{bond}/bonding/{name}");
        let sysfs = self.tree.sysfs();
        if let Some(mode) = options.mode {
            if sysfs.text(&at("slaves")).is_some() {
                return Err((libc::ENOTEMPTY, "unable to update mode because the bond device has slaves"));
            }
            let word = serde_json::to_value(mode).unwrap();
            self.tree.set(&at("mode"), &format!("{} {}", word.as_str().unwrap(), mode as u8));
        }
        if let Some(miimon) = options.miimon {
            self.tree.set(&at("miimon"), &miimon.to_string());
        }
        if let Some(policy) = options.hash_policy {
            let word = serde_json::to_value(policy).unwrap();
            self.tree.set(&at("xmit_hash_policy"), &format!("{} {}", word.as_str().unwrap(), policy as u8));
        }
        if let Some(rate) = options.lacp_rate {
            if self.up(bond) {
                return Err((libc::EINVAL, "unable to update lacp_rate because the bond device is up"));
            }
            let word = serde_json::to_value(rate).unwrap();
            self.tree.set(&at("lacp_rate"), &format!("{} {}", word.as_str().unwrap(), rate as u8));
        }
        Ok(())
    }

    fn act(&self, change: &LinkChange<'_>) -> Result<(), (i32, &'static str)> {
        match *change {
            LinkChange::MakeBond(name, options) => {
                if self.tree.path(&format!("class/net/{name}")).exists() {
                    return Err((libc::EEXIST, ""));
                }
                let at = |attribute: &str| format!("class/net/{name}/{attribute}");
                let defaults = [("ifindex", "50"), ("flags", "0x1002"), ("carrier", "0"), ("bonding/slaves", "")];
                let of_bond = [
                    ("bonding/mode", "balance-rr 0"),
                    ("bonding/miimon", "0"),
                    ("bonding/xmit_hash_policy", "layer2 0"),
                    ("bonding/lacp_rate", "slow 0"),
                ];
                for (attribute, text) in defaults.into_iter().chain(of_bond) {
                    self.tree.set(&at(attribute), text);
                }
                self.options(name, options)
            }
            LinkChange::SetBond(index, options) => self.options(&self.name(index)?, options),
            LinkChange::Remove(index) => {
                let name = self.name(index)?;
                for member in
                    self.tree.sysfs().text(&format!("class/net/{name}/bonding/slaves")).unwrap_or_default().split(' ')
                {
                    let _ = fs::remove_file(self.tree.path(&format!("class/net/{member}/master")));
                }
                fs::remove_dir_all(self.tree.path(&format!("class/net/{name}"))).unwrap();
                self.lag(false);
                Ok(())
            }
            LinkChange::Master(index, 0) => {
                let name = self.name(index)?;
                let master = self.tree.path(&format!("class/net/{name}/master"));
                let bond = fs::read_link(&master).unwrap().file_name().unwrap().to_str().unwrap().to_owned();
                fs::remove_file(master).unwrap();
                let slaves = format!("class/net/{bond}/bonding/slaves");
                let left = self.tree.sysfs().text(&slaves).unwrap();
                let left: Vec<&str> = left.split(' ').filter(|one| *one != name).collect();
                self.tree.set(&slaves, &left.join(" "));
                self.lag(false);
                Ok(())
            }
            LinkChange::Master(index, bond) => {
                let (name, bond) = (self.name(index)?, self.name(bond)?);
                if self.up(&name) {
                    return Err((libc::EPERM, "Device can not be enslaved while up"));
                }
                let slaves = format!("class/net/{bond}/bonding/slaves");
                let now = self.tree.sysfs().text(&slaves).unwrap_or_default();
                let now = format!("{now} {name}").trim().to_owned();
                self.tree.set(&slaves, &now);
                symlink(format!("../{bond}"), self.tree.path(&format!("class/net/{name}/master"))).unwrap();
                if now.contains(' ') {
                    self.lag(true);
                }
                Ok(())
            }
            LinkChange::Up(index, up) => {
                let name = self.name(index)?;
                self.tree.set(&format!("class/net/{name}/flags"), if up { "0x1003" } else { "0x1002" });
                Ok(())
            }
        }
    }

    /// The driver's work: later, and not while a VF has a driver.
    fn lag(&self, active: bool) {
        if !self.tree.path("kernel/debug/mlx5").exists() {
            return;
        }
        let (tree, able, asked) = (Arc::clone(&self.tree), Arc::clone(&self.able), Arc::clone(&self.asked));
        let turn = asked.fetch_add(1, Ordering::Relaxed) + 1;
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(40));
            let bound = [VF0, VF1].iter().any(|vf| tree.driver_of(vf).is_some());
            if !bound && able.load(Ordering::Relaxed) && asked.load(Ordering::Relaxed) == turn {
                lag(&tree, active);
            }
        });
    }
}

/// What the driver shows of LAG.
fn lag(tree: &Tree, active: bool) {
    for pf in [PF0, PF1] {
        let at = |name: &str| format!("kernel/debug/mlx5/{pf}/lag/{name}");
        for (name, text) in [
            ("type", "switchdev"),
            ("port_sel_mode", "hash"),
            ("flags", "shared_fdb:on"),
            ("mapping", "1:1\n2:2"),
            ("members", "0000:0a:00.0\n0000:0a:00.1"),
        ] {
            // All but the state answer EINVAL while it is not active.
            match active {
                true => tree.set(&at(name), text),
                false => drop(fs::remove_file(tree.path(&at(name)))),
            }
        }
        tree.set(&at("state"), if active { "active" } else { "disabled" });
    }
}

fn rig(kind: Kind) -> Rig {
    let tree = Arc::new(Tree::new());
    tree.pf(PF0, kind, "eth0", 2);
    tree.pf(PF1, Kind { offset: 8, ..kind }, "eth1", 3);
    for name in ["eth0", "eth1"] {
        tree.set(&format!("class/net/{name}/flags"), "0x1002");
    }
    let kernel = FakeKernel::default();
    let able = Arc::new(AtomicBool::new(true));
    let links = Links { tree: Arc::clone(&tree), able: Arc::clone(&able), asked: Arc::default() };
    kernel.0.lock().unwrap().on_link = Some(Box::new(move |change| links.act(change)));
    let host = tree.host(kernel.clone());
    Rig {
        tree,
        kernel,
        host,
        able,
        port_has: None,
        bridge: RefCell::default(),
        attached: RefCell::default(),
        fuse: Fuse::default(),
    }
}

/// A ConnectX-5 with a VF on each port, of which the first is in this mode and the second in switchdev mode.
fn connectx(first: EswitchMode) -> Rig {
    let rig = rig(CX5);
    for pf in [PF0, PF1] {
        rig.tree.sysfs().write(&format!("bus/pci/devices/{pf}/sriov_numvfs"), "1").unwrap();
    }
    lag(&rig.tree, false);
    let tree = Arc::clone(&rig.tree);
    tree.port(PF1, "eth1", 3, "0c42a1", "p1");
    tree.port(PF1, "eth1_0", 31, "0c42a1", "pf1vf0");
    let zero = move || {
        tree.port(PF0, "eth0", 2, "0c42a1", "p0");
        tree.port(PF0, "eth0_0", 30, "0c42a1", "pf0vf0");
    };
    if first == EswitchMode::Switchdev {
        zero();
    }
    let tree = Arc::clone(&rig.tree);
    let mut state = rig.kernel.0.lock().unwrap();
    for (pf, mode) in [(PF0, first), (PF1, EswitchMode::Switchdev)] {
        let device = DevlinkName { bus: "pci".into(), device: pf.into() };
        state.eswitches.insert(device, EswitchState { mode, inline_mode: None, encap_mode: None });
    }
    state.on_mode = Some(Box::new(move |mode| {
        if tree.driver_of(VF0).is_some() {
            return Err(libc::EBUSY);
        }
        if mode == EswitchMode::Switchdev {
            zero();
        }
        Ok(())
    }));
    drop(state);
    rig
}

impl Rig {
    fn around<T>(&self, run: impl FnOnce(&Around<'_>) -> T) -> T {
        let owner = |address| self.port_has.filter(|has| *has == address).map(|_| "vm1".to_owned());
        let port_of = |_: &str| self.bridge.borrow().clone();
        let attach = |name: &str, to: Option<&BridgePort>| {
            if self.fuse.is_burnt() {
                return Err(Error::new(ErrorKind::Failed, "killed"));
            }
            let place = to.map_or("nowhere", |to| to.bridge.as_str());
            self.attached
                .borrow_mut()
                .push(format!("{name} on {place}, VF bound: {}", self.tree.driver_of(VF0).is_some()));
            if place == "br-broken" {
                return Err(Error::new(ErrorKind::NotFound, "there is no bridge br-broken"));
            }
            *self.bridge.borrow_mut() = to.cloned();
            Ok(())
        };
        run(&Around { owner: &owner, port_of: &port_of, attach: &attach })
    }

    fn create(&self, wish: &Wish) -> Result<crate::host::bond::Bond, Error> {
        self.around(|around| create(&self.host, wish, around))
    }

    fn delete(&self) -> Result<Vec<String>, Error> {
        self.around(|around| delete(&self.host, "bond0", false, around)).map(|removed| removed.done)
    }

    /// What is in the tree that a change could have left.
    fn picture(&self) -> Vec<String> {
        let sysfs = self.tree.sysfs();
        let flags = |name: &str| sysfs.text(&format!("class/net/{name}/flags"));
        let members = sysfs.text("class/net/bond0/bonding/slaves");
        let modes = self.kernel.0.lock().unwrap().eswitches.values().map(|one| one.mode).collect::<Vec<_>>();
        vec![
            format!("{:?} {:?} {members:?}", flags("eth0"), flags("eth1")),
            format!("{:?} {:?}", self.tree.driver_of(VF0), self.tree.driver_of(VF1)),
            format!("{modes:?} bond {}", sysfs.has("class/net/bond0")),
        ]
    }
}

fn wish(mode: &str) -> Wish {
    let text = format!(r#"{{"name":"bond0","members":["eth0","eth1"],"mode":"{mode}","timeout_ms":5000}}"#);
    serde_json::from_str(&text).unwrap()
}

fn with_lag() -> Wish {
    Wish { vf_lag: true, bridge: Some("br0".into()), ..wish("802.3ad") }
}

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
    rig.kernel.0.lock().unwrap().refusals.push(("link Master(3, 50)", 1, libc::EOPNOTSUPP, "the driver's own words"));
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
        ("link Master(3, 50)", "eth1 does not become a member"),
        ("link Up(50, true)", "does not go up"),
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

/// What the daemon has written down, which outlives it.
#[derive(Default)]
struct Paper(std::sync::Mutex<std::collections::BTreeMap<PciAddress, String>>, std::sync::Mutex<Vec<Left>>);

impl Journal for Paper {
    fn unbinding(&self, functions: &[(PciAddress, String)]) -> Result<(), Error> {
        self.0.lock().unwrap().extend(functions.iter().cloned());
        Ok(())
    }

    fn leaving(&self, member: Left) -> Result<(), Error> {
        self.1.lock().unwrap().push(member);
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
        let (unbound, left) = (paper.0.lock().unwrap().clone(), paper.1.lock().unwrap().clone());
        let begun = Begun { change, boot: rig.host.boot(), unbound, left };
        let (_, error) = rig.around(|around| finish(&rig.host, &Forgetful, around, &begun));
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
            pair: crate::host::bond::lag_pair(&rig.host, "bond0"),
        },
        |rig| drop(rig.delete()),
        |rig, at, _| {
            assert!(!rig.tree.path("class/net/bond0").exists(), "{at}");
            assert!(rig.bridge.borrow().is_none(), "{at}");
        },
    );
}
