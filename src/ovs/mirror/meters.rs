//! The limits of OVS's meters. A flow names a meter by the datapath's number, of which nobody tells the limits: the kernel and the userspace datapath
//! give counters alone. OpenFlow has the limits, by a number of the bridge's. What belongs together OVS says when it traces a flow
//! (`ofproto/trace`): which meters of which bridge became which of the datapath's.
//!
//! This is asked once a second while there are flows with meters, as no event tells of a changed meter.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use ringspan_protocol::MeterSpec;

use super::run::{Common, Settings, lock};
use super::work::Work;
use crate::ovs::client::{OvsError, Place, Switch, meters};

/// Time between looks.
const EVERY: Duration = Duration::from_secs(1);
/// Most flows that are traced in one look.
const TRACES: usize = 100;
/// Longest wait for a bridge.
const BRIDGE: Duration = Duration::from_secs(1);

/// Limits by the datapath's numbers, or why there are none.
pub(crate) type Limits = HashMap<u32, Result<MeterSpec, String>>;

/// Looks after meters until the mirror ends.
pub(super) fn run(common: &Common, settings: &Settings) {
    let mut meters = Meters::default();
    while !lock(&common.shared).ending {
        let wanted = lock(&common.shared).work.metered();
        if !wanted.is_empty() {
            match meters.look(&settings.place, &wanted) {
                Ok(limits) => lock(&common.shared).work.set_meters(limits),
                // As before, until it can be asked.
                Err(error) => {
                    tracing::debug!("meters: {error}");
                    meters.switch = None;
                }
            }
        }
        common.sleep(EVERY);
    }
}

#[derive(Default)]
struct Meters {
    switch: Option<Switch>,
    /// Bridge and number there, by the datapath's number, as last traced.
    known: BTreeMap<u32, (String, u32)>,
    /// The last number that was traced.
    last: u32,
}

impl Meters {
    fn look(&mut self, place: &Place, wanted: &BTreeMap<u32, String>) -> Result<Limits, OvsError> {
        let switch = match &mut self.switch {
            Some(switch) => switch,
            None => self.switch.insert(Switch::connect(place)?),
        };
        self.known.retain(|id, _| wanted.contains_key(id));
        // Those that are not known first, then all others by turns: a meter may have been made anew under another number.
        let unknown = wanted.keys().filter(|id| !self.known.contains_key(id));
        let (before, behind): (Vec<u32>, Vec<u32>) = self.known.keys().partition(|id| **id <= self.last);
        let turn: Vec<u32> = unknown.copied().chain(behind).chain(before).take(TRACES).collect();
        let mut traced = BTreeSet::new();
        let datapaths = switch.call("dpctl/dump-dps", &[])?;
        for id in turn {
            self.last = id;
            if !traced.insert(id) {
                continue;
            }
            self.known.remove(&id);
            for datapath in datapaths.lines().filter_map(|name| name.trim().split_once('@')) {
                // Names of ports are understood without `--names`, which OVS 2.17 does not know.
                let trace = match switch.call("ofproto/trace", &[datapath.1, &wanted[&id]]) {
                    Ok(trace) => trace,
                    // It is of another datapath, or has gone.
                    Err(error) if error.connection_is_good() => continue,
                    Err(error) => return Err(error),
                };
                for (id, bridge, of) in pairs(&trace) {
                    traced.insert(id);
                    self.known.insert(id, (bridge, of));
                }
            }
        }
        let bridges: BTreeSet<&String> = self.known.values().map(|(bridge, _)| bridge).collect();
        let mut configured = HashMap::new();
        for bridge in bridges {
            configured.insert(bridge, meters::meters(place, bridge, BRIDGE).map_err(|error| error.to_string()));
        }
        let limits = wanted.keys().map(|id| {
            let found =
                self.known.get(id).ok_or_else(|| "Open vSwitch does not say which of its meters it is".to_owned());
            let spec = found.and_then(|(bridge, of)| {
                let all = configured.get(bridge).map(Result::as_ref);
                let all = all.unwrap_or(Ok(const { &Vec::new() })).map_err(Clone::clone)?;
                let meter = all.iter().find(|meter| meter.id == *of);
                meter.ok_or_else(|| format!("bridge {bridge} has no meter {of} any more"))?.spec(*id)
            });
            (*id, spec)
        });
        Ok(limits.collect())
    }
}

/// What a trace says of meters: the datapath's number, the bridge, and the number there. Nothing when there are not as many of both.
fn pairs(trace: &str) -> Vec<(u32, String, u32)> {
    let (mut bridge, mut of) = ("", Vec::new());
    let mut in_datapath = Vec::new();
    for line in trace.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("bridge(\"").and_then(|rest| rest.strip_suffix("\")")) {
            bridge = name;
        } else if let Some(id) = line.strip_prefix("meter:").and_then(|id| id.parse().ok()) {
            of.push((bridge, id));
        } else if let Some(actions) = line.strip_prefix("Datapath actions: ") {
            let ids = actions.split("meter(").skip(1).filter_map(|rest| rest.split(')').next()?.parse().ok());
            in_datapath = ids.collect::<Vec<u32>>();
        }
    }
    if of.len() != in_datapath.len() {
        return Vec::new();
    }
    in_datapath.into_iter().zip(of).map(|(id, (bridge, of))| (id, bridge.to_owned(), of)).collect()
}

impl Work {
    /// Meters that flows name, each with what such a flow matches.
    fn metered(&self) -> BTreeMap<u32, String> {
        let mut wanted = BTreeMap::new();
        if !self.has_meters {
            return wanted;
        }
        for entry in self.table.flows.values().filter(|entry| entry.text().is_metered()) {
            for rest in entry.text().actions().split("meter(").skip(1) {
                if let Some(id) = rest.split(')').next().and_then(|id| id.parse().ok()) {
                    wanted.entry(id).or_insert_with(|| entry.text().keys());
                }
            }
        }
        wanted
    }

    /// The limits of meters are these now: flows that name one are looked at again if they differ.
    pub(super) fn set_meters(&mut self, limits: Limits) {
        if !self.ports.set_meters(limits) {
            return;
        }
        let metered = self.table.flows.iter().filter(|(_, entry)| entry.text().is_metered());
        let metered: Vec<u128> = metered.map(|(ufid, _)| *ufid).collect();
        metered.into_iter().for_each(|ufid| self.enqueue(ufid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_says_which_meter_is_which() {
        let trace = "Flow: in_port=1\n\nbridge(\"br0\")\n-------------\n 0. in_port=1, priority 32768\n    meter:9\n    output:2\n\nbridge(\"br-int\")\n\
            -------------\n 0. priority 0\n    meter:7\n    output:1\n\nFinal flow: unchanged\nMegaflow: recirc_id=0\nDatapath actions: meter(4),meter(1),2\n";
        assert_eq!(pairs(trace), [(4, "br0".into(), 9), (1, "br-int".into(), 7)]);
        // One that is none in the datapath: nothing is guessed.
        assert_eq!(pairs(&trace.replace("meter(4),", "")), []);
        assert_eq!(pairs("Cannot find the datapath"), []);
    }
}
