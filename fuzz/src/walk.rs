//! A slow walk along the chains of a ring, by which the fast one is measured. It reads guest memory where and when it likes: nobody else writes there.

use crate::guest::{Guest, RINGS};
use crate::ring::RingFeatures;

/// Where the available ring is, or the driver's events of a packed one, ...
pub const AVAIL: u64 = 0x1000;
/// ... and the used ring, or the device's.
pub const USED: u64 = 0x2000;
/// Longest frame that is taken.
pub const LARGEST: usize = 9000;

pub const F_NEXT: u16 = 1;
pub const F_WRITE: u16 = 2;
pub const F_INDIRECT: u16 = 4;
pub const F_AVAIL: u16 = 1 << 7;
pub const F_USED: u16 = 1 << 15;

/// Descriptors after which a burst may end.
pub const MAX_BURST: usize = 4096;
/// Most descriptors in a chain; a frame that is put into several has enough after so many, too.
pub const MAX_CHAIN: usize = 1024;

/// A descriptor: address, length, flags, and where the chain goes on.
pub type Descriptor = (u64, u32, u16, u16);

/// Descriptors of which one names the next: the ring's own, or an indirect table.
#[derive(Clone, Copy)]
struct Table {
    start: u64,
    /// Where a packed chain begins.
    first: u16,
    count: u16,
    /// Places behind which it goes around.
    around: u16,
}

/// What a chain has.
pub struct Found {
    /// Bytes for the device to read, or to write.
    pub len: usize,
    /// What is to be read, as far as it is not too long.
    pub bytes: Vec<u8>,
}

/// The chains that are available, up to one that breaks the ring.
pub struct Walk {
    /// `None` for a chain that costs its frame.
    pub chains: Vec<Result<Option<Found>, ()>>,
    /// Descriptors in all of them.
    pub steps: usize,
}

impl Walk {
    /// Whether the last breaks the ring.
    pub fn is_broken(&self) -> bool {
        self.chains.last().is_some_and(Result::is_err)
    }
}

/// A ring in the guest's memory.
#[derive(Clone, Copy)]
pub struct Slow<'a> {
    pub guest: &'a Guest,
    pub features: RingFeatures,
    pub size: u16,
    /// The device reads; otherwise it writes.
    pub drains: bool,
}

