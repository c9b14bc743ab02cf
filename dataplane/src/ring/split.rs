//! A split virtqueue (VIRTIO 1.2 section 2.7), device side, for virtio-net frames.
//!
//! Everything that is taken is completed in the same burst, in ring order. So nothing is ever in flight between two
//! calls, the available and the used index are the same number, and guest memory itself says where to go on.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::call::Call;
use super::layout::{Descriptor, Layout};
use super::{RingConfig, RingError, RingFeatures, copy};
use crate::BURST;
use crate::memory::{GuestMap, RegionCache, Span};

/// One ring of a guest. [`SplitRing::take`] drains a transmit ring, [`SplitRing::put`] fills a receive ring.
pub struct SplitRing {
    pub(super) layout: Layout,
    pub(super) map: Arc<GuestMap>,
    pub(super) cache: RegionCache,
    /// The next chain, in both rings.
    pub(super) next: u16,
    /// The guest's available index when it was last looked at.
    avail_seen: u16,
    /// The guest was told of what it has, since this ring was started.
    signalled: bool,
    base_differed: bool,
    call: Call,
    /// Found behind chains that were good; returned by the next call.
    pub(super) broken: Option<RingError>,
    pub(super) window: Box<[Chain; BURST]>,
    /// Scratch for one frame that is not in one plain buffer: its pieces of guest memory...
    pub(super) spans: Vec<Span>,
    /// ... and its chains: their heads, and the bytes that go into each.
    pub(super) parts: Vec<(u16, u32)>,
    /// Descriptors of such frames in the burst at hand.
    pub(super) steps: u32,
    config: RingConfig,
}

/// A chain of the burst at hand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chain {
    /// The buffer, when the chain is one plain descriptor inside one region; else null.
    pub start: *mut u8,
    /// The first descriptor.
    pub first: Descriptor,
    /// Its position.
    pub head: u16,
}

