//! devlink (linux/devlink.h): eswitches, ports and parameters of devices.

use std::fmt;
use std::str::FromStr;

use netlink_sys::protocols::NETLINK_GENERIC;
use ringspan_protocol::PciAddress;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::NetlinkError;
use super::request::Request;
use super::socket::{Channel, Want, text};
use crate::ovs::kernel::attribute::{Attribute, attributes, find};

const PORT_GET: u8 = 5;
const ESWITCH_GET: u8 = 29;
const ESWITCH_SET: u8 = 30;
const PARAM_GET: u8 = 38;
const PARAM_SET: u8 = 39;
/// DEVLINK_GENL_VERSION.
const VERSION: u8 = 1;
/// struct genlmsghdr.
const GENERIC: usize = 4;

const BUS_NAME: u16 = 1;
const DEV_NAME: u16 = 2;
const PORT_INDEX: u16 = 3;
const PORT_NETDEV_NAME: u16 = 7;
const ESWITCH_MODE: u16 = 25;
const ESWITCH_INLINE_MODE: u16 = 26;
const ESWITCH_ENCAP_MODE: u16 = 62;
const PORT_FLAVOUR: u16 = 77;
const PORT_NUMBER: u16 = 78;
const PARAM: u16 = 80;
const PARAM_NAME: u16 = 81;
const PARAM_TYPE: u16 = 83;
const PARAM_VALUES_LIST: u16 = 84;
const PARAM_VALUE: u16 = 85;
const PARAM_VALUE_DATA: u16 = 86;
const PARAM_VALUE_CMODE: u16 = 87;
const PORT_PCI_PF_NUMBER: u16 = 127;
const PORT_PCI_VF_NUMBER: u16 = 128;
const PORT_CONTROLLER_NUMBER: u16 = 150;

/// DEVLINK_PARAM_TYPE_STRING, which is NLA_STRING, and DEVLINK_PARAM_CMODE_RUNTIME.
const TYPE_STRING: u8 = 5;
const CMODE_RUNTIME: u8 = 0;
const STEERING: &str = "flow_steering_mode";

/// A device as devlink calls it: `pci/0000:0a:00.0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct DevlinkName {
    /// The bus.
    pub bus: String,
    /// The device on it.
    pub device: String,
}

impl From<PciAddress> for DevlinkName {
    fn from(address: PciAddress) -> Self {
        Self { bus: "pci".into(), device: address.to_string() }
    }
}

impl FromStr for DevlinkName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once('/') {
            Some((bus, device)) if !bus.is_empty() && !device.is_empty() && !device.contains('/') => {
                Ok(Self { bus: bus.into(), device: device.into() })
            }
            _ => Err(()),
        }
    }
}

impl fmt::Display for DevlinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bus, self.device)
    }
}

/// How a NIC's switch forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EswitchMode {
    /// By MAC addresses and VLANs; VFs are set through their PF.
    Legacy,
    /// By rules; each VF has a representor.
    Switchdev,
}

/// How much of a frame's headers a VF must put into its descriptors, so that they can be matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum InlineMode {
    /// None of it.
    None,
    /// The Ethernet header.
    Link,
    /// Up to IP.
    Network,
    /// Up to TCP and UDP.
    Transport,
}

/// Whether a NIC's switch adds tunnel headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EncapMode {
    /// No.
    None,
    /// Yes.
    Basic,
}

impl fmt::Display for EswitchMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Legacy => "legacy",
            Self::Switchdev => "switchdev",
        })
    }
}

impl fmt::Display for InlineMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Link => "link",
            Self::Network => "network",
            Self::Transport => "transport",
        })
    }
}

impl fmt::Display for EncapMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Basic => "basic",
        })
    }
}

/// A device's switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EswitchState {
    /// How it forwards.
    pub mode: EswitchMode,
    /// Where the driver has it.
    pub inline_mode: Option<InlineMode>,
    /// Where the driver has it.
    pub encap_mode: Option<EncapMode>,
}

/// One thing of a switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EswitchChange {
    /// How it forwards.
    Mode(EswitchMode),
    /// How much is inlined.
    Inline(InlineMode),
    /// Whether it adds tunnel headers.
    Encap(EncapMode),
}

/// What a port stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// The wire; its number.
    Physical(Option<u32>),
    /// A PF, where a controller elsewhere has the NIC.
    Pf {
        /// The controller.
        controller: u32,
        /// The PF.
        pf: u16,
    },
    /// A VF.
    Vf {
        /// The controller.
        controller: u32,
        /// Its PF.
        pf: u16,
        /// The VF.
        vf: u16,
    },
    /// Something else, a subfunction for instance.
    Other(u16),
}

