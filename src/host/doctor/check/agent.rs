//! What the host agent did that is in the way.

use super::Found;
use crate::host::doctor::host::Host;

pub(super) fn binding(host: &Host) -> Vec<Found> {
    let mut found = Vec::new();
    let bound = host.nics().iter().filter(|nic| nic.parent.is_some() && nic.driver.as_deref() == Some("vfio-pci"));
    let mut all = 0;
    for nic in bound {
        all += 1;
        let place = format!("{}/driver_override", nic.folder());
        // Without an override, vfio-pci took it by its list of ids: that of new_id, or its ids parameter.
        let Ok(text) = host.text(&place) else { continue };
        if text == "(null)" || text.is_empty() {
            let ids = format!("{:04x} {:04x}", nic.vendor, nic.device);
            found.push(
                Found::warn("vfio-pci took this VF by its id, as the host agent has it: each later VF of that id is taken, too, before ringspan can have it")
                    .about(nic.name())
                    .evidence([format!("{place}: {text}, {}/driver: vfio-pci", nic.folder())])
                    .remedy([
                        format!("echo '{ids}' > /sys/bus/pci/drivers/vfio-pci/remove_id"),
                        // It has the VF already, perhaps for a guest: nothing is unbound.
                        format!("echo vfio-pci > {place}"),
                        "# and take the card from sriov_nics in the agent's host.conf, if ringspan is to have it".into(),
                    ]),
            );
        }
    }
    if found.is_empty() {
        found.push(Found::pass(match all {
            0 => "no VF is bound to vfio-pci".into(),
            all => format!("each of {all} VFs on vfio-pci was bound by driver_override"),
        }));
    }
    found
}

pub(super) fn qdiscs(host: &Host) -> Vec<Found> {
    let qdiscs = match host.qdiscs() {
        Ok(qdiscs) => qdiscs,
        Err(why) => return vec![Found::unseen("queueing disciplines", &why)],
    };
    let is_representor = |name: &str| {
        let text = |file: &str| host.text(&format!("/sys/class/net/{name}/{file}")).unwrap_or_default();
        !text("phys_switch_id").is_empty()
            && (text("phys_port_name").contains("vf") || text("phys_port_name").parse::<u32>().is_ok())
    };
    let mut found = Vec::new();
    for (interface, kind) in &qdiscs {
        if !(kind == "tbf" || kind == "htb" || kind == "ingress") || !is_representor(interface) {
            continue;
        }
        // ovs-vswitchd has an ingress discipline of its own on each port while it offloads by TC.
        if kind == "ingress" && host.verify_ovs().is_ok() {
            continue;
        }
        let place = if kind == "ingress" { "ingress" } else { "root" };
        found.push(
            Found::warn(format!(
                "{kind} on a representor: what the card forwards passes it by, and what it shapes is not offloaded"
            ))
            .about(interface)
            .evidence([format!("tc qdisc show dev {interface}: {kind}")])
            .remedy([
                format!("tc qdisc del dev {interface} {place}"),
                "# limit the VF instead: ip link set PF vf N max_tx_rate MBIT".into(),
            ]),
        );
    }
    if found.is_empty() {
        found.push(Found::pass("no queueing discipline of the agent's is on a representor"));
    }
    found
}

pub(super) fn domains(host: &Host) -> Vec<Found> {
    let mut found = Vec::new();
    for nic in host.physical() {
        let Some(target) = host.whole_link(&nic.folder()) else { continue };
        // Relative: ../../../devices/pci0000:00/0000:00:01.0/0000:03:00.0
        if target.contains("/devices/pci") && !target.contains("/devices/pci0000:") {
            found.push(
                Found::warn("it is not below /sys/devices/pci0000:, so the host agent does not see it; ringspan does")
                    .about(nic.name())
                    .evidence([format!("{}: {target}", nic.folder())])
                    .remedy(["ringspan device list"]),
            );
        }
    }
    if found.is_empty() {
        found.push(Found::pass("the host agent sees all cards"));
    }
    found
}
