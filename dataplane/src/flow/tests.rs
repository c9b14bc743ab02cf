//! The engine against a driver that is full, busy, forgetful or particular about groups.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use ringspan_protocol::rte::Step;
use ringspan_protocol::{Action, FailureKind, Field, FieldMatch, Match, NicPort, Rule, RuleId, RuleResult};

use super::driver::{Driver, DriverFlow};
use super::engine::Engine;
use crate::nic::{Counted, FlowError, FlowRule, FlowStep};

/// What a driver has, and how it is.
#[derive(Default)]
struct State {
    /// Rules by number, with group and the last step.
    rules: BTreeMap<u32, (u32, FlowStep)>,
    next: u32,
    /// Most rules.
    room: Option<usize>,
    /// So many calls are answered with EAGAIN, one time each.
    busy: u32,
    /// The driver gets on by so much in each pause; without, it stays busy.
    gets_on: bool,
    /// Header fields are set in other groups than the first only.
    sets_inside: bool,
    /// So many removals are answered with EAGAIN, as with `busy`.
    clings: u32,
    /// The next rule that there is room for is answered with EAGAIN once.
    hesitates: bool,
    paused: Vec<u64>,
    forgotten: BTreeSet<u32>,
}

#[derive(Clone, Default)]
struct Fake(Rc<RefCell<State>>);

struct FakeFlow(Fake, u32);

fn error(errno: i32) -> FlowError {
    FlowError { errno, message: String::new() }
}

impl State {
    fn answer(&mut self) -> Result<(), FlowError> {
        if self.busy == 0 {
            return Ok(());
        }
        if !self.gets_on {
            self.busy -= 1;
        }
        Err(error(libc::EAGAIN))
    }
}

impl Driver for Fake {
    type Flow = FakeFlow;

    fn uplink(&self) -> u16 {
        7
    }

    fn validate(&self, rule: &FlowRule<'_>) -> Result<(), FlowError> {
        let state = self.0.borrow();
        let sets = rule.steps.iter().any(|step| matches!(step, FlowStep::Other(Step::Set(_))));
        if state.sets_inside && sets && rule.group == 0 { Err(error(libc::ENOTSUP)) } else { Ok(()) }
    }

    fn create(&self, rule: &FlowRule<'_>) -> Result<FakeFlow, FlowError> {
        self.validate(rule)?;
        let mut state = self.0.borrow_mut();
        state.answer()?;
        if state.room == Some(state.rules.len()) {
            return Err(error(libc::ENOSPC));
        }
        if std::mem::take(&mut state.hesitates) {
            return Err(error(libc::EAGAIN));
        }
        state.next += 1;
        let (number, last) = (state.next, rule.steps.last().cloned().unwrap());
        state.rules.insert(number, (rule.group, last));
        Ok(FakeFlow(self.clone(), number))
    }

    fn pause(&self, time: Duration) {
        let mut state = self.0.borrow_mut();
        state.paused.push(time.as_millis() as u64);
        if state.gets_on {
            state.busy = state.busy.saturating_sub(1);
            state.clings = state.clings.saturating_sub(1);
        }
    }
}

impl DriverFlow for FakeFlow {
    fn query(&self) -> Result<Counted, FlowError> {
        let state = self.0.0.borrow();
        if state.forgotten.contains(&self.1) {
            return Err(error(libc::ENOENT));
        }
        Ok(Counted { packets: 10, bytes: 1000, idle_seconds: None })
    }

    fn remove(self) -> Result<(), (Self, FlowError)> {
        let mut state = self.0.0.borrow_mut();
        let told = match () {
            () if state.forgotten.contains(&self.1) => Err(error(libc::ENOENT)),
            () if state.clings > 0 => Err(error(libc::EAGAIN)),
            () => state.answer(),
        };
        if told.is_ok() {
            state.rules.remove(&self.1);
        }
        drop(state);
        told.map_err(|error| (self, error))
    }
}

fn engine(driver: &Fake) -> Engine<Fake> {
    Engine::new(driver.clone(), BTreeMap::from([(NicPort::Uplink, 7), (NicPort::Vf(0), 8), (NicPort::Vf(1), 9)]))
}

fn rule(id: u128, actions: Vec<Action>) -> Rule {
    let untagged = FieldMatch::new(Field::VlanTci, 0, 0x1000).unwrap();
    let exact = |field, value| FieldMatch::exact(field, value).unwrap();
    let matches = [exact(Field::EthDst, id), exact(Field::EthType, 0x88b5), untagged];
    let matches = Match::new(matches).unwrap();
    Rule { id: RuleId(id), priority: 0, in_port: NicPort::Vf(0), matches, actions, refresh: false }
}

