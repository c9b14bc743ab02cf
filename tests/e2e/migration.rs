//! A real guest is migrated from one port to another, from QEMU to QEMU, while it is pinged and sends numbered datagrams; and while lanes,
//! the daemon and QEMUs are killed.
//!
//! Over split rings the ports listen, over packed ones QEMU does. Where all goes well the guest has one queue pair over split rings and two over packed ones, and its
//! receive buffers are merged; where something is killed it is the other way round.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_testkit::daemon::{Daemon, find, tap_device};
use ringspan_testkit::guest::Kind;
use ringspan_testkit::netns::{Netns, PingReport};
use ringspan_testkit::qemu::{Guest, GuestSpec};
use ringspan_testkit::scene::{GUEST, HOST, set_rings};
use ringspan_testkit::{needs, over_both, paths, process, wait};
use serde_json::{Value, json};

over_both!(
    a_guest_is_migrated_there_and_back_under_traffic,
    a_guest_stays_or_arrives_whatever_is_killed_amid_its_migration,
);

const SOON: Duration = Duration::from_secs(60);
/// How long a migration may take before the guest may pause for longer at its end.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two pings.
const INTERVAL: Duration = Duration::from_millis(10);
/// Where the guest's datagrams go.
const PORT: u16 = 5140;

/// Each port, and its lane.
const LANES: [(&str, &str); 2] = [("vm1", "main"), ("vm2", "vm2")];

/// Two ports on two TAPs of a bridge, as on two hosts of a network.
struct Hosts {
    daemon: Daemon,
    net: Netns,
    rings: Kind,
    /// The guest's queue pairs.
    pairs: u16,
    /// Its receive buffers are merged.
    mergeable: bool,
    folder: tempfile::TempDir,
    started: u32,
}

impl Hosts {
    fn new(rings: Kind, pairs: u16, mergeable: bool) -> Result<Self> {
        let net = Netns::new("migrate")?;
        net.ip(&["link", "add", "br0", "type", "bridge", "stp_state", "0"])?;
        net.sysctl("net.ipv6.conf.br0.disable_ipv6=1")?;
        net.ip(&["address", "add", &format!("{HOST}/24"), "dev", "br0"])?;
        net.ip(&["link", "set", "br0", "up"])?;
        // A lane for each, as on two hosts.
        let lane = "cores = [0]\nmemory_mib = 128\n";
        let lanes = format!("[dataplane]\n{lane}[[lane]]\nname = \"vm2\"\n{lane}");
        let daemon = Daemon::start(&lanes, Some(&net))?;
        for (number, (port, lane)) in LANES.into_iter().enumerate() {
            let tap = format!("tap{number}");
            // The address is one of a network that nobody uses: the bridge has the host's.
            net.tap(&tap, &format!("198.51.100.{}/32", number + 1), 1500)?;
            net.ip(&["link", "set", &tap, "master", "br0"])?;
            let role = if rings == Kind::Packed { "client" } else { "server" };
            let queues = pairs.to_string();
            daemon.add_port(port, &tap_device(&tap), &["--lane", lane, "--role", role, "--queues", &queues])?;
        }
        Ok(Self { daemon, net, rings, pairs, mergeable, folder: paths::scratch()?, started: 0 })
    }

    /// The guest at its first place, or a place for it to come to.
    fn guest(&mut self, port: &str, incoming: bool) -> Result<(Guest, String)> {
        let mut nics = self.daemon.qemu_args(port, &["--memory", "192M"])?;
        set_rings(&mut nics, self.rings)?;
        // It stays the same NIC wherever the guest is.
        let nic = nics.iter_mut().find(|argument| argument.starts_with("virtio-net-pci")).context("no NIC")?;
        let plain: Vec<_> = nic.split(',').filter(|option| !option.starts_with("mac=")).collect();
        let merged = if self.mergeable { "" } else { ",mrg_rxbuf=off" };
        *nic = format!("{},mac=52:54:00:6d:69:67{merged}", plain.join(","));
        // QEMU knows memory and devices by their ids, which `port qemu-args` makes of the port's name.
        nics.iter_mut().for_each(|argument| *argument = argument.replace("vm2", "vm1"));
        let socket = |argument: &mut String| *argument = argument.replace("vm1.sock", &format!("{port}.sock"));
        nics.iter_mut().for_each(socket);
        self.started += 1;
        let socket = self.folder.path().join(format!("incoming{}", self.started));
        let programs = vec![paths::on_path("ethtool").context("ethtool is missing: install it")?];
        let waits = incoming.then(|| socket.clone());
        let spec = GuestSpec { nics, alone: true, programs, incoming: waits, ..GuestSpec::default() };
        let guest = if incoming { Guest::start(&spec) } else { Guest::boot(&spec) };
        let guest = guest.map_err(|error| error.context(self.daemon.story()))?;
        if incoming {
            // It is made after the monitor's, and listens before QEMU answers there.
            wait::until(SOON, "a QEMU that waits for a guest", || Ok(socket.exists().then_some(())))?;
            let status = guest.monitor.execute("query-status", SOON)?;
            ensure!(status["status"] == "inmigrate", "a QEMU that waits for a guest says {status}");
        }
        Ok((guest, format!("unix:{}", socket.display())))
    }

