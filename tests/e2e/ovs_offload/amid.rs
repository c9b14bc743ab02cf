//! What becomes of frames amid which Open vSwitch is restarted, loses a port or changes its mind. Frames may be lost then: those that arrive
//! do so once, as they were sent, and where OVS wanted them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_testkit::daemon::find;
use ringspan_testkit::guest::Guest;
use ringspan_testkit::guest::loopback::{self, Plan};
use ringspan_testkit::{needs, wait};
use serde_json::{Value, json};

use super::{FLOWS, SOON, Scene};

/// Guests; the first two send to each other, and the last one sends nothing.
const GUESTS: usize = 3;
/// Frames of a way that are on their way at most, and for how long one is taken to be.
const WINDOW: usize = 64;
const ON_ITS_WAY: Duration = Duration::from_millis(50);
/// Frames that show that a way is open, or that nothing comes by it.
const SOME: u64 = 500;
/// What a busy machine may add to a time that is documented.
const BUSY: Duration = Duration::from_secs(5);
/// How long OVS is away: ten of the daemon's looks at it, and a tenth of the time for which rules stay.
const AWAY: Duration = Duration::from_secs(1);
/// How often a frame of a rule goes to OVS.
const TO_OVS: Duration = Duration::from_secs(4);

/// A frame that was sent.
struct Frame {
    at: Instant,
    /// The guest that it came to.
    came: Option<usize>,
}

/// Frames of both ways by their numbers: way 0 is from the first guest to the second one, way 1 back.
type Frames = [Vec<Frame>; 2];

/// A time, and how many frames of each way were sent by then.
type Mark = (Instant, [u64; 2]);

/// Traffic that goes on whatever is lost, as far as it has come.
#[derive(Default)]
struct Traffic {
    over: AtomicBool,
    /// Held while frames are sent: who looks sees each of them sent and counted, or neither.
    sent: Mutex<[u64; 2]>,
    /// By way and guest.
    came: [[AtomicU64; GUESTS]; 2],
}

impl Traffic {
    /// Does this amid traffic. What became of the frames.
    fn amid<T>(guests: &mut [Guest], what: impl FnOnce(&Self) -> Result<T>) -> Result<(T, Frames)> {
        let traffic = Self::default();
        std::thread::scope(|scope| {
            let frames = scope.spawn(|| traffic.run(guests));
            let done = what(&traffic);
            traffic.over.store(true, Ordering::Relaxed);
            let frames = frames.join().map_err(|_| anyhow::anyhow!("the traffic's thread panicked"))?;
            // What went wrong with the traffic explains what was waited for in vain.
            let frames = frames?;
            Ok((done?, frames))
        })
    }

    /// Sends and receives until it is over and nothing is on its way.
    fn run(&self, guests: &mut [Guest]) -> Result<Frames> {
        let mut frames = Frames::default();
        // The first frame of each way that may be on its way.
        let mut oldest = [0; 2];
        loop {
            let over = self.over.load(Ordering::Relaxed);
            let mut moved = false;
            for (way, (frames, oldest)) in frames.iter_mut().zip(&mut oldest).enumerate() {
                let is_done = |frame: &Frame| frame.came.is_some() || frame.at.elapsed() > ON_ITS_WAY;
                while frames.get(*oldest).is_some_and(is_done) {
                    *oldest += 1;
                }
                let room = WINDOW - (frames.len() - *oldest).min(WINDOW);
                let mut counted = self.sent();
                let sent = if over { 0 } else { send(&mut guests[way], way, frames.len() as u64, room) };
                let now = Instant::now();
                frames.extend((0..sent).map(|_| Frame { at: now, came: None }));
                counted[way] = frames.len() as u64;
                moved |= sent > 0;
            }
            for (guest, receiver) in guests.iter_mut().enumerate() {
                moved |= self.receive(receiver, guest, &mut frames)?;
            }
            if over && (0..2).all(|way| oldest[way] == frames[way].len()) {
                return Ok(frames);
            }
            if !moved {
                std::thread::yield_now();
            }
        }
    }

    /// Takes what came to a guest; whether anything did.
    fn receive(&self, receiver: &mut Guest, guest: usize, frames: &mut Frames) -> Result<bool> {
        let (mut bytes, mut fault) = ([0; 2048], None);
        let count = receiver.rx[0].receive(WINDOW, |received| {
            received.copy_to(&mut bytes);
            let came = self.take(&bytes[..received.length()], guest, frames);
            fault = fault.take().or(came.err());
        });
        receiver.rx[0].ring().kick();
        match fault {
            Some(fault) => Err(fault.context(format!("at guest {guest}"))),
            None => Ok(count > 0),
        }
    }

