//! A port's relays on workers, and a guest's memory for its rings, driven ring by ring and round by round.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use crossbeam::channel::unbounded;
use ringspan_dataplane::journal::Journal;
use ringspan_dataplane::memory::GuestMap;
use ringspan_dataplane::nic::{Device, Eal, QueuePair};
use ringspan_dataplane::offload::Offloads;
use ringspan_dataplane::port::Shares;
use ringspan_dataplane::relay::{Common, Fault};
use ringspan_dataplane::ring::{Ring, RingConfig, RingFeatures};
use ringspan_dataplane::worker::{Running, Worker};
use ringspan_protocol::PortCounters;
use ringspan_testkit::guest::{self, Kind, Layout, Memory, Receiver, Shape, Transmitter};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

pub const HEADER: usize = 12;
pub const MODERN: RingFeatures = RingFeatures {
    event_idx: false,
    indirect: true,
    mergeable: true,
    version_1: true,
    packed: false,
    in_order: false,
    offloads: Offloads::NONE,
};

/// A port's relays on workers, and a guest's memory for its rings.
pub struct Scene {
    pub workers: Vec<Arc<Worker>>,
    pub shares: Arc<Shares>,
    pub journal: Arc<Journal>,
    pub faults: crossbeam::channel::Receiver<Fault>,
    pub memory: Arc<Memory>,
    pub device: Device,
    kind: Kind,
    /// Where rings stood when they were stopped.
    stood: RefCell<BTreeMap<usize, u16>>,
    _folder: tempfile::TempDir,
}

impl Scene {
    /// With one worker, and rings of this format.
    pub fn new(eal: Eal, kind: Kind, device: (Device, Vec<QueuePair>)) -> Self {
        Self::on(eal, kind, device, 1)
    }

    /// With so many workers, all on one core if there is but one.
    pub fn on(eal: Eal, kind: Kind, (device, queues): (Device, Vec<QueuePair>), workers: usize) -> Self {
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
        let stood = RefCell::default();
        Self { workers, shares, journal, faults, memory, device, kind, stood, _folder: folder }
    }

    /// Runs between two rounds of the first worker.
    pub fn with<T: Send + 'static>(&self, change: impl FnOnce(&mut Running) -> T + Send + 'static) -> T {
        self.workers[0].call(change).unwrap()
    }

    /// The guest's memory as a front-end would share it.
    pub fn map(&self) -> Arc<GuestMap> {
        // SAFETY: the descriptor stays open as long as the memory.
        let file: OwnedFd = unsafe { BorrowedFd::borrow_raw(self.memory.file()) }.try_clone_to_owned().unwrap();
        let region = self.memory.regions()[0];
        let file = FileOffset::new(file.into(), 0);
        let ranges = [(GuestAddress(region.guest), region.size as usize, Some(file))];
        GuestMap::new(&Arc::new(GuestMemoryMmap::from_ranges_with_files(ranges).unwrap()))
    }

    pub fn share(&self, map: &Arc<GuestMap>) {
        self.shares.remap(Arc::clone(map)).unwrap();
    }

    /// An empty ring.
    pub fn ring(&self, size: u16) -> guest::Ring {
        guest::Ring::new(self.kind, &self.memory, size, false, false).unwrap()
    }

    /// A transmit ring with buffers for frames of up to `room` bytes.
    pub fn transmitter(&self, room: usize) -> Transmitter {
        let ring = self.ring(256);
        Transmitter::new(ring, Shape::Whole, true, HEADER, room).unwrap()
    }

    /// A receive ring with 255 buffers for frames of up to 1514 bytes.
    pub fn receiver(&self) -> Receiver {
        let ring = self.ring(256);
        let mut receiver = Receiver::new(ring, Shape::Whole, true, HEADER, 1514, true).unwrap();
        receiver.post(255);
        receiver
    }

    pub fn start(&self, index: usize, ring: &guest::Ring, map: &Arc<GuestMap>) {
        self.start_with(MODERN, index, ring, map);
    }

    /// It goes on where the one of this number was stopped.
    pub fn start_with(&self, features: RingFeatures, index: usize, ring: &guest::Ring, map: &Arc<GuestMap>) {
        let [desc, avail, used] = ring.addresses().map(GuestAddress);
        let config = RingConfig {
            size: ring.size(),
            desc,
            avail,
            used,
            base: ring.first_base(),
            resume: self.stood.borrow().get(&index).copied(),
            record: None,
            memory: 0,
            features: RingFeatures { packed: self.kind == Kind::Packed, ..features },
            kick: None,
            call: None,
            log: None,
        };
        let ring = Ring::new(Arc::clone(map), &config).unwrap();
        self.shares.start(index, ring, [0; 3]).unwrap();
    }

    pub fn stop(&self, index: usize) {
        if let Some((at, _)) = self.shares.stop(index).unwrap() {
            self.stood.borrow_mut().insert(index, at);
        }
    }

    /// What a pair sent and what a queue received, with the bytes.
    pub fn counters(&self) -> PortCounters {
        self.journal.read()
    }

    pub fn is_broken(&self) -> bool {
        self.shares.is_broken()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.shares.close().unwrap();
    }
}

/// Sends frames of 60 bytes whose first byte is `mark`; all must be taken.
pub fn send(from: &mut Transmitter, frames: usize, mark: u8) {
    assert_eq!(
        from.transmit(frames, |_, room| {
            room.put(0, &[mark; 60]);
            60
        }),
        frames
    );
}

/// Frames that came, by their first byte.
pub fn marks(to: &mut Receiver) -> Vec<u8> {
    let mut marks = Vec::new();
    to.receive(usize::MAX, |frame| marks.push(frame.first_long() as u8));
    marks
}
