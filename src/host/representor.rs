//! Which interface stands for which function of a NIC.

use ringspan_protocol::PciAddress;

use super::netlink::{DevlinkName, DevlinkPort, Flavour};
use super::pci::{Function, attribute};
use super::sysfs::Sysfs;

/// What a driver calls the port of an interface (`phys_port_name`; net/devlink/port.c, `__devlink_port_phys_port_name_get`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PortName {
    /// `p0`: the wire.
    Uplink(u32),
    /// `pf0`: a PF of a host that a controller serves.
    Pf(u16),
    /// `pf0vf3`, `c1pf0vf3`: a VF.
    Vf {
        /// The controller; 0: this host's own.
        controller: u32,
        /// Its PF.
        pf: u16,
        /// Its number.
        vf: u16,
    },
    /// `pf0sf88`: a subfunction.
    Sf,
    /// `3`: a VF, as old kernels have it.
    Number(u16),
}

impl PortName {
    /// Reads a name. None: a form that is not known.
    pub(crate) fn read(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse() {
            return Some(Self::Number(number));
        }
        // Ports of a split wire are `p0s1`.
        if let Some(number) = text.strip_prefix('p').and_then(|rest| rest.split('s').next()?.parse().ok()) {
            return Some(Self::Uplink(number));
        }
        let (controller, rest) = match text.strip_prefix('c') {
            Some(rest) => {
                let at = rest.find("pf")?;
                (rest[..at].parse().ok()?, &rest[at..])
            }
            None => (0, text),
        };
        let rest = rest.strip_prefix("pf")?;
        if let Some((pf, vf)) = rest.split_once("vf") {
            return Some(Self::Vf { controller, pf: pf.parse().ok()?, vf: vf.parse().ok()? });
        }
        if let Some((pf, sf)) = rest.split_once("sf") {
            return (pf.parse::<u16>().is_ok() && sf.parse::<u32>().is_ok()).then_some(Self::Sf);
        }
        rest.parse().ok().map(Self::Pf)
    }
}

/// The representors of a NIC's functions.
pub(crate) struct Representors<'a> {
    sysfs: &'a Sysfs,
    /// devlink's ports; empty where the kernel has no devlink.
    ports: &'a [DevlinkPort],
}

impl<'a> Representors<'a> {
    /// With these ports of devlink's.
    pub(crate) fn new(sysfs: &'a Sysfs, ports: &'a [DevlinkPort]) -> Self {
        Self { sysfs, ports }
    }

    fn port_name(&self, interface: &str) -> Option<PortName> {
        PortName::read(&self.sysfs.text(&format!("class/net/{interface}/phys_port_name"))?)
    }

    /// The identity of the switch that an interface is on.
    pub(crate) fn switch_id(&self, interface: &str) -> Option<String> {
        self.sysfs.text(&format!("class/net/{interface}/phys_switch_id"))
    }

    /// A PF's own interface: in switchdev mode the uplink's, among the representors that lie in the same folder.
    pub(crate) fn own(&self, function: &Function) -> Option<String> {
        let mut interfaces = function.interfaces(self.sysfs);
        let own = |interface: &String| match self.port_name(interface) {
            Some(PortName::Uplink(_)) => 0,
            None => 1,
            Some(PortName::Pf(_)) => 2,
            Some(_) => 3,
        };
        interfaces.sort_by_key(own);
        interfaces.into_iter().find(|interface| own(interface) < 3)
    }

    /// The representor of a PF's VF: by devlink's ports, else by the names of ports in sysfs.
    pub(crate) fn of_vf(&self, pf: &Function, vf: u16) -> Option<String> {
        self.by_devlink(pf.address, vf).or_else(|| self.by_sysfs(pf, vf))
    }

    fn by_devlink(&self, pf: PciAddress, vf: u16) -> Option<String> {
        let device = DevlinkName::from(pf);
        let port = self.ports.iter().find(|port| {
            let stands_for = matches!(port.flavour, Flavour::Vf { controller: 0, vf: number, .. } if number == vf);
            port.device == device && stands_for
        })?;
        port.interface.clone()
    }

    /// Both PFs of a NIC have one switch when they are bonded, so its identity is not enough: the interface's own device says whose it
    /// is, or else the number of the PF in the port's name.
    fn by_sysfs(&self, pf: &Function, vf: u16) -> Option<String> {
        let uplink = self.own(pf)?;
        let switch = self.switch_id(&uplink)?;
        let number = match self.port_name(&uplink) {
            Some(PortName::Uplink(number)) => number as u16,
            _ => u16::from(pf.address.function),
        };
        let address = pf.address.to_string();
        let stands_for = |interface: &String| {
            let (matches, exactly) = match self.port_name(interface) {
                Some(PortName::Vf { controller: 0, pf, vf: named }) => (named == vf, pf == number),
                Some(PortName::Number(named)) => (named == vf, false),
                _ => (false, false),
            };
            let parent = self.sysfs.link(&format!("class/net/{interface}/device"));
            let ours = match parent {
                Some(parent) => parent == address,
                None => exactly,
            };
            matches && ours && self.switch_id(interface).as_ref() == Some(&switch)
        };
        self.sysfs.names("class/net").into_iter().find(stands_for)
    }
}

/// The index of an interface, by which netlink knows it.
pub(crate) fn index(sysfs: &Sysfs, interface: &str) -> Option<u32> {
    sysfs.number(&format!("class/net/{interface}/ifindex"))
}

/// The PCI function that an interface belongs to. Between a virtio card and its interface is a virtio device.
pub(crate) fn function_of(sysfs: &Sysfs, interface: &str) -> Option<PciAddress> {
    let device = sysfs.link(&format!("class/net/{interface}/device"))?;
    if let Ok(address) = device.parse() {
        return sysfs.has(&attribute(address, "")).then_some(address);
    }
    let has_it = |address: &PciAddress| sysfs.has(&attribute(*address, &format!("{device}/net/{interface}")));
    sysfs.names("bus/pci/devices").into_iter().filter_map(|name| name.parse().ok()).find(has_it)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_ports_name_is_known_and_no_other() {
        let vf = |controller, pf, vf| Some(PortName::Vf { controller, pf, vf });
        for (text, wanted) in [
            ("p0", Some(PortName::Uplink(0))),
            ("p1s3", Some(PortName::Uplink(1))),
            ("pf0", Some(PortName::Pf(0))),
            ("pf1vf12", vf(0, 1, 12)),
            ("c1pf0vf3", vf(1, 0, 3)),
            ("pf0sf88", Some(PortName::Sf)),
            ("7", Some(PortName::Number(7))),
            ("", None),
            ("eth0", None),
            ("pfvf3", None),
            ("pf0vf", None),
            ("cpf0vf1", None),
            ("p", None),
            ("pf0vf70000", None),
        ] {
            assert_eq!(PortName::read(text), wanted, "{text:?}");
        }
    }
}
