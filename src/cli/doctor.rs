//! `ringspan doctor`: by the daemon, which may look everywhere, or by this process when there is none.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::client::Client;
use super::table::Table;
use super::{Failure, print_json};
use crate::config::DEFAULT_FILE;
use crate::host::doctor::{
    CHECKS, FilesOnly, Finding, Group, Host, Machine, Report, State, Unseen, bundle, examine, is_vdpa,
};
use crate::ovs::client::Place;
use crate::ovs::verify::Own;

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Show only what does not pass.
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// Also write a diagnostics bundle (tar.gz): the report and all that was read, without secrets.
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// List the checks, and what each finds out.
    #[arg(long)]
    list: bool,
    /// Look from this process, even though the daemon runs.
    #[arg(long)]
    local: bool,
    /// Look at a copy of another host's files: the folder that has its proc, sys and etc.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Read the kernel log from a file, as `dmesg` or `journalctl -k` wrote it.
    #[arg(long, value_name = "FILE")]
    kernel_log: Option<PathBuf>,
    /// The daemon's configuration file: where this process, if it looks itself, finds out where Open vSwitch runs [default: /etc/ringspan.toml].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(control: &Path, wish: &Doctor) -> Result<(), Failure> {
    if wish.list {
        return list();
    }
    let elsewhere = wish.root.is_some() || wish.kernel_log.is_some();
    let mut daemon = if elsewhere || wish.local { None } else { Client::connect(control).ok() };
    // An older daemon has no such method: then this process looks.
    let asked = match &mut daemon {
        Some(client) if wish.bundle.is_none() => client.call("doctor.run", json!({})).ok(),
        _ => None,
    };
    let report = match asked.and_then(|answer| serde_json::from_value(answer).ok()) {
        Some(report) => report,
        None => look(wish, daemon.as_mut())?,
    };
    if wish.json {
        print_json(&serde_json::to_value(&report)?)?;
    } else {
        let out = std::io::stdout();
        let coloured = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        out.lock().write_all(page(&report, wish.quiet, coloured).as_bytes())?;
        if let Some(path) = &wish.bundle {
            writeln!(std::io::stdout(), "wrote {}: read it before you hand it on", path.display())?;
        }
    }
    match report.state {
        State::Fail => Err(Failure::Failed(report.summary)),
        _ => Ok(()),
    }
}

fn list() -> Result<(), Failure> {
    let mut table = Table::new(&["CHECK", "GROUP", "WHAT IT FINDS OUT"]);
    for check in CHECKS {
        table.row([check.name.to_owned(), super::word(&check.group), check.about.replace('`', "")]);
    }
    table.print()
}

/// The configuration file as a table. What is wrong with its values is not asked here: the doctor looks whatever they say.
fn config(named: Option<&Path>) -> Result<toml::Table, Failure> {
    let path = named.unwrap_or(Path::new(DEFAULT_FILE));
    let failed = |why: String| match named {
        Some(_) => Err(Failure::Failed(format!("{}: {why}", path.display()))),
        None => Ok(toml::Table::new()),
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return failed(error.to_string()),
    };
    text.parse().or_else(|error: toml::de::Error| failed(error.message().to_owned()))
}

/// `ovs.run_dir`.
fn ovs_run_dir(config: &toml::Table) -> Option<PathBuf> {
    config.get("ovs").and_then(|ovs| ovs.get("run_dir")?.as_str()).map(PathBuf::from)
}

/// The ports on vDPA devices.
fn vdpa_ports(config: &toml::Table) -> Vec<(String, String)> {
    let ports = config.get("port").and_then(toml::Value::as_array).into_iter().flatten();
    let texts = ports.filter_map(|port| Some((port.get("name")?.as_str()?, port.get("device")?.as_str()?)));
    texts.filter(|(_, device)| is_vdpa(device)).map(|(name, device)| (name.into(), device.into())).collect()
}

/// The checks, by this process.
fn look(wish: &Doctor, daemon: Option<&mut Client>) -> Result<Report, Failure> {
    let host = match &wish.root {
        Some(root) => {
            if !root.join("proc").is_dir() && !root.join("sys").is_dir() {
                let message = format!(
                    "{} has neither proc nor sys: name the folder that a host's files were copied to",
                    root.display()
                );
                return Err(Failure::Failed(message));
            }
            Host::new(root, wish.kernel_log.clone(), Box::new(FilesOnly))
        }
        None => {
            let config = config(wish.config.as_deref())?;
            let place = Place::new(ovs_run_dir(&config).as_deref());
            let machine = Machine::new(place, Own::default()).with_vdpa_ports(vdpa_ports(&config));
            Host::new(Path::new("/"), wish.kernel_log.clone(), Box::new(machine))
        }
    };
    if let Some(file) = &wish.kernel_log {
        check_log(file, host.kernel_log().as_ref().err())?;
    }
    let report = examine(&host);
    if let Some(path) = &wish.bundle {
        let mut more = Vec::new();
        if let Some(client) = daemon {
            for method in [
                "version.get",
                "port.list",
                "lane.list",
                "nic.list",
                "job.list",
                "ovs.show",
                "flow.stats",
                "doctor.run",
            ] {
                let answer =
                    client.call(method, json!({})).unwrap_or_else(|error| json!({ "error": error.to_string() }));
                more.push((format!("daemon/{method}.json"), serde_json::to_vec_pretty(&answer)?));
            }
        }
        bundle::write(path, &host, &report, &more)
            .map_err(|error| Failure::Failed(format!("the bundle {} cannot be written: {error}", path.display())))?;
    }
    Ok(report)
}

