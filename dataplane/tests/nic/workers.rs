//! Relays on several workers: how they go from one to the other, and when a worker sleeps.

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringspan_dataplane::memory::GuestMap;
use ringspan_dataplane::nic::DeviceConfig;
use ringspan_dataplane::worker::Worker;
use ringspan_protocol::ReceiveWake;
use ringspan_testkit::guest::ring::Span;
use ringspan_testkit::guest::{Kind, Receiver, Transmitter};

use crate::alone::{PLAIN, alone, alone_in_namespace, alone_over_both, frame, open, send as send_frames, wait_for};
use crate::kernel::{self, Wire, is_ours};
use crate::scene::{Scene, marks, send};

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
    alone_over_both(
        "workers::shares_go_from_worker_to_worker_under_traffic_and_nothing_is_lost_doubled_or_late",
        |eal, kind| {
            let device = open("vdev:net_ring0", &DeviceConfig { queues: 4, ..PLAIN }).unwrap();
            let scene = Scene::on(eal, kind, device, 2);
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
        },
    );
}

#[test]
fn pairs_come_and_go_on_several_workers_while_others_are_busy() {
    alone_over_both("workers::pairs_come_and_go_on_several_workers_while_others_are_busy", |eal, kind| {
        // As many pairs as the device has queues are always there, so that the busy ones keep theirs.
        let device = open("vdev:net_ring0", &DeviceConfig { queues: 2, ..PLAIN }).unwrap();
        let scene = Scene::on(eal, kind, device, 2);
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
    alone_over_both("workers::a_guest_that_breaks_one_ring_stops_all_of_its_rings_on_every_worker", |eal, kind| {
        let device = open("vdev:net_ring0", &DeviceConfig { queues: 2, ..PLAIN }).unwrap();
        let scene = Scene::on(eal, kind, device, 2);
        let map = scene.map();
        scene.share(&map);
        let mut circles: Vec<_> = (0..2).map(|pair| scene.circle(pair)).collect();
        circles.iter_mut().for_each(|circle| scene.start_pair(circle, &map));
        assert_ne!(scene.homes()[0], scene.homes()[1]);
        // A frame far beyond the guest's memory.
        circles[0].tx.ring().send_parts(0, &[(Span { address: 1 << 40, length: 100 }, 0)]);
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
    alone_over_both("workers::a_worker_without_work_sleeps_and_the_first_frame_wakes_it", |eal, kind| {
        let (_device, mut there) = open("patch:x/a", &PLAIN).unwrap();
        let scene = Scene::new(eal, kind, open("patch:x/b", &PLAIN).unwrap());
        assert_eq!(scene.device.status().receive_wake, ReceiveWake::Event);
        let map = scene.map();
        scene.share(&map);
        let mut rx = scene.receiver();
        scene.start(0, rx.ring(), &map);
        let beats = || scene.workers[0].pulse().beats();
        wait_for("sleep", || {
            let before = beats();
            // How often it wakes up in this time is what is looked at.
            std::thread::sleep(Duration::from_millis(200));
            // Two rounds for each sleep of 50 ms. By a timer of 2 ms there would be 200.
            beats() - before < 40
        });
        // By the longest sleep alone half of them would come after 25 ms or more. A busy machine gets some turns.
        let mut median = || {
            let mut late: Vec<_> = (0..15)
                .map(|number| {
                    // Longer than a worker spins (100 us), so that it sleeps, and in no step with its sleeps (50 ms).
                    std::thread::sleep(Duration::from_millis(5));
                    let sent = Instant::now();
                    send_frames(&mut there[0], &[frame(number, 60)]);
                    wait_for("the frame", || !marks(&mut rx).is_empty());
                    sent.elapsed()
                })
                .collect();
            late.sort_unstable();
            late[7]
        };
        let medians: Vec<_> = (0..10).map(|_| median()).take_while(|late| *late >= Duration::from_millis(10)).collect();
        assert!(medians.len() < 10, "half of the frames came later than {medians:?}");
    });
}

/// How often each thread was woken that is neither a worker nor the caller.
fn wakes_of_others() -> HashMap<OsString, u64> {
    let own = nix::unistd::gettid().to_string();
    let threads = std::fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap());
    let others = threads.filter(|thread| {
        let name = std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
        thread.file_name() != own.as_str() && !name.starts_with("worker-")
    });
    let wakes = others.filter_map(|thread| {
        // A thread may end meanwhile.
        let status = std::fs::read_to_string(thread.path().join("status")).ok()?;
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        Some((thread.file_name(), count.trim().parse().ok()?))
    });
    wakes.collect()
}

#[test]
fn frames_of_a_tap_cost_the_worker_and_no_other_thread() {
    alone_in_namespace("workers::frames_of_a_tap_cost_the_worker_and_no_other_thread", |eal| {
        const FRAMES: usize = 200;
        let scene = Scene::new(eal, Kind::Split, open("vdev:net_tap0,iface=rsnic9", &PLAIN).unwrap());
        let map = scene.map();
        scene.share(&map);
        let mut rx = scene.receiver();
        scene.start(0, rx.ring(), &map);
        let wire = Wire::new("rsnic9");
        let mut came = 0;
        let mut send = |number: usize| {
            wire.send(&kernel::frame(number, 60));
            let before = came;
            wait_for("the frame", || {
                rx.receive(usize::MAX, |got| {
                    let mut bytes = [0; 2048];
                    got.copy_to(&mut bytes);
                    came += usize::from(is_ours(&bytes));
                });
                came > before
            });
        };
        send(0);
        let before = wakes_of_others();
        (1..=FRAMES).for_each(&mut send);
        for (thread, wakes) in wakes_of_others() {
            let wakes = wakes - before.get(&thread).unwrap_or(&wakes);
            assert!(wakes < FRAMES as u64 / 2, "{wakes} wakes of thread {thread:?} for {FRAMES} frames");
        }
    });
}

#[test]
fn a_worker_that_is_told_to_does_not_sleep() {
    alone("workers::a_worker_that_is_told_to_does_not_sleep", |eal| {
        let core = (0..1024).find(|core| Worker::start(*core, eal, false).is_ok()).unwrap();
        let worker = Worker::start(core, eal, true).unwrap();
        // One that sleeps makes far fewer before its first sleep, and 40 a second from then on.
        let before = worker.pulse().beats();
        wait_for("rounds without end", || worker.pulse().beats() - before > 100_000);
    });
}
