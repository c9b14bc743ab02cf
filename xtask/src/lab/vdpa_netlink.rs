//! The host's side of vDPA, `ringspan vdpa` and ports on `vdpa:` devices, under a real kernel: beside its own tool, with the simulator, and with QEMU's
//! virtio NIC that vp_vdpa drives.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringspan_testkit::daemon::Daemon;
use ringspan_testkit::far_end::FarEnd;
use ringspan_testkit::guest::crossing::{self, End, Ways};
use ringspan_testkit::guest::loopback::{ETHERTYPE, Plan};
use ringspan_testkit::guest::{Guest, Options};
use ringspan_testkit::netns::Netns;
use ringspan_testkit::pci::Function;
use ringspan_testkit::wait::{self, Finished};
use serde_json::Value;

use super::control::tool;
use super::doctor;
use super::vdpa::{FAR, MODULES, NIC, RING, interface};

type Check = (&'static str, fn(&mut Scene) -> Result<()>);

/// In this order: a check finds what the one before it left.
const CHECKS: &[Check] = &[
    ("vdpa netlink: what a port on a vDPA device misses is found, and is there after the pasted remedy (vdpa)", missed),
    ("vdpa netlink: what is not loaded is named", not_loaded),
    ("vdpa netlink: management devices are listed as the kernel's own tool lists them", listed),
    ("vdpa netlink: a device is made as it is wanted, once, and taken away", made),
    ("vdpa netlink: a device that virtio_vdpa has is taken from there and given back", given_back),
    ("vdpa netlink: what cannot be is refused, with what to do", refusals),
    ("vdpa netlink: a port has a device of its own, and packets flow", port),
    ("vdpa netlink: a port's device that somebody takes away is made anew", made_anew),
    ("vdpa netlink: a daemon killed between the device and the port leaves neither", killed),
];
/// What [`not_loaded`] loads, in this order, and what it needs of the kernel's own.
const LOADED: [&str; 7] = ["vdpa", "vringh", "vhost_vdpa", "vp_vdpa", "virtio_vdpa", "vdpa_sim", "vdpa_sim_net"];
const OWN: [&str; 4] = ["vhost", "vhost_iotlb", "irqbypass", "virtio_pci"];
const CONFIGURATION: &str = "[dataplane]\ncores = [1]\nmemory_mib = 128\n";
const SIMULATOR: &str = "vdpasim_net";
const MAC: &str = "52:54:00:bb:00:07";
const LIMIT: Duration = Duration::from_secs(60);
/// Longest wait for a lane to start.
const LANE: Duration = Duration::from_secs(180);

struct Scene<'a> {
    daemon: Daemon,
    modules: PathBuf,
    story: &'a mut fs::File,
}

/// Whether the name of one of the checks contains `only`.
pub fn is_wanted(only: &str) -> bool {
    CHECKS.iter().any(|(name, _)| name.contains(only))
}

/// Runs all checks when the name of one contains `only`. Returns how many passed.
pub fn run(story: &mut fs::File, only: &str) -> Result<u32> {
    if !is_wanted(only) {
        return Ok(0);
    }
    let modules = PathBuf::from(std::env::var_os(MODULES).context("no kernel modules for vDPA")?);
    let daemon = Daemon::start(CONFIGURATION, None)?;
    let mut scene = Scene { daemon, modules, story };
    for (name, check) in CHECKS {
        let start = Instant::now();
        writeln!(scene.story, "--> {name}")?;
        check(&mut scene).with_context(|| format!("{name}\n{}", scene.daemon.story()))?;
        writeln!(scene.story, "    {:.1} s", start.elapsed().as_secs_f64())?;
    }
    drop(scene);
    // As they were, for who comes after.
    for module in LOADED.iter().rev() {
        tool("rmmod", &[module])?;
    }
    Ok(CHECKS.len() as u32)
}

