//! A lane's keeper: one thread that adopts the lane or starts it, applies its ports, notices its end, and begins again.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ringspan_protocol::{LaneInfo, Request};

use super::client::{Connected, Greeting, LaneClient, NotConnected, QUICK};
use super::lane::{Lane, LanePhase, LaneState, Order, lock};
use super::process::{Process, lane_program};
use super::reconcile::reconcile;
use super::watch_events::watch_events;
use crate::config::{HugePages, LaneSettings};
use crate::control::{Daemon, EventKind, spawn};
use crate::error::{Error, ErrorKind};

/// How long a new lane may take until it listens: zeroing hugepages takes its time, a minute for some hundred GiB, and more where the machine is busy. One that is
/// killed too early begins with the first page again.
const START_LIMIT: Duration = Duration::from_secs(300);
/// How long a lane may take to shut down before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long a lane may take until it is up again: asked to shut down, killed where it does not, and started.
pub(crate) const RESTART_LIMIT: Duration = STOP_LIMIT.saturating_mul(2).saturating_add(START_LIMIT);
/// A life shorter than this counts as one more failure in a row.
const SHORT_LIFE: Duration = Duration::from_secs(5);
/// The first and the longest pause before a lane that failed is started again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How often what a lane refused is tried again, first and at most.
const RETRIES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A lane that runs, and the process behind it.
struct Running {
    connected: Connected,
    process: Process,
    adopted: bool,
}

/// What was found, or made of it.
enum Found {
    Running(Box<Running>),
    /// It does not run, and nothing needs it.
    Unneeded,
    /// It does not run, and is not to.
    Stopped,
    /// It was ordered about while it started: begin anew.
    Ordered,
}

/// How a life ended.
enum End {
    Died(String),
    Restarted,
    Stopped,
    Left,
}

/// The keeper of one lane; returns when the lane was stopped, or is to be left alone.
pub(crate) fn keep(lane: Arc<Lane>, daemon: Arc<Daemon>) {
    let mut failures = 0u32;
    loop {
        if order(&lane) == Order::Leave {
            return;
        }
        let born = Instant::now();
        let running = match find_or_start(&lane, &daemon) {
            Ok(Found::Running(running)) => *running,
            Ok(Found::Ordered) => continue,
            Ok(Found::Stopped) => return set_phase(&lane, LanePhase::Stopped, None),
            Ok(Found::Unneeded) => {
                wait_until_needed(&lane);
                continue;
            }
            Err(_) if order(&lane) == Order::Leave => return,
            Err(error) => {
                let repeated = lock(&lane.state).reason.as_ref() == Some(&error.message);
                if !repeated {
                    tracing::error!(lane = %lane.name, "not started: {error}");
                    daemon.events.tell(
                        Some(&lane.name),
                        None,
                        EventKind::LaneStartFailed { reason: error.message.clone() },
                    );
                }
                set_phase(&lane, LanePhase::Waiting, Some(error.message));
                failures += 1;
                pause(&lane, failures);
                continue;
            }
        };
        let end = live(&lane, &daemon, running);
        lane.disconnected();
        match end {
            End::Left => return,
            End::Stopped => {
                set_phase(&lane, LanePhase::Stopped, None);
                return daemon.events.tell(Some(&lane.name), None, EventKind::LaneStopped);
            }
            End::Restarted => {
                {
                    let mut state = lock(&lane.state);
                    (state.order, state.asked) = (Order::Keep, true);
                }
                set_phase(&lane, LanePhase::Starting, None);
                failures = 0;
            }
            End::Died(reason) => {
                let pid = {
                    let mut state = lock(&lane.state);
                    state.deaths += 1;
                    std::mem::take(&mut state.pid)
                };
                tracing::error!(lane = %lane.name, pid, "the lane died: {reason}");
                daemon.events.tell(Some(&lane.name), None, EventKind::LaneDied { pid, reason: reason.clone() });
                failures = if born.elapsed() < SHORT_LIFE { failures + 1 } else { 0 };
                if failures > 1 {
                    set_phase(&lane, LanePhase::Waiting, Some(reason));
                    pause(&lane, failures - 1);
                }
                set_phase(&lane, LanePhase::Starting, None);
            }
        }
    }
}

