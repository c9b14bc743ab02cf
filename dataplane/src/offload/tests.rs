//! What goes out is right, whatever comes in: every checksum is verified by a sum of its own, and segments put together
//! again are what was cut.

use proptest::prelude::*;

use super::*;

/// The checksum of RFC 1071, the slow way.
fn slow_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u32::from(*byte));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// How a frame is made.
#[derive(Debug, Clone)]
struct Plan {
    tags: usize,
    ipv6: bool,
    udp: bool,
    /// 4-byte IPv4 options or 8-byte IPv6 extension headers.
    options: usize,
    tcp_options: usize,
    payload: usize,
    seed: u8,
}

impl Plan {
    fn plain(payload: usize) -> Self {
        Self { tags: 0, ipv6: false, udp: false, options: 0, tcp_options: 0, payload, seed: 1 }
    }

    fn l4_start(&self) -> usize {
        14 + 4 * self.tags + if self.ipv6 { 40 + 8 * self.options } else { 20 + 4 * self.options }
    }

    fn header_len(&self) -> usize {
        self.l4_start() + if self.udp { 8 } else { 20 + 4 * self.tcp_options }
    }

    fn checksum_place(&self) -> usize {
        self.l4_start() + if self.udp { 6 } else { 16 }
    }

    /// A frame as a guest's driver hands it over: the pseudo header's sum where the checksum goes.
    fn frame(&self) -> Vec<u8> {
        let mut frame: Vec<u8> = (0..12).collect();
        for tag in 0..self.tags {
            frame.extend([0x81, 0, 0, tag as u8 + 1]);
        }
        frame.extend(if self.ipv6 { [0x86, 0xdd] } else { [8, 0] });
        let transport = self.header_len() - self.l4_start() + self.payload;
        let protocol = if self.udp { 17 } else { 6 };
        let mut pseudo = Vec::new();
        if self.ipv6 {
            let next = if self.options > 0 { 60 } else { protocol };
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(((transport + 8 * self.options) as u16).to_be_bytes());
            frame.extend([next, 64]);
            let addresses: Vec<u8> = (0..32).map(|byte: u8| byte.wrapping_mul(7) ^ self.seed).collect();
            frame.extend(&addresses);
            for option in 1..=self.options {
                let next = if option < self.options { 60 } else { protocol };
                frame.extend([next, 0, 1, 4, 0, 0, 0, 0]);
            }
            pseudo.extend(addresses);
        } else {
            let start = frame.len();
            let total = 20 + 4 * self.options + transport;
            frame.extend([0x45 + self.options as u8, 0]);
            frame.extend((total as u16).to_be_bytes());
            frame.extend([0xff, self.seed, 0x40, 0, 64, protocol, 0, 0, 10, 1, 2, self.seed, 10, 3, 4, 5]);
            frame.resize(frame.len() + 4 * self.options, 1);
            let sum = !slow_sum(&frame[start..]);
            frame[start + 10..start + 12].copy_from_slice(&sum.to_be_bytes());
            pseudo.extend(&frame[start + 12..start + 20]);
        }
        pseudo.extend([0, protocol]);
        pseudo.extend((transport as u16).to_be_bytes());
        let pseudo = slow_sum(&pseudo).to_be_bytes();
        frame.extend([0x12, 0x34, 0x56, 0x78]);
        if self.udp {
            frame.extend((transport as u16).to_be_bytes());
            frame.extend(pseudo);
        } else {
            // CWR, ACK, PSH and FIN, and a number that wraps around.
            frame.extend([0xff, 0xff, 0xf0, 0, 1, 2, 3, 4, (5 + self.tcp_options as u8) << 4, 0x99, 1, 0]);
            frame.extend(pseudo);
            frame.extend([0, 0]);
            frame.resize(frame.len() + 4 * self.tcp_options, 1);
        }
        frame.extend((0..self.payload).map(|i| (i as u8).wrapping_mul(31) ^ self.seed ^ (i >> 8) as u8));
        frame
    }

    fn gso_type(&self) -> u8 {
        match (self.udp, self.ipv6) {
            (true, _) => GSO_UDP,
            (false, true) => GSO_TCP6 | GSO_ECN,
            (false, false) => GSO_TCP4 | GSO_ECN,
        }
    }

    fn header(&self, mss: u16) -> NetHeader {
        NetHeader {
            flags: NEEDS_CSUM,
            gso_type: self.gso_type(),
            gso_size: mss,
            csum_start: self.l4_start() as u16,
            csum_offset: (self.checksum_place() - self.l4_start()) as u16,
            ..NetHeader::default()
        }
    }
}

fn plans(payload: std::ops::Range<usize>) -> impl Strategy<Value = Plan> {
    (0..3usize, any::<bool>(), any::<bool>(), 0..4usize, 0..11usize, payload, any::<u8>()).prop_map(
        |(tags, ipv6, udp, options, tcp_options, payload, seed)| Plan {
            tags,
            ipv6,
            udp,
            options,
            tcp_options,
            payload,
            seed,
        },
    )
}

