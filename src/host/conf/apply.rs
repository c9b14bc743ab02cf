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
    /// What was done, also before a step that failed: that stays, and is gone on from the next time. With `dry_run` what would be done.
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

/// Carries the plan out, an item at a time; `carry_out` says what it has done as it does it.
pub(crate) fn apply(
    plan: Plan,
    dry_run: bool,
    mut carry_out: impl FnMut(&Item, &mut Vec<String>) -> Result<(), Error>,
) -> Applied {
    let mut refused: Vec<String> = vec![];
    let items = plan.items.iter().map(|item| {
        let mut done = Vec::new();
        let member = item.members.iter().find(|member| refused.contains(member)).filter(|_| !dry_run);
        let (outcome, error) = match (item.standing, dry_run) {
            (Standing::ToDo, _) if member.is_some() => {
                let member = member.map_or("", String::as_str);
                let message = format!("{}: its member {member} is not as it should be yet", item.interface);
                (AppliedOutcome::Refused, Some(Error::new(ErrorKind::Failed, message)))
            }
            (Standing::AsWanted, _) => (AppliedOutcome::Unchanged, None),
            (Standing::Refused, _) => (AppliedOutcome::Refused, item.refused.as_ref().map(refusal)),
            (Standing::ToDo, true) => {
                done.clone_from(&item.steps);
                (AppliedOutcome::WouldChange, None)
            }
            (Standing::ToDo, false) => match carry_out(item, &mut done) {
                Ok(()) => (AppliedOutcome::Changed, None),
                Err(error) => (AppliedOutcome::Refused, Some(error)),
            },
        };
        let error = error.map(|error| error.about(&item.interface));
        if outcome == AppliedOutcome::Refused {
            refused.push(item.interface.clone());
        }
        AppliedItem { interface: item.interface.clone(), kind: item.kind, outcome, steps: done, error }
    });
    let items = items.collect();
    Applied { items, files: plan.files, problems: plan.problems, give_up: plan.give_up }
}

fn refusal(problem: &Problem) -> Error {
    Error::new(ErrorKind::Invalid, format!("{}: {}", problem.message, problem.remedy))
}
