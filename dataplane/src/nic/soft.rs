//! VFs of a software NIC: on the guest's side each is a port of DPDK's net_ring over rings of ours; on the other side the NIC's switch
//! takes from the same rings and gives to them, without a port of DPDK's, of which there are few.
//!
//! A NIC is known by its name here, so that a port's device can be found. A VF's rings are made when a port takes it, and the switch
//! finds them by the count of changes.

use std::ffi::CString;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use dpdk_sys as sys;

use super::burst::Burst;
use super::error::{DeviceError, describe, rte_errno};
use super::pool::{self, Pool};
use super::ring::Ring;
use super::wake::Bell;

/// Frames that a VF's ring holds, less one.
const RING: u32 = 1024;
/// Frames that a ring between the switch and the representors' thread holds, less one.
const SLOW_RING: u32 = 256;
/// Rings that net_ring can have in a direction.
const MOST_QUEUES: u16 = 16;

/// What a software NIC's VFs and its switch have in common.
#[derive(Debug)]
pub struct SoftNic {
    name: String,
    vfs: Vec<Mutex<Option<Arc<Cable>>>>,
    /// Goes up whenever a VF is taken or left.
    changes: AtomicU64,
    bell: Arc<Bell>,
}

/// The rings of a VF.
#[derive(Debug)]
struct Cable {
    /// What the guest's port receives, by queue, ...
    to_vf: Vec<Ring>,
    /// ... and what it has sent.
    from_vf: Vec<Ring>,
    /// What wakes who receives from each of `to_vf`.
    bells: Vec<Arc<Bell>>,
}

/// The port's hold on its VF.
#[derive(Debug)]
pub(super) struct End {
    nic: Arc<SoftNic>,
    cable: Arc<Cable>,
    vf: usize,
}

/// The switch's hold on a VF. There is one at a time, in the switch.
#[derive(Debug)]
pub struct VfLink {
    cable: Arc<Cable>,
    /// The queue that is looked at first.
    next: usize,
}

static NICS: Mutex<Vec<Weak<SoftNic>>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SoftNic {
    /// A NIC whose VFs can be taken by ports of this process, as long as it is held.
    ///
    /// # Errors
    /// As eventfd(2) has them.
    pub fn new(name: &str, vfs: u16) -> nix::Result<Arc<Self>> {
        let vfs = (0..vfs).map(|_| Mutex::default()).collect();
        let nic = Arc::new(Self { name: name.into(), vfs, changes: AtomicU64::new(1), bell: Arc::new(Bell::new()?) });
        let mut nics = lock(&NICS);
        nics.retain(|nic| nic.strong_count() > 0);
        nics.push(Arc::downgrade(&nic));
        Ok(nic)
    }

    /// What wakes the worker of the switch.
    pub fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// How often VFs were taken or left.
    #[inline]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Whether a port has the VF.
    pub fn is_taken(&self, vf: u16) -> bool {
        self.vfs.get(usize::from(vf)).is_some_and(|slot| lock(slot).is_some())
    }

    /// The rings of a VF, for the switch alone.
    ///
    /// # Safety
    /// What an earlier call gave for this VF is dropped, or is not used any more.
    pub unsafe fn link(&self, vf: u16) -> Option<VfLink> {
        let cable = lock(self.vfs.get(usize::from(vf))?).clone()?;
        Some(VfLink { cable, next: 0 })
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
        self.bell.ring();
    }
}

impl VfLink {
    /// Appends frames that the guest's port has sent, as many as the burst has room for. Returns how many.
    #[inline]
    pub fn receive(&mut self, burst: &mut Burst) -> usize {
        let queues = self.cable.from_vf.len();
        let mut received = 0;
        for step in 0..queues {
            let queue = (self.next + step) % queues;
            // SAFETY: this is the switch's only hold on the VF (`SoftNic::link`), and it is used by one thread (`&mut self`); ports
            // keep the pools of what they send.
            received += unsafe { self.cable.from_vf[queue].receive(burst) };
        }
        self.next = (self.next + 1) % queues;
        received
    }

    /// How many queues the guest's port has.
    #[inline]
    pub fn queues(&self) -> usize {
        self.cable.to_vf.len()
    }

    /// Frames that the guest's port has not yet received.
    #[inline]
    pub fn waiting(&self) -> usize {
        self.cable.to_vf.iter().map(Ring::waiting).sum()
    }

    /// Frames of the guest's port that were not yet taken here.
    pub fn not_received(&self) -> usize {
        self.cable.from_vf.iter().map(Ring::waiting).sum()
    }

    /// Whether both are of the same port.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.cable, &other.cable)
    }

    /// Gives frames from the front of the burst, `most` at most, to a queue of the guest's port, and wakes its worker. Returns how many
    /// it took.
    #[inline]
    pub fn send(&mut self, queue: usize, burst: &mut Burst, most: usize) -> usize {
        let queue = queue % self.queues();
        // SAFETY: as above, for sending.
        let sent = unsafe { self.cable.to_vf[queue].send(burst, most) };
        self.cable.bells[queue].ring();
        sent
    }
}

impl End {
    /// What wakes who receives on the VF.
    pub fn hears(&self, queue: u16) -> Option<&Arc<Bell>> {
        self.cable.bells.get(usize::from(queue))
    }

