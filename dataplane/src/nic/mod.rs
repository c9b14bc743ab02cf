//! The NIC side: DPDK behind types that cannot be misused.
//!
//! [`Eal`] starts DPDK once per process. [`Device::open`] plugs a device in and gives out its [`QueuePair`]s; each belongs to
//! one worker, which moves [`Burst`]s of frames through it. Frames live in a [`Pool`]'s buffers.
//!
//! # Safety invariants
//! All of DPDK that ringspan uses is called from this module. It rests on these:
//! - EAL is started before anything else here can be built: [`Device::open`] checks it.
//! - A port's queue is polled by one thread at a time: its handle is not `Clone`, and receiving and sending need `&mut`.
//! - A port is configured, stopped and closed only while nobody can poll it: [`Device::reconfigure`] takes all handles
//!   back, and each handle keeps the port alive until it is dropped.
//! - A frame's buffer outlives the frame: a [`Burst`] holds the pools it took frames from, a port holds its own pool until its
//!   rings are emptied, and a pool with frames still outside is kept aside until they are back.
//! - Plugging and unplugging is done by one thread at a time, under the lock of `registry`.

mod blanks;
mod bond;
mod burst;
mod configure;
mod device;
mod dma;
mod eal;
mod error;
mod external;
mod filter;
mod flow;
#[cfg(test)]
mod handmade;
mod lending;
mod loans;
mod log;
mod meter;
mod offload;
mod patch;
mod pci;
mod pool;
mod port;
mod queue;
mod registry;
mod ring;
mod ring_end;
mod signals;
mod soft;
mod wake;

pub use blanks::Blanks;
pub use bond::Member;
pub use burst::{Burst, Deal, Frame, FrameMut, Segments};
pub use configure::DeviceConfig;
pub use device::{Device, Link, device_count};
pub use eal::{Eal, EalConfig, HugePages, RegisteredThread};
pub use error::{DeviceError, EalError};
pub use external::OwnMemory;
pub use flow::{Counted, Domain, FlowError, FlowPort, FlowRule, FlowStep, Installed as InstalledFlow};
#[cfg(test)]
pub(crate) use handmade::Handmade;
pub use lending::Lending;
pub use loans::{LentMemory, Loans, some_left as some_loans_left, sweep as sweep_loans};
pub use meter::Meter;
pub use offload::TxAbilities;
pub use pool::{Pool, sweep as sweep_pools};
pub use queue::{QueuePair, RxQueue, TxQueue};
pub use signals::SignalledWorker;
pub use soft::{SoftNic, VfLink, WayIn, WayOut, pool as soft_pool, way};
pub use wake::Bell;
