//! Ports that leave, and those that come meanwhile.

use std::sync::mpsc;
use std::time::Instant;

use ringspan_protocol::NicSpec;

use super::*;

fn lane(folder: &Path) -> (Arc<Lane>, Ends) {
    lane_of(folder, 32)
}

/// A lane with room for that many of DPDK's devices, of which there are none here.
fn lane_of(folder: &Path, max_ports: u16) -> (Arc<Lane>, Ends) {
    let info = r#"{"name":"main","protocol":0,"version":"","dpdk":"","pid":1,"started_ms":0,"cores":[],"memory_mib":0,"huge_pages":false,"max_ports":32}"#;
    let info = LaneInfo { max_ports, ..serde_json::from_str(info).unwrap() };
    Lane::new(info, Vec::new(), folder, folder)
}

/// Until as many wait for a port to be gone: each of them, and nobody who may go on at once.
fn until_waiting(lane: &Lane, count: usize) {
    let until = Instant::now() + Duration::from_secs(120);
    while lane.lock().waiting != count {
        assert!(Instant::now() < until, "{} wait, not {count}", lane.lock().waiting);
        std::thread::yield_now();
    }
}

/// Ports that are leaving, and have gone when this is dropped: those who wait are let on when a test fails, too.
struct Leaving<'a>(&'a Lane);

impl<'a> Leaving<'a> {
    fn new(lane: &'a Lane, port: PortSpec) -> Self {
        lane.lock().leaving.push(port);
        Self(lane)
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.lock().leaving.clear();
        self.0.left.notify_all();
    }
}

