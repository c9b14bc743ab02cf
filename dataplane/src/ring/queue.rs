//! One ring of a guest, of either kind: its memory, its interrupts, and what a burst needs.
//!
//! Everything that is taken is given back in the same burst, in ring order. So nothing is in flight between two calls, unless the
//! sink of a transmit ring lends frames: then the chains wait in [`Debts`] until [`Queue::settle`] finds the first of them back.

use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::call::Call;
use super::debts::Debts;
use super::descriptor::Chain;
use super::format::Format;
use super::window::Window;
use super::{Loan, RingConfig, RingError, RingFeatures, RingLog};
use crate::BURST;
use crate::memory::{GuestMap, RegionCache, Span};

/// One ring of a guest. [`Queue::take`] drains a transmit ring, [`Queue::put`] fills a receive ring.
pub struct Queue<F> {
    pub(super) ground: Ground<F>,
    /// What was found and not used.
    pub(super) window: Window,
    /// What was taken and not given back.
    pub(super) debts: Debts,
    /// The guest was told of what it has, since this ring was started.
    signalled: bool,
    call: Call,
    /// Found behind chains that were good; returned by the next call.
    pub(super) broken: Option<RingError>,
    pub(super) config: RingConfig,
}

/// A ring and the memory that its chains lie in.
pub(super) struct Ground<F> {
    pub format: F,
    pub map: Arc<GuestMap>,
    pub cache: RegionCache,
    /// Scratch for one frame that is not in one plain buffer: its pieces of guest memory...
    pub spans: Vec<Span>,
    /// ... where they are copied to...
    pub pieces: Vec<(NonNull<u8>, usize)>,
    /// ... and its chains, with the bytes that go into each.
    pub parts: Vec<Chain>,
    /// Where writes are noted, while the guest is migrated.
    pub log: Option<RingLog>,
}

// SAFETY: the pointers lead into guest memory, which `map` keeps mapped and which belongs to no thread; those of `pieces` are
// used during a call only.
unsafe impl<F: Format> Send for Queue<F> {}

impl<F: Format> Queue<F> {
    /// The ring that `config` describes, in `map`. The guest gets one interrupt, because a process before us may have died
    /// between publishing and notifying.
    ///
    /// # Errors
    ///
    /// [`RingError::Size`], [`RingError::Alignment`], [`RingError::Place`] or [`RingError::Call`]: the front-end described no ring.
    pub fn new(map: Arc<GuestMap>, config: &RingConfig) -> Result<Self, RingError> {
        let left_over = config.record.as_ref().and_then(|record| record.get().left_over(config));
        let left_over = left_over.filter(|_| config.resume.is_none());
        let ground = Ground {
            format: F::new(&map, config)?,
            map,
            cache: RegionCache::default(),
            spans: Vec::with_capacity(BURST),
            pieces: Vec::with_capacity(BURST),
            parts: Vec::with_capacity(BURST),
            log: config.log.clone(),
        };
        let mut ring = Self {
            ground,
            signalled: false,
            call: Call::new(config.call.clone())?,
            broken: None,
            window: Window::new(),
            debts: Debts::new(),
            config: RingConfig { log: None, ..config.clone() },
        };
        if let Some(end) = left_over {
            ring.give_up(end);
        }
        if let Some(record) = &config.record {
            record.get().settled();
        }
        if let Some(log) = &ring.ground.log {
            log.mark(F::writable(config, log.used));
        }
        ring.call.signal()?;
        Ok(ring)
    }

    /// What is written is noted elsewhere from here on, or nowhere. What was written before was noted by the old terms.
    pub fn set_log(&mut self, log: Option<RingLog>) {
        self.ground.log = log;
    }

    /// Goes on in another map, at the same guest addresses.
    ///
    /// # Errors
    ///
    /// As [`Queue::new`]. The ring then stays in the old map.
    pub fn remap(&mut self, map: Arc<GuestMap>) -> Result<(), RingError> {
        self.ground.format.remap(&map, &self.config)?;
        self.ground.map = map;
        self.ground.cache = RegionCache::default();
        self.window.clear();
        Ok(())
    }

    /// Interrupts go another way from here on. The guest gets one at once: the last may have gone the old way.
    ///
    /// # Errors
    ///
    /// [`RingError::Call`]. The ring then keeps the way it had.
    pub fn set_call(&mut self, call: Option<Arc<OwnedFd>>) -> Result<(), RingError> {
        self.call = Call::new(call.clone())?;
        self.config.call = call;
        self.call.signal()?;
        Ok(())
    }

    /// Where the ring stands: what the front-end is told when it stops. See [`RingConfig::base`]. Nothing is in flight.
    pub fn position(&self) -> u16 {
        self.ground.format.position()
    }

    /// What was negotiated.
    pub fn features(&self) -> RingFeatures {
        self.config.features
    }

    /// Signalled by the guest when it has made chains available; absent when the front-end polls.
    pub fn kick(&self) -> Option<&Arc<OwnedFd>> {
        self.config.kick.as_ref()
    }

    /// Whether the guest has made chains available, or broke the ring, so that a call has something to do.
    #[inline]
    pub fn pending(&self) -> bool {
        self.broken.is_some() || self.window.len() > 0 || self.ground.format.pending()
    }

    /// Asks the guest not to kick: the ring is polled. A hint; kicks may still come.
    pub fn suppress_kicks(&mut self) {
        self.ground.format.suppress_kicks(self.config.features.event_idx);
        self.log_event();
    }

