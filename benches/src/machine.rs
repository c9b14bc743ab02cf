//! The machine that was measured on, and the programs.

use std::fmt;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use ringspan_testkit::{paths, testpmd, wait};
use serde::Serialize;

use crate::clock::ticks_per_second;
use crate::ovs;

/// What a number of a benchmark depends on.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// What was measured: the checkout's commit, and whether it was changed since.
    pub ringspan: String,
    /// When, in seconds since 1970.
    pub started: u64,
    /// The words that this program was started with.
    pub command: Vec<String>,
    /// The processor's name.
    pub processor: String,
    /// How many of them.
    pub processors: usize,
    /// Ticks of its time stamp counter in a second: the clock of all figures in cycles.
    pub ticks: f64,
    /// Whether it is a virtual machine.
    pub virtual_machine: bool,
    /// The kernel's release.
    pub kernel: String,
    /// DPDK's version.
    pub dpdk: String,
    /// Open vSwitch's version.
    pub ovs: String,
    /// Whether back-ends and guest memory were in hugepages of 2 MiB.
    pub huge_pages: bool,
    /// Load average of the last minute, before the first measurement: above 0.5 something else was measured too.
    pub load_average: f64,
}

impl Machine {
    /// As it is now.
    pub fn look() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = text("/proc/cpuinfo");
        let of = |key: &str| {
            let line = cpu.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            line.trim_start_matches(['\t', ' ', ':']).to_string()
        };
        Self {
            ringspan: commit().unwrap_or_else(|| "unknown".into()),
            started: UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs()),
            command: std::env::args().skip(1).collect(),
            processor: of("model name"),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            ticks: ticks_per_second(),
            virtual_machine: of("flags").split(' ').any(|flag| flag == "hypervisor"),
            kernel: text("/proc/sys/kernel/osrelease").trim().to_string(),
            dpdk: dpdk().unwrap_or_else(|| "not installed".into()),
            ovs: ovs::version().unwrap_or_else(|| "not installed".into()),
            huge_pages: testpmd::huge_pages_free(),
            load_average: text("/proc/loadavg").split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0),
        }
    }
}

/// None where there is no git, or no checkout.
fn commit() -> Option<String> {
    let mut git = Command::new(paths::on_path("git")?);
    git.args(["describe", "--always", "--dirty"]).current_dir(paths::checkout());
    Some(wait::run(&mut git, Duration::from_secs(10)).ok()?.success("git").ok()?.trim().to_string())
}

fn dpdk() -> Option<String> {
    let mut query = Command::new(paths::on_path("dpkg-query")?);
    query.args(["-W", "-f", "${Version}", "dpdk"]);
    Some(wait::run(&mut query, Duration::from_secs(10)).ok()?.success("dpkg-query").ok()?.trim().to_string())
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ringspan {}, {} x {} at {:.2} GHz{}, kernel {}, DPDK {}, {}, {}, load average {}",
            self.ringspan,
            self.processors,
            self.processor,
            self.ticks / 1e9,
            if self.virtual_machine { " (virtual)" } else { "" },
            self.kernel,
            self.dpdk,
            self.ovs,
            if self.huge_pages { "hugepages" } else { "no hugepages" },
            self.load_average
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_can_be_told_by_what_was_measured_and_when() {
        let machine = Machine::look();
        assert!(machine.started > 1_700_000_000, "{}", machine.started);
        let there = |text: &str| !text.is_empty() && !text.contains('\n');
        assert!(there(&machine.ringspan) && there(&machine.processor), "{machine:?}");
        assert!(machine.to_string().starts_with(&format!("ringspan {}, ", machine.ringspan)), "{machine}");
    }
}
