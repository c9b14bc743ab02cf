//! Which flows have to do with tunnels of the kernel's, and when the network that those go through was looked at.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::error::Error;

/// Time between looks at that network, for each 64 far ends that are known, and how many are at most.
const UNDERLAY: Duration = Duration::from_millis(250);
const FAR_ENDS: usize = 4096;

/// The flows, and what is known of their network.
#[derive(Debug, Default)]
pub(super) struct Tunnels {
    /// Far ends that flows send to, and by how many flows each is named.
    into: HashMap<u128, Vec<IpAddr>>,
    far: BTreeMap<IpAddr, usize>,
    /// Flows that come out of tunnels.
    out_of: HashSet<u128>,
    /// When the network was last asked for; nothing when there is something new since.
    read: Option<Instant>,
    /// Since when it cannot be read.
    failing: Option<Instant>,
    /// Why it is not known any more.
    pub trouble: Option<Error>,
}

impl Tunnels {
    /// What a flow has to do with tunnels now: the far ends that it sends to, and whether it comes out of one.
    pub(super) fn note(&mut self, ufid: u128, far: Vec<IpAddr>, is_out_of: bool) {
        if self.into.get(&ufid).map_or(&[][..], Vec::as_slice) != far {
            self.no_far_ends(ufid);
            for to in &far {
                *self.far.entry(*to).or_insert(0) += 1;
                if self.far[to] == 1 && self.far.len() <= FAR_ENDS {
                    self.read = None;
                }
            }
            if !far.is_empty() {
                self.into.insert(ufid, far);
            }
        }
        if !is_out_of {
            self.out_of.remove(&ufid);
        } else if self.out_of.insert(ufid) && self.out_of.len() == 1 {
            self.read = None;
        }
    }

    /// A flow is gone.
    pub(super) fn forget(&mut self, ufid: u128) {
        self.no_far_ends(ufid);
        self.out_of.remove(&ufid);
    }

    fn no_far_ends(&mut self, ufid: u128) {
        for to in self.into.remove(&ufid).into_iter().flatten() {
            if let Some(flows) = self.far.get_mut(&to) {
                *flows -= 1;
                if *flows == 0 {
                    self.far.remove(&to);
                }
            }
        }
    }

    /// Whether no flow has to do with tunnels.
    pub(super) fn is_empty(&self) -> bool {
        self.far.is_empty() && self.out_of.is_empty()
    }

    /// The far ends, if it is time to look at the network.
    pub(super) fn due(&mut self) -> Option<BTreeSet<IpAddr>> {
        let far: BTreeSet<IpAddr> = self.far.keys().take(FAR_ENDS).copied().collect();
        // What it costs grows with the far ends.
        let pause = UNDERLAY * (1 + far.len() as u32 / 64);
        if self.is_empty() || self.read.is_some_and(|read| read.elapsed() < pause) {
            return None;
        }
        self.read = Some(Instant::now());
        Some(far)
    }

    /// The network could be read, or is not needed.
    pub(super) fn is_known(&mut self) {
        (self.failing, self.trouble) = (None, None);
    }

    /// It could not be read now. For how long that is so.
    pub(super) fn is_failing(&mut self) -> Duration {
        self.failing.get_or_insert_with(Instant::now).elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_far_end_is_known_as_long_as_a_flow_names_it_and_a_new_one_is_looked_at_at_once() {
        let [one, two] = [1, 2].map(|last| IpAddr::from([172, 16, 0, last]));
        let mut tunnels = Tunnels::default();
        assert_eq!(tunnels.due(), None);
        tunnels.note(1, vec![one, one], false);
        tunnels.note(2, vec![one], false);
        assert_eq!(tunnels.due(), Some([one].into()));
        tunnels.note(2, vec![one], false);
        assert_eq!(tunnels.due(), None, "nothing is new");
        tunnels.note(2, vec![one, two], false);
        assert_eq!(tunnels.due(), Some([one, two].into()));
        tunnels.forget(1);
        tunnels.note(2, vec![two], true);
        tunnels.read = None;
        assert_eq!(tunnels.due(), Some([two].into()));
        tunnels.note(2, Vec::new(), true);
        assert!(!tunnels.is_empty());
        tunnels.forget(2);
        assert!(tunnels.is_empty() && tunnels.into.is_empty());
    }
}
