//! Network namespaces of a test's own, with TAPs in them, and programs that run inside.
//!
//! A namespace is a file in /run/netns, as `ip netns` makes it; names carry the process id, so that tests in parallel do not
//! meet. TAPs inside can have any name and any address: nobody else sees them.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::{paths, process, wait};

/// A network namespace. Programs that were started in it through [`Netns::spawn`] should be dropped first; the namespace
/// and what is in it go on drop.
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace with its loopback up. `label` is for whoever looks at `ip netns`.
    pub fn new(label: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let namespace = Self { name: format!("ringspan-{label}-{}-{number}", std::process::id()) };
        ip(&["netns", "add", &namespace.name])?;
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Its name, as `ip netns exec` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run in this namespace. Only the network differs: /sys and mounts stay those of the machine.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        command_in(&self.name, program)
    }

    /// Takes the calling thread into this namespace for good, with what it opens and whom it starts from here on.
    pub fn join(&self) -> Result<()> {
        let file = std::fs::File::open(format!("/run/netns/{}", self.name)).context("opening a namespace")?;
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).context("entering a namespace")
    }

    /// Runs `ip` in this namespace.
    pub fn ip(&self, arguments: &[&str]) -> Result<String> {
        ip(&[&["-n", &self.name], arguments].concat())
    }

    /// Makes a TAP that stays when the program that uses it is killed: persistent and multi-queue, as DPDK's net_tap
    /// attaches to it. `address` is such as `192.0.2.1/24`.
    pub fn tap(&self, name: &str, address: &str, mtu: u16) -> Result<()> {
        self.ip(&["tuntap", "add", "dev", name, "mode", "tap", "multi_queue"])?;
        // IPv6 would send router solicitations and confuse exact counts.
        self.sysctl(&format!("net.ipv6.conf.{name}.disable_ipv6=1"))?;
        self.ip(&["link", "set", name, "mtu", &mtu.to_string(), "up"])?;
        self.ip(&["address", "add", address, "dev", name])?;
        Ok(())
    }

    /// Makes a pair of Ethernet ends joined by a wire: `name` with the address for this namespace, `far` for a device of
    /// DPDK's that works on an interface. Checksums and segments are made in software, as the far end sees every frame.
    pub fn wire(&self, name: &str, far: &str, address: &str, mtu: u16) -> Result<()> {
        self.ip(&["link", "add", name, "type", "veth", "peer", "name", far])?;
        for end in [name, far] {
            self.sysctl(&format!("net.ipv6.conf.{end}.disable_ipv6=1"))?;
            self.ip(&["link", "set", end, "mtu", &mtu.to_string(), "up"])?;
            self.run(
                Duration::from_secs(10),
                "ethtool",
                &["-K", end, "tx", "off", "tso", "off", "gso", "off", "gro", "off"],
            )?;
        }
        self.ip(&["address", "add", address, "dev", name])?;
        Ok(())
    }

    /// Sets one `name=value` in this namespace; a name that the kernel does not have is left alone.
    pub fn sysctl(&self, setting: &str) -> Result<()> {
        let mut sysctl = self.command(paths::on_path("sysctl").context("sysctl is missing: install procps")?);
        wait::run(sysctl.args(["-e", "-q", "-w", setting]), Duration::from_secs(10))?.success("sysctl")?;
        Ok(())
    }

    /// Runs a program in this namespace to its end, which must be good. Returns its output.
    pub fn run(&self, limit: Duration, program: &str, arguments: &[&str]) -> Result<String> {
        wait::run(self.command(program).args(arguments), limit)?.success(&format!("{program} {}", arguments.join(" ")))
    }

    /// Starts a program in this namespace that goes on in the background.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Result<Background> {
        Background::start(self.command(program).args(arguments))
    }

    /// Waits until a ping to `address` is answered, and returns how long that took.
    pub fn wait_ping(&self, address: &str, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        wait::until(limit, &format!("an answer to a ping of {address}"), || {
            let mut ping = self.command("ping");
            ping.args(["-n", "-q", "-c", "1", "-W", "1", address]);
            Ok((wait::run(&mut ping, Duration::from_secs(5))?.code == 0).then_some(()))
        })?;
        Ok(start.elapsed())
    }

    /// Starts to ping `address` every `interval`, until [`Pinger::finish`].
    pub fn ping(&self, address: &str, interval: Duration) -> Result<Pinger> {
        let interval = format!("{:.3}", interval.as_secs_f64());
        // -O says at once when an answer is outstanding, -D gives each line a time.
        Ok(Pinger { ping: self.spawn("ping", &["-n", "-D", "-O", "-i", &interval, address])? })
    }
}

/// Takes this process, which has one thread yet, and with it all that it starts, into a namespace without a name. That goes with the last process in
/// it, however they end, and with it the TAPs that are persistent: those of Open vSwitch and of the software NIC. Namespaces with names that runs have
/// left that were killed are removed, if nothing runs in them.
///
/// Who may make no namespace stays where he is: he can make no TAPs there, either.
pub fn alone() -> Result<()> {
    match nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
        Err(nix::errno::Errno::EPERM) => return Ok(()),
        made => made.context("making a network namespace for this process")?,
    }
    remove_of_the_dead();
    ip(&["link", "set", "lo", "up"]).map(drop)
}

