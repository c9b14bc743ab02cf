//! The matrix: every back-end in every cell, in turns.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde::Serialize;

use crate::calm::Patience;
use crate::cell::{Cell, Direction, Setup};
use crate::distance;
use crate::driver::stamp::Frames;
use crate::driver::{self, Guest, OutOfOrder, PackedRing, Pair, Ring, SplitRing};
use crate::handback::{self, Work};
use crate::load::{self, Load, Measured, Queues};
use crate::peer::{Backend, Peer, Place};
use crate::report::{packets, unless_stopped};
use ringspan_testkit::guest::feature;
use ringspan_testkit::wait;

/// One measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// The cell's name.
    pub cell: String,
    /// Of whom.
    pub peer: Peer,
    /// In which alternation, from 0.
    pub round: usize,
    /// Nanoseconds that a cache line took between the two cores just before.
    pub apart: f64,
    /// Share of the time, 0 to 1, in which one of the cores did not run, just before or meanwhile, as far as that was noticed.
    pub away: f64,
    /// What came of it.
    pub measured: Option<Measured>,
    /// The features that the guest and the back-end agreed on, as a hexadecimal mask.
    pub features: Option<String>,
    /// Share of the frames from the guest that ringspan says it did not copy.
    pub zero_copied: Option<f64>,
    /// Why it was measured once more: what came of it is that of the second time.
    pub again: Option<String>,
    /// Why nothing did.
    pub fault: Option<String>,
}

/// One measurement, and what else came to be known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub measured: Measured,
    pub features: u64,
    pub zero_copied: Option<f64>,
}

/// What is to be measured, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where.
    pub cells: Vec<Cell>,
    /// Who.
    pub peers: Vec<Peer>,
    /// How often.
    pub rounds: usize,
    /// Each time.
    pub load: Load,
    /// The back-ends' core and memory.
    pub place: Place,
    /// The generator's core.
    pub guest_core: usize,
    /// With cores that do not run at the same time.
    pub patience: Patience,
}

impl Plan {
    /// About how long it takes, in seconds.
    pub fn budget(&self) -> f64 {
        let each = self.load.warm_up + self.load.measured + 0.06;
        let runs: usize = self.cells.iter().map(|cell| self.peers.iter().filter(|peer| peer.can(cell)).count()).sum();
        let setups = self.groups().len() as f64;
        let start: f64 = self.peers.iter().map(|peer| if *peer == Peer::Ovs { 3.0 } else { 1.2 }).sum();
        let limits = self.cells.iter().filter(|cell| work(cell).is_some()).count() as f64 * (0.3 + each);
        runs as f64 * self.rounds as f64 * each + setups * start + limits
    }

    /// The generator's core, and the back-ends'.
    pub(crate) fn cores(&self) -> (usize, usize) {
        (self.guest_core, self.place.core)
    }

    fn groups(&self) -> Vec<(Setup, Vec<Cell>)> {
        let mut groups: Vec<(Setup, Vec<Cell>)> = vec![];
        for cell in &self.cells {
            match groups.iter_mut().find(|(setup, _)| *setup == cell.setup()) {
                Some((_, cells)) => cells.push(*cell),
                None => groups.push((cell.setup(), vec![*cell])),
            }
        }
        groups
    }

