//! A guest in Rust that is migrated, over the socket: it compares every page of its memory with what a lane has logged.
//!
//! What changed is logged, what is logged changed: rings of both kinds, buffers that are merged and that are not, frames that are
//! copied and that are lent, several queue pairs, memory that is added meanwhile, a lane that is killed in its midst. After LOG_ALL was
//! taken away nothing is logged.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringspan_protocol::{PortSpec, ZeroCopy};
use ringspan_testkit::guest::log::PAGE;
use ringspan_testkit::guest::{Guest, Kind, Log, Options, Region, feature};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::{needs, over_both, paths, process, wait};

over_both!(
    each_page_that_a_lane_writes_is_logged_and_no_other,
    memory_that_is_added_while_pages_are_logged_is_logged,
    what_a_lane_wrote_that_was_killed_is_logged_by_it_or_by_the_next,
);

const SOON: Duration = Duration::from_secs(60);
const PAIRS: u16 = 4;
/// Frames that each pair is sent.
const FRAMES: usize = 20;

/// What a lane logs of a guest's memory, and what that was when it was looked at last.
struct Watched {
    /// The front-end's log, and before it those that lanes had which are dead.
    logs: Vec<Log>,
    before: Vec<(u64, Vec<u8>)>,
}

impl Watched {
    fn new(guest: &mut Guest) -> Result<Self> {
        Ok(Self { before: memory(guest)?, logs: vec![Log::start(guest)?] })
    }

    /// What comes is compared with what is there now. The marks go first: one that comes in between is one too many, and not one too few.
    fn look(&mut self, guest: &Guest) -> Result<()> {
        self.take();
        self.before = memory(guest)?;
        Ok(())
    }

    /// Takes all marks: the pages.
    fn take(&self) -> BTreeSet<u64> {
        let mut pages = BTreeSet::new();
        for log in &self.logs {
            log.take(|page| {
                pages.insert(page);
            });
        }
        pages
    }

    /// What changed since the last look is logged, and of what did not, `more` pages at most. Returns what changed.
    fn compare(&mut self, guest: &Guest, more: usize) -> Result<BTreeSet<u64>> {
        let (changed, logged) = self.sets(guest)?;
        let missing: Vec<_> = changed.difference(&logged).collect();
        ensure!(missing.is_empty(), "pages {missing:x?} were written and not logged");
        let idle: Vec<_> = logged.difference(&changed).collect();
        ensure!(idle.len() <= more, "pages {idle:x?} were logged and not written");
        Ok(changed)
    }

    /// The pages that changed since the last look, and those that are logged.
    fn sets(&mut self, guest: &Guest) -> Result<(BTreeSet<u64>, BTreeSet<u64>)> {
        let (now, logged) = (memory(guest)?, self.take());
        let mut changed = BTreeSet::new();
        for ((start, new), (_, old)) in now.iter().zip(&self.before) {
            let pages = new.chunks(PAGE as usize).zip(old.chunks(PAGE as usize)).enumerate();
            changed.extend(pages.filter(|(_, (new, old))| new != old).map(|(at, _)| start / PAGE + at as u64));
        }
        self.before = now;
        Ok((changed, logged))
    }
}

/// A copy of all of a guest's memory, region by region.
fn memory(guest: &Guest) -> Result<Vec<(u64, Vec<u8>)>> {
    let of = |region: &Region| {
        let size = region.size as usize;
        let start = guest.memory().pointer(region.guest, size).context("a region that is not mapped")?;
        let mut bytes = vec![0; size];
        // SAFETY: the region is mapped as long as the guest lives; what is written meanwhile is read as it comes.
        unsafe { std::ptr::copy_nonoverlapping(start.as_ptr(), bytes.as_mut_ptr(), size) };
        Ok((region.guest, bytes))
    };
    guest.memory().regions().iter().map(of).collect()
}

/// Two ports with a cable between them, and a guest on each.
struct Cable {
    lane: Lane,
    specs: Vec<PortSpec>,
    sender: Guest,
    receiver: Guest,
    round: u64,
    _folder: tempfile::TempDir,
}

impl Cable {
    fn new(kind: Kind, mergeable: bool, zero_copy: ZeroCopy, regions: usize) -> Result<Self> {
        let folder = paths::scratch()?;
        let mut lane = Lane::start(lane::Options::new("pages"), folder.path())?;
        let (mut guests, mut specs) = (Vec::new(), Vec::new());
        let room = if mergeable { 600 } else { 1536 };
        for (name, device, rx_room) in [("sender", "patch:cable/a", 1536), ("receiver", "patch:cable/b", room)] {
            let spec = PortSpec { zero_copy, zero_copy_from: Some(64), ..lane.spec(name, device, PAIRS) };
            lane.add(&spec)?;
            let options = Options { rx_room, regions, region_gap: 1 << 21, ..Options::new(&spec.socket) };
            let options = options.pairs(PAIRS).over(kind);
            let options = if mergeable { options } else { options.without(feature::MRG_RXBUF) };
            let protocol_features =
                options.protocol_features | feature::PROTOCOL_LOG_SHMFD | feature::PROTOCOL_CONFIGURE_MEM_SLOTS;
            guests.push(Guest::start(Options { protocol_features, ..options })?);
            specs.push(spec);
        }
        let (receiver, sender) = (guests.pop().context("no guest")?, guests.pop().context("no guest")?);
        Ok(Self { lane, specs, sender, receiver, round: 0, _folder: folder })
    }

