//! Flows of a NIC that forwards what Open vSwitch does not see: with a real Open vSwitch.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use ringspan_protocol::{Capabilities, EngineKind};
use ringspan_testkit::needs;

use super::super::report::FlowFilter;
use super::super::{Mirror, Settings};
use super::live::{PACKET, mirror_of, scene};
use super::{Fake, until};

#[test]
fn flows_of_a_nic_that_cannot_refresh_stay_while_it_forwards_and_go_when_it_is_idle() -> Result<()> {
    needs!(Ovs);
    let ovs = scene()?;
    ovs.vsctl(&["set", "Open_vSwitch", ".", "other_config:max-idle=500"])?;
    let fake = Fake::default();
    fake.told().capabilities =
        Capabilities { engine: EngineKind::RteFlow, refreshes: false, ..Capabilities::default() };
    let raised = Duration::from_secs(3);
    let mirror = mirror_of(&ovs);
    let mirror = Mirror::new(Settings { raised, ..mirror.settings.clone() });
    let thread = mirror.start(fake.clone()).expect("a thread");
    let idle = || ovs.vsctl(&["--if-exists", "get", "Open_vSwitch", ".", "other_config:max-idle"]).unwrap();
    until("max-idle is raised", || idle().contains("\"3000\"").then_some(()));
    // The NIC forwards all the time; what it has no rule for OVS sees.
    fake.told().idle_ms = 5;
    let has_rule = || !fake.told().rules.is_empty();
    let packet = || {
        if !has_rule() {
            ovs.receive("nic0_vf0", PACKET).unwrap();
        }
    };
    // Twice shown to OVS: by then it would have removed the flow if it had not been shown.
    let mut log = Vec::new();
    until("a rule that was taken out for a moment twice", || {
        packet();
        log.extend(fake.log());
        (log.iter().filter(|line| line.starts_with('+')).count() >= 3).then_some(())
    });
    assert_eq!(log.iter().map(|line| &line[1..]).collect::<BTreeSet<_>>().len(), 1, "{log:?}");
    // Nobody sends any more.
    fake.told().idle_ms = 60_000;
    let all = FlowFilter { limit: 10, ..FlowFilter::default() };
    until("the rule goes, and says why", || match mirror.list(&all, &fake).flows.first() {
        Some(flow) => (flow.reason.as_deref() == Some("idle") && !has_rule()).then_some(()),
        // Between two looks it went, and OVS removed the flow: once more.
        None => {
            packet();
            None
        }
    });
    fake.told().idle_ms = 5;
    ovs.receive("nic0_vf0", PACKET)?;
    until("the rule again", || has_rule().then_some(()));
    fake.told().idle_ms = 60_000;
    until("the flow, which OVS removes itself", || (mirror.list(&all, &fake).total == 0).then_some(()));
    // Without such a NIC it is the user's again.
    fake.told().capabilities = Capabilities::default();
    until("max-idle is restored", || idle().contains("\"500\"").then_some(()));
    mirror.end();
    thread.join().expect("the mirror ends");
    Ok(())
}

#[test]
fn dead_flows_of_such_a_nic_go_while_others_come_and_do_not_pile_up() -> Result<()> {
    needs!(Ovs);
    let ovs = scene()?;
    ovs.vsctl(&["set", "Open_vSwitch", ".", "other_config:max-idle=500"])?;
    // A flow for each pair of MAC addresses.
    ovs.ofctl("br0", "mod-flows", &["in_port=2,actions=normal"])?;
    ovs.ofctl("br0", "add-flow", &["in_port=3,actions=normal"])?;
    let fake = Fake::default();
    fake.told().capabilities =
        Capabilities { engine: EngineKind::RteFlow, refreshes: false, ..Capabilities::default() };
    // Nobody sends twice.
    fake.told().idle_ms = 60_000;
    let raised = Duration::from_secs(3);
    let mirror = mirror_of(&ovs);
    let mirror = Mirror::new(Settings { raised, max_flows: 10_000, ..mirror.settings.clone() });
    let thread = mirror.start(fake.clone()).expect("a thread");
    let idle = || ovs.vsctl(&["--if-exists", "get", "Open_vSwitch", ".", "other_config:max-idle"]).unwrap();
    until("max-idle is raised", || idle().contains("\"3000\"").then_some(()));
    let source = |number: u32| format!("02:00:00:01:{:02x}:{:02x}", number >> 8, number as u8);
    let send = |number| {
        let packet = format!("in_port(1),eth(src={},dst=02:00:00:00:00:02),eth_type(0x1234)", source(number));
        ovs.receive("nic0_vf0", &packet).unwrap();
    };
    let all = FlowFilter { limit: 10_000, ..FlowFilter::default() };
    let known = |number: u32| mirror.list(&all, &fake).flows.iter().any(|flow| flow.matches.contains(&source(number)));
    until("where the others send to is known, and the first flow is in the NIC", || {
        ovs.receive("nic0_vf1", "in_port(2),eth(src=02:00:00:00:00:02,dst=02:00:00:01:00:00),eth_type(0x1234)")
            .unwrap();
        send(0);
        (known(0) && !fake.told().rules.is_empty()).then_some(())
    });
    let begun = Instant::now();
    let (mut sent, mut most) = (0, 0);
    until("the first flow goes while others come", || {
        sent += 1;
        send(sent);
        most = most.max(fake.told().rules.len());
        (sent >= 20 && !known(0)).then_some(())
    });
    println!(
        "{sent} flows came, of whose rules the NIC had {most} at most; the first one was gone after {:?}",
        begun.elapsed()
    );
    // Their rules went long before.
    assert!(most < sent as usize, "{most} rules of {sent} flows");
    until("all go", || (mirror.list(&all, &fake).total == 0).then_some(()));
    assert!(fake.told().rules.is_empty());
    mirror.end();
    thread.join().expect("the mirror ends");
    Ok(())
}

#[test]
fn where_openflow_has_short_timeouts_rules_show_their_packets_often() -> Result<()> {
    needs!(Ovs);
    let ovs = scene()?;
    let fake = Fake::default();
    let mirror = mirror_of(&ovs);
    let thread = mirror.start(fake.clone()).expect("a thread");
    let every = |wanted: Duration| until("a time", || (fake.told().refresh == Some(wanted)).then_some(()));
    every(Duration::from_secs(4));
    ovs.ofctl("br0", "add-flow", &["in_port=3,idle_timeout=3,actions=output:2"])?;
    every(Duration::from_secs(1));
    // Another life of it has not been told.
    fake.told().refresh = None;
    fake.told().life += 1;
    every(Duration::from_secs(1));
    ovs.ofctl("br0", "del-flows", &["in_port=3"])?;
    every(Duration::from_secs(4));
    mirror.end();
    thread.join().expect("the mirror ends");
    Ok(())
}
