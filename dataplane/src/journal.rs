//! What must outlive a lane: a port's counters and how far its packed rings are, in a small file in the run directory that the
//! lane maps.
//!
//! The kernel keeps the pages of a killed process, so the file is always as new as the last store. Split rings need nothing:
//! nothing is in flight between bursts, and the used index in guest memory says where to go on.

use std::fs::OpenOptions;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::posix_fallocate;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use ringspan_protocol::{MAX_QUEUE_PAIRS, PortCounters, PortName};

use crate::ring::{RingRecord, RingRecords};
use crate::stats::QueueCells;

/// "ringspan" as a number, and the version of the layout in the lowest byte of the second word.
const MAGIC: u64 = u64::from_be_bytes(*b"ringspan");
const LAYOUT: u64 = 3;
const QUEUES: usize = MAX_QUEUE_PAIRS as usize;

/// The file's layout. All zeroes is a valid, new journal.
#[repr(C, align(128))]
struct Layout {
    magic: AtomicU64,
    layout: AtomicU64,
    from_guest: [QueueCells; QUEUES],
    to_guest: [QueueCells; QUEUES],
    rings: [RingRecord; 2 * QUEUES],
    unsent: AtomicU64,
}

/// Where the rings' records begin in the file.
#[cfg(test)]
pub const RECORDS: usize = std::mem::offset_of!(Layout, rings);

/// A port's journal, mapped.
pub struct Journal {
    path: PathBuf,
    at: NonNull<Layout>,
}

// SAFETY: the mapping lives as long as the value, and everything in it is atomic.
unsafe impl Send for Journal {}
// SAFETY: as above.
unsafe impl Sync for Journal {}

impl Journal {
    /// Opens the journal of a port in `dir`, or makes a new one. A file of another layout is started anew. What the last lane
    /// had in hand when it was killed is counted as lost.
    pub fn open(dir: &Path, port: &PortName) -> io::Result<Arc<Self>> {
        let path = path_in(dir, port);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        let size = size_of::<Layout>();
        if file.metadata()?.len() != size as u64 {
            file.set_len(0)?;
            file.set_len(size as u64)?;
        }
        // Without room on the file system a store to the mapping would be a SIGBUS: better here.
        posix_fallocate(&file, 0, size as i64)?;
        let length = NonZeroUsize::new(size).ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new shared mapping of a file of that length; the run directory is ours alone, so nobody shrinks it.
        let at = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &file, 0) }?;
        let journal = Arc::new(Self { path, at: at.cast() });
        let layout = journal.layout();
        let known = [0, MAGIC].contains(&layout.magic.load(Ordering::Relaxed));
        if !known || ![0, LAYOUT].contains(&layout.layout.load(Ordering::Relaxed)) {
            // SAFETY: the mapping has that many bytes, all zeroes are a valid layout, and no worker has it yet.
            unsafe { journal.at.write_bytes(0, 1) };
        }
        layout.magic.store(MAGIC, Ordering::Relaxed);
        layout.layout.store(LAYOUT, Ordering::Relaxed);
        layout.from_guest.iter().chain(&layout.to_guest).for_each(QueueCells::settle);
        Ok(journal)
    }

    /// Counters of the guest's queue pair `pair` (0 to 31) towards the device.
    pub fn from_guest(&self, pair: usize) -> &QueueCells {
        &self.layout().from_guest[pair]
    }

    /// Counters of the device's queue `queue` (0 to 31) towards the guest.
    pub fn to_guest(&self, queue: usize) -> &QueueCells {
        &self.layout().to_guest[queue]
    }

    /// Frames that a relay gave its vDPA device, and that this had not sent when the rings changed hands.
    pub fn unsent(&self, frames: u64) {
        self.layout().unsent.fetch_add(frames, Ordering::Relaxed);
    }

    /// All counters, up to the last queue that ever counted anything, and at least one each.
    pub fn read(&self) -> PortCounters {
        let used = |cells: &[QueueCells]| {
            let mut all: Vec<_> = cells.iter().map(QueueCells::read).collect();
            let last = all.iter().rposition(|queue| *queue != Default::default());
            all.truncate(last.unwrap_or(0) + 1);
            all
        };
        let layout = self.layout();
        PortCounters {
            from_guest: used(&layout.from_guest),
            to_guest: used(&layout.to_guest),
            unsent: layout.unsent.load(Ordering::Relaxed),
            device: Vec::new(),
        }
    }

    /// Whether a port has a journal in `dir`.
    pub fn exists(dir: &Path, port: &PortName) -> bool {
        path_in(dir, port).exists()
    }

    /// Removes the journal of a port from `dir`: the port is gone for good and its counters with it. None is no error.
    pub fn forget(dir: &Path, port: &PortName) {
        match std::fs::remove_file(path_in(dir, port)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%port, %error, "cannot remove the journal");
            }
            _ => {}
        }
    }

    fn layout(&self) -> &Layout {
        // SAFETY: mapped for as long as self lives, page aligned, and atomic all through.
        unsafe { self.at.as_ref() }
    }
}

fn path_in(dir: &Path, port: &PortName) -> PathBuf {
    dir.join(format!("{port}.journal"))
}

impl RingRecords for Journal {
    /// Of the guest's ring `index` (0 to 63).
    fn record(&self, index: usize) -> &RingRecord {
        &self.layout().rings[index]
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // SAFETY: mapped by `open` with this length; the last reference is gone.
        if let Err(errno) = unsafe { munmap(self.at.cast(), size_of::<Layout>()) } {
            tracing::warn!(path = %self.path.display(), %errno, "cannot unmap a journal");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_go_on_where_the_last_owner_left_them_until_they_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let port: PortName = "vm1".parse().unwrap();
        let first = Journal::open(dir.path(), &port).unwrap();
        first.from_guest(2).received(7, 700);
        first.unsent(3);
        drop(first);

        let second = Journal::open(dir.path(), &port).unwrap();
        assert_eq!(second.read().from_guest[2].drops.lost, 7, "what it had in hand");
        second.from_guest(2).received(1, 100);
        second.unsent(2);
        let counters = second.read();
        assert_eq!(counters.from_guest.len(), 3);
        assert_eq!((counters.from_guest[2].received, counters.from_guest[2].received_bytes), (8, 800));
        assert_eq!((counters.to_guest.len(), counters.unsent), (1, 5));

        drop(second);
        Journal::forget(dir.path(), &port);
        assert!(!Journal::exists(dir.path(), &port));
        assert_eq!(Journal::open(dir.path(), &port).unwrap().read().from_guest[0].received, 0);
    }

    #[test]
    fn the_file_has_its_room_before_it_is_mapped() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let _journal = Journal::open(dir.path(), &"vm1".parse().unwrap()).unwrap();
        let file = std::fs::metadata(dir.path().join("vm1.journal")).unwrap();
        assert!(file.blocks() * 512 >= size_of::<Layout>() as u64, "a hole in it");
    }

    #[test]
    fn a_file_of_another_layout_is_started_anew() {
        let dir = tempfile::tempdir().unwrap();
        let port: PortName = "vm1".parse().unwrap();
        std::fs::write(dir.path().join("vm1.journal"), vec![0xff; size_of::<Layout>()]).unwrap();
        assert_eq!(Journal::open(dir.path(), &port).unwrap().read().from_guest[0].received, 0);
    }
}
