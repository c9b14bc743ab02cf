//! A vDPA device that is not there: it keeps to the rules of the kernel's, remembers what it was told, and refuses what a test wants it to. Where the kernel
//! lets something pass that nobody should do (memory behind a region is pinned, what is not mapped is unmapped), the fake fails the test.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Barrier, Mutex, MutexGuard};

use crate::vdpa::{Kernel, Place};

/// Bytes of a page.
const PAGE: u64 = 4096;
pub const FEATURES_OK: u8 = 8;
pub const DRIVER_OK: u8 = 4;

/// What the device has been told of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FakeRing {
    pub place: Option<Place>,
    pub base: u32,
    pub kick: Option<RawFd>,
    pub call: Option<RawFd>,
    pub enabled: bool,
}

/// The device.
#[derive(Debug, Clone)]
pub struct Device {
    pub features: u64,
    pub config: Vec<u8>,
    pub queues: u32,
    pub largest: u16,
    pub reach: RangeInclusive<u64>,
    pub suspends: bool,
    /// Rings can be enabled after DRIVER_OK.
    pub enables_late: bool,
    pub keeps_mappings: bool,
    /// Whether it takes a base other than the first.
    pub moves: bool,
    /// Words that it refuses, with an errno.
    pub refuses: BTreeMap<&'static str, i32>,
    /// It refuses rings whose descriptors are below this address, and memory.
    pub refuses_below: u64,
    /// It clears FEATURES_OK.
    pub disagrees: bool,
    pub status: u8,
    pub taken: u64,
    pub rings: BTreeMap<usize, FakeRing>,
    pub mapped: BTreeMap<u64, u64>,
    /// Bytes that are pinned for each mapping.
    pub pinned: BTreeMap<u64, u64>,
    /// Where the memory is that was mapped last.
    host: BTreeMap<u64, usize>,
    /// Each word that it was told, in order.
    pub said: Vec<String>,
    pub suspended: bool,
    pub gone: bool,
    in_batch: bool,
    /// What its control queue answers, and the numbers of pairs that it was told.
    pub ack: u8,
    pub commands: Vec<u16>,
    /// Where its rings stand, when it is suspended.
    pub stands: BTreeMap<usize, u32>,
    /// After so many more words it answers none any more, as one that is gone.
    pub goes_after: Option<usize>,
    /// After so many more words it waits there for a test, twice.
    pub waits_after: Option<(usize, Arc<Barrier>)>,
}

