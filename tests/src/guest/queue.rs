//! A guest's two kinds of queue, by the burst: [`Transmitter`] and [`Receiver`].
//!
//! Both own a fixed set of buffers in guest memory and move them in a circle between a list of free ones and the ring, as
//! a driver does: descriptors and payload are written anew for every frame. Nothing is allocated per frame.
//!
//! # Invariants
//! Buffers stay mapped as long as the ring's `Arc<Memory>`. While a buffer is with the back-end the driver does not read
//! or write it; the back-end may do as it likes at any time, so buffers are copied from and to, never referred to.

use std::ptr::NonNull;

use super::chain::{Chains, Shape};
use super::memory::Piece;
use super::net_header::NetHeader;
use super::ring::{SplitRing, WRITE};

/// Most buffers that one received frame may be spread over.
pub const MOST_PIECES: usize = 64;

/// Step from one buffer to the next in use; odd, so that it visits each of a power of two.
const SCATTER: usize = 397;

/// A queue's buffers, the free ones in the order in which they came back.
#[derive(Debug)]
struct Buffers {
    pieces: Vec<Piece>,
    free: Box<[u16]>,
    first_free: usize,
    count_free: usize,
    with_device: Box<[bool]>,
}

impl Buffers {
    fn new(ring: &SplitRing, count: u16, room: usize) -> anyhow::Result<Self> {
        // An odd number of cache lines from one buffer to the next, so that they do not all fall into the same sets.
        let stride = (room.div_ceil(64) | 1) * 64;
        let pieces = (0..count).map(|_| ring.memory().allocate(stride, 64)).collect::<anyhow::Result<Vec<_>>>()?;
        // Used in scattered order, as a real driver's are. In order of their addresses, the back-end's processor would
        // fetch ahead into buffers that are just being written, and both sides would wait for these lines.
        let pieces = (0..pieces.len()).map(|i| pieces[(i * SCATTER) % pieces.len()]).collect();
        let free = (0..count).collect();
        let with_device = vec![false; usize::from(count)].into();
        Ok(Self { pieces, free, first_free: 0, count_free: usize::from(count), with_device })
    }

    #[inline]
    fn lend(&mut self) -> u16 {
        debug_assert!(self.count_free > 0);
        let buffer = self.free[self.first_free];
        self.first_free = if self.first_free + 1 == self.free.len() { 0 } else { self.first_free + 1 };
        self.count_free -= 1;
        self.with_device[usize::from(buffer)] = true;
        buffer
    }

    /// The buffer that is lent `ahead` of the next one.
    #[inline]
    fn next(&self, ahead: usize) -> u16 {
        let at = self.first_free + ahead;
        self.free[if at >= self.free.len() { at - self.free.len() } else { at }]
    }

    /// Takes a buffer back; false when it was not lent.
    #[inline]
    fn give_back(&mut self, buffer: u16) -> bool {
        let lent = &mut self.with_device[usize::from(buffer)];
        if !std::mem::replace(lent, false) {
            return false;
        }
        let mut last = self.first_free + self.count_free;
        if last >= self.free.len() {
            last -= self.free.len();
        }
        self.free[last] = buffer;
        self.count_free += 1;
        true
    }
}

/// Fetches a cache line that will be written.
#[inline]
fn prefetch_write(line: *const u8) {
    // SAFETY: a hint; it does not fault and changes nothing that a program can see.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Fetches a cache line that will be read.
#[inline]
fn prefetch_read(line: *const u8) {
    // SAFETY: as above.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// What a queue counted, in frames of Ethernet without their check sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Frames given to the back-end, or taken from it.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Used elements that the back-end gave back.
    pub used: u64,
    /// Used elements that no correct back-end writes: unknown or not lent, a bad length, a header that was not agreed on, a
    /// frame in more buffers than were returned with it.
    pub wrong: u64,
    /// Frames whose `num_buffers` was not 1 although buffers are not mergeable. Virtio 1.2, 5.1.6.4.1 wants 1, drivers
    /// ignore it, and DPDK's vhost library leaves 0.
    pub uncounted: u64,
}

/// Room for one frame, to be filled by the sender.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    header: NonNull<u8>,
    start: NonNull<u8>,
    size: usize,
}

impl Room {
    /// Bytes there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Writes the virtio-net header, which is all zeros otherwise.
    #[inline]
    pub fn put_header(&self, header: &NetHeader) {
        let bytes = header.bytes();
        // SAFETY: a header has 10 bytes at least, in front of the frame.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.header.as_ptr(), bytes.len()) }
    }

    /// Writes `bytes` at `at`. Panics when they do not fit.
    #[inline]
    pub fn put(&self, at: usize, bytes: &[u8]) {
        assert!(at <= self.size && bytes.len() <= self.size - at, "a frame of more than {} bytes", self.size);
        // SAFETY: inside of the buffer by the assertion; `bytes` is not guest memory, so the two do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr().add(at), bytes.len()) }
    }
}

