//! A NIC whose switch is ours: what it is made of, its ports, and what it counts.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{DeviceSpec, NicName, VfSettings};

/// Most VFs that a software NIC may have; a lane's limit of devices may be lower.
pub const MAX_VFS: u16 = 64;
/// Most uplinks, which are bonded when there are two.
pub const MAX_UPLINKS: usize = 2;

/// A port of a NIC's switch, as rules name it. Each has a representor, by whose name OVS knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NicPort {
    /// The wire: the uplink, or the bond of the uplinks. Written `uplink`.
    Uplink,
    /// A virtual function. Written `vf3`.
    Vf(u16),
}

/// Not the name of a NIC's port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a port of a NIC: write uplink, or vf0 to vf{last}", last = MAX_VFS - 1)]
pub struct NotANicPort(String);

impl NicPort {
    /// Name of the network interface that stands for it on the host: `nic0` for the uplink, `nic0_vf3` for a VF.
    pub fn representor(self, nic: &NicName) -> String {
        match self {
            Self::Uplink => nic.to_string(),
            Self::Vf(vf) => format!("{nic}_vf{vf}"),
        }
    }
}

impl FromStr for NicPort {
    type Err = NotANicPort;

    fn from_str(text: &str) -> Result<Self, NotANicPort> {
        let bad = || NotANicPort(text.into());
        if text == "uplink" {
            return Ok(Self::Uplink);
        }
        let digits = text.strip_prefix("vf").filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()));
        let vf = digits.and_then(|digits| digits.parse().ok()).ok_or_else(bad)?;
        if vf < MAX_VFS { Ok(Self::Vf(vf)) } else { Err(bad()) }
    }
}

impl fmt::Display for NicPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uplink => f.pad("uplink"),
            Self::Vf(vf) => f.pad(&format!("vf{vf}")),
        }
    }
}

impl TryFrom<String> for NicPort {
    type Error = NotANicPort;
    fn try_from(text: String) -> Result<Self, NotANicPort> {
        text.parse()
    }
}

impl From<NicPort> for String {
    fn from(port: NicPort) -> String {
        port.to_string()
    }
}

impl JsonSchema for NicPort {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "NicPort".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A port of a NIC's switch: uplink, or vf3.",
            "pattern": "^(uplink|vf[0-9]+)$"
        })
    }
}

/// How the switch of a NIC decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NicMode {
    /// By rules; what no rule matches comes out of the port's representor.
    #[default]
    Switchdev,
    /// By a table of MAC addresses and VLANs, as an SR-IOV NIC's embedded bridge does.
    Legacy,
}

/// How two uplinks are one (DPDK: "Link Bonding Poll Mode Driver Library").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BondMode {
    /// One sends, the other when the first one's link is down. The switches outside need to know nothing of it.
    #[default]
    ActiveBackup,
    /// Both send, by addresses and ports of each flow. The switch outside has both in one static group.
    BalanceXor,
    /// The same, as agreed with the switch outside (IEEE 802.1AX).
    Lacp,
}

/// A software NIC as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// Its name, and its uplink representor's.
    pub name: NicName,
    /// How many VFs it has, 0 to 64.
    pub vfs: u16,
    /// The devices it sends to and receives from outside; may be none. Two are bonded.
    #[serde(default)]
    pub uplinks: Vec<DeviceSpec>,
    /// How two uplinks are bonded.
    #[serde(default)]
    pub bond: BondMode,
    /// How it decides.
    #[serde(default)]
    pub mode: NicMode,
    /// VFs of which something was said, in legacy mode; sorted, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vf: Vec<VfSettings>,
    /// Largest frame without its Ethernet header, in bytes, 68 to 9216: of the uplinks and the representors.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// A NIC of its own, in place of one in software.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci: Option<Box<PciNic>>,
}

fn default_mtu() -> u16 {
    1500
}

impl NicSpec {
    /// All ports of its switch: the uplink first, then the VFs.
    pub fn ports(&self) -> impl Iterator<Item = NicPort> + use<> {
        let functions = if self.pci.as_ref().is_some_and(|pci| pci.bonded) { 2 } else { 1 };
        std::iter::once(NicPort::Uplink).chain((0..self.vfs * functions).map(NicPort::Vf))
    }
}

/// Who brings flows into a NIC's own switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NicOffload {
    /// Open vSwitch's kernel datapath by itself, through TC flower (`hw-offload=true`): ringspan only looks whether it works.
    #[default]
    Tc,
    /// ringspan's mirror, through DPDK's rte_flow.
    Ringspan,
    /// Nobody.
    Off,
}

/// A NIC whose switch is its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PciNic {
    /// The physical function, `pci:0000:0a:00.0`. A `vdev:` stands in for one in tests.
    pub pf: DeviceSpec,
    /// The function's kernel bond has a second one, whose VFs are driven with it.
    #[serde(default)]
    pub bonded: bool,
    /// mlx5's way to program its switch: 1 by software steering, 2 by hardware steering (ConnectX-6 Dx and newer).
    #[serde(default = "one")]
    pub dv_flow_en: u8,
    /// More device arguments, as DPDK takes them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub args: String,
    /// Who brings flows into its switch.
    #[serde(default)]
    pub offload: NicOffload,
}

fn one() -> u8 {
    1
}

