//! The lanes' NICs as an engine of the mirror.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringspan_protocol::message::MAX_RULES;
use ringspan_protocol::rule::{Rule, RuleCounters, RuleId, RuleResult};
use ringspan_protocol::{Capabilities, NicMode, NicName, Reply, Request};

use super::{Daemon, locked};
use crate::error::{Error, ErrorKind};
use crate::lanes::{Lane, LanePhase};
use crate::ovs::mirror::{Engine, Nic};

/// How long a lane's NICs are taken for known, unless lanes come or go.
const FRESH: Duration = Duration::from_secs(1);

/// The NICs of all lanes that run.
pub(crate) struct Lanes {
    daemon: Arc<Daemon>,
    known: Mutex<Option<Known>>,
}

struct Known {
    at: Instant,
    /// Lives of the lanes by then.
    lives: Vec<u64>,
    nics: Vec<(Nic, Capabilities, Arc<Lane>)>,
}

impl Lanes {
    pub(crate) fn new(daemon: &Arc<Daemon>) -> Self {
        Self { daemon: Arc::clone(daemon), known: Mutex::default() }
    }

    fn look(&self) -> Vec<(Nic, Capabilities, Arc<Lane>)> {
        let lanes: Vec<_> = self.daemon.all_lanes().into_iter().filter(|lane| lane.phase() == LanePhase::Up).collect();
        let lives: Vec<u64> = lanes.iter().map(|lane| lane.lives()).collect();
        let mut known = locked(&self.known);
        if let Some(known) = known.as_ref().filter(|known| known.at.elapsed() < FRESH && known.lives == lives) {
            return known.nics.clone();
        }
        let mut nics = Vec::new();
        for lane in &lanes {
            let life = lane.lives();
            if let Ok(Reply::Nics(found)) = lane.ask(Request::NicList) {
                let entry = |status: ringspan_protocol::NicStatus| {
                    let nic = Nic {
                        ports: status.ports.iter().map(|port| port.port).collect(),
                        empty: status.rules == 0,
                        name: status.spec.name,
                        life,
                    };
                    (nic, status.capabilities, Arc::clone(lane))
                };
                // In legacy mode no rules decide.
                let by_rules = |status: &ringspan_protocol::NicStatus| status.spec.mode == NicMode::Switchdev;
                nics.extend(found.into_iter().filter(by_rules).map(entry));
            }
        }
        *known = Some(Known { at: Instant::now(), lives, nics: nics.clone() });
        nics
    }

    fn ask(&self, nic: &NicName, request: Request) -> Result<Reply, Error> {
        let found = self.look().into_iter().find(|(known, ..)| known.name == *nic);
        let (.., lane) = found.ok_or_else(|| {
            Error::new(ErrorKind::LaneDown, format!("no lane has the NIC {nic} at this moment: see ringspan lane list"))
        })?;
        lane.ask(request)
    }

    /// The answer of each of so many rules.
    fn told(&self, nic: &NicName, count: usize, request: Request) -> Result<Vec<RuleResult>, Error> {
        match self.ask(nic, request)? {
            Reply::RuleResults(results) if results.len() == count => Ok(results),
            _ => Err(something_else()),
        }
    }

    /// All pages of a list that is told in the order of ids.
    fn pages<T>(
        &self,
        nic: &NicName,
        request: impl Fn(Option<RuleId>) -> Request,
        read: impl Fn(Reply) -> Option<Vec<T>>,
        id: impl Fn(&T) -> RuleId,
    ) -> Result<Vec<T>, Error> {
        let mut all = Vec::new();
        loop {
            let after = all.last().map(&id);
            let page = read(self.ask(nic, request(after))?).ok_or_else(something_else)?;
            let last = page.len() < MAX_RULES;
            // A lane that repeats itself would be asked for ever.
            if page.first().is_some_and(|first| Some(id(first)) <= after) {
                return Err(something_else());
            }
            all.extend(page);
            if last {
                return Ok(all);
            }
        }
    }
}

fn something_else() -> Error {
    Error::new(ErrorKind::Version, "the lane answered something else than was asked: is it of another version?")
}

impl Engine for Lanes {
    fn nics(&self) -> Vec<Nic> {
        self.look().into_iter().map(|(nic, ..)| nic).collect()
    }

    fn capabilities(&self, nic: &NicName) -> Capabilities {
        let found = self.look().into_iter().find(|(known, ..)| known.name == *nic);
        found.map(|(_, capabilities, _)| capabilities).unwrap_or_default()
    }

    fn validate(&self, nic: &NicName, rules: &[Rule]) -> Result<Vec<RuleResult>, Error> {
        self.told(nic, rules.len(), Request::RuleValidate { nic: nic.clone(), rules: rules.to_vec() })
    }

    fn install(&self, nic: &NicName, rules: &[Rule]) -> Result<Vec<RuleResult>, Error> {
        self.told(nic, rules.len(), Request::RuleInstall { nic: nic.clone(), rules: rules.to_vec() })
    }

    fn remove(&self, nic: &NicName, ids: &[RuleId]) -> Result<(), Error> {
        match self.ask(nic, Request::RuleRemove { nic: nic.clone(), ids: ids.to_vec() })? {
            Reply::RuleResults(results) => match results.into_iter().find_map(|result| result.error) {
                None => Ok(()),
                Some(failure) => Err(failure.into()),
            },
            _ => Err(something_else()),
        }
    }

    fn rules(&self, nic: &NicName) -> Result<Vec<Rule>, Error> {
        let request = |after| Request::RuleList { nic: nic.clone(), after, limit: MAX_RULES as u32 };
        let read = |reply| match reply {
            Reply::Rules(rules) => Some(rules),
            _ => None,
        };
        self.pages(nic, request, read, |rule| rule.id)
    }

    fn counters(&self, nic: &NicName) -> Result<Vec<RuleCounters>, Error> {
        let request = |after| Request::RuleCounters { nic: nic.clone(), after, limit: MAX_RULES as u32 };
        let read = |reply| match reply {
            Reply::RuleCounters(counters) => Some(counters),
            _ => None,
        };
        self.pages(nic, request, read, |counters| counters.id)
    }
}
