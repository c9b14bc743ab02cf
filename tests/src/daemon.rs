//! A `ringspan serve` of a test's own: its folder, its socket, its lanes, and nothing left of them afterwards.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::netns::Netns;
use crate::wait::{self, Finished};
use crate::{paths, process};

/// Longest time until a started daemon answers; it is well below a second on an idle machine.
const READY: Duration = Duration::from_secs(30);

/// A daemon with its lanes. All of them end when this is dropped.
pub struct Daemon {
    program: PathBuf,
    folder: TempDir,
    namespace: Option<String>,
    child: Option<Child>,
}

impl Daemon {
    /// Starts a daemon whose configuration is `[control]` with paths in a folder of its own, and then `rest`: the
    /// `[dataplane]`, `[[lane]]` and `[[port]]` tables, in which `{dir}` stands for that folder. Daemon and lanes run in
    /// the namespace, so that a lane finds the TAPs there. Returns when it answers.
    pub fn start(rest: &str, namespace: Option<&Netns>) -> Result<Self> {
        let folder = paths::scratch()?;
        let dir = folder.path().display();
        let control = format!(
            "[control]\nsocket = \"{dir}/control.sock\"\nstate_dir = \"{dir}/state\"\nrun_dir = \"{dir}/run\"\n"
        );
        fs::create_dir(folder.path().join("state"))?;
        fs::create_dir(folder.path().join("run"))?;
        fs::write(folder.path().join("ringspan.toml"), control + &rest.replace("{dir}", &dir.to_string()))?;
        let namespace = namespace.map(|namespace| namespace.name().to_string());
        let mut daemon = Self { program: paths::program("ringspan")?, folder, namespace, child: None };
        // Also makes sure that the lane's program is there, which the daemon looks for beside itself.
        paths::program("ringspan-lane")?;
        daemon.start_again()?;
        Ok(daemon)
    }

    /// Starts the daemon again after [`Daemon::kill`] or [`Daemon::terminate`], and waits until it answers.
    pub fn start_again(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("daemon.log"))?;
        let mut command = match &self.namespace {
            Some(name) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{name}")).arg("--").arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command.args(["serve", "--config"]).arg(self.path("ringspan.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = self.child.insert(command.spawn().context("cannot start ringspan serve")?);
        let socket = self.folder.path().join("control.sock");
        let answered = wait::until(READY, "the daemon's answer", || {
            if let Some(status) = child.try_wait()? {
                bail!("ringspan serve ended: {status}");
            }
            Ok(call(&socket, "version.get", &json!({})).ok())
        });
        answered.map(drop).map_err(|error| error.context(self.story()))
    }

