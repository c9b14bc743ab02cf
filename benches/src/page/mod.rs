//! The report as one self-contained HTML page: plots as inline SVG, no script, nothing from a network.

mod plot;

use std::fmt::Write;

use crate::cell::Direction;
use crate::driver::stamp::Frames;
use crate::peer::Peer;
use crate::report::{Report, Row, Spread};
use crate::wake::{Bare, Wake};
use plot::{Dots, Groups, Lines, escape};

const STYLE: &str = include_str!("style.css");
const DIRECTIONS: [Direction; 6] =
    [Direction::Tx, Direction::Drain, Direction::Rx, Direction::Both, Direction::Loop, Direction::Guests];

/// The page's text.
pub fn html(report: &Report) -> String {
    let mut page = String::from("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width\"><title>ringspan, measured</title><style>");
    let _ = write!(page, "{STYLE}</style></head><body><main><h1>ringspan, measured side by side</h1>");
    let _ = write!(page, "<p class=\"machine\">{}</p>", escape(&report.machine.to_string()));
    if report.machine.load_average > 0.5 {
        let average = report.machine.load_average;
        let _ = write!(
            page,
            "<p class=\"warn\">The machine was busy before (load average {average}): numbers and ratios swing.</p>"
        );
    }
    if let Some(sentence) = report.disturbed() {
        let _ = write!(page, "<p class=\"warn\">{}</p>", escape(&sentence));
    }
    for fault in &report.faults {
        let _ = write!(page, "<p class=\"warn\">Failed: {}</p>", escape(fault));
    }
    targets(report, &mut page);
    throughput(report, &mut page);
    ratios(report, &mut page);
    latency(report, &mut page);
    low(report, &mut page);
    cells(report, &mut page);
    generator(report, &mut page);
    page.push_str("</main></body></html>\n");
    page
}

/// A class for colours, the same everywhere.
fn class(peer: Peer) -> &'static str {
    match peer {
        Peer::Ringspan => "ringspan",
        Peer::Testpmd => "testpmd",
        Peer::Ovs => "ovs",
        Peer::Plain => "plain",
    }
}

fn legend(page: &mut String, peers: impl IntoIterator<Item = (&'static str, String)>) {
    page.push_str("<p class=\"legend\">");
    for (class, name) in peers {
        let _ = write!(
            page,
            "<span><svg width=\"14\" height=\"14\"><circle class=\"{class}\" cx=\"7\" cy=\"7\" r=\"5\"/></svg>{}</span>",
            escape(&name)
        );
    }
    page.push_str("</p>");
}

fn measured(report: &Report) -> Vec<Peer> {
    Peer::ALL.into_iter().filter(|peer| report.rows.iter().any(|row| row.peer(*peer).is_some())).collect()
}

fn targets(report: &Report, page: &mut String) {
    if report.verdicts.iter().all(|verdict| verdict.reached.is_none()) {
        return;
    }
    page.push_str("<h2>Targets</h2><p>The worst cell of each kind: ringspan's figure divided by the other's, median (least&ndash;most) of the alternations. What was not measured is not listed.</p>");
    page.push_str(
        "<table><tr><th>work</th><th>against</th><th>wanted</th><th>found</th><th></th><th>in cell</th></tr>",
    );
    for verdict in report.verdicts.iter() {
        let (found, class) = match (verdict.found, verdict.reached) {
            (Some(found), Some(true)) => (found.text(2), "pass"),
            (Some(found), _) => (found.text(2), "miss"),
            (None, Some(false)) => ("failed".to_string(), "miss"),
            // What was not asked for is no news.
            _ => continue,
        };
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{found}</td><td class=\"{class}\">{}</td><td>{}</td></tr>",
            escape(&verdict.work),
            verdict.against.title(),
            escape(&verdict.wanted()),
            verdict.word(),
            escape(&verdict.cell),
        );
    }
    page.push_str("</table>");
}

