//! Which driver has a function (Documentation/ABI/testing/sysfs-bus-pci).
//!
//! By `driver_override`, which is about one function; `new_id` would claim each later one of the same kind too. The driver that a function had
//! at first is remembered until it is restored, over restarts of the daemon.

use std::time::Duration;

use ringspan_protocol::PciAddress;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Host;
use super::inventory::find;
use super::pci::{Function, attribute};
use super::steps::{Steps, wait};
use crate::error::{Error, ErrorKind};

/// Longest wait for a driver that takes a function on a thread of its own. Others have it, or have refused it, when the kernel was asked.
const LIMIT: Duration = Duration::from_secs(1);
/// What `driver_override` says when there is none.
const NONE: &str = "(null)";

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Bound {
    /// The function.
    pub address: PciAddress,
    /// The driver that had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// The driver that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The driver that `restore` would give it back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<String>,
    /// What was done; empty: it was so already.
    pub done: Vec<String>,
}

/// What a function had before a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Had {
    /// Its driver.
    pub driver: Option<String>,
    /// Its `driver_override`.
    pub overridden: Option<String>,
}

impl Had {
    /// What it has now.
    pub(crate) fn look(host: &Host, address: PciAddress) -> Self {
        Self { driver: host.sysfs.link(&attribute(address, "driver")), overridden: overridden(host, address) }
    }
}

fn overridden(host: &Host, address: PciAddress) -> Option<String> {
    host.sysfs.text(&attribute(address, "driver_override")).filter(|text| text != NONE)
}

/// What is remembered of functions: the driver that each had at first, or that it had none.
pub(crate) trait Memory {
    /// Of one; nothing where nothing is remembered.
    fn original(&self, function: PciAddress) -> Result<Option<Option<String>>, Error>;
    /// Remembers, or forgets with `None`; returns when that is durable.
    fn remember(&self, function: PciAddress, driver: Option<Option<String>>) -> Result<(), Error>;
}

/// Refuses when somebody would lose the function.
fn free(host: &Host, name: &str, function: &Function, disturb: bool, owner: Option<String>) -> Result<(), Error> {
    let busy = |message: String| Err(Error::new(ErrorKind::Busy, message).about(name));
    if let Some(owner) = owner {
        return busy(format!(
            "{name}: ringspan's {owner} has it: remove that first (ringspan port remove {owner}, or ringspan nic remove {owner} where it is a NIC)"
        ));
    }
    if let Some(process) = host.vfio_user(function) {
        return busy(format!(
            "{name}: process {process} has it open by vfio or uio: stop that guest first, the kernel would wait for it"
        ));
    }
    if !disturb {
        let vfs = function.vf_counts.map_or(0, |(_, now)| now);
        if vfs > 0 {
            return busy(format!(
                "{name} has {vfs} virtual functions, which would lose their network: take them away (ringspan vf enable {name} 0), or say --disturb"
            ));
        }
        if let Some(how) = host.busy_interface(function) {
            return busy(format!("{name}: {how}, and would be gone: set it down, or say --disturb"));
        }
    }
    Ok(())
}

/// Gives a function to `driver`, or without one back to the driver that it had at first (to the one that the kernel chooses, where nothing is
/// remembered). `owner` knows the port of ringspan's that has a function.
pub(crate) fn bind(
    host: &Host,
    memory: &(impl Memory + ?Sized),
    name: &str,
    driver: Option<&str>,
    disturb: bool,
    owner: impl Fn(PciAddress) -> Option<String>,
) -> Result<Bound, Error> {
    let address = find(host, name)?;
    let Some(function) = Function::read(&host.sysfs, address) else {
        let message = format!("{name}: {address} is no function of a NIC: see ringspan device list");
        return Err(Error::new(ErrorKind::NotFound, message).about(name));
    };
    let before = function.driver.clone();
    let overridden = overridden(host, address);
    let remembered = memory.original(address)?;
    let same = match driver {
        Some(driver) => before.as_deref() == Some(driver) && overridden.as_deref().is_none_or(|now| now == driver),
        None => remembered.is_none() && overridden.is_none() && before.is_some(),
    };
    if same {
        let (driver, original) = (before.clone(), remembered.flatten());
        return Ok(Bound { address, before, driver, original, done: vec![] });
    }
    let wanted = match driver {
        Some(driver) => Some(Some(driver.to_owned())),
        None => remembered.clone(),
    };
    if let Some(Some(driver)) = &wanted {
        known(host, name, &function, driver)?;
    }
    free(host, name, &function, disturb, owner(address))?;
    let mut steps = Steps::default();
    let mut original = remembered.clone().flatten();
    if driver.is_some() && remembered.is_none() {
        // Before anything is changed: a daemon that is killed in between can still restore.
        memory.remember(address, Some(before.clone()))?;
        original = before.clone();
        let what = format!("{} is remembered as its original driver", said(before.as_deref()));
        let had = before.clone();
        steps.did(what, move || {
            // Undone last: where it could not be given back, what it had is still to be restored.
            if host.sysfs.link(&attribute(address, "driver")) != had {
                let message = format!("{} does not have it again", said(had.as_deref()));
                return Err(Error::new(ErrorKind::Failed, message).about(name));
            }
            memory.remember(address, None)
        });
    }
    let place = Place { host, name, address };
    let probe = wanted != Some(None);
    let let_go = match place.take(overridden.as_deref(), driver, probe) {
        Ok(let_go) => let_go,
        Err(error) => return Err(steps.fail(error)),
    };
    let (old, had) = (overridden, before.clone());
    let what = match (&before, let_go) {
        (Some(driver), true) => format!("{driver} has let go of {address}"),
        _ => format!("driver_override of {address} is {}", driver.unwrap_or("none")),
    };
    steps.did(what, move || place.give_back(old.as_deref(), had.as_deref()));
    let now = match if probe { place.probe() } else { Ok(place.driver()) } {
        Ok(now) => now,
        Err(error) => return Err(steps.fail(error)),
    };
    if let Some(wanted) = wanted.filter(|wanted| *wanted != now) {
        let message = format!(
            "{name} should be bound to {}, and {} has it: the kernel's log says why",
            said(wanted.as_deref()),
            said(now.as_deref())
        );
        return Err(steps.fail(Error::new(ErrorKind::Failed, message).about(name)));
    }
    steps.note(format!("{} has {address}", said(now.as_deref())));
    if driver.is_none() {
        memory.remember(address, None)?;
        original = None;
    }
    Ok(Bound { address, before, driver: now, original, done: steps.finish() })
}

