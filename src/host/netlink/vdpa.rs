//! The kernel's vDPA bus by its generic family (linux/vdpa.h; drivers/vdpa/vdpa.c): management devices, and the vDPA devices that are made on them.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use netlink_sys::protocols::NETLINK_GENERIC;
use ringspan_protocol::{MacAddress, PciAddress};

use super::NetlinkError;
use super::request::Request;
use super::socket::{Channel, Want, text};
use crate::ovs::kernel::attribute::{Attribute, attributes};

const MGMTDEV_GET: u8 = 2;
const DEV_NEW: u8 = 3;
const DEV_DEL: u8 = 4;
const DEV_GET: u8 = 5;
const DEV_CONFIG_GET: u8 = 6;
const DEV_VSTATS_GET: u8 = 7;
/// VDPA_GENL_VERSION.
const VERSION: u8 = 1;
/// struct genlmsghdr.
const GENERIC: usize = 4;

const MGMTDEV_BUS_NAME: u16 = 1;
const MGMTDEV_DEV_NAME: u16 = 2;
const MGMTDEV_SUPPORTED_CLASSES: u16 = 3;
const DEV_NAME: u16 = 4;
const DEV_ID: u16 = 5;
const DEV_VENDOR_ID: u16 = 6;
const DEV_MAX_VQS: u16 = 7;
const DEV_MAX_VQ_SIZE: u16 = 8;
const DEV_MIN_VQ_SIZE: u16 = 9;
const NET_CFG_MACADDR: u16 = 10;
const NET_STATUS: u16 = 11;
const NET_CFG_MAX_VQP: u16 = 12;
const NET_CFG_MTU: u16 = 13;
const NEGOTIATED_FEATURES: u16 = 14;
const MGMTDEV_MAX_VQS: u16 = 15;
const SUPPORTED_FEATURES: u16 = 16;
const QUEUE_INDEX: u16 = 17;
const VENDOR_ATTR_NAME: u16 = 18;
const VENDOR_ATTR_VALUE: u16 = 19;
const DEV_FEATURES: u16 = 20;
const DEV_SUPPORTED_FEATURES: u16 = 21;

/// VIRTIO_NET_S_LINK_UP, and the feature that gives it a meaning (VIRTIO_NET_F_STATUS).
const LINK_UP: u16 = 1;
const F_STATUS: u64 = 1 << 16;

/// A management device, as the kernel calls it: `pci/0000:0a:00.2`, or `vdpasim_net`, which is on no bus.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct VdpaParent {
    /// The bus; none: it stands for itself.
    pub bus: Option<String>,
    /// The device.
    pub device: String,
}

impl VdpaParent {
    /// The function that it is.
    pub(crate) fn function(&self) -> Option<PciAddress> {
        self.bus.as_deref().filter(|bus| *bus == "pci").and_then(|_| self.device.parse().ok())
    }
}

impl From<PciAddress> for VdpaParent {
    fn from(address: PciAddress) -> Self {
        Self { bus: Some("pci".into()), device: address.to_string() }
    }
}

impl FromStr for VdpaParent {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.split_once('/') {
            Some((bus, device)) => Self { bus: Some(bus.into()), device: device.into() },
            None => Self { bus: None, device: text.into() },
        })
    }
}

impl fmt::Display for VdpaParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.bus {
            Some(bus) => write!(f, "{bus}/{}", self.device),
            None => f.write_str(&self.device),
        }
    }
}

/// A management device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VdpaManagement {
    /// What it is called.
    pub parent: VdpaParent,
    /// The virtio device ids that can be made on it: bit 1 is a network card.
    pub classes: u64,
    /// Most virtqueues of a device; kernels before 5.18 do not say.
    pub max_vqs: Option<u32>,
    /// The virtio features that its devices have; kernels before 5.18 do not say.
    pub features: Option<u64>,
}

