//! What is aimed for, and whether it was reached: ratios within one run.

use serde::Serialize;

use crate::cell::Cell;
use crate::iperf::Iperf;
use crate::peer::Peer;
use crate::rates::RoundTrip;
use crate::report::{Row, Spread};

/// A kind of work, the cells that it stands for, and how many times the rate of net_vhost and of OVS-DPDK is aimed for. A cell belongs to the
/// first of them that has it: whatever else is switched in it, such as the length of the ring, it is that work.
const TARGETS: &[(&str, &[&str], f64, f64)] = &[
    ("64 B guest to NIC, split", &["tx/split/64/**"], 1.5, 2.2),
    ("64 B guest to NIC, packed", &["tx/packed/64/**"], 2.0, 2.5),
    ("64 B full ring to NIC, split", &["drain/split/64"], 1.5, 2.2),
    ("64 B full ring to NIC, packed", &["drain/packed/64"], 2.0, 2.5),
    ("64 B NIC to guest", &["rx/*/64/**"], 1.5, 2.0),
    ("both directions at once", &["both/**"], 1.5, 2.0),
    ("IMIX, mergeable on", &["*/*/imix", "*/*/imix/indirect", "*/*/imix/ring256", "*/*/imix/read"], 1.5, 1.8),
    ("9000 B guest to NIC, zero copy, device reads", &["tx/*/9000/read"], 1.4, 1.4),
    ("1518 B guest to NIC", &["tx/*/1518/**"], 1.1, 1.1),
    ("any other cell", &["*/**"], 1.0, 1.0),
];

/// A round trip should take at most this share of the other's.
const ROUND_TRIP: f64 = 0.9;

/// A target and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// Of what.
    pub work: String,
    /// Compared with whom.
    pub against: Peer,
    /// The ratio that is wanted.
    pub ratio: f64,
    /// Whether at most that is wanted, instead of at least.
    pub at_most: bool,
    /// The ratio in the worst of its cells; absent where none was measured, or ringspan failed.
    pub found: Option<Spread>,
    /// That cell, or those in which ringspan failed, with the reason.
    pub cell: String,
    /// Whether the median keeps the target; never where ringspan failed in one of the cells.
    pub reached: Option<bool>,
}

impl Verdict {
    fn new(work: &str, against: Peer, ratio: f64, at_most: bool, worst: Option<(Spread, String)>) -> Self {
        let reached = worst.as_ref().map(|(found, _)| (found.median <= ratio) == at_most || found.median == ratio);
        let (found, cell) = worst.map_or((None, String::new()), |(found, cell)| (Some(found), cell));
        Self { work: work.into(), against, ratio, at_most, found, cell, reached }
    }

    /// Not reached: ringspan did not do these cells at all.
    fn failed(work: &str, against: Peer, ratio: f64, at_most: bool, cells: &[String]) -> Self {
        let (found, reached, cell) = (None, Some(false), cells.join("; "));
        Self { work: work.into(), against, ratio, at_most, found, cell, reached }
    }

    /// The wanted ratio in words.
    pub fn wanted(&self) -> String {
        format!("{} {}", if self.at_most { "<=" } else { ">=" }, self.ratio)
    }

    /// Pass or miss.
    pub fn word(&self) -> &'static str {
        match self.reached {
            Some(true) => "pass",
            Some(false) => "MISS",
            None => "-",
        }
    }
}

/// What ringspan failed at in a cell, where another back-end was measured or should have been.
fn failure(row: &Row) -> Option<String> {
    let faults = row.faults.iter().find(|(peer, _)| *peer == Peer::Ringspan);
    let reason = faults.map(|(_, fault)| fault.lines().next().unwrap_or_default());
    // All zeros, or nothing to divide: as bad as a fault.
    let still = row.peer(Peer::Ringspan).is_some_and(|of| of.pps.median <= 0.0).then_some("nothing moved");
    // A copy is no zero copy, however fast.
    let copied = row.cell.read && row.cell.frames.most() > 4096 && row.zero_copied.is_some_and(|share| share < 0.9);
    let copied = copied.then_some("frames were copied");
    reason.or(still).or(copied).map(|reason| format!("{}: {reason}", row.name))
}

