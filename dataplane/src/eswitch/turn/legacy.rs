//! A turn of a port of a NIC in legacy mode.

use super::{NOWHERE, Outside, SwitchPort, Turn, give};
use crate::eswitch::actions::{pop_vlan, push_vlan};
use crate::eswitch::bridge::{Bridge, Change, Outputs, Ports, TPID, Why};
use crate::eswitch::key::{Key, Places};
use crate::nic::{Burst, FrameMut};

impl Turn<'_> {
    /// Decides by the bridge where a frame goes, and changes its tag.
    #[inline]
    pub fn bridge(&mut self, bridge: &mut Bridge, segments: &mut Burst, at: usize) {
        let (from, len) = (self.from, self.frame(at).len());
        let decided = bridge.decide(&self.work.keys[at], &self.work.places[at], from, len);
        let counters = &mut self.ports[from].counters;
        self.work.to[at] = match decided {
            Err(why) => {
                *match why {
                    Why::Malformed => &mut counters.drop_malformed,
                    Why::Spoof => &mut counters.drop_spoof,
                    Why::Rate => &mut counters.drop_meter,
                    Why::Nobody => &mut counters.drop_rule,
                } += 1;
                NOWHERE
            }
            Ok(outputs) => {
                *if outputs.known { &mut counters.hits } else { &mut counters.misses } += 1;
                match outputs.forward() {
                    // Who gets it from a VF does what a guest left undone, or has it done.
                    Some(port) if port != 0 || !self.marked && len <= self.outside.max_frame => port,
                    _ => self.spread(&outputs, segments, at),
                }
            }
        };
    }

    /// Sends a frame to several ports, or with another tag, or out.
    #[inline(never)]
    fn spread(&mut self, outputs: &Outputs, segments: &mut Burst, at: usize) -> u16 {
        let (from, places) = (self.from, self.work.places[at]);
        // Copies take time as segments do.
        let copies = (outputs.as_it_is | outputs.changed).count_ones() as usize;
        self.cut += copies;
        if copies > 1 {
            // They leave at once, behind the frames that came before.
            self.deal(at);
        }
        match self.finish(at) {
            Err(nowhere) => nowhere,
            Ok(Some(cut)) => {
                let key = self.work.keys[at];
                let each = |ports: &mut [SwitchPort], outside: &Outside, frame: FrameMut<'_>| {
                    apply(ports, outside, from, outputs, frame, (&key, places))
                };
                self.cut(segments, at, cut, each)
            }
            Ok(None) if outputs.changed != 0 && !self.own(at) => NOWHERE,
            Ok(None) => {
                let work = &mut *self.work;
                let frame = work.burst.frame_mut(at - self.dealt);
                apply(self.ports, self.outside, from, outputs, frame, (&work.keys[at], places))
            }
        }
    }
}

fn bits(mut ports: Ports) -> impl Iterator<Item = u16> {
    std::iter::from_fn(move || {
        let port = (ports != 0).then(|| ports.trailing_zeros() as u16)?;
        ports &= ports - 1;
        Some(port)
    })
}

/// Gives a frame to all of its outputs, and says where it goes itself.
fn apply(
    ports: &mut [SwitchPort],
    outside: &Outside,
    from: usize,
    outputs: &Outputs,
    mut frame: FrameMut<'_>,
    (key, mut places): (&Key, Places),
) -> u16 {
    let mut to = NOWHERE;
    let mut left = (outputs.as_it_is | outputs.changed).count_ones();
    for port in bits(outputs.as_it_is) {
        left -= 1;
        give(ports, outside, from, key, &mut frame, (port, left == 0), &mut to);
    }
    if outputs.changed == 0 {
        return to;
    }
    let changed = match outputs.change {
        Change::Push(tci) => push_vlan(&mut frame, &mut places, TPID, tci),
        Change::Pop => pop_vlan(&mut frame, &mut places),
    };
    if !changed {
        ports[from].counters.drop_malformed += 1;
        return NOWHERE;
    }
    for port in bits(outputs.changed) {
        left -= 1;
        give(ports, outside, from, key, &mut frame, (port, left == 0), &mut to);
    }
    to
}
