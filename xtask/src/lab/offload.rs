//! Checksums and segments that a guest leaves to its port, and the port to a NIC: what comes off the wire is right to the last bit, and what
//! the NIC says of a checksum that came in is true.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_protocol::OffloadBy;
use ringspan_testkit::capture::{Capture, tshark_finds_nothing_wrong};
use ringspan_testkit::guest::net_header::DATA_VALID;
use ringspan_testkit::guest::{Guest, Kind, NetHeader, feature};
use ringspan_testkit::packet::Packet;
use ringspan_testkit::paths;

use super::checks::options;
use super::inside::{FAR_MAC, Host, MTU};

const SOON: Duration = Duration::from_secs(20);
/// Bytes of payload, and of each segment: several, the last of them short and odd; few; one only. None is padded on the wire.
const SEGMENTS: [(usize, usize); 4] = [(8800, 1400), (8419, 1400), (8000, 4000), (300, 1000)];
/// Bytes of payload of frames whose checksum alone is left to the port.
const WHOLE: [usize; 4] = [18, 19, 999, 1350];

/// Packets of each kind.
fn kinds() -> impl Iterator<Item = Packet> {
    [false, true].into_iter().flat_map(|ipv6| {
        [(false, 0), (true, 0), (false, 2), (true, 2)].map(|(udp, options)| Packet {
            ipv6,
            udp,
            options,
            tcp_options: 3,
            ..Packet::new(0)
        })
    })
}

/// The frame, to the far end: the switch inside a NIC looks at addresses.
fn to_far(packet: &Packet) -> Vec<u8> {
    let mut frame = packet.frame();
    frame[..6].copy_from_slice(&bytes_of(FAR_MAC));
    frame
}

fn bytes_of(mac: &str) -> [u8; 6] {
    let mut bytes = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap_or_default());
    [(); 6].map(|()| bytes.next().unwrap_or_default())
}

/// What arrives at the far end, before its kernel puts segments together.
fn listen(host: &Host) -> Result<Capture> {
    let interface = host.far_interface.as_str();
    host.net.run(SOON, "ethtool", &["-K", interface, "gro", "off", "lro", "off"])?;
    // A socket stays in the namespace that its thread was in when it was made.
    std::thread::scope(|scope| {
        let listen = scope.spawn(|| {
            host.net.join()?;
            Capture::start(interface)
        });
        listen.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
    })
}

/// The next frame of ours, addressed as the packet has it.
fn next(capture: &Capture, packet: &Packet) -> Result<Vec<u8>> {
    let (original, start) = (packet.frame(), Instant::now());
    loop {
        let mut frame = capture.next(SOON.saturating_sub(start.elapsed()))?.context("no frame came")?;
        if frame.get(6..12) == Some(&original[6..12]) {
            frame[..6].copy_from_slice(&original[..6]);
            return Ok(frame);
        }
    }
}

fn send(guest: &mut Guest, packet: &Packet, header: &NetHeader) -> Result<()> {
    let frame = to_far(packet);
    let sent = guest.tx[0].transmit(1, |_, room| {
        room.put_header(header);
        room.put(0, &frame);
        frame.len()
    });
    guest.tx[0].ring().kick();
    guest.tx[0].reclaim();
    ensure!(sent == 1, "the ring is full");
    Ok(())
}

