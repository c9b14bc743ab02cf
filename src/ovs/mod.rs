//! Open vSwitch: what it is told, what it says of itself, and what it has in its datapath.
//!
//! `client` speaks with ovsdb-server and ovs-vswitchd over their sockets, [`flow`] is what a datapath's flows mean, and [`kernel`] has them from
//! the kernel. `compile` makes rules of them, and `mirror` keeps those of the NICs up to date. Nothing here runs one of OVS's programs, and nothing depends on text that differs between OVS 2.17 and 3.5.

pub(crate) mod client;
pub(crate) mod compile;
pub(crate) mod configure;
pub mod flow;
pub mod kernel;
pub(crate) mod max_idle;
pub(crate) mod mirror;
pub(crate) mod owner;
pub(crate) mod qdisc;
mod representor;
pub(crate) mod restart;
mod rtnetlink;
pub(crate) mod underlay;
pub(crate) mod verify;
pub(crate) mod view;

pub use compile::rule_of;
pub use mirror::Replay;
