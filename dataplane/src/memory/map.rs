//! From guest-physical addresses to ours.
//!
//! Invariants: regions are sorted by guest address, do not overlap and do not wrap; each is mapped, readable and
//! writable from `host` on for `len` bytes as long as the map lives.

use std::fmt;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::guard::{self, Guard};

/// One mapping of a guest's whole memory, immutable. Whoever holds it keeps the memory mapped.
pub struct GuestMap {
    regions: Box<[Region]>,
    guard: Guard,
    /// Dropped last, after the guard has let go of its ranges.
    mmap: Arc<GuestMemoryMmap>,
}

/// A part of guest memory that is contiguous for the guest and for us.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    /// First guest-physical address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where the first byte is mapped. Never make a reference of it.
    pub host: NonNull<u8>,
}

/// The region that was hit last; one for each user of a map. A cache of another map is harmless.
#[derive(Debug, Clone, Copy, Default)]
pub struct RegionCache(u32);

/// Translates whole buffers: see [`GuestMap::reader`].
pub struct Reader<'a> {
    map: &'a GuestMap,
    cache: &'a mut RegionCache,
    /// A region of the map, or an empty one.
    last: Region,
}

impl Reader<'_> {
    /// Where the `len` bytes at `addr` are; `None` when they are not all in one region.
    #[inline(always)]
    pub fn whole(&mut self, addr: u64, len: u32) -> Option<NonNull<u8>> {
        match self.last.whole(addr, len) {
            None => self.elsewhere(addr, len),
            start => start,
        }
    }

    /// The region that was hit last.
    #[inline(always)]
    pub fn region(&self) -> Region {
        self.last
    }

    #[cold]
    #[inline(never)]
    fn elsewhere(&mut self, addr: u64, len: u32) -> Option<NonNull<u8>> {
        let span = self.map.find(self.cache, addr, len as usize)?;
        if let Some(region) = self.map.regions.get(self.cache.0 as usize) {
            self.last = *region;
        }
        (span.len == len as usize).then_some(span.start)
    }
}

impl Region {
    /// Where the `len` bytes at `addr` are; `None` when they are not all in this region.
    #[inline(always)]
    pub fn whole(&self, addr: u64, len: u32) -> Option<NonNull<u8>> {
        let offset = addr.wrapping_sub(self.start);
        // An offset below the region's length means that `addr` lies inside; the sum cannot wrap then, because no mapping is that long.
        if offset < self.len && offset.wrapping_add(len.into()) <= self.len {
            // SAFETY: `offset` is inside the mapping of the region.
            return Some(unsafe { self.host.add(offset as usize) });
        }
        None
    }
}

/// A piece of guest memory that is contiguous in ours.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// First byte. Never make a reference of it: the guest writes there at any time.
    pub start: NonNull<u8>,
    /// Length in bytes.
    pub len: usize,
}

// SAFETY: a region is a description of shared, mapped memory that belongs to no thread; whoever touches the memory
// does so through volatile or atomic accesses of its own.
unsafe impl Send for Region {}
// SAFETY: as above; the fields are never written after construction.
unsafe impl Sync for Region {}

impl GuestMap {
    /// The map of `memory`, which stays mapped until the last holder of the map is gone. Its ranges are guarded
    /// against SIGBUS from here on (see [`GuestMap::poisoned`]).
    pub fn new(memory: &Arc<GuestMemoryMmap>) -> Arc<Self> {
        let mut regions: Vec<Region> = Vec::with_capacity(memory.num_regions());
        for region in memory.iter() {
            // vm-memory refuses empty mappings and those that wrap, so neither filter ever drops a region.
            let Some(host) = NonNull::new(region.as_ptr()) else { continue };
            regions.push(Region { start: region.start_addr().raw_value(), len: region.len(), host });
        }
        regions.sort_by_key(|region| region.start);
        let guard = Guard::new(memory.iter().map(Deref::deref));
        Arc::new(Self { regions: regions.into(), guard, mmap: Arc::clone(memory) })
    }

