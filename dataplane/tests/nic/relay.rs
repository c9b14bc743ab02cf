//! The relay between a guest's rings and a device's queues, round by round: which ring feeds which queue, and what becomes
//! of frames when either side changes.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use crossbeam::channel::unbounded;
use ringspan_dataplane::journal::Journal;
use ringspan_dataplane::memory::GuestMap;
use ringspan_dataplane::nic::{Burst, Device, DeviceConfig, Eal, QueuePair, RxQueue};
use ringspan_dataplane::relay::{Fault, Offence, Relay};
use ringspan_dataplane::ring::{Ring, RingConfig, RingFeatures};
use ringspan_dataplane::worker::{Running, Worker};
use ringspan_protocol::PortCounters;
use ringspan_testkit::guest::{self, Layout, Memory, Receiver, Shape, Transmitter};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::alone::{PLAIN, alone, open, wait_for};

const HEADER: usize = 12;
const MODERN: RingFeatures =
    RingFeatures { event_idx: false, indirect: true, mergeable: true, version_1: true, packed: false, in_order: false };

/// A worker with one relay, and a guest's memory for its rings.
struct Scene {
    worker: Worker,
    journal: Arc<Journal>,
    faults: crossbeam::channel::Receiver<Fault>,
    memory: Arc<Memory>,
    device: Device,
    _folder: tempfile::TempDir,
}

impl Scene {
    fn new(eal: Eal, (device, queues): (Device, Vec<QueuePair>)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), &"vm1".parse().unwrap()).unwrap();
        let (sender, faults) = unbounded();
        let relay = Relay::new(1, queues, device.pool().clone(), 1500, Arc::clone(&journal), sender);
        let core = (0..1024u16).find_map(|core| Worker::start(core, eal).ok()).expect("a core that may be used");
        core.add(relay).unwrap();
        let layout = Layout { size: 8 << 20, regions: 1, start: 0, gap: 0, huge_pages: false };
        let memory = Arc::new(Memory::new(layout).unwrap());
        Self { worker: core, journal, faults, memory, device, _folder: folder }
    }

    /// Runs between two rounds.
    fn with<T: Send + 'static>(&self, change: impl FnOnce(&mut Running) -> T + Send + 'static) -> T {
        self.worker.call(change).unwrap()
    }

    /// The guest's memory as a front-end would share it.
    fn map(&self) -> Arc<GuestMap> {
        // SAFETY: the descriptor stays open as long as the memory.
        let file: OwnedFd = unsafe { BorrowedFd::borrow_raw(self.memory.file()) }.try_clone_to_owned().unwrap();
        let region = self.memory.regions()[0];
        let file = FileOffset::new(file.into(), 0);
        let ranges = [(GuestAddress(region.guest), region.size as usize, Some(file))];
        GuestMap::new(&Arc::new(GuestMemoryMmap::from_ranges_with_files(ranges).unwrap()))
    }

    fn share(&self, map: &Arc<GuestMap>) {
        let map = Arc::clone(map);
        self.with(move |running| running.relay(1).unwrap().0.remap(&map));
    }

    /// A transmit ring with buffers for frames of up to `room` bytes.
    fn transmitter(&self, room: usize) -> Transmitter {
        let ring = guest::SplitRing::new(&self.memory, 256, false).unwrap();
        Transmitter::new(ring, Shape::Whole, true, HEADER, room).unwrap()
    }

    /// A receive ring with 255 buffers for frames of up to 1514 bytes.
    fn receiver(&self) -> Receiver {
        let ring = guest::SplitRing::new(&self.memory, 256, false).unwrap();
        let mut receiver = Receiver::new(ring, Shape::Whole, true, HEADER, 1514, true).unwrap();
        receiver.post(255);
        receiver
    }

    fn start(&self, index: usize, ring: &guest::Ring, map: &Arc<GuestMap>) {
        let [desc, avail, used] = ring.addresses().map(GuestAddress);
        let config = RingConfig {
            size: ring.size(),
            desc,
            avail,
            used,
            base: 0,
            resume: None,
            features: MODERN,
            kick: None,
            call: None,
        };
        let ring = Ring::new(Arc::clone(map), &config).unwrap();
        self.with(move |running| {
            let (relay, watch) = running.relay(1).unwrap();
            relay.start(index, ring, watch);
        });
    }

    fn stop(&self, index: usize) {
        self.with(move |running| {
            let (relay, watch) = running.relay(1).unwrap();
            relay.stop(index, watch);
        });
    }

    /// What a pair sent and what a queue received, with the bytes.
    fn counters(&self) -> PortCounters {
        self.journal.read()
    }

    fn is_broken(&self) -> bool {
        self.with(|running| running.relay(1).unwrap().0.is_broken())
    }
}

