//! Descriptors as both kinds of ring have them, the chains that start with them, and where a ring's parts are.

use std::ptr::NonNull;

use vm_memory::GuestAddress;

use super::error::RingPart;
use super::{RingError, copy};
use crate::memory::{GuestMap, Reader, Region, RegionCache};

/// One descriptor as it was read. `addr` is guest-physical.
#[derive(Debug, Clone, Copy, Default)]
pub struct Descriptor {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    /// Split: where the chain goes on. Packed: the buffer id.
    pub next: u16,
}

impl Descriptor {
    /// Bytes in guest memory.
    pub const LEN: usize = 16;
    /// The chain goes on at `next`.
    pub const NEXT: u16 = 1;
    /// The device writes here.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
    /// What tells a plain buffer from anything else.
    pub const SHAPE: u16 = Self::NEXT | Self::WRITE | Self::INDIRECT;

    /// Reads descriptor `index` of a table, each field once.
    ///
    /// # Safety
    ///
    /// `table` has more than `index` descriptors, and is aligned to 8 bytes or `ALIGNED` is false.
    #[inline(always)]
    pub unsafe fn read<const ALIGNED: bool>(table: *const u8, index: usize) -> Self {
        // SAFETY: inside the table, by the caller.
        let (addr, rest): (u64, u64) = unsafe {
            let at = table.add(index * Self::LEN);
            if ALIGNED {
                (at.cast::<u64>().read_volatile(), at.add(8).cast::<u64>().read_volatile())
            } else {
                (copy::read(at), copy::read(at.add(8)))
            }
        };
        Self { addr, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }
}

impl Descriptor {
    /// A descriptor of a packed ring that was read as one of a split ring: there the id comes first, and the flags last.
    #[inline(always)]
    pub fn packed(self) -> Self {
        Self { flags: self.next, next: self.flags, ..self }
    }
}

/// A chain of the burst at hand. What is known of its buffers is found when it is looked at, and again by a [`Walk`] when it has a shape that
/// is not known here: then `room` and `apart` are both 0.
///
/// [`Walk`]: super::chain::Walk
#[derive(Debug, Clone, Copy)]
pub struct Chain {
    /// The buffer, when the chain is one piece inside one region; the first of two, when they are `apart`.
    pub start: *mut u8,
    /// Bytes of the one piece; 0 when the chain is anything else. Once a frame was put into it, the bytes of that.
    pub room: u32,
    /// Bytes of two pieces together, each inside one region; 0 when the chain is anything else.
    pub apart: u32,
    /// The second of the two pieces. Until they are known, the chain's indirect table, or null.
    pub body: *mut u8,
    /// Bytes of the first of the two pieces.
    pub lead: u32,
    /// The first descriptor; in a packed ring with the buffer id of the last one.
    pub first: Descriptor,
    /// Its position.
    pub head: u16,
    /// Descriptors in a packed ring; of no meaning in a split one.
    pub slots: u16,
}

impl Chain {
    /// No chain.
    pub const NONE: Self = Self {
        start: std::ptr::null_mut(),
        room: 0,
        apart: 0,
        body: std::ptr::null_mut(),
        lead: 0,
        first: Descriptor { addr: 0, len: 0, flags: 0, next: 0 },
        head: 0,
        slots: 1,
    };

    /// The chain is `buffer` alone, which is ready for use, and on its way to the cache, when it lies inside one region.
    #[inline(always)]
    pub fn ready<const WRITE: bool>(&mut self, memory: &mut Reader<'_>, buffer: Descriptor) {
        if let Some(start) = memory.whole(buffer.addr, buffer.len) {
            self.set::<WRITE>(start, buffer.len);
        } else {
            (self.room, self.apart) = (0, 0);
        }
    }

    /// The same for its first descriptor, which is not in the region that was hit last: which one that is from here on.
    #[cold]
    #[inline(never)]
    pub fn ready_elsewhere<const WRITE: bool>(&mut self, memory: &mut Reader<'_>) -> Region {
        self.ready::<WRITE>(memory, self.first);
        memory.region()
    }

    /// The same when it lies inside this region; false otherwise.
    #[inline(always)]
    pub fn ready_in<const WRITE: bool>(&mut self, region: &Region, buffer: Descriptor) -> bool {
        let start = region.whole(buffer.addr, buffer.len);
        if let Some(start) = start {
            self.set::<WRITE>(start, buffer.len);
        }
        start.is_some()
    }

    /// The piece that has the chain's frame, or most of it, and its bytes: the second of two. Nothing of a shape that is not known.
    #[inline(always)]
    pub fn piece(&self) -> (*const u8, usize) {
        let (start, len) =
            if self.room > 0 { (self.start, self.room) } else { (self.body, self.apart.saturating_sub(self.lead)) };
        (start, len as usize)
    }

    #[inline(always)]
    fn set<const WRITE: bool>(&mut self, start: NonNull<u8>, len: u32) {
        (self.start, self.room, self.apart) = (start.as_ptr(), len, 0);
        copy::prefetch_buffer::<WRITE>(self.start);
    }
}

/// One part of a ring: inside one region, aligned for the guest and for us.
pub fn place(
    map: &GuestMap,
    part: RingPart,
    addr: GuestAddress,
    len: usize,
    align: usize,
) -> Result<NonNull<u8>, RingError> {
    let addr = addr.0;
    if !addr.is_multiple_of(align as u64) {
        return Err(RingError::Alignment { part, addr, align });
    }
    match map.translate(&mut RegionCache::default(), addr, len) {
        Some(span) if span.len < len => Err(RingError::Place { part, addr, len }),
        // A region may start anywhere in its mapping, if the front-end is hostile.
        Some(span) if !span.start.addr().get().is_multiple_of(align) => Err(RingError::Alignment { part, addr, align }),
        Some(span) => Ok(span.start),
        None => Err(RingError::Place { part, addr, len }),
    }
}
