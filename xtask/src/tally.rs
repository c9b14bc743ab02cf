//! Counts of tests: read from what `cargo test` prints while it is passed on.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use ringspan_testkit::{process, wait};

use crate::step;

/// What became of the tests so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Ran to a good end.
    pub passed: u32,
    /// Ran to a bad end, or were cut off.
    pub failed: u32,
    /// Could not run here.
    pub skipped: u32,
    /// Names of the failed ones, each with the step it was in.
    pub failures: Vec<String>,
}

impl Tally {
    /// Runs a command that ends in `cargo test`, prints what it prints and counts. `what` names the step.
    pub fn run(&mut self, what: &str, command: &mut Command) -> Result<()> {
        step::say(what);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", step::shown(command)))?;
        let output = child.stdout.take().context("the output is piped")?;
        let before = self.failed;
        let mut listing = false;
        let ended = AtomicBool::new(false);
        let stopped = std::thread::scope(|scope| -> Result<bool> {
            let watch = scope.spawn(|| stop_with_us(child.id(), &ended));
            let read = BufReader::new(output).split(b'\n').try_for_each(|line| {
                let line = String::from_utf8_lossy(&line?).into_owned();
                println!("{line}");
                self.read(&line, what, &mut listing);
                std::io::stdout().flush()
            });
            ended.store(true, Ordering::Relaxed);
            read?;
            Ok(watch.join().unwrap_or(false))
        })?;
        let status = child.wait()?;
        if stopped {
            return Err(wait::Stopped.into());
        }
        if !status.success() && self.failed == before {
            self.failed += 1;
            self.failures.push(format!("{what}: the command ended with {status}, and named no failed test"));
        }
        Ok(())
    }

    /// Adds checks that are no tests of libtest's: how many passed, or why one did not.
    pub fn note(&mut self, what: &str, outcome: Result<u32>) -> Result<()> {
        match outcome {
            Ok(passed) => self.passed += passed,
            Err(error) if error.chain().any(|cause| cause.is::<wait::Stopped>()) => return Err(error),
            Err(error) => {
                println!("{what}: {error:#}");
                self.failed += 1;
                self.failures.push(what.into());
            }
        }
        Ok(())
    }

    /// Reads one line of libtest's. Names of failed tests stand indented below a second heading `failures:`.
    fn read(&mut self, line: &str, what: &str, listing: &mut bool) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            *listing = false;
            let count = |word: &str| -> u32 {
                let part = counts.split([';', '.']).find(|part| part.trim_end().ends_with(word));
                part.and_then(|part| part.trim().split(' ').next()?.parse().ok()).unwrap_or(0)
            };
            self.passed += count(" passed");
            self.failed += count(" failed");
            self.skipped += count(" ignored");
        } else if line == "failures:" {
            *listing = true;
        } else if *listing && line.starts_with("    ") && !line.trim().contains(' ') {
            self.failures.push(format!("{what}: {}", line.trim()));
        }
    }

    /// Takes the tests that recorded themselves as skipped out of the passed ones, and prints them.
    pub fn settle_skipped(&mut self, record: &Path) {
        let lines = std::fs::read_to_string(record).unwrap_or_default();
        for line in lines.lines() {
            println!("skipped: {line}");
            self.passed = self.passed.saturating_sub(1);
            self.skipped += 1;
        }
    }
}

/// Passes a signal to stop on to the command, which has a process group of its own and does not see Ctrl-C. Whether one came.
fn stop_with_us(pid: u32, ended: &AtomicBool) -> bool {
    while !ended.load(Ordering::Relaxed) {
        if wait::check_stopped().is_err() {
            let _ = process::signal(pid, Signal::SIGTERM);
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_libtest_are_added_up_and_failures_named_once() {
        let mut tally = Tally::default();
        let mut listing = false;
        let output = "running 3 tests\n\nfailures:\n\n---- a::b stdout ----\n    some text\n\nfailures:\n    a::b\n\n\
            test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
            test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        output.lines().for_each(|line| tally.read(line, "unit", &mut listing));
        let failures = vec!["unit: a::b".to_string()];
        assert_eq!(tally, Tally { passed: 13, failed: 1, skipped: 1, failures });
    }
}
