//! The relay between a guest's rings and a device's queues, round by round: which ring feeds which queue, and what becomes
//! of frames when either side changes.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use crossbeam::channel::{Receiver, unbounded};
use ringspan_dataplane::journal::Journal;
use ringspan_dataplane::memory::GuestMap;
use ringspan_dataplane::nic::{Device, DeviceConfig, Eal, QueuePair};
use ringspan_dataplane::relay::{Fault, Offence, Relay};
use ringspan_dataplane::ring::{RingConfig, RingFeatures, SplitRing};
use ringspan_dataplane::worker::{Running, Worker};
use ringspan_testkit::guest::{self, Layout, Memory, Shape, Transmitter};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::alone::{PLAIN, alone, open, receive};

const HEADER: usize = 12;
const MODERN: RingFeatures = RingFeatures { event_idx: false, indirect: true, mergeable: true, version_1: true };

/// A worker with one relay, and a guest's memory for its rings.
struct Scene {
    worker: Worker,
    journal: Arc<Journal>,
    faults: Receiver<Fault>,
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

    /// A transmit ring with buffers for frames of up to 1514 bytes.
    fn transmitter(&self) -> Transmitter {
        let ring = guest::SplitRing::new(&self.memory, 256, false).unwrap();
        Transmitter::new(ring, Shape::Whole, true, HEADER, 1514).unwrap()
    }

    fn start(&self, index: usize, ring: &guest::SplitRing, map: &Arc<GuestMap>) {
        let [desc, avail, used] = ring.addresses().map(GuestAddress);
        let config =
            RingConfig { size: ring.size(), desc, avail, used, base: 0, features: MODERN, kick: None, call: None };
        let ring = SplitRing::new(Arc::clone(map), &config).unwrap();
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
        let mut tx = scene.transmitter();
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
