//! Guest memory that a device may read by DMA (DPDK programmer's guide: *Environment Abstraction Layer*, "Support for Externally
//! Allocated Memory").
//!
//! Maps of one guest have regions in common: a front-end that adds memory leaves the rest where it is (ADD_MEM_REG), and the old map is
//! let go of only when the new one is in use. So regions are counted, mapped with their first map and unmapped with their last.

use std::ptr;

use dpdk_sys as sys;

use super::error::{describe, rte_errno};
use super::external;
use crate::memory::GuestMap;

/// A region as it is mapped: first byte and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    start: usize,
    len: usize,
}

/// What a device may read.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    /// With the number of maps that each is of.
    counted: Vec<(Range, usize)>,
}

impl Ranges {
    /// Makes all of `map` readable for the device. The answer goes to [`Ranges::unmap`]. Takes long: memory is pinned.
    ///
    /// # Errors
    /// What DPDK or the kernel said. Nothing is mapped more than before.
    ///
    /// # Safety
    /// The device is there. The memory stays mapped until its unmapping.
    pub unsafe fn map(&mut self, device: *mut sys::rte_device, map: &GuestMap) -> Result<Vec<Range>, String> {
        let mut done = Vec::new();
        for (region, page) in map.regions().iter().zip(map.page_sizes()) {
            let len = (region.len as usize).next_multiple_of(page);
            let range = Range { start: region.host.as_ptr().addr(), len };
            if self.add(range) {
                // SAFETY: the caller's. The range is mapped to the end of its last page, and its pages have that size.
                if let Err(error) = unsafe { range.map(device, page) } {
                    self.remove(range);
                    // SAFETY: the caller's.
                    unsafe { self.unmap(device, done) };
                    return Err(error);
                }
            }
            done.push(range);
        }
        Ok(done)
    }

    /// The opposite.
    ///
    /// # Safety
    /// The device is there, and reads none of this any more, except by another map.
    pub unsafe fn unmap(&mut self, device: *mut sys::rte_device, ranges: Vec<Range>) {
        for range in ranges {
            if self.remove(range) {
                // SAFETY: the caller's.
                unsafe { range.unmap(device) };
            }
        }
    }

    /// Unmaps everything; what of it is unmapped afterwards was that already.
    ///
    /// # Safety
    /// The device is there, and reads none of this any more.
    pub unsafe fn unmap_all(&mut self, device: *mut sys::rte_device) {
        for (range, _) in self.counted.drain(..) {
            // SAFETY: the caller's.
            unsafe { range.unmap(device) };
        }
    }

    /// One map more has this range; true when it is the first.
    fn add(&mut self, range: Range) -> bool {
        match self.counted.iter_mut().find(|(known, _)| *known == range) {
            Some((_, count)) => {
                *count += 1;
                false
            }
            None => {
                self.counted.push((range, 1));
                true
            }
        }
    }

    /// One map less has this range; true when it was the last.
    fn remove(&mut self, range: Range) -> bool {
        let Some(at) = self.counted.iter().position(|(known, _)| *known == range) else { return false };
        self.counted[at].1 -= 1;
        let last = self.counted[at].1 == 0;
        if last {
            self.counted.swap_remove(at);
        }
        last
    }
}

impl Range {
    /// # Safety
    /// As for [`Ranges::map`]; the range is whole pages of `page` bytes.
    unsafe fn map(self, device: *mut sys::rte_device, page: usize) -> Result<(), String> {
        let Self { start, len } = self;
        let at = ptr::with_exposed_provenance_mut(start);
        external::register()?;
        // SAFETY: the caller's.
        if unsafe { sys::rte_extmem_register(at, len, ptr::null_mut(), 0, page) } != 0 {
            external::unregister();
            return Err(match rte_errno() {
                // Of DPDK's own lists; RTE_MAX_MEMSEG_LISTS is 128 in any build that was looked at.
                libc::ENOSPC => "DPDK knows 128 pieces of memory in a lane, and guests here have more regions: \
                                 put the port on a lane with fewer ports"
                    .into(),
                errno => format!("DPDK cannot register {} KiB of guest memory: {}", len >> 10, describe(errno)),
            });
        }
        // SAFETY: the caller's; just registered.
        if unsafe { sys::rte_dev_dma_map(device, at, start as u64, len) } != 0 {
            let error = describe(rte_errno());
            // SAFETY: just registered, and not mapped.
            if unsafe { sys::rte_extmem_unregister(at, len) } == 0 {
                external::unregister();
            }
            return Err(format!("{} KiB of guest memory cannot be mapped for DMA: {error}", len >> 10));
        }
        Ok(())
    }

    /// # Safety
    /// As for [`Ranges::unmap`].
    unsafe fn unmap(self, device: *mut sys::rte_device) {
        let Self { start, len } = self;
        let at = ptr::with_exposed_provenance_mut(start);
        // SAFETY: the caller's; a range that is not mapped or not registered is refused.
        let (unmapped, forgotten) =
            unsafe { (sys::rte_dev_dma_unmap(device, at, start as u64, len), sys::rte_extmem_unregister(at, len)) };
        if forgotten == 0 {
            external::unregister();
        }
        if unmapped != 0 || forgotten != 0 {
            tracing::warn!("{} KiB of guest memory are still mapped for DMA ({unmapped}, {forgotten})", len >> 10);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_of_two_maps_is_mapped_with_the_first_and_unmapped_with_the_last() {
        let (mut ranges, range) = (Ranges::default(), |start| Range { start, len: 0x1000 });
        assert!(ranges.add(range(0x1000)) && ranges.add(range(0x2000)));
        assert!(!ranges.add(range(0x1000)), "it is mapped already");
        assert!(!ranges.remove(range(0x1000)), "the new map has it still");
        assert!(ranges.remove(range(0x2000)) && ranges.remove(range(0x1000)));
        assert!(!ranges.remove(range(0x1000)), "it was unmapped when the device was closed");
        assert!(ranges.add(range(0x1000)));
    }
}
