//! The wire of a NIC with several queues, which QEMU's hub could not have: two TAPs of a bridge, in a network namespace that QEMU runs in.

use anyhow::Result;
use ringspan_testkit::netns::Netns;

/// What QEMU is given: the NIC, and the other end of its wire.
pub const MACHINE: &str = "-netdev tap,id=several,ifname=near,queues=2,script=no,downscript=no \
    -device virtio-net-pci,bus=pcie.0,addr=0x14,netdev=several,mac=52:54:00:bb:00:03,mq=on,vectors=6,iommu_platform=on,ats=on,disable-legacy=on \
    -netdev tap,id=severalfar,ifname=far,script=no,downscript=no \
    -device virtio-net-pci,bus=pcie.0,addr=0x15,netdev=severalfar,mac=52:54:00:bb:00:04,disable-legacy=on";
/// The TAPs, and how they are made.
const TAPS: [(&str, &[&str]); 2] = [("near", &["multi_queue"]), ("far", &[])];

/// The wire. It goes with its namespace.
pub struct Wire {
    net: Netns,
}

impl Wire {
    /// Makes it.
    ///
    /// # Errors
    /// As ip(8) says.
    pub fn new() -> Result<Self> {
        let net = Netns::new("lab-vdpa")?;
        net.ip(&["link", "add", "wire", "type", "bridge", "stp_state", "0", "mcast_snooping", "0"])?;
        net.sysctl("net.ipv6.conf.wire.disable_ipv6=1")?;
        for (tap, more) in TAPS {
            net.ip(&[&["tuntap", "add", "dev", tap, "mode", "tap"], more].concat())?;
            net.sysctl(&format!("net.ipv6.conf.{tap}.disable_ipv6=1"))?;
            net.ip(&["link", "set", tap, "master", "wire"])?;
            // A wire knows no addresses.
            net.ip(&["link", "set", tap, "type", "bridge_slave", "learning", "off"])?;
            net.ip(&["link", "set", tap, "up"])?;
        }
        net.ip(&["link", "set", "wire", "up"])?;
        Ok(Self { net })
    }

    /// The words that start this QEMU at the wire.
    pub fn qemu(&self, qemu: &[String]) -> Vec<String> {
        let enter = ["nsenter".to_owned(), format!("--net=/run/netns/{}", self.net.name())];
        enter.into_iter().chain(qemu.iter().cloned()).collect()
    }
}
