//! How a NIC's switch forwards: by devlink, in the order that its driver wants (Documentation/networking/devlink, devlink-eswitch-attr.rst;
//! Documentation/networking/device_drivers/ethernet/mellanox/mlx5/switchdev.rst; intel/ice.rst).

use std::time::Duration;

use ringspan_protocol::PciAddress;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Host;
use super::inventory::{Inventory, find};
use super::netlink::{DevlinkName, EncapMode, EswitchChange, EswitchMode, Flavour, InlineMode, NetlinkError};
use super::pci::{Function, attribute};
use super::representor::{Representors, index};
use super::steps::{Steps, wait};
use crate::error::{Error, ErrorKind};

/// How often and how long a busy switch is asked again: what is being taken down (qdiscs, offloaded flows) may hold it for a moment.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(200);
/// Steering modes that drivers know: by firmware, by software, by hardware (mlx5's devlink.rst).
const STEERING: [&str; 3] = ["dmfs", "smfs", "hmfs"];
/// Longest wait for representors, and for VFs' drivers.
const LIMIT: Duration = Duration::from_secs(30);

/// What is wanted; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wish {
    /// The PF: its interface, its PCI address, or the device as devlink calls it (`pci/0000:0a:00.0`).
    pub pf: String,
    /// How the switch forwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<EswitchMode>,
    /// How much of a frame's headers VFs put into their descriptors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline_mode: Option<InlineMode>,
    /// Whether the switch adds tunnel headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encap_mode: Option<EncapMode>,
    /// `smfs` or `dmfs`, where the driver has a choice (mlx5): before the mode becomes switchdev.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steering_mode: Option<String>,
    /// Whether the PF's interface offloads TC flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hw_tc_offload: Option<bool>,
}

/// A VF's representor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Represented {
    /// The VF's number.
    pub vf: u16,
    /// The interface that stands for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
}

/// A NIC's switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Eswitch {
    /// The device as devlink calls it.
    pub device: String,
    /// How the switch forwards.
    pub mode: EswitchMode,
    /// Where the driver has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline_mode: Option<InlineMode>,
    /// Where the driver has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encap_mode: Option<EncapMode>,
    /// Where the driver has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steering_mode: Option<String>,
    /// Whether the PF's interface offloads TC flows; absent: it has none here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hw_tc_offload: Option<bool>,
    /// The PF's interface; in switchdev mode the uplink's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The identity of the switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch_id: Option<String>,
    /// The representors of its VFs, in switchdev mode.
    pub representors: Vec<Represented>,
    /// What was changed; empty: it was so already, or nothing was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub done: Vec<String>,
}

/// A device whose switch is asked for.
struct Target<'a> {
    host: &'a Host,
    name: &'a str,
    device: DevlinkName,
    /// Its function; none on other buses than PCI.
    pci: Option<PciAddress>,
}

impl<'a> Target<'a> {
    fn find(host: &'a Host, name: &'a str) -> Result<Self, Error> {
        if let Ok(device) = name.parse::<DevlinkName>() {
            let pci = (device.bus == "pci").then(|| device.device.parse().ok()).flatten();
            return Ok(Self { host, name, device, pci });
        }
        let address = find(host, name)?;
        if let Some(pf) = Function::read(&host.sysfs, address).and_then(|function| function.pf) {
            let message = format!("{name} is a virtual function: name its physical one, {pf}");
            return Err(Error::new(ErrorKind::Invalid, message).about(name));
        }
        Ok(Self { host, name, device: address.into(), pci: Some(address) })
    }

    fn function(&self) -> Option<Function> {
        Function::read(&self.host.sysfs, self.pci?)
    }

    fn explain(&self, what: &str, error: &NetlinkError) -> Error {
        let told = error.tell(format!("{}: {what}", self.name)).about(self.name);
        let remedy = match error.errno() {
            Some(libc::EOPNOTSUPP) => "its driver has no such setting, or not in this mode",
            Some(libc::ENODEV) => "devlink does not know it: its driver has no switch",
            Some(libc::ENOENT) => "the kernel was built without devlink",
            Some(libc::EPERM | libc::EACCES) => "run the daemon as root",
            Some(libc::EBUSY) => &self.holders(),
            _ => return told,
        };
        Error { message: format!("{}: {remedy}", told.message), ..told }
    }

