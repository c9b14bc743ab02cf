//! Sessions against front-ends that the tests play themselves, message by message.

mod ended;
mod hostile;
mod log;
mod rings;

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use ringspan_protocol::{Compat, LaneEventKind, Role};

use super::features::{F_LOG_ALL, offered};
use super::message::{HEADER_SIZE, Header, PROTOCOL_FEATURES, Region, Request, memory_table, read_u64};
use super::wire::send;
use super::{RingSink, Session, SessionConfig};
use crate::memory::{DirtyLog, GuestMap};
use crate::ring::{RingConfig, RingLog};

/// Longest wait for anything; reached only when a test fails.
const LIMIT: Duration = Duration::from_secs(20);
const MEMORY: u64 = 1 << 20;
/// Where the front-end says that its memory is, in its own address space.
const USER: u64 = 0x7f00_0000_0000;

/// One call into the sink.
#[derive(Debug, Clone, PartialEq)]
enum Heard {
    Negotiated(u64),
    /// Bytes of guest memory.
    Memory(u64),
    Start(usize, RingShape),
    Stop(usize),
    /// Whether there is a descriptor now.
    Call(usize, bool),
    /// Whether there is a log now.
    Logging(bool),
    /// Where a ring's used ring is for the log.
    Log(usize, Option<u64>),
    Announce([u8; 6]),
    Event(LaneEventKind),
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct RingShape {
    size: u16,
    desc: u64,
    base: u16,
    version_1: bool,
    kick: bool,
    call: bool,
}

/// VIRTIO_F_RING_PACKED.
const RING_PACKED: u64 = 1 << 34;

/// A sink that writes everything down. Each running ring moves on by [`STEP`] until it is stopped.
#[derive(Default)]
struct Recorder {
    heard: Mutex<Vec<Heard>>,
    changed: Condvar,
    running: Mutex<std::collections::BTreeMap<usize, u16>>,
    /// Rings whose place was told.
    told: Mutex<Vec<usize>>,
    can_log: Mutex<Option<bool>>,
}

const STEP: u16 = 7;

impl Recorder {
    fn push(&self, heard: Heard) {
        self.heard.lock().unwrap().push(heard);
        self.changed.notify_all();
    }

    /// Waits for something to be heard, after those that were taken already; takes all up to it.
    fn take_until(&self, what: &str, wanted: impl Fn(&Heard) -> bool) -> Vec<Heard> {
        let deadline = Instant::now() + LIMIT;
        let mut heard = self.heard.lock().unwrap();
        loop {
            if let Some(at) = heard.iter().position(&wanted) {
                return heard.drain(..=at).collect();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what} was not heard, but {heard:#?}");
            heard = self.changed.wait_timeout(heard, left).unwrap().0;
        }
    }

    /// Takes everything that was heard so far.
    fn take(&self) -> Vec<Heard> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }

    /// Waits for a handshake to fail, and says why.
    fn failure(&self) -> String {
        let heard = self.take_until("HandshakeFailed", |heard| {
            matches!(
                heard,
                Heard::Event(LaneEventKind::HandshakeFailed { .. } | LaneEventKind::FrontendDisconnected { .. })
            )
        });
        match heard.last() {
            Some(Heard::Event(LaneEventKind::HandshakeFailed { reason })) => reason.clone(),
            other => panic!("the handshake did not fail: {other:?}"),
        }
    }

    fn disconnected(&self) -> Vec<Heard> {
        self.take_until("FrontendDisconnected", |heard| {
            matches!(heard, Heard::Event(LaneEventKind::FrontendDisconnected { .. }))
        })
    }
}

impl RingSink for Recorder {
    fn negotiated(&self, features: u64) {
        assert!(self.running.lock().unwrap().is_empty(), "features change under running rings");
        self.push(Heard::Negotiated(features));
    }

    fn memory(&self, map: Arc<GuestMap>) {
        self.push(Heard::Memory(map.bytes()));
    }

