//! Instructions a packet, counted by callgrind: the same way for every back-end.
//!
//! The back-end runs under valgrind while the generator, which does not, keeps the rings full, so that no look at a ring is in vain.
//! Counting starts and ends while packets flow; what is counted is the thread that did most, its worker.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use ringspan_testkit::{paths, wait};
use serde::Serialize;

use crate::cell::{Cell, Direction};
use crate::driver::{Guest, PackedRing, Ring, SplitRing};
use crate::load::Load;
use crate::peer::{Backend, Peer, Place};
use crate::report::unless_stopped;
use crate::run::{guests, on_core, queues};

/// Room beside a frame: whatever a back-end adds to it before it compares it with an MTU.
const SPARE: u16 = 64;

/// What a packet costs.
#[derive(Debug, Clone, Serialize)]
pub struct Instructions {
    /// In which cell.
    pub cell: String,
    /// Whose.
    pub peer: Peer,
    /// Instructions of the worker, or why they could not be counted.
    pub per_packet: Result<f64, String>,
}

/// Counts in a cell for a back-end, over `seconds` of a very slow run.
///
/// # Errors
/// The run is to stop.
pub fn count(peer: Peer, cell: &Cell, place: Place, guest_core: usize, seconds: f64) -> anyhow::Result<Instructions> {
    // DPDK reserves more addresses for hugepages than valgrind has; and to fill pools of buffers for 9000 bytes that nobody sends takes
    // minutes there.
    let place = Place { huge_pages: false, largest: cell.frames.most().max(1518) + SPARE, ..place };
    let per_packet = if cell.packed {
        run::<PackedRing>(peer, cell, place, guest_core, seconds)
    } else {
        run::<SplitRing>(peer, cell, place, guest_core, seconds)
    };
    let per_packet = unless_stopped(per_packet)?.map_err(|error| format!("{error:#}"));
    Ok(Instructions { cell: cell.name(), peer, per_packet })
}

fn run<R: Ring>(peer: Peer, cell: &Cell, place: Place, guest_core: usize, seconds: f64) -> anyhow::Result<f64> {
    let folder = paths::scratch()?;
    let out = folder.path().join("out");
    let runner = [
        "valgrind".to_string(),
        "-q".into(),
        "--tool=callgrind".into(),
        "--separate-threads=yes".into(),
        // The worker never blocks; without this the others starve.
        "--fair-sched=yes".into(),
        format!("--callgrind-out-file={}", out.display()),
        format!("--log-file={}", folder.path().join("log").display()),
    ];
    let backend = Backend::start_under(peer, cell.setup(), place, &runner)?;
    let packets = on_core(guest_core, || {
        guests::<R, _>(&backend, cell, place, |guests| count_packets(guests, cell, backend.pid(), seconds))
    })?;
    ensure!(packets > 0, "no packet moved");
    Ok(worker(folder.path())? as f64 / packets as f64)
}

/// Packets between two moments at which callgrind was told to forget, and to write down, what it had counted.
fn count_packets<R: Ring>(guests: &mut [Guest<R>], cell: &Cell, pid: u32, seconds: f64) -> anyhow::Result<u64> {
    let mut queues = queues(guests, cell);
    let load = Load { burst: 64, warm_up: 0.0, measured: seconds };
    queues.run(Load { measured: 1.0, ..load })?;
    let packets = |queues: &crate::load::Queues<'_, R>| match cell.direction {
        Direction::Tx | Direction::Drain if !cell.read => queues.tx.iter().map(|tx| tx.done).sum::<u64>(),
        Direction::Both => {
            queues.tx.iter().map(|tx| tx.done).sum::<u64>() + queues.rx.iter().map(|rx| rx.frames).sum::<u64>()
        }
        _ => queues.rx.iter().map(|rx| rx.frames).sum::<u64>(),
    };
    let command = |words: &[&str], queues: &mut crate::load::Queues<'_, R>| -> anyhow::Result<u64> {
        let mut control = Command::new("callgrind_control");
        control.args(words).arg(pid.to_string());
        let child = std::thread::spawn(move || wait::run(&mut control, Duration::from_secs(60)));
        let start = Instant::now();
        while !child.is_finished() {
            ensure!(start.elapsed() < Duration::from_secs(70), "callgrind_control does not end");
            // The rings are kept full meanwhile.
            queues.run(Load { measured: 0.002, ..load })?;
        }
        child.join().map_err(|_| anyhow::anyhow!("the control thread panicked"))??.success("callgrind_control")?;
        Ok(packets(queues))
    };
    let before = command(&["--zero"], &mut queues)?;
    queues.run(load)?;
    let after = command(&["--dump"], &mut queues)?;
    Ok(after - before)
}

/// The largest count among the threads of the dump.
fn worker(folder: &Path) -> anyhow::Result<u64> {
    let mut most = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // out.1-05: the first dump, thread 5.
        if !name.starts_with("out.1-") {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        let counted = text.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
        let counted = counted.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        most = most.max(counted.unwrap_or(0));
    }
    (most > 0).then_some(most).context("callgrind wrote no counts")
}
