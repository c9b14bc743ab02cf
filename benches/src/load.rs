//! The load: guests' queues on one core, as fast as the back-end takes and gives.
//!
//! What is counted is what a guest sees: frames whose buffers came back, and frames that arrived. That is the one place where every
//! back-end can be measured by the same eyes.

use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::calm::STILL;
use crate::clock::{ticks, ticks_per_second};
use crate::driver::{OutOfOrder, Receiver, Ring, Transmitter};

/// Looks for a whole burst of received buffers before fewer are taken: who takes each as it comes keeps fetching the lines that the device is
/// writing.
const LOOKS: u32 = 16;
/// Longest wait for the first frames, before the warm-up.
const START: Duration = Duration::from_secs(3);

/// How hard, and how long.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Load {
    /// Frames in a burst of the generator.
    pub burst: u16,
    /// Seconds before anything is counted.
    pub warm_up: f64,
    /// Seconds that are counted.
    pub measured: f64,
}

/// What a run of the load found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Frames per second that the guest sent and got its buffers back for.
    pub sent_pps: f64,
    /// Frames per second that the guest received.
    pub received_pps: f64,
    /// Bits per second of the frames sent, without virtio-net headers and check sequences.
    pub sent_bits: f64,
    /// Bits per second of the frames received.
    pub received_bits: f64,
    /// Share of the time, 0 to 1, in which the generator found nothing to do: the back-end was what limited the rate when this is well
    /// above 0, and the generator when it is 0.
    pub waiting: f64,
    /// Share of the time, 0 to 1, in stretches without any progress that are longer than [`STILL`]: one of the cores did not run.
    pub still: f64,
    /// Share of the frames that were sent and did not arrive, where all of them should: through a loop, or in another guest.
    pub lost: Option<f64>,
}

/// Binds the calling thread to these cores.
pub fn pin(cores: &[usize]) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cores {cores:?}"))
}

/// Queues that are loaded together: frames are sent on some and received on others.
#[derive(Debug)]
pub struct Queues<'a, R> {
    /// Those that send.
    pub tx: Vec<&'a mut Transmitter<R>>,
    /// Those that receive.
    pub rx: Vec<&'a mut Receiver<R>>,
    /// Every frame that is sent should arrive.
    closed: bool,
    /// What had been sent and received when the load began.
    before: [u64; 2],
    /// Looks in a row at which nothing was there to be received by whole bursts.
    in_vain: u32,
}

#[derive(Debug, Clone, Copy)]
struct Counts {
    at: Instant,
    sent: u64,
    received: u64,
    bytes: [u64; 2],
    idle: Idle,
    ticks: u64,
}

/// Ticks in which the generator did nothing.
#[derive(Debug, Clone, Copy, Default)]
struct Idle {
    /// It found nothing to do.
    waited: u64,
    /// Stretches longer than [`STILL`], whether it looked or did not run.
    still: u64,
}

impl Idle {
    /// `waited` ticks without work, in a stretch of `stretch` that ends with some.
    fn add(&mut self, waited: u64, stretch: u64, long: u64) {
        self.waited += waited;
        if stretch > long {
            self.still += stretch;
        }
    }
}

impl<'a, R: Ring> Queues<'a, R> {
    /// These queues; when they are `closed`, every frame that is sent should arrive.
    pub fn new(tx: Vec<&'a mut Transmitter<R>>, rx: Vec<&'a mut Receiver<R>>, closed: bool) -> Self {
        Self { tx, rx, closed, before: [0; 2], in_vain: 0 }
    }

    /// Runs the load.
    pub fn run(&mut self, load: Load) -> Result<Measured, OutOfOrder> {
        let mut idle = Idle::default();
        self.start()?;
        self.run_for(load, load.warm_up, &mut idle)?;
        let before = self.counts(idle);
        self.run_for(load, load.measured, &mut idle)?;
        let after = self.counts(idle);
        let seconds = (after.at - before.at).as_secs_f64();
        let rate = |count: fn(&Counts) -> u64| (count(&after) - count(&before)) as f64 / seconds;
        let share = |ticks: u64| ticks as f64 / (after.ticks - before.ticks).max(1) as f64;
        Ok(Measured {
            sent_pps: rate(|counts| counts.sent),
            received_pps: rate(|counts| counts.received),
            sent_bits: 8.0 * rate(|counts| counts.bytes[0]),
            received_bits: 8.0 * rate(|counts| counts.bytes[1]),
            waiting: share(after.idle.waited - before.idle.waited),
            still: share(after.idle.still - before.idle.still),
            lost: if self.closed {
                self.settle()?;
                Some(self.lost())
            } else {
                None
            },
        })
    }

