//! The NIC side, and the relay between it and a guest, against DPDK's own virtual devices, without hugepages.
//!
//! EAL starts once per process, so every test runs in a process of its own: see [`alone`].

mod alone;
mod bond;
mod devices;
mod gso;
mod kernel;
mod limits;
mod loopback;
mod pci;
mod relay;
mod scene;
mod tap;
mod workers;
