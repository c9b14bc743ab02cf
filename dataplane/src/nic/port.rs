//! A DPDK port that is ours, from the moment it was found until it is closed.

use std::fmt;
use std::mem::MaybeUninit;
use std::os::raw::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dpdk_sys as sys;

use super::bond::Members;
use super::device::Link;
use super::dma::{Range, Ranges};
use super::loans;
use super::log;
use super::pool::{self, Pool};
use super::registry;
use super::ring_end::RingEnd;
use crate::memory::GuestMap;

/// Frames that are taken out of a software ring before it is closed, at most.
const DRAINED: usize = 1 << 20;

/// A port of ours. Closed when the last handle (device or queue) is dropped.
pub(super) struct Port {
    id: u16,
    /// Valid while the registry has an entry for this port.
    device: *mut sys::rte_device,
    driver: String,
    /// In a box of its own, because DPDK keeps a pointer to it.
    removed: Box<AtomicBool>,
    inner: Mutex<Inner>,
    /// Guest memory that the device may read. A lock of its own: mapping takes long, and workers may wait for the other.
    dma: Mutex<Ranges>,
    /// The rings under an end of a patch, or a VF of a software NIC; let go of when the port is closed.
    link: Option<RingEnd>,
    /// The devices under a bond; closed after it.
    members: Option<Arc<Members>>,
}

struct Inner {
    started: bool,
    /// Receive queues that are set up.
    queues: u16,
    /// Pools whose buffers may be in this port's rings.
    pools: Vec<Pool>,
}

// SAFETY: the pointer is only used under the lock of the registry; DPDK's control functions may be called from any thread,
// one at a time for a port, which the lock of `inner` and the ownership of `Device` see to.
unsafe impl Send for Port {}
// SAFETY: as above.
unsafe impl Sync for Port {}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Port {} ({})", self.id, self.driver)
    }
}

impl Port {
    /// Takes over a port that the registry has an entry for.
    pub fn new(id: u16, device: *mut sys::rte_device, driver: String, link: Option<RingEnd>) -> Self {
        let removed = Box::new(AtomicBool::new(false));
        let inner = Mutex::new(Inner { started: false, queues: 0, pools: Vec::new() });
        let port = Self { id, device, driver, removed, inner, dma: Mutex::default(), link, members: None };
        // SAFETY: the callback gets a pointer into `removed`, which lives until the callback is unregistered in `drop`.
        let of_port = unsafe {
            sys::rte_eth_dev_callback_register(id, sys::RTE_ETH_EVENT_INTR_RMV, Some(on_port_event), port.flag())
        };
        // SAFETY: as above; the name is the device's own, which lives as long as the device.
        let of_bus =
            unsafe { sys::rte_dev_event_callback_register(sys::rte_dev_name(device), Some(on_bus_event), port.flag()) };
        if of_port != 0 || of_bus != 0 {
            tracing::warn!("port {id}: removal of its device may not be noticed ({of_port}, {of_bus})");
        }
        port
    }

    /// The same as the port of a bond over these devices.
    pub fn over(mut self, members: Arc<Members>) -> Self {
        self.members = Some(members);
        self
    }

    /// The devices under a bond.
    pub fn members(&self) -> Option<&Arc<Members>> {
        self.members.as_ref()
    }

    /// The state of the link, without waiting for it.
    pub fn link_state(&self) -> Link {
        let (mut up, mut speed) = (0, 0);
        // SAFETY: the port is ours; both results are written.
        let status = unsafe { sys::shim_link(self.id, &mut up, &mut speed) };
        let known = status == 0 && speed != 0 && speed != u32::MAX;
        Link { up: status == 0 && up != 0, speed_mbps: known.then_some(speed) }
    }

    /// DPDK's number of the port.
    #[inline]
    pub fn id(&self) -> u16 {
        self.id
    }

    /// What it is the end of.
    pub fn link(&self) -> Option<&RingEnd> {
        self.link.as_ref()
    }

