//! The command line: the words of the control API, with tables for people and JSON for programs.
//!
//! Exit codes: 0 done, 1 refused or failed, 2 usage, 3 the daemon cannot be reached.

#[cfg(test)]
pub(crate) mod advice;
mod attach;
mod bond;
mod client;
mod device;
mod doctor;
mod events;
mod firmware;
mod flow;
mod flows;
mod host;
mod kernel_flows;
mod nic;
mod options;
mod ovs;
mod port;
mod table;
mod terminal;
mod vdpa;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use serde_json::{Value, json};

use crate::control::{Job, JobState};
use crate::lanes::LaneView;
use client::Client;
use options::{Command, Flow, Job as JobCommand, Lane, Options};
use table::Table;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The daemon refused, or something here failed.
    #[error("{0}")]
    Failed(String),
    /// The command line is wrong in a way that its grammar does not say.
    #[error("{0}")]
    Usage(String),
    /// The daemon cannot be reached.
    #[error("{0}")]
    Unreachable(String),
    /// Whoever reads our output has enough.
    #[error("nobody reads the output")]
    OutputClosed,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(format!("{error:#}"))
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Failed(format!("the daemon answered something else: {error}: is it of another version?"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let options = Options::parse();
    match run(options) {
        Ok(()) | Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("ringspan: {failure}");
            ExitCode::from(match failure {
                Failure::Usage(_) => 2,
                Failure::Unreachable(_) => 3,
                _ => 1,
            })
        }
    }
}

fn run(options: Options) -> Result<(), Failure> {
    let control = options.control(std::env::var_os("RINGSPAN_CONTROL"));
    let client = || Client::connect(&control);
    match options.command {
        Command::Serve { config } => Ok(crate::serve::serve(&config)?),
        Command::Stop { lanes } => stop(client()?, lanes),
        Command::Reload { no_wait } => {
            let job = client()?.call("config.reload", json!({ "wait": !no_wait }))?;
            report(serde_json::from_value(job)?)
        }
        Command::Port(command) => port::run(client()?, command),
        Command::Lane(Lane::List { json }) => {
            let lanes = client()?.call("lane.list", json!({}))?;
            if json { print_json(&lanes) } else { print_lanes(&serde_json::from_value::<Vec<LaneView>>(lanes)?) }
        }
        Command::Lane(Lane::Restart { name, no_wait }) => {
            let job = client()?.call("lane.restart", json!({ "name": name, "wait": !no_wait }))?;
            report(serde_json::from_value(job)?)
        }
        Command::Attachment(command) => attach::run(client()?, command),
        Command::Nic(command) => nic::run(client()?, command),
        Command::Device(command) => device::run(client()?, command),
        Command::Pf(command) => device::run_pf(client()?, command),
        Command::Vf(command) => device::run_vf(client()?, command),
        Command::Eswitch(command) => device::run_eswitch(client()?, command),
        Command::Bond(command) => bond::run(client()?, command),
        Command::Firmware(command) => firmware::run(client()?, command),
        Command::Vdpa(command) => vdpa::run(client()?, command),
        Command::Ovs(command) => ovs::run(client()?, command),
        Command::Job(command) => job(client()?, command),
        Command::Host(command) => host::run(&control, command),
        Command::Doctor(wish) => doctor::run(&control, &wish),
        Command::Flow(Flow::List(wish)) => flows::list(client()?, &wish),
        Command::Flow(Flow::Watch(wish)) => flows::watch(client()?, &wish),
        Command::Flow(Flow::Stats(output)) => flows::stats(client()?, output.json),
        Command::Flow(Flow::Parse { file, json }) => flow::parse(&file, json),
        Command::Flow(Flow::Dump { datapath, follow, json }) => kernel_flows::dump(&datapath, follow, json),
        Command::Call { method, params } => {
            let params = match params {
                Some(text) => serde_json::from_str(&text)
                    .map_err(|error| Failure::Usage(format!("the parameters are not JSON: {error}")))?,
                None => json!({}),
            };
            print_json(&client()?.call(&method, params)?)
        }
        Command::Events { after, follow, json } => events::run(client()?, after, follow, json),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Options::command(), "ringspan", &mut std::io::stdout());
            Ok(())
        }
        Command::Man { folder } => man(&folder),
    }
}

