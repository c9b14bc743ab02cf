//! From the agent's `host.conf` to a guest on a VF: the file is applied, a guest is attached to a VF on the wire that the file names, is pinged by
//! another NIC, through the end of a daemon and the start of the next one, and the VF is free again.

use std::fs;
use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ringspan_testkit::daemon::{Daemon, find};
use ringspan_testkit::netns::Netns;
use ringspan_testkit::pci::Function;
use ringspan_testkit::testpmd::{self, Testpmd};
use ringspan_testkit::wait;
use serde_json::Value;

use super::control::{Control, LIMIT, TOTAL, tool};
use super::two_vfs::{ADDED, CONFIGURATION, HUGE_PAGES, INTERVAL, RESERVED, far_end, has_link};
use super::{FIRST, THIRD_MAC};

const NAME: &str = "host.conf: from the file to a guest on a VF, and again after a restart of the daemon";
const MAC: &str = "52:54:00:aa:09:09";
const GUEST: &str = "192.0.2.9";
/// As `host.conf` names it: nothing on the host has this name.
const WIRE: &str = "wire7";
/// The PF puts the guest's frames into it, and takes them out.
const VLAN: &str = "10";
/// In Mbit/s, kept by the NIC and by the relay.
const RATE: &str = "100";

/// Runs it when its name contains `only`. Returns how many checks passed.
pub fn run(story: &mut fs::File, only: &str) -> Result<u32> {
    if !NAME.contains(only) {
        return Ok(0);
    }
    let start = Instant::now();
    writeln!(story, "--> {NAME}")?;
    fs::write(RESERVED, HUGE_PAGES)?;
    let interface = wait::until(LIMIT, "the PF's interface", || Ok(Function::at(FIRST)?.interface()))?;
    let mut control = Control { daemon: Daemon::start(CONFIGURATION, None)?, interface, story };
    check(&mut control).with_context(|| format!("{NAME}\n{}", control.daemon.story()))?;
    fs::write(RESERVED, "0")?;
    writeln!(control.story, "    {:.1} s", start.elapsed().as_secs_f64())?;
    Ok(1)
}

