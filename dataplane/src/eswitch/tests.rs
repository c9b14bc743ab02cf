//! Keys and actions over frames that are right, and over frames that are not. What comes out is checked by the test kit's own arithmetic.

use std::sync::Arc;

use proptest::prelude::*;
use ringspan_protocol::{Action, Field, FieldMatch, Match, NicPort, Rule, RuleId, TunnelKind, TunnelPush};
use ringspan_testkit::packet::{Packet, sum};

mod arp_icmp;
mod tunnels;

use super::actions::{Edit, MOST_HEADERS, Program};
use super::checksum::sctp;
use super::key::{Key, Network, Places};
use super::switch::{Installed, REFRESH};
use crate::worker::millis;

/// A frame with room before it.
#[derive(Debug, Clone, PartialEq)]
struct Bytes {
    all: Vec<u8>,
    start: usize,
}

impl Bytes {
    fn new(frame: &[u8]) -> Self {
        let mut all = vec![0xee; MOST_HEADERS];
        all.extend(frame);
        Self { all, start: MOST_HEADERS }
    }
}

impl Edit for Bytes {
    fn head(&mut self) -> &mut [u8] {
        &mut self.all[self.start..]
    }

    fn length(&self) -> usize {
        self.all.len() - self.start
    }

    fn grow(&mut self, bytes: usize) -> bool {
        let room = self.start >= bytes;
        self.start -= if room { bytes } else { 0 };
        room
    }

    fn shrink(&mut self, bytes: usize) -> bool {
        let there = self.length() >= bytes;
        self.start += if there { bytes } else { 0 };
        there
    }
}

fn rule(matches: &[&str], actions: Vec<Action>) -> Rule {
    let matches = Match::new(matches.iter().map(|text| text.parse().unwrap())).unwrap();
    let rule = Rule { id: RuleId(1), priority: 0, in_port: NicPort::Vf(0), matches, actions, refresh: true };
    assert_eq!(rule.check(), Ok(()), "{rule:?}");
    rule
}

fn out() -> Action {
    Action::Output(NicPort::Uplink)
}

fn set(text: &str) -> Action {
    Action::Set(text.parse().unwrap())
}

fn parse(frame: &[u8]) -> (Key, Places) {
    Key::parse(frame, frame.len(), 1)
}

/// What goes out when `rule` is applied to `frame`; `None` when it does not fit.
fn apply(rule: &Rule, frame: &[u8]) -> Option<Vec<Vec<u8>>> {
    let program = Program::new(rule, 8).unwrap();
    let (mut key, mut places) = parse(frame);
    let inner = places.inner;
    if rule.matches.get(Field::TunnelKind).is_some() {
        (key, places) = Key::parse_inner(frame, frame.len(), &key, &places)?;
    }
    if !program.fits(&key, &places, true) {
        return None;
    }
    let (mut bytes, mut sent) = (Bytes::new(frame), Vec::new());
    assert!(program.run(&mut bytes, &key, places, inner, |frame, _, _| sent.push(frame.head().to_vec())));
    Some(sent)
}

fn one(rule: &Rule, frame: &[u8]) -> Vec<u8> {
    let sent = apply(rule, frame).expect("it does not fit");
    assert_eq!(sent.len(), 1);
    sent.into_iter().next().unwrap()
}

/// The packet with its checksum filled in.
fn finished(packet: &Packet) -> Vec<u8> {
    let mut frame = packet.frame();
    let (start, place) = (packet.l4_start(), packet.checksum_place());
    let checksum = match !sum(&frame[start..]) {
        0 if packet.udp => 0xffff,
        checksum => checksum,
    };
    frame[place..place + 2].copy_from_slice(&checksum.to_be_bytes());
    packet.check(&frame).unwrap();
    frame
}

