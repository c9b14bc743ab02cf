//! Rules of flows in the syntax of DPDK's test program: whatever a flow becomes is printed, reads back as the same rule, and is taken by that program's own parser.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use ringspan_protocol::MeterSpec;
use ringspan_protocol::rte::text::{LONGEST, print, read};
use ringspan_protocol::rule::Rule;
use ringspan_testkit::needs;
use ringspan_testkit::testpmd::{Options, Testpmd};

use super::any_flow::{METER, any_flow};
use super::*;
use crate::ovs::flow::Flow;

/// NICs whose datapath takes packets out of tunnels over IPv4 and IPv6, with a meter and a network for the kernel's tunnels.
fn all_ports() -> Ports {
    let mut ports = ports();
    for (device, udp) in [("vxlan_sys_4789", 4789), ("genev_sys_6081", 6081)] {
        let v4 = "eth_type(0x0800),ipv4(src=172.16.0.2/255.255.0.0,dst=172.16.0.1,proto=17,ttl=64/0,frag=no)";
        let v6 = "eth_type(0x86dd),ipv6(dst=fd00::1,proto=17,frag=no)";
        for outer in [format!("eth(dst=02:00:00:00:0b:02),{v4}"), v6.into()] {
            let keys = format!("in_port(nic0),packet_type(ns=0,id=0),{outer},udp(dst={udp})");
            let (port, tunnel) = tunnel_in(&flow(&keys, &format!("tnl_pop({device})")), &ports).expect("a tunnel");
            ports.add_tunnel(&port, tunnel);
        }
    }
    let spec: MeterSpec = serde_json::from_str(r#"{"id":5,"unit":"packets","rate":1000}"#).expect("a meter");
    ports.set_meters([(METER, Ok(spec))].into());
    let [far, own] = ["172.16.0.2", "172.16.0.1"].map(|address| address.parse().expect("an address"));
    let (eth_src, eth_dst) = (MacAddress([2, 0, 0, 0, 0x0b, 1]), MacAddress([2, 0, 0, 0, 0x0b, 2]));
    let way = Way { interface: "nic0".into(), eth_src, eth_dst, src: own, own: vec![own] };
    ports.set_underlay(Some(Arc::new(Underlay::of(&[(far, way)], &[], &[]))));
    ports
}

/// The rule of a flow, if it has one, with its text.
fn printed(flow: &Flow, ports: &Ports) -> Option<(Rule, String)> {
    let (_, rule) = compile(flow, ports).ok()?;
    let text = print(&rule).unwrap_or_else(|refusal| panic!("{refusal}: {flow}: {rule:?}"));
    Some((rule, text))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]
    #[test]
    fn a_rule_of_any_flow_is_printed_and_reads_back_as_it_was(flow in any_flow()) {
        if let Some((rule, text)) = printed(&flow, &all_ports()) {
            prop_assert_eq!(read(&text), Ok(rule), "{}", text);
        }
    }
}

/// A line as it is, or, where the program's line editor would cut it, what the rule matches and what it does in several rules: the parser is asked, not the editor.
fn parts(line: &str) -> Vec<String> {
    let lists = || {
        let (head, rest) = line.split_once(" pattern ")?;
        let (items, actions) = rest.strip_suffix(" / end")?.split_once(" / end actions ")?;
        Some((head, pieces(items), pieces(actions)))
    };
    let Some((head, items, actions)) = (line.len() > LONGEST).then(lists).flatten() else {
        return vec![line.to_owned()];
    };
    let items = items.into_iter().map(|items| format!("{head} pattern {items} / end actions drop / end"));
    let actions = actions.into_iter().map(|actions| format!("{head} pattern eth / end actions {actions} / end"));
    items.chain(actions).collect()
}

/// A list in pieces that leave room in a line for what stands around them.
fn pieces(list: &str) -> Vec<String> {
    let mut pieces: Vec<String> = Vec::new();
    for one in list.split(" / ") {
        match pieces.last_mut().filter(|piece| piece.len() + one.len() < LONGEST - 100) {
            Some(piece) => *piece += &format!(" / {one}"),
            None => pieces.push(one.into()),
        }
    }
    pieces
}

#[test]
fn dpdks_test_program_takes_the_rule_of_any_flow() -> Result<()> {
    needs!(Root, Program("dpdk-testpmd"));
    let options = Options { memory_mib: 128, ..Options::new(format!("compiled-{}", std::process::id())) };
    let options = options.device("net_null0,no-rx=1").arguments(["--total-num-mbufs=2048"]);
    let mut testpmd = Testpmd::start(&options)?;
    let ports = all_ports();
    let mut runner = TestRunner::deterministic();
    let (mut flows, mut rules, mut created) = (0, 0, 0);
    while rules < 300 {
        flows += 1;
        ensure!(flows < 1500, "of {flows} flows only {rules} became rules");
        let flow = any_flow().new_tree(&mut runner).map_err(|error| anyhow::anyhow!("{error}"))?.current();
        let Some((rule, text)) = printed(&flow, &ports) else { continue };
        ensure!(read(&text) == Ok(rule), "it does not read back: {text}");
        let before = created;
        // The program passes over comments, which may be longer than its lines.
        for line in text.lines().filter(|line| !line.starts_with('#')).flat_map(parts) {
            ensure!(line.len() <= LONGEST, "too long also in parts: {line}");
            let answer = testpmd.command(&line)?;
            ensure!(!answer.contains("Bad arguments"), "it was not taken: {line}\n{answer}");
            created += usize::from(line.starts_with("flow "));
        }
        ensure!(created > before, "the program was not asked for this rule: {text}");
        rules += 1;
    }
    // What was understood goes to the driver, which refuses it.
    let asked = || testpmd.output().matches("Caught PMD error").count();
    let all = || Ok((asked() == created).then_some(()));
    ringspan_testkit::wait::until(Duration::from_secs(20), "the driver to be asked for each rule", all)
}
