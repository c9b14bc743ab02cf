//! Open vSwitch of a test's own: a database, a switch with its dummy devices, and nothing of the system's service.
//!
//! With `--enable-dummy` OVS brings devices that are not there and a userspace datapath (`dummy@ovs-dummy`, the same code as
//! `netdev@ovs-netdev`) whose internal ports are no TAPs: no rights, no hugepages, nothing that others see. Packets are put
//! into a port by [`Ovs::receive`], and flows come up as they do in life.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::netns::{Netns, command_in};
use crate::{paths, process, wait};

/// The database's schema, beside the folder of the programs: so a version that was built by hand is taken by its place in `PATH` alone.
const SCHEMA: &str = "share/openvswitch/vswitch.ovsschema";
/// Longest time for one of OVS's commands.
const LIMIT: Duration = Duration::from_secs(30);
/// The datapath that bridges of [`Ovs::add_bridge`] are on.
pub const DATAPATH: &str = "dummy@ovs-dummy";

/// A database server and a switch in a folder of their own. Both are killed when this is dropped, and when the thread that
/// started them ends, unless they are [to be kept](Ovs::start_to_keep_in).
pub struct Ovs {
    folder: tempfile::TempDir,
    /// The network namespace that the switch sees.
    namespace: Option<String>,
    /// It has the kernel's datapath, too.
    kernel: bool,
    /// They go on when who started them has ended.
    kept: bool,
    database: Option<Child>,
    switch: Option<Child>,
}

impl Ovs {
    /// What of OVS is not installed, in words; nothing when all is there.
    pub fn missing() -> Option<String> {
        let programs = ["ovsdb-server", "ovsdb-tool", "ovs-vswitchd", "ovs-vsctl", "ovs-ofctl", "ovs-appctl"];
        let missing: Vec<&str> = programs.into_iter().filter(|name| paths::on_path(name).is_none()).collect();
        let without = (!missing.is_empty()).then(|| missing.join(", "));
        without.or_else(|| schema().is_none().then(|| format!("../{SCHEMA} beside ovs-vswitchd")))
    }

    /// Starts the database and the switch, which has no bridge yet.
    pub fn start() -> Result<Self> {
        Self::start_in(None)
    }

    /// The same in a network namespace, where bridges with `datapath_type=netdev` find the interfaces of their ports.
    pub fn start_in(namespace: Option<&Netns>) -> Result<Self> {
        Self::begin(namespace, false, false)
    }

    /// The same; both go on when the thread that started them has ended, and when this is forgotten.
    pub fn start_to_keep_in(namespace: &Netns) -> Result<Self> {
        Self::begin(Some(namespace), false, true)
    }

    /// The same with the kernel's datapath, which has to be loaded: bridges with `datapath_type=system` are on it.
    pub fn start_with_kernel_in(namespace: &Netns) -> Result<Self> {
        Self::begin(Some(namespace), true, false)
    }

    fn begin(namespace: Option<&Netns>, kernel: bool, kept: bool) -> Result<Self> {
        let namespace = namespace.map(|namespace| namespace.name().to_owned());
        let mut ovs = Self { folder: paths::scratch()?, namespace, kernel, kept, database: None, switch: None };
        let file = ovs.path("conf.db");
        let mut tool = ovs.command("ovsdb-tool")?;
        let schema = schema().context("Open vSwitch's schema is missing: install openvswitch-switch")?;
        wait::run(tool.arg("create").arg(&file).arg(schema), LIMIT)?.success("ovsdb-tool")?;
        ovs.start_database()?;
        ovs.vsctl(&["--no-wait", "init"])?;
        ovs.start_switch()?;
        Ok(ovs)
    }

    /// Its run directory: `db.sock`, `ovs-vswitchd.pid`, `ovs-vswitchd.PID.ctl`, `BRIDGE.mgmt`.
    pub fn run_dir(&self) -> &Path {
        self.folder.path()
    }

