//! `ringspan flow list` and `ringspan flow stats`: what the daemon's mirror knows.

use std::io::Write;

use serde_json::{Value, json};

use super::client::Client;
use super::options::{FlowChoice, FlowList, FlowSortWord, FlowTypeWord, FlowWatch, api_word};
use super::table::Table;
use super::{Failure, print_json, terminal, word};
use crate::control::RuleEntry;
use crate::ovs::mirror::{FlowState, FlowStats, FlowView, Flows};
use crate::plural::number_of;

fn filter(choice: &FlowChoice, sort: Option<FlowSortWord>, limit: usize) -> Value {
    let mut params = json!({ "limit": limit });
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            params[key] = value;
        }
    };
    put("port", choice.port.clone().map(Value::from));
    put("state", choice.state.map(|state| api_word(state).into()));
    put("reason", choice.reason.clone().map(Value::from));
    put("sort", sort.map(|sort| api_word(sort).into()));
    params
}

pub(super) fn list(mut client: Client, wish: &FlowList) -> Result<(), Failure> {
    if wish.rules {
        return rules(client, wish);
    }
    if let Some(kind) = wish.kind {
        return dump(client, wish, kind);
    }
    let params = filter(&wish.choice, wish.sort, wish.limit.unwrap_or(1000));
    let answer = client.call("flow.list", params.clone())?;
    if wish.output.json {
        return print_json(&answer);
    }
    let flows: Flows = serde_json::from_value(answer)?;
    table(&flows, wish.choice.why).print()?;
    if flows.total > flows.flows.len() {
        writeln!(std::io::stderr(), "{} more: --limit, or --type all", flows.total - flows.flows.len())?;
    }
    say_trouble(&flows, flows.flows.len(), is_filter(&params))
}

/// Whether not every flow is asked for.
fn is_filter(params: &Value) -> bool {
    ["port", "state", "reason"].iter().any(|key| params.get(key).is_some())
}

/// Says why the flows that were shown, so many, may not be those that there are. Where not all were asked for, none of them does not mean that there are none.
fn say_trouble(flows: &Flows, shown: usize, filtered: bool) -> Result<(), Failure> {
    if let Some(trouble) = &flows.trouble {
        let what = match (shown, filtered) {
            (0, false) => "no flows",
            (0, true) => "none of these flows",
            _ => "as it was",
        };
        writeln!(std::io::stderr(), "{what}: {trouble}")?;
    }
    Ok(())
}

/// Flows and rules that the daemon is asked for at once: it goes on with its own work in between.
const PAGE: usize = 4096;

/// The most that the daemon gives of flows in another order than that of their ufids, of which there are no pages.
const MOST: usize = 10_000;

/// How many flows to ask for when so many are still to be printed. Of what only this side sorts out more are asked for.
fn ask_for(left: usize, in_order: bool, kind: FlowTypeWord) -> usize {
    match (in_order, kind) {
        (true, _) => PAGE,
        (false, FlowTypeWord::NonOffloaded) => MOST,
        (false, _) => left.min(MOST),
    }
}

/// Prints flows as `dpctl/dump-flows` does: all that there are, page by page, unless a limit or another order is asked for.
fn dump(mut client: Client, wish: &FlowList, kind: FlowTypeWord) -> Result<(), Failure> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let in_order = matches!(wish.sort, None | Some(FlowSortWord::Ufid));
    let mut left = wish.limit.unwrap_or(usize::MAX);
    let (mut after, mut shown): (Option<String>, usize) = (None, 0);
    while left > 0 {
        let mut params = filter(&wish.choice, wish.sort, ask_for(left, in_order, kind));
        if kind == FlowTypeWord::Offloaded && wish.choice.state.is_none() {
            params["state"] = json!("offloaded");
        }
        if let Some(after) = &after {
            params["after"] = json!(after);
        }
        let filtered = kind != FlowTypeWord::All || is_filter(&params);
        let flows: Flows = serde_json::from_value(client.call("flow.list", params)?)?;
        for flow in flows.flows.iter().filter(|flow| is_of(flow, kind)).take(left) {
            writeln!(out, "{}", dumped(flow))?;
            (left, shown) = (left - 1, shown + 1);
        }
        let more = flows.total.saturating_sub(flows.flows.len());
        after = flows.flows.last().map(|flow| flow.ufid.clone());
        if more == 0 || after.is_none() || left == 0 {
            out.flush()?;
            return say_trouble(&flows, shown, filtered);
        }
        if !in_order && left > 0 {
            out.flush()?;
            writeln!(std::io::stderr(), "{more} more: without --sort all are printed")?;
            return say_trouble(&flows, shown, filtered);
        }
    }
    Ok(out.flush()?)
}