    /// The contiguous part of guest memory that starts at `addr`, at most `len` bytes of it. It is shorter than `len`
    /// where a region ends; what follows is asked for with the next address. `None` when `addr` is outside guest
    /// memory or `addr + len` wraps.
    #[inline(always)]
    pub fn translate(&self, cache: &mut RegionCache, addr: u64, len: usize) -> Option<Span> {
        if let Some(region) = self.regions.get(cache.0 as usize) {
            let offset = addr.wrapping_sub(region.start);
            // An offset below the region's length means that `addr` lies inside; the second test cannot overflow then.
            if offset < region.len && len as u64 <= region.len - offset {
                // SAFETY: `offset` is inside the mapping of the region.
                let start = unsafe { region.host.add(offset as usize) };
                return Some(Span { start, len });
            }
        }
        self.find(cache, addr, len)
    }

    /// Translates many addresses one after another, which mostly lie in one region.
    #[inline(always)]
    pub fn reader<'a>(&'a self, cache: &'a mut RegionCache) -> Reader<'a> {
        let nothing = Region { start: 0, len: 0, host: NonNull::dangling() };
        let last = self.regions.get(cache.0 as usize).copied().unwrap_or(nothing);
        Reader { map: self, cache, last }
    }

    /// The rest of [`GuestMap::translate`]: another region than last time, or one that ends early.
    #[cold]
    #[inline(never)]
    fn find(&self, cache: &mut RegionCache, addr: u64, len: usize) -> Option<Span> {
        addr.checked_add(len as u64)?;
        let index = self.regions.partition_point(|region| region.start <= addr).checked_sub(1)?;
        let region = &self.regions[index];
        let offset = addr - region.start;
        if offset >= region.len {
            return None;
        }
        cache.0 = index as u32;
        let room = usize::try_from(region.len - offset).unwrap_or(usize::MAX);
        // SAFETY: `offset` is inside the mapping of the region.
        let start = unsafe { region.host.add(offset as usize) };
        Some(Span { start, len: len.min(room) })
    }

    /// The guest-physical address of a span that this map gave out. `last` is the place of the region that was hit last, any number at first.
    pub fn guest_address(&self, last: &mut usize, span: Span) -> Option<u64> {
        let within = |region: &Region| {
            let offset = span.start.addr().get().wrapping_sub(region.host.addr().get()) as u64;
            (offset < region.len).then(|| region.start + offset)
        };
        if let Some(found) = self.regions.get(*last).and_then(within) {
            return Some(found);
        }
        let (index, found) = self.regions.iter().enumerate().find_map(|(i, region)| Some((i, within(region)?)))?;
        *last = index;
        Some(found)
    }

    /// All regions, by guest address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The page size of each region's file in bytes, in the same order.
    pub fn page_sizes(&self) -> impl Iterator<Item = usize> {
        let page = |region: &Region| {
            let found = self.mmap.find_region(GuestAddress(region.start));
            found.map_or(1, |region| guard::page_size(region))
        };
        self.regions.iter().map(page)
    }

    /// What each region is a part of, in the same order: device and inode of the file, and where in it the region begins. `None` for memory of no
    /// file, or of one that cannot be asked.
    pub fn origins(&self) -> impl Iterator<Item = Option<(u64, u64, u64)>> {
        let origin = |region: &Region| {
            let found = self.mmap.find_region(GuestAddress(region.start))?;
            let offset = found.file_offset()?;
            let file = offset.file().metadata().ok()?;
            Some((file.dev(), file.ino(), offset.start()))
        };
        self.regions.iter().map(origin)
    }

    /// Which file the memory at `addr` is of: a number that it keeps as long as it exists, whoever maps it, and that no other has. 0 where it is of
    /// none, or the kernel does not say.
    pub fn file_at(&self, addr: u64) -> u64 {
        let file = self.mmap.find_region(GuestAddress(addr)).and_then(|region| region.file_offset());
        let found = file.and_then(|file| file.file().metadata().ok());
        found.map_or(0, |found| (found.dev().rotate_left(32) ^ found.ino()).max(1))
    }

    /// Bytes of guest memory.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.len).sum()
    }

    /// Whether the front-end took memory away behind the mapping (it shrank the file): zeros were read since, and what
    /// was written is lost. A port with a poisoned map is stopped. One relaxed load.
    #[inline]
    pub fn poisoned(&self) -> bool {
        self.guard.poisoned()
    }
}

