//! Other processes, by their id.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// A program, or another that runs it: the words in front of it on the command line.
pub fn under(runner: &[String], program: &Path) -> Command {
    match runner {
        [] => Command::new(program),
        [first, words @ ..] => {
            let mut command = Command::new(first);
            command.args(words).arg(program);
            command
        }
    }
}

/// Whether a process of this id runs (one that ended and was not waited for does not).
pub fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state letter comes after the name, which is in parentheses and may have any character in it.
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// The name of the program that runs under this id, as the kernel keeps it (15 letters).
pub fn name(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_string())
}

/// Sends a signal.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(pid as i32), signal).with_context(|| format!("cannot send {signal} to process {pid}"))
}

/// Kills a process at once and waits until it is gone.
pub fn kill_hard(pid: u32) -> Result<()> {
    signal(pid, Signal::SIGKILL)?;
    wait::until(Duration::from_secs(10), &format!("the end of process {pid}"), || Ok((!alive(pid)).then_some(())))
}

/// Whether something listens on the unix socket at this path, in the network namespace of this process: asked of the
/// kernel, since connecting would disturb.
pub fn listens(pid: u32, path: &Path) -> bool {
    // Num RefCount Protocol Flags Type St Inode Path; flag 0x10000 is __SO_ACCEPTCON.
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap_or_default();
    sockets.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(3) == Some(&"00010000") && words.get(7).is_some_and(|word| Path::new(word) == path)
    })
}

/// Kills the QEMU whose process id is in this file, if it still runs.
pub(crate) fn kill_from_pidfile(path: &Path) {
    let Ok(text) = fs::read_to_string(path) else { return };
    let Ok(pid) = text.trim().parse() else { return };
    if name(pid).is_some_and(|name| name.starts_with("qemu-system")) {
        let _ = kill_hard(pid);
    }
}
