//! The lane's process: started so that it outlives the daemon, and watched whoever started it.
//!
//! The only `unsafe` of the lanes' side is here: the child's `setsid` between fork and exec, and pidfd_open, for
//! which the standard library has no call.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringspan_protocol::LaneName;

use crate::config::{LaneSettings, LogFormat};
use crate::error::{Error, ErrorKind};

/// A log file is begun anew when it has become longer than this at a start of its lane, in bytes.
const LOG_LIMIT: u64 = 4 << 20;

/// A running lane process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: i32,
    /// Readable when the process has ended. Absent when it cannot be watched; then the end of the connection tells.
    pub(super) pidfd: Option<OwnedFd>,
    /// Present when it is our child, and must be waited for.
    child: Option<Child>,
    log: Option<LaneLog>,
}

/// The lane's log file, and where in it this life of the lane begins, or what it logged since it was adopted.
#[derive(Debug)]
struct LaneLog {
    path: PathBuf,
    begin: u64,
}

impl Process {
    /// A process that another daemon started.
    pub(super) fn adopt(pid: i32, run_dir: &Path, lane: &LaneName) -> Self {
        let path = log_path(run_dir, lane);
        let log = path.metadata().ok().map(|there| LaneLog { path, begin: there.len() });
        Self { pid, pidfd: pidfd_open(pid).ok(), child: None, log }
    }

    /// Starts the lane program in a session of its own, with nothing of ours open.
    pub(super) fn start(program: &Path, run_dir: &Path, lane: &LaneSettings, log: LogFormat) -> Result<Self, Error> {
        let cores = lane.cores.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        let mut command = Command::new(program);
        command.args(["--name", lane.name.as_str()]).arg("--run-dir").arg(run_dir);
        command.args(["--cores", &cores, "--memory-mib", &lane.memory_mib.to_string()]);
        command.args(["--huge-pages", lane.huge_pages.word(), "--log-format", log.word()]);
        command.args(["--rebalance-ms", &lane.rebalance_ms.to_string()]);
        if lane.busy_poll {
            command.arg("--busy-poll");
        }
        command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID");
        command.stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
        let log = if stderr_is_the_journal() {
            None
        } else {
            let path = log_path(run_dir, &lane.name);
            let (file, begin) = open_log(&path).map_err(|error| Error::io(path.display(), &error))?;
            command.stderr(file);
            Some(LaneLog { path, begin })
        };
        // SAFETY: between fork and exec the closure only calls setsid, which is async-signal-safe, and reads errno;
        // it allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(std::io::Error::from));
        }
        let child = command.spawn().map_err(|error| {
            Error::io(
                format!("the lane program {} cannot be started (set control.lane_program)", program.display()),
                &error,
            )
        })?;
        let pid = child.id() as i32;
        Ok(Self { pid, pidfd: pidfd_open(pid).ok(), child: Some(child), log })
    }

    /// How it ended, when it has. Reaps our own child.
    pub(super) fn ended(&mut self) -> Option<String> {
        if let Some(child) = &mut self.child {
            return match child.try_wait() {
                Ok(Some(status)) => Some(status.to_string()),
                Ok(None) => None,
                Err(error) => Some(error.to_string()),
            };
        }
        let gone = match &self.pidfd {
            Some(pidfd) => readable(pidfd),
            None => kill(Pid::from_raw(self.pid), None).is_err(),
        };
        gone.then(|| "how is not known: an earlier daemon started it".into())
    }

    /// Waits for its end at most `limit`.
    pub(super) fn wait(&mut self, limit: Duration) -> Option<String> {
        let until = std::time::Instant::now() + limit;
        loop {
            if let Some(how) = self.ended() {
                return Some(how);
            }
            let left = until.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return None;
            }
            match &self.pidfd {
                Some(pidfd) => {
                    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
                    let _ = poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout);
                }
                None => std::thread::sleep(left.min(Duration::from_millis(10))),
            }
        }
    }

    /// Ends it at once.
    pub(super) fn kill(&self) {
        if self.pid > 1 {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }

    /// The last lines it logged in this life, newest last; empty when they are in the journal.
    pub(super) fn last_words(&self) -> String {
        let Some(log) = &self.log else { return String::new() };
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&log.path)?;
            let end = file.metadata()?.len();
            file.seek(SeekFrom::Start(log.begin.max(end.saturating_sub(4096))))?;
            let mut bytes = Vec::new();
            file.take(4096).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = read().unwrap_or_default();
        let lines: Vec<_> = text.lines().map(plain).filter(|line| !line.is_empty()).collect();
        lines[lines.len().saturating_sub(3)..].join("; ")
    }
}

/// A line of a log without its time, which would make the same words look new each time.
fn plain(line: &str) -> String {
    if let Ok(line) = serde_json::from_str::<serde_json::Value>(line)
        && let Some(message) = line["fields"]["message"].as_str()
    {
        return message.to_owned();
    }
    let line = line.trim();
    match line.split_once(char::is_whitespace) {
        Some((time, rest))
            if time.ends_with('Z') && time.contains('T') && time.starts_with(|c: char| c.is_ascii_digit()) =>
        {
            rest.trim_start().to_owned()
        }
        _ => line.to_owned(),
    }
}

fn readable(fd: &OwnedFd) -> bool {
    matches!(poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO), Ok(1..))
}

/// A handle of the process that becomes readable when it ends, child or not (pidfd_open(2)).
fn pidfd_open(pid: i32) -> std::io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, close-on-exec, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Whether our standard error is systemd's journal, by the pair of numbers that it leaves in the environment.
/// A journal's stream outlives us; a pipe or terminal would not, and the lane would lose its log.
fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else { return false };
    stream == format!("{}:{}", stderr.dev(), stderr.ino())
}

fn log_path(run_dir: &Path, lane: &LaneName) -> PathBuf {
    run_dir.join(format!("lane-{lane}.log"))
}

fn open_log(path: &Path) -> std::io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
    let mut begin = file.metadata()?.len();
    if begin > LOG_LIMIT {
        file.set_len(0)?;
        begin = 0;
    }
    Ok((file, begin))
}

/// The lane program: as configured, or `RINGSPAN_LANE`, or beside this executable, or where packages put it.
pub(super) fn lane_program(configured: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(path) = configured {
        return Ok(path.to_owned());
    }
    if let Some(path) = std::env::var_os("RINGSPAN_LANE") {
        return Ok(path.into());
    }
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("ringspan-lane")));
    let packaged = PathBuf::from("/usr/libexec/ringspan/ringspan-lane");
    let places: Vec<_> = beside.into_iter().chain([packaged]).collect();
    match places.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(Error::new(
            ErrorKind::NotFound,
            format!("there is no lane program: looked for {places:?}; set control.lane_program or RINGSPAN_LANE"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn last_words_are_told_without_their_time() {
        assert_eq!(plain("2026-11-22T11:28:21.564068Z ERROR no hugepages are free"), "ERROR no hugepages are free");
        let json =
            r#"{"timestamp":"2026-11-22T11:28:21Z","level":"ERROR","fields":{"message":"no hugepages are free"}}"#;
        assert_eq!(plain(json), "no hugepages are free");
        assert_eq!(plain("EAL: Cannot init memory"), "EAL: Cannot init memory");
    }
}
