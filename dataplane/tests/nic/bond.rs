//! A port's device that is two devices, by DPDK's bonding driver.

use ringspan_dataplane::nic::{DeviceConfig, DeviceError};
use ringspan_protocol::MacAddress;

use crate::alone::{PLAIN, alone_in_namespace, open, receive, send, wait_for};
use crate::kernel::{self, Wire, frame, ip, is_ours};

/// Both TAPs are there before, so that a port that comes later finds the same ones.
fn taps(names: [&str; 2]) {
    for name in names {
        ip(&format!("tuntap add dev {name} mode tap multi_queue"));
        ip(&format!("link set {name} up"));
    }
}

#[test]
fn two_devices_are_one_port_that_goes_on_by_the_other_when_a_link_goes_down() {
    alone_in_namespace("bond::two_devices_are_one_port_that_goes_on_by_the_other_when_a_link_goes_down", |_| {
        let names = ["rsbnd0", "rsbnd1"];
        taps(names);
        let mac: MacAddress = "52:54:00:aa:bb:dd".parse().unwrap();
        let config = DeviceConfig { mac: Some(mac), ..PLAIN };
        let spec = "bond:mode=1,vdev:net_tap0,iface=rsbnd0,vdev:net_tap1,iface=rsbnd1";
        let (mut device, mut queues) = open(spec, &config).unwrap();
        let status = device.status();
        assert_eq!((status.driver.as_str(), status.mac), ("net_bonding", mac), "its own, and not its first member's");
        let members: Vec<String> = status.members.iter().map(|one| one.device.to_string()).collect();
        assert_eq!(members, ["vdev:net_tap0,iface=rsbnd0", "vdev:net_tap1,iface=rsbnd1"]);
        wait_for("one to send", || device.members().iter().filter(|one| one.active).count() == 1);
        let error = open("vdev:net_tap0,iface=rsbnd0", &PLAIN).map(|_| ()).unwrap_err();
        assert!(matches!(error, DeviceError::InUse { .. }), "{error}");
        for _ in 0..2 {
            let sends = device.members().iter().position(|one| one.active).unwrap();
            let wire = Wire::new(names[sends]);
            let ours = frame(7, 200);
            send(&mut queues[0], std::slice::from_ref(&ours));
            assert_eq!(wire.receive(), ours, "by {}", names[sends]);
            wire.send(&ours);
            let mut came = vec![];
            while came.is_empty() {
                came = receive(&mut queues[0], 1);
                came.retain(|frame| is_ours(frame));
            }
            assert_eq!(came, [ours]);
            drop(wire);
            wait_for("the other one to send", || {
                // Until it stays down: the driver sets it up by itself at times.
                ip(&format!("link set {} down", names[sends]));
                device.members()[1 - sends].active && !device.members()[sends].link.up
            });
            assert!(device.link().up, "the port has a link as long as one has");
            ip(&format!("link set {} up", names[sends]));
            wait_for("its link to come back", || device.members()[sends].link.up);
        }
        // While it runs, too, for both: another member that sends has it as well.
        let other: MacAddress = "52:54:00:aa:bb:de".parse().unwrap();
        device.set_mac(other).unwrap();
        assert_eq!(device.status().mac, other);
        let sends = device.members().iter().position(|one| one.active).unwrap();
        wait_for("the member that sends to have it", || kernel::address(names[sends]) == other);
        device.close(queues);
        // All of it is let go of: each can be had by itself, and both again.
        let (device, queues) = open("vdev:net_tap1,iface=rsbnd1", &PLAIN).unwrap();
        device.close(queues);
        let again = "bond:mode=2,vdev:net_tap0,iface=rsbnd0,vdev:net_tap1,iface=rsbnd1";
        let (device, queues) = open(again, &PLAIN).unwrap();
        wait_for("both to send", || device.members().iter().all(|one| one.active));
        device.close(queues);
        assert!(kernel::exists("rsbnd0"), "a TAP that was there before stays");
    });
}
