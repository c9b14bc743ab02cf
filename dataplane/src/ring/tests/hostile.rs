//! What a hostile or broken guest does: its port stops with a reason, or one frame is lost; nothing else is touched.

use std::sync::Arc;

use vm_memory::GuestAddress;

use super::driver::*;
use crate::BURST;
use crate::ring::error::RingPart;
use crate::ring::{Put, Ring, RingError, RingFeatures, Taken};

const INDIRECT_TOO: RingFeatures = RingFeatures { indirect: true, ..MODERN };
const SIZE: u16 = 16;
const FRAME: (u64, u32, u16) = (BUFFERS, 12 + 60, 0);

/// What rings of either kind say of the same chain at descriptor 0.
fn both(features: RingFeatures, write: impl Fn(&Driver, u16)) -> RingError {
    let [split, packed] = over_both(features).map(|features| both_ways(features, &write));
    assert_eq!(format!("{packed:?}"), format!("{split:?}").replace("head: 0", "head: 1"), "it comes second");
    split
}

/// What a packed ring says of it. It comes second, so that its place is 1.
fn packed(features: RingFeatures, write: impl Fn(&Driver, u16)) -> RingError {
    both_ways(RingFeatures { packed: true, ..features }, write)
}

/// What a split ring says of it.
fn split(features: RingFeatures, write: impl Fn(&Driver, u16)) -> RingError {
    both_ways(features, write)
}

/// What a transmit ring and a receive ring say of the same chain at descriptor 0, which `write` puts there; the
/// transmit ring has a good chain before it, which is completed.
fn both_ways(features: RingFeatures, write: impl Fn(&Driver, u16)) -> RingError {
    let mut driver = Driver::new(SIZE, features, 0);
    write(&driver, 0);
    driver.chain(15, &[FRAME]);
    driver.offer(15);
    driver.offer(0);
    driver.offer(15);
    let mut ring = driver.device();
    let mut sink = Sink::default();
    assert_eq!(ring.take(BURST, 1514, &mut sink).map(|taken| taken.frames), Ok(1), "the good chain");
    assert_eq!(driver.collect(), [(15, 0)], "what was before the bad chain is given back, the rest is not");
    let error = ring.take(BURST, 1514, &mut sink).unwrap_err();
    assert_eq!(ring.take(BURST, 1514, &mut sink), Err(error), "a broken ring stays broken");
    if features.packed {
        driver.flags(1, 0);
    } else {
        driver.write(driver.config.avail.0 + 2, driver.used);
    }
    assert!(ring.pending(), "even if the guest takes it back");
    assert_eq!((sink.frames.len(), driver.collect().len()), (1, 0));

    let mut driver = Driver::new(SIZE, features, 0);
    write(&driver, WRITE);
    driver.chain(15, &[(BUFFERS + 4096, 2048, WRITE)]);
    for head in [15, 0, 15] {
        driver.offer(head);
    }
    let mut ring = driver.device();
    let frames = Frames::plain(&[frame(1, 60), frame(2, 60), frame(3, 60)]);
    assert_eq!(ring.put(&frames), Ok(Put { frames: 1, bytes: 60, ring_full: 2, too_long: 0 }));
    assert_eq!(driver.collect(), [(15, 72)]);
    assert_eq!(ring.put(&frames), Err(error), "both directions agree");
    assert_eq!(driver.collect(), []);
    error
}

#[test]
fn an_available_index_that_jumps_too_far() {
    let mut driver = Driver::new(SIZE, MODERN, 65_530);
    let mut ring = driver.device();
    driver.write(driver.config.avail.0 + 2, 65_530u16.wrapping_add(17));
    let error = RingError::AvailIndex { found: 11, next: 65_530, size: 16 };
    assert_eq!(ring.take(BURST, 1514, &mut Sink::default()), Err(error));
    assert_eq!(driver.collect(), []);
}

