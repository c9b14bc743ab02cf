//! What a guest asks for a frame, checked against the frame.

use super::segment::{CWR, TCP_FLAGS};
use super::{GSO_ECN, GSO_TCP4, GSO_TCP6, GSO_UDP, Headers, LONGEST_HEADERS, NEEDS_CSUM, Offloads, Sum, Transport};
use crate::ring::NetHeader;

/// The virtio-net header does not fit the frame, or asks for what was not negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadOffload;

/// What is still to be done to a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// A checksum is to be filled in.
    Checksum(Checksum),
    /// The frame is to be cut into segments.
    Segment(Segment),
}

/// A checksum that is to be filled in: over all bytes from `start` on. The place where it goes holds the sum of the pseudo
/// header already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum {
    /// First byte that is summed.
    pub start: usize,
    /// Where the checksum goes, `start` or behind; both of its bytes are in the frame.
    pub place: usize,
    /// The frame's headers, when the checksum is that of the TCP or UDP packet in it, as devices can do it too.
    pub headers: Option<Headers>,
}

/// A frame that is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where things are.
    pub headers: Headers,
    /// Bytes of TCP or UDP header.
    pub l4_len: usize,
    /// Payload of each segment but the last, 1 at least.
    pub mss: u16,
    /// TCP's flag CWR is set, and goes into the first segment only.
    pub ecn: bool,
    /// The length in the IP header.
    pub told: u16,
}

impl Segment {
    /// Bytes of all headers together.
    pub const fn header_len(&self) -> usize {
        self.headers.l4_start() + self.l4_len
    }

    /// Whether the IP header says how long the frame of `len` bytes is. Not all guests fill that in when they leave segments to us,
    /// and who gets the frame as it is would miss it.
    pub fn tells_its_length(&self, len: usize) -> bool {
        usize::from(self.told) + if self.headers.ipv6 { 40 } else { 0 } + self.headers.l2_len == len
    }

    /// Length in bytes of the longest of the segments of a frame of `len` bytes.
    pub fn longest_segment(&self, len: usize) -> usize {
        len.min(self.header_len() + usize::from(self.mss))
    }
}

impl Request {
    /// Reads what `header` asks for a frame of `len` bytes that begins with `head`: the whole frame, or at least
    /// [`LONGEST_HEADERS`] bytes of it. `None` when nothing is to be done.
    pub fn parse(header: &NetHeader, head: &[u8], len: usize, allowed: Offloads) -> Result<Option<Self>, BadOffload> {
        if header.gso_type != 0 {
            return Segment::parse(header, head, len, allowed).map(|segment| Some(Self::Segment(segment)));
        }
        if header.flags & NEEDS_CSUM == 0 {
            return Ok(None);
        }
        if !allowed.has(Offloads::CSUM) {
            return Err(BadOffload);
        }
        let start = usize::from(header.csum_start);
        let place = start + usize::from(header.csum_offset);
        if start < 14 || place + 2 > len {
            return Err(BadOffload);
        }
        let ours = |headers: &Headers| {
            start == headers.l4_start() && place == start + headers.transport.checksum_offset() && !headers.fragment
        };
        Ok(Some(Self::Checksum(Checksum { start, place, headers: Headers::parse(head).filter(ours) })))
    }
}

impl Request {
    /// Makes the headers in `head` what ethdev wants of a frame that a device is to work on (`rte_mbuf`, `RTE_MBUF_F_TX_TCP_SEG` and
    /// its siblings): the sum of the pseudo header where the checksum goes, for segments without the length and, where the
    /// device does those too, with a checksum of zero in an IPv4 header. A guest that asks for a checksum alone has put that sum
    /// there (VIRTIO 1.2 section 5.1.6.2), and knows better: the frame may be longer than the packet in it.
    pub fn prime(&self, head: &mut [u8], ip_checksum: bool) {
        let Self::Segment(Segment { headers, .. }) = self else { return };
        let sum = headers.pseudo_sum(head).bytes();
        let place = headers.l4_start() + headers.transport.checksum_offset();
        head[place..place + 2].copy_from_slice(&sum);
        if ip_checksum && !headers.ipv6 {
            head[headers.l2_len + 10..headers.l2_len + 12].fill(0);
        }
    }
}

impl Segment {
    fn parse(header: &NetHeader, head: &[u8], len: usize, allowed: Offloads) -> Result<Self, BadOffload> {
        let headers = Headers::parse(head).filter(|headers| !headers.fragment).ok_or(BadOffload)?;
        let claims_ecn = header.gso_type & GSO_ECN != 0;
        let (feature, fits) = match header.gso_type & !GSO_ECN {
            GSO_TCP4 => (Offloads::HOST_TSO4, headers.transport == Transport::Tcp && !headers.ipv6),
            GSO_TCP6 => (Offloads::HOST_TSO6, headers.transport == Transport::Tcp && headers.ipv6),
            GSO_UDP => (Offloads::HOST_USO, headers.transport == Transport::Udp && !claims_ecn),
            _ => return Err(BadOffload),
        };
        // "If gso_type differs from VIRTIO_NET_HDR_GSO_NONE, then the driver MUST also set NEEDS_CSUM" (5.1.6.2.1).
        let start = headers.l4_start();
        let fits = fits
            && allowed.has(feature.with(Offloads::CSUM))
            && (!claims_ecn || allowed.has(Offloads::HOST_ECN))
            && header.flags & NEEDS_CSUM != 0
            && header.gso_size != 0
            && usize::from(header.csum_start) == start
            && usize::from(header.csum_offset) == headers.transport.checksum_offset();
        if !fits {
            return Err(BadOffload);
        }
        let l4_len = match headers.transport {
            Transport::Udp => 8,
            Transport::Tcp => usize::from(head.get(start + 12).ok_or(BadOffload)? >> 4) * 4,
        };
        let header_len = start + l4_len;
        let least = if headers.transport == Transport::Tcp { 20 } else { 8 };
        // The length in an IPv6 header is without that header. Without payload there is nothing to cut.
        let longest = headers.l2_len + usize::from(u16::MAX) + if headers.ipv6 { 40 } else { 0 };
        if l4_len < least || header_len > head.len().min(LONGEST_HEADERS) || !(header_len + 1..=longest).contains(&len)
        {
            return Err(BadOffload);
        }
        let ecn = headers.transport == Transport::Tcp && head[start + TCP_FLAGS] & CWR != 0;
        let at = headers.l2_len + if headers.ipv6 { 4 } else { 2 };
        let told = u16::from_be_bytes([head[at], head[at + 1]]);
        Ok(Self { headers, l4_len, mss: header.gso_size, ecn, told })
    }
}

impl Checksum {
    /// Fills the checksum in. `frame` is the whole frame that the request was read for, and unchanged.
    pub fn fill(&self, frame: &mut [u8]) {
        let mut checksum = Sum::new().over(&frame[self.start..]).checksum();
        // With UDP a zero says that there is none (RFC 768); its place tells UDP from the others.
        if checksum == [0; 2] && self.place - self.start == Transport::Udp.checksum_offset() {
            checksum = [0xff; 2];
        }
        frame[self.place..self.place + 2].copy_from_slice(&checksum);
    }
}
