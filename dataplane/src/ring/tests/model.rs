//! Random guests: any legal chain, any size, any index, against a model of the driver and against virtio-queue.

use std::collections::HashMap;

use proptest::prelude::*;

use super::driver::*;
use super::reference::{Device, Reference, dump};
use crate::BURST;
use crate::ring::{NetHeader, Put, RingFeatures, Taken};

/// Where a chain's bytes are cut into buffers.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// After this many bytes: around the header.
    After(usize),
    /// At this part of the whole, in 65536ths.
    Part(u16),
}

/// A chain that the driver makes available.
#[derive(Debug, Clone)]
struct Shape {
    /// Bytes of the frame (to us), or room (to the guest), without the header.
    len: usize,
    cuts: Vec<Cut>,
    /// That many descriptors of the ring, then an indirect table (when negotiated).
    indirect_behind: Option<usize>,
    /// One buffer more, of the other direction.
    other_way: bool,
    /// Which of the free descriptors are taken.
    pick: usize,
}

/// What happens between two looks at the ring.
#[derive(Debug, Clone)]
struct Round {
    offers: Vec<Shape>,
    /// To us: chains asked for. To the guest: frames sent, as lengths of segments.
    limit: usize,
    frames: Vec<Vec<usize>>,
    /// Where the guest wants its interrupt, from the used index on.
    event: i16,
    no_interrupt: bool,
}

#[derive(Debug, Clone)]
struct Plan {
    size: u16,
    start: u16,
    features: RingFeatures,
    max_frame: usize,
    /// Where the first buffer lies before the border of the two regions.
    arena: u64,
    rounds: Vec<Round>,
}

fn frame_len() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 14usize..130, 3 => 130usize..1515, 1 => 1515usize..9300, 1 => 0usize..14]
}

fn shape() -> impl Strategy<Value = Shape> {
    let cut = prop_oneof![(0usize..30).prop_map(Cut::After), any::<u16>().prop_map(Cut::Part)];
    let cuts = prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(cut, 1..6)];
    let indirect = prop_oneof![Just(None), (0usize..3).prop_map(Some)];
    (frame_len(), cuts, indirect, prop::bool::weighted(0.05), any::<usize>())
        .prop_map(|(len, cuts, indirect_behind, other_way, pick)| Shape { len, cuts, indirect_behind, other_way, pick })
}

fn round() -> impl Strategy<Value = Round> {
    let segments = prop_oneof![
        4 => (14usize..1515).prop_map(|len| vec![len]),
        1 => prop::collection::vec(1usize..3000, 1..4),
        1 => prop::collection::vec(prop_oneof![Just(0usize), 14..40usize], 2..5),
    ];
    (
        prop::collection::vec(shape(), 0..80),
        prop_oneof![0usize..10, Just(64), Just(1000)],
        prop::collection::vec(segments, 0..70),
        -3i16..70,
        any::<bool>(),
    )
        .prop_map(|(offers, limit, frames, event, no_interrupt)| Round {
            offers,
            limit,
            frames,
            event,
            no_interrupt,
        })
}

fn plan() -> impl Strategy<Value = Plan> {
    let features = any::<[bool; 6]>().prop_map(|[event_idx, indirect, mergeable, version_1, packed, in_order]| {
        RingFeatures { event_idx, indirect, mergeable, version_1, packed, in_order, ..MODERN }
    });
    let start = prop_oneof![Just(0), any::<u16>(), 65_400u16..=65_535];
    let size = prop_oneof![3 => 0u32..16, 1 => 4u32..9].prop_map(|log| 1u16 << log);
    let max_frame = prop_oneof![Just(1514usize), Just(9216)];
    (size, start, features, max_frame, 0u64..30_000, prop::collection::vec(round(), 1..8)).prop_map(
        |(size, start, features, max_frame, arena, mut rounds)| {
            if features.packed {
                // An indirect table is a chain of its own (VIRTIO 1.2 section 2.8.19).
                let shapes = rounds.iter_mut().flat_map(|round| &mut round.offers);
                shapes.for_each(|shape| shape.indirect_behind = shape.indirect_behind.map(|_| 0));
            }
            Plan { size, start, features, max_frame, arena, rounds }
        },
    )
}

