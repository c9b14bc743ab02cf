//! What moves a port's packets: relays on workers with a device of DPDK's, or a vDPA device that has the guest's rings. Which of the two may change
//! while the guest runs: rings stop here and go on there, from where they stood.
//!
//! A vDPA device is opened once: it goes from the guest's rings to the relay's, which are made ready meanwhile, and back (`crate::vdpa::Driver`).
//!
//! Whoever changes something holds a lock of this port for as long as the device takes: the session, control's `set`, and [`Backing::attend`]. Whoever only looks
//! (control, the balancer, the monitor) gets what was so last, and never waits for that.

mod seen;
mod switch;
mod taking;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use ringspan_protocol::{DeviceSpec, Failure, FailureKind, LaneEventKind, Mode, ModeStatus, PortSpec};

use super::relaying::{Make, Relays, Started};
use crate::memory::GuestMap;
use crate::ring::{RingConfig, RingLog};
use crate::vdpa::{Handover, Refusal};
use seen::{Held, Seen, WaySeen};
use taking::{fits, lasts, never, offer, refused, take_over};

/// A device was stopped and does not say how far it was.
const LOST: &str = "the device does not say where a ring stands";

/// What moves a port's packets.
pub(super) struct Backing {
    maker: Box<dyn Make>,
    /// Where a vDPA device has its node.
    node: Option<PathBuf>,
    now: Mutex<Now>,
    /// Never held while a device or a worker is asked something.
    seen: Mutex<Seen>,
}

/// What a look at a port's device says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// The link is up.
    pub up: bool,
    /// The device is gone, which is told by who looks. That a vDPA device is gone its port tells, each time, however soon it is back.
    pub gone: bool,
    /// The port is to let go of its device, or can take it again.
    pub due: bool,
}

struct Now {
    spec: PortSpec,
    way: Way,
    /// Why a vDPA device does not have the rings although it might.
    reason: Option<String>,
    /// It may take them when the guest's driver starts anew.
    retry: bool,
    /// What it refused is this guest's rings or memory: another guest's it may take.
    guest_refused: bool,
    /// With these features, and a ring of this size, it need not be asked again.
    refused: Option<(u64, u16)>,
    /// The device went away, and nobody has it yet.
    lost: bool,
    /// When it is looked for again, and how long after that.
    again: (Instant, Duration),
    /// Feature bits that a front-end may be offered.
    allowed: u64,
    /// ... while the device may get the rings; all before that was known.
    offer: u64,
    features: u64,
    map: Option<Arc<GuestMap>>,
    /// The rings that the session has started.
    rings: BTreeMap<usize, RingConfig>,
    /// What happened and was not told yet.
    events: Vec<LaneEventKind>,
    closed: bool,
}

/// What a change that cannot be leaves as it was.
struct Kept {
    reason: Option<String>,
    retry: bool,
    guest_refused: bool,
    refused: Option<(u64, u16)>,
    /// A port that is down for its guest's sake has no device that went away: none is to be waited for.
    lost: bool,
    again: (Instant, Duration),
    allowed: u64,
}

impl Kept {
    fn of(now: &Now) -> Self {
        let Now { retry, guest_refused, refused, lost, again, allowed, .. } = *now;
        Self { reason: now.reason.clone(), retry, guest_refused, refused, lost, again, allowed }
    }

    fn restore(self, now: &mut Now) {
        let Self { reason, retry, guest_refused, refused, lost, again, allowed } = self;
        (now.reason, now.retry, now.guest_refused, now.refused) = (reason, retry, guest_refused, refused);
        (now.lost, now.again, now.allowed) = (lost, again, allowed);
    }
}

enum Way {
    Relay(Box<dyn Relays>),
    Vdpa(Box<Handover>),
    Down,
}

/// How long after a device was back and could not be taken it is tried again, first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

