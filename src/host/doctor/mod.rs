//! `ringspan doctor`: what of this host stands in the way, each with its evidence and the command that mends it.
//!
//! A check is a function from a [`Host`] to findings. The host is a folder for `/proc`, `/sys` and `/etc`, a kernel log, and what programs print, so that tests give
//! made-up ones. What could not be looked at is *unknown*, never *absent*.

pub(crate) mod bundle;
mod check;
mod config_space;
mod distribution;
#[cfg(test)]
mod docs;
mod host;
mod kernel_log;
mod lspci;
mod machine;
mod nic;
mod remedy;
#[cfg(test)]
mod tests;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use check::{CHECKS, is_vdpa};
pub(crate) use host::{FilesOnly, Host, Unseen};
pub(crate) use machine::Machine;

/// What the doctor found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Report {
    /// The worst of the findings.
    pub state: State,
    /// Sums, as a sentence.
    pub summary: String,
    /// What the checks ran on.
    pub host: About,
    /// All findings, in the order of the checks.
    pub findings: Vec<Finding>,
}

/// What the checks ran on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct About {
    /// The distribution, as `os-release` names it.
    pub distribution: String,
    /// The kernel's release.
    pub kernel: String,
    /// Whether the checks ran as root.
    pub privileged: bool,
}

/// A finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Finding {
    /// The check, by its stable name.
    pub check: String,
    /// What kind of thing it looks at.
    pub group: Group,
    /// The device, interface or process it is about, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// How it is.
    pub state: State,
    /// What is so, and why it matters.
    pub message: String,
    /// What was read: a file and its content, a line of a log, what a program printed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
    /// Commands to paste, in order. What no command can do is a comment (`# ...`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remedy: Vec<String>,
}

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// As it should be.
    Pass,
    /// Could not be looked at, or nothing can be said yet.
    Unknown,
    /// Works, and something of it will surprise.
    Warn,
    /// Does not work.
    Fail,
}

/// What kind of thing a check looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Group {
    /// IOMMU, kernel log, command line.
    Platform,
    /// Network cards: SR-IOV, drivers, firmware.
    Nic,
    /// Hugepages, limits, guests' memory.
    Memory,
    /// What packets need of DPDK and of device nodes.
    Dataplane,
    /// Open vSwitch, representors, bonds.
    Switching,
    /// What the host agent and the host's tools do.
    Agent,
}

impl Group {
    /// All, in the order in which they are shown.
    pub(crate) const ALL: [Self; 6] =
        [Self::Platform, Self::Nic, Self::Memory, Self::Dataplane, Self::Switching, Self::Agent];

    /// The heading over its findings.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Platform => "Platform",
            Self::Nic => "Network cards",
            Self::Memory => "Memory",
            Self::Dataplane => "Data plane",
            Self::Switching => "Switching",
            Self::Agent => "Agent and tools",
        }
    }
}

/// Runs all checks.
pub(crate) fn examine(host: &Host) -> Report {
    let mut findings = Vec::new();
    for check in CHECKS {
        findings.extend((check.look)(host).into_iter().map(|found| Finding {
            check: check.name.into(),
            group: check.group,
            item: found.item,
            state: found.state,
            message: found.message,
            evidence: found.evidence,
            remedy: found.remedy,
        }));
    }
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    let (fail, warn, unknown) = (count(State::Fail), count(State::Warn), count(State::Unknown));
    let (passed, warnings) = (findings.len() - fail - warn - unknown, if warn == 1 { "warning" } else { "warnings" });
    let summary = format!("{passed} passed, {warn} {warnings}, {fail} failed, {unknown} unknown");
    Report {
        state: findings.iter().map(|finding| finding.state).max().unwrap_or(State::Pass),
        summary,
        host: About {
            distribution: host.distribution().pretty.clone(),
            kernel: host.kernel(),
            privileged: host.privileged(),
        },
        findings,
    }
}
