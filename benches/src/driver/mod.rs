//! The load generator's guest: a virtio-net driver that does nothing but move frames.
//!
//! The guest of the test kit is written to be right about everything; this one is written to be fast, so that whatever is measured
//! is the back-end. It has the test kit's memory and front-end, and rings of its own ([`split`], [`packed`]):
//! - The number of a ring's slot is the number of its descriptor and of its buffer, for good. A back-end that returns buffers in another
//!   order than it got them is reported, not served; none of those measured does that for virtio-net.
//! - What the ring's format lets stand is written once: addresses and lengths of a split ring. A packed descriptor is written anew.
//! - The cache lines of a whole burst are asked for, for writing, before the first of them is written.
//!
//! # Invariants
//! All pointers go into a [`Memory`] that whoever has them holds too. A slot's buffer belongs to the driver from the moment its
//! chain was seen used until it is offered again; only then it is touched, by plain copies.

pub mod guest;
pub mod packed;
pub mod receive;
pub mod slots;
pub mod split;
pub mod stamp;
#[cfg(test)]
mod tests;
pub mod transmit;

use std::sync::Arc;

use ringspan_testkit::guest::Memory;

pub use guest::{Guest, Options, Pair};
pub use packed::PackedRing;
pub use receive::Receiver;
pub use slots::Slots;
pub use split::SplitRing;
pub use transmit::Transmitter;

/// Bytes of the virtio-net header in front of every frame (virtio 1.x).
pub const HEADER: usize = 12;
/// Bytes of a cache line.
pub const LINE: usize = 64;

/// What a slot's descriptor says.
#[derive(Debug, Clone, Copy)]
pub struct Chain {
    /// Guest-physical address of the buffer, or of the table of its pieces.
    pub address: u64,
    /// Bytes of either.
    pub length: u32,
    /// `WRITE` or `INDIRECT`.
    pub flags: u16,
}

/// The driver's side of a ring, in either format. Slots are offered and come back in their order, round and round.
pub trait Ring: Sized + Send {
    /// Whether `VIRTIO_F_RING_PACKED` has to be negotiated.
    const PACKED: bool;

    /// An empty ring; `chain` tells what the descriptor of each slot says.
    fn new(memory: &Arc<Memory>, size: u16, event_idx: bool, chain: impl Fn(u16) -> Chain) -> anyhow::Result<Self>;

    /// Addresses in this process, as SET_VRING_ADDR wants them: descriptors, the driver's area, the device's area.
    fn user_addresses(&self) -> [u64; 3];

    /// What SET_VRING_BASE says of a new ring.
    fn base() -> u32;

    /// From now on the device may show a batch of slots by one used element, which has the number of its last: `VIRTIO_F_IN_ORDER`, sections
    /// 2.7.9 and 2.8.9. Not for buffers that it writes, each of which has a length of its own.
    fn take_batches(&mut self);

    /// Slots.
    fn size(&self) -> u16;

    /// How many of the slots that follow the taken ones have come back. May say less when that is fewer than `least`, and need not look for
    /// more than `most`, which is no less than that.
    fn pending(&mut self, least: u16, most: u16) -> u16;

    /// Whether the `count` slots that follow `from` slots of those that were not taken seem to have come back, for who would ask for their buffers
    /// ahead of time; what the ring itself has of them is asked for. Always no where that is not known for the price of a look, or where the
    /// device was waited for since the last time.
    fn peek(&mut self, from: u16, count: u16) -> bool;

    /// Whether the first `count` pending slots are those that were expected there.
    fn in_order(&self, count: u16) -> bool;

    /// Bytes that the device wrote to the first `count` pending slots.
    fn written(&self, count: u16) -> u64;

    /// Takes the first `count` pending slots.
    fn take(&mut self, count: u16);

    /// Asks for the memory that the next [`Ring::offer`] of so many slots writes.
    fn prepare(&self, count: u16);

    /// Offers the next `count` slots and shows them to the device; whether it wants to be kicked for that.
    fn offer(&mut self, count: u16) -> bool;

    /// The first slot that was not taken back yet.
    fn first_pending(&self) -> u16;
}

/// The back-end returned a buffer that it was not its turn to return, or more than it had.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error(
    "the back-end returned buffers in another order than it got them, or more than it got, which this generator does not serve"
)]
pub struct OutOfOrder;

/// What was written before is visible to the device before what comes is read. Once a burst.
#[inline(always)]
fn full_fence() {
    // SAFETY: a locked addition of nothing to the top of the stack, as Linux's `smp_mb()`: it orders as MFENCE does, which takes
    // longer on most processors.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("lock add dword ptr [rsp], 0");
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}

/// Asks for a cache line that will be written.
#[inline(always)]
pub fn prefetch_write(line: *const u8) {
    // SAFETY: a hint that does not fault and changes no register. As an instruction, because the compiler makes it a read on its baseline
    // processor, although every x86-64 processor takes it.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Asks for a cache line that will be read.
#[inline(always)]
pub fn prefetch_read(line: *const u8) {
    // SAFETY: a hint that does not fault.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}