/// A vDPA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VdpaDevice {
    /// Its name.
    pub name: String,
    /// What it was made on.
    pub parent: VdpaParent,
    /// Its virtio device id: 1 is a network card.
    pub id: u32,
    /// Its vendor.
    pub vendor: u32,
    /// How many virtqueues it has.
    pub max_vqs: u32,
    /// Sizes of its rings, in descriptors.
    pub max_vq_size: Option<u16>,
    /// The least of them; kernels before 5.20 do not say.
    pub min_vq_size: Option<u16>,
}

/// What a network device shows its driver. Before Linux 6.1 there is none of it before the driver has negotiated features (EAGAIN).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct VdpaConfig {
    /// Its address.
    pub mac: Option<MacAddress>,
    /// Its MTU.
    pub mtu: Option<u16>,
    /// Whether it has a link, where the driver may know.
    pub link_up: Option<bool>,
    /// Queue pairs, with VIRTIO_NET_F_MQ.
    pub max_vqp: Option<u16>,
    /// The features that the driver took.
    pub negotiated: Option<u64>,
    /// The features that it offers; kernels before 6.1 do not say.
    pub features: Option<u64>,
}

/// A device to make. What is absent is left to its driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VdpaNew {
    /// Its name.
    pub name: String,
    /// What it is made on.
    pub parent: VdpaParent,
    /// Its address.
    pub mac: Option<MacAddress>,
    /// Its MTU, in bytes.
    pub mtu: Option<u16>,
    /// Most queue pairs.
    pub max_vqp: Option<u16>,
    /// The only features that it offers.
    pub features: Option<u64>,
}

fn request(command: u8) -> Request {
    Request::new(&[command, VERSION, 0, 0])
}

fn of_device(command: u8, name: &str) -> Request {
    let mut request = request(command);
    request.put_text(DEV_NAME, name);
    request
}

fn open() -> Result<(Channel, u16), NetlinkError> {
    let mut channel = Channel::open(NETLINK_GENERIC)?;
    let family = channel.family("vdpa")?;
    Ok((channel, family))
}

fn behind(body: &[u8]) -> &[u8] {
    body.get(GENERIC..).unwrap_or_default()
}

fn short(attribute: Attribute<'_>) -> Option<u16> {
    attribute.value.first_chunk::<2>().map(|bytes| u16::from_ne_bytes(*bytes))
}

