//! The program `ringspan` itself, as an operator and as systemd use it, with fake lanes.

mod doctor;
#[path = "../../fake_lane.rs"]
mod fake_lane;
mod flow;
mod host;

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Longest wait for anything that should happen at once.
const SOON: Duration = Duration::from_secs(20);

/// Not a test: what the fake lanes run.
#[test]
fn fake_lane_process() {
    fake_lane::main_if_lane();
}

struct Bench {
    folder: tempfile::TempDir,
    daemon: Option<Child>,
    notices: UnixDatagram,
}

impl Bench {
    fn start(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fake_lane::program(folder.path(), "fake_lane_process");
        let notices = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        notices.set_read_timeout(Some(SOON)).unwrap();
        let mut bench = Self { folder, daemon: None, notices };
        bench.write_config(more);
        bench.serve();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_config(&self, more: &str) {
        let at = self.folder.path().display();
        let control = format!(
            "[control]\nsocket = \"{at}/c.sock\"\nstate_dir = \"{at}/state\"\nlane_program = \"{at}/fake-lane\"\n"
        );
        std::fs::write(self.path("r.toml"), control + more).unwrap();
    }

    /// Starts the daemon, and returns when it says that it is ready.
    fn serve(&mut self) -> Duration {
        let begun = Instant::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringspan"));
        command.args(["serve", "--config"]).arg(self.path("r.toml")).env("NOTIFY_SOCKET", self.path("notify"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.daemon = Some(command.spawn().unwrap());
        self.notice("READY=1");
        begun.elapsed()
    }

    /// Waits for this notice to systemd.
    fn notice(&self, wanted: &str) {
        let mut bytes = [0; 4096];
        loop {
            let count = self.notices.recv(&mut bytes).unwrap_or_else(|_| panic!("no notice {wanted}"));
            if String::from_utf8_lossy(&bytes[..count]).lines().any(|line| line == wanted) {
                return;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.daemon.as_ref().unwrap().id() as i32), signal).unwrap();
    }

    fn wait_for_end(&mut self) -> Option<i32> {
        self.daemon.take().unwrap().wait().unwrap().code()
    }

    fn run(&self, line: &str) -> Output {
        let words = line.split(' ').map(|word| word.replace("{dir}", &self.folder.path().display().to_string()));
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringspan"));
        command.args(words).env("RINGSPAN_CONTROL", self.path("c.sock")).stdin(Stdio::null());
        command.output().unwrap()
    }

    fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {said}\n{}", std::fs::read_to_string(self.path("log")).unwrap());
        String::from_utf8(output.stdout).unwrap()
    }

    /// Exit code and what was said on standard error.
    fn fails(&self, line: &str) -> (i32, String) {
        let output = self.run(line);
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(line)).unwrap()
    }

    fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(begun.elapsed() < SOON, "not within {SOON:?}: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The process of the first lane, which is started if nothing has needed it so far.
    fn lane_pid(&self) -> i64 {
        self.until("the lane is up", || {
            let lane = self.json("lane list --json")[0].clone();
            if lane["phase"] == "idle" {
                self.ok("lane restart main");
            }
            (lane["phase"] == "up").then(|| lane["pid"].as_i64().unwrap())
        })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = self.run("stop --lanes");
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

const ADD_VM1: &str = "port add vm1 --socket-path {dir}/vm1.sock --role server --device vdev:net_null0,size=64,no-rx=1 --queues 2 --socket-owner root:root --socket-mode 0660";

#[test]
fn ports_are_handled_from_the_command_line() {
    let bench = Bench::start("");
    assert_eq!(bench.ok(ADD_VM1), "");
    let at = bench.folder.path().display();
    assert_eq!(
        bench
            .ok("port list")
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>(),
        [
            "PORT LANE PHASE DEVICE QUEUES MTU SOCKET NOTE".to_owned(),
            format!("vm1 main listening vdev:net_null0,size=64,no-rx=1 2 1500 {at}/vm1.sock"),
        ]
    );
    assert_eq!(bench.ok(&format!("{ADD_VM1} --may-exist")), "");
    assert_eq!(bench.json("port list --json")[0]["spec"]["socket_mode"], "0660");
    bench.ok("port set vm1 --mtu 9000 --promiscuous on");
    let shown = bench.ok("port show vm1");
    let fields: Vec<_> = shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert!(fields.contains(&vec!["mtu", "9000"]) && fields.contains(&vec!["phase", "listening"]), "{shown}");
    bench.ok("port wait vm1 listening --timeout 5");
    assert_eq!(bench.json("port wait vm1 listening --json")["name"], "vm1");
    bench.ok("reload");
    assert_eq!(bench.json("job wait 1 --json")["state"], "done");
    assert!(bench.ok("port stats vm1").contains("vm1   from-guest  all          10"), "{}", bench.ok("port stats vm1"));
    assert_eq!(
        bench.ok("port qemu-args vm1 --qemu-version 7.2 --memory 1G --guest-queues 4").replace(&at.to_string(), "DIR"),
        "-object memory-backend-memfd,id=mem-vm1,size=1G,share=on -machine memory-backend=mem-vm1 \
         -chardev socket,id=chr-vm1,path=DIR/vm1.sock,reconnect=1 \
         -netdev vhost-user,id=net-vm1,chardev=chr-vm1,queues=4 \
         -device virtio-net-pci,netdev=net-vm1,mac=MAC,mq=on,vectors=10,host_mtu=9000\n"
            .replace("MAC", &bench.json("port qemu-args vm1 --json")["args"][9].as_str().unwrap()[34..51])
    );
    assert!(bench.ok("port qemu-args vm1 --libvirt --no-memory").starts_with("<interface type='vhostuser'>"));
    assert_eq!(bench.json(r#"call port.get {"name":"vm1"}"#)["name"], "vm1");
    bench.ok("port remove vm1");
    bench.ok("port remove vm1 --if-exists");
    let events = bench.ok("events");
    assert!(events.contains(" main/vm1 port-added\n") && events.contains(" main/vm1 port-removed\n"), "{events}");
}

#[test]
fn exit_codes_tell_a_refusal_from_usage_and_from_a_daemon_that_is_not_there() {
    let mut bench = Bench::start("");
    bench.ok(ADD_VM1);
    let (code, said) = bench.fails(ADD_VM1);
    assert_eq!(code, 1);
    assert_eq!(said, "ringspan: port vm1 exists already: remove it first, or use --may-exist\n");
    for line in [
        "port show vm9",
        "port remove vm9",
        "port wait vm1 driver-ready --timeout 0.05",
        "lane restart nowhere",
        "job get 99",
        "call no.such",
        r#"call port.get {"nam":"vm1"}"#,
        "port add vm2 --socket-path relative --device vdev:net_null1",
        "serve --config /no/such/file",
    ] {
        let (code, said) = bench.fails(line);
        assert_eq!(code, 1, "{line}: {said}");
        assert!(said.starts_with("ringspan: ") && said.lines().count() == 1, "{line}: {said}");
    }
    for line in [
        "port",
        "port show",
        "port show a/b",
        "port add vm2 --socket-path /x",
        "port add vm2 --socket-path /x --device null",
        "call version.get {",
        "no-such-command",
        "port wait vm1 sideways",
    ] {
        assert_eq!(bench.fails(line).0, 2, "{line}");
    }
    bench.ok("stop --lanes");
    assert_eq!(bench.wait_for_end(), Some(0));
    let (code, said) = bench.fails("port list");
    assert_eq!(code, 3);
    assert!(said.contains("is ringspan serve running?"), "{said}");
}

#[test]
fn usage_names_what_is_missing_and_no_option_that_the_environment_has() {
    let bench = Bench::start("");
    let (code, said) = bench.fails("port show");
    assert_eq!(code, 2);
    assert!(said.contains("Usage: ringspan port show") && said.contains("<NAME>"), "{said}");
    assert!(!said.contains("--control"), "{said}");
    assert!(bench.ok("--help").contains("environment variable RINGSPAN_CONTROL"));
}

#[test]
fn flows_without_open_vswitch_say_where_it_was_looked_for() {
    let bench = Bench::start("[ovs]\nrun_dir = \"/no/such/openvswitch\"\n");
    let said = |words: &str| String::from_utf8(bench.run(words).stderr).unwrap();
    for words in ["flow list", "flow list --type all"] {
        assert!(said(words).starts_with("no flows: Open vSwitch was not found: "), "{}", said(words));
    }
    // That none fits says nothing of the others.
    for words in [
        "flow list --port a",
        "flow list --state offloaded --why",
        "flow list --type offloaded",
        "flow list --type all --port a",
    ] {
        assert!(said(words).starts_with("none of these flows: Open vSwitch was not found: "), "{}", said(words));
    }
    for text in [said("flow list"), bench.ok("flow stats")] {
        assert!(text.contains("/no/such/openvswitch") && text.contains("ovs.run_dir"), "{text}");
    }
}

#[test]
fn a_change_that_changes_nothing_is_told_which_options_there_are() {
    let bench = Bench::start("");
    bench.ok(ADD_VM1);
    let (code, said) = bench.fails("port set vm1");
    assert_eq!(code, 2, "{said}");
    for option in ["mtu", "mac", "promiscuous", "allmulti", "compat", "vlan", "min-rate", "max-rate", "mode"] {
        assert!(said.contains(&format!("--{option} <")), "{option}: {said}");
    }
    bench.ok("port set vm1 --mtu 9000 --allmulti on");
}

#[test]
fn sighup_changes_what_differs_and_systemd_is_told() {
    let mut bench = Bench::start("");
    let pid = bench.lane_pid();
    let port = format!(
        "[[port]]\nname = \"vm1\"\nsocket = \"{}\"\ndevice = \"vdev:net_null0\"\n",
        bench.path("vm1.sock").display()
    );
    bench.write_config(&port);
    bench.signal(Signal::SIGHUP);
    bench.notice("RELOADING=1");
    bench.notice("READY=1");
    assert_eq!(bench.json("port list --json")[0]["phase"], "listening");
    // A broken file is refused and says where; what runs goes on.
    bench.write_config(&format!("{port}colour = 1"));
    bench.signal(Signal::SIGHUP);
    bench.notice("READY=1");
    assert!(std::fs::read_to_string(bench.path("log")).unwrap().contains("r.toml:9: port: unknown field `colour`"));
    let (code, said) = bench.fails("reload");
    assert_eq!(code, 1);
    assert!(said.contains("r.toml:9: "), "{said}");
    assert_eq!(bench.json("port list --json")[0]["phase"], "listening");
    bench.write_config(&port);
    assert_eq!(bench.ok("reload"), "");
    bench.signal(Signal::SIGTERM);
    bench.notice("STOPPING=1");
    assert_eq!(bench.wait_for_end(), Some(0));
    assert!(!bench.path("c.sock").exists());
    // The lane was spared, and the next daemon finds it.
    bench.serve();
    assert_eq!(bench.lane_pid(), pid);
}

#[test]
fn a_killed_daemon_is_followed_by_one_that_finds_everything() {
    let mut bench = Bench::start("");
    bench.ok(ADD_VM1);
    let pid = bench.lane_pid();
    bench.signal(Signal::SIGKILL);
    bench.wait_for_end();
    let ready = bench.serve();
    println!("ready {ready:?} after its start");
    assert_eq!(bench.lane_pid(), pid);
    assert_eq!(bench.json("port list --json")[0]["phase"], "listening");
    let lanes = bench.ok("lane list");
    assert!(lanes.starts_with("LANE  PHASE ") && lanes.contains("0.0.0-fake (none)"), "{lanes}");
}

#[test]
fn the_daemon_stays_small() {
    let bench = Bench::start("");
    bench.ok(ADD_VM1);
    bench.ok("call schema.get");
    let clients: Vec<_> =
        (0..200).map(|_| std::os::unix::net::UnixStream::connect(bench.path("c.sock")).unwrap()).collect();
    bench.ok("port list");
    let status = format!("/proc/{}/status", bench.daemon.as_ref().unwrap().id());
    let status = std::fs::read_to_string(status).unwrap();
    // Its own memory: a debug build's code, five times a release build's, would count as well.
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    println!("{kib} KiB with {} connections", clients.len());
    assert!(kib < 16 << 10, "{status}");
}

#[test]
fn completions_and_manual_pages_are_made() {
    let bench = Bench::start("");
    assert!(bench.ok("completions bash").contains("_ringspan"));
    bench.ok("man {dir}/man");
    let page = std::fs::read_to_string(bench.path("man/ringspan-port-add.1")).unwrap();
    assert!(page.contains("socket\\-path"), "{page}");
}

#[test]
fn logs_are_json_when_asked_for() {
    let bench = Bench::start("[log]\nformat = \"json\"\n");
    bench.lane_pid();
    let log = std::fs::read_to_string(bench.path("log")).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["fields"]["message"] == "ready"), "{log}");
}
