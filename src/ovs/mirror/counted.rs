//! What both paths of a flow count, and how fast.

use std::time::Duration;

use ringspan_protocol::rule::RuleCounters;

use crate::ovs::flow::Stats;

/// A flow's counters beside OVS's own.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Counted {
    /// What the NIC counts since it has the rule.
    rule: Count,
    /// What NICs counted of the flow that do not have it any more, or lost it.
    before: Count,
    /// Both paths together when the rate was last taken.
    last: Option<Count>,
    /// Both paths together.
    pub rate: Option<Rate>,
    /// Milliseconds since the NIC's last packet.
    idle_ms: Option<u64>,
    /// Whether the NIC told of it at all.
    is_known: bool,
}

/// Packets and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Per second.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Rate {
    /// Packets.
    pub packets: f32,
    /// Bits.
    pub bits: f32,
}

impl Count {
    fn plus(self, other: Self) -> Self {
        Self { packets: self.packets.wrapping_add(other.packets), bytes: self.bytes.wrapping_add(other.bytes) }
    }
}

impl Counted {
    /// The NIC told what its rule counts. Less than before: it is another rule, which began anew.
    pub(super) fn take(&mut self, counters: &RuleCounters) {
        let now = Count { packets: counters.packets, bytes: counters.bytes };
        if now.packets < self.rule.packets || now.bytes < self.rule.bytes {
            self.before = self.before.plus(self.rule);
        }
        (self.rule, self.idle_ms, self.is_known) = (now, counters.idle_ms, true);
    }

    /// The NIC has the rule no more, or lost it.
    pub(super) fn lost(&mut self) {
        self.before = self.before.plus(std::mem::take(&mut self.rule));
        self.idle_ms = None;
    }

    /// What NICs counted since the flow is there; nothing when no NIC told.
    pub(super) fn rules(&self) -> Option<(Count, Option<u64>)> {
        self.is_known.then(|| (self.before.plus(self.rule), self.idle_ms))
    }

    /// Both paths together.
    pub(super) fn total(&self, ovs: &Stats) -> Count {
        self.before.plus(self.rule).plus(Count { packets: ovs.packets, bytes: ovs.bytes })
    }

    /// So much time passed since this was last called for all flows.
    pub(super) fn pass(&mut self, ovs: &Stats, time: Duration) {
        let now = self.total(ovs);
        // Counters of OVS's may go back, when a flow was made anew.
        self.rate = self.last.map(|last| {
            let each = |now: u64, last: u64| (now.saturating_sub(last) as f64 / time.as_secs_f64().max(1e-3)) as f32;
            Rate { packets: each(now.packets, last.packets), bits: 8.0 * each(now.bytes, last.bytes) }
        });
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use ringspan_protocol::rule::RuleId;

    use super::*;

    fn told(packets: u64) -> RuleCounters {
        RuleCounters { id: RuleId(1), packets, bytes: packets * 100, idle_ms: Some(3) }
    }

    #[test]
    fn counters_survive_a_rule_that_is_made_anew() {
        let mut counted = Counted::default();
        assert_eq!(counted.rules(), None);
        counted.take(&told(50));
        // The lane was restarted, and nobody said so.
        counted.take(&told(10));
        assert_eq!(counted.rules(), Some((Count { packets: 60, bytes: 6000 }, Some(3))));
        counted.lost();
        assert_eq!(counted.rules(), Some((Count { packets: 60, bytes: 6000 }, None)));
        counted.take(&told(70));
        assert_eq!(counted.rules().unwrap().0.packets, 130);
    }

    #[test]
    fn a_rate_is_that_of_both_paths_since_the_last_look() {
        let mut counted = Counted::default();
        let mut ovs = Stats { packets: 5, bytes: 500, ..Stats::default() };
        counted.pass(&ovs, Duration::from_secs(1));
        assert_eq!(counted.rate, None);
        ovs.packets += 100;
        ovs.bytes += 10_000;
        counted.take(&told(300));
        counted.pass(&ovs, Duration::from_secs(2));
        assert_eq!(counted.rate, Some(Rate { packets: 200.0, bits: 160_000.0 }));
        counted.pass(&ovs, Duration::from_secs(2));
        assert_eq!(counted.rate, Some(Rate::default()));
    }
}
