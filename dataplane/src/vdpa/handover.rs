//! A guest's rings in the hands of a device.
//!
//! The device runs while both rings of the first pair are started, and with it all pairs that follow without a gap: what changes of a ring takes the device down and up again,
//! except for the call descriptor and the guest's memory, which change as it runs.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{Control, Kernel, Mappings, NetConfig, Place, Refusal};
use crate::memory::{GuestMap, RegionCache};
use crate::ring::{RingConfig, RingError, packed_starts_at};
use crate::vhost::feature_names;
use crate::vhost::features::{
    F_ANY_LAYOUT, F_CTRL_MAC_ADDR, F_CTRL_RX, F_CTRL_VLAN, F_CTRL_VQ, F_GUEST_ANNOUNCE, F_LOG_ALL, F_MQ, F_MTU,
    F_PROTOCOL_FEATURES, F_RING_PACKED, F_STATUS, F_VERSION_1,
};
use crate::worker::interruptibly;

/// Device status bits (VIRTIO 1.2 section 2.1).
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;
const FAILED: u8 = 128;

const F_ACCESS_PLATFORM: u64 = 1 << 33;
/// What the front-end serves by itself, whatever the device is told: its control queue, LOG_ALL (which the session keeps) and ANY_LAYOUT (which VERSION_1 implies) among it.
const SERVED: u64 = F_MTU
    | F_STATUS
    | F_CTRL_VQ
    | F_CTRL_RX
    | F_CTRL_VLAN
    | F_GUEST_ANNOUNCE
    | F_CTRL_MAC_ADDR
    | F_LOG_ALL
    | F_ANY_LAYOUT
    | F_PROTOCOL_FEATURES;

/// The feature bits that a front-end serves by itself.
pub fn served_by_front_end() -> u64 {
    SERVED
}

/// What a device said of itself when it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Virtio feature bits that it offers.
    pub features: u64,
    /// Most descriptors of a ring.
    pub largest_ring: u16,
    /// What addresses it can reach.
    pub reach: RangeInclusive<u64>,
    /// Its configuration space.
    pub net: NetConfig,
    /// What its configuration space says that cannot be; no guest gets such a device.
    pub lie: Option<String>,
    /// It can be stopped so that it says where its rings stand. A split ring says so itself, a packed one does not.
    pub suspends: bool,
    /// Virtqueues that it has, where the kernel knows that.
    rings: Option<u32>,
    /// Its rings can be enabled after DRIVER_OK.
    late: bool,
}

impl Facts {
    fn read(kernel: &dyn Kernel) -> Result<Self, String> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| format!("{what}: {error}")
        };
        let features = kernel.features().map_err(failed("nothing of its features"))?;
        let largest_ring = kernel.largest_ring().map_err(failed("nothing of its rings"))?;
        let reach = kernel.reach().map_err(failed("nothing of its addresses"))?;
        let (net, lie) = match NetConfig::read(kernel, features, kernel.rings().unwrap_or(u32::MAX)) {
            Ok(net) => (net, None),
            Err(lie) => (NetConfig { pairs: 1, ..NetConfig::default() }, Some(lie)),
        };
        if largest_ring == 0 {
            return Err("rings of 0 descriptors".into());
        }
        let (suspends, rings, late) = (kernel.suspends(), kernel.rings(), kernel.enables_late());
        Ok(Self { features, largest_ring, reach, net, lie, suspends, rings, late })
    }

    /// What of these feature bits can be offered while the device may get the rings: those that it has, and those that the front-end serves by itself.
    pub fn offer(&self, features: u64) -> u64 {
        let lost = if self.suspends { 0 } else { F_RING_PACKED };
        let single = if self.pairs() > 1 { 0 } else { F_MQ };
        features & (self.features | SERVED) & !lost & !single
    }

    /// Queue pairs that it can be given: one, unless it has a control queue to be told of others, and its rings can wait until it was told.
    pub fn pairs(&self) -> u16 {
        if self.has_control_queue() && self.late { self.net.pairs } else { 1 }
    }

    /// What a device with several pairs lacks so that it could be given them; empty when that is not why.
    pub fn why_no_more(&self) -> &'static str {
        match (self.net.pairs > 1, self.has_control_queue()) {
            (true, false) => " (it has no control queue by which it could be told of more)",
            (true, true) if !self.late => {
                " (its driver enables no rings after DRIVER_OK, as those of Linux 6.6 do: the guest could write to the control queue meanwhile)"
            }
            _ => "",
        }
    }

    fn has_control_queue(&self) -> bool {
        let several = self.features & (F_MQ | F_CTRL_VQ) == F_MQ | F_CTRL_VQ;
        let control = u32::from(self.net.pairs) * 2;
        several && self.rings.is_none_or(|rings| rings > control)
    }
}

