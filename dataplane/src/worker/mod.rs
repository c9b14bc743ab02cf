//! A worker: one pinned thread that runs relays, and the way in which changes reach it.
//!
//! The thread owns its relays alone. Whoever wants to change something sends a call, a closure that the worker runs
//! between two bursts, where nothing is half done; the sender waits for its result. So a change needs no lock on the
//! packet path, and when [`Worker::call`] returns, nothing of what was taken away is touched any more.

mod balance;
mod clock;
mod idle;
mod numa;
mod rounds;
mod steps;
mod watchdog;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use crossbeam::channel::{self, Receiver, Sender};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::eswitch::switch::Switch;
use crate::nic::{Eal, SignalledWorker};
use crate::relay::Relay;
pub use balance::{Balance, Move, Part};
pub use clock::{millis, ticks, ticks_in};
pub use idle::Watch;
use idle::{Idle, Signalled, Wake};
pub use numa::{Candidate, Nodes, place};
use rounds::{Members, Turn};
use steps::Steps;
pub use watchdog::{PERIOD as WATCHDOG_PERIOD, Pulse, Watchdog, interruptibly};

/// Why a worker could not be started or asked.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The core cannot be used.
    #[error(
        "core {core} cannot be used by a worker: {error}; choose one that exists and that this process is allowed to use"
    )]
    Core {
        /// The core.
        core: u16,
        /// The operating system's reason.
        error: nix::Error,
    },
    /// The operating system refused something else.
    #[error("cannot start the worker on core {core}: {error}")]
    Start {
        /// The core.
        core: u16,
        /// The operating system's reason.
        error: std::io::Error,
    },
    /// The worker has ended.
    #[error("the worker on core {0} has ended: the lane is stopping")]
    Gone(u16),
}

type Call = Box<dyn FnOnce(&mut Running) + Send>;

/// What a call may touch: the worker's relays and switches, and what wakes it.
pub struct Running {
    /// The relays.
    pub relays: Vec<Relay>,
    /// The switches of software NICs.
    pub switches: Vec<Switch>,
    /// Wakes the worker when a guest kicks or a device has a frame.
    pub watch: Watch,
}

impl Running {
    /// Takes the relays of a port away, or the one of that share.
    pub fn detach(&mut self, port: u64, share: Option<usize>) -> Vec<Relay> {
        let wanted = |relay: &mut Relay| relay.port() == port && share.is_none_or(|share| relay.share() == share);
        let mut relays: Vec<_> = self.relays.extract_if(.., wanted).collect();
        relays.iter_mut().for_each(|relay| relay.unwatch(&self.watch));
        relays
    }

    /// Takes a switch on.
    pub fn attach_switch(&mut self, mut switch: Switch) {
        switch.watch(&self.watch);
        self.switches.push(switch);
    }

    /// Takes a switch away.
    pub fn detach_switch(&mut self, id: u64) -> Option<Switch> {
        let at = self.switches.iter().position(|switch| switch.id() == id)?;
        let mut switch = self.switches.remove(at);
        switch.unwatch(&self.watch);
        Some(switch)
    }

    /// A switch that is here.
    pub fn switch(&mut self, id: u64) -> Option<&mut Switch> {
        self.switches.iter_mut().find(|switch| switch.id() == id)
    }

    fn count(&self) -> usize {
        self.relays.len() + self.switches.len()
    }

    /// Takes relays on.
    pub fn attach(&mut self, mut relays: Vec<Relay>) {
        relays.iter_mut().for_each(|relay| relay.watch(&self.watch));
        self.relays.append(&mut relays);
    }
}

