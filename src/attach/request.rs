//! What a guest's NIC should be.

use std::path::PathBuf;

use ringspan_protocol::{LaneName, MacAddress, PortName, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::guest::Shape;
use crate::error::{Error, ErrorKind};
use crate::port_request::check_mtu;

/// Longest id of a guest: with `-nic65535` behind it, it is the name of a port.
const LONGEST_GUEST: usize = 38;
/// Highest rate, in Mbit/s.
const MAX_MBIT: u32 = 1_000_000;

/// How a guest gets its VF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// As a virtio NIC: a port relays between its rings and the VF. Such a guest can be migrated.
    #[default]
    Vhost,
    /// Whole: bound to vfio-pci, for QEMU's own `vfio-pci` device. The only mode for InfiniBand.
    Passthrough,
}

/// A guest's NIC as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Attach {
    /// The guest's id: 1 to 38 of `[A-Za-z0-9._-]`, a UUID for instance.
    pub guest: String,
    /// Which of the guest's NICs. Guest and index together are the name of the attachment.
    #[serde(default)]
    pub nic: u16,
    /// How the guest gets it.
    #[serde(default)]
    pub mode: Mode,
    /// This device and no other: its id, its address, its interface, or `soft:nic0/vf3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// A free VF of this model: as the inventory has it, else any that has the text in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A free VF on this wire: the agent's name of it once its files were applied (`host.apply`), its PF's interface or that one's bond, the bridge that these are
    /// on, or a software NIC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wire: Option<String>,
    /// The guest's NUMA node: VFs near to it are taken first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
    /// The guest's MAC address; made from the machine's and the port's name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// Its VLAN, 1 to 4094; 0: none. In switchdev mode the tag of its representor's port.
    #[serde(default)]
    pub vlan: u16,
    /// The bridge for its representor; that of the uplink when absent, or `br-int` with an `iface_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// What OVN knows it by, in place of a VLAN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iface_id: Option<String>,
    /// Least rate from the guest that the NIC keeps for it, in Mbit/s; 0: none. Refused by NICs that have no such thing.
    #[serde(default)]
    pub min_rate: u32,
    /// Most rate in each direction, in Mbit/s; 0: no limit.
    #[serde(default)]
    pub max_rate: u32,
    /// Queue pairs, 1 to 32.
    #[serde(default = "one")]
    pub queues: u16,
    /// Largest frame without its Ethernet header, in bytes, 68 to 9216.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// Path of the vhost-user socket; in the daemon's run directory when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// Which side listens there.
    #[serde(default)]
    pub role: Role,
    /// Owner of the listening socket as `user:group`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_owner: Option<String>,
    /// Permission bits of the listening socket, octal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_mode: Option<String>,
    /// The lane that carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<LaneName>,
    /// How the guest is made. No part of the attachment.
    #[serde(default, skip_serializing_if = "Shape::says_nothing")]
    pub qemu: Shape,
}

fn one() -> u16 {
    1
}

fn default_mtu() -> u16 {
    1500
}

impl Attach {
    /// The name of the port, and of everything that is made for it.
    ///
    /// # Errors
    /// The guest's id is not one.
    pub(crate) fn port(&self) -> Result<PortName, Error> {
        port_name(&self.guest, self.nic)
    }

    /// Refuses values that can never be right.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let port = self.port()?;
        let bad = |what: String| Err(Error::new(ErrorKind::Invalid, format!("{port}: {what}")).about(&port));
        if let Some(Err(error)) = self.mac.map(MacAddress::unicast) {
            return bad(format!("mac: {error}"));
        }
        if self.vlan > 4094 {
            return bad(format!("VLAN {}: give 1 to 4094, or 0 for none", self.vlan));
        }
        if self.vlan != 0 && self.iface_id.is_some() {
            return bad("give a vlan, or an iface_id: OVN puts its own tags".into());
        }
        if self.max_rate > MAX_MBIT || self.min_rate > MAX_MBIT {
            return bad(format!("a rate is at most {MAX_MBIT} Mbit/s"));
        }
        if self.max_rate != 0 && self.min_rate > self.max_rate {
            return bad(format!("a least rate of {} Mbit/s is above the most, {}", self.min_rate, self.max_rate));
        }
        if let Err(what) = check_mtu(self.mtu) {
            return bad(what);
        }
        if self.mode == Mode::Passthrough
            && (self.socket.is_some() || self.socket_owner.is_some() || self.lane.is_some())
        {
            return bad("socket, socket_owner and lane are for mode vhost: a VF that is handed over has none".into());
        }
        Ok(())
    }
}

/// The name of a guest's port.
pub(crate) fn port_name(guest: &str, nic: u16) -> Result<PortName, Error> {
    let invalid = |why: String| Error::new(ErrorKind::Invalid, format!("guest {guest:?}: {why}")).about(guest);
    if guest.len() > LONGEST_GUEST {
        return Err(invalid(format!("it has {} bytes: at most {LONGEST_GUEST} are allowed", guest.len())));
    }
    // An empty id must not be taken for a name by what stands behind it.
    let _: PortName = guest.parse().map_err(|error| invalid(format!("{error}")))?;
    format!("{guest}-nic{nic}").parse().map_err(|error| invalid(format!("{error}")))
}
