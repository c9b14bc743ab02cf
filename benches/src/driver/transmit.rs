//! Sending: whole bursts of frames, each written anew.

use std::ptr::{self, NonNull};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use ringspan_testkit::guest::Memory;
use ringspan_testkit::guest::ring::{Descriptor, INDIRECT, NEXT};

use super::stamp::{Frames, STAMP, image};
use super::{Chain, HEADER, LINE, OutOfOrder, Ring, Slots, prefetch_write};

/// Bytes of a buffer that holds a small frame: what is written of them all stays in registers meanwhile.
const SMALL: usize = 80;
/// A register.
#[cfg(target_arch = "x86_64")]
type Part = std::arch::x86_64::__m128i;
#[cfg(not(target_arch = "x86_64"))]
type Part = u128;
/// Lines of a buffer that are written by a loop; longer ones by the C library, whose wide copies are worth a call then.
const SHORT: u16 = 10;
/// Bytes of frames whose lines are asked for ahead of the copy.
const AHEAD: usize = 8192;

/// What is written to a slot.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// Bytes of the frame.
    length: u16,
    /// Lines of the buffer.
    lines: u16,
    /// Which of the images.
    image: u8,
}

/// A transmit queue.
#[derive(Debug)]
pub struct Transmitter<R> {
    ring: R,
    slots: Slots,
    frames: Frames,
    /// What buffers look like, by the size of their frame, and which of them each slot gets.
    images: Vec<Box<[u8]>>,
    shapes: Box<[Shape]>,
    kick: EventFd,
    /// The slot that is offered next.
    next: u16,
    /// Slots from there on whose lines were asked for.
    asked: u16,
    /// The ring told that the next burst has come back, and was not asked to be sure.
    peeked: bool,
    in_flight: u16,
    /// Frames that came back.
    pub done: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Times that the device had to be kicked.
    pub kicks: u64,
}

impl<R: Ring> Transmitter<R> {
    /// A queue of `size` slots. With `indirect` every frame has a table: its header in one piece and the rest in another.
    pub fn new(
        memory: &Arc<Memory>,
        size: u16,
        event_idx: bool,
        frames: Frames,
        indirect: bool,
        queue: u16,
    ) -> anyhow::Result<Self> {
        let slots = Slots::new(memory, size, HEADER + usize::from(frames.most()))?;
        let total = |slot| u32::from(frames.length(slot)) + HEADER as u32;
        let tables = if indirect { Some(memory.allocate(32 * usize::from(size), LINE)?) } else { None };
        if let Some(tables) = tables {
            for slot in 0..size {
                let address = slots.guest(slot);
                let header = Descriptor { address, length: HEADER as u32, flags: NEXT, next: 1 };
                let address = address + HEADER as u64;
                let frame = Descriptor { address, length: u32::from(frames.length(slot)), flags: 0, next: 0 };
                // SAFETY: two descriptors for each slot are in the piece, which is aligned to a line.
                unsafe {
                    let table = tables.start.cast::<Descriptor>().add(2 * usize::from(slot));
                    table.write_volatile(header);
                    table.add(1).write_volatile(frame);
                }
            }
        }
        let ring = R::new(memory, size, event_idx, |slot| match tables {
            Some(tables) => Chain { address: tables.guest + 32 * u64::from(slot), length: 32, flags: INDIRECT },
            None => Chain { address: slots.guest(slot), length: total(slot), flags: 0 },
        })?;
        let sizes = frames.sizes();
        let images = sizes.iter().map(|&size| image(size, queue)).collect();
        let shape = |slot| {
            let length = frames.length(slot);
            let image = sizes.iter().position(|&size| size == length).unwrap_or(0) as u8;
            Shape { length, lines: (HEADER + usize::from(length)).div_ceil(LINE) as u16, image }
        };
        let shapes = (0..size).map(shape).collect();
        let kick = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let (next, asked, peeked, in_flight, done, bytes, kicks) = (0, 0, false, 0, 0, 0, 0);
        Ok(Self { ring, slots, frames, images, shapes, kick, next, asked, peeked, in_flight, done, bytes, kicks })
    }

    /// With `VIRTIO_F_IN_ORDER`: what comes back may come by the batch.
    pub fn take_batches(&mut self) {
        self.ring.take_batches();
    }

    /// The ring.
    pub fn ring(&self) -> &R {
        &self.ring
    }

