//! The vhost-user messages of a front-end, as bytes on the socket.
//!
//! Written out here instead of taken from the `vhost` crate, because hostile tests must be able to say what that crate
//! refuses to say. Numbers and layouts: QEMU, docs/interop/vhost-user.rst.

use std::io::{self, IoSlice, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Version 1, in the lowest two bits of a message's flags.
pub const FLAG_VERSION: u32 = 1;
/// This message is an answer.
pub const FLAG_REPLY: u32 = 1 << 2;
/// The front-end wants an answer where there would be none (`REPLY_ACK`).
pub const FLAG_NEED_REPLY: u32 = 1 << 3;
/// Bytes of a message before its payload.
pub const HEADER: usize = 12;

/// Requests that a front-end of ours sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum Request {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    ResetOwner = 4,
    SetMemTable = 5,
    SetLogBase = 6,
    SetLogFd = 7,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    SetVringErr = 14,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    GetQueueNum = 17,
    SetVringEnable = 18,
    SendRarp = 19,
    NetSetMtu = 20,
    SetBackendReqFd = 21,
    GetConfig = 24,
    ResetDevice = 34,
    GetMaxMemSlots = 36,
    AddMemReg = 37,
    RemMemReg = 38,
    SetStatus = 39,
    GetStatus = 40,
}

/// One message, ready to be sent; its fields may contradict each other.
#[derive(Debug, Clone)]
pub struct Message {
    /// Request number.
    pub request: u32,
    /// Flags word.
    pub flags: u32,
    /// What the header says of the payload's size.
    pub size: u32,
    /// The payload that is really sent.
    pub payload: Vec<u8>,
}

impl Message {
    /// A message as the specification wants it.
    pub fn new(request: Request, payload: Vec<u8>) -> Self {
        Self { request: request as u32, flags: FLAG_VERSION, size: payload.len() as u32, payload }
    }

    /// A message with one 64-bit number.
    pub fn u64(request: Request, value: u64) -> Self {
        Self::new(request, value.to_le_bytes().to_vec())
    }

    /// A message about the state of one ring.
    pub fn vring_state(request: Request, ring: u32, value: u32) -> Self {
        Self::new(request, words(&[ring, value]))
    }

    /// The message with the request for an answer.
    pub fn need_reply(mut self) -> Self {
        self.flags |= FLAG_NEED_REPLY;
        self
    }

    /// The bytes on the socket.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = words(&[self.request, self.flags, self.size]);
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// Little-endian bytes of some 32-bit words.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Little-endian bytes of some 64-bit words.
pub fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Sends bytes in one `sendmsg`, with file descriptors attached.
pub fn send(stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage] = if fds.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL;
    let sent = sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?;
    if sent < bytes.len() {
        // The descriptors went with the first byte; the rest is plain data.
        use std::io::Write;
        (&*stream).write_all(&bytes[sent..])?;
    }
    Ok(())
}

/// Reads one message without file descriptors, such as an answer.
pub fn receive(mut stream: &UnixStream) -> io::Result<Message> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let (request, flags, size) = (word(0), word(4), word(8));
    if size > 4096 {
        return Err(io::Error::other(format!("an answer to request {request} of {size} bytes")));
    }
    let mut payload = vec![0; size as usize];
    stream.read_exact(&mut payload)?;
    Ok(Message { request, flags, size, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_as_it_was_sent() {
        let (a, b) = UnixStream::pair().unwrap();
        let message = Message::vring_state(Request::SetVringNum, 3, 1024).need_reply();
        send(&a, &message.bytes(), &[]).unwrap();
        let back = receive(&b).unwrap();
        assert_eq!((back.request, back.flags, back.size), (8, FLAG_VERSION | FLAG_NEED_REPLY, 8));
        assert_eq!(back.payload, words(&[3, 1024]));
    }
}
