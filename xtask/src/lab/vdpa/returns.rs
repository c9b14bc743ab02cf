//! Checks of the kernel's simulated device, which returns each frame to its sender: it goes on wherever a ring stands.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use ringspan_protocol::{LaneEventKind, Mode, ModeStatus};
use ringspan_testkit::guest::{Options, feature};
use ringspan_testkit::lane::Client;

use super::stream::{Flow, take_at_guest};
use super::{Check, LIMIT, Scene, make_device, set_mode, tool};

pub const CHECKS: &[Check] = &[
    ("vdpa: rings change hands there and back under traffic, and go on from where they stood", there_and_back),
    ("vdpa: a guest that is migrated is relayed until that is over", migrated),
    ("vdpa: the device is taken away under traffic, and the guest goes on when it is back", taken_away),
    ("vdpa: two ports on two devices", two_devices),
    ("vdpa: a device whose configuration space lies is relayed", lies),
    ("vdpa: the lane or the front-end is killed while rings change hands", killed),
];
const PARENT: &str = "vdpasim_net";
/// The address that the test kit's frames go to: the device returns those.
const MAC: &str = "52:54:00:12:34:56";
/// How often rings change hands.
const TURNS: u32 = 10;
/// How often the guest looks when nothing came.
const LOOK: Duration = Duration::from_micros(100);
/// How long nobody should move packets meanwhile.
const PAUSE: Duration = Duration::from_millis(100);

/// Sends and takes what returns while `until` says so.
fn flow_while(scene: &mut Scene, flow: &mut Flow, mut go_on: impl FnMut(&Flow) -> Result<bool>) -> Result<()> {
    let guest = scene.guest()?;
    while go_on(flow)? {
        let before = (flow.sent, flow.received);
        flow.send_from_guest(guest, 0);
        take_at_guest(guest, std::slice::from_mut(flow))?;
        if before == (flow.sent, flow.received) {
            // A guest has processors of its own; this one shares the host's two with the lane, which a guest that polls would hold up.
            std::thread::sleep(LOOK);
        }
    }
    Ok(())
}

/// Sends until so many more have returned.
fn flow_on(scene: &mut Scene, flow: &mut Flow, frames: u64) -> Result<()> {
    let (wanted, start) = (flow.received + frames, Instant::now());
    flow_while(scene, flow, |flow| {
        ensure!(start.elapsed() < LIMIT, "{} of {wanted} frames returned", flow.received);
        Ok(flow.received < wanted)
    })
}

/// Takes what is still on its way.
fn flow_out(scene: &mut Scene, flow: &mut Flow) -> Result<()> {
    let guest = scene.guest()?;
    let mut last = (flow.received, Instant::now());
    while last.1.elapsed() < Duration::from_millis(300) && flow.lost() > 0 {
        take_at_guest(guest, std::slice::from_mut(flow))?;
        if flow.received != last.0 {
            last = (flow.received, Instant::now());
        }
        std::thread::yield_now();
    }
    Ok(())
}

impl Scene<'_> {
    /// A port on the simulator with a guest whose rings it has, and frames that return.
    fn on_simulator(&mut self, mode: Mode, options: Options) -> Result<Flow> {
        let device = make_device("vs0", PARENT, &["mac", MAC])?;
        let status = self.lane.add(&self.spec(&device, mode))?;
        self.say(&format!("{:?} {:?} {:?}", status.mode, status.mode_reason, status.device));
        self.start_guest(options)?;
        let mut flow = Flow::new(0);
        flow_on(self, &mut flow, 200)?;
        Ok(flow)
    }

    fn off_simulator(&mut self) -> Result<()> {
        self.clear()?;
        tool("vdpa", &["dev", "del", "vs0"]).map(drop)
    }

    /// How long nobody moved packets in each change since this was last asked, in microseconds.
    fn pauses(&mut self) -> Vec<u64> {
        let changed = |event: &LaneEventKind| matches!(event, LaneEventKind::ModeChanged { .. });
        let mut pauses = Vec::new();
        while let Ok(LaneEventKind::ModeChanged { pause_us, .. }) =
            self.lane.wait_event("vm", Duration::from_millis(50), changed)
        {
            pauses.push(pause_us);
        }
        pauses
    }
}

