//! Any bytes as all that a front-end says to a session on its socket, descriptors included: no panic, rings start and stop as they are promised to,
//! none runs when the connection has ended, and its memory is let go of.
//!
//! The session is a real one with its threads, so that this is slow: a few hundred connections a second.
#![no_main]

use std::collections::BTreeSet;
use std::io::{IoSlice, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, Weak};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use ringspan_fuzz::Bytes;
use ringspan_fuzz::memory::{DirtyLog, GuestMap};
use ringspan_fuzz::message::{HEADER_SIZE, Header, MAX_RINGS, Request, Shape};
use ringspan_fuzz::ring::{Ring, RingConfig, RingLog};
use ringspan_fuzz::vhost::{RingSink, Session, SessionConfig};
use ringspan_protocol::{Compat, LaneEventKind, Role};

const MEMORY: u64 = 1 << 20;
/// Where the front-end says that its memory is.
const USER: u64 = 0x7f00_0000_0000;
/// Longest wait for anything; reached only where something hangs.
const LIMIT: Duration = Duration::from_secs(50);

static SCENE: LazyLock<Mutex<Scene>> = LazyLock::new(|| Mutex::new(Scene::new()));

fuzz_target!(|bytes: &[u8]| SCENE.lock().expect("one at a time").play(Bytes(bytes)));

/// What [`clean`] removes.
static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Called when the process exits, also after its last run; not where a finding ends it.
extern "C" fn clean() {
    if let Some(folder) = FOLDER.get() {
        let _ = std::fs::remove_dir_all(folder);
    }
}

struct Scene {
    recorder: Arc<Recorder>,
    ended: Receiver<()>,
    memory: OwnedFd,
    event: EventFd,
    other: OwnedFd,
    /// Goes at the process's exit: nothing in a static is dropped.
    folder: PathBuf,
    _session: Session,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder").keep();
        // SAFETY: a function without arguments, which takes no lock that somebody else may hold.
        assert_eq!(unsafe { libc::atexit(clean) }, 0);
        FOLDER.set(folder.clone()).expect("one scene");
        let (end, ended) = channel();
        let recorder = Arc::new(Recorder { end: Mutex::new(end), now: Mutex::default() });
        let config = SessionConfig {
            name: "vm1".into(),
            socket: folder.join("port.sock"),
            role: Role::Server,
            owner: None,
            mode: None,
            compat: Compat::V1,
            offloads: true,
            mtu: 1500,
            private_dir: folder.clone(),
        };
        let session = Session::start(config, recorder.clone()).expect("a session");
        let memory = memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).expect("a memfd");
        nix::unistd::ftruncate(&memory, MEMORY as i64).expect("room");
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("an eventfd");
        let other = std::fs::File::open("/dev/null").expect("a file").into();
        Self { recorder, ended, memory, event, other, folder, _session: session }
    }

    fn play(&self, mut bytes: Bytes<'_>) {
        let mut front = UnixStream::connect(self.folder.join("port.sock")).expect("it listens");
        front.set_read_timeout(Some(LIMIT)).expect("a limit");
        front.set_write_timeout(Some(LIMIT)).expect("a limit");
        // A header that lies about its payload makes the next message a part of this one: then nobody knows which answer comes.
        let mut in_step = true;
        while !bytes.is_empty() {
            let (message, fds, wants) = self.message(&mut bytes);
            in_step &= wants.is_some();
            let wants = in_step && wants == Some(true);
            let fds: &[RawFd] = &fds;
            let rights = [ControlMessage::ScmRights(fds)];
            let control = if fds.is_empty() { &rights[..0] } else { &rights };
            let sent =
                sendmsg::<()>(front.as_raw_fd(), &[IoSlice::new(&message)], control, MsgFlags::MSG_NOSIGNAL, None);
            if sent.is_err() || wants && !answer(&mut front) {
                break;
            }
        }
        drop(front);
        self.ended.recv_timeout(LIMIT).expect("the connection ends");
        let now = self.recorder.now.lock().expect("nobody panicked");
        assert!(now.rings.is_empty(), "rings run without a front-end");
        assert!(now.map.as_ref().is_none_or(|map| map.bytes() == 0), "memory without a front-end");
        assert!(now.last.upgrade().is_none(), "memory is still mapped without a front-end");
    }

    /// The next message, its descriptors, and whether it is answered; nothing where it has not the length that it says.
    fn message(&self, bytes: &mut Bytes<'_>) -> (Vec<u8>, Vec<RawFd>, Option<bool>) {
        let code = u32::from(bytes.u8() % 46);
        let (kind, number) = (bytes.u8(), bytes.u8());
        let request = Request::from_code(code);
        let (payload, kinds): (Vec<u8>, Vec<u8>) = match request.and_then(Request::shape) {
            Some(shape) if kind & 0xc0 != 0xc0 => self.payload(request, shape, number, bytes),
            _ => (bytes.take(usize::from(number % 72)).to_vec(), vec![kind & 3; usize::from(kind >> 2 & 3)]),
        };
        let fds = kinds.into_iter().map(|kind| match kind & 3 {
            0 => self.memory.as_raw_fd(),
            1 => self.event.as_raw_fd(),
            _ => self.other.as_raw_fd(),
        });
        let mut header = match request {
            Some(request) => Header::request(request, payload.len()),
            None => Header { code, flags: 1 | u32::from(kind & 8), size: payload.len() as u32 },
        };
        if kind & 0x38 == 0x38 {
            (header.flags, header.size) = (bytes.u8().into(), header.size.wrapping_add(u32::from(bytes.u8())));
        }
        let fits = header.size as usize == payload.len();
        let wants = fits.then(|| header.need_reply() || request.is_some_and(Request::has_reply));
        ([&header.to_bytes()[..], &payload].concat(), fds.collect(), wants)
    }

    /// What the request asks for, or nearly so.
    fn payload(&self, request: Option<Request>, shape: Shape, number: u8, bytes: &mut Bytes<'_>) -> (Vec<u8>, Vec<u8>) {
        let index = u32::from(number & 3) + if number & 0xc0 == 0xc0 { u32::from(number) } else { 0 };
        let state = |number: u32| [index.to_ne_bytes(), number.to_ne_bytes()].concat();
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        let page = |byte: u8| u64::from(byte) * 0x1000;
        let mut region = || {
            let start = page(bytes.u8() & 15);
            let size = match bytes.u8() {
                wild @ 0xf0.. => u64::MAX >> (wild & 15),
                size => page(size & 63),
            };
            let offset = if bytes.u8() & 1 == 0 { 0 } else { start };
            [start, size, USER + start, offset]
        };
        match shape {
            Shape::Empty => (vec![], vec![]),
            Shape::Word => {
                let word = match request {
                    Some(Request::SET_FEATURES) if number & 1 == 0 => {
                        let offered = ringspan_fuzz::vhost::offered(Compat::V1, true);
                        let not = u64::from(bytes.u16());
                        offered & !((not & 0xff) << 26 | (not >> 8) << 34)
                    }
                    Some(Request::SET_PROTOCOL_FEATURES) if number & 1 == 0 => 0x801f,
                    _ => bytes.u64(),
                };
                (words(&[word]), vec![])
            }
            Shape::RingState => match request {
                Some(Request::SET_VRING_NUM) => (state(1 << (bytes.u8() % 17)), vec![]),
                Some(Request::SET_VRING_ENABLE) => (state(u32::from(bytes.u8() % 3)), vec![]),
                _ => (state(bytes.u32()), vec![]),
            },
            Shape::RingAddress => {
                let at = USER + page(bytes.u8());
                let log = bytes.u8();
                let mut payload = state(u32::from(log & 1));
                payload.extend(words(&[at, at + 0x2000, at + 0x1000 * u64::from(log >> 5), page(log)]));
                (payload, vec![])
            }
            Shape::RingFd => {
                let none = number & 0x30 == 0x30;
                let word = u64::from(index) | if none { 1 << 8 } else { 0 };
                (words(&[word]), if none { vec![] } else { vec![1] })
            }
            Shape::Log => (words(&[page(bytes.u8() & 15) >> 4, u64::from(bytes.u8() & 8)]), vec![0]),
            Shape::Descriptor => (vec![], vec![1]),
            Shape::MemoryTable => {
                let count = u64::from(number % 5);
                let mut table = words(&[count]);
                (0..count).for_each(|_| table.extend(words(&region())));
                (table, vec![0; count as usize])
            }
            Shape::MemoryRegion { fd } => {
                let mut payload = words(&[0]);
                payload.extend(words(&region()));
                (payload, if fd { vec![0] } else { vec![] })
            }
        }
    }
}

