//! Rings and memory handed to a device, seen from the device.

mod driver;
pub(crate) mod fake;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use fake::{DRIVER_OK, Fake};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Handover, Place, Refusal};
use crate::memory::GuestMap;
use crate::ring::{RingConfig, RingFeatures};

/// What makes a device another.
type Change = fn(&mut fake::Device);

const VERSION_1: u64 = 1 << 32;
const PACKED: u64 = 1 << 34;
const USED: u64 = 0x3000;

fn eventfd() -> Arc<OwnedFd> {
    // SAFETY: no preconditions.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    assert!(fd >= 0);
    // SAFETY: just opened, owned by nobody else.
    Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn signals(fd: &OwnedFd) -> u64 {
    let mut count = 0u64;
    // SAFETY: an open descriptor, and eight writable bytes.
    let read = unsafe { libc::read(fd.as_raw_fd(), (&raw mut count).cast(), 8) };
    if read == 8 { count } else { 0 }
}

fn memory(ranges: &[(u64, usize)]) -> (Arc<GuestMemoryMmap>, Arc<GuestMap>) {
    let ranges: Vec<_> = ranges.iter().map(|&(start, len)| (GuestAddress(start), len)).collect();
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
    (memory.clone(), GuestMap::new(&memory))
}

fn ring(base: u32, packed: bool) -> RingConfig {
    RingConfig {
        size: 256,
        desc: GuestAddress(0x1000),
        avail: GuestAddress(0x2000),
        used: GuestAddress(USED),
        base,
        resume: None,
        record: None,
        memory: 0,
        features: RingFeatures { packed, version_1: true, ..Default::default() },
        kick: Some(eventfd()),
        call: Some(eventfd()),
        log: None,
    }
}

/// A device that has memory and knows the features, and no ring.
fn ready(fake: &Fake, features: u64) -> Handover {
    let mut handover = Handover::new(Box::new(fake.clone())).unwrap();
    handover.negotiated(features);
    handover.memory(memory(&[(0, 0x10_0000)]).1).unwrap();
    handover
}

fn running(fake: &Fake, features: u64, base: u32) -> Handover {
    let mut handover = ready(fake, features);
    let packed = features & PACKED != 0;
    assert_eq!(handover.start(0, ring(base, packed)), Ok(0));
    assert_eq!(handover.start(1, ring(base, packed)), Ok(1));
    handover
}

#[test]
fn the_device_runs_when_both_rings_are_there_and_gets_all_in_the_specifications_order() {
    let fake = Fake::new();
    let mut handover = ready(&fake, VERSION_1 | 1 << 15);
    let (guest, map) = memory(&[(0, 0x10_0000)]);
    handover.memory(map).unwrap();
    // What the front-end says of a split ring may be old, or nothing.
    let (receive, mut send) = (ring(5, false), ring(0, false));
    send.used = GuestAddress(0x4000);
    guest.write_obj(5_u16.to_le(), GuestAddress(USED + 2)).unwrap();
    guest.write_obj(7_u16.to_le(), GuestAddress(0x4000 + 2)).unwrap();
    fake.lock().said.clear();
    assert_eq!(handover.start(0, receive.clone()), Ok(0));
    assert_eq!(fake.lock().said, Vec::<String>::new(), "with one ring there is nothing to do");
    assert_eq!(handover.start(1, send.clone()), Ok(1));
    let device = fake.lock().clone();
    // VIRTIO 1.2 section 3.1.1. ACCESS_PLATFORM and STATUS are between us and the device.
    let wanted = ["status 1", "status 3", "features 0x300018000", "status 11"];
    let rings = ["place 0", "base 0 0x5", "call 0", "kick 0", "enable 0", "place 1", "base 1 0x7", "call 1", "kick 1"];
    let said: Vec<&str> = wanted.into_iter().chain(rings).chain(["enable 1", "status 15"]).collect();
    assert_eq!(device.said, said);
    assert_ne!(device.status & DRIVER_OK, 0);
    let place = Place { size: 256, desc: 0x1000, avail: 0x2000, used: USED };
    assert_eq!(device.rings[&0].place, Some(place), "rings are at the guest's own addresses");
    assert_eq!(device.rings[&0].kick, receive.kick.as_deref().map(AsRawFd::as_raw_fd));
    assert_eq!(device.rings[&1].call, send.call.as_deref().map(AsRawFd::as_raw_fd));
    for config in [receive, send] {
        assert_eq!(signals(config.kick.as_deref().unwrap()), 1, "the device looks at what is there");
        assert_eq!(signals(config.call.as_deref().unwrap()), 1, "the guest looks at what was used");
    }
}

#[test]
fn a_split_ring_goes_on_where_its_used_index_is_whatever_the_front_end_says() {
    let fake = Fake::new();
    let mut handover = ready(&fake, VERSION_1);
    let (guest, map) = memory(&[(0, 0x10_0000)]);
    handover.memory(map).unwrap();
    guest.write_obj(0x1234_u16.to_le(), GuestAddress(USED + 2)).unwrap();
    // The lane died, and DPDK's virtio-user names 0.
    handover.start(0, ring(0, false)).unwrap();
    assert_eq!(handover.start(1, ring(0x1200, false)), Ok(1));
    let device = fake.lock();
    assert_eq!((device.rings[&0].base, device.rings[&1].base), (0x1234, 0x1234), "no buffer is used twice");
}

#[test]
fn a_packed_ring_that_somebody_used_is_not_begun_anew() {
    // The lane died, and the front-end knows no better than where rings begin (QEMU).
    let cases: [(&[u16], Result<u16, Refusal>); 3] = [
        (&[0x8080, 0x8080, 0x8080, 0x0080], Ok(1)),
        (&[0, 0, 0, 0], Ok(1)),
        (&[0x8080, 0x0081, 0x0080, 0x0080], Err(Refusal::Lost { ring: 0 })),
    ];
    for (number, (flags, wanted)) in cases.into_iter().enumerate() {
        let fake = Fake::new().with(|device| device.features |= PACKED);
        let mut handover = ready(&fake, VERSION_1 | PACKED);
        let (guest, map) = memory(&[(0, 0x10_0000)]);
        handover.memory(map).unwrap();
        for (slot, flags) in flags.iter().enumerate() {
            guest.write_obj(flags.to_le(), GuestAddress(0x1000 + 16 * slot as u64 + 14)).unwrap();
        }
        handover.start(0, ring(0x8000_8000, true)).unwrap();
        assert_eq!(handover.start(1, ring(0x8000_8000, true)), wanted, "{number}");
        let bases: Vec<u32> = fake.lock().rings.values().map(|ring| ring.base).collect();
        match number {
            0 => assert_eq!(bases, [0x8003_8003; 2], "behind what was given back"),
            1 => assert_eq!(bases, [0x8000_8000; 2]),
            _ => assert_eq!(handover.running(), 0),
        }
    }
}

#[test]
fn memory_amid_pages_is_not_given_to_a_device() {
    for (start, len) in [(0x10_0fff, 0x1000), (0x10_0800, 0x1000), (0x10_0000, 0x1800), (0x10_0001, 0xfff)] {
        let fake = Fake::new();
        let mut handover = running(&fake, VERSION_1, 0);
        let refusal = handover.memory(memory(&[(0, 0x10_0000), (start, len)]).1).unwrap_err();
        assert!(matches!(refusal, Refusal::Pages { at, .. } if at == start), "{refusal}");
        assert!(refusal.to_string().contains("whole pages of 0x1000 bytes"), "{refusal}");
        assert_eq!((handover.running(), fake.lock().pinned.len()), (0, 0));
    }
}

#[test]
fn a_used_index_that_a_hostile_front_end_put_amid_a_word_is_not_read() {
    let fake = Fake::new();
    let mut handover = ready(&fake, VERSION_1);
    drop(handover.memory(memory(&[(0x2fff, 0x10_0000)]).1));
    let mut odd = ring(3, false);
    odd.used = GuestAddress(USED);
    handover.accept(0, odd.clone()).unwrap();
    handover.accept(1, odd).unwrap();
    assert!(matches!(handover.settle(), Ok(_) | Err(Refusal::Pages { .. })));
    assert!(handover.stop(0).is_some());
}

#[test]
fn only_what_changed_of_guest_memory_is_told_in_one_batch_while_rings_run() {
    let fake = Fake::new();
    let mut handover = running(&fake, VERSION_1, 0);
    let ranges = [(GuestAddress(0), 0x10_0000), (GuestAddress(1 << 32), 0x4000)];
    let all = Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap());
    handover.memory(GuestMap::new(&all)).unwrap();
    fake.lock().said.clear();
    // As with ADD_MEM_REG and REM_MEM_REG: what stays is where it was.
    let (fewer, _) = all.remove_region(GuestAddress(1 << 32), 0x4000).unwrap();
    handover.memory(GuestMap::new(&Arc::new(fewer))).unwrap();
    assert_eq!(fake.lock().said, ["batch", "unmap 0x100000000", "end"]);
    fake.lock().said.clear();
    handover.memory(GuestMap::new(&all)).unwrap();
    assert_eq!(fake.lock().said, ["batch", "map 0x100000000", "end"]);
    fake.lock().said.clear();
    handover.memory(GuestMap::new(&all)).unwrap();
    assert_eq!(fake.lock().said, Vec::<String>::new(), "nothing changed");
    assert_eq!(handover.running(), 1);
}

