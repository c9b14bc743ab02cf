//! What a guest can do to its rings and its memory.

use anyhow::{Context, Result, ensure};
use ringspan_protocol::LaneEventKind;
use ringspan_testkit::guest::loopback::{self, Plan};
use ringspan_testkit::guest::ring::{Descriptor, Format, INDIRECT, NEXT, WRITE};
use ringspan_testkit::guest::{Guest, Options, feature};
use ringspan_testkit::needs;

use super::{SOON, Scene};

/// An address that no guest of ours has memory at.
const NOWHERE: u64 = 1 << 40;

/// What is done to a running guest's rings, and words that the lane must say about it.
struct Act {
    name: &'static str,
    deed: fn(&mut Guest) -> Result<()>,
    says: &'static str,
}

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

/// A good buffer of 4096 bytes.
fn good(guest: &Guest) -> Result<u64> {
    Ok(guest.memory().allocate(4096, 16)?.guest)
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
    guest.tx[0].transmit(1, |_, room| {
        room.put(0, &[0x55; 60]);
        60
    });
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
        name: "a buffer outside of memory",
        deed: |guest| send(guest, &[descriptor(NOWHERE, 100, 0, 0)]),
        says: "outside guest memory",
    },
    Act {
        name: "a buffer that wraps around the address space",
        deed: |guest| send(guest, &[descriptor(u64::MAX - 50, 100, 0, 0)]),
        says: "outside guest memory",
    },
    Act {
        name: "a buffer that runs over the end of memory",
        deed: |guest| {
            let region = *guest.memory().regions().last().context("no memory")?;
            send(guest, &[descriptor(region.guest + region.size - 50, 100, 0, 0)])
        },
        says: "outside guest memory",
    },
    Act {
        name: "an indirect table outside of memory",
        deed: |guest| send(guest, &[descriptor(NOWHERE, 64, INDIRECT, 0)]),
        says: "outside guest memory",
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
        name: "a chain that goes on behind its indirect table",
        deed: |guest| {
            let at = good(guest)?;
            send_indirect(guest, NEXT, 16, &[descriptor(at, 100, 0, 0)])
        },
        says: "behind its indirect table",
    },
    Act { name: "an empty indirect table", deed: |guest| send_indirect(guest, 0, 0, &[]), says: "has 0 bytes" },
    Act {
        name: "half a descriptor in an indirect table",
        deed: |guest| {
            let at = good(guest)?;
            send_indirect(guest, 0, 24, &[descriptor(at, 100, 0, 0), descriptor(at, 100, 0, 0)])
        },
        says: "has 24 bytes",
    },
    Act {
        name: "an indirect table of 4 GiB",
        deed: |guest| send_indirect(guest, 0, u32::MAX - 15, &[]),
        says: "indirect table",
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
        name: "receive buffers outside of memory",
        deed: |guest| receive_into(guest, descriptor(NOWHERE, 2048, WRITE, 0)),
        says: "outside guest memory",
    },
    Act {
        name: "receive buffers that wrap around the address space",
        deed: |guest| receive_into(guest, descriptor(u64::MAX - 10, 2048, WRITE, 0)),
        says: "outside guest memory",
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
    let mut scene = Scene::new("acts")?;
    let mut guest = Guest::start(scene.victim.clone())?;
    for act in ACTS {
        let mut one = || -> Result<()> {
            scene.passes(&mut guest).context("before")?;
            (act.deed)(&mut guest)?;
            let reason = scene.broken()?;
            ensure!(reason.contains(act.says), "the lane says {reason:?}, nothing of {:?}", act.says);
            guest.reset().context("resetting the device")?;
            scene.passes(&mut guest).context("after the reset")
        };
        one().with_context(|| act.name)?;
    }
    // A port that was not reset recovers when the next guest comes.
    (ACTS[0].deed)(&mut guest)?;
    scene.broken()?;
    drop(guest);
    scene.recovers()?;
    scene.unharmed()
}

#[test]
fn indirect_descriptors_that_were_not_negotiated_stop_the_port() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("indirect")?;
    let mut guest = Guest::start(scene.victim.clone().without(feature::INDIRECT_DESC))?;
    scene.passes(&mut guest)?;
    let at = good(&guest)?;
    send_indirect(&mut guest, 0, 16, &[descriptor(at, 100, 0, 0)])?;
    let reason = scene.broken()?;
    ensure!(reason.contains("not negotiated"), "{reason}");
    scene.unharmed()
}

