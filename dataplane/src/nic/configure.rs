//! Setting a port up: limits of the driver, queues, rings, buffers, MTU (DPDK: *Poll Mode Driver*, section "Configuration").

use std::cmp::Reverse;
use std::mem::MaybeUninit;

use dpdk_sys as sys;
use ringspan_protocol::{DeviceSpec, MacAddress, Policy, PolicyStatus, PortSpec, ZeroCopy};

use super::eal::{Eal, has_free_huge_pages, registered_threads};
use super::error::{DeviceError, describe, reason};
use super::filter::Filter;
use super::log;
use super::offload::Offloads;
use super::pool::Pool;
use super::port::Port;

/// Steps that a driver may refuse because of its interrupts, as errors call them.
const CONFIGURATION: &str = "configuration";
const START: &str = "start";
/// Descriptors of a ring, where the driver has no other limits.
const RING: u16 = 512;
/// Buffers beyond those in rings, for each queue pair: bursts on their way.
const ON_THE_WAY: u32 = 4 * crate::BURST as u32;
/// Bytes of large frames on their way, for each queue pair, where there are any: what is taken from a ring in one go, and as
/// much on a link.
const LARGE_BYTES: u32 = 1 << 20;
/// Buffers that may lie idle in the caches of threads that once returned some: this for two, ...
const IDLE: u32 = 512;
/// ... and so many for each further worker of the lane. DPDK flushes a cache of 128 at one and a half times its size.
const IDLE_EACH: u32 = 192;
/// Bytes around an MTU: Ethernet header, two VLAN tags, frame check sequence.
const AROUND: u32 = 14 + 2 * 4 + 4;
/// Least room of a buffer. Some NICs (e1000, igb, ixgbe) take the room in whole KiB.
const LEAST_ROOM: u32 = 2048;
/// NUMA nodes that are looked at: as many as DPDK knows.
pub(super) const MOST_NODES: i32 = 32;
/// With less memory than this in one piece, in bytes, a driver that says it has too little is believed.
const LEAST_FREE: u64 = 1 << 20;

/// How a device is used; all of it can be changed while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Queues in each direction, 1 at least.
    pub queues: u16,
    /// Largest frame without its Ethernet header, in bytes.
    pub mtu: u16,
    /// The device's MAC address; its own when absent.
    pub mac: Option<MacAddress>,
    /// Receive every unicast frame.
    pub promiscuous: Policy,
    /// Receive every multicast frame.
    pub allmulti: Policy,
    /// Guests are offered checksum and segmentation offloads.
    pub offloads: bool,
    /// Whether large frames are read in guest memory.
    pub zero_copy: ZeroCopy,
    /// Frames of fewer bytes are copied; `None`: by the kind of device.
    pub zero_copy_from: Option<u16>,
}

/// Buffers that a driver keeps for itself, for each queue: net_pcap has one for each frame of a file that it repeats.
fn kept(spec: &DeviceSpec) -> u32 {
    /// Bytes of the shortest frame in a file, with its header there (pcap-savefile(5)).
    const LEAST: u64 = 60 + 16;
    let DeviceSpec::Vdev { name, args } = spec else { return 0 };
    let value = |key: &str| args.split(',').find_map(|argument| argument.strip_prefix(key)?.strip_prefix('='));
    if !name.starts_with("net_pcap") || value("infinite_rx") != Some("1") {
        return 0;
    }
    let bytes = value("rx_pcap").and_then(|file| std::fs::metadata(file).ok()).map_or(0, |file| file.len());
    u32::try_from(bytes / LEAST).unwrap_or(u32::MAX).min(1 << 16)
}

impl From<&PortSpec> for DeviceConfig {
    fn from(spec: &PortSpec) -> Self {
        let PortSpec { queues, mtu, mac, promiscuous, allmulti, offloads, zero_copy, zero_copy_from, .. } = *spec;
        Self { queues, mtu, mac, promiscuous, allmulti, offloads, zero_copy, zero_copy_from }
    }
}

/// What became of the receive filters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filters {
    pub promiscuous: PolicyStatus,
    pub allmulti: PolicyStatus,
}

