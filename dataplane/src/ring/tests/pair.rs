//! Chains of two buffers and short indirect tables: they are quick, and what a hostile guest makes of them is what the way for any shape makes
//! of it.

use proptest::prelude::*;

use super::driver::*;
use super::{WALKS, slowly};
use crate::BURST;
use crate::ring::{NetHeader, Put, Ring, RingError, RingFeatures, Taken};

const INDIRECT_DESC: RingFeatures = RingFeatures { indirect: true, ..MODERN };
/// Chains of a test's ring.
const CHAINS: u16 = 100;

fn every_kind() -> impl Iterator<Item = RingFeatures> {
    over_both(INDIRECT_DESC)
        .into_iter()
        .flat_map(|kind| [false, true].map(|in_order| RingFeatures { in_order, ..kind }))
}

/// Where the buffers of chain `i` begin, 4096 bytes from one to the next.
fn buffer(i: u16) -> u64 {
    BUFFERS + 4096 * u64::from(i)
}

/// Offers chain `i`: its buffers in one of the ways that guests have. Where they are, and how long.
fn offer(driver: &mut Driver, i: u16, len: u32, flags: u16) -> Vec<(u64, u32)> {
    let at = buffer(i);
    let (head, table) = (2 * i, TABLES + 48 * u64::from(i));
    let (one, touching, apart) =
        (vec![(at, 12 + len)], vec![(at, 12), (at + 12, len)], vec![(at + 3000, 12), (at + 10, len)]);
    let (begun, buffers) = (vec![(at + 3000, 12 + 20), (at, len - 20)], i % 9);
    let pieces = match buffers {
        0 | 1 => one,
        2..=4 => touching,
        5 | 6 => apart,
        // A frame that has begun behind the header is not filled that way.
        _ if flags == 0 => begun,
        _ => apart,
    };
    let chain: Vec<_> = pieces.iter().map(|&(addr, len)| (addr, len, flags)).collect();
    if matches!(buffers, 0 | 2 | 5 | 7) {
        driver.chain(head, &chain);
    } else {
        driver.indirect_chain(head, table, &chain);
    }
    driver.offer(head);
    pieces
}

#[test]
fn frames_in_two_buffers_or_in_a_short_table_arrive_without_a_walk_along_their_chains() {
    every_kind().for_each(takes_pairs);
}

fn takes_pairs(features: RingFeatures) {
    let mut driver = Driver::new(256, features, 65_500);
    let mut ring = driver.device();
    let mut expected = Vec::new();
    for i in 0..CHAINS {
        let frame = frame(i.into(), 60 + 13 * usize::from(i));
        let header = NetHeader { flags: 1, csum_start: i, ..NetHeader::default() };
        let bytes = [&header.emit(), &frame[..]].concat();
        let mut rest = &bytes[..];
        for (addr, len) in offer(&mut driver, i, frame.len() as u32, 0) {
            let (now, later) = rest.split_at(len as usize);
            driver.fill(addr, now);
            rest = later;
        }
        expected.push((header, frame));
    }
    let before = WALKS.get();
    let mut sink = Sink::default();
    while ring.take(BURST, 1514, &mut sink).unwrap().received > 0 {}
    assert_eq!(WALKS.get(), before, "{features:?}");
    assert_eq!(sink.frames, expected);
    let heads: Vec<_> = (0..CHAINS).map(|i| (u32::from(2 * i), 0)).collect();
    assert_eq!(driver.collect(), heads);
}

#[test]
fn two_buffers_or_a_short_table_are_filled_without_a_walk_along_their_chains() {
    for features in over_both(INDIRECT_DESC) {
        for mergeable in [false, true] {
            fills_pairs(RingFeatures { mergeable, ..features });
        }
    }
}

