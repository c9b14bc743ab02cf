//! `ringspan host`.

use std::io::Write;
use std::path::PathBuf;

use clap::Subcommand;

use super::table::Table;
use super::{Failure, print_json, word};
use crate::control::{PlanOf, plan_of};
use crate::host::conf::{Kind, Level, Plan, Standing};

#[derive(Debug, Subcommand)]
pub(super) enum Host {
    /// Show what the agent's host.conf wants of this host, what is so, and what would be done. Changes nothing, and needs no daemon. Exit code 1: something is refused or wrong.
    Plan {
        /// The agent's host.conf.
        #[arg(default_value = "/etc/yunion/host.conf", value_name = "FILE")]
        file: PathBuf,
        /// The common configuration, where host.conf does not name it.
        #[arg(long, value_name = "FILE")]
        common: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(command: Host) -> Result<(), Failure> {
    let Host::Plan { file, common, json } = command;
    let plan = plan_of(&PlanOf { file, common }).map_err(|error| Failure::Failed(error.message))?;
    if json {
        print_json(&serde_json::to_value(&plan)?)?;
    } else {
        print(&plan)?;
    }
    let refused = plan.items.iter().filter(|item| item.standing == Standing::Refused).count();
    let errors = plan.problems.iter().filter(|problem| problem.level == Level::Error).count();
    match refused + errors {
        0 => Ok(()),
        _ => Err(Failure::Failed(format!("{refused} cards are refused, and the files have {errors} errors"))),
    }
}

fn print(plan: &Plan) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    writeln!(out, "read {}", plan.files.join(", "))?;
    for problem in &plan.problems {
        let place = match (&problem.file, problem.line) {
            (Some(file), Some(line)) => format!("{file}:{line}: "),
            (Some(file), None) => format!("{file}: "),
            _ => String::new(),
        };
        writeln!(out, "{}: {place}{}: {}", word(&problem.level), problem.message, problem.remedy)?;
    }
    if plan.items.is_empty() {
        return Ok(writeln!(out, "no card is asked for: sriov_nics and ovs_offload_nics are empty")?);
    }
    let mut table = Table::new(&["INTERFACE", "ADDRESS", "FOR", "BOND", "BRIDGE", "WIRE", "VFS", "STANDING"]);
    let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    for item in &plan.items {
        let kind = if item.kind == Kind::Sriov { "sriov" } else { "offload" };
        table.row([
            item.interface.clone(),
            dash(&item.address),
            kind.into(),
            dash(&item.bond),
            item.bridge.clone(),
            item.wire.clone(),
            item.vfs.to_string(),
            word(&item.standing),
        ]);
    }
    table.print()?;
    for item in &plan.items {
        for (number, step) in item.steps.iter().enumerate() {
            writeln!(out, "{} {}. {step}", item.interface, number + 1)?;
        }
        if let Some(problem) = &item.refused {
            writeln!(out, "{} ({}) refused: {}: {}", item.interface, item.from, problem.message, problem.remedy)?;
        }
    }
    for give_up in &plan.give_up {
        writeln!(
            out,
            "give up {} {} ({}) before ringspan has it: {}",
            give_up.key, give_up.entry, give_up.from, give_up.why
        )?;
    }
    Ok(())
}