#[test]
fn a_table_that_names_the_same_file_again_changes_nothing() {
    let fake = Fake::new();
    let mut handover = running(&fake, VERSION_1, 0);
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x10_0000).unwrap();
    let map = || {
        let part = vm_memory::FileOffset::new(file.try_clone().unwrap(), 0);
        let ranges = [(GuestAddress(0), 0x10_0000, Some(part))];
        GuestMap::new(&Arc::new(GuestMemoryMmap::from_ranges_with_files(ranges).unwrap()))
    };
    let first = map();
    let told = Arc::downgrade(&first);
    handover.memory(first).unwrap();
    fake.lock().said.clear();
    handover.memory(map()).unwrap();
    assert_eq!(fake.lock().said, Vec::<String>::new(), "pages that are pinned are the same");
    assert!(told.upgrade().is_some(), "a driver that works by our addresses has those of the first table");
    handover.memory(memory(&[(0, 0x1000)]).1).unwrap();
    assert!(told.upgrade().is_none(), "and they go with the mapping");
}

#[test]
fn a_device_that_suspends_says_where_its_rings_stand() {
    let fake = Fake::new().with(|device| device.features |= PACKED);
    fake.lock().stands.extend([(0, 0x8005_8005), (1, 0x0004_0009)]);
    let mut handover = running(&fake, VERSION_1 | PACKED, 0x8000_8000);
    assert_eq!(handover.stop(0), Some(0x8005));
    assert_eq!(handover.stop(1), Some(4), "what was taken and not used is taken again");
    let device = fake.lock();
    assert_eq!(device.status, 0);
    assert!(device.said.iter().any(|word| word == "suspend"));
}

