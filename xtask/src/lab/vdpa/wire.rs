//! Checks of a device with a wire: QEMU's virtio NIC under vp_vdpa.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_protocol::{LaneEventKind, Mode, ModeStatus, PortSpec};
use ringspan_testkit::guest::crossing::{self, End, Ways};
use ringspan_testkit::guest::loopback::Plan;
use ringspan_testkit::guest::{Options, feature};
use ringspan_testkit::pci::Function;

use super::cpu::Load;
use super::stream::{Flow, take_at_far, take_at_guest};
use super::{Check, LIMIT, NIC, RING, Scene, make_device, start_lane, tool};

pub const CHECKS: &[Check] = &[
    ("vdpa: the device gets the guest's rings, and no worker sees a packet", handed_over),
    ("vdpa: what the device cannot go on with gets to it when the guest's driver starts anew", later),
    ("vdpa: a ring that is too large for the device is relayed, with the reason", ring_size),
    ("vdpa: a feature that the device lacks, and memory beyond its addresses, are relayed, with the reason", refused),
    ("vdpa: memory beyond RLIMIT_MEMLOCK is named as such", locked_memory),
    ("vdpa: a guest's memory that RLIMIT_MEMLOCK has no room for is relayed, with the reason", large_guest),
    ("vdpa: the device's driver is unbound under traffic, and the device comes back", unbound),
    ("vdpa: what is no vDPA device, one that is in use, and one that the lane may not open, is refused", not_opened),
];
const PARENT: &str = "pci/0000:00:12.0";
/// Most of a processor that whoever does not move packets may use beyond what it uses without any.
const IDLE: f64 = 0.05;
/// RLIMIT_MEMLOCK in bytes: more than the lane's own memory, and less than a guest's with [`LARGE`] buffers.
const LANE_AND_MORE: usize = 192 << 20;
/// All of a guest's send buffers, in bytes.
const LARGE: usize = 256 << 20;

impl Scene<'_> {
    /// Frames both ways, each byte checked; whether workers saw them.
    fn cross(&mut self, frames: u64, by: ModeStatus) -> Result<()> {
        self.lane.wait_port("vm", LIMIT, |port| port.active_pairs == 1 && port.mode == by)?;
        let before = self.seen_by_workers()?;
        let pid = self.lane.pid();
        let load = Load::now(pid)?;
        std::thread::sleep(Duration::from_millis(if by == ModeStatus::Vdpa { 500 } else { 0 }));
        let quiet = load.until(&Load::now(pid)?);
        let guest = self.guest.as_mut().context("no guest")?;
        // Fewer on their way than QEMU's hub has room for.
        let plan = Plan { burst: 16, ..Plan::new(frames, 32) };
        let (load, start) = (Load::now(pid)?, Instant::now());
        crossing::run(&mut End::Guest(guest), &mut End::Far(&self.far), Ways::Both, plan)?;
        let (took, used) = (start.elapsed(), load.until(&Load::now(pid)?));
        let by_workers = self.seen_by_workers()? - before;
        self.say(&format!("{by:?}: {frames} frames each way in {} ms, workers saw {by_workers}", took.as_millis()));
        self.say(&format!("{used}"));
        match by {
            ModeStatus::Relay => {
                ensure!(by_workers >= 2 * frames, "{by_workers} of {} frames were relayed", 2 * frames)
            }
            _ => ensure!(by_workers == 0, "{by_workers} frames were relayed"),
        }
        if by == ModeStatus::Vdpa && frames >= 2000 {
            self.say(&format!("before, without frames: {quiet}"));
            let (lane, vhost) = (used.lane - quiet.lane, used.vhost - quiet.vhost);
            ensure!(lane < IDLE && vhost < IDLE, "the device moves the packets, and {used}; before {quiet}");
        }
        Ok(())
    }

    /// A port on the device, and a guest whose rings the device has.
    pub fn on_wire(&mut self) -> Result<()> {
        let device = make_device("vd0", PARENT, &[])?;
        let status = self.lane.add(&self.spec(&device, Mode::Auto))?;
        ensure!(status.mode == ModeStatus::Vdpa && status.shares.is_empty(), "{status:?}");
        self.say(&format!("{:?}", status.device));
        ensure!(status.device.link_up && status.device.mac.to_string() == "52:54:00:bb:00:01", "{:?}", status.device);
        Ok(())
    }

    pub fn off_wire(&mut self) -> Result<()> {
        self.clear()?;
        tool("vdpa", &["dev", "del", "vd0"]).map(drop)
    }
}

fn handed_over(scene: &mut Scene) -> Result<()> {
    scene.on_wire()?;
    scene.start_guest(scene.options())?;
    scene.cross(5000, ModeStatus::Vdpa)?;
    // A guest's driver that begins anew, a front-end that connects again, and another guest.
    scene.guest()?.reset()?;
    scene.cross(500, ModeStatus::Vdpa)?;
    scene.start_guest(scene.options())?;
    scene.cross(500, ModeStatus::Vdpa)?;
    scene.off_wire()
}

