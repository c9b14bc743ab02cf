//! A guest that is booted, in the emulated host, on a VF that was handed over whole: by the words that `ringspan port attach --mode passthrough` prints, with the VF's
//! own driver in the guest's kernel, and with pings to and from the PF's network. The VF is then taken out of the guest that runs, and plugged in again, by what is printed for
//! QMP. The processor that is emulated emulates another one: it takes minutes.

use std::fs;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_testkit::daemon::Daemon;
use ringspan_testkit::pci::Function;
use ringspan_testkit::qemu::{Guest, GuestSpec, split_arguments};
use ringspan_testkit::wait;

use super::FIRST;
use super::control::{CONFIGURATION, Control, LIMIT, tool};

const NAME: &str = "a guest is booted on a VF that was handed over whole, is reached by the VF's own driver, and lets go of it and takes it while it runs";
const MAC: &str = "52:54:00:aa:08:09";
const PF: &str = "192.0.2.1";
const GUEST: &str = "192.0.2.9";
/// In hugepages: behind an emulated IOMMU, ordinary pages take minutes, one after the other.
const MACHINE: &str = "-object memory-backend-memfd,id=inner,size=192M,share=on,hugetlb=on,hugetlbsize=2M -machine memory-backend=inner \
     -device pcie-root-port,id=port0,chassis=1";
const HUGE_PAGES: &str = "100";
const RESERVED: &str = "/proc/sys/vm/nr_hugepages";
/// Nothing that would take a slow processor for a broken one.
const KERNEL: &str = "no_timer_check tsc=reliable nowatchdog rcupdate.rcu_cpu_stall_suppress=1";
/// Until the guest takes commands.
const BOOT: Duration = Duration::from_secs(1500);
/// Of one command in there.
const SLOW: Duration = Duration::from_secs(300);

/// Runs it when its name contains `only`. Returns how many checks passed.
pub fn run(story: &mut fs::File, only: &str) -> Result<u32> {
    if !NAME.contains(only) {
        return Ok(0);
    }
    let start = Instant::now();
    writeln!(story, "--> {NAME}")?;
    let daemon = Daemon::start(CONFIGURATION, None)?;
    let mut control = Control { daemon, interface: String::new(), story };
    check(&mut control).with_context(|| format!("{NAME}\n{}", control.daemon.story()))?;
    writeln!(control.story, "    {:.1} s", start.elapsed().as_secs_f64())?;
    Ok(1)
}