#[test]
fn where_a_split_ring_stands_is_in_guest_memory_when_the_device_does_not_say() {
    let fake = Fake::new().with(|device| device.suspends = false);
    let (guest, map) = memory(&[(0, 0x10_0000)]);
    let mut handover = ready(&fake, VERSION_1);
    handover.memory(map).unwrap();
    handover.start(0, ring(0, false)).unwrap();
    handover.start(1, ring(0, false)).unwrap();
    guest.write_obj(0xfffe_u16.to_le(), GuestAddress(USED + 2)).unwrap();
    assert_eq!(handover.stop(1), Some(0xfffe));
    assert_eq!(fake.lock().status, 0, "the device touches nothing any more");
    assert_eq!(handover.stop(0), Some(0xfffe), "where it stood when the device was stopped");
    assert_eq!(handover.stop(0), None);
}

#[test]
fn a_guest_that_a_relay_told_not_to_signal_is_told_to_before_the_device_runs() {
    for packed in [false, true] {
        let fake = Fake::new().with(|device| device.features |= PACKED);
        let mut handover = ready(&fake, VERSION_1 | if packed { PACKED } else { 0 });
        let (guest, map) = memory(&[(0, 0x10_0000)]);
        handover.memory(map).unwrap();
        // VRING_USED_F_NO_NOTIFY, and VRING_PACKED_EVENT_FLAG_DISABLE.
        let flags = GuestAddress(USED + if packed { 2 } else { 0 });
        guest.write_obj(1_u16.to_le(), flags).unwrap();
        for index in 0..2 {
            handover.start(index, ring(if packed { 0x8000_8000 } else { 0 }, packed)).unwrap();
        }
        assert_eq!((handover.running(), guest.read_obj::<u16>(flags).unwrap()), (1, 0), "packed: {packed}");
    }
}

