//! How many virtual functions a PF has (Documentation/PCI/pci-iov-howto.rst; drivers/pci/iov.c).

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use ringspan_protocol::PciAddress;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Host;
use super::bond::Around;
use super::inventory::{Inventory, find};
use super::pci::{Answer, Function, attribute};
use super::representor::index;
use super::steps::{Steps, wait};
use crate::error::{Error, ErrorKind};

/// How many are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Count {
    /// So many.
    Number(u16),
    /// As many as there can be.
    Max(Max),
}

/// The word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Max {
    /// As many as there can be.
    Max,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Enabled {
    /// The PF.
    pub pf: PciAddress,
    /// How many VFs it had.
    pub before: u16,
    /// How many it has.
    pub enabled: u16,
    /// How many it can have.
    pub total: u16,
    /// Their addresses, by their numbers.
    pub vfs: Vec<PciAddress>,
    /// What was done; empty: it was so already.
    pub done: Vec<String>,
}

/// The PF that is named, which can have VFs; how many at most, and how many it has.
pub(crate) fn pf(host: &Host, name: &str) -> Result<(Function, u16, u16), Error> {
    let address = find(host, name)?;
    let refuse = |kind, message: String| Err(Error::new(kind, message).about(name));
    let Some(function) = Function::read(&host.sysfs, address) else {
        return refuse(ErrorKind::NotFound, format!("{name}: {address} is no function of a NIC: see ringspan pf list"));
    };
    if let Some(pf) = function.pf {
        return refuse(ErrorKind::Invalid, format!("{name} is a virtual function: name its physical one, {pf}"));
    }
    let Some((total, now)) = function.vf_counts else {
        let why = why_none(host, &function);
        return refuse(ErrorKind::Unsupported, format!("{name} cannot have virtual functions: {why}"));
    };
    Ok((function, total, now))
}

/// Why a physical function, whose `vf_counts` are not there, cannot have virtual ones.
pub(crate) fn why_none(host: &Host, function: &Function) -> String {
    match (function.capabilities(&host.sysfs).sriov, function.driver.as_deref()) {
        (Answer::No, _) => "it has no SR-IOV capability".into(),
        (Answer::Yes, _) => "SR-IOV is switched off in its firmware (SRIOV_EN, NUM_OF_VFS) or in the kernel".into(),
        (Answer::Unknown, None) => "it has no driver".into(),
        (Answer::Unknown, Some(driver)) => format!("its driver {driver} offers none"),
    }
}

/// Makes a PF have so many VFs, and waits for each of them. `disturb` allows to take VFs away that somebody else uses.
pub(crate) fn enable(
    host: &Host,
    name: &str,
    count: Count,
    disturb: bool,
    limit: Duration,
    around: &Around<'_>,
) -> Result<Enabled, Error> {
    let (function, total, before) = pf(host, name)?;
    let address = function.address;
    let wanted = match count {
        Count::Number(count) => count,
        Count::Max(_) => total,
    };
    if wanted > total {
        let message = format!(
            "{name} has at most {total} virtual functions, not {wanted}: more is a setting of its firmware (NUM_OF_VFS), where it has one"
        );
        return Err(Error::new(ErrorKind::Invalid, message).about(name));
    }
    let mut steps = Steps::default();
    if wanted != before {
        if before > 0 {
            unused(host, name, &function, disturb, around)?;
            let lost = settings(host, &function);
            set(host, name, address, 0)?;
            for lost in lost {
                // New VFs have none of it, also when the old number is restored.
                steps.note(lost);
            }
            steps.did(format!("{name} had {before} virtual functions, and has none"), move || {
                set(host, name, address, before)
            });
        }
        if wanted > 0 {
            if let Err(error) = set(host, name, address, wanted) {
                return Err(steps.fail(error));
            }
            steps.note(format!("{name} has {wanted} virtual functions"));
        }
    }
    let there = || Function::read(&host.sysfs, address).filter(|function| complete(host, function, wanted));
    let Some(function) = wait(limit, there) else {
        let function = Function::read(&host.sysfs, address);
        let came = function.map_or(0, |function| function.vfs.len());
        let message = format!(
            "{name}: {came} of {wanted} virtual functions are there after {} ms: see the kernel's log; those stay",
            limit.as_millis()
        );
        return Err(Error::new(ErrorKind::Timeout, message).about(name));
    };
    let vfs = function.vfs.values().copied().collect();
    Ok(Enabled { pf: address, before, enabled: wanted, total, vfs, done: steps.finish() })
}