    /// The guest at its first place, with its address and all its queue pairs in use.
    fn first_guest(&mut self) -> Result<Guest> {
        let (mut guest, _) = self.guest("vm1", false)?;
        guest.sh(&format!("ip link set eth0 up && ip address add {GUEST}/24 dev eth0"))?;
        if self.pairs > 1 {
            // With one processor it would use one pair.
            guest.sh(&format!("ethtool -L eth0 combined {}", self.pairs))?;
        }
        self.answers()?;
        Ok(guest)
    }

    /// Waits until nobody is at a port.
    fn wait_free(&self, port: &str) -> Result<()> {
        let phase = if self.rings == Kind::Packed { "connecting" } else { "listening" };
        self.daemon.wait_port(port, phase, SOON)
    }

    /// Kills the lane of a port, and waits until the daemon has started another one.
    fn kill_lane_of(&self, port: &str) -> Result<()> {
        let (_, lane) = LANES.into_iter().find(|(name, _)| *name == port).context("no such port")?;
        let before = self.daemon.lane_pid(lane)?;
        process::kill_hard(before)?;
        wait::until(SOON, "another lane", || Ok(self.daemon.lane_pid(lane).ok().filter(|pid| *pid != before).map(drop)))
    }

    fn migration(&self, port: &str) -> Result<Value> {
        let shown = self.daemon.call("port.get", json!({ "name": port }))?;
        find(&shown, "migration").cloned().context("port.get has no migration")
    }

    /// Waits until the pages that a port writes are logged, or not any more.
    fn wait_logging(&self, port: &str, logging: bool) -> Result<()> {
        let seen = wait::until(SOON, &format!("port {port} logging: {logging}"), || {
            Ok((self.migration(port)?["logging"] == logging).then_some(()))
        });
        seen.map_err(|error| error.context(self.daemon.story()))
    }

    /// Waits until the guest answers, and until it has answered as many large pings as were sent: of one that is changed on its way there nothing comes back, and ping
    /// looks at each byte of an answer.
    fn answers(&self) -> Result<()> {
        let answered = self.net.wait_ping(GUEST, SOON).and_then(|_| {
            wait::until(SOON, "all of ten large pings to be answered", || {
                let words = ["-n", "-c", "10", "-i", "0.02", "-s", "1400", "-W", "10", GUEST];
                let said = wait::run(self.net.command("ping").args(words), SOON)?.text;
                ensure!(!said.contains("wrong data"), "an answer was changed on its way:\n{said}");
                Ok((PingReport::parse(&said)?.received == 10).then_some(()))
            })
        });
        answered.map_err(|error| error.context(self.daemon.story()))
    }
}

/// Begins a migration to `uri`, as fast as `bytes` a second.
fn migrate(guest: &Guest, uri: &str, bytes: u64) -> Result<()> {
    let limits = json!({ "max-bandwidth": bytes, "downtime-limit": 300 });
    guest.monitor.execute_with("migrate-set-parameters", &limits, SOON)?;
    guest.monitor.execute_with("migrate", &json!({ "uri": uri }), SOON)?;
    Ok(())
}

/// Waits until a migration is as far as this; what QEMU says of it then.
fn wait_status(guest: &Guest, wanted: &str) -> Result<Value> {
    let (start, mut patient) = (Instant::now(), true);
    wait::until(Duration::from_secs(180), &format!("a migration {wanted}"), || {
        let said = guest.monitor.execute("query-migrate", SOON)?;
        if wanted == "completed" && patient && start.elapsed() > PATIENCE {
            // On a machine that has much else to do the guest dirties its pages faster than they are sent.
            patient = false;
            guest.monitor.execute_with("migrate-set-parameters", &json!({ "downtime-limit": 5000 }), SOON)?;
        }
        ensure!(said["status"] != "failed" || wanted == "failed", "the migration failed: {said}\n{}", guest.log());
        Ok((said["status"] == wanted).then_some(said))
    })
}

/// Takes the guest's datagrams until it is stopped: how many came, and which numbers are missing.
struct Listener {
    thread: std::thread::JoinHandle<Result<(u64, u64)>>,
    stop: Arc<AtomicBool>,
}

