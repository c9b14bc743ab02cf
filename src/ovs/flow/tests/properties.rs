//! Whatever flow there is, it prints to text that reads back as the same flow.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::subsequence;
use ringspan::ovs::flow::action::*;
use ringspan::ovs::flow::flags::{CtState, SlowPath, TcpFlags, TunnelFlags};
use ringspan::ovs::flow::key::*;
use ringspan::ovs::flow::masked::Bits;
use ringspan::ovs::flow::push::{OuterIp, OuterUdp, TunnelHeader, TunnelPush};
use ringspan::ovs::flow::tunnel::{Erspan, Gbp, GeneveOption, Gtpu, Tunnel, Vxlan};
use ringspan::ovs::flow::{Actions, Flow, Masked, Names, Offloaded, Stats, Style, Ufid, parse};
use ringspan_protocol::MacAddress;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_flow_prints_and_reads_back(flow in flow()) {
        let text = flow.display(Style::Verbose).to_string();
        let read = parse::flow(&text, 1, Names::Allowed).map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
        prop_assert_eq!(&read, &flow, "{}", text);
        // Without -m wildcards are lost, and nothing else.
        let terse = flow.display(Style::Terse).to_string();
        let read = parse::flow(&terse, 1, Names::Allowed).map_err(|error| TestCaseError::fail(format!("{error}\n{terse}")))?;
        prop_assert_eq!(read.display(Style::Terse).to_string(), terse);
        prop_assert_eq!(read.actions, flow.actions);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[ -~]{0,200}", actions in "[a-z0-9_(),=/.:{}+-]{0,200}") {
        let _ = parse::flow(&text, 1, Names::Allowed);
        if let Ok(flow) = parse::flow(&super::doing(&actions), 1, Names::Allowed) {
            prop_assert_eq!(parse::flow(&flow.to_string(), 1, Names::Allowed), Ok(flow));
        }
    }

    /// Groups and gaps of any number and length; those that are an address are so to Rust, too.
    #[test]
    fn an_ipv6_address_is_what_rust_takes_for_one(text in "(([0-9a-f]{1,5}|0|1\\.2\\.3\\.4):{0,3}){0,9}|:{0,3}([0-9a-f]{1,4}:{1,2}){0,8}[0-9a-f]{0,4}") {
        let flow = parse::flow(&super::matching(&format!("ipv6(src={text})")), 1, Names::None);
        let read = flow.ok().map(|flow| match &flow.keys[..] {
            [Key::Ipv6(ip)] => ip.src.value,
            other => panic!("{other:?}"),
        });
        prop_assert_eq!(read, text.parse().ok());
    }
}

fn masked<T: Bits + std::fmt::Debug + 'static>(
    value: impl Strategy<Value = T> + Clone,
) -> impl Strategy<Value = Masked<T>> {
    let mask = prop_oneof![Just(T::ONES), Just(T::ZERO), value.clone()];
    (value, mask).prop_map(|(value, mask)| Masked { value, mask })
}

fn number<T: Bits + Arbitrary + 'static>() -> impl Strategy<Value = Masked<T>>
where
    T::Strategy: Clone,
{
    masked(any::<T>())
}

/// A number narrower than its type, with all its bits or any.
fn narrow<T: Bits + std::fmt::Debug + 'static>(
    all: impl Strategy<Value = T> + Clone,
    full: T,
) -> impl Strategy<Value = Masked<T>> {
    let mask = prop_oneof![Just(full), Just(T::ZERO), all.clone()];
    (all, mask).prop_map(|(value, mask)| Masked { value, mask })
}

fn mac() -> impl Strategy<Value = MacAddress> + Clone {
    any::<[u8; 6]>().prop_map(MacAddress)
}

fn ipv6() -> impl Strategy<Value = Ipv6Addr> + Clone {
    let zeros = (any::<u128>(), 0_u32..128).prop_map(|(bits, shift)| Ipv6Addr::from_bits(bits >> shift));
    prop_oneof![any::<u128>().prop_map(Ipv6Addr::from_bits), zeros]
}

