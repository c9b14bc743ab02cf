//! `ringspan device` and `ringspan pf`.

use std::io::Write;

use clap::Subcommand;
use serde_json::{Value, json};

use super::client::Client;
use super::options::Output;
use super::table::Table;
use super::{Failure, print_json, word};
use crate::host::inventory::{Device as Entry, Pf as PfEntry};

#[derive(Debug, Subcommand)]
pub(super) enum Device {
    /// List the physical and virtual functions of this host's NICs.
    List(Output),
    /// Show one of them.
    Show {
        /// Its interface, its PCI address in either form, or its id.
        device: String,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Pf {
    /// List the physical functions of this host's NICs.
    List(Output),
    /// Show one of them.
    Show {
        /// Its interface, or its PCI address in either form.
        pf: String,
        #[command(flatten)]
        output: Output,
    },
}

pub(super) fn run(mut client: Client, command: Device) -> Result<(), Failure> {
    match command {
        Device::List(Output { json }) => {
            let devices = client.call("device.list", json!({}))?;
            if json { print_json(&devices) } else { print(&serde_json::from_value::<Vec<Entry>>(devices)?) }
        }
        Device::Show { device, output: Output { json } } => {
            let device = client.call("device.get", json!({ "device": device }))?;
            if json { print_json(&device) } else { print_fields(&device) }
        }
    }
}

pub(super) fn run_pf(mut client: Client, command: Pf) -> Result<(), Failure> {
    match command {
        Pf::List(Output { json }) => {
            let pfs = client.call("pf.list", json!({}))?;
            if json { print_json(&pfs) } else { print_pfs(&serde_json::from_value::<Vec<PfEntry>>(pfs)?) }
        }
        Pf::Show { pf, output: Output { json } } => {
            let pf = client.call("pf.get", json!({ "pf": pf }))?;
            if json { print_json(&pf) } else { print_fields(&pf) }
        }
    }
}

fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".into(), |text| text.to_string())
}

/// As the agent's isolated-device-list, and what somebody at this host wants to know besides.
fn print(devices: &[Entry]) -> Result<(), Failure> {
    let mut table = Table::new(&[
        "ID",
        "DEV_TYPE",
        "MODEL",
        "ADDR",
        "VENDOR_DEVICE_ID",
        "HOST_ID",
        "GUEST_ID",
        "VF",
        "DRIVER",
        "INTERFACE",
        "REPRESENTOR",
        "BRIDGE",
        "OWNER",
        "OFFLOAD",
    ]);
    for device in devices {
        let vf =
            device.vf.map(|vf| format!("{}/{vf}", device.pf_interface.clone().unwrap_or_else(|| or_dash(device.pf))));
        table.row([
            device.id.clone(),
            device.dev_type.clone(),
            device.model.clone(),
            device.addr.clone(),
            device.vendor_device_id.clone(),
            or_dash(device.host_id.as_ref()),
            or_dash(device.guest_id.as_ref()),
            or_dash(vf),
            or_dash(device.driver.as_ref()),
            or_dash(device.interface.as_ref()),
            or_dash(device.representor.as_ref()),
            or_dash(device.bridge.as_ref()),
            or_dash(device.owner.as_ref()),
            word(&device.ovs_offload.possible),
        ]);
    }
    table.print()
}

fn print_pfs(pfs: &[PfEntry]) -> Result<(), Failure> {
    let mut table = Table::new(&[
        "ADDR",
        "INTERFACE",
        "MODEL",
        "DRIVER",
        "FIRMWARE",
        "VFS",
        "LINK",
        "MODE",
        "BRIDGE",
        "NUMA",
        "OFFLOAD",
        "WHY",
    ]);
    for pf in pfs {
        table.row([
            pf.addr.clone(),
            or_dash(pf.interface.as_ref()),
            pf.model.clone(),
            or_dash(pf.driver.as_ref()),
            or_dash(pf.firmware_version.as_ref()),
            or_dash(pf.sriov.map(|sriov| format!("{}/{}", sriov.enabled, sriov.total))),
            word(&pf.link_type),
            or_dash(pf.eswitch_mode),
            or_dash(pf.bridge.as_ref()),
            or_dash(pf.numa_node),
            word(&pf.ovs_offload.possible),
            pf.ovs_offload.reason.clone(),
        ]);
    }
    table.print()
}

/// Every field on a line of its own; those within one behind its name.
fn print_fields(value: &Value) -> Result<(), Failure> {
    let mut lines = Vec::new();
    fields("", value, &mut lines);
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut out = std::io::stdout().lock();
    for (name, text) in lines {
        writeln!(out, "{name:<width$}  {text}")?;
    }
    Ok(())
}

fn fields(above: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let name = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
                fields(&name, value, lines);
            }
        }
        Value::Array(items) => {
            let texts: Vec<String> = items.iter().map(plain).collect();
            lines.push((above.to_owned(), texts.join(" ")));
        }
        value => lines.push((above.to_owned(), plain(value))),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
