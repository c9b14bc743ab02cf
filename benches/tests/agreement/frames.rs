//! Frames of all kinds that a flow can be about, whole, cut and with bytes changed, in few values so that they are alike in many fields.

use proptest::collection::vec;
use proptest::prelude::*;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// One frame.
pub fn frame() -> impl Strategy<Value = Vec<u8>> {
    let ethernet = (0..3u8, 0..3u8).prop_map(|(dst, src)| [2, 0, 0, 0, 0, dst, 2, 0, 0, 0, 0, src].to_vec());
    let tag = (prop_oneof![3 => Just([0x81u8, 0]), 1 => Just([0x88, 0xa8])], 0..3u16, 0..16u16)
        .prop_map(|(tpid, vid, high)| [tpid, (high << 12 | vid).to_be_bytes()].concat());
    let tags = prop_oneof![4 => Just(0usize), 3 => Just(1), 2 => Just(2), 1 => Just(3)];
    let tags = tags.prop_flat_map(move |count| vec(tag.clone(), count).prop_map(|tags| tags.concat()));
    let network = prop_oneof![6 => ipv4().boxed(), 6 => ipv6().boxed(), 2 => arp().boxed(), 1 => other().boxed()];
    let whole = (ethernet, tags, network).prop_map(|(ethernet, tags, network)| [ethernet, tags, network].concat());
    let spoiled = (any::<prop::sample::Index>(), any::<u8>());
    (
        whole,
        prop_oneof![3 => Just(0usize), 1 => 1..3usize].prop_flat_map(move |count| vec(spoiled.clone(), count)),
        cut(),
    )
        .prop_map(|(mut frame, spoiled, cut)| {
            for (at, byte) in spoiled {
                let at = at.index(frame.len());
                frame[at] = byte;
            }
            match cut {
                Some(cut) if cut >= 0 => frame.extend(std::iter::repeat_n(0, cut as usize)),
                Some(cut) => frame.truncate(frame.len().saturating_sub(-cut as usize)),
                None => {}
            }
            frame
        })
}

/// Bytes behind the frame, or missing at its end.
fn cut() -> impl Strategy<Value = Option<i32>> {
    prop_oneof![6 => Just(None), 1 => (0..20i32).prop_map(Some), 2 => (-40..0i32).prop_map(Some)]
}

fn few() -> impl Strategy<Value = u16> + Clone {
    prop_oneof![Just(0u16), Just(1), Just(2), Just(0x101), Just(0x8001)]
}

fn tos() -> impl Strategy<Value = u8> {
    prop_oneof![2 => Just(0u8), 1 => Just(4), 1 => Just(0x23)]
}

fn ipv4() -> impl Strategy<Value = Vec<u8>> {
    let fragment = prop_oneof![6 => Just(0u16), 3 => Just(0x4000), 1 => Just(0x2000), 1 => Just(0x2005), 1 => Just(5)];
    let options = prop_oneof![4 => Just(0usize), 1 => Just(1usize), 1 => Just(10)];
    (transport(ICMP), few(), few(), tos(), 63..65u8, fragment, options).prop_map(
        |((proto, transport), src, dst, tos, ttl, fragment, options)| {
            let len = (20 + 4 * options + transport.len()) as u16;
            let mut packet = vec![8, 0, 0x45 + options as u8, tos];
            packet.extend(len.to_be_bytes());
            packet.extend([0, 1]);
            packet.extend(fragment.to_be_bytes());
            packet.extend([ttl, proto, 0, 0, 10, 0]);
            packet.extend(src.to_be_bytes());
            packet.extend([10, 0]);
            packet.extend(dst.to_be_bytes());
            packet.extend(std::iter::repeat_n(1, 4 * options));
            packet.extend(transport);
            packet
        },
    )
}

