//! Linux guests are migrated there and back, from QEMU to QEMU, behind each back-end in turns: how long they are away, and what is lost.
//!
//! What goes wrong is counted, with a new guest after each time: on a busy machine guests of QEMU without KVM were seen to panic after a
//! migration, behind net_vhost as well as behind ringspan (docs/migration.md).
//!
//! A scene has two places, each a port on a TAP of one bridge, as on two hosts of a network: both of one back-end, or of two. While a guest
//! moves it is pinged, sends and receives numbered datagrams ([`crate::numbers`]), and an iperf3 runs both ways over one connection
//! each, which has to go on. All other scenes stand still meanwhile. As in [`crate::iperf`] all offloads are off.

use std::fmt::Write;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use ringspan_protocol::{PortSpec, Role};
use ringspan_testkit::daemon::tap_device;
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::netns::{Background, Netns, PingReport, Pinger};
use ringspan_testkit::qemu::{Guest, GuestSpec};
use ringspan_testkit::scene::{GUEST, HOST, serve_iperf};
use ringspan_testkit::testpmd::{self, Testpmd};
use ringspan_testkit::{paths, process, wait};
use serde::Serialize;
use serde_json::json;

use crate::iperf::PLAIN;
use crate::numbers::{PORT, Talk, Tally};
use crate::peer::Peer;
use crate::report::{Spread, unless_stopped};

const SOON: Duration = Duration::from_secs(60);
/// A migration that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(240);
/// How long it may take before the guest may pause for longer at its end than QEMU's own 300 ms.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two pings.
const INTERVAL: Duration = Duration::from_millis(10);
const MEMORY_MIB: u32 = 256;

/// What is migrated, and between whom.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Case {
    /// Back-ends of the first and of the second place.
    pub ends: [Peer; 2],
    /// Packed rings.
    pub packed: bool,
    /// Buffers are merged.
    pub mergeable: bool,
    /// Queue pairs.
    pub pairs: u16,
    /// QEMU listens at the socket.
    pub qemu_listens: bool,
}

/// All of them. The first of each kind of ring is ringspan alone, the second net_vhost.
const CASES: [Case; 9] = {
    use Peer::{Ringspan, Testpmd};
    const fn case(ends: [Peer; 2], packed: bool, pairs: u16) -> Case {
        Case { ends, packed, mergeable: true, pairs, qemu_listens: false }
    }
    [
        case([Ringspan, Ringspan], false, 1),
        case([Testpmd, Testpmd], false, 1),
        case([Ringspan, Testpmd], false, 1),
        case([Ringspan, Ringspan], true, 1),
        case([Testpmd, Testpmd], true, 1),
        case([Ringspan, Ringspan], false, 2),
        case([Testpmd, Testpmd], false, 2),
        Case { qemu_listens: true, ..case([Ringspan, Ringspan], true, 2) },
        Case { mergeable: false, ..case([Ringspan, Ringspan], false, 1) },
    ]
};

impl Case {
    /// For a table and for `--cells`: words that say what it is.
    pub fn name(&self) -> String {
        let [from, to] = self.ends.map(Peer::title);
        let ends = if from == to { from.to_string() } else { format!("{from} and {to}") };
        let rings = if self.packed { "packed" } else { "split" };
        let pairs = if self.pairs > 1 { format!(", {} pairs", self.pairs) } else { String::new() };
        let plain = if self.mergeable { "" } else { ", not mergeable" };
        let role = if self.qemu_listens { ", QEMU listens" } else { "" };
        format!("{ends}, {rings}{pairs}{plain}{role}")
    }
}

/// One migration.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Moved {
    /// QEMU's own figure of how long the guest stood, in ms.
    pub downtime: f64,
    /// The longest time without a datagram from the guest, in ms.
    pub silence: f64,
    /// Datagrams lost from and to the guest: one in 2 ms.
    pub lost: [u64; 2],
    /// Pings lost: one in 10 ms.
    pub pings: u64,
    /// Seconds until QEMU called it complete.
    pub took: f64,
    /// Times that QEMU went over the dirty pages.
    pub passes: u64,
}

