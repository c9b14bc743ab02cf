//! The guest's kernel: Debian's own package, downloaded and unpacked into the cache, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::compression;
use crate::paths::{self, Lock};
use crate::wait;

/// An unpacked kernel package.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The unpacked kernel, which QEMU boots through its PVH entry.
    pub image: PathBuf,
    /// What `uname -r` says in the guest.
    pub release: String,
    /// The folder that holds `lib/modules/RELEASE`.
    pub root: PathBuf,
}

impl Kernel {
    /// The kernel that `linux-image-amd64` depends on, as the machine's package lists name it. The first call downloads
    /// and unpacks it (70 to 100 MB); parallel calls wait for the first.
    pub fn prepare() -> Result<Self> {
        let folder = paths::cache()?.join("kernel");
        fs::create_dir_all(&folder)?;
        let _alone = Lock::take(&folder.join("lock"))?;
        let package = newest_package()?;
        let root = folder.join(format!("{package}-pvh"));
        if !root.is_dir() {
            let unpacked = folder.join(format!("{package}-pvh.new"));
            let _ = fs::remove_dir_all(&unpacked);
            fs::create_dir_all(&unpacked)?;
            unpack(&package, &unpacked)?;
            fs::rename(&unpacked, &root)?;
        }
        Self::at(root)
    }

    fn at(root: PathBuf) -> Result<Self> {
        for entry in fs::read_dir(root.join("boot"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if let Some(release) = name.strip_prefix("vmlinuz-") {
                return Ok(Self { image: root.join("vmlinux"), release: release.into(), root });
            }
        }
        bail!("{} has no boot/vmlinuz-*: remove that folder, it is made again", root.display())
    }

    /// Files of the named modules and of all they need, in the order in which they must be loaded.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> = Vec::new();
        for name in names {
            let mut modprobe = Command::new(paths::on_path("modprobe").context("modprobe is missing: install kmod")?);
            modprobe.arg("-d").arg(&self.root).args(["-S", &self.release, "-D", name]);
            let shown = wait::run(&mut modprobe, Duration::from_secs(20))?.success("modprobe -D")?;
            for path in shown.lines().filter_map(|line| line.strip_prefix("insmod ")) {
                let path = PathBuf::from(path.trim());
                if !files.contains(&path) {
                    files.push(path);
                }
            }
        }
        Ok(files)
    }
}

/// Name of the newest kernel package that the lists know.
fn newest_package() -> Result<String> {
    let mut apt = Command::new("apt-cache");
    apt.args(["depends", "--important", "linux-image-amd64"]);
    let depends = wait::run(&mut apt, Duration::from_secs(60))?.success("apt-cache depends linux-image-amd64")?;
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    package
        .map(|version| format!("linux-image-{version}"))
        .context("the package lists have no linux-image-amd64: run apt-get update")
}

fn unpack(package: &str, into: &Path) -> Result<()> {
    let mut download = Command::new("apt-get");
    // As root apt drops its rights for the download, which a private cache folder forbids.
    download.current_dir(into).args(["download", "-q", "-o", "APT::Sandbox::User=root", package]);
    wait::run(&mut download, Duration::from_secs(600))?
        .success(&format!("apt-get download {package} (stale package lists? run apt-get update)"))?;
    let archive = fs::read_dir(into)?.filter_map(|entry| Some(entry.ok()?.path())).next();
    let archive = archive.with_context(|| format!("apt-get download left nothing in {}", into.display()))?;
    let mut extract = Command::new("dpkg-deb");
    extract.arg("-x").arg(&archive).arg(into);
    wait::run(&mut extract, Duration::from_secs(300))?.success("dpkg-deb -x")?;
    fs::remove_file(archive)?;
    let release = package.trim_start_matches("linux-image-");
    // Debian 13 unpacks to usr/lib only; modprobe looks in lib.
    if !into.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", into.join("lib"))?;
    }
    let packed = fs::read(into.join(format!("boot/vmlinuz-{release}")))?;
    fs::write(into.join("vmlinux"), compression::kernel(&packed)?)?;
    let mut depmod = Command::new(paths::on_path("depmod").context("depmod is missing: install kmod")?);
    depmod.arg("-b").arg(into).arg(release);
    wait::run(&mut depmod, Duration::from_secs(120))?.success("depmod")?;
    Ok(())
}