impl Slow<'_> {
    /// The chains that are available from `position` on, slowly.
    pub fn walk(&self, position: u16, limit: usize) -> Walk {
        let (packed, size) = (self.features.packed, self.size);
        let mut walk = Walk { chains: Vec::new(), steps: 0 };
        let mut at = if packed { position & 0x7fff } else { position };
        let (mut lap, mut used) = (position >> 15 != 0, 0);
        while walk.chains.len() < limit && used < size && walk.steps < MAX_BURST {
            let chain = if packed {
                let flags = self.guest.u16(RINGS + 16 * u64::from(at) + 14);
                if (flags & F_AVAIL != 0) != lap || (flags & F_USED != 0) == lap {
                    break;
                }
                let goes_on =
                    |slot: u16| self.descriptor_at(RINGS + 16 * u64::from((at + slot) % size)).2 & F_NEXT != 0;
                let count = (0..size - used).find(|slot| !goes_on(*slot)).map(|last| last + 1);
                let first = at;
                let passed = count.unwrap_or(size);
                used += passed;
                (at, lap) = if at + passed >= size { (at + passed - size, !lap) } else { (at + passed, lap) };
                count.map(|count| (Table { start: RINGS, first, count, around: size }, 0))
            } else {
                let avail = self.guest.u16(AVAIL + 2).wrapping_sub(at);
                if avail == 0 {
                    break;
                }
                let head = self.guest.u16(AVAIL + 4 + 2 * u64::from(at & (size - 1)));
                (at, used) = (at.wrapping_add(1), used + 1);
                let table = Table { start: RINGS, first: 0, count: size, around: size };
                (avail <= size).then_some((table, head))
            };
            let found = chain.ok_or(()).and_then(|(table, head)| self.chain_at(table, head, &mut walk.steps));
            walk.chains.push(found);
            if walk.is_broken() {
                break;
            }
        }
        walk
    }

    /// A chain, which breaks the ring where it leaves its table or guest memory, does not end, or has an indirect table where none may be. What is to be read ends
    /// with what is to be written: whatever is behind that.
    fn chain_at(&self, mut table: Table, mut at: u16, steps: &mut usize) -> Result<Option<Found>, ()> {
        let header = self.features.header_len();
        let (mut found, mut seen, mut indirect) = (Found { len: 0, bytes: Vec::new() }, 0, false);
        loop {
            let (mut addr, mut len, mut flags, mut next) = self.entry(table, at)?;
            if flags & F_INDIRECT != 0 {
                let goes_on = if self.features.packed { table.count > 1 } else { flags & F_NEXT != 0 };
                let count = len as usize / 16;
                if !self.features.indirect || indirect || goes_on || len % 16 != 0 || !(1..=MAX_CHAIN).contains(&count)
                {
                    return Err(());
                }
                let count = count as u16;
                (table, at, indirect) = (Table { start: addr, first: 0, count, around: count }, 0, true);
                (addr, len, flags, next) = self.entry(table, at)?;
                if flags & F_INDIRECT != 0 {
                    return Err(());
                }
            }
            (seen, *steps) = (seen + 1, *steps + 1);
            if seen > if indirect { MAX_CHAIN } else { self.size.into() } {
                return Err(());
            }
            let next = if self.features.packed { at + 1 } else { next };
            let goes_on = if self.features.packed { next < table.count } else { flags & F_NEXT != 0 };
            if goes_on {
                self.entry(table, next)?;
            }
            let writes = flags & F_WRITE != 0;
            if writes && self.drains {
                return Ok(None);
            }
            if writes != self.drains {
                found.len += len as usize;
                if (!self.drains || found.len <= header + LARGEST) && !self.guest.has(addr, len.into()) {
                    return Err(());
                }
                if self.drains && found.len <= header + LARGEST && len > 0 {
                    found.bytes.extend(self.guest.read(addr, len as usize).ok_or(())?);
                }
            }
            if !goes_on {
                break;
            }
            at = next;
        }
        if self.drains {
            if found.len < header + 14 {
                return Ok(None);
            }
            found.len -= header;
            found.bytes.drain(..header.min(found.bytes.len()));
        }
        Ok(Some(found))
    }

    /// The descriptor at a place of a table, if it is there.
    fn entry(&self, table: Table, at: u16) -> Result<Descriptor, ()> {
        let place = u64::from((table.first + at) % table.around);
        let addr = table.start.checked_add(16 * place).ok_or(())?;
        if at < table.count && self.guest.has(addr, 16) { Ok(self.descriptor_at(addr)) } else { Err(()) }
    }

    /// The descriptor there, which is in memory.
    pub fn descriptor_at(&self, addr: u64) -> Descriptor {
        let bytes = self.guest.read(addr, 16).expect("inside");
        let number =
            |at: usize, len: usize| bytes[at..at + len].iter().rfold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let (third, fourth) = (number(12, 2) as u16, number(14, 2) as u16);
        let (flags, next) = if self.features.packed { (fourth, third) } else { (third, fourth) };
        (number(0, 8), number(8, 4) as u32, flags, next)
    }

    /// How many of the frames go into chains of so many bytes each, how many never do, and for how many there are too few.
    pub fn fits(&self, rooms: &[usize], frames: &[Vec<u8>]) -> [u64; 3] {
        let (mut at, mut put, mut too_long) = (0, 0, 0);
        'frames: for (index, frame) in frames.iter().enumerate() {
            let (mut room, mut chains) = (0, 0);
            while room < self.features.header_len() + frame.len() {
                if chains > 0 && !self.features.mergeable || chains == usize::from(self.size) {
                    too_long += 1;
                    continue 'frames;
                }
                let Some(more) = rooms.get(at + chains) else { return [put, too_long, (frames.len() - index) as u64] };
                (room, chains) = (room + more, chains + 1);
            }
            (at, put) = (at + chains, put + 1);
        }
        [put, too_long, 0]
    }
}
