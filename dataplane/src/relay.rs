//! The moving of packets between a port's rings and its device's queues.
//!
//! N rings meet M device queues, all owned by one worker. Which feeds which is computed again whenever a ring comes or
//! goes: each device queue is steered to a ring that is started and enabled, so a guest that enables fewer queues than it
//! was given loses nothing. Towards the guest nothing waits: what does not fit is dropped and counted, because a full
//! device queue would lose packets where nobody counts them. From the guest a frame waits a moment for the device,
//! which the guest feels as back-pressure, and is dropped when the device stays full.

mod inbox;
mod outbox;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use crossbeam::channel::Sender;
use ringspan_protocol::{Drops, MAX_QUEUE_PAIRS};

use crate::BURST;
use crate::journal::Journal;
use crate::memory::GuestMap;
use crate::nic::{Burst, Pool, QueuePair};
use crate::ring::{Ring, RingError};
use crate::worker::Watch;
use inbox::Frames;
use outbox::{FAREWELL, Outbox, Spare};

/// What a guest or its front-end did that stopped its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Offence {
    /// The guest broke a ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The file behind guest memory was cut short.
    #[error("the file behind guest memory was cut short while it was mapped: connect again with whole memory")]
    MemoryGone,
}

/// An [`Offence`], and where.
#[derive(Debug)]
pub struct Fault {
    /// The port's relay.
    pub relay: u64,
    /// The ring: 2n receives, 2n+1 transmits.
    pub ring: usize,
    /// What happened.
    pub offence: Offence,
}

/// One of the guest's queue pairs.
struct Pair {
    /// Ring 2n: filled by us.
    to_guest: Option<Ring>,
    /// Ring 2n+1: drained by us.
    from_guest: Option<Ring>,
    outbox: Outbox,
    /// The device queue that takes what this pair sends.
    queue: usize,
}

/// A device queue, and the pair whose guest receives what arrives on it.
struct Queue {
    nic: QueuePair,
    inbox: Burst,
    pair: Option<usize>,
}

/// A port's packets.
pub struct Relay {
    id: u64,
    pairs: Vec<Pair>,
    /// The pairs whose transmit ring runs, so that a round does not look at the others; in the order of this round.
    sending: Vec<usize>,
    /// Whether any ring runs.
    running: bool,
    queues: Vec<Queue>,
    pool: Pool,
    spare: Spare,
    /// The guest's memory, once it is known.
    map: Option<Arc<GuestMap>>,
    journal: Arc<Journal>,
    /// Longest frame in bytes, Ethernet header and two VLAN tags included.
    max_frame: usize,
    /// The guest broke a ring: nothing is taken or given until it has stopped all rings.
    broken: bool,
    faults: Sender<Fault>,
}

/// Ethernet header and two VLAN tags: what a frame may have beyond the MTU.
pub const FRAME_OVERHEAD: usize = 14 + 2 * 4;

impl Relay {
    /// A relay without rings. It drains the device's queues and counts what comes as without a ring.
    pub fn new(
        id: u64,
        queues: Vec<QueuePair>,
        pool: Pool,
        mtu: u16,
        journal: Arc<Journal>,
        faults: Sender<Fault>,
    ) -> Self {
        let pairs = (0..MAX_QUEUE_PAIRS.into())
            .map(|_| Pair { to_guest: None, from_guest: None, outbox: Outbox::new(), queue: 0 })
            .collect();
        let max_frame = usize::from(mtu) + FRAME_OVERHEAD;
        let mut relay = Self {
            id,
            pairs,
            sending: Vec::new(),
            running: false,
            queues: Vec::new(),
            pool,
            spare: Spare::new(),
            map: None,
            journal,
            max_frame,
            broken: false,
            faults,
        };
        relay.give_queues(queues);
        relay
    }

    /// The number that its port gave it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// One round over all rings and queues. Returns how many packets were moved or dropped.
    pub fn run(&mut self) -> usize {
        let mut moved = 0;
        for at in 0..self.sending.len() {
            moved += self.drain_guest(self.sending[at]);
        }
        // Another one is first in the next round, or it alone would get what room there is in a device that is always full.
        if self.sending.len() > 1 {
            self.sending.rotate_left(1);
        }
        for queue in 0..self.queues.len() {
            moved += self.fill_guest(queue);
        }
        // Memory that is gone hurts nobody once the rings are stopped, and must not break those that start in other memory.
        if self.running && self.map.as_ref().is_some_and(|map| map.poisoned()) {
            self.break_down(0, Offence::MemoryGone);
        }
        moved
    }

