//! One connection of a front-end: each message is read, judged, and served here or by the crate behind us.
//!
//! This is where the protocol's real life is handled: rings enabled before features are negotiated (QEMU does that, and
//! the crate ends the connection on it), memory tables in any order, counts in queue pairs, the MTU, messages that the
//! crate does not know, and a reason for every connection that is ended.
//!
//! Nothing here waits for the front-end alone: the session's stop flag ends every wait, and while a front-end is
//! connected further ones are refused at once.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::statfs::{FsType, HUGETLBFS_MAGIC, fstatfs};
use ringspan_protocol::{MAX_QUEUE_PAIRS, MTU_RANGE};

use super::backend::{Daemon, Refusal};
use super::features::{F_LOG_ALL, feature_names};
use super::message::{
    Body, HEADER_SIZE, Header, MAX_REGIONS, MAX_RINGS, PROTOCOL_F_LOG_SHMFD, PROTOCOL_FEATURES, Region, Request, Shape,
    memory_table, ring_state,
};
use super::socket::ServerSocket;
use super::vring::Rings;
use super::wire::{Stop, receive, send, wait_any};
use crate::memory::DirtyLog;

/// Most regions of guest memory, however they came. As many as the crate says GET_MAX_MEM_SLOTS.
const MAX_SLOTS: usize = 509;
/// Most guest memory of one front-end: the lane's address space is for all its ports.
const MAX_GUEST_BYTES: u64 = 1 << 44;

/// What a connection is offered. Fixed while it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Virtio feature bits.
    pub features: u64,
    /// Largest MTU in bytes.
    pub mtu: u16,
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The front-end closed it, between two messages.
    Closed(String),
    /// It was ended by us, or in the middle of a message; the text names the message and the reason.
    Failed(String),
    /// The session is told to stop.
    Stopped,
}

struct Message {
    header: Header,
    payload: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// A connected front-end.
pub struct Gate<'a> {
    /// The front-end's socket, not blocking.
    pub front: &'a UnixStream,
    /// Where further front-ends would come in.
    pub server: Option<&'a ServerSocket>,
    /// Ends every wait.
    pub stop: &'a Stop,
    /// The crate.
    pub daemon: Daemon,
    /// The rings that the crate reports to.
    pub rings: Arc<Rings>,
    /// What is offered.
    pub offer: Offer,
    /// What was negotiated so far.
    pub talk: Talk,
}

/// What the front-end and we have said so far.
#[derive(Default)]
pub struct Talk {
    protocol: u64,
    owned: bool,
    regions: Vec<Region>,
    /// Another front-end was refused meanwhile.
    refused: bool,
}

impl Talk {
    /// Whether a region begins at this guest-physical address.
    fn has_at(&self, guest: u64) -> bool {
        self.regions.iter().any(|region| region.guest == guest)
    }
}

