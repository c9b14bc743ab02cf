//! `cargo xtask fuzz`: the targets of `fuzz/`, built by the compiler that is there and run one after another.
//!
//! The instructions that tell the fuzzer where it has been are LLVM's, and stable compilers put them in, too. What has `unsafe` is watched by its
//! target itself (guest memory between pages that cannot be touched), so that no sanitizer, and no nightly compiler, is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use ringspan_testkit::paths;

use crate::{packages, step};

/// The coverage flags of cargo-fuzz.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
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
    if paths::on_path("c++").is_none() {
        packages::ensure(&[packages::FUZZ])?;
    }
    let fuzz = paths::checkout().join("fuzz");
    let target_folder = step::target_folder()?.join("fuzz");
    fs::create_dir_all(&target_folder)?;
    take_versions(&fuzz, &target_folder)?;
    // Named, so that programs that run while building are not changed by the flags.
    let host = host()?;
    let mut build = step::cargo(&["build", "--profile", "fuzz", "--target", &host]);
    build.args(chosen.iter().flat_map(|target| ["--bin", target]));
    if chosen.iter().any(|target| DAEMON.contains(target)) {
        build.args(["--features", "daemon"]);
    }
    // It would go before RUSTFLAGS.
    build.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", FLAGS);
    build.current_dir(&fuzz).env("CARGO_TARGET_DIR", &target_folder);
    step::run(&mut build)?;
    for target in chosen {
        step::say(&format!("{target}, {} s", options.seconds));
        let folder = |kind: &str| -> Result<PathBuf> {
            let folder = fuzz.join(kind).join(target);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            Ok(folder)
        };
        let corpus = folder("corpus")?;
        if target == "flow_text" {
            seed_lines(&corpus)?;
        }
        let mut fuzzer = Command::new(target_folder.join(&host).join("fuzz").join(target));
        // With -jobs it writes logs into its folder.
        fuzzer
            .current_dir(folder("artifacts")?)
            .arg(corpus)
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

/// The dependencies' versions are the workspace's, and again whenever those have changed.
fn take_versions(fuzz: &Path, target_folder: &Path) -> Result<()> {
    let wanted = fs::read(paths::checkout().join("Cargo.lock")).context("cannot read the workspace's Cargo.lock")?;
    // Cargo adds to its own what only the targets need.
    let (own, taken) = (fuzz.join("Cargo.lock"), target_folder.join("Cargo.lock.taken"));
    if !own.exists() || fs::read(&taken).ok().as_ref() != Some(&wanted) {
        fs::write(&own, &wanted).with_context(|| format!("cannot write {}", own.display()))?;
        fs::write(&taken, &wanted).with_context(|| format!("cannot write {}", taken.display()))?;
    }
    Ok(())
}

/// What the compiler builds for by itself.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("cannot start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.into())
}

/// Fills an empty corpus with the lines that the parser is tested with.
fn seed_lines(corpus: &Path) -> Result<()> {
    if fs::read_dir(corpus)?.next().is_some() {
        return Ok(());
    }
    let lines = fs::read_to_string(paths::checkout().join("src/ovs/flow/tests/lines.txt"))?;
    for (at, line) in lines.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).enumerate() {
        fs::write(corpus.join(format!("line-{at}")), line)?;
    }
    Ok(())
}
