//! The mirror against an engine that notes what it is told: fed by hand, and by a real Open vSwitch.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Result;
use ringspan_protocol::rule::{Action, Rule, RuleCounters, RuleId, RuleResult};
use ringspan_protocol::{Capabilities, EngineKind, Failure, FailureKind, MeterSpec, MeterUnit, NicName, NicPort};
use ringspan_testkit::needs;
use ringspan_testkit::ovs::Ovs;

use super::report::{FlowFilter, FlowState, Sort};
use super::step::Outcome;
use super::table::{Misses, Source, State, Told as ToldFlow};
use super::work::{Change, News, Work};
use super::{Engine, Mirror, Nic, Settings};
use crate::error::{Error, ErrorKind};
use crate::ovs::client::Place;

const SOON: Duration = Duration::from_secs(20);

/// What an engine is and was told.
#[derive(Default)]
struct Told {
    rules: BTreeMap<RuleId, Rule>,
    /// `+id` and `-id`, in order.
    log: Vec<String>,
    life: u64,
    down: bool,
    /// Ids that it refuses.
    refused: Vec<RuleId>,
    /// It takes rules, and has none: what they take is not measured.
    keeps_nothing: bool,
    /// It removes nothing.
    stuck: bool,
    /// It takes rules, and does not answer.
    held: bool,
    /// Names of representors that are not as a software NIC has them.
    names: BTreeMap<NicPort, String>,
    capabilities: Capabilities,
    meters: BTreeMap<u32, MeterSpec>,
    /// How long ago each rule's last packet was.
    idle_ms: u64,
    /// It was asked to take rules while it did not answer.
    is_waited_for: bool,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Told>>);

impl Fake {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap()
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.told().log)
    }

    fn up(&self) -> Result<MutexGuard<'_, Told>, Error> {
        let told = self.told();
        if told.down { Err(Error::new(ErrorKind::LaneDown, "the lane is down")) } else { Ok(told) }
    }
}

impl Engine for Fake {
    fn nics(&self) -> Vec<Nic> {
        let name: NicName = "nic0".parse().unwrap();
        let told = self.told();
        let ports = [NicPort::Uplink, NicPort::Vf(0), NicPort::Vf(1)];
        let named = |port: NicPort| (port, told.names.get(&port).cloned().unwrap_or_else(|| port.representor(&name)));
        let ports = ports.map(named).to_vec();
        let capabilities = told.capabilities.clone();
        vec![Nic { ports, name, capabilities, life: told.life, empty: told.rules.is_empty() && !told.keeps_nothing }]
    }

    fn set_meters(&self, _: &NicName, meters: &[MeterSpec]) -> Result<(), Error> {
        self.up()?.meters.extend(meters.iter().map(|meter| (meter.id, *meter)));
        Ok(())
    }

