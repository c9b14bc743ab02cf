//! How soon a back-end that had nothing to do is at work again: after a kick, and after a frame came to its device.
//!
//! The guest is silent for a while, long enough for whoever sleeps to be asleep, and then sends. It spins meanwhile: its own core does
//! not sleep, so that only the back-end's waking is measured. Who polls all the time shows here what it pays for elsewhere.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use ringspan_testkit::wait;
use serde::Serialize;

use crate::cell::{Cell, Direction};
use crate::clock::{ticks, ticks_per_second};
use crate::driver::{Guest, OutOfOrder, PackedRing, Pair, Ring, SplitRing};
use crate::load::{self, Queues};
use crate::peer::{Backend, Peer};
use crate::report::Figure;
use crate::run::{Plan, guests, on_core, queues};

/// How long the guest is silent.
const SILENCE: Duration = Duration::from_millis(20);
/// Wakes of each kind and alternation.
const TIMES: usize = 12;
/// Who has not answered by then does not.
const LATEST: Duration = Duration::from_millis(200);
/// Full rings in a row, by which the last is as fast as it gets.
const WARM: usize = 6;
/// Wakes of a thread that does nothing else.
const BARE: usize = 50;

/// What woke the back-end, and what was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// One frame was sent: until its buffer was back.
    Taken,
    /// One frame was sent: until it was back through the loop device.
    Answered,
    /// A full ring was shown: how much later all of it was back than when the back-end was at work already.
    FullRate,
    /// A frame came to the device from a second guest: until the first had it.
    Received,
}

impl Kind {
    /// For a table.
    pub fn title(self) -> &'static str {
        match self {
            Self::Taken => "kick until the frame is taken",
            Self::Answered => "kick until the frame is back through the device",
            Self::FullRate => "kick until full rate",
            Self::Received => "frame at the device until the guest has it",
        }
    }
}

/// How long one back-end needs for that.
#[derive(Debug, Clone, Serialize)]
pub struct Wake {
    /// Whose.
    pub peer: Peer,
    /// What.
    pub kind: Kind,
    /// Microseconds: the middle.
    pub p50: f64,
    /// 99 in 100.
    pub p99: f64,
    /// Frames that did not come within a fifth of a second.
    pub lost: usize,
    /// All of them, in microseconds.
    pub samples: Vec<f64>,
}

impl Wake {
    fn of(peer: Peer, kind: Kind, seen: &[Option<f64>]) -> Option<Self> {
        let samples: Vec<f64> = seen.iter().flatten().copied().collect();
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted.get((share * sorted.len() as f64) as usize).or(sorted.last()).copied();
        Some(Self { peer, kind, p50: at(0.5)?, p99: at(0.99)?, lost: seen.len() - samples.len(), samples })
    }
}

/// What is asked of ringspan after a silence, as far as it was measured: to be at work within 50 us of a kick, and of a frame at a device
/// that can wake.
pub fn figures(wakes: &[Wake]) -> Vec<Figure> {
    let asked = [
        (Kind::FullRate, "full rate after a kick that ends a silence (median)"),
        (Kind::Received, "guest has the frame that ends its device's silence (median)"),
    ];
    let found = asked.into_iter().filter_map(|(kind, name)| {
        let wake = wakes.iter().find(|wake| wake.peer == Peer::Ringspan && wake.kind == kind)?;
        let note = (wake.lost > 0).then(|| format!("{} of {} did not come", wake.lost, wake.lost + wake.samples.len()));
        let value = wake.lost.eq(&0).then_some(wake.p50);
        Some(Figure { name: name.into(), value, spread: None, limit: 50.0, at_least: false, unit: "us", note })
    });
    found.collect()
}

/// Waits without letting the core go.
fn spin(time: Duration) {
    let end = ticks() + (time.as_secs_f64() * ticks_per_second()) as u64;
    while ticks() < end {
        std::hint::spin_loop();
    }
}

fn micros(ticks: u64) -> f64 {
    ticks as f64 / ticks_per_second() * 1e6
}

/// Tries until it gets something, or it is too late; when that was.
fn until<R>(mut done: impl FnMut() -> Result<bool, R>) -> Result<Option<u64>, R> {
    let latest = ticks() + (LATEST.as_secs_f64() * ticks_per_second()) as u64;
    loop {
        if done()? {
            return Ok(Some(ticks()));
        }
        if ticks() > latest {
            return Ok(None);
        }
        std::hint::spin_loop();
    }
}

