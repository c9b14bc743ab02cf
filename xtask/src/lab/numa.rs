//! A host of two NUMA nodes, with a processor, memory and hugepages each: what belongs together is on one of them, and where there is no room, packets
//! flow all the same.
//!
//! A machine of its own, without NICs: the device is a software ring, whose buffers may be anywhere. Which node a piece of memory is on is what the
//! kernel says (`numa_maps`), not what the lane says.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use ringspan_protocol::{NodeStatus, PortStatus};
use ringspan_testkit::guest::loopback::{self, Plan};
use ringspan_testkit::guest::{Guest, Kind, Options};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::paths;
use tempfile::TempDir;

/// Instead of the other machine's NICs.
pub const MACHINE: &str = "-smp 2,sockets=2,cores=1,threads=1 \
    -object memory-backend-memfd,id=near,size=1024M,share=on -object memory-backend-memfd,id=far,size=1024M,share=on \
    -numa node,nodeid=0,cpus=0,memdev=near -numa node,nodeid=1,cpus=1,memdev=far";
/// The word in the names of these checks. Who asks for it gets no other machine.
pub const WORD: &str = "NUMA";

type Check = (&'static str, fn(&mut Host) -> Result<()>);

const CHECKS: &[Check] = &[
    ("NUMA: a guest's frames are copied to buffers on its memory's node, by a worker of that node", near),
    ("NUMA: what a lane took of a node it keeps, wherever its guests come from, and however often", kept),
    (
        "NUMA: where that node has no hugepages the device's buffers serve, and the worker is still of that node",
        no_room,
    ),
    ("NUMA: a lane whose worker is on a node has its memory there", lane_near),
];
const NODES: [u16; 2] = [0, 1];
/// The lane's memory in MiB, and hugepages of 2 MiB of each node: the lane's, and some for guests.
const LANE_MIB: u32 = 128;
const HUGE_PAGES: u32 = 140;

/// Whether the name of one contains this.
pub fn is_wanted(only: &str) -> bool {
    CHECKS.iter().any(|(name, _)| name.contains(only))
}

struct Host {
    folder: TempDir,
    story: fs::File,
}

/// Runs the checks whose names contain `only`. Returns how many passed.
pub fn run(story: fs::File, only: &str) -> Result<u32> {
    let mut host = Host { folder: paths::scratch()?, story };
    let mut done = 0;
    for (name, check) in CHECKS.iter().filter(|(name, _)| name.contains(only)) {
        let start = Instant::now();
        host.say(&format!("--> {name}"));
        check(&mut host).context(*name)?;
        host.say(&format!("    {:.1} s", start.elapsed().as_secs_f64()));
        done += 1;
    }
    Ok(done)
}

impl Host {
    fn say(&mut self, text: &str) {
        // Who does not watch misses nothing but this.
        let _ = writeln!(self.story, "{text}");
    }

    fn lane(&self, cores: &str) -> Result<Lane> {
        let options = lane::Options {
            cores: cores.into(),
            memory_mib: LANE_MIB,
            huge_pages: "require".into(),
            ready: Duration::from_secs(120),
            ..lane::Options::new("numa")
        };
        Lane::start(options, self.folder.path())
    }

    /// Passes frames of a guest whose memory is on that node through `port`, and says what the lane says of it meanwhile.
    fn pass(&mut self, lane: &mut Lane, port: &str, node: u16, huge_pages: bool, kind: Kind) -> Result<PortStatus> {
        let socket = lane.port(port)?.spec.socket;
        // Memory is where it was first touched.
        run_on(&[node])?;
        let options = Options { huge_pages, timeout: Duration::from_secs(60), ..Options::new(socket).over(kind) };
        let mut guest = Guest::start(options)?;
        run_on(&NODES)?;
        let pages = pages_of(std::process::id(), |line| line.contains("ringspan-test-guest"))?;
        let other = pages[usize::from(1 - node)];
        ensure!(pages[usize::from(node)] > 0 && other == 0, "the guest's pages by node: {pages:?}");
        let passed = loopback::run(&mut guest, Plan::new(500, 64))?;
        let status = lane.port(port)?;
        self.say(&format!(
            "    {kind:?}, guest on node {node} ({pages:?} pages): {} frames came back, cores {:?}, {:?}",
            passed[0].frames,
            status.shares.iter().map(|share| share.core).collect::<Vec<_>>(),
            status.nodes
        ));
        ensure!(status.shares.iter().all(|share| share.core == node), "{:?}", status.shares);
        drop(guest);
        lane.wait_port(port, Duration::from_secs(20), |port| port.active_pairs == 0)?;
        Ok(status)
    }
}

fn near(host: &mut Host) -> Result<()> {
    reserve([HUGE_PAGES; 2])?;
    let mut lane = host.lane("0,1")?;
    lane.add_port("vm", "vdev:net_ring0", 1)?;
    let before = packet_memory(&lane)?;
    ensure!(before[0] > 0 && before[1] == 0, "the first worker is on node 0, and the lane's hugepages are {before:?}");
    for node in NODES {
        for kind in [Kind::Split, Kind::Packed] {
            let status = host.pass(&mut lane, "vm", node, true, kind)?;
            let wanted = NodeStatus { guest: Some(node), device: status.nodes.device, buffers: Some(node) };
            ensure!(status.nodes == wanted, "{:?}", status.nodes);
            let pages = packet_memory(&lane)?;
            ensure!(pages[usize::from(node)] > 0, "the lane's hugepages by node: {pages:?}");
            host.say(&format!("    hugepages of the lane: {pages:?}"));
        }
    }
    Ok(())
}

fn kept(host: &mut Host) -> Result<()> {
    reserve([HUGE_PAGES; 2])?;
    let mut lane = host.lane("0,1")?;
    let mut before = [0; 2];
    let mut first = 0;
    for turn in 0..4 {
        lane.add_port("vm", "vdev:net_ring0", 1)?;
        // A pool that was left is freed when the next is made, if it was full for a while: or there are two for a moment.
        for node in [1, 0, 1] {
            let status = host.pass(&mut lane, "vm", node, true, Kind::Split)?;
            ensure!(status.nodes.buffers == Some(node), "{:?}", status.nodes);
            // A guest that is gone is on no node.
            lane.wait_port("vm", Duration::from_secs(20), |port| port.nodes.guest.is_none())?;
            let pages = packet_memory(&lane)?;
            host.say(&format!("    turn {turn}: hugepages of the lane: {pages:?}"));
            let shrank = pages.iter().zip(before).any(|(now, before)| *now < before);
            ensure!(!shrank && pages[1] > 0, "{pages:?} after {before:?}");
            first = if first == 0 { pages[1] } else { first };
            ensure!(pages[0] == before[0] || before[0] == 0, "node 0 has what it had: {pages:?} after {before:?}");
            ensure!(pages[1] <= 2 * first, "two pools at once need no more: {pages:?}, {first} of the first");
            before = pages;
        }
        lane.remove("vm")?;
    }
    Ok(())
}

fn no_room(host: &mut Host) -> Result<()> {
    reserve([HUGE_PAGES, 0])?;
    let mut lane = host.lane("0,1")?;
    lane.add_port("vm", "vdev:net_ring0", 1)?;
    let status = host.pass(&mut lane, "vm", 1, false, Kind::Split)?;
    ensure!(status.nodes.guest == Some(1) && status.nodes.buffers != Some(1), "{:?}", status.nodes);
    let pages = packet_memory(&lane)?;
    ensure!(pages[1] == 0, "the lane's hugepages by node: {pages:?}");
    Ok(())
}

fn lane_near(host: &mut Host) -> Result<()> {
    reserve([HUGE_PAGES; 2])?;
    let mut lane = host.lane("1")?;
    lane.add_port("vm", "vdev:net_ring0", 1)?;
    let pages = packet_memory(&lane)?;
    host.say(&format!("    hugepages of a lane on core 1: {pages:?}"));
    // DPDK takes a little for itself wherever there is some.
    ensure!(pages[0] < 4 && pages[1] >= u64::from(LANE_MIB / 2), "the lane's hugepages by node: {pages:?}");
    let status = host.pass(&mut lane, "vm", 1, true, Kind::Split)?;
    ensure!(status.nodes.buffers == Some(1), "{:?}", status.nodes);
    Ok(())
}

/// Hugepages that each node has from now on.
fn reserve(pages: [u32; 2]) -> Result<()> {
    for (node, pages) in pages.into_iter().enumerate() {
        let file = format!("/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages");
        fs::write(&file, pages.to_string()).with_context(|| file.clone())?;
        let there: u32 = fs::read_to_string(&file)?.trim().parse()?;
        ensure!(there == pages, "node {node} has {there} hugepages, {pages} were asked for");
    }
    Ok(())
}

/// This thread runs on the processors of these nodes, each of which has the one of its number.
fn run_on(nodes: &[u16]) -> Result<()> {
    let mut set = CpuSet::new();
    for node in nodes {
        set.set(usize::from(*node))?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).context("choosing a processor")
}

/// Pages of a process by node, of the mappings that are wanted: numa_maps of proc(5).
fn pages_of(process: u32, wanted: impl Fn(&str) -> bool) -> Result<[u64; 2]> {
    let maps = fs::read_to_string(format!("/proc/{process}/numa_maps"))?;
    let mut pages = [0; 2];
    for word in maps.lines().filter(|line| wanted(line)).flat_map(str::split_whitespace) {
        for (node, sum) in pages.iter_mut().enumerate() {
            let count = word.strip_prefix(&format!("N{node}=")).and_then(|count| count.parse::<u64>().ok());
            *sum += count.unwrap_or(0);
        }
    }
    Ok(pages)
}

/// Hugepages of a lane by node, without those of its guests.
fn packet_memory(lane: &Lane) -> Result<[u64; 2]> {
    pages_of(lane.pid(), |line| line.contains("kernelpagesize_kB=2048") && !line.contains("ringspan-test-guest"))
}
