//! Frames between the kernel and a port: TAPs of our own making, TAPs that were there before, and interfaces by AF_PACKET.

use nix::poll::{PollFd, PollFlags, poll};
use ringspan_dataplane::nic::{DeviceConfig, DeviceError, QueuePair};
use ringspan_protocol::{MacAddress, Policy, PolicyStatus, ReceiveWake};

use crate::alone::{PLAIN, alone_in_namespace, open, receive, send, wait_for};
use crate::kernel::{self, Wire, frame, ip, is_ours};

/// Frames both ways between the interface and the queue.
fn exchange(interface: &str, queue: &mut QueuePair, sizes: &[usize]) {
    let wire = Wire::new(interface);
    for (number, size) in sizes.iter().enumerate() {
        let sent = frame(number, *size);
        wire.send(&sent);
        let mut received = receive(queue, 1);
        received.retain(|frame| is_ours(frame));
        while received.is_empty() {
            received = receive(queue, 1);
            received.retain(|frame| is_ours(frame));
        }
        assert_eq!(received, std::slice::from_ref(&sent), "to the port, {size} bytes");
        send(queue, std::slice::from_ref(&sent));
        assert_eq!(wire.receive(), sent, "from the port, {size} bytes");
    }
}

#[test]
fn tap_carries_frames_both_ways() {
    alone_in_namespace("tap::tap_carries_frames_both_ways", |_| {
        let mac: MacAddress = "52:54:00:aa:bb:cc".parse().unwrap();
        let config = DeviceConfig { mac: Some(mac), ..PLAIN };
        let (mut device, mut queues) = open("vdev:net_tap0,iface=rsnic0", &config).unwrap();
        let status = device.status();
        assert_eq!((status.driver.as_str(), status.mac, status.promiscuous), ("net_tap", mac, PolicyStatus::On));
        assert!(status.link_up);
        exchange("rsnic0", &mut queues[0], &[60, 64, 1000, 1514]);
        // A frame that comes wakes who waits for the queue's interrupt.
        assert_eq!(status.receive_wake, ReceiveWake::Timer, "none was seen yet");
        queues[0].rx.listen();
        Wire::new("rsnic0").send(&frame(1, 60));
        let mut set = [PollFd::new(queues[0].rx.wake().unwrap(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut set, 10_000u16), Ok(1));
        queues[0].rx.look_for_signal();
        assert_eq!(device.status().receive_wake, ReceiveWake::Interrupt);
        queues[0].rx.ignore();
        device.set_promiscuous(Policy::Off).unwrap();
        ip("link set rsnic0 down");
        wait_for("the link to go down", || !device.link().up);
        device.close(queues);
        assert!(!kernel::exists("rsnic0"), "the TAP is gone with its device");
    });
}

#[test]
fn tap_that_exists_is_attached_to_and_stays() {
    alone_in_namespace("tap::tap_that_exists_is_attached_to_and_stays", |_| {
        ip("tuntap add dev rsnic1 mode tap multi_queue");
        ip("link set rsnic1 up");
        for _ in 0..2 {
            let (device, mut queues) =
                open("vdev:net_tap0,iface=rsnic1", &DeviceConfig { queues: 2, ..PLAIN }).unwrap();
            // The kernel chooses the queue of the port; ours is free.
            let wire = Wire::new("rsnic1");
            send(&mut queues[1], &[frame(1, 60)]);
            assert_eq!(wire.receive(), frame(1, 60));
            device.close(queues);
            assert!(kernel::exists("rsnic1"), "a TAP that was there before stays");
        }
    });
}

#[test]
fn tap_mtu_is_set_or_refused_with_its_bounds() {
    alone_in_namespace("tap::tap_mtu_is_set_or_refused_with_its_bounds", |_| {
        let jumbo = DeviceConfig { mtu: 9000, ..PLAIN };
        match open("vdev:net_tap0,iface=rsnic2", &jumbo) {
            Ok((_device, mut queues)) => {
                assert_eq!(kernel::mtu("rsnic2"), 9000);
                exchange("rsnic2", &mut queues[0], &[60, 9014]);
            }
            // DPDK 22.11's driver has a fixed longest frame.
            Err(error) => assert!(matches!(error, DeviceError::Mtu { asked: 9000, most: 1500..9000, .. }), "{error}"),
        }
        let (_device, mut queues) = open("vdev:net_tap1,iface=rsnic3", &DeviceConfig { mtu: 1400, ..PLAIN }).unwrap();
        assert_eq!(kernel::mtu("rsnic3"), 1400);
        exchange("rsnic3", &mut queues[0], &[60, 1414]);
    });
}

#[test]
fn interfaces_by_af_packet_and_pcap() {
    alone_in_namespace("tap::interfaces_by_af_packet_and_pcap", |_| {
        ip("link add rsnic4 type veth peer name rsnic5");
        ip("link set rsnic4 up");
        ip("link set rsnic5 up");
        for (device, sizes) in [
            ("vdev:net_af_packet0,iface=rsnic5", &[60, 1000, 1514][..]),
            ("vdev:net_pcap0,iface=rsnic5", &[60, 1000, 1514]),
        ] {
            let (opened, mut queues) = open(device, &PLAIN).unwrap_or_else(|e| panic!("{device}: {e}"));
            exchange("rsnic4", &mut queues[0], sizes);
            opened.close(queues);
        }
        // Its driver sets no MTU: the interface keeps what the host gave it.
        ip("link set rsnic4 mtu 9000");
        ip("link set rsnic5 mtu 9000");
        let (opened, mut queues) = open("vdev:net_pcap0,iface=rsnic5", &DeviceConfig { mtu: 9000, ..PLAIN }).unwrap();
        exchange("rsnic4", &mut queues[0], &[60, 9014]);
        opened.close(queues);
        // AF_PACKET has no filter for multicast: an error only when it must be open.
        let config = DeviceConfig { allmulti: Policy::On, ..PLAIN };
        let error = open("vdev:net_af_packet0,iface=rsnic5", &config).map(|_| ()).unwrap_err();
        assert!(matches!(error, DeviceError::Filter { filter: "allmulti", .. }), "{error}");
        let (device, _queues) = open("vdev:net_af_packet0,iface=rsnic5", &PLAIN).unwrap();
        assert!(matches!(device.status().allmulti, PolicyStatus::Refused(_)));
    });
}

#[test]
fn interface_that_does_not_exist_is_named() {
    alone_in_namespace("tap::interface_that_does_not_exist_is_named", |_| {
        for device in ["vdev:net_af_packet0,iface=rsnone0", "vdev:net_pcap0,iface=rsnone0"] {
            let error = open(device, &PLAIN).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("rsnone0"), "{error}");
        }
    });
}
