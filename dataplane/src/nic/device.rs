//! A device: plugged in, configured, asked, changed and closed.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};

use dpdk_sys as sys;
use ringspan_protocol::nic::BondMode;
use ringspan_protocol::{DeviceSpec, DeviceStatus, MacAddress, Policy, ReceiveWake, Spread};

use super::bond::{self, Member};
use super::configure::{DeviceConfig, Filters, Setup};
use super::eal::Eal;
use super::error::{DeviceError, describe, reason};
use super::filter::Filter;
use super::lending::Lending;
use super::offload::Offloads;
use super::pool::Pool;
use super::port::Port;
use super::queue::{QueuePair, RxQueue, TxQueue};
use super::registry::{self, Registry};
use super::ring_end::RingEnd;
use super::wake::Waker;
use super::{log, patch, pci, soft};
use crate::vdpa;

/// Most ports that one probe can make: a physical function and its representors.
const MOST_PORTS: usize = sys::SHIM_MAX_ETHPORTS as usize;

/// A link's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Whether it is up.
    pub up: bool,
    /// Speed in Mbit/s, where the driver knows it.
    pub speed_mbps: Option<u32>,
}

/// A device of DPDK that is open: the side that control asks and changes. Its queues are with the workers.
///
/// It is closed when this and all of its queue handles are dropped.
#[derive(Debug)]
pub struct Device {
    port: Arc<Port>,
    spec: DeviceSpec,
    config: DeviceConfig,
    pool: Pool,
    filters: Filters,
    offloads: Offloads,
    /// What wakes the worker of each queue.
    wakers: Vec<Waker>,
    lending: Result<Lending, String>,
}

impl Device {
    /// Plugs a device in, configures and starts it. Its queue pairs are in order.
    ///
    /// # Errors
    /// [`DeviceError`]; the device is unplugged again.
    pub fn open(spec: &DeviceSpec, config: &DeviceConfig) -> Result<(Self, Vec<QueuePair>), DeviceError> {
        if let DeviceSpec::Bond { mode, devices } = spec {
            // Names within the process only: a lane may have a NIC's bond of any name, too, whose first letter is none of these.
            static BONDS: AtomicU32 = AtomicU32::new(0);
            let name = bond::spec(&format!("-port{}", BONDS.fetch_add(1, Ordering::Relaxed)));
            let port = Arc::new(bond::plug(&name, *mode, devices, config.queues)?);
            return Self::start(port, spec.clone(), config);
        }
        let port = Arc::new(plug(spec, config.queues)?);
        Self::start(port, spec.clone(), config)
    }

    /// The same for a physical function whose switch takes rules: it gives up nothing of what the kernel receives by it. Drivers that cannot promise that
    /// (virtual devices) are opened as others are.
    ///
    /// # Errors
    /// [`DeviceError`]; the device is unplugged again.
    pub fn open_isolated(spec: &DeviceSpec, config: &DeviceConfig) -> Result<(Self, Vec<QueuePair>), DeviceError> {
        let port = Arc::new(plug(spec, config.queues)?);
        if matches!(spec, DeviceSpec::Pci { .. }) {
            // SAFETY: the port is ours, and not configured yet, as rte_flow_isolate() asks.
            let (status, said) = log::listen(|| unsafe { sys::shim_flow_isolate(port.id()) });
            if status != 0 {
                let (device, driver) = (spec.to_string(), port.driver().to_string());
                let (error, errno) =
                    reason(spec, status.saturating_abs(), "its driver cannot leave the kernel its traffic");
                return Err(DeviceError::Probe { device, driver, error, errno, said });
            }
        }
        Self::start(port, spec.clone(), config)
    }

    /// The ports of DPDK that were made with this one, each with its name: representors.
    pub fn siblings(&self) -> Vec<(u16, String)> {
        let identity = self.spec.identity();
        let own = identity.split(',').next().unwrap_or_default();
        let Ok(filter) = CString::new(own) else { return Vec::new() };
        let mut ports = [0; MOST_PORTS];
        // SAFETY: EAL is started; the string is terminated; the array has as much room as the function is told.
        let (found, _) =
            log::listen(|| unsafe { sys::shim_matching_ports(filter.as_ptr(), ports.as_mut_ptr(), MOST_PORTS as i32) });
        let found = usize::try_from(found).unwrap_or(0).min(MOST_PORTS);
        let name = |id: &u16| {
            let mut name = [0; sys::RTE_ETH_NAME_MAX_LEN as usize];
            // SAFETY: the name has the room that the function asks for.
            let status = unsafe { sys::rte_eth_dev_get_name_by_port(*id, name.as_mut_ptr()) };
            // SAFETY: DPDK terminates the name.
            (status == 0).then(|| (*id, unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned()))
        };
        ports[..found].iter().filter(|id| **id != self.port.id()).filter_map(name).collect()
    }

