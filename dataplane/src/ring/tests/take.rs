//! Draining a transmit ring.

use super::driver::*;
use crate::BURST;
use crate::ring::{NetHeader, RingFeatures, Taken};

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
