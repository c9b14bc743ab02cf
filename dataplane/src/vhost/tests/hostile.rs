//! Front-ends that lie, break off and flood: each ends its own connection, with the reason, and the next one is served.

use super::*;

/// Sends one message after a handshake, and returns the reason with which the connection was ended.
fn refused(request: Request, payload: &[u8], fds: Vec<OwnedFd>) -> String {
    let bench = Bench::new();
    let mut front = bench.connect_and_start();
    assert_ne!(front.ask(request, payload, &fds), 0, "{request:?} was acknowledged");
    assert_eq!(front.answer(), None, "{request:?} did not end the connection");
    let reason = bench.recorder.failure();
    assert!(reason.starts_with(&format!("{request:?}: ")), "{reason}");
    drop(bench.connect_and_start());
    reason
}

fn eventfd() -> OwnedFd {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap().as_fd().try_clone_to_owned().unwrap()
}

fn memory(size: u64) -> OwnedFd {
    let memory = memfd_create(c"ringspan-test", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&memory, size as i64).unwrap();
    memory
}

#[test]
fn what_is_wrong_with_a_ring_is_said() {
    for (request, payload, why) in [
        (Request::SET_VRING_NUM, ring_state(3, 1000), "ring 3: size 1000, must be a power of two up to 32768"),
        (Request::SET_VRING_NUM, ring_state(3, 65536), "ring 3: size 65536"),
        (Request::SET_VRING_NUM, ring_state(64, 256), "ring 64, there are 64"),
        (Request::SET_VRING_BASE, ring_state(64, 0), "ring 64, there are 64"),
        (Request::SET_VRING_ENABLE, ring_state(u32::MAX, 1), "ring 4294967295"),
        (Request::SET_VRING_ENABLE, ring_state(0, 2), "ring 0: enable 2"),
        (Request::SET_VRING_ADDR, ring_address(0, 8), "not aligned to 16"),
        (Request::SET_VRING_ADDR, ring_address(0, MEMORY), "ring 0: Missing memory mapping"),
        (Request::SET_VRING_ADDR, ring_address(5, !USER & !0xfffff), "ring 5: "),
        (Request::SET_VRING_KICK, 0u64.to_ne_bytes().into(), "0 descriptors where 1 belong"),
        (Request::SET_VRING_KICK, 0xffu64.to_ne_bytes().into(), "ring 255"),
        (Request::SET_FEATURES, (1u64 << 37 | 1 << 14).to_ne_bytes().into(), "HOST_UFO, SR_IOV"),
        (Request::SET_PROTOCOL_FEATURES, (1u64 << 12).to_ne_bytes().into(), "0x1000"),
        (Request::NET_SET_MTU, 9001u64.to_ne_bytes().into(), "MTU 9001 is larger than the port's 1500"),
        (Request::NET_SET_MTU, u64::MAX.to_ne_bytes().into(), "larger than the port's 1500"),
        (Request::NET_SET_MTU, 0u64.to_ne_bytes().into(), "MTU 0, at least 68"),
        (Request::SET_FEATURES, vec![0; 7], "a payload of 7 bytes where 8 belong"),
        (Request::RESET_OWNER, vec![0; 100], "a payload of 100 bytes where 0 belong"),
    ] {
        let reason = refused(request, &payload, Vec::new());
        assert!(reason.contains(why), "{reason}\nlacks: {why}");
    }
}

#[test]
fn the_base_of_a_split_ring_has_one_half() {
    let bench = Bench::new();
    let mut front = bench.connect();
    front.negotiate_with(wanted() & !RING_PACKED);
    assert_ne!(front.ask(Request::SET_VRING_BASE, &ring_state(0, 0x1_0000), &[]), 0);
    let reason = bench.recorder.failure();
    assert!(reason.contains("ring 0: base 0x10000 has two halves"), "{reason}");
    assert!(reason.contains("negotiate RING_PACKED or send the available index alone"), "{reason}");
}

