//! Results: the middle and the spread of every cell, as a table, and everything as JSON.

use std::fmt::Write;

use ringspan_testkit::wait;
use serde::Serialize;

use crate::calm;
use crate::cell::Cell;
use crate::clock::ticks_per_second;
use crate::distance;
use crate::generator::{Own, TIMES};
use crate::instructions::Instructions;
use crate::iperf::Iperf;
use crate::load::{Load, Measured};
use crate::machine::Machine;
use crate::peer::Peer;
use crate::rates::{Idle, RoundTrip};
use crate::run::Sample;
use crate::target::Verdict;
use crate::wake::{Bare, Wake};

/// A back-end counts as saturated, and its cycles a packet as known, when the generator had to wait for more than this share of the time.
const SATURATED: f64 = 0.05;

/// Middle and extremes of some values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle value, or the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Self { median, least, most })
    }

    /// With a number of decimals.
    pub fn text(self, decimals: usize) -> String {
        format!("{:.2$} ({:.2$}-{3:.2$})", self.median, self.least, decimals, self.most)
    }
}

/// What a back-end did in a cell.
#[derive(Debug, Clone, Serialize)]
pub struct Of {
    /// Who.
    pub peer: Peer,
    /// Packets per second: those that left the guest, or arrived in one; with both directions at once, both.
    pub pps: Spread,
    /// With both directions at once: what was sent, and what was received.
    pub ways: Option<[Spread; 2]>,
    /// Bits per second of the same packets.
    pub bits: f64,
    /// Share of its time in which the generator waited.
    pub waiting: f64,
    /// Cycles a packet of its core, where the back-end was saturated: the clock over the rate.
    pub cycles: Option<f64>,
    /// Share of the frames that were lost, where all should arrive.
    pub lost: Option<f64>,
    /// ringspan divided by this one, round by round; see [`ratio`].
    pub ratio: Option<Spread>,
    /// Rounds in which it was measured.
    pub rounds: usize,
    /// Of how many of them the ratio is: those in which the cores stayed where they were.
    pub compared: usize,
}

/// One cell, compared.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    #[serde(flatten)]
    pub cell: Cell,
    /// Its name.
    pub name: String,
    /// The same work as bare memory copies: packets per second.
    pub limit: Option<f64>,
    /// Nanoseconds that a cache line took between the two cores, before each measurement.
    pub apart: Option<Spread>,
    /// Share of the frames from the guest that ringspan did not copy.
    pub zero_copied: Option<f64>,
    /// By back-end, those that could be measured.
    pub of: Vec<Of>,
    /// What went wrong, by back-end.
    pub faults: Vec<(Peer, String)>,
}

/// The packets that a cell is about, per second.
pub fn packets(measured: &Measured, cell: &Cell) -> f64 {
    use crate::cell::Direction::{Both, Drain, Guests, Loop, Rx, Tx};
    match cell.direction {
        // Where the device is a guest that reads, what counts is what that one got: the rest was dropped on its way.
        Tx if cell.read => measured.received_pps,
        Tx | Drain => measured.sent_pps,
        Rx | Loop | Guests => measured.received_pps,
        Both => measured.sent_pps + measured.received_pps,
    }
}

/// How many times their rate ours is. With both directions at once that of the direction in which it is the least, which is never more than
/// that of the sum: one direction cannot make up for the other.
pub fn ratio(ours: &Measured, theirs: &Measured, cell: &Cell) -> f64 {
    let sum = packets(ours, cell) / packets(theirs, cell);
    if cell.direction != crate::cell::Direction::Both {
        return sum;
    }
    let ways = [ours.sent_pps / theirs.sent_pps, ours.received_pps / theirs.received_pps];
    // A direction in which neither moved anything says nothing.
    ways.into_iter().filter(|ratio| !ratio.is_nan()).fold(sum, f64::min)
}

/// Bits per second of the same packets.
fn bits(measured: &Measured, cell: &Cell) -> f64 {
    use crate::cell::Direction::{Both, Drain, Guests, Loop, Rx, Tx};
    match cell.direction {
        Tx if !cell.read => measured.sent_bits,
        Drain => measured.sent_bits,
        Tx | Rx | Loop | Guests => measured.received_bits,
        Both => measured.sent_bits + measured.received_bits,
    }
}

