//! A guest in Rust: a vhost-user front-end with its own memory and the driver's side of its rings.
//!
//! It plays the part of QEMU and of the guest's virtio-net driver at once, against any vhost-user back-end: for checks that
//! look at every byte, for hostile acts that no real guest commits, and as a load generator that is lean enough not to be
//! what is measured. [`Guest::start`] brings everything up as QEMU does; [`Transmitter`] and [`Receiver`] move frames by
//! the burst; [`loopback`] checks what comes back; [`frontend`] and [`message`] are the way around all of that.

pub mod buffers;
pub mod chain;
pub mod crossing;
pub mod feature;
pub mod frontend;
pub mod log;
pub mod loopback;
pub mod memory;
pub mod message;
pub mod net_header;
pub mod numbered;
pub mod receiver;
pub mod ring;
pub mod traffic;
pub mod transmitter;

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};

pub use buffers::Counts;
pub use chain::Shape;
pub use frontend::{FrontEnd, StoppedOnPurpose};
pub use log::Log;
pub use memory::{Layout, Memory, Region};
pub use net_header::NetHeader;
pub use numbered::Numbered;
pub use receiver::Receiver;
pub use ring::{Kind, PackedRing, Ring, SplitRing};
pub use traffic::Traffic;
pub use transmitter::Transmitter;

/// Which side of the socket listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The guest connects; the back-end listens.
    Connect,
    /// The guest listens; the back-end connects.
    Listen,
}

/// When rings are enabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnableOrder {
    /// Before SET_FEATURES, as QEMU 8 and later do.
    Early,
    /// After the rings were set up, as the specification's examples do.
    Late,
}

/// How a guest shall look.
#[derive(Debug, Clone)]
pub struct Options {
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// Who listens.
    pub role: Role,
    /// Queue pairs.
    pub pairs: u16,
    /// Of these, how many are enabled at the start: the first ones.
    pub enabled_pairs: u16,
    /// Descriptors in each ring.
    pub ring_size: u16,
    /// Virtio features that the guest's driver would take; see [`feature`].
    pub features: u64,
    /// Those of them without which the guest does not start.
    pub required: u64,
    /// vhost-user protocol features that the front-end would take.
    pub protocol_features: u64,
    /// When rings are enabled.
    pub enable: EnableOrder,
    /// Layout of frames to be sent.
    pub tx_shape: Shape,
    /// Layout of receive buffers.
    pub rx_shape: Shape,
    /// Largest frame that is sent.
    pub tx_room: usize,
    /// Bytes of a receive buffer, without the header.
    pub rx_room: usize,
    /// First guest-physical address of its memory.
    pub memory_start: u64,
    /// Memory regions.
    pub regions: usize,
    /// Bytes of guest-physical address space between two regions.
    pub region_gap: u64,
    /// Guest memory in hugepages.
    pub huge_pages: bool,
    /// The rings have no call descriptor: the guest only polls.
    pub polled: bool,
    /// End the handshake after this many messages.
    pub stop_after: Option<usize>,
    /// How long the back-end may take to be there.
    pub timeout: Duration,
}

