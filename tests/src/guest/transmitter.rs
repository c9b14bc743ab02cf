//! A queue that the guest sends with, by the burst.
//!
//! It owns a fixed set of buffers in guest memory and moves them in a circle between a list of free ones and the ring, as
//! a driver does: descriptors and payload are written anew for every frame. Nothing is allocated per frame.

use std::ptr::NonNull;
use std::sync::Arc;

use super::buffers::{BATCH, Buffers, Counts, prefetch_write};
use super::chain::{Chains, Shape};
use super::net_header::NetHeader;
use super::ring::{Format, Ring, Used, either};

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
    counts: Counts,
    /// A buffer is overwritten as soon as it is given back.
    scribbles: bool,
}

impl Transmitter {
    /// A queue over `ring` for frames of up to `room` bytes.
    pub fn new(
        ring: impl Into<Ring>,
        shape: Shape,
        indirect: bool,
        header: usize,
        room: usize,
    ) -> anyhow::Result<Self> {
        let mut ring = ring.into();
        let (memory, size) = (Arc::clone(ring.memory()), ring.size());
        let chains = either!(&mut ring, ring => Chains::new(ring, size, &memory, shape, indirect, header))?;
        let buffers = Buffers::new(&memory, chains.buffers(), header + room)?;
        Ok(Self { ring, queue: Queue { chains, buffers, header, room, counts: Counts::default(), scribbles: false } })
    }

    /// Sends up to `burst` frames. `fill` gets the frame's number within this burst and its room, and says how long it is.
    /// Returns how many frames there were buffers for.
    #[inline]
    pub fn transmit(&mut self, burst: usize, fill: impl FnMut(usize, Room) -> usize) -> usize {
        either!(&mut self.ring, ring => self.queue.transmit(ring, burst, fill))
    }

    /// Takes back the buffers that the back-end is done with; how many.
    #[inline]
    pub fn reclaim(&mut self) -> usize {
        either!(&mut self.ring, ring => self.queue.reclaim(ring))
    }

    /// Overwrites each buffer as soon as it is given back: who still reads it finds no frame there.
    pub fn scribble(&mut self) {
        self.queue.scribbles = true;
    }

    /// Frames that are with the back-end.
    pub fn in_flight(&self) -> usize {
        self.queue.buffers.len() - self.queue.buffers.free()
    }

    /// Guest addresses of the buffers that are with the back-end.
    pub fn lent(&self) -> impl Iterator<Item = u64> {
        self.queue.buffers.lent().map(|piece| piece.guest)
    }

    /// What was sent, and given back, since the queue was made.
    pub fn counts(&self) -> Counts {
        self.queue.counts
    }

    /// The ring, for who wants to look or to break it.
    pub fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }
}

impl Queue {
    #[inline]
    fn transmit<R: Format>(&mut self, ring: &mut R, burst: usize, mut fill: impl FnMut(usize, Room) -> usize) -> usize {
        if self.buffers.free() < burst {
            self.reclaim(ring);
        }
        let burst = burst.min(self.buffers.free());
        for ahead in 0..burst {
            let buffer = self.buffers.next(ahead);
            let start = self.buffers.piece(buffer).start;
            // The back-end has read these lines last: fetch them for writing all at once, not one after the other.
            prefetch_write(start.as_ptr());
            prefetch_write(start.as_ptr().wrapping_add(64));
            prefetch_write(ring.line(buffer, ahead as u16));
        }
        let mut bytes = 0;
        for i in 0..burst {
            let buffer = self.buffers.lend();
            let piece = self.buffers.piece(buffer);
            // SAFETY: a buffer is at least header + room bytes long.
            let start = unsafe {
                piece.start.write_bytes(0, self.header);
                piece.start.add(self.header)
            };
            let length = fill(i, Room { header: piece.start, start, size: self.room });
            assert!(length > 0 && length <= self.room, "a frame of {length} bytes");
            bytes += length;
            self.chains.offer(ring, buffer, piece.guest, self.header + length, 0);
        }
        ring.publish();
        self.counts.frames += burst as u64;
        self.counts.bytes += bytes as u64;
        burst
    }

    #[inline]
    fn reclaim<R: Format>(&mut self, ring: &mut R) -> usize {
        let (mut all, mut used) = (0, [Used::default(); BATCH]);
        loop {
            let count = ring.collect(&mut used);
            for used in &used[..count] {
                let piece = self.buffers.give_back(used.id);
                self.counts.wrong += u64::from(piece.is_none());
                if let Some(piece) = piece.filter(|_| self.scribbles) {
                    // SAFETY: a buffer has header + room bytes, and is the driver's again.
                    unsafe { piece.start.write_bytes(0xee, self.header + self.room) };
                }
            }
            all += count;
            if count < used.len() {
                break;
            }
        }
        self.counts.used += all as u64;
        all
    }
}
