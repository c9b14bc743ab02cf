//! The driver's side of a ring, split or packed: what the queues, the front-end and the tests need of either.
//! Virtio 1.2, sections 2.7 and 2.8.

mod doorbell;
mod order;
pub mod packed;
pub mod split;

use std::sync::Arc;
use std::time::Duration;

use nix::sys::eventfd::EventFd;

use super::memory::{Memory, Piece};

pub use packed::PackedRing;
pub use split::{Descriptor, SplitRing};

/// The descriptor continues in another one. The same number in both formats, as the next two.
pub const NEXT: u16 = 1;
/// The back-end writes to the buffer.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Most descriptors of one chain.
pub const MOST_SPANS: usize = 64;
/// In [`Used::id`]: the element names no chain that is with the back-end.
pub const NOBODY: u32 = u32::MAX;

/// A used element. In a split ring it lies so in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C, align(4))]
pub struct Used {
    /// What the driver called the chain: in memory of a split ring its first descriptor, from [`Format::collect`] the
    /// buffer's number.
    pub id: u32,
    /// Bytes that the device wrote.
    pub length: u32,
}

/// A part of a buffer that one descriptor tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
}

/// What a queue does with its ring by the burst; the two formats are two implementations, so that a burst is decided upon
/// once and not for each frame.
pub trait Format {
    /// Sets descriptors apart for chains of up to `each`, a number that the ring has; how many buffers there may be.
    fn reserve(&mut self, each: u16) -> u16;

    /// Makes a buffer available in one descriptor for each span (1 to [`MOST_SPANS`]), with these flags, [`NEXT`] aside. The
    /// back-end sees it after [`Self::publish`].
    fn offer(&mut self, buffer: u16, spans: &[Span], flags: u16);

    /// As [`Self::offer`], with flags of each descriptor's own: what a driver may not do can be done here. Without regard to
    /// IN_ORDER.
    fn offer_parts(&mut self, buffer: u16, parts: &[(Span, u16)]);

    /// Shows the back-end everything that was offered, and kicks it when it asked for that.
    fn publish(&mut self);

    /// Takes used elements; how many. Their ids are numbers of buffers, or [`NOBODY`].
    fn collect(&mut self, used: &mut [Used]) -> usize;

    /// The cache line that will be written for this buffer when it is offered `ahead` of the next one.
    fn line(&self, buffer: u16, ahead: u16) -> *const u8;

    /// Writes a table of indirect descriptors, in a piece that is long enough.
    fn write_table(table: &Piece, spans: &[Span], flags: u16);
}

/// The two formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Kind {
    /// Three tables; every device knows them.
    #[default]
    Split,
    /// One table that both sides write.
    Packed,
}

/// A ring of either format.
#[derive(Debug)]
pub enum Ring {
    /// Virtio 1.2, section 2.7.
    Split(SplitRing),
    /// Virtio 1.2, section 2.8.
    Packed(PackedRing),
}

impl From<SplitRing> for Ring {
    fn from(ring: SplitRing) -> Self {
        Self::Split(ring)
    }
}

impl From<PackedRing> for Ring {
    fn from(ring: PackedRing) -> Self {
        Self::Packed(ring)
    }
}

/// Does the same with either format.
macro_rules! either {
    ($ring:expr, $each:ident => $does:expr) => {
        match $ring {
            $crate::guest::ring::Ring::Split($each) => $does,
            $crate::guest::ring::Ring::Packed($each) => $does,
        }
    };
}
pub(super) use either;

impl Ring {
    /// An empty ring.
    ///
    /// # Errors
    /// The format does not allow this size, or memory is used up.
    pub fn new(kind: Kind, memory: &Arc<Memory>, size: u16, event_idx: bool, in_order: bool) -> anyhow::Result<Self> {
        Ok(match kind {
            Kind::Split => SplitRing::new(memory, size, event_idx)?.in_order(in_order).into(),
            Kind::Packed => PackedRing::new(memory, size, event_idx)?.in_order(in_order).into(),
        })
    }

