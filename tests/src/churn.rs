//! Flows of Open vSwitch's of which many a second change where they go: every frame comes to one of the two ports that it may come to, those whose
//! flow never changed only to theirs, and when the changes end all go where the last one sent them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::guest::{Guest, NetHeader, Options};
use crate::netns::Netns;
use crate::ovs::Ovs;
use crate::wait;

/// Time between two steps.
const STEP: Duration = Duration::from_millis(100);
/// One flow of so many never changes.
const STEADY: usize = 10;
/// Longest time without a frame that is still to come.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest wait for the NIC to follow: some polls, which are seconds apart with so many flows.
const SOON: Duration = Duration::from_secs(120);
const LENGTH: usize = 60;
const TYPE: [u8; 2] = [0x88, 0xb5];

/// How much is to change.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Flows.
    pub flows: usize,
    /// Of which so many change in a step of 100 ms, or of as long as it takes.
    pub changes: usize,
    /// Steps.
    pub steps: usize,
    /// Most frames on their way: no more than the shortest queue on it holds.
    pub window: u64,
}

/// What was seen.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Changes that were asked for.
    pub changes: usize,
    /// How long all steps took.
    pub took: Duration,
    /// Changes of its datapath that the kernel told meanwhile.
    pub told: u64,
    /// Frames that came.
    pub frames: u64,
    /// Of them those that came where their flow went before its last change.
    pub late: u64,
    /// Flows in the NIC at the end.
    pub offloaded: u64,
}

/// The parts end in the order of the fields.
struct Scene {
    plan: Plan,
    /// The first sends, the two others receive.
    guests: Vec<Guest>,
    daemon: Daemon,
    ovs: Ovs,
    _net: Netns,
    /// Which of the two others each flow goes to.
    to: Vec<usize>,
    sent: u64,
    come: u64,
    /// Frames that came to the port that their flow does not go to any more.
    late: u64,
}

fn mac(flow: usize) -> [u8; 6] {
    [0x02, 0x01, 0, 0, (flow >> 8) as u8, flow as u8]
}

