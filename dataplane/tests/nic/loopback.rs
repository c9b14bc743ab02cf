//! Frames through software rings and null devices.

use ringspan_dataplane::nic::{Burst, DeviceConfig};
use ringspan_protocol::{MacAddress, ReceiveWake, Spread};

use crate::alone::{PLAIN, alone, frame, open, receive, send};

#[test]
fn frames_come_back_unchanged_and_in_order() {
    alone("loopback::frames_come_back_unchanged_and_in_order", |_| {
        let (device, mut queues) = open("vdev:net_ring0", &PLAIN).unwrap();
        let sizes = [14, 60, 64, 65, 511, 1514, 1518];
        let sent: Vec<_> = (0..700).map(|n| frame(n, sizes[n % sizes.len()])).collect();
        for part in sent.chunks(300) {
            send(&mut queues[0], part);
            assert_eq!(receive(&mut queues[0], part.len()), part);
        }
        let pool = device.pool().clone();
        assert_eq!(pool.available(), pool.size(), "buffers were lost");
    });
}

#[test]
fn jumbo_frames_lie_in_one_buffer() {
    alone("loopback::jumbo_frames_lie_in_one_buffer", |_| {
        for mtu in [9000, 9216] {
            let (device, mut queues) = open("vdev:net_ring0", &DeviceConfig { mtu, ..PLAIN }).unwrap();
            assert_eq!(device.status().mtu, mtu);
            let sent: Vec<_> = (0..100).map(|n| frame(n, usize::from(mtu) + 14 + 8)).collect();
            send(&mut queues[0], &sent);
            assert_eq!(receive(&mut queues[0], sent.len()), sent);
            device.close(queues);
        }
    });
}

#[test]
fn null_device_gives_frames_of_its_size_and_takes_all() {
    alone("loopback::null_device_gives_frames_of_its_size_and_takes_all", |_| {
        let (device, mut queues) = open("vdev:net_null0,size=64", &PLAIN).unwrap();
        let status = device.status();
        assert_eq!((status.driver.as_str(), status.queues, status.link_up), ("net_null", 1, true));
        assert_ne!(status.mac, MacAddress([0; 6]));
        let mut burst = Burst::new();
        assert_eq!(queues[0].rx.receive(&mut burst), Burst::CAPACITY);
        assert!(burst.iter().all(|frame| frame.len() == 64 && frame.segment_count() == 1));
        assert_eq!(queues[0].rx.receive(&mut burst), 0, "a full burst takes no more");
        assert_eq!(queues[0].tx.send(&mut burst), Burst::CAPACITY);
        assert!(burst.is_empty());
        assert_eq!(queues[0].tx.send(&mut burst), 0, "nothing to send");
        let stats = device.extended_stats();
        let value = |name: &str| stats.iter().find(|(n, _)| n == name).map(|(_, value)| *value);
        assert_eq!(value("tx_good_packets"), Some(64), "{stats:?}");
        assert_eq!(value("rx_good_packets"), Some(64), "{stats:?}");

        let (_silent, mut queues) = open("vdev:net_null1,size=64,no-rx=1", &PLAIN).unwrap();
        assert_eq!(queues[0].rx.receive(&mut burst), 0);
    });
}

#[test]
fn what_is_not_sent_stays_in_order() {
    alone("loopback::what_is_not_sent_stays_in_order", |_| {
        let (device, mut queues) = open("vdev:net_ring0", &PLAIN).unwrap();
        let mut burst = Burst::new();
        let (mut number, mut taken) = (0, 0);
        // The ring has a limit: fill it until it takes only a part.
        while burst.is_empty() {
            assert!(burst.allocate(device.pool(), 50), "the ring is larger than the pool");
            for index in 0..50 {
                burst.frame_mut(index).fill(&frame(number, 60));
                number += 1;
            }
            taken += queues[0].tx.send(&mut burst);
        }
        assert_eq!(taken + burst.len(), number);
        assert_eq!(burst.frame(0).data(), frame(taken, 60));
        burst.drop_front(1);
        burst.truncate(2);
        assert_eq!(burst.frame(0).data(), frame(taken + 1, 60));
        assert_eq!(burst.len(), 2);
        assert_eq!(receive(&mut queues[0], taken).len(), taken);
        drop(burst);
        assert_eq!(device.pool().available(), device.pool().size());
    });
}

