//! What is said of Open vSwitch as it was made up here.

use super::*;

const HEAD: &str = "ufid:0d7c, recirc_id(0),in_port(p1),eth_type(0x0800)";

fn count(lines: &[&str]) -> Datapath {
    let text: String = lines.iter().map(|line| format!("{HEAD}{line}\n")).collect();
    Datapath::count("system@ovs-system", &text, &BTreeSet::new())
}

#[test]
fn flows_are_counted_by_what_is_offloaded_and_what_tracks() {
    let all = count(&[
        ", packets:10, bytes:600, used:0.1s, offloaded:yes, dp:tc, actions:p2",
        ", packets:0, bytes:0, used:never, offloaded:partial, dp:ovs, actions:p2",
        ",ct_state(0/0), packets:100, bytes:1, used:1s, dp:ovs, actions:ct(commit,zone=5),recirc(0x1)",
        ",ct_state(+est-new/+est+new), packets:1, bytes:1, used:1s, dp:ovs, actions:ct_clear,p2",
    ]);
    assert_eq!((all.flows, all.with_packets, all.offloaded, all.partial, all.conntrack), (4, 3, 1, 1, 2));
    assert_eq!(Datapath::count("x", "flow-dump from the main thread:\n", &BTreeSet::new()).flows, 0);
}

#[test]
fn traffic_of_others_does_not_say_that_a_nic_does_not_work() {
    let vfs = BTreeSet::from(["rep0"]);
    let flows = |lines: &[(&str, &str)]| {
        let line = |(from, to): &(&str, &str)| {
            format!(
                "ufid:0d7c, recirc_id(0),in_port({from}),eth_type(0x0800), packets:7, bytes:1, used:1s, actions:{to}\n"
            )
        };
        [Datapath::count("system@ovs-system", &lines.iter().map(line).collect::<String>(), &vfs)]
    };
    let own = Own { rules: Some(0), representors: vec!["rep0".into()], ..Own::default() };
    let view = View::default();
    let others = flows(&[("eth0", "br0"), ("br0", "push_vlan(vid=5,pcp=0),eth0"), ("eth0", "rep01")]);
    let (verdict, summary) = judge(&view, &others, &own, false);
    assert_eq!(verdict, Verdict::NoTraffic, "{summary}");
    assert!(summary.contains("none of those comes from a VF"), "{summary}");
    assert_eq!((offloaded(&view, &others, &own).state, own_rules(&others, &own).state), (State::Unknown, State::Ok));
    for ours in [("rep0", "eth0"), ("eth0", "pop_vlan,rep0"), ("eth0", "clone(rep0),br0")] {
        let ours = flows(&[ours]);
        assert_eq!(judge(&view, &ours, &own, false).0, Verdict::NotWorking, "{ours:?}");
        let check = own_rules(&ours, &own);
        assert!(check.state == State::Warning && check.remedy.unwrap().contains("flow list --why"));
    }
}

#[test]
fn nobody_is_told_to_set_what_would_take_ringspans_rules_away() {
    let process = Process { pid: 1, started: Some(2) };
    let rep = |name: &str| Representor { name: name.into(), port: "pf0vf0".into(), nic: None };
    let own = Own { unseen: vec!["nic1".into()], representors: vec!["rep0".into()], ..Own::default() };
    let state = |view: &View, reps: &[Representor], own: &Own| hw_offload(view, process, reps, own).state;
    let (off, on) = (View::default(), View { hw_offload: true, ..View::default() });
    assert_eq!(state(&off, &[rep("rep0")], &own), State::Ok, "the NIC is ringspan's");
    assert_eq!(state(&off, &[rep("rep0")], &Own::default()), State::Failed, "it is Open vSwitch's");
    assert_eq!(state(&off, &[rep("rep0"), rep("rep9")], &own), State::Failed, "another one is Open vSwitch's");
    assert_eq!(state(&on, &[rep("rep0")], &Own::default()), State::Ok);
    // A software NIC's flows are where the kernel does not tell of them.
    let port = |name: &str| crate::ovs::view::Port { name: name.into(), ..Default::default() };
    let on_bridge = |kind: &str| crate::ovs::view::Bridge {
        name: "br0".into(),
        datapath_type: kind.into(),
        ports: vec![port("nic0_vf0")],
    };
    let soft = Own { software: vec!["nic0_vf0".into()], representors: vec!["nic0_vf0".into()], ..Own::default() };
    for (kind, hw_offload, wanted) in
        [("system", true, State::Warning), ("netdev", true, State::Ok), ("system", false, State::Ok)]
    {
        let view = View { hw_offload, bridges: vec![on_bridge(kind)], ..View::default() };
        assert_eq!(state(&view, &[], &soft), wanted, "{kind} {hw_offload}");
    }
}