    fn install(&self, _: &NicName, rules: &[Rule]) -> Result<Vec<RuleResult>, Error> {
        while self.told().held {
            self.told().is_waited_for = true;
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut told = self.up()?;
        let mut results = Vec::new();
        for rule in rules {
            let refused = told.refused.contains(&rule.id);
            told.log.push(format!("{}{}", if refused { '!' } else { '+' }, rule.id.0));
            if !refused && !told.keeps_nothing {
                told.rules.insert(rule.id, rule.clone());
            }
            let error = refused.then(|| Failure::new(FailureKind::NoRoom, "the table is full"));
            results.push(RuleResult { id: rule.id, error });
        }
        Ok(results)
    }

    fn remove(&self, _: &NicName, ids: &[RuleId]) -> Result<(), Error> {
        let mut told = self.up()?;
        if told.stuck {
            return Err(Error::new(ErrorKind::LaneDown, "the lane is stuck"));
        }
        for id in ids {
            told.log.push(format!("-{}", id.0));
            told.rules.remove(id);
        }
        Ok(())
    }

    fn rules(&self, _: &NicName) -> Result<Vec<Rule>, Error> {
        Ok(self.up()?.rules.values().cloned().collect())
    }

    fn counters(&self, _: &NicName) -> Result<Vec<RuleCounters>, Error> {
        let told = self.up()?;
        Ok(told
            .rules
            .keys()
            .map(|id| RuleCounters { id: *id, packets: 100, bytes: 6000, idle_ms: Some(told.idle_ms) })
            .collect())
    }
}

fn line(ufid: u128, from: &str, kind: u16, actions: &str) -> String {
    let ufid = crate::ovs::flow::Ufid(ufid);
    format!(
        "ufid:{ufid}, recirc_id(0),in_port({from}),packet_type(ns=0,id=0),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type({kind:#06x}), packets:1, bytes:60, used:0.1s, dp:ovs, actions:{actions}\n"
    )
}

fn round(work: &mut Work, fake: &Fake, lines: &[String]) -> Vec<String> {
    work.limit = 1000;
    whole(work, fake, &lines.concat());
    fake.log()
}

/// A dump, and all that follows from it, as the mirror's threads do it.
fn whole(work: &mut Work, fake: &Fake, text: &str) {
    work.complete = true;
    work.look(&fake.nics());
    work.table.begin(Source::Text);
    let (mut told, mut misses) = (Vec::new(), Misses::default());
    for line in text.lines().filter(|line| !work.table.is_as_before(line.as_bytes())) {
        match ToldFlow::from_line(line) {
            Some(flow) => told.push(flow),
            None => misses.unreadable(line),
        }
    }
    work.take(News::Dump { source: Source::Text, told, misses });
    all_steps(work, fake);
}

fn all_steps(work: &mut Work, fake: &Fake) {
    while let Some(step) = work.next() {
        work.done(step.run(fake));
    }
}

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
fn a_refused_rule_is_a_reason_and_the_old_one_does_not_stay() {
    let (mut work, fake) = (Work::default(), Fake::default());
    assert_eq!(round(&mut work, &fake, &[line(1, "nic0_vf0", 0x1234, "nic0_vf1")]), ["+1"]);
    fake.told().refused.push(RuleId(1));
    assert_eq!(round(&mut work, &fake, &[line(1, "nic0_vf0", 0x1234, "nic0")]), ["!1", "-1"]);
    assert!(fake.told().rules.is_empty());
}

#[test]
fn what_was_refused_is_tried_again_when_another_rule_goes() {
    let (mut work, fake) = (Work::default(), Fake::default());
    let (one, two) = (line(1, "nic0_vf0", 0x1234, "nic0_vf1"), line(2, "nic0_vf0", 0x1235, "nic0_vf1"));
    round(&mut work, &fake, std::slice::from_ref(&one));
    fake.told().refused.push(RuleId(2));
    assert_eq!(round(&mut work, &fake, &[one.clone(), two.clone()]), ["!2", "-2"]);
    assert_eq!(round(&mut work, &fake, &[one, two.clone()]), [""; 0]);
    fake.told().refused.clear();
    assert_eq!(round(&mut work, &fake, &[two]), ["-1", "+2"]);
}

#[test]
fn nothing_is_installed_in_a_nic_that_did_not_remove_what_it_should_have() {
    let (mut work, fake) = (Work::default(), Fake::default());
    round(&mut work, &fake, &[line(1, "nic0_vf0", 0x1234, "nic0_vf1")]);
    let other = [line(2, "nic0_vf0", 0x1234, "nic0")];
    fake.told().stuck = true;
    assert_eq!(round(&mut work, &fake, &other), [""; 0]);
    assert!(work.trouble.is_some());
    fake.told().stuck = false;
    assert_eq!(round(&mut work, &fake, &other), ["-1", "+2"]);
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

#[test]
fn a_lane_that_lost_its_rules_gets_them_again_and_what_it_kept_is_not_touched() {
    let (mut work, fake) = (Work::default(), Fake::default());
    let lines = [line(1, "nic0_vf0", 0x1234, "nic0_vf1"), line(2, "nic0", 0x1234, "nic0_vf0")];
    round(&mut work, &fake, &lines);
    {
        let mut told = fake.told();
        told.life += 1;
        told.rules.remove(&RuleId(2));
    }
    assert_eq!(round(&mut work, &fake, &lines), ["+2"]);
    // A new daemon knows nothing, and finds what an old one left: a flow that is there, and one that is not any more.
    let mut new = Work::default();
    assert_eq!(round(&mut new, &fake, &lines[..1]), ["-2"]);
    assert_eq!(round(&mut new, &fake, &lines[..1]), [""; 0]);
}

#[test]
fn a_rule_that_two_nics_have_stays_in_the_one_that_it_belongs_to() {
    let (mut work, fake) = (Work::default(), Fake::default());
    let lines = [line(1, "nic0_vf0", 0x1234, "nic0_vf1")];
    round(&mut work, &fake, &lines);
    let rule = fake.told().rules[&RuleId(1)].clone();
    let right = fake.nics().remove(0);
    let name: NicName = "nic1".parse().unwrap();
    let ports = right.ports.iter().map(|(port, _)| (*port, port.representor(&name))).collect();
    let wrong = Nic { name, ports, ..right.clone() };
    for found in [[&right, &wrong], [&wrong, &right]] {
        // As a new daemon finds it.
        let mut work = Work::new(10);
        work.complete = true;
        work.look(&[right.clone(), wrong.clone()]);
        work.table.begin(Source::Text);
        let told = vec![told(1, "nic0_vf0", 0x1234, "nic0_vf1")];
        work.take(News::Dump { source: Source::Text, told, misses: Misses::default() });
        let asked = work.next().unwrap();
        assert_eq!(asked.ask.len(), 2);
        let found = found.map(|nic| (nic.clone(), vec![rule.clone()])).to_vec();
        work.done(Outcome { found, ..Outcome::default() });
        let step = work.next().unwrap();
        assert_eq!(step.removals.get(&wrong.name), Some(&vec![RuleId(1)]));
        // Either it is not touched there, or it is installed again after it was removed.
        assert_eq!(step.removals.contains_key(&right.name), step.installs.contains_key(&right.name));
        assert!(!step.installs.contains_key(&wrong.name));
    }
}

#[test]
fn a_nic_that_was_made_anew_without_anybody_noticing_gets_its_rules_again() {
    let (mut work, fake) = (Work::default(), Fake::default());
    let lines = [line(1, "nic0_vf0", 0x1234, "nic0_vf1")];
    round(&mut work, &fake, &lines);
    fake.told().rules.clear();
    // Its word may be older than the install, at first.
    assert_eq!(round(&mut work, &fake, &lines), [""; 0]);
    let again = until("the rule again", || Some(round(&mut work, &fake, &lines)).filter(|log| !log.is_empty()));
    assert_eq!(again, ["+1"]);
}

#[test]
fn an_engine_that_cannot_be_told_is_told_as_soon_as_it_can_be() {
    let (mut work, fake) = (Work::default(), Fake::default());
    let lines = [line(1, "nic0_vf0", 0x1234, "nic0_vf1")];
    fake.told().down = true;
    assert_eq!(round(&mut work, &fake, &lines), [""; 0]);
    assert!(work.trouble.is_some());
    fake.told().down = false;
    assert_eq!(round(&mut work, &fake, &lines), ["+1"]);
    // A removal that failed is made up for, too.
    fake.told().down = true;
    round(&mut work, &fake, &[]);
    fake.told().down = false;
    assert_eq!(round(&mut work, &fake, &[]), ["-1"]);
}

/// Counts the lines that are not as before.
struct AsBefore<'a> {
    work: &'a mut Work,
    others: usize,
}

impl crate::ovs::client::Lines for AsBefore<'_> {
    fn line(&mut self, line: &[u8]) {
        self.others += usize::from(!self.work.table.is_as_before(line));
    }