fn frame(flow: usize) -> [u8; LENGTH] {
    let mut frame = [0; LENGTH];
    frame[..6].copy_from_slice(&mac(flow));
    frame[6..12].copy_from_slice(&[0x02, 0x02, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&TYPE);
    frame[14..18].copy_from_slice(&(flow as u32).to_be_bytes());
    frame
}

impl Scene {
    fn new(net: Netns, ovs: Ovs, plan: Plan) -> Result<Self> {
        let config = format!(
            "[ovs]\nrun_dir = \"{}\"\n[dataplane]\nmemory_mib = 256\nhuge_pages = \"off\"\n[[nic]]\nname = \"nic0\"\nvfs = 3\n",
            ovs.run_dir().display()
        );
        let daemon = Daemon::start(&config, Some(&net))?;
        daemon.wait_nic("nic0")?;
        let mut guests = Vec::new();
        for vf in 0..3 {
            daemon.add_port(&format!("vm{vf}"), &format!("soft:nic0/vf{vf}"), &[])?;
            guests.push(Guest::start(Options::new(daemon.path(&format!("vm{vf}.sock"))))?);
            let port = format!("nic0_vf{vf}");
            daemon.ok(&[
                "ovs",
                "configure",
                "--bridge",
                "br0",
                "--datapath-type",
                ovs.datapath_type(),
                "--port",
                &port,
            ])?;
        }
        ovs.ofctl("br0", "del-flows", &[])?;
        let to: Vec<usize> = (0..plan.flows).map(|flow| flow % 2).collect();
        let scene = Self { plan, guests, daemon, ovs, _net: net, to, sent: 0, come: 0, late: 0 };
        scene.apply(0..plan.flows)?;
        Ok(scene)
    }

    /// Tells OVS where these flows go.
    fn apply(&self, flows: impl IntoIterator<Item = usize>) -> Result<()> {
        let mut text = String::new();
        for flow in flows {
            let [a, b, c, d, e, f] = mac(flow);
            let line = format!(
                "in_port=nic0_vf0,dl_dst={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x},actions=output:nic0_vf{}\n",
                self.to[flow] + 1
            );
            text.push_str(&line);
        }
        let file = self.ovs.path("flows");
        std::fs::write(&file, text)?;
        self.ovs.ofctl("br0", "add-flows", &[file.to_str().context("a path")?]).map(drop)
    }

    /// Takes what came, and checks where.
    fn take(&mut self) -> Result<()> {
        let (to, come, late) = (&self.to, &mut self.come, &mut self.late);
        for (at, guest) in self.guests[1..].iter_mut().enumerate() {
            let mut wrong = None;
            guest.rx[0].receive(64, |received| {
                let mut got = [0; 2048];
                let length = received.length();
                received.copy_to(&mut got[..length]);
                if got[12..14] != TYPE {
                    return;
                }
                let flow = u32::from_be_bytes([got[14], got[15], got[16], got[17]]) as usize;
                if flow >= to.len() || got[..length] != frame(flow) {
                    wrong = Some(format!("a frame was changed: {:02x?}", &got[..length]));
                } else if to[flow] != at {
                    *late += 1;
                    if flow.is_multiple_of(STEADY) {
                        wrong = Some(format!("flow {flow}, which never changed, came to VF {}", at + 1));
                    }
                }
                *come += 1;
            });
            guest.rx[0].ring().kick();
            if let Some(wrong) = wrong {
                bail!(wrong);
            }
        }
        Ok(())
    }

    /// Sends one frame of each of these flows, and waits until all frames have come.
    fn send(&mut self, flows: impl IntoIterator<Item = usize>) -> Result<()> {
        let mut flows = flows.into_iter().peekable();
        let (mut last, mut before) = (Instant::now(), self.come);
        while flows.peek().is_some() || self.come < self.sent {
            let tx = &mut self.guests[0].tx[0];
            tx.reclaim();
            while self.sent - self.come < self.plan.window {
                let Some(flow) = flows.peek().copied() else { break };
                let frame = frame(flow);
                let sent = tx.transmit(1, |_, room| {
                    room.put_header(&NetHeader::default());
                    room.put(0, &frame);
                    LENGTH
                });
                if sent == 0 {
                    break;
                }
                self.sent += 1;
                flows.next();
            }
            tx.ring().kick();
            self.take()?;
            if self.come != before {
                (last, before) = (Instant::now(), self.come);
            }
            ensure!(last.elapsed() < PATIENCE, "{} of {} frames came: {}", self.come, self.sent, self.story());
        }
        Ok(())
    }

    fn stats(&self) -> Result<Value> {
        self.daemon.call("flow.stats", json!({}))
    }

    fn story(&self) -> String {
        let nic = self.daemon.ok(&["nic", "show", "nic0"]).unwrap_or_else(|error| format!("{error:#}"));
        format!("{nic}\n{:#}", self.stats().unwrap_or_default())
    }
}

/// Changes flows of a switch that is in the namespace.
///
/// # Errors
/// A frame came where it must not, or did not come; the NIC did not follow; counters do not add up.
pub fn run(net: Netns, ovs: Ovs, plan: Plan) -> Result<Seen> {
    let mut scene = Scene::new(net, ovs, plan)?;
    let flows = plan.flows;
    scene.send(0..flows)?;
    let told = |scene: &Scene| -> Result<u64> { Ok(scene.stats()?["kernel"]["changes"].as_u64().unwrap_or(0)) };
    let before = told(&scene)?;
    let (mut next, mut turn) = (0, 0);
    let begun = Instant::now();
    for _ in 0..plan.steps {
        let until = Instant::now() + STEP;
        let mut changed = Vec::new();
        while changed.len() < plan.changes {
            next = (next + 7) % flows;
            if !next.is_multiple_of(STEADY) {
                scene.to[next] ^= 1;
                changed.push(next);
            }
        }
        scene.apply(changed.iter().copied())?;
        scene.send(changed)?;
        while Instant::now() < until {
            scene.send((turn..turn + 50).map(|flow| flow % flows))?;
            turn += 50;
        }
    }
    let took = begun.elapsed();
    let told = told(&scene)? - before;
    // The changes are over: the NIC follows, and then nothing goes where it does not belong.
    wait::until(SOON, "all flows where the last change sent them", || {
        let before = scene.late;
        scene.send(0..flows)?;
        Ok((scene.late == before).then_some(()))
    })?;
    let offloaded = wait::until(SOON, "nearly all flows in the NIC", || {
        scene.send(0..flows)?;
        let stats = scene.stats()?;
        let rules = stats["by_state"]["offloaded"].as_u64().unwrap_or(0);
        Ok((rules as usize >= flows * 99 / 100).then_some(rules))
    })
    .with_context(|| scene.story())?;
    // All of them are printed, not a first page.
    for (words, word) in
        [(["--type", "offloaded"], ", offloaded:yes, dp:ringspan,"), (["--rules", "--limit=100000"], "flow create 0 ")]
    {
        let printed = scene.daemon.ok(&[&["flow", "list"], &words[..]].concat())?;
        let count = printed.lines().filter(|line| line.contains(word)).count();
        ensure!(count >= flows * 9 / 10, "{words:?}: {count} of {offloaded} are printed");
    }
    let late = scene.late;
    scene.send((0..3).flat_map(|_| 0..flows))?;
    ensure!(scene.late == late, "{} frames went astray after all was quiet", scene.late - late);
    scene.daemon.adds_up("nic0").with_context(|| scene.story())?;
    Ok(Seen { changes: plan.changes * plan.steps, took, told, frames: scene.come, late, offloaded })
}