/// A handle of it, for both sides.
#[derive(Debug, Clone)]
pub struct Fake(pub Arc<Mutex<Device>>, #[allow(dead_code, reason = "for its end")] Option<Arc<OpenNode>>);

/// The last one who has it open closes it: the kernel resets it then, and it has no memory any more (vhost_vdpa_release in drivers/vhost/vdpa.c).
#[derive(Debug)]
struct OpenNode(Arc<Mutex<Device>>);

impl Drop for OpenNode {
    fn drop(&mut self) {
        // A test that has failed is told so already.
        let Ok(mut device) = self.0.lock() else { return };
        (device.status, device.suspended) = (0, false);
        device.rings.clear();
        device.mapped.clear();
        device.pinned.clear();
    }
}

impl Fake {
    /// One with VERSION_1, ACCESS_PLATFORM, MRG_RXBUF, MAC and STATUS, rings of 256 at most.
    pub fn new() -> Self {
        let config = [&[0x52, 0x54, 0, 0, 0, 1][..], &[1, 0], &[1, 0], &[0xdc, 5]].concat();
        Self(
            Arc::new(Mutex::new(Device {
                features: 1 << 32 | 1 << 33 | 1 << 15 | 1 << 5 | 1 << 16,
                config,
                queues: 2,
                largest: 256,
                reach: 0..=u64::MAX,
                suspends: true,
                enables_late: true,
                keeps_mappings: true,
                moves: true,
                refuses: BTreeMap::new(),
                refuses_below: 0,
                disagrees: false,
                status: 0xff,
                taken: 0,
                rings: BTreeMap::new(),
                mapped: BTreeMap::new(),
                pinned: BTreeMap::new(),
                host: BTreeMap::new(),
                said: Vec::new(),
                suspended: false,
                gone: false,
                in_batch: false,
                ack: 0,
                commands: Vec::new(),
                stands: BTreeMap::new(),
                goes_after: None,
                waits_after: None,
            })),
            None,
        )
    }

    /// Opens its node.
    pub fn open(&self) -> Self {
        Self(Arc::clone(&self.0), Some(Arc::new(OpenNode(Arc::clone(&self.0)))))
    }

    /// The guest's or the relay's rings may move by it.
    pub fn runs(&self) -> bool {
        let device = self.lock();
        device.status & DRIVER_OK != 0 && !device.suspended && device.rings.values().any(|ring| ring.enabled)
    }

    pub fn with(self, change: impl FnOnce(&mut Device)) -> Self {
        change(&mut self.lock());
        self
    }

    pub fn lock(&self) -> MutexGuard<'_, Device> {
        self.0.lock().unwrap()
    }

    fn told(&self, word: &'static str, more: impl std::fmt::Display) -> io::Result<MutexGuard<'_, Device>> {
        let mut device = self.lock();
        device.said.push(format!("{word}{more}"));
        let waits = match &mut device.waits_after {
            Some((0, _)) => device.waits_after.take(),
            Some((left, _)) => {
                *left -= 1;
                None
            }
            None => None,
        };
        if let Some((_, barrier)) = waits {
            drop(device);
            barrier.wait();
            barrier.wait();
            device = self.lock();
        }
        match &mut device.goes_after {
            Some(0) => return Err(io::Error::from_raw_os_error(libc::ENODEV)),
            Some(left) => *left -= 1,
            None => {}
        }
        match device.refuses.get(word) {
            Some(errno) => Err(io::Error::from_raw_os_error(*errno)),
            None => Ok(device),
        }
    }
}

impl Device {
    /// Does what stands in the control queue.
    fn obey(&mut self) {
        let place = self.rings[&4].place.expect("a control queue");
        let page = self.host[&place.desc] as *mut u8;
        let bytes = |iova: u64| page.wrapping_add((iova - place.desc) as usize);
        // SAFETY: the page is mapped by the handover until it says otherwise, and nobody else is at it: it has been told that the device runs, and waits.
        unsafe {
            let desc = |index: usize| {
                let at = page.add(16 * index);
                (at.cast::<u64>().read(), at.add(8).cast::<u32>().read(), at.add(12).cast::<[u16; 2]>().read())
            };
            let ((class, _, _), (pairs, len, _), (ack, ..)) = (desc(0), desc(1), desc(2));
            assert_eq!((bytes(class).cast::<[u8; 2]>().read(), len), ([4, 0], 2));
            self.commands.push(bytes(pairs).cast::<u16>().read_unaligned());
            bytes(ack).write(self.ack);
            if self.taken & 1 << 34 != 0 {
                page.add(14).cast::<u16>().write(1 << 7 | 1 << 15);
            } else {
                assert_eq!(bytes(place.avail + 2).cast::<u16>().read(), 1);
                bytes(place.used + 2).cast::<u16>().write(1);
            }
        }
    }
}

impl Kernel for Fake {
    fn features(&self) -> io::Result<u64> {
        Ok(self.told("features?", "")?.features)
    }

    fn set_features(&self, features: u64) -> io::Result<()> {
        let mut device = self.told("features", format_args!(" {features:#x}"))?;
        assert_eq!(features & !device.features, 0, "features that were not offered");
        assert_eq!(device.status & FEATURES_OK, 0, "features after FEATURES_OK");
        device.taken = features;
        Ok(())
    }

    fn status(&self) -> io::Result<u8> {
        Ok(self.lock().status)
    }

    fn set_status(&self, status: u8) -> io::Result<()> {
        let mut device = self.told("status", format_args!(" {status}"))?;
        device.status = status;
        if status == 0 {
            device.rings.clear();
            (device.taken, device.suspended) = (0, false);
            if !device.keeps_mappings {
                device.mapped.clear();
                device.pinned.clear();
            }
        } else if device.disagrees {
            device.status &= !FEATURES_OK;
        }
        if device.status & DRIVER_OK != 0 && device.taken & 1 << 17 != 0 {
            assert!(
                device.rings.range(..4).all(|(_, ring)| !ring.enabled),
                "the guest's rings reach the control queue"
            );
            device.obey();
        }
        Ok(())
    }

    fn config(&self, offset: u32, into: &mut [u8]) -> io::Result<()> {
        let device = self.told("config?", "")?;
        let from = offset as usize;
        into.copy_from_slice(device.config.get(from..from + into.len()).ok_or(io::ErrorKind::InvalidInput)?);
        Ok(())
    }

    fn largest_ring(&self) -> io::Result<u16> {
        Ok(self.told("largest?", "")?.largest)
    }

    fn rings(&self) -> Option<u32> {
        Some(self.lock().queues)
    }

    fn reach(&self) -> io::Result<RangeInclusive<u64>> {
        Ok(self.told("reach?", "")?.reach.clone())
    }

    fn place(&self, ring: usize, place: &Place) -> io::Result<()> {
        let mut device = self.told("place", format_args!(" {ring}"))?;
        assert_ne!(device.status & FEATURES_OK, 0, "a ring before FEATURES_OK");
        assert_eq!(device.status & DRIVER_OK, 0, "a ring after DRIVER_OK");
        if place.desc < device.refuses_below {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        device.rings.entry(ring).or_default().place = Some(*place);
        Ok(())
    }

    fn set_base(&self, ring: usize, base: u32) -> io::Result<()> {
        let mut device = self.told("base", format_args!(" {ring} {base:#x}"))?;
        if !device.moves && base != 0 && base != 0x8000_8000 {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        device.rings.entry(ring).or_default().base = base;
        Ok(())
    }

    fn base(&self, ring: usize) -> io::Result<u32> {
        let device = self.told("base?", format_args!(" {ring}"))?;
        assert!(device.suspended, "asked where a ring stands that moves");
        Ok(device.stands.get(&ring).copied().unwrap_or_else(|| device.rings[&ring].base))
    }

    fn set_kick(&self, ring: usize, kick: Option<&OwnedFd>) -> io::Result<()> {
        let mut device = self.told("kick", format_args!(" {ring}"))?;
        device.rings.entry(ring).or_default().kick = kick.map(AsRawFd::as_raw_fd);
        Ok(())
    }

    fn set_call(&self, ring: usize, call: Option<&OwnedFd>) -> io::Result<()> {
        let mut device = self.told("call", format_args!(" {ring}"))?;
        device.rings.entry(ring).or_default().call = call.map(AsRawFd::as_raw_fd);
        Ok(())
    }

    fn enable(&self, ring: usize) -> io::Result<()> {
        let mut device = self.told("enable", format_args!(" {ring}"))?;
        if device.status & DRIVER_OK != 0 && !device.enables_late {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        // Before DRIVER_OK it is for that: rings that are enabled then run at once, and the guest's descriptors reach all that is mapped.
        if let Some(control) = device.rings.get(&4).filter(|_| ring < 4).and_then(|ring| ring.place) {
            assert!(!device.mapped.contains_key(&control.desc), "the guest's ring {ring} reaches the control queue");
        }
        device.rings.entry(ring).or_default().enabled = true;
        Ok(())
    }

    fn enables_late(&self) -> bool {
        self.lock().enables_late
    }

    fn suspends(&self) -> bool {
        self.lock().suspends
    }

    fn suspend(&self) -> io::Result<()> {
        self.told("suspend", "")?.suspended = true;
        Ok(())
    }

    fn keeps_mappings(&self) -> bool {
        self.lock().keeps_mappings
    }

    fn map(&self, iova: u64, len: u64, host: *const u8) -> io::Result<()> {
        let mut device = self.told("map", format_args!(" {iova:#x}"))?;
        assert!(device.in_batch, "a mapping outside of a batch");
        if iova < device.refuses_below {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        let overlaps = device.mapped.iter().any(|(at, size)| iova < at + size && *at < iova + len);
        if overlaps {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        // vhost_vdpa_pa_map (drivers/vhost/vdpa.c): from the page that `host` is in, as many as the addresses touch.
        let pages = (len + iova % PAGE).div_ceil(PAGE);
        assert_eq!(pages * PAGE, len, "{iova:#x}: pages are pinned that are not the region's");
        assert_eq!(host.addr() as u64 % PAGE, 0, "{iova:#x}: what is before the region is pinned");
        device.pinned.insert(iova, pages * PAGE);
        device.mapped.insert(iova, len);
        device.host.insert(iova, host as usize);
        Ok(())
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        let mut device = self.told("unmap", format_args!(" {iova:#x}"))?;
        assert!(device.in_batch, "a mapping goes outside of a batch");
        let had = device.mapped.remove(&iova);
        device.pinned.remove(&iova);
        assert!(had == Some(len) || (had.is_none() && !device.keeps_mappings), "{iova:#x} is mapped as {had:x?}");
        Ok(())
    }

    fn batch(&self, begins: bool) -> io::Result<()> {
        let mut device = self.told(if begins { "batch" } else { "end" }, "")?;
        device.in_batch = begins;
        Ok(())
    }

    fn gone(&self) -> bool {
        let device = self.lock();
        device.gone || device.goes_after == Some(0)
    }
}
