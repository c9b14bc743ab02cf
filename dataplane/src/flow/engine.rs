//! The engine: which of a NIC's rules its driver has, and why it has not the others.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::{Duration, Instant};

use ringspan_protocol::rte::{Item, RteFlow, Step};
use ringspan_protocol::{
    Action, Capabilities, EngineKind, Failure, FailureKind, Field, NicPort, Rule, RuleCounters, RuleId, RuleResult,
};

use super::driver::{Driver, DriverFlow};
use crate::nic::{Counted, Domain, FlowError, FlowPort, FlowRule, FlowStep};

/// How long a driver is left alone before what it said to try again (EAGAIN: its queues are full, or it is busy with others' rules) is tried again, all of
/// a batch together: milliseconds.
const PAUSES: [u64; 7] = [1, 2, 4, 8, 16, 32, 64];
/// A driver that counts ages is told to call a rule idle after so many seconds; nobody listens to that: only when there was a frame last is read.
const AGE_SECONDS: u32 = 60;
/// The group that rules are in which the driver does not take in the first one: mlx5 sets header fields only there.
const INNER_GROUP: u32 = 1;
/// Behind all rules: on to the inner group.
const JUMP_PRIORITY: u32 = ringspan_protocol::rte::LEAST_PRIORITY + 1;

/// A rule that the driver has.
struct Held<F> {
    rule: Rule,
    flow: F,
    /// What was counted before it was installed anew.
    before: Counted,
    /// What the driver counted when it was last asked.
    seen: Counted,
    /// The last count, and when it changed.
    last: (u64, Option<Instant>),
    /// After which others it was made, and before which.
    made: u64,
}

/// What sends frames of a port on to the inner group.
struct Jump<F> {
    flow: F,
    made: u64,
    /// The driver forgot a rule that is newer.
    is_doubtful: bool,
}

/// What was replaced, and is still with the driver.
struct Left<F> {
    rule: RuleId,
    flow: F,
    /// The driver had no time for it; otherwise it refused.
    is_busy: bool,
}

/// The rules of a NIC.
pub struct Engine<D: Driver = FlowPort> {
    at: D,
    ports: BTreeMap<NicPort, u16>,
    domain: Domain,
    capabilities: Capabilities,
    rules: BTreeMap<RuleId, Held<D::Flow>>,
    jumps: BTreeMap<NicPort, Jump<D::Flow>>,
    left: Vec<Left<D::Flow>>,
    /// What rules of this batch counted that were removed to make room for themselves, and are not there again.
    between: BTreeMap<RuleId, Counted>,
    made: u64,
}

impl<D: Driver> Engine<D> {
    /// Asks the driver what it can do. `ports` are DPDK's numbers of the ports: the uplink's own, the VFs' representors'.
    pub fn new(at: D, ports: BTreeMap<NicPort, u16>) -> Self {
        let capabilities = Capabilities {
            engine: EngineKind::RteFlow,
            refreshes: false,
            counts: false,
            ages: false,
            meters: false,
            refuses: None,
        };
        let mut engine = Self {
            at,
            ports,
            domain: Domain::Transfer,
            capabilities,
            rules: BTreeMap::new(),
            jumps: BTreeMap::new(),
            left: Vec::new(),
            between: BTreeMap::new(),
            made: 0,
        };
        let eth = [Item::any(ringspan_protocol::rte::ItemKind::Eth)];
        if let Err(refused) = engine.probe(&eth, &[FlowStep::Drop]) {
            engine.capabilities.refuses = Some(format!("its driver takes no rules between ports: {refused}"));
            engine.domain = Domain::Ingress;
        }
        engine.capabilities.counts = engine.probe(&eth, &[FlowStep::Count, FlowStep::Drop]).is_ok();
        let ages = [FlowStep::Age(AGE_SECONDS), FlowStep::Count, FlowStep::Drop];
        engine.capabilities.ages = engine.capabilities.counts && engine.probe(&eth, &ages).is_ok();
        engine
    }