    /// Asks the guest to kick when it makes the next chain available. True when it did meanwhile: then there may be no
    /// kick, and the ring is to be looked at now.
    pub fn request_kicks(&mut self) -> bool {
        self.ground.format.request_kicks(self.config.features.event_idx);
        self.log_event();
        // The request is seen before the ring is read (VIRTIO 1.2 section 2.7.13.3.1): one of the two sides notices.
        fence(Ordering::SeqCst);
        self.pending()
    }

    /// Sees to it that `wanted` chains are in the window, of which the first is `used` slots on, if the guest has made as many
    /// available; how many are there.
    ///
    /// # Errors
    ///
    /// What is wrong with the first, when there is none.
    #[inline(always)]
    pub(super) fn look<const WRITE: bool, const INDIRECT: bool>(
        &mut self,
        used: u16,
        wanted: usize,
    ) -> Result<usize, RingError> {
        if self.window.len() < wanted {
            self.find::<WRITE, INDIRECT>(used)?;
        }
        Ok(self.window.len())
    }

    /// Apart from the loops that copy, so that each has the registers for itself.
    #[inline(never)]
    fn find<const WRITE: bool, const INDIRECT: bool>(&mut self, used: u16) -> Result<(), RingError> {
        let Self { ground: Ground { format, map, cache, .. }, window, .. } = self;
        let from = used + window.slots();
        match format.look::<WRITE, INDIRECT>(map, cache, window.room(), from) {
            Ok((count, slots)) => window.add(count, slots),
            // It is found again when its turn comes.
            Err(_) if window.len() > 0 => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Looks at what comes next while there is other work, so that it is in the cache by then.
    #[inline(always)]
    pub(super) fn look_ahead<const WRITE: bool, const INDIRECT: bool>(&mut self) {
        if self.window.len() == 0 {
            // What is wrong there is found again when its turn comes.
            let _ = self.find::<WRITE, INDIRECT>(0);
        }
    }

    /// Makes what was found of the window's first chains unknown, when a test wants the way for any shape.
    #[cfg(test)]
    pub(super) fn look_slowly(&mut self, count: usize) {
        if super::tests::is_slow() {
            self.window.first(count).iter_mut().for_each(Chain::odd);
        }
    }

    /// Descriptors in the ring.
    pub fn size(&self) -> u16 {
        self.config.size
    }

    /// Frames may be lent from here on.
    pub fn allow_loans(&mut self) {
        self.debts.reserve(self.config.size);
        if let Some(record) = &self.config.record {
            record.get().lends(&self.config);
        }
    }

    /// Chains that were taken and not given back.
    #[inline(always)]
    pub fn owed(&self) -> usize {
        self.debts.len()
    }

    /// Gives back what can be given back, in ring order: up to the first chain that is lent and for which `is_back` says no. It is asked
    /// until it has said yes, and then not again. Returns how many chains that were.
    #[cold]
    #[inline(never)]
    pub fn settle(&mut self, mut is_back: impl FnMut(Loan) -> bool) -> usize {
        let in_order = self.config.features.in_order;
        let (mut count, mut slots, mut last) = (0, 0, Chain::NONE);
        while let Some(chain) = self.debts.pop(&mut is_back) {
            if !in_order {
                self.ground.format.give_back::<false>(slots, &[chain], F::slots(&chain));
            }
            slots += F::slots(&chain);
            count += 1;
            last = chain;
        }
        if count == 0 {
            return 0;
        }
        self.debts.settled(slots);
        if in_order {
            self.show::<false, true>(&last, slots);
        } else {
            self.show::<false, false>(&last, slots);
        }
        if self.debts.len() == 0
            && let Some(record) = &self.config.record
        {
            record.get().settled();
        }
        count
    }

    /// Gives back, unsent, what a process before us had taken up to the position `end`: it may have been sent.
    fn give_up(&mut self, end: u16) {
        let format = &mut self.ground.format;
        let ahead = format.ahead(end);
        let (mut slots, mut last) = (0, None);
        // None, when the record is of another life at the same place. What is wrong with a chain is found again when its turn comes.
        while slots < ahead
            && ahead <= format.size()
            && let Ok(Some(chain)) = format.chain(slots)
        {
            format.give_back::<false>(slots, &[chain], F::slots(&chain));
            slots += F::slots(&chain);
            last = Some(chain);
        }
        if let Some(last) = last {
            self.publish::<false, false>(&last, slots);
        }
    }

    /// Shows the guest what was taken and given back: see [`Queue::show`].
    #[inline(always)]
    pub(super) fn publish<const WRITE: bool, const IN_ORDER: bool>(&mut self, last: &Chain, slots: u16) {
        self.ground.format.took(slots);
        self.show::<WRITE, IN_ORDER>(last, slots);
    }

    /// What was taken waits, and all behind it.
    pub(super) fn defer(&mut self, slots: u16) {
        self.ground.format.took(slots);
        if let Some(record) = &self.config.record {
            record.get().took(self.ground.format.taken());
        }
    }

    /// Shows the guest what was given back, in `slots` up to the chain `last`, and notifies it if it wants that.
    #[inline(always)]
    fn show<const WRITE: bool, const IN_ORDER: bool>(&mut self, last: &Chain, slots: u16) {
        self.ground.format.publish::<WRITE, IN_ORDER>(last, slots);
        // It is seen before the guest's wish is read (VIRTIO 1.2 section 2.7.7.2): one side notices the other.
        fence(Ordering::SeqCst);
        if self.ground.log.is_some() {
            self.log_published(slots);
        }
        let first = !std::mem::replace(&mut self.signalled, true);
        if self.ground.format.wants_interrupt(self.config.features.event_idx, first, slots) {
            self.broken = self.broken.or(self.call.signal().err());
        }
    }
}
