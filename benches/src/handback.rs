//! Back-ends inside of this process that do nothing but their part of the ring: what generator and machine can do at most.
//!
//! One only hands descriptors back, in either direction: how fast the generator is. The other copies each frame once, too: the limit of every relay.
//! Each runs as a thread on the back-end's core and works on a ring that the guest laid out, without a socket and without any check.
//!
//! # Invariants
//! The ring's tables stay mapped while the thread runs: it is joined before the queues, which hold the memory, are dropped. Addresses, heads
//! and lengths are those of our own generator. Generator and thread share indices and flags through atomics only, and
//! everything else in the order that these say.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use ringspan_testkit::guest::Memory;
use ringspan_testkit::guest::ring::{Descriptor, Used};

use crate::driver::{self, HEADER, LINE, Ring, guest, prefetch_read, prefetch_write};
use crate::load::{self, Load, Measured, Queues};

/// Most descriptors that are served at once.
const BURST: usize = 128;
/// Frames that the generator shows at once.
const SHOWN: u16 = 64;
/// Packet buffers that are used in turn: the first lines of so many are 128 KiB at least, several times the nearest cache.
const POOL: usize = 2048;
/// Descriptors of a packed ring in a cache line.
const SLOTS_OF_A_LINE: u16 = 4;
/// After so many buffers each of the largest ring was seen.
const LAP: usize = 1 << 15;

/// What is done with frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Nothing: buffers are not touched.
    HandBack,
    /// Nothing, but receive buffers are said to have a frame of this size: only the first lap writes their headers.
    Fill(u16),
    /// Frames from the guest are copied.
    CopyFrom,
    /// Frames of this size are copied to the guest.
    CopyTo(u16),
}

/// A buffer that is being served: its descriptor's id, its address here, its length.
type Buffer = (u16, *mut u8, usize);

/// A ring as its device sees it: addresses in this process.
#[derive(Clone, Copy)]
struct Device {
    packed: bool,
    tables: [u64; 3],
    size: u16,
    /// What is added to a guest's address.
    base: u64,
}

impl Device {
    fn new<R: Ring>(ring: &R, memory: &Memory) -> Self {
        Self { packed: R::PACKED, tables: ring.user_addresses(), size: ring.size(), base: memory.regions()[0].user }
    }

    /// Serves the ring until told to stop.
    fn serve(self, work: Work, stop: &AtomicBool) {
        if self.packed { self.serve_packed(work, stop) } else { self.serve_split(work, stop) }
    }

    fn serve_split(self, work: Work, stop: &AtomicBool) {
        let [desc, avail, used] = self.tables;
        let (desc, avail, used) = (desc as *const Descriptor, avail as *mut u16, used as *mut u16);
        // SAFETY: flags and index stand in front of the entries, in tables that outlive the thread.
        let (avail_index, used_index, used_flags) =
            unsafe { (AtomicU16::from_ptr(avail.add(1)), AtomicU16::from_ptr(used.add(1)), AtomicU16::from_ptr(used)) };
        used_flags.store(1, Ordering::Relaxed);
        let mut copier = Copier::new(work);
        let mut burst = [(0, std::ptr::null_mut(), 0); BURST];
        let mut done = 0_u16;
        while !stop.load(Ordering::Relaxed) {
            let count = usize::from(avail_index.load(Ordering::Acquire).wrapping_sub(done)).min(BURST);
            if count == 0 {
                std::hint::spin_loop();
                continue;
            }
            for (i, entry) in burst[..count].iter_mut().enumerate() {
                let slot = usize::from(done.wrapping_add(i as u16) & (self.size - 1));
                // SAFETY: slot < size, entries up to the available index are the device's to read.
                let (id, descriptor) = unsafe {
                    let id = avail.add(2 + slot).read();
                    (id, if work == Work::HandBack { Descriptor::default() } else { desc.add(usize::from(id)).read() })
                };
                *entry = (id, (self.base + descriptor.address) as *mut u8, descriptor.length as usize);
            }
            copier.run(&burst[..count]);
            for (i, &(id, ..)) in burst[..count].iter().enumerate() {
                let slot = usize::from(done.wrapping_add(i as u16) & (self.size - 1));
                // SAFETY: as above.
                unsafe {
                    used.add(2).cast::<Used>().add(slot).write(Used { id: u32::from(id), length: copier.written })
                };
            }
            done = done.wrapping_add(count as u16);
            used_index.store(done, Ordering::Release);
        }
    }

