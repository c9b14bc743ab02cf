//! Filling a receive ring.

use super::driver::*;
use crate::ring::{NetHeader, Put, RingFeatures};

#[test]
fn plain_frames_are_put_in_order_each_with_its_header() {
    over_both(MODERN).into_iter().for_each(puts_plain_frames);
}

fn puts_plain_frames(features: RingFeatures) {
    let mut driver = Driver::new(128, features, 65_500);
    let mut ring = driver.device();
    for i in 0..100 {
        driver.chain(i, &[(BUFFERS + 2048 * u64::from(i), 2048, WRITE)]);
        driver.offer(i);
    }
    let frames: Vec<_> = (0..120).map(|i| frame(i, 60 + i as usize)).collect();
    let put = ring.put(&Frames::plain(&frames)).unwrap();
    let bytes = frames[..100].iter().map(|frame| frame.len() as u64).sum();
    assert_eq!(put, Put { frames: 100, bytes, ring_full: 20, too_long: 0 });
    for (i, (head, len)) in driver.collect().into_iter().enumerate() {
        assert_eq!((head, len), (i as u32, 12 + frames[i].len() as u32));
        let header = NetHeader { num_buffers: 1, ..NetHeader::default() }.emit();
        assert_eq!(
            driver.bytes(BUFFERS + 2048 * i as u64, len as usize),
            [&header, &frames[i][..]].concat(),
            "frame {i}"
        );
    }
    assert_eq!(driver.interrupts(), 1);
}

#[test]
fn a_header_that_does_not_fit_into_the_first_of_several_buffers_goes_on_in_the_next() {
    for features in over_both(RingFeatures { mergeable: true, ..MODERN }) {
        let mut driver = Driver::new(8, features, 0);
        let second = BUFFERS + 4096;
        driver.fill(BUFFERS, &[0xee; 16]);
        driver.chain(0, &[(BUFFERS, 5, WRITE)]);
        driver.chain(1, &[(second, 2000, WRITE)]);
        (0..2).for_each(|head| driver.offer(head));
        let frame = vec![7; 100];
        let put = driver.device().put(&Frames::plain(std::slice::from_ref(&frame))).unwrap();
        assert_eq!(put.frames, 1, "{features:?}");
        assert_eq!(driver.collect(), [(0, 5), (1, 107)]);
        // The second of two buffers is told of by the header's last two bytes.
        assert_eq!(driver.bytes(BUFFERS, 6), [0, 0, 0, 0, 0, 0xee]);
        assert_eq!(driver.bytes(second, 7), [0, 0, 0, 0, 0, 2, 0]);
        assert_eq!(driver.bytes(second + 7, 100), frame);
    }
}
