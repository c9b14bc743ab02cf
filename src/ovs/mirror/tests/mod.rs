//! The mirror against an engine that notes what it is told: fed by hand, and by a real Open vSwitch.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ringspan_protocol::rule::{Rule, RuleCounters, RuleId, RuleResult};
use ringspan_protocol::{Capabilities, Failure, FailureKind, MeterSpec, NicName, NicPort};

use super::packed::Kinds;
use super::table::{Misses, Source, Told as ToldFlow};
use super::work::{News, Work};
use super::{Engine, Nic};
use crate::error::{Error, ErrorKind};

mod changes;
mod copies;
mod engines;
mod idle;
mod kernel;
mod live;
mod many;
mod tunnels;

const SOON: Duration = Duration::from_secs(20);

/// What an engine is and was told.
#[derive(Default)]
struct Told {
    rules: BTreeMap<RuleId, Rule>,
    /// `+id` and `-id`, in order.
    log: Vec<String>,
    life: u64,
    down: bool,
    /// Ids that it refuses.
    refused: Vec<RuleId>,
    /// It takes rules, and has none: what they take is not measured.
    keeps_nothing: bool,
    /// It removes nothing.
    stuck: bool,
    /// It takes rules, and does not answer.
    held: bool,
    /// Names of representors that are not as a software NIC has them.
    names: BTreeMap<NicPort, String>,
    capabilities: Capabilities,
    meters: BTreeMap<u32, MeterSpec>,
    /// How often each rule shows OVS a packet.
    refresh: Option<Duration>,
    /// How long ago each rule's last packet was.
    idle_ms: u64,
    /// It was asked to take rules while it did not answer.
    is_waited_for: bool,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Told>>);

impl Fake {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap()
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.told().log)
    }

    fn up(&self) -> Result<MutexGuard<'_, Told>, Error> {
        let told = self.told();
        if told.down { Err(Error::new(ErrorKind::LaneDown, "the lane is down")) } else { Ok(told) }
    }
}

impl Engine for Fake {
    fn nics(&self) -> Vec<Nic> {
        let name: NicName = "nic0".parse().unwrap();
        let told = self.told();
        let ports = [NicPort::Uplink, NicPort::Vf(0), NicPort::Vf(1)];
        let named = |port: NicPort| (port, told.names.get(&port).cloned().unwrap_or_else(|| port.representor(&name)));
        let ports = ports.map(named).to_vec();
        let capabilities = told.capabilities.clone();
        vec![Nic { ports, name, capabilities, life: told.life, empty: told.rules.is_empty() && !told.keeps_nothing }]
    }

    fn set_meters(&self, _: &NicName, meters: &[MeterSpec]) -> Result<(), Error> {
        self.up()?.meters.extend(meters.iter().map(|meter| (meter.id, *meter)));
        Ok(())
    }

    fn set_refresh(&self, _: &NicName, every: Duration) -> Result<(), Error> {
        self.up()?.refresh = Some(every);
        Ok(())
    }

    fn install(&self, _: &NicName, rules: &[Rule]) -> Result<Vec<RuleResult>, Error> {
        while self.told().held {
            self.told().is_waited_for = true;
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut told = self.up()?;
        let mut results = Vec::new();
        for rule in rules {
            let refused = told.refused.contains(&rule.id);
            told.log.push(format!("{}{}", if refused { '!' } else { '+' }, rule.id.0));
            if !refused && !told.keeps_nothing {
                told.rules.insert(rule.id, rule.clone());
            }
            let error = refused.then(|| Failure::new(FailureKind::NoRoom, "the table is full"));
            results.push(RuleResult { id: rule.id, error });
        }
        Ok(results)
    }

    fn remove(&self, _: &NicName, ids: &[RuleId]) -> Result<(), Error> {
        let mut told = self.up()?;
        if told.stuck {
            return Err(Error::new(ErrorKind::LaneDown, "the lane is stuck"));
        }
        for id in ids {
            told.log.push(format!("-{}", id.0));
            told.rules.remove(id);
        }
        Ok(())
    }

    fn rules(&self, _: &NicName) -> Result<Vec<Rule>, Error> {
        Ok(self.up()?.rules.values().cloned().collect())
    }

    fn counters(&self, _: &NicName) -> Result<Vec<RuleCounters>, Error> {
        let told = self.up()?;
        Ok(told
            .rules
            .keys()
            .map(|id| RuleCounters { id: *id, packets: 100, bytes: 6000, idle_ms: Some(told.idle_ms) })
            .collect())
    }
}

fn line(ufid: u128, from: &str, kind: u16, actions: &str) -> String {
    let ufid = crate::ovs::flow::Ufid(ufid);
    format!(
        "ufid:{ufid}, recirc_id(0),in_port({from}),packet_type(ns=0,id=0),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type({kind:#06x}), packets:1, bytes:60, used:0.1s, dp:ovs, actions:{actions}\n"
    )
}

fn round(work: &mut Work, fake: &Fake, lines: &[String]) -> Vec<String> {
    work.limit = 1000;
    whole(work, fake, &lines.concat());
    fake.log()
}

/// A dump, and all that follows from it, as the mirror's threads do it.
fn whole(work: &mut Work, fake: &Fake, text: &str) {
    work.complete = true;
    work.look(&fake.nics());
    work.table.begin(Source::Text);
    let (mut told, mut misses, mut kinds) = (Vec::new(), Misses::default(), Kinds::default());
    for line in text.lines().map(str::as_bytes) {
        if !work.table.is_as_before(line) {
            told.extend(work.table.told(&mut kinds, line, &mut misses));
        }
    }
    work.take(News::Dump { source: Source::Text, told, misses });
    all_steps(work, fake);
}

fn all_steps(work: &mut Work, fake: &Fake) {
    while let Some(step) = work.next() {
        work.done(step.run(fake));
    }
}
/// A flow as the kernel tells it.
fn told(ufid: u128, from: &str, kind: u16, actions: &str) -> ToldFlow {
    ToldFlow::from_line(&mut Kinds::default(), line(ufid, from, kind, actions).trim_end()).unwrap()
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < SOON, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