/// ICMP or ICMPv6 with a checksum.
fn icmp(ipv6: bool) -> Vec<u8> {
    let packet = Packet { ipv6, udp: true, ..Packet::new(20) };
    let (mut frame, l3, l4) = (packet.frame(), 14, packet.l4_start());
    frame[if ipv6 { l3 + 6 } else { l3 + 9 }] = if ipv6 { 58 } else { 1 };
    frame[l4..l4 + 8].copy_from_slice(&[8, 3, 0, 0, 1, 2, 3, 4]);
    if !ipv6 {
        frame[l3 + 10..l3 + 12].fill(0);
        let checksum = !sum(&frame[l3..l4]);
        frame[l3 + 10..l3 + 12].copy_from_slice(&checksum.to_be_bytes());
    }
    let checksum = !icmp_sum(&frame, ipv6);
    frame[l4 + 2..l4 + 4].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// 0xffff when the checksum is right.
fn icmp_sum(frame: &[u8], ipv6: bool) -> u16 {
    if !ipv6 {
        return sum(&frame[34..]);
    }
    let mut bytes = frame[22..54].to_vec();
    bytes.extend((frame.len() as u32 - 54).to_be_bytes());
    bytes.extend([0, 0, 0, 58]);
    bytes.extend(&frame[54..]);
    sum(&bytes)
}

fn matches_of(packet: &Packet) -> Vec<&'static str> {
    let mut matches = vec![if packet.ipv6 { "eth_type=0x86dd" } else { "eth_type=0x800" }];
    matches.push(if packet.udp { "ip_proto=17" } else { "ip_proto=6" });
    if packet.tags > 0 {
        matches.push("vlan_tci=0x1000/0x1000");
    }
    matches
}

#[test]
fn a_key_has_what_the_frame_has() {
    let packet = Packet { tags: 2, udp: false, ecn: true, ..Packet::new(10) };
    let (key, places) = parse(&packet.frame());
    let get = |field| key.get(field);
    assert_eq!((get(Field::EthDst), get(Field::EthSrc)), (0x0200_0000_0077, 0x0200_0000_0066));
    assert_eq!((get(Field::VlanTpid), get(Field::VlanTci)), (0x8100, 0x1001));
    assert_eq!((get(Field::InnerVlanTpid), get(Field::InnerVlanTci)), (0x8100, 0x1002));
    assert_eq!((get(Field::EthType), get(Field::IpProto), get(Field::IpTtl)), (0x800, 6, 64));
    assert_eq!((get(Field::Ipv4Src), get(Field::Ipv4Dst)), (0xc000_0201, 0xc633_6407));
    assert_eq!((get(Field::SrcPort), get(Field::DstPort), get(Field::TcpFlags)), (12345, 54321, 0x99));
    assert_eq!((places.tags, places.l3, places.l4), (2, 22, 42));
    assert_eq!(places.network, Network::Ipv4);

    let (key, places) = parse(&Packet { ipv6: true, udp: true, options: 2, ..Packet::new(1) }.frame());
    assert_eq!((key.get(Field::EthType), key.get(Field::IpProto), key.get(Field::SrcPort)), (0x86dd, 17, 12345));
    assert_eq!(key.0[4..8], [0x2001_0db8 << 32, 1, 0x2001_0db8 << 32, 2]);
    assert_eq!((places.network, places.l4), (Network::Ipv6, 70));

    let mut arp = vec![0xff; 12];
    arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    arp.extend([2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 2, 0, 0, 0, 0, 2, 10, 0, 0, 2]);
    let (key, _) = parse(&arp);
    assert_eq!((key.get(Field::ArpOp), key.get(Field::ArpSpa), key.get(Field::ArpTpa)), (2, 0x0a00_0001, 0x0a00_0002));
    assert_eq!((key.get(Field::ArpSha), key.get(Field::ArpTha)), (0x0200_0000_0001, 0x0200_0000_0002));
}

