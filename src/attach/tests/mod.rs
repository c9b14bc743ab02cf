//! Attachments on a made-up world, with the daemon "killed" at every point at which it could be.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

mod killed;
mod released;

use super::choose::{Candidate, Uplink, choose};
use super::guest::{self, ForGuest, Qmp, Shape};
use super::plan::{Facts, plan};
use super::record::{Counted, Key, Record, Stage, Step, Target};
use super::request::{Attach, Mode};
use super::run::{Attachments, World};
use super::sync::{Guest, sync};
use crate::error::{Error, ErrorKind};
use crate::state::StateDir;

/// What was done to it is all that it is.
#[derive(Default)]
struct Made {
    done: RefCell<BTreeSet<(Key, Step, u16)>>,
    refuses: RefCell<Option<Step>>,
    sticks: RefCell<Option<Step>>,
    user: RefCell<Option<String>>,
    /// Why it cannot be said who has it.
    silent: RefCell<Option<String>>,
    /// A VF that a port has.
    claimed: RefCell<Option<Target>>,
}

impl Made {
    fn of(&self, key: &Key) -> Vec<Step> {
        self.done.borrow().iter().filter(|(one, ..)| one == key).map(|(_, step, _)| *step).collect()
    }
}

impl World for Made {
    fn apply(&self, step: Step, record: &mut Record) -> Result<Vec<String>, Error> {
        if *self.refuses.borrow() == Some(step) {
            return Err(Error::new(ErrorKind::Failed, format!("{step:?} is refused")));
        }
        self.done.borrow_mut().retain(|(key, done, _)| *key != record.key() || *done != step);
        self.done.borrow_mut().insert((record.key(), step, record.wanted.vlan));
        Ok(vec![format!("{step:?}")])
    }

    fn undo(&self, step: Step, record: &Record) -> Result<(), Error> {
        if *self.sticks.borrow() == Some(step) {
            return Err(Error::new(ErrorKind::OvsDown, format!("{step:?} cannot be taken back")));
        }
        self.done.borrow_mut().retain(|(key, done, _)| *key != record.key() || *done != step);
        Ok(())
    }

    fn drift(&self, step: Step, record: &Record) -> Result<Option<String>, Error> {
        let there = self.done.borrow().contains(&(record.key(), step, record.wanted.vlan));
        Ok((!there).then(|| format!("{step:?} is not so")))
    }

    fn claimed(&self, record: &Record) -> Option<String> {
        (*self.claimed.borrow() == Some(record.target.clone())).then(|| "port vm1".to_owned())
    }

    fn user(&self, _: &Record) -> Result<Option<String>, Error> {
        match self.silent.borrow().clone() {
            Some(why) => Err(Error::new(ErrorKind::LaneDown, why)),
            None => Ok(self.user.borrow().clone()),
        }
    }
}

const STEPS: [Step; 4] = [Step::Settings, Step::Driver, Step::Bridge, Step::Port];

fn wanted(guest: &str, more: &str) -> Attach {
    serde_json::from_str(&format!(r#"{{"guest":"{guest}","wire":"nic0"{more}}}"#)).unwrap()
}

fn vf(number: u16) -> Target {
    Target::Soft { nic: "nic0".parse().unwrap(), vf: number }
}

fn candidate(target: Target, model: &str, numa: u32) -> Candidate {
    Candidate {
        names: vec![target.to_string()],
        uplink: "NIC nic0".into(),
        model: model.into(),
        wires: vec!["nic0".into()],
        numa: Some(numa),
        owner: None,
        bridge: None,
        representor: None,
        device: None,
        target,
    }
}

/// A record with every kind of step.
fn record(wanted: &Attach, target: Target) -> Record {
    Record {
        wanted: wanted.clone(),
        mac: "52:54:00:00:00:01".parse().unwrap(),
        target,
        stage: Stage::Attaching,
        steps: STEPS.to_vec(),
        begun: vec![],
        before: Default::default(),
        representor: Some("nic0_vf0".into()),
        bridge: Some("br0".into()),
        driver: None,
        vlan_by_vf: false,
        infiniband: false,
        rated: false,
        problem: None,
    }
}

struct Bench {
    folder: tempfile::TempDir,
    world: Made,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), world: Made::default() }
    }

    /// What a daemon that starts knows: what is written down.
    fn boot(&self) -> Attachments {
        Attachments::load(Arc::new(StateDir::open(self.folder.path()).unwrap())).unwrap()
    }

    fn attach(&self, all: &Attachments, guest: &str) -> Result<Record, Error> {
        let wanted = wanted(guest, "");
        all.attach(&self.world, &wanted, |others| Ok(record(&wanted, vf(others.len() as u16))))
            .map(|(record, _)| record)
    }

    fn recover(&self, all: &Attachments) {
        for key in all.unfinished() {
            all.recover(&self.world, &key).unwrap();
        }
    }
}

