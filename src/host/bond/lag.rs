//! VF LAG: a ConnectX makes one switch of its two ports when the kernel bonds them (drivers/net/ethernet/mellanox/mlx5/core/lag/lag.c;
//! what it says of itself: lag/debugfs.c, since Linux 5.19). Not seen on hardware.

use std::time::Duration;

use ringspan_protocol::PciAddress;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Around;
use super::state::Member;
use crate::error::{Error, ErrorKind};
use crate::host::Host;
use crate::host::eswitch;
use crate::host::netlink::EswitchMode;
use crate::host::pci::{Function, attribute};
use crate::host::steps::{Steps, wait};
use crate::host::sysfs::Sysfs;

/// The driver that has it.
const DRIVER: &str = "mlx5_core";
/// Where a function's debugging information is, in debugfs.
const DEBUG: &str = "kernel/debug/mlx5";

/// What the NIC made of the bond.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct VfLag {
    /// `active`, `disabled`, or `unknown`.
    pub state: String,
    /// What kind of LAG: `switchdev` is VF LAG; `roce`, `multipath` and `mpesw` are others. Absent while it is not active.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// How it chooses a port: `hash` or `queue_affinity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_select: Option<String>,
    /// `shared_fdb:on` and its like.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// Which port carries what is meant for which: `1:1`, and `2:1` while the second one is down.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mapping: Vec<String>,
    /// Its functions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<String>,
    /// Why it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl VfLag {
    /// Whether it is VF LAG, and active.
    pub(super) fn is_active(&self) -> bool {
        self.state == "active" && self.kind.as_deref() == Some("switchdev")
    }

    /// As one clause.
    fn told(&self) -> String {
        let kind = self.kind.as_deref().map(|kind| format!(", type {kind}")).unwrap_or_default();
        format!("{}{kind}", self.state)
    }
}

/// Why what a NIC made of a bond cannot be seen.
fn hidden(sysfs: &Sysfs, pf: PciAddress) -> Option<String> {
    if sysfs.has(&format!("{DEBUG}/{pf}/lag/state")) {
        return None;
    }
    Some(if sysfs.has(&format!("{DEBUG}/{pf}")) {
        "this kernel's driver does not tell (mlx5 does since Linux 5.19)".into()
    } else if sysfs.names("kernel/debug").is_empty() {
        "debugfs cannot be read: mount -t debugfs none /sys/kernel/debug, and run the daemon as root".into()
    } else {
        format!("debugfs has no mlx5/{pf}: is its driver {DRIVER}?")
    })
}

/// What one function says.
fn read(sysfs: &Sysfs, pf: PciAddress) -> VfLag {
    let text = |name: &str| sysfs.text(&format!("{DEBUG}/{pf}/lag/{name}"));
    let lines = |name: &str| text(name).unwrap_or_default().lines().map(|line| line.trim().to_owned()).collect();
    let Some(state) = text("state") else {
        let reason = Some(hidden(sysfs, pf).unwrap_or_else(|| "its state cannot be read".into()));
        return VfLag {
            state: "unknown".into(),
            kind: None,
            port_select: None,
            flags: vec![],
            mapping: vec![],
            members: vec![],
            reason,
        };
    };
    VfLag {
        state,
        kind: text("type"),
        port_select: text("port_sel_mode"),
        flags: lines("flags"),
        mapping: lines("mapping"),
        members: lines("members"),
        reason: None,
    }
}

/// Whether these are two functions of one NIC.
fn of_one_nic(first: PciAddress, second: PciAddress) -> bool {
    (first.domain, first.bus, first.device) == (second.domain, second.bus, second.device) && first != second
}

/// What a NIC made of a bond with these members. None: they are not the two ports of one that could.
pub(super) fn look(sysfs: &Sysfs, members: &[Member]) -> Option<VfLag> {
    let [first, second] = members else { return None };
    let (first, second) = (first.address?, second.address?);
    let drives = |pf: PciAddress| sysfs.link(&attribute(pf, "driver")).as_deref() == Some(DRIVER);
    (of_one_nic(first, second) && drives(first) && drives(second)).then(|| read(sysfs, first))
}

