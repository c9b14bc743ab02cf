//! Methods about what the agent's files want of this host.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Call, attach, device};
use crate::control::{Daemon, EventKind, locked};
use crate::error::{Error, ErrorKind};
use crate::host::bond::{self, Wish};
use crate::host::conf::{self, Applied, AppliedOutcome, Files, Inventory, Item, Kind, Plan, Settings, Standing};
use crate::host::doctor::{FilesOnly, Host};
use crate::host::steps::wait;
use crate::host::work::Change;

/// Which files the agent reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanOf {
    /// The agent's host.conf, an absolute path.
    pub file: PathBuf,
    /// The common configuration, where host.conf does not name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub common: Option<PathBuf>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Apply {
    /// The agent's host.conf, an absolute path.
    pub file: PathBuf,
    /// The common configuration, where host.conf does not name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub common: Option<PathBuf>,
    /// Changes nothing, and says what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

pub(super) fn apply(call: &mut Call, Apply { file, common, dry_run }: Apply) -> Result<Applied, Error> {
    let files = PlanOf { file, common };
    let plan = plan(call, files.clone())?;
    if dry_run {
        return Ok(conf::apply(plan, true, |_, _| Ok(())));
    }
    call.daemon.carry_out(plan, Some(files), &format!("process {}", call.peer.pid))
}

impl Daemon {
    /// The plan for this host: where the configuration says that its sysfs is.
    pub(super) fn plan_of(&self, params: &PlanOf) -> Result<Plan, Error> {
        let sysfs = locked(&self.config).host.sysfs.clone();
        plan_of(sysfs.parent().unwrap_or(Path::new("/")), params)
    }

    /// Makes the cards what the plan says, one after the other. `who` asked for it. As soon as nobody else changes the host, these files are what it should
    /// be, after each start; also of a daemon that was killed amid it.
    fn carry_out(&self, plan: Plan, files: Option<PlanOf>, who: &str) -> Result<Applied, Error> {
        device::changing(
            self,
            |_| {
                if let Some(PlanOf { file, common }) = files {
                    self.state_dir.change_host(|state| state.applied = Some((file, common)))?;
                }
                Ok(Change::Apply)
            },
            |host| {
                Ok(conf::apply(plan, false, |item, done| {
                    let carried = match item.kind {
                        Kind::VfLag => self.begin_lag(host, item, done),
                        Kind::Sriov | Kind::OvsOffload => {
                            super::bond::with_around(self, |around| conf::carry_out(host, item, around, done))
                        }
                    };
                    for done in done.iter() {
                        tracing::info!("{done}, as {who} asked");
                    }
                    carried
                }))
            },
        )
    }
}

/// Longest wait for the interface of a VF whose driver has just taken it.
const APPEARS: Duration = Duration::from_secs(10);

impl Daemon {
    /// Has a NIC make one switch of a bond that is there. Its members leave for a moment, as they do not have a link while their mode changes either.
    fn begin_lag(&self, host: &crate::host::Host, item: &Item, done: &mut Vec<String>) -> Result<(), Error> {
        let bridges = attach::look_at_ovs(self).as_ref().map(device::bridges_of).unwrap_or_default();
        let devices = crate::host::inventory::Inventory::take(host).devices().into_iter();
        let is_member = |name: &String| item.members.contains(name);
        for vf in devices.filter(|one| one.vf.is_some() && one.pf_interface.as_ref().is_some_and(is_member)) {
            // Nobody asked for it at this moment: a container may have it. One that has just got its driver has no interface yet.
            let user = || attach::seems_used(host, vf.address, Some(&bridges));
            if wait(APPEARS, || user().is_none().then_some(())).is_none()
                && let Some(user) = user()
            {
                let (name, vf) = (&item.interface, &vf.addr);
                let message = format!("{name}: {user} has its VF {vf}, which would be without its driver for a moment");
                return Err(Error::new(ErrorKind::Busy, message).about(name));
            }
        }
        let wish = Wish::lag_of(&item.interface, &item.members);
        let bond = super::bond::with_around(self, |around| bond::create(host, &wish, around))?;
        done.extend(bond.done);
        Ok(())
    }
}

/// How long after the start, and after each attempt, what is refused is tried again, in seconds: after a boot, drivers and bonds may still be on their way.
const AGAIN: [u64; 5] = [1, 3, 10, 30, 60];
/// How often it is looked whether somebody has bound VFs of these cards by `new_id`.
const LOOK: Duration = Duration::from_secs(30);