    fn serve_packed(self, work: Work, stop: &AtomicBool) {
        let [desc, _, device] = self.tables;
        let desc = desc as *mut u64;
        // SAFETY: flags of the device's event structure, which outlives the thread.
        unsafe { AtomicU16::from_ptr((device as *mut u16).add(1)) }.store(1, Ordering::Relaxed);
        // SAFETY: slots are below the ring's size.
        let tail = |slot: u16| unsafe { AtomicU64::from_ptr(desc.add(2 * usize::from(slot) + 1)) };
        let flags = |word: u64| (word >> 48) as u16 & 0x8080;
        let mut copier = Copier::new(work);
        let mut burst = [(0, std::ptr::null_mut(), 0); BURST];
        let (mut at, mut wrap) = (0_u16, true);
        while !stop.load(Ordering::Relaxed) {
            if copier.is_done() {
                return self.hand_packed_back(stop, desc, (at, wrap), copier.written);
            }
            // Up to the end of the ring: the wrap bit is the same for a whole burst.
            let most = usize::from(self.size - at).min(BURST);
            let available = if wrap { 0x0080 } else { 0x8000 };
            let mut count = 0;
            while count < most {
                let slot = at + count as u16;
                if slot.is_multiple_of(SLOTS_OF_A_LINE) && count > 0 {
                    prefetch_write(desc.wrapping_add(2 * usize::from(slot + SLOTS_OF_A_LINE)).cast());
                }
                let word = tail(slot).load(Ordering::Acquire);
                if flags(word) != available {
                    break;
                }
                // SAFETY: slot < size; the descriptor is the device's.
                let address = unsafe { desc.add(2 * usize::from(slot)).read() };
                burst[count] = ((word >> 32) as u16, (self.base + address) as *mut u8, word as u32 as usize);
                count += 1;
            }
            if count == 0 {
                std::hint::spin_loop();
                continue;
            }
            copier.run(&burst[..count]);
            let used = if wrap { 0x8080_u64 } else { 0 } << 48;
            // Forward: the driver looks at the last of a burst first.
            for (i, &(id, ..)) in burst[..count].iter().enumerate() {
                let word = u64::from(copier.written) | u64::from(id) << 32 | used;
                tail(at + i as u16).store(word, Ordering::Release);
            }
            at += count as u16;
            if at == self.size {
                (at, wrap) = (0, !wrap);
            }
        }
    }

    /// Hands the chains of a packed ring back, with nothing else to do: what is there is looked at by the burst, and given back at once.
    fn hand_packed_back(self, stop: &AtomicBool, desc: *mut u64, from: (u16, bool), written: u32) {
        // SAFETY: slots are below the ring's size.
        let tail = |slot: u16| unsafe { AtomicU64::from_ptr(desc.add(2 * usize::from(slot) + 1)) };
        let marks = |wrap: bool| if wrap { (0x0080_u64, 0x8080_u64) } else { (0x8000, 0) };
        let is_there = |slot, wrap| (tail(slot).load(Ordering::Acquire) >> 48) & 0x8080 == marks(wrap).0;
        let ask = |from: u16, count: u16| {
            for slot in (from..from + count).step_by(SLOTS_OF_A_LINE.into()) {
                prefetch_write(desc.wrapping_add(2 * usize::from(slot)).cast());
            }
        };
        let (mut at, mut wrap) = from;
        // The lines of the burst at `at` were asked for; it had to be waited for.
        let (mut asked, mut waited) = (false, false);
        while !stop.load(Ordering::Relaxed) {
            let most = (self.size - at).min(SHOWN);
            if !is_there(at, wrap) {
                waited = true;
                std::hint::spin_loop();
                continue;
            }
            // The driver shows whole bursts: what follows the first is there with it, and perhaps the next burst.
            if !asked && is_there(at + most - 1, wrap) {
                ask(at, most);
            }
            let next = if at + most == self.size { (0, !wrap) } else { (at + most, wrap) };
            let others = (self.size - next.0).min(SHOWN);
            // Who waits for the driver would only take away what it is about to write.
            asked = !std::mem::take(&mut waited) && is_there(next.0, next.1) && is_there(next.0 + others - 1, next.1);
            if asked {
                ask(next.0, others);
            }
            let mut count = 1;
            while count < most && is_there(at + count, wrap) {
                count += 1;
            }
            asked &= count == most;
            let used = marks(wrap).1 << 48 | u64::from(written);
            for slot in at..at + count {
                let id = tail(slot).load(Ordering::Relaxed) & 0xffff << 32;
                tail(slot).store(used | id, Ordering::Release);
            }
            at += count;
            if at == self.size {
                (at, wrap) = (0, !wrap);
            }
        }
    }

    /// Serves on a thread on `core` while `run` runs; its result.
    fn beside<T>(self, core: usize, work: Work, run: impl FnOnce() -> T) -> anyhow::Result<T> {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let stop = &stop;
            let thread = scope.spawn(move || {
                load::pin(&[core])?;
                self.serve(work, stop);
                anyhow::Ok(())
            });
            let result = run();
            stop.store(true, Ordering::Relaxed);
            thread.join().map_err(|_| anyhow::anyhow!("the hand-back thread panicked"))??;
            Ok(result)
        })
    }
}

