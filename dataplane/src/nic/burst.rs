//! A burst: up to 64 frames that are moved in one go.
//!
//! The fields of a frame's buffer header (`rte_mbuf`) are reached by the offsets that the C compiler gave at build time;
//! they differ between DPDK releases.

use std::marker::PhantomData;
use std::{fmt, ptr, slice};

use dpdk_sys as sys;

use super::pool::Pool;
use crate::BURST;

/// Up to [`Burst::CAPACITY`] frames in order. What is still in it when it is dropped goes back to its pool, which a burst keeps
/// alive even when it is empty: drop it to let the memory go.
pub struct Burst {
    /// The first `len` are valid, exclusively ours, and chains of buffers of pools in `pool` and `older_pools`, or of pools
    /// that stay until their buffers are back.
    frames: [*mut sys::rte_mbuf; BURST],
    len: usize,
    /// Where the latest frames came from.
    pool: Option<Pool>,
    /// Where frames that are still here came from, when those are other pools.
    older_pools: Vec<Pool>,
}

// SAFETY: the frames belong to the burst alone, and buffers may be used and returned by any thread.
unsafe impl Send for Burst {}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}

impl Burst {
    /// Most frames in a burst.
    pub const CAPACITY: usize = BURST;

    /// An empty burst.
    pub const fn new() -> Self {
        Self { frames: [ptr::null_mut(); BURST], len: 0, pool: None, older_pools: Vec::new() }
    }

    /// Frames in it.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no frames.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Frames that still fit.
    #[inline]
    pub fn room(&self) -> usize {
        BURST - self.len
    }

    /// Appends `n` empty frames of one buffer each: all of them, or none when the pool has too few or the burst has no room.
    #[inline]
    pub fn allocate(&mut self, pool: &Pool, n: usize) -> bool {
        if n > self.room() {
            return false;
        }
        self.hold(pool);
        // SAFETY: there is room for `n` pointers behind the first `len`; the pool is alive.
        let status = unsafe { sys::shim_alloc_bulk(pool.raw(), self.frames.as_mut_ptr().add(self.len), n as u32) };
        if status != 0 {
            return false;
        }
        self.len += n;
        true
    }

    /// The frame at `index`, counted from the front.
    ///
    /// # Panics
    /// When there is none.
    #[inline]
    pub fn frame(&self, index: usize) -> Frame<'_> {
        Frame { head: self.frames[..self.len][index], of_burst: PhantomData }
    }

    /// The frame at `index`, to be written.
    ///
    /// # Panics
    /// When there is none.
    #[inline]
    pub fn frame_mut(&mut self, index: usize) -> FrameMut<'_> {
        FrameMut { head: self.frames[..self.len][index], of_burst: PhantomData }
    }

    /// The frames in order.
    #[inline]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Frame<'_>> {
        self.frames[..self.len].iter().map(|head| Frame { head: *head, of_burst: PhantomData })
    }

    /// Returns the frames from `len` on to their pool.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            // SAFETY: these frames are ours, and no longer reached once `len` says so.
            unsafe { sys::shim_free_bulk(self.frames.as_mut_ptr().add(len), (self.len - len) as u32) };
            self.len = len;
        }
    }

    /// Returns the first `n` frames to their pool (all, when there are fewer); the others move up.
    #[inline]
    pub fn drop_front(&mut self, n: usize) {
        let n = n.min(self.len);
        // SAFETY: the first `n` frames are ours, and are overwritten or out of reach after `forget_front`.
        unsafe { sys::shim_free_bulk(self.frames.as_mut_ptr(), n as u32) };
        self.forget_front(n);
    }

    /// Moves the first `n` frames behind those of `to`: as many as there are, and as fit. The others move up.
    #[inline]
    pub fn move_front(&mut self, n: usize, to: &mut Self) {
        let n = n.min(self.len).min(to.room());
        for pool in self.pools() {
            to.hold(pool);
        }
        to.frames[to.len..to.len + n].copy_from_slice(&self.frames[..n]);
        to.len += n;
        self.forget_front(n);
    }

    /// Returns all frames to their pool.
    #[inline]
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Keeps `pool` alive as long as frames of it may be here.
    #[inline]
    pub(super) fn hold(&mut self, pool: &Pool) {
        if !self.pool.as_ref().is_some_and(|held| held.same(pool)) {
            self.hold_another(pool);
        }
    }

    #[cold]
    fn hold_another(&mut self, pool: &Pool) {
        if self.len == 0 {
            self.older_pools.clear();
            self.pool = None;
        }
        self.older_pools.retain(|held| !held.same(pool));
        self.older_pools.extend(self.pool.replace(pool.clone()));
    }

    /// The pools that frames in here came from.
    pub(super) fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pool.iter().chain(&self.older_pools)
    }

    /// Whether all frames came from `pool`.
    #[inline]
    pub(super) fn is_of(&self, pool: &Pool) -> bool {
        self.older_pools.is_empty() && self.pool.as_ref().is_none_or(|held| held.same(pool))
    }

    /// The free places, to be filled by [`Burst::filled`].
    #[inline]
    pub(super) fn spare(&mut self) -> &mut [*mut sys::rte_mbuf] {
        &mut self.frames[self.len..]
    }

    /// # Safety
    /// The first `n` places of [`Burst::spare`] are frames that were given to us, of a pool that is held.
    #[inline]
    pub(super) unsafe fn filled(&mut self, n: usize) {
        debug_assert!(n <= self.room());
        self.len += n;
    }

    /// The frames, to be given away with [`Burst::forget_front`].
    #[inline]
    pub(super) fn filled_places(&mut self) -> &mut [*mut sys::rte_mbuf] {
        &mut self.frames[..self.len]
    }

    /// Removes the first `n` frames, which belong to somebody else now.
    #[inline]
    pub(super) fn forget_front(&mut self, n: usize) {
        debug_assert!(n <= self.len);
        self.frames.copy_within(n..self.len, 0);
        self.len -= n;
    }
}

