//! Any bytes as a guest's doings with one ring, split or packed, drained or filled: what it writes to its memory, and when the device looks.
//! No panic; nothing is touched outside of the guest's memory (see `guest`). The first burst takes the frames that a slow walk along the chains finds, all of them and
//! no other, or fills as much as has room, and is refused only where the walk finds a fault. What is given back was made available; what was written is
//! in the log of dirty pages.
#![no_main]

use std::ptr::NonNull;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use ringspan_fuzz::guest::{BUFFERS, FAR, Guest, REGIONS, RINGS, TABLES};
use ringspan_fuzz::memory::DirtyLog;
use ringspan_fuzz::offload::Offloads;
use ringspan_fuzz::ring::{
    FrameSink, FrameSource, LargeFrame, Loan, NetHeader, Ring, RingConfig, RingFeatures, RingLog, Taken,
};
use ringspan_fuzz::walk::{
    AVAIL, F_AVAIL, F_INDIRECT, F_NEXT, F_USED, F_WRITE, LARGEST, MAX_BURST, MAX_CHAIN, Slow, USED,
};
use ringspan_fuzz::{BURST, Bytes};
use vm_memory::GuestAddress;

const MAX_FRAME: usize = 1514;
/// Frames that may be lent have so many bytes.
const LENT_FROM: usize = 64;

thread_local! {
    static GUEST: Guest = Guest::default();
}

fuzz_target!(|bytes: &[u8]| {
    GUEST.with(|guest| {
        guest.clear();
        if let Some(mut scene) = Scene::new(guest, Bytes(bytes)) {
            while !scene.bytes.is_empty() && scene.step() {}
        }
    });
});

struct Scene<'a> {
    guest: &'a Guest,
    bytes: Bytes<'a>,
    features: RingFeatures,
    size: u16,
    ring: Ring,
    slow: Slow<'a>,
    log: Option<(Arc<DirtyLog>, std::fs::File)>,
    /// Where the guest's own position is: chains, or slots of a packed ring.
    next: u16,
    /// The ring was used already: what it knows ahead may be older than what is in memory.
    begun: bool,
    /// Frames are taken from the guest; otherwise put there.
    drains: bool,
    lends: bool,
    /// What stood at each place of the ring when the device was about to look: heads, or buffer ids of a packed ring.
    offered: Vec<Vec<u16>>,
    /// No buffer ever lay where the ring and its indirect tables are: what the device puts there changes nothing of them.
    aside: bool,
}

impl<'a> Scene<'a> {
    fn new(guest: &'a Guest, mut bytes: Bytes<'a>) -> Option<Self> {
        let wanted = bytes.u16();
        let has = |bit: u16| wanted >> bit & 1 != 0;
        let features = RingFeatures {
            event_idx: has(0),
            indirect: has(1),
            mergeable: has(2),
            version_1: has(3),
            packed: has(4),
            in_order: has(5),
            offloads: Offloads::NONE,
        };
        let size = 1 << (bytes.u8() % 9);
        let start = bytes.u16();
        if features.packed {
            // As a driver leaves it that has come so far: slots behind it were used in this lap, the others in the one before.
            for slot in 0..size {
                let behind = slot < start & (size - 1);
                let used = if wraps(start, size) == behind { F_AVAIL | F_USED } else { 0 };
                guest.write(16 * u64::from(slot) + 14, &used.to_le_bytes());
            }
        } else {
            guest.write(AVAIL + 2, &start.to_le_bytes());
            guest.write(USED + 2, &start.to_le_bytes());
        }
        let base = match (has(6), features.packed) {
            (true, _) => bytes.u32(),
            (false, true) => u32::from(start & (size - 1) | u16::from(wraps(start, size)) << 15) * 0x1_0001,
            (false, false) => start.into(),
        };
        let log = has(7).then(log).map(|(log, file)| {
            log.marker().mark(0, 0);
            (log, file)
        });
        let config = RingConfig {
            size,
            desc: GuestAddress(RINGS),
            avail: GuestAddress(AVAIL),
            used: GuestAddress(USED),
            base,
            resume: None,
            record: None,
            memory: 0,
            features,
            kick: None,
            call: None,
            log: log.as_ref().map(|(log, _)| RingLog { log: log.clone(), used: USED }),
        };
        let mut ring = Ring::new(guest.map.clone(), &config).ok()?;
        let lends = has(8);
        if lends {
            ring.allow_loans();
        }
        let drains = lends || has(9);
        let offered = vec![Vec::new(); size.into()];
        let (next, begun, aside) = (start, false, true);
        let slow = Slow { guest, features, size, drains };
        Some(Self { guest, bytes, features, size, ring, slow, log, next, begun, drains, lends, offered, aside })
    }

