//! From what the sources tell to what the engines are told, step by step: what is done in one step is little, so that what comes meanwhile
//! waits for little.
//!
//! What is gone comes first. Then flows that have a rule and are not as they were: their rule is replaced or goes. New flows come last.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringspan_protocol::rule::{Action, Rule, RuleCounters, RuleId};
use ringspan_protocol::{EngineKind, NicName};

use super::engine::Nic;
use super::idle;
use super::packed::Packed;
use super::step::{BATCH, Outcome, Step};
use super::table::{Changes, Entry, Misses, Source, State, Table, Told, seconds};
use super::tunnels::Tunnels;
use crate::error::{Error, ErrorKind};
use crate::ovs::compile::{Cause, Ports, TunnelIn, compile, far_ends, tunnel_in};
use crate::ovs::flow::{Flow, Names, PortRef, parse};
use crate::ovs::owner::Owning;
use crate::ovs::underlay::Underlay;

/// How long after an install an engine that says that it has none has lost them.
const SETTLED: Duration = Duration::from_secs(2);
/// Time between attempts at what an engine refused.
const AGAIN: Duration = Duration::from_secs(5);

/// What sources tell.
#[derive(Debug)]
pub(super) enum News {
    /// A dump is whole. [`Table::begin`] and [`Table::is_as_before`] were called by the source.
    Dump {
        /// Which source.
        source: Source,
        /// What is in it, without what is as before.
        told: Vec<Told>,
        /// What could not be told.
        misses: Misses,
    },
    /// The kernel begins to tell all it has.
    KernelBegins,
    /// What changed in the kernel, in its order.
    Kernel(Vec<Change>),
    /// The kernel is not listened to any more.
    KernelLost,
}

/// What changed in the kernel.
#[derive(Debug)]
pub(super) enum Change {
    /// A flow is new, or another one than it was.
    Put(Told),
    /// It is gone.
    Deleted(u128),
}

/// What is known of flows, ports and engines.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// The flows.
    pub table: Table,
    /// Most flows that are kept.
    pub limit: usize,
    /// Whether each source has told all it has: until then rules that no flow has may be those of a source that did not tell yet.
    pub complete: bool,
    /// Ports of the NICs that take rules, tunnels and meters.
    pub(super) ports: Ports,
    /// A flow with a meter was seen.
    pub(super) has_meters: bool,
    /// NICs that take no rules now, and why.
    refusing: HashMap<NicName, String>,
    /// Open vSwitch brings flows into NICs by itself (`other_config:hw-offload`): of two owners of one switch each would take the other's packets.
    pub hw_offload: Option<Owning>,
    /// The shortest idle timeout of OpenFlow's flows on bridges with ports of NICs.
    pub shortest_idle: Option<Duration>,
    /// Interfaces for which a NIC has rules of TC's.
    pub tc_ruled: HashSet<String>,
    /// Ports of NICs whose switch is not ringspan's own.
    shared_ports: Vec<String>,
    /// Open vSwitch is known to read one VLAN header of a frame only (`other_config:vlan-limit`).
    pub one_vlan: bool,
    /// NICs that show OVS packets of the rules in use by themselves.
    pub(super) refreshing: HashSet<NicName>,
    /// The NICs, each with the life in which its rules were last known.
    nics: HashMap<NicName, u64>,
    /// Those of which it is not known what rules they have, to be asked.
    unknown: Vec<Nic>,
    /// Flows to compile: those that have a rule, and those that have none.
    changed: VecDeque<u128>,
    new: VecDeque<u128>,
    /// Rules whose flows are gone.
    gone: HashMap<NicName, Vec<RuleId>>,
    /// Rules that were found in NICs, to be compared with what they should be.
    found: HashMap<NicName, HashMap<RuleId, Rule>>,
    /// Flows that an engine refused.
    refused: HashSet<u128>,
    /// Flows that take packets out of tunnels, in an order that stays.
    pops: BTreeMap<u128, (PortRef, TunnelIn)>,
    /// Flows of the kernel's tunnels.
    pub(super) tunnels: Tunnels,
    /// When something was last installed: an engine's word of what it has may be older.
    told: Option<Instant>,
    /// When all that engines refused was last tried again.
    tried: Option<Instant>,
    /// Why an engine could not be told, since the last look at the NICs.
    pub trouble: Option<Error>,
}

