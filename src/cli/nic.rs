//! `ringspan nic`.

use clap::{Args, Subcommand};
use ringspan_protocol::nic::BondMode;
use ringspan_protocol::{DeviceSpec, LaneName, MacAddress, NicMode, NicName, VfChange, VfLink};
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
    /// Change a VF of a NIC in legacy mode; what is not named stays.
    Vf(Vf),
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
    /// The physical function of a NIC with a switch of its own, such as 0000:0a:00.0; without it the NIC is in software.
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["uplinks", "bond", "mode"])]
    pf: Option<String>,
    /// Who brings flows into its switch: tc (Open vSwitch by itself), ringspan or off.
    #[arg(long, requires = "pf")]
    offload: Option<String>,
    /// Its function is bonded with a second one, whose VFs are driven with it.
    #[arg(long, requires = "pf")]
    bonded: bool,
    /// mlx5's way to program its switch: 1 by software steering, 2 by hardware steering.
    #[arg(long, requires = "pf", value_name = "N")]
    dv_flow_en: Option<u8>,
    /// More device arguments, as DPDK takes them.
    #[arg(long, requires = "pf", value_name = "ARGS")]
    args: Option<String>,
    /// The lane that has it.
    #[arg(long)]
    lane: Option<LaneName>,
}

#[derive(Debug, Args)]
pub(super) struct Vf {
    /// The NIC.
    name: NicName,
    /// The VF, from 0.
    vf: u16,
    /// Its address; 00:00:00:00:00:00: the one that its guest sends from.
    #[arg(long)]
    mac: Option<MacAddress>,
    /// VLAN that it is in, 1 to 4094; 0: none.
    #[arg(long)]
    vlan: Option<u16>,
    /// Priority in that VLAN's tags, 0 to 7.
    #[arg(long)]
    qos: Option<u8>,
    /// on: drop what it sends from another address than its own.
    #[arg(long, value_name = "on|off", value_parser = switch)]
    spoof_check: Option<bool>,
    /// on: give it what is for addresses that nobody has.
    #[arg(long, value_name = "on|off", value_parser = switch)]
    trust: Option<bool>,
    /// Most that it may send, in Mbit/s; 0: no limit.
    #[arg(long)]
    max_mbit: Option<u32>,
    /// Whether its link is up: auto, enable or disable.
    #[arg(long, value_parser = link)]
    link: Option<VfLink>,
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off".into()),
    }
}

fn link(text: &str) -> Result<VfLink, String> {
    serde_json::from_value(json!(text)).map_err(|_| "write auto, enable or disable".into())
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
        Nic::Add(Add { name, vfs, uplinks, bond, mode, mtu, pf, offload, bonded, dv_flow_en, args, lane }) => {
            let mut params =
                json!({ "name": name, "vfs": vfs, "uplinks": uplinks, "bond": bond, "mode": mode, "mtu": mtu });
            if pf.is_some() {
                params["kind"] = json!("pci");
                params["bonded"] = json!(bonded);
            }
            let more = [("pf", pf), ("offload", offload), ("args", args), ("lane", lane.map(|lane| lane.to_string()))];
            for (key, value) in more.into_iter().filter_map(|(key, value)| Some((key, value?))) {
                params[key] = json!(value);
            }
            if let Some(dv_flow_en) = dv_flow_en {
                params["dv_flow_en"] = json!(dv_flow_en);
            }
            client.call("nic.add", params).map(drop)
        }
        Nic::Remove { name, if_exists, keep_representors } => {
            let params = json!({ "name": name, "if_exists": if_exists, "keep_representors": keep_representors });
            client.call("nic.remove", params).map(drop)
        }
        Nic::Vf(Vf { name, vf, mac, vlan, qos, spoof_check, trust, max_mbit, link }) => {
            let change = VfChange { mac, vlan, qos, spoof_check, trust, max_mbit, link };
            let mut params = serde_json::to_value(change)?;
            (params["name"], params["vf"]) = (json!(name), json!(vf));
            client.call("nic.set-vf", params).map(drop)
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
            match &nic.spec.pci {
                Some(pci) => pci.pf.to_string(),
                None if uplinks.is_empty() => "-".into(),
                None => uplinks.join(" "),
            },
            number(status.filter(|_| nic.spec.pci.is_none()).map(|status| status.core.into())),
            number(status.map(|status| status.rules)),
            number(status.map(|status| status.masks.into())),
            note(nic),
        ]);
    }
    table.print()
}

