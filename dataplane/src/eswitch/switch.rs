//! The switch of a NIC, as its worker runs it: bursts in, a rule for each frame, bursts out.

use std::sync::Arc;
use std::time::Duration;

use ringspan_protocol::NicPortCounters;

use super::actions::Program;
use super::bridge::Bridge;
use super::classifier::Classifier;
use super::key::Key;
use super::meters::Meters;
use super::turn::{Turn, Work};
use crate::BURST;
use crate::nic::{Bell, Burst, Pool, QueuePair, SoftNic, VfLink, WayIn, WayOut};
use crate::relay::Load;
use crate::worker::{Watch, millis, ticks, ticks_in};

/// How often a rule in use sends a frame to the representor, in milliseconds, unless more often is asked for. OVS looks at its flows at least that
/// often before it forgets them (`max-idle`, 10 s), and is told to within 5 s.
pub const REFRESH: u32 = 4000;
/// The shortest time that may be asked for, in milliseconds.
pub const SHORTEST_REFRESH: u32 = 100;
/// Room in the ring to a representor that is kept for those frames: misses do not take it.
const KEPT_FOR_REFRESH: usize = 64;
/// Frames that wait for all VFs together, but for what one round adds: a half of the smallest pool of an uplink or of a port, so that those which are slow
/// never have all buffers of one that is not. Each may have as many as are left by then, so one alone has half of them (Choudhury and
/// Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998).
const MOST_WAITING: usize = 768;
/// How often the uplink's driver is called at least, if it wants to be: bonding asks for 100 ms (Poll Mode Driver guide, "Link Bonding").
const CALL: Duration = Duration::from_millis(40);

/// What is done by a rule, and what it counted.
#[derive(Debug)]
pub struct Installed {
    /// What is done, as by other rules.
    pub program: Arc<Program>,
    /// Frames it was applied to.
    pub packets: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// The clock at the last one, in milliseconds by [`millis`]; 0 when there was none. OVS has forgotten a flow long before it goes round.
    pub last: u32,
    /// The clock when the representor got a frame. When it goes round, one frame in 49 days comes up to [`REFRESH`] later.
    shown: u32,
}

impl Installed {
    /// A rule that begins to count. `spread` is any number: so that not all rules send a frame to the representor at once.
    pub fn new(program: Arc<Program>, spread: u64) -> Self {
        let ago = (spread % u64::from(REFRESH / 2)) as u32;
        Self { program, packets: 0, bytes: 0, last: 0, shown: millis().wrapping_sub(ago) }
    }

    /// Goes on counting where another one stood.
    pub fn go_on(&mut self, old: &Self) {
        (self.packets, self.bytes, self.last) = (old.packets, old.bytes, old.last);
        if old.program.refreshes() {
            let now = millis();
            let ago = |rule: &Self| now.wrapping_sub(rule.shown).min(REFRESH);
            self.shown = now.wrapping_sub(ago(self).max(ago(old)));
        }
    }

    /// Counts a frame that it is applied to, from a port with these counters.
    #[inline]
    pub(super) fn count(&mut self, len: usize, counters: &mut NicPortCounters) {
        self.packets += 1;
        self.bytes += len as u64;
        counters.hits += 1;
    }

    /// Whether the representor is to get a frame by now, where it gets one in so many milliseconds.
    #[inline]
    pub(super) fn is_due(&self, now: u32, every: u32) -> bool {
        now.wrapping_sub(self.shown) >= every && self.program.refreshes()
    }

    /// It gets one.
    pub(super) fn refreshed(&mut self, now: u32) {
        self.shown = now;
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
    /// What came in and was too much for one turn.
    pub(super) kept: Burst,
    /// What goes to the representor because there is no rule, ...
    slow: Burst,
    /// ... and what keeps OVS informed of rules, of which so many frames were sent in this round.
    fresh: Burst,
    refreshes: usize,
    /// Frames that a VF may be given before it is asked again how many wait for it.
    room: usize,
    /// The ways to and from its representor; none in legacy mode.
    tap: Option<(WayIn, WayOut)>,
    pub(super) counters: NicPortCounters,
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
    /// In how many milliseconds a rule in use sends a frame to its representor.
    pub refresh_every: u32,
    /// Meters that rules name.
    pub meters: Meters,
    /// What decides instead of rules in legacy mode.
    pub bridge: Option<Box<Bridge>>,
    ports: Vec<SwitchPort>,
    outside: Outside,
    work: Box<Work>,
    /// Of a frame that is being cut.
    segments: Burst,
    /// When the uplink's driver is to be called at the latest, if it wants to be.
    call_at: Option<u64>,
    load: Arc<Load>,
}

/// What bounds the frames that leave to where nobody does what a guest left undone.
pub(super) struct Outside {
    /// Longest frame in bytes for an uplink or a representor.
    pub max_frame: usize,
    /// For segments and copies.
    pub pool: Pool,
    /// Wakes the thread of the representors.
    pub bell: Arc<Bell>,
}

impl SwitchPort {
    /// A port with nothing on its way.
    pub fn new(side: Side, tap: Option<(WayIn, WayOut)>) -> Self {
        let counters = NicPortCounters::default();
        let [kept, slow, fresh] = [const { Burst::new() }; 3];
        Self { side, outs: vec![Burst::new()], kept, slow, fresh, refreshes: 0, room: MOST_WAITING, tap, counters }
    }