impl Work {
    /// With at most so many flows. Flows of the kernel's tunnels are followed into the kernel's network, or stay with OVS.
    pub(super) fn new(limit: usize, kernel_tunnels: bool) -> Self {
        let mut ports = Ports::default();
        ports.set_underlay(kernel_tunnels.then(Arc::default));
        Self { limit, ports, ..Self::default() }
    }

    /// Takes what a source tells.
    pub(super) fn take(&mut self, news: News) {
        let changes = match news {
            News::Dump { source, told, misses } => self.table.finish(source, told, misses, self.limit),
            News::KernelBegins => return self.table.begin(Source::Kernel),
            News::KernelLost => return self.table.hand_over(),
            News::Kernel(told) => {
                for change in told {
                    let mut changes = Changes::default();
                    match change {
                        Change::Put(told) => changes.changed.extend(self.table.put(told, self.limit)),
                        Change::Deleted(ufid) => changes.gone.extend(self.table.delete(ufid)),
                    }
                    self.apply(changes);
                }
                return;
            }
        };
        self.apply(changes);
    }

    /// OVS is gone: so are its flows.
    pub(super) fn clear(&mut self) {
        let changes = self.table.clear();
        self.apply(changes);
    }

    fn apply(&mut self, changes: Changes) {
        let Changes { changed, gone } = changes;
        let mut tunnels = false;
        let room = gone.iter().filter(|(_, nic)| nic.is_some()).count();
        for (ufid, nic) in gone {
            tunnels |= self.pops.remove(&ufid).is_some();
            self.refused.remove(&ufid);
            self.tunnels.forget(ufid);
            if let Some(nic) = nic {
                self.gone.entry(nic).or_default().push(RuleId(ufid));
            }
        }
        self.try_again(room);
        for ufid in changed {
            tunnels |= self.look_at_tunnel(ufid);
            self.enqueue(ufid);
        }
        if tunnels {
            self.look_at_ports(self.ports.without_tunnels());
        }
    }

    pub(super) fn enqueue(&mut self, ufid: u128) {
        let Some(entry) = self.table.flows.get(&ufid) else { return };
        if entry.state.nic().is_some() { self.changed.push_back(ufid) } else { self.new.push_back(ufid) }
    }

    /// What an engine refused, say because it is full, is tried again as soon as there is room for it.
    fn try_again(&mut self, room: usize) {
        let again: Vec<u128> = self.refused.iter().copied().take(room).collect();
        for ufid in again {
            self.refused.remove(&ufid);
            self.enqueue(ufid);
        }
    }

    /// These are the NICs now: what failed is tried again, and what that changes is done.
    pub(super) fn look(&mut self, present: &[Nic]) {
        if self.tried.is_none_or(|tried| tried.elapsed() >= AGAIN) {
            self.tried = Some(Instant::now());
            self.try_again(usize::MAX);
        }
        let mut ports = Ports::default();
        ports.set_meters(self.ports.meters().clone());
        ports.set_one_vlan(self.one_vlan);
        ports.set_underlay(self.ports.underlay().cloned());
        for nic in present {
            ports.add_nic(&nic.name, &nic.ports);
            if !nic.capabilities.meters {
                ports.is_unmetered(&nic.name);
            }
        }
        let is_shared = |nic: &&Nic| nic.capabilities.engine == EngineKind::RteFlow;
        let names = present.iter().filter(is_shared).flat_map(|nic| nic.ports.iter().map(|(_, name)| name.clone()));
        self.shared_ports = names.collect();
        let refuses = |nic: &Nic| Some((nic.name.clone(), self.refusal(nic)?));
        let refusing: HashMap<NicName, String> = present.iter().filter_map(refuses).collect();
        let refreshing = present.iter().filter(|nic| nic.capabilities.refreshes);
        self.refreshing = refreshing.map(|nic| nic.name.clone()).collect();
        let lost = |nic: &Nic| {
            nic.empty && self.told.is_some_and(|told| told.elapsed() > SETTLED) && self.has_rules(&nic.name)
        };
        let is_unknown = |nic: &&Nic| self.nics.get(&nic.name) != Some(&nic.life) || lost(nic);
        self.unknown = present.iter().filter(is_unknown).cloned().collect();
        if self.unknown.is_empty() {
            self.trouble = None;
        }
        let known = self.nics.len();
        let is_known = |name: &NicName| {
            present.iter().any(|nic| nic.name == *name) && !self.unknown.iter().any(|nic| nic.name == *name)
        };
        let mut nics = std::mem::take(&mut self.nics);
        nics.retain(|name, _| is_known(name));
        self.nics = nics;
        if self.nics.len() != known {
            for entry in self.table.flows.values_mut() {
                // Its rules went with it, or are found again.
                if entry.state.nic().is_some_and(|nic| !self.nics.contains_key(nic)) {
                    entry.state = State::Pending;
                    entry.counted.lost();
                }
            }
        }
        if ports != self.ports.without_tunnels() || refusing != self.refusing {
            self.refusing = refusing;
            self.pops.clear();
            self.ports = ports;
            let all: Vec<u128> = self.table.flows.keys().copied().collect();
            for ufid in all {
                self.look_at_tunnel(ufid);
                self.enqueue(ufid);
            }
            self.look_at_ports(self.ports.without_tunnels());
        }
    }

