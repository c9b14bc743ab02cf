//! A ring of the kind that was negotiated. Told apart once a call, so once a burst.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{
    FrameSink, FrameSource, Loan, PackedRing, Put, RingConfig, RingError, RingFeatures, RingLog, SplitRing, Taken,
};
use crate::memory::GuestMap;

/// One ring of a guest.
pub enum Ring {
    /// VIRTIO 1.2 section 2.7.
    Split(SplitRing),
    /// VIRTIO 1.2 section 2.8.
    Packed(PackedRing),
}

macro_rules! either {
    ($self:expr, $ring:ident => $what:expr) => {
        match $self {
            Self::Split($ring) => $what,
            Self::Packed($ring) => $what,
        }
    };
}

impl Ring {
    /// The ring that `config` describes, in `map`. The guest gets one interrupt.
    ///
    /// # Errors
    ///
    /// [`RingError::Size`], [`RingError::Alignment`], [`RingError::Place`], [`RingError::Base`], [`RingError::Lost`] or [`RingError::Call`]:
    /// the front-end described no ring.
    pub fn new(map: Arc<GuestMap>, config: &RingConfig) -> Result<Self, RingError> {
        if config.features.packed {
            PackedRing::new(map, config).map(Self::Packed)
        } else {
            SplitRing::new(map, config).map(Self::Split)
        }
    }

    /// Goes on in another map, at the same guest addresses.
    ///
    /// # Errors
    ///
    /// As [`Ring::new`]. The ring then stays in the old map.
    pub fn remap(&mut self, map: Arc<GuestMap>) -> Result<(), RingError> {
        either!(self, ring => ring.remap(map))
    }

    /// Interrupts go another way from here on. The guest gets one at once: the last may have gone the old way.
    ///
    /// # Errors
    ///
    /// [`RingError::Call`]. The ring then keeps the way it had.
    pub fn set_call(&mut self, call: Option<Arc<OwnedFd>>) -> Result<(), RingError> {
        either!(self, ring => ring.set_call(call))
    }

    /// What is written is noted elsewhere from here on, or nowhere.
    pub fn set_log(&mut self, log: Option<RingLog>) {
        either!(self, ring => ring.set_log(log));
    }

    /// Takes up to `limit` chains (64 at most) and copies the frame of each into `sink`'s buffers, frames longer than `max_frame`
    /// bytes excepted. The chains are given back to the guest when all was copied; those that `sink` lends, and all behind
    /// them, by [`Ring::settle`].
    ///
    /// # Errors
    ///
    /// The guest broke the ring; nothing was taken.
    #[inline]
    pub fn take<S: FrameSink>(&mut self, limit: usize, max_frame: usize, sink: &mut S) -> Result<Taken, RingError> {
        either!(self, ring => ring.take(limit, max_frame, sink))
    }

    /// Descriptors in the ring.
    pub fn size(&self) -> u16 {
        either!(self, ring => ring.size())
    }

    /// Frames may be lent from here on.
    pub fn allow_loans(&mut self) {
        either!(self, ring => ring.allow_loans());
    }

    /// Chains that were taken and not given back.
    #[inline]
    pub fn owed(&self) -> usize {
        either!(self, ring => ring.owed())
    }

    /// Gives back what can be given back, in ring order: up to the first chain that is lent and for which `is_back` says no. It is
    /// asked until it has said yes, and then not again. Returns how many chains that were.
    #[inline]
    pub fn settle(&mut self, is_back: impl FnMut(Loan) -> bool) -> usize {
        either!(self, ring => ring.settle(is_back))
    }

    /// Copies `frames` into the guest's buffers, in order. The guest sees them all at once. A frame is put as a whole or not at all;
    /// when the guest's buffers run out, that frame and those behind it are counted as [`Put::ring_full`].
    ///
    /// # Errors
    ///
    /// The guest broke the ring; nothing was put.
    #[inline]
    pub fn put<F: FrameSource + ?Sized>(&mut self, frames: &F) -> Result<Put, RingError> {
        either!(self, ring => ring.put(frames))
    }

    /// Where the ring stands: what the front-end is told when it stops, as [`RingConfig::base`] has it.
    pub fn position(&self) -> u16 {
        either!(self, ring => ring.position())
    }

    /// What was negotiated.
    pub fn features(&self) -> RingFeatures {
        either!(self, ring => ring.features())
    }

    /// Signalled by the guest when it has made chains available; absent when the front-end polls.
    pub fn kick(&self) -> Option<&Arc<OwnedFd>> {
        either!(self, ring => ring.kick())
    }

    /// Whether the guest has made chains available, or broke the ring, so that a call has something to do.
    #[inline]
    pub fn pending(&self) -> bool {
        either!(self, ring => ring.pending())
    }

    /// Asks the guest not to kick: the ring is polled. A hint; kicks may still come.
    pub fn suppress_kicks(&mut self) {
        either!(self, ring => ring.suppress_kicks());
    }

    /// Asks the guest to kick when it makes the next chain available. True when it did meanwhile: then there may be no
    /// kick, and the ring is to be looked at now.
    pub fn request_kicks(&mut self) -> bool {
        either!(self, ring => ring.request_kicks())
    }
}
