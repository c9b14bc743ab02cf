//! Whether what is attached is what the agent thinks, and is as it was left.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::record::{Key, Record, Stage};
use super::request::Attach;
use super::run::{Attachments, World};
use crate::error::{Error, ErrorKind};

/// A guest as the agent knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Guest {
    /// Its id.
    pub guest: String,
    /// Its NICs that should be attached; absent: whichever are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nics: Option<Vec<u16>>,
    /// What its NICs should be, each as for `port.attach`: what of these is missing is attached when mending, and those that can be are changed.
    /// They need not be in `nics`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attach: Vec<Attach>,
}

impl Guest {
    /// The NICs that should be attached, or none: whichever are.
    fn listed(&self) -> Option<Vec<u16>> {
        let wanted = self.attach.iter().map(|wanted| wanted.nic);
        let mut all: Vec<u16> = self.nics.iter().flatten().copied().chain(wanted).collect();
        all.sort_unstable();
        all.dedup();
        (self.nics.is_some() || !self.attach.is_empty()).then_some(all)
    }

    fn wanted(&self, nic: u16) -> Option<&Attach> {
        self.attach.iter().find(|wanted| wanted.nic == nic)
    }
}

/// Refuses guests that are not clear: one that is listed twice, or has a NIC twice. What is said of it first would be all that it has.
pub(crate) fn check(guests: &[Guest]) -> Result<(), Error> {
    let invalid = |guest: &str, message: String| Err(Error::new(ErrorKind::Invalid, message).about(guest));
    let mut names = BTreeSet::new();
    for Guest { guest, attach, .. } in guests {
        if !names.insert(guest) {
            return invalid(guest, format!("guest {guest} is listed twice: name all of its NICs in one place"));
        }
        let mut nics = BTreeSet::new();
        for wanted in attach {
            if wanted.guest != *guest {
                return invalid(guest, format!("guest {guest}: its attach has a NIC of guest {}", wanted.guest));
            }
            if !nics.insert(wanted.nic) {
                return invalid(
                    guest,
                    format!("guest {guest}: its attach has NIC {} twice: leave one out", wanted.nic),
                );
            }
            wanted.check()?;
        }
    }
    Ok(())
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
    /// Listed and not attached. Mended, where it is said how they should be: attached.
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

/// What of an attachment is otherwise than it should be by now, and the attachment as it should be; none: it can only be detached and attached anew.
fn differs(has: &Attach, wanted: &Attach) -> Option<(String, Option<Attach>)> {
    let Attach { mac, vlan, min_rate, max_rate, mtu, .. } = wanted.clone();
    // How the guest is made is no part of it, and an address that is left open is the one that it has.
    let wanted = Attach { qemu: has.qemu.clone(), mac: mac.or(has.mac), ..wanted.clone() };
    if wanted == *has {
        return None;
    }
    let live = Attach { mac: mac.or(has.mac), vlan, min_rate, max_rate, mtu, ..has.clone() };
    let what = "it is attached otherwise than it should be";
    match live == wanted {
        true => Some((what.into(), Some(wanted))),
        false => Some((format!("{what}, and must be detached and attached anew for it"), None)),
    }
}

/// Compares the attachments with the agent's guests, and with the host; each stands by itself. `attach` attaches what is missing, and says to
/// which VF.
pub(crate) fn sync(
    all: &Attachments,
    world: &impl World,
    guests: &[Guest],
    mending: bool,
    attach: impl Fn(&Attach) -> Result<String, Error>,
) -> Synced {
    let mut synced = Synced::default();
    let records = all.all();
    for record in &records {
        let key = record.key();
        let listed = guests.iter().find(|guest| guest.guest == key.guest);
        let orphan = match listed {
            None => Some(format!("guest {} is not listed", key.guest)),
            Some(guest) => {
                let other = guest.listed().is_some_and(|nics| !nics.contains(&key.nic));
                other.then(|| format!("guest {} has no NIC {}", key.guest, key.nic))
            }
        };
        if let Some(why) = orphan {
            let mut found = finding(record, vec![why]);
            if mending {
                mend(&mut found, all.detach(world, &key, false).map(drop));
            }
            synced.orphaned.push(found);
            continue;
        }
        let mut what = drift(world, record);
        let other = listed.and_then(|guest| guest.wanted(key.nic)).and_then(|wanted| differs(&record.wanted, wanted));
        what.extend(other.iter().map(|(what, _)| what.clone()));
        if what.is_empty() {
            synced.good += 1;
            continue;
        }
        let mut found = finding(record, what);
        if mending {
            let mended = match record.stage {
                Stage::Attached | Stage::Changing => match other {
                    Some((what, None)) => Err(Error::new(ErrorKind::Exists, format!("{key}: {what}")).about(&key)),
                    other => all
                        .change(world, &key, |record| match other.and_then(|(_, wanted)| wanted) {
                            Some(wanted) => record.want(wanted),
                            None => Ok(()),
                        })
                        .map(drop),
                },
                Stage::Attaching | Stage::Detaching => all.recover(world, &key),
            };
            mend(&mut found, mended);
        }
        synced.drifted.push(found);
    }
    for guest in guests {
        for nic in guest.listed().into_iter().flatten() {
            if records.iter().any(|record| record.wanted.guest == guest.guest && record.wanted.nic == nic) {
                continue;
            }
            let what = vec!["it is not attached".into()];
            let mut found = Finding { guest: guest.guest.clone(), nic, target: None, what, mended: false, error: None };
            if let Some(wanted) = guest.wanted(nic).filter(|_| mending) {
                let attached = attach(wanted).map(|target| found.target = Some(target));
                mend(&mut found, attached);
            }
            synced.missing.push(found);
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