/// A device, and the rings that it has.
pub struct Handover {
    kernel: Box<dyn Kernel>,
    facts: Facts,
    features: u64,
    map: Option<Arc<GuestMap>>,
    /// Memory that stays mapped for who has the rings next.
    beside: Option<Arc<GuestMap>>,
    mappings: Mappings,
    rings: Vec<Option<RingConfig>>,
    /// Pairs that the device has.
    running: u16,
    /// It was reset, and was told nothing since but of memory.
    fresh: bool,
    /// It could not be reset: it may run still, until it is closed.
    stuck: bool,
}

impl Handover {
    /// Takes a device over, and resets it.
    ///
    /// # Errors
    /// What it says of itself that cannot be.
    pub fn new(kernel: Box<dyn Kernel>) -> Result<Self, String> {
        kernel.set_status(0).map_err(|error| format!("that it cannot be reset: {error}"))?;
        let facts = Facts::read(&*kernel)?;
        let (mappings, rings) = (Mappings::default(), vec![None; 2 * usize::from(facts.pairs())]);
        Ok(Self {
            kernel,
            facts,
            features: 0,
            map: None,
            beside: None,
            mappings,
            rings,
            running: 0,
            fresh: true,
            stuck: false,
        })
    }

    /// What the device said of itself.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Pairs whose rings it has.
    pub fn running(&self) -> u16 {
        self.running
    }

    /// Regions of guest memory that it has.
    pub fn regions(&self) -> usize {
        self.mappings.count()
    }

    /// Whether the link is up, and its speed in Mbit/s.
    pub fn link(&self) -> (bool, Option<u32>) {
        let up = NetConfig::link(&*self.kernel, self.facts.features).unwrap_or(false);
        (up, NetConfig::speed(&*self.kernel, self.facts.features))
    }

    /// Whether the device could not be reset: nobody else gets its rings before it is closed, which takes its memory from it.
    pub fn stuck(&self) -> bool {
        self.stuck
    }

    /// Whether the device was taken away.
    pub fn gone(&self) -> bool {
        self.kernel.gone()
    }

    /// What the guest negotiated. No ring runs.
    pub fn negotiated(&mut self, features: u64) {
        self.features = features;
    }

    /// Guest memory is another; rings that run go on.
    ///
    /// # Errors
    /// [`Refusal`]: the device was stopped, and has no memory; the rings stand where [`Handover::stop`] says.
    pub fn memory(&mut self, map: Arc<GuestMap>) -> Result<(), Refusal> {
        self.memory_beside(map, None)
    }

    /// The same, and what the device has of `beside` already it keeps, for who has the rings next: whoever has them now must be trusted with that.
    ///
    /// # Errors
    /// As [`Handover::memory`].
    pub fn memory_beside(&mut self, map: Arc<GuestMap>, beside: Option<Arc<GuestMap>>) -> Result<(), Refusal> {
        self.change_memory(map, beside, false)
    }

    /// The same for memory whose pages may be others at the same place: none of it is kept, and rings that run stop meanwhile.
    ///
    /// # Errors
    /// As [`Handover::memory`].
    pub fn memory_anew(&mut self, map: Arc<GuestMap>, beside: Option<Arc<GuestMap>>) -> Result<(), Refusal> {
        // For a moment nothing of it is mapped.
        self.halt();
        self.change_memory(map, beside, true)?;
        self.settle().map(drop)
    }

    /// Maps memory that the device is to have soon besides its own: whoever has the rings now must be trusted with that.
    ///
    /// # Errors
    /// [`Refusal`]; all is as before.
    pub fn keep_beside(&mut self, beside: Arc<GuestMap>) -> Result<(), Refusal> {
        self.mappings.add(&*self.kernel, &beside, &self.facts.reach)?;
        self.beside = Some(beside);
        Ok(())
    }

    fn change_memory(&mut self, map: Arc<GuestMap>, beside: Option<Arc<GuestMap>>, anew: bool) -> Result<(), Refusal> {
        let changed = self.mappings.change(&*self.kernel, &map, beside.as_ref(), anew, &self.facts.reach);
        self.beside = beside;
        // The old one goes when the device has let go of it.
        let old = self.map.replace(map);
        if changed.is_err() {
            self.map = old.or(self.map.take());
            self.halt();
            self.forget_mappings();
        }
        changed
    }

