//! DPDK's drivers for the cards of this host.

use super::Found;
use crate::host::doctor::host::Host;
use crate::host::doctor::nic::{INTEL, MELLANOX, Nic, VIRTIO};

/// Where distributions put DPDK's drivers: Debian and its like, RPM distributions, and what is built by hand.
const PLACES: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu/dpdk",
    "/usr/lib/aarch64-linux-gnu/dpdk",
    "/usr/lib64/dpdk",
    "/usr/lib64",
    "/usr/local/lib/x86_64-linux-gnu/dpdk",
    "/usr/local/lib64/dpdk",
];

/// Folders with drivers: `pmds-23.0`, `dpdk-pmds`.
fn folders(host: &Host) -> Vec<String> {
    let all = PLACES.iter().flat_map(|place| {
        let names = host.names(place).unwrap_or_default().into_iter();
        names
            .filter(|name| name.starts_with("pmds-") || name.starts_with("dpdk-pmds"))
            .map(move |name| format!("{place}/{name}"))
    });
    all.collect()
}

/// The driver of a card, by the kernel's driver or by who made it.
fn driver(nic: &Nic) -> Option<&'static str> {
    match (nic.vendor, nic.driver.as_deref()) {
        (MELLANOX, Some("mlx4_core")) => Some("mlx4"),
        (MELLANOX, _) => Some("mlx5"),
        (INTEL, Some("igb" | "igbvf" | "e1000e")) => Some("e1000"),
        (INTEL, Some("ixgbe" | "ixgbevf")) => Some("ixgbe"),
        (INTEL, Some("i40e")) => Some("i40e"),
        (INTEL, Some("iavf")) => Some("iavf"),
        (INTEL, Some("ice")) => Some("ice"),
        (VIRTIO, _) => Some("virtio"),
        _ => None,
    }
}

pub(super) fn drivers(host: &Host) -> Vec<Found> {
    let folders = folders(host);
    let mut wanted: Vec<(&str, String)> = host
        .nics()
        .iter()
        .filter(|nic| nic.vendor != VIRTIO || nic.has_sriov() == Some(true))
        .filter_map(|nic| Some((driver(nic)?, nic.name())))
        .collect();
    wanted.sort();
    wanted.dedup_by_key(|(driver, _)| *driver);
    if folders.is_empty() {
        let found = Found::fail("DPDK's drivers are not installed: no lane starts")
            .evidence([format!("none of {} has pmds-* or dpdk-pmds", PLACES.join(", "))]);
        return vec![found.remedy([host.install("dpdk", "dpdk")])];
    }
    let installed: Vec<String> = folders.iter().flat_map(|folder| host.names(folder).unwrap_or_default()).collect();
    let has = |driver: &str| installed.iter().any(|name| name.starts_with(&format!("librte_net_{driver}.so")));
    let mut found = vec![
        Found::pass(format!(
            "{} drivers",
            installed.iter().filter(|name| name.starts_with("librte_net_") && name.ends_with(".so")).count()
        ))
        .evidence(folders.iter().map(|folder| format!("{folder} is there"))),
    ];
    for (driver, card) in wanted {
        if !has(driver) {
            found.push(
                Found::fail(format!("DPDK's driver {driver} is not installed, and {card} needs it"))
                    .about(driver)
                    .evidence(folders.iter().map(|folder| format!("{folder}: no librte_net_{driver}.so")))
                    .remedy([host.install(&format!("librte-net-{driver}-*"), "dpdk")]),
            );
        } else if driver == "mlx5" {
            found.push(verbs(host));
        }
    }
    found
}

/// DPDK drives Mellanox cards beside the kernel's driver, through verbs (DPDK's guide of the mlx5 driver).
fn verbs(host: &Host) -> Found {
    let modules: Vec<&str> =
        ["ib_uverbs", "mlx5_ib"].into_iter().filter(|name| !host.exists(&format!("/sys/module/{name}"))).collect();
    if !modules.is_empty() {
        return Found::fail(format!("DPDK's mlx5 driver needs the kernel modules {}", modules.join(" and ")))
            .about("mlx5")
            .evidence(modules.iter().map(|name| format!("/sys/module/{name} is not there")))
            .remedy(host.load_modules(&modules));
    }
    let places =
        ["/usr/lib/x86_64-linux-gnu/libibverbs", "/usr/lib/aarch64-linux-gnu/libibverbs", "/usr/lib64/libibverbs"];
    let provider =
        places.iter().any(|place| host.names(place).unwrap_or_default().iter().any(|name| name.starts_with("libmlx5")));
    match provider {
        true => Found::pass("the verbs that DPDK's mlx5 driver needs are there").about("mlx5"),
        false => Found::fail("DPDK's mlx5 driver needs the verbs provider libmlx5")
            .about("mlx5")
            .evidence([format!("none of {} has libmlx5", places.join(", "))])
            .remedy([host.install("ibverbs-providers", "libibverbs")]),
    }
}
