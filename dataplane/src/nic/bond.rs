//! Several devices as one, by DPDK's bonding driver (Poll Mode Driver guide, "Link Bonding").
//!
//! The bond is a port of its own, over ports that it configures, starts and stops. Their links are polled, because drivers do not always
//! say when one changes. In active-backup the driver receives on the active one only; [`Backup`] looks at the others, because a switch
//! outside may send to either.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::sync::Arc;

use dpdk_sys as sys;
use ringspan_protocol::nic::BondMode;
use ringspan_protocol::{DeviceSpec, Policy};

use super::burst::Burst;
use super::device::{self, Link};
use super::error::{DeviceError, describe};
use super::filter::Filter;
use super::pool::Pool;
use super::port::Port;
use super::wake::Bell;
use super::{log, registry};

/// How often links are looked at, in milliseconds: a few looks, and another one sends, cost less than 100 ms.
const POLL_MS: u32 = 20;
/// Memory that the driver takes for LACP, for each device, in one piece at most: it ends the process when it cannot have it.
const LACP_BYTES: u64 = 1 << 20;

/// The devices of a bond, of which the bond's port keeps hold.
#[derive(Debug)]
pub(super) struct Members {
    mode: BondMode,
    ports: Vec<(DeviceSpec, Arc<Port>)>,
}

/// A device of a bond as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Which.
    pub device: DeviceSpec,
    /// Its link.
    pub link: Link,
    /// Whether the bond sends on it.
    pub active: bool,
}

/// What DPDK's bonding driver is called for a bond of this name.
pub(super) fn spec(name: &str) -> DeviceSpec {
    DeviceSpec::Vdev { name: format!("net_bonding_{name}"), args: String::new() }
}

/// Makes the port of a bond, with ports for its devices, which nobody has configured yet.
///
/// # Errors
/// [`DeviceError`]; what was made is closed.
pub(super) fn plug(
    bond: &DeviceSpec,
    mode: BondMode,
    devices: &[DeviceSpec],
    queues: u16,
) -> Result<Port, DeviceError> {
    let device = bond.to_string();
    let failed = |step: &'static str, errno: i32, said: String| {
        let (device, driver) = (device.clone(), "net_bonding".into());
        DeviceError::Driver { device, driver, step, error: describe(errno), errno: errno.abs(), said }
    };
    let ports = devices
        .iter()
        .map(|spec| Ok((spec.clone(), Arc::new(device::plug(spec, queues)?))))
        .collect::<Result<Vec<_>, DeviceError>>()?;
    if mode == BondMode::Lacp && super::configure::largest_free() < LACP_BYTES * (ports.len() as u64 + 1) {
        return Err(failed("having memory for LACP: raise memory_mib", libc::ENOMEM, String::new()));
    }
    let DeviceSpec::Vdev { name, .. } = bond else { return Err(DeviceError::Kind { device, kind: "bond" }) };
    let name = CString::new(name.as_str()).map_err(|_| failed("naming it", libc::EINVAL, String::new()))?;
    let number = match mode {
        BondMode::ActiveBackup => sys::SHIM_BOND_ACTIVE_BACKUP,
        BondMode::BalanceXor => sys::SHIM_BOND_BALANCE,
        BondMode::Lacp => sys::SHIM_BOND_8023AD,
    };
    let mut registry = registry::lock();
    device::check_room(&device)?;
    // SAFETY: EAL is started (`device::plug` checks it); the name is read during the call.
    let (id, said) = log::listen(|| unsafe { sys::rte_eth_bond_create(name.as_ptr(), number as u8, 0) });
    let Ok(id) = u16::try_from(id) else { return Err(failed("making the bond", id, said)) };
    let mut info = MaybeUninit::<sys::rte_eth_dev_info>::zeroed();
    // SAFETY: a valid port; the function fills the structure, for which all zeroes are a valid value too.
    let (_, info) = unsafe { (sys::rte_eth_dev_info_get(id, info.as_mut_ptr()), info.assume_init()) };
    registry.claim(bond.identity(), id, info.device);
    drop(registry);
    let members = Members { mode, ports };
    let members = Arc::new(members);
    // From here on the port closes the bond, which lets go of its devices.
    let port = Port::new(id, info.device, "net_bonding".into(), None).over(Arc::clone(&members));
    for (_, member) in &members.ports {
        // SAFETY: both ports are ours, and nobody has configured or started them.
        let (status, said) = log::listen(|| unsafe {
            sys::shim_poll_link(member.id());
            sys::shim_bond_add(id, member.id())
        });
        if status != 0 {
            return Err(failed("adding a device to the bond", status, said));
        }
    }
    // SAFETY: the port is ours, and not started.
    let (status, said) = log::listen(|| unsafe {
        sys::rte_eth_bond_link_monitoring_set(id, POLL_MS)
            | if mode == BondMode::ActiveBackup {
                0
            } else {
                sys::rte_eth_bond_xmit_policy_set(id, sys::SHIM_BOND_BY_LAYER34 as u8)
            }
    });
    if status == 0 { Ok(port) } else { Err(failed("setting the bond up", status, said)) }
}