/// Summarises the samples of a cell.
pub fn row(cell: Cell, limit: Option<Measured>, samples: &[Sample]) -> Row {
    let name = cell.name();
    let of = |peer: Peer| {
        let own = samples.iter().filter(move |sample| sample.peer == peer);
        own.filter(|sample| sample.cell == name).filter_map(|sample| Some((sample, sample.measured?)))
    };
    let ours: Vec<(&Sample, Measured)> = of(Peer::Ringspan).collect();
    let summary = |peer: Peer| {
        let pps = Spread::of(of(peer).map(|(_, measured)| packets(&measured, &cell)))?;
        let median =
            |value: fn(&Measured) -> Option<f64>| Some(Spread::of(of(peer).filter_map(|(_, m)| value(&m)))?.median);
        let waiting = median(|m| Some(m.waiting))?;
        let pairs = of(peer).filter_map(|(sample, theirs)| {
            let (own, ours) = ours.iter().find(|(own, _)| own.round == sample.round)?;
            let calm = own.away.max(sample.away) <= calm::MOST;
            Some((distance::alike(own.apart, sample.apart), calm, ratio(ours, &theirs, &cell)))
        });
        let pairs: Vec<(bool, bool, f64)> = pairs.filter(|(.., ratio)| ratio.is_finite()).collect();
        // Where the cores moved between the two, the ratio is that of two machines, and where one of them stood still, that of nothing. If it was always so, it
        // is all there is.
        let moved = pairs.iter().all(|(alike, ..)| !alike);
        let fair = |pair: &&(bool, bool, f64)| pair.0 || moved;
        let busy = pairs.iter().filter(fair).all(|(_, calm, _)| !calm);
        let ratios: Vec<f64> = pairs.iter().filter(fair).filter(|pair| pair.1 || busy).map(|pair| pair.2).collect();
        let way = |rate: fn(&Measured) -> f64| Spread::of(of(peer).map(|(_, measured)| rate(&measured)));
        let ways = [way(|m| m.sent_pps)?, way(|m| m.received_pps)?];
        Some(Of {
            peer,
            pps,
            ways: (cell.direction == crate::cell::Direction::Both).then_some(ways),
            bits: Spread::of(of(peer).map(|(_, measured)| bits(&measured, &cell)))?.median,
            waiting,
            cycles: (waiting > SATURATED).then(|| ticks_per_second() / pps.median),
            lost: median(|m| m.lost),
            rounds: of(peer).count(),
            compared: ratios.len(),
            ratio: if peer == Peer::Ringspan { None } else { Spread::of(ratios) },
        })
    };
    let fault = |peer: &Peer| {
        let sample =
            samples.iter().find(|sample| sample.peer == *peer && sample.cell == name && sample.fault.is_some())?;
        Some((*peer, sample.fault.clone()?))
    };
    Row {
        limit: limit.map(|measured| packets(&measured, &cell)),
        zero_copied: Spread::of(
            samples.iter().filter(|sample| sample.cell == name).filter_map(|sample| sample.zero_copied),
        )
        .map(|spread| spread.median),
        apart: Spread::of(samples.iter().filter(|sample| sample.cell == name).map(|sample| sample.apart)),
        of: Peer::ALL.into_iter().filter_map(summary).collect(),
        faults: Peer::ALL.iter().filter_map(fault).collect(),
        name,
        cell,
    }
}

impl Row {
    /// What a back-end did, if it was measured.
    pub fn peer(&self, peer: Peer) -> Option<&Of> {
        self.of.iter().find(|of| of.peer == peer)
    }
}

/// A figure with a limit that it should keep.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// What was measured; absent where it could not be.
    pub value: Option<f64>,
    /// Least and most, where there were alternations; the value is their median.
    pub spread: Option<Spread>,
    /// Should stay below, or not be below.
    pub limit: f64,
    /// Which of the two.
    pub at_least: bool,
    /// Unit of both.
    pub unit: &'static str,
    /// Why there is no value.
    pub note: Option<String>,
}

impl Figure {
    /// Whether it is where it should be; not if there is no value.
    pub fn keeps(&self) -> bool {
        self.value.is_some_and(|value| if self.at_least { value >= self.limit } else { value < self.limit })
    }

