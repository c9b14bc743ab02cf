//! A device as the kernel gives it to us: `/dev/vhost-vdpa-N` (drivers/vhost/vdpa.c, include/uapi/linux/vhost.h), by the vhost crate.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use vhost::vdpa::VhostVdpa;
use vhost::vhost_kern::VhostKernFeatures;
use vhost::vhost_kern::vdpa::VhostKernVdpa;
use vhost::vhost_kern::vhost_binding::{
    VHOST_BACKEND_F_IOTLB_BATCH, VHOST_BACKEND_F_IOTLB_MSG_V2, VHOST_SET_VRING_BASE, VHOST_SET_VRING_CALL,
    VHOST_SET_VRING_KICK, vhost_vring_file, vhost_vring_state,
};
use vhost::{VhostBackend, VhostIotlbBackend, VhostIotlbMsg, VhostIotlbType, VringConfigData};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::OpenError;

/// VIRTIO_ID_NET.
const NET: u32 = 1;
/// Bits of VHOST_SET_BACKEND_FEATURES, as masks.
const MSG_V2: u64 = 1 << VHOST_BACKEND_F_IOTLB_MSG_V2;
const BATCH: u64 = 1 << VHOST_BACKEND_F_IOTLB_BATCH;
/// VHOST_BACKEND_F_SUSPEND.
const SUSPEND: u64 = 1 << 4;
/// VHOST_BACKEND_F_ENABLE_AFTER_DRIVER_OK (Linux 6.6).
const LATE: u64 = 1 << 6;
/// VHOST_BACKEND_F_IOTLB_PERSIST.
const PERSIST: u64 = 1 << 8;

/// A ring as the device is told of it. Addresses are the guest's own, and those that [`Kernel::map`] was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Descriptors.
    pub size: u16,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring, or the driver's event structure of a packed one.
    pub avail: u64,
    /// Used ring, or the device's event structure.
    pub used: u64,
}

/// What is asked of a vDPA device. Errors are the operating system's.
pub trait Kernel: Send {
    /// Virtio feature bits that it offers.
    fn features(&self) -> io::Result<u64>;
    /// Those that are to be used; before FEATURES_OK.
    fn set_features(&self, features: u64) -> io::Result<()>;
    /// The device status (VIRTIO 1.2 section 2.1).
    fn status(&self) -> io::Result<u8>;
    /// Sets it; 0 resets the device.
    fn set_status(&self, status: u8) -> io::Result<()>;
    /// Reads of its configuration space.
    fn config(&self, offset: u32, into: &mut [u8]) -> io::Result<()>;
    /// Most descriptors of a ring.
    fn largest_ring(&self) -> io::Result<u16>;
    /// How many virtqueues it has; `None` where the kernel cannot be asked (before 5.19).
    fn rings(&self) -> Option<u32>;
    /// What addresses it can reach.
    fn reach(&self) -> io::Result<RangeInclusive<u64>>;
    /// Describes a ring.
    fn place(&self, ring: usize, place: &Place) -> io::Result<()>;
    /// Where the ring goes on, in the terms of SET_VRING_BASE.
    fn set_base(&self, ring: usize, base: u32) -> io::Result<()>;
    /// Where it stands, in the same terms.
    fn base(&self, ring: usize) -> io::Result<u32>;
    /// What the guest signals.
    fn set_kick(&self, ring: usize, kick: Option<&OwnedFd>) -> io::Result<()>;
    /// What the device signals.
    fn set_call(&self, ring: usize, call: Option<&OwnedFd>) -> io::Result<()>;
    /// Enables the ring; before DRIVER_OK, unless the device [`Kernel::enables_late`].
    fn enable(&self, ring: usize) -> io::Result<()>;
    /// Whether rings can be enabled after DRIVER_OK.
    fn enables_late(&self) -> bool;
    /// Whether the device can be stopped with its state kept.
    fn suspends(&self) -> bool;
    /// Stops it so.
    fn suspend(&self) -> io::Result<()>;
    /// Whether mappings outlive a reset.
    fn keeps_mappings(&self) -> bool;
    /// The device may read and write `len` bytes of this process's memory at `host` by the address `iova`; they are pinned.
    ///
    /// The memory stays mapped by the caller for as long.
    fn map(&self, iova: u64, len: u64, host: *const u8) -> io::Result<()>;
    /// It may no longer.
    fn unmap(&self, iova: u64, len: u64) -> io::Result<()>;
    /// Several changes of mappings begin or end, and take effect together.
    fn batch(&self, begins: bool) -> io::Result<()>;
    /// Whether the device was taken away from under us.
    fn gone(&self) -> bool;
}