/// The check, of a port `vm` that is there before and after.
pub fn left_to_the_nic(host: &mut Host) -> Result<()> {
    let offloads = host.lane.port("vm")?.device.offloads;
    host.say(&format!("    {offloads:?}"));
    ensure!(
        (offloads.tx_checksum, offloads.tx_tcp_segments) == (OffloadBy::Device, OffloadBy::Device),
        "the NIC does not do it: {offloads:?}"
    );
    let capture = listen(host)?;
    let folder = paths::scratch()?;
    for kind in [Kind::Split, Kind::Packed] {
        let before = host.sent_so_far()?.0;
        let mut guest = Guest::start(options(host, kind).with(feature::HOST_OFFLOADS))?;
        ensure!(guest.features() & feature::HOST_OFFLOADS == feature::HOST_OFFLOADS, "{:#x}", guest.features());
        // Should a frame be read that is not copied, it would be wrong.
        guest.tx[0].scribble();
        let mut all = vec![];
        for like in kinds() {
            for payload in WHOLE {
                let packet = Packet { payload, seed: payload as u8 + 1, ..like };
                send(&mut guest, &packet, &packet.checksum_header())?;
                let came = next(&capture, &packet).with_context(|| format!("{packet:?}"))?;
                packet.check(&came).with_context(|| format!("{packet:?}"))?;
                let place = packet.checksum_place();
                let (mut sent, mut after) = (packet.frame(), came.clone());
                sent.drain(place..place + 2);
                after.drain(place..place + 2);
                ensure!(sent == after, "{packet:?}: something else was changed");
                all.push(came);
            }
            for (payload, mss) in SEGMENTS {
                for ecn in [false, true] {
                    // QEMU's NICs clear FIN and PSH in the last segment, too (hw/net/net_tx_pkt.c, net_tx_pkt_tcp_fragment_init).
                    let packet = Packet { payload, seed: 3, ecn, ends: false, ..like };
                    let what = || format!("{packet:?} in segments of {mss}");
                    send(&mut guest, &packet, &packet.segment_header(mss))?;
                    let segments = (0..payload.div_ceil(mss)).map(|_| next(&capture, &packet));
                    let segments = segments.collect::<Result<Vec<_>>>().with_context(what)?;
                    packet.check_segments(mss, &segments).with_context(what)?;
                    ensure!(segments.iter().all(|segment| segment.len() <= usize::from(MTU) + 14), "{}", what());
                    all.extend(segments);
                }
            }
        }
        tshark_finds_nothing_wrong(&all, &folder.path().join("frames.pcap"))?;
        let sent = before + (kinds().count() * (WHOLE.len() + 2 * SEGMENTS.len())) as u64;
        host.lane.wait_totals("vm", |from, _| from.sent == sent && from.drops.total() == 0)?;
        host.say(&format!("    {kind:?}: {} frames off the wire are right", all.len()));
        host.gone(guest)?;
        comes_in(host, kind)?;
    }
    Ok(())
}

/// A guest that takes the NIC's word for checksums gets it for good ones at most.
fn comes_in(host: &mut Host, kind: Kind) -> Result<()> {
    let mut guest = Guest::start(options(host, kind).with(feature::GUEST_CSUM))?;
    let (mut vouched, mut count) = (0, 0);
    let nic = bytes_of(&host.lane.port("vm")?.device.mac.to_string());
    for like in kinds() {
        let packet = Packet { payload: 700, ..like };
        let (mut unfinished, mut good) = (packet.frame(), finished(&packet)?);
        unfinished[..6].copy_from_slice(&nic);
        good[..6].copy_from_slice(&nic);
        let mut bad = good.clone();
        bad[packet.checksum_place()] ^= 0x5a;
        for (frame, is_good) in [(&good, true), (&bad, false), (&unfinished, false)] {
            ensure!(host.far.send(frame)?, "the far end is full");
            let (header, got) = receive(&mut guest, frame)?;
            ensure!(got == *frame, "{packet:?} was changed");
            let says_good = header.flags & DATA_VALID != 0;
            ensure!(is_good || !says_good, "{packet:?}: a wrong checksum is called right: {header:?}");
            ensure!(header.flags & !DATA_VALID == 0, "{packet:?}: {header:?}");
            vouched += usize::from(says_good);
            count += usize::from(is_good);
        }
    }
    host.say(&format!("    {kind:?}: {vouched} of {count} right checksums were vouched for, and no wrong one"));
    let offloads = host.lane.port("vm")?.device.offloads;
    ensure!(vouched > 0 || offloads.rx_checksum != OffloadBy::Device, "the NIC vouched for none: {offloads:?}");
    host.gone(guest)
}

/// The frame with its checksum.
fn finished(packet: &Packet) -> Result<Vec<u8>> {
    let (mut frame, place, start) = (packet.frame(), packet.checksum_place(), packet.l4_start());
    // The pseudo header's sum stands there already.
    let sum = match !ringspan_testkit::packet::sum(&frame[start..]) {
        0 => 0xffff,
        sum => sum,
    };
    frame[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    packet.check(&frame)?;
    Ok(frame)
}

fn receive(guest: &mut Guest, like: &[u8]) -> Result<(NetHeader, Vec<u8>)> {
    let start = Instant::now();
    loop {
        ensure!(start.elapsed() < SOON, "no frame came");
        let mut got = None;
        guest.rx[0].receive(1, |received| {
            let mut bytes = vec![0; received.length()];
            received.copy_to(&mut bytes);
            got = (bytes.get(6..12) == Some(&like[6..12])).then(|| (received.header(), bytes));
        });
        match got {
            Some(got) => return Ok(got),
            None => std::thread::yield_now(),
        }
    }
}
