//! Frames from one end to another and back at the same time, every byte checked: between two guests, or a guest and the far
//! end of its port's device.
//!
//! Each sending queue numbers its frames. They may come out of any queue of the other end (a kernel spreads what it sends over a
//! TAP's queues as it likes), each once, and those that come out of one queue are in the order in which they went in.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Guest;
use super::loopback::{self, Plan};
use crate::far_end::FarEnd;

/// Longest time without any frame that is still taken for slowness.
const STALLED: Duration = Duration::from_secs(10);
/// Added to a queue's number by the second end, so that the two directions cannot be taken for each other.
const BACK: u16 = 0x100;

/// One of the two ends.
#[derive(Debug)]
pub enum End<'a> {
    /// A guest with all its pairs.
    Guest(&'a mut Guest),
    /// The far end of a device.
    Far(&'a FarEnd),
}

/// Which way frames go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ways {
    /// From the first end to the second.
    There,
    /// From the second end to the first.
    Back,
    /// Both at once.
    Both,
}

impl End<'_> {
    /// Sending queues.
    fn queues(&self) -> usize {
        match self {
            Self::Guest(guest) => guest.tx.len(),
            Self::Far(_) => 1,
        }
    }

    /// Sends up to `burst` frames on a queue; how many. `make` makes the frame of this number within the burst in its
    /// buffer, and says how long it is.
    fn send(&mut self, queue: usize, burst: usize, make: impl Fn(usize, &mut [u8]) -> usize) -> Result<usize> {
        let mut frame = [0; 1 << 14];
        match self {
            Self::Guest(guest) => Ok(guest.tx[queue].transmit(burst, |i, room| {
                let length = make(i, &mut frame);
                room.put(0, &frame[..length]);
                length
            })),
            Self::Far(far) => {
                for i in 0..burst {
                    let length = make(i, &mut frame);
                    if !far.send(&frame[..length]).context("sending at the far end")? {
                        return Ok(i);
                    }
                }
                Ok(burst)
            }
        }
    }

    /// Takes what came, on all queues, with the queue's number.
    fn receive(&mut self, mut take: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        let mut frame = [0; 1 << 14];
        match self {
            Self::Guest(guest) => {
                for (pair, rx) in guest.rx.iter_mut().enumerate() {
                    let mut result = Ok(());
                    rx.receive(64, |received| {
                        received.copy_to(&mut frame);
                        if result.is_ok() {
                            result = take(pair, &frame[..received.length()]);
                        }
                    });
                    result.with_context(|| format!("on the ring of pair {pair}"))?;
                    let wrong = rx.counts().wrong + rx.counts().empty;
                    ensure!(wrong == 0, "{wrong} used elements of pair {pair} are wrong");
                }
                Ok(())
            }
            Self::Far(far) => {
                for _ in 0..64 {
                    let Some(length) = far.receive(&mut frame).context("receiving at the far end")? else { break };
                    take(0, frame.get(..length).context("a frame of more than 16 KiB")?)?;
                }
                Ok(())
            }
        }
    }
}

/// One direction: what each queue has sent, and what came of it.
struct Stream {
    mark: u16,
    plan: Plan,
    sent: Vec<u64>,
    /// Which of the frames have come, for each queue that sends.
    come: Vec<Vec<bool>>,
    /// The number that the next frame has at least, for each queue that sends and each that receives.
    next: Vec<Vec<u64>>,
    received: u64,
}

impl Stream {
    fn new(plan: Plan, from: &End, to: &End, mark: u16) -> Self {
        let queues = from.queues();
        let come = vec![vec![false; plan.frames as usize]; queues];
        let next = vec![vec![0; to.queues()]; queues];
        Self { mark, plan, sent: vec![0; queues], come, next, received: 0 }
    }

    fn sent(&self) -> u64 {
        self.sent.iter().sum()
    }

    fn done(&self) -> bool {
        self.received == self.plan.frames * self.sent.len() as u64
    }

    fn send(&mut self, end: &mut End) -> Result<()> {
        for queue in 0..self.sent.len() {
            let (first, plan, id) = (self.sent[queue], self.plan, queue as u16 + self.mark);
            let room = (plan.window as u64).saturating_sub(self.sent() - self.received).min(plan.frames - first);
            let sent = end.send(queue, plan.burst.min(room as usize), |i, frame| {
                let number = first + i as u64;
                let length = plan.length(id, number);
                loopback::make(&mut frame[..length], id, number);
                length
            })?;
            self.sent[queue] += sent as u64;
        }
        Ok(())
    }

    fn receive(&mut self, end: &mut End, expected: &mut [u8]) -> Result<()> {
        let Self { mark, plan, come, next, received, .. } = self;
        end.receive(|queue, got| {
            let Some((id, number)) = loopback::claims(got) else { return Ok(()) };
            let what = || format!("frame {number} of queue {id:#x}");
            let from = id.checked_sub(*mark).map(usize::from).filter(|&from| from < come.len());
            let from = from.with_context(|| format!("{} is on the wrong way", what()))?;
            let come = come[from].get_mut(number as usize).with_context(|| format!("{} was never sent", what()))?;
            let want = &mut expected[..plan.length(id, number)];
            loopback::make(want, id, number);
            ensure!(got == want, "{}", loopback::difference(id, number, want, got));
            ensure!(!std::mem::replace(come, true), "{} came twice", what());
            let next = &mut next[from][queue];
            ensure!(number >= *next || !plan.ordered, "{} came after frame {}", what(), *next - 1);
            *next = number + 1;
            *received += 1;
            Ok(())
        })
    }
}

/// Sends the plan's frames on every queue of the ends that send, with at most its window on their way in each direction, and checks
/// that all of them arrive, unchanged and, unless the plan says otherwise, in order. Returns how many went there and back.
pub fn run(first: &mut End, second: &mut End, ways: Ways, plan: Plan) -> Result<(u64, u64)> {
    let none = Plan { frames: 0, ..plan };
    let mut there = Stream::new(if ways == Ways::Back { none } else { plan }, first, second, 0);
    let mut back = Stream::new(if ways == Ways::There { none } else { plan }, second, first, BACK);
    let mut expected = vec![0; 1 << 16];
    let (mut last, mut before) = (Instant::now(), (0, 0));
    while !(there.done() && back.done()) {
        there.send(first)?;
        back.send(second)?;
        there.receive(second, &mut expected).context("there")?;
        back.receive(first, &mut expected).context("back")?;
        let now = (there.received, back.received);
        if now != before {
            (last, before) = (Instant::now(), now);
        } else if last.elapsed() > STALLED {
            let state = |stream: &Stream| format!("{} of {:?} arrived", stream.received, stream.sent);
            bail!("no frame for {STALLED:?}: there {}, back {}", state(&there), state(&back));
        } else {
            std::thread::yield_now();
        }
    }
    Ok((there.received, back.received))
}
