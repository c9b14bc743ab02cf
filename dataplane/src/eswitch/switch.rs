//! The switch of a NIC, as its worker runs it: bursts in, a rule for each frame, bursts out.

use std::sync::Arc;
use std::time::Duration;

use ringspan_protocol::{Field, NicPortCounters};

use super::actions::Program;
use super::classifier::{Classifier, NONE};
use super::frame::{checksum_is_right, copy, finish};
use super::key::{Key, Places};
use crate::BURST;
use crate::nic::{Bell, Burst, Deal, Frame, Pool, QueuePair, SoftNic, VfLink, WayIn, WayOut};
use crate::offload::Segmenter;
use crate::worker::{Watch, ticks, ticks_in};

/// How often a rule in use sends a frame to the representor. OVS looks at its flows at least that often before it forgets them
/// (`max-idle`, 10 s), and is told to within 5 s.
const REFRESH: Duration = Duration::from_secs(4);

/// Where a frame goes, if not to a port.
const REPRESENTOR: u16 = 0xfffe;
const NOWHERE: u16 = 0xffff;

/// What is done by a rule, and what it counted.
#[derive(Debug)]
pub struct Installed {
    /// What is done.
    pub program: Program,
    /// The rule matches a tunnel.
    pub tunnel: bool,
    /// Frames it was applied to.
    pub packets: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// The clock at the last one, in ticks; 0 when there was none.
    pub last: u64,
    /// From when on the next frame goes to the representor.
    refresh_at: u64,
}

impl Installed {
    /// A rule that begins to count. `spread` is any number: so that not all rules send a frame to the representor at once.
    pub fn new(program: Program, tunnel: bool, refresh: bool, spread: u64) -> Self {
        let interval = ticks_in(REFRESH);
        let first = ticks() + interval / 2 + spread % (interval / 2).max(1);
        let refresh_at = if refresh { first } else { u64::MAX };
        Self { program, tunnel, packets: 0, bytes: 0, last: 0, refresh_at }
    }

    /// Goes on counting where another one stood.
    pub fn go_on(&mut self, old: &Self) {
        (self.packets, self.bytes, self.last) = (old.packets, old.bytes, old.last);
        self.refresh_at = self.refresh_at.min(old.refresh_at.max(ticks()));
    }
}

/// What is at a port.
pub enum Side {
    /// The wire, if there is one.
    Uplink(Option<QueuePair>),
    /// A VF, if a port of ringspan's has it.
    Vf(Option<VfLink>),
}

/// A port of the switch.
pub struct SwitchPort {
    side: Side,
    /// What goes out, by the queue of the VF.
    outs: Vec<Burst>,
    /// What goes to the representor.
    slow: Burst,
    to_tap: WayIn,
    from_tap: WayOut,
    counters: NicPortCounters,
}

/// The switch.
pub struct Switch {
    id: u64,
    nic: Arc<SoftNic>,
    /// Changes of VFs that were followed.
    seen: u64,
    /// The rules. The worker's own, as all of this.
    pub rules: Classifier<Installed>,
    /// Rules among them that match a tunnel.
    pub tunnels: usize,
    ports: Vec<SwitchPort>,
    outside: Outside,
    work: Box<Work>,
}

/// What bounds the frames that leave to where nobody does what a guest left undone.
struct Outside {
    /// Longest frame in bytes for an uplink or a representor.
    max_frame: usize,
    /// For segments and copies.
    pool: Pool,
    /// Wakes the thread of the representors.
    bell: Arc<Bell>,
}

/// A burst being looked at.
struct Work {
    burst: Burst,
    keys: [Key; BURST],
    places: [Places; BURST],
    found: [u32; BURST],
    /// Where the frame inside a tunnel begins, where the rule is for that one.
    inner: [u16; BURST],
    to: [u16; BURST],
    segments: Burst,
}

