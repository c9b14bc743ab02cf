//! A pool of packet buffers (DPDK: *Mempool Library*, *Mbuf Library*).

use std::ffi::CString;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dpdk_sys as sys;

use super::configure::may_have_memory;
use super::eal::lock_growth;
use super::error::rte_errno;

/// Buffers that a thread known to DPDK keeps for itself.
const CACHE: u32 = 128;

/// Packet buffers of one size. A handle: clones are the same pool, which goes when the last is dropped.
#[derive(Clone)]
pub struct Pool {
    memory: Arc<PoolMemory>,
}

/// Why a pool could not be made.
#[derive(Debug)]
pub(super) struct PoolError {
    pub errno: i32,
    pub need_bytes: u64,
}

struct PoolMemory {
    raw: NonNull<sys::rte_mempool>,
    size: u32,
    data_room: u16,
    /// The NUMA node that was asked for; none: any.
    node: Option<u16>,
}

// SAFETY: a mempool may be used by any number of threads at once; its functions are thread-safe (DPDK programmer's guide,
// "Mempool Library"), and it is freed only by the last owner.
unsafe impl Send for PoolMemory {}
// SAFETY: as above.
unsafe impl Sync for PoolMemory {}

impl Pool {
    /// Makes a pool of `size` buffers with room for `frame` bytes each, behind DPDK's headroom.
    pub(super) fn new(size: u32, frame: u16, socket: i32) -> Result<Self, PoolError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        sweep();
        // A mempool's name is 25 characters at most and unique in the process.
        let name = CString::new(format!("ringspan{}", NEXT.fetch_add(1, Ordering::Relaxed))).unwrap_or_default();
        let data_room = frame + sys::SHIM_PKTMBUF_HEADROOM as u16;
        // No lane that starts meanwhile counts hugepages that this one takes.
        let _others_wait = lock_growth();
        // SAFETY: EAL is started (a device is being configured); the name is terminated.
        let create = || unsafe { sys::rte_pktmbuf_pool_create(name.as_ptr(), size, CACHE, 0, data_room, socket) };
        let mut raw = create();
        if raw.is_null() && some_left() {
            // What was let go of a moment ago may be enough.
            std::thread::sleep(PAUSE);
            sweep();
            raw = create();
        }
        let Some(raw) = NonNull::new(raw) else {
            // An mbuf, its room and the mempool's own header for each.
            let each = u64::from(sys::SHIM_MBUF_SIZE) + u64::from(data_room) + 64;
            return Err(PoolError { errno: rte_errno(), need_bytes: each * u64::from(size) });
        };
        // SAFETY: the pool was just made, and nobody else has it.
        if unsafe { sys::shim_plain_buffers(raw.as_ptr(), data_room) } == 0 {
            // SAFETY: as above.
            unsafe { sys::rte_mempool_free(raw.as_ptr()) };
            tracing::error!(
                "this build of DPDK puts something between a packet buffer and its memory: use one that does not"
            );
            return Err(PoolError { errno: libc::ENOTSUP, need_bytes: 0 });
        }
        let node = u16::try_from(socket).ok();
        Ok(Self { memory: Arc::new(PoolMemory { raw, size, data_room: frame, node }) })
    }

    /// One like it on a NUMA node, where the lane has memory for it or finds free hugepages; none elsewhere, which is not worth an
    /// error: a pool elsewhere is slower, and no more. Takes long: not for workers, nor under a lock.
    pub fn near(&self, node: u16) -> Option<Self> {
        if !may_have_memory(node) {
            return None;
        }
        let made = Self::new(self.size(), self.room(), node.into());
        made.inspect_err(|PoolError { errno, need_bytes }| {
            tracing::info!(node, need_bytes, errno, "no packet buffers on this node, where a guest has its memory");
        })
        .ok()
    }

    /// The NUMA node that its buffers were asked to be on; none: any.
    pub fn node(&self) -> Option<u16> {
        self.memory.node
    }

    /// Buffers in all.
    pub fn size(&self) -> u32 {
        self.memory.size
    }

    /// Buffers that are free, those kept by threads included. Slow: not for the packet path.
    pub fn available(&self) -> u32 {
        self.memory.available()
    }

    /// Longest frame in bytes that fits into one buffer.
    pub fn room(&self) -> u16 {
        self.memory.data_room
    }

    /// Whether both are the same pool.
    pub fn same(&self, other: &Self) -> bool {
        self.memory.raw == other.memory.raw
    }

    pub(super) fn raw(&self) -> *mut sys::rte_mempool {
        self.memory.raw.as_ptr()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool {{ size: {}, room: {} }}", self.size(), self.room())
    }
}