#[test]
fn fragments_are_told_apart_and_later_ones_have_no_ports() {
    let mut frame = finished(&Packet { udp: true, ..Packet::new(100) });
    for (bytes, frag, port) in [([0x40, 0], 0, 12345), ([0x20, 0], 1, 12345), ([0x20, 10], 3, 0), ([0, 10], 3, 0)] {
        frame[20..22].copy_from_slice(&bytes);
        let (key, _) = parse(&frame);
        assert_eq!((key.get(Field::IpFrag), key.get(Field::SrcPort)), (frag, port), "{bytes:?}");
    }
    let mut frame = Packet { ipv6: true, udp: true, options: 1, ..Packet::new(100) }.frame();
    frame[20] = 44;
    // OVS's datapaths disagree on a packet that is its only fragment (RFC 6946), and on reserved bits: neither whole nor a fragment.
    for (bytes, frag, proto) in [([0, 0], 2, 17), ([0, 6], 2, 17), ([0, 1], 1, 17), ([0, 8], 3, 44), ([0, 9], 3, 44)] {
        frame[56..58].copy_from_slice(&bytes);
        let (key, _) = parse(&frame);
        assert_eq!((key.get(Field::IpFrag), key.get(Field::IpProto)), (frag, proto), "{bytes:?}");
    }
}

#[test]
fn every_field_that_is_set_has_its_new_value_and_all_checksums_are_right() {
    let fields = |packet: &Packet| {
        let addresses: &[&str] = if packet.ipv6 {
            &[
                "ipv6_src=fd00::1",
                "ipv6_dst=fd00::2",
                "ipv6_dst=::ff/::ff",
                "ipv6_label=0xabcde",
                "ip_tos=0x30/0xfc",
                "ip_ttl=9",
            ]
        } else {
            &[
                "ipv4_src=10.1.2.3",
                "ipv4_dst=10.0.0.0/255.0.0.0",
                "ipv4_dst=0.0.0.0",
                "ip_tos=0xb8",
                "ip_ttl=9",
                "ip_tos=3/3",
            ]
        };
        let all = [
            "eth_src=02:00:00:00:01:01",
            "eth_dst=00:ff:00:00:00:00/00:ff:00:00:00:00",
            "tp_src=0",
            "tp_dst=443",
            "tp_src=0xff00/0xff00",
        ];
        let tag: &[&str] = if packet.tags > 0 { &["vlan_tci=0x1fff", "vlan_tci=0x0007/0x0fff"] } else { &[] };
        addresses.iter().chain(&all).chain(tag).map(|text| text.parse::<FieldMatch>().unwrap()).collect::<Vec<_>>()
    };
    for bits in 0..16 {
        let (ipv6, udp, tags, options) = (bits & 1 > 0, bits & 2 > 0, bits >> 2 & 1, bits >> 3);
        for seed in 0..20 {
            let packet = Packet { ipv6, udp, tags, options, seed, ..Packet::new(seed as usize) };
            let frame = finished(&packet);
            for field in fields(&packet) {
                let after = one(&rule(&matches_of(&packet), vec![Action::Set(field), out()]), &frame);
                packet.check(&after).unwrap_or_else(|error| panic!("{field}: {error}"));
                // The new key is the old one with the field's bits.
                let (mut values, mut masks) = (Key::EMPTY, Key::EMPTY);
                Key::ask(&mut values, &mut masks, &field);
                let (old, new) = (parse(&frame).0, parse(&after).0);
                for word in 0..super::key::WORDS {
                    let wanted = old.0[word] & !masks.0[word] | values.0[word] & masks.0[word];
                    let tagged = if word == 1 { old.0[word] & 0x1000 } else { 0 };
                    assert_eq!(new.0[word], wanted | tagged, "{field}: word {word}");
                }
                assert_eq!(after[packet.header_len()..], frame[packet.header_len()..], "{field}: payload");
            }
        }
    }
}

/// Whether a rule with these fields is for the frame, and for the frame in its tunnel.
fn matches(fields: &[&str], frame: &[u8]) -> bool {
    let rule =
        rule(fields, if fields.contains(&"tunnel_kind=2") { vec![Action::TunnelPop, out()] } else { vec![out()] });
    let (mut values, masks) = Key::of(&rule.matches);
    values.set_port(1);
    let (mut key, places) = parse(frame);
    if rule.matches.get(Field::TunnelKind).is_some() {
        let Some((inner, _)) = Key::parse_inner(frame, frame.len(), &key, &places) else { return false };
        key = inner;
    }
    key.0.iter().zip(masks.0).zip(values.0).all(|((key, mask), value)| key & mask == value)
}

