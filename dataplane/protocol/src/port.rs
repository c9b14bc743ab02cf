//! A port: one guest NIC, with a vhost-user socket on one side and a device on the other.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::nic::UplinkStatus;
use crate::{DeviceSpec, MacAddress, PortName};

/// Most queue pairs a front-end may use, and most device queues a port may have.
pub const MAX_QUEUE_PAIRS: u16 = 32;
/// Largest ring, in descriptors.
pub const MAX_RING_SIZE: u16 = 32768;
/// Highest rate of a port, in Mbit/s.
pub const MAX_RATE: u32 = 1_000_000;
/// MTU bounds in bytes, without the Ethernet header.
pub const MTU_RANGE: std::ops::RangeInclusive<u16> = 68..=9216;

/// Which side of the vhost-user socket listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// ringspan listens; the front-end connects, and again after every restart of either side.
    #[default]
    Server,
    /// ringspan connects, and retries until it can.
    Client,
}

/// The set of virtio features a port offers. It is fixed when the port is made, so that a later version of
/// ringspan does not change what a restarted or migrated guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Compat {
    /// Split and packed rings, RING_PACKED, IN_ORDER; VERSION_1, MRG_RXBUF, INDIRECT_DESC, EVENT_IDX, ANY_LAYOUT, MQ, MTU, GUEST_ANNOUNCE, CTRL_VQ and the
    /// bits of the control queue that the front-end serves by itself; with `offloads` CSUM, GUEST_CSUM, HOST_TSO4, HOST_TSO6, HOST_ECN,
    /// HOST_USO, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, GUEST_USO4 and GUEST_USO6.
    #[serde(rename = "1")]
    V1,
}

impl Compat {
    /// What a new port gets when it does not name a level.
    pub const LATEST: Self = Self::V1;
}

/// Whether a receive filter of the device is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Opened where the device allows it; a refusal is shown and is no error. The guest's own filters never
    /// reach ringspan, so this is what makes a guest's extra addresses work.
    #[default]
    Auto,
    /// Opened; a refusal fails the port.
    On,
    /// Left closed.
    Off,
}

/// Whether large frames of a guest are read by the device where the guest wrote them, instead of being copied before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ZeroCopy {
    /// Where the device has read a frame when it has taken it (net_tap, net_pcap, net_af_packet, net_vhost, net_null), and where it was seen
    /// to read guest memory by DMA (igb, its virtual functions).
    #[default]
    Auto,
    /// Never.
    Off,
    /// Every PCI device whose driver can be asked what was sent, seen or not; and software rings (`patch:`,
    /// net_ring), where a frame stays until the other side has read it: if that stops, so does the guest that sends.
    Always,
}

/// Who moves a port's packets, where the device is a vDPA device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The device, where it takes the guest's rings; else a worker. Other devices are relayed.
    #[default]
    Auto,
    /// The device, or nobody.
    Vdpa,
    /// A worker.
    Relay,
}

impl Mode {
    /// Whether it is what every device may have.
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// Who moves a port's packets now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModeStatus {
    /// A worker.
    #[default]
    Relay,
    /// The device reads the guest's rings by itself.
    Vdpa,
    /// Nobody: the device is gone, or it refuses and nobody else may.
    Down,
}

/// What became of [`ZeroCopy`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ZeroCopyStatus {
    /// Frames of at least so many bytes are not copied; absent: all are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u32>,
    /// Why all are copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

fn one() -> u16 {
    1
}

fn yes() -> bool {
    true
}

fn default_mtu() -> u16 {
    1500
}