    fn pause(&mut self) {}
}

/// With `RINGSPAN_FLOWS=100000` and `--release --nocapture` it is a measurement, too.
#[test]
fn many_flows_take_less_than_a_kibibyte_each_and_a_dump_without_a_change_tells_the_engine_nothing() {
    let count: u32 = std::env::var("RINGSPAN_FLOWS").ok().and_then(|count| count.parse().ok()).unwrap_or(3000);
    let any = "skb_priority(0/0),skb_mark(0/0),ct_state(0/0),ct_zone(0/0),ct_mark(0/0),ct_label(0/0),recirc_id(0),dp_hash(0/0)";
    let flow = |at: u32| {
        let ufid = crate::ovs::flow::Ufid((u128::from(at) << 96) | (u128::from(at) * 0x9e37_79b9_7f4a_7c15));
        let [_, a, b, c] = at.to_be_bytes();
        format!(
            "ufid:{ufid}, {any},in_port(nic0_vf0),packet_type(ns=0,id=0),eth(src=02:00:00:{a:02x}:{b:02x}:{c:02x},dst=02:00:00:00:00:02),eth_type(0x0800),ipv4(src=10.{a}.{b}.{c}/0.0.0.0,dst=10.0.0.2/0.0.0.0,proto=17/0,tos=0/0,ttl=64/0,frag=no),udp(src=1/0,dst=2/0), packets:10, bytes:600, used:0.123s, dp:ovs, actions:nic0_vf1, dp-extra-info:miniflow_bits(5,1)\n"
        )
    };
    let text: String = (0..count).map(flow).collect();
    let (mut work, fake) = (Work::default(), Fake::default());
    let cpu = || {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
        Duration::from(now)
    };
    work.limit = 200_000;
    // Kilobytes of this process that are in memory (proc(5)); alone in its process only this test's.
    let memory = || -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    fake.told().keeps_nothing = true;
    let before = memory();
    let begun = cpu();
    whole(&mut work, &fake, &text);
    println!("{} bytes; first: {:?}", text.len(), cpu() - begun);
    // With what the allocator does not give back.
    println!("{} bytes a flow in memory", memory().saturating_sub(before) * 1024 / u64::from(count));
    assert_eq!(fake.log().len(), count as usize);
    // As it comes from ovs-vswitchd: what our side of the socket costs, too.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ovs-vswitchd.pid"), "1\n").unwrap();
    let listener = std::os::unix::net::UnixListener::bind(folder.path().join("ovs-vswitchd.1.ctl")).unwrap();
    let peer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        for id in 1..=4 {
            let _ = std::io::Read::read(&mut stream, &mut [0; 1000]).unwrap();
            let answer = serde_json::json!({ "error": null, "id": id, "result": text }).to_string();
            std::io::Write::write_all(&mut stream, answer.as_bytes()).unwrap();
        }
    });
    let mut switch = crate::ovs::client::Switch::connect(&Place::new(Some(folder.path()))).unwrap();
    for _ in 0..4 {
        let begun = cpu();
        work.table.begin(Source::Text);
        let mut news = AsBefore { work: &mut work, others: 0 };
        switch.dump_lines("dummy@ovs-dummy", &mut news).unwrap();
        assert_eq!(news.others, 0);
        work.take(News::Dump { source: Source::Text, told: Vec::new(), misses: Misses::default() });
        all_steps(&mut work, &fake);
        println!("all without a change {:?}", cpu() - begun);
    }
    peer.join().unwrap();
    assert!(fake.log().is_empty());
    let texts: usize = work.table.flows.values().map(|entry| entry.keys().len() + entry.actions().len()).sum();
    // A table that has just grown has as much room again.
    let each = texts / count as usize + 2 * (size_of::<(u128, super::table::Entry)>() + 1);
    println!("{each} bytes a flow");
    assert!(each < 1024);
}

