//! The control queue of a device with several queue pairs, by which it is told how many of them run (VIRTIO 1.2 section 5.1.6.5.5).
//!
//! The guest's own control queue is its front-end's business. This one is ours, in a page of ours, which the device finds at an address that the guest has no memory at.
//! It is new after each reset of the device, and one command is given in its life. The guest's descriptors can name that address as well as any other, so that the
//! page is the device's only until the command is answered: the guest's rings are enabled afterwards.

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};

use super::{Kernel, Place};
use crate::memory::GuestMap;

/// Descriptors; mlx5 takes no more.
const SIZE: u16 = 16;
/// Where what is in the page.
const DESC: u64 = 0;
const DRIVER: u64 = 0x200;
const DEVICE: u64 = 0x400;
const COMMAND: u64 = 0x600;
const ACK: u64 = 0x610;
const LEN: u64 = 4096;
/// VIRTIO_NET_CTRL_MQ, and VQ_PAIRS_SET of it.
const PAIRS_SET: [u8; 2] = [4, 0];
/// What an acknowledgement is before there is one.
const NO_ANSWER: u8 = 0xff;
const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
/// Of a packed ring's descriptor: it was made available, and used, in the first round.
const F_AVAIL: u16 = 1 << 7;
const F_USED: u16 = 1 << 15;
/// How long a device may take for its answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often it is looked for.
const LOOK: Duration = Duration::from_micros(50);
/// Processors' and IOMMUs' addresses have fewer bits than a device may claim.
const HIGHEST: u64 = 1 << 47;

/// The queue, and its page.
pub struct Control {
    page: GuestMemoryMmap,
    at: u64,
    kick: OwnedFd,
}

impl Control {
    /// A page where none of these has memory, and the device's addresses do not end.
    ///
    /// # Errors
    /// No memory, or no such place.
    pub fn new(maps: &[&GuestMap], reach: &RangeInclusive<u64>) -> io::Result<Self> {
        let at =
            free_page(maps, reach).ok_or_else(|| io::Error::other("no address is left that the device reaches"))?;
        let file = File::from(memfd_create(c"ringspan-control-queue", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(LEN)?;
        let range = (GuestAddress(at), LEN as usize, Some(FileOffset::new(file, 0)));
        let page = GuestMemoryMmap::from_ranges_with_files([range]).map_err(io::Error::other)?;
        let kick = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { page, at, kick: kick.into() })
    }

    /// The device may have the page, until [`Lent::take_back`] or the end of what is returned.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn lend<'a>(self, kernel: &'a dyn Kernel) -> io::Result<Lent<'a>> {
        let host = self.page.get_host_address(GuestAddress(self.at)).map_err(io::Error::other)?;
        kernel.batch(true)?;
        let mapped = kernel.map(self.at, LEN, host);
        let ended = kernel.batch(false);
        mapped?;
        let lent = Lent { control: self, kernel, over: false };
        ended.map(|()| lent)
    }

