//! The generator is fast because it leaves out what it may: whether it does the rest is seen from the device's side.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use ringspan_testkit::guest::Memory;
use ringspan_testkit::guest::ring::{Descriptor, Used};

use super::stamp::{Frames, STAMP, image};
use super::*;

const SIZE: u16 = 256;
/// How many buffers come back at once, in turns.
const BACK: [usize; 6] = [0, 1, 63, 64, 65, 128];

/// A buffer that the device has: its number, where it is, and its length.
type Buffer = (u16, *mut u8, usize);

/// The device's side of a ring, step by step on the driver's thread.
struct Device {
    packed: bool,
    tables: [u64; 3],
    base: u64,
    taken: u16,
    given: u16,
}

impl Device {
    fn new<R: Ring>(ring: &R, memory: &Memory) -> Self {
        let (tables, base) = (ring.user_addresses(), memory.regions()[0].user);
        Self { packed: R::PACKED, tables, base, taken: 0, given: 0 }
    }

    /// The wrap bit of a packed position, as available and as used flags.
    fn flags(position: u16) -> (u64, u64) {
        if position & SIZE == 0 { (0x0080, 0x8080) } else { (0x8000, 0) }
    }

    /// Second half of a packed descriptor.
    fn tail(&self, position: u16) -> &AtomicU64 {
        let slot = usize::from(position & (SIZE - 1));
        // SAFETY: the slot is in the ring, which the test keeps mapped.
        unsafe { AtomicU64::from_ptr((self.tables[0] as *mut u64).add(2 * slot + 1)) }
    }

    /// Everything that is available.
    fn take(&mut self) -> Vec<Buffer> {
        let mut taken = vec![];
        loop {
            let slot = usize::from(self.taken & (SIZE - 1));
            let buffer = if self.packed {
                let tail = self.tail(self.taken).load(Ordering::Acquire);
                if (tail >> 48) & 0x8080 != Self::flags(self.taken).0 {
                    return taken;
                }
                // SAFETY: as above.
                let address = unsafe { (self.tables[0] as *const u64).add(2 * slot).read() };
                ((tail >> 32) as u16, address, tail as u32)
            } else {
                let avail = self.tables[1] as *mut u16;
                // SAFETY: index and entries are in the ring, heads are those of the driver.
                unsafe {
                    if AtomicU16::from_ptr(avail.add(1)).load(Ordering::Acquire) == self.taken {
                        return taken;
                    }
                    let id = avail.add(2 + slot).read();
                    let Descriptor { address, length, .. } =
                        (self.tables[0] as *const Descriptor).add(usize::from(id)).read();
                    (id, address, length)
                }
            };
            taken.push((buffer.0, (self.base + buffer.1) as *mut u8, buffer.2 as usize));
            self.taken = self.taken.wrapping_add(1);
        }
    }

    /// Gives buffers back, with so many bytes written to each.
    fn give(&mut self, ids: impl IntoIterator<Item = u16>, written: u32) {
        for id in ids {
            if self.packed {
                let word = u64::from(written) | u64::from(id) << 32 | Self::flags(self.given).1 << 48;
                self.tail(self.given).store(word, Ordering::Release);
            } else {
                let used = self.tables[2] as *mut u16;
                let slot = usize::from(self.given & (SIZE - 1));
                // SAFETY: index and elements are in the ring.
                unsafe {
                    used.add(2).cast::<Used>().add(slot).write(Used { id: id.into(), length: written });
                    AtomicU16::from_ptr(used.add(1)).store(self.given.wrapping_add(1), Ordering::Release);
                }
            }
            self.given = self.given.wrapping_add(1);
        }
    }
}

/// A pair of queues, and the memory that they are in.
fn queues<R: Ring>(frames: Frames) -> (std::sync::Arc<Memory>, Pair<R>) {
    let options = Options {
        socket: Default::default(),
        pairs: 1,
        ring_size: SIZE,
        features: 0,
        in_order: false,
        mergeable: true,
        indirect: false,
        frames,
        receive: 1518,
        huge_pages: false,
    };
    let (memory, mut pairs) = guest::queues(&options, false).unwrap();
    (memory, pairs.remove(0))
}

