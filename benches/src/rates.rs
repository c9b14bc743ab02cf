//! Round trips under load, and what idle and nearly idle guests cost.

use std::time::{Duration, Instant};

use ringspan_testkit::wait;
use serde::Serialize;

use crate::cell::{Cell, Direction};
use crate::driver::{Guest, PackedRing, Ring, SplitRing};
use crate::latency::{Latency, processor_seconds};
use crate::peer::{Backend, Peer};
use crate::report::{Spread, packets, unless_stopped};
use crate::run::{Plan, guests, on_core, queues};

/// Shares of the slowest back-end's rate at which round trips are measured, in percent.
const PERCENT: [u32; 3] = [10, 50, 90];
/// Rates, in packets a second, at which processor time is measured.
const RATES: [f64; 4] = [0.0, 1e3, 100e3, 1e6];
/// Alternations of it, each of two seconds.
const IDLE_ROUNDS: usize = 3;

/// Round trips of one back-end at one rate.
#[derive(Debug, Clone, Serialize)]
pub struct RoundTrip {
    /// Whose.
    pub peer: Peer,
    /// Packed rings.
    pub packed: bool,
    /// Share of the rate that the slowest of the back-ends can do.
    pub percent: u32,
    /// Frames per second: the same for all back-ends.
    pub pps: f64,
    /// Microseconds, of each alternation.
    pub p50: Spread,
    /// The same.
    pub p90: Spread,
    /// The same.
    pub p99: Spread,
    /// The same.
    pub p999: Spread,
    /// Share of frames that did not come back.
    pub lost: f64,
    /// ringspan's p50 and p90 divided by these, round by round.
    pub ratios: [Option<Spread>; 2],
    /// All alternations.
    pub samples: Vec<Latency>,
}

impl RoundTrip {
    /// `split` or `packed`.
    pub fn format(&self) -> &'static str {
        if self.packed { "packed" } else { "split" }
    }

    /// As a measurement at half load would be, in which it has these ratios.
    #[cfg(test)]
    pub(crate) fn at_half_load(peer: Peer, packed: bool, ratio: Option<Spread>) -> Self {
        let [p50, p90, p99, p999] = [1.0, 2.0, 3.0, 4.0].map(|us| Spread { median: us, least: us, most: us });
        let (percent, pps, lost, ratios) = (50, 1e6, 0.0, [ratio; 2]);
        Self { peer, packed, percent, pps, p50, p90, p99, p999, lost, ratios, samples: vec![] }
    }
}

/// Processor time at a low rate.
#[derive(Debug, Clone, Serialize)]
pub struct Idle {
    /// Whose.
    pub peer: Peer,
    /// Frames per second from one guest.
    pub pps: f64,
    /// Percent of a core, all threads of the process together, of each alternation.
    pub percent: Spread,
}

impl Plan {
    fn cell(&self, direction: Direction, packed: bool) -> anyhow::Result<Cell> {
        let name = format!("{}/{}/64", direction.name(), if packed { "packed" } else { "split" });
        Ok(Cell::select(&[name])?[0])
    }

    /// Back-ends that stand still, or why one could not be started. An error only if the run is to stop.
    pub(crate) fn backends(&self, cell: &Cell) -> anyhow::Result<Vec<(Peer, anyhow::Result<Backend>)>> {
        let peers = self.peers.iter().copied().filter(|peer| peer.can(cell) && *peer != Peer::Plain);
        peers.map(|peer| Ok((peer, unless_stopped(self.start(peer, cell.setup()))?))).collect()
    }

