//! Lines, what they mean, and that they print back.

use ringspan::ovs::flow::action::{Action, Cookie};
use ringspan::ovs::flow::key::{Fragment, PortRef, Vlan};
use ringspan::ovs::flow::{Key, Line, Masked, Names, Offloaded, Reason, Style, Ufid, parse};

use super::{doing, entries, matching, read};

#[test]
fn every_line_comes_back() {
    for line in entries(include_str!("lines.txt")) {
        assert_eq!(read(line).to_string(), line);
    }
}

#[test]
fn a_flow_is_what_its_line_says() {
    let flow = read(entries(include_str!("lines.txt")).next().unwrap());
    assert_eq!(flow.ufid, Some(Ufid(0xa6faf8bd_5c17_4d9a_8bc6_5b4cbf2c9ec1)));
    assert_eq!((flow.stats.packets, flow.stats.bytes), (1_234_567_890_123, 98_765_432_109_876));
    assert_eq!((flow.stats.used, flow.stats.flags.0), (Some(4), 0x1f));
    assert_eq!((flow.offloaded, flow.layer.as_deref()), (Some(Offloaded::Yes), Some("tc")));
    assert_eq!(flow.actions, [Action::Output(PortRef::Name("eth1_rep".into()))]);
    assert!(flow.keys.contains(&Key::InPort { port: PortRef::Name("eth0".into()), mask: u32::MAX }));
    assert!(flow.keys.contains(&Key::CtLabel(Masked { value: 0, mask: 1 })));
    let Some(Key::Ipv4(ip)) = flow.keys.iter().find(|key| matches!(key, Key::Ipv4(_))) else { panic!("no ipv4") };
    assert_eq!(ip.src, Masked { value: [10, 0, 0, 0].into(), mask: [255, 255, 255, 0].into() });
    assert_eq!((ip.dst, ip.proto), (Masked::exact([10, 0, 1, 5].into()), Masked::exact(6)));
    assert_eq!((ip.tos, ip.ttl), (Masked { value: 0, mask: 3 }, Masked { value: 64, mask: 0 }));
    assert_eq!(ip.frag, Some(Fragment::No));
}

#[test]
fn the_kernels_ufid_is_the_one_that_is_printed() {
    let mut bytes = [0; 16];
    for (index, word) in [0xa6faf8bd_u32, 0x5c174d9a, 0x8bc65b4c, 0xbf2c9ec1].into_iter().enumerate() {
        bytes[index * 4..][..4].copy_from_slice(&word.to_ne_bytes());
    }
    assert_eq!(Ufid::from_netlink(bytes).to_string(), "a6faf8bd-5c17-4d9a-8bc6-5b4cbf2c9ec1");
}

#[test]
fn without_wildcards_only_what_is_matched_stays() {
    let flow = read(entries(include_str!("lines.txt")).next().unwrap()).without_wildcards();
    let text = flow.keys.iter().map(Key::to_string).collect::<Vec<_>>().join(" ");
    assert!(text.starts_with("recirc_id(0) in_port(eth0) ct_state(0/0x23) ct_label(0/0x1) eth("), "{text}");
    assert_eq!(flow.keys.len(), 7, "{text}");
    // Without -m OVS says no more either.
    assert_eq!(
        read(&flow.display(Style::Terse).to_string()).display(Style::Terse).to_string(),
        flow.display(Style::Terse).to_string()
    );
}

#[test]
fn a_flow_that_matches_everything_has_no_keys_without_m() {
    let flow = read("skb_mark(0/0),in_port(1/0), packets:0, bytes:0, used:never, actions:drop");
    let terse = flow.display(Style::Terse).to_string();
    assert_eq!(terse, ", packets:0, bytes:0, used:never, actions:drop");
    assert_eq!(read(&terse).keys, []);
}

#[test]
fn drop_is_an_action_like_others() {
    assert_eq!(read(&doing("drop")).actions, [Action::Drop]);
    let mut nothing = read(&doing("drop"));
    nothing.actions.clear();
    assert_eq!(nothing.to_string(), doing("drop"));
    assert_eq!(read(&doing("clone(drop),1")).actions[0], Action::Clone(vec![Action::Drop]));
}