#[test]
fn an_available_index_that_goes_back() {
    let driver = Driver::new(SIZE, MODERN, 100);
    let mut ring = driver.device();
    driver.write(driver.config.avail.0 + 2, 99u16);
    let error = RingError::AvailIndex { found: 99, next: 100, size: 16 };
    assert_eq!(ring.put(&Frames::plain(&[frame(1, 60)])), Err(error));
}

#[test]
fn a_head_that_is_no_descriptor() {
    let mut driver = Driver::new(SIZE, MODERN, 0);
    driver.chain(0, &[FRAME]);
    for head in [0, 0, SIZE] {
        driver.offer(head);
    }
    let mut ring = driver.device();
    let mut sink = Sink::default();
    assert_eq!(ring.take(BURST, 1514, &mut sink).map(|taken| taken.frames), Ok(2));
    assert_eq!(ring.take(BURST, 1514, &mut sink), Err(RingError::Head { head: 16, size: 16 }));
    assert_eq!(driver.collect().len(), 2);
}

#[test]
fn a_next_that_is_no_descriptor() {
    let error = split(MODERN, |driver, write| driver.descriptor(0, (BUFFERS, 10, NEXT | write, SIZE)));
    assert_eq!(error, RingError::Next { head: 0, next: 16, size: 16 });
}

#[test]
fn a_chain_that_loops() {
    let error = split(MODERN, |driver, write| {
        driver.descriptor(0, (BUFFERS, 1, NEXT | write, 1));
        driver.descriptor(1, (BUFFERS, 1, NEXT | write, 0));
    });
    assert_eq!(error, RingError::ChainLength { head: 0, limit: 16 });
}

#[test]
fn a_packed_chain_that_does_not_end() {
    for write in [0, WRITE] {
        let driver = Driver::new(SIZE, PACKED, 0);
        for slot in 0..SIZE {
            driver.descriptor_at(16 * u64::from(slot), (BUFFERS, 1, NEXT | AVAIL | write, 0));
        }
        let (mut ring, error) = (driver.device(), RingError::ChainLength { head: 0, limit: 16 });
        let frames = Frames::plain(&[frame(1, 60)]);
        assert_eq!(ring.take(BURST, 1514, &mut Sink::default()).map(|taken| taken.received), Err(error));
        assert_eq!(driver.device().put(&frames), Err(error));
    }
    let mut driver = Driver::new(4096, PACKED, 4000);
    (0..2000).for_each(|i| driver.descriptor(i, (BUFFERS, 0, NEXT, i + 1)));
    driver.offer(0);
    let error = driver.device().take(BURST, 1514, &mut Sink::default()).unwrap_err();
    assert_eq!(error, RingError::ChainLength { head: 4000, limit: 1024 });
}

#[test]
fn a_packed_chain_with_an_indirect_table_in_it() {
    for at in 0..3 {
        let error = packed(INDIRECT_TOO, |driver, write| {
            driver.chain(0, &[(BUFFERS, 5, write), (BUFFERS, 5, write), (BUFFERS, 5, write)]);
            driver.descriptor(at, (TABLES, 16, INDIRECT | if at < 2 { NEXT } else { 0 }, at + 1));
        });
        assert_eq!(error, RingError::IndirectNext { head: 1 });
    }
}

#[test]
fn a_packed_table_is_read_to_its_end_whatever_its_flags_say() {
    let mut driver = Driver::new(SIZE, RingFeatures { packed: true, ..INDIRECT_TOO }, 0);
    let sent = frame(1, 60);
    driver.fill(BUFFERS, &[&[0; 12], &sent[..]].concat());
    // NEXT where there is nothing behind, and none where there is (VIRTIO 1.2 section 2.8.7).
    for (i, part) in
        [(BUFFERS, 20, 0, 9), (BUFFERS + 20, 40, 0, 9), (BUFFERS + 60, 12, NEXT, 9)].into_iter().enumerate()
    {
        driver.descriptor_at(TABLES + 16 * i as u64, part);
    }
    driver.descriptor(7, (TABLES, 48, INDIRECT | WRITE, 0));
    driver.offer(7);
    let mut sink = Sink::default();
    assert_eq!(driver.device().take(BURST, 1514, &mut sink).map(|taken| taken.frames), Ok(1));
    assert_eq!(sink.frames[0].1, sent);
    assert_eq!(driver.collect(), [(7, 0)]);
}

