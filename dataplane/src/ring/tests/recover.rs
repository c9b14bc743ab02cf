//! A packed ring goes on after its process was killed, wherever that was: no frame twice, no chain lost, the guest none the wiser.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::driver::*;
use super::kill_after;
use crate::journal::Journal;
use crate::ring::{NetHeader, RecordHandle, Ring, RingError, RingFeatures, RingRecord};

const SIZE: u16 = 16;

/// How a guest's chains look.
#[derive(Debug, Clone, Copy)]
enum Chains {
    /// One descriptor each.
    Plain,
    /// One, two and three descriptors by turns.
    Lists,
    /// An indirect table each.
    Indirect,
}

struct Guest {
    driver: Driver,
    chains: Chains,
    next: u16,
    /// Chains that came back.
    back: Vec<(u32, u32)>,
}

impl Guest {
    fn new(features: RingFeatures, start: u16, chains: Chains) -> Self {
        let mut driver = Driver::new(SIZE, features, start);
        driver.config.record = Some(RecordHandle::new(Arc::new(RingRecord::default()), 0));
        Self { driver, chains, next: 0, back: Vec::new() }
    }

    fn parts(&self, chain: u16) -> u16 {
        if let Chains::Plain = self.chains { 1 } else { chain % 3 + 1 }
    }

    /// Slots that a chain takes.
    fn slots(&self, chain: u16) -> u16 {
        if let Chains::Lists = self.chains { self.parts(chain) } else { 1 }
    }

    /// Where a chain's bytes are. It never comes back there.
    fn place(chain: u16) -> u64 {
        BUFFERS + 512 * u64::from(chain)
    }

    /// Makes chains available until the ring is full, or `limit` of them in all.
    fn fill(&mut self, limit: u16, flags: u16) {
        loop {
            let chain = self.next;
            let flying: u16 = (self.back.len() as u16..chain).map(|chain| self.slots(chain)).sum();
            if chain == limit || flying + self.slots(chain) > SIZE {
                return;
            }
            let total = if flags & WRITE != 0 { 96 } else { 72 };
            if flags & WRITE == 0 {
                let bytes = [&NetHeader::default().emit(), &frame(chain.into(), 60)[..]].concat();
                self.driver.fill(Self::place(chain), &bytes);
            }
            let part = total / self.parts(chain);
            let buffers: Vec<_> = (0..self.parts(chain))
                .map(|i| (Self::place(chain) + u64::from(i * part), u32::from(part), flags))
                .collect();
            // Ids are the chains' numbers, but for the descriptors behind a list's first one.
            if let Chains::Indirect = self.chains {
                self.driver.indirect_chain(chain, TABLES + 64 * u64::from(chain), &buffers);
                self.driver.offer(chain);
            } else {
                for (i, &(addr, len, flags)) in buffers.iter().enumerate() {
                    let index = if i == 0 { chain } else { 10_000 + 3 * chain + i as u16 };
                    let more = if i + 1 < buffers.len() { NEXT } else { 0 };
                    self.driver.descriptor(index, (addr, len, flags | more, 10_000 + 3 * chain + i as u16 + 1));
                }
                self.driver.offer(chain);
            }
            self.next += 1;
        }
    }

    fn collect(&mut self) {
        self.back.extend(self.driver.collect());
    }

    /// A device, which is killed before the store with this number (or not).
    fn run<T>(&self, cut: i64, run: impl FnOnce(&mut Ring) -> T) -> Option<T> {
        kill_after(cut);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut ring = Ring::new(self.driver.map(), &self.driver.config).unwrap();
            run(&mut ring)
        }));
        kill_after(-1);
        outcome.ok()
    }
}

fn kinds() -> impl Iterator<Item = (RingFeatures, Chains)> {
    let kinds = [Chains::Plain, Chains::Lists, Chains::Indirect];
    let features = [false, true].map(|in_order| RingFeatures { in_order, indirect: true, mergeable: true, ..PACKED });
    features.into_iter().flat_map(move |features| kinds.map(|chains| (features, chains)))
}