/// Why it is not there, or why a NIC with a switch of its own takes no rules: its PF is missing, or somebody else brings them.
fn note(nic: &NicEntry) -> String {
    let refuses = || nic.status.as_ref().filter(|_| nic.spec.pci.is_some())?.capabilities.refuses.clone();
    nic.reason.clone().or_else(refuses).unwrap_or_default()
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
        let representor = match (port.representor.as_str(), port.missing, port.removals) {
            ("", ..) => "-".to_owned(),
            (name, true, _) => format!("{name} (missing)"),
            (name, false, 0) => name.to_owned(),
            (name, false, times) => format!("{name} (removed {times}x, made anew)"),
        };
        let head = [port.port.to_string(), representor, up.to_owned()];
        table.row(head.into_iter().chain(numbers.iter().map(u64::to_string)));
    }
    table.print()?;
    if let Some(pci) = &nic.spec.pci {
        let can = &status.capabilities;
        let words = [("counts", can.counts), ("ages", can.ages), ("refreshes", can.refreshes), ("meters", can.meters)];
        let words: Vec<&str> = words.into_iter().filter_map(|(word, is)| is.then_some(word)).collect();
        let (offload, engine) = (word(&pci.offload), word(&can.engine));
        let mut table = Table::new(&["OFFLOAD", "ENGINE", "CAN", "REFUSES"]);
        let can_do = if words.is_empty() { "-".into() } else { words.join(" ") };
        table.row([offload, engine, can_do, can.refuses.clone().unwrap_or_else(|| "-".into())]);
        table.print()?;
    }
    let yes_no = |yes| if yes { "yes" } else { "no" }.to_owned();
    if status.uplinks.len() > 1 || status.uplinks.iter().any(|uplink| uplink.removed) {
        let mut table = Table::new(&["UPLINK", "UP", "SENDS"]);
        for uplink in &status.uplinks {
            let up = if uplink.removed { "unplugged".into() } else { yes_no(uplink.up) };
            table.row([uplink.device.to_string(), up, yes_no(uplink.active)]);
        }
        table.print()?;
    }
    if nic.spec.mode == NicMode::Legacy {
        let mut table = Table::new(&["VF", "MAC", "VLAN", "QOS", "SPOOF-CHECK", "TRUST", "MAX-MBIT", "LINK"]);
        for vf in (0..nic.spec.vfs).map(|vf| nic.spec.vf_settings(vf)) {
            let or_dash = |number: u32| if number == 0 { "-".into() } else { number.to_string() };
            table.row([
                vf.vf.to_string(),
                vf.mac.map_or_else(|| "-".into(), |mac| mac.to_string()),
                or_dash(vf.vlan.into()),
                vf.qos.to_string(),
                yes_no(vf.spoof_check),
                yes_no(vf.trust),
                or_dash(vf.max_mbit),
                word(&vf.link),
            ]);
        }
        table.print()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_says_why_a_nic_takes_no_rules() {
        let spec = json!({ "name": "nic0", "vfs": 1, "pci": { "pf": "pci:0000:0a:00.0" } });
        let can = json!({
            "engine": "rte-flow", "refreshes": false, "counts": false, "ages": false, "meters": false, "refuses": "there is no such function",
        });
        let status = json!({ "spec": spec, "core": 0, "ports": [], "rules": 0, "masks": 0, "capabilities": can });
        let mut nic = json!({ "name": "nic0", "lane": "main", "origin": "run-time", "spec": spec, "status": status });
        let note = |nic: &serde_json::Value| super::note(&serde_json::from_value(nic.clone()).unwrap());
        assert_eq!(note(&nic), "there is no such function");
        nic["reason"] = json!("the lane is down");
        assert_eq!(note(&nic), "the lane is down");
    }
}