    /// Notes a frame that came, if it is one of these.
    fn take(&self, got: &[u8], guest: usize, frames: &mut Frames) -> Result<()> {
        let Some((way, number)) = loopback::claims(got) else { return Ok(()) };
        let way = usize::from(way);
        let frame = frames.get_mut(way).and_then(|frames| frames.get_mut(number as usize));
        let frame = frame.with_context(|| format!("frame {number} of way {way} was never sent"))?;
        ensure!(got == made(way, number), "frame {number} of way {way} came as {got:02x?}");
        ensure!(guest != way, "frame {number} of way {way} came back to who sent it");
        ensure!(frame.came.is_none(), "frame {number} of way {way} came to guest {:?}, too", frame.came);
        frame.came = Some(guest);
        self.came[way][guest].fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn sent(&self) -> MutexGuard<'_, [u64; 2]> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many frames of each way were sent by now: those that follow have this number and greater ones.
    fn now(&self) -> [u64; 2] {
        *self.sent()
    }

    /// Waits until some frames of the way that are sent from now on have come to the guest.
    fn comes(&self, way: usize, guest: usize) -> Result<()> {
        let came = || self.came[way][guest].load(Ordering::Relaxed);
        let wanted = came() + SOME;
        wait::until(SOON, &format!("frames of way {way} at guest {guest}"), || Ok((came() >= wanted).then_some(())))
    }

    /// Waits until some frames of each way were sent, wherever they go.
    fn goes_on(&self) -> Result<()> {
        let before = self.now();
        let enough = || self.now().iter().zip(before).all(|(now, before)| *now >= before + SOME);
        wait::until(SOON, "frames that are sent", || Ok(enough().then_some(())))
    }
}

/// Frame `number` of a way.
fn made(way: usize, number: u64) -> Vec<u8> {
    let way = way as u16;
    let mut frame = vec![0; Plan::new(0, WINDOW).length(way, number)];
    loopback::make(&mut frame, way, number);
    frame
}

/// Sends up to so many frames of a way, the first one with this number; how many.
fn send(guest: &mut Guest, way: usize, first: u64, most: usize) -> usize {
    guest.tx[0].reclaim();
    let sent = guest.tx[0].transmit(most, |i, room| {
        let frame = made(way, first + i as u64);
        room.put(0, &frame);
        frame.len()
    });
    guest.tx[0].ring().kick();
    sent
}

/// How many of these frames came nowhere.
fn lost(frames: &[Frame]) -> usize {
    frames.iter().filter(|frame| frame.came.is_none()).count()
}

/// How many came to the guest.
fn came_to(frames: &[Frame], guest: usize) -> usize {
    frames.iter().filter(|frame| frame.came == Some(guest)).count()
}

/// When the last frame was sent that came to the guest, in milliseconds after this.
fn last_to(frames: &[Frame], guest: usize, since: Instant) -> u128 {
    let last = frames.iter().rfind(|frame| frame.came == Some(guest));
    last.map_or(0, |frame| frame.at.saturating_duration_since(since).as_millis())
}

/// Whether all frames that were sent between these times arrived where they belong, but those that rules gave to OVS.
fn crossed_without_ovs(frames: &Frames, from: Mark, to: Mark) -> Result<()> {
    for (way, frames) in frames.iter().enumerate() {
        let without = &frames[from.1[way] as usize..to.1[way] as usize];
        let time = to.0 - from.0;
        // Of a rule that is in use OVS is given a frame now and then, which nobody takes now.
        let given = 2 + (time.as_secs_f64() / TO_OVS.as_secs_f64()) as usize;
        let gone = lost(without);
        ensure!(gone <= given, "way {way}: {gone} of {} frames were lost in {time:?} without OVS", without.len());
        ensure!(came_to(frames, 2) == 0, "way {way}: {} frames came to the third guest", came_to(frames, 2));
    }
    Ok(())
}

impl Scene {
    /// With a third guest, to which nothing is to come by itself: where OpenFlow has no rule, OVS drops.
    fn amid(label: &str) -> Result<Self> {
        let mut scene = Self::with(label, GUESTS as u16, 10_000)?;
        scene.ovs.vsctl(&["set-fail-mode", "br0", "secure"])?;
        scene.flows(&FLOWS)?;
        scene.cross(50)?;
        scene.offloaded(2)?;
        Ok(scene)
    }

