//! Open vSwitch: what it has in its datapath.

pub mod flow;
