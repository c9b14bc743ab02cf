//! Checksums and segments that a guest leaves to its port: what comes out on the wire, or at another guest, is right to the last
//! bit. Sums are checked by the test's own arithmetic, and by tshark.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_protocol::{OffloadBy, PortSpec};
use ringspan_testkit::capture::{Capture, tshark_finds_nothing_wrong};
use ringspan_testkit::guest::net_header::{DATA_VALID, GSO_UDP_L4};
use ringspan_testkit::guest::{Guest, Kind, NetHeader, Options, Shape, feature};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::netns::Netns;
use ringspan_testkit::packet::Packet;
use ringspan_testkit::{needs, over_both, paths};

over_both!(
    what_leaves_by_a_tap_is_complete_and_right,
    large_frames_stay_in_order_among_small_ones,
    headers_that_make_no_sense_cost_their_frame_only,
    what_one_guest_leaves_undone_another_gets_as_it_agreed_to,
    more_than_is_given_in_one_go_comes_whole_and_in_order,
    a_port_without_offloads_offers_none,
    what_a_device_does_by_itself_is_left_to_it,
    random_headers_and_frames_do_no_harm,
);

const SOON: Duration = Duration::from_secs(10);
/// Longest frame that a guest sends.
const LARGE: usize = 65_600;

fn lane(folder: &tempfile::TempDir, name: &str) -> Result<Lane> {
    Lane::start(lane::Options { memory_mib: 256, ..lane::Options::new(name) }, folder.path())
}

fn sender(socket: impl Into<std::path::PathBuf>, kind: Kind) -> Options {
    let options = Options { tx_room: LARGE, ring_size: 64, ..Options::new(socket).over(kind) };
    options.with(feature::HOST_OFFLOADS)
}

fn send(guest: &mut Guest, frame: &[u8], header: &NetHeader) -> Result<()> {
    let deadline = Instant::now() + SOON;
    let mut sent = 0;
    while sent == 0 {
        ensure!(Instant::now() < deadline, "the ring stays full");
        sent = guest.tx[0].transmit(1, |_, room| {
            room.put_header(header);
            room.put(0, frame);
            frame.len()
        });
        guest.tx[0].ring().kick();
        guest.tx[0].reclaim();
    }
    Ok(())
}

