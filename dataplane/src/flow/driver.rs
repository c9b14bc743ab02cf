//! What an engine asks of a NIC's driver, so that something else can stand in a driver's place: one that is full, or busy, or forgets rules.

use std::time::Duration;

use crate::nic::{Counted, FlowError, FlowPort, FlowRule, InstalledFlow};

/// What takes rules.
pub trait Driver {
    /// A rule that it has. It stays with the driver when this is dropped.
    type Flow: DriverFlow;

    /// DPDK's number of the wire's port.
    fn uplink(&self) -> u16;

    /// Asks whether a rule could be installed.
    ///
    /// # Errors
    /// [`FlowError`].
    fn validate(&self, rule: &FlowRule<'_>) -> Result<(), FlowError>;

    /// Installs a rule.
    ///
    /// # Errors
    /// [`FlowError`]; nothing was installed.
    fn create(&self, rule: &FlowRule<'_>) -> Result<Self::Flow, FlowError>;

    /// Leaves a driver that is busy alone for a while.
    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// A rule that a driver has.
pub trait DriverFlow: Sized {
    /// What it counted.
    ///
    /// # Errors
    /// [`FlowError`]; ENOENT when the driver does not know the rule any more.
    fn query(&self) -> Result<Counted, FlowError>;

    /// Removes it.
    ///
    /// # Errors
    /// [`FlowError`], with the rule; ENOENT when the driver does not know it any more.
    fn remove(self) -> Result<(), (Self, FlowError)>;
}

impl Driver for FlowPort {
    type Flow = InstalledFlow;

    fn uplink(&self) -> u16 {
        Self::uplink(self)
    }

    fn validate(&self, rule: &FlowRule<'_>) -> Result<(), FlowError> {
        Self::validate(self, rule)
    }

    fn create(&self, rule: &FlowRule<'_>) -> Result<InstalledFlow, FlowError> {
        Self::create(self, rule)
    }
}

impl DriverFlow for InstalledFlow {
    fn query(&self) -> Result<Counted, FlowError> {
        Self::query(self)
    }

    fn remove(self) -> Result<(), (Self, FlowError)> {
        Self::remove(self)
    }
}
