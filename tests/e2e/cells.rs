//! Every byte of every frame in every cell of the benchmark's matrix: what is fast must first be right.
//!
//! A cell is a direction, a mix of lengths, a ring format and its features, a layout of buffers, a number of pairs and a ring
//! size. Each passes few frames, but all of them are compared, their order within a queue is checked, and the lane's
//! counters must say the same as the two ends: in = out + drops.

use anyhow::{Context, Result, ensure};
use ringspan_protocol::PortSpec;
use ringspan_testkit::far_end::FarEnd;
use ringspan_testkit::guest::crossing::{self, End, Ways};
use ringspan_testkit::guest::loopback::{self, ETHERTYPE, Lengths, Plan};
use ringspan_testkit::guest::{Guest, Kind, Options, Shape, feature};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::netns::Netns;
use ringspan_testkit::{needs, over_both, paths};

over_both!(
    loop_through_the_device,
    loop_through_the_device_with_four_pairs,
    between_two_guests,
    between_two_guests_with_four_pairs,
    to_and_from_a_tap,
    to_and_from_a_tap_with_four_pairs,
    to_and_from_a_wire_of_large_frames,
);

const PAIRS: u16 = 4;
/// Longest frame where the MTU is 9000.
const JUMBO: usize = 9014;

/// What a guest negotiates and how it lays out its buffers.
#[derive(Debug, Clone, Copy)]
struct Cell {
    kind: Kind,
    in_order: bool,
    event_idx: bool,
    mergeable: bool,
    indirect: bool,
    shape: Shape,
    ring_size: u16,
}

impl Cell {
    /// All of them for one ring format.
    fn all(kind: Kind) -> Vec<Self> {
        let mut cells = vec![];
        for in_order in [false, true] {
            for event_idx in [false, true] {
                for mergeable in [false, true] {
                    for (indirect, shape) in
                        [(false, Shape::Whole), (false, Shape::Mixed(4)), (true, Shape::Mixed(4)), (true, Shape::Whole)]
                    {
                        for ring_size in [256, 1024] {
                            cells.push(Self { kind, in_order, event_idx, mergeable, indirect, shape, ring_size });
                        }
                    }
                }
            }
        }
        cells
    }

    /// The guest's options for it, for frames of up to `longest` bytes.
    fn options(&self, socket: &std::path::Path, pairs: u16, longest: usize) -> Options {
        let flag = |wanted: bool, feature: u64| if wanted { 0 } else { feature };
        let without = flag(self.event_idx, feature::EVENT_IDX)
            | flag(self.mergeable, feature::MRG_RXBUF)
            | flag(self.indirect, feature::INDIRECT_DESC);
        let options = Options::new(socket).over(self.kind).pairs(pairs).without(without);
        Options {
            ring_size: self.ring_size,
            tx_shape: self.shape,
            rx_shape: self.shape,
            tx_room: longest,
            // One buffer for all, or several for a large frame.
            rx_room: if self.mergeable { 1530 } else { longest },
            ..options.require(if self.in_order { feature::IN_ORDER } else { 0 })
        }
    }

    fn guest(&self, socket: &std::path::Path, pairs: u16, longest: usize) -> Result<Guest> {
        Guest::start(self.options(socket, pairs, longest))
    }
}

/// The matrix's lengths where frames may be as long as `longest`; and any length, as it comes.
fn lengths(longest: usize) -> Vec<Lengths> {
    let each = [60, 252, 1514, 8996].into_iter().filter(|&length| length <= longest).map(Lengths::Each);
    each.chain([Lengths::Imix, Lengths::Between(60, longest)]).collect()
}

fn lane(name: &str, folder: &tempfile::TempDir, net: Option<&Netns>) -> Result<Lane> {
    let netns = net.map(|net| net.name().to_string());
    Lane::start(lane::Options { memory_mib: 256, netns, ..lane::Options::new(name) }, folder.path())
}

/// Frames of a test that a port must have counted by now: from the guest, to the guest.
fn counted(lane: &mut Lane, port: &str, from_guest: u64, to_guest: u64) -> Result<()> {
    let (from, to) = lane.wait_totals(port, |from, to| {
        from.received + to.received >= from_guest + to_guest
            && from.received == from.sent + from.drops.total()
            && to.received == to.sent + to.drops.total()
    })?;
    ensure!((from.received, from.drops.total()) == (from_guest, 0), "{from_guest} from the guest: {from:?}");
    ensure!((to.received, to.drops.total()) == (to_guest, 0), "{to_guest} to the guest: {to:?}");
    Ok(())
}

fn loop_of(kind: Kind, pairs: u16, frames: u64) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane("loop", &folder, None)?;
    let spec = PortSpec { mtu: 9000, ..lane.spec("vm", "vdev:net_ring0", pairs) };
    lane.add(&spec)?;
    let mut total = 0;
    for cell in Cell::all(kind) {
        let mut guest = cell.guest(&spec.socket, pairs, JUMBO)?;
        let window = guest.rx[0].buffers().min(200);
        for lengths in lengths(JUMBO) {
            let passed = loopback::run(&mut guest, Plan { lengths, ..Plan::new(frames, window) });
            total += passed.with_context(|| format!("{cell:?}, {lengths:?}"))?.iter().map(|p| p.frames).sum::<u64>();
            counted(&mut lane, "vm", total, total).with_context(|| format!("{cell:?}, {lengths:?}"))?;
        }
    }
    Ok(())
}

