//! Buffers on their way from a pool to a burst: each becomes a frame when its length is known.

use std::ptr::{self, NonNull};

use dpdk_sys as sys;

use super::burst::{Burst, data, set_field};
use super::pool::Pool;
use crate::{BURST, SHORT};

/// Free buffers of one pool, of which the first have become frames. [`Burst::allocate`] makes frames that are changed
/// afterwards; here the fields of a frame are written once, which is what a burst of small frames feels.
///
/// Those that are free lie as the pool gave them out: one segment, held once (*Mbuf Library*, `rte_mbuf_raw_alloc`), so that
/// they can go back as they are.
pub struct Blanks {
    /// The first `frames` are whole frames, those up to `len` are free; all are ours, and of `pool`.
    buffers: [*mut sys::rte_mbuf; BURST],
    frames: usize,
    len: usize,
    pool: Option<Pool>,
    /// Longest frame in bytes that a buffer of `pool` holds.
    room: usize,
    /// Some of the frames have several buffers, or lie elsewhere: they are freed one by one.
    long: bool,
}

// SAFETY: the buffers belong to this alone, and may be used and returned by any thread.
unsafe impl Send for Blanks {}

/// `data_off`, `refcnt`, `nb_segs` and `port` of a frame in one buffer that came from no device, as the eight bytes that they are.
const FRESH: u64 = sys::SHIM_PKTMBUF_HEADROOM as u64 | 1 << 16 | 1 << 32 | (u16::MAX as u64) << 48;

// The fields that are written together lie side by side, and each value fits its part of FRESH.
const _: () = {
    assert!(sys::SHIM_PKTMBUF_HEADROOM as u64 <= u16::MAX as u64 && SHORT <= u16::MAX as usize);
    assert!(
        sys::SHIM_MBUF_REFCNT == sys::SHIM_MBUF_DATA_OFF + 2 && sys::SHIM_MBUF_NB_SEGS == sys::SHIM_MBUF_DATA_OFF + 4
    );
    assert!(
        sys::SHIM_MBUF_PORT == sys::SHIM_MBUF_DATA_OFF + 6 && sys::SHIM_MBUF_OL_FLAGS == sys::SHIM_MBUF_DATA_OFF + 8
    );
    assert!(sys::SHIM_MBUF_PACKET_TYPE + 4 == sys::SHIM_MBUF_PKT_LEN && sys::SHIM_MBUF_PACKET_TYPE.is_multiple_of(8));
    assert!(sys::SHIM_MBUF_VLAN_TCI == sys::SHIM_MBUF_DATA_LEN + 2 && sys::SHIM_MBUF_DATA_LEN.is_multiple_of(4));
    assert!(sys::SHIM_MBUF_DATA_OFF.is_multiple_of(8));
};

impl Default for Blanks {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes a buffer of a pool a frame of `len` bytes, which it has room for: where its first byte goes. It is the same place as that which the buffer has
/// written in itself (`buf_addr`), but found without a look there, where nobody has been since a device freed it.
///
/// # Safety
/// The buffer is of a [`Pool`], free, and ours.
#[inline(always)]
unsafe fn begin(buffer: *mut sys::rte_mbuf, len: usize) -> NonNull<u8> {
    let buffer = buffer.cast::<u8>();
    // SAFETY: its fields are where the compiler of DPDK's headers says, and are aligned, which the constants above assert; its
    // memory lies behind it, which Pool::new() has looked at, and data starts behind the headroom.
    unsafe {
        debug_assert_eq!(
            buffer.add(sys::SHIM_MBUF_BUF_ADDR as usize).cast::<*mut u8>().read(),
            buffer.add(sys::SHIM_MBUF_SIZE as usize)
        );
        buffer.add(sys::SHIM_MBUF_DATA_OFF as usize).cast::<u64>().write(FRESH);
        buffer.add(sys::SHIM_MBUF_OL_FLAGS as usize).cast::<u64>().write(0);
        buffer.add(sys::SHIM_MBUF_PACKET_TYPE as usize).cast::<u64>().write((len as u64) << 32);
        buffer.add(sys::SHIM_MBUF_DATA_LEN as usize).cast::<u32>().write(len as u32);
        NonNull::new_unchecked(buffer.add(sys::SHIM_MBUF_SIZE as usize + sys::SHIM_PKTMBUF_HEADROOM as usize))
    }
}

impl Blanks {
    /// None.
    pub const fn new() -> Self {
        Self { buffers: [ptr::null_mut(); BURST], frames: 0, len: 0, pool: None, room: 0, long: false }
    }

