//! Opening, refusing, changing and closing devices.

use ringspan_dataplane::nic::{Burst, Device, DeviceConfig, DeviceError, Eal, EalConfig, EalError, HugePages};
use ringspan_protocol::{Failure, FailureKind, MacAddress, Policy, PolicyStatus};
use ringspan_testkit::skip::{Need, can_run};

use crate::alone::{PLAIN, alone, frame, in_own_process, open, receive, send};

fn refusal(device: &str, config: &DeviceConfig) -> Failure {
    open(device, config).map(|_| ()).expect_err("a refusal").into()
}

#[test]
fn eal_starts_once_and_leaves_affinity_alone() {
    in_own_process("devices::eal_starts_once_and_leaves_affinity_alone", || {
        let affinity = || nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
        let before = affinity();
        assert!(matches!(open("vdev:net_null0", &PLAIN), Err(DeviceError::NotStarted { .. })));
        let config = EalConfig { name: "bad name".into(), memory_mib: 32, near: None, huge_pages: HugePages::Off };
        assert!(matches!(Eal::start(&config), Err(EalError::Name(_))));
        let config = EalConfig { name: format!("once-{}", std::process::id()), ..config };
        let eal = Eal::start(&config).unwrap();
        assert!(matches!(Eal::start(&config), Err(EalError::AlreadyStarted)));
        assert_eq!(affinity(), before);
        assert!(
            !std::path::Path::new(&format!("/run/dpdk/ringspan-{}", config.name)).exists(),
            "an empty folder is left"
        );
        assert!(!eal.huge_pages() && eal.max_ports() >= 32 && eal.dpdk_version().starts_with("DPDK "));
        // net_tap sends a real-time signal with each frame; it must not interrupt what threads of ours do.
        let blocked = std::thread::spawn(|| {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap().trim().to_string();
            u64::from_str_radix(&blocked, 16).unwrap()
        });
        let of_tap = libc::SIGRTMIN() + 1;
        assert_ne!(blocked.join().unwrap() & 1 << (of_tap - 1), 0);
        // The thread that started EAL is known to it already; others are told from it.
        let _again = eal.register_thread().unwrap();
        std::thread::spawn(move || drop(eal.register_thread().unwrap())).join().unwrap();
    });
}

/// Whether so many bytes in one piece are mapped between EAL's base address and what 39 bits reach.
fn memory_above_guests(bytes: u64) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let span = |line: &str| {
        let (from, to) = line.split_whitespace().next()?.split_once('-')?;
        Some((u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?))
    };
    // What is reserved only has no rights.
    let used = maps.lines().filter(|line| line.contains(" rw")).filter_map(span);
    used.into_iter().any(|(from, to)| from >= 1 << 38 && to <= 1 << 39 && to - from >= bytes)
}

#[test]
fn packet_memory_is_above_what_guests_call_theirs() {
    alone("devices::packet_memory_is_above_what_guests_call_theirs", |_| assert!(memory_above_guests(64 << 20)));
}

#[test]
fn packet_memory_is_elsewhere_when_that_place_is_taken() {
    in_own_process("devices::packet_memory_is_elsewhere_when_that_place_is_taken", || {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        let (at, len) = (std::ptr::without_provenance_mut(1 << 38), 1 << 38);
        // SAFETY: nothing is replaced, and nobody uses it.
        let taken = unsafe { libc::mmap(at, len, libc::PROT_NONE, flags, -1, 0) };
        assert_eq!(taken, at);
        let name = format!("test-{}", std::process::id());
        Eal::start(&EalConfig { name, memory_mib: 64, near: None, huge_pages: HugePages::Off }).unwrap();
        assert!(!memory_above_guests(64 << 20));
    });
}

#[test]
fn hugepages_are_used_where_enough_are_free() {
    let name = "devices::hugepages_are_used_where_enough_are_free";
    if !can_run(name, &[Need::Root, Need::HugePages(32)]) {
        return;
    }
    in_own_process(name, || {
        let config = EalConfig {
            name: format!("huge-{}", std::process::id()),
            memory_mib: 32,
            near: None,
            huge_pages: HugePages::Auto,
        };
        let eal = Eal::start(&config).unwrap();
        assert!(eal.huge_pages());
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let used = status.lines().find_map(|line| line.strip_prefix("HugetlbPages:")).unwrap().trim();
        assert_eq!(used, "32768 kB", "as much as was asked for, not more");
        let (_device, mut queues) = open("vdev:net_ring0", &PLAIN).unwrap();
        let sent: Vec<_> = (0..100).map(|n| frame(n, 1514)).collect();
        send(&mut queues[0], &sent);
        assert_eq!(receive(&mut queues[0], 100), sent);
        // The memory does not grow: a device too many is refused.
        let ports: Vec<_> = (0..12).map_while(|n| open(&format!("vdev:net_null{n}"), &PLAIN).ok()).collect();
        assert!(ports.len() < 12, "12 ports and 32 MiB");
    });
}