#[test]
fn chains_that_hold_no_frame_cost_that_frame_only() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("malformed")?;
    let mut guest = Guest::start(scene.victim.clone())?;
    let at = good(&guest)?;
    let chains: &[&[Descriptor]] = &[
        &[descriptor(at, 0, 0, 0)],
        &[descriptor(at, 5, 0, 0)],
        &[descriptor(at, 12, 0, 0)],
        &[descriptor(at, 25, 0, 0)],
        &[descriptor(at, 100, WRITE, 0)],
        &[descriptor(at, 12, NEXT, 1), descriptor(at, 100, WRITE, 0)],
        &[descriptor(at, 12, NEXT, 1), descriptor(at, 0, NEXT, 2), descriptor(at, 1, 0, 0)],
    ];
    for (i, chain) in chains.iter().enumerate() {
        send(&mut guest, chain)?;
        // Descriptors 0 and up are used again: each chain must be back first.
        let start = std::time::Instant::now();
        while guest.tx[0].ring().pending() != i as u16 + 1 {
            ensure!(start.elapsed() < SOON, "chain {i} does not come back: {}", scene.lane.log());
            std::thread::yield_now();
        }
    }
    let count = chains.len() as u64;
    scene.lane.wait_totals("victim", |from, to| {
        (from.received, from.sent, from.drops.malformed_chain, from.drops.total(), to.received)
            == (count, 0, count, count, 0)
    })?;
    // The port was never stopped. A frame with empty descriptors between is a frame.
    let frame = guest.memory().allocate(4096, 16)?;
    // SAFETY: the piece is long enough and nobody else's.
    unsafe { frame.start.write_bytes(0, 72) };
    let (header, empty, body) = (frame.guest, frame.guest, frame.guest + 12);
    send(&mut guest, &[descriptor(header, 12, NEXT, 1), descriptor(empty, 0, NEXT, 2), descriptor(body, 60, 0, 0)])?;
    scene.lane.wait_totals("victim", |from, to| (from.sent, to.sent, to.sent_bytes) == (1, 1, 60))?;
    guest.reset()?;
    scene.passes(&mut guest)?;
    scene.unharmed()
}

/// splitmix64, for rings full of nonsense.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

#[test]
fn rings_full_of_nonsense_harm_nobody() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("nonsense")?;
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

#[test]
fn memory_that_is_cut_off_stops_the_port() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("cut")?;
    // The buffers only: the rings still work.
    let mut guest = Guest::start(scene.victim.clone())?;
    scene.passes(&mut guest)?;
    let [_, _, used] = guest.tx[0].ring().user_addresses();
    let start = guest.memory().regions()[0];
    let keep = (used - start.user) as usize + 4096;
    guest.memory().truncate(keep)?;
    let beyond = start.guest + start.size - 4096;
    send(&mut guest, &[descriptor(beyond, 100, 0, 0)])?;
    scene.broken().context("buffers cut off")?;
    drop(guest);
    scene.recovers()?;
    // Everything.
    let mut guest = Guest::start(scene.victim.clone())?;
    scene.passes(&mut guest)?;
    guest.memory().truncate(0)?;
    guest.tx[0].ring().kick_now();
    scene.broken().context("all memory cut off")?;
    drop(guest);
    scene.recovers()?;
    scene.unharmed()
}

#[test]
fn a_ring_that_is_unmapped_while_it_runs_stops_the_port() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("unmapped")?;
    let options = Options { regions: 2, region_gap: 1 << 30, ..scene.victim.clone() };
    let mut guest = Guest::start(options)?;
    scene.passes(&mut guest)?;
    let memory = std::sync::Arc::clone(guest.memory());
    // The table's second region, without the first, where the rings are. Whether it is acknowledged does not matter.
    let _ = guest.frontend()?.set_mem_table(&memory, &memory.regions()[1..]);
    let seen = scene.lane.wait_event("victim", SOON, |kind| {
        matches!(kind, LaneEventKind::RingBroken { .. } | LaneEventKind::FrontendDisconnected { .. })
    });
    seen.context("rings without memory")?;
    drop(guest);
    scene.recovers()?;
    scene.unharmed()
}

#[test]
fn memory_may_be_replaced_while_rings_run() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("replaced")?;
    let options = Options { regions: 2, region_gap: 1 << 30, ..scene.victim.clone() };
    let mut guest = Guest::start(options)?;
    let memory = std::sync::Arc::clone(guest.memory());
    for _ in 0..50 {
        scene.passes(&mut guest)?;
        guest.frontend()?.set_mem_table(&memory, memory.regions())?;
    }
    loopback::run(&mut guest, Plan::new(2000, 64))?;
    scene.unharmed()
}

#[test]
fn a_ring_that_shrinks_while_it_runs_harms_nobody() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("shrunk")?;
    for size in [128, 2, 1, 0, 3, 65535, 32768] {
        let mut guest = Guest::start(scene.victim.clone())?;
        scene.passes(&mut guest)?;
        // Refused, ignored, or the end of the connection: all are right, as long as the next guest is served.
        let _ = guest.frontend()?.set_vring_num(1, size);
        let _ = guest.tx[0].transmit(200, |_, room| {
            room.put(0, &[0x55; 60]);
            60
        });
        drop(guest);
        scene.lane.remove("victim")?;
        scene.lane.add_port("victim", "vdev:net_ring1", 1)?;
        scene.recovers().with_context(|| format!("after a ring of {size}"))?;
    }
    scene.unharmed()
}
