//! What is counted of a VF that was handed over whole: by its representor, or else by the PF's driver.

use super::record::{Counted, Record, Target};
use crate::host::Host;
use crate::host::netlink::VfCounters;
use crate::host::pci_function;
use crate::host::representor::{Representors, index};

/// What the guest of a VF that was handed over counted, and where that was read; nothing where nobody counts.
pub(crate) fn handed_over(host: &Host, record: &Record) -> (Option<Counted>, Option<String>) {
    match &record.representor {
        Some(name) => (of_representor(host, name), Some(name.clone())),
        None => of_vf(host, record).unzip(),
    }
}

/// What the interface counted that stands for the VF: it receives what the guest sends.
fn of_representor(host: &Host, name: &str) -> Option<Counted> {
    let read = |file: &str| host.sysfs.number::<u64>(&format!("class/net/{name}/statistics/{file}"));
    Some(Counted {
        tx_packets: read("rx_packets")?,
        tx_bytes: read("rx_bytes")?,
        tx_dropped: read("rx_dropped")?,
        rx_packets: read("tx_packets")?,
        rx_bytes: read("tx_bytes")?,
        rx_dropped: read("tx_dropped")?,
    })
}

/// What the PF's driver counted of a VF that nothing stands for: in legacy mode, and on InfiniBand. igb does not count, ixgbe and mlx5 do
/// (`ndo_get_vf_stats`).
fn of_vf(host: &Host, record: &Record) -> Option<(Counted, String)> {
    let Target::Pci { pf, vf, .. } = record.target else { return None };
    let interface = Representors::new(&host.sysfs, &[]).own(&pci_function(host, pf)?)?;
    let told = host.kernel.vf_counters(index(&host.sysfs, &interface)?, vf.into()).ok()??;
    let VfCounters { rx_packets, tx_packets, rx_bytes, tx_bytes, rx_dropped, tx_dropped } = told;
    let counted = Counted { tx_packets, tx_bytes, tx_dropped, rx_packets, rx_bytes, rx_dropped };
    Some((counted, format!("{interface} vf {vf}")))
}
