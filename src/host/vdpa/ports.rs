//! The vDPA devices of ports: `device = "vdpa:0000:0a:00.2"`. One is made when its port is, and goes with it.

use ringspan_protocol::{MacAddress, PortName};

use super::super::Host;
use super::super::netlink::VdpaParent;
use super::super::steps::Steps;
use super::add::{make, take};
use super::error::explain;
use super::list::management;
use super::node::{Place, needs_vhost};
use super::{Added, Book, Entry, Wish, adopted, identity, is_there, write};
use crate::error::{Error, ErrorKind};

/// What a port wants of its device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForPort {
    /// The port.
    pub port: PortName,
    /// The management device.
    pub management: String,
    /// Its MAC address; absent: the device's own.
    pub mac: Option<MacAddress>,
    /// Its MTU, in bytes.
    pub mtu: u16,
    /// Its queue pairs.
    pub queues: u16,
}

/// What every network card has unless it is told otherwise.
const USUAL_MTU: u16 = 1500;

impl ForPort {
    /// The device's name, which nobody else gives one.
    pub(crate) fn device(&self) -> String {
        name_of(&self.port)
    }

    /// What the kernel is asked for. What a device has anyway is left out: many drivers let nothing be chosen.
    fn wish(&self) -> Wish {
        Wish {
            name: self.device(),
            management: self.management.clone(),
            mac: self.mac,
            mtu: Some(self.mtu).filter(|mtu| *mtu != USUAL_MTU),
            max_vqp: Some(self.queues).filter(|queues| *queues > 1),
            features: None,
            disturb: false,
        }
    }
}

fn name_of(port: &PortName) -> String {
    format!("ringspan-{port}")
}

/// Whether there is a device of the name that a port's has.
pub(crate) fn is_made(host: &Host, port: &PortName) -> bool {
    Place::new(host, &name_of(port)).is_there()
}

/// The node that a port's device has now.
pub(crate) fn node_of(host: &Host, port: &PortName) -> Option<String> {
    Place::new(host, &name_of(port)).node()
}

/// Makes a port's device where it is not there, and returns its node. The lane says whether it fits the port.
pub(crate) fn ensure(host: &Host, book: &impl Book, wanted: &ForPort) -> Result<Added, Error> {
    let wish = wanted.wish();
    let name = &wish.name;
    let about = format!("port {}: {name}", wanted.port);
    let parent = management(host, &about, &wanted.management)?;
    needs_vhost(host, &about)?;
    let place = Place::new(host, name);
    let mut steps = Steps::default();
    let entry = adopted(host, book, name)?.filter(|entry| entry.made);
    if let Some(entry) = &entry {
        let same = Wish { disturb: false, ..entry.wish.clone() } == wish;
        let used = place.process().is_some();
        if same || used && entry.wish.management == wish.management {
            return finish(place.to_vhost(&mut steps), steps, wanted, &parent);
        }
        take(host, book, name)?;
    } else if identity(host, name).is_some() {
        let message = format!(
            "{about} exists already, and ringspan did not make it: take it away (ringspan vdpa remove {name} --disturb)"
        );
        return Err(Error::new(ErrorKind::Exists, message).about(&wanted.port));
    }
    alone(host, wanted, &parent)?;
    let mut tries = vec![
        wish.clone(),
        Wish { max_vqp: None, ..wish.clone() },
        Wish { max_vqp: None, mtu: None, ..wish.clone() },
        Wish { max_vqp: None, mtu: None, mac: None, ..wish.clone() },
    ];
    tries.dedup();
    let last = tries.len() - 1;
    for (number, attempt) in tries.iter().enumerate() {
        let mut steps = Steps::default();
        let made = make(host, book, attempt, &parent, Some(&wanted.port), &mut steps);
        match made {
            // Its driver does not let that be chosen, and made none. Whether what it has fits is seen by the lane.
            Err(error) if error.errno == Some(libc::EOPNOTSUPP) && steps.is_empty() && number < last => {}
            Err(error) => return Err(steps.fail(error).about(&wanted.port)),
            Ok(node) => {
                if number > 0 {
                    steps.note(format!("the driver of {parent} lets not all of {name} be chosen: it has its own"));
                    // Compared with what is wanted when the port comes again.
                    let entry = book.load()?.remove(name);
                    write(book, name, entry.map(|entry| Entry { wish: wish.clone(), ..entry }))?;
                }
                return finish(Ok(node), steps, wanted, &parent);
            }
        }
    }
    Err(Error::new(ErrorKind::Failed, format!("{about}: no device")).about(&wanted.port))
}

fn finish(
    node: Result<String, Error>,
    steps: Steps<'_>,
    wanted: &ForPort,
    parent: &VdpaParent,
) -> Result<Added, Error> {
    match node {
        Ok(node) => Ok(Added { name: wanted.device(), management: parent.to_string(), node, done: steps.finish() }),
        Err(error) => Err(steps.fail(error).about(&wanted.port)),
    }
}

/// Refuses a function that has a device already: none of the drivers makes two on one.
fn alone(host: &Host, wanted: &ForPort, parent: &VdpaParent) -> Result<(), Error> {
    let about = &wanted.port;
    let asked = host.kernel.vdpa_devices();
    let devices = asked.map_err(|error| explain(&format!("port {about}"), "the bus cannot be asked", &error))?;
    let Some(other) = devices.iter().find(|one| one.parent == *parent).filter(|_| parent.bus.is_some()) else {
        return Ok(());
    };
    let name = &other.name;
    let place = Place::new(host, name);
    let by_node = match place.node() {
        Some(node) => format!("name that (vhost-vdpa:{node})"),
        None => "leave it to its driver".into(),
    };
    let message = format!(
        "port {about}: {parent} has the vDPA device {name} already, which is not this port's: {by_node}, or take it away (ringspan vdpa remove {name})"
    );
    Err(Error { errno: Some(libc::EBUSY), ..Error::new(ErrorKind::Busy, message) }.about(about))
}

/// Takes the devices of ports away that are not wanted any more, and forgets those that are gone. Returns what was done, and what could not be.
pub(crate) fn sweep(
    host: &Host,
    book: &impl Book,
    wanted: impl Fn(&PortName) -> bool,
) -> Result<Vec<Result<String, Error>>, Error> {
    let mut done = vec![];
    for (name, entry) in book.load()? {
        if !is_there(host, &name, &entry) {
            write(book, &name, None)?;
            continue;
        }
        let Some(port) = entry.port.filter(|port| !wanted(port)) else { continue };
        let taken = take(host, book, &name);
        done.push(taken.map(|()| format!("the vDPA device {name} of the port {port} is gone")));
    }
    Ok(done)
}