impl SwitchPort {
    /// A port with nothing on its way.
    pub fn new(side: Side, to_tap: WayIn, from_tap: WayOut) -> Self {
        let counters = NicPortCounters::default();
        Self { side, outs: vec![Burst::new()], slow: Burst::new(), to_tap, from_tap, counters }
    }

    #[inline]
    fn receive(&mut self, burst: &mut Burst) -> usize {
        let received = match &mut self.side {
            Side::Uplink(Some(queue)) => queue.rx.receive(burst),
            Side::Vf(Some(link)) => link.receive(burst),
            Side::Uplink(None) | Side::Vf(None) => 0,
        };
        self.counters.received += received as u64;
        received
    }

    /// The burst in which a frame of this flow leaves, with room for it.
    #[inline]
    fn out(&mut self, key: &Key) -> &mut Burst {
        let queue = if self.outs.len() > 1 { key.flow() as usize % self.outs.len() } else { 0 };
        if self.outs[queue].room() == 0 {
            self.send(queue);
        }
        &mut self.outs[queue]
    }

    /// The burst that goes to the representor, with room for a frame.
    fn slow(&mut self, bell: &Bell) -> &mut Burst {
        if self.slow.room() == 0 {
            self.send_slow(bell);
        }
        &mut self.slow
    }

    /// Sends what waits for a queue. What is not taken is dropped, as a switch drops what a full queue does not take.
    fn send(&mut self, queue: usize) {
        let burst = &mut self.outs[queue];
        if burst.is_empty() {
            return;
        }
        let sent = match &mut self.side {
            Side::Uplink(Some(wire)) => wire.tx.send(burst),
            Side::Vf(Some(link)) => link.send(queue, burst),
            Side::Uplink(None) | Side::Vf(None) => 0,
        };
        self.counters.sent += sent as u64;
        self.counters.drop_full += burst.len() as u64;
        burst.clear();
    }

    fn send_slow(&mut self, bell: &Bell) {
        if self.slow.is_empty() {
            return;
        }
        if self.to_tap.send(&mut self.slow) > 0 {
            bell.ring();
        }
        self.counters.drop_representor += self.slow.len() as u64;
        self.slow.clear();
    }
}

/// Gives the frames of a burst to where they go.
struct To<'a> {
    ports: &'a mut [SwitchPort],
    to: &'a [u16; BURST],
    keys: &'a [Key; BURST],
    from: usize,
    bell: &'a Bell,
}

impl Deal for To<'_> {
    #[inline]
    fn to(&mut self, place: usize) -> Option<&mut Burst> {
        match self.to[place] {
            NOWHERE => None,
            REPRESENTOR => Some(self.ports[self.from].slow(self.bell)),
            port => Some(self.ports[usize::from(port)].out(&self.keys[place])),
        }
    }
}

impl Switch {
    /// A switch without rules.
    pub fn new(
        id: u64,
        nic: Arc<SoftNic>,
        ports: Vec<SwitchPort>,
        (pool, max_frame): (Pool, usize),
        bell: Arc<Bell>,
    ) -> Self {
        let work = Work {
            burst: Burst::new(),
            keys: [Key::EMPTY; BURST],
            places: [Places::default(); BURST],
            found: [NONE; BURST],
            inner: [0; BURST],
            to: [NOWHERE; BURST],
            segments: Burst::new(),
        };
        let outside = Outside { max_frame, pool, bell };
        Self { id, nic, seen: 0, rules: Classifier::default(), tunnels: 0, ports, outside, work: Box::new(work) }
    }

    /// Its number in this lane.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What its ports counted, the uplink first.
    pub fn counters(&self) -> Vec<NicPortCounters> {
        self.ports.iter().map(|port| port.counters).collect()
    }

