//! Steps: commands that are shown before they run, and the release build that everything uses.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use ringspan_testkit::paths;

/// Says what comes next.
pub fn say(text: &str) {
    println!("==> {text}");
    let _ = std::io::stdout().flush();
}

/// A cargo command in the checkout, by the cargo that runs this program.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments).current_dir(paths::checkout());
    cargo
}

/// Runs a command with its output on ours; a bad exit is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    let status = command.stdin(std::process::Stdio::null()).status();
    let status = status.with_context(|| format!("cannot start {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

/// A command as one would type it.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// The folder that cargo builds into.
pub fn target_folder() -> Result<PathBuf> {
    let output = cargo(&["metadata", "--format-version", "1", "--no-deps", "--offline"]).output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo metadata gave no JSON")?;
    let folder = metadata["target_directory"].as_str().context("cargo metadata names no target directory")?;
    Ok(folder.into())
}

/// Builds the daemon and the lane in release and returns the folder they are in.
pub fn build_release() -> Result<PathBuf> {
    say("building ringspan and ringspan-lane in release");
    let start = Instant::now();
    run(&mut cargo(&[
        "build",
        "--release",
        "--package",
        "ringspan",
        "--package",
        "ringspan-dataplane",
        "--bins",
        "--example",
        "rte_flow",
    ]))?;
    println!("    built in {} s", start.elapsed().as_secs());
    Ok(target_folder()?.join("release"))
}
