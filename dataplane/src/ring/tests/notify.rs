//! Interrupts and kicks, with and without EVENT_IDX; where a ring goes on.

use super::driver::*;
use crate::BURST;
use crate::ring::{Ring, RingFeatures};

const EVENTS: RingFeatures = RingFeatures { event_idx: true, ..MODERN };

/// A receive ring with all its buffers available.
fn filled(features: RingFeatures, start: u16) -> (Driver, Ring) {
    let mut driver = Driver::new(256, features, start);
    for i in 0..256 {
        driver.chain(i, &[(BUFFERS + 512 * u64::from(i), 512, WRITE)]);
        driver.offer(i);
    }
    let ring = driver.device();
    (driver, ring)
}

fn put(ring: &mut Ring, count: u64) {
    let frames: Vec<_> = (0..count).map(|seed| frame(seed, 60)).collect();
    assert_eq!(ring.put(&Frames::plain(&frames)).unwrap().frames, count);
}

#[test]
fn a_burst_is_at_most_one_interrupt() {
    over_both(MODERN).into_iter().for_each(one_interrupt_a_burst);
}

fn one_interrupt_a_burst(features: RingFeatures) {
    let (driver, mut ring) = filled(features, 0);
    put(&mut ring, 64);
    assert_eq!(driver.interrupts(), 1);
    put(&mut ring, 0);
    assert_eq!(driver.interrupts(), 0, "nothing was used");
    driver.quiet(true);
    put(&mut ring, 64);
    assert_eq!(driver.interrupts(), 0, "NO_INTERRUPT");
    driver.quiet(false);
    put(&mut ring, 1);
    assert_eq!(driver.interrupts(), 1);
}

#[test]
fn an_interrupt_when_the_event_index_is_passed_and_only_then() {
    over_both(EVENTS).into_iter().for_each(interrupts_at_the_event);
}

fn interrupts_at_the_event(features: RingFeatures) {
    // Around the wrap of the index, or of the ring.
    let start = 65_530;
    let (driver, mut ring) = filled(features, start);
    if !features.packed {
        driver.quiet(true); // Means nothing with EVENT_IDX.
    }
    driver.want(1000);
    put(&mut ring, 1);
    assert_eq!(driver.interrupts(), 1, "always the first time: who knows what came before");
    let mut index = start.wrapping_add(1);
    for (event, count, expected) in
        [(10, 3, 0), (3, 3, 0), (7, 1, 1), (7, 1, 0), (10, 1, 0), (10, 1, 1), (20, 60, 1), (20, 10, 0), (255, 10, 0)]
    {
        driver.want(start.wrapping_add(event));
        put(&mut ring, count);
        let (old, new) = (index, index.wrapping_add(count as u16));
        assert_eq!(driver.interrupts(), expected, "event {event}, from {old} to {new}");
        index = new;
    }
}

#[test]
fn a_new_ring_wakes_its_guest_once() {
    for features in over_both(EVENTS) {
        let driver = Driver::new(16, features, 5);
        let ring = Ring::new(driver.map(), &driver.config).unwrap();
        assert_eq!(driver.interrupts(), 1);
        drop(ring);
    }
}

#[test]
fn kicks_for_a_packed_ring_are_suppressed_and_asked_for() {
    for (event_idx, start) in [(false, 0), (true, 15), (true, 16), (true, 31)] {
        let mut driver = Driver::new(16, RingFeatures { event_idx, ..PACKED }, start);
        let event = |driver: &Driver| (driver.read::<u16>(driver.config.used.0 + 2), driver.read(driver.config.used.0));
        let mut ring = driver.device();
        ring.suppress_kicks();
        assert_eq!(event(&driver).0, 1, "RING_EVENT_FLAGS_DISABLE");
        assert!(!ring.request_kicks());
        let wanted = if event_idx { (2, driver.pack(start)) } else { (0, 0xffff) };
        assert_eq!(event(&driver), wanted, "for the next slot (RING_EVENT_FLAGS_DESC), or for any");
        assert!(!ring.pending());
        driver.chain(0, &[(BUFFERS, 72, 0)]);
        driver.offer(0);
        assert!(ring.pending());
        assert!(ring.request_kicks(), "something came meanwhile");
        assert_eq!(ring.take(BURST, 1514, &mut Sink::default()).unwrap().frames, 1);
        assert!(!ring.request_kicks());
        assert!(!event_idx || event(&driver).1 == driver.pack(start + 1));
    }
}

