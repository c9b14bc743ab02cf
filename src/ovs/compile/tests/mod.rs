//! Flows as OVS prints them, and the rules that they become.

mod any_flow;
mod testpmd;

use std::sync::Arc;

use proptest::prelude::*;
use ringspan_protocol::{MacAddress, NicName, NicPort};

use super::{Cause, Ports, compile, far_ends, tunnel_in};
use crate::ovs::flow::key::Key;
use crate::ovs::flow::parse;
use crate::ovs::flow::{Flow, Names};
use crate::ovs::kernel::attribute::Mask;
use crate::ovs::kernel::tunnel::tunnel;
use crate::ovs::underlay::{End, Underlay, Way};

/// What stands in every line of the userspace datapath.
const ANY: &str =
    "skb_priority(0/0),skb_mark(0/0),ct_state(0/0),ct_zone(0/0),ct_mark(0/0),ct_label(0/0),recirc_id(0),dp_hash(0/0)";
const IP: &str = "in_port(nic0_vf0),packet_type(ns=0,id=0),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0800),\
    ipv4(src=10.0.0.1/255.255.255.0,dst=10.0.0.2/0.0.0.0,proto=17/0,tos=0/0,ttl=64/0,frag=no)";

fn ports() -> Ports {
    let mut ports = Ports::default();
    for nic in ["nic0", "nic1"] {
        let nic: NicName = nic.parse().unwrap();
        let all = std::iter::once(NicPort::Uplink).chain((0..4).map(NicPort::Vf));
        let all: Vec<_> = all.map(|port| (port, port.representor(&nic))).collect();
        ports.add_nic(&nic, &all);
    }
    ports
}

fn flow(keys: &str, actions: &str) -> Flow {
    let text = format!(
        "ufid:0d7c5e2a-0000-0000-0000-000000000007, {ANY},{keys}, packets:0, bytes:0, used:never, dp:ovs, actions:{actions}"
    );
    parse::flow(&text, 1, Names::Allowed).unwrap_or_else(|error| panic!("{text}: {error:?}"))
}

/// Fields and actions of the rule, as text.
fn rule(ports: &Ports, keys: &str, actions: &str) -> Result<(String, String), Cause> {
    let (nic, rule) = compile(&flow(keys, actions), ports)?;
    assert_eq!(nic, "nic0".parse::<NicName>().unwrap());
    let fields: Vec<String> = rule.matches.fields().iter().map(ToString::to_string).collect();
    let does = serde_json::to_string(&rule.actions).unwrap().replace('"', "");
    Ok((format!("{} {}", rule.in_port, fields.join(" ")), does))
}

#[test]
fn a_flow_between_two_vfs_is_the_same_rule() {
    let (fields, does) = rule(&ports(), IP, "nic0_vf1").unwrap();
    assert_eq!(
        fields,
        "vf0 eth_src=02:00:00:00:00:01 eth_dst=02:00:00:00:00:02 eth_type=0x800 vlan_tci=0x0/0x1000 \
         ipv4_src=10.0.0.0/255.255.255.0 ip_frag=0"
    );
    assert_eq!(does, "[{output:vf1}]");
}

#[test]
fn a_vlan_is_matched_with_its_presence_and_what_is_behind_it() {
    let keys = "in_port(nic0),packet_type(ns=0,id=0),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x8100),\
        vlan(vid=10,pcp=0/0x0),encap(eth_type(0x0806),arp(sip=10.0.0.1,tip=10.0.0.2/0.0.0.0,op=1,sha=02:00:00:00:00:01/00:00:00:00:00:00,\
        tha=00:00:00:00:00:00/00:00:00:00:00:00))";
    let (fields, does) = rule(&ports(), keys, "pop_vlan,nic0_vf2").unwrap();
    assert_eq!(
        fields,
        "uplink eth_src=02:00:00:00:00:01 eth_dst=02:00:00:00:00:02 eth_type=0x806 vlan_tpid=0x8100 vlan_tci=0x100a/0x1fff \
         inner_vlan_tci=0x0/0x1000 arp_op=1 arp_spa=10.0.0.1"
    );
    assert_eq!(does, "[pop-vlan,{output:vf2}]");
}

