//! Interrupts and kicks: a guest that sleeps is woken by each frame, one that polls is left alone, and a lane that sleeps is
//! woken by a guest that kicks only when it is asked to.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_testkit::guest::{Guest, Kind, Options, feature};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::{needs, over_both, paths};

over_both!(a_guest_that_sleeps_is_woken_by_each_frame, a_guest_that_polls_gets_no_interrupts);

const SOON: Duration = Duration::from_secs(5);

/// Guests at a port that returns every frame, with and without EVENT_IDX, in order and not.
fn with_each(name: &str, kind: Kind, check: fn(&mut Guest) -> Result<()>) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = Lane::start(lane::Options::new(name), folder.path())?;
    let socket = lane.add_port("vm", "vdev:net_ring0", 1)?;
    for without in [0, feature::EVENT_IDX] {
        for with in [0, feature::IN_ORDER] {
            // Small rings, so that they wrap often.
            let options = Options { ring_size: 16, ..Options::new(&socket) };
            let mut guest = Guest::start(options.over(kind).without(without).require(with))?;
            check(&mut guest).with_context(|| format!("without {without:#x}, with {with:#x}"))?;
        }
    }
    Ok(())
}

fn send(guest: &mut Guest, frames: usize) -> Result<()> {
    let start = Instant::now();
    while guest.tx[0].in_flight() > 0 {
        guest.tx[0].reclaim();
        ensure!(start.elapsed() < SOON, "{} frames are not taken", guest.tx[0].in_flight());
    }
    let sent = guest.tx[0].transmit(frames, |_, room| {
        room.put(0, &[0x55; 60]);
        60
    });
    ensure!(sent == frames, "room for {sent} of {frames} frames");
    Ok(())
}

fn a_guest_that_sleeps_is_woken_by_each_frame(kind: Kind) -> Result<()> {
    with_each("sleeps", kind, |guest| {
        let mut received = 0;
        for round in 0..200 {
            // Every few rounds the lane has had time to fall asleep, too.
            if round % 40 == 39 {
                std::thread::sleep(Duration::from_millis(20));
            }
            let frames = 1 + round % 5;
            send(guest, frames)?;
            let mut came = 0;
            while came < frames {
                // What is there already counts as woken: a driver looks again after it asked for an interrupt.
                let asleep = Instant::now();
                // One may come for nothing: at the start, when the lane cannot know what the guest was told before.
                while !guest.rx[0].ring().wait(SOON)? && asleep.elapsed() < SOON {}
                let missed = asleep.elapsed() >= SOON;
                ensure!(!missed, "round {round}: no interrupt, with {came} of {frames} frames taken");
                came += guest.rx[0].receive(64, |_| ());
            }
            received += came;
        }
        ensure!(guest.rx[0].counts().frames == received as u64 && guest.rx[0].counts().wrong == 0);
        Ok(())
    })
}

fn a_guest_that_polls_gets_no_interrupts(kind: Kind) -> Result<()> {
    with_each("polls", kind, |guest| {
        guest.rx[0].ring().want_call(false);
        // One comes at the start, because a lane before this one may have died before it sent its last.
        send(guest, 1)?;
        let mut came = 0;
        let start = Instant::now();
        while came < 1 {
            came += guest.rx[0].receive(64, |_| ());
            ensure!(start.elapsed() < SOON, "the first frame does not come");
        }
        guest.rx[0].ring().want_call(false);
        let _ = guest.rx[0].ring().call().read();
        for round in 0..100 {
            send(guest, 4)?;
            let (mut came, start) = (0, Instant::now());
            while came < 4 {
                came += guest.rx[0].receive(64, |_| ());
                ensure!(start.elapsed() < SOON, "round {round}: {came} of 4 frames came");
            }
            // With EVENT_IDX in a split ring, an index that is behind stays behind only if it is renewed.
            guest.rx[0].ring().want_call(false);
        }
        let calls = guest.rx[0].ring().call().read().unwrap_or(0);
        ensure!(calls <= 1, "{calls} interrupts that nobody asked for");
        Ok(())
    })
}
