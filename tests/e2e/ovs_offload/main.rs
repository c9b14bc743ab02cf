//! Two guests on VFs of a software NIC, and Open vSwitch on its representors: what OVS decides is done in the NIC, and follows
//! OVS in everything that it decides next.

mod amid;
mod fields;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringspan_testkit::daemon::Daemon;
use ringspan_testkit::far_end::FarEnd;
use ringspan_testkit::guest::crossing::{self, End, Ways};
use ringspan_testkit::guest::loopback::{ETHERTYPE, Plan};
use ringspan_testkit::guest::{Guest, Kind, Options};
use ringspan_testkit::netns::Netns;
use ringspan_testkit::ovs::Ovs;
use ringspan_testkit::{needs, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
/// From each VF to the other.
const FLOWS: [&str; 2] = ["in_port=nic0_vf0,actions=output:nic0_vf1", "in_port=nic0_vf1,actions=output:nic0_vf0"];

/// The parts end in the order of the fields.
struct Scene {
    guests: Vec<Guest>,
    daemon: Daemon,
    ovs: Ovs,
    net: Netns,
}

impl Scene {
    /// A NIC `nic0` with a guest on each of its two VFs, whose frames a bridge takes from one to the other. Rules go half a second after Open vSwitch.
    fn new(label: &str) -> Result<Self> {
        Self::with(label, 2, 500)
    }

    /// The same with so many VFs, and so many milliseconds.
    fn with(label: &str, vfs: u16, grace_ms: u32) -> Result<Self> {
        let net = Netns::new(label)?;
        net.sysctl("net.ipv6.conf.default.disable_ipv6=1")?;
        let ovs = Ovs::start_in(Some(&net))?;
        let config = format!(
            "[ovs]\nrun_dir = \"{}\"\ngrace_ms = {grace_ms}\n[dataplane]\nmemory_mib = 256\n[[nic]]\nname = \"nic0\"\nvfs = {vfs}\n",
            ovs.run_dir().display()
        );
        let daemon = Daemon::start(&config, Some(&net))?;
        let mut guests = Vec::new();
        for vf in 0..vfs {
            daemon.add_port(&format!("vm{vf}"), &format!("soft:nic0/vf{vf}"), &[])?;
            let kind = if vf == 0 { Kind::Split } else { Kind::Packed };
            guests.push(Guest::start(Options::new(daemon.path(&format!("vm{vf}.sock"))).over(kind))?);
        }
        let scene = Self { guests, daemon, ovs, net };
        for port in (0..vfs).map(|vf| format!("nic0_vf{vf}")).chain(["nic0".into()]) {
            scene.join_bridge(&port)?;
        }
        scene.flows(&FLOWS)?;
        Ok(scene)
    }

    /// Makes a representor a port of the bridge.
    fn join_bridge(&self, port: &str) -> Result<()> {
        let words = ["ovs", "configure", "--bridge", "br0", "--datapath-type", "netdev", "--port", port];
        self.daemon.ok(&words).map(drop)
    }

    /// Gives the bridge these OpenFlow rules, and no others.
    fn flows(&self, flows: &[&str]) -> Result<()> {
        self.ovs.ofctl("br0", "del-flows", &[])?;
        flows.iter().try_for_each(|flow| self.ovs.ofctl("br0", "add-flow", &[flow]).map(drop))
    }

    fn cross(&mut self, frames: u64) -> Result<()> {
        cross(&mut self.guests, frames).map(drop)
    }

    /// Passes frames from each guest to the kernel's end of its VF's representor: the NIC has no rule for them.
    fn come_out_of_representors(&mut self, frames: u64) -> Result<()> {
        for (vf, guest) in self.guests.iter_mut().enumerate() {
            let name = format!("nic0_vf{vf}");
            let far = FarEnd::open(&self.net, &name, ETHERTYPE)?;
            let plan = Plan::new(frames, 8).in_any_order();
            crossing::run(&mut End::Guest(guest), &mut End::Far(&far), Ways::There, plan).context(name)?;
        }
        Ok(())
    }

    fn list(&self, filter: Value) -> Result<Vec<Value>> {
        let flows = self.daemon.call("flow.list", filter)?;
        Ok(flows["flows"].as_array().context("flows")?.clone())
    }

    /// Rules that the NIC itself has, whatever the mirror knows of them.
    fn rules(&self) -> Result<u64> {
        let nic = self.daemon.call("nic.show", json!({ "name": "nic0" }))?;
        nic["status"]["rules"].as_u64().with_context(|| format!("no rules in {nic:#}"))
    }

    /// Waits until this many flows are in the NIC.
    fn offloaded(&self, count: usize) -> Result<Vec<Value>> {
        let seen = wait::until(SOON, &format!("{count} flows in the NIC"), || {
            let flows = self.list(json!({ "state": "offloaded" }))?;
            Ok((flows.len() == count).then_some(flows))
        });
        seen.with_context(|| format!("{:#}", self.daemon.call("flow.list", json!({})).unwrap_or_default()))
    }

    /// Waits until no flow from the first VF goes out there any more.
    fn gone(&self, output: &str) -> Result<()> {
        wait::until(SOON, &format!("no flow to {output}"), || {
            let flows = self.list(json!({ "port": "nic0_vf0" }))?;
            let by = |flow: &Value| flow["match"].as_str().is_some_and(|keys| keys.contains("in_port(nic0_vf0)"));
            Ok((!flows.iter().any(|flow| by(flow) && flow["actions"] == output)).then_some(()))
        })
    }
}

/// Does this while frames cross both ways all the time, of which all arrive; how many did each way.
fn meanwhile(guests: &mut [Guest], what: impl FnOnce() -> Result<()>) -> Result<u64> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut crossed = 0;
            while !over.load(Ordering::Relaxed) {
                crossed += cross(guests, 500)?;
            }
            anyhow::Ok(crossed)
        });
        let done = what();
        over.store(true, Ordering::Relaxed);
        let crossed = traffic.join().map_err(|_| anyhow::anyhow!("the traffic's thread panicked"))?;
        done.and(crossed)
    })
}

