//! A software NIC's two uplinks under traffic, when one of them goes down and comes up again, over and over: for how long frames are lost, of which each flow has one a
//! millisecond. The links are TAPs, which do not say when they change: DPDK looks at them.
//!
//! Times in which the machine stood still, and sent nothing, do not count.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringspan_protocol::nic::BondMode;
use ringspan_protocol::{Action, Match, NicMode, NicPort, NicSpec, Reply, Request, Rule, RuleId};
use ringspan_testkit::daemon::tap_device;
use ringspan_testkit::far_end::FarEnd;
use ringspan_testkit::guest::{Guest, NetHeader, Options};
use ringspan_testkit::lacp::{self, Switch};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::netns::Netns;
use ringspan_testkit::{packet, paths};

use super::control::tool;

const MODES: [(&str, BondMode); 3] =
    [("1", BondMode::ActiveBackup), ("2", BondMode::BalanceXor), ("4", BondMode::Lacp)];
/// Of each mode.
const ROUNDS: usize = 20;
/// A frame of each leaves each millisecond.
const FLOWS: usize = 16;
/// Longest time of which a flow may lose all frames.
const LOSS: Duration = Duration::from_millis(100);
/// What a millisecond between two frames takes at most where the machine runs: beyond that it stood still.
const STEP: Duration = Duration::from_millis(5);
/// What is on its way takes no longer.
const ON_ITS_WAY: Duration = Duration::from_millis(300);
/// What the bond may take to agree on something.
const SOON: Duration = Duration::from_secs(30);
const TAPS: [&str; 2] = ["up0", "up1"];
const IPV4: [u8; 2] = [0x08, 0x00];
const LENGTH: usize = 60;
/// Where a frame's number is: behind the headers of Ethernet, IPv4 and UDP.
const NUMBER: usize = 42;

/// Runs the checks whose names contain `only`. Returns how many passed.
pub fn run(story: &mut fs::File, only: &str) -> Result<u32> {
    let mut done = 0;
    for (number, mode) in MODES {
        let name = format!(
            "a software NIC's bond in mode {number} fails over under traffic: each of {ROUNDS} times within 100 ms"
        );
        if !name.contains(only) {
            continue;
        }
        if done == 0 {
            tool("modprobe", &["tun"])?;
        }
        writeln!(story, "--> {name}")?;
        let start = Instant::now();
        let seen = Bonded::new(mode)?.rounds().with_context(|| name.clone())?;
        writeln!(story, "    {seen}")?;
        writeln!(story, "    {:.1} s", start.elapsed().as_secs_f64())?;
        done += 1;
    }
    Ok(done)
}

/// The parts end in the order of the fields.
struct Bonded {
    _switch: Option<Switch>,
    wires: [FarEnd; 2],
    guest: Guest,
    lane: Lane,
    net: Netns,
    _folder: tempfile::TempDir,
    mode: BondMode,
    flows: [Flow; FLOWS],
    /// When a frame of each flow was sent, and the flows whose frame came, as bits.
    came: Vec<(Instant, u16)>,
}

/// What came of a flow.
#[derive(Debug, Clone, Copy)]
struct Flow {
    /// When a frame of it last came, by which link.
    last: Instant,
    link: usize,
    /// Longest time between two.
    gap: Duration,
}

