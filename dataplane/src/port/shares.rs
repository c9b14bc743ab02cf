//! A port's shares: its relays, each on the worker that it was given to.
//!
//! A ring that comes or goes changes the plan ([`Plan`]). The relays are then taken apart on their workers, between two bursts, and
//! put together anew; when one worker has them all, in one call, so that packets wait for microseconds. What has to move
//! between workers is first taken from all and then given to all: no ring or queue is ever with two of them.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ringspan_protocol::{NodeStatus, ShareStatus, ZeroCopyStatus};

use super::nearby::Nearby;
use crate::memory::{GuestMap, of_memory};
use crate::nic::{Lending, Pool, QueuePair, sweep_loans};
use crate::relay::{Basis, Common, FRAME_OVERHEAD, Load, Parts, Plan, Relay, Terms};
use crate::ring::{RecordHandle, Ring, RingLog};
use crate::worker::{Candidate, Running, Worker, WorkerError, place};

/// How long a device has to let go of frames that it was lent when their ring stops or their memory goes. A front-end waits for it.
const LET_GO: Duration = Duration::from_millis(100);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_micros(50);

/// The relays of a port. Whoever changes them holds a lock, which no worker ever takes.
pub struct Shares {
    common: Arc<Common>,
    workers: Vec<Arc<Worker>>,
    now: Mutex<Now>,
}

struct Now {
    /// The port is gone: what a session that has not noticed brings is dropped.
    closed: bool,
    basis: Basis,
    /// Whether the device reads guest memory.
    lending: Result<Lending, String>,
    /// Why it cannot read the memory of this guest.
    refused: Option<String>,
    receiving: BTreeSet<usize>,
    sending: BTreeSet<usize>,
    device_queues: u16,
    plan: Plan,
    /// One for each share of the plan.
    homes: Vec<Home>,
    /// Where the device has its packet buffers; those for the guest's frames (`basis.pool`) may be others.
    device_pool: Pool,
    /// The NUMA node of the device, ...
    device_node: Option<u16>,
    /// ... that of the guest's memory, since its driver began, ...
    guest_node: Option<u16>,
    /// ... and the one where the shares should be.
    node: Option<u16>,
    /// Buffers like the device's, on other nodes.
    nearby: Nearby<Pool>,
}

/// Where a share is.
struct Home {
    /// Which of the workers.
    worker: usize,
    load: Arc<Load>,
}

/// What changes.
#[derive(Default)]
struct Change {
    stopping: Option<usize>,
    starting: Option<(usize, Ring)>,
    queues: Vec<QueuePair>,
}

impl Shares {
    /// Gives the queues of a device to a worker. Without rings they are drained, and what comes is counted as without a ring.
    ///
    /// # Errors
    /// [`WorkerError`]: the lane is stopping.
    pub fn new(
        common: Arc<Common>,
        workers: Vec<Arc<Worker>>,
        queues: Vec<QueuePair>,
        pool: Pool,
        mtu: u16,
        device_node: Option<u16>,
        lending: Result<Lending, String>,
    ) -> Result<Self, WorkerError> {
        let device_pool = pool.clone();
        let basis = Basis { common: Arc::clone(&common), pool, mtu, map: None, terms: None };
        let device_queues = queues.len() as u16;
        let plan = Plan::new([], [], device_queues);
        let now = Now {
            closed: false,
            basis,
            lending,
            refused: None,
            receiving: BTreeSet::new(),
            sending: BTreeSet::new(),
            device_queues,
            plan,
            homes: Vec::new(),
            device_pool,
            device_node,
            guest_node: None,
            node: device_node,
            nearby: Nearby::default(),
        };
        let shares = Self { common, workers, now: Mutex::new(now) };
        shares.rearrange(&mut shares.lock(), Change { queues, ..Change::default() })?;
        Ok(shares)
    }

    /// The port's number.
    pub fn port(&self) -> u64 {
        self.common.id
    }

    /// Where the position of a packed ring outlives the lane.
    pub fn record(&self, ring: usize) -> RecordHandle {
        RecordHandle::new(Arc::clone(&self.common.journal) as _, ring)
    }

    /// Whether the guest broke a ring.
    pub fn is_broken(&self) -> bool {
        self.common.broken.load(Ordering::Relaxed)
    }

