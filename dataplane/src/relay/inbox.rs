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

/// No more marked frames are given to a guest in one go once they have so many bytes, ...
const MOST_BYTES: usize = 256 << 10;
/// ... or so many segments, if they were to be cut: that keeps the worker from its other ports.
const MOST_SEGMENTS: usize = 256;

/// How many frames of a burst, from the front, are given in one go: one at least.
fn portion(burst: &Burst) -> usize {
    let (mut bytes, mut segments) = (0, 0);
    for (count, frame) in burst.iter().enumerate() {
        if bytes >= MOST_BYTES || segments >= MOST_SEGMENTS {
            return count;
        }
        bytes += frame.len();
        segments += frame.segment_size().map_or(1, |mss| frame.len().div_ceil(mss.get().into()));
    }
    burst.len()
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

/// What became of the first marked frames of a burst, which are gone from it. Those that are in none of the other numbers were not
/// looked at.
#[derive(Debug, Default)]
pub(super) struct Delivered {
    pub(super) gone: usize,
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

    /// Gives of `inbox` to `ring` what can be given in one go; the rest stays. Segments are made in buffers of `pool`.
    pub(super) fn deliver(&mut self, inbox: &mut Burst, ring: &mut Ring, pool: &Pool) -> Delivered {
        let offloads = ring.features().offloads;
        let finished = finished_header(offloads);
        let (mut cut, mut refused) = (0u64, 0u64);
        let count = portion(inbox);
        for place in 0..count {
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
        let mut done = Delivered { gone: count, ..Delivered::default() };
        let mut first = 0;
        while first < count && done.error.is_none() {
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
                let end = count.min(first + run);
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
        inbox.drop_front(count);
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

#[cfg(test)]
mod tests {
    use ringspan_testkit::packet::Packet;

    use super::*;
    use crate::nic::{Handmade, TxAbilities};

    const LINK: TxAbilities = TxAbilities {
        ip_checksum: false,
        tcp_checksum: false,
        udp_checksum: false,
        tcp_segments: false,
        buffers: 64,
        buffers_to_cut: 64,
        hands_on: true,
        link: true,
    };

    /// A burst of `count` frames that came over a link.
    fn burst(count: usize, payload: usize, mss: Option<usize>) -> Handmade {
        let packet = Packet { ecn: false, ..Packet::new(payload) };
        let (frame, mut bytes) = (packet.frame(), [0; NetHeader::LEN]);
        let header = mss.map_or(packet.checksum_header(), |mss| packet.segment_header(mss));
        bytes[..10].copy_from_slice(&header.bytes());
        let request = Request::parse(&NetHeader::parse(bytes), &frame, frame.len(), Offloads::ALL).unwrap().unwrap();
        let mut burst = Handmade::new((0..count).map(|_| &frame[..]), 0);
        for place in 0..count {
            burst.frame_mut(place).mark(&request, &LINK);
        }
        burst
    }

    #[test]
    fn what_is_given_in_one_go_is_bounded_from_the_first_burst_on() {
        assert_eq!(portion(&burst(64, 1000, None)), 64, "small frames go together");
        assert_eq!(portion(&burst(64, 64_000, Some(1448))), 5, "64 KiB each: 256 KiB, and what the last one has more");
        assert_eq!(portion(&burst(64, 20_000, Some(256))), 4, "79 segments each");
        assert_eq!(portion(&burst(64, 64_000, Some(256))), 2, "251 segments each");
        assert_eq!(portion(&burst(1, 65_000, Some(256))), 1, "one at least");
    }
}
