//! Flows of a real ovs-vswitchd, read and printed back byte for byte.

use std::time::Duration;

use anyhow::{Context, Result};
use ringspan::ovs::flow::{Line, Names, Style, parse};
use ringspan_testkit::ovs::{DATAPATH, Ovs};
use ringspan_testkit::{needs, wait};

use super::entries;

const SOON: Duration = Duration::from_secs(20);

/// A switch with three ports, whose revalidators leave alone what is put into the datapath by hand.
fn switch() -> Result<Ovs> {
    let ovs = Ovs::start()?;
    // Flows stay for an hour.
    ovs.vsctl(&["set", "Open_vSwitch", ".", "other_config:vlan-limit=2", "other_config:max-idle=3600000"])?;
    ovs.add_bridge("br0")?;
    for port in 1..=3 {
        ovs.add_port("br0", &format!("p{port}"), &[&format!("ofport_request={port}")])?;
    }
    Ok(ovs)
}

fn dump(ovs: &Ovs, options: &[&str]) -> Result<String> {
    ovs.appctl(&[&["dpctl/dump-flows"], options, &[DATAPATH]].concat())
}

/// Reads a dump, and checks that printing gives it back. How many flows there are.
fn comes_back(dump: &str, names: Names) -> Result<usize> {
    let mut flows = 0;
    for (text, line) in dump.lines().zip(parse::dump(dump, names)) {
        let line = line.with_context(|| text.to_owned())?;
        assert_eq!(line.to_string(), text);
        flows += usize::from(matches!(line, Line::Flow(_)));
    }
    Ok(flows)
}

/// All four kinds of dump come back, and `-m` shows what there is without it.
fn all_dumps_come_back(ovs: &Ovs, flows: usize) -> Result<()> {
    for names in ["--names", "--no-names"] {
        let read = if names == "--names" { Names::Allowed } else { Names::None };
        assert_eq!(comes_back(&dump(ovs, &["-m", names])?, read)?, flows, "-m {names}");
        assert_eq!(comes_back(&dump(ovs, &[names])?, read)?, flows, "{names}");
    }
    let verbose = dump(ovs, &["-m", "--no-names"])?;
    let terse: Vec<String> = parse::dump(&verbose, Names::None)
        .filter_map(|line| match line {
            Ok(Line::Flow(flow)) => Some(flow.display(Style::Terse).to_string()),
            _ => None,
        })
        .collect();
    let expected = dump(ovs, &["--no-names"])?;
    let expected: Vec<&str> = expected.lines().filter(|line| !line.starts_with("flow-dump")).collect();
    assert_eq!(terse, expected);
    Ok(())
}

#[test]
fn keys_and_actions_come_back_as_the_switch_prints_them() -> Result<()> {
    needs!(Ovs);
    let ovs = switch()?;
    // Else they take away what no OpenFlow rule explains.
    ovs.appctl(&["revalidator/pause"])?;
    let mut flows = 0;
    for keys in entries(include_str!("keys.txt")) {
        let kind = if keys.contains("packet_type") { "" } else { "packet_type(ns=0,id=0)," };
        ovs.appctl(&["dpctl/add-flow", DATAPATH, &format!("in_port(1),{kind}{keys}"), "2"])?;
        flows += 1;
    }
    for (index, actions) in entries(include_str!("actions.txt")).enumerate() {
        let keys = format!("in_port(2),packet_type(ns=0,id=0),eth(src=02:00:00:00:00:{index:02x}),eth_type(0x1234)");
        ovs.appctl(&["dpctl/add-flow", DATAPATH, &keys, actions])?;
        flows += 1;
    }
    assert!(flows > 120, "{flows}");
    all_dumps_come_back(&ovs, flows)
}