impl Gate<'_> {
    /// Serves messages until the connection ends. Also returns how many were served. The rings have stopped then.
    pub fn run(mut self) -> (End, u64) {
        let mut served = 0;
        loop {
            match self.next_message().and_then(|message| self.serve(message)) {
                Ok(()) => served += 1,
                Err(end) => return (end, served),
            }
        }
    }

    fn serve(&mut self, mut message: Message) -> Result<(), End> {
        let header = message.header;
        tracing::trace!(message = %header, need_reply = header.need_reply(), payload = ?message.payload.get(..16), fds = message.fds.len());
        let fail = |why: String| End::Failed(format!("{header}: {why}"));
        // Whether REPLY_ACK was negotiated is not asked: who sets the flag waits for the answer, as DPDK and
        // libvhost-user have it.
        let acknowledge = header.need_reply();
        let Some((request, shape)) =
            Request::from_code(header.code).and_then(|request| request.shape().map(|shape| (request, shape)))
        else {
            if acknowledge {
                tracing::debug!(message = %header, "a request that is not served was answered with an error");
                return self.answer(&header, &1u64.to_ne_bytes());
            }
            return Err(fail("ringspan does not serve this message, and did not offer it".into()));
        };
        let mut told = None;
        let outcome = self.judge(request, shape, &mut message).and_then(|verdict| match verdict {
            Verdict::Reply(word) => Ok(Some(word.to_ne_bytes().to_vec())),
            Verdict::Echo => Ok(Some(message.payload.clone())),
            Verdict::Unserved if acknowledge => Ok(Some(1u64.to_ne_bytes().to_vec())),
            Verdict::Done | Verdict::Unserved => Ok(None),
            Verdict::Forward => match self.daemon.call(request, &message.payload, &message.fds, self.stop) {
                // The crate has only the lower half of a packed ring's base.
                Ok(reply) if request == Request::GET_VRING_BASE => {
                    let index = reply.first().map_or(0, |&index| usize::from(index).min(MAX_RINGS - 1));
                    told = Some(index);
                    Ok(Some(ring_state(index, self.rings.base(index))))
                }
                Ok(reply) => Ok(request.has_reply().then_some(reply)),
                Err(Refusal::Failed(why)) => Err(Some(why)),
                Err(Refusal::Stopped) => Err(None),
            },
        });
        match outcome {
            Ok(Some(reply)) => {
                self.answer(&header, &reply)?;
                told.into_iter().for_each(|index| self.rings.told(index));
                Ok(())
            }
            Ok(None) if acknowledge && !request.has_reply() => self.answer(&header, &0u64.to_ne_bytes()),
            Ok(None) => Ok(()),
            Err(None) => Err(End::Stopped),
            Err(Some(why)) => {
                if acknowledge && !request.has_reply() {
                    // So that the front-end, too, knows which message it was. It may be gone already.
                    let _ = self.answer(&header, &1u64.to_ne_bytes());
                }
                Err(fail(about_ring(&message.payload, shape, &why)))
            }
        }
    }

    /// What is to be done with a message. An error is a reason to end the connection; without text: to stop.
    fn judge(&mut self, request: Request, shape: Shape, message: &mut Message) -> Result<Verdict, Option<String>> {
        if let Some((bit, name)) = request.needs()
            && self.talk.protocol & bit == 0
        {
            return Err(Some(format!("the protocol feature {name} was not negotiated")));
        }
        let body = Body::parse(request, shape, &message.payload)?;
        let (least, most) = body.descriptors(shape);
        if !(least..=most).contains(&message.fds.len()) {
            return Err(Some(format!("{} descriptors where {most} belong", message.fds.len())));
        }
        match (request, body) {
            (Request::GET_FEATURES, _) => Ok(Verdict::Reply(self.offer.features)),
            (Request::SET_FEATURES, Body::Word(features)) => {
                let unknown = features & !self.offer.features;
                if unknown != 0 {
                    return Err(Some(format!("features that were not offered: {}", feature_names(unknown).join(", "))));
                }
                let logging = features & F_LOG_ALL != 0;
                if logging != self.rings.is_logging() {
                    // Memory and rings may have changed since the log was given.
                    if let Some(log) = self.rings.given_log().filter(|_| logging) {
                        check_covered(&log, &self.talk.regions)?;
                        self.rings.check_log(&log)?;
                    }
                    self.rings.set_logging(logging);
                }
                // It says nothing of the guest, and must not stop its rings.
                message.payload = (features & !F_LOG_ALL).to_ne_bytes().to_vec();
                Ok(Verdict::Forward)
            }
            (Request::GET_PROTOCOL_FEATURES, _) => Ok(Verdict::Reply(PROTOCOL_FEATURES)),
            (Request::SET_PROTOCOL_FEATURES, Body::Word(features)) => {
                let unknown = features & !PROTOCOL_FEATURES;
                if unknown != 0 {
                    return Err(Some(format!("protocol features that were not offered: {unknown:#x}")));
                }
                self.talk.protocol = features;
                self.rings.can_log(features & PROTOCOL_F_LOG_SHMFD != 0);
                Ok(Verdict::Done)
            }
            (Request::GET_QUEUE_NUM, _) => Ok(Verdict::Reply(u64::from(MAX_QUEUE_PAIRS))),
            (Request::NET_SET_MTU, Body::Word(mtu)) => {
                self.check_mtu(mtu)?;
                Ok(Verdict::Done)
            }
            (Request::SEND_RARP, Body::Word(word)) => {
                let [a, b, c, d, e, f, ..] = word.to_ne_bytes();
                match self.rings.announce([a, b, c, d, e, f]) {
                    Ok(()) => Ok(Verdict::Done),
                    Err(why) => {
                        tracing::warn!("SEND_RARP: {why}");
                        Ok(Verdict::Unserved)
                    }
                }
            }
            (Request::SET_LOG_BASE, Body::Log { size, offset }) => {
                let Some(fd) = message.fds.pop() else { return Err(Some("its descriptor is missing".into())) };
                check_file("the log", &fd, offset, size)?;
                let log = DirtyLog::map(File::from(fd), offset, size)
                    .map_err(|error| format!("the log cannot be mapped: {error}"))?;
                check_covered(&log, &self.talk.regions)?;
                self.rings.check_log(&log)?;
                self.rings.set_log(log);
                Ok(Verdict::Echo)
            }
            // Nobody waits for it: front-ends look at the log when they need it, and DPDK's back-end does not signal either.
            (Request::SET_LOG_FD, _) => Ok(Verdict::Done),
            (Request::SET_VRING_ADDR, Body::RingAddress { index, log }) => {
                self.rings.set_log_address(index, log);
                if let Some(log) = self.rings.log() {
                    self.rings.check_log(&log)?;
                }
                Ok(Verdict::Forward)
            }
            (Request::SET_OWNER, _) if self.talk.owned => Ok(Verdict::Done),
            (Request::SET_OWNER, _) => {
                self.talk.owned = true;
                Ok(Verdict::Forward)
            }
            (Request::RESET_OWNER | Request::RESET_DEVICE, _) => {
                self.rings.reset();
                Ok(Verdict::Done)
            }
            (Request::SET_VRING_ENABLE, Body::Ring { index, number }) => {
                // Rings do not run before features are negotiated, so that an early one just waits.
                self.rings.enable(index, number == 1);
                Ok(Verdict::Done)
            }
            (Request::SET_VRING_BASE, Body::Ring { index, number }) => {
                self.rings.set_base(index, number)?;
                message.payload = ring_state(index, number & 0xffff);
                Ok(Verdict::Forward)
            }
            (Request::SET_VRING_KICK | Request::SET_VRING_CALL | Request::SET_VRING_ERR, Body::RingFd { .. }) => {
                message.fds.iter().try_for_each(check_eventfd)?;
                Ok(Verdict::Forward)
            }
            (Request::SET_MEM_TABLE, Body::Regions(regions)) => {
                self.check_memory(&[], &regions, &message.fds)?;
                // The crate wants them sorted; the specification does not say that they are.
                let mut table: Vec<(Region, OwnedFd)> = regions.into_iter().zip(message.fds.drain(..)).collect();
                table.sort_by_key(|(region, _)| region.guest);
                let (regions, fds): (Vec<_>, Vec<_>) = table.into_iter().unzip();
                message.payload = memory_table(&regions);
                message.fds = fds;
                self.talk.regions = regions;
                Ok(Verdict::Forward)
            }
            // QEMU before 8 has a memory listener for each pair of rings, and each says the same: that is no error, once.
            (Request::ADD_MEM_REG, Body::Regions(added)) if added.iter().all(|add| self.talk.regions.contains(add)) => {
                Ok(Verdict::Done)
            }
            (Request::REM_MEM_REG, Body::Regions(gone)) if !gone.iter().any(|gone| self.talk.has_at(gone.guest)) => {
                Ok(Verdict::Done)
            }
            (Request::ADD_MEM_REG, Body::Regions(added)) => {
                self.check_memory(&self.talk.regions, &added, &message.fds)?;
                self.talk.regions.extend(added);
                Ok(Verdict::Forward)
            }
            (Request::REM_MEM_REG, Body::Regions(gone)) => {
                // The descriptor that some front-ends send along is not used (specification: REM_MEM_REG).
                message.fds.clear();
                self.talk.regions.retain(|region| !gone.iter().any(|gone| gone.guest == region.guest));
                Ok(Verdict::Forward)
            }
            _ => Ok(Verdict::Forward),
        }
    }

    fn check_mtu(&self, mtu: u64) -> Result<(), String> {
        let most = u64::from(self.offer.mtu);
        if mtu < u64::from(*MTU_RANGE.start()) {
            return Err(format!("MTU {mtu}, at least {} is needed", MTU_RANGE.start()));
        }
        if mtu > most {
            return Err(format!(
                "the guest's MTU {mtu} is larger than the port's {most}: raise the port's mtu or lower host_mtu"
            ));
        }
        Ok(())
    }

    fn check_memory(&self, present: &[Region], added: &[Region], fds: &[OwnedFd]) -> Result<(), String> {
        if present.len() + added.len() > MAX_SLOTS {
            return Err(format!("{} memory regions, {MAX_SLOTS} are accepted", present.len() + added.len()));
        }
        let bytes = present.iter().chain(added).fold(0u64, |sum, region| sum.saturating_add(region.size));
        if bytes > MAX_GUEST_BYTES {
            return Err(format!("{bytes:#x} bytes of guest memory, {MAX_GUEST_BYTES:#x} are accepted"));
        }
        if let Some(log) = self.rings.log() {
            check_covered(&log, added)?;
        }
        added.iter().zip(fds).try_for_each(|(region, fd)| check_region(region, fd))
    }

    /// Reads the next message whole.
    fn next_message(&mut self) -> Result<Message, End> {
        let mut fds = Vec::new();
        let mut head = [0; HEADER_SIZE];
        let read = self.fill(&mut head, &mut fds)?;
        if read == 0 {
            return Err(End::Closed("the front-end closed the connection".into()));
        }
        if read < HEADER_SIZE {
            let why = format!("the connection was closed after {read} of {HEADER_SIZE} bytes of a message's header");
            return Err(End::Failed(why));
        }
        let header = Header::parse(&head);
        header.check().map_err(|why| End::Failed(format!("{header}: {why}")))?;
        let mut payload = vec![0; header.size as usize];
        let read = self.fill(&mut payload, &mut fds).map_err(|end| match end {
            End::Failed(why) => End::Failed(format!("{header}: {why}")),
            other => other,
        })?;
        if read < payload.len() {
            let size = payload.len();
            return Err(End::Failed(format!(
                "{header}: the connection was closed after {read} of {size} payload bytes"
            )));
        }
        Ok(Message { header, payload, fds })
    }

    /// Fills the buffer; what comes short is where the stream ended.
    fn fill(&mut self, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, End> {
        let mut filled = 0;
        while filled < buffer.len() {
            match receive(self.front.as_fd(), &mut buffer[filled..]) {
                Ok(received) => {
                    fds.extend(received.fds);
                    if received.truncated {
                        return Err(End::Failed("descriptors were lost: the lane has too many open files".into()));
                    }
                    if fds.len() > MAX_REGIONS {
                        return Err(End::Failed(format!("{} descriptors, {MAX_REGIONS} are accepted", fds.len())));
                    }
                    if received.bytes == 0 {
                        break;
                    }
                    filled += received.bytes;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::POLLIN)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
                Err(error) => return Err(End::Closed(format!("the connection broke: {error}"))),
            }
        }
        Ok(filled)
    }

    fn answer(&mut self, to: &Header, payload: &[u8]) -> Result<(), End> {
        let message = [&to.reply(payload.len()).to_bytes()[..], payload].concat();
        let mut rest = &message[..];
        while !rest.is_empty() {
            match send(self.front.as_fd(), rest, &[]) {
                Ok(sent) => rest = &rest[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::POLLOUT)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(End::Closed(format!("the front-end was gone when {to} was answered"))),
            }
        }
        Ok(())
    }

    /// Waits until the front-end's socket is ready. What else happens meanwhile is seen to.
    fn wait(&mut self, wanted: PollFlags) -> Result<(), End> {
        loop {
            // A session without a listener waits for its own stop flag twice.
            let others = self.server.map_or(self.stop.as_fd(), AsFd::as_fd);
            let polled =
                [(self.front.as_fd(), wanted), (self.stop.as_fd(), PollFlags::POLLIN), (others, PollFlags::POLLIN)];
            let ready = wait_any(polled, None).map_err(|error| End::Failed(format!("cannot wait: {error}")))?;
            if !ready[1].is_empty() {
                return Err(End::Stopped);
            }
            // The connected front-end comes first: when it is gone, the one that waits at the door is its successor.
            if !ready[0].is_empty() {
                return Ok(());
            }
            if !ready[2].is_empty() {
                self.refuse_another();
            }
        }
    }

    /// One at a time, so that many of them do not keep the connected one waiting. Only the first is worth a warning.
    fn refuse_another(&mut self) {
        let Some(server) = self.server else { return };
        match server.accept() {
            Ok(Some(_refused)) if std::mem::replace(&mut self.talk.refused, true) => {
                tracing::debug!("another front-end was refused: one is connected");
            }
            Ok(Some(_refused)) => tracing::warn!("a second front-end was refused: one is connected"),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!("a second front-end could not be refused: {error}");
                // Too many open files, most likely. It stays in the queue; do not spin on it.
                self.stop.wait(Duration::from_millis(50));
            }
        }
    }
}

