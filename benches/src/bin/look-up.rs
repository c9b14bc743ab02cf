//! The software NIC against OVS-DPDK's userspace datapath: 64 bytes, one core, 10,000 flows under 8 masks, in the same run.
//!
//! `cargo run --release -p ringspan-benches --bin look-up -- --rounds 5 --seconds 2`
//!
//! Both read the same frames from a DPDK device that repeats a file (net_pcap with infinite_rx), and send each back to it, where it is dropped.
//! Both are there all the time; the one that is not measured is stopped (SIGSTOP). OVS has its flows by dpctl, with its revalidators paused, so that
//! they are exactly those of the rules; it is measured with its exact-match cache as it comes, without, and with the signature-match cache, which is
//! advised for many flows. A rate is frames for each second of processor time of the thread that moves them, so that what else the machine does matters less.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringspan_benches::ovs::{Ovs, Plan, Port};
use ringspan_benches::{cpu, flows};
use ringspan_protocol::message::MAX_RULES;
use ringspan_protocol::nic::BondMode;
use ringspan_protocol::{NicMode, NicSpec, Reply, Request};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::netns;

/// OVS's number of the port: the bridge's own is 0 or 1, so it is asked.
const PORT: &str = "in";

#[derive(Parser)]
#[command(about = "The software NIC's look-up beside that of OVS-DPDK's userspace datapath")]
struct Arguments {
    /// The core of both.
    #[arg(long, default_value_t = 1)]
    core: usize,
    /// Times that each is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Flows that frames are of, of the 10,000 that have a rule.
    #[arg(long, default_value_t = flows::RULES)]
    flows: u32,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    netns::alone()?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("frames.pcap");
    std::fs::write(&file, flows::pcap(arguments.flows))?;
    let device = |number: u32| format!("net_pcap{number},rx_pcap={},infinite_rx=1", file.display());
    let mut nic = Nic::start(&arguments, &device(0), folder.path())?;
    nic.signal(Signal::SIGSTOP)?;
    let switch_folder = folder.path().join("ovs");
    std::fs::create_dir(&switch_folder)?;
    let ovs = Switch::start(&arguments, &device(0), &switch_folder)?;
    ovs.signal(Signal::SIGSTOP)?;
    let time = Duration::from_secs_f64(arguments.seconds);
    let (mut ours, mut cached, mut plain, mut signed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..arguments.rounds {
        nic.signal(Signal::SIGCONT)?;
        ours.push(nic.rate(time)?);
        nic.signal(Signal::SIGSTOP)?;
        ovs.signal(Signal::SIGCONT)?;
        for (exact, signature, rates) in
            [(true, false, &mut cached), (false, false, &mut plain), (false, true, &mut signed)]
        {
            ovs.cache(exact, signature)?;
            rates.push(ovs.rate(time)?);
        }
        ovs.signal(Signal::SIGSTOP)?;
        println!(
            "round {round}: software NIC {:.2} Mpps; OVS-DPDK with its exact-match cache {:.2}, with none {:.2}, with its signature-match cache {:.2}",
            ours[round] / 1e6,
            cached[round] / 1e6,
            plain[round] / 1e6,
            signed[round] / 1e6
        );
    }
    nic.signal(Signal::SIGCONT)?;
    ovs.signal(Signal::SIGCONT)?;
    println!("{}", ovs.said()?);
    let [ours, cached, plain, signed] = [ours, cached, plain, signed].map(median);
    println!(
        "frames of {} flows of 10,000 under 8 masks, 64 bytes, one core; medians: software NIC {:.2} Mpps; OVS-DPDK with its exact-match cache {:.2} (ratio {:.2}), with none {:.2} \
         ({:.2}), with its signature-match cache {:.2} ({:.2})",
        arguments.flows,
        ours / 1e6,
        cached / 1e6,
        ours / cached,
        plain / 1e6,
        ours / plain,
        signed / 1e6,
        ours / signed
    );
    Ok(())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(f64::NAN)
}

struct Nic(Lane);

impl Nic {
    fn start(arguments: &Arguments, device: &str, folder: &Path) -> Result<Self> {
        let options =
            lane::Options { cores: arguments.core.to_string(), memory_mib: 256, ..lane::Options::new("look-up") };
        let mut lane = Lane::start(options, folder)?;
        let (name, mode, bond) = ("bench0".parse()?, NicMode::Switchdev, BondMode::ActiveBackup);
        let uplinks = vec![format!("vdev:{device}").parse()?];
        let spec = NicSpec { name, vfs: 0, uplinks, bond, mode, vf: vec![], mtu: 1500, pci: None };
        let added = lane.client()?.ask(Request::NicAdd(Box::new(spec)));
        if let Err(error) = added {
            return Err(error.context(lane.log()));
        }
        let mut nic = Self(lane);
        let all: Vec<_> = (0..flows::RULES).map(flows::rule).collect();
        for rules in all.chunks(MAX_RULES) {
            let request = Request::RuleInstall { nic: "bench0".parse()?, rules: rules.to_vec() };
            let Reply::RuleResults(results) = nic.0.client()?.ask(request)? else { bail!("no results") };
            if let Some(error) = results.into_iter().find_map(|result| result.error) {
                bail!("{error}");
            }
        }
        Ok(nic)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.0.pid().try_into()?), signal)?)
    }

    /// Frames that a rule took, and that none did; seconds of the worker's.
    fn hits(&mut self) -> Result<(u64, u64, f64)> {
        let Reply::Nics(nics) = self.0.client()?.ask(Request::NicList)? else { bail!("no NICs") };
        let counters = &nics.first().and_then(|nic| nic.ports.first()).context("the uplink")?.counters;
        Ok((counters.hits, counters.misses, cpu::of(self.0.pid(), "worker-")?))
    }

    fn rate(&mut self, time: Duration) -> Result<f64> {
        std::thread::sleep(time / 4);
        let (before, missed, begun) = self.hits()?;
        std::thread::sleep(time);
        let (after, misses, ended) = self.hits()?;
        ensure!(misses - missed <= (after - before) / 100, "{} frames found no rule", misses - missed);
        Ok((after - before) as f64 / (ended - begun))
    }
}

