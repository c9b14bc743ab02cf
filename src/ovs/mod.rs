//! Open vSwitch: what it is told, what it says of itself, and what it has in its datapath.
//!
//! `client` speaks with ovsdb-server and ovs-vswitchd over their sockets, [`flow`] is what a datapath's flows mean. Nothing here runs one
//! of OVS's programs, and nothing depends on text that differs between OVS 2.17 and 3.5.

#[allow(dead_code, unused_imports, reason = "what configures and verifies OVS comes next")]
pub(crate) mod client;
pub mod flow;
