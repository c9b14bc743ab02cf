//! Frames in memory of a test's own, so that what is read from a frame and written to it is tested without DPDK.

use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

use dpdk_sys as sys;

use super::burst::{Burst, set_field};

#[repr(C, align(64))]
struct Head([u8; sys::SHIM_MBUF_SIZE as usize]);

/// A burst of frames of no pool: they must not leave it.
pub struct Handmade {
    burst: ManuallyDrop<Burst>,
    _memory: Vec<(Box<Head>, Box<[u8]>)>,
}

impl Handmade {
    /// Frames of one buffer each, that say of themselves what `ol_flags` says.
    pub fn new<'a>(frames: impl IntoIterator<Item = &'a [u8]>, flags: u64) -> Self {
        let (mut burst, mut memory) = (ManuallyDrop::new(Burst::new()), Vec::new());
        for frame in frames {
            let mut head = Box::new(Head([0; sys::SHIM_MBUF_SIZE as usize]));
            let mut bytes: Box<[u8]> = frame.into();
            let mbuf: *mut sys::rte_mbuf = (&raw mut *head).cast();
            // SAFETY: the head is an mbuf of zeroes and nobody else's, its fields have these types; its buffer stays where it is.
            unsafe {
                set_field(mbuf, sys::SHIM_MBUF_BUF_ADDR, bytes.as_mut_ptr());
                set_field(mbuf, sys::SHIM_MBUF_BUF_LEN, bytes.len() as u16);
                set_field(mbuf, sys::SHIM_MBUF_DATA_LEN, bytes.len() as u16);
                set_field(mbuf, sys::SHIM_MBUF_PKT_LEN, bytes.len() as u32);
                set_field(mbuf, sys::SHIM_MBUF_NB_SEGS, 1u16);
                set_field(mbuf, sys::SHIM_MBUF_OL_FLAGS, flags);
            }
            burst.spare()[0] = mbuf;
            // SAFETY: a valid frame that is ours; it never goes back to a pool.
            unsafe { burst.filled(1) };
            memory.push((head, bytes));
        }
        Self { burst, _memory: memory }
    }
}

impl Deref for Handmade {
    type Target = Burst;

    fn deref(&self) -> &Burst {
        &self.burst
    }
}

impl DerefMut for Handmade {
    fn deref_mut(&mut self) -> &mut Burst {
        &mut self.burst
    }
}
