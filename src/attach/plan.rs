//! The steps for a guest's NIC, once its VF is chosen. Nothing is touched here; what cannot be is refused.

use ringspan_protocol::{MacAddress, NicName, NicSpec};
use std::collections::BTreeMap;

use super::choose::Candidate;
use super::record::{Before, Record, Stage, Step, Target};
use super::request::{Attach, Mode};
use crate::error::{Error, ErrorKind};
use crate::host::netlink::VfSettings;
use crate::ovs::configure::WantedPort;
use crate::ovs::view::View;

/// OVN's bridge.
const INTEGRATION: &str = "br-int";
/// Whose driver DPDK shares with the kernel (NVIDIA MLX5 Ethernet Driver guide: "bifurcated").
const MELLANOX: &str = "15b3:";

/// What the plan follows from.
pub(crate) struct Facts<'a> {
    /// The guest's address.
    pub mac: MacAddress,
    /// Open vSwitch, where it answers.
    pub view: Option<&'a View>,
    /// Software NICs.
    pub nics: &'a BTreeMap<NicName, NicSpec>,
    /// What the physical function has set for the VF.
    pub settings: Option<VfSettings>,
}

/// What is to be done to give this VF to that guest.
pub(crate) fn plan(wanted: &Attach, chosen: &Candidate, facts: &Facts<'_>) -> Result<Record, Error> {
    let port = wanted.port()?;
    let refuse = |kind, message: String| Err(Error::new(kind, format!("{port}: {message}")).about(&port));
    let (mut steps, mut driver, mut before) = (vec![], None, Before::default());
    let vlan_by_vf = chosen.representor.is_none();
    match (&chosen.target, &chosen.device) {
        (Target::Pci { .. }, Some(device)) => {
            if device.is_infiniband_nic {
                if wanted.mode == Mode::Vhost {
                    return refuse(
                        ErrorKind::Unsupported,
                        format!("{} is InfiniBand: it can only be handed over whole (mode passthrough)", chosen.target),
                    );
                }
                if wanted.vlan != 0 || wanted.max_rate != 0 || wanted.min_rate != 0 {
                    return refuse(
                        ErrorKind::Unsupported,
                        format!("{} is InfiniBand, which has no VLANs, and no rates here", chosen.target),
                    );
                }
            }
            steps.push(Step::Settings);
            before.settings = facts.settings.clone();
            let needed = match wanted.mode {
                Mode::Vhost if device.vendor_device_id.starts_with(MELLANOX) => "mlx5_core",
                Mode::Vhost | Mode::Passthrough => "vfio-pci",
            };
            if needed == "vfio-pci" && device.iommu_group.is_none() {
                return refuse(
                    ErrorKind::Unsupported,
                    format!(
                        "{} is in no IOMMU group, and vfio-pci would refuse it: switch the IOMMU on (ringspan doctor)",
                        chosen.target
                    ),
                );
            }
            if device.driver.as_deref() != Some(needed) {
                steps.push(Step::Driver);
            }
            driver = Some(needed.to_owned());
        }
        (Target::Pci { .. }, None) => {
            return refuse(ErrorKind::Failed, format!("{} is not in the inventory", chosen.target));
        }
        (Target::Soft { nic, vf }, _) => {
            if wanted.mode == Mode::Passthrough {
                return refuse(
                    ErrorKind::Unsupported,
                    format!("{} is no PCI function: only mode vhost is possible", chosen.target),
                );
            }
            if wanted.min_rate != 0 {
                return refuse(
                    ErrorKind::Unsupported,
                    "a software NIC keeps no least rate for a VF: leave min_rate out".into(),
                );
            }
            if vlan_by_vf {
                steps.push(Step::Settings);
                before.soft = facts.nics.get(nic).map(|spec| spec.vf_settings(*vf));
            }
        }
    }
    let bridge = bridge(wanted, chosen, facts)?;
    if let (Some(representor), Some(bridge)) = (&chosen.representor, &bridge) {
        let there = facts.view.and_then(|view| view.port(representor));
        if let Some((other, _)) = there.filter(|(other, _)| other.name != *bridge) {
            return refuse(
                ErrorKind::Conflict,
                format!("{representor} is on bridge {}, not {bridge}: remove it there first", other.name),
            );
        }
        before.port = facts.view.and_then(|view| WantedPort::of(view, representor));
        steps.push(Step::Bridge);
    }
    if wanted.mode == Mode::Vhost {
        steps.push(Step::Port);
    }
    Ok(Record {
        wanted: wanted.clone(),
        mac: facts.mac,
        target: chosen.target.clone(),
        stage: Stage::Attaching,
        steps,
        begun: vec![],
        before,
        representor: chosen.representor.clone(),
        bridge,
        driver,
        vlan_by_vf,
        infiniband: chosen.device.as_ref().is_some_and(|device| device.is_infiniband_nic),
        rated: (wanted.min_rate, wanted.max_rate) != (0, 0),
        problem: None,
    })
}

/// The bridge for the representor: the one that is named, OVN's, or that of the uplink.
fn bridge(wanted: &Attach, chosen: &Candidate, facts: &Facts<'_>) -> Result<Option<String>, Error> {
    let port = wanted.port()?;
    let refuse = |kind, message: String| Err(Error::new(kind, format!("{port}: {message}")).about(&port));
    let Some(representor) = &chosen.representor else {
        if wanted.bridge.is_some() || wanted.iface_id.is_some() {
            return refuse(
                ErrorKind::Unsupported,
                format!(
                    "{} has no representor that could be in a bridge: set its NIC to switchdev mode (ringspan eswitch set), or leave bridge and iface_id out",
                    chosen.target
                ),
            );
        }
        return Ok(None);
    };
    let ovn = wanted.iface_id.as_ref().map(|_| INTEGRATION.to_owned());
    let Some(bridge) = wanted.bridge.clone().or(ovn).or_else(|| chosen.bridge.clone()) else {
        if wanted.vlan == 0 && matches!(chosen.target, Target::Soft { .. }) {
            // Somebody else decides what becomes of its frames.
            return Ok(None);
        }
        return refuse(
            ErrorKind::Usage,
            format!("its NIC's uplink is in no bridge: name the bridge for {representor}"),
        );
    };
    match facts.view {
        None => refuse(
            ErrorKind::OvsDown,
            format!(
                "{representor} should be in bridge {bridge}, and Open vSwitch cannot be asked: see ringspan ovs show"
            ),
        ),
        Some(view) if view.bridge(&bridge).is_none() => {
            refuse(ErrorKind::NotFound, format!("there is no bridge {bridge} for {representor}: see ringspan ovs show"))
        }
        Some(_) => Ok(Some(bridge)),
    }
}