/// What is shown beside flows: sums, and a heading of the table.
const AROUND: usize = 3;
/// Flows that are shown where there is no terminal.
const USUAL: usize = 100;

/// Shows flows at each interval: on a terminal in place, else one picture after the other, or one object a line.
pub(super) fn watch(mut client: Client, wish: &FlowWatch) -> Result<(), Failure> {
    if !(0.1..=3600.0).contains(&wish.interval) {
        return Err(Failure::Failed(format!("--interval {}: give 0.1 to 3600 seconds", wish.interval)));
    }
    let size = if wish.output.json { None } else { terminal::size() };
    let rows = size.map(|(rows, _)| rows);
    let limit = wish.limit.unwrap_or(rows.map_or(USUAL, |rows| rows.saturating_sub(AROUND).max(1)));
    let interval_ms = (wish.interval * 1000.0).round() as u64;
    let filter = filter(&wish.choice, Some(wish.sort), limit);
    client.call("flow.watch", json!({ "filter": filter, "interval_ms": interval_ms }))?;
    client.wait_without_limit()?;
    let mut looks = 0;
    while wish.count.is_none_or(|count| looks < count) {
        let Some(mut message) = client.next_message()? else {
            return Err(Failure::Unreachable("the daemon ended".into()));
        };
        if message["method"] != "flows" {
            continue;
        }
        looks += 1;
        let mut params = message["params"].take();
        let mut out = std::io::stdout().lock();
        if wish.output.json {
            writeln!(out, "{params}")?;
            continue;
        }
        let stats: FlowStats = serde_json::from_value(params["stats"].take())?;
        let flows: Flows = serde_json::from_value(params["list"].take())?;
        let columns = terminal::size().filter(|_| rows.is_some()).map(|(_, columns)| columns);
        let mut lines = vec![summary(&stats), String::new()];
        lines.extend(table(&flows, wish.choice.why).lines());
        if rows.is_some() {
            // Home, then each line up to its end, then all that is below (ECMA-48: CUP, EL, ED).
            write!(out, "\x1b[H")?;
        }
        for line in lines {
            let shown: String = line.chars().take(columns.unwrap_or(usize::MAX)).collect();
            writeln!(out, "{shown}{}", if rows.is_some() { "\x1b[K" } else { "" })?;
        }
        if rows.is_some() {
            write!(out, "\x1b[J")?;
        } else {
            writeln!(out)?;
        }
        out.flush()?;
    }
    Ok(())
}

/// `120 flows: 100 offloaded, 20 not`
fn by_state(stats: &FlowStats) -> String {
    let states: Vec<String> = stats.by_state.iter().map(|(state, count)| format!("{count} {state}")).collect();
    let states = if states.is_empty() { "-".into() } else { states.join(", ") };
    format!("{}: {states}", number_of(stats.flows, "flow"))
}

/// `120 flows: 100 offloaded, 20 not; 1.2M packets/s, 14G bits/s; trouble`
fn summary(stats: &FlowStats) -> String {
    let (packets, bits) = (with_prefix(stats.rate.packets), with_prefix(stats.rate.bits));
    let trouble = stats.trouble.as_ref().map_or_else(String::new, |trouble| format!("; {trouble}"));
    format!("{}; {packets} packets/s, {bits} bits/s{trouble}", by_state(stats))
}

fn table(flows: &Flows, why: bool) -> Table {
    let mut headings = vec!["STATE", "NIC", "OVS-PACKETS", "NIC-PACKETS", "PACKETS/S", "BITS/S", "MATCH", "ACTIONS"];
    if why {
        headings.insert(1, "WHY");
    }
    let mut table = Table::new(&headings);
    for flow in &flows.flows {
        table.row(row(flow, why));
    }
    table
}