/// Makes the host what was applied last, after a start of the daemon or of the machine, and then looks for what the agent takes. Ends with the daemon.
pub(crate) fn keep_applied(daemon: &Weak<Daemon>) {
    let mut tries = AGAIN.iter();
    let mut pause = Duration::ZERO;
    if let Some(daemon) = daemon.upgrade() {
        device::finish_left(&daemon);
    }
    let mut told = BTreeSet::new();
    while wait_unless_ended(daemon, pause) {
        let Some(daemon) = daemon.upgrade() else { return };
        device::give_back_left(&daemon);
        let files = daemon.state_dir.load_host().ok().and_then(|state| state.applied);
        let plan = files.map(|(file, common)| daemon.plan_of(&PlanOf { file, common }));
        pause = LOOK;
        match plan {
            // Nothing was applied so far: that may come.
            None => {}
            Some(Err(error)) => {
                if told.insert(error.message.clone()) {
                    tracing::warn!("what was applied to the host is not known: {error}");
                }
                pause = tries.next().map_or(LOOK, |seconds| Duration::from_secs(*seconds));
            }
            Some(Ok(plan)) => {
                for problem in plan.problems.iter().filter(|problem| problem.message.contains(conf::BY_NEW_ID)) {
                    if told.insert(problem.message.clone()) {
                        let message = format!("{}: {}", problem.message, problem.remedy);
                        tracing::warn!("{message}");
                        daemon.events.tell(None, None, EventKind::HostTaken { message });
                    }
                }
                let to_do = plan.items.iter().any(|item| item.standing != Standing::AsWanted);
                // Once all is so, later changes are somebody's wish, not a boot's.
                let Some(next) = tries.next().filter(|_| to_do) else {
                    tries = [].iter();
                    continue;
                };
                match daemon.carry_out(plan, None, "the plan applied last") {
                    Ok(applied) => told_of(&daemon, &applied, tries.len() == 0),
                    Err(error) => tracing::warn!("the host's plan: {error}"),
                }
                pause = Duration::from_secs(*next);
            }
        }
    }
}

fn told_of(daemon: &Daemon, applied: &Applied, last: bool) {
    let refused: Vec<&Error> = applied.items.iter().filter_map(|item| item.error.as_ref()).collect();
    for error in refused.iter().filter(|_| last) {
        tracing::warn!("the host's plan: {error}");
    }
    let changed = applied.items.iter().filter(|item| item.outcome == AppliedOutcome::Changed).count();
    if changed > 0 || last {
        daemon.events.tell(None, None, EventKind::HostApplied { changed, refused: refused.len() });
    }
}

/// False: the daemon is gone, or ends.
fn wait_unless_ended(daemon: &Weak<Daemon>, pause: Duration) -> bool {
    let until = Instant::now() + pause;
    loop {
        match daemon.upgrade() {
            Some(daemon) if !daemon.is_ending() => {}
            _ => return false,
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(Duration::from_millis(100)));
    }
}

pub(super) fn plan(call: &mut Call, params: PlanOf) -> Result<Plan, Error> {
    for path in [Some(&params.file), params.common.as_ref()].into_iter().flatten() {
        // The daemon's folder is not the caller's.
        if !path.is_absolute() {
            let message = format!("{}: give the whole path, from /", path.display());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
    }
    call.daemon.plan_of(&params)
}

/// More than this is no configuration.
const LONGEST: u64 = 1 << 20;

/// Reads a file whose path a client gave, or another file: the daemon, which may read everything, does not wait for a pipe or a device, nor fill
/// its memory.
fn read(path: &Path) -> io::Result<String> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut text = String::new();
    file.take(LONGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {LONGEST} bytes")));
    }
    Ok(text)
}

/// The plan for the machine whose root is there.
pub(crate) fn plan_of(root: &Path, params: &PlanOf) -> Result<Plan, Error> {
    let files = Files { host: params.file.clone(), common: params.common.clone() };
    let settings = Settings::read(&files, &read)?;
    let host = Host::new(root, None, Box::new(FilesOnly));
    Ok(conf::plan(&settings, &Inventory::read(&host, conf::addresses())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_a_bounded_length_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("host.conf");
        std::fs::write(&path, "rack: r1\n").unwrap();
        assert_eq!(read(&path).unwrap(), "rack: r1\n");
        std::fs::write(&path, vec![b'#'; LONGEST as usize + 1]).unwrap();
        assert!(read(&path).is_err());
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for other in [&pipe, Path::new("/dev/zero"), folder.path()] {
            assert!(read(other).is_err(), "{}", other.display());
        }
    }
}