/// An open node.
pub struct Node {
    kernel: VhostKernVdpa<GuestMemoryAtomic<GuestMemoryMmap>>,
    path: PathBuf,
    number: u64,
    backend: u64,
}

/// Whether a port can have the device at `path` at this moment, without keeping it.
///
/// # Errors
/// [`OpenError`].
pub fn check(path: &Path) -> Result<(), OpenError> {
    Node::open(path).map(drop)
}

impl Node {
    /// Opens a node. The kernel lets one in.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let name = path.display().to_string();
        let system = |what, source| OpenError::System { path: name.clone(), what, source };
        let file = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(OpenError::Missing(name)),
            Err(error) => return Err(system("cannot be looked at", error)),
            Ok(meta) if !meta.file_type().is_char_device() => return Err(OpenError::NotVdpa(name)),
            // Opening one may have effects of its own (a watchdog, a tape), so only what has the kernel's name is.
            Ok(_) if !is_vhost_vdpa(path) => return Err(OpenError::NotVdpa(name)),
            Ok(_) => fs::OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
                .open(path),
        };
        let file = file.map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY) => OpenError::Busy(name.clone()),
            Some(libc::EACCES | libc::EPERM) => OpenError::Permission { path: name.clone(), source },
            Some(libc::ENXIO | libc::ENODEV | libc::ENOENT) => OpenError::Missing(name.clone()),
            _ => system("cannot be opened", source),
        })?;
        let number = file.metadata().map_err(|error| system("cannot be looked at", error))?.rdev();
        // The crate translates no addresses for vDPA, so that it needs no memory of ours.
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut kernel = VhostKernVdpa::with(file, memory, 0);
        let id = kernel.get_device_id().map_err(|error| match os(error) {
            error if error.raw_os_error() == Some(libc::ENOTTY) => OpenError::NotVdpa(name.clone()),
            error => system("it does not say what it is", error),
        })?;
        if id != NET {
            return Err(OpenError::NotNet { path: name, id });
        }
        kernel.set_owner().map_err(|error| system("cannot be owned", os(error)))?;
        let offered = kernel.get_backend_features().map_err(|error| system("its abilities", os(error)))?;
        let backend = offered & (MSG_V2 | BATCH | SUSPEND | LATE | PERSIST);
        kernel.set_backend_features(backend).map_err(|error| system("its abilities", os(error)))?;
        Ok(Self { kernel, path: path.into(), number, backend })
    }

    fn file(&self, ring: usize, fd: Option<&OwnedFd>) -> vhost_vring_file {
        // -1 takes it away (VHOST_FILE_UNBIND).
        vhost_vring_file { index: ring as u32, fd: fd.map_or(-1, AsRawFd::as_raw_fd) }
    }
}

/// Whether the kernel's name of the device behind the node is one of vhost-vdpa's.
fn is_vhost_vdpa(path: &Path) -> bool {
    let Ok(meta) = fs::metadata(path) else { return false };
    let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
    match fs::canonicalize(format!("/sys/dev/char/{major}:{minor}")) {
        Ok(sysfs) => sysfs.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vhost-vdpa-")),
        Err(_) => false,
    }
}