#[test]
fn a_chain_of_empty_buffers_that_loops_in_the_largest_ring() {
    let mut driver = Driver::new(32_768, MODERN, 0);
    driver.descriptor(7, (BUFFERS, 0, NEXT, 7));
    driver.offer(7);
    let error = driver.device().take(BURST, 1514, &mut Sink::default()).unwrap_err();
    assert_eq!(error, RingError::ChainLength { head: 7, limit: 1024 });
}

#[test]
fn an_indirect_table_that_loops() {
    let error = split(INDIRECT_TOO, |driver, write| {
        driver.descriptor_at(TABLES, (BUFFERS, 0, NEXT | write, 0));
        driver.descriptor(0, (TABLES, 16, INDIRECT, 0));
    });
    assert_eq!(error, RingError::ChainLength { head: 0, limit: 1024 });
}

#[test]
fn an_indirect_descriptor_that_was_not_negotiated() {
    let error = both(MODERN, |driver, write| driver.indirect_chain(0, TABLES, &[(BUFFERS, 100, write)]));
    assert_eq!(error, RingError::IndirectNotNegotiated { head: 0 });
}

#[test]
fn an_indirect_table_inside_an_indirect_table() {
    let error = both(INDIRECT_TOO, |driver, write| {
        driver.indirect_chain(0, TABLES, &[(BUFFERS, 5, write), (TABLES, 32, INDIRECT)]);
    });
    assert_eq!(error, RingError::IndirectNested { head: 0 });
    let error = both(INDIRECT_TOO, |driver, _| driver.indirect_chain(0, TABLES, &[(TABLES, 16, INDIRECT)]));
    assert_eq!(error, RingError::IndirectNested { head: 0 });
}

#[test]
fn an_indirect_descriptor_with_a_successor() {
    let error = split(INDIRECT_TOO, |driver, _| driver.descriptor(0, (TABLES, 16, INDIRECT | NEXT, 1)));
    assert_eq!(error, RingError::IndirectNext { head: 0 });
}

#[test]
fn an_indirect_table_of_an_impossible_length() {
    for len in [0, 8, 17, 16 * 1025, u32::MAX] {
        let error = both(INDIRECT_TOO, |driver, _| driver.descriptor(0, (TABLES, len, INDIRECT, 0)));
        assert_eq!(error, RingError::IndirectLength { head: 0, len, max: 16_384 });
    }
}

#[test]
fn an_indirect_table_outside_memory() {
    let error = both(INDIRECT_TOO, |driver, _| driver.descriptor(0, (BUFFERS_END, 16, INDIRECT, 0)));
    assert_eq!(error, RingError::Address { head: 0, addr: BUFFERS_END, len: 16 });
    let error = both(INDIRECT_TOO, |driver, _| driver.descriptor(0, (u64::MAX - 8, 16, INDIRECT, 0)));
    assert_eq!(error, RingError::Address { head: 0, addr: u64::MAX - 8, len: 16 });
    // The table begins inside, and the chain goes on where there is no memory any more.
    let error = both(INDIRECT_TOO, |driver, write| {
        driver.descriptor_at(BUFFERS_END - 16, (BUFFERS, 1, NEXT | write, 1));
        driver.descriptor(0, (BUFFERS_END - 16, 32, INDIRECT, 0));
    });
    assert_eq!(error, RingError::Address { head: 0, addr: BUFFERS_END, len: 16 });
}

#[test]
fn an_indirect_table_whose_next_leaves_it() {
    let error = split(INDIRECT_TOO, |driver, write| {
        driver.descriptor_at(TABLES, (BUFFERS, 1, NEXT | write, 2));
        driver.descriptor(0, (TABLES, 32, INDIRECT, 0));
    });
    assert_eq!(error, RingError::Next { head: 0, next: 2, size: 2 });
}

