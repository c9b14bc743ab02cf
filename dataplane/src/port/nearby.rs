//! Packet buffers on the NUMA nodes where a port's guest was.
//!
//! A pool takes long to make, and a front-end may come as often as it likes, each time with memory on another node. So there is one pool for
//! each node at most, made once and kept until the device's own changes; and a node without room is not asked again at once.

use std::time::{Duration, Instant};

/// How long a node without room is not asked again.
const AGAIN: Duration = Duration::from_secs(60);

/// The pools beside the device's.
#[derive(Debug)]
pub(super) struct Nearby<P> {
    pools: Vec<(u16, P)>,
    /// Nodes without room, and when that was found.
    full: Vec<(u16, Instant)>,
}

impl<P> Default for Nearby<P> {
    fn default() -> Self {
        Self { pools: Vec::new(), full: Vec::new() }
    }
}

impl<P> Nearby<P> {
    /// The node on which a pool is to be made for a guest on `guest`, where the device's buffers are on `device` (none: nowhere in
    /// particular). None, where one that is there serves.
    pub fn wants(&self, guest: Option<u16>, device: Option<u16>, now: Instant) -> Option<u16> {
        let is_full = |node: u16| {
            self.full.iter().any(|(full, since)| *full == node && now.saturating_duration_since(*since) < AGAIN)
        };
        guest.filter(|node| device != Some(*node) && self.on(*node).is_none() && !is_full(*node))
    }

    /// Notes what came of it: a pool there, or no room.
    pub fn note(&mut self, node: u16, made: Option<P>, now: Instant) {
        self.full.retain(|(full, _)| *full != node);
        match made {
            Some(pool) if self.on(node).is_none() => self.pools.push((node, pool)),
            Some(_) => {}
            None => self.full.push((node, now)),
        }
    }

    /// The pool on a node.
    pub fn on(&self, node: u16) -> Option<&P> {
        self.pools.iter().find(|(there, _)| *there == node).map(|(_, pool)| pool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_copied_to_buffers_on_the_guests_node() {
        let (none, now) = (Nearby::<()>::default(), Instant::now());
        assert_eq!(none.wants(Some(1), Some(0), now), Some(1));
        assert_eq!(none.wants(Some(0), Some(1), now), Some(0));
        assert_eq!(none.wants(Some(1), None, now), Some(1), "a device of software has buffers anywhere");
        assert_eq!(none.wants(Some(1), Some(1), now), None, "the device's are there");
        assert_eq!(none.wants(None, Some(0), now), None, "nobody knows where the guest is");
    }

    #[test]
    fn a_front_end_that_comes_with_memory_here_and_there_has_one_pool_made_on_each_node() {
        let (mut nearby, now) = (Nearby::default(), Instant::now());
        let mut made = Vec::new();
        for guest in [0, 1, 2].into_iter().cycle().take(30) {
            if let Some(node) = nearby.wants(Some(guest), Some(0), now) {
                made.push(node);
                nearby.note(node, Some(node), now);
            }
            assert_eq!(nearby.on(guest).copied(), Some(guest).filter(|guest| *guest != 0));
        }
        assert_eq!(made, [1, 2]);
    }

    #[test]
    fn nodes_without_room_are_asked_again_after_a_while_and_not_before() {
        let (mut nearby, begun) = (Nearby::default(), Instant::now());
        for node in [1, 2] {
            nearby.note(node, None, begun);
        }
        for node in [1, 2] {
            assert_eq!(nearby.wants(Some(node), Some(0), begun + AGAIN / 2), None);
            assert_eq!(nearby.wants(Some(node), Some(0), begun + AGAIN), Some(node));
        }
        nearby.note(1, Some(()), begun + AGAIN);
        assert_eq!((nearby.on(1), nearby.on(2)), (Some(&()), None));
    }
}
