//! The mirror as it runs, fed by a real Open vSwitch.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use ringspan_protocol::rule::{Action, RuleId};
use ringspan_protocol::{MeterUnit, NicPort};
use ringspan_testkit::needs;
use ringspan_testkit::ovs::Ovs;

use super::super::report::{FlowFilter, FlowState, Sort};
use super::super::{Mirror, Settings};
use super::{Fake, SOON, told, until};
use crate::ovs::client::Place;

pub(super) const PACKET: &str = "in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x1234)";

#[test]
fn flows_are_told_page_by_page_each_once() {
    let place = Place::new(None);
    let mirror = Mirror::new(Settings { place, max_flows: 100, grace: SOON, kernel_tunnels: false, raised: SOON });
    for ufid in [7, 3, 5, 1, 4] {
        let told = told(ufid, "nic0_vf0", 0x1000 + ufid as u16, "nic0_vf1");
        super::super::run::lock(&mirror.common.shared).work.table.put(told, 100);
    }
    let (mut after, mut pages) = (None, Vec::new());
    loop {
        let flows = mirror.list(&FlowFilter { limit: 2, after, ..FlowFilter::default() }, &Fake::default());
        let Some(last) = flows.flows.last() else { break };
        after = Some(last.ufid.parse().unwrap());
        pages.push((flows.total, flows.flows.iter().map(|flow| flow.ufid.clone()).collect::<Vec<_>>()));
    }
    let named = |ufids: &[u128]| ufids.iter().map(|ufid| crate::ovs::flow::Ufid(*ufid).to_string()).collect();
    assert_eq!(pages, [(5, named(&[1, 3])), (3, named(&[4, 5])), (1, named(&[7]))]);
}

