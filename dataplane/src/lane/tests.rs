//! Ports that leave, and those that come meanwhile.

use std::sync::mpsc;
use std::time::Instant;

use super::*;

fn lane(folder: &Path) -> (Arc<Lane>, Ends) {
    let info = r#"{"name":"main","protocol":0,"version":"","dpdk":"","pid":1,"started_ms":0,"cores":[],"memory_mib":0,"huge_pages":false,"max_ports":32}"#;
    Lane::new(serde_json::from_str(info).unwrap(), Vec::new(), folder, folder)
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