#[test]
fn a_device_that_cannot_suspend_gets_no_packed_rings() {
    let fake = Fake::new().with(|device| {
        device.features |= PACKED;
        device.suspends = false;
    });
    let mut handover = ready(&fake, VERSION_1 | PACKED);
    assert_eq!(handover.start(0, ring(0x8000_8000, true)), Err(Refusal::NoPosition));
    assert_eq!(handover.facts().offer(VERSION_1 | PACKED), VERSION_1);
}

#[test]
fn nobody_goes_on_in_packed_rings_whose_place_is_lost() {
    let fake = Fake::new().with(|device| device.features |= PACKED);
    for word in ["suspend", "base?"] {
        let mut handover = running(&fake, VERSION_1 | PACKED, 0x8000_8000);
        fake.lock().refuses.insert(word, libc::EIO);
        assert_eq!(handover.stop(0), Some(RingConfig::NOWHERE), "not where it began");
        // The ring is started again, as with another kick: where it stands now nobody knows.
        let mut again = ring(0x8000_8000, true);
        again.resume = Some(RingConfig::NOWHERE);
        handover.accept(0, again.clone()).unwrap();
        assert_eq!(handover.settle(), Err(Refusal::Lost { ring: 0 }));
        assert_eq!((handover.running(), fake.lock().status), (0, 0), "the device touches nothing");
        assert_eq!((handover.stop(0), handover.stop(1)), (Some(RingConfig::NOWHERE), Some(RingConfig::NOWHERE)));
        fake.lock().refuses.clear();
        // The guest was paused, or migrated: GET_VRING_BASE's answer comes back as the base.
        let told = u32::from(RingConfig::NOWHERE) * 0x1_0001;
        handover.start(0, ring(told, true)).unwrap();
        assert_eq!(handover.start(1, ring(told, true)), Err(Refusal::Lost { ring: 0 }));
        assert!(handover.stop(0).is_some() && handover.stop(1).is_some());
        // The driver has started anew.
        handover.start(0, ring(0x8000_8000, true)).unwrap();
        assert_eq!(handover.start(1, ring(0x8000_8000, true)), Ok(1));
    }
}

#[test]
fn a_second_pair_that_stops_does_not_bring_the_first_up_at_a_lost_place() {
    let fake = with_pairs(0, true);
    let mut handover = ready(&fake, VERSION_1 | 1 << 22 | PACKED);
    for index in 0..4 {
        handover.accept(index, ring(0x8000_8000, true)).unwrap();
    }
    assert_eq!(handover.settle(), Ok(2));
    fake.lock().refuses.insert("suspend", libc::EIO);
    assert_eq!(handover.stop(3), Some(RingConfig::NOWHERE));
    assert_eq!(handover.settle(), Err(Refusal::Lost { ring: 0 }));
    assert_eq!(handover.give_back(0), Some(RingConfig::NOWHERE));
}

