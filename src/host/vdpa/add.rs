//! Making a vDPA device, and giving it to `vhost_vdpa`.

use ringspan_protocol::{MacAddress, PortName};

use super::super::Host;
use super::super::netlink::{NetlinkError, VdpaNew, VdpaParent};
use super::super::steps::{Steps, wait};
use super::error::explain;
use super::list::management;
use super::node::{Place, needs_vhost};
use super::{Added, Book, Entry, Wish, adopted, identity, write};
use crate::error::{Error, ErrorKind};

/// Longest wait for a device to be in sysfs; it is, when the kernel has answered.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(2);
/// Longest name: what fits the name of a file, with room for what others hang on it.
const LONGEST_NAME: usize = 64;

/// What can never be right.
pub(super) fn check(wish: &Wish) -> Result<(), Error> {
    let name = &wish.name;
    let bad = |message: String| Err(Error::new(ErrorKind::Invalid, message).about(name));
    check_name(name)?;
    if wish.mtu.is_some_and(|mtu| mtu < 68) {
        return bad(format!("{name}: mtu is {}: it is 68 at least", wish.mtu.unwrap_or_default()));
    }
    if wish.max_vqp.is_some_and(|pairs| !(1..=0x8000).contains(&pairs)) {
        return bad(format!("{name}: max_vqp is {}: it is 1 to 32768", wish.max_vqp.unwrap_or_default()));
    }
    match wish.mac.map(MacAddress::unicast) {
        Some(Err(error)) => bad(format!("{name}: mac: {error}")),
        _ => Ok(()),
    }
}

pub(super) fn check_name(name: &str) -> Result<(), Error> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if !name.is_empty() && name.len() <= LONGEST_NAME && name.chars().all(fits) && !name.starts_with('.') {
        return Ok(());
    }
    let message = format!(
        "{name:?} is no name of a vDPA device: it has 1 to {LONGEST_NAME} letters, digits and -_.: and begins with no dot"
    );
    Err(Error::new(ErrorKind::Invalid, message).about(name))
}

/// Makes a device as it is wanted, or takes one that is there and is so; `vhost_vdpa` has it then.
pub(crate) fn add(host: &Host, book: &impl Book, wish: &Wish) -> Result<Added, Error> {
    check(wish)?;
    let name = &wish.name;
    let parent = management(host, name, &wish.management)?;
    needs_vhost(host, name)?;
    let mut steps = Steps::default();
    let node = match there(host, book, wish, &parent, &mut steps) {
        Ok(Some(node)) => Ok(node),
        Ok(None) => make(host, book, wish, &parent, None, &mut steps),
        Err(error) => Err(error),
    };
    match node {
        Ok(node) => Ok(Added { name: name.clone(), management: parent.to_string(), node, done: steps.finish() }),
        Err(error) => Err(steps.fail(error)),
    }
}

/// The node of a device that is there already, and is what is wanted.
fn there<'a>(
    host: &'a Host,
    book: &'a impl Book,
    wish: &'a Wish,
    parent: &VdpaParent,
    steps: &mut Steps<'a>,
) -> Result<Option<String>, Error> {
    let name = &wish.name;
    let place = Place::new(host, name);
    if !place.is_there() {
        return Ok(None);
    }
    let devices = host.kernel.vdpa_devices().map_err(|error| explain(name, "it cannot be looked for", &error))?;
    let exists = |message: String| {
        let message = format!("{message}: choose another name, or remove it (ringspan vdpa remove {name})");
        Err(Error { errno: Some(libc::EEXIST), ..Error::new(ErrorKind::Exists, message) }.about(name))
    };
    match devices.iter().find(|device| device.name == *name) {
        Some(device) if device.parent == *parent => {}
        Some(device) => return exists(format!("{name} exists already, on {}", device.parent)),
        // Made by a driver itself, not by anybody's wish (vdpa_register_device without a management device).
        None => return exists(format!("{name} exists already, and was not made on a management device")),
    }
    let entry = adopted(host, book, name)?;
    let differs = match &entry {
        Some(entry) if entry.made => {
            differences(wish, entry.wish.mac, entry.wish.mtu, entry.wish.max_vqp, entry.wish.features)
        }
        _ => {
            // Before a driver has started it, kernels before 6.1 say nothing of it.
            let config = host.kernel.vdpa_config(name).unwrap_or_default();
            differences(
                wish,
                config.mac.or(wish.mac),
                config.mtu.or(wish.mtu),
                config.max_vqp.or(wish.max_vqp),
                config.features.or(wish.features),
            )
        }
    };
    if !differs.is_empty() {
        return exists(format!("{name} exists already, with {}", differs.join(", ")));
    }
    let had = place.driver();
    if had.as_deref() != Some(super::VHOST) {
        place.quiet(wish.disturb)?;
        if entry.is_none() {
            let entry = Entry {
                wish: wish.clone(),
                boot: host.boot(),
                made: false,
                identity: identity(host, name),
                driver: had,
                port: None,
            };
            write(book, name, Some(entry))?;
            steps.did(format!("{name} is remembered, with its driver"), move || write(book, name, None));
        }
    }
    place.to_vhost(steps).map(Some)
}

