//! What a hundred thousand flows of Open vSwitch's cost: how long until all are in the software NIC, what a dump without a change takes of the
//! daemon's processor time, and memory.
//!
//! `cargo run --release -p ringspan-benches --bin many-flows`
//!
//! The flows are in a real Open vSwitch's userspace datapath, put there by dpctl with its revalidators paused, and the NIC is a real lane's. A thread's
//! processor time says what something costs on a machine that has other work, too; how long it takes is told as well.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use ringspan_benches::cpu::{of, since, threads};
use ringspan_benches::scene::{DATAPATH, Scene};
use ringspan_testkit::{netns, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(300);

#[derive(Parser)]
#[command(about = "Time, processor time and memory that many flows of Open vSwitch's take")]
struct Arguments {
    /// Flows.
    #[arg(long, default_value_t = 100_000)]
    flows: u32,
    /// Dumps without a change that are looked at: the mirror makes one a minute with 100,000 flows.
    #[arg(long, default_value_t = 3)]
    dumps: u64,
    /// The core of the NIC's worker.
    #[arg(long, default_value_t = 1)]
    core: usize,
}

fn main() -> Result<()> {
    wait::stop_on_signals()?;
    let arguments = Arguments::parse();
    netns::alone()?;
    let mut scene = Scene::new("many-flows", arguments.core)?;
    put(&scene, arguments.flows)?;
    let lane = scene.daemon.lane_pid("main")?;
    let lane_before = memory(lane)?;
    scene.follow()?;
    let daemon = scene.daemon.pid()?;
    let before = memory(daemon)?;
    let stats = |scene: &Scene| scene.daemon.call("flow.stats", json!({}));
    let dumps = |scene: &Scene| -> Result<u64> { stats(scene)?["dumps"].as_u64().context("dumps") };
    // Counted when its last line was read, and before anything was made of it.
    wait::until(SOON, "the first dump", || Ok((dumps(&scene)? > 0).then_some(())))?;
    let (dumped, cpu) = (Instant::now(), [threads(daemon)?, threads(lane)?]);
    wait::until(SOON, "all rules in the NIC", || {
        let nic: Value = scene.daemon.call("nic.show", json!({ "name": "nic0" }))?;
        let rules = ringspan_testkit::daemon::find(&nic, "rules").and_then(Value::as_u64).context("rules")?;
        Ok((rules >= u64::from(arguments.flows)).then_some(()))
    })?;
    let took = dumped.elapsed();
    let offloaded = stats(&scene)?["by_state"]["offloaded"].as_u64().unwrap_or(0);
    ensure!(offloaded == u64::from(arguments.flows), "{offloaded} flows are offloaded: {}", stats(&scene)?);
    println!("{offloaded} flows: all in the NIC {took:.2?} after the end of the first dump");
    for (name, used) in
        since(&cpu[0], daemon)?.into_iter().chain(since(&cpu[1], lane)?).filter(|(_, used)| *used > 0.01)
    {
        println!("  {name}: {used:.2} s of processor time");
    }
    let each = |now: u64, before: u64| now.saturating_sub(before) * 1024 / u64::from(arguments.flows);
    let (in_daemon, in_lane) = (each(memory(daemon)?, before), each(memory(lane)?, lane_before));
    println!(
        "memory: {} bytes a flow in the daemon, {} in the lane, {} together",
        in_daemon,
        in_lane,
        in_daemon + in_lane
    );
    let (since_then, vswitchd) = (Instant::now(), scene.ovs.pid());
    let asked = of(vswitchd, "ovs-vswitchd")?;
    for dump in 1..=arguments.dumps {
        let begun = dumps(&scene)?;
        let cpu = threads(daemon)?;
        wait::until(SOON, "another dump", || {
            std::thread::sleep(Duration::from_millis(500));
            Ok((dumps(&scene)? > begun).then_some(()))
        })?;
        let used = since(&cpu, daemon)?;
        let of = |name: &str| used.get(name).copied().unwrap_or(0.0) * 1e3;
        println!(
            "dump {dump} without a change: {:.0} ms of the daemon's processor time to read and compare it, {:.0} ms for what comes of it; ovs-vswitchd took {:.2} s",
            of("ovs-dumps"),
            of("ovs-mirror"),
            stats(&scene)?["dump_us"].as_f64().unwrap_or(0.0) / 1e6
        );
    }
    let share = (of(vswitchd, "ovs-vswitchd")? - asked) / since_then.elapsed().as_secs_f64();
    println!("ovs-vswitchd's main thread: {:.1}% of its time for these dumps and all else", 100.0 * share);
    Ok(())
}

/// Puts the flows into the datapath: addresses and ports of their own, under two masks.
fn put(scene: &Scene, flows: u32) -> Result<()> {
    let (from, to) = (scene.port("nic0_vf0")?, scene.port("nic0_vf1")?);
    scene.ovs.appctl(&["revalidator/pause"])?;
    let line = |flow: u32| {
        let [_, a, b, c] = flow.to_be_bytes();
        let more = if flow.is_multiple_of(2) { ",proto=17,frag=no),udp(src=1000,dst=53)" } else { ",frag=no)" };
        format!(
            "recirc_id(0),in_port({from}),packet_type(ns=0,id=0),eth(src=02:00:00:00:00:01,dst=02:00:00:{a:02x}:{b:02x}:{c:02x}),eth_type(0x0800),\
             ipv4(src=10.{a}.{b}.{c},dst=172.16.0.1{more} {to}\n"
        )
    };
    let file = scene.ovs.path("flows");
    std::fs::write(&file, (0..flows).map(line).collect::<String>())?;
    scene.ovs.appctl(&["dpctl/add-flows", DATAPATH, file.to_str().context("a path")?])?;
    let shown = scene.ovs.appctl(&["dpctl/show", DATAPATH])?;
    let count = shown.lines().find_map(|line| line.trim().strip_prefix("flows: ")?.parse::<u32>().ok());
    ensure!(count >= Some(flows), "the flows are not there: {shown}");
    Ok(())
}

/// Kilobytes of a process that are in memory (proc(5)).
fn memory(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