#[test]
fn a_representor_that_both_lists_have_is_counted_once() {
    let told = missing(&View::default(), &["rep0", "rep1", "rep0"].into());
    assert!(told.message.starts_with("2 of 2 VF representors"), "{}", told.message);
}

#[test]
fn no_traffic_yet_is_told_from_not_working() {
    let on = View { hw_offload: true, ..View::default() };
    let own = Own::default();
    let idle = [count(&[", packets:0, bytes:0, used:never, dp:ovs, actions:p2"])];
    let busy = [count(&[", packets:7, bytes:0, used:1s, dp:ovs, actions:p2"])];
    let good = [count(&[", packets:7, bytes:0, used:1s, offloaded:yes, dp:tc, actions:p2"])];
    for (datapaths, verdict, state) in [
        (&[][..], Verdict::NoTraffic, State::Unknown),
        (&idle, Verdict::NoTraffic, State::Unknown),
        (&busy, Verdict::NotWorking, State::Failed),
        (&good, Verdict::Working, State::Ok),
    ] {
        assert_eq!(judge(&on, datapaths, &own, true).0, verdict);
        assert_eq!(offloaded(&on, datapaths, &own).state, state);
    }
    assert_eq!(judge(&View::default(), &busy, &own, false).0, Verdict::Off);
    let ours = Own { rules: Some(3), ..Own::default() };
    assert_eq!(judge(&View::default(), &busy, &ours, false).0, Verdict::Working);
}

#[test]
fn one_flow_is_no_plural() {
    let on = View { hw_offload: true, ..View::default() };
    let busy = [count(&[", packets:7, bytes:0, used:1s, dp:ovs, actions:ct,p2"])];
    let ours = |rules| Own { rules: Some(rules), ..Own::default() };
    for (told, expected) in [
        (
            judge(&on, &busy, &Own::default(), true).1,
            "offload does not work: 1 flow carries packets, and none is offloaded",
        ),
        (judge(&on, &busy, &ours(1), true).1, "offload works: 0 of 1 flow by OVS, 1 rule by ringspan"),
        (offloaded(&on, &busy, &ours(1)).message, "0 of 1 flow offloaded by OVS, and 1 of them saw packets"),
        (own_rules(&busy, &ours(0)).message, "no rule is installed by ringspan, and 1 flow of VFs saw packets"),
        (conntrack(&busy, &[]).message, "1 flow needs connection tracking: the software NIC does not offload them"),
        (no_traffic(1, 0), "no traffic yet: 0 of 1 flow saw a packet"),
    ] {
        assert_eq!(told, expected);
    }
}

#[test]
fn a_broken_interface_of_a_bond_is_removed_by_the_ports_name() {
    let interface = |name: &str, error: Option<&str>| crate::ovs::view::Interface {
        name: name.into(),
        error: error.map(Into::into),
        ..Default::default()
    };
    let interfaces_of = vec![interface("eth0", None), interface("eth1", Some("No such device"))];
    let port = crate::ovs::view::Port { name: "uplinks".into(), interfaces: interfaces_of, ..Default::default() };
    let bridge = crate::ovs::view::Bridge { name: "br0".into(), ports: vec![port], ..Default::default() };
    let told = interfaces(&View { bridges: vec![bridge], ..View::default() });
    assert!(told.message.contains("eth1 on br0: No such device"), "{told:?}");
    assert!(told.remedy.as_deref().is_some_and(|remedy| remedy.ends_with("--remove-port uplinks")), "{told:?}");
}

#[test]
fn a_switch_that_no_packet_reaches_is_told_from_one_that_lost_some() {
    let show = |lookups: &str| {
        count(&[]).with_lookups(&format!("system@ovs-system:\n  lookups: {lookups}\n  flows: 0\n  port 0: x\n"))
    };
    assert_eq!((show("hit:7 missed:3 lost:1").missed, show("hit:7 missed:3 lost:1").lost), (3, 1));
    let state = |lookups| upcalls(&[show("hit:9 missed:9 lost:0"), show(lookups)]).state;
    assert_eq!(state("hit:0 missed:607 lost:607"), State::Failed);
    assert_eq!(state("hit:7 missed:3 lost:1"), State::Warning);
    assert_eq!(state("hit:0 missed:0 lost:0"), State::Ok);
    assert!(upcalls(&[show("hit:0 missed:6 lost:6")]).message.contains("system@ovs-system: 6 of 6 were lost"));
}