    /// Its format.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Split(_) => Kind::Split,
            Self::Packed(_) => Kind::Packed,
        }
    }

    /// The split ring that it is, for hostile acts. Panics when it is another.
    pub fn split(&mut self) -> &mut SplitRing {
        match self {
            Self::Split(ring) => ring,
            Self::Packed(_) => panic!("a packed ring where a split one was wanted"),
        }
    }

    /// The packed ring that it is, for hostile acts. Panics when it is another.
    pub fn packed(&mut self) -> &mut PackedRing {
        match self {
            Self::Packed(ring) => ring,
            Self::Split(_) => panic!("a split ring where a packed one was wanted"),
        }
    }

    /// Descriptors.
    pub fn size(&self) -> u16 {
        either!(self, ring => ring.size())
    }

    /// The memory that the ring lies in.
    pub fn memory(&self) -> &Arc<Memory> {
        either!(self, ring => ring.memory())
    }

    /// Guest-physical addresses of descriptors, driver's area and device's area: of a split ring those of the available and the
    /// used ring.
    pub fn addresses(&self) -> [u64; 3] {
        either!(self, ring => ring.addresses())
    }

    /// Addresses of the same three in this process, as SET_VRING_ADDR wants them.
    pub fn user_addresses(&self) -> [u64; 3] {
        either!(self, ring => ring.user_addresses())
    }

    /// What the driver writes to when there are buffers.
    pub fn kick(&self) -> &EventFd {
        either!(self, ring => ring.bell().kick())
    }

    /// What the back-end writes to when it used some.
    pub fn call(&self) -> &EventFd {
        either!(self, ring => ring.bell().call())
    }

    /// Kicks whether the back-end asked for it or not, as QEMU does when a ring is started.
    pub fn kick_now(&self) {
        either!(self, ring => ring.bell().ring());
    }

    /// Makes a chain available and shows it: [`Format::offer_parts`]. For hostile acts.
    pub fn send_parts(&mut self, buffer: u16, parts: &[(Span, u16)]) {
        either!(self, ring => ring.offer_parts(buffer, parts));
        self.publish();
    }

    /// Changes where a descriptor of a receiving ring leads, whether it is with the back-end or not. A hostile act.
    pub fn redirect(&mut self, at: u16, span: Span) {
        match self {
            Self::Split(ring) => {
                let Span { address, length } = span;
                ring.describe(at, Descriptor { address, length, flags: WRITE, next: 0 });
            }
            Self::Packed(ring) => {
                let was = ring.read(at);
                ring.write(at, packed::Descriptor { address: span.address, length: span.length, ..was });
            }
        }
    }

    /// Writes a table of indirect descriptors: [`Format::write_table`].
    pub fn write_table(&self, table: &Piece, spans: &[Span], flags: u16) {
        match self {
            Self::Split(_) => SplitRing::write_table(table, spans, flags),
            Self::Packed(_) => PackedRing::write_table(table, spans, flags),
        }
    }

    /// Shows the back-end everything that was offered.
    pub fn publish(&mut self) {
        either!(self, ring => ring.publish());
    }

    /// Chains that were used and not taken yet.
    pub fn pending(&self) -> u16 {
        either!(self, ring => ring.pending())
    }

    /// Asks for an interrupt at the next used element, or for none at all.
    pub fn want_call(&mut self, wanted: bool) {
        either!(self, ring => ring.want_call(wanted));
    }

    /// Sleeps until the back-end interrupts or has used something; whether it has.
    pub fn wait(&mut self, timeout: Duration) -> std::io::Result<bool> {
        self.want_call(true);
        if self.pending() == 0 {
            either!(&*self, ring => ring.bell().wait_call(timeout))?;
        }
        let _ = self.call().read();
        Ok(self.pending() > 0)
    }

    /// What SET_VRING_BASE says of a ring that was never used.
    pub fn first_base(&self) -> u32 {
        match self {
            Self::Split(_) => 0,
            // Both wrap counters begin with 1: 2.8.1.
            Self::Packed(_) => 0x8000_8000,
        }
    }

    /// What SET_VRING_BASE says after the back-end died, when `held` is what the front-end knew last. QEMU reads a split ring's
    /// used index from the guest's memory, DPDK's virtio-user says 0, which is the harder one. Of a packed ring QEMU knows no better
    /// than before (`virtio_queue_packed_restore_last_avail_idx` does nothing).
    pub fn base_after_death(&self, held: u32) -> u32 {
        match self {
            Self::Split(_) => 0,
            Self::Packed(_) => held,
        }
    }

    /// Where both sides stand, for an error message.
    pub fn state(&self) -> String {
        either!(self, ring => ring.state())
    }
}
