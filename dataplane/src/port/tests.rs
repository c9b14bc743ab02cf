//! Who has a port's rings when a step of a switch fails. The vDPA device and the relays are made up.

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
        self.driver.as_ref()?.take().map(|device| (device, 0))
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

#[test]
fn a_mode_that_cannot_be_leaves_the_port_as_it_was_and_says_so() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let relayed = spec(folder.path(), Mode::Relay);
    let backing = running(&scene, &relayed);
    assert_eq!(has(&backing), (ModeStatus::Relay, 1));
    let vdpa = PortSpec { mode: Mode::Vdpa, ..relayed.clone() };
    scene.opened();

    let limited = PortSpec { max_rate: 10, ..vdpa.clone() };
    assert!(backing.set(&limited).unwrap_err().message.contains("max_rate is 10"));
    assert_eq!((scene.opened(), has(&backing)), (vec![], (ModeStatus::Relay, 1)), "nothing was closed for that");

    scene.device.lock().refuses_below = LANE;
    backing.take_events();
    assert!(backing.set(&vdpa).unwrap_err().message.contains("cannot be pinned"));
    assert_eq!(backing.take_events(), [], "it is as it was");
    assert_eq!(
        (scene.opened(), has(&backing)),
        (vec!["lent"], (ModeStatus::Relay, 1)),
        "the same relay has them again"
    );
    assert_eq!((backing.mode().1, backing.allowed()), (None, u64::MAX));

    // It begins at the beginning only: a new relay's rings are there.
    scene.world().lending_fails = Some(Refusal::Position { ring: 0, at: 7, error: "no".into() });
    assert!(backing.set(&vdpa).unwrap_err().message.contains("cannot be pinned"));
    assert_eq!((scene.opened(), has(&backing)), (vec!["lent", "relays", "lent"], (ModeStatus::Relay, 1)));

    scene.world().lending_fails = Some(Refusal::Broken(64));
    scene.world().relays_fail = true;
    let said = backing.set(&vdpa).unwrap_err().message;
    assert!(said.contains("could not be put back") && said.contains("no hugepages"), "{said}");
    assert_eq!(has(&backing), (ModeStatus::Down, 0));

    // What could not be put back is tried again by itself.
    scene.world().relays_fail = false;
    attend_until_up(&backing);
    assert_eq!(has(&backing), (ModeStatus::Relay, 1));
    scene.device.lock().refuses_below = 0;
    backing.set(&vdpa).unwrap();
    assert_eq!(has(&backing), (ModeStatus::Vdpa, 1));
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

#[test]
fn a_relay_is_made_anew_when_the_device_refuses_what_it_says_later() {
    let folder = tempfile::tempdir().unwrap();
    let says = |driver: &Driver, what| match what {
        "map" => driver.memory(GuestMap::new(&Arc::new(
            GuestMemoryMmap::from_ranges(&[(GuestAddress(1 << 33), 0x10_0000)]).unwrap(),
        ))),
        "enable" => (0..2).for_each(|index| driver.start(index, ring_at(LANE))),
        _ => driver.event(LaneEventKind::HandshakeFailed { reason: "no memory table".into() }),
    };
    let words = ["map", "enable", "none"];
    for (mode, word) in words.iter().flat_map(|word| [(Mode::Relay, *word), (Mode::Auto, *word)]) {
        let (scene, when) = (Scene::new(), format!("{mode:?}, {word}"));
        scene.device.lock().moves = mode == Mode::Relay;
        let limited = PortSpec { max_rate: 10, ..spec(folder.path(), mode) };
        let backing = running(&scene, &limited);
        let reason = backing.mode().1;
        let driver = scene.world().driver.upgrade().unwrap();
        assert_eq!((has(&backing), driver.link().unwrap().0), ((ModeStatus::Relay, 1), true), "{when}");
        scene.device.lock().refuses.insert(word, libc::EIO);
        says(&driver, word);
        assert!(!driver.link().unwrap().0, "{when}");
        assert!(backing.look().is_some_and(|look| look.due && !look.up && !look.gone), "{when}");
        scene.device.lock().refuses.clear();
        scene.opened();
        backing.take_events();
        backing.attend();
        assert_eq!((scene.opened(), has(&backing)), (vec!["node", "relays", "lent"], (ModeStatus::Relay, 1)), "{when}");
        let events = backing.take_events();
        assert!(
            matches!(&events[..], [
                LaneEventKind::ModeChanged { mode: ModeStatus::Down, reason: Some(why), .. },
                LaneEventKind::ModeChanged { mode: ModeStatus::Relay, .. },
            ] if why.contains("made anew")),
            "{when}: {events:?}"
        );
        assert_eq!(backing.mode().1, reason, "{when}");
        assert!(scene.world().driver.upgrade().unwrap().link().unwrap().0, "{when}");
        assert!(backing.look().is_none_or(|look| !look.due), "{when}");
    }
}