/// Cuts at every store of a device's life, then at every store of what recovers from it, then lets it go on.
fn cut_everywhere(
    start: u16,
    features: RingFeatures,
    chains: Chains,
    burst: impl Fn(&mut Guest, i64, &mut Vec<u64>) -> bool,
) {
    for first in 0.. {
        let mut any = false;
        // What recovers writes little: a third of the first cuts shows it all.
        for second in if first % 3 == 0 { 0..40 } else { -1..0 } {
            let mut guest = Guest::new(features, start, chains);
            let mut seen = Vec::new();
            let killed = !burst(&mut guest, first, &mut seen);
            any |= killed;
            let killed_again = !burst(&mut guest, second, &mut seen);
            for _ in 0..20 {
                assert!(burst(&mut guest, -1, &mut seen));
            }
            let context = format!("{chains:?} from {start}, killed at {first} and {second}");
            let order: Vec<u32> = guest.back.iter().map(|used| used.0).collect();
            assert_eq!(order, (0..u32::from(guest.next)).collect::<Vec<_>>(), "each once, in order: {context}");
            assert!(guest.next >= 40, "{context}");
            assert!(seen.is_sorted_by(|a, b| a < b), "none twice: {seen:?}, {context}");
            assert!(seen.len() + 2 * usize::from(SIZE) >= guest.back.len(), "only what was in hand is lost: {context}");
            if !killed_again {
                break;
            }
        }
        if !any {
            break;
        }
    }
}

#[test]
fn a_transmit_ring_that_is_killed_at_any_store() {
    for (features, chains) in kinds() {
        for start in [0, 3, SIZE - 1, SIZE] {
            cut_everywhere(start, features, chains, |guest, cut, seen| {
                guest.fill(40, 0);
                let mut sent = Vec::new();
                let done = guest.run(cut, |ring| {
                    for _ in 0..3 {
                        let mut sink = Sink::default();
                        ring.take(5, 1514, &mut sink).unwrap();
                        // What was taken is sent afterwards; killed before, it never is.
                        sent.extend(sink.frames.into_iter().map(|(_, frame)| frame));
                    }
                });
                guest.collect();
                for found in sent {
                    seen.extend((0..40).find(|&seed| found == frame(seed, 60)));
                }
                done.is_some()
            });
        }
    }
}

#[test]
fn a_receive_ring_that_is_killed_at_any_store() {
    // Frames of one chain, and of several.
    let frames: Vec<_> = [60, 150, 40, 200, 60].into_iter().enumerate().map(|(i, len)| frame(i as u64, len)).collect();
    for (features, chains) in kinds() {
        for start in [0, 3, SIZE - 1, SIZE] {
            cut_everywhere(start, features, chains, |guest, cut, seen| {
                guest.fill(40, WRITE);
                let before = guest.back.len();
                let done = guest.run(cut, |ring| {
                    ring.put(&Frames::plain(&frames)).unwrap();
                    ring.put(&Frames::plain(&frames)).unwrap();
                });
                guest.collect();
                // As a driver does: what is too short is dropped, else the header says how many chains follow.
                let mut used = guest.back[before..].iter();
                while let Some(&(chain, len)) = used.next() {
                    if len == 0 {
                        continue;
                    }
                    let at = Guest::place(chain as u16);
                    let mut bytes = guest.driver.bytes(at, len as usize);
                    for _ in 1..u16::from_le_bytes([bytes[10], bytes[11]]) {
                        let &(chain, len) = used.next().expect("the rest of a frame comes with its head");
                        assert!(len > 0, "a frame is whole");
                        bytes.extend(guest.driver.bytes(Guest::place(chain as u16), len as usize));
                    }
                    assert!(frames.iter().any(|frame| frame[..] == bytes[12..]), "a frame that was sent");
                    seen.push(chain.into());
                }
                done.is_some()
            });
        }
    }
}

/// A ring that was used for a while, and its guest.
fn used_ring() -> Guest {
    let mut guest = Guest::new(PACKED, 0, Chains::Plain);
    guest.fill(10, 0);
    guest.run(-1, |ring| ring.take(7, 1514, &mut Sink::default()).unwrap());
    guest.collect();
    guest
}

fn goes_on_at(guest: &Guest) -> u16 {
    guest.run(-1, |ring| ring.position()).unwrap()
}

#[test]
fn the_front_end_repeats_an_old_base_after_a_crash() {
    let guest = used_ring();
    assert_eq!(goes_on_at(&guest), guest.driver.pack(7));
}

