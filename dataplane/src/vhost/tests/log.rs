//! A migration as the front-end tells of it.

use super::*;

/// Pages of the front-end's memory are covered by as many bytes.
const LOG: u64 = MEMORY / 4096 / 8;

fn memory(size: u64) -> OwnedFd {
    let file = memfd_create(c"ringspan-test-log", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&file, size as i64).unwrap();
    file
}

fn base(size: u64, offset: u64) -> Vec<u8> {
    [size.to_ne_bytes(), offset.to_ne_bytes()].concat()
}

/// The address of ring 1 with its place for the log.
fn logged_address(ring: u32, log: u64) -> Vec<u8> {
    let mut payload = ring_address(ring, 0);
    payload[4..8].copy_from_slice(&1u32.to_ne_bytes());
    payload[32..40].copy_from_slice(&log.to_ne_bytes());
    payload
}

impl FrontEnd {
    /// Gives a log; its answer is as long as itself.
    fn set_log(&mut self, size: u64, offset: u64, file: OwnedFd) {
        let payload = base(size, offset);
        self.send(Request::SET_LOG_BASE, &payload, &[file]);
        assert_eq!(self.answer().as_deref(), Some(&payload[..]), "SET_LOG_BASE is answered once, by what it said");
    }

    fn set_features(&mut self, features: u64) {
        self.done(Request::SET_FEATURES, &features.to_ne_bytes(), &[]);
    }
}

#[test]
fn a_migration_begins_and_is_cancelled_while_rings_run() {
    let bench = Bench::new();
    let mut front = bench.connect_and_start();
    assert_eq!(*bench.recorder.can_log.lock().unwrap(), Some(true));
    bench.recorder.take();
    for _ in 0..2 {
        // QEMU's order; with several pairs it says each thing for each of them.
        front.set_log(LOG, 0, memory(LOG));
        front.set_features(wanted() | F_LOG_ALL);
        front.set_features(wanted() | F_LOG_ALL);
        front.done(Request::SET_VRING_ADDR, &logged_address(1, 0x7000), &[]);
        let heard = bench.recorder.take();
        let used = heard.iter().find_map(|heard| match heard {
            Heard::Log(0, used) => *used,
            _ => None,
        });
        let used = Heard::Log(0, used);
        let one = heard.iter().find(|heard| matches!(heard, Heard::Log(1, Some(_)))).unwrap();
        assert_eq!(heard, [&Heard::Logging(true), &used, one, &Heard::Log(1, Some(0x7000))].map(Clone::clone));
        // Another log, as for more memory.
        front.set_log(2 * LOG, 4096, memory(4096 + 2 * LOG));
        assert_eq!(bench.recorder.take(), [Heard::Logging(true), used, Heard::Log(1, Some(0x7000))]);
        front.set_features(wanted());
        assert_eq!(bench.recorder.take(), [Heard::Log(0, None), Heard::Log(1, None), Heard::Logging(false)]);
        front.done(Request::SET_VRING_ADDR, &ring_address(1, 0), &[]);
        assert_eq!(bench.recorder.take(), []);
    }
}

#[test]
fn rings_that_are_to_be_logged_wait_for_the_log() {
    // QEMU, when a guest's driver starts its rings while the guest is migrated.
    let bench = Bench::new();
    let mut front = bench.connect();
    front.negotiate_with(wanted() | F_LOG_ALL);
    front.share_memory();
    front.done(Request::SET_VRING_NUM, &ring_state(1, 256), &[]);
    front.done(Request::SET_VRING_ADDR, &logged_address(1, 0x7000), &[]);
    front.kick(1);
    front.enable(1, true);
    assert!(!bench.recorder.take().iter().any(|heard| matches!(heard, Heard::Start(..))), "started without a log");
    front.set_log(LOG, 0, memory(LOG));
    let heard = bench.recorder.take();
    assert!(matches!(heard[..], [Heard::Logging(true), Heard::Start(1, _)]), "{heard:?}");
}

