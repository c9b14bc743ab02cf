//! A guest's memory with nothing around it: each region stands between pages that cannot be touched, so that a copy that leaves it by a byte
//! ends the target. (The address sanitizer does not look at mappings of a program's own.)

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::memory::GuestMap;

/// Guest-physical address and bytes of each region: rings and indirect tables; two that touch for the guest and not for us; one far away.
pub const REGIONS: [(u64, usize); 4] = [(RINGS, 0x8000), (BUFFERS, 0x2000), (BUFFERS + 0x2000, 0x2000), (FAR, 0x1000)];
/// Where the ring and its indirect tables are.
pub const RINGS: u64 = 0;
/// Where indirect tables may be.
pub const TABLES: u64 = 0x4000;
/// Where buffers may be.
pub const BUFFERS: u64 = 0x8000;
/// The same, beyond 32 bits.
pub const FAR: u64 = 1 << 32;

const PAGE: usize = 4096;

/// The memory of one guest.
pub struct Guest {
    memory: Arc<GuestMemoryMmap>,
    /// As the ring sees it.
    pub map: Arc<GuestMap>,
}

impl Default for Guest {
    fn default() -> Self {
        let regions = REGIONS.map(|(start, len)| {
            GuestRegionMmap::new(fenced(len), GuestAddress(start)).expect("a region that does not wrap")
        });
        let memory = Arc::new(GuestMemoryMmap::from_regions(regions.into()).expect("sorted regions"));
        Self { map: GuestMap::new(&memory), memory }
    }
}

impl Guest {
    /// Zeros everywhere.
    pub fn clear(&self) {
        for (start, len) in REGIONS {
            self.memory.write_slice(&[0; 0x8000][..len], GuestAddress(start)).expect("inside");
        }
    }

    /// Writes what lies in memory of it.
    pub fn write(&self, addr: u64, bytes: &[u8]) {
        let _ = self.memory.write(bytes, GuestAddress(addr));
    }

    /// Reads bytes that may cross regions; nothing where not all are in memory.
    pub fn read(&self, addr: u64, len: usize) -> Option<Vec<u8>> {
        // No memory has more; a length of 4 GiB must not be allocated.
        let mut bytes = vec![0; (len <= 0x10000).then_some(len)?];
        self.memory.read_slice(&mut bytes, GuestAddress(addr)).ok().map(|()| bytes)
    }

    /// The 16 bits there, which are in memory.
    pub fn u16(&self, addr: u64) -> u16 {
        self.memory.read_obj(GuestAddress(addr)).expect("inside")
    }

    /// The 32 bits there, which are in memory.
    pub fn u32(&self, addr: u64) -> u32 {
        self.memory.read_obj(GuestAddress(addr)).expect("inside")
    }

    /// Whether all of these bytes are in memory, which may cross regions.
    pub fn has(&self, addr: u64, len: u64) -> bool {
        let ends = REGIONS.iter().map(|&(start, len)| (start, start + len as u64));
        let reaches = ends.fold(addr, |at, (start, end)| if (start..end).contains(&at) { end } else { at });
        addr.checked_add(len).is_some_and(|end| end <= reaches)
    }

    /// All of it.
    pub fn snapshot(&self) -> Vec<Vec<u8>> {
        REGIONS.iter().map(|&(start, len)| self.read(start, len).expect("inside")).collect()
    }
}

/// Memory with a page on each side that nobody may touch. Stays mapped for ever.
fn fenced(len: usize) -> MmapRegion {
    let (none, both) = (libc::PROT_NONE, libc::PROT_READ | libc::PROT_WRITE);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, wherever the kernel likes.
    let all = unsafe { libc::mmap(std::ptr::null_mut(), len + 2 * PAGE, none, flags, -1, 0) };
    assert_ne!(all, libc::MAP_FAILED);
    let start = all.cast::<u8>().wrapping_add(PAGE);
    // SAFETY: inside the mapping that was just made.
    assert_eq!(unsafe { libc::mprotect(start.cast(), len, both) }, 0);
    // SAFETY: `len` bytes are mapped there from now on, readable and writable.
    unsafe { MmapRegion::build_raw(start, len, both, flags) }.expect("an aligned mapping")
}
