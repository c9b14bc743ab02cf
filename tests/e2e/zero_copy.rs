//! Large frames are read by the device where the guest wrote them: byte for byte, and no buffer is given back while it is read. The
//! guest here overwrites each buffer as soon as it has it back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_protocol::{PortSpec, ZeroCopy};
use ringspan_testkit::far_end::FarEnd;
use ringspan_testkit::guest::crossing::{self, End, Ways};
use ringspan_testkit::guest::loopback::{self, ETHERTYPE, Lengths, Plan};
use ringspan_testkit::guest::transmitter::Room;
use ringspan_testkit::guest::{Guest, Kind, Options, Shape, feature};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::netns::Netns;
use ringspan_testkit::{needs, over_both, paths};

over_both!(
    large_frames_come_back_byte_for_byte_though_their_buffers_are_overwritten,
    frames_leave_by_a_tap_without_being_copied,
    between_two_guests_a_buffer_stays_until_the_other_has_read_it,
    frames_apart_from_their_headers_are_not_copied,
    frames_in_several_buffers_are_copied,
    rings_stop_and_start_while_a_device_holds_frames,
    memory_is_given_anew_while_frames_are_on_their_way,
    a_lane_that_is_killed_with_frames_in_the_device_sends_none_twice,
    a_guest_that_changes_frames_on_their_way_changes_only_their_bytes,
    the_reason_for_copying_is_said,
);

const JUMBO: usize = 9014;
/// Least length that is not copied in these tests.
const FROM: u16 = 500;

fn lane(name: &str, folder: &tempfile::TempDir, net: Option<&Netns>) -> Result<Lane> {
    let netns = net.map(|net| net.name().to_string());
    Lane::start(lane::Options { memory_mib: 256, netns, ..lane::Options::new(name) }, folder.path())
}

fn spec(lane: &Lane, name: &str, device: &str, zero_copy: ZeroCopy) -> PortSpec {
    PortSpec { mtu: 9000, zero_copy, zero_copy_from: Some(FROM), ..lane.spec(name, device, 1) }
}

fn options(spec: &PortSpec, kind: Kind) -> Options {
    Options { tx_room: JUMBO, rx_room: JUMBO, ..Options::new(&spec.socket).over(kind) }
}

/// Of the plan's first frames of pair 0, those that are not copied.
fn large(plan: &Plan, frames: u64) -> u64 {
    (0..frames).filter(|&number| plan.length(0, number) >= FROM.into()).count() as u64
}

/// Waits until the guest has all its transmit buffers back.
fn all_back(guest: &mut Guest) -> Result<()> {
    let start = Instant::now();
    while guest.tx[0].in_flight() > 0 {
        guest.tx[0].reclaim();
        let kept = guest.tx[0].in_flight();
        ensure!(start.elapsed() < Duration::from_secs(10), "{kept} transmit buffers are kept");
        std::thread::yield_now();
    }
    Ok(())
}

/// Sends frames of `length` bytes.
fn send(guest: &mut Guest, count: usize, length: usize) -> Result<()> {
    let mut frame = vec![0; length];
    let sent = guest.tx[0].transmit(count, |i, room| {
        loopback::make(&mut frame, 0, i as u64);
        room.put(0, &frame);
        length
    });
    ensure!(sent == count, "there was room for {sent} of {count} frames");
    Ok(())
}

fn large_frames_come_back_byte_for_byte_though_their_buffers_are_overwritten(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane("zeroloop", &folder, None)?;
    let spec = spec(&lane, "vm", "vdev:net_ring0", ZeroCopy::Always);
    lane.add(&spec)?;
    let (mut frames, mut not_copied) = (0, 0);
    for ring_size in [16, 256] {
        for in_order in [0, feature::IN_ORDER] {
            for regions in [1, 3] {
                let options = Options { ring_size, regions, ..options(&spec, kind).require(in_order) };
                let mut guest = Guest::start(options)?;
                guest.tx[0].scribble();
                for lengths in [Lengths::Between(60, JUMBO), Lengths::Imix, Lengths::Each(JUMBO), Lengths::Each(100)] {
                    let plan = Plan { lengths, ..Plan::new(5_000, usize::from(ring_size).min(200)) };
                    frames += loopback::run(&mut guest, plan).with_context(|| format!("{lengths:?}"))?[0].frames;
                    not_copied += large(&plan, plan.frames);
                }
                all_back(&mut guest)?;
            }
        }
    }
    let (from, _) = lane.wait_totals("vm", |from, to| from.sent == frames && to.sent == frames)?;
    assert_eq!((from.received, from.drops.total()), (frames, 0));
    // A frame that crosses from one region into another is copied.
    ensure!((not_copied - not_copied / 50..=not_copied).contains(&from.zero_copied), "{not_copied}: {from:?}");
    Ok(())
}

