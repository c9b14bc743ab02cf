//! Short frames, which go to their buffers in runs; what interrupts a run; and the same without AVX2.

use std::process::Command;
use std::ptr::NonNull;

use super::driver::*;
use crate::ring::{FrameSink, NetHeader, RingFeatures, Taken};
use crate::{BURST, SHORT};

/// Bytes of a buffer, of which those behind a frame stay as they are.
const ROOM: usize = 2048;
const UNTOUCHED: u8 = 0xdd;

/// Buffers as a pool has them: so many, and short frames get theirs in one go.
struct Buffers<const HEADERS: bool> {
    memory: Vec<Vec<u8>>,
    frames: Vec<(NetHeader, usize)>,
    /// Most that get one in one go.
    at_once: usize,
    /// Lengths of those that got one so...
    runs: Vec<usize>,
    /// ... and of those that asked alone.
    alone: Vec<usize>,
}

impl<const HEADERS: bool> Buffers<HEADERS> {
    fn new(count: usize) -> Self {
        let memory = vec![vec![UNTOUCHED; ROOM]; count];
        Self { memory, frames: vec![], at_once: usize::MAX, runs: vec![], alone: vec![] }
    }

    /// The frames that are there, and whether nothing was written behind one.
    fn check(&self, sent: &[&(NetHeader, Vec<u8>)], what: &str) {
        assert_eq!(self.frames.len(), sent.len(), "{what}");
        for (i, (&(header, len), (sent_header, sent))) in self.frames.iter().zip(sent).enumerate() {
            // Who asks for none may get some.
            assert!(!HEADERS || header == *sent_header, "{what}: frame {i}: {header:?}");
            assert!(self.memory[i][..len] == sent[..], "{what}: frame {i} of {len} bytes");
            assert!(
                self.memory[i][len..].iter().all(|&byte| byte == UNTOUCHED),
                "{what}: behind frame {i}, {len} bytes"
            );
        }
        let others = &self.memory[self.frames.len()..];
        assert!(others.iter().flatten().all(|&byte| byte == UNTOUCHED), "{what}: a buffer without a frame");
    }
}

// SAFETY: each frame has a heap buffer of its own, which is long enough and stays where it is.
unsafe impl<const HEADERS: bool> FrameSink for Buffers<HEADERS> {
    const HEADERS: bool = HEADERS;

    fn frame(&mut self, header: &NetHeader, len: usize) -> Option<NonNull<u8>> {
        self.alone.push(len);
        let buffer = self.memory.get_mut(self.frames.len()).filter(|_| len <= ROOM)?;
        self.frames.push((*header, len));
        NonNull::new(buffer.as_mut_ptr())
    }

    unsafe fn several<P>(
        &mut self,
        frames: impl Iterator<Item = (NetHeader, usize, P)>,
        mut put: impl FnMut(P, usize, NonNull<u8>),
    ) -> usize {
        let free = self.memory.iter_mut().skip(self.frames.len()).take(self.at_once);
        let before = self.frames.len();
        for (buffer, (header, len, piece)) in free.zip(frames) {
            assert!(len <= SHORT, "{len} bytes are not short");
            put(piece, len, NonNull::new(buffer.as_mut_ptr()).expect("a buffer"));
            self.frames.push((header, len));
            self.runs.push(len);
        }
        self.frames.len() - before
    }
}

/// What goes before frame `seed`, as the guest with these features writes it.
fn header(features: RingFeatures, seed: u64) -> NetHeader {
    let num_buffers = if features.version_1 { 7 } else { 0 };
    NetHeader { flags: 1, csum_start: seed as u16, csum_offset: 16, num_buffers, ..NetHeader::default() }
}

/// Header and frame as the guest has them in memory.
fn bytes(features: RingFeatures, (header, frame): &(NetHeader, Vec<u8>)) -> Vec<u8> {
    [&header.emit()[..features.header_len()], &frame[..]].concat()
}

/// Rings of both kinds, with headers of ten and twelve bytes, in order and not.
fn all_kinds() -> impl Iterator<Item = RingFeatures> {
    let kinds = [(true, false), (true, true), (false, false), (false, true)];
    let of = |(version_1, in_order)| over_both(RingFeatures { version_1, in_order, indirect: true, ..MODERN });
    kinds.into_iter().flat_map(of)
}

fn is_short(len: usize) -> bool {
    (14..=SHORT).contains(&len)
}

const LENGTHS: [usize; 22] =
    [60, 14, 15, 16, 17, 13, 31, 32, 33, 63, 64, 65, 127, 128, 129, 128, 1514, 14, 0, 12, 14, 128];

