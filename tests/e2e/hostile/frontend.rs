//! What a front-end can do on the socket.

use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ringspan_protocol::LaneEventKind;
use ringspan_testkit::guest::message::{FLAG_REPLY, FLAG_VERSION, Message, Request, longs, words};
use ringspan_testkit::guest::{FrontEnd, Guest, Kind, Options, StoppedOnPurpose};
use ringspan_testkit::{needs, over_both};

use super::{SOON, Scene};

over_both!(
    a_front_end_may_die_at_every_message_of_the_handshake,
    bad_messages_end_their_own_connection_at_most,
    the_same_messages_as_the_first_of_a_connection,
    half_a_message_and_then_silence_blocks_nothing,
    a_front_end_that_reads_no_answers_blocks_nothing,
    rings_that_are_switched_all_the_time_harm_nobody,
);

fn a_front_end_may_die_at_every_message_of_the_handshake(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("dies", kind)?;
    let mut messages = 0;
    loop {
        let options = Options { stop_after: Some(messages), ..scene.victim.clone() };
        match Guest::start(options) {
            Ok(_) => break,
            Err(error) if error.downcast_ref::<StoppedOnPurpose>().is_some() => {}
            Err(error) => return Err(error.context(format!("before message {messages}"))),
        }
        messages += 1;
        // Every few, a guest that means it.
        if messages % 4 == 0 {
            scene.recovers().with_context(|| format!("after a front-end that died at message {messages}"))?;
        }
    }
    ensure!(messages > 20, "a handshake of only {messages} messages");
    scene.recovers()?;
    scene.unharmed()
}

/// A message, its file descriptors, and whether no back-end could go on after it.
struct Bad {
    name: &'static str,
    bytes: Vec<u8>,
    fds: Vec<RawFd>,
    ends: bool,
}

fn message(request: u32, flags: u32, size: u32, payload: Vec<u8>) -> Vec<u8> {
    Message { request, flags, size, payload }.bytes()
}

fn well_formed(request: Request, payload: Vec<u8>) -> Vec<u8> {
    Message::new(request, payload).bytes()
}

fn region_table(count: u32, regions: &[[u64; 4]]) -> Vec<u8> {
    let mut payload = words(&[count, 0]);
    regions.iter().for_each(|region| payload.extend(longs(region)));
    payload
}

