//! What the two kinds of ring have in common, so that the loops that drain and fill them are written once.
//!
//! Positions count from the start of the ring's life and wrap at 65536. They go on by one for each chain in a split ring, and by
//! one for each descriptor in a packed one: both are called slots here. A ring's size is a power of two, so that the lowest
//! bits of a position are the place in the ring, and the next one is the parity of the lap.
//!
//! What was found and what was given back stand at positions of their own. Between two calls they are the same, unless frames
//! are lent.

use super::descriptor::{Chain, Descriptor};
use super::{RingConfig, RingError};
use crate::memory::{GuestMap, RegionCache};

/// A ring in guest memory: where chains are found, and how they are given back.
pub trait Format: Sized {
    /// Whether descriptors are linked by `next`; else those of a chain lie one behind another.
    const LINKED: bool;

    /// The ring that `config` describes, in `map`.
    ///
    /// # Errors
    ///
    /// [`RingError::Size`], [`RingError::Alignment`] or [`RingError::Place`]: there is none.
    fn new(map: &GuestMap, config: &RingConfig) -> Result<Self, RingError>;

    /// Goes on in another map. After an error the ring stays where it was.
    ///
    /// # Errors
    ///
    /// As [`Format::new`].
    fn remap(&mut self, map: &GuestMap, config: &RingConfig) -> Result<(), RingError>;

    /// Descriptors in the ring.
    fn size(&self) -> u16;

    /// The first slot that was not given back, as GET_VRING_BASE says it.
    fn position(&self) -> u16;

    /// Whether the guest has made a chain available.
    fn pending(&self) -> bool;

    /// Asks the guest not to kick.
    fn suppress_kicks(&self, event_idx: bool);

    /// Asks the guest to kick for the next chain.
    fn request_kicks(&self, event_idx: bool);

    /// Slots that a chain takes.
    fn slots(chain: &Chain) -> u16;

    /// Reads as many chains as there are, and as `window` has room for, from `from` slots on. Those of one or two buffers, each inside one
    /// region, that the device writes (or reads) are ready for use, their memory on its way to the cache; with `INDIRECT` also those
    /// in a table of their own. Returns how many there are, and how many slots they take; fewer when one behind is bad.
    ///
    /// # Errors
    ///
    /// What is wrong with the first one.
    fn look<const WRITE: bool, const INDIRECT: bool>(
        &mut self,
        map: &GuestMap,
        cache: &mut RegionCache,
        window: &mut [Chain],
        from: u16,
    ) -> Result<(usize, u16), RingError>;

    /// The chain `at` slots on, of any shape, if there is one.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    fn chain(&mut self, at: u16) -> Result<Option<Chain>, RingError>;

    /// Descriptor `index` of the ring; any index is fine.
    fn descriptor(&self, index: u16) -> Descriptor;

    /// The next `slots` were taken: what is looked at next is behind them.
    fn took(&mut self, slots: u16);

    /// The position behind what was taken.
    fn taken(&self) -> u16;

    /// How many slots a position is behind what was given back.
    fn ahead(&self, position: u16) -> u16;

    /// Gives chains back that follow one another and take `slots`, the first `at` slots behind those that were published. In each
    /// `room` bytes were written if the device writes. The guest does not see them before [`Format::publish`].
    fn give_back<const WRITE: bool>(&mut self, at: u16, chains: &[Chain], slots: u16);

    /// Shows the guest everything that was given back: `slots` of them, and what was written to its buffers. With `IN_ORDER` the
    /// chains were not given back one by one, but are as a batch, of which `last` is the last.
    fn publish<const WRITE: bool, const IN_ORDER: bool>(&mut self, last: &Chain, slots: u16);

    /// The parts of guest memory that [`Format::publish`] has just written to give `slots` back, as guest addresses and lengths. The
    /// used ring is at `used` for whoever reads the log.
    fn published(&self, config: &RingConfig, used: u64, slots: u16) -> impl Iterator<Item = (u64, usize)>;

    /// The part that [`Format::suppress_kicks`] and [`Format::request_kicks`] write.
    fn event(config: &RingConfig, used: u64) -> (u64, usize);

    /// All parts of the ring that a device writes.
    fn writable(config: &RingConfig, used: u64) -> [(u64, usize); 2];

    /// Whether the guest wants an interrupt for the `slots` that were published last; `first` when it was not told of
    /// anything yet.
    fn wants_interrupt(&self, event_idx: bool, first: bool, slots: u16) -> bool;
}

/// Whether going on by `slots` to position `new` passes `event`, where `mask` are the bits of a position that count
/// (vring_need_event, VIRTIO 1.2 section 2.7.10).
#[inline(always)]
pub fn passed(event: u16, new: u16, slots: u16, mask: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) & mask < slots
}

/// The `slots` places from `position` on in a ring of `size`: where they begin and how many they are, up to the ring's end and from its
/// beginning.
pub fn around(position: u16, slots: u16, size: u16) -> impl Iterator<Item = (u16, u16)> {
    let from = position & (size - 1);
    let here = slots.min(size - from);
    [(from, here), (0, (slots - here).min(size))].into_iter().filter(|&(_, count)| count > 0)
}
