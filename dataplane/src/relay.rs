//! The moving of packets between a port's rings and its device's queues.
//!
//! N rings meet M device queues. Which feeds which is computed again whenever a ring comes or goes ([`Plan`]): each device
//! queue is steered to a ring that is started and enabled, so a guest that enables fewer queues than it was given loses
//! nothing. What is connected then is a share of the port: a [`Relay`], which one worker owns. The port takes its relays apart
//! ([`Parts`]) and puts them together anew when the plan changes, and moves a whole one when its worker has too much to do.
//!
//! Towards the guest nothing waits: what does not fit is dropped and counted, because a full
//! device queue would lose packets where nobody counts them. From the guest a frame waits a moment for the device,
//! which the guest feels as back-pressure, and is dropped when the device stays full.

mod announce;
mod finish;
mod inbox;
mod lender;
mod outbox;
mod parts;
mod rate;
mod steering;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;
use crossbeam::utils::CachePadded;
use ringspan_protocol::Drops;

use crate::BURST;
use crate::journal::Journal;
use crate::memory::GuestMap;
use crate::nic::{Burst, Pool, QueuePair, some_loans_left};
use crate::offload::Offloads;
use crate::ring::{Ring, RingError, RingLog};
use crate::worker::Watch;
use crate::worker::{ticks, ticks_in};
use inbox::{Delivery, Frames};
pub use lender::Terms;
use lender::{Lender, Lending};
use outbox::{Asking, FAREWELL, Outbox, Spare};
pub use parts::Parts;
pub use rate::Rate;
pub use steering::Plan;

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
    /// The port's number.
    pub port: u64,
    /// The ring: 2n receives, 2n+1 transmits.
    pub ring: usize,
    /// What happened.
    pub offence: Offence,
}

/// What all relays of a port have in common. Nothing in it is written while packets flow, but rates where there are any.
pub struct Common {
    /// The port's number in its lane.
    pub id: u64,
    /// The port's counters: each has one writer at a time, the relay that has its ring or queue.
    pub journal: Arc<Journal>,
    /// Where to report what the guest did.
    pub faults: Sender<Fault>,
    /// The guest broke a ring: nothing is taken or given until it has stopped all rings.
    pub broken: AtomicBool,
    /// When a guest last waited for the device to let go of frames, in ticks. They may be in a queue of another relay.
    waited: AtomicU64,
    /// How much the guest may send. What is more waits in its rings.
    pub from_guest: CachePadded<Rate>,
    /// How much the guest may receive. What is more is dropped.
    pub to_guest: CachePadded<Rate>,
}

impl Common {
    /// Of a port that is whole.
    pub fn new(id: u64, journal: Arc<Journal>, faults: Sender<Fault>) -> Arc<Self> {
        Arc::new(Self {
            id,
            journal,
            faults,
            broken: AtomicBool::new(false),
            waited: AtomicU64::new(0),
            from_guest: CachePadded::default(),
            to_guest: CachePadded::default(),
        })
    }

    /// At most so many Mbit/s from here on, in each direction; 0: no limit.
    pub fn limit(&self, mbit: u32) {
        self.from_guest.limit(mbit);
        self.to_guest.limit(mbit);
    }
}

/// What a relay needs besides rings and queues. Changes with the device's MTU and the guest's memory.
#[derive(Clone)]
pub struct Basis {
    /// The port's.
    pub common: Arc<Common>,
    /// Where buffers for the device come from.
    pub pool: Pool,
    /// Longest frame without its Ethernet header, in bytes.
    pub mtu: u16,
    /// The guest's memory, once it is known.
    pub map: Option<Arc<GuestMap>>,
    /// Whether its large frames are read there by the device.
    pub terms: Option<Terms>,
}

/// What a share made its worker do. One worker writes, everybody may read.
#[derive(Debug, Default)]
pub struct Load {
    ticks: AtomicU64,
}

