//! From the guest: drains a transmit ring.

use std::ptr::NonNull;

use super::chain::{MAX_BURST, Walk, spread};
use super::descriptor::{Chain, Descriptor};
use super::format::Format;
use super::queue::{Ground, Queue};
use super::{FrameSink, LargeFrame, NetHeader, RingError, Taken, copy};
use crate::BURST;

/// Shortest frame: an Ethernet header. Linux guests refuse shorter ones, too.
const MIN_FRAME: usize = 14;

impl<F: Format> Queue<F> {
    /// Takes up to `limit` chains (64 at most) and copies the frame of each into `sink`'s buffers, frames longer than
    /// `max_frame` bytes excepted. Fewer when the chains are very long. The chains are given back to the guest after
    /// everything was copied, at once: a process that is killed here may lose frames but never doubles one. Those that `sink` lends, and
    /// all behind them, are given back by [`Queue::settle`].
    ///
    /// # Errors
    ///
    /// The guest broke the ring. Nothing was taken; what came before the break was returned by the call before.
    pub fn take<S: FrameSink>(&mut self, limit: usize, max_frame: usize, sink: &mut S) -> Result<Taken, RingError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        let features = self.features();
        let legacy = features.header_len() == NetHeader::LEGACY_LEN;
        let result = match (legacy, features.indirect, features.in_order) {
            (true, false, false) => self.take_burst::<10, false, false, S>(limit, max_frame, sink),
            (true, false, true) => self.take_burst::<10, false, true, S>(limit, max_frame, sink),
            (true, true, false) => self.take_burst::<10, true, false, S>(limit, max_frame, sink),
            (true, true, true) => self.take_burst::<10, true, true, S>(limit, max_frame, sink),
            (false, false, false) => self.take_burst::<12, false, false, S>(limit, max_frame, sink),
            (false, false, true) => self.take_burst::<12, false, true, S>(limit, max_frame, sink),
            (false, true, false) => self.take_burst::<12, true, false, S>(limit, max_frame, sink),
            (false, true, true) => self.take_burst::<12, true, true, S>(limit, max_frame, sink),
        };
        self.broken = self.broken.or(result.err());
        result
    }

    #[inline(never)]
    fn take_burst<const HEADER: usize, const INDIRECT: bool, const IN_ORDER: bool, S: FrameSink>(
        &mut self,
        limit: usize,
        max_frame: usize,
        sink: &mut S,
    ) -> Result<Taken, RingError> {
        let limit = if S::LENDS { limit.min(BURST).min(self.debts.room()) } else { limit.min(BURST) };
        let count = self.look::<false>(0, limit)?.min(limit);
        // A frame has between these two, and the loop has one comparison for both.
        let longest = max_frame.max(MIN_FRAME) - MIN_FRAME;
        let Self { ground, window, broken, debts, .. } = self;
        let chains = window.first(count);
        let mut loans = [None; BURST];
        // Only a guest that breaks the rules has more on the way than its ring has slots.
        let most_slots = if S::LENDS { ground.format.size().saturating_sub(debts.slots()) } else { u16::MAX };
        let mut done = Taken::default();
        let (mut frames, mut bytes, mut missed, mut steps) = (0, 0, 0, 0);
        let (mut taken, mut slots) = (0, 0);
        for chain in chains.iter() {
            if S::LENDS && F::slots(chain) > most_slots - slots {
                break;
            }
            let frame_len = (chain.room as usize).wrapping_sub(HEADER);
            if frame_len.wrapping_sub(MIN_FRAME) <= longest {
                // SAFETY: the chain is one buffer of HEADER + `frame_len` bytes inside a region, which lives as long as the map; the
                // sink's buffer has `frame_len` bytes that are not guest memory.
                unsafe {
                    let header = if S::HEADERS { NetHeader::read::<HEADER>(chain.start) } else { NetHeader::default() };
                    let loan = if S::LENDS {
                        NonNull::new(chain.start.add(HEADER)).and_then(|start| sink.lend(&header, start, frame_len))
                    } else {
                        None
                    };
                    if loan.is_some() {
                        loans[taken] = loan;
                        done.lent += 1;
                        bytes += frame_len;
                        frames += 1;
                    } else if let Some(to) = sink.frame(&header, frame_len) {
                        copy::copy(chain.start.add(HEADER), to.as_ptr(), frame_len);
                        bytes += frame_len;
                        frames += 1;
                    } else {
                        missed += frame_len;
                    }
                }
            } else {
                match ground.take_chain::<HEADER, INDIRECT, S>(chain, max_frame, sink, &mut done) {
                    Ok(Some(descriptors)) => steps += u32::from(descriptors),
                    Ok(None) => break,
                    Err(error) => {
                        *broken = Some(error);
                        break;
                    }
                }
            }
            slots += F::slots(chain);
            taken += 1;
            if steps >= MAX_BURST {
                break;
            }
        }
        let Some(&last) = chains[..taken].last() else { return broken.map_or(Ok(done), Err) };
        // What `take_chain` has not counted.
        let odd = done.frames + done.malformed + done.too_long + done.no_buffers;
        done.no_buffers += taken as u64 - odd - frames;
        done.received_bytes += (bytes + missed) as u64;
        done.bytes += bytes as u64;
        done.frames += frames;
        done.received = taken as u64;
        if S::LENDS && (done.lent > 0 || debts.len() > 0) {
            debts.push(&chains[..taken], &loans, slots);
            window.used(taken, slots);
            self.defer(slots);
            self.look_ahead::<false>();
            return Ok(done);
        }
        if !IN_ORDER {
            ground.format.give_back::<false>(0, &chains[..taken], slots);
        }
        window.used(taken, slots);
        self.publish::<false, IN_ORDER>(&last, slots);
        self.look_ahead::<false>();
        Ok(done)
    }
}