fn loop_through_the_device(kind: Kind) -> Result<()> {
    loop_of(kind, 1, 600)
}

fn loop_through_the_device_with_four_pairs(kind: Kind) -> Result<()> {
    loop_of(kind, PAIRS, 300)
}

fn between_guests(kind: Kind, pairs: u16, frames: u64) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane("patch", &folder, None)?;
    let a = PortSpec { mtu: 9000, ..lane.spec("a", "patch:cable/a", pairs) };
    let b = PortSpec { mtu: 9000, ..lane.spec("b", "patch:cable/b", pairs) };
    lane.add(&a)?;
    lane.add(&b)?;
    let cells = Cell::all(kind);
    let mut total = (0, 0);
    // The other guest is as different as can be.
    let others = Cell::all(if kind == Kind::Split { Kind::Packed } else { Kind::Split });
    for (cell, other) in cells.iter().zip(others.iter().rev()) {
        let mut first = cell.guest(&a.socket, pairs, JUMBO)?;
        let mut second = other.guest(&b.socket, pairs, JUMBO)?;
        let window = first.rx[0].buffers().min(second.rx[0].buffers()).min(200) / 6;
        for (lengths, ways) in lengths(JUMBO).into_iter().zip([Ways::Both, Ways::There, Ways::Back].iter().cycle()) {
            let plan = Plan { lengths, ..Plan::new(frames, window) };
            let (first, second) = (&mut End::Guest(&mut first), &mut End::Guest(&mut second));
            let passed = crossing::run(first, second, *ways, plan);
            let (there, back) = passed.with_context(|| format!("{cell:?}, {other:?}, {lengths:?}, {ways:?}"))?;
            total = (total.0 + there, total.1 + back);
            counted(&mut lane, "a", total.0, total.1).with_context(|| format!("{cell:?}, {lengths:?}"))?;
            counted(&mut lane, "b", total.1, total.0).with_context(|| format!("{other:?}, {lengths:?}"))?;
        }
    }
    Ok(())
}

fn between_two_guests(kind: Kind) -> Result<()> {
    between_guests(kind, 1, 300)
}

fn between_two_guests_with_four_pairs(kind: Kind) -> Result<()> {
    between_guests(kind, PAIRS, 100)
}

/// Through a device of the kernel's, whose far end is `interface`.
fn to_and_from(
    kind: Kind,
    net: &Netns,
    (device, interface): (&str, &str),
    pairs: u16,
    longest: usize,
    window: usize,
) -> Result<()> {
    let folder = paths::scratch()?;
    let mut lane = lane("nic", &folder, Some(net))?;
    let mtu = (longest - 14) as u16;
    // With several pairs all but small frames are read where the guest wrote them.
    let zero_copy_from = (pairs > 1).then_some(200);
    let spec = PortSpec { mtu, zero_copy_from, ..lane.spec("vm", device, pairs) };
    lane.add(&spec)?;
    let far = FarEnd::open(net, interface, ETHERTYPE)?;
    let mut total = (0, 0);
    for cell in Cell::all(kind) {
        let mut guest = cell.guest(&spec.socket, pairs, longest)?;
        for (lengths, ways) in lengths(longest).into_iter().zip([Ways::Both, Ways::There, Ways::Back].iter().cycle()) {
            let plan = Plan { lengths, ..Plan::new(100, window) };
            let passed = crossing::run(&mut End::Guest(&mut guest), &mut End::Far(&far), *ways, plan);
            let (there, back) = passed.with_context(|| format!("{cell:?}, {lengths:?}, {ways:?}"))?;
            total = (total.0 + there, total.1 + back);
            counted(&mut lane, "vm", total.0, total.1).with_context(|| format!("{cell:?}, {lengths:?}"))?;
        }
    }
    Ok(())
}

fn through_a_tap(kind: Kind, pairs: u16) -> Result<()> {
    needs!(Root, Lane, Program("ip"));
    let net = Netns::new("cells")?;
    net.tap("tap0", "192.0.2.1/24", 1500)?;
    to_and_from(kind, &net, ("vdev:net_tap0,iface=tap0", "tap0"), pairs, 1514, 64)
}

fn to_and_from_a_tap(kind: Kind) -> Result<()> {
    through_a_tap(kind, 1)
}

fn to_and_from_a_tap_with_four_pairs(kind: Kind) -> Result<()> {
    through_a_tap(kind, PAIRS)
}

fn to_and_from_a_wire_of_large_frames(kind: Kind) -> Result<()> {
    needs!(Root, Lane, Program("ip"), Program("ethtool"));
    let net = Netns::new("cells")?;
    net.wire("host0", "far0", "192.0.2.1/24", 9000)?;
    // libpcap's ring holds about 30 frames, those that go out with those that come in.
    to_and_from(kind, &net, ("vdev:net_pcap0,rx_iface_in=far0,tx_iface=far0", "host0"), 1, JUMBO, 8)
}
