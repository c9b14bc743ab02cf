//! A socket of generic netlink: requests, dumps, and what is told to a multicast group.
//!
//! The kernel's answers come at once. A dump during which something changed may lack or repeat parts (NLM_F_DUMP_INTR), and a
//! listener that is too slow loses messages (ENOBUFS): both are said, never passed over.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use super::KernelError;
use super::action::text;
use super::attribute::attributes;

/// struct nlmsghdr and struct genlmsghdr.
const HEADER: usize = 16;
const GENERIC: usize = 4;
/// More than the kernel puts into one datagram of a dump.
const LARGEST: usize = 64 << 10;
/// What may wait for a listener, in bytes; a flow has some hundred.
const BACKLOG: usize = 8 << 20;

/// Datagrams of a group, of one change each, that are read in one go: whoever is told can keep up, and has not to hold more.
const AT_ONCE: usize = 4096;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_ACK: u16 = 0x04;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;

/// A family of generic netlink.
#[derive(Debug, Clone)]
pub struct Family {
    /// Its number since this boot.
    pub id: u16,
    /// Its groups, by name.
    groups: Vec<(Box<str>, u32)>,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One answer.
    Get,
    /// All there is.
    Dump,
}

/// A message, from behind its generic header.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Its family.
    pub family: u16,
    /// Its command.
    pub command: u8,
    /// What it says.
    pub payload: &'a [u8],
}

/// The socket.
pub struct Channel {
    socket: Socket,
    sequence: u32,
    buffer: Box<[u8]>,
}

