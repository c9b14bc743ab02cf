//! The lanes' NICs as an engine of the mirror.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringspan_protocol::message::MAX_RULES;
use ringspan_protocol::rule::{Rule, RuleCounters, RuleId, RuleResult};
use ringspan_protocol::{MeterSpec, NicMode, NicName, NicStatus, Reply, Request};

use super::nic_watch::NicWatch;
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
    /// Told of what changes at the NICs; one only has it, so that each change is told once.
    watch: Option<Mutex<NicWatch>>,
}

struct Known {
    at: Instant,
    /// Lives of the lanes by then.
    lives: Vec<u64>,
    nics: Vec<(Nic, Arc<Lane>)>,
}

impl Lanes {
    pub(crate) fn new(daemon: &Arc<Daemon>) -> Self {
        Self { daemon: Arc::clone(daemon), known: Mutex::default(), watch: None }
    }

    /// The same, and tells events of what changes at the NICs.
    pub(crate) fn watching(daemon: &Arc<Daemon>) -> Self {
        Self { watch: Some(Mutex::default()), ..Self::new(daemon) }
    }

    fn tell(&self, lane: &Lane, nics: &[NicStatus]) {
        let Some(watch) = &self.watch else { return };
        let mut watch = locked(watch);
        for event in nics.iter().flat_map(|nic| watch.look(nic)) {
            tracing::warn!(lane = %lane.name, "{event:?}");
            self.daemon.events.tell(Some(&lane.name), None, event);
        }
    }

    fn look(&self) -> Vec<(Nic, Arc<Lane>)> {
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
                self.tell(lane, &found);
                // In legacy mode no rules decide.
                let by_rules = |status: &NicStatus| status.spec.mode == NicMode::Switchdev;
                nics.extend(found.into_iter().filter(by_rules).map(|status| (nic(status, life), Arc::clone(lane))));
            }
        }
        *known = Some(Known { at: Instant::now(), lives, nics: nics.clone() });
        nics
    }

    fn ask(&self, nic: &NicName, request: Request) -> Result<Reply, Error> {
        let found = self.look().into_iter().find(|(known, _)| known.name == *nic);
        let (_, lane) = found.ok_or_else(|| {
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

    /// Some pages of a list that is told in the order of ids: what is behind one, and at most so many.
    fn pages<T>(
        &self,
        nic: &NicName,
        (after, limit): (Option<RuleId>, usize),
        request: impl Fn(Option<RuleId>, u32) -> Request,
        read: impl Fn(Reply) -> Option<Vec<T>>,
        id: impl Fn(&T) -> RuleId,
    ) -> Result<Vec<T>, Error> {
        let mut all = Vec::new();
        loop {
            let after = all.last().map(&id).or(after);
            let wanted = MAX_RULES.min(limit - all.len());
            if wanted == 0 {
                return Ok(all);
            }
            let page = read(self.ask(nic, request(after, wanted as u32))?).ok_or_else(something_else)?;
            let last = page.len() < wanted;
            // A lane that repeats itself would be asked for ever; one that tells more than it was asked for is another one.
            if page.first().is_some_and(|first| Some(id(first)) <= after) || page.len() > wanted {
                return Err(something_else());
            }
            all.extend(page);
            if last {
                return Ok(all);
            }
        }
    }

    /// Rules that are installed, in the order of their ids: those behind one, and at most so many.
    pub(crate) fn rules_after(&self, nic: &NicName, after: Option<RuleId>, limit: usize) -> Result<Vec<Rule>, Error> {
        let request = |after, limit| Request::RuleList { nic: nic.clone(), after, limit };
        let read = |reply| match reply {
            Reply::Rules(rules) => Some(rules),
            _ => None,
        };
        self.pages(nic, (after, limit), request, read, |rule| rule.id)
    }
}

/// As the mirror knows it. A port without a representor is none of the datapath's.
fn nic(status: NicStatus, life: u64) -> Nic {
    let ports = status.ports.into_iter().filter(|port| !port.representor.is_empty());
    Nic {
        ports: ports.map(|port| (port.port, port.representor)).collect(),
        capabilities: status.capabilities,
        empty: status.rules == 0,
        name: status.spec.name,
        life,
    }
}

fn something_else() -> Error {
    Error::new(ErrorKind::Version, "the lane answered something else than was asked: is it of another version?")
}

impl Engine for Lanes {
    fn nics(&self) -> Vec<Nic> {
        self.look().into_iter().map(|(nic, _)| nic).collect()
    }

    fn set_meters(&self, nic: &NicName, meters: &[MeterSpec]) -> Result<(), Error> {
        match self.ask(nic, Request::MeterSet { nic: nic.clone(), meters: meters.to_vec() })? {
            Reply::Done => Ok(()),
            _ => Err(something_else()),
        }
    }

    fn set_refresh(&self, nic: &NicName, every: Duration) -> Result<(), Error> {
        let ms = every.as_millis().try_into().unwrap_or(u32::MAX);
        match self.ask(nic, Request::NicRefresh { nic: nic.clone(), ms })? {
            Reply::Done => Ok(()),
            _ => Err(something_else()),
        }
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
        self.rules_after(nic, None, usize::MAX)
    }

    fn counters(&self, nic: &NicName) -> Result<Vec<RuleCounters>, Error> {
        let request = |after, limit| Request::RuleCounters { nic: nic.clone(), after, limit };
        let read = |reply| match reply {
            Reply::RuleCounters(counters) => Some(counters),
            _ => None,
        };
        self.pages(nic, (None, usize::MAX), request, read, |counters| counters.id)
    }
}
