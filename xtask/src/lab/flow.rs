//! Frames of one guest to the far end of its NIC's wire, every byte checked, some of which may be lost on purpose.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_testkit::far_end::FarEnd;
use ringspan_testkit::guest::{Guest, loopback};

/// Longest time without a frame that is taken for slowness: nothing here is fast.
const STALLED: Duration = Duration::from_secs(20);
/// When no frame has come for so long, none is on its way.
const QUIET: Duration = Duration::from_millis(300);

/// Numbered frames of one length.
pub struct Flow {
    length: usize,
    sent: u64,
    /// The number that the next frame to arrive has at least.
    next: u64,
    arrived: u64,
}

impl Flow {
    /// None sent yet.
    pub fn new(length: usize) -> Self {
        Self { length, sent: 0, next: 0, arrived: 0 }
    }

    /// Frames that were sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Frames that arrived.
    pub fn arrived(&self) -> u64 {
        self.arrived
    }

    /// Puts up to `count` frames into the ring; how many there was room for.
    pub fn send(&mut self, guest: &mut Guest, count: usize) -> usize {
        let mut frame = vec![0; self.length];
        let first = self.sent;
        let sent = guest.tx[0].transmit(count, |i, room| {
            loopback::make(&mut frame, 0, first + i as u64);
            room.put(0, &frame);
            frame.len()
        });
        self.sent += sent as u64;
        sent
    }

    /// Takes what has arrived. Frames come in order, each once, whole and unchanged; some may be missing.
    pub fn take(&mut self, far: &FarEnd) -> Result<u64> {
        let (mut got, mut want) = (vec![0; 1 << 14], vec![0; self.length]);
        let before = self.arrived;
        while let Some(length) = far.receive(&mut got).context("receiving at the far end")? {
            let got = got.get(..length).context("a frame of more than 16 KiB")?;
            let Some((_, number)) = loopback::claims(got) else { continue };
            ensure!(number >= self.next && number < self.sent, "frame {number} arrived, {} is next", self.next);
            loopback::make(&mut want, 0, number);
            ensure!(got == want, "frame {number} of {} bytes arrived as another one of {length} bytes", self.length);
            self.next = number + 1;
            self.arrived += 1;
        }
        Ok(self.arrived - before)
    }

    /// Takes frames until none has come for a while.
    pub fn settle(&mut self, far: &FarEnd) -> Result<()> {
        let mut last = Instant::now();
        while self.arrived < self.sent && last.elapsed() < QUIET {
            if self.take(far)? > 0 {
                last = Instant::now();
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Takes frames until all that were sent have arrived.
    pub fn take_all(&mut self, far: &FarEnd) -> Result<()> {
        let mut last = Instant::now();
        while self.arrived < self.sent {
            if self.take(far)? > 0 {
                last = Instant::now();
            }
            ensure!(last.elapsed() < STALLED, "{} of {} frames arrived", self.arrived, self.sent);
            std::thread::yield_now();
        }
        Ok(())
    }
}

/// Waits until the guest has all its transmit buffers back.
pub fn all_back(guest: &mut Guest) -> Result<()> {
    let start = Instant::now();
    while guest.tx[0].in_flight() > 0 {
        guest.tx[0].reclaim();
        let kept = guest.tx[0].in_flight();
        ensure!(start.elapsed() < STALLED, "{kept} transmit buffers are kept");
        std::thread::yield_now();
    }
    ensure!(guest.tx[0].counts().wrong == 0, "{} used elements are wrong", guest.tx[0].counts().wrong);
    Ok(())
}