fn port() -> impl Strategy<Value = PortRef> + Clone {
    let name = "[a-z][a-z0-9_.-]{0,14}".prop_filter("an action", |name| {
        let words = ["drop", "ct", "set", "ct_clear", "hash", "clone", "meter", "trunc", "sample", "recirc"];
        !words.contains(&name.as_str())
            && !name.starts_with("action")
            && !name.contains("pop_")
            && !name.contains("push_")
    });
    prop_oneof![any::<u32>().prop_map(PortRef::Number), name.prop_map(|name| PortRef::Name(name.into()))]
}

fn fragment() -> BoxedStrategy<Option<Fragment>> {
    of(prop_oneof![Just(Fragment::No), Just(Fragment::First), Just(Fragment::Later)]).boxed()
}

/// Flags that do not count are not printed.
fn tcp_flags() -> BoxedStrategy<Masked<TcpFlags>> {
    narrow(0_u16..0x1000, 0xfff)
        .prop_map(|Masked { value, mask }| Masked { value: TcpFlags(value & mask), mask: TcpFlags(mask) })
        .boxed()
}

fn unknown() -> BoxedStrategy<UnknownKey> {
    (50_u16.., vec(any::<[u8; 2]>(), 0..4), any::<bool>())
        .prop_map(|(attribute, bytes, masked)| UnknownKey {
            attribute,
            value: bytes.iter().map(|pair| pair[0]).collect(),
            mask: masked.then(|| bytes.iter().map(|pair| pair[1]).collect()),
        })
        .boxed()
}

fn geneve() -> BoxedStrategy<GeneveOption> {
    (number(), number(), 0_u8..4, any::<[u8; 12]>(), any::<[u8; 12]>(), 0_usize..3)
        .prop_map(|(class, kind, words, data, mask, how)| {
            let length = usize::from(words) * 4;
            let data_mask: Box<[u8]> = [[0_u8; 12], [0xff; 12], mask][how][..length].into();
            let len = Masked::exact(words * 4);
            // What does not count and is not printed without -m is zero there.
            GeneveOption { class, kind, len, data: data[..length].into(), data_mask }
        })
        .boxed()
}

fn erspan() -> BoxedStrategy<Erspan> {
    prop_oneof![
        number().prop_map(|index| Erspan::V1 { version_mask: 0xff, index }),
        (number(), number()).prop_map(|(dir, hwid)| Erspan::V2 { version_mask: 0xff, dir, hwid }),
    ]
    .boxed()
}

fn tunnel() -> BoxedStrategy<Tunnel> {
    let addresses = (
        of(number()),
        of(masked(any::<Ipv4Addr>())),
        of(masked(any::<Ipv4Addr>())),
        of(masked(ipv6())),
        of(masked(ipv6())),
    );
    let header = (of(number()), of(number()), of(number()), of(number()));
    let gbp = (number(), number()).prop_map(|(id, flags)| Gbp { id, flags });
    let vxlan = (of(gbp), vec(unknown(), 0..2)).prop_map(|(gbp, unknown)| Vxlan { gbp, unknown });
    let gtpu = (number(), number()).prop_map(|(flags, msgtype)| Gtpu { flags, msgtype });
    let options = (of(vxlan), of(vec(geneve(), 0..3)), of(erspan()), of(gtpu), vec(unknown(), 0..2));
    let flags = narrow(0_u8..16, 0xf);
    (addresses, header, options, flags)
        .prop_map(|(addresses, header, options, flags)| {
            let (id, src, dst, ipv6_src, ipv6_dst) = addresses;
            let (tos, ttl, tp_src, tp_dst) = header;
            let (vxlan, geneve, erspan, gtpu, unknown) = options;
            let flags = Masked { value: TunnelFlags(flags.value & flags.mask), mask: TunnelFlags(flags.mask) };
            Tunnel {
                any_tos: false,
                any_tp_src: false,
                id,
                src,
                dst,
                ipv6_src,
                ipv6_dst,
                tos,
                ttl,
                tp_src,
                tp_dst,
                vxlan,
                geneve,
                erspan,
                gtpu,
                flags,
                unknown,
            }
        })
        .boxed()
}