impl Bonded {
    fn new(mode: BondMode) -> Result<Self> {
        let net = Netns::new("failover")?;
        net.sysctl("net.ipv6.conf.default.disable_ipv6=1")?;
        TAPS.iter().try_for_each(|tap| net.tap(tap, "198.51.100.1/24", 1500))?;
        let folder = paths::scratch()?;
        let options = lane::Options {
            netns: Some(net.name().into()),
            memory_mib: 256,
            cores: "1".into(),
            ready: Duration::from_secs(120),
            ..lane::Options::new("failover")
        };
        let mut lane = Lane::start(options, folder.path())?;
        let uplinks = TAPS.map(|tap| tap_device(tap).parse());
        let spec = NicSpec {
            name: "nic0".parse()?,
            vfs: 1,
            uplinks: uplinks.into_iter().collect::<Result<_, _>>()?,
            bond: mode,
            mode: NicMode::Switchdev,
            vf: vec![],
            mtu: 1500,
            pci: None,
        };
        lane.client()?.ask(Request::NicAdd(Box::new(spec))).with_context(|| lane.log())?;
        let guest = Guest::start(Options::new(lane.add_port("vm0", "soft:nic0/vf0", 1)?))?;
        let rule = Rule {
            id: RuleId(1),
            priority: 0,
            in_port: NicPort::Vf(0),
            matches: Match::default(),
            actions: vec![Action::Output(NicPort::Uplink)],
            refresh: false,
        };
        lane.client()?.ask(Request::RuleInstall { nic: "nic0".parse()?, rules: vec![rule] })?;
        let ends = |kind| -> Result<[FarEnd; 2]> {
            Ok([FarEnd::open(&net, TAPS[0], kind)?, FarEnd::open(&net, TAPS[1], kind)?])
        };
        let switch = (mode == BondMode::Lacp).then(|| ends(lacp::TYPE).map(Switch::start)).transpose()?;
        let flow = Flow { last: Instant::now(), link: 0, gap: Duration::ZERO };
        let wires = ends(IPV4)?;
        let flows = [flow; FLOWS];
        Ok(Self { _switch: switch, wires, guest, lane, net, _folder: folder, mode, flows, came: vec![] })
    }

    /// Takes one link down and brings it up again, in turns. Returns what was seen, in words.
    fn rounds(&mut self) -> Result<String> {
        self.wait(None, true)?;
        self.wait(None, false)?;
        let (mut longest, mut most, mut lost) = (Duration::ZERO, Duration::ZERO, 0);
        for round in 0..ROUNDS {
            let down = round % 2;
            self.flows.iter_mut().for_each(|flow| flow.gap = Duration::ZERO);
            self.came.clear();
            self.set(down, "down")?;
            self.wait(Some(1 - down), false)?;
            self.set(down, "up")?;
            self.wait(None, true)?;
            self.wait(None, false)?;
            let gap = self.flows.iter().map(|flow| flow.gap).max().unwrap_or_default();
            let until = Instant::now() + ON_ITS_WAY;
            while Instant::now() < until {
                self.take();
                std::thread::sleep(Duration::from_millis(1));
            }
            let (run, all) = self.lost();
            ensure!(run < LOSS, "round {round}: a flow lost its frames for {run:?}, and was without for {gap:?}");
            (longest, most, lost) = (longest.max(gap), most.max(run), lost + all);
        }
        Ok(format!(
            "{ROUNDS} times: a flow lost its frames for {most:?} at most, all flows {lost} frames; the longest time without frames was {longest:?}, standing still included"
        ))
    }

    /// Sends, and takes what comes, while a link is set.
    fn set(&mut self, link: usize, how: &str) -> Result<()> {
        let net = self.net.name().to_owned();
        let mut ip = std::process::Command::new("ip").args(["-n", &net, "link", "set", TAPS[link], how]).spawn()?;
        loop {
            self.traffic()?;
            if let Some(status) = ip.try_wait()? {
                ensure!(status.success(), "ip link set {} {how}: {status}", TAPS[link]);
                return Ok(());
            }
        }
    }

