//! `cargo xtask lab`: the host's NICs under `ringspan`'s hand, and zero copy by DMA, checked in an emulated SR-IOV host.
//!
//! The host is a QEMU guest with an IOMMU and two igb NICs, joined by a wire (docs/decisions/0011-lab.md). This side makes it and shows what it
//! says; [`inside`] is the other side: this same program in there, which runs a lane and plays the lane's guest.

mod answers;
mod attached;
mod bonds;
mod booted;
mod checks;
mod control;
mod doctor;
mod failover;
mod flow;
mod handover;
mod inside;
mod kernel_log;
mod kernel_ovs;
mod kernel_soft;
mod killed;
mod modules;
mod netdevsim;
mod numa;
mod offload;
mod registers;
mod spread;
mod two_vfs;
mod vdpa;
mod vdpa_netlink;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringspan_testkit::qemu::{self, Guest, GuestSpec, split_arguments};
use ringspan_testkit::{paths, wait};

use crate::debian13::Debian13;
use crate::{packages, step};

/// Longest time for all checks, on a machine that has much else to do.
const LIMIT: Duration = Duration::from_secs(3600);

/// `first` and `second` are the ends of a wire, each with virtual functions of its own, and `third` listens there; `story` is what [`inside`] says.
const MACHINE: &str = "-machine kernel-irqchip=split -device intel-iommu,intremap=on,caching-mode=on \
    -device pcie-root-port,id=port1,chassis=1,addr=0x10 -device pcie-root-port,id=port2,chassis=2,addr=0x11 \
    -netdev hubport,id=first,hubid=0 -device igb,id=nic1,bus=port1,netdev=first,mac=52:54:00:aa:00:01,romfile= \
    -netdev hubport,id=second,hubid=0 -device igb,id=nic2,bus=port2,netdev=second,mac=52:54:00:aa:00:02,romfile= \
    -netdev hubport,id=third,hubid=0 -device virtio-net-pci,netdev=third,mac=52:54:00:aa:00:03";
/// The functions by their addresses inside.
const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:02:00.0";
/// A NIC of the host's own on the same wire.
const THIRD_MAC: &str = "52:54:00:aa:00:03";
/// iomem: the lab reaches into registers of a NIC that DPDK drives. no_timer_check: where the processor is shared, the kernel may see too few
/// ticks of its timer while it starts, and would give up.
const KERNEL: &str = "iomem=relaxed no_timer_check";
/// What the host's kernel is told besides when nothing was broken before.
const IOMMU: &str = "intel_iommu=on iommu=pt";
/// In hosts that are booted to be found broken: bridges without ACS, so that functions share a group of the IOMMU.
const WITHOUT_ACS: &str = "disable-acs=on";