    /// The value in words.
    pub fn text(&self) -> String {
        match (self.spread, self.value) {
            (Some(spread), _) => format!("{} {}", spread.text(1), self.unit),
            (None, Some(value)) => format!("{value:.1} {}", self.unit),
            (None, None) => "not measured".into(),
        }
    }

    /// The limit in words.
    pub fn wanted(&self) -> String {
        format!("{} {} {}", if self.at_least { ">=" } else { "<" }, self.limit, self.unit)
    }
}

/// Everything a run found out.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where it was measured, and with what.
    pub machine: Machine,
    /// Each measurement.
    pub load: Load,
    /// Alternations.
    pub rounds: usize,
    /// The generator's own rates.
    pub generator: Vec<Own>,
    /// By cell.
    pub rows: Vec<Row>,
    /// Round trips.
    pub round_trips: Vec<RoundTrip>,
    /// Processor time at low rates.
    pub idle: Vec<Idle>,
    /// How soon back-ends that had nothing to do are at work again.
    pub wakes: Vec<Wake>,
    /// iperf3 of a Linux guest.
    pub iperf: Vec<Iperf>,
    /// Instructions a packet.
    pub instructions: Vec<Instructions>,
    /// What the machine itself takes to wake a thread.
    pub bare_wake: Option<Bare>,
    /// The small figures.
    pub figures: Vec<Figure>,
    /// What was aimed for.
    pub verdicts: Vec<Verdict>,
    /// Parts of the run that failed, and why: they are absent above.
    pub faults: Vec<String>,
    /// All measurements, in order.
    pub samples: Vec<Sample>,
}

/// A result whose failure may be noted, and the run goes on.
///
/// # Errors
/// It failed because a signal asked the run to stop. That is told once only: who notes it as a failure like another would go on for ever.
pub fn unless_stopped<T>(result: anyhow::Result<T>) -> anyhow::Result<anyhow::Result<T>> {
    match result {
        Err(error) if error.chain().any(|cause| cause.is::<wait::Stopped>()) => Err(error),
        result => Ok(result),
    }
}

/// What a part of the run found; nothing where it failed, which is noted: what was found before is not lost for it.
///
/// # Errors
/// As [`unless_stopped`].
pub fn part<T: Default>(name: &str, found: anyhow::Result<T>, faults: &mut Vec<String>) -> anyhow::Result<T> {
    Ok(unless_stopped(found)?.unwrap_or_else(|error| {
        faults.push(format!("{name}: {error:#}"));
        T::default()
    }))
}

/// What is said of a generator that is so many times as fast as the fastest back-end.
fn times(times: f64) -> String {
    let miss = if times < TIMES { format!(", MISS: wanted >= {TIMES}") } else { String::new() };
    format!("{times:.2} times the fastest back-end{miss}")
}

impl Report {
    /// Nothing was found out yet.
    pub fn empty(machine: Machine, load: Load, rounds: usize) -> Self {
        Self {
            machine,
            load,
            rounds,
            generator: vec![],
            rows: vec![],
            round_trips: vec![],
            idle: vec![],
            wakes: vec![],
            bare_wake: None,
            iperf: vec![],
            instructions: vec![],
            figures: vec![],
            verdicts: vec![],
            faults: vec![],
            samples: vec![],
        }
    }

    /// The report as text for a terminal.
    pub fn table(&self) -> String {
        let mut text = format!("{}\n", self.machine);
        self.rates(&mut text);
        self.own(&mut text);
        self.round_trips(&mut text);
        self.small(&mut text);
        self.targets(&mut text);
        for fault in &self.faults {
            let _ = writeln!(text, "FAILED: {fault}");
        }
        if let Some(sentence) = self.disturbed() {
            let _ = writeln!(text, "{sentence}");
        }
        if self.machine.load_average > 0.5 {
            let average = self.machine.load_average;
            let _ = writeln!(text, "The machine was busy before (load average {average}): numbers and ratios swing.");
        }
        text
    }

    /// How many measurements the machine disturbed, if any.
    pub fn disturbed(&self) -> Option<String> {
        let (all, bad) = (self.samples.len(), self.samples.iter().filter(|sample| sample.away > calm::MOST).count());
        (bad > 0).then(|| {
            format!(
                "In {bad} of {all} measurements one of the two cores did not run for more than {:.0} % of the time: something else had it.",
                100.0 * calm::MOST
            )
        })
    }

