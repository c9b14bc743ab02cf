//! What a guest can do to a split ring: its indices, and descriptors that name the next one.

use anyhow::{Context, Result, ensure};
use ringspan_testkit::guest::ring::{Descriptor, Format, INDIRECT, NEXT, WRITE};
use ringspan_testkit::guest::{Guest, Kind};
use ringspan_testkit::needs;

use super::{Act, Random, Scene, frames_come, good};

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor { address, length, flags, next }
}

/// Makes these descriptors, from number 0 on, and the chain that starts with 0 available.
fn send(guest: &mut Guest, chain: &[Descriptor]) -> Result<()> {
    let ring = guest.tx[0].ring().split();
    for (i, &descriptor) in chain.iter().enumerate() {
        ring.describe(i as u16, descriptor);
    }
    ring.push(0);
    ring.publish();
    Ok(())
}

/// Makes a chain of one indirect descriptor over a table of these.
fn send_indirect(guest: &mut Guest, flags: u16, length: u32, table: &[Descriptor]) -> Result<()> {
    let piece = guest.memory().allocate(16 * table.len().max(1), 16)?;
    for (i, &descriptor) in table.iter().enumerate() {
        // SAFETY: the piece has room for the table and is nobody else's.
        unsafe { piece.start.cast::<Descriptor>().add(i).write_volatile(descriptor) };
    }
    send(guest, &[descriptor(piece.guest, length, INDIRECT | flags, 1), descriptor(piece.guest, 64, 0, 0)])
}

/// Makes all posted receive buffers like this one, and lets a frame come.
fn receive_into(guest: &mut Guest, buffer: Descriptor) -> Result<()> {
    for i in 0..guest.rx[0].ring().size() {
        guest.rx[0].ring().split().describe(i, buffer);
    }
    frames_come(guest);
    Ok(())
}

const ACTS: &[Act] = &[
    Act {
        name: "an available index further ahead than the ring is long",
        deed: |guest| {
            let ring = guest.tx[0].ring().split();
            ring.forge_avail_index(ring.avail_index().wrapping_add(ring.size() + 1));
            Ok(())
        },
        says: "available index",
    },
    Act {
        name: "an available index that goes back",
        deed: |guest| {
            let ring = guest.rx[0].ring().split();
            ring.forge_avail_index(ring.used_index().wrapping_sub(1));
            receive_into(guest, Descriptor::default())
        },
        says: "available index",
    },
    Act {
        name: "a head outside of the table",
        deed: |guest| {
            let ring = guest.tx[0].ring().split();
            ring.push(ring.size());
            ring.publish();
            Ok(())
        },
        says: "available in a ring of",
    },
    Act {
        name: "a descriptor that follows itself",
        deed: |guest| {
            let at = good(guest)?;
            send(guest, &[descriptor(at, 64, NEXT, 0)])
        },
        says: "loops",
    },
    Act {
        name: "two descriptors that follow each other",
        deed: |guest| {
            let at = good(guest)?;
            send(guest, &[descriptor(at, 1, NEXT, 1), descriptor(at, 1, NEXT, 0)])
        },
        says: "loops",
    },
    Act {
        name: "a loop of descriptors without bytes",
        deed: |guest| {
            let at = good(guest)?;
            send(guest, &[descriptor(at, 0, NEXT, 1), descriptor(at, 0, NEXT, 0)])
        },
        says: "loops",
    },
    Act {
        name: "a next descriptor outside of the table",
        deed: |guest| {
            let (at, size) = (good(guest)?, guest.tx[0].ring().size());
            send(guest, &[descriptor(at, 64, NEXT, size)])
        },
        says: "goes on at",
    },
    Act {
        name: "an indirect table inside of another",
        deed: |guest| {
            let at = good(guest)?;
            send_indirect(guest, 0, 16, &[descriptor(at, 16, INDIRECT, 0)])
        },
        says: "inside an indirect table",
    },
    Act {
        name: "a loop inside of an indirect table",
        deed: |guest| {
            let at = good(guest)?;
            send_indirect(guest, 0, 32, &[descriptor(at, 1, NEXT, 1), descriptor(at, 1, NEXT, 0)])
        },
        says: "loops",
    },
    Act {
        name: "a next descriptor outside of its indirect table",
        deed: |guest| {
            let at = good(guest)?;
            send_indirect(guest, 0, 16, &[descriptor(at, 1, NEXT, 1)])
        },
        says: "goes on at",
    },
    Act {
        name: "receive buffers without bytes in a loop",
        deed: |guest| {
            let at = good(guest)?;
            receive_into(guest, descriptor(at, 0, WRITE | NEXT, 0))
        },
        says: "loops",
    },
];

#[test]
fn each_broken_ring_stops_its_own_port_until_the_device_is_reset() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("split", Kind::Split)?;
    scene.commit(ACTS)?;
    scene.unharmed()
}

#[test]
fn rings_full_of_nonsense_harm_nobody() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("nonsense", Kind::Split)?;
    let mut guest = Guest::start(scene.victim.clone())?;
    for seed in 0..150 {
        let mut random = Random(seed);
        let region = guest.memory().regions()[0];
        for _ in 0..3 {
            for queue in 0..2 {
                for i in 0..guest.tx[0].ring().size() {
                    let address = match random.below(8) {
                        0 => random.next(),
                        1 => region.guest + region.size - random.below(3000),
                        _ => region.guest + random.below(region.size),
                    };
                    let length = if random.below(8) == 0 { random.next() as u32 } else { random.below(4000) as u32 };
                    let nonsense = descriptor(address, length, random.below(8) as u16, random.below(300) as u16);
                    let ring = if queue == 0 { guest.rx[0].ring() } else { guest.tx[0].ring() };
                    ring.split().describe(i, nonsense);
                }
            }
            let ring = guest.tx[0].ring().split();
            (0..random.below(200)).for_each(|_| ring.push(random.below(260) as u16));
            ring.publish();
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
