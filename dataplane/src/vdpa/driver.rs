//! DPDK's own virtio driver as one more guest of a vDPA device. It is a vhost-user front-end of ours as real guests are, and when it is to have the
//! device, its rings and its memory are handed over as theirs are. So the device changes between a guest and a relay without being closed, and the relay is made
//! ready while the guest's rings run.
//!
//! One of the two has the device at a time. While the driver does, the guest's memory may be mapped (during a migration, and before the guest is given the device):
//! no descriptor of ours leads there. While the guest does, nothing of ours is mapped: its descriptors lead anywhere.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use ringspan_protocol::LaneEventKind;

use super::handover::{available_index, used_index};
use super::{Facts, Handover, Refusal};
use crate::memory::{DirtyLog, GuestMap};
use crate::ring::{RingConfig, RingLog};
use crate::vhost::RingSink;
use crate::vhost::features::{F_CTRL_MAC_ADDR, F_CTRL_RX, F_CTRL_VLAN, F_GUEST_ANNOUNCE, F_LOG_ALL, F_RING_PACKED};

/// How often it is looked whether the device has sent what it was given.
const LOOK: Duration = Duration::from_micros(50);

/// What the driver has said, and the device while it has it.
pub struct Driver {
    allowed: u64,
    now: Mutex<Now>,
    changed: Condvar,
    /// What was so when somebody last looked. Never held while the device is told anything.
    seen: Mutex<Seen>,
}

/// What is said to those who only look.
#[derive(Default)]
struct Seen {
    /// Whether the link is up, and its speed; `None` while the driver does not have the device.
    link: Option<(bool, Option<u32>)>,
    gone: bool,
    failed: Option<String>,
}

#[derive(Default)]
struct Now {
    device: Option<Handover>,
    /// The guest's, as far as it is mapped.
    beside: Option<Arc<GuestMap>>,
    features: u64,
    map: Option<Arc<GuestMap>>,
    rings: BTreeMap<usize, RingConfig>,
    /// Why the driver's connection has ended, since when it has not made another.
    ended: Option<String>,
    /// Why the device, which the driver has, does not have all that the driver has said.
    failed: Option<Refusal>,
}

impl Driver {
    /// One that is offered what the device has.
    pub fn new(facts: &Facts) -> Arc<Self> {
        // Split rings: they say themselves where they stand. What goes by the control queue would be answered by the driver's own front-end, and done by nobody.
        let not_ours = F_RING_PACKED | F_LOG_ALL | F_CTRL_RX | F_CTRL_VLAN | F_CTRL_MAC_ADDR | F_GUEST_ANNOUNCE;
        let allowed = facts.offer(u64::MAX) & !not_ours;
        Arc::new(Self { allowed, now: Mutex::default(), changed: Condvar::new(), seen: Mutex::default() })
    }

    /// Waits until the driver has started both rings of so many pairs.
    ///
    /// # Errors
    /// It has not, and the time is over or its connection.
    pub fn ready(&self, pairs: u16, limit: Duration) -> Result<(), String> {
        let wanted = 2 * usize::from(pairs);
        let waits = |now: &mut Now| now.rings.len() < wanted && now.ended.is_none();
        let outcome = self.changed.wait_timeout_while(self.lock(), limit, waits);
        let now = outcome.unwrap_or_else(PoisonError::into_inner).0;
        match (now.rings.len(), &now.ended) {
            (started, _) if started >= wanted => Ok(()),
            (_, Some(reason)) => Err(format!("DPDK's virtio driver was refused: {reason}")),
            (started, None) => {
                Err(format!("DPDK's virtio driver started {started} of {wanted} rings in {} s", limit.as_secs()))
            }
        }
    }

