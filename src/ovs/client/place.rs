//! Where OVS's daemons of this machine listen.

use std::path::{Path, PathBuf};

use super::OvsError;

/// Where they are looked for in turn when nobody says otherwise: the compiled-in default of distributions, and its older name.
const USUAL: [&str; 2] = ["/run/openvswitch", "/var/run/openvswitch"];

/// A run directory of OVS's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    folder: PathBuf,
}

impl Place {
    /// The configured one; else the one that the environment variable `OVS_RUNDIR` names, as OVS's own programs take it; else the usual one.
    pub(crate) fn new(configured: Option<&Path>) -> Self {
        let named = || std::env::var_os("OVS_RUNDIR").filter(|value| !value.is_empty()).map(PathBuf::from);
        let usual = || USUAL.iter().map(PathBuf::from).find(|folder| folder.is_dir()).unwrap_or(USUAL[1].into());
        Self { folder: configured.map(Path::to_owned).or_else(named).unwrap_or_else(usual) }
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The database server's socket.
    pub(crate) fn database(&self) -> PathBuf {
        self.folder.join("db.sock")
    }

    /// The socket by which a bridge is managed.
    pub(crate) fn management(&self, bridge: &str) -> PathBuf {
        self.folder.join(format!("{bridge}.mgmt"))
    }

    /// The switch's process, as its pid file says. The file may be older than the process of that number.
    pub(crate) fn switch_pid(&self) -> Result<u32, OvsError> {
        let path = self.folder.join("ovs-vswitchd.pid");
        let unreachable = |reason: String, errno| OvsError::Unreachable {
            peer: super::unixctl::PEER,
            path: path.clone(),
            reason,
            errno,
        };
        let text =
            std::fs::read_to_string(&path).map_err(|error| unreachable(error.to_string(), error.raw_os_error()))?;
        text.trim()
            .parse()
            .map_err(|_| unreachable(format!("{:?} is no process id", text.chars().take(40).collect::<String>()), None))
    }

    /// Whether an Open vSwitch is or was there: a socket of the database's, or a switch that runs, also while its database is started anew.
    pub(crate) fn is_there(&self) -> bool {
        let runs = |pid: u32| Path::new("/proc").join(pid.to_string()).exists();
        self.database().exists() || self.switch_pid().is_ok_and(runs)
    }

    /// Whether neither of its daemons left anything here. A folder that may not be looked into is not that.
    pub(crate) fn is_absent(&self) -> bool {
        let files = [self.database(), self.folder.join("ovs-vswitchd.pid")];
        files.iter().all(|file| file.try_exists().is_ok_and(|is_there| !is_there))
    }

    /// The control socket of the switch with this number in its pid file.
    pub(crate) fn switch(&self, pid: u32) -> PathBuf {
        self.folder.join(format!("ovs-vswitchd.{pid}.ctl"))
    }
}
