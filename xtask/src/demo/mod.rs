//! `cargo xtask demo`: a real guest behind a port of ringspan, with everything that can be killed being killed; then two guests on
//! the software NIC, whose flows Open vSwitch decides.

mod offload;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_testkit::daemon::{Daemon, tap_device};
use ringspan_testkit::netns::{Netns, PingReport};
use ringspan_testkit::ovs::Ovs;
use ringspan_testkit::qemu::{Guest, GuestSpec};
use ringspan_testkit::scene::{self, GUEST, HOST, serve_iperf};
use ringspan_testkit::{paths, process, wait};

use crate::hugepages::HugePages;
use crate::{packages, step};

#[derive(clap::Args)]
pub struct Options {
    /// Leave everything running at the end, and say how to look around
    #[arg(long)]
    keep: bool,
    /// Go on after packages and build, as root
    #[arg(long, hide = true)]
    prepared: bool,
}

/// Everything that the demo makes, in the order in which it must be taken down.
struct Stage {
    guest: Guest,
    /// The guests on the software NIC, once they are there.
    pair: Option<[Guest; 2]>,
    daemon: Daemon,
    ovs: Ovs,
    net: Netns,
    _pages: HugePages,
}

/// Installs, builds, shows, and cleans up.
pub fn run(options: &Options) -> Result<()> {
    if !options.prepared {
        packages::ensure(packages::BUILD_AND_RUN)?;
        let programs = step::build_release()?;
        if !nix::unistd::geteuid().is_root() {
            step::say("namespaces, TAPs and hugepages need root: going on with sudo");
            let mut sudo = std::process::Command::new("sudo");
            sudo.arg("--preserve-env=HOME,PATH,RINGSPAN_CACHE").arg("env");
            sudo.arg(format!("RINGSPAN_BIN_DIR={}", programs.display()));
            sudo.arg(std::env::current_exe()?).args(["demo", "--prepared"]).args(options.keep.then_some("--keep"));
            return step::run(&mut sudo);
        }
    }
    wait::stop_on_signals()?;
    let start = Instant::now();
    let mut results = Vec::new();
    let mut stage = set_up(options.keep, &mut results)?;
    let shown = show(&mut stage, options.keep, &mut results);
    if let Err(error) = shown {
        step::say("cleaning up: guests, daemon, lane, switch, namespace");
        let stopped = error.chain().any(|cause| cause.is::<wait::Stopped>());
        return Err(if stopped { wait::Stopped.into() } else { error.context(stage.daemon.story()) });
    }

    step::say("results");
    for (what, result) in &results {
        println!("    {what:<52} {result}");
    }
    println!("\n    ringspan port stats vm1");
    stage.daemon.ok(&["port", "stats", "vm1"])?.lines().for_each(|line| println!("    {line}"));
    println!("\n    all of it took {} s", start.elapsed().as_secs());
    if options.keep {
        keep(stage)
    } else {
        step::say("cleaning up: guests, daemon, lane, switch, namespace");
        Ok(())
    }
}