    fn start(&self, index: usize, config: RingConfig) {
        assert!(self.running.lock().unwrap().insert(index, config.position()).is_none(), "ring {index} runs already");
        let shape = RingShape {
            size: config.size,
            desc: config.desc.0,
            base: config.position(),
            version_1: config.features.version_1,
            kick: config.kick.is_some(),
            call: config.call.is_some(),
        };
        self.push(Heard::Start(index, shape));
    }

    fn stop(&self, index: usize) -> Option<u16> {
        let base = self.running.lock().unwrap().remove(&index);
        assert!(base.is_some(), "ring {index} is stopped and does not run");
        self.push(Heard::Stop(index));
        base.map(|base| base.wrapping_add(STEP))
    }

    fn call(&self, index: usize, call: Option<Arc<OwnedFd>>) {
        assert!(self.running.lock().unwrap().contains_key(&index), "ring {index} does not run");
        self.push(Heard::Call(index, call.is_some()));
    }

    fn can_log(&self, taken: bool) {
        *self.can_log.lock().unwrap() = Some(taken);
    }

    fn logging(&self, log: Option<&Arc<DirtyLog>>) {
        self.push(Heard::Logging(log.is_some()));
    }

    fn log(&self, index: usize, log: Option<RingLog>) {
        assert!(self.running.lock().unwrap().contains_key(&index), "ring {index} does not run");
        self.push(Heard::Log(index, log.map(|log| log.used)));
    }

    fn told(&self, index: usize) {
        self.told.lock().unwrap().push(index);
    }

    fn announce(&self, mac: [u8; 6]) -> Result<(), String> {
        self.push(Heard::Announce(mac));
        if mac[5] == 0xff { Err("nobody sends it".into()) } else { Ok(()) }
    }

    fn event(&self, event: LaneEventKind) {
        self.push(Heard::Event(event));
    }
}

/// What a front-end takes that does not migrate its guest.
fn wanted() -> u64 {
    offered(Compat::V1, true) & !F_LOG_ALL
}

/// A session in a folder of its own.
struct Bench {
    session: Session,
    recorder: Arc<Recorder>,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self::with_role(Role::Server)
    }

    fn with_role(role: Role) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let recorder = Arc::new(Recorder::default());
        let session = Session::start(config(folder.path(), role), recorder.clone()).unwrap();
        Self { session, recorder, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("port.sock")
    }

    fn connect(&self) -> FrontEnd {
        FrontEnd::new(UnixStream::connect(self.socket()).unwrap())
    }

    /// A front-end whose pair 0 runs. What was heard meanwhile is taken.
    fn connect_and_start(&self) -> FrontEnd {
        let mut front = self.connect();
        front.negotiate();
        front.share_memory();
        for ring in [0, 1] {
            front.set_up(ring, 256, 0);
        }
        self.recorder.take_until("start of ring 1", |heard| matches!(heard, Heard::Start(1, _)));
        front
    }
}

fn config(folder: &Path, role: Role) -> SessionConfig {
    SessionConfig {
        name: "vm1".into(),
        socket: folder.join("port.sock"),
        role,
        owner: None,
        mode: None,
        compat: Compat::V1,
        offloads: true,
        mtu: 1500,
        private_dir: folder.into(),
    }
}

/// The guest's side, spelled out.
struct FrontEnd {
    socket: UnixStream,
    memory: OwnedFd,
    kick: EventFd,
    call: EventFd,
}