#[test]
fn a_ring_that_never_ran_goes_back_as_it_came() {
    let fake = Fake::new().with(|device| device.features |= PACKED);
    let mut handover = ready(&fake, VERSION_1 | PACKED);
    handover.accept(0, ring(0x8000_8000, true)).unwrap();
    assert_eq!(handover.give_back(0), None, "a relay has a note of its own of where it stands");
}

#[test]
fn what_was_refused_leaves_nothing_with_the_device() {
    let cases: [(&str, Change, u64, u32); 7] = [
        ("INDIRECT_DESC", |_| (), VERSION_1 | 1 << 28, 0),
        ("VERSION_1", |_| (), 0, 0),
        ("which it had offered", |device| device.disagrees = true, VERSION_1, 0),
        ("128 at most", |device| device.largest = 128, VERSION_1, 0),
        ("cannot go on at 0x3 in ring 0", |device| device.moves = false, VERSION_1, 3),
        (
            "place of a ring",
            |device| {
                device.refuses.insert("place", libc::EINVAL);
            },
            VERSION_1,
            0,
        ),
        (
            "enabling a ring",
            |device| {
                device.refuses.insert("enable", libc::EIO);
            },
            VERSION_1,
            0,
        ),
    ];
    for (says, change, features, base) in cases {
        let fake = Fake::new().with(change);
        let mut handover = ready(&fake, features);
        if features & VERSION_1 != 0 {
            let (guest, map) = memory(&[(0, 0x10_0000)]);
            handover.memory(map).unwrap();
            guest.write_obj((base as u16).to_le(), GuestAddress(USED + 2)).unwrap();
        }
        let first = handover.start(0, ring(base, false));
        let refusal = first.and_then(|_| handover.start(1, ring(base, false))).expect_err(says);
        assert!(refusal.to_string().contains(says), "{refusal}");
        assert_eq!(handover.running(), 0);
        let device = fake.lock();
        assert_eq!(device.status & DRIVER_OK, 0, "{says}");
        assert!(device.rings.values().all(|ring| ring.kick.is_none() && !ring.enabled), "{says}: {:?}", device.rings);
    }
}

#[test]
fn memory_that_the_device_cannot_have_stops_it_and_the_rings_are_where_they_were() {
    let cases: [(&str, Change); 2] = [
        ("the device addresses 0x0 to 0xfffff, and guest memory is at 0x100000", |device| device.reach = 0..=0xf_ffff),
        ("cannot be pinned", |device| {
            device.refuses.insert("map", libc::EFAULT);
        }),
    ];
    for (says, change) in cases {
        let fake = Fake::new();
        let mut handover = running(&fake, VERSION_1, 9);
        drop(handover);
        handover = running(&fake, VERSION_1, 9);
        let fake = fake.with(change);
        if says.contains("addresses") {
            // What it can reach is asked once.
            drop(handover);
            handover = running(&fake, VERSION_1, 9);
        }
        fake.lock().stands.extend([(0, 12), (1, 13)]);
        let refusal = handover.memory(memory(&[(0, 0x10_0000), (0x10_0000, 0x1000)]).1).expect_err(says);
        assert!(refusal.to_string().contains(says), "{refusal}");
        assert!(!refusal.passes() && handover.running() == 0);
        assert_eq!(fake.lock().mapped.len(), 0, "nothing stays pinned");
        // Nothing was used in memory that is all zeroes.
        assert_eq!((handover.stop(0), handover.stop(1)), (Some(0), Some(0)));
    }
}

#[test]
fn a_second_pair_is_not_handed_to_a_device_with_one() {
    let fake = Fake::new();
    let mut handover = running(&fake, VERSION_1, 0);
    assert_eq!(handover.start(2, ring(0, false)), Err(Refusal::Queues { ring: 2, pairs: 1 }));
}

/// With two queue pairs and a control queue that works, or refuses.
fn with_pairs(ack: u8, packed: bool) -> Fake {
    Fake::new().with(|device| {
        device.features |= 1 << 17 | 1 << 22 | if packed { PACKED } else { 0 };
        (device.config[8], device.queues, device.ack) = (2, 5, ack);
    })
}

