//! `ringspan doctor`: without a daemon, on another host's files, and by a daemon.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::Bench;

fn doctor(options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringspan"));
    command.arg("doctor").args(options).env("RINGSPAN_CONTROL", "/nonexistent/control.sock");
    command.output().unwrap()
}

/// A host whose kernel log has a failure in it.
fn broken_host(folder: &Path) {
    for (file, text) in [
        ("proc/cmdline", "quiet\n"),
        ("etc/os-release", "ID=debian\nPRETTY_NAME=\"Debian 12\"\n"),
        ("etc/default/grub", "GRUB_CMDLINE_LINUX=\"\"\n"),
    ] {
        fs::create_dir_all(folder.join(file).parent().unwrap()).unwrap();
        fs::write(folder.join(file), text).unwrap();
    }
    fs::write(folder.join("log"), "[1.0] ixgbe 0000:81:00.0: not enough MMIO resources for SR-IOV\n").unwrap();
}

#[test]
fn a_host_that_fails_has_exit_code_1_the_cause_and_what_mends_it() {
    let folder = tempfile::tempdir().unwrap();
    broken_host(folder.path());
    let (root, log) = (folder.path().to_str().unwrap().to_owned(), folder.path().join("log"));
    let log = log.to_str().unwrap();
    let output = doctor(&["--root", &root, "--kernel-log", log, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["host"]["distribution"], "Debian 12");
    let findings = report["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["check"] == "kernel-log").unwrap();
    assert_eq!((found["state"].as_str(), found["item"].as_str()), (Some("fail"), Some("0000:81:00.0")));
    assert!(found["remedy"][0].as_str().unwrap().contains("pci=realloc"), "{found}");
    let output = doctor(&["--root", &root, "--kernel-log", log, "--quiet"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("$ update-grub") && !text.contains('\x1b') && !text.contains("pass  "), "{text}");
}

#[test]
fn a_folder_that_is_no_host_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output = doctor(&["--root", folder.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("neither proc nor sys"));
}

#[test]
fn a_kernel_log_that_cannot_be_read_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    broken_host(folder.path());
    let root = folder.path().to_str().unwrap();
    for (log, why) in [("/no/such/log", "not there"), (root, "Is a directory")] {
        let output = doctor(&["--root", root, "--kernel-log", log, "--json"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with(&format!("ringspan: --kernel-log {log}: {why}")), "{said}");
        assert!(said.contains("journalctl -k -b >") && output.stdout.is_empty(), "{said}");
    }
}

#[test]
fn the_daemon_is_asked_while_it_runs_and_a_bundle_has_its_side_too() {
    let bench = Bench::start("");
    // Whatever this machine has or lacks: the report is whole, and the exit code follows it.
    let output = bench.run("doctor --json");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(i32::from(report["state"] == "fail")));
    assert!(report["findings"].as_array().unwrap().len() > 20);
    let asked = bench.json("call doctor.run");
    assert_eq!(asked["host"], report["host"]);
    bench.run("doctor --bundle {dir}/bundle.tar.gz");
    let listed = Command::new("tar").arg("-tzf").arg(bench.path("bundle.tar.gz")).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for name in ["report.json", "files/proc/cmdline", "daemon/version.get.json", "daemon/port.list.json"] {
        assert!(listed.contains(name), "{name} is not in the bundle:\n{listed}");
    }
}

#[test]
fn checks_are_listed() {
    let text = String::from_utf8(doctor(&["--list"]).stdout).unwrap();
    assert!(text.starts_with("CHECK") && text.contains("iommu-isolation"), "{text}");
}
