//! A port's turn: what becomes of each frame of a burst from it. Frames leave in the order in which they came, whether they are sent on,
//! changed, or cut into segments.

mod legacy;

use super::actions::Program;
use super::classifier::{Classifier, NONE};
use super::frame::{checksum_is_right, copy};
use super::key::{Key, Places};
use super::meters::Meters;
use super::switch::{Installed, Outside, SwitchPort};
use crate::BURST;
use crate::nic::{Burst, Deal, Frame, FrameMut};
use crate::offload::{Offloads, Request, Segmenter};
use crate::worker::millis;

/// No more frames are looked at in a turn once so many segments were cut: that keeps the worker from its other ports.
const MOST_SEGMENTS: usize = 256;

/// Where a frame goes, if not to a port: to the representor, ...
const REPRESENTOR: u16 = 0xfffe;
/// ... there as one that keeps OVS informed of a rule, ...
const REFRESH: u16 = 0xfffd;
/// ... or nowhere.
const NOWHERE: u16 = 0xffff;

/// A burst being looked at.
pub(super) struct Work {
    pub burst: Burst,
    pub keys: [Key; BURST],
    pub places: [Places; BURST],
    pub found: [u32; BURST],
    /// Where the frame inside a tunnel begins, where the rule is for that one.
    pub inner: [u16; BURST],
    to: [u16; BURST],
    inside: Inside,
}

/// Frames inside tunnels.
struct Inside {
    keys: [Key; BURST],
    places: [Places; BURST],
    found: [u32; BURST],
    /// Which frame of the burst each of them is in.
    of: [usize; BURST],
}

impl Work {
    /// Nothing yet.
    pub fn new() -> Self {
        let (keys, places, found) = ([Key::EMPTY; BURST], [Places::default(); BURST], [NONE; BURST]);
        let inside = Inside { keys, places, found, of: [0; BURST] };
        Self { burst: Burst::new(), keys, places, found, inner: [0; BURST], to: [NOWHERE; BURST], inside }
    }

    /// Frames in tunnels for which there is a rule: those get it, unless there is one for the packet around them: what takes packets out
    /// of tunnels in OVS was not to have those. Only a higher priority changes that. Where the MAC addresses around are not those of the rule
    /// inside, it is not for that frame, which gets the one that it would get if that rule were not there.
    pub fn look_into_tunnels(&mut self, rules: &mut Classifier<Installed>, count: usize) {
        let Self { burst, keys, places, found, inner, inside, .. } = self;
        let mut tunnels = 0;
        for at in 0..count {
            let frame = burst.frame(at);
            if let Some((key, place)) = Key::parse_inner(frame.data(), frame.len(), &keys[at], &places[at])
                // What is to be cut has headers of a tunnel in its first segment only.
                && frame.segment_size().is_none()
            {
                (inside.keys[tunnels], inside.places[tunnels], inside.of[tunnels]) = (key, place, at);
                tunnels += 1;
            }
        }
        if tunnels == 0 {
            return;
        }
        rules.look_up(&inside.keys[..tunnels], &mut inside.found);
        for (tunnel, at) in inside.of[..tunnels].iter().enumerate() {
            let (at, mut rule) = (*at, inside.found[tunnel]);
            let above = rules.priority(found[at]);
            // One that fits is not more important than the one that was found.
            if rules.priority(rule) <= above {
                continue;
            }
            let around = burst.frame(at).data();
            if rules.body_mut(rule).is_some_and(|rule| !rule.program.fits_around(around)) {
                rule = rules.look_up_fitting(&inside.keys[tunnel], above, |rule| rule.program.fits_around(around));
            }
            if rule != NONE && checksum_is_right(burst.frame(at), &places[at]) {
                inner[at] = places[at].inner;
                (keys[at], places[at], found[at]) = (inside.keys[tunnel], inside.places[tunnel], rule);
            }
        }
    }
}

/// The turn of a port.
pub(super) struct Turn<'a> {
    ports: &'a mut [SwitchPort],
    work: &'a mut Work,
    outside: &'a Outside,
    meters: &'a mut Meters,
    from: usize,
    /// In milliseconds, by [`millis`].
    now: u32,
    /// In how many milliseconds a rule sends a frame to the representor.
    refresh_every: u32,
    /// Something is left to be done to some of the frames.
    marked: bool,
    /// Frames that left the burst. The next one is the burst's first.
    dealt: usize,
    /// Segments that were cut.
    cut: usize,
}

impl<'a> Turn<'a> {
    /// Begins, when the rules of the burst in `work` were found.
    pub fn new(
        ports: &'a mut [SwitchPort],
        work: &'a mut Work,
        outside: &'a Outside,
        meters: &'a mut Meters,
        (from, marked, refresh_every): (usize, bool, u32),
    ) -> Self {
        Self { ports, work, outside, meters, from, now: millis(), refresh_every, marked, dealt: 0, cut: 0 }
    }

