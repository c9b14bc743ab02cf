//! Rings change hands: from a vDPA device to a relay on the same device, which is made ready before anything stops, and back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ringspan_protocol::{DeviceSpec, Failure, FailureKind, LaneEventKind, Mode, ModeStatus};

use super::super::relaying::{Make, Relays, Started};
use super::taking::{fits, offer, take_over};
use super::{Backing, LOST, Now, Way};
use crate::memory::GuestMap;
use crate::ring::RingConfig;
use crate::vdpa::{Handover, Refusal};

impl Backing {
    /// Makes relays ready for what the device has, which goes on meanwhile. `None` where there is nothing to go on.
    pub(super) fn prepare(&self, now: &Now, to: Mode) -> Option<Result<Box<dyn Relays>, Failure>> {
        let Way::Vdpa(handover) = &now.way else { return None };
        (to == Mode::Relay && now.may_relay() && !now.unknown())
            .then(|| self.maker.relays(&now.spec, Some(handover.facts())))
    }

    /// Rings change hands. The device's own words become the reason when it does not take them.
    pub(super) fn switch(&self, now: &mut Now, to: Mode) {
        let since = Instant::now();
        let ready = self.prepare(now, to);
        // Who refused has stopped.
        let since = if now.pairs() > 0 { Instant::now() } else { since };
        self.switch_to(now, to, ready, since, false);
    }

    /// The same with relays that are ready, or could not be made so. `back`: a relay that has the rings gets them again, whatever the mode, when the device does not
    /// take them.
    pub(super) fn switch_to(
        &self,
        now: &mut Now,
        to: Mode,
        ready: Option<Result<Box<dyn Relays>, Failure>>,
        since: Instant,
        back: bool,
    ) {
        let may_relay = |now: &Now| now.may_relay() || back;
        let start = Instant::now();
        let (ran, before) = (!now.rings.is_empty(), (now.mode(), now.reason.clone()));
        let Taken { mut device, relay, left } = now.take_back(&*self.maker);
        let taken = start.elapsed();
        let mut ready = relay.map(Ok).or(ready);
        let unknown = now.unknown();
        if unknown {
            now.reason = Some(format!("{LOST}: it goes on when the guest's driver starts anew"));
        } else if to == Mode::Vdpa {
            match self.hand_over(now, &mut device) {
                Ok(()) => now.reason = None,
                Err(reason) if !may_relay(now) => now.reason = Some(reason),
                Err(reason) => now.fall_back_to_relay(reason),
            }
        } else if now.spec.mode == Mode::Relay {
            now.reason = None;
        }
        if !now.unknown() && matches!(now.way, Way::Down) && may_relay(now) {
            let relay = match (&now.spec.device, &device) {
                // Nobody has it: it is opened for the relay.
                (DeviceSpec::VhostVdpa { path }, None) => take_over(&*self.maker, path, &now.spec).and_then(|opened| {
                    device = Some(opened);
                    ready.take().transpose()
                }),
                _ => ready.take().transpose(),
            };
            let begun = relay.and_then(|relay| now.begin_relay(&*self.maker, relay, device.take()));
            if let Err(failure) = begun {
                let why = format!("{}; and no relay: {failure}", now.reason.as_deref().unwrap_or("as asked for"));
                now.reason = Some(why);
            }
        }
        match now.way {
            Way::Down if self.node.is_some() => now.look_again(),
            Way::Down => {}
            Way::Relay(_) | Way::Vdpa(_) => now.found(),
        }
        let (mode, reason) = (now.mode(), now.reason.clone());
        let pause = if ran { since.elapsed() } else { Duration::ZERO };
        tracing::info!(port = %now.spec.name, ?mode, reason, pause_us = pause.as_micros(), taken_us = taken.as_micros(), left, "who moves the packets");
        // A port that stays down for the reason that was told has nothing to tell.
        if mode != before.0 || (reason.is_some() && (mode != ModeStatus::Down || reason != before.1)) {
            now.events.push(LaneEventKind::ModeChanged { mode, reason, pause_us: pause.as_micros() as u64 });
        }
        // Closing takes long, and nobody waits for it any more.
        if let Some(Ok(relay)) = ready {
            relay.close();
        }
        // Nor for this.
        now.drop_beside();
    }

    /// The device, which relays have, refused what they told it since: other relays get it, and it is opened anew.
    pub(super) fn renew(&self, now: &mut Now, refusal: &str) {
        let reason = format!("the relay is made anew: {refusal}");
        tracing::warn!(port = %now.spec.name, device = %now.spec.device, "{reason}");
        now.take_back(&*self.maker).close();
        now.events.push(LaneEventKind::ModeChanged { mode: ModeStatus::Down, reason: Some(reason), pause_us: 0 });
        let to = if now.may_relay() { Mode::Relay } else { now.target() };
        self.switch(now, to);
    }

