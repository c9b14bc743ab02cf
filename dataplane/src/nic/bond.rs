//! Several devices as one, by DPDK's bonding driver (Poll Mode Driver guide, "Link Bonding").
//!
//! The bond is a port of its own, over ports that it configures, starts and stops. Their links are polled, because drivers do not always
//! say when one changes. In active-backup the driver receives on the active one only; [`Backup`] looks at the others, for what is said on
//! each link, and for what a switch outside still sends to the old one just after another became active.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Duration;

use dpdk_sys as sys;
use ringspan_protocol::nic::{BondMode, UplinkStatus};
use ringspan_protocol::{DeviceSpec, Policy, PolicyStatus};

use super::burst::Burst;
use super::device::{self, Link};
use super::error::{DeviceError, describe, reason};
use super::filter::Filter;
use super::pool::Pool;
use super::port::Port;
use super::wake::Bell;
use super::{log, registry};
use crate::worker::{ticks, ticks_in};

/// How often links are looked at, in milliseconds: a few looks, and another one sends, cost less than 100 ms.
const POLL_MS: u32 = 20;
/// Memory that the driver takes for LACP, for each device, in one piece at most: it ends the process when it cannot have it.
const LACP_BYTES: u64 = 1 << 20;
/// How long a device that is not active any more may still be sent to: until who is outside has heard from the new one.
const LATE: Duration = Duration::from_secs(1);
/// What is said on a link itself, LLDP for one (IEEE 802.1Q, table 8-1), but for the last four bits.
const LINK_LOCAL: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0];

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
    /// Whether it is gone from its bus.
    pub removed: bool,
    /// Whether the bond sends on it.
    pub active: bool,
}