impl Members {
    /// The devices of the bond with this port as they are now.
    pub fn status(&self, bond: u16) -> Vec<Member> {
        let mut active = [0; sys::SHIM_MAX_ETHPORTS as usize];
        // SAFETY: the port is ours and a bond; the array has as much room as the function is told.
        let (count, primary) = unsafe {
            let count = sys::shim_bond_active(bond, active.as_mut_ptr(), active.len() as u16);
            (usize::try_from(count).unwrap_or(0).min(active.len()), sys::rte_eth_bond_primary_get(bond))
        };
        let sends = |id: u16| {
            active[..count].contains(&id) && (self.mode != BondMode::ActiveBackup || primary == i32::from(id))
        };
        let status = |(spec, port): &(DeviceSpec, Arc<Port>)| Member {
            device: spec.clone(),
            link: port.link_state(),
            active: sends(port.id()),
        };
        self.ports.iter().map(status).collect()
    }

    /// What wakes who receives at the other ends of the devices, where those are ours, too.
    pub fn bells(&self, queue: u16) -> impl Iterator<Item = &Arc<Bell>> {
        self.ports.iter().filter_map(move |(_, port)| port.link()?.rings(queue))
    }

    /// What else is to be received, when the bond runs: the driver opens the filters of the active device only.
    pub fn backup(&self, bond: u16) -> Option<Backup> {
        if self.mode != BondMode::ActiveBackup {
            return None;
        }
        for (spec, port) in &self.ports {
            for filter in [Filter::Promiscuous, Filter::AllMulticast] {
                if let Err(errno) = filter.apply(port.id(), Policy::Auto) {
                    tracing::warn!("device {spec} of {bond}: its {} filter: {}", filter.name(), describe(errno));
                }
            }
        }
        Some(Backup {
            bond,
            ports: self.ports.iter().map(|(_, port)| port.id()).collect(),
            came: Burst::new(),
            passed_over: 0,
        })
    }
}

/// The devices of a bond that do not send. Polled by who polls the bond, and nobody else.
#[derive(Debug)]
pub(super) struct Backup {
    bond: u16,
    ports: Vec<u16>,
    came: Burst,
    passed_over: u64,
}

impl Backup {
    /// Appends frames that came in on them. Those for a group are dropped and counted: the active device has them, too, and what was sent
    /// there may come back here (Linux: `bond_should_deliver_exact_match`).
    ///
    /// # Safety
    /// The bond runs, its members' `queue` exists and is polled by the caller alone, and `pool` is theirs.
    pub unsafe fn receive(&mut self, queue: u16, pool: &Pool, burst: &mut Burst) {
        // SAFETY: the port is ours and a bond.
        let active = unsafe { sys::rte_eth_bond_primary_get(self.bond) };
        for port in self.ports.iter().filter(|port| i32::from(**port) != active) {
            let room = burst.room();
            self.came.hold(pool);
            let spare = &mut self.came.spare()[..room];
            // SAFETY: the caller's; `spare` has room for as many pointers as it is long.
            let n = unsafe { sys::shim_rx_burst(*port, queue, spare.as_mut_ptr(), spare.len() as u16) };
            // SAFETY: the driver gave us that many frames, of the pool, which is held.
            unsafe { self.came.filled(usize::from(n)) };
            while !self.came.is_empty() {
                if self.came.frame(0).data().first().is_some_and(|byte| byte & 1 == 1) {
                    self.came.drop_front(1);
                    self.passed_over += 1;
                } else {
                    self.came.move_front(1, burst);
                }
            }
        }
    }

    /// Frames that were dropped since the last question.
    pub fn passed_over(&mut self) -> u64 {
        std::mem::take(&mut self.passed_over)
    }
}