fn out(id: u128) -> Rule {
    rule(id, vec![Action::Output(NicPort::Vf(1))])
}

fn refused(results: &[RuleResult]) -> Vec<(u128, FailureKind)> {
    results.iter().filter_map(|result| Some((result.id.0, result.error.as_ref()?.kind))).collect()
}

#[test]
fn a_batch_that_a_busy_driver_takes_in_parts_is_taken_whole() {
    let driver = Fake::default();
    let mut engine = engine(&driver);
    driver.0.borrow_mut().busy = 300;
    let results = engine.install((1..=200).map(out).collect());
    assert_eq!(refused(&results), []);
    assert_eq!((engine.len(), driver.0.borrow().rules.len()), (200, 200));
    assert_eq!(driver.0.borrow().paused, [1, 2], "the batch waits together, and not each rule");
    driver.0.borrow_mut().busy = 5;
    assert_eq!(refused(&engine.remove(&(1..=200).map(RuleId).collect::<Vec<_>>())), []);
    assert!(engine.is_empty() && driver.0.borrow().rules.is_empty());
}

#[test]
fn a_driver_that_stays_busy_is_given_up_in_time_and_the_rule_is_as_before() {
    let driver = Fake::default();
    let mut engine = engine(&driver);
    assert_eq!(refused(&engine.install(vec![out(1)])), []);
    (driver.0.borrow_mut().busy, driver.0.borrow_mut().gets_on) = (1000, true);
    let results = engine.install(vec![rule(1, vec![Action::Drop]), out(2)]);
    assert_eq!(refused(&results), [(1, FailureKind::Busy), (2, FailureKind::Busy)]);
    assert!(driver.0.borrow().paused.iter().sum::<u64>() < 200);
    assert_eq!(engine.list(None, 9), [out(1)]);
    assert_eq!(refused(&engine.remove(&[RuleId(1)])), [(1, FailureKind::Failed)]);
    assert_eq!(engine.len(), 1, "it is still there");
    driver.0.borrow_mut().busy = 0;
    assert_eq!(refused(&engine.remove(&[RuleId(1)])), []);
}

#[test]
fn of_a_rule_that_is_twice_in_a_batch_the_last_one_stays() {
    let driver = Fake::default();
    let mut engine = engine(&driver);
    driver.0.borrow_mut().busy = 1;
    assert_eq!(refused(&engine.install(vec![out(1), rule(1, vec![Action::Drop])])), []);
    assert_eq!(engine.list(None, 9), [rule(1, vec![Action::Drop])]);
    assert_eq!(driver.0.borrow().rules.len(), 1);
}

#[test]
fn a_full_driver_refuses_new_rules_and_takes_others_in_place_of_old_ones() {
    let driver = Fake::default();
    let mut engine = engine(&driver);
    driver.0.borrow_mut().room = Some(3);
    let results = engine.install((1..=5).map(out).collect());
    assert_eq!(refused(&results), [(4, FailureKind::NoRoom), (5, FailureKind::NoRoom)]);
    assert!(driver.0.borrow().paused.is_empty(), "room does not come by waiting");
    assert_eq!(refused(&engine.install(vec![rule(2, vec![Action::Drop])])), []);
    assert!(driver.0.borrow().rules.values().any(|(_, step)| *step == FlowStep::Other(Step::Drop)));
    assert_eq!((engine.len(), driver.0.borrow().rules.len()), (3, 3));
    engine.remove(&[RuleId(1)]);
    assert_eq!(refused(&engine.install(vec![out(4)])), []);
}

#[test]
fn what_a_driver_forgot_is_installed_again_and_goes_on_counting() {
    let driver = Fake::default();
    let mut engine = engine(&driver);
    engine.install(vec![out(1), out(2)]);
    assert!(engine.capabilities().counts);
    assert_eq!(engine.counters(None, 9)[0].packets, 10);
    // Its port was stopped: all rules are flushed.
    let all: BTreeSet<u32> = driver.0.borrow().rules.keys().copied().collect();
    driver.0.borrow_mut().rules.clear();
    driver.0.borrow_mut().forgotten = all;
    // One of them is removed before anybody notices.
    assert_eq!(refused(&engine.remove(&[RuleId(2)])), []);
    assert_eq!(engine.counters(None, 9).len(), 1);
    assert_eq!(engine.counters(None, 9)[0].packets, 20, "10 before and 10 since");
    assert_eq!((engine.len(), driver.0.borrow().rules.len()), (1, 1));
}

