//! A guest of another make at the device with a wire: DPDK's virtio-user, whose memory is a program's own addresses.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringspan_protocol::ModeStatus;
use ringspan_testkit::testpmd::{self, Testpmd};
use ringspan_testkit::wait;

use super::{Check, HUGE_PAGES, LIMIT, Scene};

pub const CHECKS: &[Check] =
    &[("vdpa: a virtio-user guest answers the machine outside, and no worker sees a packet", answers_outside)];

const RESERVED: &str = "/proc/sys/vm/nr_hugepages";
/// Of 2 MiB, besides the lane's: without that many free ones, testpmd takes ordinary pages, which an emulated IOMMU is told of one by one.
const ITS_HUGE_PAGES: u32 = 170;
/// The device's own address, by which it knows what is for the guest.
const MAC: &str = "52:54:00:bb:00:01";
const OUTSIDE: &str = "198.51.100.1/24";
const GUEST: &str = "198.51.100.7";
const INTERVAL: Duration = Duration::from_millis(20);
/// How long pings go on.
const TIME: Duration = Duration::from_secs(3);

fn answers_outside(scene: &mut Scene) -> Result<()> {
    scene.on_wire()?;
    fs::write(RESERVED, (HUGE_PAGES + ITS_HUGE_PAGES).to_string())?;
    scene.net.ip(&["address", "add", OUTSIDE, "dev", &scene.far_interface])?;
    let outcome = pinged(scene);
    scene.net.ip(&["address", "delete", OUTSIDE, "dev", &scene.far_interface])?;
    fs::write(RESERVED, HUGE_PAGES.to_string())?;
    outcome?;
    scene.off_wire()
}

fn pinged(scene: &mut Scene) -> Result<()> {
    let huge_pages = testpmd::huge_pages_free();
    ensure!(huge_pages, "too few hugepages are free: {}", fs::read_to_string("/proc/meminfo")?);
    let socket = scene.options().socket;
    let options = testpmd::Options { core: 0, memory_mib: 64, ready: LIMIT, ..testpmd::Options::new("lab-vdpa") }
        .device(format!("net_virtio_user0,path={},queues=1,mac={MAC}", socket.display()))
        .arguments(["--forward-mode=icmpecho", "--total-num-mbufs=4096"]);
    let mut guest = Testpmd::start(&options)?;
    guest.command("start")?;
    let port = scene.lane.wait_port("vm", LIMIT, |port| port.active_pairs == 1)?;
    ensure!(port.mode == ModeStatus::Vdpa, "{port:?}");
    let before = scene.seen_by_workers()?;
    let first = scene.net.wait_ping(GUEST, LIMIT).with_context(|| guest.output())?;
    let ping = scene.net.ping(GUEST, INTERVAL)?;
    wait::pause(TIME)?;
    let report = ping.finish()?;
    let by_workers = scene.seen_by_workers()? - before;
    scene.say(&format!(
        "the first answer after {} ms; {} of {} pings answered, workers saw {by_workers} frames",
        first.as_millis(),
        report.received,
        report.sent
    ));
    report.nothing_lost()?;
    ensure!(by_workers == 0, "{by_workers} frames were relayed");
    let counts = guest.counts(0)?;
    scene.say(&format!("testpmd: {counts:?}"));
    ensure!(counts.tx_packets >= u64::from(report.received), "somebody else answered: {counts:?}");
    let port = scene.lane.port("vm")?;
    ensure!(port.mode == ModeStatus::Vdpa && port.mode_reason.is_none(), "{port:?}");
    Ok(())
}
