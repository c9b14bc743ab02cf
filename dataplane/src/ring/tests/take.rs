//! Draining a transmit ring.

use std::ptr::NonNull;
use std::sync::Arc;

use super::driver::*;
use crate::BURST;
use crate::ring::{FrameSink, LargeFrame, NetHeader, Ring, RingFeatures, Taken};

fn taken(frames: &[Vec<u8>]) -> Taken {
    let bytes = frames.iter().map(|frame| frame.len() as u64).sum();
    let count = frames.len() as u64;
    Taken { received: count, received_bytes: bytes, frames: count, bytes, ..Taken::default() }
}

#[test]
fn plain_frames_arrive_in_order_and_are_given_back() {
    for features in over_both(MODERN) {
        takes_plain_frames(features);
        takes_plain_frames(RingFeatures { in_order: true, ..features });
    }
}

fn takes_plain_frames(features: RingFeatures) {
    let mut driver = Driver::new(256, features, 65_500);
    let mut ring = driver.device();
    let frames: Vec<_> = (0..100).map(|i| frame(i, 60 + 13 * i as usize)).collect();
    let mut heads = Vec::new();
    for (i, frame) in frames.iter().enumerate() {
        let (addr, head) = (BUFFERS + 2048 * i as u64, (i * 7 % 256) as u16);
        driver.fill(addr, &[&NetHeader::default().emit(), &frame[..]].concat());
        driver.chain(head, &[(addr, 12 + frame.len() as u32, 0)]);
        driver.offer(head);
        heads.push((u32::from(head), 0));
    }
    let mut sink = Sink::default();
    assert_eq!(ring.take(1000, 1514, &mut sink), Ok(taken(&frames[..BURST])));
    assert_eq!(ring.take(1000, 1514, &mut sink), Ok(taken(&frames[BURST..])));
    assert_eq!(ring.take(1000, 1514, &mut sink), Ok(Taken::default()));
    assert_eq!(driver.collect(), heads);
    for (i, (expected, (header, found))) in frames.iter().zip(&sink.frames).enumerate() {
        assert_eq!((header, found), (&NetHeader::default(), expected), "frame {i}");
    }
    assert_eq!(driver.interrupts(), 2);
}

#[test]
fn a_legacy_header_has_ten_bytes() {
    over_both(RingFeatures { version_1: false, ..MODERN }).into_iter().for_each(takes_a_legacy_header);
}

fn takes_a_legacy_header(features: RingFeatures) {
    let mut driver = Driver::new(2, features, 0);
    let mut ring = driver.device();
    let sent = frame(1, 60);
    driver.fill(BUFFERS, &[&[1, 0, 0, 0, 0, 0, 34, 0, 6, 0], &sent[..]].concat());
    driver.chain(0, &[(BUFFERS, 70, 0)]);
    driver.offer(0);
    let mut sink = Sink::default();
    assert_eq!(ring.take(BURST, 1514, &mut sink), Ok(taken(std::slice::from_ref(&sent))));
    assert_eq!(sink.frames, [(NetHeader { flags: 1, csum_start: 34, csum_offset: 6, ..NetHeader::default() }, sent)]);
}

#[test]
fn the_longest_frame_that_is_asked_for_arrives_whole_from_any_chain() {
    over_both(MODERN).into_iter().for_each(takes_the_longest_frame);
}

fn takes_the_longest_frame(features: RingFeatures) {
    let mut driver = Driver::new(4, features, 0);
    let mut ring = driver.device();
    let sent = frame(1, 1514);
    driver.fill(BUFFERS, &[&NetHeader::default().emit(), &sent[..]].concat());
    driver.chain(0, &[(BUFFERS, 1526, 0)]);
    driver.chain(1, &[(BUFFERS, 12, 0), (BUFFERS + 12, 1000, 0), (BUFFERS + 1012, 514, 0)]);
    for head in [0, 1] {
        driver.offer(head);
        let mut sink = Sink::default();
        assert_eq!(ring.take(BURST, 1514, &mut sink), Ok(taken(std::slice::from_ref(&sent))));
        assert_eq!(sink.frames, [(NetHeader::default(), sent.clone())], "chain {head}");
    }
}

