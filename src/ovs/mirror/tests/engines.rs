//! Engines that refuse, cannot be told, forget, or have what is not theirs.

use ringspan_protocol::NicName;
use ringspan_protocol::rule::RuleId;

use super::super::step::Outcome;
use super::super::table::{Misses, Source};
use super::super::work::{News, Work};
use super::super::{Engine, Nic};
use super::{Fake, line, round, told, until};

#[test]
fn a_refused_rule_is_a_reason_and_the_old_one_does_not_stay() {
    let (mut work, fake) = (Work::default(), Fake::default());
    assert_eq!(round(&mut work, &fake, &[line(1, "nic0_vf0", 0x1234, "nic0_vf1")]), ["+1"]);
    fake.told().refused.push(RuleId(1));
    assert_eq!(round(&mut work, &fake, &[line(1, "nic0_vf0", 0x1234, "nic0")]), ["!1", "-1"]);
    assert!(fake.told().rules.is_empty());
}

#[test]
fn what_was_refused_is_tried_again_when_another_rule_goes() {
    let (mut work, fake) = (Work::default(), Fake::default());
    let (one, two) = (line(1, "nic0_vf0", 0x1234, "nic0_vf1"), line(2, "nic0_vf0", 0x1235, "nic0_vf1"));
    round(&mut work, &fake, std::slice::from_ref(&one));
    fake.told().refused.push(RuleId(2));
    assert_eq!(round(&mut work, &fake, &[one.clone(), two.clone()]), ["!2", "-2"]);
    assert_eq!(round(&mut work, &fake, &[one, two.clone()]), [""; 0]);
    fake.told().refused.clear();
    assert_eq!(round(&mut work, &fake, &[two]), ["-1", "+2"]);
}

#[test]
fn nothing_is_installed_in_a_nic_that_did_not_remove_what_it_should_have() {
    let (mut work, fake) = (Work::default(), Fake::default());
    round(&mut work, &fake, &[line(1, "nic0_vf0", 0x1234, "nic0_vf1")]);
    let other = [line(2, "nic0_vf0", 0x1234, "nic0")];
    fake.told().stuck = true;
    assert_eq!(round(&mut work, &fake, &other), [""; 0]);
    assert!(work.trouble.is_some());
    fake.told().stuck = false;
    assert_eq!(round(&mut work, &fake, &other), ["-1", "+2"]);
}

#[test]
fn a_lane_that_lost_its_rules_gets_them_again_and_what_it_kept_is_not_touched() {
    let (mut work, fake) = (Work::default(), Fake::default());
    let lines = [line(1, "nic0_vf0", 0x1234, "nic0_vf1"), line(2, "nic0", 0x1234, "nic0_vf0")];
    round(&mut work, &fake, &lines);
    {
        let mut told = fake.told();
        told.life += 1;
        told.rules.remove(&RuleId(2));
    }
    assert_eq!(round(&mut work, &fake, &lines), ["+2"]);
    // A new daemon knows nothing, and finds what an old one left: a flow that is there, and one that is not any more.
    let mut new = Work::default();
    assert_eq!(round(&mut new, &fake, &lines[..1]), ["-2"]);
    assert_eq!(round(&mut new, &fake, &lines[..1]), [""; 0]);
}

#[test]
fn a_rule_that_two_nics_have_stays_in_the_one_that_it_belongs_to() {
    let (mut work, fake) = (Work::default(), Fake::default());
    let lines = [line(1, "nic0_vf0", 0x1234, "nic0_vf1")];
    round(&mut work, &fake, &lines);
    let rule = fake.told().rules[&RuleId(1)].clone();
    let right = fake.nics().remove(0);
    let name: NicName = "nic1".parse().unwrap();
    let ports = right.ports.iter().map(|(port, _)| (*port, port.representor(&name))).collect();
    let wrong = Nic { name, ports, ..right.clone() };
    for found in [[&right, &wrong], [&wrong, &right]] {
        // As a new daemon finds it.
        let mut work = Work::new(10, false);
        work.complete = true;
        work.look(&[right.clone(), wrong.clone()]);
        work.table.begin(Source::Text);
        let told = vec![told(1, "nic0_vf0", 0x1234, "nic0_vf1")];
        work.take(News::Dump { source: Source::Text, told, misses: Misses::default() });
        let asked = work.next().unwrap();
        assert_eq!(asked.ask.len(), 2);
        let found = found.map(|nic| (nic.clone(), vec![rule.clone()])).to_vec();
        work.done(Outcome { found, ..Outcome::default() });
        let step = work.next().unwrap();
        assert_eq!(step.removals.get(&wrong.name), Some(&vec![RuleId(1)]));
        // Either it is not touched there, or it is installed again after it was removed.
        assert_eq!(step.removals.contains_key(&right.name), step.installs.contains_key(&right.name));
        assert!(!step.installs.contains_key(&wrong.name));
    }
}

#[test]
fn a_nic_that_was_made_anew_without_anybody_noticing_gets_its_rules_again() {
    let (mut work, fake) = (Work::default(), Fake::default());
    let lines = [line(1, "nic0_vf0", 0x1234, "nic0_vf1")];
    round(&mut work, &fake, &lines);
    fake.told().rules.clear();
    // Its word may be older than the install, at first.
    assert_eq!(round(&mut work, &fake, &lines), [""; 0]);
    let again = until("the rule again", || Some(round(&mut work, &fake, &lines)).filter(|log| !log.is_empty()));
    assert_eq!(again, ["+1"]);
}

#[test]
fn an_engine_that_cannot_be_told_is_told_as_soon_as_it_can_be() {
    let (mut work, fake) = (Work::default(), Fake::default());
    let lines = [line(1, "nic0_vf0", 0x1234, "nic0_vf1")];
    fake.told().down = true;
    assert_eq!(round(&mut work, &fake, &lines), [""; 0]);
    assert!(work.trouble.is_some());
    fake.told().down = false;
    assert_eq!(round(&mut work, &fake, &lines), ["+1"]);
    // A removal that failed is made up for, too.
    fake.told().down = true;
    round(&mut work, &fake, &[]);
    fake.told().down = false;
    assert_eq!(round(&mut work, &fake, &[]), ["-1"]);
}