    /// The sender fills its rings of some pairs, which the lane does not look at; those of the receiver run.
    fn fill(&mut self, pairs: Range<u16>) -> Result<()> {
        self.round += 1;
        for pair in pairs {
            self.sender.enable(pair, false)?;
            self.receiver.enable(pair, true)?;
            // No byte of it is what was there before, whichever frame was.
            let byte = 0x80 | (0x10 * pair as u8) | self.round as u8;
            let sent = self.sender.tx[usize::from(pair)].transmit(FRAMES, |i, room| {
                let length = 60 + i * 1400 / FRAMES;
                room.put(0, &vec![byte; length]);
                length
            });
            ensure!(sent == FRAMES, "room for {sent} frames");
        }
        Ok(())
    }

    /// The lane carries what is there to the receiver's memory, who does not look at it. Then it lets go of the rings, with all that it had to
    /// write to them, or was lent.
    fn carry(&mut self, pairs: Range<u16>) -> Result<()> {
        let (_, before) = self.lane.totals("receiver")?;
        for pair in pairs.clone() {
            self.sender.enable(pair, true)?;
        }
        let count = FRAMES as u64 * u64::from(pairs.end - pairs.start);
        self.lane.wait_totals("receiver", |_, to| to.sent == before.sent + count)?;
        for pair in pairs {
            self.sender.enable(pair, false)?;
            self.receiver.enable(pair, false)?;
        }
        Ok(())
    }

    /// The receiver takes what came.
    fn take(&mut self) -> Result<()> {
        let taken: usize = self.receiver.rx.iter_mut().map(|rx| rx.receive(256, |_| ())).sum();
        ensure!(taken == FRAMES * usize::from(PAIRS), "{taken} frames were received");
        Ok(())
    }
}

fn each_page_that_a_lane_writes_is_logged_and_no_other(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    for mergeable in [true, false] {
        for zero_copy in [ZeroCopy::Off, ZeroCopy::Always] {
            check(kind, mergeable, zero_copy)
                .with_context(|| format!("mergeable {mergeable}, zero copy {zero_copy:?}"))?;
        }
    }
    Ok(())
}

fn check(kind: Kind, mergeable: bool, zero_copy: ZeroCopy) -> Result<()> {
    let mut cable = Cable::new(kind, mergeable, zero_copy, 4)?;
    let mut log = Watched::new(&mut cable.receiver)?;
    cable.lane.wait_port("receiver", SOON, |status| status.migration.logging)?;
    for round in 0..3 {
        cable.fill(0..PAIRS)?;
        log.look(&cable.receiver)?;
        cable.carry(0..PAIRS)?;
        // Each ring may have a page in which the lane wrote what was there.
        let changed = log.compare(&cable.receiver, 2 * usize::from(PAIRS)).with_context(|| format!("round {round}"))?;
        ensure!(changed.len() > 20, "only pages {changed:x?} changed");
        cable.take()?;
    }

    // The guest that sends: no more than its rings, which are logged whole when they start.
    let mut sent = Watched::new(&mut cable.sender)?;
    cable.fill(0..PAIRS)?;
    sent.look(&cable.sender)?;
    cable.lane.wait_port("sender", SOON, |status| status.migration.logging)?;
    cable.carry(0..PAIRS)?;
    let changed = sent.compare(&cable.sender, 4 * usize::from(PAIRS)).context("the sender")?;
    ensure!(!changed.is_empty() && changed.len() <= 4 * usize::from(PAIRS), "pages {changed:x?} of a sender changed");

    // Over: nothing is logged any more, and both go on.
    for guest in [&mut cable.receiver, &mut cable.sender] {
        Log::stop(guest)?;
    }
    for port in ["receiver", "sender"] {
        cable.lane.wait_port(port, SOON, |status| !status.migration.logging)?;
    }
    cable.take()?;
    log.take();
    sent.take();
    cable.fill(0..PAIRS)?;
    cable.carry(0..PAIRS)?;
    let left = [log.take(), sent.take()];
    ensure!(left.iter().all(BTreeSet::is_empty), "pages {left:x?} were logged when it was over");
    cable.take()
}

