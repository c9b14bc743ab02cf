//! Every cell of the benchmark, byte for byte: the same rings, features, layouts, pairs, sizes and kind of device as what is measured, and every frame
//! compared. Of what the benchmark's device swallows or makes, the far end is here a TAP, or a wire where frames are larger than a TAP takes.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use ringspan_benches::cell::{Cell, Direction};
use ringspan_benches::driver::stamp::Frames;
use ringspan_protocol::PortSpec;
use ringspan_testkit::far_end::FarEnd;
use ringspan_testkit::guest::crossing::{self, End, Ways};
use ringspan_testkit::guest::loopback::{self, ETHERTYPE, Lengths, Plan};
use ringspan_testkit::guest::{Guest, Kind, Options, Shape, feature};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::netns::Netns;
use ringspan_testkit::{needs, paths};

/// What is negotiated in cells with offloads.
const OFFLOADS: u64 = feature::CSUM
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::GUEST_CSUM
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6;
/// The largest frame that a TAP carries (net_tap takes an MTU of 1504 at most).
const TAP: u16 = 1518;
/// The largest of the matrix.
const LARGEST: u16 = 9000;
/// The benchmark's mix.
const MIX: Lengths = Lengths::Among(&[64, 570, 64, 64, 570, 64, 1518, 64, 570, 64, 64, 570]);
/// Room of a receive buffer where frames may take several.
const BUFFER: usize = 1524;
/// Frames of each queue and direction.
const EACH: u64 = 100;

/// A namespace with a TAP and a wire for the devices of the cells.
fn outside() -> Result<Netns> {
    let net = Netns::new("benchcells")?;
    net.tap("tap0", "192.0.2.1/24", TAP - 14)?;
    net.wire("host0", "far0", "198.51.100.1/24", LARGEST - 14)?;
    Ok(net)
}

/// The kernel's end of one of them, after a device of an earlier cell took the interface down when it was closed.
fn far_end(net: &Netns, interface: &str) -> Result<FarEnd> {
    net.ip(&["link", "set", interface, "up"])?;
    FarEnd::open(net, interface, ETHERTYPE)
}

fn options(cell: &Cell, socket: &Path) -> Options {
    let kind = if cell.packed { Kind::Packed } else { Kind::Split };
    let flag = |wanted: bool, bit: u64| if wanted { bit } else { 0 };
    let wanted = flag(cell.in_order, feature::IN_ORDER)
        | flag(cell.offload, OFFLOADS)
        | flag(cell.indirect, feature::INDIRECT_DESC);
    let unwanted = flag(!cell.mergeable, feature::MRG_RXBUF) | flag(!cell.indirect, feature::INDIRECT_DESC);
    let most = usize::from(cell.frames.most());
    Options {
        ring_size: cell.ring_size,
        tx_shape: if cell.indirect { Shape::HeaderApart } else { Shape::Whole },
        tx_room: most,
        rx_room: if cell.mergeable { BUFFER } else { most.max(BUFFER) },
        ..Options::new(socket).over(kind).pairs(cell.pairs).without(unwanted).require(wanted)
    }
}

fn plan(cell: &Cell, window: usize) -> Plan {
    let lengths = match cell.frames {
        Frames::Fixed(length) => Lengths::Each(length.into()),
        Frames::Imix => MIX,
    };
    let plan = Plan { lengths, ..Plan::new(EACH, window) };
    match cell.direction {
        // All of a ring is shown at once.
        Direction::Drain => {
            Plan { frames: cell.ring_size.into(), window: cell.ring_size.into(), burst: cell.ring_size.into(), ..plan }
        }
        _ => plan,
    }
}