fn frames_leave_by_a_tap_without_being_copied(kind: Kind) -> Result<()> {
    needs!(Root, Lane, Program("ip"));
    let net = Netns::new("zerocopy")?;
    net.tap("tap0", "192.0.2.1/24", 1500)?;
    let folder = paths::scratch()?;
    let mut lane = lane("zerotap", &folder, Some(&net))?;
    let spec = PortSpec { mtu: 1500, ..spec(&lane, "vm", "vdev:net_tap0,iface=tap0", ZeroCopy::Auto) };
    let status = lane.add(&spec)?.zero_copy;
    ensure!(status.from == Some(FROM.into()), "a TAP reads guest memory: {status:?}");
    let far = FarEnd::open(&net, "tap0", ETHERTYPE)?;
    let mut guest = Guest::start(Options { tx_room: 1514, ..options(&spec, kind) })?;
    guest.tx[0].scribble();
    let plan = Plan { lengths: Lengths::Between(60, 1514), ..Plan::new(5_000, 64) };
    crossing::run(&mut End::Guest(&mut guest), &mut End::Far(&far), Ways::There, plan)?;
    all_back(&mut guest)?;
    let (from, _) = lane.wait_totals("vm", |from, _| from.sent == 5_000)?;
    assert_eq!((from.zero_copied, from.drops.total()), (large(&plan, 5_000), 0));
    Ok(())
}

fn between_two_guests_a_buffer_stays_until_the_other_has_read_it(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let cores = if std::thread::available_parallelism()?.get() > 1 { "0,1" } else { "0" };
    let options_of_lane = lane::Options { memory_mib: 256, cores: cores.into(), ..lane::Options::new("zeropatch") };
    let mut lane = Lane::start(options_of_lane, folder.path())?;
    let a = spec(&lane, "a", "patch:zero/a", ZeroCopy::Always);
    let b = spec(&lane, "b", "patch:zero/b", ZeroCopy::Always);
    lane.add(&a)?;
    lane.add(&b)?;
    let (mut first, mut second) = (Guest::start(options(&a, kind))?, Guest::start(options(&b, Kind::Split))?);
    first.tx[0].scribble();
    second.tx[0].scribble();
    let plan = Plan { lengths: Lengths::Between(60, JUMBO), ..Plan::new(20_000, 100) };
    crossing::run(&mut End::Guest(&mut first), &mut End::Guest(&mut second), Ways::Both, plan)?;
    all_back(&mut first)?;
    all_back(&mut second)?;
    for port in ["a", "b"] {
        let (from, _) = lane.wait_totals(port, |from, to| from.sent == 20_000 && to.sent == 20_000)?;
        ensure!(from.zero_copied > 15_000 && from.drops.total() == 0, "{port}: {from:?}");
    }
    Ok(())
}

fn frames_apart_from_their_headers_are_not_copied(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane("zeroapart", &folder, None)?;
    let spec = spec(&lane, "vm", "vdev:net_ring0", ZeroCopy::Always);
    lane.add(&spec)?;
    // In the ring, and in tables.
    for (round, indirect) in [(1, 0), (2, feature::INDIRECT_DESC)] {
        let features = Options::new(&spec.socket).over(kind).features & !feature::INDIRECT_DESC | indirect;
        let mut guest = Guest::start(Options { tx_shape: Shape::HeaderApart, features, ..options(&spec, kind) })?;
        guest.tx[0].scribble();
        let plan = Plan { lengths: Lengths::Between(60, JUMBO), ..Plan::new(5_000, 100) };
        loopback::run(&mut guest, plan)?;
        let (from, _) = lane.wait_totals("vm", |from, _| from.sent == 5_000 * round)?;
        let not_copied = large(&plan, 5_000) * round;
        // A frame that crosses from one region into another is copied.
        ensure!((not_copied - not_copied / 50..=not_copied).contains(&from.zero_copied), "{not_copied}: {from:?}");
        assert_eq!(from.drops.total(), 0);
    }
    Ok(())
}

