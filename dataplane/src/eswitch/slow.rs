//! The thread between a NIC's switch and its representors. It alone makes system calls for frames, so that the worker makes none.
//!
//! Each port has a ring of its own in each direction, so that a guest whose frames all go to its representor takes nothing from the others.

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::tap::Tap;
use crate::nic::{Bell, Burst, Eal, Pool, WayIn, WayOut};

/// Frames that are moved for a port before the next one's turn.
const TURN: usize = 32;
/// Longest sleep, in milliseconds: it is ended when there is something to do.
const SLEEP: u16 = 1000;
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
}

/// A port, as the thread sees it.
pub struct SlowPort {
    /// The representor.
    pub tap: Tap,
    /// What the switch gives to it.
    pub to_tap: WayOut,
    /// What comes out of it.
    pub from_tap: WayIn,
    /// What is counted.
    pub counters: Arc<SlowCounters>,
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
        wait(&ports, &mut readable, bell, if moved > 0 { PollTimeout::ZERO } else { PollTimeout::from(SLEEP) });
        bell.ignore();
    }
}

/// Waits until there is something to do, and says which TAPs have a frame.
fn wait(ports: &[SlowPort], readable: &mut [bool], bell: &Bell, timeout: PollTimeout) {
    let taps = ports.iter().map(|port| port.tap.as_fd());
    let mut set: Vec<_> = taps.chain([bell.fd()]).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    let polled = poll(&mut set, timeout);
    for (readable, fd) in readable.iter_mut().zip(&set) {
        *readable = polled.is_ok() && fd.any().unwrap_or(false);
    }
    if set.last().is_some_and(|fd| fd.any().unwrap_or(false)) {
        bell.hush();
    }
}

impl SlowPort {
    /// Gives the representor what the switch has for it. Returns how many frames those were.
    fn write(&mut self, burst: &mut Burst) -> usize {
        let count = self.to_tap.receive(burst);
        let mut sent = 0;
        for frame in burst.iter() {
            let mut pieces = [IoSlice::new(&[]); MOST_PIECES];
            let segments = frame.segment_count();
            let fits = segments <= MOST_PIECES;
            pieces.iter_mut().zip(frame.segments()).for_each(|(piece, bytes)| *piece = IoSlice::new(bytes));
            sent += u64::from(fits && self.tap.write(&pieces[..segments.min(MOST_PIECES)]));
        }
        burst.clear();
        self.counters.sent.fetch_add(sent, Ordering::Relaxed);
        self.counters.refused.fetch_add(count as u64 - sent, Ordering::Relaxed);
        count
    }

    /// Gives the switch what came out of the representor. Returns how many frames those were.
    fn read(&mut self, burst: &mut Burst, pool: &Pool) -> usize {
        let mut count = 0;
        let mut missed = 0;
        if burst.allocate(pool, TURN) {
            while count < TURN {
                let mut frame = burst.frame_mut(count);
                let Some(len) = self.tap.read(frame.buffer()) else { break };
                frame.set_len(len);
                count += 1;
            }
            burst.truncate(count);
            self.from_tap.send(burst, TURN);
            missed = burst.len();
            burst.clear();
        } else if self.tap.read(&mut [0; 64]).is_some() {
            // Taken out, or the TAP would be readable again at once.
            (count, missed) = (1, 1);
        }
        self.counters.missed.fetch_add(missed as u64, Ordering::Relaxed);
        count
    }
}