fn order(lane: &Lane) -> Order {
    lock(&lane.state).order
}

fn set_phase(lane: &Lane, phase: LanePhase, reason: Option<String>) {
    {
        let mut state = lock(&lane.state);
        state.phase = phase;
        state.reason = reason;
        if phase != LanePhase::Up && phase != LanePhase::OtherVersion {
            state.pid = 0;
        }
    }
    lane.changed.notify_all();
}

/// Leaves the lane alone until something is wanted on it, or it is ordered about. Why it did not start before, when it did not, stays said.
fn wait_until_needed(lane: &Lane) {
    let reason = lock(&lane.state).reason.clone();
    set_phase(lane, LanePhase::Idle, reason);
    let called = |state: &LaneState| state.phase != LanePhase::Idle || state.order != Order::Keep;
    while !lane.wait_for(Duration::from_secs(3600), called) {}
    let mut state = lock(&lane.state);
    if state.phase == LanePhase::Idle {
        state.phase = LanePhase::Starting;
    }
}

/// Waits before another attempt, longer each time; an order ends it.
fn pause(lane: &Lane, failures: u32) {
    let (first, longest) = PAUSES;
    let length = first.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(longest);
    lane.wait_for(length, |state| state.order != Order::Keep);
}

fn find_or_start(lane: &Lane, daemon: &Daemon) -> Result<Found, Error> {
    match LaneClient::connect(&lane.socket()) {
        Ok(connected) => {
            let process = Process::adopt(connected.pid, &lane.run_dir, &lane.name);
            return Ok(Found::Running(Box::new(Running { connected, process, adopted: true })));
        }
        Err(NotConnected::Nobody(_)) => {}
        Err(NotConnected::Stuck(pid, reason)) => {
            // It may still move packets, so it is ended only when somebody asks for that.
            if order(lane) == Order::Keep {
                let name = &lane.name;
                let message = format!(
                    "process {pid} listens as lane {name} and does not answer ({reason}): run ringspan lane restart {name}"
                );
                return Err(Error::new(ErrorKind::LaneDown, message));
            }
            let mut process = Process::adopt(pid, &lane.run_dir, &lane.name);
            process.kill();
            process.wait(STOP_LIMIT);
        }
    }
    let (restart, asked) = {
        let mut state = lock(&lane.state);
        let (restart, mut asked) = (state.order != Order::Stop, std::mem::take(&mut state.asked));
        if state.order == Order::Restart {
            (state.order, asked) = (Order::Keep, true);
        }
        (restart, asked)
    };
    match lane.settings().or_else(|| as_it_ran(lane)).filter(|_| restart) {
        // Cores and hugepages are taken when there is somebody to have them.
        Some(_) if !asked && !daemon.needs(&lane.name) => Ok(Found::Unneeded),
        Some(settings) => start(lane, daemon, &settings),
        None => Ok(Found::Stopped),
    }
}

/// A lane that the file does not have any more is started again as it last ran, as long as it has ports.
fn as_it_ran(lane: &Lane) -> Option<LaneSettings> {
    let info = lock(&lane.state).info.clone()?;
    Some(LaneSettings {
        name: info.name,
        cores: info.cores,
        memory_mib: info.memory_mib,
        rebalance_ms: info.rebalance_ms,
        busy_poll: info.busy_poll,
        huge_pages: if info.huge_pages { HugePages::Auto } else { HugePages::Off },
    })
}

