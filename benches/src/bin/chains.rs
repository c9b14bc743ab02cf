//! What a frame costs that a guest hands over in several buffers, as Linux does with fragments: instructions a packet of the lane's worker, by callgrind.
//!
//! One lane, a device that swallows, and for each shape a guest of the test kit that keeps its ring full.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use ringspan_testkit::guest::{Guest, Kind, Options, Shape, feature};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::{paths, wait};

/// Counts instructions a packet by the number of buffers that a frame is in.
#[derive(Parser)]
struct Arguments {
    /// Frame length in bytes.
    #[arg(long, default_value_t = 1514)]
    length: usize,
    /// Numbers of buffers; 1: header and frame in one.
    #[arg(long, value_delimiter = ',', default_value = "1,2,3,4,8,17")]
    buffers: Vec<u16>,
    /// Packets that are counted for each.
    #[arg(long, default_value_t = 20_000)]
    packets: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let folder = paths::scratch()?;
    let runner = ["valgrind", "-q", "--tool=callgrind", "--separate-threads=yes", "--fair-sched=yes"];
    let mut runner: Vec<String> = runner.map(String::from).into();
    runner.push(format!("--callgrind-out-file={}", folder.path().join("out").display()));
    runner.push(format!("--log-file={}", folder.path().join("log").display()));
    let mut lane = Lane::start(lane::Options { runner, ..lane::Options::new("chains") }, folder.path())?;
    println!("instructions a packet of {} bytes", arguments.length);
    println!("{:>7}  {:>14} {:>14} {:>14} {:>14}", "buffers", "split", "split, table", "packed", "packed, table");
    let mut dumps = 0;
    for &buffers in &arguments.buffers {
        let mut line = format!("{buffers:>7}");
        for kind in [Kind::Split, Kind::Packed] {
            for indirect in [false, true] {
                dumps += 1;
                let count = count(&mut lane, folder.path(), &arguments, (kind, indirect, buffers), dumps);
                line += &format!(" {:>14.0}", count.with_context(|| format!("{kind:?}, {buffers} buffers"))?);
            }
        }
        println!("{line}");
    }
    Ok(())
}

fn count(
    lane: &mut Lane,
    folder: &Path,
    arguments: &Arguments,
    (kind, indirect, buffers): (Kind, bool, u16),
    dump: u32,
) -> Result<f64> {
    let socket = lane.add_port("vm", "vdev:net_null0,no-rx=1", 1)?;
    let unwanted = if indirect { 0 } else { feature::INDIRECT_DESC };
    let tx_shape = match (buffers, indirect) {
        (1, false) => Shape::Whole,
        (2, _) => Shape::HeaderApart,
        _ => Shape::Cut(buffers),
    };
    let timeout = Duration::from_secs(60);
    let options = Options { tx_shape, tx_room: arguments.length, ring_size: 1024, timeout, ..Options::new(socket) };
    let mut guest = Guest::start(options.over(kind).without(unwanted))?;
    let payload = vec![0x5a; arguments.length];
    let mut send = |packets: usize| -> Result<()> {
        let (mut sent, start) = (0, Instant::now());
        while sent < packets {
            sent += guest.tx[0].transmit(64, |_, room| {
                room.put(0, &payload);
                payload.len()
            });
            ensure!(start.elapsed() < Duration::from_secs(120), "{sent} of {packets} packets were taken");
        }
        Ok(())
    };
    send(2000)?;
    let before = control(lane, "--zero")?;
    send(arguments.packets)?;
    let after = control(lane, "--dump")?;
    drop(guest);
    lane.remove("vm")?;
    Ok(worker(folder, dump)? as f64 / (after - before) as f64)
}

/// Tells callgrind, and returns how many packets the port has taken when that is done: the guest is silent meanwhile.
fn control(lane: &mut Lane, word: &str) -> Result<u64> {
    let (taken, _) = lane.wait_totals("vm", |from, _| from.received == from.sent)?;
    let mut control = Command::new("callgrind_control");
    control.arg(word).arg(lane.pid().to_string());
    wait::run(&mut control, Duration::from_secs(60))?.success("callgrind_control")?;
    Ok(taken.received)
}

/// Instructions of the thread that executed most, in this dump.
fn worker(folder: &Path, dump: u32) -> Result<u64> {
    let mut most = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("out.{dump}-"))) {
            let text = std::fs::read_to_string(&path)?;
            let total = text.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
            let total = total.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            most = most.max(total.unwrap_or(0));
        }
    }
    ensure!(most > 0, "callgrind wrote no counts");
    Ok(most)
}