    #[inline]
    fn receive(&mut self, burst: &mut Burst) -> usize {
        if !self.kept.is_empty() {
            self.kept.move_front(BURST, burst);
            return burst.len();
        }
        let received = match &mut self.side {
            Side::Uplink(Some(queue)) => {
                let received = queue.rx.receive(burst);
                let passed_over = queue.rx.passed_over();
                self.counters.received += passed_over;
                self.counters.drop_backup += passed_over;
                received
            }
            Side::Vf(Some(link)) => link.receive(burst),
            Side::Uplink(None) | Side::Vf(None) => 0,
        };
        self.counters.received += received as u64;
        received
    }

    /// The burst in which a frame of this flow leaves, with room for it.
    #[inline]
    pub(super) fn out(&mut self, key: &Key) -> &mut Burst {
        let queue = if self.outs.len() > 1 { key.flow() as usize % self.outs.len() } else { 0 };
        if self.outs[queue].room() == 0 {
            self.send(queue);
        }
        &mut self.outs[queue]
    }

    /// The burst that goes to the representor, with room for a frame.
    pub(super) fn slow(&mut self, bell: &Bell) -> &mut Burst {
        if self.slow.room() == 0 {
            self.send_slow(bell);
        }
        &mut self.slow
    }

    /// The same for a frame that keeps OVS informed.
    pub(super) fn fresh(&mut self, bell: &Bell) -> &mut Burst {
        if self.fresh.room() == 0 {
            self.send_slow(bell);
        }
        &mut self.fresh
    }

    /// Whether the representor will take a frame that keeps OVS informed. If not, the rule's next frame asks again.
    #[cold]
    pub(super) fn may_refresh(&mut self) -> bool {
        let room = self.tap.as_ref().map_or(0, |(to_tap, _)| to_tap.room());
        let may = self.refreshes < KEPT_FOR_REFRESH.min(room);
        self.refreshes += usize::from(may);
        may
    }

    /// Sends what waits for a queue. What is not taken is dropped, as a switch drops what a full queue does not take.
    fn send(&mut self, queue: usize) {
        let burst = &mut self.outs[queue];
        if burst.is_empty() {
            return;
        }
        let sent = match &mut self.side {
            Side::Uplink(Some(wire)) => wire.tx.send(burst),
            Side::Vf(Some(link)) => {
                let sent = link.send(queue, burst, self.room);
                self.room -= sent;
                sent
            }
            Side::Uplink(None) | Side::Vf(None) => 0,
        };
        self.counters.sent += sent as u64;
        self.counters.drop_full += burst.len() as u64;
        burst.clear();
    }

    /// Frames that wait for a VF.
    #[inline]
    fn waiting(&self) -> usize {
        match &self.side {
            Side::Vf(Some(link)) => link.waiting(),
            _ => 0,
        }
    }

    fn send_slow(&mut self, bell: &Bell) {
        if self.slow.is_empty() && self.fresh.is_empty() {
            return;
        }
        if let Some((to_tap, _)) = &mut self.tap {
            let mut sent = to_tap.send(&mut self.fresh, BURST);
            let room = to_tap.room().saturating_sub(KEPT_FOR_REFRESH);
            sent += to_tap.send(&mut self.slow, room);
            if sent > 0 {
                bell.ring();
            }
        }
        self.counters.drop_representor += (self.slow.len() + self.fresh.len()) as u64;
        self.slow.clear();
        self.fresh.clear();
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
        mut bridge: Option<Box<Bridge>>,
    ) -> Self {
        if let Some(bridge) = &mut bridge {
            bridge.connect(0, matches!(ports.first().map(|port| &port.side), Some(Side::Uplink(Some(_)))));
        }
        let (outside, work) = (Outside { max_frame, pool, bell }, Box::new(Work::new()));
        let wants_calls = |side: &Side| matches!(side, Side::Uplink(Some(queue)) if queue.tx.wants_calls());
        let call_at = ports.first().filter(|port| wants_calls(&port.side)).map(|_| 0);
        let (rules, segments, load) = (Classifier::default(), Burst::new(), Arc::default());
        Self {
            id,
            nic,
            seen: 0,
            rules,
            tunnels: 0,
            refresh_every: REFRESH,
            meters: Meters::default(),
            bridge,
            ports,
            outside,
            work,
            segments,
            call_at,
            load,
        }
    }

