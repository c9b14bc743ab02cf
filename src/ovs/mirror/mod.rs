//! The mirror: what OVS has in its datapath is brought into the switches of NICs, and taken out again.
//!
//! Once round: the datapaths are dumped when it is time ([`pace`]), compared with what was there ([`table`]), what differs is compiled
//! ([`super::compile`]) and told to the engines ([`engine`]). **Removals come first**: a frame whose rule is gone goes to OVS, which is
//! right whatever OVS decides; a rule that is there too long is not. A flow that changed keeps its rule until the new one takes its place
//! in one step. When OVS is gone for longer than the grace period, all rules go.

mod engine;
mod pace;
mod report;
mod run;
mod table;
#[cfg(test)]
mod tests;
mod work;

pub(crate) use engine::{Engine, Nic};
pub(crate) use report::{FlowFilter, FlowState, FlowStats, FlowView, Flows};
pub(crate) use run::{Mirror, Settings};
