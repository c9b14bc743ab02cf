//! The kernel's log: whether a device reached for memory that it may not read.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use ringspan_testkit::wait;

/// What the kernel says of an access that the IOMMU refused (kernel: drivers/iommu/intel/dmar.c, `dmar_fault_do_one`).
const FAULT: &str = "fault addr";

/// The log from some moment on.
pub struct KernelLog {
    seen: usize,
}

impl KernelLog {
    /// From now on.
    pub fn from_now() -> Result<Self> {
        Ok(Self { seen: lines()?.len() })
    }

    /// DMA faults since the last look.
    pub fn faults(&mut self) -> Result<Vec<String>> {
        let lines = lines()?;
        let new = lines.get(self.seen..).unwrap_or_default();
        let faults = new.iter().filter(|line| line.contains(FAULT)).cloned().collect();
        self.seen = lines.len();
        Ok(faults)
    }

    /// An error when there was a fault since the last look.
    pub fn no_faults(&mut self) -> Result<()> {
        let faults = self.faults()?;
        if faults.is_empty() { Ok(()) } else { bail!("the NIC reached for memory that is not its own: {faults:#?}") }
    }
}

fn lines() -> Result<Vec<String>> {
    let text = wait::run(&mut Command::new("dmesg"), Duration::from_secs(20))?.success("dmesg")?;
    Ok(text.lines().map(str::to_string).collect())
}