impl PoolMemory {
    fn available(&self) -> u32 {
        // SAFETY: the pool lives as long as `self`.
        unsafe { available(self.raw) }
    }
}

/// Buffers that are free.
///
/// # Safety
///
/// The pool was not freed.
unsafe fn available(raw: NonNull<sys::rte_mempool>) -> u32 {
    // SAFETY: as the caller promises.
    unsafe { sys::rte_mempool_avail_count(raw.as_ptr()) }
}

/// Pools whose last handle is gone. Buffers may still be out: in another device's transmit ring, or on the way through a software
/// ring. And who gave the last one back may not be done with that: a mempool counts a buffer before it has written it to its cache.
/// So a pool is freed when it was full twice, [`PAUSE`] apart.
static LEFT: Mutex<Vec<Left>> = Mutex::new(Vec::new());

/// How long a pool must have been full. A put takes nanoseconds, unless its thread is not running.
const PAUSE: Duration = Duration::from_millis(100);

/// A pool without a handle.
struct Left {
    raw: NonNull<sys::rte_mempool>,
    size: u32,
    rest: Rest,
}

// SAFETY: as for `PoolMemory`.
unsafe impl Send for Left {}

/// Since when a pool is known to be full.
#[derive(Default)]
struct Rest(Option<Instant>);

impl Rest {
    /// A look at the pool. True when it can be freed.
    fn look(&mut self, full: bool, now: Instant) -> bool {
        match self.0 {
            _ if !full => self.0 = None,
            Some(since) => return now.duration_since(since) >= PAUSE,
            None => self.0 = Some(now),
        }
        false
    }
}

/// Frees the pools of `LEFT` of which that is known to be safe.
pub fn sweep() {
    let now = Instant::now();
    let done: Vec<_> = {
        let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: what is in the list was not freed.
        left.extract_if(.., |pool| pool.rest.look(unsafe { available(pool.raw) } == pool.size, now)).collect()
    };
    for Left { raw, .. } in done {
        // SAFETY: no handle is left, all buffers are in the pool, and have been there so long that nobody still gives one back.
        unsafe { sys::rte_mempool_free(raw.as_ptr()) };
    }
}

fn some_left() -> bool {
    !LEFT.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
}

impl Drop for PoolMemory {
    fn drop(&mut self) {
        let Self { raw, size, .. } = *self;
        let mut rest = Rest::default();
        rest.look(self.available() == size, Instant::now());
        LEFT.lock().unwrap_or_else(PoisonError::into_inner).push(Left { raw, size, rest });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_freed_when_it_was_full_for_a_while_and_not_at_the_first_look() {
        let (mut rest, begun) = (Rest::default(), Instant::now());
        let mut look = |full, after| rest.look(full, begun + after);
        assert!(!look(true, Duration::ZERO), "somebody may still be giving its last buffer back");
        assert!(!look(true, PAUSE / 2));
        assert!(!look(false, PAUSE), "a buffer was out");
        assert!(!look(true, PAUSE));
        assert!(!look(true, PAUSE * 3 / 2));
        assert!(look(true, PAUSE * 2));
    }
}
