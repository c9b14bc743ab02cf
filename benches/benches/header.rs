//! Headers: what it costs to understand what a guest asks for a frame, and to do it where the device cannot.
//!
//! `cargo bench -p ringspan-benches --bench header`

mod cycles;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringspan_benches::driver::HEADER;
use ringspan_benches::driver::stamp::image;
use ringspan_dataplane::offload::{Offloads, Request};
use ringspan_dataplane::ring::NetHeader;

const PACKETS: usize = 64;
const NEEDS_CSUM: u8 = 1;
const GSO_TCP4: u8 = 1;

/// A frame of TCP over IPv4 with 20 bytes of each header.
fn tcp(length: u16) -> Vec<u8> {
    let mut frame = image(length, 0)[HEADER..HEADER + usize::from(length)].to_vec();
    frame[23] = 6;
    frame[34..54].fill(0);
    frame[46] = 5 << 4;
    frame
}

fn headers(c: &mut Criterion<cycles::Cycles>) {
    let mut group = c.benchmark_group("a burst of 64 headers");
    group.throughput(Throughput::Elements(PACKETS as u64));
    let checksum =
        NetHeader { flags: NEEDS_CSUM, csum_start: 34, csum_offset: 16, num_buffers: 1, ..NetHeader::default() };
    let large = NetHeader { gso_type: GSO_TCP4, gso_size: 1448, hdr_len: 54, ..checksum };
    let plain = NetHeader { num_buffers: 1, ..NetHeader::default() };
    for (kind, header, length) in [("plain", plain, 1514), ("checksum", checksum, 1514), ("TSO", large, 9000)] {
        let bytes = header.emit();
        let mut frame = tcp(length);
        group.bench_function(format!("{kind}: from the ring to a request"), |b| {
            b.iter(|| {
                for _ in 0..PACKETS {
                    let header = NetHeader::parse(black_box(bytes));
                    let head = black_box(&frame[..256]);
                    black_box(Request::parse(&header, head, frame.len(), Offloads::ALL)).expect("a good request");
                }
            })
        });
        let Some(request) = Request::parse(&header, &frame, frame.len(), Offloads::ALL).expect("a good request") else {
            continue;
        };
        group.bench_function(format!("{kind}: made ready for a device that does it"), |b| {
            b.iter(|| {
                for _ in 0..PACKETS {
                    black_box(&request).prime(black_box(&mut frame), true);
                }
            })
        });
    }
    group.finish();

    let mut group = c.benchmark_group("64 checksums in software");
    for length in [64, 1514] {
        group.throughput(Throughput::Elements(PACKETS as u64));
        let mut frame = tcp(length);
        let request = Request::parse(&checksum, &frame, frame.len(), Offloads::ALL).expect("a good request");
        let Some(Request::Checksum(checksum)) = request else { unreachable!("a checksum was asked for") };
        group.bench_function(format!("{length} bytes"), |b| {
            b.iter(|| (0..PACKETS).for_each(|_| black_box(&checksum).fill(black_box(&mut frame))))
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = cycles::criterion(); targets = headers }
criterion_main!(benches);
