//! DPDK's own test program, as a back-end to compare with or as a front-end of another make.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Free hugepages of 2 MiB that a testpmd of ours wants to find before it uses any.
const HUGE_PAGES: u64 = 160;

/// How a testpmd is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// A name of its own among everything that runs on the machine.
    pub name: String,
    /// The core of its main thread and of its forwarding thread.
    pub core: usize,
    /// DPDK devices, as after `--vdev`.
    pub devices: Vec<String>,
    /// Arguments of testpmd itself, after `--`.
    pub arguments: Vec<String>,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Whether hugepages are used where there are some.
    pub huge_pages: bool,
    /// A program that runs it, such as valgrind, with that one's arguments; it may then take much longer to be ready.
    pub runner: Vec<String>,
    /// Longest time until its prompt; where a program runs it, six times that.
    pub ready: Duration,
}

impl Options {
    /// One forwarding thread on core 0, 256 MiB.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            core: 0,
            devices: vec![],
            arguments: vec![],
            memory_mib: 256,
            huge_pages: true,
            runner: vec![],
            ready: Duration::from_secs(30),
        }
    }

    /// With one more device.
    pub fn device(mut self, device: impl Into<String>) -> Self {
        self.devices.push(device.into());
        self
    }

    /// With more arguments after `--`.
    pub fn arguments<const N: usize>(mut self, arguments: [&str; N]) -> Self {
        self.arguments.extend(arguments.map(String::from));
        self
    }
}

/// Whether the machine has enough free hugepages for a testpmd.
pub fn huge_pages_free() -> bool {
    let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).is_some_and(|n: u64| n >= HUGE_PAGES)
}

#[derive(Debug, Default)]
struct Output {
    text: Mutex<String>,
    grown: Condvar,
}

/// A running testpmd with its command prompt. It is killed when this is dropped.
#[derive(Debug)]
pub struct Testpmd {
    child: Child,
    stdin: ChildStdin,
    output: Arc<Output>,
    /// Kept apart: otherwise a warning could stand in the middle of the prompt.
    errors: Arc<Output>,
    read: usize,
}

/// Packets of one port as testpmd counted them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortCounts {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets lost because there was no room (`RX-missed`).
    pub rx_missed: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

impl Testpmd {
    /// Starts it and waits for its prompt. Forwarding starts with `start`.
    pub fn start(options: &Options) -> anyhow::Result<Self> {
        // Into a pipe, testpmd's answers would come after its next prompt, or never.
        let mut command = Command::new("stdbuf");
        command
            .arg("-o0")
            .args(&options.runner)
            .arg("dpdk-testpmd")
            .arg("--lcores")
            .arg(format!("0@{0},1@{0}", options.core));
        if options.huge_pages && huge_pages_free() {
            // virtio-user as a front-end may not show more than 8 regions of memory.
            command.args(["--in-memory", "--single-file-segments"]);
        } else {
            command.args(["--no-huge", "--no-shconf"]);
        }
        command.args(["--no-pci", "--no-telemetry", "--iova-mode=va", "-m", &options.memory_mib.to_string()]);
        command.arg(format!("--file-prefix={}", options.name));
        for device in &options.devices {
            command.args(["--vdev", device]);
        }
        command.args(["--", "-i", "--nb-cores=1"]).args(&options.arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: prctl is safe between fork and exec; the process must not outlive the test that started it.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            })
        };
        let mut child = command.spawn().context("starting dpdk-testpmd (Debian package dpdk)")?;
        let (output, errors) = (Arc::new(Output::default()), Arc::new(Output::default()));
        collect(child.stdout.take().context("no standard output")?, &output);
        collect(child.stderr.take().context("no standard error")?, &errors);
        let stdin = child.stdin.take().context("no standard input")?;
        let mut testpmd = Self { child, stdin, output, errors, read: 0 };
        testpmd.wait_for("testpmd>", options.ready * if options.runner.is_empty() { 1 } else { 6 })?;
        Ok(testpmd)
    }

    /// Waits until a text was printed that was not there at the last call.
    pub fn wait_for(&mut self, wanted: &str, timeout: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + timeout;
        let mut text = self.output.text.lock().expect("readers do not panic");
        loop {
            if let Some(at) = text[self.read..].find(wanted) {
                self.read += at + wanted.len();
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.child.try_wait()?.is_some() {
                let errors = self.errors.text.lock().expect("readers do not panic");
                bail!("testpmd did not say {wanted:?} within {timeout:?}; it said:\n{text}\nand:\n{errors}");
            }
            let step = left.min(Duration::from_millis(200));
            (text, _) = self.output.grown.wait_timeout(text, step).expect("readers do not panic");
        }
    }

    /// Runs a command at the prompt and returns what it printed.
    pub fn command(&mut self, command: &str) -> anyhow::Result<String> {
        let start = self.output.text.lock().expect("readers do not panic").len();
        self.read = start;
        writeln!(self.stdin, "{command}")?;
        self.wait_for("testpmd>", Duration::from_secs(20))?;
        Ok(self.output.text.lock().expect("readers do not panic")[start..self.read].to_string())
    }

    /// The counters of a port.
    pub fn counts(&mut self, port: u16) -> anyhow::Result<PortCounts> {
        let text = self.command(&format!("show port stats {port}"))?;
        let value = |name: &str| -> anyhow::Result<u64> {
            let at = text.find(name).with_context(|| format!("no {name} in:\n{text}"))? + name.len();
            let digits: String = text[at..].trim_start().chars().take_while(char::is_ascii_digit).collect();
            digits.parse().with_context(|| format!("{name} of:\n{text}"))
        };
        Ok(PortCounts {
            rx_packets: value("RX-packets:")?,
            rx_missed: value("RX-missed:")?,
            rx_bytes: value("RX-bytes:")?,
            tx_packets: value("TX-packets:")?,
            tx_bytes: value("TX-bytes:")?,
        })
    }

    /// Everything it has printed, errors last.
    pub fn output(&self) -> String {
        let text = |output: &Output| output.text.lock().expect("readers do not panic").clone();
        text(&self.output) + &text(&self.errors)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Appends what a stream says, as it comes; the prompt has no end of line.
fn collect(stream: impl std::io::Read + Send + 'static, output: &Arc<Output>) {
    let output = Arc::clone(output);
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        while let Ok(bytes) = stream.fill_buf() {
            let count = bytes.len();
            if count == 0 {
                break;
            }
            output.text.lock().expect("nobody panics with it").push_str(&String::from_utf8_lossy(bytes));
            stream.consume(count);
            output.grown.notify_all();
        }
    });
}