    /// DPDK's name of the driver.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// Whether the device is gone from its bus.
    pub fn removed(&self) -> bool {
        // SAFETY: EAL is started and the port is ours.
        self.removed.load(Ordering::Relaxed) || unsafe { sys::rte_eth_dev_is_removed(self.id) } == 1
    }

    /// Keeps pools until the port is closed: their buffers go into its rings.
    #[cold]
    pub fn keep_pools<'a>(&self, pools: impl Iterator<Item = &'a Pool>) {
        let mut inner = self.lock();
        for pool in pools {
            if !inner.pools.iter().any(|kept| kept.same(pool)) {
                inner.pools.push(pool.clone());
            }
        }
    }

    /// Lets go of the pools other than `current` that have all their buffers back. The port is stopped, or its rings were set up anew.
    pub fn let_go_of_pools(&self, current: &Pool) {
        self.lock().pools.retain(|pool| pool.same(current) || pool.available() != pool.size());
    }

    /// Notes that queues were set up, or none.
    pub fn set_queues(&self, queues: u16) {
        self.lock().queues = queues;
    }

    /// Starts the port; 0 or a negative errno.
    pub fn start(&self) -> i32 {
        let mut inner = self.lock();
        // SAFETY: the port is ours, and configured by the caller; starting it twice is refused by DPDK.
        let status = unsafe { sys::rte_eth_dev_start(self.id) };
        inner.started = status == 0;
        status
    }

    /// Stops the port, which nobody polls; 0 or a negative errno.
    pub fn stop(&self) -> i32 {
        let mut inner = self.lock();
        if !inner.started {
            return 0;
        }
        inner.started = false;
        // SAFETY: the port is ours, and the caller has all of its queue handles.
        unsafe { sys::rte_eth_dev_stop(self.id) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a guest's memory readable for the device by DMA. The answer goes to [`Port::unmap_for_dma`].
    pub fn map_for_dma(&self, map: &GuestMap) -> Result<Vec<Range>, String> {
        // SAFETY: the device is not removed before the port is closed, which unmaps; the map is held longer.
        unsafe { self.lock_dma().map(self.device, map) }
    }

    /// The opposite. Nothing of it is read by the device any more.
    pub fn unmap_for_dma(&self, ranges: Vec<Range>) {
        // SAFETY: the device is not removed yet, or all was unmapped before; the caller's.
        unsafe { self.lock_dma().unmap(self.device, ranges) }
    }

    fn lock_dma(&self) -> std::sync::MutexGuard<'_, Ranges> {
        self.dma.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the callbacks are given.
    fn flag(&self) -> *mut c_void {
        (&raw const *self.removed).cast_mut().cast()
    }

    /// Ends the callbacks. -EAGAIN says that one runs at the moment.
    fn unregister(&self) {
        let until_done = |call: &dyn Fn() -> c_int| {
            while call() == -libc::EAGAIN {
                std::thread::yield_now();
            }
        };
        let event = sys::RTE_ETH_EVENT_INTR_RMV;
        // SAFETY: the same callback and argument as in `new`.
        until_done(&|| unsafe {
            sys::rte_eth_dev_callback_unregister(self.id, event, Some(on_port_event), self.flag())
        });
        // SAFETY: the same callback and argument as in `new`; the device is not removed yet.
        until_done(&|| unsafe {
            sys::rte_dev_event_callback_unregister(sys::rte_dev_name(self.device), Some(on_bus_event), self.flag())
        });
    }

    /// Has the driver let go of its transmit queues while its receive queues are there. A bond that is closed resets its devices, receive queues first
    /// (rte_ethdev.c, `rte_eth_dev_internal_reset`), and net_tap of DPDK 24.11 looks for a receive queue when a transmit queue goes (rte_eth_tap.c,
    /// `tap_tx_queue_release`): in a list that is gone, which ends the process.
    ///
    /// ethdev releases a queue before it is set up anew, and refuses the set-up only then (`rte_eth_tx_queue_setup`): here for what no driver can do.
    fn release_transmit_queues(&self) {
        let mut info = MaybeUninit::<sys::rte_eth_dev_info>::zeroed();
        // SAFETY: the port is ours; the function fills the structure, for which all zeroes are a valid value too.
        let info = unsafe {
            sys::rte_eth_dev_info_get(self.id, info.as_mut_ptr());
            info.assume_init()
        };
        // SAFETY: a plain C structure, for which all zeroes mean defaults.
        let mut conf: sys::rte_eth_txconf = unsafe { std::mem::zeroed() };
        conf.offloads = u64::MAX;
        for queue in 0..info.nb_tx_queues {
            // SAFETY: the port is ours and stopped; the structure is read during the call.
            log::listen(|| unsafe { sys::rte_eth_tx_queue_setup(self.id, queue, 0, 0, &conf) });
        }
    }

    /// Software rings keep what was sent until it is received, and forget it when they are freed.
    fn drain(&self, queues: u16) {
        let mut frames = [std::ptr::null_mut(); crate::BURST];
        for queue in 0..queues {
            let mut drained = 0;
            while drained < DRAINED {
                // SAFETY: the queue is set up and nobody else polls it: the last handle is being dropped.
                let n = unsafe { sys::shim_rx_burst(self.id, queue, frames.as_mut_ptr(), frames.len() as u16) };
                if n == 0 {
                    break;
                }
                // SAFETY: these frames were just given to us.
                unsafe { sys::shim_free_bulk(frames.as_mut_ptr(), u32::from(n)) };
                drained += usize::from(n);
            }
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let (started, queues) = {
            let inner = self.lock();
            (inner.started, inner.queues)
        };
        if started && self.driver == "net_ring" {
            self.drain(queues);
        }
        let mut registry = registry::lock();
        let stopped = self.stop();
        if stopped != 0 {
            tracing::warn!("port {}: stop failed ({stopped})", self.id);
        }
        self.unregister();
        for member in self.members.iter().flat_map(|members| members.ports()).filter(|one| one.driver == "net_tap") {
            member.release_transmit_queues();
        }
        // SAFETY: the port is ours and stopped, no handle is left.
        let closed = unsafe { sys::rte_eth_dev_close(self.id) };
        if closed != 0 {
            tracing::warn!("port {}: close failed ({closed})", self.id);
        }
        // The driver has freed its frames, so nothing is read any more; with the device its bus would forget how to unmap.
        // SAFETY: the port is closed, its device is not removed yet.
        unsafe { self.lock_dma().unmap_all(self.device) };
        if registry.release(self.id) {
            // SAFETY: the device was plugged in for ports of ours, and the last one is closed.
            let status = unsafe { sys::rte_dev_remove(self.device) };
            if status != 0 {
                tracing::warn!("port {}: its device could not be removed ({status})", self.id);
            }
        }
        drop(registry);
        self.lock().pools.clear();
        pool::sweep();
        loans::sweep();
    }
}

/// The driver says that its device is gone. Called by DPDK's interrupt thread.
unsafe extern "C" fn on_port_event(
    _port: u16,
    _event: sys::rte_eth_event_type,
    flag: *mut c_void,
    _more: *mut c_void,
) -> c_int {
    // SAFETY: the flag that `Port::new` registered, which lives until the callback is unregistered.
    unsafe { &*flag.cast::<AtomicBool>() }.store(true, Ordering::Relaxed);
    0
}

/// The bus says that something happened to a device. Called by DPDK's interrupt thread.
unsafe extern "C" fn on_bus_event(_device: *const c_char, event: sys::rte_dev_event_type, flag: *mut c_void) {
    if event == sys::RTE_DEV_EVENT_REMOVE {
        // SAFETY: as above.
        unsafe { &*flag.cast::<AtomicBool>() }.store(true, Ordering::Relaxed);
    }
}