#[test]
fn a_device_that_goes_amid_a_change_is_taken_again_by_a_port_that_is_not_relayed() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let backing = running(&scene, &spec(folder.path(), Mode::Vdpa));
    // It is noticed first by who tells it of memory.
    scene.device.lock().goes_after = Some(0);
    backing.memory(GuestMap::new(&Arc::new(
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000), (GuestAddress(1 << 33), 0x1000)]).unwrap(),
    )));
    assert_eq!(has(&backing), (ModeStatus::Down, 0));
    assert!(backing.look().is_some_and(|look| look.gone && !look.up));
    scene.device.lock().goes_after = None;
    attend_until_up(&backing);
    assert_eq!(has(&backing), (ModeStatus::Vdpa, 1));
}

#[test]
fn a_relay_that_cannot_be_leaves_the_rings_with_the_device() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let auto = spec(folder.path(), Mode::Auto);
    let backing = running(&scene, &auto);
    assert_eq!(has(&backing), (ModeStatus::Vdpa, 1));
    let offered = backing.allowed();
    scene.world().relays_fail = true;
    let relay = PortSpec { mode: Mode::Relay, ..auto.clone() };
    let failure = backing.set(&relay).unwrap_err();
    assert_eq!((failure.kind, failure.message.as_str()), (FailureKind::NoRoom, "no hugepages"));
    assert_eq!((has(&backing), backing.allowed()), ((ModeStatus::Vdpa, 1), offered));
    scene.world().relays_fail = false;
    backing.set(&relay).unwrap();
    assert_eq!(has(&backing), (ModeStatus::Relay, 1));
}

#[test]
fn a_port_that_is_down_is_relayed_when_that_is_asked_for() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let vdpa = spec(folder.path(), Mode::Vdpa);
    let backing = Backing::open(Box::new(scene.clone()), &vdpa).unwrap();
    connect(&backing, 0);
    assert_eq!(start(&backing), 0, "without VERSION_1");
    assert_eq!(has(&backing), (ModeStatus::Down, 0));
    backing.set(&PortSpec { mode: Mode::Relay, ..vdpa.clone() }).unwrap();
    assert_eq!(has(&backing), (ModeStatus::Relay, 1));

    // And by the next start, when it is down while its mode is relay.
    drop(backing);
    let relay = spec(folder.path(), Mode::Relay);
    let backing = running(&scene, &relay);
    std::fs::remove_file(folder.path().join("node")).unwrap();
    backing.attend();
    assert_eq!(has(&backing), (ModeStatus::Down, 0));
    std::fs::write(folder.path().join("node"), "").unwrap();
    backing.attend();
    assert_eq!(has(&backing), (ModeStatus::Relay, 1));
}

#[test]
fn a_device_that_is_back_and_cannot_be_opened_yet_is_tried_again() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let backing = running(&scene, &spec(folder.path(), Mode::Vdpa));
    scene.device.lock().gone = true;
    backing.attend();
    assert_eq!(has(&backing), (ModeStatus::Down, 0));
    scene.device.lock().gone = false;
    scene.world().node_fails = true;
    backing.take_events();
    backing.attend();
    assert!(!backing.take_events().contains(&LaneEventKind::DeviceReturned));
    assert!(backing.look().is_some_and(|look| look.gone));
    scene.world().node_fails = false;
    attend_until_up(&backing);
    assert_eq!(has(&backing), (ModeStatus::Vdpa, 1));
    assert_eq!(backing.take_events()[0], LaneEventKind::DeviceReturned);
}

#[test]
fn a_guest_in_circles_does_not_open_a_device_that_has_just_refused_the_same() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let backing = Backing::open(Box::new(scene.clone()), &spec(folder.path(), Mode::Vdpa)).unwrap();
    connect(&backing, 0);
    for _ in 0..5 {
        backing.start(0, ring());
        backing.stop(0);
    }
    assert_eq!(scene.opened(), ["node"]);
    assert_eq!(backing.take_events().len(), 1);
    backing.negotiated(VERSION_1);
    assert_eq!((start(&backing), has(&backing)), (1, (ModeStatus::Vdpa, 1)));
}