impl Backing {
    /// Opens what a port is bridged to.
    ///
    /// # Errors
    /// Why not; then nothing is open.
    pub fn open(maker: Box<dyn Make>, spec: &PortSpec) -> Result<Self, Failure> {
        let mut now = Now {
            spec: spec.clone(),
            way: Way::Down,
            reason: None,
            retry: false,
            guest_refused: false,
            refused: None,
            lost: false,
            again: (Instant::now(), AGAIN.0),
            allowed: u64::MAX,
            offer: u64::MAX,
            features: 0,
            map: None,
            rings: BTreeMap::new(),
            events: Vec::new(),
            closed: false,
        };
        if let DeviceSpec::VhostVdpa { path } = &spec.device {
            let handover = take_over(&*maker, path, spec)?;
            if spec.mode == Mode::Relay {
                now.begin_relay(&*maker, None, Some(handover))?;
            } else {
                (now.allowed, now.offer) = (offer(&handover), offer(&handover));
                match fits(&handover, spec) {
                    Ok(()) => now.way = Way::Vdpa(Box::new(handover)),
                    Err(reason) if spec.mode == Mode::Vdpa => return Err(refused(&reason)),
                    Err(reason) => {
                        now.fall_back_to_relay(reason);
                        now.begin_relay(&*maker, None, Some(handover))?;
                    }
                }
            }
        } else {
            now.begin_relay(&*maker, None, None)?;
        }
        let node = match &spec.device {
            DeviceSpec::VhostVdpa { path } => Some(path.clone()),
            _ => None,
        };
        let seen = Mutex::new(now.seen());
        Ok(Self { maker, node, now: Mutex::new(now), seen })
    }

    /// What the guest negotiated.
    pub fn negotiated(&self, features: u64) {
        let mut now = self.lock();
        now.features = features;
        if let Way::Vdpa(handover) = &mut now.way {
            handover.negotiated(features);
        }
    }

    /// Guest memory is another.
    pub fn memory(&self, map: Arc<GuestMap>) {
        // Unmapping a large guest takes long: after the lock is free again.
        let _old;
        let mut now = self.lock();
        if map.regions().is_empty() && std::mem::take(&mut now.guest_refused) {
            now.retry = now.spec.mode != Mode::Relay;
            now.refused = None;
        }
        _old = now.map.replace(Arc::clone(&map));
        let refusal = match &mut now.way {
            Way::Relay(relay) => return relay.remap(map),
            Way::Vdpa(handover) => handover.memory(map).err(),
            Way::Down => None,
        };
        if let Some(refusal) = refusal {
            self.refused(&mut now, &refusal);
        }
    }

    /// A ring starts.
    pub fn start(&self, index: usize, config: RingConfig) -> Started {
        let mut now = self.lock();
        if now.closed {
            // A session that has not noticed: no device is opened for it.
            return Started::Pairs(0);
        }
        // Who was stopped for want of a device, or of a place where its rings stand, has none that run.
        let known = now.refused == Some((now.features, config.size));
        let idle = matches!(now.way, Way::Down) && !now.lost && !known;
        if now.rings.is_empty() && (std::mem::take(&mut now.retry) || idle) {
            let to = now.target();
            self.switch(&mut now, to);
        }
        let size = config.size;
        now.rings.insert(index, config.clone());
        let outcome = match &mut now.way {
            Way::Relay(_) => return now.relay_start(index, config),
            Way::Vdpa(handover) => {
                self.maker.forget(index);
                handover.start(index, config)
            }
            Way::Down => return Started::Pairs(0),
        };
        match outcome {
            Ok(pairs) => Started::Pairs(pairs),
            Err(refusal) => {
                if lasts(&refusal) {
                    now.refused = Some((now.features, size));
                }
                Started::Pairs(self.refused(&mut now, &refusal))
            }
        }
    }

    /// A ring stops. Where it stands, and how many pairs run.
    pub fn stop(&self, index: usize) -> Option<(u16, u16)> {
        let mut now = self.lock();
        let logged = now.logged();
        let config = now.rings.remove(&index)?;
        if logged {
            now.drop_beside();
        }
        match &mut now.way {
            Way::Relay(relay) => relay.stop(index),
            Way::Vdpa(handover) => {
                let at = handover.stop(index);
                let pairs = match handover.settle() {
                    Ok(pairs) => pairs,
                    Err(refusal) => self.refused(&mut now, &refusal),
                };
                at.map(|at| (at, pairs))
            }
            // It stands where the device left it.
            Way::Down => Some((config.position(), 0)),
        }
    }

