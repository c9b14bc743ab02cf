//! The log of dirty pages that a front-end gives to its back-end while it migrates the guest: a bit for each page of 4 KiB.
//!
//! # Invariants
//! The log is mapped, shared and writable, for as long as a [`Log`] lives, and is a whole number of 64-bit words; the back-end sets bits at any time, so it
//! is reached through atomics alone.

use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::Guest;
use super::feature::LOG_ALL;

/// Bytes of guest memory that a bit stands for.
pub const PAGE: u64 = 4096;

/// A log that a back-end writes to.
#[derive(Debug)]
pub struct Log {
    base: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping is process-wide, lives as long as the value, and is reached through atomics.
unsafe impl Send for Log {}

impl Log {
    /// Gives the back-end a log for all of the guest's memory, and asks for it to be used, as QEMU does when a migration begins. The
    /// protocol feature [`super::feature::PROTOCOL_LOG_SHMFD`] must have been agreed on.
    pub fn start(guest: &mut Guest) -> anyhow::Result<Self> {
        let log = Self::give(guest)?;
        let features = guest.features();
        guest.frontend()?.set_features(features | LOG_ALL)?;
        Ok(log)
    }

    /// Gives the back-end a log, and says nothing more.
    pub fn give(guest: &mut Guest) -> anyhow::Result<Self> {
        let regions = guest.memory().regions().iter();
        let end = regions.map(|region| region.guest + region.size).max().context("a guest without memory")?;
        let words = end.div_ceil(64 * PAGE) as usize;
        let size = words * size_of::<u64>();
        let file = memfd_create(c"ringspan-test-log", MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::ftruncate(&file, size as i64)?;
        let (access, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: a new mapping of a file of that length, at an address that the kernel chooses.
        let base = unsafe { mmap(None, size.try_into()?, access, flags, &file, 0) }?.cast();
        let log = Self { base, words };
        guest.frontend()?.set_log_base(file.as_raw_fd(), size as u64)?;
        Ok(log)
    }

    /// Takes LOG_ALL away, as QEMU does when a migration was cancelled.
    pub fn stop(guest: &mut Guest) -> anyhow::Result<()> {
        let features = guest.features();
        guest.frontend()?.set_features(features)
    }

    /// Takes all marks, word by word: the pages, in order.
    pub fn take(&self, mut page: impl FnMut(u64)) {
        for word in 0..self.words {
            // SAFETY: inside of the mapping, which is aligned as a page is.
            let cell = unsafe { self.base.add(word).as_ref() };
            if cell.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = cell.swap(0, Ordering::SeqCst);
            while bits != 0 {
                page(word as u64 * 64 + u64::from(bits.trailing_zeros()));
                bits &= bits - 1;
            }
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // SAFETY: mapped in start() with this length; nobody else has the address.
        let _ = unsafe { munmap(self.base.cast(), self.words * size_of::<u64>()) };
    }
}
