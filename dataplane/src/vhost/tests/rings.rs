//! Rings come up, change and go as the front-end says.

use super::*;

fn start(size: u16, ring: u64, base: u16) -> RingShape {
    RingShape { size, desc: ring * 0x4000, base, version_1: true, kick: true, call: true }
}

#[test]
fn a_driver_brings_its_rings_up_in_order() {
    let bench = Bench::new();
    let mut front = bench.connect();
    front.negotiate();
    front.share_memory();
    front.set_up(0, 256, 0);
    front.set_up(1, 1024, 42);
    let heard = bench.recorder.take_until("ring 1", |heard| matches!(heard, Heard::Start(1, _)));
    assert_eq!(
        heard,
        [
            Heard::Event(LaneEventKind::PortListening),
            Heard::Event(LaneEventKind::FrontendConnected { pid: std::process::id() as i32 }),
            Heard::Negotiated(wanted()),
            Heard::Memory(MEMORY),
            Heard::Start(0, start(256, 0, 0)),
            Heard::Start(1, start(1024, 1, 42)),
        ]
    );
}

#[test]
fn rings_enabled_before_features_wait_for_them() {
    // What QEMU does since 2.x: it attaches its peer, and so enables its rings, long before the guest's driver is there.
    let bench = Bench::new();
    let mut front = bench.connect();
    front.ask(Request::GET_FEATURES, &[], &[]);
    front.done(Request::SET_PROTOCOL_FEATURES, &PROTOCOL_FEATURES.to_ne_bytes(), &[]);
    front.done(Request::SET_OWNER, &[], &[]);
    for ring in [0, 1, 2, 3] {
        front.enable(ring, true);
    }
    for ring in [2, 3] {
        front.enable(ring, false);
    }
    front.share_memory();
    for ring in [0, 2] {
        front.done(Request::SET_VRING_NUM, &ring_state(ring, 64), &[]);
        front.done(Request::SET_VRING_ADDR, &ring_address(ring, 0), &[]);
        front.kick(ring);
    }
    assert!(!bench.recorder.take().iter().any(|heard| matches!(heard, Heard::Start(..))), "features are not known");
    front.done(Request::SET_FEATURES, &wanted().to_ne_bytes(), &[]);
    let shape = RingShape { call: false, ..start(64, 0, 0) };
    assert_eq!(bench.recorder.take(), [Heard::Negotiated(wanted()), Heard::Start(0, shape)]);
}

#[test]
fn a_disabled_ring_stops_and_goes_on_where_it_was() {
    let bench = Bench::new();
    let mut front = bench.connect_and_start();
    front.enable(0, false);
    assert_eq!(bench.recorder.take(), [Heard::Stop(0)]);
    front.enable(0, false);
    assert_eq!(bench.recorder.take(), [], "disabled twice is disabled");
    front.enable(0, true);
    front.enable(0, true);
    assert_eq!(bench.recorder.take(), [Heard::Start(0, start(256, 0, STEP))]);
}

#[test]
fn get_vring_base_stops_and_returns_the_index() {
    let bench = Bench::new();
    let mut front = bench.connect_and_start();
    assert_eq!(front.stop(1), STEP);
    assert_eq!(bench.recorder.take(), [Heard::Stop(1)]);
    assert_eq!(front.stop(1), STEP, "asked again, it says the same");
    front.enable(1, false);
    front.enable(1, true);
    assert_eq!(bench.recorder.take(), [], "stopped until it is kicked again");
    front.set_up(1, 512, 0xfff0);
    let shape = start(512, 1, 0xfff0);
    let heard = bench.recorder.take();
    assert_eq!(heard.last(), Some(&Heard::Start(1, shape)), "{heard:?}");
    assert_eq!(front.stop(1), 0xfff0u16.wrapping_add(STEP), "the index wraps at 16 bits");
}

