//! What the kernel is asked about its network by rtnetlink: a request and its answers, on a socket of its own.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// How much is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// One thing.
    One,
    /// All there is.
    All,
}

/// How often it is asked again for what changed while the kernel told it.
const AGAIN: usize = 8;

/// Gives each answer to `each`.
///
/// # Errors
/// The kernel cannot be asked, or refuses; what it is asked for changes again and again while it tells it.
pub(super) fn ask(
    request: RouteNetlinkMessage,
    want: Want,
    mut each: impl FnMut(RouteNetlinkMessage),
) -> std::io::Result<()> {
    for _ in 0..=AGAIN {
        let answers = once(request.clone(), want)?;
        if !answers.changed {
            answers.told.into_iter().for_each(&mut each);
            return Ok(());
        }
    }
    Err(std::io::Error::new(std::io::ErrorKind::Interrupted, "it changes while the kernel tells it, again and again"))
}

fn once(request: RouteNetlinkMessage, want: Want) -> std::io::Result<Answers> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut packet = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(request));
    packet.header.flags = NLM_F_REQUEST | if want == Want::All { NLM_F_DUMP } else { NLM_F_ACK };
    packet.header.sequence_number = 1;
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Answers::default();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        if answers.take(&bytes)? {
            return Ok(answers);
        }
    }
}

/// What was told.
#[derive(Debug, Default)]
struct Answers {
    told: Vec<RouteNetlinkMessage>,
    /// It is not all of one moment: some may be missing, or told twice (NLM_F_DUMP_INTR of netlink(7)).
    changed: bool,
}

impl Answers {
    /// Whether it is all.
    fn take(&mut self, bytes: &[u8]) -> std::io::Result<bool> {
        let mut rest = bytes;
        while let Some(length) = length_of(rest) {
            let (message, more) = rest.split_at(length);
            // Messages are aligned to four bytes.
            rest = &more[more.len().min(length.next_multiple_of(4) - length)..];
            // One that the crate cannot read, such as a discipline with options of its own, is passed over.
            let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) else { continue };
            self.changed |= message.header.flags & NLM_F_DUMP_INTR != 0;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(true),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(message) => self.told.push(message),
                _ => {}
            }
        }
        Ok(false)
    }
}

/// Length of the message at the front, where there is a whole one.
fn length_of(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    (16..=bytes.len()).contains(&length).then_some(length)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::DoneMessage;
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    fn bytes(payload: NetlinkPayload<RouteNetlinkMessage>, flags: u16) -> Vec<u8> {
        let mut packet = NetlinkMessage::new(NetlinkHeader::default(), payload);
        packet.header.flags = flags;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn what_changed_while_it_was_told_is_known_as_that() {
        let link = |flags| bytes(RouteNetlinkMessage::NewLink(LinkMessage::default()).into(), flags);
        let done = |flags| bytes(NetlinkPayload::Done(DoneMessage::default()), flags);
        for (first, last, changed) in [(0, 0, false), (NLM_F_DUMP_INTR, 0, true), (0, NLM_F_DUMP_INTR, true)] {
            let mut answers = Answers::default();
            assert!(!answers.take(&[link(first), link(0)].concat()).unwrap());
            assert!(answers.take(&done(last)).unwrap());
            assert_eq!((answers.told.len(), answers.changed), (2, changed));
        }
    }
}