#[test]
fn allocation_is_all_or_nothing() {
    alone("loopback::allocation_is_all_or_nothing", |_| {
        let (device, _queues) = open("vdev:net_null0,no-rx=1", &PLAIN).unwrap();
        let pool = device.pool().clone();
        let mut bursts = Vec::new();
        loop {
            let mut burst = Burst::new();
            if !burst.allocate(&pool, 64) {
                assert!(burst.is_empty());
                break;
            }
            assert!(!burst.allocate(&pool, 1), "a burst has 64 places");
            bursts.push(burst);
        }
        assert!(pool.available() < 64);
        assert_eq!(bursts.len() as u32, pool.size() / 64);
        bursts.clear();
        assert_eq!(pool.available(), pool.size());
    });
}

#[test]
fn several_queues_are_apart() {
    alone("loopback::several_queues_are_apart", |eal| {
        let config = DeviceConfig { queues: 4, ..PLAIN };
        let (device, queues) = open("vdev:net_null0,size=100", &config).unwrap();
        assert_eq!(queues.len(), 4);
        let status = device.status();
        assert_eq!((status.spread, status.receive_wake), (Spread::Rss, ReceiveWake::Timer));
        let (ring, _ring_queues) = open("vdev:net_ring0", &config).unwrap();
        assert_eq!(ring.status().spread, Spread::Unknown);
        let workers: Vec<_> = queues
            .into_iter()
            .enumerate()
            .map(|(index, mut pair)| {
                std::thread::spawn(move || {
                    let _known = eal.register_thread().unwrap();
                    assert_eq!((pair.rx.index(), pair.tx.index()), (index as u16, index as u16));
                    let mut burst = Burst::new();
                    (0..1000)
                        .map(|_| {
                            pair.rx.receive(&mut burst);
                            pair.tx.send(&mut burst)
                        })
                        .sum::<usize>()
                })
            })
            .collect();
        for worker in workers {
            assert_eq!(worker.join().unwrap(), 64_000);
        }
    });
}

#[test]
fn a_patch_carries_both_ways_queue_by_queue_and_goes_with_its_second_end() {
    alone("loopback::a_patch_carries_both_ways_queue_by_queue_and_goes_with_its_second_end", |_| {
        let two = DeviceConfig { queues: 2, ..PLAIN };
        let (a, mut at_a) = open("patch:x/a", &two).unwrap();
        let refused = |device: &str, config: &DeviceConfig| open(device, config).unwrap_err().to_string();
        assert!(refused("patch:x/b", &PLAIN).contains("the other end of the patch has 2 queues, and 1 were asked for"));
        assert!(refused("patch:x/a", &two).contains("used by another port"));
        assert!(refused("patch:y/a", &DeviceConfig { queues: 17, ..PLAIN }).contains("16 queues at most"));
        // Before there is another end, and not for the one that comes.
        send(&mut at_a[0], &[frame(7, 60)]);
        let (b, mut at_b) = open("patch:x/b", &two).unwrap();
        for queue in 0..2 {
            let there: Vec<_> = (0..100).map(|n| frame(1000 * queue + n, 60)).collect();
            let back: Vec<_> = (0..100).map(|n| frame(1000 * queue + 500 + n, 1514)).collect();
            send(&mut at_a[queue], &there);
            send(&mut at_b[queue], &back);
            assert_eq!(receive(&mut at_b[queue], there.len()), there);
            assert_eq!(receive(&mut at_a[queue], back.len()), back);
        }
        // A frame that is under way when its sender goes arrives, and its buffer goes back to a pool that nobody has any more.
        send(&mut at_a[1], &[frame(1, 60)]);
        a.close(at_a);
        assert_eq!(receive(&mut at_b[1], 1), [frame(1, 60)]);
        // The same name, another end a: the cable is still there.
        let (a, mut at_a) = open("patch:x/a", &two).unwrap();
        send(&mut at_b[0], &[frame(2, 60)]);
        assert_eq!(receive(&mut at_a[0], 1), [frame(2, 60)]);
        send(&mut at_b[0], &[frame(3, 60)]);
        a.close(at_a);
        b.close(at_b);
        // With both ends gone the name is free for a cable with other queues.
        let (_device, _queues) = open("patch:x/b", &PLAIN).unwrap();
    });
}
