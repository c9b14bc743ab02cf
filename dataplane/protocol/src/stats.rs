//! Counters of a port. They never go back while the port exists, whatever is restarted.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Packets that were dropped, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Drops {
    /// To the guest: it had made too few buffers available.
    pub guest_ring_full: u64,
    /// To the guest: no ring was started and enabled.
    pub no_ring: u64,
    /// Longer than the port's MTU allows, or than the guest's buffer.
    pub too_long: u64,
    /// From the guest: a chain that holds no frame (shorter than the virtio-net header and an Ethernet header, or not readable).
    pub malformed_chain: u64,
    /// From the guest: the device took no more.
    pub nic_full: u64,
    /// No free packet buffer, for a frame from the guest or for the segments of one to the guest.
    pub no_buffers: u64,
    /// A virtio-net header that does not fit its frame, or asks for an offload that was not negotiated. Without any negotiated
    /// headers are not looked at.
    #[serde(default)]
    pub bad_offload: u64,
    /// To the guest: more than the port's rate allows. From the guest: announcements (RARP) beyond it; its frames wait.
    #[serde(default)]
    pub over_rate: u64,
    /// In the hands of a lane when it was killed. The last few of them may have been delivered.
    #[serde(default)]
    pub lost: u64,
}

impl Drops {
    /// All reasons together.
    pub fn total(&self) -> u64 {
        let Self { guest_ring_full, no_ring, too_long, malformed_chain, nic_full, no_buffers, .. } = self;
        let Self { bad_offload, over_rate, lost, .. } = self;
        guest_ring_full + no_ring + too_long + malformed_chain + nic_full + no_buffers + bad_offload + over_rate + lost
    }
}

/// One queue in one direction. At rest `received == sent + drops.total()`; each is counted where it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct QueueCounters {
    /// Packets that came in: from the guest's ring, or from the device's queue.
    pub received: u64,
    /// Bytes of those, without the virtio-net header and the frame check sequence.
    pub received_bytes: u64,
    /// Packets that went out: to the device's queue, or into the guest's ring.
    pub sent: u64,
    /// Bytes of those.
    pub sent_bytes: u64,
    /// Those of the packets from the guest's ring that were not copied.
    #[serde(default)]
    pub zero_copied: u64,
    /// Packets that did not.
    pub drops: Drops,
}

impl QueueCounters {
    /// Adds another queue's counts to these.
    pub fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.received_bytes += other.received_bytes;
        self.sent += other.sent;
        self.sent_bytes += other.sent_bytes;
        self.zero_copied += other.zero_copied;
        self.drops.guest_ring_full += other.drops.guest_ring_full;
        self.drops.no_ring += other.drops.no_ring;
        self.drops.too_long += other.drops.too_long;
        self.drops.malformed_chain += other.drops.malformed_chain;
        self.drops.nic_full += other.drops.nic_full;
        self.drops.no_buffers += other.drops.no_buffers;
        self.drops.bad_offload += other.drops.bad_offload;
        self.drops.over_rate += other.drops.over_rate;
        self.drops.lost += other.drops.lost;
    }
}

/// All counters of a port.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PortCounters {
    /// From the guest to the device, by the guest's queue pair.
    pub from_guest: Vec<QueueCounters>,
    /// From the device to the guest, by the device's queue.
    pub to_guest: Vec<QueueCounters>,
    /// Frames that a worker gave a vDPA device, which count as sent, and that the device had not sent when the guest's rings or a relay's were taken from it. Always 0
    /// with other devices.
    #[serde(default)]
    pub unsent: u64,
    /// The device's own extended statistics (DPDK's names), since it was opened.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub device: Vec<(String, u64)>,
}