/// Most chains between driver and device: so that no buffer is used again before it comes back.
const IN_FLIGHT: usize = 100;
/// An indirect table has this room at most, and each chain that is in flight may have one. One of them lies across
/// the border of two regions, and one of its descriptors does.
const TABLE: u64 = 16 * 7;
const FIRST_TABLE: u64 = RINGS_BORDER - 20 * TABLE - 40;

/// A chain that the device has.
#[derive(Debug, Clone)]
struct Flying {
    descriptors: Vec<u16>,
    buffers: Vec<(u64, u32)>,
}

/// The driver with its books.
struct Guest {
    driver: Driver,
    free: Vec<u16>,
    flying: HashMap<u16, Flying>,
    next_buffer: u64,
    offered: u64,
    signalled: bool,
}

impl Guest {
    fn new(plan: &Plan) -> Self {
        let driver = Driver::new(plan.size, plan.features, plan.start);
        driver.fill(BUFFERS, &vec![0xcc; (BUFFERS_END - BUFFERS) as usize]);
        Self {
            driver,
            free: (0..plan.size).collect(),
            flying: HashMap::new(),
            next_buffer: BORDER - plan.arena,
            offered: 0,
            signalled: false,
        }
    }

    /// Makes a chain available, when there are descriptors for it. `bytes` is what it holds (from the guest), `flags` whether
    /// the device writes it. True when it was.
    fn offer(&mut self, shape: &Shape, bytes: &[u8], flags: u16) -> bool {
        if self.flying.len() >= IN_FLIGHT || self.free.is_empty() {
            return false;
        }
        let mut cuts: Vec<usize> = shape
            .cuts
            .iter()
            .map(|cut| match *cut {
                Cut::After(at) => at.min(bytes.len()),
                Cut::Part(part) => (bytes.len() * usize::from(part)) >> 16,
            })
            .collect();
        let indirect = shape.indirect_behind.filter(|_| self.driver.config.features.indirect);
        if indirect.is_none() {
            cuts.truncate(self.free.len() - 1);
        }
        cuts.sort_unstable();
        cuts.push(bytes.len());
        let other_way = shape.other_way && (indirect.is_some() || cuts.len() < self.free.len());
        let mut buffers = Vec::new();
        let mut from = 0;
        for to in cuts {
            let len = to - from;
            if self.next_buffer + len as u64 > BUFFERS_END {
                self.next_buffer = BUFFERS;
            }
            self.driver.fill(self.next_buffer, &bytes[from..to]);
            buffers.push((self.next_buffer, len as u32, flags));
            self.next_buffer += len as u64 + 3;
            from = to;
        }
        let mine = buffers.iter().map(|&(addr, len, _)| (addr, len)).collect();
        if other_way {
            buffers.push((BUFFERS, 5, flags ^ WRITE));
        }
        let (direct, table) = match indirect {
            Some(behind) => buffers.split_at(behind.min(buffers.len() - 1).min(self.free.len() - 1)),
            None => (&buffers[..], &[][..]),
        };
        let mut chain: Vec<(u64, u32, u16)> = direct.to_vec();
        if !table.is_empty() {
            let at = FIRST_TABLE + TABLE * (self.offered % (IN_FLIGHT as u64 + 1));
            for (i, &(addr, len, flags)) in table.iter().enumerate() {
                let more = if i + 1 < table.len() { NEXT } else { 0 };
                self.driver.descriptor_at(at + 16 * i as u64, (addr, len, flags | more, i as u16 + 1));
            }
            chain.push((at, 16 * table.len() as u32, INDIRECT));
        }
        let descriptors: Vec<u16> =
            (0..chain.len()).map(|_| self.free.swap_remove(shape.pick % self.free.len())).collect();
        for (i, (&index, &(addr, len, flags))) in descriptors.iter().zip(&chain).enumerate() {
            let (more, next) = descriptors.get(i + 1).map_or((0, 0), |&next| (NEXT, next));
            self.driver.descriptor(index, (addr, len, flags | more, next));
        }
        let head = descriptors[0];
        self.flying.insert(head, Flying { descriptors, buffers: mine });
        self.driver.offer(head);
        self.offered += 1;
        true
    }

