//! Changes of the kernel's datapath, from the kernel's message to the rule that an engine is told: decoded, compared, compiled.
//!
//! `cargo bench -p ringspan-benches --bench kernel_flows`; at its end it says whether 10,000 changes a second are taken. The messages were recorded from a Linux 6.1 in a QEMU guest (datagrams of the
//! group ovs_flow while `ovs-dpctl add-flow` put the flows of tests/e2e/kernel_flows.rs), and get other names and addresses here.

#[path = "../aim/mod.rs"]
mod aim;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringspan::ovs::Replay;

const RECORDED: &str = include_str!("messages.hex");
/// Changes a second that are to be taken, for as long as they come.
const WANTED: u32 = 10_000;
/// Changes in one round: as many flows come, and go again.
const CHANGES: usize = 10_000;
/// struct nlmsghdr and genlmsghdr, and struct ovs_header behind them.
const HEADERS: usize = 20;
/// OVS_FLOW_CMD_NEW, OVS_FLOW_CMD_DEL; OVS_FLOW_ATTR_KEY, OVS_FLOW_ATTR_UFID; OVS_KEY_ATTR_ETHERNET.
const NEW: u8 = 1;
const DEL: u8 = 2;
const KEY: u16 = 1;
const UFID: u16 = 9;
const ETHERNET: u16 = 4;

fn recorded() -> Vec<Vec<u8>> {
    let byte = |pair: &str| u8::from_str_radix(pair, 16).expect("the recording is hexadecimal");
    let bytes = |line: &str| (0..line.len() / 2).map(|at| byte(&line[2 * at..2 * at + 2])).collect();
    RECORDED.lines().map(bytes).collect()
}

/// Where the value of an attribute stands between `from` and `to`.
fn find(message: &[u8], from: usize, to: usize, kind: u16) -> Option<(usize, usize)> {
    let mut at = from;
    while at + 4 <= to {
        let length = usize::from(u16::from_ne_bytes([message[at], message[at + 1]]));
        if u16::from_ne_bytes([message[at + 2], message[at + 3]]) & 0x3fff == kind {
            return Some((at + 4, at + length));
        }
        at += length.max(4).next_multiple_of(4);
    }
    None
}

/// The same message about another flow.
fn varied(message: &[u8], number: u32) -> Vec<u8> {
    let mut message = message.to_vec();
    let (name, _) = find(&message, HEADERS + 4, message.len(), UFID).expect("a name");
    message[name..name + 4].copy_from_slice(&number.to_ne_bytes());
    if let Some((from, to)) = find(&message, HEADERS + 4, message.len(), KEY) {
        let (mac, _) = find(&message, from, to, ETHERNET).expect("an Ethernet header");
        message[mac + 2..mac + 6].copy_from_slice(&number.to_be_bytes());
    }
    message
}

/// All flows come and go again, a hundred at a time: what comes in 10 ms at 10,000 a second.
fn round(replay: &mut Replay, come: &[Vec<u8>], go: &[Vec<u8>]) {
    for some in come.chunks(100).chain(go.chunks(100)) {
        replay.feed(black_box(some).iter().map(Vec::as_slice)).expect("what the kernel told is understood");
    }
}

fn kernel_flows(c: &mut Criterion) {
    let recorded = recorded();
    let is = |message: &&Vec<u8>, command| {
        message[16] == command && find(message, HEADERS + 4, message.len(), UFID).is_some()
    };
    let put: Vec<&Vec<u8>> = recorded.iter().filter(|message| is(message, NEW)).collect();
    let gone = recorded.iter().find(|message| is(message, DEL)).expect("one that goes");
    let number = |at: usize| at as u32;
    let come: Vec<Vec<u8>> = (0..CHANGES / 2).map(|at| varied(put[at % put.len()], number(at))).collect();
    let go: Vec<Vec<u8>> = come
        .iter()
        .map(|message| {
            let (name, end) = find(message, HEADERS + 4, message.len(), UFID).expect("a name");
            let mut going = gone.clone();
            let (at, _) = find(gone, HEADERS + 4, gone.len(), UFID).expect("a name");
            going[at..at + 16].copy_from_slice(&message[name..end]);
            going
        })
        .collect();
    let family = u16::from_ne_bytes([gone[4], gone[5]]);
    let index = u32::from_ne_bytes([gone[20], gone[21], gone[22], gone[23]]);
    let replay = || Replay::new("nic0".parse().expect("a name"), 2, family, index);
    let mut check = replay();
    check.feed(come.iter().map(Vec::as_slice)).expect("what the kernel told is understood");
    let (known, offloaded) = check.flows();
    assert_eq!(known, CHANGES / 2);
    assert!(offloaded >= known / 3, "{offloaded} of {known} flows become rules");
    check.feed(go.iter().map(Vec::as_slice)).expect("what the kernel told is understood");
    assert_eq!(check.flows(), (0, 0));

    let mut group = c.benchmark_group("kernel flows");
    group.throughput(Throughput::Elements(CHANGES as u64));
    group.bench_function("changes", |b| {
        let mut replay = replay();
        b.iter(|| round(&mut replay, &come, &go));
    });
    group.finish();
    let mut replay = replay();
    aim::tell("the kernel's changes, decoded, compared and compiled", "changes", WANTED, CHANGES, || {
        round(&mut replay, &come, &go);
    });
}

criterion_group!(benches, kernel_flows);
criterion_main!(benches);
