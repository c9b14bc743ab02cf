//! What a real kernel answers when something is not allowed or not there, and how `ringspan` tells it: the errno is said, and nothing is half-changed.

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ringspan_testkit::daemon::Daemon;
use ringspan_testkit::pci::Function;
use ringspan_testkit::{paths, wait};

use super::control::{CONFIGURATION, Control, LIMIT, tool};
use super::{FIRST, SECOND, THIRD_MAC};

type Check = (&'static str, fn(&mut Control) -> Result<()>);

/// Each with two VFs of the first NIC, whose interface is the control's.
const CHECKS: &[Check] = &[
    ("answers of the kernel: NICs and VFs are named as lspci names them, an I350's too", names),
    ("answers of the kernel: a /sys that is read-only changes nothing, and says so", read_only),
    ("answers of the kernel: an attribute that is missing is named", missing),
    ("answers of the kernel: who may not is told so, and nothing is half-changed", not_allowed),
];

/// Runs the checks whose names contain `only`. Returns how many passed.
pub fn run(story: &mut fs::File, only: &str) -> Result<u32> {
    let checks: Vec<&Check> = CHECKS.iter().filter(|(name, _)| name.contains(only)).collect();
    if checks.is_empty() {
        return Ok(0);
    }
    let interface = wait::until(LIMIT, "the first NIC's interface", || Ok(Function::at(FIRST)?.interface()))?;
    let daemon = Daemon::start(CONFIGURATION, None)?;
    let mut control = Control { daemon, interface: interface.clone(), story };
    control.done(&["vf", "enable", &interface, "2"])?;
    for (name, check) in &checks {
        let start = Instant::now();
        writeln!(control.story, "--> {name}")?;
        check(&mut control).with_context(|| format!("{name}\n{}", control.daemon.story()))?;
        writeln!(control.story, "    {:.1} s", start.elapsed().as_secs_f64())?;
    }
    control.done(&["vf", "enable", &interface, "0"])?;
    Ok(checks.len() as u32)
}

fn vf(number: u32) -> Result<Function> {
    let link = fs::read_link(format!("/sys/bus/pci/devices/{FIRST}/virtfn{number}"))?;
    Function::at(&link.file_name().context("a VF's link")?.to_string_lossy())
}

/// How many VFs the first NIC has, whoever drives them, and what that is.
fn state() -> Result<String> {
    let read = |path: &str| Ok::<_, std::io::Error>(fs::read_to_string(path)?.trim().to_owned());
    let count = read(&format!("/sys/bus/pci/devices/{FIRST}/sriov_numvfs"))?;
    let (first, second) = (vf(0)?, vf(1)?);
    let of = |vf: &Function| {
        let forced = read(&format!("/sys/bus/pci/devices/{}/driver_override", vf.address()))?;
        Ok::<_, std::io::Error>(format!("{}: {:?}, override {forced}", vf.address(), vf.driver()))
    };
    let links = tool("ip", &["link", "show"])?;
    let vfs: Vec<&str> = links.lines().map(str::trim).filter(|line| line.starts_with("vf ")).collect();
    Ok(format!("{count} VFs; {}; {}; {vfs:?}", of(&first)?, of(&second)?))
}

/// As lspci has it behind the vendor: the name in brackets, or else all of it.
fn by_lspci(address: &str) -> Result<String> {
    let line = tool("lspci", &["-D", "-s", address])?;
    let name = line.split_once("Intel Corporation ").with_context(|| format!("no vendor in: {line}"))?.1;
    let name = name.split(" (rev ").next().unwrap_or(name).trim();
    Ok(name.split_once('[').and_then(|(_, rest)| rest.split(']').next()).unwrap_or(name).to_owned())
}

fn names(control: &mut Control) -> Result<()> {
    let folder = paths::scratch()?;
    let vf = vf(0)?;
    // Of an I350 (drivers/net/ethernet/intel/igb/e1000_hw.h), whose VFs have names of their own.
    for (pf_id, vf_id, expected) in [("", "", "82576"), ("0x1521", "0x1520", "I350")] {
        let mut covered = vec![];
        for (address, id) in [(FIRST, pf_id), (vf.address(), vf_id)] {
            if !id.is_empty() {
                let file = folder.path().join(id);
                fs::write(&file, format!("{id}\n"))?;
                let over = format!("/sys/bus/pci/devices/{address}/device");
                tool("mount", &["--bind", &file.display().to_string(), &over])?;
                covered.push(over);
            }
        }
        let seen = [FIRST, vf.address()].map(|address| {
            let device = control.json(&["device", "show", address])?;
            Ok::<_, anyhow::Error>((device["model"].as_str().unwrap_or_default().to_owned(), by_lspci(address)?))
        });
        for over in covered {
            tool("umount", &[&over])?;
        }
        for one in seen {
            let (ours, theirs) = one?;
            writeln!(control.story, "    {ours}")?;
            ensure!(ours == theirs && ours.contains(expected), "lspci has {theirs:?}, not {ours:?}");
        }
    }
    Ok(())
}

fn read_only(control: &mut Control) -> Result<()> {
    let (before, interface, address) = (state()?, control.interface.clone(), vf(0)?.address().to_owned());
    tool("mount", &["-o", "remount,bind,ro", "/sys"])?;
    let refused = [
        &["vf", "enable", &interface, "0"][..],
        &["vf", "enable", &interface, "4", "--disturb"],
        &["device", "bind", &address, "vfio-pci"],
    ]
    .map(|words| control.refused(words, &["Read-only file system", "os error 30"]));
    tool("mount", &["-o", "remount,bind,rw", "/sys"])?;
    refused.into_iter().collect::<Result<Vec<()>>>()?;
    ensure!(state()? == before, "before: {before}\nafter: {}", state()?);
    control.done(&["device", "bind", &address, "vfio-pci"])?;
    control.done(&["device", "bind", &address, "--restore"])?;
    ensure!(state()? == before, "before: {before}\nafter: {}", state()?);
    Ok(())
}

/// A NIC without SR-IOV has none of its attributes; and where those of another one are taken away, that is said.
fn missing(control: &mut Control) -> Result<()> {
    let links = tool("ip", &["-o", "link", "show"])?;
    let line = links.lines().find(|line| line.contains(THIRD_MAC)).context("the third NIC has no interface")?;
    let third = line.split(": ").nth(1).context("an interface without a name")?.to_owned();
    control.refused(&["vf", "enable", &third, "1"], &[&third, "it has no SR-IOV capability"])?;
    let device = fs::canonicalize(format!("/sys/class/net/{third}/device"))?;
    let address = device.parent().and_then(|parent| parent.file_name()).context("a NIC without a bus")?;
    let address = address.to_string_lossy();
    control.refused(&["vf", "enable", &address, "1"], &[&address, "it has no SR-IOV capability"])?;
    control.refused(&["vf", "set", &third, "0", "--vlan", "5"], &[&third])?;
    control.refused(&["eswitch", "show", &third], &[&third])?;
    control.refused(&["vf", "enable", "lo", "1"], &["lo"])?;
    // Attributes of the second NIC, which are taken away.
    let before = state()?;
    let (folder, whole) = (paths::scratch()?, format!("/sys/bus/pci/devices/{SECOND}"));
    let copy = folder.path().join("function");
    fs::create_dir(&copy)?;
    for name in ["vendor", "device", "class", "subsystem_vendor", "subsystem_device", "numa_node"] {
        fs::copy(format!("{whole}/{name}"), copy.join(name))?;
    }
    tool("mount", &["--bind", &copy.display().to_string(), &whole])?;
    let refused = [
        control.refused(&["vf", "enable", SECOND, "1"], &[SECOND]),
        control.refused(&["device", "bind", SECOND, "vfio-pci"], &[SECOND]),
        control.json(&["device", "list"]).map(drop),
        control.json(&["pf", "list"]).map(drop),
    ];
    tool("umount", &[&whole])?;
    refused.into_iter().collect::<Result<Vec<()>>>()?;
    ensure!(state()? == before, "before: {before}\nafter: {}", state()?);
    Ok(())
}

/// A daemon that nobody gave any rights.
struct Unprivileged(Child);

impl Drop for Unprivileged {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn not_allowed(control: &mut Control) -> Result<()> {
    let (before, interface, address) = (state()?, control.interface.clone(), vf(0)?.address().to_owned());
    let folder = paths::scratch()?;
    let dir = folder.path().display().to_string();
    let file = folder.path().join("ringspan.toml");
    fs::write(
        &file,
        format!(
            "[control]\nsocket = \"{dir}/control.sock\"\nstate_dir = \"{dir}\"\nrun_dir = \"{dir}\"\n{CONFIGURATION}"
        ),
    )?;
    tool("chown", &["-R", "nobody", &dir])?;
    let program = paths::program("ringspan")?;
    let log = fs::File::create(folder.path().join("log"))?;
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--clear-groups"]).arg(&program).args(["serve", "--config"]).arg(&file);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let _daemon = Unprivileged(command.spawn().context("setpriv")?);
    let socket = folder.path().join("control.sock");
    let cli = |words: &[&str]| wait::run(Command::new(&program).args(words).env("RINGSPAN_CONTROL", &socket), LIMIT);
    wait::until(LIMIT, "the daemon without rights", || Ok((cli(&["pf", "list"])?.code == 0).then_some(())))
        .with_context(|| fs::read_to_string(folder.path().join("log")).unwrap_or_default())?;
    tool("ip", &["link", "add", "ansa", "type", "veth", "peer", "name", "ansb"])?;
    let mut outcome = vec![];
    for words in [
        &["vf", "enable", &interface, "0"][..],
        &["vf", "set", &interface, "0", "--mac", "52:54:00:aa:09:09", "--vlan", "7"],
        &["device", "bind", &address, "vfio-pci"],
        &["bond", "create", "ansbond", "ansa", "ansb", "--mode", "1"],
    ] {
        let finished = cli(words)?;
        writeln!(control.story, "    $ ringspan {}\n      {}", words.join(" "), finished.text.trim_end())?;
        let said = ["Permission denied (os error 13)", "Operation not permitted (os error 1)"];
        outcome.push((words.join(" "), finished.code == 1 && said.iter().any(|said| finished.text.contains(said))));
    }
    tool("ip", &["link", "delete", "ansa"])?;
    for (words, good) in outcome {
        ensure!(good, "ringspan {words}: it is not said that it may not");
    }
    ensure!(state()? == before, "before: {before}\nafter: {}", state()?);
    ensure!(!fs::exists("/sys/class/net/ansbond")?, "a bond is left");
    Ok(())
}