fn there_and_back(scene: &mut Scene) -> Result<()> {
    let mut flow = scene.on_simulator(Mode::Auto, scene.options())?;
    scene.wait_mode(ModeStatus::Vdpa)?;
    let socket = scene.lane_socket();
    let mut client = Client::connect(&socket, LIMIT)?;
    let done = AtomicBool::new(false);
    let (before, unsent) = (scene.lane.totals("vm")?, scene.lane.counters("vm")?.unsent);
    // Those of checks before.
    scene.pauses();
    flow.rest();
    // What is under way by now is not lost.
    flow_out(scene, &mut flow)?;
    let lost_before = flow.lost();
    std::thread::scope(|scope| -> Result<()> {
        let turns = scope.spawn(|| -> Result<()> {
            let outcome = (0..TURNS).try_for_each(|_| {
                for (mode, wanted) in [(Mode::Relay, ModeStatus::Relay), (Mode::Auto, ModeStatus::Vdpa)] {
                    std::thread::sleep(Duration::from_millis(150));
                    let got = set_mode(&mut client, mode)?;
                    ensure!(got == wanted, "mode {mode:?} led to {got:?}");
                }
                Ok(())
            });
            done.store(true, Ordering::Relaxed);
            outcome
        });
        let outcome = flow_while(scene, &mut flow, |_| Ok(!done.load(Ordering::Relaxed)));
        turns.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        outcome
    })?;
    flow_on(scene, &mut flow, 200)?;
    flow_out(scene, &mut flow)?;
    let after = scene.lane.totals("vm")?;
    let pauses = scene.pauses();
    ensure!(pauses.len() == 2 * TURNS as usize, "{} changes were told of", pauses.len());
    let (there, back): (Vec<_>, Vec<_>) = pauses.chunks(2).map(|pair| (pair[0], pair[1])).unzip();
    let lost = flow.lost() - lost_before;
    scene.say(&format!("{} frames sent, {lost} lost; longest time without one {:?}", flow.sent, flow.gap));
    scene.say(&format!("pauses in us: to the relay {there:?}, to the device {back:?}"));
    let relayed = (after.0.received - before.0.received, after.1.received - before.1.received);
    let dropped = (after.0.received - after.0.sent, after.1.received - after.1.sent);
    scene.say(&format!("relayed {relayed:?}, of these not delivered {dropped:?}: {after:?}"));
    let unsent = scene.lane.counters("vm")?.unsent - unsent;
    ensure!(
        lost <= dropped.0 + dropped.1 + unsent,
        "{lost} frames were lost, {dropped:?} are counted, and {unsent} as unsent"
    );
    // Told, and nothing is decided by it: whoever else is on this machine has the greater part in it.
    for (way, mut pauses) in [("to the relay", there), ("to the device", back)] {
        pauses.sort_unstable();
        let beyond = pauses.iter().filter(|pause| Duration::from_micros(**pause) > PAUSE).count();
        let (least, middle) = (pauses[0], pauses[pauses.len() / 2]);
        scene.say(&format!("{way}: {least} us at least, {middle} in the middle, {beyond} of {TURNS} beyond {PAUSE:?}"));
    }
    scene.off_simulator()
}