#[test]
fn the_base_of_a_packed_ring_has_two_halves() {
    for packed in [true, false] {
        let bench = Bench::new();
        let mut front = bench.connect();
        front.negotiate_with(if packed { wanted() } else { wanted() & !RING_PACKED });
        front.share_memory();
        // What QEMU says of a new ring: slot 0, wrap counter 1.
        front.set_up(1, 256, if packed { 0x8000_8000 } else { 0x8000 });
        assert_eq!(bench.recorder.take().last(), Some(&Heard::Start(1, start(256, 1, 0x8000))));
        let at = 0x8000 + u32::from(STEP);
        assert_eq!(front.stop_at(1), if packed { at << 16 | at } else { at });
        // The next start is not told what was before.
        front.set_up(1, 256, 0x8000);
        assert_eq!(bench.recorder.take().last(), Some(&Heard::Start(1, start(256, 1, 0x8000))));
    }
}

#[test]
fn a_ring_that_did_not_run_since_stands_where_the_front_end_said() {
    let bench = Bench::new();
    let mut front = bench.connect();
    front.negotiate_with(wanted());
    front.share_memory();
    // Slot 16 is available next, slot 3 used next: another back-end was stopped with chains in flight.
    front.done(Request::SET_VRING_BASE, &ring_state(1, 0x8003_8010), &[]);
    assert_eq!(front.stop_at(1), 0x8003_8010);
    front.set_up(1, 256, 0x8000_8000);
    let at = 0x8000 + u32::from(STEP);
    assert_eq!(front.stop_at(1), at << 16 | at, "it ran");
    front.done(Request::SET_VRING_BASE, &ring_state(1, 0x8003_8010), &[]);
    assert_eq!(front.stop_at(1), 0x8003_8010, "it did not run again");
}

#[test]
fn memory_is_replaced_under_running_rings() {
    let bench = Bench::new();
    let mut front = bench.connect_and_start();
    front.memory = memfd_create(c"ringspan-test", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&front.memory, 4 * MEMORY as i64).unwrap();
    let high = Region { guest: 1 << 32, size: 2 * MEMORY, user: USER + (1 << 32), offset: 2 * MEMORY };
    // Not sorted, as the specification allows.
    let table = memory_table(&[high, front.region()]);
    let fds = [front.memory.try_clone().unwrap(), front.memory.try_clone().unwrap()];
    front.done(Request::SET_MEM_TABLE, &table, &fds);
    assert_eq!(bench.recorder.take(), [Heard::Memory(3 * MEMORY)], "rings go on");
}

#[test]
fn memory_regions_come_and_go_one_by_one() {
    let bench = Bench::new();
    let mut front = bench.connect_and_start();
    assert_eq!(front.ask(Request::GET_MAX_MEM_SLOTS, &[], &[]), 509);
    let plugged = Region { guest: 1 << 32, size: MEMORY, user: USER + (1 << 32), offset: 0 };
    // A single region's message has the table's form: the first 8 bytes are padding there.
    let mut payload = memory_table(&[plugged]);
    payload[..8].fill(0);
    front.done(Request::ADD_MEM_REG, &payload, &[front.memory.try_clone().unwrap()]);
    front.done(Request::REM_MEM_REG, &payload, &[]);
    front.done(Request::ADD_MEM_REG, &payload, &[front.memory.try_clone().unwrap()]);
    front.done(Request::REM_MEM_REG, &payload, &[front.memory.try_clone().unwrap()]);
    let sizes = [2 * MEMORY, MEMORY, 2 * MEMORY, MEMORY].map(Heard::Memory);
    assert_eq!(bench.recorder.take(), sizes, "rings go on");
}

#[test]
fn each_pair_of_rings_may_say_the_same_about_memory() {
    let bench = Bench::new();
    let mut front = bench.connect_and_start();
    let plugged = Region { guest: 1 << 32, size: MEMORY, user: USER + (1 << 32), offset: 0 };
    let mut payload = memory_table(&[plugged]);
    payload[..8].fill(0);
    front.done(Request::ADD_MEM_REG, &payload, &[front.memory.try_clone().unwrap()]);
    front.done(Request::ADD_MEM_REG, &payload, &[front.memory.try_clone().unwrap()]);
    front.done(Request::REM_MEM_REG, &payload, &[]);
    front.done(Request::REM_MEM_REG, &payload, &[]);
    assert_eq!(bench.recorder.take(), [2 * MEMORY, MEMORY].map(Heard::Memory), "the second time changes nothing");
}

