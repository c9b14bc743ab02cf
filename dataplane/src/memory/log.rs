//! The log of dirty pages that a front-end shares while it migrates its guest: one bit for each page of 4 KiB of guest-physical
//! memory, set by whoever writes to the page, taken by the front-end, which then sends the page (again).
//!
//! Bytes are as vhost-user has them (docs/interop/vhost-user.rst, "Migration"): page `n` is bit `n % 8` of byte `n / 8`, set by an
//! atomic operation, because the front-end takes bits with one at the same time.
//!
//! Invariants: `map` is mapped, readable and writable, for as long as the log lives; its length bounds every access. The front-end may
//! shrink the file behind it at any time: the guard then puts zeros there, and the log says that it is [`DirtyLog::poisoned`].

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

use vm_memory::{FileOffset, MmapRegion};

use super::guard::Guard;
use super::map::{GuestMap, Span};

/// A log of dirty pages, mapped.
pub struct DirtyLog {
    guard: Guard,
    /// Dropped last, after the guard has let go of its range.
    map: MmapRegion,
    /// Where the log begins in the mapping.
    offset: usize,
    /// Bytes of it.
    len: usize,
    /// Bits that were set and had not been.
    marked: AtomicU64,
}

impl DirtyLog {
    /// Bytes of guest memory that a bit stands for (VHOST_LOG_PAGE).
    pub const PAGE: u64 = 4096;

    /// Maps `len` bytes of a log that begin at `offset` of `file`, which has as many. The place is guarded against SIGBUS from
    /// here on.
    ///
    /// # Errors
    /// What mmap(2) says, or that the range is empty or no range.
    pub fn map(file: File, offset: u64, len: u64) -> io::Result<Arc<Self>> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let end = offset.checked_add(len).and_then(|end| usize::try_from(end).ok()).filter(|_| len > 0);
        // From the file's beginning: an offset need not be that of a page, and is 0 in all front-ends known.
        let map =
            MmapRegion::from_file(FileOffset::new(file, 0), end.ok_or_else(invalid)?).map_err(io::Error::other)?;
        let guard = Guard::new(std::iter::once(&map));
        Ok(Arc::new(Self { guard, map, offset: offset as usize, len: len as usize, marked: AtomicU64::new(0) }))
    }

    /// Whether all memory below the guest-physical address `end` has a bit.
    pub fn covers(&self, end: u64) -> bool {
        end.div_ceil(Self::PAGE) <= self.len as u64 * 8
    }

    /// Bits that were set so far and had not been.
    pub fn marked(&self) -> u64 {
        self.marked.load(Ordering::Relaxed)
    }

    /// Whether the front-end took the log away behind the mapping: what was marked since is lost.
    pub fn poisoned(&self) -> bool {
        self.guard.poisoned()
    }

    /// Marks what was written before this call. A page's bit that is found set stands for it too: the front-end takes bits before it
    /// reads pages, and what was written is visible before a bit is looked at.
    pub fn marker(&self) -> Marker<'_> {
        // A bit may only be left as it is when it is seen after the write is visible. x86 lets a load overtake a store.
        fence(Ordering::SeqCst);
        Marker { log: self, last: None, region: 0, fresh: 0 }
    }

    fn cell(&self, byte: u64) -> Option<&AtomicU8> {
        if byte >= self.len as u64 {
            return None;
        }
        // SAFETY: offset + byte is below the mapping's length, by the check above and `map`; an atomic of one byte is aligned, and
        // may be changed by others behind a shared reference.
        Some(unsafe { AtomicU8::from_ptr(self.map.as_ptr().add(self.offset + byte as usize)) })
    }
}

impl fmt::Debug for DirtyLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (len, marked, poisoned) = (self.len, self.marked(), self.poisoned());
        f.debug_struct("DirtyLog").field("len", &len).field("marked", &marked).field("poisoned", &poisoned).finish()
    }
}

/// Marks the pages of one burst.
pub struct Marker<'a> {
    log: &'a DirtyLog,
    /// The page that was marked last.
    last: Option<u64>,
    /// Which of the map's regions was hit last.
    region: usize,
    fresh: u64,
}

impl Marker<'_> {
    /// The `len` bytes at guest-physical address `addr` were written. What is behind the log's end has no bit.
    pub fn mark(&mut self, addr: u64, len: usize) {
        let Some(end) = addr.checked_add(len as u64).filter(|_| len > 0) else { return };
        for page in addr / DirtyLog::PAGE..=(end - 1) / DirtyLog::PAGE {
            if self.last.replace(page) == Some(page) {
                continue;
            }
            let Some(cell) = self.log.cell(page / 8) else { return };
            let bit = 1 << (page % 8);
            // Most are set already when much is written; a locked operation for each would cost more than the look. With SeqCst, as
            // the front-end's exchange and its look at the page have to be seen in one order with our write and look.
            if cell.load(Ordering::SeqCst) & bit == 0 && cell.fetch_or(bit, Ordering::SeqCst) & bit == 0 {
                self.fresh += 1;
            }
        }
    }

    /// The span, which `map` translated, was written.
    pub fn mark_span(&mut self, map: &GuestMap, span: Span) {
        if let Some(addr) = map.guest_address(&mut self.region, span) {
            self.mark(addr, span.len);
        }
    }
}

impl Drop for Marker<'_> {
    fn drop(&mut self) {
        if self.fresh > 0 {
            self.log.marked.fetch_add(self.fresh, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;

    fn file(len: u64) -> File {
        let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
        let file = File::from(nix::sys::memfd::memfd_create(c"ringspan-test-log", flags).unwrap());
        file.set_len(len).unwrap();
        file
    }

    fn bytes(file: &File, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps a file")]
    fn each_page_that_was_touched_has_its_bit_and_no_other() {
        let file = file(16);
        let log = DirtyLog::map(file.try_clone().unwrap(), 8, 8).unwrap();
        let mut marker = log.marker();
        marker.mark(0x0fff, 2); // Pages 0 and 1.
        marker.mark(0x1000, 4096); // Page 1 alone, for the second time.
        marker.mark(0x9000, 0);
        marker.mark(0xa000, 1);
        marker.mark(63 * 4096, 8192); // The last one, and one behind the log.
        marker.mark(u64::MAX - 1, 2);
        drop(marker);
        assert_eq!(bytes(&file, 16), [[0; 8], [0b11, 0b100, 0, 0, 0, 0, 0, 0x80]].concat());
        assert_eq!(log.marked(), 4);
        assert!(log.covers(64 * 4096) && !log.covers(64 * 4096 + 1));
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps a file")]
    fn a_log_that_is_cut_short_is_poisoned_and_harms_nobody() {
        let mut file = file(8192);
        file.write_all(&[0; 8192]).unwrap();
        let log = DirtyLog::map(file.try_clone().unwrap(), 0, 8192).unwrap();
        log.marker().mark(0, 1);
        assert!(!log.poisoned());
        file.set_len(0).unwrap();
        log.marker().mark(4096 * 8 * 4096, 1);
        assert!(log.poisoned());
    }

    #[test]
    fn no_log_is_mapped_of_nothing_or_beyond_all_addresses() {
        let file = || File::open("/dev/null").unwrap();
        assert!(DirtyLog::map(file(), 0, 0).is_err() && DirtyLog::map(file(), u64::MAX, 2).is_err());
    }
}