    /// Measures everything. `progress` is told each sample as it comes.
    pub fn run(&self, mut progress: impl FnMut(&Sample)) -> anyhow::Result<Vec<Sample>> {
        let mut samples = vec![];
        for (setup, cells) in self.groups() {
            // All back-ends of a setup run; all but one stand still. Each is on the same core, and started once.
            let mut backends: HashMap<Peer, anyhow::Result<Backend>> = HashMap::new();
            for cell in cells {
                let mut failed = vec![];
                for round in 0..self.rounds {
                    // A B C, C B A: what drifts with time does not favour one of them.
                    let mut turn: Vec<Peer> = self.peers.iter().copied().filter(|peer| peer.can(&cell)).collect();
                    if round % 2 == 1 {
                        turn.reverse();
                    }
                    for peer in turn {
                        wait::check_stopped()?;
                        if failed.contains(&peer) {
                            continue;
                        }
                        let mut try_once = || {
                            let backend = match backends.entry(peer) {
                                Entry::Occupied(known) => known.into_mut(),
                                Entry::Vacant(none) => none.insert(unless_stopped(self.start(peer, setup))?),
                            };
                            match backend {
                                Ok(backend) => {
                                    let result = self.measure(backend, &cell);
                                    if result.is_err() {
                                        // It may be in any state; one that cannot be started is not tried again.
                                        backends.remove(&peer);
                                    }
                                    result
                                }
                                Err(error) => Err(anyhow::anyhow!("{error:#}")),
                            }
                        };
                        let (mut apart, mut reason) = (0.0, None);
                        let measure = || {
                            apart = distance::nanoseconds(self.guest_core, self.place.core)?;
                            let result = try_once();
                            reason = again(&result, peer, &cell);
                            if reason.is_some() { try_once() } else { result }
                        };
                        let result = self.patience.measure(self.cores(), measure, |found| found.measured.still);
                        let result = unless_stopped(result)?;
                        let again = reason;
                        if result.is_err() {
                            failed.push(peer);
                        }
                        let fault = result.as_ref().err().map(|error| format!("{error:#}"));
                        let (found, away) = result.ok().unzip();
                        let (measured, features) = found.map(|found| (found.measured, found.features)).unzip();
                        let features = features.map(|features| format!("{features:#x}"));
                        let zero_copied = found.and_then(|found| found.zero_copied);
                        let cell = cell.name();
                        let sample = Sample {
                            cell,
                            peer,
                            round,
                            apart,
                            away: away.unwrap_or(0.0),
                            measured,
                            features,
                            zero_copied,
                            again,
                            fault,
                        };
                        progress(&sample);
                        samples.push(sample);
                    }
                }
            }
        }
        Ok(samples)
    }

    /// Starts a back-end, which stands still.
    pub(crate) fn start(&self, peer: Peer, setup: Setup) -> anyhow::Result<Backend> {
        let backend = Backend::start(peer, setup, self.place)?;
        backend.pause()?;
        Ok(backend)
    }

    /// One measurement on a back-end that stands still, and does again afterwards.
    pub(crate) fn measure(&self, backend: &Backend, cell: &Cell) -> anyhow::Result<Found> {
        backend.resume()?;
        let before = backend.taken()?;
        let measured = if cell.packed {
            on_core(self.guest_core, || {
                guests::<PackedRing, _>(backend, cell, self.place, |guests| self.load(guests, cell))
            })
        } else {
            on_core(self.guest_core, || {
                guests::<SplitRing, _>(backend, cell, self.place, |guests| self.load(guests, cell))
            })
        };
        let taken = if measured.is_ok() { backend.taken()? } else { None };
        backend.pause()?;
        let share = |[frames, zero_copied]: [u64; 2]| zero_copied as f64 / frames.max(1) as f64;
        let since = |then: [u64; 2], now: [u64; 2]| [now[0] - then[0], now[1] - then[1]];
        let zero_copied = before.zip(taken).map(|(then, now)| share(since(then, now)));
        measured.map(|(measured, features)| Found { measured, features, zero_copied })
    }

    fn load<R: Ring>(&self, guests: &mut [Guest<R>], cell: &Cell) -> anyhow::Result<(Measured, u64)> {
        let features = guests.first().map_or(0, |guest| guest.features);
        let mut queues = queues(guests, cell);
        let measured = match cell.direction {
            Direction::Drain => queues.drain(self.load)?,
            _ => queues.run(self.load)?,
        };
        Ok((measured, features))
    }

