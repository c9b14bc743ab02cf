//! Open vSwitch keeps what is used, and forgets what is idle, although a NIC forwards packets of which it sees none.
//!
//! A software NIC sends one packet of each active rule to OVS, as often as OpenFlow's idle timeouts need it. An engine of another NIC cannot do that (`refreshes` of
//! [`ringspan_protocol::Capabilities`]). Then `other_config:max-idle` is raised ([`max_idle`]), and by the NIC's word of each rule's last packet
//! - a rule that is idle for the user's time is taken out, and installed again when OVS sees a packet of its flow;
//! - a rule that is in use is taken out for a moment when OVS saw nothing of its flow for half the raised time, or for a third of the shortest idle
//!   timeout of OpenFlow's flows, if that is less: those are OVS's, too, and live on packets that it sees.
//!
//! The flows themselves are OVS's to remove: one that is deleted in its datapath by somebody else is not put there again by versions before
//! 3.4, which go on believing that it is there (decision 0022).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ringspan_protocol::NicName;

use super::engine::{Engine, Nic};
use super::run::{Common, Settings, lock};
use super::table::{Entry, Paused, State, seconds};
use super::work::Work;
use crate::ovs::client::{Database, OvsError, Place};
use crate::ovs::max_idle::{self, TakenOver};

/// Time between looks, and so the longest time that a rule in use is out.
const EVERY: Duration = Duration::from_millis(500);
/// Time between attempts to reach OVS while no NIC needs it: something may have to be restored.
const RETRY: Duration = Duration::from_secs(5);
/// Longest wait for the database server.
const DATABASE: Duration = Duration::from_secs(1);
/// How often a software NIC's rule in use shows OVS a packet: where no idle timeout asks for more, and at most.
const SHOWN: Duration = Duration::from_secs(4);
const SHOWN_AT_MOST: Duration = Duration::from_millis(300);
/// Packets a second that a NIC's rules together may send to OVS for that: its slow path has other things to do.
const SHOWN_A_SECOND: usize = 2000;
/// Most rules that are taken out at once, of those in use: their packets go through OVS meanwhile.
const AT_ONCE: usize = 200;

/// Looks after idle flows until the mirror ends. What was taken over stays so then: rules stay, too.
pub(super) fn run(common: &Common, settings: &Settings, engine: &dyn Engine) {
    let mut database = None;
    // From when on no NIC needs it; one that is busy or restarted is not there for a moment.
    let mut unneeded = Some(Instant::now());
    let mut is_restored = false;
    let mut told = HashMap::new();
    while !lock(&common.shared).ending {
        let owned = lock(&common.shared).work.hw_offload.is_some();
        let nics = engine.nics();
        refresh(common, engine, &nics, &mut told);
        let needs = nics.iter().any(|nic| {
            let can = &nic.capabilities;
            !can.refreshes && can.refuses.is_none() && !owned
        });
        if needs {
            (unneeded, is_restored) = (None, false);
        } else {
            unneeded.get_or_insert_with(Instant::now);
        }
        let is_over = unneeded.is_some_and(|since| since.elapsed() >= settings.grace);
        let mut pause = EVERY;
        if needs || is_over && !is_restored {
            match look(&mut database, &settings.place, needs.then_some(settings.raised)) {
                Ok(Some(taken)) => lock(&common.shared).work.pause_and_resume(taken),
                Ok(None) => (is_restored, database) = (true, None),
                Err(error) => {
                    tracing::debug!("max-idle: {error}");
                    database = None;
                    pause = if needs { EVERY } else { RETRY };
                }
            }
        }
        common.sleep(pause);
    }
}

/// Tells software NICs how often their rules are to show OVS a packet. `told` is what each was last told, and in which life.
fn refresh(common: &Common, engine: &dyn Engine, nics: &[Nic], told: &mut HashMap<NicName, (u64, Duration)>) {
    told.retain(|name, _| nics.iter().any(|nic| nic.name == *name));
    for nic in nics.iter().filter(|nic| nic.capabilities.refreshes) {
        let every = {
            let shared = lock(&common.shared);
            let shortest = shared.work.shortest_idle;
            shortest.map_or(SHOWN, |shortest| shown(shortest, shared.work.count_rules(&nic.name)))
        };
        let is = (nic.life, every);
        if told.get(&nic.name) == Some(&is) {
            continue;
        }
        match engine.set_refresh(&nic.name, every) {
            Ok(()) => drop(told.insert(nic.name.clone(), is)),
            Err(error) => tracing::debug!(nic = %nic.name, "how often its rules show packets: {error}"),
        }
    }
}

/// How often each of so many rules shows OVS a packet, so that flows of OpenFlow's with this idle timeout stay while they are used: three times in it, as
/// far as OVS takes so many packets.
fn shown(shortest: Duration, rules: usize) -> Duration {
    // In steps, so that not every rule that comes or goes is another time.
    let least = Duration::from_millis(100) * (rules * 10 / SHOWN_A_SECOND).try_into().unwrap_or(u32::MAX);
    Duration::from_millis(shortest.as_millis() as u64 / 3).max(least).clamp(SHOWN_AT_MOST, SHOWN)
}

