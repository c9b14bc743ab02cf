//! What the kernel is asked by netlink, and told.
//!
//! [`Kernel`] is all of it that the rest of [`crate::host`] sees: [`Real`] talks to this machine's kernel, and tests put one in its place
//! that refuses as drivers do. Requests are about one link or one device. The one dump is that of devlink's ports, which has no VF lists in it:
//! a dump of links with `RTEXT_FILTER_VF` fails as a whole ("Buffer too small for object") when one PF has too many VFs.

mod bond;
mod devlink;
mod driver;
mod error;
mod ethtool;
mod guid;
mod link;
mod request;
mod socket;
mod vdpa;
mod watch;

pub(crate) use bond::{BondMode, BondOptions, HashPolicy, LacpRate, LinkChange};
pub(crate) use devlink::{
    DevlinkName, DevlinkPort, EncapMode, EswitchChange, EswitchMode, EswitchState, Flavour, InlineMode,
};
pub(crate) use driver::DriverInfo;
pub(crate) use error::NetlinkError;
pub(crate) use guid::Guid;
pub(crate) use link::{VfChange, VfCounters, VfLinkState, VfSettings};
pub(crate) use vdpa::{VdpaConfig, VdpaDevice, VdpaManagement, VdpaNew, VdpaParent};
pub(crate) use watch::LinkWatch;

use crate::ovs::qdisc;

/// What the kernel can be asked and told. An interface is given by its name and its index, which belong together.
pub(crate) trait Kernel: Send + Sync {
    /// The index of an interface of this network namespace; nothing: it has none of this name.
    fn index(&self, interface: &str) -> Option<u32>;
    /// The settings of a PF's VFs, by their numbers, for this PF alone.
    fn vfs(&self, index: u32) -> Result<Vec<VfSettings>, NetlinkError>;
    /// What a PF's driver counts of one of its VFs; nothing: it counts none, or nothing was counted yet.
    fn vf_counters(&self, index: u32, vf: u32) -> Result<Option<VfCounters>, NetlinkError>;
    /// Queueing disciplines of this network namespace that somebody put there: interface and kind.
    fn qdiscs(&self) -> Result<Vec<(String, String)>, NetlinkError>;
    /// Changes one setting of one VF.
    fn set_vf(&self, index: u32, vf: u32, change: VfChange) -> Result<(), NetlinkError>;
    /// The eswitch of a device.
    fn eswitch(&self, device: &DevlinkName) -> Result<EswitchState, NetlinkError>;
    /// Changes one thing of a device's eswitch.
    fn set_eswitch(&self, device: &DevlinkName, change: EswitchChange) -> Result<(), NetlinkError>;
    /// The ports of all devices.
    fn ports(&self) -> Result<Vec<DevlinkPort>, NetlinkError>;
    /// The steering mode of a device (`flow_steering_mode`, a parameter of mlx5's at run time).
    fn steering(&self, device: &DevlinkName) -> Result<String, NetlinkError>;
    /// Sets the steering mode.
    fn set_steering(&self, device: &DevlinkName, mode: &str) -> Result<(), NetlinkError>;
    /// Whether an interface offloads TC flows (`hw-tc-offload`).
    fn tc_offload(&self, index: u32) -> Result<bool, NetlinkError>;
    /// Sets whether it does.
    fn set_tc_offload(&self, index: u32, on: bool) -> Result<(), NetlinkError>;
    /// What an interface's driver says of itself.
    fn driver(&self, interface: &str) -> Result<DriverInfo, NetlinkError>;
    /// Changes links: bonds and their members.
    fn change_link(&self, change: &LinkChange<'_>) -> Result<(), NetlinkError>;
    /// Whether an interface has an IP address that somebody gave it: any but an IPv6 link-local one, which comes by itself.
    fn has_address(&self, interface: &str) -> bool;
    /// What vDPA devices can be made on.
    fn vdpa_management(&self) -> Result<Vec<VdpaManagement>, NetlinkError>;
    /// The vDPA devices.
    fn vdpa_devices(&self) -> Result<Vec<VdpaDevice>, NetlinkError>;
    /// What a vDPA device shows its driver.
    fn vdpa_config(&self, name: &str) -> Result<VdpaConfig, NetlinkError>;
    /// Makes a vDPA device.
    fn add_vdpa(&self, new: &VdpaNew) -> Result<(), NetlinkError>;
    /// Takes a vDPA device away. The kernel waits, and answers nobody else about vDPA, while a process has its node open.
    fn remove_vdpa(&self, name: &str) -> Result<(), NetlinkError>;
    /// What the driver of a vDPA device counts of one of its queues.
    fn vdpa_queue(&self, name: &str, index: u32) -> Result<Vec<(String, u64)>, NetlinkError>;
}

/// The kernel of this machine. Each question has a socket of its own.
pub(crate) struct Real;

impl Kernel for Real {
    fn index(&self, interface: &str) -> Option<u32> {
        nix::net::if_::if_nametoindex(interface).ok()
    }