fn long(attribute: Attribute<'_>) -> Option<u32> {
    attribute.value.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn longest(attribute: Attribute<'_>) -> Option<u64> {
    attribute.value.first_chunk::<8>().map(|bytes| u64::from_ne_bytes(*bytes))
}

pub(super) fn management() -> Result<Vec<VdpaManagement>, NetlinkError> {
    let (mut channel, family) = open()?;
    channel.all(family, &request(MGMTDEV_GET), |body| management_of(behind(body)))
}

fn management_of(body: &[u8]) -> Result<Option<VdpaManagement>, NetlinkError> {
    let (mut bus, mut device, mut classes, mut max_vqs, mut features) = (None, None, 0, None, None);
    for attribute in attributes(body) {
        let attribute = attribute?;
        match attribute.kind {
            MGMTDEV_BUS_NAME => bus = Some(text(attribute.value)),
            MGMTDEV_DEV_NAME => device = Some(text(attribute.value)),
            MGMTDEV_SUPPORTED_CLASSES => classes = longest(attribute).unwrap_or_default(),
            MGMTDEV_MAX_VQS => max_vqs = long(attribute),
            SUPPORTED_FEATURES => features = longest(attribute),
            _ => {}
        }
    }
    Ok(device.map(|device| VdpaManagement { parent: VdpaParent { bus, device }, classes, max_vqs, features }))
}

pub(super) fn devices() -> Result<Vec<VdpaDevice>, NetlinkError> {
    let (mut channel, family) = open()?;
    channel.all(family, &request(DEV_GET), |body| device_of(behind(body)))
}

fn device_of(body: &[u8]) -> Result<Option<VdpaDevice>, NetlinkError> {
    let (mut bus, mut parent, mut name) = (None, None, None);
    let (mut id, mut vendor, mut max_vqs, mut max_vq_size, mut min_vq_size) = (0, 0, 0, None, None);
    for attribute in attributes(body) {
        let attribute = attribute?;
        match attribute.kind {
            MGMTDEV_BUS_NAME => bus = Some(text(attribute.value)),
            MGMTDEV_DEV_NAME => parent = Some(text(attribute.value)),
            DEV_NAME => name = Some(text(attribute.value)),
            DEV_ID => id = long(attribute).unwrap_or_default(),
            DEV_VENDOR_ID => vendor = long(attribute).unwrap_or_default(),
            DEV_MAX_VQS => max_vqs = long(attribute).unwrap_or_default(),
            DEV_MAX_VQ_SIZE => max_vq_size = short(attribute),
            DEV_MIN_VQ_SIZE => min_vq_size = short(attribute),
            _ => {}
        }
    }
    let (Some(name), Some(device)) = (name, parent) else { return Ok(None) };
    let parent = VdpaParent { bus, device };
    Ok(Some(VdpaDevice { name, parent, id, vendor, max_vqs, max_vq_size, min_vq_size }))
}

pub(super) fn config(name: &str) -> Result<VdpaConfig, NetlinkError> {
    let (mut channel, family) = open()?;
    let mut found = VdpaConfig::default();
    channel.ask(family, Want::One, &of_device(DEV_CONFIG_GET, name), |body| {
        found = config_of(behind(body))?;
        Ok(())
    })?;
    Ok(found)
}

fn config_of(body: &[u8]) -> Result<VdpaConfig, NetlinkError> {
    let (mut config, mut status) = (VdpaConfig::default(), None);
    for attribute in attributes(body) {
        let attribute = attribute?;
        match attribute.kind {
            NET_CFG_MACADDR => config.mac = attribute.value.first_chunk::<6>().map(|mac| MacAddress(*mac)),
            NET_STATUS => status = short(attribute),
            NET_CFG_MAX_VQP => config.max_vqp = short(attribute),
            NET_CFG_MTU => config.mtu = short(attribute),
            NEGOTIATED_FEATURES => config.negotiated = longest(attribute),
            DEV_SUPPORTED_FEATURES => config.features = longest(attribute),
            _ => {}
        }
    }
    let known = config.negotiated.or(config.features).is_some_and(|features| features & F_STATUS != 0);
    config.link_up = status.filter(|_| known).map(|status| status & LINK_UP != 0);
    Ok(config)
}

pub(super) fn add(new: &VdpaNew) -> Result<(), NetlinkError> {
    let (mut channel, family) = open()?;
    channel.ask(family, Want::New, &addition(new), |_| Ok(()))
}

fn addition(new: &VdpaNew) -> Request {
    let mut request = of_device(DEV_NEW, &new.name);
    if let Some(bus) = &new.parent.bus {
        request.put_text(MGMTDEV_BUS_NAME, bus);
    }
    request.put_text(MGMTDEV_DEV_NAME, &new.parent.device);
    if let Some(mac) = new.mac {
        request.put(NET_CFG_MACADDR, &mac.0);
    }
    if let Some(mtu) = new.mtu {
        request.put(NET_CFG_MTU, &mtu.to_ne_bytes());
    }
    if let Some(pairs) = new.max_vqp {
        request.put(NET_CFG_MAX_VQP, &pairs.to_ne_bytes());
    }
    if let Some(features) = new.features {
        request.put(DEV_FEATURES, &features.to_ne_bytes());
    }
    request
}

pub(super) fn remove(name: &str) -> Result<(), NetlinkError> {
    let (mut channel, family) = open()?;
    channel.ask(family, Want::One, &of_device(DEV_DEL, name), |_| Ok(()))
}

pub(super) fn queue(name: &str, index: u32) -> Result<Vec<(String, u64)>, NetlinkError> {
    let (mut channel, family) = open()?;
    let mut request = of_device(DEV_VSTATS_GET, name);
    request.put_u32(QUEUE_INDEX, index);
    let mut found = vec![];
    channel.ask(family, Want::One, &request, |body| {
        found = statistics(behind(body))?;
        Ok(())
    })?;
    Ok(found)
}

/// Names and values, which follow each other.
fn statistics(body: &[u8]) -> Result<Vec<(String, u64)>, NetlinkError> {
    let (mut found, mut name) = (vec![], None);
    for attribute in attributes(body) {
        let attribute = attribute?;
        match attribute.kind {
            VENDOR_ATTR_NAME => name = Some(text(attribute.value)),
            VENDOR_ATTR_VALUE => found.extend(name.take().zip(longest(attribute))),
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(request: &Request) -> Vec<u8> {
        request.message(0, 0, 0)[super::super::request::HEADER + GENERIC..].to_vec()
    }

    fn parent(text: &str) -> VdpaParent {
        text.parse().unwrap()
    }

    #[test]
    fn a_management_device_has_a_bus_or_stands_for_itself() {
        assert_eq!(parent("pci/0000:0a:00.2").function(), "0000:0a:00.2".parse().ok());
        assert_eq!(parent("pci/0000:0a:00.2").to_string(), "pci/0000:0a:00.2");
        assert_eq!((parent("vdpasim_net").bus, parent("vdpasim_net").function()), (None, None));
        assert_eq!(parent("auxiliary/mlx5_core.sf.4").function(), None);
        let mut told = request(MGMTDEV_GET);
        told.put_text(MGMTDEV_BUS_NAME, "pci").put_text(MGMTDEV_DEV_NAME, "0000:0a:00.2");
        told.put(MGMTDEV_SUPPORTED_CLASSES, &2u64.to_ne_bytes()).put_u32(MGMTDEV_MAX_VQS, 33);
        told.put(SUPPORTED_FEATURES, &0x3_0020_0000u64.to_ne_bytes());
        let found = management_of(&bytes(&told)).unwrap().unwrap();
        assert_eq!((found.parent, found.classes, found.max_vqs), (parent("pci/0000:0a:00.2"), 2, Some(33)));
        assert_eq!(found.features, Some(0x3_0020_0000));
    }

    #[test]
    fn what_is_asked_for_reads_back_as_the_kernel_tells_it() {
        let new = VdpaNew {
            name: "vd0".into(),
            parent: parent("pci/0000:0a:00.2"),
            mac: "52:54:00:00:00:07".parse().ok(),
            mtu: Some(9000),
            max_vqp: Some(4),
            features: None,
        };
        let mut told = addition(&new);
        told.put_u32(DEV_ID, 1).put_u32(DEV_VENDOR_ID, 0x15b3).put_u32(DEV_MAX_VQS, 9);
        told.put(DEV_MAX_VQ_SIZE, &256u16.to_ne_bytes()).put(NET_STATUS, &1u16.to_ne_bytes());
        let device = device_of(&bytes(&told)).unwrap().unwrap();
        assert_eq!((device.name.as_str(), device.parent, device.max_vqs), ("vd0", new.parent, 9));
        assert_eq!((device.max_vq_size, device.min_vq_size), (Some(256), None));
        let config = config_of(&bytes(&told)).unwrap();
        assert_eq!((config.mac, config.mtu, config.max_vqp), (new.mac, Some(9000), Some(4)));
        assert_eq!(config.link_up, None, "without VIRTIO_NET_F_STATUS the status says nothing");
        told.put(NEGOTIATED_FEATURES, &F_STATUS.to_ne_bytes());
        assert_eq!(config_of(&bytes(&told)).unwrap().link_up, Some(true));
    }

    #[test]
    fn statistics_are_pairs_of_a_name_and_a_value() {
        let mut told = of_device(DEV_VSTATS_GET, "vd0");
        told.put_text(VENDOR_ATTR_NAME, "received_desc").put(VENDOR_ATTR_VALUE, &7u64.to_ne_bytes());
        told.put_text(VENDOR_ATTR_NAME, "completed_desc").put(VENDOR_ATTR_VALUE, &5u64.to_ne_bytes());
        let found = statistics(&bytes(&told)).unwrap();
        assert_eq!(found, [("received_desc".into(), 7), ("completed_desc".into(), 5)]);
        let all = bytes(&told);
        assert!(statistics(&all[..all.len() - 4]).is_err());
    }
}
