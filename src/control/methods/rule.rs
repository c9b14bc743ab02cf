//! Methods about rules: what NICs' engines hold.

use ringspan_protocol::rte::text;
use ringspan_protocol::{NicName, Rule, RuleId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Call;
use crate::control::engine::Lanes;
use crate::error::{Error, ErrorKind};
use crate::ovs::mirror::Engine;

/// Whose rules.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RuleFilter {
    /// Of this NIC; of all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic: Option<NicName>,
    /// At most so many, 10000 at most.
    #[serde(default = "most")]
    pub limit: usize,
    /// Only those behind this one, in the order of NICs' names and of rules' ids: the last one of the answer before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<RuleAfter>,
}

/// A rule of a NIC.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RuleAfter {
    /// The NIC.
    pub nic: NicName,
    /// The rule's id.
    pub id: RuleId,
}

/// More than this is no answer that a client can be sent at once.
const MOST: usize = 10_000;

fn most() -> usize {
    1000
}

/// A rule that an engine holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct RuleEntry {
    /// The NIC that has it.
    pub nic: NicName,
    /// The rule.
    pub rule: Rule,
    /// The same in the syntax of DPDK's testpmd, a line or several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub testpmd: Option<String>,
    /// Why it has no form in that syntax.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

pub(super) fn list(call: &mut Call, filter: RuleFilter) -> Result<Vec<RuleEntry>, Error> {
    let lanes = Lanes::new(call.daemon);
    let mut nics: Vec<NicName> = lanes.nics().into_iter().map(|nic| nic.name).collect();
    nics.sort_unstable();
    if let Some(name) = filter.nic.as_ref().filter(|name| !nics.contains(name)) {
        let message = format!("no lane has a NIC {name} at this moment: see ringspan nic list");
        return Err(Error::new(ErrorKind::NotFound, message).about(name));
    }
    let limit = filter.limit.min(MOST);
    let mut entries = Vec::new();
    let after = filter.after.as_ref();
    let wanted = |nic: &&NicName| {
        filter.nic.as_ref().is_none_or(|wanted| wanted == *nic) && after.is_none_or(|after| after.nic <= **nic)
    };
    for nic in nics.iter().filter(wanted) {
        let left = limit.saturating_sub(entries.len());
        let after = after.filter(|after| after.nic == *nic).map(|after| after.id);
        let entry = |rule: Rule| {
            let printed = text::print(&rule);
            let why = printed.as_ref().err().map(ToString::to_string);
            RuleEntry { nic: nic.clone(), rule, testpmd: printed.ok(), why }
        };
        entries.extend(lanes.rules_after(nic, after, left)?.into_iter().map(entry));
    }
    Ok(entries)
}
