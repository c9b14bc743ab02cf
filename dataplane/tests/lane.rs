//! The program `ringspan-lane` as control meets it: over its socket, one process a test.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ringspan_protocol::message::PortChange;
use ringspan_protocol::{
    Compat, Envelope, Failure, FailureKind, LaneEventKind, Policy, PolicyStatus, PortPhase, PortSpec, PortStatus,
    Reply, Request, Role, VERSION,
};

/// A lane in a folder of its own, killed at the end of the test.
struct Lane {
    dir: tempfile::TempDir,
    process: Child,
}

fn command(dir: &Path, name: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringspan-lane"));
    command.args(["--name", name, "--run-dir"]).arg(dir).args([
        "--cores",
        "0",
        "--memory-mib",
        "64",
        "--huge-pages",
        "off",
    ]);
    command.stdin(Stdio::null());
    command
}

fn await_that(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < until, "waited 60 s in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Lane {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let process = command(dir.path(), "test").spawn().unwrap();
        let lane = Self { dir, process };
        await_that("the lane's socket", || UnixStream::connect(lane.socket()).is_ok());
        lane
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("lane-test.sock")
    }

    fn port_socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.sock"))
    }

    fn spec(&self, name: &str, device: &str) -> PortSpec {
        PortSpec {
            name: name.parse().unwrap(),
            socket: self.port_socket(name),
            role: Role::Server,
            device: device.parse().unwrap(),
            queues: 1,
            mtu: 1500,
            mac: None,
            promiscuous: Policy::Auto,
            allmulti: Policy::Auto,
            socket_owner: None,
            socket_mode: None,
            compat: Compat::LATEST,
            offloads: true,
            zero_copy: Default::default(),
            zero_copy_from: None,
            max_rate: 0,
            mode: Default::default(),
        }
    }

    fn control(&self) -> Control {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut control = Control(BufReader::new(stream));
        assert!(
            matches!(control.ask(Request::Hello { version: VERSION }), Reply::Hello(info) if info.name.as_str() == "test")
        );
        control
    }

    fn exit_status(&mut self) -> ExitStatus {
        let mut status = None;
        await_that("the lane's end", || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Control(BufReader<UnixStream>);

impl Control {
    fn line(&mut self, line: &str) -> Envelope<Reply> {
        self.0.get_mut().write_all(line.as_bytes()).unwrap();
        self.0.get_mut().write_all(b"\n").unwrap();
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }

    fn ask(&mut self, request: Request) -> Reply {
        let answer = self.line(&serde_json::to_string(&Envelope { id: 7, body: request }).unwrap());
        assert_eq!(answer.id, 7);
        answer.body
    }

    fn add(&mut self, spec: &PortSpec) -> PortStatus {
        match self.ask(Request::PortAdd(Box::new(spec.clone()))) {
            Reply::Port(status) => *status,
            other => panic!("{spec:?}: {other:?}"),
        }
    }

    fn refused(&mut self, request: Request) -> Failure {
        match self.ask(request) {
            Reply::Failed(failure) => failure,
            other => panic!("was not refused: {other:?}"),
        }
    }
}

#[test]
fn a_port_is_made_listed_changed_and_removed() {
    let lane = Lane::start();
    let mut control = lane.control();
    let spec = lane.spec("vm1", "vdev:net_ring0");
    let status = control.add(&spec);
    assert_eq!((status.phase, status.shares[0].core, status.device.link_up), (PortPhase::Listening, 0, true));
    assert!(UnixStream::connect(lane.port_socket("vm1")).is_ok());

    // Asking again for the same is no error, and changes nothing.
    assert_eq!(control.add(&spec).spec, spec);
    let change = PortChange { mtu: Some(9000), ..PortChange::default() };
    match control.ask(Request::PortSet { name: spec.name.clone(), change }) {
        Reply::Port(status) => assert_eq!((status.spec.mtu, status.device.mtu), (9000, 9000)),
        other => panic!("{other:?}"),
    }
    // A software ring takes no address: the whole change is refused, and what came before it in the change is taken back.
    let mac = Some("52:54:00:00:00:07".parse().unwrap());
    let change = PortChange { mac, promiscuous: Some(Policy::Off), ..PortChange::default() };
    let set = |change| Request::PortSet { name: spec.name.clone(), change };
    assert_eq!(control.refused(set(change)).kind, FailureKind::Unsupported);
    match control.ask(Request::PortList) {
        Reply::Ports(ports) => {
            assert_eq!((ports[0].spec.mac, ports[0].spec.promiscuous), (None, Policy::Auto));
            assert_eq!((ports[0].device.mtu, &ports[0].device.promiscuous), (9000, &PolicyStatus::On));
        }
        other => panic!("{other:?}"),
    }
    match control.ask(set(PortChange { promiscuous: Some(Policy::Off), ..PortChange::default() })) {
        Reply::Port(status) => assert_eq!(status.device.promiscuous, PolicyStatus::Off),
        other => panic!("{other:?}"),
    }
    assert!(matches!(control.ask(Request::PortList), Reply::Ports(ports) if ports.len() == 1));
    assert_eq!(control.ask(Request::PortRemove { name: spec.name.clone(), forget: true }), Reply::Done);
    assert!(!lane.port_socket("vm1").exists());
    assert_eq!(control.refused(Request::PortRemove { name: spec.name, forget: true }).kind, FailureKind::NotFound);
}

#[test]
fn what_cannot_be_is_refused_by_kind_and_leaves_nothing_behind() {
    let lane = Lane::start();
    let mut control = lane.control();
    let good = lane.spec("vm1", "vdev:net_ring0");
    control.add(&good);
    let add = |spec: PortSpec| Request::PortAdd(Box::new(spec));

    let other = PortSpec { queues: 2, ..good.clone() };
    assert_eq!(control.refused(add(other)).kind, FailureKind::Exists);
    let same_device = lane.spec("vm2", "vdev:net_ring0");
    let failure = control.refused(add(same_device));
    assert_eq!(failure.kind, FailureKind::Busy);
    assert!(failure.message.contains("net_ring0") && failure.message.contains("vm1"), "{failure}");
    let same_socket = PortSpec { socket: good.socket.clone(), ..lane.spec("vm2", "vdev:net_null0") };
    assert_eq!(control.refused(add(same_socket)).kind, FailureKind::Busy);
    for bad in [
        PortSpec { queues: 0, ..lane.spec("vm2", "vdev:net_null0") },
        PortSpec { queues: 33, ..lane.spec("vm2", "vdev:net_null0") },
        PortSpec { mtu: 67, ..lane.spec("vm2", "vdev:net_null0") },
        PortSpec { mac: Some("ff:ff:ff:ff:ff:ff".parse().unwrap()), ..lane.spec("vm2", "vdev:net_null0") },
    ] {
        assert_eq!(control.refused(add(bad.clone())).kind, FailureKind::Invalid, "{bad:?}");
    }
    let failure = control.refused(add(lane.spec("vm2", "vdev:net_nosuchthing0")));
    assert!(failure.message.contains("vm2") && failure.message.contains("net_nosuchthing0"), "{failure}");
    assert!(!lane.dir.path().join("journal/vm2.journal").exists());

    // A socket that somebody listens on is never removed, and the device opened for it is closed again.
    let taken = std::os::unix::net::UnixListener::bind(lane.port_socket("vm2")).unwrap();
    assert_eq!(control.refused(add(lane.spec("vm2", "vdev:net_null0,no-rx=1"))).kind, FailureKind::Busy);
    assert!(UnixStream::connect(lane.port_socket("vm2")).is_ok());
    drop(taken);
    control.add(&lane.spec("vm2", "vdev:net_null0,no-rx=1"));
    assert!(matches!(control.ask(Request::PortList), Reply::Ports(ports) if ports.len() == 2));
}

#[test]
fn counters_go_on_when_the_lane_was_killed_and_end_with_the_port() {
    let mut lane = Lane::start();
    // Without no-rx the device makes packets, which are counted although there is no ring for them.
    let spec = lane.spec("vm1", "vdev:net_null0");
    lane.control().add(&spec);
    let dropped = |control: &mut Control| match control.ask(Request::PortStats { name: None, extended: false }) {
        Reply::Stats(stats) => {
            let queue = stats[0].1.to_guest[0];
            assert_eq!(queue.drops.total(), queue.drops.no_ring + queue.drops.lost);
            assert!(queue.received >= queue.drops.total());
            queue.drops.no_ring
        }
        other => panic!("{other:?}"),
    };
    let mut control = lane.control();
    await_that("packets", || dropped(&mut control) > 1000);
    let before = dropped(&mut control);
    lane.process.kill().unwrap();
    lane.exit_status();
    lane.process = command(lane.dir.path(), "test").spawn().unwrap();
    await_that("the lane's socket", || UnixStream::connect(lane.socket()).is_ok());
    let mut control = lane.control();
    control.add(&spec);
    assert!(dropped(&mut control) >= before);
    assert!(lane.dir.path().join("journal/vm1.journal").exists());
    control.ask(Request::PortRemove { name: spec.name, forget: true });
    assert!(!lane.dir.path().join("journal/vm1.journal").exists());
}

#[test]
fn a_shutdown_takes_everything_away_and_a_second_lane_of_a_name_is_refused() {
    let mut lane = Lane::start();
    let mut control = lane.control();
    control.add(&lane.spec("vm1", "vdev:net_ring0"));
    let second = command(lane.dir.path(), "test").stderr(Stdio::piped()).output().unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("runs already"), "{second:?}");

    assert_eq!(control.ask(Request::Shutdown), Reply::Done);
    assert!(lane.exit_status().success());
    assert!(!lane.socket().exists() && !lane.port_socket("vm1").exists());
}

#[test]
fn a_core_that_does_not_exist_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let output = command(dir.path(), "test").args(["--cores", "999"]).stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("core 999"), "{text}");
}