/// What is to be done with a message.
enum Verdict {
    /// The crate serves it.
    Forward,
    /// It was served here, and has an answer of its own.
    Reply(u64),
    /// It was served here, and its answer is what it said.
    Echo,
    /// It was served here.
    Done,
    /// It is not done, which ends nothing.
    Unserved,
}

/// Puts the ring in front of the crate's reason, which does not have it.
fn about_ring(payload: &[u8], shape: Shape, why: &str) -> String {
    let index = match shape {
        _ if why.starts_with("ring ") => None,
        Shape::RingState | Shape::RingAddress | Shape::RingFd => payload.first(),
        _ => None,
    };
    index.map_or_else(|| why.to_owned(), |index| format!("ring {index}: {why}"))
}

/// Refuses what is no eventfd, and makes it one that never blocks: a worker reads and writes it.
///
/// The flag is shared with the front-end's own descriptor of it; QEMU and DPDK set it themselves.
fn check_eventfd(fd: &OwnedFd) -> Result<(), String> {
    let kind = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .map_err(|error| format!("its descriptor cannot be looked at: {error}"))?;
    if !kind.to_string_lossy().starts_with("anon_inode:[eventfd]") {
        return Err(format!("its descriptor is {}, not an eventfd", kind.display()));
    }
    fcntl(fd, FcntlArg::F_GETFL)
        .and_then(|flags| fcntl(fd, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK)))
        .map(drop)
        .map_err(|error| format!("its descriptor cannot be made non-blocking: {error}"))
}

