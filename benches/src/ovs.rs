//! OVS-DPDK as a back-end: a database, a switch and nothing else, in a private folder.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use ringspan_testkit::{paths, process, wait};

/// The database's schema, where Debian has it.
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// The switch with DPDK, where Debian has it.
const SWITCH: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
/// Longest time for one of OVS's commands.
const LIMIT: Duration = Duration::from_secs(30);

/// A port of the switch.
#[derive(Debug, Clone)]
pub enum Port {
    /// A vhost-user socket in the folder, of the port's name.
    Vhost,
    /// A DPDK device.
    Dpdk(String),
}

/// How a switch shall be.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The core of its one polling thread.
    pub core: usize,
    /// Memory for packets in MiB.
    pub memory_mib: u32,
    /// Whether that is in hugepages.
    pub huge_pages: bool,
    /// Its two ports, by name.
    pub ports: [(&'a str, Port); 2],
    /// Receive queues that are polled of a DPDK device.
    pub queues: u16,
    /// MTU of the ports.
    pub mtu: u16,
    /// Whether each port has a pool for itself. The one that ports share is tried with 262144 buffers, then with half as many, until it fits.
    pub own_pools: bool,
    /// Whether checksum and segmentation offloads are offered to guests.
    pub offload: bool,
    /// A program that runs the switch, with that one's arguments.
    pub runner: &'a [String],
}

/// A running switch with one bridge. Both processes are killed when this is dropped.
#[derive(Debug)]
pub struct Ovs {
    folder: PathBuf,
    limit: Duration,
    database: Child,
    switch: Option<Child>,
}

impl Ovs {
    /// Starts the switch in a folder, with flows that pass everything from each of the two ports to the other.
    pub fn start(folder: &Path, plan: &Plan<'_>) -> anyhow::Result<Self> {
        let Plan { core, memory_mib, huge_pages, .. } = *plan;
        let database_file = folder.join("conf.db");
        let run = |command: &mut Command| wait::run(command, LIMIT)?.success("it");
        run(Command::new(program("ovsdb-tool")?).arg("create").arg(&database_file).arg(SCHEMA))
            .context("making OVS's database")?;
        let socket = folder.join("db.sock");
        let mut database = Command::new(program("ovsdb-server")?);
        database.arg(format!("--remote=punix:{}", socket.display()));
        database.arg(format!("--unixctl={}", folder.join("db.ctl").display())).arg("--no-chdir").arg(&database_file);
        let database = spawn(&mut database, folder, "ovsdb-server")?;
        // Under another program the switch takes much longer for everything.
        let limit = if plan.runner.is_empty() { LIMIT } else { 10 * LIMIT };
        let mut ovs = Self { folder: folder.into(), limit, database, switch: None };
        wait::until(LIMIT, "ovsdb-server's socket", || Ok(socket.exists().then_some(())))?;
        let mask = format!("{:#x}", 1_u64 << core);
        ovs.vsctl(&["--no-wait", "init"])?;
        // Without --legacy-mem the switch adds --in-memory, which --no-huge does not go with.
        let memory =
            if huge_pages { "--in-memory --single-file-segments" } else { "--no-huge --legacy-mem --no-shconf" };
        ovs.vsctl(&[
            "--no-wait",
            "set",
            "Open_vSwitch",
            ".",
            "other_config:dpdk-init=true",
            &format!("other_config:dpdk-extra=\"--no-pci --no-telemetry --iova-mode=va -m {memory_mib} {memory}\""),
            &format!("other_config:userspace-tso-enable={}", plan.offload),
            &format!("other_config:per-port-memory={}", plan.own_pools),
            // No dpdk-lcore-mask: it would bind the switch's main thread to a core, and leave it there.
            &format!("other_config:pmd-cpu-mask={mask}"),
        ])?;
        let mut switch = process::under(plan.runner, &switch_program()?);
        switch.arg(format!("unix:{}", socket.display()));
        switch.arg(format!("--unixctl={}", folder.join("switch.ctl").display())).arg("--no-chdir");
        ovs.switch = Some(spawn(&mut switch, folder, "ovs-vswitchd")?);
        ovs.add_bridge(plan)?;
        let management = folder.join("br0.mgmt");
        wait::until(ovs.limit, "the bridge's socket", || Ok(management.exists().then_some(())))?;
        let [one, two] = plan.ports.each_ref().map(|(name, _)| *name);
        ovs.flow(&format!("in_port={one},actions=output:{two}"))?;
        ovs.flow(&format!("in_port={two},actions=output:{one}"))?;
        Ok(ovs)
    }

    /// The bridge and both ports in one transaction: the switch configures itself once.
    fn add_bridge(&self, plan: &Plan<'_>) -> anyhow::Result<()> {
        let text = "add-br br0 -- set Bridge br0 datapath_type=netdev fail_mode=secure";
        let mut words: Vec<String> = text.split(' ').map(String::from).collect();
        for (name, port) in &plan.ports {
            words.extend(["--", "add-port", "br0", name, "--", "set", "Interface", name].map(String::from));
            words.push(format!("mtu_request={}", plan.mtu));
            match port {
                Port::Vhost => words.push("type=dpdkvhostuser".into()),
                Port::Dpdk(device) => words.extend([
                    "type=dpdk".into(),
                    format!("options:dpdk-devargs=\"{device}\""),
                    format!("options:n_rxq={}", plan.queues),
                ]),
            }
        }
        self.vsctl(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        for (name, _) in &plan.ports {
            let fault = self.vsctl(&["get", "Interface", name, "error"])?;
            if fault.trim() != "[]" {
                bail!("OVS port {name}: {}; ovs-vswitchd said:\n{}", fault.trim(), self.log());
            }
        }
        Ok(())
    }

    fn vsctl(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(program("ovs-vsctl")?);
        command.arg(format!("--db=unix:{}", self.folder.join("db.sock").display())).args(words);
        let result = wait::run(&mut command, self.limit).and_then(|finished| finished.success("ovs-vsctl"));
        result.with_context(|| format!("ovs-vsctl {}; ovs-vswitchd said:\n{}", words.join(" "), self.log()))
    }

    /// Runs ovs-appctl on the switch.
    ///
    /// # Errors
    /// What the switch says.
    pub fn appctl(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(program("ovs-appctl")?);
        command.arg("-t").arg(self.folder.join("switch.ctl")).args(words);
        wait::run(&mut command, self.limit)?.success("ovs-appctl").with_context(|| words.join(" "))
    }

    /// Sets something of the switch's: `other_config:max-idle=1000`.
    ///
    /// # Errors
    /// What the database says.
    pub fn set(&self, what: &str) -> anyhow::Result<()> {
        self.vsctl(&["set", "Open_vSwitch", ".", what]).map(drop)
    }

    fn flow(&self, flow: &str) -> anyhow::Result<()> {
        let mut command = Command::new(program("ovs-ofctl")?);
        command.arg("add-flow").arg(format!("unix:{}", self.folder.join("br0.mgmt").display())).arg(flow);
        // The folder is where names of ports are looked up.
        wait::run(command.env("OVS_RUNDIR", &self.folder), self.limit)?.success("ovs-ofctl")?;
        Ok(())
    }

    /// What the switch said so far.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.folder.join("ovs-vswitchd.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// The socket of a vhost-user port.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The switch's process.
    pub fn pid(&self) -> u32 {
        self.switch.as_ref().map_or(0, Child::id)
    }
}

impl Drop for Ovs {
    fn drop(&mut self) {
        for child in self.switch.iter_mut().chain([&mut self.database]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// OVS's daemons, with all their files in `folder`.
fn spawn(command: &mut Command, folder: &Path, name: &str) -> anyhow::Result<Child> {
    let log = File::create(folder.join(format!("{name}.log")))?;
    command.env("OVS_RUNDIR", folder).env("OVS_DBDIR", folder).env("OVS_LOGDIR", folder);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // SAFETY: prctl is safe between fork and exec; the process must not outlive the benchmark that started it.
    unsafe {
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            Ok(())
        })
    };
    command.spawn().with_context(|| format!("starting {name} (Debian package openvswitch-switch-dpdk)"))
}

fn program(name: &str) -> anyhow::Result<PathBuf> {
    paths::on_path(name).with_context(|| format!("{name} is not installed (Debian package openvswitch-switch-dpdk)"))
}

/// The switch that was built with DPDK; the one on the path may be another.
fn switch_program() -> anyhow::Result<PathBuf> {
    let debian = PathBuf::from(SWITCH);
    if debian.is_file() { Ok(debian) } else { program("ovs-vswitchd") }
}

/// The switch's version line; nothing where there is none.
pub fn version() -> Option<String> {
    let text = wait::run(Command::new(switch_program().ok()?).arg("--version"), LIMIT).ok()?.text;
    Some(text.lines().take(2).collect::<Vec<_>>().join(", "))
}
