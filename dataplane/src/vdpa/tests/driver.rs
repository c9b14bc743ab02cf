//! DPDK's driver and a guest have a device in turns.

use std::sync::{Arc, Barrier};
use std::time::Duration;

use ringspan_protocol::LaneEventKind;
use vm_memory::{Bytes, GuestAddress};

use super::fake::{DRIVER_OK, Fake};
use super::{VERSION_1, memory, ready, ring};
use crate::memory::GuestMap;
use crate::ring::RingConfig;
use crate::vdpa::{Driver, Refusal};
use crate::vhost::RingSink;

/// Where the lane's memory begins.
const LANE: u64 = 1 << 32;
const LEN: usize = 0x10_0000;

fn lanes_ring(base: u32) -> RingConfig {
    let at = |offset| GuestAddress(LANE + offset);
    RingConfig { desc: at(0x1000), avail: at(0x2000), used: at(0x3000), ..ring(base, false) }
}

/// A driver whose rings are there.
fn driver(fake: &Fake) -> (Arc<Driver>, Arc<vm_memory::GuestMemoryMmap>) {
    let driver = Driver::new(ready(fake, VERSION_1).facts());
    let (lane, map) = memory(&[(LANE, LEN)]);
    driver.negotiated(VERSION_1);
    driver.memory(map);
    driver.start(0, lanes_ring(0));
    assert!(driver.ready(1, Duration::ZERO).unwrap_err().contains("1 of 2 rings"));
    driver.start(1, lanes_ring(0));
    driver.ready(1, Duration::ZERO).unwrap();
    (driver, lane)
}

fn mapped(fake: &Fake) -> Vec<u64> {
    fake.lock().mapped.keys().copied().collect()
}

fn nothing() -> Arc<GuestMap> {
    GuestMap::new(&Arc::default())
}

#[test]
fn the_guests_memory_stays_mapped_while_the_driver_has_the_device_and_the_lanes_never_while_the_guest_has() {
    let fake = Fake::new();
    let (driver, _lane) = driver(&fake);
    let (_guest, map) = memory(&[(0, LEN)]);
    let mut device = ready(&fake, VERSION_1);
    device.memory(Arc::clone(&map)).unwrap();
    for index in 0..2 {
        device.start(index, ring(0, false)).unwrap();
    }
    assert_eq!((mapped(&fake), device.running()), (vec![0], 1));
    for index in 0..2 {
        assert!(device.give_back(index).is_some());
    }
    fake.lock().said.clear();
    driver.lend(device, Some(Arc::clone(&map))).unwrap_or_else(|(refusal, _)| panic!("{refusal}"));
    assert_eq!(mapped(&fake), [0, LANE]);
    assert_eq!(fake.lock().rings[&1].place.unwrap().desc, LANE + 0x1000);
    assert!(
        !fake.lock().said.iter().any(|word| word.starts_with("unmap") || word == "map 0x0"),
        "nothing is pinned twice"
    );

    let mut device = driver.take().unwrap();
    assert_eq!(fake.lock().status & DRIVER_OK, 0);
    fake.lock().said.clear();
    device.memory(Arc::clone(&map)).unwrap();
    assert_eq!(
        (mapped(&fake), fake.lock().said.clone()),
        (vec![0], vec!["batch".into(), format!("unmap {LANE:#x}"), "end".into()])
    );
    for index in 0..2 {
        device.start(index, ring(0, false)).unwrap();
    }
    assert_eq!((device.running(), fake.lock().rings[&1].place.unwrap().desc), (1, 0x1000));
}

#[test]
fn a_driver_that_is_refused_is_not_waited_for() {
    let driver = Driver::new(ready(&Fake::new(), VERSION_1).facts());
    let (hour, failed) =
        (Duration::from_secs(3600), LaneEventKind::HandshakeFailed { reason: "no memory table".into() });
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| driver.ready(1, hour));
        driver.event(failed);
        assert!(waiting.join().unwrap().unwrap_err().contains("no memory table"));
    });
    driver.event(LaneEventKind::FrontendConnected { pid: 1 });
    assert!(driver.ready(1, Duration::ZERO).unwrap_err().contains("0 of 2 rings"));
    driver.event(LaneEventKind::FrontendDisconnected { reason: "it has gone".into() });
    assert!(driver.ready(1, hour).unwrap_err().contains("it has gone"));
}

#[test]
fn memory_that_the_guest_gives_up_is_not_kept_beside_the_drivers() {
    let fake = Fake::new();
    let (driver, _lane) = driver(&fake);
    let (_guest, map) = memory(&[(0, LEN), (0x20_0000, LEN)]);
    let mut device = ready(&fake, VERSION_1);
    device.memory(Arc::clone(&map)).unwrap();
    driver.lend(device, Some(map)).unwrap_or_else(|(refusal, _)| panic!("{refusal}"));
    assert_eq!(mapped(&fake), [0, 0x20_0000, LANE]);
    driver.guest_memory(nothing());
    assert_eq!(mapped(&fake), [LANE]);
    driver.memory(memory(&[(LANE, LEN), (LANE + 0x100_0000, LEN)]).1);
    assert_eq!(mapped(&fake), [LANE, LANE + 0x100_0000], "more memory of the lane's, while its rings run");
    assert_ne!(fake.lock().status & DRIVER_OK, 0);
}

