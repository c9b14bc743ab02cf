//! `ringspan device`, `ringspan pf` and `ringspan vf`.

use std::io::Write;

use clap::{Args, Subcommand};
use ringspan_protocol::MacAddress;
use serde_json::{Value, json};

use super::client::Client;
use super::options::Output;
use super::table::Table;
use super::{Failure, print_json, word};
use crate::host::inventory::{Device as Entry, Pf as PfEntry};
use crate::host::netlink::Guid;
use crate::host::sriov::{Count, Max};

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
    /// Give one to another driver, vfio-pci for instance, or back to the one that it had at first.
    Bind {
        /// Its interface, or its PCI address in either form.
        device: String,
        /// The driver.
        #[arg(required_unless_present = "restore", conflicts_with = "restore")]
        driver: Option<String>,
        /// Give it back.
        #[arg(long)]
        restore: bool,
        /// Also when it is a PF with VFs, or its interface is up.
        #[arg(long)]
        disturb: bool,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Vf {
    /// Make a PF have so many VFs, and wait for each of them.
    Enable {
        /// The PF: its interface or its PCI address.
        pf: String,
        /// How many, 0 for none, or max.
        #[arg(value_parser = count)]
        count: Count,
        /// Take VFs away that are bound to vfio-pci, or whose interfaces are up.
        #[arg(long)]
        disturb: bool,
        /// Longest wait in seconds.
        #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
        timeout: f64,
        #[command(flatten)]
        output: Output,
    },
    /// Set what a PF lets one of its VFs do; what is not given stays.
    Set(Box<SetVf>),
}

#[derive(Debug, Args)]
pub(super) struct SetVf {
    /// The PF: its interface or its PCI address.
    pf: String,
    /// The VF's number.
    vf: u16,
    /// Its MAC address.
    #[arg(long)]
    mac: Option<MacAddress>,
    /// Its VLAN; 0: none.
    #[arg(long)]
    vlan: Option<u16>,
    /// Priority of that VLAN.
    #[arg(long)]
    qos: Option<u8>,
    /// Drop frames with other source addresses.
    #[arg(long, value_name = "BOOL")]
    spoof_check: Option<bool>,
    /// Let it change its address and receive everything.
    #[arg(long, value_name = "BOOL")]
    trust: Option<bool>,
    /// Least rate from the guest, in Mbit/s; 0: none.
    #[arg(long, value_name = "MBITS")]
    min_rate: Option<u32>,
    /// Most rate from the guest, in Mbit/s; 0: no limit.
    #[arg(long, value_name = "MBITS")]
    max_rate: Option<u32>,
    /// Whether it has a link: auto, enable or disable; on InfiniBand the policy.
    #[arg(long, value_parser = ["auto", "enable", "disable"], value_name = "STATE")]
    link_state: Option<String>,
    /// Its node's GUID, on InfiniBand.
    #[arg(long, value_name = "GUID")]
    node_guid: Option<Guid>,
    /// Its port's GUID, on InfiniBand.
    #[arg(long, value_name = "GUID")]
    port_guid: Option<Guid>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
pub(super) enum Eswitch {
    /// Show how a NIC's switch forwards, and the representors of its VFs.
    Show {
        /// The PF: its interface, its PCI address, or the device as devlink calls it.
        pf: String,
        #[command(flatten)]
        output: Output,
    },
    /// Make a NIC's switch as it is wanted; what is not given stays.
    Set {
        /// The PF: its interface, its PCI address, or the device as devlink calls it.
        pf: String,
        /// legacy or switchdev.
        #[arg(long, value_parser = ["legacy", "switchdev"])]
        mode: Option<String>,
        /// none, link, network or transport.
        #[arg(long, value_parser = ["none", "link", "network", "transport"], value_name = "MODE")]
        inline_mode: Option<String>,
        /// none or basic.
        #[arg(long, value_parser = ["none", "basic"], value_name = "MODE")]
        encap_mode: Option<String>,
        /// smfs or dmfs, where the driver has a choice.
        #[arg(long, value_name = "MODE")]
        steering_mode: Option<String>,
        /// Whether the PF's interface offloads TC flows.
        #[arg(long, value_name = "BOOL")]
        hw_tc_offload: Option<bool>,
        #[command(flatten)]
        output: Output,
    },
}

pub(super) fn run_eswitch(mut client: Client, command: Eswitch) -> Result<(), Failure> {
    match command {
        Eswitch::Show { pf, output: Output { json } } => {
            let eswitch = client.call("eswitch.get", json!({ "pf": pf }))?;
            if json {
                return print_json(&eswitch);
            }
            let mut plain = eswitch.clone();
            let names = eswitch["representors"].as_array().into_iter().flatten();
            let name = |one: &Value| format!("{}={}", one["vf"], one["interface"].as_str().unwrap_or("-"));
            plain["representors"] = names.map(name).collect();
            print_fields(&plain)
        }
        Eswitch::Set { pf, mode, inline_mode, encap_mode, steering_mode, hw_tc_offload, output } => {
            let mut params = json!({ "pf": pf });
            let wishes = [
                ("mode", mode),
                ("inline_mode", inline_mode),
                ("encap_mode", encap_mode),
                ("steering_mode", steering_mode),
            ];
            for (name, value) in wishes {
                if let Some(value) = value {
                    params[name] = json!(value);
                }
            }
            if let Some(on) = hw_tc_offload {
                params["hw_tc_offload"] = json!(on);
            }
            print_done(&client.call("eswitch.set", params)?, output)
        }
    }
}

fn count(text: &str) -> Result<Count, String> {
    match text {
        "max" => Ok(Count::Max(Max::Max)),
        text => text.parse().map(Count::Number).map_err(|_| "write a number, or max".into()),
    }
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
        Device::Bind { device, driver, restore, disturb, output } => {
            let mut params = json!({ "device": device, "restore": restore, "disturb": disturb });
            if let Some(driver) = driver {
                params["driver"] = json!(driver);
            }
            print_done(&client.call("device.bind", params)?, output)
        }
    }
}

pub(super) fn run_vf(mut client: Client, command: Vf) -> Result<(), Failure> {
    match command {
        Vf::Enable { pf, count, disturb, timeout, output } => {
            let timeout_ms = (timeout * 1000.0) as u64;
            let params = json!({ "pf": pf, "count": count, "disturb": disturb, "timeout_ms": timeout_ms });
            print_done(&client.call("vf.enable", params)?, output)
        }
        Vf::Set(set) => {
            let mut params = json!({ "pf": set.pf, "vf": set.vf });
            let wishes = [
                ("mac", set.mac.map(|mac| json!(mac))),
                ("vlan", set.vlan.map(|vlan| json!(vlan))),
                ("qos", set.qos.map(|qos| json!(qos))),
                ("spoof_check", set.spoof_check.map(|on| json!(on))),
                ("trust", set.trust.map(|on| json!(on))),
                ("min_rate", set.min_rate.map(|rate| json!(rate))),
                ("max_rate", set.max_rate.map(|rate| json!(rate))),
                ("link_state", set.link_state.map(|state| json!(state))),
                ("node_guid", set.node_guid.map(|guid| json!(guid))),
                ("port_guid", set.port_guid.map(|guid| json!(guid))),
            ];
            for (name, value) in wishes {
                if let Some(value) = value {
                    params[name] = value;
                }
            }
            print_done(&client.call("vf.set", params)?, set.output)
        }
    }
}

/// What was done, a line each.
pub(super) fn print_done(answer: &Value, Output { json }: Output) -> Result<(), Failure> {
    if json {
        return print_json(answer);
    }
    let mut out = std::io::stdout().lock();
    for line in answer["done"].as_array().into_iter().flatten() {
        writeln!(out, "{}", plain(line))?;
    }
    Ok(())
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