/// A port being set up, and how it is called in errors.
pub(super) struct Setup<'a> {
    pub port: &'a Port,
    pub spec: &'a DeviceSpec,
}

impl Setup<'_> {
    /// Sets a stopped port up and starts it. `pool` is taken when it fits, else a new one is made.
    ///
    /// # Errors
    /// The port is stopped then, and must be set up again before it is used.
    pub fn run(&self, config: &DeviceConfig, pool: Option<&Pool>) -> Result<(Pool, Filters, Offloads), DeviceError> {
        // Some drivers refuse to start when they cannot have an interrupt for each queue: better without than not at all.
        self.run_with(config, pool, true).or_else(|error| match error {
            DeviceError::Driver { step: CONFIGURATION | START, .. } => self.run_with(config, pool, false),
            error => Err(error),
        })
    }

    fn run_with(
        &self,
        config: &DeviceConfig,
        pool: Option<&Pool>,
        interrupts: bool,
    ) -> Result<(Pool, Filters, Offloads), DeviceError> {
        let info = self.info()?;
        self.check_queues(config, &info)?;
        self.check_mtu(config, &info)?;
        let offloads = Offloads::choose(self.port.driver(), &info, config.offloads);
        let rings = self.configure(config, &info, &offloads, interrupts)?;
        let first = pool.is_none();
        let pool = self.pool(config, &info, rings, pool)?;
        self.port.keep_pools([&pool].into_iter());
        self.queues(config, rings, &pool)?;
        self.set_mtu(config)?;
        // Its driver ends the process when it cannot have this later; what it has it keeps.
        let needed = self.port.members().map_or(0, |members| members.needs_free());
        if first && largest_free() < needed {
            return Err(self.no_memory("LACP", needed));
        }
        if let Some(mac) = config.mac {
            self.set_mac(mac)?;
        }
        self.step(START, || self.port.start())?;
        // Filters of most drivers exist only while the port runs.
        let filters = self.filters(config);
        if filters.is_err() {
            self.port.stop();
        }
        Ok((pool, filters?, offloads))
    }

    pub fn set_mac(&self, mac: MacAddress) -> Result<(), DeviceError> {
        let is_bond = self.port.members().is_some();
        if self.mac() == mac && !is_bond {
            return Ok(());
        }
        let mut address = sys::rte_ether_addr { addr_bytes: mac.0 };
        // SAFETY: the port is ours, and a bond where it is said to be one; the address is read during the call.
        let status = unsafe {
            if is_bond {
                // Set as any other device's it would be its first member's again when it starts.
                sys::rte_eth_bond_mac_address_set(self.port.id(), &mut address)
            } else {
                sys::rte_eth_dev_default_mac_addr_set(self.port.id(), &mut address)
            }
        };
        if status == 0 {
            return Ok(());
        }
        let (device, driver) = self.names();
        let (error, errno) = if is_bond && status == -1 {
            // Whatever a member's driver said, a bond's answers -1, which is no errno.
            ("a member does not take it; a VF does where it is trusted: ringspan vf set PF VF --trust true".into(), 0)
        } else {
            (describe(status), status.abs())
        };
        Err(DeviceError::Mac { device, driver, mac, error, errno })
    }

    /// The port's MAC address, all zero when the driver has none.
    pub fn mac(&self) -> MacAddress {
        let mut address = sys::rte_ether_addr { addr_bytes: [0; 6] };
        // SAFETY: the port is ours; the function writes the address.
        unsafe { sys::rte_eth_macaddr_get(self.port.id(), &mut address) };
        MacAddress(address.addr_bytes)
    }

    pub fn filter(&self, filter: Filter, policy: Policy) -> Result<PolicyStatus, DeviceError> {
        filter.apply(self.port.id(), policy).map_err(|errno| {
            let (device, driver) = self.names();
            DeviceError::Filter { device, driver, filter: filter.name(), error: describe(errno), errno }
        })
    }

    fn filters(&self, config: &DeviceConfig) -> Result<Filters, DeviceError> {
        Ok(Filters {
            promiscuous: self.filter(Filter::Promiscuous, config.promiscuous)?,
            allmulti: self.filter(Filter::AllMulticast, config.allmulti)?,
        })
    }

    /// What the driver says of the port.
    fn info(&self) -> Result<sys::rte_eth_dev_info, DeviceError> {
        let mut info = MaybeUninit::<sys::rte_eth_dev_info>::zeroed();
        // SAFETY: the port is ours; the function fills the structure, for which all zeroes are a valid value too.
        self.step("reading its abilities", || unsafe { sys::rte_eth_dev_info_get(self.port.id(), info.as_mut_ptr()) })?;
        // SAFETY: as above.
        Ok(unsafe { info.assume_init() })
    }

    fn check_queues(&self, config: &DeviceConfig, info: &sys::rte_eth_dev_info) -> Result<(), DeviceError> {
        let most = info.max_rx_queues.min(info.max_tx_queues);
        if (1..=most).contains(&config.queues) {
            return Ok(());
        }
        let (device, driver) = self.names();
        Err(DeviceError::Queues { device, driver, asked: config.queues, most })
    }

    /// The bounds are ethdev's own; it would only say EINVAL.
    fn check_mtu(&self, config: &DeviceConfig, info: &sys::rte_eth_dev_info) -> Result<(), DeviceError> {
        let bounded = info.max_mtu != u16::MAX && info.max_rx_pktlen > u32::from(info.max_mtu);
        let overhead = if bounded { info.max_rx_pktlen - u32::from(info.max_mtu) } else { 14 + 4 };
        let longest = info.max_rx_pktlen.saturating_sub(overhead).min(u32::from(info.max_mtu)) as u16;
        if (info.min_mtu..=longest).contains(&config.mtu) {
            return Ok(());
        }
        let (device, driver) = self.names();
        Err(DeviceError::Mtu { device, driver, asked: config.mtu, least: info.min_mtu, most: longest })
    }

    /// Configures the port; returns the lengths of its receive and transmit rings.
    fn configure(
        &self,
        config: &DeviceConfig,
        info: &sys::rte_eth_dev_info,
        offloads: &Offloads,
        interrupts: bool,
    ) -> Result<(u16, u16), DeviceError> {
        // SAFETY: a plain C structure, for which all zeroes mean defaults.
        let mut conf: sys::rte_eth_conf = unsafe { std::mem::zeroed() };
        conf.rxmode.mtu = u32::from(config.mtu);
        (conf.rxmode.offloads, conf.txmode.offloads) = (offloads.rx_flags, offloads.tx_flags);
        let spread = info.flow_type_rss_offloads & (sys::SHIM_RSS_IP | sys::SHIM_RSS_TCP | sys::SHIM_RSS_UDP);
        if config.queues > 1 && spread != 0 {
            conf.rxmode.mq_mode = sys::RTE_ETH_MQ_RX_RSS;
            conf.rx_adv_conf.rss_conf.rss_hf = spread;
        }
        // SAFETY: points to the flags of the port's own data, or is null.
        let flags = unsafe { info.dev_flags.as_ref() }.copied().unwrap_or(0);
        conf.intr_conf.set_rxq(interrupts.into());
        conf.intr_conf.set_rmv(u32::from(flags & sys::SHIM_DEV_INTR_RMV != 0));

        let (mut rx, mut tx) = (RING, RING);
        // SAFETY: the port is ours and stopped; the structure is read during the call.
        self.step(CONFIGURATION, || unsafe {
            sys::rte_eth_dev_configure(self.port.id(), config.queues, config.queues, &conf)
        })?;
        // SAFETY: the port is ours; both lengths are adjusted in place.
        self.step("choosing ring lengths", || unsafe {
            sys::rte_eth_dev_adjust_nb_rx_tx_desc(self.port.id(), &mut rx, &mut tx)
        })?;
        Ok((rx, tx))
    }

    /// A pool with enough buffers, of enough room that every frame the port may have lies in one.
    fn pool(
        &self,
        config: &DeviceConfig,
        info: &sys::rte_eth_dev_info,
        (rx, tx): (u16, u16),
        old: Option<&Pool>,
    ) -> Result<Pool, DeviceError> {
        let frame = (u32::from(config.mtu) + AROUND).max(LEAST_ROOM).max(info.min_rx_bufsize.min(16 << 10));
        let room = frame.next_multiple_of(1024) as u16;
        let large = if config.offloads { LARGE_BYTES.div_ceil(u32::from(room)) } else { 0 };
        let size = u32::from(config.queues) * (u32::from(rx) + u32::from(tx) + ON_THE_WAY + large + kept(self.spec))
            + IDLE
            + IDLE_EACH * registered_threads().saturating_sub(2);
        if let Some(old) = old.filter(|old| old.size() == size && old.room() == room) {
            return Ok(old.clone());
        }
        let near = self.node();
        let anywhere = |error| if near >= 0 { Pool::new(size, room, sys::SHIM_SOCKET_ID_ANY) } else { Err(error) };
        Pool::new(size, room, near).or_else(anywhere).map_err(|error| match error.errno {
            libc::ENOMEM | libc::ENOBUFS | libc::EEXIST => {
                self.no_memory("the pool of its packet buffers", error.need_bytes)
            }
            errno => self.failed("making its packet buffers", errno, String::new()),
        })
    }

    fn queues(&self, config: &DeviceConfig, (rx, tx): (u16, u16), pool: &Pool) -> Result<(), DeviceError> {
        let port = self.port.id();
        let node = self.node();
        for queue in 0..config.queues {
            // SAFETY: the port is ours, configured and stopped; no queue settings of our own; the pool is kept by the port.
            let receive = |node| unsafe {
                sys::rte_eth_rx_queue_setup(port, queue, rx, node as u32, std::ptr::null(), pool.raw())
            };
            self.step("setting up a receive queue", || there_or_anywhere(node, receive))?;
            // SAFETY: as above.
            let transmit =
                |node| unsafe { sys::rte_eth_tx_queue_setup(port, queue, tx, node as u32, std::ptr::null()) };
            self.step("setting up a transmit queue", || there_or_anywhere(node, transmit))?;
        }
        self.port.set_queues(config.queues);
        Ok(())
    }

    /// The NUMA node of the device, where the lane has memory there or may take some; else the one where it has most, as DPDK itself would take the
    /// first. Any, where all memory is alike.
    fn node(&self) -> i32 {
        // SAFETY: the port is ours.
        let node = unsafe { sys::rte_eth_dev_socket_id(self.port.id()) };
        if u16::try_from(node).is_ok_and(may_have_memory) {
            return node;
        }
        let has_nodes = Eal::started().is_some_and(|eal| eal.huge_pages() && eal.has_nodes());
        let free = |node| memory(node).filter(|_| has_nodes).map_or(0, |stats| stats.greatest_free_size);
        roomiest(free).unwrap_or(sys::SHIM_SOCKET_ID_ANY)
    }

    /// A driver without an MTU of its own (ENOTSUP: software rings) carries whatever fits its buffers. A bond has that of its
    /// configuration, and gives it to its devices when it starts.
    fn set_mtu(&self, config: &DeviceConfig) -> Result<(), DeviceError> {
        if self.port.members().is_some() {
            return Ok(());
        }
        // SAFETY: the port is ours, configured and stopped.
        let set = || match unsafe { sys::rte_eth_dev_set_mtu(self.port.id(), config.mtu) } {
            status if status == -libc::ENOTSUP => 0,
            status => status,
        };
        self.step("setting the MTU", set)
    }

    /// Runs one of DPDK's functions that return 0 or a negative errno.
    fn step(&self, step: &'static str, call: impl FnOnce() -> i32) -> Result<(), DeviceError> {
        let (status, said) = log::listen(call);
        match status.abs() {
            0 => Ok(()),
            // Some drivers answer this to arguments they do not like, too.
            libc::ENOMEM if largest_free() < LEAST_FREE => Err(self.no_memory(step, LEAST_FREE)),
            errno => Err(self.failed(step, errno, said)),
        }
    }

    /// The error of a port that would not stop.
    pub fn not_stopped(&self, errno: i32) -> DeviceError {
        self.failed("stop", errno.abs(), String::new())
    }

    fn failed(&self, step: &'static str, errno: i32, said: String) -> DeviceError {
        let (device, driver) = self.names();
        let (error, errno) = reason(self.spec, errno, "a permission may be missing");
        DeviceError::Driver { device, driver, step, error, errno, said }
    }

    fn no_memory(&self, what: &'static str, need: u64) -> DeviceError {
        let memory_mib = Eal::started().map_or(0, |eal| eal.memory_mib());
        let device = self.spec.to_string();
        DeviceError::NoMemory {
            device,
            what,
            need_kib: need.div_ceil(1024),
            free_kib: largest_free() >> 10,
            memory_mib,
        }
    }

    fn names(&self) -> (String, String) {
        (self.spec.to_string(), self.port.driver().to_string())
    }
}

