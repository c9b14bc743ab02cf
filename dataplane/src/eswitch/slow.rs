//! The thread between a NIC's switch and its representors. It alone makes system calls for frames, so that the worker makes none.
//!
//! Each port has a ring of its own in each direction, so that a guest whose frames all go to its representor takes nothing from the others.

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::tap::Tap;
use crate::nic::{Bell, Burst, Eal, Pool, WayIn, WayOut};

/// Frames that are moved for a port before the next one's turn.
const TURN: usize = 32;
/// Longest sleep, in milliseconds: it is ended when there is something to do.
const SLEEP: u16 = 1000;
/// How often a representor that was removed is made anew, until that succeeds.
const ANEW: Duration = Duration::from_secs(1);
/// Most buffers of a frame that is written; more is a frame that no TAP takes.
const MOST_PIECES: usize = 64;

/// What the thread counted for a port.
#[derive(Debug, Default)]
pub struct SlowCounters {
    /// Frames that the kernel took.
    pub sent: AtomicU64,
    /// Frames that it did not take.
    pub refused: AtomicU64,
    /// Frames from the representor that the switch had no room or no buffer for.
    pub missed: AtomicU64,
    /// Frames from the representor that are longer than the NIC's MTU allows.
    pub too_long: AtomicU64,
    /// Times that somebody removed the representor.
    pub removals: AtomicU64,
    /// It is not there now.
    pub missing: AtomicBool,
}

/// A port, as the thread sees it.
pub struct SlowPort {
    /// The representor; `None` while somebody has removed it.
    tap: Option<Tap>,
    /// Its name, ...
    name: String,
    /// ... and its MTU.
    mtu: u16,
    /// Longest frame in bytes that the switch takes.
    max_frame: usize,
    /// What the switch gives to it.
    to_tap: WayOut,
    /// What comes out of it.
    from_tap: WayIn,
    counters: Arc<SlowCounters>,
    /// It was said that it cannot be made anew.
    told: bool,
}

/// The running thread. It ends when this is dropped.
pub struct SlowPath {
    stop: Arc<AtomicBool>,
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

impl SlowPath {
    /// Starts the thread. It hears `bell`, and rings `switch`.
    ///
    /// # Errors
    /// As the kernel has them for threads.
    pub fn start(
        name: &str,
        ports: Vec<SlowPort>,
        pool: Pool,
        bell: Arc<Bell>,
        switch: Arc<Bell>,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, hears) = (Arc::clone(&stop), Arc::clone(&bell));
        let thread = std::thread::Builder::new().name(format!("taps-{name}")).spawn(move || {
            // Without, buffers come from the pool's shared ring, which works too.
            let _registered = Eal::started().and_then(|eal| eal.register_thread().ok());
            run(ports, &pool, &hears, &switch, &flag);
        })?;
        Ok(Self { stop, bell, thread: Some(thread) })
    }
}

impl Drop for SlowPath {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.bell.ring();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the representors panicked");
        }
    }
}

fn run(mut ports: Vec<SlowPort>, pool: &Pool, bell: &Bell, switch: &Bell, stop: &AtomicBool) {
    let mut burst = Burst::new();
    let mut readable = vec![true; ports.len()];
    let mut anew_at = Instant::now();
    while !stop.load(Ordering::Acquire) {
        let mut moved = 0;
        for (port, readable) in ports.iter_mut().zip(&readable) {
            moved += port.write(&mut burst);
            if *readable {
                moved += port.read(&mut burst, pool);
            }
        }
        if moved > 0 {
            switch.ring();
        } else {
            bell.listen();
            // What came before the bell was listened to.
            if ports.iter_mut().map(|port| port.write(&mut burst)).sum::<usize>() > 0 || stop.load(Ordering::Acquire) {
                bell.ignore();
                continue;
            }
        }
        if ports.iter().any(|port| port.tap.is_none()) && Instant::now() >= anew_at {
            ports.iter_mut().for_each(SlowPort::make_anew);
            anew_at = Instant::now() + ANEW;
        }
        wait(&mut ports, &mut readable, bell, if moved > 0 { PollTimeout::ZERO } else { PollTimeout::from(SLEEP) });
        bell.ignore();
    }
}

