//! `ringspan vdpa`.

use std::io::Write;

use clap::{Args, Subcommand};
use ringspan_protocol::MacAddress;
use serde_json::{Value, json};

use super::client::Client;
use super::device::print_done;
use super::options::Output;
use super::table::Table;
use super::{Failure, print_json};
use crate::host::vdpa::{Added, Device, Management, Vdpa as Bus};

#[derive(Debug, Subcommand)]
pub(super) enum Vdpa {
    /// List what vDPA devices can be made on, and those that are there.
    List {
        /// With what the devices' drivers count, queue by queue.
        #[arg(long)]
        stats: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Make a vDPA device as it is wanted, give it to vhost_vdpa, and print its node. One that is there and is the same is a success.
    Add(Box<Add>),
    /// Take a vDPA device away, or give one that was there before back to its driver. That there is none is a success.
    Remove {
        /// Its name.
        name: String,
        /// Also when ringspan did not make it, or its interface is up.
        #[arg(long)]
        disturb: bool,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// Its name.
    name: String,
    /// The management device: a PCI address, or as `vdpa list` names it.
    management: String,
    /// Its MAC address; its driver's choice when absent.
    #[arg(long)]
    mac: Option<MacAddress>,
    /// Its MTU in bytes; its driver's choice when absent.
    #[arg(long)]
    mtu: Option<u16>,
    /// Most queue pairs; its driver's choice when absent.
    #[arg(long, value_name = "PAIRS")]
    max_vqp: Option<u16>,
    /// The only virtio features that it offers: a number, 0x... in hexadecimal.
    #[arg(long, value_parser = bits, value_name = "BITS")]
    features: Option<u64>,
    /// Also when it is there and its interface is up.
    #[arg(long)]
    disturb: bool,
    #[command(flatten)]
    output: Output,
}

fn bits(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| "write a number, or 0x and hexadecimal digits".into())
}

pub(super) fn run(mut client: Client, command: Vdpa) -> Result<(), Failure> {
    match command {
        Vdpa::List { stats, output: Output { json } } => {
            let bus = client.call("vdpa.list", json!({ "statistics": stats }))?;
            if json { print_json(&bus) } else { print(&serde_json::from_value(bus)?) }
        }
        Vdpa::Add(add) => {
            let mut params = json!({ "name": add.name, "management": add.management, "disturb": add.disturb });
            let wishes = [
                ("mac", add.mac.map(|mac| json!(mac))),
                ("mtu", add.mtu.map(Value::from)),
                ("max_vqp", add.max_vqp.map(Value::from)),
                ("features", add.features.map(Value::from)),
            ];
            for (name, value) in wishes {
                if let Some(value) = value {
                    params[name] = value;
                }
            }
            let answer = client.call("vdpa.add", params)?;
            if add.output.json {
                return print_json(&answer);
            }
            let added: Added = serde_json::from_value(answer)?;
            let mut out = std::io::stdout().lock();
            for line in &added.done {
                writeln!(out, "{line}")?;
            }
            Ok(writeln!(out, "vhost-vdpa:{}", added.node)?)
        }
        Vdpa::Remove { name, disturb, output } => {
            print_done(&client.call("vdpa.remove", json!({ "name": name, "disturb": disturb }))?, output)
        }
    }
}

fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".into(), |text| text.to_string())
}

fn print(bus: &Bus) -> Result<(), Failure> {
    if let Some(problem) = &bus.problem {
        return Ok(writeln!(std::io::stdout(), "{problem}")?);
    }
    let mut management = Table::new(&["MANAGEMENT", "DRIVER", "CLASSES", "VQS", "FEATURES", "DEVICES"]);
    for one in &bus.management {
        management.row(managed(one));
    }
    management.print()?;
    writeln!(std::io::stdout())?;
    let columns = ["DEVICE", "MANAGEMENT", "DRIVER", "NODE", "MAC", "MTU", "LINK", "PAIRS", "FEATURES", "USER", "NOTE"];
    let mut devices = Table::new(&columns);
    for one in &bus.devices {
        devices.row(row(one));
    }
    devices.print()?;
    if bus.devices.iter().all(|one| one.statistics.is_none()) {
        return Ok(());
    }
    writeln!(std::io::stdout())?;
    let mut counters = Table::new(&["DEVICE", "QUEUE", "COUNTER", "VALUE"]);
    for one in &bus.devices {
        let Some(statistics) = &one.statistics else { continue };
        for queue in &statistics.queues {
            for (name, value) in &queue.counters {
                counters.row([one.name.clone(), queue.queue.to_string(), name.clone(), value.to_string()]);
            }
        }
        if let Some(problem) = &statistics.problem {
            counters.row([one.name.clone(), "-".into(), problem.clone(), "-".into()]);
        }
    }
    counters.print()
}

fn hex(bits: Option<u64>) -> String {
    or_dash(bits.map(|bits| format!("{bits:#x}")))
}

fn managed(one: &Management) -> [String; 6] {
    [
        one.name.clone(),
        or_dash(one.driver.as_ref()),
        one.classes.join(","),
        or_dash(one.max_vqs),
        hex(one.features),
        or_dash(Some(one.devices.join(",")).filter(|names| !names.is_empty())),
    ]
}

fn row(one: &Device) -> [String; 11] {
    let link = one.link_up.map(|up| if up { "up" } else { "down" });
    let user = match (&one.owner, one.process) {
        (Some(port), _) => format!("port {port}"),
        (None, Some(process)) => format!("process {process}"),
        (None, None) => "-".into(),
    };
    let mut notes: Vec<&str> = vec![];
    notes.extend((!one.made).then_some("not made by ringspan"));
    notes.extend(one.unknown.as_deref());
    [
        one.name.clone(),
        one.management.clone(),
        or_dash(one.driver.as_ref()),
        or_dash(one.node.as_ref().or(one.interface.as_ref())),
        or_dash(one.mac),
        or_dash(one.mtu),
        or_dash(link),
        or_dash(one.max_vqp),
        hex(one.negotiated.or(one.features)),
        user,
        notes.join("; "),
    ]
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::options::Options;
    use super::*;

    #[test]
    fn features_are_bits_in_either_form() {
        assert_eq!((bits("0x300020000"), bits("5")), (Ok(0x3_0002_0000), Ok(5)));
        assert!(bits("MAC").is_err() && bits("-1").is_err() && bits("0x").is_err());
    }

    #[test]
    fn the_grammar_is_that_of_the_documentation() {
        for good in [
            "list --stats --json",
            "add vd0 0a:00.2 --mac 52:54:00:00:00:01 --mtu 9000 --max-vqp 4 --features 0x300020000",
            "add vd1 vdpasim_net --disturb --json",
            "remove vd0 --disturb",
        ] {
            let words = ["ringspan", "vdpa"].into_iter().chain(good.split(' '));
            assert!(Options::try_parse_from(words).is_ok(), "{good}");
        }
        for bad in ["add vd0", "remove", "add vd0 0a:00.2 --mtu 70000", "add vd0 0a:00.2 --mac x"] {
            let words = ["ringspan", "vdpa"].into_iter().chain(bad.split(' '));
            assert!(Options::try_parse_from(words).is_err(), "{bad}");
        }
    }
}