    /// A path in the run directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The type of its bridges' datapaths that have real ports.
    pub fn datapath_type(&self) -> &'static str {
        if self.kernel { "system" } else { "netdev" }
    }

    /// The switch's control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.path(&format!("ovs-vswitchd.{}.ctl", self.pid()))
    }

    /// The switch's process; 0 while it does not run.
    pub fn pid(&self) -> u32 {
        self.switch.as_ref().map_or(0, Child::id)
    }

    /// The database server's process; 0 while it does not run.
    pub fn database_pid(&self) -> u32 {
        self.database.as_ref().map_or(0, Child::id)
    }

    /// Starts the database server again after [`Ovs::stop_database`].
    pub fn start_database(&mut self) -> Result<()> {
        let socket = self.path("db.sock");
        let mut command = self.command("ovsdb-server")?;
        command.arg(format!("--remote=punix:{}", socket.display())).arg("--no-chdir").arg(self.path("conf.db"));
        command.arg(format!("--unixctl={}", self.path("db.ctl").display()));
        let database = self.spawn(&mut command, "ovsdb-server")?;
        let pid = self.database.insert(database).id();
        wait::until(LIMIT, "ovsdb-server's socket", || Ok(process::listens(pid, &socket).then_some(())))
    }

    /// Kills the database server.
    pub fn stop_database(&mut self) {
        end(&mut self.database);
    }

    /// Starts the switch again after [`Ovs::stop_switch`], and waits until it has taken the configuration.
    pub fn start_switch(&mut self) -> Result<()> {
        let mut command = self.command("ovs-vswitchd")?;
        if let Some(name) = &self.namespace {
            let inside = self.command("ovs-vswitchd")?;
            command = self.with_folder(command_in(name, inside.get_program()));
        }
        command.arg("--enable-dummy").arg("--no-chdir");
        if !self.kernel {
            command.arg("--disable-system");
        }
        command.arg(format!("--pidfile={}", self.path("ovs-vswitchd.pid").display()));
        command.arg(format!("unix:{}", self.path("db.sock").display()));
        self.switch = Some(self.spawn(&mut command, "ovs-vswitchd")?);
        let (pid, socket) = (self.pid(), self.control_socket());
        wait::until(LIMIT, "ovs-vswitchd's control socket", || {
            let written = fs::read_to_string(self.path("ovs-vswitchd.pid")).unwrap_or_default();
            let ready = written.trim() == pid.to_string() && process::listens(pid, &socket);
            if !process::alive(pid) {
                bail!("it ended:\n{}", self.log());
            }
            Ok(ready.then_some(()))
        })?;
        // Returns when the switch says that it did.
        self.vsctl(&["set", "Open_vSwitch", ".", &format!("external_ids:ready={pid}")]).map(drop)
    }

    /// Kills the switch: its sockets and its pid file stay behind, as after a crash.
    pub fn stop_switch(&mut self) {
        end(&mut self.switch);
    }

    /// Writes a program that replaces the switch by another one, as a service manager would.
    pub fn restart_program(&self) -> Result<PathBuf> {
        let (folder, path) = (self.folder.path().display(), self.path("restart"));
        let program = paths::on_path("ovs-vswitchd").context("ovs-vswitchd is missing: install openvswitch-switch")?;
        let text = format!(
            "#!/bin/sh\nset -e\nkill -9 $(cat {folder}/ovs-vswitchd.pid)\nexport OVS_RUNDIR={folder} OVS_DBDIR={folder} OVS_LOGDIR={folder}\n\
             exec {} --enable-dummy --disable-system --no-chdir --detach --pidfile={folder}/ovs-vswitchd.pid unix:{folder}/db.sock \
             >{folder}/restarted.out 2>&1\n",
            program.display()
        );
        fs::write(&path, text)?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(path)
    }

    /// Adds a bridge without any OpenFlow rule.
    pub fn add_bridge(&self, bridge: &str) -> Result<()> {
        let words = format!("add-br {bridge} -- set Bridge {bridge} datapath_type=dummy fail_mode=secure");
        self.vsctl(&words.split(' ').collect::<Vec<_>>()).map(drop)
    }

    /// Adds a dummy port. `more` are further words for the interface, such as `ofport_request=1`.
    pub fn add_port(&self, bridge: &str, port: &str, more: &[&str]) -> Result<()> {
        let words = ["add-port", bridge, port, "--", "set", "Interface", port, "type=dummy"];
        self.vsctl(&[&words, more].concat()).map(drop)
    }

    /// Runs ovs-vsctl.
    pub fn vsctl(&self, words: &[&str]) -> Result<String> {
        let database = format!("--db=unix:{}", self.path("db.sock").display());
        self.run("ovs-vsctl", &[&["--timeout=20", &database], words].concat())
    }

    /// Runs ovs-ofctl: `ofctl("br0", "add-flow", &["actions=normal"])`.
    pub fn ofctl(&self, bridge: &str, command: &str, words: &[&str]) -> Result<String> {
        let socket = format!("unix:{}", self.path(&format!("{bridge}.mgmt")).display());
        self.run("ovs-ofctl", &[&[command, socket.as_str()], words].concat())
    }

    /// Runs ovs-appctl on the switch: `appctl(&["dpctl/dump-flows", "-m"])`.
    pub fn appctl(&self, words: &[&str]) -> Result<String> {
        let socket = self.control_socket();
        let target = format!("--target={}", socket.display());
        self.run("ovs-appctl", &[&[target.as_str()], words].concat())
    }

    /// Puts a packet into a dummy port: its bytes in hexadecimal, or a flow such as
    /// `in_port(1),eth(src=...,dst=...),eth_type(0x0800),ipv4(...)`.
    pub fn receive(&self, port: &str, packet: &str) -> Result<()> {
        self.appctl(&["netdev-dummy/receive", port, packet]).map(drop)
    }

    /// The last lines of what the switch said.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.path("ovs-vswitchd.out")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn run(&self, program: &str, words: &[&str]) -> Result<String> {
        let finished = wait::run(self.command(program)?.args(words), LIMIT)?;
        let what = format!("{program} {}", words.join(" "));
        finished.success(&what).with_context(|| format!("ovs-vswitchd said:\n{}", self.log()))
    }

    fn command(&self, program: &str) -> Result<Command> {
        let path = paths::on_path(program);
        let path = path.with_context(|| format!("{program} is missing: install openvswitch-switch"))?;
        Ok(self.with_folder(Command::new(path)))
    }

    fn with_folder(&self, mut command: Command) -> Command {
        let folder = self.folder.path();
        command.env("OVS_RUNDIR", folder).env("OVS_DBDIR", folder).env("OVS_LOGDIR", folder).current_dir(folder);
        command
    }

    fn spawn(&self, command: &mut Command, name: &str) -> Result<Child> {
        let log = File::create(self.path(&format!("{name}.out")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if !self.kept {
            // SAFETY: prctl is safe between fork and exec; the process must not outlive the test that started it.
            unsafe { command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)) };
        }
        command.spawn().with_context(|| format!("starting {name}"))
    }
}

