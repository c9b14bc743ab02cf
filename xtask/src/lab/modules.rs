//! The kernel modules that make a virtio NIC a vDPA device, and the kernel's simulator of one. Debian ships `vp_vdpa` for no kernel and `vdpa` and `vhost_vdpa` only from 13 on; they are
//! built from the kernel package's own source against its headers, once, into the cache. Nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringspan_testkit::paths::{self, Lock};
use ringspan_testkit::qemu::Kernel;
use ringspan_testkit::wait;

/// Where each is in the kernel's source, and its name, in the order in which they are loaded.
const MODULES: &[(&str, &str)] = &[
    ("drivers/vdpa/vdpa.c", "vdpa"),
    ("drivers/vhost/vdpa.c", "vhost_vdpa"),
    ("drivers/vdpa/virtio_pci/vp_vdpa.c", "vp_vdpa"),
    ("drivers/virtio/virtio_vdpa.c", "virtio_vdpa"),
    // The kernel's own is built without what the simulator needs of it.
    ("drivers/vhost/vringh.c", "vringh"),
    ("drivers/vdpa/vdpa_sim/vdpa_sim.c", "vdpa_sim"),
    ("drivers/vdpa/vdpa_sim/vdpa_sim_net.c", "vdpa_sim_net"),
];
/// What those include from their own folders.
const HEADERS: &[&str] = &["drivers/vhost/vhost.h", "drivers/vdpa/vdpa_sim/vdpa_sim.h"];
const DOWNLOAD: Duration = Duration::from_secs(600);
const BUILD: Duration = Duration::from_secs(300);

/// The folder with the modules of the guests' kernel.
///
/// # Errors
/// A package that cannot be had, or source that does not build.
pub fn prepare() -> Result<PathBuf> {
    let kernel = Kernel::prepare()?;
    let cache = paths::cache()?.join("modules");
    fs::create_dir_all(&cache)?;
    let _alone = Lock::take(&cache.join("lock"))?;
    let made = cache.join(format!("{}-vdpa-bus", kernel.release));
    if !made.is_dir() {
        let new = cache.join(format!("{}-vdpa-bus.new", kernel.release));
        let _ = fs::remove_dir_all(&new);
        fs::create_dir_all(&new)?;
        build(&kernel, &new)?;
        fs::rename(&new, &made)?;
    }
    Ok(made)
}

fn build(kernel: &Kernel, folder: &Path) -> Result<()> {
    let release = &kernel.release;
    let headers = format!("linux-headers-{release}");
    // The newest that the lists know is not always the one of this kernel, so that it is named with its version.
    let version = version_of(&format!("linux-image-{release}"))?;
    let minor = release.split('.').take(2).collect::<Vec<_>>().join(".");
    let mut packages = vec![format!("{headers}={version}"), format!("linux-source-{minor}={version}")];
    // What it is built with, and for all flavours: their names are in its dependencies.
    let depends =
        run(Command::new("apt-cache").args(["depends", "--important", &format!("{headers}={version}")]), DOWNLOAD)?;
    let parts = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    packages.extend(parts.filter(|name| name.starts_with("linux-")).map(str::to_owned));
    let tree = folder.join("tree");
    fs::create_dir(&tree)?;
    let mut download = Command::new("apt-get");
    run(
        download.current_dir(folder).args(["download", "-q", "-o", "APT::Sandbox::User=root"]).args(&packages),
        DOWNLOAD,
    )?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&tree), DOWNLOAD)?;
            fs::remove_file(path)?;
        }
    }
    let source = format!("linux-source-{minor}");
    let archive = tree.join("usr/src").join(format!("{source}.tar.xz"));
    let files = MODULES.iter().map(|(file, _)| *file).chain(HEADERS.iter().copied());
    let files = files.map(|file| format!("{source}/{file}"));
    run(Command::new("tar").arg("-C").arg(&tree).arg("-xf").arg(&archive).args(files), DOWNLOAD)?;
    for (file, name) in MODULES {
        fs::copy(tree.join(&source).join(file), folder.join(format!("{name}.c")))?;
    }
    for file in HEADERS {
        let name = Path::new(file).file_name().context("a header without a name")?;
        fs::copy(tree.join(&source).join(file), folder.join(name))?;
    }
    let objects: Vec<String> = MODULES.iter().map(|(_, name)| format!("{name}.o")).collect();
    fs::write(folder.join("Makefile"), format!("obj-m := {}\n", objects.join(" ")))?;
    // The headers name their other half by where they would be installed.
    let headers = tree.join("usr/src").join(headers);
    let text = fs::read_to_string(headers.join("Makefile"))?;
    fs::write(headers.join("Makefile"), text.replace("/usr/src/", &format!("{}/usr/src/", tree.display())))?;
    let mut make = Command::new("make");
    make.arg("-C").arg(&headers).arg(format!("M={}", folder.display())).arg("modules");
    run(&mut make, BUILD)?;
    for (_, name) in MODULES {
        ensure!(folder.join(format!("{name}.ko")).is_file(), "make left no {name}.ko in {}", folder.display());
    }
    fs::remove_dir_all(tree)?;
    Ok(())
}

fn version_of(package: &str) -> Result<String> {
    let policy = run(Command::new("apt-cache").args(["policy", package]), DOWNLOAD)?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    version.map(str::to_owned).with_context(|| format!("the package lists have no {package}: run apt-get update"))
}

fn run(command: &mut Command, limit: Duration) -> Result<String> {
    let name = format!("{command:?}");
    wait::run(command, limit)?.success(&name)
}
