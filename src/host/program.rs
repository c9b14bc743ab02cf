//! Programs that know what the kernel does not tell, run with a hard limit.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Where programs are, also for users without the superuser's folders in PATH.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// No more of what one prints is kept, in bytes.
const LONGEST: u64 = 1 << 20;
/// How long what a program left open is read on after its end.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How often one that is just being replaced is tried again.
const TRIES: u32 = 50;

/// What a program did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ran {
    /// Whether its exit code was 0.
    pub good: bool,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

/// Why there is nothing of it.
#[derive(Debug)]
pub(crate) enum NotRun {
    /// It is not installed.
    Absent,
    /// It did not end within its time, and was killed.
    TooLong,
    /// It could not be started.
    Failed(io::Error),
}

/// Whether there is such a program.
pub(crate) fn is_there(path: &str, program: &str) -> bool {
    find(path, program).is_some()
}

fn find(path: &str, program: &str) -> Option<std::path::PathBuf> {
    path.split(':').map(|folder| Path::new(folder).join(program)).find(|file| file.is_file())
}

/// Runs a program of those folders, with nothing on its input and no environment of ours. When its time is over it is killed with all that it
/// has started.
pub(crate) fn run(path: &str, program: &str, arguments: &[&str], limit: Duration) -> Result<Ran, NotRun> {
    let found = find(path, program).ok_or(NotRun::Absent)?;
    let mut command = Command::new(found);
    command.args(arguments).env_clear().env("PATH", format!("{path}:{PATH}")).env("LC_ALL", "C").process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).current_dir("/");
    let mut tries = 0;
    let mut child = loop {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < TRIES => {
                tries += 1;
                thread::sleep(Duration::from_millis(10));
            }
            other => break other.map_err(NotRun::Failed)?,
        }
    };
    let until = Instant::now() + limit;
    let group = Pid::from_raw(child.id() as i32);
    // Both pipes are emptied meanwhile, so that the program cannot be stuck on them.
    let (stdout, stderr) = (child.stdout.take().map(reader), child.stderr.take().map(reader));
    let good = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status.success()),
            Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(3)),
            Ok(None) | Err(_) => break None,
        }
    };
    let text = |pipe: Option<Receiver<Vec<u8>>>| collect(pipe, Instant::now() + LAST_WORDS);
    let (stdout, stderr) = match good {
        Some(_) => (text(stdout), text(stderr)),
        None => Default::default(),
    };
    // What it left behind, or it as a whole.
    let _ = killpg(group, Signal::SIGKILL);
    match good {
        Some(good) => Ok(Ran { good, stdout, stderr }),
        None => {
            // One that hangs in the kernel ends when that lets it: nobody waits for it here.
            thread::spawn(move || child.wait());
            Err(NotRun::TooLong)
        }
    }
}

fn reader(pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (send, receive) = channel();
    thread::spawn(move || {
        let mut pipe = pipe.take(LONGEST);
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut chunk) {
            if send.send(chunk[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    receive
}

fn collect(pipe: Option<Receiver<Vec<u8>>>, until: Instant) -> String {
    let mut text = Vec::new();
    while let Some(pipe) = &pipe {
        match pipe.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(chunk) => text.extend(chunk),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_ends_in_its_time_with_all_that_it_started() {
        let long = Duration::from_secs(60);
        let ran = run(PATH, "sh", &["-c", "echo out; echo err >&2; exit 3"], long).unwrap();
        assert_eq!(ran, Ran { good: false, stdout: "out\n".into(), stderr: "err\n".into() });
        assert!(matches!(run(PATH, "no-such-program-of-ours", &[], long), Err(NotRun::Absent)));
        let begun = Instant::now();
        let hangs = run(PATH, "sh", &["-c", "sleep 600 & sleep 600"], Duration::from_millis(50));
        assert!(matches!(hangs, Err(NotRun::TooLong)));
        // One that ends, and leaves somebody who keeps its output open.
        assert_eq!(run(PATH, "sh", &["-c", "sleep 600 & echo done"], long).unwrap().stdout, "done\n");
        assert!(begun.elapsed() < Duration::from_secs(300), "{:?}", begun.elapsed());
    }
}
