//! Frames on their way from a device queue to a guest's ring.

use ringspan_protocol::Drops;

use crate::BURST;
use crate::nic::{Burst, Frame, Pool};
use crate::offload::{DATA_VALID, Offloads, Request, Segment, Segmenter};
use crate::ring::{FrameSource, NetHeader, Put, Ring, RingError};

/// A burst as the ring wants to see it.
pub struct Frames<'a>(pub(super) &'a Burst);

impl Frames<'_> {
    /// Bytes of all frames together, which are on their way to the cache afterwards.
    #[inline]
    pub(super) fn look(&self) -> u64 {
        let look = |frame: Frame<'_>| {
            frame.prefetch();
            frame.len() as u64
        };
        self.0.iter().map(look).sum()
    }

    /// Whether some say what the guest of this ring wants to know, or what is still to be done to them.
    #[inline]
    pub(super) fn marked_for(&self, ring: &Ring) -> bool {
        self.0.is_marked(ring.features().offloads.has(Offloads::GUEST_CSUM))
    }
}

/// More bytes than this in a burst are large frames, ...
const MANY_BYTES: u64 = 256 << 10;
/// ... of which this many are received in one go: cutting them keeps the worker from its other ports.
const FEW_FRAMES: usize = 8;

/// How many frames to receive after a burst of marked frames of that many bytes.
pub(super) fn appetite(bytes: u64) -> usize {
    if bytes > MANY_BYTES { FEW_FRAMES } else { BURST }
}

// SAFETY: the burst owns its frames and does not change while it is borrowed; DPDK keeps a frame's length equal to the sum
// of its segments' (rte_mbuf, Programmer's Guide), and a buffer of a pool is never guest memory.
unsafe impl FrameSource for Frames<'_> {
    #[inline]
    fn count(&self) -> usize {
        self.0.len()
    }

    #[inline]
    fn frame_len(&self, index: usize) -> usize {
        self.0.frame(index).len()
    }

    #[inline]
    fn segments(&self, index: usize) -> impl Iterator<Item = (*const u8, usize)> {
        self.0.frame(index).segments().map(|segment| (segment.as_ptr(), segment.len()))
    }
}

/// Some frames of a burst that have headers of their own.
struct Marked<'a> {
    burst: &'a Burst,
    /// The first of them, ...
    first: usize,
    /// ... and the headers of all.
    headers: &'a [NetHeader],
}

// SAFETY: as for `Frames`; who makes it sees to it that the burst has that many frames, or `frame` panics.
unsafe impl FrameSource for Marked<'_> {
    #[inline]
    fn count(&self) -> usize {
        self.headers.len()
    }

    #[inline]
    fn frame_len(&self, index: usize) -> usize {
        self.burst.frame(self.first + index).len()
    }

    #[inline]
    fn segments(&self, index: usize) -> impl Iterator<Item = (*const u8, usize)> {
        self.burst.frame(self.first + index).segments().map(|segment| (segment.as_ptr(), segment.len()))
    }

    const HEADERS: bool = true;

    #[inline]
    fn header(&self, index: usize) -> NetHeader {
        self.headers[index]
    }
}

/// What became of a burst of marked frames. The frames that are in none of these were not looked at.
#[derive(Debug, Default)]
pub(super) struct Delivered {
    pub(super) frames: u64,
    pub(super) bytes: u64,
    pub(super) drops: Drops,
    /// The guest broke its ring.
    pub(super) error: Option<RingError>,
}

/// Gives marked frames to a guest: as they are where it negotiated that, else finished in software.
pub(super) struct Delivery {
    headers: [NetHeader; BURST],
    segments: Burst,
}

impl Delivery {
    pub(super) fn new() -> Self {
        Self { headers: [NetHeader::default(); BURST], segments: Burst::new() }
    }

