//! Guests that follow no rule at all. Nothing is promised to them but that the device stays within their memory, keeps its
//! books, and comes back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::driver::*;
use crate::BURST;
use crate::ring::{Ring, RingError, RingFeatures};

/// A descriptor that is near enough to a legal one to get somewhere.
fn descriptor() -> impl Strategy<Value = Descriptor> {
    let addr = prop_oneof![
        4 => BUFFERS..BUFFERS_END,
        2 => (BORDER - 3000)..BORDER,
        1 => (BUFFERS_END - 3000)..(BUFFERS_END + 10),
        3 => (0u64..256).prop_map(|i| TABLES + 16 * i),
        1 => 0u64..(2 << 20),
        1 => any::<u64>(),
    ];
    let len = prop_oneof![4 => 0u32..2000, 2 => (0u32..20).prop_map(|i| 16 * i), 1 => any::<u32>()];
    let flags = prop_oneof![3 => Just(0u16), 3 => 0u16..8, 2 => Just(WRITE), 1 => any::<u16>()];
    let next = prop_oneof![4 => 0u16..16, 1 => any::<u16>()];
    (addr, len, flags, next)
}

fn features() -> impl Strategy<Value = RingFeatures> {
    any::<[bool; 6]>().prop_map(|[event_idx, indirect, mergeable, version_1, packed, in_order]| RingFeatures {
        event_idx,
        indirect,
        mergeable,
        version_1,
        packed,
        in_order,
        ..MODERN
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: super::cases(8, 300), ..ProptestConfig::default() })]

    #[test]
    fn any_ring_at_all_is_survived_and_accounted_for(
        features in features(),
        start: u16,
        ring in prop::collection::vec(descriptor(), 16),
        table in prop::collection::vec(descriptor(), 32),
        heads in prop::collection::vec(prop_oneof![9 => 0u16..16, 1 => any::<u16>()], 16),
        available in prop_oneof![9 => 0u16..=16, 1 => any::<u16>()],
        frames in prop::collection::vec(0usize..4000, 1..70),
    ) {
        let features = RingFeatures { packed: false, ..features };
        for taking in [true, false] {
            let mut driver = Driver::new(16, features, start);
            ring.iter().enumerate().for_each(|(i, &descriptor)| driver.descriptor(i as u16, descriptor));
            for (i, &descriptor) in table.iter().enumerate() {
                driver.descriptor_at(TABLES + 16 * i as u64, descriptor);
            }
            heads.iter().for_each(|&head| driver.offer(head));
            driver.write(driver.config.avail.0 + 2, start.wrapping_add(available));
            let mut device = driver.device();
            let mut used = 0;
            if taking {
                let mut sink = Sink::default();
                while let Ok(taken) = device.take(BURST, 1514, &mut sink) {
                    prop_assert_eq!(taken.received, taken.frames + taken.malformed + taken.too_long + taken.no_buffers);
                    used += taken.received;
                    if taken.received == 0 {
                        break;
                    }
                }
            } else {
                let source: Vec<_> = frames.iter().map(|&len| frame(len as u64, len)).collect();
                while let Ok(put) = device.put(&Frames::plain(&source)) {
                    prop_assert_eq!(put.frames + put.ring_full + put.too_long, frames.len() as u64);
                    if put.frames == 0 {
                        break;
                    }
                }
                // A guest that offers one chain twice, or the ring's own memory as a buffer, gets what it asked for.
                used = u64::from(device.position().wrapping_sub(start));
            }
            prop_assert!(used <= u64::from(available));
            prop_assert_eq!(device.position(), start.wrapping_add(used as u16));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: super::cases(8, 300), ..ProptestConfig::default() })]

    #[test]
    fn any_packed_ring_at_all_is_survived_and_accounted_for(
        features in features(),
        start: u16,
        ring in prop::collection::vec((descriptor(), 0u8..16), 16),
        table in prop::collection::vec(descriptor(), 32),
        driver_event: u32,
        frames in prop::collection::vec(0usize..4000, 1..70),
    ) {
        let features = RingFeatures { packed: true, ..features };
        for taking in [true, false] {
            let driver = Driver::new(16, features, start);
            for (i, &((addr, len, flags, id), kind)) in ring.iter().enumerate() {
                // Mostly what is available at that place, in one descriptor.
                let now = if (start.wrapping_sub(i as u16 + 1) ^ start) & 16 == 0 { USED } else { AVAIL };
                let flags = match kind {
                    0 => flags,
                    1..4 => flags & !USED & !AVAIL | now,
                    _ => flags & (WRITE | INDIRECT) | now,
                };
                driver.descriptor_at(16 * i as u64, (addr, len, flags, id));
            }
            for (i, &descriptor) in table.iter().enumerate() {
                driver.descriptor_at(TABLES + 16 * i as u64, descriptor);
            }
            driver.write(driver.config.avail.0, driver_event);
            let mut device = driver.device();
            // A guest that offers the ring's own memory as a buffer may go on for ever.
            for _ in 0..20 {
                if taking {
                    let Ok(taken) = device.take(BURST, 1514, &mut Sink::default()) else { break };
                    prop_assert_eq!(taken.received, taken.frames + taken.malformed + taken.too_long + taken.no_buffers);
                    prop_assert!(taken.received <= 16);
                } else {
                    let source: Vec<_> = frames.iter().map(|&len| frame(len as u64, len)).collect();
                    let Ok(put) = device.put(&Frames::plain(&source)) else { break };
                    prop_assert_eq!(put.frames + put.ring_full + put.too_long, frames.len() as u64);
                    prop_assert!(put.frames <= 16);
                }
                prop_assert!(device.position() & 0x7fff < 16);
                device.pending();
            }
        }
    }
}

