//! The guest as a whole: a front-end's connection, memory, and queue pairs.

use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use nix::sys::eventfd::EventFd;
use ringspan_testkit::guest::message::{Request, longs};
use ringspan_testkit::guest::{FrontEnd, Layout, Memory, feature};

use super::stamp::Frames;
use super::{HEADER, LINE, Receiver, Ring, Slots, Transmitter};

/// In SET_VRING_CALL: there is no descriptor, the guest polls.
const NO_FD: u64 = 1 << 8;
/// How long the back-end may take to be there.
const CONNECT: Duration = Duration::from_secs(20);

/// How a guest shall look.
#[derive(Debug, Clone)]
pub struct Options {
    /// The vhost-user socket, on which the back-end listens.
    pub socket: PathBuf,
    /// Queue pairs.
    pub pairs: u16,
    /// Descriptors in each ring.
    pub ring_size: u16,
    /// Features, besides those that the other fields ask for, that are taken where the back-end offers them.
    pub features: u64,
    /// Buffers come back in their order, and those of frames sent perhaps by batches.
    pub in_order: bool,
    /// Frames may take several receive buffers, of 1536 bytes each; else each buffer holds the largest frame.
    pub mergeable: bool,
    /// Frames are sent by tables of two descriptors.
    pub indirect: bool,
    /// What is sent.
    pub frames: Frames,
    /// The largest frame that may come.
    pub receive: u16,
    /// Guest memory in hugepages.
    pub huge_pages: bool,
}

/// One receive queue and one transmit queue.
#[derive(Debug)]
pub struct Pair<R> {
    /// From the device.
    pub rx: Receiver<R>,
    /// To the device.
    pub tx: Transmitter<R>,
}

/// A connected guest whose rings run, with all receive buffers posted.
#[derive(Debug)]
pub struct Guest<R> {
    frontend: FrontEnd,
    /// The features that were negotiated.
    pub features: u64,
    /// Its queue pairs.
    pub pairs: Vec<Pair<R>>,
}

impl<R: Ring> Guest<R> {
    /// Makes memory and rings, connects, and starts.
    pub fn start(options: &Options) -> anyhow::Result<Self> {
        let mut wanted = options.features | feature::VERSION_1 | feature::PROTOCOL_FEATURES;
        for (bit, on) in [
            (feature::RING_PACKED, R::PACKED),
            (feature::MRG_RXBUF, options.mergeable),
            (feature::INDIRECT_DESC, options.indirect),
            (feature::MQ, options.pairs > 1),
            (feature::IN_ORDER, options.in_order),
        ] {
            wanted |= if on { bit } else { 0 };
        }
        let mut frontend = FrontEnd::connect(&options.socket, CONNECT)?;
        let (offered, pairs) = frontend.negotiate(feature::PROTOCOL_MQ | feature::PROTOCOL_REPLY_ACK)?;
        let needed = wanted & !options.features;
        ensure!(offered & needed == needed, "the back-end does not offer the features {:#x}", needed & !offered);
        ensure!(pairs >= u64::from(options.pairs), "the back-end offers {pairs} queue pairs of {}", options.pairs);
        frontend.set_features(offered & wanted)?;

        let (memory, pairs) = queues(options, offered & wanted & feature::EVENT_IDX != 0)?;
        frontend.set_mem_table(&memory, memory.regions())?;
        let mut guest = Self { frontend, features: offered & wanted, pairs };
        for index in 0..guest.pairs.len() {
            let Self { frontend, pairs, .. } = &mut guest;
            let Pair { rx, tx } = &pairs[index];
            start_ring(frontend, 2 * index as u32, rx.ring(), rx.kick())?;
            start_ring(frontend, 2 * index as u32 + 1, tx.ring(), tx.kick())?;
        }
        // Enabled at the end, as the specification's examples have it: a stock back-end does not take it earlier.
        for index in 0..2 * guest.pairs.len() as u32 {
            guest.frontend.set_vring_enable(index, true)?;
        }
        guest.frontend.barrier()?;
        for pair in &mut guest.pairs {
            pair.rx.post_all();
            let _ = pair.rx.kick().write(1);
            let _ = pair.tx.kick().write(1);
        }
        Ok(guest)
    }

    /// Stops all rings, after which the back-end touches nothing any more.
    pub fn stop(mut self) -> anyhow::Result<()> {
        for index in 0..2 * self.pairs.len() as u32 {
            self.frontend.get_vring_base(index)?;
        }
        Ok(())
    }
}

/// Memory, and the queues in it.
pub fn queues<R: Ring>(options: &Options, event_idx: bool) -> anyhow::Result<(Arc<Memory>, Vec<Pair<R>>)> {
    let ring = usize::from(options.ring_size);
    let room = HEADER + if options.mergeable { 1536 } else { usize::from(options.receive).max(1536) };
    let buffers = Slots::stride(HEADER + usize::from(options.frames.most())) + Slots::stride(room);
    let each = ring * (buffers + 2 * (16 + 2 + 8) + 32) + 8 * 4096 + 2 * LINE;
    let layout = Layout {
        size: usize::from(options.pairs) * each,
        regions: 1,
        start: 0,
        gap: 0,
        huge_pages: options.huge_pages,
    };
    let memory = Arc::new(Memory::new(layout)?);
    let pair = |queue| -> anyhow::Result<Pair<R>> {
        let rx = Receiver::new(&memory, options.ring_size, event_idx, room, options.mergeable)?;
        let mut tx = Transmitter::new(&memory, options.ring_size, event_idx, options.frames, options.indirect, queue)?;
        if options.in_order {
            tx.take_batches();
        }
        Ok(Pair { rx, tx })
    };
    let pairs = (0..options.pairs).map(pair).collect::<anyhow::Result<_>>()?;
    Ok((memory, pairs))
}

fn start_ring<R: Ring>(frontend: &mut FrontEnd, index: u32, ring: &R, kick: &EventFd) -> anyhow::Result<()> {
    frontend.set_vring_num(index, u32::from(ring.size()))?;
    frontend.set_vring_base(index, R::base())?;
    frontend.set_vring_addr(index, ring.user_addresses())?;
    frontend.tell(Request::SetVringKick, longs(&[u64::from(index)]), &[kick.as_fd().as_raw_fd()])?;
    frontend.tell(Request::SetVringCall, longs(&[u64::from(index) | NO_FD]), &[])
}
