//! A ring of frames between two threads (DPDK programmer's guide, "Ring Library").

use std::ffi::CString;
use std::ptr::NonNull;

use dpdk_sys as sys;

use super::burst::Burst;
use super::error::rte_errno;

/// A ring with one sender and one receiver.
#[derive(Debug)]
pub(super) struct Ring {
    ring: NonNull<sys::rte_ring>,
    size: u32,
}

// SAFETY: a ring is made for a sender and a receiver in different threads (DPDK programmer's guide, "Ring Library"); who drains it
// sees to it that there is no other receiver.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

impl Ring {
    /// A new ring for `size` frames less one, a power of two; or rte_errno.
    pub fn new(name: &str, size: u32) -> Result<Self, i32> {
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: EAL is started; the name is read during the call.
        let ring = unsafe {
            sys::rte_ring_create(
                name.as_ptr(),
                size,
                sys::SHIM_SOCKET_ID_ANY,
                (sys::SHIM_RING_SP_ENQ | sys::SHIM_RING_SC_DEQ) as u32,
            )
        };
        NonNull::new(ring).map(|ring| Self { ring, size }).ok_or_else(rte_errno)
    }

    pub fn raw(&self) -> *mut sys::rte_ring {
        self.ring.as_ptr()
    }

    /// How many frames it has room for. It has more when the receiver goes on meanwhile.
    #[inline]
    pub fn room(&self) -> usize {
        // SAFETY: the ring lives; its indices are read atomically.
        unsafe { sys::shim_ring_room(self.raw()) as usize }
    }

    /// How many frames are in it. It has fewer when the receiver goes on meanwhile.
    #[inline]
    pub fn waiting(&self) -> usize {
        (self.size as usize - 1).saturating_sub(self.room())
    }

    /// Gives away frames from the front of the burst, as many as there is room for, and `most` at most. Returns how many.
    ///
    /// # Safety
    /// Nobody else sends to this ring meanwhile.
    #[inline]
    pub unsafe fn send(&self, burst: &mut Burst, most: usize) -> usize {
        let count = most.min(burst.len());
        let frames = &mut burst.filled_places()[..count];
        // SAFETY: the ring lives and the caller is its only sender; the frames are valid and ours to give.
        let n = unsafe { sys::shim_ring_give(self.raw(), frames.as_mut_ptr(), frames.len() as u32) } as usize;
        burst.forget_front(n);
        n
    }

    /// Appends frames to the burst, as many as are there and fit. Returns how many.
    ///
    /// # Safety
    /// Nobody else receives from this ring meanwhile. The frames are of pools that stay until their buffers are back.
    #[inline]
    pub unsafe fn receive(&self, burst: &mut Burst) -> usize {
        let spare = burst.spare();
        // SAFETY: the ring lives and the caller is its only receiver; `spare` has room for as many pointers as it is long.
        let n = unsafe { sys::shim_ring_take(self.raw(), spare.as_mut_ptr(), spare.len() as u32) } as usize;
        // SAFETY: that many frames were just taken out of the ring, and are ours.
        unsafe { burst.filled(n) };
        n
    }

    /// Frees what is in it. Only while nobody receives from it.
    pub fn drain(&self) {
        let mut frames = [std::ptr::null_mut(); crate::BURST];
        // Bounded, because the sender may go on meanwhile.
        for _ in 0..2 * self.size as usize / frames.len() {
            // SAFETY: the ring lives, holds frames that were sent and that nobody else reaches, and has no other receiver.
            unsafe {
                let n = sys::shim_ring_take(self.raw(), frames.as_mut_ptr(), frames.len() as u32);
                sys::shim_free_bulk(frames.as_mut_ptr(), n);
                if n == 0 {
                    return;
                }
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.drain();
        // SAFETY: nobody has it any more, and it is empty.
        unsafe { sys::rte_ring_free(self.raw()) };
    }
}