    /// One thing that the guest or the device does. False when the ring is broken.
    fn step(&mut self) -> bool {
        match self.bytes.u8() % 16 {
            0..4 => self.chain(),
            4 | 5 => {
                let at = u64::from(self.bytes.u8()) % 192;
                let descriptor = self.descriptor();
                self.guest.write(TABLES + 16 * at, &descriptor);
            }
            6 => {
                let (at, len) = (self.bytes.u16(), self.bytes.u8() % 32);
                let written = self.bytes.take(len.into());
                self.guest.write(u64::from(at), written);
            }
            7 => {
                let at = u64::from(self.bytes.u8()) % u64::from(self.size);
                let descriptor = self.descriptor();
                self.guest.write(16 * at, &descriptor);
            }
            8..14 => {
                self.look();
                return match (self.drains, self.lends) {
                    (true, true) => self.take::<true>(),
                    (true, false) => self.take::<false>(),
                    (false, _) => self.put(),
                };
            }
            14 => {
                self.look();
                let away = self.bytes.u16();
                let (owed, position) = (self.ring.owed(), self.ring.position());
                let mut asked = 0;
                let settled = self.ring.settle(|Loan(loan)| {
                    asked += 1;
                    away >> (loan % 16) & 1 == 0
                });
                assert!(settled <= owed && asked <= owed + 1 && self.ring.owed() == owed - settled);
                self.gave_back(position, settled as u64);
            }
            _ => match self.bytes.u8() % 5 {
                0 => drop(self.ring.pending()),
                1 => self.ring.suppress_kicks(),
                2 => drop(self.ring.request_kicks()),
                3 => return self.ring.remap(self.guest.map.clone()).is_ok(),
                _ => self.guest.write(AVAIL, &self.bytes.u32().to_le_bytes()),
            },
        }
        true
    }

