//! The relay between a guest's rings and a device's queues, round by round: which ring feeds which queue, and what becomes
//! of frames when either side changes.

use ringspan_dataplane::nic::{Burst, Device, DeviceConfig, Eal, QueuePair, RxQueue};
use ringspan_dataplane::offload::Offloads;
use ringspan_dataplane::relay::Offence;
use ringspan_dataplane::ring::RingFeatures;
use ringspan_testkit::guest::{self, Kind, Shape, Transmitter};

use crate::alone::{PLAIN, alone_over_both, open, wait_for};
use crate::scene::{HEADER, MODERN, Scene, marks, send};

#[test]
fn a_port_whose_memory_was_cut_off_goes_on_with_the_next_guest() {
    alone_over_both("relay::a_port_whose_memory_was_cut_off_goes_on_with_the_next_guest", |eal, kind| {
        let scene = Scene::new(eal, kind, open("vdev:net_ring0", &PLAIN).unwrap());
        let map = scene.map();
        scene.share(&map);
        let mut tx = scene.transmitter(1514);
        scene.start(1, tx.ring(), &map);
        scene.memory.truncate(0).unwrap();
        let fault = scene.faults.recv().unwrap();
        assert_eq!(fault.offence, Offence::MemoryGone);
        // The front-end goes, and with it its rings, before its memory is let go of.
        scene.stop(1);
        for _ in 0..100 {
            scene.with(|_| ());
        }
        assert!(!scene.is_broken(), "nothing runs that could be broken");
        assert!(scene.faults.is_empty(), "told twice");
    });
}

#[test]
fn every_queue_feeds_a_ring_that_runs_and_none_that_does_not() {
    alone_over_both("relay::every_queue_feeds_a_ring_that_runs_and_none_that_does_not", |eal, kind| {
        // What is sent on a queue of a software ring comes back on the same queue.
        let scene = Scene::new(eal, kind, open("vdev:net_ring0", &DeviceConfig { queues: 2, ..PLAIN }).unwrap());
        let map = scene.map();
        scene.share(&map);
        let (mut tx, mut rx): (Vec<_>, Vec<_>) = (0..3).map(|_| (scene.transmitter(1514), scene.receiver())).unzip();

        // Three pairs send on two queues. Only the last receives, so that both queues feed it.
        scene.start(4, rx[2].ring(), &map);
        for (pair, tx) in tx.iter_mut().enumerate() {
            scene.start(2 * pair + 1, tx.ring(), &map);
            send(tx, 10, pair as u8);
        }
        let mut came = Vec::new();
        wait_for("30 frames at the only ring", || {
            came.extend(marks(&mut rx[2]));
            came.len() == 30
        });
        came.sort_unstable();
        assert_eq!(came, [[0; 10], [1; 10], [2; 10]].concat());
        let counters = scene.counters();
        assert_eq!(counters.from_guest.iter().map(|pair| pair.sent).collect::<Vec<_>>(), [10, 10, 10]);
        assert_eq!(counters.to_guest.iter().map(|queue| queue.sent).collect::<Vec<_>>(), [20, 10]);

        // The first receives too: queue 0 is its own now, and queue 1 goes on to the other.
        scene.start(0, rx[0].ring(), &map);
        tx.iter_mut().enumerate().for_each(|(pair, tx)| send(tx, 10, pair as u8));
        let mut came = [Vec::new(), Vec::new()];
        wait_for("30 frames at two rings", || {
            came[0].extend(marks(&mut rx[0]));
            came[1].extend(marks(&mut rx[2]));
            came[0].len() + came[1].len() == 30
        });
        assert_eq!(came[1], [1; 10]);

        // Without a ring that receives, frames are counted; the rings that were stopped are not touched.
        scene.stop(0);
        scene.stop(4);
        send(&mut tx[1], 10, 1);
        wait_for("10 frames without a ring", || scene.counters().to_guest[1].drops.no_ring == 10);
        assert_eq!((marks(&mut rx[0]), marks(&mut rx[2])), (vec![], vec![]));
    });
}

