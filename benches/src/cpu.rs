//! What a process's threads used of the processor: on a machine that has other work, too, that says more than time on a clock.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

/// Seconds of processor time of a process's threads by their names, those of one name together (proc(5), `schedstat`: nanoseconds).
///
/// # Errors
/// There is no such process.
pub fn threads(pid: u32) -> Result<BTreeMap<String, f64>> {
    let mut all = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        // A thread that ended meanwhile has nothing to tell.
        let Ok(name) = fs::read_to_string(task.path().join("comm")) else { continue };
        let Ok(told) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        let used: f64 = told.split_whitespace().next().context("schedstat")?.parse()?;
        *all.entry(name.trim().to_owned()).or_default() += used / 1e9;
    }
    Ok(all)
}

/// What they have used since.
///
/// # Errors
/// There is no such process any more.
pub fn since(before: &BTreeMap<String, f64>, pid: u32) -> Result<BTreeMap<String, f64>> {
    let used = |(name, now): (String, f64)| (name.clone(), now - before.get(&name).copied().unwrap_or(0.0));
    Ok(threads(pid)?.into_iter().map(used).collect())
}

/// Seconds of the threads whose names begin so.
///
/// # Errors
/// There is no such process, or no such thread.
pub fn of(pid: u32, name: &str) -> Result<f64> {
    let all = threads(pid)?;
    let those: Vec<f64> = all.iter().filter(|(of, _)| of.starts_with(name)).map(|(_, used)| *used).collect();
    anyhow::ensure!(!those.is_empty(), "process {pid} has no thread {name}: {all:?}");
    Ok(those.into_iter().sum())
}