impl Options {
    /// One pair of rings of 256, everything a Linux guest asks for, one memory region.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            role: Role::Connect,
            pairs: 1,
            enabled_pairs: 1,
            ring_size: 256,
            features: feature::USUAL,
            required: 0,
            protocol_features: feature::PROTOCOL_MQ | feature::PROTOCOL_REPLY_ACK,
            enable: EnableOrder::Early,
            tx_shape: Shape::Whole,
            rx_shape: Shape::Whole,
            tx_room: 1514,
            rx_room: 1536,
            memory_start: 0,
            regions: 1,
            region_gap: 0,
            huge_pages: false,
            polled: false,
            stop_after: None,
            timeout: Duration::from_secs(10),
        }
    }

    /// This many pairs, all enabled.
    pub fn pairs(self, pairs: u16) -> Self {
        Self { pairs, enabled_pairs: pairs, ..self }
    }

    /// With these features too, where the back-end offers them.
    pub fn with(self, features: u64) -> Self {
        Self { features: self.features | features, ..self }
    }

    /// With these features, or not at all.
    pub fn require(self, features: u64) -> Self {
        Self { required: self.required | features, ..self.with(features) }
    }

    /// Over rings of this format.
    pub fn over(self, kind: Kind) -> Self {
        match kind {
            Kind::Split => self.without(feature::RING_PACKED),
            Kind::Packed => self.require(feature::RING_PACKED),
        }
    }

    /// Without these features.
    pub fn without(self, features: u64) -> Self {
        Self { features: self.features & !features, required: self.required & !features, ..self }
    }

    /// Bytes of memory that the guest needs, generously.
    fn memory_size(&self) -> usize {
        let buffers = self.tx_room + self.rx_room + 2 * (12 + 128) + 2 * 16 * 64;
        let ring = usize::from(self.ring_size);
        usize::from(self.pairs) * (ring * (buffers + 2 * 32) + 8 * 4096) + (1 << 16) * self.regions
    }
}

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    options: Options,
    listener: Option<UnixListener>,
    memory: Arc<Memory>,
    features: u64,
    offered_pairs: u64,
    /// What the front-end knows of the place at which each ring goes on.
    bases: Vec<u32>,
    frontend: Option<FrontEnd>,
    /// Rings are told to be logged when they start.
    logged: bool,
    /// The sending queue of each pair.
    pub tx: Vec<Transmitter>,
    /// The receiving queue of each pair.
    pub rx: Vec<Receiver>,
}

impl Guest {
    /// Connects, negotiates and starts all rings, with all receive buffers made available.
    pub fn start(options: Options) -> anyhow::Result<Self> {
        let listener = match options.role {
            Role::Connect => None,
            Role::Listen => Some(
                UnixListener::bind(&options.socket)
                    .with_context(|| format!("listening at {}", options.socket.display()))?,
            ),
        };
        let memory = Arc::new(Memory::new(Layout {
            size: options.memory_size(),
            regions: options.regions,
            start: options.memory_start,
            gap: options.region_gap,
            huge_pages: options.huge_pages,
        })?);
        let (features, offered_pairs, frontend) = (0, 0, None);
        let (bases, tx, rx) = (vec![], vec![], vec![]);
        let logged = false;
        let mut guest = Self { options, listener, memory, features, offered_pairs, bases, frontend, logged, tx, rx };
        guest.connect()?;
        guest.make_queues()?;
        guest.start_rings()?;
        for rx in &mut guest.rx {
            rx.post(usize::MAX);
        }
        Ok(guest)
    }

    /// Connection and negotiation, up to SET_OWNER.
    fn connect(&mut self) -> anyhow::Result<()> {
        let mut frontend = match &self.listener {
            None => FrontEnd::connect(&self.options.socket, self.options.timeout)?,
            Some(listener) => FrontEnd::accept(listener, self.options.timeout)?,
        };
        frontend.stop_after(self.options.stop_after);
        let (offered, pairs) = frontend.negotiate(self.options.protocol_features)?;
        self.features = offered & (self.options.features | feature::PROTOCOL_FEATURES);
        self.offered_pairs = pairs;
        let missing = self.options.required & !offered;
        ensure!(missing == 0, "the back-end does not offer features {missing:#x}");
        ensure!(
            pairs >= u64::from(self.options.pairs),
            "the back-end offers {pairs} queue pairs, {} are wanted",
            self.options.pairs
        );
        self.frontend = Some(frontend);
        Ok(())
    }

