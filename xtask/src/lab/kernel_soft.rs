//! Software NICs on Open vSwitch's kernel datapath: VLANs, a tunnel, and flows that change all the time, every frame marked and checked.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_testkit::daemon::Daemon;
use ringspan_testkit::far_end::FarEnd;
use ringspan_testkit::guest::crossing::{self, End, Ways};
use ringspan_testkit::guest::loopback::{ETHERTYPE, Lengths, Plan};
use ringspan_testkit::guest::{Guest, NetHeader, Options};
use ringspan_testkit::netns::Netns;
use ringspan_testkit::ovs::Ovs;
use ringspan_testkit::tunnel::{self, Datapath};
use ringspan_testkit::{churn, wait};
use serde_json::{Value, json};

use super::control::{LIMIT, tool};

type Check = (&'static str, fn(&mut fs::File) -> Result<()>);

const CHECKS: &[Check] = &[
    ("software NIC on the kernel's datapath: guests in VLANs, and a wire that has their tags", vlans),
    ("software NIC on the kernel's datapath: a change of the kernel's is in the NIC at once", change),
    ("software NIC on the kernel's datapath: a VXLAN tunnel between two NICs", vxlan),
    ("software NIC on the kernel's datapath: flows that change all the time", churn),
    (
        "software NIC on the kernel's datapath: ringspan and Open vSwitch are restarted, and flows are given to TC",
        restarts,
    ),
];
const DATAPATH: &str = "system@ovs-system";
/// Of two guests.
const VLANS: [u16; 2] = [10, 20];
/// Changes of which the median is taken.
const CHANGES: usize = 21;

/// Runs those whose names contain `only`. Returns how many passed.
pub fn run(story: &mut fs::File, only: &str) -> Result<u32> {
    let mut done = 0;
    for (name, check) in CHECKS.iter().filter(|(name, _)| name.contains(only)) {
        if done == 0 {
            tool(
                "modprobe",
                &[
                    "-a",
                    "openvswitch",
                    "tun",
                    "veth",
                    "8021q",
                    "vxlan",
                    "cls_flower",
                    "sch_ingress",
                    "act_mirred",
                    "act_gact",
                ],
            )?;
        }
        let start = Instant::now();
        writeln!(story, "--> {name}")?;
        check(story).context(*name)?;
        writeln!(story, "    {:.1} s", start.elapsed().as_secs_f64())?;
        done += 1;
    }
    Ok(done)
}

/// A NIC `nic0` whose representors are on the bridge `br0` of the kernel's datapath. The parts end in the order of the fields.
struct Scene {
    guests: Vec<Guest>,
    daemon: Daemon,
    ovs: Ovs,
    net: Netns,
}

/// Makes flows stay that no packet uses for a while, as they do where the processor is emulated, with their counters.
fn stay(ovs: &Ovs) -> Result<()> {
    ovs.vsctl(&["set", "Open_vSwitch", ".", "other_config:max-idle=600000"]).map(drop)
}

impl Scene {
    fn new(label: &str, vfs: usize) -> Result<Self> {
        let net = Netns::new(label)?;
        net.sysctl("net.ipv6.conf.default.disable_ipv6=1")?;
        let ovs = Ovs::start_with_kernel_in(&net)?;
        stay(&ovs)?;
        let config = format!(
            "[ovs]\nrun_dir = \"{}\"\n[dataplane]\nmemory_mib = 256\nhuge_pages = \"off\"\n\
             [[nic]]\nname = \"nic0\"\nvfs = {vfs}\nuplinks = [\"vdev:net_tap0,iface=up0,mac=02:00:00:00:0a:01\"]\n",
            ovs.run_dir().display()
        );
        let daemon = Daemon::start(&config, Some(&net))?;
        daemon.wait_nic("nic0")?;
        let mut guests = Vec::new();
        let configure = |port: &str| {
            daemon.ok(&["ovs", "configure", "--bridge", "br0", "--datapath-type", "system", "--port", port])
        };
        for vf in 0..vfs {
            daemon.add_port(&format!("vm{vf}"), &format!("soft:nic0/vf{vf}"), &[])?;
            guests.push(Guest::start(Options::new(daemon.path(&format!("vm{vf}.sock"))))?);
            configure(&format!("nic0_vf{vf}"))?;
        }
        // With the first port the lane was there, and its representors.
        configure("nic0")?;
        ovs.ofctl("br0", "del-flows", &[])?;
        Ok(Self { guests, daemon, ovs, net })
    }

    fn flows(&self, flows: &[&str]) -> Result<()> {
        flows.iter().try_for_each(|flow| self.ovs.ofctl("br0", "add-flow", &[flow]).map(drop))
    }

    /// The flows of the frames of the checks.
    fn list(&self) -> Result<Vec<Value>> {
        let flows = self.daemon.call("flow.list", json!({}))?;
        let ours = |flow: &&Value| flow["match"].as_str().is_some_and(|keys| keys.contains("eth_type(0x88b5)"));
        Ok(flows["flows"].as_array().context("flows")?.iter().filter(ours).cloned().collect())
    }

    fn story(&self) -> String {
        let said = |said: Result<String>| said.unwrap_or_else(|error| format!("{error:#}"));
        let dump = said(self.ovs.appctl(&["dpctl/dump-flows", "-m", "--names", DATAPATH]));
        let list = said(self.daemon.ok(&["flow", "list", "--why"]));
        format!("{}\n{list}\n{dump}\n{}", said(self.daemon.ok(&["nic", "show", "nic0"])), self.daemon.story())
    }
}

/// Packets of these flows by both paths, and by Open vSwitch alone.
fn packets(flows: &[Value]) -> (u64, u64) {
    let sum = |path: &str| flows.iter().filter_map(|flow| flow[path]["packets"].as_u64()).sum::<u64>();
    (sum("ovs") + sum("rule"), sum("ovs"))
}

fn vlans(story: &mut fs::File) -> Result<()> {
    const FRAMES: u64 = 5000;
    let mut scene = Scene::new("soft-vlan", 2)?;
    let mut far = Vec::new();
    for (vf, vlan) in VLANS.iter().enumerate() {
        let (name, id) = (format!("up0.{vlan}"), vlan.to_string());
        scene.net.ip(&["link", "add", "link", "up0", "name", &name, "type", "vlan", "id", &id])?;
        scene.net.ip(&["link", "set", &name, "up"])?;
        far.push(FarEnd::open(&scene.net, &name, ETHERTYPE)?);
        scene.flows(&[
            &format!("in_port=nic0_vf{vf},actions=mod_vlan_vid:{vlan},output:nic0"),
            &format!("in_port=nic0,dl_vlan={vlan},actions=strip_vlan,output:nic0_vf{vf}"),
        ])?;
    }
    let plan = |frames| Plan { lengths: Lengths::Between(60, 1400), ..Plan::new(frames, 32).in_any_order() };
    let cross = |scene: &mut Scene, frames: u64| -> Result<()> {
        for (guest, far) in scene.guests.iter_mut().zip(&far) {
            crossing::run(&mut End::Guest(guest), &mut End::Far(far), Ways::Both, plan(frames))?;
        }
        Ok(())
    };
    let settled = wait::until(LIMIT, "all four flows in the NIC", || {
        cross(&mut scene, 20)?;
        let flows = scene.list()?;
        Ok((flows.len() == 4 && flows.iter().all(|flow| flow["state"] == "offloaded")).then_some(()))
    });
    settled.with_context(|| scene.story())?;
    // What went by the kernel is told by its next dump.
    let quiet = |scene: &Scene| {
        let mut last = (0, 0);
        wait::until(LIMIT, "counters that stand still", || {
            wait::pause(Duration::from_millis(2500))?;
            let now = packets(&scene.list()?);
            Ok((std::mem::replace(&mut last, now) == now).then_some(now))
        })
    };
    let before = quiet(&scene)?;
    cross(&mut scene, FRAMES)?;
    let after = quiet(&scene)?;
    let (all, slow) = (after.0 - before.0, after.1 - before.1);
    writeln!(story, "    of {} frames {all} are counted, {slow} of them by the kernel", 4 * FRAMES)?;
    ensure!(all == 4 * FRAMES && slow < all / 100, "{}", scene.story());
    let flows = scene.list()?;
    for word in ["push_vlan(vid=10", "push_vlan(vid=20", "pop_vlan,nic0_vf0", "pop_vlan,nic0_vf1"] {
        let has = |flow: &&Value| flow["actions"].as_str().is_some_and(|actions| actions.contains(word));
        let found = flows.iter().find(has).with_context(|| format!("no flow with {word}: {flows:#?}"))?;
        ensure!(found["state"] == "offloaded" && found["rule"]["packets"].as_u64() > Some(FRAMES / 2), "{found:#}");
    }
    scene.daemon.adds_up("nic0")
}

/// Asks ovs-vswitchd for something, whose answer need not be waited for.
fn ask(scene: &Scene, method: &str, params: &[&str]) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(scene.ovs.control_socket())?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(json!({ "id": 1, "method": method, "params": params }).to_string().as_bytes())?;
    Ok(stream)
}

