//! What the mirror says of flows, each and all together.

use std::collections::{BTreeMap, HashMap};

use ringspan_protocol::NicName;
use ringspan_protocol::rule::RuleCounters;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::engine::Engine;
use super::run::{Mirror, lock};
use super::table::{Entry, State};
use crate::error::Error;
use crate::ovs::compile::Cause;
use crate::ovs::flow::Ufid;

/// Most flows in one answer.
const MOST: usize = 10_000;

/// Which flows are told.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FlowFilter {
    /// Only those that come in or go out by this port of the datapath.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Only those in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<FlowState>,
    /// Only those with this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// In which order.
    #[serde(default)]
    pub sort: Sort,
    /// At most so many, and at most 10,000.
    #[serde(default = "most")]
    pub limit: usize,
}

fn most() -> usize {
    MOST
}

/// An order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Sort {
    /// By ufid.
    #[default]
    Ufid,
    /// Most packets first, of both paths together.
    Packets,
    /// Most bytes first, of both paths together.
    Bytes,
}

/// How a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FlowState {
    /// A NIC has its rule.
    Offloaded,
    /// It takes packets out of a tunnel: what is inside is offloaded by flows of its own.
    Partial,
    /// It stays with OVS.
    Not,
    /// It was not told to the NIC yet.
    Pending,
}

/// A flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct FlowView {
    /// OVS's name of it.
    pub ufid: String,
    /// What it matches, as OVS prints it.
    #[serde(rename = "match")]
    pub matches: String,
    /// What it does, as OVS prints it.
    pub actions: String,
    /// How it is.
    pub state: FlowState,
    /// Why it stays with OVS: the code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The NIC that has its rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic: Option<NicName>,
    /// What OVS counted.
    pub ovs: PathCounters,
    /// What the NIC counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<PathCounters>,
}

/// What one path counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct PathCounters {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Milliseconds since the last of them; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<i64>,
}

/// Some flows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Flows {
    /// All that fit the filter, told or not.
    pub total: usize,
    /// Why OVS or a NIC could not be asked the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// The flows.
    pub flows: Vec<FlowView>,
}

/// All flows together.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct FlowStats {
    /// All flows.
    pub flows: usize,
    /// How many are in each state.
    pub by_state: BTreeMap<String, u64>,
    /// How many stay with OVS for each reason.
    pub by_reason: BTreeMap<String, u64>,
    /// What OVS counted, of all flows that are there now.
    pub ovs: PathCounters,
    /// What NICs counted, of all rules that are there now.
    pub rules: PathCounters,
    /// Flows beyond `ovs.max_flows`, which were not looked at.
    pub over_limit: u64,
    /// Lines of the last dump that are no flows.
    pub unreadable: u64,
    /// The first of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable_example: Option<String>,
    /// Dumps made since the daemon started.
    pub dumps: u64,
    /// What the last one cost ovs-vswitchd at most, in microseconds.
    pub dump_us: u64,
    /// Longest time until a change is seen, in milliseconds: two dumps and the time between them.
    pub stale_ms: u64,
    /// Why OVS or a NIC could not be asked the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

type Counters = HashMap<u128, RuleCounters>;

impl Mirror {
    /// The flows that fit.
    pub(crate) fn list(&self, filter: &FlowFilter, engine: &dyn Engine) -> Flows {
        let counters = counters(engine);
        let shared = lock(&self.shared);
        let views = shared.work.table.flows.iter().filter(|(_, entry)| fits(entry, filter));
        let mut chosen: Vec<(u128, &Entry)> = views.map(|(ufid, entry)| (*ufid, entry)).collect();
        let total = chosen.len();
        let of = |ufid: u128, entry: &Entry| {
            let rule = counters.get(&ufid);
            (
                entry.stats.packets + rule.map_or(0, |rule| rule.packets),
                entry.stats.bytes + rule.map_or(0, |rule| rule.bytes),
            )
        };
        match filter.sort {
            Sort::Ufid => chosen.sort_by_key(|(ufid, _)| *ufid),
            Sort::Packets => chosen.sort_by_key(|(ufid, entry)| (std::cmp::Reverse(of(*ufid, entry).0), *ufid)),
            Sort::Bytes => chosen.sort_by_key(|(ufid, entry)| (std::cmp::Reverse(of(*ufid, entry).1), *ufid)),
        }
        chosen.truncate(filter.limit.min(MOST));
        let flows = chosen.into_iter().map(|(ufid, entry)| view(ufid, entry, counters.get(&ufid))).collect();
        Flows {
            total,
            trouble: trouble(shared.gone.as_ref().map(|(error, _)| error), shared.work.trouble.as_ref()),
            flows,
        }
    }