fn short_ones_go_in_runs<const HEADERS: bool>(features: RingFeatures, at_once: usize, max_frame: usize) {
    let what = format!("{features:?}, headers {HEADERS}, {at_once} at once, {max_frame} bytes at most");
    let mut driver = Driver::new(64, features, 50);
    let sent: Vec<_> = LENGTHS.iter().zip(0..).map(|(&len, seed)| (header(features, seed), frame(seed, len))).collect();
    for (i, one) in sent.iter().enumerate() {
        let (addr, bytes) = (BUFFERS + 2051 * i as u64, bytes(features, one));
        driver.fill(addr, &bytes);
        driver.chain(i as u16, &[(addr, bytes.len() as u32, 0)]);
        driver.offer(i as u16);
    }
    let mut sink = Buffers::<HEADERS> { at_once, ..Buffers::new(BURST) };
    let good: Vec<_> = sent.iter().filter(|(_, frame)| (14..=max_frame).contains(&frame.len())).collect();
    let expected = Taken {
        received: sent.len() as u64,
        received_bytes: LENGTHS.iter().sum::<usize>() as u64,
        frames: good.len() as u64,
        bytes: good.iter().map(|(_, frame)| frame.len() as u64).sum(),
        malformed: LENGTHS.iter().filter(|&&len| len < 14).count() as u64,
        too_long: LENGTHS.iter().filter(|&&len| len > max_frame).count() as u64,
        ..Taken::default()
    };
    assert_eq!(driver.device().take(BURST, max_frame, &mut sink), Ok(expected), "{what}");
    sink.check(&good, &what);
    if at_once == usize::MAX {
        let (runs, alone): (Vec<_>, _) = good.iter().map(|(_, frame)| frame.len()).partition(|&len| is_short(len));
        assert_eq!((sink.runs, sink.alone), (runs, alone), "{what}");
    }
    let heads: Vec<_> = (0..sent.len() as u32).map(|head| (head, 0)).collect();
    assert_eq!(driver.collect(), heads, "{what}");
}

#[test]
fn short_frames_go_in_runs_and_the_lengths_around_them_do_not() {
    for features in all_kinds() {
        for max_frame in [1514, 127, 14] {
            for at_once in [usize::MAX, 3, 0] {
                short_ones_go_in_runs::<true>(features, at_once, max_frame);
                short_ones_go_in_runs::<false>(features, at_once, max_frame);
            }
        }
    }
}

#[test]
fn a_run_ends_at_any_other_chain_and_goes_on_behind_it() {
    for features in all_kinds() {
        let mut driver = Driver::new(256, features, 200);
        let after_header = features.header_len() as u32;
        let (mut sent, mut in_runs, mut malformed) = (vec![], 0, 0);
        let (mut head, mut heads) = (0, vec![]);
        for seed in 0..BURST as u64 {
            let one = (header(features, seed), frame(seed, 14 + seed as usize % 80));
            let (addr, bytes) = (BUFFERS + 300 * seed, bytes(features, &one));
            let (len, rest) = (bytes.len() as u32, addr + u64::from(after_header));
            driver.fill(addr, &bytes);
            let table = TABLES + 64 * seed;
            match seed % 9 {
                3 => driver.chain(head, &[(addr, after_header, 0), (rest, len - after_header, 0)]),
                5 => driver.chain(head, &[(addr, 3, 0), (addr + 3, 0, 0), (addr + 3, len - 3, 0)]),
                7 => driver.indirect_chain(head, table, &[(addr, len, 0)]),
                8 => driver.chain(head, &[(addr, len, WRITE)]),
                _ => driver.chain(head, &[(addr, len, 0)]),
            }
            if seed % 9 == 8 {
                malformed += 1;
            } else {
                in_runs += usize::from(![3, 5, 7].contains(&(seed % 9)));
                sent.push(one);
            }
            driver.offer(head);
            heads.push((u32::from(head), 0));
            head += 3;
        }
        let mut sink = Buffers::<true>::new(BURST);
        let taken = driver.device().take(BURST, 1514, &mut sink).expect("a legal ring");
        let of_kinds = (taken.received, taken.frames, taken.malformed, taken.no_buffers);
        assert_eq!(of_kinds, (BURST as u64, sent.len() as u64, malformed, 0), "{features:?}");
        let total = sent.iter().map(|(_, frame)| frame.len() as u64).sum::<u64>();
        assert_eq!(taken.bytes, total, "{features:?}");
        sink.check(&sent.iter().collect::<Vec<_>>(), &format!("{features:?}"));
        assert!(sink.runs.len() >= in_runs, "{} in runs, {in_runs} were plain: {features:?}", sink.runs.len());
        assert!(!sink.alone.is_empty(), "{features:?}");
        assert_eq!(driver.collect(), heads, "{features:?}");
    }
}