#[test]
fn a_guest_that_starts_anew_starts_at_the_front_ends_base() {
    for offered in [0, 3, SIZE] {
        let mut guest = used_ring();
        // The same places in memory, zeroed, and the same base as in the life before.
        guest.driver.fill(0, &[0; 16 * SIZE as usize]);
        guest.driver.write(guest.driver.config.used.0, 0u32);
        guest.driver.restart();
        (guest.next, guest.back) = (0, Vec::new());
        guest.fill(offered, 0);
        assert_eq!(goes_on_at(&guest), guest.driver.pack(0), "{offered} chains");
    }
}

#[test]
fn another_base_or_another_place_is_another_ring() {
    // A guest that comes back from elsewhere: the ring stands where the front-end says.
    let mut guest = used_ring();
    guest.driver.config.base = u32::from(guest.driver.pack(9)) * 0x1_0001;
    assert_eq!(goes_on_at(&guest), guest.driver.pack(9));
    // The record has its new life now.
    assert_eq!(goes_on_at(&guest), guest.driver.pack(9));
    let mut guest = used_ring();
    guest.driver.config.used.0 += 64;
    guest.driver.config.base = u32::from(guest.driver.pack(8)) * 0x1_0001;
    assert_eq!(goes_on_at(&guest), guest.driver.pack(8));
}

#[test]
fn a_record_that_is_lost_is_made_up_for_by_what_the_ring_looks_like() {
    // The front-end names the place where rings begin. Any other it was told by a device that stopped the ring, and is right.
    for taken in 1..SIZE {
        let mut guest = Guest::new(PACKED, 0, Chains::Plain);
        guest.fill(SIZE, 0);
        guest.run(-1, |ring| ring.take(taken.into(), 1514, &mut Sink::default()).unwrap());
        guest.driver.config.record = None;
        assert_eq!(goes_on_at(&guest), guest.driver.pack(taken), "{taken}");
        guest.collect();
        guest.fill(SIZE + taken / 2, 0);
        assert_eq!(goes_on_at(&guest), guest.driver.pack(taken), "{taken}");
    }
}

#[test]
fn chains_that_another_device_left_in_flight_are_taken_again() {
    let mut guest = Guest::new(PACKED, 0, Chains::Plain);
    guest.fill(10, 0);
    // It had taken four and given back none of them.
    guest.driver.config.base = u32::from(guest.driver.pack(4)) | u32::from(guest.driver.pack(0)) << 16;
    assert_eq!(goes_on_at(&guest), guest.driver.pack(0));
    // A front-end that does not know the used half.
    let mut guest = used_ring();
    guest.driver.config.record = None;
    guest.driver.config.base = u32::from(guest.driver.pack(7));
    assert_eq!(goes_on_at(&guest), guest.driver.pack(7));
}

#[test]
fn a_ring_that_was_stopped_on_this_connection_goes_on_there() {
    let mut guest = used_ring();
    guest.driver.config.resume = Some(guest.driver.pack(5));
    assert_eq!(goes_on_at(&guest), guest.driver.pack(5), "whatever the record says");
    guest.driver.config.resume = None;
    assert_eq!(goes_on_at(&guest), guest.driver.pack(5), "and the record knows it");
}

#[test]
fn a_ring_that_does_not_show_where_it_stands_is_not_guessed_at() {
    let in_order = RingFeatures { in_order: true, ..PACKED };
    for (features, chains) in [(in_order, Chains::Plain), (in_order, Chains::Lists), (PACKED, Chains::Lists)] {
        for taken in 1..5 {
            let mut guest = Guest::new(features, 0, chains);
            guest.fill(40, 0);
            guest.run(-1, |ring| ring.take(taken, 1514, &mut Sink::default()).unwrap());
            guest.driver.config.record = None;
            let outcome = Ring::new(guest.driver.map(), &guest.driver.config).map(|ring| ring.position());
            assert_eq!(outcome, Err(RingError::Lost), "{chains:?}, {taken} taken, {features:?}");
        }
        // Nothing was taken yet, or the front-end knows better.
        let mut guest = Guest::new(features, 0, chains);
        guest.driver.config.record = None;
        assert_eq!(goes_on_at(&guest), guest.driver.pack(0));
        guest.fill(40, 0);
        assert_eq!(goes_on_at(&guest), guest.driver.pack(0));
    }
}

