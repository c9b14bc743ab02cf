//! What the plan needs to know of the host.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::host::doctor::Host;

/// Interfaces of the host, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Inventory {
    pub interfaces: BTreeMap<String, Interface>,
    /// Addresses of each interface, where they could be asked.
    pub addresses: Option<BTreeMap<String, Vec<IpAddr>>>,
}

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    /// The bond's members, where it is one.
    pub members: Option<Vec<String>>,
    /// How the bond uses its members, where it is one.
    pub mode: String,
    /// Whether the NIC has made one switch of the bond's members, where they are of one.
    pub lag: Lag,
    pub infiniband: bool,
    /// The function behind it; absent: it is no physical card.
    pub card: Option<Card>,
}

/// Whether VF LAG is active.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Lag {
    #[default]
    Inactive,
    Active,
    /// The driver does not tell, or nobody may look.
    Hidden,
}

/// A physical function.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Card {
    pub address: String,
    pub vendor: u16,
    pub device: u16,
    pub driver: String,
    /// VFs that it can have; absent: no SR-IOV.
    pub total_vfs: Option<u32>,
    pub vfs: u32,
    /// VFs bound to vfio-pci without an override: by the agent's new_id.
    pub taken_by_agent: u32,
    /// Whether VFs have representors (switchdev mode).
    pub switchdev: bool,
    /// Whether it is elsewhere than below /sys/devices/pci0000:, where alone the agent looks.
    pub hidden_from_agent: bool,
}

/// Network devices of InfiniBand (include/uapi/linux/if_arp.h, ARPHRD_INFINIBAND).
const INFINIBAND: u64 = 32;

impl Inventory {
    /// What the host has, by sysfs.
    pub(crate) fn read(host: &Host, addresses: Option<BTreeMap<String, Vec<IpAddr>>>) -> Self {
        let names = host.names("/sys/class/net").unwrap_or_default();
        let interfaces = names.into_iter().map(|name| {
            let interface = interface(host, &name);
            (name, interface)
        });
        Self { interfaces: interfaces.collect(), addresses }
    }

    /// Addresses of an interface; nothing: nobody could be asked.
    pub(crate) fn addresses_of(&self, name: &str) -> Option<&[IpAddr]> {
        Some(self.addresses.as_ref()?.get(name).map_or(&[], Vec::as_slice))
    }
}

/// Addresses of this machine's interfaces.
pub(crate) fn addresses() -> Option<BTreeMap<String, Vec<IpAddr>>> {
    let mut found: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for one in nix::ifaddrs::getifaddrs().ok()? {
        let Some(address) = one.address else { continue };
        let address = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(four), _) => IpAddr::from(four.ip()),
            (None, Some(six)) => IpAddr::from(six.ip()),
            (None, None) => continue,
        };
        found.entry(one.interface_name).or_default().push(address);
    }
    Some(found)
}

fn interface(host: &Host, name: &str) -> Interface {
    let folder = format!("/sys/class/net/{name}");
    let members = host.text(&format!("{folder}/bonding/slaves")).ok();
    // A representor may share its card's device: it is told by its port name.
    let port = host.text(&format!("{folder}/phys_port_name")).unwrap_or_default();
    let represents = port.contains("vf") || port.contains("sf");
    let nic = host.physical().find(|nic| !represents && nic.interfaces.iter().any(|one| one == name));
    let card = nic.map(|nic| {
        let has_switch = host.text(&format!("{folder}/phys_switch_id")).is_ok_and(|id| !id.is_empty());
        // Only MLNX_OFED has the file.
        let told = host.text(&format!("{folder}/compat/devlink/mode")).ok();
        let taken = host.nics().iter().filter(|vf| {
            vf.parent.as_ref() == Some(&nic.address)
                && vf.driver.as_deref() == Some("vfio-pci")
                && host.text(&format!("{}/driver_override", vf.folder())).is_ok_and(|text| text == "(null)")
        });
        let target = host.whole_link(&nic.folder()).unwrap_or_default();
        Card {
            address: nic.address.clone(),
            vendor: nic.vendor,
            device: nic.device,
            driver: nic.driver.clone().unwrap_or_default(),
            total_vfs: nic.total_vfs.and_then(|total| total.try_into().ok()),
            vfs: nic.vfs.try_into().unwrap_or(u32::MAX),
            taken_by_agent: taken.count() as u32,
            switchdev: told.map_or(has_switch && port.starts_with('p'), |mode| mode == "switchdev"),
            hidden_from_agent: target.contains("/devices/pci") && !target.contains("/devices/pci0000:"),
        }
    });
    let members: Option<Vec<String>> = members.map(|text| text.split_whitespace().map(str::to_owned).collect());
    // mlx5/core/lag/debugfs.c
    let of = |member: &String| {
        let nic = host.physical().find(|nic| nic.interfaces.contains(member))?;
        let at = |file: &str| host.text(&format!("/sys/kernel/debug/mlx5/{}/lag/{file}", nic.address));
        let active = at("state").ok()? == "active" && at("type").is_ok_and(|kind| kind == "switchdev");
        Some(if active { Lag::Active } else { Lag::Inactive })
    };
    let mode = host.text(&format!("{folder}/bonding/mode")).unwrap_or_default();
    Interface {
        mode: mode.split_whitespace().next().unwrap_or_default().to_owned(),
        lag: members.iter().flatten().next().map_or(Lag::Inactive, |member| of(member).unwrap_or(Lag::Hidden)),
        members,
        infiniband: host.number(&format!("{folder}/type")).is_ok_and(|kind| kind == INFINIBAND),
        card,
    }
}