/// From when ovs-vswitchd is asked to change a flow of the kernel's until the first frame goes where it says now.
fn change(story: &mut fs::File) -> Result<()> {
    let mut scene = Scene::new("soft-change", 3)?;
    scene.flows(&["in_port=nic0_vf0,actions=output:nic0_vf1"])?;
    let mut frame = [0; 60];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, ETHERTYPE[0], ETHERTYPE[1]]);
    // Sends one more, and says whether any came to this VF.
    let comes = |scene: &mut Scene, vf: usize| {
        let tx = &mut scene.guests[0].tx[0];
        tx.reclaim();
        tx.transmit(1, |_, room| {
            room.put_header(&NetHeader::default());
            room.put(0, &frame);
            frame.len()
        });
        tx.ring().kick();
        let mut came = [false; 3];
        for other in [1, 2] {
            scene.guests[other].rx[0].receive(64, |_| came[other] = true);
            scene.guests[other].rx[0].ring().kick();
        }
        came[vf]
    };
    let settled = wait::until(LIMIT, "the flow in the NIC", || {
        comes(&mut scene, 1);
        Ok(scene.list()?.iter().any(|flow| flow["state"] == "offloaded").then_some(()))
    });
    settled.with_context(|| scene.story())?;
    let dump = scene.ovs.appctl(&["dpctl/dump-flows", "-m", "--names", DATAPATH])?;
    let flow = dump.lines().find(|line| line.contains("eth_type(0x88b5)")).with_context(|| dump.clone())?;
    let (keys, _) = flow.split_once(", packets:").context("a flow without counters")?;
    // Actions are taken by numbers alone: `  port 3: nic0_vf2`.
    let shown = scene.ovs.appctl(&["dpctl/show", DATAPATH])?;
    let number = |vf: usize| {
        let mut ports = shown.lines().filter_map(|line| line.trim().strip_prefix("port ")?.split_once(": "));
        let found = ports.find(|(_, rest)| rest.split(' ').next() == Some(&format!("nic0_vf{vf}")));
        found.map(|(number, _)| number).with_context(|| format!("no port nic0_vf{vf}: {shown}"))
    };
    let numbers = [number(1)?, number(2)?];
    let mut took = Vec::new();
    for turn in 0..CHANGES {
        let to = 2 - turn % 2;
        // None is on its way to there.
        let mut quiet = Instant::now();
        while quiet.elapsed() < Duration::from_millis(200) {
            if comes(&mut scene, to) {
                quiet = Instant::now();
            }
        }
        let begun = Instant::now();
        let mut asked = ask(&scene, "dpctl/mod-flow", &[DATAPATH, keys, numbers[to - 1]])?;
        let mut came = None;
        while came.is_none() && begun.elapsed() < LIMIT {
            came = comes(&mut scene, to).then(|| begun.elapsed());
        }
        let mut answer = [0; 4096];
        let length = asked.read(&mut answer)?;
        let answer: Value = serde_json::from_slice(&answer[..length]).context("an answer")?;
        ensure!(answer["error"].is_null(), "{answer}");
        took.push(came.with_context(|| format!("the change is not in the NIC:\n{}", scene.story()))?);
    }
    took.sort();
    let median = took[CHANGES / 2];
    writeln!(story, "    {CHANGES} changes, asked for until a frame goes there: median {median:?}, all {took:?}")?;
    ensure!(median < Duration::from_millis(50), "a change takes {median:?}");
    Ok(())
}