fn key(guest: &str) -> Key {
    Key { guest: guest.into(), nic: 0 }
}

/// Kills the daemon at each point of `act` in turn, starts it again, and looks.
fn killed_everywhere(
    prepare: impl Fn(&Bench, &Attachments),
    act: impl Fn(&Bench, &Attachments) -> bool,
    look: impl Fn(&Bench, &Attachments),
) {
    for point in 0.. {
        let bench = Bench::new();
        let all = bench.boot();
        prepare(&bench, &all);
        all.kill_at(point);
        let whole = act(&bench, &all);
        drop(all);
        let all = bench.boot();
        bench.recover(&all);
        look(&bench, &all);
        assert!(all.unfinished().is_empty(), "killed at point {point}");
        drop(all);
        // And nothing of it is left for the next one.
        assert!(bench.boot().unfinished().is_empty());
        if whole {
            assert!(point >= 2 * STEPS.len(), "only {point} points");
            return;
        }
    }
}

#[test]
fn of_two_who_want_the_last_vf_one_gets_it() {
    let bench = Bench::new();
    let all = bench.boot();
    let candidates = [candidate(vf(0), "a", 0)];
    let both = std::sync::Barrier::new(2);
    let ask = |guest: &'static str| {
        let (all, candidates, both) = (&all, &candidates, &both);
        move || {
            // Each thread has a world of its own: what is shared is what is written down.
            let world = Made::default();
            let wanted = wanted(guest, "");
            let first = std::cell::Cell::new(true);
            all.attach(&world, &wanted, |records| {
                let chosen = choose(candidates, &[], &wanted, records, |_| None)?;
                // Both have chosen it before either has written it down.
                if first.take() {
                    both.wait();
                }
                Ok(record(&wanted, chosen.target.clone()))
            })
            .map(drop)
            .map_err(|error| error.kind)
        }
    };
    let mut outcomes = std::thread::scope(|scope| {
        ["g1", "g2"].map(|guest| scope.spawn(ask(guest))).map(|thread| thread.join().unwrap())
    });
    outcomes.sort_by_key(Result::is_err);
    assert_eq!(outcomes, [Ok(()), Err(ErrorKind::NoRoom)]);
}

#[test]
fn a_vf_that_a_port_claims_after_it_was_chosen_is_not_taken_and_another_one_is() {
    let bench = Bench::new();
    let all = bench.boot();
    let wanted = wanted("g", "");
    let (record, _) = all
        .attach(&bench.world, &wanted, |_| {
            let free = u16::from(bench.world.claimed.borrow().is_some());
            // The port comes between choosing and writing down.
            *bench.world.claimed.borrow_mut() = Some(vf(0));
            Ok(record(&wanted, vf(free)))
        })
        .unwrap();
    assert_eq!(record.target, vf(1));
    drop(all);
    assert_eq!(bench.boot().all(), [record]);
}

#[test]
fn the_same_again_is_a_success_and_another_one_is_refused() {
    let bench = Bench::new();
    let all = bench.boot();
    let first = bench.attach(&all, "g").unwrap();
    let again = all.attach(&bench.world, &wanted("g", ""), |_| panic!("nothing is to be chosen")).unwrap();
    assert_eq!(again, (first, vec![]));
    let other = wanted("g", r#","vlan":5"#);
    let error = all.attach(&bench.world, &other, |_| panic!("nothing is to be chosen")).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Exists);
}

