//! Frames with numbers on one queue pair whose back-end returns them: some may be lost, none may be changed, doubled or late.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::loopback::{self, Plan};
use super::{Guest, Kind};

/// Longest wait for frames.
const LIMIT: Duration = Duration::from_secs(30);

/// A guest that numbers what it sends and accepts losses, but nothing else.
#[derive(Debug)]
pub struct Numbered {
    kind: Kind,
    plan: Plan,
    /// Frames that were sent.
    pub sent: u64,
    /// Frames that came back.
    pub received: u64,
    /// The number that the next frame has at least.
    next: u64,
    frame: Vec<u8>,
}

impl Numbered {
    /// Nothing was sent yet, over rings of this kind.
    pub fn new(kind: Kind) -> Self {
        Self { kind, plan: Plan::new(u64::MAX, 128), sent: 0, received: 0, next: 0, frame: vec![0; 2048] }
    }

    /// Sends up to `burst` frames.
    pub fn send(&mut self, guest: &mut Guest, burst: usize) -> usize {
        let Self { plan, sent, frame, .. } = self;
        let frames = guest.tx[0].transmit(burst, |i, room| {
            let number = *sent + i as u64;
            let frame = &mut frame[..plan.length(0, number)];
            loopback::make(frame, 0, number);
            room.put(0, frame);
            frame.len()
        });
        *sent += frames as u64;
        frames
    }

    /// Takes what is there; a frame that is changed, or not newer than the one before, is an error.
    pub fn receive(&mut self, guest: &mut Guest) -> Result<usize> {
        let Self { plan, received, next, frame, .. } = self;
        let mut fault = None;
        let frames = guest.rx[0].receive(256, |got| {
            let length = got.length();
            got.copy_to(frame);
            let mut want = vec![0; length];
            match loopback::claims(&frame[..length]) {
                Some((0, number)) if number >= *next && plan.length(0, number) == length => {
                    loopback::make(&mut want, 0, number);
                    if want != frame[..length] {
                        fault = Some(format!("frame {number} was changed"));
                    }
                    *next = number + 1;
                }
                claim => fault = Some(format!("frame {} or a later one was expected, got {claim:?}", *next)),
            }
            *received += 1;
        });
        if let Some(fault) = fault {
            bail!(fault);
        }
        let wrong = guest.rx[0].counts().wrong + guest.tx[0].counts().wrong;
        ensure!(wrong == 0, "{wrong} used elements that no driver can accept");
        // A burst of a packed ring that was interrupted has lost its lengths.
        let empty = guest.rx[0].counts().empty;
        ensure!(empty == 0 || self.kind == Kind::Packed, "{empty} used elements without a frame");
        Ok(frames)
    }

    /// Passes this many frames, with up to 100 on their way.
    pub fn pass(&mut self, guest: &mut Guest, frames: u64) -> Result<()> {
        let (mut lost, target) = (self.sent - self.received, self.received + frames);
        let start = Instant::now();
        while self.received < target {
            let in_flight = (self.sent - self.received).saturating_sub(lost);
            let moved = if in_flight < 100 { self.send(guest, 32) } else { 0 } + self.receive(guest)?;
            lost = lost.min(self.sent - self.received);
            if moved == 0 {
                ensure!(start.elapsed() < LIMIT, "{} of {target} frames came", self.received);
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Waits until nothing is on its way any more: what comes back in order has come when one more frame has.
    pub fn settle(&mut self, guest: &mut Guest) -> Result<()> {
        let start = Instant::now();
        let mut last = None;
        while last.is_none_or(|last| self.next <= last) {
            if last.is_none() && self.send(guest, 1) == 1 {
                last = Some(self.sent - 1);
            }
            if self.receive(guest)? == 0 {
                ensure!(start.elapsed() < LIMIT, "frame {last:?} did not come back");
                std::thread::yield_now();
            }
        }
        Ok(())
    }
}