    /// The port itself, for what else is done with it in this module.
    pub(super) fn port(&self) -> &Arc<Port> {
        &self.port
    }

    fn start(port: Arc<Port>, spec: DeviceSpec, config: &DeviceConfig) -> Result<(Self, Vec<QueuePair>), DeviceError> {
        let (pool, filters, offloads) = Setup { port: &port, spec: &spec }.run(config, None)?;
        let lending = Lending::choose(&port, &spec, config);
        let wakers = Vec::new();
        let mut device = Self { port, spec, config: *config, pool, filters, offloads, lending, wakers };
        let queues = device.hand_out();
        Ok((device, queues))
    }

    /// Makes one device of several, which are plugged in, configured and started with it. `name` tells it from other bonds.
    ///
    /// # Errors
    /// [`DeviceError`]; the devices are unplugged again.
    pub fn open_bond(
        name: &str,
        mode: BondMode,
        devices: &[DeviceSpec],
        config: &DeviceConfig,
    ) -> Result<(Self, Vec<QueuePair>), DeviceError> {
        let spec = bond::spec(name);
        let port = Arc::new(bond::plug(&spec, mode, devices, config.queues)?);
        Self::start(port, spec, config)
    }

    /// The devices of a bond; none when it is no bond.
    pub fn members(&self) -> Vec<Member> {
        self.port.members().map_or_else(Vec::new, |members| members.status(self.port.id()))
    }

    /// What was opened.
    pub fn spec(&self) -> &DeviceSpec {
        &self.spec
    }

    /// How it is configured.
    pub fn config(&self) -> &DeviceConfig {
        &self.config
    }

    /// The NUMA node it is attached to, where the driver knows it.
    pub fn node(&self) -> Option<u16> {
        // SAFETY: the port is ours.
        u16::try_from(unsafe { sys::rte_eth_dev_socket_id(self.port.id()) }).ok()
    }

    /// Where frames for this device are best allocated.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// How it reads frames in guest memory, or why it does not.
    pub fn lending(&self) -> &Result<Lending, String> {
        &self.lending
    }

    /// The device as it is now.
    pub fn status(&self) -> DeviceStatus {
        let Link { up: link_up, speed_mbps } = self.link();
        let Filters { promiscuous, allmulti } = self.filters.clone();
        DeviceStatus {
            driver: self.port.driver().to_string(),
            link_up,
            speed_mbps,
            mac: self.setup().mac(),
            mtu: self.config.mtu,
            queues: self.config.queues,
            receive_wake: self.wakers.first().map_or(ReceiveWake::Timer, Waker::status),
            spread: self.spread(),
            members: self.members().into_iter().map(Member::status).collect(),
            promiscuous,
            allmulti,
            offloads: self.offloads.status(),
        }
    }

    /// The state of the link, without waiting for it.
    pub fn link(&self) -> Link {
        self.port.link_state()
    }

    /// The driver's own counters, by DPDK's names, since the device was opened.
    pub fn extended_stats(&self) -> Vec<(String, u64)> {
        let port = self.port.id();
        // SAFETY: the port is ours; without room the functions only say how many there are.
        let count = unsafe { sys::rte_eth_xstats_get_names(port, std::ptr::null_mut(), 0) }.max(0) as usize;
        let mut names = vec![sys::rte_eth_xstat_name { name: [0; 64] }; count];
        let mut values = vec![sys::rte_eth_xstat { id: 0, value: 0 }; count];
        // SAFETY: both arrays have room for as many as the functions are told.
        let (named, valued) = unsafe {
            (
                sys::rte_eth_xstats_get_names(port, names.as_mut_ptr(), count as u32),
                sys::rte_eth_xstats_get(port, values.as_mut_ptr(), count as u32),
            )
        };
        if named < 0 || named as usize > count {
            return Vec::new();
        }
        names.truncate(named as usize);
        values.truncate(valued.clamp(0, count as i32) as usize);
        let named = |stat: &sys::rte_eth_xstat| {
            let name = names.get(usize::try_from(stat.id).ok()?)?;
            // SAFETY: DPDK terminates the name within its 64 bytes.
            let name = unsafe { CStr::from_ptr(name.name.as_ptr()) };
            Some((name.to_string_lossy().into_owned(), stat.value))
        };
        values.iter().filter_map(named).collect()
    }