fn check(control: &mut Control) -> Result<()> {
    let pf = control.interface.clone();
    let count = || -> Result<u64> {
        Ok(fs::read_to_string(format!("/sys/bus/pci/devices/{FIRST}/sriov_numvfs"))?.trim().parse()?)
    };
    let file = control.daemon.path("host.conf");
    // Not the machine's own additions.
    let local = control.daemon.path("no-local.conf");
    let text = format!("networks:\n- {pf}/br0/{WIRE}\nsriov_nics:\n- {pf}\nlocal_config_file: {}\n", local.display());
    fs::write(&file, text)?;
    let file = file.display().to_string();

    let before = count()?;
    let plan = control.done(&["host", "plan", &file])?;
    ensure!(plan.contains("to-do") && before == 0 && count()? == 0, "{before} VFs before, {} now: {plan}", count()?);
    let applied = control.done(&["host", "apply", &file])?;
    ensure!(applied.contains(&format!("{pf} changed")) && count()? == TOTAL, "{} VFs: {applied}", count()?);

    // igb takes a rate only while the PF has a link.
    tool("ip", &["link", "set", &pf, "up"])?;
    has_link(&pf)?;
    let net = far_end()?;
    into_vlan(&net)?;
    attach(control)?;
    let list = control.json(&["attachment", "list"])?;
    let device = find(&list, "device").and_then(Value::as_str).and_then(|device| device.strip_prefix("pci:"));
    let vf = Function::at(device.with_context(|| format!("no VF: {list}"))?)?;
    ensure!(vf.driver().as_deref() == Some("vfio-pci"), "{} is driven by {:?}", vf.address(), vf.driver());
    let seen = tool("ip", &["link", "show", &pf])?;
    let line = seen.lines().find(|line| line.contains(MAC)).with_context(|| format!("no VF with {MAC}: {seen}"))?;
    writeln!(control.story, "    ip: {}", line.trim())?;
    ensure!(line.contains(&format!("{RATE}Mbps")) && line.contains(&format!("vlan {VLAN},")), "{line}");

    let socket = control.daemon.path("run/guest1-nic0.sock").display().to_string();
    let options = testpmd::Options { core: 0, memory_mib: 64, ready: ADDED, ..testpmd::Options::new("lab-attached") }
        .device(format!("net_virtio_user0,path={socket},queues=1,mac={MAC}"))
        .arguments(["--forward-mode=icmpecho", "--total-num-mbufs=4096"]);
    let mut guest = Testpmd::start(&options)?;
    guest.command("start")?;
    net.wait_ping(GUEST, LIMIT)?;

    let counted = packets(control)?;
    let ping = net.ping(GUEST, INTERVAL)?;
    wait::pause(4 * INTERVAL)?;
    control.daemon.kill()?;
    wait::pause(4 * INTERVAL)?;
    control.daemon.start_again()?;
    control.daemon.wait_port("guest1-nic0", "driver-ready", LIMIT)?;
    let applied = control.done(&["host", "apply", &file])?;
    ensure!(applied.contains(&format!("{pf} unchanged")), "{applied}");
    wait::pause(4 * INTERVAL)?;
    let report = ping.finish()?;
    report.nothing_lost()?;
    writeln!(
        control.story,
        "    {} of {} pings were answered while the daemon was killed and started again",
        report.received, report.sent
    )?;
    let now = packets(control)?;
    let pings = u64::from(report.received);
    ensure!(
        now.0 >= counted.0 + pings && now.1 >= counted.1 + pings,
        "{now:?} packets, {counted:?} before {pings} pings"
    );

    // It is the guest's until that lets go of it.
    control.refused(&["port", "detach", "guest1"], &["its guest is connected", "DEVICE_DELETED", "--disturb"])?;
    drop(guest);
    control.done(&["port", "detach", "guest1"])?;
    wait::until(LIMIT, "the VF's own driver", || Ok(vf.driver().filter(|driver| driver == "igbvf")))?;
    ensure!(!tool("ip", &["link", "show", &pf])?.contains(MAC), "{} still has {MAC}", vf.address());
    let (list, ports) = (control.json(&["attachment", "list"])?, control.json(&["port", "list"])?);
    ensure!([&list, &ports].iter().all(|list| list.as_array().is_some_and(Vec::is_empty)), "{list} {ports}");
    // Nobody has a VF: without --disturb.
    control.done(&["vf", "enable", &pf, "0"])?;
    tool("ip", &["link", "set", &pf, "down"])?;
    Ok(())
}

/// The far end's address goes into the guest's VLAN.
fn into_vlan(net: &Netns) -> Result<()> {
    let links = net.ip(&["-o", "link", "show"])?;
    let line = links.lines().find(|line| line.contains(THIRD_MAC)).context("the third NIC is not there")?;
    let name = line.split(": ").nth(1).context("an interface without a name")?;
    net.ip(&["address", "flush", "dev", name])?;
    net.ip(&["link", "add", "link", name, "name", "tagged", "type", "vlan", "id", VLAN])?;
    net.ip(&["link", "set", "tagged", "up"])?;
    net.ip(&["address", "add", "192.0.2.1/24", "dev", "tagged"])?;
    Ok(())
}

/// By the wire: which VF is not said.
fn attach(control: &mut Control) -> Result<()> {
    let words =
        ["port", "attach", "guest1", "--nic", "0", "--wire", WIRE, "--mac", MAC, "--vlan", VLAN, "--max-rate", RATE];
    // A lane takes longer to start here than a call waits.
    let printed = wait::until(ADDED, "the attachment", || {
        let finished = wait::run(&mut control.daemon.command(&words), ADDED)?;
        if finished.code != 0 && finished.text.contains("is not running") {
            return Ok(None);
        }
        finished.success("ringspan port attach").map(Some)
    })?;
    writeln!(control.story, "    $ ringspan {}\n      {}", words.join(" "), printed.trim_end())?;
    ensure!(printed.contains("vhost-user") && printed.contains(MAC), "{printed}");
    Ok(())
}

/// What the guest sent and what it received, as it is metered.
fn packets(control: &mut Control) -> Result<(u64, u64)> {
    let stats = control.json(&["attachment", "stats", "guest1"])?;
    writeln!(control.story, "    {stats}")?;
    let count = |key: &str| find(&stats, key).and_then(Value::as_u64).filter(|count| *count > 0);
    let both = count("tx_packets").zip(count("rx_packets"));
    both.with_context(|| format!("the guest was pinged, and this is counted: {stats}"))
}