fn look(
    database: &mut Option<Database>,
    place: &Place,
    wanted: Option<Duration>,
) -> Result<Option<TakenOver>, OvsError> {
    let database = match database {
        Some(database) => database,
        None => database.insert(Database::connect_within(place, DATABASE)?),
    };
    max_idle::take_over(database, wanted)
}

impl Work {
    /// Takes rules of idle flows out, and for a moment those of which OVS saw nothing for long; puts back what was used or was out for a moment.
    fn pause_and_resume(&mut self, TakenOver { users, raised }: TakenOver) {
        let mut changed = Vec::new();
        let mut moments = 0;
        let unseen = unseen(raised, self.shortest_idle);
        for (ufid, entry) in &mut self.table.flows {
            let paused = match entry.paused {
                // What OVS tells of its counters may be some seconds old: one that was used in between comes back a little later.
                Paused::Idle(packets) if entry.ovs().packets as u32 == packets => continue,
                Paused::Idle(_) | Paused::ForAMoment => Paused::No,
                Paused::No => {
                    let Some(nic) = entry.state.nic() else { continue };
                    if self.refreshing.contains(nic) {
                        continue;
                    }
                    let used = used_again(entry);
                    if used.is_idle(users) {
                        Paused::Idle(entry.ovs().packets as u32)
                    } else if used.is_unseen(unseen) && moments < AT_ONCE {
                        moments += 1;
                        Paused::ForAMoment
                    } else {
                        continue;
                    }
                }
            };
            entry.paused = paused;
            changed.push(*ufid);
        }
        for ufid in changed {
            self.enqueue(ufid);
        }
    }
}

/// How long OVS may see nothing of a flow in use.
fn unseen(raised: Duration, shortest: Option<Duration>) -> Duration {
    // The rule is out within half a second, its packet is counted within another one by OVS, and after some more by OpenFlow.
    shortest.map_or(raised / 2, |shortest| (shortest / 3).max(EVERY).min(raised / 2))
}

/// When a flow was last used, in milliseconds before now.
struct Used {
    /// By OVS's word; nothing: never.
    ovs: Option<u64>,
    /// By the NIC's word; nothing: never since the rule is there.
    rule: Option<u64>,
    /// Since the flow is there, or its rule was installed.
    since: u64,
}

fn used_again(entry: &Entry) -> Used {
    Used {
        ovs: entry.ovs().used().map(u64::from),
        rule: entry.counted.rules().and_then(|(_, idle)| idle),
        since: u64::from(seconds().saturating_sub(entry.touched)) * 1000,
    }
}

impl Used {
    /// Neither path was used for so long. What a rule that was made anew would have counted before is not known: it counts from there.
    fn is_idle(&self, limit: Duration) -> bool {
        let limit = limit.as_millis() as u64;
        let long = |used: Option<u64>| used.is_none_or(|used| used >= limit);
        long(self.ovs) && long(self.rule) && self.since > limit
    }

    /// OVS saw nothing for so long, and the rule is not new.
    fn is_unseen(&self, limit: Duration) -> bool {
        let limit = limit.as_millis() as u64;
        self.ovs.is_none_or(|used| used >= limit) && self.since > limit / 2
    }
}

/// Whether the rule of a flow is out for now, and how the flow is then.
pub(super) fn state(paused: Paused) -> Option<State> {
    match paused {
        Paused::No => None,
        Paused::ForAMoment => Some(State::Pending),
        Paused::Idle(_) => Some(State::Not(Box::new(crate::ovs::compile::Cause::Idle))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openflows_idle_timeouts_say_how_often_ovs_sees_a_packet() {
        let seconds = Duration::from_secs;
        for (shortest, often) in [(None, 60), (Some(30), 10), (Some(9), 3), (Some(300), 60)] {
            assert_eq!(unseen(seconds(120), shortest.map(seconds)), seconds(often), "{shortest:?}");
        }
        assert_eq!(unseen(seconds(120), Some(seconds(1))), EVERY);
    }

    #[test]
    fn rules_show_their_packets_three_times_in_a_timeout_unless_there_are_too_many() {
        let ms = Duration::from_millis;
        for (shortest, rules, every) in [
            (30_000, 0, 4000),
            (6000, 10, 2000),
            (1000, 10, 333),
            (1000, 1000, 500),
            (3000, 100_000, 4000),
            (500, 0, 300),
        ] {
            assert_eq!(shown(ms(shortest), rules), ms(every), "{shortest} {rules}");
        }
    }

    #[test]
    fn a_flow_is_idle_when_both_paths_are_and_unseen_when_ovs_alone_saw_nothing() {
        let second = Duration::from_secs(1);
        for (ovs, rule, since, idle, unseen) in [
            (Some(1500), Some(1500), 2000, true, true),
            (Some(500), Some(1500), 2000, false, false),
            (Some(1500), Some(500), 2000, false, true),
            (None, None, 2000, true, true),
            (None, None, 0, false, false),
            (Some(1500), None, 1000, false, true),
        ] {
            let used = Used { ovs, rule, since };
            assert_eq!((used.is_idle(second), used.is_unseen(second)), (idle, unseen), "{ovs:?} {rule:?} {since}");
        }
    }
}