#[test]
fn what_is_wrong_with_a_descriptor_is_said() {
    let file = || OwnedFd::from(fs::File::open("/dev/null").unwrap());
    let table = |regions: &[Region]| memory_table(regions);
    let region = Region { guest: 0, size: MEMORY, user: USER, offset: 0 };
    let second = Region { guest: MEMORY / 2, user: USER + MEMORY, ..region };
    for (request, payload, fds, why) in [
        (Request::SET_VRING_KICK, 1u64.to_ne_bytes().to_vec(), vec![file()], "/dev/null, not an eventfd"),
        (Request::SET_VRING_CALL, 1u64.to_ne_bytes().to_vec(), vec![eventfd(), eventfd()], "2 descriptors where 1"),
        (Request::SET_VRING_CALL, 0x101u64.to_ne_bytes().to_vec(), vec![eventfd()], "1 descriptors where 0"),
        (Request::SET_FEATURES, 0u64.to_ne_bytes().to_vec(), vec![eventfd()], "1 descriptors where 0"),
        (Request::SET_MEM_TABLE, table(&[region]), vec![], "0 descriptors where 1"),
        (Request::SET_MEM_TABLE, table(&[region]), vec![file()], "no memory file"),
        (Request::SET_MEM_TABLE, table(&[region]), vec![eventfd()], "no memory file"),
        (Request::SET_MEM_TABLE, table(&[region]), vec![memory(MEMORY - 1)], "of its file, which has 0xfffff"),
        (Request::SET_MEM_TABLE, table(&[region, second]), vec![memory(MEMORY), memory(MEMORY)], "intersect"),
        (
            Request::SET_MEM_TABLE,
            table(&[Region { size: u64::MAX - USER - 5, ..region }]),
            vec![memory(MEMORY)],
            "bytes of guest memory",
        ),
        (
            Request::SET_MEM_TABLE,
            table(&[Region { offset: 1, size: MEMORY - 1, ..region }]),
            vec![memory(MEMORY)],
            "Invalid argument",
        ),
    ] {
        let reason = refused(request, &payload, fds);
        assert!(reason.contains(why), "{reason}\nlacks: {why}");
    }
}

#[test]
fn a_message_that_is_not_served_gets_an_error_or_ends_the_connection() {
    let bench = Bench::new();
    let mut front = bench.connect_and_start();
    for code in [21, 24, 33, 42, 43, 4711, u32::MAX] {
        let header = Header { code, ..Header::request(Request::SET_OWNER, 100) };
        front.send_raw(&header, &[7; 100], &[eventfd()]);
        assert_eq!(front.answer(), Some(1u64.to_ne_bytes().to_vec()), "message {code}");
    }
    assert_eq!(front.stop(0), STEP, "the connection goes on");
    front.send_raw(&Header { code: 24, flags: 1, size: 4 }, &[0; 4], &[]);
    assert_eq!(front.answer(), None);
    assert!(bench.recorder.failure().starts_with("GET_CONFIG: ringspan does not serve this message"));
}

#[test]
fn a_feature_that_was_not_negotiated_is_not_used() {
    let bench = Bench::new();
    let mut front = bench.connect();
    front.ask(Request::GET_FEATURES, &[], &[]);
    front.send(Request::GET_QUEUE_NUM, &[], &[]);
    assert_eq!(front.answer(), None);
    assert_eq!(bench.recorder.failure(), "GET_QUEUE_NUM: the protocol feature MQ was not negotiated");
}

#[test]
fn headers_that_are_none_end_the_connection() {
    for (code, flags, size, why) in [
        (5, 1, u32::MAX, "SET_MEM_TABLE: a payload of 4294967295 bytes"),
        (1, 0, 0, "GET_FEATURES: protocol version 0"),
        (0, 1, 0, "message 0: ringspan does not serve"),
        (2, 5, 8, "SET_FEATURES: it is marked as a reply"),
        (u32::MAX, u32::MAX, u32::MAX, "message 4294967295: "),
    ] {
        let bench = Bench::new();
        let mut front = bench.connect();
        front.send_raw(&Header { code, flags, size }, &[], &[]);
        assert_eq!(front.answer(), None);
        let reason = bench.recorder.failure();
        assert!(reason.contains(why), "{reason}");
    }
}

#[test]
fn a_flood_of_descriptors_is_cut_off() {
    let bench = Bench::new();
    let front = bench.connect_and_start();
    let flood: Vec<OwnedFd> = (0..253).map(|_| front.memory.try_clone().unwrap()).collect();
    // Each byte of a header can carry some.
    for byte in Header::request(Request::SET_MEM_TABLE, 40).to_bytes() {
        if send(front.socket.as_fd(), &[byte], &flood).is_err() {
            break;
        }
    }
    assert!(bench.recorder.failure().contains("descriptors, 32 are accepted"));
    drop(bench.connect_and_start());
}