/// Where the frames of a burst go.
pub trait Deal {
    /// The burst for the frame at this place of the old one, or `None` to drop it. One without room drops it, too.
    fn to(&mut self, place: usize) -> Option<&mut Burst>;
}

impl Burst {
    /// Gives the first `n` frames away, in order (all, when there are fewer); the others move up.
    #[inline]
    pub fn deal(&mut self, n: usize, to: &mut impl Deal) {
        let n = n.min(self.len);
        let mut dropped = 0;
        for place in 0..n {
            let frame = self.frames[place];
            match to.to(place) {
                Some(burst) if burst.len < BURST => {
                    burst.frames[burst.len] = frame;
                    burst.len += 1;
                }
                _ => {
                    self.frames[dropped] = frame;
                    dropped += 1;
                }
            }
        }
        // SAFETY: the first `dropped` places are frames of this burst that were not given away, and are out of reach afterwards.
        unsafe { sys::shim_free_bulk(self.frames.as_mut_ptr(), dropped as u32) };
        self.forget_front(n);
    }

    /// Sees to it that the frame at `index` lies in a buffer of a pool, and is not in memory of somebody else's that was lent: such a
    /// one is copied into one buffer of `pool`. False when there is none, or it is too long for one.
    ///
    /// # Panics
    /// When there is no frame at `index`.
    #[inline]
    pub fn own(&mut self, index: usize, pool: &Pool) -> bool {
        !self.frame(index).is_lent() || self.own_lent(index, pool)
    }

    #[cold]
    fn own_lent(&mut self, index: usize, pool: &Pool) -> bool {
        let mut copy = Self::new();
        let frame = self.frame(index);
        if frame.len() > usize::from(pool.room()) || !copy.allocate(pool, 1) {
            return false;
        }
        let mut new = copy.frame_mut(0);
        new.set_len(frame.len());
        let whole = frame.copy_out(0, new.bytes_mut());
        debug_assert!(whole, "a frame is as long as it says");
        new.keep_marks(frame);
        self.hold(pool);
        // Both stay whole frames of somebody's: what was lent is freed with `copy`.
        std::mem::swap(&mut self.frames[index], &mut copy.frames[0]);
        true
    }
}

impl Drop for Burst {
    fn drop(&mut self) {
        self.clear();
    }
}

impl fmt::Debug for Burst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Burst of {} frames", self.len)
    }
}

/// # Safety
/// `head` is a valid mbuf, and the field at `offset` has the type `T`.
#[inline(always)]
pub(super) unsafe fn field<T: Copy>(head: *const sys::rte_mbuf, offset: u32) -> T {
    // SAFETY: by the contract; mbufs are cache-line aligned and their fields naturally aligned.
    unsafe { head.cast::<u8>().add(offset as usize).cast::<T>().read() }
}