#[test]
fn the_device_is_tried_again_when_the_last_ring_has_stopped_and_not_before() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    scene.device.lock().moves = false;
    let backing = Backing::open(Box::new(scene.clone()), &spec(folder.path(), Mode::Auto)).unwrap();
    connect(&backing, VERSION_1);
    // Where a split ring stands its used index says.
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap());
    memory.write_obj(7u16, GuestAddress(0x3002)).unwrap();
    backing.memory(GuestMap::new(&memory));
    let moved = RingConfig { base: 7, resume: Some(7), ..ring() };
    (0..2).for_each(|index| drop(backing.start(index, moved.clone())));
    assert_eq!(backing.mode().0, ModeStatus::Relay, "a position that it cannot begin at");
    backing.stop(0);
    backing.start(0, moved.clone());
    assert_eq!(backing.mode().0, ModeStatus::Relay);
    (0..2).for_each(|index| assert!(backing.stop(index).is_some()));
    memory.write_obj(0u16, GuestAddress(0x3002)).unwrap();
    assert_eq!((start(&backing), backing.mode().0), (1, ModeStatus::Vdpa));
}

#[test]
fn after_a_guest_was_migrated_away_the_next_one_is_not_relayed_against_the_mode() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let backing = running(&scene, &spec(folder.path(), Mode::Vdpa));
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let log = RingLog { log: DirtyLog::map(file, 0, 4096).unwrap(), used: 0x3000 };
    (0..2).for_each(|index| backing.log(index, Some(log.clone())));
    assert_eq!(backing.mode().0, ModeStatus::Relay);
    (0..2).for_each(|index| assert!(backing.stop(index).is_some()));
    backing.memory(GuestMap::new(&Arc::new(GuestMemoryMmap::new())));
    connect(&backing, 0);
    assert_eq!((start(&backing), backing.mode().0), (0, ModeStatus::Down));
}

#[test]
fn features_stay_those_of_the_device_when_it_is_the_port_that_keeps_it_out() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let offer = Handover::new(Box::new(scene.device.clone())).unwrap().facts().offer(u64::MAX);
    let limited = PortSpec { max_rate: 10, ..spec(folder.path(), Mode::Auto) };
    let backing = running(&scene, &limited);
    assert_eq!((backing.mode().0, backing.allowed()), (ModeStatus::Relay, offer));
    let free = PortSpec { max_rate: 0, mode: Mode::Relay, ..limited };
    backing.set(&free).unwrap();
    assert_eq!(backing.allowed(), u64::MAX);
    backing.set(&PortSpec { mode: Mode::Auto, ..free }).unwrap();
    assert_eq!((has(&backing), backing.allowed()), ((ModeStatus::Vdpa, 1), offer));
}

#[test]
fn who_only_looks_does_not_wait_for_a_switch() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let auto = spec(folder.path(), Mode::Auto);
    let backing = running(&scene, &auto);
    let midway = Arc::new(Barrier::new(2));
    scene.world().slow = Some(Arc::clone(&midway));
    std::thread::scope(|scope| {
        let changed = scope.spawn(|| backing.set(&PortSpec { mode: Mode::Relay, ..auto.clone() }));
        midway.wait();
        assert_eq!(backing.look(), None);
        assert_eq!((has(&backing), backing.status().0.len()), ((ModeStatus::Vdpa, 1), 0));
        assert!(backing.shares().is_none() && !backing.is_broken() && backing.extended_stats().is_empty());
        midway.wait();
        changed.join().unwrap().unwrap();
    });
    assert_eq!(has(&backing), (ModeStatus::Relay, 1));
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
}

/// How many words a device is told while `change` is done.
fn words(scene: &Scene, change: impl FnOnce()) -> usize {
    let before = scene.device.lock().said.len();
    change();
    scene.device.lock().said.len() - before
}

#[test]
fn a_device_that_goes_at_any_step_of_a_switch_leaves_no_ring_with_two_owners() {
    for (from, to) in [(Mode::Auto, Mode::Relay), (Mode::Relay, Mode::Auto)] {
        let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
        let backing = running(&scene, &spec(folder.path(), from));
        let steps = words(&scene, || backing.set(&spec(folder.path(), to)).unwrap());
        assert!(steps > 5, "{steps}");
        // Each waits until a device is looked for again.
        std::thread::scope(|scope| (0..=steps).for_each(|step| drop(scope.spawn(move || goes_after(step, from, to)))));
    }
}