    /// The guest is interrupted by another descriptor.
    pub fn call(&self, index: usize, call: Option<Arc<OwnedFd>>) {
        let mut now = self.lock();
        if let Some(config) = now.rings.get_mut(&index) {
            config.call.clone_from(&call);
        }
        match &mut now.way {
            Way::Relay(relay) => relay.call(index, call),
            Way::Vdpa(handover) => handover.call(index, call),
            Way::Down => {}
        }
    }

    /// What a ring's owner writes is to be noted, or no longer. A vDPA device cannot, so that a relay has the rings meanwhile.
    pub fn log(&self, index: usize, log: Option<RingLog>) {
        let mut now = self.lock();
        let logged = now.logged();
        let Some(config) = now.rings.get_mut(&index) else { return };
        config.log.clone_from(&log);
        let wanted = log.is_some();
        match &mut now.way {
            Way::Relay(relay) => relay.log(index, log),
            Way::Vdpa(_) if wanted => drop(self.refused(&mut now, &Refusal::Logging)),
            Way::Vdpa(_) | Way::Down => {}
        }
        if logged && !now.logged() {
            if std::mem::take(&mut now.retry) {
                self.switch(&mut now, Mode::Vdpa);
            } else {
                now.drop_beside();
            }
        }
    }

    /// Changes what can be changed while packets flow. On failure everything is as before.
    pub fn set(&self, wanted: &PortSpec) -> Result<(), Failure> {
        let mut now = self.lock();
        if now.closed {
            return Err(Failure::new(FailureKind::NotFound, "it is being removed"));
        }
        if let Way::Vdpa(_) = now.way
            && (wanted.mac, wanted.mtu, wanted.max_rate) != (now.spec.mac, now.spec.mtu, now.spec.max_rate)
        {
            let what = "mac, mtu and max_rate are the device's own in vDPA mode: give them to it when it is made, or choose mode relay";
            return Err(Failure::new(FailureKind::Unsupported, what));
        }
        if let Way::Relay(relay) = &now.way {
            relay.set(wanted, &now.spec)?;
        }
        let before = std::mem::replace(&mut now.spec, wanted.clone());
        if wanted.mode == before.mode || self.node.is_none() {
            return Ok(());
        }
        self.set_mode(&mut now, &before).inspect_err(|_| {
            // What a relay was told besides.
            if let Way::Relay(relay) = &now.way
                && let Err(error) = relay.set(&before, wanted)
            {
                tracing::warn!(port = %before.name, %error, "a refused change could not be taken back");
            }
        })
    }

    /// Does what the mode in the spec says. On failure the port is as before, its spec with it; where that cannot be, the error says so.
    fn set_mode(&self, now: &mut Now, before: &PortSpec) -> Result<(), Failure> {
        let (mode, to, was) = (now.spec.mode, now.target(), now.mode());
        let moves = match (&now.way, mode) {
            // Nobody has the device: whoever is to have it gets it when it is back, or when the guest's driver starts.
            (Way::Down, _) => !now.lost && !now.unknown(),
            (Way::Vdpa(_), mode) => mode == Mode::Relay,
            (Way::Relay(_), Mode::Relay) => false,
            (Way::Relay(_), Mode::Auto | Mode::Vdpa) => {
                if let Some(why) = never(&now.spec) {
                    if mode == Mode::Vdpa {
                        now.spec = before.clone();
                        return Err(refused(&why));
                    }
                    now.reason = Some(why);
                    false
                } else {
                    // As long as the guest is being migrated the device cannot have them.
                    now.retry |= now.logged();
                    !now.logged()
                }
            }
        };
        let kept = Kept::of(now);
        if mode == Mode::Relay {
            (now.retry, now.allowed) = (false, u64::MAX);
            if let Way::Relay(_) = now.way {
                now.reason = None;
            }
        } else {
            now.allowed = now.offer;
        }
        if !moves {
            return Ok(());
        }
        // Where the device has the rings, it keeps them unless there is a relay.
        let ready = match self.prepare(now, to).transpose() {
            Ok(ready) => ready,
            Err(failure) => {
                kept.restore(now);
                now.spec = before.clone();
                return Err(failure);
            }
        };
        if let (Mode::Vdpa, Way::Relay(relay), Some(map)) = (to, &now.way, &now.map) {
            // To pin it takes long: the relay goes on meanwhile.
            relay.beside(Some(Arc::clone(map)));
        }
        (now.retry, now.guest_refused, now.refused) = (false, false, None);
        let told = now.events.len();
        self.switch_to(now, to, ready.map(Ok), Instant::now(), was == ModeStatus::Relay);
        let done = match mode {
            Mode::Auto => now.mode() != ModeStatus::Down,
            Mode::Vdpa => now.mode() == ModeStatus::Vdpa,
            Mode::Relay => now.mode() == ModeStatus::Relay,
        };
        if done {
            return Ok(());
        }
        let mut why = now.reason.clone().unwrap_or_else(|| "nobody took the device".into());
        now.spec = before.clone();
        now.reason.clone_from(&kept.reason);
        match was {
            _ if now.mode() == was => {}
            ModeStatus::Relay => self.switch(now, Mode::Relay),
            ModeStatus::Vdpa => self.switch(now, Mode::Vdpa),
            ModeStatus::Down => {}
        }
        if now.mode() == was {
            // Who asked is told why, and for all others it is as before.
            now.events.truncate(told);
            kept.restore(now);
        } else {
            let (mode, then) = (now.mode(), now.reason.as_deref().unwrap_or("no more is known"));
            why = format!("{why}; and it could not be put back, the port's mode is {mode:?} now: {then}");
        }
        Err(if mode == Mode::Vdpa { refused(&why) } else { Failure::new(FailureKind::Unsupported, why) })
    }

