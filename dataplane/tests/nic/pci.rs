//! PCI functions under vfio-pci, as a VF of any vendor but Mellanox is used: two e1000e behind an emulated IOMMU, in a QEMU
//! guest, joined by a wire.

use std::process::Command;
use std::time::Duration;

use ringspan_dataplane::nic::{Burst, DeviceConfig, DeviceError, Eal, EalConfig, HugePages, QueuePair};
use ringspan_testkit::qemu::{Guest, GuestSpec, split_arguments};
use ringspan_testkit::skip::{Need, can_run};

use crate::alone::{PLAIN, frame, in_guest, in_own_process, open, send, wait_for};

const MACHINE: &str = "-device intel-iommu,caching-mode=on,intremap=off \
    -netdev hubport,id=left,hubid=0 -device e1000e,netdev=left,addr=0x10,romfile= \
    -netdev hubport,id=right,hubid=0 -device e1000e,netdev=right,addr=0x11,romfile=";

#[test]
fn functions_under_vfio_are_plugged_in_and_out() {
    let name = "pci::functions_under_vfio_are_plugged_in_and_out";
    if in_guest() {
        return in_own_process(name, inside);
    }
    if !can_run(name, &[Need::Root, Need::Guest]) {
        return;
    }
    let (nics, kernel) = (split_arguments(MACHINE), "intel_iommu=on".into());
    let mut guest = Guest::boot(&GuestSpec { nics, kernel, memory_mib: 1024, ..GuestSpec::default() }).unwrap();
    let program = std::env::current_exe().unwrap();
    let script = format!(
        // The guest's own /tmp would hide a build folder that is there.
        "umount /tmp; echo 40 > /proc/sys/vm/nr_hugepages; modprobe vfio_iommu_type1 allow_unsafe_interrupts=1; modprobe vfio-pci && modprobe e1000e && {} {} --exact {name} --nocapture --test-threads=1 2>&1",
        crate::alone::mark_for_guest(),
        program.display()
    );
    let done = guest.run(&script, Duration::from_secs(120)).unwrap();
    assert!(done.code == 0 && done.text.contains("1 passed"), "{}\n{}", done.text, guest.console());
}

/// Length of the frames of [`settle`].
const PROBE: usize = 100;

/// Sends until something arrives: the emulated receiver starts a moment after its link is up, and what comes before is lost.
fn settle(from: &mut QueuePair, to: &mut QueuePair) {
    let mut burst = Burst::new();
    wait_for("a first frame", || {
        send(from, &[frame(0, PROBE)]);
        std::thread::sleep(Duration::from_millis(1));
        to.rx.receive(&mut burst) > 0
    });
}

/// Frames arrive unchanged, in order, all of them.
fn pass(sent: &[Vec<u8>], from: &mut QueuePair, to: &mut QueuePair) {
    settle(from, to);
    send(from, sent);
    let mut received = Vec::new();
    let mut burst = Burst::new();
    wait_for(&format!("{} frames", sent.len()), || {
        if to.rx.receive(&mut burst) > 0 {
            received.extend(burst.iter().map(|frame| frame.to_vec()).filter(|frame| frame.len() != PROBE));
            burst.clear();
        }
        received.len() == sent.len()
    });
    assert!(received == sent, "lengths {:?}", received.iter().map(Vec::len).collect::<Vec<_>>());
}

/// In the guest, where the kernel's e1000e has both functions.
fn inside() {
    // Hugepages, because this QEMU drops frames that lie in pages which are not neighbours in the guest's memory.
    let config = EalConfig { name: "guest".into(), memory_mib: 64, near: None, huge_pages: HugePages::Require };
    Eal::start(&config).unwrap();
    let (left, right) = ("pci:0000:00:10.0", "pci:0000:00:11.0");
    for device in [left, right] {
        let error = open(device, &PLAIN).map(|_| ()).unwrap_err();
        let DeviceError::KernelDriver { bound, needed, remedy, .. } = &error else { panic!("{error}") };
        assert_eq!((bound.as_str(), needed.as_str()), ("e1000e", "vfio-pci"));
        let command = remedy.split('`').nth(1).expect("a command in back ticks");
        let status = Command::new("sh").args(["-ec", command]).status().unwrap();
        assert!(status.success(), "{command}");
    }
    let (one, mut left_queues) = open(left, &PLAIN).unwrap();
    assert_eq!(one.status().driver, "net_e1000_em");
    let (other, mut right_queues) = open(right, &PLAIN).unwrap();
    wait_for("the links", || one.link().up && other.link().up);
    let sent: Vec<_> = (0..200).map(|n| frame(n, 101 + 7 * n)).collect();
    pass(&sent, &mut left_queues[0], &mut right_queues[0]);
    assert_ne!(one.status().mac, other.status().mac);

    // Plugged out and in again, with longer frames; the other one is changed while it is open.
    one.close(left_queues);
    let jumbo = DeviceConfig { mtu: 4000, ..PLAIN };
    let (one, mut left_queues) = open(left, &jumbo).unwrap();
    let (mut other, right_queues) = (other, right_queues);
    let mut right_queues = other.reconfigure(right_queues, &jumbo).unwrap();
    wait_for("the links", || one.link().up && other.link().up);
    let sent: Vec<_> = (0..20).map(|n| frame(n, 4014)).collect();
    pass(&sent, &mut left_queues[0], &mut right_queues[0]);
    other.close(right_queues);

    // Pulled out of the machine while it is open: the kernel waits until it is let go of.
    let pull = std::thread::spawn(|| std::fs::write("/sys/bus/pci/devices/0000:00:10.0/remove", "1"));
    wait_for("the word that the device goes", || one.removed());
    one.close(left_queues);
    pull.join().unwrap().unwrap();
    let error = open(left, &PLAIN).map(|_| ()).unwrap_err();
    assert!(matches!(error, DeviceError::NotFound { .. }), "{error}");
    std::fs::write("/sys/bus/pci/rescan", "1").unwrap();
    assert!(!matches!(open(left, &PLAIN).map(|_| ()), Err(DeviceError::NotFound { .. })));
}
