//! The IOMMU: on, not in the host's own way, and telling functions apart.

use super::Found;
use crate::host::doctor::host::{Host, Unseen};

const GROUPS: &str = "/sys/kernel/iommu_groups";
/// What the firmware tells the kernel of IOMMUs by: Intel's, AMD's, Arm's.
const TABLES: [&str; 3] = ["DMAR", "IVRS", "IORT"];

/// What the command line says of it.
fn words(host: &Host) -> Vec<String> {
    let of_it = |word: &String| {
        word.split_once('=').is_some_and(|(key, _)| matches!(key, "intel_iommu" | "amd_iommu" | "iommu"))
            || word.starts_with("iommu.passthrough=")
    };
    host.command_line().unwrap_or_default().into_iter().filter(of_it).collect()
}

/// The firmware's table of IOMMUs.
fn table(host: &Host) -> Option<&'static str> {
    TABLES.into_iter().find(|name| host.exists(&format!("/sys/firmware/acpi/tables/{name}")))
}

/// The word that turns it on: for what the firmware tells of, else for this processor. An emulated host may have one maker's processor and another's IOMMU.
fn turns_on(host: &Host) -> &'static str {
    match table(host) {
        Some("DMAR") => return "intel_iommu=on",
        Some("IVRS") => return "amd_iommu=on",
        _ => {}
    }
    match host.text("/proc/cpuinfo") {
        Ok(text) if text.contains("AuthenticAMD") || text.contains("HygonGenuine") => "amd_iommu=on",
        _ => "intel_iommu=on",
    }
}

fn turned_off(word: &str) -> bool {
    matches!(word.split_once('='), Some(("intel_iommu" | "amd_iommu" | "iommu", values)) if values.split(',').any(|value| value == "off"))
}

/// The groups behind an IOMMU. vfio makes some without one, too (enable_unsafe_noiommu_mode), which have no type of a domain and this name
/// (drivers/vfio/group.c).
fn groups(host: &Host) -> Result<Vec<String>, Unseen> {
    let mut groups = host.names(GROUPS)?;
    groups.retain(|group| host.text(&format!("{GROUPS}/{group}/name")).as_deref() != Ok("vfio-noiommu"));
    Ok(groups)
}

pub(super) fn enabled(host: &Host) -> Vec<Found> {
    let groups = match groups(host) {
        Ok(groups) => groups,
        Err(why) => return vec![Found::unseen(GROUPS, &why)],
    };
    let words = words(host);
    let said = if words.is_empty() { "nothing of it".into() } else { words.join(" ") };
    let evidence = [format!("{GROUPS}: {} groups", groups.len()), format!("/proc/cmdline: {said}")];
    if !groups.is_empty() {
        return vec![Found::pass(format!("the IOMMU is on: {} groups", groups.len())).evidence(evidence)];
    }
    let table = table(host);
    let off: Vec<&str> = words.iter().map(String::as_str).filter(|word| turned_off(word)).collect();
    let on = turns_on(host);
    let evidence = evidence.into_iter().chain([match table {
        Some(name) => format!("/sys/firmware/acpi/tables/{name} is there"),
        None => "/sys/firmware/acpi/tables has none of DMAR, IVRS and IORT".into(),
    }]);
    let (cause, remedy) = if !off.is_empty() {
        (format!("the command line turns it off ({})", off.join(" ")), host.kernel_arguments(&[on, "iommu=pt"], &off))
    } else if table.is_none() {
        let bios = "# in the firmware's set-up (of a guest: in the hypervisor), enable VT-d, AMD-Vi or SMMU".to_owned();
        let missing: Vec<&str> = [on, "iommu=pt"].into_iter().filter(|word| !words.iter().any(|w| w == word)).collect();
        let words = if missing.is_empty() { vec!["reboot".into()] } else { host.kernel_arguments(&missing, &[]) };
        ("the firmware tells of none".into(), std::iter::once(bios).chain(words).collect())
    } else if words.iter().any(|word| word.starts_with(on.trim_end_matches("=on"))) {
        let command = "journalctl -k -b | grep -iE 'DMAR|AMD-Vi|iommu'".to_owned();
        (
            format!(
                "the command line has {} and the firmware tells of one, yet the kernel has not taken it",
                words.join(" ")
            ),
            vec![command],
        )
    } else {
        (format!("{on} is not on the command line"), host.kernel_arguments(&[on, "iommu=pt"], &[]))
    };
    let message = format!("the IOMMU is off: {cause}; VFs cannot be given to DPDK or to guests");
    let found = if host.wants_vfs() { Found::fail(message) } else { Found::warn(message) };
    vec![found.evidence(evidence).remedy(remedy)]
}

