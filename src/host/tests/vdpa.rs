//! vDPA devices on a made-up bus: made, found, given back, and never taken from others.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Mutex;

use super::kernel::FakeKernel;
use super::tree::{CX5, Tree, vdpa_driver};
use crate::error::{Error, ErrorKind};
use crate::host::Host;
use crate::host::netlink::{VdpaConfig, VdpaManagement};
use crate::host::vdpa::{self, Book, Entries, ForPort, Wish};

const PF: &str = "0000:0a:00.0";
const VF: &str = "0000:0a:00.2";

#[derive(Default)]
struct Page(Mutex<Entries>);

impl Book for Page {
    fn load(&self) -> Result<Entries, Error> {
        Ok(self.0.lock().unwrap().clone())
    }

    fn save(&self, entries: &Entries) -> Result<(), Error> {
        *self.0.lock().unwrap() = entries.clone();
        Ok(())
    }
}

/// A host with a ConnectX whose VF, and a simulator, are management devices.
struct Bus {
    tree: Tree,
    kernel: FakeKernel,
    host: Host,
    book: Page,
}

impl Bus {
    /// The kernel gives new devices to this driver by itself.
    fn new(by_itself: &'static str) -> Self {
        let tree = Tree::new();
        tree.pf(PF, CX5, "eth0", 3);
        for driver in ["vhost_vdpa", "virtio_vdpa"] {
            tree.set(&format!("bus/vdpa/drivers/{driver}/bind"), "");
            tree.set(&format!("bus/vdpa/drivers/{driver}/unbind"), "");
        }
        tree.set("proc/sys/kernel/random/boot_id", "first");
        let kernel = FakeKernel::default();
        let host = tree.host(kernel.clone());
        let (count, around) = (crate::host::sriov::Count::Number(1), super::owned_by(&|_| None));
        crate::host::sriov::enable(&host, PF, count, false, Default::default(), &around).unwrap();
        let root = tree.path("");
        {
            let mut state = kernel.0.lock().unwrap();
            let one = |name: &str| VdpaManagement {
                parent: name.parse().unwrap(),
                classes: 2,
                max_vqs: Some(33),
                features: Some(0x3_0000_0000),
            };
            state.vdpa_management = Some(vec![one(&format!("pci/{VF}")), one("vdpasim_net")]);
            state.on_vdpa = Some(Box::new(move |name, new| {
                let folder = root.join("bus/vdpa/devices").join(name);
                if new.is_none() {
                    return fs::remove_dir_all(folder).unwrap();
                }
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join("driver_override"), "(null)\n").unwrap();
                vdpa_driver(&root, name, Some(by_itself));
            }));
        }
        Self { tree, kernel, host, book: Page::default() }
    }

    fn add(&self, wish: &Wish) -> Result<vdpa::Added, Error> {
        vdpa::add(&self.host, &self.book, wish)
    }

    fn remove(&self, name: &str, disturb: bool) -> Result<vdpa::Gone, Error> {
        vdpa::remove(&self.host, &self.book, name, disturb, |_| None)
    }

    fn list(&self) -> vdpa::Vdpa {
        vdpa::list(&self.host, &self.book, true, |node| (node == "/dev/vhost-vdpa-7").then(|| "vm7".into())).unwrap()
    }

    fn changes(&self) -> Vec<String> {
        std::mem::take(&mut self.kernel.0.lock().unwrap().changes)
    }

    fn refuse(&self, what: &'static str, times: u32, errno: i32, said: &'static str) {
        self.kernel.0.lock().unwrap().refusals.push((what, times, errno, said));
    }

    /// Somebody else makes a device.
    fn foreign(&self, name: &str, on: &str) {
        let new = crate::host::netlink::VdpaNew {
            name: name.into(),
            parent: on.parse().unwrap(),
            mac: None,
            mtu: None,
            max_vqp: None,
            features: None,
        };
        self.host.kernel.add_vdpa(&new).unwrap();
        self.changes();
    }

    /// A process has the node open.
    fn open_node(&self) {
        let folder = self.tree.path("proc/77/fd");
        fs::create_dir_all(&folder).unwrap();
        symlink("/dev/vhost-vdpa-0", folder.join("5")).unwrap();
    }

    fn close_node(&self) {
        fs::remove_dir_all(self.tree.path("proc/77")).unwrap();
    }

    fn entries(&self) -> Vec<String> {
        self.book.load().unwrap().into_keys().collect()
    }
}

