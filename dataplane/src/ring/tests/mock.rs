//! Somebody else's driver: the one that virtio-queue has for tests.

use std::sync::Arc;

use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::driver::{Frames, MODERN, NEXT, Sink, WRITE, frame};
use crate::BURST;
use crate::memory::GuestMap;
use crate::ring::{RingConfig, SplitRing};

const BUFFERS: u64 = 1 << 20;

fn ring(memory: &Arc<GuestMemoryMmap>, driver: &MockSplitQueue<'_, GuestMemoryMmap>) -> SplitRing {
    let config = RingConfig {
        size: 16,
        desc: driver.desc_table_addr(),
        avail: driver.avail_addr(),
        used: driver.used_addr(),
        base: 0,
        resume: None,
        record: None,
        memory: 0,
        features: MODERN,
        kick: None,
        call: None,
        log: None,
    };
    SplitRing::new(GuestMap::new(memory), &config).unwrap()
}

/// Six chains of two descriptors: the header, and what follows it.
fn chains(flags: u16) -> Vec<RawDescriptor> {
    let pair = |i: u16| {
        let at = BUFFERS + 4096 * u64::from(i);
        [
            Descriptor::new(at, 12, flags | NEXT, 2 * i + 1).into(),
            Descriptor::new(at + 1000, 60 + u32::from(i), flags, 0).into(),
        ]
    };
    (0..6).flat_map(pair).collect()
}

#[test]
fn the_mock_driver_sends() {
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap());
    let driver = MockSplitQueue::new(&*memory, 16);
    driver.add_desc_chains(&chains(0), 0).unwrap();
    for i in 0..6 {
        memory.write_slice(&frame(i, 60 + i as usize), GuestAddress(BUFFERS + 4096 * i + 1000)).unwrap();
    }
    let mut sink = Sink::default();
    assert_eq!(ring(&memory, &driver).take(BURST, 1514, &mut sink).unwrap().frames, 6);
    assert_eq!(u16::from_le(driver.used().idx().load()), 6);
    for (i, (_, found)) in sink.frames.into_iter().enumerate() {
        assert_eq!(found, frame(i as u64, 60 + i));
        assert_eq!(driver.used().ring().ref_at(i).unwrap().load().id(), 2 * i as u32);
    }
}

#[test]
fn the_mock_driver_receives() {
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap());
    let driver = MockSplitQueue::new(&*memory, 16);
    driver.add_desc_chains(&chains(WRITE), 0).unwrap();
    let frames: Vec<_> = (0..6).map(|i| frame(i, 60 + i as usize)).collect();
    assert_eq!(ring(&memory, &driver).put(&Frames::plain(&frames)).unwrap().frames, 6);
    for (i, sent) in frames.iter().enumerate() {
        let used = driver.used().ring().ref_at(i).unwrap().load();
        assert_eq!((used.id(), used.len()), (2 * i as u32, 12 + sent.len() as u32));
        let mut found = vec![0; sent.len()];
        memory.read_slice(&mut found, GuestAddress(BUFFERS + 4096 * i as u64 + 1000)).unwrap();
        assert_eq!(&found, sent);
    }
}