    /// Guest to device: frames are copied out of the ring, the ring is published, and only then are they sent. A lane
    /// killed in between loses frames but never sends one twice.
    fn drain_guest(&mut self, index: usize) -> usize {
        let pair = &mut self.pairs[index];
        let (Some(ring), Some(queue)) = (&mut pair.from_guest, self.queues.get_mut(pair.queue)) else { return 0 };
        let counters = self.journal.from_guest(index);
        let moved = pair.outbox.flush(&mut queue.nic.tx, counters);
        if self.broken || !pair.outbox.is_empty() {
            return moved;
        }
        if !ring.pending() {
            return moved;
        }
        self.spare.refill(&self.pool);
        let taken = match ring.take(BURST, self.max_frame, &mut self.spare) {
            Ok(taken) => taken,
            Err(error) => {
                self.break_down(2 * index + 1, error.into());
                return moved;
            }
        };
        counters.received(taken.received, taken.received_bytes);
        counters.dropped(&Drops {
            malformed_chain: taken.malformed,
            too_long: taken.too_long,
            no_buffers: taken.no_buffers,
            ..Drops::default()
        });
        pair.outbox.close(&mut self.spare, taken.frames as usize, taken.bytes);
        pair.outbox.flush(&mut queue.nic.tx, counters);
        moved + taken.received as usize
    }

    /// Device to guest.
    fn fill_guest(&mut self, index: usize) -> usize {
        let queue = &mut self.queues[index];
        let received = queue.nic.rx.receive(&mut queue.inbox);
        if received == 0 {
            return 0;
        }
        let counters = self.journal.to_guest(index);
        let frames = Frames(&queue.inbox);
        counters.received(received as u64, frames.bytes());
        let pair = queue.pair.filter(|_| !self.broken);
        let outcome = match pair.and_then(|pair| self.pairs[pair].to_guest.as_mut()) {
            Some(ring) => ring.put(&frames).map(Some),
            None => Ok(None),
        };
        queue.inbox.clear();
        if let Ok(Some(put)) = outcome {
            counters.sent(put.frames, put.bytes);
            counters.dropped(&Drops { guest_ring_full: put.ring_full, too_long: put.too_long, ..Drops::default() });
        } else {
            counters.dropped(&Drops { no_ring: received as u64, ..Drops::default() });
        }
        if let (Err(error), Some(pair)) = (outcome, pair) {
            self.break_down(2 * pair, error.into());
        }
        received
    }

    fn break_down(&mut self, ring: usize, mut offence: Offence) {
        if !self.broken {
            self.broken = true;
            // Memory that is gone reads as zeros, and so looks like a broken ring first.
            if self.map.as_ref().is_some_and(|map| map.poisoned()) {
                offence = Offence::MemoryGone;
            }
            // The receiver lives as long as the lane.
            let _ = self.faults.send(Fault { relay: self.id, ring, offence });
        }
    }

    /// Starts a ring. One that runs already is replaced.
    pub fn start(&mut self, index: usize, mut ring: Ring, watch: &Watch) {
        self.stop(index, watch);
        let Some(pair) = self.pairs.get_mut(index / 2) else { return };
        if index.is_multiple_of(2) {
            // Buffers that the guest adds are found when a frame comes: a kick would tell nothing.
            ring.suppress_kicks();
            pair.to_guest = Some(ring);
        } else {
            if let Some(kick) = ring.kick() {
                watch.add(kick);
            }
            pair.from_guest = Some(ring);
        }
        self.steer();
    }

    /// A running ring interrupts its guest by another descriptor from here on. The session has refused what is no
    /// eventfd, and a ring that will not have it keeps its own.
    pub fn set_call(&mut self, index: usize, call: Option<Arc<OwnedFd>>) {
        let Some(pair) = self.pairs.get_mut(index / 2) else { return };
        let side = if index.is_multiple_of(2) { &mut pair.to_guest } else { &mut pair.from_guest };
        if let Some(ring) = side {
            let _ = ring.set_call(call);
        }
    }