    /// What is written to when the device wants to be kicked.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Frames that the device has not given back yet, as far as was looked.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Takes back what the device has used, if that makes room for at least `wanted` frames; the room there is.
    #[inline(always)]
    pub fn reclaim(&mut self, wanted: u16) -> Result<u16, OutOfOrder> {
        let free = self.ring.size() - self.in_flight;
        if free >= wanted {
            return Ok(free);
        }
        let least = wanted - free;
        let back = self.ring.pending(least, least);
        if back < least {
            return if back > self.in_flight { Err(OutOfOrder) } else { Ok(free) };
        }
        if back > self.in_flight || !self.ring.in_order(back) {
            return Err(OutOfOrder);
        }
        // Whether as many more are there already: so the lines of the next burst can be asked for in time.
        self.peeked = self.in_flight - back >= wanted && self.ring.peek(back, wanted);
        if let Frames::Fixed(length) = self.frames {
            self.bytes += u64::from(back) * u64::from(length);
        } else {
            let (first, mask) = (self.ring.first_pending(), self.ring.size() - 1);
            let length = |i| u64::from(self.shapes[usize::from((first + i) & mask)].length);
            self.bytes += (0..back).map(length).sum::<u64>();
        }
        self.ring.take(back);
        self.in_flight -= back;
        self.done += u64::from(back);
        Ok(free + back)
    }

    /// Writes and offers `count` frames, for which there must be room, with `stamp` in the first, and one more in each that
    /// follows.
    #[inline(always)]
    pub fn send(&mut self, count: u16, stamp: u64) {
        debug_assert!(count <= self.ring.size() - self.in_flight);
        self.ring.prepare(count);
        if self.is_small() {
            self.write_small(count, stamp)
        } else {
            self.write(count, stamp)
        }
        self.next = (self.next + count) & (self.ring.size() - 1);
        self.asked = self.asked.saturating_sub(count);
        self.in_flight += count;
        // The lines of the next burst come while this one is shown, if it is known that the device has done with them.
        let peeked = std::mem::take(&mut self.peeked);
        if peeked || self.ring.size() - self.in_flight >= count {
            self.ask(if self.is_small() { count } else { self.distance().min(count) });
        }
        if self.ring.offer(count) {
            self.kicks += 1;
            let _ = self.kick.write(1);
        }
    }

    #[inline(always)]
    fn is_small(&self) -> bool {
        matches!(self.frames, Frames::Fixed(length) if usize::from(length) + HEADER <= SMALL)
    }

    /// Frames whose lines are asked for ahead of the copy.
    #[inline(always)]
    fn distance(&self) -> u16 {
        (AHEAD / self.frames.usual()).max(1) as u16
    }

    /// Asks for the lines of the next `count` slots that were not asked for yet.
    #[inline(always)]
    fn ask(&mut self, count: u16) {
        let Some(more) = count.checked_sub(self.asked) else { return };
        let first = (self.next + self.asked) & (self.ring.size() - 1);
        let both = |buffer: &NonNull<u8>| {
            prefetch_write(buffer.as_ptr());
            prefetch_write(buffer.as_ptr().wrapping_add(LINE));
        };
        if self.is_small() {
            self.slots.pieces(first, more).into_iter().flatten().for_each(both);
        } else {
            let slots = (0..more).map(|i| (first + i) & (self.ring.size() - 1));
            for slot in slots {
                let start = self.slots.pointer(slot);
                for at in 0..usize::from(self.shapes[usize::from(slot)].lines) {
                    prefetch_write(start.wrapping_add(LINE * at));
                }
            }
        }
        self.asked = count;
    }

    #[inline(always)]
    fn write_small(&mut self, count: u16, stamp: u64) {
        self.ask(count);
        let image = self.images[0].as_ptr().cast::<Part>();
        // SAFETY: the image has whole lines, at least 2.
        let parts: [Part; SMALL / size_of::<Part>()] =
            std::array::from_fn(|part| unsafe { image.add(part).read_unaligned() });
        let mut stamp = stamp;
        for piece in self.slots.pieces(self.next, count) {
            for buffer in piece {
                // SAFETY: a slot has whole lines, at least 2, aligned as such; it is the driver's.
                unsafe {
                    for (at, part) in parts.iter().enumerate() {
                        buffer.cast::<Part>().add(at).write(*part);
                    }
                    buffer.add(STAMP).cast::<u64>().write(stamp);
                }
                stamp = stamp.wrapping_add(1);
            }
        }
    }

    #[inline(always)]
    fn write(&mut self, count: u16, stamp: u64) {
        let mask = self.ring.size() - 1;
        let distance = self.distance();
        for i in 0..count {
            self.ask((i + distance).min(count));
            let slot = (self.next + i) & mask;
            let Shape { length, lines, image } = self.shapes[usize::from(slot)];
            let image = self.images[usize::from(image)].as_ptr();
            let buffer = self.slots.pointer(slot);
            // SAFETY: a slot and the image have whole lines, enough for the frame with its header; the slot is the driver's.
            unsafe {
                if lines <= SHORT {
                    for at in 0..usize::from(lines) {
                        ptr::copy_nonoverlapping(image.add(LINE * at), buffer.add(LINE * at), LINE);
                    }
                } else {
                    ptr::copy_nonoverlapping(image, buffer, HEADER + usize::from(length));
                }
                buffer.add(STAMP).cast::<u64>().write(stamp.wrapping_add(u64::from(i)));
            }
        }
    }
}