    /// Whether the device is gone from its bus. Its queues give and take nothing any more; close it.
    pub fn removed(&self) -> bool {
        self.port.removed()
    }

    /// Changes the MAC address while frames flow.
    pub fn set_mac(&mut self, mac: MacAddress) -> Result<(), DeviceError> {
        self.setup().set_mac(mac)?;
        self.config.mac = Some(mac);
        Ok(())
    }

    /// Opens or closes the filter for unicast frames while frames flow.
    pub fn set_promiscuous(&mut self, policy: Policy) -> Result<(), DeviceError> {
        self.filters.promiscuous = self.setup().filter(Filter::Promiscuous, policy)?;
        self.config.promiscuous = policy;
        Ok(())
    }

    /// Opens or closes the filter for multicast frames while frames flow.
    pub fn set_allmulti(&mut self, policy: Policy) -> Result<(), DeviceError> {
        self.filters.allmulti = self.setup().filter(Filter::AllMulticast, policy)?;
        self.config.allmulti = policy;
        Ok(())
    }

    /// Stops the device, configures it anew and starts it. Takes all of its queue pairs back, so that nobody polls meanwhile, and
    /// gives new ones out.
    ///
    /// # Errors
    /// With queue pairs as before: the device runs so then, unless it refused its old configuration too; that is logged, and its
    /// queues give and take nothing.
    #[allow(clippy::result_large_err, reason = "not on the packet path")]
    pub fn reconfigure(
        &mut self,
        queues: Vec<QueuePair>,
        config: &DeviceConfig,
    ) -> Result<Vec<QueuePair>, (DeviceError, Vec<QueuePair>)> {
        if !self.has_all(&queues) {
            let error = DeviceError::QueuesAway { device: self.spec.to_string(), expected: self.config.queues };
            return Err((error, queues));
        }
        let setup = Setup { port: &self.port, spec: &self.spec };
        let stopped = self.port.stop();
        let result = match stopped {
            0 => setup.run(config, Some(&self.pool)),
            errno => Err(setup.not_stopped(errno)),
        };
        match result {
            Ok((pool, filters, offloads)) => {
                (self.pool, self.filters, self.offloads, self.config) = (pool, filters, offloads, *config);
                drop(queues);
                self.lending = Lending::choose(&self.port, &self.spec, config);
                self.port.let_go_of_pools(&self.pool);
                Ok(self.hand_out())
            }
            Err(error) => {
                // The driver's queues are others, whether the old configuration was taken or not, and so are their descriptors.
                let queues = match setup.run(&self.config, Some(&self.pool)) {
                    Ok((pool, filters, offloads)) => {
                        (self.pool, self.filters, self.offloads) = (pool, filters, offloads);
                        drop(queues);
                        self.hand_out()
                    }
                    Err(again) => {
                        tracing::error!("device {}: the old configuration failed too: {again}", self.spec);
                        self.wakers.fill(Waker::Timer);
                        let deaf = |QueuePair { rx, tx }| QueuePair { rx: RxQueue { waker: Waker::Timer, ..rx }, tx };
                        queues.into_iter().map(deaf).collect()
                    }
                };
                self.port.let_go_of_pools(&self.pool);
                Err((error, queues))
            }
        }
    }

    /// Closes the device, with all of its queue pairs.
    pub fn close(self, queues: Vec<QueuePair>) {
        drop(queues);
        drop(self);
    }

