//! The guest's memory as the device has it: I/O virtual addresses are the guest's physical ones, so that what a ring says is what the device reads.
//! (A vhost-user front-end says rings' own addresses in its virtual ones; the session has translated those by then.)

use std::fs;
use std::ops::RangeInclusive;
use std::sync::Arc;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::{Kernel, Refusal};
use crate::memory::{GuestMap, Region};

/// A region that is mapped.
#[derive(Debug, Clone)]
struct Mapping {
    start: u64,
    len: u64,
    host: *const u8,
    /// Device and inode of its file, and where in it the region begins.
    origin: Option<(u64, u64, u64)>,
    /// Keeps `host` mapped: a driver that works by our addresses (use_va, as the simulator of newer kernels) does so for as long as it was told.
    _memory: Arc<GuestMap>,
}

// SAFETY: the pointer is an address that is told to the kernel; nothing is read or written through it.
unsafe impl Send for Mapping {}

impl Mapping {
    /// What is to be mapped so that the device has all of `map`.
    fn all(map: &Arc<GuestMap>) -> Vec<Self> {
        let regions = map.regions().iter().zip(map.origins());
        let mapping = |(region, origin): (&Region, _)| Self {
            start: region.start,
            len: region.len,
            host: region.host.as_ptr(),
            origin,
            _memory: Arc::clone(map),
        };
        regions.map(mapping).collect()
    }

    /// Whether a device can be given it.
    fn check(&self, reach: &RangeInclusive<u64>) -> Result<(), Refusal> {
        // vhost_vdpa_pa_map (drivers/vhost/vdpa.c) pins whole pages from `host` on, and as many as the guest's addresses touch: of a region amid pages that
        // would be memory behind it, which is somebody else's.
        let (page, ours) = (page_size(), self.host.addr() as u64);
        if [self.start, self.len, ours].into_iter().any(|number| !number.is_multiple_of(page)) {
            return Err(Refusal::Pages { at: self.start, len: self.len, page });
        }
        let end = self.start.saturating_add(self.len - 1);
        if !reach.contains(&self.start) || !reach.contains(&end) {
            return Err(Refusal::Iova { range: reach.clone(), at: self.start, end });
        }
        Ok(())
    }

    /// Gives it to a device, as one of those that have so many bytes.
    fn pin(&self, kernel: &dyn Kernel, wanted_bytes: u64) -> Result<(), Refusal> {
        kernel.map(self.start, self.len, self.host).map_err(|error| {
            // The kernel says EFAULT whatever it was (vhost_chr_write_iter in drivers/vhost/vhost.c).
            beyond_the_limit(wanted_bytes).unwrap_or_else(|| Refusal::Memory {
                at: self.start,
                len: self.len,
                error: error.to_string(),
            })
        })
    }

    /// Whether an address is in both.
    fn overlaps(&self, other: &Self) -> bool {
        self.start < other.start.saturating_add(other.len) && other.start < self.start.saturating_add(self.len)
    }

    /// Whether the device has the same memory at the same address. Our own address of it does not matter: what was told stays mapped.
    fn same(&self, other: &Self) -> bool {
        let same_memory = self.host == other.host || (self.origin.is_some() && self.origin == other.origin);
        self.start == other.start && self.len == other.len && same_memory
    }
}

/// What is mapped, in the order of addresses.
#[derive(Debug, Default)]
pub struct Mappings {
    now: Vec<Mapping>,
}

