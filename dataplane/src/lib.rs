//! The packet side of ringspan.
//!
//! A packet's way: guest ring → [`ring`] (descriptors, bounds, header) → relay → [`nic`] (burst) → wire, and back the
//! same way. [`vhost`] brings the rings up and down, the worker runs relays on pinned threads, the port ties one guest NIC
//! together, the lane serves control.

pub mod memory;
pub mod nic;
pub mod ring;
pub mod vhost;

/// Most packets that are moved in one go, in either direction.
pub const BURST: usize = 64;
