//! Guests that send and check on a thread of their own, while a test does something else to the lane.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::Guest;
use super::loopback::{Check, Passed, Plan};

/// Longest time until the last frames in flight must be back.
const LAST: Duration = Duration::from_secs(10);
/// Sleep when nothing moved: the machine may have fewer cores than there are threads.
const NAP: Duration = Duration::from_micros(50);

/// Guests whose ports return every frame, kept busy until [`Traffic::stop`].
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    frames: Arc<AtomicU64>,
    thread: Option<JoinHandle<anyhow::Result<Vec<Passed>>>>,
}

impl Traffic {
    /// Starts with these guests, the first pair of each; `plan.frames` does not matter.
    pub fn start(guests: Vec<Guest>, plan: Plan) -> Self {
        let (stop, frames) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = {
            let (stop, frames) = (Arc::clone(&stop), Arc::clone(&frames));
            std::thread::spawn(move || run(guests, plan, &stop, &frames))
        };
        Self { stop, frames, thread: Some(thread) }
    }

    /// Frames that came back and were right so far, of all guests.
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Waits until this many more frames came back.
    pub fn wait_more(&self, frames: u64, timeout: Duration) -> anyhow::Result<()> {
        let (start, before) = (Instant::now(), self.frames());
        while self.frames() < before + frames {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            if ended || start.elapsed() > timeout {
                let came = self.frames() - before;
                bail!("{came} of {frames} frames came back within {timeout:?}; the traffic has ended: {ended}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Sends no more, waits for what is in flight; what each guest has sent and got back, all of it.
    ///
    /// # Errors
    /// A frame was lost, doubled, changed or out of order at any time since the start.
    pub fn stop(mut self) -> anyhow::Result<Vec<Passed>> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("stopped twice")?;
        thread.join().map_err(|_| anyhow::anyhow!("the traffic thread panicked"))?
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(guests: Vec<Guest>, plan: Plan, stop: &AtomicBool, frames: &AtomicU64) -> anyhow::Result<Vec<Passed>> {
    let plan = Plan { frames: u64::MAX, ..plan };
    let mut guests: Vec<(Guest, Check)> = guests.into_iter().map(|guest| (guest, Check::new(plan, 0))).collect();
    let mut stopping: Option<Instant> = None;
    loop {
        if stopping.is_none() && stop.load(Ordering::Relaxed) {
            stopping = Some(Instant::now());
        }
        let (mut moved, mut in_flight) = (0, 0);
        for (number, (guest, check)) in guests.iter_mut().enumerate() {
            if stopping.is_none() {
                moved += check.send(guest);
            }
            let received = check.receive(guest).with_context(|| format!("guest {number}"))?;
            frames.fetch_add(received as u64, Ordering::Relaxed);
            moved += received;
            in_flight += check.in_flight();
        }
        match stopping {
            Some(_) if in_flight == 0 => return Ok(guests.iter().map(|(_, check)| check.passed()).collect()),
            Some(since) if since.elapsed() > LAST => {
                let lost: Vec<u64> = guests.iter().map(|(_, check)| check.in_flight()).collect();
                bail!("frames that never came back, by guest: {lost:?}");
            }
            _ if moved == 0 => std::thread::sleep(NAP),
            _ => {}
        }
    }
}
