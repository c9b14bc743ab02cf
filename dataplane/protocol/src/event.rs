//! What happens in a lane without having been asked for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ModeStatus, PortName};

/// An event of a lane. Numbers start at 1 with each start of the lane and have no holes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LaneEvent {
    /// Number within the lane's life.
    pub sequence: u64,
    /// Milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The port it is about.
    pub port: PortName,
    /// What happened.
    #[serde(flatten)]
    pub kind: LaneEventKind,
}

/// What happened to a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum LaneEventKind {
    /// The socket listens (server role).
    PortListening,
    /// A front-end connected (server role), or was connected to (client role).
    FrontendConnected {
        /// Its process id where the kernel says it, else 0.
        pid: i32,
    },
    /// The front-end and ringspan could not agree; the connection was ended.
    HandshakeFailed {
        /// The message at which it ended, and why.
        reason: String,
    },
    /// The guest's driver started its first ring.
    DriverReady {
        /// Negotiated virtio feature bits.
        features: u64,
        /// Queue pairs with both rings started and enabled.
        pairs: u16,
    },
    /// The guest's driver stopped its last ring.
    DriverStopped,
    /// The front-end is gone.
    FrontendDisconnected {
        /// How the connection ended.
        reason: String,
    },
    /// The guest broke its own ring: the port is stopped until the guest resets the device.
    RingBroken {
        /// Index of the ring: 2n receives, 2n+1 transmits.
        ring: u16,
        /// What the guest did.
        reason: String,
    },
    /// The front-end began to migrate its guest from here: pages that the port writes are logged from now on.
    MigrationStarted,
    /// It does so no longer; nothing is logged any more.
    MigrationEnded {
        /// Pages that were logged, each counted again when the front-end had taken its mark.
        pages: u64,
        /// The guest had stopped its rings by then: it has gone elsewhere, most likely. Otherwise it goes on here, and the migration
        /// was cancelled or failed.
        left: bool,
    },
    /// The device's link changed.
    LinkChanged {
        /// Whether it is up now.
        up: bool,
    },
    /// A part of the port has another worker, because its old one had too much to do.
    ShareMoved {
        /// The guest's queue pairs in it.
        pairs: Vec<u16>,
        /// Core of the old worker.
        from: u16,
        /// Core of the new one.
        to: u16,
    },
    /// The device is gone from the bus; of a vDPA device also that the port cannot take it at the moment (`mode-changed` says why).
    DeviceRemoved,
    /// A vDPA device that was gone is back: the port has it, or would but for what its guest asks of it (`mode-changed` says which).
    DeviceReturned,
    /// Somebody else moves the port's packets.
    ModeChanged {
        /// Who.
        mode: ModeStatus,
        /// Why it is not the device, when it might be.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// How long nobody moved packets, in microseconds; 0 when no ring ran.
        pause_us: u64,
    },
}