/// What was found of a case.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    /// Which.
    pub case: Case,
    /// In words.
    pub name: String,
    /// All migrations.
    pub moved: Vec<Moved>,
    /// Datagrams that came from and to the guest in all.
    pub came: [u64; 2],
    /// Datagrams that were changed or doubled, in both directions; with one queue pair those that were late, too.
    pub corrupted: u64,
    /// What went wrong. A new guest was taken each time.
    pub faults: Vec<String>,
}

/// A guest and its two places. The parts end in this order.
struct Scene {
    case: Case,
    qemu: Vec<String>,
    guest: Guest,
    talk: Talk,
    /// Each with the places that it serves.
    lanes: Vec<(Lane, Vec<usize>)>,
    testpmd: Option<Testpmd>,
    net: Netns,
    sockets: [PathBuf; 2],
    /// Where the guest is.
    place: usize,
    started: u32,
    /// What of the datagrams was counted so far: from the guest, and to it.
    told: [Tally; 2],
    folder: tempfile::TempDir,
}

/// One of a scene's two ends: its name, and its TAP.
const PLACES: [(&str, &str); 2] = [("vm0", "tap0"), ("vm1", "tap1")];

impl Scene {
    fn new(case: Case, plan: &Plan) -> Result<Self> {
        let core = plan.core;
        let (net, folder) = (Netns::new("bench")?, paths::scratch()?);
        net.ip(&["link", "add", "br0", "type", "bridge", "stp_state", "0"])?;
        net.sysctl("net.ipv6.conf.br0.disable_ipv6=1")?;
        net.ip(&["address", "add", &format!("{HOST}/24"), "dev", "br0"])?;
        net.ip(&["link", "set", "br0", "up"])?;
        for (index, (_, tap)) in PLACES.iter().enumerate() {
            // A network that nobody uses: the bridge has the host's address.
            net.tap(tap, &format!("198.51.100.{}/32", index + 1), 1500)?;
            net.ip(&["link", "set", tap, "master", "br0"])?;
        }
        let sockets = PLACES.map(|(port, _)| folder.path().join(port));
        let of = |peer| (0..2).filter(move |&place| case.ends[place] == peer);
        let ours: Vec<usize> = of(Peer::Ringspan).collect();
        // A lane of another version has the second place for itself.
        let served: Vec<Vec<usize>> =
            if plan.other.is_some() { ours.into_iter().map(|place| vec![place]).collect() } else { vec![ours] };
        let mut lanes = vec![];
        for places in served.into_iter().filter(|places| !places.is_empty()) {
            let netns = Some(net.name().to_string());
            let program = plan.other.clone().filter(|_| places[0] == 1);
            let name = format!("migrate{}", places[0]);
            let options = lane::Options { netns, cores: core.to_string(), program, ..lane::Options::new(name) };
            let mut lane = Lane::start(options, folder.path())?;
            for &place in &places {
                let role = if case.qemu_listens { Role::Client } else { Role::Server };
                let spec = lane.spec(PLACES[place].0, &tap_device(PLACES[place].1), case.pairs);
                lane.add(&PortSpec { socket: sockets[place].clone(), role, ..spec })?;
            }
            lanes.push((lane, places));
        }
        let testpmd = of(Peer::Testpmd).next().map(|_| -> Result<Testpmd> {
            let mut options = testpmd::Options::new(format!("migrate-{}-{}", std::process::id(), net.name()));
            for place in of(Peer::Testpmd) {
                let socket = sockets[place].display();
                let tap = tap_device(PLACES[place].1).replace("vdev:", "");
                options = options.device(format!("net_vhost{place},iface={socket},queues={}", case.pairs)).device(tap);
            }
            let queues = case.pairs.to_string();
            let words = ["--forward-mode=io", "--total-num-mbufs=16384", "--rxq", &queues, "--txq", &queues];
            options = options.arguments(words);
            (options.core, options.huge_pages) = (core, false);
            options.runner = ["ip", "netns", "exec", net.name()].map(String::from).to_vec();
            let mut testpmd = Testpmd::start(&options)?;
            testpmd.command("start")?;
            Ok(testpmd)
        });
        let testpmd = testpmd.transpose()?;
        let mut guest = Guest::boot(&spec(&case, &plan.qemu, &sockets[0], None)?)?;
        guest.sh(&format!("ip link set eth0 up && ip address add {GUEST}/24 dev eth0"))?;
        // One processor: guests with two were seen to panic after migrations without KVM, behind any back-end. Without this such a guest would use
        // one pair.
        if case.pairs > 1 {
            guest.sh(&format!("ethtool -L eth0 combined {}", case.pairs))?;
        }
        net.wait_ping(GUEST, SOON)?;
        serve_iperf(&mut guest)?;
        guest.sh(&format!("{} {HOST} >/dev/null 2>&1 &", numbers()?.display()))?;
        let socket = std::thread::scope(|scope| {
            let made = scope.spawn(|| -> Result<UdpSocket> {
                net.join()?;
                Ok(UdpSocket::bind((HOST, PORT))?)
            });
            made.join().map_err(|_| anyhow::anyhow!("no socket in {}", net.name()))?
        })?;
        let talk = Talk::start(socket, format!("{GUEST}:{PORT}"))?;
        let scene = Self {
            case,
            qemu: plan.qemu.clone(),
            guest,
            talk,
            lanes,
            testpmd,
            net,
            sockets,
            place: 0,
            started: 0,
            told: Default::default(),
            folder,
        };
        scene.flows()?;
        scene.pause(true)?;
        Ok(scene)
    }

