//! One round of the mirror: from what a dump changed to what the engines are told.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use ringspan_protocol::NicName;
use ringspan_protocol::rule::{Rule, RuleId};

use super::engine::{Engine, Nic};
use super::table::{Changes, Entry, State, Table};
use crate::error::Error;
use crate::ovs::compile::{Cause, Ports, TunnelIn, compile, tunnel_in};
use crate::ovs::flow::{Flow, Names, PortRef, parse};

/// How long after an install an engine that says that it has none has lost them.
const SETTLED: Duration = Duration::from_secs(2);
/// Time between attempts at what an engine refused.
const AGAIN: Duration = Duration::from_secs(5);
/// Rules in one request to an engine: a lane takes as many.
const BATCH: usize = ringspan_protocol::message::MAX_RULES;

/// What is known of flows, ports and engines.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// The flows.
    pub table: Table,
    /// Ports of the NICs that take rules, and tunnels.
    ports: Ports,
    /// The NICs, each with the life in which its rules were last known.
    nics: HashMap<NicName, u64>,
    /// Flows that take packets out of tunnels, in an order that stays.
    pops: BTreeMap<u128, (PortRef, TunnelIn)>,
    /// When something was last installed: an engine's word of what it has may be older.
    told: Option<Instant>,
    /// When all that engines refused was last tried again.
    tried: Option<Instant>,
    /// Why an engine could not be told, the last time.
    pub trouble: Option<Error>,
}

impl Work {
    /// Takes dumps of all datapaths, and brings the engines up to them.
    pub(super) fn round(&mut self, dumps: &[String], limit: usize, engine: &dyn Engine) {
        let changes = self.table.update(dumps, limit);
        self.apply(changes, engine);
    }

    /// OVS is gone: so are its flows.
    pub(super) fn clear(&mut self, engine: &dyn Engine) {
        let changes = self.table.update(&[], 0);
        self.apply(changes, engine);
    }

    fn apply(&mut self, changes: Changes, engine: &dyn Engine) {
        self.trouble = None;
        let Changes { changed, gone } = changes;
        let present = engine.nics();
        let mut removals: HashMap<NicName, Vec<RuleId>> = HashMap::new();
        for (ufid, nic) in gone {
            self.pops.remove(&ufid);
            if let Some(nic) = nic {
                removals.entry(nic).or_default().push(RuleId(ufid));
            }
        }
        let mut dirty: HashSet<u128> = changed.into_iter().collect();
        self.try_again(removals.values().map(Vec::len).sum(), &mut dirty);
        let unknown = self.look_at_nics(&present, &mut dirty);
        self.look_at_tunnels(&mut dirty);
        let mut installs: HashMap<NicName, Vec<Rule>> = HashMap::new();
        for ufid in dirty {
            self.compile(ufid, &mut installs, &mut removals);
        }
        for nic in unknown {
            let installs = installs.entry(nic.name.clone()).or_default();
            self.reconcile(&nic, installs, removals.entry(nic.name.clone()).or_default(), engine);
        }
        for (nic, ids) in &removals {
            self.remove(nic, ids, engine);
        }
        // A NIC that is not known to have done what it was told is told no more in this round: what should have gone comes first.
        for (nic, rules) in &installs {
            if self.nics.contains_key(nic) {
                self.install(nic, rules, engine);
            }
        }
    }

    /// What an engine refused, say because it is full, is tried again as soon as there is room for it, and all of it now and then.
    fn try_again(&mut self, room: usize, dirty: &mut HashSet<u128>) {
        let is_due = self.tried.is_none_or(|tried| tried.elapsed() >= AGAIN);
        if room == 0 && !is_due {
            return;
        }
        let refused = |(_, entry): &(&u128, &Entry)| matches!(&entry.state, State::Not(cause) if matches!(**cause, Cause::Engine(_)));
        let most = if is_due { usize::MAX } else { room };
        dirty.extend(self.table.flows.iter().filter(refused).map(|(ufid, _)| *ufid).take(most));
        if is_due {
            self.tried = Some(Instant::now());
        }
    }

    /// What a change of the NICs makes dirty: all flows when there are others, those of a NIC that lost its rules. Returns the
    /// NICs of which it is not known what rules they have.
    fn look_at_nics(&mut self, present: &[Nic], dirty: &mut HashSet<u128>) -> Vec<Nic> {
        let mut ports = Ports::default();
        for nic in present {
            ports.add_nic(&nic.name, nic.ports.iter().copied());
        }
        let lost = |nic: &Nic| {
            nic.empty && self.told.is_some_and(|told| told.elapsed() > SETTLED) && self.has_rules(&nic.name)
        };
        let is_unknown = |nic: &&Nic| self.nics.get(&nic.name) != Some(&nic.life) || lost(nic);
        let unknown: Vec<Nic> = present.iter().filter(is_unknown).cloned().collect();
        self.nics.retain(|name, _| present.iter().any(|nic| nic.name == *name));
        if !unknown.is_empty() || ports != self.ports.without_tunnels() {
            self.ports = ports;
            dirty.extend(self.table.flows.keys());
        }
        for (_, entry) in self.table.flows.iter_mut() {
            // Its rules went with it, or are found again by `reconcile`.
            if entry
                .state
                .nic()
                .is_some_and(|nic| !self.nics.contains_key(nic) || unknown.iter().any(|one| one.name == *nic))
            {
                entry.state = State::Pending;
            }
        }
        unknown
    }

