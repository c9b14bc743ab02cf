//! What fails at each step of a migration, for a guest in Rust whose front-end says what QEMU says: no ring is ever served by two back-ends, no
//! frame is changed, doubled or late, nothing keeps logging, and each port works again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringspan_protocol::{PortPhase, PortSpec, Role};
use ringspan_testkit::guest::{self, Guest, Kind, Log, Numbered, Options, Region, StoppedOnPurpose, feature};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::{needs, over_both, paths, wait};

over_both!(
    a_guest_goes_on_at_the_source_whenever_the_target_fails,
    a_guest_goes_on_where_the_front_end_listens_whenever_the_target_fails,
    a_guest_gets_away_whenever_the_sources_lane_was_killed,
    nothing_is_logged_for_a_front_end_that_was_killed_amid_a_migration,
);

const SOON: Duration = Duration::from_secs(60);
/// Front-ends give their log this name.
const LOG: &str = "ringspan-test-log";

/// A lane with a port that returns what its guest sends: one of the two hosts.
struct Place {
    lane: Lane,
    spec: PortSpec,
    _folder: tempfile::TempDir,
}

impl Place {
    fn new(name: &str, role: Role) -> Result<Self> {
        let folder = paths::scratch()?;
        let mut lane = Lane::start(lane::Options::new(name), folder.path())?;
        let spec = PortSpec { role, ..lane.spec("vm", "vdev:net_ring0", 1) };
        lane.add(&spec)?;
        Ok(Self { lane, spec, _folder: folder })
    }

    /// A guest that begins here.
    fn guest(&self, kind: Kind) -> Result<Guest> {
        let options = Options::new(&self.spec.socket).over(kind);
        let protocol_features = options.protocol_features | feature::PROTOCOL_LOG_SHMFD;
        let role = if self.spec.role == Role::Server { guest::Role::Connect } else { guest::Role::Listen };
        Guest::start(Options { protocol_features, role, ..options })
    }

    /// SIGKILL, and another lane in its place.
    fn die(&mut self) -> Result<()> {
        self.lane.kill()?;
        self.rise()
    }

    fn rise(&mut self) -> Result<()> {
        self.lane.restart()?;
        self.lane.add(&self.spec).map(drop)
    }

    /// Waits until nobody is here any more: the port takes the next guest, logs nothing, and has let go of the log.
    fn wait_left(&mut self) -> Result<()> {
        let phase = if self.spec.role == Role::Server { PortPhase::Listening } else { PortPhase::Connecting };
        self.lane.wait_port("vm", SOON, |status| status.phase == phase && !status.migration.logging)?;
        self.wait_log_gone()
    }

    /// Waits until the lane has no front-end's log mapped.
    fn wait_log_gone(&self) -> Result<()> {
        let maps = format!("/proc/{}/maps", self.lane.pid());
        wait::until(SOON, "a lane without a log", || Ok((!std::fs::read_to_string(&maps)?.contains(LOG)).then_some(())))
    }
}