fn later(scene: &mut Scene) -> Result<()> {
    scene.on_wire()?;
    scene.start_guest(scene.options())?;
    scene.cross(500, ModeStatus::Vdpa)?;
    ensure!(scene.set_mode(Mode::Relay)? == ModeStatus::Relay);
    let changed = scene.lane.wait_event("vm", LIMIT, |event| matches!(event, LaneEventKind::ModeChanged { .. }))?;
    scene.say(&format!("{changed:?}"));
    scene.cross(2000, ModeStatus::Relay)?;
    ensure!(scene.set_mode(Mode::Auto)? == ModeStatus::Relay, "vp_vdpa went on in the middle");
    ensure!(scene.reason()?.contains("cannot go on at"), "another reason");
    scene.cross(500, ModeStatus::Relay)?;
    scene.guest()?.reset()?;
    scene.cross(500, ModeStatus::Vdpa)?;
    ensure!(scene.reason()?.is_empty());
    scene.off_wire()
}

fn ring_size(scene: &mut Scene) -> Result<()> {
    scene.on_wire()?;
    scene.start_guest(Options { ring_size: 2 * RING, ..scene.options() })?;
    scene.cross(500, ModeStatus::Relay)?;
    ensure!(scene.reason()?.contains("the device takes 256 at most"));
    scene.start_guest(scene.options())?;
    scene.cross(500, ModeStatus::Vdpa)?;
    scene.off_wire()
}

fn refused(scene: &mut Scene) -> Result<()> {
    scene.on_wire()?;
    // Only what the device has is offered as long as it may get the rings.
    ensure!(scene.set_mode(Mode::Relay)? == ModeStatus::Relay);
    scene.start_guest(scene.options().require(feature::RING_PACKED))?;
    scene.cross(500, ModeStatus::Relay)?;
    ensure!(scene.set_mode(Mode::Auto)? == ModeStatus::Relay);
    ensure!(scene.reason()?.contains("the device has no RING_PACKED, which"), "another reason");
    scene.cross(500, ModeStatus::Relay)?;
    // The emulated IOMMU has 48 bits of addresses.
    scene.start_guest(Options { memory_start: 1 << 50, ..scene.options() })?;
    scene.cross(500, ModeStatus::Relay)?;
    ensure!(scene.reason()?.contains("the device addresses 0x0 to"), "another reason");
    scene.start_guest(scene.options())?;
    scene.cross(500, ModeStatus::Vdpa)?;
    // The port is down when nobody else may have the rings, until another guest comes.
    scene.guest = None;
    ensure!(scene.set_mode(Mode::Vdpa)? == ModeStatus::Vdpa);
    scene.start_guest(Options { ring_size: 2 * RING, ..scene.options() })?;
    let down = scene.wait_mode(ModeStatus::Down)?;
    ensure!(down.mode_reason.as_deref().is_some_and(|reason| reason.contains("256 at most")), "{down:?}");
    scene.start_guest(scene.options())?;
    scene.cross(500, ModeStatus::Vdpa)?;
    scene.off_wire()
}

/// A relay pins memory of its own on this device, so that it does not help here.
fn locked_memory(scene: &mut Scene) -> Result<()> {
    let device = make_device("vd0", PARENT, &[])?;
    let folder = tempfile::tempdir_in(scene.folder.path())?;
    let limited = start_lane("locked", folder.path(), &["prlimit", "--memlock=65536:65536"])?;
    let free = std::mem::replace(&mut scene.lane, limited);
    let outcome = scene.lane.add(&scene.spec(&device, Mode::Auto)).and_then(|_| {
        scene.start_guest(scene.options())?;
        scene.reason()
    });
    scene.guest = None;
    scene.lane = free;
    let reason = outcome?;
    ensure!(reason.contains("RLIMIT_MEMLOCK is 64 KiB"), "{reason}");
    tool("vdpa", &["dev", "del", "vd0"]).map(drop)
}

/// There is room for the lane's memory, which a relay pins, and not for a large guest's.
fn large_guest(scene: &mut Scene) -> Result<()> {
    scene.on_wire()?;
    limit_pinned(scene, &LANE_AND_MORE.to_string())?;
    let outcome = within_limit(scene);
    limit_pinned(scene, "unlimited")?;
    outcome?;
    scene.off_wire()
}