fn fills_pairs(features: RingFeatures) {
    let mut driver = Driver::new(256, features, 65_500);
    let mut ring = driver.device();
    let pieces: Vec<_> = (0..CHAINS).map(|i| offer(&mut driver, i, 2000, WRITE)).collect();
    let frames: Vec<_> = (0..CHAINS).map(|i| frame(i.into(), 60 + 13 * usize::from(i))).collect();
    let before = WALKS.get();
    let put = frames.chunks(BURST).map(|frames| ring.put(&Frames::plain(frames)).unwrap().frames);
    assert_eq!(put.sum::<u64>(), u64::from(CHAINS));
    assert_eq!(WALKS.get(), before, "{features:?}");
    let header = NetHeader { num_buffers: 1, ..NetHeader::default() }.emit();
    for (i, ((head, len), pieces)) in driver.collect().into_iter().zip(pieces).enumerate() {
        assert_eq!((head, len), (2 * i as u32, 12 + frames[i].len() as u32));
        let found: Vec<u8> = pieces.iter().flat_map(|&(addr, len)| driver.bytes(addr, len as usize)).collect();
        assert_eq!(found[..len as usize], [&header, &frames[i][..]].concat(), "chain {i}");
    }
}

#[test]
fn a_frame_that_fits_no_pair_is_put_as_into_any_chain() {
    for features in over_both(INDIRECT_DESC) {
        let mut driver = Driver::new(16, features, 0);
        let mut ring = driver.device();
        let at = buffer(0);
        // Room for the frame, but only behind the header's buffer and the second one together.
        driver.indirect_chain(0, TABLES, &[(at + 3000, 40, WRITE), (at, 100, WRITE)]);
        driver.offer(0);
        // Not enough room, whatever is done.
        driver.chain(2, &[(at + 500, 12, WRITE), (at + 1000, 30, WRITE)]);
        driver.offer(2);
        let frames = [frame(1, 120), frame(2, 60)];
        let put = ring.put(&Frames::plain(&frames)).unwrap();
        assert_eq!(put, Put { frames: 1, bytes: 120, ring_full: 0, too_long: 1 });
        assert_eq!(driver.collect(), [(0, 132)]);
        assert_eq!(driver.bytes(at + 3012, 28), frames[0][..28]);
        assert_eq!(driver.bytes(at, 92), frames[0][28..]);
    }
}

/// A descriptor of a chain or a table that is nearly what is known.
fn descriptor() -> impl Strategy<Value = Descriptor> {
    let addr = prop_oneof![
        8 => (0u64..40).prop_map(|i| BUFFERS + 1024 * i),
        2 => (0u64..40).prop_map(|i| BUFFERS + 1024 * i + 12),
        1 => (BORDER - 200)..BORDER,
        1 => (BUFFERS_END - 200)..(BUFFERS_END + 10),
        1 => any::<u64>(),
    ];
    let len = prop_oneof![4 => Just(12u32), 2 => Just(10u32), 8 => 0u32..1600, 1 => any::<u32>()];
    let flags = prop_oneof![6 => Just(0u16), 6 => Just(NEXT), 1 => 0u16..8, 1 => any::<u16>()];
    let next = prop_oneof![8 => Just(1u16), 1 => 0u16..4, 1 => any::<u16>()];
    (addr, len, flags, next)
}

/// A chain that a hostile guest offers.
#[derive(Debug, Clone)]
struct Hostile {
    /// In the ring: two descriptors, from twice the chain's number on.
    ring: [Descriptor; 2],
    /// If it has a table: at the border of two regions or not, so many bytes, with this in it, and these flags besides INDIRECT.
    table: Option<(bool, u32, [Descriptor; 3], u16)>,
}

fn hostile() -> impl Strategy<Value = Hostile> {
    let len = prop_oneof![6 => Just(32u32), 3 => Just(16u32), 1 => Just(48u32), 1 => 0u32..70, 1 => any::<u32>()];
    let flags = prop_oneof![8 => Just(0u16), 1 => 0u16..4];
    let table = (prop::bool::weighted(0.05), len, [descriptor(), descriptor(), descriptor()], flags);
    ([descriptor(), descriptor()], prop::option::weighted(0.6, table)).prop_map(|(ring, table)| Hostile { ring, table })
}

