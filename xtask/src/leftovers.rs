//! What a test run leaves behind when it is ended from outside: lanes outlive the daemon that a test has started, as they should.
//!
//! All that a run starts has a mark in its environment. What has it and still runs when the run is over is killed, also what a run left that was killed
//! itself. Network namespaces of tests have the id of the test's process in their names: those whose process is gone, and in which none is, are removed.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use ringspan_testkit::{netns, process, wait};

/// In the environment of all that a run starts: its process, and when that began.
const MARK: &str = "RINGSPAN_TEST_RUN";

/// When a process began, in the kernel's ticks since the boot: with its id it is one process for ever.
fn began(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the time is the 20th field after it (proc(5)).
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The mark of one command of this run, and of all that it starts.
pub struct Mark(String);

impl Mark {
    /// Marks a command, and has it end with this process.
    pub fn put(command: &mut Command) -> Self {
        use std::os::unix::process::CommandExt;
        static COMMANDS: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        let number = COMMANDS.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{pid}-{}-{number}", began(pid).unwrap_or_default());
        command.env(MARK, &mark);
        // SAFETY: prctl is safe between fork and exec.
        unsafe { command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGTERM)?)) };
        Self(mark)
    }

    /// Ends what the command has started and still runs. Returns how many processes that were.
    pub fn sweep(&self) -> usize {
        let killed = kill(|mark| mark == self.0);
        namespaces_of_the_dead();
        killed
    }
}

/// Processes with a mark, each with that.
fn marked() -> Vec<(u32, String)> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mark_of = |pid: u32| {
        let all = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let own = all.split(|byte| *byte == 0).find_map(|one| one.strip_prefix(format!("{MARK}=").as_bytes()))?;
        Some((pid, String::from_utf8_lossy(own).into_owned()))
    };
    pids.filter_map(mark_of).collect()
}

fn kill(which: impl Fn(&str) -> bool) -> usize {
    let left: Vec<u32> = marked().into_iter().filter(|(_, mark)| which(mark)).map(|(pid, _)| pid).collect();
    for pid in &left {
        println!("    left behind: {} ({pid}), which is ended", process::name(*pid).unwrap_or_default());
        // It may have ended by itself.
        let _ = process::signal(*pid, Signal::SIGKILL);
    }
    // Their namespaces are removed next, if nothing runs in them. What does not end soon is left to the next run.
    let ended = || Ok(left.iter().all(|pid| !process::alive(*pid)).then_some(()));
    let _ = wait::until(Duration::from_secs(5), "the end of what was left behind", ended);
    left.len()
}

/// Removes network namespaces whose makers are gone.
fn namespaces_of_the_dead() {
    for name in netns::remove_of_the_dead() {
        println!("    left behind: network namespace {name}, which is removed");
    }
}

/// Ends what runs have left that are gone, and removes their namespaces.
pub fn of_the_dead() -> usize {
    let killed = ended_of_the_dead();
    namespaces_of_the_dead();
    killed
}

fn ended_of_the_dead() -> usize {
    kill(|mark| {
        let mut numbers = mark.split('-').map(|number| number.parse::<u64>().ok());
        let (Some(Some(pid)), Some(Some(time))) = (numbers.next(), numbers.next()) else { return false };
        u32::try_from(pid).is_ok_and(|pid| began(pid) != Some(time))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_ends_takes_with_it_what_it_left() {
        let mut command = Command::new("sh");
        command.args(["-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!"]);
        let mark = Mark::put(&mut command);
        let output = command.output().unwrap();
        let pid: u32 = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap();
        wait::until(Duration::from_secs(20), "it to be marked", || Ok((mark.sweep() > 0).then_some(()))).unwrap();
        wait::until(Duration::from_secs(20), "its end", || Ok((!process::alive(pid)).then_some(()))).unwrap();
    }

    #[test]
    fn what_outlives_who_started_it_is_found_by_its_mark_and_ended() {
        // This process lives, and did not begin with the machine: it is another one's mark.
        let dead = format!("{}-1-0", std::process::id());
        // As a lane does it: in a session of its own, and its parent is gone.
        let script = "setsid sleep 600 >/dev/null 2>&1 & echo $!";
        let mut command = Command::new("sh");
        let started = command.args(["-c", script]).env(MARK, dead).output().unwrap();
        let pid: u32 = String::from_utf8_lossy(&started.stdout).trim().parse().unwrap();
        let still = || process::alive(pid);
        assert!(still());
        // Between its fork and its exec it has no environment that could be read.
        wait::until(Duration::from_secs(20), "it to be marked", || Ok((of_the_dead() > 0).then_some(()))).unwrap();
        let ended = wait::until(Duration::from_secs(20), "its end", || Ok((!still()).then_some(())));
        ended.unwrap();
        assert!(marked().iter().all(|(one, _)| *one != pid));
    }
}