    /// Gives the device a ring. Returns how many pairs run.
    ///
    /// # Errors
    /// [`Refusal`]: the device is stopped; where its rings stand, [`Handover::stop`] says.
    pub fn start(&mut self, index: usize, config: RingConfig) -> Result<u16, Refusal> {
        self.accept(index, config)?;
        self.settle()
    }

    /// Takes a ring for the device, which [`Handover::settle`] gives it.
    ///
    /// # Errors
    /// [`Refusal`]: the device cannot have it.
    pub fn accept(&mut self, index: usize, config: RingConfig) -> Result<(), Refusal> {
        if index >= self.rings.len() {
            return Err(Refusal::Queues { ring: index, pairs: self.facts.pairs() });
        }
        // A larger packed ring has the place that stands for none.
        let most = if config.features.packed { RingConfig::NOWHERE } else { u16::MAX };
        let largest = self.facts.largest_ring.min(most);
        if config.size > largest {
            return Err(Refusal::RingSize { ring: index, size: config.size, largest });
        }
        if config.log.is_some() {
            return Err(Refusal::Logging);
        }
        self.check_features()?;
        if index < 2 * usize::from(self.running) {
            self.halt();
        }
        self.rings[index] = Some(config);
        Ok(())
    }

    /// Lets the device have as many pairs as are complete. Returns how many.
    ///
    /// # Errors
    /// [`Refusal`]: the device is stopped.
    pub fn settle(&mut self) -> Result<u16, Refusal> {
        let complete = self.rings.chunks(2).take_while(|pair| pair.iter().all(Option::is_some)).count() as u16;
        if complete != self.running {
            self.halt();
            let taken = self.rings.iter().take(2 * usize::from(complete));
            if let Some(ring) = taken.flatten().position(RingConfig::is_lost) {
                return Err(Refusal::Lost { ring });
            }
            if complete > 0 {
                self.bring_up(complete).inspect_err(|_| if self.running > 0 { self.halt() } else { self.reset() })?;
            }
        }
        Ok(self.running)
    }

    /// Takes a ring from the device, which stops when it had it; [`Handover::settle`] gives it what is left. Returns where the ring stands, which may be
    /// [`RingConfig::NOWHERE`]; `None` when it was not started.
    pub fn stop(&mut self, index: usize) -> Option<u16> {
        self.take(index).map(|config| config.position())
    }

    /// As [`Handover::stop`]; also `None` when the ring has never run, so that the next one who has it looks for itself where it stands.
    pub fn give_back(&mut self, index: usize) -> Option<u16> {
        self.take(index)?.resume
    }

    fn take(&mut self, index: usize) -> Option<RingConfig> {
        self.rings.get(index)?.as_ref()?;
        if index < 2 * usize::from(self.running) {
            self.halt();
        }
        self.rings[index].take()
    }

    /// The guest is interrupted by another descriptor.
    pub fn call(&mut self, index: usize, call: Option<Arc<OwnedFd>>) {
        let Some(Some(config)) = self.rings.get_mut(index) else { return };
        if index < 2 * usize::from(self.running) {
            if let Err(error) = self.kernel.set_call(index, call.as_deref()) {
                tracing::warn!(ring = index, %error, "the device keeps the call descriptor that it had");
            }
            nudge(call.as_deref());
        }
        config.call = call;
    }

    fn check_features(&self) -> Result<(), Refusal> {
        // With MQ the guest may have one pair all the same; which pairs there are is said when they start.
        let lacking = self.features & !(self.facts.features | SERVED | F_MQ);
        if lacking != 0 {
            return Err(Refusal::Features(feature_names(lacking).join(", ")));
        }
        if self.features & F_VERSION_1 == 0 {
            return Err(Refusal::Needs("VERSION_1"));
        }
        if self.features & F_RING_PACKED != 0 && !self.facts.suspends {
            return Err(Refusal::NoPosition);
        }
        Ok(())
    }

