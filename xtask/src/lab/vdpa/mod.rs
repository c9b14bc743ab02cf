//! Hardware vDPA: two devices get the rings of the test kit's guests.
//!
//! One is QEMU's own virtio NIC behind the emulated IOMMU, made a vDPA device by vp_vdpa ([`wire`]): it is a device on a bus with a wire, whose other end is an interface of
//! the kernel's; it begins at the beginning of rings only. The other is the kernel's simulator ([`returns`]): it returns each frame to its sender, can be suspended,
//! and goes on wherever a ring stands, as mlx5 does. A third is a NIC with several queues ([`several`]), whose wire is outside of the host ([`outside`]).

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_protocol::{Mode, ModeStatus, PortChange, PortSpec, PortStatus, Reply, Request};
use ringspan_testkit::far_end::FarEnd;
use ringspan_testkit::guest::loopback::ETHERTYPE;
use ringspan_testkit::guest::{Guest, Options};
use ringspan_testkit::lane::{self, Client, Lane};
use ringspan_testkit::netns::Netns;
use ringspan_testkit::pci::Function;
use ringspan_testkit::{paths, wait};

mod cpu;
pub mod outside;
mod returns;
mod several;
mod stream;
mod virtio_user;
mod wire;

type Check = (&'static str, fn(&mut Scene) -> Result<()>);

/// The vDPA NIC and the other end of its wire, by their addresses inside.
pub const NIC: &str = "0000:00:12.0";
pub const FAR: &str = "0000:00:13.0";
/// Of QEMU for both, joined by a hub.
pub const MACHINE: &str = "-netdev hubport,id=vdpa,hubid=1 -netdev hubport,id=vdpafar,hubid=1 \
    -device virtio-net-pci,bus=pcie.0,addr=0x12,netdev=vdpa,mac=52:54:00:bb:00:01,iommu_platform=on,ats=on,disable-legacy=on \
    -device virtio-net-pci,bus=pcie.0,addr=0x13,netdev=vdpafar,mac=52:54:00:bb:00:02,disable-legacy=on";
/// Where [`run`] finds the modules.
pub const MODULES: &str = "RINGSPAN_VDPA_MODULES";
const LIMIT: Duration = Duration::from_secs(60);
/// Largest ring of QEMU's NIC unless it is told otherwise.
pub const RING: u16 = 256;

struct Scene<'a> {
    lane: Lane,
    folder: tempfile::TempDir,
    far: FarEnd,
    /// Where the far end is, and its interface there.
    net: Netns,
    far_interface: String,
    guest: Option<Guest>,
    story: &'a mut fs::File,
}

/// All checks. Each makes its device and its port, and leaves nothing.
fn checks() -> impl Iterator<Item = &'static Check> {
    wire::CHECKS.iter().chain(virtio_user::CHECKS).chain(several::CHECKS).chain(returns::CHECKS)
}

/// Whether the name of one of the checks contains `only`.
pub fn is_wanted(only: &str) -> bool {
    checks().any(|(name, _)| name.contains(only))
}

/// Runs the checks whose names contain `only`. Returns how many passed.
pub fn run(story: &mut fs::File, only: &str) -> Result<u32> {
    if !is_wanted(only) {
        return Ok(0);
    }
    let modules = PathBuf::from(std::env::var_os(MODULES).context("no kernel modules for vDPA")?);
    // Of the kernel's own, what those need.
    for module in ["vhost", "vhost_iotlb", "irqbypass", "virtio_pci"] {
        tool("modprobe", &[module])?;
    }
    for module in ["vdpa", "vringh", "vhost_vdpa", "vp_vdpa", "vdpa_sim", "vdpa_sim_net"] {
        tool("insmod", &[&modules.join(format!("{module}.ko")).display().to_string()])?;
    }
    Function::at(NIC)?.bind("vp-vdpa")?;
    let far = wait::until(LIMIT, "the far end's interface", || Ok(interface(FAR)))?;
    let net = Netns::new("vdpa")?;
    tool("ip", &["link", "set", &far, "netns", net.name()])?;
    net.sysctl(&format!("net.ipv6.conf.{far}.disable_ipv6=1"))?;
    net.ip(&["link", "set", &far, "promisc", "on", "up"])?;
    let end = FarEnd::open(&net, &far, ETHERTYPE)?;
    let folder = paths::scratch()?;
    // As real hosts have them: a relay on a vDPA device pins all of the lane's memory, page by page.
    fs::write("/proc/sys/vm/nr_hugepages", HUGE_PAGES.to_string())?;
    let lane = start_lane("vdpa", folder.path(), &[])?;
    let mut scene = Scene { lane, folder, far: end, net, far_interface: far, guest: None, story };
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, check) in checks().filter(|(name, _)| name.contains(only)) {
        let start = Instant::now();
        writeln!(scene.story, "--> {name}")?;
        match check(&mut scene) {
            Ok(()) => passed += 1,
            Err(error) => {
                writeln!(scene.story, "    failed: {error:#}")?;
                failed.push(format!("{name}: {error:#}\n{}", scene.lane.log()));
                scene.tidy();
            }
        }
        writeln!(scene.story, "    {:.1} s", start.elapsed().as_secs_f64())?;
    }
    ensure!(failed.is_empty(), "{} checks failed:\n{}", failed.len(), failed.join("\n"));
    Ok(passed)
}

