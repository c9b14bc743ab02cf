//! Mellanox firmware: what is set, and what waits for a reboot.

use super::Found;
use crate::host::doctor::host::{Host, Unseen};
use crate::host::doctor::nic::{MELLANOX, Nic};

/// What decides over VFs.
const WATCHED: [&str; 4] = ["SRIOV_EN", "NUM_OF_VFS", "LINK_TYPE_P1", "LINK_TYPE_P2"];
/// NVIDIA's tool, and that of the distributions: the same grammar.
const TOOLS: [&str; 2] = ["mstconfig", "mlxconfig"];

pub(super) fn pending(host: &Host) -> Vec<Found> {
    let cards: Vec<&Nic> = host.physical().filter(|nic| nic.vendor == MELLANOX).collect();
    if cards.is_empty() {
        return vec![Found::pass("there is no Mellanox card: nothing to look at")];
    }
    let mut found: Vec<Found> = Vec::new();
    for nic in cards {
        // The functions of one board share what is set; each is asked, since link types differ.
        found.push(card(host, nic).about(nic.name()));
    }
    found
}

fn card(host: &Host, nic: &Nic) -> Found {
    let mut why = Unseen::Absent;
    for tool in TOOLS {
        match host.run(tool, &["-d", &nic.address, "-e", "query"]) {
            Ok(ran) if ran.good => return judge(nic, tool, &ran.stdout),
            Ok(ran) if ran.stderr.contains("ermission") || !host.privileged() => why = Unseen::Denied,
            Ok(ran) => {
                let text = if ran.stderr.trim().is_empty() { ran.stdout } else { ran.stderr };
                why = Unseen::Other(format!("{tool}: {}", text.trim().lines().last().unwrap_or("failed")));
            }
            Err(Unseen::Absent) => {}
            Err(other) => why = other,
        }
    }
    match why {
        Unseen::Absent => Found::unknown("what its firmware has set: neither mstconfig nor mlxconfig is installed")
            .remedy([host.install("mstflint", "mstflint")]),
        why => Found::unseen("what its firmware has set", &why),
    }
}

fn judge(nic: &Nic, tool: &str, text: &str) -> Found {
    let settings: Vec<Setting> = parse(text).into_iter().filter(|one| WATCHED.contains(&one.name.as_str())).collect();
    if settings.is_empty() {
        return Found::unknown(format!("{tool} prints nothing of SRIOV_EN")).evidence(text.lines().take(5));
    }
    let waiting: Vec<&Setting> =
        settings.iter().filter(|one| one.current.as_ref().is_some_and(|now| *now != one.next)).collect();
    let off = settings.iter().any(|one| one.name == "SRIOV_EN" && value(&one.next) == "0");
    let found = if !waiting.is_empty() {
        let words: Vec<String> = waiting
            .iter()
            .map(|one| format!("{} {} -> {}", one.name, one.current.as_deref().unwrap_or("?"), one.next))
            .collect();
        // mstfwreset can take a new setting into force without a reboot, where the card allows it.
        Found::warn(format!("a change of its firmware's settings waits for a reboot: {}", words.join(", ")))
            .remedy(["reboot".to_owned(), format!("# or, where the card can: mstfwreset -d {} -y reset", nic.address)])
    } else if off {
        Found::fail("SR-IOV is off in its firmware")
            .remedy([format!("{tool} -y -d {} set SRIOV_EN=1 NUM_OF_VFS=8", nic.address), "reboot".into()])
    } else {
        let words: Vec<String> = settings.iter().map(|one| format!("{} {}", one.name, one.next)).collect();
        Found::pass(format!("nothing waits for a reboot: {}", words.join(", ")))
    };
    found.evidence(settings.iter().map(|one| format!("{tool}: {}", one.line)))
}

/// A line of the table.
struct Setting {
    name: String,
    /// Absent: the tool printed only what comes next.
    current: Option<String>,
    next: String,
    line: String,
}

/// Reads the table: `Default`, `Current` and `Next Boot` with `-e`, else `Next Boot` alone; a star marks what differs.
fn parse(text: &str) -> Vec<Setting> {
    let mut columns = 0;
    let mut settings = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("Configurations:") {
            columns = ["Default", "Current", "Next Boot"].iter().filter(|name| line.contains(*name)).count();
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().filter(|word| *word != "*" && *word != "RO").collect();
        let [name, values @ ..] = &words[..] else { continue };
        if columns == 0 || values.len() != columns {
            continue;
        }
        settings.push(Setting {
            name: (*name).to_owned(),
            current: (columns == 3).then(|| values[1].to_owned()),
            next: values[columns - 1].to_owned(),
            line: words.join(" "),
        });
    }
    settings
}

/// What stands in brackets: `True(1)` is 1.
fn value(text: &str) -> &str {
    text.split_once('(').map_or(text, |(_, rest)| rest.trim_end_matches(')'))
}