    fn vfs(&self, index: u32) -> Result<Vec<VfSettings>, NetlinkError> {
        link::vfs(index)
    }

    fn vf_counters(&self, index: u32, vf: u32) -> Result<Option<VfCounters>, NetlinkError> {
        link::vf_counters(index, vf)
    }

    fn qdiscs(&self) -> Result<Vec<(String, String)>, NetlinkError> {
        let all = qdisc::list().map_err(|source| NetlinkError::Socket { doing: "listing qdiscs", source })?;
        let set = all.into_iter().filter(|one| one.shapes() || one.is_ingress());
        Ok(set.map(|one| (one.interface, one.kind)).collect())
    }

    fn set_vf(&self, index: u32, vf: u32, change: VfChange) -> Result<(), NetlinkError> {
        link::set_vf(index, vf, change)
    }

    fn eswitch(&self, device: &DevlinkName) -> Result<EswitchState, NetlinkError> {
        devlink::eswitch(device)
    }

    fn set_eswitch(&self, device: &DevlinkName, change: EswitchChange) -> Result<(), NetlinkError> {
        devlink::set_eswitch(device, change)
    }

    fn ports(&self) -> Result<Vec<DevlinkPort>, NetlinkError> {
        devlink::ports()
    }

    fn steering(&self, device: &DevlinkName) -> Result<String, NetlinkError> {
        devlink::steering(device)
    }

    fn set_steering(&self, device: &DevlinkName, mode: &str) -> Result<(), NetlinkError> {
        devlink::set_steering(device, mode)
    }

    fn tc_offload(&self, index: u32) -> Result<bool, NetlinkError> {
        ethtool::tc_offload(index)
    }

    fn set_tc_offload(&self, index: u32, on: bool) -> Result<(), NetlinkError> {
        ethtool::set_tc_offload(index, on)
    }

    fn driver(&self, interface: &str) -> Result<DriverInfo, NetlinkError> {
        driver::driver(interface)
    }

    fn change_link(&self, change: &LinkChange<'_>) -> Result<(), NetlinkError> {
        bond::change(change)
    }

    fn has_address(&self, interface: &str) -> bool {
        let given = |one: &nix::sys::socket::SockaddrStorage| {
            one.as_sockaddr_in().is_some() || one.as_sockaddr_in6().is_some_and(|v6| !v6.ip().is_unicast_link_local())
        };
        nix::ifaddrs::getifaddrs().is_ok_and(|mut all| {
            all.any(|one| one.interface_name == interface && one.address.as_ref().is_some_and(given))
        })
    }

    fn vdpa_management(&self) -> Result<Vec<VdpaManagement>, NetlinkError> {
        vdpa::management()
    }

    fn vdpa_devices(&self) -> Result<Vec<VdpaDevice>, NetlinkError> {
        vdpa::devices()
    }

    fn vdpa_config(&self, name: &str) -> Result<VdpaConfig, NetlinkError> {
        vdpa::config(name)
    }

    fn add_vdpa(&self, new: &VdpaNew) -> Result<(), NetlinkError> {
        vdpa::add(new)
    }

    fn remove_vdpa(&self, name: &str) -> Result<(), NetlinkError> {
        vdpa::remove(name)
    }

    fn vdpa_queue(&self, name: &str, index: u32) -> Result<Vec<(String, u64)>, NetlinkError> {
        vdpa::queue(name, index)
    }
}