fn wish(name: &str, management: &str) -> Wish {
    Wish {
        name: name.into(),
        management: management.into(),
        mac: "52:54:00:00:00:01".parse().ok(),
        mtu: Some(9000),
        max_vqp: None,
        features: None,
        disturb: false,
    }
}

fn port(name: &str) -> ForPort {
    ForPort {
        port: name.parse().unwrap(),
        management: VF.into(),
        mac: "52:54:00:00:00:01".parse().ok(),
        mtu: 9000,
        queues: 4,
    }
}

#[test]
fn a_device_is_made_given_to_vhost_vdpa_found_and_taken_away() {
    let bus = Bus::new("virtio_vdpa");
    let added = bus.add(&wish("vd0", "0a:00.2")).unwrap();
    assert_eq!((added.management.as_str(), added.node.as_str()), ("pci/0000:0a:00.2", "/dev/vhost-vdpa-0"));
    assert_eq!(added.done.len(), 3, "{:?}", added.done);
    let changes = bus.changes();
    assert_eq!(changes, [format!("add_vdpa vd0 {:?} Some(9000) None None", wish("vd0", VF).mac)]);
    assert!(bus.add(&wish("vd0", &format!("pci/{VF}"))).unwrap().done.is_empty(), "it is so already");
    let list = bus.list();
    assert_eq!(list.management[0].devices, ["vd0"]);
    assert_eq!((list.management[0].classes.join(","), list.management[1].address), ("net".into(), None));
    let device = &list.devices[0];
    assert_eq!((device.driver.as_deref(), device.made), (Some("vhost_vdpa"), true));
    assert!(device.unknown.as_ref().unwrap().contains("guest's driver has started"), "{device:?}");
    assert_eq!(device.statistics.as_ref().unwrap().problem.as_deref(), Some("its driver has no statistics"));
    let other = bus.add(&Wish { mtu: Some(1400), ..wish("vd0", VF) }).unwrap_err();
    assert_eq!(other.kind, ErrorKind::Exists);
    assert!(other.message.contains("with MTU 9000"), "{other}");
    assert_eq!(bus.remove("vd0", false).unwrap().done, ["vd0 is gone"]);
    assert!(bus.remove("vd0", false).unwrap().done.is_empty(), "it is so already");
    assert!(bus.entries().is_empty() && bus.list().devices.is_empty());
}

#[test]
fn what_others_made_is_given_back_and_stays() {
    let bus = Bus::new("virtio_vdpa");
    bus.foreign("vd9", "vdpasim_net");
    let unlike = VdpaConfig { mtu: Some(1500), ..VdpaConfig::default() };
    bus.kernel.0.lock().unwrap().vdpa_configs.insert("vd9".into(), unlike);
    assert_eq!(bus.add(&wish("vd9", "vdpasim_net")).unwrap_err().kind, ErrorKind::Exists);
    let same = Wish { mac: None, mtu: Some(1500), ..wish("vd9", "vdpasim_net") };
    bus.tree.set("class/net/vd-if/flags", "0x1003");
    assert!(bus.add(&same).unwrap_err().message.contains("say --disturb"));
    bus.tree.set("class/net/vd-if/flags", "0x1002");
    assert_eq!(bus.add(&same).unwrap().node, "/dev/vhost-vdpa-0");
    assert_eq!(bus.entries(), ["vd9"]);
    assert!(!bus.list().devices[0].made);
    let gone = bus.remove("vd9", false).unwrap();
    assert!(gone.done[0].contains("virtio_vdpa has it again"), "{gone:?}");
    assert_eq!(bus.list().devices[0].driver.as_deref(), Some("virtio_vdpa"));
    assert_eq!(bus.remove("vd9", false).unwrap_err().kind, ErrorKind::Conflict);
    assert!(bus.changes().is_empty(), "nothing was made or taken away");
    bus.remove("vd9", true).unwrap();
    assert!(bus.list().devices.is_empty());
}