/// Everything a lane needs to know to make a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// The port's name.
    pub name: PortName,
    /// Path of the vhost-user socket, 107 bytes at most.
    pub socket: PathBuf,
    /// Which side listens.
    #[serde(default)]
    pub role: Role,
    /// What the port is bridged to.
    pub device: DeviceSpec,
    /// Queues of the device in each direction, 1 to 32. The guest may have more pairs, or use fewer.
    #[serde(default = "one")]
    pub queues: u16,
    /// Largest frame without its Ethernet header, in bytes, 68 to 9216. Also told to the guest.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// The device's MAC address; the device's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// Receive every unicast frame.
    #[serde(default)]
    pub promiscuous: Policy,
    /// Receive every multicast frame (IPv6 needs it where the guest's groups do not reach the device).
    #[serde(default)]
    pub allmulti: Policy,
    /// Owner of the listening socket: user and group, as numbers. Written `user:group`.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "owner")]
    #[schemars(with = "Option<String>")]
    pub socket_owner: Option<(u32, u32)>,
    /// Permission bits of the listening socket, such as 0o660. Written in octal, `0660`.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "mode")]
    #[schemars(with = "Option<String>")]
    pub socket_mode: Option<u32>,
    /// The set of virtio features the port offers.
    pub compat: Compat,
    /// Offer the guest checksum and segmentation offloads. What the device cannot do of them is done in software.
    #[serde(default = "yes")]
    pub offloads: bool,
    /// Whether the device reads large frames where the guest wrote them.
    #[serde(default)]
    pub zero_copy: ZeroCopy,
    /// Least length in bytes of a frame that is not copied then; by the kind of device when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero_copy_from: Option<u16>,
    /// Most in each direction, in Mbit/s; 0: no limit. What the guest sends beyond it waits in its rings, what it should receive is dropped.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_rate: u32,
    /// Who moves the packets, where the device is a vDPA device.
    #[serde(default, skip_serializing_if = "Mode::is_auto")]
    pub mode: Mode,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// `socket_owner` as `port.add` takes it, so that what is read can be asked for again.
mod owner {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(owner: &Option<(u32, u32)>, serializer: S) -> Result<S::Ok, S::Error> {
        match owner {
            Some((user, group)) => serializer.collect_str(&format_args!("{user}:{group}")),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<(u32, u32)>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        let numbers = text.split_once(':').and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?)));
        numbers.map(Some).ok_or_else(|| D::Error::custom(format!("{text:?} is not user:group in numbers")))
    }
}

/// `socket_mode` as `port.add` takes it.
mod mode {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(mode: &Option<u32>, serializer: S) -> Result<S::Ok, S::Error> {
        match mode {
            Some(mode) => serializer.collect_str(&format_args!("{mode:04o}")),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        let mode = u32::from_str_radix(&text, 8);
        mode.map(Some).map_err(|_| D::Error::custom(format!("{text:?} is no octal number")))
    }
}

/// How far a port has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PortPhase {
    /// Server role: the socket listens and no front-end is there.
    Listening,
    /// Client role: the socket of the front-end is not there yet; retried.
    Connecting,
    /// A front-end is connected; the guest's driver has not started its rings.
    Connected,
    /// Both rings of at least one queue pair are started and enabled: packets flow.
    DriverReady,
    /// The guest broke its ring: stopped until it resets the device or reconnects.
    Broken,
}

/// What became of a [`Policy`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyStatus {
    /// The filter is open.
    On,
    /// The filter is closed, as asked.
    Off,
    /// The device refused; the text is its reason.
    Refused(String),
}

/// Who fills in a checksum, or cuts a large frame into segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OffloadBy {
    /// The device. What it cannot do for some frames is done in software.
    Device,
    /// ringspan.
    Software,
    /// Whoever receives the frame: the device is a link to another guest of ringspan's, which gets it as it is if it can.
    Receiver,
    /// Nobody: the guest has to do it.
    #[default]
    Nobody,
}

/// Who does what guests leave to the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct OffloadStatus {
    /// Checksums of what the guest sends.
    pub tx_checksum: OffloadBy,
    /// Segments of large TCP frames that the guest sends.
    pub tx_tcp_segments: OffloadBy,
    /// Segments of large UDP frames that the guest sends.
    pub tx_udp_segments: OffloadBy,
    /// Looking at the checksums of what the guest receives, so that it need not.
    pub rx_checksum: OffloadBy,
}

