//! The control side of ringspan: the daemon (`ringspan serve`) and the command line.
//!
//! It knows what should be: the configuration file, the ports that were added at run time, and the lanes that carry them.
//! It never links DPDK, never maps guest memory and never sees a packet; that is the business of the `ringspan-lane`
//! processes, which it starts, adopts and talks to in the messages of [`ringspan_protocol`].
//!
//! A request's way: `control::socket` accepts, `control::connection` reads a line, `control::methods` has the table
//! of methods, `desired` holds what is wanted, `lanes` makes it so.

mod attach;
pub mod cli;
mod config;
mod control;
mod desired;
mod error;
#[cfg(test)]
mod fake_lane;
mod host;
mod lanes;
mod nic_request;
pub mod ovs;
mod plural;
mod port_request;
mod qemu_args;
mod serve;
mod state;