fn every_frame_is_whole_though_its_buffer_was_overwritten<R: Ring>() {
    for frames in [Frames::Fixed(64), Frames::Fixed(300), Frames::Fixed(1518), Frames::Imix] {
        let (memory, Pair { mut tx, .. }) = queues::<R>(frames);
        let mut device = Device::new(tx.ring(), &memory);
        let (mut sent, mut seen, mut held) = (0, 0, vec![]);
        for step in 0.. {
            if sent < 10 * u64::from(SIZE) && tx.reclaim(64).unwrap() >= 64 {
                tx.send(64, sent);
                sent += 64;
            }
            for (id, buffer, length) in device.take() {
                let expected_length = frames.length((seen % u64::from(SIZE)) as u16);
                let mut expected = image(expected_length, 0);
                expected[STAMP..STAMP + 8].copy_from_slice(&seen.to_le_bytes());
                // SAFETY: the buffer is that long, and the device's.
                let bytes = unsafe { std::slice::from_raw_parts_mut(buffer, length) };
                assert_eq!(length, HEADER + usize::from(expected_length), "frame {seen} of {frames}");
                assert!(bytes == &expected[..length], "frame {seen} of {frames}: {bytes:02x?}");
                bytes.fill(0xee);
                held.push(id);
                seen += 1;
            }
            let back = BACK[step % BACK.len()].min(held.len());
            device.give(held.drain(..back), 0);
            if held.is_empty() && seen == 10 * u64::from(SIZE) {
                break;
            }
        }
        assert_eq!((tx.reclaim(SIZE).unwrap(), tx.done), (SIZE, sent));
        assert_eq!(tx.bytes, (0..sent).map(|n| u64::from(frames.length((n % u64::from(SIZE)) as u16))).sum::<u64>());
    }
}

fn every_frame_is_seen_once_and_its_bytes_counted<R: Ring>() {
    for buffers_each in [1, 2] {
        let (memory, Pair { mut rx, .. }) = queues::<R>(Frames::Fixed(64));
        let mut device = Device::new(rx.ring(), &memory);
        rx.post_all();
        let (mut held, mut made, mut seen) = (vec![], 0_u64, 0_u64);
        for step in 0..500 {
            for (id, buffer, _) in device.take() {
                // The first buffer of a frame has the header.
                // SAFETY: it is longer than a line, and the device's.
                unsafe {
                    buffer.write_bytes(0, LINE);
                    buffer.add(10).cast::<u16>().write(buffers_each);
                    buffer.add(STAMP).cast::<u64>().write_unaligned(made / u64::from(buffers_each));
                }
                made += 1;
                held.push(id);
            }
            let back = BACK[step % BACK.len()].min(held.len());
            device.give(held.drain(..back), 76);
            rx.receive(if step % 3 == 0 { 64 } else { 1 }, 64, |stamp| {
                assert_eq!(stamp, seen);
                seen += 1;
            })
            .unwrap();
        }
        assert_eq!(rx.frames, seen);
        assert!(seen > 4 * u64::from(SIZE), "{seen} frames");
        let (frames, each) = (rx.frames, u64::from(buffers_each));
        // A frame may have come half.
        let whole = frames * each * 76 - frames * HEADER as u64;
        assert!(whole - rx.bytes <= 76 * (each - 1), "{} bytes of {frames} frames", rx.bytes);
    }
}

fn who_returns_another_buffer_is_told_so<R: Ring>() {
    let (memory, Pair { mut tx, .. }) = queues::<R>(Frames::Fixed(64));
    let mut device = Device::new(tx.ring(), &memory);
    assert_eq!(tx.reclaim(SIZE).unwrap(), SIZE);
    tx.send(SIZE, 0);
    let mut ids: Vec<u16> = device.take().into_iter().map(|(id, ..)| id).collect();
    ids.swap(70, 71);
    device.give(ids, 0);
    // Perhaps not at once: it looks no further than it needs.
    let refused = [64, SIZE].map(|wanted| tx.reclaim(wanted).is_err());
    assert!(refused.contains(&true), "two buffers came back in each other's place");
}

macro_rules! over_both {
    ($($name:ident),+) => {
        mod split {
            $(#[test] fn $name() { super::$name::<super::SplitRing>() })+
        }
        mod packed {
            $(#[test] fn $name() { super::$name::<super::PackedRing>() })+
        }
    };
}
over_both!(
    every_frame_is_whole_though_its_buffer_was_overwritten,
    every_frame_is_seen_once_and_its_bytes_counted,
    who_returns_another_buffer_is_told_so
);