/// The device side of a port as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceStatus {
    /// DPDK's name of the driver, such as `mlx5_pci` or `net_tap`.
    pub driver: String,
    /// Whether the link is up.
    pub link_up: bool,
    /// Link speed in Mbit/s, where the driver knows it.
    pub speed_mbps: Option<u32>,
    /// The device's MAC address.
    pub mac: MacAddress,
    /// The device's MTU in bytes, and the port's.
    pub mtu: u16,
    /// Queues in each direction.
    pub queues: u16,
    /// What became of the promiscuous policy.
    pub promiscuous: PolicyStatus,
    /// What became of the allmulti policy.
    pub allmulti: PolicyStatus,
    /// Who does what guests leave to the port.
    #[serde(default)]
    pub offloads: OffloadStatus,
    /// What tells a worker that sleeps of a frame that comes in.
    #[serde(default)]
    pub receive_wake: ReceiveWake,
    /// Whether the device spreads what comes in over its queues.
    #[serde(default)]
    pub spread: Spread,
    /// The devices of a bond, and which of them sends; empty: it is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<UplinkStatus>,
}

/// What tells a worker that sleeps of a frame that comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReceiveWake {
    /// The device's receive interrupt, which was seen to work.
    Interrupt,
    /// The sender, who is in the same lane.
    Event,
    /// Nothing, or an interrupt that was not seen yet: the worker looks again after 2 ms at the latest.
    #[default]
    Timer,
}

impl ReceiveWake {
    /// When a worker that nothing wakes looks again, at the latest.
    pub const LONGEST_TIMER: Duration = Duration::from_millis(2);
}

/// Whether a device spreads what comes in over its queues, keeping the packets of a flow together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Spread {
    /// There is one queue.
    #[default]
    OneQueue,
    /// By the hash of addresses and TCP or UDP ports (RSS).
    Rss,
    /// By rules of its own, if at all: this driver has no RSS that could be set.
    Unknown,
}

/// A part of a port that one worker runs: queues of the device, and the guest's queue pairs that are connected with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShareStatus {
    /// The worker's core.
    pub core: u16,
    /// Queues of the device.
    pub queues: Vec<u16>,
    /// Queue pairs of the guest of which a ring runs.
    pub pairs: Vec<u16>,
}

/// On which NUMA nodes of the machine that is which a port's packets go through. Nothing where the machine has one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct NodeStatus {
    /// The guest's memory, since its driver began.
    pub guest: Option<u16>,
    /// The device, where its driver knows.
    pub device: Option<u16>,
    /// The packet buffers that frames from the guest are copied to; absent: no matter where.
    pub buffers: Option<u16>,
}

/// Whether a port's guest can be migrated to another host or port, as far as the port is concerned.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct MigrationStatus {
    /// Whether it can be.
    pub migratable: bool,
    /// Why not.
    pub reason: Option<String>,
    /// It is being migrated from here: pages that the port writes are logged.
    pub logging: bool,
    /// Pages of 4 KiB that were logged so far, each counted again when the front-end had taken its mark.
    pub pages: u64,
}

/// A port as its lane sees it now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortStatus {
    /// What was asked for.
    pub spec: PortSpec,
    /// How far it has come.
    pub phase: PortPhase,
    /// Why it is broken, or why the last handshake failed.
    pub reason: Option<String>,
    /// The parts that are run by a worker each.
    pub shares: Vec<ShareStatus>,
    /// Virtio feature bits that were negotiated (0 before).
    pub features: u64,
    /// Queue pairs with both rings started and enabled.
    pub active_pairs: u16,
    /// Regions of guest memory that are mapped.
    pub memory_regions: u16,
    /// Bytes of guest memory that are mapped.
    pub memory_bytes: u64,
    /// On which NUMA nodes its memory is.
    #[serde(default)]
    pub nodes: NodeStatus,
    /// Whether frames from the guest are copied.
    #[serde(default)]
    pub zero_copy: ZeroCopyStatus,
    /// Whether the guest can be migrated, and whether it is.
    #[serde(default)]
    pub migration: MigrationStatus,
    /// Who moves its packets.
    #[serde(default)]
    pub mode: ModeStatus,
    /// Why a vDPA device does not, although it might.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode_reason: Option<String>,
    /// The device side.
    pub device: DeviceStatus,
}
