//! The vhost-user session: the front-end's messages on one side, ring transitions on the other.
//!
//! A front-end's message comes in by the session's socket, is judged by the gate, served by the vhost-user-backend crate
//! behind it, and what it means for a ring is worked out by its rings and told to a [`RingSink`].

mod backend;
pub(crate) mod features;
mod gate;
mod message;
mod session;
mod socket;
#[cfg(test)]
mod tests;
mod vring;
mod wire;

use std::os::fd::OwnedFd;
use std::sync::Arc;

pub use features::{feature_names, offered};
pub use session::{Session, SessionConfig, SessionError};
pub use socket::SocketError;

use crate::memory::{DirtyLog, GuestMap};
use crate::ring::{RingConfig, RingLog};

/// Who is told of a session's transitions. Called from the session's threads, one call at a time.
///
/// For each connection: `can_log`, `negotiated` and `memory` before the first `start`; at its end a `stop` for each ring that runs,
/// then `memory` with an empty map. Each call returns only when the workers have taken the change over: afterwards
/// nothing of what was taken away (a ring, a memory map) is touched any more.
pub trait RingSink: Send + Sync + 'static {
    /// Feature bits beyond which the next connection is offered nothing.
    fn allowed(&self) -> u64 {
        u64::MAX
    }

    /// SET_FEATURES: the virtio feature bits that the guest accepted, when they are not what they were. No ring runs
    /// meanwhile.
    fn negotiated(&self, features: u64);

    /// Guest memory was replaced; rings that run go on in the new map at the same guest addresses.
    fn memory(&self, map: Arc<GuestMap>);

    /// A ring is started and enabled; the guest is to be interrupted once, as with [`RingSink::call`]. Rings 2n are filled by us (the guest receives), rings 2n+1 are drained.
    fn start(&self, index: usize, config: RingConfig);

    /// A ring is stopped or disabled. Returns the next available index, which equals the used index: nothing is in flight.
    /// `None` when it was not running.
    fn stop(&self, index: usize) -> Option<u16>;

    /// A ring that runs interrupts the guest by another descriptor from here on, or not at all. The guest is to be
    /// interrupted once: it may have been given buffers without having been told. (QEMU sends SET_VRING_CALL after the
    /// ring has started, and again whenever the guest masks its interrupt.)
    fn call(&self, index: usize, call: Option<Arc<OwnedFd>>);

    /// Whether the front-end can migrate its guest: it took LOG_SHMFD. Said when protocol features are negotiated.
    fn can_log(&self, taken: bool);

    /// A migration begins: what is written to guest memory is to be noted here from now on, by each ring that [`RingSink::log`] or
    /// [`RingConfig::log`] tells so. Or, with `None`, it is over: no ring that goes on does so any more.
    fn logging(&self, log: Option<&Arc<DirtyLog>>);

    /// A ring that runs notes what it writes elsewhere, or no more.
    fn log(&self, index: usize, log: Option<RingLog>);

    /// A ring's position was told to the front-end (GET_VRING_BASE), which names the next one: what outlives the process is older.
    fn told(&self, index: usize);

    /// SEND_RARP: the guest with this address has arrived here by a migration and cannot say so itself. The error is why nothing is sent for it.
    fn announce(&self, mac: [u8; 6]) -> Result<(), String>;

    /// The connection's life: PortListening, FrontendConnected, HandshakeFailed, FrontendDisconnected. What concerns rings
    /// (DriverReady, DriverStopped, RingBroken) the sink says itself. All rings were stopped before the connection ends.
    fn event(&self, event: ringspan_protocol::LaneEventKind);
}
