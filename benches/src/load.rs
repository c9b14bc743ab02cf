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
    /// The device makes frames, the guest receives.
    NullToGuest,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::GuestToNull, Self::NullToGuest];

    /// For a table.
    pub fn title(self) -> &'static str {
        match self {
            Self::GuestToNull => "guest to null",
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

/// Binds the calling thread to one core.
pub fn pin(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Runs the load on the guest's first pair; the result is in packets per second.
pub fn run(guest: &mut Guest, direction: Direction, load: Load) -> f64 {
    match direction {
        Direction::GuestToNull => transmit(&mut guest.tx[0], load),
        Direction::NullToGuest => receive(&mut guest.rx[0], load),
    }
}

/// Sends as fast as the ring takes; frames per second that were given back.
pub fn transmit(tx: &mut Transmitter, load: Load) -> f64 {
    let mut frame = vec![0xa5; load.frame];
    frame[..14].copy_from_slice(&[0x52, 0x54, 0, 0x12, 0x34, 0x56, 0x52, 0x54, 0, 0x65, 0x43, 0x21, 0x88, 0xb5]);
    let mut number = 0_u64;
    rate(load, || {
        // Each frame is written anew, all of it, as the stack of a real guest would do.
        let sent = tx.transmit(load.burst, |i, room| {
            room.put(0, &frame);
            room.put(14, &(number + i as u64).to_le_bytes());
            load.frame
        });
        number += sent as u64;
        if sent < load.burst {
            std::hint::spin_loop();
        }
        tx.counts().used
    })
}

/// Receives as fast as frames come and touches each; frames per second.
pub fn receive(rx: &mut Receiver, load: Load) -> f64 {
    let mut sum = 0_u64;
    let rate = rate(load, || {
        let received = rx.receive(load.burst, |frame| sum = sum.wrapping_add(frame.first_long()));
        if received == 0 {
            std::hint::spin_loop();
        }
        rx.counts().used
    });
    std::hint::black_box(sum);
    rate
}

/// Calls `step`, which returns a count, again and again; by how much it grows in a second.
fn rate(load: Load, mut step: impl FnMut() -> u64) -> f64 {
    let mut run_for = |seconds: f64| {
        let length = Duration::from_secs_f64(seconds);
        let start = Instant::now();
        loop {
            let mut count = 0;
            for _ in 0..64 {
                count = step();
            }
            let elapsed = start.elapsed();
            if elapsed >= length {
                return (count, elapsed.as_secs_f64());
            }
        }
    };
    let (before, _) = run_for(load.warm_up);
    let (after, seconds) = run_for(load.measured);
    (after - before) as f64 / seconds
}
