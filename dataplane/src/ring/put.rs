//! To the guest: fills a receive ring.

use std::ops::Range;

use super::chain::{MAX_CHAIN, Walk, spread};
use super::layout::Descriptor;
use super::split::SplitRing;
use super::{FrameSource, NetHeader, Put, RingError, copy};
use crate::BURST;

/// What became of one frame.
enum Placed {
    /// It took this many chains.
    Chains(u16),
    /// More chains are needed than the guest has made available.
    RingFull,
    /// It does not fit, whatever the guest makes available.
    TooLong,
}

impl SplitRing {
    /// Copies `frames` into the guest's buffers, in order. The guest sees them all at once, after everything was copied. A
    /// frame is put as a whole or not at all; when the guest's buffers run out, that frame and those behind it are
    /// counted as [`Put::ring_full`].
    ///
    /// Parts of a chain that the guest marked as read-only are passed over, as QEMU does.
    ///
    /// # Errors
    ///
    /// The guest broke the ring. Nothing was put; what came before the break was returned by the call before, where the
    /// frames behind it were counted as `ring_full`.
    pub fn put<F: FrameSource + ?Sized>(&mut self, frames: &F) -> Result<Put, RingError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        let features = self.features();
        let result = match (features.header_len(), features.mergeable, features.indirect) {
            (NetHeader::LEGACY_LEN, _, false) => self.put_burst::<10, false, false, F>(frames),
            (NetHeader::LEGACY_LEN, _, true) => self.put_burst::<10, false, true, F>(frames),
            (_, false, false) => self.put_burst::<12, false, false, F>(frames),
            (_, false, true) => self.put_burst::<12, false, true, F>(frames),
            (_, true, false) => self.put_burst::<12, true, false, F>(frames),
            (_, true, true) => self.put_burst::<12, true, true, F>(frames),
        };
        self.broken = self.broken.or(result.err());
        result
    }

    fn put_burst<const HEADER: usize, const MERGEABLE: bool, const INDIRECT: bool, F: FrameSource + ?Sized>(
        &mut self,
        frames: &F,
    ) -> Result<Put, RingError> {
        let mut done = Put::default();
        let count = frames.count();
        // Chains that are used so far, and those that were looked at.
        let (mut used, mut window) = (0, 0..0);
        for i in 0..count {
            match self.put_frame::<HEADER, MERGEABLE, INDIRECT, F>(frames, i, used, &mut window) {
                Ok(Placed::Chains(chains)) => {
                    used += chains;
                    done.frames += 1;
                    done.bytes += frames.frame_len(i) as u64;
                }
                Ok(Placed::TooLong) => done.too_long += 1,
                Ok(Placed::RingFull) => {
                    done.ring_full = (count - i) as u64;
                    break;
                }
                Err(error) if i == 0 => return Err(error),
                Err(error) => {
                    done.ring_full = (count - i) as u64;
                    self.broken = Some(error);
                    break;
                }
            }
        }
        if used > 0 {
            self.publish(used);
        }
        Ok(done)
    }

    /// Puts frame `index` into the chain at `used`, or from there on. `window` are the chains that were looked at.
    #[inline(always)]
    fn put_frame<const HEADER: usize, const MERGEABLE: bool, const INDIRECT: bool, F: FrameSource + ?Sized>(
        &mut self,
        frames: &F,
        index: usize,
        used: u16,
        window: &mut Range<u16>,
    ) -> Result<Placed, RingError> {
        if used >= window.end {
            let wanted = (frames.count() - index).min(BURST) as u16;
            let available = self.available(used + wanted)?;
            let ahead = (available - used).min(wanted);
            if ahead == 0 {
                return Ok(Placed::RingFull);
            }
            *window = used..used + self.look(used, ahead, Descriptor::WRITE)?;
        }
        let chain = self.window[usize::from(used - window.start)];
        let frame_len = frames.frame_len(index);
        let needed = HEADER + frame_len;
        if chain.start.is_null() || needed > chain.first.len as usize {
            return self.scatter::<HEADER, MERGEABLE, INDIRECT, F>(frames, index, used);
        }
        // SAFETY: the chain is one buffer inside a region, with room for HEADER + `frame_len` bytes.
        unsafe {
            NetHeader::write_plain::<HEADER>(chain.start);
            gather(frames, index, chain.start.add(HEADER), frame_len);
        }
        self.layout.write_used(self.next.wrapping_add(used), chain.head, needed as u32);
        Ok(Placed::Chains(1))
    }

    /// Puts a frame into chains of any shape, from the one at `used` on: one chain, or with mergeable buffers as many as
    /// it takes. Nothing of it is seen by the guest unless it fits as a whole.
    #[inline(never)]
    fn scatter<const HEADER: usize, const MERGEABLE: bool, const INDIRECT: bool, F: FrameSource + ?Sized>(
        &mut self,
        frames: &F,
        index: usize,
        used: u16,
    ) -> Result<Placed, RingError> {
        let header = NetHeader { num_buffers: 1, ..NetHeader::default() }.emit();
        let pieces = std::iter::once((header.as_ptr(), HEADER)).chain(frames.segments(index));
        let mut feed = Feed::new(pieces);
        let needed = HEADER + frames.frame_len(index);
        let (mut filled, mut chains, mut steps) = (0, 0u16, 0);
        while filled < needed {
            if chains > 0 && !MERGEABLE {
                return Ok(Placed::TooLong);
            }
            if self.available(used + chains + 1)? <= used + chains {
                // The whole ring may be one frame's, but no more.
                let whole = chains == self.layout.size();
                return Ok(if whole { Placed::TooLong } else { Placed::RingFull });
            }
            let position = self.next.wrapping_add(used + chains);
            let head = self.head(position)?;
            let Self { layout, map, cache, spans, .. } = self;
            let mut walk = Walk::new(layout, map, head, layout.descriptor(head));
            let before = filled;
            while filled < needed {
                let Some(buffer) = walk.next::<INDIRECT>()? else { break };
                if buffer.flags & Descriptor::WRITE == 0 {
                    continue;
                }
                spans.clear();
                spread(map, cache, head, &buffer, spans)?;
                for span in spans.iter() {
                    let part = span.len.min(needed - filled);
                    // SAFETY: the span is inside a region.
                    unsafe { feed.fill(span.start.as_ptr(), part) };
                    filled += part;
                }
            }
            steps += walk.steps();
            if steps > MAX_CHAIN {
                return Ok(Placed::TooLong);
            }
            self.layout.write_used(position, head, (filled - before) as u32);
            chains += 1;
        }
        if MERGEABLE && chains > 1 {
            feed.set_num_buffers(chains);
        }
        Ok(Placed::Chains(chains))
    }
}