/// Makes so many VFs again that a change had taken away. None: the PF has some, or is to have none.
pub(crate) fn restore(host: &Host, name: &str, count: u16) -> Result<Option<String>, Error> {
    if count == 0 {
        return Ok(None);
    }
    let (function, _, now) = pf(host, name)?;
    if now > 0 {
        return Ok(None);
    }
    set(host, name, function.address, count)?;
    Ok(Some(format!("{name} has {count} virtual functions again")))
}

/// What VFs lose when they are taken away: what was said of them, and the drivers that they were given to.
fn settings(host: &Host, pf: &Function) -> Vec<String> {
    let index = pf.interfaces(&host.sysfs).into_iter().find_map(|interface| {
        let port = host.sysfs.text(&attribute(pf.address, &format!("net/{interface}/phys_port_name")));
        // Beside the PF's own interface there are those of representors.
        let representor = port.is_some_and(|port| port.contains("vf"));
        index(&host.sysfs, &interface).filter(|_| !representor)
    });
    let set = index.and_then(|index| host.kernel.vfs(index).ok()).unwrap_or_default();
    let lost = pf.vfs.iter().filter_map(|(number, address)| {
        let mut what = vec![];
        if let Some(set) = set.iter().find(|set| set.vf == u32::from(*number)) {
            what.extend(set.mac.filter(|mac| mac.0 != [0; 6]).map(|mac| format!("MAC address {mac}")));
            what.extend((set.vlan != 0).then(|| format!("VLAN {}", set.vlan)));
            let rate = (set.min_rate, set.max_rate);
            what.extend((rate != (0, 0)).then(|| format!("rate {} to {} Mbit/s", rate.0, rate.1)));
            what.extend((set.trust == Some(true)).then(|| "trust".to_owned()));
        }
        let given = host.sysfs.text(&attribute(*address, "driver_override")).filter(|text| text != "(null)");
        what.extend(given.map(|driver| format!("binding to {driver}")));
        (!what.is_empty()).then(|| format!("VF {number} ({address}) has lost its {}", what.join(", ")))
    });
    lost.collect()
}

/// Whether each VF is there, link and function.
fn complete(host: &Host, pf: &Function, wanted: u16) -> bool {
    let there = |vf: &PciAddress| host.sysfs.hex(&attribute(*vf, "vendor")).is_some();
    pf.vfs.len() == usize::from(wanted) && pf.vfs.values().all(there)
}

/// Refuses when somebody would lose a VF.
fn unused(host: &Host, name: &str, pf: &Function, disturb: bool, around: &Around<'_>) -> Result<(), Error> {
    let owner = around.owner;
    let busy = |message: String| Err(Error::new(ErrorKind::Busy, message).about(name));
    if let Some(owner) = owner(pf.address) {
        return busy(format!(
            "{name}: ringspan's {owner} has the PF or a representor of it open, which goes with its VF: remove that first (ringspan port remove {owner}, or ringspan nic remove {owner} where it is a NIC)"
        ));
    }
    let (mut used, mut example) = (0, None);
    let devices = Inventory::take(host).devices().into_iter().filter(|one| one.pf == Some(pf.address));
    let representors: BTreeMap<u16, String> = devices.filter_map(|one| Some((one.vf?, one.representor?))).collect();
    for (number, address) in &pf.vfs {
        if let Some(port) = owner(*address) {
            return busy(format!(
                "{name}: the port {port} has VF {number} ({address}): remove it first (ringspan port remove {port})"
            ));
        }
        let Some(vf) = Function::read(&host.sysfs, *address) else { continue };
        if let Some(process) = host.vfio_user(&vf) {
            return busy(format!(
                "{name}: process {process} has VF {number} ({address}) open by vfio or uio: stop that guest first, the kernel would wait for it"
            ));
        }
        let how = match vf.driver.as_deref() {
            Some(driver) if driver.contains("vfio") || driver.contains("uio") => Some(format!("bound to {driver}")),
            _ => match (host.busy_interface(&vf), representors.get(number)) {
                (None, Some(representor)) if !disturb => busy_representor(host, name, representor, around)?,
                (how, _) => how,
            },
        };
        if let Some(how) = how {
            used += 1;
            example.get_or_insert(format!("VF {number} ({address}): {how}"));
        }
    }
    match example {
        Some(example) if !disturb => {
            let more = if used > 1 { format!(" and {} more", used - 1) } else { String::new() };
            busy(format!(
                "{name}: a change takes all its virtual functions away, and some are in use ({example}{more}): free them, or say --disturb"
            ))
        }
        _ => Ok(()),
    }
}

