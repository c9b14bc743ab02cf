//! A pool of packet buffers (DPDK: *Mempool Library*, *Mbuf Library*).

use std::ffi::CString;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use dpdk_sys as sys;

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
        // SAFETY: EAL is started (a device is being configured); the name is terminated.
        let raw = unsafe { sys::rte_pktmbuf_pool_create(name.as_ptr(), size, CACHE, 0, data_room, socket) };
        let Some(raw) = NonNull::new(raw) else {
            // An mbuf, its room and the mempool's own header for each.
            let each = u64::from(sys::SHIM_MBUF_SIZE) + u64::from(data_room) + 64;
            return Err(PoolError { errno: rte_errno(), need_bytes: each * u64::from(size) });
        };
        Ok(Self { memory: Arc::new(PoolMemory { raw, size, data_room: frame }) })
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
        unsafe { sys::rte_mempool_avail_count(self.raw.as_ptr()) }
    }
}

/// Pools whose last handle is gone while buffers are still out: in another device's transmit ring, or on the way through a
/// software ring. They are freed when those are back.
static LEFT: Mutex<Vec<PoolMemory>> = Mutex::new(Vec::new());

/// Frees the pools of [`LEFT`] that have all their buffers again.
pub(super) fn sweep() {
    let done: Vec<_> = {
        let mut left = LEFT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        left.extract_if(.., |pool| pool.available() == pool.size).collect()
    };
    drop(done);
}

impl Drop for PoolMemory {
    fn drop(&mut self) {
        if self.available() == self.size {
            // SAFETY: no handle is left, and all buffers are in the pool, so nobody can reach it.
            unsafe { sys::rte_mempool_free(self.raw.as_ptr()) };
        } else {
            let Self { raw, size, data_room } = *self;
            tracing::debug!("pool with {} of {size} buffers outside is kept", size - self.available());
            let mut left = LEFT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            left.push(PoolMemory { raw, size, data_room });
        }
    }
}