/// Sends frames of 60 bytes whose first byte is `mark`; all must be taken.
fn send(from: &mut Transmitter, frames: usize, mark: u8) {
    assert_eq!(
        from.transmit(frames, |_, room| {
            room.put(0, &[mark; 60]);
            60
        }),
        frames
    );
}

#[test]
fn a_port_whose_memory_was_cut_off_goes_on_with_the_next_guest() {
    alone("relay::a_port_whose_memory_was_cut_off_goes_on_with_the_next_guest", |eal| {
        let scene = Scene::new(eal, open("vdev:net_ring0", &PLAIN).unwrap());
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

/// Frames that came, by their first byte.
fn marks(to: &mut Receiver) -> Vec<u8> {
    let mut marks = Vec::new();
    to.receive(usize::MAX, |frame| marks.push(frame.first_long() as u8));
    marks
}

#[test]
fn every_queue_feeds_a_ring_that_runs_and_none_that_does_not() {
    alone("relay::every_queue_feeds_a_ring_that_runs_and_none_that_does_not", |eal| {
        // What is sent on a queue of a software ring comes back on the same queue.
        let scene = Scene::new(eal, open("vdev:net_ring0", &DeviceConfig { queues: 2, ..PLAIN }).unwrap());
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
fn one_way(eal: Eal) -> (Scene, RxQueue, Device) {
    let (ring, mut ring_queues) = open("vdev:net_ring0", &PLAIN).unwrap();
    let (silent, mut queues) = open("vdev:net_null0,no-rx=1", &PLAIN).unwrap();
    let (QueuePair { rx: silence, .. }, QueuePair { rx, tx }) = (queues.remove(0), ring_queues.remove(0));
    (Scene::new(eal, (silent, vec![QueuePair { rx: silence, tx }])), rx, ring)
}

#[test]
fn what_a_full_device_does_not_take_is_counted_when_its_time_or_its_ring_is_over() {
    alone("relay::what_a_full_device_does_not_take_is_counted_when_its_time_or_its_ring_is_over", |eal| {
        let (scene, _rx, _ring) = one_way(eal);
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
    });
}

#[test]
fn pairs_that_share_a_queue_share_its_room() {
    alone("relay::pairs_that_share_a_queue_share_its_room", |eal| {
        let (scene, mut rx, _ring) = one_way(eal);
        let map = scene.map();
        scene.share(&map);
        let mut tx: Vec<_> = (0..3).map(|_| scene.transmitter(1514)).collect();
        for (pair, tx) in tx.iter_mut().enumerate() {
            scene.start(2 * pair + 1, tx.ring(), &map);
        }
        // Each pair always has frames, and the device takes fewer than one of them could send.
        let came = scene.with(move |running| {
            let relay = running.relay(1).unwrap().0;
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
    alone("relay::after_a_change_of_the_mtu_the_longest_frame_is_the_new_one", |eal| {
        let mut scene = Scene::new(eal, open("vdev:net_ring0", &PLAIN).unwrap());
        let map = scene.map();
        scene.share(&map);
        let mut tx = scene.transmitter(9300);
        scene.start(1, tx.ring(), &map);
        let mut taken = 0;
        for (mtu, longest) in [(1500, 1522), (9216, 9238), (68, 90)] {
            let queues = scene.with(|running| running.relay(1).unwrap().0.take_queues());
            let queues = scene.device.reconfigure(queues, &DeviceConfig { mtu, ..PLAIN }).unwrap();
            let pool = scene.device.pool().clone();
            scene.with(move |running| {
                let relay = running.relay(1).unwrap().0;
                relay.resize(pool, mtu);
                relay.give_queues(queues);
            });
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