fn vxlan(story: &mut fs::File) -> Result<()> {
    let seen = tunnel::run("vxlan", Datapath::Kernel, tunnel::IPV4, 2000)?;
    writeln!(story, "    {seen:?}")?;
    Ok(())
}

/// Between the two guests, both ways.
const ACROSS: [&str; 2] = ["in_port=nic0_vf0,actions=output:nic0_vf1", "in_port=nic0_vf1,actions=output:nic0_vf0"];

impl Scene {
    fn across(&mut self, frames: u64) -> Result<()> {
        let [first, second] = &mut self.guests[..] else { unreachable!() };
        let plan = Plan { lengths: Lengths::Between(60, 1400), ..Plan::new(frames, 32).in_any_order() };
        crossing::run(&mut End::Guest(first), &mut End::Guest(second), Ways::Both, plan).map(drop)
    }

    /// Sends until both flows are in the NIC, and on from there: nothing is lost, and the kernel sees next to none.
    fn offloaded(&mut self, what: &str) -> Result<()> {
        let settled = wait::until(LIMIT, what, || {
            self.across(20)?;
            let flows = self.list()?;
            Ok((flows.len() == 2 && flows.iter().all(|flow| flow["state"] == "offloaded")).then_some(()))
        });
        settled.with_context(|| self.story())?;
        let by_rules = |scene: &Self| -> Result<u64> {
            Ok(scene.list()?.iter().filter_map(|flow| flow["rule"]["packets"].as_u64()).sum())
        };
        let before = by_rules(self)?;
        self.across(2000)?;
        let passed = wait::until(LIMIT, "what rules count", || {
            let passed = by_rules(self)?.saturating_sub(before);
            Ok((passed >= 4000 * 99 / 100).then_some(passed))
        });
        passed.map(drop).with_context(|| format!("{what}: {}", self.story()))
    }
}