    /// Gives the driver the device. What the device has of the guest's memory stays mapped.
    ///
    /// # Errors
    /// Why the device does not take the driver's rings, and the device.
    #[allow(clippy::result_large_err, reason = "not on the packet path")]
    pub fn lend(&self, mut device: Handover, guest: Option<Arc<GuestMap>>) -> Result<(), (Refusal, Handover)> {
        let mut now = self.lock();
        if let Some(reason) = &now.ended {
            return Err((Refusal::Driver(reason.clone()), device));
        }
        now.beside = guest;
        now.failed = None;
        device.negotiated(now.features);
        let mut given = || {
            if let Some(map) = &now.map {
                device.memory_anew(Arc::clone(map), now.beside.clone())?;
            }
            now.rings.iter().try_for_each(|(index, config)| device.accept(*index, config.clone()))?;
            device.settle()
        };
        match given() {
            Ok(_) => {
                now.device = Some(device);
                *self.seen() = Seen { link: now.link(), gone: now.gone(), failed: now.failed() };
                Ok(())
            }
            Err(refusal) => {
                now.take_rings(&mut device);
                Err((refusal, device))
            }
        }
    }

    /// Takes the device from the driver: it is stopped, and has none of its rings. It has their memory until it is told of other.
    pub fn take(&self) -> Option<Handover> {
        let mut now = self.lock();
        let mut device = now.device.take()?;
        now.take_rings(&mut device);
        now.beside = None;
        *self.seen() = Seen::default();
        Some(device)
    }

