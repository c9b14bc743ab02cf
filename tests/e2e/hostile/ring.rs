//! What a guest can do to its rings and its memory, whatever their format.

use anyhow::{Context, Result, ensure};
use ringspan_protocol::LaneEventKind;
use ringspan_testkit::guest::loopback::{self, Plan};
use ringspan_testkit::guest::ring::{INDIRECT, Span, WRITE};
use ringspan_testkit::guest::{Guest, Kind, Options, feature};
use ringspan_testkit::{needs, over_both};

use super::{Act, NOWHERE, SOON, Scene, frames_come, good};

over_both!(
    each_bad_buffer_stops_its_own_port_until_the_device_is_reset,
    indirect_descriptors_that_were_not_negotiated_stop_the_port,
    chains_that_hold_no_frame_cost_that_frame_only,
    memory_that_is_cut_off_stops_the_port,
    a_ring_that_is_unmapped_while_it_runs_stops_the_port,
    memory_may_be_replaced_while_rings_run,
    a_ring_that_shrinks_while_it_runs_harms_nobody,
);

fn part(address: u64, length: u32, flags: u16) -> (Span, u16) {
    (Span { address, length }, flags)
}

/// Makes a chain of these available.
fn send(guest: &mut Guest, parts: &[(Span, u16)]) -> Result<()> {
    guest.tx[0].ring().send_parts(0, parts);
    Ok(())
}

/// Makes a table of one good buffer, of `length` bytes as it is told, available, with more parts behind it.
fn send_table(guest: &mut Guest, length: u32, behind: &[(Span, u16)]) -> Result<()> {
    let spans = [Span { address: good(guest)?, length: 100 }; 2];
    let table = guest.memory().allocate(64, 64)?;
    let ring = guest.tx[0].ring();
    ring.write_table(&table, &spans, 0);
    let parts = [&[part(table.guest, length, INDIRECT)], behind].concat();
    send(guest, &parts)
}

/// Makes all posted receive buffers like this one, and lets a frame come.
fn receive_into(guest: &mut Guest, address: u64, length: u32) -> Result<()> {
    let ring = guest.rx[0].ring();
    for at in 0..ring.size() {
        ring.redirect(at, Span { address, length });
    }
    frames_come(guest);
    Ok(())
}

const ACTS: &[Act] = &[
    Act {
        name: "a buffer outside of memory",
        deed: |guest| send(guest, &[part(NOWHERE, 100, 0)]),
        says: "outside guest memory",
    },
    Act {
        name: "a second buffer outside of memory",
        deed: |guest| {
            let at = good(guest)?;
            send(guest, &[part(at, 12, 0), part(NOWHERE, 100, 0)])
        },
        says: "outside guest memory",
    },
    Act {
        name: "a buffer that wraps around the address space",
        deed: |guest| send(guest, &[part(u64::MAX - 50, 100, 0)]),
        says: "outside guest memory",
    },
    Act {
        name: "a buffer that runs over the end of memory",
        deed: |guest| {
            let region = *guest.memory().regions().last().context("no memory")?;
            send(guest, &[part(region.guest + region.size - 50, 100, 0)])
        },
        says: "outside guest memory",
    },
    Act {
        name: "an indirect table outside of memory",
        deed: |guest| send(guest, &[part(NOWHERE, 64, INDIRECT)]),
        says: "outside guest memory",
    },
    Act {
        name: "a chain that goes on behind its indirect table",
        deed: |guest| {
            let at = good(guest)?;
            send_table(guest, 16, &[part(at, 64, 0)])
        },
        says: "behind its indirect table",
    },
    Act { name: "an empty indirect table", deed: |guest| send_table(guest, 0, &[]), says: "has 0 bytes" },
    Act {
        name: "half a descriptor in an indirect table",
        deed: |guest| send_table(guest, 24, &[]),
        says: "has 24 bytes",
    },
    Act {
        name: "an indirect table of 4 GiB",
        deed: |guest| send_table(guest, u32::MAX - 15, &[]),
        says: "indirect table",
    },
    Act {
        name: "receive buffers outside of memory",
        deed: |guest| receive_into(guest, NOWHERE, 2048),
        says: "outside guest memory",
    },
    Act {
        name: "receive buffers that wrap around the address space",
        deed: |guest| receive_into(guest, u64::MAX - 10, 2048),
        says: "outside guest memory",
    },
];

fn each_bad_buffer_stops_its_own_port_until_the_device_is_reset(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("acts", kind)?;
    scene.commit(ACTS)?;
    scene.unharmed()
}

fn indirect_descriptors_that_were_not_negotiated_stop_the_port(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("indirect", kind)?;
    let mut guest = Guest::start(scene.victim.clone().without(feature::INDIRECT_DESC))?;
    scene.passes(&mut guest)?;
    send_table(&mut guest, 16, &[])?;
    let reason = scene.broken()?;
    ensure!(reason.contains("not negotiated"), "{reason}");
    scene.unharmed()
}

fn chains_that_hold_no_frame_cost_that_frame_only(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("malformed", kind)?;
    let mut guest = Guest::start(scene.victim.clone())?;
    let at = good(&guest)?;
    let chains: &[&[(Span, u16)]] = &[
        &[part(at, 0, 0)],
        &[part(at, 5, 0)],
        &[part(at, 12, 0)],
        &[part(at, 25, 0)],
        &[part(at, 100, WRITE)],
        &[part(at, 12, 0), part(at, 100, WRITE)],
        &[part(at, 12, 0), part(at, 0, 0), part(at, 1, 0)],
    ];
    for (i, chain) in (0..).zip(chains) {
        guest.tx[0].ring().send_parts(i, chain);
        // The next chain may need the same descriptors: this one must be back first.
        let start = std::time::Instant::now();
        while guest.tx[0].ring().pending() != i + 1 {
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
    guest.tx[0].ring().send_parts(20, &[part(header, 12, 0), part(empty, 0, 0), part(body, 60, 0)]);
    scene.lane.wait_totals("victim", |from, to| (from.sent, to.sent, to.sent_bytes) == (1, 1, 60))?;
    guest.reset()?;
    scene.passes(&mut guest)?;
    scene.unharmed()
}

fn memory_that_is_cut_off_stops_the_port(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("cut", kind)?;
    // The buffers only: the rings still work.
    let mut guest = Guest::start(scene.victim.clone())?;
    scene.passes(&mut guest)?;
    let [_, _, last] = guest.tx[0].ring().user_addresses();
    let start = guest.memory().regions()[0];
    let keep = (last - start.user) as usize + 4096;
    guest.memory().truncate(keep)?;
    let beyond = start.guest + start.size - 4096;
    send(&mut guest, &[part(beyond, 100, 0)])?;
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

fn a_ring_that_is_unmapped_while_it_runs_stops_the_port(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("unmapped", kind)?;
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

fn memory_may_be_replaced_while_rings_run(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("replaced", kind)?;
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

fn a_ring_that_shrinks_while_it_runs_harms_nobody(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("shrunk", kind)?;
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
