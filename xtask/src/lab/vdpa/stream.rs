//! Numbered frames that go on while a port's rings change hands: some may be lost, none may come twice, out of order or changed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ringspan_testkit::far_end::FarEnd;
use ringspan_testkit::guest::Guest;
use ringspan_testkit::guest::loopback::{Plan, claims, make};

/// After so long without a frame those on their way are given up.
const LOST: Duration = Duration::from_millis(60);
/// Frames on their way in one direction at most: fewer than QEMU's hub or a ring has room for.
const WINDOW: u64 = 32;
/// Room for one.
const ROOM: usize = 2048;

/// One direction.
pub struct Flow {
    /// In place of the queue pair's number, so that frames of one flow are not taken for another's.
    mark: u16,
    plan: Plan,
    /// Frames sent.
    pub sent: u64,
    /// Frames that came.
    pub received: u64,
    /// The least number that the next one may have.
    next: u64,
    /// Those before are not on their way any more.
    base: u64,
    last: Instant,
    moved: Instant,
    /// Longest time between two frames.
    pub gap: Duration,
}

impl Flow {
    /// Nothing sent yet.
    pub fn new(mark: u16) -> Self {
        let plan = Plan::new(u64::MAX, WINDOW as usize);
        let now = Instant::now();
        Self { mark, plan, sent: 0, received: 0, next: 0, base: 0, last: now, moved: now, gap: Duration::ZERO }
    }

    /// The longest time without a frame is measured anew from here on.
    pub fn rest(&mut self) {
        (self.gap, self.last) = (Duration::ZERO, Instant::now());
    }

    /// Frames that did not come.
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }

    /// How many may be sent now.
    fn room(&mut self) -> u64 {
        if self.sent - self.base >= WINDOW && self.moved.elapsed() > LOST {
            // They may still come, late; then they must still be in order.
            (self.base, self.moved) = (self.sent, Instant::now());
        }
        WINDOW.saturating_sub(self.sent - self.base)
    }

    fn write(&self, frame: &mut [u8; ROOM]) -> usize {
        let length = self.plan.length(self.mark, self.sent);
        make(&mut frame[..length], self.mark, self.sent);
        length
    }

    fn take(&mut self, frame: &[u8]) -> Result<()> {
        let Some((mark, number)) = claims(frame) else { return Ok(()) };
        if mark != self.mark {
            return Ok(());
        }
        let mut wanted = vec![0; self.plan.length(mark, number)];
        ensure!(number < self.sent, "frame {number} of flow {mark} came before it was sent");
        ensure!(number >= self.next, "frame {number} of flow {mark} came after frame {}", self.next - 1);
        make(&mut wanted, mark, number);
        ensure!(wanted == frame, "frame {number} of flow {mark} was changed on its way");
        self.gap = self.gap.max(self.last.elapsed());
        (self.next, self.received, self.last) = (number + 1, self.received + 1, Instant::now());
        (self.base, self.moved) = (self.base.max(self.next), self.last);
        Ok(())
    }

    /// Sends what there is room for on a pair of the guest.
    pub fn send_from_guest(&mut self, guest: &mut Guest, pair: usize) {
        let room = self.room();
        for _ in 0..room.min(8) {
            let mut frame = [0; ROOM];
            let length = self.write(&mut frame);
            let sent = guest.tx[pair].transmit(1, |_, room| {
                room.put(0, &frame[..length]);
                length
            });
            if sent == 0 {
                break;
            }
            self.sent += 1;
        }
    }

    /// Sends what there is room for into the wire.
    pub fn send_from_far(&mut self, far: &FarEnd) -> Result<()> {
        for _ in 0..self.room().min(8) {
            let mut frame = [0; ROOM];
            let length = self.write(&mut frame);
            if !far.send(&frame[..length])? {
                break;
            }
            self.sent += 1;
        }
        Ok(())
    }
}

/// Takes what came to the guest, on any pair.
pub fn take_at_guest(guest: &mut Guest, flows: &mut [Flow]) -> Result<()> {
    let mut frame = [0; ROOM];
    for rx in &mut guest.rx {
        let mut outcome = Ok(());
        rx.receive(64, |received| {
            let got = &mut frame[..received.length().min(ROOM)];
            received.copy_to(got);
            for flow in flows.iter_mut() {
                if outcome.is_ok() {
                    outcome = flow.take(got);
                }
            }
        });
        outcome?;
        let counts = rx.counts();
        ensure!(counts.wrong == 0, "{} used elements are wrong", counts.wrong);
    }
    Ok(())
}

/// Takes what came out of the wire.
pub fn take_at_far(far: &FarEnd, flow: &mut Flow) -> Result<()> {
    let mut frame = [0; ROOM];
    for _ in 0..64 {
        let Some(length) = far.receive(&mut frame)? else { break };
        flow.take(&frame[..length.min(ROOM)])?;
    }
    Ok(())
}
