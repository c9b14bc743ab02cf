//! Hardware vDPA: QEMU's own virtio NIC behind the emulated IOMMU, made a vDPA device by vp_vdpa. The test kit's guest has a vhost-user NIC whose rings
//! that device gets, and the other end of the device's wire is an interface of the kernel's.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_protocol::{LaneEventKind, Mode, ModeStatus, PortChange, PortSpec, Reply, Request};
use ringspan_testkit::far_end::FarEnd;
use ringspan_testkit::guest::crossing::{self, End, Ways};
use ringspan_testkit::guest::loopback::{ETHERTYPE, Plan};
use ringspan_testkit::guest::{Guest, Options};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::netns::Netns;
use ringspan_testkit::pci::Function;
use ringspan_testkit::{paths, wait};

type Check = (&'static str, fn(&mut Scene) -> Result<()>);

/// In this order: a check finds what the one before it left.
const CHECKS: &[Check] = &[
    ("the device gets the guest's rings, and no worker sees a packet", handed_over),
    ("the rings go to a relay on the same device while the guest runs", to_relay),
    ("back again: this driver begins at the beginning only, so that the guest's driver has to", back),
    ("a ring that is too large for the device is relayed, with the reason", ring_size),
    ("memory beyond RLIMIT_MEMLOCK is named as such", locked_memory),
    ("the device is taken away, and comes back", unplug),
    ("what is no vDPA device, and one that is in use, is refused", refusals),
];
/// The vDPA NIC and the other end of its wire, by their addresses inside.
pub(super) const NIC: &str = "0000:00:12.0";
pub(super) const FAR: &str = "0000:00:13.0";
/// Of QEMU for both, joined by a hub.
pub const MACHINE: &str = "-netdev hubport,id=vdpa,hubid=1 -netdev hubport,id=vdpafar,hubid=1 \
    -device virtio-net-pci,bus=pcie.0,addr=0x12,netdev=vdpa,mac=52:54:00:bb:00:01,iommu_platform=on,ats=on,disable-legacy=on \
    -device virtio-net-pci,bus=pcie.0,addr=0x13,netdev=vdpafar,mac=52:54:00:bb:00:02,disable-legacy=on";
/// Where [`run`] finds the modules.
pub const MODULES: &str = "RINGSPAN_VDPA_MODULES";
const DEVICE: &str = "vhost-vdpa:/dev/vhost-vdpa-0";
const LIMIT: Duration = Duration::from_secs(60);
/// Largest ring of QEMU's NIC unless it is told otherwise.
pub(super) const RING: u16 = 256;

struct Scene<'a> {
    lane: Lane,
    folder: tempfile::TempDir,
    far: FarEnd,
    _net: Netns,
    guest: Option<Guest>,
    story: &'a mut fs::File,
}

/// Whether the name of one of the checks contains `only`.
pub fn is_wanted(only: &str) -> bool {
    CHECKS.iter().any(|(name, _)| name.contains(only))
}

/// Runs all checks when the name of one contains `only`. Returns how many passed.
pub fn run(story: &mut fs::File, only: &str) -> Result<u32> {
    if !is_wanted(only) {
        return Ok(0);
    }
    let modules = PathBuf::from(std::env::var_os(MODULES).context("no kernel modules for vDPA")?);
    // Of the kernel's own, what those need.
    for module in ["vhost", "vhost_iotlb", "irqbypass", "virtio_pci"] {
        tool("modprobe", &[module])?;
    }
    for module in ["vdpa", "vhost_vdpa", "vp_vdpa"] {
        tool("insmod", &[&modules.join(format!("{module}.ko")).display().to_string()])?;
    }
    Function::at(NIC)?.bind("vp-vdpa")?;
    make_device()?;
    let far = wait::until(LIMIT, "the far end's interface", || Ok(interface(FAR)))?;
    let net = Netns::new("vdpa")?;
    tool("ip", &["link", "set", &far, "netns", net.name()])?;
    net.sysctl(&format!("net.ipv6.conf.{far}.disable_ipv6=1"))?;
    net.ip(&["link", "set", &far, "promisc", "on", "up"])?;
    let end = FarEnd::open(&net, &far, ETHERTYPE)?;
    let folder = paths::scratch()?;
    let lane = start_lane("vdpa", folder.path(), &[])?;
    let mut scene = Scene { lane, folder, far: end, _net: net, guest: None, story };
    for (name, check) in CHECKS {
        let start = Instant::now();
        writeln!(scene.story, "--> {name}")?;
        check(&mut scene).with_context(|| format!("{name}\n{}", scene.lane.log()))?;
        writeln!(scene.story, "    {:.1} s", start.elapsed().as_secs_f64())?;
    }
    drop(scene);
    tool("vdpa", &["dev", "del", "vd0"])?;
    Ok(CHECKS.len() as u32)
}

