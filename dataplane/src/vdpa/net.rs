//! The configuration space of a network device (VIRTIO 1.2 section 5.1.4), read with suspicion.

use std::io;

use ringspan_protocol::{MTU_RANGE, MacAddress};

use super::Kernel;
use crate::vhost::features::{F_MQ, F_MTU, F_STATUS};

const F_MAC: u64 = 1 << 5;
const F_SPEED_DUPLEX: u64 = 1 << 63;
/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;

/// What the device says of itself; absent what it has no feature bit for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetConfig {
    /// Its address.
    pub mac: Option<MacAddress>,
    /// Queue pairs, 1 at least.
    pub pairs: u16,
    /// Largest MTU in bytes.
    pub mtu: Option<u16>,
}

impl NetConfig {
    /// Reads it. `rings` is how many virtqueues the device has.
    ///
    /// # Errors
    /// What it says that cannot be, or that it cannot be read.
    pub fn read(kernel: &dyn Kernel, features: u64, rings: u32) -> Result<Self, String> {
        let mut bytes = [0; 12];
        // Only as much as there is a feature for: a device may have no more.
        let most = if features & F_MTU != 0 {
            12
        } else if features & F_MQ != 0 {
            10
        } else {
            6
        };
        if features & (F_MAC | F_MQ | F_MTU) != 0 {
            kernel.config(0, &mut bytes[..most]).map_err(|error| format!("nothing: it cannot be read ({error})"))?;
        }
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let mac = (features & F_MAC != 0).then(|| {
            let [a, b, c, d, e, f, ..] = bytes;
            MacAddress([a, b, c, d, e, f])
        });
        // All zeroes: none was given (vdpa dev add without mac).
        let mac = match mac.filter(|mac| mac.0 != [0; 6]).map(MacAddress::unicast) {
            Some(Err(error)) => return Err(format!("the MAC address {error}")),
            Some(Ok(mac)) => Some(mac),
            None => None,
        };
        let pairs = if features & F_MQ != 0 { word(8) } else { 1 };
        if pairs == 0 || u32::from(pairs) * 2 > rings {
            return Err(format!("{pairs} queue pairs, and the device has {rings} virtqueues"));
        }
        let mtu = (features & F_MTU != 0).then(|| word(10));
        if let Some(mtu) = mtu.filter(|mtu| mtu < MTU_RANGE.start()) {
            return Err(format!("an MTU of {mtu}, and the least is {}", MTU_RANGE.start()));
        }
        Ok(Self { mac, pairs, mtu })
    }

    /// Whether the link is up now. A device without the feature always has one.
    pub fn link(kernel: &dyn Kernel, features: u64) -> io::Result<bool> {
        if features & F_STATUS == 0 {
            return Ok(true);
        }
        let mut bytes = [0; 2];
        kernel.config(6, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes) & LINK_UP != 0)
    }

    /// The link's speed in Mbit/s, where the device knows it.
    pub fn speed(kernel: &dyn Kernel, features: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        (features & F_SPEED_DUPLEX != 0).then(|| kernel.config(12, &mut bytes).ok())??;
        // Either means that it is not known (the same section).
        Some(u32::from_le_bytes(bytes)).filter(|speed| (1..=0x7fff_ffff).contains(speed))
    }
}
