//! Chains of two buffers, and indirect tables of one or two: how guests send whose header does not lie before its frame (Linux without
//! headroom, DPDK's virtio PMD, and with INDIRECT_DESC both of them mostly by a table).
//!
//! They are found with the burst: its tables are asked for together, then read, each descriptor once into a local; what these say is
//! checked, and the buffers are asked for. Whatever is not as expected is left as it is, and a [`Walk`](super::chain::Walk) says what it is when its
//! turn comes, from what the guest has there by then.

use std::ptr::NonNull;

use super::copy;
use super::descriptor::{Chain, Descriptor};
use crate::memory::Reader;

/// Bytes of a table of two descriptors.
const TABLE: u32 = 2 * Descriptor::LEN as u32;

impl Chain {
    /// The chain is no plain buffer: nothing is known of it but its first descriptor.
    #[inline(always)]
    pub fn odd(&mut self) {
        (self.room, self.apart) = (0, 0);
    }

    /// The chain is [`Chain::odd`], and its first descriptor names an indirect table: asks for it, if it is short and all there is. Before
    /// [`Chain::read_table`], always.
    #[inline(always)]
    pub fn ask_for_table(&mut self, memory: &mut Reader<'_>) {
        let Descriptor { addr, len, flags, .. } = self.first;
        let short = (len == TABLE || len == TABLE / 2) && flags & Descriptor::NEXT == 0;
        let table = if short { memory.whole(addr, len) } else { None };
        self.body = table.map_or(std::ptr::null_mut(), NonNull::as_ptr);
        copy::prefetch(self.body);
    }

    /// Reads the table that was asked for, and asks for its buffers. `LINKED`: its descriptors are those of a split ring.
    #[inline(always)]
    pub fn read_table<const WRITE: bool, const LINKED: bool>(&mut self, memory: &mut Reader<'_>) {
        let table = self.body.cast_const();
        if table.is_null() {
            return;
        }
        // A packed ring's table has as many descriptors as it has room for, and NEXT means nothing (VIRTIO 1.2 section 2.8.7).
        let shape = if LINKED { Descriptor::SHAPE } else { Descriptor::WRITE | Descriptor::INDIRECT };
        let plain = if WRITE { Descriptor::WRITE } else { 0 };
        let read = |index| {
            // SAFETY: the callers' index is one of the table, which was translated as a whole.
            let descriptor = unsafe { Descriptor::read::<false>(table, index) };
            if LINKED { descriptor } else { descriptor.packed() }
        };
        let first = read(0);
        if self.first.len < TABLE || LINKED && first.flags & shape == plain {
            if first.flags & shape == plain {
                self.ready::<WRITE>(memory, first);
            }
            return;
        }
        let second = read(1);
        let linked = !LINKED || first.next == 1;
        let more = if LINKED { Descriptor::NEXT } else { 0 };
        if first.flags & shape == plain | more && second.flags & shape == plain && linked {
            self.pair::<WRITE>(memory, first, second);
        }
    }

    /// The chain, which is [`Chain::odd`], is these two buffers: they are ready for use, and on their way to the cache, when each lies inside one
    /// region. Two that touch are one.
    #[inline(always)]
    pub fn pair<const WRITE: bool>(&mut self, memory: &mut Reader<'_>, first: Descriptor, second: Descriptor) {
        let Some(len) = first.len.checked_add(second.len) else { return };
        if first.addr.wrapping_add(first.len.into()) == second.addr {
            self.ready::<WRITE>(memory, Descriptor { len, ..first });
            return;
        }
        if let Some(start) = memory.whole(first.addr, first.len)
            && let Some(body) = memory.whole(second.addr, second.len)
        {
            (self.start, self.body) = (start.as_ptr(), body.as_ptr());
            (self.lead, self.apart) = (first.len, len);
            if WRITE {
                copy::prefetch_write(self.start);
            } else {
                copy::prefetch(self.start);
            }
            copy::prefetch_buffer::<WRITE>(self.body);
        }
    }
}