fn restarts(story: &mut fs::File) -> Result<()> {
    let mut scene = Scene::new("soft-restart", 2)?;
    scene.flows(&ACROSS)?;
    scene.offloaded("both flows in the NIC")?;
    scene.daemon.kill()?;
    scene.across(500)?;
    scene.daemon.start_again()?;
    scene.offloaded("both flows in the NIC after a restart of ringspan")?;

    // The kernel goes on without ovs-vswitchd, and so do frames, without the NIC's rules.
    scene.ovs.stop_switch();
    let rules = |scene: &Scene| -> Result<u64> {
        let nic = scene.daemon.call("nic.show", json!({ "name": "nic0" }))?;
        ringspan_testkit::daemon::find(&nic, "rules").and_then(Value::as_u64).context("rules")
    };
    wait::until(LIMIT, "no rule in the NIC", || Ok((rules(&scene)? == 0).then_some(())))?;
    scene.across(500)?;
    scene.ovs.start_switch()?;
    scene.ovs.ofctl("br0", "del-flows", &[])?;
    scene.flows(&ACROSS)?;
    scene.offloaded("both flows in the NIC after a restart of Open vSwitch")?;

    // With hw-offload Open vSwitch gives them to TC: the kernel's datapath does not tell of them, its dumps do.
    scene.ovs.vsctl(&["set", "Open_vSwitch", ".", "other_config:hw-offload=true"])?;
    scene.ovs.stop_switch();
    scene.ovs.start_switch()?;
    scene.ovs.ofctl("br0", "del-flows", &[])?;
    scene.flows(&ACROSS)?;
    scene.offloaded("both flows in the NIC while they are with TC")?;
    let dump = scene.ovs.appctl(&["dpctl/dump-flows", "-m", "--names", DATAPATH])?;
    ensure!(dump.lines().filter(|line| line.contains("dp:tc") && line.contains("88b5")).count() == 2, "{dump}");
    let verified = scene.daemon.ok(&["ovs", "verify"])?;
    ensure!(verified.contains("follows the dumps of ovs-vswitchd instead"), "{verified}");
    writeln!(story, "    {}", verified.lines().next().unwrap_or_default())?;
    scene.daemon.adds_up("nic0")
}

fn churn(story: &mut fs::File) -> Result<()> {
    // Where a dump takes more than two seconds, OVS goes down to a thousand flows, and removes those beyond after 100 ms
    // (udpif_revalidator in ofproto/ofproto-dpif-upcall.c).
    let net = Netns::new("soft-churn")?;
    net.sysctl("net.ipv6.conf.default.disable_ipv6=1")?;
    let ovs = Ovs::start_with_kernel_in(&net)?;
    stay(&ovs)?;
    let seen = churn::run(net, ovs, churn::Plan { flows: 800, changes: 80, steps: 50, window: 32 })?;
    let a_second = |count: u64| count as f64 / seen.took.as_secs_f64();
    writeln!(
        story,
        "    {seen:?}: {:.0} changes a second asked for, {:.0} a second told by the kernel",
        a_second(seen.changes as u64),
        a_second(seen.told)
    )?;
    Ok(())
}
