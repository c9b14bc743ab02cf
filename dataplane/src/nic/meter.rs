//! DPDK's traffic meter (programmer's guide, "Traffic Metering and Policing"): how many bytes may pass in a time.

use std::fmt;

use dpdk_sys as sys;

/// A meter with one bucket (srTCM of RFC 2697, colour-blind, without an excess burst).
pub struct Meter {
    // In a box, because it is larger than what usually stands beside it.
    meter: Box<sys::shim_meter>,
    rate: u64,
    burst: u64,
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Meter({} a second, {} at once)", self.rate, self.burst)
    }
}

impl Meter {
    /// A meter of so many bytes a second, and so many at once; both 1 at least. EAL is started. `None`: DPDK refuses the values.
    pub fn new(rate: u64, burst: u64) -> Option<Self> {
        // SAFETY: a plain C structure, for which all zeroes are valid.
        let mut meter: Box<sys::shim_meter> = Box::new(unsafe { std::mem::zeroed() });
        // SAFETY: the structure is written during the call.
        let status = unsafe { sys::shim_meter_init(&mut *meter, rate, burst) };
        (status == 0).then_some(Self { meter, rate, burst })
    }

    /// Bytes a second, and at once.
    pub fn limits(&self) -> (u64, u64) {
        (self.rate, self.burst)
    }

    /// Whether so many bytes may pass now. They are counted if they may.
    #[inline]
    pub fn passes(&mut self, bytes: u32) -> bool {
        // SAFETY: the meter was set up by `new`, and is used here alone (`&mut self`).
        unsafe { sys::shim_meter_passes(&mut *self.meter, bytes) != 0 }
    }
}