#[test]
fn a_buffer_outside_memory() {
    for addr in [BUFFERS_END, BUFFERS_END - 10, BUFFERS - 1, u64::MAX - 20, u64::MAX] {
        let error = both(MODERN, |driver, write| driver.descriptor(0, (addr, 100, write, 0)));
        assert_eq!(error, RingError::Address { head: 0, addr, len: 100 }, "{addr:#x}");
    }
}

/// Takes one chain that costs only its own frame, from either kind of ring.
fn dropped(write: impl Fn(&Driver)) -> Taken {
    let [split, packed] = over_both(MODERN).map(|features| dropped_from(features, &write));
    assert_eq!(split, packed);
    split
}

fn dropped_from(features: RingFeatures, write: impl Fn(&Driver)) -> Taken {
    let mut driver = Driver::new(SIZE, features, 0);
    write(&driver);
    driver.chain(15, &[FRAME]);
    driver.offer(0);
    driver.offer(15);
    let mut sink = Sink::default();
    let taken = driver.device().take(BURST, 1514, &mut sink).unwrap();
    assert_eq!(driver.collect(), [(0, 0), (15, 0)], "the chain is given back, and the next one is served");
    assert_eq!((sink.frames.len(), taken.frames, taken.bytes), (1, 1, 60));
    assert_eq!(taken.received, taken.frames + taken.malformed + taken.too_long + taken.no_buffers);
    taken
}

#[test]
fn a_chain_too_short_for_a_frame() {
    for len in [0, 1, 11, 12, 25] {
        let taken = dropped(|driver| driver.chain(0, &[(BUFFERS, len, 0)]));
        assert_eq!((taken.malformed, taken.received_bytes), (1, 60 + u64::from(len.saturating_sub(12))), "{len} bytes");
    }
    let taken = dropped(|driver| driver.chain(0, &[(0, 0, 0), (BUFFERS, 11, 0), (0, 0, 0)]));
    assert_eq!(taken.malformed, 1);
}

#[test]
fn a_transmit_chain_that_the_device_should_write() {
    let taken = dropped(|driver| driver.chain(0, &[(BUFFERS, 100, WRITE)]));
    assert_eq!(taken.malformed, 1);
    let taken = dropped(|driver| driver.chain(0, &[(BUFFERS, 100, 0), (BUFFERS, 100, WRITE)]));
    assert_eq!(taken.malformed, 1);
}

#[test]
fn a_frame_longer_than_asked_for() {
    let taken = dropped(|driver| driver.chain(0, &[(BUFFERS, 12 + 1515, 0)]));
    assert_eq!((taken.too_long, taken.received_bytes), (1, 1515 + 60));
    // Four gigabytes a piece: not touched, so not even looked for in guest memory.
    let taken = dropped(|driver| driver.chain(0, &[(BUFFERS, u32::MAX, 0); 3]));
    assert_eq!((taken.too_long, taken.received_bytes), (1, 3 * u64::from(u32::MAX) - 12 + 60));
}

#[test]
fn a_frame_without_a_buffer_is_counted() {
    over_both(MODERN).into_iter().for_each(a_frame_without_a_buffer_is_counted_in);
}

fn a_frame_without_a_buffer_is_counted_in(features: RingFeatures) {
    let mut driver = Driver::new(SIZE, features, 0);
    driver.chain(0, &[FRAME]);
    driver.chain(1, &[(BUFFERS, 12, 0), (BUFFERS, 60, 0)]);
    for head in [0, 1, 0] {
        driver.offer(head);
    }
    let mut sink = Sink { room: Some(1), ..Sink::default() };
    let taken = driver.device().take(BURST, 1514, &mut sink).unwrap();
    let expected = Taken { received: 3, received_bytes: 180, frames: 1, bytes: 60, no_buffers: 2, ..Taken::default() };
    assert_eq!(taken, expected);
    assert_eq!(driver.collect().len(), 3);
}

