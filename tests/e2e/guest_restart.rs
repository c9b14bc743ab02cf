//! A lane that is killed and started again under a guest that does not know: the guest goes on with the same rings, no
//! frame comes twice, and counters do not go back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringspan_protocol::{PortSpec, ZeroCopy};
use ringspan_testkit::guest::{Guest, Kind, Numbered, Options, Shape, feature};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::{needs, over_both, paths};

over_both!(
    a_guest_goes_on_when_its_lane_was_killed_and_started_again,
    no_buffer_is_lost_when_a_lane_is_killed_in_the_middle_of_traffic,
    no_buffer_is_lost_when_a_lane_is_killed_that_does_not_copy,
    a_guest_that_was_reset_while_its_lane_was_dead_begins_anew,
    a_lane_that_is_gone_refuses_at_once,
);

fn a_guest_goes_on_when_its_lane_was_killed_and_started_again(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = Lane::start(lane::Options::new("killed"), folder.path())?;
    let spec: PortSpec = lane.spec("vm", "vdev:net_ring0", 1);
    lane.add(&spec)?;
    let mut guest = Guest::start(Options::new(&spec.socket).over(kind))?;
    let mut numbered = Numbered::new(kind);
    numbered.pass(&mut guest, 2000)?;
    let (mut from, mut to) = lane.totals("vm")?;
    for life in 1..=8 {
        // In the middle of traffic: the last bursts are with the lane when it dies.
        let (before_from, before_to) = lane.totals("vm")?;
        for _ in 0..life {
            numbered.send(&mut guest, 8);
        }
        lane.kill()?;
        numbered.receive(&mut guest)?;
        lane.restart()?;
        lane.add(&spec)?;
        // Before anything moves again, the lane knows all that it had counted.
        (from, to) = lane.totals("vm")?;
        ensure!(
            from.received >= before_from.received && from.sent >= before_from.sent && to.sent >= before_to.sent,
            "life {life}: counters went back: {before_from:?} {before_to:?}, now {from:?} {to:?}"
        );
        guest.reconnect()?;
        numbered.pass(&mut guest, 2000)?;
        let lost = numbered.sent - numbered.received;
        ensure!(lost <= life * 100 + 256, "life {life}: {lost} frames were lost in all");
    }
    // What the guest got is what the lanes counted, over all lives, but for what died with each between ring and count.
    let got = numbered.received;
    let (last_from, last_to) = lane.wait_totals("vm", |from, _| from.received + 100 >= numbered.sent)?;
    ensure!(last_from.received <= numbered.sent, "more was counted than sent: {last_from:?}, {}", numbered.sent);
    ensure!(last_to.sent.abs_diff(got) <= 100 + 8 * 64, "{got} received, {last_to:?}; before {from:?} {to:?}");
    Ok(())
}

/// Every buffer that the guest has lent is used: none was forgotten.
fn nothing_is_kept(guest: &mut Guest, numbered: &mut Numbered) -> Result<()> {
    let start = Instant::now();
    guest.rx[0].hold_back(true);
    // More frames than there are buffers, each small enough for one.
    let mut sent = 0;
    while guest.rx[0].posted() > 0 || guest.tx[0].in_flight() > 0 {
        if sent < 4 * guest.rx[0].buffers() {
            sent += guest.tx[0].transmit(16, |_, room| {
                room.put(0, &[0x55; 60]);
                60
            });
        }
        guest.tx[0].reclaim();
        guest.rx[0].receive(256, |_| ());
        let (kept, in_flight) = (guest.rx[0].posted(), guest.tx[0].in_flight());
        let soon = start.elapsed() < Duration::from_secs(10);
        ensure!(soon, "{kept} receive and {in_flight} transmit buffers are kept, after {} frames", numbered.received);
        std::thread::yield_now();
    }
    guest.rx[0].hold_back(false);
    guest.rx[0].post(usize::MAX);
    Ok(())
}

