//! A lane without DPDK, for tests: the test executable itself, started again with `FAKE_LANE` in its environment.
//!
//! What it does is told by the device's arguments: `refuse=1` is refused, `die=1` ends the process, `ready=1` makes the driver ready
//! at once; so does a file beside its socket, `.guest`, for as long as it is there. With `FAKE_LANE_VERSION` in its run directory it speaks that version of the protocol; with `FAKE_LANE_DIES`
//! it ends as soon as it is started.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use ringspan_protocol::{
    DeviceSpec, DeviceStatus, Envelope, Failure, FailureKind, LaneEvent, LaneEventKind, LaneInfo, LaneLoad, NicName,
    NicStatus, PolicyStatus, PortCounters, PortName, PortPhase, PortSpec, PortStatus, QueueCounters, Reply, Request,
    ShareStatus, VERSION, WorkerLoad,
};

/// Writes a script that starts this test executable as a lane; `test` is the test that calls [`main_if_lane`].
pub(crate) fn program(folder: &Path, test: &str) -> PathBuf {
    let path = folder.join("fake-lane");
    let exe = std::env::current_exe().unwrap();
    let script = format!("#!/bin/sh\nFAKE_LANE=\"$*\" exec '{}' '{test}' --exact --nocapture\n", exe.display());
    // Renamed into place, so that it is never executed while it is open for writing.
    let beside = folder.join("fake-lane.new");
    std::fs::write(&beside, script).unwrap();
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(&beside, &path).unwrap();
    path
}

/// Becomes a lane, and never returns, when this process was started as one.
pub(crate) fn main_if_lane() {
    let Ok(arguments) = std::env::var("FAKE_LANE") else { return };
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let value = |option: &str| arguments[arguments.iter().position(|word| *word == option).unwrap() + 1];
    let run_dir = PathBuf::from(value("--run-dir"));
    let name = value("--name");
    let lock = OpenOptions::new().create(true).append(true).open(run_dir.join(format!("lane-{name}.lock"))).unwrap();
    let Ok(_lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
        eprintln!("the lane {name} is running already");
        std::process::exit(1);
    };
    if run_dir.join("FAKE_LANE_DIES").exists() {
        eprintln!("no hugepages: this fake was told to die");
        std::process::exit(7);
    }
    let info = LaneInfo {
        name: name.parse().unwrap(),
        protocol: read_number(&run_dir.join("FAKE_LANE_VERSION")).unwrap_or(VERSION),
        version: "0.0.0-fake".into(),
        dpdk: "none".into(),
        pid: std::process::id(),
        started_ms: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64,
        cores: value("--cores").split(',').map(|core| core.parse().unwrap()).collect(),
        memory_mib: value("--memory-mib").parse().unwrap(),
        rebalance_ms: value("--rebalance-ms").parse().unwrap(),
        busy_poll: std::env::args().any(|arg| arg == "--busy-poll"),
        huge_pages: value("--huge-pages") != "off",
        max_ports: 4,
    };
    let lane = Arc::new(FakeLane {
        info,
        ports: Mutex::default(),
        nics: Mutex::default(),
        events: Mutex::default(),
        told: Condvar::new(),
    });
    let socket = run_dir.join(format!("lane-{name}.sock"));
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    // A test that forgets its lane leaves nothing behind.
    std::thread::spawn(move || {
        while run_dir.exists() {
            std::thread::sleep(Duration::from_millis(200));
        }
        std::process::exit(0);
    });
    for stream in listener.incoming() {
        let lane = Arc::clone(&lane);
        let stream = stream.unwrap();
        std::thread::spawn(move || lane.serve(&stream));
    }
}

fn read_number(path: &Path) -> Option<u32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

struct FakeLane {
    info: LaneInfo,
    ports: Mutex<BTreeMap<PortName, PortStatus>>,
    nics: Mutex<BTreeMap<NicName, NicStatus>>,
    events: Mutex<Vec<LaneEvent>>,
    told: Condvar,
}