#[test]
fn what_stands_for_no_ethertype_or_a_third_vlan_is_no_rule() {
    let keys = |rest: &str| format!("in_port(nic0_vf0),packet_type(ns=0,id=0),{rest}");
    let third = "encap(eth_type(0x8100),vlan(vid=2,pcp=0),encap(eth_type(0x8100),vlan(vid=3,pcp=0)))";
    for rest in [
        // 802.2 behind a VLAN header: 0xffff in the mask alone, which is not printed.
        "eth_type(0x8100),vlan(vid=10,pcp=0),encap()".into(),
        "eth_type(0x8100),vlan(vid=10,pcp=0),encap(eth_type(0x0800/0xff00))".into(),
        format!("eth_type(0x8100),vlan(vid=1,pcp=0),{third}"),
        "eth_type(0x8100)".into(),
        "vlan(vid=1,pcp=0),encap(eth_type(0x0800))".into(),
    ] {
        assert_eq!(rule(&ports(), &keys(&rest), "nic0_vf1").unwrap_err().code(), "field", "{rest}");
    }
    // What OVS looks at no further, as `vlan-limit` says, is a tag to the engine; where it looks at two, that is a frame that ends there.
    let double = keys("eth_type(0x88a8),vlan(vid=10,pcp=0),encap(eth_type(0x8100))");
    assert_eq!(rule(&ports(), &double, "nic0_vf1").unwrap_err().code(), "field");
    let mut ports = ports();
    ports.set_one_vlan(true);
    let (fields, _) = rule(&ports, &double, "nic0_vf1").unwrap();
    assert_eq!(fields, "vf0 vlan_tpid=0x88a8 vlan_tci=0x100a inner_vlan_tpid=0x8100 inner_vlan_tci=0x1000/0x1000");
}

#[test]
fn actions_keep_their_order_and_end_with_the_last_output() {
    let set =
        "set(eth(dst=02:00:00:00:00:09)),set(ipv4(ttl=63)),push_vlan(vid=7,pcp=3),nic0,pop_vlan,nic0_vf1,pop_vlan";
    let keys = IP.replace("ttl=64/0", "ttl=64");
    let (_, does) = rule(&ports(), &keys, set).unwrap();
    assert_eq!(
        does,
        "[{set:eth_dst=02:00:00:00:00:09},{set:ip_ttl=63},{push-vlan:{tpid:33024,tci:28679}},{output:uplink},pop-vlan,{output:vf1}]"
    );
    assert_eq!(rule(&ports(), IP, "drop").unwrap().1, "[drop]");
    assert_eq!(rule(&ports(), IP, "clone(nic0_vf1),nic0_vf2").unwrap_err().code(), "action-clone");
}

#[test]
fn what_cannot_be_a_rule_says_why() {
    let recirculated = IP.replace("in_port", "recirc_id(0x5),in_port");
    for (keys, actions, code) in [
        (IP.replace("nic0_vf0", "br0"), "nic0_vf1", "in-port"),
        (IP.into(), "br0", "output"),
        (IP.into(), "nic0_vf1,br0", "output"),
        (IP.into(), "nic1_vf1", "other-nic"),
        (IP.into(), "ct(commit),nic0_vf1", "action-conntrack"),
        (IP.into(), "meter(0),nic0_vf1", "meter"),
        (IP.into(), "userspace(pid=0,slow_path(lldp))", "action-userspace"),
        (IP.into(), "recirc(0x1)", "action-recirculate"),
        (IP.into(), "tnl_pop(vxlan_sys_4789)", "tunnel-pop"),
        (IP.into(), "pop_vlan,nic0_vf1", "rule"),
    ] {
        let cause = rule(&ports(), &keys, actions).unwrap_err();
        assert_eq!(cause.code(), code, "{keys} {actions}");
        assert!(!cause.sentence().is_empty());
    }
    // Twice in one line is no flow at all.
    assert!(parse::flow(&format!("{ANY},{recirculated}, actions:drop"), 1, Names::Allowed).is_err());
}

#[test]
fn what_a_fresh_packet_fulfils_by_itself_is_no_obstacle() {
    let with = |part: &str, by: &str| {
        let text = format!(
            "ufid:0d7c5e2a-0000-0000-0000-000000000007, {ANY},{IP}, packets:0, bytes:0, used:never, actions:nic0_vf1"
        );
        let changed = text.replace(part, by);
        assert_ne!(changed, text);
        compile(&parse::flow(&changed, 1, Names::Allowed).unwrap(), &ports()).map(drop)
    };
    assert_eq!(with("ct_state(0/0)", "ct_state(-trk)"), Ok(()));
    assert_eq!(with("skb_mark(0/0)", "skb_mark(0)"), Ok(()));
    assert_eq!(with("ct_state(0/0)", "ct_state(+est+trk)").unwrap_err().code(), "match-conntrack");
    assert_eq!(with("skb_mark(0/0)", "skb_mark(0x1)").unwrap_err().code(), "match-metadata");
    assert_eq!(with("recirc_id(0)", "recirc_id(0x5)").unwrap_err().code(), "match-recirculated");
}

