//! The same tests on Debian 13 with its DPDK 24.11 and its QEMU, in a tree that debootstrap made in the cache.
//!
//! Every command runs in a mount namespace of its own: what is mounted for it is gone when it ends, however it ends.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use ringspan_testkit::paths;

use crate::tally::{Failed, Tally};
use crate::{packages, step};

/// Longest time for one command in the tree, in seconds.
const LIMIT: &str = "1800";

/// Mounts what a command needs and runs it. Arguments: the tree, the checkout, the Rust toolchain, cargo's registry, the
/// folder that is built into, and the command with its words.
const ENTER: &str = r#"set -e
tree=$1; checkout=$2; rust=$3; registry=$4; target=$5; shift 5
mkdir -p $tree/ringspan $tree/opt/rust $tree/opt/cargo/registry $tree/target
# ip netns wants / to be a mount point.
mount --bind $tree $tree
mount -t proc proc $tree/proc
mount --rbind /sys $tree/sys
mount --rbind /dev $tree/dev
mount -t tmpfs tmpfs $tree/run
mount -t tmpfs tmpfs $tree/tmp
mount --bind $checkout $tree/ringspan; mount -o remount,bind,ro $tree/ringspan
mount --bind $rust $tree/opt/rust; mount -o remount,bind,ro $tree/opt/rust
mount --bind $registry $tree/opt/cargo/registry
mount --bind $target $tree/target
exec chroot $tree /usr/bin/env -i HOME=/root LANG=C.UTF-8 CI="$CI" RINGSPAN_TEST_RUN="$RINGSPAN_TEST_RUN" DEBIAN_FRONTEND=noninteractive \
    PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    CARGO_HOME=/opt/cargo CARGO_TARGET_DIR=/target CARGO_NET_OFFLINE=true CARGO_TERM_COLOR=never \
    RINGSPAN_CACHE=/var/cache/ringspan RINGSPAN_BIN_DIR=/target/release RINGSPAN_SKIPPED=/target/skipped \
    /bin/sh -c 'cd /ringspan && exec "$@"' sh "$@"
"#;

/// A Debian 13 tree with the packages of the project in it.
pub struct Debian13 {
    tree: PathBuf,
    target: PathBuf,
    toolchain: PathBuf,
    registry: PathBuf,
    _alone: paths::Lock,
}