impl Drop for Ovs {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("ovs-vswitchd said:\n{}", self.log());
        }
        let ours = self.pid();
        end(&mut self.switch);
        end(&mut self.database);
        // One of `restart_program`.
        let pid = fs::read_to_string(self.path("ovs-vswitchd.pid")).ok().and_then(|text| text.trim().parse().ok());
        if let Some(pid) =
            pid.filter(|pid| *pid != ours && process::name(*pid).is_some_and(|name| name.starts_with("ovs-vswitchd")))
        {
            let _ = process::kill_hard(pid);
        }
    }
}

/// The schema that belongs to the programs.
fn schema() -> Option<PathBuf> {
    let program = paths::on_path("ovs-vswitchd")?;
    // PREFIX/sbin/ovs-vswitchd
    let places = [program.ancestors().nth(2).map(|prefix| prefix.join(SCHEMA)), Some(Path::new("/usr").join(SCHEMA))];
    places.into_iter().flatten().find(|path| path.is_file())
}

fn end(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_kept_outlives_the_thread_that_started_it() -> Result<()> {
        crate::needs!(Root, Ovs);
        let net = Netns::new("ovs-kept")?;
        let start = || (nix::unistd::gettid(), Ovs::start_to_keep_in(&net));
        let (thread, ovs) = std::thread::scope(|scope| scope.spawn(start).join()).expect("a thread");
        let ovs = ovs?;
        // It is joined a little before the kernel is done with it.
        let task = format!("/proc/self/task/{thread}");
        wait::until(LIMIT, "the thread's end", || Ok((!Path::new(&task).exists()).then_some(())))?;
        ovs.vsctl(&["show"])?;
        ovs.appctl(&["version"]).map(drop)
    }

    #[test]
    fn a_packet_into_a_dummy_port_makes_a_flow() -> Result<()> {
        crate::needs!(Ovs);
        let ovs = Ovs::start()?;
        ovs.add_bridge("br0")?;
        ovs.add_port("br0", "p1", &["ofport_request=1"])?;
        ovs.add_port("br0", "p2", &["ofport_request=2"])?;
        ovs.ofctl("br0", "add-flow", &["in_port=1,actions=output:2"])?;
        ovs.receive("p1", "in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x1234)")?;
        let flows = wait::until(LIMIT, "a flow", || {
            let flows = ovs.appctl(&["dpctl/dump-flows", "-m", DATAPATH])?;
            Ok(flows.contains("eth_type(0x1234)").then_some(flows))
        })?;
        assert!(flows.contains("ufid:"), "{flows}");
        Ok(())
    }
}