    /// Gives all of `inbox` to `ring`. Segments are made in buffers of `pool`.
    pub(super) fn deliver(&mut self, inbox: &mut Burst, ring: &mut Ring, pool: &Pool) -> Delivered {
        let offloads = ring.features().offloads;
        let finished = finished_header(offloads);
        let (mut cut, mut refused) = (0u64, 0u64);
        for place in 0..inbox.len() {
            let (header, ipv6) = inbox.frame(place).marks();
            self.headers[place] = if header.flags & DATA_VALID != 0 {
                finished
            } else if offloads.takes(&header, ipv6) {
                header
            } else {
                let mut frame = inbox.frame_mut(place);
                match parse(&header, &frame.as_frame()) {
                    Some(Request::Checksum(checksum)) if frame.as_frame().segment_count() == 1 => {
                        checksum.fill(frame.bytes_mut());
                    }
                    Some(Request::Segment(_)) => cut |= 1 << place,
                    _ => refused |= 1 << place,
                }
                finished
            };
        }
        let mut done = Delivered::default();
        let mut first = 0;
        while first < inbox.len() && done.error.is_none() {
            if refused >> first & 1 == 1 {
                done.drops.bad_offload += 1;
                first += 1;
            } else if cut >> first & 1 == 1 {
                let (header, _) = inbox.frame(first).marks();
                if let Some(Request::Segment(segment)) = parse(&header, &inbox.frame(first)) {
                    self.deliver_segments(inbox, first, &segment, (ring, pool), &mut done);
                }
                first += 1;
            } else {
                let run = ((cut | refused) >> first).trailing_zeros() as usize;
                let end = inbox.len().min(first + run);
                match ring.put(&Marked { burst: inbox, first, headers: &self.headers[first..end] }) {
                    Ok(Put { frames, bytes, ring_full, too_long }) => {
                        done.frames += frames;
                        done.bytes += bytes;
                        done.drops.guest_ring_full += ring_full;
                        done.drops.too_long += too_long;
                    }
                    Err(error) => done.error = Some(error),
                }
                first = end;
            }
        }
        inbox.clear();
        done
    }

    /// Cuts frame `place` and gives its segments. It counts as one frame, which the guest has when it has all of them.
    fn deliver_segments(
        &mut self,
        inbox: &Burst,
        place: usize,
        segment: &Segment,
        (ring, pool): (&mut Ring, &Pool),
        done: &mut Delivered,
    ) {
        let frame = inbox.frame(place);
        let headers = [finished_header(ring.features().offloads); BURST];
        let mut cut = Segmenter::new(segment, frame.data(), frame.len());
        if segment.longest_segment(frame.len()) > usize::from(pool.room()) {
            done.drops.too_long += 1;
            return;
        }
        while cut.left() > 0 {
            if !self.segments.cut(frame, &mut cut, pool) {
                done.drops.no_buffers += 1;
                return;
            }
            let headers = &headers[..self.segments.len()];
            let put = ring.put(&Marked { burst: &self.segments, first: 0, headers });
            self.segments.clear();
            match put {
                Ok(put) => {
                    done.bytes += put.bytes;
                    if put.ring_full > 0 {
                        done.drops.guest_ring_full += 1;
                        return;
                    }
                    if put.too_long > 0 {
                        done.drops.too_long += 1;
                        return;
                    }
                }
                Err(error) => {
                    done.error = Some(error);
                    return;
                }
            }
        }
        done.frames += 1;
    }

    /// Lets go of the pool.
    pub(super) fn release(&mut self) {
        self.segments = Burst::new();
    }
}

/// The header of a frame with nothing left to do, whose checksum is right.
fn finished_header(offloads: Offloads) -> NetHeader {
    let valid = offloads.has(Offloads::GUEST_CSUM);
    NetHeader { flags: if valid { DATA_VALID } else { 0 }, ..NetHeader::default() }
}

/// What is to be done to a frame that came over a link, where everything is allowed.
fn parse(header: &NetHeader, frame: &Frame<'_>) -> Option<Request> {
    Request::parse(header, frame.data(), frame.len(), Offloads::ALL).ok().flatten()
}
