//! A vhost-user front-end's side of the socket: one connection, its messages in the words of the specification.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;

use super::feature::{PROTOCOL_FEATURES, PROTOCOL_MQ, PROTOCOL_REPLY_ACK};
use super::memory::{Memory, Region};
use super::message::{self, Message, Request};
use super::ring::Ring;

/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// In the payload of SET_VRING_KICK and SET_VRING_CALL: there is no descriptor, the ring is polled.
const NO_FD: u64 = 1 << 8;

/// The connection was given up on purpose, after as many messages as were asked for.
#[derive(Debug, thiserror::Error)]
#[error("stopped on purpose after {0} messages, the last one being {1:?}")]
pub struct StoppedOnPurpose(pub usize, pub Request);

/// One connection to a back-end.
#[derive(Debug)]
pub struct FrontEnd {
    stream: UnixStream,
    protocol_features: u64,
    /// Messages sent so far.
    sent: usize,
    stop_after: Option<usize>,
}

impl FrontEnd {
    /// Connects to a listening back-end; retries until `timeout` has passed.
    pub fn connect(path: &Path, timeout: Duration) -> anyhow::Result<Self> {
        let deadline = Instant::now() + timeout;
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => return Self::over(stream),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| format!("no back-end at {} within {timeout:?}", path.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    /// Waits until a back-end connects.
    pub fn accept(listener: &UnixListener, timeout: Duration) -> anyhow::Result<Self> {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX))?;
        ensure!(ready > 0, "no back-end connected within {timeout:?}");
        Self::over(listener.accept()?.0)
    }

    fn over(stream: UnixStream) -> anyhow::Result<Self> {
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        Ok(Self { stream, protocol_features: 0, sent: 0, stop_after: None })
    }

    /// Gives up, with [`StoppedOnPurpose`], when this many messages were sent.
    pub fn stop_after(&mut self, messages: Option<usize>) {
        self.stop_after = messages;
    }

    /// Protocol features that were agreed on.
    pub fn protocol_features(&self) -> u64 {
        self.protocol_features
    }

    /// The socket itself.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends any bytes with any descriptors.
    pub fn raw(&mut self, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
        self.sent += 1;
        message::send(&self.stream, bytes, fds)
    }

    /// Sends a message; nothing is waited for.
    pub fn send(&mut self, request: Request, payload: Vec<u8>, fds: &[RawFd]) -> anyhow::Result<()> {
        self.send_message(request, &Message::new(request, payload), fds)
    }

    fn send_message(&mut self, request: Request, message: &Message, fds: &[RawFd]) -> anyhow::Result<()> {
        if self.stop_after.is_some_and(|most| self.sent >= most) {
            return Err(StoppedOnPurpose(self.sent, request).into());
        }
        self.raw(&message.bytes(), fds).with_context(|| format!("sending {request:?}"))
    }

    /// Sends a message, and where REPLY_ACK was agreed on waits until it was taken over.
    pub fn tell(&mut self, request: Request, payload: Vec<u8>, fds: &[RawFd]) -> anyhow::Result<()> {
        if self.protocol_features & PROTOCOL_REPLY_ACK == 0 {
            return self.send(request, payload, fds);
        }
        self.send_message(request, &Message::new(request, payload).need_reply(), fds)?;
        let status = self.answer_u64(request)?;
        ensure!(status == 0, "the back-end refused {request:?} with {status}");
        Ok(())
    }

    /// Sends a message and returns the number that is its answer.
    pub fn ask(&mut self, request: Request, payload: Vec<u8>) -> anyhow::Result<u64> {
        self.send(request, payload, &[])?;
        self.answer_u64(request)
    }

    fn answer_u64(&mut self, request: Request) -> anyhow::Result<u64> {
        let answer = self.answer(request)?;
        Ok(u64::from_le_bytes(answer.payload.get(..8).context("an answer of less than 8 bytes")?.try_into()?))
    }

    fn answer(&mut self, request: Request) -> anyhow::Result<Message> {
        let answer =
            message::receive(&self.stream).with_context(|| format!("waiting for the answer to {request:?}"))?;
        if answer.request != request as u32 || answer.flags & message::FLAG_REPLY == 0 {
            bail!("{request:?} was answered by message {} with flags {:#x}", answer.request, answer.flags);
        }
        Ok(answer)
    }

    /// Returns when everything sent before was handled: by a question whose answer nobody needs, as QEMU does.
    pub fn barrier(&mut self) -> anyhow::Result<()> {
        self.ask(Request::GetFeatures, vec![]).map(drop)
    }

    /// GET_FEATURES, protocol features, GET_QUEUE_NUM, SET_OWNER, in QEMU's order. Returns the features and most pairs that the
    /// back-end offers.
    pub fn negotiate(&mut self, protocol_wanted: u64) -> anyhow::Result<(u64, u64)> {
        let features = self.ask(Request::GetFeatures, vec![])?;
        let mut pairs = 1;
        if features & PROTOCOL_FEATURES != 0 {
            let offered = self.ask(Request::GetProtocolFeatures, vec![])?;
            let agreed = offered & protocol_wanted;
            self.send(Request::SetProtocolFeatures, message::longs(&[agreed]), &[])?;
            self.protocol_features = agreed;
            if agreed & PROTOCOL_MQ != 0 {
                pairs = self.ask(Request::GetQueueNum, vec![])?;
            }
        }
        self.send(Request::SetOwner, vec![], &[])?;
        Ok((features, pairs))
    }