type Results = Vec<(&'static str, String)>;

fn set_up(keep: bool, results: &mut Results) -> Result<Stage> {
    step::say("a network namespace with a TAP: what the guest's packets come out of");
    let pages = HugePages::try_reserve(256);
    let net = Netns::new("demo")?;
    net.tap("tap0", &format!("{HOST}/24"), 1500)?;
    println!("    namespace {}, {HOST} on tap0", net.name());

    step::say("an Open vSwitch of the demo's own there");
    net.sysctl("net.ipv6.conf.default.disable_ipv6=1")?;
    let ovs = if keep { Ovs::start_to_keep_in(&net) } else { Ovs::start_in(Some(&net)) }?;
    println!("    run directory {}", ovs.run_dir().display());

    step::say("ringspan serve, and one lane");
    let begin = Instant::now();
    let config = format!(
        "[dataplane]\ncores = [0]\nmemory_mib = 256\nhuge_pages = \"auto\"\n[ovs]\nrun_dir = \"{}\"\n",
        ovs.run_dir().display()
    );
    let daemon = Daemon::start(&config, Some(&net))?;
    let ready = begin.elapsed();
    let begin = Instant::now();
    daemon.add_port("vm1", &tap_device("tap0"), &[])?;
    let added = begin.elapsed();
    println!("    control socket {}", daemon.socket().display());
    println!("    port vm1: {} <-> tap0", daemon.path("vm1.sock").display());
    results.push(("daemon ready to serve", format!("{} ms", ready.as_millis())));
    results.push(("lane started, first port added", format!("{} ms", added.as_millis())));

    step::say("a guest: Debian's kernel in QEMU, its NIC made by `ringspan port qemu-args vm1`");
    let nics = daemon.qemu_args("vm1", &["--memory", "384M"])?;
    println!("    {}", nics.join(" "));
    let begin = Instant::now();
    let mut guest = Guest::boot(&GuestSpec { nics, limit: limit(keep), ..GuestSpec::default() })?;
    guest.sh(&format!("ip link set eth0 up && ip address add {GUEST}/24 dev eth0"))?;
    println!("    booted in {:.1} s", begin.elapsed().as_secs_f64());
    Ok(Stage { guest, pair: None, daemon, ovs, net, _pages: pages })
}

fn show(stage: &mut Stage, keep: bool, results: &mut Results) -> Result<()> {
    let Stage { guest, pair, daemon, net, .. } = stage;
    step::say("ping");
    net.wait_ping(GUEST, Duration::from_secs(20))?;
    let ping = net.run(Duration::from_secs(30), "ping", &["-n", "-q", "-c", "50", "-i", "0.02", GUEST])?;
    let round = ping.lines().find_map(|line| line.strip_prefix("rtt min/avg/max/mdev = ")).unwrap_or("?").to_string();
    println!("    {round}");
    results.push(("ping, min/avg/max/mdev", round));

    step::say("iperf3 both ways; meanwhile a second port comes and goes over the control socket");
    serve_iperf(guest)?;
    let to_guest = iperf(net, &[])?;
    results.push(("iperf3, host to guest", to_guest));
    let second = std::thread::scope(|scope| -> Result<String> {
        let client = scope.spawn(|| iperf(net, &["-R"]));
        std::thread::sleep(Duration::from_secs(1));
        let begin = Instant::now();
        let socket = daemon.path("vm2.sock").display().to_string();
        daemon.ok(&["port", "add", "vm2", "--socket-path", &socket, "--device", "vdev:net_null0,size=64,no-rx=1"])?;
        let added = begin.elapsed();
        println!("    {}", daemon.ok(&["port", "list"])?.trim_end().replace('\n', "\n    "));
        daemon.ok(&["port", "remove", "vm2"])?;
        let rate = client.join().map_err(|_| anyhow::anyhow!("the iperf3 thread ended badly"))??;
        results.push(("iperf3, guest to host, a port added and removed", rate));
        Ok(format!("{} ms", added.as_millis()))
    })?;
    results.push(("second port added under traffic", second));

    step::say("SIGKILL of the daemon under ping: packets must not notice");
    let lane = daemon.lane_pid("main")?;
    let ping = net.ping(GUEST, Duration::from_millis(20))?;
    wait::pause(Duration::from_secs(1))?;
    daemon.kill()?;
    wait::pause(Duration::from_secs(1))?;
    daemon.start_again()?;
    wait::pause(Duration::from_secs(1))?;
    let report = ping.finish()?;
    ensure!(daemon.lane_pid("main")? == lane, "the new daemon did not adopt the lane");
    println!("    {}", sentence(&report));
    results.push(("daemon killed and back under ping", sentence(&report)));
    report.nothing_lost().context("while the daemon was away")?;

    step::say("SIGKILL of the lane under ping: the daemon starts another, the guest goes on");
    let ping = net.ping(GUEST, Duration::from_millis(20))?;
    wait::pause(Duration::from_secs(1))?;
    process::kill_hard(lane)?;
    net.wait_ping(GUEST, Duration::from_secs(20))?;
    wait::pause(Duration::from_secs(1))?;
    let report = ping.finish()?;
    println!("    {}", sentence(&report));
    results.push(("lane killed under ping", sentence(&report)));
    results.push(("  longest time without an answer", format!("{} ms", report.longest_gap().as_millis())));
    ensure!(report.duplicates == 0, "answers came twice: {report:?}");
    offload::show(daemon, pair.insert(offload::set_up(daemon, limit(keep))?), results)
}

/// Longest life of a guest.
fn limit(keep: bool) -> Duration {
    Duration::from_secs(if keep { 24 * 3600 } else { 300 })
}

fn sentence(report: &PingReport) -> String {
    format!("{} of {} answered, {} twice", report.received, report.sent, report.duplicates)
}

/// Runs iperf3 for 4 s, shows the rate and returns it.
fn iperf(net: &Netns, more: &[&str]) -> Result<String> {
    let rate = scene::iperf(net, &[&["-t", "4"], more].concat())?;
    let text = format!("{:.0} Mbit/s", rate / 1e6);
    println!("    {} {text}", if more.is_empty() { "host to guest:" } else { "guest to host:" });
    Ok(text)
}

/// Leaves everything as it is and says what there is to see.
fn keep(stage: Stage) -> Result<()> {
    let Stage { guest, pair, daemon, ovs, net, _pages: pages } = stage;
    let ringspan = paths::program("ringspan")?;
    let (ringspan, name) = (ringspan.display(), net.name());
    let guests: Vec<&Guest> = std::iter::once(&guest).chain(pair.iter().flatten()).collect();
    let pids =
        guests.iter().map(|guest| guest.pid()).collect::<Option<Vec<u32>>>().context("QEMU has no process id")?;
    let qemu = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let folders: Vec<String> = guests.iter().map(|guest| guest.folder().display().to_string()).collect();
    step::say("kept running; look around as root:");
    println!("    export RINGSPAN_CONTROL={}", daemon.socket().display());
    println!("    {ringspan} port list");
    println!("    {ringspan} port show vm1");
    println!("    {ringspan} port stats vm1 --watch");
    println!("    {ringspan} events --follow");
    println!("    {ringspan} flow list --why");
    println!("    ovs-ofctl dump-flows unix:{}/br0.mgmt", ovs.run_dir().display());
    println!("    ip netns exec {name} ping {GUEST}");
    println!("    ip netns exec {name} iperf3 -c {GUEST}");
    println!("  and to end it:");
    println!("    {ringspan} stop --lanes; kill {qemu} {} {}; ip netns delete {name}", ovs.pid(), ovs.database_pid());
    println!("    rm -r {} {} {}", daemon.path("").display(), ovs.run_dir().display(), folders.join(" "));
    pages.keep();
    std::mem::forget((guest, pair, daemon, ovs, net));
    Ok(())
}
