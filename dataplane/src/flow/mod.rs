//! A NIC whose switch is its own: rules reach it through DPDK's rte_flow.

pub mod devargs;
pub mod engine;
pub mod nic;
