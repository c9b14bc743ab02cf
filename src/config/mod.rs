//! The configuration file: TOML, every unknown key refused with its line, every value checked before anything is done.

mod check;
mod refusal;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use ringspan_protocol::{LaneInfo, LaneName, NicName, PortName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::nic_request::NicRequest;
use crate::port_request::PortRequest;

pub(crate) use check::device_keys;

/// Where the file is looked for when none is named.
pub(crate) const DEFAULT_FILE: &str = "/etc/ringspan.toml";
/// Where the control socket is when nobody says otherwise.
pub(crate) const DEFAULT_SOCKET: &str = "/run/ringspan/control.sock";
/// Where the desired state is kept when nobody says otherwise.
pub(crate) const DEFAULT_STATE_DIR: &str = "/var/lib/ringspan";
/// The lane that `[dataplane]` describes.
pub(crate) const MAIN_LANE: &str = "main";

/// Whether a lane's packet memory is in hugepages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HugePages {
    /// Used where there are enough, else ordinary pages, with a warning.
    #[default]
    Auto,
    /// The lane does not start without.
    Require,
    /// Never used.
    Off,
}

impl HugePages {
    /// The word of the file and of the lane's command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Require => "require",
            Self::Off => "off",
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// The word of the file and of the lane's command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    /// Only what failed.
    Error,
    /// Also what needs somebody's eye.
    Warn,
    /// Also what changes.
    #[default]
    Info,
    /// Also each request.
    Debug,
    /// Everything.
    Trace,
}

impl From<LogLevel> for tracing::level_filters::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    control: ControlTable,
    log: LogTable,
    dataplane: DataplaneTable,
    ovs: OvsTable,
    host: HostTable,
    lane: Vec<Spanned<LaneTable>>,
    nic: Vec<Spanned<NicRequest>>,
    port: Vec<Spanned<PortRequest>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ControlTable {
    socket: Option<Spanned<PathBuf>>,
    socket_mode: Option<Spanned<String>>,
    state_dir: Option<Spanned<PathBuf>>,
    run_dir: Option<Spanned<PathBuf>>,
    group: Option<Spanned<String>>,
    readers: Option<Spanned<String>>,
    lane_program: Option<Spanned<PathBuf>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LogTable {
    format: LogFormat,
    level: LogLevel,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DataplaneTable {
    cores: Option<Spanned<Vec<u16>>>,
    memory_mib: Option<Spanned<u32>>,
    huge_pages: HugePages,
    rebalance_ms: Option<Spanned<u32>>,
    busy_poll: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OvsTable {
    run_dir: Option<Spanned<PathBuf>>,
    restart_command: Option<Spanned<Vec<String>>>,
    max_flows: Option<Spanned<usize>>,
    grace_ms: Option<Spanned<u64>>,
    kernel_tunnels: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HostTable {
    id: Option<Spanned<String>>,
    sysfs: Option<Spanned<PathBuf>>,
    pci_ids: Option<Spanned<PathBuf>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LaneTable {
    name: LaneName,
    cores: Spanned<Vec<u16>>,
    memory_mib: Option<Spanned<u32>>,
    huge_pages: Option<HugePages>,
    rebalance_ms: Option<Spanned<u32>>,
    busy_poll: Option<bool>,
}

/// `[control]`, with its defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Control {
    /// The control socket.
    pub socket: PathBuf,
    /// Its permission bits.
    pub socket_mode: u32,
    /// Where the desired state is kept.
    pub state_dir: PathBuf,
    /// Where the lanes' sockets, locks and journals are.
    pub run_dir: PathBuf,
    /// The group that may change things, and owns the socket.
    pub group: Option<u32>,
    /// The group that may read; everybody who can open the socket when absent.
    pub readers: Option<u32>,
    /// The lane program, when it is not to be looked for.
    pub lane_program: Option<PathBuf>,
}

/// `[ovs]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ovs {
    /// Where Open vSwitch's daemons listen, when they are not to be looked for.
    pub run_dir: Option<PathBuf>,
    /// What restarts ovs-vswitchd, when systemd does not.
    pub restart_command: Option<Vec<String>>,
    /// Most flows that are mirrored.
    pub max_flows: usize,
    /// How long rules stay in NICs when ovs-vswitchd cannot be reached.
    pub grace: Duration,
    /// Whether tunnels of the kernel's datapath are brought into NICs by what is read of the kernel's network.
    pub kernel_tunnels: bool,
}

/// `[host]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostSettings {
    /// What the agent calls this host.
    pub id: Option<String>,
    /// Where sysfs is.
    pub sysfs: PathBuf,
    /// The names of PCI devices, when they are not to be looked for.
    pub pci_ids: Option<PathBuf>,
}

/// `[log]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Log {
    /// How lines look.
    pub format: LogFormat,
    /// How much there is of them.
    pub level: LogLevel,
}

/// A lane as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LaneSettings {
    /// Its name.
    pub name: LaneName,
    /// Cores of its workers, one each.
    pub cores: Vec<u16>,
    /// Memory for packets, in MiB.
    pub memory_mib: u32,
    /// Whether that is in hugepages.
    pub huge_pages: HugePages,
    /// How often the workers' loads are compared, in milliseconds; 0 for never.
    pub rebalance_ms: u32,
    /// Whether the workers spin when there is nothing to do.
    pub busy_poll: bool,
}