/// Rates over size: a plot for each direction and ring.
fn throughput(report: &Report, page: &mut String) {
    let sizes = [64, 256, 1518, 9000].map(Frames::Fixed).into_iter().chain([Frames::Imix]).collect::<Vec<_>>();
    let plain = |direction, packed| {
        let of = move |row: &&Row| row.cell.is_plain() && row.cell.direction == direction && row.cell.packed == packed;
        report.rows.iter().filter(of).collect::<Vec<_>>()
    };
    if DIRECTIONS.iter().all(|direction| plain(*direction, false).is_empty() && plain(*direction, true).is_empty()) {
        return;
    }
    page.push_str("<h2>Throughput over size</h2><p>Packets a second, medians, with the spread as a line, on a logarithmic scale; bare memory copies as a dash.</p>");
    let copies = ("copies", "bare copies".to_string());
    legend(page, measured(report).into_iter().map(|peer| (class(peer), peer.title().to_string())).chain([copies]));
    page.push_str("<div class=\"grid pairs\">");
    for direction in DIRECTIONS {
        for packed in [false, true] {
            let rows = plain(direction, packed);
            if rows.is_empty() {
                continue;
            }
            let shown: Vec<Frames> =
                sizes.iter().copied().filter(|size| rows.iter().any(|row| row.cell.frames == *size)).collect();
            let mut groups = Groups::new(shown.iter().map(|size| size.to_string()).collect(), "Mpps");
            for (index, size) in shown.iter().enumerate() {
                let Some(row) = rows.iter().find(|row| row.cell.frames == *size) else { continue };
                for of in &row.of {
                    let Spread { median, least, most } = of.pps;
                    let pps = Spread { median: median / 1e6, least: least / 1e6, most: most / 1e6 };
                    let cycles = of.cycles.map_or(String::new(), |cycles| format!(", {cycles:.0} cycles a packet"));
                    let (text, bits) = (pps.text(2), of.bits / 1e9);
                    let title = format!("{} {}: {text} Mpps, {bits:.1} Gbit/s{cycles}", row.name, of.peer.title());
                    groups.add(index, class(of.peer), pps, title);
                }
                if let Some(limit) = row.limit {
                    groups.mark(index, limit / 1e6);
                }
            }
            let ring = if packed { "packed" } else { "split" };
            let _ = write!(
                page,
                "<figure><figcaption>{}, {ring} ring</figcaption>{}</figure>",
                direction.title(),
                groups.svg()
            );
        }
    }
    page.push_str("</div>");
}

/// The ratio in every cell.
fn ratios(report: &Report, page: &mut String) {
    let others: Vec<Peer> =
        measured(report).into_iter().filter(|peer| !matches!(peer, Peer::Ringspan | Peer::Plain)).collect();
    let rows: Vec<_> = report.rows.iter().filter(|row| row.of.iter().any(|of| of.ratio.is_some())).collect();
    if rows.is_empty() {
        return;
    }
    page.push_str("<h2>Ratio in every cell</h2><p>How many times the other's rate ringspan does, round by round: median and spread. Left of 1 the other is faster.</p>");
    legend(page, others.iter().map(|peer| (class(*peer), format!("against {}", peer.title()))));
    let mut dots = Dots::new(rows.iter().map(|row| row.name.clone()).collect());
    for (index, row) in rows.iter().enumerate() {
        for of in row.of.iter().filter(|of| others.contains(&of.peer)) {
            if let Some(ratio) = of.ratio {
                dots.add(
                    index,
                    class(of.peer),
                    ratio,
                    &format!("{} against {}: {}, {} rounds", row.name, of.peer.title(), ratio.text(2), of.compared),
                );
            }
        }
    }
    let _ = write!(page, "<figure class=\"wide\">{}</figure>", dots.svg());
}

fn latency(report: &Report, page: &mut String) {
    if report.round_trips.is_empty() {
        return;
    }
    page.push_str("<h2>Round trips</h2><p>64-byte frames through the loop device, microseconds. The load is a share of what the slowest back-end can do, the same for all.</p>");
    let mut peers: Vec<Peer> = vec![];
    for trip in &report.round_trips {
        if !peers.contains(&trip.peer) {
            peers.push(trip.peer);
        }
    }
    legend(page, peers.iter().map(|peer| (class(*peer), peer.title().to_string())));
    page.push_str("<div class=\"grid\">");
    for packed in [false, true] {
        for percent in [10, 50, 90] {
            let of = |trip: &&crate::rates::RoundTrip| trip.packed == packed && trip.percent == percent;
            let trips: Vec<_> = report.round_trips.iter().filter(of).collect();
            let Some(first) = trips.first() else { continue };
            let mut lines = Lines::new(["p50", "p90", "p99", "p99.9"], "µs");
            for trip in &trips {
                let points = [trip.p50, trip.p90, trip.p99, trip.p999].map(|spread| spread.median);
                lines.add(class(trip.peer), points, trip.peer.title());
            }
            let (ring, rate) = (first.format(), first.pps / 1e6);
            let _ = write!(
                page,
                "<figure><figcaption>{percent} % load ({rate:.2} Mpps), {ring} ring</figcaption>{}</figure>",
                lines.svg()
            );
        }
    }
    page.push_str("</div>");
}