    fn setup(&self) -> Setup<'_> {
        Setup { port: &self.port, spec: &self.spec }
    }

    fn hand_out(&mut self) -> Vec<QueuePair> {
        self.wakers = (0..self.config.queues).map(|queue| self.waker(queue)).collect();
        let pair = |index| QueuePair {
            rx: RxQueue {
                port: self.port.clone(),
                pool: self.pool.clone(),
                index,
                marks: self.offloads.marks,
                waker: self.wakers.get(usize::from(index)).cloned().unwrap_or(Waker::Timer),
                backup: self.port.members().and_then(|members| members.backup(self.port.id())).map(Box::new),
            },
            tx: TxQueue {
                port: self.port.clone(),
                pool: self.pool.clone(),
                index,
                abilities: self.offloads.tx,
                bells: match self.port.members() {
                    Some(members) => members.bells(index).cloned().collect(),
                    None => self.port.link().and_then(|link| link.rings(index)).cloned().into_iter().collect(),
                },
                cleans: self.lending.as_ref().is_ok_and(|lending| lending.cleans),
            },
        };
        (0..self.config.queues).map(pair).collect()
    }

    /// What wakes the worker of a queue.
    fn waker(&self, queue: u16) -> Waker {
        match self.port.link() {
            Some(link) => link.hears(queue).map_or(Waker::Timer, |bell| Waker::Bell(bell.clone())),
            None => Waker::of_interrupt(self.port.id(), queue),
        }
    }

    /// Whether what comes in is spread over the queues.
    fn spread(&self) -> Spread {
        if self.config.queues < 2 {
            return Spread::OneQueue;
        }
        let mut conf = sys::rte_eth_rss_conf::default();
        // SAFETY: the port is ours; the function fills the structure, and no key, for which there is no room.
        let (status, _) = log::listen(|| unsafe { sys::rte_eth_dev_rss_hash_conf_get(self.port.id(), &mut conf) });
        if status == 0 && conf.rss_hf != 0 { Spread::Rss } else { Spread::Unknown }
    }

    /// Whether these are all handles of this device's queues. They cannot be copied, so the count is enough.
    fn has_all(&self, queues: &[QueuePair]) -> bool {
        let ours = |pair: &QueuePair| Arc::ptr_eq(&pair.rx.port, &self.port) && Arc::ptr_eq(&pair.tx.port, &self.port);
        queues.len() == usize::from(self.config.queues) && queues.iter().all(ours)
    }
}

/// Finds the port of a device, plugging it in when it is not there yet, and makes it ours.
pub(super) fn plug(spec: &DeviceSpec, queues: u16) -> Result<Port, DeviceError> {
    let device = spec.to_string();
    // The name that DPDK knows it by.
    let mut known_as = spec.identity();
    let devargs = match spec {
        DeviceSpec::Pci { address, args } => devargs(&format!("pci:{address}"), args),
        DeviceSpec::Vdev { name, args } => devargs(&format!("vdev:{name}"), args),
        DeviceSpec::Patch { .. } | DeviceSpec::Soft { .. } => String::new(),
        // Control makes it, and names its node.
        DeviceSpec::Vdpa { .. } => return Err(DeviceError::Kind { device, kind: "vdpa" }),
        // A bond is made of devices, not plugged in: `Device::open`. One within another is nothing that DPDK has.
        DeviceSpec::Bond { .. } => return Err(DeviceError::Kind { device, kind: "bond" }),
        DeviceSpec::VhostVdpa { path } => {
            known_as = format!("vdev:{}", vdpa_user(path));
            devargs(&known_as, &format!("path={},queues={queues}", path.display()))
        }
    };
    if Eal::started().is_none() {
        return Err(DeviceError::NotStarted { device });
    }
    let mut registry = registry::lock();
    let identity = spec.identity();
    if registry.has(&identity) {
        return Err(DeviceError::InUse { device });
    }
    if let DeviceSpec::Patch { .. } | DeviceSpec::Soft { .. } = spec {
        check_room(&device)?;
        let (id, link) = match spec {
            DeviceSpec::Soft { nic, vf } => {
                soft::plug(&device, nic, *vf, queues).map(|(id, end)| (id, RingEnd::Soft(end)))?
            }
            DeviceSpec::Patch { name, end } => {
                patch::plug(&device, name, *end, queues).map(|(id, end)| (id, RingEnd::Patch(end)))?
            }
            _ => unreachable!("looked at above"),
        };
        let (id, info) =
            info_of(id).ok_or(DeviceError::NotFound { device, remedy: String::new(), said: String::new() })?;
        registry.claim(identity, id, info.device);
        return Ok(Port::new(id, info.device, driver_name(&info), Some(link)));
    }
    // A port may be there already: the uplink of a function that was probed for one of its representors.
    let mut found = free_port(&registry, &known_as);
    if found.is_none() {
        check_room(&device)?;
        if let DeviceSpec::Pci { address, .. } = spec {
            pci::check(Path::new(pci::SYSFS), *address, &device)?;
            watch_buses();
        }
        if let DeviceSpec::VhostVdpa { path } = spec {
            // DPDK's own words do not say what is wrong with it.
            vdpa::check(path).map_err(|error| DeviceError::Vdpa { device: device.clone(), error })?;
        }
        let said = probe(spec, &devargs)?;
        found = free_port(&registry, &known_as);
        if found.is_none() {
            let remedy = ": its driver made no such port".to_string();
            return Err(DeviceError::NotFound { device, remedy, said });
        }
    }
    let (id, info) = found.unwrap_or_else(|| unreachable!("a port was found above"));
    registry.claim(identity, id, info.device);
    Ok(Port::new(id, info.device, driver_name(&info), None))
}

