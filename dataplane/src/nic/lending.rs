//! Whether a device may read frames in guest memory, and what has to be done so that it can: see docs/decisions/0010-zero-copy.md.

use std::sync::{Arc, Weak};

use dpdk_sys as sys;
use ringspan_protocol::{DeviceSpec, ZeroCopy};

use super::configure::DeviceConfig;
use super::dma::Range;
use super::loans::LentMemory;
use super::port::Port;
use crate::memory::GuestMap;

/// Drivers that have read a frame, and freed it, when their transmit function returns, by their sources; net_tap and net_pcap were seen
/// to, byte for byte. They read with the processor.
const AT_ONCE: &[&str] = &["net_null", "net_tap", "net_pcap", "net_af_packet", "net_vhost"];

/// Drivers of PCI functions that were seen to read guest memory by DMA, and to be done with it when they said so (`cargo xtask lab`).
const BY_DMA: &[&str] = &["net_e1000_igb", "net_e1000_igb_vf"];

/// Least length in bytes of a frame that is not copied for a device that reads it with the processor: there the processor fetches it
/// anyway, and up to here copying it on the way costs as little (benches/src/bin/zero-copy.rs).
const FROM_READ: u16 = 4096;
/// The same for a device that reads by DMA, which costs the processor as much as one that reads nothing: there zero copy is at least twice as
/// fast from 128 bytes on (the same program). Eight times that, because what it costs the device was not measured.
const FROM_DMA: u16 = 1024;

/// How a device reads frames in guest memory.
#[derive(Debug, Clone)]
pub struct Lending {
    port: Weak<Port>,
    /// Frames of fewer bytes are copied.
    from: usize,
    /// It reads by DMA.
    dma: bool,
    /// Its driver has to be told to free what was sent.
    pub(super) cleans: bool,
}

/// Guest memory that a device may read by DMA. Ends when it is dropped, or before, when the device is closed.
#[derive(Debug)]
pub(super) struct Mapping {
    port: Weak<Port>,
    ranges: Vec<Range>,
}

impl Lending {
    /// How the device, which runs, does it; or why not.
    pub(super) fn choose(port: &Arc<Port>, spec: &DeviceSpec, config: &DeviceConfig) -> Result<Self, String> {
        let driver = port.driver();
        let from = |least: u16| config.zero_copy_from.unwrap_or(least).into();
        let lending = Self { port: Arc::downgrade(port), from: from(FROM_READ), dma: false, cleans: false };
        match reads(driver, spec, config.zero_copy)? {
            Reads::Later => Ok(lending),
            Reads::AtOnce(least) => Ok(Self { from: lending.from.max(least), ..lending }),
            Reads::ByDma => {
                // SAFETY: EAL is started.
                if unsafe { sys::rte_eal_iova_mode() } != sys::RTE_IOVA_VA {
                    return Err("DPDK gives devices physical addresses, and guest memory has none in one piece".into());
                }
                // SAFETY: the port is ours, has this queue, and nobody uses it yet.
                if unsafe { sys::shim_tx_done(port.id(), 0) } < 0 {
                    return Err(format!("{driver} cannot be asked whether a frame was sent"));
                }
                Ok(Self { from: from(FROM_DMA), dma: true, cleans: true, ..lending })
            }
        }
    }

    /// Frames of fewer bytes are copied.
    pub fn from(&self) -> usize {
        self.from
    }

    /// Makes guest memory readable for the device, or says why it cannot be. Takes long: not for workers.
    ///
    /// # Errors
    /// What DPDK or the kernel said.
    pub fn memory(&self, map: &Arc<GuestMap>) -> Result<Arc<LentMemory>, String> {
        let mut mapping = None;
        if self.dma {
            let port = self.port.upgrade().ok_or("the device is gone")?;
            let ranges = port.map_for_dma(map)?;
            mapping = Some(Mapping { port: Weak::clone(&self.port), ranges });
        }
        Ok(LentMemory::new(Arc::clone(map), mapping))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Some(port) = self.port.upgrade() {
            port.unmap_for_dma(std::mem::take(&mut self.ranges));
        }
    }
}

/// When a device reads a frame in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    /// Before its transmit function returns: so many bytes at least, however short the frame is.
    AtOnce(usize),
    /// When the other side takes it.
    Later,
    /// By DMA, if it can be asked when it is done.
    ByDma,
}

