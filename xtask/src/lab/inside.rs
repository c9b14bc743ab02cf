//! The lab's inner side: the emulated host. One igb goes to DPDK, the other stays with the kernel as the far end of the wire.

use std::fs;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_protocol::{PortPhase, PortSpec};
use ringspan_testkit::far_end::FarEnd;
use ringspan_testkit::guest::Guest;
use ringspan_testkit::guest::crossing::Ways;
use ringspan_testkit::guest::loopback::ETHERTYPE;
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::netns::Netns;
use ringspan_testkit::pci::Function;
use ringspan_testkit::{paths, wait};

use super::kernel_log::KernelLog;
use super::registers::Registers;
use super::{
    FIRST, SECOND, answers, attached, bonds, booted, checks, control, doctor, failover, handover, kernel_ovs,
    kernel_soft, killed, netdevsim, story_port, two_vfs, vdpa, vdpa_netlink,
};

/// Longest frame without its Ethernet header.
pub const MTU: u16 = 9000;
/// Least length of a frame that is not copied in the lab.
pub const FROM: u16 = 500;
/// Hugepages of 2 MiB: the lane's, and some for its guests.
const HUGE_PAGES: u32 = 300;
const LANE_MIB: u32 = 256;
/// Where the frames of the test kit go to: the far end's own address, so that a NIC's inner switch knows it.
pub const FAR_MAC: &str = "52:54:00:12:34:56";

/// The host, as the checks use it.
pub struct Host {
    /// The lane, on core 1.
    pub lane: Lane,
    /// The function that DPDK drives.
    pub nic: Function,
    /// The one that the kernel drives: the far end of the wire.
    pub far_nic: Function,
    /// Its interface, by name,
    pub far_interface: String,
    /// and frames there.
    pub far: FarEnd,
    /// Where that is.
    pub net: Netns,
    /// Memory that is pinned for the lane when no guest is there, in KiB.
    pub pinned: u64,
    story: fs::File,
    _folder: tempfile::TempDir,
}

/// Makes the host ready and runs the checks whose names contain `only`, on a physical function and on a virtual one.
pub fn run(only: &str) -> Result<()> {
    for module in ["igb", "igbvf", "vfio-pci", "vfio_iommu_type1"] {
        wait::run(Command::new("modprobe").arg(module), Duration::from_secs(60))?.success(module)?;
    }
    let mut story = story_port()?;
    let mut done = control::run(&mut story, only)?;
    done += bonds::run(&mut story, only)?;
    done += answers::run(&mut story, only)?;
    done += killed::run(&mut story, only)?;
    done += handover::run(&mut story, only)?;
    done += booted::run(&mut story, only)?;
    done += kernel_ovs::run(&mut story, only)?;
    done += kernel_soft::run(&mut story, only)?;
    done += netdevsim::run(&mut story, only)?;
    done += doctor::run(&mut story, only)?;
    done += vdpa_netlink::run(&mut story, only)?;
    done += vdpa::run(&mut story, only)?;
    done += failover::run(&mut story, only)?;
    done += two_vfs::run(&mut story, only)?;
    done += attached::run(&mut story, only)?;
    if done > 0 && !checks::is_wanted(only) {
        println!("{done}");
        return Ok(());
    }
    let mut host = Host::prepare(story)?;
    let mut log = KernelLog::from_now()?;
    for begin in [checks::FUNCTION, checks::VIRTUAL_FUNCTION] {
        for (name, check) in begin.iter().chain(checks::BOTH.iter().filter(|(name, _)| name.contains(only))) {
            let start = Instant::now();
            host.say(&format!("--> {name}"));
            let outcome = check(&mut host).and_then(|()| log.no_faults());
            outcome.with_context(|| format!("{name}\nfaults after that: {:?}\n{}", log.faults(), host.state()))?;
            host.say(&format!("    {:.1} s", start.elapsed().as_secs_f64()));
            done += 1;
        }
        // Last, because the function is of no use afterwards.
        host.say("--> a fault would have been seen: the NIC is sent to memory that is not mapped");
        Registers::of(&host)?.mislead();
        wait::until(Duration::from_secs(10), "the DMA fault that was provoked", || {
            Ok(log.faults()?.first().map(|fault| host.say(&format!("    {fault}"))))
        })?;
    }
    ensure!(host.lane.is_alive(), "the lane ended");
    // For who counts.
    println!("{done}");
    Ok(())
}

