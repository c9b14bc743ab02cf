//! A guest's driver for one ring of either kind, as simple as can be: it writes what a test tells it to.
//!
//! A test writes descriptors to a table and makes chains of them available by their heads. In a split ring that is what the guest
//! itself does; for a packed ring the table is the driver's own, and a chain is copied to the ring's next slots with its head as
//! the buffer id.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::memory::GuestMap;
use crate::ring::{FrameSink, FrameSource, NetHeader, Ring, RingConfig, RingError, RingFeatures};

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

/// The same over a packed ring.
pub const PACKED: RingFeatures = RingFeatures { packed: true, ..MODERN };

/// These features over each kind of ring.
pub fn over_both(features: RingFeatures) -> [RingFeatures; 2] {
    [false, true].map(|packed| RingFeatures { packed, ..features })
}

/// Flags of packed descriptors: available, used.
pub const AVAIL: u16 = 1 << 7;
pub const USED: u16 = 1 << 15;

/// One descriptor: address, length, flags, next.
pub type Descriptor = (u64, u32, u16, u16);

pub struct Driver {
    pub memory: Arc<GuestMemoryMmap>,
    pub config: RingConfig,
    /// Chains, or slots of a packed ring, that were made available so far.
    pub avail: u16,
    /// Those that came back.
    pub used: u16,
    call: std::fs::File,
    /// For a packed ring: the driver's own table.
    table: RefCell<HashMap<u16, Descriptor>>,
    /// For a packed ring, and with IN_ORDER: the chains that the device has, and how many slots each takes.
    flying: VecDeque<(u16, u16)>,
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
            record: None,
            memory: 0,
            features,
            kick: None,
            call: Some(Arc::new(OwnedFd::from(call.try_clone().unwrap()))),
            log: None,
        };
        let (table, flying) = Default::default();
        let mut driver = Self { memory, config, avail: start, used: start, call, table, flying };
        if features.packed {
            driver.config.base = u32::from(driver.pack(start)) * 0x1_0001;
            for slot in 0..size {
                // Those before the start were used in this lap, the others in the lap before.
                let behind = slot < start & (size - 1);
                driver.flags(slot, if driver.wraps(start) == behind { AVAIL | USED } else { 0 });
            }
        } else {
            driver.write::<u16>(driver.config.avail.0 + 2, start);
            driver.write::<u16>(driver.config.used.0 + 2, start);
        }
        driver
    }

    /// The wrap counter at a position of a packed ring.
    fn wraps(&self, position: u16) -> bool {
        position & self.config.size == 0
    }

    /// A position of a packed ring as the rest of the world has it.
    pub fn pack(&self, position: u16) -> u16 {
        position & (self.config.size - 1) | u16::from(self.wraps(position)) << 15
    }

    /// Where the ring stands after `slots`, as [`Ring::position`] has it.
    pub fn position(&self, slots: u16) -> u16 {
        if self.config.features.packed { self.pack(slots) } else { slots }
    }

    /// Writes the flags of a packed descriptor.
    pub fn flags(&self, slot: u16, flags: u16) {
        self.write(self.config.desc.0 + 16 * u64::from(slot) + 14, flags);
    }

    /// The device's side of it.
    pub fn device(&self) -> Ring {
        self.try_device().unwrap()
    }

    /// The same of a guest that may have made its ring look like none.
    pub fn try_device(&self) -> Result<Ring, RingError> {
        let ring = Ring::new(self.map(), &self.config)?;
        self.interrupts();
        Ok(ring)
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
        if self.config.features.packed {
            self.table.borrow_mut().insert(index, descriptor);
            return;
        }
        self.descriptor_at(self.config.desc.0 + 16 * u64::from(index), descriptor);
    }

    /// Writes a descriptor anywhere: one of an indirect table.
    pub fn descriptor_at(&self, addr: u64, (buffer, len, flags, next): Descriptor) {
        let (flags, next) = if self.config.features.packed { (next, flags) } else { (flags, next) };
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
        if self.config.features.packed {
            self.offer_packed(head);
            return;
        }
        let at = u64::from(self.avail & (self.config.size - 1));
        self.flying.push_back((head, 1));
        self.write(self.config.avail.0 + 4 + 2 * at, head);
        self.avail = self.avail.wrapping_add(1);
        self.write(self.config.avail.0 + 2, self.avail);
    }

    /// The first descriptor's flags go last (VIRTIO 1.2 section 2.8.21.1).
    fn offer_packed(&mut self, head: u16) {
        let room = self.config.size - self.flying.iter().map(|&(_, slots)| slots).sum::<u16>();
        if room == 0 {
            return;
        }
        let (first, mut index, mut slots) = (self.avail, head, 0);
        let mut first_flags = 0;
        loop {
            let (addr, len, flags, next) = self.table.borrow()[&index];
            let position = first.wrapping_add(slots);
            let flags = flags | if self.wraps(position) { AVAIL } else { USED };
            let at = self.config.desc.0 + 16 * u64::from(position & (self.config.size - 1));
            self.write(at, addr);
            self.write(at + 8, u64::from(len) | u64::from(head) << 32);
            if slots == 0 {
                first_flags = flags;
            } else {
                self.write(at + 14, flags);
            }
            slots += 1;
            if flags & NEXT == 0 || slots == room || !self.table.borrow().contains_key(&next) {
                break;
            }
            index = next;
        }
        self.flags(first & (self.config.size - 1), first_flags);
        self.avail = first.wrapping_add(slots);
        self.flying.push_back((head, slots));
    }

    /// Makes more available than the ring has room for from here on, as no honest guest does.
    pub fn overcommit(&mut self) {
        self.flying.clear();
    }

    /// Forgets all that was made available: the guest has reset its device.
    pub fn restart(&mut self) {
        (self.avail, self.used) = (0, 0);
        self.flying.clear();
    }

    /// What was used since the last call: heads and lengths.
    pub fn collect(&mut self) -> Vec<(u32, u32)> {
        if self.config.features.packed {
            return self.collect_packed();
        }
        let index: u16 = self.read(self.config.used.0 + 2);
        let mut used = Vec::new();
        while self.used != index {
            let at = self.config.used.0 + 4 + 8 * u64::from(self.used & (self.config.size - 1));
            let (id, len) = (self.read::<u32>(at), self.read(at + 4));
            if !self.config.features.in_order {
                used.push((id, len));
                self.used = self.used.wrapping_add(1);
                continue;
            }
            // One element may stand for a batch: everything up to the chain that it names.
            loop {
                let (head, _) = self.flying.pop_front().expect("nothing is used that was not made available");
                self.used = self.used.wrapping_add(1);
                used.push((head.into(), len));
                if u32::from(head) == id {
                    break;
                }
            }
        }
        used
    }

    fn collect_packed(&mut self) -> Vec<(u32, u32)> {
        let mut used = Vec::new();
        loop {
            let at = self.config.desc.0 + 16 * u64::from(self.used & (self.config.size - 1));
            let word: u64 = self.read(at + 8);
            let (len, id, flags) = (word as u32, (word >> 32) as u16, (word >> 48) as u16);
            if (flags & AVAIL != 0) != self.wraps(self.used) || (flags & USED != 0) != self.wraps(self.used) {
                return used;
            }
            // Without the flag the length means nothing.
            let len = if flags & WRITE != 0 { len } else { 0 };
            loop {
                let (head, slots) = self.flying.pop_front().expect("nothing is used that was not made available");
                assert!(head == id || self.config.features.in_order, "chain {id} is used, {head} was next");
                self.used = self.used.wrapping_add(slots);
                used.push((head.into(), len));
                if head == id {
                    break;
                }
            }
        }
    }

    /// Asks for an interrupt when used index `event` is passed (with EVENT_IDX).
    pub fn want(&self, event: u16) {
        if self.config.features.packed {
            self.write(self.config.avail.0, u32::from(self.pack(event)) | 2 << 16);
        } else {
            self.write(self.config.avail.0 + 4 + 2 * u64::from(self.config.size), event);
        }
    }

    /// Asks for no interrupts, or for all.
    pub fn quiet(&self, quiet: bool) {
        let at = if self.config.features.packed { 2 } else { 0 };
        self.write(self.config.avail.0 + at, u16::from(quiet));
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
