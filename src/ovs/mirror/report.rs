//! What the mirror says of flows, each and all together.

use std::collections::BTreeMap;
use std::time::Duration;

use ringspan_protocol::{NicName, RuleId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::engine::Engine;
use super::line::ByOvs;
use super::run::{Mirror, Phase, Shared, lock};
use super::sample;
use super::table::{Entry, State};
use crate::ovs::client::Place;
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
    /// Only those whose ufid is greater: in the order of ufids, the last one of the answer before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<RuleId>,
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
    /// Most bits a second first, of both paths together.
    Rate,
}

/// How a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FlowState {
    /// A NIC has it: by a rule of ringspan's, or because Open vSwitch brought it there by itself.
    Offloaded,
    /// It takes packets out of a tunnel: what is inside is offloaded by flows of its own. Or Open vSwitch brought what it matches into a NIC, and not
    /// what it does.
    Partial,
    /// It stays with OVS.
    Not,
    /// It was not told to the NIC yet.
    Pending,
}

/// A flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// By what Open vSwitch itself brought it into a NIC: `tc` or `dpdk`. Then there is no rule of ringspan's, and OVS counts what the NIC forwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// What OVS counted.
    pub ovs: PathCounters,
    /// What NICs counted, over all rules that the flow had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<PathCounters>,
    /// Both paths together, over the last second or so; absent for a flow that is younger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<FlowRate>,
}

/// How much passes.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct FlowRate {
    /// Packets a second.
    pub packets: f64,
    /// Bits a second.
    pub bits: f64,
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Flows {
    /// All that fit the filter, told or not; of those behind `after`.
    pub total: usize,
    /// Why OVS or a NIC could not be asked the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// The flows.
    pub flows: Vec<FlowView>,
}

/// All flows together.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct FlowStats {
    /// All flows.
    pub flows: usize,
    /// How many are in each state.
    pub by_state: BTreeMap<String, u64>,
    /// How many stay with OVS for each reason.
    pub by_reason: BTreeMap<String, u64>,
    /// What OVS counted, of all flows that are there now.
    pub ovs: PathCounters,
    /// What NICs counted, of all flows that are there now.
    pub rules: PathCounters,
    /// Both paths together, over the last second or so.
    pub rate: FlowRate,
    /// Flows beyond `ovs.max_flows`, which were not looked at.
    pub over_limit: u64,
    /// Lines of the last dump that are no flows.
    pub unreadable: u64,
    /// The first of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable_example: Option<String>,
    /// Dumps of ovs-vswitchd since the daemon started.
    pub dumps: u64,
    /// What the last one cost ovs-vswitchd at most, in microseconds.
    pub dump_us: u64,
    /// Longest time until a change is seen that nothing else tells of, in milliseconds: two dumps and the time between them.
    pub stale_ms: u64,
    /// The kernel's datapath, while it is listened to: its changes are seen at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelStats>,
    /// Why OVS or a NIC could not be asked the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// What the kernel told of its datapath.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct KernelStats {
    /// Changes that it told.
    pub changes: u64,
    /// Dumps of it, for counters and for what was lost.
    pub dumps: u64,
    /// What the last one took, in microseconds.
    pub dump_us: u64,
}

impl Mirror {
    /// Whether any flow that is known comes in or goes out by this port.
    pub(crate) fn names(&self, port: &str) -> bool {
        lock(&self.common.shared).work.table.flows.values().any(|entry| has_port(entry, port))
    }

    /// The flows that fit.
    pub(crate) fn list(&self, filter: &FlowFilter, engine: &dyn Engine) -> Flows {
        sample::take(&self.common, engine);
        let shared = lock(&self.common.shared);
        let is_behind = |ufid: u128| filter.after.is_none_or(|RuleId(after)| ufid > after);
        let views = shared.work.table.flows.iter().filter(|(ufid, entry)| is_behind(**ufid) && fits(entry, filter));
        let mut chosen: Vec<(u128, &Entry)> = views.map(|(ufid, entry)| (*ufid, entry)).collect();
        let total = chosen.len();
        let of = |entry: &Entry| {
            let total = entry.counted.total(&entry.ovs());
            match filter.sort {
                Sort::Ufid => 0,
                Sort::Packets => total.packets,
                Sort::Bytes => total.bytes,
                Sort::Rate => entry.counted.rate().map_or(0, |rate| rate.bits as u64),
            }
        };
        chosen.sort_by_cached_key(|(ufid, entry)| (std::cmp::Reverse(of(entry)), *ufid));
        chosen.truncate(filter.limit.min(MOST));
        let flows = chosen.into_iter().map(|(ufid, entry)| view(ufid, entry)).collect();
        Flows { total, trouble: trouble(&shared, &self.settings.place), flows }
    }