/// Messages that are wrong in themselves or for a ring that runs. `file` is a descriptor of memory, `other` of something else.
fn bad_messages(file: RawFd, other: RawFd) -> Vec<Bad> {
    let bad = |name, bytes, ends| Bad { name, bytes, fds: vec![], ends };
    let with = |name, bytes, fds: &[RawFd]| Bad { name, bytes, fds: fds.to_vec(), ends: false };
    let set_table =
        |regions: &[[u64; 4]]| well_formed(Request::SetMemTable, region_table(regions.len() as u32, regions));
    let one = [[1 << 32, 4096, 1 << 32, 0]];
    vec![
        bad("a payload of 4 GiB", message(2, FLAG_VERSION, u32::MAX, vec![]), true),
        bad("a payload of 1 MiB", message(2, FLAG_VERSION, 1 << 20, vec![0; 1 << 20]), true),
        bad("a payload that is too long for its request", message(2, FLAG_VERSION, 4000, vec![0; 4000]), true),
        bad("a payload that is too short for its request", message(9, FLAG_VERSION, 8, vec![0; 8]), true),
        bad("version 0", message(1, 0, 0, vec![]), true),
        bad("version 3", message(1, 3, 0, vec![]), true),
        bad("an answer that nobody asked for", message(1, FLAG_VERSION | FLAG_REPLY, 8, vec![0; 8]), false),
        bad("request 0", message(0, FLAG_VERSION, 0, vec![]), false),
        bad("request 200", message(200, FLAG_VERSION, 0, vec![]), false),
        bad("request 4294967295", message(u32::MAX, FLAG_VERSION, 0, vec![]), false),
        bad("all bits", vec![0xff; 4096], true),
        bad("all zeros", vec![0; 4096], true),
        bad("text", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), true),
        bad("features that were not offered", well_formed(Request::SetFeatures, longs(&[u64::MAX])), false),
        bad(
            "protocol features that were not offered",
            well_formed(Request::SetProtocolFeatures, longs(&[u64::MAX])),
            false,
        ),
        bad("a second owner", well_formed(Request::SetOwner, vec![]), false),
        bad("a table of no region", set_table(&[]), false),
        bad("a table of more regions than it has", well_formed(Request::SetMemTable, region_table(8, &one)), false),
        bad("a table of 65536 regions", well_formed(Request::SetMemTable, region_table(65536, &one)), false),
        bad("a region without a descriptor", set_table(&one), false),
        with("a region of no bytes", set_table(&[[1 << 32, 0, 1 << 32, 0]]), &[file]),
        with("a region at the end of the address space", set_table(&[[u64::MAX - 4095, 8192, 0, 0]]), &[file]),
        with("a region with an offset behind its file", set_table(&[[1 << 32, 4096, 1 << 32, 1 << 50]]), &[file]),
        with("a region that is longer than its file", set_table(&[[1 << 32, 1 << 45, 1 << 32, 0]]), &[file]),
        with("an offset that is not page-aligned", set_table(&[[1 << 32, 4096, 1 << 32, 3]]), &[file]),
        with("regions that overlap", set_table(&[one[0], one[0]]), &[file, file]),
        with("a region of something that is no file", set_table(&one), &[other]),
        with("more descriptors than regions", set_table(&one), &[file; 20]),
        with("descriptors with a message that has none", well_formed(Request::GetFeatures, vec![]), &[file; 8]),
        with("a kick that is a file", well_formed(Request::SetVringKick, longs(&[1])), &[file]),
        with("a call that is a file", well_formed(Request::SetVringCall, longs(&[0])), &[file]),
        with("a kick for a ring that is not there", well_formed(Request::SetVringKick, longs(&[200])), &[other]),
        with("a kick that was announced and not sent", well_formed(Request::SetVringKick, longs(&[1])), &[]),
        with("a log that is no file", well_formed(Request::SetLogBase, longs(&[1 << 20, 0])), &[other]),
        with("a log of no bytes", well_formed(Request::SetLogBase, longs(&[0, 0])), &[file]),
        bad("ring 65535 enabled", well_formed(Request::SetVringEnable, words(&[65535, 1])), false),
        bad("a ring enabled 7 times over", well_formed(Request::SetVringEnable, words(&[0, 7])), false),
        bad("the base of ring 4294967295", well_formed(Request::SetVringBase, words(&[u32::MAX, 0])), false),
        bad("a base beyond 16 bits", well_formed(Request::SetVringBase, words(&[1, u32::MAX])), false),
        bad("the size of ring 65535", well_formed(Request::SetVringNum, words(&[65535, 256])), false),
        bad("a ring of 4294967295", well_formed(Request::SetVringNum, words(&[1, u32::MAX])), false),
        bad("a ring outside of memory", vring_addr(1, [1 << 50, 1 << 51, 1 << 52]), false),
        bad(
            "a ring at the end of the address space",
            vring_addr(1, [u64::MAX - 15, u64::MAX - 3, u64::MAX - 1]),
            false,
        ),
        bad("the end of a ring that is not there", well_formed(Request::GetVringBase, words(&[77, 0])), false),
        bad("a memory slot removed that never was", well_formed(Request::RemMemReg, longs(&[0, 1, 2, 3, 4])), false),
        bad("a configuration of 4000 bytes", well_formed(Request::GetConfig, words(&[4000, 4000, 0])), false),
    ]
}

fn vring_addr(ring: u32, [desc, used, avail]: [u64; 3]) -> Vec<u8> {
    let mut payload = words(&[ring, 0]);
    payload.extend(longs(&[desc, used, avail, 0]));
    well_formed(Request::SetVringAddr, payload)
}

/// Reads until the lane ends the connection, or is silent for a moment; whether it ended.
fn ended(frontend: &FrontEnd, patience: Duration) -> Result<bool> {
    let mut stream = frontend.stream();
    stream.set_read_timeout(Some(patience))?;
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
            Err(_) => return Ok(true),
        }
    }
}