    /// What wakes the switch.
    pub fn rings(&self) -> &Arc<Bell> {
        &self.nic.bell
    }
}

impl Drop for End {
    fn drop(&mut self) {
        *lock(&self.nic.vfs[self.vf]) = None;
        self.nic.changed();
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.to_vf.iter().chain(&self.from_vf).for_each(Ring::drain);
        pool::sweep();
    }
}

/// Makes the port of a VF.
///
/// Called with the registry locked, so that a VF is not taken twice.
///
/// # Errors
/// [`DeviceError`]: there is no such NIC or VF in this process, there are too many queues, or there is no memory.
pub(super) fn plug(device: &str, name: &str, vf: u16, queues: u16) -> Result<(u16, End), DeviceError> {
    let no = |reason: String| DeviceError::SoftNic { device: device.into(), reason };
    let nic = lock(&NICS).iter().filter_map(Weak::upgrade).find(|nic| nic.name == name);
    let nic = nic.ok_or_else(|| no(format!("there is no NIC {name} in this lane: add it first, or name its lane")))?;
    let vfs = nic.vfs.len();
    let slot =
        nic.vfs.get(usize::from(vf)).ok_or_else(|| no(format!("NIC {name} has {vfs} VFs, vf0 being the first")))?;
    if !(1..=MOST_QUEUES).contains(&queues) {
        let driver = "net_ring".to_string();
        return Err(DeviceError::Queues { device: device.into(), driver, asked: queues, most: MOST_QUEUES });
    }
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let rings = |way: char| -> Result<Vec<_>, _> {
        let ring = |queue| Ring::new(&format!("ringspan-vf{number}{way}{queue}"), RING);
        (0..queues).map(ring).collect::<Result<_, _>>().map_err(|errno| failed(device, errno))
    };
    let bells = (0..queues).map(|_| Bell::new().map(Arc::new)).collect::<Result<_, _>>();
    let bells = bells.map_err(|errno| failed(device, errno as i32))?;
    let cable = Arc::new(Cable { to_vf: rings('r')?, from_vf: rings('t')?, bells });
    let raw = |rings: &[Ring]| rings.iter().map(Ring::raw).collect::<Vec<_>>();
    let (rx, tx, count) = (raw(&cable.to_vf), raw(&cable.from_vf), u32::from(queues));
    let port_name = CString::new(format!("soft{number}")).unwrap_or_default();
    let any = sys::SHIM_SOCKET_ID_ANY as u32;
    // SAFETY: EAL is started; both arrays have `count` rings, which live until the port is closed (`End`); the arrays and the name are
    // read during the call.
    let port = unsafe { sys::rte_eth_from_rings(port_name.as_ptr(), rx.as_ptr(), count, tx.as_ptr(), count, any) };
    let port = u16::try_from(port).map_err(|_| failed(device, rte_errno()))?;
    *lock(slot) = Some(Arc::clone(&cable));
    nic.changed();
    Ok((port, End { cable, vf: vf.into(), nic: Arc::clone(&nic) }))
}

fn failed(device: &str, errno: i32) -> DeviceError {
    let (device, driver, said) = (device.into(), "net_ring".into(), String::new());
    DeviceError::Driver { device, driver, step: "making its rings", error: describe(errno), errno, said }
}

/// The sending end of a way between the switch and the thread of its representors.
#[derive(Debug)]
pub struct WayIn(Arc<Ring>);

/// The receiving end.
#[derive(Debug)]
pub struct WayOut(Arc<Ring>);

/// A way for frames from one thread to another.
///
/// # Errors
/// rte_errno.
pub fn way() -> Result<(WayIn, WayOut), i32> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let ring = Arc::new(Ring::new(&format!("ringspan-slow{}", NEXT.fetch_add(1, Ordering::Relaxed)), SLOW_RING)?);
    Ok((WayIn(Arc::clone(&ring)), WayOut(ring)))
}

impl WayIn {
    /// Gives frames from the front of the burst away, `most` at most. Returns how many.
    #[inline]
    pub fn send(&mut self, burst: &mut Burst, most: usize) -> usize {
        // SAFETY: there is one of these for a ring, and one thread has it (`&mut self`).
        unsafe { self.0.send(burst, most) }
    }

    /// How many frames it has room for.
    #[inline]
    pub fn room(&self) -> usize {
        self.0.room()
    }
}

impl WayOut {
    /// Appends frames, as many as the burst has room for. Returns how many.
    #[inline]
    pub fn receive(&mut self, burst: &mut Burst) -> usize {
        // SAFETY: there is one of these for a ring, and one thread has it (`&mut self`); ports and NICs keep the pools of what they send.
        unsafe { self.0.receive(burst) }
    }
}

/// Buffers for what comes from representors, for copies and for segments.
///
/// # Errors
/// In words.
pub fn pool(ports: u16, mtu: u16) -> Result<Pool, String> {
    // Ethernet, two VLAN tags, and a byte by which a frame that was cut is known.
    let room = (u32::from(mtu) + 22 + 1).max(2048).next_multiple_of(1024) as u16;
    Pool::new(2048 + u32::from(ports) * 128, room, sys::SHIM_SOCKET_ID_ANY)
        .map_err(|error| format!("{} KiB for packet buffers: {}", error.need_bytes >> 10, describe(error.errno)))
}