    /// One round: a burst from each port and each representor. Returns how many frames were moved or dropped.
    #[inline]
    pub fn run(&mut self) -> usize {
        if self.nic.changes() != self.seen {
            self.follow();
        }
        let mut moved = 0;
        for from in 0..self.ports.len() {
            moved += self.forward(from) + self.serve_representor(from);
        }
        if moved > 0 {
            for port in &mut self.ports {
                (0..port.outs.len()).for_each(|queue| port.send(queue));
                port.send_slow(&self.outside.bell);
            }
        }
        moved
    }

    /// A burst from a port: keys, rules, and where each frame goes.
    #[inline]
    fn forward(&mut self, from: usize) -> usize {
        let Work { burst, keys, places, found, inner, .. } = &mut *self.work;
        let count = self.ports[from].receive(burst);
        if count == 0 {
            return 0;
        }
        burst.iter().for_each(|frame| frame.prefetch());
        for (at, frame) in burst.iter().enumerate() {
            (keys[at], places[at]) = Key::parse(frame.data(), frame.len(), from as u16);
        }
        self.rules.look_up(&keys[..count], found);
        inner[..count].fill(0);
        if self.tunnels > 0 {
            self.look_into_tunnels(count);
        }
        let now = ticks();
        let marked = self.work.burst.is_marked(false);
        for at in 0..count {
            self.work.to[at] = self.decide(from, at, now, marked);
        }
        let Work { burst, keys, to, .. } = &mut *self.work;
        burst.deal(&mut To { ports: &mut self.ports, to, keys, from, bell: &self.outside.bell });
        count
    }

    /// Where a frame goes, when all is done to it that its rule wants.
    #[inline]
    fn decide(&mut self, from: usize, at: usize, now: u64, marked: bool) -> u16 {
        let (counters, len) = (&mut self.ports[from].counters, self.work.burst.frame(at).len());
        let Some(rule) = self.rules.body_mut(self.work.found[at]) else {
            counters.misses += 1;
            return self.leave_to_slow_path(from, at, marked);
        };
        rule.last = now;
        if now >= rule.refresh_at {
            rule.refresh_at = now + ticks_in(REFRESH);
            return self.leave_to_slow_path(from, at, marked);
        }
        rule.packets += 1;
        rule.bytes += len as u64;
        counters.hits += 1;
        match rule.program.forward() {
            Some(port) if !marked && (port != 0 || len <= self.outside.max_frame) => port,
            _ => self.act(from, at, marked),
        }
    }

    /// Frames in tunnels for which there is a rule: those get it, unless the one for the packet around them is more important.
    fn look_into_tunnels(&mut self, count: usize) {
        let Work { burst, keys, places, found, inner, .. } = &mut *self.work;
        for at in 0..count {
            let frame = burst.frame(at);
            let start = places[at].inner;
            let Some((key, inside)) = Key::parse_inner(frame.data(), frame.len(), &keys[at], &places[at]) else {
                continue;
            };
            let mut one = [NONE; BURST];
            self.rules.look_up(&[key], &mut one);
            if one[0] != NONE
                && self.rules.priority(one[0]) >= self.rules.priority(found[at])
                && checksum_is_right(frame, &places[at])
            {
                (keys[at], places[at], found[at], inner[at]) = (key, inside, one[0], start);
            }
        }
    }

    /// Follows VFs that were taken or left.
    #[cold]
    fn follow(&mut self) {
        self.seen = self.nic.changes();
        for (vf, port) in self.ports.iter_mut().skip(1).enumerate() {
            port.side = Side::Vf(None);
            // SAFETY: what was had of this VF is dropped.
            let link = unsafe { self.nic.link(vf as u16) };
            let queues = link.as_ref().map_or(1, VfLink::queues);
            port.outs.resize_with(queues, Burst::new);
            port.side = Side::Vf(link);
        }
    }

