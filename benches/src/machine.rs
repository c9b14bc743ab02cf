//! The machine that was measured on, and the programs.

use std::fmt;
use std::process::Command;
use std::time::Duration;

use ringspan_testkit::{paths, testpmd, wait};
use serde::Serialize;

use crate::clock::ticks_per_second;
use crate::ovs;

/// What a number of a benchmark depends on.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
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

fn dpdk() -> Option<String> {
    let mut query = Command::new(paths::on_path("dpkg-query")?);
    query.args(["-W", "-f", "${Version}", "dpdk"]);
    Some(wait::run(&mut query, Duration::from_secs(10)).ok()?.success("dpkg-query").ok()?.trim().to_string())
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} x {} at {:.2} GHz{}, kernel {}, DPDK {}, {}, {}, load average {}",
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
