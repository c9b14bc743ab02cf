//! Many ports: 64 live ones over three lanes, all passing traffic, while one lane is killed; and one that is busy among 27 that are not.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_testkit::guest::loopback::Plan;
use ringspan_testkit::guest::{Guest, Kind, Options, Traffic};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::{needs, over_both, paths};

/// Ports of each lane: 64 in all.
const PORTS: [usize; 3] = [22, 21, 21];
const SOON: Duration = Duration::from_secs(30);

over_both!(a_lane_that_is_killed_costs_the_ports_of_others_no_frame);

/// A lane with this many ports and a guest at each.
fn start(number: usize, ports: usize, kind: Kind, folder: &std::path::Path) -> Result<(Lane, Vec<Guest>)> {
    let options = lane::Options {
        memory_mib: 384,
        cores: (number % 2).to_string(),
        ..lane::Options::new(format!("lane{number}"))
    };
    let mut lane = Lane::start(options, folder)?;
    let mut guests = vec![];
    for port in 0..ports {
        let name = name(number, port);
        let socket = lane.add_port(&name, &format!("vdev:net_ring{port}"), 1).with_context(|| name.clone())?;
        let guest = Guest::start(Options { ring_size: 64, ..Options::new(socket).over(kind) }).with_context(|| name)?;
        guests.push(guest);
    }
    Ok((lane, guests))
}

fn name(lane: usize, port: usize) -> String {
    format!("vm{lane}-{port}")
}

fn a_lane_that_is_killed_costs_the_ports_of_others_no_frame(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let (mut lanes, mut guests) = (vec![], vec![]);
    for (number, ports) in PORTS.into_iter().enumerate() {
        let (lane, of_lane) = start(number, ports, kind, folder.path())?;
        lanes.push(lane);
        guests.push(of_lane);
    }
    let busy = |guests| Traffic::start(guests, Plan { burst: 16, ..Plan::new(0, 32) });
    let mut traffic: Vec<Traffic> = guests.into_iter().map(busy).collect();
    for (number, traffic) in traffic.iter().enumerate() {
        traffic.wait_more(20_000, SOON).with_context(|| format!("lane {number}, all alive"))?;
    }

    lanes.remove(0).kill()?;
    let killed = traffic.remove(0);
    for (number, traffic) in traffic.iter().enumerate() {
        traffic.wait_more(20_000, SOON).with_context(|| format!("lane {}, after the kill", number + 1))?;
    }
    // The killed lane's guests wait for frames that nobody returns; what came back before was right.
    drop(killed);

    for (number, (traffic, lane)) in traffic.into_iter().zip(&mut lanes).enumerate() {
        let number = number + 1;
        for (port, passed) in traffic.stop().with_context(|| format!("lane {number}"))?.into_iter().enumerate() {
            let frames = passed.frames;
            assert!(frames > 0, "port {port} of lane {number} passed nothing");
            lane.wait_totals(&name(number, port), |from, to| {
                let none = from.drops.total() == 0 && to.drops.total() == 0;
                none && (from.received, from.sent, to.received, to.sent) == (frames, frames, frames, frames)
            })?;
        }
    }
    Ok(())
}

/// How long a lane takes to empty a full ring of one of its ports, again and again, with guests at all of them: the times of a split
/// ring, and those of a packed one.
fn emptied(ports: usize) -> Result<[Duration; 2]> {
    const RING: u16 = 4096;
    let folder = paths::scratch()?;
    let mut lane = Lane::start(lane::Options { memory_mib: 384, ..lane::Options::new("many") }, folder.path())?;
    let mut sockets = vec![];
    for port in 0..ports {
        sockets.push(lane.add_port(&format!("vm{port}"), &format!("vdev:net_null{port},no-rx=1"), 1)?);
    }
    let guest = |socket: &PathBuf, ring_size, kind| {
        Guest::start(Options { ring_size, polled: true, ..Options::new(socket).over(kind) })
    };
    let kinds = [Kind::Split, Kind::Packed];
    let idle = sockets[1..].iter().zip(kinds.into_iter().cycle()).map(|(socket, kind)| guest(socket, 64, kind));
    let _idle = idle.collect::<Result<Vec<_>>>()?;
    let middle = |kind| -> Result<Duration> {
        let mut busy = guest(&sockets[0], RING, kind)?;
        let tx = &mut busy.tx[0];
        let mut times = vec![];
        for _ in 0..200 {
            let sent = tx.transmit(usize::from(RING), |_, room| {
                room.put(0, &[7; 60]);
                60
            });
            let (start, until) = (Instant::now(), Instant::now() + SOON);
            while tx.in_flight() > 0 {
                tx.reclaim();
                ensure!(Instant::now() < until, "a ring of {sent} frames is not emptied");
            }
            times.push(start.elapsed());
        }
        // Where the generator lost its core right after it had filled the ring, a time is too short; where the lane did, too long.
        times.sort_unstable();
        Ok(times[times.len() / 2])
    };
    Ok([middle(Kind::Split)?, middle(Kind::Packed)?])
}

#[test]
fn a_busy_port_among_twenty_seven_idle_ones_is_as_fast_as_alone() -> Result<()> {
    needs!(Root, Lane);
    // Other work on this machine can spoil an attempt, and cannot make a bad one good.
    let (mut ratios, mut good) = (vec![], [false; 2]);
    for _ in 0..5 {
        let (alone, among, again) = (emptied(1)?, emptied(28)?, emptied(1)?);
        for kind in 0..2 {
            let ratio = among[kind].as_secs_f64() / alone[kind].max(again[kind]).as_secs_f64();
            // Aimed for are 1.1, on a machine that does nothing else.
            good[kind] |= ratio < 1.15;
            ratios.push(ratio);
        }
        println!("a ring emptied, split and packed, in {alone:?} alone, in {among:?} among 28 ports");
        if good == [true; 2] {
            return Ok(());
        }
    }
    anyhow::bail!("a port among 28 takes so many times as long as alone, split and packed in turns: {ratios:.2?}")
}