fn frames_in_several_buffers_are_copied(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane("zeroshape", &folder, None)?;
    let spec = spec(&lane, "vm", "vdev:net_ring0", ZeroCopy::Always);
    lane.add(&spec)?;
    let mut guest = Guest::start(Options { tx_shape: Shape::Cut(3), ..options(&spec, kind) })?;
    guest.tx[0].scribble();
    let plan = Plan { lengths: Lengths::Between(60, JUMBO), ..Plan::new(5_000, 100) };
    loopback::run(&mut guest, plan)?;
    let (from, _) = lane.wait_totals("vm", |from, _| from.sent == 5_000)?;
    assert_eq!((from.zero_copied, from.drops.total()), (0, 0));
    Ok(())
}

fn rings_stop_and_start_while_a_device_holds_frames(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane("zerostop", &folder, None)?;
    // Nobody is at the other end: what is sent stays in the cable.
    let a = spec(&lane, "a", "patch:held/a", ZeroCopy::Always);
    lane.add(&a)?;
    let mut guest = Guest::start(options(&a, kind))?;
    for round in 1..=4_u64 {
        send(&mut guest, 10, 3000)?;
        // Small ones are copied, and wait behind the others.
        send(&mut guest, 5, 100)?;
        lane.wait_totals("a", |from, _| from.sent == 15 * round)?;
        guest.tx[0].reclaim();
        assert_eq!(guest.tx[0].in_flight(), 15, "the other end has read nothing");
        let start = Instant::now();
        guest.reset()?;
        ensure!(start.elapsed() < Duration::from_secs(5), "the stop took {:?}", start.elapsed());
    }
    ensure!(lane.log().contains("stays mapped"), "{}", lane.log());
    // The other end comes, and everything is as if nothing had been.
    let b = spec(&lane, "b", "patch:held/b", ZeroCopy::Always);
    lane.add(&b)?;
    let mut other = Guest::start(options(&b, kind))?;
    guest.tx[0].scribble();
    let plan = Plan { lengths: Lengths::Between(60, JUMBO), ..Plan::new(2_000, 100) };
    crossing::run(&mut End::Guest(&mut guest), &mut End::Guest(&mut other), Ways::Both, plan)?;
    all_back(&mut guest)?;
    // A port that goes takes its frames with it.
    drop(other);
    lane.remove("b")?;
    send(&mut guest, 10, 3000)?;
    lane.wait_totals("a", |from, _| from.sent == 4 * 15 + 2_000 + 10)?;
    lane.remove("a")?;
    ensure!(lane.is_alive(), "{}", lane.log());
    Ok(())
}

fn memory_is_given_anew_while_frames_are_on_their_way(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane("zeromap", &folder, None)?;
    let spec = spec(&lane, "vm", "vdev:net_ring0", ZeroCopy::Always);
    lane.add(&spec)?;
    let mut guest = Guest::start(options(&spec, kind))?;
    guest.tx[0].scribble();
    let plan = Plan { lengths: Lengths::Between(60, JUMBO), ..Plan::new(1_000, 100) };
    for _ in 0..20 {
        let mut check = loopback::Check::new(plan, 0);
        check.send(&mut guest);
        let memory = guest.memory().clone();
        guest.frontend()?.set_mem_table(&memory, memory.regions())?;
        loopback::drive(&mut guest, &mut [check])?;
        all_back(&mut guest)?;
    }
    let (from, _) = lane.wait_totals("vm", |from, to| from.sent == 20_000 && to.sent == 20_000)?;
    assert_eq!((from.zero_copied, from.drops.total()), (20 * large(&plan, 1_000), 0));
    Ok(())
}

