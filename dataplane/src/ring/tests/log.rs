//! While a guest is migrated: every page that a ring writes is in the log, and no other but one a burst.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::driver::*;
use crate::memory::DirtyLog;
use crate::ring::{FrameSink, Loan, NetHeader, Ring, RingError, RingFeatures, RingLog};

const PAGE: u64 = DirtyLog::PAGE;
/// Pages up to the end of the driver's memory.
const PAGES: u64 = BUFFERS_END / PAGE;
/// Where the test keeps bytes that no frame has.
const NOTHING: u8 = 0xa7;

/// A driver whose ring is logged, and what its memory was when it was looked at last.
struct Migrated {
    driver: Driver,
    file: File,
    log: Arc<DirtyLog>,
    before: Vec<u8>,
}

/// Guest memory by its parts.
const PARTS: [(u64, u64); 2] = [(RINGS, RINGS_END), (BUFFERS, BUFFERS_END)];

impl Migrated {
    fn new(size: u16, features: RingFeatures) -> Self {
        let file = File::from(memfd());
        file.set_len(PAGES / 8).unwrap();
        let log = DirtyLog::map(file.try_clone().unwrap(), 0, PAGES / 8).unwrap();
        // Near the ends of laps and of the index.
        let mut driver = Driver::new(size, features, 65_500);
        driver.fill(BUFFERS, &vec![NOTHING; (BUFFERS_END - BUFFERS) as usize]);
        driver.config.log = Some(RingLog { log: Arc::clone(&log), used: driver.config.used.0 });
        Self { driver, file, log, before: vec![] }
    }

    fn memory(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for region in self.driver.map().regions() {
            let start = bytes.len();
            bytes.resize(start + region.len as usize, 0);
            // SAFETY: the region is mapped, and nobody writes there now.
            unsafe {
                std::ptr::copy_nonoverlapping(region.host.as_ptr(), bytes[start..].as_mut_ptr(), region.len as usize)
            };
        }
        bytes
    }

    /// What comes is compared with this.
    fn look(&mut self) {
        self.before = self.memory();
        self.take();
    }

    /// Takes all marks, as a front-end does: the pages.
    fn take(&self) -> BTreeSet<u64> {
        let mut bytes = vec![0; (PAGES / 8) as usize];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        self.file.write_all_at(&vec![0; bytes.len()], 0).unwrap();
        let some = bytes.iter().enumerate().filter(|(_, byte)| **byte != 0);
        some.flat_map(|(at, byte)| (0..8).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| at as u64 * 8 + bit))
            .collect()
    }

    /// What changed since the last look is logged, and of what did not, `more` pages at most. Returns what changed.
    fn compare(&mut self, more: usize, what: &str) -> BTreeSet<u64> {
        let now = self.memory();
        let numbers = PARTS.iter().flat_map(|&(from, to)| from / PAGE..to / PAGE);
        let pages = self.before.chunks(PAGE as usize).zip(now.chunks(PAGE as usize)).zip(numbers);
        let changed: BTreeSet<u64> = pages.filter(|((old, new), _)| old != new).map(|(_, number)| number).collect();
        let logged = self.take();
        let missing: Vec<_> = changed.difference(&logged).collect();
        assert!(missing.is_empty(), "{what}: pages {missing:x?} were written and not logged");
        let idle: Vec<_> = logged.difference(&changed).collect();
        assert!(idle.len() <= more, "{what}: pages {idle:x?} were logged and not written");
        self.before = now;
        changed
    }
}