impl LaneSettings {
    /// What a running lane has otherwise than the file says.
    pub(crate) fn differences(&self, info: &LaneInfo) -> Option<String> {
        let text = |cores: &[u16], memory_mib: u32, rebalance_ms: u32, busy_poll: bool| {
            format!("cores {cores:?}, {memory_mib} MiB, rebalance_ms {rebalance_ms} and busy_poll {busy_poll}")
        };
        let has = text(&info.cores, info.memory_mib, info.rebalance_ms, info.busy_poll);
        let wanted = text(&self.cores, self.memory_mib, self.rebalance_ms, self.busy_poll);
        let remedy = format!("run ringspan lane restart {}", self.name);
        (has != wanted).then(|| format!("it runs with {has}, the file says {wanted}: {remedy}"))
    }
}

/// A `[[port]]` and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigPort {
    /// Line of the file, from 1.
    pub line: usize,
    /// What it asks for.
    pub request: PortRequest,
}

/// A `[[nic]]` and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigNic {
    /// Line of the file, from 1.
    pub line: usize,
    /// What it asks for.
    pub request: NicRequest,
}

/// The file, read and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// Which file.
    pub file: PathBuf,
    /// `[control]`.
    pub control: Control,
    /// `[log]`.
    pub log: Log,
    /// `[ovs]`.
    pub ovs: Ovs,
    /// `[host]`.
    pub host: HostSettings,
    /// The lane "main", then the `[[lane]]`s in the file's order.
    pub lanes: Vec<LaneSettings>,
    /// The `[[nic]]`s in the file's order.
    pub nics: Vec<ConfigNic>,
    /// The `[[port]]`s in the file's order.
    pub ports: Vec<ConfigPort>,
}

impl Config {
    /// The lane of that name.
    pub(crate) fn lane(&self, name: &LaneName) -> Option<&LaneSettings> {
        self.lanes.iter().find(|lane| lane.name == *name)
    }

    /// The `[[nic]]` of that name.
    pub(crate) fn nic(&self, name: &NicName) -> Option<&ConfigNic> {
        self.nics.iter().find(|nic| nic.request.name == *name)
    }

    /// The `[[port]]` of that name.
    pub(crate) fn port(&self, name: &PortName) -> Option<&ConfigPort> {
        self.ports.iter().find(|port| port.request.name == *name)
    }
}

/// Why a file was refused: always the file, the line where there is one, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    /// It cannot be read.
    #[error("{file}: {reason}")]
    Read {
        /// Which file.
        file: String,
        /// What the operating system said.
        reason: String,
    },
    /// Something in it is wrong.
    #[error("{file}:{line}: {message}")]
    Content {
        /// Which file.
        file: String,
        /// Which line, from 1.
        line: usize,
        /// What is wrong, and what to do.
        message: String,
    },
}

/// What a file is checked against.
#[derive(Debug, Clone)]
pub(crate) struct HostCores {
    /// Numbers of the cores that are online.
    pub online: Vec<u16>,
}

impl HostCores {
    /// This machine's cores.
    pub(crate) fn read() -> Self {
        let text = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
        Self { online: parse_core_list(text.trim()) }
    }
}

/// Reads the kernel's list form: `0-3,8`.
pub(crate) fn parse_core_list(text: &str) -> Vec<u16> {
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) {
            cores.extend(first..=last);
        }
    }
    cores
}

/// Reads and checks a file.
pub(crate) fn load(file: &Path, host: &HostCores) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| ConfigError::Read { file: file.display().to_string(), reason: error.to_string() })?;
    parse(file, &text, host)
}

/// Checks a file's text.
pub(crate) fn parse(file: &Path, text: &str, host: &HostCores) -> Result<Config, ConfigError> {
    let content = |line, message| ConfigError::Content { file: file.display().to_string(), line, message };
    let read: File = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        content(line, refusal::refusal(text, error, |text| toml::from_str::<File>(text).err()))
    })?;
    check::check(file, read, host, |offset| line_of(text, offset))
        .map_err(|(offset, message)| content(line_of(text, offset), message))
}

/// The line, from 1, of a byte offset.
fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}
