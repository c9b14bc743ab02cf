//! The relay between a guest's rings and a device's queues, round by round: which ring feeds which queue, and what becomes
//! of frames when either side changes.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::unbounded;
use ringspan_dataplane::journal::Journal;
use ringspan_dataplane::memory::GuestMap;
use ringspan_dataplane::nic::{Burst, Device, DeviceConfig, Eal, QueuePair, RxQueue};
use ringspan_dataplane::offload::Offloads;
use ringspan_dataplane::port::Shares;
use ringspan_dataplane::relay::{Common, Fault, Offence};
use ringspan_dataplane::ring::{Ring, RingConfig, RingFeatures};
use ringspan_dataplane::worker::{Running, Worker};
use ringspan_protocol::{PortCounters, ReceiveWake};
use ringspan_testkit::guest::{self, Layout, Memory, Receiver, Shape, Transmitter};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::alone::{PLAIN, alone, frame, open, send as send_frames, wait_for};

const HEADER: usize = 12;
const MODERN: RingFeatures = RingFeatures {
    event_idx: false,
    indirect: true,
    mergeable: true,
    version_1: true,
    packed: false,
    in_order: false,
    offloads: Offloads::NONE,
};

/// A port's relays on workers, and a guest's memory for its rings.
struct Scene {
    workers: Vec<Arc<Worker>>,
    shares: Arc<Shares>,
    journal: Arc<Journal>,
    faults: crossbeam::channel::Receiver<Fault>,
    memory: Arc<Memory>,
    device: Device,
    _folder: tempfile::TempDir,
}

impl Scene {
    fn new(eal: Eal, device: (Device, Vec<QueuePair>)) -> Self {
        Self::on(eal, device, 1)
    }

