//! A lane that is killed and started again under a guest that does not know: the guest goes on with the same rings, no
//! frame comes twice, and counters do not go back.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use ringspan_protocol::PortSpec;
use ringspan_testkit::guest::loopback::{self, Plan};
use ringspan_testkit::guest::{Guest, Options};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::{needs, paths};

/// A guest that numbers what it sends and accepts losses, but nothing else.
struct Numbered {
    plan: Plan,
    sent: u64,
    received: u64,
    /// The number that the next frame has at least.
    next: u64,
    frame: Vec<u8>,
}

impl Numbered {
    fn new() -> Self {
        Self { plan: Plan::new(u64::MAX, 128), sent: 0, received: 0, next: 0, frame: vec![0; 2048] }
    }

    /// Sends up to `burst` frames.
    fn send(&mut self, guest: &mut Guest, burst: usize) -> usize {
        let Self { plan, sent, frame, .. } = self;
        let frames = guest.tx[0].transmit(burst, |i, room| {
            let number = *sent + i as u64;
            let frame = &mut frame[..plan.length(0, number)];
            loopback::make(frame, 0, number);
            room.put(0, frame);
            frame.len()
        });
        *sent += frames as u64;
        frames
    }

    /// Takes what is there; a frame that is changed, or not newer than the one before, is an error.
    fn receive(&mut self, guest: &mut Guest) -> Result<usize> {
        let Self { plan, received, next, frame, .. } = self;
        let mut fault = None;
        let frames = guest.rx[0].receive(256, |got| {
            let length = got.length();
            got.copy_to(frame);
            let mut want = vec![0; length];
            match loopback::claims(&frame[..length]) {
                Some((0, number)) if number >= *next && plan.length(0, number) == length => {
                    loopback::make(&mut want, 0, number);
                    if want != frame[..length] {
                        fault = Some(format!("frame {number} was changed"));
                    }
                    *next = number + 1;
                }
                claim => fault = Some(format!("frame {} or a later one was expected, got {claim:?}", *next)),
            }
            *received += 1;
        });
        if let Some(fault) = fault {
            bail!(fault);
        }
        let wrong = guest.rx[0].counts().wrong + guest.tx[0].counts().wrong;
        ensure!(wrong == 0, "{wrong} used elements that no driver can accept");
        Ok(frames)
    }

    /// Passes this many frames, with up to 100 on their way.
    fn pass(&mut self, guest: &mut Guest, frames: u64) -> Result<()> {
        let (mut lost, target) = (self.sent - self.received, self.received + frames);
        let start = Instant::now();
        while self.received < target {
            let in_flight = (self.sent - self.received).saturating_sub(lost);
            let moved = if in_flight < 100 { self.send(guest, 32) } else { 0 } + self.receive(guest)?;
            lost = lost.min(self.sent - self.received);
            if moved == 0 {
                ensure!(start.elapsed() < Duration::from_secs(20), "{} of {target} frames came", self.received);
                std::thread::yield_now();
            }
        }
        Ok(())
    }
}

#[test]
fn a_guest_goes_on_when_its_lane_was_killed_and_started_again() -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = Lane::start(lane::Options::new("killed"), folder.path())?;
    let spec: PortSpec = lane.spec("vm", "vdev:net_ring0", 1);
    lane.add(&spec)?;
    let mut guest = Guest::start(Options::new(&spec.socket))?;
    let mut numbered = Numbered::new();
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

#[test]
fn a_lane_that_is_gone_refuses_at_once() -> Result<()> {
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
    Guest::start(Options::new(&spec.socket))?;
    Ok(())
}
