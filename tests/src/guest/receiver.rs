//! A queue that the guest receives with, by the burst. [`super::transmitter`] is its mirror.

use std::ptr::NonNull;
use std::sync::Arc;

use super::buffers::{BATCH, Buffers, Counts, prefetch_read, prefetch_write};
use super::chain::{Chains, Shape};
use super::net_header::NetHeader;
use super::ring::{Format, Ring, Used, WRITE, either};

/// Most buffers that one received frame may be spread over.
pub const MOST_PIECES: usize = 64;

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

    /// Where its parts lie in this process's mapping of the guest's memory; each for so many bytes.
    pub fn pieces(&self) -> &[(NonNull<u8>, usize)] {
        self.pieces
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
    ring: Ring,
    queue: Queue,
}

/// All of it but the ring.
#[derive(Debug)]
struct Queue {
    chains: Chains,
    buffers: Buffers,
    header: usize,
    room: usize,
    mergeable: bool,
    /// Features that allow headers other than zeros.
    features: u64,
    held_back: bool,
    /// Used elements that were taken from the ring, of which the first `taken` are looked at: a batch, and what its last frame
    /// needs more.
    used: Box<[Used; BATCH + MOST_PIECES]>,
    counts: Counts,
}

impl Receiver {
    /// A queue over `ring` whose buffers hold a header and `room` bytes. They are made available by [`Self::post`].
    pub fn new(
        ring: impl Into<Ring>,
        shape: Shape,
        indirect: bool,
        header: usize,
        room: usize,
        mergeable: bool,
    ) -> anyhow::Result<Self> {
        let mut ring = ring.into();
        let (memory, size) = (Arc::clone(ring.memory()), ring.size());
        let chains = either!(&mut ring, ring => Chains::new(ring, size, &memory, shape, indirect, header))?;
        let buffers = Buffers::new(&memory, chains.buffers(), header + room)?;
        let used = Box::new([Used::default(); BATCH + MOST_PIECES]);
        let counts = Counts::default();
        let queue = Queue { chains, buffers, header, room, mergeable, features: 0, held_back: false, used, counts };
        Ok(Self { ring, queue })
    }

    /// Features that were agreed on: a header that they do not allow is counted as wrong. None were at the start.
    pub fn agree(&mut self, features: u64) {
        self.queue.features = features;
    }

    /// Makes up to `most` free buffers available; how many it were.
    pub fn post(&mut self, most: usize) -> usize {
        either!(&mut self.ring, ring => self.queue.post(ring, most))
    }

    /// Whether received buffers stay with the guest until [`Self::post`], instead of going back into the ring at once.
    pub fn hold_back(&mut self, held_back: bool) {
        self.queue.held_back = held_back;
    }

    /// Hands up to about `most` received frames to `take`; how many. Their buffers go back into the ring afterwards.
    #[inline]
    pub fn receive(&mut self, most: usize, take: impl FnMut(&Received<'_>)) -> usize {
        either!(&mut self.ring, ring => self.queue.receive(ring, most, take))
    }

    /// Buffers that are with the back-end.
    pub fn posted(&self) -> usize {
        self.queue.buffers.len() - self.queue.buffers.free()
    }

    /// Buffers of this queue in all.
    pub fn buffers(&self) -> usize {
        self.queue.buffers.len()
    }

    /// Buffers that a frame of `length` bytes takes.
    pub fn buffers_for(&self, length: usize) -> usize {
        let Queue { mergeable, header, room, .. } = self.queue;
        if mergeable { (length + header).div_ceil(header + room) } else { 1 }
    }

    /// What was received since the queue was made.
    pub fn counts(&self) -> Counts {
        self.queue.counts
    }

    /// The ring, for who wants to look, to wait, or to break it.
    pub fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }
}

impl Queue {
    fn post<R: Format>(&mut self, ring: &mut R, most: usize) -> usize {
        let count = most.min(self.buffers.free());
        for _ in 0..count {
            let buffer = self.buffers.lend();
            let guest = self.buffers.piece(buffer).guest;
            self.chains.offer(ring, buffer, guest, self.header + self.room, WRITE);
        }
        ring.publish();
        count
    }

    #[inline]
    fn receive<R: Format>(&mut self, ring: &mut R, most: usize, mut take: impl FnMut(&Received<'_>)) -> usize {
        let mut count = ring.collect(&mut self.used[..most.min(BATCH)]);
        for (ahead, used) in self.used[..count].iter().enumerate() {
            if (used.id as usize) < self.buffers.len() {
                let buffer = used.id as u16;
                prefetch_read(self.buffers.piece(buffer).start.as_ptr());
                prefetch_write(ring.line(buffer, ahead as u16));
            }
        }
        let (mut at, mut frames) = (0, 0);
        let mut pieces = [(NonNull::dangling(), 0); MOST_PIECES];
        while at < count {
            if self.used[at].length == 0 && self.take_back(at).is_some() {
                self.counts.empty += 1;
                at += 1;
                continue;
            }
            let Some((buffers, length, header)) = self.gather(ring, at, &mut count, &mut pieces) else {
                self.counts.wrong += 1;
                at += 1;
                continue;
            };
            take(&Received { header, pieces: &pieces[..buffers], length });
            self.counts.bytes += length as u64;
            at += buffers;
            frames += 1;
        }
        self.counts.frames += frames as u64;
        self.counts.used += count as u64;
        if !self.held_back && count > 0 {
            self.post(ring, count);
        }
        frames
    }

    /// Finds the pieces of the frame that starts with used element `at` of `count`: how many buffers, the frame's length, and
    /// its header.
    #[inline]
    fn gather<R: Format>(
        &mut self,
        ring: &mut R,
        at: usize,
        count: &mut usize,
        pieces: &mut [(NonNull<u8>, usize); MOST_PIECES],
    ) -> Option<(usize, usize, NetHeader)> {
        let (start, length) = self.take_back(at)?;
        if length <= self.header {
            return None;
        }
        // SAFETY: the header's bytes were part of the buffer; they are copied once.
        let header: [u8; 12] = unsafe { start.cast::<[u8; 12]>().read() };
        let mut buffers = if self.header == 12 { u16::from_le_bytes([header[10], header[11]]) } else { 1 };
        if !self.mergeable {
            self.counts.uncounted += u64::from(buffers != 1);
            buffers = 1;
        }
        let header = NetHeader::parse(header[..10].try_into().unwrap_or_default());
        let buffers = usize::from(buffers);
        if !header.is_allowed(self.features) || buffers == 0 || buffers > MOST_PIECES {
            return None;
        }
        // SAFETY: length > header.
        pieces[0] = (unsafe { start.add(self.header) }, length - self.header);
        let mut total = length - self.header;
        if at + buffers > *count {
            // All buffers of a frame are used together (5.1.6.4), but the batch may end between them.
            *count += ring.collect(&mut self.used[*count..at + buffers]);
        }
        if at + buffers > *count {
            return None;
        }
        for (i, piece) in pieces.iter_mut().enumerate().take(buffers).skip(1) {
            let (start, length) = self.take_back(at + i)?;
            *piece = (start, length);
            total += length;
        }
        Some((buffers, total, header))
    }

    /// Takes a used buffer back: its first byte, and how many the device wrote.
    #[inline]
    fn take_back(&mut self, at: usize) -> Option<(NonNull<u8>, usize)> {
        let used = self.used[at];
        let piece = self.buffers.give_back(used.id)?;
        let length = used.length as usize;
        (length <= self.header + self.room).then_some((piece.start, length))
    }
}