/// A handle on a worker. Dropping the last one ends the thread.
pub struct Worker {
    core: u16,
    node: Option<u16>,
    calls: Option<Sender<Call>>,
    waiting: Arc<AtomicBool>,
    wake: Wake,
    shares: AtomicUsize,
    pulse: Arc<Pulse>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a worker on `core`. With `busy_poll` it spins when there is nothing to do.
    pub fn start(core: u16, eal: Eal, busy_poll: bool) -> Result<Self, WorkerError> {
        let failed = move |error| WorkerError::Start { core, error };
        let (calls, inbox) = channel::unbounded::<Call>();
        let (started, outcome) = channel::bounded(1);
        let waiting = Arc::new(AtomicBool::new(false));
        let (idle, wake) = Idle::new(busy_poll).map_err(|errno| failed(errno.into()))?;
        let flag = Arc::clone(&waiting);
        let pulse = Arc::new(Pulse::default());
        let own_pulse = Arc::clone(&pulse);
        let thread = std::thread::Builder::new()
            .name(format!("worker-{core}"))
            .spawn(move || {
                let ready = pin(core)
                    .and_then(|()| eal.register_thread().map_err(|error| failed(std::io::Error::other(error))));
                match ready {
                    Ok(_registered) => {
                        let _signalled = SignalledWorker::new();
                        // Nobody waits any more only when the starter has died.
                        let _ = started.send(Ok(()));
                        own_pulse.take();
                        run(idle, &inbox, &flag, &own_pulse);
                        own_pulse.end();
                    }
                    Err(error) => drop(started.send(Err(error))),
                }
            })
            .map_err(failed)?;
        outcome.recv().map_err(|_| WorkerError::Gone(core))??;
        let node = Nodes::of_this_machine().of(core);
        Ok(Self {
            core,
            node,
            calls: Some(calls),
            waiting,
            wake,
            shares: AtomicUsize::new(0),
            pulse,
            thread: Some(thread),
        })
    }

    /// The core it is pinned to.
    pub fn core(&self) -> u16 {
        self.core
    }

    /// The NUMA node of its core, where the machine has several.
    pub fn node(&self) -> Option<u16> {
        self.node
    }

    /// What its watchdog looks at.
    pub fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// How many shares of ports it has; a new one goes where there are fewest.
    pub fn shares(&self) -> usize {
        self.shares.load(Ordering::Relaxed)
    }

    /// Notes that it has one more.
    pub fn got_share(&self) {
        self.shares.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that it has one less.
    pub fn lost_share(&self) {
        self.shares.fetch_sub(1, Ordering::Relaxed);
    }

    /// Runs `change` on the worker between two bursts, and returns what it returned.
    pub fn call<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Running) -> T + Send + 'static,
    ) -> Result<T, WorkerError> {
        self.begin(change)?.wait()
    }

    /// As [`Worker::call`], and the caller may do something else before it waits. What was begun first is done first.
    pub fn begin<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Running) -> T + Send + 'static,
    ) -> Result<Begun<T>, WorkerError> {
        let gone = || WorkerError::Gone(self.core);
        let (answer, result) = channel::bounded(1);
        let call: Call = Box::new(move |running| {
            // Who does not wait for it does not want it.
            let _ = answer.send(change(running));
        });
        self.calls.as_ref().ok_or_else(gone)?.send(call).map_err(|_| gone())?;
        self.waiting.store(true, Ordering::Release);
        self.wake.wake();
        Ok(Begun { result, core: self.core })
    }
}

/// What a worker was asked to do.
#[derive(Debug)]
#[must_use = "what it returns is dropped by the worker otherwise"]
pub struct Begun<T> {
    result: Receiver<T>,
    core: u16,
}

impl<T> Begun<T> {
    /// Waits until it is done; what it returned.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn wait(self) -> Result<T, WorkerError> {
        self.result.recv().map_err(|_| WorkerError::Gone(self.core))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.calls = None;
        self.waiting.store(true, Ordering::Release);
        self.wake.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(core = self.core, "a worker panicked");
        }
    }
}

fn pin(core: u16) -> Result<(), WorkerError> {
    let mut set = CpuSet::new();
    set.set(core.into())
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|error| WorkerError::Core { core, error })
}

/// The loop. One relaxed load a round tells whether a call waits; a round without a packet leads towards sleep.
fn run(idle: Idle, inbox: &Receiver<Call>, waiting: &AtomicBool, pulse: &Pulse) {
    let mut running = Running { relays: Vec::new(), switches: Vec::new(), watch: idle.watch() };
    let mut steps = Steps::new(idle);
    loop {
        if waiting.load(Ordering::Relaxed) && waiting.swap(false, Ordering::Acquire) {
            if answer(inbox, &mut running) == Inbox::Closed {
                break;
            }
            steps.changed(running.count());
        }
        pulse.beat();
        let count = running.count();
        steps.step(&mut running, count, waiting);
    }
}

