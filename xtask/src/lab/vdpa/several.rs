//! Checks of a device with two queue pairs: QEMU's virtio NIC on a TAP of several queues, under vp_vdpa with what the lab says of it (`modules::VDPA`). Its other end is a
//! NIC of the host's on the other side of a wire outside.

use anyhow::{Context, Result, ensure};
use ringspan_protocol::{Mode, ModeStatus, PortSpec};
use ringspan_testkit::far_end::FarEnd;
use ringspan_testkit::guest::Options;
use ringspan_testkit::guest::crossing::{self, End, Ways};
use ringspan_testkit::guest::loopback::{ETHERTYPE, Plan};
use ringspan_testkit::netns::Netns;
use ringspan_testkit::pci::Function;
use ringspan_testkit::wait;

use super::{Check, LIMIT, Scene, interface, make_device, tool};

pub const CHECKS: &[Check] = &[("vdpa: several queue pairs are the device's, and a relay's in between", split)];
const NIC: &str = "0000:00:14.0";
const FAR: &str = "0000:00:15.0";
const PARENT: &str = "pci/0000:00:14.0";
const PAIRS: u16 = 2;

/// The NIC's wire, seen from its other end.
struct Far {
    end: FarEnd,
    _net: Netns,
}

impl Far {
    fn open() -> Result<Self> {
        let interface = wait::until(LIMIT, "the far end's interface", || Ok(interface(FAR)))?;
        let net = Netns::new("several")?;
        tool("ip", &["link", "set", &interface, "netns", net.name()])?;
        net.sysctl(&format!("net.ipv6.conf.{interface}.disable_ipv6=1"))?;
        net.ip(&["link", "set", &interface, "promisc", "on", "up"])?;
        Ok(Self { end: FarEnd::open(&net, &interface, ETHERTYPE)?, _net: net })
    }
}

/// A port of two pairs on the device while `check` runs.
fn on_device(scene: &mut Scene, check: impl FnOnce(&mut Scene, &Far) -> Result<()>) -> Result<()> {
    let far = Far::open()?;
    let nic = Function::at(NIC)?;
    // QEMU's NIC has all its queues once a driver has wanted several.
    nic.bind("virtio-pci")?;
    wait::until(LIMIT, "the NIC's own interface", || Ok(interface(NIC)))?;
    nic.bind("vp-vdpa")?;
    let made = make_device("vd1", PARENT, &[])?;
    let spec = scene.lane.spec("vm", &made, PAIRS);
    let status = scene.lane.add(&PortSpec { mode: Mode::Auto, ..spec })?;
    scene.say(&format!("{:?} {:?} {:?}", status.mode, status.mode_reason, status.device));
    ensure!(status.mode == ModeStatus::Vdpa && status.device.queues == PAIRS, "{status:?}");
    check(scene, &far)?;
    scene.clear()?;
    tool("vdpa", &["dev", "del", "vd1"]).map(drop)
}

impl Scene<'_> {
    fn pairs(&self) -> Options {
        Options { pairs: PAIRS, enabled_pairs: PAIRS, ..self.options() }
    }

    /// Frames from both pairs and to the guest, each byte checked; whether workers saw them.
    fn cross_pairs(&mut self, far: &Far, frames: u64, by: ModeStatus) -> Result<()> {
        let pairs = self.guest()?.tx.len() as u16;
        self.lane.wait_port("vm", LIMIT, |port| port.active_pairs == pairs && port.mode == by)?;
        let before = self.seen_by_workers()?;
        let guest = self.guest.as_mut().context("no guest")?;
        let plan = Plan { burst: 16, ..Plan::new(frames, 32) };
        crossing::run(&mut End::Guest(guest), &mut End::Far(&far.end), Ways::Both, plan)?;
        let by_workers = self.seen_by_workers()? - before;
        self.say(&format!("{by:?}: {frames} frames from each pair, and as many back; workers saw {by_workers}"));
        let all = u64::from(pairs + 1) * frames;
        match by {
            ModeStatus::Relay => ensure!(by_workers >= all, "{by_workers} of {all} frames were relayed"),
            _ => ensure!(by_workers == 0, "{by_workers} frames were relayed"),
        }
        Ok(())
    }
}

fn split(scene: &mut Scene) -> Result<()> {
    on_device(scene, |scene, far| {
        scene.start_guest(scene.pairs())?;
        scene.cross_pairs(far, 1000, ModeStatus::Vdpa)?;
        scene.guest()?.reset()?;
        scene.cross_pairs(far, 500, ModeStatus::Vdpa)?;
        ensure!(scene.set_mode(Mode::Relay)? == ModeStatus::Relay);
        scene.cross_pairs(far, 500, ModeStatus::Relay)?;
        ensure!(scene.set_mode(Mode::Auto)? == ModeStatus::Relay, "vp_vdpa went on in the middle");
        ensure!(scene.reason()?.contains("cannot go on at"), "another reason");
        scene.cross_pairs(far, 500, ModeStatus::Relay)?;
        scene.guest()?.reset()?;
        scene.cross_pairs(far, 500, ModeStatus::Vdpa)
    })
}