    /// What may hold the switch, with the qdiscs that are on its interfaces by their names.
    fn holders(&self) -> String {
        let own = self.function().and_then(|function| Representors::new(&self.host.sysfs, &[]).own(&function));
        let own = own.or_else(|| self.uplink());
        let ports = self.representors().into_iter().filter_map(|one| one.interface);
        let interfaces: Vec<String> = own.into_iter().chain(ports).collect();
        let left = self.host.kernel.qdiscs().unwrap_or_default().into_iter();
        let left: Vec<String> = left
            .filter(|(interface, _)| interfaces.contains(interface))
            .map(|(interface, kind)| match kind.as_str() {
                "ingress" | "clsact" => format!("{kind} on {interface} (tc qdisc del dev {interface} {kind})"),
                _ => format!("{kind} on {interface} (tc qdisc del dev {interface} root)"),
            })
            .collect();
        let rest = "something holds the switch: qdiscs or offloaded flows on its interfaces (tc qdisc show), VFs with drivers, a bond";
        if left.is_empty() { rest.into() } else { format!("{rest}; qdiscs are left: {}", left.join(", ")) }
    }

    /// As it is.
    fn state(&self) -> Result<Eswitch, Error> {
        let asked = self.host.kernel.eswitch(&self.device);
        let state = asked.map_err(|error| self.explain("its switch cannot be asked", &error))?;
        let pf = self.pci.map(|address| Inventory::take(self.host).pf_named(&address.to_string())).transpose()?;
        let interface = pf.as_ref().and_then(|pf| pf.interface.clone()).or_else(|| self.uplink());
        let index = interface.as_ref().and_then(|interface| index(&self.host.sysfs, interface));
        Ok(Eswitch {
            device: self.device.to_string(),
            mode: state.mode,
            inline_mode: state.inline_mode,
            encap_mode: state.encap_mode,
            steering_mode: self.host.kernel.steering(&self.device).ok(),
            hw_tc_offload: index.and_then(|index| self.host.kernel.tc_offload(index).ok()),
            switch_id: pf.and_then(|pf| pf.switch_id),
            interface,
            representors: if state.mode == EswitchMode::Switchdev { self.representors() } else { vec![] },
            done: vec![],
        })
    }

    /// The interface of the wire's port, where there is no PCI function to ask.
    fn uplink(&self) -> Option<String> {
        let ports = self.host.kernel.ports().ok()?;
        let own = |port: &&super::netlink::DevlinkPort| {
            port.device == self.device && matches!(port.flavour, Flavour::Physical(_))
        };
        ports.iter().filter(own).find_map(|port| port.interface.clone())
    }

    fn representors(&self) -> Vec<Represented> {
        let Some(pf) = self.pci else {
            let ports = self.host.kernel.ports().unwrap_or_default().into_iter();
            let mut found: Vec<Represented> = ports
                .filter(|port| port.device == self.device)
                .filter_map(|port| match port.flavour {
                    Flavour::Vf { vf, .. } => Some(Represented { vf, interface: port.interface }),
                    _ => None,
                })
                .collect();
            found.sort_by_key(|one| one.vf);
            return found;
        };
        let devices = Inventory::take(self.host).devices().into_iter().filter(|device| device.pf == Some(pf));
        let mut found: Vec<Represented> =
            devices.filter_map(|device| Some(Represented { vf: device.vf?, interface: device.representor })).collect();
        found.sort_by_key(|one| one.vf);
        found
    }

    fn change(&self, change: EswitchChange, what: &str) -> Result<(), Error> {
        let mut tries = 0;
        loop {
            match self.host.kernel.set_eswitch(&self.device, change) {
                Err(error) if error.errno() == Some(libc::EBUSY) && tries < TRIES => {
                    tries += 1;
                    std::thread::sleep(PAUSE);
                }
                other => return other.map_err(|error| self.explain(what, &error)),
            }
        }
    }

    /// VFs that a driver of the kernel's has: mlx5 refuses a mode while they are there.
    fn bound_vfs(&self) -> Vec<(PciAddress, String)> {
        let vfs = self.function().map(|function| function.vfs).unwrap_or_default().into_values();
        vfs.filter_map(|vf| Some((vf, self.host.sysfs.link(&attribute(vf, "driver"))?))).collect()
    }

    fn unbind(&self, vf: PciAddress, driver: &str) -> Result<(), Error> {
        let written = self.host.sysfs.write(&format!("bus/pci/drivers/{driver}/unbind"), &vf.to_string());
        written.map_err(|error| Error::io(format!("{}: {driver} does not let go of {vf}", self.name), &error))
    }

