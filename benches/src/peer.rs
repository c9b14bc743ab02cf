//! Back-ends that can be measured, each with one worker on the same core, and the same device behind it.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Mutex;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::testpmd::{self, Testpmd};
use ringspan_testkit::{paths, process};
use serde::{Deserialize, Serialize};

use crate::cell::{Cell, Device, Setup};
use crate::driver::HEADER;
use crate::driver::stamp::{Frames, image};
use crate::ovs::{self, Ovs, Port};

/// Which back-end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// `ringspan-lane`, driven without the daemon.
    Ringspan,
    /// `dpdk-testpmd` with net_vhost, forwarding between that and the device.
    Testpmd,
    /// Open vSwitch with DPDK, a flow for each direction.
    Ovs,
    /// The stock vhost-user-backend and virtio-queue crates, with a device of the harness's own.
    Plain,
}

impl Peer {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ringspan, Self::Testpmd, Self::Ovs, Self::Plain];

    /// For a table.
    pub fn title(self) -> &'static str {
        match self {
            Self::Ringspan => "ringspan",
            Self::Testpmd => "net_vhost",
            Self::Ovs => "OVS-DPDK",
            Self::Plain => "plain crates",
        }
    }

    /// Whether it can do what a cell asks for.
    pub fn can(self, cell: &Cell) -> bool {
        match self {
            // virtio-queue has no packed rings; one pair is enough for what it is here for.
            Self::Plain => {
                !cell.packed && cell.is_plain() && !matches!(cell.setup().device, Device::Guest | Device::MakeMix)
            }
            _ => true,
        }
    }
}

/// Where and how back-ends run.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The core of their worker.
    pub core: usize,
    /// Whether they have hugepages.
    pub huge_pages: bool,
    /// testpmd's `--burst`.
    pub testpmd_burst: u16,
    /// Bytes of the largest frame that ports and packet buffers have room for.
    pub largest: u16,
}

#[derive(Debug)]
enum Process {
    Ringspan(Box<Mutex<Lane>>),
    Testpmd(Testpmd),
    Ovs(Ovs),
    Plain(Child),
}

/// A running back-end; it ends when this is dropped.
#[derive(Debug)]
pub struct Backend {
    /// Which.
    pub peer: Peer,
    /// The sockets that it listens on: of the guest, or of both guests.
    pub sockets: Vec<PathBuf>,
    process: Process,
    _folder: tempfile::TempDir,
}

/// The largest frame that any cell has, and Ethernet's header more; all back-ends keep a frame in one piece, because net_null reads and makes
/// them so.
pub const LARGEST: u16 = 9018;
/// Ethernet's header and check sequence.
const ETHERNET: u16 = 18;

impl Setup {
    /// The largest packet that its device takes, in bytes of IP.
    fn mtu(&self, place: Place) -> u16 {
        if self.device == Device::Tap { 1500 } else { place.largest - ETHERNET }
    }

    /// The DPDK device, as after `--vdev`, and the socket that it listens on, if it does.
    fn device(&self, folder: &Path) -> anyhow::Result<Option<(String, Option<PathBuf>)>> {
        Ok(match self.device {
            Device::Swallow => Some(("net_null0,no-rx=1".into(), None)),
            Device::Read => {
                // net_null would copy, too, but not without making frames at the same time.
                let socket = folder.join("reader");
                Some((format!("net_vhost9,iface={},queues={}", socket.display(), self.pairs), Some(socket)))
            }
            Device::Make(size) => Some((format!("net_null0,size={size}"), None)),
            Device::MakeMix => {
                let file = folder.join("mix.pcap");
                std::fs::write(&file, capture(&Frames::Imix))?;
                Some((format!("net_pcap0,rx_pcap={},infinite_rx=1", file.display()), None))
            }
            Device::Loop => Some(("net_ring0".into(), None)),
            Device::Guest => None,
            // With a MAC address of its own choice net_tap would change the TAP's.
            Device::Tap => Some(("net_tap0,iface=tap0,mac=02:74:61:70:00:01".into(), None)),
        })
    }
}

/// A capture file with a few rounds of frames, which net_pcap plays for ever.
fn capture(frames: &Frames) -> Vec<u8> {
    const ROUNDS: u16 = 4;
    let mut bytes = vec![];
    // Magic number, version 2.4, time zone, accuracy, longest frame, Ethernet.
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65535, 1] {
        bytes.extend(word.to_le_bytes());
    }
    for slot in 0..12 * ROUNDS {
        let length = frames.length(slot);
        let image = image(length, 0);
        for word in [0, 0, u32::from(length), u32::from(length)] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(&image[HEADER..HEADER + usize::from(length)]);
    }
    bytes
}

impl Backend {
    /// Starts a back-end with its sockets listening in a folder of its own.
    pub fn start(peer: Peer, setup: Setup, place: Place) -> anyhow::Result<Self> {
        Self::start_under(peer, setup, place, &[])
    }

    /// The same, with the program run by another: the words of that one's command line.
    pub fn start_under(peer: Peer, setup: Setup, place: Place, runner: &[String]) -> anyhow::Result<Self> {
        let folder = paths::scratch()?;
        let path = folder.path();
        let (process, sockets) = match peer {
            Peer::Ringspan => ringspan(setup, place, path, runner),
            Peer::Testpmd => testpmd(setup, place, path, runner),
            Peer::Ovs => ovs(setup, place, path, runner),
            Peer::Plain => plain(setup, place, path, runner),
        }
        .with_context(|| format!("starting {}", peer.title()))?;
        Ok(Self { peer, sockets, process, _folder: folder })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        match &self.process {
            Process::Ringspan(lane) => lane.lock().map_or(0, |lane| lane.pid()),
            Process::Testpmd(testpmd) => testpmd.pid(),
            Process::Ovs(ovs) => ovs.pid(),
            Process::Plain(child) => child.id(),
        }
    }