/// A scene whose device gives nothing, and takes what the software ring takes of which the other end is returned.
fn one_way(eal: Eal, kind: Kind) -> (Scene, RxQueue, Device) {
    let (ring, mut ring_queues) = open("vdev:net_ring0", &PLAIN).unwrap();
    let (silent, mut queues) = open("vdev:net_null0,no-rx=1", &PLAIN).unwrap();
    let (QueuePair { rx: silence, .. }, QueuePair { rx, tx }) = (queues.remove(0), ring_queues.remove(0));
    (Scene::new(eal, kind, (silent, vec![QueuePair { rx: silence, tx }])), rx, ring)
}

#[test]
fn what_a_full_device_does_not_take_is_counted_when_its_time_or_its_ring_is_over() {
    alone_over_both(
        "relay::what_a_full_device_does_not_take_is_counted_when_its_time_or_its_ring_is_over",
        |eal, kind| {
            let (scene, _rx, _ring) = one_way(eal, kind);
            let map = scene.map();
            scene.share(&map);
            let mut tx = scene.transmitter(1514);
            scene.start(1, tx.ring(), &map);
            let mut frames = 0;
            wait_for("drops by the device", || {
                frames += tx.transmit(32, |_, room| {
                    room.put(0, &[1; 60]);
                    60
                });
                scene.counters().from_guest[0].drops.nic_full > 0
            });
            // In the middle of it.
            scene.stop(1);
            tx.reclaim();
            let counters = scene.counters().from_guest[0];
            assert_eq!(counters.received, frames as u64 - tx.in_flight() as u64);
            assert_eq!(counters.received, counters.sent + counters.drops.nic_full);
            assert_eq!((counters.received_bytes, counters.sent_bytes), (60 * counters.received, 60 * counters.sent));
        },
    );
}

#[test]
fn pairs_that_share_a_queue_share_its_room() {
    alone_over_both("relay::pairs_that_share_a_queue_share_its_room", |eal, kind| {
        let (scene, mut rx, _ring) = one_way(eal, kind);
        let map = scene.map();
        scene.share(&map);
        let mut tx: Vec<_> = (0..3).map(|_| scene.transmitter(1514)).collect();
        for (pair, tx) in tx.iter_mut().enumerate() {
            scene.start(2 * pair + 1, tx.ring(), &map);
        }
        // Each pair always has frames, and the device takes fewer than one of them could send.
        let came = scene.with(move |running| {
            let relay = &mut running.relays[0];
            let (mut came, mut burst) = ([0u64; 3], Burst::new());
            for _ in 0..3000 {
                for (pair, tx) in tx.iter_mut().enumerate() {
                    tx.transmit(64.min(256 - tx.in_flight()), |_, room| {
                        room.put(0, &[pair as u8; 60]);
                        60
                    });
                    tx.reclaim();
                }
                relay.run();
                rx.receive(&mut burst);
                burst.truncate(20);
                burst.iter().for_each(|frame| came[usize::from(frame.data()[0])] += 1);
                burst.clear();
            }
            came
        });
        let most = came.iter().max().unwrap();
        assert!(came.iter().all(|pair| *pair > most / 2), "frames of each pair: {came:?}");
    });
}

