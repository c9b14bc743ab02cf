//! A kernel that refuses as bond_main.c does, and a ConnectX whose VF LAG becomes active only a while after both ports are members, and only while none of
//! their VFs has a driver (mlx5/core/lag/lag.c; not seen on hardware).

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ringspan_protocol::PciAddress;

use crate::error::{Error, ErrorKind};
use crate::host::Host;
use crate::host::bond::{Around, BridgePort, Wish, create, delete};
use crate::host::netlink::{BondOptions, DevlinkName, EswitchMode, EswitchState, LinkChange};

use super::super::kernel::{FakeKernel, Fuse};
use super::super::tree::{CX5, Kind, Tree};

pub(super) const PF0: &str = "0000:0a:00.0";
pub(super) const PF1: &str = "0000:0a:00.1";
pub(super) const VF0: &str = "0000:0a:00.2";
pub(super) const VF1: &str = "0000:0a:01.1";

/// A host with a NIC of two ports, eth0 and eth1.
pub(super) struct Rig {
    pub(super) tree: Arc<Tree>,
    pub(super) kernel: FakeKernel,
    pub(super) host: Host,
    /// Whether the NIC does VF LAG when it may.
    pub(super) able: Arc<AtomicBool>,
    pub(super) port_has: Option<PciAddress>,
    pub(super) bridge: RefCell<Option<BridgePort>>,
    /// What was done of what matters in order, besides links.
    pub(super) attached: RefCell<Vec<String>>,
    pub(super) fuse: Fuse,
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
            LinkChange::MakeBond(name, index, options) => {
                if self.tree.path(&format!("class/net/{name}")).exists() {
                    return Err((libc::EEXIST, ""));
                }
                let at = |attribute: &str| format!("class/net/{name}/{attribute}");
                let index = index.to_string();
                let defaults =
                    [("ifindex", index.as_str()), ("flags", "0x1002"), ("carrier", "0"), ("bonding/slaves", "")];
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
pub(super) fn lag(tree: &Tree, active: bool) {
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

pub(super) fn rig(kind: Kind) -> Rig {
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
pub(super) fn connectx(first: EswitchMode) -> Rig {
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
    pub(super) fn around<T>(&self, run: impl FnOnce(&Around<'_>) -> T) -> T {
        let owner = |address| self.port_has.filter(|has| *has == address).map(|_| "vm1".to_owned());
        let port_of = |_: &str| Ok(self.bridge.borrow().clone());
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

    pub(super) fn create(&self, wish: &Wish) -> Result<crate::host::bond::Bond, Error> {
        self.around(|around| create(&self.host, wish, around))
    }

    pub(super) fn delete(&self) -> Result<Vec<String>, Error> {
        self.around(|around| delete(&self.host, "bond0", false, around)).map(|removed| removed.done)
    }

    /// What is in the tree that a change could have left.
    pub(super) fn picture(&self) -> Vec<String> {
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

pub(super) fn wish(mode: &str) -> Wish {
    let text = format!(r#"{{"name":"bond0","members":["eth0","eth1"],"mode":"{mode}","timeout_ms":5000}}"#);
    serde_json::from_str(&text).unwrap()
}

pub(super) fn with_lag() -> Wish {
    Wish { vf_lag: true, bridge: Some("br0".into()), ..wish("802.3ad") }
}