fn vlan() -> BoxedStrategy<Vlan> {
    (narrow(0_u16..4096, 0xfff), narrow(0_u8..8, 7), any::<bool>())
        .prop_map(|(vid, pcp, cfi)| Vlan { vid, pcp, cfi })
        .boxed()
}

fn label() -> BoxedStrategy<MplsLabel> {
    (narrow(0_u32..1 << 20, 0xf_ffff), narrow(0_u8..8, 7), number(), narrow(0_u8..2, 1))
        .prop_map(|(label, tc, ttl, bos)| MplsLabel { label, tc, ttl, bos })
        .boxed()
}

fn ipv4_header() -> BoxedStrategy<Ipv4> {
    (masked(any::<Ipv4Addr>()), masked(any::<Ipv4Addr>()), number(), number(), number(), fragment())
        .prop_map(|(src, dst, proto, tos, ttl, frag)| Ipv4 { src, dst, proto, tos, ttl, frag })
        .boxed()
}

fn ipv6_header() -> BoxedStrategy<Ipv6> {
    (masked(ipv6()), masked(ipv6()), narrow(0_u32..1 << 20, 0xf_ffff), number(), number(), number(), fragment())
        .prop_map(|(src, dst, label, proto, tclass, hlimit, frag)| Ipv6 {
            src,
            dst,
            label,
            proto,
            tclass,
            hlimit,
            frag,
        })
        .boxed()
}

fn l4() -> BoxedStrategy<L4Ports> {
    (number(), number()).prop_map(|(src, dst)| L4Ports { src, dst }).boxed()
}

fn icmp() -> BoxedStrategy<Icmp> {
    (number(), number()).prop_map(|(kind, code)| Icmp { kind, code }).boxed()
}

fn arp() -> BoxedStrategy<Arp> {
    (masked(any::<Ipv4Addr>()), masked(any::<Ipv4Addr>()), number(), masked(mac()), masked(mac()))
        .prop_map(|(sip, tip, op, sha, tha)| Arp { sip, tip, op, sha, tha })
        .boxed()
}

fn tuple<A: Bits + std::fmt::Debug + 'static>(
    address: impl Strategy<Value = A> + Clone,
) -> impl Strategy<Value = CtTuple<A>> {
    (masked(address.clone()), masked(address), number(), number(), number())
        .prop_map(|(src, dst, proto, src_port, dst_port)| CtTuple { src, dst, proto, src_port, dst_port })
}

/// Every kind of key that may stand in a set: each once at most.
fn packet_keys() -> BoxedStrategy<Vec<Key>> {
    let link = (masked(mac()), masked(mac())).prop_map(|(src, dst)| Key::Eth { src, dst });
    let nd = (masked(ipv6()), masked(mac()), masked(mac()))
        .prop_map(|(target, sll, tll)| Key::Nd(Box::new(Nd { target, sll, tll })));
    let all = (
        link,
        number().prop_map(Key::EthType),
        vlan().prop_map(Key::Vlan),
        vec(label(), 1..4).prop_map(Key::Mpls),
        ipv4_header().prop_map(Key::Ipv4),
        ipv6_header().prop_map(|ip| Key::Ipv6(Box::new(ip))),
        (
            l4().prop_map(Key::Tcp),
            l4().prop_map(Key::Udp),
            l4().prop_map(Key::Sctp),
            tcp_flags().prop_map(Key::TcpFlags),
        ),
        (icmp().prop_map(Key::Icmp), icmp().prop_map(Key::Icmpv6)),
        arp().prop_map(|arp| Key::Arp(Box::new(arp))),
        nd,
        (any::<u32>(), number()).prop_map(|(reserved, options_type)| Key::NdExt { reserved, options_type }),
        unknown().prop_map(|key| Key::Unknown(Box::new(key))),
    );
    all.prop_flat_map(
        |(eth, kind, vlan, mpls, v4, v6, (tcp, udp, sctp, flags), (icmp, icmpv6), arp, nd, nd_ext, unknown)| {
            subsequence(
                vec![eth, kind, vlan, mpls, v4, v6, tcp, udp, sctp, flags, icmp, icmpv6, arp, nd, nd_ext, unknown],
                1..=6,
            )
        },
    )
    .boxed()
}