/// By kind, each wake; those that took too long are absent.
type Seen = Vec<(Kind, Option<f64>)>;

impl<R: Ring> Queues<'_, R> {
    /// One frame after each silence, through the loop device.
    fn wake_by_one(&mut self, seen: &mut Seen) -> Result<(), OutOfOrder> {
        for _ in 0..TIMES {
            self.settle()?;
            spin(SILENCE);
            let (tx, rx) = (&mut self.tx[0], &mut self.rx[0]);
            let (size, frames) = (tx.ring().size(), rx.frames);
            let start = ticks();
            tx.send(1, 0);
            let taken = until(|| Ok(tx.reclaim(size)? == size))?;
            let answered = until(|| {
                rx.receive(1, u16::MAX, |_| ())?;
                Ok(rx.frames > frames)
            })?;
            seen.push((Kind::Taken, taken.map(|at| micros(at - start))));
            seen.push((Kind::Answered, answered.map(|at| micros(at - start))));
        }
        Ok(())
    }

    /// A full ring at once; ticks until all of it is back.
    fn full_ring(&mut self) -> Result<Option<u64>, OutOfOrder> {
        let (tx, rx) = (&mut self.tx[0], &mut self.rx[0]);
        let size = tx.ring().size();
        let start = ticks();
        tx.send(size, 0);
        let end = until(|| {
            rx.receive(1, u16::MAX, |_| ())?;
            Ok(tx.reclaim(size)? == size)
        })?;
        Ok(end.map(|end| end - start))
    }

    /// A full ring after each silence, beside those that follow it without one.
    fn wake_by_ring(&mut self, seen: &mut Seen) -> Result<(), OutOfOrder> {
        for _ in 0..TIMES {
            self.settle()?;
            spin(SILENCE);
            let first = self.full_ring()?;
            let mut warm = (0..WARM).map(|_| self.full_ring()).collect::<Result<Vec<_>, _>>()?;
            warm.sort();
            let late = match (first, warm[WARM / 2]) {
                (Some(first), Some(warm)) => Some(micros(first.saturating_sub(warm))),
                _ => None,
            };
            seen.push((Kind::FullRate, late));
        }
        Ok(())
    }
}

/// A frame from the second guest to the first, through the device that is between them.
fn wake_by_device<R: Ring>(guests: &mut [Guest<R>], seen: &mut Seen) -> Result<(), OutOfOrder> {
    let [first, second] = guests else { return Ok(()) };
    let Pair { tx, .. } = &mut second.pairs[0];
    let Pair { rx, .. } = &mut first.pairs[0];
    // The first few tell that both ends have taken note of each other.
    for count in 0..TIMES + 2 {
        spin(SILENCE);
        let (size, frames) = (tx.ring().size(), rx.frames);
        if tx.reclaim(size)? < size {
            continue;
        }
        let start = ticks();
        tx.send(1, 0);
        let received = until(|| {
            rx.receive(1, u16::MAX, |_| ())?;
            Ok(rx.frames > frames)
        })?;
        if count >= 2 {
            seen.push((Kind::Received, received.map(|at| micros(at - start))));
        }
    }
    Ok(())
}

/// How long the machine itself takes to wake who sleeps: no back-end can be sooner.
#[derive(Debug, Clone, Serialize)]
pub struct Bare {
    /// Microseconds: the middle.
    pub p50: f64,
    /// 99 in 100.
    pub p99: f64,
}

/// A thread bound to `core` sleeps until an eventfd is signalled from `guest_core`, after the same silence: until it runs.
///
/// # Errors
/// A thread cannot be bound to its core, or there is no eventfd.
pub fn bare(core: usize, guest_core: usize) -> anyhow::Result<Bare> {
    let (event, woken) = (EventFd::new()?, AtomicU64::new(0));
    let mut late = on_core(guest_core, || {
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                let bound = load::pin(&[core]);
                for _ in 0..BARE {
                    let mut events = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
                    poll(&mut events, PollTimeout::NONE)?;
                    woken.store(ticks(), Ordering::Release);
                    event.read()?;
                }
                bound
            });
            let mut late = vec![];
            for _ in 0..BARE {
                spin(SILENCE);
                let (before, start) = (woken.load(Ordering::Acquire), ticks());
                event.write(1)?;
                until(|| Ok::<_, anyhow::Error>(woken.load(Ordering::Acquire) != before))?;
                late.push(micros(woken.load(Ordering::Acquire).saturating_sub(start)));
            }
            sleeper.join().map_err(|_| anyhow::anyhow!("a thread that sleeps panicked"))??;
            Ok(late)
        })
    })?;
    late.sort_by(f64::total_cmp);
    let at = |share: f64| late[((share * late.len() as f64) as usize).min(late.len() - 1)];
    Ok(Bare { p50: at(0.5), p99: at(0.99) })
}

