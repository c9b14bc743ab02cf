//! Whatever a flow of Open vSwitch's asks for and whatever a frame is: the rule that the flow becomes matches the frame in the software NIC
//! exactly when the flow matches it in Open vSwitch. What a frame is, is told by Open vSwitch itself.

mod asked;
mod frames;
mod seen;

use std::cell::{Cell, RefCell};

use anyhow::{Result, ensure};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use ringspan::ovs::flow::{Names, parse};
use ringspan_dataplane::eswitch::key::{ALWAYS, Key};
use ringspan_protocol::{Field, Rule};
use ringspan_testkit::needs;
use seen::Seen;

const FRAMES: usize = 3000;
/// Flows that are tried with a frame, unless `RINGSPAN_CASES` says how many.
const CASES: u32 = 4000;

/// Whether a rule takes a frame, as the software NIC has both.
fn takes(rule: &Rule, frame: &[u8]) -> bool {
    let (mut value, mut mask) = (Key::EMPTY, Key::EMPTY);
    mask.0[0] |= ALWAYS;
    value.set_port(1);
    rule.matches.fields().iter().for_each(|field| Key::ask(&mut value, &mut mask, field));
    let (key, _) = Key::parse(frame, frame.len(), 1);
    key.0.iter().zip(value.0).zip(mask.0).all(|((key, value), mask)| key & mask == value)
}

#[test]
fn a_rule_takes_the_frames_that_its_flow_matches() -> Result<()> {
    needs!(Ovs);
    let cases = std::env::var("RINGSPAN_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    // Printed by proptest when it fails.
    let mut runner = TestRunner::new(config);
    let mut frame = || frames::frame().new_tree(&mut runner).map(|tree| tree.current()).map_err(anyhow::Error::msg);
    let frames: Vec<Vec<u8>> = (0..FRAMES).map(|_| frame()).collect::<Result<_, _>>()?;
    let seen = seen::all(&frames)?;
    let nic = "nic0".parse()?;
    let (made, taken, whole) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let wrong = RefCell::new(Vec::new());
    let shallow: Vec<Seen> = seen.iter().map(Seen::with_one_vlan).collect();
    // Every second flow is about a frame like the one that it is tried with, and for an Open vSwitch that reads one VLAN header.
    let places = (0..FRAMES, 0..FRAMES, any::<bool>(), any::<bool>());
    let result = runner.run(&(places, asked::asked()), |((at, other, is_like, one_vlan), asked)| {
        let seen = if one_vlan { &shallow } else { &seen };
        let like = &seen[if is_like { at } else { other }];
        let flow = asked.flow(like);
        let text = flow.to_string();
        let read =
            parse::flow(&text, 1, Names::Allowed).map_err(|error| TestCaseError::fail(format!("{text}: {error}")))?;
        // It stays with Open vSwitch.
        let Ok(rule) = ringspan::ovs::rule_of(&read, &nic, 2, one_vlan) else { return Ok(()) };
        made.set(made.get() + 1);
        let (flow_does, rule_does) = (asked::matches(&flow.keys, &seen[at]), takes(&rule, &frames[at]));
        taken.set(taken.get() + u32::from(rule_does));
        whole.set(whole.get() + u32::from(flow_does));
        let told = || format!("{text}\n{:02x?}\n{:?}", frames[at], seen[at]);
        if rule_does && !flow_does {
            wrong.borrow_mut().push(format!("the rule takes what its flow does not match: {}", told()));
        }
        // A rule may be about less; that is for what nobody sends.
        if flow_does && !rule_does && !is_odd(&frames[at]) {
            wrong.borrow_mut().push(format!("the rule does not take what its flow matches: {}", told()));
        }
        Ok(())
    });
    result.map_err(|error| anyhow::anyhow!("{error}"))?;
    let wrong = wrong.into_inner();
    ensure!(wrong.is_empty(), "{} times; {}", wrong.len(), wrong[..wrong.len().min(6)].join("\n"));
    println!(
        "{} of {cases} flows became rules, {} matched their frame, {} rules did",
        made.get(),
        whole.get(),
        taken.get()
    );
    assert!(made.get() > cases * 2 / 3 && taken.get() > cases / 4, "most flows are of the kind that is to be tested");
    Ok(())
}

/// Frames that a rule may leave to Open vSwitch: IPv6 packets on which its datapaths disagree (`ATOMIC` of the engine's keys), and those with a SNAP header
/// in which Open vSwitch finds the type (`parse_ethertype` in its lib/flow.c).
fn is_odd(frame: &[u8]) -> bool {
    let kind = |at: usize| frame.get(at..at + 2).map_or(0, |kind| u16::from_be_bytes([kind[0], kind[1]]));
    let behind_tags = [12, 16, 20].map(kind).into_iter().find(|kind| !matches!(kind, 0x8100 | 0x88a8)).unwrap_or(0);
    behind_tags < 0x600 || Key::parse(frame, frame.len(), 1).0.get(Field::IpFrag) == 2
}
