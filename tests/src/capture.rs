//! What comes in on an interface, frame by frame, as a packet socket sees it; and what tshark thinks of it.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::wait;

/// Longest frame.
const LONGEST: usize = 1 << 16;
/// Bytes that may wait in the socket.
const WAITING: libc::c_int = 64 << 20;

/// A packet socket on one interface.
#[derive(Debug)]
pub struct Capture {
    socket: OwnedFd,
}

impl Capture {
    /// Listens on an interface of this thread's network namespace, from now on.
    pub fn start(interface: &str) -> Result<Self> {
        Ok(Self { socket: open(interface)? })
    }

    /// The next frame that was not sent by this side, with the VLAN tag that the kernel has taken out of it; `None` when there is
    /// none within `limit`.
    pub fn next(&self, limit: Duration) -> Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + limit;
        loop {
            let left = PollTimeout::try_from(deadline.saturating_duration_since(Instant::now()))?;
            if poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], left)? == 0 {
                return Ok(None);
            }
            if let Some(frame) = self.receive()? {
                return Ok(Some(frame));
            }
        }
    }

    fn receive(&self) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0u8; LONGEST];
        let mut control = [0u64; 16];
        let mut part = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
        // SAFETY: plain C structures, for which zeroes are fine.
        let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) = unsafe { std::mem::zeroed() };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of_val(&from) as u32;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: all buffers live during the call and are as long as it is told.
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0) };
        ensure!(length >= 0, "recvmsg: {}", std::io::Error::last_os_error());
        frame.truncate(length as usize);
        if from.sll_pkttype == libc::PACKET_OUTGOING {
            return Ok(None);
        }
        // SAFETY: the kernel filled the control buffer in, whose messages the macros walk.
        unsafe {
            let mut header = libc::CMSG_FIRSTHDR(&message);
            while !header.is_null() {
                if (*header).cmsg_level == libc::SOL_PACKET && (*header).cmsg_type == libc::PACKET_AUXDATA {
                    let data = libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned();
                    if data.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
                        let tag = [data.tp_vlan_tpid.to_be_bytes(), data.tp_vlan_tci.to_be_bytes()].concat();
                        frame.splice(12..12, tag);
                    }
                }
                header = libc::CMSG_NXTHDR(&message, header);
            }
        }
        Ok(Some(frame))
    }
}

fn open(interface: &str) -> Result<OwnedFd> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: returns a new descriptor or -1.
    let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    ensure!(raw >= 0, "a packet socket: {}", std::io::Error::last_os_error());
    // SAFETY: a descriptor that is ours alone.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    for (level, name, value) in
        [(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, WAITING), (libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)]
    {
        // SAFETY: the value lives during the call.
        let status =
            unsafe { libc::setsockopt(raw, level, name, (&raw const value).cast(), size_of_val(&value) as u32) };
        ensure!(status == 0, "an option of a packet socket: {}", std::io::Error::last_os_error());
    }
    // SAFETY: a plain C structure, for which zeroes are fine.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = nix::net::if_::if_nametoindex(interface).context(interface.to_string())? as i32;
    // SAFETY: the address lives during the call.
    let status = unsafe { libc::bind(raw, (&raw const address).cast(), size_of_val(&address) as u32) };
    ensure!(status == 0, "listening on {interface}: {}", std::io::Error::last_os_error());
    Ok(socket)
}

/// Has tshark check all checksums of these frames; an error names those that it calls bad. `file` is written.
pub fn tshark_finds_nothing_wrong<F: AsRef<[u8]>>(frames: &[F], file: &Path) -> Result<()> {
    let mut bytes = Vec::new();
    // The classic format of libpcap: magic, version 2.4, zone, accuracy, longest frame, Ethernet.
    for word in [0xa1b2_c3d4u32, 2 | 4 << 16, 0, 0, LONGEST as u32 + 64, 1] {
        bytes.extend(word.to_ne_bytes());
    }
    for (number, frame) in frames.iter().enumerate() {
        let length = frame.as_ref().len() as u32;
        for word in [number as u32, 0, length, length] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(frame.as_ref());
    }
    std::fs::File::create(file)?.write_all(&bytes)?;
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(file).args(["-n", "-T", "fields", "-e", "frame.number", "-e", "_ws.col.Info"]);
    for protocol in ["ip", "tcp", "udp"] {
        tshark.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
    }
    // Those that are good are counted: a filter that never matches would find nothing wrong either.
    let run = |filter: &str| -> Result<Vec<String>> {
        let mut command = Command::new(tshark.get_program());
        command.args(tshark.get_args()).args(["-Y", filter]);
        let text = wait::run(&mut command, Duration::from_secs(120))?.success("tshark")?;
        // It also says on standard error that it should not be run by root.
        Ok(text.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit())).map(Into::into).collect())
    };
    let good = run("tcp.checksum.status == 1 || udp.checksum.status == 1")?.len();
    let bad = run("tcp.checksum.status == 0 || udp.checksum.status == 0 || ip.checksum.status == 0")?;
    ensure!(bad.is_empty(), "tshark calls these checksums bad: {bad:?}");
    ensure!(good == frames.len(), "tshark found {good} good checksums in {} frames", frames.len());
    Ok(())
}
