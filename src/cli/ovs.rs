//! `ringspan ovs`.

use std::io::Write;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::Client;
use super::options::Output;
use super::table::Table;
use super::{Failure, print_json, word};
use crate::control::Shown;
use crate::ovs::configure::{Configured, Outcome};
use crate::ovs::verify::{Verdict, Verified};

#[derive(Debug, Subcommand)]
pub(super) enum Ovs {
    /// Show settings, bridges and ports.
    Show(Output),
    /// Make settings, a bridge and a port as they should be; what is so already is left alone.
    Configure(Configure),
    /// Find out whether flows are offloaded, and what stands in the way. Exit code 1: there is traffic and none of it is, or a check failed beside what is.
    Verify(Output),
}

#[derive(Debug, Args)]
pub(super) struct Configure {
    /// Whether OVS offloads flows; comes into force with a restart of ovs-vswitchd.
    #[arg(long, value_name = "BOOL")]
    hw_offload: Option<bool>,
    /// Where TC puts them: none, skip_sw or skip_hw; comes into force with a restart of ovs-vswitchd.
    #[arg(long, value_name = "POLICY")]
    tc_policy: Option<String>,
    /// A bridge that should be there; with --port: the one that the port is on.
    #[arg(long, value_name = "NAME")]
    bridge: Option<String>,
    /// The bridge's datapath: system or netdev.
    #[arg(long, value_name = "TYPE", requires = "bridge")]
    datapath_type: Option<String>,
    /// A port that should be on the bridge, by its representor's name.
    #[arg(long, value_name = "NAME")]
    port: Option<String>,
    /// The port's VLAN, 1 to 4095; 0: none.
    #[arg(long, requires = "port")]
    tag: Option<u16>,
    /// What OVN knows the port by; empty: nothing.
    #[arg(long, requires = "port", value_name = "ID")]
    iface_id: Option<String>,
    /// A port that should not be there.
    #[arg(long, value_name = "NAME", conflicts_with = "port")]
    remove_port: Option<String>,
    /// Restart ovs-vswitchd if that is needed: its traffic stops meanwhile.
    #[arg(long)]
    restart: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(mut client: Client, command: Ovs) -> Result<(), Failure> {
    match command {
        Ovs::Show(output) => {
            let shown = client.call("ovs.show", json!({}))?;
            if output.json { print_json(&shown) } else { show(&serde_json::from_value(shown)?) }
        }
        Ovs::Configure(wish) => configure(&mut client, &wish),
        Ovs::Verify(output) => {
            let found = client.call("ovs.verify", json!({}))?;
            let verified: Verified = serde_json::from_value(found.clone())?;
            if output.json {
                print_json(&found)?
            } else {
                print_verified(&verified)?
            }
            match verified.verdict {
                Verdict::NotWorking | Verdict::Hindered => Err(Failure::Failed(verified.summary)),
                _ => Ok(()),
            }
        }
    }
}

fn configure(client: &mut Client, wish: &Configure) -> Result<(), Failure> {
    let mut params = json!({ "restart": wish.restart });
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            params[key] = value;
        }
    };
    put("hw_offload", wish.hw_offload.map(Value::from));
    put("tc_policy", wish.tc_policy.clone().map(Value::from));
    put("bridges", wish.bridge.as_ref().map(|name| json!([{ "name": name, "datapath_type": wish.datapath_type }])));
    let port = wish
        .port
        .as_ref()
        .map(|name| json!([{ "name": name, "bridge": wish.bridge, "tag": wish.tag, "iface_id": wish.iface_id }]));
    put("ports", port.or_else(|| wish.remove_port.as_ref().map(|name| json!([{ "name": name, "absent": true }]))));
    let answer = client.call("ovs.configure", params)?;
    let configured: Configured = serde_json::from_value(answer.clone())?;
    if wish.output.json {
        print_json(&answer)?;
    } else {
        let mut out = std::io::stdout();
        for item in &configured.items {
            let done = if item.done.is_empty() { String::new() } else { format!(": {}", item.done.join("; ")) };
            writeln!(out, "{} {}{done}", item.item, word(&item.outcome))?;
        }
        if let Some(reason) = &configured.restart_needed {
            writeln!(out, "ovs-vswitchd must be restarted (--restart does it): {reason}")?;
        }
        if configured.restarted {
            writeln!(out, "ovs-vswitchd was restarted")?;
        }
        if !configured.settled {
            writeln!(out, "ovs-vswitchd has not taken all of it yet: is it running?")?;
        }
    }
    let refused = configured.items.iter().filter(|item| item.outcome == Outcome::Refused);
    let reasons: Vec<String> =
        refused.filter_map(|item| item.error.as_ref()).map(|error| error.message.clone()).collect();
    if reasons.is_empty() { Ok(()) } else { Err(Failure::Failed(reasons.join("; "))) }
}

fn show(shown: &Shown) -> Result<(), Failure> {
    let view = &shown.view;
    let mut out = std::io::stdout();
    let process = shown.pid.map_or_else(|| "not running".to_owned(), |pid| format!("process {pid}"));
    writeln!(out, "Open vSwitch {} in {}: ovs-vswitchd {process}", view.version, shown.run_dir)?;
    writeln!(
        out,
        "hw-offload {}, tc-policy {}, max-idle {} ms, flow-limit {}",
        view.hw_offload, view.tc_policy, view.max_idle_ms, view.flow_limit
    )?;
    let mut table =
        Table::new(&["BRIDGE", "DATAPATH", "PORT", "TAG", "INTERFACE", "TYPE", "OFPORT", "IFACE-ID", "ERROR"]);
    for (bridge, port, interface) in view.interfaces() {
        let number = |value: Option<i64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        table.row([
            bridge.name.clone(),
            bridge.datapath_type.clone(),
            port.name.clone(),
            number(port.tag.map(Into::into)),
            interface.name.clone(),
            interface.kind.clone(),
            number(interface.ofport),
            interface.iface_id.clone().unwrap_or_else(|| "-".into()),
            interface.error.clone().unwrap_or_default(),
        ]);
    }
    table.print()
}

fn print_verified(verified: &Verified) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    writeln!(out, "{}", verified.summary)?;
    let mut table = Table::new(&["CHECK", "STATE", "FOUND", "REMEDY"]);
    for check in &verified.checks {
        let remedy = check.remedy.clone().unwrap_or_default();
        table.row([word(&check.check), word(&check.state), check.message.clone(), remedy]);
    }
    table.print()
}