#[test]
fn several_pairs_are_told_to_the_device_by_its_control_queue() {
    for (packed, base) in [(false, 0), (true, 0x8000_8000)] {
        let fake = with_pairs(0, packed);
        let features = VERSION_1 | 1 << 22 | if packed { PACKED } else { 0 };
        let mut handover = ready(&fake, features);
        assert_eq!((handover.facts().pairs(), handover.facts().offer(1 << 22)), (2, 1 << 22));
        for (index, pairs) in [(0, 0), (1, 1), (2, 1), (3, 2)] {
            assert_eq!(handover.start(index, ring(base, packed)), Ok(pairs));
        }
        let device = fake.lock().clone();
        assert_eq!((device.commands, device.taken & (1 << 17 | 1 << 22)), (vec![2], 1 << 17 | 1 << 22));
        let page = device.rings[&4].place.unwrap();
        assert_eq!(page.desc, (1 << 47) - 4096, "where no guest has memory");
        assert!(!device.mapped.contains_key(&page.desc), "nor does a guest's descriptor lead there");
        assert!((0..4).all(|ring| device.rings[&ring].enabled));
        // Memory that the guest gets there is its own.
        let (_, more) = memory(&[(0, 0x10_0000), (page.desc, 0x1000)]);
        handover.memory(more).unwrap();
        handover.memory(memory(&[(0, 0x10_0000)]).1).unwrap();
        // The second pair goes, and the first runs on.
        assert!(handover.stop(3).is_some());
        assert_eq!(handover.settle(), Ok(1));
        assert_eq!(fake.lock().taken & 1 << 17, 0, "one pair needs no control queue");
        assert!(handover.stop(0).is_some());
        assert_eq!(handover.settle(), Ok(0));
        drop(handover);
        assert_eq!(fake.lock().mapped.len(), 0, "the page of the control queue goes, too");
    }
}

#[test]
fn several_pairs_need_a_device_that_enables_rings_after_it_was_told_of_them() {
    let fake = with_pairs(0, false).with(|device| device.enables_late = false);
    let mut handover = ready(&fake, VERSION_1 | 1 << 22);
    assert_eq!((handover.facts().pairs(), handover.facts().offer(1 << 22)), (1, 0));
    let why = handover.facts().why_no_more();
    assert!(why.contains("enables no rings after DRIVER_OK"), "{why}");
    assert_eq!(handover.accept(2, ring(0, false)), Err(Refusal::Queues { ring: 2, pairs: 1 }));
    handover.start(0, ring(0, false)).unwrap();
    assert_eq!(handover.start(1, ring(0, false)), Ok(1), "one pair it has all the same");
}

#[test]
fn the_control_queue_is_below_what_processors_address() {
    let fake = with_pairs(0, false);
    let mut handover = ready(&fake, VERSION_1 | 1 << 22);
    // A guest's region at the very top does not push the page up there.
    handover.memory(memory(&[(0, 0x10_0000), ((1 << 47) - 0x2000, 0x2000), (1 << 50, 0x1000)]).1).unwrap();
    for index in 0..4 {
        handover.accept(index, ring(0, false)).unwrap();
    }
    assert_eq!(handover.settle(), Ok(2));
    assert_eq!(fake.lock().rings[&4].place.unwrap().desc, (1 << 47) - 0x3000);
}

#[test]
fn the_control_queue_is_not_where_memory_stays_mapped_for_the_next() {
    let fake = with_pairs(0, false);
    let mut handover = ready(&fake, VERSION_1 | 1 << 22);
    let (_, guests) = memory(&[(0, 0x10_0000), ((1 << 47) - 0x2000, 0x2000)]);
    handover.memory(Arc::clone(&guests)).unwrap();
    handover.memory_beside(memory(&[(1 << 38, 0x10_0000)]).1, Some(guests)).unwrap();
    for index in 0..4 {
        handover.accept(index, ring(0, false)).unwrap();
    }
    assert_eq!(handover.settle(), Ok(2));
    assert_eq!(fake.lock().rings[&4].place.unwrap().desc, (1 << 47) - 0x3000);
}

