//! `ringspan-lane`: one DPDK process. It is started by `ringspan serve` and outlives it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use crossbeam::channel::Receiver;
use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use ringspan_dataplane::events::now_ms;
use ringspan_dataplane::lane::{Balancer, Lane, Links, MONITOR_PERIOD, serve};
use ringspan_dataplane::nic::{Eal, EalConfig, HugePages};
use ringspan_dataplane::relay::Fault;
use ringspan_dataplane::worker::{Nodes, WATCHDOG_PERIOD, Worker};
use ringspan_protocol::{LaneInfo, LaneName, VERSION};

/// How often the load is measured when nothing is to be moved.
const MEASURED: Duration = Duration::from_secs(1);

/// One DPDK process of ringspan: vhost-user sessions, workers and devices.
#[derive(Parser)]
#[command(name = "ringspan-lane", version)]
struct Arguments {
    /// Name of the lane.
    #[arg(long)]
    name: LaneName,
    /// Folder of the lane's socket, lock and journals.
    #[arg(long)]
    run_dir: PathBuf,
    /// Cores of the workers, one each.
    #[arg(long, value_delimiter = ',', required = true)]
    cores: Vec<u16>,
    /// How often the workers' loads are compared, in milliseconds; 0: queue pairs stay where they are.
    #[arg(long, default_value_t = 1000)]
    rebalance_ms: u32,
    /// The workers spin when there is nothing to do.
    #[arg(long)]
    busy_poll: bool,
    /// Memory for packets in MiB.
    #[arg(long, default_value_t = 256)]
    memory_mib: u32,
    /// Whether that memory is in hugepages.
    #[arg(long, value_enum, default_value = "auto")]
    huge_pages: Pages,
    /// How the log on standard error is written.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum Pages {
    Auto,
    Require,
    Off,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log_to_stderr(arguments.log_format);
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("lane {}: {error:#}", arguments.name);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { name, run_dir, cores, memory_mib, .. } = arguments;
    // Before any thread exists, so that each inherits it: these two are taken by `await_end` alone.
    let mut end = SigSet::empty();
    end.add(Signal::SIGTERM);
    end.add(Signal::SIGINT);
    end.thread_block()?;
    abort_on_panic();
    raise_open_files();

    let _lock = lock(run_dir, name)?;
    let journals = run_dir.join("journal");
    let private_dir = run_dir.join(format!("lane-{name}.private"));
    for dir in [&journals, &private_dir] {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
    }
    leave_worker_cores(cores)?;
    let huge_pages = match arguments.huge_pages {
        Pages::Auto => HugePages::Auto,
        Pages::Require => HugePages::Require,
        Pages::Off => HugePages::Off,
    };
    let nodes = Nodes::of_this_machine();
    let near = cores.first().copied().filter(|core| nodes.of(*core).is_some());
    let eal = Eal::start(&EalConfig { name: name.to_string(), memory_mib: *memory_mib, near, huge_pages })?;
    let info = LaneInfo {
        name: name.clone(),
        protocol: VERSION,
        version: env!("CARGO_PKG_VERSION").into(),
        dpdk: eal.dpdk_version(),
        pid: std::process::id(),
        started_ms: now_ms(),
        cores: cores.clone(),
        rebalance_ms: arguments.rebalance_ms,
        busy_poll: arguments.busy_poll,
        memory_mib: *memory_mib,
        huge_pages: eal.huge_pages(),
        max_ports: eal.max_ports(),
    };
    let workers =
        cores.iter().map(|&core| Worker::start(core, eal, arguments.busy_poll)).collect::<Result<Vec<_>, _>>()?;
    let (lane, ends) = Lane::new(info, workers, &journals, &private_dir);
    let socket = run_dir.join(format!("lane-{name}.sock"));
    let listener = listen(&socket)?;
    start_threads(&lane, arguments, ends.faults, listener)?;
    tracing::info!(lane = %name, socket = %socket.display(), "ready");

    await_end(end, ends.stop)?;
    lane.close();
    // Gone before the process is: who finds the socket finds a lane.
    std::fs::remove_file(&socket).with_context(|| format!("cannot remove {}", socket.display()))?;
    let _ = std::fs::remove_dir_all(&private_dir);
    tracing::info!(lane = %name, "stopped");
    Ok(())
}