    /// Whether another frame may be looked at.
    #[inline]
    pub fn goes_on(&self) -> bool {
        self.cut < MOST_SEGMENTS
    }

    /// Gives the frames before this one away.
    #[inline]
    pub fn deal(&mut self, end: usize) {
        let Work { burst, keys, to, .. } = &mut *self.work;
        let bell = &self.outside.bell;
        let (ports, from, first) = (&mut *self.ports, self.from, self.dealt);
        burst.deal(end - first, &mut To { ports, from, bell, to: &to[first..end], key: |place| &keys[first + place] });
        self.dealt = end;
    }

    /// Does to a frame what its rule wants, and decides where it goes.
    #[inline]
    pub fn decide(&mut self, rules: &mut Classifier<Installed>, segments: &mut Burst, at: usize) {
        let from = self.from;
        self.work.to[at] = match rules.body_mut(self.work.found[at]) {
            None => {
                self.ports[from].counters.misses += 1;
                self.leave_to_slow_path(segments, at, REPRESENTOR)
            }
            Some(rule) => {
                rule.last = self.now;
                if rule.is_due(self.now, self.refresh_every) && self.ports[from].may_refresh() {
                    rule.refreshed(self.now);
                    self.leave_to_slow_path(segments, at, REFRESH)
                } else {
                    let len = self.frame(at).len();
                    match rule.program.forward() {
                        Some(port) if !self.marked && (port != 0 || len <= self.outside.max_frame) => {
                            rule.count(len, &mut self.ports[from].counters);
                            port
                        }
                        _ => self.act(rule, segments, at),
                    }
                }
            }
        };
    }

    fn frame(&self, at: usize) -> Frame<'_> {
        self.work.burst.frame(at - self.dealt)
    }

    /// Makes ready what a guest left undone, so that the representor gets it as it would be on a wire.
    fn leave_to_slow_path(&mut self, segments: &mut Burst, at: usize, to: u16) -> u16 {
        match self.finish(at) {
            Err(nowhere) => nowhere,
            Ok(Some(cut)) => self.cut(segments, at, cut, |_, _, _| to),
            Ok(None) => {
                let frame = self.frame(at);
                if frame.data().len() < 14 || frame.len() > self.outside.max_frame {
                    self.ports[self.from].counters.drop_malformed += 1;
                    return NOWHERE;
                }
                to
            }
        }
    }

    /// Does what a rule wants that is more than to send a frame on.
    #[inline(never)]
    fn act(&mut self, rule: &mut Installed, segments: &mut Burst, at: usize) -> u16 {
        let Work { keys, places, inner, .. } = &*self.work;
        let (frame, place, inner, from) = (self.frame(at), places[at], inner[at], self.from);
        let whole = frame.segment_count() == 1 || self.marked && frame.segment_size().is_some();
        if !rule.program.fits(&keys[at], &place, whole) {
            return self.leave_to_slow_path(segments, at, REPRESENTOR);
        }
        let len = frame.len();
        let counters = &mut self.ports[from].counters;
        rule.count(len, counters);
        if !self.meters.pass(rule.program.meters(), len) {
            counters.drop_meter += 1;
            return NOWHERE;
        }
        if rule.program.drops() {
            counters.drop_rule += 1;
            return NOWHERE;
        }
        // Who gets it from a VF does what is left, or has it done.
        if let Some(port) = rule.program.forward().filter(|port| *port != 0) {
            return port;
        }
        let program = &rule.program;
        if program.outputs() > 1 {
            // Copies leave at once, behind the frames that came before.
            self.deal(at);
        }
        match self.finish(at) {
            Err(nowhere) => nowhere,
            Ok(Some(cut)) => {
                let key = self.work.keys[at];
                let each = |ports: &mut [SwitchPort], outside: &Outside, frame: FrameMut<'_>| {
                    apply(ports, outside, from, program, frame, (&key, place, inner))
                };
                self.cut(segments, at, cut, each)
            }
            Ok(None) if !program.changes_nothing() && !self.own(at) => NOWHERE,
            Ok(None) => {
                let Work { burst, keys, .. } = &mut *self.work;
                let frame = burst.frame_mut(at - self.dealt);
                apply(self.ports, self.outside, from, program, frame, (&keys[at], place, inner))
            }
        }
    }

    /// Does what a guest left undone in a frame, or says what it is to be cut into. Otherwise it is dropped, and goes nowhere.
    fn finish(&mut self, at: usize) -> Result<Option<Segmenter>, u16> {
        if !self.marked {
            return Ok(None);
        }
        let mut frame = self.work.burst.frame_mut(at - self.dealt);
        let header = frame.unmark();
        let (len, buffers) = (frame.as_frame().len(), frame.as_frame().segment_count());
        match Request::parse(&header, frame.as_frame().data(), len, Offloads::ALL) {
            Ok(None) => Ok(None),
            Ok(Some(Request::Checksum(checksum))) if buffers == 1 => {
                if !self.own(at) {
                    return Err(NOWHERE);
                }
                checksum.fill(self.work.burst.frame_mut(at - self.dealt).bytes_mut());
                Ok(None)
            }
            Ok(Some(Request::Segment(segment))) => Ok(Some(Segmenter::new(&segment, frame.as_frame().data(), len))),
            _ => {
                self.ports[self.from].counters.drop_malformed += 1;
                Err(NOWHERE)
            }
        }
    }

    /// Sees to it that a frame may be written: one in memory that is only lent, a guest's, is copied. False when that is not possible,
    /// and the frame is counted as dropped.
    fn own(&mut self, at: usize) -> bool {
        let owned = self.work.burst.own(at - self.dealt, &self.outside.pool);
        self.ports[self.from].counters.drop_no_buffer += u64::from(!owned);
        owned
    }

    /// Cuts a frame into segments, which go where `each` says, behind the frames that came before. The frame itself goes nowhere.
    fn cut(
        &mut self,
        segments: &mut Burst,
        at: usize,
        mut cut: Segmenter,
        mut each: impl FnMut(&mut [SwitchPort], &Outside, FrameMut<'_>) -> u16,
    ) -> u16 {
        self.deal(at);
        let Self { ports, work, outside, from, .. } = self;
        let mut made = 0;
        while cut.left() > 0 {
            if !segments.cut(work.burst.frame(0), &mut cut, &outside.pool) {
                // What is left of the frame counts once.
                ports[*from].counters.drop_no_buffer += 1;
                made += 1;
                break;
            }
            made += segments.len();
            let mut to = [NOWHERE; BURST];
            for (place, to) in to.iter_mut().enumerate().take(segments.len()) {
                *to = if segments.frame(place).len() > outside.max_frame {
                    ports[*from].counters.drop_malformed += 1;
                    NOWHERE
                } else {
                    each(ports, outside, segments.frame_mut(place))
                };
            }
            let key = &work.keys[at];
            let mut to = To { ports, from: *from, bell: &outside.bell, to: &to, key: |_| key };
            segments.deal(BURST, &mut to);
        }
        self.cut += made;
        let counters = &mut self.ports[self.from].counters;
        match made.checked_sub(1) {
            Some(more) => counters.segments += more as u64,
            None => counters.drop_malformed += 1,
        }
        NOWHERE
    }
}

