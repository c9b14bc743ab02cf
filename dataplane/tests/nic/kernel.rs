//! The kernel's side of a TAP or veth: a network namespace of the test's own, and raw sockets in it.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use ringspan_testkit::skip::{Need, can_run};

/// Ethernet type for experiments on one's own network (IEEE 802), so that the kernel's own frames are told apart.
const EXPERIMENT: u16 = 0x88b5;

/// Whether the test can have a namespace; else it is skipped.
pub fn namespaces(test: &str) -> bool {
    can_run(test, &[Need::Root, Need::Program("ip")])
}

/// Moves the calling thread, and what it starts from now on, into a new network namespace, which goes with the process.
pub fn own_namespace() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    ip("link set lo up");
}

/// Runs `ip` in the calling thread's namespace.
pub fn ip(arguments: &str) {
    let output = Command::new("timeout").args(["-k", "5", "10", "ip"]).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// MTU of an interface of this namespace, as its sysfs says through /proc.
pub fn mtu(interface: &str) -> u32 {
    let output =
        Command::new("timeout").args(["-k", "5", "10", "ip", "-o", "link", "show", interface]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mtu = text.split_whitespace().skip_while(|word| *word != "mtu").nth(1).map(str::parse);
    mtu.unwrap_or_else(|| panic!("no MTU of {interface}: {text}")).unwrap()
}

/// The MAC address of an interface in this namespace.
pub fn address(interface: &str) -> ringspan_protocol::MacAddress {
    let output = Command::new("ip").args(["-o", "link", "show", "dev", interface]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mac = text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).map(str::parse);
    mac.unwrap_or_else(|| panic!("no address of {interface}: {text}")).unwrap()
}

/// Whether an interface exists in this namespace.
pub fn exists(interface: &str) -> bool {
    let text = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    text.lines().any(|line| line.trim_start().starts_with(&format!("{interface}:")))
}

/// A frame of the experimental type: number and length say what its bytes are.
pub fn frame(number: usize, len: usize) -> Vec<u8> {
    let mut frame = crate::alone::frame(number, len);
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&[0x52, 0x54, 0, 0, 0, number as u8]);
    frame[12..14].copy_from_slice(&EXPERIMENT.to_be_bytes());
    frame
}

/// Whether a frame is one of [`frame`]'s.
pub fn is_ours(frame: &[u8]) -> bool {
    frame[12..14] == EXPERIMENT.to_be_bytes()
}

/// A socket that sends and receives frames of the experimental type on an interface.
pub struct Wire(OwnedFd);

impl Wire {
    pub fn new(interface: &str) -> Self {
        let name = CString::new(interface).unwrap();
        // SAFETY: the name is terminated.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        assert_ne!(index, 0, "no interface {interface}");
        let protocol = EXPERIMENT.to_be();
        // SAFETY: plain call; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol)) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: a new descriptor that nobody else owns.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: a plain C structure.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index as i32;
        let len = size_of_val(&address) as u32;
        // SAFETY: the address is valid for `len` bytes.
        let status = unsafe { libc::bind(fd, (&raw const address).cast(), len) };
        assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
        socket
    }

    pub fn send(&self, frame: &[u8]) {
        // SAFETY: the frame is valid for its length.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
    }

    /// The next frame that came in.
    pub fn receive(&self) -> Vec<u8> {
        let mut frame = vec![0; 1 << 16];
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            // SAFETY: the buffer is valid for its length.
            let n =
                unsafe { libc::recv(self.0.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), libc::MSG_DONTWAIT) };
            if n >= 0 {
                frame.truncate(n as usize);
                return frame;
            }
            assert!(Instant::now() < end, "no frame: {}", std::io::Error::last_os_error());
            std::thread::yield_now();
        }
    }
}
