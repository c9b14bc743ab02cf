//! What a lane can hold.

use ringspan_dataplane::nic::{DeviceConfig, DeviceError};
use ringspan_protocol::{Failure, FailureKind};

use crate::alone::{PLAIN, alone_with, frame, open, receive, send};

#[test]
fn port_limit_is_refused_and_a_freed_port_is_used_again() {
    alone_with("limits::port_limit_is_refused_and_a_freed_port_is_used_again", 512, |eal| {
        let mut ports: Vec<_> = (0..eal.max_ports())
            .map(|n| open(&format!("vdev:net_null{n},size=64"), &PLAIN).unwrap_or_else(|e| panic!("port {n}: {e}")))
            .collect();
        let failure: Failure = open("vdev:net_ring0", &PLAIN).map(|_| ()).unwrap_err().into();
        assert_eq!(failure.kind, FailureKind::NoRoom);
        assert!(failure.message.contains("add a lane"), "{failure}");
        ports.swap_remove(5);
        let (_device, mut queues) = open("vdev:net_ring0", &PLAIN).unwrap();
        send(&mut queues[0], &[frame(1, 60)]);
        assert_eq!(receive(&mut queues[0], 1), [frame(1, 60)]);
    });
}

#[test]
fn a_lane_of_256_mib_holds_24_ports() {
    alone_with("limits::a_lane_of_256_mib_holds_24_ports", 256, |_| {
        let mut ports: Vec<_> = (0..24)
            .map(|n| open(&format!("vdev:net_ring{n}"), &PLAIN).unwrap_or_else(|e| panic!("port {n}: {e}")))
            .collect();
        for (_, queues) in &mut ports {
            let sent: Vec<_> = (0..500).map(|n| frame(n, 1514)).collect();
            send(&mut queues[0], &sent);
            assert_eq!(receive(&mut queues[0], 500), sent);
        }
    });
}

#[test]
fn memory_that_is_used_up_is_said_with_the_remedy() {
    alone_with("limits::memory_that_is_used_up_is_said_with_the_remedy", 32, |_| {
        let big = DeviceConfig { mtu: 9000, queues: 2, ..PLAIN };
        let mut ports = Vec::new();
        let error = loop {
            match open(&format!("vdev:net_null{}", ports.len()), &big) {
                Ok(port) => ports.push(port),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, DeviceError::NoMemory { .. }), "{error}");
        let failure: Failure = error.into();
        assert_eq!(failure.kind, FailureKind::NoRoom);
        assert!(failure.message.contains("raise memory_mib") && failure.message.contains("32 MiB"), "{failure}");
        // A smaller one may still fit, and when a port goes, its memory comes back.
        let open_ports = ports.len();
        ports.clear();
        for n in 0..open_ports {
            ports.push(open(&format!("vdev:net_null{n}"), &big).unwrap());
        }
    });
}
