//! The sources of ringspan that read what strangers wrote, compiled alone: without DPDK, and without most of the daemon, so that a
//! target is built in a minute or two with the instructions that tell the fuzzer where it has been.
//!
//! They are the files of the data plane and of control themselves, by their paths. The folders are laid out here as they are there,
//! so that `crate::ring` and its like mean the same; what is private there, and a target wants, gets its own place at the end.

#![allow(dead_code, reason = "each target uses a part")]

mod bytes;
pub mod guest;

pub use bytes::Bytes;

#[path = "../../dataplane/src/memory/mod.rs"]
pub mod memory;
#[path = "../../dataplane/src/offload/mod.rs"]
pub mod offload;
#[path = "../../dataplane/src/ring/mod.rs"]
pub mod ring;
#[path = "../../dataplane/src/vhost/mod.rs"]
pub mod vhost;

/// As the data plane has them.
pub const BURST: usize = 64;
/// As the data plane has them.
pub const SHORT: usize = 128;

/// The software NIC, without what needs packet buffers.
#[path = "../../dataplane/src/eswitch"]
pub mod eswitch {
    pub mod actions;
    mod cache;
    pub mod checksum;
    pub mod classifier;
    pub mod key;
}

/// vhost-user messages, which are private to the session.
#[path = "../../dataplane/src/vhost/message.rs"]
pub mod message;

pub mod ovs_stream;
pub mod walk;