#[test]
fn a_receive_chain_that_the_device_may_not_write() {
    over_both(MODERN).into_iter().for_each(a_receive_chain_that_the_device_may_not_write_in);
}

fn a_receive_chain_that_the_device_may_not_write_in(features: RingFeatures) {
    let mut driver = Driver::new(SIZE, features, 0);
    driver.fill(BUFFERS, &[0xaa; 200]);
    driver.chain(0, &[(BUFFERS, 200, 0)]);
    driver.offer(0);
    let mut ring = driver.device();
    assert_eq!(ring.put(&Frames::plain(&[frame(1, 60)])), Ok(Put { too_long: 1, ..Put::default() }));
    assert_eq!(driver.bytes(BUFFERS, 200), [0xaa; 200], "read-only for the device");
    // Behind a read-only part the rest is used, as QEMU does.
    let mut driver = Driver::new(SIZE, features, 0);
    driver.fill(BUFFERS, &[0xaa; 200]);
    let mut ring = driver.device();
    driver.chain(0, &[(BUFFERS, 100, 0), (BUFFERS + 100, 100, WRITE)]);
    driver.offer(0);
    assert_eq!(ring.put(&Frames::plain(&[frame(1, 60)])), Ok(Put { frames: 1, bytes: 60, ..Put::default() }));
    assert_eq!(driver.bytes(BUFFERS, 100), [0xaa; 100]);
    assert_eq!(driver.bytes(BUFFERS + 112, 60), frame(1, 60));
}

#[test]
fn receive_chains_without_any_room_end() {
    // All of the largest ring is empty buffers, in chains as long as may be: neither a frame nor a burst
    // may take that long to drop.
    let mut driver = Driver::new(32_768, RingFeatures { mergeable: true, ..MODERN }, 0);
    driver.chain(0, &[(BUFFERS, 0, WRITE); 1024]);
    for _ in 0..32_768 {
        driver.offer(0);
    }
    let frames: Vec<_> = (0..BURST as u64).map(|seed| frame(seed, 60)).collect();
    let put = driver.device().put(&Frames::plain(&frames));
    assert_eq!(put, Ok(Put { too_long: 2, ring_full: BURST as u64 - 2, ..Put::default() }));
}

#[test]
fn a_ring_that_is_none() {
    let refused = |change: &dyn Fn(&mut crate::ring::RingConfig)| {
        let mut driver = Driver::new(SIZE, RingFeatures { event_idx: true, ..MODERN }, 0);
        change(&mut driver.config);
        Ring::new(driver.map(), &driver.config).err()
    };
    let (desc, avail, used) = (RingPart::Descriptors, RingPart::Available, RingPart::Used);
    assert_eq!(refused(&|_| ()), None);
    assert_eq!(refused(&|config| config.size = 0), Some(RingError::Size(0)));
    assert_eq!(refused(&|config| config.size = 48), Some(RingError::Size(48)));
    for (part, align) in [(desc, 16), (avail, 2), (used, 4)] {
        for addr in [align as u64 / 2, 0x10_0000 + align as u64 / 2] {
            let error = refused(&|config| *place(config, part) = GuestAddress(addr));
            assert_eq!(error, Some(RingError::Alignment { part, addr, align }));
        }
        // Outside; at the very end of the address space; and across two regions, which is never one mapping.
        for addr in [BUFFERS_END, !15, BORDER - 16] {
            let error = refused(&|config| *place(config, part) = GuestAddress(addr));
            assert!(
                matches!(error, Some(RingError::Place { part: found, .. }) if found == part),
                "{part} at {addr:#x}"
            );
        }
    }
    // The event index counts: a ring that ends with its entries is too short.
    let end = |len: u64| GuestAddress(BUFFERS_END - len);
    assert_eq!(refused(&|config| config.avail = end(4 + 2 * 16 + 2)), None);
    assert!(refused(&|config| config.avail = end(4 + 2 * 16)).is_some());
    assert_eq!(refused(&|config| config.used = end(4 + 8 * 16 + 4)), None);
    assert!(refused(&|config| config.used = end(4 + 8 * 16)).is_some());
}

