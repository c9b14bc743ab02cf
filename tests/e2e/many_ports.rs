//! Many ports: 64 live ones over three lanes, all passing traffic, while one lane is killed; and one that is busy among 27 that are not.

use std::time::Duration;

use anyhow::{Context, Result};
use ringspan_testkit::guest::loopback::{self, Plan};
use ringspan_testkit::guest::{Guest, Kind, Options, Traffic};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::{needs, over_both, paths};

/// Ports of each lane: 64 in all.
const PORTS: [usize; 3] = [22, 21, 21];
/// Quiet ports beside a busy one.
const QUIET: usize = 27;
const SOON: Duration = Duration::from_secs(30);

over_both!(
    a_lane_that_is_killed_costs_the_ports_of_others_no_frame,
    a_frame_of_a_quiet_port_crosses_while_another_is_busy,
);

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

/// Quiet ports are looked at less often while another is busy (what that spares is a figure of the benchmark): still, what comes at one of them
/// crosses, and costs the busy one no frame.
fn a_frame_of_a_quiet_port_crosses_while_another_is_busy(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let (mut lane, mut guests) = start(0, QUIET + 1, kind, folder.path())?;
    let traffic = Traffic::start(guests.drain(..1).collect(), Plan { burst: 16, ..Plan::new(0, 32) });
    traffic.wait_more(20_000, SOON)?;
    for round in 0..3 {
        for (port, guest) in guests.iter_mut().enumerate() {
            let passed = loopback::run(guest, Plan::new(1, 1)).with_context(|| name(0, port + 1))?;
            assert_eq!(passed[0].frames, 1, "round {round}, port {}", port + 1);
        }
        traffic.wait_more(1000, SOON)?;
    }
    let frames = traffic.stop()?[0].frames;
    for (port, frames) in [frames].into_iter().chain([3; QUIET]).enumerate() {
        lane.wait_totals(&name(0, port), |from, to| {
            let none = from.drops.total() == 0 && to.drops.total() == 0;
            none && (from.received, from.sent, to.received, to.sent) == (frames, frames, frames, frames)
        })?;
    }
    Ok(())
}
