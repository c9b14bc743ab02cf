//! What can go wrong with a vDPA device, in words for an operator.

use std::io;
use std::ops::RangeInclusive;

use ringspan_protocol::FailureKind;

/// Why a vhost-vdpa node cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing is at the path.
    #[error("there is no {0}: load vhost_vdpa, and make the vDPA device (ringspan vdpa list)")]
    Missing(String),
    /// Something else is there.
    #[error("{0} is no vhost-vdpa device: name one of /dev/vhost-vdpa-* (ringspan vdpa list)")]
    NotVdpa(String),
    /// A vDPA device of another class.
    #[error("{path} is a virtio device of class {id}, and a port needs a network device (1)")]
    NotNet {
        /// The node.
        path: String,
        /// Its virtio device id (VIRTIO 1.2 section 5).
        id: u32,
    },
    /// Somebody has it open: the kernel lets one process in.
    #[error("{0} is in use: a vDPA device belongs to one port or one QEMU at a time; end what uses it")]
    Busy(String),
    /// The lane may not.
    #[error("{path}: not allowed ({source}): run the lane as root, or give its user the node")]
    Permission {
        /// The node.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// Anything else.
    #[error("{path}: {what}: {source}")]
    System {
        /// The node.
        path: String,
        /// What was tried.
        what: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// What its configuration space says cannot be.
    #[error("{path}: its configuration space says {what}: its driver is broken, or its device")]
    Config {
        /// The node.
        path: String,
        /// What it says.
        what: String,
    },
}

impl OpenError {
    /// Its kind in the control API.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Missing(_) => FailureKind::NotFound,
            Self::NotVdpa(_) | Self::NotNet { .. } => FailureKind::Invalid,
            Self::Busy(_) => FailureKind::Busy,
            Self::Permission { .. } => FailureKind::Permission,
            Self::System { .. } => FailureKind::Failed,
            Self::Config { .. } => FailureKind::Unsupported,
        }
    }

    /// The operating system's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Permission { source, .. } | Self::System { source, .. } => source.raw_os_error(),
            Self::Missing(_) => Some(libc::ENOENT),
            Self::Busy(_) => Some(libc::EBUSY),
            Self::NotVdpa(_) | Self::NotNet { .. } | Self::Config { .. } => None,
        }
    }
}

/// Why a device does not take a guest's rings. A relay can have them instead.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The guest negotiated what the device cannot do.
    #[error("the device has no {0}, which the guest negotiated")]
    Features(String),
    /// The guest did not negotiate what the device needs.
    #[error("the device needs {0}, which the guest did not negotiate")]
    Needs(&'static str),
    /// The device did not agree to features that it had offered (FEATURES_OK stayed clear).
    #[error("the device refused the features {0} which it had offered")]
    NotAgreed(String),
    /// A ring is too large.
    #[error("ring {ring} has {size} descriptors, the device takes {largest} at most")]
    RingSize {
        /// Its index.
        ring: usize,
        /// Its size.
        size: u16,
        /// The device's limit.
        largest: u16,
    },
    /// More rings than the device has.
    #[error("ring {ring} is of queue pair {}, and the device takes {pairs}", ring / 2 + 1)]
    Queues {
        /// The ring.
        ring: usize,
        /// Queue pairs that the device can be given.
        pairs: u16,
    },
    /// The device cannot begin in the middle of a ring.
    #[error(
        "the device cannot go on at {at:#x} in ring {ring} ({error}): it can take the rings when the guest's driver starts anew"
    )]
    Position {
        /// The ring.
        ring: usize,
        /// Where.
        at: u16,
        /// What the driver said.
        error: String,
    },
    /// Packed rings could never be taken back: nothing in memory says how far the device is.
    #[error("the device cannot be suspended, and would not say where a packed ring stands: it gets split rings only")]
    NoPosition,
    /// Guest memory beyond what the device can address.
    #[error("the device addresses {:#x} to {:#x}, and guest memory is at {at:#x} to {end:#x}", .range.start(), .range.end())]
    Iova {
        /// What the device can address.
        range: RangeInclusive<u64>,
        /// Where the region begins.
        at: u64,
        /// Its last byte.
        end: u64,
    },
    /// Guest memory that begins or ends amid a page.
    #[error(
        "{len:#x} bytes of guest memory at {at:#x} are not whole pages of {page:#x} bytes, and a device is given whole ones (a relay needs none)"
    )]
    Pages {
        /// Guest-physical address.
        at: u64,
        /// Length.
        len: u64,
        /// Bytes of a page.
        page: u64,
    },
    /// RLIMIT_MEMLOCK.
    #[error(
        "RLIMIT_MEMLOCK is {limit_kib} KiB, {pinned_kib} KiB are pinned and {wanted_kib} KiB of guest memory are to be: raise it (LimitMEMLOCK=infinity)"
    )]
    MemLock {
        /// The limit.
        limit_kib: u64,
        /// What the lane has pinned already.
        pinned_kib: u64,
        /// What is to be added.
        wanted_kib: u64,
    },
    /// The kernel did not map guest memory for another reason.
    #[error("{len:#x} bytes of guest memory at {at:#x} cannot be pinned ({error})")]
    Memory {
        /// Guest-physical address.
        at: u64,
        /// Length.
        len: u64,
        /// What the kernel said.
        error: String,
    },
    /// The guest is being migrated.
    #[error("the guest is being migrated, and the device does not note what it writes")]
    Logging,
    /// The device was stopped and did not say how far it was: whoever goes on at a wrong place corrupts the guest's memory.
    #[error(
        "the device did not say where ring {ring} stands, and nothing else does: it goes on when the guest's driver starts anew"
    )]
    Lost {
        /// The ring.
        ring: usize,
    },
    /// A step that the kernel or the driver refused.
    #[error("the device refused: {step} ({error})")]
    Step {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        error: String,
    },
    /// The rings are those of DPDK's virtio driver, whose connection to us is over.
    #[error("DPDK's virtio driver has no connection to its rings any more: {0}")]
    Driver(String),
    /// The device reported that it is broken.
    #[error("the device needs a reset (status {0:#x})")]
    Broken(u8),
}

impl Refusal {
    /// Whether the device may take the rings the next time the guest's driver starts.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Position { .. } | Self::Lost { .. } | Self::Logging)
    }
}