    /// Why a NIC takes no rules.
    fn refusal(&self, nic: &Nic) -> Option<String> {
        let shared = nic.capabilities.engine == EngineKind::RteFlow;
        let owned = self.hw_offload.filter(|_| shared).map(|owning| {
            if owning == Owning::Unknown {
                return format!(
                    "whether Open vSwitch brings flows into NICs by itself is not known ({owning}), and {} has one switch: \
                     see the log of ovs-vswitchd, which may hang",
                    nic.name
                );
            }
            format!(
                "Open vSwitch brings flows into NICs by itself ({owning}), and two owners of the switch of {} would take each other's packets: \
                 take offload = \"tc\" for it, or run ringspan ovs configure --hw-offload false --restart",
                nic.name
            )
        });
        let ruled = || {
            let (_, name) = nic.ports.iter().find(|(_, name)| shared && self.tc_ruled.contains(name))?;
            Some(format!(
                "the NIC has rules of TC's for {name}, which somebody else put there, and two owners of the switch of {} would take each other's packets: \
                 remove them (tc filter del dev {name} ingress), or take offload = \"tc\"",
                nic.name
            ))
        };
        nic.capabilities.refuses.clone().or(owned).or_else(ruled)
    }

    /// Whether it changed what is known of the flow as one that takes packets out of a tunnel.
    fn look_at_tunnel(&mut self, ufid: u128) -> bool {
        let was = self.pops.remove(&ufid);
        let entry = self.table.flows.get(&ufid).filter(|entry| entry.text().pops_tunnel() && !entry.torn);
        let flow = entry.and_then(|entry| read(ufid, entry.text()).ok());
        let is = flow.and_then(|flow| tunnel_in(&flow, &self.ports));
        let differs = was != is;
        if let Some(is) = is {
            self.pops.insert(ufid, is);
        }
        differs
    }

    /// When other tunnels end here, what is inside of them is other rules.
    fn look_at_ports(&mut self, mut ports: Ports) {
        for (port, tunnel) in self.pops.values() {
            ports.add_tunnel(port, tunnel.clone());
        }
        if ports == self.ports {
            return;
        }
        self.ports = ports;
        let inside = |(_, entry): &(&u128, &Entry)| entry.text().is_in_tunnel();
        let inside: Vec<u128> = self.table.flows.iter().filter(inside).map(|(ufid, _)| *ufid).collect();
        inside.into_iter().for_each(|ufid| self.enqueue(ufid));
    }

    /// Whether the network that the kernel's tunnels go through is to be looked at: the representors of uplinks, and the far ends.
    pub(super) fn asks_underlay(&mut self) -> Option<(BTreeSet<String>, BTreeSet<IpAddr>)> {
        let known = self.ports.underlay()?;
        if self.tunnels.is_empty() {
            // What was read is old when the next such flow comes.
            if **known != Underlay::default() {
                self.ports.set_underlay(Some(Arc::default()));
            }
            self.tunnels.is_known();
            return None;
        }
        let far = self.tunnels.due()?;
        Some((self.ports.uplinks().map(str::to_owned).collect(), far))
    }

    /// What came of reading that network. Where it could not be read for longer than `grace`, nothing is believed of it any more.
    pub(super) fn underlay_read(&mut self, read: std::io::Result<Underlay>, grace: Duration) {
        match read {
            Ok(underlay) => {
                self.tunnels.is_known();
                self.look_at_underlay(underlay);
            }
            Err(error) => {
                tracing::debug!("the network of the kernel's tunnels cannot be read: {error}");
                let since = self.tunnels.is_failing();
                if since >= grace {
                    let message = format!(
                        "the routes and neighbours of the kernel's tunnels cannot be read since {} s, so their flows are with Open vSwitch: {error}",
                        since.as_secs()
                    );
                    self.tunnels.trouble = Some(Error::new(ErrorKind::Failed, message));
                    self.look_at_underlay(Underlay::default());
                }
            }
        }
    }

