//! Flows of all kinds that can become rules, as text.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::flow;
use crate::ovs::flow::Flow;

type Text = BoxedStrategy<String>;

/// The number of a meter whose limits are known.
pub(super) const METER: u32 = 5;

/// What a frame has behind its tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    V4(u8),
    V6(u8),
    Arp(u16),
    Other(u16),
}
use Network::{Arp, Other, V4, V6};

const NETWORKS: [Network; 14] = [
    V4(6),
    V4(6),
    V4(17),
    V4(132),
    V4(1),
    V4(47),
    V6(6),
    V6(6),
    V6(17),
    V6(132),
    V6(58),
    Arp(0x0806),
    Arp(0x8035),
    Other(0x88cc),
];

/// A flow that comes in by a NIC's port, or out of a tunnel.
pub(super) fn any_flow() -> impl Strategy<Value = Flow> {
    let from = prop_oneof![
        4 => select(vec!["nic0", "nic0_vf0", "nic0_vf3"]).prop_map(|port| format!("in_port({port})")),
        1 => tunnel(),
    ];
    let network = select(NETWORKS.to_vec()).prop_flat_map(|network| (tagged(network), actions(network)));
    let ethernet = header("eth", vec![mac("src"), mac("dst")]);
    (from, ethernet, network).prop_map(|(from, ethernet, (keys, actions))| {
        flow(&format!("{from},packet_type(ns=0,id=0),{ethernet},{keys}"), &actions)
    })
}

/// `name=value`, `name=value/mask`, or nothing: not matched.
fn part(name: &'static str, bits: u32, write: fn(u128) -> String) -> Text {
    let all = u128::MAX >> (128 - bits);
    let mask = prop_oneof![
        4 => Just(0),
        4 => Just(all),
        2 => (1..bits).prop_map(move |zeroes| all << zeroes & all),
        1 => any::<u128>().prop_map(move |mask| mask & all),
    ];
    (any::<u128>(), mask)
        .prop_map(move |(value, mask)| match mask {
            0 => String::new(),
            mask if mask == all => format!("{name}={}", write(value & mask)),
            mask => format!("{name}={}/{}", write(value & mask), write(mask)),
        })
        .boxed()
}

fn number(name: &'static str, bits: u32) -> Text {
    part(name, bits, |value| format!("{value:#x}"))
}

fn mac(name: &'static str) -> Text {
    part(name, 48, |value| {
        let [.., a, b, c, d, e, f] = value.to_be_bytes();
        ringspan_protocol::MacAddress([a, b, c, d, e, f]).to_string()
    })
}

fn ipv4(name: &'static str) -> Text {
    part(name, 32, |value| std::net::Ipv4Addr::from(value as u32).to_string())
}

fn ipv6(name: &'static str) -> Text {
    part(name, 128, |value| std::net::Ipv6Addr::from(value).to_string())
}

fn same(text: &str) -> Text {
    Just(text.to_owned()).boxed()
}

/// `name(part,part)` of the parts that are there.
fn header(name: &'static str, parts: Vec<Text>) -> Text {
    parts
        .prop_map(move |parts| {
            let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
            format!("{name}({})", parts.join(","))
        })
        .boxed()
}

/// The type of what is behind up to two tags, and what it has.
fn tagged(network: Network) -> Text {
    let tag = (select(vec!["0x8100", "0x88a8"]), header("vlan", vec![number("vid", 12), number("pcp", 3)]));
    let count = prop_oneof![4 => Just(0_usize), 2 => Just(1), 1 => Just(2)];
    let tags = count.prop_flat_map(move |count| vec(tag.clone(), count));
    (tags, self::network(network))
        .prop_map(|(tags, inner)| {
            let around = |inner, (tpid, vlan)| format!("eth_type({tpid}),{vlan},encap({inner})");
            tags.into_iter().fold(inner, around)
        })
        .boxed()
}