/// A copy of all of a guest's memory.
fn copy(guest: &Guest) -> Vec<(Region, Vec<u8>)> {
    let of = |region: &Region| {
        let mut bytes = vec![0; region.size as usize];
        // SAFETY: the region is mapped as long as the guest lives, at the address that it tells its back-ends.
        unsafe { std::ptr::copy_nonoverlapping(region.user as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        (*region, bytes)
    };
    guest.memory().regions().iter().map(of).collect()
}

/// Makes it the guest's memory again: that of the source, which no target ever had.
fn put_back(memory: &[(Region, Vec<u8>)]) {
    for (region, bytes) in memory {
        // SAFETY: as above; nobody else writes there, as no back-end has the rings.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), region.user as *mut u8, bytes.len()) };
    }
}

fn a_guest_goes_on_at_the_source_whenever_the_target_fails(kind: Kind) -> Result<()> {
    the_target_fails(kind, Role::Server)
}

fn a_guest_goes_on_where_the_front_end_listens_whenever_the_target_fails(kind: Kind) -> Result<()> {
    the_target_fails(kind, Role::Client)
}

/// The target's front-end, or its lane, is killed after each of the messages that bring the guest's rings up there.
fn the_target_fails(kind: Kind, role: Role) -> Result<()> {
    needs!(Root, Lane);
    let (mut source, mut target) = (Place::new("source", role)?, Place::new("target", role)?);
    let mut guest = source.guest(kind)?;
    let mut numbered = Numbered::new(kind);
    numbered.pass(&mut guest, 1000)?;
    for messages in 0.. {
        Log::start(&mut guest)?;
        numbered.pass(&mut guest, 50)?;
        numbered.settle(&mut guest)?;
        guest.stop()?;
        // There is work for whoever has the ring.
        numbered.send(&mut guest, 20);
        let (memory, here) = (copy(&guest), guest.leave()?);
        match guest.arrive(&target.spec.socket, Some(messages)) {
            Ok(()) => {
                ensure!(messages > 20, "rings are up after {messages} messages");
                // All of them were said: the guest has gone for good, and the source's front-end ends.
                drop(here);
                break;
            }
            Err(error) if error.is::<StoppedOnPurpose>() => {}
            Err(error) => return Err(error.context(format!("after {messages} messages"))),
        }
        if messages % 5 == 4 {
            target.lane.kill()?;
            guest.vanish();
            target.rise()?;
        }
        guest.vanish();
        target.wait_left().with_context(|| format!("the target, left after {messages} messages"))?;
        put_back(&memory);
        let _log = guest.come_back(here).with_context(|| format!("back after {messages} messages"))?;
        numbered.pass(&mut guest, 100).with_context(|| format!("the target failed after {messages} messages"))?;
        Log::stop(&mut guest)?;
        source.lane.wait_port("vm", SOON, |status| !status.migration.logging)?;
        source.wait_log_gone()?;
    }
    source.wait_left()?;
    numbered.pass(&mut guest, 500)?;
    // And what can happen to any guest happens to one that has just arrived.
    target.die()?;
    guest.reconnect()?;
    numbered.pass(&mut guest, 500)
}

/// How far a migration has come when the source's lane is killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    LogGiven,
    Logging,
    UnderTraffic,
    OneRingStopped,
    RingsStopped,
    Arrived,
}

fn a_guest_gets_away_whenever_the_sources_lane_was_killed(kind: Kind) -> Result<()> {
    use Step::{Arrived, LogGiven, Logging, OneRingStopped, RingsStopped, UnderTraffic};
    needs!(Root, Lane);
    let (mut source, mut target) = (Place::new("from", Role::Server)?, Place::new("to", Role::Server)?);
    let mut guest = source.guest(kind)?;
    let mut numbered = Numbered::new(kind);
    numbered.pass(&mut guest, 1000)?;
    for step in [LogGiven, Logging, UnderTraffic, OneRingStopped, RingsStopped, Arrived] {
        let mut log = Some(Log::start(&mut guest)?);
        numbered.pass(&mut guest, 50)?;
        match step {
            // Another one, as for more memory.
            LogGiven => log = Some(Log::give(&mut guest)?),
            Logging => {}
            UnderTraffic => drop(numbered.send(&mut guest, 64)),
            OneRingStopped => drop(guest.stop_ring(0)?),
            RingsStopped | Arrived => {
                numbered.settle(&mut guest)?;
                guest.stop()?;
            }
        }
        if matches!(step, RingsStopped | Arrived) {
            // The lane is of no use to this guest any more.
            let here = guest.leave()?;
            if step == RingsStopped {
                source.lane.kill()?;
                drop(here);
                guest.arrive(&target.spec.socket, None)?;
            } else {
                guest.arrive(&target.spec.socket, None)?;
                source.lane.kill()?;
            }
        } else {
            source.lane.kill()?;
            numbered.receive(&mut guest)?;
            source.rise()?;
            drop(log.replace(guest.reconnect_logged().with_context(|| format!("{step:?}"))?));
            source.lane.wait_port("vm", SOON, |status| status.migration.logging)?;
            numbered.pass(&mut guest, 200).with_context(|| format!("{step:?}: at the source"))?;
            let mut marks = 0;
            log.iter().for_each(|log| log.take(|_| marks += 1));
            ensure!(marks > 0, "{step:?}: the next lane logs nothing");
            numbered.settle(&mut guest)?;
            guest.stop()?;
            guest.arrive(&target.spec.socket, None)?;
        }
        numbered.pass(&mut guest, 500).with_context(|| format!("{step:?}: at the target"))?;
        if matches!(step, RingsStopped | Arrived) {
            source.rise()?;
        }
        source.wait_left()?;
        numbered.settle(&mut guest)?;
        guest.stop()?;
        guest.arrive(&source.spec.socket, None)?;
        target.wait_left()?;
        numbered.pass(&mut guest, 200).with_context(|| format!("{step:?}: at the source again"))?;
    }
    Ok(())
}

fn nothing_is_logged_for_a_front_end_that_was_killed_amid_a_migration(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let mut place = Place::new("killed", Role::Server)?;
    for step in 0..5 {
        let mut guest = place.guest(kind)?;
        let mut numbered = Numbered::new(kind);
        numbered.pass(&mut guest, 200)?;
        let log = if step == 0 { Log::give(&mut guest)? } else { Log::start(&mut guest)? };
        match step {
            2 => drop(numbered.send(&mut guest, 64)),
            3 => drop(guest.stop_ring(0)?),
            4 => drop(guest.stop()?),
            _ => {}
        }
        guest.disconnect();
        place.wait_left().with_context(|| format!("step {step}"))?;
        log.take(drop);
        let memory = copy(&guest);
        // The next one is served, and nothing of that is told to the one before.
        let mut next = place.guest(kind)?;
        Numbered::new(kind).pass(&mut next, 500).with_context(|| format!("after step {step}"))?;
        let mut marks = 0;
        log.take(|_| marks += 1);
        ensure!(marks == 0, "step {step}: {marks} pages were logged for nobody");
        ensure!(copy(&guest) == memory, "step {step}: the memory of a guest that is gone was written to");
        next.disconnect();
        place.wait_left()?;
    }
    Ok(())
}