/// Waits until there is something to do, and says which TAPs have a frame. One that is no more is let go of.
fn wait(ports: &mut [SlowPort], readable: &mut [bool], bell: &Bell, timeout: PollTimeout) {
    let taps = ports.iter().enumerate().filter_map(|(place, port)| Some((place, port.tap.as_ref()?.as_fd())));
    let (places, fds): (Vec<_>, Vec<_>) = taps.unzip();
    let mut set: Vec<_> = fds.into_iter().chain([bell.fd()]).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    let polled = poll(&mut set, timeout).is_ok();
    if set.last().is_some_and(|fd| fd.any().unwrap_or(false)) {
        bell.hush();
    }
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
    let events: Vec<_> = set.iter().map(|fd| fd.revents().filter(|_| polled).unwrap_or(PollFlags::empty())).collect();
    readable.fill(false);
    for (place, events) in places.into_iter().zip(events) {
        readable[place] = events.contains(PollFlags::POLLIN);
        if events.intersects(gone) {
            ports[place].let_go();
        }
    }
}

impl SlowPort {
    /// A port with this representor and this MTU, that moves frames of `max_frame` bytes at most.
    pub fn new(
        tap: Tap,
        (mtu, max_frame): (u16, usize),
        (to_tap, from_tap): (WayOut, WayIn),
        counters: Arc<SlowCounters>,
    ) -> Self {
        let name = tap.name().to_string();
        Self { tap: Some(tap), name, mtu, max_frame, to_tap, from_tap, counters, told: false }
    }

    /// Gives the representor what the switch has for it. Returns how many frames those were.
    fn write(&mut self, burst: &mut Burst) -> usize {
        let count = self.to_tap.receive(burst);
        let mut sent = 0;
        for frame in burst.iter() {
            let Some(tap) = &self.tap else { break };
            let mut pieces = [IoSlice::new(&[]); MOST_PIECES];
            let segments = frame.segment_count();
            let fits = segments <= MOST_PIECES;
            pieces.iter_mut().zip(frame.segments()).for_each(|(piece, bytes)| *piece = IoSlice::new(bytes));
            sent += u64::from(fits && tap.write(&pieces[..segments.min(MOST_PIECES)]));
        }
        burst.clear();
        self.counters.sent.fetch_add(sent, Ordering::Relaxed);
        self.counters.refused.fetch_add(count as u64 - sent, Ordering::Relaxed);
        count
    }

    /// Gives the switch what came out of the representor. Returns how many frames those were.
    fn read(&mut self, burst: &mut Burst, pool: &Pool) -> usize {
        let Some(tap) = &self.tap else { return 0 };
        let (mut count, mut missed, mut too_long) = (0, 0, 0);
        if burst.allocate(pool, TURN) {
            while count + too_long < TURN {
                let mut frame = burst.frame_mut(count);
                let Some(len) = tap.read(frame.buffer()) else { break };
                // One that fills the buffer may have been longer.
                if len > self.max_frame || len == frame.room() {
                    too_long += 1;
                    continue;
                }
                frame.set_len(len);
                count += 1;
            }
            burst.truncate(count);
            self.from_tap.send(burst, TURN);
            missed = burst.len();
            burst.clear();
        } else if tap.read(&mut [0; 64]).is_some() {
            // Taken out, or the TAP would be readable again at once.
            (count, missed) = (1, 1);
        }
        self.counters.missed.fetch_add(missed as u64, Ordering::Relaxed);
        self.counters.too_long.fetch_add(too_long as u64, Ordering::Relaxed);
        count + too_long
    }

    /// Lets go of a TAP that somebody has removed: it would be readable for ever.
    fn let_go(&mut self) {
        tracing::warn!("representor {} was removed by somebody: it is made anew", self.name);
        (self.tap, self.told) = (None, false);
        self.counters.removals.fetch_add(1, Ordering::Relaxed);
        self.counters.missing.store(true, Ordering::Relaxed);
    }

    /// Makes a TAP anew that was removed. What somebody had configured on it is lost.
    fn make_anew(&mut self) {
        if self.tap.is_some() {
            return;
        }
        match Tap::open(&self.name, self.mtu) {
            Ok(tap) => {
                tracing::info!("representor {} is there again", self.name);
                self.tap = Some(tap);
                self.counters.missing.store(false, Ordering::Relaxed);
            }
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    tracing::error!("representor {} cannot be made anew, which is tried again: {error}", self.name);
                }
            }
        }
    }
}