impl Member {
    /// As control is told of it.
    pub(crate) fn status(self) -> UplinkStatus {
        let Self { device, link, removed, active } = self;
        UplinkStatus { device, up: !removed && link.up, removed, active }
    }
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
        // The driver answers a bare -1 to whatever is wrong.
        let (error, errno) = reason(bond, errno, "it may be in another bond, or unlike the others");
        DeviceError::Driver { device, driver, step, error, errno, said }
    };
    let ports = devices
        .iter()
        .map(|spec| Ok((spec.clone(), Arc::new(device::plug(spec, queues)?))))
        .collect::<Result<Vec<_>, DeviceError>>()?;
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
    let (status, info) = unsafe { (sys::rte_eth_dev_info_get(id, info.as_mut_ptr()), info.assume_init()) };
    if status != 0 {
        // SAFETY: the name is read during the call; the bond of that name is ours, and nobody uses it.
        unsafe { sys::rte_eth_bond_free(name.as_ptr()) };
        return Err(failed("reading the bond's abilities", status, said));
    }
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
    /// Bytes that must be free in one piece when the bond starts. The driver takes what LACP needs when the link of a device comes up.
    pub fn needs_free(&self) -> u64 {
        if self.mode == BondMode::Lacp { LACP_BYTES * (self.ports.len() as u64 + 1) } else { 0 }
    }

    /// The ports of the devices.
    pub fn ports(&self) -> impl Iterator<Item = &Port> {
        self.ports.iter().map(|(_, port)| port.as_ref())
    }

    /// The devices of the bond with this port as they are now.
    pub fn status(&self, bond: u16) -> Vec<Member> {
        let mut active = [0; sys::SHIM_MAX_ETHPORTS as usize];
        // SAFETY: the port is ours and a bond; the array has as much room as the function is told.
        let (count, primary) = unsafe {
            let count = sys::shim_bond_active(bond, active.as_mut_ptr(), active.len() as u16);
            (usize::try_from(count).unwrap_or(0).min(active.len()), sys::rte_eth_bond_primary_get(bond))
        };
        let sends = |id: u16| {
            active[..count].contains(&id)
                && match self.mode {
                    BondMode::ActiveBackup => primary == i32::from(id),
                    BondMode::BalanceXor => true,
                    // SAFETY: the port is ours and a bond; reads what its driver has agreed.
                    BondMode::Lacp => unsafe { sys::shim_bond_distributes(bond, id) != 0 },
                }
        };
        let status = |(spec, port): &(DeviceSpec, Arc<Port>)| Member {
            device: spec.clone(),
            link: port.link_state(),
            removed: port.removed(),
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
                // Whoever may do without is not refused, only told.
                let refused = match filter.apply(port.id(), Policy::Auto) {
                    Ok(PolicyStatus::Refused(why)) => why,
                    Ok(_) => continue,
                    Err(errno) => describe(errno),
                };
                tracing::warn!("device {spec} of {bond}: its {} filter: {refused}", filter.name());
            }
        }
        Some(Backup {
            bond,
            ports: self.ports.iter().map(|(_, port)| port.id()).collect(),
            active: None,
            late_until: 0,
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
    /// Which one was active when it was last looked.
    active: Option<i32>,
    /// Until when, in ticks, the others may still have what is for us.
    late_until: u64,
    came: Burst,
    passed_over: u64,
}

impl Backup {
    /// Appends frames that came in on them and were meant for them: what is said on a link, and for [`LATE`] after another device became
    /// active what is for one address. All else is dropped and counted: the active device has it, too, and what was sent there may come back
    /// here (Linux: `bond_should_deliver_exact_match`).
    ///
    /// # Safety
    /// The bond runs, its members' `queue` exists and is polled by the caller alone, and `pool` is theirs.
    pub unsafe fn receive(&mut self, queue: u16, pool: &Pool, burst: &mut Burst) {
        // SAFETY: the port is ours and a bond.
        let active = unsafe { sys::rte_eth_bond_primary_get(self.bond) };
        if self.active != Some(active) {
            // Nothing was late before there was any.
            self.late_until = if self.active.is_some() { ticks() + ticks_in(LATE) } else { 0 };
            self.active = Some(active);
        }
        for port in self.ports.iter().filter(|port| i32::from(**port) != active) {
            let room = burst.room();
            self.came.hold(pool);
            let spare = &mut self.came.spare()[..room];
            // SAFETY: the caller's; `spare` has room for as many pointers as it is long.
            let n = unsafe { sys::shim_rx_burst(*port, queue, spare.as_mut_ptr(), spare.len() as u16) };
            // SAFETY: the driver gave us that many frames, of the pool, which is held.
            unsafe { self.came.filled(usize::from(n)) };
            let late = n > 0 && self.late_until > 0 && ticks() < self.late_until;
            while !self.came.is_empty() {
                if is_for_backup(self.came.frame(0).data(), late) {
                    self.came.move_front(1, burst);
                } else {
                    self.came.drop_front(1);
                    self.passed_over += 1;
                }
            }
        }
    }

    /// Frames that were dropped since the last question.
    pub fn passed_over(&mut self) -> u64 {
        std::mem::take(&mut self.passed_over)
    }
}

/// Whether a frame that came in on a device that does not send is to be received.
fn is_for_backup(frame: &[u8], late: bool) -> bool {
    match frame.first_chunk::<6>() {
        Some([first @ .., last]) if first[..] == LINK_LOCAL[..5] => last & 0xf0 == 0,
        Some([first, ..]) => late && first & 1 == 0,
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_does_not_send_receives_what_is_said_on_its_link_and_what_is_late() {
        for (to, always, late) in [
            ([0x01, 0x80, 0xc2, 0, 0, 0x0e], true, true),
            ([0x01, 0x80, 0xc2, 0, 0, 0x02], true, true),
            ([0x01, 0x80, 0xc2, 0, 0, 0x10], false, false),
            ([0x01, 0, 0x5e, 0, 0, 1], false, false),
            ([0xff; 6], false, false),
            ([2, 0, 0, 0, 0, 1], false, true),
        ] {
            assert_eq!((is_for_backup(&to, false), is_for_backup(&to, true)), (always, late), "{to:02x?}");
        }
        assert!(!is_for_backup(&[2, 0], true));
    }
}