#[test]
fn a_tunnel_of_the_kernels_is_made_and_ended_as_its_network_says() {
    let outer = |address: &str| address.parse::<std::net::IpAddr>().unwrap();
    let mac = |last| MacAddress([2, 0, 0, 0, 0x0b, last]);
    let way = |interface: &str| Way {
        interface: interface.into(),
        eth_src: mac(1),
        eth_dst: mac(2),
        src: outer("172.16.0.1"),
        own: vec![outer("172.16.0.1"), outer("172.16.0.11")],
    };
    let mut ports = ports();
    let to = |port: &str, more: &str| {
        format!("set(tunnel(tun_id=0x64,{more}dst=172.16.0.2,tos=0x1,ttl=64,tp_dst=4789,flags(df|key))),{port}")
    };
    let into = to("vxlan_sys_4789", "");
    // Unless it is asked for, nothing is: nor is it of anything else that sets a tunnel.
    for into in [into.clone(), to("br0", ""), to("vxlan_sys_4789", "").replace(",vxlan_sys_4789", ",nic0_vf1")] {
        let cause = rule(&ports, IP, &into).unwrap_err();
        assert!(cause.code() == "set-tunnel" && cause.sentence().contains("ovs.kernel_tunnels"), "{cause:?}");
    }
    ports.set_underlay(Some(Arc::default()));
    let cause = rule(&ports, IP, &into).unwrap_err();
    assert!(cause.code() == "set-tunnel" && cause.sentence().contains("not known yet"), "{cause:?}");
    let end =
        |interface: &str| End { interface: interface.into(), mac: mac(1), address: "172.16.0.1".parse().unwrap() };
    let underlay = Underlay::of(&[(outer("172.16.0.2"), way("nic0"))], &[end("nic0")], &["vxlan_sys_4789"]);
    ports.set_underlay(Some(Arc::new(underlay)));
    let pushed = |src: &str| {
        format!(
            "{{tunnel-push:{{kind:vxlan,id:100,eth_src:02:00:00:00:0b:01,eth_dst:02:00:00:00:0b:02,src:{src},dst:172.16.0.2,tos:1,ttl:64,dont_fragment:true,dst_port:4789,checksum:false}}}},{{output:uplink}}]"
        )
    };
    assert_eq!(rule(&ports, IP, &into).unwrap().1, format!("[{}", pushed("172.16.0.1")));
    let both = format!("nic0_vf1,{}", to("vxlan_sys_4789", "src=172.16.0.11,"));
    assert_eq!(rule(&ports, IP, &both).unwrap().1, format!("[{{output:vf1}},{}", pushed("172.16.0.11")));
    for (actions, code) in [
        (to("vxlan_sys_4789", "src=172.16.0.3,"), "set-tunnel"),
        (into.replace("dst=172.16.0.2", "dst=172.16.0.4"), "set-tunnel"),
        (to("vxlan_sys_4790", ""), "set-tunnel"),
        (into.replace("tp_dst=4789,", "tp_dst=4789,vxlan(gbp(id=5)),"), "action-tunnel-options"),
        (into.replace("ttl=64,", "ttl=0,"), "set-tunnel"),
        (into.replace("ttl=64,", ""), "set-tunnel"),
        (format!("{into},nic0_vf1"), "order"),
        ("vxlan_sys_4789".into(), "output"),
        (to("br0", ""), "output"),
    ] {
        assert_eq!(rule(&ports, IP, &actions).unwrap_err().code(), code, "{actions}");
    }
    // With options that a match can say, too: the kernel would put them into the header.
    let geneve = |options: &str| {
        let into = to("genev_sys_6081", "").replace("4789", "6081");
        rule(&ports, IP, &into.replace("tp_dst=6081,", &format!("tp_dst=6081,{options}")))
    };
    assert!(geneve("").unwrap().1.contains("kind:geneve"));
    assert!(geneve("geneve(),").is_ok());
    for options in [
        "{class=0x102,type=0x80,len=4,0x50007}",
        "{class=0x102,type=0x80,len=0}",
        "{class=0x102,type=0x80,len=4,0x50007}{class=0x103,type=0x1,len=4,0x9}",
        "{class=0x102,type=0x80,len=16,0x1}",
    ] {
        let cause = geneve(&format!("geneve({options}),")).unwrap_err();
        assert_eq!(cause.code(), "action-tunnel-options", "{options}");
    }
    // The far ends are those of what becomes a rule: also in a clone behind which there is nothing, and only of what a NIC receives.
    let far = |keys: &str, actions: &str| far_ends(&flow(keys, actions), &ports);
    let in_clone = format!("nic0_vf1,clone({into})");
    assert_eq!(far(IP, &in_clone), [outer("172.16.0.2")]);
    assert!(rule(&ports, IP, &in_clone).is_ok());
    assert!(far(&IP.replace("nic0_vf0", "br0"), &into).is_empty());
    // What comes out is what is for the host's own addresses, at both layers.
    let inner = "tunnel(tun_id=0x64,src=172.16.0.2,dst=172.16.0.1,tos=0/0,ttl=0/0,tp_src=0/0,flags(-df-csum+key)),\
        in_port(vxlan_sys_4789),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0806)";
    let (fields, does) = rule(&ports, inner, "nic0_vf1").unwrap();
    for field in ["uplink ", " tunnel_ipv4_dst=172.16.0.1 ", " tunnel_eth_dst=02:00:00:00:0b:01", " tunnel_kind=1 "] {
        assert!(fields.contains(field), "{field} in {fields}");
    }
    assert!(!fields.contains("tunnel_src_port") && !fields.contains("tunnel_tos"), "{fields}");
    assert_eq!(does, "[tunnel-pop,{output:vf1}]");
    let other = inner.replace("dst=172.16.0.1", "dst=172.16.0.9");
    assert_eq!(rule(&ports, &other, "nic0_vf1").unwrap_err().code(), "tunnel-port");
    let over_ipv6 = inner.replace("src=172.16.0.2,dst=172.16.0.1", "ipv6_src=fd00::2,ipv6_dst=fd00::1");
    assert_eq!(rule(&ports, &over_ipv6, "nic0_vf1").unwrap_err().code(), "tunnel-port");
    // Where the kernel has no such tunnel, nothing comes out of one. A way by another NIC is not this one's.
    let underlay = Underlay::of(&[(outer("172.16.0.2"), way("nic1"))], &[end("nic0")], &[]);
    ports.set_underlay(Some(Arc::new(underlay)));
    assert_eq!(rule(&ports, inner, "nic0_vf1").unwrap_err().code(), "tunnel-port");
    assert_eq!(rule(&ports, IP, &into).unwrap_err().code(), "other-nic");
    let underlay = Underlay::of(&[(outer("172.16.0.2"), way("nic0_vf1"))], &[], &[]);
    ports.set_underlay(Some(Arc::new(underlay)));
    assert_eq!(rule(&ports, IP, &into).unwrap_err().code(), "set-tunnel");
}

