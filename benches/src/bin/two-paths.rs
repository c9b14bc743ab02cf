//! What offloading is for: frames a second from one guest to another, through Open vSwitch and through the software NIC.
//!
//! `cargo run --release -p ringspan-benches --bin two-paths`
//!
//! Two guests on VFs of a software NIC, and a real Open vSwitch with its userspace datapath on the VFs' representors, with the same flows both times. First the
//! daemon knows nothing of Open vSwitch, so that all frames go through the representors; then it does. The NIC's worker has one core, the guests' driver the
//! other, and Open vSwitch and the NIC's thread for representors run where there is room. On a machine that has other work, too, all of that says little: beside the
//! rates stands what each thread used of the processor for a frame, of which the one that used most limits the rate where each has a core.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use ringspan_benches::cpu::{since, threads};
use ringspan_benches::driver::stamp::Frames;
use ringspan_benches::driver::{Guest, Options, SplitRing};
use ringspan_benches::load::{Load, Queues, pin};
use ringspan_benches::scene::{ACROSS, Scene};
use ringspan_testkit::{netns, wait};
use serde_json::json;

/// Longest wait for flows to be in the NIC.
const SOON: Duration = Duration::from_secs(30);

#[derive(Parser)]
#[command(about = "Frames a second between two guests through Open vSwitch, and offloaded to the software NIC")]
struct Arguments {
    /// The core of the NIC's worker.
    #[arg(long, default_value_t = 1)]
    core: usize,
    /// The core of the guests' driver.
    #[arg(long, default_value_t = 0)]
    driver: usize,
    /// Times that each path is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Bytes of each frame.
    #[arg(long, default_value_t = 64)]
    size: u16,
}

fn main() -> Result<()> {
    wait::stop_on_signals()?;
    let arguments = Arguments::parse();
    netns::alone()?;
    let mut scene = Scene::new("two-paths", arguments.core)?;
    scene.flows(&ACROSS)?;
    let mut guests = Vec::new();
    for vf in 0..2 {
        let name = format!("vm{vf}");
        scene.daemon.add_port(&name, &format!("soft:nic0/vf{vf}"), &[])?;
        guests.push(Guest::<SplitRing>::start(&Options {
            socket: scene.daemon.path(&format!("{name}.sock")),
            pairs: 1,
            ring_size: 1024,
            features: 0,
            in_order: false,
            mergeable: false,
            indirect: false,
            frames: Frames::Fixed(arguments.size),
            receive: 1518,
            huge_pages: false,
        })?);
    }
    pin(&[arguments.driver])?;
    let slow = measure(&arguments, &scene, &mut guests)?;
    scene.follow()?;
    // The flow is there when the first frames have made it.
    let seen = wait::until(SOON, "the flow in the NIC", || {
        measure_once(&mut guests, 0.02)?;
        let flows = scene.daemon.call("flow.list", json!({ "state": "offloaded" }))?;
        Ok(flows["flows"].as_array().is_some_and(|flows| !flows.is_empty()).then_some(()))
    });
    seen.with_context(|| scene.daemon.story())?;
    let before = through_ovs(&scene)?;
    let fast = measure(&arguments, &scene, &mut guests)?;
    let after = through_ovs(&scene)?;
    let [slow, fast] = [slow, fast].map(median);
    println!(
        "{} bytes, guest to guest; medians of {}: through Open vSwitch {:.3} Mpps, offloaded {:.3} Mpps: {:.0} times; of the offloaded frames {} were seen by Open vSwitch",
        arguments.size,
        arguments.rounds,
        slow / 1e6,
        fast / 1e6,
        fast / slow,
        after - before
    );
    ensure!(slow > 0.0, "nothing came through Open vSwitch");
    Ok(())
}

fn measure(arguments: &Arguments, scene: &Scene, guests: &mut [Guest<SplitRing>]) -> Result<Vec<f64>> {
    let processes = [scene.daemon.lane_pid("main")?, scene.ovs.pid()];
    let received = |guests: &[Guest<SplitRing>]| guests[1].pairs[0].rx.frames;
    let (before, frames) = (processes.map(threads), received(guests));
    let one = |round| {
        let rate = measure_once(guests, arguments.seconds)?;
        println!("round {round}: {:.3} Mpps", rate / 1e6);
        Ok(rate)
    };
    let rates = (0..arguments.rounds).map(one).collect::<Result<_>>()?;
    let frames = received(guests) - frames;
    for (process, before) in processes.into_iter().zip(before) {
        for (name, used) in since(&before?, process)?.into_iter().filter(|(_, used)| *used > 0.01) {
            println!("  {name}: {:.0} ns of processor time a frame", used * 1e9 / frames.max(1) as f64);
        }
    }
    Ok(rates)
}

/// Frames a second that come to the second guest, of those that the first one sends as fast as it can.
fn measure_once(guests: &mut [Guest<SplitRing>], seconds: f64) -> Result<f64> {
    let [first, second] = guests else { unreachable!("two guests") };
    let mut queues = Queues::new(vec![&mut first.pairs[0].tx], vec![&mut second.pairs[0].rx], false);
    Ok(queues.run(Load { burst: 32, warm_up: seconds / 4.0, measured: seconds })?.received_pps)
}

/// Frames that Open vSwitch counted.
fn through_ovs(scene: &Scene) -> Result<u64> {
    let flows = scene.daemon.call("flow.list", json!({}))?;
    let flows = flows["flows"].as_array().context("flows")?;
    Ok(flows.iter().filter_map(|flow| flow["ovs"]["packets"].as_u64()).sum())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(f64::NAN)
}
