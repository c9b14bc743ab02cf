//! Guests' NICs on a made-up igb: what the PF and the drivers see, and what is left of it when the daemon is killed at any point.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use ringspan_protocol::{NicName, PortName, VfSettings as SoftSettings};

use crate::attach::choose::{Around, choose};
use crate::attach::counted::handed_over;
use crate::attach::plan::{Facts, plan};
use crate::attach::record::{Counted, Key, Record, Step, Target};
use crate::attach::run::World;
use crate::attach::world::{Lanes, Real};
use crate::attach::{Attach, Attachments};
use crate::error::{Error, ErrorKind};
use crate::host::inventory::Inventory;
use crate::host::netlink::{VfCounters, VfSettings};
use crate::host::{Host, pci_function};
use crate::ovs::client::Place;
use crate::port_request::PortRequest;
use crate::state::StateDir;

use super::change::Remembered;
use super::kernel::FakeKernel;
use super::tree::{IGB, Tree};

const PF: &str = "0000:0a:00.0";
const VFS: [&str; 2] = ["0000:0a:10.0", "0000:0a:10.2"];
const MAC: &str = "52:54:00:00:00:07";

#[derive(Default)]
struct Ports(RefCell<BTreeMap<PortName, String>>);

impl Lanes for Ports {
    fn owner(&self, _: &Target) -> Option<String> {
        None
    }

    fn add_port(&self, port: &PortRequest) -> Result<Vec<String>, Error> {
        self.0.borrow_mut().insert(port.name.clone(), port.device.to_string());
        Ok(vec![])
    }

    fn remove_port(&self, name: &PortName) -> Result<(), Error> {
        self.0.borrow_mut().remove(name);
        Ok(())
    }

    fn front_end(&self, _: &PortName) -> Result<Option<String>, Error> {
        Ok(None)
    }

    fn port_differs(&self, port: &PortRequest) -> Result<Option<String>, Error> {
        Ok((!self.0.borrow().contains_key(&port.name)).then(|| "it is gone".into()))
    }

    fn set_soft_vf(&self, _: &NicName, _: SoftSettings) -> Result<(), Error> {
        Err(Error::new(ErrorKind::NotFound, "there is none"))
    }

    fn restore_soft_vf(&self, nic: &NicName, settings: SoftSettings) -> Result<(), Error> {
        self.set_soft_vf(nic, settings)
    }

    fn soft_vf(&self, _: &NicName, _: u16) -> Option<SoftSettings> {
        None
    }
}

