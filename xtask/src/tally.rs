//! Counts of tests: read from what `cargo test` prints while it is passed on.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use ringspan_testkit::{process, wait};

use crate::leftovers::Mark;
use crate::step;

/// Most failed tests of one step that are run once more; of more than these something is broken, and running it again tells nothing.
const MOST_AGAIN: usize = 8;
/// Most lines of what a failed test printed that are shown once more at the end: the reason stands in the first.
const MOST_LINES: usize = 40;

/// How long what was stopped may tidy up: as long as `timeout` lets it.
const TIDYING: Duration = Duration::from_secs(12);

/// A test that failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failed {
    /// The step it was in, and its name.
    pub test: String,
    /// What it printed.
    pub output: Vec<String>,
}

impl Failed {
    fn of(what: &str, name: impl std::fmt::Display) -> Self {
        Self { test: format!("{what}: {name}"), output: Vec::new() }
    }

    /// The test's name as libtest knows it, if it can be asked for by name.
    fn name(&self, what: &str) -> Option<String> {
        let name = self.test.strip_prefix(what)?.strip_prefix(": ")?;
        (!name.contains(' ')).then(|| name.to_owned())
    }

    fn print(&self, word: &str) {
        println!("{word} {}", self.test);
        self.output.iter().take(MOST_LINES).for_each(|line| println!("    {line}"));
    }
}

/// What became of the tests so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Ran to a good end.
    pub passed: u32,
    /// Ran to a bad end, or were cut off.
    pub failed: u32,
    /// Could not run here.
    pub skipped: u32,
    /// The failed ones.
    pub failures: Vec<Failed>,
    /// Those that failed beside others and passed when they ran again by themselves; they count as passed, and want mending.
    pub unsteady: Vec<Failed>,
    /// Test programs that have begun and have not said their result yet.
    open: u32,
}

impl Tally {
    /// Runs a command that ends in `cargo test`, prints what it prints and counts. `what` names the step; `command` makes the command,
    /// given the arguments of libtest's that choose tests by name, none the first time. A few tests that fail are run once more by
    /// themselves: what passes then fell victim to a busy machine, and is reported as unsteady.
    pub fn run(&mut self, what: &str, command: impl Fn(&[String]) -> Command) -> Result<()> {
        let mut step = Self::default();
        step.once(what, &mut command(&[]))?;
        let names: Vec<String> = step.failures.iter().filter_map(|failed| failed.name(what)).collect();
        if (1..=MOST_AGAIN).contains(&names.len()) && names.len() == step.failed as usize {
            let mut again = Self::default();
            let chosen: Vec<String> = std::iter::once("--exact".to_owned()).chain(names).collect();
            again.once(&format!("{what}: what failed, once more"), &mut command(&chosen))?;
            step.settle_again(again);
        }
        self.passed += step.passed;
        self.failed += step.failed;
        self.skipped += step.skipped;
        self.failures.append(&mut step.failures);
        self.unsteady.append(&mut step.unsteady);
        Ok(())
    }

    /// When everything that failed passed the second time, it is unsteady; a second failure of any leaves all as they are.
    fn settle_again(&mut self, again: Self) {
        if again.failed == 0 && again.passed >= self.failed {
            self.passed += std::mem::take(&mut self.failed);
            self.unsteady.append(&mut self.failures);
        }
    }

    /// Prints every test that failed with what it said, and the counts.
    pub fn print(&self) {
        self.unsteady.iter().for_each(|failed| failed.print("UNSTEADY (failed, then passed by itself)"));
        self.failures.iter().for_each(|failed| failed.print("FAILED"));
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
    }

