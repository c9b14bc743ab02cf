//! Registers of an igb, past its driver: to stop it in the middle of its work, and to mislead it.

use anyhow::Result;
use ringspan_testkit::pci::Window;

use super::inside::Host;

/// Transmit registers of an 82576 (Intel: *82576EB Gigabit Ethernet Controller Datasheet*, 8.12): those of the whole NIC, and those
/// of the function's first queue.
pub struct Registers {
    nic: Window,
    queue: Window,
}

impl Registers {
    const TCTL: usize = 0x400;
    const TCTL_EN: u32 = 1 << 1;
    /// Of queue 0, where virtual functions have them too: base, head, tail.
    const TDBAL: usize = 0x3800;
    const TDBAH: usize = 0x3804;
    const TDH: usize = 0x3810;
    const TDT: usize = 0x3818;

    /// Those of the function that the port is on.
    pub fn of(host: &Host) -> Result<Self> {
        let whole = if host.is_virtual() { &host.far_nic } else { &host.nic };
        Ok(Self { nic: whole.window()?, queue: host.nic.window()? })
    }

    /// From here on the NIC takes descriptors and does nothing with them.
    pub fn freeze(&self) {
        self.nic.write(Self::TCTL, self.nic.read(Self::TCTL) & !Self::TCTL_EN);
    }

    /// It goes on, with what it has.
    pub fn thaw(&self) {
        self.nic.write(Self::TCTL, self.nic.read(Self::TCTL) | Self::TCTL_EN);
        self.queue.write(Self::TDT, self.queue.read(Self::TDT));
    }

    /// Sends the NIC for its descriptors to an address that is nobody's.
    pub fn mislead(&self) {
        self.queue.write(Self::TDBAH, 0x7f);
        self.queue.write(Self::TDBAL, 0);
        self.queue.write(Self::TDT, (self.queue.read(Self::TDH) + 1) % 64);
    }
}
