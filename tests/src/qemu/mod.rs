//! A real guest: Debian's kernel in QEMU without hardware virtualisation, with the host's own programs inside.
//!
//! The guest's root is the host's, read-only over 9p, under a layer in memory; so every program of the host can be run in it.
//! Commands go through a serial port of their own ([`Guest::run`]), so that one boot serves many checks.
//! QEMU runs under `timeout`, and whatever happens to the test, it does not outlive its limit.

mod agent;
mod compression;
mod initramfs;
mod kernel;
mod monitor;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

pub use kernel::Kernel;
pub use monitor::{Conversation, Monitor};

use crate::wait::{self, Finished};
use crate::{paths, process};
use agent::Agent;

/// Longest time from the start of QEMU, or from a reset, until the guest takes commands. It is 5 to 15 s on 2 idle cores.
pub const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// What a guest is to have.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    /// Arguments of its NICs, such as `ringspan port qemu-args` prints. Where they name a memory object,
    /// the guest's memory is that; else it is one of the size below.
    pub nics: Vec<String>,
    /// Virtual CPUs.
    pub cpus: u16,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The words that start QEMU, where it is not the machine's own.
    pub qemu: Vec<String>,
    /// Added to the kernel's command line.
    pub kernel: String,
    /// QEMU is ended after this time, whatever happens.
    pub limit: Duration,
    /// Without the host's root: busybox alone is in the guest. Only such a guest can be migrated, as 9p cannot.
    pub alone: bool,
    /// Programs of the host that a guest has which is alone, each with the libraries that it needs, at the same paths.
    pub programs: Vec<PathBuf>,
    /// Modules of the guest's kernel that are loaded besides those that every guest has.
    pub modules: Vec<&'static str>,
    /// Longest time until the guest takes commands.
    pub ready: Duration,
    /// QEMU waits on this socket for a guest that is migrated to it. What its agent says is for the one before it.
    pub incoming: Option<PathBuf>,
}

impl Default for GuestSpec {
    fn default() -> Self {
        let qemu = vec!["qemu-system-x86_64".to_string()];
        let limit = Duration::from_secs(600);
        let (nics, kernel, programs, incoming) = (Vec::new(), String::new(), Vec::new(), None);
        let (modules, ready) = (Vec::new(), BOOT_LIMIT);
        Self { nics, cpus: 1, memory_mib: 384, qemu, kernel, limit, alone: false, programs, modules, ready, incoming }
    }
}

/// A running guest. Dropping it ends QEMU.
pub struct Guest {
    qemu: Child,
    agent: Agent,
    folder: TempDir,
    ready: Duration,
    /// QEMU's monitor.
    pub monitor: Monitor,
}

impl Guest {
    /// Starts QEMU and waits until the guest takes commands.
    pub fn boot(spec: &GuestSpec) -> Result<Self> {
        let mut guest = Self::start(spec)?;
        guest.wait_ready()?;
        Ok(guest)
    }

    /// Starts QEMU and returns while the guest boots; [`Guest::wait_ready`] comes next.
    pub fn start(spec: &GuestSpec) -> Result<Self> {
        let kernel = Kernel::prepare()?;
        let folder = paths::scratch()?;
        let initrd = folder.path().join("initrd");
        initramfs::write(&kernel, &spec.modules, &spec.programs, &initrd)?;
        let log = fs::File::create(folder.path().join("qemu.log"))?;
        let mut qemu = Command::new("timeout");
        qemu.args(["-k", "5", &spec.limit.as_secs().to_string()]).args(&spec.qemu);
        qemu.args(arguments(spec, &kernel, folder.path(), &initrd, major_version(&spec.qemu)?));
        qemu.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut qemu = qemu.spawn().context("cannot start QEMU under timeout")?;
        let port = folder.path().join("agent");
        let connected = wait::until(Duration::from_secs(30), "QEMU's sockets", || {
            if let Some(status) = qemu.try_wait()? {
                bail!("QEMU ended ({status}): {}", text_of(&folder.path().join("qemu.log")));
            }
            Ok(Agent::connect(&port).ok())
        });
        match connected {
            Ok(agent) => {
                let monitor = Monitor::new(&folder.path().join("qmp"));
                Ok(Self { qemu, agent, ready: spec.ready, monitor, folder })
            }
            Err(error) => {
                let _ = qemu.kill();
                let _ = qemu.wait();
                process::kill_from_pidfile(&folder.path().join("pid"));
                Err(error)
            }
        }
    }