#[test]
fn what_ovs_decides_is_in_the_nic_and_follows_what_it_decides_next() -> Result<()> {
    needs!(Ovs);
    let mut ovs = scene()?;
    let fake = Fake::default();
    // What an earlier daemon left behind.
    let stale =
        serde_json::from_str(r#"{"id":"00000000-0000-0000-0000-000000000009","in_port":"vf0","actions":["drop"]}"#)?;
    fake.told().rules.insert(RuleId(9), stale);
    let mirror = mirror_of(&ovs);
    let grace = mirror.settings.grace;
    let thread = mirror.start(fake.clone()).expect("a thread");
    until("the stale rule is gone", || fake.told().rules.is_empty().then_some(()));
    ovs.receive("nic0_vf0", PACKET)?;
    let actions = || fake.told().rules.values().map(|rule| serde_json::to_string(&rule.actions).unwrap()).next();
    assert_eq!(until("the flow's rule", actions), r#"[{"output":"vf1"}]"#);
    let all = FlowFilter { limit: 10, ..FlowFilter::default() };
    let flows = mirror.list(&FlowFilter { port: Some("nic0_vf0".into()), sort: Sort::Packets, ..all.clone() }, &fake);
    let [flow] = &flows.flows[..] else { panic!("{flows:?}") };
    assert_eq!(
        (flow.state, flow.rule.unwrap().packets, flow.actions.as_str()),
        (FlowState::Offloaded, 100, "nic0_vf1")
    );
    assert_eq!(mirror.list(&FlowFilter { port: Some("nic0".into()), ..all.clone() }, &fake).total, 0);
    // OpenFlow changes its mind: first to another port, then to one that is no NIC's.
    ovs.ofctl("br0", "mod-flows", &["in_port=2,actions=output:1"])?;
    until("the other port", || (actions()? == r#"[{"output":"uplink"}]"#).then_some(()));
    ovs.ofctl("br0", "mod-flows", &["in_port=2,actions=local"])?;
    until("no rule", || fake.told().rules.is_empty().then_some(()));
    let flow = &mirror.list(&all, &fake).flows[0];
    assert_eq!((flow.state, flow.reason.as_deref()), (FlowState::Not, Some("output")));
    assert!(flow.why.as_ref().unwrap().contains("br0"), "{flow:?}");
    assert_eq!(mirror.stats(&fake).by_reason["output"], 1);
    // OVS dies: its rules go after the grace period, and come back with it.
    ovs.ofctl("br0", "mod-flows", &["in_port=2,actions=output:3"])?;
    until("the rule again", actions);
    ovs.stop_switch();
    let died = Instant::now();
    until("the grace period's end", || fake.told().rules.is_empty().then_some(()));
    // It counts from the last dump, which was made a little before.
    assert!(died.elapsed() >= grace / 3, "{:?}", died.elapsed());
    assert!(mirror.stats(&fake).trouble.is_some());
    ovs.start_switch()?;
    ovs.ofctl("br0", "add-flow", &["in_port=2,actions=output:3"])?;
    until("the rule after the restart", || {
        ovs.receive("nic0_vf0", PACKET).ok()?;
        actions()
    });
    assert_eq!(mirror.stats(&fake).trouble, None);
    mirror.end();
    thread.join().expect("the mirror ends");
    assert!(!fake.told().rules.is_empty(), "rules stay when the daemon ends");
    Ok(())
}

#[test]
fn a_switch_that_hangs_keeps_its_rules_no_longer_than_one_that_is_gone() -> Result<()> {
    needs!(Ovs);
    let ovs = scene()?;
    let fake = Fake::default();
    let mirror = mirror_of(&ovs);
    let thread = mirror.start(fake.clone()).expect("a thread");
    ovs.receive("nic0_vf0", PACKET)?;
    until("a rule", || (!fake.told().rules.is_empty()).then_some(()));
    let pid = nix::unistd::Pid::from_raw(ovs.pid().try_into()?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP)?;
    // Its answer would be waited for as long as this.
    until("no rule", || fake.told().rules.is_empty().then_some(()));
    let trouble = mirror.stats(&fake).trouble.unwrap_or_default();
    assert!(trouble.contains("does not answer"), "{trouble}");
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT)?;
    until("the rule again", || {
        ovs.receive("nic0_vf0", PACKET).ok()?;
        (!fake.told().rules.is_empty()).then_some(())
    });
    mirror.end();
    thread.join().expect("the mirror ends");
    Ok(())
}

#[test]
fn flows_are_listed_while_a_nic_does_not_answer() -> Result<()> {
    needs!(Ovs);
    let ovs = scene()?;
    let fake = Fake::default();
    fake.told().held = true;
    let mirror = Arc::new(mirror_of(&ovs));
    let thread = mirror.start(fake.clone()).expect("a thread");
    ovs.receive("nic0_vf0", PACKET)?;
    until("an engine that is asked", || fake.told().is_waited_for.then_some(()));
    let (answer, answered) = std::sync::mpsc::channel();
    let asked = Arc::clone(&mirror);
    std::thread::spawn(move || {
        let _ = answer.send(asked.list(&FlowFilter { limit: 10, ..FlowFilter::default() }, &Fake::default()));
    });
    let flows = answered.recv_timeout(SOON)?;
    assert_eq!((flows.total, flows.flows[0].state), (1, FlowState::Pending));
    fake.told().held = false;
    mirror.end();
    thread.join().expect("the mirror ends");
    Ok(())
}

#[test]
fn a_flow_with_a_meter_is_in_the_nic_with_the_limits_that_openflow_says() -> Result<()> {
    needs!(Ovs);
    let ovs = scene()?;
    let meter = |command: &str, words: &str| ovs.ofctl("br0", command, &["-O", "OpenFlow13", words]);
    // So that the numbers of the datapath, which begin with 0, are not those of OpenFlow.
    meter("add-meter", "meter=5,kbps,bands=type=drop,rate=1")?;
    meter("add-meter", "meter=9,pktps,burst,bands=type=drop,rate=1000,burst_size=10")?;
    meter("mod-flows", "in_port=2,actions=meter:9,output:3")?;
    let fake = Fake::default();
    let mirror = mirror_of(&ovs);
    let thread = mirror.start(fake.clone()).expect("a thread");
    ovs.receive("nic0_vf0", PACKET)?;
    let limits = || {
        let told = fake.told();
        let rule = told.rules.values().next()?;
        let [Action::Meter(id), Action::Output(NicPort::Vf(1))] = rule.actions[..] else { return None };
        told.meters.get(&id).copied()
    };
    let first = until("a rule with its meter", limits);
    assert_eq!((first.unit, first.rate, first.burst), (MeterUnit::Packets, 1000, 10));
    meter("mod-meter", "meter=9,kbps,bands=type=drop,rate=64")?;
    until("other limits", || limits().filter(|now| (now.unit, now.rate, now.burst) == (MeterUnit::Kbit, 64, 0)));
    // What the NIC's meters cannot do stays with OVS, and says why.
    meter("mod-meter", "meter=9,kbps,bands=type=drop,rate=64,type=drop,rate=128")?;
    until("no rule", || fake.told().rules.is_empty().then_some(()));
    let flow = mirror.list(&FlowFilter { limit: 10, ..FlowFilter::default() }, &fake).flows.remove(0);
    assert_eq!(flow.reason.as_deref(), Some("meter"));
    assert!(flow.why.as_ref().is_some_and(|why| why.contains("meter 9 has 2 bands")), "{flow:?}");
    mirror.end();
    thread.join().expect("the mirror ends");
    Ok(())
}

/// Three ports of a NIC on a bridge, and a flow from the second to the third.
pub(super) fn scene() -> Result<Ovs> {
    let ovs = Ovs::start()?;
    ovs.add_bridge("br0")?;
    for (at, port) in ["nic0", "nic0_vf0", "nic0_vf1"].into_iter().enumerate() {
        ovs.add_port("br0", port, &[&format!("ofport_request={}", at + 1)])?;
    }
    ovs.ofctl("br0", "add-flow", &["in_port=2,actions=output:3"])?;
    Ok(ovs)
}

pub(super) fn mirror_of(ovs: &Ovs) -> Mirror {
    let place = Place::new(Some(ovs.run_dir()));
    let (grace, raised) = (Duration::from_secs(1), Duration::from_secs(60));
    Mirror::new(Settings { place, max_flows: 100, grace, kernel_tunnels: false, raised })
}
