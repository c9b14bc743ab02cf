//! From guest-physical addresses to ours.

use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

/// One mapping of a guest's whole memory, immutable. Whoever holds it keeps the memory mapped.
pub struct GuestMap {
    _mmap: Arc<GuestMemoryMmap>,
}

/// The region that was hit last; one for each user of a map.
#[derive(Debug, Clone, Copy, Default)]
pub struct RegionCache(pub u32);

/// A piece of guest memory that is contiguous in ours.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// First byte. Never make a reference of it: the guest writes there at any time.
    pub start: NonNull<u8>,
    /// Length in bytes.
    pub len: usize,
}
