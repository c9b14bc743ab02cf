//! A guest on two VFs, one of each NIC, that are one to it: pinged over the wire by a third NIC while cables, the daemon and a VF go.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_testkit::daemon::{Daemon, find};
use ringspan_testkit::netns::{Netns, Pinger};
use ringspan_testkit::pci::Function;
use ringspan_testkit::testpmd::{self, Testpmd};
use ringspan_testkit::wait;
use serde_json::json;

use super::control::{Control, LIMIT, tool};
use super::{FIRST, SECOND, THIRD_MAC};

type Check = (&'static str, fn(&mut Scene) -> Result<()>);

/// In this order, each with a guest that answers pings, and both VFs as they should be.
const CHECKS: &[Check] = &[
    ("two VFs are one: the second NIC takes over when the first has no link, and the other way round", fails_over),
    ("two VFs are one: the daemon is killed, and no ping is lost", daemon_is_killed),
    (
        "two VFs are one: the VF that sends is unbound under traffic: no ping is lost, and the port is made anew with it",
        vf_is_unbound,
    ),
];

/// Of the guest, and therefore of both VFs.
const MAC: &str = "52:54:00:aa:07:07";
const GUEST: &str = "192.0.2.7";
/// Drivers of two VFs wait for each one's PF and link, several times.
pub(super) const ADDED: Duration = Duration::from_secs(400);
pub(super) const INTERVAL: Duration = Duration::from_millis(50);
pub(super) const CONFIGURATION: &str = "[dataplane]\ncores = [1]\nmemory_mib = 128\nhuge_pages = \"require\"\n";
/// Of 2 MiB: the lane's. Behind an emulated IOMMU, ordinary pages take minutes, one after the other.
pub(super) const HUGE_PAGES: &str = "80";
pub(super) const RESERVED: &str = "/proc/sys/vm/nr_hugepages";

struct Scene<'a> {
    _guest: Testpmd,
    control: Control<'a>,
    /// Where the third NIC is.
    net: Netns,
    /// The interfaces of the PFs.
    pfs: [String; 2],
    vfs: [Function; 2],
}

/// Runs the checks whose names contain `only`. Returns how many passed.
pub fn run(story: &mut fs::File, only: &str) -> Result<u32> {
    let checks: Vec<&Check> = CHECKS.iter().filter(|(name, _)| name.contains(only)).collect();
    if checks.is_empty() {
        return Ok(0);
    }
    let start = Instant::now();
    let mut scene = Scene::new(story)?;
    writeln!(scene.control.story, "    a guest on both, reached after {:.1} s", start.elapsed().as_secs_f64())?;
    for (name, check) in &checks {
        let start = Instant::now();
        writeln!(scene.control.story, "--> {name}")?;
        check(&mut scene).with_context(|| format!("{name}\n{}", scene.control.daemon.story()))?;
        writeln!(scene.control.story, "    {:.1} s", start.elapsed().as_secs_f64())?;
    }
    scene.end()?;
    Ok(checks.len() as u32)
}

/// The third NIC, in a namespace of its own.
pub(super) fn far_end() -> Result<Netns> {
    let net = Netns::new("failover")?;
    let links = tool("ip", &["-o", "link", "show"])?;
    let line = links.lines().find(|line| line.contains(THIRD_MAC)).context("the third NIC has no interface")?;
    let name = line.split(": ").nth(1).context("an interface without a name")?.to_owned();
    tool("ip", &["link", "set", &name, "netns", net.name()])?;
    net.sysctl(&format!("net.ipv6.conf.{name}.disable_ipv6=1"))?;
    net.ip(&["link", "set", &name, "up"])?;
    net.ip(&["address", "add", "192.0.2.1/24", "dev", &name])?;
    Ok(net)
}