    /// A descriptor that is near enough to a legal one to get somewhere.
    fn descriptor(&mut self) -> [u8; 16] {
        let (kind, offset) = (self.bytes.u8(), u64::from(self.bytes.u16()));
        let addr = match kind & 15 {
            0..6 => BUFFERS + offset % 0x4000,
            6 | 7 => FAR + offset % 0x1000,
            8 | 9 => TABLES + 16 * (offset % 192),
            10 => BUFFERS + 0x4000 - offset % 64,
            11 => FAR.wrapping_sub(offset % 64),
            12 | 13 => offset,
            14 => self.bytes.u64(),
            _ => 0u64.wrapping_sub(offset),
        };
        let len = match kind >> 4 & 7 {
            0..4 => u32::from(self.bytes.u8()),
            4 => 16 * u32::from(self.bytes.u8()),
            // Up to about where the region ends.
            5 => {
                let ends = REGIONS.iter().map(|&(start, len)| start + len as u64);
                let left = ends.filter(|end| *end >= addr).min().map_or(0, |end| (end - addr) as u32);
                left.wrapping_add(u32::from(self.bytes.u8() & 31)).wrapping_sub(16)
            }
            6 => u32::from(self.bytes.u16()),
            _ => self.bytes.u32(),
        };
        let flags = u16::from(self.bytes.u8());
        // What decides about "available" is for `chain` to say, mostly.
        let flags = if kind & 0x80 == 0 { flags & (F_NEXT | F_WRITE | F_INDIRECT) } else { flags << 8 | flags };
        let next = u16::from(self.bytes.u8());
        let (third, fourth) = if self.features.packed { (next, flags) } else { (flags, next) };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&third.to_le_bytes());
        bytes[14..].copy_from_slice(&fourth.to_le_bytes());
        bytes
    }

    /// The guest makes something available at the next place of its ring.
    fn chain(&mut self) {
        let at = u64::from(self.next & (self.size - 1));
        if self.features.packed {
            let mut descriptor = self.descriptor();
            let now = if wraps(self.next, self.size) { F_AVAIL } else { F_USED };
            let flags = u16::from_le_bytes([descriptor[14], descriptor[15]]) & !F_AVAIL & !F_USED | now;
            descriptor[14..].copy_from_slice(&flags.to_le_bytes());
            self.guest.write(16 * at, &descriptor);
        } else {
            let head = u16::from(self.bytes.u8()) % self.size;
            let descriptor = self.descriptor();
            self.guest.write(16 * u64::from(head), &descriptor);
            self.guest.write(AVAIL + 4 + 2 * at, &head.to_le_bytes());
            self.guest.write(AVAIL + 2, &self.next.wrapping_add(1).to_le_bytes());
        }
        self.next = self.next.wrapping_add(1);
    }

    /// Notes what the device can see now.
    fn look(&mut self) {
        let (start, step) = if self.features.packed { (RINGS + 12, 16) } else { (AVAIL + 4, 2) };
        for (at, offered) in (0..).zip(&mut self.offered) {
            let now = self.guest.u16(start + step * at);
            if !offered.contains(&now) {
                offered.push(now);
            }
        }
        // Where indirect tables are, nobody knows.
        self.aside &= !self.features.indirect
            && (0..u64::from(self.size)).all(|at| {
                let (addr, len, ..) = self.slow.descriptor_at(RINGS + 16 * at);
                len == 0 || addr >= TABLES
            });
    }

    fn take<const LENDS: bool>(&mut self) -> bool {
        let limit = usize::from(self.bytes.u8()) % (BURST + 1);
        let mut sink = Sink::<LENDS> { room: self.bytes.u8().into(), ..Sink::default() };
        let (before, position, owed) = (self.guest.snapshot(), self.ring.position(), self.ring.owed());
        let walk = (!self.begun).then(|| self.slow.walk(position, limit));
        self.begun = true;
        let taken = self.ring.take(limit, MAX_FRAME, &mut sink);
        if let Some(walk) = &walk {
            let refused = walk.chains.first().is_some_and(Result::is_err);
            assert_eq!(taken.is_err(), refused, "{taken:?}");
        }
        let Ok(taken) = taken else {
            assert_eq!(self.ring.position(), position, "something is given back of a ring that is refused");
            return false;
        };
        let Taken { received, frames, malformed, too_long, no_buffers, lent, .. } = taken;
        assert_eq!(received, frames + malformed + too_long + no_buffers, "{taken:?}");
        assert!(received <= limit as u64 && frames == sink.frames.len() as u64 && lent == sink.lent, "{taken:?}");
        if let Some(walk) = walk {
            let there = walk.chains.iter().filter(|chain| chain.is_ok()).count();
            let all = if walk.steps < MAX_BURST { received as usize == there } else { received as usize <= there };
            assert!(all, "{there} chains are available: {taken:?}");
            let chains = walk.chains.into_iter().take(received as usize).flatten().flatten();
            // What the sink has no room for is left out.
            if no_buffers == 0 {
                let frames = chains.filter(|frame| frame.len <= LARGEST).map(|frame| frame.bytes);
                assert!(frames.eq(sink.frames.iter().map(Room::bytes)), "other frames than those in the chains");
            }
        }
        let waits = LENDS && (lent > 0 || owed > 0);
        assert_eq!(self.ring.owed(), if waits { owed + received as usize } else { 0 });
        self.gave_back(position, if waits { 0 } else { received });
        self.is_logged(&before);
        true
    }

    fn put(&mut self) -> bool {
        let count = usize::from(self.bytes.u8()) % (BURST + 1);
        let (least, step) = (usize::from(self.bytes.u16()) % 4096, usize::from(self.bytes.u8()));
        let frames = Frames((0..count).map(|at| vec![at as u8 | 0x80; 14 + (least + step * at) % LARGEST]).collect());
        let (before, position) = (self.guest.snapshot(), self.ring.position());
        let walk = (!self.begun && count > 0).then(|| self.slow.walk(position, self.size.into()));
        self.begun = true;
        let put = self.ring.put(&frames);
        let Ok(put) = put else {
            assert!(walk.is_none_or(|walk| walk.is_broken()), "no chain breaks the ring: {put:?}");
            assert_eq!(self.ring.position(), position, "something is given back of a ring that is refused");
            return false;
        };
        assert_eq!(put.frames + put.ring_full + put.too_long, count as u64, "{put:?}");
        // Of chains that break the ring, only those count that were needed; of very long ones, not all.
        if let Some(walk) = walk
            && !walk.is_broken()
            && walk.steps < MAX_CHAIN.min(MAX_BURST / count)
            && (self.aside || count == 1)
        {
            let rooms: Vec<_> = walk.chains.iter().flatten().flatten().map(|chain| chain.len).collect();
            assert_eq!([put.frames, put.too_long, put.ring_full], self.slow.fits(&rooms, &frames.0), "{rooms:?}");
        }
        if self.aside {
            self.gave_back(position, put.frames);
        }
        self.is_logged(&before);
        true
    }

    /// What was given back since the ring stood at `from`, `least` chains or (of frames that take several) more, was offered.
    fn gave_back(&self, from: u16, least: u64) {
        let (to, size) = (self.ring.position(), self.size);
        let (packed, together) = (self.features.packed, self.features.in_order && self.drains);
        let place =
            |position: u16| if packed && position >> 15 == 0 { (position & 0x7fff) + size } else { position & 0x7fff };
        let slots = if packed { place(to).wrapping_sub(place(from)) & (2 * size - 1) } else { to.wrapping_sub(from) };
        assert!(slots <= size && least <= u64::from(slots), "{slots} slots for {least} chains");
        if packed {
            assert!(to & 0x7fff < size && from & 0x7fff < size);
        } else {
            assert!(!self.drains || least == u64::from(slots), "{slots} for {least} chains");
            assert!(slots == 0 || self.guest.u16(USED + 2) == to);
        }
        let offered = |slot: u16, id: u16| self.offered[usize::from(slot & (size - 1))].contains(&id);
        let mut chains = 0;
        for slot in 0..slots {
            // A batch that is given back as one has the name of its last chain.
            let last = if together { slots - 1 } else { slot };
            if packed {
                let at = place(from).wrapping_add(slot);
                let (_, _, flags, id) = self.slow.descriptor_at(RINGS + 16 * u64::from(at & (size - 1)));
                let used = if wraps(at, size) { F_AVAIL | F_USED } else { 0 };
                // Behind the first of a chain may be anything.
                if flags & (F_AVAIL | F_USED) == used {
                    chains += 1;
                    let mut places = if together { last..slots } else { slot..slots };
                    let was = places.any(|slot| offered(place(from).wrapping_add(slot), id));
                    assert!(was, "{id} is given back at {at}, and was not available");
                }
                assert!(slot > 0 || flags & (F_AVAIL | F_USED) == used, "the first is not given back");
            } else {
                let at = USED + 4 + 8 * u64::from(from.wrapping_add(slot) & (size - 1));
                let (id, len) = (self.guest.u32(at), self.guest.u32(at + 4));
                let was = u16::try_from(id).is_ok_and(|id| id < size && offered(from.wrapping_add(last), id));
                assert!(was && (len == 0 || !self.drains), "{id} is given back with {len} bytes");
                chains += 1;
            }
            if together {
                return;
            }
        }
        assert!(chains >= least, "{chains} of {least} chains are given back");
    }

    /// What was written is in the log.
    fn is_logged(&self, before: &[Vec<u8>]) {
        let Some((_, file)) = &self.log else { return };
        for ((start, _), (old, new)) in REGIONS.iter().zip(before.iter().zip(self.guest.snapshot())) {
            for (at, (old, new)) in old.chunks(4096).zip(new.chunks(4096)).enumerate() {
                let page = start / 4096 + at as u64;
                assert!(old == new || is_set(file, page), "page {page} was written, and is not in the log");
            }
        }
    }
}