fn metadata_keys() -> BoxedStrategy<Vec<Key>> {
    let ct_state = number::<u32>()
        .prop_map(|m| Key::CtState(Masked { value: CtState(m.value & m.mask & 0xff), mask: CtState(m.mask & 0xff) }));
    let in_port = prop_oneof![
        port().prop_map(|port| Key::InPort { port, mask: u32::MAX }),
        (any::<u32>(), any::<u32>()).prop_map(|(port, mask)| Key::InPort { port: PortRef::Number(port), mask }),
    ];
    let all = (
        (number().prop_map(Key::RecircId), number().prop_map(Key::DpHash), number().prop_map(Key::SkbPriority)),
        number().prop_map(Key::SkbMark),
        ct_state,
        (number().prop_map(Key::CtZone), number().prop_map(Key::CtMark), number().prop_map(Key::CtLabel)),
        tuple(any::<Ipv4Addr>()).prop_map(|tuple| Key::CtTuple4(Box::new(tuple))),
        tuple(ipv6()).prop_map(|tuple| Key::CtTuple6(Box::new(tuple))),
        tunnel().prop_map(|tunnel| Key::Tunnel(Box::new(tunnel))),
        in_port,
        (number(), number()).prop_map(|(ns, id)| Key::PacketType { ns, id }),
    );
    all.prop_flat_map(
        |((recirc, hash, priority), mark, state, (zone, ct_mark, label), tuple4, tuple6, tunnel, in_port, kind)| {
            subsequence(
                vec![recirc, hash, priority, mark, state, zone, ct_mark, label, tuple4, tuple6, tunnel, in_port, kind],
                1..=6,
            )
        },
    )
    .boxed()
}

fn keys() -> BoxedStrategy<Vec<Key>> {
    let tail = prop_oneof![
        packet_keys(),
        (packet_keys(), packet_keys()).prop_map(|(mut keys, inner)| {
            keys.push(Key::Encap(inner));
            keys
        }),
    ];
    (metadata_keys(), tail).prop_map(|(keys, tail)| [keys, tail].concat()).boxed()
}

/// What is set has full masks, or is printed with them; what does not count would be lost.
fn set() -> BoxedStrategy<Action> {
    let full = prop_oneof![
        (mac(), mac()).prop_map(|(src, dst)| Key::Eth { src: Masked::exact(src), dst: Masked::exact(dst) }),
        number().prop_filter("counts", |m| !m.is_wildcard()).prop_map(Key::SkbMark),
        any::<u8>().prop_map(|ttl| Key::Ipv4(Ipv4 { ttl: Masked::exact(ttl), ..Ipv4::default() })),
        (any::<u16>(), 1_u16..)
            .prop_map(|(value, mask)| Key::Udp(L4Ports { dst: Masked { value, mask }, ..L4Ports::default() })),
        (any::<u64>(), any::<Ipv4Addr>(), 0_u8..16, of(any::<u32>())).prop_map(|(id, dst, flags, index)| {
            let flags = Masked { value: TunnelFlags(flags), mask: TunnelFlags(0xf) };
            let erspan = index.map(|index| Erspan::V1 { version_mask: 0xff, index: Masked::exact(index) });
            let (id, dst) = (Some(Masked::exact(id)), Some(Masked::exact(dst)));
            Key::Tunnel(Box::new(Tunnel { id, dst, flags, erspan, ..Tunnel::default() }))
        }),
        any::<[u8; 4]>().prop_map(|[flags, ttl, si, c]| {
            let context = [Masked::exact(c.into()), Masked { value: 1, mask: 3 }, Masked::default(), Masked::default()];
            let (flags, ttl, si) = (Masked::exact(flags), Masked { value: ttl, mask: 0x7f }, Masked::exact(si));
            Key::Nsh(Box::new(Nsh { flags, ttl, si, context, ..Nsh::default() }))
        }),
    ];
    full.prop_map(|key| Action::Set(Box::new(key))).boxed()
}

