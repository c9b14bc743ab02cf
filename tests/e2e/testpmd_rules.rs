//! Every rule can be printed in the syntax of DPDK's test program, reads back as the same rule, and is taken by that program's own parser.

use std::time::Duration;

use anyhow::{Result, ensure};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use ringspan_protocol::rte::text::{LONGEST, print, read};
use ringspan_protocol::{Action, Field, FieldMatch, Match, NicPort, Rule, RuleId, TunnelKind, TunnelPush};
use ringspan_testkit::needs;
use ringspan_testkit::testpmd::{Options, Testpmd};

/// Some bits of a field, or all of them.
fn some(field: Field) -> impl Strategy<Value = Option<FieldMatch>> {
    (any::<u128>(), any::<u128>(), 0..4_u8).prop_map(move |(value, mask, how)| {
        let mask = field.mask() & if how == 1 { mask } else { u128::MAX };
        (how > 1).then_some(()).or((how == 1 && mask != 0).then_some(()))?;
        FieldMatch::new(field, value & mask, mask).ok()
    })
}

fn exactly(field: Field, value: u128) -> FieldMatch {
    FieldMatch::exact(field, value).expect("it fits")
}

fn all(fields: &[Field]) -> impl Strategy<Value = Vec<FieldMatch>> + use<> {
    fields.iter().map(|field| some(*field)).collect::<Vec<_>>().prop_map(|all| all.into_iter().flatten().collect())
}

/// Tags as OVS tells them: each is there or not, and how many there are is known.
fn tags() -> impl Strategy<Value = Vec<FieldMatch>> {
    let tag = |tci, tpid: Field| {
        (any::<u16>(), prop::sample::select(vec![0, 0xfff, 0xe000, 0xefff, 0x0f0f]), any::<bool>()).prop_map(
            move |(value, mask, q)| {
                let mask: u128 = mask | 0x1000;
                let tag = FieldMatch::new(tci, u128::from(value) & mask | 0x1000, mask).expect("it fits");
                vec![tag, exactly(tpid, if q { 0x8100 } else { 0x88a8 })]
            },
        )
    };
    let none = |tci| FieldMatch::new(tci, 0, 0x1000).expect("it fits");
    let outer = tag(Field::VlanTci, Field::VlanTpid);
    let both = (tag(Field::VlanTci, Field::VlanTpid), tag(Field::InnerVlanTci, Field::InnerVlanTpid));
    prop_oneof![
        3 => Just(vec![none(Field::VlanTci)]),
        1 => outer.prop_map(move |tag| [tag, vec![none(Field::InnerVlanTci)]].concat()),
        1 => both.prop_map(|(outer, inner)| [outer, inner].concat()),
    ]
}

/// What is behind the tags.
fn network() -> impl Strategy<Value = Vec<FieldMatch>> {
    let ipv4 = |proto: u128, more: &[Field]| {
        let ip = all(&[Field::Ipv4Src, Field::Ipv4Dst, Field::IpTos, Field::IpTtl]);
        let frag = prop::sample::select(vec![0, 1, 3]).prop_map(|frag| vec![exactly(Field::IpFrag, frag)]);
        (ip, all(more), frag).prop_map(move |(ip, more, frag)| {
            [vec![exactly(Field::EthType, 0x800), exactly(Field::IpProto, proto)], ip, more, frag].concat()
        })
    };
    let ipv6 = |proto: u128, more: &[Field]| {
        let ip = all(&[Field::Ipv6Src, Field::Ipv6Dst, Field::Ipv6Label, Field::IpTos, Field::IpTtl, Field::IpFrag]);
        (ip, all(more)).prop_map(move |(ip, more)| {
            [vec![exactly(Field::EthType, 0x86dd), exactly(Field::IpProto, proto)], ip, more].concat()
        })
    };
    let arp = all(&[Field::ArpOp, Field::ArpSpa, Field::ArpTpa, Field::ArpSha, Field::ArpTha]);
    let ports = [Field::SrcPort, Field::DstPort];
    prop_oneof![
        ipv4(6, &[Field::SrcPort, Field::DstPort, Field::TcpFlags]),
        ipv4(17, &ports),
        ipv4(132, &ports),
        ipv4(1, &[Field::IcmpType, Field::IcmpCode]),
        ipv6(6, &[Field::SrcPort, Field::DstPort, Field::TcpFlags]),
        ipv6(17, &ports),
        ipv6(58, &[Field::IcmpType, Field::IcmpCode]),
        arp.prop_map(|arp| [vec![exactly(Field::EthType, 0x806)], arp].concat()),
        (0x600..0xffff_u128)
            .prop_filter("known ones", |kind| ![0x800, 0x806, 0x8100, 0x86dd, 0x88a8].contains(kind))
            .prop_map(|kind| vec![exactly(Field::EthType, kind)]),
    ]
}

