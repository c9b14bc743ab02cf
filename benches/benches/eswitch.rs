//! The software NIC's switch: what it costs to read a burst of frames and to find a rule for each, with 10,000 rules under 8 masks.
//!
//! `cargo bench -p ringspan-benches --bench eswitch`

mod cycles;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringspan_benches::flows::{MASKS, RULES, fields, frame};
use ringspan_dataplane::eswitch::classifier::Classifier;
use ringspan_dataplane::eswitch::key::{ALWAYS, Key};
use ringspan_protocol::RuleId;

const BURST: usize = 64;
/// The rule of a flow.
fn rule(flow: u32) -> (Key, Key) {
    let (mut value, mut mask) = (Key::EMPTY, Key::EMPTY);
    value.set_port(1);
    mask.0[0] |= ALWAYS;
    for field in fields(flow) {
        Key::ask(&mut value, &mut mask, &field);
    }
    (value, mask)
}

fn look_up(c: &mut Criterion<cycles::Cycles>) {
    let mut rules = Classifier::default();
    for flow in 0..RULES {
        let (value, mask) = rule(flow);
        assert!(rules.insert(RuleId(flow.into()), 0, &value, &mask, [0u64; 4]).is_none());
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
