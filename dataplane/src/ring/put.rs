//! To the guest: fills a receive ring.

use super::ahead::Ahead;
use super::chain::{MAX_BURST, MAX_CHAIN, Walk, spread};
use super::descriptor::{Chain, Descriptor};
use super::format::Format;
use super::queue::{Ground, Queue};
use super::{FrameSource, NetHeader, Put, RingError, copy};
use crate::BURST;

/// What became of one frame.
enum Placed {
    /// It took this many chains and slots of the ring.
    Chains(u16, u16),
    /// More chains are needed than the guest has made available.
    RingFull,
    /// It does not fit, whatever the guest makes available.
    TooLong,
}

impl<R: Format> Queue<R> {
    /// Copies `frames` into the guest's buffers, in order. The guest sees them all at once, after everything was copied. A
    /// frame is put as a whole or not at all; when the guest's buffers run out, that frame and those behind it are
    /// counted as [`Put::ring_full`], and so are those for which only more of very long chains are there.
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

    #[inline(never)]
    fn put_burst<const HEADER: usize, const MERGEABLE: bool, const INDIRECT: bool, F: FrameSource + ?Sized>(
        &mut self,
        frames: &F,
    ) -> Result<Put, RingError> {
        let mut done = Put::default();
        let count = frames.count();
        // Frames that were seen to, slots of the ring that they took, and descriptors of chains that are not plain.
        let (mut seen, mut used, mut steps) = (0, 0, 0);
        while seen < count && steps < MAX_BURST {
            let outcome = match self.look::<true, INDIRECT>(used, 1) {
                Ok(0) => Ok(Placed::RingFull),
                Ok(_) => {
                    #[cfg(test)]
                    self.look_slowly(BURST);
                    let (placed, slots, bytes) = self.put_known::<HEADER, F>(frames, seen, used);
                    seen += placed;
                    used += slots;
                    done.frames += placed as u64;
                    done.bytes += bytes as u64;
                    if seen == count || self.window.len() == 0 {
                        continue;
                    }
                    if MERGEABLE && let Some(slots) = self.put_merged::<HEADER, F>(frames, seen, used) {
                        used += slots;
                        done.frames += 1;
                        done.bytes += frames.frame_len(seen) as u64;
                        seen += 1;
                        continue;
                    }
                    self.ground.scatter::<HEADER, MERGEABLE, INDIRECT, F>(frames, seen, used, &mut steps)
                }
                Err(error) => Err(error),
            };
            match outcome {
                Ok(Placed::Chains(chains, slots)) => {
                    self.forget(chains.into(), slots);
                    used += slots;
                    done.frames += 1;
                    done.bytes += frames.frame_len(seen) as u64;
                }
                Ok(Placed::TooLong) => done.too_long += 1,
                Ok(Placed::RingFull) => break,
                Err(error) if seen == 0 => return Err(error),
                Err(error) => {
                    self.broken = Some(error);
                    break;
                }
            }
            seen += 1;
        }
        done.ring_full = (count - seen) as u64;
        if used > 0 {
            self.publish::<true, false>(&Chain::NONE, used);
            self.look_ahead::<true, INDIRECT>();
        }
        Ok(done)
    }

    /// Chains were used that were read anew, and take `slots` now. Those behind them in the window are still the next ones only if they
    /// took as many when they were found; a guest may have changed them since.
    fn forget(&mut self, chains: usize, slots: u16) {
        let found = self.window.first(chains).iter().try_fold(0u16, |sum, chain| sum.checked_add(R::slots(chain)));
        if found == Some(slots) {
            self.window.used(chains, slots);
        } else {
            self.window.clear();
        }
    }

    /// Puts frames from `index` on into the chains of the window, as long as each is one buffer, or one for the header and one for the rest, and its
    /// frame fits: how many, the slots that they take, and their bytes. `used` slots were used before.
    #[inline(always)]
    fn put_known<const HEADER: usize, F: FrameSource + ?Sized>(
        &mut self,
        frames: &F,
        index: usize,
        used: u16,
    ) -> (usize, u16, usize) {
        let chains = self.window.first(frames.count() - index);
        let (mut placed, mut slots, mut bytes) = (0, 0, 0);
        let mut ahead = Ahead::new(chains.len(), |at| frames.frame_len(index + at));
        while placed < chains.len() {
            let frame_len = frames.frame_len(index + placed);
            let needed = HEADER + frame_len;
            ahead.ask::<true>(placed, needed, |at| {
                let (start, room) = chains.get(at)?.piece();
                Some((start, frames.frame_len(index + at).min(room)))
            });
            let chain = &mut chains[placed];
            let to = if needed <= chain.room as usize {
                chain.start.wrapping_add(HEADER)
            } else if needed <= chain.apart as usize && chain.lead as usize == HEADER {
                chain.body
            } else {
                break;
            };
            let (data, len) = frames.start(index + placed);
            // SAFETY: `chain.start` has HEADER bytes, and `to` has `frame_len`, each inside a region: behind one another in one buffer, or in the
            // two that are apart, of which the first has just the header.
            unsafe {
                if F::HEADERS {
                    frames.header(index + placed).write_single::<HEADER>(chain.start);
                } else {
                    NetHeader::write_plain::<HEADER>(chain.start);
                }
                if len == frame_len {
                    copy::copy(data, to, frame_len);
                } else {
                    gather(frames, index + placed, to, frame_len);
                }
            }
            chain.room = needed as u32;
            bytes += frame_len;
            placed += 1;
            slots += R::slots(chain);
        }
        if self.ground.log.is_some() {
            self.ground.log_chains(&chains[..placed], HEADER);
        }
        self.ground.format.give_back::<true>(used, &chains[..placed], slots);
        self.window.used(placed, slots);
        (placed, slots, bytes)
    }

