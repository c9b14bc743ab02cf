//! A connection's rings: every word the front-end says of them, and what follows for the workers.
//!
//! The crate keeps rings of its own behind `VringT`. [`Vring`] is ours: it passes each call on to the crate's and tells
//! [`Rings`], which knows when a ring runs. A ring **runs** while all of this holds:
//!
//! - features were negotiated, so that its header and notifications are known;
//! - it is not to be logged (LOG_ALL, and VHOST_VRING_F_LOG with its addresses), or there is a log: a front-end that starts rings while
//!   it migrates, as QEMU does when the guest is reset meanwhile, gives the log last. The log that it gave before is over when its
//!   last ring stops (QEMU frees it there): then all rings wait for the next one;
//! - its addresses are known;
//! - it is **started**: by SET_VRING_KICK, with a descriptor or with the word that it is polled, until GET_VRING_BASE;
//! - it is **enabled**: by SET_VRING_ENABLE, or by SET_FEATURES without PROTOCOL_FEATURES.
//!
//! A disabled ring is not touched at all, as DPDK's vhost library does it (the specification would have a disabled
//! transmit ring drained and its packets dropped; a guest that disables a queue does not use it).
//!
//! Whatever changes a ring that runs stops it first and starts it again: the index goes on where it was. Only another
//! call descriptor is taken as it runs.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLockReadGuard, RwLockWriteGuard};