struct Switch {
    ovs: Ovs,
    flows: PathBuf,
}

impl Switch {
    fn start(arguments: &Arguments, device: &str, folder: &Path) -> Result<Self> {
        let plan = Plan {
            core: arguments.core,
            memory_mib: 1024,
            huge_pages: false,
            ports: [(PORT, Port::Dpdk(device.into())), ("other", Port::Dpdk("net_null9,size=64,no-rx=1".into()))],
            queues: 1,
            mtu: 1500,
            own_pools: false,
            offload: false,
            runner: &[],
        };
        let ovs = Ovs::start(folder, &plan)?;
        let switch = Self { ovs, flows: folder.join("flows") };
        // What the bridge's own flows have brought by now goes, and nothing else comes or goes.
        switch.ovs.appctl(&["revalidator/pause"])?;
        switch.ovs.appctl(&["upcall/set-flow-limit", "0"])?;
        let shown = switch.ovs.appctl(&["dpctl/show", "netdev@ovs-netdev"])?;
        let port = shown.lines().find_map(|line| line.trim().strip_prefix("port ")?.split_once(&format!(": {PORT} ")));
        let port: u32 = port.with_context(|| format!("the port's number in {shown}"))?.0.parse()?;
        switch.ovs.appctl(&["dpctl/del-flows", "netdev@ovs-netdev"])?;
        let lines: Vec<String> = (0..flows::RULES).map(|flow| flows::odp(flow, port)).collect();
        std::fs::write(&switch.flows, lines.join("\n") + "\n")?;
        let path = switch.flows.display().to_string();
        switch.ovs.appctl(&["dpctl/add-flows", "netdev@ovs-netdev", &path])?;
        let shown = switch.ovs.appctl(&["dpctl/show", "netdev@ovs-netdev"])?;
        // Each of its threads that may have the port has them.
        let count = shown.lines().find_map(|line| line.trim().strip_prefix("flows: ")?.parse::<u32>().ok());
        let count = count.with_context(|| format!("the number of flows in {shown}"))?;
        ensure!(count >= flows::RULES && count.is_multiple_of(flows::RULES), "{count} flows are there: {shown}");
        Ok(switch)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.ovs.pid().try_into()?), signal)?)
    }

    /// With the exact-match cache as it comes (one of 100 packets is put in), or without; with the signature-match cache or without.
    fn cache(&self, exact: bool, signature: bool) -> Result<()> {
        self.ovs.set(&format!("other_config:emc-insert-inv-prob={}", if exact { 100 } else { 0 }))?;
        self.ovs.set(&format!("other_config:smc-enable={signature}"))?;
        self.ovs.appctl(&["dpif-netdev/pmd-stats-clear"]).map(drop)
    }

    /// What it says of its polling thread since the caches were last set: where packets found their flow, and cycles.
    fn said(&self) -> Result<String> {
        let text = self.ovs.appctl(&["dpif-netdev/pmd-stats-show"])?;
        Ok(text.lines().take_while(|line| !line.starts_with("main thread")).collect::<Vec<_>>().join("\n"))
    }

    /// Packets, those that found no flow, and seconds of the polling thread's.
    fn received(&self) -> Result<(u64, u64, f64)> {
        let text = self.ovs.appctl(&["dpif-netdev/pmd-stats-show"])?;
        let now = cpu::of(self.ovs.pid(), "pmd-")?;
        let number = |what: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(what))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let received = number("packets received:").with_context(|| format!("packets in {text}"))?;
        let missed = ["miss with success upcall:", "miss with failed upcall:"].map(|what| number(what).unwrap_or(0));
        Ok((received, missed.iter().sum(), now))
    }

    fn rate(&self, time: Duration) -> Result<f64> {
        std::thread::sleep(time / 4);
        let (before, missed, begun) = self.received()?;
        std::thread::sleep(time);
        let (after, misses, ended) = self.received()?;
        ensure!(misses - missed <= (after - before) / 100, "{} frames found no flow", misses - missed);
        Ok((after - before) as f64 / (ended - begun))
    }
}
