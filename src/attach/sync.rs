//! Whether what is attached is what the agent thinks, and is as it was left.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::record::{Key, Record, Stage};
use super::run::{Attachments, World};
use crate::error::Error;

/// A guest as the agent knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Guest {
    /// Its id.
    pub guest: String,
    /// Its NICs that should be attached; absent: whichever are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nics: Option<Vec<u16>>,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Finding {
    /// The guest.
    pub guest: String,
    /// Which of its NICs.
    pub nic: u16,
    /// The VF.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What is wrong.
    pub what: Vec<String>,
    /// Whether it was mended.
    pub mended: bool,
    /// Why it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Synced {
    /// Attached to guests that are not listed, or as NICs that those have not. Mended: detached.
    pub orphaned: Vec<Finding>,
    /// Listed and not attached. Attach them again.
    pub missing: Vec<Finding>,
    /// Attached, and not as they were left. Mended: made so again.
    pub drifted: Vec<Finding>,
    /// How many are as they should be.
    pub good: usize,
}

fn finding(record: &Record, what: Vec<String>) -> Finding {
    let Key { guest, nic } = record.key();
    Finding { guest, nic, target: Some(record.target.to_string()), what, mended: false, error: None }
}

fn mend(finding: &mut Finding, mended: Result<(), Error>) {
    match mended {
        Ok(()) => finding.mended = true,
        Err(error) => finding.error = Some(error),
    }
}

/// Compares the attachments with the agent's guests, and with the host; each stands by itself.
pub(crate) fn sync(all: &Attachments, world: &impl World, guests: &[Guest], mending: bool) -> Synced {
    let mut synced = Synced::default();
    let records = all.all();
    for record in &records {
        let key = record.key();
        let listed = guests.iter().find(|guest| guest.guest == key.guest);
        let orphan = match listed {
            None => Some(format!("guest {} is not listed", key.guest)),
            Some(Guest { nics: Some(nics), .. }) if !nics.contains(&key.nic) => {
                Some(format!("guest {} has no NIC {}", key.guest, key.nic))
            }
            Some(_) => None,
        };
        if let Some(why) = orphan {
            let mut found = finding(record, vec![why]);
            if mending {
                mend(&mut found, all.detach(world, &key).map(drop));
            }
            synced.orphaned.push(found);
            continue;
        }
        let differs = drift(world, record);
        if differs.is_empty() {
            synced.good += 1;
            continue;
        }
        let mut found = finding(record, differs);
        if mending {
            let mended = match record.stage {
                Stage::Attached | Stage::Changing => all.change(world, &key, |_| Ok(())).map(drop),
                Stage::Attaching | Stage::Detaching => all.recover(world, &key),
            };
            mend(&mut found, mended);
        }
        synced.drifted.push(found);
    }
    for guest in guests {
        for nic in guest.nics.iter().flatten() {
            let there = records.iter().any(|record| record.wanted.guest == guest.guest && record.wanted.nic == *nic);
            if !there {
                synced.missing.push(Finding {
                    guest: guest.guest.clone(),
                    nic: *nic,
                    target: None,
                    what: vec!["it is not attached".into()],
                    mended: false,
                    error: None,
                });
            }
        }
    }
    synced
}

/// What of an attachment is not as it was left.
pub(crate) fn drift(world: &impl World, record: &Record) -> Vec<String> {
    let stage = match record.stage {
        Stage::Attached => None,
        Stage::Attaching => Some("it is being attached"),
        Stage::Changing => Some("a change of it did not end"),
        Stage::Detaching => Some("it is being detached"),
    };
    let mut differs: Vec<String> = stage
        .map(|stage| match &record.problem {
            Some(problem) => format!("{stage}: {problem}"),
            None => stage.to_owned(),
        })
        .into_iter()
        .collect();
    if record.stage == Stage::Attached {
        differs.extend(record.steps.iter().filter_map(|step| match world.drift(*step, record) {
            Ok(differs) => differs,
            Err(error) => Some(format!("it cannot be looked at: {}", error.message)),
        }));
    }
    differs
}