/// Has room for one large frame at a time.
#[derive(Default)]
struct Slow {
    sink: Sink,
    has_large: bool,
}

// SAFETY: as for `Sink`.
unsafe impl FrameSink for Slow {
    fn frame(&mut self, header: &NetHeader, len: usize) -> Option<NonNull<u8>> {
        self.sink.frame(header, len)
    }

    fn longest(&self, _max_frame: usize) -> usize {
        9000
    }

    fn large_frame(&mut self, header: &NetHeader, len: usize, pieces: &mut Vec<(NonNull<u8>, usize)>) -> LargeFrame {
        if std::mem::replace(&mut self.has_large, true) {
            return LargeFrame::Later;
        }
        pieces.extend(self.sink.frame(header, len).map(|start| (start, len)));
        LargeFrame::Room
    }
}

#[test]
fn a_large_frame_that_has_to_wait_comes_next_and_keeps_its_place() {
    for features in over_both(MODERN) {
        for in_order in [false, true] {
            let mut driver = Driver::new(32, RingFeatures { in_order, ..features }, 30);
            let mut ring = driver.device();
            let lens = [60, 3000, 100, 4000, 4001, 1514, 5000];
            let frames: Vec<_> = lens.iter().zip(0..).map(|(&len, seed)| frame(seed, len)).collect();
            for (i, frame) in frames.iter().enumerate() {
                let (addr, head) = (BUFFERS + 8192 * i as u64, 3 * i as u16);
                driver.fill(addr, &[&NetHeader::default().emit(), &frame[..]].concat());
                // Three descriptors each, but for the small ones.
                let rest = frame.len() as u32 - 30;
                if frame.len() > 1000 {
                    driver.chain(head, &[(addr, 12, 0), (addr + 12, 30, 0), (addr + 42, rest, 0)]);
                } else {
                    driver.chain(head, &[(addr, 42 + rest, 0)]);
                }
                driver.offer(head);
            }
            let (mut found, mut back) = (Vec::new(), Vec::new());
            for taken in [3, 1, 2, 1, 0] {
                let mut sink = Slow::default();
                assert_eq!(ring.take(BURST, 1514, &mut sink).map(|taken| taken.frames), Ok(taken));
                found.extend(sink.sink.frames.into_iter().map(|(_, frame)| frame));
                back.extend(driver.collect());
                assert_eq!(back.len(), found.len(), "what waits is not given back");
            }
            assert!(found == frames, "in order: {in_order}, packed: {}", features.packed);
            assert_eq!(back, (0..7).map(|i| (3 * i, 0)).collect::<Vec<_>>());
        }
    }
}

#[test]
fn another_map_is_used_for_what_was_found_in_the_old_one_which_is_let_go_of() {
    for features in over_both(MODERN) {
        let mut driver = Driver::new(128, features, 0);
        let old = driver.map();
        let mut ring = Ring::new(Arc::clone(&old), &driver.config).unwrap();
        let frames: Vec<_> = (0..100).map(|seed| frame(seed, 60)).collect();
        for (head, frame) in (0..).zip(&frames) {
            let addr = BUFFERS + 128 * u64::from(head);
            driver.fill(addr, &[&NetHeader::default().emit(), &frame[..]].concat());
            driver.chain(head, &[(addr, 72, 0)]);
            driver.offer(head);
        }
        let mut sink = Sink::default();
        assert_eq!(ring.take(BURST, 1514, &mut sink), Ok(taken(&frames[..BURST])));
        // The other 36 are known by now, with pointers into the old map.
        ring.remap(driver.map()).unwrap();
        assert_eq!(Arc::strong_count(&old), 1, "nobody else has the old map");
        drop(old);
        assert_eq!(ring.take(BURST, 1514, &mut sink), Ok(taken(&frames[BURST..])));
        assert!(sink.frames.iter().map(|(_, frame)| frame).eq(&frames));
        assert_eq!(driver.collect().len(), frames.len());
    }
}