    /// The same work as bare memory copies between two threads, where there is such work.
    pub fn limit(&self, cell: &Cell) -> anyhow::Result<Option<Measured>> {
        let Some(work) = work(cell) else { return Ok(None) };
        let options = options(cell, Default::default(), self.place.huge_pages);
        let (load, core, device_core) = (self.load, self.guest_core, self.place.core);
        let measured = if cell.packed {
            handback::run::<PackedRing>(&options, work, load, core, device_core)
        } else {
            handback::run::<SplitRing>(&options, work, load, core, device_core)
        };
        measured.map(Some)
    }
}

/// Why a measurement is to be taken once more: nothing moved at all, as of a switch whose other threads did not get to run before
/// the guest gave up; or more came back than was sent, as librte_vhost does now and then on a busy machine when a ring was full at first. Whoever
/// dies does not get a second chance, nor does ringspan for buffers that it should not have returned.
fn again(result: &anyhow::Result<Found>, peer: Peer, cell: &Cell) -> Option<String> {
    match result {
        Ok(found) if packets(&found.measured, cell) == 0.0 => Some("nothing moved".into()),
        Err(error) if error.is::<OutOfOrder>() && peer != Peer::Ringspan => Some(error.to_string()),
        _ => None,
    }
}

fn work(cell: &Cell) -> Option<Work> {
    match cell.direction {
        _ if cell.read || cell.pairs > 1 || cell.indirect || (cell.mergeable && cell.frames.most() > 1536) => None,
        Direction::Tx => Some(Work::CopyFrom),
        Direction::Rx if cell.frames != Frames::Imix => Some(Work::CopyTo(cell.frames.most())),
        _ => None,
    }
}

/// Runs something on a thread bound to a core, so that the caller, who starts programs, is not.
pub fn on_core<T: Send>(core: usize, run: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            load::pin(&[core])?;
            run()
        });
        thread.join().map_err(|_| anyhow::anyhow!("the generator panicked"))?
    })
}

/// What QEMU's virtio-net and Linux agree on by default, where the back-end has it.
const OFFLOADS: u64 = feature::CSUM
    | feature::GUEST_CSUM
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6;

/// How the guests of a cell look.
pub fn options(cell: &Cell, socket: std::path::PathBuf, huge_pages: bool) -> driver::Options {
    driver::Options {
        socket,
        pairs: cell.pairs,
        ring_size: cell.ring_size,
        features: feature::ANY_LAYOUT | feature::EVENT_IDX | if cell.offload { OFFLOADS } else { 0 },
        in_order: cell.in_order,
        mergeable: cell.mergeable,
        indirect: cell.indirect,
        frames: cell.frames,
        receive: cell.frames.most(),
        huge_pages,
    }
}

/// Connects a guest to each socket of a back-end, runs something with them, and stops them.
pub fn guests<R: Ring, T>(
    backend: &Backend,
    cell: &Cell,
    place: Place,
    run: impl FnOnce(&mut [Guest<R>]) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let start = |socket: &std::path::PathBuf| Guest::start(&options(cell, socket.clone(), place.huge_pages));
    let mut guests = backend.sockets.iter().map(start).collect::<anyhow::Result<Vec<_>>>()?;
    let result = run(&mut guests)?;
    guests.into_iter().try_for_each(Guest::stop)?;
    Ok(result)
}

/// The queues that a direction uses.
pub fn queues<'a, R: Ring>(guests: &'a mut [Guest<R>], cell: &Cell) -> Queues<'a, R> {
    let (mut tx, mut rx) = (vec![], vec![]);
    for (index, guest) in guests.iter_mut().enumerate() {
        for Pair { rx: receiver, tx: transmitter } in &mut guest.pairs {
            let (sends, receives) = match cell.direction {
                // Where the device is another guest, that one receives.
                Direction::Tx | Direction::Drain => (index == 0, index == 1),
                Direction::Rx => (false, true),
                Direction::Both | Direction::Loop => (true, true),
                Direction::Guests => (index == 0, index == 1),
            };
            tx.extend(sends.then_some(transmitter));
            rx.extend(receives.then_some(receiver));
        }
    }
    Queues::new(tx, rx, cell.arrives())
}
