//! Mellanox firmware: what is set, and what waits for a reboot.

use super::Found;
use crate::host::doctor::host::{Host, Unseen};
use crate::host::doctor::nic::{MELLANOX, Nic};
use crate::host::firmware::table::{self, Line};

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
    let settings: Vec<Line> =
        table::settings(text).into_iter().filter(|one| WATCHED.contains(&one.name.as_str())).collect();
    if settings.is_empty() {
        return Found::unknown(format!("{tool} prints nothing of SRIOV_EN")).evidence(text.lines().take(5));
    }
    let waiting: Vec<&Line> =
        settings.iter().filter(|one| one.current.as_ref().is_some_and(|now| *now != one.next)).collect();
    let off = settings.iter().any(|one| one.name == "SRIOV_EN" && table::number(&one.next) == Some(0));
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
    found.evidence(settings.iter().map(|one| {
        let values = [one.default.as_deref(), one.current.as_deref(), Some(one.next.as_str())];
        let values: Vec<&str> = values.into_iter().flatten().collect();
        format!("{tool}: {} {}", one.name, values.join(" "))
    }))
}