    /// The device refuses the rings: somebody else gets them, if there may be somebody. How many pairs run then.
    fn refused(&self, now: &mut Now, refusal: &Refusal) -> u16 {
        now.retry = refusal.passes();
        now.guest_refused = !matches!(&now.way, Way::Vdpa(handover) if handover.gone());
        self.give_to_relay(now, refusal.to_string())
    }

    fn give_to_relay(&self, now: &mut Now, reason: String) -> u16 {
        if !now.may_relay() {
            tracing::warn!(port = %now.spec.name, "{reason}");
            now.take_back(&*self.maker).close();
            now.reason = Some(reason.clone());
            now.look_again();
            now.events.push(LaneEventKind::ModeChanged { mode: ModeStatus::Down, reason: Some(reason), pause_us: 0 });
            return 0;
        }
        now.fall_back_to_relay(reason);
        self.switch(now, Mode::Relay);
        now.pairs()
    }

    /// Looks at the device; `None` while somebody is at it.
    pub fn look(&self) -> Option<Look> {
        let Some(node) = &self.node else {
            let WaySeen::Relay(_, device) = self.seen().way.clone() else { return None };
            return device.look().map(|(up, gone)| Look { up, gone, due: false });
        };
        let now = match self.now.try_lock() {
            Ok(now) => Held { now, seen: &self.seen },
            Err(TryLockError::Poisoned(_) | TryLockError::WouldBlock) => return None,
        };
        let up = match &now.way {
            Way::Relay(_) if node.exists() && now.failed().is_some() => {
                return Some(Look { up: false, gone: false, due: true });
            }
            Way::Relay(relay) if node.exists() => match relay.device().look()? {
                (_, true) => return Some(Look { up: false, gone: false, due: true }),
                (up, false) => up,
            },
            Way::Vdpa(handover) if !handover.gone() => handover.link().0,
            Way::Relay(_) | Way::Vdpa(_) => return Some(Look { up: false, gone: false, due: true }),
            Way::Down if !now.lost && !node.exists() => return Some(Look { up: false, gone: false, due: true }),
            Way::Down => false,
        };
        Some(Look { up, gone: false, due: now.may_return(node) })
    }

