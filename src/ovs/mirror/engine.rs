//! Who has the rules: the switches of NICs, behind one trait.

use ringspan_protocol::rule::{Rule, RuleCounters, RuleId, RuleResult};
use ringspan_protocol::{Capabilities, NicName, NicPort};

use crate::error::Error;

/// A NIC that takes rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nic {
    /// Its name.
    pub name: NicName,
    /// The ports of its switch.
    pub ports: Vec<NicPort>,
    /// Changes whenever its rules may have been lost: it was restarted, or made anew.
    pub life: u64,
    /// Whether it had no rule when it was last looked at, a second ago at most: it may have been made anew.
    pub empty: bool,
}

/// What can be done with the rules of NICs.
pub(crate) trait Engine: Send + Sync {
    /// All NICs that take rules now. One that cannot be asked at this moment is not among them.
    fn nics(&self) -> Vec<Nic>;

    /// What the engine of a NIC can do; that of a software NIC where it is not known. One that does not refresh
    /// ([`Capabilities::refreshes`]) has its idle flows removed by who asks it, and OVS has to keep them until then.
    #[allow(dead_code, reason = "asked as soon as an engine that cannot refresh is there")]
    fn capabilities(&self, nic: &NicName) -> Capabilities;

    /// Says what [`Engine::install`] would, and installs nothing.
    #[allow(dead_code, reason = "a part of what an engine is: the mirror installs and looks at the answers")]
    fn validate(&self, nic: &NicName, rules: &[Rule]) -> Result<Vec<RuleResult>, Error>;

    /// Installs rules, or replaces those of the same ids; the result of each. An error: nothing is known of any.
    fn install(&self, nic: &NicName, rules: &[Rule]) -> Result<Vec<RuleResult>, Error>;

    /// Removes rules; one that is not there is a success.
    fn remove(&self, nic: &NicName, ids: &[RuleId]) -> Result<(), Error>;

    /// All rules that are installed.
    fn rules(&self, nic: &NicName) -> Result<Vec<Rule>, Error>;

    /// What all rules counted.
    fn counters(&self, nic: &NicName) -> Result<Vec<RuleCounters>, Error>;
}
