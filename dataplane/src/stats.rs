//! Counters that a worker writes and everybody may read, without a lock on either side.

use std::sync::atomic::{AtomicU64, Ordering};

use ringspan_protocol::{Drops, QueueCounters};

/// The counters of one queue in one direction, as they lie in the journal: two cache lines, one writer.
///
/// A worker adds with a plain load and store, which is exact because it is the only writer; a reader sees each
/// counter whole, and `received` never behind what it has seen sent.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct QueueCells {
    received: AtomicU64,
    received_bytes: AtomicU64,
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    guest_ring_full: AtomicU64,
    no_ring: AtomicU64,
    too_long: AtomicU64,
    malformed_chain: AtomicU64,
    nic_full: AtomicU64,
    no_buffers: AtomicU64,
    bad_offload: AtomicU64,
    lost: AtomicU64,
    zero_copied: AtomicU64,
    over_rate: AtomicU64,
}

/// Adds to a counter that nobody else writes.
fn bump(cell: &AtomicU64, by: u64) {
    if by != 0 {
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(by), Ordering::Release);
    }
}

impl QueueCells {
    /// Counts packets that came in.
    pub fn received(&self, packets: u64, bytes: u64) {
        bump(&self.received, packets);
        bump(&self.received_bytes, bytes);
    }

    /// Counts packets that went out.
    pub fn sent(&self, packets: u64, bytes: u64) {
        bump(&self.sent, packets);
        bump(&self.sent_bytes, bytes);
    }

    /// Counts those of the packets that came in that were not copied.
    pub fn zero_copied(&self, packets: u64) {
        bump(&self.zero_copied, packets);
    }

    /// Counts packets that were dropped.
    pub fn dropped(&self, drops: &Drops) {
        let Drops { guest_ring_full, no_ring, too_long, malformed_chain, nic_full, no_buffers, .. } = drops;
        let Drops { bad_offload, over_rate, lost, .. } = drops;
        bump(&self.guest_ring_full, *guest_ring_full);
        bump(&self.no_ring, *no_ring);
        bump(&self.too_long, *too_long);
        bump(&self.malformed_chain, *malformed_chain);
        bump(&self.nic_full, *nic_full);
        bump(&self.no_buffers, *no_buffers);
        bump(&self.bad_offload, *bad_offload);
        bump(&self.over_rate, *over_rate);
        bump(&self.lost, *lost);
    }

    /// What came in and was neither sent nor dropped when the last owner was killed is counted as lost. Nobody counts yet.
    pub fn settle(&self) {
        let QueueCounters { received, sent, drops, .. } = self.read();
        let lost = received.saturating_sub(sent.saturating_add(drops.total()));
        self.dropped(&Drops { lost, ..Drops::default() });
    }

    /// The counters now. What went out is read before what came in, so that a busy queue never shows more out than in.
    pub fn read(&self) -> QueueCounters {
        let drops = Drops {
            guest_ring_full: self.guest_ring_full.load(Ordering::Acquire),
            no_ring: self.no_ring.load(Ordering::Acquire),
            too_long: self.too_long.load(Ordering::Acquire),
            malformed_chain: self.malformed_chain.load(Ordering::Acquire),
            nic_full: self.nic_full.load(Ordering::Acquire),
            no_buffers: self.no_buffers.load(Ordering::Acquire),
            bad_offload: self.bad_offload.load(Ordering::Acquire),
            over_rate: self.over_rate.load(Ordering::Acquire),
            lost: self.lost.load(Ordering::Acquire),
        };
        let (sent_bytes, sent) = (self.sent_bytes.load(Ordering::Acquire), self.sent.load(Ordering::Acquire));
        let received_bytes = self.received_bytes.load(Ordering::Acquire);
        QueueCounters {
            received: self.received.load(Ordering::Acquire),
            received_bytes,
            sent,
            sent_bytes,
            zero_copied: self.zero_copied.load(Ordering::Acquire),
            drops,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_read_back_as_it_was_written() {
        let cells = QueueCells::default();
        let drops = Drops {
            guest_ring_full: 1,
            no_ring: 2,
            too_long: 3,
            malformed_chain: 4,
            nic_full: 5,
            no_buffers: 6,
            bad_offload: 7,
            over_rate: 8,
            lost: 0,
        };
        cells.received(45, 450);
        cells.sent(9, 90);
        cells.zero_copied(5);
        cells.dropped(&drops);
        let want = QueueCounters { received: 45, received_bytes: 450, sent: 9, sent_bytes: 90, zero_copied: 5, drops };
        assert_eq!(cells.read(), want);
        assert_eq!(want.received, want.sent + want.drops.total());
    }

    #[test]
    fn what_was_in_hand_is_lost_once() {
        let cells = QueueCells::default();
        cells.received(64, 6400);
        cells.sent(20, 2000);
        cells.dropped(&Drops { nic_full: 4, ..Drops::default() });
        for _ in 0..2 {
            cells.settle();
            let now = cells.read();
            assert_eq!((now.drops.lost, now.sent + now.drops.total()), (40, now.received));
        }
    }
}