#[test]
fn a_pool_that_is_empty_amid_a_run_costs_the_frames_behind_and_each_is_counted() {
    for features in all_kinds() {
        for (buffers, at_once) in [0, 1, 10, 29, 30].into_iter().flat_map(|n| [(n, usize::MAX), (n, 4)]) {
            let what = format!("{buffers} buffers, {at_once} at once, {features:?}");
            let mut driver = Driver::new(64, features, 50);
            let sent: Vec<_> = (0..30).map(|seed| (header(features, seed), frame(seed, 60 + seed as usize))).collect();
            for (i, one) in sent.iter().enumerate() {
                let (addr, bytes) = (BUFFERS + 200 * i as u64, bytes(features, one));
                driver.fill(addr, &bytes);
                driver.chain(i as u16, &[(addr, bytes.len() as u32, 0)]);
                driver.offer(i as u16);
            }
            let mut sink = Buffers::<true> { at_once, ..Buffers::new(buffers) };
            let bytes = |sent: &[(NetHeader, Vec<u8>)]| sent.iter().map(|(_, frame)| frame.len() as u64).sum();
            let expected = Taken {
                received: 30,
                received_bytes: bytes(&sent),
                frames: buffers as u64,
                bytes: bytes(&sent[..buffers]),
                no_buffers: 30 - buffers as u64,
                ..Taken::default()
            };
            assert_eq!(driver.device().take(BURST, 1514, &mut sink), Ok(expected), "{what}");
            sink.check(&sent[..buffers].iter().collect::<Vec<_>>(), &what);
            assert_eq!(driver.collect().len(), 30, "all are given back: {what}");
        }
    }
}

#[test]
fn buffers_at_the_edges_of_regions_in_turns() {
    for features in all_kinds() {
        let mut driver = Driver::new(8, features, 0);
        let mut ring = driver.device();
        for len in 14..=SHORT {
            let what = format!("{len} bytes, {features:?}");
            let whole = (features.header_len() + len) as u64;
            // Up to the last byte of one region, and from the first of the other.
            let places = [BORDER - whole, BUFFERS_END - whole, BUFFERS, BORDER];
            let sent = [0, 1, 2, 3].map(|seed| (header(features, seed), frame(seed + len as u64, len)));
            for (i, (one, addr)) in sent.iter().zip(places).enumerate() {
                driver.fill(addr, &bytes(features, one));
                driver.chain(i as u16, &[(addr, whole as u32, 0)]);
                driver.offer(i as u16);
            }
            let mut sink = Buffers::<true>::new(5);
            assert_eq!(ring.take(BURST, 1514, &mut sink).map(|taken| taken.frames), Ok(4), "{what}");
            sink.check(&sent.iter().collect::<Vec<_>>(), &what);
            assert_eq!(sink.runs, [len; 4], "{what}");
            assert_eq!(driver.collect().len(), 4, "{what}");

            // Across the border it is no run; a byte beyond the end it is nothing.
            let across = (header(features, 9), frame(9, len));
            driver.fill(BORDER - 20, &bytes(features, &across));
            driver.chain(0, &[(BORDER - 20, whole as u32, 0)]);
            driver.offer(0);
            let mut sink = Buffers::<true>::new(1);
            assert_eq!(ring.take(BURST, 1514, &mut sink).map(|taken| taken.frames), Ok(1), "{what}");
            sink.check(&[&across], &what);
            assert_eq!((sink.runs, driver.collect().len()), (vec![], 1), "{what}");
        }
        driver.chain(0, &[(BORDER, 80, 0)]);
        driver.chain(1, &[(BUFFERS_END - 79, 80, 0)]);
        (0..2).for_each(|head| driver.offer(head));
        let mut sink = Buffers::<true>::new(2);
        assert_eq!(ring.take(BURST, 1514, &mut sink).map(|taken| taken.received), Ok(1));
        assert!(ring.take(BURST, 1514, &mut sink).is_err(), "{features:?}");
        assert_eq!((sink.frames.len(), driver.collect().len()), (1, 1), "{features:?}");
    }
}

