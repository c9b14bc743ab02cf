//! What vDPA devices of ports need of the kernel.

use ringspan_protocol::{DeviceSpec, PciAddress};

use super::Found;
use crate::host::doctor::host::Host;

/// Whether a port's device is a vDPA device.
pub(crate) fn is_vdpa(device: &str) -> bool {
    matches!(device.parse(), Ok(DeviceSpec::Vdpa { .. } | DeviceSpec::VhostVdpa { .. }))
}

pub(super) fn modules(host: &Host) -> Vec<Found> {
    let ports = host.vdpa_ports();
    if ports.is_empty() {
        return vec![Found::pass("no port wants a vDPA device")];
    }
    let mut found = vec![bus(host, &ports)];
    for (port, device) in &ports {
        let Ok(DeviceSpec::Vdpa { management }) = device.parse() else { continue };
        match management.parse::<PciAddress>() {
            Ok(address) => found.extend(function(host, port, address)),
            Err(_) => found.extend(simulator(host, port, &management)),
        }
    }
    found
}

/// The bus and its driver, without which there is no node.
fn bus(host: &Host, ports: &[(String, String)]) -> Found {
    let named: Vec<String> = ports.iter().map(|(port, device)| format!("port {port}: {device}")).collect();
    let missing: Vec<&str> = [("vdpa", "/sys/bus/vdpa"), ("vhost_vdpa", "/sys/bus/vdpa/drivers/vhost_vdpa")]
        .into_iter()
        .filter(|(_, place)| !host.exists(place))
        .map(|(module, _)| module)
        .collect();
    if missing.is_empty() {
        return Found::pass(format!("vdpa and vhost_vdpa are there for {} ports", ports.len())).evidence(named);
    }
    let message = format!("{} not loaded: ports with vDPA devices are refused", missing.join(" and "));
    let place = format!("/sys/bus/vdpa is {}there", if missing.contains(&"vdpa") { "not " } else { "" });
    Found::fail(message).evidence(named).evidence([place]).remedy(host.load_modules(&missing))
}

/// What makes vDPA devices of a card.
fn function(host: &Host, port: &str, address: PciAddress) -> Option<Found> {
    let folder = format!("/sys/bus/pci/devices/{address}");
    let about = |found: Found| Some(found.about(format!("port {port}")));
    if !host.exists(&folder) {
        return about(Found::fail(format!("there is no {address}")).remedy(["ringspan device list"]));
    }
    let driver = host.link(&format!("{folder}/driver"));
    match driver.as_deref() {
        Some("mlx5_core") if !host.exists("/sys/module/mlx5_vdpa") => about(
            Found::fail(format!("mlx5_vdpa is not loaded: no vDPA device can be made on {address}"))
                .evidence([format!("{folder}/driver: mlx5_core"), "/sys/module/mlx5_vdpa is not there".into()])
                .remedy(host.load_modules(&["mlx5_vdpa"])),
        ),
        Some("virtio-pci") => {
            let mut remedy = host.load_modules(&["vp_vdpa"]);
            remedy.push(format!("ringspan device bind {address} vp-vdpa"));
            let found = Found::fail(format!("{address} is a virtio card that its own driver has, not vp-vdpa"));
            about(found.evidence([format!("{folder}/driver: virtio-pci")]).remedy(remedy))
        }
        None => about(
            Found::fail(format!("{address} has no driver: no vDPA device can be made on it"))
                .evidence([format!("{folder}/driver is not there")])
                .remedy([format!(
                    "# give it the driver that makes vDPA devices: ringspan device bind {address} DRIVER"
                )]),
        ),
        Some(_) => None,
    }
}

/// The kernel's simulators (drivers/vdpa/vdpa_sim).
fn simulator(host: &Host, port: &str, management: &str) -> Option<Found> {
    let module = management.starts_with("vdpasim").then(|| management.replace("vdpasim", "vdpa_sim"))?;
    if host.exists(&format!("/sys/module/{module}")) {
        return None;
    }
    let found = Found::fail(format!("{module} is not loaded: there is no {management}"));
    let found = found.about(format!("port {port}")).evidence([format!("/sys/module/{module} is not there")]);
    Some(found.remedy(host.load_modules(&[&module])))
}
