//! From the guest: drains a transmit ring.

use std::ptr::NonNull;

use super::ahead::Ahead;
use super::chain::{MAX_BURST, Walk, spread};
use super::descriptor::{Chain, Descriptor};
use super::format::Format;
use super::queue::{Ground, Queue};
use super::{FrameSink, LargeFrame, Loan, NetHeader, RingError, Taken, copy};
use crate::{BURST, SHORT};

/// Shortest frame: an Ethernet header. Linux guests refuse shorter ones, too.
const MIN_FRAME: usize = 14;
const _: () = assert!(MIN_FRAME <= SHORT);

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

    /// The loop is there twice: short frames are copied by wider registers where the processor has them.
    #[inline(always)]
    fn take_burst<const HEADER: usize, const INDIRECT: bool, const IN_ORDER: bool, S: FrameSink>(
        &mut self,
        limit: usize,
        max_frame: usize,
        sink: &mut S,
    ) -> Result<Taken, RingError> {
        #[cfg(test)]
        if super::tests::is_plain() {
            return self.take_burst_plain::<HEADER, INDIRECT, IN_ORDER, S>(limit, max_frame, sink);
        }
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if std::arch::is_x86_feature_detected!("avx2") {
            #[cfg(test)]
            super::tests::goes_wide();
            // SAFETY: the processor has it.
            return unsafe { self.take_burst_wide::<HEADER, INDIRECT, IN_ORDER, S>(limit, max_frame, sink) };
        }
        self.take_burst_plain::<HEADER, INDIRECT, IN_ORDER, S>(limit, max_frame, sink)
    }

    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[target_feature(enable = "avx2")]
    #[inline(never)]
    fn take_burst_wide<const HEADER: usize, const INDIRECT: bool, const IN_ORDER: bool, S: FrameSink>(
        &mut self,
        limit: usize,
        max_frame: usize,
        sink: &mut S,
    ) -> Result<Taken, RingError> {
        self.take_burst_here::<HEADER, INDIRECT, IN_ORDER, S>(limit, max_frame, sink)
    }

    #[inline(never)]
    fn take_burst_plain<const HEADER: usize, const INDIRECT: bool, const IN_ORDER: bool, S: FrameSink>(
        &mut self,
        limit: usize,
        max_frame: usize,
        sink: &mut S,
    ) -> Result<Taken, RingError> {
        self.take_burst_here::<HEADER, INDIRECT, IN_ORDER, S>(limit, max_frame, sink)
    }

    #[inline(always)]
    fn take_burst_here<const HEADER: usize, const INDIRECT: bool, const IN_ORDER: bool, S: FrameSink>(
        &mut self,
        limit: usize,
        max_frame: usize,
        sink: &mut S,
    ) -> Result<Taken, RingError> {
        let limit = if S::LENDS { limit.min(BURST).min(self.debts.room()) } else { limit.min(BURST) };
        let count = self.look::<false, INDIRECT>(0, limit)?.min(limit);
        #[cfg(test)]
        self.look_slowly(count);
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
        // What is lent is not read here.
        let lends_from = sink.lends_from();
        let place = |at: usize| chains.get(at).map(Chain::piece).filter(|&(_, len)| len < lends_from);
        let mut ahead = Ahead::new(count, |at| place(at).map_or(0, |(_, len)| len));
        loop {
            if let Some(chains) = chains.get(taken..) {
                // Of a ring that lends, each takes one slot.
                let most = if S::LENDS { usize::from(most_slots - slots) } else { chains.len() };
                let chains = &chains[..most.min(chains.len())];
                // SAFETY: the chains are of the map, which lives.
                let run = unsafe { fetch_run::<HEADER, F, S>(sink, chains, longest) };
                (taken, frames) = (taken + run.frames, frames + run.frames as u64);
                (bytes, slots) = (bytes + run.bytes, slots + run.slots);
            }
            let Some(chain) = chains.get(taken) else { break };
            if S::LENDS && F::slots(chain) > most_slots - slots {
                break;
            }
            ahead.ask::<false>(taken, chain.piece().1, place);
            let one = (chain.room as usize).wrapping_sub(HEADER);
            if one.wrapping_sub(MIN_FRAME) <= longest {
                // SAFETY: the chain is one buffer of HEADER + `one` bytes inside a region, which lives as long as the map.
                let got =
                    unsafe { fetch::<HEADER, S>(sink, chain.start, chain.start.add(HEADER), one, &mut loans[taken]) };
                if got {
                    bytes += one;
                    frames += 1;
                } else {
                    missed += one;
                }
            } else if let Some(two) = apart::<HEADER>(chain, longest) {
                // SAFETY: `apart` says so.
                if unsafe { fetch_apart::<HEADER, S>(sink, chain, two, &mut loans[taken]) } {
                    bytes += two;
                    frames += 1;
                } else {
                    missed += two;
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
        if S::LENDS {
            done.lent = loans[..taken].iter().flatten().count() as u64;
        }
        done.received_bytes += (bytes + missed) as u64;
        done.bytes += bytes as u64;
        done.frames += frames;
        done.received = taken as u64;
        if S::LENDS && (done.lent > 0 || debts.len() > 0) {
            debts.push(&chains[..taken], &loans, slots);
            window.used(taken, slots);
            self.defer(slots);
            self.look_ahead::<false, INDIRECT>();
            return Ok(done);
        }
        if !IN_ORDER {
            ground.format.give_back::<false>(0, &chains[..taken], slots);
        }
        window.used(taken, slots);
        self.publish::<false, IN_ORDER>(&last, slots);
        self.look_ahead::<false, INDIRECT>();
        Ok(done)
    }
}

/// Short frames that were copied in one go.
struct Run {
    frames: usize,
    bytes: usize,
    /// Slots of the ring that their chains take.
    slots: u16,
}

/// Copies the short frames of plain chains into `sink`, up to the first chain that is anything else, or that is left to [`fetch`]. Where frames are
/// lent, those that may be are left to it, and chains of several slots. There is no call in this loop, so that all it counts stays in registers.
///
/// # Safety
///
/// What the chains say of their one buffer is true.
#[inline(always)]
unsafe fn fetch_run<const HEADER: usize, F: Format, S: FrameSink>(
    sink: &mut S,
    chains: &[Chain],
    longest: usize,
) -> Run {
    let (mut bytes, mut slots) = (0, 0);
    let Some(below_loans) = sink.lends_from().checked_sub(MIN_FRAME + 1) else {
        return Run { frames: 0, bytes, slots };
    };
    let longest = longest.min(SHORT - MIN_FRAME).min(below_loans);
    let frames = chains.iter().map_while(|chain| {
        let len = (chain.room as usize).wrapping_sub(HEADER);
        if len.wrapping_sub(MIN_FRAME) > longest || S::LENDS && F::slots(chain) > 1 {
            return None;
        }
        // SAFETY: the chain has HEADER bytes and more.
        let header = if S::HEADERS { unsafe { NetHeader::read::<HEADER>(chain.start) } } else { NetHeader::default() };
        Some((header, len, chain))
    });
    let put = |chain: &Chain, len: usize, to: NonNull<u8>| {
        // SAFETY: the chain is one buffer of HEADER + `len` bytes inside a region, and the sink's has `len` that are not guest memory; they
        // are SHORT at most.
        unsafe { copy::copy_short(chain.start.add(HEADER), to.as_ptr(), len) };
        bytes += len;
        slots += F::slots(chain);
    };
    // SAFETY: none is longer than SHORT.
    let frames = unsafe { sink.several(frames, put) };
    Run { frames, bytes, slots }
}

/// Lends a frame to `sink`, or copies it there; whether there was room.
///
/// # Safety
///
/// `header` is valid for reads of HEADER bytes, and `frame` of `len` as long as the ring's map lives.
#[inline(always)]
unsafe fn fetch<const HEADER: usize, S: FrameSink>(
    sink: &mut S,
    header: *const u8,
    frame: *mut u8,
    len: usize,
    loan: &mut Option<Loan>,
) -> bool {
    // SAFETY: the caller's; the sink's buffer has `len` bytes that are not guest memory.
    unsafe {
        let header = if S::HEADERS { NetHeader::read::<HEADER>(header) } else { NetHeader::default() };
        if S::LENDS {
            *loan = NonNull::new(frame).and_then(|start| sink.lend(&header, start, len));
            if loan.is_some() {
                return true;
            }
        }
        let Some(to) = sink.frame(&header, len) else { return false };
        copy::copy(frame, to.as_ptr(), len);
    }
    true
}

/// Bytes of the frame in a chain of two buffers, of which the first has HEADER bytes at least and both have HEADER + so many, unless it is too
/// short or too long.
#[inline(always)]
fn apart<const HEADER: usize>(chain: &Chain, longest: usize) -> Option<usize> {
    let len = (chain.apart as usize).wrapping_sub(HEADER);
    (len.wrapping_sub(MIN_FRAME) <= longest && chain.lead as usize >= HEADER).then_some(len)
}

/// The same as [`fetch`] for a frame of `len` bytes in a chain of two buffers. It is not lent unless it has the second for itself.
///
/// # Safety
///
/// As [`apart`] says.
#[inline(never)]
unsafe fn fetch_apart<const HEADER: usize, S: FrameSink>(
    sink: &mut S,
    chain: &Chain,
    len: usize,
    loan: &mut Option<Loan>,
) -> bool {
    let begun = chain.lead as usize - HEADER;
    // SAFETY: the caller's; the sink's buffer has `len` bytes that are not guest memory.
    unsafe {
        if begun == 0 {
            return fetch::<HEADER, S>(sink, chain.start, chain.body, len, loan);
        }
        let header = if S::HEADERS { NetHeader::read::<HEADER>(chain.start) } else { NetHeader::default() };
        let Some(to) = sink.frame(&header, len) else { return false };
        copy::copy(chain.start.add(HEADER), to.as_ptr(), begun);
        copy::copy(chain.body, to.as_ptr().add(begun), len - begun);
    }
    true
}

impl<F: Format> Ground<F> {
    /// Takes a chain of a shape that is not known to the burst, counts it in `done`. Returns how many descriptors were looked at, or `None` when it stays for
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
