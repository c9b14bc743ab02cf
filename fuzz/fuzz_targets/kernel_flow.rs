//! Any bytes as a datagram of the kernel's group ovs_flow: no panic, and what was read prints, is read again by the compiler and goes to an engine.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringspan::ovs::Replay;

/// The family and the datapath of the recorded messages (benches/benches/kernel_flows).
const FAMILY: u16 = 0x22;
const DATAPATH: u32 = 2;

fuzz_target!(|bytes: &[u8]| {
    let mut replay = Replay::new("nic0".parse().expect("a name"), 2, FAMILY, DATAPATH);
    // What is not understood is said, and nothing of it is kept.
    let _ = replay.feed([bytes]);
});
