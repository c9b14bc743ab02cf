//! Kernel modules that the lab needs and Debian's kernel of the guests is built without. They are built from the kernel package's own source against
//! its headers, once, into the cache. Nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringspan_testkit::paths::{self, Lock};
use ringspan_testkit::qemu::Kernel;
use ringspan_testkit::wait;

use crate::step;

/// Modules that are built together.
pub struct Set {
    /// What they are kept under.
    name: &'static str,
    /// Files of the kernel's source and their names in the one folder that they are put into; a folder, whose files keep theirs, has none.
    sources: &'static [(&'static str, &'static str)],
    /// Files of our own, by their names there.
    own: &'static [(&'static str, &'static str)],
    /// What is changed in a file, by the name that it has there: the text that is in it once, and what it becomes.
    edits: &'static [(&'static str, &'static str, &'static str)],
    /// How they are built where the source itself does not say it.
    makefile: Option<&'static str>,
    /// Words for make.
    words: &'static [&'static str],
    /// The modules.
    modules: &'static [&'static str],
}

/// A device that devlink knows, with as many ports as one likes, and no packets. Debian has it for no kernel.
pub const NETDEVSIM: Set = Set {
    name: "netdevsim",
    sources: &[("drivers/net/netdevsim", "")],
    own: &[],
    edits: &[],
    makefile: None,
    words: &["CONFIG_NETDEVSIM=m"],
    modules: &["netdevsim"],
};

/// What makes the kernel's dump of links fail as it did before 6.14, where VFs have GUIDs.
pub const SMALL_ESTIMATE: Set = Set {
    name: "small-estimate",
    sources: &[],
    own: &[("small_estimate.c", include_str!("small_estimate.c"))],
    edits: &[],
    makefile: Some("obj-m := small_estimate.o\n"),
    words: &[],
    modules: &["small_estimate"],
};

/// What makes a virtio NIC a vDPA device, and the kernel's simulator of one. Debian ships `vp_vdpa` for no kernel, and `vdpa` and `vhost_vdpa` from 13
/// on only.
///
/// So that the lab sees several queue pairs on its NIC, it is said of `vp_vdpa`, too, that rings may be enabled after DRIVER_OK, which QEMU's device lets be done (Linux 6.6
/// says so of mlx5 and of the simulator).
pub const VDPA: Set = Set {
    name: "vdpa-queues",
    sources: &[
        ("drivers/vdpa/vdpa.c", "vdpa.c"),
        ("drivers/vhost/vdpa.c", "vhost_vdpa.c"),
        ("drivers/vdpa/virtio_pci/vp_vdpa.c", "vp_vdpa.c"),
        ("drivers/virtio/virtio_vdpa.c", "virtio_vdpa.c"),
        // The kernel's own is built without what the simulator needs of it.
        ("drivers/vhost/vringh.c", "vringh.c"),
        ("drivers/vdpa/vdpa_sim/vdpa_sim.c", "vdpa_sim.c"),
        ("drivers/vdpa/vdpa_sim/vdpa_sim_net.c", "vdpa_sim_net.c"),
        // What those include from their own folders.
        ("drivers/vhost/vhost.h", "vhost.h"),
        ("drivers/vdpa/vdpa_sim/vdpa_sim.h", "vdpa_sim.h"),
    ],
    own: &[],
    edits: &[
        // Bit 6 is VHOST_BACKEND_F_ENABLE_AFTER_DRIVER_OK.
        (
            "vhost_vdpa.c",
            "(1ULL << VHOST_BACKEND_F_IOTLB_ASID),",
            "(1ULL << VHOST_BACKEND_F_IOTLB_ASID) | (1ULL << 6),",
        ),
        // QEMU's NIC has all its queues once several pairs were negotiated, and vp_vdpa counts them before.
        (
            "vp_vdpa.c",
            "\tvp_vdpa->queues = vp_modern_get_num_queues(mdev);",
            "\tvp_modern_set_features(mdev, vp_modern_get_features(mdev));\n\tvp_vdpa->queues = vp_modern_get_num_queues(mdev);",
        ),
    ],
    makefile: Some("obj-m := vdpa.o vhost_vdpa.o vp_vdpa.o virtio_vdpa.o vringh.o vdpa_sim.o vdpa_sim_net.o\n"),
    words: &[],
    modules: &["vdpa", "vhost_vdpa", "vp_vdpa", "virtio_vdpa", "vringh", "vdpa_sim", "vdpa_sim_net"],
};

