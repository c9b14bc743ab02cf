//! A port's vhost-user session: its socket, and one front-end after the other.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::poll::PollFlags;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use ringspan_protocol::{Compat, Failure, FailureKind, LaneEventKind, Role};

use super::RingSink;
use super::backend::{Daemon, Refusal};
use super::features::offered;
use super::gate::{End, Gate, Offer, Talk};
use super::socket::{ServerSocket, SocketError, check_path, connect_to};
use super::vring::Rings;
use super::wire::{Stop, wait_any};

/// First and longest pause between two attempts to connect.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// How long [`Session::stop`] waits for a worker to let go of the rings.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// What a session is made of.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The port's name; threads are named after it.
    pub name: String,
    /// Path of the socket, 107 bytes at most.
    pub socket: PathBuf,
    /// Which side listens.
    pub role: Role,
    /// Owner of a listening socket: user and group.
    pub owner: Option<(u32, u32)>,
    /// Permission bits of a listening socket; 0o660 when absent.
    pub mode: Option<u32>,
    /// The set of features that is offered.
    pub compat: Compat,
    /// Whether checksums and segments are offered.
    pub offloads: bool,
    /// Largest MTU that a front-end may give its guest, in bytes.
    pub mtu: u16,
    /// A folder that only this user can enter (0700); short-lived sockets of the name `NAME.private` are made there.
    pub private_dir: PathBuf,
}

/// Why a session cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Its socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The system refuses a thread or a descriptor.
    #[error("cannot start the session {name}: {source}")]
    System {
        /// The session's name.
        name: String,
        /// What the operating system said.
        source: io::Error,
    },
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Socket(error) => error.into(),
            SessionError::System { ref source, .. } => {
                Failure { errno: source.raw_os_error(), ..Failure::new(FailureKind::NoRoom, error.to_string()) }
            }
        }
    }
}

struct Shared {
    config: SessionConfig,
    sink: Arc<dyn RingSink>,
    server: Option<ServerSocket>,
    stop: Stop,
    offer: Mutex<Offer>,
}

/// A running session. Dropping it stops it.
pub struct Session {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
    ended: Receiver<()>,
}

impl Session {
    /// Starts a session: binds its socket (server role) and serves front-ends on a thread of its own.
    ///
    /// # Errors
    /// See [`SessionError`]; then nothing is left behind. That a front-end's socket is not there yet (client role) is
    /// no error.
    pub fn start(config: SessionConfig, sink: Arc<dyn RingSink>) -> Result<Self, SessionError> {
        let system = |source: io::Error| SessionError::System { name: config.name.clone(), source };
        let stop = Stop::new().map_err(system)?;
        let server = match config.role {
            Role::Server => Some(ServerSocket::bind(&config.socket, config.owner, config.mode)?),
            Role::Client => {
                check_path(&config.socket)?;
                None
            }
        };
        let offer = Offer { features: offered(config.compat, config.offloads), mtu: config.mtu };
        let thread_name = format!("vhost-{}", config.name);
        let error_name = config.name.clone();
        let shared = Arc::new(Shared { config, sink, server, stop, offer: Mutex::new(offer) });
        let (end, ended) = channel();
        let ours = shared.clone();
        let thread = thread::Builder::new()
            .name(thread_name)
            .spawn(move || {
                ours.serve();
                drop(ours);
                drop(end);
            })
            .map_err(|source| SessionError::System { name: error_name, source })?;
        Ok(Self { shared, thread: Some(thread), ended })
    }

    /// Changes what the next connection is offered. The present one keeps what it has.
    pub fn set_offer(&self, compat: Compat, offloads: bool, mtu: u16) {
        *lock(&self.shared.offer) = Offer { features: offered(compat, offloads), mtu };
    }