#[test]
fn a_neighbour_solicitation_has_a_target_and_addresses() {
    // Target fe80::5, source address option 02:..:09, and a target address option 02:..:0a.
    let mut nd = vec![135, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0x80];
    nd.resize(23, 0);
    nd.push(5);
    let (source, target) = ([1, 1, 2, 0, 0, 0, 0, 9], [2, 1, 2, 0, 0, 0, 0, 10]);
    let frame = |options: &[[u8; 8]]| {
        let body = [&nd[..], &options.concat()].concat();
        let mut frame = Packet { ipv6: true, udp: true, ..Packet::new(body.len() - 8) }.frame();
        frame[20] = 58;
        frame[54..].copy_from_slice(&body);
        frame
    };
    let base = ["eth_type=0x86dd", "ip_proto=58", "icmp_type=135"];
    let is = |field: &str, frame: &[u8]| matches(&[&base[..], &[field]].concat(), frame);
    let both = frame(&[source, target]);
    for field in
        ["nd_target=fe80::5", "nd_sll=02:00:00:00:00:09", "nd_tll=02:00:00:00:00:0a", "nd_target=::/ffff::ff00"]
    {
        assert_eq!(is(field, &both), !field.contains("::/"), "{field}");
    }
    assert!(is("nd_sll=00:00:00:00:00:00", &frame(&[target])) && is("nd_target=fe80::5", &frame(&[])));
    assert!(!is("nd_target=fe80::6", &both));
    // Twice the same option: nothing of it counts.
    assert!(is("nd_target=::", &frame(&[source, source])));
    let echo = [&both[..54], &[128], &both[55..]].concat();
    assert!(!is("nd_target=fe80::5", &echo));
    assert!(matches(&["eth_type=0x86dd", "ip_proto=58", "icmp_type=128"], &echo));
}

#[test]
fn a_udp_checksum_of_none_stays_none() {
    let mut frame = finished(&Packet { udp: true, ..Packet::new(10) });
    frame[40..42].fill(0);
    let after = one(&rule(&["eth_type=0x800", "ip_proto=17"], vec![set("tp_dst=9"), out()]), &frame);
    assert_eq!(after[40..42], [0, 0]);
}

#[test]
fn time_to_live_goes_down_and_a_frame_whose_time_is_over_is_left_to_the_slow_path() {
    let packet = Packet::new(10);
    let frame = finished(&packet);
    let dec = rule(&["eth_type=0x800"], vec![Action::DecTtl, out()]);
    let after = one(&dec, &frame);
    packet.check(&after).unwrap();
    assert_eq!(after[22], 63);
    for ttl in [0, 1] {
        let mut old = frame.clone();
        old[22] = ttl;
        assert_eq!(apply(&dec, &old), None);
        let renewed = rule(&["eth_type=0x800"], vec![set("ip_ttl=7"), Action::DecTtl, out()]);
        assert_eq!(one(&renewed, &old)[22], 6);
    }
}

#[test]
fn tags_come_and_go_and_what_is_behind_them_is_found_again() {
    let packet = Packet::new(30);
    let frame = finished(&packet);
    let push = |tpid, tci| Action::PushVlan { tpid, tci };
    let ip = ["eth_type=0x800"];
    let tagged = one(&rule(&ip, vec![push(0x8100, 0x6005), push(0x88a8, 7), set("ip_ttl=3"), out()]), &frame);
    assert_eq!(tagged[12..22], [0x88, 0xa8, 0, 7, 0x81, 0, 0x60, 5, 8, 0]);
    assert_eq!(tagged[..12], frame[..12]);
    let both = ["vlan_tci=0x1007/0x1fff", "inner_vlan_tci=0x1005/0x1fff", "eth_type=0x800"];
    let bare = one(&rule(&both, vec![Action::PopVlan, Action::PopVlan, set("ip_ttl=64"), out()]), &tagged);
    assert_eq!(bare, frame);
}

