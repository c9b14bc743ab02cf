//! The ceiling: a back-end that does nothing but hand descriptors back.
//!
//! It shows what the generator can do at most, and so that it is not the generator that is measured. It runs as a thread of this
//! process on the back-end's core and works on the ring that the guest laid out, without a socket.
//!
//! # Invariants
//! The ring's three tables stay mapped while the thread runs: it is joined before the queue, which holds the memory, is dropped. The generator and this thread share indices through atomics only, and entries in the order that the indices say.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use ringspan_testkit::guest::ring::{Descriptor, Used};
use ringspan_testkit::guest::{Layout, Memory, Receiver, Shape, SplitRing, Transmitter};

use crate::load::{self, Direction, Load};

/// Bytes of the virtio-net header.
const HEADER: usize = 12;

/// A ring as its device sees it: addresses in this process.
#[derive(Clone, Copy)]
struct Device {
    desc: *const Descriptor,
    avail: *mut u16,
    used: *mut u16,
    size: u16,
    memory: *const Memory,
}

// SAFETY: the pointers are used by one thread, and only while `run` keeps what they point to.
unsafe impl Send for Device {}

impl Device {
    fn new(ring: &SplitRing, memory: &Arc<Memory>) -> Self {
        let [desc, avail, used] = ring.user_addresses();
        let (desc, avail, used) = (desc as *const Descriptor, avail as *mut u16, used as *mut u16);
        Self { desc, avail, used, size: ring.size(), memory: Arc::as_ptr(memory) }
    }

    /// Gives back every descriptor as soon as it is available, `written` bytes long, until told to stop.
    fn hand_back(self, written: u32, stop: &AtomicBool) {
        // SAFETY: flags and index stand in front of the entries, in tables that outlive the thread.
        let (avail_index, used_index) =
            unsafe { (AtomicU16::from_ptr(self.avail.add(1)), AtomicU16::from_ptr(self.used.add(1))) };
        let mut done = 0_u16;
        while !stop.load(Ordering::Relaxed) {
            let avail = avail_index.load(Ordering::Acquire);
            if avail == done {
                std::hint::spin_loop();
                continue;
            }
            while done != avail {
                let slot = usize::from(done & (self.size - 1));
                // SAFETY: slot < size, and entries up to `avail` are the device's to read and give back.
                unsafe {
                    let id = u32::from(self.avail.add(2 + slot).read_volatile());
                    self.used.add(2).cast::<Used>().add(slot).write_volatile(Used { id, length: written });
                }
                done = done.wrapping_add(1);
            }
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

    /// Puts a header that says "one buffer" into every buffer that is available: the generator looks for it.
    fn write_headers(self) {
        for slot in 0..usize::from(self.size) {
            // SAFETY: no thread runs yet; the descriptors were written by the receiver, whose buffers hold a header.
            unsafe {
                let descriptor = self.desc.add(slot).read_volatile();
                if let Some(buffer) = (*self.memory).pointer(descriptor.address, HEADER) {
                    buffer.add(10).cast::<u16>().write(1_u16.to_le());
                }
            }
        }
    }
}

/// Packets per second of the generator on `core` with the hand-back thread on `device_core`.
pub fn run(
    direction: Direction,
    load: Load,
    ring_size: u16,
    core: usize,
    device_core: usize,
    huge_pages: bool,
) -> anyhow::Result<f64> {
    let memory = Arc::new(Memory::new(Layout { size: 16 << 20, regions: 1, start: 0, gap: 0, huge_pages })?);
    let ring = SplitRing::new(&memory, ring_size, false)?;
    // On a thread of its own: the caller starts other programs, which would inherit the core it is bound to.
    let generator = move || {
        load::pin(core)?;
        match direction {
            Direction::GuestToNull => {
                let device = Device::new(&ring, &memory);
                let mut tx = Transmitter::new(ring, Shape::Whole, false, HEADER, 1514)?;
                device.beside(device_core, 0, || load::transmit(&mut tx, load))
            }
            Direction::NullToGuest => {
                let device = Device::new(&ring, &memory);
                let mut rx = Receiver::new(ring, Shape::Whole, false, HEADER, 1536, true)?;
                rx.post(usize::MAX);
                device.write_headers();
                device.beside(device_core, (HEADER + load.frame) as u32, || load::receive(&mut rx, load))
            }
        }
    };
    std::thread::spawn(generator).join().map_err(|_| anyhow::anyhow!("the generator panicked"))?
}
