//! Flow text: flows a second, read and printed.
//!
//! `cargo bench -p ringspan-benches --bench flow_text`; at its end it says whether 300,000 flows a second are read on one core.

mod aim;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringspan::ovs::flow::{Flow, Names, parse};

/// Flows a second that one core is to read.
const WANTED: u32 = 300_000;
/// Flows of each kind: more than fit into the first caches as text.
const FLOWS: usize = 1000;

/// A flow of a userspace datapath as `-m --no-names` prints it: what a poll of the mirror reads.
fn userspace(index: usize) -> String {
    let (a, b) = (index / 250, index % 250);
    format!(
        "ufid:6fc87ad1-9d66-4b5e-8f8b-{index:012x}, skb_priority(0/0),skb_mark(0/0),ct_state(0/0),ct_zone(0/0),ct_mark(0/0),\
         ct_label(0/0),recirc_id(0),dp_hash(0/0),in_port(1),packet_type(ns=0,id=0),eth(src=02:00:00:00:{a:02x}:{b:02x},\
         dst=02:00:00:00:ff:01),eth_type(0x0800),ipv4(src=10.0.{a}.{b},dst=10.1.0.0/255.255.0.0,proto=6,tos=0/0,ttl=64/0,frag=no),\
         tcp(src={}/0,dst=80),tcp_flags(0/0), packets:{index}, bytes:123456789, used:0.{:03}s, flags:SP., dp:ovs, \
         actions:set(eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02)),set(ipv4(ttl=63)),2, dp-extra-info:miniflow_bits(4,1)",
        1024 + index,
        index % 1000,
    )
}

/// A flow that came through a tunnel, over IPv6, and goes out by another.
fn tunnel(index: usize) -> String {
    format!(
        "ufid:00000000-0000-0000-0000-{index:012x}, recirc_id(0),dp_hash(0/0),skb_priority(0/0),tunnel(tun_id=0x{index:x},\
         src=192.168.0.1,dst=192.168.0.2,ttl=64/0,tp_src=4001/0,tp_dst=6081/0,geneve({{class=0x102,type=0x80,len=4,\
         0x{index:x}/0x7fffffff}}),flags(-df+csum+key)),in_port(5),skb_mark(0/0),ct_state(0x21/0x25),ct_zone(0x5),\
         ct_mark(0x1/0x3),ct_label(0/0x1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x86dd),\
         ipv6(src=fe80::{index:x},dst=2001:db8::1,label=0/0,proto=17,tclass=0/0,hlimit=64,frag=no),udp(src=0/0,dst=53), \
         packets:5, bytes:500, used:1.234s, offloaded:yes, dp:tc, actions:ct(commit,zone=5,mark=0x1/0xff,nat(src=10.0.0.1)),\
         set(tunnel(tun_id=0x7,dst=10.0.0.9,ttl=64,tp_dst=4789,flags(df|key))),4"
    )
}

/// Makes a flow's line.
type Line = fn(usize) -> String;
/// By name.
const KINDS: [(&str, Line); 2] = [("userspace", userspace), ("tunnel", tunnel)];

fn flow_text(c: &mut Criterion) {
    let mut group = c.benchmark_group("1000 flows");
    group.throughput(Throughput::Elements(FLOWS as u64));
    for (kind, line) in KINDS {
        let lines: Vec<String> = (0..FLOWS).map(line).collect();
        let read = |line: &String| parse::flow(line, 1, Names::None).expect("a flow of this benchmark reads");
        let flows: Vec<Flow> = lines.iter().map(read).collect();
        assert_eq!(flows[7].to_string(), lines[7]);
        group.bench_function(format!("{kind}: read"), |b| {
            b.iter(|| lines.iter().for_each(|line| drop(black_box(read(black_box(line))))));
        });
        group.bench_function(format!("{kind}: printed"), |b| {
            let mut text = String::new();
            b.iter(|| {
                use std::fmt::Write;
                for flow in &flows {
                    text.clear();
                    write!(text, "{flow}").expect("a string takes all");
                    black_box(&text);
                }
            });
        });
    }
    group.finish();
    for (kind, line) in KINDS {
        let lines: Vec<String> = (0..FLOWS).map(line).collect();
        aim::tell(&format!("flow text, {kind}, read"), "flows", WANTED, FLOWS, || {
            lines.iter().for_each(|line| drop(black_box(parse::flow(black_box(line), 1, Names::None))));
        });
    }
}

criterion_group!(benches, flow_text);
criterion_main!(benches);
