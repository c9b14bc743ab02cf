//! Whether Open vSwitch's flows are offloaded, and what stands in the way: one finding after the other.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::client::{Database, Place, Process, Switch};
use super::owner::{self, Owning};
use super::qdisc::{self, Qdisc};
use super::representor::{self, Representor};
use super::view::View;
use crate::error::Error;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Verified {
    /// All in all.
    pub verdict: Verdict,
    /// The same as a sentence.
    pub summary: String,
    /// The findings, one of each check.
    pub checks: Vec<Check>,
    /// Flows of each datapath.
    pub datapaths: Vec<Datapath>,
}

/// All in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// Flows are offloaded.
    Working,
    /// Nothing can be said: no flow saw a packet.
    NoTraffic,
    /// There is traffic, and nothing of it is offloaded.
    NotWorking,
    /// Nothing here is to offload, and nothing does.
    Off,
}

/// A finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Check {
    /// What was looked at.
    pub check: Checked,
    /// How it is.
    pub state: State,
    /// What was found.
    pub message: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// What was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Checked {
    /// `other_config:hw-offload`, and whether the running ovs-vswitchd has taken it.
    HwOffload,
    /// Flows that a NIC has by OVS's own doing (`type=offloaded`).
    Offloaded,
    /// Rules that ringspan installed, which `type=offloaded` does not show.
    OwnRules,
    /// Who removes idle flows: Open vSwitch, or ringspan in its place.
    MaxIdle,
    /// Whether Open vSwitch and ringspan both bring flows into one switch.
    Owners,
    /// Representors that are on no bridge.
    Representors,
    /// Interfaces that ovs-vswitchd cannot use.
    Interfaces,
    /// Queueing disciplines on ports, which what is offloaded passes by.
    Qdiscs,
    /// Flows that need connection tracking.
    Conntrack,
    /// Packets without a flow that the datapath could not hand to ovs-vswitchd.
    Upcalls,
}

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// As it should be.
    Ok,
    /// Nothing can be said yet.
    Unknown,
    /// It costs some of the offload.
    Warning,
    /// It prevents the offload.
    Failed,
}

/// Flows of a datapath.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Datapath {
    /// Its name: `system@ovs-system`, `netdev@ovs-netdev`.
    pub name: String,
    /// All flows.
    pub flows: u64,
    /// Those that saw a packet.
    pub with_packets: u64,
    /// Those that a NIC has wholly.
    pub offloaded: u64,
    /// Those of which a NIC has the match alone.
    pub partial: u64,
    /// Those that track connections.
    pub conntrack: u64,
    /// Packets, since the datapath is there, for which it had no flow and that it had to hand to ovs-vswitchd.
    pub missed: u64,
    /// Those of them that did not get there.
    pub lost: u64,
}

/// What ringspan itself has to do with it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Own {
    /// Names of its NICs' VF representors.
    pub representors: Vec<String>,
    /// Rules that it installed; absent: it mirrors no flows.
    pub rules: Option<u64>,
    /// NICs whose packets Open vSwitch sees nothing of, while ringspan brings flows into them.
    pub unseen: Vec<String>,
    /// Ports of those for which the NIC has rules of TC's.
    pub tc_ruled: Vec<String>,
}

/// Looks at everything.
pub(crate) fn verify(place: &Place, sysfs: &Path, own: &Own) -> Result<Verified, Error> {
    let view = View::read(&mut Database::connect(place)?)?;
    let mut switch = Switch::connect(place)?;
    let datapaths = datapaths(&mut switch)?;
    let representors = representor::list(sysfs);
    let mut checks = vec![
        hw_offload(&view, switch.process, &representors),
        offloaded(&view, &datapaths, own),
        own_rules(own),
        idle(&view, own),
        owners(owner::open_vswitch(&view, place), own),
        missing(&view, &representors, own),
        interfaces(&view),
    ];
    checks.push(match qdisc::list() {
        Ok(found) => qdiscs(&view, &representors, own, &found),
        Err(error) => Check::new(Checked::Qdiscs, State::Unknown, format!("the kernel does not say: {error}")),
    });
    checks.push(conntrack(&datapaths, &representors));
    checks.push(upcalls(&datapaths));
    let (verdict, summary) = judge(&view, &datapaths, own, !representors.is_empty());
    Ok(Verified { verdict, summary, checks, datapaths })
}

impl Check {
    fn new(check: Checked, state: State, message: impl Into<String>) -> Self {
        Self { check, state, message: message.into(), remedy: None }
    }

    fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

fn datapaths(switch: &mut Switch) -> Result<Vec<Datapath>, Error> {
    let names = switch.call("dpctl/dump-dps", &[])?;
    let mut found = Vec::new();
    for name in names.lines().map(str::trim).filter(|name| !name.is_empty()) {
        // One that goes in this moment has no flows any more.
        let seen = switch.dump_flows(name, &[]).and_then(|flows| Ok((flows, switch.call("dpctl/show", &[name])?)));
        match seen {
            Ok((flows, show)) => found.push(Datapath::count(name, &flows).with_lookups(&show)),
            Err(error) if error.connection_is_good() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

impl Datapath {
    /// Counts in what `dpctl/dump-flows -m` printed, by words that stand alike in all versions.
    fn count(name: &str, text: &str) -> Self {
        let mut all = Self { name: name.into(), ..Self::default() };
        for line in text.lines() {
            let Some((head, actions)) = line.split_once("actions:") else { continue };
            all.flows += 1;
            all.with_packets += u64::from(!head.contains("packets:0,"));
            all.offloaded += u64::from(head.contains("offloaded:yes"));
            all.partial += u64::from(head.contains("offloaded:partial"));
            let tracked = head.contains("ct_state(") && !head.contains("ct_state(0/0)");
            all.conntrack += u64::from(tracked || actions.split(['(', ')', ',']).any(|word| word == "ct"));
        }
        all
    }

    /// Adds what `dpctl/show` says of packets without a flow: `lookups: hit:7 missed:3 lost:0`.
    fn with_lookups(self, text: &str) -> Self {
        let lookups = text.lines().find_map(|line| line.trim().strip_prefix("lookups:")).unwrap_or_default();
        let value = |name: &str| lookups.split_whitespace().find_map(|word| word.strip_prefix(name)?.parse().ok());
        Self { missed: value("missed:").unwrap_or(0), lost: value("lost:").unwrap_or(0), ..self }
    }
}

fn hw_offload(view: &View, process: Process, representors: &[Representor]) -> Check {
    let check = |state, message: String| Check::new(Checked::HwOffload, state, message);
    if view.changed_under == Some(process.life()) {
        let message = format!("hw-offload or tc-policy changed since ovs-vswitchd {} started", process.pid);
        return check(State::Failed, message).remedy("restart ovs-vswitchd: ringspan ovs configure --restart");
    }
    match (view.hw_offload, representors.is_empty()) {
        (true, _) => check(State::Ok, format!("hw-offload is set, tc-policy is {}", view.tc_policy)),
        (false, true) => check(State::Ok, "hw-offload is not set, and no NIC of this host needs it".into()),
        (false, false) => check(State::Failed, "hw-offload is not set".into())
            .remedy("ringspan ovs configure --hw-offload true --restart"),
    }
}

fn offloaded(view: &View, datapaths: &[Datapath], own: &Own) -> Check {
    let sum = |count: fn(&Datapath) -> u64| datapaths.iter().map(count).sum::<u64>();
    let (flows, hit) = (sum(|one| one.flows), sum(|one| one.with_packets));
    let (whole, partial) = (sum(|one| one.offloaded), sum(|one| one.partial));
    let check = |state, message: String| Check::new(Checked::Offloaded, state, message);
    if whole + partial > 0 {
        let state = if whole > 0 { State::Ok } else { State::Warning };
        return check(state, format!("{whole} of {flows} flows are offloaded, {partial} partially"));
    }
    if hit == 0 {
        return check(State::Unknown, format!("no traffic yet: none of {flows} flows saw a packet"))
            .remedy("send traffic between ports, and verify again within 10 s");
    }
    let state = if view.hw_offload && own.rules.is_none() { State::Failed } else { State::Ok };
    let check = check(state, format!("none of {flows} flows is offloaded by OVS, and {hit} of them saw packets"));
    if state == State::Ok {
        check
    } else {
        check.remedy("look at the other checks, and at ovs-vswitchd's log for what the driver refused")
    }
}

fn own_rules(own: &Own) -> Check {
    let message = match own.rules {
        None => "ringspan mirrors no flows here".into(),
        Some(rules) => format!(
            "{rules} rules are installed by ringspan; dpctl/dump-flows type=offloaded does not show them, ringspan flow list does"
        ),
    };
    Check::new(Checked::OwnRules, State::Ok, message)
}

/// What it changes that a NIC forwards what OVS does not see.
fn idle(view: &View, own: &Own) -> Check {
    let check = |state, message: String| Check::new(Checked::MaxIdle, state, message);
    let (nics, now) = (own.unseen.join(", "), view.max_idle_ms);
    let was = view.max_idle_was.as_deref().map(|was| was.split(' ').next().unwrap_or(was));
    match (was, own.unseen.is_empty() || view.hw_offload) {
        (None, true) => check(State::Ok, format!("Open vSwitch removes flows that are idle for {now} ms")),
        (Some(was), false) => check(
            State::Ok,
            format!(
                "other_config:max-idle is {now} ms, and was {was}: Open vSwitch does not see what {nics} forwards. It keeps all flows for that time; ringspan takes rules out that are idle \
                 for the old time, and those in use for half a second once in half of the new one, so that Open vSwitch sees some of their packets: MAC learning goes on, OpenFlow counters \
                 miss what the NIC forwards; where OpenFlow flows have an idle_timeout, it is more often, once in a third of the shortest one; one of less than 5 s comes too early"
            ),
        ),
        (None, false) => check(
            State::Warning,
            format!("what {nics} forwards Open vSwitch does not see, and it removes such flows after {now} ms: ringspan could not raise other_config:max-idle yet"),
        )
        .remedy("see the log of ringspan serve for why the database cannot be changed"),
        (Some(was), true) => check(
            State::Warning,
            format!("other_config:max-idle is {now} ms, and was {was} before ringspan raised it for a NIC that is gone: it is restored after ovs.grace_ms"),
        ),
    }
}

/// Two that bring flows into one switch take each other's packets.
fn owners(owning: Option<Owning>, own: &Own) -> Check {
    let check = |state, message: String| Check::new(Checked::Owners, state, message);
    let nics = own.unseen.join(", ");
    if !own.tc_ruled.is_empty() && owning.is_none() {
        let ports = own.tc_ruled.join(", ");
        let message = format!(
            "the NIC has rules of TC's for {ports}, which are not ringspan's: of flows that ringspan would bring into {nics} none is there"
        );
        return check(State::Failed, message)
            .remedy("remove them (tc filter del dev NAME ingress), or take offload = \"tc\" for the NIC");
    }
    let Some(owning) = owning.filter(|_| !own.unseen.is_empty()) else {
        return check(State::Ok, "no switch has two that bring flows into it".into());
    };
    if owning == Owning::Unknown {
        let message = format!(
            "nobody knows whether Open vSwitch brings flows into NICs ({owning}): until then {nics} gets none of ringspan's"
        );
        return check(State::Unknown, message).remedy("see the log of ovs-vswitchd, which may hang");
    }
    check(
        State::Failed,
        format!("Open vSwitch brings flows into NICs ({owning}), and so would ringspan into {nics}: its rules there were removed"),
    )
    .remedy("take offload = \"tc\" for the NIC, or ringspan ovs configure --hw-offload false --restart")
}

fn missing(view: &View, representors: &[Representor], own: &Own) -> Check {
    let on_bridge = |name: &str| view.interfaces().any(|(_, _, interface)| interface.name == name);
    let names: Vec<&str> =
        representors.iter().map(|one| one.name.as_str()).chain(own.representors.iter().map(String::as_str)).collect();
    let missing: Vec<&str> = names.iter().copied().filter(|name| !on_bridge(name)).collect();
    let check = |state, message: String| Check::new(Checked::Representors, state, message);
    match (names.len(), missing.len()) {
        (0, _) => check(State::Ok, "there is no VF representor on this host".into()),
        (all, 0) => check(State::Ok, format!("all {all} VF representors are on bridges")),
        (all, _) => check(
            State::Warning,
            format!("{} of {all} VF representors are on no bridge: {}", missing.len(), missing.join(", ")),
        )
        .remedy("ringspan ovs configure --bridge BRIDGE --port NAME, for those that guests use"),
    }
}

fn interfaces(view: &View) -> Check {
    let broken = view.interfaces().filter_map(|(bridge, port, interface)| {
        let error = interface.error.as_ref()?;
        // A bond of Open vSwitch's is a port with several interfaces, and ports are what is removed.
        Some((format!("{} on {}: {error}", interface.name, bridge.name), port.name.as_str()))
    });
    let (broken, names): (Vec<String>, Vec<&str>) = broken.unzip();
    let check = |state, message: String| Check::new(Checked::Interfaces, state, message);
    match broken.is_empty() {
        true => check(State::Ok, format!("ovs-vswitchd can use all {} interfaces", view.interfaces().count())),
        false => check(State::Warning, broken.join("; ")).remedy(format!(
            "make the interface, or remove the port: ringspan ovs configure --remove-port {}",
            names.first().unwrap_or(&"NAME")
        )),
    }
}

fn qdiscs(view: &View, representors: &[Representor], own: &Own, found: &[Qdisc]) -> Check {
    let is_ours =
        |name: &str| representors.iter().any(|one| one.name == name) || own.representors.iter().any(|one| one == name);
    // OVS's own ingress discipline is there for TC's filters; with another owner OVS cannot put its own.
    let defeats =
        |qdisc: &&Qdisc| is_ours(&qdisc.interface) && (qdisc.shapes() || qdisc.is_ingress() && !view.hw_offload);
    let words: Vec<String> =
        found.iter().filter(defeats).map(|qdisc| format!("{} on {}", qdisc.kind, qdisc.interface)).collect();
    if words.is_empty() {
        return Check::new(Checked::Qdiscs, State::Ok, "no queueing discipline is in the way");
    }
    Check::new(Checked::Qdiscs, State::Warning, format!("what is offloaded passes these by, or is not offloaded for them: {}", words.join(", ")))
        .remedy("limit the VF's rate instead (ip link set PF vf N max_tx_rate), and remove them: tc qdisc del dev NAME root, or ingress")
}

fn conntrack(datapaths: &[Datapath], representors: &[Representor]) -> Check {
    let tracked: u64 = datapaths.iter().map(|one| one.conntrack).sum();
    let old = representors.iter().find(|one| one.tracks_badly());
    let check = |state, message: String| Check::new(Checked::Conntrack, state, message);
    match (tracked, old) {
        (0, _) => check(State::Ok, "no flow needs connection tracking".into()),
        (_, Some(old)) => check(
            State::Warning,
            format!(
                "{tracked} flows need connection tracking, which a ConnectX-6 or older ({}) offloads badly",
                old.name
            ),
        )
        .remedy("disable security groups: disable_security_group: true in the agent's host.conf"),
        (_, None) => check(
            State::Warning,
            format!("{tracked} flows need connection tracking: the software NIC does not offload them"),
        ),
    }
}

/// An ovs-vswitchd whose datapath reaches none of its threads looks healthy in all else. Open vSwitch 3.1 is like that for good when
/// it started in the first ten seconds of a host's life: it counts no processors then (lib/ovs-thread.c, count_cpu_cores).
fn upcalls(datapaths: &[Datapath]) -> Check {
    let check = |state, message: String| Check::new(Checked::Upcalls, state, message);
    let losing: Vec<&Datapath> = datapaths.iter().filter(|one| one.lost > 0).collect();
    let words: Vec<String> =
        losing.iter().map(|one| format!("{}: {} of {} were lost", one.name, one.lost, one.missed)).collect();
    let words = words.join("; ");
    if losing.is_empty() {
        return check(State::Ok, "every packet without a flow reached ovs-vswitchd".into());
    }
    match losing.iter().any(|one| one.lost >= one.missed) {
        true => check(State::Failed, format!("no packet without a flow reaches ovs-vswitchd ({words})"))
            .remedy("restart ovs-vswitchd, which has no thread for them: systemctl restart openvswitch-switch (openvswitch elsewhere than on Debian)"),
        false => check(State::Warning, format!("packets without a flow did not all reach ovs-vswitchd ({words})"))
            .remedy("give ovs-vswitchd more processor time: what a burst of new flows overruns is lost"),
    }
}

fn judge(view: &View, datapaths: &[Datapath], own: &Own, has_nic: bool) -> (Verdict, String) {
    let sum = |count: fn(&Datapath) -> u64| datapaths.iter().map(count).sum::<u64>();
    let (flows, hit, offloaded) = (sum(|one| one.flows), sum(|one| one.with_packets), sum(|one| one.offloaded));
    let rules = own.rules.unwrap_or(0);
    if offloaded + rules > 0 {
        return (
            Verdict::Working,
            format!("offload works: {offloaded} of {flows} flows by OVS, {rules} rules by ringspan"),
        );
    }
    if !view.hw_offload && !has_nic && own.rules.is_none() {
        return (Verdict::Off, "offload is off: hw-offload is not set, and there is no switchdev NIC".into());
    }
    match hit {
        0 => (Verdict::NoTraffic, format!("no traffic yet: none of {flows} flows saw a packet")),
        _ => (Verdict::NotWorking, format!("offload does not work: {hit} flows carry packets, and none is offloaded")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "ufid:0d7c, recirc_id(0),in_port(p1),eth_type(0x0800)";

    fn count(lines: &[&str]) -> Datapath {
        Datapath::count("system@ovs-system", &lines.iter().map(|line| format!("{HEAD}{line}\n")).collect::<String>())
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
        assert_eq!(Datapath::count("x", "flow-dump from the main thread:\n").flows, 0);
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
        let off = qdiscs(&View::default(), &rep, &Own::default(), &found);
        assert_eq!(off.state, State::Warning);
        assert!(off.message.ends_with(": tbf on rep0, ingress on rep0"), "{}", off.message);
        let on = qdiscs(&View { hw_offload: true, ..View::default() }, &rep, &Own::default(), &found);
        assert!(on.message.ends_with(": tbf on rep0"), "{}", on.message);
        assert_eq!(qdiscs(&View::default(), &rep, &Own::default(), &found[..1]).state, State::Ok);
    }
}
