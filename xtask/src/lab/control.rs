//! What `ringspan` does to the NICs of the emulated host, seen with the kernel's own eyes: before anything of DPDK runs, without hugepages and ports.

use std::fs;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_testkit::daemon::Daemon;
use ringspan_testkit::pci::Function;
use ringspan_testkit::wait::{self, Finished};
use serde_json::Value;

use super::{FIRST, SECOND};

type Check = (&'static str, fn(&mut Control) -> Result<()>);

/// In this order: a check finds what the one before it left.
const CHECKS: &[Check] = &[
    ("both NICs are listed as they are", inventory),
    ("virtual functions are made, and asked for again they stay", enable),
    ("what a virtual function may do is set and read back", set),
    ("a virtual function goes to vfio-pci and back", bind),
    ("what cannot be is refused, with what to do", refusals),
    ("the NIC has no switch to ask, and the reason is said", eswitch),
    ("the doctor finds the IOMMU at work", doctor),
    ("virtual functions are taken away", disable),
];
/// An 82576 has eight, of which igb leaves one out (drivers/net/ethernet/intel/igb/igb_main.c, `igb_probe_vfs`).
pub(super) const TOTAL: u64 = 7;
/// No ports; a lane that takes little of the memory which the hugepages of later checks come from.
pub(super) const CONFIGURATION: &str = "[dataplane]\ncores = [0]\nmemory_mib = 64\n";
const MAC: &str = "52:54:00:aa:01:01";
pub(super) const LIMIT: Duration = Duration::from_secs(60);

pub(super) struct Control<'a> {
    pub(super) daemon: Daemon,
    /// The first NIC's interface.
    pub(super) interface: String,
    pub(super) story: &'a mut fs::File,
}

/// Runs all checks when the name of one contains `only`. Returns how many passed.
pub fn run(story: &mut fs::File, only: &str) -> Result<u32> {
    if !CHECKS.iter().any(|(name, _)| name.contains(only)) {
        return Ok(0);
    }
    let nic = Function::at(FIRST)?;
    let interface = wait::until(LIMIT, "the first NIC's interface", || Ok(nic.interface()))?;
    let start = Instant::now();
    let daemon = Daemon::start(CONFIGURATION, None)?;
    writeln!(story, "    a daemon, ready after {:.1} s", start.elapsed().as_secs_f64())?;
    let mut control = Control { daemon, interface, story };
    for (name, check) in CHECKS {
        let start = Instant::now();
        writeln!(control.story, "--> {name}")?;
        check(&mut control).with_context(|| format!("{name}\n{}", control.daemon.story()))?;
        writeln!(control.story, "    {:.1} s", start.elapsed().as_secs_f64())?;
    }
    Ok(CHECKS.len() as u32)
}

impl Control<'_> {
    pub(super) fn cli(&mut self, words: &[&str]) -> Result<Finished> {
        let finished = self.daemon.cli(words)?;
        if finished.code != 0 || !words.contains(&"--json") {
            let shown = finished.text.trim_end().replace('\n', "\n      ");
            writeln!(self.story, "    $ ringspan {}\n      {shown}", words.join(" "))?;
        }
        Ok(finished)
    }

    pub(super) fn done(&mut self, words: &[&str]) -> Result<String> {
        self.cli(words)?.success(&format!("ringspan {}", words.join(" ")))
    }

    pub(super) fn json(&mut self, words: &[&str]) -> Result<Value> {
        let text = self.done(&[words, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("ringspan {}: {text}", words.join(" ")))
    }

    /// Exit code 1, and all of these in the message.
    pub(super) fn refused(&mut self, words: &[&str], says: &[&str]) -> Result<()> {
        let finished = self.cli(words)?;
        ensure!(finished.code == 1, "ringspan {}: exit code {}", words.join(" "), finished.code);
        for part in says {
            ensure!(finished.text.contains(part), "ringspan {}: no {part:?} in: {}", words.join(" "), finished.text);
        }
        Ok(())
    }

    /// The VFs of the first NIC, by their numbers.
    fn virtual_functions(&mut self) -> Result<Vec<Value>> {
        let devices = self.json(&["device", "list"])?;
        let mut found: Vec<Value> =
            devices.as_array().into_iter().flatten().filter(|one| one["pf"] == FIRST).cloned().collect();
        found.sort_by_key(|one| one["vf"].as_u64());
        Ok(found)
    }
}