fn migrated(scene: &mut Scene) -> Result<()> {
    // `Vdpa`, too: that a guest can be migrated matters more.
    for mode in [Mode::Auto, Mode::Vdpa] {
        let options = scene.options();
        let protocol_features = options.protocol_features | feature::PROTOCOL_LOG_SHMFD;
        let mut flow = scene.on_simulator(mode, Options { protocol_features, ..options })?;
        scene.wait_mode(ModeStatus::Vdpa)?;
        scene.pauses();
        let log = memfd_create(c"ringspan-lab-log", MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::ftruncate(&log, 1 << 16)?;
        let guest = scene.guest()?;
        let features = guest.features();
        guest.frontend()?.set_log_base(log.as_raw_fd(), 1 << 16)?;
        guest.frontend()?.set_features(features | feature::LOG_ALL)?;
        let relayed = scene.lane.port("vm")?;
        ensure!(relayed.mode == ModeStatus::Relay && relayed.migration.logging, "{relayed:?}");
        scene.say(&format!("{:?}", relayed.mode_reason));
        flow_on(scene, &mut flow, 500)?;
        let pages = scene.lane.port("vm")?.migration.pages;
        ensure!(pages > 0, "nothing was logged");
        // Cancelled.
        scene.guest()?.frontend()?.set_features(features)?;
        let again = scene.wait_mode(ModeStatus::Vdpa)?;
        ensure!(again.mode_reason.is_none() && !again.migration.logging, "{again:?}");
        let seen = scene.seen_by_workers()?;
        flow_on(scene, &mut flow, 500)?;
        ensure!(scene.seen_by_workers()? == seen, "workers see frames after the migration");
        flow_out(scene, &mut flow)?;
        ensure!(flow.lost() == 0, "{} frames were lost", flow.lost());
        let pauses = scene.pauses();
        scene.say(&format!("{pages} pages logged, {} frames lost, pauses in us: {pauses:?}", flow.lost()));
        // Over: a target's ports gets rings that stand somewhere, and no log.
        let guest = scene.guest()?;
        guest.stop()?;
        guest.disconnect();
        guest.reconnect()?;
        scene.wait_mode(ModeStatus::Vdpa)?;
        flow_on(scene, &mut flow, 500)?;
        ensure!(scene.seen_by_workers()? == seen, "workers see frames of a guest that was migrated here");
        scene.off_simulator()?;
    }
    Ok(())
}

fn taken_away(scene: &mut Scene) -> Result<()> {
    let mut flow = scene.on_simulator(Mode::Auto, scene.options())?;
    let done = AtomicBool::new(false);
    for _ in 0..3 {
        done.store(false, Ordering::Relaxed);
        let lost = flow.lost();
        std::thread::scope(|scope| -> Result<()> {
            let turn = scope.spawn(|| {
                let outcome =
                    tool("vdpa", &["dev", "del", "vs0"]).and_then(|_| make_device("vs0", PARENT, &["mac", MAC]));
                done.store(true, Ordering::Relaxed);
                outcome
            });
            let outcome = flow_while(scene, &mut flow, |_| Ok(!done.load(Ordering::Relaxed)));
            turn.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            outcome
        })?;
        scene.lane.wait_event("vm", LIMIT, |event| *event == LaneEventKind::DeviceRemoved)?;
        scene.lane.wait_event("vm", LIMIT, |event| *event == LaneEventKind::DeviceReturned)?;
        scene.wait_mode(ModeStatus::Vdpa)?;
        flow_on(scene, &mut flow, 300)?;
        let lost = flow.lost().saturating_sub(lost);
        scene.say(&format!("{lost} frames lost meanwhile, longest time without one {:?}", flow.gap));
    }
    scene.off_simulator()
}

fn two_devices(scene: &mut Scene) -> Result<()> {
    let mut flow = scene.on_simulator(Mode::Auto, scene.options())?;
    let device = make_device("vs1", PARENT, &["mac", MAC, "mtu", "1400"])?;
    // Its MTU is less than the port's, so that only one with less can be handed over.
    let mut spec = ringspan_protocol::PortSpec { mtu: 1400, ..scene.lane.spec("vm2", &device, 1) };
    let status = scene.lane.add(&spec)?;
    ensure!(status.mode == ModeStatus::Vdpa && status.device.mtu == 1400, "{status:?}");
    let mut second = ringspan_testkit::guest::Guest::start(Options { socket: spec.socket.clone(), ..scene.options() })?;
    let mut other = Flow::new(7);
    let (wanted, start) = ((flow.received + 1000, 1000), Instant::now());
    while flow.received < wanted.0 || other.received < wanted.1 {
        ensure!(start.elapsed() < LIMIT, "{} and {} frames returned", flow.received, other.received);
        let first = scene.guest()?;
        flow.send_from_guest(first, 0);
        other.send_from_guest(&mut second, 0);
        take_at_guest(first, std::slice::from_mut(&mut flow))?;
        take_at_guest(&mut second, std::slice::from_mut(&mut other))?;
    }
    let seen = scene.seen_by_workers()?;
    scene.say(&format!("1000 frames each, {} and {} lost, workers saw {seen}", flow.lost(), other.lost()));
    ensure!(seen == 0);
    // A port that asks for more than the device has is relayed.
    drop(second);
    scene.lane.remove("vm2")?;
    spec.mtu = 1500;
    let status = scene.lane.add(&spec)?;
    let reason = status.mode_reason.unwrap_or_default();
    ensure!(status.mode == ModeStatus::Relay && reason.contains("MTU is 1400"), "{:?} {reason}", status.mode);
    scene.say(&reason);
    scene.lane.remove("vm2")?;
    tool("vdpa", &["dev", "del", "vs1"])?;
    scene.off_simulator()
}

fn lies(scene: &mut Scene) -> Result<()> {
    let device = make_device("vs0", PARENT, &["mac", "53:54:00:12:34:56"])?;
    let refused = scene.lane.add(&scene.spec(&device, Mode::Vdpa)).err().context("it was taken")?.to_string();
    ensure!(refused.contains("the MAC address"), "{refused}");
    scene.say(&refused);
    let status = scene.lane.add(&scene.spec(&device, Mode::Auto))?;
    let reason = status.mode_reason.unwrap_or_default();
    ensure!(status.mode == ModeStatus::Relay && reason.contains("the MAC address"), "{:?} {reason}", status.mode);
    scene.off_simulator()
}

/// The end comes at another moment of a change each time.
fn killed(scene: &mut Scene) -> Result<()> {
    let mut flow = scene.on_simulator(Mode::Auto, scene.options())?;
    let spec = scene.lane.port("vm")?.spec;
    for turn in 0..16_u64 {
        let kills_lane = turn % 2 == 1;
        let after = Duration::from_micros(turn * turn * 300);
        let to = if turn % 4 < 2 { Mode::Relay } else { Mode::Auto };
        let socket = scene.lane_socket();
        let mut client = Client::connect(&socket, LIMIT)?;
        std::thread::scope(|scope| -> Result<()> {
            // Whoever asked hears nothing when the lane is gone.
            let change = scope.spawn(move || set_mode(&mut client, to).ok());
            std::thread::sleep(after);
            if kills_lane {
                scene.lane.kill()?;
            } else {
                scene.guest()?.disconnect();
            }
            let said = change.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
            scene.say(&format!(
                "{} after {after:?} of a change to {to:?}: {said:?}",
                if kills_lane { "lane killed" } else { "front-end gone" }
            ));
            Ok(())
        })?;
        if kills_lane {
            scene.lane.restart()?;
            scene.lane.add(&spec)?;
        }
        scene.guest()?.reconnect()?;
        flow_on(scene, &mut flow, 100)?;
    }
    flow_out(scene, &mut flow)?;
    scene.say(&format!("{} frames sent, {} lost, none twice or out of order", flow.sent, flow.lost()));
    ensure!(scene.set_mode(Mode::Auto)? == ModeStatus::Vdpa);
    flow_on(scene, &mut flow, 500)?;
    scene.off_simulator()
}
