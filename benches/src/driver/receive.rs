//! Receiving: buffers are posted, frames are looked at, buffers are posted again.

use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use ringspan_testkit::guest::Memory;
use ringspan_testkit::guest::ring::WRITE;

use super::stamp::STAMP;
use super::{Chain, HEADER, OutOfOrder, Ring, Slots, prefetch_read};

/// A receive queue.
#[derive(Debug)]
pub struct Receiver<R> {
    ring: R,
    slots: Slots,
    mergeable: bool,
    kick: EventFd,
    /// Buffers that are still to come of the frame that was begun.
    rest: u16,
    /// Slots from the first one that was not taken on whose lines were asked for.
    asked: u16,
    /// Frames received.
    pub frames: u64,
    /// Bytes of them, without virtio-net headers.
    pub bytes: u64,
    /// Times that the device had to be kicked.
    pub kicks: u64,
}

impl<R: Ring> Receiver<R> {
    /// A queue of `size` buffers of `room` bytes each, header included.
    pub fn new(memory: &Arc<Memory>, size: u16, event_idx: bool, room: usize, mergeable: bool) -> anyhow::Result<Self> {
        let slots = Slots::new(memory, size, room)?;
        let chain = |slot| Chain { address: slots.guest(slot), length: room as u32, flags: WRITE };
        let ring = R::new(memory, size, event_idx, chain)?;
        let kick = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { ring, slots, mergeable, kick, rest: 0, asked: 0, frames: 0, bytes: 0, kicks: 0 })
    }

    /// The ring.
    pub fn ring(&self) -> &R {
        &self.ring
    }

    /// What is written to when the device wants to be kicked.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Posts all buffers of a new queue.
    pub fn post_all(&mut self) {
        let size = self.ring.size();
        self.post(size);
    }

    #[inline(always)]
    fn post(&mut self, count: u16) {
        if self.ring.offer(count) {
            self.kicks += 1;
            let _ = self.kick.write(1);
        }
    }

    /// Takes up to `most` used buffers, unless there are fewer than `least`, reads the first line of each frame, and posts the buffers
    /// again. `look` gets the number that each frame carries. How many buffers were taken.
    #[inline(always)]
    pub fn receive(&mut self, least: u16, most: u16, mut look: impl FnMut(u64)) -> Result<u16, OutOfOrder> {
        let count = self.ring.pending(least, most);
        if count == 0 || count < least {
            return Ok(0);
        }
        if count > self.ring.size() {
            return Err(OutOfOrder);
        }
        let count = count.min(most);
        let first = self.ring.first_pending();
        self.ask(count);
        if !self.ring.in_order(count) {
            return Err(OutOfOrder);
        }
        // What follows comes while this is looked at.
        let more = 2 * count.min(self.ring.size() / 2);
        if self.ring.peek(count, more - count.min(more)) {
            self.ask(more);
        }
        let mut frames = 0;
        for piece in self.slots.pieces(first, count) {
            for buffer in piece {
                if self.rest > 0 {
                    self.rest -= 1;
                    continue;
                }
                // SAFETY: a slot has at least one line, which is read as numbers that may have any value; the slot is the driver's.
                let (buffers, stamp) =
                    unsafe { (buffer.add(10).cast::<u16>().read(), buffer.add(STAMP).cast::<u64>().read()) };
                if self.mergeable && buffers > 1 {
                    self.rest = buffers - 1;
                }
                frames += 1;
                look(stamp);
            }
        }
        self.frames += frames;
        self.bytes = self.bytes.wrapping_add(self.ring.written(count)).wrapping_sub(HEADER as u64 * frames);
        self.asked = self.asked.saturating_sub(count);
        self.ring.take(count);
        self.post(count);
        Ok(count)
    }

    /// Asks for the first lines of the first `count` slots that were not taken, unless that was done already.
    #[inline(always)]
    fn ask(&mut self, count: u16) {
        let Some(more) = count.checked_sub(self.asked) else { return };
        let first = (self.ring.first_pending() + self.asked) & (self.ring.size() - 1);
        for piece in self.slots.pieces(first, more) {
            piece.iter().for_each(|buffer| prefetch_read(buffer.as_ptr()));
        }
        self.asked = count;
    }
}