    /// With so many workers, all on one core if there is but one.
    fn on(eal: Eal, (device, queues): (Device, Vec<QueuePair>), workers: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), &"vm1".parse().unwrap()).unwrap();
        let (sender, faults) = unbounded();
        let common = Common::new(1, Arc::clone(&journal), sender);
        let cores: Vec<u16> = (0..1024).filter(|core| Worker::start(*core, eal, false).is_ok()).take(workers).collect();
        let core = |worker: usize| cores[worker % cores.len()];
        let workers: Vec<_> =
            (0..workers).map(|worker| Arc::new(Worker::start(core(worker), eal, false).unwrap())).collect();
        let shares = Arc::new(
            Shares::new(common, workers.clone(), queues, device.pool().clone(), 1500, None, device.lending().clone())
                .unwrap(),
        );
        let layout = Layout { size: 8 << 20, regions: 1, start: 0, gap: 0, huge_pages: false };
        let memory = Arc::new(Memory::new(layout).unwrap());
        Self { workers, shares, journal, faults, memory, device, _folder: folder }
    }

    /// Runs between two rounds of the first worker.
    fn with<T: Send + 'static>(&self, change: impl FnOnce(&mut Running) -> T + Send + 'static) -> T {
        self.workers[0].call(change).unwrap()
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
        self.shares.remap(Arc::clone(map)).unwrap();
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
        self.start_with(MODERN, index, ring, map);
    }

    fn start_with(&self, features: RingFeatures, index: usize, ring: &guest::Ring, map: &Arc<GuestMap>) {
        let [desc, avail, used] = ring.addresses().map(GuestAddress);
        let config = RingConfig {
            size: ring.size(),
            desc,
            avail,
            used,
            base: 0,
            resume: None,
            record: None,
            features,
            kick: None,
            call: None,
        };
        let ring = Ring::new(Arc::clone(map), &config).unwrap();
        self.shares.start(index, ring).unwrap();
    }

    fn stop(&self, index: usize) {
        self.shares.stop(index).unwrap();
    }

    /// What a pair sent and what a queue received, with the bytes.
    fn counters(&self) -> PortCounters {
        self.journal.read()
    }

    fn is_broken(&self) -> bool {
        self.shares.is_broken()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.shares.close().unwrap();
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
    alone("relay::after_a_change_of_the_mtu_the_longest_frame_is_the_new_one", |eal| {
        let mut scene = Scene::new(eal, open("vdev:net_ring0", &PLAIN).unwrap());
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

/// A pair whose frames come back to it: they carry its number and their own, and must come once each and in order.
struct Circle {
    tx: Transmitter,
    rx: Receiver,
    pair: u64,
    sent: u64,
    came: u64,
}

impl Circle {
    /// Sends some frames if it is to, and looks at what came. So few are under way that they fit everywhere.
    fn turn(&mut self, more: bool) {
        let Self { tx, rx, pair, sent, came } = self;
        let room = if more { 64 - (*sent - *came) as usize } else { 0 };
        let first = *sent;
        *sent += tx.transmit(room.min(16), |number, bytes| {
            bytes.put(0, &(*pair << 48 | (first + number as u64)).to_le_bytes().repeat(8));
            64
        }) as u64;
        tx.reclaim();
        let mut got = 0;
        rx.receive(usize::MAX, |frame| {
            let mark = u64::from_le(frame.first_long());
            assert_eq!((mark >> 48, mark & 0xffff_ffff_ffff), (*pair, *came), "lost, doubled, late or at another pair");
            *came += 1;
            got += 1;
        });
        rx.post(got);
    }
}

/// Pairs that send in circles on a thread of their own, until [`Circles::end`].
struct Circles {
    stop: Arc<AtomicBool>,
    frames: Arc<AtomicU64>,
    thread: JoinHandle<Vec<Circle>>,
}

impl Circles {
    fn start(mut circles: Vec<Circle>) -> Self {
        let (stop, frames) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&frames));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) || circles.iter().any(|circle| circle.sent > circle.came) {
                circles.iter_mut().for_each(|circle| circle.turn(!stopped.load(Ordering::Relaxed)));
                count.store(circles.iter().map(|circle| circle.came).sum(), Ordering::Relaxed);
                std::thread::yield_now();
            }
            circles
        });
        Self { stop, frames, thread }
    }

    /// Waits until so many more frames have come back.
    fn wait_more(&self, frames: u64) {
        let before = self.frames.load(Ordering::Relaxed);
        wait_for("more frames", || self.thread.is_finished() || self.frames.load(Ordering::Relaxed) >= before + frames);
    }

    /// Waits for what is under way. Returns how many frames each pair sent, which all came.
    fn end(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().iter().map(|circle| circle.came).collect()
    }
}

impl Scene {
    /// A pair with both rings, not started.
    fn circle(&self, pair: u64) -> Circle {
        Circle { tx: self.transmitter(64), rx: self.receiver(), pair, sent: 0, came: 0 }
    }

    fn start_pair(&self, circle: &mut Circle, map: &Arc<GuestMap>) {
        self.start(2 * circle.pair as usize, circle.rx.ring(), map);
        self.start(2 * circle.pair as usize + 1, circle.tx.ring(), map);
    }

    /// The worker of each share.
    fn homes(&self) -> Vec<usize> {
        self.shares.loads().iter().map(|(worker, _)| *worker).collect()
    }

    /// Every packet that came in went out again.
    fn assert_accounts(&self, frames: &[u64]) {
        let counters = self.counters();
        let sent: Vec<_> = counters.from_guest.iter().map(|pair| pair.sent).collect();
        assert_eq!(&sent[..frames.len()], frames);
        for queue in counters.from_guest.iter().chain(&counters.to_guest) {
            assert_eq!((queue.drops.total(), queue.received), (0, queue.sent));
        }
    }
}