fn network(network: Network) -> Text {
    let frag = || select(vec!["frag=no", "frag=no", "frag=first"]);
    let (kind, header): (u16, Text) = match network {
        V4(proto) => {
            let parts =
                vec![ipv4("src"), ipv4("dst"), same(&format!("proto={proto}")), number("tos", 8), number("ttl", 8)];
            let first = (frag().prop_flat_map(move |frag| header("ipv4", with(&parts, frag))), transport(proto));
            (0x0800, first.prop_map(|(ip, more)| format!("{ip}{more}")).boxed())
        }
        V6(proto) => {
            let parts = vec![
                ipv6("src"),
                ipv6("dst"),
                number("label", 20),
                same(&format!("proto={proto}")),
                number("tclass", 8),
                number("hlimit", 8),
            ];
            let first = (frag().prop_flat_map(move |frag| header("ipv6", with(&parts, frag))), transport(proto));
            (0x86dd, first.prop_map(|(ip, more)| format!("{ip}{more}")).boxed())
        }
        Arp(kind) => {
            let parts = vec![ipv4("sip"), ipv4("tip"), number("op", 8), mac("sha"), mac("tha")];
            (kind, header("arp", parts))
        }
        Other(kind) => return same(&format!("eth_type({kind:#x})")),
    };
    header.prop_map(move |header| format!("eth_type({kind:#06x}),{header}")).boxed()
}

fn with(parts: &[Text], last: &str) -> Vec<Text> {
    parts.iter().cloned().chain([same(last)]).collect()
}

/// What is behind IP, with a comma before it; or nothing.
fn transport(proto: u8) -> Text {
    let ports = |name| header(name, vec![number("src", 16), number("dst", 16)]);
    let icmp = |name| header(name, vec![number("type", 8), number("code", 8)]);
    let there = match proto {
        6 => (ports("tcp"), select(vec!["", ",tcp_flags(+syn-ack)", ",tcp_flags(0)", ",tcp_flags(syn|ack)"]))
            .prop_map(|(ports, flags)| format!(",{ports}{flags}"))
            .boxed(),
        17 => ports("udp").prop_map(|ports| format!(",{ports}")).boxed(),
        132 => ports("sctp").prop_map(|ports| format!(",{ports}")).boxed(),
        1 => icmp("icmp").prop_map(|icmp| format!(",{icmp}")).boxed(),
        58 => {
            let nd = header("nd", vec![ipv6("target"), mac("sll"), mac("tll")]);
            let nd = nd.prop_map(|nd| format!(",icmpv6(type=135,code=0),{nd}"));
            prop_oneof![icmp("icmpv6").prop_map(|icmp| format!(",{icmp}")), nd].boxed()
        }
        _ => return same(""),
    };
    prop_oneof![1 => same(""), 4 => there].boxed()
}

/// The tunnel that a frame came in, VXLAN or GENEVE, over IPv4 or IPv6.
fn tunnel() -> Text {
    let addresses = select(vec!["src=172.16.0.2,dst=172.16.0.1", "ipv6_src=fd00::2,ipv6_dst=fd00::1"]);
    let rest = || {
        vec![number("tos", 8), number("ttl", 8), number("tp_src", 16)].prop_map(|parts| {
            parts.into_iter().filter(|part| !part.is_empty()).map(|part| format!(",{part}")).collect::<String>()
        })
    };
    let flags = select(vec!["flags(-df-csum+key)", "flags(-df+csum+key)", "flags(+key)"]);
    let options = select(vec![
        "",
        "{class=0x102,type=0x80,len=4,0x50007/0x7fffffff}",
        "{class=0x102,type=0x80,len=8,0x5000700000009/0x7fffffff000000ff}",
        "{class=0x102,type=0x80,len=12,0x500070000000000000009}",
        "{class=0x102,type=0x80,len=4,0x50007}{class=0x103,type=0x81,len=4,0x9/0xff}",
    ]);
    (any::<bool>(), 0..1_u32 << 24, addresses, rest(), flags, options)
        .prop_map(|(is_vxlan, id, addresses, rest, flags, options)| {
            let (port, options) = match (is_vxlan, options) {
                (true, _) => ("vxlan_sys_4789", String::new()),
                (false, "") => ("genev_sys_6081", String::new()),
                (false, options) => ("genev_sys_6081", format!("geneve({options}),")),
            };
            format!("tunnel(tun_id={id:#x},{addresses}{rest},{options}{flags}),in_port({port})")
        })
        .boxed()
}