/// Gives frames to where they go.
struct To<'a, K> {
    ports: &'a mut [SwitchPort],
    from: usize,
    bell: &'a crate::nic::Bell,
    to: &'a [u16],
    key: K,
}

impl<'a, K: Fn(usize) -> &'a Key> Deal for To<'_, K> {
    #[inline]
    fn to(&mut self, place: usize) -> Option<&mut Burst> {
        match self.to[place] {
            NOWHERE => None,
            REPRESENTOR => Some(self.ports[self.from].slow(self.bell)),
            REFRESH => Some(self.ports[self.from].fresh(self.bell)),
            port => Some(self.ports[usize::from(port)].out((self.key)(place))),
        }
    }
}

/// Runs a program on a frame that may be written, from a port. Returns where it goes in the end.
#[inline]
fn apply(
    ports: &mut [SwitchPort],
    outside: &Outside,
    from: usize,
    program: &Program,
    mut frame: FrameMut<'_>,
    (key, places, inner): (&Key, Places, u16),
) -> u16 {
    let mut to = NOWHERE;
    let done = program.run(&mut frame, key, places, inner, |frame, port, last| {
        give(ports, outside, from, key, frame, (port, last), &mut to);
    });
    if !done {
        ports[from].counters.drop_malformed += 1;
    }
    to
}

/// Gives a frame to a port: itself, of which `to` says so, when it is the last one, or else a copy.
fn give(
    ports: &mut [SwitchPort],
    outside: &Outside,
    from: usize,
    key: &Key,
    frame: &mut FrameMut<'_>,
    (port, last): (u16, bool),
    to: &mut u16,
) {
    let long = port == 0 && frame.as_frame().len() > outside.max_frame;
    match (long, last) {
        (true, true) => ports[from].counters.drop_malformed += 1,
        (true, false) => {
            ports[from].counters.copies += 1;
            ports[from].counters.drop_malformed += 1;
        }
        (false, true) => *to = port,
        (false, false) => {
            let copied = copy(frame.as_frame(), &outside.pool, ports[usize::from(port)].out(key));
            let counters = &mut ports[from].counters;
            counters.copies += 1;
            counters.drop_no_buffer += u64::from(!copied);
        }
    }
}