#[test]
fn removal_from_the_bus_is_noticed() {
    alone("devices::removal_from_the_bus_is_noticed", |_| {
        let (device, mut queues) = open("vdev:net_null0,size=64", &PLAIN).unwrap();
        let (other, _queues) = open("vdev:net_null1,size=64", &PLAIN).unwrap();
        assert!(!device.removed());
        // What DPDK does when the kernel says that a device is gone.
        // SAFETY: EAL is started, the name is terminated.
        unsafe { dpdk_sys::rte_dev_event_callback_process(c"net_null0".as_ptr(), dpdk_sys::RTE_DEV_EVENT_REMOVE) };
        assert!(device.removed() && !other.removed());
        queues[0].rx.receive(&mut Burst::new());
        device.close(queues);
        open("vdev:net_null0,size=64", &PLAIN).unwrap();
    });
}

#[test]
fn refusals_say_what_is_wrong() {
    alone("devices::refusals_say_what_is_wrong", |_| {
        let _open = open("vdev:net_null0,size=64", &PLAIN).unwrap();
        for (device, config, kind, words) in [
            ("vdev:net_null0,size=100", PLAIN, FailureKind::Busy, "used by another port"),
            ("vdev:net_nonsense0", PLAIN, FailureKind::NotFound, "net_nonsense"),
            ("vdev:net_null1,nonsense=1", PLAIN, FailureKind::Invalid, "nonsense"),
            ("pci:0000:ff:1f.6", PLAIN, FailureKind::NotFound, "no PCI function 0000:ff:1f.6"),
            ("soft:nic0/vf1", PLAIN, FailureKind::NotFound, "there is no NIC nic0"),
            ("vhost-vdpa:/dev/vhost-vdpa-0", PLAIN, FailureKind::NotFound, "there is no /dev/vhost-vdpa-0"),
            ("vdev:net_ring1", DeviceConfig { queues: 32, ..PLAIN }, FailureKind::Unsupported, "16 queues"),
            ("vdev:net_null1", DeviceConfig { queues: 0, ..PLAIN }, FailureKind::Unsupported, "queues"),
        ] {
            let failure = refusal(device, &config);
            assert!(failure.message.contains(words), "{device}: {failure}");
            assert_eq!(failure.kind, kind, "{device}: {failure}");
            assert!(failure.message.contains(device), "{device}: {failure}");
        }
        // What was refused can be had when it is asked for properly.
        for device in ["vdev:net_null1,size=64", "vdev:net_ring1"] {
            open(device, &PLAIN).unwrap();
        }
    });
}

#[test]
fn a_closed_device_can_be_opened_again() {
    alone("devices::a_closed_device_can_be_opened_again", |_| {
        for round in 0..100 {
            let device = if round % 2 == 0 { "vdev:net_ring0" } else { "vdev:net_null0,size=64" };
            let (opened, mut queues) = open(device, &PLAIN).unwrap_or_else(|e| panic!("round {round}: {e}"));
            // Frames that nobody receives must not keep the memory.
            let mut burst = Burst::new();
            assert!(burst.allocate(opened.pool(), 30));
            (0..30).for_each(|index| burst.frame_mut(index).set_len(60));
            queues[0].tx.send(&mut burst);
            queues[0].rx.receive(&mut burst);
            drop(burst);
            opened.close(queues);
        }
    });
}

#[test]
fn a_queue_keeps_its_device() {
    alone("devices::a_queue_keeps_its_device", |_| {
        let (device, mut queues) = open("vdev:net_ring0", &PLAIN).unwrap();
        drop(device);
        send(&mut queues[0], &[frame(1, 60)]);
        assert_eq!(receive(&mut queues[0], 1), [frame(1, 60)]);
        assert_eq!(refusal("vdev:net_ring0", &PLAIN).kind, FailureKind::Busy);
        drop(queues);
        open("vdev:net_ring0", &PLAIN).unwrap();
    });
}

