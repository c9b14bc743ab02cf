//! Frames that are lent: their chains come back when the loan does, and in ring order whatever comes back first.

use std::collections::HashSet;
use std::ptr::NonNull;
use std::sync::Arc;

use super::driver::*;
use crate::BURST;
use crate::ring::{FrameSink, Loan, NetHeader, RecordHandle, Ring, RingConfig, RingFeatures, RingRecord};

/// Frames of fewer bytes are copied.
const FROM: usize = 1000;

/// Lends frames of [`FROM`] bytes and more, and copies the others.
#[derive(Default)]
struct Lender {
    copies: Sink,
    /// Where each lent frame is, and how long.
    lent: Vec<(usize, usize)>,
    away: HashSet<u16>,
}

// SAFETY: as for `Sink`; what is lent is not touched.
unsafe impl FrameSink for Lender {
    const LENDS: bool = true;

    fn frame(&mut self, header: &NetHeader, len: usize) -> Option<NonNull<u8>> {
        self.copies.frame(header, len)
    }

    fn lends_from(&self) -> usize {
        FROM
    }

    unsafe fn lend(&mut self, _: &NetHeader, start: NonNull<u8>, len: usize) -> Option<Loan> {
        let number = self.lent.len() as u16;
        (len >= FROM).then(|| {
            self.lent.push((start.addr().get(), len));
            self.away.insert(number);
            Loan(number)
        })
    }
}

impl Lender {
    fn settle(&self, ring: &mut Ring) -> usize {
        ring.settle(|Loan(number)| !self.away.contains(&number))
    }
}

/// Numbers that look like chance, and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn every_kind() -> impl Iterator<Item = RingFeatures> {
    over_both(MODERN).into_iter().flat_map(|kind| [false, true].map(|in_order| RingFeatures { in_order, ..kind }))
}

/// Offers the chain at `head`: a frame of `len` bytes, with its header in one buffer, in one of its own behind it, or begun in the header's.
fn offer(driver: &mut Driver, head: u16, len: u32, kind: u32) {
    let at = BUFFERS + 4096 * u64::from(head);
    match kind {
        1 => driver.chain(head, &[(at, 12 + len, 0)]),
        2 => driver.chain(head, &[(at + 3000, 12, 0), (at, len, 0)]),
        _ => driver.chain(head, &[(at + 3000, 12 + 60, 0), (at, len - 60, 0)]),
    }
    driver.offer(head);
}

#[test]
fn chains_come_back_in_ring_order_once_nobody_reads_them() {
    every_kind().for_each(come_back_in_order);
}

fn come_back_in_order(features: RingFeatures) {
    let size = 32;
    let mut dice = Dice(7);
    let mut driver = Driver::new(size, features, 65_500);
    let mut ring = driver.device();
    ring.allow_loans();
    let mut sink = Lender::default();
    // Chains that the device has, in order, each with its loan once it was taken.
    let mut flying: Vec<(u16, Option<u16>)> = Vec::new();
    let (mut taken, mut free) = (0, (0..size / 2).map(|i| 2 * i).collect::<Vec<u16>>());
    let mut waited = 0;
    for _ in 0..3000 {
        for _ in 0..dice.below(6) {
            let Some(head) = free.pop() else { break };
            let (large, kind) = (dice.below(5) < 2, dice.below(3) as u32 + 1);
            // Those below `SHORT` are copied by a loop of their own.
            let small = if dice.below(2) < 1 { 90 } else { 200 };
            offer(&mut driver, head, if large { 1200 } else { small }, kind);
            flying.push((head, (large && kind < 3).then_some(0)));
        }
        let mut number = sink.lent.len() as u16;
        taken += ring.take(dice.below(BURST as u64) as usize + 1, 1514, &mut sink).unwrap().received as usize;
        // Those that were taken just now get the numbers that follow; 0 is none.
        for (_, loan) in flying[..taken].iter_mut().filter(|(_, loan)| *loan == Some(0)) {
            number += 1;
            *loan = Some(number);
        }
        assert_eq!(
            usize::from(number),
            sink.lent.len(),
            "large frames with a buffer for themselves, or that they share with their header, are lent, and no others"
        );
        sink.away.retain(|_| dice.below(10) < 7);
        let done =
            flying[..taken].iter().take_while(|(_, loan)| loan.is_none_or(|n| !sink.away.contains(&(n - 1)))).count();
        waited += usize::from(done < taken);
        sink.settle(&mut ring);
        let back: Vec<_> = driver.collect().into_iter().map(|(head, _)| head as u16).collect();
        let expected: Vec<_> = flying.drain(..done).map(|(head, _)| head).collect();
        assert_eq!(back, expected);
        taken -= done;
        assert_eq!(ring.owed(), taken);
        free.splice(0..0, back);
        if sink.lent.len() > 60_000 {
            break;
        }
    }
    assert!(waited > 100, "chains had to wait {waited} times");
}

/// Two descriptors whose buffers touch are one buffer, but two slots.
#[test]
fn no_more_is_on_the_way_than_a_ring_has_slots_whatever_a_guest_makes_available() {
    let mut driver = Driver::new(8, PACKED, 0);
    let mut ring = driver.device();
    ring.allow_loans();
    let mut sink = Lender::default();
    for head in 0..5 {
        offer(&mut driver, head, 1200, 1);
    }
    assert_eq!(ring.take(BURST, 1514, &mut sink).unwrap().lent, 5);
    driver.overcommit();
    for head in [8, 10] {
        let at = BUFFERS + 4096 * u64::from(head);
        driver.chain(head, &[(at, 12 + 40, 0), (at + 52, 40, 0)]);
        driver.offer(head);
    }
    assert_eq!(ring.take(BURST, 1514, &mut sink).unwrap().frames, 1, "four slots where three are left");
    assert_eq!(ring.owed(), 6);
    sink.away.clear();
    assert_eq!(sink.settle(&mut ring), 6);
    assert_eq!(ring.take(BURST, 1514, &mut sink).unwrap().frames, 1);
    assert_eq!(sink.copies.frames.len(), 2);
}

