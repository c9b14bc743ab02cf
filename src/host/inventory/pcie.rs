//! A function's link to the host, in the agent's words (`pcie_info`).

use ringspan_protocol::PciAddress;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::host::pci::attribute;
use crate::host::sysfs::Sysfs;

/// The best that a link can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct PcieInfo {
    /// Transfers a second of a lane: `8GT/s`.
    pub transfer_rate_per_lane: String,
    /// Number of lanes.
    pub lane_width: u16,
    /// What that carries without its coding: `15.76 GB/s`.
    pub throughput: String,
    /// Version of PCI Express that has such lanes: `3.0`.
    pub version: String,
}

/// GT/s, version, and GB/s of one lane.
const VERSIONS: [(&str, &str, f64); 7] = [
    ("2.5", "1.0", 0.25),
    ("5", "2.0", 0.5),
    ("8", "3.0", 0.985),
    ("16", "4.0", 1.969),
    ("32", "5.0", 3.938),
    ("64", "6.0", 7.563),
    ("128", "7.0", 15.125),
];

/// Nothing where the kernel does not say, as for virtual functions of many NICs.
pub(super) fn read(sysfs: &Sysfs, address: PciAddress) -> Option<PcieInfo> {
    // `8.0 GT/s PCIe`, `2.5 GT/s`, or `Unknown`.
    let speed = sysfs.text(&attribute(address, "max_link_speed"))?;
    let lane_width: u16 =
        sysfs.number(&attribute(address, "max_link_width")).filter(|lanes| (1..=32).contains(lanes))?;
    let number = speed.split(' ').next()?.trim_end_matches(".0");
    let (rate, version, lane) = VERSIONS.into_iter().find(|(rate, ..)| *rate == number)?;
    Some(PcieInfo {
        transfer_rate_per_lane: format!("{rate}GT/s"),
        lane_width,
        throughput: format!("{:.2} GB/s", lane * f64::from(lane_width)),
        version: version.into(),
    })
}