/// A port of a NIC's switch as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NicPortStatus {
    /// Which.
    pub port: NicPort,
    /// Name of its representor on the host; empty where there is none: in legacy mode, or while the kernel shows none of a function's.
    pub representor: String,
    /// It is not there: somebody removed it, and it could not be made anew; or the kernel made none.
    #[serde(default)]
    pub missing: bool,
    /// How many times somebody removed it since the NIC was made. What was configured on it was lost each time, also with Open vSwitch.
    #[serde(default)]
    pub removals: u64,
    /// Whether there is something at the other end: the uplink's link, or a port of ringspan's that has the VF.
    pub up: bool,
    /// What it counted.
    pub counters: NicPortCounters,
}

/// One of the devices of an uplink as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UplinkStatus {
    /// Which.
    pub device: DeviceSpec,
    /// Whether its link is up.
    pub up: bool,
    /// It was unplugged: nothing goes by it until the NIC is made anew.
    #[serde(default)]
    pub removed: bool,
    /// Whether the bond sends on it. A device alone always does.
    pub active: bool,
}

/// Who does what the rules say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// The switch of a software NIC.
    #[default]
    Eswitch,
    /// A NIC's own switch, through DPDK's rte_flow.
    RteFlow,
}

/// What the engine of a NIC can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Capabilities {
    /// Which engine.
    pub engine: EngineKind,
    /// Sends one frame of each rule in use to the representor every few seconds, so that Open vSwitch sees that its flow is used.
    /// Without it, what is idle has to be found by the rules' counters.
    pub refreshes: bool,
    /// Counts frames and bytes of each rule.
    pub counts: bool,
    /// Says when a rule last had a frame; else that is known only as exactly as its counters are read.
    pub ages: bool,
    /// Has meters that rules may name.
    pub meters: bool,
    /// Why it takes no rules between ports; absent when it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refuses: Option<String>,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self { engine: EngineKind::Eswitch, refreshes: true, counts: true, ages: true, meters: true, refuses: None }
    }
}

/// A NIC as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NicStatus {
    /// What was asked for.
    pub spec: NicSpec,
    /// Core of the worker that runs its switch.
    pub core: u16,
    /// Its ports, the uplink first.
    pub ports: Vec<NicPortStatus>,
    /// The devices of its uplink.
    #[serde(default)]
    pub uplinks: Vec<UplinkStatus>,
    /// Rules installed.
    pub rules: u64,
    /// Different masks among them: each costs a look-up of its own.
    pub masks: u32,
    /// What its engine can do.
    #[serde(default)]
    pub capabilities: Capabilities,
}

/// What a port of the switch counted. At rest the `received` of all ports and representors together are their `sent` and the drops,
/// less `copies`, which went out without having come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct NicPortCounters {
    /// Frames that came from the VF or the uplink.
    pub received: u64,
    /// Frames that were sent to the VF or the uplink.
    pub sent: u64,
    /// Frames that came out of the representor's network interface.
    pub representor_received: u64,
    /// Frames that were given to the representor: misses, and what keeps OVS informed.
    pub representor_sent: u64,
    /// Frames from this port that a rule took; in legacy mode those for an address that a VF has.
    pub hits: u64,
    /// Frames from this port that no rule matched; in legacy mode those for groups, and for addresses that no VF has.
    pub misses: u64,
    /// Copies made of frames from this port, for rules with several outputs.
    pub copies: u64,
    /// Segments made of large frames from this port, less the frames they were made of.
    pub segments: u64,
    /// Dropped because a rule said so; in legacy mode because nobody is to have it, or the VF's link is down.
    pub drop_rule: u64,
    /// Dropped because a VF in legacy mode sent from an address, or with a VLAN tag, that it may not have.
    #[serde(default)]
    pub drop_spoof: u64,
    /// Frames that came in on the uplink that does not send, of two in active-backup: the other one has them, too, and those that are our
    /// own would come back. What is said on a link itself (LLDP) is not among them, nor what is for one address within a second after the
    /// other uplink took over.
    #[serde(default)]
    pub drop_backup: u64,
    /// Dropped because a meter, or a VF's rate limit, said so.
    pub drop_meter: u64,
    /// Dropped because where it should go to is not there or took no more.
    pub drop_full: u64,
    /// Dropped because the representor took no more.
    pub drop_representor: u64,
    /// Dropped because it was no frame, or too long for where it should go, or its header asked for what does not fit it.
    pub drop_malformed: u64,
    /// Dropped because there was no packet buffer.
    pub drop_no_buffer: u64,
}

impl NicPortCounters {
    /// All drops together.
    pub fn drops(&self) -> u64 {
        let Self { drop_rule, drop_spoof, drop_backup, drop_meter, drop_full, drop_representor, .. } = self;
        let Self { drop_malformed, drop_no_buffer, .. } = self;
        drop_rule
            + drop_spoof
            + drop_backup
            + drop_meter
            + drop_full
            + drop_representor
            + drop_malformed
            + drop_no_buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_a_nic_reads_back_as_it_was_written_and_its_representor_fits_an_interface_name() {
        for port in [NicPort::Uplink, NicPort::Vf(0), NicPort::Vf(MAX_VFS - 1)] {
            assert_eq!(port.to_string().parse(), Ok(port));
            assert!(port.representor(&"nic4567890".parse().unwrap()).len() <= 15);
        }
        for bad in ["", "vf", "vf64", "vf-1", "vf+1", "pf0", "Uplink", "vf99999999999"] {
            assert!(bad.parse::<NicPort>().is_err(), "{bad:?} was accepted");
        }
        assert_eq!(NicPort::Vf(3).representor(&"nic0".parse().unwrap()), "nic0_vf3");
    }
}