/// What a driver does, as far as that is known before it is asked; or why frames are copied for it.
fn reads(driver: &str, spec: &DeviceSpec, zero_copy: ZeroCopy) -> Result<Reads, String> {
    match spec {
        _ if zero_copy == ZeroCopy::Off => Err("zero_copy = \"off\"".into()),
        _ if driver.starts_with("mlx") => {
            Err(format!("{driver} says that frames are sent only with a later one, and cannot be asked"))
        }
        DeviceSpec::Soft { .. } => Err("a software NIC writes to frames".into()),
        _ if driver == "net_ring" && zero_copy == ZeroCopy::Always => Ok(Reads::Later),
        _ if driver == "net_ring" => Err(
            "a software ring holds frames until the other side reads them: zero_copy = \"always\" does it nevertheless"
                .into(),
        ),
        DeviceSpec::Vdev { args, .. } if AT_ONCE.contains(&driver) => {
            Ok(Reads::AtOnce(if driver == "net_null" { read_by_null(args) } else { 0 }))
        }
        DeviceSpec::Pci { .. } if zero_copy == ZeroCopy::Auto && !BY_DMA.contains(&driver) => {
            Err(format!("{driver} was not yet seen to read guest memory: zero_copy = \"always\" has it do so"))
        }
        DeviceSpec::Pci { .. } => Ok(Reads::ByDma),
        _ => Err(format!("{driver} is not known to let go of frames in time")),
    }
}

/// net_null with `copy=1` reads as many bytes as its `size` says, of however short a frame.
fn read_by_null(args: &str) -> usize {
    let value = |name: &str| {
        let mut pairs = args.split(',').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    if value("copy").is_none_or(|copy| copy == "0") {
        return 0;
    }
    // In C's notation; what is not understood here is taken for the most.
    value("size").map_or(64, |size| size.parse().unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_driver_reads_where_it_was_seen_to_or_the_reason_for_copying_is_said() {
        use ZeroCopy::{Always, Auto, Off};
        let of = |driver, device: &str, zero_copy| reads(driver, &device.parse().unwrap(), zero_copy);
        let pci = "pci:0000:0a:00.2";
        for (driver, device, zero_copy, expected) in [
            ("net_tap", "vdev:net_tap0,iface=up0", Auto, Reads::AtOnce(0)),
            ("net_null", "vdev:net_null0,size=4000,copy=1", Auto, Reads::AtOnce(4000)),
            ("net_ring", "vdev:net_ring0", Always, Reads::Later),
            ("net_ring", "patch:cable/a", Always, Reads::Later),
            ("net_e1000_igb", pci, Auto, Reads::ByDma),
            ("net_e1000_igb_vf", pci, Auto, Reads::ByDma),
            ("net_ice", pci, Always, Reads::ByDma),
        ] {
            assert_eq!(of(driver, device, zero_copy), Ok(expected), "{driver}, {device}, {zero_copy:?}");
        }
        for (driver, device, zero_copy, reason) in [
            ("net_tap", "vdev:net_tap0,iface=up0", Off, "off"),
            // Whatever it is told to do.
            ("mlx5_pci", pci, Auto, "mlx5_pci says that frames are sent only with a later one, and cannot be asked"),
            ("mlx5_pci", pci, Always, "mlx5_pci says that frames are sent only with a later one, and cannot be asked"),
            ("mlx4_pci", pci, Always, "mlx4_pci says"),
            ("net_ice", pci, Auto, "net_ice was not yet seen to read guest memory: zero_copy = \"always\""),
            ("net_ring", "soft:nic0/vf3", Always, "a software NIC writes to frames"),
            ("net_ring", "vdev:net_ring0", Auto, "a software ring holds frames"),
            ("net_bonding", "bond:mode=1,pci:0000:0a:00.2,pci:0000:0b:00.2", Always, "net_bonding is not known"),
            ("net_memif", "vdev:net_memif0", Always, "net_memif is not known"),
        ] {
            let said = of(driver, device, zero_copy).unwrap_err();
            assert!(said.contains(reason), "{driver}, {device}, {zero_copy:?}: {said}");
        }
    }

    #[test]
    fn net_null_never_reads_behind_a_frame() {
        assert_eq!(read_by_null(""), 0);
        assert_eq!(read_by_null("size=9000,no-rx=1"), 0);
        assert_eq!(read_by_null("copy=1"), 64);
        assert_eq!(read_by_null("size=9000,copy=1,no-rx=1"), 9000);
        assert_eq!(read_by_null("size=0x2000,copy=1"), usize::MAX);
    }
}