    /// Starts a ring, whose parts are at these guest addresses. One that runs already is replaced. Returns how many pairs run.
    ///
    /// # Errors
    /// [`WorkerError`]: the lane is stopping. So it is for all the others.
    pub fn start(&self, index: usize, ring: Ring, parts: [u64; 3]) -> Result<u16, WorkerError> {
        self.find_node(&parts);
        let mut now = self.lock();
        self.quiesce(&now, Some(index))?;
        now.side(index).insert(index / 2);
        let change = Change { stopping: Some(index), starting: Some((index, ring)), ..Change::default() };
        self.rearrange(&mut now, change)?;
        Ok(now.plan.active_pairs())
    }

    /// Stops a ring. When this returns, no worker touches it any more. Returns where it stands and how many pairs run, or
    /// `None` when it did not run.
    pub fn stop(&self, index: usize) -> Result<Option<(u16, u16)>, WorkerError> {
        let mut now = self.lock();
        if !now.side(index).remove(&(index / 2)) {
            return Ok(None);
        }
        self.quiesce(&now, Some(index))?;
        let stopped = self.rearrange(&mut now, Change { stopping: Some(index), ..Change::default() })?;
        if !now.plan.running() {
            self.common.broken.store(false, Ordering::Relaxed);
            // The next guest's memory may be elsewhere. The shares stay until its driver begins.
            now.guest_node = None;
        }
        Ok(stopped.map(|next| (next, now.plan.active_pairs())))
    }

    /// Moves the running rings to another map of the same guest. When this returns, no worker has the old one any more.
    pub fn remap(&self, map: Arc<GuestMap>) -> Result<(), WorkerError> {
        let mut now = self.lock();
        // Kept until the workers have let go of it, so that the last one to do so is this thread: unmapping a large guest takes
        // long, and must not hold up the worker's other ports.
        self.quiesce(&now, None)?;
        let _old = now.basis.map.replace(Arc::clone(&map));
        let terms = now.terms(&map);
        let _old_terms = std::mem::replace(&mut now.basis.terms, terms.clone());
        let port = self.port();
        self.on_each(&now, move |relays| {
            let ours = relays.iter_mut().filter(|relay| relay.port() == port);
            ours.for_each(|relay| relay.remap(&map, terms.as_ref()));
        })?;
        sweep_loans();
        Ok(())
    }