    /// This is that network now: flows of the kernel's tunnels become other rules where it is not as it was.
    fn look_at_underlay(&mut self, underlay: Underlay) {
        if self.ports.underlay().is_none_or(|was| **was == underlay) {
            return;
        }
        self.ports.set_underlay(Some(Arc::new(underlay)));
        let tunnel = |(_, entry): &(&u128, &Entry)| {
            entry.text().is_in_tunnel() || entry.text().actions().contains("set(tunnel(")
        };
        let all: Vec<u128> = self.table.flows.iter().filter(tunnel).map(|(ufid, _)| *ufid).collect();
        all.into_iter().for_each(|ufid| self.enqueue(ufid));
    }

    /// Whether there is something to do.
    pub(super) fn is_busy(&self) -> bool {
        !self.gone.is_empty()
            || !self.changed.is_empty()
            || !self.new.is_empty()
            || self.complete && !self.unknown.is_empty()
    }

    /// What the engines are to be told next; nothing when they are as they should be.
    pub(super) fn next(&mut self) -> Option<Step> {
        if !self.is_busy() {
            return None;
        }
        if self.complete && !self.unknown.is_empty() {
            return Some(Step { ask: std::mem::take(&mut self.unknown), ..Step::default() });
        }
        let mut step = Step::default();
        // One that is not known is asked for its rules later: what has no flow goes then.
        let mut gone = std::mem::take(&mut self.gone);
        gone.retain(|nic, _| self.nics.contains_key(nic));
        step.removals = gone;
        for _ in 0..BATCH {
            let Some(ufid) = self.changed.pop_front().or_else(|| self.new.pop_front()) else { break };
            self.compile(ufid, &mut step);
        }
        if self.changed.is_empty() && self.new.is_empty() {
            self.found.clear();
        }
        if !step.installs.is_empty() {
            self.told = Some(Instant::now());
        }
        Some(step)
    }

    fn compile(&mut self, ufid: u128, step: &mut Step) {
        let Step { meters, installs, removals, .. } = step;
        let Some(entry) = self.table.flows.get_mut(&ufid) else { return };
        let flow = if entry.torn { Err(Cause::Torn) } else { read(ufid, entry.text()).map_err(Cause::Unreadable) };
        match &flow {
            Ok(flow) => self.tunnels.note(ufid, far_ends(flow, &self.ports), entry.text().is_in_tunnel()),
            Err(_) => self.tunnels.forget(ufid),
        }
        let result = flow.and_then(|flow| compile(&flow, &self.ports));
        let result = result.and_then(|(nic, rule)| match self.refusing.get(&nic) {
            Some(why) => Err(Cause::Engine(why.clone())),
            None => Ok((nic, rule)),
        });
        self.has_meters |= entry.text().is_metered();
        let paused = idle::state(entry.paused).filter(|_| result.is_ok());
        let had = entry.state.nic().cloned();
        self.refused.remove(&ufid);
        let has = match result {
            Ok(_) if let Some(state) = paused => {
                entry.state = state;
                None
            }
            Ok((nic, rule)) => {
                // What was found there and is right stays, and goes on counting.
                let is_there =
                    self.found.get_mut(&nic).is_some_and(|found| found.remove(&rule.id).as_ref() == Some(&rule));
                // A meter that is as it was stays as it is.
                let named = rule.actions.iter().filter_map(|action| match action {
                    Action::Meter(id) => self.ports.meters().get(id)?.as_ref().ok(),
                    _ => None,
                });
                meters.entry(nic.clone()).or_default().extend(named.map(|spec| (spec.id, *spec)));
                // A NIC that is not known to have done what it was told is told no more until it was asked.
                if !is_there && self.nics.contains_key(&nic) {
                    installs.entry(nic.clone()).or_default().push(rule);
                }
                // One that is there stays offloaded until it is replaced.
                if had.as_ref() != Some(&nic) {
                    entry.state = State::Pending;
                }
                Some(nic)
            }
            Err(cause) => {
                entry.state = State::Not(Box::new(cause));
                None
            }
        };
        if let Some(had) = had.filter(|had| has.as_ref() != Some(had)) {
            entry.counted.lost();
            removals.entry(had).or_default().push(RuleId(ufid));
        }
    }

