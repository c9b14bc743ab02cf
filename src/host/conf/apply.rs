//! The plan carried out, card by card: one that fails leaves the others as they are.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::plan::{GiveUp, Item, Kind, Plan, Problem, Standing};
use crate::error::{Error, ErrorKind};

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Applied {
    /// The files that were read, in the order of the agent's precedence.
    pub files: Vec<String>,
    /// Cards, in the order of the files.
    pub items: Vec<AppliedItem>,
    /// What is wrong with the files, or odd about them.
    pub problems: Vec<Problem>,
    /// What the agent must give up before ringspan owns these cards.
    pub give_up: Vec<GiveUp>,
}

/// What came of a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct AppliedItem {
    /// The interface.
    pub interface: String,
    /// What its VFs are for.
    pub kind: Kind,
    /// What came of it.
    pub outcome: AppliedOutcome,
    /// What was done, or with `dry_run` what would be.
    pub steps: Vec<String>,
    /// Why it is refused; what was undone and what is left, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

/// What came of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AppliedOutcome {
    /// It was so already.
    Unchanged,
    /// It is so now.
    Changed,
    /// It would be changed.
    WouldChange,
    /// It is not so.
    Refused,
}

/// Carries the plan out; `enable` gives an interface so many VFs, and says what it did.
pub(crate) fn apply(
    plan: Plan,
    dry_run: bool,
    mut enable: impl FnMut(&str, u32) -> Result<Vec<String>, Error>,
) -> Applied {
    let items = plan.items.iter().map(|item| {
        let (outcome, steps, error) = match (item.standing, dry_run) {
            (Standing::AsWanted, _) => (AppliedOutcome::Unchanged, Vec::new(), None),
            (Standing::Refused, _) => (AppliedOutcome::Refused, Vec::new(), item.refused.as_ref().map(refusal)),
            (Standing::ToDo, true) => (AppliedOutcome::WouldChange, item.steps.clone(), None),
            (Standing::ToDo, false) => match offered(item).and_then(|()| enable(&item.interface, item.vfs)) {
                Ok(done) => (AppliedOutcome::Changed, done, None),
                Err(error) => (AppliedOutcome::Refused, Vec::new(), Some(error)),
            },
        };
        let error = error.map(|error| error.about(&item.interface));
        AppliedItem { interface: item.interface.clone(), kind: item.kind, outcome, steps, error }
    });
    Applied { items: items.collect(), files: plan.files, problems: plan.problems, give_up: plan.give_up }
}

/// Changes of the eswitch's mode are not offered here.
fn offered(item: &Item) -> Result<(), Error> {
    if item.kind == Kind::Sriov && !item.switchdev {
        return Ok(());
    }
    let name = &item.interface;
    let message = format!(
        "{name}: host.apply does not change an eswitch's mode: do the plan's steps by hand: {}",
        item.steps.join("; ")
    );
    Err(Error::new(ErrorKind::Unsupported, message))
}

fn refusal(problem: &Problem) -> Error {
    Error::new(ErrorKind::Invalid, format!("{}: {}", problem.message, problem.remedy))
}