#[test]
fn a_vf_that_is_not_there_is_told_by_what_is_missing() {
    let candidates = [candidate(vf(0), "ConnectX-5", 0)];
    let uplink = |name: &str, names: &[&str], pf: Option<&str>, wires: &[&str]| Uplink {
        name: name.into(),
        names: names.iter().map(|name| (*name).into()).collect(),
        pf: pf.map(str::to_owned),
        why_none: None,
        wires: wires.iter().map(|wire| (*wire).into()).collect(),
    };
    let without = |uplink: Uplink| Uplink { why_none: Some("it has no SR-IOV capability".into()), ..uplink };
    let uplinks = [
        uplink("NIC nic0", &["nic0"], None, &["nic0"]),
        without(uplink("PF lan0 (0000:04:00.0)", &["0000:04:00.0", "lan0"], Some("lan0"), &["lan0", "lan"])),
        uplink("PF eth1 (0000:05:00.0)", &["0000:05:00.0", "eth1"], Some("eth1"), &["eth1", "br1"]),
    ];
    let refused = |more: &str, records: &[Record]| {
        let wanted: Attach = serde_json::from_str(&format!(r#"{{"guest":"g"{more}}}"#)).unwrap();
        choose(&candidates, &uplinks, &wanted, records, |_| None).unwrap_err().message
    };
    for (more, expected) in [
        (
            r#","wire":"eth7""#,
            "there is no wire \"eth7\" here; wires: br1, eth1, lan, lan0, nic0: see ringspan device list, and ringspan nic list",
        ),
        (
            r#","wire":"br1""#,
            "PF eth1 (0000:05:00.0), on wire \"br1\", has no VF: make some with ringspan vf enable eth1 COUNT",
        ),
        (
            r#","wire":"lan""#,
            "PF lan0 (0000:04:00.0), on wire \"lan\", has no VF, and cannot have any: it has no SR-IOV capability: name another wire: see ringspan device list, and ringspan nic list",
        ),
        (
            r#","wire":"nic0","model":"X9""#,
            "no VF of NIC nic0, on wire \"nic0\", is of model \"X9\"; their models: ConnectX-5",
        ),
        (
            r#","model":"X9""#,
            "there is no VF of model \"X9\" here; models of VFs: ConnectX-5: see ringspan device list, and ringspan nic list",
        ),
        (
            r#","device":"eth1""#,
            "\"eth1\" is PF eth1 (0000:05:00.0), and a guest gets a VF: name one of its VFs, or it as the wire",
        ),
    ] {
        assert_eq!(refused(more, &[]), expected);
    }
    let taken = [record(&wanted("h", ""), vf(0))];
    let full = "no VF on wire \"nic0\" of NIC nic0 is free: the only one is used: see ringspan attachment list, and ringspan port list";
    assert_eq!(refused(r#","wire":"nic0""#, &taken), full);
}

#[test]
fn the_named_device_is_taken_or_a_free_one_by_model_wire_and_node() {
    let candidates = [
        candidate(vf(0), "ConnectX-5 Virtual Function", 0),
        candidate(vf(1), "ConnectX-5 Virtual Function", 1),
        candidate(vf(2), "ConnectX-5", 0),
    ];
    let pick = |more: &str, records: &[Record]| {
        let wanted: Attach = serde_json::from_str(&format!(r#"{{"guest":"g"{more}}}"#)).unwrap();
        choose(&candidates, &[], &wanted, records, |_| None)
            .map(|one| one.target.to_string())
            .map_err(|error| error.kind)
    };
    let chosen = |number: u16| Ok(vf(number).to_string());
    assert_eq!(pick(r#","device":"soft:nic0/vf1""#, &[]), chosen(1));
    assert_eq!(pick(r#","device":"soft:nic0/vf9""#, &[]), Err(ErrorKind::NotFound));
    // As it is written first, else what has the text in it.
    assert_eq!(pick(r#","model":"ConnectX-5""#, &[]), chosen(2));
    assert_eq!(pick(r#","model":"ConnectX-5 V","numa_node":1"#, &[]), chosen(1));
    assert_eq!(pick(r#","wire":"nic0""#, &[]), chosen(0));
    assert_eq!(pick(r#","wire":"eth7""#, &[]), Err(ErrorKind::NotFound));
    assert_eq!(pick("", &[]), Err(ErrorKind::Usage));
    let taken: Vec<Record> = [0, 1, 2].map(|number| record(&wanted("h", ""), vf(number))).into();
    assert_eq!(pick(r#","model":"ConnectX-5""#, &taken[2..]), chosen(0));
    assert_eq!(pick(r#","device":"soft:nic0/vf1""#, &taken), Err(ErrorKind::Busy));
    assert_eq!(pick(r#","model":"ConnectX-5""#, &taken), Err(ErrorKind::NoRoom));
}

#[test]
fn what_can_never_be_is_refused_with_the_remedy() {
    for (more, says) in [
        (r#","vlan":4095"#, "1 to 4094"),
        (r#","vlan":4,"iface_id":"x""#, "OVN"),
        (r#","min_rate":20,"max_rate":10"#, "above the most"),
        (r#","mac":"01:00:00:00:00:01""#, "unicast"),
        (r#","mode":"passthrough","lane":"main""#, "mode vhost"),
        (r#","mtu":10"#, "68 to 9216"),
    ] {
        let error = wanted("g", more).check().unwrap_err();
        assert!(error.message.contains(says), "{more}: {error}");
    }
    for guest in ["", "a/b", "-x", &"x".repeat(39)] {
        assert_eq!(wanted(guest, "").check().unwrap_err().kind, ErrorKind::Invalid, "{guest:?}");
    }
    let facts = Facts { mac: "52:54:00:00:00:01".parse().unwrap(), view: None, nics: &BTreeMap::new(), settings: None };
    let soft = candidate(vf(0), "a", 0);
    let refused = |more: &str| plan(&wanted("g", more), &soft, &facts).unwrap_err().message;
    assert!(refused(r#","mode":"passthrough""#).contains("only mode vhost"));
    assert!(refused(r#","min_rate":5"#).contains("leave min_rate out"));
    assert!(refused(r#","bridge":"br0""#).contains("no representor"));
    let represented = Candidate { representor: Some("nic0_vf0".into()), ..soft };
    let error = plan(&wanted("g", r#","bridge":"br0""#), &represented, &facts).unwrap_err();
    assert_eq!(error.kind, ErrorKind::OvsDown);
}

#[test]
fn memory_that_is_known_not_to_be_shared_is_refused() {
    let proc = tempfile::tempdir().unwrap();
    let shape = |text: &str| serde_json::from_str::<Shape>(text).unwrap();
    let check = |text: &str, mode| shape(text).check(proc.path(), mode).map_err(|error| error.kind);
    assert_eq!(check("{}", Mode::Vhost), Ok(()));
    assert_eq!(check(r#"{"memory_shared":false}"#, Mode::Vhost), Err(ErrorKind::Unsupported));
    assert_eq!(check(r#"{"memory_shared":false}"#, Mode::Passthrough), Ok(()));
    assert_eq!(check(r#"{"memory":"12Q"}"#, Mode::Vhost), Err(ErrorKind::Invalid));
    std::fs::create_dir(proc.path().join("7")).unwrap();
    let run = |line: &str| {
        std::fs::write(proc.path().join("7/cmdline"), line.replace(' ', "\0")).unwrap();
        check(r#"{"qemu_pid":7}"#, Mode::Vhost)
    };
    assert_eq!(run("qemu -m 512"), Err(ErrorKind::Unsupported));
    assert_eq!(run("qemu -object memory-backend-memfd,id=m,size=1G,share=on -m 1G"), Ok(()));
    assert_eq!(
        run("qemu -object memory-backend-file,id=m,size=1G,share=off,mem-path=/dev/hugepages"),
        Err(ErrorKind::Unsupported)
    );
    assert_eq!(run(r#"qemu -object {"qom-type":"memory-backend-memfd","id":"m","share":true}"#), Ok(()));
}

#[test]
fn memory_of_a_process_that_cannot_be_read_is_told_from_memory_that_is_not_shared() {
    let proc = tempfile::tempdir().unwrap();
    let check = |pid: u32| {
        let shape = Shape { qemu_pid: Some(pid), ..Shape::default() };
        shape.check(proc.path(), Mode::Vhost).unwrap_err()
    };
    // One that ended and was not waited for yet has no arguments any more.
    std::fs::create_dir(proc.path().join("7")).unwrap();
    std::fs::write(proc.path().join("7/cmdline"), "").unwrap();
    for error in [check(7), check(8)] {
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert!(error.message.contains("there is no such process, or /proc hides it"), "{error}");
    }
    for (errno, kind, says) in [
        (libc::EPERM, ErrorKind::Permission, "the daemon must be allowed to read it"),
        (libc::ESRCH, ErrorKind::NotFound, "there is no such process"),
    ] {
        let error = guest::unread(7, Path::new("/proc/7/cmdline"), &std::io::Error::from_raw_os_error(errno));
        assert_eq!((error.kind, error.errno), (kind, Some(errno)));
        // By the names that a user of the command line and one of the socket know.
        for part in ["of process 7", says, "--memory-shared", "memory_shared in JSON"] {
            assert!(error.message.contains(part), "no {part}: {error}");
        }
    }
}

#[test]
fn qemu_is_told_how_to_begin_plug_and_unplug() {
    let shape = Shape { qemu_version: Some("7.2".into()), guest_queues: Some(2), ..Shape::default() };
    let made =
        ForGuest::new(&record(&wanted("g", r#","mtu":9000"#), vf(0)), &shape, Path::new("/run/ringspan")).unwrap();
    assert_eq!(made.memory[1], "memory-backend-memfd,id=mem-g-nic0,size=512M,share=on");
    assert_eq!(
        made.args.join(" "),
        "-chardev socket,id=chr-g-nic0,path=/run/ringspan/g-nic0.sock,reconnect=1 -netdev vhost-user,id=net-g-nic0,chardev=chr-g-nic0,queues=2 \
         -device virtio-net-pci,netdev=net-g-nic0,mac=52:54:00:00:00:01,mq=on,vectors=6,host_mtu=9000,id=nic-g-nic0"
    );
    let commands = |steps: &[Qmp]| -> Vec<String> {
        let name = |step: &Qmp| match step {
            Qmp::Execute(command) => command["execute"].as_str().unwrap().to_owned(),
            Qmp::Wait(event) => event["event"].as_str().unwrap().to_owned(),
            Qmp::Call(call) => call["method"].as_str().unwrap().to_owned(),
        };
        steps.iter().map(name).collect()
    };
    assert_eq!(commands(&made.plug), ["chardev-add", "netdev_add", "device_add"]);
    assert_eq!(commands(&made.unplug), ["device_del", "DEVICE_DELETED", "netdev_del", "port.detach"]);
    let target = Target::Pci { address: "0000:0a:00.2".parse().unwrap(), pf: "0000:0a:00.0".parse().unwrap(), vf: 0 };
    let whole = record(&wanted("g", r#","mode":"passthrough""#), target);
    let made = ForGuest::new(&whole, &Shape::default(), Path::new("/run")).unwrap();
    assert_eq!(
        (made.memory.len(), made.args.join(" ")),
        (0, "-device vfio-pci,host=0000:0a:00.2,id=nic-g-nic0".into())
    );
    assert!(
        made.libvirt.contains("<address domain='0x0000' bus='0x0a' slot='0x00' function='0x2'/>"),
        "{}",
        made.libvirt
    );
    assert_eq!(commands(&made.unplug), ["device_del", "DEVICE_DELETED", "port.detach"]);
}

#[test]
fn an_agent_that_was_restarted_learns_what_is_orphaned_missing_and_drifted() {
    let bench = Bench::new();
    let all = bench.boot();
    for guest in ["gone", "drifts", "good"] {
        bench.attach(&all, guest).unwrap();
    }
    bench.world.done.borrow_mut().retain(|(key, step, _)| key.guest != "drifts" || *step != Step::Bridge);
    let guest = |id: &str, nics: Option<Vec<u16>>| Guest { guest: id.into(), nics, attach: vec![] };
    let guests = [guest("drifts", None), guest("good", Some(vec![0, 1]))];
    let sync = |guests: &[Guest], mending: bool| {
        sync(&all, &bench.world, guests, mending, |wanted| {
            let (record, _) = all.attach(&bench.world, wanted, |_| Ok(record(wanted, vf(7))))?;
            Ok(record.target.to_string())
        })
    };
    let told = sync(&guests, false);
    let names =
        |list: &[super::sync::Finding]| list.iter().map(|one| format!("{}-{}", one.guest, one.nic)).collect::<Vec<_>>();
    assert_eq!(
        (names(&told.orphaned), names(&told.missing), names(&told.drifted), told.good),
        (vec!["gone-0".into()], vec!["good-1".into()], vec!["drifts-0".into()], 1)
    );
    assert_eq!(told.drifted[0].what, ["Bridge is not so"]);
    assert!(!told.orphaned[0].mended && bench.world.of(&key("gone")).len() == 4);
    let mended = sync(&guests, true);
    assert!(mended.orphaned[0].mended && mended.drifted[0].mended);
    let after = sync(&guests, true);
    assert_eq!((after.orphaned.len(), after.drifted.len(), after.missing.len(), after.good), (0, 0, 1, 2));
    // With what they should be, what is missing is attached, and what has another VLAN gets it; another MTU it may have, another wire not.
    let with = |attach: Vec<Attach>| [guest("drifts", None), Guest { attach, ..guest("good", None) }];
    let wanted_now = [wanted("good", r#","vlan":9"#), wanted("good", r#","nic":1"#)];
    let told = sync(&with(wanted_now.to_vec()), false);
    assert_eq!((names(&told.missing), names(&told.drifted)), (vec!["good-1".into()], vec!["good-0".into()]));
    let mended = sync(&with(wanted_now.to_vec()), true);
    assert_eq!((mended.missing[0].target.as_deref(), mended.missing[0].mended), (Some("soft:nic0/vf7"), true));
    assert!(mended.drifted[0].mended, "{mended:#?}");
    assert_eq!(all.get(&key("good")).unwrap().wanted.vlan, 9);
    let after = sync(&with(wanted_now.to_vec()), true);
    assert_eq!((after.drifted.len(), after.missing.len(), after.good), (0, 0, 3));
    let elsewhere = sync(&with(vec![Attach { wire: Some("nic1".into()), ..wanted_now[0].clone() }]), true);
    assert_eq!(names(&elsewhere.orphaned), ["good-1"]);
    assert_eq!(elsewhere.drifted[0].error.as_ref().map(|error| error.kind), Some(ErrorKind::Exists));
}

#[test]
fn counters_never_go_back_while_a_nic_is_attached() {
    let bench = Bench::new();
    let all = bench.boot();
    bench.attach(&all, "g").unwrap();
    let counted = |tx_packets| Counted { tx_packets, ..Counted::default() };
    let tell = |all: &Attachments, now: Option<u64>| {
        all.count(Some("g"), |_| (now.map(counted), ())).pop().unwrap().3.tx_packets
    };
    assert_eq!(tell(&all, Some(10)), 10);
    // Its port was made again.
    assert_eq!(tell(&all, Some(3)), 13);
    assert_eq!(tell(&all, None), 13);
    drop(all);
    let all = bench.boot();
    assert_eq!(tell(&all, None), 13);
    assert_eq!(tell(&all, Some(5)), 15);
    all.detach(&bench.world, &key("g"), false).unwrap();
    bench.attach(&all, "g").unwrap();
    assert_eq!(tell(&all, Some(1)), 1);
}

#[test]
fn of_two_who_ask_at_once_none_counts_twice_and_what_is_detached_meanwhile_is_forgotten() {
    let bench = Bench::new();
    let all = bench.boot();
    bench.attach(&all, "g").unwrap();
    // The NIC goes on counting, and who has read is held up before it is folded in.
    let counter = std::sync::atomic::AtomicU64::new(0);
    let ask = || {
        let counted = |_: &Record| {
            let tx_packets = counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            std::thread::yield_now();
            (Some(Counted { tx_packets, ..Counted::default() }), ())
        };
        for _ in 0..100 {
            all.count(None, counted);
        }
    };
    std::thread::scope(|scope| [ask, ask].map(|ask| scope.spawn(ask)).map(|thread| thread.join().unwrap()));
    let last = |now: Option<Counted>| all.count(None, move |_| (now, ())).pop().map(|(.., counted)| counted.tx_packets);
    assert_eq!(last(None), Some(199));
    // A detach that comes while the source is read waits for that, and then nothing is left of it.
    std::thread::scope(|scope| {
        let (begun, begins) = std::sync::mpsc::channel();
        let all = &all;
        let reader = scope.spawn(move || {
            all.count(None, |_| {
                begun.send(()).unwrap();
                std::thread::yield_now();
                (Some(Counted { tx_packets: 500, ..Counted::default() }), ())
            });
        });
        begins.recv().unwrap();
        all.detach(&Made::default(), &key("g"), false).unwrap();
        reader.join().unwrap();
    });
    bench.attach(&all, "g").unwrap();
    assert_eq!(last(None), Some(0));
}

#[test]
fn a_step_that_failed_and_left_something_is_taken_back_and_not_forgotten() {
    let bench = Bench::new();
    let all = bench.boot();
    *bench.world.refuses.borrow_mut() = Some(Step::Bridge);
    *bench.world.sticks.borrow_mut() = Some(Step::Bridge);
    let error = bench.attach(&all, "g").unwrap_err();
    assert!(error.message.contains("Bridge is refused; left: Bridge cannot be taken back"), "{error}");
    assert_eq!(all.get(&key("g")).unwrap().begun.last(), Some(&Step::Bridge));
    *bench.world.sticks.borrow_mut() = None;
    bench.recover(&all);
    assert_eq!((all.all().len(), bench.world.of(&key("g"))), (0, vec![]));
}
