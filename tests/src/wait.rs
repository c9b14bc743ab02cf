//! Waiting for a condition, with a limit, and running programs with one.

use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static STOPPED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C, SIGTERM and SIGHUP make the next wait in this process an error, so that what was made is taken
/// down by the usual drops instead of being left behind.
pub fn stop_on_signals() -> Result<()> {
    extern "C" fn stop(_: libc::c_int) {
        STOPPED.store(true, Ordering::Relaxed);
    }
    let action = SigAction::new(SigHandler::Handler(stop), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("cannot handle {signal}"))?;
    }
    Ok(())
}

/// A signal asked this process to stop.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("stopped by a signal")]
pub struct Stopped;

/// An error once after a signal to stop; the waits of the cleaning up that follows run as usual.
pub fn check_stopped() -> Result<(), Stopped> {
    if STOPPED.swap(false, Ordering::Relaxed) { Err(Stopped) } else { Ok(()) }
}

/// Lets time pass, where that is the point (traffic that flows, a ping that goes on).
pub fn pause(time: Duration) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < time {
        check_stopped()?;
        std::thread::sleep(Duration::from_millis(10).min(time));
    }
    Ok(())
}

/// Asks `condition` every 10 ms until it gives a value. After `limit` an error says what was waited for.
pub fn until<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition().with_context(|| format!("while waiting for {what}"))? {
            return Ok(value);
        }
        check_stopped()?;
        if start.elapsed() > limit {
            bail!("{what}: not seen within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a finished program said.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Its exit code; 128 + N when signal N ended it.
    pub code: i32,
    /// Standard output, and after it standard error.
    pub text: String,
}

impl Finished {
    /// The text when the exit code is 0, else an error with the code and the text.
    pub fn success(self, what: &str) -> Result<String> {
        if self.code == 0 { Ok(self.text) } else { bail!("{what} ended with {}:\n{}", self.code, self.text.trim_end()) }
    }
}

/// The exit code as a shell would show it.
pub fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// Runs a program to its end, without standard input; after `limit` it is killed and that is an error.
pub fn run(command: &mut Command, limit: Duration) -> Result<Finished> {
    let what = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {what}"))?;
    let out = drain(child.stdout.take().expect("piped"));
    let err = drain(child.stderr.take().expect("piped"));
    let ended = until(limit, &what, || Ok(child.try_wait()?));
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let status = ended?;
    let text = out.join().unwrap_or_default() + &err.join().unwrap_or_default();
    Ok(Finished { code: exit_code(status), text })
}

/// Reads a pipe to its end on a thread of its own, so that a program that says much is not blocked.
fn drain(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