    /// What came out of a representor goes to its port.
    fn serve_representor(&mut self, from: usize) -> usize {
        let Work { burst, .. } = &mut *self.work;
        let port = &mut self.ports[from];
        let count = port.from_tap.receive(burst);
        port.counters.representor_received += count as u64;
        while !burst.is_empty() {
            let frame = burst.frame(0);
            let key = if port.outs.len() > 1 { Key::parse(frame.data(), frame.len(), 0).0 } else { Key::EMPTY };
            let run = if port.outs.len() > 1 { 1 } else { BURST };
            let out = port.out(&key);
            burst.move_front(run, out);
        }
        count
    }

    /// Makes ready what a guest left undone, so that the representor gets it as it would be on a wire.
    fn leave_to_slow_path(&mut self, from: usize, at: usize, marked: bool) -> u16 {
        let Self { ports, outside, work, .. } = self;
        let Work { burst, keys, segments, .. } = &mut **work;
        let cut = match finish(burst.frame_mut(at), marked) {
            Ok(cut) if burst.frame(at).data().len() >= 14 => cut,
            _ => {
                ports[from].counters.drop_malformed += 1;
                return NOWHERE;
            }
        };
        if let Some(segmenter) = cut {
            let whole = Whole { frame: burst.frame(at), key: &keys[at], from };
            cut_up(ports, outside, whole, segmenter, segments, |_, _, _| REPRESENTOR);
            return NOWHERE;
        }
        if burst.frame(at).len() > outside.max_frame {
            ports[from].counters.drop_malformed += 1;
            return NOWHERE;
        }
        REPRESENTOR
    }

    /// Does what a rule wants that is more than to send a frame on.
    #[cold]
    fn act(&mut self, from: usize, at: usize, marked: bool) -> u16 {
        let Self { ports, outside, rules, work, .. } = self;
        let Work { burst, keys, places, found, inner, segments, .. } = &mut **work;
        let Some(rule) = rules.body_mut(found[at]) else { return NOWHERE };
        let counters = &mut ports[from].counters;
        if rule.program.drops() {
            counters.drop_rule += 1;
            return NOWHERE;
        }
        // Who gets it from a VF does what is left, or has it done.
        if let Some(port) = rule.program.forward().filter(|port| *port != 0) {
            return port;
        }
        let Ok(cut) = finish(burst.frame_mut(at), marked) else {
            counters.drop_malformed += 1;
            return NOWHERE;
        };
        let doing = Doing { program: &rule.program, key: &keys[at], places: places[at], inner: inner[at], from };
        if !doing.program.fits(doing.key, &doing.places, burst.frame(at).segment_count() == 1 || cut.is_some()) {
            return self.leave_cut_or_whole(from, at, cut);
        }
        match cut {
            None => doing.apply(ports, outside, burst, at),
            Some(segmenter) => {
                let whole = Whole { frame: burst.frame(at), key: &keys[at], from };
                cut_up(ports, outside, whole, segmenter, segments, |ports, segments, place| {
                    doing.apply(ports, outside, segments, place)
                });
                NOWHERE
            }
        }
    }

    /// As [`Switch::leave_to_slow_path`], for a frame that was looked at already.
    fn leave_cut_or_whole(&mut self, from: usize, at: usize, cut: Option<Segmenter>) -> u16 {
        let Some(segmenter) = cut else { return self.leave_to_slow_path(from, at, false) };
        let Self { ports, outside, work, .. } = self;
        let Work { burst, keys, segments, .. } = &mut **work;
        let whole = Whole { frame: burst.frame(at), key: &keys[at], from };
        cut_up(ports, outside, whole, segmenter, segments, |_, _, _| REPRESENTOR);
        NOWHERE
    }

    /// Its worker is woken by what it watches.
    pub fn watch(&mut self, watch: &Watch) {
        watch.add(self.nic.bell().fd());
        if let Some(queue) = self.uplink()
            && let Some(fd) = queue.rx.wake()
        {
            watch.add(fd);
        }
    }

    /// The opposite.
    pub fn unwatch(&mut self, watch: &Watch) {
        watch.remove(self.nic.bell().fd());
        if let Some(queue) = self.uplink()
            && let Some(fd) = queue.rx.wake()
        {
            watch.remove(fd);
        }
    }