    /// Sees to a burst of free buffers, as far as the pool has them. Frames that were made and not taken are free again.
    #[inline]
    pub fn refill(&mut self, pool: &Pool) {
        if self.long {
            self.forget();
        }
        self.frames = 0;
        if self.len < BURST {
            self.fetch(pool);
        }
    }

    fn fetch(&mut self, pool: &Pool) {
        if !self.pool.as_ref().is_some_and(|held| held.same(pool)) {
            self.release();
            self.room = pool.room().into();
            self.pool = Some(pool.clone());
        }
        let mut missing = BURST - self.len;
        // A pool gives as many as are asked for, or none.
        while missing > 0 {
            // SAFETY: there is room for `missing` pointers behind the first `len`; the pool is alive.
            let status =
                unsafe { sys::shim_get_bulk(pool.raw(), self.buffers.as_mut_ptr().add(self.len), missing as u32) };
            if status == 0 {
                self.len += missing;
                return;
            }
            missing /= 2;
        }
    }

    /// Makes the next buffer a frame of `len` bytes, and says where its first byte goes. `None` when there is no buffer, or
    /// none so long.
    #[inline(always)]
    pub fn frame(&mut self, len: usize) -> Option<NonNull<u8>> {
        if self.frames == self.len || len > self.room {
            return None;
        }
        let buffer = *self.buffers.get(self.frames)?;
        self.frames += 1;
        // SAFETY: the buffer is ours, and free.
        Some(unsafe { begin(buffer, len) })
    }

    /// Makes the next buffers frames of these lengths, as [`Blanks::frame`] does one by one, and says of each where it goes. Returns how many there are
    /// now: all, or fewer where buffers are.
    ///
    /// # Safety
    /// No length is above [`SHORT`].
    #[inline(always)]
    pub unsafe fn several<P>(
        &mut self,
        frames: impl Iterator<Item = (usize, P)>,
        mut put: impl FnMut(P, usize, NonNull<u8>),
    ) -> usize {
        let Some(free) = self.buffers.get(self.frames..self.len) else { return 0 };
        if self.room < SHORT {
            return 0;
        }
        let mut made = 0;
        for (&buffer, (len, piece)) in free.iter().zip(frames) {
            debug_assert!(len <= SHORT);
            // SAFETY: the buffer is ours, and free; it has room for SHORT bytes.
            put(piece, len, unsafe { begin(buffer, len) });
            made += 1;
        }
        self.frames += made;
        made
    }