    /// Goes on until all flows come by this link, or by those by which they are to come when both are up; with `ready` until the bond says that it sends so.
    fn wait(&mut self, link: Option<usize>, ready: bool) -> Result<()> {
        let until = Instant::now() + SOON;
        let mut asked = Instant::now();
        let since = Instant::now();
        loop {
            self.traffic()?;
            let fresh = self.flows.iter().all(|flow| flow.last > since && link.is_none_or(|link| flow.link == link));
            if !ready && fresh {
                return Ok(());
            }
            if ready && asked.elapsed() > Duration::from_millis(50) {
                asked = Instant::now();
                let Reply::Nics(nics) = self.lane.client()?.ask(Request::NicList)? else { bail!("no NICs") };
                let active = nics[0].uplinks.iter().filter(|uplink| uplink.active).count();
                let up = nics[0].uplinks.iter().filter(|uplink| uplink.up).count();
                if up == 2 && active == if self.mode == BondMode::ActiveBackup { 1 } else { 2 } {
                    return Ok(());
                }
            }
            ensure!(Instant::now() < until, "flows do not come by {link:?}: {:?}", self.flows);
        }
    }

    /// The longest time of which a flow lost all frames, and how many were lost of all flows.
    fn lost(&self) -> (Duration, usize) {
        let (mut most, mut all) = (Duration::ZERO, 0);
        for flow in 0..FLOWS {
            let mut run = Duration::ZERO;
            for (at, (sent, came)) in self.came.iter().enumerate() {
                let is_lost = came >> flow & 1 == 0;
                let next = self.came.get(at + 1).map_or(*sent, |(next, _)| *next);
                run = if is_lost { run + (next - *sent).min(STEP) } else { Duration::ZERO };
                (most, all) = (most.max(run), all + usize::from(is_lost));
            }
        }
        (most, all)
    }

    /// A frame of each flow, and a millisecond at least.
    fn traffic(&mut self) -> Result<()> {
        let until = Instant::now() + Duration::from_millis(1);
        let number = self.came.len() as u64;
        self.came.push((Instant::now(), 0));
        for flow in 0..FLOWS {
            let frame = frame(flow as u16, number);
            self.guest.tx[0].reclaim();
            let sent = self.guest.tx[0].transmit(1, |_, room| {
                room.put_header(&NetHeader::default());
                room.put(0, &frame);
                LENGTH
            });
            // A ring that is full for a moment: the frame was not sent, and is not lost.
            if sent == 0 {
                self.came[number as usize].1 |= 1 << flow;
            }
        }
        self.guest.tx[0].ring().kick();
        loop {
            self.take();
            if Instant::now() >= until {
                return Ok(());
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Takes what came by both links.
    fn take(&mut self) {
        let mut bytes = [0; 2048];
        for link in 0..TAPS.len() {
            // One that is down says so.
            while let Ok(Some(len)) = self.wires[link].receive(&mut bytes) {
                self.came(link, &bytes[..len]);
            }
        }
    }

    fn came(&mut self, link: usize, bytes: &[u8]) {
        let Some(&[high, low]) = bytes.get(34..36) else { return };
        let at = usize::from(u16::from_be_bytes([high, low])).wrapping_sub(1000);
        let Some(flow) = self.flows.get_mut(at) else { return };
        let now = Instant::now();
        *flow = Flow { last: now, link, gap: flow.gap.max(now - flow.last) };
        let number = bytes.get(NUMBER..NUMBER + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
        let came = number.and_then(|number| self.came.get_mut(number as usize));
        if let Some((_, came)) = came {
            *came |= 1 << at;
        }
    }
}

/// A UDP packet of a flow, which is its source port, with a number in it.
fn frame(flow: u16, number: u64) -> [u8; LENGTH] {
    let mut frame = [0; LENGTH];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    let total = (LENGTH - 14) as u8;
    frame[14..34].copy_from_slice(&[0x45, 0, 0, total, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let checksum = !packet::sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame[34..36].copy_from_slice(&(1000 + flow).to_be_bytes());
    frame[36..38].copy_from_slice(&9_u16.to_be_bytes());
    frame[38..40].copy_from_slice(&(u16::from(total) - 20).to_be_bytes());
    frame[NUMBER..NUMBER + 8].copy_from_slice(&number.to_be_bytes());
    frame
}