#[test]
fn a_tunnel_of_the_kernels_over_ipv6_ends_at_the_hosts_own_addresses_only() {
    // As the kernel tells it: OVS_TUNNEL_KEY_ATTR_* with an id, two addresses and a TTL, and a mask without the TTL.
    let attribute = |kind: u16, value: &[u8]| {
        let mut bytes = [&((value.len() + 4) as u16).to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let address = |last: u8| {
        let mut address = [0; 16];
        (address[0], address[15]) = (0xfd, last);
        address
    };
    let told = |dst: u8| {
        let id = attribute(0, &0x64_u64.to_be_bytes());
        let key = [id, attribute(12, &address(2)), attribute(13, &address(dst)), attribute(4, &[64])].concat();
        let mask =
            [attribute(0, &[0xff; 8]), attribute(12, &[0xff; 16]), attribute(13, &[0xff; 16]), attribute(4, &[0])];
        let mut flow = flow(
            "in_port(vxlan_sys_4789),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0806)",
            "nic0_vf1",
        );
        flow.keys.insert(0, Key::Tunnel(Box::new(tunnel(&key, Mask::Bits(&mask.concat())).unwrap())));
        flow
    };
    let end = |address: &str| End {
        interface: "nic0".into(),
        mac: MacAddress([2, 0, 0, 0, 0x0b, 1]),
        address: address.parse().unwrap(),
    };
    let mut ports = ports();
    let ends = [end("172.16.0.1"), end("fd00::1")];
    ports.set_underlay(Some(Arc::new(Underlay::of(&[], &ends, &["vxlan_sys_4789"]))));
    let (nic, rule) = compile(&told(1), &ports).unwrap();
    assert_eq!((nic, rule.in_port), ("nic0".parse().unwrap(), NicPort::Uplink));
    let fields: Vec<String> = rule.matches.fields().iter().map(ToString::to_string).collect();
    for field in
        ["tunnel_ipv6_src=fd00::2", "tunnel_ipv6_dst=fd00::1", "tunnel_eth_dst=02:00:00:00:0b:01", "tunnel_id=0x64"]
    {
        assert!(fields.iter().any(|one| one == field), "{field} in {fields:?}");
    }
    // What is for another address comes to the host by another way.
    assert_eq!(compile(&told(9), &ports).unwrap_err().code(), "tunnel-port");
    ports.set_underlay(Some(Arc::new(Underlay::of(&[], &ends[..1], &["vxlan_sys_4789"]))));
    assert_eq!(compile(&told(1), &ports).unwrap_err().code(), "tunnel-port");
}

#[test]
fn what_is_inside_a_tunnel_becomes_a_rule_of_the_uplink_that_it_comes_in_by() {
    let outer = "in_port(nic0),packet_type(ns=0,id=0),eth(src=02:00:00:00:0b:01,dst=02:00:00:00:0b:02),eth_type(0x0800),\
        ipv4(src=172.16.0.2,dst=172.16.0.1,proto=17,tos=0/0,ttl=64/0,frag=no),udp(src=41000/0,dst=4789)";
    let inner = "tunnel(tun_id=0x64,src=172.16.0.2,dst=172.16.0.1,ttl=64/0,tp_src=41000/0,tp_dst=4789/0,flags(-df-csum+key)),\
        in_port(vxlan_sys_4789),packet_type(ns=0,id=0),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0800),\
        ipv4(src=10.0.0.1/0.0.0.0,dst=10.0.0.2/0.0.0.0,proto=17/0,tos=0/0,ttl=64/0,frag=no)";
    let mut ports = ports();
    assert_eq!(rule(&ports, inner, "nic0_vf1").unwrap_err().code(), "tunnel-port");
    let (port, tunnel) = tunnel_in(&flow(outer, "tnl_pop(vxlan_sys_4789)"), &ports).unwrap();
    ports.add_tunnel(&port, tunnel);
    let (fields, does) = rule(&ports, inner, "nic0_vf1").unwrap();
    assert_eq!(
        fields,
        "uplink eth_src=02:00:00:00:00:01 eth_dst=02:00:00:00:00:02 eth_type=0x800 vlan_tci=0x0/0x1000 ip_frag=0 tunnel_kind=1 \
         tunnel_id=0x64 tunnel_ipv4_src=172.16.0.2 tunnel_ipv4_dst=172.16.0.1 tunnel_tos=0x0 tunnel_tp_dst=4789 tunnel_flags=0x0/0x1 \
         tunnel_eth_src=02:00:00:00:0b:01 tunnel_eth_dst=02:00:00:00:0b:02"
    );
    assert_eq!(does, "[tunnel-pop,{output:vf1}]");
    assert_eq!(rule(&ports, inner, "drop").unwrap().1, "[drop]");
    // From another sender than the packets are taken from, there is no rule; one that takes them from many is as good.
    let other = inner.replace("src=172.16.0.2", "src=172.16.0.3");
    assert_eq!(rule(&ports, &other, "nic0_vf1").unwrap_err().code(), "tunnel-port");
    let all = outer.replace("src=172.16.0.2", "src=172.16.0.2/255.255.0.0").replace("src=02:00:00:00:0b:01,", "");
    let (port, tunnel) = tunnel_in(&flow(&all, "tnl_pop(vxlan_sys_4789)"), &ports).unwrap();
    ports.add_tunnel(&port, tunnel);
    for inner in [inner, &other] {
        let (fields, _) = rule(&ports, inner, "nic0_vf1").unwrap();
        assert!(fields.ends_with(" tunnel_flags=0x0/0x1 tunnel_eth_dst=02:00:00:00:0b:02"), "{fields}");
    }
    // What a rule cannot say of the packets around, and what the engine does not look into.
    for (part, by) in [
        ("udp(src=41000/0", "tcp_flags(0),udp(src=41000/0"),
        ("frag=no", "frag=first"),
        ("recirc_id(0)", "recirc_id(0x1)"),
        ("dst=4789", "dst=4789/0xfff0"),
    ] {
        let text = format!(
            "ufid:0d7c5e2a-0000-0000-0000-000000000007, {ANY},{outer}, packets:0, bytes:0, used:never, actions:tnl_pop(vxlan_sys_4789)"
        );
        let changed = parse::flow(&text.replace(part, by), 1, Names::Allowed).unwrap();
        assert_eq!(tunnel_in(&changed, &ports), None, "{by}");
    }
    let tagged = outer.replace("eth_type(0x0800),", "eth_type(0x8100),vlan(vid=5,pcp=0),encap(eth_type(0x0800),") + ")";
    assert_eq!(tunnel_in(&flow(&tagged, "tnl_pop(vxlan_sys_4789)"), &ports), None);
    // An engine looks for tunnels at their own ports only.
    let (outer8, inner8) = (outer.replace("4789", "8472"), inner.replace("4789", "8472"));
    let (port, tunnel) = tunnel_in(&flow(&outer8, "tnl_pop(vxlan_sys_8472)"), &ports).unwrap();
    ports.add_tunnel(&port, tunnel);
    assert_eq!(rule(&ports, &inner8, "nic0_vf1").unwrap_err().code(), "field");
    // A packet without options of GENEVE, with one of 4, 8 or 12 bytes, and with two of 4; longer ones and more are not for a rule.
    let (outer, inner) =
        (outer.replace("4789", "6081"), inner.replace("vxlan_sys_4789", "genev_sys_6081").replace("4789", "6081"));
    let (port, tunnel) = tunnel_in(&flow(&outer, "tnl_pop(genev_sys_6081)"), &ports).unwrap();
    ports.add_tunnel(&port, tunnel);
    assert!(rule(&ports, &inner, "nic0_vf1").is_ok());
    let with = |option: &str| inner.replace(",flags(", &format!(",geneve({option}),flags("));
    let (matches, _) = rule(&ports, &with("{class=0x102,type=0x80,len=4,0x50007/0x7fffffff}"), "nic0_vf1").unwrap();
    assert!(
        matches.contains("tunnel_option=0x10280") && matches.contains("tunnel_option_data=0x50007/0x7fffffff"),
        "{matches}"
    );
    for (options, shape, more) in [
        ("{class=0x102,type=0x80,len=8,0x5000700000009/0x7fffffff000000ff}", 1, "0x900000000/0xff00000000"),
        ("{class=0x102,type=0x80,len=12,0x500070000000000000009}", 2, "0x9"),
        (
            "{class=0x102,type=0x80,len=4,0x50007}{class=0x103,type=0x81,len=4,0x9/0xff}",
            3,
            "0x103810100000009/0xffffffff000000ff",
        ),
    ] {
        let (matches, _) = rule(&ports, &with(options), "nic0_vf1").unwrap();
        for part in ["tunnel_option=0x10280 ", "tunnel_option_data=0x50007"] {
            assert!(matches.contains(part), "{part} in {matches}");
        }
        assert!(
            matches.contains(&format!("tunnel_option_shape={shape} tunnel_option_more={more}")),
            "{more} in {matches}"
        );
    }
    for (option, bytes) in [
        ("{class=0x102,type=0x80,len=16,0x1}", "16"),
        ("{class=0x102,type=0x80,len=8,0x1}{class=0x103,type=0x80,len=4,0x1}", "8 and 4"),
        (
            "{class=0x102,type=0x80,len=4,0x1}{class=0x103,type=0x80,len=4,0x1}{class=0x104,type=0x80,len=4,0x1}",
            "4 and 4 and 4",
        ),
    ] {
        let cause = rule(&ports, &with(option), "nic0_vf1").unwrap_err();
        assert_eq!(cause.code(), "match-tunnel-options", "{option}");
        let said = format!("(options of {bytes} bytes; the most is one of 12 or two of 4, over IPv6 one of 4)");
        assert!(cause.sentence().ends_with(&said), "{}", cause.sentence());
    }
    // Where they have room, what is refused is not their lengths.
    let in_part = "(class, type or length is not matched whole)";
    for option in [
        "{class=0x102,type=0x80,len=4,0x1}{class=0x103/0xff,type=0x80,len=4,0x1}",
        "{class=0x102,type=0x80/0xf,len=12,0x1}",
        "{class=0x102/0xff,type=0x80,len=4,0x1}",
    ] {
        let cause = rule(&ports, &with(option), "nic0_vf1").unwrap_err();
        assert_eq!(cause.code(), "match-tunnel-options", "{option}");
        assert!(cause.sentence().ends_with(in_part), "{}", cause.sentence());
    }
    // Over IPv6 there is room for less.
    let v6 = |text: &str| {
        text.replace(
            "(0x0800),ipv4(src=172.16.0.2,dst=172.16.0.1,proto=17,tos=0/0,ttl=64/0",
            "(0x86dd),ipv6(src=fd00::2,dst=fd00::1,proto=17",
        )
        .replace("src=172.16.0.2,dst=172.16.0.1", "ipv6_src=fd00::2,ipv6_dst=fd00::1")
    };
    let (port, tunnel) = tunnel_in(&flow(&v6(&outer), "tnl_pop(genev_sys_6081)"), &ports).unwrap();
    ports.add_tunnel(&port, tunnel);
    assert!(rule(&ports, &v6(&with("{class=0x102,type=0x80,len=4,0x1}")), "nic0_vf1").is_ok());
    let cause = rule(&ports, &v6(&with("{class=0x102,type=0x80,len=12,0x1}")), "nic0_vf1").unwrap_err();
    let said = "(options of 12 bytes; the most is one of 12 or two of 4, over IPv6 one of 4)";
    assert!(cause.code() == "match-tunnel-options" && cause.sentence().ends_with(said), "{cause:?}");
    for (option, said) in
        [("{class=0x102/0xff,type=0x80,len=12,0x1}", said), ("{class=0x102/0xff,type=0x80,len=4,0x1}", in_part)]
    {
        let cause = rule(&ports, &v6(&with(option)), "nic0_vf1").unwrap_err();
        assert!(cause.sentence().ends_with(said), "{}", cause.sentence());
    }
}

#[test]
fn what_is_inside_a_tunnel_over_ipv6_becomes_a_rule_with_the_addresses_around_it() {
    let mut ports = ports();
    let outer = "in_port(nic0),packet_type(ns=0,id=0),eth(src=02:00:00:00:0b:01,dst=02:00:00:00:0b:02),eth_type(0x86dd),\
        ipv6(src=fd00::2,dst=fd00::1,proto=17,frag=no),udp(dst=4789)";
    let (port, tunnel) = tunnel_in(&flow(outer, "tnl_pop(vxlan_sys_4789)"), &ports).unwrap();
    ports.add_tunnel(&port, tunnel);
    let inner = "tunnel(tun_id=0x64,ipv6_src=fd00::2,ipv6_dst=fd00::1,ttl=64/0,tp_src=41000/0,tp_dst=4789/0,flags(-df+csum+key)),\
        in_port(vxlan_sys_4789),packet_type(ns=0,id=0),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0800),ipv4(frag=no)";
    let (fields, does) = rule(&ports, inner, "nic0_vf1").unwrap();
    let around = " tunnel_eth_src=02:00:00:00:0b:01 tunnel_eth_dst=02:00:00:00:0b:02";
    for field in ["uplink ", " tunnel_ipv6_src=fd00::2 ", " tunnel_ipv6_dst=fd00::1 ", " tunnel_flags=0x1/0x1", around]
    {
        assert!(fields.contains(field), "{fields} without {field}");
    }
    assert_eq!(does, "[tunnel-pop,{output:vf1}]");
    // From another sender than the packets are taken from, there is no rule.
    let other = inner.replace("ipv6_src=fd00::2", "ipv6_src=fd00::3");
    assert_eq!(rule(&ports, &other, "nic0_vf1").unwrap_err().code(), "tunnel-port");
}

#[test]
fn what_is_inside_a_tunnel_is_joined_with_a_pop_of_its_own_family_only() {
    // The port of VXLAN is one for both. With addresses and without, and the other family's always the one that asks for less.
    let outer = |ipv6: bool, addresses: bool, macs: &str| {
        let (kind, name, both) = match ipv6 {
            false => ("0x0800", "ipv4", "src=172.16.0.2,dst=172.16.0.1,"),
            true => ("0x86dd", "ipv6", "src=fd00::2,dst=fd00::1,"),
        };
        let keys = format!(
            "in_port(nic0),packet_type(ns=0,id=0),{macs}eth_type({kind}),{name}({}proto=17,frag=no),udp(dst=4789)",
            if addresses { both } else { "" }
        );
        tunnel_in(&flow(&keys, "tnl_pop(vxlan_sys_4789)"), &ports()).unwrap()
    };
    let inner = |addresses: &str| {
        format!(
            "tunnel(tun_id=0x64,{addresses},ttl=64/0,tp_src=41000/0,tp_dst=4789/0,flags(-df-csum+key)),in_port(vxlan_sys_4789),\
             packet_type(ns=0,id=0),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0800),ipv4(frag=no)"
        )
    };
    let inner = [inner("src=172.16.0.2,dst=172.16.0.1"), inner("ipv6_src=fd00::2,ipv6_dst=fd00::1")];
    let macs = "eth(src=02:00:00:00:0b:01,dst=02:00:00:00:0b:02),";
    for (addresses, ipv6) in [(true, false), (true, true), (false, false), (false, true)] {
        let (mine, other) = (&inner[usize::from(ipv6)], outer(!ipv6, addresses, ""));
        let mut alone = ports();
        alone.add_tunnel(&other.0, other.1.clone());
        let cause = rule(&alone, mine, "nic0_vf1").unwrap_err();
        assert_eq!(cause.code(), "tunnel-port", "{addresses} {ipv6}: {cause:?}");
        for first in [true, false] {
            let mut both = ports();
            let own = outer(ipv6, addresses, macs);
            for (port, pop) in if first { [own, other.clone()] } else { [other.clone(), own] } {
                both.add_tunnel(&port, pop);
            }
            let (fields, _) = rule(&both, mine, "nic0_vf1").unwrap();
            assert!(fields.ends_with(" tunnel_eth_src=02:00:00:00:0b:01 tunnel_eth_dst=02:00:00:00:0b:02"), "{fields}");
            assert_eq!(fields.contains("tunnel_ipv6_dst"), ipv6, "{fields}");
            assert_eq!(fields.contains("tunnel_ipv4_dst"), !ipv6, "{fields}");
        }
    }
}

#[test]
fn a_tunnel_over_ipv6_is_pushed_with_a_checksum_where_its_header_has_one() {
    for (csum, is) in [("0x0", false), ("0xffff", true)] {
        let push = format!(
            "clone(tnl_push(tnl_port(vxlan_sys_4789),header(size=70,type=4,eth(dst=02:00:00:00:00:0b,src=02:00:00:00:00:0a,dl_type=0x86dd),\
             ipv6(src=fd00::1,dst=fd00::2,label=0,proto=17,tclass=0x0,hlimit=64),udp(src=0,dst=4789,csum={csum}),vxlan(flags=0x8000000,vni=0x64)),\
             out_port(br-phy)),nic0)"
        );
        let (_, does) = rule(&ports(), IP, &push).unwrap();
        assert!(does.contains("src:fd00::1,dst:fd00::2,") && does.contains(&format!("checksum:{is}")), "{does}");
    }
}

#[test]
fn a_tunnel_is_pushed_with_any_options_of_geneve() {
    let push = |header: &str| {
        let push = format!(
            "tnl_push(tnl_port(genev_sys_6081),header(size=58,type=5,eth(dst=f8:bc:12:44:34:b6,src=f8:bc:12:46:58:e0,dl_type=0x0800),\
             ipv4(src=1.1.2.88,dst=1.1.2.92,proto=17,tos=0,ttl=64,frag=0x4000),udp(src=0,dst=6081,csum=0x0),geneve({header})),out_port(br-phy)),nic0"
        );
        rule(&ports(), IP, &push)
    };
    let (_, does) = push("vni=0x1c7").unwrap();
    assert!(!does.contains("options"), "{does}");
    let (_, does) = push("vni=0x1c7,options({class=0x102,type=0x1,len=0})").unwrap();
    assert!(does.contains("options:01020100"), "{does}");
    let two = "{class=0x102,type=0x80,len=4,0x50007}{class=0xffff,type=0x1,len=8,0x102030405}";
    let (_, does) = push(&format!("crit,vni=0x1c7,options({two})")).unwrap();
    assert!(does.contains("options:0102800100050007ffff01020000000102030405"), "{does}");
    // What contradicts itself, and a control packet.
    for header in [format!("vni=0x1c7,options({two})"), "crit,vni=0x1c7".into(), "oam,vni=0x1c7".into()] {
        assert_eq!(push(&header).unwrap_err().code(), "action-tunnel-options", "{header}");
    }
}

#[test]
fn neighbour_discovery_is_matched() {
    let nd = "in_port(nic0_vf0),packet_type(ns=0,id=0),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x86dd),ipv6(proto=58,frag=no),icmpv6(type=135,code=0),nd(target=fe80::1,sll=02:00:00:00:00:01)";
    let (matches, _) = rule(&ports(), nd, "nic0_vf1").unwrap();
    assert!(matches.contains("nd_target=fe80::1") && matches.contains("nd_sll=02:00:00:00:00:01"), "{matches}");
}

#[test]
fn a_tunnel_that_is_pushed_has_its_headers() {
    let push = "clone(tnl_push(tnl_port(vxlan_sys_4789),header(size=50,type=4,eth(dst=02:00:00:00:00:0b,src=02:00:00:00:00:0a,dl_type=0x0800),\
        ipv4(src=172.16.0.1,dst=172.16.0.2,proto=17,tos=0,ttl=64,frag=0x4000),udp(src=0,dst=4789,csum=0x0),vxlan(flags=0x8000000,vni=0x64)),\
        out_port(br-phy)),nic0)";
    let (_, does) = rule(&ports(), IP, push).unwrap();
    assert!(does.starts_with("[{tunnel-push:{kind:vxlan,id:100,eth_src:02:00:00:00:00:0a,"), "{does}");
    assert!(does.contains("dont_fragment:true,dst_port:4789") && does.ends_with(",{output:uplink}]"), "{does}");
}

/// Keys that are joined in any order, and nested.
const PARTS: [&str; 16] = [
    "eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02/ff:ff:ff:00:00:00)",
    "eth_type(0x0800)",
    "eth_type(0x86dd)",
    "eth_type(0x8100)",
    "eth_type(0x88a8)",
    "eth_type(0x0800/0xff00)",
    "eth_type(0/0xffff)",
    "vlan(vid=1,pcp=0)",
    "vlan(vid=2/0x0,pcp=3/0x1)",
    "ipv4(src=10.0.0.1,proto=17,frag=later)",
    "ipv6(src=fd00::1,proto=58,frag=first)",
    "udp(src=1,dst=2/0xff)",
    "tcp_flags(+syn)",
    "arp(op=1)",
    "icmp(type=8,code=0)",
    "tunnel(tun_id=0x1,src=172.16.0.2,dst=172.16.0.1,ttl=64,flags(+key))",
];

proptest! {
    #[test]
    fn whatever_a_flow_is_it_becomes_a_rule_that_makes_sense_or_has_a_reason(
        levels in prop::collection::vec(prop::collection::vec(0..PARTS.len(), 0..5), 1..6),
        actions in prop::sample::select(vec!["drop", "nic0_vf1", "pop_vlan,nic0", "push_vlan(vid=7,pcp=3),nic0", "tnl_pop(vxlan_sys_4789)"]),
    ) {
        let text: Vec<String> =
            levels.iter().map(|level| level.iter().map(|part| format!(",{}", PARTS[*part])).collect()).collect();
        let nested = text.iter().rev().fold(String::new(), |inner, level| {
            let inner = inner.trim_start_matches(',');
            if inner.is_empty() { level.clone() } else { format!("{level},encap({inner})") }
        });
        let text = format!(
            "ufid:0d7c5e2a-0000-0000-0000-000000000007, in_port(nic0_vf0){nested}, packets:0, bytes:0, used:never, actions:{actions}"
        );
        if let Ok(flow) = parse::flow(&text, 1, Names::Allowed) {
            let _ = tunnel_in(&flow, &ports());
            match compile(&flow, &ports()) {
                Ok((_, rule)) => prop_assert_eq!(rule.check(), Ok(()), "{}", text),
                Err(cause) => prop_assert!(!cause.sentence().is_empty()),
            }
        }
    }
}