    /// Says when it wants an interrupt, and returns whether one is due when `used` chains come back.
    fn want(&mut self, round: &Round) -> impl Fn(&mut Self, u16) -> u64 + use<> {
        let old = self.driver.used;
        let (event, no_interrupt) = (old.wrapping_add_signed(round.event), round.no_interrupt);
        let event_idx = self.driver.config.features.event_idx;
        if event_idx {
            self.driver.want(event);
        } else {
            self.driver.quiet(no_interrupt);
        }
        move |guest, used| {
            let Driver { used: new, config, .. } = &guest.driver;
            if used == 0 {
                0
            } else if event_idx {
                // One for the first time; later, if the entry that is asked for is among the new ones. A packed ring knows but
                // two laps.
                let first = !std::mem::replace(&mut guest.signalled, true);
                let mask = if config.features.packed { config.size | (config.size - 1) } else { u16::MAX };
                let passed = (0..new.wrapping_sub(old)).any(|i| (old.wrapping_add(i) ^ event) & mask == 0);
                u64::from(first || passed)
            } else {
                u64::from(!no_interrupt)
            }
        }
    }

    /// Takes back what was used: each chain's descriptors are free again. Heads, lengths and buffers.
    fn collect(&mut self) -> Vec<(u16, u32, Flying)> {
        let used = self.driver.collect();
        used.into_iter()
            .map(|(head, len)| {
                let head = u16::try_from(head).expect("a head");
                let chain = self.flying.remove(&head).expect("a chain that was made available, once");
                self.free.extend(&chain.descriptors);
                (head, len, chain)
            })
            .collect()
    }
}

/// From the guest: what a device delivers, and the guest's memory afterwards.
fn transmit(plan: &Plan, guest: &mut Guest, device: &mut dyn Device, ours: bool) -> Vec<(Taken, Vec<Vec<u8>>)> {
    let header_len = plan.features.header_len();
    let mut waiting = std::collections::VecDeque::new();
    let mut results = Vec::new();
    let mut seed = 0;
    for round in &plan.rounds {
        for shape in &round.offers {
            seed += 1;
            let bytes = frame(seed, header_len + shape.len);
            if guest.offer(shape, &bytes, 0) {
                waiting.push_back(bytes);
            }
        }
        let due = guest.want(round);
        let (taken, frames) = device.take(round.limit, plan.max_frame);
        let used = guest.collect();
        assert_eq!(used.len(), round.limit.min(BURST).min(waiting.len()));
        assert_eq!(used.len() as u64, taken.received);
        assert_eq!(taken.received, taken.frames + taken.malformed + taken.too_long + taken.no_buffers);
        assert!(used.iter().all(|used| used.1 == 0), "nothing is written to a transmit buffer");
        if ours {
            let due = due(guest, used.len() as u16);
            assert_eq!(guest.driver.interrupts(), due);
        }
        // The frames are some of those that were sent, in order, byte for byte; the counts say why others are missing.
        let mut sent = waiting.drain(..used.len());
        for (header, frame) in &frames {
            let found =
                sent.by_ref().find(|sent| sent[header_len..] == frame[..]).expect("a frame that was sent, in order");
            assert_eq!(header.emit()[..header_len], found[..header_len]);
        }
        drop(sent);
        results.push((taken, frames.into_iter().map(|(_, frame)| frame).collect()));
    }
    results
}

