//! Descriptor chains of any legal shape (VIRTIO 1.2 sections 2.7.4, 2.7.5, 2.8.5 and 2.8.7): the way for everything that is
//! not one plain descriptor.
//!
//! What is refused follows the back-ends that guests are used to: Linux vhost and QEMU take at most 1024 descriptors a
//! chain (UIO_MAXIOV, VIRTQUEUE_MAX_SIZE), whatever the ring's size, and so does this. An indirect table may be longer
//! than the ring, which the specification forbids and Linux guests do with small rings.

use super::descriptor::{Chain, Descriptor};
use super::format::Format;
use super::{RingError, copy};
use crate::memory::{GuestMap, RegionCache, Span};

/// Most descriptors in a chain, those of its indirect table included.
pub(super) const MAX_CHAIN: u16 = 1024;
/// Descriptors of chains that are not one plain buffer, after which a burst ends, so that a guest of long chains does not keep
/// the worker from others. A burst of jumbo frames in the buffers of a Linux guest has a quarter of them.
pub(super) const MAX_BURST: u32 = 4096;

/// Goes along a chain, one descriptor at a time. Each is read once; those of a packed ring that `chain` counts were read before
/// to find its end, of which nothing else was kept.
pub(super) struct Walk<'a, F> {
    format: &'a F,
    map: &'a GuestMap,
    head: u16,
    /// Descriptors in the ring, of a packed one.
    slots: u16,
    /// Read, but not given out yet.
    descriptor: Option<Descriptor>,
    /// Where it is in its table, which for a packed ring begins with the chain.
    place: u16,
    table: Option<Table>,
    /// Descriptors that may still follow.
    left: u16,
}

/// An indirect table.
struct Table {
    addr: u64,
    /// Where it is, when it lies in one region.
    start: Option<*const u8>,
    descriptors: u16,
    cache: RegionCache,
}

impl<'a, F: Format> Walk<'a, F> {
    /// The whole of `chain`.
    pub fn new(format: &'a F, map: &'a GuestMap, chain: &Chain) -> Self {
        #[cfg(test)]
        super::tests::walked();
        let Chain { first, head, slots, .. } = *chain;
        Self { format, map, head, slots, descriptor: Some(first), place: 0, table: None, left: MAX_CHAIN }
    }

    /// Descriptors that were given out.
    pub fn steps(&self) -> u16 {
        MAX_CHAIN - self.left
    }

    /// The next descriptor that describes a buffer.
    pub fn next<const INDIRECT: bool>(&mut self) -> Result<Option<Descriptor>, RingError> {
        let Some(mut descriptor) = self.descriptor.take() else { return Ok(None) };
        let head = self.head;
        if descriptor.flags & Descriptor::INDIRECT != 0 {
            if !INDIRECT {
                return Err(RingError::IndirectNotNegotiated { head });
            }
            descriptor = self.enter(descriptor)?;
        }
        let limit = MAX_CHAIN.min(if self.table.is_some() { MAX_CHAIN } else { self.format.size() });
        self.left = match self.left.checked_sub(1) {
            Some(left) if MAX_CHAIN - left <= limit => left,
            _ => return Err(RingError::ChainLength { head, limit }),
        };
        if F::LINKED {
            if descriptor.flags & Descriptor::NEXT != 0 {
                self.descriptor = Some(self.read(descriptor.next)?);
            }
        } else {
            self.place += 1;
            if self.place < self.table.as_ref().map_or(self.slots, |table| table.descriptors) {
                self.descriptor = Some(self.read(self.place)?);
            }
        }
        Ok(Some(descriptor))
    }