impl FakeLane {
    fn serve(&self, stream: &UnixStream) {
        let mut writer: &UnixStream = stream;
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            let Envelope { id, body } = serde_json::from_str::<Envelope<Request>>(&line).unwrap();
            let last = body == Request::Shutdown;
            let answer = Envelope { id, body: self.answer(body) };
            if writeln!(writer, "{}", serde_json::to_string(&answer).unwrap()).is_err() {
                return;
            }
            if last {
                std::process::exit(0);
            }
        }
    }

    fn answer(&self, request: Request) -> Reply {
        let mut ports = self.ports.lock().unwrap();
        let missing = |name: &PortName| Reply::Failed(Failure::new(FailureKind::NotFound, format!("no port {name}")));
        match request {
            Request::Hello { version } if version != self.info.protocol => {
                Reply::Failed(Failure::new(FailureKind::Version, format!("this lane speaks {}", self.info.protocol)))
            }
            Request::Hello { .. } => Reply::Hello(self.info.clone()),
            Request::LaneLoad => {
                Reply::Load(LaneLoad { workers: vec![WorkerLoad { core: 0, shares: 1, busy_percent: 7 }], moves: 0 })
            }
            Request::NicList => Reply::Nics(self.nics.lock().unwrap().values().cloned().collect()),
            Request::NicAdd(spec) if spec.vfs == 63 => {
                Reply::Failed(Failure::new(FailureKind::NoRoom, "told to refuse"))
            }
            Request::NicAdd(spec) => {
                let status = NicStatus {
                    spec: *spec,
                    core: 0,
                    ports: Vec::new(),
                    uplinks: Vec::new(),
                    rules: 0,
                    masks: 0,
                    capabilities: Default::default(),
                };
                self.nics.lock().unwrap().insert(status.spec.name.clone(), status.clone());
                Reply::Nic(Box::new(status))
            }
            Request::NicRemove { name, .. } => match self.nics.lock().unwrap().remove(&name) {
                Some(_) => Reply::Done,
                None => Reply::Failed(Failure::new(FailureKind::NotFound, format!("no NIC {name}"))),
            },
            Request::NicSetVf { name, settings } => match self.nics.lock().unwrap().get_mut(&name) {
                Some(status) => {
                    status.spec.set_vf(settings);
                    Reply::Nic(Box::new(status.clone()))
                }
                None => Reply::Failed(Failure::new(FailureKind::NotFound, format!("no NIC {name}"))),
            },
            Request::NicRefresh { .. }
            | Request::MeterSet { .. }
            | Request::MeterRemove { .. }
            | Request::RuleInstall { .. }
            | Request::RuleValidate { .. }
            | Request::RuleRemove { .. }
            | Request::RuleCounters { .. }
            | Request::RuleList { .. } => {
                Reply::Failed(Failure::new(FailureKind::Unsupported, "no software NICs here"))
            }
            Request::PortAdd(spec) => match args(&spec) {
                text if text.contains("die=1") => std::process::exit(9),
                text if text.contains("refuse=1") => {
                    Reply::Failed(Failure::new(FailureKind::NoRoom, "told to refuse").with_errno(12))
                }
                text => {
                    let ready = text.contains("ready=1");
                    let status = status(*spec, ready);
                    self.tell(&status.spec.name, LaneEventKind::PortListening);
                    if ready {
                        self.tell(&status.spec.name, LaneEventKind::DriverReady { features: 0, pairs: 1 });
                    }
                    ports.insert(status.spec.name.clone(), status.clone());
                    Reply::Port(Box::new(status))
                }
            },
            Request::PortRemove { name, .. } => match ports.remove(&name) {
                Some(_) => Reply::Done,
                None => missing(&name),
            },
            Request::PortSet { name, change } => match ports.get_mut(&name) {
                Some(_) if change.mtu == Some(666) => {
                    Reply::Failed(Failure::new(FailureKind::Unsupported, "the device has no MTU of 666"))
                }
                Some(port) => {
                    port.spec = change.apply(&port.spec);
                    Reply::Port(Box::new(port.clone()))
                }
                None => missing(&name),
            },
            Request::PortList => Reply::Ports(ports.values().map(as_it_is).collect()),
            Request::PortStats { name, .. } => {
                let chosen = ports.keys().filter(|port| name.as_ref().is_none_or(|name| name == *port));
                let queue = QueueCounters { received: 5, sent: 5, ..QueueCounters::default() };
                let counters = PortCounters { from_guest: vec![queue; 2], ..PortCounters::default() };
                Reply::Stats(chosen.map(|port| (port.clone(), counters.clone())).collect())
            }
            Request::Events { after, wait_ms } => {
                drop(ports);
                let events = self.events.lock().unwrap();
                let none = |events: &mut Vec<LaneEvent>| events.last().is_none_or(|event| event.sequence <= after);
                let wait = Duration::from_millis(wait_ms.into());
                let (events, _) = self.told.wait_timeout_while(events, wait, none).unwrap();
                Reply::Events(events.iter().filter(|event| event.sequence > after).cloned().collect())
            }
            Request::Shutdown => Reply::Done,
        }
    }

    fn tell(&self, port: &PortName, kind: LaneEventKind) {
        let mut events = self.events.lock().unwrap();
        let sequence = events.len() as u64 + 1;
        events.push(LaneEvent { sequence, time_ms: 0, port: port.clone(), kind });
        self.told.notify_all();
    }
}

fn args(spec: &PortSpec) -> String {
    match &spec.device {
        DeviceSpec::Vdev { args, .. } | DeviceSpec::Pci { args, .. } => args.clone(),
        _ => String::new(),
    }
}

fn as_it_is(port: &PortStatus) -> PortStatus {
    let guest = port.spec.socket.with_extension("guest").exists();
    PortStatus { phase: if guest { PortPhase::DriverReady } else { port.phase }, ..port.clone() }
}

fn status(spec: PortSpec, ready: bool) -> PortStatus {
    PortStatus {
        phase: if ready { PortPhase::DriverReady } else { PortPhase::Listening },
        reason: None,
        shares: vec![ShareStatus { core: 0, queues: vec![0], pairs: vec![0] }],
        features: 0,
        active_pairs: u16::from(ready),
        memory_regions: 0,
        memory_bytes: 0,
        nodes: Default::default(),
        zero_copy: Default::default(),
        migration: Default::default(),
        mode: Default::default(),
        mode_reason: None,
        device: DeviceStatus {
            driver: "net_fake".into(),
            link_up: true,
            speed_mbps: None,
            mac: spec.mac.unwrap_or("52:54:00:00:00:01".parse().unwrap()),
            mtu: spec.mtu,
            queues: spec.queues,
            promiscuous: PolicyStatus::On,
            allmulti: PolicyStatus::On,
            offloads: Default::default(),
            receive_wake: Default::default(),
            spread: Default::default(),
            members: vec![],
        },
        spec,
    }
}