// SAFETY: the pointers lead into guest memory, which `map` keeps mapped and which belongs to no thread.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// The ring that `config` describes, in `map`. It goes on at the used index in guest memory (the driver itself
    /// starts there), whatever the front-end's base says: after a crash of ours that may be older. The guest gets one
    /// interrupt, because a process before us may have died between publishing and notifying.
    ///
    /// # Errors
    ///
    /// [`RingError::Size`], [`RingError::Alignment`], [`RingError::Place`] or [`RingError::Call`]: the front-end described no ring.
    pub fn new(map: Arc<GuestMap>, config: &RingConfig) -> Result<Self, RingError> {
        let layout = Layout::new(&map, config)?;
        let next = layout.used_index();
        let plain = Chain { start: std::ptr::null_mut(), first: Descriptor::default(), head: 0 };
        let ring = Self {
            layout,
            map,
            cache: RegionCache::default(),
            next,
            avail_seen: next,
            signalled: false,
            base_differed: config.base != next,
            call: Call::new(config.call.clone())?,
            broken: None,
            window: Box::new([plain; BURST]),
            spans: Vec::with_capacity(BURST),
            parts: Vec::with_capacity(BURST),
            steps: 0,
            config: config.clone(),
        };
        ring.call.signal()?;
        Ok(ring)
    }

    /// Goes on in another map, at the same guest addresses.
    ///
    /// # Errors
    ///
    /// As [`SplitRing::new`]. The ring then stays in the old map.
    pub fn remap(&mut self, map: Arc<GuestMap>) -> Result<(), RingError> {
        self.layout = Layout::new(&map, &self.config)?;
        self.map = map;
        self.cache = RegionCache::default();
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

    /// Whether the front-end's base was not the used index in guest memory when the ring was started.
    pub fn base_differed(&self) -> bool {
        self.base_differed
    }

    /// The next available index, which is the used index too: what the front-end is told when the ring stops.
    pub fn next_index(&self) -> u16 {
        self.next
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
        self.broken.is_some() || self.layout.avail_index() != self.next
    }

    /// Asks the guest not to kick: the ring is polled. A hint; kicks may still come.
    pub fn suppress_kicks(&mut self) {
        if self.config.features.event_idx {
            // The furthest index there is. The flag must stay clear (VIRTIO 1.2 section 2.7.10.1).
            self.layout.set_avail_event(self.next.wrapping_sub(1));
        } else {
            self.layout.set_no_notify(true);
        }
    }

    /// Asks the guest to kick when it makes the next chain available. True when it did meanwhile: then there may be no
    /// kick, and the ring is to be looked at now.
    pub fn request_kicks(&mut self) -> bool {
        if self.config.features.event_idx {
            self.layout.set_avail_event(self.next);
        } else {
            self.layout.set_no_notify(false);
        }
        // The request is seen before the index is read (VIRTIO 1.2 section 2.7.13.3.1): one of the two sides notices.
        fence(Ordering::SeqCst);
        self.pending()
    }

    /// Chains that may be taken: `wanted` at least, if there are as many. Every field that the guest wrote before it
    /// made them available is visible.
    #[inline(always)]
    pub(super) fn available(&mut self, wanted: u16) -> Result<u16, RingError> {
        let seen = self.avail_seen.wrapping_sub(self.next);
        if seen >= wanted {
            return Ok(seen);
        }
        let found = self.layout.avail_index();
        let (next, size) = (self.next, self.layout.size());
        let available = found.wrapping_sub(next);
        if available > size {
            return Err(RingError::AvailIndex { found, next, size });
        }
        self.avail_seen = found;
        Ok(available)
    }

    /// The head of the chain at `position` of the available ring.
    #[inline(always)]
    pub(super) fn head(&self, position: u16) -> Result<u16, RingError> {
        let head = self.layout.avail_head(position);
        let size = self.layout.size();
        if head < size { Ok(head) } else { Err(RingError::Head { head, size }) }
    }

    /// Reads `count` chains into the window, from the `from`th on. Those of one descriptor, inside one region, that the device
    /// writes (or reads) are ready for use, their memory on its way to the cache. Fewer than `count` when a head behind is out
    /// of range.
    ///
    /// # Errors
    ///
    /// [`RingError::Head`] for the first one.
    #[inline(always)]
    pub(super) fn look<const WRITE: bool>(&mut self, from: u16, count: u16) -> Result<u16, RingError> {
        const SHAPE: u16 = Descriptor::NEXT | Descriptor::WRITE | Descriptor::INDIRECT;
        let plain = if WRITE { Descriptor::WRITE } else { 0 };
        let first = self.next.wrapping_add(from);
        let mut count = usize::from(count).min(BURST);
        for i in 0..count {
            match self.head(first.wrapping_add(i as u16)) {
                Ok(head) => self.window[i].head = head,
                Err(error) if i == 0 => return Err(error),
                Err(_) => {
                    count = i;
                    break;
                }
            }
            copy::prefetch(self.layout.descriptor_at(self.window[i].head));
        }
        let Self { layout, map, cache, window, .. } = self;
        for chain in &mut window[..count] {
            let descriptor = layout.descriptor(chain.head);
            chain.first = descriptor;
            chain.start = std::ptr::null_mut();
            if descriptor.flags & SHAPE == plain
                && let Some(span) = map.translate(cache, descriptor.addr, descriptor.len as usize)
                && span.len == descriptor.len as usize
            {
                chain.start = span.start.as_ptr();
                copy::prefetch_buffer::<WRITE>(chain.start);
            }
        }
        Ok(count as u16)
    }

    /// Shows the guest the next `count` used elements, and notifies it if it wants that.
    #[inline(always)]
    pub(super) fn publish(&mut self, count: u16) {
        let old = self.next;
        let new = old.wrapping_add(count);
        self.layout.publish_used(new);
        self.next = new;
        // The index is seen before the guest's wish is read (VIRTIO 1.2 section 2.7.7.2): one side notices the other.
        fence(Ordering::SeqCst);
        let wanted = if self.config.features.event_idx {
            let first = !std::mem::replace(&mut self.signalled, true);
            first || passed(self.layout.used_event(), old, new)
        } else {
            !self.layout.no_interrupt()
        };
        if wanted {
            self.broken = self.broken.or(self.call.signal().err());
        }
    }
}

/// Whether going from index `old` to `new` passes `event` (vring_need_event, VIRTIO 1.2 section 2.7.10).
#[inline(always)]
fn passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