impl Channel {
    /// Opens it.
    ///
    /// # Errors
    /// The system has no descriptors left.
    pub fn open() -> Result<Self, KernelError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_GENERIC)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(|source| KernelError::Socket { doing: "opening it", source })?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; LARGEST].into() })
    }

    /// Looks a family up.
    ///
    /// # Errors
    /// [`KernelError::NoFamily`]: its module is not loaded.
    pub fn family(&mut self, name: &'static str) -> Result<Family, KernelError> {
        let mut payload = vec![];
        let value = [name.as_bytes(), &[0]].concat();
        payload.extend(((value.len() + 4) as u16).to_ne_bytes());
        payload.extend(CTRL_ATTR_FAMILY_NAME.to_ne_bytes());
        payload.extend(value);
        payload.resize(payload.len().next_multiple_of(4), 0);
        let mut found = None;
        let ask = self.ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 1, Kind::Get, &payload, |message| {
            found = Some(family(message.payload)?);
            Ok(())
        });
        match ask {
            Err(KernelError::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => {
                Err(KernelError::NoFamily { name })
            }
            Err(error) => Err(error),
            Ok(()) => found.ok_or(KernelError::NoFamily { name }),
        }
    }

    /// Sends a request, and gives each message of the answer to `each`.
    ///
    /// # Errors
    /// [`KernelError::Refused`] with the kernel's reason; [`KernelError::Changed`] where something changed during a dump: what
    /// was given is not to be used; an error of `each`, after the rest of the answer.
    pub fn ask(
        &mut self,
        family: u16,
        command: u8,
        version: u8,
        kind: Kind,
        payload: &[u8],
        mut each: impl FnMut(Message<'_>) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let flags = NLM_F_REQUEST | if kind == Kind::Dump { NLM_F_DUMP } else { NLM_F_ACK };
        let mut request = vec![];
        request.extend(((HEADER + GENERIC + payload.len()) as u32).to_ne_bytes());
        request.extend(family.to_ne_bytes());
        request.extend(flags.to_ne_bytes());
        request.extend(sequence.to_ne_bytes());
        request.extend([0; 4]);
        request.extend([command, version, 0, 0]);
        request.extend(payload);
        let sent = self.socket.send(&request, 0);
        sent.map_err(|source| KernelError::Socket { doing: "sending a request", source })?;
        let (mut changed, mut failed) = (false, None);
        loop {
            let length = receive(&self.socket, &mut self.buffer, 0)?;
            for message in messages(&self.buffer[..length]) {
                let Raw { kind, flags, sequence: of, body } = message?;
                if of != sequence {
                    continue;
                }
                changed |= flags & NLM_F_DUMP_INTR != 0;
                match kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        let code = body.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
                        if code != 0 {
                            let source = io::Error::from_raw_os_error(-code);
                            return Err(KernelError::Refused { command, source });
                        }
                        return match failed {
                            Some(error) => Err(error),
                            None if changed => Err(KernelError::Changed),
                            None => Ok(()),
                        };
                    }
                    _ if failed.is_some() => {}
                    kind => failed = generic(kind, body).and_then(&mut each).err(),
                }
            }
        }
    }

    /// Is told from here on what is told to a group.
    ///
    /// # Errors
    /// There is no such group, or this process may not listen.
    pub fn listen(&mut self, family: &Family, group: &'static str) -> Result<(), KernelError> {
        let number = family.groups.iter().find(|(name, _)| &**name == group).map(|(_, number)| *number);
        let number = number.ok_or(KernelError::NoFamily { name: group })?;
        let join = || {
            // Beyond the system's limit with CAP_NET_ADMIN only; without it, what the limit allows.
            let force = setsockopt(&self.socket, sockopt::RcvBufForce, &BACKLOG);
            if force.is_err() {
                self.socket.set_rx_buf_sz(BACKLOG as i32)?;
            }
            self.socket.add_membership(number)
        };
        join().map_err(|source| KernelError::Socket { doing: "joining a group", source })
    }

    /// Waits for what is told, `limit` at most, and gives what is there to `each`, [`AT_ONCE`] datagrams at most. False when nothing was.
    ///
    /// # Errors
    /// [`KernelError::Overrun`]: messages were lost. An error of `each`, after the rest of what was there.
    pub fn told(
        &mut self,
        limit: Duration,
        mut each: impl FnMut(Message<'_>) -> Result<(), KernelError>,
    ) -> Result<bool, KernelError> {
        let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        match poll(&mut ready, timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(KernelError::Socket { doing: "waiting", source: error.into() }),
        }
        let mut failed = None;
        for _ in 0..AT_ONCE {
            let length = match receive(&self.socket, &mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(KernelError::Socket { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            failed = failed.or(each_of(&self.buffer[..length], &mut each).err());
        }
        failed.map_or(Ok(true), Err)
    }
}

/// Gives each message of a datagram of a group's to `each`.
///
/// # Errors
/// The first one of `each`, after the rest, or a message that is cut.
pub fn each_of(
    datagram: &[u8],
    mut each: impl FnMut(Message<'_>) -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    let mut failed = None;
    for message in messages(datagram) {
        let Raw { kind, body, .. } = message?;
        failed = failed.or(generic(kind, body).and_then(&mut each).err());
    }
    failed.map_or(Ok(()), Err)
}

fn receive(socket: &Socket, buffer: &mut [u8], flags: i32) -> Result<usize, KernelError> {
    loop {
        match socket.recv(&mut &mut *buffer, flags | libc::MSG_TRUNC) {
            Ok(length) if length > buffer.len() => return Err(KernelError::TooLong { length }),
            Ok(length) => return Ok(length),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Err(KernelError::Overrun),
            Err(source) => return Err(KernelError::Socket { doing: "receiving", source }),
        }
    }
}

/// A message with its own header read.
struct Raw<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The messages of a datagram.
fn messages(bytes: &[u8]) -> impl Iterator<Item = Result<Raw<'_>, KernelError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<HEADER>()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let Some(body) = rest.get(HEADER..length) else {
            let there = rest.len();
            rest = &[];
            return Some(Err(super::DecodeError::Cut { length, there }.into()));
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([k0, k1]);
        let sequence = u32::from_ne_bytes([s0, s1, s2, s3]);
        Some(Ok(Raw { kind, flags: u16::from_ne_bytes([f0, f1]), sequence, body }))
    })
}

fn generic(family: u16, body: &[u8]) -> Result<Message<'_>, KernelError> {
    match body.split_at_checked(GENERIC) {
        Some((&[command, ..], payload)) => Ok(Message { family, command, payload }),
        _ => Err(super::DecodeError::Cut { length: GENERIC, there: body.len() }.into()),
    }
}

fn family(payload: &[u8]) -> Result<Family, KernelError> {
    let (mut id, mut groups) = (None, vec![]);
    for attribute in attributes(payload) {
        let attribute = attribute?;
        match attribute.kind {
            CTRL_ATTR_FAMILY_ID => id = Some(attribute.u16("a family's number")?),
            CTRL_ATTR_MCAST_GROUPS => {
                for group in attributes(attribute.value) {
                    let (mut name, mut number) = (Box::from(""), 0);
                    for part in attributes(group?.value) {
                        let part = part?;
                        match part.kind {
                            CTRL_ATTR_MCAST_GRP_NAME => name = text(part.value),
                            CTRL_ATTR_MCAST_GRP_ID => number = part.u32("a group's number")?,
                            _ => {}
                        }
                    }
                    groups.push((name, number));
                }
            }
            _ => {}
        }
    }
    let id = id.ok_or(super::DecodeError::Missing { what: "number of the family" })?;
    Ok(Family { id, groups })
}