/// What is wanted of it and is not so.
fn differences(
    wish: &Wish,
    mac: Option<MacAddress>,
    mtu: Option<u16>,
    max_vqp: Option<u16>,
    features: Option<u64>,
) -> Vec<String> {
    let said = |what: &str, is: Option<String>| format!("{what} {}", is.unwrap_or_else(|| "of its own".into()));
    let mut found = vec![];
    if wish.mac.is_some() && wish.mac != mac {
        found.push(said("MAC address", mac.map(|mac| mac.to_string())));
    }
    if wish.mtu.is_some() && wish.mtu != mtu {
        found.push(said("MTU", mtu.map(|mtu| mtu.to_string())));
    }
    if wish.max_vqp.is_some() && wish.max_vqp != max_vqp {
        found.push(said("queue pairs", max_vqp.map(|pairs| pairs.to_string())));
    }
    if wish.features.is_some() && wish.features != features {
        found.push(said("features", features.map(|features| format!("{features:#x}"))));
    }
    found
}

/// Makes a device that is not there. It is written down first; when a later step fails, it is taken away again.
pub(super) fn make<'a>(
    host: &'a Host,
    book: &'a impl Book,
    wish: &'a Wish,
    parent: &VdpaParent,
    port: Option<&PortName>,
    steps: &mut Steps<'a>,
) -> Result<String, Error> {
    let name = &wish.name;
    let entry =
        Entry { wish: wish.clone(), boot: host.boot(), made: true, identity: None, driver: None, port: port.cloned() };
    let before = book.load()?.remove(name);
    write(book, name, Some(entry.clone()))?;
    let new = VdpaNew {
        name: name.clone(),
        parent: parent.clone(),
        mac: wish.mac,
        mtu: wish.mtu,
        max_vqp: wish.max_vqp,
        features: wish.features,
    };
    if let Err(error) = host.kernel.add_vdpa(&new) {
        let told = explain(name, &format!("no device is made on {parent}"), &error);
        // Without an answer it may come yet, and is ours then.
        if matches!(error, NetlinkError::Refused { .. } | NetlinkError::NoFamily { .. }) {
            write(book, name, before)?;
        }
        return Err(told);
    }
    steps.did(format!("{parent} has the vDPA device {name}"), move || take(host, book, name));
    let place = Place::new(host, name);
    if wait(LIMIT, || identity(host, name)).is_none() {
        let message = format!("{name} was made and is not in sysfs ({})", host.sysfs.path(super::DEVICES).display());
        return Err(Error::new(ErrorKind::Failed, message).about(name));
    }
    write(book, name, Some(Entry { identity: identity(host, name), ..entry }))?;
    place.to_vhost(steps)
}

/// Takes a device away that ringspan made, and forgets it.
pub(super) fn take(host: &Host, book: &impl Book, name: &str) -> Result<(), Error> {
    let place = Place::new(host, name);
    place.unused()?;
    match host.kernel.remove_vdpa(name) {
        // Somebody else was faster.
        Err(error) if error.errno() == Some(libc::ENODEV) && !place.is_there() => {}
        other => other.map_err(|error| explain(name, "it is not taken away", &error))?,
    }
    write(book, name, None)
}