    /// Waits until datagrams come from the guest and get there.
    fn flows(&self) -> Result<()> {
        let before = self.talk.peek();
        let came = wait::until(SOON, "datagrams from the guest and to it", || {
            let seen = self.talk.peek();
            let there = seen.to_guest.came > before.to_guest.came + 5;
            Ok((there && seen.from_guest.came > before.from_guest.came + 5).then_some(()))
        });
        came.with_context(|| format!("there were {before:?}, and now {:?}", self.talk.peek()))
    }

    /// The end of what the lanes have logged.
    fn story(&self) -> String {
        let log: String = self.lanes.iter().map(|(lane, _)| lane.log()).collect();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Stops everything where it is, or lets it go on.
    fn pause(&self, pause: bool) -> Result<()> {
        self.talk.pause(pause);
        let lanes = self.lanes.iter().map(|(lane, _)| lane.pid());
        let testpmd = self.testpmd.as_ref().map(Testpmd::pid);
        for pid in self.guest.pid().into_iter().chain(lanes).chain(testpmd) {
            process::signal(pid, if pause { Signal::SIGSTOP } else { Signal::SIGCONT })?;
        }
        Ok(())
    }

    /// A migration there and one back.
    fn there_and_back(&mut self, load: &str) -> Result<[Moved; 2]> {
        self.pause(false)?;
        self.net.wait_ping(GUEST, SOON)?;
        self.flows()?;
        let connection = Connection::start(&self.net, load)?;
        connection.flows().context("before the migration")?;
        let moved = [self.migrate(&connection)?, self.migrate(&connection)?];
        drop(connection);
        self.pause(true)?;
        Ok(moved)
    }

    /// Waits until all that went on before the migration goes on after it.
    fn arrived(&self, ping: Pinger, connection: &Connection) -> Result<PingReport> {
        // What was in flight is told apart from what is lost once later ones have come.
        self.flows()?;
        let report = ping.finish()?;
        connection.flows()?;
        Ok(report)
    }

    fn migrate(&mut self, connection: &Connection) -> Result<Moved> {
        let place = 1 - self.place;
        self.started += 1;
        let incoming = self.folder.path().join(format!("incoming{}", self.started));
        let mut target = Guest::start(&spec(&self.case, &self.qemu, &self.sockets[place], Some(incoming.clone()))?)?;
        wait::until(SOON, "a QEMU that waits for a guest", || {
            ensure!(target.runs(), "QEMU ended: {}", target.log());
            Ok(incoming.exists().then_some(()))
        })?;
        let status = target.monitor.execute("query-status", SOON)?;
        ensure!(status["status"] == "inmigrate", "a QEMU that waits for a guest says {status}");

        let ping = self.net.ping(GUEST, INTERVAL)?;
        let before = self.talk.look();
        let limits = json!({ "max-bandwidth": 256u64 << 20, "downtime-limit": 300 });
        self.guest.monitor.execute_with("migrate-set-parameters", &limits, SOON)?;
        let (start, mut patient) = (Instant::now(), true);
        let uri = format!("unix:{}", incoming.display());
        self.guest.monitor.execute_with("migrate", &json!({ "uri": uri }), SOON)?;
        let said = wait::until(LIMIT, "the end of a migration", || {
            let said = self.guest.monitor.execute("query-migrate", SOON)?;
            let logs = || format!("{}\n{}", self.guest.log(), target.log());
            ensure!(said["status"] != "failed", "the migration failed: {said}\n{}", logs());
            if patient && start.elapsed() > PATIENCE {
                patient = false;
                let more = json!({ "downtime-limit": 5000 });
                self.guest.monitor.execute_with("migrate-set-parameters", &more, SOON)?;
            }
            Ok((said["status"] == "completed").then_some(said))
        })?;
        let took = start.elapsed().as_secs_f64();
        let pings = self.arrived(ping, connection).with_context(|| {
            let console = target.console();
            let lines: Vec<_> = console.lines().collect();
            let end = lines[lines.len().saturating_sub(20)..].join("\n");
            let panicked =
                if console.contains("Kernel panic") { "the guest's kernel panicked" } else { "the guest is silent" };
            format!("after a migration of {took:.1} s {panicked}\n{end}\nQEMU: {}", target.log())
        })?;
        let after = self.talk.look();
        self.guest = target;
        self.place = place;
        for (lane, places) in &mut self.lanes {
            for &place in &*places {
                lane.wait_port(PLACES[place].0, SOON, |status| !status.migration.logging)?;
            }
        }
        let number = |value: &serde_json::Value| value.as_f64().unwrap_or(f64::NAN);
        Ok(Moved {
            downtime: number(&said["downtime"]),
            silence: after.silence.as_secs_f64() * 1e3,
            lost: [after.from_guest.lost_since(&before.from_guest), after.to_guest.lost_since(&before.to_guest)],
            pings: pings.lost().len() as u64,
            took,
            passes: said["ram"]["dirty-sync-count"].as_u64().unwrap_or(0),
        })
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // What stands still cannot be told to end.
        let _ = self.pause(false);
    }
}

/// The program that runs in guests.
fn numbers() -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("numbers"))
}

