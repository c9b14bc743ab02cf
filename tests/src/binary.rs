//! Where the programs under test are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, ensure};

/// The folder of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in a folder of the workspace")
}

/// The release build of one of ringspan's programs: from `RINGSPAN_BIN_DIR` where that is set, else from the target folder that
/// this test was built in. It is built when it is not there.
pub fn path(program: &str) -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("RINGSPAN_BIN_DIR") {
        let path = PathBuf::from(folder).join(program);
        ensure!(path.exists(), "{} does not exist: RINGSPAN_BIN_DIR names the wrong folder", path.display());
        return Ok(path);
    }
    let test = std::env::current_exe()?;
    // target/PROFILE/deps/TEST, or target/PROFILE/PROGRAM for xtask and benchmarks.
    let deps = test.parent().context("this test has no folder")?;
    let profile = if deps.ends_with("deps") { deps.parent().context("deps is at the root")? } else { deps };
    let target = profile.parent().context("the target folder is the root")?;
    let path = target.join("release").join(program);
    static BUILD: Mutex<()> = Mutex::new(());
    let _one = BUILD.lock();
    if !path.exists() {
        let package = if program == "ringspan-lane" { "ringspan-dataplane" } else { program };
        let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--release", "--package", package, "--bin", program])
            .env("CARGO_TARGET_DIR", target)
            .current_dir(workspace())
            .status()
            .context("running cargo")?;
        ensure!(status.success(), "building {program} failed: {status}");
    }
    Ok(path)
}