/// A guest with these chains. Every buffer is to be used in the direction of `flags`, but for those that chance has turned.
fn guest(features: RingFeatures, start: u16, chains: &[Hostile], flags: u16) -> Driver {
    let mut driver = Driver::new(64, features, start);
    for seed in 0..40 {
        driver.fill(BUFFERS + 1024 * seed, &frame(seed, 1024));
    }
    for (i, chain) in chains.iter().enumerate() {
        let head = 2 * i as u16;
        let way = |(addr, len, others, next): Descriptor| (addr, len, others ^ flags, next);
        for (place, &descriptor) in chain.ring.iter().enumerate() {
            let (addr, len, flags, next) = way(descriptor);
            // The next one in the ring, where that of a table would be 1.
            let next = if next == 1 { head + 1 } else { next };
            let flags = if place == 1 && flags & 0x80 == 0 { flags & !NEXT } else { flags };
            driver.descriptor(head + place as u16, (addr, len, flags, next));
        }
        if let Some((border, len, table, more)) = chain.table {
            let at = if border { RINGS_BORDER - 24 } else { TABLES + 64 * i as u64 + 3 };
            for (place, &descriptor) in table.iter().enumerate() {
                let (addr, len, flags, next) = way(descriptor);
                let flags = if place == 1 && flags & 0x80 == 0 { flags & !NEXT } else { flags };
                driver.descriptor_at(at + 16 * place as u64, (addr, len, flags, next));
            }
            driver.descriptor(head, (at, len, INDIRECT | more, head + 1));
        }
        driver.offer(head);
    }
    driver
}

/// What became of a hostile guest's frames: the calls' results, what was delivered, the used ring and all of guest memory.
type Outcome<R> = (Vec<Result<R, RingError>>, Vec<(NetHeader, Vec<u8>)>, u16, Vec<Vec<u8>>);

fn outcome<R>(
    mut driver: Driver,
    mut work: impl FnMut(&mut Ring, &mut Sink) -> (Result<R, RingError>, bool),
) -> Outcome<R> {
    let (mut sink, mut results) = (Sink::default(), Vec::new());
    let mut ring = match driver.try_device() {
        Ok(ring) => ring,
        // At the first slot of the first lap, where front-ends that know nothing say that rings begin, its descriptors may contradict that.
        Err(error) => return (vec![Err(error)], Vec::new(), 0, Vec::new()),
    };
    loop {
        let (result, last) = work(&mut ring, &mut sink);
        let failed = result.is_err();
        results.push(result);
        if failed || last {
            break;
        }
    }
    let memory = [(RINGS, RINGS_END), (BUFFERS, BUFFERS_END)];
    let memory = memory.map(|(from, to)| driver.bytes(from, (to - from) as usize)).into();
    let position = ring.position();
    drop(ring);
    driver.restart();
    (results, sink.frames, position, memory)
}

fn features() -> impl Strategy<Value = RingFeatures> {
    (any::<[bool; 4]>(), prop::bool::weighted(0.9)).prop_map(|([mergeable, version_1, packed, in_order], indirect)| {
        RingFeatures { indirect, mergeable, version_1, packed, in_order, ..MODERN }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 400 }, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_hostile_guest_sends_is_what_it_is_one_descriptor_at_a_time(
        features in features(),
        start: u16,
        chains in prop::collection::vec(hostile(), 1..30),
        limit in 1usize..70,
    ) {
        let run = || outcome(guest(features, start, &chains, 0), |ring, sink| {
            let taken: Result<Taken, _> = ring.take(limit, 1514, sink);
            let last = taken.as_ref().is_ok_and(|taken| taken.received == 0);
            (taken, last)
        });
        let (quick, slow) = (run(), slowly(run));
        prop_assert_eq!(&quick.0, &slow.0);
        prop_assert_eq!(&quick.1, &slow.1);
        prop_assert_eq!(quick.2, slow.2);
        prop_assert!(quick.3 == slow.3, "guest memory differs");
    }

    #[test]
    fn whatever_buffers_a_hostile_guest_offers_are_filled_as_they_are_one_descriptor_at_a_time(
        features in features(),
        start: u16,
        chains in prop::collection::vec(hostile(), 1..30),
        lens in prop::collection::vec(prop_oneof![14usize..200, 14usize..1515, 1515usize..4000], 1..40),
    ) {
        let frames = Frames::plain(&lens.iter().map(|&len| frame(len as u64, len)).collect::<Vec<_>>());
        let run = || {
            let mut rounds = 0;
            outcome(guest(features, start, &chains, WRITE), |ring, _| {
                rounds += 1;
                (ring.put(&frames), rounds == 3)
            })
        };
        let (quick, slow) = (run(), slowly(run));
        prop_assert_eq!(&quick.0, &slow.0);
        prop_assert_eq!(quick.2, slow.2);
        prop_assert!(quick.3 == slow.3, "guest memory differs");
    }
}
