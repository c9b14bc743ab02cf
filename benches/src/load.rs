//! The load: one guest, one core, one direction, measured at the guest's ring.
//!
//! What is counted is used elements: descriptors that the back-end has taken a frame from, or put one into. That is the one
//! place where every back-end can be measured by the same eyes.

use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use ringspan_testkit::guest::{Guest, Receiver, Transmitter};
use serde::{Deserialize, Serialize};

/// Which way packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The guest sends, the device swallows.
    GuestToNull,
    /// The guest fills its whole ring, shows it at once, and what is timed is how long the back-end takes to empty it: the
    /// back-end alone, however slow the generator is.
    BacklogToNull,
    /// The device makes frames, the guest receives.
    NullToGuest,
}

impl Direction {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::GuestToNull, Self::BacklogToNull, Self::NullToGuest];

    /// For a table.
    pub fn title(self) -> &'static str {
        match self {
            Self::GuestToNull => "guest to null",
            Self::BacklogToNull => "full ring to null",
            Self::NullToGuest => "null to guest",
        }
    }
}

/// How hard, and how long.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Load {
    /// Bytes of a frame, without the check sequence.
    pub frame: usize,
    /// Frames in a burst of the generator.
    pub burst: usize,
    /// Seconds before anything is counted.
    pub warm_up: f64,
    /// Seconds that are counted.
    pub measured: f64,
}

/// What a run of the load found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Packets per second.
    pub pps: f64,
    /// Share of the time, 0 to 1, in which the generator had nothing to do: the back-end was what limited the rate when this is well
    /// above 0, and the generator when it is 0.
    pub waiting: f64,
}

/// Binds the calling thread to one core.
pub fn pin(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Runs the load on the guest's first pair: what came of it.
pub fn run(guest: &mut Guest, direction: Direction, load: Load) -> Measured {
    match direction {
        Direction::GuestToNull => transmit(&mut guest.tx[0], load),
        Direction::BacklogToNull => drain(&mut guest.tx[0], load),
        Direction::NullToGuest => receive(&mut guest.rx[0], load),
    }
}

/// Fills the ring, shows it at once, and times until all of it was given back; again and again.
pub fn drain(tx: &mut Transmitter, load: Load) -> Measured {
    let frame = vec![0xa5; load.frame];
    let mut once = || {
        let sent = tx.transmit(usize::MAX, |_, room| {
            room.put(0, &frame);
            frame.len()
        });
        let shown = Instant::now();
        while tx.in_flight() > 0 {
            tx.reclaim();
            std::hint::spin_loop();
        }
        (sent as u64, shown.elapsed())
    };
    let warm_up = Instant::now();
    while warm_up.elapsed() < Duration::from_secs_f64(load.warm_up) {
        once();
    }
    let (start, mut frames, mut emptying) = (Instant::now(), 0, Duration::ZERO);
    while start.elapsed() < Duration::from_secs_f64(load.measured) {
        let (sent, took) = once();
        frames += sent;
        emptying += took;
    }
    Measured { pps: frames as f64 / emptying.as_secs_f64(), waiting: 1.0 }
}

/// Sends as fast as the ring takes, and counts what was given back.
pub fn transmit(tx: &mut Transmitter, load: Load) -> Measured {
    // The usual size as a constant: a copy of known length is a few instructions instead of a call.
    match load.frame {
        64 => transmit_copies(tx, load, &mut [0xa5; 64]),
        length => transmit_copies(tx, load, vec![0xa5; length].as_mut_slice()),
    }
}

#[inline(always)]
fn transmit_copies<F: AsMut<[u8]> + AsRef<[u8]> + ?Sized>(tx: &mut Transmitter, load: Load, frame: &mut F) -> Measured {
    frame.as_mut()[..14]
        .copy_from_slice(&[0x52, 0x54, 0, 0x12, 0x34, 0x56, 0x52, 0x54, 0, 0x65, 0x43, 0x21, 0x88, 0xb5]);
    let mut number = 0_u64;
    rate(load, || {
        // Each frame is written anew, all of it, as the stack of a real guest would do.
        let sent = tx.transmit(load.burst, |i, room| {
            room.put(0, frame.as_ref());
            room.put(14, &(number + i as u64).to_le_bytes());
            frame.as_ref().len()
        });
        number += sent as u64;
        if sent < load.burst {
            std::hint::spin_loop();
        }
        (tx.counts().used, sent > 0)
    })
}

/// Receives as fast as frames come, and touches each.
pub fn receive(rx: &mut Receiver, load: Load) -> Measured {
    let mut sum = 0_u64;
    let measured = rate(load, || {
        let received = rx.receive(load.burst, |frame| sum = sum.wrapping_add(frame.first_long()));
        if received == 0 {
            std::hint::spin_loop();
        }
        (rx.counts().used, received > 0)
    });
    std::hint::black_box(sum);
    measured
}

/// Calls `step` again and again, which returns a count and whether there was anything to do: by how much the count grows in a
/// second, and how often there was nothing.
fn rate(load: Load, mut step: impl FnMut() -> (u64, bool)) -> Measured {
    let mut run_for = |seconds: f64| {
        let length = Duration::from_secs_f64(seconds);
        let (mut busy, mut waiting) = (0, 0);
        let (start, mut last) = (Instant::now(), ticks());
        loop {
            let mut count = 0;
            for _ in 0..64 {
                let worked;
                (count, worked) = step();
                let now = ticks();
                *(if worked { &mut busy } else { &mut waiting }) += now.wrapping_sub(last);
                last = now;
            }
            let elapsed = start.elapsed();
            if elapsed >= length {
                return (count, elapsed.as_secs_f64(), waiting as f64 / (busy + waiting) as f64);
            }
        }
    };
    let (before, _, _) = run_for(load.warm_up);
    let (after, seconds, waiting) = run_for(load.measured);
    Measured { pps: (after - before) as f64 / seconds, waiting }
}

/// A clock that is cheap to read; only ratios of its differences are used.
#[inline]
fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has a time stamp counter that programs may read.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}