/// The kernel's own tools.
pub(super) fn tool(program: &str, words: &[&str]) -> Result<String> {
    wait::run(Command::new(program).args(words), LIMIT)?.success(&format!("{program} {}", words.join(" ")))
}

fn inventory(control: &mut Control) -> Result<()> {
    let (pfs, devices) = (control.json(&["pf", "list"])?, control.json(&["device", "list"])?);
    for address in [FIRST, SECOND] {
        let function = Function::at(address)?;
        let find = |list: &Value| list.as_array()?.iter().find(|one| one["address"] == address).cloned();
        let pf = find(&pfs).with_context(|| format!("no PF {address}: {pfs}"))?;
        let device = find(&devices).with_context(|| format!("no device {address}: {devices}"))?;
        writeln!(control.story, "    {pf}")?;
        for one in [&pf, &device] {
            ensure!(one["vendor_device_id"] == "8086:10c9" && one["driver"] == "igb", "{one}");
            ensure!(one["model"].as_str().is_some_and(|model| model.contains("82576")), "{one}");
            ensure!(one["interface"].as_str().map(str::to_owned) == function.interface(), "{one}");
            ensure!(one["iommu_group"].as_u64().map(|group| group.to_string()) == function.iommu_group(), "{one}");
            ensure!(one["link_type"] == "ethernet" && one["capabilities"]["sriov"] == "yes", "{one}");
        }
        ensure!(pf["sriov"]["total"] == TOTAL && pf["sriov"]["enabled"] == 0, "{pf}");
        ensure!(pf["ovs_offload"]["possible"] == "no", "{pf}");
    }
    control.done(&["device", "list"])?;
    control.done(&["pf", "list"])?;
    Ok(())
}

fn enable(control: &mut Control) -> Result<()> {
    let interface = control.interface.clone();
    control.done(&["vf", "enable", &interface, "2"])?;
    let first = control.virtual_functions()?;
    ensure!(first.len() == 2, "{first:?}");
    for (number, vf) in first.iter().enumerate() {
        let function = Function::at(vf["address"].as_str().context("an address")?)?;
        ensure!(vf["vf"] == number && vf["vendor_device_id"] == "8086:10ca" && vf["sharing_mode"] == "SRIOV", "{vf}");
        ensure!(vf["pf_interface"] == interface.as_str(), "{vf}");
        let group = function.iommu_group().context("a VF without an IOMMU group")?;
        ensure!(vf["iommu_group"].as_u64().map(|group| group.to_string()) == Some(group), "{vf}");
    }
    control.done(&["vf", "enable", FIRST, "2"])?;
    let again = control.virtual_functions()?;
    ensure!(again.iter().map(|vf| &vf["id"]).eq(first.iter().map(|vf| &vf["id"])), "{again:?}");
    control.done(&["device", "list"])?;
    Ok(())
}