    fn once(&mut self, what: &str, command: &mut Command) -> Result<()> {
        step::say(what);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mark = Mark::put(command);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", step::shown(command)))?;
        let output = child.stdout.take().context("the output is piped")?;
        let mut part = Part::Tests;
        let ended = AtomicBool::new(false);
        let stopped = std::thread::scope(|scope| -> Result<bool> {
            let watch = scope.spawn(|| stop_with_us(child.id(), &ended, &mark));
            let read = BufReader::new(output).split(b'\n').try_for_each(|line| {
                let line = String::from_utf8_lossy(&line?).into_owned();
                println!("{line}");
                self.read(&line, what, &mut part);
                std::io::stdout().flush()
            });
            ended.store(true, Ordering::Relaxed);
            read?;
            Ok(watch.join().unwrap_or(false))
        })?;
        let status = child.wait()?;
        // A test that was ended from outside, or for its time, has not tidied up.
        mark.sweep();
        if stopped {
            return Err(wait::Stopped.into());
        }
        if self.open > 0 {
            self.failed += 1;
            self.failures.push(Failed::of(what, "a test program ended before all of its tests had"));
        }
        if !status.success() && self.failed == 0 {
            self.failed += 1;
            self.failures
                .push(Failed::of(what, format_args!("the command ended with {status}, and named no failed test")));
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
                self.failures.push(Failed { test: what.into(), output: vec![format!("{error:#}")] });
            }
        }
        Ok(())
    }

    /// Reads one line of libtest's. A first heading `failures:` is followed by what each failed test printed, a second one by their
    /// names, indented.
    fn read(&mut self, line: &str, what: &str, part: &mut Part) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            *part = Part::Tests;
            self.open = self.open.saturating_sub(1);
            let count = |word: &str| -> u32 {
                let part = counts.split([';', '.']).find(|part| part.trim_end().ends_with(word));
                part.and_then(|part| part.trim().split(' ').next()?.parse().ok()).unwrap_or(0)
            };
            self.passed += count(" passed");
            self.failed += count(" failed");
            self.skipped += count(" ignored");
        } else if *part == Part::Tests && line.starts_with("running ") && line.trim_end_matches('s').ends_with(" test")
        {
            self.open += 1;
        } else if line == "failures:" {
            *part = Part::Failures;
        } else if let Some(name) = heading(line).filter(|_| *part != Part::Tests) {
            *part = Part::Output;
            self.failures.push(Failed::of(what, name));
        } else if let (Part::Output, Some(failed)) = (&part, self.failures.last_mut()) {
            failed.output.push(line.into());
        } else if let Some(name) = line.strip_prefix("    ").filter(|_| *part == Part::Failures) {
            // One that printed nothing has no heading of its own.
            let failed = Failed::of(what, name.trim());
            if !name.contains(' ') && !self.failures.iter().any(|known| known.test == failed.test) {
                self.failures.push(failed);
            }
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

/// Where in the output of a test program a line stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Tests,
    Failures,
    Output,
}

/// The test whose output begins with this line.
fn heading(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

/// Passes a signal to stop on to the command, which has a process group of its own and does not see Ctrl-C. Whether one came.
fn stop_with_us(pid: u32, ended: &AtomicBool, mark: &Mark) -> bool {
    while !ended.load(Ordering::Relaxed) {
        if wait::check_stopped().is_err() {
            let _ = process::signal(pid, Signal::SIGTERM);
            let begun = Instant::now();
            while !ended.load(Ordering::Relaxed) && begun.elapsed() < TIDYING {
                std::thread::sleep(Duration::from_millis(50));
            }
            // Whatever has our pipe open by now would be waited for without end.
            mark.sweep();
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "running 3 tests\ntest a::b ... FAILED\n\nfailures:\n\n---- a::b stdout ----\nthread 'a::b' panicked at x.rs:1:\n\
        4 is not 5\n\n\nfailures:\n    a::b\n    a::quiet\n\n\
        test result: FAILED. 1 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
        running 12 tests\ntest result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";

    fn script(first: &str, again: &str) -> impl Fn(&[String]) -> Command {
        move |names: &[String]| {
            let text = if names.is_empty() { first } else { again };
            let mut command = Command::new("sh");
            command.args(["-c", "printf '%s\\n' \"$1\"; case $1 in *FAILED*) exit 101;; esac", "sh", text]);
            command
        }
    }

    fn tally(first: &str, again: &str) -> Tally {
        let mut tally = Tally::default();
        tally.run("unit", script(first, again)).unwrap();
        tally
    }

    #[test]
    fn results_of_libtest_are_added_up_and_failures_named_once_with_what_they_said() {
        let tally = tally(OUTPUT, OUTPUT);
        assert_eq!((tally.passed, tally.failed, tally.skipped), (13, 2, 1));
        let tests: Vec<&str> = tally.failures.iter().map(|failed| failed.test.as_str()).collect();
        assert_eq!(tests, ["unit: a::b", "unit: a::quiet"]);
        assert_eq!(tally.failures[0].output[1], "4 is not 5");
        assert!(tally.unsteady.is_empty());
    }

    #[test]
    fn what_passes_when_it_runs_again_is_unsteady_and_what_does_not_has_failed() {
        let good = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.01s";
        let steady = tally(OUTPUT, good);
        assert_eq!((steady.passed, steady.failed, steady.unsteady.len()), (15, 0, 2));
        let none = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.01s";
        assert_eq!(tally(OUTPUT, none).failed, 2, "a test that did not run again has not passed");
    }

    #[test]
    fn a_test_program_that_crashed_has_failed_whatever_passes_the_second_time() {
        let good = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.01s";
        let crashed = tally(&format!("{OUTPUT}\nrunning 1 test"), good);
        assert_eq!((crashed.failed, crashed.unsteady.len()), (3, 0));
        assert!(crashed.failures[2].test.contains("ended before"), "{:?}", crashed.failures);
    }
}
