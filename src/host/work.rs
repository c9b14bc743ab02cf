//! A change of the host that takes several steps is written down before the first of them: a daemon that was killed amid it finishes it when it
//! starts again, or takes it back where it cannot be finished.
//!
//! All changes say how things should be, so that finishing one is doing it again. What doing it again cannot know is written down besides: the
//! functions that were taken from their drivers for a moment, and what was there before a bond.

use std::collections::BTreeMap;

use ringspan_protocol::PciAddress;
use serde::{Deserialize, Serialize};

use super::Host;
use super::bind::{self, Memory};
use super::bond::{self, Around};
use super::eswitch;
use super::netlink::VfSettings;
use super::pci::{Function, attribute};
use super::representor::index;
use super::sriov::{self, Count};
use super::vf;
use crate::error::{Error, ErrorKind};

/// A change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub(crate) enum Change {
    /// `bond.create`.
    MakeBond {
        /// How it should be.
        wish: bond::Wish,
        /// What was there.
        before: bond::Before,
    },
    /// `bond.delete`.
    DeleteBond {
        /// Its name.
        name: String,
        /// Also with IP addresses.
        disturb: bool,
        /// The functions whose VF LAG ends with it.
        pair: Option<[PciAddress; 2]>,
        /// Its index: one of another is somebody else's.
        #[serde(default)]
        index: Option<u32>,
    },
    /// `eswitch.set`.
    SetEswitch {
        /// How it should be.
        wish: eswitch::Wish,
        /// How many VFs there were, where they go while it changes.
        #[serde(default)]
        vfs: u16,
        /// How it was, of what is wished.
        #[serde(default)]
        before: Option<eswitch::Wish>,
    },
    /// `vf.enable`.
    EnableVfs {
        /// The PF.
        pf: String,
        /// How many.
        count: Count,
        /// Also VFs that seem to be used.
        disturb: bool,
        /// Longest wait for all of them, in milliseconds.
        timeout_ms: u64,
        /// How many there were.
        #[serde(default)]
        before: u16,
    },
    /// `vf.set`.
    SetVf {
        /// How it should be.
        wish: vf::Wish,
        /// What was set for the VF.
        before: Option<VfSettings>,
    },
    /// `device.bind`.
    Bind {
        /// The function.
        device: PciAddress,
        /// The driver, or the one that it had at first.
        driver: Option<String>,
        /// Also a PF with VFs, or with an interface that is up.
        disturb: bool,
        /// What it had.
        #[serde(default)]
        before: Option<bind::Had>,
    },
    /// `host.apply`, which is done again from its files.
    Apply,
}

impl Change {
    /// What it is of, in one clause.
    pub(crate) fn told(&self) -> String {
        match self {
            Self::MakeBond { wish, .. } => format!("making the bond {}", wish.name),
            Self::DeleteBond { name, .. } => format!("taking the bond {name} away"),
            Self::SetEswitch { wish, .. } => format!("changing the switch of {}", wish.pf),
            Self::EnableVfs { pf, .. } => format!("changing the number of VFs of {pf}"),
            Self::SetVf { wish, .. } => format!("setting VF {} of {}", wish.vf, wish.pf),
            Self::Bind { device, .. } => format!("giving {device} to another driver"),
            Self::Apply => "applying the agent's configuration".into(),
        }
    }
}

/// A change that was begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Begun {
    /// Which.
    pub change: Change,
    /// The boot of the machine that it was begun in: what another one has made is not what was to be changed.
    #[serde(default)]
    pub boot: String,
    /// The functions that were to be taken from their drivers, with those.
    #[serde(default)]
    pub unbound: BTreeMap<PciAddress, String>,
    /// The interfaces that were to leave a bond for a moment.
    #[serde(default)]
    pub left: Vec<Left>,
    /// The index that a new bond was to have: one that has another is somebody else's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<u32>,
}

impl Begun {
    /// A change that begins in this boot.
    pub(crate) fn new(host: &Host, change: Change) -> Self {
        Self { change, boot: host.boot(), unbound: BTreeMap::new(), left: vec![], made: None }
    }
}

/// What came of finishing a change.
pub(crate) struct Finished {
    /// What was done.
    pub done: Vec<String>,
    /// Why it could not be finished.
    pub error: Option<Error>,
    /// Functions that their drivers did not take back, which is tried again ([`give_back_all`]).
    pub without_driver: BTreeMap<PciAddress, String>,
}

