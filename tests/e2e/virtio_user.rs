//! DPDK's virtio-user as the front-end: a driver of another make, which counts for itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringspan_protocol::{PortSpec, Role};
use ringspan_testkit::guest::{Kind, feature};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::testpmd::{self, PortCounts, Testpmd};
use ringspan_testkit::{needs, over_both, paths, wait};

over_both!(
    what_testpmd_sends_arrives_in_the_device,
    what_the_device_makes_arrives_in_testpmd,
    frames_circle_through_the_port,
    frames_circle_through_a_port_that_connects,
    frames_circle_through_four_pairs,
);

const READY: Duration = Duration::from_secs(20);

/// A lane with one port, and a testpmd whose port 0 is virtio-user on the port's socket.
fn start(name: &str, device: &str, queues: u16, role: Role, kind: Kind) -> Result<(Lane, Testpmd, tempfile::TempDir)> {
    let folder = paths::scratch()?;
    let mut lane = Lane::start(lane::Options { memory_mib: 256, ..lane::Options::new(name) }, folder.path())?;
    let spec = PortSpec { role, ..lane.spec("vm", device, queues) };
    let server = u8::from(role == Role::Client);
    let socket = spec.socket.display();
    let count = queues.to_string();
    let packed = u8::from(kind == Kind::Packed);
    let device = format!("net_virtio_user0,path={socket},queues={queues},queue_size=1024,server={server}");
    let mut options = testpmd::Options::new(format!("{name}{packed}-{}", std::process::id()))
        .device(format!("{device},packed_vq={packed}"))
        .arguments(["--rxq", &count, "--txq", &count, "--rxd=1024", "--txd=1024", "--total-num-mbufs=16384"]);
    options.core = 1;
    options.huge_pages = false;
    // In either role the port comes first: as a client it retries until virtio-user, which waits for it, is there.
    lane.add(&spec)?;
    let testpmd = Testpmd::start(&options)?;
    let status = lane.wait_port("vm", READY, |status| status.active_pairs == queues)?;
    ensure!((status.features & feature::RING_PACKED != 0) == (packed == 1), "{kind:?}, but {:#x}", status.features);
    Ok((lane, testpmd, folder))
}

/// Waits until testpmd has counted as many as make a test.
fn enough(testpmd: &mut Testpmd, count: fn(&PortCounts) -> u64) -> Result<PortCounts> {
    wait::until(READY, "ten thousand packets", || {
        let counts = testpmd.counts(0)?;
        Ok((count(&counts) > 10_000).then_some(counts))
    })
}

/// The counters of testpmd's port when they have come to rest.
fn at_rest(testpmd: &mut Testpmd) -> Result<PortCounts> {
    let mut last = testpmd.counts(0)?;
    wait::until(READY, "counters at rest", || {
        // At rest is what does not change in this time.
        std::thread::sleep(Duration::from_millis(300));
        let now = testpmd.counts(0)?;
        let rest = now == last;
        last = now;
        Ok(rest.then_some(now))
    })
}

fn what_testpmd_sends_arrives_in_the_device(kind: Kind) -> Result<()> {
    needs!(Root, Lane, Program("dpdk-testpmd"));
    let (mut lane, mut testpmd, _folder) = start("vu-tx", "vdev:net_null0,size=64,no-rx=1", 1, Role::Server, kind)?;
    testpmd.command("set fwd txonly")?;
    testpmd.command("start")?;
    enough(&mut testpmd, |counts| counts.tx_packets)?;
    testpmd.command("stop")?;
    let counts = at_rest(&mut testpmd)?;
    let (from, to) = lane.wait_totals("vm", |from, _| from.received == counts.tx_packets)?;
    assert_eq!((from.sent, from.sent_bytes, from.drops.total()), (counts.tx_packets, counts.tx_bytes, 0));
    assert_eq!((to.received, to.sent), (0, 0));
    Ok(())
}

fn what_the_device_makes_arrives_in_testpmd(kind: Kind) -> Result<()> {
    needs!(Root, Lane, Program("dpdk-testpmd"));
    let (mut lane, mut testpmd, _folder) = start("vu-rx", "vdev:net_null0,size=64", 1, Role::Server, kind)?;
    testpmd.command("set fwd rxonly")?;
    testpmd.command("start")?;
    let running = enough(&mut testpmd, |counts| counts.rx_packets)?;
    // The device is never at rest, so one burst may be counted half; and more, in a look that took long itself.
    let (_, to) = lane.wait_totals("vm", |_, to| {
        to.received.abs_diff(to.sent + to.drops.total()) <= 64 && to.sent_bytes.abs_diff(64 * to.sent) <= 64 * 64
    })?;
    let later = testpmd.counts(0)?;
    ensure!(later.rx_packets + 2048 >= to.sent && running.rx_packets <= to.sent + 64, "{running:?} {to:?} {later:?}");
    assert_eq!(to.drops.total(), to.drops.guest_ring_full + to.drops.no_ring, "{to:?}");
    Ok(())
}

/// Frames that circle between testpmd and the device, and are counted at both ends.
fn both_directions(name: &str, queues: u16, role: Role, kind: Kind) -> Result<()> {
    let (mut lane, mut testpmd, _folder) = start(name, "vdev:net_ring0", queues, role, kind)?;
    testpmd.command("set fwd io")?;
    testpmd.command("start tx_first 4")?;
    enough(&mut testpmd, |counts| counts.tx_packets)?;
    testpmd.command("stop")?;
    // What is still on its way is received, and not sent again.
    testpmd.command("set fwd rxonly")?;
    testpmd.command("start")?;
    let mut counts = PortCounts::default();
    let all_back = wait::until(READY, "all frames back in testpmd", || {
        counts = testpmd.counts(0)?;
        Ok((counts.rx_packets == counts.tx_packets).then_some(()))
    });
    all_back.with_context(|| format!("testpmd counts {counts:?}, the lane {:?}", lane.totals("vm")))?;
    let (from, to) = lane.wait_totals("vm", |_, to| to.sent == counts.rx_packets)?;
    assert_eq!((from.received, from.sent, from.drops.total()), (counts.tx_packets, counts.tx_packets, 0));
    assert_eq!((to.received, to.drops.total()), (counts.rx_packets, 0));
    assert_eq!((from.received_bytes, to.sent_bytes), (counts.tx_bytes, counts.rx_bytes));
    Ok(())
}

fn frames_circle_through_the_port(kind: Kind) -> Result<()> {
    needs!(Root, Lane, Program("dpdk-testpmd"));
    both_directions("vu-io", 1, Role::Server, kind)
}

fn frames_circle_through_a_port_that_connects(kind: Kind) -> Result<()> {
    needs!(Root, Lane, Program("dpdk-testpmd"));
    both_directions("vu-client", 1, Role::Client, kind)
}

fn frames_circle_through_four_pairs(kind: Kind) -> Result<()> {
    needs!(Root, Lane, Program("dpdk-testpmd"));
    both_directions("vu-four", 4, Role::Server, kind)
}
