//! Every byte of every frame, through a port whose device returns what it gets (DPDK's net_ring): in order, none lost,
//! none doubled, and counted by the lane as the guest counted them.

use anyhow::{Result, ensure};
use ringspan_protocol::QueueCounters;
use ringspan_testkit::guest::loopback::{self, Lengths, Passed, Plan};
use ringspan_testkit::guest::{EnableOrder, Guest, Kind, Options, Shape, feature};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::{needs, over_both, paths};

over_both!(
    ten_million_frames_come_back_byte_for_byte,
    every_layout_and_feature_comes_back_byte_for_byte,
    frames_of_nine_thousand_bytes_fit_where_the_mtu_allows_them,
    four_pairs_on_four_queues_and_on_one,
    both_orders_of_enabling_and_both_ways_of_giving_memory_work,
    rings_of_any_size_work,
    a_guest_may_come_and_go_and_reset,
    a_guest_with_its_memory_in_hugepages_is_served,
);

fn lane(folder: &tempfile::TempDir, name: &str) -> Result<Lane> {
    Lane::start(lane::Options { memory_mib: 256, ..lane::Options::new(name) }, folder.path())
}

/// Sends the plan through the guest, then compares what the lane counted since `before` with what the guest did.
fn check(lane: &mut Lane, port: &str, guest: &mut Guest, plan: Plan) -> Result<Vec<Passed>> {
    let before = lane.totals(port)?;
    let passed = loopback::run(guest, plan)?;
    let frames: u64 = passed.iter().map(|p| p.frames).sum();
    let bytes: u64 = passed.iter().map(|p| p.bytes).sum();
    let since = |now: &QueueCounters, before: &QueueCounters| {
        (
            now.received - before.received,
            now.received_bytes - before.received_bytes,
            now.sent - before.sent,
            now.sent_bytes - before.sent_bytes,
        )
    };
    let wanted = (frames, bytes, frames, bytes);
    let (from, to) =
        lane.wait_totals(port, |from, to| since(from, &before.0) == wanted && since(to, &before.1) == wanted)?;
    ensure!((from.drops, to.drops) == (before.0.drops, before.1.drops), "drops: {from:?} {to:?}");
    Ok(passed)
}

fn ten_million_frames_come_back_byte_for_byte(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane(&folder, "millions")?;
    let socket = lane.add_port("vm", "vdev:net_ring0", 1)?;
    let mut guest = Guest::start(Options { ring_size: 1024, ..Options::new(socket).over(kind) })?;
    let frames = 10_000_000;
    let passed = check(&mut lane, "vm", &mut guest, Plan::new(frames, 900))?;
    assert_eq!(passed[0].frames, frames);
    Ok(())
}

fn every_layout_and_feature_comes_back_byte_for_byte(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane(&folder, "layouts")?;
    let socket = lane.add_port("vm", "vdev:net_ring0", 1)?;
    let legacy = feature::VERSION_1 | feature::MRG_RXBUF | feature::ANY_LAYOUT;
    for without in [0, feature::EVENT_IDX, feature::MRG_RXBUF, feature::INDIRECT_DESC, feature::EVENT_IDX | legacy] {
        if kind == Kind::Packed && without & feature::VERSION_1 != 0 {
            // A legacy device has no packed rings.
            continue;
        }
        for shape in [Shape::Whole, Shape::Cut(1), Shape::HeaderApart, Shape::Cut(16), Shape::Mixed(9)] {
            let options =
                Options { tx_shape: shape, rx_shape: shape, ..Options::new(&socket).over(kind).without(without) };
            let mut guest = Guest::start(options)?;
            let plan = Plan::new(20_000, guest.rx[0].buffers());
            check(&mut lane, "vm", &mut guest, plan)
                .map_err(|error| error.context(format!("{shape:?} without {without:#x}")))?;
            let uncounted = guest.rx[0].counts().uncounted;
            ensure!(uncounted == 0, "{shape:?} without {without:#x}: {uncounted} headers without num_buffers of 1");
        }
    }
    Ok(())
}

