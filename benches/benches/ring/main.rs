//! The rings alone, on one core, everything in the cache: what a packet costs before any NIC is asked.
//!
//! The driver's part of a split ring is one store of the available index: all chains are written beforehand and used again and
//! again. Of a packed ring it is a store for each descriptor, which is counted in.
//!
//! Lines with *mbufs* include what a relay has to do anyway: buffers are taken from a DPDK pool and given back to it. librte_vhost
//! does that for every frame that it takes, so these are the lines to compare it with; the lines without are the ring alone. All
//! of a group have rings and frames in the same guest memory.
//!
//! `cargo bench -p ringspan-benches --bench ring`

#[path = "../cycles/mod.rs"]
mod cycles;
mod guest;
mod packets;
mod vhost;

use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringspan_dataplane::BURST;
use ringspan_dataplane::memory::{GuestMap, RegionCache};
use ringspan_dataplane::offload::Offloads;
use ringspan_dataplane::ring::{FrameSink, FrameSource, NetHeader, PackedRing, RingFeatures, SplitRing};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use guest::{BUFFER, BUFFERS, Guest, HEADER, PackedGuest, SIZE, WRITE};
use packets::Packets;
use vhost::Vhost;

/// Packet buffers that are used again for each burst.
struct Buffers {
    bytes: Vec<u8>,
    next: usize,
}

// SAFETY: each frame of a burst has a slot of its own; no frame here is longer than a slot.
unsafe impl FrameSink for Buffers {
    #[inline(always)]
    fn frame(&mut self, header: &NetHeader, len: usize) -> Option<NonNull<u8>> {
        black_box(header.flags);
        let slot = self.bytes.get_mut(self.next * BUFFER as usize..)?.get_mut(..len)?;
        self.next += 1;
        NonNull::new(slot.as_mut_ptr())
    }
}

/// One frame, many times.
struct Same<'a>(&'a [u8]);

// SAFETY: one borrowed slice.
unsafe impl FrameSource for Same<'_> {
    #[inline(always)]
    fn count(&self) -> usize {
        BURST
    }
    #[inline(always)]
    fn frame_len(&self, _: usize) -> usize {
        self.0.len()
    }
    #[inline(always)]
    fn segments(&self, _: usize) -> impl Iterator<Item = (*const u8, usize)> {
        std::iter::once((self.0.as_ptr(), self.0.len()))
    }
}

fn features(mergeable: bool) -> RingFeatures {
    RingFeatures {
        event_idx: true,
        indirect: true,
        mergeable,
        version_1: true,
        packed: false,
        in_order: false,
        offloads: Offloads::NONE,
    }
}

