//! Any bytes as a virtio-net header and its frame: no panic, nothing outside of the frame; the segments' payloads are the frame's, and each one's
//! checksums are right by a sum of their own.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringspan_fuzz::Bytes;
use ringspan_fuzz::offload::{
    GSO_ECN, GSO_TCP4, GSO_TCP6, GSO_UDP, Headers, LONGEST_HEADERS, NEEDS_CSUM, Offloads, Request, Segment, Segmenter,
    Transport,
};
use ringspan_fuzz::ring::NetHeader;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = Bytes(bytes);
    let mode = bytes.u8();
    let mut header = [0; NetHeader::LEN];
    let given = bytes.take(NetHeader::LEN);
    header[..given.len()].copy_from_slice(given);
    let mut header = NetHeader::parse(header);
    let frame = bytes.0.to_vec();
    let found = Headers::parse(&frame);
    if let Some(headers) = &found {
        assert!(headers.l4_start() <= frame.len() && [14, 18, 22].contains(&headers.l2_len));
        // A header that fits its frame is too much to ask of bytes that change at random.
        if mode & 1 != 0 {
            header.flags |= NEEDS_CSUM;
            header.csum_start = headers.l4_start() as u16;
            header.csum_offset = headers.transport.checksum_offset() as u16;
            header.gso_type = match (mode >> 1 & 3, headers.transport, headers.ipv6) {
                (0, ..) => 0,
                (_, Transport::Udp, _) => GSO_UDP,
                (_, Transport::Tcp, false) => GSO_TCP4 | header.gso_type & GSO_ECN,
                (_, Transport::Tcp, true) => GSO_TCP6 | header.gso_type & GSO_ECN,
            };
        }
    }
    // Of a frame in several buffers only the first is looked at.
    let head = &frame[..if mode & 8 != 0 { frame.len().min(LONGEST_HEADERS) } else { frame.len() }];
    let allowed = if mode & 16 != 0 { Offloads::of(u64::from(mode) << 50 | u64::from(mode)) } else { Offloads::ALL };
    let Ok(Some(request)) = Request::parse(&header, head, frame.len(), allowed) else { return };
    request.prime(&mut head.to_vec(), mode & 32 != 0);
    match request {
        Request::Checksum(checksum) => {
            let mut filled = frame.clone();
            checksum.fill(&mut filled);
            let place = checksum.place..checksum.place + 2;
            assert!(filled[..place.start] == frame[..place.start] && filled[place.end..] == frame[place.end..]);
        }
        Request::Segment(segment) => check_segments(&segment, head, &frame),
    }
});

fn check_segments(request: &Segment, head: &[u8], frame: &[u8]) {
    let _ = request.tells_its_length(frame.len());
    let mut segmenter = Segmenter::new(request, head, frame.len());
    let (count, header_len) = (segmenter.left(), request.header_len());
    let mut payload = Vec::<u8>::new();
    for _ in 0..count {
        let cut = segmenter.next().expect("as many as were told");
        let mut segment = vec![0xee; cut.header_len + cut.len];
        segment[cut.header_len..].copy_from_slice(&frame[cut.from..cut.from + cut.len]);
        segmenter.finish(&mut segment);
        assert!(segment.len() <= request.longest_segment(frame.len()) && cut.header_len == header_len);
        payload.extend(&segment[header_len..]);
        let again = Headers::parse(&segment).expect("its headers are the frame's");
        assert_eq!((again.l3_len, again.transport), (request.headers.l3_len, request.headers.transport));
        check_sums(&again, &segment);
    }
    assert!(segmenter.next().is_none() && payload == frame[header_len..]);
}

/// The checksums of IPv4 and of TCP or UDP, a byte pair at a time.
fn check_sums(headers: &Headers, segment: &[u8]) {
    let (l3, l4) = (&segment[headers.l2_len..], &segment[headers.l4_start()..]);
    if !headers.ipv6 {
        assert_eq!(sum(0, &l3[..headers.l3_len]), 0xffff, "IPv4");
        assert_eq!(usize::from(u16::from_be_bytes([l3[2], l3[3]])), l3.len());
    }
    // Where the last destination stands is the guest's to know.
    if headers.routed {
        return;
    }
    let addresses = if headers.ipv6 { &l3[8..40] } else { &l3[12..20] };
    let pseudo = sum(u32::from(headers.transport.protocol()) + l4.len() as u32, addresses);
    assert_eq!(sum(pseudo.into(), l4), 0xffff, "transport");
}

fn sum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = u64::from(start);
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