/// The place in [`TARGETS`] of a cell's kind of work.
fn target_of(name: &str) -> Option<usize> {
    TARGETS.iter().position(|(_, patterns, ..)| patterns.iter().any(|pattern| Cell::matches(pattern, name)))
}

/// What was to be measured beside the cells: a part that is missing as a whole leaves nothing else that tells of it.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Of whom.
    pub peers: &'a [Peer],
    /// Round trips, over packed rings or not.
    pub round_trips: &'a [bool],
    /// iperf3 of Linux guests.
    pub iperf: bool,
}

/// Compares what was measured with what is aimed for. Where ringspan was to be measured and has no figure, the target is missed.
pub fn verdicts(rows: &[Row], trips: &[RoundTrip], iperf: &[Iperf], wanted: Wanted<'_>) -> Vec<Verdict> {
    let against = |peer: &Peer| wanted.peers.contains(peer);
    let ours = |peer: &Peer| against(&Peer::Ringspan) && against(peer);
    let mut verdicts = vec![];
    for (index, (work, _, testpmd, ovs)) in TARGETS.iter().enumerate() {
        for (peer, ratio) in [(Peer::Testpmd, *testpmd), (Peer::Ovs, *ovs)] {
            let own = || rows.iter().filter(|row| target_of(&row.name) == Some(index));
            let found = own().filter_map(|row| {
                let of = row.peer(peer)?;
                let rounds = of.rounds;
                let few =
                    if of.compared < rounds { format!(", {} of {rounds} rounds", of.compared) } else { String::new() };
                Some((of.ratio?, format!("{}{few}", row.name)))
            });
            let worst = found.min_by(|a, b| a.0.median.total_cmp(&b.0.median));
            let failed: Vec<String> = own().filter_map(failure).collect();
            verdicts.push(match failed.is_empty() || !against(&peer) {
                true => Verdict::new(work, peer, ratio, false, worst),
                false => Verdict::failed(work, peer, ratio, false, &failed),
            });
        }
    }
    for (what, pick) in [("round trip p50 at 50 % load", 0), ("round trip p90 at 50 % load", 1)] {
        for peer in [Peer::Testpmd, Peer::Ovs] {
            let of = |peer: Peer| trips.iter().filter(move |trip| trip.peer == peer && trip.percent == 50);
            let found = of(peer).filter_map(|trip| Some((trip.ratios[pick]?, trip.format().to_string())));
            let worst = found.max_by(|a, b| a.0.median.total_cmp(&b.0.median));
            // The whole of a format may have failed, or ringspan alone.
            let failed = wanted.round_trips.iter().filter(|packed| {
                let own = of(Peer::Ringspan).any(|trip| trip.packed == **packed);
                let none = of(peer).any(|trip| trip.packed == **packed && trip.ratios[pick].is_none());
                ours(&peer) && (!own || none)
            });
            let name = |packed: &bool| if *packed { "packed" } else { "split" };
            let failed: Vec<String> = failed.map(|packed| format!("{}: ringspan has none", name(packed))).collect();
            verdicts.push(match failed.is_empty() {
                true => Verdict::new(what, peer, ROUND_TRIP, true, worst),
                false => Verdict::failed(what, peer, ROUND_TRIP, true, &failed),
            });
        }
    }
    for peer in [Peer::Testpmd, Peer::Ovs] {
        let work = "iperf3 TCP of a Linux guest";
        let own = || iperf.iter().filter(|iperf| iperf.peer == peer);
        let none = !iperf.iter().any(|iperf| iperf.peer == Peer::Ringspan)
            || own().any(|iperf| iperf.ratios.iter().any(Option::is_none));
        if wanted.iperf && ours(&peer) && none {
            verdicts.push(Verdict::failed(work, peer, 1.0, false, &["ringspan has none".into()]));
            continue;
        }
        let found = own().flat_map(|iperf| iperf.ratios.into_iter().zip(["to the guest", "from the guest"]));
        let found = found.filter_map(|(ratio, way)| Some((ratio?, way.to_string())));
        let worst = found.min_by(|a, b| a.0.median.total_cmp(&b.0.median));
        verdicts.push(Verdict::new(work, peer, 1.0, false, worst));
    }
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Direction;
    use crate::driver::stamp::Frames;
    use crate::load::Measured;
    use crate::report::row;
    use crate::run::Sample;

    /// Cells of ringspan and net_vhost, and nothing else.
    const CELLS: Wanted<'static> = Wanted { peers: &[Peer::Ringspan, Peer::Testpmd], round_trips: &[], iperf: false };

    #[test]
    fn at_most_and_at_least_are_told_apart() {
        let spread = |median| Some((Spread { median, least: median, most: median }, String::new()));
        let reached = |ratio, at_most, median| Verdict::new("", Peer::Ovs, ratio, at_most, spread(median)).reached;
        assert_eq!([reached(1.5, false, 1.6), reached(1.5, false, 1.5)], [Some(true); 2]);
        assert_eq!([reached(0.9, true, 0.8), reached(0.9, true, 0.9)], [Some(true); 2]);
        assert_eq!([reached(1.5, false, 1.4), reached(0.9, true, 1.0)], [Some(false); 2]);
    }

    #[test]
    fn a_switch_does_not_take_a_cell_out_of_its_kind_of_work() {
        let cells = Cell::all();
        // By what the cell is, where the table goes by its name.
        let kind = |cell: &Cell| match (cell.direction, cell.frames) {
            (Direction::Both, _) => "both directions at once",
            (Direction::Tx, Frames::Fixed(64)) if cell.packed => "64 B guest to NIC, packed",
            (Direction::Tx, Frames::Fixed(64)) => "64 B guest to NIC, split",
            (Direction::Drain, Frames::Fixed(64)) if cell.packed => "64 B full ring to NIC, packed",
            (Direction::Drain, Frames::Fixed(64)) => "64 B full ring to NIC, split",
            (Direction::Rx, Frames::Fixed(64)) => "64 B NIC to guest",
            (_, Frames::Imix) if cell.mergeable => "IMIX, mergeable on",
            (Direction::Tx, Frames::Fixed(9000)) if cell.read => "9000 B guest to NIC, zero copy, device reads",
            (Direction::Tx, Frames::Fixed(1518)) => "1518 B guest to NIC",
            _ => "any other cell",
        };
        for cell in &cells {
            let target = target_of(&cell.name()).map(|index| TARGETS[index].0);
            assert_eq!(target, Some(kind(cell)), "{}", cell.name());
        }
        for (work, ..) in TARGETS {
            assert!(cells.iter().any(|cell| kind(cell) == *work), "no cell is of the kind {work}");
        }
        let switched = cells.iter().filter(|cell| cell.name().starts_with("tx/packed/64/"));
        assert_eq!(switched.count(), 6, "indirect, nomrg, ring256, 4q, inorder and offload");
    }

    #[test]
    fn zero_copy_that_copies_is_a_miss() {
        let cell = Cell::select(&["tx/split/9000/read"]).unwrap()[0];
        let sample = |peer, pps, zero_copied| Sample {
            cell: cell.name(),
            peer,
            round: 0,
            apart: 30.0,
            away: 0.0,
            measured: Some(Measured { received_pps: pps, ..Measured::default() }),
            features: None,
            zero_copied,
            again: None,
            fault: None,
        };
        let reached = |share| {
            let samples = [sample(Peer::Ringspan, 9.0, Some(share)), sample(Peer::Testpmd, 3.0, None)];
            let verdicts = verdicts(&[row(cell, None, &samples)], &[], &[], CELLS);
            verdicts.iter().find(|v| v.work.starts_with("9000") && v.against == Peer::Testpmd).unwrap().reached
        };
        assert_eq!([reached(1.0), reached(0.0)], [Some(true), Some(false)]);
    }

    #[test]
    fn a_cell_in_which_ringspan_fails_is_a_miss_with_its_name() {
        let cells = Cell::select(&["tx/split/64", "both/packed/9000"]).unwrap();
        let sample = |cell: &Cell, peer, pps: Option<f64>| Sample {
            cell: cell.name(),
            peer,
            round: 0,
            apart: 30.0,
            away: 0.0,
            measured: pps.map(|pps| Measured { sent_pps: pps, received_pps: pps, ..Measured::default() }),
            features: None,
            zero_copied: None,
            again: None,
            fault: pps.is_none().then(|| "the lane died\nmore".to_string()),
        };
        let rows: Vec<Row> = (cells.iter())
            .map(|cell| {
                let ours = (cell.direction != Direction::Both).then_some(9.0);
                row(*cell, None, &[sample(cell, Peer::Ringspan, ours), sample(cell, Peer::Testpmd, Some(3.0))])
            })
            .collect();
        let verdicts = verdicts(&rows, &[], &[], CELLS);
        let of = |work: &str, peer| verdicts.iter().find(|v| v.work == work && v.against == peer).unwrap();
        let both = of("both directions at once", Peer::Testpmd);
        assert_eq!((both.reached, both.cell.as_str()), (Some(false), "both/packed/9000: the lane died"));
        assert_eq!(of("64 B guest to NIC, split", Peer::Testpmd).reached, Some(true));
        // Not asked for, and nothing to compare.
        assert_eq!(of("both directions at once", Peer::Ovs).reached, None);
        assert_eq!(of("round trip p50 at 50 % load", Peer::Testpmd).reached, None);
        assert_eq!(of("iperf3 TCP of a Linux guest", Peer::Testpmd).reached, None);
    }

    #[test]
    fn a_part_that_fails_as_a_whole_is_a_miss_and_one_that_another_fails_at_is_not() {
        let of = |median: f64| Spread { median, least: median, most: median };
        let trip = RoundTrip::at_half_load;
        let bits = [Iperf {
            peer: Peer::Ringspan,
            bits: [of(1e9); 2],
            ratios: [None; 2],
            features: String::new(),
            ethtool: String::new(),
            samples: vec![],
        }];
        let wanted = Wanted { round_trips: &[false, true], iperf: true, ..CELLS };
        let judged = |trips: &[RoundTrip], iperf: &[Iperf], work: &str, peer| {
            let verdicts = verdicts(&[], trips, iperf, wanted);
            let verdict = verdicts.iter().find(|v| v.work == work && v.against == peer).unwrap();
            (verdict.reached, verdict.cell.clone())
        };
        let (p50, p90, tcp) =
            ("round trip p50 at 50 % load", "round trip p90 at 50 % load", "iperf3 TCP of a Linux guest");
        let both = "split: ringspan has none; packed: ringspan has none";
        assert_eq!(judged(&[], &[], p90, Peer::Testpmd), (Some(false), both.into()));
        assert_eq!(judged(&[], &[], tcp, Peer::Testpmd), (Some(false), "ringspan has none".into()));
        let split = [trip(Peer::Ringspan, false, None), trip(Peer::Testpmd, false, Some(of(0.5)))];
        assert_eq!(judged(&split, &[], p50, Peer::Testpmd), (Some(false), "packed: ringspan has none".into()));
        // The other has none: there is nothing to compare with. Nor is there where it was not asked for.
        let alone = [false, true].map(|packed| trip(Peer::Ringspan, packed, None));
        assert_eq!(judged(&alone, &bits, p50, Peer::Testpmd).0, None);
        assert_eq!(judged(&alone, &bits, tcp, Peer::Testpmd).0, None);
        assert_eq!([p50, tcp].map(|work| judged(&[], &[], work, Peer::Ovs).0), [None; 2]);
    }
}