#[test]
fn a_vlan_without_a_tag_is_told_from_vlan_0() {
    let vlan = |text: &str| match &read(&matching(text)).keys[0] {
        Key::Vlan(vlan) => *vlan,
        other => panic!("{other}"),
    };
    let (vid, pcp) = (Masked { value: 0, mask: 0xfff }, Masked { value: 0, mask: 7 });
    assert_eq!(vlan("vlan(vid=0,pcp=0)"), Vlan { vid, pcp, cfi: true });
    assert_eq!(vlan("vlan(vid=0,pcp=0,cfi=0)"), Vlan { vid, pcp, cfi: false });
}

#[test]
fn an_old_switch_forgets_a_comma_behind_a_timeout() {
    let flow = read(&doing("ct(commit,timeout=shortnat(src=1.2.3.4)),2"));
    assert_eq!(flow.to_string(), doing("ct(commit,timeout=short,nat(src=1.2.3.4)),2"));
}

#[test]
fn a_tunnels_fields_may_stand_in_any_order() {
    let flow = read(&doing("set(tunnel(dst=1.2.3.4,tun_id=0x5,flags(key),ttl=64)),2"));
    assert_eq!(flow.to_string(), doing("set(tunnel(tun_id=0x5,dst=1.2.3.4,ttl=64,flags(key))),2"));
}

#[test]
fn ports_have_names_only_where_they_may() {
    let named = doing("br-int,vxlan_sys_4789,p0.100,2nd");
    assert_eq!(read(&named).to_string(), named);
    assert!(parse::flow(&named, 1, Names::None).unwrap_err().reason.starts_with("unknown action or port: \"br-int"));
    assert!(parse::flow(&matching("in_port(p1)"), 1, Names::None).is_err());
    assert!(parse::flow(&doing("1,2"), 1, Names::None).is_ok());
}

#[test]
fn a_dump_has_headings() {
    let dump =
        format!("flow-dump from the main thread:\n{0}\n\nflow-dump from pmd on cpu core: 12\r\n{0}\n", doing("1"));
    let lines: Vec<Line> = parse::dump(&dump, Names::None).collect::<Result<_, _>>().unwrap();
    assert_eq!([&lines[0], &lines[2]], [&Line::Thread(None), &Line::Thread(Some(12))]);
    assert_eq!(lines[2].to_string(), "flow-dump from pmd on cpu core: 12");
    assert!(matches!(&lines[..], [_, Line::Flow(_), _, Line::Flow(_)]));
}

#[test]
fn what_goes_along_to_ovs_is_read() {
    let flow = read(&doing(
        "userspace(pid=7,flow_sample(probability=1,collector_set_id=2,obs_domain_id=3,obs_point_id=4,output_port=p2,egress),actions,tunnel_out_port=t0)",
    ));
    let Action::Userspace(userspace) = &flow.actions[0] else { panic!("{flow}") };
    assert!(userspace.actions);
    assert_eq!(userspace.tunnel_out_port, Some(PortRef::Name("t0".into())));
    assert!(matches!(userspace.cookie, Some(Cookie::FlowSample { obs_point_id: 4, .. })));
}

#[test]
fn what_an_engine_can_do_has_no_obstacle() {
    let keys = "skb_priority(0/0),skb_mark(0/0),ct_state(0x21/0),recirc_id(0),dp_hash(0x5/0),\
                tunnel(tun_id=0x7b,src=1.2.3.4,dst=4.3.2.1,ttl=64/0,flags(-df-csum+key)),in_port(1),packet_type(ns=0,id=0),\
                eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x88a8),vlan(vid=5,pcp=0),\
                encap(eth_type(0x8100),vlan(vid=6,pcp=0),encap(eth_type(0x0800),ipv4(proto=6,frag=no),tcp(dst=80),tcp_flags(+syn)))";
    assert_eq!(read(&matching(keys)).obstacles(), []);
    let actions = "meter(1),set(eth(dst=02:00:00:00:00:03)),set(ipv4(ttl=63)),push_vlan(vid=5,pcp=0),2,pop_vlan,dec_ttl(le_1(drop)),\
                   clone(set(tunnel(tun_id=0x5,dst=1.2.3.4,ttl=64,tp_dst=4789,flags(df|key))),4)";
    assert_eq!(read(&doing(actions)).obstacles(), []);
    assert_eq!(read(&doing(actions)).first_reason(), None);
}

