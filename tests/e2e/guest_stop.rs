//! Rings that are stopped and started again at any place, whatever lies there from the lap before: a virtual machine that is paused, or
//! comes from another host, goes on where the front-end says, and where a split ring says.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_testkit::guest::ring::packed::Position;
use ringspan_testkit::guest::ring::{Format, Span, Used};
use ringspan_testkit::guest::{Guest, Kind, Options, Ring, feature};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::{needs, over_both, paths};

const SIZE: u16 = 64;

over_both!(
    a_ring_that_was_stopped_goes_on_there,
    a_ring_that_was_stopped_in_order_goes_on_there,
    a_ring_that_comes_from_elsewhere_goes_on_there,
    a_ring_that_comes_from_elsewhere_in_order_goes_on_there,
);

/// Sends chains of these numbers of descriptors, all shown at once, and waits until they are used.
fn send(guest: &mut Guest, chains: &[u16]) -> Result<()> {
    let frame = guest.memory().allocate(128, 64)?;
    // SAFETY: the piece is that long and nobody else's. A header of zeros, and a frame of zeros.
    unsafe { frame.start.write_bytes(0, 128) };
    match guest.tx[0].ring() {
        Ring::Split(ring) => pass(ring, chains, Span { address: frame.guest, length: 96 }),
        Ring::Packed(ring) => pass(ring, chains, Span { address: frame.guest, length: 96 }),
    }
}

/// Sends `whole` as chains of these numbers of descriptors.
fn pass(ring: &mut impl Format, chains: &[u16], whole: Span) -> Result<()> {
    // Of a split ring, a chain's number is that of its first descriptor.
    let mut buffer = 0;
    for &descriptors in chains {
        // In parts of the same length.
        let spans = vec![Span { length: whole.length / u32::from(descriptors), ..whole }; descriptors.into()];
        ring.offer(buffer, &spans, 0);
        buffer += descriptors;
    }
    ring.publish();
    let (start, mut used) = (Instant::now(), 0);
    while used < chains.len() {
        used += ring.collect(&mut [Used::default(); SIZE as usize]);
        ensure!(start.elapsed() < Duration::from_secs(3), "{used} of {} chains were used", chains.len());
        std::thread::yield_now();
    }
    Ok(())
}

/// Stops the rings and starts them again, as when a virtual machine is paused; or with a lane that does not know them, as after a
/// migration.
fn again(guest: &mut Guest, lane: &mut Lane, moved: bool) -> Result<()> {
    guest.stop()?;
    guest.disconnect();
    if moved {
        lane.remove("vm")?;
        lane.add_port("vm", "vdev:net_null0,no-rx=1", 1)?;
    }
    guest.reconnect()
}

fn goes_on(kind: Kind, features: u64, moved: bool) -> Result<()> {
    needs!(Root, Lane);
    let folder = paths::scratch()?;
    let mut lane = Lane::start(lane::Options::new("stop"), folder.path())?;
    let socket = lane.add_port("vm", "vdev:net_null0,no-rx=1", 1)?;
    let options = Options { ring_size: SIZE, ..Options::new(&socket) }.over(kind).require(features);
    // A split ring goes on by its indices, which know no laps: one place is like another.
    let places: &[u16] = if kind == Kind::Split { &[31] } else { &[1, 2, 31, 32, 62, 63] };
    for &place in places {
        // Many at once, one by one, and each with a chain whose last descriptor is where the ring is stopped a lap later.
        let (before, behind) = (usize::from(place - 1), usize::from(SIZE - place - 1));
        let laps: [Vec<Vec<u16>>; 3] =
            [vec![vec![1; before], vec![2], vec![1; behind]], vec![vec![1; SIZE.into()]], vec![vec![1; 63], vec![1]]];
        for lap in laps {
            let mut guest = Guest::start(options.clone())?;
            for chains in lap.iter().filter(|chains| !chains.is_empty()) {
                send(&mut guest, chains)?;
            }
            for _ in 0..place {
                send(&mut guest, &[1])?;
            }
            if let Ring::Packed(ring) = guest.tx[0].ring() {
                let at = ring.next_avail();
                ensure!(at == Position { at: place, wrap: false }, "the test is at {at:?}");
            }
            again(&mut guest, &mut lane, moved)?;
            send(&mut guest, &[1, 3, 1]).with_context(|| format!("stopped at {place} after a lap of {lap:?}"))?;
            again(&mut guest, &mut lane, moved)?;
            send(&mut guest, &[1; 40]).with_context(|| format!("stopped again after {place} and {lap:?}"))?;
        }
    }
    Ok(())
}

fn a_ring_that_was_stopped_goes_on_there(kind: Kind) -> Result<()> {
    goes_on(kind, 0, false)
}

fn a_ring_that_was_stopped_in_order_goes_on_there(kind: Kind) -> Result<()> {
    goes_on(kind, feature::IN_ORDER, false)
}

fn a_ring_that_comes_from_elsewhere_goes_on_there(kind: Kind) -> Result<()> {
    goes_on(kind, 0, true)
}

fn a_ring_that_comes_from_elsewhere_in_order_goes_on_there(kind: Kind) -> Result<()> {
    goes_on(kind, feature::IN_ORDER, true)
}
