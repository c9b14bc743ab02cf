//! Which device queue feeds which ring, which device queue takes what a ring sends, and which of them belong together.
//!
//! What is connected belongs to one worker, so that nothing is shared on the packet path: that is a *share* of the port. With A
//! receiving rings and M device queues there are min(A, M) shares, and one while no ring receives. Device queue q is in share
//! q mod min(A, M), with the rings that it feeds and those that send through it.

/// How the running rings of a port and the queues of its device are connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Pairs whose receive ring runs, in order.
    receiving: Vec<usize>,
    /// Pairs whose transmit ring runs, in order.
    sending: Vec<usize>,
    /// Queues of the device, 1 at least.
    queues: usize,
}

impl Plan {
    /// The plan for these pairs, in rising order, and so many device queues.
    pub fn new(
        receiving: impl IntoIterator<Item = usize>,
        sending: impl IntoIterator<Item = usize>,
        queues: u16,
    ) -> Self {
        let (receiving, sending) = (receiving.into_iter().collect(), sending.into_iter().collect());
        Self { receiving, sending, queues: usize::from(queues).max(1) }
    }

    /// How many shares there are.
    pub fn shares(&self) -> usize {
        self.receiving.len().clamp(1, self.queues)
    }

    /// The share of a device queue.
    pub fn share_of_queue(&self, queue: usize) -> usize {
        queue % self.shares()
    }

    /// The pair whose guest receives what arrives on a device queue. None while no ring receives.
    pub fn fed_by(&self, queue: usize) -> Option<usize> {
        self.receiving.get(queue % self.receiving.len().max(1)).copied()
    }

    /// The share of a pair's receive ring. A ring that no queue feeds is somewhere, too.
    pub fn share_of_receiver(&self, pair: usize) -> usize {
        place(&self.receiving, pair) % self.shares()
    }

    /// The device queue through which a pair sends.
    pub fn queue_of_sender(&self, pair: usize) -> usize {
        place(&self.sending, pair) % self.queues
    }

    /// The share of a pair's transmit ring.
    pub fn share_of_sender(&self, pair: usize) -> usize {
        self.share_of_queue(self.queue_of_sender(pair))
    }

    /// The device queues of a share.
    pub fn queues_of(&self, share: usize) -> impl Iterator<Item = usize> {
        (share..self.queues).step_by(self.shares())
    }

    /// The pairs that have a running ring in a share, in order.
    pub fn pairs_of(&self, share: usize) -> Vec<usize> {
        let receiving = self.receiving.iter().filter(|pair| self.share_of_receiver(**pair) == share);
        let sending = self.sending.iter().filter(|pair| self.share_of_sender(**pair) == share);
        let mut pairs: Vec<_> = receiving.chain(sending).copied().collect();
        pairs.sort_unstable();
        pairs.dedup();
        pairs
    }

    /// Pairs of which both rings run.
    pub fn active_pairs(&self) -> u16 {
        self.receiving.iter().filter(|pair| self.sending.contains(pair)).count() as u16
    }

    /// Whether any ring runs.
    pub fn running(&self) -> bool {
        !self.receiving.is_empty() || !self.sending.is_empty()
    }
}

/// How many running rings come before that of `pair`.
fn place(running: &[usize], pair: usize) -> usize {
    running.iter().take_while(|other| **other < pair).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn with_as_many_pairs_as_queues_each_pair_has_its_own_queue_and_share() {
        let plan = Plan::new(0..4, 0..4, 4);
        assert_eq!((plan.shares(), plan.active_pairs()), (4, 4));
        for pair in 0..4 {
            assert_eq!((plan.queue_of_sender(pair), plan.fed_by(pair)), (pair, Some(pair)));
            assert_eq!((plan.pairs_of(pair), plan.queues_of(pair).collect()), (vec![pair], vec![pair]));
        }
    }

    #[test]
    fn a_guest_that_enables_fewer_pairs_is_fed_by_all_queues() {
        let plan = Plan::new([0, 1], [0, 1], 5);
        assert_eq!(plan.shares(), 2);
        assert_eq!((0..5).map(|queue| plan.fed_by(queue)).collect::<Vec<_>>(), [0, 1, 0, 1, 0].map(Some));
        assert_eq!((plan.queues_of(0).collect(), plan.queues_of(1).collect()), (vec![0, 2, 4], vec![1, 3]));
    }

    #[test]
    fn more_pairs_than_queues_share_them() {
        let plan = Plan::new(0..5, 0..5, 2);
        assert_eq!(plan.shares(), 2);
        assert_eq!((plan.pairs_of(0), plan.pairs_of(1)), (vec![0, 2, 4], vec![1, 3]));
        assert_eq!((0..5).map(|pair| plan.queue_of_sender(pair)).collect::<Vec<_>>(), [0, 1, 0, 1, 0]);
    }

    #[test]
    fn without_a_receiving_ring_all_is_one_share() {
        let plan = Plan::new([], [3], 8);
        assert_eq!((plan.shares(), plan.fed_by(5), plan.share_of_sender(3)), (1, None, 0));
        assert_eq!(plan.queues_of(0).count(), 8);
    }

    proptest! {
        #[test]
        fn what_is_connected_is_in_one_share_and_no_queue_feeds_a_ring_that_does_not_run(
            receiving in prop::collection::btree_set(0usize..32, 0..32),
            sending in prop::collection::btree_set(0usize..32, 0..32),
            queues in 1u16..=32,
        ) {
            let plan = Plan::new(receiving.iter().copied(), sending.iter().copied(), queues);
            for queue in 0..usize::from(queues) {
                let share = plan.share_of_queue(queue);
                prop_assert!(share < plan.shares());
                prop_assert!(plan.queues_of(share).any(|other| other == queue));
                match plan.fed_by(queue) {
                    Some(pair) => {
                        prop_assert!(receiving.contains(&pair));
                        prop_assert_eq!(plan.share_of_receiver(pair), share);
                    }
                    None => prop_assert!(receiving.is_empty()),
                }
            }
            for pair in &sending {
                prop_assert!(plan.queue_of_sender(*pair) < usize::from(queues));
                prop_assert_eq!(plan.share_of_sender(*pair), plan.share_of_queue(plan.queue_of_sender(*pair)));
            }
            let all: usize = (0..plan.shares()).map(|share| plan.queues_of(share).count()).sum();
            prop_assert_eq!(all, usize::from(queues));
        }
    }
}
