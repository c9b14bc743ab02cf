//! The conversation between control and a lane: one JSON object a line, over the lane's own unix socket.
//!
//! Control sends [`Envelope`]s with a [`Request`], the lane answers each with one of the same id that has a [`Reply`] or
//! a [`Failure`]. The first request must be [`Request::Hello`]. Requests are answered in order. A lane never sends anything
//! unasked: control asks for events with [`Request::Events`], which waits a while for the next one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Compat, LaneEvent, LaneName, MacAddress, Mode, Policy, PortCounters, PortName, PortSpec, PortStatus};
use crate::{MeterSpec, NicName, NicSpec, NicStatus, Rule, RuleCounters, RuleId, RuleResult, VfSettings};

/// Version of this conversation. A lane of another version can be told to shut down, and nothing else.
pub const VERSION: u32 = 1;

/// Longest line in bytes that either side accepts.
pub const MAX_LINE: usize = 4 << 20;

/// Most rules in one request or answer, so that a line has room for them.
pub const MAX_RULES: usize = 2048;

/// One line, in either direction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// Chosen by control; the answer has the same.
    pub id: u64,
    /// The request or the answer.
    #[serde(flatten)]
    pub body: T,
}

/// What control asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", content = "with", rename_all = "kebab-case")]
pub enum Request {
    /// First on every connection.
    Hello {
        /// [`VERSION`] of the asking side.
        version: u32,
    },
    /// Makes a port. A port of the same name with an equal spec is a success; with another spec it is refused.
    PortAdd(Box<PortSpec>),
    /// Removes a port, its socket and its device.
    PortRemove {
        /// Which.
        name: PortName,
        /// Forget its counters too. Without it they go on when a port of that name is made again.
        forget: bool,
    },
    /// Changes a port while it runs; what is absent stays.
    PortSet {
        /// Which.
        name: PortName,
        /// What changes.
        change: PortChange,
    },
    /// All ports.
    PortList,
    /// The counters of one port, or of all.
    PortStats {
        /// Which; all when absent.
        name: Option<PortName>,
        /// With the device's extended statistics.
        extended: bool,
    },
    /// Events after `after`; waits up to `wait_ms` when there are none yet.
    Events {
        /// Number of the last event known; 0 for all that are kept.
        after: u64,
        /// Longest wait in milliseconds, at most 10,000.
        wait_ms: u32,
    },
    /// Makes a software NIC: its VFs, its representors, its uplinks. One of the same name with an equal spec is a success; with
    /// another spec it is refused.
    NicAdd(Box<NicSpec>),
    /// Removes a software NIC of which no port has a VF. Its representors stay unless they are to go, too.
    NicRemove {
        /// Which.
        name: NicName,
        /// Remove the representors' network interfaces from the host.
        representors: bool,
    },
    /// All software NICs, with their ports and counters.
    NicList,
    /// Gives a VF of a NIC in legacy mode these settings, while frames flow.
    NicSetVf {
        /// The NIC.
        name: NicName,
        /// All of the VF's settings.
        settings: VfSettings,
    },
    /// How often a rule in use sends a frame to its representor, where nothing else is said every 4 s.
    NicRefresh {
        /// The NIC.
        nic: NicName,
        /// Milliseconds, 100 to 4000.
        ms: u32,
    },
    /// Makes meters of a NIC, or gives them other limits, while frames flow. At most [`MAX_RULES`].
    MeterSet {
        /// The NIC.
        nic: NicName,
        /// The meters.
        meters: Vec<MeterSpec>,
    },
    /// Removes meters that no rule uses; one that is not there is a success. At most [`MAX_RULES`].
    MeterRemove {
        /// The NIC.
        nic: NicName,
        /// Which.
        ids: Vec<u32>,
    },
    /// Installs rules, or replaces those of the same ids; each by itself. At most [`MAX_RULES`].
    RuleInstall {
        /// The NIC.
        nic: NicName,
        /// The rules.
        rules: Vec<Rule>,
    },
    /// Says of rules what [`Request::RuleInstall`] would, and installs none. At most [`MAX_RULES`].
    RuleValidate {
        /// The NIC.
        nic: NicName,
        /// The rules.
        rules: Vec<Rule>,
    },
    /// Removes rules; one that is not there is a success. At most [`MAX_RULES`].
    RuleRemove {
        /// The NIC.
        nic: NicName,
        /// Which.
        ids: Vec<RuleId>,
    },
    /// The counters of rules, in the order of their ids.
    RuleCounters {
        /// The NIC.
        nic: NicName,
        /// Only of rules whose ids are greater: the last id of the answer before.
        #[serde(default)]
        after: Option<RuleId>,
        /// At most so many, and at most [`MAX_RULES`].
        limit: u32,
    },
    /// The rules themselves, in the order of their ids.
    RuleList {
        /// The NIC.
        nic: NicName,
        /// Only of rules whose ids are greater.
        #[serde(default)]
        after: Option<RuleId>,
        /// At most so many, and at most [`MAX_RULES`].
        limit: u32,
    },
    /// How busy the workers are.
    LaneLoad,
    /// Ends the lane: ports are removed in order, rings left consistent. Answered before it happens.
    Shutdown,
}