    fn rates(&self, text: &mut String) {
        let peers: Vec<Peer> =
            Peer::ALL.into_iter().filter(|peer| self.rows.iter().any(|r| r.peer(*peer).is_some())).collect();
        if peers.is_empty() {
            return;
        }
        let _ = writeln!(
            text,
            "Mpps, median (least-most) of {} alternations; cycles a packet; ratio of ringspan to it",
            self.rounds
        );
        let _ = write!(text, "{:<22}", "");
        for peer in &peers {
            let width = if *peer == Peer::Ringspan { 34 } else { 44 };
            let _ = write!(text, " {:^width$}", peer.title());
        }
        let _ = writeln!(text, " {:>7} {:>7} {:>9}", "copies", "waiting", "line ns");
        for row in &self.rows {
            let _ = write!(text, "{:<22}", row.name);
            for peer in &peers {
                let Some(of) = row.peer(*peer) else {
                    let width = if *peer == Peer::Ringspan { 34 } else { 44 };
                    let _ = write!(text, " {:^width$}", "-");
                    continue;
                };
                let million = |value: f64| value / 1e6;
                let pps =
                    Spread { median: million(of.pps.median), least: million(of.pps.least), most: million(of.pps.most) };
                let cycles = of.cycles.map_or("-".into(), |cycles| format!("{cycles:.0}"));
                let _ = write!(text, " {:>19} {cycles:>5} c", pps.text(2));
                if *peer != Peer::Ringspan {
                    let _ = write!(text, " {:>17}", of.ratio.map_or("-".into(), |ratio| ratio.text(2)));
                } else {
                    let _ = write!(text, " {:>6.1} G", of.bits / 1e9);
                }
            }
            let limit = row.limit.map_or("-".into(), |limit| format!("{:.1}", limit / 1e6));
            let waiting: Vec<String> = row.of.iter().map(|of| format!("{:.0}", 100.0 * of.waiting)).collect();
            let apart = row.apart.map_or("-".into(), |apart| format!("{:.0}-{:.0}", apart.least, apart.most));
            let _ = writeln!(text, " {limit:>7} {:>7} {apart:>9}", waiting.join("/"));
            let lost: Vec<String> = (row.of.iter())
                .filter_map(|of| {
                    of.lost.filter(|lost| *lost > 0.0).map(|lost| format!("{} {:.2} %", of.peer.title(), 100.0 * lost))
                })
                .collect();
            if !lost.is_empty() {
                let _ = writeln!(text, "{:<22} lost: {}", "", lost.join(", "));
            }
            if let Some(share) = row.zero_copied.filter(|share| *share > 0.0) {
                let _ = writeln!(text, "{:<22} not copied: ringspan {:.0} %", "", 100.0 * share);
            }
            let ways = |of: &Of| {
                let [sent, received] = of.ways?.map(|way| way.median / 1e6);
                Some(format!("{} {sent:.2} + {received:.2}", of.peer.title()))
            };
            let ways: Vec<String> = row.of.iter().filter_map(ways).collect();
            if !ways.is_empty() {
                let _ = writeln!(text, "{:<22} from + to the guest: {}", "", ways.join(", "));
            }
            for (peer, fault) in &row.faults {
                let _ = writeln!(text, "{:<22} {}: {}", "", peer.title(), fault.lines().next().unwrap_or_default());
            }
        }
        let _ = writeln!(
            text,
            "waiting: share of its time, in %, in which the generator found nothing to do, by back-end. Near 0 the generator was the limit.\n\
             line ns: what a cache line took from one core to the other before the measurements; ratios are taken where it was alike,\n\
             and where both cores ran at once.\n"
        );
    }

    /// How many times the rate of the fastest back-end of this run the generator reached, with the same rings, direction and frames, where the
    /// other side did nothing; in words, with a miss where it is less than [`TIMES`].
    pub fn times(&self, own: &Own) -> Option<String> {
        use crate::cell::Direction::{Rx, Tx};
        let direction = if own.receives() { Rx } else { Tx };
        let like = |row: &&Row| row.cell.packed == own.packed && row.cell.direction == direction;
        let rates = self.rows.iter().filter(like).filter(|row| row.cell.frames.most() == 64);
        let fastest = rates.flat_map(|row| row.of.iter().map(|of| of.pps.median)).reduce(f64::max);
        fastest.filter(|_| own.is_bare()).map(|fastest| times(own.rate() / fastest))
    }

