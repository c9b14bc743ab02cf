//! What is checked in the emulated host.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_protocol::{LaneEventKind, PortPhase};
use ringspan_testkit::guest::crossing::{self, End};
use ringspan_testkit::guest::loopback::{Lengths, Plan};
use ringspan_testkit::guest::{Guest, Kind, Layout, Memory, Options, Region, feature};
use ringspan_testkit::wait;

use super::flow::{Flow, all_back};
use super::inside::{FROM, Host, MTU};
use super::registers::Registers;
use super::{offload, spread};

/// A check: what it promises, and how that is seen.
pub type Check = (&'static str, fn(&mut Host) -> Result<()>);

/// Of a physical function.
pub const FUNCTION: &[Check] = &[
    ("a NIC of the kernel's is refused with the command that gives it to vfio-pci", bind),
    (
        "flows that come in are spread over two queue pairs (RSS), each stays on one and in order",
        spread::over_two_pairs,
    ),
];
/// Of a virtual function.
pub const VIRTUAL_FUNCTION: &[Check] = &[("a virtual function is made and taken", make_virtual_function)];
/// Of either, with a port `vm` on it, which each leaves without a guest.
pub const BOTH: &[Check] = &[
    ("frames cross byte for byte, large ones without being copied", cross),
    ("frames cross from ordinary pages", cross_from_small_pages),
    ("checksums and segments that are left to the NIC are right on the wire", offload::left_to_the_nic),
    ("guest memory is given anew while frames are on their way", give_memory_anew),
    ("memory comes region by region, and more comes and goes while frames are on their way", change_regions),
    ("with more regions than DPDK knows, frames are copied, and the reason is said", too_many_regions),
    ("the NIC stops sending: buffers stay with it until it goes on", hold_and_let_go),
    ("the NIC stops sending, and guest memory is given anew", give_memory_anew_while_frozen),
    ("the NIC stops sending, and a region with frames that it has is taken away", take_region_away_while_frozen),
    ("the NIC stops sending, and the guest resets its driver", reset_while_frozen),
    ("the NIC stops sending, and the front-end is killed", kill_guest_while_frozen),
    ("the NIC stops sending, and the port is removed", remove_port_while_frozen),
    ("the NIC stops sending, and the lane is killed", kill_lane_while_frozen),
    ("the NIC is pulled out of the machine under traffic", pull_the_nic),
];

/// Whether the name of one contains this.
pub fn is_wanted(only: &str) -> bool {
    [FUNCTION, VIRTUAL_FUNCTION, BOTH].iter().copied().flatten().any(|(name, _)| name.contains(only))
}

/// Frames that a frozen NIC holds.
const HELD: usize = 30;
/// Longest frame.
const JUMBO: usize = MTU as usize + 14;

/// A guest whose buffers lie in one hugepage each. QEMU's igb drops a frame that crosses from one page into another which is no neighbour
/// in the emulated host's memory (hw/net/net_tx_pkt.c, `net_tx_pkt_add_raw_fragment_pci`).
pub(super) fn options(host: &Host, kind: Kind) -> Options {
    let socket = host.spec("vm", &host.nic).socket;
    let timeout = Duration::from_secs(60);
    let memory = Options { huge_pages: true, regions: 3, region_gap: 2 << 20, ..Options::new(socket) };
    Options { tx_room: JUMBO, rx_room: JUMBO, timeout, ..memory.over(kind) }
}

fn bind(host: &mut Host) -> Result<()> {
    wait_far_link(host)?;
    let spec = host.spec("vm", &host.nic);
    let refused = host.lane.add(&spec).err().context("a NIC that the kernel drives was taken")?.to_string();
    let command = refused.split('`').nth(1).with_context(|| format!("no command in: {refused}"))?;
    host.say(&format!("    {command}"));
    wait::run(Command::new("sh").args(["-ec", command]), Duration::from_secs(60))?.success(command)?;
    take(host)
}

fn wait_far_link(host: &Host) -> Result<()> {
    wait::until(Duration::from_secs(30), "the far end's link", || {
        Ok(host.net.ip(&["link", "show", "up"])?.contains("LOWER_UP").then_some(()))
    })
}

fn cross(host: &mut Host) -> Result<()> {
    let (mut sent, mut large) = host.sent_so_far()?;
    for kind in [Kind::Split, Kind::Packed] {
        for (regions, ring_size) in [(3, 256), (1, 64)] {
            let mut guest = Guest::start(Options { regions, ring_size, ..options(host, kind) })?;
            guest.tx[0].scribble();
            let window = 100.min(usize::from(ring_size));
            let plan = Plan { lengths: Lengths::Between(60, JUMBO), burst: 32, ..Plan::new(500, window) };
            crossing::run(&mut End::Guest(&mut guest), &mut End::Far(&host.far), host.ways(), plan)
                .with_context(|| format!("{kind:?}, {regions} regions"))?;
            all_back(&mut guest)?;
            sent += plan.frames;
            large += (0..plan.frames).filter(|&number| plan.length(0, number) >= FROM.into()).count() as u64;
            let (from, _) = host.lane.wait_totals("vm", |from, _| from.sent == sent)?;
            ensure!(from.zero_copied == large, "{large} frames are large: {from:?}");
            host.gone(guest)?;
        }
    }
    host.say(&format!("    {large} of {sent} frames were not copied"));
    Ok(())
}

/// Ordinary pages are no neighbours in the machine's memory, but behind an IOMMU they are in the device's.
fn cross_from_small_pages(host: &mut Host) -> Result<()> {
    for kind in [Kind::Split, Kind::Packed] {
        let memory = Options { huge_pages: false, regions: 1, ..options(host, kind) };
        let mut guest = Guest::start(Options { tx_room: 1514, rx_room: 1536, ..memory })?;
        guest.tx[0].scribble();
        let before = host.sent_so_far()?.1;
        let mut flow = Flow::new(1514);
        while flow.sent() < 500 {
            flow.send(&mut guest, 20);
            all_back(&mut guest)?;
            flow.take(&host.far)?;
        }
        flow.settle(&host.far)?;
        ensure!(host.sent_so_far()?.1 - before == flow.sent(), "frames were copied");
        ensure!(flow.arrived() > flow.sent() / 2, "{} of {} frames arrived", flow.arrived(), flow.sent());
        let lost = flow.sent() - flow.arrived();
        host.say(&format!("    {kind:?}: {} frames arrived, {lost} were dropped by QEMU", flow.arrived()));
        host.gone(guest)?;
    }
    Ok(())
}

fn give_memory_anew(host: &mut Host) -> Result<()> {
    for kind in [Kind::Split, Kind::Packed] {
        let mut guest = Guest::start(options(host, kind))?;
        guest.tx[0].scribble();
        let mut flow = Flow::new(JUMBO);
        for _ in 0..20 {
            flow.send(&mut guest, 40);
            let memory = guest.memory().clone();
            guest.frontend()?.set_mem_table(&memory, memory.regions())?;
            flow.take_all(&host.far)?;
            all_back(&mut guest)?;
        }
        host.say(&format!("    {kind:?}: 20 times, {} of {} frames arrived", flow.arrived(), flow.sent()));
        host.gone(guest)?;
    }
    Ok(())
}

/// As QEMU tells of its memory: ADD_MEM_REG for each region, and REM_MEM_REG when one is unplugged.
fn change_regions(host: &mut Host) -> Result<()> {
    for kind in [Kind::Split, Kind::Packed] {
        let slots = feature::PROTOCOL_CONFIGURE_MEM_SLOTS;
        let options = options(host, kind);
        let protocol_features = options.protocol_features | slots;
        let mut guest = Guest::start(Options { protocol_features, ..options })?;
        ensure!(guest.frontend()?.protocol_features() & slots != 0, "memory comes as a whole");
        guest.tx[0].scribble();
        let more = Memory::new(Layout { size: 2 << 20, regions: 1, start: 1 << 40, gap: 0, huge_pages: true })?;
        let region = more.regions().first().context("a region")?;
        let (before, mut flow) = (host.sent_so_far()?.1, Flow::new(JUMBO));
        for _ in 0..10 {
            flow.send(&mut guest, 40);
            guest.frontend()?.add_mem_reg(&more, region)?;
            flow.send(&mut guest, 40);
            guest.frontend()?.rem_mem_reg(region)?;
            flow.take_all(&host.far)?;
            all_back(&mut guest)?;
        }
        let (status, not_copied) = (host.lane.port("vm")?.zero_copy, host.sent_so_far()?.1 - before);
        ensure!(not_copied == flow.sent(), "{not_copied} of {} frames were not copied: {status:?}", flow.sent());
        host.say(&format!("    {kind:?}: {} of {} frames arrived", flow.arrived(), flow.sent()));
        host.gone(guest)?;
    }
    Ok(())
}

/// DPDK has a list for each region, and 128 lists (`RTE_MAX_MEMSEG_LISTS`).
fn too_many_regions(host: &mut Host) -> Result<()> {
    let slots = feature::PROTOCOL_CONFIGURE_MEM_SLOTS;
    let options = options(host, Kind::Split);
    let protocol_features = options.protocol_features | slots;
    let mut guest = Guest::start(Options { protocol_features, ..options })?;
    let page = 1 << 16;
    let layout = Layout { size: 130 * page, regions: 130, start: 1 << 40, gap: page as u64, huge_pages: false };
    let more = Memory::new(layout)?;
    let frames_not_copied = |host: &mut Host, guest: &mut Guest| {
        let (before, mut flow) = (host.sent_so_far()?.1, Flow::new(JUMBO));
        flow.send(guest, 20);
        flow.take_all(&host.far)?;
        all_back(guest)?;
        Ok::<u64, anyhow::Error>(host.sent_so_far()?.1 - before)
    };
    let mut told = 0;
    for region in more.regions() {
        guest.frontend()?.add_mem_reg(&more, region)?;
        told += 1;
        if host.lane.port("vm")?.zero_copy.from.is_none() {
            break;
        }
    }
    let status = host.lane.port("vm")?.zero_copy;
    let reason = status.reason.with_context(|| format!("{told} regions more are no reason to copy"))?;
    host.say(&format!("    {told} regions more: {reason}"));
    ensure!(frames_not_copied(host, &mut guest)? == 0, "frames were not copied");
    for region in &more.regions()[..told] {
        guest.frontend()?.rem_mem_reg(region)?;
    }
    let status = host.lane.port("vm")?.zero_copy;
    ensure!(status.from.is_some() && frames_not_copied(host, &mut guest)? == 20, "frames are still copied: {status:?}");
    host.gone(guest)
}

/// The NIC is stopped in the middle of its work, and goes on after `meanwhile`.
fn frozen(
    host: &mut Host,
    kind: Kind,
    meanwhile: impl FnOnce(&mut Host, Guest) -> Result<Option<Guest>>,
) -> Result<Option<Guest>> {
    let options = options(host, kind);
    // As QEMU: regions may come and go one by one.
    let protocol_features = options.protocol_features | feature::PROTOCOL_CONFIGURE_MEM_SLOTS;
    let mut guest = Guest::start(Options { protocol_features, ..options })?;
    // What the NIC still reads must not be the guest's again: it would send this instead.
    guest.tx[0].scribble();
    let registers = Registers::of(host)?;
    let before = host.sent_so_far()?;
    registers.freeze();
    let mut flow = Flow::new(JUMBO);
    let sent = flow.send(&mut guest, HELD) as u64;
    host.lane.wait_totals("vm", |from, _| from.sent == before.0 + sent)?;
    wait::pause(Duration::from_millis(50))?;
    guest.tx[0].reclaim();
    ensure!(guest.tx[0].in_flight() == HELD, "the NIC holds {HELD} frames, the guest {}", guest.tx[0].in_flight());
    ensure!(host.sent_so_far()?.1 - before.1 == sent, "frames were copied");
    let after = meanwhile(host, guest)?;
    registers.thaw();
    Ok(after)
}

fn hold_and_let_go(host: &mut Host) -> Result<()> {
    for kind in [Kind::Split, Kind::Packed] {
        let guest = frozen(host, kind, |_, guest| Ok(Some(guest)))?;
        let mut guest = guest.context("the guest is gone")?;
        all_back(&mut guest)?;
        let mut arrived = 0;
        let start = Instant::now();
        while arrived < HELD {
            arrived += host.drain_far()?;
            ensure!(start.elapsed() < Duration::from_secs(20), "{arrived} of {HELD} frames arrived");
        }
        host.say(&format!("    {kind:?}: {HELD} frames held, none given back; {arrived} arrived"));
        host.gone(guest)?;
    }
    Ok(())
}

fn give_memory_anew_while_frozen(host: &mut Host) -> Result<()> {
    for kind in [Kind::Split, Kind::Packed] {
        let guest = frozen(host, kind, |host, mut guest| {
            let memory = guest.memory().clone();
            let start = Instant::now();
            guest.frontend()?.set_mem_table(&memory, memory.regions())?;
            guest.frontend()?.barrier()?;
            let took = start.elapsed();
            all_back(&mut guest)?;
            ensure!(took < Duration::from_secs(5), "the change took {took:?}");
            host.say(&format!("    {kind:?}: {HELD} frames in the NIC, the change took {} ms", took.as_millis()));
            Ok(Some(guest))
        })?;
        goes_on_and_ends(host, guest)?;
    }
    Ok(())
}

/// As when memory is unplugged: the rings stay where they are, and frames that the NIC still has to read lie in what goes.
fn take_region_away_while_frozen(host: &mut Host) -> Result<()> {
    for kind in [Kind::Split, Kind::Packed] {
        let guest = frozen(host, kind, |host, mut guest| {
            let memory = guest.memory().clone();
            let rings = [guest.tx[0].ring().addresses(), guest.rx[0].ring().addresses()].concat();
            let has = |region: &Region, at: u64| (region.guest..region.guest + region.size).contains(&at);
            let spare = |region: &&Region| !rings.iter().any(|&ring| has(region, ring));
            let gone: Vec<&Region> = memory.regions().iter().filter(spare).collect();
            let lent = guest.tx[0].lent().filter(|&at| gone.iter().any(|region| has(region, at))).count();
            ensure!(lent > 0, "no frame lies in a region that has no ring");
            let start = Instant::now();
            for region in &gone {
                guest.frontend()?.rem_mem_reg(region)?;
            }
            guest.frontend()?.barrier()?;
            all_back(&mut guest)?;
            let took = start.elapsed();
            ensure!(took < Duration::from_secs(5 * gone.len() as u64), "the change took {took:?}");
            for region in &gone {
                guest.frontend()?.add_mem_reg(&memory, region)?;
            }
            let took = took.as_millis();
            host.say(&format!("    {kind:?}: {lent} of {HELD} frames lie in what goes, which took {took} ms"));
            Ok(Some(guest))
        })?;
        goes_on_and_ends(host, guest)?;
    }
    Ok(())
}

fn kill_guest_while_frozen(host: &mut Host) -> Result<()> {
    for kind in [Kind::Split, Kind::Packed] {
        frozen(host, kind, |host, guest| {
            drop(guest);
            host.lane.wait_port("vm", Duration::from_secs(20), |port| port.phase == PortPhase::Listening)?;
            let pinned = host.pinned_now()?;
            ensure!(pinned > host.pinned, "the NIC still reads memory of which nothing is pinned");
            host.say(&format!("    {kind:?}: the guest is gone, {} KiB stay pinned", pinned - host.pinned));
            Ok(None)
        })?;
        // Nobody sends any more, and still what the NIC has sent is noticed.
        host.nothing_left()?;
        let mut guest = Guest::start(options(host, kind))?;
        goes_on(host, &mut guest)?;
        host.gone(guest)?;
    }
    Ok(())
}

fn reset_while_frozen(host: &mut Host) -> Result<()> {
    for kind in [Kind::Split, Kind::Packed] {
        let guest = frozen(host, kind, |_, mut guest| {
            guest.reset()?;
            Ok(Some(guest))
        })?;
        goes_on_and_ends(host, guest)?;
    }
    Ok(())
}

fn remove_port_while_frozen(host: &mut Host) -> Result<()> {
    frozen(host, Kind::Split, |host, guest| {
        host.lane.remove("vm")?;
        host.nothing_mapped()?;
        drop(guest);
        Ok(None)
    })?;
    take(host)?;
    let mut guest = Guest::start(options(host, Kind::Packed))?;
    goes_on(host, &mut guest)?;
    host.gone(guest)
}

fn kill_lane_while_frozen(host: &mut Host) -> Result<()> {
    let guest = frozen(host, Kind::Packed, |host, guest| {
        host.lane.kill()?;
        host.lane.restart()?;
        Ok(Some(guest))
    })?;
    let mut guest = guest.context("the guest is gone")?;
    take(host)?;
    guest.reconnect()?;
    all_back(&mut guest)?;
    goes_on(host, &mut guest)?;
    host.gone(guest)
}

fn pull_the_nic(host: &mut Host) -> Result<()> {
    let spec = host.spec("vm", &host.nic);
    let mut guest = Guest::start(options(host, Kind::Split))?;
    let mut flow = Flow::new(JUMBO);
    flow.send(&mut guest, 100);
    flow.take_all(&host.far)?;
    // Frames are in the NIC for as long as it is there.
    let registers = Registers::of(host)?;
    registers.freeze();
    flow.send(&mut guest, HELD);
    let pull = host.pull();
    let start = Instant::now();
    let mut seen = false;
    while !seen {
        // Traffic goes on until the daemon would act.
        flow.send(&mut guest, 20);
        guest.tx[0].reclaim();
        flow.take(&host.far)?;
        seen = host
            .lane
            .wait_event("vm", Duration::from_millis(20), |event| *event == LaneEventKind::DeviceRemoved)
            .is_ok();
        ensure!(start.elapsed() < Duration::from_secs(30), "nobody noticed that the NIC goes");
    }
    guest.tx[0].reclaim();
    let (took, held) = (start.elapsed().as_millis(), guest.tx[0].in_flight());
    ensure!(held >= HELD, "{held} frames are in the NIC");
    host.say(&format!("    noticed after {took} ms, {held} frames are with the NIC"));
    host.lane.remove("vm")?;
    drop(registers);
    let pulled = pull.join().map_err(|_| anyhow::anyhow!("the thread that pulls panicked"))?;
    pulled?;
    flow.take(&host.far)?;
    drop(guest);
    host.nothing_mapped()?;
    let gone = host.lane.add(&spec).err().context("a NIC that is gone was taken")?.to_string();
    host.say(&format!("    {gone}"));
    host.plug()?;
    take(host)?;
    let mut guest = Guest::start(options(host, Kind::Split))?;
    goes_on(host, &mut guest)?;
    host.gone(guest)
}

/// One of the second NIC, whose own switch takes its frames to the kernel's interface.
fn make_virtual_function(host: &mut Host) -> Result<()> {
    host.lane.remove("vm")?;
    let functions = host.far_nic.make_virtual_functions(2)?;
    let function = functions.into_iter().next().context("no virtual function")?;
    function.bind("vfio-pci")?;
    host.nic = function;
    wait_far_link(host)?;
    take(host)
}

/// Makes the port.
pub(super) fn take(host: &mut Host) -> Result<()> {
    let status = host.lane.add(&host.spec("vm", &host.nic))?;
    let group = host.nic.iommu_group().unwrap_or_default();
    let from = status.zero_copy.from;
    let driver = status.device.driver;
    host.say(&format!("    {}: IOMMU group {group}, {driver}, zero copy from {from:?} bytes", host.nic.address()));
    ensure!(from == Some(FROM.into()), "frames are copied: {:?}", status.zero_copy);
    host.lane.wait_port("vm", Duration::from_secs(30), |port| port.device.link_up)?;
    host.pinned = host.pinned_now()?;
    Ok(())
}

/// The guest is still there, frames cross, and nothing is left of it then.
fn goes_on_and_ends(host: &mut Host, guest: Option<Guest>) -> Result<()> {
    let mut guest = guest.context("the guest is gone")?;
    goes_on(host, &mut guest)?;
    host.gone(guest)
}

/// What was on its way is forgotten, and frames cross as if nothing had been.
fn goes_on(host: &mut Host, guest: &mut Guest) -> Result<()> {
    // The first frame pushes out what the NIC still had.
    wait::pause(Duration::from_millis(100))?;
    let late = host.drain_far()?;
    let plan = Plan { lengths: Lengths::Between(60, JUMBO), burst: 32, ..Plan::new(200, 60) };
    crossing::run(&mut End::Guest(guest), &mut End::Far(&host.far), host.ways(), plan)?;
    all_back(guest)?;
    host.say(&format!("    {late} frames came late; then {} crossed", plan.frames));
    Ok(())
}