/// The node with the largest free piece of memory, of which `free` tells the bytes; the first of several. None when all is taken.
fn roomiest(free: impl Fn(i32) -> usize) -> Option<i32> {
    let nodes = (0..MOST_NODES).map(|node| (node, free(node))).filter(|(_, free)| *free > 0);
    nodes.min_by_key(|(_, free)| Reverse(*free)).map(|(node, _)| node)
}

/// Sets something up by memory of a NUMA node or, where it has not enough, of any: a single free hugepage is a promise that may not hold.
fn there_or_anywhere(node: i32, mut set_up: impl FnMut(i32) -> i32) -> i32 {
    match set_up(node) {
        status if status == -libc::ENOMEM && node >= 0 => set_up(sys::SHIM_SOCKET_ID_ANY),
        status => status,
    }
}

/// The largest free piece of DPDK's memory, in bytes.
pub(super) fn largest_free() -> u64 {
    (0..MOST_NODES).filter_map(memory).map(|stats| stats.greatest_free_size as u64).max().unwrap_or(0)
}

/// Whether the lane has memory on a NUMA node, or may take some: free hugepages that are there.
pub(super) fn may_have_memory(node: u16) -> bool {
    let huge_pages = || Eal::started().is_some_and(|eal| eal.huge_pages()) && has_free_huge_pages(node);
    memory(node.into()).is_some_and(|stats| stats.heap_totalsz_bytes > 0 || huge_pages())
}

