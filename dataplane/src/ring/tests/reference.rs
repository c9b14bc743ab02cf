//! The same device on virtio-queue's `Queue`, one chain and one byte range at a time: slow, and easy to believe.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::driver::Driver;
use crate::ring::{NetHeader, Put, Ring, RingConfig, RingFeatures, Taken};

/// What a test wants of a device.
pub trait Device {
    fn take(&mut self, limit: usize, max_frame: usize) -> (Taken, Vec<(NetHeader, Vec<u8>)>);
    fn put(&mut self, frames: &[Vec<Vec<u8>>]) -> Put;
}

impl Device for Ring {
    fn take(&mut self, limit: usize, max_frame: usize) -> (Taken, Vec<(NetHeader, Vec<u8>)>) {
        let mut sink = super::driver::Sink::default();
        let taken = self.take(limit, max_frame, &mut sink).expect("a legal ring");
        (taken, sink.frames)
    }

    fn put(&mut self, frames: &[Vec<Vec<u8>>]) -> Put {
        self.put(&super::driver::Frames(frames.to_vec())).expect("a legal ring")
    }
}

/// The reference.
pub struct Reference {
    queue: Queue,
    memory: Arc<GuestMemoryMmap>,
    features: RingFeatures,
}

/// A chain that was popped: its head, and its buffers with whether the device may write them.
struct Popped {
    head: u16,
    buffers: Vec<(GuestAddress, usize, bool)>,
}

impl Reference {
    pub fn new(driver: &Driver) -> Self {
        let RingConfig { size, desc, avail, used, base, features, .. } = driver.config.clone();
        let mut queue = Queue::new(size).unwrap();
        queue.set_size(size);
        queue.try_set_desc_table_address(desc).unwrap();
        queue.try_set_avail_ring_address(avail).unwrap();
        queue.try_set_used_ring_address(used).unwrap();
        queue.set_event_idx(features.event_idx);
        queue.set_next_avail(base as u16);
        queue.set_next_used(base as u16);
        queue.set_ready(true);
        assert!(queue.is_valid(&*driver.memory));
        Self { queue, memory: Arc::clone(&driver.memory), features }
    }

    fn pop(&mut self) -> Option<Popped> {
        let chain = self.queue.pop_descriptor_chain(Arc::clone(&self.memory))?;
        let head = chain.head_index();
        let buffers = chain.map(|buffer| (buffer.addr(), buffer.len() as usize, buffer.is_write_only())).collect();
        Some(Popped { head, buffers })
    }

    fn give_back(&mut self, head: u16, len: usize) {
        self.queue.add_used(&*self.memory, head, len as u32).unwrap();
    }
}

impl Device for Reference {
    fn take(&mut self, limit: usize, max_frame: usize) -> (Taken, Vec<(NetHeader, Vec<u8>)>) {
        let header_len = self.features.header_len();
        let (mut taken, mut frames) = (Taken::default(), Vec::new());
        while taken.received < limit.min(crate::BURST) as u64 {
            let Some(Popped { head, buffers }) = self.pop() else { break };
            let readable = buffers.iter().take_while(|(_, _, writable)| !writable);
            let mut bytes = Vec::new();
            for &(addr, len, _) in readable.clone() {
                let mut part = vec![0; len];
                self.memory.read_slice(&mut part, addr).unwrap();
                bytes.extend(part);
            }
            let frame_len = bytes.len().saturating_sub(header_len);
            taken.received += 1;
            taken.received_bytes += frame_len as u64;
            if readable.count() < buffers.len() || frame_len < 14 {
                taken.malformed += 1;
            } else if frame_len > max_frame {
                taken.too_long += 1;
            } else {
                let frame = bytes.split_off(header_len);
                bytes.resize(NetHeader::LEN, 0);
                frames.push((NetHeader::parse(bytes.try_into().unwrap()), frame));
                taken.frames += 1;
                taken.bytes += frame_len as u64;
            }
            self.give_back(head, 0);
        }
        (taken, frames)
    }

    fn put(&mut self, frames: &[Vec<Vec<u8>>]) -> Put {
        let mut put = Put::default();
        for (i, frame) in frames.iter().enumerate() {
            let header = NetHeader { num_buffers: 1, ..NetHeader::default() }.emit();
            let frame = frame.concat();
            let mut bytes = [&header[..self.features.header_len()], &frame].concat();
            let before = self.queue.next_avail();
            let (mut chains, mut room) = (Vec::new(), 0);
            while room < bytes.len() && (chains.is_empty() || self.features.mergeable) {
                let Some(chain) = self.pop() else { break };
                room += chain.buffers.iter().map(|buffer| if buffer.2 { buffer.1 } else { 0 }).sum::<usize>();
                chains.push(chain);
            }
            if room < bytes.len() {
                self.queue.set_next_avail(before);
                let whole = chains.len() == usize::from(self.queue.size());
                if !chains.is_empty() && !self.features.mergeable || whole {
                    put.too_long += 1;
                    continue;
                }
                put.ring_full = (frames.len() - i) as u64;
                break;
            }
            if self.features.mergeable {
                bytes[10..12].copy_from_slice(&(chains.len() as u16).to_le_bytes());
            }
            let mut rest = &bytes[..];
            for chain in &chains {
                let before = rest.len();
                for &(addr, len, writable) in &chain.buffers {
                    let (now, later) = rest.split_at(if writable { len.min(rest.len()) } else { 0 });
                    self.memory.write_slice(now, addr).unwrap();
                    rest = later;
                }
                self.give_back(chain.head, before - rest.len());
            }
            put.frames += 1;
            put.bytes += frame.len() as u64;
        }
        put
    }
}

/// All of guest memory that a device may have written to, but for its wishes for kicks. Where `split`, the used ring first.
pub fn dump(driver: &Driver, split: bool) -> Vec<Vec<u8>> {
    let used = driver.config.used.unchecked_add(2);
    let used_len = if split { 2 + 8 * usize::from(driver.config.size) } else { 0 };
    let buffers = driver.bytes(super::driver::BUFFERS, (super::driver::BUFFERS_END - super::driver::BUFFERS) as usize);
    vec![driver.bytes(used.0, used_len), buffers]
}
