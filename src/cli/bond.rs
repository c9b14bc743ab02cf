//! `ringspan bond`.

use std::io::Write;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::Client;
use super::device::print_done;
use super::options::Output;
use super::table::Table;
use super::{Failure, print_json};
use crate::host::bond::{Bond as Entry, Member, VfLag};
use crate::plural::number_of;

#[derive(Debug, Subcommand)]
pub(super) enum Bond {
    /// Make a bond as it is wanted, or adopt one that is there.
    Create(Box<Create>),
    /// Take a bond away; its members are free, and down. That there is none is a success.
    Delete {
        /// Its name.
        name: String,
        /// Also when it has IP addresses.
        #[arg(long)]
        disturb: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Show bonds: who sends, what LACP has agreed, links, and VF LAG.
    Status {
        /// Its name; all of them when absent.
        name: Option<String>,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Its name.
    name: String,
    /// Its members: interfaces, or PCI addresses.
    #[arg(required = true, value_name = "MEMBER")]
    members: Vec<String>,
    /// active-backup, balance-xor or 802.3ad; or 1, 2 or 4.
    #[arg(long)]
    mode: Option<String>,
    /// How often links are looked at, in milliseconds.
    #[arg(long, value_name = "MS")]
    miimon: Option<u32>,
    /// What is hashed to choose a member: layer2, layer3+4, layer2+3, encap2+3 or encap3+4.
    #[arg(long, value_parser = ["layer2", "layer3+4", "layer2+3", "encap2+3", "encap3+4"], value_name = "POLICY")]
    hash_policy: Option<String>,
    /// How often the partner is asked to speak: slow or fast.
    #[arg(long, value_parser = ["slow", "fast"], value_name = "RATE")]
    lacp_rate: Option<String>,
    /// The members are the two PFs of a ConnectX: make one switch of them.
    #[arg(long)]
    vf_lag: bool,
    /// The bridge of Open vSwitch that it is put on.
    #[arg(long)]
    bridge: Option<String>,
    /// Also when a member is up, or the bond has to go down for a change.
    #[arg(long)]
    disturb: bool,
    /// Longest wait for VF LAG, in seconds.
    #[arg(long, default_value_t = 30.0, value_name = "SECONDS")]
    timeout: f64,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(mut client: Client, command: Bond) -> Result<(), Failure> {
    match command {
        Bond::Create(create) => {
            let timeout_ms = (create.timeout.max(0.0) * 1000.0) as u64;
            let mut params = json!({ "name": create.name, "members": create.members, "vf_lag": create.vf_lag, "disturb": create.disturb, "timeout_ms": timeout_ms });
            let wishes = [
                ("mode", create.mode.map(Value::from)),
                ("miimon", create.miimon.map(Value::from)),
                ("hash_policy", create.hash_policy.map(Value::from)),
                ("lacp_rate", create.lacp_rate.map(Value::from)),
                ("bridge", create.bridge.map(Value::from)),
            ];
            for (name, value) in wishes {
                if let Some(value) = value {
                    params[name] = value;
                }
            }
            print_done(&client.call("bond.create", params)?, create.output)
        }
        Bond::Delete { name, disturb, output } => {
            print_done(&client.call("bond.delete", json!({ "name": name, "disturb": disturb }))?, output)
        }
        Bond::Status { name, output: Output { json } } => {
            let params = name.map_or_else(|| json!({}), |name| json!({ "name": name }));
            let bonds = client.call("bond.status", params)?;
            if json { print_json(&bonds) } else { print(&serde_json::from_value::<Vec<Entry>>(bonds)?) }
        }
    }
}

fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".into(), |text| text.to_string())
}

/// A table of the bonds, and one of their members.
fn print(bonds: &[Entry]) -> Result<(), Failure> {
    table(bonds).print()?;
    let mut members =
        Table::new(&["BOND", "MEMBER", "ADDR", "STATE", "LINK", "FAILURES", "SPEED", "MAC", "LACP", "PARTNER"]);
    for bond in bonds {
        for member in &bond.members {
            members.row(row(&bond.name, member));
        }
    }
    if bonds.iter().all(|bond| bond.members.is_empty()) {
        return Ok(());
    }
    writeln!(std::io::stdout())?;
    members.print()
}

/// The bonds, under headings also when there are none.
fn table(bonds: &[Entry]) -> Table {
    let mut table = Table::new(&["BOND", "MODE", "STATE", "SENDS-BY", "BRIDGE", "SETTINGS"]);
    for bond in bonds {
        let active = bond.active.as_ref();
        let bridge = bond.bridge.as_ref();
        table.row([
            bond.name.clone(),
            bond.mode.clone(),
            state(bond).into(),
            or_dash(active),
            or_dash(bridge),
            settings(bond),
        ]);
    }
    table
}

fn row(bond: &str, member: &Member) -> [String; 10] {
    let lacp = member.lacp.as_ref();
    [
        bond.into(),
        member.interface.clone(),
        or_dash(member.address),
        member.state.clone(),
        member.link.clone(),
        member.link_failures.to_string(),
        or_dash(member.speed_mbps),
        or_dash(member.mac),
        or_dash(lacp.map(|lacp| if lacp.carries { "agreed" } else { "not agreed" })),
        or_dash(lacp.and_then(|lacp| lacp.partner)),
    ]
}

fn state(bond: &Entry) -> &'static str {
    match (bond.carrier, bond.up) {
        (true, _) => "up",
        (false, true) => "up, without a link",
        (false, false) => "down",
    }
}

/// How links are watched and packets are spread, and what LACP and VF LAG have come to.
fn settings(bond: &Entry) -> String {
    let mut words = Vec::new();
    words.push(if bond.miimon == 0 { "links are not watched".into() } else { format!("miimon {} ms", bond.miimon) });
    words.extend(bond.hash_policy.iter().map(|policy| format!("hash {policy}")));
    if let Some(lacp) = &bond.lacp {
        words.push(match lacp.partner {
            Some(partner) => format!("LACP with {partner}, {}", number_of(lacp.ports, "port")),
            None => "nobody answers LACP".into(),
        });
    }
    words.extend(bond.vf_lag.iter().map(vf_lag));
    words.join(", ")
}

fn vf_lag(lag: &VfLag) -> String {
    let kind = lag.kind.as_ref().map(|kind| format!(" ({kind})")).unwrap_or_default();
    let mapping = if lag.mapping.is_empty() { String::new() } else { format!(" mapping {}", lag.mapping.join(" ")) };
    let reason = lag.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("VF LAG {}{kind}{mapping}{reason}", lag.state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bonds_stand_under_headings_also_when_there_are_none() {
        assert_eq!(table(&[]).lines(), ["BOND  MODE  STATE  SENDS-BY  BRIDGE  SETTINGS"]);
    }
}