    /// Puts a frame into as many chains of the window as it takes, which must be one buffer each: the slots that they take. `None`, and nothing is
    /// written, when there are too few of them there.
    #[inline(never)]
    fn put_merged<const HEADER: usize, F: FrameSource + ?Sized>(
        &mut self,
        frames: &F,
        index: usize,
        used: u16,
    ) -> Option<u16> {
        let mut left = frames.frame_len(index);
        let known = self.window.first(BURST);
        let (mut room, mut count) = (0, 0);
        while room < HEADER + left {
            match known.get(count)?.room {
                0 => return None,
                more => room += more as usize,
            }
            count += 1;
        }
        let chains = &mut known[..count];
        let first = chains.first().filter(|chain| chain.room as usize >= HEADER)?.start;
        let header = if F::HEADERS { frames.header(index) } else { NetHeader::default() };
        let header = NetHeader { num_buffers: count as u16, ..header }.emit();
        // SAFETY: the first chain has HEADER bytes and more inside a region.
        unsafe { std::ptr::copy_nonoverlapping(header.as_ptr(), first, HEADER) };
        let mut feed = Feed::new(frames.segments(index));
        let (mut begin, mut slots) = (HEADER, 0);
        for chain in &mut *chains {
            let part = (chain.room as usize - begin).min(left);
            // SAFETY: the chain is one buffer of `room` bytes inside a region, of which the header took the first `begin`; the frame lives until the
            // end.
            unsafe { feed.fill(chain.start.add(begin), part) };
            chain.room = (begin + part) as u32;
            left -= part;
            slots += R::slots(chain);
            begin = 0;
        }
        if self.ground.log.is_some() {
            self.ground.log_chains(chains, HEADER);
        }
        self.ground.format.give_back::<true>(used, chains, slots);
        self.window.used(count, slots);
        Some(slots)
    }
}

impl<R: Format> Ground<R> {
    /// Puts a frame into chains of any shape, from the one `used` slots on: one chain, or with mergeable buffers as many as
    /// it takes. Room is found first: nothing is written unless the frame fits as a whole.
    #[inline(never)]
    fn scatter<const HEADER: usize, const MERGEABLE: bool, const INDIRECT: bool, F: FrameSource + ?Sized>(
        &mut self,
        frames: &F,
        index: usize,
        used: u16,
        looked: &mut u32,
    ) -> Result<Placed, RingError> {
        let needed = HEADER + frames.frame_len(index);
        self.spans.clear();
        self.parts.clear();
        let (mut room, mut chains, mut slots, mut steps) = (0, 0u16, 0, 0);
        while room < needed {
            if chains > 0 && !MERGEABLE || steps > MAX_CHAIN || chains == self.format.size() {
                return Ok(Placed::TooLong);
            }
            let Some(chain) = self.format.chain(used + slots)? else {
                return Ok(Placed::RingFull);
            };
            let Self { format, map, cache, spans, parts, .. } = self;
            let mut walk = Walk::new(format, map, &chain);
            let before = room;
            while room < needed {
                let Some(buffer) = walk.next::<INDIRECT>()? else { break };
                if buffer.flags & Descriptor::WRITE != 0 {
                    spread(map, cache, chain.head, &buffer, spans)?;
                    room += buffer.len as usize;
                }
            }
            steps += walk.steps();
            *looked += u32::from(walk.steps());
            chains += 1;
            slots += R::slots(&chain);
            parts.push(Chain { room: (room.min(needed) - before) as u32, ..chain });
        }
        let header = if F::HEADERS { frames.header(index) } else { NetHeader::default() };
        let header = NetHeader { num_buffers: chains, ..header }.emit();
        let mut feed = Feed::new(std::iter::once((header.as_ptr(), HEADER)).chain(frames.segments(index)));
        let mut left = needed;
        for span in &self.spans {
            let part = span.len.min(left);
            // SAFETY: the span is inside a region; the header and the frame live until the end.
            unsafe { feed.fill(span.start.as_ptr(), part) };
            left -= part;
        }
        if self.log.is_some() {
            self.log_spans(needed);
        }
        self.format.give_back::<true>(used, &self.parts, slots);
        Ok(Placed::Chains(chains, slots))
    }
}

/// Copies a frame of `len` bytes to `to`.
///
/// # Safety
///
/// `to` is valid for writes of `len` bytes.
#[cold]
#[inline(never)]
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
}

impl<I: Iterator<Item = (*const u8, usize)>> Feed<I> {
    fn new(pieces: I) -> Self {
        Self { pieces, from: std::ptr::null(), left: 0 }
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
            // SAFETY: `step` bytes of the room and of the piece.
            unsafe {
                copy::copy(self.from, at, step);
                self.from = self.from.add(step);
                at = at.add(step);
            }
            self.left -= step;
            room -= step;
        }
    }
}
