//! What is written down of an attachment, before anything is done for it.

use ringspan_protocol::{MacAddress, NicName, PciAddress, PortName, VfSettings as SoftSettings};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::request::{Attach, port_name};
use crate::error::Error;
use crate::host::netlink::VfSettings;
use crate::ovs::configure::WantedPort;

/// Whose NIC.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Key {
    /// The guest's id.
    pub guest: String,
    /// Which of its NICs.
    #[serde(default)]
    pub nic: u16,
}

impl Key {
    /// The name of its port.
    pub(crate) fn port(&self) -> Result<PortName, Error> {
        port_name(&self.guest, self.nic)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-nic{}", self.guest, self.nic)
    }
}

/// How far an attachment has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// Its steps are being done. A daemon that starts takes them back: nobody was told that they were done.
    Attaching,
    /// All is done.
    Attached,
    /// It is being changed, or mended. A daemon that starts goes on with it.
    Changing,
    /// Its steps are being taken back. A daemon that starts goes on with it.
    Detaching,
}

/// One thing that is done for an attachment. Each can be done again, and taken back, when it is not known whether it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Step {
    /// What the VF may do: address, VLAN, rates.
    Settings,
    /// The driver that the VF is bound to.
    Driver,
    /// The representor, up and in its bridge.
    Bridge,
    /// The port.
    Port,
}

/// The VF that was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub(crate) enum Target {
    /// Of a NIC.
    Pci {
        /// The VF.
        address: PciAddress,
        /// Its physical function.
        pf: PciAddress,
        /// Its number.
        vf: u16,
    },
    /// Of a NIC in software.
    Soft {
        /// The NIC.
        nic: NicName,
        /// Its number.
        vf: u16,
    },
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pci { address, .. } => write!(f, "pci:{address}"),
            Self::Soft { nic, vf } => write!(f, "soft:{nic}/vf{vf}"),
        }
    }
}

/// How things were before, which is what they will be again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Before {
    /// What the physical function had set for the VF.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<VfSettings>,
    /// What a NIC in software had set for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft: Option<SoftSettings>,
    /// The representor's port, when it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<WantedPort>,
}

/// What a guest sent and received, as far as nobody else knows it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Counted {
    /// Frames that it sent.
    pub tx_packets: u64,
    /// Bytes of those.
    pub tx_bytes: u64,
    /// Frames of those that did not get further.
    pub tx_dropped: u64,
    /// Frames that it received.
    pub rx_packets: u64,
    /// Bytes of those.
    pub rx_bytes: u64,
    /// Frames for it that did not get to it.
    pub rx_dropped: u64,
}

impl Counted {
    fn each(&self, other: &Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            tx_packets: of(self.tx_packets, other.tx_packets),
            tx_bytes: of(self.tx_bytes, other.tx_bytes),
            tx_dropped: of(self.tx_dropped, other.tx_dropped),
            rx_packets: of(self.rx_packets, other.rx_packets),
            rx_bytes: of(self.rx_bytes, other.rx_bytes),
            rx_dropped: of(self.rx_dropped, other.rx_dropped),
        }
    }

    /// Both together.
    pub(crate) fn plus(&self, other: &Self) -> Self {
        self.each(other, u64::saturating_add)
    }

    /// Whether nothing of it is less than before.
    pub(crate) fn follows(&self, before: &Self) -> bool {
        self.each(before, u64::max) == *self
    }
}

/// An attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Record {
    /// What is wanted.
    pub wanted: Attach,
    /// The guest's address.
    pub mac: MacAddress,
    /// The VF.
    pub target: Target,
    /// How far it has come.
    pub stage: Stage,
    /// What is to be done, in this order.
    pub steps: Vec<Step>,
    /// What of it was begun.
    pub begun: Vec<Step>,
    /// How things were before.
    #[serde(default)]
    pub before: Before,
    /// The interface that stands for the VF on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub representor: Option<String>,
    /// The bridge that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// The driver that the VF needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The VLAN is set for the VF, not for its representor.
    #[serde(default)]
    pub vlan_by_vf: bool,
    /// The VF's link is InfiniBand: it has GUIDs made of the guest's address, as the agent gives them.
    #[serde(default)]
    pub infiniband: bool,
    /// The VF's rates were ours once, so that none is a setting too.
    #[serde(default)]
    pub rated: bool,
    /// Why it did not come further.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Record {
    /// Takes what is wanted instead, of which only what a running NIC can change differs.
    pub(crate) fn want(&mut self, wanted: Attach) -> Result<(), Error> {
        wanted.check()?;
        self.rated |= (wanted.min_rate, wanted.max_rate) != (self.wanted.min_rate, self.wanted.max_rate);
        self.mac = wanted.mac.unwrap_or(self.mac);
        self.wanted = wanted;
        Ok(())
    }

    /// Its name.
    pub(crate) fn key(&self) -> Key {
        Key { guest: self.wanted.guest.clone(), nic: self.wanted.nic }
    }
}
