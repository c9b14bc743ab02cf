//! What goes out is right, whatever comes in: every checksum is verified by a sum of its own, and segments put together
//! again are what was cut.

use proptest::prelude::*;

use ringspan_testkit::packet::{Packet, sum as slow_sum};

use super::*;

fn parse_header(header: ringspan_testkit::guest::NetHeader) -> NetHeader {
    let mut bytes = [0; NetHeader::LEN];
    bytes[..10].copy_from_slice(&header.bytes());
    NetHeader::parse(bytes)
}

fn plans(payload: std::ops::Range<usize>) -> impl Strategy<Value = Packet> {
    (0..3usize, any::<bool>(), any::<bool>(), 0..4usize, 0..11usize, payload, any::<u8>()).prop_map(
        |(tags, ipv6, udp, options, tcp_options, payload, seed)| Packet {
            tags,
            ipv6,
            udp,
            options,
            tcp_options,
            ecn: seed % 2 == 0,
            ends: seed % 3 != 0,
            payload,
            seed,
        },
    )
}

/// Cuts a frame as the relay does.
fn cut(request: &Segment, frame: &[u8]) -> Vec<Vec<u8>> {
    let mut segmenter = Segmenter::new(request, &frame[..frame.len().min(LONGEST_HEADERS)], frame.len());
    let mut segments = Vec::new();
    let expected = segmenter.left();
    while let Some(next) = segmenter.next() {
        let mut segment = vec![0xee; next.header_len + next.len];
        segment[next.header_len..].copy_from_slice(&frame[next.from..next.from + next.len]);
        segmenter.finish(&mut segment);
        segments.push(segment);
    }
    assert_eq!(segments.len(), expected);
    segments
}

fn request(header: &NetHeader, frame: &[u8]) -> Result<Option<Request>, BadOffload> {
    Request::parse(header, frame, frame.len(), Offloads::ALL)
}

