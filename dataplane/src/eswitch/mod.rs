//! The software NIC: a switch between VFs, which guests' ports are bridged to, uplinks and representors.
//!
//! A frame's way: its header fields become a [`key`], the [`classifier`] finds the rule for it, and the rule's [`actions`] are done. A frame
//! without a rule goes to the representor of the port it came from, where whoever makes the rules takes care of it. In legacy mode a
//! [`bridge`] decides instead.

pub mod actions;
pub mod bridge;
mod cache;
pub mod checksum;
pub mod classifier;
mod frame;
mod interned;
mod kept;
pub mod key;
pub mod meters;
pub mod nic;
pub mod slow;
pub mod switch;
pub mod tap;
#[cfg(test)]
mod tests;
mod turn;