fn memory_that_is_added_while_pages_are_logged_is_logged(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    let mut cable = Cable::new(kind, false, ZeroCopy::Off, 64)?;
    let last = PAIRS - 1;
    // All that lies between the rings of the last pair is buffers to receive with. A part of it is taken out while the pair is not used.
    let [from, to] = {
        let (rx, tx) = (&mut cable.receiver.rx[usize::from(last)], &mut cable.receiver.tx[usize::from(last)]);
        [rx.ring().addresses()[2] + PAGE, tx.ring().addresses()[0]]
    };
    let memory = Arc::clone(cable.receiver.memory());
    let within = |region: &&Region| region.guest > from && region.guest + region.size < to;
    let region = *memory.regions().iter().find(within).context("no region between the rings")?;
    cable.receiver.enable(last, false)?;
    cable.receiver.frontend()?.rem_mem_reg(&region)?;
    let mut log = Watched::new(&mut cable.receiver)?;
    cable.lane.wait_port("receiver", SOON, |status| status.migration.logging)?;
    cable.receiver.frontend()?.add_mem_reg(&memory, &region)?;
    cable.receiver.enable(last, true)?;
    cable.fill(last..PAIRS)?;
    log.look(&cable.receiver)?;
    cable.carry(last..PAIRS)?;
    let changed = log.compare(&cable.receiver, 2 * usize::from(PAIRS))?;
    let pages = region.guest / PAGE..(region.guest + region.size) / PAGE;
    ensure!(changed.iter().any(|page| pages.contains(page)), "of the region nothing changed, but {changed:x?}");
    Ok(())
}

/// Pages of a ring's own parts.
fn ring_pages(guest: &mut Guest) -> BTreeSet<u64> {
    let mut pages = BTreeSet::new();
    for ring in guest.rx.iter_mut().map(|rx| rx.ring()) {
        let size = u64::from(ring.size());
        // Virtio 1.2, sections 2.7 and 2.8.
        let lengths =
            if ring.kind() == Kind::Split { [16 * size, 6 + 2 * size, 6 + 8 * size] } else { [16 * size, 4, 4] };
        for (start, length) in ring.addresses().into_iter().zip(lengths) {
            pages.extend(start / PAGE..=(start + length - 1) / PAGE);
        }
    }
    pages
}

fn what_a_lane_wrote_that_was_killed_is_logged_by_it_or_by_the_next(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    const EACH: usize = 200;
    let mut cable = Cable::new(kind, false, ZeroCopy::Off, 1)?;
    let mut log = Watched::new(&mut cable.receiver)?;
    for life in 0..4_u64 {
        for pair in 0..PAIRS {
            cable.sender.enable(pair, false)?;
            let byte = 0x10 * pair as u8 + life as u8 + 1;
            let sent = cable.sender.tx[usize::from(pair)].transmit(EACH, |i, room| {
                let length = 60 + i * 1400 / EACH;
                room.put(0, &vec![byte; length]);
                length
            });
            ensure!(sent == EACH, "room for {sent} frames");
        }
        log.look(&cable.receiver)?;
        let lane = cable.lane.pid();
        let killer = std::thread::spawn(move || {
            // Any moment will do, and another one each time.
            std::thread::sleep(Duration::from_micros(100 + 311 * life));
            process::kill_hard(lane)
        });
        // It dies at one of them, or later.
        let _ = (0..PAIRS).try_for_each(|pair| cable.sender.enable(pair, true));
        let _ = killer.join().map_err(|_| anyhow::anyhow!("the killer panicked"))?;
        cable.lane.kill()?;
        cable.lane.restart()?;
        for spec in &cable.specs {
            cable.lane.add(spec)?;
        }
        log.logs.push(cable.receiver.reconnect_logged()?);
        cable.sender.reconnect()?;
        wait::until(SOON, "all that was sent", || {
            Ok(cable.sender.tx.iter_mut().all(|tx| usize::from(tx.ring().pending()) == EACH).then_some(()))
        })?;
        for pair in 0..PAIRS {
            cable.sender.enable(pair, false)?;
            cable.receiver.enable(pair, false)?;
        }
        let (changed, logged) = log.sets(&cable.receiver)?;
        let missing: BTreeSet<u64> = changed.difference(&logged).copied().collect();
        let rings = ring_pages(&mut cable.receiver);
        ensure!(
            missing.is_disjoint(&rings),
            "life {life}: pages of rings, of {missing:x?}, were written and not logged"
        );
        // A buffer that the guest was not given may have been written to by who died: it is not read before it is written again.
        let (mut given, mut frames) = (BTreeSet::new(), 0);
        let region = cable.receiver.memory().regions()[0];
        for rx in &mut cable.receiver.rx {
            rx.hold_back(true);
            frames += rx.receive(256, |frame| {
                for (start, length) in frame.pieces() {
                    let at = region.guest + (start.as_ptr() as u64 - region.user);
                    given.extend(at / PAGE..=(at + *length as u64 - 1) / PAGE);
                }
            });
            rx.hold_back(false);
            rx.post(usize::MAX);
        }
        ensure!(
            missing.is_disjoint(&given),
            "life {life}: pages of {missing:x?} that the guest was given are not logged"
        );
        ensure!(frames > 0, "life {life}: no frame came");
        for pair in 0..PAIRS {
            cable.receiver.enable(pair, true)?;
            cable.sender.tx[usize::from(pair)].reclaim();
        }
    }
    Ok(())
}
