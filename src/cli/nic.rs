//! `ringspan nic`.

use clap::{Args, Subcommand};
use ringspan_protocol::nic::BondMode;
use ringspan_protocol::{DeviceSpec, LaneName, NicMode, NicName};
use serde_json::json;

use super::client::Client;
use super::options::Output;
use super::table::Table;
use super::{Failure, print_json, word};
use crate::control::NicEntry;

#[derive(Debug, Subcommand)]
pub(super) enum Nic {
    /// Add a software NIC; it survives restarts.
    Add(Add),
    /// Remove a software NIC that was added at run time, and its representors.
    Remove {
        /// Its name.
        name: NicName,
        /// A NIC that is not there is a success.
        #[arg(long)]
        if_exists: bool,
        /// Leave the representors' network interfaces on the host.
        #[arg(long)]
        keep_representors: bool,
    },
    /// List all NICs.
    List(Output),
    /// Show one NIC: its ports, their representors, and what they counted.
    Show {
        /// Its name.
        name: NicName,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// Its name, 10 characters at most, and that of its uplink's representor.
    name: NicName,
    /// How many VFs it has, 0 to 64.
    #[arg(long)]
    vfs: u16,
    /// What it sends to and receives from outside, such as pci:ADDRESS or vdev:net_tap0,iface=up0.
    #[arg(long = "uplink", value_name = "DEVICE")]
    uplinks: Vec<DeviceSpec>,
    /// How two uplinks are bonded: active-backup, balance-xor or lacp.
    #[arg(long, default_value = "active-backup", value_parser = bond)]
    bond: BondMode,
    /// switchdev: by rules; legacy: by MAC addresses and VLANs.
    #[arg(long, default_value = "switchdev", value_parser = mode)]
    mode: NicMode,
    /// Largest frame without its Ethernet header, in bytes.
    #[arg(long, default_value_t = 1500)]
    mtu: u16,
    /// The lane that has it.
    #[arg(long)]
    lane: Option<LaneName>,
}

fn mode(text: &str) -> Result<NicMode, String> {
    match text {
        "switchdev" => Ok(NicMode::Switchdev),
        "legacy" => Ok(NicMode::Legacy),
        _ => Err("write switchdev or legacy".into()),
    }
}

fn bond(text: &str) -> Result<BondMode, String> {
    serde_json::from_value(json!(text)).map_err(|_| "write active-backup, balance-xor or lacp".into())
}

pub(super) fn run(mut client: Client, command: Nic) -> Result<(), Failure> {
    match command {
        Nic::Add(Add { name, vfs, uplinks, bond, mode, mtu, lane }) => {
            let mut params =
                json!({ "name": name, "vfs": vfs, "uplinks": uplinks, "bond": bond, "mode": mode, "mtu": mtu });
            if let Some(lane) = lane {
                params["lane"] = json!(lane);
            }
            client.call("nic.add", params).map(drop)
        }
        Nic::Remove { name, if_exists, keep_representors } => {
            let params = json!({ "name": name, "if_exists": if_exists, "keep_representors": keep_representors });
            client.call("nic.remove", params).map(drop)
        }
        Nic::List(Output { json }) => {
            let nics = client.call("nic.list", json!({}))?;
            if json { print_json(&nics) } else { print(&serde_json::from_value::<Vec<NicEntry>>(nics)?) }
        }
        Nic::Show { name, output: Output { json } } => {
            let nic = client.call("nic.show", json!({ "name": name }))?;
            if json { print_json(&nic) } else { print_one(&serde_json::from_value(nic)?) }
        }
    }
}

fn print(nics: &[NicEntry]) -> Result<(), Failure> {
    let mut table = Table::new(&["NIC", "LANE", "MODE", "VFS", "UPLINK", "CORE", "RULES", "MASKS", "NOTE"]);
    for nic in nics {
        let status = nic.status.as_ref();
        let number = |number: Option<u64>| number.map_or_else(|| "-".into(), |number| number.to_string());
        let uplinks: Vec<_> = nic.spec.uplinks.iter().map(ToString::to_string).collect();
        table.row([
            nic.name.to_string(),
            nic.lane.to_string(),
            word(&nic.spec.mode),
            nic.spec.vfs.to_string(),
            if uplinks.is_empty() { "-".into() } else { uplinks.join(" ") },
            number(status.map(|status| status.core.into())),
            number(status.map(|status| status.rules)),
            number(status.map(|status| status.masks.into())),
            nic.reason.clone().unwrap_or_default(),
        ]);
    }
    table.print()
}

fn print_one(nic: &NicEntry) -> Result<(), Failure> {
    print(std::slice::from_ref(nic))?;
    let Some(status) = &nic.status else { return Ok(()) };
    let mut table =
        Table::new(&["PORT", "REPRESENTOR", "UP", "RECEIVED", "SENT", "HITS", "MISSES", "TO-REP", "FROM-REP", "DROPS"]);
    for port in &status.ports {
        let counters = &port.counters;
        let numbers = [
            counters.received,
            counters.sent,
            counters.hits,
            counters.misses,
            counters.representor_sent,
            counters.representor_received,
            counters.drops(),
        ];
        let up = if port.up { "yes" } else { "no" };
        let head = [port.port.to_string(), port.representor.clone(), up.to_owned()];
        table.row(head.into_iter().chain(numbers.iter().map(u64::to_string)));
    }
    table.print()?;
    if status.uplinks.len() < 2 {
        return Ok(());
    }
    let mut table = Table::new(&["UPLINK", "UP", "SENDS"]);
    let word = |yes| if yes { "yes" } else { "no" }.to_owned();
    for uplink in &status.uplinks {
        table.row([uplink.device.to_string(), word(uplink.up), word(uplink.active)]);
    }
    table.print()
}