#[test]
fn memory_of_the_lanes_is_mapped_anew_whenever_the_driver_names_it_and_the_device_stands_meanwhile() {
    let fake = Fake::new();
    let driver = Driver::new(ready(&fake, VERSION_1).facts());
    let (_lane, lanes) = memory(&[(LANE, LEN)]);
    driver.negotiated(VERSION_1);
    driver.memory(Arc::clone(&lanes));
    for index in 0..2 {
        driver.start(index, lanes_ring(0));
    }
    let (_guest, map) = memory(&[(0, LEN)]);
    let mut device = ready(&fake, VERSION_1);
    device.memory(Arc::clone(&map)).unwrap();
    driver.lend(device, Some(map)).unwrap_or_else(|(refusal, _)| panic!("{refusal}"));
    fake.lock().said.clear();
    // The same place: its pages were given back and taken again.
    driver.memory(lanes);
    let said = fake.lock().said.clone();
    let at = |word: &str| said.iter().position(|one| one == word).unwrap_or_else(|| panic!("no {word}: {said:?}"));
    let (unmapped, mapped_again) = (format!("unmap {LANE:#x}"), format!("map {LANE:#x}"));
    assert!(at("status 0") < at(&unmapped) && at(&unmapped) < at(&mapped_again), "{said:?}");
    assert!(!said.iter().any(|word| word.ends_with("map 0x0")), "the guest's stays: {said:?}");
    assert_eq!(said.iter().filter(|word| **word == mapped_again).count(), 1, "{said:?}");
    assert!(fake.runs());
}

#[test]
fn who_only_looks_does_not_wait_for_memory() {
    let fake = Fake::new();
    let (driver, _lane) = driver(&fake);
    driver.lend(ready(&fake, VERSION_1), None).unwrap_or_else(|(refusal, _)| panic!("{refusal}"));
    let midway = Arc::new(Barrier::new(2));
    fake.lock().waits_after = Some((0, Arc::clone(&midway)));
    std::thread::scope(|scope| {
        let told = scope.spawn(|| driver.memory(memory(&[(LANE, 2 * LEN)]).1));
        midway.wait();
        assert_eq!((driver.link(), driver.gone(), driver.failed()), (Some((true, None)), false, None));
        midway.wait();
        told.join().unwrap();
    });
    assert!(fake.runs());
}

#[test]
fn memory_of_a_guest_where_the_lane_has_its_own_is_given_up_meanwhile() {
    let fake = Fake::new();
    let (driver, _lane) = driver(&fake);
    let (_guest, map) = memory(&[(0, LEN), (LANE - 0x1000, LEN)]);
    let mut device = ready(&fake, VERSION_1);
    device.memory(Arc::clone(&map)).unwrap();
    driver.lend(device, Some(Arc::clone(&map))).unwrap_or_else(|(refusal, _)| panic!("{refusal}"));
    assert_eq!(mapped(&fake), [0, LANE]);
    let mut device = driver.take().unwrap();
    device.memory(map).unwrap();
    assert_eq!(mapped(&fake), [0, LANE - 0x1000]);
}

#[test]
fn what_the_driver_gave_and_the_device_has_not_sent_is_counted_and_waited_for() {
    let fake = Fake::new();
    let (driver, lane) = driver(&fake);
    assert_eq!(driver.sent(Duration::ZERO), 0);
    let available = |ring: u64, to: u16| lane.write_obj(to.to_le(), GuestAddress(LANE + ring + 2)).unwrap();
    available(0x2000, 5);
    assert_eq!(driver.sent(Duration::from_millis(1)), 5, "of the transmit ring alone");
    let sent = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| driver.sent(Duration::from_secs(60)));
        available(0x3000, 5);
        waiting.join().unwrap()
    });
    assert_eq!(sent, 0);
}

#[test]
fn a_device_that_does_not_take_the_drivers_rings_comes_back() {
    let fake = Fake::new();
    let (driver, lane) = driver(&fake);
    lane.write_obj(7u16.to_le(), GuestAddress(LANE + 0x3002)).unwrap();
    let device = ready(&fake.clone().with(|device| device.moves = false), VERSION_1);
    let (refusal, device) = driver.lend(device, None).err().unwrap();
    assert!(matches!(refusal, Refusal::Position { at: 7, .. }), "{refusal}");
    assert_eq!((device.running(), driver.take().is_some(), driver.link()), (0, false, None));
}