fn start_lane(name: &str, folder: &Path, runner: &[&str]) -> Result<Lane> {
    let runner = runner.iter().map(|&word| word.to_owned()).collect();
    let options = lane::Options {
        cores: "1".into(),
        memory_mib: 128,
        runner,
        ready: Duration::from_secs(120),
        ..lane::Options::new(name)
    };
    Lane::start(options, folder)
}

fn make_device() -> Result<()> {
    tool("vdpa", &["dev", "add", "name", "vd0", "mgmtdev", &format!("pci/{NIC}")])?;
    wait::until(LIMIT, "the node of the vDPA device", || Ok(Path::new("/dev/vhost-vdpa-0").exists().then_some(())))
}

/// The network interface of a virtio function, which is one folder further down.
pub(super) fn interface(address: &str) -> Option<String> {
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

    fn spec(&self, mode: Mode) -> PortSpec {
        PortSpec { mode, ..self.lane.spec("vm", DEVICE, 1) }
    }

    fn options(&self) -> Options {
        // To QEMU a ring at address 0 is one that is not there (hw/virtio/virtio.c, virtio_init_region_cache).
        Options { timeout: LIMIT, ring_size: RING, memory_start: 2 << 20, ..Options::new(self.spec(Mode::Auto).socket) }
    }

    fn set_mode(&mut self, mode: Mode) -> Result<ModeStatus> {
        let change = PortChange { mode: Some(mode), ..PortChange::default() };
        match self.lane.client()?.ask(Request::PortSet { name: "vm".parse()?, change })? {
            Reply::Port(status) => Ok(status.mode),
            other => anyhow::bail!("port-set was answered by {other:?}"),
        }
    }

    /// Frames both ways, each byte checked; whether workers saw them.
    fn cross(&mut self, frames: u64, by: ModeStatus) -> Result<()> {
        self.lane.wait_port("vm", LIMIT, |port| port.active_pairs == 1 && port.mode == by)?;
        let seen = |lane: &mut Lane| -> Result<u64> {
            let (from, to) = lane.totals("vm")?;
            Ok(from.received + to.received)
        };
        let before = seen(&mut self.lane)?;
        let guest = self.guest.as_mut().context("no guest")?;
        let start = Instant::now();
        // Fewer on their way than QEMU's hub has room for.
        let plan = Plan { burst: 16, ..Plan::new(frames, 32) };
        crossing::run(&mut End::Guest(guest), &mut End::Far(&self.far), Ways::Both, plan)?;
        let took = start.elapsed();
        let by_workers = seen(&mut self.lane)? - before;
        self.say(&format!("{by:?}: {frames} frames each way in {} ms, workers saw {by_workers}", took.as_millis()));
        match by {
            ModeStatus::Relay => {
                ensure!(by_workers >= 2 * frames, "{by_workers} of {} frames were relayed", 2 * frames)
            }
            _ => ensure!(by_workers == 0, "{by_workers} frames were relayed"),
        }
        Ok(())
    }

    fn reason(&mut self) -> Result<String> {
        let reason = self.lane.port("vm")?.mode_reason.unwrap_or_default();
        self.say(&reason);
        Ok(reason)
    }
}

fn handed_over(scene: &mut Scene) -> Result<()> {
    let status = scene.lane.add(&scene.spec(Mode::Auto))?;
    ensure!(status.mode == ModeStatus::Vdpa && status.shares.is_empty(), "{status:?}");
    scene.say(&format!("{:?}", status.device));
    ensure!(status.device.link_up && status.device.mac.to_string() == "52:54:00:bb:00:01", "{:?}", status.device);
    scene.guest = Some(Guest::start(scene.options())?);
    scene.cross(2000, ModeStatus::Vdpa)
}

