//! The flows of OVS's kernel datapath, by generic netlink: one dump, and then each change as it is told.
//!
//! Messages, keys and actions are those of linux/openvswitch.h. They are read here and not by bindings that are generated from the
//! kernel's specification: those pass over attributes that they do not know, and a flow with a match passed over is too wide.
//!
//! What the kernel does not tell: that somebody flushed a datapath (`ovs-appctl dpctl/del-flows`), and counters. For both, whoever
//! mirrors a datapath dumps it again from time to time.

mod action;
pub(crate) mod attribute;
mod error;
mod flow;
mod key;
mod socket;
pub(crate) mod tunnel;

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use thiserror::Error;

pub use error::DecodeError;
pub use flow::{Told, Unreadable};

use crate::ovs::flow::Ufid;
use action::text;
use attribute::attributes;
use flow::told;
use socket::{Channel, Family, Kind, Message};

/// struct ovs_header: the datapath's interface index.
const HEADER: usize = 4;

const CMD_NEW: u8 = 1;
const CMD_DEL: u8 = 2;
const CMD_GET: u8 = 3;
const CMD_SET: u8 = 4;

const DP_ATTR_NAME: u16 = 1;
const VPORT_ATTR_PORT_NO: u16 = 1;
const VPORT_ATTR_NAME: u16 = 3;
/// The name that ovs-vswitchd gives its datapath (lib/dpif-netlink.c).
pub const OVS_SYSTEM: &str = "ovs-system";

/// Versions of the families: OVS_DATAPATH_VERSION, OVS_VPORT_VERSION, OVS_FLOW_VERSION.
const DATAPATH_VERSION: u8 = 2;
const VPORT_VERSION: u8 = 1;
const FLOW_VERSION: u8 = 1;

/// How often a dump is begun anew because something changed meanwhile.
const TRIES: u32 = 10;

