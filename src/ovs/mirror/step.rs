//! What the engines are told at once, and what came of it. No lock is held meanwhile.

use std::collections::{BTreeMap, HashMap};

use ringspan_protocol::rule::{Rule, RuleId, RuleResult};
use ringspan_protocol::{MeterSpec, NicName};

use super::engine::{Engine, Nic};
use crate::error::Error;

/// Rules in one request to an engine: a lane takes as many.
pub(super) const BATCH: usize = ringspan_protocol::message::MAX_RULES;

/// What the engines are to be told.
#[derive(Debug, Default)]
pub(super) struct Step {
    /// NICs that are asked for all rules that they have.
    pub ask: Vec<Nic>,
    /// Rules to remove, first of all.
    pub removals: HashMap<NicName, Vec<RuleId>>,
    /// Meters that the rules name.
    pub meters: HashMap<NicName, BTreeMap<u32, MeterSpec>>,
    /// Rules to install or to replace.
    pub installs: HashMap<NicName, Vec<Rule>>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The rules of NICs that were asked.
    pub found: Vec<(Nic, Vec<Rule>)>,
    /// NICs that could not be told or asked.
    pub failed: Vec<(NicName, Error)>,
    /// What became of rules that were to be installed.
    pub results: Vec<(NicName, Vec<RuleResult>)>,
}

impl Step {
    /// Does it.
    pub(super) fn run(self, engine: &dyn Engine) -> Outcome {
        let Self { ask, removals, meters, installs } = self;
        let mut outcome = Outcome::default();
        for nic in ask {
            match engine.rules(&nic.name) {
                Ok(rules) => outcome.found.push((nic, rules)),
                Err(error) => outcome.failed.push((nic.name, error)),
            }
        }
        for (nic, ids) in removals {
            if let Err(error) = remove(&nic, &ids, engine) {
                outcome.failed.push((nic, error));
            }
        }
        for (nic, meters) in meters {
            let meters: Vec<MeterSpec> = meters.into_values().collect();
            if let Err(error) = meters.chunks(BATCH).try_for_each(|meters| engine.set_meters(&nic, meters)) {
                outcome.failed.push((nic, error));
            }
        }
        for (nic, rules) in installs {
            // What should have gone comes first: a NIC that did not do that is told nothing more.
            if outcome.failed.iter().any(|(failed, _)| *failed == nic) {
                continue;
            }
            if let Err(error) = install(&nic, &rules, engine, &mut outcome.results) {
                outcome.failed.push((nic, error));
            }
        }
        outcome
    }
}

fn remove(nic: &NicName, ids: &[RuleId], engine: &dyn Engine) -> Result<(), Error> {
    ids.chunks(BATCH).try_for_each(|ids| engine.remove(nic, ids))
}

fn install(
    nic: &NicName,
    rules: &[Rule],
    engine: &dyn Engine,
    results: &mut Vec<(NicName, Vec<RuleResult>)>,
) -> Result<(), Error> {
    for rules in rules.chunks(BATCH) {
        let of_these = engine.install(nic, rules)?;
        // What it refused to replace is as before, which is not what the flow does now.
        let refused: Vec<RuleId> =
            of_these.iter().filter(|result| result.error.is_some()).map(|result| result.id).collect();
        results.push((nic.clone(), of_these));
        if !refused.is_empty() {
            remove(nic, &refused, engine)?;
        }
    }
    Ok(())
}
