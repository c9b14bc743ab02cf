//! Memory that DPDK did not make, and DPDK's virtio driver: a process has one of the two at a time.
//!
//! As a vhost-user front-end that driver tells its back-end of all memory that DPDK knows, each piece with its file (drivers/net/virtio/virtio_user/vhost_user.c,
//! `update_memory_region`). Guest memory that is registered for DMA (`rte_extmem_register`) has none there, and one such piece has the whole table fail: when the
//! driver starts, which it does not report, and whenever DPDK's own memory grows, after which its queues stay disabled.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Of this process, as DPDK's list of its memory is.
static HERE: Sharing = Sharing::new();

/// Who needs it which way.
#[derive(Debug)]
pub(super) struct Sharing(Mutex<Uses>);

#[derive(Debug)]
struct Uses {
    /// Pieces of memory that DPDK did not make.
    external: usize,
    /// Drivers that can have none of those beside them.
    drivers: usize,
}

/// Why guest memory is not registered.
const DRIVEN: &str = "a vDPA device of this lane is relayed, and DPDK's virtio driver fails beside guest memory that is registered for DMA: put one of the two \
     ports on another lane; zero copy is tried again when this port's guest starts anew";
/// Why no driver can begin.
const REGISTERED: &str = "guest memory is registered for DMA in this lane (zero copy), beside which DPDK's virtio driver fails: set zero_copy = \"off\" on the \
     lane's ports whose status says that frames are not copied, or put this port on another lane";

impl Sharing {
    const fn new() -> Self {
        Self(Mutex::new(Uses { external: 0, drivers: 0 }))
    }

    fn register(&self) -> Result<(), &'static str> {
        let mut uses = self.lock();
        if uses.drivers > 0 {
            return Err(DRIVEN);
        }
        uses.external += 1;
        Ok(())
    }

    fn unregister(&self) {
        self.lock().external -= 1;
    }

    fn enclose(&'static self) -> Result<OwnMemory, &'static str> {
        let mut uses = self.lock();
        if uses.external > 0 {
            return Err(REGISTERED);
        }
        uses.drivers += 1;
        Ok(OwnMemory(self))
    }

    fn lock(&self) -> MutexGuard<'_, Uses> {
        // Nothing that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A piece of memory is about to be registered; [`unregister`] when it is not, or no more.
///
/// # Errors
/// Why it may not be, and what helps.
pub(super) fn register() -> Result<(), &'static str> {
    HERE.register()
}

/// A piece of memory is no longer registered.
pub(super) fn unregister() {
    HERE.unregister();
}

/// While this lives, DPDK knows only memory that it has made itself.
#[derive(Debug)]
pub struct OwnMemory(&'static Sharing);

impl OwnMemory {
    /// Keeps other memory from DPDK.
    ///
    /// # Errors
    /// It has some; what helps.
    pub fn only() -> Result<Self, &'static str> {
        HERE.enclose()
    }
}

impl Drop for OwnMemory {
    fn drop(&mut self) {
        self.0.lock().drivers -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_and_drivers_that_fail_beside_it_are_there_in_turns() {
        static SHARING: Sharing = Sharing::new();
        let (one, two) = (SHARING.enclose().unwrap(), SHARING.enclose().unwrap());
        assert!(SHARING.register().unwrap_err().contains("put one of the two ports on another lane"));
        drop(one);
        assert!(SHARING.register().is_err(), "there is another");
        drop(two);
        SHARING.register().unwrap();
        SHARING.register().unwrap();
        assert!(SHARING.enclose().unwrap_err().contains("zero_copy = \"off\""));
        SHARING.unregister();
        assert!(SHARING.enclose().is_err(), "there is more");
        SHARING.unregister();
        drop(SHARING.enclose().unwrap());
        SHARING.register().unwrap();
    }
}
