//! Restarting ovs-vswitchd, which is done only when somebody asks for it.
//!
//! A service belongs to whoever runs it: systemd is asked for the unit that the process is in, or the configured command is run.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::client::{Place, Process, Switch};
use crate::error::{Error, ErrorKind};

/// Longest time for a restart: the old process ends, the new one answers.
const LIMIT: Duration = Duration::from_secs(60);

/// The running switch's process; nothing while none answers.
pub(crate) fn running(place: &Place) -> Option<Process> {
    let mut switch = Switch::connect(place).ok()?;
    switch.call("version", &[]).ok().map(|_| switch.process)
}

/// Restarts the switch by `command`, or by systemd, and returns the new process when it answers.
pub(crate) fn restart(place: &Place, command: Option<&[String]>) -> Result<u32, Error> {
    let old = running(place);
    let words = match command {
        Some(words) => words.to_vec(),
        None => systemd(old)?,
    };
    let text = words.join(" ");
    let failed =
        |reason: String| Error::new(ErrorKind::Failed, format!("ovs-vswitchd was not restarted: {text}: {reason}"));
    let [program, arguments @ ..] = &words[..] else { return Err(failed("there is no program".into())) };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let until = Instant::now() + LIMIT;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(format!("it did not end within {} s", LIMIT.as_secs())));
            }
            Err(error) => return Err(failed(error.to_string())),
        }
    };
    if !status.success() {
        return Err(failed(format!("it ended with {status}: see the service's log")));
    }
    while Instant::now() < until {
        match running(place) {
            Some(new) if Some(new) != old => return Ok(new.pid),
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    Err(failed(format!("no new process answered within {} s: see its log", LIMIT.as_secs())))
}

/// How systemd restarts the unit that the process is in.
fn systemd(running: Option<Process>) -> Result<Vec<String>, Error> {
    let remedy = "set ovs.restart_command in the configuration file, or restart it by hand";
    let refused = |reason: &str| {
        Error::new(ErrorKind::Unsupported, format!("ovs-vswitchd was not restarted: {reason}: {remedy}"))
    };
    let Process { pid, started } = running.ok_or_else(|| refused("it does not run"))?;
    // Of another host's or container's process only a number is known, which is somebody else's here.
    if started.is_none() {
        return Err(refused("who listens at its control socket is no process of this host's with that name"));
    }
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let unit = unit_of(&groups).filter(|_| Path::new("/run/systemd/system").is_dir());
    let unit = unit.ok_or_else(|| refused(&format!("process {pid} is no service of systemd's")))?;
    Ok(["systemctl", "restart", unit].map(String::from).to_vec())
}

/// The service in a `/proc/PID/cgroup`.
fn unit_of(groups: &str) -> Option<&str> {
    let paths = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.flat_map(|path| path.rsplit('/')).find(|part| part.ends_with(".service"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_of_a_process_is_found_in_its_control_groups() {
        assert_eq!(unit_of("0::/system.slice/ovs-vswitchd.service\n"), Some("ovs-vswitchd.service"));
        let old = "12:cpu:/\n1:name=systemd:/system.slice/openvswitch-switch.service\n";
        assert_eq!(unit_of(old), Some("openvswitch-switch.service"));
        assert_eq!(unit_of("0::/user.slice/session-1.scope\n"), None);
        assert_eq!(unit_of(""), None);
    }
}