#[test]
fn flows_that_came_up_by_themselves_come_back() -> Result<()> {
    needs!(Ovs);
    let ovs = switch()?;
    // Nobody listens there; without a collector OVS does not sample.
    let collect = "--id=@b get Bridge br0 -- --id=@i create IPFIX targets=\"127.0.0.1:9\" \
                   -- create Flow_Sample_Collector_Set id=1 bridge=@b ipfix=@i";
    ovs.vsctl(&collect.split_whitespace().collect::<Vec<_>>())?;
    let group = "group_id=1,type=select,selection_method=dp_hash,bucket=output:2,bucket=output:3";
    ovs.ofctl("br0", "add-group", &["-OOpenFlow15", group])?;
    // What it takes to make each action, and what of it must be seen.
    let rules = [
        ("eth_type=0x1001", "push_mpls:0x8847,set_field:5->mpls_label,output:2", "push_mpls("),
        ("mpls,mpls_bos=1", "pop_mpls:0x0800,output:2", "pop_mpls("),
        ("eth_type=0x1002", "group:1", "hash("),
        ("tcp,tcp_flags=+syn-ack", "ct(commit,zone=5,table=1,nat(src=10.9.9.1-10.9.9.9)),output:3", "nat(src="),
        ("udp", "dec_ttl,set_field:10.9.9.9->ip_dst,output:2", "set(ipv4("),
        ("eth_type=0x1003", "controller(max_len=100)", "controller("),
        ("eth_type=0x1004", "push_vlan:0x88a8,set_field:4101->vlan_vid,output:2", "push_vlan(tpid=0x88a8"),
        ("ipv6,icmp6,icmpv6_type=135", "set_field:fe80::9->nd_target,output:2", "nd(target="),
        ("eth_type=0x05ff", "output:2", "eth_type(0/0xffff)"),
        ("arp", "sample(probability=32768,collector_set_id=1,obs_domain_id=2,obs_point_id=3),output:2", "flow_sample("),
        ("sctp", "check_pkt_larger(200)->NXM_NX_REG0[0],resubmit(,2)", "check_pkt_len("),
    ];
    for (what, actions, _) in rules {
        ovs.ofctl("br0", "add-flow", &["-OOpenFlow15", &format!("in_port=1,{what},actions={actions}")])?;
    }
    ovs.ofctl("br0", "add-flow", &["-OOpenFlow15", "table=1,actions=output:2"])?;
    ovs.ofctl("br0", "add-flow", &["-OOpenFlow15", "table=2,reg0=1/1,actions=output:2"])?;
    ovs.ofctl("br0", "add-flow", &["-OOpenFlow15", "table=2,reg0=0/1,actions=output:3"])?;
    let mac = "eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02)";
    let v4 = |proto: u8, l4: &str| {
        format!("{mac},eth_type(0x0800),ipv4(src=10.0.0.1,dst=10.0.0.2,proto={proto},tos=0,ttl=64,frag=no),{l4}")
    };
    let v6 = format!(
        "{mac},eth_type(0x86dd),ipv6(src=fe80::1,dst=fe80::2,label=0,proto=58,tclass=0,hlimit=255,frag=no),\
         icmpv6(type=135,code=0),nd(target=fe80::2,sll=02:00:00:00:00:01,tll=00:00:00:00:00:00)"
    );
    let arp = "arp(sip=10.0.0.1,tip=10.0.0.2,op=1,sha=02:00:00:00:00:01,tha=00:00:00:00:00:00)";
    let packets = [
        format!("{mac},eth_type(0x1001)"),
        format!("{mac},eth_type(0x8847),mpls(label=9,tc=0,ttl=64,bos=1)"),
        format!("{mac},eth_type(0x1002)"),
        v4(6, "tcp(src=1,dst=2),tcp_flags(syn)"),
        v4(17, "udp(src=1,dst=2)"),
        format!("{mac},eth_type(0x1003)"),
        format!("{mac},eth_type(0x1004)"),
        v6,
        format!("{mac},eth_type(0x0806),{arp}"),
        v4(132, "sctp(src=1,dst=2)"),
    ];
    for packet in &packets {
        ovs.receive("p1", &format!("in_port(1),{packet}"))?;
    }
    // IEEE 802.2 has a length where others have an Ethertype.
    ovs.receive("p1", &format!("0200000000020200000000010026424203{}", "00".repeat(43)))?;
    for options in [["-m", "--names"], ["-m", "--no-names"]] {
        let mut missing = Vec::new();
        let flows = wait::until(SOON, "a flow with each action", || {
            let flows = dump(&ovs, &options)?;
            missing = rules.iter().map(|rule| rule.2).filter(|part| !flows.contains(part)).collect();
            Ok(missing.is_empty().then_some(flows))
        });
        let flows = flows.with_context(|| format!("no flow has {missing:?}"))?;
        let names = if options[1] == "--names" { Names::Allowed } else { Names::None };
        assert!(comes_back(&flows, names)? >= rules.len());
    }
    Ok(())
}