/// The guest at its first place, or a place for it to come to.
fn spec(case: &Case, qemu: &[String], socket: &Path, incoming: Option<PathBuf>) -> Result<GuestSpec> {
    let listens = if case.qemu_listens { ",server=on" } else { "" };
    let (queues, several) =
        if case.pairs > 1 { (format!(",queues={}", case.pairs), ",mq=on") } else { (String::new(), "") };
    let packed = if case.packed { ",packed=on" } else { "" };
    let mergeable = if case.mergeable { "" } else { ",mrg_rxbuf=off" };
    let nics = [
        "-object".into(),
        format!("memory-backend-memfd,id=guestmem,size={MEMORY_MIB}M,share=on"),
        "-machine".into(),
        "memory-backend=guestmem".into(),
        "-chardev".into(),
        format!("socket,id=nic,path={}{listens}", socket.display()),
        "-netdev".into(),
        format!("vhost-user,id=net,chardev=nic{queues}"),
        "-device".into(),
        format!("virtio-net-pci,netdev=net,mac=52:54:00:12:34:56,{PLAIN}{several}{packed}{mergeable}"),
    ];
    let iperf = paths::on_path("iperf3").context("iperf3 is missing: install it")?;
    let limit = Duration::from_secs(3600);
    let ethtool = paths::on_path("ethtool").context("ethtool is missing: install it")?;
    let programs = vec![iperf, ethtool, numbers()?];
    let spec = GuestSpec { nics: nics.to_vec(), alone: true, programs, incoming, limit, ..GuestSpec::default() };
    Ok(if qemu.is_empty() { spec } else { GuestSpec { qemu: qemu.to_vec(), ..spec } })
}