    /// Frames that ringspan took from its guest since it started, and how many of them it did not copy. Nothing of others: none of them can.
    pub fn taken(&self) -> anyhow::Result<Option<[u64; 2]>> {
        let Process::Ringspan(lane) = &self.process else { return Ok(None) };
        let mut lane = lane.lock().map_err(|_| anyhow::anyhow!("the lane's client panicked"))?;
        let (from_guest, _) = lane.totals("one")?;
        Ok(Some([from_guest.received, from_guest.zero_copied]))
    }

    /// Stops all its threads where they are, so that another may have the core.
    pub fn pause(&self) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(self.pid() as i32), Signal::SIGSTOP)?)
    }

    /// Goes on after [`Self::pause`].
    pub fn resume(&self) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(self.pid() as i32), Signal::SIGCONT)?)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Process::Plain(child) = &mut self.process {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The process and its sockets.
type Started = anyhow::Result<(Process, Vec<PathBuf>)>;

fn ringspan(setup: Setup, place: Place, folder: &Path, runner: &[String]) -> Started {
    let options = lane::Options {
        cores: place.core.to_string(),
        memory_mib: 256,
        huge_pages: if place.huge_pages { "require" } else { "off" }.into(),
        runner: runner.to_vec(),
        ..lane::Options::new("bench")
    };
    let mut lane = Lane::start(options, folder)?;
    let (devices, reader) = match setup.device(folder)? {
        Some((device, reader)) => (vec![format!("vdev:{device}")], reader),
        None => (vec!["patch:cable/a".to_string(), "patch:cable/b".to_string()], None),
    };
    let mut sockets = vec![];
    for (device, name) in devices.iter().zip(["one", "two"]) {
        let spec = lane.spec(name, device, setup.pairs);
        lane.add(&ringspan_protocol::PortSpec { mtu: setup.mtu(place), ..spec.clone() })?;
        sockets.push(spec.socket);
    }
    sockets.extend(reader);
    Ok((Process::Ringspan(Box::new(Mutex::new(lane))), sockets))
}

fn testpmd(setup: Setup, place: Place, folder: &Path, runner: &[String]) -> Started {
    let vhost = |index: usize| {
        let socket = folder.join(format!("vhost{index}"));
        // Without it net_vhost does not offer segmentation.
        let tso = if setup.offload { ",tso=1" } else { "" };
        (format!("net_vhost{index},iface={},queues={}{tso}", socket.display(), setup.pairs), socket)
    };
    let (first, socket) = vhost(0);
    let (second, other) = setup.device(folder)?.unwrap_or_else(|| (vhost(1).0, Some(vhost(1).1)));
    let sockets = [socket].into_iter().chain(other).collect();
    let mut options = testpmd::Options::new(format!("bench-{}", std::process::id())).device(first).device(second);
    let queues = setup.pairs.to_string();
    let burst = format!("--burst={}", place.testpmd_burst);
    let room = (place.largest + 128).next_multiple_of(128).to_string();
    let words = [
        "--forward-mode=io",
        &burst,
        "--total-num-mbufs=16384",
        "--mbuf-size",
        &room,
        "--rxq",
        &queues,
        "--txq",
        &queues,
    ];
    options.arguments.extend(words.map(String::from));
    options.core = place.core;
    options.huge_pages = place.huge_pages;
    options.runner = runner.to_vec();
    let mut testpmd = Testpmd::start(&options)?;
    testpmd.command("start")?;
    Ok((Process::Testpmd(testpmd), sockets))
}

fn ovs(setup: Setup, place: Place, folder: &Path, runner: &[String]) -> Started {
    let (second, other) = match setup.device(folder)? {
        Some((device, reader)) => (Port::Dpdk(device), reader),
        None => (Port::Vhost, Some(folder.join("two"))),
    };
    let ports = [("one", Port::Vhost), ("two", second)];
    // The polling thread sends on its own transmit queue, which is not the first: what net_ring gives back comes from the ring of
    // the same number, and net_tap wants as many of one kind as of the other.
    let queues = if matches!(setup.device, Device::Loop | Device::Tap) { setup.pairs + 1 } else { setup.pairs };
    let plan = ovs::Plan {
        core: place.core,
        memory_mib: 512,
        huge_pages: place.huge_pages,
        ports,
        queues,
        mtu: setup.mtu(place),
        // Where small frames are all that there is, a start should not take minutes.
        own_pools: place.largest < LARGEST,
        offload: setup.offload,
        runner,
    };
    let ovs = Ovs::start(folder, &plan)?;
    let sockets = [ovs.socket("one")].into_iter().chain(other).collect();
    Ok((Process::Ovs(ovs), sockets))
}

fn plain(setup: Setup, place: Place, folder: &Path, runner: &[String]) -> Started {
    let device = match setup.device {
        Device::Swallow => "swallow".to_string(),
        Device::Make(size) => format!("make={size}"),
        Device::Loop => "loop".to_string(),
        Device::Guest | Device::Read | Device::MakeMix | Device::Tap => bail!("its device cannot do that"),
    };
    let socket = folder.join("plain");
    let own = std::env::current_exe()?;
    let program = own.with_file_name("plain-backend");
    let mut command = process::under(runner, &program);
    command.arg("--socket").arg(&socket);
    command.args(["--core", &place.core.to_string(), "--device", &device]).stdin(Stdio::null());
    // SAFETY: prctl is safe between fork and exec; the process must not outlive the benchmark that started it.
    unsafe { command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)) };
    let child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
    Ok((Process::Plain(child), vec![socket]))
}