    fn bring_up(&mut self, pairs: u16) -> Result<(), Refusal> {
        // Before memory is told, because some forget it then.
        if !std::mem::take(&mut self.fresh) {
            self.reset();
            self.fresh = false;
        }
        if let Some(map) = self.map.clone() {
            self.mappings.change(&*self.kernel, &map, self.beside.as_ref(), false, &self.facts.reach)?;
        }
        let kernel = &*self.kernel;
        let control = match &self.map {
            Some(map) if pairs > 1 => {
                let mapped: Vec<&GuestMap> = std::iter::once(map).chain(&self.beside).map(|map| &**map).collect();
                let control = Control::new(&mapped, &self.facts.reach).map_err(step("room for a control queue"))?;
                Some(control.lend(kernel).map_err(step("memory for a control queue"))?)
            }
            _ => None,
        };
        let status = |bits| kernel.set_status(bits).map_err(step("a change of its status"));
        status(ACKNOWLEDGE)?;
        status(ACKNOWLEDGE | DRIVER)?;
        let several = if pairs > 1 { F_MQ | F_CTRL_VQ } else { 0 };
        let own = F_ACCESS_PLATFORM | F_STATUS | several;
        let features = self.facts.features & (self.features & !SERVED & !F_MQ | own);
        kernel.set_features(features).map_err(step("its features"))?;
        let agreed = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        status(agreed)?;
        if kernel.status().map_err(step("its status"))? & FEATURES_OK == 0 {
            return Err(Refusal::NotAgreed(feature_names(features).join(", ")));
        }
        for (index, config) in self.rings.iter().take(2 * usize::from(pairs)).enumerate() {
            let Some(config) = config else { continue };
            let place = Place { size: config.size, desc: config.desc.0, avail: config.avail.0, used: config.used.0 };
            kernel.place(index, &place).map_err(step("the place of a ring"))?;
            // What the front-end says of a split ring may be from before a crash of ours, or nothing (DPDK's virtio-user says 0): the relay goes on here, too.
            let at = match self.map.as_deref() {
                Some(map) if config.features.packed => match packed_starts_at(map, config) {
                    Err(RingError::Lost | RingError::Base { .. }) => return Err(Refusal::Lost { ring: index }),
                    found => found.unwrap_or(config.position()),
                },
                map => map.and_then(|map| used_index(map, config)).unwrap_or(config.position()),
            };
            // Nothing is in flight, so both halves of a packed ring's position are the same.
            let base = if config.features.packed { u32::from(at) * 0x1_0001 } else { at.into() };
            kernel.set_base(index, base).map_err(|error| Refusal::Position {
                ring: index,
                at,
                error: error.to_string(),
            })?;
            if let Some(map) = self.map.as_deref() {
                ask_for_kicks(map, config);
            }
            kernel.set_call(index, config.call.as_deref()).map_err(step("a call descriptor"))?;
            kernel.set_kick(index, config.kick.as_deref()).map_err(step("a kick descriptor"))?;
            if control.is_none() {
                kernel.enable(index).map_err(step("enabling a ring"))?;
            }
        }
        let packed = features & F_RING_PACKED != 0;
        if let Some(lent) = &control {
            // Behind those of all pairs that the device has (5.1.2).
            let ring = 2 * usize::from(self.facts.net.pairs);
            lent.control.describe(kernel, ring, packed, pairs).map_err(step("a control queue"))?;
        }
        status(agreed | DRIVER_OK)?;
        // From here on its rings may move.
        self.running = pairs;
        let now = kernel.status().map_err(step("its status"))?;
        if now & (NEEDS_RESET | FAILED) != 0 || now & DRIVER_OK == 0 {
            return Err(Refusal::Broken(now));
        }
        if let Some(lent) = control {
            lent.control.execute(packed).map_err(step("so many queue pairs"))?;
            // A descriptor of the guest's could lead there.
            lent.take_back().map_err(step("giving up the control queue"))?;
            for index in 0..2 * usize::from(pairs) {
                kernel.enable(index).map_err(step("enabling a ring"))?;
            }
        }
        // What the guest made available meanwhile it may have said to somebody who listens no more, and the other way round.
        for config in self.rings.iter().take(2 * usize::from(pairs)).flatten() {
            nudge(config.kick.as_deref());
            nudge(config.call.as_deref());
        }
        Ok(())
    }