/// The process that made a namespace of this name, if it is a [`Netns`].
fn maker(name: &str) -> Option<u32> {
    let (rest, number) = name.strip_prefix("ringspan-")?.rsplit_once('-')?;
    let (_, pid) = rest.rsplit_once('-')?;
    number.parse::<u32>().ok()?;
    pid.parse().ok()
}

/// Removes namespaces whose makers are gone, unless processes are in them: those are kept on purpose, as by `cargo xtask demo --keep`. Returns their names.
pub fn remove_of_the_dead() -> Vec<String> {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let left = names.filter(|name| maker(name).is_some_and(|pid| !process::alive(pid)) && !has_processes(name));
    left.filter(|name| ip(&["netns", "delete", name]).is_ok()).collect()
}

/// Whether processes are in the namespace of this name.
fn has_processes(name: &str) -> bool {
    let identity = |path: &std::path::Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let Some(namespace) = identity(&std::path::Path::new("/run/netns").join(name)) else { return false };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.into_iter().any(|process| identity(&process.path().join("ns/net")) == Some(namespace))
}

/// A command that will run in the namespace of this name.
pub(crate) fn command_in(name: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{name}")).arg("--").arg(program);
    command
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(paths::on_path("ip").context("ip is missing: install iproute2")?);
    wait::run(command.args(arguments), Duration::from_secs(10))?.success(&format!("ip {}", arguments.join(" ")))
}

/// A program in the background; ended on drop, by SIGKILL if it must be.
pub struct Background {
    child: Child,
    output: Arc<Mutex<Vec<u8>>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Background {
    /// Starts it, without standard input.
    pub fn start(command: &mut Command) -> Result<Self> {
        let what = format!("{command:?}");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().with_context(|| format!("cannot start {what}"))?;
        let mut pipe = child.stdout.take().context("the output is piped")?;
        let output = Arc::<Mutex<Vec<u8>>>::default();
        let kept = Arc::clone(&output);
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut bytes) {
                kept.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&bytes[..count]);
            }
        });
        Ok(Self { child, output, reader: Some(reader) })
    }

    /// What it has written to its standard output so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, waits up to 10 s for its end, and returns its standard output.
    pub fn stop(mut self, signal: Signal) -> Result<String> {
        process::signal(self.child.id(), signal)?;
        wait::until(Duration::from_secs(10), "the end of a background program", || Ok(self.child.try_wait()?))?;
        if let Some(reader) = self.reader.take() {
            // It ends with the pipe, and has nothing to panic about.
            let _ = reader.join();
        }
        Ok(self.output())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // A signal that can be handled comes first: `timeout` passes it on to what it runs, which would outlive it otherwise.
        let _ = process::signal(self.child.id(), Signal::SIGTERM);
        let _ = wait::until(Duration::from_secs(5), "the end of a background program", || Ok(self.child.try_wait()?));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A ping that runs.
pub struct Pinger {
    ping: Background,
}

/// What a ping saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u32,
    /// Requests answered.
    pub received: u32,
    /// Answers that came twice.
    pub duplicates: u32,
    /// Answers in the order in which they came: the request's number, and the time in microseconds since the Unix epoch.
    pub answers: Vec<(u32, u64)>,
}

impl Pinger {
    /// Waits until a request that is sent from now on is answered, stops, and counts: what came before that request and is
    /// not answered then is lost, and not only late. No such answer within 10 s is an error.
    pub fn finish(self) -> Result<PingReport> {
        let sent = last_number(&self.ping.output(), "icmp_seq=");
        wait::until(Duration::from_secs(10), "an answer to the last ping", || {
            Ok((last_number(&self.ping.output(), "bytes from") > sent + 1).then_some(()))
        })?;
        PingReport::parse(&self.ping.stop(Signal::SIGINT)?)
    }
}