/// The two functions of a NIC that has VF LAG, or why these members are none.
pub(super) fn pair(
    host: &Host,
    bond: &str,
    members: &[(String, Option<PciAddress>)],
) -> Result<[PciAddress; 2], Error> {
    let refuse = |message: String| Err(Error::new(ErrorKind::Unsupported, format!("{bond}: {message}")).about(bond));
    let other = "without vf_lag it is a bond as any other; NICs without VF LAG bond two VFs in a port (device bond:mode=1,pci:...,pci:...)";
    let [(first_name, Some(first)), (second_name, Some(second))] = members else {
        return refuse(format!("VF LAG needs exactly the two PFs of one NIC, not {} members: {other}", members.len()));
    };
    for (name, pf) in [(first_name, first), (second_name, second)] {
        let Some(function) = Function::read(&host.sysfs, *pf) else {
            return refuse(format!("{name} ({pf}) is no function of a NIC: VF LAG needs PFs"));
        };
        if let Some(physical) = function.pf {
            return refuse(format!("{name} is a virtual function: name its physical one, {physical}"));
        }
        let driver = function.driver.as_deref().unwrap_or("no driver");
        if driver != DRIVER {
            return refuse(format!("{name} ({pf}, {driver}) has no VF LAG, which is of {DRIVER}: {other}"));
        }
    }
    if !of_one_nic(*first, *second) {
        return refuse(format!(
            "{first_name} ({first}) and {second_name} ({second}) are of two NICs, and VF LAG is of one: {other}"
        ));
    }
    Ok([*first, *second])
}

/// Brings both functions into switchdev mode.
pub(super) fn to_switchdev<'a>(
    host: &'a Host,
    pair: [PciAddress; 2],
    around: &'a Around<'a>,
    steps: &mut Steps<'a>,
) -> Result<(), Error> {
    for pf in pair {
        let before = eswitch::get(host, &pf.to_string())?;
        if before.mode == EswitchMode::Switchdev {
            continue;
        }
        let wish = move |mode| eswitch::Wish { pf: pf.to_string(), mode: Some(mode), ..eswitch::Wish::default() };
        eswitch::set(host, &wish(EswitchMode::Switchdev), around.owner)?;
        steps.did(format!("{pf} is in switchdev mode, was in {} mode", before.mode), move || {
            eswitch::set(host, &wish(before.mode), around.owner).map(|_| ())
        });
    }
    Ok(())
}

/// A VF, and the driver that it had.
pub(super) type Unbound = Vec<(PciAddress, String)>;

fn unbind(host: &Host, vf: PciAddress, driver: &str) -> Result<(), Error> {
    let written = host.sysfs.write(&format!("bus/pci/drivers/{driver}/unbind"), &vf.to_string());
    written.map_err(|error| Error::io(format!("{driver} does not let go of {vf}"), &error))
}

fn rebind(host: &Host, vf: PciAddress, driver: &str) -> Result<(), Error> {
    let written = host.sysfs.write(&format!("bus/pci/drivers/{driver}/bind"), &vf.to_string());
    match host.sysfs.link(&attribute(vf, "driver")) {
        // Somebody gave it to it meanwhile.
        Some(now) if now == driver => Ok(()),
        _ => written.map_err(|error| Error::io(format!("{driver} does not take {vf}"), &error)),
    }
}

fn vfs(host: &Host, pair: [PciAddress; 2]) -> Vec<PciAddress> {
    let of = |pf| Function::read(&host.sysfs, pf).map(|function| function.vfs).unwrap_or_default();
    pair.into_iter().flat_map(|pf| of(pf).into_values()).collect()
}

/// Refuses when somebody uses one of the VFs, which have to go without drivers for a moment.
pub(super) fn check_unused(host: &Host, bond: &str, pair: [PciAddress; 2], around: &Around<'_>) -> Result<(), Error> {
    let busy = |message: String| Err(Error::new(ErrorKind::Busy, format!("{bond}: {message}")).about(bond));
    for vf in vfs(host, pair) {
        if let Some(port) = (around.owner)(vf) {
            return busy(format!(
                "the port {port} has the VF {vf}, and VF LAG changes only while no VF is used: remove it first (ringspan port remove {port})"
            ));
        }
        let process = Function::read(&host.sysfs, vf).and_then(|function| host.vfio_user(&function));
        if let Some(process) = process {
            return busy(format!(
                "process {process} has the VF {vf} open by vfio, and VF LAG changes only while no VF is used: stop that guest first"
            ));
        }
    }
    Ok(())
}