fn a_lane_that_is_killed_with_frames_in_the_device_sends_none_twice(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane("zerokill", &folder, None)?;
    let held = spec(&lane, "vm", "patch:killed/a", ZeroCopy::Always);
    lane.add(&held)?;
    let mut guest = Guest::start(options(&held, kind))?;
    for round in 1..=5_u64 {
        send(&mut guest, 20, 2000)?;
        send(&mut guest, 3, 100)?;
        lane.wait_totals("vm", |from, _| from.sent == 23 * round)?;
        guest.tx[0].reclaim();
        assert_eq!(guest.tx[0].in_flight(), 23);
        lane.kill()?;
        lane.restart()?;
        lane.add(&held)?;
        guest.reconnect()?;
        all_back(&mut guest)?;
        let (from, _) = lane.totals("vm")?;
        assert_eq!(
            (from.received, from.sent, from.drops.total()),
            (23 * round, 23 * round, 0),
            "nothing is sent again"
        );
    }
    // And all goes on.
    let b = spec(&lane, "b", "patch:killed/b", ZeroCopy::Always);
    lane.add(&b)?;
    let mut other = Guest::start(options(&b, kind))?;
    let plan = Plan { lengths: Lengths::Between(60, JUMBO), ..Plan::new(1_000, 100) };
    crossing::run(&mut End::Guest(&mut guest), &mut End::Guest(&mut other), Ways::There, plan)?;
    Ok(())
}

fn a_guest_that_changes_frames_on_their_way_changes_only_their_bytes(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane("zerochange", &folder, None)?;
    let spec = spec(&lane, "vm", "vdev:net_ring0", ZeroCopy::Always);
    lane.add(&spec)?;
    let mut guest = Guest::start(options(&spec, kind))?;
    let (mut sent, mut back, mut lengths, start) = (0_u64, 0, 0, Instant::now());
    while back < 20_000 {
        let mut rooms: Vec<Room> = Vec::new();
        if sent - back < 100 && sent < 20_000 {
            sent += guest.tx[0].transmit(20, |i, room| {
                rooms.push(room);
                600 + 400 * i
            }) as u64;
        }
        for round in 0..10_u8 {
            for room in &rooms {
                room.put(0, &[round.wrapping_mul(37); 64]);
            }
        }
        back += guest.rx[0].receive(256, |frame| {
            lengths += frame.length() as u64;
        }) as u64;
        ensure!(start.elapsed() < Duration::from_secs(30), "{back} of {sent} came back\n{}", lane.log());
    }
    let each: u64 = (0..20).map(|i| 600 + 400 * i).sum();
    let wanted = 1000 * each;
    let (from, to) = lane.wait_totals("vm", |_, to| to.received == 20_000)?;
    ensure!(from.received_bytes == wanted, "{from:?}");
    ensure!(
        from.received == from.sent + from.drops.total() && to.received == to.sent + to.drops.total(),
        "{from:?} {to:?}"
    );
    ensure!(lengths == wanted, "{lengths} bytes came back of {wanted}");
    Ok(())
}

fn the_reason_for_copying_is_said(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane("zerowhy", &folder, None)?;
    for (name, device, zero_copy, why) in [
        ("off", "vdev:net_null0,no-rx=1", ZeroCopy::Off, "off"),
        ("ring", "vdev:net_ring0", ZeroCopy::Auto, "software ring"),
    ] {
        let spec = spec(&lane, name, device, zero_copy);
        let status = lane.add(&spec)?.zero_copy;
        ensure!(status.from.is_none() && status.reason.as_ref().is_some_and(|said| said.contains(why)), "{status:?}");
        let mut guest = Guest::start(options(&spec, kind))?;
        send(&mut guest, 10, 5000)?;
        all_back(&mut guest)?;
        let (from, _) = lane.wait_totals(name, |from, _| from.received == 10)?;
        assert_eq!(from.zero_copied, 0);
    }
    // A device that reads more than a frame has gets frames of its own.
    let spec = spec(&lane, "reads", "vdev:net_null1,size=4000,copy=1", ZeroCopy::Auto);
    assert_eq!(lane.add(&spec)?.zero_copy.from, Some(4000));
    Ok(())
}
