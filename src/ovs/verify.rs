//! Whether Open vSwitch's flows are offloaded, and what stands in the way: one finding after the other.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::client::{Database, Place, Process, Switch};
use super::owner::{self, Owning};
use super::qdisc::{self, Qdisc};
use super::representor::{self, Representor};
use super::view::View;
use crate::error::Error;
use crate::plural::number_of;

/// Type of the kernel's datapath.
const KERNEL: &str = "system";

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
    /// Flows are offloaded, and a check failed: not all that should be are, or not for long.
    Hindered,
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
    /// Those of them that come in or go out by a VF's representor: others are not for a NIC.
    pub of_vfs: u64,
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
    /// Those of them that are a software NIC's: their switch is nobody else's.
    pub software: Vec<String>,
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
    let representors = representor::list(sysfs);
    let vfs: BTreeSet<&str> =
        representors.iter().map(|one| &one.name).chain(&own.representors).map(String::as_str).collect();
    let datapaths = datapaths(&mut switch, &vfs)?;
    let owning = owner::open_vswitch(&view, place);
    let mut checks = vec![
        hw_offload(&view, switch.process, &representors, own),
        offloaded(&view, &datapaths, own),
        own_rules(&datapaths, own),
        idle(&view, own),
        owners(owning, own),
        missing(&view, &vfs),
        interfaces(&view),
    ];
    checks.push(match qdisc::list() {
        Ok(found) => qdiscs(owning, &representors, own, &found),
        Err(error) => Check::new(Checked::Qdiscs, State::Unknown, format!("the kernel does not say: {error}")),
    });
    checks.push(conntrack(&datapaths, &representors));
    checks.push(upcalls(&datapaths));
    let (verdict, summary) = hindered(judge(&view, &datapaths, own, !representors.is_empty()), &checks);
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