/// The guest's other processors write to the ring while the device reads it. `run` says whether the ring is still good.
fn scribbled(run: impl Fn(&mut Ring) -> bool) {
    for packed in [false, true] {
        scribbled_in(RingFeatures { event_idx: true, indirect: true, mergeable: true, packed, ..MODERN }, &run);
    }
}

fn scribbled_in(features: RingFeatures, run: impl Fn(&mut Ring) -> bool) {
    let driver = Driver::new(256, features, 0);
    let map = driver.map();
    let stop = AtomicBool::new(false);
    let (mut rounds, mut broken) = (0, 0);
    // A packed ring that looks as if it had been left in the middle is refused: until it does not.
    let begin = || {
        loop {
            match Ring::new(map.clone(), &driver.config) {
                Err(RingError::Lost) => {}
                ring => return ring.unwrap(),
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| scribble(&driver.memory, features.packed, &stop));
        // The other thread ends however this one does.
        let _stop = Stop(&stop);
        let start = Instant::now();
        let mut ring = begin();
        // While the other thread does not run, each round may end alike: such a machine gets more time.
        let both = |rounds, broken| 0 < broken && broken < rounds;
        while start.elapsed() < Duration::from_millis(300)
            || !both(rounds, broken) && start.elapsed() < Duration::from_secs(60)
        {
            rounds += 1;
            if !run(&mut ring) {
                broken += 1;
                ring = begin();
            }
        }
    });
    assert!(broken > 0 && broken < rounds, "{rounds} rounds, of which {broken} broke the ring");
}

/// Raises a flag when it goes.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Legal and illegal descriptors, heads and indices, all the time.
fn scribble(memory: &GuestMemoryMmap, packed: bool, stop: &AtomicBool) {
    let mut noise = 1u64;
    while !stop.load(Ordering::Relaxed) {
        for i in 0..256u64 {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let wild = noise >> 40 & 15 == 0;
            let addr = if wild { noise } else { BUFFERS + (noise >> 44) };
            let (len, flags, next) = (noise >> 20 & 0x7ff, noise >> 50 & 7, noise >> 53 & 0xff);
            memory.write_obj(addr, GuestAddress(16 * i)).unwrap();
            if packed {
                // Half of them in a lap of their own.
                let lap = [AVAIL, USED][(noise >> 63) as usize];
                let rest = len | next << 32 | (flags & 6 | u64::from(lap) | (noise >> 33 & noise >> 34 & 1)) << 48;
                memory.write_obj(rest, GuestAddress(16 * i + 8)).unwrap();
                continue;
            }
            memory.write_obj(len | flags << 32 | next << 48, GuestAddress(16 * i + 8)).unwrap();
            memory.write_obj((noise >> 30) as u16 & 0xff, GuestAddress((1 << 20) + 4 + 2 * i)).unwrap();
            if i % 64 == 0 {
                let index: u16 = memory.read_obj(GuestAddress((1 << 20) + (128 << 10) + 2)).unwrap();
                memory.write_obj(index.wrapping_add((noise >> 56) as u16), GuestAddress((1 << 20) + 2)).unwrap();
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "the race is the point")]
fn a_transmit_ring_that_changes_while_it_is_read() {
    scribbled(|ring| ring.take(BURST, 1514, &mut Sink::default()).is_ok());
}

#[test]
#[cfg_attr(miri, ignore = "the race is the point")]
fn a_receive_ring_that_changes_while_it_is_filled() {
    let frames = Frames::plain(&(0..BURST as u64).map(|seed| frame(seed, 1000)).collect::<Vec<_>>());
    scribbled(|ring| ring.put(&frames).is_ok());
}
