//! `cargo xtask fuzz`: the targets of `fuzz/`, built by the compiler that is there and run one after another.
//!
//! The instructions that tell the fuzzer where it has been are LLVM's, and stable compilers put them in, too. What has `unsafe` is watched by its
//! target itself (guest memory between pages that cannot be touched), so that no sanitizer, and no nightly compiler, is needed.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use ringspan_testkit::paths;

use crate::{packages, step};

/// As cargo-fuzz has them.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Named, so that programs that run while building are not changed by the flags.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Targets that take a few source files, the most dangerous first.
const QUICK: &[&str] = &["vhost_message", "vhost_session", "ring", "frame", "offload", "ovs_stream"];
/// Targets that need the whole daemon built.
const DAEMON: &[&str] = &["flow_text", "kernel_flow"];

#[derive(clap::Args)]
pub struct Options {
    /// Which target; without, all but those that need the whole daemon built (flow_text, kernel_flow)
    target: Option<String>,
    /// How long each runs
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Passed on to the target (`-help=1` names what there is)
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Builds and runs; ends with the first finding, which is left in fuzz/artifacts.
pub fn run(options: &Options) -> Result<()> {
    let chosen = match &options.target {
        None => QUICK.to_vec(),
        Some(name) => match [QUICK, DAEMON].concat().into_iter().find(|target| target == name) {
            Some(target) => vec![target],
            None => bail!("no target is called {name}: there are {}", [QUICK, DAEMON].concat().join(", ")),
        },
    };
    packages::ensure(&[packages::FUZZ])?;
    let fuzz = paths::checkout().join("fuzz");
    // The dependencies' versions are the workspace's.
    if !fuzz.join("Cargo.lock").exists() {
        fs::copy(paths::checkout().join("Cargo.lock"), fuzz.join("Cargo.lock"))?;
    }
    let target_folder = step::target_folder()?.join("fuzz");
    let mut build = step::cargo(&["build", "--profile", "fuzz", "--target", TRIPLE]);
    build.args(chosen.iter().flat_map(|target| ["--bin", target]));
    if chosen.iter().any(|target| DAEMON.contains(target)) {
        build.args(["--features", "daemon"]);
    }
    build.current_dir(&fuzz).env("RUSTFLAGS", FLAGS).env("CARGO_TARGET_DIR", &target_folder);
    step::run(&mut build)?;
    for target in chosen {
        step::say(&format!("{target}, {} s", options.seconds));
        let folder = |kind: &str| -> Result<PathBuf> {
            let folder = fuzz.join(kind).join(target);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            Ok(folder)
        };
        let mut fuzzer = Command::new(target_folder.join(TRIPLE).join("fuzz").join(target));
        fuzzer
            .arg(folder("corpus")?)
            .arg(format!("-max_total_time={}", options.seconds))
            .args([format!("-artifact_prefix={}/", folder("artifacts")?.display()), "-print_final_stats=1".into()]);
        let dictionary = fuzz.join(format!("{target}.dict"));
        if dictionary.exists() {
            fuzzer.arg(format!("-dict={}", dictionary.display()));
        }
        step::run(fuzzer.args(&options.arguments))?;
    }
    Ok(())
}