    /// Round trips of 64-byte frames through the loop device.
    pub fn round_trips(&self, packed: bool, mut progress: impl FnMut(&str)) -> anyhow::Result<Vec<RoundTrip>> {
        let cell = self.cell(Direction::Loop, packed)?;
        let mut backends = vec![];
        let mut slowest = f64::INFINITY;
        for (peer, backend) in self.backends(&cell)? {
            let rate = backend.and_then(|backend| {
                let measure = || self.measure(&backend, &cell);
                let (found, _) = self.patience.measure(self.cores(), measure, |found| found.measured.still)?;
                Ok((packets(&found.measured, &cell), backend))
            });
            match unless_stopped(rate)? {
                Ok((0.0, _)) => progress(&format!("round trips: {}: nothing came back", peer.title())),
                Ok((rate, backend)) => {
                    progress(&format!("round trips: {} does {:.2} Mpps", peer.title(), rate / 1e6));
                    slowest = slowest.min(rate);
                    backends.push((peer, backend));
                }
                Err(error) => progress(&format!("round trips: {}: {error:#}", peer.title())),
            }
        }
        let mut trips = vec![];
        for percent in PERCENT {
            let pps = slowest * f64::from(percent) / 100.0;
            let mut found: Vec<Vec<Latency>> = vec![vec![]; backends.len()];
            for round in 0..self.rounds {
                for turn in 0..backends.len() {
                    wait::check_stopped()?;
                    let index = if round % 2 == 1 { backends.len() - 1 - turn } else { turn };
                    let (peer, backend) = &backends[index];
                    let measure = || self.paced(backend, &cell, pps);
                    let (latency, _) = self.patience.measure(self.cores(), measure, |latency| latency.still)?;
                    progress(&format!(
                        "round trips at {percent} %, round {}: {} p50 {:.1} us, p99 {:.1} us",
                        round + 1,
                        peer.title(),
                        latency.p50,
                        latency.p99
                    ));
                    found[index].push(latency);
                }
            }
            let ours = backends.iter().position(|(peer, _)| *peer == Peer::Ringspan);
            for (index, (peer, _)) in backends.iter().enumerate() {
                let of = |pick: fn(&Latency) -> f64| Spread::of(found[index].iter().map(pick));
                let ratio = |pick: fn(&Latency) -> f64| {
                    let ours = ours.filter(|ours| *ours != index)?;
                    let ratios = found[ours].iter().zip(&found[index]).map(|(ours, theirs)| pick(ours) / pick(theirs));
                    Spread::of(ratios.filter(|ratio| ratio.is_finite()))
                };
                let (Some(p50), Some(p90), Some(p99), Some(p999)) =
                    (of(|l| l.p50), of(|l| l.p90), of(|l| l.p99), of(|l| l.p999))
                else {
                    continue;
                };
                let lost = of(|l| l.lost).map_or(0.0, |lost| lost.median);
                let ratios = [ratio(|l| l.p50), ratio(|l| l.p90)];
                let (peer, samples) = (*peer, found[index].clone());
                trips.push(RoundTrip { peer, packed, percent, pps, p50, p90, p99, p999, lost, ratios, samples });
            }
        }
        Ok(trips)
    }

    fn paced(&self, backend: &Backend, cell: &Cell, pps: f64) -> anyhow::Result<Latency> {
        fn run<R: Ring>(plan: &Plan, guests: &mut [Guest<R>], cell: &Cell, pps: f64) -> anyhow::Result<Latency> {
            Ok(queues(guests, cell).paced(pps, plan.load.warm_up, plan.load.measured)?)
        }
        backend.resume()?;
        let place = self.place;
        let latency = if cell.packed {
            on_core(self.guest_core, || guests::<PackedRing, _>(backend, cell, place, |g| run(self, g, cell, pps)))
        } else {
            on_core(self.guest_core, || guests::<SplitRing, _>(backend, cell, place, |g| run(self, g, cell, pps)))
        };
        backend.pause()?;
        latency
    }

    /// What a back-end uses of its core with one guest that sends little or nothing.
    pub fn idle(&self, mut progress: impl FnMut(&str)) -> anyhow::Result<Vec<Idle>> {
        let cell = self.cell(Direction::Tx, false)?;
        let mut backends = vec![];
        for (peer, backend) in self.backends(&cell)? {
            match backend {
                Ok(backend) => backends.push((peer, backend)),
                Err(error) => progress(&format!("idle: {}: {error:#}", peer.title())),
            }
        }
        let mut found = vec![];
        for pps in RATES {
            let mut percent: Vec<Vec<f64>> = vec![vec![]; backends.len()];
            for round in 0..IDLE_ROUNDS {
                for turn in 0..backends.len() {
                    wait::check_stopped()?;
                    let index = if round % 2 == 1 { backends.len() - 1 - turn } else { turn };
                    let (peer, backend) = &backends[index];
                    let used = self.used(backend, &cell, pps)?;
                    progress(&format!("{pps} pps, round {}: {} {used:.1} % of a core", round + 1, peer.title()));
                    percent[index].push(used);
                }
            }
            let own = backends.iter().zip(percent);
            found.extend(own.filter_map(|((peer, _), own)| Some(Idle { peer: *peer, pps, percent: Spread::of(own)? })));
        }
        Ok(found)
    }

    /// Percent of a core that a back-end uses, which stands still before, and after unless it failed.
    fn used(&self, backend: &Backend, cell: &Cell, pps: f64) -> anyhow::Result<f64> {
        backend.resume()?;
        let used = on_core(self.guest_core, || {
            guests::<SplitRing, _>(backend, cell, self.place, |guests| {
                let mut queues = queues(guests, cell);
                let mut spend = |seconds: f64| -> anyhow::Result<()> {
                    if pps == 0.0 {
                        wait::pause(Duration::from_secs_f64(seconds))?;
                    } else {
                        queues.paced(pps, 0.0, seconds)?;
                    }
                    Ok(())
                };
                // What a change of the load sets off is over after half a second.
                spend(0.5)?;
                let (start, before) = (Instant::now(), processor_seconds(backend.pid())?);
                spend(1.5)?;
                let used = processor_seconds(backend.pid())? - before;
                Ok(100.0 * used / start.elapsed().as_secs_f64())
            })
        })?;
        backend.pause()?;
        Ok(used)
    }
}