    fn probe(&self, items: &[Item], steps: &[FlowStep]) -> Result<(), FlowError> {
        self.at.validate(&self.told(0, ringspan_protocol::rte::LEAST_PRIORITY, NicPort::Uplink, items, steps))
    }

    fn told<'a>(
        &self,
        group: u32,
        priority: u32,
        from: NicPort,
        items: &'a [Item],
        steps: &'a [FlowStep],
    ) -> FlowRule<'a> {
        let from = self.ports.get(&from).copied().unwrap_or_else(|| self.at.uplink());
        FlowRule { domain: self.domain, group, priority, from, items, steps }
    }

    /// What it can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// How many rules the driver has.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// What [`Engine::install`] would say, as far as the driver knows before.
    pub fn validate(&self, rules: &[Rule]) -> Vec<RuleResult> {
        let one = |rule: &Rule| {
            let told = self.translate(rule).and_then(|(flow, steps)| {
                let ask = |group| self.at.validate(&self.told(group, flow.priority, rule.in_port, &flow.items, &steps));
                ask(0).or_else(|error| ask(INNER_GROUP).map_err(|_| error)).map_err(|error| refused(rule.id, &error))
            });
            RuleResult { id: rule.id, error: told.err() }
        };
        rules.iter().map(one).collect()
    }

    /// Installs rules, each by itself. What the driver refuses is the answer of its rule; what it had no time for is tried again when it has seen all
    /// of the batch.
    pub fn install(&mut self, rules: Vec<Rule>) -> Vec<RuleResult> {
        let last: BTreeMap<RuleId, usize> = rules.iter().enumerate().map(|(at, rule)| (rule.id, at)).collect();
        self.clear_away();
        let mut errors: Vec<Option<Failure>> = rules.iter().map(|rule| self.install_one(rule).err()).collect();
        self.again(
            &mut errors,
            // What is in the batch once more later is not brought back.
            |at| last.get(&rules[at].id) == Some(&at),
            |engine, at| engine.install_one(&rules[at]).err(),
        );
        self.between.clear();
        // Of those nothing is missing: what came later is there, or says why not.
        let is_over =
            |at: usize, error: &Failure| error.errno == Some(libc::EAGAIN) && last.get(&rules[at].id) != Some(&at);
        let error = |(at, error): (usize, Option<Failure>)| error.filter(|error| !is_over(at, error));
        let errors = errors.into_iter().enumerate().map(error);
        rules.iter().zip(errors).map(|(rule, error)| RuleResult { id: rule.id, error }).collect()
    }

    /// Does again what the driver had no time for, and is still wanted, until nothing of that is left or it had time enough. So with what was replaced
    /// by others of the batch; of that the rest is tried at the next request.
    fn again(
        &mut self,
        errors: &mut [Option<Failure>],
        wanted: impl Fn(usize) -> bool,
        mut once: impl FnMut(&mut Self, usize) -> Option<Failure>,
    ) {
        for pause in PAUSES {
            let is_busy = |error: &Option<Failure>| matches!(error, Some(error) if error.errno == Some(libc::EAGAIN));
            let left: Vec<usize> = (0..errors.len()).filter(|at| is_busy(&errors[*at]) && wanted(*at)).collect();
            if left.is_empty() && !self.left.iter().any(|left| left.is_busy) {
                return;
            }
            self.at.pause(Duration::from_millis(pause));
            self.clear_away();
            for at in left {
                errors[at] = once(self, at);
            }
        }
    }

    fn install_one(&mut self, rule: &Rule) -> Result<(), Failure> {
        let (flow, steps) = self.translate(rule)?;
        let old = self.rules.remove(&rule.id);
        let same = |old: &Held<D::Flow>| old.rule.in_port == rule.in_port && old.rule.matches == rule.matches;
        let created = match self.create(rule, &flow, &steps) {
            // Drivers that find the old one in the way, or have no room for both: it goes first, and its frames take the slow path for a moment.
            Err(error)
                if error.errno == libc::EEXIST && old.as_ref().is_some_and(same)
                    || is_full(&error) && old.is_some() =>
            {
                return self.replace(rule, &flow, &steps, old);
            }
            other => other,
        };
        match created {
            Ok(flow) => {
                let (before, last) = match old {
                    Some(old) => {
                        let counted = self.counted(&old);
                        let last = old.last;
                        self.left.extend(clear(rule.id, old.flow));
                        (counted, (0, last.1))
                    }
                    None => (self.between.remove(&rule.id).unwrap_or_default(), Default::default()),
                };
                self.hold(rule, flow, before, last);
                Ok(())
            }
            Err(error) => {
                let failure = refused(rule.id, &error);
                // As before.
                self.rules.extend(old.map(|old| (rule.id, old)));
                Err(failure)
            }
        }
    }

    fn hold(&mut self, rule: &Rule, flow: D::Flow, before: Counted, last: (u64, Option<Instant>)) {
        self.made += 1;
        let held = Held { rule: rule.clone(), flow, before, seen: Counted::default(), last, made: self.made };
        self.rules.insert(rule.id, held);
    }

    fn replace(
        &mut self,
        rule: &Rule,
        flow: &RteFlow,
        steps: &[FlowStep],
        old: Option<Held<D::Flow>>,
    ) -> Result<(), Failure> {
        if let Some(old) = old {
            let before = self.counted(&old);
            if let Err((flow, error)) = gone(old.flow.remove()) {
                self.rules.insert(rule.id, Held { flow, ..old });
                return Err(refused(rule.id, &error));
            }
            self.between.insert(rule.id, before);
        }
        let flow = self.create(rule, flow, steps).map_err(|error| refused(rule.id, &error))?;
        let before = self.between.remove(&rule.id).unwrap_or_default();
        self.hold(rule, flow, before, (0, None));
        Ok(())
    }

    /// Removes what was replaced and is still with the driver, as far as it has time for that.
    fn clear_away(&mut self) {
        let left = std::mem::take(&mut self.left);
        self.left = left.into_iter().filter_map(|left| clear(left.rule, left.flow)).collect();
    }

    /// In the first group, or where the driver does not take it there, in the inner one.
    fn create(&mut self, rule: &Rule, flow: &RteFlow, steps: &[FlowStep]) -> Result<D::Flow, FlowError> {
        let first = self.told(0, flow.priority, rule.in_port, &flow.items, steps);
        let refused = match self.at.create(&first) {
            Err(error) if self.domain == Domain::Transfer && is_about_the_rule(&error) => error,
            other => return other,
        };
        let inner = FlowRule { group: INNER_GROUP, ..first };
        if self.at.validate(&inner).is_err() {
            return Err(refused);
        }
        self.jump(rule.in_port)?;
        let inner = FlowRule { group: INNER_GROUP, ..self.told(0, flow.priority, rule.in_port, &flow.items, steps) };
        self.at.create(&inner)
    }

    /// Sees that frames of a port which no rule of the first group takes go on to the inner one.
    fn jump(&mut self, port: NicPort) -> Result<(), FlowError> {
        let is_doubtful = match self.jumps.get(&port) {
            Some(jump) if !jump.is_doubtful => return Ok(()),
            known => known.is_some(),
        };
        let eth = [Item::any(ringspan_protocol::rte::ItemKind::Eth)];
        let steps = [FlowStep::Jump(INNER_GROUP)];
        let created = self.at.create(&self.told(0, JUMP_PRIORITY, port, &eth, &steps));
        match created {
            Ok(flow) => {
                self.made += 1;
                // The one that was there is not asked for any more: a driver that forgot it does not know the handle.
                self.jumps.insert(port, Jump { flow, made: self.made, is_doubtful: false });
                Ok(())
            }
            // It forgot others only.
            Err(error) if is_doubtful && error.errno == libc::EEXIST => {
                self.jumps.entry(port).and_modify(|jump| jump.is_doubtful = false);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Removes rules; one that is not there is a success. What the driver had no time for is tried again, as in [`Engine::install`].
    pub fn remove(&mut self, ids: &[RuleId]) -> Vec<RuleResult> {
        self.clear_away();
        let mut errors: Vec<Option<Failure>> = ids.iter().map(|id| self.remove_one(*id)).collect();
        self.again(&mut errors, |_| true, |engine, at| engine.remove_one(ids[at]));
        ids.iter().zip(errors).map(|(id, error)| RuleResult { id: *id, error }).collect()
    }

    fn remove_one(&mut self, id: RuleId) -> Option<Failure> {
        let old = self.rules.remove(&id)?;
        let (flow, error) = gone(old.flow.remove()).err()?;
        self.rules.insert(id, Held { flow, ..old });
        let failure = Failure::new(FailureKind::Failed, format!("rule {id}: the NIC did not remove it: {error}"));
        Some(failure.with_errno(error.errno))
    }

    /// What so many rules behind an id counted. Without ages of the driver, a rule is idle since it was last seen to have counted.
    pub fn counters(&mut self, after: Option<RuleId>, limit: usize) -> Vec<RuleCounters> {
        self.clear_away();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let ids: Vec<RuleId> = self.rules.range((from, Bound::Unbounded)).take(limit).map(|(id, _)| *id).collect();
        let now = Instant::now();
        let mut all = Vec::with_capacity(ids.len());
        for id in ids {
            let Some(counted) = self.look_at(id) else { continue };
            let Some(held) = self.rules.get_mut(&id) else { continue };
            if counted.packets != held.last.0 {
                held.last = (counted.packets, Some(now));
            }
            let seen = held.last.1.map(|at| now.duration_since(at).as_millis() as u64);
            let idle_ms = counted.idle_seconds.map(|seconds| u64::from(seconds) * 1000).or(seen);
            let (packets, bytes) = (counted.packets, counted.bytes);
            all.push(RuleCounters { id, packets, bytes, idle_ms: idle_ms.filter(|_| packets > 0) });
        }
        all
    }

    /// What a rule counted. One that the driver forgot, as drivers do when a port is stopped, is installed again, or is no more.
    fn look_at(&mut self, id: RuleId) -> Option<Counted> {
        let counts = self.capabilities.counts;
        let held = self.rules.get_mut(&id)?;
        let now = match if counts { held.flow.query() } else { Ok(Counted::default()) } {
            Ok(now) => now,
            Err(error) if error.errno == libc::ENOENT => {
                let Held { rule, before, seen, last, made, .. } = self.rules.remove(&id)?;
                // What it forgets it forgets by the port, and what led there is older than what it led to.
                if let Some(jump) = self.jumps.get_mut(&rule.in_port).filter(|jump| jump.made < made) {
                    jump.is_doubtful = true;
                }
                tracing::warn!("rule {id}: its NIC does not know it any more: it is installed again");
                let before = sum(before, seen);
                self.install_one(&rule).map_err(|failure| tracing::warn!("{}", failure.message)).ok()?;
                let held = self.rules.get_mut(&id)?;
                (held.before, held.last) = (before, last);
                Counted::default()
            }
            // What cannot be asked now has counted nothing new.
            Err(_) => held.seen,
        };
        let held = self.rules.get_mut(&id)?;
        held.seen = now;
        Some(Counted { idle_seconds: now.idle_seconds, ..sum(held.before, now) })
    }

    fn counted(&self, held: &Held<D::Flow>) -> Counted {
        let now = if self.capabilities.counts { held.flow.query().unwrap_or(held.seen) } else { Counted::default() };
        sum(held.before, now)
    }

    /// So many rules behind an id.
    pub fn list(&self, after: Option<RuleId>, limit: usize) -> Vec<Rule> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.rules.range((from, Bound::Unbounded)).take(limit).map(|(_, held)| held.rule.clone()).collect()
    }

    /// The rule in rte_flow's words, with DPDK's numbers for its ports.
    fn translate(&self, rule: &Rule) -> Result<(RteFlow, Vec<FlowStep>), Failure> {
        let failed = |kind, what: &dyn std::fmt::Display| Failure::new(kind, format!("rule {}: {what}", rule.id));
        let unsupported = |what: &dyn std::fmt::Display| failed(FailureKind::Unsupported, what);
        rule.check().map_err(|error| failed(FailureKind::Invalid, &error))?;
        let flow = RteFlow::new(rule).map_err(|error| unsupported(&error))?;
        if let Some(missing) = flow.missing() {
            return Err(unsupported(&missing));
        }
        // A frame whose time is over has to go to the slow path, which no action of rte_flow does.
        let lives = rule.matches.exact(Field::IpTtl).is_some_and(|ttl| ttl > 1);
        if rule.actions.contains(&Action::DecTtl) && !lives {
            return Err(unsupported(
                &"the time to live is taken down without being matched: frames whose time is over could not be told",
            ));
        }
        if let Some(refuses) = &self.capabilities.refuses {
            // At the wire's own port, what comes in can be dropped without a switch.
            if rule.in_port != NicPort::Uplink || rule.actions != [Action::Drop] {
                return Err(unsupported(refuses));
            }
        }
        let number = |port: &NicPort| {
            let found = self.ports.get(port).copied();
            found.ok_or_else(|| failed(FailureKind::NotFound, &format_args!("the NIC has no port {port}")))
        };
        number(&rule.in_port)?;
        let mut steps = Vec::with_capacity(flow.steps.len() + 1);
        if self.capabilities.ages {
            steps.push(FlowStep::Age(AGE_SECONDS));
        }
        for step in &flow.steps {
            steps.push(match step {
                Step::Count if !self.capabilities.counts => continue,
                Step::Copy(port) => FlowStep::Copy(number(port)?),
                Step::To(port) => FlowStep::To(number(port)?),
                other => FlowStep::Other(other.clone()),
            });
        }
        Ok((flow, steps))
    }
}

impl<D: Driver> Drop for Engine<D> {
    fn drop(&mut self) {
        let held = std::mem::take(&mut self.rules).into_values().map(|held| held.flow);
        let left = std::mem::take(&mut self.left).into_iter().map(|left| left.flow);
        let jumps = std::mem::take(&mut self.jumps).into_values().map(|jump| jump.flow);
        for flow in held.chain(left).chain(jumps) {
            if let Err((_, error)) = gone(flow.remove()) {
                tracing::warn!("a rule stays until its device is closed: {error}");
            }
        }
    }
}

/// What is refused for what it is, and not for want of room or of time.
fn is_about_the_rule(error: &FlowError) -> bool {
    !matches!(error.errno, libc::EAGAIN | libc::ENOSPC | libc::ENOMEM | libc::EEXIST | libc::ENODEV)
}

fn is_full(error: &FlowError) -> bool {
    matches!(error.errno, libc::ENOSPC | libc::ENOMEM)
}

/// Removes what was replaced by another: two rules about the same frames are one too many. What is still there.
fn clear<F: DriverFlow>(rule: RuleId, flow: F) -> Option<Left<F>> {
    let (flow, error) = gone(flow.remove()).err()?;
    let is_busy = error.errno == libc::EAGAIN;
    if !is_busy {
        tracing::warn!("rule {rule}: the old one could not be removed: {error}");
    }
    Some(Left { rule, flow, is_busy })
}

/// A rule that the driver does not know any more is gone.
fn gone<F>(removed: Result<(), (F, FlowError)>) -> Result<(), (F, FlowError)> {
    match removed {
        Err((_, error)) if error.errno == libc::ENOENT => Ok(()),
        other => other,
    }
}

fn sum(one: Counted, other: Counted) -> Counted {
    Counted { packets: one.packets + other.packets, bytes: one.bytes + other.bytes, idle_seconds: None }
}

fn refused(id: RuleId, error: &FlowError) -> Failure {
    let kind = match error.errno {
        libc::ENOSPC | libc::ENOMEM => FailureKind::NoRoom,
        libc::EAGAIN | libc::EBUSY | libc::EEXIST => FailureKind::Busy,
        libc::ENODEV | libc::EIO => FailureKind::Failed,
        _ => FailureKind::Unsupported,
    };
    Failure::new(kind, format!("rule {id}: the NIC refused it: {error}")).with_errno(error.errno)
}