impl fmt::Debug for GuestMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestMap").field("regions", &self.regions).field("poisoned", &self.poisoned()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(ranges: &[(u64, usize)]) -> Arc<GuestMap> {
        let ranges: Vec<_> = ranges.iter().map(|&(start, len)| (GuestAddress(start), len)).collect();
        GuestMap::new(&Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("anonymous memory")))
    }

    #[test]
    fn finds_the_region_and_the_offset() {
        let map = map(&[(0x1000, 0x1000), (0x4000, 0x2000), (0x10_0000, 0x1000)]);
        let mut cache = RegionCache::default();
        for (region, addr, offset) in [(0, 0x1000, 0), (2, 0x10_0ffe, 0xffe), (1, 0x4010, 0x10), (0, 0x1fff, 0xfff)] {
            let span = map.translate(&mut cache, addr, 1).expect("inside");
            assert_eq!(span.start.as_ptr(), map.regions()[region].host.as_ptr().wrapping_add(offset), "{addr:#x}");
        }
        assert_eq!(map.bytes(), 0x4000);
    }

    #[test]
    fn what_was_translated_is_found_again() {
        let map = map(&[(0x1000, 0x1000), (0x4000, 0x2000), (0x10_0000, 0x1000)]);
        let (mut cache, mut last) = (RegionCache::default(), usize::MAX);
        for addr in [0x1000, 0x10_0ffe, 0x4010, 0x5fff] {
            let span = map.translate(&mut cache, addr, 1).expect("inside");
            assert_eq!(map.guest_address(&mut last, span), Some(addr));
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps a file")]
    fn a_file_is_the_same_wherever_it_is_mapped_and_no_other_is() {
        let file = || {
            let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
            let file = std::fs::File::from(nix::sys::memfd::memfd_create(c"ringspan-test", flags).expect("a memfd"));
            file.set_len(0x1000).expect("memory");
            file
        };
        let of = |file: std::fs::File| {
            let at = vm_memory::FileOffset::new(file, 0);
            let ranges = [(GuestAddress(0x1000), 0x1000, Some(at))];
            GuestMap::new(&Arc::new(GuestMemoryMmap::from_ranges_with_files(ranges).expect("a map"))).file_at(0x1800)
        };
        let one = file();
        let (first, again) = (of(one.try_clone().expect("a descriptor")), of(one));
        assert_eq!(first, again);
        assert_ne!(first, of(file()));
        assert!(first != 0 && map(&[(0x1000, 0x1000)]).file_at(0x1000) == 0);
    }

    #[test]
    fn nothing_outside_is_translated() {
        let map = map(&[(0x1000, 0x1000), (0x4000, 0x1000)]);
        let mut cache = RegionCache::default();
        for addr in [0, 0xfff, 0x2000, 0x3fff, 0x5000, u64::MAX] {
            assert!(map.translate(&mut cache, addr, 1).is_none(), "{addr:#x}");
        }
    }

    #[test]
    fn a_span_ends_with_its_region() {
        let map = map(&[(0x1000, 0x1000), (0x2000, 0x1000)]);
        let mut cache = RegionCache::default();
        for len in [0x11, 0x20, 0x1000] {
            assert_eq!(map.translate(&mut cache, 0x1ff0, len).expect("inside").len, 0x10, "{len:#x} bytes");
        }
        assert_eq!(map.translate(&mut cache, 0x2000, 0x10).expect("inside").len, 0x10);
        assert_eq!(map.translate(&mut cache, 0x2ff0, 0x100).expect("inside").len, 0x10);
    }

    #[test]
    fn a_length_that_wraps_is_refused() {
        let map = map(&[(u64::MAX - 0x1fff, 0x1000)]);
        let mut cache = RegionCache::default();
        assert!(map.translate(&mut cache, u64::MAX - 0x1fff, 0x2000).is_none());
        assert_eq!(map.translate(&mut cache, u64::MAX - 0x1fff, 0x1fff).expect("inside").len, 0x1000);
    }
}