/// Receives `count` frames with their headers.
fn receive(guest: &mut Guest, count: usize) -> Result<Vec<(NetHeader, Vec<u8>)>> {
    let (deadline, mut frames) = (Instant::now() + SOON, Vec::new());
    while frames.len() < count {
        ensure!(Instant::now() < deadline, "{} of {count} frames came", frames.len());
        guest.rx[0].receive(64, |received| {
            let mut bytes = vec![0; received.length()];
            received.copy_to(&mut bytes);
            frames.push((received.header(), bytes));
        });
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(frames)
}

/// Packets of each kind.
fn kinds() -> Vec<Packet> {
    let mut all = Vec::new();
    for (tags, options) in [(0, 0), (1, 2), (2, 1)] {
        for ipv6 in [false, true] {
            for udp in [false, true] {
                all.push(Packet { tags, ipv6, udp, options, tcp_options: 3, ..Packet::new(0) });
            }
        }
    }
    all
}

/// A TAP in a namespace of its own, a lane with a port on it, and what comes out there.
fn tap(folder: &tempfile::TempDir, name: &str) -> Result<(Netns, Lane, std::path::PathBuf, Capture)> {
    let net = Netns::new(name)?;
    net.tap("tap0", "192.0.2.1/24", 1500)?;
    net.join()?;
    let mut lane = lane(folder, name)?;
    let socket = lane.add_port("vm", "vdev:net_tap0,iface=tap0", 1)?;
    let capture = Capture::start("tap0")?;
    Ok((net, lane, socket, capture))
}

fn what_leaves_by_a_tap_is_complete_and_right(kind: Kind) -> Result<()> {
    needs!(Root, Lane, Program("ip"), Program("tshark"));
    let folder = paths::scratch()?;
    let (_net, mut lane, socket, capture) = tap(&folder, "offload")?;
    let mut all = Vec::new();
    let (mut frames, mut bytes) = (0, 0);
    for shape in [Shape::Whole, Shape::HeaderApart, Shape::Cut(17), Shape::Mixed(9)] {
        let mut guest = Guest::start(Options { tx_shape: shape, ..sender(&socket, kind) })?;
        ensure!(guest.features() & feature::HOST_OFFLOADS == feature::HOST_OFFLOADS, "{:#x}", guest.features());
        for like in kinds() {
            // Checksums alone, then segments: of two frames, of many, of one odd byte more, of the longest packet.
            for payload in [0, 1, 18, 999, 1350] {
                let packet = Packet { payload, seed: payload as u8 + 1, ..like };
                send(&mut guest, &packet.frame(), &packet.checksum_header())?;
                let came = next(&capture)?;
                packet.check(&came).with_context(|| format!("{shape:?} {packet:?}"))?;
                let place = packet.checksum_place();
                let (mut before, mut after) = (packet.frame(), came.clone());
                before.drain(place..place + 2);
                after.drain(place..place + 2);
                ensure!(before == after, "{shape:?} {packet:?}: something else was changed");
                all.push(came);
            }
            for (payload, mss) in [(1400, 1380), (100, 1000), (14_001, 1399), (2_800, 1400), (65_000, 1300), (300, 7)] {
                let packet = Packet { payload, seed: 3, ..like };
                send(&mut guest, &packet.frame(), &packet.segment_header(mss))?;
                let segments: Vec<_> = (0..payload.div_ceil(mss))
                    .map(|_| next(&capture))
                    .collect::<Result<_>>()
                    .with_context(|| format!("{shape:?} {packet:?} in segments of {mss}: {}", lane.log()))?;
                let right = packet.check_segments(mss, &segments);
                right.with_context(|| format!("{shape:?} {packet:?} in segments of {mss}"))?;
                all.extend(segments);
            }
        }
        frames += 11 * kinds().len() as u64;
        bytes = all.iter().map(|frame| frame.len() as u64).sum();
    }
    tshark_finds_nothing_wrong(&all, &folder.path().join("frames.pcap"))?;
    // A frame that was cut counts once; its bytes count as they went.
    let (from, _) = lane.wait_totals("vm", |from, _| from.sent == frames)?;
    assert_eq!((from.received, from.drops.total(), from.sent_bytes), (frames, 0, bytes));
    Ok(())
}

fn next(capture: &Capture) -> Result<Vec<u8>> {
    capture.next(SOON)?.context("no frame came")
}

fn large_frames_stay_in_order_among_small_ones(kind: Kind) -> Result<()> {
    needs!(Root, Lane, Program("ip"));
    let folder = paths::scratch()?;
    let (_net, _lane, socket, capture) = tap(&folder, "order")?;
    let mut guest = Guest::start(sender(&socket, kind))?;
    let large = Packet { seed: 1, ..Packet::new(60_000) };
    let small = Packet { seed: 2, udp: true, ..Packet::new(100) };
    let (large_frame, small_frame) = (large.frame(), small.frame());
    for _ in 0..20 {
        // More than is taken in one go.
        let sent = guest.tx[0].transmit(20, |number, room| {
            let (packet, frame) = if number % 2 == 0 { (&large, &large_frame) } else { (&small, &small_frame) };
            let header = if number % 2 == 0 { packet.segment_header(1400) } else { packet.checksum_header() };
            room.put_header(&header);
            room.put(0, frame);
            frame.len()
        });
        assert_eq!(sent, 20);
        guest.tx[0].ring().kick();
        for number in 0..20 {
            if number % 2 == 0 {
                let segments = (0..large.payload.div_ceil(1400)).map(|_| next(&capture)).collect::<Result<Vec<_>>>()?;
                large.check_segments(1400, &segments)?;
            } else {
                small.check(&next(&capture)?)?;
            }
        }
        guest.tx[0].reclaim();
    }
    Ok(())
}

fn headers_that_make_no_sense_cost_their_frame_only(kind: Kind) -> Result<()> {
    needs!(Root, Lane, Program("ip"));
    let folder = paths::scratch()?;
    let (_net, mut lane, socket, capture) = tap(&folder, "nonsense")?;
    let mut guest = Guest::start(sender(&socket, kind))?;
    let (packet, large) = (Packet::new(500), Packet::new(5000));
    let (good, cut) = (packet.checksum_header(), large.segment_header(1400));
    let bad = [
        (packet.frame(), NetHeader { csum_start: 60_000, ..good }),
        (packet.frame(), NetHeader { csum_offset: 60_000, ..good }),
        (packet.frame(), NetHeader { csum_start: 3, ..good }),
        (large.frame(), NetHeader { gso_size: 0, ..cut }),
        (large.frame(), NetHeader { gso_type: 3, ..cut }),
        (large.frame(), NetHeader { gso_type: GSO_UDP_L4, ..cut }),
        (large.frame(), NetHeader { csum_start: 33, ..cut }),
        (large.frame(), NetHeader { flags: 0, ..cut }),
    ];
    let unfit = [
        // Segments longer than the MTU, and a large frame that is not to be cut.
        (large.frame(), NetHeader { gso_size: 4000, ..cut }),
        (large.frame(), good),
    ];
    for (frame, header) in bad.iter().chain(&unfit) {
        send(&mut guest, frame, header)?;
        send(&mut guest, &packet.frame(), &good)?;
        packet.check(&next(&capture)?).with_context(|| format!("after {header:?}"))?;
    }
    let total = 2 * (bad.len() + unfit.len()) as u64;
    let (from, _) = lane.wait_totals("vm", |from, _| from.received == total)?;
    let (refused, long) = (from.drops.bad_offload, from.drops.too_long);
    assert_eq!((refused, long, from.drops.total()), (bad.len() as u64, unfit.len() as u64, total / 2));
    Ok(())
}

fn what_one_guest_leaves_undone_another_gets_as_it_agreed_to(kind: Kind) -> Result<()> {
    needs!(Root, Lane, Program("tshark"));
    let folder = paths::scratch()?;
    let mut lane = lane(&folder, "between")?;
    let left = lane.add_port("left", "patch:cable/a", 1)?;
    let right = lane.add_port("right", "patch:cable/b", 1)?;
    assert_eq!(lane.port("left")?.device.offloads.tx_checksum, OffloadBy::Receiver);
    let checksum = feature::GUEST_CSUM;
    let tcp4 = checksum | feature::GUEST_TSO4 | feature::GUEST_ECN;
    let mut all = Vec::new();
    for (takes, mergeable) in
        [(feature::GUEST_OFFLOADS, true), (feature::GUEST_OFFLOADS, false), (0, true), (checksum, true), (tcp4, true)]
    {
        let rx_room = if mergeable { 1536 } else { LARGE };
        let without = if mergeable { 0 } else { feature::MRG_RXBUF };
        let mut receiver = Guest::start(
            Options { rx_room, ring_size: 256, ..Options::new(&right).over(kind) }.with(takes).without(without),
        )?;
        let mut guest = Guest::start(Options { tx_shape: Shape::Cut(17), ..sender(&left, kind) })?;
        for like in kinds() {
            let what = format!("{like:?} to a guest that takes {takes:#x}, mergeable: {mergeable}");
            let packet = Packet { payload: 999, ..like };
            send(&mut guest, &packet.frame(), &packet.checksum_header())?;
            let (header, frame) = receive(&mut receiver, 1)?.remove(0);
            if takes & checksum != 0 && header.flags & DATA_VALID == 0 {
                ensure!((header, &frame) == (packet.checksum_header(), &packet.frame()), "{what}: {header:?}");
            } else {
                packet.check(&frame).with_context(|| what.clone())?;
                all.push(frame);
            }
            let (mss, large) = (1400, Packet { payload: 64_000, ..like });
            send(&mut guest, &large.frame(), &large.segment_header(mss))?;
            let whole = match (like.udp, like.ipv6) {
                (true, _) => takes & feature::GUEST_USO4 != 0,
                (false, true) => takes & feature::GUEST_TSO6 != 0,
                (false, false) => takes & feature::GUEST_TSO4 != 0,
            };
            if whole {
                let (header, frame) = receive(&mut receiver, 1)?.remove(0);
                ensure!(header == large.segment_header(mss), "{what}: {header:?}");
                ensure!(frame == large.frame(), "{what}: the large frame was changed");
            } else {
                let came = receive(&mut receiver, large.payload.div_ceil(mss))?;
                let flags = if takes & checksum != 0 { DATA_VALID } else { 0 };
                let plain = NetHeader { flags, ..NetHeader::default() };
                ensure!(came.iter().all(|(header, _)| *header == plain), "{what}: {:?}", came[0].0);
                let segments: Vec<_> = came.into_iter().map(|(_, frame)| frame).collect();
                large.check_segments(mss, &segments).with_context(|| what.clone())?;
                all.extend(segments);
            }
        }
        assert_eq!(receiver.rx[0].counts().wrong, 0);
        let (_, to) = lane.totals("right")?;
        assert_eq!((to.received, to.drops.total()), (to.sent, 0));
    }
    tshark_finds_nothing_wrong(&all, &folder.path().join("frames.pcap"))
}

/// A guest is given 256 segments' worth of large frames in one go, and more than that is sent to it.
fn more_than_is_given_in_one_go_comes_whole_and_in_order(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane(&folder, "heaps")?;
    let left = lane.add_port("left", "patch:cable/a", 1)?;
    let right = lane.add_port("right", "patch:cable/b", 1)?;
    let packets: Vec<_> = (0..20).map(|seed| Packet { seed, ecn: false, ..Packet::new(60_000) }).collect();
    let frames: Vec<_> = packets.iter().map(Packet::frame).collect();
    let mut guest = Guest::start(sender(&left, kind))?;
    let mut send_all = || {
        let sent = guest.tx[0].transmit(20, |number, room| {
            room.put_header(&packets[number].segment_header(256));
            room.put(0, &frames[number]);
            frames[number].len()
        });
        assert_eq!(sent, 20);
        guest.tx[0].ring().kick();
        let deadline = Instant::now() + SOON;
        while guest.tx[0].in_flight() > 0 {
            assert!(Instant::now() < deadline, "frames stay in the ring");
            guest.tx[0].reclaim();
        }
    };
    let options = || Options { rx_room: 1536, ring_size: 1024, ..Options::new(&right).over(kind) };
    let mut receiver = Guest::start(options().with(feature::GUEST_OFFLOADS))?;
    for _ in 0..5 {
        send_all();
        for (number, (_, frame)) in receive(&mut receiver, 20)?.into_iter().enumerate() {
            ensure!(frame == frames[number], "frame {number} is not what was sent");
        }
    }
    drop(receiver);
    // One that takes segments only has no room for all of them: what it cannot have is counted.
    let _receiver = Guest::start(options())?;
    send_all();
    let deadline = Instant::now() + SOON;
    loop {
        let (_, to) = lane.totals("right")?;
        if to.received == 120 && to.received == to.sent + to.drops.total() {
            ensure!(to.sent == 100 + 4 && to.drops.guest_ring_full == 16, "1024 buffers hold four frames: {to:?}");
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not all is accounted for: {to:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn a_port_without_offloads_offers_none(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane(&folder, "without")?;
    let spec = PortSpec { offloads: false, ..lane.spec("vm", "vdev:net_ring0", 1) };
    let status = lane.add(&spec)?;
    assert_eq!(status.device.offloads.tx_checksum, OffloadBy::Nobody);
    let guest =
        Guest::start(Options::new(&spec.socket).over(kind).with(feature::HOST_OFFLOADS | feature::GUEST_OFFLOADS))?;
    assert_eq!(guest.features() & (feature::HOST_OFFLOADS | feature::GUEST_OFFLOADS), 0);
    Ok(())
}

/// DPDK's virtio driver does by its device what it is told, as a physical NIC does: here the device is a port of another lane.
fn what_a_device_does_by_itself_is_left_to_it(kind: Kind) -> Result<()> {
    needs!(Root, Lane, Program("ip"), Program("tshark"));
    let (near, far) = (paths::scratch()?, paths::scratch()?);
    let (_net, mut wire, socket, capture) = tap(&far, "wire")?;
    let mut lane = lane(&near, "driver")?;
    let device = format!("vdev:net_virtio_user0,path={},queue_size=256", socket.display());
    let socket = lane.add_port("vm", &device, 1).map_err(|error| error.context(lane.log()))?;
    let offloads = lane.port("vm")?.device.offloads;
    assert_eq!(
        (offloads.tx_checksum, offloads.tx_tcp_segments),
        (OffloadBy::Device, OffloadBy::Device),
        "{offloads:?}"
    );
    // What it receives may be unfinished, when DPDK's driver is told to look at checksums: it is not.
    assert_eq!(offloads.rx_checksum, OffloadBy::Nobody);
    let mut all = Vec::new();
    let mut guest = Guest::start(sender(&socket, kind))?;
    for like in kinds() {
        for payload in [1, 999] {
            let packet = Packet { payload, seed: payload as u8, ..like };
            send(&mut guest, &packet.frame(), &packet.checksum_header())?;
            let came = next(&capture)?;
            packet.check(&came).with_context(|| format!("{packet:?}"))?;
            all.push(came);
        }
        // With and without CWR, which is not left to a device; segments too small for one, and a frame of few segments.
        for (payload, mss, ecn) in [(60_000, 1300, true), (60_000, 1300, false), (700, 100, false), (2800, 1400, false)]
        {
            let packet = Packet { payload, seed: 9, ecn, ..like };
            send(&mut guest, &packet.frame(), &packet.segment_header(mss))?;
            let segments = (0..payload.div_ceil(mss)).map(|_| next(&capture)).collect::<Result<Vec<_>>>();
            let segments =
                segments.with_context(|| format!("{packet:?}: {:?} {:?}", lane.totals("vm"), wire.totals("vm")))?;
            packet.check_segments(mss, &segments).with_context(|| format!("{packet:?} in segments of {mss}"))?;
            all.extend(segments);
        }
    }
    tshark_finds_nothing_wrong(&all, &far.path().join("frames.pcap"))?;
    // Of TCP without extension headers and CWR, the frames of 47 segments and of 2 have reached the other lane whole.
    let whole = kinds().iter().filter(|kind| !(kind.udp || kind.ipv6 && kind.options > 0)).count() as u64;
    let (from, _) = wire.totals("vm")?;
    assert_eq!(all.len() as u64 - from.received, whole * (46 + 1));
    Ok(())
}

/// What a hostile guest writes: any header before any frame, sane ones among them.
fn random_headers_and_frames_do_no_harm(kind: Kind) -> Result<()> {
    needs!(Root, Lane, Program("ip"));
    let folder = paths::scratch()?;
    let (_net, mut lane, socket, capture) = tap(&folder, "random")?;
    // Through the TAP all is done at once; through the ring it comes back, to a guest that takes all, and to one that takes nothing.
    let ring = lane.add_port("ring", "vdev:net_ring0", 1)?;
    let mut sent = [0, 0];
    for (number, socket, takes) in [(0, &socket, 0), (1, &ring, feature::GUEST_OFFLOADS), (1, &ring, 0)] {
        let mut guest = Guest::start(Options { tx_shape: Shape::Mixed(9), ..sender(socket, kind) }.with(takes))?;
        let mut seed = 0x9e37_79b9_7f4a_7c15u64 ^ takes;
        for _ in 0..6_000 {
            let mut random = || {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                seed
            };
            let base = kinds()[random() as usize % 12];
            let packet = Packet { payload: random() as usize % [100, 1300, 9000][random() as usize % 3], ..base };
            let mut header = packet.segment_header(1 + random() as usize % 3000);
            let mut frame = packet.frame();
            let any = random();
            match any % 8 {
                0 => header = NetHeader::parse(std::array::from_fn(|_| random() as u8)),
                1 => header.csum_start = (any >> 8) as u16 % 128,
                2 => header.csum_offset = (any >> 8) as u16 % 128,
                3 => header.gso_type = (any >> 8) as u8 % 8,
                4 => frame.truncate(14 + any as usize / 8 % (frame.len() - 13)),
                5 => header = packet.checksum_header(),
                _ => {}
            }
            if any % 3 == 0 {
                let at = random() as usize % packet.header_len().min(frame.len());
                frame[at] = random() as u8;
            }
            send(&mut guest, &frame, &header)?;
            sent[number] += 1;
            guest.rx[0].receive(64, |_| ());
            while capture.next(Duration::ZERO)?.is_some() {}
        }
        // What is in the ring when a guest goes was never received.
        let deadline = Instant::now() + SOON;
        while guest.tx[0].in_flight() > 0 {
            ensure!(Instant::now() < deadline, "frames stay in the ring");
            guest.tx[0].reclaim();
        }
        assert_eq!(guest.rx[0].counts().wrong, 0);
    }
    for (name, sent) in ["vm", "ring"].into_iter().zip(sent) {
        let (from, _) = lane.wait_totals(name, |from, to| {
            (from.received, to.received) == (from.sent + from.drops.total(), to.sent + to.drops.total())
                && from.received == sent
        })?;
        ensure!(from.sent > sent / 10 && from.drops.bad_offload > sent / 10, "{from:?}");
    }
    Ok(())
}
