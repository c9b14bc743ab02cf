//! Results: the middle and the spread, as a table and as JSON.

use serde::Serialize;

use crate::load::{Direction, Load, Measured};
use crate::peer::Peer;

/// One measurement.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sample {
    /// Of whom.
    pub peer: Peer,
    /// Which way.
    pub direction: Direction,
    /// In which alternation, from 0.
    pub round: usize,
    /// What came of it.
    #[serde(flatten)]
    pub measured: Measured,
}

/// Middle and extremes of some values.
#[derive(Debug, Clone, Copy, Serialize)]
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
}

/// One direction, compared.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Which way.
    pub direction: Direction,
    /// A back-end that copies and does nothing else: what machine and generator can do.
    pub ceiling_pps: f64,
    /// ringspan.
    pub ringspan: Option<Spread>,
    /// The other.
    pub testpmd: Option<Spread>,
    /// Share of its time in which the generator waited, against each of the two.
    pub waiting: [Option<Spread>; 2],
    /// ringspan divided by the other, round by round.
    pub ratio: Option<Spread>,
}

/// Everything a run found out.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The processor's name.
    pub processor: String,
    /// Load average of the last minute, before the first measurement: above 0.5 something else was measured too.
    pub load_average: f64,
    /// Whether back-ends and guest memory were in hugepages.
    pub huge_pages: bool,
    /// Descriptors in each ring.
    pub ring_size: u16,
    /// The load.
    pub load: Load,
    /// By direction.
    pub rows: Vec<Row>,
    /// All measurements, in order.
    pub samples: Vec<Sample>,
    /// Name, value, limit and unit of the small figures.
    pub figures: Vec<Figure>,
}

/// A figure with a limit that it should keep.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// What was measured; absent where it could not be.
    pub value: Option<f64>,
    /// Should stay below.
    pub limit: f64,
    /// Unit of both.
    pub unit: &'static str,
    /// Why there is no value.
    pub note: Option<String>,
}

/// Summarises samples of a direction.
pub fn row(direction: Direction, ceiling_pps: f64, samples: &[Sample]) -> Row {
    let of = |peer: Peer| samples.iter().filter(move |s| s.peer == peer && s.direction == direction);
    let ratio = of(Peer::Ringspan).filter_map(|ours| {
        of(Peer::Testpmd)
            .find(|theirs| theirs.round == ours.round)
            .map(|theirs| ours.measured.pps / theirs.measured.pps)
    });
    Row {
        direction,
        ceiling_pps,
        ringspan: Spread::of(of(Peer::Ringspan).map(|s| s.measured.pps)),
        testpmd: Spread::of(of(Peer::Testpmd).map(|s| s.measured.pps)),
        waiting: [Peer::Ringspan, Peer::Testpmd].map(|peer| Spread::of(of(peer).map(|s| s.measured.waiting))),
        ratio: Spread::of(ratio),
    }
}

impl Report {
    /// The report as text for a terminal.
    pub fn table(&self) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        let million = |spread: Option<Spread>| match spread {
            Some(s) => format!("{:.2} ({:.2}-{:.2})", s.median / 1e6, s.least / 1e6, s.most / 1e6),
            None => "-".into(),
        };
        let _ = writeln!(
            text,
            "{}-byte frames, one core for the back-end, split ring of {}, {}; Mpps, median (least-most)",
            self.load.frame,
            self.ring_size,
            if self.huge_pages { "hugepages" } else { "no hugepages" }
        );
        let _ = writeln!(
            text,
            "{:<15} {:>22} {:>22} {:>20} {:>10}",
            "", "ringspan", "testpmd net_vhost", "ratio", "ceiling"
        );
        for row in &self.rows {
            let ratio = match row.ratio {
                Some(s) => format!("{:.2} ({:.2}-{:.2})", s.median, s.least, s.most),
                None => "-".into(),
            };
            let waiting = row.waiting.map(|share| share.map_or("-".into(), |s| format!("{:.0} %", 100.0 * s.median)));
            let _ = writeln!(
                text,
                "{:<15} {:>22} {:>22} {:>20} {:>8.1} {:>15}",
                row.direction.title(),
                million(row.ringspan),
                million(row.testpmd),
                ratio,
                row.ceiling_pps / 1e6,
                waiting.join(", ")
            );
        }
        if self.load_average > 0.5 {
            let _ = writeln!(
                text,
                "The machine was busy before (load average {}): numbers and ratios swing.",
                self.load_average
            );
        }
        for figure in &self.figures {
            let value = match (figure.value, &figure.note) {
                (Some(value), _) if value < figure.limit => format!("{value:.1} {}", figure.unit),
                (Some(value), _) => format!("{value:.1} {} (should be below {})", figure.unit, figure.limit),
                (None, Some(note)) => format!("not measured: {note}"),
                (None, None) => "not measured".into(),
            };
            let _ = writeln!(text, "{:<46} {value}", figure.name);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_taken_round_by_round() {
        let sample = |peer, round, pps| Sample {
            peer,
            direction: Direction::GuestToNull,
            round,
            measured: Measured { pps, waiting: 0.5 },
        };
        let samples = [
            sample(Peer::Ringspan, 0, 2.0),
            sample(Peer::Testpmd, 0, 1.0),
            sample(Peer::Ringspan, 1, 30.0),
            sample(Peer::Testpmd, 1, 10.0),
        ];
        let ratio = row(Direction::GuestToNull, 0.0, &samples).ratio.unwrap();
        assert_eq!((ratio.least, ratio.median, ratio.most), (2.0, 2.5, 3.0));
    }
}
