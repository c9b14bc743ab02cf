//! Open vSwitch with the kernel's own datapath, under `ringspan`'s hand: ports, VLANs, offload switched on, and found out not to be in any NIC.

use std::fs;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_testkit::daemon::Daemon;
use ringspan_testkit::netns::Netns;
use ringspan_testkit::wait;

use super::control::{Control, LIMIT, tool};

type Check = (&'static str, fn(&mut Scene) -> Result<()>);

/// In this order: a check finds what the one before it left.
const CHECKS: &[Check] = &[
    ("Open vSwitch: ports are added to a bridge of the kernel's datapath, and their tags keep them apart", ports),
    ("Open vSwitch: with hw-offload flows are given to TC, and that none is in a NIC is found out", offload),
    ("Open vSwitch: ports are taken out, and asked for again nothing is done", remove),
];
const BRIDGE: &str = "labbr";
/// Of ports, by their VLANs; the ends that are in namespaces have addresses.
const PORTS: [(&str, &str, &str); 3] =
    [("ovp0", "10", "192.0.2.1"), ("ovp1", "10", "192.0.2.2"), ("ovp2", "20", "192.0.2.3")];
const CONTROL: &str = "/usr/share/openvswitch/scripts/ovs-ctl";
/// What ovs-ctl does for a restart besides takes a minute where the processor is emulated.
const CONFIGURATION: &str = "[dataplane]\ncores = [0]\nmemory_mib = 64\n[ovs]\nrestart_command = [\"sh\", \"-c\", \"cd /run/openvswitch; \
     pid=$(cat ovs-vswitchd.pid); kill $pid; while [ -e /proc/$pid ]; do sleep 0.1; done; exec ovs-vswitchd --detach --pidfile\"]\n";

struct Scene<'a> {
    control: Control<'a>,
    ends: Vec<Netns>,
}

/// Runs all checks when the name of one contains `only`. Returns how many passed.
pub fn run(story: &mut fs::File, only: &str) -> Result<u32> {
    if !CHECKS.iter().any(|(name, _)| name.contains(only)) {
        return Ok(0);
    }
    let modules = ["openvswitch", "veth", "cls_flower", "sch_ingress", "act_mirred", "act_gact", "act_vlan"];
    tool("modprobe", &[&["-a"], &modules[..]].concat())?;
    tool(CONTROL, &["start", "--system-id=random"])?;
    let mut scene = Scene {
        control: Control { daemon: Daemon::start(CONFIGURATION, None)?, interface: String::new(), story },
        ends: vec![],
    };
    for (name, _, address) in PORTS {
        let net = Netns::new(name)?;
        tool("ip", &["link", "add", name, "type", "veth", "peer", "name", "end", "netns", net.name()])?;
        tool("ip", &["link", "set", name, "up"])?;
        net.sysctl("net.ipv6.conf.end.disable_ipv6=1")?;
        net.ip(&["address", "add", &format!("{address}/24"), "dev", "end"])?;
        net.ip(&["link", "set", "end", "up"])?;
        scene.ends.push(net);
    }
    for (name, check) in CHECKS {
        let start = Instant::now();
        writeln!(scene.control.story, "--> {name}")?;
        check(&mut scene).with_context(|| format!("{name}\n{}", scene.control.daemon.story()))?;
        writeln!(scene.control.story, "    {:.1} s", start.elapsed().as_secs_f64())?;
    }
    tool("ovs-vsctl", &["del-br", BRIDGE])?;
    tool(CONTROL, &["stop"])?;
    // For who starts it next.
    fs::remove_file("/etc/openvswitch/conf.db")?;
    for (name, ..) in PORTS {
        tool("ip", &["link", "delete", name])?;
    }
    Ok(CHECKS.len() as u32)
}