#[test]
fn nothing_is_taken_from_who_has_it() {
    let bus = Bus::new("vhost_vdpa");
    bus.add(&wish("vd0", VF)).unwrap();
    bus.open_node();
    let busy = bus.remove("vd0", true).unwrap_err();
    assert_eq!((busy.kind, busy.errno), (ErrorKind::Busy, Some(libc::EBUSY)));
    assert!(busy.message.contains("process 77 has /dev/vhost-vdpa-0 open"), "{busy}");
    assert_eq!(bus.list().devices[0].process, Some(77));
    bus.close_node();
    let owned =
        vdpa::remove(&bus.host, &bus.book, "vd0", true, |node| (node == "/dev/vhost-vdpa-0").then(|| "vm1".into()));
    assert!(owned.unwrap_err().message.contains("ringspan port remove vm1"));
    bus.remove("vd0", false).unwrap();
}

#[test]
fn each_refusal_has_errno_the_kernels_words_and_a_remedy() {
    let bus = Bus::new("vhost_vdpa");
    for (errno, said, kind, remedy) in [
        (libc::EPERM, "", ErrorKind::Permission, "as root"),
        (libc::EOPNOTSUPP, "All provided attributes are not supported", ErrorKind::Unsupported, "leave it out"),
        (libc::ENOSPC, "", ErrorKind::NoRoom, "ringspan vdpa remove"),
        (libc::EEXIST, "", ErrorKind::Exists, "ringspan vdpa list"),
        (libc::EINVAL, "At least one pair of VQs is required", ErrorKind::Invalid, "At least one pair"),
        (libc::ETIMEDOUT, "", ErrorKind::Failed, "kernel's log"),
    ] {
        bus.refuse("add_vdpa", 1, errno, said);
        let error = bus.add(&wish("vd0", VF)).unwrap_err();
        assert_eq!((error.kind, error.errno), (kind, Some(errno)), "{error}");
        assert!(error.message.contains(remedy) && error.message.contains(said), "{error}");
        assert!(bus.entries().is_empty(), "what was refused is written down: {error}");
    }
    for (management, says) in [
        (PF, "modprobe mlx5_vdpa"),
        ("0000:0b:00.0", "no function of a NIC"),
        ("vdpasim_blk", "modprobe vdpa_sim_blk"),
        ("nothing", "there are pci/0000:0a:00.2, vdpasim_net"),
    ] {
        let error = bus.add(&wish("vd0", management)).unwrap_err();
        assert_eq!((error.kind, error.errno), (ErrorKind::NotFound, Some(libc::ENODEV)), "{error}");
        assert!(error.message.contains(says), "{management}: {error}");
    }
    for (bad, says) in [
        (wish("a/b", VF), "no name of a vDPA device"),
        (wish("", VF), "no name of a vDPA device"),
        (Wish { mtu: Some(67), ..wish("vd0", VF) }, "68 at least"),
        (Wish { max_vqp: Some(0), ..wish("vd0", VF) }, "1 to 32768"),
        (Wish { mac: "01:00:00:00:00:01".parse().ok(), ..wish("vd0", VF) }, "unicast"),
    ] {
        let error = bus.add(&bad).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.contains(says), "{error}");
    }
    assert!(bus.changes().is_empty());
}

#[test]
fn what_is_not_loaded_is_named() {
    let bus = Bus::new("vhost_vdpa");
    fs::remove_dir_all(bus.tree.path("bus/vdpa/drivers/vhost_vdpa")).unwrap();
    assert!(bus.add(&wish("vd0", VF)).unwrap_err().message.contains("modprobe vhost_vdpa"));
    bus.kernel.0.lock().unwrap().vdpa_management = None;
    let error = bus.add(&wish("vd0", VF)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.message.contains("modprobe vdpa") && error.message.contains("mlx5_vdpa"), "{error}");
    assert!(bus.list().problem.unwrap().contains("modprobe vdpa"));
}