/// The messages of a whole handshake, as bytes and descriptors.
fn handshake(front: &FrontEnd) -> Vec<(Vec<u8>, Vec<OwnedFd>)> {
    let event = |event: &EventFd| vec![event.as_fd().try_clone_to_owned().unwrap()];
    let mut script = vec![
        (Request::GET_FEATURES, vec![], vec![]),
        (Request::GET_PROTOCOL_FEATURES, vec![], vec![]),
        (Request::SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES.to_ne_bytes().to_vec(), vec![]),
        (Request::GET_QUEUE_NUM, vec![], vec![]),
        (Request::GET_MAX_MEM_SLOTS, vec![], vec![]),
        (Request::SET_OWNER, vec![], vec![]),
        (Request::SET_VRING_ENABLE, ring_state(0, 1), vec![]),
        (Request::NET_SET_MTU, 1500u64.to_ne_bytes().to_vec(), vec![]),
        (Request::SET_FEATURES, wanted().to_ne_bytes().to_vec(), vec![]),
        (Request::SET_MEM_TABLE, memory_table(&[front.region()]), vec![front.memory.try_clone().unwrap()]),
        (Request::SET_VRING_NUM, ring_state(0, 256), vec![]),
        (Request::SET_VRING_BASE, ring_state(0, 0), vec![]),
        (Request::SET_VRING_ADDR, ring_address(0, 0), vec![]),
        (Request::SET_VRING_KICK, 0u64.to_ne_bytes().to_vec(), event(&front.kick)),
        (Request::SET_VRING_CALL, 0u64.to_ne_bytes().to_vec(), event(&front.call)),
        (Request::SET_VRING_ERR, 0u64.to_ne_bytes().to_vec(), event(&front.call)),
        (Request::SET_VRING_ENABLE, ring_state(0, 0), vec![]),
        (Request::SET_VRING_ENABLE, ring_state(0, 1), vec![]),
        (Request::GET_VRING_BASE, ring_state(0, 0), vec![]),
    ];
    let frame = |(request, payload, fds): (Request, Vec<u8>, Vec<OwnedFd>)| {
        ([&Header::request(request, payload.len()).to_bytes()[..], &payload].concat(), fds)
    };
    script.drain(..).map(frame).collect()
}

#[test]
fn a_front_end_killed_at_any_byte_leaves_nothing_behind() {
    let bench = Bench::new();
    let count = handshake(&bench.connect()).len();
    bench.recorder.disconnected();
    for message in 0..count {
        // Killed before the message, in its header, in its payload.
        for part in [0, 1, 11, 12, 13, usize::MAX] {
            let front = bench.connect();
            let script = handshake(&front);
            for (bytes, fds) in &script[..message] {
                send(front.socket.as_fd(), bytes, fds).unwrap();
            }
            let (bytes, fds) = &script[message];
            let part = part.min(bytes.len());
            if part > 0 {
                send(front.socket.as_fd(), &bytes[..part], fds).unwrap();
            }
            // Answers are not read: the connection breaks instead of closing.
            drop(front);
            let heard = bench.recorder.take_until("the end", |heard| {
                matches!(
                    heard,
                    Heard::Event(LaneEventKind::FrontendDisconnected { .. } | LaneEventKind::HandshakeFailed { .. })
                )
            });
            let count = |wanted: fn(&Heard) -> bool| heard.iter().filter(|heard| wanted(heard)).count();
            let (starts, stops) =
                (count(|heard| matches!(heard, Heard::Start(..))), count(|heard| matches!(heard, Heard::Stop(_))));
            assert_eq!(starts, stops, "message {message}, {part} bytes: {heard:?}");
        }
    }
    drop(bench.connect_and_start());
    bench.recorder.disconnected();
    drop(bench);
}

/// Numbers that look random and are the same each time (xorshift64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    /// A number that is likely to matter: small, round, at a border, or anything.
    fn number(&mut self) -> u64 {
        let step = self.roll(4);
        match self.roll(6) {
            0 => step,
            1 => 1 << self.roll(64),
            2 => u64::MAX - step,
            3 => USER + self.roll(MEMORY + 0x1000),
            4 => USER + (self.roll(64) << 12),
            _ => self.roll(u64::MAX),
        }
    }
}