fn take(c: &mut Criterion<cycles::Cycles>) {
    let mut group = c.benchmark_group("take a burst of 64");
    group.throughput(Throughput::Elements(BURST as u64));
    for len in [64, 1500] {
        let (new, new_packed) =
            (|| Guest::new(HEADER + len, 0, features(true)), || PackedGuest::new(HEADER + len, 0, features(true)));
        let mut buffers = Buffers { bytes: vec![0; BURST * BUFFER as usize], next: 0 };
        let mut packets = Packets::new();

        let mut guest = new();
        let mut ring = SplitRing::new(Arc::clone(&guest.map), &guest.config).expect("a ring");
        group.bench_function(format!("{len} bytes, split ring"), |b| {
            b.iter(|| {
                guest.offer(BURST as u16);
                buffers.next = 0;
                let taken = ring.take(BURST, 1518, &mut buffers).expect("a good ring");
                assert_eq!(taken.frames, BURST as u64);
            })
        });
        group.bench_function(format!("{len} bytes, split ring, mbufs"), |b| {
            b.iter(|| {
                guest.offer(BURST as u16);
                packets.allocate();
                let taken = ring.take(BURST, 1518, &mut packets).expect("a good ring");
                assert_eq!(taken.frames, BURST as u64);
                packets.free();
            })
        });

        let mut guest = new();
        let vhost = Vhost::sending(&guest);
        group.bench_function(format!("{len} bytes, split ring, mbufs, librte_vhost"), |b| {
            b.iter(|| {
                guest.offer(BURST as u16);
                assert_eq!(vhost.dequeue(&mut packets), BURST);
                packets.free();
            })
        });
        drop(vhost);

        let mut guest = new_packed();
        let mut ring = PackedRing::new(Arc::clone(&guest.guest.map), &guest.guest.config).expect("a ring");
        group.bench_function(format!("{len} bytes, packed ring"), |b| {
            b.iter(|| {
                guest.offer(BURST);
                buffers.next = 0;
                let taken = ring.take(BURST, 1518, &mut buffers).expect("a good ring");
                assert_eq!(taken.frames, BURST as u64);
            })
        });
        group.bench_function(format!("{len} bytes, packed ring, mbufs"), |b| {
            b.iter(|| {
                guest.offer(BURST);
                packets.allocate();
                let taken = ring.take(BURST, 1518, &mut packets).expect("a good ring");
                assert_eq!(taken.frames, BURST as u64);
                packets.free();
            })
        });

        let mut guest = new_packed();
        let vhost = Vhost::sending(&guest.guest);
        group.bench_function(format!("{len} bytes, packed ring, mbufs, librte_vhost"), |b| {
            b.iter(|| {
                guest.offer(BURST);
                assert_eq!(vhost.dequeue(&mut packets), BURST);
                packets.free();
            })
        });
        drop(vhost);

        let mut guest = new();
        let mut queue = guest.queue();
        group.bench_function(format!("{len} bytes, split ring, virtio-queue"), |b| {
            b.iter(|| {
                guest.offer(BURST as u16);
                let memory = &*guest.memory;
                let mut slots = buffers.bytes.chunks_exact_mut(BUFFER as usize);
                while let Some(chain) = queue.pop_descriptor_chain(memory) {
                    let head = chain.head_index();
                    let slot = slots.next().expect("as many as chains");
                    for buffer in chain {
                        let mut header = [0; HEADER];
                        memory.read_slice(&mut header, buffer.addr()).expect("inside");
                        black_box(header);
                        let len = buffer.len() as usize - HEADER;
                        let addr = GuestAddress(buffer.addr().0 + HEADER as u64);
                        memory.read_slice(&mut slot[..len], addr).expect("inside");
                    }
                    queue.add_used(memory, head, 0).expect("inside");
                }
                black_box(queue.needs_notification(memory).expect("inside"));
            })
        });
    }
    group.finish();
}

/// Chains of other shapes: what a guest does for frames with fragments.
fn chains(c: &mut Criterion<cycles::Cycles>) {
    let mut group = c.benchmark_group("take a burst of 64, 64 bytes");
    group.throughput(Throughput::Elements(BURST as u64));
    const TABLES: u64 = 0x2_0000;
    for (kind, first) in [("indirect, one buffer", HEADER as u64 + 64), ("indirect, the header alone", HEADER as u64)] {
        let mut guest = Guest::new(HEADER + 64, 0, features(true));
        for i in 0..u64::from(SIZE) {
            let write = |addr: u64, value: u64| guest.memory.write_obj(value, GuestAddress(addr)).expect("inside");
            let (buffer, table, rest) = (BUFFERS + BUFFER * i, TABLES + 32 * i, HEADER as u64 + 64 - first);
            let count = if rest > 0 { 2 } else { 1 };
            let next = if rest > 0 { (1 << 32) | (1 << 48) } else { 0 };
            [buffer, first | next, buffer + first, rest].into_iter().zip(0..).for_each(|(value, word)| {
                write(table + 8 * word, value);
            });
            write(16 * i, table);
            write(16 * i + 8, (16 * count) | (4 << 32));
        }
        let mut buffers = Buffers { bytes: vec![0; BURST * BUFFER as usize], next: 0 };
        let mut ring = SplitRing::new(Arc::clone(&guest.map), &guest.config).expect("a ring");
        group.bench_function(kind, |b| {
            b.iter(|| {
                guest.offer(BURST as u16);
                buffers.next = 0;
                let taken = ring.take(BURST, 1518, &mut buffers).expect("a good ring");
                assert_eq!(taken.frames, BURST as u64);
            })
        });
    }
    group.finish();
}

