//! What follows from what a source tells: rules that come, change and go.

use std::collections::BTreeMap;

use ringspan_protocol::rule::{Action, RuleId};
use ringspan_protocol::{Capabilities, EngineKind, NicPort};

use super::super::report::{FlowFilter, FlowState};
use super::super::run::lock;
use super::super::table::State;
use super::super::work::Work;
use super::super::{Mirror, Settings};
use super::{Fake, SOON, all_steps, line, round};
use crate::ovs::client::Place;

#[test]
fn what_goes_is_removed_before_what_comes_is_installed_and_what_stays_is_left_alone() {
    let (mut work, fake) = (Work::default(), Fake::default());
    let stays = line(1, "nic0_vf0", 0x1234, "nic0_vf1");
    assert_eq!(round(&mut work, &fake, &[stays.clone(), line(2, "nic0", 0x1234, "nic0_vf0")]).len(), 2);
    assert_eq!(round(&mut work, &fake, &[stays.clone(), line(2, "nic0", 0x1234, "nic0_vf0")]), [""; 0]);
    assert_eq!(round(&mut work, &fake, &[stays.clone(), line(3, "nic0", 0x1234, "nic0_vf1")]), ["-2", "+3"]);
    // Other actions take the old ones' place in one step.
    assert_eq!(round(&mut work, &fake, &[stays.clone(), line(3, "nic0", 0x1234, "drop")]), ["+3"]);
    // What cannot be offloaded any more goes at once.
    assert_eq!(round(&mut work, &fake, &[stays.clone(), line(3, "nic0", 0x1234, "br0")]), ["-3"]);
    assert_eq!(round(&mut work, &fake, &[stays, "ufid:garbage\n".into()]), [""; 0]);
    assert_eq!(work.table.misses().unreadable, 1);
    work.clear();
    all_steps(&mut work, &fake);
    assert_eq!(fake.log(), ["-1"]);
}

#[test]
fn a_nics_ports_are_known_by_the_kernels_names_of_their_representors() {
    let (mut work, fake) = (Work::default(), Fake::default());
    fake.told().names =
        BTreeMap::from([(NicPort::Uplink, "enp10s0f0np0".into()), (NicPort::Vf(0), "enp10s0f0npf0vf0".into())]);
    let flow = line(1, "enp10s0f0npf0vf0", 0x1234, "enp10s0f0np0");
    assert_eq!(round(&mut work, &fake, &[flow.clone(), line(2, "nic0_vf0", 0x1234, "nic0")]), ["+1"]);
    let rule = fake.told().rules[&RuleId(1)].clone();
    assert_eq!((rule.in_port, &rule.actions[..]), (NicPort::Vf(0), &[Action::Output(NicPort::Uplink)][..]));
    // The kernel gives it another name, and so does OVS.
    fake.told().names.insert(NicPort::Vf(0), "eth7".into());
    assert_eq!(round(&mut work, &fake, &[flow]), ["-1"]);
    assert_eq!(round(&mut work, &fake, &[line(1, "eth7", 0x1234, "enp10s0f0np0")]), ["+1"]);
}

#[test]
fn what_open_vswitch_brought_into_a_nic_by_itself_is_offloaded_and_has_no_reason() {
    let (place, fake) = (Place::new(None), Fake::default());
    fake.told().capabilities = Capabilities {
        engine: EngineKind::RteFlow,
        refreshes: false,
        refuses: Some("offload is tc".into()),
        ..Capabilities::default()
    };
    let mirror = Mirror::new(Settings { place, max_flows: 100, grace: SOON, kernel_tunnels: false, raised: SOON });
    let told = |ufid, layer: &str| line(ufid, "nic0_vf0", 0x1234, "nic0_vf1").replace("dp:ovs", layer);
    let shown = |lines: &[String]| {
        assert_eq!(round(&mut lock(&mirror.common.shared).work, &fake, lines), [""; 0]);
        let flows = mirror.list(&FlowFilter { limit: 10, ..FlowFilter::default() }, &fake).flows;
        flows.into_iter().map(|flow| (flow.state, flow.reason, flow.layer)).collect::<Vec<_>>()
    };
    let (engine, tc) = (|| Some("engine".to_owned()), || Some("tc".to_owned()));
    let lines = [told(1, "offloaded:yes, dp:tc"), told(2, "dp:ovs"), told(3, "offloaded:partial, dp:ovs")];
    let expected =
        [(FlowState::Offloaded, None, tc()), (FlowState::Not, engine(), None), (FlowState::Partial, None, None)];
    assert_eq!(shown(&lines), expected);
    let stats = mirror.stats(&fake);
    assert_eq!((stats.by_state["offloaded"], stats.by_reason["engine"], stats.by_reason.len()), (1, 1, 1));
    let engine_s = FlowFilter { limit: 10, reason: engine(), ..FlowFilter::default() };
    assert_eq!(mirror.list(&engine_s, &fake).total, 1);
    // One goes into the NIC and another one out of it, and nothing else changes.
    let lines = [told(1, "dp:ovs"), told(2, "offloaded:yes, dp:tc")];
    assert_eq!(shown(&lines), [(FlowState::Not, engine(), None), (FlowState::Offloaded, None, tc())]);
    // Where Open vSwitch does so, the kernel's datapath does not tell of all flows, whatever NIC they are of.
    let mut shared = lock(&mirror.common.shared);
    assert!(!shared.work.is_with_tc());
    shared.work.hw_offload = Some(crate::ovs::owner::Owning::Set);
    assert!(shared.work.is_with_tc());
}

