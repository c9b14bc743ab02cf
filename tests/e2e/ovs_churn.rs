//! Ten thousand flows of Open vSwitch's, of which a thousand a second change where they go: every frame comes to one of the two ports
//! that it may come to, those whose flow never changed only to theirs, and when the changes end all go where the last one sent them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringspan_testkit::daemon::Daemon;
use ringspan_testkit::guest::{Guest, NetHeader, Options};
use ringspan_testkit::netns::Netns;
use ringspan_testkit::ovs::Ovs;
use ringspan_testkit::{needs, wait};
use serde_json::{Value, json};

const FLOWS: usize = 10_000;
/// Changes in one step, and the time between two steps: a thousand a second.
const CHANGES: usize = 100;
const STEP: Duration = Duration::from_millis(100);
const STEPS: usize = 50;
/// One flow of so many never changes.
const STEADY: usize = 10;
/// Most frames on their way: no more than the shortest queue on it holds.
const WINDOW: u64 = 128;
/// Longest time without a frame that is still to come.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest wait for the NIC to follow: some polls, which are seconds apart with so many flows.
const SOON: Duration = Duration::from_secs(120);
const LENGTH: usize = 60;
const TYPE: [u8; 2] = [0x88, 0xb5];

/// The parts end in the order of the fields.
struct Scene {
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
    fn new() -> Result<Self> {
        let net = Netns::new("ovs-churn")?;
        net.sysctl("net.ipv6.conf.default.disable_ipv6=1")?;
        let ovs = Ovs::start_in(Some(&net))?;
        let config = format!(
            "[ovs]\nrun_dir = \"{}\"\n[dataplane]\nmemory_mib = 256\nhuge_pages = \"off\"\n[[nic]]\nname = \"nic0\"\nvfs = 3\n",
            ovs.run_dir().display()
        );
        let daemon = Daemon::start(&config, Some(&net))?;
        let mut guests = Vec::new();
        for vf in 0..3 {
            daemon.add_port(&format!("vm{vf}"), &format!("soft:nic0/vf{vf}"), &[])?;
            guests.push(Guest::start(Options::new(daemon.path(&format!("vm{vf}.sock"))))?);
            let port = format!("nic0_vf{vf}");
            daemon.ok(&["ovs", "configure", "--bridge", "br0", "--datapath-type", "netdev", "--port", &port])?;
        }
        ovs.ofctl("br0", "del-flows", &[])?;
        let to: Vec<usize> = (0..FLOWS).map(|flow| flow % 2).collect();
        let scene = Self { guests, daemon, ovs, _net: net, to, sent: 0, come: 0, late: 0 };
        scene.apply(0..FLOWS)?;
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
                if flow >= FLOWS || got[..length] != frame(flow) {
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
            while self.sent - self.come < WINDOW {
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

    fn story(&self) -> String {
        self.daemon.ok(&["nic", "show", "nic0"]).unwrap_or_else(|error| format!("{error:#}"))
    }

    /// All that came into the NIC went out of it, or was counted as dropped.
    fn adds_up(&self) -> Result<()> {
        let shown = self.daemon.call("nic.show", json!({ "name": "nic0" }))?;
        let ports = ringspan_testkit::daemon::find(&shown, "ports").and_then(Value::as_array).context("ports")?;
        let sum = |keys: &[&str]| -> u64 {
            let of = |port: &Value| keys.iter().filter_map(|key| port["counters"][key].as_u64()).sum::<u64>();
            ports.iter().map(of).sum()
        };
        let came = sum(&["received", "representor_received", "copies", "segments"]);
        let went = sum(&["sent", "representor_sent"]);
        ensure!(came > 0 && came == went, "{came} frames came and {went} went: {}", self.story());
        Ok(())
    }
}

#[test]
fn flows_that_change_all_the_time_never_lead_a_frame_astray() -> Result<()> {
    needs!(Root, Ringspan, Ovs);
    let mut scene = Scene::new()?;
    scene.send(0..FLOWS)?;
    let mut next = 0;
    let mut turn = 0;
    for _ in 0..STEPS {
        let until = Instant::now() + STEP;
        let mut changed = Vec::new();
        while changed.len() < CHANGES {
            next = (next + 7) % FLOWS;
            if !next.is_multiple_of(STEADY) {
                scene.to[next] ^= 1;
                changed.push(next);
            }
        }
        scene.apply(changed.iter().copied())?;
        scene.send(changed)?;
        while Instant::now() < until {
            scene.send((turn..turn + 50).map(|flow| flow % FLOWS))?;
            turn += 50;
        }
    }
    // The changes are over: the NIC follows, and then nothing goes where it does not belong.
    wait::until(SOON, "all flows where the last change sent them", || {
        let before = scene.late;
        scene.send(0..FLOWS)?;
        Ok((scene.late == before).then_some(()))
    })?;
    wait::until(SOON, "nearly all flows in the NIC", || {
        scene.send(0..FLOWS)?;
        let stats = scene.daemon.call("flow.stats", json!({}))?;
        let rules = ringspan_testkit::daemon::find(&stats, "offloaded").and_then(Value::as_u64).unwrap_or(0);
        Ok((rules as usize >= FLOWS * 99 / 100).then_some(()))
    })
    .with_context(|| format!("{:#}", scene.daemon.call("flow.stats", json!({})).unwrap_or_default()))?;
    let late = scene.late;
    scene.send((0..3).flat_map(|_| 0..FLOWS))?;
    ensure!(scene.late == late, "{} frames went astray after all was quiet", scene.late - late);
    scene.adds_up()
}