#[test]
fn a_log_is_over_when_the_last_ring_stops_and_rings_wait_for_the_next_one() {
    // QEMU, when the guest is reset while it is migrated: it frees its log when the rings stop, and makes another when they start.
    let bench = Bench::new();
    let mut front = bench.connect_and_start();
    front.set_log(LOG, 0, memory(LOG));
    front.set_features(wanted() | F_LOG_ALL);
    front.stop(0);
    front.kick(0);
    front.stop(1);
    let heard = bench.recorder.take();
    assert!(matches!(heard.last(), Some(Heard::Stop(1))), "{heard:?}");
    assert!(
        heard.iter().any(|heard| matches!(heard, Heard::Start(0, _))),
        "the log is not over while a ring runs: {heard:?}"
    );
    front.stop(0);
    bench.recorder.take();
    front.set_features(wanted() | F_LOG_ALL);
    // More memory than the log of before had bits for.
    let table = memory_table(&[Region { guest: MEMORY, ..front.region() }]);
    front.done(Request::SET_MEM_TABLE, &table, &[front.memory.try_clone().unwrap()]);
    front.done(Request::SET_VRING_ADDR, &logged_address(1, 0x7000), &[]);
    for ring in [0, 1] {
        front.kick(ring);
        front.enable(ring, true);
    }
    let heard = bench.recorder.take();
    let wrong = |heard: &Heard| matches!(heard, Heard::Start(..) | Heard::Logging(_));
    assert!(!heard.iter().any(wrong), "started without a log: {heard:?}");
    front.set_log(2 * LOG, 0, memory(2 * LOG));
    let heard = bench.recorder.take();
    assert!(matches!(heard[..], [Heard::Logging(true), Heard::Start(0, _), Heard::Start(1, _)]), "{heard:?}");
    // The same once more, and the migration ends without another log.
    front.stop(0);
    front.stop(1);
    front.kick(0);
    bench.recorder.take();
    front.set_features(wanted());
    let heard = bench.recorder.take();
    assert!(matches!(heard[..], [Heard::Start(0, _), Heard::Logging(false)]), "{heard:?}");
}

#[test]
fn what_ends_amid_a_huge_page_is_refused() {
    const HUGE: u64 = 2 << 20;
    let huge = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    // A kernel without pages of that size. None need be free: they are taken when the file is mapped.
    let Ok(file) = memfd_create(c"ringspan-test-huge", huge) else { return };
    nix::unistd::ftruncate(&file, HUGE as i64).unwrap();
    let bench = Bench::new();
    let front = bench.connect_and_start();
    front.send(Request::SET_LOG_BASE, &base(LOG, 0), &[file.try_clone().unwrap()]);
    assert!(
        bench.recorder.failure().contains("the log ends at byte 0x20 of its file, amid a huge page of 0x200000 bytes")
    );
    drop(front);
    let front = bench.connect_and_start();
    let table = memory_table(&[Region { size: 4096, ..front.region() }]);
    front.send(Request::SET_MEM_TABLE, &table, &[file]);
    let failure = bench.recorder.failure();
    assert!(failure.contains("the region at 0x0 ends at byte 0x1000 of its file, amid a huge page"), "{failure}");
}

#[test]
fn a_migration_ends_with_its_connection_and_the_place_of_a_ring_is_told_once() {
    let bench = Bench::new();
    let mut front = bench.connect_and_start();
    front.set_log(LOG, 0, memory(LOG));
    front.set_features(wanted() | F_LOG_ALL);
    front.stop(0);
    bench.recorder.take();
    // An answer that is needed, so that what follows the one before has been done.
    front.ask(Request::GET_FEATURES, &[], &[]);
    assert_eq!(*bench.recorder.told.lock().unwrap(), [0]);
    drop(front);
    let heard = bench.recorder.disconnected();
    assert_eq!(heard[..2], [Heard::Logging(false), Heard::Stop(1)]);
}