fn log_to_stderr(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("RINGSPAN_LOG").unwrap_or_else(|_| "info".into());
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

/// A worker that panicked would leave its ports hanging; a dead lane is started again by control.
fn abort_on_panic() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |what| {
        hook(what);
        std::process::abort();
    }));
}

/// A port with one queue pair holds some 15 descriptors, one with 32 pairs 260: a shell's usual limit of 1024 is 64 small
/// ports, or four large ones.
fn raise_open_files() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        tracing::warn!("cannot raise the limit of open files: {errno}");
    }
}

/// One lane of a name at a time, whatever else happens: the kernel lets go of the lock with the process.
fn lock(run_dir: &Path, name: &LaneName) -> anyhow::Result<Flock<File>> {
    let path = run_dir.join(format!("lane-{name}.lock"));
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::Error::EWOULDBLOCK => {
            anyhow::anyhow!("a lane {name} runs already in {}: stop it, or choose another name", run_dir.display())
        }
        errno => anyhow::anyhow!("cannot lock {}: {errno}", path.display()),
    })
}

/// Keeps this thread, and those it will start, off the workers' cores where there are others.
fn leave_worker_cores(workers: &[u16]) -> anyhow::Result<()> {
    let this = Pid::from_raw(0);
    let mut rest = sched_getaffinity(this)?;
    for &core in workers {
        if !rest.is_set(core.into()).unwrap_or(false) {
            bail!("core {core} is not one that this process may use: see taskset -p {}", std::process::id());
        }
    }
    for &core in workers {
        rest.unset(core.into())?;
    }
    if (0..CpuSet::count()).any(|core| rest.is_set(core).unwrap_or(false)) {
        sched_setaffinity(this, &rest)?;
    }
    Ok(())
}

/// Listens under another name first and renames, so that the socket never exists without somebody behind it.
fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let hidden = path.with_extension("new");
    let _ = std::fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden).with_context(|| format!("cannot listen on {}", hidden.display()))?;
    std::fs::set_permissions(&hidden, PermissionsExt::from_mode(0o600))?;
    std::fs::rename(&hidden, path)
        .with_context(|| format!("cannot rename {} to {}", hidden.display(), path.display()))?;
    Ok(listener)
}

fn start_threads(
    lane: &Arc<Lane>,
    arguments: &Arguments,
    faults: Receiver<Fault>,
    listener: UnixListener,
) -> anyhow::Result<()> {
    let thread = |name: &str| std::thread::Builder::new().name(name.into());
    let reporter = Arc::clone(lane);
    thread("faults").spawn(move || faults.iter().for_each(|fault| reporter.report(&fault)))?;
    let monitor = Arc::clone(lane);
    thread("monitor").spawn(move || {
        let mut links = Links::new();
        loop {
            monitor.monitor(&mut links);
            std::thread::sleep(MONITOR_PERIOD);
        }
    })?;
    let interval = Duration::from_millis(arguments.rebalance_ms.into());
    let interval = if interval.is_zero() { MEASURED } else { interval };
    let measured = Arc::clone(lane);
    thread("balancer").spawn(move || {
        let mut balancer = Balancer::new();
        loop {
            std::thread::sleep(interval);
            balancer.look(&measured);
        }
    })?;
    let mut watchdog = lane.watchdog()?;
    thread("watchdog").spawn(move || {
        loop {
            std::thread::sleep(WATCHDOG_PERIOD);
            watchdog.look();
        }
    })?;
    let server = Arc::clone(lane);
    thread("accept").spawn(move || serve(&server, &listener))?;
    Ok(())
}

/// Returns when control said shutdown, or at SIGTERM or SIGINT.
fn await_end(signals: SigSet, told: Receiver<()>) -> anyhow::Result<()> {
    let (signalled, signal) = crossbeam::channel::bounded(1);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let signal = signals.wait();
        // Nobody listens any more when control was faster.
        let _ = signalled.send(signal);
    })?;
    crossbeam::select! {
        recv(told) -> _ => tracing::info!("told to stop"),
        recv(signal) -> signal => tracing::info!(?signal, "stopping"),
    }
    Ok(())
}