fn ipv6() -> impl Strategy<Value = Vec<u8>> {
    // Hop by hop, routing, destination options, a fragment header, an authentication header.
    let extension = prop_oneof![
        (prop_oneof![Just(0u8), Just(43), Just(60)], 0..2u8).prop_map(|(kind, words)| (kind, [0, words, 1, 4])),
        prop_oneof![Just(0u16), Just(1), Just(8), Just(9), Just(2)].prop_map(|offset| {
            let [high, low] = offset.to_be_bytes();
            (44, [0, 0, high, low])
        }),
        (1..3u8).prop_map(|words| (51, [0, words, 0, 0])),
    ];
    let count = prop_oneof![5 => Just(0usize), 2 => Just(1), 1 => Just(2), 1 => Just(4)];
    let extensions = count.prop_flat_map(move |count| vec(extension.clone(), count));
    (transport(ICMPV6), few(), few(), tos(), 63..65u8, few(), extensions).prop_map(
        |((proto, transport), src, dst, tos, ttl, label, extensions)| {
            let kinds: Vec<u8> = extensions.iter().map(|(kind, _)| *kind).chain([proto]).collect();
            let mut body = Vec::new();
            for ((kind, mut head), next) in extensions.into_iter().zip(&kinds[1..]) {
                head[0] = *next;
                let len = match kind {
                    44 => 8,
                    51 => 4 * (usize::from(head[1]) + 2),
                    _ => 8 * (usize::from(head[1]) + 1),
                };
                body.extend(head);
                body.extend(std::iter::repeat_n(0, len - head.len()));
            }
            body.extend(transport);
            let mut packet = vec![0x86, 0xdd, 0x60 | tos >> 4, tos << 4];
            packet.extend(label.to_be_bytes());
            packet.extend((body.len() as u16).to_be_bytes());
            packet.extend([kinds[0], ttl]);
            for end in [src, dst] {
                packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                packet.extend(end.to_be_bytes());
            }
            packet.extend(body);
            packet
        },
    )
}

/// The protocol's number, and its header with some bytes behind it. ICMP has this number.
fn transport(icmp: u8) -> impl Strategy<Value = (u8, Vec<u8>)> {
    let padded = |mut header: Vec<u8>, len: usize| {
        header.resize(len + 4, 0);
        header
    };
    let ports = || (few(), few()).prop_map(|(src, dst)| [src, dst].map(u16::to_be_bytes).concat());
    let tcp = (ports(), prop_oneof![Just(0u16), Just(2), Just(0x12), Just(0xf02)]).prop_map(move |(ports, flags)| {
        let mut header = padded(ports, 20);
        header[12..14].copy_from_slice(&(0x5000 | flags).to_be_bytes());
        (TCP, header)
    });
    let echo = (prop_oneof![Just(0u8), Just(8), Just(128), Just(129), Just(143)], 0..2u8)
        .prop_map(move |(kind, code)| (icmp, padded(vec![kind, code], 8)));
    prop_oneof![
        4 => tcp,
        4 => ports().prop_map(move |ports| (UDP, padded(ports, 8))),
        2 => ports().prop_map(move |ports| (SCTP, padded(ports, 12))),
        2 => echo,
        2 => neighbour().prop_map(move |header| (icmp, header)),
        1 => prop_oneof![Just(2u8), Just(47), Just(89), Just(59)].prop_map(move |proto| (proto, padded(vec![1; 4], 20))),
    ]
}

/// A neighbour solicitation or advertisement with options, some of them twice, of other kinds, and with lengths that do not fit.
fn neighbour() -> impl Strategy<Value = Vec<u8>> {
    let option = (
        prop_oneof![4 => Just(1u8), 4 => Just(2), 1 => Just(5)],
        prop_oneof![8 => Just(1u8), 1 => Just(0), 1 => Just(2)],
        0..2u8,
    );
    let code = prop_oneof![5 => Just(0u8), 1 => Just(1)];
    (135..137u8, code, few(), vec(option, 0..4)).prop_map(|(kind, code, target, options)| {
        let mut header = vec![kind, code, 0, 0, 0, 0, 0, 0, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        header.extend(target.to_be_bytes());
        for (kind, words, last) in options {
            header.extend([kind, words, 2, 0, 0, 0, 0, last]);
            header.extend(std::iter::repeat_n(0, 8 * usize::from(words.max(1) - 1)));
        }
        header
    })
}

fn arp() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![3 => Just([8u8, 6]), 1 => Just([0x80, 0x35])];
    let op = prop_oneof![3 => Just(1u16), 3 => Just(2), 1 => Just(0x101), 1 => Just(0x102)];
    (kind, op, 0..3u8, 0..3u8, few(), few()).prop_map(|(kind, op, sha, tha, spa, tpa)| {
        let mut packet = [&kind[..], &[0, 1, 8, 0, 6, 4]].concat();
        packet.extend(op.to_be_bytes());
        packet.extend([2, 0, 0, 0, 0, sha, 10, 0]);
        packet.extend(spa.to_be_bytes());
        packet.extend([2, 0, 0, 0, 0, tha, 10, 0]);
        packet.extend(tpa.to_be_bytes());
        packet
    })
}

/// 802.2, MPLS, and types that nobody knows.
fn other() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![Just(0x0026u16), Just(0x8847), Just(0x88b5), Just(0x0600)];
    let llc = prop_oneof![Just([0xaau8, 0xaa, 3, 0, 0, 0, 8, 0]), Just([0x42, 0x42, 3, 0, 0, 0, 0, 0])];
    (kind, llc).prop_map(|(kind, llc)| [&kind.to_be_bytes()[..], &llc, &[0x45; 40]].concat())
}