/// Checks lengths and both checksums of a frame on the wire.
fn assert_right(plan: &Plan, frame: &[u8]) {
    let (l2, start) = (14 + 4 * plan.tags, plan.l4_start());
    let packet = &frame[l2..];
    let mut pseudo;
    if plan.ipv6 {
        assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])), packet.len() - 40);
        pseudo = packet[8..40].to_vec();
    } else {
        assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
        assert_eq!(slow_sum(&packet[..start - l2]), 0xffff, "the IP header's checksum");
        pseudo = packet[12..20].to_vec();
    }
    let transport = &frame[start..];
    pseudo.extend([0, if plan.udp { 17 } else { 6 }]);
    pseudo.extend((transport.len() as u16).to_be_bytes());
    pseudo.extend(transport);
    assert_eq!(slow_sum(&pseudo), 0xffff, "the checksum of TCP or UDP");
    if plan.udp {
        assert_eq!(usize::from(u16::from_be_bytes([transport[4], transport[5]])), transport.len());
        assert_ne!(transport[6..8], [0, 0], "a UDP checksum that says there is none");
    }
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
            (sum, rest) = (sum.add(piece), behind);
        }
        // Zero has two forms.
        let ours = u16::from_be_bytes(sum.add(rest).bytes());
        prop_assert_eq!(ours % 0xffff, slow_sum(&bytes) % 0xffff);
    }

    #[test]
    fn a_checksum_that_is_filled_in_is_right(plan in plans(0..3000)) {
        let mut frame = plan.frame();
        let header = NetHeader { gso_type: 0, gso_size: 0, ..plan.header(0) };
        let Ok(Some(Request::Checksum(checksum))) = request(&header, &frame) else { panic!("refused") };
        prop_assert_eq!(checksum.headers.map(|headers| headers.ipv6), Some(plan.ipv6));
        let before = frame.clone();
        checksum.fill(&mut frame);
        assert_right(&plan, &frame);
        let place = plan.checksum_place();
        frame[place..place + 2].copy_from_slice(&before[place..place + 2]);
        prop_assert_eq!(frame, before, "something else was changed");
    }

    #[test]
    fn segments_put_together_are_the_frame(plan in plans(1..65000), mss in 8..9000u16) {
        let frame = plan.frame();
        if frame.len() > LONGEST || frame.len() > plan.l4_start() + 65000 { return Ok(()) }
        let Ok(Some(Request::Segment(segment))) = request(&plan.header(mss), &frame) else { panic!("refused") };
        let segments = cut(&segment, &frame);
        let (start, header_len) = (plan.l4_start(), plan.header_len());
        let mut payload: Vec<u8> = Vec::new();
        for (number, segment) in segments.iter().enumerate() {
            assert_right(&plan, segment);
            let last = number + 1 == segments.len();
            let part = segment.len() - header_len;
            prop_assert!(part == usize::from(mss) || last && part <= usize::from(mss));
            prop_assert_eq!(&segment[..14 + 4 * plan.tags], &frame[..14 + 4 * plan.tags]);
            if !plan.ipv6 {
                let id = |frame: &[u8]| u16::from_be_bytes([frame[18 + 4 * plan.tags], frame[19 + 4 * plan.tags]]);
                prop_assert_eq!(id(segment), id(&frame).wrapping_add(number as u16));
            }
            if !plan.udp {
                let sequence = u32::from_be_bytes(segment[start + 4..start + 8].try_into().unwrap());
                prop_assert_eq!(sequence, 0xffff_f000u32.wrapping_add(payload.len() as u32));
                let flags = segment[start + 13];
                prop_assert_eq!(flags & 0x80 != 0, number == 0, "CWR");
                prop_assert_eq!(flags & 0x09 == 0x09, last, "FIN and PSH");
                prop_assert_eq!(flags & 0x09 == 0, !last, "FIN and PSH");
                prop_assert_eq!(flags & 0x10, 0x10, "ACK");
            }
            payload.extend(&segment[header_len..]);
        }
        prop_assert!(payload == frame[header_len..]);
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
        let header = if sane & 2 == 0 { NetHeader::parse(raw) } else { plan.header(u16::from(raw[0])) };
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
    let plan = Plan { tcp_options: 3, ..Plan::plain(4000) };
    let (frame, good) = (plan.frame(), plan.header(1000));
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
    let plan = Plan { ipv6: true, options: 1, ..Plan::plain(3000) };
    let mut frame = plan.frame();
    frame[14 + 6] = 43;
    frame[54 + 2..54 + 4].copy_from_slice(&[4, 1]);
    // Another destination, whose sum is larger by one, and smaller by one in the IP header.
    let place = plan.checksum_place();
    let sum = u16::from_be_bytes([frame[place], frame[place + 1]]).wrapping_add(1);
    frame[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    let Ok(Some(Request::Segment(segment))) = request(&plan.header(1000), &frame) else { panic!("refused") };
    assert!(segment.headers.routed);
    for mut segment in cut(&segment, &frame) {
        let last = segment.len() - 1;
        assert_eq!(last, segment.len() - 1);
        // With the destination that was summed it is right.
        segment[14 + 39] = segment[14 + 39].wrapping_add(1);
        assert_right(&plan, &segment);
    }
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