impl Listener {
    fn start(net: &Netns, pairs: u16) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ours, name) = (Arc::clone(&stop), net.name().to_owned());
        let socket = std::thread::scope(|scope| {
            let made = scope.spawn(|| -> Result<UdpSocket> {
                net.join()?;
                Ok(UdpSocket::bind((HOST, PORT))?)
            });
            made.join().map_err(|_| anyhow::anyhow!("no socket in {name}"))?
        })?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let thread = std::thread::spawn(move || {
            let mut numbers = BTreeSet::new();
            let mut bytes = [0; 2048];
            while !ours.load(Ordering::Relaxed) {
                let Ok(length) = socket.recv(&mut bytes) else { continue };
                let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                let number = text.rsplit("number=").next().and_then(|number| number.trim().parse::<u64>().ok());
                let number = number.with_context(|| format!("a datagram is not what the guest sent: {text:?}"))?;
                // Two queues may overtake each other.
                let late = pairs == 1 && numbers.last().is_some_and(|last| *last > number);
                ensure!(!late, "datagram {number} came after {:?}", numbers.last());
                ensure!(numbers.insert(number), "datagram {number} came twice");
            }
            let count = numbers.len() as u64;
            let span = numbers.last().zip(numbers.first()).map_or(0, |(last, first)| last - first + 1);
            Ok((count, span - count))
        });
        Ok(Self { thread, stop })
    }

    fn finish(self) -> Result<(u64, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the listener panicked"))?
    }
}

/// The guest logs numbers to a syslog daemon of its own, which sends each on in a datagram.
fn send_numbers(guest: &mut Guest) -> Result<()> {
    guest.sh(&format!(
        "syslogd -R {HOST}:{PORT} -O /dev/null; \
         (i=0; while :; do logger number=$i; i=$((i+1)); usleep 20000; done) >/dev/null 2>&1 &"
    ))?;
    Ok(())
}

fn a_guest_is_migrated_there_and_back_under_traffic(rings: Kind) -> Result<()> {
    needs!(Root, Guest, Ringspan);
    let mut hosts = Hosts::new(rings, if rings == Kind::Packed { 2 } else { 1 }, true)?;
    let mut guest = hosts.first_guest()?;
    ensure!(hosts.migration("vm1")?["migratable"] == true, "{}", hosts.migration("vm1")?);
    let why = hosts.migration("vm2")?;
    ensure!(why["migratable"] == false && why["reason"].is_string(), "nobody is there, but {why}");
    send_numbers(&mut guest)?;
    let listener = Listener::start(&hosts.net, hosts.pairs)?;

    // Cancelled: nothing is left of it.
    {
        let (_target, uri) = hosts.guest("vm2", true)?;
        migrate(&guest, &uri, 1 << 16)?;
        wait_status(&guest, "active")?;
        hosts
            .wait_logging("vm1", true)
            .with_context(|| format!("{:?}", guest.monitor.execute("query-migrate", SOON)))?;
        guest.monitor.execute("migrate_cancel", SOON)?;
        wait_status(&guest, "cancelled")?;
        hosts.wait_logging("vm1", false)?;
        hosts.answers()?;
    }

    for (number, port) in ["vm2", "vm1"].into_iter().enumerate() {
        let from = if port == "vm2" { "vm1" } else { "vm2" };
        hosts.wait_free(port)?;
        let (target, uri) = hosts.guest(port, true)?;
        let ping = hosts.net.ping(GUEST, INTERVAL)?;
        migrate(&guest, &uri, 64 << 20)?;
        let said = wait_status(&guest, "completed").with_context(|| format!("the target said: {}", target.log()))?;
        let moved = Instant::now();
        // The same guest goes on there, and the network finds it.
        hosts.answers()?;
        println!(
            "{rings:?}, migration {}: QEMU's downtime {} ms, answers {:?} later",
            number + 1,
            said["downtime"],
            moved.elapsed()
        );
        guest = target;
        let report = ping.finish()?;
        println!("lost {:?}, the longest gap is {:?}", report.lost(), report.longest_gap());
        ensure!(report.duplicates == 0 && report.received > 0, "{report:?}");
        hosts.wait_logging(from, false)?;
        hosts.daemon.wait_port(port, "driver-ready", SOON)?;
        let pairs = hosts.pairs;
        wait::until(SOON, &format!("{pairs} queue pairs that run"), || {
            let shown = hosts.daemon.call("port.get", json!({ "name": port }))?;
            Ok((find(&shown, "active_pairs") == Some(&json!(pairs))).then_some(()))
        })?;
    }

    // Killed in the midst of one: the port is there for the next guest, and logs nothing.
    let (_target, uri) = hosts.guest("vm2", true)?;
    migrate(&guest, &uri, 1 << 16)?;
    hosts.wait_logging("vm1", true)?;
    process::kill_hard(guest.pid().context("QEMU has no process id")?)?;
    hosts.wait_logging("vm1", false)?;
    hosts.wait_free("vm1")?;

    let (count, lost) = listener.finish()?;
    println!("{count} datagrams came, {lost} did not");
    ensure!(count > 20, "only {count} datagrams came");
    // They come by a thread of the daemon's own.
    let mut ends = Vec::new();
    let all = wait::until(SOON, "the ends of four migrations", || {
        let events = hosts.daemon.ok(&["events", "--json"])?;
        ends = events.lines().filter(|line| line.contains("migration-ended")).map(str::to_owned).collect();
        Ok((ends.len() >= 4).then_some(()))
    });
    all.with_context(|| format!("{ends:#?}"))?;
    let left: Vec<bool> = ends.iter().map(|line| line.contains("\"left\":true")).collect();
    ensure!(left == [false, true, true, false], "cancelled, moved twice, killed; but the events say {ends:#?}");
    Ok(())
}

