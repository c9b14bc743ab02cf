//! A plain vhost-user net back-end: the stock vhost-user-backend crate with virtio-queue, woken by kicks, one thread.
//!
//! What a back-end costs when it is written the usual way. It serves one guest after the other, with one queue pair and split
//! rings, and wants rings to be enabled after SET_FEATURES. Its device swallows frames, makes them, or gives them back.

use std::io::{Error, Result};
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use clap::Parser;
use ringspan_benches::driver::HEADER;
use ringspan_benches::load;
use ringspan_testkit::guest::feature;
use vhost::vhost_user::{Listener, message::VhostUserProtocolFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringMutex, VringT};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

/// Numbers of the queues, as the guest sees them.
const RX: u16 = 0;
const TX: u16 = 1;
/// Frames that are moved before the other queue is looked at.
const BUDGET: usize = 64;
/// Bytes of the largest frame with its header.
const LARGEST: usize = HEADER + 9018;

/// A stock vhost-user net back-end.
#[derive(Parser)]
struct Cli {
    /// Where to listen.
    #[arg(long)]
    socket: PathBuf,
    /// The core to run on.
    #[arg(long)]
    core: usize,
    /// `swallow`, `make=SIZE` or `loop`.
    #[arg(long)]
    device: Device,
}

#[derive(Clone, Copy)]
enum Device {
    Swallow,
    Make(usize),
    Loop,
}

impl std::str::FromStr for Device {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once('=') {
            None if text == "swallow" => Ok(Self::Swallow),
            None if text == "loop" => Ok(Self::Loop),
            Some(("make", size)) => size.parse().map(Self::Make).map_err(|error| format!("{size}: {error}")),
            _ => Err(format!("{text}: not swallow, make=SIZE or loop")),
        }
    }
}

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

struct Net {
    device: Device,
    memory: Option<Memory>,
    event_idx: bool,
    frame: Vec<u8>,
}

fn failed(error: impl std::fmt::Debug) -> Error {
    Error::other(format!("{error:?}"))
}

impl Net {
    /// Puts a frame (with a header in front) into receive buffers, as many as it takes; whether there were enough.
    fn put(queue: &mut impl QueueT, memory: &GuestMemoryMmap, frame: &mut [u8]) -> Result<bool> {
        let start = queue.next_avail();
        let (mut at, mut used) = (0, vec![]);
        while at < frame.len() {
            let Some(chain) = queue.pop_descriptor_chain(memory) else {
                queue.set_next_avail(start);
                return Ok(false);
            };
            let (head, begin) = (chain.head_index(), at);
            let first = chain.clone().next().map(|descriptor| descriptor.addr());
            for descriptor in chain {
                let length = (descriptor.len() as usize).min(frame.len() - at);
                memory.write_slice(&frame[at..at + length], descriptor.addr()).map_err(failed)?;
                at += length;
            }
            used.push((head, (at - begin) as u32, first));
        }
        if let Some((_, _, Some(first))) = used.first() {
            memory.write_obj(used.len() as u16, vm_memory::GuestAddress(first.0 + 10)).map_err(failed)?;
        }
        for (head, length, _) in used {
            queue.add_used(memory, head, length).map_err(failed)?;
        }
        Ok(true)
    }

    /// Moves what there is; whether anything moved.
    fn work(&mut self, vrings: &[VringMutex]) -> Result<bool> {
        let Some(memory) = &self.memory else { return Ok(false) };
        let memory = memory.memory();
        let (mut rx, mut tx) = (vrings[usize::from(RX)].get_mut(), vrings[usize::from(TX)].get_mut());
        let mut moved = false;
        for _ in 0..BUDGET {
            if !tx.get_queue().ready() {
                break;
            }
            let Some(chain) = tx.get_queue_mut().pop_descriptor_chain(&*memory) else { break };
            let (head, mut length) = (chain.head_index(), 0);
            for descriptor in chain {
                let end = (length + descriptor.len() as usize).min(self.frame.len());
                memory.read_slice(&mut self.frame[length..end], descriptor.addr()).map_err(failed)?;
                length = end;
            }
            tx.get_queue_mut().add_used(&*memory, head, 0).map_err(failed)?;
            moved = true;
            if let Device::Loop = self.device {
                Self::put(rx.get_queue_mut(), &memory, &mut self.frame[..length])?;
            }
        }
        if let Device::Make(size) = self.device {
            let mut made = 0;
            while made < BUDGET && rx.get_queue().ready() {
                if !Self::put(rx.get_queue_mut(), &memory, &mut self.frame[..HEADER + size])? {
                    break;
                }
                made += 1;
            }
            moved |= made > 0;
        }
        for ring in [&mut rx, &mut tx] {
            if moved && ring.get_queue_mut().needs_notification(&*memory).map_err(failed)? {
                ring.signal_used_queue()?;
            }
        }
        Ok(moved)
    }
}

impl VhostUserBackendMut for Net {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        2
    }
    fn max_queue_size(&self) -> usize {
        1024
    }
    fn features(&self) -> u64 {
        use feature::{ANY_LAYOUT, EVENT_IDX, INDIRECT_DESC, MRG_RXBUF, PROTOCOL_FEATURES, VERSION_1};
        VERSION_1 | MRG_RXBUF | ANY_LAYOUT | INDIRECT_DESC | EVENT_IDX | PROTOCOL_FEATURES
    }
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK
    }
    fn set_event_idx(&mut self, enabled: bool) {
        self.event_idx = enabled;
    }
    fn update_memory(&mut self, memory: Memory) -> Result<()> {
        self.memory = Some(memory);
        Ok(())
    }
    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(&mut self, event: u16, _: EventSet, vrings: &[VringMutex], _: usize) -> Result<()> {
        if event > TX {
            return Ok(());
        }
        // Receive buffers wait for frames: only a device that makes them has to be woken for new ones.
        let watched = if matches!(self.device, Device::Make(_)) { vrings } else { &vrings[usize::from(TX)..] };
        loop {
            for ring in watched {
                ring.disable_notification().map_err(failed)?;
            }
            while self.work(vrings)? {}
            let mut more = false;
            for ring in watched {
                more |= ring.get_ref().get_queue().ready() && ring.enable_notification().map_err(failed)?;
            }
            if !more {
                return Ok(());
            }
        }
    }
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    load::pin(&[cli.core])?;
    let mut listener = Listener::new(&cli.socket, true)?;
    loop {
        let mut frame = vec![0xa5; LARGEST];
        frame[..HEADER].fill(0);
        let net = Net { device: cli.device, memory: None, event_idx: false, frame };
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut daemon = VhostUserDaemon::new("plain".into(), Arc::new(RwLock::new(net)), memory).map_err(failed)?;
        daemon.start(&mut listener).map_err(failed)?;
        // A guest that leaves ends the connection in one of several ways.
        let _ = daemon.wait();
        daemon.get_epoll_handlers().iter().for_each(|handler| handler.send_exit_event());
    }
}
