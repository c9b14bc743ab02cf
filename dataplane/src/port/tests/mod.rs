//! Who has a port's rings when a step of a switch fails. The vDPA device and the relays are made up.

mod device;
mod modes;
mod owners;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Barrier, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use ringspan_protocol::{
    DeviceStatus, Failure, FailureKind, LaneEventKind, MacAddress, Mode, ModeStatus, PolicyStatus, PortSpec,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::backing::Backing;
use super::relaying::{Make, Open, Relays, Started};
use crate::memory::{DirtyLog, GuestMap};
use crate::ring::{RingConfig, RingFeatures, RingLog};
use crate::vdpa::tests::fake::Fake;
use crate::vdpa::{Driver, Facts, Handover, Kernel, Refusal};
use crate::vhost::RingSink;

const VERSION_1: u64 = 1 << 32;
/// Where the relays have their memory.
const LANE: u64 = 1 << 38;

/// What a test decides, and what it is told.
#[derive(Default)]
struct World {
    node_fails: bool,
    relays_fail: bool,
    /// The device does not take the relay's rings, once.
    lending_fails: Option<Refusal>,
    /// Somebody waits at it while relays are made.
    slow: Option<Arc<Barrier>>,
    opened: Vec<&'static str>,
    /// The rings that relays have.
    relayed: BTreeSet<usize>,
    /// Those of which a relay's place is no longer so.
    forgotten: BTreeSet<usize>,
    /// What a relay's device has not sent when it is taken away, and how much of that was counted.
    left: u64,
    unsent: u64,
    /// The relays' driver that was made last.
    driver: Weak<Driver>,
}

#[derive(Clone)]
struct Scene {
    world: Arc<Mutex<World>>,
    device: Fake,
}

impl Scene {
    fn new() -> Self {
        Self { world: Arc::default(), device: Fake::new() }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    fn opened(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.world().opened)
    }
}

impl Make for Scene {
    fn relays(&self, _: &PortSpec, facts: Option<&Facts>) -> Result<Box<dyn Relays>, Failure> {
        let mut world = self.world();
        world.opened.push("relays");
        let (fails, slow) = (world.relays_fail, world.slow.take());
        drop(world);
        if let Some(slow) = slow {
            slow.wait();
            slow.wait();
        }
        match fails {
            true => Err(Failure::new(FailureKind::NoRoom, "no hugepages")),
            false => {
                let driver = facts.map(Driver::new).inspect(|driver| {
                    driver.negotiated(VERSION_1);
                    driver.memory(memory_at(LANE));
                    (0..2).for_each(|index| driver.start(index, ring_at(LANE)));
                });
                self.world().driver = driver.as_ref().map(Arc::downgrade).unwrap_or_default();
                let device = Arc::new(Open::closed(a_device(), driver.clone()));
                Ok(Box::new(FakeRelays { scene: self.clone(), device, driver }))
            }
        }
    }

    fn node(&self, _: &Path, _: &PortSpec) -> Result<Box<dyn Kernel>, Failure> {
        let mut world = self.world();
        world.opened.push("node");
        match world.node_fails {
            true => Err(Failure::new(FailureKind::Busy, "the node is busy")),
            false => Ok(Box::new(self.device.open())),
        }
    }

    fn forget(&self, ring: usize) {
        assert!(!self.device.runs(), "it has moved on by then");
        self.world().forgotten.insert(ring);
    }

    fn unsent(&self, frames: u64) {
        self.world().unsent += frames;
    }
}

impl Scene {
    /// Rings of which a relay's place was forgotten since this was last asked.
    fn forgotten(&self) -> BTreeSet<usize> {
        std::mem::take(&mut self.world().forgotten)
    }
}

struct FakeRelays {
    scene: Scene,
    device: Arc<Open>,
    /// The other guest of the vDPA device.
    driver: Option<Arc<Driver>>,
}

impl Relays for FakeRelays {
    fn shares(&self) -> Option<Arc<super::Shares>> {
        None
    }

    fn device(&self) -> &Arc<Open> {
        &self.device
    }

    fn start(&self, index: usize, _: RingConfig, _: Arc<GuestMap>) -> Started {
        let mut world = self.scene.world();
        world.relayed.insert(index);
        Started::Pairs(world.relayed.len() as u16 / 2)
    }

    fn stop(&self, index: usize) -> Option<(u16, u16)> {
        let mut world = self.scene.world();
        world.relayed.remove(&index).then(|| (0, world.relayed.len() as u16 / 2))
    }

    fn remap(&self, map: Arc<GuestMap>) {
        self.driver.iter().for_each(|driver| driver.guest_memory(Arc::clone(&map)));
    }

    fn call(&self, _: usize, _: Option<Arc<OwnedFd>>) {}

    fn log(&self, _: usize, _: Option<RingLog>) {}

    fn set(&self, _: &PortSpec, _: &PortSpec) -> Result<(), Failure> {
        Ok(())
    }

    fn lend(&self, device: Handover, guest: Option<Arc<GuestMap>>) -> Result<(), (Refusal, Handover)> {
        let mut world = self.scene.world();
        world.opened.push("lent");
        let fails = world.lending_fails.take();
        drop(world);
        match (fails, &self.driver) {
            (Some(refusal), _) => Err((refusal, device)),
            (None, driver) => driver.as_ref().expect("a vDPA device").lend(device, guest),
        }
    }