    /// Lets go of a vDPA device that is gone, because the kernel waits for that, and takes one again that is back; makes a relay anew that it refuses. As long as a device takes.
    pub fn attend(&self) {
        let Some(node) = &self.node else { return };
        let mut now = self.lock();
        let gone = match &now.way {
            Way::Relay(relay) => !node.exists() || relay.device().look().is_some_and(|(_, gone)| gone),
            Way::Vdpa(handover) => handover.gone(),
            Way::Down => !now.lost && !node.exists(),
        };
        if gone {
            now.take_back(&*self.maker).close();
            now.reason = Some(format!("device {} is gone: it is taken again when it is back", now.spec.device));
            now.lose();
            let reason = now.reason.clone();
            now.events.push(LaneEventKind::ModeChanged { mode: ModeStatus::Down, reason, pause_us: 0 });
        } else if let Some(refusal) = now.failed() {
            self.renew(&mut now, &refusal);
        } else if now.may_return(node) {
            let (to, told) = (now.target(), now.events.len());
            now.guest_refused = false;
            self.switch(&mut now, to);
            // Others may have it open still, or it may not be ours to open yet: then it is as gone as before.
            let for_its_sake = now.unknown() || (now.guest_refused && !now.may_relay());
            let down = matches!(now.way, Way::Down);
            now.lost = down && !for_its_sake;
            if now.lost {
                let (_, wait) = now.again;
                now.again = (Instant::now() + wait, (wait * 2).min(AGAIN.1));
            } else if down {
                now.again = (Instant::now(), AGAIN.0);
                now.events.insert(told, LaneEventKind::DeviceReturned);
            }
        }
    }

    /// The port goes: nothing is started any more. Rings are stopped by the session before.
    pub fn close(&self) {
        let mut now = self.lock();
        now.closed = true;
        now.take_back(&*self.maker).close();
    }

    fn lock(&self) -> Held<'_> {
        // A panic in here ends the lane.
        Held { now: self.now.lock().unwrap_or_else(PoisonError::into_inner), seen: &self.seen }
    }
}

impl Now {
    fn mode(&self) -> ModeStatus {
        match self.way {
            Way::Relay(_) => ModeStatus::Relay,
            Way::Vdpa(_) => ModeStatus::Vdpa,
            Way::Down => ModeStatus::Down,
        }
    }

    /// Nobody has the device: it is looked for again, unless it is for this guest's sake.
    fn look_again(&mut self) {
        let for_its_sake = self.unknown() || (self.guest_refused && !self.may_relay());
        if !for_its_sake && !self.lost {
            self.again = (Instant::now() + AGAIN.0, AGAIN.0);
            self.lose();
        }
    }

    /// Nobody has the device any more, and the port looks for it.
    fn lose(&mut self) {
        self.lost = true;
        self.events.push(LaneEventKind::DeviceRemoved);
    }

    /// Somebody has it.
    fn found(&mut self) {
        self.again = (Instant::now(), AGAIN.0);
        if std::mem::take(&mut self.lost) {
            self.events.push(LaneEventKind::DeviceReturned);
        }
    }

    /// Why the device moves nothing although relays have it.
    fn failed(&self) -> Option<String> {
        match &self.way {
            Way::Relay(relay) => relay.device().failed(),
            Way::Vdpa(_) | Way::Down => None,
        }
    }

    /// Whether a device that was gone is back.
    fn may_return(&self, node: &Path) -> bool {
        matches!(self.way, Way::Down) && self.lost && !self.closed && Instant::now() >= self.again.0 && node.exists()
    }

    /// Nobody knows where one of the rings stands, so that nobody may have them before the guest's driver starts anew.
    fn unknown(&self) -> bool {
        self.rings.values().any(RingConfig::is_lost)
    }

    /// Whether a relay may have the rings.
    fn may_relay(&self) -> bool {
        self.spec.mode != Mode::Vdpa || self.logged()
    }

    /// Whether what is written to the rings is noted. A relay has them for as long, whatever the mode.
    fn logged(&self) -> bool {
        self.rings.values().any(|config| config.log.is_some())
    }

    /// Who is to have the rings first.
    fn target(&self) -> Mode {
        if self.spec.mode == Mode::Relay { Mode::Relay } else { Mode::Vdpa }
    }

    fn fall_back_to_relay(&mut self, reason: String) {
        tracing::warn!(port = %self.spec.name, "relayed: {reason}");
        self.reason = Some(reason);
    }

    /// Pairs of which both rings run.
    fn pairs(&self) -> u16 {
        match &self.way {
            Way::Relay(_) => {
                self.rings.keys().filter(|index| *index % 2 == 0 && self.rings.contains_key(&(*index + 1))).count()
                    as u16
            }
            Way::Vdpa(handover) => handover.running(),
            Way::Down => 0,
        }
    }
}