const DOWNLOAD: Duration = Duration::from_secs(600);
const BUILD: Duration = Duration::from_secs(300);

/// The folder with the modules of this set for the guests' kernel.
///
/// # Errors
/// A package that cannot be had, or source that does not build.
pub fn prepare(set: &Set) -> Result<PathBuf> {
    let kernel = Kernel::prepare()?;
    let cache = paths::cache()?.join("modules");
    fs::create_dir_all(&cache)?;
    let _alone = Lock::take(&cache.join("lock"))?;
    let made = cache.join(format!("{}-{}", kernel.release, set.name));
    if !made.is_dir() {
        step::say(&format!("building {} for {} (once; it stays in the cache)", set.name, kernel.release));
        let new = cache.join(format!("{}-{}.new", kernel.release, set.name));
        let _ = fs::remove_dir_all(&new);
        fs::create_dir_all(&new)?;
        build(set, &kernel, &new)?;
        fs::rename(&new, &made)?;
    }
    Ok(made)
}

fn build(set: &Set, kernel: &Kernel, folder: &Path) -> Result<()> {
    let release = &kernel.release;
    let headers = format!("linux-headers-{release}");
    // The newest that the lists know is not always the one of this kernel, so that it is named with its version.
    let version = version_of(&format!("linux-image-{release}"))?;
    let minor = release.split('.').take(2).collect::<Vec<_>>().join(".");
    let mut packages = vec![format!("{headers}={version}")];
    if !set.sources.is_empty() {
        packages.push(format!("linux-source-{minor}={version}"));
    }
    // What it is built with, and for all flavours: their names are in its dependencies.
    let depends =
        run(Command::new("apt-cache").args(["depends", "--important", &format!("{headers}={version}")]), DOWNLOAD)?;
    let parts = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    packages.extend(parts.filter(|name| name.starts_with("linux-")).map(str::to_owned));
    let tree = folder.join("tree");
    fs::create_dir(&tree)?;
    let mut download = Command::new("apt-get");
    // As root apt drops its rights for the download, which a private folder forbids.
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
    if !set.sources.is_empty() {
        let files = set.sources.iter().map(|(file, _)| format!("{source}/{file}"));
        run(Command::new("tar").arg("-C").arg(&tree).arg("-xf").arg(&archive).args(files), DOWNLOAD)?;
    }
    for (file, name) in set.sources {
        let from = tree.join(&source).join(file);
        let from = if name.is_empty() { format!("{}/.", from.display()) } else { from.display().to_string() };
        run(Command::new("cp").args(["-r", &from]).arg(folder.join(name)), DOWNLOAD)?;
    }
    for (name, text) in set.own {
        fs::write(folder.join(name), text)?;
    }
    for (name, from, to) in set.edits {
        let path = folder.join(name);
        let text = fs::read_to_string(&path)?;
        ensure!(text.matches(from).count() == 1, "{name} of this kernel has other places than one for {from:?}");
        fs::write(&path, text.replace(from, to))?;
    }
    if let Some(makefile) = set.makefile {
        fs::write(folder.join("Makefile"), makefile)?;
    }
    // The headers name their other half by where they would be installed.
    let headers = tree.join("usr/src").join(headers);
    let text = fs::read_to_string(headers.join("Makefile"))?;
    fs::write(headers.join("Makefile"), text.replace("/usr/src/", &format!("{}/usr/src/", tree.display())))?;
    let mut make = Command::new("make");
    make.arg("-C").arg(&headers).arg(format!("M={}", folder.display())).args(set.words).arg("modules");
    run(&mut make, BUILD)?;
    for name in set.modules {
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