    /// Gives the device to the rings that run, opening it when nobody has it. On failure it is as it came, or closed when it could not be opened.
    fn hand_over(&self, now: &mut Now, device: &mut Option<Handover>) -> Result<(), String> {
        let DeviceSpec::VhostVdpa { path } = &now.spec.device else { return Err("it is no vDPA device".into()) };
        let mut handover = match device.take() {
            Some(handover) => handover,
            None => take_over(&*self.maker, path, &now.spec).map_err(|failure| failure.message)?,
        };
        (now.allowed, now.offer) = (offer(&handover), offer(&handover));
        if let Err(reason) = fits(&handover, &now.spec) {
            *device = Some(handover);
            return Err(reason);
        }
        handover.negotiated(now.features);
        // Where a relay was in a packed ring is old from here on, for the next lane, too.
        now.rings.keys().for_each(|index| self.maker.forget(*index));
        let mut given = || {
            // Nothing of a relay's stays mapped where a guest's descriptors lead anywhere.
            let map = now.map.clone().unwrap_or_else(|| GuestMap::new(&Arc::default()));
            handover.memory(map)?;
            now.rings.iter().try_for_each(|(index, config)| handover.accept(*index, config.clone()))?;
            handover.settle()
        };
        match given() {
            Ok(_) => {
                now.way = Way::Vdpa(Box::new(handover));
                Ok(())
            }
            Err(refusal) => {
                // It may have had them for a moment.
                for (index, config) in &mut now.rings {
                    config.resume = handover.give_back(*index).or(config.resume);
                }
                now.retry = refusal.passes();
                now.guest_refused = !handover.gone();
                *device = usable(handover);
                Err(refusal.to_string())
            }
        }
    }
}

impl Now {
    /// Takes all rings from whoever has them, and notes where they stand.
    pub(super) fn take_back(&mut self, maker: &dyn Make) -> Taken {
        match std::mem::replace(&mut self.way, Way::Down) {
            Way::Relay(relay) => {
                let (to_guest, from_guest): (Vec<_>, Vec<_>) =
                    self.rings.iter_mut().partition(|(index, _)| index.is_multiple_of(2));
                let stop = |(index, config): (&usize, &mut RingConfig)| {
                    if let Some((at, _)) = relay.stop(*index) {
                        config.resume = Some(at);
                    }
                };
                from_guest.into_iter().for_each(stop);
                // What a vDPA device has received by now still goes to the guest.
                let (device, left) = relay.take().unzip();
                let device = device.and_then(usable);
                to_guest.into_iter().for_each(stop);
                let left = left.unwrap_or_default();
                if left > 0 {
                    maker.unsent(left);
                    tracing::warn!(port = %self.spec.name, left, "frames that a relay gave the device were not sent");
                }
                Taken { device, relay: Some(relay), left }
            }
            Way::Vdpa(mut handover) => {
                for (index, config) in &mut self.rings {
                    config.resume = handover.give_back(*index).or(config.resume);
                }
                Taken { device: usable(*handover), relay: None, left: 0 }
            }
            Way::Down => Taken { device: None, relay: None, left: 0 },
        }
    }

    /// Lets relays have the rings that run, and a vDPA device theirs: those that are ready, or new ones.
    ///
    /// # Errors
    /// Why there are none; then nothing is open.
    pub(super) fn begin_relay(
        &mut self,
        maker: &dyn Make,
        ready: Option<Box<dyn Relays>>,
        device: Option<Handover>,
    ) -> Result<(), Failure> {
        let mut relay = match ready {
            Some(relay) => relay,
            None => maker.relays(&self.spec, device.as_ref().map(Handover::facts))?,
        };
        if let Some(map) = &self.map {
            relay.remap(Arc::clone(map));
        }
        if let Some(device) = device {
            let mut lent = relay.lend(device, self.map.clone());
            if let Err((Refusal::Position { .. } | Refusal::Driver(_), device)) = lent {
                // It begins at the beginning only, and the relay's rings have run before; or they are gone.
                relay.close();
                relay = maker.relays(&self.spec, Some(device.facts()))?;
                if let Some(map) = &self.map {
                    relay.remap(Arc::clone(map));
                }
                lent = relay.lend(device, self.map.clone());
            }
            if let Err((refusal, _)) = lent {
                relay.close();
                return Err(Failure::new(FailureKind::Unsupported, refusal.to_string()));
            }
        }
        self.way = Way::Relay(relay);
        for (index, config) in &self.rings {
            if let Started::Broken(reason) = self.relay_start(*index, config.clone()) {
                self.reason = Some(format!("ring {index}: {reason}"));
            }
        }
        Ok(())
    }

    /// A relay's vDPA device gives up the guest's memory, unless the guest is being migrated: it may be given other pages at the same place (a balloon, free page
    /// reporting), of which the device would not know.
    pub(super) fn drop_beside(&self) {
        if let Way::Relay(relay) = &self.way
            && !self.logged()
        {
            relay.beside(None);
        }
    }

    pub(super) fn relay_start(&self, index: usize, config: RingConfig) -> Started {
        let Way::Relay(relay) = &self.way else { return Started::Pairs(0) };
        let Some(map) = self.map.clone().filter(|map| !map.regions().is_empty()) else {
            return Started::Broken("started before the front-end shared its memory".into());
        };
        relay.start(index, config, map)
    }
}

/// The device, unless it may still run: that one is closed, and its memory with it.
fn usable(device: Handover) -> Option<Handover> {
    (!device.stuck()).then_some(device)
}

/// What had the rings.
pub(super) struct Taken {
    /// A vDPA device, which is open and has no rings.
    device: Option<Handover>,
    /// Relays, which have none either.
    relay: Option<Box<dyn Relays>>,
    /// Frames that those gave the device, and that it did not send.
    left: u64,
}

impl Taken {
    pub(super) fn close(self) {
        // The kernel waits for who has a device that is gone.
        drop(self.device);
        if let Some(relay) = self.relay {
            relay.close();
        }
    }
}