/// An iperf3 that sends both ways over one TCP connection each.
struct Connection {
    client: Background,
}

impl Connection {
    fn start(net: &Netns, load: &str) -> Result<Self> {
        // Interval lines come at once, and no end of its own within the test.
        let words = ["-c", GUEST, "--bidir", "-b", load, "-t", "1800", "-i", "0.25", "--forceflush"];
        // The server may still be busy with the connection of the turn before: then the client ends at once.
        wait::until(SOON, "a free iperf3 server", || {
            let connection = Self { client: net.spawn("iperf3", &words)? };
            while connection.intervals().contains(&0) {
                if !process::alive(connection.client.pid()) {
                    return Ok(None);
                }
                wait::pause(Duration::from_millis(50))?;
            }
            Ok(Some(connection))
        })
    }

    /// Intervals in which bytes moved: to the guest, and from it.
    fn intervals(&self) -> [usize; 2] {
        let said = self.client.output();
        ["[TX-C]", "[RX-C]"].map(|way| {
            let moved = said.lines().filter(|line| line.contains(way) && line.contains("sec"));
            moved.filter(|line| !line.contains(" 0.00 bits/sec")).count()
        })
    }

    /// Waits until the same connections move bytes, both ways.
    fn flows(&self) -> Result<()> {
        let before = self.intervals();
        let seen = wait::until(SOON, "bytes of iperf3 in both directions", || {
            let now = self.intervals();
            // Two more: the first may have begun before the call.
            Ok((0..2).all(|way| now[way] > before[way] + 1).then_some(()))
        });
        seen.with_context(|| self.client.output())
    }
}

/// Whether a name has these words in it, or is these words where they end with a full stop.
fn matches(name: &str, words: &str) -> bool {
    words.strip_suffix('.').map_or_else(|| name.contains(words), |whole| name == whole)
}

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Cases whose names contain one of these, or all.
    pub only: Vec<String>,
    /// Times there and back: of the first two cases, which are compared, and of each case that was named.
    pub rounds: usize,
    /// The same of the others.
    pub others: usize,
    /// Bits a second of TCP in each direction, as iperf3 takes them.
    pub load: String,
    /// The back-ends' core.
    pub core: usize,
    /// The words that start QEMU, where it is not the machine's own.
    pub qemu: Vec<String>,
    /// The lane's program of another version, for each second place that ringspan serves.
    pub other: Option<PathBuf>,
    /// After this time no other round is begun.
    pub limit: Duration,
}

impl Plan {
    fn wants(&self, case: &Case) -> bool {
        self.only.is_empty() || self.only.iter().any(|words| matches(&case.name(), words))
    }

    /// How often a guest goes there and back in the case at this place of the list.
    fn rounds_of(&self, place: usize) -> usize {
        if place < 2 || !self.only.is_empty() { self.rounds } else { self.others }
    }
}