impl Host {
    fn prepare(mut story: fs::File) -> Result<Self> {
        fs::write("/proc/sys/vm/nr_hugepages", HUGE_PAGES.to_string())?;
        let (nic, far_nic) = (Function::at(FIRST)?, Function::at(SECOND)?);
        for function in [&nic, &far_nic] {
            let (driver, group) = (function.driver(), function.iommu_group());
            let group = group.with_context(|| format!("{} has no IOMMU group", function.address()))?;
            let driver = driver.unwrap_or("no driver".into());
            writeln!(story, "    {}: {driver}, IOMMU group {group}", function.address())?;
        }
        let interface = wait::until(Duration::from_secs(20), "the far end's interface", || Ok(far_nic.interface()))?;
        let net = Netns::new("lab")?;
        let ip = |words: &[&str]| net.ip(words);
        wait::run(Command::new("ip").args(["link", "set", &interface, "netns", net.name()]), Duration::from_secs(20))?
            .success("ip link set netns")?;
        net.sysctl(&format!("net.ipv6.conf.{interface}.disable_ipv6=1"))?;
        // A long frame takes several of its buffers, and what finds none is lost: more than any check has on its way.
        net.run(Duration::from_secs(20), "ethtool", &["-G", &interface, "rx", "4096"])?;
        ip(&["link", "set", &interface, "address", FAR_MAC, "mtu", &MTU.to_string(), "promisc", "on", "up"])?;
        let far = FarEnd::open(&net, &interface, ETHERTYPE)?;
        let folder = paths::scratch()?;
        let options = lane::Options {
            cores: "1".into(),
            memory_mib: LANE_MIB,
            huge_pages: "require".into(),
            ready: Duration::from_secs(120),
            ..lane::Options::new("lab")
        };
        let start = Instant::now();
        let lane = Lane::start(options, folder.path())?;
        writeln!(story, "    a lane, ready after {:.1} s", start.elapsed().as_secs_f64())?;
        Ok(Self { lane, nic, far_nic, far_interface: interface, far, net, pinned: 0, story, _folder: folder })
    }

    /// A line for who watches.
    pub fn say(&mut self, text: &str) {
        // Who does not watch misses nothing but this.
        let _ = writeln!(self.story, "{text}");
    }

    /// A port on a function.
    pub fn spec(&self, name: &str, function: &Function) -> PortSpec {
        PortSpec {
            mtu: MTU,
            zero_copy_from: Some(FROM),
            ..self.lane.spec(name, &format!("pci:{}", function.address()), 1)
        }
    }

    /// Whether the port is on a virtual function.
    pub fn is_virtual(&self) -> bool {
        self.nic.address() != FIRST
    }

    /// Which ways frames go. The switch inside a NIC looks at addresses, and there both ends have the same.
    pub fn ways(&self) -> Ways {
        if self.is_virtual() { Ways::There } else { Ways::Both }
    }

    /// Takes the function out of the machine, which takes as long as somebody uses it.
    pub fn pull(&self) -> std::thread::JoinHandle<Result<()>> {
        let (nic, far_nic, is_virtual) = (self.nic.clone(), self.far_nic.clone(), self.is_virtual());
        std::thread::spawn(move || if is_virtual { far_nic.end_virtual_functions() } else { nic.remove() })
    }

    /// Brings it back.
    pub fn plug(&mut self) -> Result<()> {
        if self.is_virtual() {
            self.far_nic.make_virtual_functions(2)?;
        } else {
            fs::write("/sys/bus/pci/rescan", "1")?;
        }
        self.nic.bind("vfio-pci")
    }

    /// Memory that is pinned for the lane, in KiB.
    pub fn pinned_now(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.lane.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).context("no VmLck")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// What may explain a failure.
    fn state(&mut self) -> String {
        let counters = self.lane.totals("vm");
        let far = self.net.ip(&["-s", "-s", "link"]);
        let quiet = |line: &&str| !line.contains("event port=");
        let log = self.lane.log();
        let log: Vec<&str> = log.lines().filter(quiet).collect();
        format!("counters: {counters:?}\nfar end: {far:?}\nthe lane's log:\n{}", log.join("\n"))
    }

    /// Frames that the port has taken from guests, and how many of them were not copied.
    pub fn sent_so_far(&mut self) -> Result<(u64, u64)> {
        let (from, _) = self.lane.totals("vm")?;
        Ok((from.sent, from.zero_copied))
    }

    /// Takes what has arrived at the far end, and says how much that was.
    pub fn drain_far(&self) -> Result<usize> {
        let (mut frame, mut count) = (vec![0; 1 << 14], 0);
        while self.far.receive(&mut frame)?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    /// Kills the guest, and waits until nothing of it is left.
    pub fn gone(&mut self, guest: Guest) -> Result<()> {
        drop(guest);
        self.lane.wait_port("vm", Duration::from_secs(20), |port| port.phase == PortPhase::Listening)?;
        self.nothing_left()
    }

    /// Guests are gone, and nothing of their memory is mapped or pinned.
    pub fn nothing_left(&self) -> Result<()> {
        self.nothing_mapped()?;
        let (now, wanted) = (self.pinned_now()?, self.pinned);
        ensure!(now == wanted, "pinned are {now} KiB, {wanted} KiB without guests");
        Ok(())
    }

    /// The lane maps no memory of a guest.
    pub fn nothing_mapped(&self) -> Result<()> {
        wait::until(Duration::from_secs(10), "guest memory to be unmapped", || {
            let maps = fs::read_to_string(format!("/proc/{}/maps", self.lane.pid()))?;
            Ok((!maps.contains("ringspan-test-guest")).then_some(()))
        })
    }
}