fn nat() -> BoxedStrategy<Nat> {
    let v4 = (any::<u32>(), any::<u16>()).prop_map(|(low, more)| {
        let pair = [low, low.saturating_add(more.into())].map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)));
        (Some(pair[0]), (pair[1] > pair[0]).then_some(pair[1]))
    });
    let v6 = (any::<u128>(), any::<u16>()).prop_map(|(low, more)| {
        let pair = [low, low.saturating_add(more.into())].map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)));
        (Some(pair[0]), (pair[1] > pair[0]).then_some(pair[1]))
    });
    let ports = of((1_u16.., any::<u16>()).prop_map(|(low, more)| (low, low.saturating_add(more))));
    let range = (prop_oneof![v4, v6, Just((None, None))], ports, any::<[bool; 3]>());
    let range = range.prop_map(|((address_min, address_max), ports, [persistent, hash, random])| {
        let ports = ports.filter(|_| address_min.is_some());
        let (port_min, port_max) = (ports.map(|p| p.0), ports.filter(|p| p.1 > p.0).map(|p| p.1));
        NatRange { address_min, address_max, port_min, port_max, persistent, hash, random }
    });
    prop_oneof![Just(Nat::Existing), range.clone().prop_map(Nat::Src), range.prop_map(Nat::Dst)].boxed()
}

fn conntrack() -> BoxedStrategy<Conntrack> {
    let name = || of("[a-z0-9_]{1,15}".prop_filter("ends in nat", |name| !name.ends_with("nat")).prop_map(Box::from));
    (any::<bool>(), any::<bool>(), any::<u16>(), of(number()), of(number()), name(), name(), of(nat()))
        .prop_map(|(commit, force_commit, zone, mark, label, helper, timeout, nat)| Conntrack {
            commit,
            force_commit,
            zone,
            mark,
            label,
            helper,
            timeout,
            nat,
        })
        .boxed()
}

fn cookie() -> BoxedStrategy<Cookie> {
    let direction = of(prop_oneof![Just(Direction::Ingress), Just(Direction::Egress)]);
    let sample =
        (any::<u16>(), any::<[u32; 3]>(), port(), direction).prop_map(|(probability, ids, output_port, direction)| {
            let [collector_set_id, obs_domain_id, obs_point_id] = ids;
            Cookie::FlowSample { probability, collector_set_id, obs_domain_id, obs_point_id, output_port, direction }
        });
    let controller = (any::<[u16; 3]>(), any::<[bool; 2]>(), any::<u32>(), any::<u64>());
    prop_oneof![
        (0_u16..4096, 0_u8..8, any::<u32>()).prop_map(|(vid, pcp, output)| Cookie::Sflow { vid, pcp, output }),
        any::<u32>().prop_map(|reason| Cookie::SlowPath(SlowPath(reason))),
        sample,
        port().prop_map(|output_port| Cookie::Ipfix { output_port }),
        controller.prop_map(|([reason, controller_id, max_len], [dont_send, continuation], recirc_id, rule_cookie)| {
            Cookie::Controller { reason, dont_send, continuation, recirc_id, rule_cookie, controller_id, max_len }
        }),
        vec(any::<u8>(), 0..40).prop_map(Cookie::Data),
    ]
    .boxed()
}