impl<F: Format> Ground<F> {
    /// Takes a chain of any shape, counts it in `done`. Returns how many descriptors were looked at, or `None` when it stays for
    /// the next burst.
    #[cold]
    #[inline(never)]
    fn take_chain<const HEADER: usize, const INDIRECT: bool, S: FrameSink>(
        &mut self,
        chain: &Chain,
        max_frame: usize,
        sink: &mut S,
        done: &mut Taken,
    ) -> Result<Option<u16>, RingError> {
        let Self { format, map, cache, spans, pieces, .. } = self;
        let longest = sink.longest(max_frame);
        spans.clear();
        let mut walk = Walk::new(format, map, chain);
        let (mut bytes, mut readable) = (0u64, true);
        while let Some(buffer) = walk.next::<INDIRECT>()? {
            if buffer.flags & Descriptor::WRITE != 0 {
                readable = false;
                break;
            }
            bytes += u64::from(buffer.len);
            // What is too long is not touched, only counted.
            if bytes <= (HEADER + longest) as u64 {
                spread(map, cache, chain.head, &buffer, spans)?;
            }
        }
        let steps = walk.steps();
        let frame_len = bytes.saturating_sub(HEADER as u64);
        if !readable || frame_len < MIN_FRAME as u64 || frame_len > longest as u64 {
            let unfit = readable && frame_len >= MIN_FRAME as u64;
            done.received_bytes += frame_len;
            *(if unfit { &mut done.too_long } else { &mut done.malformed }) += 1;
            return Ok(Some(steps));
        }
        // The spans have exactly HEADER + `frame_len` bytes. The header goes first, wherever it ends.
        let frame_len = frame_len as usize;
        let mut bytes = [0; NetHeader::LEN];
        let mut got = 0;
        for span in spans.iter_mut() {
            let part = span.len.min(HEADER - got);
            // SAFETY: `part` bytes of this span and of the local array; afterwards the span starts behind them.
            unsafe {
                copy::copy_volatile(span.start.as_ptr(), bytes[got..].as_mut_ptr(), part);
                span.start = span.start.add(part);
            }
            span.len -= part;
            got += part;
        }
        let header = NetHeader::parse(bytes);
        pieces.clear();
        let room = if frame_len > max_frame {
            sink.large_frame(&header, frame_len, pieces)
        } else if let Some(to) = sink.frame(&header, frame_len) {
            pieces.push((to, frame_len));
            LargeFrame::Room
        } else {
            LargeFrame::NoBuffers
        };
        if room == LargeFrame::Later {
            return Ok(None);
        }
        done.received_bytes += frame_len as u64;
        match room {
            LargeFrame::TooLong => done.too_long += 1,
            LargeFrame::NoBuffers => done.no_buffers += 1,
            LargeFrame::Room | LargeFrame::Later => {
                // What is left of the spans has `frame_len` bytes, as the sink's pieces have.
                let mut spans = spans.iter().map(|span| (span.start.as_ptr().cast_const(), span.len));
                let (mut from, mut left) = (std::ptr::null(), 0);
                for &(to, len) in pieces.iter() {
                    let mut done = 0;
                    while done < len {
                        if left == 0 {
                            let Some(span) = spans.next() else { break };
                            (from, left) = span;
                            continue;
                        }
                        let part = left.min(len - done);
                        // SAFETY: `part` bytes of the span and of the piece.
                        unsafe {
                            copy::copy(from, to.as_ptr().add(done), part);
                            from = from.add(part);
                        }
                        left -= part;
                        done += part;
                    }
                }
                done.frames += 1;
                done.bytes += frame_len as u64;
            }
        }
        Ok(Some(steps))
    }
}
