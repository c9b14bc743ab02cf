//! Cutting a large TCP or UDP frame into segments that the wire carries.

use super::{Headers, LONGEST_HEADERS, Segment, Sum, Transport};

const FIN: u8 = 1 << 0;
const PSH: u8 = 1 << 3;
pub(super) const CWR: u8 = 1 << 7;

/// Where the flags of a TCP header are.
pub(super) const TCP_FLAGS: usize = 13;

/// Makes the segments of one frame, in order. Each is the frame's headers, corrected, with a part of its payload.
#[derive(Debug, Clone)]
pub struct Segmenter {
    /// The frame's headers; of them only what is the same in all segments is used.
    head: [u8; LONGEST_HEADERS],
    header_len: usize,
    headers: Headers,
    mss: usize,
    /// The pseudo header without its length.
    pseudo: Sum,
    /// Bytes of payload in all, and cut so far.
    payload: usize,
    done: usize,
    /// Segments made so far.
    count: u16,
}

/// One segment to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Bytes of headers, behind which the payload goes.
    pub header_len: usize,
    /// Where its payload is, in bytes from the frame's first.
    pub from: usize,
    /// Bytes of payload.
    pub len: usize,
}

impl Segmenter {
    /// For a frame of `len` bytes that begins with `head`, as the request was read from.
    pub fn new(request: &Segment, head: &[u8], len: usize) -> Self {
        let header_len = request.header_len();
        let mut copy = [0; LONGEST_HEADERS];
        copy[..header_len].copy_from_slice(&head[..header_len]);
        let headers = request.headers;
        let start = headers.l4_start();
        let place = start + headers.transport.checksum_offset();
        let pseudo = if headers.routed {
            // The last destination is deep in the routing header, but the guest's sum is over it: without the length again.
            let length = !((len - start) as u16);
            Sum::new().over(&copy[place..place + 2]).add_number(length)
        } else {
            headers.pseudo_sum(&copy)
        };
        copy[place..place + 2].fill(0);
        let (mss, payload) = (usize::from(request.mss), len - header_len);
        Self { head: copy, header_len, headers, mss, pseudo, payload, done: 0, count: 0 }
    }

    /// Segments that are left to be made.
    pub fn left(&self) -> usize {
        (self.payload - self.done).div_ceil(self.mss)
    }

    /// The next segment, or `None` after the last one.
    pub fn next(&self) -> Option<Cut> {
        let len = self.mss.min(self.payload - self.done);
        (len > 0).then_some(Cut { header_len: self.header_len, from: self.header_len + self.done, len })
    }

    /// Writes the headers of the segment that [`Segmenter::next`] described, and goes on to the one behind it. `segment` has
    /// exactly its length, and its payload in place.
    pub fn finish(&mut self, segment: &mut [u8]) {
        let len = segment.len() - self.header_len;
        let last = self.done + len == self.payload;
        segment[..self.header_len].copy_from_slice(&self.head[..self.header_len]);
        let (l2_len, start) = (self.headers.l2_len, self.headers.l4_start());
        let packet_len = segment.len() - l2_len;
        let ip = &mut segment[l2_len..start];
        if self.headers.ipv6 {
            ip[4..6].copy_from_slice(&((packet_len - 40) as u16).to_be_bytes());
        } else {
            ip[2..4].copy_from_slice(&(packet_len as u16).to_be_bytes());
            let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(self.count);
            ip[4..6].copy_from_slice(&id.to_be_bytes());
            ip[10..12].fill(0);
            let checksum = Sum::new().over(ip).checksum();
            ip[10..12].copy_from_slice(&checksum);
        }
        let transport = &mut segment[start..];
        let length = transport.len() as u16;
        match self.headers.transport {
            Transport::Tcp => {
                let first = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
                transport[4..8].copy_from_slice(&first.wrapping_add(self.done as u32).to_be_bytes());
                if !last {
                    transport[TCP_FLAGS] &= !(FIN | PSH);
                }
                if self.done > 0 {
                    transport[TCP_FLAGS] &= !CWR;
                }
            }
            Transport::Udp => transport[4..6].copy_from_slice(&length.to_be_bytes()),
        }
        let mut checksum = self.pseudo.add_number(length).over(transport).checksum();
        if checksum == [0; 2] && self.headers.transport == Transport::Udp {
            checksum = [0xff; 2];
        }
        let place = self.headers.transport.checksum_offset();
        transport[place..place + 2].copy_from_slice(&checksum);
        self.done += len;
        self.count = self.count.wrapping_add(1);
    }
}