#[test]
fn an_eventfd_that_was_made_blocking_and_filled_holds_nobody_up() {
    // SAFETY: no preconditions; a blocking one.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: just opened, owned by nobody else.
    let call = Arc::new(unsafe { OwnedFd::from_raw_fd(fd) });
    let full = u64::MAX - 1;
    // SAFETY: eight readable bytes.
    assert_eq!(unsafe { libc::write(fd, (&raw const full).cast(), 8) }, 8);
    super::handover::nudge(Some(&call));
    // SAFETY: an open descriptor.
    assert_ne!(unsafe { libc::fcntl(fd, libc::F_GETFL) } & libc::O_NONBLOCK, 0, "nor the one who fills it meanwhile");
}

#[test]
fn a_device_that_refuses_so_many_pairs_says_where_its_rings_stand_by_then() {
    let fake = with_pairs(1, true);
    let mut handover = ready(&fake, VERSION_1 | 1 << 22 | PACKED);
    for index in 0..4 {
        handover.accept(index, ring(0x8000_8000, true)).unwrap();
    }
    fake.lock().stands.insert(1, 0x8007_8007);
    let refusal = handover.settle().unwrap_err().to_string();
    assert!(refusal.contains("answered 1"), "{refusal}");
    assert_eq!((handover.running(), handover.stop(1), handover.stop(0)), (0, Some(0x8007), Some(0x8000)));
}

#[test]
fn the_call_descriptor_changes_while_the_device_runs() {
    let fake = Fake::new();
    let mut handover = running(&fake, VERSION_1, 0);
    let call = eventfd();
    handover.call(0, Some(call.clone()));
    assert_eq!(fake.lock().rings[&0].call, Some(call.as_raw_fd()));
    assert_eq!(signals(&call), 1, "the guest may have missed one");
    assert_eq!(handover.running(), 1);
}

#[test]
fn a_device_that_forgets_mappings_at_a_reset_is_told_again() {
    let fake = Fake::new().with(|device| device.keeps_mappings = false);
    let mut handover = running(&fake, VERSION_1, 0);
    assert_eq!(fake.lock().mapped.len(), 1);
    handover.stop(0);
    handover.start(0, ring(0, false)).unwrap();
    assert_eq!(fake.lock().mapped.len(), 1, "it runs again with its memory");
    drop(handover);
    let device = fake.lock();
    assert_eq!((device.status, device.mapped.len()), (0, 0), "a port that goes leaves nothing");
}

#[test]
fn a_configuration_space_that_lies_is_not_believed() {
    let cases: [(&str, Change); 5] = [
        ("a unicast", |device| device.config[0] = 1),
        ("0 queue pairs", |device| (device.features, device.config[8]) = (device.features | 1 << 22, 0)),
        ("9 queue pairs, and the device has 2", |device| {
            (device.features, device.config[8]) = (device.features | 1 << 22, 9)
        }),
        ("an MTU of 10", |device| {
            (device.features, device.config[10], device.config[11]) = (device.features | 8, 10, 0)
        }),
        ("cannot be read", |device| device.config.clear()),
    ];
    for (says, change) in cases {
        let handover = Handover::new(Box::new(Fake::new().with(change))).unwrap();
        let error = handover.facts().lie.clone().expect(says);
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn what_is_offered_is_what_the_device_has_and_what_the_front_end_serves() {
    let handover = Handover::new(Box::new(Fake::new())).unwrap();
    let offered = handover.facts().offer(crate::vhost::offered(ringspan_protocol::Compat::LATEST, true));
    let names = crate::vhost::feature_names(offered).join(" ");
    let wanted = "MTU MRG_RXBUF STATUS CTRL_VQ CTRL_RX CTRL_VLAN GUEST_ANNOUNCE CTRL_MAC_ADDR LOG_ALL ANY_LAYOUT PROTOCOL_FEATURES VERSION_1";
    assert_eq!(names, wanted);
}