/// What NICs hold, as testpmd would be told it. What has no form there is a comment.
fn rules(mut client: Client, wish: &FlowList) -> Result<(), Failure> {
    let mut entries: Vec<Value> = Vec::new();
    loop {
        let limit = wish.limit.map_or(PAGE, |limit| PAGE.min(limit.saturating_sub(entries.len())));
        let mut params = json!({ "limit": limit });
        if let Some(last) = entries.last() {
            params["after"] = json!({ "nic": last["nic"], "id": last["rule"]["id"] });
        }
        let page: Vec<Value> = serde_json::from_value(client.call("rule.list", params)?)?;
        let is_last = page.len() < PAGE;
        entries.extend(page);
        if is_last {
            break;
        }
    }
    let answer = Value::from(entries);
    if wish.output.json {
        return print_json(&answer);
    }
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut nic = None;
    for entry in serde_json::from_value::<Vec<RuleEntry>>(answer)? {
        if nic.as_ref() != Some(&entry.nic) {
            writeln!(out, "# NIC {}: port 0 is the uplink, port N + 1 the representor of VF N", entry.nic)?;
        }
        match entry.testpmd {
            Some(text) => writeln!(out, "{text}")?,
            None => writeln!(out, "# {}: {}", entry.rule.id, entry.why.unwrap_or_default())?,
        }
        nic = Some(entry.nic);
    }
    Ok(out.flush()?)
}

fn is_of(flow: &FlowView, kind: FlowTypeWord) -> bool {
    let offloaded = flow.state == FlowState::Offloaded;
    match kind {
        FlowTypeWord::Offloaded => offloaded,
        FlowTypeWord::NonOffloaded => !offloaded,
        FlowTypeWord::All => true,
    }
}

/// As `dpctl/dump-flows -m` prints a flow (format_dpif_flow in OVS's lib/dpctl.c).
fn dumped(flow: &FlowView) -> String {
    let counters = flow.rule.unwrap_or(flow.ovs);
    let used = counters.idle_ms.map_or_else(|| "never".into(), |ms| format!("{}.{:03}s", ms / 1000, ms % 1000));
    let (offloaded, layer) = match flow.state {
        FlowState::Offloaded => (", offloaded:yes", flow.layer.as_deref().unwrap_or("ringspan")),
        _ => ("", "ovs"),
    };
    let (ufid, keys, actions) = (&flow.ufid, &flow.matches, &flow.actions);
    let (packets, bytes) = (counters.packets, counters.bytes);
    format!(
        "ufid:{ufid}, {keys}, packets:{packets}, bytes:{bytes}, used:{used}{offloaded}, dp:{layer}, actions:{actions}"
    )
}

fn row(flow: &FlowView, why: bool) -> Vec<String> {
    let dash = || "-".to_owned();
    let mut row = vec![
        word(&flow.state),
        flow.nic.as_ref().map(ToString::to_string).or_else(|| flow.layer.clone()).unwrap_or_else(dash),
        flow.ovs.packets.to_string(),
        flow.rule.map_or_else(dash, |rule| rule.packets.to_string()),
        flow.rate.map_or_else(dash, |rate| with_prefix(rate.packets)),
        flow.rate.map_or_else(dash, |rate| with_prefix(rate.bits)),
        short(&flow.matches),
        flow.actions.clone(),
    ];
    if why {
        let reason = flow.reason.as_ref().zip(flow.why.as_ref());
        row.insert(1, reason.map_or_else(dash, |(code, sentence)| format!("{code}: {sentence}")));
    }
    row
}

/// `1.2k`, `35M`: two or three digits are what an eye compares.
pub(super) fn with_prefix(value: f64) -> String {
    let mut value = value;
    for prefix in ["", "k", "M", "G", "T"] {
        if value < 999.5 || prefix == "T" {
            let digits = usize::from(value < 9.95 && !prefix.is_empty());
            return format!("{value:.digits$}{prefix}");
        }
        value /= 1000.0;
    }
    String::new()
}

/// How deep keys are within keys (`encap`) of which what matches everything is left out.
const LEVELS: usize = 4;

/// Without what matches everything, such as `skb_mark(0/0)` or the `tos=0/0` of `ipv4(...)`, and what every flow has.
fn short(matches: &str) -> String {
    short_list(matches, LEVELS).unwrap_or_default()
}

