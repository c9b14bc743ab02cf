//! A netlink socket for requests and their answers, with the kernel's own words where it refuses.

use std::io;
use std::os::fd::AsFd;

use netlink_sys::{Socket, SocketAddr};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::NetlinkError;
use super::request::{HEADER, Request};
use crate::ovs::kernel::DecodeError;
use crate::ovs::kernel::attribute::{attributes, find};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_ACK: u16 = 0x04;
const NLM_F_DUMP: u16 = 0x300;
/// NLM_F_CREATE and NLM_F_EXCL.
const NLM_F_NEW: u16 = 0x600;
/// In answers: something changed during the dump; the request is not repeated in the error; extended attributes follow.
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// Longest wait for the kernel, in milliseconds. It answers at once, but a change of a NIC's mode takes many seconds, and holds others up.
const PATIENCE: u16 = 60_000;
/// How often a dump is begun anew because something changed meanwhile.
const TRIES: u32 = 10;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// One thing, or a change.
    One,
    /// All there is.
    All,
    /// To make what is not there yet.
    New,
}

/// A socket.
pub(super) struct Channel {
    socket: Socket,
    sequence: u32,
}

impl Channel {
    /// Opens one for `NETLINK_ROUTE` or `NETLINK_GENERIC`.
    pub(super) fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // Its words for refusals; kernels that are older than 4.12 have none.
            let _ = socket.set_ext_ack(true);
            let _ = socket.set_cap_ack(true);
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        let socket = open().map_err(|source| NetlinkError::Socket { doing: "opening the socket", source })?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request of this type, and gives what is answered, from behind each message's header, to `each`.
    pub(super) fn ask(
        &mut self,
        kind: u16,
        want: Want,
        request: &Request,
        mut each: impl FnMut(&[u8]) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let how = match want {
            Want::One => NLM_F_ACK,
            Want::All => NLM_F_DUMP,
            Want::New => NLM_F_ACK | NLM_F_NEW,
        };
        let flags = NLM_F_REQUEST | how;
        let sent = self.socket.send(&request.message(kind, flags, self.sequence), 0);
        sent.map_err(|source| NetlinkError::Socket { doing: "sending", source })?;
        let (mut changed, mut failed) = (false, None);
        loop {
            let datagram = self.receive()?;
            let mut rest = &datagram[..];
            while let Some(message) = next(&mut rest)? {
                if message.sequence != self.sequence {
                    continue;
                }
                changed |= message.flags & NLM_F_DUMP_INTR != 0;
                if !matches!(message.kind, NLMSG_DONE | NLMSG_ERROR) {
                    if failed.is_none() {
                        failed = each(message.body).err();
                    }
                    continue;
                }
                let code = message.body.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
                if code != 0 {
                    return Err(NetlinkError::Refused { errno: -code, said: said(&message) });
                }
                return match failed {
                    Some(error) => Err(error),
                    None if changed => Err(NetlinkError::Changed),
                    None => Ok(()),
                };
            }
        }
    }

    /// Asks for all there is, anew while it changes; `each` makes something of a message, or passes it over.
    pub(super) fn all<T>(
        &mut self,
        kind: u16,
        request: &Request,
        each: impl Fn(&[u8]) -> Result<Option<T>, NetlinkError>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..TRIES {
            let mut found = vec![];
            let asked = self.ask(kind, Want::All, request, |body| {
                found.extend(each(body)?);
                Ok(())
            });
            match asked {
                Err(NetlinkError::Changed) => {}
                other => return other.map(|()| found),
            }
        }
        Err(NetlinkError::Changed)
    }

    /// The number of a generic family.
    pub(super) fn family(&mut self, name: &'static str) -> Result<u16, NetlinkError> {
        let mut request = Request::new(&[CTRL_CMD_GETFAMILY, 1, 0, 0]);
        request.put_text(CTRL_ATTR_FAMILY_NAME, name);
        let mut number = None;
        let asked = self.ask(GENL_ID_CTRL, Want::One, &request, |body| {
            number = find(body.get(4..).unwrap_or_default(), CTRL_ATTR_FAMILY_ID)?
                .and_then(|value| value.first_chunk::<2>())
                .map(|value| u16::from_ne_bytes(*value));
            Ok(())
        });
        match asked {
            Err(NetlinkError::Refused { errno: libc::ENOENT, .. }) => Err(NetlinkError::NoFamily { name }),
            Err(error) => Err(error),
            Ok(()) => number.ok_or(NetlinkError::NoFamily { name }),
        }
    }