#[test]
fn a_ring_that_changes_while_it_runs_is_started_again() {
    let bench = Bench::new();
    let mut front = bench.connect_and_start();
    front.done(Request::SET_VRING_ADDR, &ring_address(0, 0), &[]);
    front.done(Request::SET_VRING_NUM, &ring_state(0, 256), &[]);
    assert_eq!(bench.recorder.take(), [], "the same again is no change");
    front.done(Request::SET_VRING_ADDR, &ring_address(0, 0x100), &[]);
    let shape = RingShape { desc: 0x100, ..start(256, 0, STEP) };
    assert_eq!(bench.recorder.take(), [Heard::Stop(0), Heard::Start(0, shape)]);
    front.kick(0);
    let shape = RingShape { base: 2 * STEP, ..shape };
    assert_eq!(bench.recorder.take(), [Heard::Stop(0), Heard::Start(0, shape)]);
}

#[test]
fn a_polled_ring_needs_no_kick_descriptor() {
    let bench = Bench::new();
    let mut front = bench.connect();
    front.negotiate();
    front.share_memory();
    front.done(Request::SET_VRING_NUM, &ring_state(1, 256), &[]);
    front.done(Request::SET_VRING_ADDR, &ring_address(1, 0), &[]);
    front.enable(1, true);
    bench.recorder.take();
    front.done(Request::SET_VRING_KICK, &0x101u64.to_ne_bytes(), &[]);
    let shape = RingShape { kick: false, call: false, ..start(256, 1, 0) };
    assert_eq!(bench.recorder.take(), [Heard::Start(1, shape)]);
    assert_eq!(front.stop(1), STEP);
    assert_eq!(bench.recorder.take(), [Heard::Stop(1)], "and what GET_VRING_BASE takes away does not start it");
}

#[test]
fn without_protocol_features_rings_are_enabled_at_once() {
    let bench = Bench::new();
    let mut front = bench.connect();
    let plain = |request, size| Header { flags: 1, ..Header::request(request, size) };
    let features = wanted() & !super::super::features::F_PROTOCOL_FEATURES & !(1 << 32);
    front.ask(Request::GET_FEATURES, &[], &[]);
    front.send_raw(&plain(Request::SET_OWNER, 0), &[], &[]);
    front.send_raw(&plain(Request::SET_FEATURES, 8), &features.to_ne_bytes(), &[]);
    let memory = [front.memory.try_clone().unwrap()];
    let table = memory_table(&[front.region()]);
    front.send_raw(&plain(Request::SET_MEM_TABLE, table.len()), &table, &memory);
    front.send_raw(&plain(Request::SET_VRING_NUM, 8), &ring_state(0, 128), &[]);
    front.send_raw(&plain(Request::SET_VRING_ADDR, 40), &ring_address(0, 0), &[]);
    let kick = [front.kick.as_fd().try_clone_to_owned().unwrap()];
    front.send_raw(&plain(Request::SET_VRING_KICK, 8), &0u64.to_ne_bytes(), &kick);
    let heard = bench.recorder.take_until("ring 0", |heard| matches!(heard, Heard::Start(0, _)));
    let shape = RingShape { version_1: false, call: false, ..start(128, 0, 0) };
    assert_eq!(heard.last(), Some(&Heard::Start(0, shape)));
    assert_eq!(front.stop(0), STEP, "nothing but the asked answers was sent");
}

#[test]
fn a_reloaded_driver_negotiates_again() {
    let bench = Bench::new();
    let mut front = bench.connect_and_start();
    for round in 0..20u64 {
        for ring in [0, 1] {
            front.enable(ring, false);
            front.stop(ring);
        }
        let features = wanted() & !((round % 2) << 29);
        front.done(Request::SET_FEATURES, &features.to_ne_bytes(), &[]);
        front.share_memory();
        for ring in [0, 1] {
            front.set_up(ring, 256, 0);
        }
        let heard = bench.recorder.take();
        let starts = heard.iter().filter(|heard| matches!(heard, Heard::Start(..))).count();
        assert_eq!(starts, 2, "round {round}: {heard:?}");
    }
}

