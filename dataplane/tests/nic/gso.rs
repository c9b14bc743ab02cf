//! Our segments and checksums beside those of DPDK's libraries (rte_gso, rte_net): where rte_gso cuts, ours are the same byte for byte, but for what
//! it gets wrong; and rte_net finds all of ours right. Should one of the tests of what rte_gso leaves undone fail with a newer DPDK, decision 0007
//! is to be looked at again.

use ringspan_dataplane::offload::{LONGEST_HEADERS, Offloads, Request, Segmenter};
use ringspan_dataplane::ring::NetHeader;
use ringspan_testkit::packet::Packet;

use crate::alone::alone;

/// Where CWR is in the flags of a TCP header, and where those are.
const CWR: u8 = 1 << 7;
const TCP_FLAGS: usize = 13;

fn parts(packet: &Packet) -> dpdk_sys::shim_reference_frame {
    let l2_len = 14 + 4 * packet.tags as u16;
    let (l4_start, header_len) = (packet.l4_start() as u16, packet.header_len() as u16);
    let (l3_len, l4_len) = (l4_start - l2_len, header_len - l4_start);
    dpdk_sys::shim_reference_frame { l2_len, l3_len, l4_len, ipv6: packet.ipv6.into(), udp: packet.udp.into() }
}

/// As the relay does it.
fn ours(packet: &Packet, mss: u16) -> Vec<Vec<u8>> {
    let frame = packet.frame();
    let mut header = [0; NetHeader::LEN];
    header[..10].copy_from_slice(&packet.segment_header(mss.into()).bytes());
    let request = Request::parse(&NetHeader::parse(header), &frame, frame.len(), Offloads::ALL);
    let Ok(Some(Request::Segment(segment))) = request else { panic!("{packet:?}: {request:?}") };
    let mut segmenter = Segmenter::new(&segment, &frame[..frame.len().min(LONGEST_HEADERS)], frame.len());
    let mut segments = vec![];
    while let Some(cut) = segmenter.next() {
        let mut segment = vec![0; cut.header_len];
        segment.extend(&frame[cut.from..cut.from + cut.len]);
        segmenter.finish(&mut segment);
        segments.push(segment);
    }
    segments
}

/// What rte_gso makes of it, with its checksums filled in by rte_net.
fn theirs(pool: *mut dpdk_sys::rte_mempool, packet: &Packet, mss: u16) -> Vec<Vec<u8>> {
    let (frame, size) = (packet.frame(), packet.header_len() as u16 + mss);
    let (mut bytes, mut lengths) = (vec![0; 1 << 16], [0; 64]);
    // SAFETY: the pool is there; no more than 64 packets of the frame's length are written.
    let count = unsafe {
        let (start, length) = (frame.as_ptr(), frame.len() as u16);
        dpdk_sys::shim_reference_gso(
            pool,
            start,
            length,
            &parts(packet),
            size,
            bytes.as_mut_ptr(),
            lengths.as_mut_ptr(),
            64,
        )
    };
    // What it does not cut DPDK 24.11 refuses, where 22.11 says that it made none.
    let count = if count == -libc::ENOTSUP { 0 } else { count };
    assert!(count >= 0, "rte_gso: {count} for {packet:?}");
    let mut bytes = &bytes[..];
    let mut segments = vec![];
    for length in &lengths[..count as usize] {
        let (segment, rest) = bytes.split_at((*length).into());
        segments.push(segment.to_vec());
        bytes = rest;
    }
    segments
}

/// DPDK with a pool, in a process of its own.
fn with_pool(name: &str, body: impl FnOnce(*mut dpdk_sys::rte_mempool)) {
    alone(name, |_| {
        // SAFETY: EAL is started, the name is terminated.
        let pool = unsafe { dpdk_sys::rte_pktmbuf_pool_create(c"reference".as_ptr(), 512, 0, 0, 2048 + 128, 0) };
        assert!(!pool.is_null());
        body(pool);
        // SAFETY: nobody has a buffer of it.
        unsafe { dpdk_sys::rte_mempool_free(pool) };
    });
}