    /// Fills the first ring and shows all of it at once, again and again: what counts is the time until all of it is back.
    pub fn drain(&mut self, load: Load) -> Result<Measured, OutOfOrder> {
        self.start()?;
        self.settle()?;
        let Some(tx) = self.tx.first_mut() else { return Ok(Measured::default()) };
        let size = tx_size(tx);
        let (mut emptying, mut still, mut before) = (Duration::ZERO, Duration::ZERO, (0, 0));
        let (start, warm_up) = (Instant::now(), Duration::from_secs_f64(load.warm_up));
        let mut warm = false;
        while start.elapsed() < warm_up + Duration::from_secs_f64(load.measured) {
            if !warm && start.elapsed() >= warm_up {
                (warm, emptying, still, before) = (true, Duration::ZERO, Duration::ZERO, (tx.done, tx.bytes));
            }
            tx.send(size, tx.done);
            let shown = Instant::now();
            while tx.reclaim(size)? < size {
                // A back-end that stands still ends the measurement, not the run.
                if shown.elapsed() > START {
                    return Ok(Measured::default());
                }
                std::hint::spin_loop();
            }
            let took = shown.elapsed();
            emptying += took;
            if took > STILL {
                still += took;
            }
        }
        let rate = |count: u64| count as f64 / emptying.as_secs_f64().max(f64::MIN_POSITIVE);
        let (sent_pps, sent_bits) = (rate(tx.done - before.0), 8.0 * rate(tx.bytes - before.1));
        let still = still.as_secs_f64() / emptying.as_secs_f64().max(f64::MIN_POSITIVE);
        Ok(Measured { sent_pps, sent_bits, waiting: 1.0, still, ..Measured::default() })
    }

    /// Sends little until something has moved everywhere, and all of it is back: a back-end may need a while to take note of its guest.
    pub(crate) fn start(&mut self) -> Result<(), OutOfOrder> {
        let start = Instant::now();
        let little = Load { burst: 8, warm_up: 0.0, measured: 0.0 };
        while !self.all_move() && start.elapsed() < START {
            self.run_for(little, 0.002, &mut Idle::default())?;
        }
        if self.closed {
            self.settle()?;
        }
        self.before = self.passed();
        Ok(())
    }

    fn all_move(&self) -> bool {
        self.tx.iter().all(|tx| tx.done > 0) && (self.rx.iter().any(|rx| rx.frames > 0) || self.rx.is_empty())
    }

    fn counts(&self, idle: Idle) -> Counts {
        let sum = |tx: fn(&Transmitter<R>) -> u64, rx: fn(&Receiver<R>) -> u64| {
            (self.tx.iter().map(|queue| tx(queue)).sum::<u64>(), self.rx.iter().map(|queue| rx(queue)).sum::<u64>())
        };
        let (sent, received) = sum(|tx| tx.done, |rx| rx.frames);
        let (out, back) = sum(|tx| tx.bytes, |rx| rx.bytes);
        Counts { at: Instant::now(), sent, received, bytes: [out, back], idle, ticks: ticks() }
    }

    fn run_for(&mut self, load: Load, seconds: f64, idle: &mut Idle) -> Result<(), OutOfOrder> {
        let (start, length) = (Instant::now(), Duration::from_secs_f64(seconds));
        let long = (STILL.as_secs_f64() * ticks_per_second()) as u64;
        let mut now = ticks();
        // When something was done last.
        let mut since = now;
        while start.elapsed() < length {
            for _ in 0..64 {
                let begun = now;
                let worked = self.step(load.burst)?;
                now = ticks();
                if worked {
                    idle.add(begun - since, now - since, long);
                    since = now;
                } else {
                    std::hint::spin_loop();
                }
            }
        }
        idle.add(now - since, now - since, long);
        Ok(())
    }

    /// One look at every queue; whether anything was done.
    #[inline(always)]
    fn step(&mut self, burst: u16) -> Result<bool, OutOfOrder> {
        let mut worked = false;
        for tx in &mut self.tx {
            if tx.reclaim(burst)? >= burst {
                let stamp = tx.done + u64::from(tx.in_flight());
                tx.send(burst, stamp);
                worked = true;
            }
        }
        let (mut sum, mut received) = (0_u64, false);
        let least = if self.in_vain < LOOKS { burst } else { 1 };
        for rx in &mut self.rx {
            // A frame may take several buffers: so many bursts of them that receiving keeps up with sending.
            for _ in 0..8 {
                let buffers = rx.receive(least, burst, |stamp| sum = sum.wrapping_add(stamp))?;
                received |= buffers > 0;
                if buffers < burst {
                    break;
                }
            }
        }
        self.in_vain = if received { 0 } else { self.in_vain.saturating_add(1) };
        worked |= received;
        std::hint::black_box(sum);
        Ok(worked)
    }

    /// Sends nothing more and waits for what is under way.
    pub(crate) fn settle(&mut self) -> Result<(), OutOfOrder> {
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_millis(20) {
            for tx in &mut self.tx {
                if tx.in_flight() > 0 && tx.reclaim(tx_size(tx))? == tx_size(tx) {
                    last = Instant::now();
                }
            }
            for rx in &mut self.rx {
                if rx.receive(1, u16::MAX, |_| ())? > 0 {
                    last = Instant::now();
                }
            }
        }
        Ok(())
    }

    /// Frames that were sent, and that arrived, since the queues were made.
    fn passed(&self) -> [u64; 2] {
        let sent = self.tx.iter().map(|tx| tx.done + u64::from(tx.in_flight())).sum();
        [sent, self.rx.iter().map(|rx| rx.frames).sum()]
    }

    /// The share of the frames since the start that did not arrive.
    fn lost(&self) -> f64 {
        let [sent, received] = self.passed();
        let [sent, received] = [sent - self.before[0], received - self.before[1]];
        1.0 - received as f64 / sent.max(1) as f64
    }
}

fn tx_size<R: Ring>(tx: &Transmitter<R>) -> u16 {
    tx.ring().size()
}
