//! The ceiling: a back-end that copies each frame once, hands its descriptor back, and does nothing else.
//!
//! It shows what this machine, and the generator, can do at most: who comes near it is limited by them. It runs as a thread of
//! this process on the back-end's core and works on the ring that the guest laid out, without a socket and without any check.
//!
//! # Invariants
//! The ring's three tables stay mapped while the thread runs: it is joined before the queue, which holds the memory, is dropped. The generator and this thread share indices through atomics only, and entries in the order that the indices say.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use ringspan_testkit::guest::ring::{Descriptor, Used};
use ringspan_testkit::guest::{Layout, Memory, Receiver, Shape, SplitRing, Transmitter};

use crate::load::{self, Direction, Load, Measured};

/// Bytes of the virtio-net header.
const HEADER: usize = 12;
/// Most descriptors that are served at once.
const BURST: usize = 64;

/// A ring as its device sees it: addresses in this process.
#[derive(Clone, Copy)]
struct Device {
    desc: *const Descriptor,
    avail: *mut u16,
    used: *mut u16,
    size: u16,
    /// What is added to a guest's address.
    base: u64,
}

// SAFETY: the pointers are used by one thread, and only while `run` keeps what they point to.
unsafe impl Send for Device {}

impl Device {
    fn new(ring: &SplitRing, memory: &Arc<Memory>) -> Self {
        let [desc, avail, used] = ring.user_addresses();
        let (desc, avail, used) = (desc as *const Descriptor, avail as *mut u16, used as *mut u16);
        let base = memory.regions()[0].user;
        Self { desc, avail, used, size: ring.size(), base }
    }

    /// Serves the ring until told to stop: each descriptor is read, its buffer copied from (or to, when `written` is not 0), and
    /// given back, by the burst.
    fn hand_back(self, written: u32, stop: &AtomicBool) {
        // SAFETY: flags and index stand in front of the entries, in tables that outlive the thread.
        let (avail_index, used_index) =
            unsafe { (AtomicU16::from_ptr(self.avail.add(1)), AtomicU16::from_ptr(self.used.add(1))) };
        let mut frame = [0_u8; 2048];
        frame[10] = 1;
        let mut burst = [(0_u16, std::ptr::null_mut::<u8>(), 0_usize); BURST];
        let mut done = 0_u16;
        while !stop.load(Ordering::Relaxed) {
            let count = usize::from(avail_index.load(Ordering::Acquire).wrapping_sub(done)).min(BURST);
            if count == 0 {
                std::hint::spin_loop();
                continue;
            }
            for (i, entry) in burst[..count].iter_mut().enumerate() {
                let slot = usize::from(done.wrapping_add(i as u16) & (self.size - 1));
                // SAFETY: slot < size, entries up to the available index are the device's to read, and heads and addresses are those
                // of our own generator: inside of the table and of the memory.
                unsafe {
                    let id = self.avail.add(2 + slot).read_volatile();
                    let descriptor = self.desc.add(usize::from(id)).read_volatile();
                    let buffer = (self.base + descriptor.address) as *mut u8;
                    prefetch(buffer);
                    prefetch(buffer.wrapping_add(64));
                    let length = if written == 0 { descriptor.length } else { written };
                    *entry = (id, buffer, (length as usize).min(frame.len()));
                }
            }
            for (i, &(id, buffer, length)) in burst[..count].iter().enumerate() {
                let slot = usize::from(done.wrapping_add(i as u16) & (self.size - 1));
                // SAFETY: as above; `length` bytes are in both, and the local frame is nobody else's.
                unsafe {
                    if written == 0 {
                        std::ptr::copy_nonoverlapping(buffer, frame.as_mut_ptr(), length);
                        std::hint::black_box(&frame);
                    } else {
                        std::ptr::copy_nonoverlapping(frame.as_ptr(), buffer, length);
                    }
                    let used = Used { id: u32::from(id), length: written };
                    self.used.add(2).cast::<Used>().add(slot).write_volatile(used);
                }
            }
            done = done.wrapping_add(count as u16);
            used_index.store(done, Ordering::Release);
        }
    }

    /// Hands back on a thread on `core` while `work` runs; its result.
    fn beside<T>(self, core: usize, written: u32, work: impl FnOnce() -> T) -> anyhow::Result<T> {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let stop = &stop;
            let thread = scope.spawn(move || {
                // All of it, not the single pointers: only the whole may change threads.
                let device = self;
                load::pin(core)?;
                device.hand_back(written, stop);
                anyhow::Ok(())
            });
            let result = work();
            stop.store(true, Ordering::Relaxed);
            thread.join().map_err(|_| anyhow::anyhow!("the hand-back thread panicked"))??;
            Ok(result)
        })
    }
}

/// Fetches a cache line.
fn prefetch(line: *const u8) {
    // SAFETY: a hint that does not fault.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// What the generator reaches on `core` with the hand-back thread on `device_core`.
pub fn run(
    direction: Direction,
    load: Load,
    ring_size: u16,
    core: usize,
    device_core: usize,
    huge_pages: bool,
) -> anyhow::Result<Measured> {
    let memory = Arc::new(Memory::new(Layout { size: 16 << 20, regions: 1, start: 0, gap: 0, huge_pages })?);
    let ring = SplitRing::new(&memory, ring_size, false)?;
    // On a thread of its own: the caller starts other programs, which would inherit the core it is bound to.
    let generator = move || {
        load::pin(core)?;
        match direction {
            Direction::GuestToNull | Direction::BacklogToNull => {
                let device = Device::new(&ring, &memory);
                let mut tx = Transmitter::new(ring, Shape::Whole, false, HEADER, 1514)?;
                device.beside(device_core, 0, || load::transmit(&mut tx, load))
            }
            Direction::NullToGuest => {
                let device = Device::new(&ring, &memory);
                let mut rx = Receiver::new(ring, Shape::Whole, false, HEADER, 1536, true)?;
                rx.post(usize::MAX);
                device.beside(device_core, (HEADER + load.frame) as u32, || load::receive(&mut rx, load))
            }
        }
    };
    std::thread::spawn(generator).join().map_err(|_| anyhow::anyhow!("the generator panicked"))?
}
