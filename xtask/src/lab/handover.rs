//! A VF that is handed over whole: QEMU, in the emulated host, gets it by the words that `ringspan port attach --mode passthrough` prints, and its
//! guest's bus has the NIC. No guest is booted in here: that takes minutes, and is another check ([`super::booted`]).

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ringspan_testkit::daemon::Daemon;
use ringspan_testkit::pci::Function;
use ringspan_testkit::qemu::{Monitor, split_arguments};
use ringspan_testkit::{paths, wait};
use serde_json::Value;

use super::FIRST;
use super::control::{CONFIGURATION, Control, LIMIT, tool};

const NAME: &str =
    "a VF is handed over whole to QEMU by what was printed, is not taken away from it, and is free when it ends";
const MAC: &str = "52:54:00:aa:08:08";
/// In hugepages: behind an emulated IOMMU, ordinary pages take minutes, one after the other.
const MACHINE: &str = "-accel tcg -display none -nodefaults -m 64M -object memory-backend-memfd,id=inner,size=64M,share=on,hugetlb=on,hugetlbsize=2M \
     -machine q35,memory-backend=inner -device pcie-root-port,id=port0,chassis=1";
const HUGE_PAGES: &str = "40";
const RESERVED: &str = "/proc/sys/vm/nr_hugepages";

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

/// A QEMU that ends with this.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn check(control: &mut Control) -> Result<()> {
    let pf = wait::until(LIMIT, "the PF's interface", || Ok(Function::at(FIRST)?.interface()))?;
    control.done(&["vf", "enable", &pf, "2"])?;
    let link = fs::read_link(format!("/sys/bus/pci/devices/{FIRST}/virtfn1"))?;
    let vf = Function::at(&link.file_name().context("a VF's link")?.to_string_lossy())?;
    let driver = wait::until(LIMIT, "the VF's driver", || Ok(vf.driver()))?;
    let words =
        ["port", "attach", "inner", "--device", vf.address(), "--mode", "passthrough", "--mac", MAC, "--bus", "port0"];
    let printed = control.done(&words)?;
    ensure!(vf.driver().as_deref() == Some("vfio-pci"), "{} is driven by {:?}", vf.address(), vf.driver());
    let settings = tool("ip", &["link", "show", &pf])?;
    ensure!(settings.lines().any(|line| line.contains("vf 1 ") && line.contains(MAC)), "{settings}");

    fs::write(RESERVED, HUGE_PAGES)?;
    let folder = paths::scratch()?;
    let socket = folder.path().join("qmp");
    let log = fs::File::create(folder.path().join("log"))?;
    let mut command = Command::new("qemu-system-x86_64");
    command.args(split_arguments(MACHINE)).args(split_arguments(&printed));
    command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let qemu = Qemu(command.spawn()?);
    let said = || fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    let monitor = Monitor::new(&socket);
    // The guest's firmware numbers the buses.
    let nic = wait::until(3 * LIMIT, "the NIC on the guest's bus", || {
        let buses = monitor.execute("query-pci", LIMIT).ok();
        Ok(buses.and_then(|buses| device(&buses, "nic-inner-nic0")))
    })
    .with_context(said)?;
    writeln!(control.story, "    on the guest's bus: {}", nic["id"])?;
    ensure!(nic["id"]["vendor"] == 0x8086 && nic["id"]["device"] == 0x10ca, "{nic}");

    // Somebody has it: it is not taken away.
    control.refused(&["port", "detach", "inner"], &[vf.address(), "process"])?;
    ensure!(vf.driver().as_deref() == Some("vfio-pci"), "{} is driven by {:?}", vf.address(), vf.driver());
    let list = control.json(&["attachment", "list"])?;
    ensure!(list.as_array().is_some_and(|list| list.len() == 1), "{list}");
    drop(qemu);
    control.done(&["port", "detach", "inner"])?;
    ensure!(vf.driver().as_deref() == Some(driver.as_str()), "{driver} does not have it back: {:?}", vf.driver());
    control.done(&["port", "detach", "inner"])?;
    let list = control.json(&["attachment", "list"])?;
    ensure!(list.as_array().is_some_and(Vec::is_empty), "{list}");
    fs::write(RESERVED, "0")?;
    control.done(&["vf", "enable", &pf, "0"])?;
    Ok(())
}

/// The device with this id, on whatever bus.
fn device(buses: &Value, id: &str) -> Option<Value> {
    let devices = buses.as_array()?.iter().flat_map(|bus| bus["devices"].as_array().into_iter().flatten());
    for one in devices {
        if one["qdev_id"] == id {
            return Some(one.clone());
        }
        let behind = Value::Array(vec![one["pci_bridge"].clone()]);
        if let Some(found) = device(&behind, id) {
            return Some(found);
        }
    }
    None
}