/// A flow as the kernel tells it.
fn told(ufid: u128, from: &str, kind: u16, actions: &str) -> ToldFlow {
    ToldFlow::from_line(line(ufid, from, kind, actions).trim_end()).unwrap()
}

fn kernel(work: &mut Work, fake: &Fake, changes: Vec<Change>) -> Vec<String> {
    work.take(News::Kernel(changes));
    all_steps(work, fake);
    fake.log()
}

fn kernel_dump(work: &mut Work, fake: &Fake, told: Vec<ToldFlow>) -> Vec<String> {
    work.take(News::Dump { source: Source::Kernel, told, misses: Misses::default() });
    all_steps(work, fake);
    fake.log()
}

#[test]
fn what_the_kernel_tells_is_done_at_once_and_is_newer_than_its_dump() {
    let (mut work, fake) = (Work::default(), Fake::default());
    // Flows of the userspace datapath are there at the same time.
    assert_eq!(round(&mut work, &fake, &[line(9, "nic0_vf0", 0x9999, "nic0_vf1")]), ["+9"]);
    let (one, two) = (told(1, "nic0_vf0", 0x1111, "nic0_vf1"), told(2, "nic0_vf0", 0x2222, "nic0_vf1"));
    work.take(News::KernelBegins);
    // While its dump is on its way: one that the dump has is gone again, one is another one.
    let gone = kernel(&mut work, &fake, vec![Change::Put(one.clone()), Change::Deleted(1)]);
    assert_eq!(gone, [""; 0], "it came and went before any engine was told");
    assert_eq!(kernel(&mut work, &fake, vec![Change::Put(told(2, "nic0_vf0", 0x2222, "nic0"))]), ["+2"]);
    assert_eq!(kernel_dump(&mut work, &fake, vec![one, two, told(3, "nic0_vf1", 0x3333, "nic0")]), ["+3"]);
    assert_eq!(work.table.flows[&2].actions(), "nic0");
    // Removed before anything is installed.
    let both = vec![Change::Put(told(4, "nic0_vf0", 0x4444, "nic0")), Change::Deleted(3)];
    assert_eq!(kernel(&mut work, &fake, both), ["-3", "+4"]);
    // Told again and the same: nothing. Gone by its dump, as after a flush that nobody told of.
    assert_eq!(kernel(&mut work, &fake, vec![Change::Put(told(4, "nic0_vf0", 0x4444, "nic0"))]), [""; 0]);
    work.take(News::KernelBegins);
    assert_eq!(kernel_dump(&mut work, &fake, vec![told(2, "nic0_vf0", 0x2222, "nic0")]), ["-4"]);
    // The dumps of the userspace datapath know nothing of these, and take nothing away.
    assert_eq!(round(&mut work, &fake, &[]), ["-9"]);
    assert_eq!(work.table.flows.len(), 1);
}