/// The highest request number in the lines of ping's output that have `word`; 0 when there is none.
fn last_number(text: &str, word: &str) -> u32 {
    let numbers = text
        .lines()
        .filter(|line| line.contains(word))
        .filter_map(|line| line.split_once("icmp_seq=")?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
    numbers.max().unwrap_or(0)
}

impl PingReport {
    /// Reads the output of iputils' ping.
    pub fn parse(text: &str) -> Result<Self> {
        let Some(summary) = text.lines().find(|line| line.contains(" packets transmitted")) else {
            bail!("ping gave no summary:\n{text}");
        };
        let count = |word: &str| -> u32 {
            let part = summary.split(", ").find(|part| part.contains(word));
            part.and_then(|part| part.trim_start_matches('+').split(' ').next()?.parse().ok()).unwrap_or(0)
        };
        let answers = text.lines().filter(|line| line.contains("bytes from") && !line.contains("(DUP!)"));
        let answers = answers.filter_map(|line| {
            let seconds: f64 = line.strip_prefix('[')?.split(']').next()?.parse().ok()?;
            let number = line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok()?;
            Some((number, (seconds * 1e6) as u64))
        });
        Ok(Self {
            sent: count("packets transmitted"),
            received: count("received"),
            duplicates: count("duplicates"),
            answers: answers.collect(),
        })
    }

    /// Numbers of the requests that were not answered though a later one was. Those after the last answer were under way
    /// when ping was stopped.
    pub fn lost(&self) -> Vec<u32> {
        let last = self.answers.iter().map(|(number, _)| *number).max().unwrap_or(self.sent);
        (1..=last).filter(|number| self.answers.iter().all(|(answered, _)| answered != number)).collect()
    }

    /// The longest time without an answer.
    pub fn longest_gap(&self) -> Duration {
        let gaps = self.answers.windows(2).map(|pair| pair[1].1.saturating_sub(pair[0].1));
        Duration::from_micros(gaps.max().unwrap_or(0))
    }

    /// An error unless every request was answered once.
    pub fn nothing_lost(&self) -> Result<()> {
        let lost = self.lost();
        if !lost.is_empty() || self.duplicates > 0 || self.received == 0 {
            bail!(
                "of {} pings {} were answered, {} of them twice; not answered: {lost:?}; longest time without an answer: {:?}",
                self.sent,
                self.received,
                self.duplicates,
                self.longest_gap()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_told_by_their_makers_and_those_of_the_dead_are_removed() -> Result<()> {
        assert_eq!(maker("ringspan-snic-attach-17015-6"), Some(17015));
        for other in ["ringspan-lab", "ringspan-17-x", "other-a-17-1", "ringspan-a-b-1"] {
            assert_eq!(maker(other), None, "{other}");
        }
        crate::needs!(Root);
        let (mut gone, mine) = (Command::new("true").spawn()?, Netns::new("mine")?);
        gone.wait()?;
        let dead = format!("ringspan-dead-{}-0", gone.id());
        ip(&["netns", "add", &dead])?;
        let is_there = |name: &str| std::fs::exists(format!("/run/netns/{name}")).unwrap();
        // One in which something still runs is kept on purpose, as by the demonstration.
        let maker = Background::start(Command::new("sleep").arg("600"))?;
        let kept = format!("ringspan-kept-{}-0", maker.pid());
        ip(&["netns", "add", &kept])?;
        let program = Background::start(command_in(&kept, "sleep").arg("600"));
        let inside = || Ok(has_processes(&kept).then_some(()));
        let ran = wait::until(Duration::from_secs(20), "a program in the namespace", inside);
        drop(maker);
        // Another process's run may be the one that removes it.
        remove_of_the_dead();
        let kept_is_there = is_there(&kept);
        drop(program);
        remove_of_the_dead();
        ran?;
        assert!(!is_there(&dead) && is_there(mine.name()));
        assert_eq!((kept_is_there, is_there(&kept)), (true, false));
        Ok(())
    }

    #[test]
    fn a_tap_that_is_left_by_who_is_alone_is_in_no_namespace_of_others() -> Result<()> {
        crate::needs!(Root);
        let name = format!("left{}", std::process::id());
        let tap = ["tuntap", "add", "dev", &name, "mode", "tap"];
        // A thread is what changes its namespace; as a process it would have no other.
        let made = std::thread::scope(|scope| {
            let alone = scope.spawn(|| -> Result<String> {
                alone()?;
                ip(&tap)?;
                ip(&["-br", "link"])
            });
            alone.join().expect("it does not panic")
        })?;
        assert!(made.contains(&name) && made.lines().any(|line| line.starts_with("lo ")), "{made}");
        assert!(ip(&["link", "show", "dev", &name]).is_err(), "{name} is left here");
        Ok(())
    }

    #[test]
    fn a_ping_report_counts_losses_duplicates_and_the_longest_gap() {
        let text = "PING 192.0.2.2 (192.0.2.2) 56(84) bytes of data.\n\
            [1700000000.000000] 64 bytes from 192.0.2.2: icmp_seq=1 ttl=64 time=0.5 ms\n\
            [1700000000.100000] 64 bytes from 192.0.2.2: icmp_seq=2 ttl=64 time=0.5 ms\n\
            [1700000000.100010] 64 bytes from 192.0.2.2: icmp_seq=2 ttl=64 time=0.6 ms (DUP!)\n\
            [1700000000.300000] no answer yet for icmp_seq=3\n\
            [1700000001.600000] 64 bytes from 192.0.2.2: icmp_seq=5 ttl=64 time=0.5 ms\n\n\
            --- 192.0.2.2 ping statistics ---\n\
            6 packets transmitted, 3 received, +1 duplicates, 50% packet loss, time 500ms\n";
        let report = PingReport::parse(text).unwrap();
        assert_eq!((report.sent, report.received, report.duplicates), (6, 3, 1));
        assert_eq!(report.lost(), [3, 4]);
        assert_eq!(report.longest_gap(), Duration::from_millis(1500));
        assert!(PingReport::parse("ping: unknown host").is_err());
    }
}
