//! What the generator itself can do, and the limit that the machine sets: shown with every run.

use serde::Serialize;

use crate::driver::stamp::Frames;
use crate::driver::{self, PackedRing, SplitRing};
use crate::handback::{self, Work};
use crate::load::{Load, Measured};

/// How many times the rate of the fastest back-end the generator should reach, where the other side does nothing.
pub const TIMES: f64 = 2.0;

/// One line of the generator's own figures.
#[derive(Debug, Clone, Serialize)]
pub struct Own {
    /// Packed rings.
    pub packed: bool,
    /// What the other side did.
    pub work: String,
    /// What came of it.
    #[serde(flatten)]
    pub measured: Measured,
}

impl Own {
    /// Whether the guest received; else it sent.
    pub fn receives(&self) -> bool {
        self.measured.received_pps > self.measured.sent_pps
    }

    /// Its rate, in packets per second.
    pub fn rate(&self) -> f64 {
        self.measured.sent_pps + self.measured.received_pps
    }

    /// Whether the other side did nothing but hand descriptors back.
    pub fn is_bare(&self) -> bool {
        self.work.starts_with("descriptors")
    }
}

/// Runs the generator against each of the in-process back-ends, `rounds` times, an odd number, and keeps the median of each.
pub fn all(
    frame: u16,
    ring_size: u16,
    load: Load,
    core: usize,
    device_core: usize,
    huge_pages: bool,
    rounds: usize,
) -> anyhow::Result<Vec<Own>> {
    let options = driver::Options {
        socket: Default::default(),
        pairs: 1,
        ring_size,
        features: 0,
        in_order: false,
        mergeable: true,
        indirect: false,
        frames: Frames::Fixed(frame),
        receive: frame,
        huge_pages,
    };
    let works = [
        ("descriptors handed back, guest sends", Work::HandBack),
        ("descriptors handed back, guest receives", Work::Fill(frame)),
        ("frames copied from the guest", Work::CopyFrom),
        ("frames copied to the guest", Work::CopyTo(frame)),
    ];
    let mut found = vec![];
    for packed in [false, true] {
        for (name, work) in works {
            let mut all: Vec<Measured> = vec![];
            for _ in 0..rounds {
                let measured = if packed {
                    handback::run::<PackedRing>(&options, work, load, core, device_core)?
                } else {
                    handback::run::<SplitRing>(&options, work, load, core, device_core)?
                };
                all.push(measured);
            }
            let rate = |m: &Measured| m.sent_pps + m.received_pps;
            all.sort_by(|a, b| rate(a).total_cmp(&rate(b)));
            found.extend(all.get(all.len() / 2).map(|measured| Own { packed, work: name.into(), measured: *measured }));
        }
    }
    Ok(found)
}