#[test]
fn a_used_half_of_zero_is_a_place_where_chains_wait_there_and_else_unknown() {
    // The second lap has begun, and another device has taken three chains of it and given back none.
    let second_lap = |features, given: u16| {
        let mut guest = Guest::new(features, 0, Chains::Plain);
        guest.fill(SIZE, 0);
        let take = |guest: &mut Guest, count: u16| {
            guest.run(-1, |ring| ring.take(count.into(), 1514, &mut Sink::default()).unwrap());
            guest.collect();
        };
        take(&mut guest, SIZE);
        guest.fill(SIZE + 5, 0);
        take(&mut guest, given);
        guest.driver.config.record = None;
        guest.driver.config.base = guest.driver.pack(SIZE + 3).into();
        assert_eq!(guest.driver.pack(SIZE), 0, "slot 0, wrap counter 0");
        guest
    };
    let guest = second_lap(PACKED, 0);
    assert_eq!(goes_on_at(&guest), guest.driver.pack(SIZE), "they are taken again");
    for given in 1..=3 {
        let guest = second_lap(PACKED, given);
        assert_eq!(goes_on_at(&guest), guest.driver.pack(SIZE + 3), "{given} were given back");
    }
    let guest = second_lap(RingFeatures { in_order: true, ..PACKED }, 3);
    assert_eq!(goes_on_at(&guest), guest.driver.pack(SIZE + 3), "in order");
}

#[test]
fn a_guest_that_is_restored_from_an_image_again_goes_on_where_the_image_says() {
    for in_order in [false, true] {
        let features = RingFeatures { in_order, ..PACKED };
        let record = RecordHandle::new(Arc::new(RingRecord::default()), 0);
        let mut positions = Vec::new();
        // Both lives begin at the same place with the same bytes, in memory of their own; the first ends without GET_VRING_BASE.
        for memory in [7, 8] {
            let mut guest = Guest::new(features, 5, Chains::Plain);
            guest.driver.config.record = Some(record.clone());
            guest.driver.config.memory = memory;
            // The image has the mark of the device that was there before.
            let config = guest.driver.config.clone();
            Ring::new(guest.driver.map(), &crate::ring::RingConfig { record: None, ..config }).unwrap();
            guest.fill(6, 0);
            let mut ring = Ring::new(guest.driver.map(), &guest.driver.config).unwrap();
            positions.push(ring.position());
            assert_eq!(ring.take(64, 1518, &mut Sink::default()).unwrap().frames, 6, "restored in memory {memory}");
            guest.collect();
            assert_eq!(guest.back.len(), 6);
        }
        assert_eq!(positions[0], positions[1]);
        // A front-end that connects again after a crash of ours has the memory that it had.
        let mut guest = Guest::new(features, 5, Chains::Plain);
        (guest.driver.config.record, guest.driver.config.memory) = (Some(record.clone()), 9);
        guest.fill(6, 0);
        let mut ring = Ring::new(guest.driver.map(), &guest.driver.config).unwrap();
        ring.take(64, 1518, &mut Sink::default()).unwrap();
        let stood = ring.position();
        drop(ring);
        assert_eq!(Ring::new(guest.driver.map(), &guest.driver.config).unwrap().position(), stood);
    }
}

#[test]
fn a_journal_of_before_the_memory_was_noted_is_read_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let port = "vm1".parse().unwrap();
    let journal = || RecordHandle::new(Journal::open(folder.path(), &port).unwrap(), 0);
    let mut guest = Guest::new(PACKED, 5, Chains::Plain);
    (guest.driver.config.record, guest.driver.config.memory) = (Some(journal()), 9);
    guest.fill(6, 0);
    let mut ring = Ring::new(guest.driver.map(), &guest.driver.config).unwrap();
    assert_eq!(ring.take(64, 1518, &mut Sink::default()).unwrap().frames, 6);
    let stood = ring.position();
    drop(ring);
    guest.driver.config.record = None;

    // The burst, the three parts, what the front-end named, what was taken; and zeros to the end of the record.
    let path = folder.path().join("vm1.journal");
    let mut bytes = std::fs::read(&path).unwrap();
    let records = crate::journal::RECORDS;
    let word = |at: usize| u64::from_le_bytes(bytes[records + 8 * at..][..8].try_into().unwrap());
    let config = guest.driver.config.clone();
    assert_eq!([word(1), word(2), word(3)], [config.desc.0, config.avail.0, config.used.0]);
    assert_eq!(word(4), u64::from(config.base) | u64::from(config.size) << 32);
    bytes[records + 8 * 6..][..16].fill(0);
    std::fs::write(&path, bytes).unwrap();

    guest.driver.config.record = Some(journal());
    assert_eq!(Ring::new(guest.driver.map(), &guest.driver.config).unwrap().position(), stood);
}