impl Load {
    /// Ticks of the processor's counter ([`crate::worker::ticks_in`]) that were spent on packets.
    pub fn ticks(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }

    /// Adds to it.
    #[inline]
    pub(crate) fn add(&self, ticks: u64) {
        self.ticks.store(self.ticks().wrapping_add(ticks), Ordering::Relaxed);
    }
}

/// A ring that we drain, number 2 * `pair` + 1.
struct FromGuest {
    pair: usize,
    ring: Ring,
    outbox: Outbox,
    /// Of what is not copied.
    lender: Option<Box<Lender>>,
    /// Where among the relay's queues the one is that takes what this ring sends. No such place while the queues are away.
    queue: usize,
    /// The worker waits for the guest's kicks.
    watched: bool,
    /// It was held back to its rate, and pauses.
    held: bool,
}

impl FromGuest {
    /// Gives all back to the guest that is owed, whether the device has let go of it or not, and goes on by other terms.
    fn forgo(&mut self, terms: Option<&Terms>) {
        self.ring.settle(|_| true);
        self.lender = terms.map(|terms| Box::new(Lender::new(terms, &mut self.ring)));
    }
}

/// A ring that we fill, number 2 * `pair`.
struct ToGuest {
    pair: usize,
    ring: Ring,
}

/// A device queue.
struct Queue {
    nic: QueuePair,
    /// What came, as far as it was not given on in the round that it came in.
    inbox: Burst,
    /// Its number in the device.
    index: usize,
    /// Where among the relay's rings the one is that this queue feeds.
    feeds: Option<usize>,
    /// The worker waits for its signal...
    watched: bool,
    /// ... and the driver promises one.
    listens: bool,
}

/// A share of a port's packets: rings and device queues that are connected with one another, and with no others.
pub struct Relay {
    common: Arc<Common>,
    share: usize,
    from_guest: Vec<FromGuest>,
    to_guest: Vec<ToGuest>,
    queues: Vec<Queue>,
    /// The ring that is drained first in the next round.
    first: usize,
    pool: Pool,
    spare: Spare,
    delivery: Delivery,
    map: Option<Arc<GuestMap>>,
    /// Queues have to be told to let go of what they have sent.
    cleans: bool,
    /// When they were last told, in ticks.
    cleaned: u64,
    /// Longest frame in bytes, Ethernet header and two VLAN tags included.
    max_frame: usize,
    load: Arc<Load>,
}

/// How often a queue is told to let go of what it has sent, while a guest waits for that.
const CLEAN: Duration = Duration::from_micros(10);
/// How long queues of a port's other relays are told to.
const CLEAN_ON: Duration = Duration::from_millis(10);

/// Ethernet header and two VLAN tags: what a frame may have beyond the MTU.
pub const FRAME_OVERHEAD: usize = 14 + 2 * 4;

impl Relay {
    /// The number of its port.
    pub fn port(&self) -> u64 {
        self.common.id
    }

    /// Which of the port's shares it is.
    pub fn share(&self) -> usize {
        self.share
    }

    /// What it made its worker do.
    #[inline]
    pub fn load(&self) -> &Arc<Load> {
        &self.load
    }

    /// One round over all rings and queues. Returns how many packets were moved or dropped.
    #[inline]
    pub fn run(&mut self) -> usize {
        let mut moved = 0;
        let broken = self.common.broken.load(Ordering::Relaxed);
        let rings = self.from_guest.len();
        for turn in 0..rings {
            let at = self.first + turn;
            moved += self.drain_guest(if at < rings { at } else { at - rings }, broken);
        }
        if self.cleans {
            self.clean();
        }
        // Another one is first in the next round, or it alone would get what room there is in a device that is always full.
        self.first = if self.first + 1 < rings { self.first + 1 } else { 0 };
        for queue in 0..self.queues.len() {
            moved += self.fill_guest(queue, broken);
        }
        // Memory that is gone hurts nobody once the rings are stopped, and must not break those that start in other memory.
        if self.map.as_ref().is_some_and(|map| map.poisoned()) && self.has_rings() {
            self.break_down(0, Offence::MemoryGone);
        }
        moved
    }