    fn beside(&self, guest: Option<Arc<GuestMap>>) {
        self.driver.iter().for_each(|driver| match &guest {
            Some(guest) => driver.keep_guest(Arc::clone(guest)),
            None => driver.drop_guest(),
        });
    }

    fn take(&self) -> Option<(Handover, u64)> {
        let left = self.scene.world().left;
        self.driver.as_ref()?.take().map(|device| (device, left))
    }

    fn close(self: Box<Self>) {
        self.scene.world().relayed.clear();
    }
}

fn a_device() -> DeviceStatus {
    let policy = || PolicyStatus::Refused("it is made up".into());
    DeviceStatus {
        driver: "fake".into(),
        link_up: true,
        speed_mbps: None,
        mac: MacAddress([0; 6]),
        mtu: 1500,
        queues: 1,
        receive_wake: Default::default(),
        spread: Default::default(),
        promiscuous: policy(),
        allmulti: policy(),
        offloads: Default::default(),
        members: Vec::new(),
    }
}

/// A port on a node that is there as long as the folder is.
fn spec(folder: &Path, mode: Mode) -> PortSpec {
    let node = folder.join("node");
    std::fs::write(&node, "").unwrap();
    let text = format!(r#"{{"name":"p","socket":"/s","device":"vhost-vdpa:{}","compat":"1"}}"#, node.display());
    PortSpec { mode, ..serde_json::from_str(&text).unwrap() }
}

fn ring() -> RingConfig {
    ring_at(0)
}

fn ring_at(at: u64) -> RingConfig {
    RingConfig {
        size: 256,
        desc: GuestAddress(at + 0x1000),
        avail: GuestAddress(at + 0x2000),
        used: GuestAddress(at + 0x3000),
        base: 0,
        resume: None,
        record: None,
        memory: 0,
        features: RingFeatures { version_1: true, ..Default::default() },
        kick: None,
        call: None,
        log: None,
    }
}

fn memory() -> Arc<GuestMap> {
    memory_at(0)
}

fn memory_at(at: u64) -> Arc<GuestMap> {
    GuestMap::new(&Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(at), 0x10_0000)]).unwrap()))
}

/// A port whose guest's driver runs.
fn running(scene: &Scene, spec: &PortSpec) -> Backing {
    let backing = Backing::open(Box::new(scene.clone()), spec).unwrap();
    connect(&backing, VERSION_1);
    start(&backing);
    backing
}

fn connect(backing: &Backing, features: u64) {
    backing.memory(memory());
    backing.negotiated(features);
}

fn start(backing: &Backing) -> u16 {
    (0..2).map(|index| pairs(backing.start(index, ring()))).last().unwrap()
}

fn pairs(started: Started) -> u16 {
    match started {
        Started::Pairs(pairs) => pairs,
        Started::Broken(reason) => panic!("{reason}"),
    }
}

fn has(backing: &Backing) -> (ModeStatus, u16) {
    (backing.mode().0, backing.pairs())
}

/// Until somebody has the rings.
fn attend_until_up(backing: &Backing) {
    let until = Instant::now() + Duration::from_secs(120);
    while backing.mode().0 == ModeStatus::Down {
        assert!(Instant::now() < until, "nobody has the rings: {:?}", backing.mode().1);
        backing.attend();
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Scene {
    /// Whether the device moves what is in the guest's rings, and in the relays' own.
    fn device_has(&self) -> (bool, bool) {
        let runs = self.device.runs();
        let device = self.device.lock();
        let place = |ring: usize| device.rings.get(&ring).and_then(|ring| ring.place).filter(|_| runs);
        let lanes = (0..2).filter_map(place).map(|place| place.desc >= LANE).collect::<BTreeSet<_>>();
        assert!(lanes.len() < 2, "the device has one ring of the guest's and one of a relay's");
        (lanes.contains(&false), lanes.contains(&true))
    }

    /// No ring is with two, and memory of the guest's with nobody who has no ring of its.
    fn assert_one_owner(&self, backing: &Backing, when: &str) {
        let relayed = !self.world().relayed.is_empty();
        let (device, lanes) = self.device_has();
        let lent = self.device.lock().mapped.contains_key(&LANE);
        assert!(!(device && lent), "{when}: the guest's descriptors lead to the lane's memory");
        assert!(lent || !lanes, "{when}: a relay's rings without its memory");
        assert!(!lanes || backing.mode().0 == ModeStatus::Relay, "{when}: no relay, and the device has its rings");
        assert!(!(relayed && device), "{when}: the device and a relay have the guest's rings");
        let mode = backing.mode().0;
        assert!(!relayed || mode == ModeStatus::Relay, "{when}: relayed, and the mode is {mode:?}");
        assert!(!device || mode == ModeStatus::Vdpa, "{when}: the device runs, and the mode is {mode:?}");
    }

    /// Regions of the guest's that the device has.
    fn guests(&self) -> Vec<u64> {
        self.device.lock().mapped.keys().copied().filter(|at| *at < LANE).collect()
    }
}