fn datapaths(switch: &mut Switch, vfs: &BTreeSet<&str>) -> Result<Vec<Datapath>, Error> {
    let names = switch.call("dpctl/dump-dps", &[])?;
    let mut found = Vec::new();
    for name in names.lines().map(str::trim).filter(|name| !name.is_empty()) {
        // One that goes in this moment has no flows any more.
        let seen = switch.dump_flows(name, &[]).and_then(|flows| Ok((flows, switch.call("dpctl/show", &[name])?)));
        match seen {
            Ok((flows, show)) => found.push(Datapath::count(name, &flows, vfs).with_lookups(&show)),
            Err(error) if error.connection_is_good() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

impl Datapath {
    /// Counts in what `dpctl/dump-flows -m` printed, by words that stand alike in all versions. Without any VF's representor all flows
    /// are taken for theirs.
    fn count(name: &str, text: &str, vfs: &BTreeSet<&str>) -> Self {
        let mut all = Self { name: name.into(), ..Self::default() };
        for line in text.lines() {
            let Some((head, actions)) = line.split_once("actions:") else { continue };
            let has_packets = !head.contains("packets:0,");
            let by = head.split_once("in_port(").and_then(|(_, rest)| rest.split([')', '/']).next());
            let is_of_vf = vfs.is_empty()
                || by.is_some_and(|port| vfs.contains(port))
                || actions.split([',', '(', ')']).any(|word| vfs.contains(word.trim_end()));
            all.flows += 1;
            all.with_packets += u64::from(has_packets);
            all.of_vfs += u64::from(has_packets && is_of_vf);
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

fn hw_offload(view: &View, process: Process, representors: &[Representor], own: &Own) -> Check {
    let check = |state, message: String| Check::new(Checked::HwOffload, state, message);
    if view.changed_under == Some(process.life()) {
        let message = format!("hw-offload or tc-policy changed since ovs-vswitchd {} started", process.pid);
        return check(State::Failed, message).remedy("restart ovs-vswitchd: ringspan ovs configure --restart");
    }
    // Of a NIC whose switch is ringspan's, what else brings rules there is said by `owners`.
    let others = representors.iter().any(|one| !own.representors.contains(&one.name));
    if !view.hw_offload && !others && !own.unseen.is_empty() {
        let nics = own.unseen.join(", ");
        return check(
            State::Ok,
            format!("hw-offload is not set, and must not be: ringspan brings the flows into {nics}"),
        );
    }
    let is_in_kernel = |name: &String| view.port(name).is_some_and(|(bridge, _)| bridge.datapath_type == KERNEL);
    if let Some(name) = own.software.iter().find(|name| view.hw_offload && is_in_kernel(name)) {
        return check(
            State::Warning,
            format!(
                "hw-offload is set, and Open vSwitch gives the flows of {name} to TC, of which the kernel's datapath does not tell: \
                 the software NIC follows the dumps of ovs-vswitchd instead"
            ),
        )
        .remedy("where no other NIC needs it: ringspan ovs configure --hw-offload false --restart");
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
    let (flows, hit) = (sum(|one| one.flows), sum(|one| one.of_vfs));
    let (whole, partial) = (sum(|one| one.offloaded), sum(|one| one.partial));
    let check = |state, message: String| Check::new(Checked::Offloaded, state, message);
    if whole + partial > 0 {
        let state = if whole > 0 { State::Ok } else { State::Warning };
        return check(state, format!("{whole} of {} offloaded, {partial} partially", number_of(flows, "flow")));
    }
    if hit == 0 {
        return check(State::Unknown, no_traffic(flows, sum(|one| one.with_packets)))
            .remedy("send traffic between ports, and verify again within 10 s");
    }
    let state = if view.hw_offload && own.rules.is_none() { State::Failed } else { State::Ok };
    let of = number_of(flows, "flow");
    let check = check(state, format!("0 of {of} offloaded by OVS, and {hit} of them saw packets"));
    if state == State::Ok {
        check
    } else {
        check.remedy("look at the other checks, and at ovs-vswitchd's log for what the driver refused")
    }
}

/// Flows of other ports than VFs' say nothing of whether a NIC works.
fn no_traffic(flows: u64, others: u64) -> String {
    let of = number_of(flows, "flow");
    match others {
        0 => format!("no traffic yet: 0 of {of} saw a packet"),
        _ => format!("no traffic yet: {others} of {of} saw packets, and none of those comes from a VF or goes to one"),
    }
}

fn own_rules(datapaths: &[Datapath], own: &Own) -> Check {
    let hit: u64 = datapaths.iter().map(|one| one.of_vfs).sum();
    if own.rules == Some(0) && hit > 0 {
        let message = format!("no rule is installed by ringspan, and {} of VFs saw packets", number_of(hit, "flow"));
        return Check::new(Checked::OwnRules, State::Warning, message)
            .remedy("ringspan flow list --why says of each flow why it stays with Open vSwitch");
    }
    let message = match own.rules {
        None => "ringspan mirrors no flows here".into(),
        Some(rules) => format!(
            "{} installed by ringspan: dpctl/dump-flows type=offloaded shows none of ringspan's, ringspan flow list does",
            number_of(rules, "rule")
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

fn missing(view: &View, names: &BTreeSet<&str>) -> Check {
    let on_bridge = |name: &str| view.interfaces().any(|(_, _, interface)| interface.name == name);
    let missing: Vec<&str> = names.iter().copied().filter(|name| !on_bridge(name)).collect();
    let check = |state, message: String| Check::new(Checked::Representors, state, message);
    match (names.len(), missing.len()) {
        (0, _) => check(State::Ok, "there is no VF representor on this host".into()),
        (1, 0) => check(State::Ok, "the only VF representor is on a bridge".into()),
        (all, 0) => check(State::Ok, format!("all {all} VF representors are on bridges")),
        (all, _) => check(
            State::Warning,
            format!("{} of {} on no bridge: {}", missing.len(), number_of(all, "VF representor"), missing.join(", ")),
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

fn qdiscs(owning: Option<Owning>, representors: &[Representor], own: &Own, found: &[Qdisc]) -> Check {
    let is_ours =
        |name: &str| representors.iter().any(|one| one.name == name) || own.representors.iter().any(|one| one == name);
    // OVS's own ingress discipline is there for TC's filters, until its process ends; with another owner OVS cannot put its own.
    let defeats =
        |qdisc: &&Qdisc| is_ours(&qdisc.interface) && (qdisc.shapes() || qdisc.is_ingress() && owning.is_none());
    let found: Vec<&Qdisc> = found.iter().filter(defeats).collect();
    if found.is_empty() {
        return Check::new(Checked::Qdiscs, State::Ok, "no queueing discipline is in the way");
    }
    let words: Vec<String> = found.iter().map(|qdisc| format!("{} on {}", qdisc.kind, qdisc.interface)).collect();
    // A software NIC has no PF whose driver would limit its VFs.
    let is_software = |qdisc: &&Qdisc| own.software.contains(&qdisc.interface);
    let (software, others): (Vec<_>, Vec<_>) = found.into_iter().partition(is_software);
    let mut limits = Vec::new();
    if !others.is_empty() {
        limits.push("ip link set PF vf N max_tx_rate");
    }
    if !software.is_empty() {
        limits.push("of a software NIC a meter in the VF's OpenFlow flows: ovs-ofctl add-meter");
    }
    Check::new(
        Checked::Qdiscs,
        State::Warning,
        format!("what is offloaded passes these by, or is not offloaded for them: {}", words.join(", ")),
    )
    .remedy(format!(
        "limit the VF's rate instead ({}), and remove them: tc qdisc del dev NAME root, or ingress",
        limits.join("; ")
    ))
}

fn conntrack(datapaths: &[Datapath], representors: &[Representor]) -> Check {
    let tracked: u64 = datapaths.iter().map(|one| one.conntrack).sum();
    let old = representors.iter().find(|one| one.tracks_badly());
    let check = |state, message: String| Check::new(Checked::Conntrack, state, message);
    let need = if tracked == 1 { "1 flow needs".into() } else { format!("{tracked} flows need") };
    match (tracked, old) {
        (0, _) => check(State::Ok, "no flow needs connection tracking".into()),
        (_, Some(old)) => check(
            State::Warning,
            format!("{need} connection tracking, which a ConnectX-6 or older ({}) offloads badly", old.name),
        )
        .remedy("disable security groups: disable_security_group: true in the agent's host.conf"),
        (_, None) => {
            check(State::Warning, format!("{need} connection tracking: the software NIC does not offload them"))
        }
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

/// That offload works is not said beside what prevents it.
fn hindered((verdict, summary): (Verdict, String), checks: &[Check]) -> (Verdict, String) {
    let failed: Vec<&str> =
        checks.iter().filter(|check| check.state == State::Failed).map(|check| check.message.as_str()).collect();
    match summary.strip_prefix(WORKS) {
        Some(how) if !failed.is_empty() => {
            (Verdict::Hindered, format!("offload is hindered: {how}, but {}", failed.join("; ")))
        }
        _ => (verdict, summary),
    }
}

/// What the summary of an offload that works begins with.
const WORKS: &str = "offload works: ";

fn judge(view: &View, datapaths: &[Datapath], own: &Own, has_nic: bool) -> (Verdict, String) {
    let sum = |count: fn(&Datapath) -> u64| datapaths.iter().map(count).sum::<u64>();
    let (flows, hit, offloaded) = (sum(|one| one.flows), sum(|one| one.of_vfs), sum(|one| one.offloaded));
    let rules = own.rules.unwrap_or(0);
    if offloaded + rules > 0 {
        let (flows, rules) = (number_of(flows, "flow"), number_of(rules, "rule"));
        return (Verdict::Working, format!("{WORKS}{offloaded} of {flows} by OVS, {rules} by ringspan"));
    }
    if !view.hw_offload && !has_nic && own.rules.is_none() {
        return (Verdict::Off, "offload is off: hw-offload is not set, and there is no switchdev NIC".into());
    }
    let carry = if hit == 1 { "1 flow carries".into() } else { format!("{hit} flows carry") };
    match hit {
        0 => (Verdict::NoTraffic, no_traffic(flows, sum(|one| one.with_packets))),
        _ => (Verdict::NotWorking, format!("offload does not work: {carry} packets, and none is offloaded")),
    }
}