fn os(error: vhost::Error) -> io::Error {
    match error {
        vhost::Error::IoctlError(error) | vhost::Error::IOError(error) | vhost::Error::VhostOpen(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

/// The result of an ioctl that answers 0 or -1.
fn outcome(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Kernel for Node {
    fn features(&self) -> io::Result<u64> {
        self.kernel.get_features().map_err(os)
    }

    fn set_features(&self, features: u64) -> io::Result<()> {
        self.kernel.set_features(features).map_err(os)
    }

    fn status(&self) -> io::Result<u8> {
        self.kernel.get_status().map_err(os)
    }

    fn set_status(&self, status: u8) -> io::Result<()> {
        self.kernel.set_status(status).map_err(os)
    }

    fn config(&self, offset: u32, into: &mut [u8]) -> io::Result<()> {
        self.kernel.get_config(offset, into).map_err(os)
    }

    fn largest_ring(&self) -> io::Result<u16> {
        self.kernel.get_vring_num().map_err(os)
    }

    fn rings(&self) -> Option<u32> {
        self.kernel.get_vqs_count().ok()
    }

    fn reach(&self) -> io::Result<RangeInclusive<u64>> {
        self.kernel.get_iova_range().map(|range| range.first..=range.last).map_err(os)
    }

    fn place(&self, ring: usize, place: &Place) -> io::Result<()> {
        self.kernel.set_vring_num(ring, place.size).map_err(os)?;
        let data = VringConfigData {
            queue_max_size: place.size,
            queue_size: place.size,
            flags: 0,
            desc_table_addr: place.desc,
            used_ring_addr: place.used,
            avail_ring_addr: place.avail,
            log_addr: None,
        };
        // Not the trait's method of that name, which would translate.
        VhostKernVdpa::set_vring_addr(&self.kernel, ring, &data).map_err(os)
    }

    fn set_base(&self, ring: usize, base: u32) -> io::Result<()> {
        // The crate's has 16 bits, and a packed ring's base has 32.
        let state = vhost_vring_state { index: ring as u32, num: base };
        // SAFETY: an open node, and a structure that lives during the call.
        outcome(unsafe { ioctl_with_ref(&self.kernel, VHOST_SET_VRING_BASE(), &state) })
    }

    fn base(&self, ring: usize) -> io::Result<u32> {
        self.kernel.get_vring_base(ring).map_err(os)
    }

    fn set_kick(&self, ring: usize, kick: Option<&OwnedFd>) -> io::Result<()> {
        // SAFETY: an open node, and a structure that lives during the call.
        outcome(unsafe { ioctl_with_ref(&self.kernel, VHOST_SET_VRING_KICK(), &self.file(ring, kick)) })
    }

    fn set_call(&self, ring: usize, call: Option<&OwnedFd>) -> io::Result<()> {
        // SAFETY: an open node, and a structure that lives during the call.
        outcome(unsafe { ioctl_with_ref(&self.kernel, VHOST_SET_VRING_CALL(), &self.file(ring, call)) })
    }

    fn enable(&self, ring: usize) -> io::Result<()> {
        self.kernel.set_vring_enable(ring, true).map_err(os)
    }

    fn enables_late(&self) -> bool {
        self.backend & LATE != 0
    }

    fn suspends(&self) -> bool {
        self.backend & SUSPEND != 0
    }

    fn suspend(&self) -> io::Result<()> {
        self.kernel.suspend().map_err(os)
    }

    fn keeps_mappings(&self) -> bool {
        self.backend & PERSIST != 0
    }

    fn map(&self, iova: u64, len: u64, host: *const u8) -> io::Result<()> {
        self.kernel.dma_map(iova, len, host, false).map_err(os)
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        self.kernel.dma_unmap(iova, len).map_err(os)
    }

    fn batch(&self, begins: bool) -> io::Result<()> {
        if self.backend & BATCH == 0 {
            return Ok(());
        }
        let msg_type = if begins { VhostIotlbType::BatchBegin } else { VhostIotlbType::BatchEnd };
        self.kernel.send_iotlb_msg(&VhostIotlbMsg { msg_type, ..Default::default() }).map_err(os)
    }

    fn gone(&self) -> bool {
        // The node goes when the device does; what we hold open works on until we let go of it.
        fs::metadata(&self.path).map_or(true, |meta| meta.rdev() != self.number)
    }
}
