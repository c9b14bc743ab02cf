//! librte_vhost on a guest's ring. The library takes rings from a vhost-user session only, so it gets one: it listens on a socket in
//! this process, and the guest's ring and memory are told to it there, by the front-end of the tests.
//!
//! # Invariants
//! `vid` is a device that the library reported, until the front-end's connection ends; calls for it are made by one thread.
//! The structure of callbacks is static and at least as long as that of every release: unknown ones are null.

use std::ffi::{CString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use dpdk_sys as sys;
use ringspan_dataplane::BURST;
use ringspan_dataplane::ring::RingFeatures;
use ringspan_testkit::guest::message::{Request, longs, words};
use ringspan_testkit::guest::{FrontEnd, feature};

use super::guest::{Guest, MEMORY};
use super::packets::{self, Packets};

/// `RTE_VHOST_USER_NET_COMPLIANT_OL_FLAGS`: as net_vhost has it.
const COMPLIANT_FLAGS: u64 = 1 << 8;
/// The guest's rings: what is to be received, and what was sent.
const RX: u16 = 0;
const TX: u16 = 1;
/// Where the ring lies that is not measured: descriptors, available and used part.
const OTHER: [u64; 3] = [0x3_0000, 0x3_8000, 0x4_0000];
/// In SET_VRING_KICK and SET_VRING_CALL: there is no descriptor.
const NO_FD: u64 = 1 << 8;

/// `struct rte_vhost_device_ops`: the first member, and room for the others of all releases (7 of them in 22.11 and 24.11).
#[repr(C)]
struct Callbacks {
    new_device: extern "C" fn(c_int) -> c_int,
    others: [usize; 15],
}

static CALLBACKS: Callbacks = Callbacks { new_device, others: [0; 15] };
/// The device that came last.
static CAME: AtomicI32 = AtomicI32::new(-1);

extern "C" fn new_device(vid: c_int) -> c_int {
    CAME.store(vid, Ordering::Release);
    0
}

#[link(name = "rte_vhost")]
unsafe extern "C" {
    fn rte_vhost_driver_register(path: *const c_char, flags: u64) -> c_int;
    fn rte_vhost_driver_callback_register(path: *const c_char, callbacks: *const Callbacks) -> c_int;
    fn rte_vhost_driver_start(path: *const c_char) -> c_int;
    fn rte_vhost_driver_unregister(path: *const c_char) -> c_int;
    fn rte_vhost_enqueue_burst(vid: c_int, queue: u16, packets: *mut *mut sys::rte_mbuf, count: u16) -> u16;
    fn rte_vhost_dequeue_burst(
        vid: c_int,
        queue: u16,
        pool: *mut sys::rte_mempool,
        packets: *mut *mut sys::rte_mbuf,
        count: u16,
    ) -> u16;
}

/// The library, with a guest's ring as one of its two queues.
pub struct Vhost {
    vid: c_int,
    path: CString,
    frontend: Option<FrontEnd>,
    _folder: tempfile::TempDir,
}

impl Vhost {
    /// Serves the ring as the one that the guest receives on.
    pub fn receiving(guest: &Guest) -> Self {
        Self::connect(guest, RX).expect("librte_vhost serves a guest")
    }

    /// Serves the ring as the one that the guest sends on.
    pub fn sending(guest: &Guest) -> Self {
        Self::connect(guest, TX).expect("librte_vhost serves a guest")
    }

    fn connect(guest: &Guest, measured: u16) -> anyhow::Result<Self> {
        packets::start();
        let folder = ringspan_testkit::paths::scratch()?;
        let socket = folder.path().join("vhost");
        let path = CString::new(socket.as_os_str().as_bytes())?;
        CAME.store(-1, Ordering::Release);
        // SAFETY: EAL is started; the path is terminated; the callbacks are static.
        let status = unsafe {
            [
                rte_vhost_driver_register(path.as_ptr(), COMPLIANT_FLAGS),
                rte_vhost_driver_callback_register(path.as_ptr(), &CALLBACKS),
                rte_vhost_driver_start(path.as_ptr()),
            ]
        };
        anyhow::ensure!(status == [0; 3], "librte_vhost does not listen: {status:?}");
        let mut frontend = FrontEnd::connect(&socket, Duration::from_secs(5))?;
        let (offered, _) = frontend.negotiate(feature::PROTOCOL_MQ | feature::PROTOCOL_REPLY_ACK)?;
        let wanted = features(&guest.config.features);
        anyhow::ensure!(offered & wanted == wanted, "librte_vhost does not offer {:#x}", wanted & !offered);
        frontend.set_features(wanted)?;
        let mut region = words(&[1, 0]);
        region.extend(longs(&[0, MEMORY as u64, guest.host(0) as u64, 0]));
        frontend.tell(Request::SetMemTable, region, &[guest.file()])?;
        let config = &guest.config;
        let own = [config.desc.0, config.avail.0, config.used.0];
        for queue in [RX, TX] {
            let index = u32::from(queue);
            let tables = if queue == measured { own } else { OTHER }.map(|address| guest.host(address) as u64);
            frontend.set_vring_num(index, u32::from(config.size))?;
            frontend.set_vring_base(index, config.base)?;
            frontend.set_vring_addr(index, tables)?;
            frontend.tell(Request::SetVringKick, longs(&[u64::from(queue) | NO_FD]), &[])?;
            frontend.tell(Request::SetVringCall, longs(&[u64::from(queue) | NO_FD]), &[])?;
        }
        for queue in [RX, TX] {
            frontend.set_vring_enable(u32::from(queue), true)?;
        }
        frontend.barrier()?;
        let start = Instant::now();
        while CAME.load(Ordering::Acquire) < 0 {
            anyhow::ensure!(start.elapsed() < Duration::from_secs(5), "librte_vhost reports no device");
            std::thread::yield_now();
        }
        Ok(Self { vid: CAME.load(Ordering::Acquire), path, frontend: Some(frontend), _folder: folder })
    }

    /// Takes a burst from the ring that the guest sends on; how many frames there were. The library moves 32 at most in a call.
    #[inline(always)]
    pub fn dequeue(&self, packets: &mut Packets) -> usize {
        let (pool, mut done) = (packets.pool(), 0);
        while done < BURST {
            // SAFETY: the device is there, the array has room for the rest of a burst and holds nothing there that would be lost.
            let count = unsafe {
                let buffers = packets.buffers.as_mut_ptr().add(done);
                rte_vhost_dequeue_burst(self.vid, TX, pool, buffers, (BURST - done) as u16)
            };
            if count == 0 {
                break;
            }
            done += usize::from(count);
        }
        packets.count = done;
        done
    }

    /// Puts a burst into the ring that the guest receives on, which copies it; how many frames fitted.
    #[inline(always)]
    pub fn enqueue(&self, packets: &mut Packets) -> usize {
        let mut done = 0;
        while done < packets.count {
            // SAFETY: the device is there; the buffers stay ours.
            let count = unsafe {
                let buffers = packets.buffers.as_mut_ptr().add(done);
                rte_vhost_enqueue_burst(self.vid, RX, buffers, (packets.count - done) as u16)
            };
            if count == 0 {
                break;
            }
            done += usize::from(count);
        }
        done
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        drop(self.frontend.take());
        // SAFETY: the path was registered. Waits until the connection's end was seen.
        unsafe { rte_vhost_driver_unregister(self.path.as_ptr()) };
    }
}

/// What a guest says that has the same features as a ring of ours.
fn features(ring: &RingFeatures) -> u64 {
    let optional = [
        (feature::EVENT_IDX, ring.event_idx),
        (feature::INDIRECT_DESC, ring.indirect),
        (feature::MRG_RXBUF, ring.mergeable),
        (feature::RING_PACKED, ring.packed),
        (feature::IN_ORDER, ring.in_order),
    ];
    let optional = optional.iter().filter(|(_, on)| *on).map(|(bit, _)| bit).sum::<u64>();
    feature::VERSION_1 | feature::PROTOCOL_FEATURES | optional
}