#[test]
fn each_obstacle_has_its_reason() {
    use Reason::*;
    let keys = [
        ("recirc_id(0x5)", MatchRecirculated),
        ("dp_hash(0/0x1)", MatchHash),
        ("skb_mark(0x1)", MatchMetadata),
        ("ct_state(+trk)", MatchConntrack),
        ("ct_tuple4(proto=6)", MatchConntrack),
        ("in_port(1/0x3)", MatchInPortMask),
        ("packet_type(ns=1,id=0x800)", MatchPacketType),
        ("eth_type(0/0xffff)", MatchNoEthertype),
        ("vlan(vid=0,pcp=0,cfi=0)", MatchNoEthertype),
        ("encap(encap(encap(eth_type(0x0800))))", MatchVlanDepth),
        ("encap(mpls(label=5,tc=0,ttl=64,bos=1))", MatchMpls),
        ("nsh(spi=0x5)", MatchNsh),
        ("ipv6(label=0x5)", MatchIpv6Label),
        ("nd_ext(nd_reserved=0x1)", MatchNd),
        ("tunnel(geneve({class=0x1,type=0x2,len=0}))", MatchTunnelOptions),
        ("tunnel(vxlan(gbp(id=1)))", MatchTunnelOptions),
        ("tunnel(flags(+oam))", MatchTunnelHeader),
        ("key99(01)", MatchUnknown),
    ];
    let actions = [
        ("ct(commit)", ActionConntrack),
        ("recirc(0x1)", ActionRecirculate),
        ("userspace(pid=0)", ActionUserspace),
        ("lb_output(1)", ActionHash),
        ("sample(sample=1.0%,actions(2))", ActionSample),
        ("clone(2),1", ActionClone),
        ("check_pkt_len(size=5,gt(1),le(2))", ActionLength),
        ("pop_mpls(eth_type=0x800)", ActionMpls),
        ("pop_nsh()", ActionNsh),
        ("pop_eth", ActionEthernet),
        ("set(skb_mark(0x1))", ActionSetMetadata),
        ("set(nd(target=fe80::1))", ActionSetField),
        ("set(tunnel(geneve({class=0x1,type=0x2,len=0})))", ActionTunnelOptions),
        ("dec_ttl(le_1(1))", ActionTtlException),
        ("action99", ActionUnknown),
    ];
    let tunnel = read(entries(include_str!("lines.txt")).find(|line| line.contains("srv6")).unwrap());
    assert_eq!(tunnel.first_reason(), Some(ActionTunnelKind));
    let mut seen = vec![ActionTunnelKind];
    for (line, reason) in keys.iter().map(|(k, r)| (matching(k), r)).chain(actions.iter().map(|(a, r)| (doing(a), r))) {
        let found: Vec<Reason> = read(&line).obstacles().iter().map(|obstacle| obstacle.reason).collect();
        assert_eq!(found, [*reason], "{line}");
        seen.push(*reason);
    }
    let unseen: Vec<&Reason> = Reason::ALL.iter().filter(|reason| !seen.contains(reason)).collect();
    assert!(unseen.is_empty(), "{unseen:?}");
}

#[test]
fn every_reason_is_documented() {
    let documented = include_str!("../../../../docs/flows.md");
    for reason in Reason::ALL {
        let row = format!("| `{}` | {} |", reason.code(), reason.sentence());
        assert!(documented.contains(&row), "docs/flows.md lacks: {row}");
    }
}