    /// Waits until the device has let go of what it was lent of a transmit ring, or of all of them, from which nothing more is taken. Its
    /// worker goes on meanwhile. What the device does not let go of stays mapped until it does.
    fn quiesce(&self, now: &Now, index: Option<usize>) -> Result<(), WorkerError> {
        if now.basis.terms.is_none() || index.is_some_and(|index| index.is_multiple_of(2)) {
            return Ok(());
        }
        let (port, pair) = (self.port(), index.map(|index| index / 2));
        let until = Instant::now() + LET_GO;
        loop {
            let mut away = 0;
            for worker in now.hosts() {
                away += self.workers[worker].call(move |running| {
                    let ours = running.relays.iter_mut().filter(|relay| relay.port() == port);
                    ours.map(|relay| relay.hold(pair)).sum::<usize>()
                })?;
            }
            if away == 0 {
                return Ok(());
            }
            if Instant::now() >= until {
                tracing::warn!(
                    port,
                    "{away} frames are still with the device, which does not send them: their memory stays mapped until it lets go"
                );
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Whether frames from the guest are copied.
    pub fn zero_copy(&self) -> ZeroCopyStatus {
        let now = self.lock();
        match (&now.lending, &now.refused) {
            (Ok(lending), _) if lending.from() > usize::from(now.basis.mtu) + FRAME_OVERHEAD => ZeroCopyStatus {
                from: None,
                reason: Some(format!("no frame of this port has {} bytes", lending.from())),
            },
            (Ok(lending), None) => ZeroCopyStatus { from: Some(lending.from() as u32), reason: None },
            (Ok(_), reason) => ZeroCopyStatus { from: None, reason: reason.clone() },
            (Err(reason), _) => ZeroCopyStatus { from: None, reason: Some(reason.clone()) },
        }
    }

    /// On which NUMA nodes what belongs together is; none where the machine has one.
    pub fn nodes(&self) -> NodeStatus {
        if !self.has_nodes() {
            return NodeStatus::default();
        }
        let now = self.lock();
        NodeStatus { guest: now.guest_node, device: now.device_node, buffers: now.basis.pool.node() }
    }

    /// A running ring interrupts its guest by another descriptor from here on.
    pub fn set_call(&self, index: usize, call: Option<Arc<OwnedFd>>) -> Result<(), WorkerError> {
        let now = self.lock();
        let port = self.port();
        self.on_each(&now, move |relays| {
            let ours = relays.iter_mut().filter(|relay| relay.port() == port);
            ours.for_each(|relay| relay.set_call(index, call.clone()));
        })
    }

    /// A running ring notes what it writes elsewhere from here on, or nowhere: when this returns, nothing is noted in the log before.
    pub fn set_log(&self, index: usize, log: Option<RingLog>) -> Result<(), WorkerError> {
        let now = self.lock();
        let port = self.port();
        self.on_each(&now, move |relays| {
            let ours = relays.iter_mut().filter(|relay| relay.port() == port);
            ours.for_each(|relay| relay.set_log(index, log.clone()));
        })
    }

    /// Sends a frame that says where the guest with this address is now. Dropped and counted when the device does not take it, and
    /// not sent at all while its queues are away.
    pub fn announce(&self, mac: [u8; 6]) -> Result<(), WorkerError> {
        let now = self.lock();
        let port = self.port();
        self.on_each(&now, move |relays| {
            let ours = relays.iter_mut().filter(|relay| relay.port() == port);
            ours.for_each(|relay| relay.announce(mac));
        })
    }

    /// Moves what is in the device's queues, in so many rounds at most: the device gives nothing more. When this returns nothing is left there.
    pub fn run_dry(&self, rounds: usize) -> Result<(), WorkerError> {
        let now = self.lock();
        let port = self.port();
        self.on_each(&now, move |relays| {
            let ours = relays.iter_mut().filter(|relay| relay.port() == port);
            ours.for_each(|relay| {
                (0..rounds).take_while(|_| relay.run() > 0).for_each(drop);
            });
        })
    }

    /// Takes the device's queues away, so that the device can be stopped. Rings go on running and wait.
    pub fn take_queues(&self) -> Result<Vec<QueuePair>, WorkerError> {
        let now = self.lock();
        let port = self.port();
        let mut queues = Vec::new();
        for worker in now.hosts() {
            queues.extend(self.workers[worker].call(move |running| {
                let Running { relays, watch, .. } = running;
                let ours = relays.iter_mut().filter(|relay| relay.port() == port);
                ours.flat_map(|relay| relay.take_queues(watch)).collect::<Vec<_>>()
            })?);
        }
        Ok(queues)
    }

    /// Gives the device's queues, after [`Shares::take_queues`]; the device may have another pool and MTU by now.
    pub fn give_queues(
        &self,
        queues: Vec<QueuePair>,
        pool: Pool,
        mtu: u16,
        lending: Result<Lending, String>,
    ) -> Result<(), WorkerError> {
        let (fresh, wanted) = {
            let now = self.lock();
            let fresh = !pool.same(&now.device_pool);
            let none = Nearby::default();
            let nearby = if fresh { &none } else { &now.nearby };
            (fresh, nearby.wants(self.wanted_node(&now), pool.node(), Instant::now()))
        };
        let made = wanted.map(|node| (node, pool.near(node)));
        let mut now = self.lock();
        // Kept until the workers have let go of it: freeing a pool takes long, and must not hold up the worker's other ports.
        let _old = (
            now.basis.pool.clone(),
            fresh.then(|| std::mem::take(&mut now.nearby)),
            std::mem::replace(&mut now.device_pool, pool),
            std::mem::replace(&mut now.lending, lending),
        );
        if let Some((node, made)) = made {
            now.nearby.note(node, made, Instant::now());
        }
        self.choose_pool(&mut now);
        now.basis.mtu = mtu;
        // Frames may be long enough from here on.
        if now.basis.terms.is_none()
            && let Some(map) = now.basis.map.clone()
        {
            now.basis.terms = now.terms(&map);
        }
        self.rearrange(&mut now, Change { queues, ..Change::default() }).map(drop)
    }

    /// Hands a share to another worker, with all that is under way in it. False when it is there already, or when there is
    /// no such share or worker.
    pub fn move_share(&self, share: usize, to: usize) -> Result<bool, WorkerError> {
        let mut now = self.lock();
        let Some(home) = now.homes.get_mut(share).filter(|home| home.worker != to && to < self.workers.len()) else {
            return Ok(false);
        };
        let port = self.port();
        let taken = self.workers[home.worker].call(move |running| running.detach(port, Some(share)))?;
        self.workers[home.worker].lost_share();
        home.worker = to;
        self.workers[to].call(move |running| running.attach(taken))?;
        self.workers[to].got_share();
        Ok(true)
    }

    /// Where the shares are, and what they have.
    pub fn status(&self) -> Vec<ShareStatus> {
        let now = self.lock();
        let small = |numbers: Vec<usize>| numbers.into_iter().map(|number| number as u16).collect();
        let share = |(share, home): (usize, &Home)| ShareStatus {
            core: self.workers[home.worker].core(),
            queues: small(now.plan.queues_of(share).collect()),
            pairs: small(now.plan.pairs_of(share)),
        };
        now.homes.iter().enumerate().map(share).collect()
    }

    /// The workers and loads of the shares, in order; none while they change.
    pub fn loads(&self) -> Vec<(usize, Arc<Load>)> {
        let Ok(now) = self.now.try_lock() else { return Vec::new() };
        now.homes.iter().map(|home| (home.worker, Arc::clone(&home.load))).collect()
    }

    /// Takes all relays from their workers and lets go of the device's queues. Rings are stopped by the session before.
    /// From here on nothing is taken on any more.
    pub fn close(&self) -> Result<(), WorkerError> {
        let mut now = self.lock();
        now.closed = true;
        let port = self.port();
        for worker in now.hosts() {
            let relays = self.workers[worker].call(move |running| running.detach(port, None))?;
            // Here and not there: closing a device takes long.
            drop(relays);
        }
        for home in now.homes.drain(..) {
            self.workers[home.worker].lost_share();
        }
        Ok(())
    }

    /// Plans anew and brings the relays there. Returns where the ring stood that stops.
    fn rearrange(&self, now: &mut Now, change: Change) -> Result<Option<u16>, WorkerError> {
        if now.closed {
            return Ok(None);
        }
        let hosts = now.hosts();
        now.plan = Plan::new(now.receiving.iter().copied(), now.sending.iter().copied(), now.device_queues);
        self.settle(now);
        let port = self.port();
        let (plan, basis) = (now.plan.clone(), now.basis.clone());
        let loads: Vec<_> = now.homes.iter().map(|home| Arc::clone(&home.load)).collect();
        let Change { stopping, starting, queues } = change;
        let complete = move |mut parts: Parts| {
            let stopped = parts.stopped();
            if let Some((index, ring)) = starting {
                parts.start(index, ring);
            }
            parts.give_queues(queues);
            (stopped, parts.build(&plan, &basis, &loads))
        };
        if let [only] = hosts[..]
            && now.homes.iter().all(|home| home.worker == only)
        {
            return self.workers[only].call(move |running| {
                let (stopped, relays) = complete(take_apart(running.detach(port, None), stopping));
                running.attach(relays);
                stopped
            });
        }
        let mut parts = Parts::default();
        for worker in hosts {
            parts.append(self.workers[worker].call(move |running| take_apart(running.detach(port, None), stopping))?);
        }
        let (stopped, relays) = complete(parts);
        let mut groups: Vec<Vec<Relay>> = self.workers.iter().map(|_| Vec::new()).collect();
        for (relay, home) in relays.into_iter().zip(&now.homes) {
            groups[home.worker].push(relay);
        }
        for (worker, relays) in self.workers.iter().zip(groups) {
            if !relays.is_empty() {
                worker.call(move |running| running.attach(relays))?;
            }
        }
        Ok(stopped)
    }

    /// As many homes as the plan has shares. New ones are where there is least to do, all on the right node if it has a worker.
    fn settle(&self, now: &mut Now) {
        let shares = now.plan.shares();
        for gone in now.homes.drain(shares.min(now.homes.len())..) {
            self.workers[gone.worker].lost_share();
        }
        for home in &mut now.homes {
            let better = self.place(now.node);
            let is_there = |worker: usize| self.workers[worker].node() == now.node;
            if now.node.is_some() && !is_there(home.worker) && is_there(better) {
                self.workers[home.worker].lost_share();
                self.workers[better].got_share();
                home.worker = better;
            }
        }
        while now.homes.len() < shares {
            let worker = self.place(now.node);
            self.workers[worker].got_share();
            now.homes.push(Home { worker, load: Arc::default() });
        }
    }

    /// When the guest's driver begins it has touched its memory: the shares should be on the node that has it, else on the device's, and so
    /// should the buffers that its frames are copied to. Without several nodes all workers and all memory are alike. Buffers are made
    /// without the lock, which takes long.
    fn find_node(&self, touched: &[u64]) {
        if !self.has_nodes() {
            return;
        }
        let map = {
            let now = self.lock();
            if now.plan.running() {
                return;
            }
            now.basis.map.clone()
        };
        let guest = map.as_deref().and_then(|map| of_memory(map, touched));
        let (pool, wanted) = {
            let mut now = self.lock();
            now.guest_node = guest;
            now.node = guest.or(now.device_node);
            let wanted = now.nearby.wants(now.node, now.device_pool.node(), Instant::now());
            (now.device_pool.clone(), wanted)
        };
        let made = wanted.map(|node| (node, pool.near(node)));
        let mut now = self.lock();
        // The device may have come anew meanwhile.
        if let Some((node, made)) = made
            && now.device_pool.same(&pool)
        {
            now.nearby.note(node, made, Instant::now());
        }
        self.choose_pool(&mut now);
    }

    /// The guest's frames are copied to buffers on its node, else to the device's.
    fn choose_pool(&self, now: &mut Now) {
        let near = self.wanted_node(now).filter(|node| now.device_pool.node() != Some(*node));
        let pool = near.and_then(|node| now.nearby.on(node)).unwrap_or(&now.device_pool).clone();
        now.basis.pool = pool;
    }

    /// The node where the shares should be, if there are several.
    fn wanted_node(&self, now: &Now) -> Option<u16> {
        now.node.filter(|_| self.has_nodes())
    }

    /// Whether the workers are on several NUMA nodes, or could be.
    fn has_nodes(&self) -> bool {
        self.workers.iter().any(|worker| worker.node().is_some())
    }

    /// The worker that is best for one more share.
    fn place(&self, node: Option<u16>) -> usize {
        let candidate = |worker: &Arc<Worker>| Candidate { node: worker.node(), shares: worker.shares() };
        place(&self.workers.iter().map(candidate).collect::<Vec<_>>(), node)
    }

    /// Runs `change` on each worker that has relays of the port.
    fn on_each(&self, now: &Now, change: impl Fn(&mut [Relay]) + Clone + Send + 'static) -> Result<(), WorkerError> {
        for worker in now.hosts() {
            let change = change.clone();
            self.workers[worker].call(move |running| change(&mut running.relays))?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        // A panic in here ends the lane.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Now {
    /// What rings may lend of `map`.
    fn terms(&mut self, map: &Arc<GuestMap>) -> Option<Terms> {
        let lending = self.lending.as_ref().ok()?;
        let from = lending.from();
        if from > usize::from(self.basis.mtu) + FRAME_OVERHEAD {
            return None;
        }
        let memory = lending.memory(map);
        self.refused = memory.as_ref().err().cloned();
        if let Some(reason) = &self.refused {
            tracing::warn!(port = self.basis.common.id, "frames are copied: {reason}");
        }
        Some(Terms { memory: memory.ok()?, from })
    }

    /// The running rings of a ring's direction, by pair.
    fn side(&mut self, index: usize) -> &mut BTreeSet<usize> {
        if index.is_multiple_of(2) { &mut self.receiving } else { &mut self.sending }
    }

    /// The workers that have relays of the port.
    fn hosts(&self) -> Vec<usize> {
        let hosts: BTreeSet<_> = self.homes.iter().map(|home| home.worker).collect();
        hosts.into_iter().collect()
    }
}

fn take_apart(relays: Vec<Relay>, stopping: Option<usize>) -> Parts {
    let mut parts = Parts::default();
    relays.into_iter().for_each(|relay| parts.append(relay.take_apart(stopping)));
    parts
}