/// # Safety
/// As [`field`], and nobody else reaches the mbuf.
#[inline(always)]
pub(super) unsafe fn set_field<T: Copy>(head: *mut sys::rte_mbuf, offset: u32, value: T) {
    // SAFETY: by the contract.
    unsafe { head.cast::<u8>().add(offset as usize).cast::<T>().write(value) }
}

/// First byte of a segment's data.
///
/// # Safety
/// `segment` is a valid mbuf.
#[inline(always)]
pub(super) unsafe fn data(segment: *const sys::rte_mbuf) -> *mut u8 {
    // SAFETY: `data_off` is within the buffer at `buf_addr`.
    unsafe {
        let buffer: *mut u8 = field(segment, sys::SHIM_MBUF_BUF_ADDR);
        buffer.add(usize::from(field::<u16>(segment, sys::SHIM_MBUF_DATA_OFF)))
    }
}

/// A frame, without its frame check sequence. It lies in one segment, or in several where the driver split it.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    head: *const sys::rte_mbuf,
    of_burst: PhantomData<&'a Burst>,
}

impl<'a> Frame<'a> {
    /// Length in bytes, all segments together.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        // SAFETY: the frame is valid while its burst is borrowed.
        unsafe { field::<u32>(self.head, sys::SHIM_MBUF_PKT_LEN) as usize }
    }

    /// Starts to load the first bytes of the frame into the cache.
    #[inline]
    pub fn prefetch(&self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch has no effect but on the cache; the frame is valid while its burst is borrowed.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(data(self.head).cast());
        }
    }

    /// Number of segments, 1 at least.
    #[inline]
    pub fn segment_count(&self) -> usize {
        // SAFETY: as above.
        unsafe { usize::from(field::<u16>(self.head, sys::SHIM_MBUF_NB_SEGS)) }
    }

    /// The first segment: the whole frame when [`Frame::segment_count`] is 1.
    #[inline]
    pub fn data(&self) -> &'a [u8] {
        // SAFETY: the segment's data lies in its buffer, was written by the device or by us, and is ours while the burst is borrowed.
        unsafe { slice::from_raw_parts(data(self.head), usize::from(field::<u16>(self.head, sys::SHIM_MBUF_DATA_LEN))) }
    }

    /// The segments in order.
    #[inline]
    pub fn segments(&self) -> Segments<'a> {
        Segments { next: self.head, of_burst: PhantomData }
    }

    pub(super) fn head(&self) -> *const sys::rte_mbuf {
        self.head
    }

    /// Each of its buffers, as a frame that begins there.
    pub(super) fn buffers(&self) -> impl Iterator<Item = Self> {
        std::iter::successors(Some(*self), |buffer| {
            // SAFETY: `next` of a valid segment is another valid one, or null at the end.
            let head: *mut sys::rte_mbuf = unsafe { field(buffer.head, sys::SHIM_MBUF_NEXT) };
            (!head.is_null()).then_some(Self { head, of_burst: PhantomData })
        })
    }

    /// The whole frame, copied. For tests and for what is rare.
    pub fn to_vec(&self) -> Vec<u8> {
        self.segments().flatten().copied().collect()
    }
}

impl fmt::Debug for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame {{ len: {}, segments: {} }}", self.len(), self.segment_count())
    }
}

/// The segments of a [`Frame`], each as bytes.
#[derive(Clone)]
pub struct Segments<'a> {
    next: *const sys::rte_mbuf,
    of_burst: PhantomData<&'a Burst>,
}

impl<'a> Iterator for Segments<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.next.is_null() {
            return None;
        }
        let segment = Frame { head: self.next, of_burst: PhantomData };
        // SAFETY: `next` of a valid segment is another valid one, or null at the end.
        self.next = unsafe { field(self.next, sys::SHIM_MBUF_NEXT) };
        Some(segment.data())
    }
}

/// A frame of one segment that is being written, as [`Burst::allocate`] makes them.
pub struct FrameMut<'a> {
    head: *mut sys::rte_mbuf,
    of_burst: PhantomData<&'a mut Burst>,
}