fn goes_after(step: usize, from: Mode, to: Mode) {
    let (scene, when) = (Scene::new(), format!("{from:?} to {to:?}, gone after {step} words"));
    let folder = tempfile::tempdir().unwrap();
    let backing = running(&scene, &spec(folder.path(), from));
    scene.device.lock().goes_after = Some(step);
    // It may have been done by then, or refused.
    let _ = backing.set(&spec(folder.path(), to));
    scene.assert_one_owner(&backing, &when);
    scene.device.lock().gone = true;
    std::fs::remove_file(folder.path().join("node")).unwrap();
    backing.attend();
    assert_eq!(has(&backing), (ModeStatus::Down, 0), "{when}");
    assert!(scene.world().relayed.is_empty() && !scene.device.runs(), "{when}");
    assert_eq!(scene.device.lock().mapped.len(), 0, "{when}");
    // It is back, and the guest goes on.
    std::fs::write(folder.path().join("node"), "").unwrap();
    (scene.device.lock().gone, scene.device.lock().goes_after) = (false, None);
    attend_until_up(&backing);
    scene.assert_one_owner(&backing, &when);
    assert_eq!(backing.pairs(), 1, "{when}");
}

#[test]
fn a_front_end_that_is_killed_at_any_step_of_a_switch_leaves_no_ring_with_anybody() {
    let folder = tempfile::tempdir().unwrap();
    let (auto, relay) = (spec(folder.path(), Mode::Auto), spec(folder.path(), Mode::Relay));
    for (from, to) in [(&auto, &relay), (&relay, &auto)] {
        let scene = Scene::new();
        let backing = running(&scene, from);
        let steps = words(&scene, || backing.set(to).unwrap());
        for step in 0..steps {
            let (scene, when) = (Scene::new(), format!("{:?} to {:?}, killed after {step} words", from.mode, to.mode));
            let backing = running(&scene, from);
            let midway = Arc::new(Barrier::new(2));
            scene.device.lock().waits_after = Some((step, Arc::clone(&midway)));
            std::thread::scope(|scope| {
                let changed = scope.spawn(|| backing.set(to));
                midway.wait();
                // The session stops each ring, and the memory goes.
                let ended = scope.spawn(|| {
                    (0..2).for_each(|index| assert!(backing.stop(index).is_some(), "{when}"));
                    backing.memory(GuestMap::new(&Arc::new(GuestMemoryMmap::new())));
                });
                midway.wait();
                ended.join().unwrap();
                changed.join().unwrap().unwrap();
            });
            assert!(scene.world().relayed.is_empty() && !scene.device_has().0, "{when}");
            assert_eq!((scene.guests(), backing.pairs()), (vec![], 0), "{when}: the guest's memory is let go of");
            connect(&backing, VERSION_1);
            assert_eq!(start(&backing), 1, "{when}: the next guest");
            scene.assert_one_owner(&backing, &when);
        }
    }
}

#[test]
fn a_device_that_cannot_be_reset_is_closed_before_a_relay_gets_the_rings() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let backing = running(&scene, &spec(folder.path(), Mode::Auto));
    scene.device.lock().refuses.insert("status", libc::EIO);
    let relay = PortSpec { mode: Mode::Relay, ..spec(folder.path(), Mode::Relay) };
    let said = backing.set(&relay).unwrap_err().message;
    assert!(said.contains("cannot be reset"), "{said}");
    scene.assert_one_owner(&backing, "a device that is not reset");
    assert_eq!((has(&backing), scene.device.runs()), ((ModeStatus::Down, 0), false));
}

#[test]
fn where_a_relay_was_is_forgotten_before_the_device_has_the_ring() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let backing = running(&scene, &spec(folder.path(), Mode::Relay));
    assert_eq!(scene.forgotten(), BTreeSet::new());
    backing.set(&spec(folder.path(), Mode::Auto)).unwrap();
    assert_eq!((has(&backing), scene.forgotten()), ((ModeStatus::Vdpa, 1), BTreeSet::from([0, 1])));
    backing.stop(0);
    backing.start(0, ring());
    assert_eq!(scene.forgotten(), BTreeSet::from([0]));
}

impl Scene {
    /// Regions of the guest's that the device has.
    fn guests(&self) -> Vec<u64> {
        self.device.lock().mapped.keys().copied().filter(|at| *at < LANE).collect()
    }
}

#[test]
fn the_device_has_the_lanes_rings_or_the_guests() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let auto = spec(folder.path(), Mode::Auto);
    let relay = PortSpec { mode: Mode::Relay, ..auto.clone() };
    let backing = running(&scene, &auto);
    for _ in 0..3 {
        assert_eq!(scene.device_has(), (true, false));
        backing.set(&relay).unwrap();
        assert_eq!(scene.device_has(), (false, true));
        scene.assert_one_owner(&backing, "relayed");
        backing.set(&auto).unwrap();
        scene.assert_one_owner(&backing, "back");
    }
}