/// Gives a function back to what it `had` before a change that an earlier daemon was killed amid, and that cannot be finished. One that another driver has
/// by now is left to that.
pub(crate) fn put_back(
    host: &Host,
    memory: &(impl Memory + ?Sized),
    address: PciAddress,
    had: &Had,
) -> Result<(), Error> {
    let now = Had::look(host, address);
    if Function::read(&host.sysfs, address).is_none() || now.driver.is_some() && now.driver != had.driver {
        return Ok(());
    }
    let name = address.to_string();
    if now != *had {
        Place { host, name: &name, address }.give_back(had.overridden.as_deref(), had.driver.as_deref())?;
    }
    if memory.original(address)? == Some(had.driver.clone()) {
        memory.remember(address, None)?;
    }
    Ok(())
}

/// Whether the kernel has a driver, and whether it would have the function.
fn known(host: &Host, name: &str, function: &Function, driver: &str) -> Result<(), Error> {
    let named = !driver.is_empty() && !driver.starts_with('.') && !driver.contains(['/', '\0', '\n']);
    if !named || !host.sysfs.has(&format!("bus/pci/drivers/{driver}")) {
        let message = format!("{name}: the kernel has no PCI driver {driver:?}: load its module (modprobe {driver})");
        return Err(Error::new(ErrorKind::NotFound, message).about(name));
    }
    if driver == "vfio-pci" && function.iommu_group.is_none() {
        let message = format!(
            "{name} is in no IOMMU group, and vfio-pci would refuse it: switch the IOMMU on (BIOS; intel_iommu=on or amd_iommu=on on the kernel's command line)"
        );
        return Err(Error::new(ErrorKind::Unsupported, message).about(name));
    }
    Ok(())
}

/// A function on its way from driver to driver.
#[derive(Clone, Copy)]
struct Place<'a> {
    host: &'a Host,
    name: &'a str,
    address: PciAddress,
}

impl Place<'_> {
    fn driver(&self) -> Option<String> {
        self.host.sysfs.link(&attribute(self.address, "driver"))
    }

    fn write(&self, attribute: &str, text: &str, what: &str) -> Result<(), Error> {
        let written = self.host.sysfs.write(attribute, text);
        written.map_err(|error| Error::io(format!("{}: {what}", self.name), &error).about(self.name))
    }

    fn set_override(&self, to: Option<&str>) -> Result<(), Error> {
        // An empty line takes the override away.
        let line = format!("{}\n", to.unwrap_or_default());
        self.write(&attribute(self.address, "driver_override"), &line, "driver_override")
    }

    fn unbind(&self, driver: &str) -> Result<(), Error> {
        let at = format!("bus/pci/drivers/{driver}/unbind");
        self.write(&at, &self.address.to_string(), &format!("{driver} does not let go of it"))
    }

    /// Takes the function from the driver that has it, unless that is the one it is to go `to`. Returns whether it did; when the driver does
    /// not let go, the `old` override is there again.
    fn take(&self, old: Option<&str>, to: Option<&str>, probe: bool) -> Result<bool, Error> {
        self.set_override(to)?;
        let Some(driver) = self.driver().filter(|now| !probe || to.is_none_or(|to| to != now)) else {
            return Ok(false);
        };
        if let Err(error) = self.unbind(&driver) {
            return Err(match self.set_override(old) {
                Ok(()) => error,
                Err(why) => {
                    let message = format!("{}; left: its driver_override ({})", error.message, why.message);
                    Error { message, ..error }
                }
            });
        }
        Ok(true)
    }

    /// Has the kernel find a driver: the one that `driver_override` names, and no other, or the one that it chooses. Returns who has it then.
    fn probe(&self) -> Result<Option<String>, Error> {
        self.write("bus/pci/drivers_probe", &self.address.to_string(), "no driver takes it")?;
        Ok(wait(LIMIT, || self.driver()))
    }

    /// Gives the function back to the driver that `had` it, by name: another one might match it too. An error when somebody else has it afterwards.
    fn give_back(&self, old: Option<&str>, had: Option<&str>) -> Result<(), Error> {
        self.set_override(old)?;
        if self.driver().as_deref() == had {
            return Ok(());
        }
        if let Some(now) = self.driver() {
            self.unbind(&now)?;
        }
        if let Some(had) = had {
            let at = format!("bus/pci/drivers/{had}/bind");
            self.write(&at, &self.address.to_string(), &format!("{had} does not take it back"))?;
            // A driver may take it on a thread of its own.
            let _ = wait(LIMIT, || self.driver());
        }
        match self.driver() {
            now if now.as_deref() == had => Ok(()),
            now => {
                let message = format!("{}: {} has it, not {}", self.name, said(now.as_deref()), said(had));
                Err(Error::new(ErrorKind::Failed, message).about(self.name))
            }
        }
    }
}

fn said(driver: Option<&str>) -> &str {
    driver.unwrap_or("no driver")
}
