//! A lane whose guests do nothing costs nothing, and is there at once when one does something.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_protocol::{PortSpec, ReceiveWake};
use ringspan_testkit::guest::{Guest, Kind, Options};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::{needs, over_both, paths, wait};

over_both!(
    sixteen_idle_guests_cost_a_lane_next_to_nothing_and_the_first_frame_is_not_late,
    a_guest_that_is_held_to_its_rate_costs_a_lane_next_to_nothing
);

const SOON: Duration = Duration::from_secs(10);

/// Seconds of processor time that a process has used.
fn processor_seconds(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in brackets may hold anything; user and system time are the 12th and 13th field after it.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock")? as f64)
}

fn sixteen_idle_guests_cost_a_lane_next_to_nothing_and_the_first_frame_is_not_late(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = Lane::start(lane::Options { memory_mib: 256, ..lane::Options::new("idle") }, folder.path())?;
    let mut guests = vec![];
    for number in 0..16 {
        let device = format!("patch:cable{}/{}", number / 2, if number % 2 == 0 { "a" } else { "b" });
        let socket = lane.add_port(&format!("vm{number}"), &device, 1)?;
        guests.push(Guest::start(Options::new(socket).over(kind))?);
    }
    ensure!(lane.port("vm3")?.device.receive_wake == ReceiveWake::Event);
    // The start is over, with the first sleeps. What is used in the next two seconds is measured.
    std::thread::sleep(Duration::from_millis(500));
    let (start, before) = (Instant::now(), processor_seconds(lane.pid())?);
    std::thread::sleep(Duration::from_secs(2));
    let part = (processor_seconds(lane.pid())? - before) / start.elapsed().as_secs_f64();
    println!("16 idle guests: {:.2} % of a core", 100.0 * part);
    ensure!(part < 0.03, "16 idle guests cost {:.1} % of a core", 100.0 * part);

    // From the guest at one end to the one at the other, each time after a sleep.
    let mut late = vec![];
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(20));
        let start = Instant::now();
        let sent = guests[6].tx[0].transmit(1, |_, room| {
            room.put(0, &[7; 60]);
            60
        });
        ensure!(sent == 1);
        let mut came = 0;
        while came == 0 {
            guests[7].rx[0].receive(1, |_| came += 1);
            ensure!(start.elapsed() < SOON, "the frame did not come");
        }
        late.push(start.elapsed());
        guests[7].rx[0].post(1);
        guests[6].tx[0].reclaim();
    }
    late.sort_unstable();
    println!("first frame after a sleep: {:?} in the middle, {:?} at most", late[10], late[19]);
    // The worker sleeps for 50 ms when nothing wakes it. The machine of a test may be busy, so this is no measurement.
    ensure!(late[10] < Duration::from_millis(10), "half of them took more than {:?}", late[10]);
    Ok(())
}

/// Frames that wait at a rate this low keep waiting for the whole test: 1 Mbit/s.
const LOW_RATE: u32 = 1;

fn a_guest_that_is_held_to_its_rate_costs_a_lane_next_to_nothing(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = Lane::start(lane::Options { memory_mib: 256, ..lane::Options::new("held") }, folder.path())?;
    let spec = PortSpec { max_rate: LOW_RATE, ..lane.spec("vm0", "vdev:net_null0,no-rx=1", 1) };
    lane.add(&spec)?;
    let mut guest = Guest::start(Options::new(&spec.socket).over(kind))?;
    let fill = |guest: &mut Guest| {
        let frames = guest.tx[0].transmit(64, |_, room| {
            room.put(0, &[7; 1400]);
            1400
        });
        guest.tx[0].reclaim();
        frames
    };
    // Until it may be no further ahead, and the ring is full.
    let start = Instant::now();
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(300) {
        if fill(&mut guest) > 0 {
            last = Instant::now();
        }
        ensure!(start.elapsed() < 3 * SOON, "the guest is not held back");
    }
    // What is used in these two seconds is measured.
    let (start, before) = (Instant::now(), processor_seconds(lane.pid())?);
    std::thread::sleep(Duration::from_secs(2));
    let part = (processor_seconds(lane.pid())? - before) / start.elapsed().as_secs_f64();
    println!("a guest that is held back: {:.2} % of a core", 100.0 * part);
    ensure!(part < 0.10, "a guest that is held back costs {:.1} % of a core", 100.0 * part);
    let (sent, _) = lane.totals("vm0")?;
    ensure!(sent.received > 0 && sent.drops.total() == 0, "what waits is not lost: {sent:?}");
    Ok(())
}

/// A lane whose guests send nothing, one with each kind of rings.
fn silent(name: &str, folder: &std::path::Path, more: &[&str]) -> Result<(Lane, [Guest; 2])> {
    let more = more.iter().map(ToString::to_string).collect();
    let mut lane = Lane::start(lane::Options { more, ..lane::Options::new(name) }, folder)?;
    let sockets = [lane.add_port("vm0", "patch:cable/a", 1)?, lane.add_port("vm1", "patch:cable/b", 1)?];
    let [split, packed] = sockets.map(Options::new);
    Ok((lane, [Guest::start(split.over(Kind::Split))?, Guest::start(packed.over(Kind::Packed))?]))
}

#[test]
fn a_lane_that_is_to_spin_does_not_sleep() -> Result<()> {
    needs!(Root, Lane);
    let folders = (paths::scratch()?, paths::scratch()?);
    let (spins, _its_guests) = silent("spins", folders.0.path(), &["--busy-poll"])?;
    let (sleeps, _its_guests) = silent("sleeps", folders.1.path(), &[])?;
    // What the starts of both cost is no part of what is measured.
    std::thread::sleep(Duration::from_millis(500));
    let before = (processor_seconds(spins.pid())?, processor_seconds(sleeps.pid())?);
    // However little of the processor it gets.
    wait::until(Duration::from_secs(60), "processor time of a lane that spins", || {
        Ok((processor_seconds(spins.pid())? - before.0 > 0.5).then_some(()))
    })?;
    // It has the same core, and nothing to do.
    let slept = processor_seconds(sleeps.pid())? - before.1;
    ensure!(slept < 0.25, "a lane that may sleep used {slept} s meanwhile");
    Ok(())
}