fn tunnel() -> impl Strategy<Value = Vec<FieldMatch>> {
    let common =
        || all(&[Field::TunnelId, Field::TunnelTos, Field::TunnelTtl, Field::TunnelSrcPort, Field::TunnelFlags]);
    let v4 = (any::<u32>(), all(&[Field::TunnelIpv4Src, Field::TunnelEthSrc, Field::TunnelEthDst]))
        .prop_map(|(dst, rest)| [vec![exactly(Field::TunnelIpv4Dst, dst.into())], rest].concat());
    let v6 = any::<u128>().prop_map(|dst| vec![exactly(Field::TunnelIpv6Dst, dst)]);
    let inside = (prop::sample::select(vec![TunnelKind::Vxlan, TunnelKind::Geneve]), common(), prop_oneof![v4, v6]);
    let inside = inside.prop_map(|(kind, common, addresses)| {
        let known = [(Field::TunnelKind, kind.number().into()), (Field::TunnelDstPort, kind.port().into())];
        [known.map(|(field, value)| exactly(field, value)).into(), common, addresses].concat()
    });
    prop_oneof![2 => Just(vec![]), 1 => inside]
}

fn push() -> impl Strategy<Value = TunnelPush> {
    let mac = || any::<[u8; 6]>().prop_map(ringspan_protocol::MacAddress);
    let addresses = prop_oneof![
        any::<(u32, u32)>()
            .prop_map(|(src, dst)| (std::net::Ipv4Addr::from(src).into(), std::net::Ipv4Addr::from(dst).into())),
        any::<(u128, u128)>()
            .prop_map(|(src, dst)| (std::net::Ipv6Addr::from(src).into(), std::net::Ipv6Addr::from(dst).into())),
    ];
    let rest = (any::<bool>(), 0..1_u32 << 24, any::<(u8, u8, bool)>(), prop::option::of(1..=u16::MAX), 0..8_u8);
    (mac(), mac(), addresses, rest).prop_map(|(eth_src, eth_dst, addresses, rest)| {
        let (src, dst): (std::net::IpAddr, std::net::IpAddr) = addresses;
        let (is_vxlan, id, (tos, ttl, flag), src_port, odd) = rest;
        let kind = if is_vxlan { TunnelKind::Vxlan } else { TunnelKind::Geneve };
        TunnelPush {
            kind,
            id,
            eth_src,
            eth_dst,
            src,
            dst,
            tos,
            ttl,
            dont_fragment: flag && src.is_ipv4(),
            src_port,
            dst_port: kind.port(),
            checksum: odd == 0,
            options: if odd == 1 && !is_vxlan { "0102030400000000".into() } else { String::new() },
        }
    })
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let port = || prop_oneof![Just(NicPort::Uplink), (0..8_u16).prop_map(NicPort::Vf)];
    let settable = Field::ALL.iter().copied().filter(|field| !field.is_tunnel()).collect::<Vec<_>>();
    let set = (
        prop::sample::select(settable),
        any::<u128>(),
        prop::sample::select(vec![u128::MAX, u128::MAX, 0xfc, 0xfff, 0x5a5]),
    );
    let set = set.prop_filter_map("no bits", |(field, value, mask)| {
        let mask = mask & field.mask() & if field == Field::VlanTci { 0xefff } else { u128::MAX };
        FieldMatch::new(field, value & mask, mask).ok().filter(|_| mask != 0).map(Action::Set)
    });
    let vlan = (any::<bool>(), any::<u16>())
        .prop_map(|(q, tci)| Action::PushVlan { tpid: if q { 0x8100 } else { 0x88a8 }, tci: tci | 0x1000 });
    let step = prop_oneof![
        3 => set,
        1 => vlan,
        1 => Just(Action::PopVlan),
        1 => Just(Action::DecTtl),
        2 => port().prop_map(Action::Output),
        1 => any::<u32>().prop_map(Action::Meter),
    ];
    let outputs =
        (prop::collection::vec(step, 0..6), prop::option::of(push()), port()).prop_map(|(mut steps, push, port)| {
            steps.extend(push.map(|push| Action::TunnelPush(Box::new(push))));
            steps.push(Action::Output(port));
            steps
        });
    prop_oneof![1 => Just(vec![Action::Drop]), 6 => outputs]
}

