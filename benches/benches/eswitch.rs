//! The software NIC's switch: what it costs to read a burst of frames and to find a rule for each, with 10,000 rules under 8 masks.
//!
//! `cargo bench -p ringspan-benches --bench eswitch`

mod cycles;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringspan_dataplane::eswitch::classifier::Classifier;
use ringspan_dataplane::eswitch::key::{ALWAYS, Key};
use ringspan_protocol::{Field, FieldMatch, RuleId};

const BURST: usize = 64;
const RULES: u32 = 10_000;
/// What the rules of each mask look at, beside the port and the type: bits of both IPv4 addresses and of both ports, and the MAC addresses.
const MASKS: [(u32, u32, u16, bool); 8] = [
    (32, 32, 0xffff, true),
    (32, 32, 0xffff, false),
    (32, 32, 0, true),
    (32, 24, 0xffff, true),
    (24, 32, 0xffff, false),
    (24, 24, 0, true),
    (16, 32, 0xffff, false),
    (32, 16, 0, false),
];

/// A UDP frame of 64 bytes, its check sequence included, of a flow of its own.
fn frame(flow: u32) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    frame[14..24].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17]);
    // Each mask has networks of its own, so that no two rules overlap, as OVS's flows do not.
    let (mask, flow) = (flow % 8, flow / 8);
    frame[26..30].copy_from_slice(&(0x0a00_0000 + (mask << 20) + (flow << 8)).to_be_bytes()[..4]);
    frame[30..34].copy_from_slice(&(0xac10_0000 + (mask << 16) + flow).to_be_bytes());
    if mask == 4 || mask == 6 {
        frame[26..30].copy_from_slice(&(0x0a00_0000 + (mask << 20)).to_be_bytes());
    }
    if mask == 3 || mask == 5 || mask == 7 {
        frame[30..34].copy_from_slice(&(0xac10_0000 + (mask << 16)).to_be_bytes());
    }
    frame[34..38].copy_from_slice(&[0x30, 0x39, 0x0d, 0x80]);
    frame[38..40].copy_from_slice(&26u16.to_be_bytes());
    frame
}

/// The rule of a flow.
fn rule(flow: u32) -> (Key, Key) {
    let (frame, (src, dst, port, macs)) = (frame(flow), MASKS[flow as usize % 8]);
    let (mut value, mut mask) = (Key::EMPTY, Key::EMPTY);
    value.set_port(1);
    mask.0[0] |= ALWAYS;
    let number =
        |at: usize, len: usize| frame[at..at + len].iter().fold(0u128, |sum, byte| sum << 8 | u128::from(*byte));
    let prefix = |bits: u32| u128::from(u32::MAX << (32 - bits));
    let mut ask = |field: Field, is: u128, bits: u128| {
        let field = FieldMatch::new(field, is & bits, bits).expect("a value that fits");
        Key::ask(&mut value, &mut mask, &field);
    };
    ask(Field::EthType, 0x800, 0xffff);
    ask(Field::IpFrag, 0, 3);
    ask(Field::Ipv4Src, number(26, 4), prefix(src));
    ask(Field::Ipv4Dst, number(30, 4), prefix(dst));
    if port != 0 {
        ask(Field::IpProto, 17, 0xff);
        ask(Field::SrcPort, number(34, 2), port.into());
        ask(Field::DstPort, number(36, 2), port.into());
    }
    if macs {
        ask(Field::EthDst, number(0, 6), Field::EthDst.mask());
        ask(Field::EthSrc, number(6, 6), Field::EthSrc.mask());
    }
    (value, mask)
}

fn look_up(c: &mut Criterion<cycles::Cycles>) {
    let mut rules = Classifier::default();
    for flow in 0..RULES {
        let (value, mask) = rule(flow);
        assert!(rules.insert(RuleId(flow.into()), 0, &value, &mask, [0u64; 6]).is_none());
    }
    assert_eq!(rules.masks(), MASKS.len());
    let mut group = c.benchmark_group("a burst of 64 frames of 64 bytes, 10,000 rules under 8 masks");
    group.throughput(Throughput::Elements(BURST as u64));
    for (name, flows) in [("one flow", 1), ("64 flows", 64), ("10,000 flows", RULES)] {
        // In an order that no prefetcher guesses.
        let frames: Vec<_> = (0..flows.max(BURST as u32)).map(|at| frame(at.wrapping_mul(7919) % flows)).collect();
        let mut next = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut keys = [Key::EMPTY; BURST];
                for key in &mut keys {
                    let frame = black_box(&frames[next]);
                    next = if next + 1 == frames.len() { 0 } else { next + 1 };
                    *key = Key::parse(frame, frame.len(), 1).0;
                }
                let mut found = [0; BURST];
                rules.look_up(&keys, &mut found);
                assert!(found.iter().all(|place| *place < RULES), "a frame without its rule");
            })
        });
    }
    let keys: Vec<_> = (0..BURST as u32).map(|flow| Key::parse(&frame(flow), 60, 2).0).collect();
    let mut found = [0; BURST];
    group.bench_function("no rule matches", |b| b.iter(|| rules.look_up(black_box(&keys), &mut found)));
    group.finish();
}

criterion_group! { name = benches; config = cycles::criterion(); targets = look_up }
criterion_main!(benches);