#[test]
fn what_open_vswitch_brings_into_nics_by_itself_is_not_ours_from_that_moment_on() {
    let (mut work, fake) = (Work::default(), Fake::default());
    let lines = [line(1, "nic0_vf0", 0x1234, "nic0_vf1")];
    let why = |work: &Work| match &work.table.flows[&1].state {
        State::Not(cause) => cause.sentence(),
        other => format!("{other:?}"),
    };
    assert_eq!(round(&mut work, &fake, &lines), ["+1"]);
    // The switch of a software NIC is nobody else's.
    work.hw_offload = Some(crate::ovs::owner::Owning::Set);
    assert_eq!(round(&mut work, &fake, &lines), [""; 0]);
    fake.told().capabilities =
        Capabilities { engine: EngineKind::RteFlow, refreshes: false, ..Capabilities::default() };
    assert_eq!(round(&mut work, &fake, &lines), ["-1"]);
    assert!(why(&work).contains("hw-offload is true"), "{}", why(&work));
    work.hw_offload = Some(crate::ovs::owner::Owning::UntilRestart);
    assert_eq!(round(&mut work, &fake, &lines), [""; 0]);
    assert!(why(&work).contains("until it is restarted"), "{}", why(&work));
    work.hw_offload = Some(crate::ovs::owner::Owning::Unknown);
    assert_eq!(round(&mut work, &fake, &lines), [""; 0]);
    assert!(why(&work).contains("is not known"), "{}", why(&work));
    work.hw_offload = None;
    assert_eq!(round(&mut work, &fake, &lines), ["+1"]);
    // So are rules of TC's for one of its ports, whoever put them there.
    work.tc_ruled.insert("nic0_vf1".into());
    assert_eq!(round(&mut work, &fake, &lines), ["-1"]);
    assert!(why(&work).contains("rules of TC's for nic0_vf1"), "{}", why(&work));
    work.tc_ruled.clear();
    assert_eq!(round(&mut work, &fake, &lines), ["+1"]);
    // A NIC that takes no rules is told none, and why is said of each flow.
    fake.told().capabilities.refuses = Some("offload is off".into());
    assert_eq!(round(&mut work, &fake, &lines), ["-1"]);
    assert!(why(&work).contains("offload is off"), "{}", why(&work));
}

#[test]
fn two_flows_of_one_ufid_are_both_left_to_ovs() {
    let (mut work, fake) = (Work::default(), Fake::default());
    let one = line(1, "nic0_vf0", 0x1234, "nic0_vf1");
    assert_eq!(round(&mut work, &fake, std::slice::from_ref(&one)), ["+1"]);
    assert_eq!(round(&mut work, &fake, &[one.clone(), line(1, "nic0_vf0", 0x1234, "nic0")]), ["-1"]);
    assert_eq!(round(&mut work, &fake, &[one]), ["+1"]);
}

#[test]
fn what_is_inside_a_tunnel_goes_with_the_flow_that_takes_it_out() {
    let (mut work, fake) = (Work::default(), Fake::default());
    let flow = |ufid: u128, keys: &str, actions: &str| {
        let ufid = crate::ovs::flow::Ufid(ufid);
        format!("ufid:{ufid}, recirc_id(0),{keys}, packets:1, bytes:60, used:0.1s, dp:ovs, actions:{actions}\n")
    };
    let any = "packet_type(ns=0,id=0),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0800)";
    let pop = flow(
        1,
        &format!(
            "in_port(nic0),{any},ipv4(src=172.16.0.2,dst=172.16.0.1,proto=17,tos=0/0,ttl=64/0,frag=no),udp(src=41000/0,dst=4789)"
        ),
        "tnl_pop(vxlan_sys_4789)",
    );
    let inner = flow(
        2,
        &format!(
            "tunnel(tun_id=0x64,src=172.16.0.2,dst=172.16.0.1,ttl=64/0,tp_src=41000/0,tp_dst=4789/0,flags(-df-csum+key)),\
             in_port(vxlan_sys_4789),{any},ipv4(src=10.0.0.1/0.0.0.0,dst=10.0.0.2/0.0.0.0,proto=17/0,tos=0/0,ttl=64/0,frag=no)"
        ),
        "nic0_vf1",
    );
    assert_eq!(round(&mut work, &fake, &[pop.clone(), inner.clone()]), ["+2"]);
    // It takes packets of another host out now.
    let other = pop.replace("src=172.16.0.2", "src=172.16.0.3");
    assert_eq!(round(&mut work, &fake, &[other, inner.clone()]), ["-2"]);
    assert_eq!(round(&mut work, &fake, &[pop, inner.clone()]), ["+2"]);
    assert_eq!(round(&mut work, &fake, &[inner]), ["-2"]);
}