/// igb takes a rate only while the PF has a link (drivers/net/ethernet/intel/igb/igb_main.c, `igb_ndo_set_vf_bw`).
fn set(control: &mut Control) -> Result<()> {
    let interface = control.interface.clone();
    tool("ip", &["link", "set", &interface, "up"])?;
    wait::until(LIMIT, "the PF's link", || {
        Ok(tool("ip", &["link", "show", &interface])?.contains("LOWER_UP").then_some(()))
    })?;
    control.done(&["vf", "set", &interface, "0", "--mac", MAC, "--vlan", "5"])?;
    control.done(&["vf", "set", &interface, "0", "--max-rate", "100"])?;
    control.done(&["vf", "set", &interface, "0", "--spoof-check", "false", "--trust", "true"])?;
    let seen = tool("ip", &["link", "show", &interface])?;
    let line = seen.lines().find(|line| line.trim_start().starts_with("vf 0")).context("no VF 0 in ip link")?;
    writeln!(control.story, "    ip: {}", line.trim())?;
    for part in [MAC, "vlan 5", "100Mbps", "spoof checking off", "trust on"] {
        ensure!(line.contains(part), "no {part:?} in: {line}");
    }
    let address = control.virtual_functions()?[0]["address"].as_str().context("an address")?.to_owned();
    let device = control.json(&["device", "show", &address])?;
    writeln!(control.story, "    {}", device["settings"])?;
    ensure!(device["settings"]["mac"] == MAC && device["settings"]["vlan"] == 5, "{device}");
    ensure!(device["settings"]["max_rate"] == 100, "{device}");
    control.done(&["vf", "set", &interface, "0", "--vlan", "0", "--max-rate", "0"])?;
    Ok(())
}

fn bind(control: &mut Control) -> Result<()> {
    let address = control.virtual_functions()?[0]["address"].as_str().context("an address")?.to_owned();
    let function = Function::at(&address)?;
    let before = function.driver();
    control.done(&["device", "bind", &address, "vfio-pci"])?;
    ensure!(function.driver().as_deref() == Some("vfio-pci"), "{address} is driven by {:?}", function.driver());
    let interface = control.interface.clone();
    control.refused(&["vf", "enable", &interface, "4"], &["vfio-pci", "--disturb"])?;
    control.done(&["device", "bind", &address, "--restore"])?;
    ensure!(function.driver() == before, "{address} is driven by {:?}, {before:?} before", function.driver());
    Ok(())
}

fn refusals(control: &mut Control) -> Result<()> {
    let interface = control.interface.clone();
    let address = control.virtual_functions()?[0]["address"].as_str().context("an address")?.to_owned();
    control.refused(&["vf", "enable", &interface, "8"], &["8", "7"])?;
    control.refused(&["vf", "enable", &address, "1"], &[address.as_str(), FIRST])?;
    control.refused(&["vf", "enable", "nic-that-is-not", "1"], &["nic-that-is-not", "ringspan device list"])?;
    control.refused(&["vf", "set", &interface, "5", "--vlan", "5"], &["5", "2"])?;
    control.refused(&["device", "bind", &address, "no-such-driver"], &["no-such-driver", "modprobe"])?;
    ensure!(control.virtual_functions()?.len() == 2, "a refusal changed the number of VFs");
    Ok(())
}

fn eswitch(control: &mut Control) -> Result<()> {
    let interface = control.interface.clone();
    control.refused(&["eswitch", "show", &interface], &[interface.as_str(), "its driver has no"])?;
    control.refused(&["eswitch", "set", &interface, "--mode", "switchdev"], &[interface.as_str(), "its driver has no"])
}

/// Its exit code tells of the whole host, which lacks much.
fn doctor(control: &mut Control) -> Result<()> {
    let finished = control.daemon.cli(&["doctor", "--json"])?;
    let report = serde_json::Deserializer::from_str(&finished.text).into_iter::<Value>().next();
    let report = report.context("the doctor says nothing")?.with_context(|| finished.text.clone())?;
    let findings = report["findings"].as_array().context("no findings")?;
    for one in findings {
        writeln!(control.story, "    {} {} {}: {}", one["state"], one["check"], one["item"], one["message"])?;
    }
    for check in ["iommu", "iommu-passthrough"] {
        let one = findings.iter().find(|one| one["check"] == check).with_context(|| format!("nothing of {check}"))?;
        ensure!(one["state"] == "pass", "{one}");
    }
    Ok(())
}

fn disable(control: &mut Control) -> Result<()> {
    let interface = control.interface.clone();
    control.done(&["vf", "enable", &interface, "0"])?;
    ensure!(control.virtual_functions()?.is_empty(), "VFs are left");
    tool("ip", &["link", "set", &interface, "down"])?;
    Ok(())
}