#[test]
fn a_driver_that_does_not_take_it_leaves_nothing() {
    let bus = Bus::new("virtio_vdpa");
    bus.tree.refuse("bus/vdpa/drivers/vhost_vdpa/bind", libc::EIO);
    let error = bus.add(&wish("vd0", VF)).unwrap_err();
    assert!(error.message.contains("vhost_vdpa does not take it"), "{error}");
    assert!(bus.entries().is_empty() && bus.list().devices.is_empty(), "{error}");
}

#[test]
fn a_ports_device_is_made_once_and_goes_with_it() {
    let bus = Bus::new("virtio_vdpa");
    let made = vdpa::ensure(&bus.host, &bus.book, &port("vm1")).unwrap();
    assert_eq!((made.name.as_str(), made.node.as_str()), ("ringspan-vm1", "/dev/vhost-vdpa-0"));
    assert!(vdpa::ensure(&bus.host, &bus.book, &port("vm1")).unwrap().done.is_empty());
    let changes = bus.changes();
    assert!(changes.len() == 1 && changes[0].contains("Some(9000) Some(4)"), "{changes:?}");
    assert_eq!(bus.list().devices[0].owner.as_deref(), Some("vm1"));
    assert!(bus.remove("ringspan-vm1", true).unwrap_err().message.contains("ringspan port remove vm1"));
    let second = vdpa::ensure(&bus.host, &bus.book, &port("vm2")).unwrap_err();
    assert_eq!(second.kind, ErrorKind::Busy);
    assert!(second.message.contains("vhost-vdpa:/dev/vhost-vdpa-0"), "{second}");
    // A port that is wanted otherwise has its device made anew, unless somebody uses it.
    bus.open_node();
    assert!(vdpa::ensure(&bus.host, &bus.book, &ForPort { mtu: 1500, ..port("vm1") }).unwrap().done.is_empty());
    bus.close_node();
    vdpa::ensure(&bus.host, &bus.book, &ForPort { mtu: 1500, ..port("vm1") }).unwrap();
    assert_eq!(bus.changes()[0], "remove_vdpa ringspan-vm1");
    assert!(vdpa::sweep(&bus.host, &bus.book, |_| true).unwrap().is_empty());
    bus.open_node();
    assert_eq!(vdpa::sweep(&bus.host, &bus.book, |_| false).unwrap()[0].as_ref().unwrap_err().kind, ErrorKind::Busy);
    bus.close_node();
    assert!(vdpa::sweep(&bus.host, &bus.book, |_| false).unwrap()[0].is_ok());
    assert!(bus.entries().is_empty() && bus.list().devices.is_empty());
}

#[test]
fn what_a_driver_lets_nobody_choose_is_left_out() {
    let bus = Bus::new("vhost_vdpa");
    bus.refuse("add_vdpa", 3, libc::EOPNOTSUPP, "All provided attributes are not supported");
    let made = vdpa::ensure(&bus.host, &bus.book, &port("vm1")).unwrap();
    assert!(made.done.iter().any(|line| line.contains("it has its own")), "{made:?}");
    assert_eq!(bus.changes(), ["add_vdpa ringspan-vm1 None None None None"]);
    assert!(vdpa::ensure(&bus.host, &bus.book, &port("vm1")).unwrap().done.is_empty(), "and that is so from then on");
}

#[test]
fn a_device_that_vhost_does_not_take_is_not_asked_for_again_with_less() {
    let bus = Bus::new("virtio_vdpa");
    bus.tree.refuse("bus/vdpa/drivers/vhost_vdpa/bind", libc::EOPNOTSUPP);
    let error = vdpa::ensure(&bus.host, &bus.book, &port("vm1")).unwrap_err();
    assert!(error.message.contains("vhost_vdpa does not take it"), "{error}");
    assert!(bus.entries().is_empty() && bus.list().devices.is_empty(), "{error}");
    let changes = bus.changes();
    assert!(changes.len() == 2 && changes[1] == "remove_vdpa ringspan-vm1", "{changes:?}");
    bus.tree.allow("bus/vdpa/drivers/vhost_vdpa/bind");
    vdpa::ensure(&bus.host, &bus.book, &port("vm1")).unwrap();
}