/// Refuses a kernel log that was named and cannot be read.
fn check_log(file: &Path, why: Option<&Unseen>) -> Result<(), Failure> {
    let Some(why) = why else { return Ok(()) };
    let file = file.display();
    let remedy = match why {
        Unseen::Denied => "let this user read it, or use sudo",
        _ => "name a file that dmesg or journalctl wrote, as: journalctl -k -b > /tmp/kernel.log",
    };
    Err(Failure::Failed(format!("--kernel-log {file}: {why}: {remedy}")))
}

/// The report for a person.
fn page(report: &Report, quiet: bool, coloured: bool) -> String {
    let mut page = String::new();
    let shown = |finding: &&Finding| !quiet || finding.state != State::Pass;
    let about = &report.host;
    let who = if about.privileged { "" } else { ", not as root: some checks cannot look" };
    let _ = writeln!(page, "{}, kernel {}{who}", about.distribution, about.kernel);
    let width = report.findings.iter().filter(shown).map(|finding| finding.check.len()).max().unwrap_or(0);
    for group in Group::ALL {
        let findings: Vec<&Finding> =
            report.findings.iter().filter(|finding| finding.group == group).filter(shown).collect();
        if findings.is_empty() {
            continue;
        }
        let _ = writeln!(page, "\n{}", paint(group.title(), "1", coloured));
        for finding in findings {
            let item = finding.item.as_ref().map(|item| format!("{item}: ")).unwrap_or_default();
            let (word, colour) = word(finding.state);
            let state = paint(&format!("{word:<7}"), colour, coloured);
            let _ = writeln!(page, "  {state}  {:<width$}  {item}{}", finding.check, finding.message);
            if finding.state == State::Pass {
                continue;
            }
            let indent = " ".repeat(width + 13);
            for line in &finding.evidence {
                let _ = writeln!(page, "{indent}{}", paint(line, "2", coloured));
            }
            for line in &finding.remedy {
                let sign = if line.starts_with('#') { "" } else { "$ " };
                let _ = writeln!(page, "{indent}{}", paint(&format!("{sign}{line}"), "36", coloured));
            }
        }
    }
    let _ = writeln!(page, "\n{}", paint(&report.summary, word(report.state).1, coloured));
    page
}

fn word(state: State) -> (&'static str, &'static str) {
    match state {
        State::Pass => ("pass", "32"),
        State::Unknown => ("unknown", "35"),
        State::Warn => ("warn", "33"),
        State::Fail => ("FAIL", "31"),
    }
}

/// With the colour of that number (ECMA-48, 8.3.117).
fn paint(text: &str, colour: &str, coloured: bool) -> String {
    if coloured { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::doctor::About;

    #[test]
    fn where_ovs_runs_is_read_whatever_else_the_configuration_says() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ringspan.toml");
        let text = |error: Failure| format!("{error:?}");
        let read = || config(Some(&file));
        assert!(text(read().unwrap_err()).contains("No such file"));
        std::fs::write(&file, "[ovs]\nrun_dir = \"/srv/ovs\"\n[unknown]\n").unwrap();
        assert_eq!(ovs_run_dir(&read().unwrap()), Some(PathBuf::from("/srv/ovs")));
        let ports = "[control]\n[[port]]\nname = \"a\"\ndevice = \"vdpa:0a:00.2\"\n[[port]]\nname = \"b\"\ndevice = \"pci:0a:00.3\"\n";
        std::fs::write(&file, ports).unwrap();
        assert_eq!(ovs_run_dir(&read().unwrap()), None);
        assert_eq!(vdpa_ports(&read().unwrap()), [("a".to_owned(), "vdpa:0a:00.2".to_owned())]);
        std::fs::write(&file, "[ovs\n").unwrap();
        assert!(text(read().unwrap_err()).contains("ringspan.toml"));
    }

    #[test]
    fn what_fails_is_shown_with_its_remedy_and_without_colours_outside_of_a_terminal() {
        let finding = |check: &str, state, remedy: &[&str]| Finding {
            check: check.into(),
            group: Group::Platform,
            item: None,
            state,
            message: "so it is".into(),
            evidence: vec!["/proc/cmdline: quiet".into()],
            remedy: remedy.iter().map(|line| (*line).to_owned()).collect(),
        };
        let host = About { distribution: "Debian".into(), kernel: "6.1".into(), privileged: false };
        let findings = vec![
            finding("iommu", State::Fail, &["# in the firmware's set-up", "reboot"]),
            finding("kernel-log", State::Pass, &[]),
        ];
        let report = Report { state: State::Fail, summary: "1 failed".into(), host, findings };
        let expected = "Debian, kernel 6.1, not as root: some checks cannot look\n\nPlatform\n  FAIL     iommu       so it is\n                       /proc/cmdline: quiet\n                       # in the firmware's set-up\n                       $ reboot\n  pass     kernel-log  so it is\n\n1 failed\n";
        assert_eq!(page(&report, false, false), expected);
        assert!(!page(&report, true, false).contains("kernel-log"));
        assert!(page(&report, false, true).contains("\x1b[31mFAIL"));
    }
}