/// Passes a cell's frames. Returns how many arrived.
fn pass(lane: &mut Lane, net: &Netns, folder: &Path, cell: &Cell) -> Result<u64> {
    let ways = match cell.direction {
        Direction::Tx | Direction::Drain => Ways::There,
        Direction::Rx => Ways::Back,
        Direction::Both | Direction::Loop | Direction::Guests => Ways::Both,
    };
    let on_wire = cell.frames.most() > TAP;
    let mtu = if on_wire { LARGEST - 14 } else { TAP - 14 };
    let port = |lane: &Lane, name: &str, device: &str| PortSpec { mtu, ..lane.spec(name, device, cell.pairs) };
    // A frame may take up to six of the receiver's buffers, and all pairs together have no more frames on their way.
    let window = usize::from(cell.ring_size) / if cell.mergeable && cell.frames.most() > TAP { 8 } else { 2 };
    match cell.direction {
        Direction::Loop => {
            let spec = port(lane, "vm", "vdev:net_ring0");
            lane.add(&spec)?;
            let mut guest = Guest::start(options(cell, &spec.socket))?;
            let passed = loopback::run(&mut guest, plan(cell, window.min(200)))?;
            counted(lane, "vm", true, true)?;
            Ok(passed.iter().map(|pair| pair.frames).sum())
        }
        Direction::Guests => {
            let (a, b) = (port(lane, "vm", "patch:cable/a"), port(lane, "other", "patch:cable/b"));
            lane.add(&a)?;
            lane.add(&b)?;
            let (mut first, mut second) =
                (Guest::start(options(cell, &a.socket))?, Guest::start(options(cell, &b.socket))?);
            let (first, second) = (&mut End::Guest(&mut first), &mut End::Guest(&mut second));
            let (there, back) = crossing::run(first, second, ways, plan(cell, window.min(200)))?;
            counted(lane, "vm", true, true)?;
            counted(lane, "other", true, true)?;
            lane.remove("other")?;
            Ok(there + back)
        }
        _ if cell.read => {
            let socket = folder.join("reader");
            let spec = port(lane, "vm", &format!("vdev:net_vhost0,iface={}", socket.display()));
            lane.add(&spec)?;
            let reader = Options { ring_size: 1024, rx_room: usize::from(LARGEST), ..Options::new(&socket) };
            let (mut reader, mut guest) = (Guest::start(reader)?, Guest::start(options(cell, &spec.socket))?);
            let (from, to) = (&mut End::Guest(&mut guest), &mut End::Guest(&mut reader));
            let (there, _) = crossing::run(from, to, ways, plan(cell, 200))?;
            let (from, _) = lane.totals("vm")?;
            ensure!((from.zero_copied > 0) == (cell.frames.most() >= 4096), "{from:?}");
            Ok(there)
        }
        _ => {
            let (device, far, window) = match on_wire {
                // libpcap's ring holds about 30 frames, those that go out with those that come in.
                true => ("vdev:net_pcap0,rx_iface_in=far0,tx_iface=far0", "host0", 8),
                false => ("vdev:net_tap0,iface=tap0", "tap0", 64),
            };
            let spec = port(lane, "vm", device);
            lane.add(&spec)?;
            let mut guest = Guest::start(options(cell, &spec.socket))?;
            let (there, back) = crossing::run(
                &mut End::Guest(&mut guest),
                &mut End::Far(&far_end(net, far)?),
                ways,
                plan(cell, window),
            )?;
            counted(lane, "vm", there > 0, back > 0)?;
            Ok(there + back)
        }
    }
}

/// What came in went out, nothing was dropped, and something went the ways it should.
fn counted(lane: &mut Lane, port: &str, from_guest: bool, to_guest: bool) -> Result<()> {
    let (from, to) = lane.wait_totals(port, |from, to| from.received == from.sent && to.received == to.sent)?;
    ensure!(from.drops.total() + to.drops.total() == 0, "{from:?} {to:?}");
    ensure!((from.sent > 0, to.sent > 0) == (from_guest, to_guest), "{from:?} {to:?}");
    Ok(())
}

#[test]
fn every_cell_of_the_benchmark_carries_every_byte() -> Result<()> {
    needs!(Root, Lane, Program("ip"), Program("ethtool"));
    let (net, folder) = (outside()?, paths::scratch()?);
    let netns = Some(net.name().to_string());
    let options = lane::Options { memory_mib: 256, netns, ..lane::Options::new("benchcells") };
    let mut lane = Lane::start(options, folder.path())?;
    let cells = Cell::all();
    let mut frames = 0;
    for cell in &cells {
        let arrived = pass(&mut lane, &net, folder.path(), cell).with_context(|| cell.name())?;
        ensure!(arrived > 0, "{}: nothing was sent", cell.name());
        frames += arrived;
        lane.remove("vm")?;
    }
    println!("{} cells, {frames} frames, every byte as it was sent", cells.len());
    Ok(())
}