fn check(control: &mut Control) -> Result<()> {
    let pf = wait::until(LIMIT, "the PF's interface", || Ok(Function::at(FIRST)?.interface()))?;
    tool("ip", &["link", "set", &pf, "up"])?;
    tool("ip", &["address", "add", &format!("{PF}/24"), "dev", &pf])?;
    control.done(&["vf", "enable", &pf, "2"])?;
    let link = fs::read_link(format!("/sys/bus/pci/devices/{FIRST}/virtfn1"))?;
    let vf = Function::at(&link.file_name().context("a VF's link")?.to_string_lossy())?;
    let driver = wait::until(LIMIT, "the VF's driver", || Ok(vf.driver()))?;
    let words =
        ["port", "attach", "inner", "--device", vf.address(), "--mode", "passthrough", "--mac", MAC, "--bus", "port0"];
    let printed = control.done(&words)?;

    fs::write(RESERVED, HUGE_PAGES)?;
    let mut nics = split_arguments(MACHINE);
    nics.extend(split_arguments(&printed));
    let spec = GuestSpec {
        nics,
        kernel: KERNEL.into(),
        alone: true,
        modules: vec!["igbvf"],
        ready: BOOT,
        limit: 2 * BOOT,
        ..GuestSpec::default()
    };
    let start = Instant::now();
    let mut guest = Guest::boot(&spec)?;
    writeln!(control.story, "    booted in {:.0} s", start.elapsed().as_secs_f64())?;
    reached(control, &mut guest)?;
    let interrupts = guest.sh_for(SLOW, "grep eth0 /proc/interrupts")?;
    writeln!(control.story, "    {}", interrupts.trim_end().replace('\n', "\n    "))?;

    // It is the guest's: not taken away. As it was printed, the guest lets go of it, and only then the VF is released.
    control.refused(&["port", "detach", "inner"], &[vf.address(), "process", "device_del", "DEVICE_DELETED"])?;
    let qemu = control.json(&words)?["qemu"].clone();
    let mut monitor = guest.monitor.converse(SLOW)?;
    let steps = qemu["unplug"].as_array().context("how it is unplugged")?;
    let start = Instant::now();
    for (number, step) in steps.iter().enumerate() {
        let last = number + 1 == steps.len();
        ensure!(vf.driver().as_deref() == Some("vfio-pci"), "{:?} has the VF before {step}", vf.driver());
        ensure!(last == step["call"].is_object(), "{steps:?}");
        monitor.follow(&control.daemon, step).with_context(|| format!("{step}"))?;
        writeln!(control.story, "    {:.1} s: {step}", start.elapsed().as_secs_f64())?;
    }
    ensure!(vf.driver().as_deref() == Some(driver.as_str()), "{driver} does not have it back: {:?}", vf.driver());
    let left = guest.sh_for(SLOW, "ls /sys/class/net")?;
    ensure!(!left.contains("eth0"), "the guest still has {left}");
    let list = control.json(&["attachment", "list"])?;
    ensure!(list.as_array().is_some_and(Vec::is_empty), "{list}");

    // And again, while it runs.
    let qemu = control.json(&words)?["qemu"].clone();
    monitor.forget();
    let start = Instant::now();
    for step in qemu["plug"].as_array().context("how it is plugged in")? {
        monitor.follow(&control.daemon, step).with_context(|| format!("{step}"))?;
        writeln!(control.story, "    {:.1} s: {step}", start.elapsed().as_secs_f64())?;
    }
    drop(monitor);
    guest.sh_for(SLOW, "until [ -e /sys/class/net/eth0/device/driver ]; do usleep 200000; done")?;
    writeln!(control.story, "    {:.1} s: the guest's driver has it", start.elapsed().as_secs_f64())?;
    reached(control, &mut guest)?;

    // Free when the guest is gone, too.
    control.refused(&["port", "detach", "inner"], &[vf.address(), "process"])?;
    drop(guest);
    control.done(&["port", "detach", "inner"])?;
    ensure!(vf.driver().as_deref() == Some(driver.as_str()), "{driver} does not have it back: {:?}", vf.driver());
    fs::write(RESERVED, "0")?;
    control.done(&["vf", "enable", &pf, "0"])?;
    tool("ip", &["address", "flush", "dev", &pf])?;
    tool("ip", &["link", "set", &pf, "down"])?;
    Ok(())
}

/// The guest has the VF by its own driver, and the two sides reach each other.
fn reached(control: &mut Control, guest: &mut Guest) -> Result<()> {
    let seen = guest.sh_for(
        SLOW,
        "cat /sys/class/net/eth0/address; basename $(readlink /sys/class/net/eth0/device/driver); ip link set eth0 up; \
         until [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do usleep 200000; done",
    )?;
    ensure!(seen.lines().eq([MAC, "igbvf"]), "the guest's NIC: {seen}");
    guest.sh_for(SLOW, &format!("ip address add {GUEST}/24 dev eth0"))?;
    let pinged = guest.sh_for(SLOW, &format!("ping -c 3 -w 200 {PF}"))?;
    writeln!(control.story, "    from the guest: {}", pinged.lines().last().unwrap_or_default())?;
    let mut ping = Command::new("ping");
    let pinged = wait::run(ping.args(["-c", "3", "-w", "200", GUEST]), SLOW)?.success("ping of the guest")?;
    writeln!(control.story, "    from the PF: {}", pinged.lines().last().unwrap_or_default())?;
    Ok(())
}