fn start(lane: &Lane, daemon: &Daemon, settings: &LaneSettings) -> Result<Found, Error> {
    let (program, log) = daemon.lane_program();
    let program = lane_program(program.as_deref())?;
    let mut process = Process::start(&program, &lane.run_dir, settings, log)?;
    tracing::info!(lane = %lane.name, pid = process.pid, "starting {}", program.display());
    let until = Instant::now() + START_LIMIT;
    let mut step = Duration::from_millis(2);
    loop {
        match LaneClient::connect(&lane.socket()) {
            Ok(connected) if connected.pid == process.pid => {
                return Ok(Found::Running(Box::new(Running { connected, process, adopted: false })));
            }
            // Another process has the socket: ours will find the lane's lock taken, and end.
            Ok(_) | Err(_) => {}
        }
        if let Some(how) = process.wait(step) {
            let words = process.last_words();
            let words = if words.is_empty() { "see the journal".into() } else { words };
            let message = format!("lane {}: the program ended at once ({how}): {words}", lane.name);
            return Err(Error::new(ErrorKind::LaneDown, message));
        }
        let ordered = order(lane);
        if ordered == Order::Leave {
            return Err(Error::new(ErrorKind::Cancelled, "the daemon ends; the next one finds the lane"));
        }
        if Instant::now() > until || ordered != Order::Keep {
            process.kill();
            process.wait(STOP_LIMIT);
            if ordered != Order::Keep {
                return Ok(Found::Ordered);
            }
            let seconds = START_LIMIT.as_secs();
            let message = format!("lane {}: it did not listen within {seconds} s: {}", lane.name, process.last_words());
            return Err(Error::new(ErrorKind::LaneDown, message));
        }
        step = (step * 2).min(Duration::from_millis(20));
    }
}

/// One life of the lane, from its first answer to its end.
fn live(lane: &Arc<Lane>, daemon: &Arc<Daemon>, running: Running) -> End {
    let Running { connected, mut process, adopted } = running;
    let pid = process.pid;
    let fits = match connected.greeting {
        Greeting::Fits(info) => {
            up(lane, daemon, connected.client, info, pid, adopted);
            true
        }
        Greeting::OtherVersion(reason) => {
            lock(&lane.state).pid = pid;
            set_phase(lane, LanePhase::OtherVersion, Some(reason.clone()));
            tracing::warn!(lane = %lane.name, pid, "adopted, but {reason}");
            daemon.events.tell(Some(&lane.name), None, EventKind::LaneOtherVersion { pid, reason });
            false
        }
    };
    watch(lane, daemon, &mut process, fits)
}

fn up(lane: &Arc<Lane>, daemon: &Arc<Daemon>, mut client: LaneClient, info: LaneInfo, pid: i32, adopted: bool) {
    let started_ms = info.started_ms;
    let differs = lane.settings().and_then(|settings| settings.differences(&info));
    // Held until the ports are applied, so that a change that arrives now comes after them.
    let mut change = lane.hold_change();
    let life = {
        let mut state = lock(&lane.state);
        state.phase = LanePhase::Up;
        state.reason = None;
        state.pid = pid;
        state.adopted = adopted;
        state.lives += 1;
        state.silent = None;
        state.info = Some(info.clone());
        state.lives
    };
    lane.changed.notify_all();
    let kind = match adopted {
        true => EventKind::LaneAdopted { pid, version: info.version },
        false => EventKind::LaneStarted { pid, version: info.version },
    };
    tracing::info!(lane = %lane.name, pid, "{}", if adopted { "adopted" } else { "started" });
    daemon.events.tell(Some(&lane.name), None, kind);
    if let Some(message) = differs {
        tracing::warn!(lane = %lane.name, "{message}");
        daemon.events.tell(Some(&lane.name), None, EventKind::LaneDiffers { message });
    }
    let (events_lane, events_daemon) = (Arc::clone(lane), Arc::clone(daemon));
    spawn(format!("events-{}", lane.name), move || watch_events(&events_lane, &events_daemon, life, started_ms));
    match reconcile(lane, &mut client, daemon) {
        Ok(()) => *change = Some(client),
        Err(error) => {
            tracing::warn!(lane = %lane.name, "its ports were not all applied: {error}");
            *change = None;
        }
    }
}

