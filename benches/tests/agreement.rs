//! A flow of OVS's text, the rule that it becomes, and the frame as the software NIC's engine reads it: whatever they are, the rule
//! matches a frame exactly when the flow does. What the frame is is known here from how it was made, not from reading it.

use proptest::prelude::*;
use ringspan::ovs::rule_of;
use ringspan_dataplane::eswitch::key::{ALWAYS, Key};
use ringspan_protocol::NicPort;

/// A frame's fields.
#[derive(Debug, Clone)]
struct Made {
    dst: u8,
    src: u8,
    tag: Option<(u16, u8)>,
    ip: Ip,
    tos: u8,
    ttl: u8,
    proto: Proto,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Ip {
    V4(u32, u32),
    V6(u16, u16),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Proto {
    Tcp(u16, u16, u16),
    Udp(u16, u16),
    Sctp(u16, u16),
    Icmp(u8, u8),
}

impl Made {
    fn proto(&self) -> u8 {
        match (self.proto, self.ip) {
            (Proto::Tcp(..), _) => 6,
            (Proto::Udp(..), _) => 17,
            (Proto::Sctp(..), _) => 132,
            (Proto::Icmp(..), Ip::V4(..)) => 1,
            (Proto::Icmp(..), Ip::V6(..)) => 58,
        }
    }

    fn frame(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, self.dst, 2, 0, 0, 0, 0, self.src];
        if let Some((vid, pcp)) = self.tag {
            frame.extend([0x81, 0]);
            frame.extend((u16::from(pcp) << 13 | vid).to_be_bytes());
        }
        let mut l4 = Vec::new();
        match self.proto {
            Proto::Tcp(src, dst, flags) => {
                l4.extend([src, dst].map(u16::to_be_bytes).concat());
                l4.extend([0; 8]);
                l4.extend((0x5000 | flags).to_be_bytes());
                l4.extend([0; 6]);
            }
            Proto::Udp(src, dst) => l4.extend([src, dst, 12, 0].map(u16::to_be_bytes).concat()),
            Proto::Sctp(src, dst) => {
                l4.extend([src, dst].map(u16::to_be_bytes).concat());
                l4.extend([0; 8]);
            }
            Proto::Icmp(kind, code) => l4.extend([kind, code, 0, 0, 0, 0, 0, 0]),
        }
        l4.extend([0; 4]);
        match self.ip {
            Ip::V4(src, dst) => {
                frame.extend([8, 0, 0x45, self.tos]);
                frame.extend((20 + l4.len() as u16).to_be_bytes());
                frame.extend([0, 0, 0x40, 0, self.ttl, self.proto(), 0, 0]);
                frame.extend([src, dst].map(u32::to_be_bytes).concat());
            }
            Ip::V6(src, dst) => {
                frame.extend([0x86, 0xdd, 0x60 | self.tos >> 4, self.tos << 4, 0, 0]);
                frame.extend((l4.len() as u16).to_be_bytes());
                frame.extend([self.proto(), self.ttl]);
                for end in [src, dst] {
                    frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                    frame.extend(end.to_be_bytes());
                }
            }
        }
        frame.extend(l4);
        frame
    }
}

/// Which bits of which fields a flow asks for.
#[derive(Debug, Clone)]
struct Asked {
    macs: (u8, u8),
    tag: (u16, u8),
    addresses: (u32, u32),
    proto: bool,
    tos: u8,
    ttl: u8,
    l4: Option<(u16, u16)>,
    flags: u16,
}

/// The flow's text, about a frame like `like`.
fn flow(like: &Made, asked: &Asked) -> String {
    let mac = |last: u8, mask: u8| format!("02:00:00:00:00:{last:02x}/00:00:00:00:00:{mask:02x}");
    let eth = format!("eth(src={},dst={})", mac(like.src, asked.macs.0), mac(like.dst, asked.macs.1));
    // What is behind the protocol is asked for only together with it, as OVS does it.
    let proto = if asked.proto { "0xff" } else { "0" };
    let common = |tos: &str, ttl: &str| {
        format!(
            "proto={}/{proto},{tos}={:#x}/{:#x},{ttl}={}/{:#x},frag=no",
            like.proto(),
            like.tos,
            asked.tos,
            like.ttl,
            asked.ttl
        )
    };
    let ip = match like.ip {
        Ip::V4(src, dst) => {
            let address = |bits: u32| std::net::Ipv4Addr::from(bits);
            let (s, d) = (address(asked.addresses.0), address(asked.addresses.1));
            format!("eth_type(0x0800),ipv4(src={}/{s},dst={}/{d},{})", address(src), address(dst), common("tos", "ttl"))
        }
        Ip::V6(src, dst) => {
            let (s, d) = (asked.addresses.0 & 0xffff, asked.addresses.1 & 0xffff);
            let rest = common("tclass", "hlimit");
            format!("eth_type(0x86dd),ipv6(src=fd00::{src:x}/::{s:x},dst=fd00::{dst:x}/::{d:x},label=0/0,{rest})")
        }
    };
    let l4 = match (like.proto, asked.l4.filter(|_| asked.proto)) {
        (_, None) => String::new(),
        (Proto::Tcp(src, dst, flags), Some((s, d))) => {
            format!(",tcp(src={src}/{s:#x},dst={dst}/{d:#x}),tcp_flags({flags:#x}/{:#x})", asked.flags)
        }
        (Proto::Udp(src, dst), Some((s, d))) => format!(",udp(src={src}/{s:#x},dst={dst}/{d:#x})"),
        (Proto::Sctp(src, dst), Some((s, d))) => format!(",sctp(src={src}/{s:#x},dst={dst}/{d:#x})"),
        (Proto::Icmp(kind, code), Some((s, d))) => {
            let name = if matches!(like.ip, Ip::V4(..)) { "icmp" } else { "icmpv6" };
            format!(",{name}(type={kind}/{:#x},code={code}/{:#x})", s & 0xff, d & 0xff)
        }
    };
    let inside = match like.tag {
        Some((vid, pcp)) => {
            let (v, p) = asked.tag;
            format!("eth_type(0x8100),vlan(vid={vid}/{v:#x},pcp={pcp}/{p:#x}),encap({ip}{l4})")
        }
        None => format!("{ip}{l4}"),
    };
    format!(
        "ufid:00000000-0000-0000-0000-000000000001, recirc_id(0),in_port(nic0_vf0),packet_type(ns=0,id=0),{eth},{inside}, packets:0, bytes:0, used:never, dp:ovs, \
         actions:nic0_vf1"
    )
}

/// Whether a flow about `like` matches `frame`.
fn matches(frame: &Made, like: &Made, asked: &Asked) -> bool {
    let same = |one: u64, other: u64, mask: u64| (one ^ other) & mask == 0;
    let addresses = match (frame.ip, like.ip) {
        (Ip::V4(s, d), Ip::V4(src, dst)) => {
            same(s.into(), src.into(), asked.addresses.0.into()) && same(d.into(), dst.into(), asked.addresses.1.into())
        }
        (Ip::V6(s, d), Ip::V6(src, dst)) => {
            same(s.into(), src.into(), u64::from(asked.addresses.0 & 0xffff))
                && same(d.into(), dst.into(), u64::from(asked.addresses.1 & 0xffff))
        }
        _ => false,
    };
    let tag = match (frame.tag, like.tag) {
        (None, None) => true,
        (Some((vid, pcp)), Some((v, p))) => {
            same(vid.into(), v.into(), asked.tag.0.into()) && same(pcp.into(), p.into(), asked.tag.1.into())
        }
        _ => false,
    };
    let l4 = match asked.l4.filter(|_| asked.proto) {
        None => true,
        Some((s, d)) => match (frame.proto, like.proto) {
            (Proto::Tcp(a, b, f), Proto::Tcp(x, y, z)) => {
                same(a.into(), x.into(), s.into())
                    && same(b.into(), y.into(), d.into())
                    && same(f.into(), z.into(), asked.flags.into())
            }
            (Proto::Udp(a, b), Proto::Udp(x, y)) | (Proto::Sctp(a, b), Proto::Sctp(x, y)) => {
                same(a.into(), x.into(), s.into()) && same(b.into(), y.into(), d.into())
            }
            (Proto::Icmp(a, b), Proto::Icmp(x, y)) => {
                same(a.into(), x.into(), u64::from(s & 0xff)) && same(b.into(), y.into(), u64::from(d & 0xff))
            }
            _ => false,
        },
    };
    same(frame.src.into(), like.src.into(), asked.macs.0.into())
        && same(frame.dst.into(), like.dst.into(), asked.macs.1.into())
        && tag
        && addresses
        && (!asked.proto || frame.proto() == like.proto())
        && same(frame.tos.into(), like.tos.into(), asked.tos.into())
        && same(frame.ttl.into(), like.ttl.into(), asked.ttl.into())
        && l4
}

/// Few values, so that frames are alike in many fields.
fn made() -> impl Strategy<Value = Made> {
    let few = || prop_oneof![Just(1u16), Just(2), Just(0x101)];
    let ip = prop_oneof![
        (few(), few()).prop_map(|(s, d)| Ip::V4(0x0a00_0000 | u32::from(s), 0x0a00_0000 | u32::from(d))),
        (few(), few()).prop_map(|(s, d)| Ip::V6(s, d)),
    ];
    let proto = prop_oneof![
        (few(), few(), 0..4u16).prop_map(|(s, d, f)| Proto::Tcp(s, d, f)),
        (few(), few()).prop_map(|(s, d)| Proto::Udp(s, d)),
        (few(), few()).prop_map(|(s, d)| Proto::Sctp(s, d)),
        // Echo alone: neighbour discovery has fields of its own.
        (128..130u8, 0..2u8).prop_map(|(t, c)| Proto::Icmp(t, c)),
    ];
    let tag = prop::option::of((1..4u16, 0..2u8));
    (0..3u8, 0..3u8, tag, ip, prop_oneof![Just(0u8), Just(4), Just(0x23)], 63..65u8, proto)
        .prop_map(|(dst, src, tag, ip, tos, ttl, proto)| Made { dst, src, tag, ip, tos, ttl, proto })
}

fn asked() -> impl Strategy<Value = Asked> {
    let byte = || prop_oneof![Just(0u8), Just(0xff)];
    let ports = || prop_oneof![Just(0u16), Just(0xffff), Just(0xff)];
    let address = || prop_oneof![Just(0u32), Just(u32::MAX), Just(0xffff_ff00), Just(1)];
    let tag = (prop_oneof![Just(0u16), Just(0xfff), Just(1)], prop_oneof![Just(0u8), Just(7)]);
    let l4 = prop::option::of((ports(), ports()));
    let flags = prop_oneof![Just(0u16), Just(0xfff), Just(1)];
    ((byte(), byte()), tag, (address(), address()), any::<bool>(), prop_oneof![byte(), Just(3u8)], byte(), l4, flags)
        .prop_map(|(macs, tag, addresses, proto, tos, ttl, l4, flags)| Asked {
            macs,
            tag,
            addresses,
            proto,
            tos,
            ttl,
            l4,
            flags,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_rule_matches_what_its_flow_matches(frame in made(), like in made(), is_like in any::<bool>(), asked in asked()) {
        let like = if is_like { frame.clone() } else { like };
        let text = flow(&like, &asked);
        let rule = rule_of(&text, &"nic0".parse().expect("a name"), 2);
        let Some(rule) = rule else { return Err(TestCaseError::fail(format!("no rule: {text}"))) };
        prop_assert_eq!(rule.in_port, NicPort::Vf(0));
        let (mut value, mut mask) = (Key::EMPTY, Key::EMPTY);
        mask.0[0] |= ALWAYS;
        value.set_port(1);
        rule.matches.fields().iter().for_each(|field| Key::ask(&mut value, &mut mask, field));
        let bytes = frame.frame();
        let (key, _) = Key::parse(&bytes, bytes.len(), 1);
        let does = key.0.iter().zip(value.0).zip(mask.0).all(|((key, value), mask)| key & mask == value);
        prop_assert_eq!(does, matches(&frame, &like, &asked), "{}\n{:?}", text, frame);
    }
}