    fn rebind(&self, vf: PciAddress, driver: &str) -> Result<(), Error> {
        let written = self.host.sysfs.write(&format!("bus/pci/drivers/{driver}/bind"), &vf.to_string());
        let written = written.map_err(|error| Error::io(format!("{}: {driver} does not take {vf}", self.name), &error));
        match self.host.sysfs.link(&attribute(vf, "driver")) {
            // Somebody gave it to it meanwhile.
            Some(now) if now == driver => Ok(()),
            _ => written,
        }
    }
}

/// A PF's switch.
pub(crate) fn get(host: &Host, name: &str) -> Result<Eswitch, Error> {
    Target::find(host, name)?.state()
}

/// How many VFs a change of the mode would take away and make again.
pub(crate) fn vfs_that_go(host: &Host, wish: &Wish) -> u16 {
    let function = Target::find(host, &wish.pf).ok().and_then(|target| target.function());
    let count = function.filter(|function| goes_without_vfs(function.driver.as_deref())).map(|one| one.vfs.len());
    count.and_then(|count| count.try_into().ok()).unwrap_or_default()
}

/// Whether a driver changes its mode only without VFs (drivers/net/ethernet/intel/ice/ice_eswitch.c, `ice_eswitch_mode_set`).
fn goes_without_vfs(driver: Option<&str>) -> bool {
    driver == Some("ice")
}

/// Makes a PF's switch as it is wanted: all of it or nothing. `owner` knows the port of ringspan's that has a function.
pub(crate) fn set(host: &Host, wish: &Wish, owner: impl Fn(PciAddress) -> Option<String>) -> Result<Eswitch, Error> {
    let target = Target::find(host, &wish.pf)?;
    let before = target.state()?;
    let mut steps = Steps::default();
    match carry_out(&target, wish, &before, &owner, &mut steps) {
        Ok(()) => Ok(Eswitch { done: steps.finish(), ..target.state()? }),
        Err(error) => Err(steps.fail(error)),
    }
}

/// What is there of what is wished, where that can be told: what [`undo`] goes back to. It names the device as devlink does, which no change of the mode
/// renames.
pub(crate) fn look(host: &Host, wish: &Wish) -> Option<Wish> {
    let now = Target::find(host, &wish.pf).ok()?.state().ok()?;
    Some(Wish {
        pf: now.device,
        mode: wish.mode.and(Some(now.mode)),
        inline_mode: wish.inline_mode.and(now.inline_mode),
        encap_mode: wish.encap_mode.and(now.encap_mode),
        steering_mode: wish.steering_mode.as_ref().and(now.steering_mode),
        hw_tc_offload: wish.hw_tc_offload.and(now.hw_tc_offload),
    })
}

/// Takes back what a daemon that was killed may have done of a wish, last first, as far as it can. What is not told now cannot have been set, and stays.
pub(crate) fn undo(host: &Host, before: &Wish, owner: impl Fn(PciAddress) -> Option<String>) -> Result<(), Error> {
    let target = Target::find(host, &before.pf)?;
    let now = target.state()?;
    let mut refused = None;
    let encap = before.encap_mode.filter(|old| now.encap_mode.is_some_and(|now| now != *old));
    let inline = before.inline_mode.filter(|old| now.inline_mode.is_some_and(|now| now != *old));
    let settings =
        [(encap.map(EswitchChange::Encap), "encap mode"), (inline.map(EswitchChange::Inline), "inline mode")];
    for (old, what) in settings {
        if let Some(old) = old
            && let Err(error) = target.change(old, what)
        {
            refused.get_or_insert(error);
        }
    }
    if let Some(old) = before.mode.filter(|old| *old != now.mode) {
        let mut steps = Steps::default();
        if let Err(error) = change_mode(&target, old, now.mode, &owner, &mut steps) {
            refused.get_or_insert(steps.fail(error));
        }
    }
    // The interface may be another one in another mode.
    let now = target.state()?;
    if let Some(old) =
        before.steering_mode.as_ref().filter(|old| now.steering_mode.as_ref().is_some_and(|now| now != *old))
        && let Err(error) = host.kernel.set_steering(&target.device, old)
    {
        refused.get_or_insert(target.explain("its old steering mode", &error));
    }
    let index = now.interface.as_ref().and_then(|interface| index(&host.sysfs, interface));
    let offload = before.hw_tc_offload.filter(|old| now.hw_tc_offload.is_some_and(|now| now != *old));
    if let (Some(old), Some(index)) = (offload, index)
        && let Err(error) = host.kernel.set_tc_offload(index, old)
    {
        refused.get_or_insert(target.explain("its old hw-tc-offload", &error));
    }
    refused.map_or(Ok(()), Err)
}