#[test]
fn after_a_change_of_the_mtu_the_longest_frame_is_the_new_one() {
    alone_over_both("relay::after_a_change_of_the_mtu_the_longest_frame_is_the_new_one", |eal, kind| {
        let mut scene = Scene::new(eal, kind, open("vdev:net_ring0", &PLAIN).unwrap());
        let map = scene.map();
        scene.share(&map);
        let mut tx = scene.transmitter(9300);
        scene.start(1, tx.ring(), &map);
        let mut taken = 0;
        for (mtu, longest) in [(1500, 1522), (9216, 9238), (68, 90)] {
            let queues = scene.shares.take_queues().unwrap();
            let queues = scene.device.reconfigure(queues, &DeviceConfig { mtu, ..PLAIN }).unwrap();
            let pool = scene.device.pool().clone();
            scene.shares.give_queues(queues, pool, mtu, scene.device.lending().clone()).unwrap();
            let before = scene.counters().from_guest[0];
            // More of them than there is spare room for in one burst.
            for len in [longest, longest + 1].repeat(50) {
                assert_eq!(
                    tx.transmit(1, |_, room| {
                        room.put(0, &vec![7; len]);
                        len
                    }),
                    1
                );
            }
            taken += 100;
            wait_for("100 frames", || scene.counters().from_guest[0].received == taken);
            wait_for("what the device gives back", || {
                let counters = scene.counters();
                counters.to_guest[0].received == counters.from_guest[0].sent
            });
            let now = scene.counters().from_guest[0];
            assert_eq!((now.sent - before.sent, now.drops.too_long - before.drops.too_long), (50, 50), "MTU {mtu}");
        }
        assert!(!scene.is_broken());
    });
}

#[test]
fn a_port_that_was_closed_takes_nothing_on_from_a_session_that_is_late() {
    alone_over_both("relay::a_port_that_was_closed_takes_nothing_on_from_a_session_that_is_late", |eal, kind| {
        let scene = Scene::new(eal, kind, open("vdev:net_null0", &PLAIN).unwrap());
        let map = scene.map();
        scene.share(&map);
        scene.shares.close().unwrap();
        scene.start(1, scene.transmitter(1514).ring(), &map);
        assert_eq!(scene.shares.status().len(), 0);
        assert_eq!((scene.workers[0].shares(), scene.with(|running| running.relays.len())), (0, 0));
    });
}

#[test]
fn a_ring_that_stops_with_much_left_to_be_cut_stops_soon_and_accounts_for_all_of_it() {
    alone_over_both(
        "relay::a_ring_that_stops_with_much_left_to_be_cut_stops_soon_and_accounts_for_all_of_it",
        |eal, kind| {
            let scene = Scene::on(eal, kind, open("vdev:net_null0,no-rx=1", &PLAIN).unwrap(), 2);
            let map = scene.map();
            scene.share(&map);
            let mut tx = Transmitter::new(scene.ring(16), Shape::Whole, true, HEADER, 60_000).unwrap();
            let features = RingFeatures { offloads: Offloads::CSUM.with(Offloads::HOST_TSO4), ..MODERN };
            // TCP over IPv4; each byte of payload is to be a segment of its own.
            let mut head = [0; 54];
            (head[12], head[14], head[23], head[46]) = (8, 0x45, 6, 5 << 4);
            head[16..18].copy_from_slice(&59_986u16.to_be_bytes());
            let header =
                guest::NetHeader { gso_type: 1, gso_size: 1, hdr_len: 54, ..guest::NetHeader::checksum(34, 16) };
            wait_for("a stop before all was cut", || {
                scene.start_with(features, 1, tx.ring(), &map);
                tx.transmit(15, |_, room| {
                    room.put_header(&header);
                    room.put(0, &head);
                    60_000
                });
                wait_for("the first frames", || {
                    tx.reclaim();
                    tx.in_flight() < 15
                });
                // Half-cut frames go with their ring from worker to worker.
                for worker in [1, 0, 1, 0] {
                    scene.shares.move_share(0, worker).unwrap();
                }
                scene.stop(1);
                let counters = scene.counters().from_guest[0];
                assert_eq!(counters.received, counters.sent + counters.drops.total(), "{counters:?}");
                assert_eq!(counters.drops.total(), counters.drops.nic_full, "{counters:?}");
                // A device that takes everything has no other reason: time was up.
                counters.drops.nic_full > 0
            });
        },
    );
}