#[test]
fn shares_go_from_worker_to_worker_under_traffic_and_nothing_is_lost_doubled_or_late() {
    alone("relay::shares_go_from_worker_to_worker_under_traffic_and_nothing_is_lost_doubled_or_late", |eal| {
        let device = open("vdev:net_ring0", &DeviceConfig { queues: 4, ..PLAIN }).unwrap();
        let scene = Scene::on(eal, device, 2);
        let map = scene.map();
        scene.share(&map);
        let mut circles: Vec<_> = (0..4).map(|pair| scene.circle(pair)).collect();
        circles.iter_mut().for_each(|circle| scene.start_pair(circle, &map));
        let mut homes = scene.homes();
        homes.sort_unstable();
        assert_eq!(homes, [0, 0, 1, 1], "spread over both");

        let traffic = Circles::start(circles);
        for round in 0..100 {
            traffic.wait_more(200);
            let share = round % 4;
            let to = 1 - scene.homes()[share];
            assert!(scene.shares.move_share(share, to).unwrap());
            assert_eq!(scene.homes()[share], to);
        }
        traffic.wait_more(1000);
        let frames = traffic.end();
        assert!(!scene.shares.move_share(4, 0).unwrap() && !scene.shares.move_share(0, 2).unwrap());
        scene.assert_accounts(&frames);
    });
}

#[test]
fn pairs_come_and_go_on_several_workers_while_others_are_busy() {
    alone("relay::pairs_come_and_go_on_several_workers_while_others_are_busy", |eal| {
        // As many pairs as the device has queues are always there, so that the busy ones keep theirs.
        let device = open("vdev:net_ring0", &DeviceConfig { queues: 2, ..PLAIN }).unwrap();
        let scene = Scene::on(eal, device, 2);
        let map = scene.map();
        scene.share(&map);
        let mut busy: Vec<_> = (0..2).map(|pair| scene.circle(pair)).collect();
        busy.iter_mut().for_each(|circle| scene.start_pair(circle, &map));
        // What these would send comes back on the queues of the busy ones: so they only come and go.
        let mut others: Vec<_> = (2..5).map(|pair| scene.circle(pair)).collect();
        let traffic = Circles::start(busy);
        for _ in 0..10 {
            for circle in &mut others {
                scene.start_pair(circle, &map);
                traffic.wait_more(20);
            }
            assert_eq!(scene.shares.status().iter().map(|share| share.pairs.len()).sum::<usize>(), 5);
            // Another map of the same memory, while all run on both workers. The old one is let go of before this returns.
            let again = scene.map();
            let before = Arc::downgrade(&again);
            scene.share(&again);
            drop(again);
            scene.share(&map);
            assert_eq!(before.strong_count(), 0, "a worker still has the old map");
            // And the device's queues go away and come back.
            let queues = scene.shares.take_queues().unwrap();
            assert_eq!(queues.len(), 2);
            scene
                .shares
                .give_queues(queues, scene.device.pool().clone(), 1500, scene.device.lending().clone())
                .unwrap();
            for pair in (2..5).rev() {
                scene.stop(2 * pair);
                scene.stop(2 * pair + 1);
            }
        }
        let frames = traffic.end();
        scene.assert_accounts(&frames);
    });
}

#[test]
fn a_guest_that_breaks_one_ring_stops_all_of_its_rings_on_every_worker() {
    alone("relay::a_guest_that_breaks_one_ring_stops_all_of_its_rings_on_every_worker", |eal| {
        let device = open("vdev:net_ring0", &DeviceConfig { queues: 2, ..PLAIN }).unwrap();
        let scene = Scene::on(eal, device, 2);
        let map = scene.map();
        scene.share(&map);
        let mut circles: Vec<_> = (0..2).map(|pair| scene.circle(pair)).collect();
        circles.iter_mut().for_each(|circle| scene.start_pair(circle, &map));
        assert_ne!(scene.homes()[0], scene.homes()[1]);
        // An available index far beyond the ring.
        let avail = circles[0].tx.ring().addresses()[1];
        let index = scene.memory.pointer(avail + 2, 2).unwrap();
        // SAFETY: two bytes of guest memory, which is mapped; the relay reads them atomically.
        unsafe { (*index.as_ptr().cast::<std::sync::atomic::AtomicU16>()).store(0x7fff, Ordering::Release) };
        assert_eq!(scene.faults.recv().unwrap().ring, 1);
        assert!(scene.is_broken());
        // What the other pair sends from here on stays in its ring.
        for worker in &scene.workers {
            worker.call(|_| ()).unwrap();
        }
        send(&mut circles[1].tx, 10, 1);
        for _ in 0..100 {
            scene.workers[scene.homes()[1]].call(|_| ()).unwrap();
        }
        assert_eq!(scene.counters().from_guest.get(1).map_or(0, |pair| pair.received), 0);
        for ring in 0..4 {
            assert!(scene.is_broken());
            scene.stop(ring);
        }
        assert!(!scene.is_broken(), "all rings are stopped");
        assert!(scene.faults.is_empty(), "told twice");
    });
}

