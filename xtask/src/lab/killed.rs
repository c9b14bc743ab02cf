//! A daemon that is killed amid a change of a real NIC: what was begun is finished or taken back by the next one, and nothing is left half-done.

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_testkit::daemon::Daemon;
use ringspan_testkit::pci::Function;
use ringspan_testkit::wait;

use super::FIRST;
use super::control::{CONFIGURATION, Control, LIMIT, tool};

type Check = (&'static str, fn(&mut Control) -> Result<()>);

/// Each with two VFs that igbvf has.
const CHECKS: &[Check] = &[
    ("a daemon is killed amid a change of the number of VFs, and the next one makes all of them", number),
    ("a daemon is killed while a VF changes its driver, and the next one gives it to that driver", driver),
    ("a daemon is killed while a VF is handed over, and the next one hands it over or takes it back", handed_over),
];
const MAC: &str = "52:54:00:aa:06:06";
const NO_MAC: &str = "00:00:00:00:00:00";
/// When it is killed after it was asked: a change takes a second or two here.
const AFTER: [u64; 7] = [0, 20, 60, 150, 400, 900, 1800];

/// Runs the checks whose names contain `only`. Returns how many passed.
pub fn run(story: &mut fs::File, only: &str) -> Result<u32> {
    let mut done = 0;
    for (name, check) in CHECKS.iter().filter(|(name, _)| name.contains(only)) {
        let start = Instant::now();
        writeln!(story, "--> {name}")?;
        let interface = wait::until(LIMIT, "the PF's interface", || Ok(Function::at(FIRST)?.interface()))?;
        let mut control = Control { daemon: Daemon::start(CONFIGURATION, None)?, interface, story };
        let pf = control.interface.clone();
        control.done(&["vf", "enable", &pf, "2"])?;
        check(&mut control).with_context(|| format!("{name}\n{}", control.daemon.story()))?;
        control.done(&["vf", "enable", &pf, "0", "--disturb"])?;
        writeln!(control.story, "    {:.1} s", start.elapsed().as_secs_f64())?;
        done += 1;
    }
    Ok(done)
}

/// Asks for something, kills the daemon so many milliseconds later, starts another one, and waits until that has finished. Returns how it was found.
pub(super) fn killed(control: &mut Control, words: &[&str], after: u64) -> Result<Option<String>> {
    let mut command = control.daemon.command(words);
    let mut asking = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let written = control.daemon.path("state/host.json");
    let begun = || fs::read_to_string(&written).is_ok_and(|text| text.contains("\"begun\""));
    // From when it is written down that it begins, unless it is over by then.
    wait::until(LIMIT, "the change to begin", || {
        Ok((begun() || asking.try_wait()?.is_some() || after == 0).then_some(()))
    })?;
    wait::pause(Duration::from_millis(after))?;
    control.daemon.kill()?;
    asking.wait()?;
    let amid = begun();
    control.daemon.start_again()?;
    wait::until(LIMIT, "what was begun to be finished", || Ok((!begun()).then_some(())))?;
    if !amid {
        return Ok(None);
    }
    let told = wait::until(LIMIT, "an event of it", || {
        let events = control.daemon.ok(&["events", "--json"])?;
        Ok(events.lines().find(|line| line.contains("host-finished")).map(str::to_owned))
    })?;
    ensure!(!told.contains("\"error\""), "after {after} ms: {told}");
    Ok(Some(told))
}

fn vf(number: u32) -> Result<Function> {
    let link = fs::read_link(format!("/sys/bus/pci/devices/{FIRST}/virtfn{number}"))?;
    Function::at(&link.file_name().context("a VF's link")?.to_string_lossy())
}

fn count() -> Result<u32> {
    Ok(fs::read_to_string(format!("/sys/bus/pci/devices/{FIRST}/sriov_numvfs"))?.trim().parse()?)
}

/// Notes that a change was killed, and what the next daemon said.
fn note(control: &mut Control, after: u64, told: Option<&str>, now: &str) -> Result<()> {
    let how = told.map_or("not begun, or over", |_| "amid, finished by the next daemon");
    Ok(writeln!(control.story, "    killed after {after} ms: {how}: {now}")?)
}

fn number(control: &mut Control) -> Result<()> {
    let pf = control.interface.clone();
    let mut amid = 0;
    for after in AFTER {
        let told = killed(control, &["vf", "enable", &pf, "5"], after)?;
        let now = count()?;
        note(control, after, told.as_deref(), &format!("{now} VFs"))?;
        amid += u32::from(told.is_some());
        ensure!(now == 5 || now == 2 && told.is_none(), "{now} VFs after {after} ms: {told:?}");
        for number in 0..now {
            let vf = vf(number)?;
            wait::until(LIMIT, "the driver of each VF", || Ok(vf.driver().filter(|driver| driver == "igbvf")))
                .with_context(|| vf.address().to_owned())?;
        }
        // As if nothing had been.
        control.done(&["vf", "enable", &pf, "2", "--disturb"])?;
        ensure!(count()? == 2, "{} VFs", count()?);
    }
    ensure!(amid > 0, "it was never killed amid a change");
    Ok(())
}

fn driver(control: &mut Control) -> Result<()> {
    let vf = vf(0)?;
    let address = vf.address().to_owned();
    let mut amid = 0;
    for after in AFTER {
        wait::until(LIMIT, "the VF's driver", || Ok(vf.driver()))?;
        let told = killed(control, &["device", "bind", &address, "vfio-pci"], after)?;
        let now = vf.driver().unwrap_or_default();
        note(control, after, told.as_deref(), &now)?;
        amid += u32::from(told.is_some());
        ensure!(now == "vfio-pci" || now == "igbvf" && told.is_none(), "{now:?} after {after} ms: {told:?}");
        // What it had at first is not forgotten.
        control.done(&["device", "bind", &address, "--restore"])?;
        ensure!(vf.driver().as_deref() == Some("igbvf"), "{:?}", vf.driver());
        let forced = fs::read_to_string(format!("/sys/bus/pci/devices/{address}/driver_override"))?;
        ensure!(forced.trim() == "(null)", "driver_override is {forced}");
    }
    writeln!(control.story, "    {amid} times amid")?;
    Ok(())
}

/// Attachments have a book of their own.
fn handed_over(control: &mut Control) -> Result<()> {
    let vf = vf(1)?;
    let (pf, address) = (control.interface.clone(), vf.address().to_owned());
    tool("ip", &["link", "set", &pf, "up"])?;
    let mac = || -> Result<String> {
        let text = tool("ip", &["link", "show", &pf])?;
        let line = text.lines().find(|line| line.contains("vf 1 ")).context("no VF 1 in ip link")?;
        let mut words = line.split_whitespace().skip_while(|word| *word != "link/ether");
        Ok(words.nth(1).context("no address of VF 1")?.to_owned())
    };
    let mut whole = 0;
    for after in AFTER {
        wait::until(LIMIT, "the VF's driver", || Ok(vf.driver()))?;
        let before = mac()?;
        let words = ["port", "attach", "inner", "--device", &address, "--mode", "passthrough", "--mac", MAC];
        let mut command = control.daemon.command(&words);
        let mut asking = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let written = control.daemon.path("state/attachments.json");
        wait::until(LIMIT, "the attachment to begin", || {
            let begun = fs::read_to_string(&written).is_ok_and(|text| text.contains("inner"));
            Ok((begun || asking.try_wait()?.is_some() || after == 0).then_some(()))
        })?;
        wait::pause(Duration::from_millis(after))?;
        control.daemon.kill()?;
        asking.wait()?;
        control.daemon.start_again()?;
        let attached = wait::until(LIMIT, "all or nothing of it", || {
            let list = control.json(&["attachment", "list"])?;
            let list = list.as_array().context("a list")?;
            Ok(list.iter().all(|one| one["stage"] == "attached").then_some(list.len()))
        })?;
        let (has, now) = (vf.driver().unwrap_or_default(), mac()?);
        writeln!(control.story, "    killed after {after} ms: {attached} attached, {has}, {now}")?;
        let expected = if attached == 1 { ("vfio-pci", MAC.to_owned()) } else { ("igbvf", before.clone()) };
        ensure!((has.as_str(), now.clone()) == expected, "{has}, {now}: {expected:?} was expected");
        whole += attached;
        control.done(&["port", "detach", "inner"])?;
        ensure!(vf.driver().as_deref() == Some("igbvf"), "{:?}", vf.driver());
        let after_all = mac()?;
        ensure!(after_all == before || after_all == NO_MAC, "{after_all}, {before} before");
    }
    ensure!(whole > 0, "it was handed over at no time");
    tool("ip", &["link", "set", &pf, "down"])?;
    Ok(())
}
