//! Round trips, and processor time, at a given rate.
//!
//! Frames are due at fixed times, whatever happened to those before them: a frame that had to wait for the ring counts from the
//! time it was due, so a back-end that stands still for a while is not spared.

use std::time::Duration;

use serde::Serialize;

use crate::calm::STILL;
use crate::clock::{ticks, ticks_per_second};
use crate::driver::{OutOfOrder, Ring};
use crate::load::Queues;

/// Most frames that are sent at once when they are late.
const BURST: u16 = 32;

/// How long round trips took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// Frames per second that were sent.
    pub pps: f64,
    /// Microseconds below which half of them were back.
    pub p50: f64,
    /// Nine in ten.
    pub p90: f64,
    /// 99 in 100.
    pub p99: f64,
    /// 999 in 1000.
    pub p999: f64,
    /// Share of the frames that did not come back.
    pub lost: f64,
    /// Share of the time, 0 to 1, in stretches longer than [`STILL`] in which the generator did not run.
    pub still: f64,
}

/// Counts of durations, in buckets that are at most 1.6 % wide.
#[derive(Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

const FINE: u32 = 6;

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; (64 - FINE as usize + 1) << FINE], total: 0 }
    }
}

impl Histogram {
    fn bucket(value: u64) -> usize {
        let octave = (u64::BITS - value.leading_zeros()).saturating_sub(FINE + 1);
        ((octave as usize) << FINE) + (value >> octave) as usize
    }

    /// The middle of a bucket.
    fn value(bucket: usize) -> f64 {
        let octave = (bucket >> FINE).saturating_sub(1);
        let base = (bucket - (octave << FINE)) as f64;
        (base + 0.5) * (1_u64 << octave) as f64
    }

    /// Counts a value.
    #[inline]
    pub fn record(&mut self, value: u64) {
        self.counts[Self::bucket(value)] += 1;
        self.total += 1;
    }

    /// The value below which this share of all are.
    pub fn quantile(&self, share: f64) -> f64 {
        let wanted = (share * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Self::value(bucket);
            }
        }
        0.0
    }
}

impl<R: Ring> Queues<'_, R> {
    /// Sends `pps` frames a second for `seconds` on the first transmit queue, and takes what comes back. Round trips of frames that
    /// were due after `warm_up` seconds count.
    pub fn paced(&mut self, pps: f64, warm_up: f64, seconds: f64) -> Result<Latency, OutOfOrder> {
        self.start()?;
        let interval = ticks_per_second() / pps;
        let mut histogram = Histogram::default();
        let first = (warm_up * pps) as u64;
        let last = ((warm_up + seconds) * pps) as u64;
        let (mut sent, mut received) = (0_u64, 0_u64);
        let start = ticks();
        let grace = (ticks_per_second() * 0.02) as u64;
        let mut quiet = None;
        let long = (STILL.as_secs_f64() * ticks_per_second()) as u64;
        let (mut looked, mut still) = (start, 0);
        loop {
            let now = ticks();
            if now - looked > long {
                still += now - looked;
            }
            looked = now;
            if sent < last {
                let due = (((now - start) as f64 / interval) as u64 + 1).min(last) - sent;
                if due > 0 {
                    let free = self.tx[0].reclaim(due.min(u64::from(BURST)) as u16)?;
                    let count = due.min(u64::from(BURST)).min(u64::from(free)) as u16;
                    if count > 0 {
                        self.tx[0].send(count, sent);
                        sent += u64::from(count);
                    }
                }
            } else if now - *quiet.get_or_insert(now) > grace {
                break;
            }
            for rx in &mut self.rx {
                rx.receive(1, u16::MAX, |number| {
                    received += 1;
                    let due = start + (number as f64 * interval) as u64;
                    if number >= first {
                        histogram.record(ticks().saturating_sub(due));
                    }
                })?;
            }
        }
        let micros = |share| histogram.quantile(share) / ticks_per_second() * 1e6;
        let lost = if self.rx.is_empty() { 0.0 } else { 1.0 - received as f64 / sent.max(1) as f64 };
        let still = still as f64 / (looked - start).max(1) as f64;
        Ok(Latency { pps, p50: micros(0.5), p90: micros(0.9), p99: micros(0.99), p999: micros(0.999), lost, still })
    }
}

/// Seconds of processor time that a process has used, all its threads together.
pub fn processor_seconds(pid: u32) -> anyhow::Result<f64> {
    let mut nanoseconds = 0_u64;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_within_two_percent() {
        let mut histogram = Histogram::default();
        (1..=100_000_u64).for_each(|value| histogram.record(value));
        for share in [0.0001, 0.5, 0.9, 0.999] {
            let (found, right) = (histogram.quantile(share), share * 100_000.0);
            assert!((found - right).abs() <= 0.02 * right + 1.0, "{share}: {found} for {right}");
        }
        histogram.record(u64::MAX);
    }
}