    /// Empty rings with all buffers free, as after a reset of the device.
    fn make_queues(&mut self) -> anyhow::Result<()> {
        self.tx.clear();
        self.rx.clear();
        self.memory.free_all();
        let Options { ring_size, tx_room, rx_room, .. } = self.options;
        let header = feature::header_length(self.features);
        let kind = if self.has(feature::RING_PACKED) { Kind::Packed } else { Kind::Split };
        let (event_idx, in_order) = (self.has(feature::EVENT_IDX), self.has(feature::IN_ORDER));
        let indirect = self.has(feature::INDIRECT_DESC);
        let shape = |shape: Shape| {
            let apart = shape == Shape::Whole && self.features & (feature::ANY_LAYOUT | feature::VERSION_1) == 0;
            if apart { Shape::HeaderApart } else { shape }
        };
        for _ in 0..self.options.pairs {
            let ring = Ring::new(kind, &self.memory, ring_size, event_idx, in_order)?;
            let mergeable = self.has(feature::MRG_RXBUF);
            let mut rx = Receiver::new(ring, shape(self.options.rx_shape), indirect, header, rx_room, mergeable)?;
            rx.agree(self.features);
            self.rx.push(rx);
            let ring = Ring::new(kind, &self.memory, ring_size, event_idx, in_order)?;
            self.tx.push(Transmitter::new(ring, shape(self.options.tx_shape), indirect, header, tx_room)?);
        }
        let mut rings = rings(&mut self.rx, &mut self.tx);
        rings.iter_mut().for_each(|ring| ring.want_call(false));
        self.bases = rings.iter().map(|ring| ring.first_base()).collect();
        Ok(())
    }

    /// From SET_VRING_CALL to the last ring's start. Rings begin where QEMU would let them: new ones at their first place,
    /// others where GET_VRING_BASE said, or what is known of them when the last back-end died.
    fn start_rings(&mut self) -> anyhow::Result<()> {
        let Self { options, features, memory, tx, rx, bases, logged, .. } = self;
        let frontend = self.frontend.as_mut().context("not connected")?;
        let rings: Vec<(u32, &mut Ring)> = (0..).zip(rings(rx, tx)).collect();
        for (index, ring) in &rings {
            frontend.set_vring_call(*index, ring, options.polled)?;
        }
        let enabled = |index: u32| index < 2 * u32::from(options.enabled_pairs);
        if options.enable == EnableOrder::Early {
            for (index, _) in &rings {
                frontend.set_vring_enable(*index, enabled(*index))?;
            }
        }
        frontend.set_features(*features | if *logged { feature::LOG_ALL } else { 0 })?;
        if frontend.protocol_features() & feature::PROTOCOL_CONFIGURE_MEM_SLOTS != 0 {
            for region in memory.regions() {
                frontend.add_mem_reg(memory, region)?;
            }
        } else {
            frontend.set_mem_table(memory, memory.regions())?;
        }
        for (index, ring) in &rings {
            frontend.set_vring_num(*index, u32::from(ring.size()))?;
            frontend.set_vring_base(*index, ring.base_after_death(bases[*index as usize]))?;
            let places = ring.user_addresses();
            if *logged {
                frontend.set_logged_vring_addr(*index, places, ring.addresses()[2])?;
            } else {
                frontend.set_vring_addr(*index, places)?;
            }
            frontend.set_vring_kick(*index, ring, false)?;
            frontend.set_vring_call(*index, ring, options.polled)?;
        }
        if options.enable == EnableOrder::Late {
            for (index, _) in &rings {
                frontend.set_vring_enable(*index, enabled(*index))?;
            }
        }
        for (_, ring) in &rings {
            ring.kick_now();
        }
        Ok(())
    }

    /// Connects again after the back-end died or was left, and goes on with the rings as they are.
    pub fn reconnect(&mut self) -> anyhow::Result<()> {
        self.frontend = None;
        self.connect()?;
        self.start_rings()
    }

    /// As [`Self::reconnect`] in the midst of a migration: no ring runs before its log is there, which comes last, as from QEMU.
    pub fn reconnect_logged(&mut self) -> anyhow::Result<Log> {
        self.frontend = None;
        self.connect()?;
        self.start_logged()
    }

    /// Goes to the back-end at another socket, as a guest does that was migrated there, and goes on with the rings as they are. Gives up,
    /// with [`StoppedOnPurpose`], after so many messages.
    pub fn arrive(&mut self, socket: &Path, messages: Option<usize>) -> anyhow::Result<()> {
        self.options.socket = socket.into();
        self.options.stop_after = messages;
        if self.options.role == Role::Listen {
            let _ = std::fs::remove_file(socket);
            let listener = UnixListener::bind(socket);
            self.listener = Some(listener.with_context(|| format!("listening at {}", socket.display()))?);
        }
        self.reconnect()
    }