impl Mappings {
    /// Makes the device's map that of `map`, by one batch in which only what differs is told; with `anew` all of it is: its pages may be others at the same
    /// place. What is mapped of `beside` stays, as far as it is in nobody's way: to pin a guest's memory takes long.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing may be mapped any more, or only a part: the device is to be stopped, and [`Mappings::clear`] called.
    pub fn change(
        &mut self,
        kernel: &dyn Kernel,
        map: &Arc<GuestMap>,
        beside: Option<&Arc<GuestMap>>,
        anew: bool,
        reach: &RangeInclusive<u64>,
    ) -> Result<(), Refusal> {
        let (wanted, beside) = (Mapping::all(map), beside.map(Mapping::all).unwrap_or_default());
        wanted.iter().try_for_each(|region| region.check(reach))?;
        let now = self.now.iter().cloned();
        // What is gone stays mapped here until the batch has ended: only then has the device let go of it.
        let stays =
            |old: &Mapping| beside.iter().any(|one| one.same(old)) && !wanted.iter().any(|new| new.overlaps(old));
        let keeps = |old: &Mapping| !anew && wanted.iter().any(|new| new.same(old));
        let (kept, gone): (Vec<_>, Vec<_>) = now.partition(|old| keeps(old) || stays(old));
        let added: Vec<Mapping> =
            wanted.into_iter().filter(|new| !kept.iter().any(|old: &Mapping| new.same(old))).collect();
        if gone.is_empty() && added.is_empty() {
            return Ok(());
        }
        kernel.batch(true).map_err(step("beginning a change of memory"))?;
        for region in &gone {
            kernel.unmap(region.start, region.len).map_err(step("giving up guest memory"))?;
        }
        self.now = kept;
        let wanted_bytes: u64 = added.iter().map(|region| region.len).sum();
        for region in added {
            region.pin(kernel, wanted_bytes)?;
            self.now.push(region);
        }
        kernel.batch(false).map_err(step("a change of memory"))
    }

    /// Maps `beside` besides what is mapped, as far as it is in nobody's way.
    ///
    /// # Errors
    /// [`Refusal`]; then all is as before.
    pub fn add(
        &mut self,
        kernel: &dyn Kernel,
        beside: &Arc<GuestMap>,
        reach: &RangeInclusive<u64>,
    ) -> Result<(), Refusal> {
        let free = |new: &Mapping| !self.now.iter().any(|old| old.overlaps(new));
        let added: Vec<Mapping> = Mapping::all(beside).into_iter().filter(free).collect();
        added.iter().try_for_each(|region| region.check(reach))?;
        if added.is_empty() {
            return Ok(());
        }
        let wanted_bytes: u64 = added.iter().map(|region| region.len).sum();
        kernel.batch(true).map_err(step("beginning to be given more memory"))?;
        let refused =
            added.iter().enumerate().find_map(|(at, region)| Some((at, region.pin(kernel, wanted_bytes).err()?)));
        if let Some((mapped, _)) = &refused {
            for region in &added[..*mapped] {
                let _ = kernel.unmap(region.start, region.len);
            }
        }
        let ended = kernel.batch(false).map_err(step("more memory"));
        match refused {
            Some((_, refusal)) => Err(refusal),
            None => {
                self.now.extend(added);
                ended
            }
        }
    }

    /// Takes everything away, as far as the device lets itself be told.
    pub fn clear(&mut self, kernel: &dyn Kernel) {
        // A batch may be open, or the mappings gone with a reset: what matters is that none is left.
        let _ = kernel.batch(true);
        let gone = std::mem::take(&mut self.now);
        for region in &gone {
            let _ = kernel.unmap(region.start, region.len);
        }
        let _ = kernel.batch(false);
    }

    /// How many regions are mapped.
    pub fn count(&self) -> usize {
        self.now.len()
    }
}

fn step(step: &'static str) -> impl FnOnce(std::io::Error) -> Refusal {
    move |error| Refusal::Step { step, error: error.to_string() }
}

/// Bytes of a page of the kernel's, which is what a device is given.
fn page_size() -> u64 {
    // SAFETY: no preconditions.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Whether pinning so much more goes beyond RLIMIT_MEMLOCK, in words.
fn beyond_the_limit(wanted: u64) -> Option<Refusal> {
    let (limit, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let pinned_kib: u64 =
        status.lines().find_map(|line| line.strip_prefix("VmPin:"))?.trim().trim_end_matches(" kB").parse().ok()?;
    let (limit_kib, wanted_kib) = (limit / 1024, wanted.div_ceil(1024));
    (limit != RLIM_INFINITY && pinned_kib + wanted_kib > limit_kib).then_some(Refusal::MemLock {
        limit_kib,
        pinned_kib,
        wanted_kib,
    })
}