fn to_relay(scene: &mut Scene) -> Result<()> {
    ensure!(scene.set_mode(Mode::Relay)? == ModeStatus::Relay);
    let changed = scene.lane.wait_event("vm", LIMIT, |event| matches!(event, LaneEventKind::ModeChanged { .. }))?;
    scene.say(&format!("{changed:?}"));
    scene.cross(2000, ModeStatus::Relay)
}

fn back(scene: &mut Scene) -> Result<()> {
    ensure!(scene.set_mode(Mode::Auto)? == ModeStatus::Relay, "vp_vdpa went on in the middle");
    ensure!(scene.reason()?.contains("cannot go on at"), "another reason");
    scene.cross(500, ModeStatus::Relay)?;
    scene.guest.as_mut().context("no guest")?.reset()?;
    scene.cross(2000, ModeStatus::Vdpa)?;
    ensure!(scene.reason()?.is_empty());
    scene.guest = None;
    Ok(())
}

fn ring_size(scene: &mut Scene) -> Result<()> {
    scene.guest = Some(Guest::start(Options { ring_size: 2 * RING, ..scene.options() })?);
    scene.cross(500, ModeStatus::Relay)?;
    ensure!(scene.reason()?.contains("the device takes 256 at most"));
    scene.guest = None;
    scene.guest = Some(Guest::start(scene.options())?);
    scene.cross(500, ModeStatus::Vdpa)?;
    scene.guest = None;
    Ok(())
}

/// A relay pins memory of its own on this device, so that it does not help here.
fn locked_memory(scene: &mut Scene) -> Result<()> {
    scene.lane.remove("vm")?;
    let folder = tempfile::tempdir_in(scene.folder.path())?;
    let limited = start_lane("locked", folder.path(), &["prlimit", "--memlock=65536:65536"])?;
    let free = std::mem::replace(&mut scene.lane, limited);
    let outcome = scene.lane.add(&scene.spec(Mode::Auto)).and_then(|_| {
        scene.guest = Some(Guest::start(scene.options())?);
        scene.reason()
    });
    scene.guest = None;
    scene.lane = free;
    let reason = outcome?;
    ensure!(reason.contains("RLIMIT_MEMLOCK is 64 KiB"), "{reason}");
    Ok(())
}

fn unplug(scene: &mut Scene) -> Result<()> {
    scene.lane.add(&scene.spec(Mode::Auto))?;
    scene.guest = Some(Guest::start(scene.options())?);
    scene.cross(500, ModeStatus::Vdpa)?;
    // Returns when the lane has let go of it.
    tool("vdpa", &["dev", "del", "vd0"])?;
    scene.lane.wait_event("vm", LIMIT, |event| *event == LaneEventKind::DeviceRemoved)?;
    let down = scene.lane.wait_port("vm", LIMIT, |port| port.mode == ModeStatus::Down)?;
    scene.say(&format!("{:?}, {} pairs", down.mode_reason, down.active_pairs));
    ensure!(down.active_pairs == 0 && !down.device.link_up, "{down:?}");
    make_device()?;
    scene.lane.wait_event("vm", LIMIT, |event| *event == LaneEventKind::DeviceReturned)?;
    // In the middle of the guest's rings vp_vdpa cannot begin.
    scene.cross(500, ModeStatus::Relay)?;
    scene.guest.as_mut().context("no guest")?.reset()?;
    scene.cross(500, ModeStatus::Vdpa)
}

fn refusals(scene: &mut Scene) -> Result<()> {
    let folder = tempfile::tempdir_in(scene.folder.path())?;
    let mut second = start_lane("second", folder.path(), &[])?;
    for (device, says) in [
        (DEVICE, "is in use"),
        ("vhost-vdpa:/dev/null", "is no vhost-vdpa device"),
        ("vhost-vdpa:/dev/vhost-vdpa-9", "there is no /dev/vhost-vdpa-9"),
    ] {
        for mode in [Mode::Auto, Mode::Vdpa, Mode::Relay] {
            let spec = PortSpec { mode, ..second.spec("vm", device, 1) };
            let refused = second.add(&spec).err().with_context(|| format!("{device} was taken"))?.to_string();
            ensure!(refused.contains(says), "{device}: {refused}");
            scene.say(&refused);
        }
    }
    Ok(())
}