/// Steps, and then an output, a tunnel, or a drop.
fn actions(network: Network) -> Text {
    let output = || select(vec!["nic0", "nic0_vf0", "nic0_vf1", "nic0_vf2"]).prop_map(String::from);
    let vlan = header(
        "push_vlan",
        vec![
            (0..4096_u16).prop_map(|vid| format!("vid={vid}")).boxed(),
            (0..8_u8).prop_map(|pcp| format!("pcp={pcp}")).boxed(),
        ],
    );
    let double = (0..4096_u16).prop_map(|vid| format!("push_vlan(tpid=0x88a8,vid={vid},pcp=0)"));
    let step = prop_oneof![
        6 => set(network),
        2 => output(),
        1 => vlan,
        1 => double,
        1 => same("pop_vlan"),
        1 => same("dec_ttl(le_1(drop))"),
        1 => same(&format!("meter({METER})")),
    ];
    let step = prop_oneof![9 => step, 1 => set(network).prop_map(|set| format!("{set},{set}"))];
    let end = prop_oneof![4 => output(), 1 => push(), 1 => kernel()];
    let some = (vec(step, 0..7), end).prop_map(|(mut steps, end)| {
        steps.push(end);
        steps.join(",")
    });
    prop_oneof![9 => some, 1 => same("drop")].boxed()
}

/// Sets some or all of a field that the frame has.
fn set(network: Network) -> Text {
    let mut all =
        vec![header("eth", vec![mac("src"), mac("dst")]), header("vlan", vec![number("vid", 12), number("pcp", 3)])];
    let ports = || vec![number("src", 16), number("dst", 16)];
    let proto = match network {
        V4(proto) => {
            all.push(header("ipv4", vec![ipv4("src"), ipv4("dst"), number("tos", 8), number("ttl", 8)]));
            all.push(same("ipv4(ttl=63)"));
            proto
        }
        V6(proto) => {
            let parts = vec![ipv6("src"), ipv6("dst"), number("tclass", 8), number("hlimit", 8)];
            all.push(header("ipv6", parts));
            all.push(same("ipv6(hlimit=63)"));
            proto
        }
        Arp(_) => {
            all.push(header("arp", vec![ipv4("sip"), ipv4("tip"), number("op", 8), mac("sha"), mac("tha")]));
            0
        }
        Other(_) => 0,
    };
    match proto {
        6 => all.push(header("tcp", ports())),
        17 => all.push(header("udp", ports())),
        132 => all.push(header("sctp", ports())),
        1 => all.push(header("icmp", vec![number("type", 8), number("code", 8)])),
        58 => all.push(header("icmpv6", vec![number("type", 8), number("code", 8)])),
        _ => {}
    }
    select(all).prop_flat_map(|one| one).prop_map(|key| format!("set({key})")).boxed()
}

/// A tunnel that the userspace datapath pushes, to the uplink.
fn push() -> Text {
    let ip = select(vec![
        "dl_type=0x0800),ipv4(src=172.16.0.1,dst=172.16.0.2,proto=17,tos=0x8,ttl=64,frag=0x4000)",
        "dl_type=0x0800),ipv4(src=172.16.0.1,dst=172.16.0.2,proto=17,tos=0,ttl=255,frag=0x0)",
        "dl_type=0x86dd),ipv6(src=fe80::1,dst=2001:db8::2,label=0,proto=17,tclass=0x3,hlimit=64)",
    ]);
    let options = select(vec![
        "vni=0x1c7",
        "vni=0xffffff,options({class=0x102,type=0x1,len=0})",
        "crit,vni=0x1c7,options({class=0x102,type=0x80,len=4,0x50007}{class=0xffff,type=0x1,len=8,0x102030405})",
    ]);
    (any::<bool>(), ip, options, 0..2_u16, select(vec!["0x0", "0x0", "0xffff"]))
        .prop_map(|(is_vxlan, ip, options, src, csum)| {
            let (port, udp, header) = match is_vxlan {
                true => ("vxlan_sys_4789", 4789, "vxlan(flags=0x8000000,vni=0x64)".to_owned()),
                false => ("genev_sys_6081", 6081, format!("geneve({options})")),
            };
            format!(
                "tnl_push(tnl_port({port}),header(size=50,type=4,eth(dst=02:00:00:00:00:0b,src=02:00:00:00:00:0a,{ip},\
                 udp(src={src},dst={udp},csum={csum}),{header}),out_port(br-phy)),nic0"
            )
        })
        .boxed()
}

/// A tunnel that the kernel's datapath makes.
fn kernel() -> Text {
    let ports = select(vec![("vxlan_sys_4789", 4789), ("genev_sys_6081", 6081)]);
    let flags = select(vec!["df|key", "key", "df|csum|key"]);
    (ports, 0..1_u32 << 24, 1..=255_u8, flags)
        .prop_map(|((port, udp), id, ttl, flags)| {
            format!("set(tunnel(tun_id={id:#x},dst=172.16.0.2,tos=0x1,ttl={ttl},tp_dst={udp},flags({flags}))),{port}")
        })
        .boxed()
}
