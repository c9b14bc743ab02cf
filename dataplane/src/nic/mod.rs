//! The NIC side: DPDK.