/// An interface that is to come back to its bond.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Left {
    /// The bond.
    pub bond: String,
    /// The interface's name at that time.
    pub interface: String,
    /// Its function, which keeps its address when the interface is made anew.
    pub address: Option<PciAddress>,
}

/// Where it is written down.
pub(crate) trait Journal: Send + Sync {
    /// Functions are taken from their drivers for a moment; returns when that is durable.
    fn unbinding(&self, functions: &[(PciAddress, String)]) -> Result<(), Error>;
    /// An interface leaves its bond for a moment; returns when that is durable.
    fn leaving(&self, member: Left) -> Result<(), Error>;
    /// A bond is made that will have this index; returns when that is durable.
    fn making(&self, index: u32) -> Result<(), Error>;
}

/// Nothing is written down: for those who only look.
pub(crate) struct Nowhere;

impl Journal for Nowhere {
    fn unbinding(&self, _: &[(PciAddress, String)]) -> Result<(), Error> {
        Ok(())
    }

    fn leaving(&self, _: Left) -> Result<(), Error> {
        Ok(())
    }

    fn making(&self, _: u32) -> Result<(), Error> {
        Ok(())
    }
}

/// Finishes a change that an earlier daemon began, or takes it back. One of before the machine was started anew is not done again: only functions without a
/// driver get theirs.
pub(crate) fn finish(host: &Host, memory: &(impl Memory + ?Sized), around: &Around<'_>, begun: &Begun) -> Finished {
    let again = match &begun.change {
        // From its files, at each start.
        Change::Apply => Ok(vec![]),
        _ if begun.boot != host.boot() => {
            let message = format!("the machine was started anew amid {}, which is not done again", begun.change.told());
            Err(Error::new(ErrorKind::Failed, format!("{message}: ask for it again where it is still wanted")))
        }
        Change::MakeBond { wish, before } => make_bond(host, wish, before, begun, around),
        Change::DeleteBond { name, disturb, pair, index: own } => {
            // It may have been made again, when it could not be taken away.
            match index(&host.sysfs, name).filter(|now| [*own, begun.made].iter().all(|ours| *ours != Some(*now))) {
                Some(_) => Err(somebody_elses(name, "ringspan bond delete")),
                None => bond::delete(host, name, *disturb, around).and_then(|removed| {
                    bond::has_ended(host, name, *pair)?;
                    Ok(removed.done)
                }),
            }
        }
        Change::SetEswitch { wish, vfs, before } => {
            let set = eswitch::set(host, wish, around.owner).map(|set| set.done).map_err(|error| {
                match before.as_ref().map_or(Ok(()), |before| eswitch::undo(host, before, around.owner)) {
                    Ok(()) => error,
                    Err(why) => Error { message: format!("{}; left: {}", error.message, why.message), ..error },
                }
            });
            with_vfs(host, &wish.pf, *vfs, set)
        }
        Change::EnableVfs { pf, count, disturb, timeout_ms, before } => {
            let limit = std::time::Duration::from_millis((*timeout_ms).min(600_000));
            match sriov::enable(host, pf, *count, *disturb, limit, around) {
                Ok(enabled) => Ok(enabled.done),
                Err(error) => with_vfs(host, pf, *before, Err(error)),
            }
        }
        Change::SetVf { wish, before } => vf::set(host, wish).map(|set| set.done).map_err(|error| {
            match before.as_ref().map_or(Ok(()), |before| vf::undo(host, wish, before)) {
                Ok(()) => error,
                Err(why) => Error { message: format!("{}; left: {}", error.message, why.message), ..error },
            }
        }),
        Change::Bind { device, driver, disturb, before } => {
            let name = device.to_string();
            let bound = bind::bind(host, memory, &name, driver.as_deref(), *disturb, around.owner);
            bound.map(|bound| bound.done).map_err(|error| {
                match before.as_ref().map_or(Ok(()), |had| bind::put_back(host, memory, *device, had)) {
                    Ok(()) => error,
                    Err(why) => Error { message: format!("{}; left: {}", error.message, why.message), ..error },
                }
            })
        }
    };
    let (mut done, mut failed) = match again {
        Ok(done) => (done, None),
        Err(error) => (vec![], Some(error)),
    };
    let left = begun.left.iter().filter(|_| begun.boot == host.boot());
    for member in left {
        match bond::come_back(host, member) {
            Ok(true) => done.push(format!("{} is a member of {} again", member.interface, member.bond)),
            Ok(false) => {}
            Err(error) => {
                failed.get_or_insert(error);
            }
        }
    }
    let given = give_back_all(host, &begun.unbound);
    done.extend(given.done);
    Finished { done, error: failed.or(given.error), without_driver: given.without_driver }
}