    /// Waits until the device has sent what the driver gave it. How many frames it has not.
    pub fn sent(&self, limit: Duration) -> u64 {
        let until = Instant::now() + limit;
        loop {
            let left = self.lock().unsent();
            if left == 0 || Instant::now() >= until {
                return left;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The guest's memory is another: what is no more of it is not kept.
    pub fn guest_memory(&self, guest: Arc<GuestMap>) {
        let mut now = self.lock();
        if now.beside.is_some() {
            now.beside = Some(guest);
            now.tell_memory(Handover::memory_beside);
        }
    }

    /// The guest's memory is mapped beside the driver's, because the guest is to have the device next. Where that cannot be it is found out then.
    pub fn keep_guest(&self, guest: Arc<GuestMap>) {
        let mut now = self.lock();
        let Some(device) = &mut now.device else { return };
        match device.keep_beside(Arc::clone(&guest)) {
            Ok(()) => now.beside = Some(guest),
            Err(refusal) => tracing::debug!("guest memory is not mapped beforehand: {refusal}"),
        }
    }

    /// The device has nothing of the guest's memory any more: its pages may be others by the time that the guest has the device again.
    pub fn drop_guest(&self) {
        let mut now = self.lock();
        if now.beside.take().is_some() {
            now.tell_memory(Handover::memory_beside);
        }
    }

    /// Whether the link is up, and its speed in Mbit/s; `None` while the driver does not have the device.
    pub fn link(&self) -> Option<(bool, Option<u32>)> {
        self.look(Now::link, |seen| &mut seen.link)
    }

    /// Why the device moves nothing although the driver has it: it refused what the driver said since it was lent. The driver does not hear of that.
    pub fn failed(&self) -> Option<String> {
        self.look(Now::failed, |seen| &mut seen.failed)
    }

    /// Whether the device was taken away while the driver has it.
    pub fn gone(&self) -> bool {
        self.look(Now::gone, |seen| &mut seen.gone)
    }

    /// Memory is pinned and given up while `now` is locked, for seconds with a large guest: who looks meanwhile is told what was so before.
    fn look<T: Clone>(&self, ask: impl FnOnce(&Now) -> T, of: impl FnOnce(&mut Seen) -> &mut T) -> T {
        let now = match self.now.try_lock() {
            Ok(now) => now,
            Err(TryLockError::Poisoned(now)) => now.into_inner(),
            Err(TryLockError::WouldBlock) => return of(&mut self.seen()).clone(),
        };
        let said = ask(&now);
        of(&mut self.seen()).clone_from(&said);
        said
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        // A panic in here ends the lane.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a device is told of memory, and of what stays beside it.
type Tell = fn(&mut Handover, Arc<GuestMap>, Option<Arc<GuestMap>>) -> Result<(), Refusal>;

impl Now {
    fn take_rings(&mut self, device: &mut Handover) {
        for (index, config) in &mut self.rings {
            config.resume = device.give_back(*index).or(config.resume);
        }
    }

    fn link(&self) -> Option<(bool, Option<u32>)> {
        let (up, speed) = self.device.as_ref()?.link();
        Some((up && self.failed.is_none(), speed))
    }

    fn gone(&self) -> bool {
        self.device.as_ref().is_some_and(Handover::gone)
    }

    fn failed(&self) -> Option<String> {
        self.device.as_ref().and(self.failed.as_ref()).map(Refusal::to_string)
    }

    /// Frames in the driver's transmit rings that were not used.
    fn unsent(&self) -> u64 {
        let Some(map) = self.map.as_deref() else { return 0 };
        let sending = self.rings.iter().filter(|(index, _)| !index.is_multiple_of(2));
        let left = |(_, config): (_, &RingConfig)| {
            let (available, used) = (available_index(map, config)?, used_index(map, config)?);
            Some(u64::from(available.wrapping_sub(used)))
        };
        sending.filter_map(left).sum()
    }

    fn tell_memory(&mut self, how: Tell) {
        let (Some(device), Some(map)) = (&mut self.device, &self.map) else { return };
        let told = how(device, Arc::clone(map), self.beside.clone());
        self.note(told);
    }

    /// What was refused first is why.
    fn note<T>(&mut self, outcome: Result<T, Refusal>) {
        if let Err(refusal) = outcome {
            self.failed.get_or_insert(refusal);
        }
    }
}

impl RingSink for Driver {
    fn allowed(&self) -> u64 {
        self.allowed
    }

    fn negotiated(&self, features: u64) {
        let mut now = self.lock();
        now.features = features;
        if let Some(device) = &mut now.device {
            device.negotiated(features);
        }
    }

    fn memory(&self, map: Arc<GuestMap>) {
        let mut now = self.lock();
        let _old = now.map.replace(map);
        // What EAL gave back and took again has the same address, and other pages (--in-memory: a hole in one file).
        now.tell_memory(Handover::memory_anew);
    }

    fn start(&self, index: usize, config: RingConfig) {
        let mut now = self.lock();
        now.rings.insert(index, config.clone());
        if let Some(device) = &mut now.device {
            let started = device.start(index, config);
            now.note(started);
        }
        self.changed.notify_all();
    }

    fn stop(&self, index: usize) -> Option<u16> {
        let mut now = self.lock();
        let config = now.rings.remove(&index)?;
        let Some(device) = &mut now.device else { return Some(config.position()) };
        let at = device.stop(index);
        let settled = device.settle();
        now.note(settled);
        at
    }

    fn call(&self, index: usize, call: Option<Arc<OwnedFd>>) {
        let mut now = self.lock();
        if let Some(config) = now.rings.get_mut(&index) {
            config.call.clone_from(&call);
        }
        if let Some(device) = &mut now.device {
            device.call(index, call);
        }
    }

    fn can_log(&self, _: bool) {}

    fn logging(&self, _: Option<&Arc<DirtyLog>>) {}

    fn log(&self, _: usize, _: Option<RingLog>) {}

    fn told(&self, _: usize) {}

    fn announce(&self, _: [u8; 6]) -> Result<(), String> {
        Err("it is no guest".into())
    }

    fn event(&self, event: LaneEventKind) {
        match event {
            LaneEventKind::FrontendConnected { .. } => self.lock().ended = None,
            LaneEventKind::HandshakeFailed { reason } | LaneEventKind::FrontendDisconnected { reason } => {
                let mut now = self.lock();
                if now.device.is_some() {
                    now.note::<()>(Err(Refusal::Driver(reason.clone())));
                }
                now.ended = Some(reason);
                self.changed.notify_all();
            }
            _ => {}
        }
    }
}
