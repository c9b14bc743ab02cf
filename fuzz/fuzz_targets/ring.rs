//! Any bytes as a guest's doings with one ring, split or packed, in both directions: what it writes to its memory, and when the device looks.
//! No panic; nothing is touched outside of the guest's memory (see `guest`); frames are those that a slow walk along the chains finds; all
//! chains are accounted for, and none is used that was not available; what was written is in the log of dirty pages.
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
use ringspan_fuzz::{BURST, Bytes};
use vm_memory::GuestAddress;

const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const MAX_FRAME: usize = 1514;
/// Longest frame that the sink has pieces for.
const LARGEST: usize = 9000;

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;
const F_AVAIL: u16 = 1 << 7;
const F_USED: u16 = 1 << 15;

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
    log: Option<(Arc<DirtyLog>, std::fs::File)>,
    /// Where the guest's own position is: chains, or slots of a packed ring.
    next: u16,
    /// The ring was used already: what it knows ahead may be older than what is in memory.
    begun: bool,
    loans: Vec<Loan>,
    lends: bool,
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
        let loans = Vec::new();
        Some(Self { guest, bytes, features, size, ring, log, next: start, begun: false, loans, lends })
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
            8..11 => return self.take(),
            11..14 => return self.put(),
            14 => {
                let away = self.bytes.u16();
                let owed = self.ring.owed();
                let mut asked = 0;
                let settled = self.ring.settle(|Loan(loan)| {
                    asked += 1;
                    away >> (loan % 16) & 1 == 0
                });
                assert!(settled <= owed && asked <= owed + 1 && self.ring.owed() == owed - settled);
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

    fn take(&mut self) -> bool {
        let limit = usize::from(self.bytes.u8()) % (BURST + 1);
        let mut sink = Sink { lends: self.lends, room: self.bytes.u8().into(), ..Sink::default() };
        let (before, position) = (self.guest.snapshot(), self.ring.position());
        let expected = (!self.begun && !self.lends).then(|| self.walk(position, limit));
        self.begun = true;
        let Ok(taken) = self.ring.take(limit, MAX_FRAME, &mut sink) else { return false };
        let Taken { received, frames, malformed, too_long, no_buffers, lent, .. } = taken;
        assert_eq!(received, frames + malformed + too_long + no_buffers, "{taken:?}");
        assert!(
            received <= limit as u64 && frames == sink.frames.len() as u64 + lent && lent == sink.loans.len() as u64
        );
        self.advanced(position, received);
        if let Some(expected) = expected {
            let expected: Vec<_> = expected.into_iter().take(received as usize).collect();
            assert_eq!(expected.len() as u64, received, "chains were used that are not available");
            let whole = expected.into_iter().filter_map(|chain| chain.expect("a chain that breaks the ring was taken"));
            // What the sink has no room for is left out.
            if no_buffers == 0 {
                let whole: Vec<_> = whole.filter(|frame| frame.len() <= LARGEST).collect();
                assert!(
                    whole.into_iter().eq(sink.frames.iter().map(Room::bytes)),
                    "other frames than those in the chains"
                );
            }
        }
        self.loans.append(&mut sink.loans);
        self.is_logged(&before);
        true
    }

    fn put(&mut self) -> bool {
        let count = usize::from(self.bytes.u8()) % (BURST + 1);
        let (least, step) = (usize::from(self.bytes.u16()) % 4096, usize::from(self.bytes.u8()));
        let frames = Frames((0..count).map(|at| vec![at as u8 | 0x80; 14 + (least + step * at) % LARGEST]).collect());
        let (before, position) = (self.guest.snapshot(), self.ring.position());
        if self.lends {
            return true;
        }
        self.begun = true;
        let Ok(put) = self.ring.put(&frames) else { return false };
        assert_eq!(put.frames + put.ring_full + put.too_long, count as u64, "{put:?}");
        self.advanced(position, u64::from(self.size));
        self.is_logged(&before);
        true
    }

    /// The ring did not go further than so many chains, nor around.
    fn advanced(&self, from: u16, chains: u64) {
        let to = self.ring.position();
        if self.features.packed {
            assert!(to & 0x7fff < self.size && from & 0x7fff < self.size);
        } else {
            let advance = to.wrapping_sub(from);
            assert!(advance <= self.size && u64::from(advance) <= chains, "{advance} of {chains}");
        }
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

    /// The frames of the chains that are available from `position` on, slowly. `None` for a chain that costs its frame; nothing behind one that breaks the ring.
    fn walk(&self, position: u16, limit: usize) -> Vec<Result<Option<Vec<u8>>, ()>> {
        let mut found = Vec::new();
        let mut at = if self.features.packed { position & 0x7fff } else { position };
        let mut lap = position >> 15 != 0;
        while found.len() < limit {
            let chain = if self.features.packed {
                let flags = self.guest.u16(16 * u64::from(at) + 14);
                if (flags & F_AVAIL != 0) != lap || (flags & F_USED != 0) == lap {
                    break;
                }
                let mut chain = Vec::new();
                loop {
                    let descriptor = self.descriptor_at(16 * u64::from(at));
                    (at, lap) = if at + 1 == self.size { (0, !lap) } else { (at + 1, lap) };
                    chain.push(descriptor);
                    if descriptor.2 & F_NEXT == 0 || chain.len() > self.size.into() {
                        break;
                    }
                }
                Some(chain)
            } else {
                let avail = self.guest.u16(AVAIL + 2).wrapping_sub(at);
                if avail == 0 || avail > self.size {
                    break;
                }
                let head = self.guest.u16(AVAIL + 4 + 2 * u64::from(at & (self.size - 1)));
                at = at.wrapping_add(1);
                self.table(RINGS, head, self.size)
            };
            let frame = chain.and_then(|chain| self.frame(chain)).ok_or(());
            let broken = frame.is_err();
            found.push(frame);
            if broken {
                break;
            }
        }
        found
    }

    fn descriptor_at(&self, addr: u64) -> (u64, u32, u16, u16) {
        let bytes = self.guest.read(addr, 16).expect("inside");
        let number =
            |at: usize, len: usize| bytes[at..at + len].iter().rfold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let (third, fourth) = (number(12, 2) as u16, number(14, 2) as u16);
        let (flags, next) = if self.features.packed { (fourth, third) } else { (third, fourth) };
        (number(0, 8), number(8, 4) as u32, flags, next)
    }

    /// The descriptors of a split chain; `None` where it leaves its table or does not end.
    fn table(&self, table: u64, head: u16, size: u16) -> Option<Vec<(u64, u32, u16, u16)>> {
        let (mut chain, mut at) = (Vec::new(), head);
        while at < size && chain.len() < size.into() {
            self.guest.read(table + 16 * u64::from(at), 16)?;
            let descriptor = self.descriptor_at(table + 16 * u64::from(at));
            chain.push(descriptor);
            if descriptor.2 & F_NEXT == 0 {
                return Some(chain);
            }
            at = descriptor.3;
        }
        None
    }

    /// The frame of a chain that the device reads; `Some(None)` where it has none that counts.
    fn frame(&self, chain: Vec<(u64, u32, u16, u16)>) -> Option<Option<Vec<u8>>> {
        let mut flat = Vec::new();
        for (addr, len, flags, next) in chain {
            if flags & F_INDIRECT == 0 {
                flat.push((addr, len, flags));
                continue;
            }
            let count = u16::try_from(len / 16).ok()?;
            if self.features.packed {
                for at in 0..count {
                    let (addr, len, flags, _) = (self.guest.read(addr.checked_add(16 * u64::from(at))?, 16).is_some())
                        .then(|| self.descriptor_at(addr + 16 * u64::from(at)))?;
                    flat.push((addr, len, flags));
                }
            } else {
                addr.checked_add(u64::from(len))?;
                flat.extend(self.table(addr, 0, count)?.into_iter().map(|(addr, len, flags, _)| (addr, len, flags)));
            }
            let _ = next;
        }
        let mut bytes = Vec::new();
        for (addr, len, flags) in flat {
            if flags & F_WRITE != 0 {
                return Some(None);
            }
            bytes.extend(self.guest.read(addr, len as usize)?);
        }
        let header = self.features.header_len();
        Some((bytes.len() >= header + 14).then(|| bytes.split_off(header)))
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

/// Keeps every frame, each in memory of its own.
#[derive(Default)]
struct Sink {
    frames: Vec<Room>,
    loans: Vec<Loan>,
    lends: bool,
    room: usize,
}

// SAFETY: each piece is a heap buffer of its own of the asked length, which stays where it is.
unsafe impl FrameSink for Sink {
    const LENDS: bool = true;

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
        if self.lends { 64 } else { usize::MAX }
    }

    unsafe fn lend(&mut self, _: &NetHeader, start: NonNull<u8>, len: usize) -> Option<Loan> {
        // SAFETY: the caller's: `len` bytes are readable there.
        unsafe {
            let _ = (start.as_ptr().read_volatile(), start.as_ptr().add(len - 1).read_volatile());
        }
        let loan = Loan(self.loans.len() as u16);
        self.loans.push(loan);
        Some(loan)
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