    /// SET_FEATURES.
    pub fn set_features(&mut self, features: u64) -> anyhow::Result<()> {
        self.tell(Request::SetFeatures, message::longs(&[features]), &[])
    }

    /// SET_LOG_BASE: where the back-end notes what it writes, a file of this many bytes. Waits until that was taken over.
    pub fn set_log_base(&mut self, log: RawFd, size: u64) -> anyhow::Result<()> {
        let request = Request::SetLogBase;
        self.send(request, message::longs(&[size, 0]), &[log])?;
        self.answer(request).map(drop)
    }

    /// SET_MEM_TABLE with these regions of `memory`.
    pub fn set_mem_table(&mut self, memory: &Memory, regions: &[Region]) -> anyhow::Result<()> {
        let mut payload = message::words(&[regions.len() as u32, 0]);
        for region in regions {
            payload.extend(region_bytes(region));
        }
        self.tell(Request::SetMemTable, payload, &vec![memory.file(); regions.len()])
    }

    /// ADD_MEM_REG.
    pub fn add_mem_reg(&mut self, memory: &Memory, region: &Region) -> anyhow::Result<()> {
        self.tell(Request::AddMemReg, slot_bytes(region), &[memory.file()])
    }

    /// REM_MEM_REG.
    pub fn rem_mem_reg(&mut self, region: &Region) -> anyhow::Result<()> {
        self.tell(Request::RemMemReg, slot_bytes(region), &[])
    }

    /// SET_VRING_CALL: how the back-end interrupts, or that it need not.
    pub fn set_vring_call(&mut self, index: u32, ring: &Ring, polled: bool) -> anyhow::Result<()> {
        self.set_vring_fd(Request::SetVringCall, index, (!polled).then(|| ring.call().as_raw_fd()))
    }

    /// SET_VRING_KICK: how the guest notifies, or that it does not; starts the ring.
    pub fn set_vring_kick(&mut self, index: u32, ring: &Ring, polled: bool) -> anyhow::Result<()> {
        self.set_vring_fd(Request::SetVringKick, index, (!polled).then(|| ring.kick().as_raw_fd()))
    }

    fn set_vring_fd(&mut self, request: Request, index: u32, fd: Option<RawFd>) -> anyhow::Result<()> {
        let payload = u64::from(index) | if fd.is_some() { 0 } else { NO_FD };
        self.tell(request, message::longs(&[payload]), fd.as_slice())
    }

    /// SET_VRING_NUM.
    pub fn set_vring_num(&mut self, index: u32, size: u32) -> anyhow::Result<()> {
        self.tell(Request::SetVringNum, message::words(&[index, size]), &[])
    }

    /// SET_VRING_BASE.
    pub fn set_vring_base(&mut self, index: u32, base: u32) -> anyhow::Result<()> {
        self.tell(Request::SetVringBase, message::words(&[index, base]), &[])
    }

    /// SET_VRING_ADDR with addresses of this process: descriptors, driver's area, device's area.
    pub fn set_vring_addr(&mut self, index: u32, places: [u64; 3]) -> anyhow::Result<()> {
        self.tell_vring_addr(index, places, 0, 0)
    }

    /// The same of a ring that is to be logged (VHOST_VRING_F_LOG), with the guest-physical address of the device's area.
    pub fn set_logged_vring_addr(&mut self, index: u32, places: [u64; 3], log: u64) -> anyhow::Result<()> {
        self.tell_vring_addr(index, places, 1, log)
    }

    fn tell_vring_addr(&mut self, index: u32, places: [u64; 3], flags: u32, log: u64) -> anyhow::Result<()> {
        let [desc, driver, device] = places;
        let mut payload = message::words(&[index, flags]);
        payload.extend(message::longs(&[desc, device, driver, log]));
        self.tell(Request::SetVringAddr, payload, &[])
    }

    /// SET_VRING_ENABLE.
    pub fn set_vring_enable(&mut self, index: u32, enabled: bool) -> anyhow::Result<()> {
        self.tell(Request::SetVringEnable, message::words(&[index, u32::from(enabled)]), &[])
    }

    /// GET_VRING_BASE: stops the ring; the index at which it would go on.
    pub fn get_vring_base(&mut self, index: u32) -> anyhow::Result<u32> {
        let request = Request::GetVringBase;
        self.send(request, message::words(&[index, 0]), &[])?;
        let answer = self.answer(request)?;
        ensure!(answer.payload.len() == 8, "an answer to {request:?} of {} bytes", answer.payload.len());
        Ok(u32::from_le_bytes(answer.payload[4..8].try_into()?))
    }
}

fn region_bytes(region: &Region) -> Vec<u8> {
    message::longs(&[region.guest, region.size, region.user, region.offset])
}

fn slot_bytes(region: &Region) -> Vec<u8> {
    message::longs(&[0, region.guest, region.size, region.user, region.offset])
}
