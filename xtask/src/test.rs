//! `cargo xtask test`: every test there is, on this machine and in a Debian 13 tree; and the lab, whose QEMU is in that tree.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};
use ringspan_testkit::{paths, qemu, wait};

use crate::debian13::Debian13;
use crate::hugepages::HugePages;
use crate::tally::Tally;
use crate::{lab, leftovers, packages, step};

/// Longest time for one `cargo test` in seconds, its building included.
const LIMIT: &str = "2400";

#[derive(clap::Args)]
pub struct Options {
    /// Fail when a test was skipped (the default where the environment has CI set)
    #[arg(long)]
    ci: bool,
    /// Leave out the run in a Debian 13 tree, and the lab, whose QEMU is from there
    #[arg(long)]
    no_debian13: bool,
    /// Run nothing but the Debian 13 part
    #[arg(long, conflicts_with = "no_debian13")]
    debian13: bool,
    /// Leave out the lab
    #[arg(long)]
    no_lab: bool,
}

/// Runs everything and ends with one line of counts.
pub fn run(options: &Options) -> Result<()> {
    let nothing_skipped = options.ci || std::env::var_os("CI").is_some();
    let start = Instant::now();
    wait::stop_on_signals()?;
    packages::ensure(packages::ALL)?;
    let record = paths::scratch()?;
    let skipped = record.path().join("skipped");
    let mut tally = Tally::default();

    step::say("preparing the machine");
    leftovers::of_the_dead();
    let _pages = HugePages::try_reserve(512);
    let mut programs = None;
    if !options.debian13 {
        let kernel = qemu::Kernel::prepare()?;
        println!("    guest kernel: {}", kernel.release);
        let programs = &*programs.insert(step::build_release()?);
        let with = |arguments: &[&str], chosen: &[String]| {
            let mut command = limited(arguments);
            command.args(chosen).env("RINGSPAN_SKIPPED", &skipped).env("RINGSPAN_BIN_DIR", programs);
            command
        };
        let unit = ["test", "--no-fail-fast", "--workspace", "--exclude", "ringspan-testkit", "--"];
        tally.run("unit and property tests", |chosen| with(&unit, chosen))?;
        // One at a time: each has a guest, lanes that poll, and limits on time.
        let whole =
            ["test", "--no-fail-fast", "--release", "--package", "ringspan-testkit", "--", "--test-threads", "1"];
        tally.run("end-to-end tests", |chosen| with(&whole, chosen))?;
    }
    if !options.no_debian13 {
        match Debian13::prepare() {
            Ok(tree) => {
                tree.test(&mut tally)?;
                if let Some(programs) = programs.as_ref().filter(|_| !options.no_lab) {
                    tally.note("lab", lab::check(programs, tree.qemu(), ""))?;
                }
            }
            Err(error) => {
                println!("skipped: Debian 13: {error:#}");
                tally.skipped += 1;
            }
        }
    }

    println!("\n==> done in {} min {} s", start.elapsed().as_secs() / 60, start.elapsed().as_secs() % 60);
    tally.settle_skipped(&skipped);
    tally.print();
    if tally.failed > 0 {
        bail!("{} tests failed", tally.failed);
    }
    if tally.passed == 0 {
        bail!("no test ran");
    }
    if nothing_skipped && tally.skipped > 0 {
        bail!("{} tests were skipped, and on the CI machine nothing may be", tally.skipped);
    }
    Ok(())
}

/// A cargo command that is ended when it takes too long.
fn limited(arguments: &[&str]) -> Command {
    let cargo = step::cargo(arguments);
    let mut command = Command::new("timeout");
    command.args(["-k", "10", LIMIT]).arg(cargo.get_program()).args(cargo.get_args());
    command.current_dir(ringspan_testkit::paths::checkout());
    command
}
