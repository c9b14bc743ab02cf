//! How busy the workers are, and the moving of shares from those that have too much to do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use ringspan_protocol::{LaneEventKind, LaneLoad, WorkerLoad};

use super::Lane;
use crate::port::{PortState, Shares};
use crate::worker::{Balance, Move, Part, ticks_in};

/// Among the shares, what stands for the switch of a software NIC.
const A_SWITCH: usize = usize::MAX;

/// Looks at the workers again and again.
pub struct Balancer {
    /// By NUMA node.
    balance: BTreeMap<Option<u16>, Balance>,
    /// What each share had done by then: the port and the share, and the ticks; or the software NIC, and
    /// [`A_SWITCH`]. What is made anew starts at 0.
    before: BTreeMap<(u64, usize), u64>,
    looked: Instant,
}

/// A share and where it is.
struct Known {
    state: Arc<PortState>,
    shares: Arc<Shares>,
    share: usize,
}

impl Balancer {
    /// Begins now.
    pub fn new() -> Self {
        Self { balance: BTreeMap::new(), before: BTreeMap::new(), looked: Instant::now() }
    }

    /// Measures what the workers did since the last look, and moves a share when one has clearly too much to do.
    pub fn look(&mut self, lane: &Lane) {
        let elapsed = ticks_in(self.looked.elapsed()).max(1) as f64;
        self.looked = Instant::now();
        let (mut known, mut parts) = (Vec::new(), Vec::new());
        let mut now = BTreeMap::new();
        let before = &self.before;
        let mut part = |key: (u64, usize), worker, ticks, fixed| {
            let before = before.get(&key).copied().filter(|before| *before <= ticks).unwrap_or(ticks);
            now.insert(key, ticks);
            Part { worker, busy: ((ticks - before) as f64 / elapsed).min(1.0), fixed }
        };
        for (state, shares) in lane.all_shares() {
            for (share, (worker, load)) in shares.loads().into_iter().enumerate() {
                parts.push(part((shares.port(), share), worker, load.ticks(), false));
                known.push(Known { state: Arc::clone(&state), shares: Arc::clone(&shares), share });
            }
        }
        // Behind the shares, which are known by their places.
        parts.extend(
            lane.switch_loads().into_iter().map(|(nic, worker, ticks)| part((nic, A_SWITCH), worker, ticks, true)),
        );
        self.before = now;
        let mut moves = 0;
        if lane.info.rebalance_ms > 0 {
            for step in self.decide(lane, &parts) {
                let Known { state, shares, share } = &known[step.part];
                moves += u64::from(carry_out(lane, state, shares, *share, parts[step.part].worker, step.to));
            }
        }
        lane.set_load(|load| {
            load.moves += moves;
            load.workers = lane
                .workers
                .iter()
                .enumerate()
                .map(|(index, worker)| {
                    let busy: f64 = parts.iter().filter(|part| part.worker == index).map(|part| part.busy).sum();
                    let shares = worker.shares() as u16;
                    WorkerLoad { core: worker.core(), shares, busy_percent: (busy.min(1.0) * 100.0).round() as u8 }
                })
                .collect();
        });
    }

    /// What is to be moved. A share stays on the node of its guest's memory, so each node's workers are compared with one another.
    fn decide(&mut self, lane: &Lane, parts: &[Part]) -> Vec<Move> {
        let mut nodes: BTreeMap<Option<u16>, Vec<usize>> = BTreeMap::new();
        for (index, worker) in lane.workers.iter().enumerate() {
            nodes.entry(worker.node()).or_default().push(index);
        }
        let mut moves = Vec::new();
        for (node, workers) in nodes {
            let here = |part: &Part| workers.iter().position(|worker| *worker == part.worker);
            let (places, there): (Vec<usize>, Vec<Part>) = parts
                .iter()
                .enumerate()
                .filter_map(|(place, part)| Some((place, Part { worker: here(part)?, ..*part })))
                .unzip();
            let step = self.balance.entry(node).or_default().decide(workers.len(), &there);
            moves.extend(step.map(|step| Move { part: places[step.part], to: workers[step.to] }));
        }
        moves
    }
}

/// Moves a share, and says so. False when it changed meanwhile.
fn carry_out(lane: &Lane, state: &PortState, shares: &Shares, share: usize, from: usize, to: usize) -> bool {
    let moved = shares.move_share(share, to).unwrap_or_else(|error| {
        tracing::warn!(%error, "a share was not moved");
        false
    });
    if moved {
        let pairs = shares.status().get(share).map_or_else(Vec::new, |share| share.pairs.clone());
        let (from, to) = (lane.workers[from].core(), lane.workers[to].core());
        state.device_event(LaneEventKind::ShareMoved { pairs, from, to });
    }
    moved
}

impl Default for Balancer {
    fn default() -> Self {
        Self::new()
    }
}

impl Lane {
    /// All ports' shares. The lane is not locked while they are looked at.
    fn all_shares(&self) -> Vec<(Arc<PortState>, Arc<Shares>)> {
        let ports = self.all();
        ports.iter().filter_map(|port| Some((Arc::clone(port.state()), port.shares()?))).collect()
    }

    fn set_load(&self, change: impl FnOnce(&mut LaneLoad)) {
        change(&mut self.load.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    pub(super) fn load(&self) -> LaneLoad {
        self.load.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}
