//! `ringspan firmware`.

use std::io::Write;

use clap::Subcommand;
use serde_json::json;

use super::client::Client;
use super::device::print_done;
use super::options::Output;
use super::table::Table;
use super::{Failure, print_json};
use crate::host::firmware::Firmware as Entry;

#[derive(Debug, Subcommand)]
pub(super) enum Firmware {
    /// Show what a NIC came with, what is in force, and what the next start brings.
    Show {
        /// The PF: its interface, its PCI address, or its mst device.
        pf: String,
        #[command(flatten)]
        output: Output,
    },
    /// Set what the next start brings; what is not given stays.
    Set {
        /// The PF: its interface, its PCI address, or its mst device.
        pf: String,
        /// Whether it can have virtual functions at all (SRIOV_EN).
        #[arg(long, value_name = "BOOL")]
        sriov_en: Option<bool>,
        /// How many at most, for each port of the board (NUM_OF_VFS).
        #[arg(long, value_name = "COUNT")]
        num_of_vfs: Option<u16>,
        /// What this PF's port carries (LINK_TYPE_P1, LINK_TYPE_P2).
        #[arg(long, value_parser = ["ethernet", "infiniband"], value_name = "LINK")]
        link_type: Option<String>,
        #[command(flatten)]
        output: Output,
    },
}

pub(super) fn run(mut client: Client, command: Firmware) -> Result<(), Failure> {
    match command {
        Firmware::Show { pf, output: Output { json } } => {
            let answer = client.call("firmware.get", json!({ "pf": pf }))?;
            if json {
                return print_json(&answer);
            }
            print(&serde_json::from_value(answer)?)
        }
        Firmware::Set { pf, sriov_en, num_of_vfs, link_type, output } => {
            let mut params = json!({ "pf": pf });
            let wishes = [
                ("sriov_en", sriov_en.map(|on| json!(on))),
                ("num_of_vfs", num_of_vfs.map(|count| json!(count))),
                ("link_type", link_type.map(|link| json!(link))),
            ];
            for (name, value) in wishes {
                if let Some(value) = value {
                    params[name] = value;
                }
            }
            let answer = client.call("firmware.set", params)?;
            let reboot = answer["reboot_needed"] == true && !output.json;
            print_done(&answer, output)?;
            if reboot {
                writeln!(std::io::stdout(), "{}", REBOOT)?;
            }
            Ok(())
        }
    }
}

const REBOOT: &str = "reboot needed: what is set comes into force with the next start of the machine";

fn print(firmware: &Entry) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    writeln!(
        out,
        "{} {}, mst device {}, by {}",
        firmware.pf,
        dash(&firmware.interface),
        dash(&firmware.mst_device),
        firmware.tool
    )?;
    let mut table = Table::new(&["SETTING", "DEFAULT", "CURRENT", "NEXT"]);
    for one in &firmware.settings {
        table.row([one.name.clone(), dash(&one.default), dash(&one.current), one.next.clone()]);
    }
    table.print()?;
    if !firmware.shared_with.is_empty() {
        writeln!(out, "one board with {}: all but LINK_TYPE is shared", firmware.shared_with.join(", "))?;
    }
    match firmware.reboot_needed {
        Some(true) => writeln!(out, "{REBOOT}")?,
        Some(false) => writeln!(out, "nothing waits for a reboot")?,
        None => writeln!(out, "whether something waits for a reboot is not known: {} does not say", firmware.tool)?,
    }
    Ok(())
}