#[test]
fn a_packed_ring_that_is_none() {
    let refused = |change: &dyn Fn(&mut crate::ring::RingConfig)| {
        let mut driver = Driver::new(SIZE, PACKED, 0);
        change(&mut driver.config);
        Ring::new(driver.map(), &driver.config).err()
    };
    assert_eq!(refused(&|_| ()), None);
    assert_eq!(refused(&|config| config.size = 48), Some(RingError::Size(48)));
    assert_eq!(refused(&|config| config.base = 0x8010), Some(RingError::Base { base: 0x8010, size: 16 }));
    assert_eq!(refused(&|config| config.resume = Some(16)), Some(RingError::Base { base: 16, size: 16 }));
    for (part, align) in [(RingPart::Descriptors, 16), (RingPart::DriverEvents, 4), (RingPart::DeviceEvents, 4)] {
        let addr = 0x10_0000 + align as u64 / 2;
        let error = refused(&|config| *place(config, part) = GuestAddress(addr));
        assert_eq!(error, Some(RingError::Alignment { part, addr, align }));
        for addr in [BUFFERS_END, !15] {
            let error = refused(&|config| *place(config, part) = GuestAddress(addr));
            assert!(matches!(error, Some(RingError::Place { part: found, .. }) if found == part));
        }
    }
}

fn place(config: &mut crate::ring::RingConfig, part: RingPart) -> &mut GuestAddress {
    match part {
        RingPart::Descriptors => &mut config.desc,
        RingPart::Available | RingPart::DriverEvents => &mut config.avail,
        RingPart::Used | RingPart::DeviceEvents => &mut config.used,
    }
}

#[test]
fn a_map_without_the_ring_is_refused_and_the_old_one_stays() {
    over_both(MODERN).into_iter().for_each(a_map_without_the_ring_is_refused_and_the_old_one_stays_in);
}

fn a_map_without_the_ring_is_refused_and_the_old_one_stays_in(features: RingFeatures) {
    let mut driver = Driver::new(SIZE, features, 0);
    let mut ring = driver.device();
    let ranges = [(GuestAddress(BUFFERS), 4096)];
    let other = Arc::new(vm_memory::GuestMemoryMmap::from_ranges(&ranges).unwrap());
    assert!(matches!(ring.remap(crate::memory::GuestMap::new(&other)), Err(RingError::Place { .. })));
    driver.chain(0, &[FRAME]);
    driver.offer(0);
    assert_eq!(ring.take(BURST, 1514, &mut Sink::default()).map(|taken| taken.frames), Ok(1));
}

/// Chains of 1024 descriptors, one with `len` bytes and all others empty, as often as there are descriptors in the ring.
fn long_chains(driver: &mut Driver, len: u32, write: u16) {
    let mut table = vec![(BUFFERS, 0, write); 1024];
    table[1023] = (BUFFERS, len, write);
    driver.indirect_chain(0, TABLES, &table);
    for head in 0..64 {
        driver.descriptor(head, (TABLES, 16 * 1024, INDIRECT, 0));
        driver.offer(head);
    }
}

#[test]
fn long_chains_do_not_keep_the_worker_from_others() {
    over_both(INDIRECT_TOO).into_iter().for_each(long_chains_do_not_keep_the_worker_from_others_in);
}