/// Packets of all kinds that a device might have to cut, of up to 1500 bytes of payload.
fn packets() -> impl Iterator<Item = Packet> {
    (0..480_usize).map(|number| Packet {
        tags: number % 3,
        ipv6: number / 3 % 2 == 1,
        udp: number / 6 % 2 == 1,
        options: if number % 5 == 0 { number / 12 % 4 } else { 0 },
        tcp_options: number / 12 % 11,
        ecn: number % 7 == 0,
        ends: number % 2 == 0,
        payload: 1 + number * 3,
        seed: number as u8,
    })
}

const SIZES: [u16; 4] = [64, 101, 536, 1400];

#[test]
fn tcp_over_ipv4_is_cut_as_rte_gso_cuts_it() {
    with_pool("gso::tcp_over_ipv4_is_cut_as_rte_gso_cuts_it", |pool| {
        let mut compared = 0;
        for packet in packets().filter(|packet| !packet.ipv6 && !packet.udp && !packet.ecn) {
            for mss in SIZES.into_iter().filter(|mss| usize::from(*mss) < packet.payload) {
                let (ours, theirs) = (ours(&packet, mss), theirs(pool, &packet, mss));
                assert!(ours == theirs, "{packet:?} in pieces of {mss}:\n{ours:02x?}\n{theirs:02x?}");
                compared += ours.len();
            }
        }
        assert!(compared > 500, "{compared} segments were compared");
    });
}

#[test]
fn rte_net_finds_every_checksum_right() {
    alone("gso::rte_net_finds_every_checksum_right", |_| {
        let mut verified = 0;
        for packet in packets().filter(|packet| !(packet.ipv6 && packet.options > 0)) {
            for segment in SIZES.into_iter().flat_map(|mss| ours(&packet, mss)) {
                // SAFETY: a whole packet, whose headers are where they are said to be.
                let right = unsafe { dpdk_sys::shim_reference_verify(segment.as_ptr(), &parts(&packet)) };
                assert!(right == 1, "{packet:?}: {segment:02x?}");
                verified += 1;
            }
        }
        assert!(verified > 2000, "{verified} segments were verified");
    });
}

#[test]
fn rte_gso_has_the_congestion_window_reduced_by_each_segment() {
    with_pool("gso::rte_gso_has_the_congestion_window_reduced_by_each_segment", |pool| {
        let packet = Packet { ecn: true, ..Packet::new(1200) };
        let at = packet.l4_start() + TCP_FLAGS;
        let reduced = |segments: Vec<Vec<u8>>| -> Vec<bool> { segments.iter().map(|one| one[at] & CWR != 0).collect() };
        // "The CWR flag is set in the first new data packet" (RFC 3168, section 6.1.2).
        assert_eq!(reduced(ours(&packet, 400)), [true, false, false]);
        assert_eq!(reduced(theirs(pool, &packet, 400)), [true, true, true]);
    });
}

#[test]
fn rte_gso_leaves_tcp_over_ipv6_whole_and_makes_fragments_of_udp() {
    with_pool("gso::rte_gso_leaves_tcp_over_ipv6_whole_and_makes_fragments_of_udp", |pool| {
        let six = Packet { ipv6: true, ..Packet::new(1200) };
        assert_eq!((ours(&six, 400).len(), theirs(pool, &six, 400).len()), (3, 0));
        let udp = Packet { udp: true, ..Packet::new(1200) };
        let datagrams = ours(&udp, 400);
        assert!(datagrams.iter().all(|one| one.len() == udp.header_len() + 400 && one[20] & 0x3f == 0 && one[21] == 0));
        let fragments = theirs(pool, &udp, 400);
        assert!(!fragments.is_empty(), "nothing was cut");
        // More fragments, or a place in the whole: 2.3 of RFC 791.
        assert!(fragments.iter().all(|one| one[20] & 0x3f != 0 || one[21] != 0), "{fragments:02x?}");
    });
}