fn killed_in_the_middle_of_traffic(kind: Kind, zero_copy: ZeroCopy) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = Lane::start(lane::Options::new("middle"), folder.path())?;
    let spec: PortSpec = PortSpec { zero_copy, zero_copy_from: Some(100), ..lane.spec("vm", "vdev:net_ring0", 1) };
    lane.add(&spec)?;
    // One descriptor a frame; chains of several; frames in several buffers; tables.
    let plain = Options::new(&spec.socket).over(kind);
    let chains = Options { tx_shape: Shape::Mixed(5), rx_shape: Shape::Mixed(3), ..plain.clone() };
    let several = Options { rx_room: 300, ..plain.clone() };
    for options in [plain.clone(), chains.clone().without(feature::INDIRECT_DESC), several, chains] {
        let mut guest = Guest::start(options)?;
        let mut numbered = Numbered::new(kind);
        for life in 0..4 {
            numbered.pass(&mut guest, 500)?;
            let pid = Pid::from_raw(lane.pid() as i32);
            let killer = std::thread::spawn(move || {
                // Any moment will do, and another one each time.
                std::thread::sleep(Duration::from_micros(500 + 777 * life));
                kill(pid, Signal::SIGKILL)
            });
            while !killer.is_finished() {
                numbered.send(&mut guest, 32);
                numbered.receive(&mut guest)?;
            }
            killer.join().expect("it only kills")?;
            lane.kill()?;
            numbered.receive(&mut guest)?;
            lane.restart()?;
            lane.add(&spec)?;
            guest.reconnect()?;
            numbered.pass(&mut guest, 500).with_context(|| format!("life {life}"))?;
        }
        nothing_is_kept(&mut guest, &mut numbered)?;
    }
    Ok(())
}

fn no_buffer_is_lost_when_a_lane_is_killed_in_the_middle_of_traffic(kind: Kind) -> Result<()> {
    killed_in_the_middle_of_traffic(kind, ZeroCopy::Off)
}

fn no_buffer_is_lost_when_a_lane_is_killed_that_does_not_copy(kind: Kind) -> Result<()> {
    killed_in_the_middle_of_traffic(kind, ZeroCopy::Always)
}

fn a_guest_that_was_reset_while_its_lane_was_dead_begins_anew(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = Lane::start(lane::Options::new("unseen"), folder.path())?;
    let spec: PortSpec = lane.spec("vm", "vdev:net_ring0", 1);
    lane.add(&spec)?;
    let mut guest = Guest::start(Options::new(&spec.socket).over(kind))?;
    let mut numbered = Numbered::new(kind);
    // With different places in the rings, in both laps; the last one at the very beginning.
    for frames in [100, 300, 511, 512, 700, 1000] {
        numbered.pass(&mut guest, frames)?;
        lane.kill()?;
        // Its rings lie where the old ones were, and have frames and buffers in them already.
        guest.reset_unseen()?;
        numbered.send(&mut guest, 20);
        lane.restart()?;
        lane.add(&spec)?;
        guest.reconnect()?;
        numbered.pass(&mut guest, 600).with_context(|| format!("reset after {frames} frames"))?;
        nothing_is_kept(&mut guest, &mut numbered)?;
        // And a guest that never knew the lane that died.
        lane.kill()?;
        drop(guest);
        lane.restart()?;
        lane.add(&spec)?;
        guest = Guest::start(Options::new(&spec.socket).over(kind))?;
        numbered = Numbered::new(kind);
    }
    Ok(())
}

fn a_lane_that_is_gone_refuses_at_once(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = Lane::start(lane::Options::new("gone"), folder.path())?;
    let spec = lane.spec("vm", "vdev:net_null0,no-rx=1", 1);
    lane.add(&spec)?;
    lane.kill()?;
    // The socket's file is still there. A connection that nobody accepts would freeze QEMU's monitor.
    let error = std::os::unix::net::UnixStream::connect(&spec.socket).expect_err("nobody is there");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    // And it is in nobody's way.
    lane.restart()?;
    lane.add(&spec)?;
    Guest::start(Options::new(&spec.socket).over(kind))?;
    Ok(())
}