    /// A datagram as long as it is: its length is asked for first, so that none is ever cut.
    fn receive(&self) -> Result<Vec<u8>, NetlinkError> {
        let failed = |source| NetlinkError::Socket { doing: "receiving", source };
        loop {
            let length = match self.socket.recv(&mut &mut [0; 0][..], libc::MSG_PEEK | libc::MSG_TRUNC) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait()?;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            };
            let mut datagram = vec![0; length];
            let got = self.socket.recv(&mut &mut datagram[..], libc::MSG_TRUNC).map_err(failed)?;
            if got > length {
                return Err(DecodeError::Cut { length: got, there: length }.into());
            }
            datagram.truncate(got);
            return Ok(datagram);
        }
    }

    fn wait(&self) -> Result<(), NetlinkError> {
        let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::from(PATIENCE)) {
            Ok(0) => {
                Err(NetlinkError::Socket { doing: "waiting for the kernel", source: io::ErrorKind::TimedOut.into() })
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(NetlinkError::Socket { doing: "waiting for the kernel", source: error.into() }),
        }
    }
}

/// A message with its header read.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The next message of a datagram.
fn next<'a>(rest: &mut &'a [u8]) -> Result<Option<Message<'a>>, NetlinkError> {
    let Some(header) = rest.first_chunk::<HEADER>() else { return Ok(None) };
    let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
    let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
    let Some(body) = rest.get(HEADER..length) else {
        return Err(DecodeError::Cut { length, there: rest.len() }.into());
    };
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Ok(Some(Message {
        kind: u16::from_ne_bytes([k0, k1]),
        flags: u16::from_ne_bytes([f0, f1]),
        sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
        body,
    }))
}

/// The kernel's words for a refusal: in an error behind its copy of the request, in the end of a dump behind the number.
fn said(message: &Message<'_>) -> Option<String> {
    if message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let skip = match message.kind {
        NLMSG_DONE => 4,
        _ if message.flags & NLM_F_CAPPED != 0 => 4 + HEADER,
        _ => {
            let copied = u32::from_ne_bytes(*message.body.get(4..)?.first_chunk::<4>()?) as usize;
            4 + copied.next_multiple_of(4)
        }
    };
    let mut words = attributes(message.body.get(skip..)?).filter_map(Result::ok);
    let words = words.find(|attribute| attribute.kind == NLMSGERR_ATTR_MSG)?;
    Some(text(words.value))
}

/// A text up to its final zero.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: i32, flags: u16, behind: &[u8]) -> Vec<u8> {
        let mut body = Request::new(&code.to_ne_bytes()).message(NLMSG_ERROR, flags, 3);
        body.extend(behind);
        let length = body.len() as u32;
        body[..4].copy_from_slice(&length.to_ne_bytes());
        body
    }

    #[test]
    fn the_kernels_words_are_found_with_and_without_the_copied_request() {
        let mut words = Request::default();
        words.put_text(NLMSGERR_ATTR_MSG, "Failed setting eswitch to offloads");
        let words = words.message(0, 0, 0)[HEADER..].to_vec();
        let copied = Request::new(&[1, 2, 3, 4]).message(30, 5, 3);
        for (flags, copy) in [(NLM_F_CAPPED | NLM_F_ACK_TLVS, &copied[..HEADER]), (NLM_F_ACK_TLVS, &copied[..])] {
            let bytes = error(-libc::EBUSY, flags, &[copy, &words].concat());
            let message = next(&mut &bytes[..]).unwrap().unwrap();
            assert_eq!(said(&message).as_deref(), Some("Failed setting eswitch to offloads"));
        }
        let bytes = error(-libc::EBUSY, 0, &copied);
        assert_eq!(said(&next(&mut &bytes[..]).unwrap().unwrap()), None);
    }

    #[test]
    fn a_message_that_is_cut_is_an_error_and_no_end() {
        let bytes = error(-1, 0, &[0; 16]);
        for length in HEADER..bytes.len() {
            assert!(next(&mut &bytes[..length]).is_err(), "{length}");
        }
        assert!(next(&mut &[][..]).unwrap().is_none());
    }

    #[test]
    fn the_real_kernel_knows_its_families_and_refuses_others() {
        let mut channel = Channel::open(netlink_sys::protocols::NETLINK_GENERIC).unwrap();
        assert_eq!(channel.family("nlctrl").unwrap(), GENL_ID_CTRL);
        assert!(matches!(channel.family("no such family"), Err(NetlinkError::NoFamily { .. })));
    }
}