/// The copies of a burst.
struct Copier {
    work: Work,
    /// As a pool of packet buffers would be: too large for the nearest cache, whatever the frames' size.
    pool: Vec<u8>,
    stride: usize,
    next: usize,
    /// What the used elements say was written.
    written: u32,
    /// Receive buffers that have a header already.
    headers: usize,
}

impl Copier {
    fn new(work: Work) -> Self {
        let (length, written) = match work {
            Work::HandBack => (0, 0),
            Work::Fill(length) => (0, u32::from(length) + HEADER as u32),
            Work::CopyFrom => (9216, 0),
            Work::CopyTo(length) => (usize::from(length), u32::from(length) + HEADER as u32),
        };
        let stride = (length + HEADER).next_multiple_of(LINE) + LINE;
        let mut pool = vec![0xa5; stride * POOL];
        // The header of each frame to the guest: all zeros but for one buffer.
        pool.chunks_mut(stride).for_each(|buffer| {
            buffer[..HEADER].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        });
        Self { work, pool, stride, next: 0, written, headers: 0 }
    }

    /// Whether buffers need not be touched from here on.
    fn is_done(&self) -> bool {
        self.work == Work::HandBack || matches!(self.work, Work::Fill(_)) && self.headers >= LAP
    }

    #[inline(always)]
    fn run(&mut self, burst: &[Buffer]) {
        match self.work {
            Work::HandBack => return,
            Work::Fill(_) => return self.fill(burst),
            Work::CopyFrom | Work::CopyTo(_) => {}
        }
        for &(_, buffer, length) in burst {
            let ahead = if self.work == Work::CopyFrom { length } else { self.written as usize };
            for at in (0..ahead.min(1024)).step_by(LINE) {
                let line = buffer.wrapping_add(at);
                if self.work == Work::CopyFrom { prefetch_read(line) } else { prefetch_write(line) }
            }
        }
        for &(_, buffer, length) in burst {
            let frame = self.pool[self.next * self.stride..].as_mut_ptr();
            self.next = (self.next + 1) % POOL;
            // SAFETY: the generator's buffer has `length` bytes, of which the pool's buffers have room for as many as it sends; and
            // `written` is no more than the receive buffers of the caller's options hold.
            unsafe {
                if self.work != Work::CopyFrom {
                    copy(frame, buffer, self.written as usize);
                } else {
                    copy(buffer, frame, length);
                }
            }
        }
        std::hint::black_box(&self.pool);
    }

    /// Writes the headers of the first lap: what the guest reads of a frame has to make sense, and nobody overwrites it.
    #[inline(always)]
    fn fill(&mut self, burst: &[Buffer]) {
        if self.headers >= LAP {
            return;
        }
        for &(_, buffer, _) in burst {
            // SAFETY: a receive buffer of the generator has room for a header, and is the device's until it is used.
            unsafe { self.pool[..HEADER].as_ptr().copy_to_nonoverlapping(buffer, HEADER) };
        }
        self.headers += burst.len();
    }
}

/// Copies; the usual small size without a call.
///
/// # Safety
/// As for [`std::ptr::copy_nonoverlapping`].
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, length: usize) {
    const SMALL: usize = HEADER + 64;
    // SAFETY: the caller's.
    unsafe {
        if length == SMALL {
            std::ptr::copy_nonoverlapping(from, to, SMALL);
        } else {
            std::ptr::copy_nonoverlapping(from, to, length);
        }
    }
}

/// What the generator reaches on `core` with one of these on `device_core`.
pub fn run<R: Ring>(
    options: &driver::Options,
    work: Work,
    load: Load,
    core: usize,
    device_core: usize,
) -> anyhow::Result<Measured> {
    let options = options.clone();
    // On a thread of its own: the caller starts other programs, which would inherit the core it is bound to.
    let generator = move || {
        load::pin(&[core])?;
        let (memory, mut pairs) = guest::queues::<R>(&options, true)?;
        let pair = &mut pairs[0];
        if let Work::CopyTo(_) | Work::Fill(_) = work {
            let device = Device::new(pair.rx.ring(), &memory);
            pair.rx.post_all();
            let mut queues = Queues::new(vec![], vec![&mut pair.rx], false);
            Ok(device.beside(device_core, work, || queues.run(load))??)
        } else {
            let device = Device::new(pair.tx.ring(), &memory);
            let mut queues = Queues::new(vec![&mut pair.tx], vec![], false);
            Ok(device.beside(device_core, work, || queues.run(load))??)
        }
    };
    std::thread::spawn(generator).join().map_err(|_| anyhow::anyhow!("the generator panicked"))?
}
