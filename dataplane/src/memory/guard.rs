//! Guest memory can vanish: a front-end may shrink the file behind a mapping, and the next touch raises SIGBUS.
//!
//! The handler puts anonymous zero pages in place of what is gone, from the faulting page to the end of its mapping, and
//! marks the map as poisoned, so that its port is stopped. A fault anywhere else goes where it went before. A mapping of
//! hugetlbfs without reserved pages raises the same signal when the pages run out, and ends the same way.
//!
//! The disposition is the process's: nothing else may take SIGBUS afterwards, `rte_dev_hotplug_handle_enable` of DPDK
//! least of all, which calls the handler before it without telling it what happened.
//!
//! Invariants, because a signal handler reads this at any time:
//! - Slots live for ever: chunks are linked in once and never freed. They are re-used, so the table is as long as its
//!   peak.
//! - A slot's `state` is odd while it holds a range. It changes before and after every change of the other fields, so
//!   a reader that sees the same odd state before and after has read one range, not a mixture of two.
//! - The handler allocates nothing, locks nothing, and calls only mmap (as a bare system call) and sigaction.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};

use vm_memory::MmapRegion;

/// Slots that are allocated together; most lanes need one chunk.
const CHUNK: usize = 256;

/// One mapped range.
struct Slot {
    /// Odd: holds a range.
    state: AtomicUsize,
    /// Somebody fills or owns this slot.
    taken: AtomicBool,
    /// First address.
    start: AtomicUsize,
    /// First address behind, rounded up to a page.
    end: AtomicUsize,
    /// Page size of the mapping: what MAP_FIXED must be aligned to.
    page: AtomicUsize,
    /// A fault was mended here.
    poisoned: AtomicBool,
    /// The slot whose `poisoned` is asked: the first one of the same map.
    first: AtomicPtr<Slot>,
}

impl Slot {
    const fn new() -> Self {
        Self {
            state: AtomicUsize::new(0),
            taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            page: AtomicUsize::new(0),
            poisoned: AtomicBool::new(false),
            first: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    /// Whether the slot could be taken for oneself.
    fn take(&self) -> bool {
        self.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn publish(&'static self, start: usize, end: usize, page: usize, first: &'static Slot) {
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.page.store(page, Ordering::Relaxed);
        self.first.store(std::ptr::from_ref(first).cast_mut(), Ordering::Relaxed);
        self.state.fetch_add(1, Ordering::Release);
    }

    fn release(&self) {
        self.state.fetch_add(1, Ordering::Relaxed);
        // The new state is seen before any field of the next range is.
        fence(Ordering::SeqCst);
        self.taken.store(false, Ordering::Release);
    }

    /// Start, end, page size and first slot, when the slot holds a range with `addr` inside.
    fn around(&self, addr: usize) -> Option<(usize, usize, &'static Slot)> {
        let state = self.state.load(Ordering::Acquire);
        if state.is_multiple_of(2) {
            return None;
        }
        let (start, end) = (self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed));
        let page = self.page.load(Ordering::Relaxed);
        let first = self.first.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        if self.state.load(Ordering::Relaxed) != state || !(start..end).contains(&addr) || !page.is_power_of_two() {
            return None;
        }
        // SAFETY: a published slot names a slot of the table, and those live for ever.
        unsafe { first.as_ref() }.map(|first| (end, page, first))
    }
}

/// The table: chunks that are linked in and never taken out.
struct Chunk {
    slots: [Slot; CHUNK],
    next: AtomicPtr<Chunk>,
}

static TABLE: Chunk = Chunk::new();

impl Chunk {
    const fn new() -> Self {
        Self { slots: [const { Slot::new() }; CHUNK], next: AtomicPtr::new(std::ptr::null_mut()) }
    }

    fn next(&self) -> Option<&'static Chunk> {
        // SAFETY: null, or a chunk that was leaked into the list.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }

    /// The chunk behind this one, made if there is none.
    fn next_or_new(&self) -> &'static Chunk {
        if let Some(next) = self.next() {
            return next;
        }
        let new = Box::into_raw(Box::new(Chunk::new()));
        match self.next.compare_exchange(std::ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: just made, and leaked.
            Ok(_) => unsafe { &*new },
            Err(winner) => {
                // SAFETY: `new` was not linked in, so nobody else knows it; `winner` was, and is never freed.
                unsafe {
                    drop(Box::from_raw(new));
                    &*winner
                }
            }
        }
    }
}

/// All slots there are.
fn slots() -> impl Iterator<Item = &'static Slot> {
    std::iter::successors(Some(&TABLE), |chunk| chunk.next()).flat_map(|chunk| chunk.slots.iter())
}

/// A free slot, now taken.
fn take_slot() -> &'static Slot {
    let mut chunk = &TABLE;
    loop {
        if let Some(slot) = chunk.slots.iter().find(|slot| slot.take()) {
            return slot;
        }
        chunk = chunk.next_or_new();
    }
}