#[test]
fn what_is_taken_in_an_inner_group_only_is_put_there_with_one_jump_for_its_port() {
    let driver = Fake::default();
    driver.0.borrow_mut().sets_inside = true;
    let mut engine = engine(&driver);
    let set = Action::Set(FieldMatch::exact(Field::EthDst, 0x0200_0000_0009).unwrap());
    let both: Vec<Rule> = (1..=2).map(|id| rule(id, vec![set.clone(), Action::Output(NicPort::Vf(1))])).collect();
    assert_eq!(refused(&engine.validate(&both)), []);
    assert_eq!(refused(&engine.install(both)), []);
    engine.install(vec![out(3)]);
    let groups: Vec<(u32, bool)> =
        driver.0.borrow().rules.values().map(|(group, step)| (*group, *step == FlowStep::Jump(1))).collect();
    assert_eq!(groups, [(0, true), (1, false), (1, false), (0, false)]);
    drop(engine);
    assert!(driver.0.borrow().rules.is_empty(), "nothing stays, the jump neither");
}

#[test]
fn a_jump_that_a_driver_forgot_with_its_rules_is_made_again_and_once() {
    let driver = Fake::default();
    driver.0.borrow_mut().sets_inside = true;
    let mut engine = engine(&driver);
    let set = Action::Set(FieldMatch::exact(Field::EthDst, 0x0200_0000_0009).unwrap());
    engine.install((1..=3).map(|id| rule(id, vec![set.clone(), Action::Output(NicPort::Vf(1))])).collect());
    let all: BTreeSet<u32> = driver.0.borrow().rules.keys().copied().collect();
    driver.0.borrow_mut().rules.clear();
    driver.0.borrow_mut().forgotten = all;
    assert_eq!(engine.counters(None, 9).len(), 3);
    let groups: Vec<(u32, bool)> =
        driver.0.borrow().rules.values().map(|(group, step)| (*group, *step == FlowStep::Jump(1))).collect();
    assert_eq!(groups, [(0, true), (1, false), (1, false), (1, false)]);
    drop(engine);
    assert!(driver.0.borrow().rules.is_empty());
}

#[test]
fn what_was_replaced_goes_by_the_batch_and_what_stays_goes_with_the_next_request() {
    let driver = Fake::default();
    let mut engine = engine(&driver);
    let drops = |ids: std::ops::RangeInclusive<u128>| ids.map(|id| rule(id, vec![Action::Drop])).collect::<Vec<_>>();
    engine.install((1..=200).map(out).collect());
    (driver.0.borrow_mut().clings, driver.0.borrow_mut().gets_on) = (2, true);
    assert_eq!(refused(&engine.install(drops(1..=200))), []);
    assert_eq!(driver.0.borrow().paused, [1, 2], "the batch waits together, and not each rule");
    assert_eq!((engine.len(), driver.0.borrow().rules.len()), (200, 200));
    assert_eq!(engine.counters(None, 1)[0].packets, 20, "10 by the old one and 10 by the new one");
    // One that stays busy is not waited for for ever, nor are the old rules forgotten.
    driver.0.borrow_mut().paused.clear();
    driver.0.borrow_mut().clings = 1000;
    assert_eq!(refused(&engine.install((1..=200).map(out).collect())), []);
    assert!(driver.0.borrow().paused.iter().sum::<u64>() < 200);
    assert_eq!(driver.0.borrow().rules.len(), 400);
    driver.0.borrow_mut().clings = 0;
    engine.counters(None, 1);
    assert_eq!((engine.len(), driver.0.borrow().rules.len()), (200, 200));
}

#[test]
fn a_rule_that_made_room_for_itself_goes_on_counting_when_the_driver_is_busy_between() {
    let driver = Fake::default();
    let mut engine = engine(&driver);
    driver.0.borrow_mut().room = Some(1);
    engine.install(vec![out(1)]);
    driver.0.borrow_mut().hesitates = true;
    assert_eq!(refused(&engine.install(vec![rule(1, vec![Action::Drop])])), []);
    assert_eq!(driver.0.borrow().paused, [1]);
    assert_eq!(engine.counters(None, 9)[0].packets, 20);
}
