//! What ringspan's control side and its lanes say to each other, and the names and addresses that both use.
//!
//! Nothing here knows of DPDK, of sysfs or of the control socket's JSON-RPC: the crate is the one narrow
//! place where the two kinds of process meet. See [`message`] for the conversation itself.

pub mod address;
pub mod event;
pub mod message;
pub mod meter;
pub mod name;
pub mod nic;
pub mod port;
pub mod rte;
pub mod rule;
pub mod stats;
pub mod vf;

pub use address::{DeviceSpec, MacAddress, PatchEnd, PciAddress};
pub use event::{LaneEvent, LaneEventKind};
pub use message::{Envelope, Failure, FailureKind, Reply, Request, VERSION};
pub use message::{LaneInfo, LaneLoad, PortChange, WorkerLoad};
pub use meter::{MeterSpec, MeterUnit};
pub use name::{LaneName, NicName, PortName};
pub use nic::{
    Capabilities, EngineKind, NicMode, NicOffload, NicPort, NicPortCounters, NicPortStatus, NicSpec, NicStatus, PciNic,
};
pub use port::{
    Compat, DeviceStatus, MigrationStatus, Mode, ModeStatus, NodeStatus, OffloadBy, OffloadStatus, Policy,
    PolicyStatus, PortPhase, PortSpec, PortStatus, ReceiveWake, Role, ShareStatus, Spread, ZeroCopy, ZeroCopyStatus,
};
pub use port::{MAX_QUEUE_PAIRS, MAX_RATE, MAX_RING_SIZE, MTU_RANGE};
pub use rule::{
    Action, Field, FieldMatch, Match, Rule, RuleCounters, RuleError, RuleId, RuleResult, TunnelKind, TunnelPush,
};
pub use stats::{Drops, PortCounters, QueueCounters};
pub use vf::{VfChange, VfLink, VfSettings};