/// The ranges of one map while they are in the table.
pub(super) struct Guard {
    slots: Box<[&'static Slot]>,
}

impl Guard {
    /// Puts the ranges of `regions` into the table, and the handler into place if this is the first time.
    pub(super) fn new<'a>(regions: impl Iterator<Item = &'a MmapRegion>) -> Self {
        install();
        let mut slots: Vec<&'static Slot> = Vec::new();
        for region in regions {
            let slot = take_slot();
            slot.poisoned.store(false, Ordering::Relaxed);
            let page = page_size(region);
            let start = region.as_ptr().addr();
            let end = (start + region.size()).next_multiple_of(page);
            slot.publish(start, end, page, slots.first().copied().unwrap_or(slot));
            slots.push(slot);
        }
        Self { slots: slots.into() }
    }

    /// Whether a fault was mended in one of the ranges.
    #[inline]
    pub(super) fn poisoned(&self) -> bool {
        self.slots.first().is_some_and(|slot| slot.poisoned.load(Ordering::Relaxed))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // The first slot last: the others name it.
        for slot in self.slots.iter().rev() {
            slot.release();
        }
    }
}

/// The page size of a region's mapping: the file's own on hugetlbfs, else the system's.
pub(super) fn page_size(region: &MmapRegion) -> usize {
    // SAFETY: sysconf has no preconditions.
    let system = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let Some(file) = region.file_offset() else { return system };
    // SAFETY: statfs is plain data, for which zeros are valid.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor and a buffer of the right type.
    let known = unsafe { libc::fstatfs(file.file().as_raw_fd(), &mut stat) } == 0;
    let huge = usize::try_from(stat.f_bsize).unwrap_or(0);
    if known && stat.f_type == libc::HUGETLBFS_MAGIC && huge.is_power_of_two() { huge.max(system) } else { system }
}

/// What SIGBUS did before us. Written once, before the handler is in place.
static mut PREVIOUS: std::mem::MaybeUninit<libc::sigaction> = std::mem::MaybeUninit::uninit();

/// Puts the handler into place, once a process.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if cfg!(miri) {
            return; // Miri knows no signals.
        }
        // SAFETY: zeros are a valid sigaction; the handler has SA_SIGINFO's signature; PREVIOUS is written here
        // only, before the handler that reads it is installed.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            // On the alternate stack, where there is one; a fault in the previous handler must not be held back.
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(libc::SIGBUS, std::ptr::null(), (&raw mut PREVIOUS).cast());
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut())
        };
        if result != 0 {
            tracing::warn!(
                "no SIGBUS handler ({}): a front-end that shrinks its memory file stops this process",
                io::Error::last_os_error()
            );
        }
    });
}

/// The handler. Async-signal-safe: atomics, one bare system call, sigaction.
extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo with SA_SIGINFO.
    let (addr, code) = unsafe { ((*info).si_addr().addr(), (*info).si_code) };
    // SI_USER and its kin (code <= 0) are signals that somebody sent: no memory is missing.
    if code > 0 && mend(addr) {
        return;
    }
    // SAFETY: written before this handler was installed, never changed.
    let previous = unsafe { (&raw const PREVIOUS).cast::<libc::sigaction>().read() };
    match previous.sa_sigaction {
        libc::SIG_IGN if code <= 0 => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: zeros with SIG_DFL are a valid sigaction. The faulting instruction runs again, and the default
            // disposition ends the process with a core dump that shows the fault itself.
            unsafe {
                let mut default: libc::sigaction = std::mem::zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &default, std::ptr::null_mut());
                if code <= 0 {
                    libc::raise(signal);
                }
            }
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: installed with SA_SIGINFO, so it has this signature.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: installed without SA_SIGINFO, so it has this signature.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

/// Puts zero pages where `addr` is missing. False when no guarded range holds it.
fn mend(addr: usize) -> bool {
    let mut mended = false;
    for slot in slots() {
        let Some((end, page, first)) = slot.around(addr) else { continue };
        // Two maps may share a mapping: mend once, poison both.
        if !mended {
            let from = addr & !(page - 1);
            // SAFETY: replaces pages of a mapping that the table says is guest memory; whoever reads it does so with raw
            // accesses and expects any content. The range is inside the mapping and aligned to its page size. The
            // bare system call because only that is known to be async-signal-safe; errno is put back.
            unsafe {
                let errno = *libc::__errno_location();
                let result = libc::syscall(
                    libc::SYS_mmap,
                    from,
                    end - from,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                    -1,
                    0,
                );
                *libc::__errno_location() = errno;
                if result == -1 {
                    return false;
                }
            }
            mended = true;
        }
        first.poisoned.store(true, Ordering::Relaxed);
    }
    mended
}

#[cfg(test)]
mod tests;