fn stop(mut client: Client, lanes: bool) -> Result<(), Failure> {
    client.call("daemon.stop", json!({ "lanes": lanes }))?;
    client.wait_for_end();
    Ok(())
}

fn job(mut client: Client, command: JobCommand) -> Result<(), Failure> {
    match command {
        JobCommand::List { json } => {
            let jobs = client.call("job.list", json!({}))?;
            if json {
                return print_json(&jobs);
            }
            let mut table = Table::new(&["ID", "METHOD", "ITEM", "STATE", "OUTCOME"]);
            for job in serde_json::from_value::<Vec<Job>>(jobs)? {
                let outcome = job.error.map_or_else(|| job.outcome.join("; "), |error| error.message);
                let item = job.item.unwrap_or_else(|| "-".into());
                table.row([job.id.to_string(), job.method, item, word(&job.state), outcome]);
            }
            table.print()
        }
        JobCommand::Get { id, json } => {
            let job = client.call("job.get", json!({ "id": id }))?;
            if json { print_json(&job) } else { report(serde_json::from_value(job)?) }
        }
        JobCommand::Wait { id, timeout, json } => {
            let answer = client.call("job.wait", json!({ "id": id, "timeout_ms": (timeout * 1000.0) as u64 }))?;
            let job: Job = serde_json::from_value(answer.clone())?;
            if job.state == JobState::Running {
                return Err(Failure::Failed(format!("job {id} is still running after {timeout} s")));
            }
            if json { print_json(&answer) } else { report(job) }
        }
        JobCommand::Cancel { id } => report(serde_json::from_value(client.call("job.cancel", json!({ "id": id }))?)?),
    }
}

/// A job's outcome, as output and exit code.
fn report(job: Job) -> Result<(), Failure> {
    match job.state {
        JobState::Running => writeln!(std::io::stdout(), "job {} is running: ringspan job wait {0}", job.id)?,
        JobState::Done => {
            for line in &job.outcome {
                writeln!(std::io::stdout(), "{line}")?;
            }
        }
        JobState::Failed => {
            let message = job.error.map_or_else(|| "failed".into(), |error| error.message);
            return Err(Failure::Failed(message));
        }
        JobState::Cancelled => return Err(Failure::Failed(format!("job {} was cancelled", job.id))),
    }
    Ok(())
}

fn print_lanes(lanes: &[LaneView]) -> Result<(), Failure> {
    let mut table =
        Table::new(&["LANE", "PHASE", "PID", "CORES", "BUSY", "MEMORY", "PORTS", "DEATHS", "VERSION", "NOTE"]);
    for lane in lanes {
        let info = lane.info.as_ref();
        let cores = info.map(|info| info.cores.iter().map(u16::to_string).collect::<Vec<_>>().join(","));
        let busy = lane.load.as_ref().map(|load| {
            load.workers.iter().map(|worker| format!("{}%", worker.busy_percent)).collect::<Vec<_>>().join(",")
        });
        let memory = info.map(|info| {
            let pages = if info.huge_pages { " huge" } else { "" };
            format!("{} MiB{pages}", info.memory_mib)
        });
        let version = info.map(|info| format!("{} ({})", info.version, info.dpdk));
        let dash = || "-".to_owned();
        table.row([
            lane.name.to_string(),
            word(&lane.phase),
            if lane.pid == 0 { dash() } else { lane.pid.to_string() },
            cores.unwrap_or_else(dash),
            busy.unwrap_or_else(dash),
            memory.unwrap_or_else(dash),
            lane.ports.to_string(),
            lane.deaths.to_string(),
            version.unwrap_or_else(dash),
            lane.reason.clone().unwrap_or_default(),
        ]);
    }
    table.print()
}

/// The word an enum has in JSON.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => "?".into(),
    }
}

fn print_json(value: &Value) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{value:#}")?)
}

/// Writes a manual page for the command and each of its parts.
fn man(folder: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(Options::command(), folder)?;
    Ok(())
}
