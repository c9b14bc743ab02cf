//! Packet buffers of DPDK: what both ringspan and librte_vhost move frames to and from in earnest.
//!
//! # Invariants
//! EAL is started before the first pool is made and stays; pools are never freed. The buffers of a [`Packets`] are its own, each
//! of one segment, and [`ROOM`] bytes from `data` on are writable.

use std::ptr::NonNull;

use dpdk_sys as sys;
use ringspan_dataplane::BURST;
use ringspan_dataplane::nic::{Eal, EalConfig, HugePages};
use ringspan_dataplane::ring::{FrameSink, FrameSource, NetHeader};

/// Bytes of the longest frame.
pub const ROOM: usize = 2048;

/// Starts DPDK in this process, once. The calling thread gets a cache of its own in every pool.
pub fn start() -> Eal {
    Eal::started().unwrap_or_else(|| {
        let config = EalConfig { name: "microbench".into(), memory_mib: 64, near: None, huge_pages: HugePages::Auto };
        Eal::start(&config).expect("DPDK starts")
    })
}

/// A pool of packet buffers, as testpmd makes them: a cache of 250 for each thread.
pub fn pool() -> *mut sys::rte_mempool {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    start();
    let name = format!("bench{}\0", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    let room = (ROOM + sys::SHIM_PKTMBUF_HEADROOM as usize) as u16;
    // SAFETY: EAL is started; the name is terminated.
    let pool = unsafe { sys::rte_pktmbuf_pool_create(name.as_ptr().cast(), 1023, 250, 0, room, -1) };
    assert!(!pool.is_null(), "a pool of packet buffers");
    pool
}

/// A burst of packet buffers.
pub struct Packets {
    pool: *mut sys::rte_mempool,
    /// The first `count` are ours.
    pub buffers: [*mut sys::rte_mbuf; BURST],
    /// How many there are.
    pub count: usize,
    next: usize,
}

impl Packets {
    /// None yet.
    pub fn new() -> Self {
        Self { pool: pool(), buffers: [std::ptr::null_mut(); BURST], count: 0, next: 0 }
    }

    /// A whole burst of copies of one frame.
    pub fn of(frame: &[u8]) -> Self {
        let mut packets = Self::new();
        packets.allocate();
        for _ in 0..BURST {
            let data = packets.frame(&NetHeader::default(), frame.len()).expect("a buffer for each");
            // SAFETY: `frame` promises room for so many bytes.
            unsafe { data.as_ptr().copy_from_nonoverlapping(frame.as_ptr(), frame.len()) };
        }
        packets
    }

    /// The pool.
    pub fn pool(&self) -> *mut sys::rte_mempool {
        self.pool
    }

    /// Takes a burst of empty buffers from the pool.
    #[inline(always)]
    pub fn allocate(&mut self) {
        // SAFETY: the pool is there for good, and the array has room for a burst.
        let status = unsafe { sys::shim_alloc_bulk(self.pool, self.buffers.as_mut_ptr(), BURST as u32) };
        assert_eq!(status, 0, "the pool is empty");
        (self.count, self.next) = (BURST, 0);
    }

    /// Gives all buffers back.
    #[inline(always)]
    pub fn free(&mut self) {
        // SAFETY: the first `count` are ours, and are forgotten.
        unsafe { sys::shim_free_bulk(self.buffers.as_mut_ptr(), self.count as u32) };
        self.count = 0;
    }

    /// A frame's bytes.
    #[inline(always)]
    pub fn bytes(&self, index: usize) -> &[u8] {
        // SAFETY: the buffer is ours, and has room for as many bytes as its header says.
        unsafe { std::slice::from_raw_parts(self.data(index), self.frame_len(index)) }
    }

    #[inline(always)]
    fn field<T>(&self, index: usize, offset: u32) -> *mut T {
        // SAFETY: the offset of a field inside of a buffer's header, as DPDK's own headers have it.
        unsafe { self.buffers[index].cast::<u8>().add(offset as usize).cast() }
    }

    #[inline(always)]
    fn data(&self, index: usize) -> *mut u8 {
        // SAFETY: both fields are set in a buffer that came from its pool.
        unsafe {
            let start = self.field::<*mut u8>(index, sys::SHIM_MBUF_BUF_ADDR).read();
            start.add(usize::from(self.field::<u16>(index, sys::SHIM_MBUF_DATA_OFF).read()))
        }
    }
}

impl Drop for Packets {
    fn drop(&mut self) {
        self.free();
    }
}

// SAFETY: each frame of a burst has a buffer of its own, with room for `ROOM` bytes, which is not guest memory.
unsafe impl FrameSink for Packets {
    #[inline(always)]
    fn frame(&mut self, header: &NetHeader, len: usize) -> Option<NonNull<u8>> {
        std::hint::black_box(header.flags);
        if self.next >= self.count || len > ROOM {
            return None;
        }
        let index = self.next;
        self.next += 1;
        // SAFETY: fields of a buffer of ours.
        unsafe {
            self.field::<u32>(index, sys::SHIM_MBUF_PKT_LEN).write(len as u32);
            self.field::<u16>(index, sys::SHIM_MBUF_DATA_LEN).write(len as u16);
        }
        NonNull::new(self.data(index))
    }
}

// SAFETY: one segment each, of as many bytes as the buffer's header says, which `frame` has set.
unsafe impl FrameSource for Packets {
    #[inline(always)]
    fn count(&self) -> usize {
        self.count
    }
    #[inline(always)]
    fn frame_len(&self, index: usize) -> usize {
        // SAFETY: a field of a buffer of ours.
        unsafe { self.field::<u32>(index, sys::SHIM_MBUF_PKT_LEN).read() as usize }
    }
    #[inline(always)]
    fn segments(&self, index: usize) -> impl Iterator<Item = (*const u8, usize)> {
        std::iter::once((self.data(index).cast_const(), self.frame_len(index)))
    }
}