    fn own(&self, text: &mut String) {
        for own in &self.generator {
            let times = self.times(own).map_or(String::new(), |times| format!(", {times}"));
            let format = if own.packed { "packed" } else { "split" };
            let _ = writeln!(text, "generator, {format}, {}: {:.1} Mpps{times}", own.work, own.rate() / 1e6);
        }
        if !self.generator.is_empty() {
            text.push('\n');
        }
    }

    fn round_trips(&self, text: &mut String) {
        if !self.round_trips.is_empty() {
            let _ = writeln!(
                text,
                "{:<30} {:>8} {:>18} {:>18} {:>9} {:>9}  us, medians",
                "round trips, 64 B", "Mpps", "p50", "p90", "p99", "p99.9"
            );
        }
        for trip in &self.round_trips {
            let name = format!("{} {} at {} %", trip.peer.title(), trip.format(), trip.percent);
            let _ = writeln!(
                text,
                "{name:<30} {:>8.2} {:>18} {:>18} {:>9.1} {:>9.1}{}",
                trip.pps / 1e6,
                trip.p50.text(1),
                trip.p90.text(1),
                trip.p99.median,
                trip.p999.median,
                if trip.lost > 0.0 { format!("  lost {:.3} %", 100.0 * trip.lost) } else { String::new() }
            );
        }
        if !self.round_trips.is_empty() {
            text.push('\n');
        }
    }

    fn small(&self, text: &mut String) {
        for idle in &self.idle {
            let rate = if idle.pps == 0.0 { "0".into() } else { format!("{:.0}k", idle.pps / 1e3) };
            let _ = writeln!(text, "{:<14} {rate:>6} pps: {:>19} % of a core", idle.peer.title(), idle.percent.text(1));
        }
        for wake in &self.wakes {
            let (name, what) = (wake.peer.title(), wake.kind.title());
            let lost = if wake.lost > 0 { format!(", {} did not come", wake.lost) } else { String::new() };
            let _ =
                writeln!(text, "{name:<14} after silence, {what}: p50 {:.1}, p99 {:.1} us{lost}", wake.p50, wake.p99);
        }
        if let Some(Bare { p50, p99 }) = self.bare_wake {
            let _ = writeln!(
                text,
                "{:<14} after silence, eventfd until it runs on that core: p50 {p50:.1}, p99 {p99:.1} us",
                "a bare thread"
            );
        }
        for found in &self.iperf {
            let [to, from] =
                found.bits.map(|s| Spread { median: s.median / 1e6, least: s.least / 1e6, most: s.most / 1e6 }.text(0));
            let name = found.peer.title();
            let _ = writeln!(text, "{name:<14} iperf3 TCP, Linux guest, Mbit/s: {to} to the guest, {from} from it");
        }
        for found in &self.instructions {
            let _ = match &found.per_packet {
                Ok(count) => {
                    writeln!(text, "{:<14} {:<22} {count:>8.0} instructions a packet", found.peer.title(), found.cell)
                }
                Err(fault) => {
                    let fault = fault.lines().next().unwrap_or_default();
                    writeln!(text, "{:<14} {:<22} {fault}", found.peer.title(), found.cell)
                }
            };
        }
        for figure in &self.figures {
            let value = match (figure.value, &figure.note) {
                (Some(_), _) if figure.keeps() => figure.text(),
                (Some(_), _) => format!("{}, MISS: wanted {}", figure.text(), figure.wanted()),
                (None, Some(note)) => format!("not measured: {note}"),
                (None, None) => "not measured".into(),
            };
            let _ = writeln!(text, "{:<46} {value}", figure.name);
        }
    }

    fn targets(&self, text: &mut String) {
        if self.verdicts.is_empty() {
            return;
        }
        let _ = writeln!(
            text,
            "\n{:<44} {:<10} {:>8} {:>20}  {:<8} worst cell",
            "target", "against", "wanted", "found", ""
        );
        for verdict in &self.verdicts {
            let found = verdict.found.map_or("-".into(), |found| found.text(2));
            let _ = writeln!(
                text,
                "{:<44} {:<10} {:>8} {found:>20}  {:<8} {}",
                verdict.work,
                verdict.against.title(),
                verdict.wanted(),
                verdict.word(),
                verdict.cell
            );
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests;