#[test]
fn what_was_written_down_before_a_refusal_is_so_again() {
    let bus = Bus::new("vhost_vdpa");
    bus.add(&wish("vd0", VF)).unwrap();
    let written = bus.book.load().unwrap();
    // Gone, and somebody else is about to make one of its name.
    bus.host.kernel.remove_vdpa("vd0").unwrap();
    bus.refuse("add_vdpa", 1, libc::EEXIST, "");
    assert_eq!(bus.add(&wish("vd0", VF)).unwrap_err().kind, ErrorKind::Exists);
    assert_eq!(bus.book.load().unwrap(), written);
}

#[test]
fn a_daemon_that_was_killed_leaks_nothing_and_takes_nothing_from_others() {
    let bus = Bus::new("vhost_vdpa");
    vdpa::ensure(&bus.host, &bus.book, &port("vm1")).unwrap();
    let written = bus.book.load().unwrap();
    let half = |identity| {
        let mut entries = written.clone();
        entries.get_mut("ringspan-vm1").unwrap().identity = identity;
        bus.book.save(&entries).unwrap();
    };
    // Killed when the kernel had made it, and before that was written down.
    half(None);
    assert!(vdpa::sweep(&bus.host, &bus.book, |_| false).unwrap()[0].is_ok());
    assert!(bus.list().devices.is_empty());
    // Killed before the kernel was asked.
    half(None);
    assert!(vdpa::sweep(&bus.host, &bus.book, |_| false).unwrap().is_empty());
    assert!(bus.entries().is_empty());
    // Another device of its name: one that came later, or in another life of the machine.
    bus.foreign("ringspan-vm1", &format!("pci/{VF}"));
    half(Some(1));
    assert!(vdpa::sweep(&bus.host, &bus.book, |_| false).unwrap().is_empty());
    half(None);
    bus.tree.set("proc/sys/kernel/random/boot_id", "second");
    assert!(vdpa::sweep(&bus.host, &bus.book, |_| false).unwrap().is_empty());
    assert_eq!(bus.list().devices.len(), 1);
    let error = vdpa::ensure(&bus.host, &bus.book, &port("vm1")).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Exists, "{error}");
    assert!(error.message.contains("ringspan did not make it"), "{error}");
}

#[test]
fn which_device_was_adopted_is_written_down() {
    let bus = Bus::new("vhost_vdpa");
    vdpa::ensure(&bus.host, &bus.book, &port("vm1")).unwrap();
    bus.add(&wish("vd0", "vdpasim_net")).unwrap();
    let written = bus.book.load().unwrap();
    // Killed when the kernel had made them, and before that was written down.
    let mut half = written.clone();
    half.values_mut().for_each(|entry| entry.identity = None);
    bus.book.save(&half).unwrap();
    assert!(vdpa::ensure(&bus.host, &bus.book, &port("vm1")).unwrap().done.is_empty());
    assert!(bus.add(&wish("vd0", "vdpasim_net")).unwrap().done.is_empty());
    assert_eq!(bus.book.load().unwrap(), written);
}

#[test]
fn statistics_are_of_the_queues_that_the_driver_counts() {
    let bus = Bus::new("vhost_vdpa");
    bus.add(&wish("vd0", VF)).unwrap();
    for queue in 0..2 {
        let counted = vec![("received_desc".to_owned(), 7), ("completed_desc".to_owned(), 5)];
        bus.kernel.0.lock().unwrap().vdpa_queues.insert(("vd0".into(), queue), counted);
    }
    let found = bus.list().devices[0].statistics.clone().unwrap();
    assert_eq!((found.queues.len(), found.problem), (2, None));
    assert_eq!((found.queues[1].queue, found.queues[1].counters["completed_desc"]), (1, 5));
}

#[test]
fn functions_are_known_as_management_devices() {
    let bus = Bus::new("vhost_vdpa");
    bus.add(&wish("vd0", VF)).unwrap();
    let found = vdpa::on_function(&bus.host);
    assert_eq!(found.into_iter().collect::<Vec<_>>(), [(VF.parse().unwrap(), vec!["vd0".to_owned()])]);
}