/// Bytes as a number prints them: without a leading zero.
fn long_number() -> BoxedStrategy<Box<[u8]>> {
    vec(any::<u8>(), 0..20).prop_map(|bytes| bytes.into_iter().skip_while(|byte| *byte == 0).collect()).boxed()
}

fn tunnel_push() -> BoxedStrategy<TunnelPush> {
    let udp = || any::<[u16; 3]>().prop_map(|[src, dst, csum]| OuterUdp { src, dst, csum });
    let ip = prop_oneof![
        (any::<[Ipv4Addr; 2]>(), any::<[u8; 3]>(), any::<u16>())
            .prop_map(|([src, dst], [proto, tos, ttl], frag)| OuterIp::V4 { src, dst, proto, tos, ttl, frag }),
        (ipv6(), ipv6(), 0_u32..1 << 20, any::<[u8; 3]>()).prop_map(|(src, dst, label, [proto, tclass, hlimit])| {
            OuterIp::V6 { src, dst, label, proto, tclass, hlimit }
        }),
    ];
    let option = geneve().prop_map(|option| GeneveOption {
        class: Masked::exact(option.class.value),
        kind: Masked::exact(option.kind.value),
        data_mask: vec![0xff; option.data.len()].into(),
        ..option
    });
    let header = prop_oneof![
        (udp(), any::<u32>(), 0_u32..1 << 24).prop_map(|(udp, flags, vni)| TunnelHeader::Vxlan { udp, flags, vni }),
        (udp(), any::<[bool; 2]>(), 0_u32..1 << 24, of(vec(option, 1..3)))
            .prop_map(|(udp, [oam, critical], vni, options)| TunnelHeader::Geneve { udp, oam, critical, vni, options }),
        (any::<[u16; 2]>(), of(any::<u16>()), of(any::<u32>()), of(any::<u32>()))
            .prop_map(|([flags, proto], csum, key, seq)| TunnelHeader::Gre { flags, proto, csum, key, seq }),
        any::<(u16, u32)>().prop_map(|(sid, index)| TunnelHeader::Erspan1 { sid, index }),
        any::<(u16, u8, u8)>().prop_map(|(sid, dir, hwid)| TunnelHeader::Erspan2 { sid, dir, hwid }),
        (udp(), any::<(u8, u8, u32)>()).prop_map(|(udp, (flags, msgtype, teid))| TunnelHeader::Gtpu {
            udp,
            flags,
            msgtype,
            teid
        }),
        (any::<u8>(), vec(ipv6(), 1..4))
            .prop_map(|(segments_left, segments)| TunnelHeader::Srv6 { segments_left, segments }),
    ];
    (port(), any::<(u32, u32, u16)>(), mac(), mac(), ip, header, port())
        .prop_map(|(tunnel_port, (size, kind, eth_type), eth_dst, eth_src, ip, header, out_port)| TunnelPush {
            tunnel_port,
            size,
            kind,
            eth_dst,
            eth_src,
            eth_type,
            ip,
            header,
            out_port,
        })
        .boxed()
}

fn push_mpls() -> BoxedStrategy<PushMpls> {
    (0_u32..1 << 20, 0_u8..8, any::<u8>(), 0_u8..2, any::<u16>())
        .prop_map(|(label, tc, ttl, bos, eth_type)| PushMpls { label, tc, ttl, bos, eth_type })
        .boxed()
}

