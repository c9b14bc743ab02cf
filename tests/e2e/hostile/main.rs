//! Guests and front-ends that mean harm, or are broken: each stops its own port and nothing else, the lane says what was done,
//! and the port works again for the next one.
//!
//! Every test runs beside a neighbour: another guest on the same lane and the same worker, which checks each byte of its
//! own traffic all the while.

mod frontend;
mod packed;
mod ring;
mod split;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringspan_protocol::{LaneEventKind, PortPhase};
use ringspan_testkit::guest::loopback::{self, Plan};
use ringspan_testkit::guest::{Guest, Kind, Options, Traffic};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::paths;

const SOON: Duration = Duration::from_secs(10);

/// An address that no guest of ours has memory at.
const NOWHERE: u64 = 1 << 40;

/// What is done to a running guest's rings, and words that the lane must say about it.
struct Act {
    name: &'static str,
    deed: fn(&mut Guest) -> Result<()>,
    says: &'static str,
}

/// A good buffer of 4096 bytes.
fn good(guest: &Guest) -> Result<u64> {
    Ok(guest.memory().allocate(4096, 16)?.guest)
}

/// Lets as many frames come to the guest as it has buffers: what the lane has read ahead of its rings is used up by them.
fn frames_come(guest: &mut Guest) {
    guest.tx[0].transmit(usize::MAX, |_, room| {
        room.put(0, &[0x55; 60]);
        60
    });
}

/// splitmix64, for rings full of nonsense.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// A lane with a victim's port, and a neighbour that is busy on another.
struct Scene {
    lane: Lane,
    neighbour: Option<Traffic>,
    victim: Options,
    _folder: tempfile::TempDir,
}

impl Scene {
    fn new(name: &str, kind: Kind) -> Result<Self> {
        let folder = paths::scratch()?;
        let mut lane = Lane::start(lane::Options::new(name), folder.path())?;
        let socket = lane.add_port("neighbour", "vdev:net_ring0", 1)?;
        let neighbour = Traffic::start(vec![Guest::start(Options::new(socket).over(kind))?], Plan::new(0, 64));
        neighbour.wait_more(1000, SOON)?;
        let victim = Options::new(lane.add_port("victim", "vdev:net_ring1", 1)?).over(kind);
        Ok(Self { lane, neighbour: Some(neighbour), victim, _folder: folder })
    }

    /// The victim's port passes frames of this guest.
    fn passes(&mut self, guest: &mut Guest) -> Result<()> {
        let passed = loopback::run(guest, Plan::new(300, 64)).map(drop);
        passed.with_context(|| format!("{:?}\nlog:\n{}", self.lane.port("victim"), self.lane.log()))
    }

    /// A new guest comes to the victim's port, and all is well.
    fn recovers(&mut self) -> Result<()> {
        let mut guest = Guest::start(self.victim.clone()).context("a new guest at the victim's port")?;
        self.passes(&mut guest)
    }

    /// The lane says that the victim broke its ring, and how; the port shows it.
    fn broken(&mut self) -> Result<String> {
        let event = self.lane.wait_event("victim", SOON, |kind| matches!(kind, LaneEventKind::RingBroken { .. }))?;
        let LaneEventKind::RingBroken { reason, .. } = event else { unreachable!("only that was waited for") };
        // Both rings may be broken by one deed, with an event each: the event may be the last deed's second.
        self.lane.wait_port("victim", SOON, |status| status.phase == PortPhase::Broken).context(reason.clone())?;
        Ok(reason)
    }

    /// Commits these on a guest that is reset after each: the lane stops the port and says why, and all is well afterwards.
    fn commit(&mut self, acts: &[Act]) -> Result<()> {
        let mut guest = Guest::start(self.victim.clone())?;
        for act in acts {
            let mut one = || -> Result<()> {
                self.passes(&mut guest).context("before")?;
                (act.deed)(&mut guest)?;
                let reason = self.broken()?;
                ensure!(reason.contains(act.says), "the lane says {reason:?}, nothing of {:?}", act.says);
                guest.reset().context("resetting the device")?;
                self.passes(&mut guest).context("after the reset")
            };
            one().with_context(|| act.name)?;
        }
        // A port that was not reset recovers when the next guest comes.
        (acts[0].deed)(&mut guest)?;
        self.broken()?;
        drop(guest);
        self.recovers()
    }

    /// Nothing of the neighbour's was lost, doubled or changed, and the lane counted it all.
    fn unharmed(mut self) -> Result<()> {
        let neighbour = self.neighbour.take().context("checked twice")?;
        neighbour.wait_more(1000, SOON).with_context(|| format!("the neighbour; log:\n{}", self.lane.log()))?;
        let passed = neighbour.stop()?[0];
        self.lane.wait_totals("neighbour", |from, to| {
            let none = from.drops.total() == 0 && to.drops.total() == 0;
            none && (from.received, from.sent, to.received, to.sent)
                == (passed.frames, passed.frames, passed.frames, passed.frames)
        })?;
        ensure!(self.lane.is_alive(), "the lane died:\n{}", self.lane.log());
        Ok(())
    }
}