/// How the interface that stands for a VF is used: it goes with the VF, and a guest's frames may go through it.
fn busy_representor(host: &Host, pf: &str, name: &str, around: &Around<'_>) -> Result<Option<String>, Error> {
    if let Some(master) = host.sysfs.link(&format!("class/net/{name}/master")) {
        return Ok(Some(format!("its representor {name} is part of {master}")));
    }
    // A bridge that Open vSwitch forwards in userspace (datapath_type=netdev) has no part in the kernel.
    match (around.port_of)(name) {
        Ok(port) => Ok(port.map(|port| format!("its representor {name} is on bridge {}", port.bridge))),
        Err(error) => {
            let message = format!("{pf}: representor {name}: {}; or say --disturb", error.message);
            Err(Error { message, ..error }.about(pf))
        }
    }
}

fn set(host: &Host, name: &str, pf: PciAddress, count: u16) -> Result<(), Error> {
    let written = host.sysfs.write(&attribute(pf, "sriov_numvfs"), &count.to_string());
    written.map_err(|error| explain(name, pf, count, &error))
}

/// What the kernel's number means here.
fn explain(name: &str, pf: PciAddress, count: u16, error: &io::Error) -> Error {
    let errno = error.raw_os_error();
    let (kind, why) = match errno {
        Some(libc::ENOMEM) => (
            ErrorKind::NoRoom,
            "there is no room for their registers or bus numbers: boot with pci=realloc (and pci=assign-busses), or allow SR-IOV and MMIO above 4 GiB in the BIOS; the kernel's log says which it is",
        ),
        Some(libc::ENOSPC) => (
            ErrorKind::NoRoom,
            "the NIC has no resources for so many (queues, MSI-X vectors): ask for fewer, or raise NUM_OF_VFS in its firmware",
        ),
        Some(libc::EBUSY) => (ErrorKind::Busy, "somebody else has made some meanwhile, or uses them: see pf show"),
        Some(libc::ERANGE | libc::EINVAL) => {
            (ErrorKind::Invalid, "the driver takes fewer (a module parameter such as max_vfs, or the firmware)")
        }
        Some(libc::ENOENT | libc::ENOSYS | libc::EOPNOTSUPP) => (
            ErrorKind::Unsupported,
            "its driver makes none: give it to the kernel's own (ringspan device bind PF --restore)",
        ),
        Some(libc::EPERM) => (ErrorKind::Busy, "the driver refuses while virtual functions are assigned to guests"),
        Some(libc::EACCES | libc::EROFS) => (ErrorKind::Permission, "run the daemon as root, with /sys writable"),
        Some(libc::EIO | libc::ETIMEDOUT) => (
            ErrorKind::Failed,
            "the NIC does not answer: check IOMMU, ACS and PCIe ARI in the BIOS (the kernel's log: ENABLE_HCA timeout)",
        ),
        _ => (ErrorKind::Failed, "see the kernel's log"),
    };
    let message = format!("{name}: sriov_numvfs of {pf} does not take {count}: {error}: {why}");
    Error { errno, ..Error::new(kind, message).about(name) }
}