#[test]
fn each_output_gets_the_frame_as_it_is_by_then() {
    let frame = finished(&Packet::new(30));
    let push = Action::PushVlan { tpid: 0x8100, tci: 5 };
    let actions = vec![
        out(),
        push,
        Action::Output(NicPort::Vf(1)),
        set("eth_dst=02:00:00:00:00:09"),
        Action::Output(NicPort::Vf(2)),
    ];
    let sent = apply(&rule(&["eth_type=0x800"], actions), &frame).unwrap();
    assert_eq!(sent.len(), 3);
    assert_eq!(sent[0], frame);
    assert_eq!((&sent[1][..12], &sent[1][12..16]), (&frame[..12], &[0x81, 0, 0, 5][..]));
    assert_eq!((&sent[2][..6], &sent[2][6..]), (&[2, 0, 0, 0, 0, 9][..], &sent[1][6..]));
}

proptest! {
    #[test]
    fn whatever_a_guest_sends_is_read_within_its_bounds_and_changed_within_them(
        (ipv6, udp, tags, options) in (any::<bool>(), any::<bool>(), 0..3usize, 0..3usize),
        noise in prop::collection::vec((0..90usize, any::<u8>()), 0..12),
        cut in 0..200usize,
        longer in 0..100usize,
    ) {
        let mut frame = Packet { ipv6, udp, tags, options, ..Packet::new(60) }.frame();
        if udp {
            let port = Packet { ipv6, udp, tags, options, ..Packet::new(60) }.l4_start() + 2;
            frame[port..port + 2].copy_from_slice(&4789u16.to_be_bytes());
            frame[port + 6..port + 14].copy_from_slice(&[8, 0, 0, 0, 0, 0, 1, 0]);
        }
        let len = frame.len();
        for (at, byte) in noise {
            frame[at % len] = byte;
        }
        frame.truncate(cut);
        // The rest of the frame is in another buffer.
        let (key, places) = Key::parse(&frame, frame.len() + longer, 1);
        let inner = Key::parse_inner(&frame, frame.len() + longer, &key, &places);
        for (kind, actions) in [
            (vec![], vec![Action::PushVlan { tpid: 0x8100, tci: 1 }, set("vlan_tci=0x1005"), out(), Action::PopVlan, out()]),
            (vec!["eth_type=0x800"], vec![set("ipv4_src=1.2.3.4"), set("ip_tos=4"), Action::DecTtl, out()]),
            (vec!["eth_type=0x86dd"], vec![set("ipv6_dst=fd00::1"), set("ipv6_label=1"), Action::DecTtl, out()]),
            (vec!["eth_type=0x806"], vec![set("arp_tha=02:00:00:00:00:01"), set("arp_tpa=1.2.3.4"), out()]),
            (vec!["eth_type=0x800", "ip_proto=6"], vec![set("tp_src=5"), out()]),
            (vec!["eth_type=0x86dd", "ip_proto=17"], vec![set("tp_src=5"), out()]),
            (vec!["eth_type=0x800", "ip_proto=132"], vec![set("tp_src=5"), out()]),
            (vec!["tunnel_kind=1"], vec![Action::TunnelPop, set("eth_src=02:00:00:00:00:05"), out()]),
        ] {
            let rule = rule(&kind, actions);
            let program = Program::new(&rule, 8).unwrap();
            let mut bytes = Bytes::new(&frame);
            let popped = rule.matches.get(Field::TunnelKind).is_some();
            let of_frame = if popped { inner.map(|(key, at)| (key, at, places.inner)) } else { Some((key, places, 0)) };
            // A switch asks for rules of the frame's type only; whether the header is there is the program's to find out.
            if let Some((key, at, inner)) = of_frame
                && rule.matches.exact(Field::EthType).is_none_or(|kind| u128::from(key.get(Field::EthType)) == kind)
                && rule.matches.exact(Field::IpProto).is_none_or(|proto| u128::from(key.get(Field::IpProto)) == proto)
                && program.fits(&key, &at, longer == 0)
            {
                let mut sent = 0;
                program.run(&mut bytes, &key, at, inner, |_, _, _| sent += 1);
                prop_assert!(sent <= 2);
            }
        }
    }
}

