//! What a ring writes to guest memory, noted page by page while the guest is migrated (VHOST_F_LOG_ALL).
//!
//! While it is not, this costs a look at an option a burst. Buffers are noted after they are written and before the guest is given them;
//! the ring's own parts right after: the front-end takes what is noted last when the ring has stopped.

use std::sync::Arc;

use super::RingError;
use super::descriptor::Chain;
use super::format::Format;
use super::queue::{Ground, Queue};
use crate::memory::{DirtyLog, Span};

/// Where a ring's writes are noted.
#[derive(Debug, Clone)]
pub struct RingLog {
    /// The front-end's log.
    pub log: Arc<DirtyLog>,
    /// Guest-physical address of the used ring (split) or the device's event structure (packed) for whoever reads the log: `log_guest_addr` of
    /// SET_VRING_ADDR where it was given, else the ring's own.
    pub used: u64,
}

impl PartialEq for RingLog {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.log, &other.log) && self.used == other.used
    }
}

impl RingLog {
    /// Notes these parts of guest memory.
    pub(super) fn mark(&self, parts: impl IntoIterator<Item = (u64, usize)>) {
        let mut marker = self.log.marker();
        parts.into_iter().for_each(|(addr, len)| marker.mark(addr, len));
    }
}

impl<F: Format> Queue<F> {
    /// Notes the parts of the ring by which `slots` were just given back.
    #[cold]
    #[inline(never)]
    pub(super) fn log_published(&mut self, slots: u16) {
        let Some(log) = &self.ground.log else { return };
        log.mark(self.ground.format.published(&self.config, log.used, slots));
        if log.log.poisoned() {
            self.broken = self.broken.or(Some(RingError::LogGone));
        }
    }

    /// Notes that the guest was asked to kick, or not to.
    pub(super) fn log_event(&self) {
        if let Some(log) = &self.ground.log {
            log.mark([F::event(&self.config, log.used)]);
        }
    }
}

impl<F: Format> Ground<F> {
    /// Notes what was written to chains of one buffer, or of two of which the first has the header of `lead` bytes.
    #[cold]
    #[inline(never)]
    pub(super) fn log_chains(&self, chains: &[Chain], lead: usize) {
        let Some(log) = &self.log else { return };
        let mut marker = log.log.marker();
        for chain in chains {
            let (room, apart) = (chain.room as usize, chain.apart > 0);
            let first = if apart { (chain.start, lead) } else { (chain.start, room) };
            let second = apart.then(|| (chain.body, room.saturating_sub(lead)));
            for (start, len) in std::iter::once(first).chain(second) {
                if let Some(start) = std::ptr::NonNull::new(start) {
                    marker.mark_span(&self.map, Span { start, len });
                }
            }
        }
    }

    /// Notes that the first `len` bytes of the spans were written.
    #[cold]
    #[inline(never)]
    pub(super) fn log_spans(&self, len: usize) {
        let Some(log) = &self.log else { return };
        let mut marker = log.log.marker();
        let mut left = len;
        for span in &self.spans {
            marker.mark_span(&self.map, Span { len: span.len.min(left), ..*span });
            left -= span.len.min(left);
        }
    }
}
