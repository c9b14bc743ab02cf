//! Where things are: the checkout, the programs under test, the cache that outlives a checkout.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The root of the checkout this crate was compiled in.
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the checkout").to_path_buf()
}

/// The folder for what is expensive to make and independent of the checkout: guest kernels, the Debian 13 tree.
/// `$RINGSPAN_CACHE`, else `~/.cache/ringspan`.
pub fn cache() -> Result<PathBuf> {
    let folder = match (std::env::var_os("RINGSPAN_CACHE"), std::env::var_os("HOME")) {
        (Some(path), _) => PathBuf::from(path),
        (None, Some(home)) => Path::new(&home).join(".cache/ringspan"),
        (None, None) => bail!("neither RINGSPAN_CACHE nor HOME is set: set RINGSPAN_CACHE to a folder for the cache"),
    };
    fs::create_dir_all(&folder).with_context(|| format!("cannot make the cache folder {}", folder.display()))?;
    Ok(folder)
}

/// One of the project's own programs (`ringspan`, `ringspan-lane`): from `$RINGSPAN_BIN_DIR`, which `cargo xtask` sets,
/// else the newer of those in the release and debug folders of the target directory that the running executable is in.
pub fn program(name: &str) -> Result<PathBuf> {
    let mut tried = Vec::new();
    if let Some(folder) = std::env::var_os("RINGSPAN_BIN_DIR") {
        tried.push(Path::new(&folder).join(name));
    } else if let Ok(own) = std::env::current_exe() {
        // target/PROFILE/xtask or target/PROFILE/deps/test-HASH
        for target in own.ancestors().skip(2).take(2) {
            tried.push(target.join("release").join(name));
            tried.push(target.join("debug").join(name));
        }
    }
    let built = tried.iter().filter_map(|path| Some((fs::metadata(path).ok()?.modified().ok()?, path)));
    match built.max() {
        Some((_, path)) => Ok(path.clone()),
        None => bail!("{name} is not built (looked for {tried:?}): run cargo build --release first"),
    }
}

/// The path of a program on `PATH`, or in the folders of the system's own programs.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"]);
    folders.map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())
}

/// A temporary folder with a path short enough for unix sockets in it (107 bytes). Removed on drop.
pub fn scratch() -> Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("ringspan-").tempdir_in("/tmp").context("cannot make a folder in /tmp")
}

/// An exclusive lock between processes, held until dropped; waits for its turn.
pub struct Lock(#[allow(dead_code, reason = "the lock lives as long as the open file")] File);

impl Lock {
    /// Takes the lock whose file is `path`, making the file if needed.
    pub fn take(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let file = file.with_context(|| format!("cannot open the lock file {}", path.display()))?;
        // SAFETY: flock on a descriptor that `file` owns for the whole call.
        while unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } != 0 {
            let error = std::io::Error::last_os_error();
            if error.kind() != std::io::ErrorKind::Interrupted {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        Ok(Self(file))
    }
}