#[test]
fn an_sctp_checksum_that_is_wrong_stays_wrong() {
    let mut frame = Packet::new(0).frame();
    frame.truncate(34);
    frame[17] = 20 + 12 + 8;
    frame[23] = 132;
    frame.extend([0, 80, 0, 81, 1, 2, 3, 4, 0, 0, 0, 0, 0, 3, 0, 8, 5, 6, 7, 8]);
    // Behind the packet, to the least length of a frame.
    frame.extend([0; 6]);
    let sum = sctp(&frame[34..54]);
    frame[42..46].copy_from_slice(&sum);
    let rule = rule(&["eth_type=0x800", "ip_proto=132"], vec![set("tp_dst=1000"), set("tp_src=7"), out()]);
    let changed = one(&rule, &frame);
    assert_eq!(changed[34..38], [0, 7, 3, 0xe8]);
    assert_eq!(changed[42..46], sctp(&changed[34..54]));
    frame[50] ^= 1;
    let changed = one(&rule, &frame);
    assert_ne!(changed[42..46], sctp(&changed[34..54]));
}

#[test]
fn headers_that_do_not_fit_before_a_frame_are_refused_when_the_rule_is_made() {
    let push = |options: usize| TunnelPush {
        kind: TunnelKind::Geneve,
        id: 42,
        eth_src: "52:54:00:00:00:01".parse().unwrap(),
        eth_dst: "52:54:00:00:00:02".parse().unwrap(),
        src: "10.0.0.1".parse().unwrap(),
        dst: "10.0.0.2".parse().unwrap(),
        tos: 0,
        ttl: 64,
        dont_fragment: true,
        src_port: None,
        dst_port: 6081,
        checksum: false,
        options: "01020300".repeat(options / 4),
    };
    let tag = Action::PushVlan { tpid: 0x8100, tci: 5 };
    let makes = |actions: Vec<Action>| Program::new(&rule(&[], actions), 8).is_ok();
    let into = |options| Action::TunnelPush(Box::new(push(options)));
    assert!(makes(vec![into(76), out()]) && !makes(vec![into(80), out()]));
    assert!(makes(vec![tag.clone(), into(72), out()]) && !makes(vec![tag, into(76), out()]));
}

#[test]
fn a_rule_that_is_installed_again_goes_on_and_begins_to_refresh_only_if_it_says_so() {
    let program = |refresh| Arc::new(Program::new(&Rule { refresh, ..rule(&[], vec![out()]) }, 8).unwrap());
    let mut old = Installed::new(program(true), 1999);
    old.packets = 7;
    let now = millis();
    // Not at once, for all rules of a flood, but within the time.
    assert!(!old.is_due(now, REFRESH) && old.is_due(now.wrapping_add(4000), REFRESH));
    for refresh in [true, false] {
        let mut new = Installed::new(program(refresh), 0);
        assert!(!new.is_due(now.wrapping_add(2001), REFRESH));
        new.go_on(&old);
        // When the old one would have.
        let due = [1000, 4000, 60_000].map(|later| new.is_due(now.wrapping_add(later), REFRESH));
        assert_eq!((new.packets, due), (7, [false, refresh, refresh]));
        // Where it is to be often, soon.
        assert_eq!(new.is_due(now.wrapping_add(1000), 200), refresh);
    }
    // One that is overdue stays so.
    old.refreshed(now.wrapping_sub(60_000));
    let mut new = Installed::new(program(true), 0);
    new.go_on(&old);
    assert!(new.is_due(millis(), REFRESH));
}