fn wraps(position: u16, size: u16) -> bool {
    position & size == 0
}

/// A log with a bit for each page up to the end of the last region, all zero.
fn log() -> (Arc<DirtyLog>, std::fs::File) {
    let file = std::fs::File::from(
        nix::sys::memfd::memfd_create(c"fuzz-log", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).expect("a memfd"),
    );
    let len = (FAR + 0x1000) / DirtyLog::PAGE / 8 + 1;
    file.set_len(len).expect("room");
    (DirtyLog::map(file.try_clone().expect("a descriptor"), 0, len).expect("a log"), file)
}

fn is_set(file: &std::fs::File, page: u64) -> bool {
    use std::os::unix::fs::FileExt;
    let mut byte = [0];
    file.read_exact_at(&mut byte, page / 8).expect("inside");
    byte[0] >> (page % 8) & 1 != 0
}

/// One frame's bytes, in one piece or several.
struct Room(Vec<Box<[u8]>>);

impl Room {
    fn bytes(&self) -> Vec<u8> {
        self.0.concat()
    }
}

/// Keeps every frame, each in memory of its own; of those that it borrows, what they were then.
#[derive(Default)]
struct Sink<const LENDS: bool> {
    frames: Vec<Room>,
    lent: u64,
    room: usize,
}

