//! Which devices of this process belong to whom.
//!
//! DPDK removes devices, not ports: `rte_dev_remove` of a physical function closes its representors with it. So the
//! users of each device are counted, and it is removed when the last is gone.

use std::sync::{Mutex, MutexGuard};

use dpdk_sys as sys;

/// A port that is open.
struct Entry {
    identity: String,
    port: u16,
    /// Address of its rte_device.
    device: usize,
}

/// The open ports of this process.
pub(super) struct Registry {
    entries: Vec<Entry>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { entries: Vec::new() });

/// Locks plugging and unplugging, which one thread does at a time.
pub(super) fn lock() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Registry {
    /// Whether a port of this identity (`DeviceSpec::identity`) is open.
    pub fn has(&self, identity: &str) -> bool {
        self.entries.iter().any(|entry| entry.identity == identity)
    }

    /// Whether the DPDK port belongs to somebody.
    pub fn has_port(&self, port: u16) -> bool {
        self.entries.iter().any(|entry| entry.port == port)
    }

    /// Writes down who a port belongs to.
    pub fn claim(&mut self, identity: String, port: u16, device: *mut sys::rte_device) {
        self.entries.push(Entry { identity, port, device: device as usize });
    }

    /// Crosses a port out. Returns whether that was the last user of its device.
    pub fn release(&mut self, port: u16) -> bool {
        let Some(at) = self.entries.iter().position(|entry| entry.port == port) else { return false };
        let gone = self.entries.swap_remove(at);
        !self.entries.iter().any(|entry| entry.device == gone.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_free_when_its_last_port_is_gone() {
        let mut registry = Registry { entries: Vec::new() };
        let (nic, tap) = (8 as *mut sys::rte_device, 16 as *mut sys::rte_device);
        registry.claim("pci:0000:0a:00.0,representor=vf0".into(), 1, nic);
        registry.claim("pci:0000:0a:00.0,representor=vf1".into(), 2, nic);
        registry.claim("vdev:net_tap0".into(), 3, tap);
        assert!(registry.has("vdev:net_tap0") && registry.has_port(2));
        assert!(!registry.release(1), "vf1 still uses the function");
        assert!(registry.release(3));
        assert!(registry.release(2));
        assert!(!registry.release(2), "released twice");
        assert!(!registry.has("vdev:net_tap0") && !registry.has_port(2));
    }
}