    /// Stops a ring. Returns where it stands, or `None` when it did not run.
    pub fn stop(&mut self, index: usize, watch: &Watch) -> Option<u16> {
        let pair = self.pairs.get_mut(index / 2)?;
        let ring = if index.is_multiple_of(2) {
            pair.to_guest.take()?
        } else {
            let ring = pair.from_guest.take()?;
            if let Some(kick) = ring.kick() {
                watch.remove(kick);
            }
            let counters = self.journal.from_guest(index / 2);
            match self.queues.get_mut(pair.queue) {
                Some(queue) => pair.outbox.finish(&mut queue.nic.tx, counters, Instant::now() + FAREWELL),
                None => {
                    pair.outbox.abandon(counters);
                }
            }
            ring
        };
        self.steer();
        self.broken &= self.running;
        Some(ring.position())
    }

    /// Stops every ring.
    pub fn stop_all(&mut self, watch: &Watch) {
        for index in 0..2 * self.pairs.len() {
            self.stop(index, watch);
        }
    }

    /// Moves the running rings to another map of the same guest. A ring that is not in it stops the port.
    pub fn remap(&mut self, map: &Arc<GuestMap>) {
        let mut fault = None;
        for (index, pair) in self.pairs.iter_mut().enumerate() {
            for (side, ring) in [&mut pair.to_guest, &mut pair.from_guest].into_iter().enumerate() {
                if let Some(running) = ring
                    && let Err(error) = running.remap(Arc::clone(map))
                {
                    fault.get_or_insert((2 * index + side, error));
                }
            }
        }
        if let Some((ring, error)) = fault {
            self.break_down(ring, error.into());
        }
        self.map = Some(Arc::clone(map));
    }

    /// Takes the device's queues away, so that the device can be stopped. Rings go on running and wait.
    pub fn take_queues(&mut self) -> Vec<QueuePair> {
        // For all pairs together.
        let until = Instant::now() + FAREWELL;
        for (index, pair) in self.pairs.iter_mut().enumerate() {
            if let Some(queue) = self.queues.get_mut(pair.queue) {
                pair.outbox.finish(&mut queue.nic.tx, self.journal.from_guest(index), until);
            }
            pair.outbox.release();
        }
        self.spare = Spare::new();
        self.queues.drain(..).map(|queue| queue.nic).collect()
    }

    /// Gives the device's queues, after [`Relay::take_queues`].
    pub fn give_queues(&mut self, queues: Vec<QueuePair>) {
        self.queues = queues.into_iter().map(|nic| Queue { nic, inbox: Burst::new(), pair: None }).collect();
        self.steer();
    }

    /// The device has another pool or MTU from here on.
    pub fn resize(&mut self, pool: Pool, mtu: u16) {
        self.pool = pool;
        self.max_frame = usize::from(mtu) + FRAME_OVERHEAD;
    }

    /// Decides again which ring each device queue feeds, and which device queue each ring feeds.
    fn steer(&mut self) {
        let receiving: Vec<usize> = (0..self.pairs.len()).filter(|&pair| self.pairs[pair].to_guest.is_some()).collect();
        for (index, queue) in self.queues.iter_mut().enumerate() {
            queue.pair = (!receiving.is_empty()).then(|| receiving[index % receiving.len()]);
        }
        self.sending = (0..self.pairs.len()).filter(|&pair| self.pairs[pair].from_guest.is_some()).collect();
        self.running = !receiving.is_empty() || !self.sending.is_empty();
        for (index, &pair) in self.sending.iter().enumerate() {
            self.pairs[pair].queue = index % self.queues.len().max(1);
        }
    }

    /// Queue pairs with both rings running.
    pub fn active_pairs(&self) -> u16 {
        self.pairs.iter().filter(|pair| pair.to_guest.is_some() && pair.from_guest.is_some()).count() as u16
    }

    /// Whether the guest broke a ring.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Asks the guest to kick when it sends. True when something waits already.
    pub fn request_kicks(&mut self) -> bool {
        let mut pending = false;
        if self.broken {
            return pending;
        }
        for &pair in &self.sending {
            let Pair { from_guest, outbox, .. } = &mut self.pairs[pair];
            pending |= !outbox.is_empty();
            pending |= from_guest.as_mut().is_some_and(Ring::request_kicks);
        }
        pending
    }

    /// Tells the guest that kicks are not needed.
    pub fn suppress_kicks(&mut self) {
        for &pair in &self.sending {
            if let Some(ring) = &mut self.pairs[pair].from_guest {
                ring.suppress_kicks();
            }
        }
    }
}