#[test]
fn who_removes_idle_flows_and_two_owners_are_said() {
    let (ovs, ours) = (View::default(), View { max_idle_was: Some("unset 120000".into()), ..View::default() });
    let own = Own { unseen: vec!["nic1".into()], ..Own::default() };
    for (view, own, state) in [
        (&ovs, &Own::default(), State::Ok),
        (&ours, &own, State::Ok),
        (&ovs, &own, State::Warning),
        (&ours, &Own::default(), State::Warning),
    ] {
        assert_eq!(idle(view, own).state, state);
    }
    assert!(idle(&ours, &own).message.contains("was unset: Open vSwitch does not see what nic1 forwards"));
    let set = Some(Owning::Set);
    assert_eq!((owners(set, &Own::default()).state, owners(None, &own).state), (State::Ok, State::Ok));
    assert_eq!(owners(set, &own).state, State::Failed);
    assert_eq!(owners(Some(Owning::Unknown), &own).state, State::Unknown);
    assert!(owners(Some(Owning::UntilRestart), &own).message.contains("until it is restarted"));
    let ruled = Own { tc_ruled: vec!["rep0".into()], ..own };
    assert!(owners(None, &ruled).message.contains("rules of TC's for rep0"));
}

#[test]
fn conntrack_on_an_old_nic_advises_to_disable_security_groups() {
    let tracked = [count(&[", packets:7, bytes:0, used:1s, dp:ovs, actions:ct(zone=1),recirc(0x2)"])];
    let nic = |device| [Representor { name: "rep0".into(), port: "pf0vf0".into(), nic: Some((0x15b3, device)) }];
    let old = conntrack(&tracked, &nic(0x1017));
    assert!(old.remedy.unwrap().contains("disable_security_group: true"));
    assert_eq!(conntrack(&tracked, &nic(0x1021)).remedy, None);
    assert_eq!(conntrack(&[], &nic(0x1017)).state, State::Ok);
}

#[test]
fn what_shapes_a_representor_is_named_and_an_ingress_of_somebody_elses_too() {
    let rep = [Representor { name: "rep0".into(), port: "pf0vf0".into(), nic: None }];
    let qdisc = |interface: &str, kind: &str| Qdisc { interface: interface.into(), kind: kind.into() };
    let found = [qdisc("eth0", "tbf"), qdisc("rep0", "tbf"), qdisc("rep0", "ingress"), qdisc("rep0", "noqueue")];
    let off = qdiscs(None, &rep, &Own::default(), &found);
    assert_eq!(off.state, State::Warning);
    assert!(off.message.ends_with(": tbf on rep0, ingress on rep0"), "{}", off.message);
    // Open vSwitch's own stay until its process ends, whatever the database says by then.
    for owning in [Owning::Set, Owning::UntilRestart, Owning::Unknown] {
        let on = qdiscs(Some(owning), &rep, &Own::default(), &found);
        assert!(on.message.ends_with(": tbf on rep0"), "{}", on.message);
    }
    assert_eq!(qdiscs(None, &rep, &Own::default(), &found[..1]).state, State::Ok);
}

#[test]
fn a_rate_is_limited_where_the_nic_can() {
    let found = ["rep0", "nic0_vf0"].map(|name| Qdisc { interface: name.into(), kind: "tbf".into() });
    let rep = [Representor { name: "rep0".into(), port: "pf0vf0".into(), nic: None }];
    let names = vec!["nic0_vf0".to_owned()];
    let own = Own { representors: names.clone(), software: names, ..Own::default() };
    let remedy = |found: &[Qdisc]| qdiscs(None, &rep, &own, found).remedy.unwrap();
    let words = |found| ["max_tx_rate", "add-meter"].map(|word| remedy(found).contains(word));
    assert_eq!(words(&found[..1]), [true, false]);
    assert_eq!(words(&found[1..]), [false, true], "a software NIC has no PF");
    assert_eq!(words(&found), [true, true]);
}

#[test]
fn the_summary_does_not_contradict_a_check_that_failed() {
    let own = Own { rules: Some(2), ..Own::default() };
    let said = |checks: &[Check], own: &Own| hindered(judge(&View::default(), &[], own, false), checks);
    let check = |state| Check::new(Checked::HwOffload, state, "hw-offload is not set");
    assert_eq!(said(&[check(State::Warning)], &own).0, Verdict::Working);
    let (verdict, summary) = said(&[check(State::Ok), check(State::Failed)], &own);
    assert_eq!(verdict, Verdict::Hindered);
    assert_eq!(summary, "offload is hindered: 0 of 0 flows by OVS, 2 rules by ringspan, but hw-offload is not set");
    // What says that it does not work is as it was.
    assert_eq!(said(&[check(State::Failed)], &Own::default()).0, Verdict::Off);
}