    /// Writes the command for so many pairs down, and describes the queue to the device, before DRIVER_OK.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn describe(&self, kernel: &dyn Kernel, ring: usize, packed: bool, pairs: u16) -> io::Result<()> {
        self.write(packed, pairs).map_err(io::Error::other)?;
        let place = Place { size: SIZE, desc: self.at + DESC, avail: self.at + DRIVER, used: self.at + DEVICE };
        kernel.place(ring, &place)?;
        kernel.set_base(ring, if packed { 0x8000_8000 } else { 0 })?;
        kernel.set_kick(ring, Some(&self.kick))?;
        kernel.enable(ring)
    }

    fn write(&self, packed: bool, pairs: u16) -> Result<(), GuestMemoryError> {
        let page = &self.page;
        let at = |offset: u64| GuestAddress(self.at + offset);
        page.write_slice(&[0; LEN as usize], at(0))?;
        page.write_slice(&PAIRS_SET, at(COMMAND))?;
        page.write_slice(&pairs.to_le_bytes(), at(COMMAND + 2))?;
        page.write_obj(NO_ANSWER, at(ACK))?;
        let parts = [(COMMAND, 2_u32, F_NEXT), (COMMAND + 2, 2, F_NEXT), (ACK, 1, F_WRITE)];
        for (index, (offset, len, flags)) in (0_u16..).zip(parts) {
            let desc = at(DESC + 16 * u64::from(index));
            let (flags, last) = if packed { (0_u16, flags | F_AVAIL) } else { (flags, index + 1) };
            page.write_slice(&(self.at + offset).to_le_bytes(), desc)?;
            page.write_slice(&len.to_le_bytes(), GuestAddress(desc.0 + 8))?;
            page.write_slice(&flags.to_le_bytes(), GuestAddress(desc.0 + 12))?;
            page.write_slice(&last.to_le_bytes(), GuestAddress(desc.0 + 14))?;
        }
        // No interrupts; then the one chain.
        page.write_slice(&1_u16.to_le_bytes(), at(DRIVER + if packed { 2 } else { 0 }))?;
        if !packed {
            page.store(1_u16.to_le(), at(DRIVER + 2), Ordering::Release)?;
        }
        Ok(())
    }

    /// Lets the device do what was written down, after DRIVER_OK.
    ///
    /// # Errors
    /// It refused, or did not answer.
    pub fn execute(&self, packed: bool) -> io::Result<()> {
        let said = |error: GuestMemoryError| io::Error::other(error);
        super::handover::nudge(Some(&self.kick));
        let until = Instant::now() + PATIENCE;
        loop {
            let used = if packed {
                let flags: u16 = self.page.load(GuestAddress(self.at + DESC + 14), Ordering::Acquire).map_err(said)?;
                u16::from_le(flags) & (F_AVAIL | F_USED) == F_AVAIL | F_USED
            } else {
                let index: u16 = self.page.load(GuestAddress(self.at + DEVICE + 2), Ordering::Acquire).map_err(said)?;
                u16::from_le(index) == 1
            };
            if used {
                break;
            }
            if Instant::now() > until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(LOOK);
        }
        match self.page.read_obj::<u8>(GuestAddress(self.at + ACK)).map_err(said)? {
            0 => Ok(()),
            ack => Err(io::Error::other(format!("its control queue answered {ack}"))),
        }
    }
}

/// A control queue whose page a device has.
pub struct Lent<'a> {
    pub control: Control,
    kernel: &'a dyn Kernel,
    over: bool,
}

impl Lent<'_> {
    /// The device has the page no longer.
    ///
    /// # Errors
    /// As the kernel says: it may have it still.
    pub fn take_back(mut self) -> io::Result<()> {
        self.unmap()
    }

    fn unmap(&mut self) -> io::Result<()> {
        self.over = true;
        self.kernel.batch(true)?;
        let unmapped = self.kernel.unmap(self.control.at, LEN);
        self.kernel.batch(false).and(unmapped)
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if !self.over {
            // The device is about to be reset, because something else failed.
            let _ = self.unmap();
        }
    }
}

fn is_free(maps: &[&GuestMap], at: u64) -> bool {
    let mut regions = maps.iter().flat_map(|map| map.regions());
    !regions.any(|region| at < region.start + region.len && region.start < at + LEN)
}

/// The highest page that is free.
fn free_page(maps: &[&GuestMap], reach: &RangeInclusive<u64>) -> Option<u64> {
    let top = reach.end().saturating_add(1).min(HIGHEST) & !(LEN - 1);
    let below = |end: u64| end.checked_sub(LEN).map(|at| at & !(LEN - 1));
    let starts = maps.iter().flat_map(|map| map.regions()).map(|region| region.start);
    std::iter::once(top)
        .chain(starts.filter(|start| *start <= top))
        .filter_map(below)
        .filter(|at| reach.contains(at) && is_free(maps, *at))
        .max()
}