/// Relays first, then switches.
impl Members for Running {
    #[inline]
    fn run(&mut self, place: usize) -> usize {
        match self.relays.get_mut(place) {
            Some(relay) => relay.run(),
            None => self.switches[place - self.relays.len()].run(),
        }
    }

    #[inline]
    fn took(&mut self, place: usize, ticks: u64) {
        match self.relays.get_mut(place) {
            Some(relay) => relay.took(ticks),
            None => self.switches[place - self.relays.len()].load().add(ticks),
        }
    }
}

impl Signalled for Running {
    fn listen(&mut self) -> bool {
        let relays = self.relays.listen();
        self.switches.listen() | relays
    }

    fn can_wake(&self) -> bool {
        self.relays.can_wake() && self.switches.can_wake()
    }

    fn held_for(&self) -> Option<u64> {
        self.relays.held_for()
    }

    fn look_for_signals(&mut self) {
        self.relays.look_for_signals();
        self.switches.look_for_signals();
    }

    fn ignore_signals(&mut self) {
        self.relays.ignore_signals();
        self.switches.ignore_signals();
    }

    fn ignore_frames(&mut self) {
        self.relays.ignore_frames();
        self.switches.ignore_frames();
    }
}

impl Signalled for Switch {
    fn listen(&mut self) -> bool {
        Switch::listen(self)
    }

    fn can_wake(&self) -> bool {
        Switch::can_wake(self)
    }

    fn look_for_signals(&mut self) {
        Switch::look_for_signals(self);
    }

    fn ignore_signals(&mut self) {
        Switch::ignore_signals(self);
    }

    fn ignore_frames(&mut self) {
        Switch::ignore_signals(self);
    }
}

impl Turn for Relay {
    #[inline]
    fn run(&mut self) -> usize {
        Relay::run(self)
    }

    #[inline]
    fn took(&mut self, ticks: u64) {
        self.load().add(ticks);
    }
}

impl Signalled for Relay {
    fn listen(&mut self) -> bool {
        Relay::listen(self)
    }

    fn can_wake(&self) -> bool {
        Relay::can_wake(self)
    }

    fn held_for(&self) -> Option<u64> {
        Relay::held_for(self)
    }

    fn look_for_signals(&mut self) {
        Relay::look_for_signals(self);
    }

    fn ignore_signals(&mut self) {
        Relay::ignore_signals(self);
    }

    fn ignore_frames(&mut self) {
        Relay::ignore_frames(self);
    }
}

#[derive(PartialEq, Eq)]
enum Inbox {
    Open,
    Closed,
}

fn answer(inbox: &Receiver<Call>, running: &mut Running) -> Inbox {
    // Calls that come meanwhile wait for the next round: who begins one while another is done would keep packets waiting.
    for _ in 0..inbox.len().max(1) {
        match inbox.try_recv() {
            Ok(call) => call(running),
            Err(channel::TryRecvError::Empty) => return Inbox::Open,
            Err(channel::TryRecvError::Disconnected) => return Inbox::Closed,
        }
    }
    Inbox::Open
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_comes_while_another_is_answered_waits_for_a_round_of_packets() {
        let (idle, _wake) = Idle::new(false).unwrap();
        let mut running = Running { relays: Vec::new(), switches: Vec::new(), watch: idle.watch() };
        let (calls, inbox) = channel::unbounded::<Call>();
        let again = calls.clone();
        calls.send(Box::new(move |_| again.send(Box::new(|_| ())).unwrap())).unwrap();
        assert!(answer(&inbox, &mut running) == Inbox::Open);
        assert_eq!(inbox.len(), 1, "it is still there");
        assert!(answer(&inbox, &mut running) == Inbox::Open);
        drop(calls);
        assert!(answer(&inbox, &mut running) == Inbox::Closed);
    }
}
