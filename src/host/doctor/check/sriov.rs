//! Whether cards can have VFs, and what they need of the bridges above.

use super::Found;
use crate::host::doctor::host::{Host, Unseen};
use crate::host::doctor::nic::{MELLANOX, Nic};

pub(super) fn capability(host: &Host) -> Vec<Found> {
    if let Err(why) = host.names("/sys/bus/pci/devices") {
        return vec![Found::unseen("/sys/bus/pci/devices", &why)];
    }
    let found: Vec<Found> = host.physical().map(|nic| card(host, nic)).collect();
    match found.is_empty() {
        true => vec![Found::warn("there is no network card on the PCI bus: software NICs only")],
        false => found,
    }
}

fn card(host: &Host, nic: &Nic) -> Found {
    let found = match nic.has_sriov() {
        Some(true) => {
            let total = nic.total_vfs.or(nic.capabilities.sriov.map(|sriov| sriov.total.into()));
            match total {
                Some(0) => Found::fail("it has the SR-IOV capability, and no VF: its firmware allows none").remedy(firmware(host, nic)),
                Some(total) => Found::pass(format!("SR-IOV: {} of {total} VFs enabled", nic.vfs)),
                None => Found::pass("it has the SR-IOV capability"),
            }
        }
        Some(false) if nic.vendor == MELLANOX => {
            Found::fail("it has no SR-IOV capability: its firmware has SRIOV_EN off, or the slot's SR-IOV is off in the firmware's set-up")
                .remedy(firmware(host, nic))
        }
        Some(false) => Found::warn("it has no SR-IOV capability: it can be an uplink, and cannot have VFs").remedy([
            "# if its data sheet says otherwise: in the firmware's set-up, enable SR-IOV for the slot",
        ]),
        None => Found::unseen("whether it has the SR-IOV capability", &Unseen::Denied),
    };
    found.about(nic.name()).evidence(evidence(nic))
}

fn evidence(nic: &Nic) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(total) = nic.total_vfs {
        lines.push(format!("{}/sriov_totalvfs: {total}", nic.folder()));
    }
    match (&nic.capabilities.sriov, nic.capabilities.complete) {
        (Some(sriov), _) => lines.push(format!("config space: capability 0x10, {} VFs in all", sriov.total)),
        (None, true) => lines.push("config space: no capability 0x10".into()),
        (None, false) => lines.push("config space: only its beginning is shown".into()),
    }
    if let Some(listed) = &nic.listed {
        let word = match (listed.sriov, listed.complete) {
            (true, _) => "(SR-IOV)",
            (false, true) => "no (SR-IOV)",
            (false, false) => "<access denied>",
        };
        lines.push(format!("lspci -v: {word}"));
    }
    lines
}

fn firmware(host: &Host, nic: &Nic) -> Vec<String> {
    if nic.vendor != MELLANOX {
        return vec!["# in the firmware's set-up, enable SR-IOV for the slot and the card".into()];
    }
    vec![
        host.install("mstflint", "mstflint"),
        format!("mstconfig -y -d {} set SRIOV_EN=1 NUM_OF_VFS=8", nic.address),
        "reboot".into(),
    ]
}

/// Functions of one bus number without ARI: eight, and the PF is one of them.
const WITHOUT_ARI: u64 = 7;

pub(super) fn ari(host: &Host) -> Vec<Found> {
    let mut found = Vec::new();
    for nic in host.physical().filter(|nic| nic.total_vfs.is_some_and(|total| total > 0)) {
        let total = nic.total_vfs.unwrap_or(0);
        let one = if !nic.capabilities.complete {
            Found::unseen("ARI", &Unseen::Denied)
        } else if total <= WITHOUT_ARI {
            Found::pass(format!("{total} VFs do without ARI"))
        } else if !nic.capabilities.ari {
            let name = nic.interfaces.first().unwrap_or(&nic.address);
            Found::warn(format!("it has no ARI, and {total} VFs: they need bus numbers of their own"))
                .remedy([format!("# where the bridge has no more bus numbers, seven do without: ringspan vf enable {name} {WITHOUT_ARI}")])
        } else if nic.capabilities.sriov.is_some_and(|sriov| !sriov.ari_hierarchy) {
            Found::warn(format!(
                "the bridge above it does not pass ARI on, and it has {total} VFs: they need bus numbers of their own"
            ))
            .remedy(["# in the firmware's set-up, enable PCIe ARI support"])
        } else {
            Found::pass("the card and the bridge above it have ARI")
        };
        let shown = nic.capabilities.sriov.map(|sriov| {
            let place = if sriov.ari_hierarchy { "set" } else { "not set" };
            format!(
                "config space: ARI Capable Hierarchy {place}, first VF at +{}, stride {}",
                sriov.first_offset, sriov.stride
            )
        });
        found.push(one.about(nic.name()).evidence(shown));
    }
    if found.is_empty() { vec![Found::unknown("there is no card that can have VFs")] } else { found }
}