impl FrontEnd {
    fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let memory = memfd_create(c"ringspan-test", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&memory, MEMORY as i64).unwrap();
        // Blocking on purpose: the session has to see to it that they are not.
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
        Self { socket, memory, kick: event(), call: event() }
    }

    /// Sends a request that wants an acknowledgement, where it has no answer of its own.
    fn send(&self, request: Request, payload: &[u8], fds: &[OwnedFd]) {
        self.send_raw(&Header::request(request, payload.len()), payload, fds);
    }

    fn send_raw(&self, header: &Header, payload: &[u8], fds: &[OwnedFd]) {
        let message = [&header.to_bytes()[..], payload].concat();
        self.socket.set_nonblocking(false).unwrap();
        assert_eq!(send(self.socket.as_fd(), &message, fds).unwrap(), message.len());
    }

    /// The payload of the next answer; `None` when the session closed the connection.
    fn answer(&mut self) -> Option<Vec<u8>> {
        let mut head = [0; HEADER_SIZE];
        self.socket.read_exact(&mut head).ok()?;
        let mut payload = vec![0; Header::parse(&head).size as usize];
        self.socket.read_exact(&mut payload).unwrap();
        Some(payload)
    }

    /// Asks, and returns the number in the answer.
    fn ask(&mut self, request: Request, payload: &[u8], fds: &[OwnedFd]) -> u64 {
        self.send(request, payload, fds);
        let answer = self.answer();
        read_u64(&answer.unwrap_or_else(|| panic!("{request:?} was not answered")), 0)
    }

    /// Asks for something that is acknowledged.
    fn done(&mut self, request: Request, payload: &[u8], fds: &[OwnedFd]) {
        assert_eq!(self.ask(request, payload, fds), 0, "{request:?} was refused");
    }

    fn negotiate(&mut self) {
        self.negotiate_with(wanted());
    }

    fn negotiate_with(&mut self, features: u64) {
        self.ask(Request::GET_FEATURES, &[], &[]);
        self.ask(Request::GET_PROTOCOL_FEATURES, &[], &[]);
        self.done(Request::SET_PROTOCOL_FEATURES, &PROTOCOL_FEATURES.to_ne_bytes(), &[]);
        self.done(Request::SET_OWNER, &[], &[]);
        self.done(Request::SET_FEATURES, &features.to_ne_bytes(), &[]);
    }

    fn region(&self) -> Region {
        Region { guest: 0, size: MEMORY, user: USER, offset: 0 }
    }

    fn share_memory(&mut self) {
        let (table, fds) = (memory_table(&[self.region()]), [self.memory.try_clone().unwrap()]);
        self.done(Request::SET_MEM_TABLE, &table, &fds);
    }

    /// Describes a ring, gives its descriptors and enables it: the order of QEMU.
    fn set_up(&mut self, ring: u32, size: u32, base: u32) {
        self.done(Request::SET_VRING_NUM, &ring_state(ring, size), &[]);
        self.done(Request::SET_VRING_BASE, &ring_state(ring, base), &[]);
        self.done(Request::SET_VRING_ADDR, &ring_address(ring, 0), &[]);
        let call = [self.call.as_fd().try_clone_to_owned().unwrap()];
        self.done(Request::SET_VRING_CALL, &u64::from(ring).to_ne_bytes(), &call);
        self.kick(ring);
        self.enable(ring, true);
    }

    fn kick(&mut self, ring: u32) {
        let kick = [self.kick.as_fd().try_clone_to_owned().unwrap()];
        self.done(Request::SET_VRING_KICK, &u64::from(ring).to_ne_bytes(), &kick);
    }

    fn enable(&mut self, ring: u32, enabled: bool) {
        self.done(Request::SET_VRING_ENABLE, &ring_state(ring, u32::from(enabled)), &[]);
    }

    /// Stops a ring and returns its index.
    /// The lower half of where it stands.
    fn stop(&mut self, ring: u32) -> u16 {
        self.stop_at(ring) as u16
    }

    fn stop_at(&mut self, ring: u32) -> u32 {
        (self.ask(Request::GET_VRING_BASE, &ring_state(ring, 0), &[]) >> 32) as u32
    }
}

fn ring_state(ring: u32, number: u32) -> Vec<u8> {
    [ring.to_ne_bytes(), number.to_ne_bytes()].concat()
}

/// Addresses of a ring's three parts, in a page range of its own.
fn ring_address(ring: u32, shift: u64) -> Vec<u8> {
    let at = USER + u64::from(ring) * 0x4000 + shift;
    let mut payload = ring_state(ring, 0);
    for address in [at, at + 0x2000, at + 0x1000, 0] {
        payload.extend(address.to_ne_bytes());
    }
    payload
}

/// Descriptors of this process that are the tests' guest memory.
fn memory_descriptors() -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    links.filter(|link| link.to_string_lossy().contains("ringspan-test")).count()
}
