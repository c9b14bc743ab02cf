//! The small figures: how soon a lane serves, how long a port takes, what idle guests cost, how big control is, and what idle
//! ports cost a busy one.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use ringspan_testkit::daemon::Daemon;
use ringspan_testkit::guest::{Guest, Options};
use ringspan_testkit::lane::{self, Lane};

use crate::calm::Patience;
use crate::latency::processor_seconds;
use crate::ports;
use crate::report::{Figure, unless_stopped};

/// Attached guests whose cost is measured.
const IDLE_GUESTS: usize = 16;

/// All of them; what cannot be measured says why.
///
/// # Errors
/// The run is to stop.
pub fn all(core: usize, guest_core: usize, patience: &Patience) -> anyhow::Result<Vec<Figure>> {
    let figure = |name: &str, limit: f64, unit: &'static str, result: &anyhow::Result<f64>| Figure {
        name: name.into(),
        value: result.as_ref().ok().copied(),
        spread: None,
        limit,
        at_least: false,
        unit,
        note: result.as_ref().err().map(|error| format!("{error:#}")),
    };
    let lane = unless_stopped(lane_figures(core))?;
    let of_lane = |pick: fn(&LaneFigures) -> f64| match &lane {
        Ok(figures) => Ok(pick(figures)),
        Err(error) => Err(anyhow::anyhow!("{error:#}")),
    };
    let control = unless_stopped(control_figures(core))?;
    let of_control = |pick: fn(&(f64, f64)) -> f64| match &control {
        Ok(figures) => Ok(pick(figures)),
        Err(error) => Err(anyhow::anyhow!("{error:#}")),
    };
    let crowded = unless_stopped(ports::crowded(core, guest_core, patience))?;
    let busy_port = Figure {
        name: format!("1 busy port of {}, its rate beside that alone", ports::PORTS),
        value: crowded.as_ref().ok().map(|spread| spread.median),
        spread: crowded.as_ref().ok().copied(),
        limit: 90.0,
        at_least: true,
        unit: "%",
        note: crowded.err().map(|error| format!("{error:#}")),
    };
    Ok(vec![
        figure("lane, start to first answer", 1000.0, "ms", &of_lane(|f| f.ready_ms)),
        figure("daemon and lane, start to first port listening", 1000.0, "ms", &of_control(|f| f.0)),
        figure("port add of a virtual device (median)", 100.0, "ms", &of_lane(|f| f.port_add_ms)),
        figure("control, resident", 30.0, "MiB", &of_control(|f| f.1)),
        figure("lane with 16 attached, idle guests", 3.0, "% of a core", &of_lane(|f| f.idle_percent)),
        busy_port,
    ])
}

struct LaneFigures {
    ready_ms: f64,
    port_add_ms: f64,
    idle_percent: f64,
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn lane_figures(core: usize) -> anyhow::Result<LaneFigures> {
    let folder = tempfile::tempdir()?;
    let options = lane::Options { cores: core.to_string(), memory_mib: 256, ..lane::Options::new("figures") };
    let start = Instant::now();
    let mut lane = Lane::start(options, folder.path())?;
    let ready_ms = milliseconds(start);
    let mut add_ms = vec![];
    let mut guests = vec![];
    for i in 0..IDLE_GUESTS {
        let start = Instant::now();
        let device = format!("vdev:net_null{i},size=64,no-rx=1");
        let socket = lane.add_port(&format!("vm{i}"), &device, 1)?;
        add_ms.push(milliseconds(start));
        guests.push(Guest::start(Options::new(socket))?);
    }
    add_ms.sort_by(f64::total_cmp);
    // The naps of idle workers reach their full length within milliseconds; a second is generous.
    std::thread::sleep(Duration::from_secs(1));
    let (start, before) = (Instant::now(), processor_seconds(lane.pid())?);
    std::thread::sleep(Duration::from_secs(3));
    let used = processor_seconds(lane.pid())? - before;
    ensure!(guests.len() == IDLE_GUESTS && lane.is_alive(), "the lane died");
    Ok(LaneFigures {
        ready_ms,
        port_add_ms: add_ms[add_ms.len() / 2],
        idle_percent: 100.0 * used / start.elapsed().as_secs_f64(),
    })
}

/// Milliseconds from the daemon's start until its configured port listens, and MiB that the daemon holds.
fn control_figures(core: usize) -> anyhow::Result<(f64, f64)> {
    let config = format!(
        "[dataplane]\ncores = [{core}]\nmemory_mib = 128\n[[port]]\nname = \"vm1\"\nsocket = \"{{dir}}/vm1.sock\"\n\
         role = \"server\"\ndevice = \"vdev:net_null0,size=64,no-rx=1\"\nqueues = 1\n"
    );
    let start = Instant::now();
    let daemon = Daemon::start(&config, None)?;
    while UnixStream::connect(daemon.path("vm1.sock")).is_err() {
        ensure!(start.elapsed() < Duration::from_secs(20), "the configured port does not listen");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok((milliseconds(start), resident_mib(daemon.pid()?)?))
}

fn resident_mib(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(Path::new(&path))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