    /// Has the queues let go of what they have sent, while guests of the port wait for it, or the memory of one that is gone.
    #[inline]
    fn clean(&mut self) {
        let now = ticks();
        if now.wrapping_sub(self.cleaned) < ticks_in(CLEAN) {
            return;
        }
        if self.from_guest.iter().any(|side| side.ring.owed() > 0) {
            self.common.waited.store(now, Ordering::Relaxed);
        } else if !some_loans_left()
            && now.wrapping_sub(self.common.waited.load(Ordering::Relaxed)) > ticks_in(CLEAN_ON)
        {
            return;
        }
        self.cleaned = now;
        self.queues.iter_mut().for_each(|queue| queue.nic.tx.clean());
    }

    /// Guest to device: frames are copied out of the ring, the ring is published, and only then are they sent. A lane
    /// killed in between loses frames but never sends one twice. Where large frames are not copied, the ring is published as far
    /// as the device has let go of them.
    #[inline]
    fn drain_guest(&mut self, at: usize, broken: bool) -> usize {
        let FromGuest { pair, ring, outbox, lender, queue, held, .. } = &mut self.from_guest[at];
        let settled = lender.as_mut().map_or(0, |lender| lender.settle(ring));
        let Some(queue) = self.queues.get_mut(*queue) else { return settled };
        let counters = self.common.journal.from_guest(*pair);
        let moved = settled + outbox.flush(&mut queue.nic.tx, counters);
        if broken || !outbox.is_empty() || !ring.pending() {
            return moved;
        }
        *held = if *held { self.common.from_guest.held_for() > 0 } else { !self.common.from_guest.allows() };
        if *held {
            return moved;
        }
        self.spare.refill(&self.pool);
        let offloads = ring.features().offloads;
        let asks = offloads.has_any(Offloads::FROM_GUEST);
        let taken = match lender.as_mut() {
            Some(lender) if lender.closed => return moved,
            Some(lender) if asks => {
                let sink = &mut Asking(&mut self.spare);
                ring.take(BURST, self.max_frame, &mut Lending { sink, lender })
            }
            Some(lender) => ring.take(BURST, self.max_frame, &mut Lending { sink: &mut self.spare, lender }),
            None if asks => ring.take(BURST, self.max_frame, &mut Asking(&mut self.spare)),
            None => ring.take(BURST, self.max_frame, &mut self.spare),
        };
        let taken = match taken {
            Ok(taken) => taken,
            Err(error) => {
                let ring = 2 * *pair + 1;
                self.break_down(ring, error.into());
                return moved;
            }
        };
        counters.received(taken.received, taken.received_bytes);
        self.common.from_guest.charge(taken.received_bytes);
        counters.dropped(&Drops {
            malformed_chain: taken.malformed,
            too_long: taken.too_long,
            no_buffers: taken.no_buffers,
            ..Drops::default()
        });
        outbox.close(&mut self.spare, taken.frames as usize, taken.bytes);
        outbox.complete(&mut self.spare, offloads, self.max_frame, &mut queue.nic.tx);
        outbox.flush(&mut queue.nic.tx, counters);
        if let Some(lender) = lender {
            counters.zero_copied(taken.lent);
            // Many devices are done with a frame when they have taken it.
            lender.settle(ring);
        }
        moved + taken.received as usize
    }