/// Why the kernel's flows cannot be had.
#[derive(Debug, Error)]
pub enum KernelError {
    /// A system call failed.
    #[error("the netlink socket to the kernel's datapath: {doing}: {source}")]
    Socket {
        /// What was being done.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel has no such family or group.
    #[error("the kernel has no `{name}`: load its module (modprobe openvswitch)")]
    NoFamily {
        /// Its name.
        name: &'static str,
    },
    /// There is no such datapath.
    #[error("the kernel has no datapath `{name}`; there is {there}")]
    NoDatapath {
        /// What was asked for.
        name: Box<str>,
        /// What there is.
        there: String,
    },
    /// It was asked and said no.
    #[error("the kernel refused command {command}: {source}")]
    Refused {
        /// The command.
        command: u8,
        /// Why.
        source: io::Error,
    },
    /// A message is longer than any that the kernel sends.
    #[error("a message of {length} bytes")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// Something changed during a dump.
    #[error("the flows changed faster than they could be dumped")]
    Changed,
    /// Changes were told faster than they were read: what was told is not known, and a new dump is needed.
    #[error("changes were lost because they came faster than they were read")]
    Overrun,
    /// A message is not understood.
    #[error("a message of the kernel is not understood: {0}")]
    Decode(#[from] DecodeError),
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A flow is new, or another one than it was.
    Put(Told),
    /// It is gone.
    Deleted(Ufid),
    /// One without a name is gone, which another tool than OVS had made: which one, a new dump says.
    DeletedUnnamed,
    /// A port came, went or is another one: what its number stands for is to be asked anew ([`Datapath::ports`]).
    Ports,
}

/// A datapath of the kernel.
pub struct Datapath {
    channel: Channel,
    index: u32,
    vport: Family,
    flow: Family,
}

impl Datapath {
    /// The names of all there are: with OVS one, `ovs-system`.
    ///
    /// # Errors
    /// [`KernelError::NoFamily`] without the kernel's module.
    pub fn list() -> Result<Vec<Box<str>>, KernelError> {
        Ok(all(&mut Channel::open()?)?.into_iter().map(|(name, _)| name).collect())
    }

    /// Opens the datapath of that name.
    ///
    /// # Errors
    /// [`KernelError::NoFamily`] without the kernel's module, [`KernelError::NoDatapath`].
    pub fn open(name: &str) -> Result<Self, KernelError> {
        let mut channel = Channel::open()?;
        let all = all(&mut channel)?;
        let Some(&(_, index)) = all.iter().find(|(own, _)| &**own == name) else {
            let names: Vec<&str> = all.iter().map(|(name, _)| &**name).collect();
            let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(KernelError::NoDatapath { name: name.into(), there });
        };
        let (vport, flow) = (channel.family("ovs_vport")?, channel.family("ovs_flow")?);
        Ok(Self { channel, index, vport, flow })
    }

    /// Its ports: number and name.
    ///
    /// # Errors
    /// The datapath is gone ([`KernelError::Refused`]).
    pub fn ports(&mut self) -> Result<Vec<(u32, Box<str>)>, KernelError> {
        let mut ports = vec![];
        let (family, payload) = (self.vport.id, self.index.to_ne_bytes());
        self.channel.ask(family, CMD_GET, VPORT_VERSION, Kind::Dump, &payload, |message| {
            let (mut number, mut name) = (None, None);
            for attribute in attributes(message.payload.get(HEADER..).unwrap_or_default()) {
                let attribute = attribute?;
                match attribute.kind {
                    VPORT_ATTR_PORT_NO => number = Some(attribute.u32("a port's number")?),
                    VPORT_ATTR_NAME => name = Some(text(attribute.value)),
                    _ => {}
                }
            }
            ports.extend(number.zip(name));
            Ok(())
        })?;
        Ok(ports)
    }

    /// All flows, each once. The kernel reads its table piece by piece: a flow that comes or goes meanwhile may be there or not, and where
    /// it says that the table itself changed (NLM_F_DUMP_INTR; kernels that are read here do not) all are asked for again. Whoever needs
    /// all of them at all times listens first ([`Datapath::watch`]).
    ///
    /// # Errors
    /// [`KernelError::Changed`] where it never stood still; the datapath is gone ([`KernelError::Refused`]).
    pub fn dump(&mut self) -> Result<Vec<Told>, KernelError> {
        for _ in 0..TRIES {
            let mut flows = vec![];
            let dumped = self.dump_each(|told| {
                flows.push(told);
                Ok(())
            });
            match dumped {
                Ok(()) => return Ok(once(flows)),
                Err(KernelError::Changed) => {}
                Err(error) => return Err(error),
            }
        }
        Err(KernelError::Changed)
    }

    /// All flows one by one, some perhaps twice. After an error what was given is of no worth.
    ///
    /// # Errors
    /// [`KernelError::Changed`] where the table changed meanwhile; the datapath is gone ([`KernelError::Refused`]); one of `each`.
    pub fn dump_each(&mut self, mut each: impl FnMut(Told) -> Result<(), KernelError>) -> Result<(), KernelError> {
        let (family, payload) = (self.flow.id, self.index.to_ne_bytes());
        self.channel.ask(family, CMD_GET, FLOW_VERSION, Kind::Dump, &payload, |message| {
            each(told(message.payload.get(HEADER..).unwrap_or_default())?)
        })
    }

    /// Listens to the datapath's changes. What changes before the next dump is told too, so that nothing falls between.
    ///
    /// # Errors
    /// This process may not listen.
    pub fn watch(&self) -> Result<Watch, KernelError> {
        let mut channel = Channel::open()?;
        channel.listen(&self.flow, "ovs_flow")?;
        channel.listen(&self.vport, "ovs_vport")?;
        Ok(Watch { channel, families: [self.flow.id, self.vport.id], index: self.index })
    }
}

/// Without repetitions: a table that grew during a dump has flows told twice.
fn once(mut flows: Vec<Told>) -> Vec<Told> {
    let mut seen = HashSet::new();
    flows.retain(|told| told.ufid().is_none_or(|ufid| seen.insert(ufid)));
    flows
}

/// What is told of a datapath's flows.
pub struct Watch {
    channel: Channel,
    /// Of flows and of ports.
    families: [u16; 2],
    index: u32,
}

impl Watch {
    /// Waits for changes, `limit` at most, and puts those that were told, some thousand at most, behind those in `changes`, in their order.
    ///
    /// # Errors
    /// [`KernelError::Overrun`] and whatever is not understood: the changes from here on are not all known, and a new dump is needed.
    pub fn wait(&mut self, limit: Duration, changes: &mut Vec<Change>) -> Result<(), KernelError> {
        let (families, index) = (self.families, self.index);
        let each = |message: Message<'_>| {
            changes.extend(change(&message, families, index)?);
            Ok(())
        };
        self.channel.told(limit, each).map(drop)
    }
}

/// The changes that a datagram of the kernel's tells, as [`Watch::wait`] reads them: for datagrams that were recorded. `families` are the numbers that the
/// kernel had for flows and for ports, `index` is the datapath's.
///
/// # Errors
/// It is not understood.
pub fn changes_of(datagram: &[u8], families: [u16; 2], index: u32) -> Result<Vec<Change>, KernelError> {
    let mut changes = vec![];
    socket::each_of(datagram, |message| {
        changes.extend(change(&message, families, index)?);
        Ok(())
    })?;
    Ok(changes)
}

/// What a message says, if it is about flows or ports of that datapath.
fn change(message: &Message<'_>, families: [u16; 2], index: u32) -> Result<Option<Change>, KernelError> {
    let Some((header, body)) = message.payload.split_first_chunk::<HEADER>() else { return Ok(None) };
    let [flow, vport] = families;
    if u32::from_ne_bytes(*header) != index {
        return Ok(None);
    }
    if message.family == vport {
        // Statistics are no change, and nobody tells of them.
        return Ok(Some(Change::Ports));
    }
    if message.family != flow {
        return Ok(None);
    }
    match message.command {
        CMD_NEW | CMD_SET => Ok(Some(Change::Put(told(body)?))),
        CMD_DEL => Ok(Some(flow::ufid(body)?.map_or(Change::DeletedUnnamed, Change::Deleted))),
        _ => Ok(None),
    }
}

/// All datapaths: name and index.
fn all(channel: &mut Channel) -> Result<Vec<(Box<str>, u32)>, KernelError> {
    let family = channel.family("ovs_datapath")?;
    let mut found = vec![];
    channel.ask(family.id, CMD_GET, DATAPATH_VERSION, Kind::Dump, &[0; HEADER], |message| {
        let Some((header, body)) = message.payload.split_first_chunk::<HEADER>() else { return Ok(()) };
        if let Some(name) = attribute::find(body, DP_ATTR_NAME)? {
            found.push((text(name), u32::from_ne_bytes(*header)));
        }
        Ok(())
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests;