/// Reads an answer; false where the connection has ended.
fn answer(front: &mut UnixStream) -> bool {
    let mut head = [0; HEADER_SIZE];
    if front.read_exact(&mut head).is_err() {
        return false;
    }
    let header = Header::parse(&head);
    assert!(header.is_reply() && header.size <= 64, "{header:?}");
    front.read_exact(&mut vec![0; header.size as usize]).is_ok()
}

/// What there is now.
#[derive(Default)]
struct Now {
    map: Option<Arc<GuestMap>>,
    /// The last one with memory in it.
    last: Weak<GuestMap>,
    rings: BTreeSet<usize>,
}

/// Holds the session to what it promises of its calls.
struct Recorder {
    end: Mutex<Sender<()>>,
    now: Mutex<Now>,
}

impl RingSink for Recorder {
    fn negotiated(&self, _: u64) {
        assert!(self.now.lock().expect("sound").rings.is_empty(), "features change under rings that run");
    }

    fn memory(&self, map: Arc<GuestMap>) {
        let mut now = self.now.lock().expect("sound");
        if map.bytes() > 0 {
            now.last = Arc::downgrade(&map);
        }
        now.map = Some(map);
    }

    fn start(&self, index: usize, config: RingConfig) {
        let mut now = self.now.lock().expect("sound");
        assert!(index < MAX_RINGS && now.rings.insert(index), "ring {index} runs already");
        let map = now.map.clone().expect("memory comes first");
        // What is no ring is refused by itself.
        if let Ok(ring) = Ring::new(map, &config) {
            ring.pending();
        }
    }

    fn stop(&self, index: usize) -> Option<u16> {
        assert!(self.now.lock().expect("sound").rings.remove(&index), "ring {index} does not run");
        Some(0)
    }

    fn call(&self, index: usize, _: Option<Arc<OwnedFd>>) {
        assert!(self.now.lock().expect("sound").rings.contains(&index), "ring {index} does not run");
    }

    fn can_log(&self, _: bool) {}

    fn logging(&self, _: Option<&Arc<DirtyLog>>) {}

    fn log(&self, index: usize, _: Option<RingLog>) {
        assert!(self.now.lock().expect("sound").rings.contains(&index), "ring {index} does not run");
    }

    fn told(&self, _: usize) {}

    fn announce(&self, mac: [u8; 6]) -> Result<(), String> {
        if mac[5] == 0xff { Err("nobody sends it".into()) } else { Ok(()) }
    }

    fn event(&self, event: LaneEventKind) {
        if matches!(event, LaneEventKind::HandshakeFailed { .. } | LaneEventKind::FrontendDisconnected { .. }) {
            let _ = self.end.lock().expect("sound").send(());
        }
    }
}
