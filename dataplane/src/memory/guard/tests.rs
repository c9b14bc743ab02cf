//! Memory files that shrink while they are in use.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringspan_testkit::skip::{Need, can_run};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::memory::{GuestMap, RegionCache};

const MIB: usize = 1 << 20;

/// A memory file. `None` when the machine has no pages of that kind.
fn memory_file(flags: libc::c_uint, len: usize) -> Option<File> {
    // SAFETY: a literal name.
    let fd = unsafe { libc::memfd_create(c"ringspan-guard".as_ptr(), libc::MFD_CLOEXEC | flags) };
    // SAFETY: just opened, owned by nobody else.
    let file = (fd >= 0).then(|| unsafe { File::from_raw_fd(fd) })?;
    file.set_len(len as u64).ok()?;
    Some(file)
}

/// A map of `ranges` (offset and length) of a file, at guest addresses that equal the offsets.
fn map(file: &File, ranges: &[(usize, usize)]) -> Option<Arc<GuestMap>> {
    let ranges = ranges.iter().map(|&(offset, len)| {
        let file = FileOffset::new(file.try_clone().unwrap(), offset as u64);
        (GuestAddress(offset as u64), len, Some(file))
    });
    Some(GuestMap::new(&Arc::new(GuestMemoryMmap::from_ranges_with_files(ranges.collect::<Vec<_>>()).ok()?)))
}

fn byte_at(map: &GuestMap, addr: usize) -> *mut u8 {
    map.translate(&mut RegionCache::default(), addr as u64, 1).expect("inside").start.as_ptr()
}

fn read(map: &GuestMap, addr: usize) -> u8 {
    // SAFETY: one byte inside guest memory.
    unsafe { byte_at(map, addr).read_volatile() }
}

fn write(map: &GuestMap, addr: usize, value: u8) {
    // SAFETY: one byte inside guest memory.
    unsafe { byte_at(map, addr).write_volatile(value) }
}

#[test]
fn a_shrunk_file_reads_as_zeros_and_poisons_its_map_alone() {
    let file = memory_file(0, 4 * MIB).unwrap();
    let hit = map(&file, &[(0, MIB), (2 * MIB, MIB)]).unwrap();
    let other = map(&memory_file(0, MIB).unwrap(), &[(0, MIB)]).unwrap();
    write(&hit, 5, 55);
    write(&hit, 2 * MIB + 9, 99);
    write(&other, 5, 77);
    assert_eq!((read(&hit, 2 * MIB + 9), hit.poisoned()), (99, false));

    file.set_len(MIB as u64).unwrap();
    assert_eq!(read(&hit, 2 * MIB + 9), 0);
    assert!(hit.poisoned());
    write(&hit, 3 * MIB - 1, 1);
    assert_eq!((read(&hit, 3 * MIB - 1), read(&hit, 5)), (1, 55), "the rest goes on");
    assert_eq!((read(&other, 5), other.poisoned()), (77, false));
}

#[test]
fn readers_on_many_threads_survive() {
    let file = memory_file(0, 16 * MIB).unwrap();
    let map = map(&file, &[(0, 16 * MIB)]).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (map, stop) = (&map, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    (0..16 * MIB).skip(thread * 1024).step_by(4096).for_each(|addr| {
                        read(map, addr);
                    });
                }
            });
        }
        file.set_len(MIB as u64).unwrap();
        while !map.poisoned() {
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn two_maps_of_one_mapping_are_both_poisoned() {
    let file = memory_file(0, MIB).unwrap();
    let range = (GuestAddress(0), MIB, Some(FileOffset::new(file.try_clone().unwrap(), 0)));
    let memory = Arc::new(GuestMemoryMmap::from_ranges_with_files([range]).unwrap());
    let maps = [GuestMap::new(&memory), GuestMap::new(&memory)];
    file.set_len(0).unwrap();
    assert_eq!(read(&maps[1], 0), 0);
    assert!(maps[0].poisoned() && maps[1].poisoned());
}

#[test]
fn a_slot_that_is_used_again_starts_clean() {
    for _ in 0..3 {
        let file = memory_file(0, MIB).unwrap();
        let map = map(&file, &[(0, MIB)]).unwrap();
        assert!(!map.poisoned());
        file.set_len(0).unwrap();
        read(&map, MIB - 1);
        assert!(map.poisoned());
    }
}

#[test]
fn more_maps_than_one_chunk_holds_are_guarded() {
    let file = memory_file(0, MIB).unwrap();
    let maps: Vec<_> = (0..2 * super::CHUNK).map(|_| map(&file, &[(0, 4096)]).unwrap()).collect();
    file.set_len(0).unwrap();
    for map in &maps {
        read(map, 0);
        assert!(map.poisoned());
    }
}

#[test]
fn huge_pages_are_replaced_by_whole_pages() {
    const HUGE: usize = 2 * MIB;
    if !can_run("memory::guard::tests::huge_pages_are_replaced_by_whole_pages", &[Need::HugePages(2)]) {
        return;
    }
    let file = memory_file(libc::MFD_HUGETLB | libc::MFD_HUGE_2MB, 2 * HUGE).unwrap();
    let map = map(&file, &[(0, 2 * HUGE)]).unwrap();
    write(&map, 0, 7);
    write(&map, HUGE + 5 * 4096 + 1, 8);
    assert!(!map.poisoned(), "somebody else took the free huge pages meanwhile");
    file.set_len(HUGE as u64).unwrap();
    assert_eq!(read(&map, HUGE + 5 * 4096 + 1), 0);
    assert!(map.poisoned());
    assert_eq!(read(&map, 0), 7);
}

/// What is tested here ends the process, so it runs in one of its own: this test's program again.
#[test]
fn a_fault_elsewhere_still_ends_the_process() {
    const CHILD: &str = "RINGSPAN_TEST_FAULT";
    if std::env::var_os(CHILD).is_some() {
        let file = memory_file(0, MIB).unwrap();
        let memory = GuestMemoryMmap::<()>::from_ranges_with_files([(
            GuestAddress(0),
            MIB,
            Some(FileOffset::new(file.try_clone().unwrap(), 0)),
        )]);
        let memory = Arc::new(memory.unwrap());
        let map = GuestMap::new(&memory);
        let byte = byte_at(&map, 0);
        drop(map); // The memory is still mapped, but not guarded any more.
        file.set_len(0).unwrap();
        // SAFETY: mapped; the fault is the point.
        unsafe { byte.read_volatile() };
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "memory::guard::tests::a_fault_elsewhere_still_ends_the_process"]).env(CHILD, "1");
    // SAFETY: setrlimit is async-signal-safe.
    unsafe {
        child.pre_exec(|| {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_CORE, &none);
            Ok(())
        })
    };
    let status = child.output().unwrap().status;
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}