    /// The rules that the NIC itself has.
    fn in_nic(&self) -> Result<Vec<Value>> {
        let rules = self.daemon.call("rule.list", json!({ "limit": 100 }))?;
        Ok(rules.as_array().context("rules")?.iter().map(|entry| entry["rule"].clone()).collect())
    }

    /// Whether the NIC has a rule that sends to this VF.
    fn sends_to(&self, vf: usize) -> Result<bool> {
        let port = json!(format!("vf{vf}"));
        let sends =
            |rule: &Value| rule["actions"].as_array().is_some_and(|all| all.iter().any(|one| one["output"] == port));
        Ok(self.in_nic()?.iter().any(sends))
    }

    /// Waits until it has none.
    fn not_to(&self, vf: usize) -> Result<()> {
        let seen = wait::until(SOON, &format!("no rule to VF {vf}"), || Ok((!self.sends_to(vf)?).then_some(())));
        seen.with_context(|| format!("{:#?}", self.in_nic()))
    }

    /// The longest time until a change of OVS's is in the NIC, as documented (`stale_ms`), on a busy machine.
    fn stale(&self) -> Result<u128> {
        let stats = self.daemon.call("flow.stats", json!({}))?;
        Ok(u128::from(stats["stale_ms"].as_u64().context("stale_ms")?) + BUSY.as_millis())
    }

