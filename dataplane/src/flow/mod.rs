//! A NIC whose switch is its own: rules reach it through DPDK's rte_flow.

pub mod devargs;
pub mod driver;
pub mod engine;
pub mod nic;
#[cfg(test)]
mod tests;
