//! The Rust guest against DPDK's own vhost-user back-end: what the guest says and does is right where somebody else's
//! back-end understands it.

use ringspan_testkit::guest::loopback::{self, Lengths, Plan};
use ringspan_testkit::guest::{EnableOrder, Guest, Kind, Options, Role, Shape, feature};
use ringspan_testkit::testpmd::{self, Testpmd};

/// A testpmd that sends back on `socket` what came in there, and the guest's options for it.
fn returning(name: &str, queues: u16, server: bool) -> (Testpmd, Options, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vhost.sock");
    let client = u8::from(!server);
    let count = queues.to_string();
    let options = testpmd::Options::new(format!("guest-{name}-{}", std::process::id()))
        .device(format!("net_vhost0,iface={},queues={queues},client={client}", socket.display()))
        .arguments(["--forward-mode=io", "--rxq", &count, "--txq", &count, "--total-num-mbufs=8192"])
        .arguments(["--max-pkt-len=9600", "--mbuf-size=10240"]);
    let mut testpmd = Testpmd::start(&options).unwrap();
    testpmd.command("start").unwrap();
    let role = if server { Role::Connect } else { Role::Listen };
    (testpmd, Options { role, ..Options::new(socket).pairs(queues) }, folder)
}

fn check(guest: &mut Guest, plan: Plan) {
    for passed in loopback::run(guest, plan).unwrap() {
        assert_eq!(passed.frames, plan.frames);
    }
}

/// Each layout with each of these left out or added.
fn every_layout(name: &str, kind: Kind, changes: &[(u64, u64)]) {
    let (_testpmd, options, _folder) = returning(name, 1, true);
    let options = options.over(kind);
    for &(without, with) in changes {
        for shape in [Shape::Whole, Shape::Cut(1), Shape::HeaderApart, Shape::Mixed(5)] {
            let options = Options { tx_shape: shape, ..options.clone().without(without).require(with) };
            let mut guest = Guest::start(options).unwrap();
            check(&mut guest, Plan::new(20_000, 128));
        }
    }
}

#[test]
fn every_layout_comes_back_byte_for_byte() {
    let changes = [(0, 0), (feature::EVENT_IDX, 0), (feature::MRG_RXBUF, 0), (feature::INDIRECT_DESC, 0)];
    every_layout("layouts", Kind::Split, &changes);
}

#[test]
fn every_layout_in_packed_rings() {
    let changes = [(0, 0), (feature::EVENT_IDX, 0), (feature::MRG_RXBUF, 0), (feature::INDIRECT_DESC, 0)];
    every_layout("layouts-p", Kind::Packed, &changes);
}

#[test]
fn every_layout_in_order() {
    let changes = [(0, feature::IN_ORDER), (feature::MRG_RXBUF | feature::INDIRECT_DESC, feature::IN_ORDER)];
    every_layout("layouts-o", Kind::Split, &changes);
}

#[test]
fn every_layout_in_packed_rings_in_order() {
    let changes = [(0, feature::IN_ORDER), (feature::MRG_RXBUF | feature::INDIRECT_DESC, feature::IN_ORDER)];
    every_layout("layouts-po", Kind::Packed, &changes);
}

#[test]
fn the_legacy_header_and_late_enabling_work() {
    let (_testpmd, options, _folder) = returning("legacy", 1, true);
    let without = feature::VERSION_1 | feature::MRG_RXBUF | feature::ANY_LAYOUT;
    let options = Options { enable: EnableOrder::Late, ..options.without(without) };
    let mut guest = Guest::start(options).unwrap();
    check(&mut guest, Plan::new(20_000, 64));
}

#[test]
fn four_pairs_each_get_back_their_own() {
    let (_testpmd, options, _folder) = returning("pairs", 4, true);
    for kind in [Kind::Split, Kind::Packed] {
        let options = Options { regions: 3, region_gap: 1 << 30, ..options.clone().over(kind) };
        check(&mut Guest::start(options).unwrap(), Plan::new(50_000, 200));
    }
}

#[test]
fn a_guest_that_listens_is_found() {
    let (_testpmd, options, _folder) = returning("listens", 1, false);
    let mut guest = Guest::start(options).unwrap();
    check(&mut guest, Plan::new(20_000, 128));
}

#[test]
fn a_frame_may_take_several_buffers_and_regions() {
    let (_testpmd, options, _folder) = returning("jumbo", 1, true);
    for kind in [Kind::Split, Kind::Packed] {
        let options = Options { tx_room: 9000, rx_room: 1000, regions: 7, ..options.clone().over(kind) };
        let mut guest = Guest::start(Options { tx_shape: Shape::Cut(7), ..options }).unwrap();
        check(&mut guest, Plan { lengths: Lengths::Between(60, 9000), ..Plan::new(20_000, 128) });
    }
}

#[test]
fn a_packed_ring_of_any_size_wraps() {
    let (_testpmd, options, _folder) = returning("sizes", 1, true);
    for ring_size in [64, 100, 255, 1024] {
        let options = Options { ring_size, tx_shape: Shape::Mixed(5), ..options.clone().over(Kind::Packed) };
        let mut guest = Guest::start(options.without(feature::INDIRECT_DESC)).unwrap();
        check(&mut guest, Plan::new(20_000, 60));
    }
}

#[test]
fn a_reset_guest_starts_again() {
    let (_testpmd, options, _folder) = returning("reset", 1, true);
    for kind in [Kind::Split, Kind::Packed] {
        let mut guest = Guest::start(options.clone().over(kind)).unwrap();
        check(&mut guest, Plan::new(5_000, 128));
        guest.reset().unwrap();
        check(&mut guest, Plan::new(5_000, 128));
    }
}

#[test]
fn rings_go_on_where_the_last_connection_left_them() {
    let (_testpmd, options, _folder) = returning("reconnect", 1, true);
    for kind in [Kind::Split, Kind::Packed] {
        let mut guest = Guest::start(options.clone().over(kind)).unwrap();
        check(&mut guest, Plan::new(5_000, 128));
        guest.stop().unwrap();
        guest.reconnect().unwrap();
        check(&mut guest, Plan::new(5_000, 128));
    }
    // Of a split ring they know it without being told.
    let mut guest = Guest::start(options).unwrap();
    check(&mut guest, Plan::new(5_000, 128));
    guest.reconnect().unwrap();
    check(&mut guest, Plan::new(5_000, 128));
}
