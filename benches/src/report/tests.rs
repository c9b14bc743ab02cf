//! Summaries: ratios, limits, and what is said of what failed.

use super::*;
use crate::page;

#[test]
fn the_ratio_is_taken_round_by_round() {
    let cell = Cell::select(&["tx/split/64"]).unwrap()[0];
    let sample = |peer, round, apart, sent_pps| Sample {
        cell: cell.name(),
        peer,
        round,
        apart,
        away: 0.0,
        measured: Some(Measured { sent_pps, waiting: 0.5, ..Measured::default() }),
        features: None,
        zero_copied: None,
        again: None,
        fault: None,
    };
    let mut samples = vec![
        sample(Peer::Ringspan, 0, 30.0, 2.0),
        sample(Peer::Testpmd, 0, 30.0, 1.0),
        sample(Peer::Ringspan, 1, 160.0, 30.0),
        sample(Peer::Testpmd, 1, 150.0, 10.0),
        // The cores moved in between.
        sample(Peer::Ringspan, 2, 30.0, 50.0),
        sample(Peer::Testpmd, 2, 160.0, 10.0),
    ];
    let ratio = |samples: &[Sample]| row(cell, None, samples).peer(Peer::Testpmd).unwrap().ratio;
    assert_eq!(ratio(&samples), Some(Spread { least: 2.0, median: 2.5, most: 3.0 }));
    assert!(row(cell, None, &samples).peer(Peer::Ovs).is_none());
    // One of the cores did not run meanwhile.
    samples[3].away = 0.4;
    assert_eq!(ratio(&samples), Some(Spread { least: 2.0, median: 2.0, most: 2.0 }));
    samples[1].away = 0.4;
    assert_eq!(ratio(&samples), Some(Spread { least: 2.0, median: 2.5, most: 3.0 }), "it is all there is");
    // If they always did, that is all there is.
    samples.drain(..4);
    assert_eq!(ratio(&samples), Some(Spread { least: 5.0, median: 5.0, most: 5.0 }));
}

#[test]
fn figures_have_their_limits_above_or_below() {
    let figure = |value, at_least| Figure {
        name: String::new(),
        value,
        spread: None,
        limit: 90.0,
        at_least,
        unit: "%",
        note: None,
    };
    assert!(figure(Some(90.0), true).keeps() && figure(Some(89.0), false).keeps());
    assert!(!figure(Some(89.0), true).keeps() && !figure(Some(90.0), false).keeps());
    assert!(!figure(None, true).keeps() && !figure(None, false).keeps());
}

#[test]
fn a_generator_that_could_be_the_bottleneck_is_a_miss() {
    assert_eq!(times(1.996), "2.00 times the fastest back-end, MISS: wanted >= 2");
    assert_eq!(times(2.4), "2.40 times the fastest back-end");
}

#[test]
fn one_direction_does_not_make_up_for_the_other() {
    let cell = Cell::select(&["both/split/64"]).unwrap()[0];
    let both = |sent_pps, received_pps| Measured { sent_pps, received_pps, ..Measured::default() };
    assert_eq!(ratio(&both(12.0, 2.0), &both(5.0, 5.0), &cell), 0.4);
    assert_eq!(ratio(&both(10.0, 15.0), &both(5.0, 5.0), &cell), 2.0);
    assert_eq!(ratio(&both(10.0, 0.0), &both(5.0, 0.0), &cell), 2.0);
}

#[test]
fn what_a_reading_device_did_not_get_does_not_count() {
    let cell = Cell::select(&["tx/split/9000/read"]).unwrap()[0];
    let measured = Measured { sent_pps: 5.0, received_pps: 2.0, sent_bits: 50.0, ..Measured::default() };
    assert_eq!(packets(&measured, &cell), 2.0);
    assert_eq!(bits(&Measured { received_bits: 20.0, ..measured }, &cell), 20.0);
    assert!(cell.arrives());
}

#[test]
fn what_fails_is_named_and_the_rest_is_kept() {
    let mut faults = vec![];
    let kept = part("idle", Ok(vec![1]), &mut faults).unwrap();
    let none: Vec<u8> = part("round trips", Err(anyhow::anyhow!("no guest").context("OVS-DPDK")), &mut faults).unwrap();
    // A signal to stop is no failure of the part: it is passed on, from below whatever was waited for.
    let stopped = anyhow::Error::from(wait::Stopped).context("while waiting for a lane").context("net_vhost");
    assert!(part::<Vec<u8>>("after silence", Err(stopped), &mut faults).is_err());
    assert_eq!((kept, none), (vec![1], vec![]));
    assert_eq!(faults, ["round trips: OVS-DPDK: no guest"]);
    let load = Load { burst: 64, warm_up: 0.0, measured: 0.1 };
    let report = Report { faults, ..Report::empty(Machine::look(), load, 1) };
    assert!(report.table().contains("FAILED: round trips: OVS-DPDK: no guest"));
    assert!(page::html(&report).contains("round trips: OVS-DPDK: no guest"));
    assert!(serde_json::to_string(&report).unwrap().contains("no guest"));
}

#[test]
fn processor_time_is_shown_with_its_extremes() {
    let percent = Spread { median: 12.0, least: 11.5, most: 90.0 };
    let idle = vec![Idle { peer: Peer::Ringspan, pps: 1e3, percent }];
    let load = Load { burst: 64, warm_up: 0.0, measured: 0.1 };
    let report = Report { idle, ..Report::empty(Machine::look(), load, 1) };
    assert!(report.table().contains("1k pps:    12.0 (11.5-90.0) % of a core"), "{}", report.table());
    assert!(page::html(&report).contains("12.0 <small>(11.5-90.0)</small>"));
}

/// Plots of each kind, and nothing that a browser would have to fetch.
#[test]
fn the_page_has_its_plots_and_needs_nothing_else() {
    let cells = Cell::select(&["tx/split/64", "tx/split/1518"]).unwrap();
    let sample = |cell: &Cell, peer, pps| Sample {
        cell: cell.name(),
        peer,
        round: 0,
        apart: 30.0,
        away: 0.0,
        measured: Some(Measured { sent_pps: pps, sent_bits: 512.0 * pps, waiting: 0.5, ..Measured::default() }),
        features: None,
        zero_copied: None,
        again: None,
        fault: None,
    };
    let rows = (cells.iter())
        .map(|cell| row(*cell, None, &[sample(cell, Peer::Ringspan, 4e6), sample(cell, Peer::Testpmd, 2e6)]))
        .collect();
    let round_trips = [Peer::Ringspan, Peer::Testpmd].map(|peer| RoundTrip::at_half_load(peer, false, None)).into();
    let load = Load { burst: 64, warm_up: 0.0, measured: 0.1 };
    let html = page::html(&Report { rows, round_trips, ..Report::empty(Machine::look(), load, 1) });
    for (heading, mark) in [
        ("Throughput over size", "tx/split/1518 net_vhost: 2.00"),
        ("Ratio in every cell", "tx/split/64 against net_vhost: 2.00"),
        ("Round trips", "p99.9"),
    ] {
        let part = html.split("<h2>").find(|part| part.starts_with(heading)).expect(heading);
        assert!(part.contains("<svg viewBox") && part.contains(mark), "{heading}: {part}");
    }
    for outside in ["<script", "<link", "<img", "<iframe", "src=", "href=", "url(", "@import", "http:", "https:"] {
        assert!(!html.contains(outside), "the page asks for {outside}");
    }
}
