//! Frames that a device reads where the guest wrote them: see docs/decisions/0010-zero-copy.md.

use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use super::outbox::{Asking, Spare};
use crate::nic::{Blanks, LentMemory, Loans};
use crate::offload::NEEDS_CSUM;
use crate::ring::{FrameSink, LargeFrame, Loan, NetHeader, Ring};
use crate::worker::{ticks, ticks_in};

/// How long a worker does not sleep while a device has frames and lets go of none: by then it is stuck, not busy.
const AWAKE: Duration = Duration::from_millis(1);

/// What a port's rings may lend.
#[derive(Clone)]
pub struct Terms {
    /// Guest memory that the device can read.
    pub memory: Arc<LentMemory>,
    /// Frames of fewer bytes are copied.
    pub from: usize,
}

/// What a ring lends.
pub struct Lender {
    loans: Loans,
    from: usize,
    /// The ring may take no more: it stops, or its memory goes.
    pub closed: bool,
    /// When a frame last came back, in ticks.
    moved: u64,
}

impl Lender {
    /// `ring` lends from here on.
    pub fn new(terms: &Terms, ring: &mut Ring) -> Self {
        ring.allow_loans();
        let loans = Loans::new(Arc::clone(&terms.memory), ring.size());
        Self { loans, from: terms.from, closed: false, moved: 0 }
    }

    /// Gives back to the guest what the device let go of. Returns how many chains that were.
    #[inline]
    pub fn settle(&mut self, ring: &mut Ring) -> usize {
        if ring.owed() == 0 {
            return 0;
        }
        let settled = ring.settle(|Loan(number)| self.loans.is_back(number));
        if settled > 0 {
            self.moved = ticks();
        }
        settled
    }

    /// Whether frames are likely to come back soon.
    pub fn expects(&self, ring: &Ring) -> bool {
        ring.owed() > 0 && ticks().wrapping_sub(self.moved) < ticks_in(AWAKE)
    }

    /// Frames that the device has.
    pub fn away(&self) -> usize {
        self.loans.away()
    }
}

/// A sink whose large frames are lent.
pub struct Lending<'a, S> {
    pub sink: &'a mut S,
    pub lender: &'a mut Lender,
}

/// A sink with buffers that can be made frames elsewhere.
pub trait Buffers {
    fn blanks(&mut self) -> &mut Blanks;
}

impl Buffers for Spare {
    fn blanks(&mut self) -> &mut Blanks {
        &mut self.blanks
    }
}

impl Buffers for Asking<'_> {
    fn blanks(&mut self) -> &mut Blanks {
        &mut self.0.blanks
    }
}

// SAFETY: as for the sink inside. What is lent is only read, by the device.
unsafe impl<S: FrameSink + Buffers> FrameSink for Lending<'_, S> {
    const HEADERS: bool = S::HEADERS;
    const LENDS: bool = true;

    #[inline(always)]
    fn frame(&mut self, header: &NetHeader, len: usize) -> Option<NonNull<u8>> {
        self.sink.frame(header, len)
    }

    #[inline(always)]
    unsafe fn several<P>(
        &mut self,
        frames: impl Iterator<Item = (NetHeader, usize, P)>,
        put: impl FnMut(P, usize, NonNull<u8>),
    ) -> usize {
        // SAFETY: the caller's.
        unsafe { self.sink.several(frames, put) }
    }

    #[inline(always)]
    fn lends_from(&self) -> usize {
        self.lender.from
    }

    /// A frame that is to be worked on is copied first: the guest can change what it has, at any time.
    #[inline(always)]
    unsafe fn lend(&mut self, header: &NetHeader, start: NonNull<u8>, len: usize) -> Option<Loan> {
        if len < self.lender.from || header.flags & NEEDS_CSUM != 0 || header.gso_type != 0 {
            return None;
        }
        // SAFETY: the caller's; the ring's map is the one that its loans are of: both change together.
        unsafe { self.lender.loans.lend(self.sink.blanks(), start, len) }.map(Loan)
    }

    fn longest(&self, max_frame: usize) -> usize {
        self.sink.longest(max_frame)
    }

    fn large_frame(&mut self, header: &NetHeader, len: usize, pieces: &mut Vec<(NonNull<u8>, usize)>) -> LargeFrame {
        self.sink.large_frame(header, len, pieces)
    }
}