    /// What came of a step.
    pub(super) fn done(&mut self, outcome: Outcome) {
        let Outcome { found, failed, results } = outcome;
        for (nic, results) in results {
            let nic = Arc::new(nic);
            for result in results {
                let Some(entry) = self.table.flows.get_mut(&result.id.0) else { continue };
                entry.state = match result.error {
                    None => {
                        entry.touched = seconds();
                        State::Offloaded(Arc::clone(&nic))
                    }
                    Some(failure) => {
                        self.refused.insert(result.id.0);
                        State::Not(Box::new(Cause::Engine(failure.message)))
                    }
                };
            }
        }
        for (nic, error) in failed {
            self.failed(&nic, error);
        }
        for (nic, rules) in found {
            self.reconcile(nic, rules);
        }
    }

    /// What a NIC has was asked: what no flow has goes, the rest is compared with what it should be.
    fn reconcile(&mut self, nic: Nic, rules: Vec<Rule>) {
        let Nic { name, life, .. } = nic;
        let (mut found, mut gone) = (HashMap::new(), Vec::new());
        let shared = Arc::new(name.clone());
        for rule in rules {
            match self.table.flows.get_mut(&rule.id.0) {
                Some(entry) => {
                    let other = entry.state.nic().filter(|other| **other != name).cloned();
                    entry.state = State::Offloaded(Arc::clone(&shared));
                    // An entry knows one NIC only: in the other one nobody would remove it when the flow goes.
                    if let Some(other) = other {
                        if let Some(found) = self.found.get_mut(&other) {
                            found.remove(&rule.id);
                        }
                        self.gone.entry(other).or_default().push(rule.id);
                    }
                    found.insert(rule.id, rule);
                }
                None => gone.push(rule.id),
            }
        }
        if !gone.is_empty() {
            self.gone.insert(name.clone(), gone);
        }
        self.found.insert(name.clone(), found);
        self.nics.insert(name, life);
        (self.changed, self.new) = (VecDeque::new(), VecDeque::new());
        let all: Vec<u128> = self.table.flows.keys().copied().collect();
        all.into_iter().for_each(|ufid| self.enqueue(ufid));
    }

    /// How many rules the NIC has.
    pub(super) fn count_rules(&self, nic: &NicName) -> usize {
        self.table.flows.values().filter(|entry| entry.state.nic() == Some(nic)).count()
    }

    fn has_rules(&self, nic: &NicName) -> bool {
        self.table.flows.values().any(|entry| entry.state.nic() == Some(nic))
    }

    /// Nothing is known any more of what rules the NIC has: it is asked after the next look at the NICs.
    fn failed(&mut self, nic: &NicName, error: Error) {
        tracing::warn!(%nic, "its rules are not as they should be: {error}");
        self.nics.remove(nic);
        for entry in self.table.flows.values_mut().filter(|entry| entry.state.nic() == Some(nic)) {
            entry.state = State::Pending;
        }
        self.trouble = Some(error);
    }

    /// What a NIC's rules count now.
    pub(super) fn count(&mut self, nic: &NicName, counters: &[RuleCounters]) {
        for counters in counters {
            let entry = self.table.flows.get_mut(&counters.id.0);
            if let Some(entry) = entry.filter(|entry| entry.state.nic() == Some(nic)) {
                entry.counted.take(counters);
            }
        }
    }

    /// Whether there is a NIC at all, as of the last look.
    pub(super) fn has_nics(&self) -> bool {
        !self.ports.is_empty()
    }

    /// Whether flows of NICs' ports may be with TC, where the kernel's datapath does not tell of them.
    pub(super) fn is_with_tc(&self) -> bool {
        self.has_nics() && matches!(self.hw_offload, Some(Owning::Set | Owning::UntilRestart))
    }

    /// Ports of NICs into whose switch others may bring rules, too: all but those of software NICs.
    pub(super) fn shared_ports(&self) -> Vec<String> {
        self.shared_ports.clone()
    }

    /// Whether a port of the datapath is a NIC's.
    pub(super) fn has_port(&self, name: &str) -> bool {
        self.ports.has(name)
    }
}

fn read(ufid: u128, text: &Packed) -> Result<Flow, String> {
    let (ufid, keys, actions) = (crate::ovs::flow::Ufid(ufid), text.keys(), text.actions());
    let text = format!("ufid:{ufid}, {keys}, packets:0, bytes:0, used:never, actions:{actions}");
    parse::flow(&text, 1, Names::Allowed).map_err(|error| error.to_string())
}
