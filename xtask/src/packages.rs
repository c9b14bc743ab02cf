//! The Debian packages that the project needs. The names are the same in Debian 12 and 13.

use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use ringspan_testkit::{paths, wait};

use crate::step;

/// To build: DPDK and its headers, libclang for bindgen, a C compiler for the shim.
pub const BUILD: &[&str] = &["gcc", "libc6-dev", "pkgconf", "libclang-dev", "dpdk-dev"];

/// To run the tests and the demo: a guest, namespaces, traffic, and DPDK's own program as the peer.
pub const RUN: &[&str] = &[
    "dpdk",
    "qemu-system-x86",
    "busybox-static",
    "kmod",
    "make",
    "xz-utils",
    "zstd",
    "iproute2",
    "iputils-ping",
    "procps",
    "ethtool",
    "pciutils",
    "iperf3",
    "tshark",
    // Debian starts it as a service where systemd runs; the tests have switches of their own and leave that one alone.
    "openvswitch-switch",
];

/// To compare with: another relay, and what counts instructions. Only `bench` installs these, because Debian starts the switch as a service.
pub const BENCH: &[&str] = &["openvswitch-switch-dpdk", "valgrind"];

/// To fuzz: the compiler of libFuzzer, which is C++.
pub const FUZZ: &[&str] = &["g++"];

/// Everything, with what the Debian 13 tree is made by.
pub const ALL: &[&[&str]] = &[BUILD, RUN, &["debootstrap", "debian-archive-keyring"]];

/// What building and running need.
pub const BUILD_AND_RUN: &[&[&str]] = &[BUILD, RUN];

/// Installs what is missing of these, after naming it.
pub fn ensure(lists: &[&[&str]]) -> Result<()> {
    if paths::on_path("dpkg-query").is_none() || paths::on_path("apt-get").is_none() {
        bail!(
            "this is no Debian: install what these packages hold and run cargo directly: {}",
            lists.concat().join(" ")
        );
    }
    let missing = missing(&lists.concat())?;
    if !lists_are_fresh() {
        step::say("package lists are old or missing: apt-get update");
        apt(&["update", "-q"])?;
    }
    if missing.is_empty() {
        return Ok(());
    }
    step::say(&format!("installing Debian packages: {}", missing.join(" ")));
    let install = [&["install", "-y", "-q", "--no-install-recommends"], missing.as_slice()].concat();
    if apt(&install).is_err() {
        // Lists that are a few hours old may already name files that are gone.
        apt(&["update", "-q"])?;
        apt(&install)?;
    }
    Ok(())
}

fn missing<'a>(names: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${binary:Package} ${db:Status-Status}\n"]);
    let known = wait::run(&mut query, Duration::from_secs(60))?.success("dpkg-query")?;
    let installed = |name: &str| {
        known.lines().any(|line| {
            let (package, status) = line.split_once(' ').unwrap_or((line, ""));
            // Some names come with their architecture: libc6-dev:amd64.
            status == "installed" && package.split(':').next() == Some(name)
        })
    };
    Ok(names.iter().copied().filter(|name| !installed(name)).collect())
}

/// Whether there are package lists of the last week. The guest's kernel is looked up in them too.
fn lists_are_fresh() -> bool {
    let Ok(entries) = fs::read_dir("/var/lib/apt/lists") else { return false };
    let lists = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().contains("_Packages"));
    // The files keep the server's time; the folder's own changes with each update.
    let any = lists.count() > 0;
    let changed = fs::metadata("/var/lib/apt/lists/partial").and_then(|folder| folder.modified());
    let age = changed.ok().and_then(|time| SystemTime::now().duration_since(time).ok());
    any && age.is_none_or(|age| age < Duration::from_secs(7 * 24 * 3600))
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = if nix::unistd::geteuid().is_root() {
        Command::new("env")
    } else {
        paths::on_path("sudo").context("packages are missing and this is not root: run as root, or install sudo")?;
        let mut sudo = Command::new("sudo");
        sudo.arg("env");
        sudo
    };
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300"]).args(arguments);
    step::run(&mut command)
}
