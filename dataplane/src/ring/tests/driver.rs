//! A guest's driver for one split ring, as simple as can be: it writes what a test tells it to.

use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::memory::GuestMap;
use crate::ring::{FrameSink, FrameSource, NetHeader, RingConfig, RingFeatures, SplitRing};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Where rings and indirect tables are: two regions that touch.
pub const RINGS: u64 = 0;
pub const RINGS_BORDER: u64 = 3 << 20;
pub const RINGS_END: u64 = 4 << 20;
/// Where buffers are: two regions that touch, so that a buffer may cross from one into the other.
pub const BUFFERS: u64 = 1 << 32;
pub const BORDER: u64 = BUFFERS + (1 << 20);
pub const BUFFERS_END: u64 = BORDER + (1 << 20);
/// Where indirect tables may be put.
pub const TABLES: u64 = 2 << 20;

pub const MODERN: RingFeatures = RingFeatures {
    event_idx: false,
    indirect: false,
    mergeable: false,
    version_1: true,
    packed: false,
    in_order: false,
    offloads: crate::offload::Offloads::NONE,
};

/// One descriptor: address, length, flags, next.
pub type Descriptor = (u64, u32, u16, u16);

pub struct Driver {
    pub memory: Arc<GuestMemoryMmap>,
    pub config: RingConfig,
    pub avail: u16,
    pub used: u16,
    call: std::fs::File,
}

impl Driver {
    /// A ring whose indices stand at `start`, with nothing in it.
    pub fn new(size: u16, features: RingFeatures, start: u16) -> Self {
        let ranges = [
            (GuestAddress(RINGS), (RINGS_BORDER - RINGS) as usize),
            (GuestAddress(RINGS_BORDER), (RINGS_END - RINGS_BORDER) as usize),
            (GuestAddress(BUFFERS), (BORDER - BUFFERS) as usize),
            (GuestAddress(BORDER), (BUFFERS_END - BORDER) as usize),
        ];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let call = eventfd();
        let config = RingConfig {
            size,
            desc: GuestAddress(0),
            avail: GuestAddress(1 << 20),
            used: GuestAddress((1 << 20) + (128 << 10)),
            base: start.into(),
            resume: None,
            features,
            kick: None,
            call: Some(Arc::new(OwnedFd::from(call.try_clone().unwrap()))),
        };
        let driver = Self { memory, config, avail: start, used: start, call };
        driver.write::<u16>(driver.config.avail.0 + 2, start);
        driver.write::<u16>(driver.config.used.0 + 2, start);
        driver
    }

    /// The device's side of it.
    pub fn device(&self) -> SplitRing {
        let ring = SplitRing::new(self.map(), &self.config).unwrap();
        self.interrupts();
        ring
    }

    pub fn map(&self) -> Arc<GuestMap> {
        GuestMap::new(&self.memory)
    }

    pub fn write<T: vm_memory::ByteValued>(&self, addr: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(addr)).unwrap();
    }

    pub fn read<T: vm_memory::ByteValued>(&self, addr: u64) -> T {
        self.memory.read_obj(GuestAddress(addr)).unwrap()
    }

    pub fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    pub fn fill(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    /// Writes a descriptor of the ring's table.
    pub fn descriptor(&self, index: u16, descriptor: Descriptor) {
        self.descriptor_at(self.config.desc.0 + 16 * u64::from(index), descriptor);
    }

    /// Writes a descriptor anywhere.
    pub fn descriptor_at(&self, addr: u64, (buffer, len, flags, next): Descriptor) {
        self.write(addr, buffer);
        self.write(addr + 8, u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48);
    }

    /// Writes a chain of `buffers` (address, length, flags without NEXT) to the descriptors from `head` on.
    pub fn chain(&self, head: u16, buffers: &[(u64, u32, u16)]) {
        for (i, &(addr, len, flags)) in buffers.iter().enumerate() {
            let index = head + i as u16;
            let more = if i + 1 < buffers.len() { NEXT } else { 0 };
            self.descriptor(index, (addr, len, flags | more, index + 1));
        }
    }

    /// Writes an indirect chain: its table at `table`, its one descriptor at `head`.
    pub fn indirect_chain(&self, head: u16, table: u64, buffers: &[(u64, u32, u16)]) {
        for (i, &(addr, len, flags)) in buffers.iter().enumerate() {
            let more = if i + 1 < buffers.len() { NEXT } else { 0 };
            self.descriptor_at(table + 16 * i as u64, (addr, len, flags | more, i as u16 + 1));
        }
        self.descriptor(head, (table, 16 * buffers.len() as u32, INDIRECT, 0));
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, head: u16) {
        let at = u64::from(self.avail & (self.config.size - 1));
        self.write(self.config.avail.0 + 4 + 2 * at, head);
        self.avail = self.avail.wrapping_add(1);
        self.write(self.config.avail.0 + 2, self.avail);
    }

    /// What was used since the last call: heads and lengths.
    pub fn collect(&mut self) -> Vec<(u32, u32)> {
        let index: u16 = self.read(self.config.used.0 + 2);
        let mut used = Vec::new();
        while self.used != index {
            let at = self.config.used.0 + 4 + 8 * u64::from(self.used & (self.config.size - 1));
            used.push((self.read(at), self.read(at + 4)));
            self.used = self.used.wrapping_add(1);
        }
        used
    }

    /// Asks for an interrupt when used index `event` is passed (with EVENT_IDX).
    pub fn want(&self, event: u16) {
        self.write(self.config.avail.0 + 4 + 2 * u64::from(self.config.size), event);
    }

    /// Interrupts since the last call.
    pub fn interrupts(&self) -> u64 {
        let mut count = [0; 8];
        match (&self.call).read_exact(&mut count) {
            Ok(()) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }
}

fn eventfd() -> std::fs::File {
    // SAFETY: no preconditions.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: just opened, owned by nobody else.
    unsafe { std::fs::File::from_raw_fd(fd) }
}

/// Keeps every frame.
#[derive(Default)]
pub struct Sink {
    pub frames: Vec<(NetHeader, Vec<u8>)>,
    /// Most frames that it has buffers for.
    pub room: Option<usize>,
}

// SAFETY: each frame has a heap buffer of its own, which stays where it is.
unsafe impl FrameSink for Sink {
    fn frame(&mut self, header: &NetHeader, len: usize) -> Option<NonNull<u8>> {
        if self.room.is_some_and(|room| self.frames.len() >= room) {
            return None;
        }
        self.frames.push((*header, vec![0xdd; len]));
        NonNull::new(self.frames.last_mut()?.1.as_mut_ptr())
    }
}

/// Frames of segments.
pub struct Frames(pub Vec<Vec<Vec<u8>>>);

impl Frames {
    pub fn plain(frames: &[Vec<u8>]) -> Self {
        Self(frames.iter().map(|frame| vec![frame.clone()]).collect())
    }
}

// SAFETY: plain vectors, borrowed for the call.
unsafe impl FrameSource for Frames {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn frame_len(&self, index: usize) -> usize {
        self.0[index].iter().map(Vec::len).sum()
    }

    fn segments(&self, index: usize) -> impl Iterator<Item = (*const u8, usize)> {
        self.0[index].iter().map(|segment| (segment.as_ptr(), segment.len()))
    }
}

/// A frame of `len` bytes that no other `seed` gives.
pub fn frame(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}
