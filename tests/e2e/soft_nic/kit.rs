//! A software NIC in a namespace, with a guest on each of its first VFs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringspan_protocol::nic::BondMode;
use ringspan_protocol::{
    Action, Match, NicMode, NicPort, NicPortCounters, NicSpec, NicStatus, Reply, Request, Rule, RuleCounters, RuleId,
};
use ringspan_testkit::far_end::FarEnd;
use ringspan_testkit::guest::{Guest, Kind, NetHeader, Options};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::netns::Netns;

const SOON: Duration = Duration::from_secs(10);

/// The parts end in the order of the fields.
pub struct Scene {
    pub guests: Vec<Guest>,
    pub lane: Lane,
    pub net: Netns,
    _folder: tempfile::TempDir,
}

pub fn nic(vfs: u16, uplinks: &[&str]) -> NicSpec {
    let uplinks = uplinks.iter().map(|device| device.parse().expect("a device")).collect();
    let (name, mode, bond) = ("nic0".parse().expect("a name"), NicMode::Switchdev, BondMode::ActiveBackup);
    NicSpec { name, vfs, uplinks, bond, mode, vf: vec![], mtu: 1500, pci: None }
}

/// The format of the rings of the guest with this number.
pub fn by_turns(guest: usize) -> Kind {
    if guest.is_multiple_of(2) { Kind::Split } else { Kind::Packed }
}

impl Scene {
    /// A NIC with so many VFs and these uplinks, and guests on the first of them, by turns with split and with packed rings. Representors say
    /// nothing of themselves.
    pub fn new(label: &str, spec: &NicSpec, guests: usize) -> Result<Self> {
        Self::with(label, spec, guests, |options| options)
    }

    pub fn with(label: &str, spec: &NicSpec, guests: usize, shape: impl Fn(Options) -> Options) -> Result<Self> {
        let net = Netns::new(label)?;
        net.sysctl("net.ipv6.conf.default.disable_ipv6=1")?;
        for uplink in spec.uplinks.iter().filter_map(|uplink| uplink.interface()) {
            net.tap(uplink, "198.51.100.1/24", 1500)?;
        }
        let folder = tempfile::tempdir()?;
        let memory = 256.max(160 + 8 * u32::from(spec.vfs));
        let options = lane::Options { netns: Some(net.name().into()), memory_mib: memory, ..lane::Options::new(label) };
        let mut lane = Lane::start(options, folder.path())?;
        lane.client()?.ask(Request::NicAdd(Box::new(spec.clone()))).with_context(|| lane.log())?;
        let mut scene = Self { guests: vec![], lane, net, _folder: folder };
        for vf in 0..guests {
            let socket = scene.lane.add_port(&format!("vm{vf}"), &format!("soft:nic0/vf{vf}"), 1)?;
            scene.guests.push(Guest::start(shape(Options::new(socket).over(by_turns(vf))))?);
        }
        Ok(scene)
    }

    pub fn install(&mut self, rules: Vec<Rule>) -> Result<()> {
        let nic = "nic0".parse()?;
        match self.lane.client()?.ask(Request::RuleInstall { nic, rules })? {
            Reply::RuleResults(results) => match results.into_iter().find_map(|result| result.error) {
                Some(error) => Err(error.into()),
                None => Ok(()),
            },
            other => bail!("rule-install was answered by {other:?}"),
        }
    }

    pub fn remove(&mut self, ids: &[u128]) -> Result<()> {
        let (nic, ids) = ("nic0".parse()?, ids.iter().map(|id| RuleId(*id)).collect());
        self.lane.client()?.ask(Request::RuleRemove { nic, ids }).map(drop)
    }

    pub fn counters(&mut self) -> Result<Vec<RuleCounters>> {
        let nic = "nic0".parse()?;
        match self.lane.client()?.ask(Request::RuleCounters { nic, after: None, limit: 100 })? {
            Reply::RuleCounters(counters) => Ok(counters),
            other => bail!("rule-counters was answered by {other:?}"),
        }
    }

    pub fn status(&mut self) -> Result<NicStatus> {
        match self.lane.client()?.ask(Request::NicList)? {
            Reply::Nics(mut nics) if nics.len() == 1 => Ok(nics.remove(0)),
            other => bail!("nic-list was answered by {other:?}"),
        }
    }

    /// The counters of one port.
    pub fn port(&mut self, port: NicPort) -> Result<NicPortCounters> {
        let status = self.status()?;
        let found = status.ports.iter().find(|one| one.port == port).map(|one| one.counters);
        found.with_context(|| format!("no port {port}"))
    }

    /// The kernel's end of a representor or an uplink, for frames of this type.
    pub fn far(&self, interface: &str, ethertype: [u8; 2]) -> Result<FarEnd> {
        FarEnd::open(&self.net, interface, ethertype)
    }

    /// Waits until everything that came in went out, or was counted as dropped.
    pub fn adds_up(&mut self) -> Result<()> {
        let until = Instant::now() + SOON;
        loop {
            let status = self.status()?;
            let (mut came, mut went) = (0, 0);
            for NicPortCounters { received, representor_received, copies, segments, sent, representor_sent, .. } in
                status.ports.iter().map(|port| port.counters)
            {
                came += received + representor_received + copies + segments;
                went += sent + representor_sent;
            }
            went += status.ports.iter().map(|port| port.counters.drops()).sum::<u64>();
            if came == went {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{came} frames came and {went} went or were dropped: {:#?}", status.ports);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

pub fn rule(id: u128, in_port: NicPort, matches: &[&str], actions: Vec<Action>) -> Rule {
    let matches = Match::new(matches.iter().map(|text| text.parse().expect("a field"))).expect("fields");
    Rule { id: RuleId(id), priority: 0, in_port, matches, actions, refresh: false }
}

pub fn send(guest: &mut Guest, frame: &[u8], header: &NetHeader) -> Result<()> {
    let until = Instant::now() + SOON;
    loop {
        let sent = guest.tx[0].transmit(1, |_, room| {
            room.put_header(header);
            room.put(0, frame);
            frame.len()
        });
        guest.tx[0].ring().kick();
        guest.tx[0].reclaim();
        if sent == 1 {
            return Ok(());
        }
        ensure!(Instant::now() < until, "the ring stays full");
    }
}

/// The next frame that comes to a guest, with its header.
pub fn receive(guest: &mut Guest) -> Result<(NetHeader, Vec<u8>)> {
    let until = Instant::now() + SOON;
    let mut got = None;
    while got.is_none() {
        ensure!(Instant::now() < until, "no frame came to the guest");
        guest.rx[0].receive(1, |received| {
            let mut bytes = vec![0; received.length()];
            received.copy_to(&mut bytes);
            got = Some((received.header(), bytes));
        });
        guest.rx[0].ring().kick();
    }
    got.context("a frame")
}

/// The next frame at a far end.
pub fn arrives(far: &FarEnd) -> Result<Vec<u8>> {
    let (until, mut bytes) = (Instant::now() + SOON, vec![0; 1 << 16]);
    loop {
        if let Some(len) = far.receive(&mut bytes)? {
            bytes.truncate(len);
            return Ok(bytes);
        }
        ensure!(Instant::now() < until, "no frame came to the far end");
        std::thread::yield_now();
    }
}

pub fn nothing(far: &FarEnd) -> Result<()> {
    let mut bytes = vec![0; 1 << 16];
    match far.receive(&mut bytes)? {
        None => Ok(()),
        Some(len) => bail!("a frame of {len} bytes: {:02x?}", &bytes[..len.min(64)]),
    }
}
