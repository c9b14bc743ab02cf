//! Who has the rules: the switches of NICs, behind one trait.

use std::time::Duration;

use ringspan_protocol::rule::{Rule, RuleCounters, RuleId, RuleResult};
use ringspan_protocol::{Capabilities, MeterSpec, NicName, NicPort};

use crate::error::Error;

/// A NIC that takes rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nic {
    /// Its name.
    pub name: NicName,
    /// The ports of its switch, each with the name of its representor on the host: the datapath's name of that port.
    pub ports: Vec<(NicPort, String)>,
    /// What its engine can do.
    pub capabilities: Capabilities,
    /// Changes whenever its rules may have been lost: it was restarted, or made anew.
    pub life: u64,
    /// Whether it had no rule when it was last looked at, a second ago at most: it may have been made anew.
    pub empty: bool,
}

/// What can be done with the rules of NICs.
pub(crate) trait Engine: Send + Sync {
    /// All NICs whose switch goes by rules now, with what the engine of each can do. One that cannot be asked at this moment is not among them.
    fn nics(&self) -> Vec<Nic>;

    /// Makes meters, or gives them other limits; one that is as it was is left alone.
    fn set_meters(&self, nic: &NicName, meters: &[MeterSpec]) -> Result<(), Error>;

    /// How often each rule in use shows OVS a packet, of an engine that does that by itself (`refreshes`).
    fn set_refresh(&self, nic: &NicName, every: Duration) -> Result<(), Error>;

    /// Installs rules, or replaces those of the same ids; the result of each. An error: nothing is known of any.
    fn install(&self, nic: &NicName, rules: &[Rule]) -> Result<Vec<RuleResult>, Error>;

    /// Removes rules; one that is not there is a success.
    fn remove(&self, nic: &NicName, ids: &[RuleId]) -> Result<(), Error>;

    /// All rules that are installed.
    fn rules(&self, nic: &NicName) -> Result<Vec<Rule>, Error>;

    /// What all rules counted.
    fn counters(&self, nic: &NicName) -> Result<Vec<RuleCounters>, Error>;
}