/// Whether the lane is connected and refused nothing.
fn is_settled(lane: &Lane) -> bool {
    lane.is_connected() && {
        let state = lock(&lane.state);
        state.refused.is_empty() && state.refused_nics.is_empty()
    }
}

/// When what was refused is tried again: later each time.
struct Retry {
    pause: Duration,
    at: Instant,
}

impl Retry {
    fn new() -> Self {
        Self { pause: RETRIES.0, at: Instant::now() + RETRIES.0 }
    }

    fn is_due(&self) -> bool {
        Instant::now() >= self.at
    }

    fn later(&mut self) {
        self.at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(RETRIES.1);
    }

    fn left(&self) -> PollTimeout {
        let left = self.at.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }
}

/// Waits for the lane's end, or an order; applies what changes meanwhile.
fn watch(lane: &Arc<Lane>, daemon: &Arc<Daemon>, process: &mut Process, fits: bool) -> End {
    let mut retry = Retry::new();
    loop {
        if let Some(how) = process.ended() {
            let words = process.last_words();
            return End::Died(if words.is_empty() { how } else { format!("{how}: {words}") });
        }
        match order(lane) {
            Order::Keep => {}
            Order::Leave => return End::Left,
            Order::Restart => return shut_down(lane, process).map_or(End::Restarted, End::Died),
            Order::Stop => return shut_down(lane, process).map_or(End::Stopped, End::Died),
        }
        let asked = std::mem::take(&mut lock(&lane.state).look_again);
        if asked || is_settled(lane) {
            retry = Retry::new();
        }
        if fits && (asked || !is_settled(lane) && retry.is_due()) {
            apply(lane, daemon);
            retry.later();
        }
        let timeout = match &process.pidfd {
            _ if fits && !is_settled(lane) => retry.left(),
            Some(_) => PollTimeout::NONE,
            None => PollTimeout::from(500u16),
        };
        let mut fds = vec![PollFd::new(lane.wake.as_fd(), PollFlags::POLLIN)];
        fds.extend(process.pidfd.as_ref().map(|pidfd| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)));
        let _ = poll(&mut fds, timeout);
        let _ = lane.wake.read();
    }
}

/// Compares and applies once more, over a new connection where the old one broke.
pub(crate) fn apply(lane: &Lane, daemon: &Daemon) {
    let mut change = lane.hold_change();
    if change.is_none() {
        match LaneClient::connect(&lane.socket()) {
            Ok(connected) => *change = Some(connected.client),
            Err(error) => {
                tracing::warn!(lane = %lane.name, "{}", Error::from(error).message);
                return;
            }
        }
    }
    if let Some(client) = change.as_mut()
        && let Err(error) = reconcile(lane, client, daemon)
    {
        tracing::warn!(lane = %lane.name, "its ports were not all applied: {error}");
        *change = None;
    }
}

/// Ends the lane: asked first, killed when it does not. The value is why it could not be ended.
fn shut_down(lane: &Lane, process: &mut Process) -> Option<String> {
    let asked = {
        let client = match lane.take_change() {
            Some(client) => Some(client),
            None => LaneClient::connect(&lane.socket()).ok().map(|connected| connected.client),
        };
        client.is_some_and(|mut client| client.call(Request::Shutdown, QUICK).is_ok())
    };
    if asked && process.wait(STOP_LIMIT).is_some() {
        return None;
    }
    tracing::warn!(lane = %lane.name, pid = process.pid, "it did not shut down: killed");
    process.kill();
    match process.wait(STOP_LIMIT) {
        Some(_) => None,
        None => Some(format!("process {} cannot be killed", process.pid)),
    }
}