/// Gives a PF its VFs back that a change took away, whatever came of the rest.
fn with_vfs(host: &Host, pf: &str, count: u16, outcome: Result<Vec<String>, Error>) -> Result<Vec<String>, Error> {
    match (sriov::restore(host, pf, count), outcome) {
        (Ok(restored), Ok(done)) => Ok(done.into_iter().chain(restored).collect()),
        (Ok(None), Err(error)) => Err(error),
        (Ok(Some(restored)), Err(error)) => Err(Error { message: format!("{}; {restored}", error.message), ..error }),
        (Err(why), Ok(_)) => Err(why),
        (Err(why), Err(error)) => Err(Error { message: format!("{}; left: {}", error.message, why.message), ..error }),
    }
}

/// Those of the functions that were taken from their drivers which have none now.
pub(crate) fn without_driver(host: &Host, unbound: BTreeMap<PciAddress, String>) -> BTreeMap<PciAddress, String> {
    let has_none = |function: &PciAddress| {
        Function::read(&host.sysfs, *function).is_some() && host.sysfs.link(&attribute(*function, "driver")).is_none()
    };
    unbound.into_iter().filter(|(function, _)| has_none(function)).collect()
}

/// Gives functions back to the drivers that they had, where they have none.
pub(crate) fn give_back_all(host: &Host, functions: &BTreeMap<PciAddress, String>) -> Finished {
    let mut finished = Finished { done: vec![], error: None, without_driver: BTreeMap::new() };
    for (function, driver) in functions {
        match give_back(host, *function, driver) {
            Ok(true) => finished.done.push(format!("{driver} has {function} again")),
            Ok(false) => {}
            Err(error) => {
                finished.error.get_or_insert(error);
                finished.without_driver.insert(*function, driver.clone());
            }
        }
    }
    finished
}

fn make_bond(
    host: &Host,
    wish: &bond::Wish,
    before: &bond::Before,
    begun: &Begun,
    around: &Around<'_>,
) -> Result<Vec<String>, Error> {
    let now = index(&host.sysfs, &wish.name);
    let ours = !before.existed && now.is_some() && now == begun.made;
    if !before.existed && now.is_some() && !ours {
        let error = somebody_elses(&wish.name, "ringspan bond create");
        return Err(match bond::put_back(host, &wish.name, before, around) {
            Ok(()) => error,
            Err(why) => Error { message: format!("{}; left: {}", error.message, why.message), ..error },
        });
    }
    // The earlier daemon had found that it may be made, and had begun; and members of a bond that was just made may leave it again.
    let allowed = !begun.unbound.is_empty();
    let again = bond::Wish { disturb: wish.disturb || allowed || ours, ..wish.clone() };
    bond::create(host, &again, around).map(|bond| bond.done).map_err(|error| {
        match bond::undo(host, wish, before, around) {
            Ok(()) => error,
            Err(why) => Error { message: format!("{}; left: {}", error.message, why.message), ..error },
        }
    })
}

fn somebody_elses(name: &str, again: &str) -> Error {
    let message = format!(
        "{name}: somebody else has made an interface of that name meanwhile, which is left alone: ask for it again where it is still wanted ({again})"
    );
    Error::new(ErrorKind::Exists, message).about(name)
}

/// Gives a function without a driver back to the one that it had.
fn give_back(host: &Host, function: PciAddress, driver: &str) -> Result<bool, Error> {
    let has = || host.sysfs.link(&attribute(function, "driver"));
    if Function::read(&host.sysfs, function).is_none() || has().is_some() {
        return Ok(false);
    }
    let written = host.sysfs.write(&format!("bus/pci/drivers/{driver}/bind"), &function.to_string());
    match has() {
        Some(now) if now == driver => Ok(true),
        _ => written.map(|()| true).map_err(|error| Error::io(format!("{driver} does not take {function}"), &error)),
    }
}