/// A queue that the guest sends with.
#[derive(Debug)]
pub struct Transmitter {
    ring: SplitRing,
    chains: Chains,
    buffers: Buffers,
    header: usize,
    room: usize,
    counts: Counts,
}

impl Transmitter {
    /// A queue over `ring` for frames of up to `room` bytes.
    pub fn new(ring: SplitRing, shape: Shape, indirect: bool, header: usize, room: usize) -> anyhow::Result<Self> {
        let chains = Chains::new(&ring, shape, indirect, header)?;
        let buffers = Buffers::new(&ring, chains.buffers(ring.size()), header + room)?;
        Ok(Self { ring, chains, buffers, header, room, counts: Counts::default() })
    }

    /// Sends up to `burst` frames. `fill` gets the frame's number within this burst and its room, and says how long it is.
    /// Returns how many frames there were buffers for.
    #[inline]
    pub fn transmit(&mut self, burst: usize, mut fill: impl FnMut(usize, Room) -> usize) -> usize {
        if self.buffers.count_free < burst {
            self.reclaim();
        }
        let burst = burst.min(self.buffers.count_free);
        for ahead in 0..burst {
            let buffer = self.buffers.next(ahead);
            let piece = self.buffers.pieces[usize::from(buffer)];
            // The back-end has read these lines last: fetch them for writing all at once, not one after the other.
            prefetch_write(piece.start.as_ptr());
            prefetch_write(piece.start.as_ptr().wrapping_add(64));
            prefetch_write(self.ring.descriptor_line(self.chains.head(buffer)));
        }
        let mut bytes = 0;
        for i in 0..burst {
            let buffer = self.buffers.lend();
            let piece = self.buffers.pieces[usize::from(buffer)];
            // SAFETY: a buffer is at least header + room bytes long.
            let start = unsafe {
                piece.start.write_bytes(0, self.header);
                piece.start.add(self.header)
            };
            let length = fill(i, Room { header: piece.start, start, size: self.room });
            assert!(length > 0 && length <= self.room, "a frame of {length} bytes");
            bytes += length;
            let head = self.chains.describe(&mut self.ring, buffer, piece.guest, self.header + length, 0);
            self.ring.push(head);
        }
        self.ring.publish();
        self.counts.frames += burst as u64;
        self.counts.bytes += bytes as u64;
        burst
    }

    /// Takes back the buffers that the back-end is done with; how many.
    #[inline]
    pub fn reclaim(&mut self) -> usize {
        let pending = self.ring.pending();
        for ahead in 0..pending {
            let used = self.ring.peek(ahead);
            let buffer = self.chains.buffer(used.id, self.ring.size());
            let ours = buffer.is_some_and(|buffer| self.buffers.give_back(buffer));
            self.counts.wrong += u64::from(!ours);
        }
        self.ring.take(pending);
        self.counts.used += u64::from(pending);
        usize::from(pending)
    }

    /// Frames that are with the back-end.
    pub fn in_flight(&self) -> usize {
        self.buffers.pieces.len() - self.buffers.count_free
    }

    /// What was sent, and given back, since the queue was made.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The ring, for who wants to look or to break it.
    pub fn ring(&mut self) -> &mut SplitRing {
        &mut self.ring
    }
}

/// A frame that was received, still in guest memory.
#[derive(Debug)]
pub struct Received<'a> {
    header: NetHeader,
    pieces: &'a [(NonNull<u8>, usize)],
    length: usize,
}

impl Received<'_> {
    /// The virtio-net header that came with it.
    pub fn header(&self) -> NetHeader {
        self.header
    }

    /// Bytes of the frame.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Copies the frame to the front of `bytes`, which must have room for it.
    #[inline]
    pub fn copy_to(&self, bytes: &mut [u8]) {
        assert!(self.length <= bytes.len(), "a frame of {} bytes was received", self.length);
        let mut at = 0;
        for &(start, length) in self.pieces {
            // SAFETY: pieces lie in guest buffers of at least that length, and their sum is `length`, which fits.
            unsafe { std::ptr::copy_nonoverlapping(start.as_ptr(), bytes.as_mut_ptr().add(at), length) };
            at += length;
        }
    }

    /// The first eight bytes, for who only wants to touch the frame.
    #[inline]
    pub fn first_long(&self) -> u64 {
        match self.pieces {
            // SAFETY: eight bytes are there.
            [(start, 8..), ..] => unsafe { start.cast::<u64>().read_unaligned() },
            _ => 0,
        }
    }
}

/// A queue that the guest receives with.
#[derive(Debug)]
pub struct Receiver {
    ring: SplitRing,
    chains: Chains,
    buffers: Buffers,
    header: usize,
    room: usize,
    mergeable: bool,
    /// Features that allow headers other than zeros.
    features: u64,
    held_back: bool,
    counts: Counts,
}

impl Receiver {
    /// A queue over `ring` whose buffers hold a header and `room` bytes. They are made available by [`Self::post`].
    pub fn new(
        ring: SplitRing,
        shape: Shape,
        indirect: bool,
        header: usize,
        room: usize,
        mergeable: bool,
    ) -> anyhow::Result<Self> {
        let chains = Chains::new(&ring, shape, indirect, header)?;
        let buffers = Buffers::new(&ring, chains.buffers(ring.size()), header + room)?;
        let counts = Counts::default();
        Ok(Self { ring, chains, buffers, header, room, mergeable, features: 0, held_back: false, counts })
    }