    /// Waits until the guest's agent says that it is there: after the start, and after each reboot.
    pub fn wait_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < self.ready {
            wait::check_stopped()?;
            match self.agent.line() {
                Ok(Some(line)) if line == "ready" => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(error.context(self.story())),
            }
            if self.console().contains("Kernel panic") {
                break;
            }
        }
        bail!("the guest did not come up within {:?}\n{}", start.elapsed(), self.story())
    }

    /// Runs a shell script in the guest to its end; the guest kills it after `limit`.
    pub fn run(&mut self, script: &str, limit: Duration) -> Result<Finished> {
        let finished = self.agent.run(script, limit);
        finished.map_err(|error| error.context(self.story()))
    }

    /// Runs a shell script in the guest; anything but exit code 0 within 30 s is an error. Returns its output.
    pub fn sh(&mut self, script: &str) -> Result<String> {
        self.sh_for(Duration::from_secs(30), script)
    }

    /// As [`Guest::sh`] with another limit.
    pub fn sh_for(&mut self, limit: Duration, script: &str) -> Result<String> {
        self.run(script, limit)?.success(&format!("in the guest: {script}"))
    }

    /// Where a file of the host is in the guest: under /run/host, because the guest has a /run and a /tmp of its own.
    pub fn path_of(&self, file: &Path) -> String {
        format!("/run/host{}", file.display())
    }

    /// Reboots the guest by the monitor's reset, which it cannot refuse, and waits until it is up again.
    pub fn reset(&mut self) -> Result<()> {
        self.monitor.execute("system_reset", Duration::from_secs(10))?;
        self.wait_ready()
    }

    /// Reboots the guest from inside and waits until it is up again.
    pub fn reboot(&mut self) -> Result<()> {
        // The answer may or may not get out before the machine is gone: a late one is passed over.
        self.sh("(/run/busybox usleep 200000; /run/busybox reboot -f) >/dev/null 2>&1 &")?;
        self.wait_ready()
    }

    /// What the kernel said on its console so far.
    pub fn console(&self) -> String {
        text_of(&self.folder.path().join("console"))
    }

    /// What QEMU itself said so far.
    pub fn log(&self) -> String {
        text_of(&self.folder.path().join("qemu.log"))
    }

    /// QEMU's process id.
    pub fn pid(&self) -> Option<u32> {
        text_of(&self.folder.path().join("pid")).trim().parse().ok()
    }

    /// The folder with its sockets, console and log.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Whether QEMU still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.qemu.try_wait(), Ok(None))
    }

    /// The end of console and log, for an error message.
    fn story(&mut self) -> String {
        // QEMU closes its sockets a moment before it ends.
        let _ = wait::until(Duration::from_secs(1), "QEMU's end", || Ok(self.qemu.try_wait()?));
        let end = |text: String| {
            text.lines().rev().take(15).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
        };
        let state = match self.qemu.try_wait() {
            Ok(Some(status)) => format!("QEMU ended ({status}) and said"),
            _ => match self.monitor.execute("query-status", Duration::from_secs(2)) {
                Ok(status) => format!("QEMU runs ({}) and said", status["status"]),
                Err(error) => format!("QEMU runs ({error:#}) and said"),
            },
        };
        format!("the guest's console:\n{}\n{state}:\n{}", end(self.console()), end(self.log()))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.monitor.execute("quit", Duration::from_secs(2)).is_ok() {
            let _ = wait::until(Duration::from_secs(3), "QEMU's end", || Ok(self.qemu.try_wait()?));
        }
        // `timeout` ends with its child; killed itself it would leave it.
        process::kill_from_pidfile(&self.folder.path().join("pid"));
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn text_of(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// QEMU's whole command line.
fn arguments(spec: &GuestSpec, kernel: &Kernel, folder: &Path, initrd: &Path, version: u32) -> Vec<String> {
    let at = |name: &str| folder.join(name).display().to_string();
    let mut words: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| words.extend([option.to_string(), value]);
    add("-machine", "q35".into());
    add("-accel", "tcg,thread=multi".into());
    add("-cpu", "max".into());
    add("-smp", spec.cpus.to_string());
    match memory_of(&spec.nics) {
        Some(mib) => add("-m", format!("{mib}M")),
        None => {
            add("-m", format!("{}M", spec.memory_mib));
            add("-object", format!("memory-backend-memfd,id=guestmem,size={}M,share=on", spec.memory_mib));
            add("-machine", "memory-backend=guestmem".into());
        }
    }
    add("-kernel", kernel.image.display().to_string());
    add("-initrd", initrd.display().to_string());
    // panic=0: a guest that panics stands still, so that its console can be read.
    let kernel_line = "console=ttyS0 quiet panic=0 nokaslr mitigations=off net.ifnames=0 random.trust_cpu=on";
    let alone = if spec.alone { initramfs::ALONE } else { "" };
    add("-append", format!("{kernel_line} {alone} {}", spec.kernel));
    if let Some(socket) = &spec.incoming {
        add("-incoming", format!("unix:{}", socket.display()));
    }
    // What the kernel calls the process, also where something else starts it: it is found by its name.
    add("-name", "guest,process=qemu-system-x86".into());
    if !spec.alone {
        add("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap".into());
    }
    add("-chardev", format!("socket,id=agent,path={},server=on,wait=off", at("agent")));
    add("-device", "virtio-serial-pci,id=serial".into());
    add("-device", "virtserialport,bus=serial.0,nr=1,chardev=agent,name=ringspan.agent".into());
    add("-qmp", format!("unix:{},server=on,wait=off", at("qmp")));
    add("-serial", format!("file:{}", at("console")));
    add("-pidfile", at("pid"));
    add("-display", "none".into());
    // Debian 12's QEMU 7.2 without KVM ends with a segmentation fault when the driver of a vhost-user NIC starts with
    // MSI-X (msix_set_vector_notifiers calls into KVM). Without vectors the NIC uses the PCI interrupt line.
    let broken_vectors = version < 8;
    if broken_vectors {
        add("-global", "virtio-net-pci.vectors=0".into());
    }
    // No network boot: it would only cost time.
    add("-global", "virtio-net-pci.romfile=".into());
    words.extend(["-nodefaults".into(), "-no-user-config".into()]);
    for argument in &spec.nics {
        let options = argument.split(',').filter(|option| !broken_vectors || !option.starts_with("vectors="));
        words.push(options.collect::<Vec<_>>().join(","));
    }
    words
}

/// The first number of QEMU's version.
fn major_version(qemu: &[String]) -> Result<u32> {
    let (program, words) = qemu.split_first().context("no words to start QEMU with")?;
    let said = wait::run(Command::new(program).args(words).arg("--version"), Duration::from_secs(20))?.text;
    let version = said.split_whitespace().skip_while(|word| *word != "version").nth(1);
    let major = version.and_then(|version| version.split('.').next()?.parse().ok());
    major.with_context(|| format!("QEMU's --version has no version in it: {said}"))
}

/// The size in MiB of the memory objects in these arguments together, if they have any: one, or one for each NUMA node.
fn memory_of(arguments: &[String]) -> Option<u32> {
    let objects = arguments.iter().filter(|argument| argument.starts_with("memory-backend-"));
    objects.map(|object| size_of(object)).reduce(|sum, size| Some(sum? + size?))?
}

fn size_of(object: &str) -> Option<u32> {
    let size = object.split(',').find_map(|option| option.strip_prefix("size="))?;
    let (number, unit) = size.split_at(size.trim_end_matches(|letter: char| letter.is_ascii_alphabetic()).len());
    let number: u32 = number.parse().ok()?;
    match unit {
        "M" | "" => Some(number),
        "G" => Some(number * 1024),
        _ => None,
    }
}

/// Splits what `ringspan port qemu-args` prints: words separated by white space, with a backslash at line ends for the
/// shell, and quotes around none of them.
pub fn split_arguments(text: &str) -> Vec<String> {
    text.split_whitespace().filter(|word| *word != "\\").map(String::from).collect()
}

/// What must be on the machine for a guest, and is not: an empty list means that guests can be booted.
pub fn missing() -> Vec<String> {
    let programs = ["qemu-system-x86_64", "busybox", "modprobe", "dpkg-deb", "apt-get", "timeout"];
    let missing = programs.iter().filter(|name| paths::on_path(name).is_none());
    missing.map(|name| format!("the program {name}")).collect()
}