    /// A path in the daemon's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.path("control.sock")
    }

    /// The daemon's process id.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("the daemon does not run")?.id())
    }

    /// Calls a method of the control API.
    pub fn call(&self, method: &str, params: Value) -> Result<Value> {
        call(&self.socket(), method, &params)
    }

    /// The command line, aimed at this daemon.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("RINGSPAN_CONTROL", self.socket());
        command
    }

    /// Runs the command line to its end.
    pub fn cli(&self, arguments: &[&str]) -> Result<Finished> {
        wait::run(&mut self.command(arguments), Duration::from_secs(180))
    }

    /// Runs the command line; anything but exit code 0 is an error. Returns its output.
    pub fn ok(&self, arguments: &[&str]) -> Result<String> {
        let finished =
            self.cli(arguments).and_then(|finished| finished.success(&format!("ringspan {}", arguments.join(" "))));
        finished.map_err(|error| error.context(self.story()))
    }

    /// Adds a port on a device, through the command line. Its socket is `NAME.sock` in the daemon's folder.
    pub fn add_port(&self, name: &str, device: &str, more: &[&str]) -> Result<()> {
        let socket = self.path(&format!("{name}.sock")).display().to_string();
        let arguments = ["port", "add", name, "--socket-path", &socket, "--device", device];
        self.ok(&[&arguments[..], more].concat())?;
        Ok(())
    }

    /// The arguments that QEMU needs for a guest with this port, as `ringspan port qemu-args` prints them.
    pub fn qemu_args(&self, name: &str, more: &[&str]) -> Result<Vec<String>> {
        Ok(crate::qemu::split_arguments(&self.ok(&[&["port", "qemu-args", name][..], more].concat())?))
    }

    /// Waits until a software NIC is there, with its representors: its lane takes long where the processor is emulated.
    pub fn wait_nic(&self, nic: &str) -> Result<()> {
        let limit = Duration::from_secs(180);
        let there = wait::until(limit, &format!("NIC {nic}"), || {
            let shown = self.call("nic.show", json!({ "name": nic }));
            Ok(shown.is_ok_and(|shown| find(&shown, "ports").is_some()).then_some(()))
        });
        there.map_err(|error| error.context(self.story()))
    }

    /// Checks that all that came into a software NIC went out of it.
    pub fn adds_up(&self, nic: &str) -> Result<()> {
        let shown = self.call("nic.show", json!({ "name": nic }))?;
        let ports = find(&shown, "ports").and_then(Value::as_array).context("ports")?;
        let sum = |keys: &[&str]| -> u64 {
            let of = |port: &Value| keys.iter().filter_map(|key| port["counters"][key].as_u64()).sum::<u64>();
            ports.iter().map(of).sum()
        };
        let came = sum(&["received", "representor_received", "copies", "segments"]);
        let went = sum(&["sent", "representor_sent"]);
        ensure!(came > 0 && came == went, "{came} frames came and {went} went: {shown:#}");
        Ok(())
    }

    /// Waits until the port has come this far: `listening`, `connected`, `driver-ready`.
    pub fn wait_port(&self, name: &str, phase: &str, limit: Duration) -> Result<()> {
        let seen = wait::until(limit, &format!("port {name} {phase}"), || {
            let port = self.call("port.get", json!({ "name": name }))?;
            Ok((find(&port, "phase") == Some(&json!(phase))).then_some(()))
        });
        seen.map_err(|error| error.context(self.story()))
    }

    /// Process ids of the running lanes of this daemon, with their names: found by the run directory on their command lines,
    /// so that it works without the daemon too.
    pub fn lanes(&self) -> Vec<(String, u32)> {
        let run_dir = self.path("run").display().to_string();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let lanes = processes.filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let words: Vec<String> =
                line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into()).collect();
            let value = |option: &str| words.iter().position(|word| word == option).and_then(|at| words.get(at + 1));
            let ours = words.first()?.ends_with("ringspan-lane") && value("--run-dir") == Some(&run_dir);
            ours.then(|| Some((value("--name")?.clone(), pid)))?
        });
        lanes.filter(|(_, pid)| process::alive(*pid)).collect()
    }

    /// Process id of the lane of this name.
    pub fn lane_pid(&self, name: &str) -> Result<u32> {
        let lane = self.lanes().into_iter().find(|(lane, _)| lane == name);
        Ok(lane.with_context(|| format!("no lane {name} runs\n{}", self.story()))?.1)
    }

    /// Kills the daemon at once (SIGKILL); its lanes stay.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the daemon does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Ends the daemon in order (SIGTERM); its lanes stay.
    pub fn terminate(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the daemon does not run")?;
        process::signal(child.id(), Signal::SIGTERM)?;
        let ended = wait::until(Duration::from_secs(15), "the daemon's end", || Ok(child.try_wait()?));
        if ended.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        ended.map(drop)
    }

    /// The ends of the logs, for an error message.
    pub fn story(&self) -> String {
        let mut story = String::new();
        let lanes = fs::read_dir(self.path("run")).into_iter().flatten().flatten().map(|entry| entry.path());
        let logs = lanes.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        for path in std::iter::once(self.path("daemon.log")).chain(logs) {
            let bytes = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            story += &format!("{}:\n{}\n", path.display(), lines[lines.len().saturating_sub(20)..].join("\n"));
        }
        story
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.story());
        }
        if let Some(mut child) = self.child.take() {
            let _ = call(&self.socket(), "daemon.stop", &json!({ "lanes": true }));
            let _ = wait::until(Duration::from_secs(10), "the daemon's end", || Ok(child.try_wait()?));
            let _ = child.kill();
            let _ = child.wait();
        }
        for (_, pid) in self.lanes() {
            let _ = process::kill_hard(pid);
        }
    }
}

/// One call on a connection of its own.
fn call(socket: &Path, method: &str, params: &Value) -> Result<Value> {
    let stream = UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(180)))?;
    writeln!(&stream, "{}", json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }))?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).with_context(|| format!("waiting for the answer to {method}"))?;
    let mut answer: Value =
        serde_json::from_str(&line).with_context(|| format!("{method} was answered by {line:?}"))?;
    if let Some(error) = answer.get("error") {
        bail!("{method}: {error}");
    }
    Ok(answer["result"].take())
}

/// The first value under this key, at any depth.
pub fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map.get(key).or_else(|| map.values().find_map(|value| find(value, key))),
        Value::Array(values) => values.iter().find_map(|value| find(value, key)),
        _ => None,
    }
}

/// The device on a TAP. The TAP's own MAC address is fixed: net_tap would otherwise give it a new one at each start of the
/// lane, and neighbours would not find it.
pub fn tap_device(tap: &str) -> String {
    let sum = tap.bytes().fold(7u16, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    format!("vdev:net_tap_{tap},iface={tap},mac=02:74:61:70:{:02x}:{:02x}", sum >> 8, sum & 255)
}