/// Migrates in all cases that the plan wants, in turns.
///
/// # Errors
/// That nothing could be started. What goes wrong in a case is in its [`Found`].
pub fn run(plan: &Plan, mut progress: impl FnMut(&str)) -> Result<Vec<Found>> {
    let start = Instant::now();
    let (mut scenes, mut found, mut rounds) = (vec![], vec![], vec![]);
    for (place, case) in CASES.into_iter().enumerate().filter(|(_, case)| plan.wants(case)) {
        wait::check_stopped()?;
        progress(&format!("booting a guest: {}", case.name()));
        let scene = Scene::new(case, plan);
        rounds.push(plan.rounds_of(place));
        if let Err(error) = &scene
            && error.is::<wait::Stopped>()
        {
            progress("stopped by a signal");
            return Ok(found);
        }
        let fault = scene.as_ref().err().map(|error| format!("at the start: {error:#}"));
        if let Some(fault) = &fault {
            progress(&format!("{}: {fault}", case.name()));
        }
        scenes.push(scene.ok());
        let faults = fault.into_iter().collect();
        found.push(Found { case, name: case.name(), moved: vec![], came: [0; 2], corrupted: 0, faults });
    }
    'rounds: for round in 0..rounds.iter().copied().max().unwrap_or(0) {
        if start.elapsed() > plan.limit {
            progress(&format!("no time for round {}", round + 1));
            break;
        }
        for ((slot, found), _) in scenes.iter_mut().zip(&mut found).zip(&rounds).filter(|(_, rounds)| round < **rounds)
        {
            if wait::check_stopped().is_err() {
                progress("stopped by a signal: what was found so far follows");
                break 'rounds;
            }
            let Some(scene) = slot else { continue };
            let outcome = scene.there_and_back(&plan.load);
            let failed = outcome.is_err();
            match outcome {
                Ok(moved) => {
                    found.moved.extend(moved);
                    let [there, back] = moved.map(|moved| format!("{:.0} ms", moved.silence));
                    progress(&format!("round {}: {}: {there} and {back} of silence", round + 1, found.name));
                }
                Err(error) if error.is::<wait::Stopped>() => {
                    progress("stopped by a signal: what was found so far follows");
                    break 'rounds;
                }
                Err(error) => {
                    progress(&format!("round {}: {}: {error:#}\n{}", round + 1, found.name, scene.story()));
                    found.faults.push(format!("round {}: {error:#}", round + 1));
                }
            }
            let seen = scene.talk.peek();
            let ways = [seen.from_guest, seen.to_guest];
            let late = |seen: &Tally| if found.case.pairs > 1 { 0 } else { seen.late };
            (0..2).for_each(|way| found.came[way] += ways[way].came - scene.told[way].came);
            let wrong = |seen: &Tally| seen.wrong + seen.doubled.max(late(seen));
            found.corrupted += ways.iter().map(wrong).sum::<u64>() - scene.told.iter().map(wrong).sum::<u64>();
            scene.told = ways;
            if failed {
                *slot = None;
                let Ok(scene) = unless_stopped(Scene::new(found.case, plan)) else {
                    progress("stopped by a signal: what was found so far follows");
                    break 'rounds;
                };
                *slot = scene.ok();
            }
        }
    }
    Ok(found)
}

/// What was found, for a terminal: medians, and the least and the most.
pub fn table(found: &[Found]) -> String {
    let mut text = format!(
        "{:<42} {:>5} {:>18} {:>18} {:>16} {:>16} {:>14} {:>12} {:>9}\n",
        "",
        "moves",
        "QEMU's downtime ms",
        "silence ms",
        "lost from guest",
        "lost to guest",
        "pings lost",
        "took s",
        "corrupted"
    );
    for found in found {
        let of = |value: fn(&Moved) -> f64, decimals| {
            Spread::of(found.moved.iter().map(value)).map_or_else(String::new, |spread| spread.text(decimals))
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<42} {:>5} {:>18} {:>18} {:>16} {:>16} {:>14} {:>12} {:>9}",
            found.name,
            found.moved.len(),
            of(|moved| moved.downtime, 0),
            of(|moved| moved.silence, 0),
            of(|moved| moved.lost[0] as f64, 0),
            of(|moved| moved.lost[1] as f64, 0),
            of(|moved| moved.pings as f64, 0),
            of(|moved| moved.took, 1),
            found.corrupted
        );
        for fault in &found.faults {
            let _ = writeln!(text, "    failed: {}", fault.lines().next().unwrap_or_default());
        }
    }
    text
}
