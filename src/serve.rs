//! `ringspan serve`: start, signals, end.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use sd_notify::NotifyState;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, filter::LevelFilter, fmt, reload};

use crate::config::{self, HostCores, LogFormat, LogLevel};
use crate::control::{Daemon, Ending, Listener, spawn};

/// What the main thread waits for.
enum Wake {
    Signal(Signal),
    End(Ending),
}

/// Serves until it is told to end.
pub(crate) fn serve(file: &Path) -> anyhow::Result<()> {
    let cores = HostCores::read();
    let config = config::load(file, &cores)?;
    let set_log = start_log(config.log)?;
    raise_open_files();
    // Blocked before any thread is made, so that all inherit it and only one takes signals.
    let signals: SigSet = [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block()?;
    let (wake, woken) = mpsc::channel();
    let end: Sender<Wake> = wake.clone();
    let control = config.control.clone();
    let daemon = Daemon::new(config, cores, set_log, move |ending| drop(end.send(Wake::End(ending))))?;
    let listener = Listener::bind(&control)?;
    daemon.start();
    let closer = listener.serve(&daemon);
    spawn("signals".into(), move || {
        while let Ok(signal) = signals.wait() {
            if wake.send(Wake::Signal(signal)).is_err() {
                return;
            }
        }
    });
    tracing::info!(socket = %control.socket.display(), "ready");
    notify(&[NotifyState::Ready]);
    let ending = loop {
        match woken.recv() {
            Ok(Wake::Signal(Signal::SIGHUP)) => {
                let daemon = Arc::clone(&daemon);
                spawn("reload".into(), move || reload(&daemon));
            }
            Ok(Wake::Signal(_)) | Err(_) => break Ending::LeaveLanes,
            Ok(Wake::End(ending)) => break ending,
        }
    };
    notify(&[NotifyState::Stopping]);
    tracing::info!("stopping; lanes {}", if ending == Ending::StopLanes { "stop too" } else { "go on" });
    daemon.stop(ending);
    closer.close();
    Ok(())
}

fn reload(daemon: &Arc<Daemon>) {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
    let jobs = Arc::clone(&daemon.jobs);
    match daemon.start_reload() {
        Ok(job) => drop(jobs.wait(job.id, std::time::Duration::from_secs(60))),
        Err(error) => tracing::warn!("SIGHUP: {error}"),
    }
    notify(&[NotifyState::Ready]);
}

/// Every control connection takes descriptors, and the usual soft limit of 1,024 is less than what is allowed.
fn raise_open_files() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        tracing::warn!("the limit on open files stays as it is: {errno}");
    }
}

/// Tells systemd, where there is one.
fn notify(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("sd_notify: {error}");
    }
}

/// Logs to standard error from here on; the value changes how much.
fn start_log(log: config::Log) -> anyhow::Result<impl Fn(LogLevel) + Send + Sync + 'static> {
    let (level, handle) = reload::Layer::<LevelFilter, Registry>::new(log.level.into());
    let registry = tracing_subscriber::registry().with(level);
    let colours = std::io::stderr().is_terminal();
    match log.format {
        LogFormat::Text => {
            registry.with(fmt::layer().with_writer(std::io::stderr).with_ansi(colours).with_target(false)).try_init()?
        }
        LogFormat::Json => registry.with(fmt::layer().json().with_writer(std::io::stderr)).try_init()?,
    }
    Ok(move |level: LogLevel| {
        if let Err(error) = handle.reload(LevelFilter::from(level)) {
            tracing::warn!("log.level: {error}");
        }
    })
}
