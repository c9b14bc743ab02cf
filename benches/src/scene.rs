//! A software NIC with two VFs, a daemon that has Open vSwitch's flows brought into it, and a real Open vSwitch on its representors: its
//! userspace datapath, in a network namespace.

use std::time::Duration;

use anyhow::{Context, Result};
use ringspan_testkit::daemon::Daemon;
use ringspan_testkit::netns::Netns;
use ringspan_testkit::ovs::Ovs;
use ringspan_testkit::wait;

/// The datapath of the bridge.
pub const DATAPATH: &str = "netdev@ovs-netdev";
/// Longest wait for the NIC.
const SOON: Duration = Duration::from_secs(60);
/// From each VF to the other.
pub const ACROSS: [&str; 2] = ["in_port=nic0_vf0,actions=output:nic0_vf1", "in_port=nic0_vf1,actions=output:nic0_vf0"];

/// The parts end in the order of the fields.
pub struct Scene {
    /// The daemon, with a lane `main` that has the NIC `nic0`.
    pub daemon: Daemon,
    /// Open vSwitch, with a bridge `br0` that has the VFs' representors.
    pub ovs: Ovs,
    _net: Netns,
}

impl Scene {
    /// The lane's worker is on this core. The daemon cannot find Open vSwitch before [`Scene::follow`].
    ///
    /// # Errors
    /// What could not be started, in words.
    pub fn new(label: &str, core: usize) -> Result<Self> {
        let net = Netns::new(label)?;
        net.sysctl("net.ipv6.conf.default.disable_ipv6=1")?;
        let ovs = Ovs::start_in(Some(&net))?;
        let config = format!(
            "[ovs]\nrun_dir = \"{{dir}}/nowhere\"\nmax_flows = 250000\n[dataplane]\ncores = [{core}]\nmemory_mib = 256\n[[nic]]\nname = \"nic0\"\nvfs = 2\n"
        );
        let daemon = Daemon::start(&config, Some(&net))?;
        ovs.vsctl(&["add-br", "br0", "--", "set", "Bridge", "br0", "datapath_type=netdev", "fail_mode=secure"])?;
        for port in ["nic0_vf0", "nic0_vf1"] {
            wait::until(SOON, port, || Ok(net.ip(&["link", "show", "dev", port]).ok()))?;
            ovs.vsctl(&["add-port", "br0", port])?;
        }
        Ok(Self { daemon, ovs, _net: net })
    }

    /// Gives the bridge these OpenFlow rules.
    ///
    /// # Errors
    /// What Open vSwitch says.
    pub fn flows(&self, flows: &[&str]) -> Result<()> {
        flows.iter().try_for_each(|flow| self.ovs.ofctl("br0", "add-flow", &[flow]).map(drop))
    }

    /// The datapath's number of a port.
    ///
    /// # Errors
    /// It has no such port.
    pub fn port(&self, name: &str) -> Result<u32> {
        let shown = self.ovs.appctl(&["dpctl/show", DATAPATH])?;
        let found = shown.lines().find_map(|line| line.trim().strip_prefix("port ")?.split_once(&format!(": {name}")));
        let (number, _) = found.with_context(|| format!("{name} in {shown}"))?;
        Ok(number.parse()?)
    }

    /// From now on the daemon, a new one, brings Open vSwitch's flows into the NIC; its lane has gone on meanwhile.
    ///
    /// # Errors
    /// The new daemon does not start.
    pub fn follow(&mut self) -> Result<()> {
        let path = self.daemon.path("ringspan.toml");
        let text = std::fs::read_to_string(&path)?;
        let nowhere = self.daemon.path("nowhere").display().to_string();
        std::fs::write(&path, text.replace(&nowhere, &self.ovs.run_dir().display().to_string()))?;
        self.daemon.terminate()?;
        self.daemon.start_again()
    }
}