    /// When other tunnels end here, what is inside of them is other rules.
    fn look_at_tunnels(&mut self, dirty: &mut HashSet<u128>) {
        for ufid in dirty.iter() {
            self.pops.remove(ufid);
            let Some(entry) = self.table.flows.get(ufid).filter(|entry| entry.actions().starts_with("tnl_pop(")) else {
                continue;
            };
            let flow = read(*ufid, entry.keys(), entry.actions()).ok();
            if let Some(found) = flow.and_then(|flow| tunnel_in(&flow, &self.ports)) {
                self.pops.insert(*ufid, found);
            }
        }
        let mut ports = self.ports.without_tunnels();
        for (port, tunnel) in self.pops.values() {
            ports.add_tunnel(port, tunnel.clone());
        }
        if ports != self.ports {
            self.ports = ports;
            dirty.extend(
                self.table.flows.iter().filter(|(_, entry)| entry.keys().contains("tunnel(")).map(|(ufid, _)| *ufid),
            );
        }
    }

    fn compile(
        &mut self,
        ufid: u128,
        installs: &mut HashMap<NicName, Vec<Rule>>,
        removals: &mut HashMap<NicName, Vec<RuleId>>,
    ) {
        let Some(entry) = self.table.flows.get_mut(&ufid) else { return };
        let result = if entry.torn {
            Err(Cause::Torn)
        } else {
            let flow = read(ufid, entry.keys(), entry.actions());
            flow.map_err(Cause::Unreadable).and_then(|flow| compile(&flow, &self.ports))
        };
        let had = entry.state.nic().cloned();
        let has = match result {
            Ok((nic, rule)) => {
                installs.entry(nic.clone()).or_default().push(rule);
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
            removals.entry(had).or_default().push(RuleId(ufid));
        }
    }

    /// A NIC whose rules are not known: what is there and right stays, and goes on counting.
    fn reconcile(&mut self, nic: &Nic, installs: &mut Vec<Rule>, removals: &mut Vec<RuleId>, engine: &dyn Engine) {
        let there = match engine.rules(&nic.name) {
            Ok(there) => there,
            Err(error) => return self.failed(&nic.name, error),
        };
        let wanted: HashMap<RuleId, &Rule> = installs.iter().map(|rule| (rule.id, rule)).collect();
        let right: HashSet<RuleId> =
            there.iter().filter(|rule| wanted.get(&rule.id) == Some(rule)).map(|rule| rule.id).collect();
        removals.extend(there.iter().map(|rule| rule.id).filter(|id| !wanted.contains_key(id)));
        for id in &right {
            self.set(id.0, State::Offloaded(nic.name.clone()));
        }
        installs.retain(|rule| !right.contains(&rule.id));
        self.nics.insert(nic.name.clone(), nic.life);
    }

    fn remove(&mut self, nic: &NicName, ids: &[RuleId], engine: &dyn Engine) {
        for ids in ids.chunks(BATCH) {
            if let Err(error) = engine.remove(nic, ids) {
                return self.failed(nic, error);
            }
        }
    }

    fn has_rules(&self, nic: &NicName) -> bool {
        self.table.flows.values().any(|entry| entry.state.nic() == Some(nic))
    }

    fn install(&mut self, nic: &NicName, rules: &[Rule], engine: &dyn Engine) {
        self.told = Some(Instant::now());
        for rules in rules.chunks(BATCH) {
            let results = match engine.install(nic, rules) {
                Ok(results) => results,
                Err(error) => return self.failed(nic, error),
            };
            let mut refused = Vec::new();
            for result in results {
                let state = match result.error {
                    None => State::Offloaded(nic.clone()),
                    Some(failure) => {
                        refused.push(result.id);
                        State::Not(Box::new(Cause::Engine(failure.message)))
                    }
                };
                self.set(result.id.0, state);
            }
            // What it refused to replace is as before, which is not what the flow does now.
            if !refused.is_empty() {
                self.remove(nic, &refused, engine);
            }
        }
    }

    fn set(&mut self, ufid: u128, state: State) {
        if let Some(entry) = self.table.flows.get_mut(&ufid) {
            entry.state = state;
        }
    }

    /// Nothing is known any more of what rules the NIC has: the next round asks.
    fn failed(&mut self, nic: &NicName, error: Error) {
        tracing::warn!(%nic, "its rules are not as they should be: {error}");
        self.nics.remove(nic);
        self.trouble = Some(error);
    }

    /// Whether there is a NIC at all, as of the last round.
    pub(super) fn has_nics(&self) -> bool {
        !self.ports.is_empty()
    }
}

fn read(ufid: u128, keys: &str, actions: &str) -> Result<Flow, String> {
    let ufid = crate::ovs::flow::Ufid(ufid);
    let text = format!("ufid:{ufid}, {keys}, packets:0, bytes:0, used:never, actions:{actions}");
    parse::flow(&text, 1, Names::Allowed).map_err(|error| error.to_string())
}