// SAFETY: each piece is a heap buffer of its own of the asked length, which stays where it is.
unsafe impl<const LENDS: bool> FrameSink for Sink<LENDS> {
    const LENDS: bool = LENDS;

    fn frame(&mut self, _: &NetHeader, len: usize) -> Option<NonNull<u8>> {
        if self.frames.len() >= self.room {
            return None;
        }
        let mut piece = vec![0xdd; len].into_boxed_slice();
        let start = NonNull::new(piece.as_mut_ptr());
        self.frames.push(Room(vec![piece]));
        start
    }

    fn lends_from(&self) -> usize {
        if LENDS { LENT_FROM } else { usize::MAX }
    }

    unsafe fn lend(&mut self, _: &NetHeader, start: NonNull<u8>, len: usize) -> Option<Loan> {
        if len < self.lends_from() {
            return None;
        }
        // SAFETY: the caller's: `len` bytes are readable there, and nobody writes them meanwhile.
        let bytes = unsafe { std::slice::from_raw_parts(start.as_ptr(), len) };
        self.frames.push(Room(vec![bytes.into()]));
        self.lent += 1;
        Some(Loan(self.lent as u16 - 1))
    }

    fn longest(&self, _: usize) -> usize {
        LARGEST
    }

    fn large_frame(&mut self, _: &NetHeader, len: usize, pieces: &mut Vec<(NonNull<u8>, usize)>) -> LargeFrame {
        if self.frames.len() >= self.room {
            return LargeFrame::NoBuffers;
        }
        let mut room = Room(Vec::new());
        let mut left = len;
        while left > 0 {
            let mut piece = vec![0xdd; left.min(2048)].into_boxed_slice();
            left -= piece.len();
            pieces.extend(NonNull::new(piece.as_mut_ptr()).map(|start| (start, piece.len())));
            room.0.push(piece);
        }
        self.frames.push(room);
        LargeFrame::Room
    }
}

/// Frames in one piece each.
struct Frames(Vec<Vec<u8>>);

// SAFETY: plain vectors, borrowed for the call.
unsafe impl FrameSource for Frames {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn frame_len(&self, index: usize) -> usize {
        self.0[index].len()
    }

    fn segments(&self, index: usize) -> impl Iterator<Item = (*const u8, usize)> {
        std::iter::once((self.0[index].as_ptr(), self.0[index].len()))
    }
}