    /// Stops the device, and writes down where its rings stand.
    fn halt(&mut self) {
        let had = 2 * usize::from(std::mem::take(&mut self.running));
        if had == 0 {
            return;
        }
        let suspended = self.kernel.suspends() && self.kernel.suspend().is_ok();
        let said: Vec<Option<u32>> =
            (0..had).map(|index| suspended.then(|| self.kernel.base(index).ok()).flatten()).collect();
        self.reset();
        for (index, said) in said.into_iter().enumerate() {
            let Some(config) = &mut self.rings[index] else { continue };
            let at = match (said, config.features.packed) {
                // The upper half is how far it has used what it took.
                (Some(base), true) => Some((base >> 16) as u16),
                // What it took and did not use is taken again, so that no buffer of the guest's is lost.
                _ => self.map.as_deref().filter(|_| !config.features.packed).and_then(|map| used_index(map, config)),
            };
            if at.is_none() && config.features.packed {
                config.resume = Some(RingConfig::NOWHERE);
                tracing::warn!(
                    ring = index,
                    "the device does not say where the ring stands: only a new start of the guest's driver helps"
                );
            }
            config.resume = at.or(config.resume);
        }
    }

    /// The device forgets all but, where it can, the guest's memory.
    fn reset(&mut self) {
        self.running = 0;
        for index in 0..self.rings.len() {
            // It goes to the next one who listens.
            let _ = self.kernel.set_kick(index, None);
            let _ = self.kernel.set_call(index, None);
        }
        let reset = self.kernel.set_status(0);
        if let Err(error) = &reset {
            tracing::error!(%error, "a vDPA device cannot be reset");
        }
        self.stuck = reset.is_err();
        self.fresh = true;
        if !self.kernel.keeps_mappings() {
            self.forget_mappings();
        }
    }

    fn forget_mappings(&mut self) {
        self.mappings.clear(&*self.kernel);
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        self.reset();
        self.forget_mappings();
    }
}

fn step(step: &'static str) -> impl FnOnce(io::Error) -> Refusal {
    move |error| Refusal::Step { step, error: error.to_string() }
}

/// The used index of a split ring in guest memory (VIRTIO 1.2 section 2.7.8).
pub(super) fn used_index(map: &GuestMap, config: &RingConfig) -> Option<u16> {
    index_at(map, config.used.0.checked_add(2)?)
}

/// Its available index (2.7.6).
pub(super) fn available_index(map: &GuestMap, config: &RingConfig) -> Option<u16> {
    index_at(map, config.avail.0.checked_add(2)?)
}

fn index_at(map: &GuestMap, at: u64) -> Option<u16> {
    with_word(map, at, |word| u16::from_le(word.load(Ordering::Acquire)))
}

/// The guest's driver signals what it makes available: a relay that had the ring before may have told it not to, and not every device says otherwise (the kernel's vringh
/// does not). VIRTIO 1.2 sections 2.7.8 (flags of the used ring) and 2.8.10 (flags of the device event suppression structure).
fn ask_for_kicks(map: &GuestMap, config: &RingConfig) {
    let flags = if config.features.packed { config.used.0.checked_add(2) } else { Some(config.used.0) };
    flags.and_then(|at| with_word(map, at, |word| word.store(0, Ordering::Release)));
}

fn with_word<T>(map: &GuestMap, at: u64, with: impl FnOnce(&AtomicU16) -> T) -> Option<T> {
    let span = map.translate(&mut RegionCache::default(), at, 2).filter(|span| span.len == 2)?;
    if !span.start.addr().get().is_multiple_of(2) {
        return None;
    }
    // SAFETY: two mapped bytes that are aligned (just looked at: a hostile front-end's regions begin anywhere); the guest may read and write them at any
    // time, so that they are an atomic.
    Some(with(unsafe { AtomicU16::from_ptr(span.start.as_ptr().cast()) }))
}

/// Signals an eventfd that the front-end made; one that is full is as good as signalled, and none is waited for: it is made non-blocking right before, because
/// the front-end shares that flag and may have taken it back, and one that does so in between is not waited for long.
pub(super) fn nudge(fd: Option<&OwnedFd>) {
    let Some(fd) = fd else { return };
    if let Err(error) = interruptibly(|| write_one(fd)) {
        tracing::warn!(%error, "nobody could end a write that waits, so that nothing was signalled");
    }
}

fn write_one(fd: &OwnedFd) {
    let flags = fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    if flags.and_then(|flags| fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))).is_err() {
        return;
    }
    let mut ready = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one structure, which lives during the call.
    if unsafe { libc::poll(&raw mut ready, 1, 0) } == 1 && ready.revents & libc::POLLOUT != 0 {
        let one = 1u64;
        // SAFETY: an open descriptor, and eight readable bytes.
        unsafe { libc::write(fd.as_raw_fd(), (&raw const one).cast(), size_of_val(&one)) };
    }
}
