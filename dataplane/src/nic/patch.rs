//! Patch cables: two devices back to back, so that what is sent on one is received on the other.
//!
//! Each end is a port of DPDK's net_ring over rings of ours (`rte_eth_from_rings`), one ring for each queue and direction. The rings
//! belong to the cable, which both ends hold; it goes when the second end is closed.

use std::ffi::CString;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use dpdk_sys as sys;
use ringspan_protocol::PatchEnd;

use super::error::{DeviceError, describe, rte_errno};
use super::pool;
use super::ring::Ring;
use super::wake::Bell;

/// Frames that a ring holds, less one.
const RING: u32 = 1024;
/// Rings that net_ring can have in a direction.
const MOST_QUEUES: u16 = 16;

/// The rings of one cable.
#[derive(Debug)]
pub(super) struct Cable {
    number: u32,
    queues: u16,
    /// What end a receives, by queue, ...
    to_a: Vec<Ring>,
    /// ... and what end b receives.
    to_b: Vec<Ring>,
    /// What wakes who receives from each of these.
    bells_a: Vec<Arc<Bell>>,
    bells_b: Vec<Arc<Bell>>,
}

/// One end's hold on the cable.
#[derive(Debug)]
pub(super) struct End {
    cable: Arc<Cable>,
    end: PatchEnd,
}

impl End {
    /// What wakes who receives on this end.
    pub fn hears(&self, queue: u16) -> Option<&Arc<Bell>> {
        self.bells(self.end).get(usize::from(queue))
    }

    /// What wakes who receives on the other end.
    pub fn rings(&self, queue: u16) -> Option<&Arc<Bell>> {
        self.bells(self.end.other()).get(usize::from(queue))
    }

    fn bells(&self, end: PatchEnd) -> &[Arc<Bell>] {
        match end {
            PatchEnd::A => &self.cable.bells_a,
            PatchEnd::B => &self.cable.bells_b,
        }
    }
}

/// The cables that have an end, by name.
static CABLES: Mutex<Vec<(String, Weak<Cable>)>> = Mutex::new(Vec::new());

/// Makes the port of one end, and the cable when it is the first. What was sent to this end before it was there is gone.
///
/// Called with the registry locked, so that two ends are not made at once.
///
/// # Errors
/// [`DeviceError`]: there are too many queues, the other end has another number of them, or there is no memory.
pub(super) fn plug(device: &str, name: &str, end: PatchEnd, queues: u16) -> Result<(u16, End), DeviceError> {
    let known = lock().iter().find(|(known, _)| known == name).and_then(|(_, cable)| cable.upgrade());
    let cable = match known {
        Some(cable) if cable.queues == queues => cable,
        Some(cable) => {
            return Err(DeviceError::PatchQueues { device: device.into(), asked: queues, other: cable.queues });
        }
        None => make(device, name, queues)?,
    };
    let (rx, tx) = match end {
        PatchEnd::A => (&cable.to_a, &cable.to_b),
        PatchEnd::B => (&cable.to_b, &cable.to_a),
    };
    rx.iter().for_each(Ring::drain);
    let raw = |rings: &[Ring]| rings.iter().map(|ring| ring.raw()).collect::<Vec<_>>();
    let (rx, tx) = (raw(rx), raw(tx));
    // The name of the cable may be longer than a name of DPDK's.
    let port_name = CString::new(format!("patch{}{end}", cable.number)).unwrap_or_default();
    let count = u32::from(queues);
    // SAFETY: EAL is started; both arrays have `count` rings, which live until both ends are closed; the arrays and the name are
    // read during the call.
    let port = unsafe {
        sys::rte_eth_from_rings(
            port_name.as_ptr(),
            rx.as_ptr(),
            count,
            tx.as_ptr(),
            count,
            sys::SHIM_SOCKET_ID_ANY as u32,
        )
    };
    match u16::try_from(port) {
        Ok(port) => Ok((port, End { cable, end })),
        Err(_) => Err(failed(device, rte_errno())),
    }
}

fn make(device: &str, name: &str, queues: u16) -> Result<Arc<Cable>, DeviceError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if !(1..=MOST_QUEUES).contains(&queues) {
        let driver = "net_ring".to_string();
        return Err(DeviceError::Queues { device: device.into(), driver, asked: queues, most: MOST_QUEUES });
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let rings =
        |end: PatchEnd| (0..queues).map(|queue| Ring::new(&format!("ringspan{number}{end}{queue}"), RING)).collect();
    let (to_a, to_b): (Result<_, _>, Result<_, _>) = (rings(PatchEnd::A), rings(PatchEnd::B));
    let to_a = to_a.map_err(|errno| failed(device, errno))?;
    let to_b = to_b.map_err(|errno| failed(device, errno))?;
    let bells = || (0..queues).map(|_| Bell::new().map(Arc::new)).collect::<Result<Vec<_>, _>>();
    let bells_a = bells().map_err(|errno| failed(device, errno as i32))?;
    let bells_b = bells().map_err(|errno| failed(device, errno as i32))?;
    let cable = Arc::new(Cable { number, queues, to_a, to_b, bells_a, bells_b });
    let mut cables = lock();
    cables.retain(|(_, cable)| cable.strong_count() > 0);
    cables.push((name.into(), Arc::downgrade(&cable)));
    Ok(cable)
}

fn failed(device: &str, errno: i32) -> DeviceError {
    let (device, driver, said) = (device.into(), "net_ring".into(), String::new());
    DeviceError::Driver { device, driver, step: "making its rings", error: describe(errno), errno, said }
}

fn lock() -> std::sync::MutexGuard<'static, Vec<(String, Weak<Cable>)>> {
    CABLES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Cable {
    fn drop(&mut self) {
        // What one end sent after the other was closed.
        self.to_a.iter().chain(&self.to_b).for_each(Ring::drain);
        pool::sweep();
    }
}