fn long_chains_do_not_keep_the_worker_from_others_in(features: RingFeatures) {
    let mut driver = Driver::new(64, features, 0);
    long_chains(&mut driver, 72, 0);
    let (mut ring, mut sink) = (driver.device(), Sink::default());
    for round in 1..=16 {
        assert_eq!(ring.take(BURST, 1514, &mut sink).map(|taken| taken.received), Ok(4), "round {round}");
    }
    assert_eq!((sink.frames.len(), driver.collect().len()), (64, 64), "all the same none is lost");

    let mut driver = Driver::new(64, features, 0);
    long_chains(&mut driver, 72, WRITE);
    let mut ring = driver.device();
    let frames = Frames::plain(&vec![frame(1, 60); 10]);
    assert_eq!(ring.put(&frames), Ok(Put { frames: 4, bytes: 240, ring_full: 6, too_long: 0 }));
    assert_eq!(ring.put(&frames), Ok(Put { frames: 4, bytes: 240, ring_full: 6, too_long: 0 }));
    // Frames that fit nowhere cost no less.
    let frames = Frames::plain(&vec![frame(1, 61); 10]);
    assert_eq!(ring.put(&frames), Ok(Put { frames: 0, bytes: 0, ring_full: 6, too_long: 4 }));
}

#[test]
fn an_available_index_that_goes_back_behind_what_was_found_stops_the_ring() {
    let mut driver = Driver::new(256, MODERN, 0);
    let mut ring = driver.device();
    for head in 0..100 {
        driver.chain(head, &[(BUFFERS + 128 * u64::from(head), 12 + 60, 0)]);
        driver.offer(head);
    }
    let take = |ring: &mut Ring| ring.take(BURST, 1514, &mut Sink::default()).map(|taken| taken.frames);
    assert_eq!(take(&mut ring), Ok(BURST as u64));
    // The 36 others are known already.
    driver.write(driver.config.avail.0 + 2, BURST as u16);
    assert_eq!(take(&mut ring), Ok(36));
    assert_eq!(take(&mut ring), Err(RingError::AvailIndex { found: 64, next: 100, size: 256 }));

    let mut driver = Driver::new(256, MODERN, 0);
    let mut ring = driver.device();
    for head in 0..100 {
        driver.chain(head, &[(BUFFERS + 128 * u64::from(head), 128, WRITE)]);
        driver.offer(head);
    }
    let put = |ring: &mut Ring, count| {
        let frames: Vec<_> = (0..count).map(|seed| frame(seed, 60)).collect();
        ring.put(&Frames::plain(&frames)).map(|put| put.frames)
    };
    assert_eq!(put(&mut ring, 64), Ok(64));
    driver.write(driver.config.avail.0 + 2, 64u16);
    assert_eq!(put(&mut ring, 40), Ok(36));
    assert!(put(&mut ring, 1).is_err());
}

#[test]
fn chains_that_are_longer_or_shorter_than_when_they_were_found_harm_only_their_guest() {
    // Descriptors of so many bytes each; those with a bit in `now` go on with the next one, in the end.
    for (len, before, now) in
        [(60u32, 0u16, 0b0111_1110u16), (60, 0b0110_1101_1010, 0b1111_1111_0100), (30, 0b1010_0110, !0)]
    {
        let mut driver = Driver::new(SIZE, RingFeatures { mergeable: true, ..PACKED }, 0);
        let mut ring = driver.device();
        let head = |slot: u16, links: u16| (BUFFERS + 512 * u64::from(slot), len, WRITE | links >> slot & 1, slot + 1);
        for slot in 0..SIZE {
            driver.descriptor(slot, head(slot, before));
        }
        let offer = |driver: &mut Driver, until: u16| {
            while driver.avail < until {
                driver.offer(driver.avail);
            }
        };
        // What comes behind these is not known yet, when the first frame has been put.
        offer(&mut driver, 5);
        let small = Frames::plain(&[frame(1, 14)]);
        assert_eq!(ring.put(&small).map(|put| put.frames), Ok(1));
        offer(&mut driver, 12);
        for slot in 1..SIZE {
            let at = driver.config.desc.0 + 16 * u64::from(slot) + 14;
            let flags: u16 = driver.read(at);
            driver.flags(slot, flags & !NEXT | now >> slot & 1);
        }
        // Whatever comes of it: no panic, and nothing beyond the guest's own descriptors.
        let frames: Vec<_> = [200, 14, 100, 14, 14, 300].into_iter().map(|len| frame(2, len)).collect();
        for _ in 0..8 {
            let _ = ring.put(&Frames::plain(&frames));
        }
    }
}
