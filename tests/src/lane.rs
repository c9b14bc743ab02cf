//! A lane without the daemon: the process, and a client that speaks to it as the daemon does.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringspan_protocol::{
    Compat, Envelope, LaneEvent, LaneEventKind, LaneInfo, PortCounters, PortSpec, PortStatus, QueueCounters, Reply,
    Request, Role, VERSION,
};

/// How long a lane may take to be ready, on an ordinary machine.
const READY: Duration = Duration::from_secs(20);

/// How a lane is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name.
    pub name: String,
    /// Cores of its workers, as on the command line.
    pub cores: String,
    /// Memory for packets in MiB.
    pub memory_mib: u32,
    /// auto, require or off.
    pub huge_pages: String,
    /// The network namespace that it runs in; none is that of the test.
    pub netns: Option<String>,
    /// Further arguments of its command line.
    pub more: Vec<String>,
    /// A program that runs it, such as valgrind, with that one's arguments; it may then take much longer to be ready.
    pub runner: Vec<String>,
    /// How long it may take to be ready without such a program.
    pub ready: Duration,
    /// The lane's program, where it is another version's.
    pub program: Option<PathBuf>,
}

impl Options {
    /// One worker on core 0, 128 MiB, no hugepages: what every machine has.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            cores: "0".into(),
            memory_mib: 128,
            huge_pages: "off".into(),
            netns: None,
            more: vec![],
            runner: vec![],
            ready: READY,
            program: None,
        }
    }
}

/// The conversation with a lane.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    next: u64,
    info: LaneInfo,
}

impl Client {
    /// Connects to a lane's socket and says hello; retries until `timeout` has passed.
    pub fn connect(socket: &Path, timeout: Duration) -> anyhow::Result<Self> {
        let deadline = Instant::now() + timeout;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| format!("no lane at {} within {timeout:?}", socket.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut stream = BufReader::new(stream);
        match exchange(&mut stream, 0, Request::Hello { version: VERSION })? {
            Reply::Hello(info) => Ok(Self { stream, next: 1, info }),
            other => bail!("hello was answered by {other:?}"),
        }
    }

    /// What the lane said of itself.
    pub fn info(&self) -> &LaneInfo {
        &self.info
    }

    /// Asks, and returns the answer; a refusal is an error.
    pub fn ask(&mut self, request: Request) -> anyhow::Result<Reply> {
        let id = self.next;
        self.next += 1;
        match exchange(&mut self.stream, id, request)? {
            Reply::Failed(failure) => Err(failure.into()),
            reply => Ok(reply),
        }
    }
}

fn exchange(stream: &mut BufReader<UnixStream>, id: u64, request: Request) -> anyhow::Result<Reply> {
    let mut line = serde_json::to_string(&Envelope { id, body: request })?;
    line.push('\n');
    stream.get_mut().write_all(line.as_bytes()).context("asking the lane")?;
    line.clear();
    stream.read_line(&mut line).context("waiting for the lane's answer")?;
    ensure!(!line.is_empty(), "the lane closed its socket");
    let answer: Envelope<Reply> = serde_json::from_str(&line).with_context(|| format!("the lane said {line:?}"))?;
    ensure!(answer.id == id, "question {id} got the answer of {}", answer.id);
    Ok(answer.body)
}

/// A running lane and its run directory. It is killed when this is dropped.
#[derive(Debug)]
pub struct Lane {
    options: Options,
    folder: PathBuf,
    child: Option<Child>,
    client: Option<Client>,
    /// Number of the last event that was looked at.
    last_event: u64,
    seen: Vec<LaneEvent>,
}

impl Lane {
    /// Starts a lane in `folder`, its run directory, and waits until it answers.
    pub fn start(options: Options, folder: &Path) -> anyhow::Result<Self> {
        let mut lane = Self { options, folder: folder.into(), child: None, client: None, last_event: 0, seen: vec![] };
        lane.restart()?;
        Ok(lane)
    }