#[test]
fn a_worker_without_work_sleeps_and_the_first_frame_wakes_it() {
    alone("relay::a_worker_without_work_sleeps_and_the_first_frame_wakes_it", |eal| {
        let (_device, mut there) = open("patch:x/a", &PLAIN).unwrap();
        let scene = Scene::new(eal, open("patch:x/b", &PLAIN).unwrap());
        assert_eq!(scene.device.status().receive_wake, ReceiveWake::Event);
        let map = scene.map();
        scene.share(&map);
        let mut rx = scene.receiver();
        scene.start(0, rx.ring(), &map);
        let beats = || scene.workers[0].pulse().beats();
        wait_for("sleep", || {
            let before = beats();
            std::thread::sleep(Duration::from_millis(200));
            // Two rounds for each sleep of 50 ms. By a timer of 2 ms there would be 200.
            beats() - before < 40
        });
        let mut late: Vec<_> = (0..15)
            .map(|number| {
                std::thread::sleep(Duration::from_millis(5));
                let sent = Instant::now();
                send_frames(&mut there[0], &[frame(number, 60)]);
                wait_for("the frame", || !marks(&mut rx).is_empty());
                sent.elapsed()
            })
            .collect();
        late.sort_unstable();
        assert!(late[7] < Duration::from_millis(10), "half of them came later than {:?}: {late:?}", late[7]);
    });
}

#[test]
fn a_worker_that_is_told_to_does_not_sleep() {
    alone("relay::a_worker_that_is_told_to_does_not_sleep", |eal| {
        let core = (0..1024).find(|core| Worker::start(*core, eal, false).is_ok()).unwrap();
        let worker = Worker::start(core, eal, true).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let before = worker.pulse().beats();
        wait_for("rounds without end", || worker.pulse().beats() - before > 100_000);
    });
}

#[test]
fn a_port_that_was_closed_takes_nothing_on_from_a_session_that_is_late() {
    alone("relay::a_port_that_was_closed_takes_nothing_on_from_a_session_that_is_late", |eal| {
        let scene = Scene::new(eal, open("vdev:net_null0", &PLAIN).unwrap());
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
    alone("relay::a_ring_that_stops_with_much_left_to_be_cut_stops_soon_and_accounts_for_all_of_it", |eal| {
        let scene = Scene::on(eal, open("vdev:net_null0,no-rx=1", &PLAIN).unwrap(), 2);
        let map = scene.map();
        scene.share(&map);
        let ring = guest::SplitRing::new(&scene.memory, 16, false).unwrap();
        let mut tx = Transmitter::new(ring, Shape::Whole, true, HEADER, 60_000).unwrap();
        let features = RingFeatures { offloads: Offloads::CSUM.with(Offloads::HOST_TSO4), ..MODERN };
        // TCP over IPv4; each byte of payload is to be a segment of its own.
        let mut head = [0; 54];
        (head[12], head[14], head[23], head[46]) = (8, 0x45, 6, 5 << 4);
        head[16..18].copy_from_slice(&59_986u16.to_be_bytes());
        let header = guest::NetHeader { gso_type: 1, gso_size: 1, hdr_len: 54, ..guest::NetHeader::checksum(34, 16) };
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
    });
}