fn simple_action() -> BoxedStrategy<Action> {
    let userspace =
        (any::<u32>(), of(cookie()), any::<bool>(), of(port())).prop_map(|(pid, cookie, actions, tunnel_out_port)| {
            Action::Userspace(Box::new(Userspace { pid, cookie, actions, tunnel_out_port }))
        });
    let vlan = (any::<u16>(), 0_u16..4096, 0_u8..8, any::<bool>())
        .prop_map(|(tpid, vid, pcp, cfi)| Action::PushVlan(PushVlan { tpid, vid, pcp, cfi }));
    let metadata = prop_oneof![any::<[u32; 4]>().prop_map(NshMetadata::Md1), long_number().prop_map(NshMetadata::Md2)];
    let nsh = (any::<[u8; 4]>(), 0_u32..1 << 24, metadata).prop_map(|([flags, ttl, np, si], spi, metadata)| {
        Action::PushNsh(Box::new(PushNsh { flags, ttl, np, spi, si, metadata }))
    });
    let numbers = prop_oneof![
        any::<u32>().prop_map(Action::Recirc),
        any::<u32>().prop_map(Action::Meter),
        any::<u32>().prop_map(Action::Trunc),
        any::<u32>().prop_map(Action::LbOutput),
        any::<u16>().prop_map(|eth_type| Action::PopMpls { eth_type }),
        any::<u32>().prop_map(|basis| Action::Hash { algorithm: HashAlgorithm::L4, basis }),
        any::<u32>().prop_map(|basis| Action::Hash { algorithm: HashAlgorithm::SymL4, basis }),
    ];
    prop_oneof![
        port().prop_map(Action::Output),
        prop::sample::select(vec![Action::Drop, Action::PopVlan, Action::PopEth, Action::PopNsh, Action::CtClear]),
        userspace,
        set(),
        vlan,
        push_mpls().prop_map(Action::PushMpls),
        push_mpls().prop_map(Action::AddMpls),
        numbers,
        conntrack().prop_map(|ct| Action::Ct(Box::new(ct))),
        tunnel_push().prop_map(|push| Action::TunnelPush(Box::new(push))),
        port().prop_map(Action::TunnelPop),
        nsh,
        (mac(), mac()).prop_map(|(src, dst)| Action::PushEth { src, dst }),
        (of(any::<u32>()), of(long_number())).prop_map(|(group, cookie)| Action::Psample { group, cookie }),
        (50_u16.., vec(any::<u8>(), 0..6)).prop_map(|(attribute, data)| Action::Unknown { attribute, data }),
    ]
    .boxed()
}

fn actions() -> BoxedStrategy<Actions> {
    let nested = simple_action().prop_recursive(3, 24, 4, |inner| {
        let list = || vec(inner.clone(), 1..4);
        prop_oneof![
            // Tenths of a percent, as the text has them.
            (0_u64..=1000, list()).prop_map(|(share, actions)| Action::Sample {
                probability: ((share * u64::from(u32::MAX) + 500) / 1000) as u32,
                actions,
            }),
            list().prop_map(Action::Clone),
            (any::<u16>(), list(), list()).prop_map(|(size, greater, less_or_equal)| Action::CheckPktLen {
                size,
                greater,
                less_or_equal
            }),
            list().prop_map(Action::DecTtl),
        ]
    });
    vec(nested, 1..6).boxed()
}

fn flow() -> BoxedStrategy<Flow> {
    let stats = (any::<u64>(), any::<u64>(), of(-1_000_000_i64..1 << 40), 0_u16..0x1000)
        .prop_map(|(packets, bytes, used, flags)| Stats { packets, bytes, used, flags: TcpFlags(flags) });
    let offloaded = of(prop_oneof![Just(Offloaded::Yes), Just(Offloaded::Partial)]);
    let layer = of(prop_oneof![Just("ovs"), Just("tc"), Just("dpdk")].prop_map(Box::from));
    let extra = of("[a-z_]{1,12}\\([0-9]{1,2},[0-9]{1,2}\\)".prop_map(Box::from));
    (of(any::<u128>().prop_map(Ufid)), keys(), stats, offloaded, layer, actions(), extra)
        .prop_map(|(ufid, keys, stats, offloaded, layer, actions, extra)| Flow {
            ufid,
            keys,
            stats,
            offloaded,
            layer,
            actions,
            extra,
        })
        .boxed()
}