fn spec(name: &str, socket: &str, device: &str) -> PortSpec {
    let text = format!(r#"{{"name":"{name}","socket":"{socket}","device":"{device}","compat":"1"}}"#);
    serde_json::from_str(&text).unwrap()
}

/// A software NIC of one VF.
fn nic(name: &str, uplink: &str) -> NicSpec {
    serde_json::from_str(&format!(r#"{{"name":"{name}","vfs":1,"uplinks":["{uplink}"]}}"#)).unwrap()
}

/// Why a lane without workers does not do this.
fn refused(lane: &Lane, request: Request) -> FailureKind {
    match lane.answer(request) {
        Reply::Failed(failure) => failure.kind,
        reply => panic!("{reply:?}"),
    }
}

#[test]
fn a_port_that_leaves_keeps_what_it_has_until_it_is_gone_and_holds_nobody_else_up() {
    let folder = tempfile::tempdir().unwrap();
    let (lane, _ends) = lane(folder.path());
    let old = spec("vm1", "/run/one", "vdev:net_null1");
    let leaving = Leaving::new(&lane, old.clone());
    // How far an addition comes without a worker.
    let reached = |kind: FailureKind| kind == FailureKind::NoRoom;
    let other = lane.add(spec("vm2", "/run/two", "vdev:net_null2")).unwrap_err();
    assert!(reached(other.kind), "{other}");
    let same = [
        spec("vm1", "/run/three", "vdev:net_null3"),
        spec("vm4", "/run/one", "vdev:net_null4"),
        spec("vm5", "/run/five", "vdev:net_null1"),
    ];
    let (say, hear) = mpsc::channel();
    std::thread::scope(|scope| {
        for wanted in same {
            let (say, lane) = (say.clone(), &lane);
            scope.spawn(move || say.send(lane.add(wanted).unwrap_err().kind).unwrap());
        }
        let removed = scope.spawn(|| lane.remove(&old.name, false).unwrap_err().kind);
        until_waiting(&lane, 4);
        assert!(reached(lane.add(spec("vm6", "/run/six", "vdev:net_null6")).unwrap_err().kind));
        assert!(hear.try_recv().is_err() && !removed.is_finished());
        drop(leaving);
        assert_eq!(removed.join().unwrap(), FailureKind::NotFound);
        assert!((0..3).all(|_| reached(hear.recv().unwrap())));
    });
}

#[test]
fn a_lane_ends_when_the_last_port_that_leaves_has_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (lane, _ends) = lane(folder.path());
    let leaving = Leaving::new(&lane, spec("vm1", "/run/one", "vdev:net_null1"));
    std::thread::scope(|scope| {
        let closed = scope.spawn(|| lane.close());
        until_waiting(&lane, 1);
        assert!(lane.add(spec("vm2", "/run/two", "vdev:net_null2")).is_err());
        assert!(!closed.is_finished());
        drop(leaving);
    });
    let failure = lane.add(spec("vm2", "/run/two", "vdev:net_null2")).unwrap_err();
    assert!(failure.message.contains("is stopping"), "{failure}");
}

#[test]
fn who_wants_a_device_of_a_bond_that_leaves_waits_for_it_and_the_other_way_round() {
    let folder = tempfile::tempdir().unwrap();
    let bond = "bond:mode=1,vdev:net_null1,vdev:net_null2";
    for (leaves, wanted) in
        [(bond, "vdev:net_null2"), ("vdev:net_null1", bond), (bond, "bond:mode=1,vdev:net_null3,vdev:net_null1")]
    {
        let (lane, _ends) = lane(folder.path());
        std::thread::scope(|scope| {
            let leaving = Leaving::new(&lane, spec("vm1", "/run/one", leaves));
            let added = scope.spawn(|| lane.add(spec("vm2", "/run/two", wanted)).unwrap_err().kind);
            until_waiting(&lane, 1);
            drop(leaving);
            assert_eq!(added.join().unwrap(), FailureKind::NoRoom, "{leaves}, {wanted}");
        });
    }
    let (one, other) = (spec("vm1", "/run/one", bond), spec("vm2", "/run/two", "vdev:net_null2"));
    assert_eq!(shared(&one, &other).as_deref(), Some("device vdev:net_null2"));
    assert_eq!(shared(&one, &spec("vm2", "/run/two", "bond:mode=1,vdev:net_null3,vdev:net_null4")), None);
}

#[test]
fn at_the_limit_of_devices_who_comes_waits_for_who_leaves() {
    let folder = tempfile::tempdir().unwrap();
    for (room, device) in [(0, "vdev:net_null2"), (2, "bond:mode=1,vdev:net_null2,vdev:net_null3")] {
        let (lane, _ends) = lane_of(folder.path(), room);
        std::thread::scope(|scope| {
            let leaving = Leaving::new(&lane, spec("vm1", "/run/one", "vdev:net_null1"));
            let added = scope.spawn(|| lane.add(spec("vm2", "/run/two", device)).unwrap_err().kind);
            let made = scope.spawn(|| refused(&lane, Request::NicAdd(Box::new(nic("nic1", "vdev:net_null4")))));
            let waiting = if room == 0 { 2 } else { 1 };
            until_waiting(&lane, waiting);
            drop(leaving);
            assert_eq!(added.join().unwrap(), FailureKind::NoRoom, "{device}");
            assert_eq!(made.join().unwrap(), FailureKind::NoRoom);
        });
        // Nobody leaves: who comes is told at once.
        assert!(lane.add(spec("vm2", "/run/two", device)).is_err());
    }
}

#[test]
fn a_nic_waits_for_ports_that_leave_it_or_its_uplink() {
    let folder = tempfile::tempdir().unwrap();
    let (lane, _ends) = lane(folder.path());
    let remove = |name: &str| Request::NicRemove { name: name.parse().unwrap(), representors: false };
    std::thread::scope(|scope| {
        let leaving = Leaving::new(&lane, spec("vm1", "/run/one", "soft:nic1/vf0"));
        let removed = scope.spawn(|| refused(&lane, remove("nic1")));
        until_waiting(&lane, 1);
        assert_eq!(refused(&lane, remove("nic2")), FailureKind::NotFound);
        drop(leaving);
        assert_eq!(removed.join().unwrap(), FailureKind::NotFound);
    });
    std::thread::scope(|scope| {
        let leaving = Leaving::new(&lane, spec("vm1", "/run/one", "vdev:net_null1"));
        let made = scope.spawn(|| refused(&lane, Request::NicAdd(Box::new(nic("nic1", "vdev:net_null1")))));
        until_waiting(&lane, 1);
        assert_eq!(refused(&lane, Request::NicAdd(Box::new(nic("nic2", "vdev:net_null2")))), FailureKind::NoRoom);
        drop(leaving);
        assert_eq!(made.join().unwrap(), FailureKind::NoRoom);
    });
}
