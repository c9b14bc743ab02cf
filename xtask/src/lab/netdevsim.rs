//! Switchdev mode on a real kernel's devlink: netdevsim, whose switch has as many ports as one likes, and no packets.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ringspan_testkit::daemon::Daemon;
use ringspan_testkit::wait;
use serde_json::Value;

use super::control::{CONFIGURATION, Control, tool};
use super::{doctor, killed};

type Check = (&'static str, fn(&mut Control) -> Result<()>);

/// In this order, with a device of one port in legacy mode.
const CHECKS: &[Check] = &[
    ("netdevsim: a switch goes to switchdev mode with 64 representors and back, three times", round_trips),
    ("netdevsim: 250 virtual functions have 250 representors, and nobody's buffer is too small", many),
    ("netdevsim: a mode that fails amid its representors leaves everything as it was, and says why", fails_amid),
    ("netdevsim: a setting that the switch does not have takes the mode back", rolls_back),
    ("netdevsim: a daemon is killed amid a change of mode, and the next one finishes it", daemon_is_killed),
    ("netdevsim: the doctor finds and mends what the agent left on representors (agent-qdiscs)", broken),
    (
        "netdevsim: ip says \"Buffer too small for object\", the doctor why, and ringspan lists all the same (ip-dump)",
        too_small,
    ),
    ("netdevsim: a device that goes meanwhile, and one that devlink does not know, are refused", refused),
];

/// Names the folder of the module, inside.
pub const MODULES: &str = "RINGSPAN_LAB_NETDEVSIM";
/// The same of the one that makes the kernel's estimate of messages too small.
pub const ESTIMATE: &str = "RINGSPAN_LAB_SMALL_ESTIMATE";
const DEVICE: &str = "netdevsim/netdevsim10";
const FOLDER: &str = "/sys/bus/netdevsim/devices/netdevsim10";
/// Where it is told how many VFs it may have.
const MOST: &str = "/sys/kernel/debug/netdevsim/netdevsim10/max_vfs";
/// VF 40's port has this number (drivers/net/netdevsim/netdevsim.h, NSIM_DEV_VF_PORT_INDEX_BASE). A port of the wire's may take it first.
const PORT_OF_VF_40: &str = "168";

/// Whether the name of a check contains this.
pub fn is_wanted(only: &str) -> bool {
    CHECKS.iter().any(|(name, _)| name.contains(only))
}

/// Runs the checks whose names contain `only`. Returns how many passed.
pub fn run(story: &mut fs::File, only: &str) -> Result<u32> {
    if !is_wanted(only) {
        return Ok(0);
    }
    let module = std::env::var(MODULES).with_context(|| format!("{MODULES} names no folder"))?;
    for needed in ["psample", "macsec", "udp_tunnel"] {
        tool("modprobe", &[needed])?;
    }
    tool("insmod", &[&format!("{module}/netdevsim.ko")])?;
    if !Path::new("/sys/kernel/debug/netdevsim").exists() {
        tool("mount", &["-t", "debugfs", "debugfs", "/sys/kernel/debug"])?;
    }
    let daemon = Daemon::start(CONFIGURATION, None)?;
    let mut control = Control { daemon, interface: String::new(), story };
    let mut done = 0;
    for (name, check) in CHECKS.iter().filter(|(name, _)| name.contains(only)) {
        let start = Instant::now();
        writeln!(control.story, "--> {name}")?;
        fs::write("/sys/bus/netdevsim/new_device", "10 1").context("a device of netdevsim's")?;
        check(&mut control).with_context(|| format!("{name}\n{}", control.daemon.story()))?;
        if Path::new(FOLDER).exists() {
            fs::write("/sys/bus/netdevsim/del_device", "10").context("the end of netdevsim's device")?;
        }
        writeln!(control.story, "    {:.1} s", start.elapsed().as_secs_f64())?;
        done += 1;
    }
    Ok(done)
}

/// Its VFs: only in legacy mode, where they have no ports yet.
fn vfs(count: u32) -> Result<()> {
    fs::write(MOST, count.to_string()).with_context(|| format!("{count} VFs at most"))?;
    fs::write(format!("{FOLDER}/sriov_numvfs"), count.to_string()).with_context(|| format!("{count} VFs"))
}

fn switch(control: &mut Control, words: &[&str]) -> Result<Value> {
    control.json(&[&["eswitch"], words].concat())
}

fn show(control: &mut Control) -> Result<Value> {
    switch(control, &["show", DEVICE])
}

fn set(control: &mut Control, mode: &str) -> Result<Value> {
    switch(control, &["set", DEVICE, "--mode", mode])
}

/// VFs whose representors are there as interfaces of the kernel's, each with a name of its own.
fn represented(switch: &Value) -> usize {
    let all = switch["representors"].as_array().into_iter().flatten();
    let names: std::collections::BTreeSet<&str> = all.filter_map(|one| one["interface"].as_str()).collect();
    names.iter().filter(|name| Path::new("/sys/class/net").join(name).exists()).count()
}

/// Ports of VFs, as the kernel's own tool shows them.
fn ports() -> Result<usize> {
    let seen = tool("devlink", &["port", "show"])?;
    Ok(seen.lines().filter(|line| line.contains(DEVICE) && line.contains("flavour pcivf")).count())
}

fn round_trips(control: &mut Control) -> Result<()> {
    vfs(64)?;
    let before = show(control)?;
    ensure!(before["mode"] == "legacy" && represented(&before) == 0, "{before}");
    for round in 0..3 {
        let there = set(control, "switchdev")?;
        ensure!(there["mode"] == "switchdev" && represented(&there) == 64, "round {round}: {there}");
        let numbers = there["representors"].as_array().into_iter().flatten().map(|one| one["vf"].as_u64());
        ensure!(numbers.eq((0..64).map(Some)), "{there}");
        ensure!(ports()? == 64, "devlink shows {} ports of VFs", ports()?);
        let again = set(control, "switchdev")?;
        ensure!(again["done"].as_array().is_none_or(Vec::is_empty), "what is so already was done again: {again}");
        let back = set(control, "legacy")?;
        ensure!(back["mode"] == "legacy" && represented(&back) == 0, "round {round}: {back}");
        ensure!(ports()? == 0, "devlink still shows {} ports of VFs", ports()?);
    }
    Ok(())
}

/// In legacy mode the PF's link has the list of all VFs, which is what a dump fails with; in switchdev mode there are 250 links more.
fn many(control: &mut Control) -> Result<()> {
    vfs(250)?;
    let interface = show(control)?["interface"].as_str().context("the PF has no interface")?.to_owned();
    let seen = wait::run(std::process::Command::new("ip").args(["link", "show"]), super::control::LIMIT)?;
    let vfs = seen.text.lines().filter(|line| line.trim_start().starts_with("vf ")).count();
    let last = seen.text.lines().last().unwrap_or_default();
    writeln!(control.story, "    ip link show: exit code {}, {vfs} VFs of {interface}; {last}", seen.code)?;
    ensure!(last.contains("Truncated VF list"), "ip shows all of 250 VFs: {last}");
    let report = control.daemon.cli(&["doctor", "--json"])?.text;
    let expected = format!("ip shows some of {interface}'s VFs only");
    ensure!(report.contains(&expected), "the doctor does not say so: {report}");
    for words in [&["device", "list"][..], &["pf", "list"]] {
        control.json(words)?;
    }
    let there = set(control, "switchdev")?;
    ensure!(represented(&there) == 250 && ports()? == 250, "{} of 250 representors", represented(&there));
    for words in [&["device", "list"][..], &["pf", "list"]] {
        control.json(words)?;
    }
    writeln!(control.story, "    250 representors")?;
    let back = set(control, "legacy")?;
    ensure!(back["mode"] == "legacy" && ports()? == 0, "{back}");
    Ok(())
}

/// One of the ports cannot be made, because another one has its number.
fn fails_amid(control: &mut Control) -> Result<()> {
    vfs(64)?;
    fs::write(format!("{FOLDER}/new_port"), PORT_OF_VF_40)?;
    let before = show(control)?;
    let offload = before["hw_tc_offload"].as_bool().context("no hw-tc-offload")?;
    let other = (!offload).to_string();
    let words = ["eswitch", "set", DEVICE, "--mode", "switchdev", "--hw-tc-offload", &other];
    control.refused(&words, &["Failed to initialize VFs' netdevsim ports", "undone", "hw-tc-offload"])?;
    let after = show(control)?;
    ensure!(after == before && ports()? == 0, "before: {before}\nafter: {after}");
    fs::write(format!("{FOLDER}/del_port"), PORT_OF_VF_40)?;
    control.done(&words)?;
    let after = show(control)?;
    ensure!(after["mode"] == "switchdev" && represented(&after) == 64, "{after}");
    ensure!(after["hw_tc_offload"] == !offload, "{after}");
    Ok(())
}

fn rolls_back(control: &mut Control) -> Result<()> {
    vfs(4)?;
    let words = ["eswitch", "set", DEVICE, "--mode", "switchdev", "--inline-mode", "transport"];
    control.refused(&words, &["inline mode", "undone", "switchdev mode"])?;
    let after = show(control)?;
    ensure!(after["mode"] == "legacy" && ports()? == 0, "{after}");
    Ok(())
}

fn daemon_is_killed(control: &mut Control) -> Result<()> {
    vfs(64)?;
    let mut amid = 0;
    for after in [0, 30, 100, 300, 700, 1500] {
        let told = killed::killed(control, &["eswitch", "set", DEVICE, "--mode", "switchdev"], after)?;
        let now = show(control)?;
        let (mode, count) = (now["mode"].as_str().unwrap_or_default(), represented(&now));
        writeln!(control.story, "    killed after {after} ms, amid: {}: {mode}, {count} representors", told.is_some())?;
        amid += u32::from(told.is_some());
        ensure!((mode, count) == ("switchdev", 64) || (mode, count) == ("legacy", 0) && told.is_none(), "{now}");
        set(control, "legacy")?;
    }
    ensure!(amid > 0, "it was never killed amid a change");
    Ok(())
}

fn broken(control: &mut Control) -> Result<()> {
    vfs(4)?;
    set(control, "switchdev")?;
    doctor::on_representors(control.story)
}

/// The kernel's own end of a dump, and the words of the real `ip`: on a kernel that counts the GUIDs of VFs, one that forgets them.
fn too_small(control: &mut Control) -> Result<()> {
    // More than a list may have that is not counted right, and less than what its length can say.
    vfs(200)?;
    let module = std::env::var(ESTIMATE).with_context(|| format!("{ESTIMATE} names no folder"))?;
    doctor::on_a_small_estimate(control.story, &format!("{module}/small_estimate.ko"), |story| {
        let seen = wait::run(std::process::Command::new("ip").args(["link", "show"]), super::control::LIMIT)?;
        let said = seen.text.lines().filter(|line| line.contains("Error") || line.contains("terminated"));
        writeln!(story, "    ip link show: exit code {}; {}", seen.code, said.collect::<Vec<_>>().join("; "))?;
        // Its exit code may be 0 all the same (iproute2 6.1).
        ensure!(seen.text.contains("Buffer too small for object"), "{}", seen.text);
        // For one interface, and as ringspan asks.
        tool("ip", &["link", "show", "dev", "lo"])?;
        for words in [&["device", "list", "--json"][..], &["pf", "list", "--json"]] {
            control.daemon.cli(words)?.success("ringspan beside an ip that fails")?;
        }
        Ok(())
    })
}

fn refused(control: &mut Control) -> Result<()> {
    control
        .refused(&["eswitch", "show", "netdevsim/netdevsim11"], &["netdevsim/netdevsim11", "devlink does not know"])?;
    vfs(64)?;
    set(control, "switchdev")?;
    fs::write("/sys/bus/netdevsim/del_device", "10")?;
    for words in [&["show", DEVICE][..], &["set", DEVICE, "--mode", "legacy"]] {
        control.refused(&[&["eswitch"], words].concat(), &[DEVICE, "devlink does not know"])?;
    }
    Ok(())
}