    /// Starts it again after [`Self::kill`]. Its ports are gone: they must be added again.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        ensure!(self.child.is_none(), "lane {} still runs", self.options.name);
        let log = std::fs::File::options().create(true).append(true).open(self.log_path())?;
        let program = match &self.options.program {
            Some(program) => program.clone(),
            None => crate::paths::program("ringspan-lane")?,
        };
        let mut command = match &self.options.netns {
            None => crate::process::under(&self.options.runner, &program),
            Some(name) => crate::netns::command_in(name, program),
        };
        command
            .args(["--name", &self.options.name, "--cores", &self.options.cores, "--log-format", "text"])
            .args(["--memory-mib", &self.options.memory_mib.to_string(), "--huge-pages", &self.options.huge_pages])
            .args(&self.options.more)
            .arg("--run-dir")
            .arg(&self.folder);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // SAFETY: prctl is safe between fork and exec; the process must not outlive the test that started it.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            })
        };
        self.child = Some(command.spawn().context("starting ringspan-lane")?);
        (self.last_event, self.seen) = (0, vec![]);
        let socket = self.folder.join(format!("lane-{}.sock", self.options.name));
        let start = Instant::now();
        let ready = if self.options.runner.is_empty() { self.options.ready } else { 6 * self.options.ready };
        loop {
            match Client::connect(&socket, Duration::from_millis(100)) {
                Ok(client) => self.client = Some(client),
                Err(_) if self.is_alive() && start.elapsed() < ready => continue,
                Err(error) => return Err(error).with_context(|| format!("its log:\n{}", self.log())),
            }
            return Ok(());
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("the lane does not run")?;
        self.client = None;
        kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL)?;
        child.wait()?;
        Ok(())
    }

    /// Whether the process still runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// The conversation with it.
    pub fn client(&mut self) -> anyhow::Result<&mut Client> {
        self.client.as_mut().context("the lane does not run")
    }

    /// A spec of a port with everything at its default, and its socket in the run directory.
    pub fn spec(&self, name: &str, device: &str, queues: u16) -> PortSpec {
        PortSpec {
            name: name.parse().expect("a good port name"),
            socket: self.folder.join(format!("{name}.sock")),
            role: Role::Server,
            device: device.parse().expect("a good device"),
            queues,
            mtu: 1500,
            mac: None,
            promiscuous: Default::default(),
            allmulti: Default::default(),
            socket_owner: None,
            socket_mode: None,
            compat: Compat::LATEST,
            offloads: true,
            zero_copy: Default::default(),
            zero_copy_from: None,
            max_rate: 0,
            mode: Default::default(),
        }
    }

    /// Adds a port.
    pub fn add(&mut self, spec: &PortSpec) -> anyhow::Result<PortStatus> {
        match self.client()?.ask(Request::PortAdd(Box::new(spec.clone())))? {
            Reply::Port(status) => Ok(*status),
            other => bail!("port-add was answered by {other:?}"),
        }
    }

    /// Adds a port with a spec of [`Self::spec`]; the path of its socket.
    pub fn add_port(&mut self, name: &str, device: &str, queues: u16) -> anyhow::Result<PathBuf> {
        let spec = self.spec(name, device, queues);
        self.add(&spec)?;
        Ok(spec.socket)
    }

    /// Removes a port and forgets its counters.
    pub fn remove(&mut self, name: &str) -> anyhow::Result<()> {
        let request = Request::PortRemove { name: name.parse()?, forget: true };
        self.client()?.ask(request).map(drop)
    }

    /// A port as it is now.
    pub fn port(&mut self, name: &str) -> anyhow::Result<PortStatus> {
        match self.client()?.ask(Request::PortList)? {
            Reply::Ports(ports) => ports
                .into_iter()
                .find(|port| port.spec.name.as_str() == name)
                .with_context(|| format!("the lane has no port {name}")),
            other => bail!("port-list was answered by {other:?}"),
        }
    }

    /// The counters of a port.
    pub fn counters(&mut self, name: &str) -> anyhow::Result<PortCounters> {
        match self.client()?.ask(Request::PortStats { name: Some(name.parse()?), extended: false })? {
            Reply::Stats(mut all) if all.len() == 1 => Ok(all.remove(0).1),
            other => bail!("port-stats was answered by {other:?}"),
        }
    }

    /// The sums of a port's counters: from the guest, to the guest.
    pub fn totals(&mut self, name: &str) -> anyhow::Result<(QueueCounters, QueueCounters)> {
        let counters = self.counters(name)?;
        let sum = |queues: &[QueueCounters]| {
            let mut total = QueueCounters::default();
            queues.iter().for_each(|queue| total.add(queue));
            total
        };
        Ok((sum(&counters.from_guest), sum(&counters.to_guest)))
    }

    /// Waits for an event of a port that `wanted` says yes to, among those not returned by an earlier call.
    pub fn wait_event(
        &mut self,
        port: &str,
        timeout: Duration,
        mut wanted: impl FnMut(&LaneEventKind) -> bool,
    ) -> anyhow::Result<LaneEventKind> {
        let deadline = Instant::now() + timeout;
        loop {
            let found = self.seen.iter().position(|event| event.port.as_str() == port && wanted(&event.kind));
            if let Some(at) = found {
                return Ok(self.seen.remove(at).kind);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("port {port}: no such event within {timeout:?}; others: {:?}\nlog:\n{}", self.seen, self.log());
            }
            let wait_ms = (left.as_millis() as u32).clamp(1, 1000);
            match self.ask_events(wait_ms)? {
                events if events.is_empty() => {}
                events => self.seen.extend(events),
            }
        }
    }

    fn ask_events(&mut self, wait_ms: u32) -> anyhow::Result<Vec<LaneEvent>> {
        let after = self.last_event;
        match self.client()?.ask(Request::Events { after, wait_ms })? {
            Reply::Events(events) => {
                self.last_event = events.last().map_or(after, |event| event.sequence);
                Ok(events)
            }
            other => bail!("events was answered by {other:?}"),
        }
    }

    /// Waits until a port's status is as wanted.
    pub fn wait_port(
        &mut self,
        name: &str,
        timeout: Duration,
        mut wanted: impl FnMut(&PortStatus) -> bool,
    ) -> anyhow::Result<PortStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            let status = self.port(name)?;
            if wanted(&status) {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "port {name} is still {status:?} after {timeout:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until a port's summed counters (from the guest, to the guest) are as wanted; the lane counts a moment after it
    /// has moved a burst.
    pub fn wait_totals(
        &mut self,
        name: &str,
        mut wanted: impl FnMut(&QueueCounters, &QueueCounters) -> bool,
    ) -> anyhow::Result<(QueueCounters, QueueCounters)> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let (from_guest, to_guest) = self.totals(name)?;
            if wanted(&from_guest, &to_guest) {
                return Ok((from_guest, to_guest));
            }
            ensure!(Instant::now() < deadline, "port {name}: counters stay at {from_guest:?} {to_guest:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.options.name))
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if self.child.is_some() {
            let _ = self.kill();
        }
    }
}
