//! The packet side of ringspan.
//!
//! A packet's way: guest ring → [`ring`] (descriptors, bounds, header) → [`relay`] → [`nic`] (burst) → wire, and back the
//! same way. [`vhost`] brings the rings up and down, [`worker`] runs relays on pinned threads, [`port`] ties one guest NIC
//! together, [`lane`] serves control.

pub mod eswitch;
pub mod events;
pub mod flow;
pub mod journal;
pub mod lane;
pub mod memory;
pub mod nic;
pub mod offload;
pub mod port;
pub mod relay;
pub mod ring;
pub mod stats;
pub mod vdpa;
pub mod vhost;
pub mod worker;

/// Most packets that are moved in one go, in either direction.
pub const BURST: usize = 64;

/// Longest frame in bytes that is short: one that is copied without a call, and for which each packet buffer has room.
pub const SHORT: usize = 128;
