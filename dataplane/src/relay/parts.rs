//! A port's relays, taken apart and put together anew.

use std::sync::Arc;
use std::time::Instant;

use super::inbox::Delivery;
use super::lender::{Lender, Terms};
use super::outbox::{FAREWELL, Outbox, Spare};
use super::{Basis, FRAME_OVERHEAD, FromGuest, Load, Plan, Queue, Relay, ToGuest};
use crate::nic::{Burst, QueuePair};
use crate::ring::Ring;
use crate::worker::Watch;

/// Rings and queues of a port that no worker has at the moment. Frames that the device has not taken yet stay with their ring.
#[derive(Default)]
pub struct Parts {
    from_guest: Vec<FromGuest>,
    to_guest: Vec<ToGuest>,
    queues: Vec<Queue>,
    /// Where the ring stood that was to be stopped.
    stopped: Option<u16>,
}

impl Parts {
    /// Adds what another worker had.
    pub fn append(&mut self, mut other: Self) {
        self.from_guest.append(&mut other.from_guest);
        self.to_guest.append(&mut other.to_guest);
        self.queues.append(&mut other.queues);
        self.stopped = self.stopped.or(other.stopped);
    }

    /// Where the ring stood that was stopped by [`Relay::take_apart`].
    pub fn stopped(&self) -> Option<u16> {
        self.stopped
    }

    /// Adds a ring of that number that starts.
    pub fn start(&mut self, index: usize, mut ring: Ring) {
        let pair = index / 2;
        if index.is_multiple_of(2) {
            // Buffers that the guest adds are found when a frame comes: a kick would tell nothing.
            ring.suppress_kicks();
            self.to_guest.push(ToGuest { pair, ring });
        } else {
            self.from_guest.push(FromGuest {
                pair,
                ring,
                outbox: Outbox::new(),
                lender: None,
                queue: 0,
                watched: false,
                held: false,
            });
        }
    }

    /// Adds device queues.
    pub fn give_queues(&mut self, queues: Vec<QueuePair>) {
        let queue = |nic: QueuePair| Queue {
            index: nic.rx.index().into(),
            nic,
            inbox: Burst::new(),
            feeds: None,
            watched: false,
            listens: false,
        };
        self.queues.extend(queues.into_iter().map(queue));
    }

    /// Puts relays together, one for each share of the plan. `loads` has as many.
    pub fn build(mut self, plan: &Plan, basis: &Basis, loads: &[Arc<Load>]) -> Vec<Relay> {
        // In order, so that what can be seen of it does not depend on what was before.
        self.queues.sort_unstable_by_key(|queue| queue.index);
        self.from_guest.sort_unstable_by_key(|side| side.pair);
        self.to_guest.sort_unstable_by_key(|side| side.pair);
        let mut relays: Vec<_> = loads.iter().enumerate().map(|(share, load)| empty(share, basis, load)).collect();
        for queue in self.queues {
            relays[plan.share_of_queue(queue.index)].queues.push(queue);
        }
        for side in self.to_guest {
            relays[plan.share_of_receiver(side.pair)].to_guest.push(side);
        }
        for side in self.from_guest {
            relays[plan.share_of_sender(side.pair)].from_guest.push(side);
        }
        for relay in &mut relays {
            relay.connect(plan);
            relay.lend(basis.terms.as_ref());
        }
        relays
    }
}

fn empty(share: usize, basis: &Basis, load: &Arc<Load>) -> Relay {
    Relay {
        common: Arc::clone(&basis.common),
        share,
        from_guest: Vec::new(),
        to_guest: Vec::new(),
        queues: Vec::new(),
        first: 0,
        pool: basis.pool.clone(),
        spare: Spare::new(),
        delivery: Delivery::new(),
        map: basis.map.clone(),
        cleans: false,
        cleaned: 0,
        max_frame: usize::from(basis.mtu) + FRAME_OVERHEAD,
        load: Arc::clone(load),
    }
}

impl Queue {
    /// Its frames do not wake the worker any more.
    pub(super) fn unwatch(&mut self, watch: &Watch) {
        if let Some(wake) = self.nic.rx.wake() {
            watch.remove(wake);
        }
        self.nic.rx.give_signals_back();
        self.nic.rx.ignore();
    }
}

impl Relay {
    /// Connects its rings and its queues as the plan says. Without queues the rings wait.
    fn connect(&mut self, plan: &Plan) {
        for side in &mut self.from_guest {
            let wanted = plan.queue_of_sender(side.pair);
            side.queue = self.queues.iter().position(|queue| queue.index == wanted).unwrap_or(usize::MAX);
        }
        for queue in &mut self.queues {
            let wanted = plan.fed_by(queue.index);
            queue.feeds = self.to_guest.iter().position(|side| Some(side.pair) == wanted);
        }
    }

    /// Rings that do not lend yet do so by `terms`.
    fn lend(&mut self, terms: Option<&Terms>) {
        self.cleans = self.queues.iter().any(|queue| queue.nic.tx.cleans());
        let Some(terms) = terms else { return };
        for side in self.from_guest.iter_mut().filter(|side| side.lender.is_none()) {
            side.lender = Some(Box::new(Lender::new(terms, &mut side.ring)));
        }
    }

    /// Lets the guest's kicks and the device's signals end the worker's sleep. Until the next sleep kicks are not needed.
    pub fn watch(&mut self, watch: &Watch) {
        for side in &mut self.from_guest {
            side.watched = side.ring.kick().is_some_and(|kick| watch.add(kick));
            side.ring.suppress_kicks();
        }
        for queue in &mut self.queues {
            queue.watched = queue.nic.rx.wake().is_some_and(|wake| watch.add(wake));
            queue.nic.rx.take_signals();
        }
    }

    /// The opposite of [`Relay::watch`].
    pub fn unwatch(&mut self, watch: &Watch) {
        self.queues.iter_mut().for_each(|queue| queue.unwatch(watch));
        for kick in self.from_guest.iter().filter_map(|side| side.ring.kick()) {
            watch.remove(kick);
        }
    }

    /// Takes it apart. The ring `stopping` is not among the parts: what it sent last is offered to the device once more.
    pub fn take_apart(self, stopping: Option<usize>) -> Parts {
        let Self { common, from_guest, to_guest, mut queues, .. } = self;
        let mut parts = Parts::default();
        for mut side in from_guest {
            if stopping != Some(2 * side.pair + 1) {
                parts.from_guest.push(side);
                continue;
            }
            let counters = common.journal.from_guest(side.pair);
            match queues.get_mut(side.queue) {
                Some(queue) => side.outbox.finish(&mut queue.nic.tx, counters, Instant::now() + FAREWELL),
                None => {
                    side.outbox.abandon(counters);
                }
            }
            side.forgo(None);
            parts.stopped = Some(side.ring.position());
        }
        for side in to_guest {
            if stopping == Some(2 * side.pair) {
                parts.stopped = Some(side.ring.position());
            } else {
                parts.to_guest.push(side);
            }
        }
        parts.queues = queues;
        parts
    }
}