/// The parts of a list that say something; nothing: none does.
fn short_list(list: &str, levels: usize) -> Option<String> {
    let (mut depth, mut begin) = (0_usize, 0);
    let mut parts = Vec::new();
    for (at, byte) in list.bytes().enumerate() {
        match byte {
            b'(' | b'{' => depth += 1,
            b')' | b'}' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push(&list[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&list[begin..]);
    let said: Vec<String> = parts.into_iter().filter_map(|part| short_part(part, levels)).collect();
    (!said.is_empty()).then(|| said.join(","))
}

fn short_part(part: &str, levels: usize) -> Option<String> {
    const USUAL: [&str; 2] = ["recirc_id(0)", "packet_type(ns=0,id=0)"];
    if USUAL.contains(&part) || matches_everything(part) {
        return None;
    }
    match part.strip_suffix(')').and_then(|rest| rest.split_once('(')) {
        Some((name, list)) if levels > 0 => Some(format!("{name}({})", short_list(list, levels - 1)?)),
        _ => Some(part.into()),
    }
}

/// Whether it is a value with a mask of no bit: `0/0`, `proto=1/0`, `src=192.0.2.4/0.0.0.0`, `dst=fe80::1/::`.
fn matches_everything(field: &str) -> bool {
    let is_zero = |mask: &str| mask.contains(['0', ':']) && mask.bytes().all(|byte| b"0.:x".contains(&byte));
    !field.contains(['(', ')', '{', '}']) && field.rsplit_once('/').is_some_and(|(_, mask)| is_zero(mask))
}

pub(super) fn stats(mut client: Client, as_json: bool) -> Result<(), Failure> {
    let answer = client.call("flow.stats", json!({}))?;
    if as_json {
        return print_json(&answer);
    }
    let stats: FlowStats = serde_json::from_value(answer)?;
    let mut out = std::io::stdout();
    for line in told(&stats) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// `flow stats`, line by line.
fn told(stats: &FlowStats) -> Vec<String> {
    let mut lines = vec![by_state(stats)];
    for (reason, count) in &stats.by_reason {
        let stay = if *count == 1 { "stays" } else { "stay" };
        lines.push(format!("  {count} {stay} with OVS: {reason}"));
    }
    lines.push(format!("packets: {} by OVS, {} by NICs", stats.ovs.packets, stats.rules.packets));
    let (packets, bits) = (with_prefix(stats.rate.packets), with_prefix(stats.rate.bits));
    lines.push(format!("rate: {packets} packets/s, {bits} bits/s"));
    let (dumps, took, stale) = (number_of(stats.dumps, "dump"), stats.dump_us, stats.stale_ms);
    lines.push(format!("{dumps}, the last in {took} us; a change is seen within {stale} ms"));
    if let Some(kernel) = &stats.kernel {
        lines.push(format!(
            "the kernel's datapath tells of changes at once: {} so far; {} of it, the last in {} us",
            kernel.changes,
            number_of(kernel.dumps, "dump"),
            kernel.dump_us
        ));
    }
    if stats.over_limit > 0 {
        lines.push(format!("{} beyond ovs.max_flows", number_of(stats.over_limit, "flow")));
    }
    if stats.unreadable > 0 {
        lines.push(format!("not read as flows: {}", number_of(stats.unreadable, "line")));
    }
    lines.extend(stats.trouble.iter().map(|trouble| format!("trouble: {trouble}")));
    lines
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::{MOST, PAGE, ask_for, dumped, short, summary, told};
    use crate::cli::options::{FlowTypeWord, Options};
    use crate::ovs::flow::{Names, parse};
    use crate::ovs::mirror::{FlowStats, FlowView};

    #[test]
    fn options_name_only_options_that_there_are() {
        // A conflict with one that is not there ends a debug build only when that command is used.
        Options::command().debug_assert();
    }

    #[test]
    fn flows_in_another_order_are_all_asked_for_at_once() {
        use FlowTypeWord::{All, NonOffloaded, Offloaded};
        for (left, in_order, kind, asked) in [
            (10_000, false, All, 10_000),
            (5000, false, Offloaded, 5000),
            (usize::MAX, false, All, MOST),
            (10, false, NonOffloaded, MOST),
            (usize::MAX, true, All, PAGE),
        ] {
            assert_eq!(ask_for(left, in_order, kind), asked, "{left} {in_order}");
        }
    }

    #[test]
    fn a_dumped_flow_is_read_as_one_and_printed_back() {
        let flow: FlowView = serde_json::from_value(serde_json::json!({
            "ufid": "0d7c5e2a-0000-0000-0000-000000000007", "match": "recirc_id(0),in_port(a),eth_type(0x1234)", "actions": "b",
            "state": "offloaded", "ovs": { "packets": 1, "bytes": 60 }, "rule": { "packets": 9, "bytes": 540, "idle_ms": 1002 },
        }))
        .unwrap();
        let text = dumped(&flow);
        assert!(text.contains("packets:9, bytes:540, used:1.002s, offloaded:yes, dp:ringspan, actions:b"), "{text}");
        assert_eq!(parse::flow(&text, 1, Names::Allowed).unwrap().to_string(), text);
    }

    #[test]
    fn one_flow_and_one_dump_are_no_plurals() {
        let stats = |count: u64| -> FlowStats {
            serde_json::from_value(serde_json::json!({
                "flows": count, "by_state": { "not": count }, "by_reason": { "output": count }, "ovs": { "packets": 0, "bytes": 0 },
                "rules": { "packets": 0, "bytes": 0 }, "rate": { "packets": 0.0, "bits": 0.0 }, "over_limit": count, "unreadable": count,
                "dumps": count, "dump_us": 7, "stale_ms": 9, "kernel": { "changes": count, "dumps": count, "dump_us": 8 },
            }))
            .unwrap()
        };
        assert_eq!(
            told(&stats(1)),
            [
                "1 flow: 1 not",
                "  1 stays with OVS: output",
                "packets: 0 by OVS, 0 by NICs",
                "rate: 0 packets/s, 0 bits/s",
                "1 dump, the last in 7 us; a change is seen within 9 ms",
                "the kernel's datapath tells of changes at once: 1 so far; 1 dump of it, the last in 8 us",
                "1 flow beyond ovs.max_flows",
                "not read as flows: 1 line",
            ]
        );
        assert_eq!(told(&stats(2))[..2], ["2 flows: 2 not", "  2 stay with OVS: output"]);
        assert_eq!(summary(&stats(1)), "1 flow: 1 not; 0 packets/s, 0 bits/s");
    }

    #[test]
    fn rates_have_prefixes() {
        let shown = [0.4, 12.0, 999.4, 1000.0, 9949.0, 35_000_000.0, 1.2e14].map(super::with_prefix);
        assert_eq!(shown, ["0", "12", "999", "1.0k", "9.9k", "35M", "120T"]);
    }

    #[test]
    fn what_says_nothing_is_left_out_of_the_table() {
        let long = "skb_priority(0/0),ct_state(0/0),recirc_id(0),in_port(a),packet_type(ns=0,id=0),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02)";
        assert_eq!(short(long), "in_port(a),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02)");
        // Fields of which no bit matters, and a key that has no others.
        let fields = "in_port(a),eth(src=02:00:00:00:00:01,dst=00:00:00:00:00:00/00:00:00:00:00:00),eth_type(0x0800),ipv4(src=192.0.2.4/0.0.0.0,dst=192.0.2.0/255.255.255.0,proto=1/0,tos=0/0,frag=no)";
        assert_eq!(
            short(fields),
            "in_port(a),eth(src=02:00:00:00:00:01),eth_type(0x0800),ipv4(dst=192.0.2.0/255.255.255.0,frag=no)"
        );
        assert_eq!(
            short("in_port(a),tcp(src=5/0,dst=80/0),tcp_flags(0/0),encap(ipv6(src=fe80::1/::,dst=::))"),
            "in_port(a),encap(ipv6(dst=::))"
        );
        assert_eq!(
            short(
                "tunnel(tun_id=0x7,tos=0/0,geneve({class=0x1,type=0/0,len=4,0x1/0x0}),flags(-df+csum+key)),in_port(/x)"
            ),
            "tunnel(tun_id=0x7,geneve({class=0x1,type=0/0,len=4,0x1/0x0}),flags(-df+csum+key)),in_port(/x)"
        );
        assert_eq!(short("eth(),encap()"), "eth(),encap()");
        assert_eq!(short(""), "");
        assert_eq!(short("ipv4(src=1/0"), "ipv4(src=1/0");
        assert_eq!(short(")(,"), ")(,");
    }
}