    /// Waits until all that came into the NIC went out of it, or was counted as dropped.
    fn adds_up(&self) -> Result<()> {
        let sums = || -> Result<(u64, u64)> {
            let shown = self.daemon.call("nic.show", json!({ "name": "nic0" }))?;
            let ports = find(&shown, "ports").and_then(Value::as_array).context("ports")?;
            let (mut came, mut went) = (0, 0);
            for (name, count) in ports.iter().filter_map(|port| port["counters"].as_object()).flatten() {
                let count = count.as_u64().context("a counter")?;
                match name.as_str() {
                    "received" | "representor_received" | "copies" | "segments" => came += count,
                    "sent" | "representor_sent" => went += count,
                    name if name.starts_with("drop_") => went += count,
                    _ => {}
                }
            }
            Ok((came, went))
        };
        let seen =
            wait::until(SOON, "counters that add up", || Ok(sums().map(|(came, went)| came == went)?.then_some(())));
        seen.with_context(|| format!("(came, went): {:?}", sums()))
    }
}

#[test]
fn frames_cross_while_open_vswitch_is_restarted() -> Result<()> {
    needs!(Root, Ringspan, Ovs);
    let mut scene = Scene::amid("ovs-amid-restart")?;
    let mut guests = std::mem::take(&mut scene.guests);
    let ((away, back), frames) = Traffic::amid(&mut guests, |traffic| {
        [0, 1].into_iter().try_for_each(|way| traffic.comes(way, 1 - way))?;
        let before: Vec<Value> = scene.offloaded(2)?.iter().map(|flow| flow["ufid"].clone()).collect();
        let away = (Instant::now(), traffic.now());
        scene.ovs.stop_switch();
        // It was seen that nobody answers, and all goes on.
        wait::until(SOON, "word that Open vSwitch is gone", || {
            let stats = scene.daemon.call("flow.stats", json!({}))?;
            Ok(stats["trouble"].is_string().then_some(()))
        })?;
        wait::pause(AWAY)?;
        [0, 1].into_iter().try_for_each(|way| traffic.comes(way, 1 - way))?;
        ensure!(scene.rules()? == 2, "the NIC has {} rules", scene.rules()?);
        let back = (Instant::now(), traffic.now());
        // It comes back without any flow, and has other names for those that are made then.
        scene.ovs.start_switch()?;
        scene.flows(&FLOWS)?;
        wait::until(SOON, "flows of the new Open vSwitch", || {
            let flows = scene.list(json!({ "state": "offloaded" }))?;
            Ok((flows.len() == 2 && flows.iter().all(|flow| !before.contains(&flow["ufid"]))).then_some(()))
        })?;
        [0, 1].into_iter().try_for_each(|way| traffic.comes(way, 1 - way))?;
        Ok((away, back))
    })?;
    crossed_without_ovs(&frames, away, back)?;
    scene.guests = guests;
    scene.cross(1000)?;
    scene.adds_up()
}

/// As `ovs-ctl restart` does it: the switch comes back, has no flows and takes no frames until its tables are restored.
#[test]
fn frames_cross_while_open_vswitch_waits_for_its_tables() -> Result<()> {
    needs!(Root, Ringspan, Ovs);
    let mut scene = Scene::amid("ovs-amid-restore")?;
    let mut guests = std::mem::take(&mut scene.guests);
    let ((waits, restored), frames) = Traffic::amid(&mut guests, |traffic| {
        let both = || [0, 1].into_iter().try_for_each(|way| traffic.comes(way, 1 - way));
        both()?;
        let waits = (Instant::now(), traffic.now());
        scene.ovs.stop_switch();
        scene.ovs.vsctl(&["--no-wait", "set", "Open_vSwitch", ".", "other_config:flow-restore-wait=true"])?;
        scene.ovs.start_switch()?;
        wait::until(SOON, "word that Open vSwitch waits", || {
            let stats = scene.daemon.call("flow.stats", json!({}))?;
            Ok(stats["trouble"].as_str().is_some_and(|trouble| trouble.contains("flow-restore-wait")).then_some(()))
        })?;
        wait::pause(AWAY)?;
        both()?;
        ensure!(scene.rules()? == 2, "the NIC has {} rules", scene.rules()?);
        scene.flows(&FLOWS)?;
        let restored = (Instant::now(), traffic.now());
        scene.ovs.vsctl(&["remove", "Open_vSwitch", ".", "other_config", "flow-restore-wait"])?;
        wait::until(SOON, "that Open vSwitch answers again", || {
            let stats = scene.daemon.call("flow.stats", json!({}))?;
            Ok(stats["trouble"].is_null().then_some(()))
        })?;
        scene.offloaded(2)?;
        both()?;
        Ok((waits, restored))
    })?;
    crossed_without_ovs(&frames, waits, restored)?;
    scene.guests = guests;
    scene.cross(1000)?;
    scene.adds_up()
}

#[test]
fn frames_stop_while_their_port_is_gone_and_follow_openflow() -> Result<()> {
    needs!(Root, Ringspan, Ovs);
    let mut scene = Scene::amid("ovs-amid-port")?;
    let stale = scene.stale()?;
    let mut guests = std::mem::take(&mut scene.guests);
    let (marks, frames) = Traffic::amid(&mut guests, |traffic| {
        let both = || [0, 1].into_iter().try_for_each(|way| traffic.comes(way, 1 - way));
        both()?;
        ensure!(scene.sends_to(0)? && scene.sends_to(1)? && !scene.sends_to(2)?, "{:#?}", scene.in_nic());
        // The time, and which frames come next.
        let mark = || (Instant::now(), traffic.now());
        let removed = mark();
        scene.ovs.vsctl(&["del-port", "br0", "nic0_vf1"])?;
        scene.not_to(1)?;
        scene.not_to(0)?;
        let silent = mark();
        traffic.goes_on()?;
        let put_back = mark();
        scene.join_bridge("nic0_vf1")?;
        scene.flows(&FLOWS)?;
        both()?;
        // To somebody else, and back.
        let turned = mark();
        scene.flows(&["in_port=nic0_vf0,actions=output:nic0_vf2", FLOWS[1]])?;
        traffic.comes(0, 2)?;
        scene.not_to(1)?;
        let elsewhere = mark();
        traffic.goes_on()?;
        let turned_back = mark();
        scene.flows(&FLOWS)?;
        traffic.comes(0, 1)?;
        scene.not_to(2)?;
        let home = mark();
        both()?;
        Ok([removed, silent, put_back, turned, elsewhere, turned_back, home])
    })?;
    let [removed, silent, put_back, turned, elsewhere, turned_back, home] = marks;
    let part = |way: usize, from: Mark, to: Mark| &frames[way][from.1[way] as usize..to.1[way] as usize];
    for way in 0..2 {
        let to = 1 - way;
        let late = last_to(part(way, removed, put_back), to, removed.0);
        ensure!(late <= stale, "way {way}: frames stopped after {late} ms, not {stale}");
        let came = came_to(part(way, silent, put_back), to);
        ensure!(came == 0, "way {way}: {came} frames came where OVS has no port");
    }
    let late = last_to(part(0, turned, turned_back), 1, turned.0);
    ensure!(late <= stale, "frames still came to the second guest after {late} ms, not {stale}");
    let (old, new) = (came_to(part(0, elsewhere, turned_back), 1), came_to(&frames[0][home.1[0] as usize..], 2));
    ensure!(
        (old, new) == (0, 0),
        "{old} frames came to the second guest, and {new} to the third one, which OVS wanted elsewhere"
    );
    let early = came_to(&frames[0][..turned.1[0] as usize], 2);
    let back = came_to(&frames[1], 2);
    ensure!((early, back) == (0, 0), "{early} and {back} frames came to the third guest, to which none was sent");
    scene.guests = guests;
    scene.cross(1000)?;
    scene.adds_up()
}