fn carry_out<'a>(
    target: &'a Target<'a>,
    wish: &Wish,
    before: &Eswitch,
    owner: &impl Fn(PciAddress) -> Option<String>,
    steps: &mut Steps<'a>,
) -> Result<(), Error> {
    let (host, name) = (target.host, target.name);
    if let Some(on) = wish.hw_tc_offload.filter(|on| Some(*on) != before.hw_tc_offload) {
        let index = before.interface.as_ref().and_then(|interface| index(&host.sysfs, interface));
        let Some(index) = index else {
            let message = format!("{name} has no interface here, so there is no hw-tc-offload to set");
            return Err(Error::new(ErrorKind::Unsupported, message).about(name));
        };
        let set = move |on| {
            let asked = host.kernel.set_tc_offload(index, on);
            asked.map_err(|error| target.explain("hw-tc-offload", &error))
        };
        set(on)?;
        if host.kernel.tc_offload(index).is_ok_and(|now| now != on) {
            let message = format!("{name}: hw-tc-offload stays {}: its driver does not let it be changed", !on);
            return Err(Error::new(ErrorKind::Unsupported, message).about(name));
        }
        steps.did(format!("hw-tc-offload of {name} is {}", if on { "on" } else { "off" }), move || set(!on));
    }
    if let Some(mode) = wish.steering_mode.as_ref().filter(|mode| Some(*mode) != before.steering_mode.as_ref()) {
        // Drivers without a choice answer in many ways; that it is not there is no reason to fail.
        match (host.kernel.set_steering(&target.device, mode), &before.steering_mode) {
            (Ok(()), old) => {
                let old = old.clone();
                steps.did(format!("steering mode of {name} is {mode}"), move || match old {
                    Some(old) => host
                        .kernel
                        .set_steering(&target.device, &old)
                        .map_err(|error| target.explain("steering mode", &error)),
                    None => Ok(()),
                });
            }
            (Err(error), None) if error.is_unsupported() || error.errno() == Some(libc::EINVAL) => {
                steps.did(format!("{name} has no choice of steering modes"), || Ok(()));
            }
            // mlx5 tells its mode on devices that have no other, too, and refuses then (mlx5_fs_mode_validate). In switchdev mode it refuses every
            // device so, and EINVAL is also for words that it does not know: there somebody has to mend what is asked for.
            (Err(error), Some(old))
                if before.mode == EswitchMode::Legacy
                    && (error.is_unsupported()
                        || error.errno() == Some(libc::EINVAL) && STEERING.contains(&mode.as_str())) =>
            {
                steps.did(format!("steering mode of {name} stays {old}: it does not take {mode} ({error})"), || Ok(()));
            }
            (Err(error), _) => return Err(target.explain("its steering mode", &error)),
        }
    }
    if let Some(mode) = wish.mode.filter(|mode| *mode != before.mode) {
        change_mode(target, mode, before.mode, owner, steps)?;
    }
    let inline = wish.inline_mode.filter(|mode| Some(*mode) != before.inline_mode);
    let encap = wish.encap_mode.filter(|mode| Some(*mode) != before.encap_mode);
    let settings = [
        (inline.map(EswitchChange::Inline), before.inline_mode.map(EswitchChange::Inline), "inline mode"),
        (encap.map(EswitchChange::Encap), before.encap_mode.map(EswitchChange::Encap), "encap mode"),
    ];
    for (wanted, old, what) in settings {
        let Some(wanted) = wanted else { continue };
        target.change(wanted, what)?;
        let said = match wanted {
            EswitchChange::Inline(mode) => mode.to_string(),
            EswitchChange::Encap(mode) => mode.to_string(),
            EswitchChange::Mode(mode) => mode.to_string(),
        };
        steps.did(format!("{what} of {name} is {said}"), move || match old {
            Some(old) => target.change(old, what),
            None => Ok(()),
        });
    }
    Ok(())
}

/// Network devices of InfiniBand (include/uapi/linux/if_arp.h, ARPHRD_INFINIBAND).
const INFINIBAND: u32 = 32;

/// What the PF's interface is.
fn link_kind(target: &Target<'_>) -> Option<u32> {
    let interface = Representors::new(&target.host.sysfs, &[]).own(&target.function()?)?;
    target.host.sysfs.number(&format!("class/net/{interface}/type"))
}