fn memfd() -> std::os::fd::OwnedFd {
    nix::sys::memfd::memfd_create(c"ringspan-test-log", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap()
}

/// Each kind of ring, with and without what changes how it is written.
fn every_kind() -> impl Iterator<Item = RingFeatures> {
    let kinds = over_both(RingFeatures { mergeable: true, indirect: true, ..MODERN }).into_iter();
    kinds.flat_map(|kind| {
        [false, true]
            .map(|on| RingFeatures { event_idx: on, ..kind })
            .into_iter()
            .chain([RingFeatures { in_order: true, ..kind }, RingFeatures { mergeable: false, ..kind }])
    })
}

#[test]
#[cfg_attr(miri, ignore = "maps a file")]
fn what_is_put_into_a_ring_is_logged_page_by_page() {
    every_kind().for_each(put_is_logged);
}

fn put_is_logged(features: RingFeatures) {
    let size = 64;
    let mut guest = Migrated::new(size, features);
    let mut ring = guest.driver.device();
    guest.look();
    for round in 0..4u64 {
        // Buffers that lie across pages and across the border of two regions, apart from their headers, and in tables. In the last round all are plain.
        for i in 0..24u16 {
            let (at, table) = (BORDER - 16 * 5000 + 5000 * u64::from(i), TABLES + 64 * u64::from(i));
            match (u64::from(i) + round) % 4 {
                _ if round == 3 => guest.driver.chain(2 * i, &[(at, 1800, WRITE)]),
                0 => guest.driver.chain(2 * i, &[(at, 1800, WRITE)]),
                1 => guest.driver.chain(2 * i, &[(at, 12, WRITE), (at + 2100, 1800, WRITE)]),
                2 => guest.driver.indirect_chain(2 * i, table, &[(at, 12, WRITE), (at + 2100, 1800, WRITE)]),
                _ => guest.driver.chain(2 * i, &[(at, 5, WRITE), (at + 4090, 1900, WRITE)]),
            }
        }
        (0..24).for_each(|i| guest.driver.offer(2 * i));
        // Or a header would be written where the same one is.
        guest.driver.fill(BORDER - 16 * 5000, &vec![NOTHING; 24 * 5000]);
        guest.before = guest.memory();
        let long = if features.mergeable && round % 3 == 0 { 4500 } else { 900 };
        let frames: Vec<_> =
            (0..9).map(|i| frame(round << 8 | i, if i == 4 { long } else { 60 + 90 * i as usize })).collect();
        let put = ring.put(&Frames::plain(&frames)).unwrap();
        assert_eq!(put.frames, 9, "{features:?}");
        let changed = guest.compare(1, &format!("put, {features:?}"));
        assert!(changed.len() > 7, "{changed:x?}");
        // The rest goes into what is left, so that the next round finds all free.
        let rest = Frames::plain(&vec![frame(round, 60); 24]);
        ring.put(&rest).unwrap();
        guest.driver.collect();
        guest.look();
    }
}

#[test]
#[cfg_attr(miri, ignore = "maps a file")]
fn what_is_given_back_to_a_sender_is_logged_and_its_frames_are_not() {
    every_kind().for_each(take_is_logged);
}

fn take_is_logged(features: RingFeatures) {
    let mut guest = Migrated::new(512, features);
    let mut ring = guest.driver.device();
    guest.look();
    for round in 0..4u64 {
        for i in 0..30u16 {
            let at = BUFFERS + 4096 * u64::from(i);
            match (u64::from(i) + round) % 3 {
                0 => guest.driver.chain(2 * i, &[(at, 112, 0)]),
                1 => guest.driver.chain(2 * i, &[(at, 12, 0), (at + 300, 100, 0)]),
                _ => guest.driver.indirect_chain(2 * i, TABLES + 64 * u64::from(i), &[(at, 12, 0), (at + 300, 100, 0)]),
            }
            guest.driver.offer(2 * i);
        }
        guest.before = guest.memory();
        let taken = ring.take(64, 1518, &mut Sink::default()).unwrap();
        assert_eq!(taken.frames, 30, "{features:?}");
        let changed = guest.compare(1, &format!("take, {features:?}"));
        assert!(changed.iter().all(|&page| page < RINGS_END / PAGE) && !changed.is_empty());
        assert_eq!(guest.driver.collect().len(), 30);
        guest.look();
    }
}

/// Lends everything.
#[derive(Default)]
struct Lender(u16);

// SAFETY: what is lent is not touched, and nothing is copied.
unsafe impl FrameSink for Lender {
    const LENDS: bool = true;

    fn frame(&mut self, _: &NetHeader, _: usize) -> Option<std::ptr::NonNull<u8>> {
        None
    }

    unsafe fn lend(&mut self, _: &NetHeader, _: std::ptr::NonNull<u8>, _: usize) -> Option<Loan> {
        self.0 += 1;
        Some(Loan(self.0))
    }
}

#[test]
#[cfg_attr(miri, ignore = "maps a file")]
fn frames_that_are_lent_are_logged_when_they_are_given_back() {
    for features in every_kind() {
        let mut guest = Migrated::new(64, features);
        let mut ring = guest.driver.device();
        ring.allow_loans();
        for i in 0..20u16 {
            guest.driver.chain(i, &[(BUFFERS + 4096 * u64::from(i), 1012, 0)]);
            guest.driver.offer(i);
        }
        guest.look();
        assert_eq!(ring.take(64, 1518, &mut Lender::default()).unwrap().lent, 20);
        assert!(guest.compare(0, "lent").is_empty());
        assert_eq!(ring.settle(|Loan(number)| number <= 7), 7);
        assert!(!guest.compare(1, "settled").is_empty());
        assert_eq!(ring.settle(|_| true), 13);
        assert!(!guest.compare(1, "settled").is_empty());
    }
}

#[test]
#[cfg_attr(miri, ignore = "maps a file")]
fn wishes_for_kicks_are_logged_and_a_new_ring_is_logged_whole() {
    for features in every_kind() {
        let mut guest = Migrated::new(1024, features);
        // Zeros are what a new ring has.
        guest.before = guest.memory();
        let mut ring = guest.driver.device();
        let (from, len) =
            if features.packed { (guest.driver.config.desc.0, 16 * 1024) } else { (guest.driver.config.used.0, 8192) };
        let logged = guest.take();
        assert!((from / PAGE..(from + len) / PAGE).all(|page| logged.contains(&page)), "{logged:x?}");
        guest.look();
        ring.suppress_kicks();
        guest.compare(1, "suppress");
        ring.request_kicks();
        guest.compare(1, "request");
    }
}

#[test]
#[cfg_attr(miri, ignore = "maps a file")]
fn nothing_is_logged_before_and_after() {
    for features in every_kind() {
        let mut guest = Migrated::new(64, features);
        let log = guest.driver.config.log.take();
        let mut ring = guest.driver.device();
        let put = |guest: &mut Migrated, ring: &mut Ring| {
            guest.driver.chain(0, &[(BUFFERS, 2000, WRITE)]);
            guest.driver.offer(0);
            assert_eq!(ring.put(&Frames::plain(&[frame(1, 100)])).unwrap().frames, 1);
            guest.driver.collect();
            guest.take()
        };
        assert!(put(&mut guest, &mut ring).is_empty());
        ring.set_log(log);
        assert!(put(&mut guest, &mut ring).contains(&(BUFFERS / PAGE)));
        ring.set_log(None);
        assert!(put(&mut guest, &mut ring).is_empty());
        assert_eq!(Arc::strong_count(&guest.log), 1, "a ring keeps a log that is over");
    }
}

#[test]
#[cfg_attr(miri, ignore = "maps a file")]
fn a_log_that_is_cut_short_stops_the_ring_and_nothing_else() {
    for features in over_both(MODERN) {
        let mut guest = Migrated::new(64, features);
        let mut ring = guest.driver.device();
        for i in 0..2 {
            guest.driver.chain(i, &[(BUFFERS, 2000, WRITE)]);
            guest.driver.offer(i);
        }
        guest.file.set_len(0).unwrap();
        let frames = Frames::plain(&[frame(1, 100)]);
        assert_eq!(ring.put(&frames).unwrap().frames, 1);
        assert_eq!(ring.put(&frames), Err(RingError::LogGone));
    }
}
