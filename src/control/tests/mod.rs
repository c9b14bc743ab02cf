//! The daemon over its socket, with fake lanes.

mod attach;
mod devices;
mod lanes;
mod leftovers;
mod nics;
mod ovs;
mod ports;
mod protocol;
mod races;
mod vdpa;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Daemon, Ending, Listener};
use crate::config::{self, HostCores};
use crate::fake_lane;

/// Longest wait for anything that should happen at once.
const SOON: Duration = Duration::from_secs(20);

/// Not a test: what the fake lanes run.
#[test]
fn fake_lane_process() {
    fake_lane::main_if_lane();
}

/// A folder with a configuration, and a daemon that can be started again in it.
struct Bench {
    folder: tempfile::TempDir,
    running: Option<Running>,
}

struct Running {
    daemon: Arc<Daemon>,
    closer: super::socket::Closer,
    ended: Mutex<Receiver<Ending>>,
}

fn cores() -> HostCores {
    HostCores { online: vec![0, 1, 2, 3] }
}

impl Bench {
    /// A daemon with these lines in its file after `[control]`.
    fn start(more: &str) -> Self {
        let mut bench = Self::stopped(more);
        bench.boot();
        bench
    }

    fn stopped(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fake_lane::program(folder.path(), "control::tests::fake_lane_process");
        let bench = Self { folder, running: None };
        bench.write_config(more);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_config(&self, more: &str) {
        let at = self.folder.path().display();
        let text = format!(
            "[control]\nsocket = \"{at}/c.sock\"\nstate_dir = \"{at}/state\"\nlane_program = \"{at}/fake-lane\"\n{more}"
        );
        std::fs::write(self.path("ringspan.toml"), text).unwrap();
    }

    fn try_boot(&mut self) -> Result<(), String> {
        let config = config::load(&self.path("ringspan.toml"), &cores()).map_err(|error| error.to_string())?;
        let control = config.control.clone();
        let (end, ended) = channel();
        let (end, ended) = (Mutex::new(end), Mutex::new(ended));
        let daemon =
            Daemon::new(config, cores(), |_| {}, move |ending| end.lock().unwrap().send(ending).unwrap_or_default())
                .map_err(|error| error.message)?;
        let listener = Listener::bind(&control).map_err(|error| error.message)?;
        daemon.start();
        let closer = listener.serve(&daemon);
        self.running = Some(Running { daemon, closer, ended });
        Ok(())
    }

    fn boot(&mut self) {
        self.try_boot().unwrap();
    }

    /// Ends the daemon; its lanes go on, or not.
    fn stop(&mut self, ending: Ending) {
        if let Some(running) = self.running.take() {
            running.daemon.stop(ending);
            running.closer.close();
        }
    }

    fn client(&self) -> Client {
        Client::new(UnixStream::connect(self.path("c.sock")).unwrap())
    }

    fn call(&self, method: &str, params: Value) -> Result<Value, Value> {
        self.client().call(method, params)
    }

    fn add(&self, name: &str, device: &str) -> Result<Value, Value> {
        self.call("port.add", self.port(name, device))
    }

    fn port(&self, name: &str, device: &str) -> Value {
        json!({ "name": name, "socket": self.path(&format!("{name}.sock")), "device": device })
    }

    /// The process of a lane, which is started if nothing has needed it so far.
    fn lane_pid(&self, name: &str) -> i64 {
        let lane = self.until("the lane is up", || {
            let lanes = self.call("lane.list", json!({})).unwrap();
            let lane = lanes.as_array().unwrap().iter().find(|lane| lane["name"] == name)?.clone();
            if lane["phase"] == "idle" {
                self.call("lane.restart", json!({ "name": name, "wait": true })).unwrap();
            }
            (lane["phase"] == "up").then_some(lane)
        });
        lane["pid"].as_i64().unwrap()
    }

    fn phase(&self, port: &str) -> String {
        self.call("port.get", json!({ "name": port })).unwrap()["phase"].as_str().unwrap().to_owned()
    }

    /// Waits for something that should come true soon.
    fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(begun.elapsed() < SOON, "not within {SOON:?}: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn events_after(&self, after: u64) -> Vec<Value> {
        let mut client = self.client();
        let last = client.call("events.subscribe", json!({ "after": after })).unwrap()["last"].as_u64().unwrap();
        let mut events = Vec::new();
        while events.last().and_then(|event: &Value| event["sequence"].as_u64()).unwrap_or(after) < last {
            events.push(client.message()["params"].clone());
        }
        events
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop(Ending::StopLanes);
    }
}

struct Client(BufReader<UnixStream>);

impl Client {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self(BufReader::new(stream))
    }

    fn send(&mut self, text: &[u8]) -> std::io::Result<()> {
        self.0.get_mut().write_all(text)
    }

    fn message(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "the connection was closed after {line:?}");
        serde_json::from_str(&line).unwrap()
    }

    fn closed(&mut self) -> bool {
        let mut rest = String::new();
        matches!(self.0.read_line(&mut rest), Ok(0))
    }

    /// The result, or the error object.
    fn call(&mut self, method: &str, params: Value) -> Result<Value, Value> {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        self.send(format!("{request}\n").as_bytes()).unwrap();
        let mut answer = self.message();
        while answer.get("id").is_none() {
            answer = self.message();
        }
        match answer.get("error") {
            Some(error) => Err(error.clone()),
            None => Ok(answer["result"].clone()),
        }
    }
}

/// Records that a test could not run here; `cargo xtask test` counts it as skipped.
fn skip(test: &str, reason: &str) {
    eprintln!("SKIPPED {test}: {reason}");
    if let Some(path) = std::env::var_os("RINGSPAN_SKIPPED") {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(format!("{test}: {reason}\n").as_bytes()).unwrap();
    }
}

fn kind(error: &Value) -> &str {
    error["data"]["kind"].as_str().unwrap_or_default()
}