proptest! {
    #[test]
    fn sums_of_pieces_are_the_sum_of_all(bytes: Vec<u8>, cuts in prop::collection::vec(0..100usize, 0..5)) {
        let (mut sum, mut rest) = (Sum::new(), &bytes[..]);
        for cut in cuts {
            let (piece, behind) = rest.split_at(cut.min(rest.len()));
            (sum, rest) = (sum.over(piece), behind);
        }
        // Zero has two forms.
        let ours = u16::from_be_bytes(sum.over(rest).bytes());
        prop_assert_eq!(ours % 0xffff, slow_sum(&bytes) % 0xffff);
    }

    #[test]
    fn a_checksum_that_is_filled_in_is_right(plan in plans(0..3000)) {
        let mut frame = plan.frame();
        let header = parse_header(plan.checksum_header());
        let Ok(Some(Request::Checksum(checksum))) = request(&header, &frame) else { panic!("refused") };
        prop_assert_eq!(checksum.headers.map(|headers| headers.ipv6), Some(plan.ipv6));
        let before = frame.clone();
        checksum.fill(&mut frame);
        plan.check(&frame).unwrap();
        let place = plan.checksum_place();
        frame[place..place + 2].copy_from_slice(&before[place..place + 2]);
        prop_assert_eq!(frame, before, "something else was changed");
    }

    #[test]
    fn segments_put_together_are_the_frame(plan in plans(1..65000), mss in 8..9000u16) {
        let frame = plan.frame();
        if frame.len() > LONGEST || frame.len() > plan.l4_start() + 65000 { return Ok(()) }
        let Ok(Some(Request::Segment(segment))) = request(&parse_header(plan.segment_header(mss.into())), &frame) else { panic!("refused") };
        plan.check_segments(usize::from(mss), &cut(&segment, &frame)).unwrap();
    }

    /// Whatever a guest writes, there is no panic, and nothing outside of the frame is touched.
    #[test]
    fn no_header_and_no_frame_does_harm(
        plan in plans(0..300),
        raw: [u8; 12],
        sane in 0..4u8,
        mut flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        len in any::<prop::sample::Index>(),
    ) {
        let mut frame = plan.frame();
        if sane & 1 == 0 {
            flips.clear();
        }
        for (at, byte) in flips {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        frame.truncate(14 + len.index(frame.len() - 13));
        let header = if sane & 2 == 0 { NetHeader::parse(raw) } else { parse_header(plan.segment_header(raw[0].into())) };
        match request(&header, &frame) {
            Ok(Some(Request::Checksum(checksum))) => checksum.fill(&mut frame),
            Ok(Some(Request::Segment(segment))) => {
                let payload: usize = cut(&segment, &frame).iter().map(|cut| cut.len() - segment.header_len()).sum();
                prop_assert_eq!(payload + segment.header_len(), frame.len());
            }
            Ok(None) => prop_assert!(header.gso_type == 0 && header.flags & NEEDS_CSUM == 0),
            Err(BadOffload) => {}
        }
    }

    #[test]
    fn random_bytes_are_no_headers_that_leave_the_frame(frame: Vec<u8>) {
        if let Some(headers) = Headers::parse(&frame) {
            prop_assert!(headers.l4_start() <= frame.len());
        }
    }
}

#[test]
fn a_checksum_of_what_is_no_tcp_is_filled_in_too() {
    // A sum over bytes 20 to the end, stored at 22: no packet that we know.
    let mut frame: Vec<u8> = (0..61).collect();
    frame[22..24].fill(0);
    let header = NetHeader { flags: NEEDS_CSUM, csum_start: 20, csum_offset: 2, ..NetHeader::default() };
    let Ok(Some(Request::Checksum(checksum))) = request(&header, &frame) else { panic!("refused") };
    assert_eq!(checksum.headers, None);
    let wanted = !slow_sum(&frame[20..]);
    checksum.fill(&mut frame);
    assert_eq!(frame[22..24], wanted.to_be_bytes());
}

#[test]
fn headers_that_make_no_sense_are_refused() {
    let plan = Packet { tcp_options: 3, ..Packet::new(4000) };
    let (frame, good) = (plan.frame(), parse_header(plan.segment_header(1000)));
    assert!(matches!(request(&good, &frame), Ok(Some(Request::Segment(_)))));
    for (what, header) in [
        ("no NEEDS_CSUM", NetHeader { flags: 0, ..good }),
        ("no segment size", NetHeader { gso_size: 0, ..good }),
        ("another type", NetHeader { gso_type: GSO_TCP6, ..good }),
        ("UDP for TCP", NetHeader { gso_type: GSO_UDP, ..good }),
        ("UFO", NetHeader { gso_type: 3, ..good }),
        ("ECN alone", NetHeader { gso_type: GSO_ECN, ..good }),
        ("another start", NetHeader { csum_start: 35, ..good }),
        ("another place", NetHeader { csum_offset: 6, ..good }),
        ("a start behind the end", NetHeader { gso_type: 0, csum_start: 65535, csum_offset: 65535, ..good }),
        ("a place across the end", NetHeader { gso_type: 0, csum_offset: frame.len() as u16 - 35, ..good }),
        ("a start in the Ethernet header", NetHeader { gso_type: 0, csum_start: 13, ..good }),
    ] {
        assert_eq!(request(&header, &frame), Err(BadOffload), "{what}");
    }
    let mut fragment = frame.clone();
    fragment[20] = 0x20;
    assert_eq!(request(&good, &fragment), Err(BadOffload), "a fragment");
    let mut short = frame.clone();
    short[34 + 12] = 0x40;
    assert_eq!(request(&good, &short), Err(BadOffload), "a TCP header of 16 bytes");
    assert_eq!(request(&good, &frame[..plan.header_len()]), Err(BadOffload), "no payload");
    let without = Offloads::CSUM.with(Offloads::HOST_TSO6).with(Offloads::HOST_ECN);
    assert_eq!(Request::parse(&good, &frame, frame.len(), without), Err(BadOffload), "not negotiated");
}

#[test]
fn with_hops_to_go_the_guests_own_sum_decides() {
    // A routing header, one hop to go: the checksum is over a destination that the IP header does not have.
    let plan = Packet { ipv6: true, options: 1, ..Packet::new(3000) };
    let mut frame = plan.frame();
    frame[14 + 6] = 43;
    frame[54 + 2..54 + 4].copy_from_slice(&[4, 1]);
    // Another destination, whose sum is larger by one, and smaller by one in the IP header.
    let place = plan.checksum_place();
    let sum = u16::from_be_bytes([frame[place], frame[place + 1]]).wrapping_add(1);
    frame[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    let Ok(Some(Request::Segment(segment))) = request(&parse_header(plan.segment_header(1000)), &frame) else {
        panic!("refused")
    };
    assert!(segment.headers.routed);
    let segments = cut(&segment, &frame);
    assert_eq!(segments.len(), 3);
    for mut segment in segments {
        assert!(plan.check(&segment).is_err(), "the sum is over the destination in the IP header");
        // With the destination that was summed it is right.
        segment[14 + 39] = segment[14 + 39].wrapping_add(1);
        plan.check(&segment).unwrap();
    }
}

#[test]
fn with_a_source_route_the_guests_own_sum_decides_too() {
    let plan = Packet { options: 2, ..Packet::new(3000) };
    let mut frame = plan.frame();
    // No operation, and a loose source route of one address, the last destination: that of the IP header, and one more.
    frame[34..42].copy_from_slice(&[1, 131, 7, 4, 198, 51, 100, 8]);
    let place = plan.checksum_place();
    let sum = u16::from_be_bytes([frame[place], frame[place + 1]]).wrapping_add(1);
    frame[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    let Ok(Some(Request::Segment(segment))) = request(&parse_header(plan.segment_header(1000)), &frame) else {
        panic!("refused")
    };
    assert!(segment.headers.routed);
    for mut segment in cut(&segment, &frame) {
        segment[33] += 1;
        // The IP header's own checksum was right with the other one.
        let before = u16::from_be_bytes([segment[24], segment[25]]);
        segment[24..26].copy_from_slice(&before.wrapping_sub(1).to_be_bytes());
        plan.check(&segment).unwrap();
    }
    // At the end of the route the destination is in its place.
    let routed = |options: [u8; 8]| {
        let mut frame = frame.clone();
        frame[34..42].copy_from_slice(&options);
        Headers::parse(&frame).unwrap().routed
    };
    assert!(!routed([1, 131, 7, 8, 198, 51, 100, 8]));
    assert!(routed([1, 137, 7, 4, 198, 51, 100, 8]), "a strict one");
    assert!(!routed([1, 7, 7, 4, 198, 51, 100, 8]), "record route");
    assert!(!routed([0, 131, 7, 4, 198, 51, 100, 8]), "behind the end of the options");
    assert!(routed([1, 1, 1, 1, 1, 1, 1, 131]), "who knows");
    assert!(routed([7, 0, 1, 1, 1, 1, 1, 1]) && routed([7, 9, 1, 1, 1, 1, 1, 1]), "lengths that make no sense");
}

#[test]
fn congestion_is_read_from_the_frame_whatever_the_header_says() {
    let packet = Packet { ecn: true, ..Packet::new(3000) };
    let header = parse_header(packet.segment_header(1000));
    for gso_type in [GSO_TCP4, GSO_TCP4 | GSO_ECN] {
        let Ok(Some(Request::Segment(segment))) = request(&NetHeader { gso_type, ..header }, &packet.frame()) else {
            panic!("refused")
        };
        assert!(segment.ecn, "type {gso_type:#x}");
    }
    let silent = Packet { ecn: false, ..packet };
    let Ok(Some(Request::Segment(segment))) = request(&header, &silent.frame()) else { panic!("refused") };
    assert!(!segment.ecn);
}

#[test]
fn without_csum_nothing_may_be_left_undone() {
    let packet = Packet { ecn: false, ..Packet::new(3000) };
    let frame = packet.frame();
    let (checksum, segments) = (parse_header(packet.checksum_header()), parse_header(packet.segment_header(1000)));
    let parse = |header, allowed| Request::parse(header, &frame, frame.len(), allowed);
    // HOST_TSO4 needs CSUM (5.1.3.1).
    assert_eq!(parse(&checksum, Offloads::HOST_TSO4), Err(BadOffload));
    assert_eq!(parse(&segments, Offloads::HOST_TSO4), Err(BadOffload));
    assert!(parse(&checksum, Offloads::CSUM).is_ok() && parse(&segments, Offloads::CSUM) == Err(BadOffload));
    assert!(parse(&segments, Offloads::CSUM.with(Offloads::HOST_TSO4)).is_ok());
    assert_eq!(parse(&NetHeader::default(), Offloads::HOST_TSO4), Ok(None));
}

#[test]
fn a_device_gets_the_guests_own_sum_of_a_pseudo_header() {
    // Filled up to the least Ethernet frame: the bytes behind the packet are no part of its length.
    let packet = Packet::new(2);
    let mut frame = packet.frame();
    frame.resize(60, 0);
    let Ok(Some(request)) = request(&parse_header(packet.checksum_header()), &frame) else { panic!("refused") };
    let mut primed = frame.clone();
    request.prime(&mut primed, true);
    assert_eq!(primed, frame);
}

#[test]
fn a_guest_gets_what_it_negotiated() {
    let tcp4 = NetHeader { flags: NEEDS_CSUM, gso_type: GSO_TCP4, gso_size: 1448, ..NetHeader::default() };
    let usual = Offloads::GUEST_CSUM.with(Offloads::GUEST_TSO4);
    assert!(usual.takes(&tcp4, false));
    assert!(!Offloads::GUEST_TSO4.takes(&tcp4, false), "without GUEST_CSUM");
    assert!(!usual.takes(&NetHeader { gso_type: GSO_TCP4 | GSO_ECN, ..tcp4 }, false), "ECN");
    assert!(!usual.takes(&NetHeader { gso_type: GSO_TCP6, ..tcp4 }, true));
    let udp = NetHeader { gso_type: GSO_UDP, ..tcp4 };
    let four = Offloads::GUEST_CSUM.with(Offloads::GUEST_USO4);
    assert!(four.takes(&udp, false) && !four.takes(&udp, true));
    assert!(Offloads::default().takes(&NetHeader::default(), false));
}