fn within_limit(scene: &mut Scene) -> Result<()> {
    scene.start_guest(Options { tx_room: LARGE / usize::from(RING), ..scene.options() })?;
    scene.cross(500, ModeStatus::Relay)?;
    let (reason, limit) = (scene.reason()?, format!("RLIMIT_MEMLOCK is {} KiB", LANE_AND_MORE / 1024));
    ensure!(reason.contains(&limit), "another reason: {reason}");
    let told = scene.lane.wait_event("vm", LIMIT, |event| match event {
        LaneEventKind::ModeChanged { mode, reason, .. } => {
            *mode == ModeStatus::Relay && reason.as_ref().is_some_and(|why| why.contains(&limit))
        }
        _ => false,
    })?;
    scene.say(&format!("{told:?}"));
    // The relay's own memory counts, and there was room for it.
    let status = fs::read_to_string(format!("/proc/{}/status", scene.lane.pid()))?;
    let pinned = status.lines().find_map(|line| line.strip_prefix("VmPin:")).context("no VmPin")?.trim();
    let pinned_kib: usize = pinned.trim_end_matches(" kB").parse()?;
    scene.say(&format!("{pinned_kib} KiB are pinned"));
    ensure!((128 << 10..=LANE_AND_MORE / 1024).contains(&pinned_kib), "{pinned_kib} KiB are pinned");
    // One that there is room for has the device, within the same limit.
    scene.start_guest(scene.options())?;
    scene.cross(500, ModeStatus::Vdpa)?;
    ensure!(scene.reason()?.is_empty(), "still a reason");
    Ok(())
}

/// How much the lane may have pinned from now on; the kernel looks each time.
fn limit_pinned(scene: &Scene, bytes: &str) -> Result<()> {
    let pid = scene.lane.pid().to_string();
    tool("prlimit", &["--pid", &pid, &format!("--memlock={bytes}:unlimited")]).map(drop)
}

fn unbound(scene: &mut Scene) -> Result<()> {
    scene.on_wire()?;
    scene.start_guest(scene.options())?;
    scene.cross(500, ModeStatus::Vdpa)?;
    let nic = Function::at(NIC)?;
    // Returns when the lane has let go of the device.
    let start = Instant::now();
    let (mut there, mut back) = (Flow::new(1), Flow::new(2));
    let unbind = std::thread::spawn(|| fs::write(format!("/sys/bus/pci/devices/{NIC}/driver/unbind"), NIC));
    let guest = scene.guest.as_mut().context("no guest")?;
    while !unbind.is_finished() {
        there.send_from_guest(guest, 0);
        back.send_from_far(&scene.far)?;
        take_at_far(&scene.far, &mut there)?;
        take_at_guest(guest, std::slice::from_mut(&mut back))?;
    }
    unbind.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    let took = start.elapsed().as_millis();
    scene.say(&format!("unbound in {took} ms, {} and {} frames came until then", there.received, back.received));
    scene.lane.wait_event("vm", LIMIT, |event| *event == LaneEventKind::DeviceRemoved)?;
    let down = scene.wait_mode(ModeStatus::Down)?;
    scene.say(&format!("{:?}, {} pairs", down.mode_reason, down.active_pairs));
    ensure!(down.active_pairs == 0 && !down.device.link_up, "{down:?}");
    nic.bind("vp-vdpa")?;
    make_device("vd0", PARENT, &[])?;
    scene.lane.wait_event("vm", LIMIT, |event| *event == LaneEventKind::DeviceReturned)?;
    // What waited for a device is sent by the next one.
    let (mut last, guest) = ((0, Instant::now()), scene.guest.as_mut().context("no guest")?);
    while last.1.elapsed() < Duration::from_millis(500) {
        take_at_far(&scene.far, &mut there)?;
        take_at_guest(guest, std::slice::from_mut(&mut back))?;
        if last.0 != there.received + back.received {
            last = (there.received + back.received, Instant::now());
        }
    }
    scene.say(&format!("lost in all: {} and {}", there.lost(), back.lost()));
    // In the middle of the guest's rings vp_vdpa cannot begin.
    scene.cross(500, ModeStatus::Relay)?;
    scene.guest()?.reset()?;
    scene.cross(500, ModeStatus::Vdpa)?;
    scene.off_wire()
}

fn not_opened(scene: &mut Scene) -> Result<()> {
    scene.on_wire()?;
    let device = scene.lane.port("vm")?.spec.device.to_string();
    let folder = tempfile::tempdir_in(scene.folder.path())?;
    let mut second = start_lane("second", folder.path(), &[])?;
    for (device, says) in [
        (&*device, "is in use"),
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
    drop(second);
    scene.clear()?;
    // Whoever it is, the node is not theirs.
    let folder = tempfile::tempdir_in("/run")?;
    for path in [folder.path(), Path::new("/run")] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    }
    let mut nobody =
        start_lane("nobody", folder.path(), &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])?;
    let spec = nobody.spec("vm", &device, 1);
    let refused = nobody.add(&spec).err().context("nobody may open the device")?.to_string();
    ensure!(refused.contains("not allowed"), "{refused}");
    scene.say(&refused);
    tool("vdpa", &["dev", "del", "vd0"]).map(drop)
}