impl<'a> FrameMut<'a> {
    /// Most bytes the frame can have: from its first byte to the end of its buffer.
    #[inline]
    pub fn room(&self) -> usize {
        // SAFETY: the frame is valid and ours while the burst is borrowed.
        unsafe {
            let buffer = field::<u16>(self.head, sys::SHIM_MBUF_BUF_LEN);
            usize::from(buffer - field::<u16>(self.head, sys::SHIM_MBUF_DATA_OFF))
        }
    }

    pub(super) fn head(&mut self) -> *mut sys::rte_mbuf {
        self.head
    }

    /// The same frame, to be read.
    #[inline]
    pub fn as_frame(&self) -> Frame<'_> {
        Frame { head: self.head, of_burst: PhantomData }
    }

    /// The frame's first byte; [`FrameMut::room`] bytes may be written there while the burst is borrowed.
    #[inline]
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        // SAFETY: as above.
        unsafe { data(self.head) }
    }

    /// All [`FrameMut::room`] bytes; what was not written holds whatever the buffer held before.
    #[inline]
    pub fn buffer(&mut self) -> &mut [u8] {
        // SAFETY: the buffer is ours while the burst is borrowed; pool memory is initialised by the kernel.
        unsafe { slice::from_raw_parts_mut(data(self.head), self.room()) }
    }

    /// Sets the frame's length in bytes, and makes it one segment.
    ///
    /// # Panics
    /// When it is longer than [`FrameMut::room`], or the frame has several segments.
    #[inline]
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.room(), "a frame of {len} bytes in a buffer of {}", self.room());
        // SAFETY: the fields of a valid frame that is ours; the length fits its buffer, whose size is a u16.
        unsafe {
            assert!(field::<u16>(self.head, sys::SHIM_MBUF_NB_SEGS) == 1, "the length of a frame in several segments");
            set_field(self.head, sys::SHIM_MBUF_DATA_LEN, len as u16);
            set_field(self.head, sys::SHIM_MBUF_PKT_LEN, len as u32);
        }
    }

    /// Puts `bytes` more in front, whose values are whatever they are. False when the buffer has no room before the frame.
    #[inline]
    pub fn prepend(&mut self, bytes: usize) -> bool {
        // SAFETY: the fields of a valid frame that is ours; what is in front of the data, up to the buffer's beginning, is free.
        unsafe {
            let offset = field::<u16>(self.head, sys::SHIM_MBUF_DATA_OFF);
            let len = field::<u16>(self.head, sys::SHIM_MBUF_DATA_LEN);
            let Some(left) = usize::from(offset).checked_sub(bytes) else { return false };
            let Some(longer) = usize::from(len).checked_add(bytes).and_then(|len| u16::try_from(len).ok()) else {
                return false;
            };
            set_field(self.head, sys::SHIM_MBUF_DATA_OFF, left as u16);
            set_field(self.head, sys::SHIM_MBUF_DATA_LEN, longer);
            let total = field::<u32>(self.head, sys::SHIM_MBUF_PKT_LEN);
            set_field(self.head, sys::SHIM_MBUF_PKT_LEN, total + bytes as u32);
        }
        true
    }

    /// Takes `bytes` off the front. False when the first segment has fewer.
    #[inline]
    pub fn strip(&mut self, bytes: usize) -> bool {
        // SAFETY: the fields of a valid frame that is ours; the data stays within its buffer.
        unsafe {
            let offset = field::<u16>(self.head, sys::SHIM_MBUF_DATA_OFF);
            let len = field::<u16>(self.head, sys::SHIM_MBUF_DATA_LEN);
            if bytes > usize::from(len) {
                return false;
            }
            set_field(self.head, sys::SHIM_MBUF_DATA_OFF, offset + bytes as u16);
            set_field(self.head, sys::SHIM_MBUF_DATA_LEN, len - bytes as u16);
            let total = field::<u32>(self.head, sys::SHIM_MBUF_PKT_LEN);
            set_field(self.head, sys::SHIM_MBUF_PKT_LEN, total - bytes as u32);
        }
        true
    }

    /// Copies `bytes` in as the whole frame.
    ///
    /// # Panics
    /// As [`FrameMut::set_len`].
    #[inline]
    pub fn fill(&mut self, bytes: &[u8]) {
        self.set_len(bytes.len());
        self.buffer()[..bytes.len()].copy_from_slice(bytes);
    }
}