impl Plan {
    /// Wakes of every back-end in turns, by kicks, and with `devices` by their devices, too.
    pub fn wakes(&self, devices: bool, mut progress: impl FnMut(&str)) -> anyhow::Result<Vec<Wake>> {
        let looped = Cell::select(&["loop/split/64"])?[0];
        let between = Cell { read: true, ..Cell::select(&["tx/split/64"])?[0] };
        let mut wakes = vec![];
        for cell in [Some(looped), devices.then_some(between)].into_iter().flatten() {
            let mut backends = vec![];
            for (peer, backend) in self.backends(&cell)? {
                match backend {
                    Ok(backend) => backends.push((peer, backend, Seen::new())),
                    Err(error) => progress(&format!("wakes: {}: {error:#}", peer.title())),
                }
            }
            for round in 0..self.rounds {
                let mut turn: Vec<usize> = (0..backends.len()).collect();
                if round % 2 == 1 {
                    turn.reverse();
                }
                for index in turn {
                    wait::check_stopped()?;
                    let (peer, backend, seen) = &mut backends[index];
                    progress(&format!("wakes, round {}: {}", round + 1, peer.title()));
                    self.patience.wait(self.guest_core, self.place.core)?;
                    self.wake(backend, &cell, seen)?;
                }
            }
            for kind in [Kind::Taken, Kind::Answered, Kind::FullRate, Kind::Received] {
                for (peer, _, seen) in &backends {
                    let own: Vec<Option<f64>> = seen.iter().filter(|one| one.0 == kind).map(|one| one.1).collect();
                    wakes.extend(Wake::of(*peer, kind, &own));
                }
            }
        }
        Ok(wakes)
    }

    fn wake(&self, backend: &Backend, cell: &Cell, seen: &mut Seen) -> anyhow::Result<()> {
        fn run<R: Ring>(guests: &mut [Guest<R>], cell: &Cell, seen: &mut Seen) -> anyhow::Result<()> {
            if cell.direction != Direction::Loop {
                return Ok(wake_by_device(guests, seen)?);
            }
            let mut queues = queues(guests, cell);
            queues.start()?;
            queues.wake_by_one(seen)?;
            Ok(queues.wake_by_ring(seen)?)
        }
        backend.resume()?;
        let place = self.place;
        let result = on_core(self.guest_core, || {
            if cell.packed {
                guests::<PackedRing, _>(backend, cell, place, |guests| run(guests, cell, seen))
            } else {
                guests::<SplitRing, _>(backend, cell, place, |guests| run(guests, cell, seen))
            }
        });
        backend.pause()?;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_come_is_counted_and_not_averaged() {
        let seen: Vec<Option<f64>> = (1..=100).map(|n| Some(f64::from(n))).chain([None]).collect();
        let wake = Wake::of(Peer::Ringspan, Kind::FullRate, &seen).unwrap();
        assert_eq!((wake.p50, wake.p99, wake.lost), (51.0, 100.0, 1));
        assert!(Wake::of(Peer::Ovs, Kind::Taken, &[None]).is_none());
        // Nor does a median speak for those that did not come.
        let late = figures(&[wake]);
        assert_eq!((late.len(), late[0].keeps(), late[0].note.as_deref()), (1, false, Some("1 of 101 did not come")));
    }

    #[test]
    fn kicks_and_frames_at_a_device_have_a_verdict_each() {
        let wake = |peer, kind, us| Wake::of(peer, kind, &[Some(us)]).unwrap();
        let wakes = [
            wake(Peer::Testpmd, Kind::FullRate, 1.0),
            wake(Peer::Ringspan, Kind::Taken, 1.0),
            wake(Peer::Ringspan, Kind::FullRate, 51.0),
            wake(Peer::Ringspan, Kind::Received, 49.0),
        ];
        assert_eq!(figures(&wakes).iter().map(Figure::keeps).collect::<Vec<_>>(), [false, true]);
        assert!(figures(&wakes[..2]).is_empty());
    }
}
