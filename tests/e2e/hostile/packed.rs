//! What a guest can do to a packed ring: flags, names, and places in the ring.

use anyhow::{Context, Result, ensure};
use ringspan_protocol::LaneEventKind;
use ringspan_testkit::guest::ring::packed::{AVAIL, Descriptor, USED};
use ringspan_testkit::guest::ring::{Format, NEXT, Span, WRITE};
use ringspan_testkit::guest::{Guest, Kind, Options, feature};
use ringspan_testkit::needs;

use super::{Act, Random, SOON, Scene, frames_come, good};

/// Makes a ring full of descriptors that each claim another one behind, and shows it.
fn chain_without_end(guest: &mut Guest, flags: u16, length: u32) -> Result<()> {
    let address = good(guest)?;
    let ring = guest.tx[0].ring().packed();
    let size = ring.size();
    ring.offer_parts(0, &vec![(Span { address, length }, flags | NEXT); size.into()]);
    ring.publish();
    Ok(())
}

const ACTS: &[Act] = &[
    Act {
        name: "a chain as long as the ring that goes on",
        deed: |guest| chain_without_end(guest, 0, 1),
        says: "descriptors",
    },
    Act { name: "the same without bytes", deed: |guest| chain_without_end(guest, 0, 0), says: "descriptors" },
    Act {
        name: "receive buffers that all go on",
        deed: |guest| {
            let ring = guest.rx[0].ring().packed();
            for at in 0..ring.size() {
                let was = ring.read(at);
                ring.write(at, Descriptor { flags: was.flags | NEXT, length: 0, ..was });
            }
            frames_come(guest);
            Ok(())
        },
        says: "descriptors",
    },
];

#[test]
fn each_broken_ring_stops_its_own_port_until_the_device_is_reset() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("packed", Kind::Packed)?;
    scene.commit(ACTS)?;
    scene.unharmed()
}

#[test]
fn names_are_the_drivers_own() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("names", Kind::Packed)?;
    let mut guest = Guest::start(scene.victim.clone())?;
    let frame = guest.memory().allocate(4096, 16)?;
    // SAFETY: the piece is long enough and nobody else's.
    unsafe { frame.start.write_bytes(0, 72) };
    // Any name, twice the same too, comes back as it was given.
    let ring = guest.tx[0].ring().packed();
    for id in [7, 7, 256, 32767, 65535, 0] {
        let position = ring.next_avail();
        ring.push(Descriptor { address: frame.guest, length: 72, id, flags: 0 });
        ring.publish();
        let start = std::time::Instant::now();
        while ring.read(position.at).flags & (AVAIL | USED) != position.used() {
            ensure!(start.elapsed() < SOON, "{id} does not come back: {}", scene.lane.log());
            std::thread::yield_now();
        }
        ensure!(ring.read(position.at).id == id, "{id} came back as {:?}", ring.read(position.at));
    }
    scene.lane.wait_totals("victim", |from, _| (from.sent, from.drops.total()) == (6, 0))?;
    guest.reset()?;
    scene.passes(&mut guest)?;
    scene.unharmed()
}

#[test]
fn a_base_outside_of_the_ring_is_refused_or_stops_the_port() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("base", Kind::Packed)?;
    for base in [0x8000_8000 | 256, 0x8000_8000 | 256 << 16, 0x7fff_7fff, 0xffff_ffff, 0x0100_8000] {
        let mut one = || -> Result<()> {
            let mut guest = Guest::start(scene.victim.clone())?;
            scene.passes(&mut guest)?;
            let (frontend, index) = (guest.frontend()?, 1);
            frontend.get_vring_base(index)?;
            if frontend.set_vring_base(index, base).is_ok() {
                // What else it needs to run again is still known.
                guest.start_ring(index)?;
                let seen = scene.lane.wait_event("victim", SOON, |kind| {
                    matches!(kind, LaneEventKind::RingBroken { .. } | LaneEventKind::FrontendDisconnected { .. })
                });
                seen.context("neither refused nor stopped")?;
            }
            drop(guest);
            scene.recovers()
        };
        one().with_context(|| format!("base {base:#x}"))?;
    }
    scene.unharmed()
}

#[test]
fn nonsense_in_the_drivers_event_area_is_a_missing_interrupt_at_most() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("events", Kind::Packed)?;
    for options in [scene.victim.clone(), scene.victim.clone().without(feature::EVENT_IDX)] {
        let mut guest = Guest::start(options)?;
        let areas: Vec<u64> = [guest.tx[0].ring().user_addresses(), guest.rx[0].ring().user_addresses()]
            .into_iter()
            .map(|[_, driver, _]| driver)
            .collect();
        for event in [0x0002_7fff, 0x0002_ffff, 0x0003_0000, 0xffff_ffff, 0x0001_0100, 0x8002_0100] {
            for &area in &areas {
                // SAFETY: the driver's event area, four bytes, in memory that the guest holds.
                unsafe { (area as *mut u32).write_volatile(event) };
            }
            scene.passes(&mut guest).with_context(|| format!("events {event:#x}"))?;
        }
    }
    scene.unharmed()
}

#[test]
fn rings_full_of_nonsense_harm_nobody() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("nonsense", Kind::Packed)?;
    let mut guest = Guest::start(Options { regions: 2, ..scene.victim.clone() })?;
    for seed in 0..150 {
        let mut random = Random(seed);
        let region = guest.memory().regions()[0];
        for _ in 0..3 {
            for queue in 0..2 {
                let ring = if queue == 0 { guest.rx[0].ring() } else { guest.tx[0].ring() };
                let ring = ring.packed();
                for at in 0..ring.size() {
                    let address = match random.below(8) {
                        0 => random.next(),
                        1 => region.guest + region.size - random.below(3000),
                        _ => region.guest + random.below(region.size),
                    };
                    let length = if random.below(8) == 0 { random.next() as u32 } else { random.below(4000) as u32 };
                    // Mostly such as the device would take next, in this lap or the one after.
                    let lap = [AVAIL, USED, AVAIL, USED, 0, AVAIL | USED, AVAIL, random.next() as u16];
                    let flags =
                        lap[random.below(8) as usize] | random.below(8) as u16 & !(random.below(2) as u16 * WRITE);
                    ring.write(at, Descriptor { address, length, id: random.next() as u16, flags });
                }
            }
            guest.tx[0].ring().kick_now();
            // For the lane to stumble over it, of which nothing can be seen: nonsense may be taken, or not.
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        ensure!(scene.lane.is_alive(), "seed {seed} killed the lane:\n{}", scene.lane.log());
        guest.reset().with_context(|| format!("seed {seed}"))?;
    }
    // What is left of the nonsense in the device comes first; a new device has none.
    drop(guest);
    scene.lane.remove("victim")?;
    scene.lane.add_port("victim", "vdev:net_ring2", 1)?;
    scene.recovers()?;
    scene.unharmed()
}
