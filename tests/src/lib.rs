//! Shared parts of the end-to-end tests, the demo and the benchmarks.

pub mod capture;
pub mod churn;
pub mod daemon;
pub mod far_end;
pub mod guest;
pub mod lacp;
pub mod lane;
pub mod netns;
mod over_both;
pub mod ovs;
pub mod packet;
pub mod paths;
pub mod pci;
pub mod process;
pub mod qemu;
pub mod scene;
pub mod skip;
pub mod testpmd;
pub mod tunnel;
pub mod wait;
