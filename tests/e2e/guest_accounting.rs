//! Every frame is delivered or counted as dropped, with its reason: the lane's counters against what the guest itself
//! counted, never against each other.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_protocol::PortSpec;
use ringspan_testkit::guest::loopback::{self, Plan};
use ringspan_testkit::guest::{Guest, Kind, Options, feature};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::{needs, over_both, paths, wait};

const SOON: Duration = Duration::from_secs(10);

over_both!(
    frames_for_a_full_guest_ring_are_counted,
    frames_that_are_too_long_are_counted,
    frames_without_a_ring_are_counted,
    frames_that_the_device_refuses_are_counted,
    counters_are_by_pair_and_by_queue,
    a_guest_that_enables_fewer_rings_than_the_device_has_queues_loses_nothing,
    thirty_two_pairs_share_one_queue_and_many,
    pairs_may_be_enabled_and_disabled_under_traffic,
);

/// Sends `frames` frames of `length` bytes on a pair, and waits until the lane has taken them all.
fn send(guest: &mut Guest, pair: usize, frames: u64, length: usize) -> Result<()> {
    let start = Instant::now();
    let mut frame = vec![0; length];
    let mut sent = 0;
    while sent < frames || guest.tx[pair].in_flight() > 0 {
        let burst = (frames - sent).min(32) as usize;
        let now = guest.tx[pair].transmit(burst, |i, room| {
            loopback::make(&mut frame, pair as u16, sent + i as u64);
            room.put(0, &frame);
            length
        });
        sent += now as u64;
        guest.tx[pair].reclaim();
        ensure!(start.elapsed() < SOON, "the lane took {sent} of {frames} frames");
        if now == 0 {
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// Frames that are received until none comes any more: `expected` of them, or an error.
fn receive(guest: &mut Guest, pair: usize, expected: u64) -> Result<()> {
    let start = Instant::now();
    while guest.rx[pair].counts().frames < expected {
        guest.rx[pair].receive(64, |_| ());
        ensure!(start.elapsed() < SOON, "{} of {expected} frames came", guest.rx[pair].counts().frames);
        std::thread::yield_now();
    }
    Ok(())
}

fn lane(folder: &tempfile::TempDir, name: &str) -> Result<Lane> {
    Lane::start(lane::Options::new(name), folder.path())
}

fn frames_for_a_full_guest_ring_are_counted(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane(&folder, "full")?;
    let mut guest = Guest::start(Options::new(lane.add_port("vm", "vdev:net_ring0", 1)?).over(kind))?;
    // 256 buffers are there, and are not given back.
    guest.rx[0].hold_back(true);
    send(&mut guest, 0, 1000, 100)?;
    receive(&mut guest, 0, 256)?;
    let (from, to) = lane.wait_totals("vm", |_, to| to.received == 1000)?;
    assert_eq!((from.received, from.sent, from.drops.total()), (1000, 1000, 0));
    assert_eq!((to.sent, to.sent_bytes), (256, 25_600));
    assert_eq!((to.drops.guest_ring_full, to.drops.total()), (744, 744));
    // The guest is served again as soon as it has buffers.
    guest.rx[0].hold_back(false);
    guest.rx[0].post(usize::MAX);
    send(&mut guest, 0, 50, 100)?;
    receive(&mut guest, 0, 306)?;
    lane.wait_totals("vm", |_, to| (to.sent, to.drops.total()) == (306, 744))?;
    Ok(())
}

fn frames_that_are_too_long_are_counted(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane(&folder, "long")?;
    // From the guest: longer than the MTU of 1500 and an Ethernet header with a VLAN tag.
    let mut guest =
        Guest::start(Options { tx_room: 4000, ..Options::new(lane.add_port("vm", "vdev:net_ring0", 1)?).over(kind) })?;
    send(&mut guest, 0, 300, 1600)?;
    send(&mut guest, 0, 200, 1514)?;
    receive(&mut guest, 0, 200)?;
    let (from, to) = lane.wait_totals("vm", |_, to| to.sent == 200)?;
    assert_eq!((from.received, from.sent, from.drops.too_long, from.drops.total()), (500, 200, 300, 300));
    assert_eq!((to.received, to.drops.total()), (200, 0));
    drop(guest);
    // To the guest: longer than its only buffer.
    let spec = PortSpec { mtu: 4000, ..lane.spec("jumbo", "vdev:net_ring1", 1) };
    lane.add(&spec)?;
    let options = Options { tx_room: 4000, rx_room: 1536, ..Options::new(&spec.socket).over(kind) };
    let mut guest = Guest::start(options.without(feature::MRG_RXBUF))?;
    send(&mut guest, 0, 300, 3000)?;
    send(&mut guest, 0, 200, 1000)?;
    receive(&mut guest, 0, 200)?;
    let (from, to) = lane.wait_totals("jumbo", |_, to| to.received == 500)?;
    assert_eq!((from.sent, from.drops.total()), (500, 0));
    assert_eq!((to.sent, to.drops.too_long, to.drops.total()), (200, 300, 300));
    Ok(())
}

fn frames_without_a_ring_are_counted(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane(&folder, "none")?;
    let mut guest = Guest::start(Options::new(lane.add_port("vm", "vdev:net_ring0", 1)?).over(kind))?;
    // The receiving ring is disabled, the sending one is not.
    guest.frontend()?.set_vring_enable(0, false)?;
    guest.frontend()?.barrier()?;
    send(&mut guest, 0, 400, 100)?;
    let (from, to) = lane.wait_totals("vm", |_, to| to.received == 400)?;
    assert_eq!((from.sent, to.sent, to.drops.no_ring, to.drops.total()), (400, 0, 400, 400));
    assert_eq!(guest.rx[0].ring().pending(), 0, "a disabled ring was written to");
    guest.frontend()?.set_vring_enable(0, true)?;
    guest.frontend()?.barrier()?;
    send(&mut guest, 0, 100, 100)?;
    receive(&mut guest, 0, 100)?;
    lane.wait_totals("vm", |_, to| (to.sent, to.drops.total()) == (100, 400))?;
    Ok(())
}

fn frames_that_the_device_refuses_are_counted(kind: Kind) -> Result<()> {
    needs!(Root, Lane, Program("ip"));
    let folder = paths::scratch()?;
    let mut lane = lane(&folder, "refuse")?;
    let interface = format!("rsg{}{}", &format!("{kind:?}")[..1], std::process::id());
    let socket = lane.add_port("vm", &format!("vdev:net_tap0,iface={interface}"), 1)?;
    let mut guest = Guest::start(Options::new(socket).over(kind))?;
    // A TAP that is down takes nothing.
    let mut ip = Command::new("ip");
    wait::run(ip.args(["link", "set", &interface, "down"]), SOON)?.success("ip link set down")?;
    let before = lane.totals("vm")?.0;
    send(&mut guest, 0, 300, 100)?;
    let (from, _) = lane.wait_totals("vm", |from, _| from.drops.total() == before.drops.total() + 300)?;
    assert_eq!((from.received - before.received, from.sent - before.sent), (300, 0));
    assert_eq!(from.drops.nic_full - before.drops.nic_full, 300);
    Ok(())
}

fn counters_are_by_pair_and_by_queue(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane(&folder, "queues")?;
    let mut guest = Guest::start(Options::new(lane.add_port("vm", "vdev:net_ring0", 4)?).over(kind).pairs(4))?;
    for pair in 0..4 {
        send(&mut guest, pair, 100 * (pair as u64 + 1), 100)?;
    }
    lane.wait_totals("vm", |_, to| to.received == 1000)?;
    let counters = lane.counters("vm")?;
    let from: Vec<u64> = counters.from_guest.iter().map(|queue| queue.received).collect();
    assert_eq!(from, [100, 200, 300, 400]);
    for queue in counters.from_guest.iter().chain(&counters.to_guest) {
        assert_eq!(queue.received, queue.sent + queue.drops.total(), "{queue:?}");
    }
    Ok(())
}

fn a_guest_that_enables_fewer_rings_than_the_device_has_queues_loses_nothing(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane(&folder, "fewer")?;
    let socket = lane.add_port("vm", "vdev:net_ring0", 4)?;
    let mut total = 0;
    for enabled in 1..=3_u32 {
        let mut guest = Guest::start(Options::new(&socket).over(kind).pairs(4))?;
        // All four send, so that every device queue has frames; only the first rings receive.
        for pair in enabled..4 {
            guest.frontend()?.set_vring_enable(2 * pair, false)?;
        }
        guest.frontend()?.barrier()?;
        total +=
            loopback::run_anywhere(&mut guest, Plan::new(20_000, 150)).with_context(|| format!("{enabled} rings"))?;
        for pair in enabled as usize..4 {
            assert_eq!(guest.rx[pair].counts().frames, 0, "{enabled} rings enabled, and ring {pair} got frames");
        }
        lane.wait_totals("vm", |from, to| {
            (from.received, from.sent, to.received, to.sent) == (total, total, total, total)
        })?;
    }
    Ok(())
}

fn thirty_two_pairs_share_one_queue_and_many(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = Lane::start(lane::Options { memory_mib: 256, ..lane::Options::new("pairs") }, folder.path())?;
    for (port, queues) in [("one", 1), ("sixteen", 16)] {
        let device = format!("vdev:net_ring{queues}");
        let socket = lane.add_port(port, &device, queues)?;
        let mut guest = Guest::start(Options { ring_size: 64, ..Options::new(socket).over(kind).pairs(32) })?;
        let total = loopback::run_anywhere(&mut guest, Plan::new(2_000, 60)).with_context(|| port)?;
        lane.wait_totals(port, |from, to| {
            (from.received, from.sent, to.received, to.sent) == (total, total, total, total)
        })?;
        let counters = lane.counters(port)?;
        assert!(counters.from_guest.iter().all(|pair| pair.received == 2_000), "{:?}", counters.from_guest);
    }
    Ok(())
}

fn pairs_may_be_enabled_and_disabled_under_traffic(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane(&folder, "toggle")?;
    let socket = lane.add_port("vm", "vdev:net_ring0", 4)?;
    let mut guest = Guest::start(Options { enabled_pairs: 1, ..Options::new(socket).over(kind).pairs(4) })?;
    let mut frames = 0;
    for round in 0..40 {
        for pair in 1..4 {
            guest.enable(pair, (round + pair) % 2 == 0)?;
        }
        // The first pair's frames all come back, whatever the others do.
        frames += loopback::run(&mut guest, Plan::new(500, 64))?[0].frames;
    }
    assert_eq!(frames, 20_000);
    lane.wait_totals("vm", |from, to| from.received == frames && to.sent == frames)?;
    Ok(())
}