    /// Device to guest.
    #[inline]
    fn fill_guest(&mut self, at: usize, broken: bool) -> usize {
        let queue = &mut self.queues[at];
        let counters = self.common.journal.to_guest(queue.index);
        if queue.inbox.is_empty() {
            let received = queue.nic.rx.receive(&mut queue.inbox);
            if received == 0 {
                return 0;
            }
            let bytes = Frames(&queue.inbox).look();
            counters.received(received as u64, bytes);
            if !self.common.to_guest.allows() {
                queue.inbox.clear();
                counters.dropped(&Drops { over_rate: received as u64, ..Drops::default() });
                return received;
            }
            self.common.to_guest.charge(bytes);
        }
        let (frames, count) = (Frames(&queue.inbox), queue.inbox.len());
        let fed = queue.feeds.filter(|_| !broken);
        let outcome = match fed.and_then(|place| self.to_guest.get_mut(place)) {
            Some(ToGuest { pair, ring }) if queue.nic.rx.marks() && frames.marked_for(ring) => {
                let done = self.delivery.deliver(&mut queue.inbox, ring, queue.nic.tx.pool());
                counters.sent(done.frames, done.bytes);
                counters.dropped(&done.drops);
                let rest = done.gone as u64 - done.frames - done.drops.total();
                counters.dropped(&Drops { no_ring: rest, ..Drops::default() });
                if let Some(error) = done.error {
                    let ring = 2 * *pair;
                    self.break_down(ring, error.into());
                }
                return done.gone;
            }
            Some(ToGuest { pair, ring }) => ring.put(&frames).map(Some).map_err(|error| (2 * *pair, error)),
            None => Ok(None),
        };
        queue.inbox.clear();
        if let Ok(Some(put)) = outcome {
            counters.sent(put.frames, put.bytes);
            counters.dropped(&Drops { guest_ring_full: put.ring_full, too_long: put.too_long, ..Drops::default() });
        } else {
            counters.dropped(&Drops { no_ring: count as u64, ..Drops::default() });
        }
        if let Err((ring, error)) = outcome {
            self.break_down(ring, error.into());
        }
        count
    }

    fn has_rings(&self) -> bool {
        !self.from_guest.is_empty() || !self.to_guest.is_empty()
    }

    #[cold]
    fn break_down(&self, ring: usize, mut offence: Offence) {
        if !self.common.broken.swap(true, Ordering::Relaxed) {
            // Memory that is gone reads as zeros, and so looks like a broken ring first.
            if self.map.as_ref().is_some_and(|map| map.poisoned()) {
                offence = Offence::MemoryGone;
            }
            // The receiver lives as long as the lane.
            let _ = self.common.faults.send(Fault { port: self.common.id, ring, offence });
        }
    }

    /// The running ring of that number, when it is in this share.
    fn ring(&mut self, index: usize) -> Option<&mut Ring> {
        let pair = index / 2;
        if index.is_multiple_of(2) {
            self.to_guest.iter_mut().find(|side| side.pair == pair).map(|side| &mut side.ring)
        } else {
            self.from_guest.iter_mut().find(|side| side.pair == pair).map(|side| &mut side.ring)
        }
    }

    /// A running ring interrupts its guest by another descriptor from here on. The session has refused what is no
    /// eventfd, and a ring that will not have it keeps its own.
    pub fn set_call(&mut self, index: usize, call: Option<Arc<OwnedFd>>) {
        if let Some(ring) = self.ring(index) {
            let _ = ring.set_call(call);
        }
    }

    /// A running ring notes what it writes elsewhere from here on, or nowhere.
    pub fn set_log(&mut self, index: usize, log: Option<RingLog>) {
        if let Some(ring) = self.ring(index) {
            ring.set_log(log);
        }
    }

    /// Moves the running rings to another map of the same guest, of which they lend by `terms`. A ring that is not in it stops the
    /// port. What devices still hold is given back to the guest: see [`Relay::hold`].
    pub fn remap(&mut self, map: &Arc<GuestMap>, terms: Option<&Terms>) {
        for side in &mut self.from_guest {
            side.forgo(terms);
        }
        let to_guest = self.to_guest.iter_mut().map(|side| (2 * side.pair, &mut side.ring));
        let from_guest = self.from_guest.iter_mut().map(|side| (2 * side.pair + 1, &mut side.ring));
        let mut fault = None;
        for (index, ring) in to_guest.chain(from_guest) {
            if let Err(error) = ring.remap(Arc::clone(map)) {
                fault.get_or_insert((index, error));
            }
        }
        if let Some((ring, error)) = fault {
            self.break_down(ring, error.into());
        }
        self.map = Some(Arc::clone(map));
    }