impl Debian13 {
    /// Makes the tree, or takes the one of an earlier run and installs what the list of packages has gained.
    pub fn prepare() -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("a Debian 13 tree needs the rights of root");
        }
        let cache = paths::cache()?.join("debian13");
        fs::create_dir_all(&cache)?;
        let alone = paths::Lock::take(&cache.join("lock"))?;
        let tree = cache.join("tree");
        if !tree.is_dir() {
            step::say("making a Debian 13 tree (once; it stays in the cache)");
            let new = cache.join("tree.new");
            let _ = fs::remove_dir_all(&new);
            let mut debootstrap = Command::new("debootstrap");
            debootstrap.args(["--variant=minbase", "trixie"]).arg(&new).args(mirror());
            step::run(&mut debootstrap)?;
            fs::rename(&new, &tree)?;
        }
        let target = cache.join("target");
        fs::create_dir_all(&target)?;
        let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output().context("cannot start rustc")?;
        let toolchain = PathBuf::from(String::from_utf8_lossy(&sysroot.stdout).trim());
        let home = std::env::var_os("HOME").unwrap_or_default();
        let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from).unwrap_or(Path::new(&home).join(".cargo"));
        let registry = cargo.join("registry");
        let this = Self { tree, target, toolchain, registry, _alone: alone };
        this.install_packages()?;
        Ok(this)
    }

    /// A command in the tree, with the checkout (read-only) as its current folder.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["-k", "10", LIMIT, "unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"]);
        command.args([&self.tree, &paths::checkout(), &self.toolchain, &self.registry, &self.target].map(Path::new));
        command.args(words);
        command
    }

    fn install_packages(&self) -> Result<()> {
        let names = packages::BUILD_AND_RUN.concat();
        let mut hasher = DefaultHasher::new();
        names.hash(&mut hasher);
        let stamp = format!("{:x}", hasher.finish());
        let stamp_file = self.tree.join("var/lib/ringspan-packages");
        if fs::read_to_string(&stamp_file).is_ok_and(|installed| installed == stamp) {
            return Ok(());
        }
        step::say(&format!("Debian 13: installing {}", names.join(" ")));
        let _ = fs::copy("/etc/resolv.conf", self.tree.join("etc/resolv.conf"));
        // No service may start in the tree.
        fs::write(self.tree.join("usr/sbin/policy-rc.d"), "#!/bin/sh\nexit 101\n")?;
        step::run(Command::new("chmod").arg("755").arg(self.tree.join("usr/sbin/policy-rc.d")))?;
        step::run(&mut self.command(&["apt-get", "update", "-q"]))?;
        let install = [&["apt-get", "install", "-y", "-qq", "--no-install-recommends"], names.as_slice()].concat();
        step::run(&mut self.command(&install))?;
        fs::write(stamp_file, stamp)?;
        Ok(())
    }

    /// The words that start the tree's QEMU outside of it: by the tree's own dynamic loader, with its libraries and firmware.
    pub fn qemu(&self) -> Vec<String> {
        let at = |path: &str| self.tree.join(path).display().to_string();
        let libraries = at("usr/lib/x86_64-linux-gnu");
        let loader = [at("lib64/ld-linux-x86-64.so.2"), "--library-path".into(), libraries];
        let firmware = ["-L".into(), at("usr/share/qemu"), "-L".into(), at("usr/share/seabios")];
        loader.into_iter().chain([at("usr/bin/qemu-system-x86_64")]).chain(firmware).collect()
    }

    /// Builds, runs the unit tests, one end-to-end run with a guest, and those with Open vSwitch.
    pub fn test(&self, tally: &mut Tally) -> Result<()> {
        let skipped = self.target.join("skipped");
        let _ = fs::remove_file(&skipped);
        step::say("Debian 13: building");
        let built = step::run(&mut self.command(&[
            "cargo",
            "build",
            "--release",
            "--locked",
            "--package",
            "ringspan",
            "--package",
            "ringspan-dataplane",
            "--bins",
        ]));
        if let Err(error) = built {
            tally.failed += 1;
            tally.failures.push(Failed { test: "Debian 13".into(), output: vec![format!("{error:#}")] });
            return Ok(());
        }
        let with = |words: &[&str], chosen: &[String]| {
            let mut command = self.command(words);
            command.args(chosen);
            command
        };
        let unit =
            ["cargo", "test", "--locked", "--no-fail-fast", "--workspace", "--exclude", "ringspan-testkit", "--"];
        tally.run("Debian 13: unit and property tests", |chosen| with(&unit, chosen))?;
        let guest =
            ["cargo", "test", "--locked", "--release", "--package", "ringspan-testkit", "--test", "qemu_port", "--"];
        let pings = ["a_guest_pings_and_moves_data_both_ways".to_owned()];
        tally.run("Debian 13: end to end with a guest", |chosen| {
            with(&guest, if chosen.is_empty() { &pings } else { chosen })
        })?;
        // Debian 13's Open vSwitch is two years younger: what its flows look like, and what it says when it is asked.
        let switch =
            ["cargo", "test", "--locked", "--release", "--package", "ringspan-testkit", "--test", "ovs_offload", "--"];
        let alone = ["--test-threads".to_owned(), "1".to_owned()];
        tally.run("Debian 13: flows of its Open vSwitch", |chosen| {
            with(&switch, if chosen.is_empty() { &alone } else { chosen })
        })?;
        tally.settle_skipped(&skipped);
        Ok(())
    }
}

/// The mirror that this machine installs from, so that the tree comes from the same place.
fn mirror() -> Option<String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let deb822 = read("/etc/apt/sources.list.d/debian.sources");
    let found = deb822.lines().find_map(|line| line.strip_prefix("URIs:")).map(str::to_string);
    let list = read("/etc/apt/sources.list");
    let words = |line: &str| line.split_whitespace().find(|word| word.starts_with("http")).map(str::to_string);
    let found = found.or_else(|| list.lines().filter(|line| line.starts_with("deb ")).find_map(words));
    Some(found?.split_whitespace().next()?.to_string())
}
