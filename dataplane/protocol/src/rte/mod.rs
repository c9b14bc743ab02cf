//! Rules in the words of DPDK's rte_flow: patterns of items, lists of actions. What is here knows DPDK's names and no DPDK; the `rte_flow`
//! engine hands it to a driver, and [`text`] prints it as DPDK's test program takes it.
//!
//! An item is a header as it is on the wire, with a mask, because that is what rte_flow's own structures begin with (rte_flow.h): nothing here
//! depends on the release of DPDK. Ports of the NIC are represented ports: a VF is named by the DPDK port of its representor, the wire by that of
//! the uplink ([Flow API, "Item: REPRESENTED_PORT"](https://doc.dpdk.org/guides-22.11/prog_guide/rte_flow.html)).

mod actions;
mod encap;
mod header;
mod pattern;
pub mod text;

pub use actions::{Step, actions};
pub use header::{HEADERS, Header, Item, ItemKind};
pub use pattern::{Pattern, pattern};

use crate::rule::{Action, FieldMatch, Rule};
use crate::{Field, NicPort};

/// Priority of a rule of priority 0: rte_flow's 0 goes first, a rule's greatest does.
pub const LEAST_PRIORITY: u32 = 7;

/// Why a rule cannot be said in rte_flow's words at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field whose place in the frame depends on what is not matched.
    #[error("{0}: {1}")]
    Field(Field, &'static str),
    /// More priorities than there are.
    #[error("its priority is {0}: {LEAST_PRIORITY} is the most that rte_flow is used with")]
    Priority(u32),
}

/// A rule in rte_flow's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RteFlow {
    /// 0 goes first.
    pub priority: u32,
    /// Where a frame comes in.
    pub in_port: NicPort,
    /// What it looks like, from the outside.
    pub items: Vec<Item>,
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// Matches that no item has a place for.
    pub unmatched: Vec<FieldMatch>,
    /// Actions that no action of rte_flow does, each with its place among those of the rule.
    pub undone: Vec<(usize, Action)>,
}

impl RteFlow {
    /// A rule in rte_flow's words. What it cannot say is in `unmatched` and `undone`.
    ///
    /// # Errors
    /// [`Refusal`], when what the rule says of a frame has no one pattern.
    pub fn new(rule: &Rule) -> Result<Self, Refusal> {
        let priority = LEAST_PRIORITY.checked_sub(rule.priority).ok_or(Refusal::Priority(rule.priority))?;
        let Pattern { items, unmatched } = pattern(&rule.matches)?;
        let (steps, undone) = actions(rule);
        Ok(Self { priority, in_port: rule.in_port, items, steps, unmatched, undone })
    }

    /// Why a driver need not be asked: something of the rule would not be done.
    pub fn missing(&self) -> Option<String> {
        let matches = self.unmatched.first().map(|field| format!("no item of rte_flow matches {field}"));
        let does = |(_, action): &(usize, Action)| match action {
            Action::Set(field) => format!("no action of rte_flow sets {field}"),
            Action::Meter(_) => "meters of a NIC are not made".into(),
            other => format!("no action of rte_flow does {other:?}"),
        };
        // A rule about GENEVE is about packets without options, which the pattern does not say: its header is longer with them.
        let is_geneve = self.items.iter().any(|item| item.kind == ItemKind::Geneve);
        let options = is_geneve.then(|| "no item of rte_flow says that a GENEVE packet has no options".into());
        matches.or(options).or_else(|| self.undone.first().map(does))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NicPort;
    use crate::rule::Match;

    fn missing(fields: &[&str]) -> Option<String> {
        let matches = Match::new(fields.iter().map(|text| text.parse().unwrap())).unwrap();
        let (in_port, actions) = (NicPort::Uplink, vec![Action::TunnelPop, Action::Output(NicPort::Vf(0))]);
        RteFlow::new(&Rule { id: crate::RuleId(1), priority: 0, in_port, matches, actions, refresh: false })
            .unwrap()
            .missing()
    }

    #[test]
    fn a_rule_about_geneve_is_not_told_as_one_about_packets_with_any_options() {
        let tunnel = |kind: u32, port: u32| {
            let fields =
                [format!("tunnel_kind={kind}"), format!("tunnel_tp_dst={port}"), "tunnel_ipv4_dst=192.0.2.1".into()];
            missing(&fields.each_ref().map(String::as_str))
        };
        assert_eq!(tunnel(1, 4789), None);
        assert!(tunnel(2, 6081).unwrap().contains("GENEVE"));
    }
}
