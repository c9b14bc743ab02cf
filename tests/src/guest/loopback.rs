//! Frames that prove where they came from, sent through a device that returns them.
//!
//! Every byte of a frame follows from its queue pair, its number and its length, so the receiver makes the frame again and
//! compares all of it: a byte that was changed, lost, moved or taken from another frame is seen, whatever checksum it
//! would have had.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use super::Guest;

/// Shortest frame: what Ethernet allows, without the check sequence.
pub const SHORTEST: usize = 60;
/// Ethertype of these frames: for local experiments, IEEE 802.
pub const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// Destination, source, ethertype, pair, length, number.
const PREFIX: usize = 14 + 2 + 2 + 8;
/// Longest time without any frame that is still taken for slowness.
const STALLED: Duration = Duration::from_secs(10);

/// A step of splitmix64: a good mixer that is cheap to run for each eight bytes.
#[inline]
fn mix(seed: u64) -> u64 {
    let z = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Writes frame `number` of `pair` with `length` bytes into `frame`, which is as long as that.
pub fn make(frame: &mut [u8], pair: u16, number: u64) {
    let length = frame.len();
    assert!((SHORTEST..=usize::from(u16::MAX)).contains(&length), "a frame of {length} bytes");
    frame[..6].copy_from_slice(&[0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    frame[6..12].copy_from_slice(&[0x52, 0x54, 0, 0x65, 0x43, 0x21]);
    frame[12..14].copy_from_slice(&ETHERTYPE);
    frame[14..16].copy_from_slice(&pair.to_le_bytes());
    frame[16..18].copy_from_slice(&(length as u16).to_le_bytes());
    frame[18..26].copy_from_slice(&number.to_le_bytes());
    let mut seed = mix(number ^ (u64::from(pair) << 48) ^ ((length as u64) << 32));
    let mut chunks = frame[PREFIX..].chunks_exact_mut(8);
    for chunk in &mut chunks {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        chunk.copy_from_slice(&mix(seed).to_le_bytes());
    }
    let rest = chunks.into_remainder();
    let last = mix(seed ^ 1).to_le_bytes();
    rest.copy_from_slice(&last[..rest.len()]);
}

/// The pair and number that a frame claims, if it is one of ours.
pub fn claims(frame: &[u8]) -> Option<(u16, u64)> {
    let ours = frame.len() >= SHORTEST && frame[12..14] == ETHERTYPE;
    ours.then(|| {
        let pair = u16::from_le_bytes([frame[14], frame[15]]);
        (pair, u64::from_le_bytes(frame[18..26].try_into().expect("eight bytes")))
    })
}

/// How long frames are, in bytes without the check sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lengths {
    /// All of one length.
    Each(usize),
    /// Any from the first to the last.
    Between(usize, usize),
    /// Any of these, each as often as it is named.
    Among(&'static [usize]),
    /// The simple Internet mix: of 12 frames 7 of 60, 4 of 590 and 1 of 1514 bytes.
    Imix,
}

impl Lengths {
    /// The longest that there is.
    pub fn longest(self) -> usize {
        match self {
            Self::Each(length) | Self::Between(_, length) => length,
            Self::Among(lengths) => lengths.iter().copied().max().unwrap_or(SHORTEST),
            Self::Imix => 1514,
        }
    }
}

/// What shall go through.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Frames for each enabled pair.
    pub frames: u64,
    /// Their lengths.
    pub lengths: Lengths,
    /// Most buffers in flight for each pair: no more than the shortest ring or queue on the way holds.
    pub window: usize,
    /// Most frames in a burst.
    pub burst: usize,
    /// Whether frames that come out of one queue are in the order in which they went in.
    pub ordered: bool,
}

impl Plan {
    /// Frames of 60 to 1514 bytes in bursts of up to 64, with at most `window` in flight.
    pub fn new(frames: u64, window: usize) -> Self {
        Self { frames, lengths: Lengths::Between(SHORTEST, 1514), window, burst: 64, ordered: true }
    }

    /// The same where frames may overtake each other: one of a rule in use goes by way of Open vSwitch every few seconds.
    pub fn in_any_order(self) -> Self {
        Self { ordered: false, ..self }
    }

    /// The length of frame `number` of `pair`.
    pub fn length(&self, pair: u16, number: u64) -> usize {
        let any = mix(number.wrapping_mul(0x1_0001) ^ u64::from(pair));
        match self.lengths {
            Lengths::Each(length) => length,
            Lengths::Between(shortest, longest) => shortest + (any % (longest - shortest + 1) as u64) as usize,
            Lengths::Among(lengths) => lengths[(any % lengths.len() as u64) as usize],
            Lengths::Imix => [60, 60, 60, 60, 60, 60, 60, 590, 590, 590, 590, 1514][(any % 12) as usize],
        }
    }
}

/// What went through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Passed {
    /// Frames that were sent and came back.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Where a check of one pair stands: what was sent, and what came back, in order and byte for byte.
#[derive(Debug)]
pub struct Check {
    plan: Plan,
    pair: u16,
    sent: u64,
    received: u64,
    bytes: u64,
    /// Receive buffers that frames in flight will take.
    in_flight: usize,
    fault: Option<String>,
    scratch: Box<[u8]>,
    expected: Box<[u8]>,
}

impl Check {
    /// Nothing sent yet.
    pub fn new(plan: Plan, pair: u16) -> Self {
        let scratch = vec![0; 1 << 16].into_boxed_slice();
        Self {
            plan,
            pair,
            sent: 0,
            received: 0,
            bytes: 0,
            in_flight: 0,
            fault: None,
            expected: scratch.clone(),
            scratch,
        }
    }

    /// Frames that are on their way.
    pub fn in_flight(&self) -> u64 {
        self.sent - self.received
    }

    /// Whether all of the plan came back.
    pub fn done(&self) -> bool {
        self.received == self.plan.frames
    }

    /// What came back so far.
    pub fn passed(&self) -> Passed {
        Passed { frames: self.received, bytes: self.bytes }
    }

    /// Sends one burst as far as window and ring allow; how many frames.
    pub fn send(&mut self, guest: &mut Guest) -> usize {
        let Self { plan, pair, sent, in_flight, scratch, .. } = self;
        let index = usize::from(*pair);
        let mut burst = plan.burst.min((plan.frames - *sent) as usize);
        let most = guest.rx[index].buffers_for(plan.lengths.longest());
        burst = burst.min(plan.window.saturating_sub(*in_flight) / most);
        let rx = &guest.rx[index];
        let mut buffers = 0;
        let frames = guest.tx[index].transmit(burst, |i, room| {
            let number = *sent + i as u64;
            let length = plan.length(*pair, number);
            let frame = &mut scratch[..length];
            make(frame, *pair, number);
            room.put(0, frame);
            buffers += rx.buffers_for(length);
            length
        });
        *sent += frames as u64;
        *in_flight += buffers;
        frames
    }

    /// Takes what came back and compares it; how many frames.
    pub fn receive(&mut self, guest: &mut Guest) -> anyhow::Result<usize> {
        let Self { plan, pair, received, bytes, in_flight, fault, scratch, expected, .. } = self;
        let index = usize::from(*pair);
        let mut lengths = [0; 256];
        let mut count = 0;
        let frames = guest.rx[index].receive(256, |frame| {
            let got = &mut scratch[..frame.length()];
            frame.copy_to(got);
            let length = plan.length(*pair, *received);
            let want = &mut expected[..length];
            make(want, *pair, *received);
            if got != want && fault.is_none() {
                *fault = Some(difference(*pair, *received, want, got));
            }
            lengths[count] = length;
            count += 1;
            *received += 1;
            *bytes += length as u64;
        });
        if let Some(fault) = fault.take() {
            bail!(fault);
        }
        *in_flight -= lengths[..count].iter().map(|&length| guest.rx[index].buffers_for(length)).sum::<usize>();
        let counts = guest.rx[index].counts();
        let wrong = (counts.wrong + counts.empty, guest.tx[index].counts().wrong);
        ensure!(wrong == (0, 0), "pair {pair}: used elements that are wrong (received, sent): {wrong:?}");
        Ok(frames)
    }
}

/// Says how a frame differs from the one that should have come.
pub(super) fn difference(pair: u16, number: u64, want: &[u8], got: &[u8]) -> String {
    let expected = format!("pair {pair}: expected frame {number} of {} bytes", want.len());
    match claims(got) {
        Some(claim) if claim != (pair, number) => format!("{expected}, got frame {} of pair {}", claim.1, claim.0),
        _ if got.len() != want.len() => format!("{expected}, got {} bytes", got.len()),
        _ => {
            let at = want.iter().zip(got).position(|(a, b)| a != b).unwrap_or(0);
            let end = (at + 8).min(want.len());
            format!("{expected}, byte {at} differs: wanted {:02x?}, got {:02x?}", &want[at..end], &got[at..end])
        }
    }
}

/// Sends the plan's frames through every enabled pair of `guest` and checks that each pair gets back its own, in order.
pub fn run(guest: &mut Guest, plan: Plan) -> anyhow::Result<Vec<Passed>> {
    let pairs = guest.options().enabled_pairs;
    let mut checks: Vec<Check> = (0..pairs).map(|pair| Check::new(plan, pair)).collect();
    drive(guest, &mut checks)?;
    Ok(checks.iter().map(Check::passed).collect())
}

/// Goes on with checks until all are done.
pub fn drive(guest: &mut Guest, checks: &mut [Check]) -> anyhow::Result<()> {
    let mut last = Instant::now();
    while !checks.iter().all(Check::done) {
        let mut moved = 0;
        for check in checks.iter_mut() {
            moved += check.send(guest);
            moved += check.receive(guest)?;
        }
        if moved > 0 {
            last = Instant::now();
        } else if last.elapsed() > STALLED {
            bail!("no frame for {STALLED:?}: {}", state(guest, checks));
        } else {
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// Sends the plan's frames on every pair, whether enabled for receiving or not, and takes them on whatever ring they come
/// back: all of them, each pair's in its order. The plan's window is for all pairs together. Returns how many came back.
pub fn run_anywhere(guest: &mut Guest, plan: Plan) -> anyhow::Result<u64> {
    let pairs = guest.tx.len();
    let (mut sent, mut next) = (vec![0_u64; pairs], vec![0_u64; pairs]);
    let mut frame = vec![0; 1 << 16];
    let mut expected = frame.clone();
    let (mut back, mut out, mut last) = (0, 0, Instant::now());
    while back < plan.frames * pairs as u64 {
        let before = (back, out);
        for pair in 0..pairs {
            let first = sent[pair];
            let room = (plan.window as u64).saturating_sub(out - back).min(plan.frames - first);
            let frames = guest.tx[pair].transmit(plan.burst.min(room as usize), |i, room| {
                let number = first + i as u64;
                let frame = &mut frame[..plan.length(pair as u16, number)];
                make(frame, pair as u16, number);
                room.put(0, frame);
                frame.len()
            });
            sent[pair] += frames as u64;
            out += frames as u64;
            let mut fault = None;
            back += guest.rx[pair].receive(64, |got| {
                got.copy_to(&mut frame);
                let got = &frame[..got.length()];
                match claims(got) {
                    Some((from, number)) if next.get(usize::from(from)) == Some(&number) => {
                        let want = &mut expected[..plan.length(from, number)];
                        make(want, from, number);
                        next[usize::from(from)] += 1;
                        if got != want {
                            fault = Some(difference(from, number, want, got));
                        }
                    }
                    claim => fault = Some(format!("{claim:?} came, the next of each pair should be {next:?}")),
                }
            }) as u64;
            if let Some(fault) = fault {
                bail!("on the ring of pair {pair}: {fault}");
            }
        }
        if before == (back, out) {
            ensure!(last.elapsed() < STALLED, "no frame for {STALLED:?}: sent {sent:?}, came back {next:?}");
            std::thread::yield_now();
        } else {
            last = Instant::now();
        }
    }
    Ok(back)
}

fn state(guest: &mut Guest, checks: &[Check]) -> String {
    let each = checks.iter().map(|check| {
        let pair = usize::from(check.pair);
        let (tx, rx) = (guest.tx[pair].ring(), guest.rx[pair].ring());
        let Check { sent, received, .. } = check;
        format!("pair {pair}: {sent} sent, {received} back; transmit ring {}; receive ring {}", tx.state(), rx.state())
    });
    each.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_differ_in_number_pair_and_length() {
        let frame = |pair, number, length| {
            let mut bytes = vec![0; length];
            make(&mut bytes, pair, number);
            bytes
        };
        assert_eq!(frame(1, 7, 100), frame(1, 7, 100));
        assert_eq!(claims(&frame(1, 7, 100)), Some((1, 7)));
        for other in [frame(1, 8, 100), frame(2, 7, 100), frame(1, 7, 101)] {
            assert_ne!(frame(1, 7, 100)[26..60], other[26..60]);
        }
    }
}