/// Hugepages of 2 MiB for the lane.
const HUGE_PAGES: u32 = 80;

fn start_lane(name: &str, folder: &Path, runner: &[&str]) -> Result<Lane> {
    // A relay on a vDPA device pins all of the lane's memory, as the service's LimitMEMLOCK lets it.
    let unlimited = ["prlimit", "--memlock=unlimited:unlimited"];
    let (runner, huge_pages) = if runner.is_empty() { (&unlimited[..], "auto") } else { (runner, "off") };
    let runner = runner.iter().map(|&word| word.to_owned()).collect();
    let options = lane::Options {
        cores: "1".into(),
        memory_mib: 128,
        runner,
        huge_pages: huge_pages.into(),
        ready: Duration::from_secs(120),
        ..lane::Options::new(name)
    };
    Lane::start(options, folder)
}

/// Makes a vDPA device of this name, and says which device of a port's that is.
fn make_device(name: &str, parent: &str, words: &[&str]) -> Result<String> {
    tool("vdpa", &[&["dev", "add", "name", name, "mgmtdev", parent], words].concat())?;
    let node = wait::until(LIMIT, "the node of the vDPA device", || {
        let names = fs::read_dir(format!("/sys/bus/vdpa/devices/{name}"))?.flatten();
        let node = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let path = node.filter(|node| node.starts_with("vhost-vdpa-")).map(|node| format!("/dev/{node}")).next();
        Ok(path.filter(|path| Path::new(path).exists()))
    })?;
    Ok(format!("vhost-vdpa:{node}"))
}

/// The network interface of a virtio function, which is one folder further down.
pub fn interface(address: &str) -> Option<String> {
    let devices = fs::read_dir(format!("/sys/bus/pci/devices/{address}")).ok()?;
    let mut nets =
        devices.flatten().filter_map(|entry| fs::read_dir(entry.path().join("net")).ok()).flatten().flatten();
    nets.next().map(|entry| entry.file_name().to_string_lossy().into_owned())
}

fn tool(program: &str, words: &[&str]) -> Result<String> {
    wait::run(Command::new(program).args(words), LIMIT)?.success(&format!("{program} {}", words.join(" ")))
}

impl Scene<'_> {
    fn say(&mut self, text: &str) {
        // Who does not watch misses nothing but this.
        let _ = writeln!(self.story, "    {text}");
    }

    fn spec(&self, device: &str, mode: Mode) -> PortSpec {
        PortSpec { mode, ..self.lane.spec("vm", device, 1) }
    }

    fn options(&self) -> Options {
        // To QEMU a ring at address 0 is one that is not there (hw/virtio/virtio.c, virtio_init_region_cache).
        let socket = self.lane.spec("vm", "vdev:net_null0", 1).socket;
        Options { timeout: LIMIT, ring_size: RING, memory_start: 2 << 20, ..Options::new(socket) }
    }

    /// A guest at the port.
    fn start_guest(&mut self, options: Options) -> Result<&mut Guest> {
        // The one before lets go of the socket first.
        self.guest = None;
        Ok(self.guest.insert(Guest::start(options)?))
    }

    fn guest(&mut self) -> Result<&mut Guest> {
        self.guest.as_mut().context("no guest")
    }

    /// The port, when it is as wanted.
    fn wait_mode(&mut self, mode: ModeStatus) -> Result<PortStatus> {
        self.lane.wait_port("vm", LIMIT, |port| port.mode == mode)
    }

    /// The lane's own socket.
    fn lane_socket(&self) -> PathBuf {
        self.folder.path().join("lane-vdpa.sock")
    }

    /// No guest and no port, for the check that comes next.
    fn clear(&mut self) -> Result<()> {
        self.guest = None;
        self.lane.remove("vm")
    }

    /// After a check that failed: nothing of it is left for the next one, as far as possible.
    fn tidy(&mut self) {
        self.guest = None;
        if !self.lane.is_alive() {
            let _ = self.lane.kill();
            let _ = self.lane.restart();
        }
        for port in ["vm", "vm2"] {
            let _ = self.lane.remove(port);
        }
        for device in ["vd0", "vd1", "vs0", "vs1"] {
            let _ = tool("vdpa", &["dev", "del", device]);
        }
    }

    fn set_mode(&mut self, mode: Mode) -> Result<ModeStatus> {
        set_mode(self.lane.client()?, mode)
    }

    fn reason(&mut self) -> Result<String> {
        let reason = self.lane.port("vm")?.mode_reason.unwrap_or_default();
        self.say(&reason);
        Ok(reason)
    }

    /// Frames that workers have seen of the port.
    fn seen_by_workers(&mut self) -> Result<u64> {
        let (from, to) = self.lane.totals("vm")?;
        Ok(from.received + to.received)
    }
}

/// Changes who moves the port's packets; who does.
fn set_mode(client: &mut Client, mode: Mode) -> Result<ModeStatus> {
    let change = PortChange { mode: Some(mode), ..PortChange::default() };
    match client.ask(Request::PortSet { name: "vm".parse()?, change })? {
        Reply::Port(status) => Ok(status.mode),
        other => anyhow::bail!("port-set was answered by {other:?}"),
    }
}