#[test]
fn short_frames_take_no_more_slots_than_a_ring_has_left() {
    let mut driver = Driver::new(8, PACKED, 0);
    let mut ring = driver.device();
    ring.allow_loans();
    let mut sink = Lender::default();
    for head in [0, 2, 4] {
        offer(&mut driver, head, 1200, 2);
    }
    assert_eq!(ring.take(BURST, 1514, &mut sink).unwrap().lent, 3, "of two slots each");
    driver.overcommit();
    for head in 6..9 {
        offer(&mut driver, head, 90, 1);
    }
    assert_eq!(ring.take(BURST, 1514, &mut sink).unwrap().frames, 2);
    assert_eq!(ring.owed(), 5);
}

#[test]
fn what_is_lent_stays_where_the_guest_wrote_it() {
    let in_a_table = |driver: &mut Driver| {
        let at = BUFFERS + 4096;
        driver.indirect_chain(1, TABLES, &[(BUFFERS, 12, 0), (at + 12, 1400, 0)]);
        driver.offer(1);
    };
    stays(MODERN, |driver| offer(driver, 1, 1400, 1));
    over_both(RingFeatures { indirect: true, ..MODERN }).into_iter().for_each(|features| stays(features, in_a_table));
}

fn stays(features: RingFeatures, offer: impl FnOnce(&mut Driver)) {
    let mut driver = Driver::new(4, features, 0);
    let mut ring = driver.device();
    ring.allow_loans();
    offer(&mut driver);
    let mut sink = Lender::default();
    let taken = ring.take(BURST, 1514, &mut sink).unwrap();
    assert_eq!((taken.received, taken.frames, taken.lent, taken.bytes), (1, 1, 1, 1400));
    let mut cache = Default::default();
    let span = driver.map().translate(&mut cache, BUFFERS + 4096 + 12, 1400).unwrap();
    assert_eq!(sink.lent, [(span.start.addr().get(), 1400)]);
    assert!(driver.collect().is_empty());
    assert_eq!(driver.interrupts(), 0, "there is nothing to tell yet");
    sink.away.clear();
    assert_eq!(sink.settle(&mut ring), 1);
    assert_eq!((driver.collect().len(), driver.interrupts()), (1, 1));
}

#[test]
fn a_ring_without_room_for_loans_takes_nothing_by_them() {
    let mut driver = Driver::new(4, MODERN, 0);
    let mut ring = driver.device();
    offer(&mut driver, 1, 1400, 1);
    assert_eq!(ring.take(BURST, 1514, &mut Lender::default()).unwrap().received, 0);
    assert_eq!(ring.take(BURST, 1514, &mut Sink::default()).unwrap().received, 1);
}

/// A ring whose record outlives it.
fn with_record(driver: &mut Driver) {
    driver.config.record = Some(RecordHandle::new(Arc::new(RingRecord::default()), 0));
}

#[test]
fn a_process_that_follows_a_killed_one_gives_back_what_may_have_been_sent_and_sends_it_not_again() {
    every_kind().for_each(follows_a_killed_one);
}

fn follows_a_killed_one(features: RingFeatures) {
    let start = if features.packed { 5 } else { 65_530 };
    let mut driver = Driver::new(16, features, start);
    with_record(&mut driver);
    let mut ring = driver.device();
    ring.allow_loans();
    let mut sink = Lender::default();
    for (head, len, kind) in [(0, 1400, 1), (2, 100, 1), (4, 1400, 3), (6, 1400, 2)] {
        offer(&mut driver, head, len, kind);
    }
    assert_eq!(ring.take(BURST, 1514, &mut sink).unwrap().lent, 2);
    sink.away.remove(&0);
    assert_eq!(sink.settle(&mut ring), 3);
    assert_eq!(driver.collect().len(), 3);
    drop(ring);
    // Not taken before.
    offer(&mut driver, 8, 1300, 1);

    let mut ring = driver.device();
    let back: Vec<_> = driver.collect().into_iter().map(|(head, _)| head).collect();
    assert_eq!(back, [6], "{features:?}: the one that was away");
    let mut sink = Sink::default();
    assert_eq!(ring.take(BURST, 1514, &mut sink).unwrap().received, 1);
    assert_eq!(sink.frames[0].1.len(), 1300);
    drop(ring);
    driver.collect();
    offer(&mut driver, 10, 1200, 1);
    let mut ring = driver.device();
    assert_eq!(ring.take(BURST, 1514, &mut sink).unwrap().received, 1, "what was left over is given back once");
}

#[test]
fn what_a_guest_left_is_not_taken_from_its_next_life() {
    for features in over_both(MODERN) {
        let mut driver = Driver::new(16, features, 0);
        with_record(&mut driver);
        let mut ring = driver.device();
        ring.allow_loans();
        for head in [0, 2, 4] {
            offer(&mut driver, head, 1400, 1);
        }
        assert_eq!(ring.take(BURST, 1514, &mut Lender::default()).unwrap().lent, 3);
        drop(ring);
        let RingConfig { record, .. } = driver.config.clone();
        let mut driver = Driver::new(16, features, 0);
        driver.config.record = record;
        let mut ring = driver.device();
        offer(&mut driver, 0, 1400, 1);
        assert_eq!(ring.take(BURST, 1514, &mut Sink::default()).unwrap().received, 1);
    }
}