/// Passes frames both ways; how many each way.
fn cross(guests: &mut [Guest], frames: u64) -> Result<u64> {
    let [first, second, ..] = guests else { unreachable!() };
    let plan = Plan::new(frames, 64).in_any_order();
    crossing::run(&mut End::Guest(first), &mut End::Guest(second), Ways::Both, plan).map(|(there, _)| there)
}

/// Packets that OVS saw.
fn slow(flows: &[Value]) -> u64 {
    flows.iter().filter_map(|flow| flow["ovs"]["packets"].as_u64()).sum()
}

#[test]
fn the_first_packets_go_through_ovs_and_then_nearly_none() -> Result<()> {
    needs!(Root, Ringspan, Ovs);
    let mut scene = Scene::new("ovs-offload")?;
    scene.cross(50)?;
    let before = slow(&scene.offloaded(2)?);
    scene.cross(20_000)?;
    let flows = scene.offloaded(2)?;
    let (after, fast) = (slow(&flows), flows.iter().filter_map(|flow| flow["rule"]["packets"].as_u64()).sum::<u64>());
    ensure!(after - before < 400, "of 40,000 frames {} went through OVS", after - before);
    ensure!(fast >= 39_600, "{fast} frames were forwarded by rules: {flows:#?}");
    let table = scene.daemon.ok(&["flow", "list", "--why", "--port", "nic0_vf0", "--sort", "packets"])?;
    ensure!(table.contains("offloaded") && table.contains("in_port(nic0_vf0)"), "{table}");
    let verified = scene.daemon.ok(&["ovs", "verify"])?;
    ensure!(
        verified.contains("2 rules by ringspan") && verified.contains("all 2 VF representors are on bridges"),
        "{verified}"
    );

    // OVS changes its mind, and the NIC follows: first to where nobody is, then back.
    scene.flows(&["in_port=nic0_vf0,actions=output:nic0", "in_port=nic0_vf1,actions=output:nic0_vf0"])?;
    scene.gone("nic0_vf1")?;
    scene.flows(&FLOWS)?;
    scene.gone("nic0")?;
    scene.cross(1000)
}

#[test]
fn rules_outlive_the_daemon_and_not_what_ovs_wants() -> Result<()> {
    needs!(Root, Ringspan, Ovs);
    let mut scene = Scene::new("ovs-restart")?;
    scene.cross(50)?;
    scene.offloaded(2)?;
    ensure!(scene.rules()? == 2, "the NIC has {} rules", scene.rules()?);
    let Scene { guests, daemon, .. } = &mut scene;
    let crossed = meanwhile(guests, || {
        daemon.kill()?;
        daemon.start_again()?;
        wait::until(SOON, "both flows in the NIC again", || {
            let flows = daemon.call("flow.list", json!({ "state": "offloaded" }))?;
            Ok((flows["flows"].as_array().map(Vec::len) == Some(2)).then_some(()))
        })
    })?;
    ensure!(crossed > 0, "nothing was sent while the daemon was away");
    scene.cross(1000)?;
    // A lane that dies loses its rules, and gets them again.
    ringspan_testkit::process::kill_hard(scene.daemon.lane_pid("main")?)?;
    for vf in 0..2 {
        scene.daemon.wait_port(&format!("vm{vf}"), "listening", SOON)?;
        scene.guests[vf].reconnect()?;
    }
    scene.cross(50)?;
    scene.offloaded(2)?;
    scene.cross(1000)?;
    // OVS goes: after the grace period the NIC has no rule of its, and gives the kernel what comes from VFs. It comes back, and
    // all is as it was.
    scene.ovs.stop_switch();
    wait::until(SOON, "no flow in the mirror, and no rule in the NIC", || {
        let stats = scene.daemon.call("flow.stats", json!({}))?;
        let forgotten = stats["flows"] == 0 && stats["rules"]["packets"] == 0 && stats["trouble"].is_string();
        Ok((forgotten && scene.rules()? == 0).then_some(()))
    })?;
    scene.come_out_of_representors(100)?;
    scene.ovs.start_switch()?;
    scene.flows(&FLOWS)?;
    scene.cross(50)?;
    scene.offloaded(2)?;
    scene.cross(1000)
}