/// Costs at low rates, instructions, and the small figures.
fn low(report: &Report, page: &mut String) {
    if !report.idle.is_empty() {
        let mut rates: Vec<f64> = report.idle.iter().map(|idle| idle.pps).collect();
        rates.dedup();
        rates.sort_by(f64::total_cmp);
        rates.dedup();
        page.push_str("<h2>Idle and nearly idle</h2><p>Processor time of the whole process, in percent of a core, with one guest that sends so many packets a second: median, least and most of three alternations. 16 guests that send nothing are among the small figures.</p><table><tr><th></th>");
        rates.iter().for_each(|rate| {
            let _ = write!(page, "<th>{}</th>", plot::si(*rate));
        });
        page.push_str("</tr>");
        for peer in Peer::ALL.iter().filter(|peer| report.idle.iter().any(|idle| idle.peer == **peer)) {
            let _ = write!(page, "<tr><td>{}</td>", peer.title());
            for rate in &rates {
                let found = report.idle.iter().find(|idle| idle.peer == *peer && idle.pps == *rate);
                let _ = match found.map(|idle| idle.percent) {
                    Some(Spread { median, least, most }) => {
                        write!(page, "<td>{median:.1} <small>({least:.1}-{most:.1})</small></td>")
                    }
                    None => write!(page, "<td></td>"),
                };
            }
            page.push_str("</tr>");
        }
        page.push_str("</table>");
    }
    if !report.wakes.is_empty() {
        page.push_str("<h2>After silence</h2><p>Microseconds from a kick, or from a frame at the device, with nothing to do for 20 ms before: median and 99 in 100. Who polls all the time has nothing to wake.</p><table><tr><th></th>");
        let mut kinds = vec![];
        let mut peers = vec![];
        for wake in &report.wakes {
            if !kinds.contains(&wake.kind) {
                kinds.push(wake.kind);
            }
            if !peers.contains(&wake.peer) {
                peers.push(wake.peer);
            }
        }
        peers.iter().for_each(|peer| {
            let _ = write!(page, "<th>{}</th>", peer.title());
        });
        page.push_str("</tr>");
        for kind in kinds {
            let _ = write!(page, "<tr><td>{}</td>", kind.title());
            for peer in &peers {
                let found = report.wakes.iter().find(|wake| wake.peer == *peer && wake.kind == kind);
                let _ = match found {
                    Some(Wake { p50, p99, lost: 0, .. }) => write!(page, "<td>{p50:.1} <small>({p99:.1})</small></td>"),
                    Some(Wake { p50, p99, lost, .. }) => {
                        write!(page, "<td>{p50:.1} <small>({p99:.1}, {lost} did not come)</small></td>")
                    }
                    None => write!(page, "<td></td>"),
                };
            }
            page.push_str("</tr>");
        }
        page.push_str("</table>");
        if let Some(Bare { p50, p99 }) = report.bare_wake {
            let _ = write!(
                page,
                "<p>A bare thread that sleeps on the back-ends' core runs {p50:.1} <small>({p99:.1})</small> us after its eventfd was signalled: what the machine itself takes.</p>"
            );
        }
    }
    if !report.iperf.is_empty() {
        page.push_str("<h2>iperf3 of a Linux guest</h2><p>TCP, Mbit/s, a guest in QEMU without offloads, the same features for all.</p><table><tr><th></th><th>to the guest</th><th>from the guest</th></tr>");
        for found in &report.iperf {
            let [to, from] =
                found.bits.map(|s| Spread { median: s.median / 1e6, least: s.least / 1e6, most: s.most / 1e6 }.text(0));
            let _ = write!(page, "<tr><td>{}</td><td>{to}</td><td>{from}</td></tr>", found.peer.title());
        }
        page.push_str("</table>");
        if let Some(first) = report.iperf.first() {
            let _ = write!(
                page,
                "<details><summary>ethtool -k of the guest's NIC</summary><pre>{}</pre></details>",
                escape(&first.ethtool)
            );
        }
    }
    if !report.instructions.is_empty() {
        page.push_str("<h2>Instructions a packet</h2><p>Of the worker, counted by callgrind.</p><table><tr><th>cell</th><th>back-end</th><th>instructions</th></tr>");
        for found in &report.instructions {
            let text = match &found.per_packet {
                Ok(count) => format!("{count:.0}"),
                Err(fault) => escape(fault),
            };
            let _ =
                write!(page, "<tr><td>{}</td><td>{}</td><td>{text}</td></tr>", escape(&found.cell), found.peer.title());
        }
        page.push_str("</table>");
    }
    if !report.figures.is_empty() {
        page.push_str("<h2>Small figures</h2><table><tr><th></th><th>found</th><th>wanted</th></tr>");
        for figure in &report.figures {
            let (value, class) = (figure.text(), if figure.keeps() { "pass" } else { "miss" });
            let _ = write!(
                page,
                "<tr><td>{}</td><td class=\"{class}\">{value}</td><td>{}</td></tr>",
                escape(&figure.name),
                escape(&figure.wanted())
            );
        }
        page.push_str("</table>");
    }
}