#[test]
fn a_log_that_is_none_is_refused() {
    let cases: [(u64, u64, u64, &str); 6] = [
        (0, 0, 4096, "a log of 0x0 bytes"),
        (1 << 40, 0, 4096, "a log of 0x10000000000 bytes"),
        (LOG, u64::MAX, 4096, "are accepted"),
        (LOG, 4096, 4096, "ends at byte"),
        (2 * LOG, 0, LOG, "ends at byte"),
        (LOG / 2, 0, 4096, "the log ends before the region at 0x0"),
    ];
    for (size, offset, file, why) in cases {
        let bench = Bench::new();
        let front = bench.connect_and_start();
        front.send(Request::SET_LOG_BASE, &base(size, offset), &[memory(file)]);
        let failure = bench.recorder.failure();
        assert!(failure.contains(why), "{failure}");
    }
    let bench = Bench::new();
    let front = bench.connect_and_start();
    let (pipe, _other) = nix::unistd::pipe().unwrap();
    front.send(Request::SET_LOG_BASE, &base(LOG, 0), &[pipe]);
    assert!(bench.recorder.failure().contains("no memory file"));
}

#[test]
fn memory_that_the_log_does_not_reach_is_refused_while_it_is_logged() {
    let bench = Bench::new();
    let mut front = bench.connect_and_start();
    front.set_log(LOG, 0, memory(LOG));
    front.set_features(wanted() | F_LOG_ALL);
    let table = memory_table(&[Region { guest: 4096, ..front.region() }]);
    front.send(Request::SET_MEM_TABLE, &table, &[front.memory.try_clone().unwrap()]);
    assert!(bench.recorder.failure().contains("the log ends before the region at 0x1000"));
}

#[test]
fn memory_and_rings_that_the_log_does_not_reach_are_refused_when_it_begins() {
    let bench = Bench::new();
    let mut front = bench.connect_and_start();
    front.set_log(LOG, 0, memory(LOG));
    let table = memory_table(&[Region { guest: 4096, ..front.region() }]);
    front.done(Request::SET_MEM_TABLE, &table, &[front.memory.try_clone().unwrap()]);
    front.send(Request::SET_FEATURES, &(wanted() | F_LOG_ALL).to_ne_bytes(), &[]);
    assert!(bench.recorder.failure().contains("the log ends before the region at 0x1000"));
    drop(front);
    let mut front = bench.connect_and_start();
    front.done(Request::SET_VRING_ADDR, &logged_address(1, MEMORY - 2), &[]);
    front.send(Request::SET_LOG_BASE, &base(LOG, 0), &[memory(LOG)]);
    let failure = bench.recorder.failure();
    assert!(failure.contains("the log ends before the used ring of ring 1"), "{failure}");
}

#[test]
fn a_guest_that_cannot_is_announced_when_it_is_there() {
    let bench = Bench::new();
    let mac = u64::from_ne_bytes([0x52, 0x54, 0, 1, 2, 3, 0, 0]).to_ne_bytes();
    let mut front = bench.connect();
    front.negotiate();
    front.done(Request::SEND_RARP, &mac, &[]);
    drop(front);
    assert!(!bench.recorder.disconnected().iter().any(|heard| matches!(heard, Heard::Announce(_))));
    let mut front = bench.connect_and_start();
    front.done(Request::SEND_RARP, &mac, &[]);
    bench.recorder.take_until("the address", |heard| *heard == Heard::Announce([0x52, 0x54, 0, 1, 2, 3]));
    // With a vDPA device nobody sends it, and the front-end is told; the connection goes on.
    let other = u64::from_ne_bytes([0x52, 0x54, 0, 1, 2, 0xff, 0, 0]).to_ne_bytes();
    assert_eq!(front.ask(Request::SEND_RARP, &other, &[]), 1);
    front.done(Request::SEND_RARP, &mac, &[]);
}