/// To the guest: the counts. The guest puts together what it gets as a driver does, and compares it.
fn receive(plan: &Plan, guest: &mut Guest, device: &mut dyn Device, ours: bool) -> Vec<Put> {
    let header_len = plan.features.header_len();
    let mut results = Vec::new();
    let mut seed = 0;
    for round in &plan.rounds {
        for shape in &round.offers {
            guest.offer(shape, &vec![0xcc; header_len + shape.len], WRITE);
        }
        let mut frames = Vec::new();
        for segments in &round.frames {
            seed += 1;
            frames.push(segments.iter().map(|&len| frame(seed + len as u64, len)).collect());
        }
        let due = guest.want(round);
        let put = device.put(&frames);
        assert_eq!(put.frames + put.ring_full + put.too_long, frames.len() as u64);
        let used = guest.collect();
        if ours {
            let due = due(guest, used.len() as u16);
            assert_eq!(guest.driver.interrupts(), due);
        }
        let mut sent = frames.iter().map(|segments| segments.concat());
        let mut used = used.into_iter();
        for _ in 0..put.frames {
            let mut bytes = contents(guest, used.next());
            let header = &bytes[..header_len];
            if header_len == NetHeader::LEN {
                let buffers = u16::from_le_bytes([header[10], header[11]]);
                for _ in 1..buffers {
                    bytes.extend(contents(guest, used.next()));
                }
            }
            assert!(bytes[..10].iter().all(|&byte| byte == 0));
            sent.by_ref().find(|sent| bytes[header_len..] == sent[..]).expect("a frame that was sent, in order");
        }
        assert!(used.next().is_none(), "each chain belongs to a frame");
        results.push(put);
    }
    results
}

/// What the device wrote to a chain. The first chain holds at least a header here, or is merged with what follows.
fn contents(guest: &Guest, used: Option<(u16, u32, Flying)>) -> Vec<u8> {
    let (_, len, chain) = used.expect("as many chains as num_buffers says");
    let mut bytes = Vec::new();
    for (addr, room) in chain.buffers {
        let len = (len as usize - bytes.len()).min(room as usize);
        bytes.extend(guest.driver.bytes(addr, len));
    }
    assert_eq!(bytes.len(), len as usize, "used.len is what was written");
    bytes
}

/// Runs a plan through both devices, each with a guest of its own. The other one knows only plain split rings: a guest with
/// a ring of another kind gets the same frames, in the same buffers.
fn both<R: PartialEq + std::fmt::Debug>(plan: &Plan, run: impl Fn(&Plan, &mut Guest, &mut dyn Device, bool) -> R) {
    let mut guest = Guest::new(plan);
    let mut ring = guest.driver.device();
    let ours = run(plan, &mut guest, &mut ring, true);
    assert_eq!(ring.position(), guest.driver.position(guest.driver.used), "what the next device is told");
    let plain = RingFeatures { packed: false, in_order: false, ..plan.features };
    let plan = Plan { features: plain, ..plan.clone() };
    let mut other = Guest::new(&plan);
    let mut reference = Reference::new(&other.driver);
    let theirs = run(&plan, &mut other, &mut reference, false);
    assert_eq!(ours, theirs);
    let alike = guest.driver.config.features == plain;
    for (ours, theirs) in dump(&guest.driver, alike).into_iter().zip(dump(&other.driver, alike)) {
        assert!(ours == theirs, "guest memory differs");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: super::cases(2, 64), ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_guest_sends_arrives_as_through_virtio_queue(plan in plan()) {
        both(&plan, transmit);
    }

    #[test]
    fn whatever_buffers_a_guest_offers_are_filled_as_through_virtio_queue(plan in plan()) {
        both(&plan, receive);
    }
}
