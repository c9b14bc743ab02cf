//! What both paths of a flow count, and how fast.

use std::time::Duration;

use ringspan_protocol::rule::RuleCounters;

use crate::ovs::flow::Stats;

/// Milliseconds of what was never used.
pub(super) const NEVER: u32 = u32::MAX;

/// What OVS counts of a flow, in less room than [`Stats`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OfOvs {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// Milliseconds since the last one, 49 days at most; [`NEVER`].
    pub used_ms: u32,
}

impl From<&Stats> for OfOvs {
    fn from(stats: &Stats) -> Self {
        // Of a clock that ran backwards: now.
        let used_ms = stats.used.map_or(NEVER, |used| used.clamp(0, i64::from(NEVER - 1)) as u32);
        Self { packets: stats.packets, bytes: stats.bytes, used_ms }
    }
}

impl OfOvs {
    /// Its packets and bytes.
    #[inline]
    pub(super) fn count(&self) -> Count {
        Count { packets: self.packets, bytes: self.bytes }
    }

    /// Milliseconds since the last packet; nothing: there was none.
    pub(super) fn used(&self) -> Option<u32> {
        (self.used_ms != NEVER).then_some(self.used_ms)
    }
}

/// A flow's counters beside OVS's own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Counted {
    /// What the NIC counts since it has the rule.
    rule: Count,
    /// What NICs counted of the flow that do not have it any more, or lost it.
    before: Count,
    /// Both paths together when the rate was last taken, if it was.
    last: Count,
    /// Both paths together, if it was taken twice.
    rate: Rate,
    /// Milliseconds since the NIC's last packet, 49 days at most; [`NEVER`] when there was none.
    idle_ms: u32,
    /// How often the rate was taken, up to two.
    looks: u8,
    /// Whether the NIC told of it at all.
    is_known: bool,
}

impl Default for Counted {
    fn default() -> Self {
        let [rule, before, last] = [Count::default(); 3];
        Self { rule, before, last, rate: Rate::default(), idle_ms: NEVER, looks: 0, is_known: false }
    }
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
    pub(super) fn plus(self, other: Self) -> Self {
        Self { packets: self.packets.wrapping_add(other.packets), bytes: self.bytes.wrapping_add(other.bytes) }
    }

    /// Whether it is less than the other one, in packets or in bytes.
    #[inline]
    pub(super) fn is_behind(self, other: Self) -> bool {
        self.packets < other.packets || self.bytes < other.bytes
    }
}

impl Counted {
    /// The NIC told what its rule counts. Less than before: it is another rule, which began anew.
    pub(super) fn take(&mut self, counters: &RuleCounters) {
        let now = Count { packets: counters.packets, bytes: counters.bytes };
        if now.is_behind(self.rule) {
            self.before = self.before.plus(self.rule);
        }
        let idle_ms = counters.idle_ms.map_or(NEVER, |idle| idle.min(u64::from(NEVER - 1)) as u32);
        (self.rule, self.idle_ms, self.is_known) = (now, idle_ms, true);
    }

    /// The NIC has the rule no more, or lost it.
    pub(super) fn lost(&mut self) {
        self.before = self.before.plus(std::mem::take(&mut self.rule));
        self.idle_ms = NEVER;
    }

    /// What NICs counted since the flow is there; nothing when no NIC told.
    pub(super) fn rules(&self) -> Option<(Count, Option<u64>)> {
        let idle_ms = (self.idle_ms != NEVER).then_some(self.idle_ms.into());
        self.is_known.then(|| (self.before.plus(self.rule), idle_ms))
    }

    /// How fast both paths together are; nothing until it was looked twice.
    pub(super) fn rate(&self) -> Option<Rate> {
        (self.looks == 2).then_some(self.rate)
    }

    /// Both paths together.
    pub(super) fn total(&self, ovs: &OfOvs) -> Count {
        self.before.plus(self.rule).plus(ovs.count())
    }

    /// So much time passed since this was last called for all flows.
    pub(super) fn pass(&mut self, ovs: &OfOvs, time: Duration) {
        let (now, last) = (self.total(ovs), self.last);
        // Counters of OVS's may go back, when a flow was made anew.
        let each = |now: u64, last: u64| (now.saturating_sub(last) as f64 / time.as_secs_f64().max(1e-3)) as f32;
        self.rate = Rate { packets: each(now.packets, last.packets), bits: 8.0 * each(now.bytes, last.bytes) };
        (self.last, self.looks) = (now, (self.looks + 1).min(2));
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
        let mut ovs = OfOvs::from(&Stats { packets: 5, bytes: 500, ..Stats::default() });
        counted.pass(&ovs, Duration::from_secs(1));
        assert_eq!(counted.rate(), None);
        ovs.packets += 100;
        ovs.bytes += 10_000;
        counted.take(&told(300));
        counted.pass(&ovs, Duration::from_secs(2));
        assert_eq!(counted.rate(), Some(Rate { packets: 200.0, bits: 160_000.0 }));
        counted.pass(&ovs, Duration::from_secs(2));
        assert_eq!(counted.rate(), Some(Rate::default()));
    }

    #[test]
    fn the_last_packet_was_never_or_at_most_so_long_ago() {
        let of = |used| OfOvs::from(&Stats { used, ..Stats::default() });
        let used = |used| of(used).used();
        assert_eq!([None, Some(0), Some(1500), Some(-3)].map(used), [None, Some(0), Some(1500), Some(0)]);
        assert_eq!(used(Some(i64::MAX)), Some(NEVER - 1));
    }
}