fn frames_of_nine_thousand_bytes_fit_where_the_mtu_allows_them(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane(&folder, "jumbo")?;
    let spec = ringspan_protocol::PortSpec { mtu: 9000, ..lane.spec("vm", "vdev:net_ring0", 1) };
    lane.add(&spec)?;
    // In many small buffers, in regions that touch and regions that do not, and in one large buffer.
    let many = Options { rx_room: 1500, ..Options::new(&spec.socket).over(kind) };
    let scattered = Options { regions: 5, tx_shape: Shape::Mixed(6), ..many.clone() };
    let apart = Options { regions: 4, region_gap: 1 << 32, ..many.clone() };
    let one = Options { rx_room: 9014, ..many.clone().without(feature::MRG_RXBUF) };
    for options in [many, scattered, apart, one] {
        let mut guest = Guest::start(Options { tx_room: 9014, ..options })?;
        check(&mut lane, "vm", &mut guest, Plan { lengths: Lengths::Between(60, 9014), ..Plan::new(50_000, 250) })?;
    }
    Ok(())
}

fn four_pairs_on_four_queues_and_on_one(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane(&folder, "pairs")?;
    let socket = lane.add_port("four", "vdev:net_ring0", 4)?;
    let mut guest = Guest::start(Options::new(socket).over(kind).pairs(4))?;
    for passed in check(&mut lane, "four", &mut guest, Plan::new(100_000, 200))? {
        assert_eq!(passed.frames, 100_000);
    }
    drop(guest);
    // One device queue returns all frames to one ring or another; with a single enabled pair that is the guest's first.
    let socket = lane.add_port("one", "vdev:net_ring1", 1)?;
    let mut guest = Guest::start(Options { enabled_pairs: 1, ..Options::new(socket).over(kind).pairs(4) })?;
    check(&mut lane, "one", &mut guest, Plan::new(100_000, 200))?;
    Ok(())
}

fn both_orders_of_enabling_and_both_ways_of_giving_memory_work(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane(&folder, "orders")?;
    let socket = lane.add_port("vm", "vdev:net_ring0", 1)?;
    for enable in [EnableOrder::Early, EnableOrder::Late] {
        for slots in [0, feature::PROTOCOL_CONFIGURE_MEM_SLOTS] {
            for acknowledged in [0, feature::PROTOCOL_REPLY_ACK] {
                let protocol_features = feature::PROTOCOL_MQ | slots | acknowledged;
                let options = Options { enable, protocol_features, regions: 3, ..Options::new(&socket).over(kind) };
                let mut guest = Guest::start(options)?;
                check(&mut lane, "vm", &mut guest, Plan::new(2_000, 128))
                    .map_err(|error| error.context(format!("{enable:?}, protocol {protocol_features:#x}")))?;
            }
        }
    }
    Ok(())
}

fn rings_of_any_size_work(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane(&folder, "sizes")?;
    let socket = lane.add_port("vm", "vdev:net_ring0", 1)?;
    for ring_size in [2, 64, 256, 1024, 32768] {
        let mut guest = Guest::start(Options { ring_size, ..Options::new(&socket).over(kind) })?;
        let window = usize::from(ring_size).min(900);
        check(&mut lane, "vm", &mut guest, Plan::new(40_000.min(2_000 * u64::from(ring_size)), window))
            .map_err(|error| error.context(format!("a ring of {ring_size}")))?;
    }
    Ok(())
}

fn a_guest_may_come_and_go_and_reset(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = lane(&folder, "again")?;
    let socket = lane.add_port("vm", "vdev:net_ring0", 1)?;
    let mut guest = Guest::start(Options::new(&socket).over(kind))?;
    for _ in 0..20 {
        check(&mut lane, "vm", &mut guest, Plan::new(500, 128))?;
        guest.reset()?;
        check(&mut lane, "vm", &mut guest, Plan::new(500, 128))?;
        guest.reconnect()?;
    }
    drop(guest);
    for _ in 0..20 {
        let mut guest = Guest::start(Options::new(&socket).over(kind))?;
        check(&mut lane, "vm", &mut guest, Plan::new(500, 128))?;
    }
    Ok(())
}

fn a_guest_with_its_memory_in_hugepages_is_served(kind: Kind) -> Result<()> {
    needs!(Root, Lane, HugePages(64));
    let folder = paths::scratch()?;
    let mut lane = lane(&folder, "huge")?;
    let socket = lane.add_port("vm", "vdev:net_ring0", 1)?;
    let mut guest = Guest::start(Options { huge_pages: true, regions: 2, ..Options::new(&socket).over(kind) })?;
    check(&mut lane, "vm", &mut guest, Plan::new(100_000, 200))?;
    Ok(())
}