    /// Asks to be signalled. True when something waits already, which is not known before all is looked at.
    pub fn listen(&mut self) -> bool {
        self.nic.bell().listen();
        if let Some(queue) = self.uplink() {
            queue.rx.listen();
        }
        false
    }

    /// Whether everything that may come is signalled.
    pub fn can_wake(&self) -> bool {
        match self.ports.first().map(|port| &port.side) {
            Some(Side::Uplink(Some(queue))) => queue.rx.is_signalled(),
            _ => true,
        }
    }

    /// Something was signalled during the sleep.
    pub fn look_for_signals(&mut self) {
        if let Some(queue) = self.uplink() {
            queue.rx.look_for_signal();
        }
    }

    /// No signals are needed any more.
    pub fn ignore_signals(&mut self) {
        self.nic.bell().ignore();
        if let Some(queue) = self.uplink() {
            queue.rx.ignore();
        }
    }

    fn uplink(&mut self) -> Option<&mut QueuePair> {
        match &mut self.ports.first_mut()?.side {
            Side::Uplink(queue) => queue.as_mut(),
            Side::Vf(_) => None,
        }
    }
}

/// A rule's program, for one frame.
struct Doing<'a> {
    program: &'a Program,
    key: &'a Key,
    places: Places,
    inner: u16,
    from: usize,
}

impl Doing<'_> {
    /// Runs the program. Returns where the frame goes in the end.
    fn apply(&self, ports: &mut [SwitchPort], outside: &Outside, burst: &mut Burst, at: usize) -> u16 {
        let mut to = NOWHERE;
        let mut frame = burst.frame_mut(at);
        let done = self.program.run(&mut frame, self.key, self.places, self.inner, |frame, port, last| {
            let long = port == 0 && frame.as_frame().len() > outside.max_frame;
            let copied =
                !last && !long && copy(frame.as_frame(), &outside.pool, ports[usize::from(port)].out(self.key));
            let counters = &mut ports[self.from].counters;
            counters.copies += u64::from(!last);
            counters.drop_malformed += u64::from(long);
            counters.drop_no_buffer += u64::from(!last && !long && !copied);
            if last && !long {
                to = port;
            }
        });
        ports[self.from].counters.drop_malformed += u64::from(!done);
        to
    }
}

/// A frame that is to be cut.
struct Whole<'a> {
    frame: Frame<'a>,
    key: &'a Key,
    from: usize,
}

/// Cuts a frame into segments, and sends each where `each` says.
fn cut_up(
    ports: &mut [SwitchPort],
    outside: &Outside,
    Whole { frame, key, from }: Whole<'_>,
    mut cut: Segmenter,
    segments: &mut Burst,
    mut each: impl FnMut(&mut [SwitchPort], &mut Burst, usize) -> u16,
) {
    let keys = [*key; BURST];
    let mut made = 0;
    while cut.left() > 0 {
        if !segments.cut(frame, &mut cut, &outside.pool) {
            // What is left of the frame counts once.
            ports[from].counters.drop_no_buffer += 1;
            made += 1;
            break;
        }
        made += segments.len() as u64;
        let mut to = [NOWHERE; BURST];
        for (place, to) in to.iter_mut().enumerate().take(segments.len()) {
            if segments.frame(place).len() > outside.max_frame {
                ports[from].counters.drop_malformed += 1;
            } else {
                *to = each(ports, segments, place);
            }
        }
        segments.deal(&mut To { ports, to: &to, keys: &keys, from, bell: &outside.bell });
    }
    ports[from].counters.segments += made - 1;
}

/// Frames that a rule with this field sees are inside a tunnel.
pub fn is_tunnel(matches: &ringspan_protocol::Match) -> bool {
    matches.get(Field::TunnelKind).is_some_and(|kind| kind.value() != 0)
}