/// File systems whose pages come from a server (statfs(2): FUSE and virtiofs, NFS, SMB, Ceph, 9p). One that does not answer
/// would hold a worker, with all its ports, in a page fault for ever.
const SERVED: [i64; 6] = [0x6573_5546, 0x6969, 0xff53_4d42, 0xfe53_4d42, 0x00c3_6400, 0x0102_1997];

fn is_served(file_system: FsType) -> bool {
    // Some are wider than 32 bits when they are extended with their sign.
    SERVED.contains(&(file_system.0 & 0xffff_ffff))
}

/// Refuses a region that is larger than its file (touching what is beyond the end stops the port), or not the kernel's own.
fn check_region(region: &Region, fd: &OwnedFd) -> Result<(), String> {
    check_file(&format!("the region at {:#x}", region.guest), fd, region.offset, region.size)
}

/// The same of any memory that a front-end shares.
fn check_file(what: &str, fd: &OwnedFd, offset: u64, size: u64) -> Result<(), String> {
    let file_system = fstatfs(fd).map_err(|error| format!("{what}: its file system: {error}"))?;
    if is_served(file_system.filesystem_type()) {
        return Err(format!(
            "{what} is on a file system that is served (FUSE, network): use a memory-backend-memfd, or hugetlbfs"
        ));
    }
    let stat = nix::sys::stat::fstat(fd).map_err(|error| format!("{what}: its file: {error}"))?;
    let kind = stat.st_mode & libc::S_IFMT;
    if kind != libc::S_IFREG {
        return Err(format!("the descriptor of {what} is no memory file"));
    }
    let end = offset.saturating_add(size);
    if end > stat.st_size as u64 {
        return Err(format!("{what} ends at byte {end:#x} of its file, which has {:#x}", stat.st_size));
    }
    // munmap(2) takes whole pages there only: a mapping of less, which mmap(2) rounds up, would stay for ever.
    let page = u64::try_from(file_system.optimal_transfer_size()).unwrap_or(0);
    if file_system.filesystem_type() == HUGETLBFS_MAGIC && page > 0 && !end.is_multiple_of(page) {
        return Err(format!(
            "{what} ends at byte {end:#x} of its file, amid a huge page of {page:#x} bytes: share whole ones"
        ));
    }
    Ok(())
}

/// Refuses memory that has no bits in the log: what is written there would be missing on the migration's other side.
fn check_covered(log: &DirtyLog, regions: &[Region]) -> Result<(), String> {
    match regions.iter().find(|region| !log.covers(region.guest.saturating_add(region.size))) {
        Some(Region { guest, size, .. }) => {
            Err(format!("the log ends before the region at {guest:#x}, {size:#x} bytes"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_the_kernels_own() {
        use nix::sys::statfs::{FUSE_SUPER_MAGIC, NFS_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC};
        assert!([FUSE_SUPER_MAGIC, NFS_SUPER_MAGIC].into_iter().all(is_served));
        assert!(![TMPFS_MAGIC, HUGETLBFS_MAGIC, XFS_SUPER_MAGIC].into_iter().any(is_served));
        let memory = nix::sys::memfd::memfd_create(c"ringspan-test", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        assert!(!is_served(fstatfs(&memory).unwrap().filesystem_type()));
    }
}