    /// Its number in this lane.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What it made its worker do.
    pub fn load(&self) -> &Arc<Load> {
        &self.load
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
            let left = MOST_WAITING.saturating_sub(self.ports.iter().map(SwitchPort::waiting).sum());
            for port in &mut self.ports {
                port.room = left.saturating_sub(port.waiting());
                (0..port.outs.len()).for_each(|queue| port.send(queue));
                port.send_slow(&self.outside.bell);
                port.refreshes = 0;
            }
        }
        if self.call_at.is_some() {
            self.call_uplink();
        }
        moved
    }

    /// Lets the uplink's driver do what it does by itself, when it is time.
    #[cold]
    fn call_uplink(&mut self) {
        let now = ticks();
        if self.call_at.is_some_and(|at| now >= at)
            && let Some(queue) = self.uplink()
        {
            queue.tx.call();
            self.call_at = Some(now + ticks_in(CALL));
        }
    }

    /// A burst from a port: keys, rules, and where each frame goes. What would be too much for one turn waits for the next.
    #[inline]
    fn forward(&mut self, from: usize) -> usize {
        let Self { ports, rules, refresh_every, meters, bridge, work, outside, segments, .. } = self;
        let Work { burst, keys, places, found, inner, .. } = &mut **work;
        let count = ports[from].receive(burst);
        if count == 0 {
            return 0;
        }
        burst.iter().for_each(|frame| frame.prefetch());
        for (at, frame) in burst.iter().enumerate() {
            (keys[at], places[at]) = Key::parse(frame.data(), frame.len(), from as u16);
        }
        let marked = burst.is_marked(false);
        if bridge.is_none() {
            rules.look_up(&keys[..count], found);
            inner[..count].fill(0);
            if self.tunnels > 0 {
                work.look_into_tunnels(rules, count);
            }
        }
        let mut turn = Turn::new(ports, work, outside, meters, (from, marked, *refresh_every));
        let mut done = 0;
        match bridge {
            None => {
                while done < count && turn.goes_on() {
                    turn.decide(rules, segments, done);
                    done += 1;
                }
            }
            Some(bridge) => {
                while done < count && turn.goes_on() {
                    turn.bridge(bridge, segments, done);
                    done += 1;
                }
            }
        }
        turn.deal(done);
        if done < count {
            self.work.burst.move_front(BURST, &mut self.ports[from].kept);
        }
        done
    }

    /// Follows VFs that were taken or left.
    #[cold]
    fn follow(&mut self) {
        self.seen = self.nic.changes();
        for (vf, port) in self.ports.iter_mut().skip(1).enumerate() {
            let old = std::mem::replace(&mut port.side, Side::Vf(None));
            // SAFETY: what was had of this VF is not used any more.
            let link = unsafe { self.nic.link(vf as u16) };
            let same = match (&old, &link) {
                (Side::Vf(Some(old)), Some(link)) => link.is_same(old),
                (_, link) => !matches!(old, Side::Vf(Some(_))) && link.is_none(),
            };
            if let Side::Vf(Some(old)) = old
                && !same
            {
                // Nobody takes what is in the rings of a port that is gone: it goes with them.
                let (to_vf, from_vf) = (old.waiting() as u64, old.not_received() as u64);
                port.counters.sent -= to_vf.min(port.counters.sent);
                port.counters.received += from_vf;
                port.counters.drop_full += to_vf + from_vf;
            }
            let queues = link.as_ref().map_or(1, VfLink::queues);
            port.outs.resize_with(queues, Burst::new);
            if let Some(bridge) = self.bridge.as_mut().filter(|_| !same) {
                bridge.connect(vf + 1, link.is_some());
            }
            port.side = Side::Vf(link);
        }
    }

    /// What came out of a representor goes to its port.
    fn serve_representor(&mut self, from: usize) -> usize {
        let Work { burst, .. } = &mut *self.work;
        let port = &mut self.ports[from];
        let Some((_, from_tap)) = &mut port.tap else { return 0 };
        let count = from_tap.receive(burst);
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

    /// Its worker is woken by what it watches.
    pub fn watch(&mut self, watch: &Watch) {
        watch.add(self.nic.bell().fd());
        if let Some(queue) = self.uplink()
            && let Some(fd) = queue.rx.wake()
        {
            watch.add(fd);
            queue.rx.take_signals();
        }
    }

    /// The opposite.
    pub fn unwatch(&mut self, watch: &Watch) {
        watch.remove(self.nic.bell().fd());
        if let Some(queue) = self.uplink()
            && let Some(fd) = queue.rx.wake()
        {
            watch.remove(fd);
            queue.rx.give_signals_back();
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