    /// Sums.
    pub(crate) fn stats(&self, engine: &dyn Engine) -> FlowStats {
        sample::take(&self.common, engine);
        let shared = lock(&self.common.shared);
        let misses = shared.work.table.misses();
        let cost = shared.pace.cost;
        let us = |time: Duration| time.as_micros() as u64;
        let kernel =
            KernelStats { changes: shared.kernel_changes, dumps: shared.kernel_dumps, dump_us: us(shared.kernel_took) };
        let mut stats = FlowStats {
            flows: shared.work.table.flows.len(),
            over_limit: misses.over_limit,
            unreadable: misses.unreadable,
            unreadable_example: misses.example,
            dumps: shared.dumps,
            dump_us: us(cost),
            stale_ms: shared.pace.stale().as_millis() as u64,
            kernel: (shared.phase == Phase::Live).then_some(kernel),
            trouble: trouble(&shared, &self.settings.place),
            ..FlowStats::default()
        };
        for entry in shared.work.table.flows.values() {
            let word = serde_json::to_value(state(entry)).ok().and_then(|word| Some(word.as_str()?.to_owned()));
            *stats.by_state.entry(word.unwrap_or_default()).or_default() += 1;
            if let Some(cause) = cause(entry) {
                *stats.by_reason.entry(cause.code().into()).or_default() += 1;
            }
            stats.ovs.packets += entry.ovs().packets;
            stats.ovs.bytes += entry.ovs().bytes;
            if let Some((count, _)) = entry.counted.rules() {
                stats.rules.packets += count.packets;
                stats.rules.bytes += count.bytes;
            }
            if let Some(rate) = entry.counted.rate() {
                stats.rate.packets += f64::from(rate.packets);
                stats.rate.bits += f64::from(rate.bits);
            }
        }
        stats
    }
}

/// Why OVS or a NIC could not be asked.
fn trouble(shared: &Shared, place: &Place) -> Option<String> {
    if !shared.asked {
        return Some(not_asked(shared.work.has_nics(), place));
    }
    let gone = shared.gone.as_ref().map(|(error, _)| error);
    let others = shared.work.trouble.as_ref().or(shared.refused.as_ref()).or(shared.work.tunnels.trouble.as_ref());
    gone.or(others).map(|error| error.message.clone())
}

/// Why OVS was not asked for its flows so far.
fn not_asked(has_nics: bool, place: &Place) -> String {
    let folder = place.folder().display();
    if place.is_absent() {
        format!(
            "Open vSwitch was not found: neither db.sock nor ovs-vswitchd.pid is in {folder}: start it, or name its run directory in the configuration file (ovs.run_dir)"
        )
    } else if has_nics {
        format!("Open vSwitch in {folder} is being asked for the first time")
    } else {
        format!("Open vSwitch in {folder} is not asked while no NIC could take its flows: see ringspan nic add")
    }
}

fn fits(entry: &Entry, filter: &FlowFilter) -> bool {
    let port = filter.port.as_ref().is_none_or(|port| has_port(entry, port));
    let reason = filter.reason.as_ref().is_none_or(|reason| cause(entry).is_some_and(|cause| cause.code() == reason));
    port && reason && filter.state.is_none_or(|wanted| state(entry) == wanted)
}

/// Whether a port's name stands in it as a whole word.
fn has_port(entry: &Entry, port: &str) -> bool {
    let by =
        entry.text().keys().split("in_port(").nth(1).is_some_and(|rest| rest.split([')', '/']).next() == Some(port));
    by || entry.text().actions().split([',', '(', ')']).any(|word| word == port)
}

fn state(entry: &Entry) -> FlowState {
    match (&entry.state, entry.by_ovs()) {
        (State::Offloaded(_), _) | (_, ByOvs::Tc | ByOvs::Dpdk) => FlowState::Offloaded,
        (_, ByOvs::Partly) => FlowState::Partial,
        (State::Pending, ByOvs::No) => FlowState::Pending,
        (State::Not(cause), ByOvs::No) if **cause == Cause::TunnelPop => FlowState::Partial,
        (State::Not(_), ByOvs::No) => FlowState::Not,
    }
}

/// Why it stays with OVS, if no NIC has it by anybody's doing.
fn cause(entry: &Entry) -> Option<&Cause> {
    match (&entry.state, entry.by_ovs()) {
        (State::Not(cause), ByOvs::No) => Some(cause),
        _ => None,
    }
}

fn view(ufid: u128, entry: &Entry) -> FlowView {
    let cause = cause(entry);
    let layer = match (&entry.state, entry.by_ovs()) {
        (State::Offloaded(_), _) | (_, ByOvs::No | ByOvs::Partly) => None,
        (_, ByOvs::Tc) => Some("tc".into()),
        (_, ByOvs::Dpdk) => Some("dpdk".into()),
    };
    let ovs = entry.ovs();
    FlowView {
        ufid: Ufid(ufid).to_string(),
        matches: entry.text().keys(),
        actions: entry.text().actions(),
        state: state(entry),
        reason: cause.map(|cause| cause.code().into()),
        why: cause.map(|cause| cause.sentence()),
        nic: entry.state.nic().cloned(),
        layer,
        ovs: PathCounters { packets: ovs.packets, bytes: ovs.bytes, idle_ms: ovs.used().map(i64::from) },
        rule: entry.counted.rules().map(|(count, idle)| PathCounters {
            packets: count.packets,
            bytes: count.bytes,
            idle_ms: idle.map(|idle| idle.try_into().unwrap_or(i64::MAX)),
        }),
        rate: entry.counted.rate().map(|rate| FlowRate { packets: rate.packets.into(), bits: rate.bits.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_flows_is_told_where_open_vswitch_was_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::new(Some(&folder.path().join("ovs")));
        let at = place.folder().display().to_string();
        let said = not_asked(false, &place);
        assert!(said.contains("was not found") && said.contains(&at) && said.contains("ovs.run_dir"), "{said}");
        std::fs::create_dir(place.folder()).unwrap();
        assert_eq!(not_asked(true, &place), said);
        std::fs::write(place.database(), "").unwrap();
        let said = not_asked(false, &place);
        assert!(said.contains(&at) && said.contains("ringspan nic add"), "{said}");
        assert!(not_asked(true, &place).ends_with("is being asked for the first time"));
    }
}