#[test]
fn when_the_kernel_is_not_listened_to_any_more_its_flows_go_on_with_the_dumps_of_text() {
    let (mut work, fake) = (Work::default(), Fake::default());
    round(&mut work, &fake, &[]);
    work.take(News::KernelBegins);
    let flows = [told(1, "nic0_vf0", 0x1111, "nic0_vf1"), told(2, "nic0_vf0", 0x2222, "nic0_vf1")].to_vec();
    assert_eq!(kernel_dump(&mut work, &fake, flows.clone()).len(), 2);
    work.take(News::KernelLost);
    assert_eq!(round(&mut work, &fake, &[line(1, "nic0_vf0", 0x1111, "nic0_vf1")]), ["-2"]);
    // And back: the kernel takes over what the text had.
    work.take(News::KernelBegins);
    assert_eq!(kernel_dump(&mut work, &fake, flows), ["+2"]);
    assert_eq!(round(&mut work, &fake, &[]), [""; 0]);
    // Another datapath's flow of that ufid stays with OVS, and touches nothing.
    assert_eq!(round(&mut work, &fake, &[line(1, "nic0_vf1", 0x1111, "nic0")]), [""; 0]);
    assert_eq!((work.table.misses().unreadable, fake.told().rules.len()), (1, 2));
}

#[test]
fn what_an_earlier_daemon_left_is_compared_when_all_sources_have_told() {
    let (mut work, fake) = (Work::default(), Fake::default());
    round(&mut work, &fake, &[line(1, "nic0_vf0", 0x1111, "nic0_vf1"), line(2, "nic0_vf0", 0x2222, "nic0_vf1")]);
    let mut new = Work::new(1000);
    new.look(&fake.nics());
    new.table.begin(Source::Text);
    let text = vec![told(1, "nic0_vf0", 0x1111, "nic0_vf1")];
    new.take(News::Dump { source: Source::Text, told: text, misses: Misses::default() });
    all_steps(&mut new, &fake);
    assert_eq!(fake.log(), [""; 0]);
    // The second flow is the kernel's now, and another one.
    new.take(News::KernelBegins);
    new.complete = true;
    assert_eq!(kernel_dump(&mut new, &fake, vec![told(2, "nic0_vf0", 0x2222, "nic0")]), ["+2"]);
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < SOON, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

const PACKET: &str = "in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x1234)";

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
    assert_eq!(log.iter().map(|line| &line[1..]).collect::<std::collections::BTreeSet<_>>().len(), 1, "{log:?}");
    // Nobody sends any more.
    fake.told().idle_ms = 60_000;
    until("the rule goes", || (!has_rule()).then_some(()));
    let all = FlowFilter { limit: 10, ..FlowFilter::default() };
    let is_idle = || {
        let flows = mirror.list(&all, &fake);
        flows.flows.first().is_some_and(|flow| flow.reason.as_deref() == Some("idle"))
    };
    until("and says why", || is_idle().then_some(()));
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
fn scene() -> Result<Ovs> {
    let ovs = Ovs::start()?;
    ovs.add_bridge("br0")?;
    for (at, port) in ["nic0", "nic0_vf0", "nic0_vf1"].into_iter().enumerate() {
        ovs.add_port("br0", port, &[&format!("ofport_request={}", at + 1)])?;
    }
    ovs.ofctl("br0", "add-flow", &["in_port=2,actions=output:3"])?;
    Ok(ovs)
}

fn mirror_of(ovs: &Ovs) -> Mirror {
    let place = Place::new(Some(ovs.run_dir()));
    Mirror::new(Settings { place, max_flows: 100, grace: Duration::from_secs(1), raised: Duration::from_secs(60) })
}