/// Copies a frame of `len` bytes to `to`.
///
/// # Safety
///
/// `to` is valid for writes of `len` bytes.
#[inline(always)]
unsafe fn gather<F: FrameSource + ?Sized>(frames: &F, index: usize, mut to: *mut u8, len: usize) {
    let mut left = len;
    for (from, part) in frames.segments(index) {
        let part = part.min(left);
        // SAFETY: `part` bytes are left at `to`, and the source has them.
        unsafe {
            copy::copy(from, to, part);
            to = to.add(part);
        }
        left -= part;
        if left == 0 {
            break;
        }
    }
}

/// A frame with its header, given out in parts of any size.
struct Feed<I> {
    pieces: I,
    /// The piece at hand, as far as it was not given out.
    from: *const u8,
    left: usize,
    /// Bytes that were given out.
    fed: usize,
    /// Where num_buffers went, byte by byte: even those two may lie in different buffers.
    num_buffers: [*mut u8; 2],
}

impl<I: Iterator<Item = (*const u8, usize)>> Feed<I> {
    fn new(pieces: I) -> Self {
        Self { pieces, from: std::ptr::null(), left: 0, fed: 0, num_buffers: [std::ptr::null_mut(); 2] }
    }

    /// Writes the next `room` bytes to `at`; fewer if the source broke its promise.
    ///
    /// # Safety
    ///
    /// `at` is valid for writes of `room` bytes, and the pieces are valid for reads.
    unsafe fn fill(&mut self, mut at: *mut u8, mut room: usize) {
        while room > 0 {
            if self.left == 0 {
                let Some(piece) = self.pieces.next() else { return };
                (self.from, self.left) = piece;
                continue;
            }
            let step = room.min(self.left);
            for (i, byte) in (NetHeader::NUM_BUFFERS..).zip(&mut self.num_buffers) {
                if (self.fed..self.fed + step).contains(&i) {
                    *byte = at.wrapping_add(i - self.fed);
                }
            }
            // SAFETY: `step` bytes of the room and of the piece.
            unsafe {
                copy::copy(self.from, at, step);
                self.from = self.from.add(step);
                at = at.add(step);
            }
            self.left -= step;
            self.fed += step;
            room -= step;
        }
    }

    /// Corrects what the header says, once it is known.
    fn set_num_buffers(&self, chains: u16) {
        for (at, byte) in self.num_buffers.into_iter().zip(chains.to_le_bytes()) {
            if !at.is_null() {
                // SAFETY: a byte of guest memory that `fill` wrote, in the same map.
                unsafe { at.write_volatile(byte) };
            }
        }
    }
}