    /// The front-end at this place is gone, with the socket that it may have listened at.
    pub fn vanish(&mut self) {
        self.frontend = None;
        if self.listener.take().is_some() {
            let _ = std::fs::remove_file(&self.options.socket);
        }
    }

    /// The connection, which is kept while the guest arrives elsewhere: the back-end here does not know whether it will be back.
    pub fn leave(&mut self) -> anyhow::Result<FrontEnd> {
        self.frontend.take().context("not connected")
    }

    /// Goes on where it was left, as a front-end whose migration has failed at its end: still logged.
    pub fn come_back(&mut self, frontend: FrontEnd) -> anyhow::Result<Log> {
        self.frontend = Some(frontend);
        self.start_logged()
    }

    fn start_logged(&mut self) -> anyhow::Result<Log> {
        self.logged = true;
        let started = self.start_rings();
        self.logged = false;
        started?;
        Log::start(self)
    }

    /// Resets the device while no back-end is there, as a guest does whose driver is loaded again while the back-end is dead. The
    /// new rings may lie where the old ones were. [`Self::reconnect`] comes next.
    pub fn reset_unseen(&mut self) -> anyhow::Result<()> {
        self.frontend = None;
        self.make_queues()?;
        for rx in &mut self.rx {
            rx.post(usize::MAX);
        }
        Ok(())
    }

    /// Closes the connection, as a front-end that was killed does. The rings stay as they are.
    pub fn disconnect(&mut self) {
        self.frontend = None;
    }

    /// Resets the device and starts it anew, as a driver that is loaded again does: all rings stop, and begin empty.
    pub fn reset(&mut self) -> anyhow::Result<()> {
        self.stop()?;
        self.make_queues()?;
        self.start_rings()?;
        for rx in &mut self.rx {
            rx.post(usize::MAX);
        }
        Ok(())
    }

    /// Stops all rings; the index at which each would go on.
    pub fn stop(&mut self) -> anyhow::Result<Vec<u32>> {
        let rings = 2 * u32::from(self.options.pairs);
        let frontend = self.frontend()?;
        self.bases = (0..rings).map(|index| frontend.get_vring_base(index)).collect::<anyhow::Result<_>>()?;
        Ok(self.bases.clone())
    }

    /// Stops one ring; the index at which it would go on.
    pub fn stop_ring(&mut self, index: u32) -> anyhow::Result<u32> {
        let base = self.frontend()?.get_vring_base(index)?;
        *self.bases.get_mut(index as usize).context("no such ring")? = base;
        Ok(base)
    }

    /// Enables or disables a pair while it runs.
    pub fn enable(&mut self, pair: u16, enabled: bool) -> anyhow::Result<()> {
        let frontend = self.frontend()?;
        frontend.set_vring_enable(2 * u32::from(pair), enabled)?;
        frontend.set_vring_enable(2 * u32::from(pair) + 1, enabled)?;
        frontend.barrier()
    }

    /// Starts a ring again that was stopped, and tells nothing of it but its kick.
    pub fn start_ring(&mut self, index: u32) -> anyhow::Result<()> {
        let Self { frontend, rx, tx, .. } = self;
        let frontend = frontend.as_mut().context("not connected")?;
        let rings = rings(rx, tx);
        let ring = rings.get(index as usize).context("no such ring")?;
        frontend.set_vring_kick(index, ring, false)?;
        ring.kick_now();
        Ok(())
    }

    /// The connection, for who wants to say something else.
    pub fn frontend(&mut self) -> anyhow::Result<&mut FrontEnd> {
        self.frontend.as_mut().context("not connected")
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Virtio features that were agreed on.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Most queue pairs that the back-end offers.
    pub fn offered_pairs(&self) -> u64 {
        self.offered_pairs
    }

    /// What the guest was made with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }
}

/// All rings by their number: of each pair the receiving one, then the sending one.
fn rings<'a>(rx: &'a mut [Receiver], tx: &'a mut [Transmitter]) -> Vec<&'a mut Ring> {
    rx.iter_mut().zip(tx).flat_map(|(rx, tx)| [rx.ring(), tx.ring()]).collect()
}