impl Scene<'_> {
    fn cli(&mut self, words: &[&str]) -> Result<Finished> {
        let finished = self.daemon.cli(words)?;
        if !words.contains(&"--json") {
            let shown = finished.text.trim_end().replace('\n', "\n      ");
            writeln!(self.story, "    $ ringspan {}\n      {shown}", words.join(" "))?;
        }
        Ok(finished)
    }

    fn done(&mut self, words: &[&str]) -> Result<String> {
        self.cli(words)?.success(&format!("ringspan {}", words.join(" ")))
    }

    /// Exit code 1, and all of these in the message.
    fn refused(&mut self, words: &[&str], says: &[&str]) -> Result<()> {
        let finished = self.cli(words)?;
        ensure!(finished.code == 1, "ringspan {}: exit code {}", words.join(" "), finished.code);
        for part in says {
            ensure!(finished.text.contains(part), "ringspan {}: no {part:?} in: {}", words.join(" "), finished.text);
        }
        Ok(())
    }

    fn list(&mut self) -> Result<Value> {
        let text = self.done(&["vdpa", "list", "--stats", "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("ringspan vdpa list: {text}"))
    }

    /// A device as ringspan lists it.
    fn device(&mut self, name: &str) -> Result<Option<Value>> {
        let list = self.list()?;
        Ok(list["devices"].as_array().into_iter().flatten().find(|one| one["name"] == name).cloned())
    }

    fn there(&mut self, name: &str) -> Result<Value> {
        self.device(name)?.with_context(|| format!("there is no {name}"))
    }

    /// What the kernel's own tool lists.
    fn kernels(&mut self) -> Result<Vec<String>> {
        let text = tool("vdpa", &["-j", "dev", "show"])?;
        let all: Value = serde_json::from_str(&text).with_context(|| format!("vdpa dev show: {text}"))?;
        Ok(all["dev"].as_object().map(|devices| devices.keys().cloned().collect()).unwrap_or_default())
    }
}

/// The doctor's check of vDPA, broken.
fn missed(scene: &mut Scene) -> Result<()> {
    doctor::on_vdpa(scene.story, &scene.modules)
}

fn not_loaded(scene: &mut Scene) -> Result<()> {
    for module in OWN {
        tool("modprobe", &[module])?;
    }
    let said = scene.done(&["vdpa", "list"])?;
    ensure!(said.contains("modprobe vdpa"), "{said}");
    scene.refused(&["vdpa", "add", "vd0", NIC], &["this kernel has no vDPA bus", "modprobe vdpa"])?;
    for module in LOADED {
        let file = scene.modules.join(format!("{module}.ko")).display().to_string();
        if module == "vhost_vdpa" {
            scene.refused(&["vdpa", "add", "vd0", NIC], &["is no vDPA management device", "modprobe vp_vdpa"])?;
        }
        tool("insmod", &[&file])?;
    }
    Ok(())
}

fn listed(scene: &mut Scene) -> Result<()> {
    Function::at(NIC)?.bind("vp-vdpa")?;
    let own = tool("vdpa", &["-j", "mgmtdev", "show"])?;
    let own: Value = serde_json::from_str(&own)?;
    let list = scene.list()?;
    scene.done(&["vdpa", "list"])?;
    for name in [format!("pci/{NIC}").as_str(), SIMULATOR] {
        let theirs = &own["mgmtdev"][name];
        let ours = list["management"].as_array().into_iter().flatten().find(|one| one["name"] == name);
        let ours = ours.with_context(|| format!("no {name} in {list}"))?;
        writeln!(scene.story, "    {ours}")?;
        ensure!(ours["classes"] == theirs["supported_classes"], "{ours}, the kernel's tool: {theirs}");
        ensure!(theirs["max_supported_vqs"].is_null() || ours["max_vqs"] == theirs["max_supported_vqs"], "{theirs}");
        ensure!(ours["features"].is_u64() && ours["devices"] == serde_json::json!([]), "{ours}");
    }
    let shown: Value = serde_json::from_str(&scene.done(&["device", "show", NIC, "--json"])?)?;
    ensure!(shown["vdpa"]["devices"] == serde_json::json!([]), "{shown}");
    Ok(())
}

fn made(scene: &mut Scene) -> Result<()> {
    let add = ["vdpa", "add", "vd0", SIMULATOR, "--mac", MAC, "--mtu", "9000"];
    let said = scene.done(&add)?;
    let node = said.lines().last().and_then(|line| line.strip_prefix("vhost-vdpa:")).context("no node")?.to_owned();
    ensure!(Path::new(&node).exists(), "there is no {node}");
    ensure!(scene.kernels()? == ["vd0"], "{:?}", scene.kernels());
    let device = scene.there("vd0")?;
    writeln!(scene.story, "    {device}")?;
    ensure!(device["driver"] == "vhost_vdpa" && device["node"] == node.as_str() && device["made"] == true, "{device}");
    let none = device["statistics"]["problem"].as_str().unwrap_or_default();
    ensure!(none.contains("no statistics") || none.contains("has started the device"), "{device}");
    ensure!(scene.done(&add)?.lines().count() == 1, "it was made twice");
    scene.refused(&["vdpa", "add", "vd0", SIMULATOR, "--mtu", "1400"], &["exists already, with MTU 9000"])?;
    scene.refused(&["vdpa", "add", "vd0", NIC], &["exists already, on vdpasim_net"])?;
    // The kernel lets several of the simulator's be there.
    scene.done(&["vdpa", "add", "vd1", SIMULATOR])?;
    scene.done(&["vdpa", "remove", "vd1"])?;
    scene.done(&["vdpa", "remove", "vd0"])?;
    scene.done(&["vdpa", "remove", "vd0"])?;
    ensure!(scene.kernels()?.is_empty(), "{:?}", scene.kernels());
    Ok(())
}

fn given_back(scene: &mut Scene) -> Result<()> {
    let driver = || fs::read_link("/sys/bus/vdpa/devices/theirs/driver").map(|to| to.display().to_string());
    tool("vdpa", &["dev", "add", "name", "theirs", "mgmtdev", SIMULATOR, "mac", MAC])?;
    if driver().is_ok_and(|driver| driver.ends_with("/vhost_vdpa")) {
        fs::write("/sys/bus/vdpa/drivers/vhost_vdpa/unbind", "theirs")?;
        fs::write("/sys/bus/vdpa/drivers/virtio_vdpa/bind", "theirs")?;
    }
    let theirs = scene.there("theirs")?;
    writeln!(scene.story, "    {theirs}")?;
    ensure!(theirs["driver"] == "virtio_vdpa" && theirs["made"] == false && theirs["mac"] == MAC, "{theirs}");
    let name = theirs["interface"].as_str().context("no interface")?.to_owned();
    scene.refused(
        &["vdpa", "add", "theirs", SIMULATOR, "--mac", "52:54:00:bb:00:08"],
        &["exists already, with MAC address 52:54:00:bb:00:07"],
    )?;
    tool("ip", &["link", "set", &name, "up"])?;
    scene.refused(&["vdpa", "add", "theirs", SIMULATOR], &["is up", "--disturb"])?;
    tool("ip", &["link", "set", &name, "down"])?;
    scene.done(&["vdpa", "add", "theirs", SIMULATOR, "--mac", MAC])?;
    ensure!(driver()?.ends_with("/vhost_vdpa"), "{:?}", driver());
    // Remembered by the next daemon, too.
    scene.daemon.kill()?;
    scene.daemon.start_again()?;
    scene.done(&["vdpa", "remove", "theirs"])?;
    ensure!(driver()?.ends_with("/virtio_vdpa"), "{:?}", driver());
    let left = fs::read_to_string("/sys/bus/vdpa/devices/theirs/driver_override")?;
    ensure!(left.trim() == "(null)", "driver_override is {left}");
    scene.refused(&["vdpa", "remove", "theirs"], &["ringspan did not make it", "--disturb"])?;
    scene.done(&["vdpa", "remove", "theirs", "--disturb"])?;
    ensure!(scene.kernels()?.is_empty(), "{:?}", scene.kernels());
    Ok(())
}

/// A process that has a node open.
struct User(Child);

impl User {
    fn of(node: &str) -> Result<Self> {
        let mut child = Command::new("sh")
            .args(["-c", &format!("exec 5<>{node}; echo ready; exec sleep 600")])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(child.stdout.take().context("no output")?),
            &mut line,
        )?;
        ensure!(line.trim() == "ready", "{node} cannot be opened");
        Ok(Self(child))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn refusals(scene: &mut Scene) -> Result<()> {
    scene.refused(&["vdpa", "add", "vd0", "0000:00:1e.7"], &["no function of a NIC", "there are "])?;
    scene.refused(&["vdpa", "add", "vd0", "vdpasim_blk"], &["modprobe vdpa_sim_blk"])?;
    scene.refused(&["vdpa", "add", "vd0", super::FIRST], &["is no vDPA management device", "igb has it"])?;
    scene.refused(&["vdpa", "add", "a/b", SIMULATOR], &["no name of a vDPA device"])?;
    // The kernel's own words: vp_vdpa lets nothing be chosen.
    scene.refused(
        &["vdpa", "add", "vd0", NIC, "--mac", MAC],
        &["All provided attributes are not supported", "leave it out"],
    )?;
    ensure!(scene.kernels()?.is_empty(), "{:?}", scene.kernels());
    let said = scene.done(&["vdpa", "add", "vd0", NIC])?;
    let node = said.lines().last().and_then(|line| line.strip_prefix("vhost-vdpa:")).context("no node")?.to_owned();
    let user = User::of(&node)?;
    let process = format!("process {}", user.0.id());
    scene.refused(&["vdpa", "remove", "vd0"], &[&process, &node])?;
    scene.refused(&["vdpa", "remove", "vd0", "--disturb"], &[&process, &node])?;
    ensure!(scene.there("vd0")?["process"] == user.0.id(), "another process");
    drop(user);
    scene.done(&["vdpa", "remove", "vd0"])?;
    // Without CAP_NET_ADMIN the kernel refuses, whatever the daemon's user is.
    let pid = scene.daemon.pid()?;
    scene.daemon.terminate()?;
    let mut child = Command::new("setpriv")
        .args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"])
        .arg(std::env::var("RINGSPAN_BIN_DIR").map(PathBuf::from)?.join("ringspan"))
        .arg("serve")
        .arg("--config")
        .arg(scene.daemon.path("ringspan.toml"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let socket = scene.daemon.socket();
    let answers = wait::until(LIMIT, "a daemon without CAP_NET_ADMIN", || {
        Ok(std::os::unix::net::UnixStream::connect(&socket).is_ok().then_some(()))
    });
    let outcome = answers.and_then(|()| scene.refused(&["vdpa", "add", "vd0", SIMULATOR], &["CAP_NET_ADMIN"]));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM)?;
    child.wait()?;
    scene.daemon.start_again()?;
    ensure!(scene.daemon.pid()? != pid, "the daemon is the same");
    outcome
}

fn port(scene: &mut Scene) -> Result<()> {
    let far = wait::until(LIMIT, "the far end's interface", || Ok(interface(FAR)))?;
    let net = Netns::new("vdpanl")?;
    tool("ip", &["link", "set", &far, "netns", net.name()])?;
    net.sysctl(&format!("net.ipv6.conf.{far}.disable_ipv6=1"))?;
    net.ip(&["link", "set", &far, "promisc", "on", "up"])?;
    let end = FarEnd::open(&net, &far, ETHERTYPE)?;
    let device = format!("vdpa:{NIC}");
    // A lane without hugepages that starts on a busy machine takes longer than the command line is waited for.
    fs::write("/proc/sys/vm/nr_hugepages", "100")?;
    let mut start = scene.daemon.command(&["lane", "restart", "main"]);
    wait::run(&mut start, LANE)?.success("ringspan lane restart main")?;
    scene.daemon.add_port("vm", &device, &[])?;
    let made = scene.there("ringspan-vm")?;
    writeln!(scene.story, "    {made}")?;
    ensure!(made["owner"] == "vm" && made["made"] == true, "{made}");
    scene.refused(&["vdpa", "remove", "ringspan-vm"], &["the port vm has it", "ringspan port remove vm"])?;
    scene.refused(&["device", "bind", NIC, "virtio-pci"], &["vm has it"])?;
    // To QEMU a ring at address 0 is one that is not there.
    let socket = scene.daemon.path("vm.sock");
    let options = Options { timeout: LIMIT, ring_size: RING, memory_start: 2 << 20, ..Options::new(socket) };
    let mut guest = Guest::start(options)?;
    let plan = Plan { burst: 16, ..Plan::new(500, 32) };
    scene.daemon.wait_port("vm", "driver-ready", LIMIT)?;
    crossing::run(&mut End::Guest(&mut guest), &mut End::Far(&end), Ways::Both, plan)?;
    let shown: Value = serde_json::from_str(&scene.done(&["port", "show", "vm", "--json"])?)?;
    ensure!(shown["status"]["mode"] == "vdpa" && shown["spec"]["device"] == device.as_str(), "{shown}");
    let used = scene.there("ringspan-vm")?;
    writeln!(scene.story, "    {used}")?;
    ensure!(used["negotiated"].is_u64() && used["mac"] == "52:54:00:bb:00:01", "{used}");
    ensure!(used["statistics"]["problem"] == "its driver has no statistics", "{used}");
    let doctor = scene.cli(&["doctor", "--json"])?;
    // With what it says of its outcome behind it.
    let report = serde_json::Deserializer::from_str(&doctor.text).into_iter::<Value>().next();
    let report = report.context("the doctor said nothing")??;
    let check = report["findings"].as_array().into_iter().flatten().find(|one| one["check"] == "vdpa");
    ensure!(check.is_some_and(|one| one["state"] == "pass"), "{check:?}");
    drop(guest);
    // A daemon that is killed finds its port, with its device.
    scene.daemon.kill()?;
    scene.daemon.start_again()?;
    scene.daemon.wait_port("vm", "listening", LIMIT)?;
    let again = scene.there("ringspan-vm")?;
    ensure!(again["node"] == made["node"] && again["owner"] == "vm", "{again}");
    Ok(())
}

fn made_anew(scene: &mut Scene) -> Result<()> {
    tool("vdpa", &["dev", "del", "ringspan-vm"])?;
    wait::until(LIMIT, "the port's device again", || scene.device("ringspan-vm"))?;
    scene.daemon.wait_port("vm", "listening", LIMIT)?;
    // Its driver goes, and comes back.
    Function::at(NIC)?.bind("virtio-pci")?;
    wait::until(LIMIT, "the port to be refused", || {
        let shown: Value = serde_json::from_str(&scene.done(&["port", "show", "vm", "--json"])?)?;
        let reason = shown["reason"].as_str().unwrap_or_default().to_owned();
        Ok(reason.contains("ringspan device bind").then_some(reason))
    })?;
    Function::at(NIC)?.bind("vp-vdpa")?;
    wait::until(LIMIT, "the port's device after its driver", || scene.device("ringspan-vm"))?;
    scene.done(&["port", "remove", "vm"])?;
    ensure!(scene.kernels()?.is_empty(), "{:?}", scene.kernels());
    Ok(())
}

fn killed(scene: &mut Scene) -> Result<()> {
    // A lane that does not answer holds the port up, so that the device is there and the port is not.
    let lane = scene.daemon.lane_pid("main")?;
    let lane = Pid::from_raw(lane as i32);
    kill(lane, Signal::SIGSTOP)?;
    let socket = scene.daemon.path("late.sock").display().to_string();
    let mut adding =
        scene.daemon.command(&["port", "add", "late", "--socket", &socket, "--device", &format!("vdpa:{NIC}")]);
    let mut adding = adding.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let seen = wait::until(LIMIT, "the device of a port that is not there", || {
        Ok(scene.kernels()?.contains(&"ringspan-late".into()).then_some(()))
    });
    let killed = seen.and_then(|()| scene.daemon.kill());
    kill(lane, Signal::SIGCONT)?;
    adding.wait()?;
    killed?;
    scene.daemon.start_again()?;
    wait::until(LIMIT, "the device of a port that was never there to go", || {
        Ok(scene.kernels()?.is_empty().then_some(()))
    })?;
    let ports = scene.done(&["port", "list", "--json"])?;
    ensure!(!ports.contains("late"), "{ports}");
    Ok(())
}