#[test]
fn what_the_device_refuses_a_relay_that_has_it_leaves_no_ring_with_two_and_the_guest_gets_it_back() {
    type Asked = fn(&Driver);
    let memory: Asked = |driver| driver.memory(memory_at(LANE));
    let begin: Asked = |driver| {
        driver.stop(1);
        driver.start(1, ring_at(LANE));
    };
    for (word, asked) in [("map", memory), ("place", begin)] {
        let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
        let auto = spec(folder.path(), Mode::Auto);
        let backing = running(&scene, &PortSpec { mode: Mode::Relay, ..auto.clone() });
        let driver = scene.world().driver.upgrade().unwrap();
        scene.device.lock().refuses.insert(word, libc::ENOMEM);
        asked(&driver);
        assert_eq!(scene.device_has(), (false, false), "{word}");
        scene.assert_one_owner(&backing, word);
        scene.device.lock().refuses.clear();
        backing.set(&auto).unwrap();
        assert_eq!((has(&backing), scene.device_has()), ((ModeStatus::Vdpa, 1), (true, false)), "{word}");
        scene.assert_one_owner(&backing, word);
    }
}

#[test]
fn a_relays_device_keeps_the_guests_memory_during_a_migration_only_and_is_given_it_before_the_rings_stop() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let auto = spec(folder.path(), Mode::Auto);
    let backing = running(&scene, &auto);
    assert_eq!(scene.guests(), [0]);
    // Its pages may be others by the time that the device is to have them again: a balloon, free page reporting.
    backing.set(&PortSpec { mode: Mode::Relay, ..auto.clone() }).unwrap();
    assert_eq!((has(&backing), scene.guests()), ((ModeStatus::Relay, 1), vec![]));
    backing.memory(memory());
    assert_eq!(scene.guests(), [] as [u64; 0]);
    scene.device.lock().said.clear();
    backing.set(&auto).unwrap();
    assert_eq!((has(&backing), scene.guests()), ((ModeStatus::Vdpa, 1), vec![0]));
    let said = scene.device.lock().said.clone();
    let at = |word: &str| said.iter().position(|one| one == word).unwrap_or_else(|| panic!("no {word}: {said:?}"));
    assert!(at("map 0x0") < at("status 0"), "pinned within the pause: {said:?}");
    assert_eq!(said.iter().filter(|word| word.ends_with("map 0x0")).count(), 1, "{said:?}");

    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let log = RingLog { log: DirtyLog::map(file, 0, 4096).unwrap(), used: 0x3000 };
    let migrate = || (0..2).for_each(|index| backing.log(index, Some(log.clone())));
    let stay = || (0..2).for_each(|index| backing.log(index, None));
    scene.device.lock().said.clear();
    migrate();
    assert_eq!((has(&backing), scene.guests()), ((ModeStatus::Relay, 1), vec![0]));
    stay();
    assert_eq!((has(&backing), scene.guests()), ((ModeStatus::Vdpa, 1), vec![0]));
    assert!(!scene.device.lock().said.iter().any(|word| word.ends_with("map 0x0")), "nothing is pinned twice");
    migrate();
    backing.set(&PortSpec { mode: Mode::Relay, ..auto.clone() }).unwrap();
    assert_eq!(scene.guests(), [0]);
    stay();
    assert_eq!((has(&backing), scene.guests()), ((ModeStatus::Relay, 1), vec![]), "it was the operator's by then");
    backing.set(&auto).unwrap();
    migrate();
    (0..2).for_each(|index| assert!(backing.stop(index).is_some()));
    assert_eq!((has(&backing), scene.guests()), ((ModeStatus::Relay, 0), vec![]), "the guest has gone");
}

#[test]
fn guest_memory_that_cannot_be_pinned_again_leaves_the_relay_with_the_device() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let auto = spec(folder.path(), Mode::Auto);
    let backing = running(&scene, &auto);
    backing.set(&PortSpec { mode: Mode::Relay, ..auto.clone() }).unwrap();
    scene.device.lock().refuses_below = LANE;
    let refused = backing.set(&PortSpec { mode: Mode::Vdpa, ..auto.clone() }).unwrap_err();
    assert!(refused.message.contains("memory"), "{refused}");
    assert_eq!((has(&backing), scene.guests()), ((ModeStatus::Relay, 1), vec![]));
    assert_eq!(scene.device_has(), (false, true));
    scene.device.lock().refuses_below = 0;
    backing.set(&auto).unwrap();
    assert_eq!((has(&backing), scene.guests()), ((ModeStatus::Vdpa, 1), vec![0]));
}