    /// Sums.
    pub(crate) fn stats(&self, engine: &dyn Engine) -> FlowStats {
        let counters = counters(engine);
        let shared = lock(&self.shared);
        let misses = &shared.work.table.misses;
        let cost = shared.pace.cost;
        let mut stats = FlowStats {
            flows: shared.work.table.flows.len(),
            over_limit: misses.over_limit,
            unreadable: misses.unreadable,
            unreadable_example: misses.example.clone(),
            dumps: shared.dumps,
            dump_us: cost.as_micros() as u64,
            stale_ms: (cost * 2 + (cost * 19).max(std::time::Duration::from_millis(100))).as_millis() as u64,
            trouble: trouble(shared.gone.as_ref().map(|(error, _)| error), shared.work.trouble.as_ref()),
            ..FlowStats::default()
        };
        for entry in shared.work.table.flows.values() {
            let word = serde_json::to_value(state(entry)).ok().and_then(|word| Some(word.as_str()?.to_owned()));
            *stats.by_state.entry(word.unwrap_or_default()).or_default() += 1;
            if let State::Not(cause) = &entry.state {
                *stats.by_reason.entry(cause.code().into()).or_default() += 1;
            }
            stats.ovs.packets += entry.stats.packets;
            stats.ovs.bytes += entry.stats.bytes;
        }
        stats.rules.packets = counters.values().map(|rule| rule.packets).sum();
        stats.rules.bytes = counters.values().map(|rule| rule.bytes).sum();
        stats
    }
}

fn trouble(gone: Option<&Error>, work: Option<&Error>) -> Option<String> {
    gone.or(work).map(|error| error.message.clone())
}

/// A NIC that cannot be asked counts nothing.
fn counters(engine: &dyn Engine) -> Counters {
    let all = engine.nics().into_iter().filter_map(|nic| engine.counters(&nic.name).ok()).flatten();
    all.map(|counters| (counters.id.0, counters)).collect()
}

fn fits(entry: &Entry, filter: &FlowFilter) -> bool {
    let port = filter.port.as_ref().is_none_or(|port| has_port(entry, port));
    let reason =
        filter.reason.as_ref().is_none_or(|reason| matches!(&entry.state, State::Not(cause) if cause.code() == reason));
    port && reason && filter.state.is_none_or(|wanted| state(entry) == wanted)
}

/// Whether a port's name stands in it as a whole word.
fn has_port(entry: &Entry, port: &str) -> bool {
    let by = entry.keys().split("in_port(").nth(1).is_some_and(|rest| rest.split([')', '/']).next() == Some(port));
    by || entry.actions().split([',', '(', ')']).any(|word| word == port)
}

fn state(entry: &Entry) -> FlowState {
    match &entry.state {
        State::Pending => FlowState::Pending,
        State::Offloaded(_) => FlowState::Offloaded,
        State::Not(cause) if **cause == Cause::TunnelPop => FlowState::Partial,
        State::Not(_) => FlowState::Not,
    }
}

fn view(ufid: u128, entry: &Entry, rule: Option<&RuleCounters>) -> FlowView {
    let cause = match &entry.state {
        State::Not(cause) => Some(cause),
        _ => None,
    };
    FlowView {
        ufid: Ufid(ufid).to_string(),
        matches: entry.keys().into(),
        actions: entry.actions().into(),
        state: state(entry),
        reason: cause.map(|cause| cause.code().into()),
        why: cause.map(|cause| cause.sentence()),
        nic: entry.state.nic().cloned(),
        ovs: PathCounters { packets: entry.stats.packets, bytes: entry.stats.bytes, idle_ms: entry.stats.used },
        rule: rule.map(|rule| PathCounters {
            packets: rule.packets,
            bytes: rule.bytes,
            idle_ms: rule.idle_ms.map(|idle| idle.try_into().unwrap_or(i64::MAX)),
        }),
    }
}