#[test]
fn frames_outlive_their_device() {
    alone("devices::frames_outlive_their_device", |_| {
        let (device, mut queues) = open("vdev:net_ring0", &PLAIN).unwrap();
        send(&mut queues[0], &[frame(7, 200)]);
        let mut burst = Burst::new();
        assert_eq!(queues[0].rx.receive(&mut burst), 1);
        device.close(queues);
        assert_eq!(burst.frame(0).data(), frame(7, 200));
        // Also into another device, which then holds a buffer of the first one's pool.
        let (other, mut queues) = open("vdev:net_ring1", &PLAIN).unwrap();
        assert_eq!(queues[0].tx.send(&mut burst), 1);
        drop(burst);
        assert_eq!(receive(&mut queues[0], 1), [frame(7, 200)]);
        other.close(queues);
    });
}

#[test]
fn reconfiguration_changes_queues_and_mtu_and_can_be_refused() {
    alone("devices::reconfiguration_changes_queues_and_mtu_and_can_be_refused", |_| {
        let (mut device, mut queues) = open("vdev:net_ring0", &PLAIN).unwrap();
        // In the ring while it changes: comes out afterwards.
        send(&mut queues[0], &[frame(1, 60)]);
        let jumbo = DeviceConfig { mtu: 9000, ..PLAIN };
        let mut queues = device.reconfigure(queues, &jumbo).unwrap();
        assert_eq!(receive(&mut queues[0], 1), [frame(1, 60)]);
        send(&mut queues[0], &[frame(2, 9014)]);
        assert_eq!(receive(&mut queues[0], 1), [frame(2, 9014)]);
        assert_eq!(device.status().mtu, 9000);

        let (error, mut queues) = device.reconfigure(queues, &DeviceConfig { queues: 999, ..jumbo }).unwrap_err();
        assert!(matches!(error, DeviceError::Queues { asked: 999, .. }), "{error}");
        send(&mut queues[0], &[frame(3, 9014)]);
        assert_eq!(receive(&mut queues[0], 1), [frame(3, 9014)], "the old configuration runs on");

        let kept = queues.pop();
        let (error, mut queues) = device.reconfigure(queues, &PLAIN).unwrap_err();
        assert!(matches!(error, DeviceError::QueuesAway { .. }), "{error}");
        queues.extend(kept);
        let queues = device.reconfigure(queues, &PLAIN).unwrap();
        assert_eq!(device.pool().available(), device.pool().size());
        device.close(queues);
    });
}

#[test]
fn address_and_filters_are_set_or_refused_by_policy() {
    alone("devices::address_and_filters_are_set_or_refused_by_policy", |_| {
        let mac: MacAddress = "52:54:00:12:34:56".parse().unwrap();
        let config = DeviceConfig { mac: Some(mac), ..PLAIN };
        let (mut device, _queues) = open("vdev:net_null0", &config).unwrap();
        assert_eq!(device.status().mac, mac);
        let other: MacAddress = "52:54:00:12:34:57".parse().unwrap();
        device.set_mac(other).unwrap();
        assert_eq!(device.status().mac, other);
        // net_null receives everything and cannot be told otherwise: shown, and no error.
        device.set_promiscuous(Policy::Off).unwrap();
        assert!(matches!(device.status().promiscuous, PolicyStatus::Refused(_)), "{:?}", device.status());
        device.set_allmulti(Policy::On).unwrap();
        assert_eq!(device.status().allmulti, PolicyStatus::On);

        // net_ring has both filters and no changeable address.
        let (mut ring, _queues) = open("vdev:net_ring0", &PLAIN).unwrap();
        assert_eq!(ring.status().promiscuous, PolicyStatus::On);
        ring.set_promiscuous(Policy::Off).unwrap();
        ring.set_allmulti(Policy::On).unwrap();
        assert_eq!((ring.status().promiscuous, ring.status().allmulti), (PolicyStatus::Off, PolicyStatus::On));
        let error = ring.set_mac(mac).unwrap_err().to_string();
        assert!(error.contains("refused the MAC address 52:54:00:12:34:56"), "{error}");
    });
}

#[test]
fn pcap_files_are_read_and_written() {
    alone("devices::pcap_files_are_read_and_written", |_| {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
        let (written, again) = (file("written.pcap"), file("again.pcap"));
        let sent: Vec<_> = (0..20).map(|n| frame(n, 60 + 10 * n)).collect();
        let write = |device: String| -> (Device, Vec<_>) { open(&device, &PLAIN).unwrap() };
        let (device, mut queues) = write(format!("vdev:net_pcap0,tx_pcap={written}"));
        send(&mut queues[0], &sent);
        device.close(queues);
        let (device, mut queues) = write(format!("vdev:net_pcap0,rx_pcap={written},tx_pcap={again}"));
        assert_eq!(receive(&mut queues[0], sent.len()), sent);
        device.close(queues);
    });
}