#[test]
fn features_that_change_under_running_rings_start_them_again() {
    let bench = Bench::new();
    let mut front = bench.connect_and_start();
    front.done(Request::SET_FEATURES, &wanted().to_ne_bytes(), &[]);
    assert_eq!(bench.recorder.take(), [], "QEMU says it for each pair");
    let fewer = wanted() & !(1 << 32);
    front.done(Request::SET_FEATURES, &fewer.to_ne_bytes(), &[]);
    let shape = |ring| RingShape { version_1: false, ..start(256, ring, STEP) };
    assert_eq!(
        bench.recorder.take(),
        [
            Heard::Stop(0),
            Heard::Stop(1),
            Heard::Negotiated(fewer),
            Heard::Start(0, shape(0)),
            Heard::Start(1, shape(1))
        ]
    );
}

#[test]
fn a_reset_stops_everything_until_it_is_set_up_again() {
    for reset in [Request::RESET_OWNER, Request::RESET_DEVICE] {
        let bench = Bench::new();
        let mut front = bench.connect_and_start();
        front.done(reset, &[], &[]);
        assert_eq!(bench.recorder.take(), [Heard::Stop(0), Heard::Stop(1)], "{reset:?}");
        front.negotiate();
        for ring in [0, 1] {
            front.enable(ring, true);
        }
        assert_eq!(bench.recorder.take(), [Heard::Negotiated(wanted())], "{reset:?}: not kicked");
        front.set_up(0, 256, 5);
        assert_eq!(bench.recorder.take().last(), Some(&Heard::Start(0, start(256, 0, 5))), "{reset:?}");
    }
}

#[test]
fn another_call_descriptor_does_not_stop_a_ring() {
    let bench = Bench::new();
    let mut front = bench.connect_and_start();
    let call = [front.call.as_fd().try_clone_to_owned().unwrap()];
    front.done(Request::SET_VRING_CALL, &1u64.to_ne_bytes(), &call);
    front.done(Request::SET_VRING_CALL, &0x101u64.to_ne_bytes(), &[]);
    assert_eq!(bench.recorder.take(), [Heard::Call(1, true), Heard::Call(1, false)]);
    front.kick(1);
    let shape = RingShape { call: false, ..start(256, 1, STEP) };
    assert_eq!(bench.recorder.take(), [Heard::Stop(1), Heard::Start(1, shape)], "and it is remembered");
    front.stop(1);
    front.done(Request::SET_VRING_CALL, &1u64.to_ne_bytes(), &call);
    assert_eq!(bench.recorder.take(), [Heard::Stop(1)], "nobody to tell");
}

#[test]
fn descriptors_never_block_a_worker() {
    let bench = Bench::new();
    let front = bench.connect_and_start();
    // Blocking reads would hang here if the session had not changed that.
    assert_eq!(front.call.read(), Err(nix::errno::Errno::EAGAIN));
    assert_eq!(front.kick.read(), Err(nix::errno::Errno::EAGAIN));
}

#[test]
fn all_64_rings_run() {
    let bench = Bench::new();
    let mut front = bench.connect();
    front.negotiate();
    assert_eq!(front.ask(Request::GET_QUEUE_NUM, &[], &[]), 32, "pairs, not rings");
    front.share_memory();
    for ring in 0..64 {
        front.done(Request::SET_VRING_NUM, &ring_state(ring, 16), &[]);
        front.done(Request::SET_VRING_ADDR, &ring_address(ring % 32, 0).tap(|payload| payload[0] = ring as u8), &[]);
        front.kick(ring);
        front.enable(ring, true);
    }
    let starts = bench.recorder.take().into_iter().filter(|heard| matches!(heard, Heard::Start(..))).count();
    assert_eq!(starts, 64);
    drop(front);
    let heard = bench.recorder.disconnected();
    assert_eq!(heard.iter().filter(|heard| matches!(heard, Heard::Stop(_))).count(), 64);
    assert_eq!(heard[64], Heard::Memory(0), "memory is let go of after the last ring");
}

trait Tap: Sized {
    fn tap(self, change: impl FnOnce(&mut Self)) -> Self;
}

impl Tap for Vec<u8> {
    fn tap(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}