    /// Goes on in the indirect table that `descriptor` names, and reads its first descriptor. The device-writable flag
    /// of `descriptor` itself means nothing (VIRTIO 1.2 sections 2.7.5.3.2 and 2.8.7).
    fn enter(&mut self, descriptor: Descriptor) -> Result<Descriptor, RingError> {
        let (head, Descriptor { addr, len, flags, .. }) = (self.head, descriptor);
        if self.table.is_some() {
            return Err(RingError::IndirectNested { head });
        }
        let goes_on = if F::LINKED { flags & Descriptor::NEXT != 0 } else { self.slots > 1 };
        if goes_on {
            return Err(RingError::IndirectNext { head });
        }
        let max = u32::from(MAX_CHAIN) * Descriptor::LEN as u32;
        if len == 0 || len > max || !len.is_multiple_of(Descriptor::LEN as u32) {
            return Err(RingError::IndirectLength { head, len, max });
        }
        let mut cache = RegionCache::default();
        let span = self.map.translate(&mut cache, addr, len as usize);
        let span = span.ok_or(RingError::Address { head, addr, len })?;
        let start = (span.len == len as usize).then_some(span.start.as_ptr().cast_const());
        self.table = Some(Table { addr, start, descriptors: (len / Descriptor::LEN as u32) as u16, cache });
        self.place = 0;
        let first = self.read(0)?;
        if first.flags & Descriptor::INDIRECT != 0 {
            return Err(RingError::IndirectNested { head });
        }
        Ok(first)
    }

    /// Reads descriptor `index` of the table that the chain is in.
    fn read(&mut self, index: u16) -> Result<Descriptor, RingError> {
        let head = self.head;
        let size = self.table.as_ref().map_or(self.format.size(), |table| table.descriptors);
        if index >= size {
            return Err(RingError::Next { head, next: index, size: size.into() });
        }
        match &mut self.table {
            None if F::LINKED => Ok(self.format.descriptor(index)),
            None => Ok(self.format.descriptor(head + index)),
            Some(table) => {
                let descriptor = table.read(self.map, head, index)?;
                Ok(if F::LINKED { descriptor } else { descriptor.packed() })
            }
        }
    }
}

impl Table {
    /// Reads descriptor `index`, which is inside, as one of a split ring.
    #[inline(always)]
    fn read(&mut self, map: &GuestMap, head: u16, index: u16) -> Result<Descriptor, RingError> {
        if let Some(start) = self.start {
            // SAFETY: `start` is only there when the whole table lies behind it.
            return Ok(unsafe { Descriptor::read::<false>(start, index.into()) });
        }
        let addr = self.addr + u64::from(index) * Descriptor::LEN as u64;
        let outside = RingError::Address { head, addr, len: Descriptor::LEN as u32 };
        read_scattered(map, &mut self.cache, addr).ok_or(outside)
    }
}

/// Reads a descriptor that may cross regions.
#[cold]
fn read_scattered(map: &GuestMap, cache: &mut RegionCache, addr: u64) -> Option<Descriptor> {
    let mut bytes = [0; Descriptor::LEN];
    for (addr, byte) in (addr..).zip(&mut bytes) {
        let span = map.translate(cache, addr, 1)?;
        // SAFETY: one byte inside guest memory.
        *byte = unsafe { copy::read(span.start.as_ptr()) };
    }
    // SAFETY: a local array of one descriptor.
    Some(unsafe { Descriptor::read::<false>(bytes.as_ptr(), 0) })
}

/// Appends the parts of one buffer that is to be touched.
pub(super) fn spread(
    map: &GuestMap,
    cache: &mut RegionCache,
    head: u16,
    buffer: &Descriptor,
    spans: &mut Vec<Span>,
) -> Result<(), RingError> {
    let Descriptor { addr, len, .. } = *buffer;
    let outside = RingError::Address { head, addr, len };
    if addr.checked_add(len.into()).is_none() {
        return Err(outside);
    }
    let mut done = 0;
    while done < len as usize {
        let span = map.translate(cache, addr + done as u64, len as usize - done).ok_or(outside)?;
        done += span.len;
        spans.push(span);
    }
    Ok(())
}