    /// Takes nothing more from the transmit ring of that pair, or from all, until [`Relay::release`]. Returns how many frames of those the device
    /// still has.
    pub fn hold(&mut self, pair: Option<usize>) -> usize {
        let sides = self.from_guest.iter_mut().filter(|side| pair.is_none_or(|pair| pair == side.pair));
        let lenders = sides.filter_map(|side| side.lender.as_mut());
        lenders.fold(0, |away, lender| {
            lender.closed = true;
            away + lender.away()
        })
    }

    /// The opposite of [`Relay::hold`].
    pub fn release(&mut self) {
        self.from_guest.iter_mut().filter_map(|side| side.lender.as_mut()).for_each(|lender| lender.closed = false);
    }

    /// Takes the device's queues away, so that the device can be stopped. Rings go on running and wait.
    pub fn take_queues(&mut self, watch: &Watch) -> Vec<QueuePair> {
        self.queues.iter_mut().for_each(|queue| queue.unwatch(watch));
        // For all pairs together.
        let until = Instant::now() + FAREWELL;
        for FromGuest { pair, outbox, queue, .. } in &mut self.from_guest {
            if let Some(queue) = self.queues.get_mut(*queue) {
                outbox.finish(&mut queue.nic.tx, self.common.journal.from_guest(*pair), until);
            }
            outbox.release();
        }
        self.spare = Spare::new();
        self.delivery.release();
        for queue in &self.queues {
            let left = queue.inbox.len() as u64;
            self.common.journal.to_guest(queue.index).dropped(&Drops { no_ring: left, ..Drops::default() });
        }
        self.queues.drain(..).map(|queue| queue.nic).collect()
    }

    /// Asks the guest to kick when it sends, and the device to signal when a frame comes. True when something waits already.
    pub fn listen(&mut self) -> bool {
        self.queues.iter_mut().for_each(|queue| queue.listens = queue.nic.rx.listen());
        let mut pending = self.queues.iter().any(|queue| !queue.inbox.is_empty());
        if self.common.broken.load(Ordering::Relaxed) {
            return pending;
        }
        for FromGuest { ring, outbox, lender, held, .. } in &mut self.from_guest {
            pending |= !outbox.is_empty();
            pending |= lender.as_ref().is_some_and(|lender| lender.expects(ring));
            if *held {
                // What waits there waits for its time, not for a kick.
                ring.suppress_kicks();
            } else {
                pending |= ring.request_kicks();
            }
        }
        pending
    }

    /// How many ticks it takes until a ring that is held back to its rate may go on; none where none is.
    pub fn held_for(&self) -> Option<u64> {
        let held = self.from_guest.iter().any(|side| side.held) && !self.common.broken.load(Ordering::Relaxed);
        held.then(|| self.common.from_guest.held_for())
    }

    /// Whether everything that may come is signalled.
    pub fn can_wake(&self) -> bool {
        self.queues.iter().all(|queue| queue.watched && queue.listens && queue.nic.rx.is_signalled())
            && self.from_guest.iter().all(|side| side.watched && side.ring.owed() == 0)
    }

    /// Something was signalled while the worker slept: looks which device does so.
    pub fn look_for_signals(&mut self) {
        self.queues.iter_mut().for_each(|queue| queue.nic.rx.look_for_signal());
    }

    /// Neither kicks nor signals of the device are needed.
    pub fn ignore_signals(&mut self) {
        self.ignore_frames();
        self.from_guest.iter_mut().for_each(|side| side.ring.suppress_kicks());
    }

    /// Signals of the device are not needed.
    pub fn ignore_frames(&mut self) {
        self.queues.iter_mut().for_each(|queue| queue.nic.rx.ignore());
    }
}