#[test]
fn kicks_are_suppressed_and_asked_for() {
    let mut driver = Driver::new(16, MODERN, 0);
    let flags = |driver: &Driver| driver.read::<u16>(driver.config.used.0);
    let mut ring = driver.device();
    ring.suppress_kicks();
    assert_eq!(flags(&driver), 1);
    assert!(!ring.request_kicks());
    assert_eq!(flags(&driver), 0);
    driver.chain(0, &[(BUFFERS, 72, 0)]);
    driver.offer(0);
    assert!(ring.pending());
    assert!(ring.request_kicks(), "something came meanwhile");
}

#[test]
fn kicks_are_suppressed_and_asked_for_by_event_index() {
    let mut driver = Driver::new(16, EVENTS, 65_535);
    let event = |driver: &Driver| driver.read::<u16>(driver.config.used.0 + 4 + 8 * 16);
    // What a driver does: it kicks when its index passes the event (vring_need_event).
    let kicks = |event: u16, old: u16, new: u16| new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old);
    let mut ring = driver.device();
    assert!(!ring.request_kicks());
    assert!(kicks(event(&driver), 65_535, 0));
    ring.suppress_kicks();
    assert!(!kicks(event(&driver), 65_535, 15));
    assert_eq!(driver.read::<u16>(driver.config.used.0), 0, "the flag stays clear");
    driver.chain(0, &[(BUFFERS, 72, 0)]);
    driver.offer(0);
    assert!(ring.request_kicks(), "something came meanwhile");
    assert_eq!(ring.take(BURST, 1514, &mut Sink::default()).unwrap().frames, 1);
    assert!(!ring.request_kicks());
    assert!(kicks(event(&driver), 0, 1));
}

#[test]
fn a_ring_goes_on_where_the_used_index_stands() {
    let mut driver = Driver::new(16, MODERN, 65_534);
    driver.config.base = 65_000; // What the front-end remembers from before a crash.
    driver.chain(0, &[(BUFFERS, 72, 0)]);
    let mut ring = driver.device();
    for _ in 0..5 {
        driver.offer(0);
    }
    assert_eq!(ring.take(2, 1514, &mut Sink::default()).unwrap().frames, 2);
    assert_eq!(ring.position(), 0);
    drop(ring);
    driver.config.base = 0;
    let mut ring = driver.device();
    assert_eq!(ring.take(BURST, 1514, &mut Sink::default()).unwrap().frames, 3);
    assert_eq!(driver.collect(), [(0, 0); 5], "none lost, none twice");
}

#[test]
fn a_ring_goes_on_in_another_map() {
    over_both(MODERN).into_iter().for_each(goes_on_elsewhere);
}

fn goes_on_elsewhere(features: RingFeatures) {
    let mut driver = Driver::new(16, features, 0);
    driver.chain(0, &[(BUFFERS, 72, 0)]);
    driver.offer(0);
    let mut ring = driver.device();
    assert_eq!(ring.take(BURST, 1514, &mut Sink::default()).unwrap().frames, 1);
    let before = driver.memory.clone();
    let other = Driver::new(16, features, 1);
    driver.memory = other.memory.clone();
    driver.chain(0, &[(BUFFERS, 72, 0)]);
    ring.remap(driver.map()).unwrap();
    drop(before);
    driver.offer(0);
    assert_eq!(ring.take(BURST, 1514, &mut Sink::default()).unwrap().frames, 1);
    assert_eq!((ring.position(), driver.collect().len()), (driver.position(2), 2));
}
