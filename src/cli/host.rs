//! `ringspan host`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::client::Client;
use super::table::Table;
use super::{Failure, print_json, word};
use crate::control::{PlanOf, plan_of};
use crate::host::conf::{Applied, AppliedOutcome, Kind, Level, Plan, Problem, Standing};
use crate::host::udev::Named;

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
    /// Do it, card by card. What is so already is left alone. Exit code 1: a card is refused.
    Apply {
        /// The agent's host.conf.
        #[arg(default_value = "/etc/yunion/host.conf", value_name = "FILE")]
        file: PathBuf,
        /// The common configuration, where host.conf does not name it.
        #[arg(long, value_name = "FILE")]
        common: Option<PathBuf>,
        /// Change nothing, and say what would be done.
        #[arg(long)]
        dry_run: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write rules for udev, so that a PF's VFs and representors have names that stay. Exit code 1: a rule of somebody else's names them.
    Udev {
        /// The PF: its interface or its PCI address.
        pf: String,
        /// Change nothing, and say what would be written.
        #[arg(long)]
        dry_run: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(control: &Path, command: Host) -> Result<(), Failure> {
    match command {
        Host::Plan { file, common, json } => plan(file, common, json),
        Host::Udev { pf, dry_run, json } => udev(Client::connect(control)?, &pf, dry_run, json),
        Host::Apply { file, common, dry_run, json } => apply(Client::connect(control)?, &file, common, dry_run, json),
    }
}

fn apply(mut client: Client, file: &Path, common: Option<PathBuf>, dry_run: bool, json: bool) -> Result<(), Failure> {
    // The daemon's folder is another.
    let whole = |path: &Path| std::path::absolute(path);
    let common = common.map(|path| whole(&path)).transpose()?;
    let params = json!({ "file": whole(file)?, "common": common, "dry_run": dry_run });
    let answer = client.call("host.apply", params)?;
    let applied: Applied = serde_json::from_value(answer.clone())?;
    if json {
        print_json(&answer)?;
    } else {
        let mut out = std::io::stdout();
        problems(&applied.problems)?;
        for item in &applied.items {
            let steps = if item.steps.is_empty() { String::new() } else { format!(": {}", item.steps.join("; ")) };
            writeln!(out, "{} {}{steps}", item.interface, word(&item.outcome))?;
        }
    }
    let refused = applied.items.iter().filter(|item| item.outcome == AppliedOutcome::Refused);
    let reasons: Vec<String> = refused.filter_map(|item| Some(item.error.as_ref()?.message.clone())).collect();
    if reasons.is_empty() { Ok(()) } else { Err(Failure::Failed(reasons.join("; "))) }
}

fn udev(mut client: Client, pf: &str, dry_run: bool, json: bool) -> Result<(), Failure> {
    let answer = client.call("host.udev", json!({ "pf": pf, "dry_run": dry_run }))?;
    let named: Named = serde_json::from_value(answer.clone())?;
    if json {
        print_json(&answer)?;
    } else {
        let mut out = std::io::stdout();
        for line in named.rules.iter().filter(|_| dry_run).chain(&named.done) {
            writeln!(out, "{line}")?;
        }
    }
    let conflicts: Vec<String> =
        named.conflicts.iter().map(|one| format!("{}:{}: {}: {}", one.file, one.line, one.why, one.rule)).collect();
    if conflicts.is_empty() { Ok(()) } else { Err(Failure::Failed(conflicts.join("; "))) }
}

fn plan(file: PathBuf, common: Option<PathBuf>, json: bool) -> Result<(), Failure> {
    let plan = plan_of(Path::new("/"), &PlanOf { file, common }).map_err(|error| Failure::Failed(error.message))?;
    if json {
        print_json(&serde_json::to_value(&plan)?)?;
    } else {
        print(&plan)?;
    }
    let refused = plan.items.iter().filter(|item| item.standing == Standing::Refused).count();
    let errors = plan.problems.iter().filter(|problem| problem.level == Level::Error).count();
    match refused + errors {
        0 => Ok(()),
        _ => {
            let (cards, are) = if refused == 1 { ("card", "is") } else { ("cards", "are") };
            let of_files = if errors == 1 { "error" } else { "errors" };
            Err(Failure::Failed(format!("{refused} {cards} {are} refused, and the files have {errors} {of_files}")))
        }
    }
}

fn problems(problems: &[Problem]) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    for problem in problems {
        let place = match (&problem.file, problem.line) {
            (Some(file), Some(line)) => format!("{file}:{line}: "),
            (Some(file), None) => format!("{file}: "),
            _ => String::new(),
        };
        writeln!(out, "{}: {place}{}: {}", word(&problem.level), problem.message, problem.remedy)?;
    }
    Ok(())
}

fn print(plan: &Plan) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    writeln!(out, "read {}", plan.files.join(", "))?;
    problems(&plan.problems)?;
    if plan.items.is_empty() {
        return Ok(writeln!(out, "no card is asked for: sriov_nics and ovs_offload_nics are empty")?);
    }
    let mut table = Table::new(&["INTERFACE", "ADDRESS", "FOR", "BOND", "BRIDGE", "WIRE", "VFS", "STANDING"]);
    let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    for item in &plan.items {
        let kind = match item.kind {
            Kind::Sriov => "sriov",
            Kind::OvsOffload => "offload",
            Kind::VfLag => "vf-lag",
        };
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