/// What DPDK's heap has on a NUMA node.
fn memory(node: i32) -> Option<sys::rte_malloc_socket_stats> {
    let mut stats = sys::rte_malloc_socket_stats::default();
    // SAFETY: the function fills the structure, or says that there is no such node.
    (unsafe { sys::rte_malloc_get_socket_stats(node, &mut stats) } == 0).then_some(stats)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_that_their_node_has_no_memory_for_are_set_up_elsewhere() {
        let asked = |node: i32, full: &[i32]| {
            let mut asked = Vec::new();
            let status = there_or_anywhere(node, |node| {
                asked.push(node);
                if full.contains(&node) { -libc::ENOMEM } else { 0 }
            });
            (status, asked)
        };
        let any = sys::SHIM_SOCKET_ID_ANY;
        assert_eq!(asked(1, &[]), (0, vec![1]));
        assert_eq!(asked(1, &[1]), (0, vec![1, any]));
        assert_eq!(asked(1, &[1, any]), (-libc::ENOMEM, vec![1, any]));
        assert_eq!(asked(any, &[any]), (-libc::ENOMEM, vec![any]), "once is enough");
        let mut calls = 0;
        let refuse = |_| {
            calls += 1;
            -libc::EINVAL
        };
        assert_eq!(there_or_anywhere(1, refuse), -libc::EINVAL);
        assert_eq!(calls, 1, "what it does not like there it does not like elsewhere");
    }

    #[test]
    fn a_device_without_a_node_is_where_most_is_free_and_anywhere_when_nothing_is() {
        let of = |free: &[usize]| roomiest(|node| free.get(node as usize).copied().unwrap_or(0));
        assert_eq!(of(&[1, 3, 2]), Some(1));
        assert_eq!(of(&[2, 2]), Some(0));
        assert_eq!(of(&[]), None);
    }
}