/// mlx5: VFs are without drivers while the mode changes, and get them back. ice: there are no VFs while it changes. Others: as it comes.
fn change_mode<'a>(
    target: &'a Target<'a>,
    mode: EswitchMode,
    old: EswitchMode,
    owner: &impl Fn(PciAddress) -> Option<String>,
    steps: &mut Steps<'a>,
) -> Result<(), Error> {
    let (host, name) = (target.host, target.name);
    let function = target.function();
    let driver = function.as_ref().and_then(|function| function.driver.clone()).unwrap_or_default();
    let vfs = function.map(|function| function.vfs).unwrap_or_default();
    let infiniband = link_kind(target) == Some(INFINIBAND);
    if mode == EswitchMode::Switchdev && infiniband {
        let message = format!(
            "{name}: the link is InfiniBand, and Open vSwitch switches Ethernet only: give its VFs to guests whole, or change the link (ringspan firmware set {name} --link-type ethernet) and reboot"
        );
        return Err(Error::new(ErrorKind::Unsupported, message).about(name));
    }
    for (number, vf) in &vfs {
        let busy = |message| Err(Error::new(ErrorKind::Busy, message).about(name));
        if let Some(port) = owner(*vf) {
            return busy(format!(
                "{name}: the port {port} has VF {number} ({vf}): remove it first (ringspan port remove {port})"
            ));
        }
        let process = Function::read(&host.sysfs, *vf).and_then(|vf| host.vfio_user(&vf));
        if let Some(process) = process {
            return busy(format!(
                "{name}: process {process} has VF {number} ({vf}) open by vfio: stop that guest first"
            ));
        }
    }
    if let Some(owner) = target.pci.and_then(owner) {
        let message = format!(
            "{name}: ringspan's {owner} has the PF or a representor of it open: remove that first (ringspan port remove {owner}, or ringspan nic remove {owner} where it is a NIC)"
        );
        return Err(Error::new(ErrorKind::Busy, message).about(name));
    }
    let count = vfs.len();
    let numvfs = move |count: usize| {
        let Some(pf) = target.pci else { return Ok(()) };
        let written = host.sysfs.write(&attribute(pf, "sriov_numvfs"), &count.to_string());
        written.map_err(|error| Error::io(format!("{name}: sriov_numvfs does not take {count}"), &error).about(name))
    };
    let removed = goes_without_vfs(Some(&driver)) && count > 0;
    if removed {
        numvfs(0)?;
        steps.did(format!("{name} had {count} virtual functions, and has none"), move || numvfs(count));
    }
    let mut unbound = vec![];
    if driver == "mlx5_core" {
        let bound = target.bound_vfs();
        host.journal.unbinding(&bound)?;
        for (vf, had) in bound {
            target.unbind(vf, &had)?;
            unbound.push((vf, had.clone()));
            steps.did(format!("{had} has let go of {vf}"), move || target.rebind(vf, &had));
        }
    }
    target.change(EswitchChange::Mode(mode), &format!("its mode does not become {mode}"))?;
    steps.did(format!("{name} is in {mode} mode, was in {old} mode"), move || {
        target.change(EswitchChange::Mode(old), "its old mode")
    });
    let is = host.kernel.eswitch(&target.device).map_err(|error| target.explain("its mode", &error))?;
    if is.mode != mode {
        let message = format!("{name} took the mode {mode} and is in {}: see the kernel's log", is.mode);
        return Err(Error::new(ErrorKind::Failed, message).about(name));
    }
    if removed {
        numvfs(count)?;
        steps.did(format!("{name} has {count} virtual functions again"), move || numvfs(0));
    }
    if mode == EswitchMode::Switchdev && count > 0 {
        // Interfaces come one by one, and are renamed by udev meanwhile.
        let all = || {
            let found = target.representors();
            (found.len() == count && found.iter().all(|one| one.interface.is_some())).then_some(())
        };
        if wait(LIMIT, all).is_none() {
            let found = target.representors().iter().filter(|one| one.interface.is_some()).count();
            let message = format!("{name}: {found} of {count} representors are there after {} s", LIMIT.as_secs());
            return Err(Error::new(ErrorKind::Timeout, message).about(name));
        }
        steps.did(format!("{count} representors are there"), || Ok(()));
    }
    for (vf, had) in unbound {
        target.rebind(vf, &had)?;
        let again = had.clone();
        steps.did(format!("{had} has {vf} again"), move || target.unbind(vf, &again));
    }
    Ok(())
}