use vhost_user_backend::{VringRwLock, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error as QueueError;
use vm_memory::{GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};

use super::RingSink;
use super::features::ring_features;
use super::message::MAX_RINGS;
use crate::memory::DirtyLog;
use crate::ring::{RingConfig, RingLog};

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// One ring, as far as the front-end has described it.
#[derive(Default)]
struct Ring {
    size: u16,
    addresses: Option<[u64; 3]>,
    /// As SET_VRING_BASE said it.
    base: u32,
    /// Where it goes on, once it has run: see [`RingConfig::resume`].
    resume: Option<u16>,
    /// The front-end has named `base` since the ring stood at `resume`.
    named: bool,
    kick: Option<Arc<OwnedFd>>,
    call: Option<Arc<OwnedFd>>,
    started: bool,
    enabled: bool,
    running: bool,
    /// GET_VRING_BASE is under way: the descriptors that the crate takes away now mean nothing by themselves.
    stopping: bool,
    /// Where the used ring is for the log, if that was said.
    log: Option<u64>,
}

struct State {
    rings: Vec<Ring>,
    features: Option<u64>,
    /// LOG_ALL is on.
    logging: bool,
    /// The front-end's log of dirty pages.
    log: Option<Arc<DirtyLog>>,
    /// The log went when the last ring stopped, and there is no other yet.
    log_over: bool,
    /// The sink was told that it is in use.
    said: bool,
    fault: Option<String>,
}

/// All rings of a connection. Calls into the sink are made one at a time.
pub struct Rings {
    state: Mutex<State>,
    sink: Arc<dyn RingSink>,
}

impl State {
    /// Where a ring notes what it writes.
    fn log_of(&self, index: usize) -> Option<RingLog> {
        let log = self.log.as_ref().filter(|_| self.logging)?;
        let ring = &self.rings[index];
        // Without VHOST_VRING_F_LOG the ring's own place is as good: there is no IOMMU in between.
        let used = ring.log.or(ring.addresses.map(|[_, _, used]| used))?;
        Some(RingLog { log: Arc::clone(log), used })
    }
}

impl Rings {
    /// Rings of which nothing is known.
    pub fn new(sink: Arc<dyn RingSink>) -> Self {
        let rings = (0..MAX_RINGS).map(|_| Ring::default()).collect();
        let state =
            State { rings, features: None, logging: false, log: None, log_over: false, said: false, fault: None };
        Self { state: Mutex::new(state), sink }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a ring: stops it when it runs and the change matters, and starts it when it may run afterwards.
    fn change(&self, index: usize, differs: impl FnOnce(&Ring) -> bool, change: impl FnOnce(&mut Ring)) {
        let mut state = self.lock();
        if state.rings[index].running && differs(&state.rings[index]) {
            self.halt(&mut state, index);
        }
        change(&mut state.rings[index]);
        self.settle(&mut state, index);
    }

    /// Stops a ring that runs.
    fn halt(&self, state: &mut State, index: usize) {
        let ring = &mut state.rings[index];
        if std::mem::take(&mut ring.running)
            && let Some(next) = self.sink.stop(index)
        {
            ring.resume = Some(next);
            ring.named = false;
        }
    }

    /// Makes a ring run or not, as its state says.
    fn settle(&self, state: &mut State, index: usize) {
        let features = state.features;
        let log = state.log_of(index);
        let ring = &mut state.rings[index];
        let silent = state.logging && state.log.is_none() && (ring.log.is_some() || state.log_over);
        let may_run = ring.started && ring.enabled && ring.size > 0 && !silent;
        match (ring.addresses, features, may_run) {
            (Some([desc, avail, used]), Some(features), true) => {
                if std::mem::replace(&mut ring.running, true) {
                    return;
                }
                let config = RingConfig {
                    size: ring.size,
                    desc: GuestAddress(desc),
                    avail: GuestAddress(avail),
                    used: GuestAddress(used),
                    base: ring.base,
                    resume: ring.resume,
                    record: None,
                    memory: 0,
                    features: ring_features(features),
                    kick: ring.kick.clone(),
                    call: ring.call.clone(),
                    log,
                };
                self.sink.start(index, config);
            }
            _ => self.halt(state, index),
        }
    }

    /// SET_FEATURES. Rings that run with other features are started again.
    pub fn negotiated(&self, features: u64) {
        let mut state = self.lock();
        // QEMU says it again for each queue pair that it brings up.
        if state.features == Some(features) {
            return;
        }
        for index in 0..state.rings.len() {
            self.halt(&mut state, index);
        }
        state.features = Some(features);
        self.sink.negotiated(features);
        for index in 0..state.rings.len() {
            self.settle(&mut state, index);
        }
    }

    /// LOG_ALL in SET_FEATURES. When it goes, the log goes, too: a front-end makes another one for its next migration.
    pub fn set_logging(&self, logging: bool) {
        let mut state = self.lock();
        state.logging = logging;
        state.log_over &= logging;
        let _gone = if logging { None } else { state.log.take() };
        self.settle_log(&mut state);
    }

    /// SET_LOG_BASE. When this returns, nothing is noted in the log before any more.
    pub fn set_log(&self, log: Arc<DirtyLog>) {
        let mut state = self.lock();
        let _gone = state.log.replace(log);
        state.log_over = false;
        self.settle_log(&mut state);
    }

    /// The fourth address of SET_VRING_ADDR.
    pub fn set_log_address(&self, index: usize, log: Option<u64>) {
        let mut state = self.lock();
        let before = state.log_of(index);
        state.rings[index].log = log;
        let now = state.log_of(index);
        if state.rings[index].running && before != now {
            self.sink.log(index, now);
        }
    }

    /// GET_VRING_BASE. With its last ring a front-end is done with its log, too: what is marked there later, nobody sees.
    fn end(&self, index: usize) {
        let mut state = self.lock();
        let ring = &mut state.rings[index];
        ring.stopping = true;
        let was_started = std::mem::take(&mut ring.started);
        self.settle(&mut state, index);
        if was_started && state.logging && !state.rings.iter().any(|ring| ring.started) {
            state.log_over |= state.log.take().is_some();
        }
    }

    /// Whether what is written is noted, and up to which guest-physical address that is possible if so.
    pub fn log(&self) -> Option<Arc<DirtyLog>> {
        let state = self.lock();
        state.log.clone().filter(|_| state.logging)
    }

    /// The front-end's log, in use or not yet.
    pub fn given_log(&self) -> Option<Arc<DirtyLog>> {
        self.lock().log.clone()
    }

    /// Refuses a log that ends before the place that is in it for a used ring.
    pub fn check_log(&self, log: &DirtyLog) -> Result<(), String> {
        let state = self.lock();
        let packed = state.features.is_some_and(|features| ring_features(features).packed);
        for (index, ring) in state.rings.iter().enumerate().filter(|(_, ring)| ring.started) {
            // A packed ring has its event suppression there; a split one its flags, index, elements, and available event.
            let bytes = if packed { 4 } else { 6 + 8 * u64::from(ring.size) };
            if let Some(used) = ring.log.filter(|used| !log.covers(used.saturating_add(bytes))) {
                return Err(format!("the log ends before the used ring of ring {index}, {bytes} bytes at {used:#x}"));
            }
        }
        Ok(())
    }

    /// Whether SET_FEATURES had LOG_ALL.
    pub fn is_logging(&self) -> bool {
        self.lock().logging
    }

    /// Tells everybody where to note what is written.
    fn settle_log(&self, state: &mut State) {
        let log = state.log.clone().filter(|_| state.logging);
        if let Some(log) = &log {
            state.said = true;
            self.sink.logging(Some(log));
        }
        let known = state.said;
        for index in 0..state.rings.len() {
            if state.rings[index].running && known {
                self.sink.log(index, state.log_of(index));
            }
            self.settle(state, index);
        }
        if log.is_none() && std::mem::take(&mut state.said) {
            self.sink.logging(None);
        }
    }

    /// The whole of GET_VRING_BASE's answer is with the front-end.
    pub fn told(&self, index: usize) {
        // A ring that was never described has no record.
        if self.lock().rings[index].addresses.is_some() {
            self.sink.told(index);
        }
    }

    /// SET_PROTOCOL_FEATURES: whether LOG_SHMFD is among them.
    pub fn can_log(&self, taken: bool) {
        self.sink.can_log(taken);
    }

    /// SEND_RARP. A guest of which no ring runs is not there yet, and nothing is said for it.
    pub fn announce(&self, mac: [u8; 6]) -> Result<(), String> {
        let running = self.lock().rings.iter().any(|ring| ring.running);
        if running { self.sink.announce(mac) } else { Ok(()) }
    }

    /// SET_VRING_ENABLE.
    pub fn enable(&self, index: usize, enabled: bool) {
        self.change(index, |_| false, |ring| ring.enabled = enabled);
    }

    /// SET_VRING_BASE: see [`RingConfig::base`]. The crate has only the lower half of it.
    pub fn set_base(&self, index: usize, base: u32) -> Result<(), String> {
        if base > 0xffff && self.lock().features.is_some_and(|features| !ring_features(features).packed) {
            return Err(format!(
                "ring {index}: base {base:#x} has two halves, a split ring's is its available index: negotiate RING_PACKED or \
                 send the available index alone"
            ));
        }
        self.change(
            index,
            |_| true,
            |ring| {
                ring.base = base;
                ring.named = true;
                ring.resume = ring.resume.map(|_| base as u16);
            },
        );
        Ok(())
    }

    /// Where a ring stands that was stopped, as GET_VRING_BASE says it. Nothing of ours is in flight, so that what is available and
    /// what is used of a packed ring that ran stand at the same place; one that did not run stands where the front-end said.
    pub fn base(&self, index: usize) -> u32 {
        let state = self.lock();
        let ring = &state.rings[index];
        let packed = state.features.is_some_and(|features| ring_features(features).packed);
        match (ring.resume.filter(|_| !ring.named), packed) {
            (None, true) => ring.base,
            (None, false) => ring.base & 0xffff,
            (Some(at), true) => u32::from(at) * 0x1_0001,
            (Some(at), false) => at.into(),
        }
    }

    /// RESET_OWNER and RESET_DEVICE: rings are stopped and disabled, and features have to be negotiated and kicks given
    /// again.
    pub fn reset(&self) {
        let mut state = self.lock();
        self.end_log(&mut state);
        for index in 0..state.rings.len() {
            self.halt(&mut state, index);
            state.rings[index].enabled = false;
            state.rings[index].started = false;
        }
        state.features = None;
        (state.log, state.logging, state.log_over) = (None, false, false);
    }

    /// All rings are about to stop, and not because the guest has left: whoever migrated it does so no longer.
    fn end_log(&self, state: &mut State) {
        if std::mem::take(&mut state.said) {
            self.sink.logging(None);
        }
    }

    /// The connection ends: rings are stopped and forgotten.
    pub fn close(&self) {
        let mut state = self.lock();
        self.end_log(&mut state);
        for index in 0..state.rings.len() {
            self.halt(&mut state, index);
            state.rings[index] = Ring::default();
        }
        state.features = None;
        (state.log, state.logging, state.log_over) = (None, false, false);
    }

    /// What went wrong in a call that the crate gives no way to refuse.
    pub fn take_fault(&self) -> Option<String> {
        self.lock().fault.take()
    }
}

thread_local! {
    /// The rings that the next [`Vring::new`] calls on this thread belong to, and the next index: the crate makes its
    /// rings on the thread that makes the daemon, in order, and tells them nothing.
    static MAKING: RefCell<Option<(Arc<Rings>, usize)>> = const { RefCell::new(None) };
}

/// Runs `make`, in which the crate makes its rings, so that they report to `rings`.
pub fn with_rings<T>(rings: &Arc<Rings>, make: impl FnOnce() -> T) -> T {
    MAKING.set(Some((rings.clone(), 0)));
    let made = make();
    MAKING.set(None);
    made
}

/// The crate's ring and ours, side by side.
#[derive(Clone)]
pub struct Vring {
    inner: VringRwLock<Memory>,
    rings: Arc<Rings>,
    index: usize,
}

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = RwLockReadGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = RwLockWriteGuard<'a, VringState<Memory>>;
}

impl VringT<Memory> for Vring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, QueueError> {
        let inner = VringRwLock::new(memory, max_queue_size)?;
        let (rings, index) = MAKING
            .with_borrow_mut(|making| {
                making.as_mut().map(|(rings, next)| {
                    *next += 1;
                    (rings.clone(), *next - 1)
                })
            })
            // Only `with_rings` makes daemons; a ring outside of it is a mistake in this file, and gets refused.
            .filter(|(_, index)| *index < MAX_RINGS)
            .ok_or(QueueError::QueueNotReady)?;
        Ok(Self { inner, rings, index })
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.inner.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.inner.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.inner.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.inner.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.inner.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.inner.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.inner.needs_notification()
    }

    /// Comes when SET_FEATURES lacks PROTOCOL_FEATURES; SET_VRING_ENABLE is served by the gate.
    fn set_enabled(&self, enabled: bool) {
        self.inner.set_enabled(enabled);
        self.rings.enable(self.index, enabled);
    }

    fn set_queue_info(&self, desc: u64, avail: u64, used: u64) -> Result<(), QueueError> {
        self.inner.set_queue_info(desc, avail, used)?;
        let addresses = Some([desc, avail, used]);
        self.rings.change(self.index, |ring| ring.addresses != addresses, |ring| ring.addresses = addresses);
        Ok(())
    }

    fn queue_next_avail(&self) -> u16 {
        self.rings.base(self.index) as u16
    }

    /// The gate has told [`Rings::set_base`] the whole of it.
    fn set_queue_next_avail(&self, base: u16) {
        self.inner.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, index: u16) {
        self.inner.set_queue_next_used(index);
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.inner.queue_used_idx()
    }

    fn set_queue_size(&self, size: u16) {
        self.inner.set_queue_size(size);
        self.rings.change(self.index, |ring| ring.size != size, |ring| ring.size = size);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.inner.set_queue_event_idx(enabled);
    }

    /// False is the beginning of GET_VRING_BASE, which ends with [`Self::set_call`]. True follows [`Self::set_kick`],
    /// which has said it all.
    fn set_queue_ready(&self, ready: bool) {
        self.inner.set_queue_ready(ready);
        if !ready {
            self.rings.end(self.index);
        }
    }

    fn set_kick(&self, file: Option<File>) {
        // The crate needs to see a descriptor to call the ring ready, and keeps it for itself.
        let kick = match file.as_ref().map(File::try_clone).transpose() {
            Ok(kick) => kick.map(|kick| Arc::new(OwnedFd::from(kick))),
            Err(error) => {
                let fault = format!("ring {}: the kick descriptor cannot be kept: {error}", self.index);
                self.rings.lock().fault = Some(fault);
                return;
            }
        };
        self.inner.set_kick(file);
        self.rings.change(
            self.index,
            |_| true,
            |ring| {
                // SET_VRING_KICK starts the ring, with a descriptor or without; what GET_VRING_BASE takes away does not.
                ring.started = !ring.stopping;
                ring.kick = kick;
            },
        );
    }

    fn read_kick(&self) -> io::Result<bool> {
        self.inner.read_kick()
    }

    fn set_call(&self, file: Option<File>) {
        let call = file.map(|file| Arc::new(OwnedFd::from(file)));
        let mut state = self.rings.lock();
        let ring = &mut state.rings[self.index];
        ring.stopping = false;
        ring.call = call.clone();
        if ring.running {
            self.rings.sink.call(self.index, call);
        }
    }

    fn set_err(&self, file: Option<File>) {
        self.inner.set_err(file);
    }
}