/// DPDK's name of the virtual device that drives this vhost-vdpa node.
fn vdpa_user(path: &Path) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = path.to_string_lossy().chars().map(plain).collect();
    // RTE_DEV_NAME_MAX_LEN is 64.
    format!("net_virtio_user{}", &name[name.len().saturating_sub(40)..])
}

/// How many devices DPDK has in this process, those of NICs and of what is being closed among them.
pub fn device_count() -> usize {
    // SAFETY: reads which entries of DPDK's own table are in use, whether EAL is started or not.
    unsafe { sys::rte_eth_dev_count_total() }.into()
}

/// Whether one more port may be made.
pub(super) fn check_room(device: &str) -> Result<(), DeviceError> {
    let limit = sys::SHIM_MAX_ETHPORTS as u16;
    if device_count() < limit.into() { Ok(()) } else { Err(DeviceError::PortLimit { device: device.into(), limit }) }
}

fn driver_name(info: &sys::rte_eth_dev_info) -> String {
    if info.driver_name.is_null() {
        String::new()
    } else {
        // SAFETY: a static, terminated string of the driver.
        unsafe { CStr::from_ptr(info.driver_name) }.to_string_lossy().into_owned()
    }
}

/// Has DPDK listen to what the kernel says of devices that come and go.
fn watch_buses() {
    static WATCHED: Once = Once::new();
    // SAFETY: EAL is started.
    WATCHED.call_once(|| match unsafe { sys::rte_dev_event_monitor_start() } {
        0 => {}
        status => tracing::warn!("devices that are unplugged will not all be noticed: {}", describe(status)),
    });
}

fn devargs(name: &str, args: &str) -> String {
    if args.is_empty() { name.into() } else { format!("{name},{args}") }
}

/// The first port that matches and is nobody's. What is compared is the device and its `representor=` only: the other
/// arguments are the driver's, and `mac=` for instance would be compared with the port's address.
fn free_port(registry: &Registry, identity: &str) -> Option<(u16, sys::rte_eth_dev_info)> {
    let filter = CString::new(identity).ok()?;
    let mut ports = [0; MOST_PORTS];
    // SAFETY: EAL is started; the string is terminated; the array has as much room as the function is told.
    let (found, _) =
        log::listen(|| unsafe { sys::shim_matching_ports(filter.as_ptr(), ports.as_mut_ptr(), MOST_PORTS as i32) });
    let found = usize::try_from(found).unwrap_or(0).min(MOST_PORTS);
    let id = ports[..found].iter().copied().find(|id| !registry.has_port(*id))?;
    info_of(id)
}

/// What the driver says of a port, with the port.
fn info_of(id: u16) -> Option<(u16, sys::rte_eth_dev_info)> {
    let mut info = MaybeUninit::<sys::rte_eth_dev_info>::zeroed();
    // SAFETY: a valid port; the function fills the structure, for which all zeroes are a valid value too.
    let (status, info) = unsafe { (sys::rte_eth_dev_info_get(id, info.as_mut_ptr()), info.assume_init()) };
    (status == 0).then_some((id, info))
}

/// Asks DPDK to plug a device in. Returns what it logged as errors.
fn probe(spec: &DeviceSpec, devargs: &str) -> Result<String, DeviceError> {
    let device = spec.to_string();
    let bad = |errno: i32, said| {
        let driver = match spec {
            DeviceSpec::Vdev { name, .. } => format!("driver {}", name.trim_end_matches(|c: char| c.is_ascii_digit())),
            DeviceSpec::VhostVdpa { .. } => "driver net_virtio_user".into(),
            _ => String::new(),
        };
        let (error, errno) = reason(spec, errno, "look at the device arguments");
        DeviceError::Probe { device: device.clone(), driver, error, errno, said }
    };
    let Ok(arguments) = CString::new(devargs) else { return Err(bad(libc::EINVAL, String::new())) };
    // SAFETY: EAL is started; the string is terminated and read during the call.
    let (status, said) = log::listen(|| unsafe { sys::rte_dev_probe(arguments.as_ptr()) });
    match status.abs() {
        // Plugged in before, by hand of another port: what it made is looked at by the caller.
        0 | libc::EEXIST => Ok(said),
        // What the parser of device arguments answers when no bus knows the name.
        libc::EFAULT => {
            let remedy = ": this build of DPDK has no driver of that name".to_string();
            Err(DeviceError::NotFound { device: device.clone(), remedy, said: String::new() })
        }
        errno => Err(bad(errno, said)),
    }
}