impl Scene<'_> {
    /// Whether an end is answered by an address.
    fn reaches(&self, end: usize, address: &str) -> Result<bool> {
        let mut ping = self.ends[end].command("ping");
        Ok(wait::run(ping.args(["-n", "-q", "-c", "1", "-W", "1", address]), LIMIT)?.code == 0)
    }

    /// The first two are in one VLAN, the third is alone.
    fn apart(&self) -> Result<()> {
        wait::until(LIMIT, "an answer within the VLAN", || Ok(self.reaches(0, PORTS[1].2)?.then_some(())))?;
        ensure!(!self.reaches(0, PORTS[2].2)?, "{} answers in another VLAN", PORTS[2].0);
        Ok(())
    }

    fn hw_offload(&mut self, on: bool) -> Result<()> {
        let value = on.to_string();
        let done = self.control.done(&["ovs", "configure", "--hw-offload", &value, "--restart"])?;
        ensure!(done.contains("was restarted"), "{done}");
        let seen = tool("ovs-vsctl", &["get", "Open_vSwitch", ".", "other_config:hw-offload"])?;
        ensure!(seen.trim().trim_matches('"') == value, "{seen}");
        Ok(())
    }
}

fn ports(scene: &mut Scene) -> Result<()> {
    scene.control.done(&["ovs", "configure", "--bridge", BRIDGE, "--datapath-type", "system"])?;
    for _ in 0..2 {
        for (name, tag, _) in PORTS {
            scene.control.done(&["ovs", "configure", "--bridge", BRIDGE, "--port", name, "--tag", tag])?;
            let seen = tool("ovs-vsctl", &["get", "Port", name, "tag"])?;
            ensure!(seen.trim() == tag, "the tag of {name} is {seen}");
        }
    }
    let seen = tool("ovs-vsctl", &["list-ports", BRIDGE])?;
    ensure!(seen.lines().eq(PORTS.map(|(name, ..)| name)), "{seen}");
    ensure!(tool("ovs-dpctl", &["show"])?.contains("system@ovs-system"), "the kernel has no datapath");
    scene.control.done(&["ovs", "show"])?;
    let missing = "no-such-if";
    let says = [missing, "cannot use it", "No such device"];
    scene.control.refused(&["ovs", "configure", "--bridge", BRIDGE, "--port", missing], &says)?;
    scene.control.done(&["ovs", "configure", "--remove-port", missing])?;
    scene.apart()
}

fn offload(scene: &mut Scene) -> Result<()> {
    scene.hw_offload(true)?;
    scene.apart()?;
    let net = &scene.ends[0];
    let ping = net.ping(PORTS[1].2, Duration::from_millis(100))?;
    let told = wait::until(LIMIT, "a flow in TC", || {
        let seen = tool("tc", &["-s", "filter", "show", "dev", PORTS[0].0, "ingress"])?;
        Ok(seen.contains("not_in_hw").then_some(seen))
    })?;
    ensure!(told.contains("flower"), "{told}");
    let flows = tool("ovs-appctl", &["dpctl/dump-flows", "-m"])?;
    ensure!(flows.contains("dp:tc"), "no flow of TC's in: {flows}");
    // No NIC is here that would take one.
    let verified = wait::until(LIMIT, "a verdict", || {
        let finished = scene.control.daemon.cli(&["ovs", "verify"])?;
        Ok((finished.code == 1).then_some(finished))
    })?;
    writeln!(
        scene.control.story,
        "    $ ringspan ovs verify\n      {}",
        verified.text.trim_end().replace('\n', "\n      ")
    )?;
    ping.finish()?.nothing_lost()?;
    scene.hw_offload(false)?;
    scene.apart()?;
    let flows = tool("ovs-appctl", &["dpctl/dump-flows", "-m"])?;
    ensure!(!flows.contains("dp:tc") && flows.contains("dp:ovs"), "{flows}");
    let verified = wait::run(&mut command(scene, &["ovs", "verify"]), LIMIT)?;
    writeln!(scene.control.story, "    {}", verified.text.lines().next().unwrap_or_default())?;
    ensure!(verified.code == 0, "{}", verified.text);
    Ok(())
}

fn command(scene: &Scene, words: &[&str]) -> Command {
    scene.control.daemon.command(words)
}

fn remove(scene: &mut Scene) -> Result<()> {
    for round in 0..2 {
        for (name, ..) in PORTS {
            let done = scene.control.done(&["ovs", "configure", "--remove-port", name])?;
            ensure!(round == 0 || done.contains("unchanged"), "{done}");
        }
        ensure!(tool("ovs-vsctl", &["list-ports", BRIDGE])?.is_empty(), "a port is left");
    }
    Ok(())
}
