//! What is on the vDPA bus.

use std::collections::BTreeMap;

use ringspan_protocol::PciAddress;

use super::super::Host;
use super::super::inventory::find;
use super::super::netlink::{NetlinkError, VdpaDevice, VdpaManagement, VdpaParent};
use super::super::pci::attribute;
use super::error::{explain, no_bus, no_management};
use super::node::Place;
use super::{Book, Device, Entries, Management, QueueStatistics, Statistics, Vdpa, class, is_there};
use crate::error::{Error, ErrorKind};

/// Queues of a device that are asked for statistics, which are more than a network card may have (drivers/vdpa/vdpa.c asks for no more).
const MOST_QUEUES: u32 = 257;

/// All of it. A kernel without the bus has nothing on it, and `problem` says so. `owner` knows the port of ringspan's that names a node.
pub(crate) fn list(
    host: &Host,
    book: &(impl Book + ?Sized),
    statistics: bool,
    owner: impl Fn(&str) -> Option<String>,
) -> Result<Vdpa, Error> {
    let told = |error: NetlinkError| explain("vdpa", "the bus cannot be asked", &error);
    let management = match host.kernel.vdpa_management() {
        Err(NetlinkError::NoFamily { .. }) => {
            return Ok(Vdpa { problem: Some(no_bus().message), ..Vdpa::default() });
        }
        other => other.map_err(told)?,
    };
    let devices = host.kernel.vdpa_devices().map_err(told)?;
    let entries = book.load()?;
    let mut found = Vdpa {
        management: management.iter().map(|one| managed(host, one, &devices)).collect(),
        devices: devices.iter().map(|one| device(host, &entries, one, statistics, &owner)).collect(),
        problem: None,
    };
    found.management.sort_by(|a, b| a.name.cmp(&b.name));
    found.devices.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn managed(host: &Host, one: &VdpaManagement, devices: &[VdpaDevice]) -> Management {
    let address = one.parent.function();
    let classes = (0..64).filter(|bit| one.classes & 1 << bit != 0);
    Management {
        name: one.parent.to_string(),
        address,
        driver: address.and_then(|address| host.sysfs.link(&attribute(address, "driver"))),
        classes: classes.map(class).collect(),
        max_vqs: one.max_vqs,
        features: one.features,
        devices: devices.iter().filter(|device| device.parent == one.parent).map(|one| one.name.clone()).collect(),
    }
}

fn device(
    host: &Host,
    entries: &Entries,
    one: &VdpaDevice,
    statistics: bool,
    owner: impl Fn(&str) -> Option<String>,
) -> Device {
    let place = Place::new(host, &one.name);
    let (config, unknown) = match host.kernel.vdpa_config(&one.name) {
        Ok(config) => (config, None),
        Err(error) => (Default::default(), Some(not_known(&error))),
    };
    let node = place.node();
    let entry = entries.get(&one.name).filter(|entry| is_there(host, &one.name, entry));
    Device {
        name: one.name.clone(),
        management: one.parent.to_string(),
        class: class(one.id),
        vendor: one.vendor,
        max_vqs: one.max_vqs,
        max_vq_size: one.max_vq_size,
        min_vq_size: one.min_vq_size,
        driver: place.driver(),
        interface: place.interface(),
        mac: config.mac,
        mtu: config.mtu,
        link_up: config.link_up,
        max_vqp: config.max_vqp,
        negotiated: config.negotiated,
        features: config.features,
        unknown,
        made: entry.is_some_and(|entry| entry.made),
        owner: entry
            .and_then(|entry| entry.port.as_ref().map(ToString::to_string))
            .or_else(|| node.as_deref().and_then(owner)),
        process: place.process(),
        node,
        statistics: statistics.then(|| counted(host, one)),
    }
}

fn not_known(error: &NetlinkError) -> String {
    match error.errno() {
        Some(libc::EAGAIN) => "this kernel knows them when a guest's driver has started the device".into(),
        _ => error.to_string(),
    }
}

/// Queue by queue, until the driver has no more of them.
fn counted(host: &Host, device: &VdpaDevice) -> Statistics {
    let mut found = Statistics::default();
    for queue in 0..device.max_vqs.min(MOST_QUEUES) {
        match host.kernel.vdpa_queue(&device.name, queue) {
            Ok(counters) => {
                found.queues.push(QueueStatistics { queue, counters: counters.into_iter().collect::<BTreeMap<_, _>>() })
            }
            // The queues that are in use come first (drivers/vdpa/mlx5/net/mlx5_vnet.c, is_index_valid).
            Err(error) if error.errno() == Some(libc::EINVAL) && queue > 0 => break,
            Err(error) => {
                found.problem = Some(match error.errno() {
                    Some(libc::EOPNOTSUPP) => "its driver has no statistics".into(),
                    Some(libc::EAGAIN) => "there are none before a guest's driver has started the device".into(),
                    Some(libc::EPERM) => "they need CAP_NET_ADMIN: run the daemon as root".into(),
                    _ => error.to_string(),
                });
                break;
            }
        }
    }
    found
}

/// The management device of this name: as the kernel has it, or of a function.
pub(super) fn management(host: &Host, about: &str, name: &str) -> Result<VdpaParent, Error> {
    let known = host.kernel.vdpa_management();
    let known = known.map_err(|error| explain(about, "its management device cannot be asked for", &error))?;
    let called = known.iter().find(|one| one.parent.to_string() == name);
    let parent = match called {
        Some(one) => one.parent.clone(),
        None => match name.parse::<PciAddress>().or_else(|_| find(host, name)) {
            Ok(address) => address.into(),
            Err(_) => match name.parse::<VdpaParent>() {
                Ok(parent) => parent,
                Err(never) => match never {},
            },
        },
    };
    let Some(found) = known.iter().find(|one| one.parent == parent) else {
        let names: Vec<String> = known.iter().map(|one| one.parent.to_string()).collect();
        return Err(no_management(host, about, &parent, &names));
    };
    // VIRTIO_ID_NET.
    if found.classes & 1 << 1 == 0 {
        let classes: Vec<String> = (0..64).filter(|bit| found.classes & 1 << bit != 0).map(class).collect();
        let message = format!("{about}: {parent} makes no network cards, but {}", classes.join(", "));
        return Err(Error::new(ErrorKind::Unsupported, message).about(about));
    }
    Ok(parent)
}

/// Which functions are management devices, and the devices on each; nothing where the kernel has no vDPA bus.
pub(crate) fn on_function(host: &Host) -> BTreeMap<PciAddress, Vec<String>> {
    let Ok(management) = host.kernel.vdpa_management() else { return BTreeMap::new() };
    let devices = host.kernel.vdpa_devices().unwrap_or_default();
    let names = |parent: &VdpaParent| {
        let mut names: Vec<String> =
            devices.iter().filter(|one| one.parent == *parent).map(|one| one.name.clone()).collect();
        names.sort();
        names
    };
    management.iter().filter_map(|one| Some((one.parent.function()?, names(&one.parent)))).collect()
}