struct Scene {
    tree: Tree,
    kernel: FakeKernel,
    host: Host,
    memory: Remembered,
    ports: Ports,
    state: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let tree = Tree::new();
        tree.pf(PF, IGB, "eth0", 2);
        tree.sysfs().write(&format!("bus/pci/devices/{PF}/sriov_numvfs"), "2").unwrap();
        let kernel = FakeKernel::default();
        let settings = |vf| VfSettings { vf, ..VfSettings::default() };
        kernel.0.lock().unwrap().vfs.insert(2, vec![settings(0), settings(1)]);
        let host = tree.host(kernel.clone());
        let state = tempfile::tempdir().unwrap();
        Self { tree, kernel, host, memory: Remembered::default(), ports: Ports::default(), state }
    }

    fn boot(&self) -> Attachments {
        Attachments::load(Arc::new(StateDir::open(self.state.path()).unwrap())).unwrap()
    }

    fn world(&self) -> Real<'_> {
        Real {
            host: &self.host,
            memory: &self.memory,
            ovs: Place::new(Some(self.state.path())),
            lanes: &self.ports,
            run_dir: "/run/ringspan".into(),
        }
    }

    fn attach(&self, all: &Attachments, more: &str) -> Result<Record, Error> {
        let wire = if more.contains("wire") { "" } else { r#","wire":"bcast1""# };
        let wanted: Attach = serde_json::from_str(&format!(r#"{{"guest":"g","mac":"{MAC}"{wire}{more}}}"#)).unwrap();
        let (none, nics) = (BTreeMap::new(), BTreeMap::new());
        // The agent's name of it, by its files.
        let wires = BTreeMap::from([("eth0".to_owned(), "bcast1".to_owned())]);
        all.attach(&self.world(), &wanted, |records| {
            let inventory = Inventory::take(&self.host);
            let around = Around {
                devices: inventory.devices(),
                bridges: &none,
                wires: &wires,
                owners: &none,
                nics: &nics,
                soft_owners: &none,
            };
            let candidates = around.candidates(&self.host);
            let chosen = choose(&candidates, &around.uplinks(&self.host), &wanted, records, |_| None)?;
            let settings = inventory.settings(chosen.device.as_ref().unwrap());
            plan(&wanted, chosen, &Facts { mac: MAC.parse().unwrap(), view: None, nics: &nics, settings })
        })
        .map(|(record, _)| record)
    }

    /// The first VF: its driver, its VLAN, its highest rate, whether it has our address; and how many ports there are.
    fn seen(&self) -> (Option<String>, u16, u32, bool, usize) {
        let settings = self.kernel.0.lock().unwrap().vfs[&2][0].clone();
        let ours = settings.mac == MAC.parse().ok();
        let ports = self.ports.0.borrow().len();
        (self.tree.driver_of(VFS[0]), settings.vlan, settings.max_rate, ours, ports)
    }
}

fn key() -> Key {
    Key { guest: "g".into(), nic: 0 }
}

fn untouched() -> (Option<String>, u16, u32, bool, usize) {
    (Some("igbvf".into()), 0, 0, false, 0)
}

#[test]
fn a_vf_is_set_bound_and_bridged_and_is_as_before_when_it_is_detached() {
    for (mode, ports) in [("vhost", 1), ("passthrough", 0)] {
        let scene = Scene::new();
        let all = scene.boot();
        assert_eq!(scene.seen(), untouched());
        let more = format!(r#","vlan":7,"max_rate":100,"mode":"{mode}""#);
        let record = scene.attach(&all, &more).unwrap();
        assert_eq!(scene.seen(), (Some("vfio-pci".into()), 7, 100, true, ports), "{mode}");
        assert_eq!(record.target.to_string(), format!("pci:{}", VFS[0]));
        // Somebody else was at it.
        scene.kernel.0.lock().unwrap().vfs.get_mut(&2).unwrap()[0].vlan = 9;
        let differs: Vec<_> =
            record.steps.iter().filter_map(|step| scene.world().drift(*step, &record).unwrap()).collect();
        assert_eq!(differs, [format!("pci:{} has VLAN 9, not 7", VFS[0])]);
        assert!(all.detach(&scene.world(), &key(), false).unwrap());
        assert_eq!(scene.seen(), untouched(), "{mode}");
    }
}

#[test]
fn a_pf_without_vfs_is_named_and_so_are_the_wires_where_one_is_unknown() {
    let scene = Scene::new();
    scene.tree.pf("0000:05:00.0", IGB, "eth1", 3);
    let all = scene.boot();
    let refused = |more: &str| scene.attach(&all, more).unwrap_err().message;
    let said = refused(r#","wire":"eth1""#);
    assert!(said.starts_with("PF eth1 (0000:05:00.0), on wire \"eth1\", has no VF: "), "{said}");
    assert!(said.ends_with("make some with ringspan vf enable eth1 COUNT"), "{said}");
    // As a function without the capability shows it, and one whose firmware allows none.
    for total in [None, Some("0")] {
        let file = "bus/pci/devices/0000:05:00.0/sriov_totalvfs";
        std::fs::remove_file(scene.tree.path(file)).unwrap();
        total.into_iter().for_each(|total| scene.tree.set(file, total));
        let said = refused(r#","wire":"eth1""#);
        assert!(said.contains("has no VF, and cannot have any: ") && !said.contains("vf enable"), "{said}");
        scene.tree.set(file, "7");
    }
    let said = refused(r#","wire":"eth9""#);
    assert!(said.starts_with("there is no wire \"eth9\" here; wires: bcast1, eth0, eth1: "), "{said}");
}

#[test]
fn an_interface_goes_up_by_the_kernels_index_and_not_by_that_of_another_namespaces_sys() {
    let scene = Scene::new();
    // The one of /sys has the same name, and another index.
    assert_eq!(scene.tree.sysfs().number::<u32>("class/net/eth0/ifindex"), Some(2));
    scene.kernel.0.lock().unwrap().indices.insert("eth0".into(), 9);
    scene.world().put_up("eth0").unwrap();
    scene.world().put_up("eth1").unwrap();
    assert_eq!(scene.kernel.0.lock().unwrap().changes, ["link Up(9, true)"]);
}

#[test]
fn a_rate_that_the_nic_does_not_take_is_the_relays_and_not_one_of_a_vf_that_is_handed_over() {
    let scene = Scene::new();
    let all = scene.boot();
    scene.kernel.0.lock().unwrap().refusals.push(("set_vf 0 Rate", 2, libc::EOPNOTSUPP, ""));
    let error = scene.attach(&all, r#","max_rate":100,"mode":"passthrough""#).unwrap_err();
    assert!(error.message.contains("its driver has no such setting"), "{error}");
    assert_eq!((scene.seen(), all.all().len()), (untouched(), 0));
    let record = scene.attach(&all, r#","max_rate":100"#).unwrap();
    let port = crate::attach::world::port(&record, "/run".as_ref()).unwrap();
    assert_eq!((scene.seen().2, port.max_rate), (0, 100));
}

#[test]
fn an_infiniband_vf_is_handed_over_with_the_agents_guids_and_has_its_own_again() {
    let scene = Scene::new();
    scene.tree.set("class/net/eth0/type", "32");
    let guids = || {
        let settings = scene.kernel.0.lock().unwrap().vfs[&2][0].clone();
        [settings.node_guid, settings.port_guid].map(|guid| guid.map(|guid| guid.to_string()))
    };
    let first = |text: &str| text.parse().ok();
    {
        let vfs = &mut scene.kernel.0.lock().unwrap().vfs;
        let vf = &mut vfs.get_mut(&2).unwrap()[0];
        (vf.node_guid, vf.port_guid) = (first("00:00:00:00:00:00:00:05"), first("00:00:00:00:00:00:00:06"));
    }
    let before = guids();
    let all = scene.boot();
    assert_eq!(scene.attach(&all, "").unwrap_err().kind, ErrorKind::Unsupported, "only whole");
    let record = scene.attach(&all, r#","mode":"passthrough""#).unwrap();
    assert_eq!(guids(), [format!("00:01:{MAC}"), format!("00:10:{MAC}")].map(Some));
    assert_eq!(scene.world().drift(Step::Settings, &record).unwrap(), None);
    scene.kernel.0.lock().unwrap().vfs.get_mut(&2).unwrap()[0].port_guid = first("00:00:00:00:00:00:00:07");
    let differs = scene.world().drift(Step::Settings, &record).unwrap().unwrap();
    assert!(differs.contains(&format!("GUID 00:00:00:00:00:00:00:07, not 00:10:{MAC}")), "{differs}");
    assert!(all.detach(&scene.world(), &key(), false).unwrap());
    assert_eq!((guids(), scene.tree.driver_of(VFS[0]).as_deref()), (before, Some("igbvf")));
}

#[test]
fn a_driver_that_does_not_take_the_vf_leaves_it_as_it_was() {
    let scene = Scene::new();
    let all = scene.boot();
    scene.tree.fail_probe("vfio-pci");
    assert!(scene.attach(&all, r#","vlan":7"#).is_err());
    assert_eq!((scene.seen(), all.all().len()), (untouched(), 0));
}

#[test]
fn a_daemon_killed_at_any_point_leaves_the_vf_as_it_was_or_as_it_should_be() {
    for point in 0.. {
        let scene = Scene::new();
        let all = scene.boot();
        all.kill_at(point);
        let attached = scene.attach(&all, r#","vlan":7"#).is_ok();
        drop(all);
        let all = scene.boot();
        for key in all.unfinished() {
            all.recover(&scene.world(), &key).unwrap();
        }
        let expected = match all.get(&key()) {
            None => untouched(),
            Some(_) => (Some("vfio-pci".into()), 7, 0, true, 1),
        };
        assert_eq!(scene.seen(), expected, "killed at point {point}");
        if attached {
            assert!(point >= 6, "only {point} points");
            return;
        }
    }
}

#[test]
fn a_limit_that_is_taken_away_is_gone_from_the_nic_too() {
    let scene = Scene::new();
    let all = scene.boot();
    let record = scene.attach(&all, r#","max_rate":100"#).unwrap();
    assert_eq!(scene.seen().2, 100);
    let limit = |max_rate: u32| {
        move |record: &mut Record| {
            record.wanted.max_rate = max_rate;
            Ok(())
        }
    };
    all.change(&scene.world(), &key(), limit(0)).unwrap();
    assert_eq!(scene.seen().2, 0);
    // One that the NIC refuses is the relay's, and the old one does not stay.
    all.change(&scene.world(), &key(), limit(100)).unwrap();
    scene.kernel.0.lock().unwrap().refusals.push(("set_vf 0 Rate(0, 200)", 1, libc::EINVAL, ""));
    all.change(&scene.world(), &key(), limit(200)).unwrap();
    assert_eq!(scene.seen().2, 0);
    // Somebody else was at it.
    scene.kernel.0.lock().unwrap().vfs.get_mut(&2).unwrap()[0].max_rate = 7;
    let differs = scene.world().drift(record.steps[0], &all.get(&key()).unwrap()).unwrap().unwrap();
    assert!(differs.contains("rates of 0 to 7 Mbit/s, not 0 to 200"), "{differs}");
}

#[test]
fn what_is_attached_is_detached_when_its_vf_is_gone_or_refuses_its_old_rate() {
    let scene = Scene::new();
    let all = scene.boot();
    scene.attach(&all, r#","vlan":7,"max_rate":100"#).unwrap();
    scene.kernel.0.lock().unwrap().refusals.push(("set_vf 0 Rate", 1, libc::EINVAL, ""));
    assert!(all.detach(&scene.world(), &key(), false).unwrap());
    let (driver, vlan, max_rate, ours, ports) = scene.seen();
    assert_eq!((driver.as_deref(), vlan, max_rate, ours, ports), (Some("igbvf"), 0, 100, false, 0));
    scene.attach(&all, r#","vlan":7"#).unwrap();
    // Somebody has taken the VFs away; the PF's driver says nothing of them any more.
    scene.tree.sysfs().write(&format!("bus/pci/devices/{PF}/sriov_numvfs"), "0").unwrap();
    scene.kernel.0.lock().unwrap().vfs.clear();
    assert!(all.detach(&scene.world(), &key(), false).unwrap());
    assert_eq!((all.all().len(), scene.ports.0.borrow().len()), (0, 0));
}

#[test]
fn a_vf_that_nobody_named_is_left_to_who_seems_to_have_it() {
    let scene = Scene::new();
    let function = |number: usize| pci_function(&scene.host, VFS[number].parse().unwrap()).unwrap();
    let user = |bridges: &BTreeMap<String, String>| scene.host.likely_user(&function(0), bridges);
    let interface = "eth0v0";
    let net = format!("bus/pci/devices/{}/net", VFS[0]);
    std::fs::remove_dir_all(scene.tree.path(&net)).ok();
    // A container has taken its interface into its namespace.
    assert!(user(&BTreeMap::new()).unwrap().contains("igbvf shows no interface here"));
    std::fs::create_dir_all(scene.tree.path(&format!("{net}/{interface}"))).unwrap();
    assert_eq!(user(&BTreeMap::new()), None);
    assert_eq!(user(&[(interface.into(), "br0".into())].into()).unwrap(), "bridge br0");
    scene.kernel.0.lock().unwrap().addressed.insert(interface.into());
    assert!(user(&BTreeMap::new()).unwrap().contains("IP address"));
    scene.kernel.0.lock().unwrap().addressed.clear();
    // Who has a function by vfio is told by that.
    scene.attach(&scene.boot(), "").unwrap();
    assert_eq!(user(&BTreeMap::new()), None);
}

/// igb counts nothing of its VFs, ixgbe and mlx5 do (`ndo_get_vf_stats` in their sources; not seen on hardware).
#[test]
fn a_vf_without_a_representor_is_counted_by_its_pfs_driver() {
    let scene = Scene::new();
    let all = scene.boot();
    let record = scene.attach(&all, r#","mode":"passthrough""#).unwrap();
    assert_eq!(handed_over(&scene.host, &record), (None, None), "nobody counts");
    let told = VfCounters { rx_packets: 1, tx_packets: 2, rx_bytes: 3, tx_bytes: 4, rx_dropped: 5, tx_dropped: 6 };
    // Another VF's are not the guest's.
    scene.kernel.0.lock().unwrap().vf_counters.insert((2, 1), told);
    assert_eq!(handed_over(&scene.host, &record), (None, None));
    scene.kernel.0.lock().unwrap().vf_counters.insert((2, 0), told);
    let (counted, source) = handed_over(&scene.host, &record);
    let guests = Counted { tx_packets: 2, tx_bytes: 4, tx_dropped: 6, rx_packets: 1, rx_bytes: 3, rx_dropped: 5 };
    assert_eq!((counted, source.as_deref()), (Some(guests), Some("eth0 vf 0")));
    scene.kernel.0.lock().unwrap().refusals.push(("vf_counters", 1, libc::ENODEV, ""));
    assert_eq!(handed_over(&scene.host, &record).0, None);
}