/// Takes the VFs of both functions from their drivers.
pub(super) fn unbind_all<'a>(host: &'a Host, pair: [PciAddress; 2], steps: &mut Steps<'a>) -> Result<Unbound, Error> {
    let mut unbound = vec![];
    let driver_of = |vf: PciAddress| Some((vf, host.sysfs.link(&attribute(vf, "driver"))?));
    let bound: Vec<_> = vfs(host, pair).into_iter().filter_map(driver_of).collect();
    host.journal.unbinding(&bound)?;
    for (vf, driver) in bound {
        unbind(host, vf, &driver)?;
        unbound.push((vf, driver.clone()));
        steps.did(format!("{driver} has let go of {vf}"), move || rebind(host, vf, &driver));
    }
    Ok(unbound)
}

/// Gives them back.
pub(super) fn rebind_all<'a>(host: &'a Host, unbound: Unbound, steps: &mut Steps<'a>) -> Result<(), Error> {
    for (vf, driver) in unbound {
        rebind(host, vf, &driver)?;
        let again = driver.clone();
        steps.did(format!("{driver} has {vf} again"), move || unbind(host, vf, &again));
    }
    Ok(())
}

/// Refuses where it could not be seen whether VF LAG is active.
pub(super) fn check_visible(host: &Host, bond: &str, pair: [PciAddress; 2]) -> Result<(), Error> {
    match hidden(&host.sysfs, pair[0]) {
        None => Ok(()),
        Some(why) => {
            let message = format!("{bond}: whether VF LAG becomes active could not be seen: {why}");
            Err(Error::new(ErrorKind::Unsupported, message).about(bond))
        }
    }
}

/// Whether both functions have VF LAG.
pub(super) fn is_active(host: &Host, pair: [PciAddress; 2]) -> bool {
    pair.into_iter().all(|pf| read(&host.sysfs, pf).is_active())
}

/// Waits until VF LAG is active on both functions, or on none. The driver does it by work of its own, and tries again each second.
pub(super) fn await_active(
    host: &Host,
    bond: &str,
    pair: [PciAddress; 2],
    active: bool,
    limit: Duration,
) -> Result<(), Error> {
    let so = || {
        let now = pair.map(|pf| read(&host.sysfs, pf));
        now.iter().all(|lag| lag.is_active() == active && (active || lag.state != "active")).then_some(())
    };
    if wait(limit, so).is_some() {
        return Ok(());
    }
    let told: Vec<String> = pair.iter().map(|pf| format!("{pf} is {}", read(&host.sysfs, *pf).told())).collect();
    let (wanted, remedy) = if active {
        (
            "active",
            "the kernel's log has the reason (Failed to activate VF LAG): both PFs in switchdev mode, no VF bound, firmware that lets its ports be bonded",
        )
    } else {
        ("disabled", "the kernel's log may have the reason (Failed to deactivate)")
    };
    let message =
        format!("{bond}: VF LAG is not {wanted} after {} ms: {}; {remedy}", limit.as_millis(), told.join(", "));
    Err(Error::new(ErrorKind::Timeout, message).about(bond))
}

/// Waits until each VF of both functions has its representor: with one table for both ports they are made anew when it begins and ends.
pub(super) fn await_representors(host: &Host, bond: &str, pair: [PciAddress; 2], limit: Duration) -> Result<(), Error> {
    let missing = || {
        let all = pair.into_iter().flat_map(|pf| match eswitch::get(host, &pf.to_string()) {
            Ok(eswitch) => eswitch.representors,
            Err(_) => vec![],
        });
        all.filter(|one| one.interface.is_none()).count()
    };
    match wait(limit, || (missing() == 0).then_some(())) {
        Some(()) => Ok(()),
        None => {
            let message = format!("{bond}: {} representors are missing after {} ms", missing(), limit.as_millis());
            Err(Error::new(ErrorKind::Timeout, message).about(bond))
        }
    }
}