/// What may be changed on a running port.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortChange {
    /// The MTU in bytes, 68 to 9216. The device stops for a moment; the guest sees it at its next reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// The device's MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// The promiscuous policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promiscuous: Option<Policy>,
    /// The allmulti policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allmulti: Option<Policy>,
    /// The set of virtio features; seen by the guest at its next connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compat: Option<Compat>,
    /// Most in each direction, in Mbit/s; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rate: Option<u32>,
    /// Who moves the packets, where the device is a vDPA device. Rings that run change hands, and packets wait for as long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

impl PortChange {
    /// The spec as it is after this change.
    pub fn apply(&self, spec: &PortSpec) -> PortSpec {
        PortSpec {
            mtu: self.mtu.unwrap_or(spec.mtu),
            mac: self.mac.or(spec.mac),
            promiscuous: self.promiscuous.unwrap_or(spec.promiscuous),
            allmulti: self.allmulti.unwrap_or(spec.allmulti),
            compat: self.compat.unwrap_or(spec.compat),
            max_rate: self.max_rate.unwrap_or(spec.max_rate),
            mode: self.mode.unwrap_or(spec.mode),
            ..spec.clone()
        }
    }
}

/// What a lane answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", content = "with", rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Request::Hello`].
    Hello(LaneInfo),
    /// To [`Request::PortAdd`] and [`Request::PortSet`].
    Port(Box<PortStatus>),
    /// To [`Request::PortRemove`], [`Request::Shutdown`], [`Request::NicRefresh`] and requests about meters.
    Done,
    /// To [`Request::PortList`], sorted by name.
    Ports(Vec<PortStatus>),
    /// To [`Request::PortStats`], sorted by name.
    Stats(Vec<(PortName, PortCounters)>),
    /// To [`Request::Events`]. When the first number is not `after + 1`, those between were lost.
    Events(Vec<LaneEvent>),
    /// To [`Request::NicAdd`] and [`Request::NicSetVf`].
    Nic(Box<NicStatus>),
    /// To [`Request::NicList`], sorted by name.
    Nics(Vec<NicStatus>),
    /// To [`Request::RuleInstall`], [`Request::RuleValidate`] and [`Request::RuleRemove`], in the request's order.
    RuleResults(Vec<RuleResult>),
    /// To [`Request::RuleCounters`]. Fewer than the limit: there are no more.
    RuleCounters(Vec<RuleCounters>),
    /// To [`Request::RuleList`]. Fewer than the limit: there are no more.
    Rules(Vec<Rule>),
    /// To [`Request::LaneLoad`].
    Load(LaneLoad),
    /// Refused; nothing was changed.
    Failed(Failure),
}

/// What a lane says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LaneInfo {
    /// Its name.
    pub name: LaneName,
    /// [`VERSION`] that it speaks.
    pub protocol: u32,
    /// Version of the program.
    pub version: String,
    /// DPDK's version text.
    pub dpdk: String,
    /// Process id.
    pub pid: u32,
    /// Milliseconds since the Unix epoch at its start; tells one life of the lane from the next.
    pub started_ms: u64,
    /// Cores of its workers.
    pub cores: Vec<u16>,
    /// How often the workers' loads are compared, in milliseconds; 0 when queue pairs stay where they are.
    #[serde(default)]
    pub rebalance_ms: u32,
    /// Whether the workers spin when there is nothing to do.
    #[serde(default)]
    pub busy_poll: bool,
    /// Memory for packets, in MiB.
    pub memory_mib: u32,
    /// Whether that memory is in hugepages.
    pub huge_pages: bool,
    /// Most devices this build of DPDK allows in one process.
    pub max_ports: u16,
}

/// How busy a lane's workers are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct LaneLoad {
    /// Each worker.
    pub workers: Vec<WorkerLoad>,
    /// Times a part of a port was moved to another worker because its own had too much to do.
    pub moves: u64,
}

/// A worker in the last interval of measurement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerLoad {
    /// Its core.
    pub core: u16,
    /// Parts of ports that it runs.
    pub shares: u16,
    /// How much of its time went to packets, 0 to 100.
    pub busy_percent: u8,
}

/// Why a lane refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Stable word for programs.
    pub kind: FailureKind,
    /// What is wrong, with the value, and what to do.
    pub message: String,
    /// The operating system's error number where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
}

impl Failure {
    /// A failure without an error number.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), errno: None }
    }

    /// The same with the operating system's error number.
    pub fn with_errno(self, errno: i32) -> Self {
        Self { errno: Some(errno), ..self }
    }
}

/// Kinds of failure. They are part of the control API and do not change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// A value that can never be right.
    Invalid,
    /// No such port or device.
    NotFound,
    /// The name is taken by something else.
    Exists,
    /// The device or the socket is used by somebody else.
    Busy,
    /// Not allowed to.
    Permission,
    /// The device, driver or peer cannot do that.
    Unsupported,
    /// Memory, ports, cores or queues are used up.
    NoRoom,
    /// Versions do not fit.
    Version,
    /// Anything else; the message says what.
    Failed,
}