/// A port of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DevlinkPort {
    /// Its device.
    pub device: DevlinkName,
    /// Its number there.
    pub index: u32,
    /// What it stands for.
    pub flavour: Flavour,
    /// Its interface.
    pub interface: Option<String>,
}

fn request(command: u8, device: Option<&DevlinkName>) -> Request {
    let mut request = Request::new(&[command, VERSION, 0, 0]);
    if let Some(device) = device {
        request.put_text(BUS_NAME, &device.bus).put_text(DEV_NAME, &device.device);
    }
    request
}

/// devlink, and its number.
fn open() -> Result<(Channel, u16), NetlinkError> {
    let mut channel = Channel::open(NETLINK_GENERIC)?;
    let family = channel.family("devlink")?;
    Ok((channel, family))
}

fn byte(attribute: Attribute<'_>) -> u8 {
    attribute.value.first().copied().unwrap_or_default()
}

fn short(attribute: Attribute<'_>) -> u16 {
    attribute.value.first_chunk::<2>().map_or(0, |bytes| u16::from_ne_bytes(*bytes))
}

fn long(attribute: Attribute<'_>) -> u32 {
    attribute.value.first_chunk::<4>().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

pub(super) fn eswitch(device: &DevlinkName) -> Result<EswitchState, NetlinkError> {
    let (mut channel, family) = open()?;
    let (mut mode, mut inline_mode, mut encap_mode) = (None, None, None);
    channel.ask(family, Want::One, &request(ESWITCH_GET, Some(device)), |body| {
        for attribute in attributes(body.get(GENERIC..).unwrap_or_default()) {
            let attribute = attribute?;
            match attribute.kind {
                ESWITCH_MODE => {
                    mode = match short(attribute) {
                        0 => Some(EswitchMode::Legacy),
                        1 => Some(EswitchMode::Switchdev),
                        _ => None,
                    }
                }
                ESWITCH_INLINE_MODE => {
                    inline_mode = match byte(attribute) {
                        0 => Some(InlineMode::None),
                        1 => Some(InlineMode::Link),
                        2 => Some(InlineMode::Network),
                        3 => Some(InlineMode::Transport),
                        _ => None,
                    }
                }
                ESWITCH_ENCAP_MODE => {
                    encap_mode = match byte(attribute) {
                        0 => Some(EncapMode::None),
                        1 => Some(EncapMode::Basic),
                        _ => None,
                    }
                }
                _ => {}
            }
        }
        Ok(())
    })?;
    let mode = mode.ok_or(NetlinkError::Missing { what: "eswitch mode that is known" })?;
    Ok(EswitchState { mode, inline_mode, encap_mode })
}

pub(super) fn set_eswitch(device: &DevlinkName, change: EswitchChange) -> Result<(), NetlinkError> {
    let (mut channel, family) = open()?;
    let mut request = request(ESWITCH_SET, Some(device));
    match change {
        EswitchChange::Mode(mode) => request.put(ESWITCH_MODE, &(mode as u16).to_ne_bytes()),
        EswitchChange::Inline(mode) => request.put(ESWITCH_INLINE_MODE, &[mode as u8]),
        EswitchChange::Encap(mode) => request.put(ESWITCH_ENCAP_MODE, &[mode as u8]),
    };
    channel.ask(family, Want::One, &request, |_| Ok(()))
}

pub(super) fn ports() -> Result<Vec<DevlinkPort>, NetlinkError> {
    let (mut channel, family) = open()?;
    channel.all(family, &request(PORT_GET, None), |body| port(body.get(GENERIC..).unwrap_or_default()))
}

fn port(body: &[u8]) -> Result<Option<DevlinkPort>, NetlinkError> {
    let (mut bus, mut device, mut index, mut interface) = (None, None, None, None);
    let (mut flavour, mut controller, mut pf, mut vf, mut number) = (None, 0, 0, 0, None);
    for attribute in attributes(body) {
        let attribute = attribute?;
        match attribute.kind {
            BUS_NAME => bus = Some(text(attribute.value)),
            DEV_NAME => device = Some(text(attribute.value)),
            PORT_INDEX => index = Some(long(attribute)),
            PORT_NETDEV_NAME => interface = Some(text(attribute.value)),
            PORT_FLAVOUR => flavour = Some(short(attribute)),
            PORT_NUMBER => number = Some(long(attribute)),
            PORT_CONTROLLER_NUMBER => controller = long(attribute),
            PORT_PCI_PF_NUMBER => pf = short(attribute),
            PORT_PCI_VF_NUMBER => vf = short(attribute),
            _ => {}
        }
    }
    let flavour = match flavour {
        Some(0) => Flavour::Physical(number),
        Some(3) => Flavour::Pf { controller, pf },
        Some(4) => Flavour::Vf { controller, pf, vf },
        other => Flavour::Other(other.unwrap_or(u16::MAX)),
    };
    let (Some(bus), Some(device), Some(index)) = (bus, device, index) else { return Ok(None) };
    Ok(Some(DevlinkPort { device: DevlinkName { bus, device }, index, flavour, interface }))
}

pub(super) fn steering(device: &DevlinkName) -> Result<String, NetlinkError> {
    let (mut channel, family) = open()?;
    let mut request = request(PARAM_GET, Some(device));
    request.put_text(PARAM_NAME, STEERING);
    let mut found = None;
    channel.ask(family, Want::One, &request, |body| {
        found = runtime_value(body.get(GENERIC..).unwrap_or_default())?;
        Ok(())
    })?;
    found.ok_or(NetlinkError::Missing { what: "value of flow_steering_mode" })
}

/// The text that a parameter has at run time.
fn runtime_value(body: &[u8]) -> Result<Option<String>, NetlinkError> {
    let Some(parameter) = find(body, PARAM)? else { return Ok(None) };
    let Some(values) = find(parameter, PARAM_VALUES_LIST)? else { return Ok(None) };
    for value in attributes(values) {
        let value = value?;
        if value.kind == PARAM_VALUE && find(value.value, PARAM_VALUE_CMODE)? == Some(&[CMODE_RUNTIME]) {
            return Ok(find(value.value, PARAM_VALUE_DATA)?.map(text));
        }
    }
    Ok(None)
}

pub(super) fn set_steering(device: &DevlinkName, mode: &str) -> Result<(), NetlinkError> {
    let (mut channel, family) = open()?;
    let mut request = request(PARAM_SET, Some(device));
    request.put_text(PARAM_NAME, STEERING).put(PARAM_TYPE, &[TYPE_STRING]);
    request.put(PARAM_VALUE_CMODE, &[CMODE_RUNTIME]).put_text(PARAM_VALUE_DATA, mode);
    channel.ask(family, Want::One, &request, |_| Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vfs_port_is_told_from_the_wires() {
        let mut bytes = request(PORT_GET, Some(&"pci/0000:0a:00.0".parse().unwrap()));
        bytes.put_u32(PORT_INDEX, 65537).put_text(PORT_NETDEV_NAME, "eth0_3").put(PORT_FLAVOUR, &4u16.to_ne_bytes());
        bytes.put_u32(PORT_CONTROLLER_NUMBER, 1).put(PORT_PCI_PF_NUMBER, &[1, 0]).put(PORT_PCI_VF_NUMBER, &[3, 0]);
        let message = bytes.message(0, 0, 0);
        let found = port(&message[super::super::request::HEADER + GENERIC..]).unwrap().unwrap();
        assert_eq!(found.flavour, Flavour::Vf { controller: 1, pf: 1, vf: 3 });
        assert_eq!(
            (found.device.to_string().as_str(), found.interface.as_deref()),
            ("pci/0000:0a:00.0", Some("eth0_3"))
        );
    }

    #[test]
    fn the_value_at_run_time_is_read_and_no_other() {
        let value = |values: &mut Request, cmode: u8, text: &str| {
            values.nest(PARAM_VALUE, |value| {
                value.put_text(PARAM_VALUE_DATA, text).put(PARAM_VALUE_CMODE, &[cmode]);
            });
        };
        let mut bytes = Request::default();
        bytes.nest(PARAM, |parameter| {
            parameter.put_text(PARAM_NAME, STEERING).nest(PARAM_VALUES_LIST, |values| {
                value(values, 1, "dmfs");
                value(values, CMODE_RUNTIME, "smfs");
            });
        });
        let message = bytes.message(0, 0, 0);
        let read = runtime_value(&message[super::super::request::HEADER..]).unwrap();
        assert_eq!(read.as_deref(), Some("smfs"));
    }

    #[test]
    fn names_have_two_parts() {
        for bad in ["", "pci", "pci/", "/x", "a/b/c"] {
            assert!(bad.parse::<DevlinkName>().is_err(), "{bad}");
        }
    }
}