fn put(c: &mut Criterion<cycles::Cycles>) {
    let mut group = c.benchmark_group("put a burst of 64");
    group.throughput(Throughput::Elements(BURST as u64));
    for len in [64, 1500] {
        let frame = vec![0x5a; len];
        // Everybody's frames are in the same buffers.
        let mut packets = Packets::of(&frame);
        for mergeable in [true, false] {
            let kind = if mergeable { "mergeable" } else { "one buffer each" };
            let new = || Guest::new(BUFFER as usize, WRITE, features(mergeable));
            let new_packed = || PackedGuest::new(BUFFER as usize, WRITE, features(mergeable));

            let mut guest = new();
            let mut ring = SplitRing::new(Arc::clone(&guest.map), &guest.config).expect("a ring");
            group.bench_function(format!("{len} bytes, split ring, {kind}"), |b| {
                b.iter(|| {
                    guest.offer(BURST as u16);
                    let put = ring.put(&packets).expect("a good ring");
                    assert_eq!(put.frames, BURST as u64);
                })
            });

            let mut guest = new();
            let vhost = Vhost::receiving(&guest);
            group.bench_function(format!("{len} bytes, split ring, {kind}, librte_vhost"), |b| {
                b.iter(|| {
                    guest.offer(BURST as u16);
                    assert_eq!(vhost.enqueue(&mut packets), BURST);
                })
            });
            drop(vhost);

            let mut guest = new_packed();
            let mut ring = PackedRing::new(Arc::clone(&guest.guest.map), &guest.guest.config).expect("a ring");
            group.bench_function(format!("{len} bytes, packed ring, {kind}"), |b| {
                b.iter(|| {
                    guest.offer(BURST);
                    let put = ring.put(&packets).expect("a good ring");
                    assert_eq!(put.frames, BURST as u64);
                })
            });

            let mut guest = new_packed();
            let vhost = Vhost::receiving(&guest.guest);
            group.bench_function(format!("{len} bytes, packed ring, {kind}, librte_vhost"), |b| {
                b.iter(|| {
                    guest.offer(BURST);
                    assert_eq!(vhost.enqueue(&mut packets), BURST);
                })
            });
            drop(vhost);
        }

        let mut guest = Guest::new(BUFFER as usize, WRITE, features(true));
        let mut queue = guest.queue();
        group.bench_function(format!("{len} bytes, split ring, one buffer each, virtio-queue"), |b| {
            b.iter(|| {
                guest.offer(BURST as u16);
                let memory = &*guest.memory;
                let mut index = 0;
                while let Some(mut chain) = queue.pop_descriptor_chain(memory) {
                    let head = chain.head_index();
                    let addr = chain.next().expect("one buffer").addr();
                    let header = NetHeader { num_buffers: 1, ..NetHeader::default() }.emit();
                    memory.write_slice(&header, addr).expect("inside");
                    memory.write_slice(packets.bytes(index), GuestAddress(addr.0 + HEADER as u64)).expect("inside");
                    queue.add_used(memory, head, (HEADER + len) as u32).expect("inside");
                    index += 1;
                }
                assert_eq!(index, BURST);
                black_box(queue.needs_notification(memory).expect("inside"));
            })
        });
    }
    group.finish();
}

fn jumbo(c: &mut Criterion<cycles::Cycles>) {
    // What a ring of 2048-byte buffers has room for, fewer than a burst: five for each.
    const FRAMES: u64 = SIZE as u64 / 5;
    let mut group = c.benchmark_group("put 51 frames of 9000 bytes");
    group.throughput(Throughput::Elements(FRAMES));
    let frame = vec![0x5a; 9000];
    let mut guest = Guest::new(BUFFER as usize, WRITE, features(true));
    let mut ring = SplitRing::new(Arc::clone(&guest.map), &guest.config).expect("a ring");
    group.bench_function("five merged buffers each", |b| {
        b.iter(|| {
            guest.avail = ring.position();
            guest.offer(SIZE);
            let put = ring.put(&Same(&frame)).expect("a good ring");
            assert_eq!(put.frames, FRAMES);
        })
    });
    group.finish();
}

fn translate(c: &mut Criterion<cycles::Cycles>) {
    let mut group = c.benchmark_group("translate 64 addresses");
    group.throughput(Throughput::Elements(BURST as u64));
    for regions in [1u64, 8, 64] {
        let ranges: Vec<_> = (0..regions).map(|i| (GuestAddress(i << 30), 1 << 20)).collect();
        let map = GuestMap::new(&Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory")));
        // A burst usually stays in one region; the worst guest changes it with each buffer.
        for (kind, step) in [("one region hit", 0), ("another region each time", 7)] {
            let addrs: Vec<u64> =
                (0..BURST as u64).map(|i| ((i * step % regions) << 30) + (i * 0x3_1357) % (1 << 19)).collect();
            let mut cache = RegionCache::default();
            group.bench_function(format!("{regions} regions, {kind}"), |b| {
                b.iter(|| {
                    for &addr in &addrs {
                        black_box(map.translate(&mut cache, black_box(addr), 64));
                    }
                })
            });
        }
    }
    group.finish();
}

criterion_group! { name = benches; config = cycles::criterion(); targets = take, chains, put, jumbo, translate }
criterion_main!(benches);
