//! A guest's memory: one memfd, shown to the back-end as one or several regions.
//!
//! # Invariants
//! The file is mapped once, shared and writable, for as long as a [`Memory`] lives; every pointer that is handed out was
//! checked to lie in that mapping. The back-end writes to it at any time, so no reference to it is ever made: accesses are
//! volatile, atomic or plain copies through raw pointers. Who truncates the file ([`Memory::truncate`]) must not touch
//! what was cut off.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes of a hugepage, and the granularity of regions when they are used.
const HUGE_PAGE: usize = 2 << 20;

/// How the guest's memory looks to the back-end.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Bytes in all, rounded up to whole regions.
    pub size: usize,
    /// Regions of equal size; they follow each other in the file.
    pub regions: usize,
    /// Guest-physical address of the first.
    pub start: u64,
    /// Guest-physical bytes between one region and the next; with 0 a buffer may cross from one into the next.
    pub gap: u64,
    /// Hugepages of 2 MiB.
    pub huge_pages: bool,
}

/// A region as SET_MEM_TABLE tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical address.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// Address in this process.
    pub user: u64,
    /// Where it starts in the file.
    pub offset: u64,
}

/// The memory itself, and a simple allocator that never frees.
#[derive(Debug)]
pub struct Memory {
    fd: OwnedFd,
    base: NonNull<u8>,
    size: usize,
    regions: Vec<Region>,
    allocated: AtomicUsize,
}

// SAFETY: the mapping is process-wide and is unmapped only on drop; accesses through its pointers are up to their users,
// who must be prepared for the back-end's writes anyway.
unsafe impl Send for Memory {}
// SAFETY: as for Send; the allocator's cursor is atomic.
unsafe impl Sync for Memory {}

impl Memory {
    /// Makes and maps the memory; it reads as zeros.
    pub fn new(layout: Layout) -> anyhow::Result<Self> {
        ensure!(layout.regions > 0, "guest memory of no region");
        let page = if layout.huge_pages { HUGE_PAGE } else { 4096 };
        let each = layout.size.div_ceil(layout.regions).next_multiple_of(page);
        let size = each * layout.regions;
        let mut flags = MFdFlags::MFD_CLOEXEC;
        if layout.huge_pages {
            flags |= MFdFlags::MFD_HUGETLB;
        }
        let fd = memfd_create(c"ringspan-test-guest", flags).context("memfd_create for the guest's memory")?;
        nix::unistd::ftruncate(&fd, size as i64).with_context(|| format!("guest memory of {size} bytes"))?;
        let length = size.try_into().context("guest memory of 0 bytes")?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // Populated at once: a page fault in the middle of a burst would be measured as the back-end's.
        let map = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a new mapping of a file that we own, at an address the kernel chooses.
        let base = unsafe { mmap(None, length, protection, map, &fd, 0) }
            .with_context(|| format!("mapping {size} bytes of guest memory"))?
            .cast();
        let regions = (0..layout.regions)
            .map(|i| Region {
                guest: layout.start + (i * each) as u64 + i as u64 * layout.gap,
                size: each as u64,
                user: base.as_ptr() as u64 + (i * each) as u64,
                offset: (i * each) as u64,
            })
            .collect();
        Ok(Self { fd, base, size, regions, allocated: AtomicUsize::new(0) })
    }

    /// The file, to be sent to the back-end.
    pub fn file(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// The regions, in the order of their addresses.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Takes `size` bytes, aligned to `align` (a power of two). They cross from one region into the next only when the two
    /// touch in the guest's address space.
    pub fn allocate(&self, size: usize, align: usize) -> anyhow::Result<Piece> {
        let each = self.regions[0].size as usize;
        let apart = self.regions.get(1).is_some_and(|second| second.guest != self.regions[0].guest + each as u64);
        let mut at = self.allocated.load(Ordering::Relaxed).next_multiple_of(align);
        if apart && at / each != (at + size - 1) / each {
            at = at.next_multiple_of(each);
        }
        if at + size > self.size || (apart && size > each) {
            bail!("guest memory is used up: {size} bytes wanted, {} of {} taken", at, self.size);
        }
        self.allocated.store(at + size, Ordering::Relaxed);
        let region = &self.regions[at / each];
        // SAFETY: at + size <= self.size, the length of the mapping.
        let start = unsafe { self.base.add(at) };
        Ok(Piece { start, guest: region.guest + (at as u64 - region.offset), size })
    }

    /// Bytes of the file in front of everything that is allocated after this call.
    pub fn allocated(&self) -> usize {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Forgets all allocations; who holds a [`Piece`] must be gone.
    pub fn free_all(&self) {
        self.allocated.store(0, Ordering::Relaxed);
    }

    /// Cuts the file: what is behind `size` may not be touched any more, by either side. A hostile act.
    pub fn truncate(&self, size: usize) -> io::Result<()> {
        Ok(nix::unistd::ftruncate(&self.fd, size as i64)?)
    }

    /// Where a guest-physical address is mapped, if all of `size` bytes from there are.
    pub fn pointer(&self, guest: u64, size: usize) -> Option<NonNull<u8>> {
        let region = self.regions.iter().find(|r| guest >= r.guest && guest - r.guest < r.size)?;
        let at = region.offset + (guest - region.guest);
        // SAFETY: at + size was checked to be inside of the mapping.
        (at as usize + size <= self.size).then(|| unsafe { self.base.add(at as usize) })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped in new() with this address and length; users hold an Arc of self.
        let _ = unsafe { munmap(self.base.cast(), self.size) };
    }
}

/// A piece of guest memory: its address here and in the guest.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// First byte in this process.
    pub start: NonNull<u8>,
    /// First byte for the guest.
    pub guest: u64,
    /// Bytes.
    pub size: usize,
}

// SAFETY: an address; who uses it holds the memory and keeps to the module's rules.
unsafe impl Send for Piece {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_crosses_regions_only_where_they_touch() {
        let layout = Layout { size: 16384, regions: 4, start: 0x1000, gap: 0, huge_pages: false };
        let touching = Memory::new(layout).unwrap();
        touching.allocate(4000, 1).unwrap();
        assert_eq!(touching.allocate(200, 1).unwrap().guest, 0x1000 + 4000);

        let apart = Memory::new(Layout { gap: 1 << 30, ..layout }).unwrap();
        apart.allocate(4000, 1).unwrap();
        assert_eq!(apart.allocate(200, 1).unwrap().guest, 0x1000 + 4096 + (1 << 30));
        assert!(apart.allocate(5000, 1).is_err());
    }
}