#[test]
fn what_is_no_request_is_answered_and_another_version_may_only_shut_down() {
    let mut lane = Lane::start();
    let stream = UnixStream::connect(lane.socket()).unwrap();
    let mut control = Control(BufReader::new(stream));
    assert!(matches!(control.line(r#"{"id": 3, "request": "no-such"}"#), Envelope { id: 3, body: Reply::Failed(_) }));
    assert_eq!(control.refused(Request::PortList).kind, FailureKind::Version);
    assert_eq!(control.refused(Request::Hello { version: VERSION + 1 }).kind, FailureKind::Version);
    assert_eq!(control.refused(Request::PortList).kind, FailureKind::Version);
    assert_eq!(control.ask(Request::Shutdown), Reply::Done);
    assert!(lane.exit_status().success());
}

#[test]
fn events_are_numbered_and_can_be_waited_for() {
    let lane = Lane::start();
    let mut control = lane.control();
    let mut watcher = lane.control();
    let events = std::thread::spawn(move || watcher.ask(Request::Events { after: 0, wait_ms: 10_000 }));
    control.add(&lane.spec("vm1", "vdev:net_ring0"));
    match events.join().unwrap() {
        Reply::Events(events) => {
            assert_eq!((events[0].sequence, events[0].port.as_str()), (1, "vm1"));
            assert_eq!(events[0].kind, LaneEventKind::PortListening);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_front_end_that_comes_and_goes_all_the_time_does_not_flood_the_events() {
    let lane = Lane::start();
    let mut control = lane.control();
    let spec = lane.spec("vm1", "vdev:net_ring0");
    control.add(&spec);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        UnixStream::connect(lane.port_socket("vm1")).unwrap();
    }
    // A few hundred at once, then 20 a second.
    match control.ask(Request::Events { after: 0, wait_ms: 0 }) {
        Reply::Events(events) => assert!((100..400).contains(&events.len()), "{} events in 2 s", events.len()),
        other => panic!("{other:?}"),
    }
    // What is held back is that front-end, and nothing else.
    let begun = Instant::now();
    control.add(&lane.spec("vm2", "vdev:net_ring1"));
    control.ask(Request::PortRemove { name: spec.name, forget: true });
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}
