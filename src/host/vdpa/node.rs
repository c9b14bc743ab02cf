//! A vDPA device in sysfs: its driver, its node, and who uses it (drivers/vdpa/vdpa.c; drivers/vhost/vdpa.c).

use std::time::Duration;

use super::super::Host;
use super::super::steps::{Steps, wait};
use super::{DEVICES, VHOST};
use crate::error::{Error, ErrorKind};

/// Longest wait for a driver, or for its node.
const LIMIT: Duration = Duration::from_secs(2);
const NONE: &str = "(null)";
/// IFF_UP of linux/if.h.
const UP: u32 = 1;

/// A device.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    host: &'a Host,
    name: &'a str,
}

impl<'a> Place<'a> {
    pub(super) fn new(host: &'a Host, name: &'a str) -> Self {
        Self { host, name }
    }

    fn at(&self, attribute: &str) -> String {
        format!("{DEVICES}/{}/{attribute}", self.name)
    }

    pub(super) fn is_there(&self) -> bool {
        self.host.sysfs.has(&self.at(""))
    }

    pub(super) fn driver(&self) -> Option<String> {
        self.host.sysfs.link(&self.at("driver"))
    }

    /// The node of `vhost_vdpa`, whose number is no part of the device's name.
    pub(super) fn node(&self) -> Option<String> {
        let names = self.host.sysfs.names(&self.at("")).into_iter();
        names.into_iter().find(|name| name.starts_with("vhost-vdpa-")).map(|name| format!("/dev/{name}"))
    }

    /// The interface of `virtio_vdpa`, one folder further down.
    pub(super) fn interface(&self) -> Option<String> {
        let mut below = self.host.sysfs.names(&self.at("")).into_iter().filter(|name| name.starts_with("virtio"));
        below.find_map(|name| self.host.sysfs.names(&self.at(&format!("{name}/net"))).into_iter().next())
    }

    /// The process that has its node open. The kernel lets one.
    pub(super) fn process(&self) -> Option<u32> {
        self.host.opened(&[self.node()?])
    }

    /// Refuses while a process has it: to take it away, or its driver, waits in the kernel for that process, with all of the bus (vhost_vdpa_remove).
    pub(super) fn unused(&self) -> Result<(), Error> {
        let Some(process) = self.process() else { return Ok(()) };
        let message = format!(
            "{}: process {process} has {} open: stop that first, the kernel would wait for it",
            self.name,
            self.node().unwrap_or_default()
        );
        Err(Error { errno: Some(libc::EBUSY), ..Error::new(ErrorKind::Busy, message) }.about(self.name))
    }

    /// Refuses when an interface would be gone that is up.
    pub(super) fn quiet(&self, disturb: bool) -> Result<(), Error> {
        let Some(interface) = self.interface().filter(|_| !disturb) else { return Ok(()) };
        let flags = self.host.sysfs.hex(&format!("class/net/{interface}/flags"));
        if flags.is_none_or(|flags| flags & UP == 0) {
            return Ok(());
        }
        let message =
            format!("{}: its interface {interface} is up, and would be gone: set it down, or say --disturb", self.name);
        Err(Error::new(ErrorKind::Busy, message).about(self.name))
    }

    fn write(&self, attribute: &str, text: &str, what: &str) -> Result<(), Error> {
        let written = self.host.sysfs.write(attribute, text);
        written.map_err(|error| Error::io(format!("{}: {what}", self.name), &error).about(self.name))
    }

    /// Kernels before 5.17 have none; there the driver is asked by its name alone.
    fn set_override(&self, to: Option<&str>) -> Result<(), Error> {
        let attribute = self.at("driver_override");
        if !self.host.sysfs.has(&attribute) {
            return Ok(());
        }
        self.write(&attribute, &format!("{}\n", to.unwrap_or_default()), "driver_override")
    }

    fn unbind(&self, driver: &str) -> Result<(), Error> {
        let at = format!("bus/vdpa/drivers/{driver}/unbind");
        self.write(&at, self.name, &format!("{driver} does not let go of it"))
    }

    fn bind(&self, driver: &str) -> Result<(), Error> {
        let at = format!("bus/vdpa/drivers/{driver}/bind");
        self.write(&at, self.name, &format!("{driver} does not take it"))
    }

    /// Gives it to `vhost_vdpa`, and returns its node.
    pub(super) fn to_vhost(self, steps: &mut Steps<'a>) -> Result<String, Error> {
        let had = self.driver();
        if had.as_deref() != Some(VHOST) {
            needs_vhost(self.host, self.name)?;
            let old = self.host.sysfs.text(&self.at("driver_override")).filter(|text| text != NONE);
            self.set_override(Some(VHOST))?;
            let before = had.clone();
            steps.did(format!("driver_override of {} is {VHOST}", self.name), move || {
                self.set_override(old.as_deref())?;
                self.give_back(before.as_deref())
            });
            if let Some(driver) = &had {
                self.unbind(driver)?;
            }
            self.bind(VHOST)?;
            steps.note(format!("{VHOST} has {}", self.name));
        }
        wait(LIMIT, || self.node()).ok_or_else(|| {
            let driver = self.driver().unwrap_or_else(|| "no driver".into());
            let message = format!("{}: {driver} has it, and it has no node: the kernel's log says why", self.name);
            Error::new(ErrorKind::Failed, message).about(self.name)
        })
    }

    /// Gives it back to the driver that it had.
    pub(super) fn give_back(&self, driver: Option<&str>) -> Result<(), Error> {
        let now = self.driver();
        if now.as_deref() == driver {
            return Ok(());
        }
        if let Some(now) = now {
            self.unbind(&now)?;
        }
        driver.map_or(Ok(()), |driver| self.bind(driver))
    }

    /// The same, and no driver is preferred any more.
    pub(super) fn restore(&self, driver: Option<&str>) -> Result<(), Error> {
        self.set_override(None)?;
        self.give_back(driver)
    }
}

/// Refuses where nothing would make a node.
pub(super) fn needs_vhost(host: &Host, name: &str) -> Result<(), Error> {
    if host.sysfs.has(&format!("bus/vdpa/drivers/{VHOST}")) {
        return Ok(());
    }
    let message = format!(
        "{name}: the kernel has no driver {VHOST}, so that there would be no node: load its module (modprobe {VHOST})"
    );
    Err(Error::new(ErrorKind::Unsupported, message).about(name))
}