/// What is killed while a guest is on its way.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    TargetsLane,
    SourcesLane,
    Daemon,
}

fn a_guest_stays_or_arrives_whatever_is_killed_amid_its_migration(rings: Kind) -> Result<()> {
    needs!(Root, Guest, Ringspan);
    let mut hosts = Hosts::new(rings, if rings == Kind::Packed { 1 } else { 2 }, false)?;
    let mut guest = hosts.first_guest()?;

    // Nobody is there to take it.
    migrate(&guest, &format!("unix:{}", hosts.folder.path().join("nobody").display()), 64 << 20)?;
    wait_status(&guest, "failed")?;
    hosts.wait_logging("vm1", false)?;
    hosts.answers().context("where nobody took the guest")?;

    // Who was to take it is killed.
    {
        let (target, uri) = hosts.guest("vm2", true)?;
        hosts.daemon.wait_port("vm2", "connected", SOON)?;
        migrate(&guest, &uri, 1 << 16)?;
        hosts.wait_logging("vm1", true)?;
        process::kill_hard(target.pid().context("QEMU has no process id")?)?;
        wait_status(&guest, "failed")?;
        hosts.wait_logging("vm1", false)?;
        hosts.wait_free("vm2")?;
        hosts.answers().context("where the target was killed")?;
    }

    for victim in [Victim::TargetsLane, Victim::SourcesLane, Victim::Daemon] {
        let [from, to] = if victim == Victim::SourcesLane { ["vm2", "vm1"] } else { ["vm1", "vm2"] };
        hosts.wait_free(to)?;
        let (target, uri) = hosts.guest(to, true)?;
        hosts.daemon.wait_port(to, "connected", SOON)?;
        migrate(&guest, &uri, 1 << 16)?;
        hosts.wait_logging(from, true)?;
        // QEMU aborts when a back-end dies while it is told to log (`vhost_log_global_start`), of which this is the end.
        wait_status(&guest, "active")?;
        match victim {
            Victim::TargetsLane => {
                hosts.kill_lane_of(to)?;
                hosts.daemon.wait_port(to, "connected", SOON)?;
            }
            Victim::SourcesLane => {
                hosts.kill_lane_of(from)?;
                // QEMU comes back, and has what is written from here on logged, too.
                let there = hosts.daemon.wait_port(from, "driver-ready", SOON);
                there.with_context(|| format!("QEMU runs: {}, and said: {}", guest.runs(), guest.log()))?;
                hosts.wait_logging(from, true)?;
                hosts.answers().context("at the source, whose lane was killed")?;
            }
            Victim::Daemon => hosts.daemon.kill()?,
        }
        guest.monitor.execute_with("migrate-set-parameters", &json!({ "max-bandwidth": 64 << 20 }), SOON)?;
        wait_status(&guest, "completed").with_context(|| format!("{victim:?}: the target said: {}", target.log()))?;
        guest = target;
        if victim == Victim::Daemon {
            hosts.net.wait_ping(GUEST, SOON).context("no daemon runs, and lanes go on")?;
            hosts.daemon.start_again()?;
            // The lane has kept what nobody heard.
            let mut last = None;
            let told = wait::until(SOON, "the end of a migration that no daemon saw", || {
                let events = hosts.daemon.ok(&["events", "--json"])?;
                let of_it = |line: &&str| line.contains("migration-") && line.contains(&format!("\"{from}\""));
                last = events.lines().rfind(of_it).map(str::to_owned);
                let ended = |line: &String| line.contains("migration-ended") && line.contains("\"left\":true");
                Ok(last.as_ref().filter(|line| ended(line)).map(drop))
            });
            told.with_context(|| format!("the last event of it is {last:?}"))?;
        }
        hosts.answers().with_context(|| format!("{victim:?}: at the target"))?;
        hosts.wait_logging(from, false)?;
        hosts.wait_logging(to, false)?;
        hosts.daemon.wait_port(to, "driver-ready", SOON)?;
        hosts.wait_free(from)?;
    }
    Ok(())
}