/// Rules that make sense.
fn rule() -> impl Strategy<Value = Rule> {
    let eth = all(&[Field::EthSrc, Field::EthDst]);
    let port = prop_oneof![Just(NicPort::Uplink), (0..31_u16).prop_map(NicPort::Vf)];
    (any::<u128>(), 0..8_u32, port, (eth, tags(), network(), tunnel()), actions(), any::<bool>()).prop_filter_map(
        "no sense",
        |(id, priority, in_port, (eth, tags, network, tunnel), mut actions, refresh)| {
            if !tunnel.is_empty() && actions != [Action::Drop] {
                actions.insert(0, Action::TunnelPop);
            }
            let matches = Match::new([eth, tags, network, tunnel].concat()).ok()?;
            let wholes = |pair: &[Action]| match pair {
                // The two parts of one field would be read as one.
                [Action::Set(one), Action::Set(two)] => one.field() != two.field(),
                // So would a tag's, and what changes it.
                [Action::PushVlan { .. }, Action::Set(two)] => two.field() != Field::VlanTci,
                _ => true,
            };
            let rule = Rule { id: RuleId(id), priority, in_port, matches, actions, refresh };
            (rule.check().is_ok() && rule.actions.windows(2).all(wholes)).then_some(rule)
        },
    )
}

/// What the test program's syntax has no words for, and may therefore stand in the comment.
const WORDLESS: &[Field] = &[Field::ArpOp, Field::TcpFlags, Field::TunnelFlags, Field::IpFrag];

proptest! {
    #![proptest_config(ProptestConfig { max_global_rejects: 1 << 20, ..ProptestConfig::default() })]
    #[test]
    fn a_rule_that_was_printed_reads_back_as_it_was(rule in rule()) {
        let text = print(&rule).expect("rules of flows can be said");
        prop_assert_eq!(read(&text), Ok(rule), "{}", text);
        for word in text.lines().next().unwrap_or_default().split(" also ").skip(1) {
            let field = word.split('=').next().and_then(|name| name.parse::<Field>().ok());
            prop_assert!(field.is_some_and(|field| WORDLESS.contains(&field)), "{}", text);
        }
    }
}

#[test]
fn dpdks_test_program_takes_every_line() -> Result<()> {
    needs!(Root, Program("dpdk-testpmd"));
    let options = Options { memory_mib: 128, ..Options::new(format!("rules-{}", std::process::id())) };
    // Other devices refuse every rule: what is asked here is whether the line was understood. Rules name ports that are not there.
    let options = options.device("net_null0").arguments(["--total-num-mbufs=2048"]);
    let mut testpmd = Testpmd::start(&options)?;
    let nonsense = testpmd.command("flow create 0 transfer pattern eth / nonsense / end actions drop / end")?;
    ensure!(nonsense.contains("Bad arguments"), "nonsense was taken: {nonsense}");
    let mut runner = TestRunner::deterministic();
    let (rules, mut lines, mut created) = (150, 0, 0);
    for _ in 0..rules {
        let rule = rule().new_tree(&mut runner).map_err(|error| anyhow::anyhow!("{error}"))?.current();
        for line in print(&rule)?.lines().filter(|line| line.len() <= LONGEST) {
            lines += 1;
            let answer = testpmd.command(line)?;
            ensure!(!answer.contains("Bad arguments"), "it was not taken: {answer}");
            created += usize::from(line.starts_with("flow "));
        }
    }
    // A comment and a rule, but for few that are too long for the program's line editor.
    ensure!(lines > rules * 9 / 5, "only {lines} lines were short enough");
    // What was understood goes to the driver, which refuses it.
    let asked = || testpmd.output().matches("Caught PMD error").count();
    let all = || Ok((asked() == created).then_some(()));
    ringspan_testkit::wait::until(Duration::from_secs(20), "the driver to be asked for each rule", all)
}