#[derive(clap::Args)]
pub struct Options {
    /// Run the checks on this machine: what `lab` does in the emulated host
    #[arg(long, hide = true)]
    inside: bool,
    /// Inside, of a host that is booted to be found broken: which one
    #[arg(long, hide = true, value_name = "NUMBER")]
    boot: Option<usize>,
    /// Inside, of the host of two NUMA nodes
    #[arg(long, hide = true)]
    numa: bool,
    /// Only the checks whose names contain this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// Installs, builds, boots the host, runs all checks in it, and cleans up.
pub fn run(options: &Options) -> Result<()> {
    let only = options.only.as_deref().unwrap_or_default();
    if let Some(number) = options.boot {
        // For who boots the next one.
        println!("{}", doctor::breaks_boot(&mut story_port()?, number)?);
        return Ok(());
    }
    if options.numa {
        // For who counts.
        println!("{}", numa::run(story_port()?, only)?);
        return Ok(());
    }
    if options.inside {
        return inside::run(only);
    }
    wait::stop_on_signals()?;
    packages::ensure(packages::ALL)?;
    let programs: PathBuf = match std::env::var_os("RINGSPAN_BIN_DIR") {
        Some(folder) => folder.into(),
        None => step::build_release()?,
    };
    let qemu = Debian13::prepare()?.qemu();
    let start = Instant::now();
    let passed = check(&programs, qemu, only)?;
    println!("\n    {passed} checks passed in {} s", start.elapsed().as_secs());
    Ok(())
}

/// Boots the host by this QEMU and runs the checks whose names contain `only`. Returns how many passed, which are all.
pub fn check(programs: &Path, qemu: Vec<String>, only: &str) -> Result<u32> {
    let missing = qemu::missing();
    ensure!(missing.is_empty(), "guests cannot be booted here: {}", missing.join(", "));
    let mut words = IOMMU.to_owned();
    let mut passed = 0;
    if doctor::is_boot_wanted(only) {
        for (number, boot) in doctor::BOOTS.iter().enumerate() {
            step::say(&format!("booting a host that is broken: {}", boot.words));
            let bridge = "-device pcie-root-port,";
            let machine = MACHINE.replace(bridge, &format!("{bridge}{WITHOUT_ACS},"));
            words = inside_of(programs, &qemu, &machine, boot.words, "", &format!("--boot {number}"))?.trim().into();
            passed += boot.says();
        }
    }
    if numa::is_wanted(only) {
        step::say("booting a host of two NUMA nodes");
        passed += counted(&inside_of(programs, &qemu, numa::MACHINE, "", "", &format!("--numa --only '{only}'"))?)?;
        if only.contains(numa::WORD) {
            return Ok(passed);
        }
    }
    step::say(&format!("booting an SR-IOV host: QEMU's igb behind an IOMMU ({words})"));
    let (mut machine, mut variables) = (MACHINE.to_owned(), String::new());
    if vdpa::is_wanted(only) || vdpa_netlink::is_wanted(only) {
        machine =
            format!("{} {}", machine.replace("caching-mode=on", "caching-mode=on,device-iotlb=on"), vdpa::MACHINE);
        variables += &format!("{}='{}' ", vdpa::MODULES, modules::prepare(&modules::VDPA)?.display());
    }
    if netdevsim::is_wanted(only) {
        variables += &format!("{}='{}' ", netdevsim::MODULES, modules::prepare(&modules::NETDEVSIM)?.display());
        let estimate = modules::prepare(&modules::SMALL_ESTIMATE)?;
        variables += &format!("{}='{}' ", netdevsim::ESTIMATE, estimate.display());
    }
    let mut qemu = qemu;
    let wire = vdpa::is_wanted(only).then(vdpa::outside::Wire::new).transpose()?;
    if let Some(wire) = &wire {
        machine = format!("{machine} {}", vdpa::outside::MACHINE);
        qemu = wire.qemu(&qemu);
    }
    let said = inside_of(programs, &qemu, &machine, &words, &variables, &format!("--only '{only}'"))?;
    Ok(passed + counted(&said)?)
}

/// How many checks passed, as the other side said.
fn counted(said: &str) -> Result<u32> {
    said.trim().parse().with_context(|| format!("the checks said {said:?}"))
}

/// Boots a machine whose kernel is told these words, and runs this program in it with these variables. Returns what that said.
fn inside_of(
    programs: &Path,
    qemu: &[String],
    machine: &str,
    words: &str,
    variables: &str,
    options: &str,
) -> Result<String> {
    let start = Instant::now();
    let folder = paths::scratch()?;
    let story = folder.path().join("story");
    let mut nics = split_arguments(machine);
    nics.extend(["-chardev".into(), format!("file,id=story,path={}", story.display())]);
    nics.extend(["-device".into(), "virtserialport,bus=serial.0,nr=2,chardev=story,name=ringspan.story".into()]);
    let limit = LIMIT + Duration::from_secs(180);
    let kernel = format!("{words} {KERNEL}");
    let spec =
        GuestSpec { nics, qemu: qemu.to_vec(), kernel, cpus: 2, memory_mib: 2048, limit, ..GuestSpec::default() };
    // QEMU 10.0 sometimes ends with an assertion (iotlb_to_section) while the kernel moves the NICs' registers, and a busy machine stops its clock.
    let mut host = Guest::boot(&spec).or_else(|error| {
        println!("    once more: {error:#}");
        Guest::boot(&spec)
    })?;
    println!("    booted in {:.1} s", start.elapsed().as_secs_f64());

    step::say("checks inside");
    let program = std::env::current_exe()?;
    // The host's own /tmp would hide a build folder that is there.
    let script = format!(
        "umount /tmp; RINGSPAN_BIN_DIR='{}' {variables} RUST_BACKTRACE=0 exec '{}' lab --inside {options}",
        programs.display(),
        program.display()
    );
    let done = AtomicBool::new(false);
    let finished = std::thread::scope(|scope| {
        scope.spawn(|| show(&story, &done));
        let finished = host.run(&script, LIMIT);
        done.store(true, Ordering::Relaxed);
        finished
    })?;
    if finished.code != 0 {
        bail!("the checks ended with {}:\n{}\nkernel:\n{}", finished.code, finished.text.trim_end(), host.console());
    }
    Ok(finished.text)
}

/// Prints what is written to `story`, as it comes.
fn show(story: &Path, done: &AtomicBool) {
    let mut shown = 0;
    loop {
        let last = done.load(Ordering::Relaxed);
        let text = fs::read(story).unwrap_or_default();
        // Whole lines only.
        let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if end > shown {
            print!("{}", String::from_utf8_lossy(&text[shown..end]));
            shown = end;
        }
        if last {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Where [`inside`] writes what it sees.
fn story_port() -> Result<fs::File> {
    let ports = fs::read_dir("/dev")?.flatten().map(|entry| entry.path());
    let port = ports.into_iter().find(|path| path.to_string_lossy().ends_with("p2") && is_port(path));
    let port = port.context("no port for the story: this is not the emulated host")?;
    fs::File::options().write(true).open(&port).with_context(|| format!("cannot open {}", port.display()))
}

fn is_port(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vport"))
}