fn bad_messages_end_their_own_connection_at_most(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("messages", kind)?;
    let file = tempfile::tempfile()?;
    file.set_len(8192)?;
    let other = std::os::unix::net::UnixStream::pair()?;
    for bad in bad_messages(file.as_raw_fd(), other.0.as_raw_fd()) {
        let mut one = || -> Result<()> {
            let mut guest = Guest::start(scene.victim.clone())?;
            scene.passes(&mut guest)?;
            // The lane may end the connection while this is still being sent.
            let _ = guest.frontend()?.raw(&bad.bytes, &bad.fds);
            let patience = if bad.ends { SOON } else { Duration::from_millis(50) };
            let over = ended(guest.frontend()?, patience)?;
            ensure!(over || !bad.ends, "the connection goes on");
            drop(guest);
            let end = scene.lane.wait_event("victim", SOON, |kind| {
                matches!(kind, LaneEventKind::FrontendDisconnected { .. } | LaneEventKind::HandshakeFailed { .. })
            })?;
            match end {
                LaneEventKind::FrontendDisconnected { reason } | LaneEventKind::HandshakeFailed { reason } => {
                    ensure!(!reason.is_empty(), "the lane gives no reason");
                }
                other => bail!("{other:?} was not waited for"),
            }
            ensure!(scene.lane.is_alive(), "the lane died:\n{}", scene.lane.log());
            scene.recovers()
        };
        one().with_context(|| bad.name)?;
    }
    scene.unharmed()
}

fn the_same_messages_as_the_first_of_a_connection(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("first", kind)?;
    let file = tempfile::tempfile()?;
    file.set_len(8192)?;
    let other = std::os::unix::net::UnixStream::pair()?;
    for bad in bad_messages(file.as_raw_fd(), other.0.as_raw_fd()) {
        let mut frontend = FrontEnd::connect(&scene.victim.socket, SOON)?;
        let _ = frontend.raw(&bad.bytes, &bad.fds);
        let _ = ended(&frontend, Duration::from_millis(20))?;
        drop(frontend);
        ensure!(scene.lane.is_alive(), "{}: the lane died:\n{}", bad.name, scene.lane.log());
        scene.recovers().with_context(|| bad.name)?;
    }
    scene.unharmed()
}

fn half_a_message_and_then_silence_blocks_nothing(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("half", kind)?;
    let whole = well_formed(Request::SetFeatures, longs(&[0]));
    for length in [0, 1, 11, 12, 13, whole.len() - 1] {
        let mut frontend = FrontEnd::connect(&scene.victim.socket, SOON)?;
        if length > 0 {
            frontend.raw(&whole[..length], &[])?;
        }
        // The lane answers control, and the neighbour's frames pass, while the rest does not come.
        scene.lane.port("victim")?;
        scene.neighbour.as_ref().context("no neighbour")?.wait_more(500, SOON)?;
        drop(frontend);
        scene.recovers().with_context(|| format!("after {length} bytes"))?;
    }
    // A port can be removed while a front-end says nothing.
    let silent = FrontEnd::connect(&scene.victim.socket, SOON)?;
    scene.lane.remove("victim")?;
    drop(silent);
    scene.lane.add_port("victim", "vdev:net_ring1", 1)?;
    scene.recovers()?;
    scene.unharmed()
}

fn a_front_end_that_reads_no_answers_blocks_nothing(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("deaf", kind)?;
    let mut frontend = FrontEnd::connect(&scene.victim.socket, SOON)?;
    frontend.stream().set_write_timeout(Some(Duration::from_millis(200)))?;
    let ask = well_formed(Request::GetFeatures, vec![]);
    for _ in 0..100_000 {
        if frontend.raw(&ask, &[]).is_err() {
            break;
        }
    }
    scene.lane.port("victim")?;
    scene.neighbour.as_ref().context("no neighbour")?.wait_more(500, SOON)?;
    drop(frontend);
    scene.recovers()?;
    scene.unharmed()
}

fn rings_that_are_switched_all_the_time_harm_nobody(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("switch", kind)?;
    let mut guest = Guest::start(scene.victim.clone().pairs(2))?;
    let frames = |scene: &Scene| scene.neighbour.as_ref().map_or(0, |neighbour| neighbour.frames());
    let before = frames(&scene);
    for _ in 0..1000 {
        for (ring, enabled) in [(2, false), (3, false), (3, true), (2, true)] {
            guest.frontend()?.set_vring_enable(ring, enabled)?;
        }
    }
    let passed = frames(&scene) - before;
    ensure!(passed > 4000, "{passed} frames of the neighbour's beside 4000 switches");
    drop(guest);
    scene.recovers()?;
    scene.unharmed()
}