#[test]
fn the_smallest_rings_go_round_their_end_again_and_again() {
    for (features, size) in all_kinds().flat_map(|features| [1, 2, 4, 8].map(|size| (features, size))) {
        for start in [0, 5, 65_534] {
            // What chains of one round have, in descriptors: three rounds of this are more than a lap.
            let shapes: &[&[u16]] = match size {
                1 => &[&[1]],
                2 => &[&[1], &[1, 1], &[2]],
                4 => &[&[1, 1, 1], &[1, 2, 1], &[1, 1, 1, 1], &[2], &[1]],
                _ => &[&[1, 1, 2, 1, 1, 1], &[1; 7], &[1, 3, 1, 2], &[1; 8], &[1; 5], &[2, 1, 1, 1, 1]],
            };
            for write in [0, WRITE] {
                round_and_round(features, size, start, shapes, write);
            }
        }
    }
}

fn round_and_round(features: RingFeatures, size: u16, start: u16, shapes: &[&[u16]], write: u16) {
    let mut driver = Driver::new(size, features, start);
    let mut ring = driver.device();
    for (round, shapes) in (0..40).zip(shapes.iter().cycle()) {
        let what = format!("{size} descriptors from {start}, round {round}, {write}, {features:?}");
        let frames: Vec<_> = (0..shapes.len() as u64)
            .map(|i| {
                (NetHeader { num_buffers: (write / WRITE).max(1), ..NetHeader::default() }, frame(round * 8 + i, 60))
            })
            .collect();
        let (mut head, mut heads) = (0, vec![]);
        for (one, &slots) in frames.iter().zip(*shapes) {
            let (addr, bytes) = (BUFFERS + 200 * u64::from(head), bytes(features, one));
            if write == 0 {
                driver.fill(addr, &bytes);
            }
            // All but the last have five bytes.
            let part = |i| {
                (addr + 5 * u64::from(i), if i + 1 < slots { 5 } else { bytes.len() as u32 - 5 * u32::from(i) }, write)
            };
            driver.chain(head, &(0..slots).map(part).collect::<Vec<_>>());
            driver.offer(head);
            heads.push((u32::from(head), if write == 0 { 0 } else { bytes.len() as u32 }));
            head += slots;
        }
        let count = frames.len() as u64;
        if write == 0 {
            let mut sink = Buffers::<false>::new(8);
            assert_eq!(ring.take(BURST, 1514, &mut sink).map(|taken| taken.frames), Ok(count), "{what}");
            sink.check(&frames.iter().collect::<Vec<_>>(), &what);
        } else {
            let source = Frames::plain(&frames.iter().map(|(_, frame)| frame.clone()).collect::<Vec<_>>());
            assert_eq!(ring.put(&source).map(|put| put.frames), Ok(count), "{what}");
            for (one, &(head, len)) in frames.iter().zip(&heads) {
                assert!(driver.bytes(BUFFERS + 200 * u64::from(head), len as usize) == bytes(features, one), "{what}");
            }
        }
        assert_eq!(driver.collect(), heads, "{what}");
        assert_eq!(ring.position(), driver.position(driver.used), "{what}");
    }
}

/// Whether this processor has AVX2, and this build a use for it.
fn has_wide() -> bool {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    return std::arch::is_x86_feature_detected!("avx2");
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    false
}

#[test]
fn a_ring_is_drained_the_way_that_was_asked_for() {
    let before = super::went_wide();
    let driver = Driver::new(2, MODERN, 0);
    assert_eq!(driver.device().take(BURST, 1514, &mut Sink::default()), Ok(Taken::default()));
    assert_eq!(super::went_wide() > before, has_wide() && !super::is_plain());
}

/// Runs the tests that drain rings again in a process that knows no AVX2, as Miri does and old processors do.
#[test]
#[cfg_attr(miri, ignore = "knows no AVX2")]
fn all_of_this_holds_without_avx2() {
    if super::is_plain() || !has_wide() {
        return;
    }
    let mut again = Command::new(std::env::current_exe().expect("this program"));
    let suites = ["chaos::any_", "chaos::a_transmit", "hostile::", "model::whatever_a_guest", "runs::", "take::"];
    let suites = suites.map(|suite| format!("ring::tests::{suite}"));
    let again = again.args(&suites).arg("--test-threads=2").env(super::PLAIN, "1");
    let output = again.output().expect("this program runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    for suite in suites {
        let ran = said.lines().any(|line| line.contains(&suite) && line.ends_with("... ok"));
        assert!(ran, "none of {suite} ran:\n{said}");
    }
}
