//! What those see of a port who only look: control, the balancer and the monitor. They get what was so last, and wait for nobody's change.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringspan_protocol::{DeviceStatus, LaneEventKind, ModeStatus, NodeStatus, ShareStatus, ZeroCopyStatus};

use super::super::Shares;
use super::super::relaying::Open;
use super::taking::of_vdpa;
use super::{Backing, Now, Way};

/// What those see who only look.
pub(super) struct Seen {
    pub(super) way: WaySeen,
    pub(super) mode: ModeStatus,
    pub(super) reason: Option<String>,
    pub(super) allowed: u64,
    pub(super) pairs: u16,
    /// What happened and was not told yet.
    pub(super) events: Vec<LaneEventKind>,
}

#[derive(Clone)]
pub(super) enum WaySeen {
    Relay(Option<Arc<Shares>>, Arc<Open>),
    Vdpa(Box<DeviceStatus>),
    Down(Box<DeviceStatus>),
}

/// The port while somebody changes it. What those see who only look follows when it is let go of.
pub(super) struct Held<'a> {
    pub(super) now: MutexGuard<'a, Now>,
    pub(super) seen: &'a Mutex<Seen>,
}

impl Backing {
    /// What of the feature bits may be offered.
    pub fn allowed(&self) -> u64 {
        self.seen().allowed
    }

    /// The relays, where there are any.
    pub fn shares(&self) -> Option<Arc<Shares>> {
        match &self.seen().way {
            WaySeen::Relay(shares, _) => shares.clone(),
            WaySeen::Vdpa(_) | WaySeen::Down(_) => None,
        }
    }

    /// Events since they were last asked for.
    pub fn take_events(&self) -> Vec<LaneEventKind> {
        std::mem::take(&mut self.seen().events)
    }

    /// Who moves the packets, and why the device does not.
    pub fn mode(&self) -> (ModeStatus, Option<String>) {
        let seen = self.seen();
        (seen.mode, seen.reason.clone())
    }

    /// What is run by workers, whether frames are copied, and the device.
    pub fn status(&self) -> (Vec<ShareStatus>, ZeroCopyStatus, DeviceStatus) {
        let way = self.seen().way.clone();
        match way {
            WaySeen::Relay(Some(shares), device) => (shares.status(), shares.zero_copy(), device.status()),
            WaySeen::Relay(None, device) => (Vec::new(), ZeroCopyStatus::default(), device.status()),
            WaySeen::Vdpa(device) => {
                let reason = Some("the device reads the guest's memory by itself".into());
                (Vec::new(), ZeroCopyStatus { from: None, reason }, *device)
            }
            WaySeen::Down(device) => (Vec::new(), ZeroCopyStatus::default(), *device),
        }
    }

    /// On which NUMA nodes its memory is.
    pub fn nodes(&self) -> NodeStatus {
        self.shares().map_or_else(NodeStatus::default, |shares| shares.nodes())
    }

    /// The driver's own counters.
    pub fn extended_stats(&self) -> Vec<(String, u64)> {
        let way = self.seen().way.clone();
        match way {
            WaySeen::Relay(_, device) => device.extended_stats(),
            WaySeen::Vdpa(_) | WaySeen::Down(_) => Vec::new(),
        }
    }

    /// Whether the guest broke a ring.
    pub fn is_broken(&self) -> bool {
        self.shares().is_some_and(|shares| shares.is_broken())
    }

    /// How many pairs run.
    pub fn pairs(&self) -> u16 {
        self.seen().pairs
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        // Nothing that can panic runs under this lock.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Now {
    /// What those see who only look.
    pub(super) fn seen(&self) -> Seen {
        let way = match &self.way {
            Way::Relay(relay) => WaySeen::Relay(relay.shares(), Arc::clone(relay.device())),
            Way::Vdpa(handover) => WaySeen::Vdpa(Box::new(of_vdpa(&self.spec, Some(handover)))),
            Way::Down => WaySeen::Down(Box::new(of_vdpa(&self.spec, None))),
        };
        let (mode, reason, pairs) = (self.mode(), self.reason.clone(), self.pairs());
        Seen { way, mode, reason, allowed: self.allowed, pairs, events: Vec::new() }
    }
}

impl Deref for Held<'_> {
    type Target = Now;

    fn deref(&self) -> &Now {
        &self.now
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Now {
        &mut self.now
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let new = self.now.seen();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut events = std::mem::take(&mut seen.events);
        events.append(&mut self.now.events);
        let _old = std::mem::replace(&mut *seen, Seen { events, ..new });
        drop(seen);
    }
}