pub(super) fn passthrough(host: &Host) -> Vec<Found> {
    let groups = match groups(host) {
        Ok(groups) if groups.is_empty() => return vec![Found::unknown("the IOMMU is off")],
        Ok(groups) => groups,
        Err(why) => return vec![Found::unseen(GROUPS, &why)],
    };
    let words = words(host);
    let asked = |word: &String| {
        matches!(word.split_once('='), Some(("iommu" | "intel_iommu", values)) if values.split(',').any(|value| value == "pt"))
            || word == "iommu.passthrough=1"
    };
    if let Some(word) = words.iter().find(|word| asked(word)) {
        return vec![
            Found::pass("the host's own devices pass the IOMMU by").evidence([format!("/proc/cmdline: {word}")]),
        ];
    }
    // The kernel may have been built so.
    let types: Vec<String> =
        groups.iter().filter_map(|group| host.text(&format!("{GROUPS}/{group}/type")).ok()).collect();
    if !types.is_empty() && types.iter().all(|kind| kind == "identity" || kind == "unmanaged") {
        return vec![Found::pass("the host's own devices pass the IOMMU by, as the kernel was built")];
    }
    vec![
        Found::warn(
            "iommu=pt is not on the command line: the host's own cards translate each DMA, which costs them throughput",
        )
        .evidence([format!("/proc/cmdline: {}", words.join(" "))])
        .remedy(host.kernel_arguments(&["iommu=pt"], &[])),
    ]
}

pub(super) fn isolation(host: &Host) -> Vec<Found> {
    let vfs: Vec<_> = host.nics().iter().filter(|nic| nic.parent.is_some() && nic.group.is_some()).collect();
    if vfs.is_empty() {
        return vec![Found::unknown("there is no VF in an IOMMU group: nothing to look at yet")];
    }
    let mut shared = Vec::new();
    for vf in &vfs {
        let Some(group) = &vf.group else { continue };
        let others = host.names(&format!("{GROUPS}/{group}/devices")).unwrap_or_default();
        let others: Vec<String> = others.into_iter().filter(|other| *other != vf.address).collect();
        if !others.is_empty() {
            let shown: Vec<&str> = others.iter().take(4).map(String::as_str).collect();
            let more = if others.len() > 4 { format!(" and {} more", others.len() - 4) } else { String::new() };
            shared.push(format!("{GROUPS}/{group}/devices: {} with {}{more}", vf.address, shown.join(", ")));
        }
    }
    if shared.is_empty() {
        return vec![Found::pass(format!("each of {} VFs has an IOMMU group of its own", vfs.len()))];
    }
    let message = format!(
        "{} of {} VFs share their IOMMU group: VFIO gives a group as a whole, so all of it must be bound to vfio-pci; a bridge above lacks ACS",
        shared.len(),
        vfs.len()
    );
    let first = shared.len().min(8);
    vec![Found::warn(message).evidence(shared.drain(..first)).remedy([
        "# in the firmware's set-up, enable ACS (PCIe access control services) and ARI",
        "# else put the card into a slot that is connected to the processor directly",
    ])]
}