impl<'a> Scene<'a> {
    fn new(story: &'a mut fs::File) -> Result<Self> {
        fs::write(RESERVED, HUGE_PAGES)?;
        let daemon = Daemon::start(CONFIGURATION, None)?;
        let mut control = Control { daemon, interface: String::new(), story };
        let net = far_end()?;
        let mut pfs = vec![];
        let mut vfs = vec![];
        for address in [FIRST, SECOND] {
            let pf = Function::at(address)?;
            let interface = wait::until(LIMIT, "a PF's interface", || Ok(pf.interface()))?;
            tool("ip", &["link", "set", &interface, "up"])?;
            control.done(&["vf", "enable", &interface, "1"])?;
            control.done(&["vf", "set", &interface, "0", "--mac", MAC, "--trust", "true", "--spoof-check", "false"])?;
            let link = fs::read_link(format!("/sys/bus/pci/devices/{address}/virtfn0"))?;
            let vf = link.file_name().context("a VF's link")?.to_string_lossy().into_owned();
            control.done(&["device", "bind", &vf, "vfio-pci"])?;
            vfs.push(Function::at(&vf)?);
            pfs.push(interface);
        }
        let (Ok(pfs), Ok(vfs)) = (<[String; 2]>::try_from(pfs), <[Function; 2]>::try_from(vfs)) else {
            anyhow::bail!("there are two NICs");
        };
        for pf in &pfs {
            has_link(pf)?;
        }
        let socket = control.daemon.path("vm.sock").display().to_string();
        let adds = Instant::now();
        add_port(&mut control, &vfs)?;
        writeln!(control.story, "    a port on both, after {:.1} s", adds.elapsed().as_secs_f64())?;
        let options =
            testpmd::Options { core: 0, memory_mib: 64, ready: ADDED, ..testpmd::Options::new("lab-failover") }
                .device(format!("net_virtio_user0,path={socket},queues=1,server=1,mac={MAC}"))
                .arguments(["--forward-mode=icmpecho", "--total-num-mbufs=4096"]);
        let mut guest = Testpmd::start(&options)?;
        guest.command("start")?;
        let scene = Self { _guest: guest, control, net, pfs, vfs };
        scene.answers()?;
        Ok(scene)
    }

    fn end(mut self) -> Result<()> {
        self.control.daemon.ok(&["port", "remove", "vm"])?;
        for pf in &self.pfs {
            self.control.done(&["vf", "enable", pf, "0", "--disturb"])?;
            tool("ip", &["link", "set", pf, "down"])?;
        }
        drop(self);
        Ok(fs::write(RESERVED, "0")?)
    }

    fn answers(&self) -> Result<()> {
        self.net.wait_ping(GUEST, LIMIT).map(drop).with_context(|| self.control.daemon.story())
    }

    fn ping(&self) -> Result<Pinger> {
        self.net.ping(GUEST, INTERVAL)
    }

    /// Which of the VFs sends; none while neither does.
    fn active(&self) -> Result<Option<usize>> {
        let port = self.control.daemon.call("port.get", json!({ "name": "vm" }))?;
        let parts = find(&port, "members");
        let parts =
            parts.and_then(|parts| parts.as_array()).with_context(|| format!("no parts of the bond: {port}"))?;
        Ok(parts.iter().position(|part| part["active"] == true))
    }

    /// Waits until this one sends, and the guest answers by it.
    fn sends_by(&mut self, vf: usize) -> Result<()> {
        wait::until(LIMIT, &format!("VF {vf} to send"), || Ok((self.active()? == Some(vf)).then_some(())))?;
        self.answers()
    }

    /// Ends pings of which some may have been lost, once each answered.
    fn finish(&mut self, ping: Pinger, what: &str) -> Result<()> {
        let report = ping.finish()?;
        let gap = report.longest_gap().as_millis();
        writeln!(
            self.control.story,
            "    {what}: {} of {} pings were answered, {gap} ms without an answer at most",
            report.received, report.sent
        )?;
        ensure!(report.duplicates == 0 && report.received > 0, "{report:?}");
        Ok(())
    }
}

