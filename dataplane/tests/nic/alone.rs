//! A test that runs in a process of its own.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ringspan_dataplane::nic::{Burst, Device, DeviceConfig, DeviceError, Eal, EalConfig, HugePages, QueuePair};
use ringspan_protocol::{Policy, ZeroCopy};
use ringspan_testkit::guest::Kind;

/// Says to a process that it is the one for the test.
const MARK: &str = "RINGSPAN_TEST_ALONE";
/// Says to a process that it runs in a guest of the test's.
const IN_GUEST: &str = "RINGSPAN_TEST_IN_GUEST";
/// Longest wait for something to happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest run of a test.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs `body` in a new process of this test program, with EAL started with 64 MiB. `name` is the test's own name.
pub fn alone(name: &str, body: impl FnOnce(Eal)) {
    alone_with(name, 64, body);
}

/// The same over split rings, and then over packed ones.
pub fn alone_over_both(name: &str, body: impl Fn(Eal, Kind)) {
    alone(name, |eal| {
        for kind in [Kind::Split, Kind::Packed] {
            println!("over {kind:?} rings");
            body(eal, kind);
        }
    });
}

/// The same with another amount of memory.
pub fn alone_with(name: &str, memory_mib: u32, body: impl FnOnce(Eal)) {
    in_own_process(name, || {
        let config = EalConfig {
            name: format!("test-{}", std::process::id()),
            memory_mib,
            near: None,
            huge_pages: HugePages::Off,
        };
        body(Eal::start(&config).expect("EAL starts without hugepages"));
    });
}

/// The same with 64 MiB, in a network namespace of its own; skipped where there can be none.
pub fn alone_in_namespace(name: &str, body: impl FnOnce(Eal)) {
    if !crate::kernel::namespaces(name) {
        return;
    }
    in_own_process(name, || {
        crate::kernel::own_namespace();
        let config = EalConfig {
            name: format!("test-{}", std::process::id()),
            memory_mib: 64,
            near: None,
            huge_pages: HugePages::Off,
        };
        body(Eal::start(&config).expect("EAL starts without hugepages"));
    });
}

/// The same without EAL.
pub fn in_own_process(name: &str, body: impl FnOnce()) {
    if std::env::var_os(MARK).is_some() {
        return body();
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(MARK, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let read = |mut stream: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            stream.read_to_end(&mut text).ok();
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let out = read(Box::new(child.stdout.take().unwrap()));
    let err = read(Box::new(child.stderr.take().unwrap()));
    let end = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > end {
            child.kill().unwrap();
            break child.wait().unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let (out, err) = (out.join().unwrap(), err.join().unwrap());
    assert!(status.success() && out.contains("1 passed"), "{name}: {status}\n{out}\n{err}");
}

/// Whether this process runs in a guest of the test's.
pub fn in_guest() -> bool {
    std::env::var_os(IN_GUEST).is_some()
}

/// Shell words that set what [`in_guest`] looks for, and have the test run in that very process.
pub fn mark_for_guest() -> String {
    format!("{IN_GUEST}=1 {MARK}=1")
}

/// Waits until `condition` holds.
#[track_caller]
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

/// One queue, MTU 1500, filters as they are.
pub const PLAIN: DeviceConfig = DeviceConfig {
    queues: 1,
    mtu: 1500,
    mac: None,
    promiscuous: Policy::Auto,
    allmulti: Policy::Auto,
    offloads: true,
    zero_copy: ZeroCopy::Off,
    zero_copy_from: None,
};

/// Opens a device by its text.
pub fn open(device: &str, config: &DeviceConfig) -> Result<(Device, Vec<QueuePair>), DeviceError> {
    Device::open(&device.parse().expect("a device"), config)
}

/// A frame whose bytes say which one it is and are different everywhere.
pub fn frame(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (number.wrapping_mul(31) ^ at.wrapping_mul(7) ^ (at >> 8)) as u8).collect()
}

/// Allocates, fills and sends frames; all must be taken.
#[track_caller]
pub fn send(queue: &mut QueuePair, frames: &[Vec<u8>]) {
    let mut burst = Burst::new();
    for part in frames.chunks(Burst::CAPACITY) {
        assert!(burst.allocate(&queue.tx.pool().clone(), part.len()), "no buffers");
        for (index, frame) in part.iter().enumerate() {
            burst.frame_mut(index).fill(frame);
        }
        let mut sent = 0;
        wait_for("room in the device", || {
            sent += queue.tx.send(&mut burst);
            burst.is_empty()
        });
        assert_eq!(sent, part.len());
    }
}

/// Receives until there are `n` frames.
#[track_caller]
pub fn receive(queue: &mut QueuePair, n: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut burst = Burst::new();
    let end = Instant::now() + PATIENCE;
    while frames.len() < n {
        queue.rx.receive(&mut burst);
        frames.extend(burst.iter().map(|frame| frame.to_vec()));
        burst.clear();
        assert!(Instant::now() < end, "{} of {n} frames came", frames.len());
    }
    frames
}