    /// Makes the next buffer and some more of the pool a frame of `len` bytes, and says where they go, in order. False when there are
    /// too few buffers, or it would take more than a burst of them.
    pub fn long_frame(&mut self, len: usize, pieces: &mut Vec<(NonNull<u8>, usize)>) -> bool {
        let Some(pool) = &self.pool else { return false };
        if len <= self.room {
            return self.frame(len).map(|start| pieces.push((start, len))).is_some();
        }
        let more = len.div_ceil(self.room) - 1;
        let mut buffers = [ptr::null_mut::<sys::rte_mbuf>(); BURST];
        if self.frames >= self.len || more > BURST {
            return false;
        }
        // SAFETY: there is room for that many pointers; the pool is alive.
        if unsafe { sys::shim_get_bulk(pool.raw(), buffers.as_mut_ptr(), more as u32) } != 0 {
            return false;
        }
        let room = self.room;
        let Some(start) = self.frame(room) else { return false };
        self.long = true;
        pieces.push((start, room));
        let head = self.buffers[self.frames - 1];
        let (mut last, mut left) = (head, len - room);
        for &buffer in &buffers[..more] {
            let part = left.min(room);
            left -= part;
            // SAFETY: buffers of the pool that are ours now, whose fields are as in `frame`; each is behind the one before.
            unsafe {
                let bytes = buffer.cast::<u8>();
                bytes.add(sys::SHIM_MBUF_DATA_OFF as usize).cast::<u64>().write(FRESH);
                set_field(buffer, sys::SHIM_MBUF_OL_FLAGS, 0u64);
                set_field(buffer, sys::SHIM_MBUF_DATA_LEN, part as u16);
                set_field(last, sys::SHIM_MBUF_NEXT, buffer);
                pieces.extend(NonNull::new(data(buffer)).map(|start| (start, part)));
            }
            last = buffer;
        }
        // SAFETY: the frame's first buffer is ours; `more` is 64 at most.
        unsafe {
            set_field(head, sys::SHIM_MBUF_NB_SEGS, more as u16 + 1);
            set_field(head, sys::SHIM_MBUF_PKT_LEN, len as u32);
        }
        true
    }

    /// Makes the next buffer a frame of `len` bytes that lies at `start`. False when there is no buffer.
    ///
    /// # Safety
    /// The bytes and `loan` stay in place until the frame is freed, of which `loan` tells.
    #[inline]
    pub(super) unsafe fn lend(&mut self, start: NonNull<u8>, len: u16, loan: *mut sys::shim_loan) -> bool {
        if self.frame(0).is_none() {
            return false;
        }
        self.long = true;
        let head = self.buffers[self.frames - 1];
        // SAFETY: a frame of ours, whose fields were just written; the rest is the caller's.
        unsafe { sys::shim_lend(head, start.as_ptr().cast(), len, loan) };
        true
    }

    /// Returns the frames that were made, of which some have several buffers.
    #[cold]
    fn forget(&mut self) {
        // SAFETY: the first `frames` are whole frames of ours, and are overwritten below.
        unsafe { sys::shim_free_bulk(self.buffers.as_mut_ptr(), self.frames as u32) };
        self.buffers.copy_within(self.frames..self.len, 0);
        self.len -= self.frames;
        (self.frames, self.long) = (0, false);
    }

    /// Frames that were made since the last [`Blanks::take`] or [`Blanks::refill`].
    #[inline]
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Moves the frames behind those of `burst`, as many as fit; the others are free again.
    #[inline]
    pub fn take(&mut self, burst: &mut Burst) {
        let Some(pool) = &self.pool else { return };
        burst.hold(pool);
        let moved = self.frames.min(burst.room());
        burst.spare()[..moved].copy_from_slice(&self.buffers[..moved]);
        // SAFETY: whole frames that are ours, of a pool that the burst holds; they are forgotten here.
        unsafe { burst.filled(moved) };
        self.buffers.copy_within(moved..self.len, 0);
        self.len -= moved;
        self.frames -= moved;
        if self.long {
            self.forget();
        }
        self.frames = 0;
    }

    /// Returns everything to the pool, and lets go of it.
    pub fn release(&mut self) {
        if self.long {
            self.forget();
        }
        let Some(pool) = self.pool.take() else { return };
        // SAFETY: the first `len` are ours and not reached any more; a frame that was made has one segment and is held once,
        // as the pool wants it.
        unsafe { sys::shim_put_bulk(pool.raw(), self.buffers.as_ptr().cast_mut(), self.len as u32) };
        (self.len, self.frames, self.room) = (0, 0, 0);
    }
}

impl Drop for Blanks {
    fn drop(&mut self) {
        self.release();
    }
}
