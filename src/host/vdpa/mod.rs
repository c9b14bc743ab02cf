//! The host's side of hardware vDPA: devices of the kernel's vDPA bus are made, given to `vhost_vdpa`, found again, and taken away.
//!
//! What ringspan makes or gives another driver is written down before it is done ([`Book`]), so that a daemon that was killed in between neither leaks a
//! device nor takes one away that it did not make. An entry stands for a device of this boot of the machine, and for that one only.

mod add;
mod error;
mod list;
mod node;
mod ports;
mod remove;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use ringspan_protocol::{MacAddress, PciAddress, PortName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use add::add;
pub(crate) use list::{list, on_function};
pub(crate) use ports::{ForPort, ensure, is_made, node_of, sweep};
pub(crate) use remove::remove;

use super::Host;
use crate::error::Error;

/// Where the kernel shows its vDPA devices.
const DEVICES: &str = "bus/vdpa/devices";
/// The driver that makes nodes of them.
const VHOST: &str = "vhost_vdpa";

/// A device that is wanted. What is absent is left to its driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wish {
    /// Its name.
    pub name: String,
    /// The management device: as `vdpa.list` names it, or a PCI address in either form.
    pub management: String,
    /// Its MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// Its MTU in bytes, 68 to 65535.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Most queue pairs, 1 to 32768.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_vqp: Option<u16>,
    /// The only virtio features that it offers, as bits; from Linux 6.2 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<u64>,
    /// Also when it is there and its interface is up, which would be gone.
    #[serde(default)]
    pub disturb: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Added {
    /// The device.
    pub name: String,
    /// What it is on.
    pub management: String,
    /// The node that a port may name.
    pub node: String,
    /// What was done; empty: it was so already.
    pub done: Vec<String>,
}

/// What came of a removal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Gone {
    /// What was done; empty: it was so already.
    pub done: Vec<String>,
}

/// The vDPA bus.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Vdpa {
    /// What devices can be made on, sorted by name.
    pub management: Vec<Management>,
    /// The devices, sorted by name.
    pub devices: Vec<Device>,
    /// Why there are none; absent: the kernel was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A management device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Management {
    /// As the kernel calls it: `pci/0000:0a:00.2`, or `vdpasim_net`.
    pub name: String,
    /// The function that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<PciAddress>,
    /// The driver of that function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// What can be made on it: `net`, `block`, or the number of another virtio device.
    pub classes: Vec<String>,
    /// Most virtqueues of a device; absent: the kernel is older than 5.18.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_vqs: Option<u32>,
    /// The virtio features of its devices, as bits; absent: the kernel is older than 5.18.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<u64>,
    /// The devices on it.
    pub devices: Vec<String>,
}

/// A vDPA device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Device {
    /// Its name.
    pub name: String,
    /// What it was made on.
    pub management: String,
    /// `net`, `block`, or the number of another virtio device.
    pub class: String,
    /// Its vendor.
    pub vendor: u32,
    /// How many virtqueues it has.
    pub max_vqs: u32,
    /// Largest ring, in descriptors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_vq_size: Option<u16>,
    /// Smallest ring, in descriptors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_vq_size: Option<u16>,
    /// The driver that has it: `vhost_vdpa` or `virtio_vdpa`; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Its node, with `vhost_vdpa`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its interface, with `virtio_vdpa`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Its MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// Its MTU, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Whether it has a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_up: Option<bool>,
    /// Queue pairs, where several were agreed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_vqp: Option<u16>,
    /// The features that its driver took, as bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negotiated: Option<u64>,
    /// The features that it offers, as bits; absent: the kernel is older than 6.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<u64>,
    /// Why address, MTU, link and features are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
    /// Whether ringspan made it.
    pub made: bool,
    /// The port that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The process that has its node open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<u32>,
    /// What its driver counts; absent unless asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics: Option<Statistics>,
}

/// What a device's driver counts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Statistics {
    /// By queue.
    pub queues: Vec<QueueStatistics>,
    /// Why there are none, or not of every queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What a device's driver counts of a queue, in its own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct QueueStatistics {
    /// The virtqueue: 0 is the first pair's receive queue, 1 its transmit queue.
    pub queue: u32,
    /// Counters.
    pub counters: BTreeMap<String, u64>,
}

/// What is written down of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// What it was made with.
    pub wish: Wish,
    /// The boot of the machine: no device outlives it.
    pub boot: String,
    /// Whether ringspan made it; else it was there, and had another driver.
    pub made: bool,
    /// What tells it from a later one of its name: absent while it is being made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<u64>,
    /// The driver that it had, where it was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The port that it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortName>,
}

/// What is written down, by the names of devices.
pub(crate) type Entries = BTreeMap<String, Entry>;

/// Where it is written down.
pub(crate) trait Book {
    /// All of it.
    fn load(&self) -> Result<Entries, Error>;
    /// Replaces it; returns when that is durable.
    fn save(&self, entries: &Entries) -> Result<(), Error>;
}

/// Writes one entry, or takes it out.
fn write(book: &(impl Book + ?Sized), name: &str, entry: Option<Entry>) -> Result<(), Error> {
    let mut entries = book.load()?;
    let changed = match entry {
        Some(entry) => entries.insert(name.into(), entry.clone()) != Some(entry),
        None => entries.remove(name).is_some(),
    };
    if changed { book.save(&entries) } else { Ok(()) }
}

/// What tells a device from another one of its name: the number of its folder, which sysfs gives to no other (fs/kernfs/dir.c).
fn identity(host: &Host, name: &str) -> Option<u64> {
    std::fs::metadata(host.sysfs.path(&format!("{DEVICES}/{name}"))).ok().map(|folder| folder.ino())
}

/// Whether an entry is of a device that is there now.
fn is_there(host: &Host, name: &str, entry: &Entry) -> bool {
    let now = identity(host, name);
    entry.boot == host.boot() && now.is_some() && entry.identity.is_none_or(|known| Some(known) == now)
}

/// The entry of a device that is there now. Where a daemon was killed before it wrote down which device that is, it is written down now: a later one of its
/// name is not taken for it.
fn adopted(host: &Host, book: &impl Book, name: &str) -> Result<Option<Entry>, Error> {
    let Some(mut entry) = book.load()?.remove(name).filter(|entry| is_there(host, name, entry)) else {
        return Ok(None);
    };
    if entry.identity.is_none() {
        entry.identity = identity(host, name);
        write(book, name, Some(entry.clone()))?;
    }
    Ok(Some(entry))
}

/// What virtio calls a device (include/uapi/linux/virtio_ids.h).
fn class(id: u32) -> String {
    match id {
        1 => "net".into(),
        2 => "block".into(),
        other => other.to_string(),
    }
}
