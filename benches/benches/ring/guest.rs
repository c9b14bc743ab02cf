//! The driver's side of one ring, as cheap as it can be, in memory that a vhost-user front-end can share.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use nix::sys::memfd::{MFdFlags, memfd_create};
use ringspan_dataplane::memory::{GuestMap, RegionCache};
use ringspan_dataplane::ring::{RingConfig, RingFeatures};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// Descriptors of a ring.
pub const SIZE: u16 = 256;
/// Bytes of the header in front of a frame.
pub const HEADER: usize = 12;
/// Bytes from one buffer to the next.
pub const BUFFER: u64 = 2048;
/// Where the buffers are.
pub const BUFFERS: u64 = 1 << 20;
/// The device writes the buffer.
pub const WRITE: u16 = 2;
/// Bytes of guest memory.
pub const MEMORY: usize = 4 << 20;
/// Where the driver's and the device's areas are; the descriptors are at 0.
const AVAIL: u64 = 0x8000;
const USED: u64 = 0x1_0000;

/// A ring whose chains are all written, with one plain buffer each.
pub struct Guest {
    /// The memory, for whoever writes more into it.
    pub memory: Arc<GuestMemoryMmap>,
    /// The same for our rings.
    pub map: Arc<GuestMap>,
    /// Where the ring is.
    pub config: RingConfig,
    /// The available index.
    pub avail: u16,
    file: Arc<File>,
}

impl Guest {
    /// Buffers of `len` bytes; the device writes them if `flags` says so.
    pub fn new(len: usize, flags: u16, features: RingFeatures) -> Self {
        let config = RingConfig {
            size: SIZE,
            desc: GuestAddress(0),
            avail: GuestAddress(AVAIL),
            used: GuestAddress(USED),
            base: 0,
            resume: None,
            record: None,
            memory: 0,
            features,
            kick: None,
            call: None,
            log: None,
        };
        let file = File::from(memfd_create(c"ringspan-bench-ring", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
        file.set_len(MEMORY as u64).expect("memory");
        let file = Arc::new(file);
        let offset = Some(FileOffset::from_arc(Arc::clone(&file), 0));
        let memory = GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), MEMORY, offset)]).expect("memory");
        for i in 0..u64::from(SIZE) {
            let rest = len as u64 | u64::from(flags) << 32;
            memory.write_obj(BUFFERS + BUFFER * i, GuestAddress(16 * i)).expect("inside");
            memory.write_obj(rest, GuestAddress(16 * i + 8)).expect("inside");
            memory.write_obj(i as u16, GuestAddress(AVAIL + 4 + 2 * i)).expect("inside");
        }
        let memory = Arc::new(memory);
        let map = GuestMap::new(&memory);
        Self { memory, map, config, avail: 0, file }
    }

    /// The file that the memory is.
    pub fn file(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Where a guest-physical address is mapped here.
    pub fn host(&self, address: u64) -> *mut u8 {
        self.map.translate(&mut RegionCache::default(), address, 1).expect("inside").start.as_ptr()
    }

    /// Makes `count` chains available.
    pub fn offer(&mut self, count: u16) {
        self.avail = self.avail.wrapping_add(count);
        let index = self.host(self.config.avail.0 + 2);
        // SAFETY: an aligned half-word inside guest memory, which only atomics touch.
        unsafe { AtomicU16::from_ptr(index.cast()) }.store(self.avail, Ordering::Release);
    }

    /// The same ring as the crate virtio-queue has it.
    pub fn queue(&self) -> Queue {
        let mut queue = Queue::new(SIZE).expect("a power of two");
        queue.try_set_desc_table_address(self.config.desc).expect("aligned");
        queue.try_set_avail_ring_address(self.config.avail).expect("aligned");
        queue.try_set_used_ring_address(self.config.used).expect("aligned");
        queue.set_event_idx(self.config.features.event_idx);
        queue.set_ready(true);
        queue
    }
}

/// The same with a packed ring. Here the driver has to write each descriptor's second half anew.
pub struct PackedGuest {
    /// Its memory.
    pub guest: Guest,
    /// Length, id and flags of each slot, without the bits that tell available from used.
    tails: Vec<u64>,
    at: usize,
    wrap: bool,
}

impl PackedGuest {
    /// As [`Guest::new`].
    pub fn new(len: usize, flags: u16, features: RingFeatures) -> Self {
        let mut guest = Guest::new(len, flags, RingFeatures { packed: true, ..features });
        // Slot and wrap counter, of what is available and of what is used.
        guest.config.base = 0x8000_8000;
        let tails = (0..u64::from(SIZE)).map(|id| len as u64 | id << 32 | u64::from(flags) << 48).collect();
        for i in 0..u64::from(SIZE) {
            guest.memory.write_obj(0_u64, GuestAddress(16 * i + 8)).expect("inside");
        }
        guest.memory.write_obj(0_u32, guest.config.avail).expect("inside");
        Self { guest, tails, at: 0, wrap: true }
    }

    /// Makes `count` chains available.
    pub fn offer(&mut self, count: usize) {
        let table = self.guest.host(0).cast::<u64>();
        for _ in 0..count {
            let available = if self.wrap { 1 << 7 } else { 1 << 15 };
            // SAFETY: the second half of a descriptor of the table, aligned to 8; only atomics touch it while the ring runs.
            let tail = unsafe { AtomicU64::from_ptr(table.add(2 * self.at + 1)) };
            tail.store(self.tails[self.at] | available << 48, Ordering::Release);
            self.at += 1;
            if self.at == usize::from(SIZE) {
                (self.at, self.wrap) = (0, !self.wrap);
            }
        }
    }
}