#[test]
fn random_talk_breaks_nothing() {
    let bench = Bench::new();
    let served: Vec<Request> =
        (0..64).filter_map(Request::from_code).filter(|request| request.shape().is_some()).collect();
    for seed in 1..=300 {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed));
        let front = bench.connect();
        let script = handshake(&front);
        let sane = dice.roll(script.len() as u64 + 1) as usize;
        for (bytes, fds) in &script[..sane] {
            send(front.socket.as_fd(), bytes, fds).unwrap();
        }
        for _ in 0..dice.roll(40) {
            let request = served[dice.roll(served.len() as u64) as usize];
            let mut payload: Vec<u8> =
                match script.iter().find(|(bytes, _)| bytes[..4] == (request as u32).to_ne_bytes()) {
                    // Mostly a message as it should be, with one word of it replaced.
                    Some((bytes, _)) => bytes[HEADER_SIZE..].to_vec(),
                    None => memory_table(&[front.region()]),
                };
            if payload.len() >= 8 && dice.roll(3) > 0 {
                let at = dice.roll(payload.len() as u64 / 8) as usize * 8;
                let word = dice.number().to_ne_bytes();
                payload[at..at + 8].copy_from_slice(&word);
            }
            let fds = match request {
                Request::SET_MEM_TABLE | Request::ADD_MEM_REG => vec![front.memory.try_clone().unwrap()],
                Request::SET_VRING_KICK | Request::SET_VRING_CALL if dice.roll(4) > 0 => vec![eventfd()],
                _ => vec![],
            };
            let message = [&Header::request(request, payload.len()).to_bytes()[..], &payload].concat();
            if send(front.socket.as_fd(), &message, &fds).is_err() {
                break;
            }
        }
        drop(front);
        let heard = bench.recorder.take_until("the end", |heard| {
            matches!(
                heard,
                Heard::Event(LaneEventKind::FrontendDisconnected { .. } | LaneEventKind::HandshakeFailed { .. })
            )
        });
        let running = heard.iter().fold(0, |running, heard| match heard {
            Heard::Start(..) => running + 1,
            Heard::Stop(_) => running - 1,
            _ => running,
        });
        assert_eq!(running, 0, "seed {seed}: {heard:?}");
        // The crate's thread must not have panicked: in a release build that ends the lane.
        let words = format!("{heard:?}");
        assert!(!words.contains("wait for daemon exit") && !words.contains("daemon ended"), "seed {seed}: {heard:?}");
    }
    drop(bench.connect_and_start());
}

#[test]
fn descriptors_are_closed_with_their_connection() {
    let bench = Bench::new();
    let unique = |bench: &Bench| {
        // Only this test's memory counts: others run beside it.
        let front = bench.connect_and_start();
        let inode = nix::sys::stat::fstat(&front.memory).unwrap().st_ino;
        (front, inode)
    };
    let open = |inode: u64| {
        let entries = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let found = entries.filter_map(|entry| fs::metadata(entry.path()).ok());
        found.filter(|found| std::os::unix::fs::MetadataExt::ino(found) == inode).count()
    };
    let (front, inode) = unique(&bench);
    assert!(open(inode) > 1, "mapped");
    assert!(memory_descriptors() > 0);
    // Refused descriptors, too.
    let extra: Vec<OwnedFd> = (0..40).map(|_| front.memory.try_clone().unwrap()).collect();
    front.send(Request::SET_MEM_TABLE, &memory_table(&[front.region()]), &extra);
    drop(extra);
    assert!(bench.recorder.failure().contains("40 descriptors"));
    assert_eq!(open(inode), 1, "only the front-end's own is left");
}

#[test]
fn a_slow_front_end_does_not_hold_up_another_session() {
    let slow = Bench::new();
    let front = slow.connect();
    send(front.socket.as_fd(), &[5, 0, 0, 0, 1], &[]).unwrap();
    let other = Bench::new();
    drop(other.connect_and_start());
    // Nor its own successor.
    drop(front);
    assert!(slow.recorder.failure().contains("after 5 of 12 bytes"));
    drop(slow.connect_and_start());
}
