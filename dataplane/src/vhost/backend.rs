//! The vhost-user-backend crate behind a private socket, one daemon for each connection.
//!
//! The gate talks to it in lockstep: one request, one answer. Requests without an answer of their own ask for an
//! acknowledgement, so that at any time it is known which message the crate is at, and why it gave up.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::poll::PollFlags;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::RingSink;
use super::features::F_PROTOCOL_FEATURES;
use super::message::{HEADER_SIZE, Header, MAX_PAYLOAD, MAX_RINGS, PROTOCOL_F_REPLY_ACK, Request, read_u64};
use super::vring::{Rings, Vring, with_rings};
use super::wire::{Stop, receive, send, wait_any};
use crate::memory::GuestMap;

/// What the crate calls.
struct Backend {
    rings: Arc<Rings>,
    sink: Arc<dyn RingSink>,
    mapped: AtomicBool,
    offered: u64,
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        MAX_RINGS
    }

    fn max_queue_size(&self) -> usize {
        usize::from(ringspan_protocol::MAX_RING_SIZE)
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn acked_features(&self, features: u64) {
        self.rings.negotiated(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        // The gate answers the front-end; this is what the crate itself must be willing to do.
        VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn queues_per_thread(&self) -> Vec<u64> {
        // No epoll workers: kicks are the relay's.
        Vec::new()
    }

    fn update_memory(&self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        let memory: Arc<GuestMemoryMmap> = memory.memory().into_inner();
        self.mapped.store(true, Ordering::Relaxed);
        self.sink.memory(GuestMap::new(&memory));
        Ok(())
    }

    fn handle_event(&self, _event: u16, _set: EventSet, _rings: &[Vring], _thread: usize) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
}

/// Why the crate has no answer.
#[derive(Debug)]
pub enum Refusal {
    /// It gave up; the text is its reason.
    Failed(String),
    /// The session is told to stop.
    Stopped,
}

/// A daemon of the crate and our end of its socket.
pub struct Daemon {
    daemon: VhostUserDaemon<Arc<Backend>>,
    socket: UnixStream,
    rings: Arc<Rings>,
    backend: Arc<Backend>,
    ended: bool,
}

impl Daemon {
    /// Starts a daemon that offers these features; its rings report to `rings`.
    ///
    /// # Errors
    /// What could not be done, for a person.
    pub fn start(
        name: &str,
        private: &Path,
        offered: u64,
        rings: Arc<Rings>,
        sink: Arc<dyn RingSink>,
        stop: &Stop,
    ) -> Result<Self, Refusal> {
        let backend = Arc::new(Backend { rings: rings.clone(), sink, mapped: AtomicBool::new(false), offered });
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let failed = |what: &str, error: &dyn std::fmt::Display| Refusal::Failed(format!("cannot {what}: {error}"));
        let mut daemon = with_rings(&rings, || VhostUserDaemon::new(name.to_owned(), backend.clone(), memory))
            .map_err(|error| failed("make a vhost-user daemon", &error))?;
        let (listener, socket) =
            private_pair(private, name).map_err(|error| failed("make a private socket", &error))?;
        // The connection waits in the queue already, so that this accept returns at once.
        daemon.start(&mut Listener::from(listener)).map_err(|error| failed("start a vhost-user daemon", &error))?;
        let mut started = Self { daemon, socket, rings, backend, ended: false };
        // The crate acknowledges only once it has seen both of these, whatever the front-end will say.
        started.call(Request::GET_FEATURES, &[], &[], stop)?;
        let wanted = PROTOCOL_F_REPLY_ACK | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS.bits();
        started.call(Request::SET_PROTOCOL_FEATURES, &wanted.to_ne_bytes(), &[], stop)?;
        Ok(started)
    }

    /// Has the crate serve a request, and returns the payload of its answer.
    ///
    /// # Errors
    /// [`Refusal`]; afterwards the daemon is of no use.
    pub fn call(&mut self, request: Request, payload: &[u8], fds: &[OwnedFd], stop: &Stop) -> Result<Vec<u8>, Refusal> {
        let header = Header::request(request, payload.len());
        let message = [&header.to_bytes()[..], payload].concat();
        // A few kilobytes at most into an empty socket: they fit.
        match send(self.socket.as_fd(), &message, fds) {
            Ok(sent) if sent == message.len() => {}
            Ok(_) => return Err(Refusal::Failed("the private socket is full".into())),
            Err(_) => return Err(self.gave_up()),
        }
        let answer = Header::parse(&self.read::<HEADER_SIZE>(stop)?);
        let size = answer.size as usize;
        if answer.code != request as u32 || !answer.is_reply() || size > MAX_PAYLOAD {
            return Err(Refusal::Failed(format!("the vhost-user daemon answered with {answer} ({size} bytes)")));
        }
        let mut payload = vec![0; size];
        self.fill(&mut payload, stop)?;
        if let Some(fault) = self.rings.take_fault() {
            return Err(Refusal::Failed(fault));
        }
        if !request.has_reply() && read_u64(&payload, 0) != 0 {
            return Err(self.gave_up());
        }
        Ok(payload)
    }

    fn read<const N: usize>(&mut self, stop: &Stop) -> Result<[u8; N], Refusal> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, stop)?;
        Ok(bytes)
    }

    fn fill(&mut self, mut buffer: &mut [u8], stop: &Stop) -> Result<(), Refusal> {
        while !buffer.is_empty() {
            let wanted = [(self.socket.as_fd(), PollFlags::POLLIN), (stop.as_fd(), PollFlags::POLLIN)];
            let ready = wait_any(wanted, None).map_err(|error| Refusal::Failed(format!("cannot wait: {error}")))?;
            if !ready[1].is_empty() {
                return Err(Refusal::Stopped);
            }
            match receive(self.socket.as_fd(), buffer) {
                Ok(received) if received.bytes == 0 => return Err(self.gave_up()),
                Ok(received) => buffer = &mut buffer[received.bytes..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(self.gave_up()),
            }
        }
        Ok(())
    }

    /// The crate ended the connection: asks its thread why.
    fn gave_up(&mut self) -> Refusal {
        self.ended = true;
        let reason = match self.daemon.wait() {
            Ok(()) => "the vhost-user daemon ended".to_owned(),
            // The crate's own words before the cause say nothing more.
            Err(vhost_user_backend::Error::HandleRequest(vhost::vhost_user::Error::ReqHandlerError(cause))) => {
                cause.to_string()
            }
            Err(vhost_user_backend::Error::HandleRequest(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        Refusal::Failed(self.rings.take_fault().unwrap_or(reason))
    }
}

impl Drop for Daemon {
    /// Ends the daemon's thread, then stops all rings and lets go of guest memory.
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        if !self.ended {
            // Its error is the shutdown that was just made.
            let _ = self.daemon.wait();
        }
        self.rings.close();
        if self.backend.mapped.load(Ordering::Relaxed) {
            self.backend.sink.memory(GuestMap::new(&Arc::new(GuestMemoryMmap::new())));
        }
    }
}

/// A listener with one connection in its queue, and that connection. The crate takes no connected sockets.
fn private_pair(folder: &Path, name: &str) -> io::Result<(UnixListener, UnixStream)> {
    // Through a descriptor of the folder the address stays short, however long the folder's path is.
    let folder = fs::File::open(folder)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{name}.private", folder.as_raw_fd()));
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    let stream = UnixStream::connect(&path);
    fs::remove_file(&path)?;
    Ok((listener, stream?))
}

const _: () = assert!(F_PROTOCOL_FEATURES == 1 << 30, "the crate acknowledges only when this bit is offered");