    /// Features that were agreed on: a header that they do not allow is counted as wrong. None were at the start.
    pub fn agree(&mut self, features: u64) {
        self.features = features;
    }

    /// Makes up to `most` free buffers available; how many it were.
    pub fn post(&mut self, most: usize) -> usize {
        let count = most.min(self.buffers.count_free);
        for _ in 0..count {
            let buffer = self.buffers.lend();
            let guest = self.buffers.pieces[usize::from(buffer)].guest;
            let head = self.chains.describe(&mut self.ring, buffer, guest, self.header + self.room, WRITE);
            self.ring.push(head);
        }
        self.ring.publish();
        count
    }

    /// Whether received buffers stay with the guest until [`Self::post`], instead of going back into the ring at once.
    pub fn hold_back(&mut self, held_back: bool) {
        self.held_back = held_back;
    }

    /// Hands up to about `most` received frames to `take`; how many. Their buffers go back into the ring afterwards.
    #[inline]
    pub fn receive(&mut self, most: usize, mut take: impl FnMut(&Received<'_>)) -> usize {
        let pending = self.ring.pending();
        let (mut at, mut frames) = (0, 0);
        let mut pieces = [(NonNull::dangling(), 0); MOST_PIECES];
        for ahead in 0..pending.min(most as u16) {
            let used = self.ring.peek(ahead);
            if let Some(buffer) = self.chains.buffer(used.id, self.ring.size()) {
                prefetch_read(self.buffers.pieces[usize::from(buffer)].start.as_ptr());
                prefetch_write(self.ring.descriptor_line(used.id as u16));
            }
        }
        while at < pending && frames < most {
            let Some((count, length, header)) = self.gather(at, pending, &mut pieces) else {
                self.counts.wrong += 1;
                at += 1;
                continue;
            };
            take(&Received { header, pieces: &pieces[..usize::from(count)], length });
            self.counts.bytes += length as u64;
            at += count;
            frames += 1;
        }
        self.ring.take(at);
        self.counts.frames += frames as u64;
        self.counts.used += u64::from(at);
        if !self.held_back && at > 0 {
            self.post(usize::from(at));
        }
        frames
    }

    /// Finds the pieces of the frame that starts `at` used elements ahead: how many buffers, the frame's
    /// length, and its header.
    #[inline]
    fn gather(
        &mut self,
        at: u16,
        pending: u16,
        pieces: &mut [(NonNull<u8>, usize); MOST_PIECES],
    ) -> Option<(u16, usize, NetHeader)> {
        let (start, length) = self.take_back(at)?;
        if length <= self.header {
            return None;
        }
        // SAFETY: the header's bytes were part of the buffer; they are copied once.
        let header: [u8; 12] = unsafe { start.cast::<[u8; 12]>().read() };
        let mut count = if self.header == 12 { u16::from_le_bytes([header[10], header[11]]) } else { 1 };
        if !self.mergeable {
            self.counts.uncounted += u64::from(count != 1);
            count = 1;
        }
        let header = NetHeader::parse(header[..10].try_into().unwrap_or_default());
        if !header.is_allowed(self.features) || count == 0 || usize::from(count) > MOST_PIECES {
            return None;
        }
        // SAFETY: length > header.
        pieces[0] = (unsafe { start.add(self.header) }, length - self.header);
        let mut total = length - self.header;
        if count > pending - at {
            return None;
        }
        for i in 1..count {
            let (start, length) = self.take_back(at + i)?;
            pieces[usize::from(i)] = (start, length);
            total += length;
        }
        Some((count, total, header))
    }

    /// Takes a used buffer back: its first byte, and how many the device wrote.
    #[inline]
    fn take_back(&mut self, at: u16) -> Option<(NonNull<u8>, usize)> {
        let used = self.ring.peek(at);
        let buffer = self.chains.buffer(used.id, self.ring.size())?;
        let length = used.length as usize;
        let ours = self.buffers.give_back(buffer);
        (ours && length <= self.header + self.room).then(|| (self.buffers.pieces[usize::from(buffer)].start, length))
    }

    /// Buffers that are with the back-end.
    pub fn posted(&self) -> usize {
        self.buffers.pieces.len() - self.buffers.count_free
    }

    /// Buffers of this queue in all.
    pub fn buffers(&self) -> usize {
        self.buffers.pieces.len()
    }

    /// Buffers that a frame of `length` bytes takes.
    pub fn buffers_for(&self, length: usize) -> usize {
        if self.mergeable { (length + self.header).div_ceil(self.header + self.room) } else { 1 }
    }

    /// What was received since the queue was made.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The ring, for who wants to look, to wait, or to break it.
    pub fn ring(&mut self) -> &mut SplitRing {
        &mut self.ring
    }
}
