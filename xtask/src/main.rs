//! Project commands: `cargo xtask demo | test | bench | lab | fuzz | packages`.
//!
//! This program itself needs nothing but the Rust toolchain and a C linker, so that it can install the rest.

mod debian13;
mod demo;
mod fuzz;
mod hugepages;
mod lab;
mod leftovers;
mod packages;
mod step;
mod tally;
mod test;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "What a developer or a first visitor of ringspan runs")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Show what ringspan does: a QEMU guest behind a port, with everything that can be killed being killed
    Demo(demo::Options),
    /// Run every test, the end-to-end ones and those on Debian 13 included
    Test(test::Options),
    /// Check zero copy by DMA in an emulated SR-IOV host: QEMU's igb behind an IOMMU
    Lab(lab::Options),
    /// Fuzz what reads bytes of strangers, with coverage as the guide
    Fuzz(fuzz::Options),
    /// Install the Debian packages that building and testing need
    Packages,
    /// Measure ringspan beside other back-ends: everything, or `quick`, or what `bench --help` names
    Bench {
        /// Passed on to the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> std::process::ExitCode {
    let result = match Cli::parse().command {
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Lab(options) => lab::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Packages => packages::ensure(packages::ALL),
        Task::Bench { arguments } => bench(&arguments),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn bench(arguments: &[String]) -> anyhow::Result<()> {
    packages::ensure(&[packages::BUILD, packages::RUN, packages::BENCH])?;
    let programs = step::build_release()?;
    step::run(&mut step::cargo(&["build", "--release", "--package", "ringspan-benches", "--bins"]))?;
    let _pages = hugepages::HugePages::try_reserve(1024);
    let mut bench = step::cargo(&["run", "--release", "--package", "ringspan-benches", "--"]);
    step::run(bench.args(arguments).env("RINGSPAN_BIN_DIR", programs))
}