/// The guest has the socket, so that it finds a port that is made anew, and a lane.
fn add_port(control: &mut Control, vfs: &[Function; 2]) -> Result<()> {
    let device = format!("bond:mode=1,pci:{},pci:{}", vfs[0].address(), vfs[1].address());
    let socket = control.daemon.path("vm.sock").display().to_string();
    let words = ["port", "add", "vm", "--socket-path", &socket, "--role", "client", "--device", &device];
    // A lane takes longer to start here than a call waits.
    let added = wait::until(ADDED, "the port", || {
        let finished = wait::run(&mut control.daemon.command(&words), ADDED)?;
        if finished.code != 0 && finished.text.contains("is not running") {
            return Ok(None);
        }
        finished.success("ringspan port add").map(Some)
    });
    added.with_context(|| control.daemon.story())?;
    Ok(())
}

pub(super) fn has_link(interface: &str) -> Result<()> {
    wait::until(LIMIT, &format!("a link of {interface}"), || {
        Ok(tool("ip", &["link", "show", interface])?.contains("LOWER_UP").then_some(()))
    })
}

/// The first one of the port has no link, and then that of a port of the two in the other order. An 82576's VF whose PF was down has to be reset by who drives it
/// (drivers/net/ethernet/intel/igb/igb_main.c, `igb_ping_all_vfs`), for which the port is made anew.
fn fails_over(scene: &mut Scene) -> Result<()> {
    for _ in 0..2 {
        let first = scene.active()?.context("neither VF sends")?;
        ensure!(first == 0, "VF {first} sends, not the first one");
        let ping = scene.ping()?;
        tool("ip", &["link", "set", &scene.pfs[first], "down"])?;
        scene.sends_by(1 - first)?;
        scene.finish(ping, &format!("{} is down", scene.pfs[first]))?;
        tool("ip", &["link", "set", &scene.pfs[first], "up"])?;
        has_link(&scene.pfs[first])?;
        scene.answers()?;
        scene.control.daemon.ok(&["port", "remove", "vm"])?;
        scene.pfs.swap(0, 1);
        scene.vfs.swap(0, 1);
        add_port(&mut scene.control, &scene.vfs)?;
        scene.answers()?;
    }
    Ok(())
}

fn daemon_is_killed(scene: &mut Scene) -> Result<()> {
    let (sends, ping) = (scene.active()?, scene.ping()?);
    wait::pause(4 * INTERVAL)?;
    scene.control.daemon.kill()?;
    wait::pause(4 * INTERVAL)?;
    scene.control.daemon.start_again()?;
    scene.control.daemon.wait_port("vm", "driver-ready", LIMIT)?;
    wait::pause(4 * INTERVAL)?;
    ping.finish()?.nothing_lost()?;
    ensure!(scene.active()? == sends, "the bond changed");
    Ok(())
}

fn vf_is_unbound(scene: &mut Scene) -> Result<()> {
    let sends = scene.active()?.context("neither VF sends")?;
    let address = scene.vfs[sends].address().to_owned();
    // ringspan itself refuses that: somebody has it open.
    scene.control.refused(&["device", "bind", &address, "--restore"], &[&address, "ringspan port remove vm"])?;
    let ping = scene.ping()?;
    let unbind = {
        let address = address.clone();
        std::thread::spawn(move || fs::write("/sys/bus/pci/drivers/vfio-pci/unbind", address))
    };
    wait::until(LIMIT, "an event about the VF", || {
        Ok(scene.control.daemon.ok(&["events"])?.contains("device-removed").then_some(()))
    })?;
    // The kernel waits until nobody has the VF open, and meanwhile the guest is reached.
    ping.finish()?.nothing_lost()?;
    ensure!(!unbind.is_finished(), "the lane let go of {address} by itself");
    scene.control.daemon.ok(&["port", "remove", "vm"])?;
    wait::until(LIMIT, "the kernel to have the VF", || Ok(unbind.is_finished().then_some(())))?;
    unbind.join().map_err(|_| anyhow::anyhow!("the thread that unbinds panicked"))??;
    fs::write("/sys/bus/pci/drivers_probe", &address)?;
    wait::until(LIMIT, "vfio-pci to have it again", || {
        Ok((scene.vfs[sends].driver().as_deref() == Some("vfio-pci")).then_some(()))
    })?;
    add_port(&mut scene.control, &scene.vfs)?;
    scene.answers()
}