fn cells(report: &Report, page: &mut String) {
    if report.rows.is_empty() {
        return;
    }
    let peers = measured(report);
    let _ = write!(
        page,
        "<h2>All cells</h2><p>Mpps, median (least&ndash;most) of {} alternations; Gbit/s, cycles a packet where the back-end was saturated, share of time in which the generator waited.</p><div class=\"scroll\"><table class=\"small\"><tr><th>cell</th>",
        report.rounds
    );
    for peer in &peers {
        let _ = write!(
            page,
            "<th class=\"{}\">{}</th><th>Gbit/s</th><th>cycles</th><th>wait</th>",
            class(*peer),
            peer.title()
        );
    }
    page.push_str("<th>copies</th></tr>");
    for row in &report.rows {
        let _ = write!(page, "<tr><td>{}</td>", escape(&row.name));
        for peer in &peers {
            let fault = row.faults.iter().find(|(of, _)| of == peer);
            match (row.peer(*peer), fault) {
                (Some(of), _) => {
                    let lost = of
                        .lost
                        .filter(|lost| *lost >= 0.0001)
                        .map_or(String::new(), |lost| format!("lost {:.2} %", 100.0 * lost));
                    let ways = of.ways.map_or(String::new(), |ways| {
                        let [sent, received] = ways.map(|way| way.median / 1e6);
                        format!("{sent:.2} from, {received:.2} to the guest")
                    });
                    let copied = row.zero_copied.filter(|share| *share > 0.0 && *peer == Peer::Ringspan);
                    let copied = copied.map_or(String::new(), |share| format!("{:.0} % not copied", 100.0 * share));
                    let more: String = ([ways, lost, copied].iter())
                        .filter(|text| !text.is_empty())
                        .map(|text| format!("<small class=\"more\">{text}</small>"))
                        .collect();
                    let _ = write!(
                        page,
                        "<td>{:.2} <small>({:.2}&ndash;{:.2})</small>{more}</td><td>{:.1}</td><td>{}</td><td>{:.0} %</td>",
                        of.pps.median / 1e6,
                        of.pps.least / 1e6,
                        of.pps.most / 1e6,
                        of.bits / 1e9,
                        of.cycles.map_or(String::new(), |cycles| format!("{cycles:.0}")),
                        100.0 * of.waiting
                    );
                }
                (None, Some((_, fault))) => {
                    let _ = write!(
                        page,
                        "<td colspan=\"4\" class=\"miss\"><small>{}</small></td>",
                        escape(fault.lines().next().unwrap_or_default())
                    );
                }
                (None, None) => page.push_str("<td colspan=\"4\"></td>"),
            }
        }
        let _ =
            write!(page, "<td>{}</td></tr>", row.limit.map_or(String::new(), |limit| format!("{:.1}", limit / 1e6)));
    }
    page.push_str("</table></div>");
}

fn generator(report: &Report, page: &mut String) {
    if report.generator.is_empty() {
        return;
    }
    page.push_str("<h2>The generator</h2><p>Its own rate, 64-byte frames, median of three: what it could show of a faster back-end.</p><table><tr><th>ring</th><th>the other side</th><th>Mpps</th><th></th></tr>");
    for own in &report.generator {
        let (rate, times) = (own.rate() / 1e6, report.times(own).unwrap_or_default());
        let ring = if own.packed { "packed" } else { "split" };
        let _ = write!(
            page,
            "<tr><td>{ring}</td><td>{}</td><td>{rate:.1}</td><td>{}</td></tr>",
            escape(&own.work),
            escape(&times)
        );
    }
    page.push_str("</table>");
}