    /// Stops the rings, ends the connection, removes the socket. Returns when that is done, or after five seconds: a
    /// worker that does not let go of a ring is left to the session's thread, and to the log.
    pub fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if let Some(server) = &self.shared.server {
            server.remove();
        }
        self.shared.stop.raise();
        match self.ended.recv_timeout(STOP_LIMIT) {
            Err(RecvTimeoutError::Timeout) => {
                tracing::error!(session = self.shared.config.name, "a worker does not let go of this session's rings");
            }
            _ => {
                if thread.join().is_err() {
                    tracing::error!(session = self.shared.config.name, "the session's thread panicked");
                }
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn serve(&self) {
        if self.server.is_some() {
            self.sink.event(LaneEventKind::PortListening);
        }
        let mut pause = RETRY.0;
        loop {
            let front = match &self.server {
                Some(server) => self.accept(server),
                None => self.connect(&mut pause),
            };
            let Some(front) = front else { return };
            let pid = getsockopt(&front, PeerCredentials).map_or(0, |peer| peer.pid());
            self.sink.event(LaneEventKind::FrontendConnected { pid });
            let (end, served) = self.attend(&front);
            drop(front);
            match end {
                End::Closed(reason) => {
                    if served > 0 {
                        pause = RETRY.0;
                    }
                    self.sink.event(LaneEventKind::FrontendDisconnected { reason });
                }
                End::Failed(reason) => self.sink.event(LaneEventKind::HandshakeFailed { reason }),
                End::Stopped => {
                    self.sink.event(LaneEventKind::FrontendDisconnected { reason: "the session was stopped".into() });
                    return;
                }
            }
            // A front-end that ends every connection must not be called without a pause.
            if self.server.is_none() && self.pause(&mut pause) {
                return;
            }
        }
    }

    /// Serves one connection to its end. When this returns its rings are stopped and its memory is let go of.
    fn attend(&self, front: &UnixStream) -> (End, u64) {
        let offer = *lock(&self.offer);
        let offer = Offer { features: offer.features & self.sink.allowed(), ..offer };
        let rings = Arc::new(Rings::new(self.sink.clone()));
        let daemon = Daemon::start(
            &self.config.name,
            &self.config.private_dir,
            offer.features,
            rings.clone(),
            self.sink.clone(),
            &self.stop,
        );
        let daemon = match daemon {
            Ok(daemon) => daemon,
            Err(Refusal::Failed(why)) => return (End::Failed(why), 0),
            Err(Refusal::Stopped) => return (End::Stopped, 0),
        };
        let gate =
            Gate { front, server: self.server.as_ref(), stop: &self.stop, daemon, rings, offer, talk: Talk::default() };
        gate.run()
    }

    /// Waits for a front-end; `None` to stop.
    fn accept(&self, server: &ServerSocket) -> Option<UnixStream> {
        loop {
            let wanted = [(self.stop.as_fd(), PollFlags::POLLIN), (server.as_fd(), PollFlags::POLLIN)];
            let ready = wait_any(wanted, None);
            if self.stop.is_raised() {
                return None;
            }
            match ready.and_then(|_| server.accept()) {
                Ok(Some(front)) => return Some(front),
                Ok(None) => {}
                Err(error) => {
                    // Too many open files, most likely: the front-end stays in the queue until there is room.
                    tracing::warn!(session = self.config.name, "cannot accept a front-end: {error}");
                    if self.stop.wait(RETRY.1) {
                        return None;
                    }
                }
            }
        }
    }

    /// Connects to the front-end, for as long as it takes; `None` to stop.
    fn connect(&self, pause: &mut Duration) -> Option<UnixStream> {
        loop {
            if self.stop.is_raised() {
                return None;
            }
            match connect_to(&self.config.socket) {
                Ok(front) => return Some(front),
                Err(error) => tracing::debug!(session = self.config.name, "{error}"),
            }
            if self.pause(pause) {
                return None;
            }
        }
    }

    /// Waits for a while, longer each time. Returns whether to stop.
    fn pause(&self, pause: &mut Duration) -> bool {
        let now = *pause;
        *pause = (now * 2).min(RETRY.1);
        self.stop.wait(now)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
