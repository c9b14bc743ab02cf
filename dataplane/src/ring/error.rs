//! What a guest can do to its ring that stops its port.

use thiserror::Error;

/// The guest (or the front-end) broke the ring. The port stops and recovers when the guest resets the device.
///
/// Here is what Linux vhost, QEMU and DPDK stop a queue for, too. A chain that is well-formed but holds no frame only
/// costs that frame (see [`Taken`](super::Taken)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RingError {
    /// The ring's size is no power of two or too large.
    #[error("ring of {0} descriptors: the size must be a power of two from 1 to 32768")]
    Size(u16),
    /// One of the ring's parts is not aligned as VIRTIO 1.2 sections 2.7 and 2.8 ask.
    #[error("{part} at {addr:#x} is not aligned to {align} bytes")]
    Alignment {
        /// Which part.
        part: RingPart,
        /// Its guest address.
        addr: u64,
        /// What it should be aligned to, in bytes.
        align: usize,
    },
    /// One of the ring's parts is not inside one region of guest memory.
    #[error("{part} at {addr:#x}, {len} bytes, is not inside one region of guest memory")]
    Place {
        /// Which part.
        part: RingPart,
        /// Its guest address.
        addr: u64,
        /// Its length in bytes.
        len: usize,
    },
    /// The front-end named a place to go on at that a packed ring does not have.
    #[error("base {base:#x} in a packed ring of {size} descriptors: bits 0 to 14 must be below its size")]
    Base {
        /// As SET_VRING_BASE said it.
        base: u16,
        /// Descriptors in the ring.
        size: u16,
    },
    /// Where a packed ring stands is known to nobody.
    #[error(
        "the ring has been used, its record is lost, and the front-end names the place where rings begin: reset the guest's network \
         device (load its driver anew, or restart the guest)"
    )]
    Lost,
    /// What is to interrupt the guest is no eventfd.
    #[error("the front-end's call descriptor is no eventfd")]
    Call,
    /// Interrupting the guest hung.
    #[error("the front-end made its call descriptor blocking and filled it, so that interrupting the guest hung")]
    CallHangs,
    /// What was written cannot be told to who migrates the guest.
    #[error("the file of the log of dirty pages was cut short while the guest was migrated: migrate again")]
    LogGone,
    /// The available index went further than the ring is long.
    #[error("the guest's available index is {found}, at most {size} after {next} are possible")]
    AvailIndex {
        /// The index as read.
        found: u16,
        /// The index that we are at.
        next: u16,
        /// Descriptors in the ring.
        size: u16,
    },
    /// The head of a chain is no descriptor of the ring.
    #[error("the guest made chain {head} available in a ring of {size} descriptors")]
    Head {
        /// The head as read.
        head: u16,
        /// Descriptors in the ring.
        size: u16,
    },
    /// A descriptor's `next` is no descriptor of its table.
    #[error("descriptor chain {head} goes on at {next} in a table of {size}")]
    Next {
        /// First descriptor of the chain.
        head: u16,
        /// Where it should go on.
        next: u16,
        /// Descriptors in the table.
        size: u32,
    },
    /// A chain has more descriptors than any legal one: it loops.
    #[error("descriptor chain {head} has more than {limit} descriptors: it loops, or is too long")]
    ChainLength {
        /// First descriptor of the chain.
        head: u16,
        /// Most descriptors that a chain may have.
        limit: u16,
    },
    /// An indirect descriptor, but VIRTIO_F_INDIRECT_DESC was not negotiated.
    #[error("descriptor chain {head} is indirect, which was not negotiated")]
    IndirectNotNegotiated {
        /// First descriptor of the chain.
        head: u16,
    },
    /// An indirect descriptor inside an indirect table (VIRTIO 1.2 section 2.7.5.3.1).
    #[error("descriptor chain {head} has an indirect descriptor inside an indirect table")]
    IndirectNested {
        /// First descriptor of the chain.
        head: u16,
    },
    /// An indirect descriptor that claims to have a successor (VIRTIO 1.2 section 2.7.5.3.1).
    #[error("descriptor chain {head} goes on behind its indirect table")]
    IndirectNext {
        /// First descriptor of the chain.
        head: u16,
    },
    /// An indirect table of no or partial descriptors, or of more than a chain may have.
    #[error("the indirect table of descriptor chain {head} has {len} bytes: no multiple of 16 from 16 to {max}")]
    IndirectLength {
        /// First descriptor of the chain.
        head: u16,
        /// Length as read.
        len: u32,
        /// Longest table that is accepted.
        max: u32,
    },
    /// A buffer outside guest memory, or one that wraps around the address space.
    #[error("descriptor chain {head} has a buffer at {addr:#x}, {len} bytes, which is outside guest memory")]
    Address {
        /// First descriptor of the chain.
        head: u16,
        /// Guest address as read.
        addr: u64,
        /// Length as read.
        len: u32,
    },
}

/// The parts of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingPart {
    /// The descriptor table.
    Descriptors,
    /// The available ring.
    Available,
    /// The used ring.
    Used,
    /// The driver's event suppression structure of a packed ring.
    DriverEvents,
    /// The device's event suppression structure of a packed ring.
    DeviceEvents,
}

impl std::fmt::Display for RingPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "the descriptor table",
            Self::Available => "the available ring",
            Self::Used => "the used ring",
            Self::DriverEvents => "the driver's event structure",
            Self::DeviceEvents => "the device's event structure",
        })
    }
}
